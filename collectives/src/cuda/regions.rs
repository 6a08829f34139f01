//! The memory that a communicator has on every GPU, and where things lie in it.

use std::sync::Arc;

use warpmesh_primitives::control::SEMAPHORES;
use warpmesh_primitives::gpu::{Gpu, PeerMemory};
use warpmesh_primitives::node::Node;

use super::emit::GUARD;
use super::params::Board;
use crate::error::Error;

/// The most thread blocks of a kernel: `MAX_BLOCKS` of wait.cuh.
pub(crate) const MAX_BLOCKS: usize = 64;
/// `Control` of wait.cuh: two words, padding, and a record for each block.
pub(crate) const CONTROL_BYTES: usize = 64 + 32 * MAX_BLOCKS;
/// `State` of plan.cuh: two words for each block.
const STATE_BYTES: usize = 16 * MAX_BLOCKS;
/// The most windows that kernels know at a time.
pub(crate) const MAX_WINDOWS: usize = 1024;

/// Memory of all ranks, mapped for this rank's GPU, and where there is a switch, scratch and packets of all at one address.
pub(crate) struct Regions {
    rank: usize,
    world: usize,
    /// Two halves of slots.
    pub(crate) scratch: PeerMemory,
    /// Two halves of slots of packets.
    pub(crate) packets: PeerMemory,
    /// Semaphores, then boards in two halves, then the state, then the table of windows.
    words: PeerMemory,
}

impl Regions {
    /// Shares the memory. Every rank calls it; blocks until all have.
    pub(crate) fn new(
        gpu: &Gpu,
        node: &Arc<Node>,
        scratch: usize,
        packets: usize,
    ) -> Result<Self, Error> {
        let (rank, world) = (node.rank(), node.world());
        let bytes = Self::windows_at(world) + MAX_WINDOWS * world * size_of::<u64>();
        Ok(Self {
            rank,
            world,
            scratch: gpu.share_multicast(node, scratch)?,
            packets: gpu.share_multicast(node, packets)?,
            words: gpu.share(node, bytes)?,
        })
    }

    /// Whether scratch and packets have a multicast address. The same on all ranks.
    pub(crate) fn multicast(&self) -> bool {
        self.scratch.multicast().is_some() && self.packets.multicast().is_some()
    }

    /// Bytes that this rank holds.
    pub(crate) fn bytes(&self) -> usize {
        self.scratch.len() + self.packets.len() + self.words.len()
    }

    /// The word of block 0 of a semaphore that this rank waits for, in its own memory. If the peer is on another host, this rank counts
    /// there how often it has.
    pub(crate) fn awaited(&self, semaphore: usize, peer: usize) -> u64 {
        self.semaphore(self.rank, semaphore, peer)
    }

    /// The same of one that it signals, in the peer's memory.
    pub(crate) fn signalled(&self, semaphore: usize, peer: usize) -> u64 {
        self.semaphore(peer, semaphore, self.rank)
    }

    fn semaphore(&self, owner: usize, semaphore: usize, from: usize) -> u64 {
        let words = (semaphore * self.world + from) * MAX_BLOCKS;
        self.words.address(owner) + (words * size_of::<u64>()) as u64
    }

    /// Where this rank writes its board for a peer: of block 0, in the first half.
    pub(crate) fn board(&self, peer: usize) -> u64 {
        let boards = (self.rank * MAX_BLOCKS * size_of::<Board>()) as u64;
        self.words.address(peer) + Self::boards_at(self.world) as u64 + boards
    }

    /// The boards that peers write for this rank.
    pub(crate) fn boards(&self) -> u64 {
        self.words.address(self.rank) + Self::boards_at(self.world) as u64
    }

    /// Bytes to the boards of the second half.
    pub(crate) fn half_boards(&self) -> u64 {
        (self.world * MAX_BLOCKS * size_of::<Board>()) as u64
    }

    /// This rank's state.
    pub(crate) fn state(&self) -> u64 {
        self.words.address(self.rank) + Self::state_at(self.world) as u64
    }

    /// The table of windows: for each, where it begins at each rank.
    pub(crate) fn windows(&self) -> u64 {
        self.words.address(self.rank) + Self::windows_at(self.world) as u64
    }

    /// A window's row of the table.
    pub(crate) fn window_row(&self, window: usize) -> u64 {
        self.windows() + (window * self.world * size_of::<u64>()) as u64
    }

    fn windows_at(world: usize) -> usize {
        Self::state_at(world) + STATE_BYTES
    }

    fn boards_at(world: usize) -> usize {
        const { assert!(GUARD == SEMAPHORES, "the guard comes after the plans' semaphores") };
        (SEMAPHORES + 1) * world * MAX_BLOCKS * size_of::<u64>()
    }

    fn state_at(world: usize) -> usize {
        Self::boards_at(world) + 2 * world * MAX_BLOCKS * size_of::<Board>()
    }
}
