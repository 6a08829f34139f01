//! How a call is cut: rounds, parts, thread blocks. A function of what all ranks have in common, so that block b of every
//! rank has the same slice.
#![forbid(unsafe_code)]

use super::regions::MAX_BLOCKS;
use crate::dtype::DataType;

/// Bytes of data in a packet line, and of the line: packet.cuh's.
pub(crate) const LINE_DATA: usize = 8;
pub(crate) const LINE_BYTES: usize = 16;

/// Slices are cut at multiples of so many bytes: whole lines of the memory, and of packets.
const GRAIN: usize = 128;

/// Bytes of a block of a message for each thread block: below, another thread block costs more than it brings.
const PER_BLOCK: usize = 16 << 10;

/// The most elements of a window: kernels count them in 32 bits.
const MOST: usize = 1 << 31;

/// What bounds a plan's windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) parts: usize,
    /// Whether slots hold unfinished sums.
    pub(crate) partial: bool,
    /// Bytes of a scratch slot, and of a packet slot, if the plan has any.
    pub(crate) scratch_slot: Option<usize>,
    pub(crate) packet_slot: Option<usize>,
}

/// How a call is cut, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) window: usize,
    pub(crate) rounds: usize,
    pub(crate) part: usize,
    pub(crate) slice: usize,
    pub(crate) blocks: usize,
}

impl Geometry {
    /// Cuts `count` elements for at most `most` thread blocks; none if the memory is too small for anything.
    pub(crate) fn new(bounds: &Bounds, dtype: DataType, count: usize, most: usize) -> Option<Self> {
        let size = dtype.size();
        let grain = GRAIN / size;
        let in_slots = if bounds.partial { dtype.accumulator_size() } else { size };
        let of_scratch = bounds.scratch_slot.map(|bytes| bytes / in_slots);
        let of_packets = bounds.packet_slot.map(|bytes| bytes / LINE_BYTES * LINE_DATA / size);
        let slot = of_scratch.into_iter().chain(of_packets).min();
        let piece = grain * bounds.parts;
        let most_window =
            slot.map_or(MOST, |slot| (slot / grain * piece).min(MOST)) / piece * piece;
        if most_window == 0 {
            return None;
        }
        let rounds = count.div_ceil(most_window).max(1);
        // Rounds of equal size, so that the last one is no stump.
        let even = count.div_ceil(rounds).next_multiple_of(piece);
        let window = even.min(most_window);
        let part = (window / bounds.parts).max(grain);
        let blocks = (window * size / PER_BLOCK).clamp(1, most.clamp(1, MAX_BLOCKS));
        let slice = part.div_ceil(blocks).next_multiple_of(grain);
        Some(Self { window, rounds, part, slice, blocks: part.div_ceil(slice) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_covered_once_and_slots_are_not_overrun() {
        for dtype in [DataType::U8, DataType::Bf16, DataType::F32, DataType::F64] {
            for parts in [1, 2, 3, 8] {
                for slot in [None, Some(256), Some(4096), Some(1 << 20)] {
                    for count in [1, 7, 128, 1000, 4097, 1 << 20] {
                        let bounds =
                            Bounds { parts, partial: false, scratch_slot: slot, packet_slot: slot };
                        let g = Geometry::new(&bounds, dtype, count, 32).unwrap();
                        assert!(g.window * g.rounds >= count, "{g:?}");
                        assert!(g.window * (g.rounds - 1) < count, "{g:?}: an empty round");
                        assert!(
                            g.part * parts >= g.window && g.slice * g.blocks >= g.part,
                            "{g:?}"
                        );
                        assert!(g.slice * (g.blocks - 1) < g.part, "{g:?}: an idle block");
                        assert_eq!(g.slice * dtype.size() % GRAIN, 0);
                        let fits = slot.is_none_or(|slot| g.part * dtype.size() * 2 <= slot);
                        assert!(fits, "{g:?} in {slot:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn small_messages_take_one_block_and_large_ones_all() {
        let bounds = Bounds { parts: 1, partial: false, scratch_slot: None, packet_slot: None };
        let blocks = |count| Geometry::new(&bounds, DataType::U8, count, 32).unwrap().blocks;
        assert_eq!((blocks(100), blocks(16 << 10), blocks(1 << 30)), (1, 1, 32));
        let tiny = Bounds { scratch_slot: Some(64), ..bounds };
        assert_eq!(Geometry::new(&tiny, DataType::U8, 100, 32), None);
    }

    #[test]
    fn more_elements_than_a_kernel_counts_take_several_rounds() {
        let bounds = Bounds { parts: 3, partial: false, scratch_slot: None, packet_slot: None };
        let g = Geometry::new(&bounds, DataType::U8, 5 << 30, 32).unwrap();
        assert!(g.rounds == 3 && g.window <= MOST && g.part * 3 >= g.window, "{g:?}");
    }
}
