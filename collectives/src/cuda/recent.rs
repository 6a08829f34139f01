//! How the last calls were done: programs repeat their calls, and to find a plan takes longer than to launch its kernel.
#![forbid(unsafe_code)]

use super::geometry::Geometry;
use super::switch::AtHand;
use crate::communicator::plans::Query;

/// All that decides how a call is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) query: Query,
    pub(super) at_hand: AtHand,
    pub(super) root: usize,
    pub(super) count: usize,
}

/// How a call is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// The plan's number.
    pub(super) plan: usize,
    /// The loaded kernel's.
    pub(super) kernel: usize,
    pub(super) cut: Geometry,
}

/// How many are kept: looking through them takes some nanoseconds.
const KEPT: usize = 16;

/// The last calls that differ, the oldest of which makes room.
#[derive(Debug, Default)]
pub(super) struct Recent {
    ways: Vec<(Asked, Way)>,
    oldest: usize,
}

impl Recent {
    #[inline]
    pub(super) fn find(&self, asked: &Asked) -> Option<Way> {
        self.ways.iter().find_map(|(of, way)| (of == asked).then_some(*way))
    }

    pub(super) fn keep(&mut self, asked: Asked, way: Way) {
        if self.ways.len() < KEPT {
            self.ways.push((asked, way));
            return;
        }
        self.ways[self.oldest] = (asked, way);
        self.oldest = (self.oldest + 1) % KEPT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DataType;
    use crate::op::OpKind;
    use crate::plan::Collective;

    fn asked(count: usize) -> Asked {
        let (collective, dtype, op) = (Collective::AllReduce, DataType::F32, OpKind::Sum);
        let query =
            Query { collective, registered: false, in_place: false, dtype, op, uneven: false };
        Asked { query, at_hand: AtHand::default(), root: 0, count }
    }

    fn way(kernel: usize) -> Way {
        let cut = Geometry { window: 1, rounds: 1, part: 1, slice: 1, blocks: 1 };
        Way { plan: 0, kernel, cut }
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut recent = Recent::default();
        for n in 0..=KEPT {
            recent.keep(asked(n), way(n));
        }
        assert_eq!(recent.find(&asked(0)), None);
        for n in 1..=KEPT {
            assert_eq!(recent.find(&asked(n)), Some(way(n)));
        }
    }

    #[test]
    fn every_part_of_what_is_asked_counts() {
        let mut recent = Recent::default();
        recent.keep(asked(1), way(1));
        let root = Asked { root: 1, ..asked(1) };
        let memory = Asked { at_hand: AtHand { memory: true, ..AtHand::default() }, ..asked(1) };
        let in_place = Asked { query: Query { in_place: true, ..asked(1).query }, ..asked(1) };
        for other in [asked(2), root, memory, in_place] {
            assert_eq!(recent.find(&other), None, "{other:?}");
        }
    }
}
