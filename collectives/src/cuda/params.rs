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
    pub(crate) sequence: u64,
    /// In nanoseconds.
    pub(crate) timeout: u64,
    /// Device addresses.
    pub(crate) state: u64,
    pub(crate) control: u64,
}

const _: () = assert!(size_of::<Call>() == 96);

/// Where the tables lie in the parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) places: usize,
    pub(crate) factors: usize,
    pub(crate) semaphores: usize,
    pub(crate) parts: usize,
    pub(crate) peers: usize,
    pub(crate) size: usize,
}

impl Layout {
    /// The layout that the compiler gives `Params` with tables of these lengths.
    pub(crate) fn of(tables: &Tables) -> Self {
        // A table that is empty still has one element in C++.
        let bytes = |count: usize, each: usize| count.max(1) * each;
        let places = size_of::<Call>();
        let factors = places + bytes(tables.places.len(), 8);
        let scaled = if tables.scaled { tables.places.len() } else { 0 };
        let semaphores = factors + bytes(scaled, 8);
        let parts = semaphores + bytes(tables.semaphores.len(), 8);
        let peers = parts + bytes(tables.parts.len(), 4);
        let end = peers + tables.places.len() + tables.semaphores.len() + 8;
        Self { places, factors, semaphores, parts, peers, size: end.next_multiple_of(8) }
    }
}
