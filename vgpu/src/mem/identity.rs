//! Which bytes are the same: a byte of a file has one number, its identity, wherever it is mapped.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::OwnedFd;

/// No file gets longer, although the bytes of a freed allocation are not used again.
const FILE_BITS: u32 = 44;
/// Identities of registered host memory, which has no file, begin here: its addresses follow.
const REGISTERED: u64 = 1 << 62;

/// The identity of an address of registered host memory.
pub(super) fn of_registered(addr: u64) -> u64 {
    REGISTERED | addr
}

/// The address of registered host memory that has this identity.
pub(super) fn registered(identity: u64) -> Option<u64> {
    identity.checked_sub(REGISTERED).filter(|addr| *addr < REGISTERED)
}

/// The files of all regions, and which bytes are gone.
#[derive(Default)]
pub(super) struct Identities {
    /// By device and inode, which are the same for all descriptors of a file.
    files: BTreeMap<(u64, u64), File>,
    /// Numbers of files that no region is of any more.
    spare: Vec<u64>,
    /// Identities of bytes that no region holds any more; none unless somebody wants to know.
    freed: Option<Vec<Range<u64>>>,
}

struct File {
    number: u64,
    regions: usize,
}

impl Identities {
    /// A region begins at this place of a file: the identity of its first byte.
    pub fn enter(&mut self, fd: &OwnedFd, offset: u64) -> std::io::Result<u64> {
        let stat = rustix::fs::fstat(fd)?;
        // As many as there may be regions.
        let unused = self.files.len() as u64 + self.spare.len() as u64 + 1;
        let file = self
            .files
            .entry((stat.st_dev, stat.st_ino))
            .or_insert_with(|| File { number: self.spare.pop().unwrap_or(unused), regions: 0 });
        file.regions += 1;
        Ok(file.number << FILE_BITS | offset)
    }

    /// A region is gone that began there. What else had its file's number has been told as freed before.
    pub fn leave(&mut self, identity: u64) {
        let number = identity >> FILE_BITS;
        let Some((&key, file)) = self.files.iter_mut().find(|(_, f)| f.number == number) else {
            return;
        };
        file.regions -= 1;
        if file.regions == 0 {
            self.files.remove(&key);
            self.spare.push(number);
        }
    }

    /// From now on, [`Identities::free`] notes which bytes vanish.
    pub fn remember_freed(&mut self) {
        self.freed.get_or_insert_default();
    }

    /// No region holds these bytes any more.
    pub fn free(&mut self, bytes: Range<u64>) {
        if let Some(freed) = &mut self.freed {
            freed.push(bytes);
        }
    }

    /// The bytes that vanished since the last call.
    pub fn take_freed(&mut self) -> Vec<Range<u64>> {
        self.freed.as_mut().map_or_else(Vec::new, std::mem::take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_apart_and_numbers_used_again() {
        let file = || rustix::fs::memfd_create("vgpu", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let (mut all, a, b) = (Identities::default(), file(), file());
        let same = a.try_clone().unwrap();
        let x = all.enter(&a, 1 << 16).unwrap();
        assert_eq!(all.enter(&same, 1 << 17).unwrap(), x + (1 << 16));
        let y = all.enter(&b, 0).unwrap();
        assert_ne!(x >> FILE_BITS, y >> FILE_BITS);
        all.leave(y);
        all.leave(x);
        // One region of the first file is left, none of the second.
        assert_eq!(all.enter(&file(), 0).unwrap(), y);
        assert_eq!(all.enter(&a, 1 << 16).unwrap(), x);
        assert_eq!(registered(of_registered(1000)), Some(1000));
        assert!(registered(x).is_none() && registered(y | 1 << 63).is_none());
    }
}
