//! Which memory there is, here and at the peers, and how this GPU reaches it.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::CudaContext;
use cudarc::driver::sys;

use crate::gpu::{CudaError, Exported, Gpu, Import};
use crate::net::{NetError, Region, Span};
use crate::sys::{Mapping, recv_with_fd, send_with_fd};

/// A file that a peer sent before it told of the memory is there already.
const FILE_WITHIN: Duration = Duration::from_secs(5);

/// Registered memory, by number.
#[derive(Debug)]
pub(super) struct Memories {
    gpu: Gpu,
    own: HashMap<u32, Arc<dyn Region>>,
    theirs: HashMap<(usize, u32), Mapped>,
    /// Files that came and were not asked for yet.
    files: HashMap<(usize, u32), OwnedFd>,
}

/// Memory of a peer.
#[derive(Debug)]
struct Mapped {
    import: Import,
    len: u64,
}

impl Memories {
    pub(super) fn new(gpu: Gpu) -> Self {
        let (own, theirs, files) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { gpu, own, theirs, files }
    }

    /// What peers are told of it. Those that need a file for it get that by their socket, where it waits for them.
    pub(super) fn register(
        &mut self,
        number: u32,
        region: Arc<dyn Region>,
        links: &[Option<UnixStream>],
    ) -> Result<Vec<u8>, NetError> {
        let failed = |cause: String| NetError::System {
            what: format!("register memory {number} for copies"),
            cause,
        };
        if self.own.contains_key(&number) {
            return Err(failed("the number is in use; forget it first".to_owned()));
        }
        let export = self.gpu.export(region.address() as u64, region.len() as u64);
        let export = export.map_err(|error| failed(error.to_string()))?;
        if let Some(file) = &export.file {
            for link in links.iter().flatten() {
                // A peer that is gone needs none.
                if let Err(errno) = send_with_fd(link, &number.to_le_bytes(), file.as_fd()) {
                    tracing::debug!("a peer does not take memory {number}: {errno}");
                }
            }
        }
        self.own.insert(number, region);
        Ok(bytemuck::bytes_of(&export.range).to_vec())
    }

    pub(super) fn forget(&mut self, number: u32) {
        self.own.remove(&number);
    }

    pub(super) fn learn(
        &mut self,
        peer: usize,
        number: u32,
        description: &[u8],
        link: Option<&UnixStream>,
    ) -> Result<(), NetError> {
        let what = format!("its description of memory {number} is of another transport or version");
        let range = Exported::read(description).ok_or(NetError::Protocol { peer, what })?;
        let file = if range.needs_file() { Some(self.file(peer, number, link)?) } else { None };
        let import = self.gpu.import(&range, file.as_ref()).map_err(|error| NetError::System {
            what: format!("map memory {number} of rank {peer}"),
            cause: error.to_string(),
        })?;
        self.theirs.insert((peer, number), Mapped { import, len: range.len() });
        Ok(())
    }

    /// The file that a peer sent for its memory.
    fn file(
        &mut self,
        peer: usize,
        number: u32,
        link: Option<&UnixStream>,
    ) -> Result<OwnedFd, NetError> {
        let deadline = Instant::now() + FILE_WITHIN;
        loop {
            if let Some(file) = self.files.remove(&(peer, number)) {
                return Ok(file);
            }
            let failed = |cause: String| NetError::System {
                what: format!("take memory {number} of rank {peer}"),
                cause,
            };
            let link = link.ok_or_else(|| failed("there is no such rank".to_owned()))?;
            let mut which = [0; 4];
            let file = recv_with_fd(link, &mut which, deadline);
            let file = file.map_err(|errno| failed(errno.to_string()))?;
            self.files.insert((peer, u32::from_le_bytes(which)), file);
        }
    }

    /// The address of a range of this rank's.
    #[inline]
    pub(super) fn source(&self, span: Span, bytes: u64) -> Result<u64, NetError> {
        let region = self.own.get(&span.memory);
        let size = region.map_or(0, |region| region.len() as u64);
        let base = region.map(|region| region.address() as u64);
        at("the source", base, span, bytes, size)
    }

    /// The address of a range of a peer's, for this GPU.
    #[inline]
    pub(super) fn destination(&self, peer: usize, span: Span, bytes: u64) -> Result<u64, NetError> {
        let mapped = self.theirs.get(&(peer, span.memory));
        let size = mapped.map_or(0, |mapped| mapped.len);
        let base = mapped.map(|mapped| mapped.import.address());
        at("the destination", base, span, bytes, size)
    }
}

fn at(
    what: &'static str,
    base: Option<u64>,
    Span { memory, offset }: Span,
    bytes: u64,
    size: u64,
) -> Result<u64, NetError> {
    let inside = offset.checked_add(bytes).is_some_and(|end| end <= size);
    let refused = NetError::OutOfRange { what, memory, offset, len: bytes, size };
    base.filter(|_| inside).map(|base| base + offset).ok_or(refused)
}

/// A peer's words in memory of the host, which this rank's streams write.
#[derive(Debug)]
pub(super) struct RegisteredWords {
    context: Arc<CudaContext>,
    mapping: Mapping,
    device: u64,
}

impl RegisteredWords {
    pub(super) fn new(gpu: &Gpu, mapping: Mapping) -> Result<Self, CudaError> {
        const SEEN_BY_ALL_CONTEXTS: u32 = 1;
        const SEEN_BY_THE_DEVICE: u32 = 2;
        let flags = SEEN_BY_ALL_CONTEXTS | SEEN_BY_THE_DEVICE;
        let context = gpu.context().clone();
        let base = mapping.base().cast();
        // SAFETY: whole pages that stay mapped until they are given back, below.
        let code = unsafe { sys::cuMemHostRegister_v2(base, mapping.len(), flags) };
        CudaError::check(code, "cuMemHostRegister")?;
        let mut device = 0;
        // SAFETY: `device` is a local, and the memory was registered just now.
        let code = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut device, base, 0) };
        let words = Self { context, mapping, device };
        CudaError::check(code, "cuMemHostGetDevicePointer")?;
        Ok(words)
    }

    /// Where the device writes a semaphore's word.
    pub(super) fn address(&self, semaphore: u32) -> u64 {
        self.device + u64::from(semaphore) * 8
    }
}

impl Drop for RegisteredWords {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: registered in `new`, given back once; the stream that writes it has ended.
            let _ = unsafe { sys::cuMemHostUnregister(self.mapping.base().cast()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_inside_or_refused() {
        let span = |offset| Span { memory: 3, offset };
        assert_eq!(at("x", Some(100), span(8), 8, 16).unwrap(), 108);
        assert_eq!(at("x", Some(100), span(16), 0, 16).unwrap(), 116);
        for (base, offset, bytes) in
            [(Some(100), 9, 8), (Some(100), u64::MAX, 2), (Some(100), 0, u64::MAX), (None, 0, 0)]
        {
            let refused = at("x", base, span(offset), bytes, 16).unwrap_err();
            assert!(matches!(refused, NetError::OutOfRange { memory: 3, .. }), "{refused}");
        }
    }
}
