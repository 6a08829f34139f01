//! Memory that a NIC reads and writes.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use warpmesh_primitives::net::Region;

#[derive(Debug)]
pub struct Memory {
    base: *mut u8,
    layout: Layout,
    /// What it says is its dma-buf.
    pub dma_buf: Option<OwnedFd>,
}

// SAFETY: bytes without references to them; the tests' signals say who may touch which.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, 4096).expect("a size that can be");
        // SAFETY: the size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        assert!(!base.is_null(), "no memory");
        Self { base, layout, dma_buf: None }
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= self.len());
        // SAFETY: in range; the test has seen that nobody reads them now.
        unsafe { self.base.add(at as usize).copy_from(bytes.as_ptr(), bytes.len()) }
    }

    pub fn read(&self, at: u64, len: u64) -> Vec<u8> {
        assert!(at as usize + len as usize <= self.len());
        let mut out = vec![0; len as usize];
        // SAFETY: in range; the test has seen the signal behind the bytes.
        unsafe { self.base.add(at as usize).copy_to(out.as_mut_ptr(), out.len()) };
        out
    }

    /// Fills a range with a pattern that depends on `seed` and the place.
    pub fn fill(&self, at: u64, len: u64, seed: u64) {
        self.write(at, &pattern(len, seed));
    }
}

pub fn pattern(len: u64, seed: u64) -> Vec<u8> {
    (0..len)
        .map(|i| ((i.wrapping_mul(31) >> 3) ^ i ^ seed.wrapping_mul(0x9e37)) as u8 | 1)
        .collect()
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.base, self.layout) };
    }
}

// SAFETY: the bytes live as long as the value, and are only ever copied.
unsafe impl Region for Memory {
    fn address(&self) -> *mut u8 {
        self.base
    }

    fn len(&self) -> usize {
        self.layout.size()
    }

    fn dma_buf(&self) -> Option<(BorrowedFd<'_>, u64)> {
        self.dma_buf.as_ref().map(|fd| (fd.as_fd(), 0))
    }
}
