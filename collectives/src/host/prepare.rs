//! A program made ready to run: places resolved to addresses, lists of peers to single steps.
//!
//! Done once per plan and communicator; a call then looks up nothing.

use std::collections::HashMap;
use std::ops::Range;

use warpmesh_primitives::memory::SharedMemory;
use warpmesh_primitives::node::Node;
use warpmesh_primitives::packet::{LINE_BYTES, LINE_DATA, Line};

use crate::dtype::DataType;
use crate::plan::verify::Claims;
use crate::plan::{Buffer, Instruction, Place, Program, Shape, Whose};

/// Scratch or packet memory of all ranks: two halves, each cut into a plan's slots.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) memory: SharedMemory,
    pub(crate) half: usize,
    /// The number by which other hosts reach it, if there are any.
    pub(crate) number: u32,
}

impl Region {
    pub(crate) fn new(memory: SharedMemory, number: u32) -> Self {
        let half = memory.len() / 2 / LINE_BYTES * LINE_BYTES;
        Self { memory, half, number }
    }

    /// Bytes of a slot when there are `slots`, at most `limit`: whole lines. 0 if they do not fit.
    pub(crate) fn slot_bytes(&self, slots: usize, limit: usize) -> usize {
        (self.half / slots.max(1)).min(limit) / LINE_BYTES * LINE_BYTES
    }

    /// A slot of `rank` in both halves.
    fn slot(&self, rank: usize, slot: usize, bytes: usize) -> [*mut u8; 2] {
        self.offsets(slot, bytes).map(|offset| {
            self.memory
                .range(rank, offset as usize, bytes)
                .expect("slots were cut to fit the region, and ranks were checked with the plan")
        })
    }

    /// Where a slot begins in both halves, on every rank.
    fn offsets(&self, slot: usize, bytes: usize) -> [u64; 2] {
        [0, 1].map(|half| (half * self.half + slot * bytes) as u64)
    }
}

/// One rank's program, resolved.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) workers: Vec<Vec<Step>>,
    pub(crate) places: Vec<Target>,
    pub(crate) parts: usize,
    pub(crate) synchronises: bool,
    /// Most packet operands of a reduction: so many tiles must be unpacked at a time.
    pub(crate) most_packets: usize,
    /// Ranks of other hosts with which this one exchanges, in order; they exchange with it, too.
    pub(crate) away: Vec<usize>,
    /// The number of scratch memory between hosts.
    pub(crate) scratch: u32,
    slot_scratch: Option<usize>,
    slot_packets: Option<usize>,
    partial: bool,
    /// See [`Prepared::window`].
    windows: [usize; DataType::ALL.len()],
}

// SAFETY: the pointers go into shared memory that the communicator keeps mapped for as long as it
// keeps the prepared plans; which thread follows them when is the executor's protocol.
unsafe impl Send for Prepared {}

#[derive(Debug)]
pub(crate) enum Step {
    Move {
        part: usize,
        to: Range<usize>,
        from: Range<usize>,
        reduce: bool,
        /// Reads or writes packets.
        packets: bool,
        /// Writes to users' buffers only.
        to_user: bool,
    },
    Signal {
        semaphore: usize,
        peer: usize,
    },
    Wait {
        semaphore: usize,
        peer: usize,
    },
    /// To a rank of another host.
    Put {
        part: usize,
        /// The block of the input that was staged there, if one was: what tells the length where blocks differ.
        block: Option<usize>,
        from: Spot,
        to: Spot,
        partial: bool,
        peer: usize,
        semaphore: Option<usize>,
    },
    /// Until what was put to ranks of other hosts has left.
    Flush,
}

/// Where a put begins or ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Spot {
    /// In scratch memory: the slot in both halves.
    Scratch([u64; 2]),
    /// A block of the user's buffers, which are registered.
    Input(usize),
    Output(usize),
}

/// A place, resolved as far as it can be before a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Input {
        block: usize,
    },
    Output {
        block: usize,
    },
    PeerInput {
        rank: usize,
        block: usize,
    },
    PeerOutput {
        rank: usize,
        block: usize,
    },
    Scratch {
        halves: [*mut u8; 2],
        partial: bool,
        owner: usize,
    },
    /// `peer` writes what is read here, or owns what is written.
    Packets {
        halves: [*const Line; 2],
        partial: bool,
        peer: usize,
    },
}

impl Prepared {
    /// Resolves this rank's program. `slot_limit` bounds a scratch slot, so that a round stays in
    /// cache.
    pub(crate) fn new(
        shape: &Shape,
        program: &Program,
        claims: &Claims,
        node: &Node,
        scratch: &Region,
        packets: &Region,
        slot_limit: usize,
    ) -> Self {
        let slot_scratch =
            (shape.scratch > 0).then(|| scratch.slot_bytes(shape.scratch, slot_limit));
        let slot_packets =
            (shape.packets > 0).then(|| packets.slot_bytes(shape.packets, usize::MAX));
        let mut this = Self {
            workers: Vec::with_capacity(program.workers.len()),
            places: Vec::new(),
            parts: shape.parts,
            synchronises: claims.synchronises,
            most_packets: 0,
            away: program.partners(|peer| !node.is_near(peer)),
            scratch: scratch.number,
            slot_scratch,
            slot_packets,
            partial: false,
            windows: [0; DataType::ALL.len()],
        };
        let mut resolver = Resolver { prepared: &mut this, node, scratch, packets };
        let workers = program.workers.iter().map(|list| resolver.list(list)).collect();
        this.workers = workers;
        this.windows = DataType::ALL.map(|dtype| this.round_elements(dtype));
        this
    }

    /// Elements of a block that one round can cover; 0 if the memory is too small.
    #[inline]
    pub(crate) fn window(&self, dtype: DataType) -> usize {
        self.windows[dtype as usize]
    }

    fn round_elements(&self, dtype: DataType) -> usize {
        let (size, accumulator) = (dtype.size(), dtype.accumulator_size());
        // Parts are cut at multiples of a cache line's elements.
        let grain = LINE_BYTES / size;
        let size = if self.partial { accumulator } else { size };
        let of_scratch = self.slot_scratch.map(|bytes| bytes / size);
        let of_packets = self.slot_packets.map(|bytes| bytes / LINE_BYTES * (LINE_DATA / size));
        let slot = match (of_scratch, of_packets) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (one, other) => one.or(other),
        };
        slot.map_or(usize::MAX, |slot| slot / grain * grain * self.parts)
    }
}

struct Resolver<'a> {
    prepared: &'a mut Prepared,
    node: &'a Node,
    scratch: &'a Region,
    packets: &'a Region,
}

impl Resolver<'_> {
    fn list(&mut self, instructions: &[Instruction]) -> Vec<Step> {
        let mut steps = Vec::new();
        // What was last staged in slots of this rank's.
        let mut staged = HashMap::new();
        for instruction in instructions {
            match instruction {
                Instruction::Move { part, to, from, reduce } => {
                    if let [Place { buffer: Buffer::Input, index: block, .. }] = from[..] {
                        let slots = to.iter().filter(|place| place.buffer == Buffer::Scratch);
                        staged.extend(slots.map(|slot| (slot.index, block)));
                    }
                    steps.push(self.moving(*part, to, from, *reduce));
                }
                Instruction::Signal { semaphore, to } => steps.extend(
                    to.iter().map(|peer| Step::Signal { semaphore: *semaphore, peer: *peer }),
                ),
                Instruction::Wait { semaphore, from } => steps.extend(
                    from.iter().map(|peer| Step::Wait { semaphore: *semaphore, peer: *peer }),
                ),
                Instruction::Put { part, to, from, then_signal, .. }
                    if let Whose::Rank(peer) = to.whose
                        && !self.node.is_near(peer) =>
                {
                    let bytes = self.prepared.slot_scratch.unwrap_or(0);
                    let spot = |place: &Place| match place.buffer {
                        Buffer::Input => Spot::Input(place.index),
                        Buffer::Output => Spot::Output(place.index),
                        _ => Spot::Scratch(self.scratch.offsets(place.index, bytes)),
                    };
                    self.prepared.partial |= from.partial;
                    steps.push(Step::Put {
                        part: *part,
                        block: staged.get(&from.index).copied(),
                        from: spot(from),
                        to: spot(to),
                        partial: from.partial,
                        peer,
                        semaphore: *then_signal,
                    });
                }
                // On the host the caller is the copy engine: a transfer is done when it is asked
                // for, and nothing is left for the flush but what goes to other hosts.
                Instruction::Put { part, to, from, then_signal, .. } => {
                    steps.push(self.moving(*part, &[*to], &[*from], false));
                    if let (Some(semaphore), Whose::Rank(peer)) = (then_signal, to.whose) {
                        steps.push(Step::Signal { semaphore: *semaphore, peer });
                    }
                }
                Instruction::Flush { .. } if !self.prepared.away.is_empty() => {
                    steps.push(Step::Flush);
                }
                Instruction::Flush { .. } => {}
            }
        }
        steps
    }

    fn moving(&mut self, part: usize, to: &[Place], from: &[Place], reduce: bool) -> Step {
        let to_range = self.operands(to, true);
        let from_range = self.operands(from, false);
        let is_packet = |range: &Range<usize>| {
            let places = &self.prepared.places[range.clone()];
            places.iter().filter(|place| matches!(place, Target::Packets { .. })).count()
        };
        let sources = is_packet(&from_range);
        let packets = sources + is_packet(&to_range) > 0;
        self.prepared.most_packets = self.prepared.most_packets.max(sources);
        let to_user = to.iter().all(Place::is_user);
        Step::Move { part, to: to_range, from: from_range, reduce, packets, to_user }
    }

    fn operands(&mut self, places: &[Place], store: bool) -> Range<usize> {
        let start = self.prepared.places.len();
        for place in places {
            let owners = match place.whose {
                Whose::Rank(owner) => owner..owner + 1,
                Whose::Group => 0..self.node.world(),
            };
            for owner in owners {
                let target = self.target(place, owner, store);
                self.prepared.places.push(target);
            }
        }
        start..self.prepared.places.len()
    }

    fn target(&mut self, place: &Place, owner: usize, store: bool) -> Target {
        let (index, partial, mine) = (place.index, place.partial, owner == self.node.rank());
        self.prepared.partial |= partial;
        match place.buffer {
            Buffer::Input if mine => Target::Input { block: index },
            Buffer::Input => Target::PeerInput { rank: owner, block: index },
            Buffer::Output if mine => Target::Output { block: index },
            Buffer::Output => Target::PeerOutput { rank: owner, block: index },
            Buffer::Scratch => {
                let bytes = self.prepared.slot_scratch.unwrap_or(0);
                Target::Scratch { halves: self.scratch.slot(owner, index, bytes), partial, owner }
            }
            Buffer::Packets => {
                let bytes = self.prepared.slot_packets.unwrap_or(0);
                let halves =
                    self.packets.slot(owner, index, bytes).map(|at| at.cast_const().cast());
                let peer = if store { owner } else { place.writer.unwrap_or(owner) };
                Target::Packets { halves, partial, peer }
            }
        }
    }
}
