//! Module images: PTX text, or a fat binary with PTX in it.
//!
//! A fat binary is a header and entries, each with a header of its own: kind, sizes, architecture, flags. Programs pass it
//! directly or by a wrapper that points to it.

use std::ffi::{CStr, c_void};
use std::sync::Once;

use super::result::{Error, Res};

const WRAPPER: u32 = 0x4662_43b1;
const FATBIN: u32 = 0xba55_ed50;
const ELF: u32 = u32::from_le_bytes(*b"\x7fELF");
const KIND_PTX: u16 = 1;
/// Flags of an entry whose bytes are compressed, in the older and in the newer way.
const COMPRESSED: u64 = 0x2000 | 0x8000;

/// The PTX text of an image, for a device of this architecture (90).
///
/// # Safety
/// The image is a text that ends with a zero, or a whole binary, as the driver API asks.
pub unsafe fn ptx(image: *const c_void, arch: u32) -> Res<String> {
    if image.is_null() {
        return Err(Error::InvalidValue);
    }
    // SAFETY: the caller's promise; each format is told by its first bytes, and a text of less than four ends with its zero.
    unsafe {
        let first = CStr::from_ptr(image.cast()).to_bytes();
        let magic = match first {
            [a, b, c, d, ..] => u32::from_le_bytes([*a, *b, *c, *d]),
            _ => 0,
        };
        match magic {
            WRAPPER => {
                let data = image.cast::<u8>().add(8).cast::<*const c_void>().read_unaligned();
                ptx(data, arch)
            }
            FATBIN => fat(image.cast(), arch),
            ELF => Err(no_ptx("a cubin holds machine code only")),
            _ => text(first),
        }
    }
}

fn text(bytes: &[u8]) -> Res<String> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::InvalidImage)?;
    // PTX begins with comments and directives; anything else is no image at all.
    if text.trim_start().starts_with(['.', '/']) {
        Ok(text.into())
    } else {
        Err(Error::InvalidImage)
    }
}

fn no_ptx(why: &str) -> Error {
    // Once: a program may have PTX for those who do not take its machine code, for each of many kernels.
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        eprintln!(
            "vgpu: {why}; the virtual GPU needs PTX: compile with \
             `nvcc --no-compress -gencode arch=compute_90,code=compute_90`"
        );
    });
    Error::NoBinaryForGpu
}

/// The best PTX of a fat binary: that of the highest architecture up to the device's.
unsafe fn fat(at: *const u8, arch: u32) -> Res<String> {
    // SAFETY: the header says how long the binary is; the caller promises that it is there.
    let bytes = unsafe {
        let header = at.add(6).cast::<u16>().read_unaligned();
        let size = at.add(8).cast::<u64>().read_unaligned();
        std::slice::from_raw_parts(at.add(header.into()), size as usize)
    };
    let mut best: Option<(u32, &[u8])> = None;
    let (mut compressed, mut rest) = (false, bytes);
    while rest.len() >= 48 {
        let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap_or_default());
        let kind = word(0) as u16;
        let (header, size) = (word(4) as usize, word(8) as usize); // no entry reaches 4 GiB
        if header < 48 {
            return Err(Error::InvalidImage);
        }
        let body = rest.get(header..).and_then(|b| b.get(..size)).ok_or(Error::InvalidImage)?;
        if kind == KIND_PTX {
            let packed = u64::from(word(40)) & COMPRESSED != 0;
            compressed |= packed;
            if !packed && word(28) <= arch && best.is_none_or(|(a, _)| a < word(28)) {
                best = Some((word(28), body));
            }
        }
        rest = &rest[header + size..];
    }
    match best {
        Some((_, body)) => {
            let end = body.iter().position(|b| *b == 0).unwrap_or(body.len());
            text(&body[..end])
        }
        None if compressed => Err(no_ptx("the PTX of this binary is compressed")),
        None => {
            Err(no_ptx(&format!("this binary has no PTX for compute capability {arch} or below")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry with a header of 48 bytes.
    fn entry(kind: u16, arch: u32, flags: u32, body: &[u8]) -> Vec<u8> {
        let mut e = vec![0u8; 48];
        e[..2].copy_from_slice(&kind.to_le_bytes());
        e[4..8].copy_from_slice(&48u32.to_le_bytes());
        e[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
        e[28..32].copy_from_slice(&arch.to_le_bytes());
        e[40..44].copy_from_slice(&flags.to_le_bytes());
        e.extend(body);
        e
    }

    fn binary(entries: &[Vec<u8>]) -> Vec<u8> {
        let body = entries.concat();
        let mut b = FATBIN.to_le_bytes().to_vec();
        b.extend([1, 0, 16, 0]);
        b.extend((body.len() as u64).to_le_bytes());
        b.extend(body);
        b
    }

    fn load(bytes: &[u8]) -> Res<String> {
        // SAFETY: whole binaries.
        unsafe { ptx(bytes.as_ptr().cast(), 90) }
    }

    #[test]
    fn the_highest_ptx_that_the_device_runs_is_taken() {
        let b = binary(&[
            entry(1, 80, 0, b".old\0"),
            entry(1, 90, 0, b".new\0\0\0"),
            entry(1, 100, 0, b".newer\0"),
            entry(2, 90, 0, b"\x7fELF"),
        ]);
        assert_eq!(load(&b).unwrap(), ".new");
        let mut wrapper = WRAPPER.to_le_bytes().to_vec();
        wrapper.extend(1u32.to_le_bytes());
        wrapper.extend((b.as_ptr() as u64).to_le_bytes());
        assert_eq!(load(&wrapper).unwrap(), ".new");
    }

    #[test]
    fn what_has_no_ptx_is_refused() {
        assert_eq!(load(&binary(&[entry(2, 90, 0, b"\x7fELF")])), Err(Error::NoBinaryForGpu));
        assert_eq!(load(&binary(&[entry(1, 90, 0x8011, b"xyz")])), Err(Error::NoBinaryForGpu));
        assert_eq!(load(&binary(&[entry(1, 100, 0, b".x")])), Err(Error::NoBinaryForGpu));
        assert_eq!(load(b"\x7fELF\x02\0"), Err(Error::NoBinaryForGpu));
        assert_eq!(load(b"garbage\0"), Err(Error::InvalidImage));
        assert_eq!(load(b"\0"), Err(Error::InvalidImage));
        let mut cut = binary(&[entry(1, 90, 0, b".x")]);
        cut[16 + 8] = 200; // longer than the binary
        assert_eq!(load(&cut), Err(Error::InvalidImage));
    }
}
