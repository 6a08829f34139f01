//! Memory handles between processes: which file of which process, and where in it.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::Error;
use crate::mem::space::{AddressSpace, Kind};

/// `CUipcMemHandle`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MemHandle {
    /// Opaque to the program.
    pub bytes: [u8; 64],
}

const MAGIC: u64 = 0x7667_7075_2069_7063;

impl MemHandle {
    /// A handle of the allocation that begins at `at`.
    pub fn new(space: &AddressSpace, at: u64) -> Result<MemHandle, Error> {
        let region = space
            .find(at, 1)
            .filter(|r| r.base == at && r.kind == Kind::Device)
            .ok_or(Error::InvalidValue)?;
        let (fd, offset) = region.backing.as_ref().ok_or(Error::InvalidValue)?;
        let words = [
            MAGIC,
            std::process::id().into(),
            fd.as_raw_fd() as u64,
            *offset,
            region.len,
            region.device.into(),
        ];
        let mut bytes = [0; 64];
        for (to, word) in bytes.chunks_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        Ok(MemHandle { bytes })
    }

    /// Maps the allocation of another process. It stays mapped if that process ends.
    pub fn open(&self, space: &AddressSpace, devices: u32) -> Result<u64, Error> {
        let word = |n: usize| {
            self.bytes[8 * n..].iter().take(8).rev().fold(0u64, |x, b| x << 8 | u64::from(*b))
        };
        let [magic, pid, fd, offset, len, device] = std::array::from_fn(word);
        if magic != MAGIC || device >= devices.into() {
            return Err(Error::InvalidValue);
        }
        if pid == u64::from(std::process::id()) {
            return Err(Error::InvalidContext); // the driver refuses a handle of the same process
        }
        let file =
            std::fs::OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/fd/{fd}"));
        let file = file.map_err(|_| Error::InvalidHandle)?;
        let size = file.metadata().map_err(|_| Error::InvalidHandle)?.len();
        // A stale handle must not become a mapping that faults when it is touched.
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(Error::InvalidHandle);
        }
        space
            .map(device as u32, Kind::Device, Arc::new(file.into()), offset, len)
            .map_err(|_| Error::OutOfMemory)
    }
}
