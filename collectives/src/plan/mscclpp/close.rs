//! Writes down the plan: what only the whole of it decides, and the barriers around it.

use std::collections::HashMap;

use super::super::{Buffer, Instruction, Place, Plan, Program, Whose};
use super::MscclppError;
use super::compact::compact;
use super::format::BufferType;
use super::run::{Item, Run};
use super::semaphores::{Semaphores, Use};

/// The plan, without barriers around it.
pub(super) fn write(mut run: Run<'_, '_>, name: &str) -> Result<(Plan, Semaphores), MscclppError> {
    let layout = run.memory.layout;
    let mut arrivals = Arrivals::assign(&mut run)?;
    let mut programs = vec![Program::default(); layout.world];
    for id in 0..run.lists.len() {
        let rank = run.rank_of(id);
        let mut list = Vec::with_capacity(run.lists[id].len());
        for item in std::mem::take(&mut run.lists[id]) {
            write_item(&run, &mut arrivals, id, item, &mut list);
        }
        for (semaphore, from, to) in run.meetings.left.clone() {
            if to == id {
                let (id, rank) = (semaphore, run.rank_of(to));
                let index = run.semaphores.index(rank, rank, Use::Token { id, from, to })?;
                let (semaphore, from) = (index, vec![rank]);
                list.push(Instruction::Wait { semaphore, from });
            }
        }
        arrivals.rest(id, &mut list);
        programs[rank].workers.push(list);
    }
    for (rank, program) in programs.iter_mut().enumerate() {
        if program.workers.is_empty() {
            program.workers.push(Vec::new());
        }
        let copies = untouched(&run, rank);
        program.workers[0].splice(0..0, copies);
    }
    let shape = layout.shape(name);
    let mut plan = Plan { shape, programs };
    let (scratch, packets) = run.memory.slot_order();
    plan.shape.scratch = compact(&mut plan, Buffer::Scratch, &scratch);
    plan.shape.packets = compact(&mut plan, Buffer::Packets, &packets);
    Ok((plan, run.semaphores))
}

fn write_item(
    run: &Run<'_, '_>,
    arrivals: &mut Arrivals,
    id: usize,
    item: Item,
    list: &mut Vec<Instruction>,
) {
    match item {
        Item::Plain(instruction) => list.extend(without_unread(run, instruction)),
        Item::Arrived(put) => arrivals.wait(put, list),
        Item::Put(number) => {
            let put = &run.puts[number];
            if put.packets && put.reader.is_none() {
                return;
            }
            list.push(Instruction::Put {
                port: run.port_of(id, number),
                part: put.part,
                to: put.to,
                from: put.from,
                then_signal: put.then_signal,
            });
        }
    }
}

/// A packet that nobody reads is not written: the format's executor leaves it behind, ours would
/// have to be told that its slot is free again. One that goes to all ranks stays.
fn without_unread(run: &Run<'_, '_>, instruction: Instruction) -> Option<Instruction> {
    let Instruction::Move { part, mut to, from, reduce } = instruction else {
        return Some(instruction);
    };
    to.retain(|place| match (place.buffer, place.whose) {
        (Buffer::Packets, Whose::Rank(rank)) => run.read_packets.contains(&(rank, place.index)),
        _ => true,
    });
    (!to.is_empty()).then_some(Instruction::Move { part, to, from, reduce })
}

/// In place, what stays where it is: out of place it has to be copied.
fn untouched(run: &Run<'_, '_>, rank: usize) -> Vec<Instruction> {
    let layout = run.memory.layout;
    let reduce = layout.collective.reduces();
    if reduce && layout.world > 1 {
        return Vec::new();
    }
    let (_, outputs) = layout.collective.blocks(layout.world, 0, rank);
    let mut copies = Vec::new();
    for chunk in 0..outputs * layout.parts {
        let Ok(cell) = layout.cell(rank, BufferType::Output, chunk) else {
            continue;
        };
        let input = layout.input_of(cell);
        if let Some(block) = input.filter(|_| run.memory.is_untouched(cell)) {
            copies.push(Instruction::Move {
                part: chunk % layout.parts,
                to: vec![Place::output(rank, chunk / layout.parts)],
                from: vec![Place::input(rank, block)],
                reduce,
            });
        }
    }
    copies
}

/// The packets that come by ports: their transfers' signals in the order in which they are given,
/// and how many of them have been waited for.
#[derive(Default)]
struct Arrivals {
    /// By transfer: which line of signals, and its place in it.
    places: HashMap<usize, (usize, usize)>,
    lines: Vec<ArrivalLine>,
}

struct ArrivalLine {
    semaphore: usize,
    from: usize,
    reader: usize,
    signals: usize,
    waits: usize,
}

impl Arrivals {
    fn assign(run: &mut Run<'_, '_>) -> Result<Self, MscclppError> {
        let mut arrivals = Self::default();
        let mut lines = HashMap::new();
        for number in 0..run.puts.len() {
            let put = &run.puts[number];
            let (Some(reader), true) = (put.reader, put.packets) else {
                continue;
            };
            let (from, peer, ordinal) = (put.rank, put.channel.peer, put.channel.ordinal);
            let what = Use::PacketArrival { ordinal, sender: put.sender, reader };
            let semaphore = run.semaphores.index(from, peer, what)?;
            let line = *lines.entry((from, peer, semaphore)).or_insert_with(|| {
                arrivals.lines.push(ArrivalLine { semaphore, from, reader, signals: 0, waits: 0 });
                arrivals.lines.len() - 1
            });
            arrivals.lines[line].signals += 1;
            let place = arrivals.lines[line].signals;
            arrivals.places.insert(number, (line, place));
            run.puts[number].then_signal = Some(semaphore);
        }
        Ok(arrivals)
    }

    fn wait(&mut self, put: usize, list: &mut Vec<Instruction>) {
        if let Some(&(line, place)) = self.places.get(&put) {
            self.lines[line].wait_until(place, list);
        }
    }

    /// Waits for what arrives and was read too early to be waited for, which is nothing.
    fn rest(&mut self, block: usize, list: &mut Vec<Instruction>) {
        for line in self.lines.iter_mut().filter(|line| line.reader == block) {
            line.wait_until(line.signals, list);
        }
    }
}

impl ArrivalLine {
    fn wait_until(&mut self, place: usize, list: &mut Vec<Instruction>) {
        for _ in self.waits..place {
            let (semaphore, from) = (self.semaphore, vec![self.from]);
            list.push(Instruction::Wait { semaphore, from });
        }
        self.waits = self.waits.max(place);
    }
}

/// The plan with barriers of all ranks around it: before, so that nobody's memory is touched before
/// he has come, or after, so that nobody's is when he has gone. None if no semaphores are left.
pub(super) fn with_barriers(
    plan: &Plan,
    semaphores: &Semaphores,
    before: bool,
    after: bool,
) -> Option<Plan> {
    let between = semaphores.unused_between_ranks()?;
    let mut plan = plan.clone();
    let world = plan.shape.world;
    for (rank, program) in plan.programs.iter_mut().enumerate() {
        let others = program.workers.len() - 1;
        let within = semaphores.unused_within(rank, 2 * others)?;
        let gate = Gate { rank, world, between, within, others };
        for (worker, list) in program.workers.iter_mut().enumerate() {
            if before {
                list.splice(0..0, gate.open(worker));
            }
            if after {
                list.extend(gate.close(worker));
            }
        }
    }
    Some(plan)
}

/// A rank's place in a barrier of all ranks, and the semaphores for it: one for each of the other
/// workers to the first one, and as many back.
struct Gate {
    rank: usize,
    world: usize,
    between: usize,
    within: usize,
    others: usize,
}

impl Gate {
    fn open(&self, worker: usize) -> Vec<Instruction> {
        if worker > 0 {
            return vec![self.wait(self.others + worker)];
        }
        let mut list = self.peers();
        list.extend((1..=self.others).map(|other| self.signal(self.others + other)));
        list
    }

    fn close(&self, worker: usize) -> Vec<Instruction> {
        if worker > 0 {
            return vec![self.signal(worker), self.wait(self.others + worker)];
        }
        let mut list: Vec<_> = (1..=self.others).map(|other| self.wait(other)).collect();
        list.extend(self.open(0));
        list
    }

    fn peers(&self) -> Vec<Instruction> {
        let peers: Vec<_> = (1..self.world).map(|step| (self.rank + step) % self.world).collect();
        let (semaphore, to, from) = (self.between, peers.clone(), peers);
        match self.world {
            1 => Vec::new(),
            _ => vec![Instruction::Signal { semaphore, to }, Instruction::Wait { semaphore, from }],
        }
    }

    fn signal(&self, nth: usize) -> Instruction {
        let (semaphore, to) = (self.within + nth - 1, vec![self.rank]);
        Instruction::Signal { semaphore, to }
    }

    fn wait(&self, nth: usize) -> Instruction {
        let (semaphore, from) = (self.within + nth - 1, vec![self.rank]);
        Instruction::Wait { semaphore, from }
    }
}
