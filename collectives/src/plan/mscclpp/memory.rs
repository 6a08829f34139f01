//! What lies where while the plan is gone through once: whose contributions a chunk holds, and in
//! which of our places it is.
//!
//! Our places are not always the format's. An in-place plan reads and writes one chunk, which for us
//! is the input until it is written and the output after. A sum that is not complete stays in the
//! accumulation type, and so does not go to a user's buffer but to a scratch slot that stands in for
//! it. So does what a plan writes to an input that is no output.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::rc::Rc;

use super::super::Place;
use super::layout::{Cell, Layout};
use super::{MscclppError, bounded};

/// Bounds the memory for contributions.
const MAX_LEAVES: usize = 1 << 24;

/// The ranks whose contributions are in a value, ascending, and what that means for its form.
#[derive(Clone, Debug, Default)]
pub(super) struct Value {
    pub(super) ranks: Rc<[u32]>,
    /// An unfinished sum.
    pub(super) partial: bool,
    pub(super) part: Option<usize>,
}

/// Something read: where it is, and what.
#[derive(Clone, Debug)]
pub(super) struct Read {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// A packet slot as its reader sees it.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    /// Packets, or scratch memory where a port's transfer is to be waited for.
    pub(super) read: Read,
    /// The transfer that brings it.
    pub(super) put: Option<usize>,
}

/// What a scratch slot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum SlotUse {
    Chunk(usize),
    /// Stands in for a chunk of a user's input or output.
    StandIn {
        output: bool,
        block: usize,
        part: usize,
    },
    /// Packets of this chunk, that arrive by a port.
    Arrived(usize),
    /// Packets of this chunk, read by this thread block to be sent by a port.
    Staged(usize, usize),
}

/// What a packet slot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum PacketUse {
    Chunk(usize),
    /// Stored to all ranks at once; apart from what a rank stores to itself before.
    Group(usize),
}

/// Numbers for things, in the order in which they are first asked for.
#[derive(Debug)]
struct Numbers<T>(HashMap<T, usize>);

impl<T: Copy + Eq + Hash + Ord> Numbers<T> {
    fn of(&mut self, what: T) -> usize {
        let next = self.0.len();
        *self.0.entry(what).or_insert(next)
    }

    /// Each number's place if they were in the order of the things.
    fn order(&self) -> Vec<usize> {
        let mut things: Vec<_> = self.0.iter().collect();
        things.sort_unstable();
        let mut order = vec![0; things.len()];
        for (place, (_, number)) in things.into_iter().enumerate() {
            order[*number] = place;
        }
        order
    }
}

#[derive(Debug)]
pub(super) struct Memory<'l> {
    pub(super) layout: &'l Layout,
    cells: HashMap<Cell, Read>,
    pub(super) packets: HashMap<(usize, usize), Packet>,
    slots: Numbers<SlotUse>,
    packet_slots: Numbers<PacketUse>,
    /// Packets that a thread block has read to be sent by a port.
    staged: HashSet<(usize, usize, usize)>,
    leaves: usize,
}

impl<'l> Memory<'l> {
    pub(super) fn new(layout: &'l Layout) -> Self {
        Self {
            layout,
            cells: HashMap::new(),
            packets: HashMap::new(),
            slots: Numbers(HashMap::new()),
            packet_slots: Numbers(HashMap::new()),
            staged: HashSet::new(),
            leaves: 0,
        }
    }

    /// The places of scratch and of packet slots in the order of what they are for.
    pub(super) fn slot_order(&self) -> (Vec<usize>, Vec<usize>) {
        (self.slots.order(), self.packet_slots.order())
    }

    /// Where a chunk is now.
    pub(super) fn read(&mut self, cell: Cell) -> Read {
        if let Some(read) = self.cells.get(&cell) {
            return read.clone();
        }
        let rank = cell.rank();
        let mut value = Value { part: cell.part(), ..Value::default() };
        let place = match self.layout.input_of(cell) {
            Some(block) => {
                value.ranks = Rc::new([rank as u32]);
                Place::input(rank, block)
            }
            None => self.home(cell, false),
        };
        Read { place, value }
    }

    /// Where a value that is stored to a chunk goes.
    pub(super) fn write(&mut self, cell: Cell, value: &Value) -> Place {
        let place = self.home(cell, value.partial);
        let value = value.clone();
        self.cells.insert(cell, Read { place, value });
        place
    }

    /// Whether nothing is ever stored to a chunk.
    pub(super) fn is_untouched(&self, cell: Cell) -> bool {
        !self.cells.contains_key(&cell)
    }

    fn home(&mut self, cell: Cell, partial: bool) -> Place {
        let slot = match cell {
            Cell::Output { rank, block, .. } if !partial => return Place::output(rank, block),
            Cell::Output { block, part, .. } => SlotUse::StandIn { output: true, block, part },
            Cell::Input { block, part, .. } => SlotUse::StandIn { output: false, block, part },
            Cell::Scratch { chunk, .. } => SlotUse::Chunk(chunk),
        };
        self.slot(cell.rank(), slot, partial)
    }

    fn slot(&mut self, rank: usize, slot: SlotUse, partial: bool) -> Place {
        let place = Place::scratch(rank, self.slots.of(slot));
        if partial { place.partial() } else { place }
    }

    /// Where packets that a thread block sends by a port lie before, and whether they do already.
    pub(super) fn staged(
        &mut self,
        rank: usize,
        threadblock: usize,
        chunk: usize,
        value: &Value,
    ) -> (Place, bool) {
        let staged = !self.staged.insert((rank, threadblock, chunk));
        let slot = SlotUse::Staged(threadblock, chunk);
        (self.slot(rank, slot, value.partial), staged)
    }

    /// Where packets that are sent by a port lie after, with that transfer.
    pub(super) fn arrive(&mut self, rank: usize, chunk: usize, value: &Value, put: usize) -> Place {
        let place = self.slot(rank, SlotUse::Arrived(chunk), value.partial);
        let value = value.clone();
        let read = Read { place, value };
        let put = Some(put);
        self.packets.insert((rank, chunk), Packet { read, put });
        place
    }

    /// Where packets are stored, by `writer`.
    pub(super) fn send(
        &mut self,
        rank: usize,
        chunk: usize,
        slot: PacketUse,
        value: &Value,
        writer: usize,
    ) -> Place {
        let slot = self.packet_slots.of(slot);
        let form = |place: Place| {
            if value.partial { place.partial() } else { place }
        };
        let read =
            Read { place: form(Place::packets_from(rank, slot, writer)), value: value.clone() };
        self.packets.insert((rank, chunk), Packet { read, put: None });
        form(Place::packets(rank, slot))
    }

    /// The reduction of values: unfinished as long as a contribution is missing.
    pub(super) fn sum(&mut self, values: &[Value]) -> Result<Value, MscclppError> {
        let count: usize = values.iter().map(|value| value.ranks.len()).sum();
        self.leaves = self.leaves.saturating_add(count);
        bounded("contributions of all sums", self.leaves, MAX_LEAVES)?;
        let mut ranks = Vec::with_capacity(count);
        for value in values {
            ranks.extend_from_slice(&value.ranks);
        }
        ranks.sort_unstable();
        let partial = self.layout.collective.reduces() && count < self.layout.world;
        Ok(Value { ranks: ranks.into(), partial, part: None })
    }
}
