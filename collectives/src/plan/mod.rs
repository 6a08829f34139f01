//! A collective is a plan, and a plan is data.
//!
//! A [`Plan`] has a [`Program`] for every rank; a program has *workers* (a thread block on CUDA, a
//! share of the calling thread on the host), each with a straight list of [`Instruction`]s, run
//! once for every *round*. Executors run it, the verifier proves it, the cost model times it, and
//! all of them see nothing but these types.
//!
//! # Shapes
//!
//! A buffer is a row of equal *blocks*: an all-gather's output has one block per rank, an
//! all-reduce's buffers have one block. A message larger than the scratch memory allows runs in
//! rounds; round `k` covers the same window of every block. The window is cut into
//! [`Shape::parts`] parts, and a `Move` works on one part of it:
//!
//! ```text
//!   block 0                          block 1
//!   |        window of round k     | |        window of round k     |
//!   | part 0 | part 1 | ... part p | | part 0 | part 1 | ... part p |
//! ```
//!
//! Scratch memory has slots, each good for one part. It comes in two halves, used by even and odd
//! *epochs* (an epoch is a round, counted over the life of a communicator), so that a slow reader
//! of the last epoch is not overrun by a fast writer of the next.
#![forbid(unsafe_code)]

mod builder;
mod json;
pub mod mscclpp;
mod read;
mod text;
pub mod verify;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use builder::Builder;
pub use json::PlanJsonError;
pub use read::ReadPlanError;
pub use text::PlanTextError;

/// What a plan computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Collective {
    /// Everyone gets the reduction of everyone's input.
    AllReduce,
    /// Everyone gets everyone's input, in rank order.
    AllGather,
    /// Rank r gets the reduction of everyone's block r.
    ReduceScatter,
    /// Everyone gets the root's input.
    Broadcast,
    /// The root gets the reduction of everyone's input.
    Reduce,
    /// Rank r gets everyone's block r, in rank order.
    AllToAll,
    /// The root gets everyone's input, in rank order.
    Gather,
    /// Rank r gets the root's block r.
    Scatter,
    /// Nobody returns before everyone has come.
    Barrier,
}

impl Collective {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::AllReduce,
        Self::AllGather,
        Self::ReduceScatter,
        Self::Broadcast,
        Self::Reduce,
        Self::AllToAll,
        Self::Gather,
        Self::Scatter,
        Self::Barrier,
    ];

    /// Its name in plans, reports and the benchmark.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce",
            Self::AllGather => "all_gather",
            Self::ReduceScatter => "reduce_scatter",
            Self::Broadcast => "broadcast",
            Self::Reduce => "reduce",
            Self::AllToAll => "all_to_all",
            Self::Gather => "gather",
            Self::Scatter => "scatter",
            Self::Barrier => "barrier",
        }
    }

    /// The collective of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|collective| collective.name() == name)
    }

    /// Whether one rank plays a part of its own.
    pub const fn is_rooted(self) -> bool {
        matches!(self, Self::Broadcast | Self::Reduce | Self::Gather | Self::Scatter)
    }

    /// Whether elements are combined.
    pub const fn reduces(self) -> bool {
        matches!(self, Self::AllReduce | Self::ReduceScatter | Self::Reduce)
    }

    /// Blocks of `rank`'s input and output. `root` counts for the rooted collectives only.
    pub const fn blocks(self, world: usize, root: usize, rank: usize) -> (usize, usize) {
        let is_root = rank == root;
        match self {
            Self::AllReduce => (1, 1),
            Self::AllGather => (1, world),
            Self::ReduceScatter => (world, 1),
            Self::Broadcast => (is_root as usize, 1),
            Self::Reduce => (1, is_root as usize),
            Self::AllToAll => (world, world),
            Self::Gather => (1, if is_root { world } else { 0 }),
            Self::Scatter => (if is_root { world } else { 0 }, 1),
            Self::Barrier => (0, 0),
        }
    }

    /// In place, which block of the output a block of `rank`'s input is (the same memory), if any.
    pub const fn alias(self, root: usize, rank: usize, input: usize) -> Option<usize> {
        match self {
            Self::AllReduce | Self::AllToAll => Some(input),
            Self::AllGather => Some(rank),
            Self::ReduceScatter => {
                if input == rank {
                    Some(0)
                } else {
                    None
                }
            }
            Self::Broadcast | Self::Reduce => {
                if rank == root {
                    Some(0)
                } else {
                    None
                }
            }
            Self::Gather => {
                if rank == root {
                    Some(rank)
                } else {
                    None
                }
            }
            Self::Scatter => {
                if rank == root && input == rank {
                    Some(0)
                } else {
                    None
                }
            }
            Self::Barrier => None,
        }
    }
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What is the same for all ranks of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// A name, for reports and for asking for it.
    pub name: String,
    /// What it computes.
    pub collective: Collective,
    /// Ranks.
    pub world: usize,
    /// The root of a rooted collective.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub root: usize,
    /// Parts that a window is cut into; at least 1.
    pub parts: usize,
    /// Slots of plain scratch memory that every rank has.
    #[serde(default)]
    pub scratch: usize,
    /// Slots of packet memory that every rank has.
    #[serde(default)]
    pub packets: usize,
}

fn is_zero(root: &usize) -> bool {
    *root == 0
}

/// A collective algorithm, written out for every rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What is the same for all ranks.
    pub shape: Shape,
    /// One program per rank.
    pub programs: Vec<Program>,
}

/// What one rank does in a round: each of its workers runs its list from first to last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// At least one.
    pub workers: Vec<Vec<Instruction>>,
}

impl Program {
    /// The ranks that it signals, waits for or puts to, of those that are asked for, in order.
    pub(crate) fn partners(&self, asked: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut partners = Vec::new();
        for instruction in self.workers.iter().flatten() {
            match instruction {
                Instruction::Signal { to: peers, .. } | Instruction::Wait { from: peers, .. } => {
                    partners.extend(peers);
                }
                Instruction::Put { to: Place { whose: Whose::Rank(peer), .. }, .. } => {
                    partners.push(*peer);
                }
                _ => {}
            }
        }
        partners.retain(|peer| asked(*peer));
        partners.sort_unstable();
        partners.dedup();
        partners
    }
}

/// One step of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Instruction {
    /// For each element of part `part`: load it from every source, combine in the order listed,
    /// store to every destination. Without `reduce` there is one source and its bits are copied;
    /// with `reduce`, sources that are not partial count as a rank's contribution, and destinations
    /// that are not partial get the finished result, rounded to the element type.
    Move {
        /// Which part of the window.
        part: usize,
        /// Destinations, at least one.
        to: Vec<Place>,
        /// Sources, at least one.
        from: Vec<Place>,
        /// Combine, rather than copy.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        reduce: bool,
    },
    /// Everything this worker wrote before is visible to whoever waits for it; then count up.
    Signal {
        /// Which of the semaphores between the two ranks.
        semaphore: usize,
        /// The ranks that are told.
        to: Vec<usize>,
    },
    /// Until each of these ranks has signalled once more.
    Wait {
        /// Which of the semaphores between the two ranks.
        semaphore: usize,
        /// The ranks that are waited for, in this order.
        from: Vec<usize>,
    },
    /// Hand a copy to port `port`'s proxy. It may run at any time until the `Flush`, and only
    /// `then_signal` says that it has arrived.
    Put {
        /// Which port of this worker's rank.
        port: usize,
        /// Which part of the window.
        part: usize,
        /// The destination, in another rank's memory.
        to: Place,
        /// The source, in this rank's memory.
        from: Place,
        /// Semaphore to signal at the destination's rank when the data is there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        then_signal: Option<usize>,
    },
    /// Until the proxy's transfers have left the source buffers.
    Flush {
        /// Which port.
        port: usize,
    },
}

/// Where the elements of a part lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Whose memory.
    pub whose: Whose,
    /// Which buffer.
    pub buffer: Buffer,
    /// The block of a user's buffer, or the slot of scratch or packet memory.
    pub index: usize,
    /// Elements are of the accumulation type (f32 for 16- and 8-bit floats): an unfinished sum.
    /// Scratch and packets only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// For a packet that is read: the rank that writes it, for whom a wait is then a wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<usize>,
}

/// Whose memory a place is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whose {
    /// This rank's.
    Rank(usize),
    /// The multicast group's: a load is the reduction over all ranks, in an order that is not
    /// known; a store goes to all ranks.
    Group,
}

/// Which buffer a place is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Buffer {
    /// The user's input.
    Input,
    /// The user's output.
    Output,
    /// Plain scratch memory.
    Scratch,
    /// Packet memory: a store carries its own signal, a load waits for it.
    Packets,
}

impl Place {
    /// Block `index` of a rank's input.
    pub const fn input(rank: usize, index: usize) -> Self {
        Self::new(rank, Buffer::Input, index)
    }

    /// Block `index` of a rank's output.
    pub const fn output(rank: usize, index: usize) -> Self {
        Self::new(rank, Buffer::Output, index)
    }

    /// Slot `index` of a rank's scratch memory.
    pub const fn scratch(rank: usize, index: usize) -> Self {
        Self::new(rank, Buffer::Scratch, index)
    }

    /// Packet slot `index` at a rank, to be written.
    pub const fn packets(rank: usize, index: usize) -> Self {
        Self::new(rank, Buffer::Packets, index)
    }

    /// Packet slot `index` at a rank, to be read after `writer` has written it.
    pub const fn packets_from(rank: usize, index: usize, writer: usize) -> Self {
        let mut place = Self::new(rank, Buffer::Packets, index);
        place.writer = Some(writer);
        place
    }

    const fn new(rank: usize, buffer: Buffer, index: usize) -> Self {
        Self { whose: Whose::Rank(rank), buffer, index, partial: false, writer: None }
    }

    /// The same place, holding an unfinished sum.
    pub const fn partial(mut self) -> Self {
        self.partial = true;
        self
    }

    /// The same place in the memory of all ranks.
    pub const fn of_group(mut self) -> Self {
        self.whose = Whose::Group;
        self
    }

    /// Whether it lies in a user's buffer.
    pub const fn is_user(&self) -> bool {
        matches!(self.buffer, Buffer::Input | Buffer::Output)
    }

    /// The rank that a kernel of `rank` has to do with here: who writes the packets, else whose memory it is.
    pub(crate) fn peer(&self, rank: usize) -> usize {
        match (self.writer, self.whose) {
            (Some(writer), _) => writer,
            (None, Whose::Rank(owner)) => owner,
            (None, Whose::Group) => rank,
        }
    }

    /// Whether it lies in memory of `rank` alone.
    pub fn is_of(&self, rank: usize) -> bool {
        self.whose == Whose::Rank(rank)
    }
}

impl Shape {
    /// Whether a program of `rank` touches users' buffers of other ranks, or hands its own to a proxy: they must then be
    /// registered.
    pub fn reaches_user_memory(program: &Program, rank: usize) -> bool {
        let remote = |place: &Place| place.is_user() && !place.is_of(rank);
        program.workers.iter().flatten().any(|instruction| match instruction {
            Instruction::Move { to, from, .. } => to.iter().chain(from).any(remote),
            Instruction::Put { to, from, .. } => to.is_user() || from.is_user(),
            _ => false,
        })
    }
}

/// Elements of part `part` of a window of `window` elements: first and count. Parts are cut at
/// multiples of `grain` elements (a cache line's, a power of two), so two writers never share a
/// line; the last parts of a small window may be empty.
#[inline]
pub fn part_range(window: usize, parts: usize, grain: usize, part: usize) -> (usize, usize) {
    if parts == 1 {
        return (0, window);
    }
    let each = (window.div_ceil(parts) + grain - 1) & !(grain - 1);
    let first = (part * each).min(window);
    (first, each.min(window - first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_window_once() {
        for window in [0, 1, 15, 16, 17, 1000, 4096] {
            for parts in 1..9 {
                let mut next = 0;
                for part in 0..parts {
                    let (first, count) = part_range(window, parts, 16, part);
                    assert_eq!(first, next);
                    assert!(count == 0 || first % 16 == 0);
                    next = first + count;
                }
                assert_eq!(next, window);
            }
        }
    }

    #[test]
    fn names_lead_back() {
        for collective in Collective::ALL {
            assert_eq!(Collective::from_name(collective.name()), Some(collective));
        }
    }
}
