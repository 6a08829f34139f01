//! Memory that several processes see: a sealed memfd and its mappings.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// A shared, writable mapping of a memfd. Unmapped on drop.
///
/// The memfd has no name in any file system, so nothing is left behind when its last user dies,
/// however it dies. Its size is sealed, so a peer cannot shrink it under a reader (SIGBUS).
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is memory without thread affinity. Who may touch which bytes at what time is
// the business of the protocols on top (semaphores, packets); `Mapping` itself hands out only raw
// pointers.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method of `&Mapping` reads or writes the mapped bytes.
unsafe impl Sync for Mapping {}

const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

impl Mapping {
    /// A new memfd of `len` bytes (rounded up to whole pages, all zero) and its first mapping.
    /// Pages are taken from the system when first touched.
    pub fn create(len: usize) -> Result<(Self, OwnedFd), Errno> {
        let len = page_round(len).ok_or(Errno::INVAL)?;
        let fd = memfd_or_errno(MemfdFlags::CLOEXEC.union(MemfdFlags::ALLOW_SEALING))?;
        ftruncate(&fd, len as u64)?;
        fcntl_add_seals(&fd, SEALS)?;
        Ok((Self::map(fd.as_fd(), len)?, fd))
    }

    /// Maps a memfd that a peer sent. It must be sealed against shrinking.
    pub fn open(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        if !fcntl_get_seals(fd)?.contains(SealFlags::SHRINK) {
            return Err(Errno::PERM);
        }
        let len = usize::try_from(fstat(fd)?.st_size).map_err(|_| Errno::INVAL)?;
        Self::map(fd, len)
    }

    fn map(fd: BorrowedFd<'_>, len: usize) -> Result<Self, Errno> {
        if len == 0 {
            return Err(Errno::INVAL);
        }
        // SAFETY: no address is asked for, so the kernel picks a range that nothing else uses.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )
        }?;
        // Large pages where the system grants them to shared memory; a refusal costs only speed.
        // SAFETY: advice on our own fresh mapping changes no content.
        let _ = unsafe { madvise(base, len, Advice::LinuxHugepage) };
        let base = NonNull::new(base.cast::<u8>()).ok_or(Errno::NOMEM)?;
        Ok(Self { base, len })
    }

    /// Asks for all pages now, so that no later access stops for one. Best effort: older systems
    /// cannot, and then it costs only time later.
    pub fn populate(&self) {
        // SAFETY: our own mapping; populating changes no content.
        let _ = unsafe { madvise(self.base.as_ptr().cast(), self.len, Advice::LinuxPopulateWrite) };
    }

    /// First byte; page aligned. The pointer is good for `len` bytes while the mapping lives.
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes, a whole number of pages.
    #[allow(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `map` made exactly this range, and whoever held pointers into it borrowed or
        // shared this value.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of our own mapping: {unmapped:?}");
    }
}

fn memfd_or_errno(flags: MemfdFlags) -> Result<OwnedFd, Errno> {
    // NOEXEC_SEAL silences the kernel's warning; kernels before 6.3 do not know it.
    match rustix::fs::memfd_create("warpmesh", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("warpmesh", flags),
        other => other,
    }
}

fn page_round(len: usize) -> Option<usize> {
    len.max(1).checked_next_multiple_of(rustix::param::page_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_are_one_memory() {
        let (a, fd) = Mapping::create(10).unwrap();
        let b = Mapping::open(fd.as_fd()).unwrap();
        assert_eq!(a.len(), rustix::param::page_size());
        // SAFETY: both mappings are at least a page, and this thread is the only user.
        unsafe {
            a.base().add(7).write(42);
            assert_eq!(b.base().add(7).read(), 42);
        }
    }

    #[test]
    fn a_memfd_that_can_shrink_is_refused() {
        let fd = rustix::fs::memfd_create("t", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, 4096).unwrap();
        assert_eq!(Mapping::open(fd.as_fd()).unwrap_err(), Errno::PERM);
    }

    #[test]
    fn a_huge_length_is_an_error() {
        assert!(Mapping::create(usize::MAX).is_err());
    }
}
