//! The words by which ranks tell how much of their rings is free: for each peer and lane one that the peer writes, and one from
//! which this rank's NIC writes the peer's.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use crate::sys::Mapping;

#[derive(Debug)]
pub(in crate::net::rdma) struct Credits {
    page: Mapping,
    words: usize,
    lanes: usize,
}

impl Credits {
    pub(in crate::net::rdma) fn new(world: usize, lanes: usize) -> Result<Self, Errno> {
        let words = world * lanes;
        Ok(Self { page: Mapping::create(2 * words * 8)?.0, words, lanes })
    }

    /// All of it, for NICs.
    pub(in crate::net::rdma) fn memory(&self) -> (*mut u8, usize) {
        (self.page.base(), self.page.len())
    }

    /// Where a peer writes up to where its ring is free.
    pub(in crate::net::rdma) fn address(&self, peer: usize, lane: usize) -> u64 {
        self.word(self.at(peer, lane)).as_ptr() as u64
    }

    /// What the peer wrote there. Acquire.
    pub(in crate::net::rdma) fn told(&self, peer: usize, lane: usize) -> u64 {
        self.word(self.at(peer, lane)).load(Ordering::Acquire)
    }

    /// Keeps what a peer is to be told; where the NIC reads it.
    pub(in crate::net::rdma) fn tell(&self, peer: usize, lane: usize, free: u64) -> u64 {
        let word = self.word(self.words + self.at(peer, lane));
        // Release: the NIC is told of it by a write behind.
        word.store(free, Ordering::Release);
        word.as_ptr() as u64
    }

    /// Where the NIC reads what a peer was told last: telling it once more changes nothing.
    pub(in crate::net::rdma) fn again(&self, peer: usize, lane: usize) -> u64 {
        self.word(self.words + self.at(peer, lane)).as_ptr() as u64
    }

    fn at(&self, peer: usize, lane: usize) -> usize {
        assert!(lane < self.lanes && peer * self.lanes + lane < self.words, "rank {peer}");
        peer * self.lanes + lane
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: in range by `at`; page aligned; only ever accessed as atomics in this process.
        unsafe { &*self.page.base().cast::<AtomicU64>().add(at) }
    }
}
