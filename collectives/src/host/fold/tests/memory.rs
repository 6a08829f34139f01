//! Buffers that notice what should not be touched.

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

const GUARD: usize = 128;
const FILL: u8 = 0x5A;

/// Bytes at a chosen offset from a cache line, between bytes that must not change.
pub(super) struct Buffer {
    whole: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    pub(super) fn new(bytes: &[u8], shift: usize) -> Self {
        let shift = shift % 64;
        let mut whole = vec![FILL; bytes.len() + 3 * GUARD];
        let start = whole.as_ptr().align_offset(64) + 64 + shift;
        whole[start..start + bytes.len()].copy_from_slice(bytes);
        Self { whole, start, len: bytes.len() }
    }

    pub(super) fn at(&mut self) -> *mut u8 {
        self.whole[self.start..].as_mut_ptr()
    }

    /// What is there, if nothing around it was written.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let (before, rest) = self.whole.split_at(self.start);
        let (bytes, after) = rest.split_at(self.len);
        assert!(before.iter().chain(after).all(|&byte| byte == FILL), "written out of bounds");
        bytes.to_vec()
    }
}

/// A page between two that trap: reading past its ends ends the test.
pub(super) struct Page {
    base: *mut u8,
}

impl Page {
    pub(super) const SIZE: usize = 65536;

    pub(super) fn new() -> Self {
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, where the system likes.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), 3 * Self::SIZE, flags, MapFlags::PRIVATE)
        };
        let base: *mut u8 = base.expect("a mapping").cast();
        for guard in [base, base.wrapping_add(2 * Self::SIZE)] {
            // SAFETY: a part of our mapping that nothing refers to.
            unsafe { mprotect(guard.cast(), Self::SIZE, MprotectFlags::empty()) }.expect("a guard");
        }
        Self { base }
    }

    /// The first byte that may be touched.
    pub(super) fn start(&self) -> *mut u8 {
        self.base.wrapping_add(Self::SIZE)
    }

    /// Where `bytes` bytes end at the page's end.
    pub(super) fn last(&self, bytes: usize) -> *mut u8 {
        self.base.wrapping_add(2 * Self::SIZE - bytes)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: our mapping, and nothing refers to it any more.
        unsafe { munmap(self.base.cast(), 3 * Self::SIZE) }.expect("an unmapping");
    }
}
