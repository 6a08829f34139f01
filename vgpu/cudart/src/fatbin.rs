//! The container that nvcc embeds: code for several architectures, as PTX or machine code, plain or compressed.
//!
//! ```text
//! wrapper    magic 466243b1, version, pointer to the container
//! container  magic ba55ed50, u16 version, u16 header bytes, u64 bytes of the entries that follow
//! entry      u16 kind (1 PTX, 2 machine code) | u16 version | u32 header bytes | u64 payload bytes
//!            | u32 compressed bytes | ... | u32 architecture at 28 | ... | u64 flags at 40 | ... | u64 plain bytes at 56
//! ```

use std::io::Read;

const WRAPPER: u32 = 0x4662_43b1;
const CONTAINER: u32 = 0xba55_ed50;
const KIND_PTX: u16 = 1;
const FLAG_LZ4: u64 = 0x2000;
const FLAG_ZSTD: u64 = 0x8000;

/// The PTX of a program for one architecture, as it lies in the program.
#[derive(Clone, Debug)]
pub struct Ptx {
    /// Compute capability times ten.
    pub arch: u32,
    flags: u64,
    payload: &'static [u8],
    plain_bytes: usize,
}

/// What a container holds.
#[derive(Clone, Default, Debug)]
pub struct Images {
    pub ptx: Vec<Ptx>,
    /// Architectures for which it has machine code.
    pub machine_code: Vec<u32>,
}

/// Why a container or an entry cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed(pub &'static str);

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

/// The wrapper that `__cudaRegisterFatBinary` gets.
#[repr(C)]
pub struct Wrapper {
    magic: u32,
    version: u32,
    container: *const u8,
}

impl Images {
    /// Reads what a wrapper points at.
    ///
    /// # Safety
    /// Wrapper and container are as nvcc makes them, and stay where they are.
    pub unsafe fn of(wrapper: *const Wrapper) -> Result<Images, Malformed> {
        // SAFETY: the caller's contract; the header says how long the container is.
        unsafe {
            if wrapper.is_null() || (*wrapper).magic != WRAPPER {
                return Err(Malformed("the wrapper has a wrong magic number"));
            }
            let at = (*wrapper).container;
            let head = std::slice::from_raw_parts(at, 16);
            let bytes = u64_at(head, 8)? as usize + usize::from(u16_at(head, 6)?);
            Images::parse(std::slice::from_raw_parts(at, bytes))
        }
    }

    fn parse(container: &'static [u8]) -> Result<Images, Malformed> {
        if u32_at(container, 0)? != CONTAINER {
            return Err(Malformed("the container has a wrong magic number"));
        }
        let mut images = Images::default();
        let mut rest = part(container, usize::from(u16_at(container, 6)?), None)?;
        while !rest.is_empty() {
            let head = u32_at(rest, 4)? as usize;
            let bytes = u64_at(rest, 8)? as usize;
            let arch = u32_at(rest, 28)?;
            if u16_at(rest, 0)? == KIND_PTX {
                let payload = part(rest, head, Some(bytes))?;
                images.ptx.push(Ptx::new(arch, rest, payload)?);
            } else {
                images.machine_code.push(arch);
            }
            rest = part(rest, head.checked_add(bytes).ok_or(SHORT)?.max(1), None)?;
        }
        Ok(images)
    }

    /// The newest PTX that a device of this architecture can run.
    pub fn best(&self, arch: u32) -> Option<&Ptx> {
        self.ptx.iter().filter(|p| p.arch <= arch).max_by_key(|p| p.arch)
    }
}

impl Ptx {
    fn new(arch: u32, head: &'static [u8], payload: &'static [u8]) -> Result<Ptx, Malformed> {
        let flags = u64_at(head, 40)?;
        if flags & (FLAG_LZ4 | FLAG_ZSTD) == 0 {
            return Ok(Ptx { arch, flags, payload, plain_bytes: payload.len() });
        }
        let payload = part(payload, 0, Some(u32_at(head, 16)? as usize))?;
        Ok(Ptx { arch, flags, payload, plain_bytes: u64_at(head, 56)? as usize })
    }

    /// The text, decompressed, without the zeros that fill it up.
    pub fn text(&self) -> Result<Vec<u8>, Malformed> {
        let mut text = if self.flags & FLAG_ZSTD != 0 {
            let mut text = Vec::new();
            let decoder = ruzstd::decoding::StreamingDecoder::new(self.payload);
            let mut decoder = decoder.map_err(|_| Malformed("the PTX is not valid zstd data"))?;
            decoder
                .read_to_end(&mut text)
                .map_err(|_| Malformed("the PTX is not valid zstd data"))?;
            text
        } else if self.flags & FLAG_LZ4 != 0 {
            lz4_flex::block::decompress(self.payload, self.plain_bytes)
                .map_err(|_| Malformed("the PTX is not valid LZ4 data"))?
        } else {
            self.payload.to_vec()
        };
        let end = text.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
        text.truncate(end);
        Ok(text)
    }
}

const SHORT: Malformed = Malformed("the container is shorter than it says");

fn part(bytes: &'static [u8], from: usize, len: Option<usize>) -> Result<&'static [u8], Malformed> {
    let rest = bytes.get(from..).ok_or(SHORT)?;
    len.map_or(Ok(rest), |len| rest.get(..len).ok_or(SHORT))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Malformed> {
    bytes.get(at..).and_then(|b| b.first_chunk()).copied().ok_or(SHORT)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Malformed> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Malformed> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, Malformed> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: u16, arch: u32, flags: u64, plain: usize, payload: &[u8]) -> Vec<u8> {
        let mut e = vec![0; 64];
        e[..2].copy_from_slice(&kind.to_le_bytes());
        e[4..8].copy_from_slice(&64u32.to_le_bytes());
        let padded = payload.len().next_multiple_of(8);
        e[8..16].copy_from_slice(&(padded as u64).to_le_bytes());
        e[16..20].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        e[28..32].copy_from_slice(&arch.to_le_bytes());
        e[40..48].copy_from_slice(&flags.to_le_bytes());
        e[56..64].copy_from_slice(&(plain as u64).to_le_bytes());
        e.extend(payload);
        e.resize(64 + padded, 0);
        e
    }

    fn container(entries: &[Vec<u8>]) -> &'static [u8] {
        let body = entries.concat();
        let mut c = CONTAINER.to_le_bytes().to_vec();
        c.extend([1, 0, 16, 0]);
        c.extend((body.len() as u64).to_le_bytes());
        c.extend(body);
        c.leak()
    }

    #[test]
    fn vgpu_the_newest_usable_ptx_is_chosen() {
        let code = |arch| entry(KIND_PTX, arch, 0, 0, format!("for {arch}").as_bytes());
        let c = container(&[entry(2, 100, 0, 0, b"ELF"), code(80), code(90), code(100)]);
        let images = Images::parse(c).unwrap();
        assert_eq!(images.machine_code, [100]);
        let text = |arch| images.best(arch).map(|p| p.text().unwrap());
        assert_eq!(text(90).unwrap(), b"for 90");
        assert_eq!(text(89).unwrap(), b"for 80");
        assert_eq!(text(120).unwrap(), b"for 100");
        assert!(images.best(75).is_none());
    }

    #[test]
    fn vgpu_compressed_ptx_is_read() {
        let text = b"add.s32 add.s32 add.s32 add.s32 add.s32 add.s32 ".repeat(20);
        let lz4 = lz4_flex::block::compress(&text);
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        let zstd = ruzstd::encoding::compress_to_vec(&text[..], level);
        for (flag, data) in [(FLAG_LZ4, lz4), (FLAG_ZSTD, zstd)] {
            let c = container(&[entry(KIND_PTX, 90, flag, text.len(), &data)]);
            assert_eq!(Images::parse(c).unwrap().ptx[0].text().unwrap(), text);
            // Data that is cut off is an error, not a panic and not half a program.
            let half = container(&[entry(KIND_PTX, 90, flag, text.len(), &data[..data.len() / 2])]);
            assert!(Images::parse(half).unwrap().ptx[0].text().is_err());
        }
    }

    #[test]
    fn vgpu_a_truncated_container_is_refused() {
        let c = container(&[entry(KIND_PTX, 90, 0, 0, b"text of a program")]);
        for n in 17..c.len() {
            assert_eq!(Images::parse(&c[..n]).unwrap_err(), SHORT, "{n} bytes");
        }
        assert!(Images::parse(b"no container at all").is_err());
    }
}
