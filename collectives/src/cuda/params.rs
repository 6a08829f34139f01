//! The kernel's parameter: `Params` of kernels/device/plan.cuh, filled by the host.

use bytemuck::{Pod, Zeroable};

use super::emit::Tables;

/// `Call` of plan.cuh.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Call {
    /// Elements of a block, of a round's window, of a part of it, of a thread block's slice of that.
    pub(crate) count: u64,
    pub(crate) window: u64,
    pub(crate) part: u64,
    pub(crate) slice: u64,
    pub(crate) rounds: u32,
    pub(crate) rank: u32,
    pub(crate) world: u32,
    pub(crate) reserved: u32,
    /// Bytes to the second halves.
    pub(crate) half_scratch: u64,
    pub(crate) half_packets: u64,
    /// `Patience`: the device address of the host's control block, nanoseconds, the call's number.
    pub(crate) control: u64,
    pub(crate) timeout: u64,
    pub(crate) sequence: u64,
    /// Device address.
    pub(crate) state: u64,
    /// What this rank tells its peers: where its buffers lie in their windows, by what it multiplies, what it calls.
    pub(crate) mine: Board,
    /// Device address of the peers' boards here.
    pub(crate) boards: u64,
    /// Bytes to the boards of the other half.
    pub(crate) half_boards: u64,
    /// Device address of the table of windows.
    pub(crate) windows: u64,
    /// Device address of how other hosts are reached, or 0.
    pub(crate) far: u64,
}

const _: () = assert!(size_of::<Call>() == 160);

/// `Board` of plan.cuh.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Board {
    /// In which windows of memory that peers have mapped the buffers lie, and where: [`Board::at`].
    pub(crate) input: u64,
    pub(crate) output: u64,
    /// PreMulSum's factor, its bits.
    pub(crate) factor: u64,
    /// Of all that has to be equal on all ranks.
    pub(crate) digest: u64,
}

const _: () = assert!(size_of::<Board>() == 32);

impl Board {
    const WINDOW_SHIFT: u32 = 48;

    /// A place in a window.
    pub(crate) fn at(window: usize, offset: u64) -> u64 {
        (window as u64) << Self::WINDOW_SHIFT | offset
    }
}

/// Where the tables lie in the parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) places: usize,
    pub(crate) words: usize,
    pub(crate) boards: usize,
    pub(crate) parts: usize,
    pub(crate) peers: usize,
    pub(crate) announced: usize,
    pub(crate) size: usize,
}

impl Layout {
    /// The layout that the compiler gives `Params` with tables of these lengths.
    pub(crate) fn of(tables: &Tables) -> Self {
        // A table that is empty still has one element in C++.
        let bytes = |count: usize, each: usize| count.max(1) * each;
        let places = size_of::<Call>();
        let words = places + bytes(tables.places.len(), 8);
        let boards = words + bytes(tables.words.len(), 8);
        let parts = boards + bytes(tables.boards.len(), 8);
        let peers = parts + bytes(tables.parts.len(), 4);
        let announced = peers + tables.places.len() + tables.words.len() + 8;
        // The boards in the call are aligned to 16 bytes, and so is the whole.
        let size = (announced + tables.places.len().max(1)).next_multiple_of(16);
        Self { places, words, boards, parts, peers, announced, size }
    }
}
