//! The symbolic run.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::super::{Buffer, Instruction, Place, Plan, Whose};
use super::port::ports_of;
use super::value::{Chunk, Findings, Value, ValueId, Values};
use super::{Defect, Site, site};
use crate::plan::text::place_text;

pub(super) type Clock = Vec<u32>;

/// Where and when something happened: thread and its own time.
pub(super) type Event = (usize, u32);

/// A place that can be raced for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Location {
    rank: usize,
    buffer: Buffer,
    /// The half of scratch and packets; the round's window of users' buffers.
    window: usize,
    index: usize,
    /// Of users' buffers.
    part: usize,
}

#[derive(Debug, Default)]
pub(super) struct Cell {
    pub(super) write: Option<Event>,
    pub(super) reads: Vec<Event>,
    held: Option<Held>,
    /// The packet in it, if it is a packet slot that was written.
    packet: Option<Packet>,
    /// Somebody still has to read the packet.
    unread: bool,
}

#[derive(Debug)]
struct Packet {
    /// The epoch it was written in, which its flag says.
    epoch: u64,
    /// The rank that wrote it.
    writer: usize,
    /// What its writer knew.
    clock: Rc<Clock>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Held {
    value: ValueId,
    part: usize,
    partial: bool,
}

#[derive(Debug, Default)]
struct Semaphore {
    /// Signals that nobody has waited for yet.
    signals: VecDeque<Rc<Clock>>,
    /// Who signalled last: the call, the thread and its time.
    signaller: Option<(usize, Event)>,
    /// Who waited last: the call and the thread.
    waiter: Option<(usize, usize)>,
}

#[derive(Debug)]
pub(super) struct Thread {
    pub(super) rank: usize,
    pub(super) worker: usize,
    pub(super) clock: Clock,
    call: usize,
    round: usize,
    /// None: the round has not begun.
    next: Option<usize>,
    /// How much of a Wait is done.
    waited: usize,
    /// Waiting at the end of a call for the rank's other workers.
    done: bool,
}

/// A plan in a sequence, its rounds, and whether it synchronises.
pub(super) type Step<'a> = (&'a Plan, usize, bool);

pub(super) struct Run<'a> {
    steps: &'a [Step<'a>],
    in_place: bool,
    world: usize,
    /// The workers. In clocks, each port's proxy follows with two times: of what it has read and of
    /// what it has written, since a flush waits for the one and not for the other.
    pub(super) threads: Vec<Thread>,
    workers_of: Vec<Vec<usize>>,
    pub(super) ports: HashMap<(usize, usize, usize), usize>,
    pub(super) clocks_of_ports: Vec<Clock>,
    pub(super) cells: HashMap<Location, Cell>,
    semaphores: HashMap<(usize, usize, usize), Semaphore>,
    values: Values,
    /// Per rank and epoch (from 1): workers still in it, and their joined clock once none is.
    finished: Vec<Vec<(usize, Clock)>>,
    found: Findings,
    /// Clocks that are kept for signals and packets.
    kept: usize,
}

/// Bounds the memory for clocks, in numbers, that a plan from a stranger can ask for.
const MAX_KEPT: usize = 1 << 28;

enum Turn {
    Progress,
    Blocked,
}

impl<'a> Run<'a> {
    pub(super) fn new(steps: &'a [Step<'a>], in_place: bool) -> Self {
        let world = steps[0].0.shape.world;
        let most = |rank: usize| steps.iter().map(|(p, ..)| p.programs[rank].workers.len()).max();
        let (mut threads, mut workers_of) = (Vec::new(), Vec::new());
        for rank in 0..world {
            let workers = most(rank).unwrap_or(1);
            workers_of.push((threads.len()..threads.len() + workers).collect::<Vec<_>>());
            threads.extend((0..workers).map(|worker| Thread {
                rank,
                worker,
                clock: Clock::new(),
                call: 0,
                round: 0,
                next: None,
                waited: 0,
                done: false,
            }));
        }
        let ports = ports_of(steps);
        let width = threads.len() + 2 * ports.len();
        threads.iter_mut().for_each(|thread| thread.clock = vec![0; width]);
        let clocks_of_ports = vec![vec![0; width]; ports.len()];
        let found = Findings {
            same_bits: true,
            canonical: true,
            finishes_once: true,
            contributors: true,
            synchronises: true,
        };
        let finished = workers_of.iter().map(|_| Vec::new()).collect();
        Self {
            steps,
            in_place,
            world,
            threads,
            workers_of,
            ports,
            clocks_of_ports,
            cells: HashMap::new(),
            semaphores: HashMap::new(),
            values: Values::default(),
            finished,
            found,
            kept: 0,
        }
    }

    /// Runs to the end and says what was found.
    pub(super) fn finish(mut self) -> Result<Findings, Defect> {
        for rank in 0..self.world {
            self.begin_call(rank, 0)?;
        }
        loop {
            let mut progress = false;
            for thread in 0..self.threads.len() {
                while let Turn::Progress = self.step(thread)? {
                    progress = true;
                }
            }
            if self.threads.iter().all(|thread| thread.call == self.steps.len()) {
                break;
            }
            if !progress {
                return Err(self.deadlock());
            }
        }
        self.check_unmatched()?;
        self.found.synchronises = self.all_know_all();
        Ok(self.found)
    }

    /// One step of one worker: entering a round, an instruction, or leaving the round.
    fn step(&mut self, id: usize) -> Result<Turn, Defect> {
        let thread = &self.threads[id];
        if thread.call == self.steps.len() || thread.done {
            return Ok(Turn::Blocked);
        }
        let (plan, rounds, _) = self.steps[thread.call];
        let Some(next) = thread.next else {
            return Ok(self.enter_round(id));
        };
        let none = Vec::new();
        let workers = &plan.programs[thread.rank].workers;
        let list = workers.get(thread.worker).unwrap_or(&none);
        if let Some(instruction) = list.get(next) {
            let at = site_of(thread, next, instruction);
            if !self.execute(id, instruction, &at)? {
                return Ok(Turn::Blocked);
            }
            self.threads[id].next = Some(next + 1);
            return Ok(Turn::Progress);
        }
        self.leave_round(id, rounds)?;
        Ok(Turn::Progress)
    }

    /// The epoch that a thread's round is, from 1.
    fn epoch(&self, call: usize, round: usize) -> u64 {
        let before: usize = self.steps[..call].iter().map(|(_, rounds, _)| rounds).sum();
        (before + round + 1) as u64
    }

    fn enter_round(&mut self, id: usize) -> Turn {
        let thread = &self.threads[id];
        let (rank, call, round) = (thread.rank, thread.call, thread.round);
        let epoch = self.epoch(call, round);
        let previous = if round > 0 { Some(call) } else { call.checked_sub(1) };
        let synchronised = previous.is_none_or(|call| self.steps[call].2);
        if epoch > 2 && !synchronised {
            let needed = epoch as usize - 3;
            let all =
                |list: &Vec<(usize, Clock)>| list.get(needed).is_some_and(|(left, _)| *left == 0);
            if !self.finished.iter().all(all) {
                return Turn::Blocked;
            }
            for list in &self.finished {
                join(&mut self.threads[id].clock, &list[needed].1);
            }
        }
        let width = self.threads[id].clock.len();
        let workers = self.workers_of[rank].len();
        let list = &mut self.finished[rank];
        while list.len() < epoch as usize {
            list.push((workers, vec![0; width]));
        }
        self.tick(id);
        self.threads[id].next = Some(0);
        Turn::Progress
    }

    fn leave_round(&mut self, id: usize, rounds: usize) -> Result<(), Defect> {
        let thread = &self.threads[id];
        let (rank, call, round) = (thread.rank, thread.call, thread.round);
        let epoch = self.epoch(call, round) as usize;
        let (left, clock) = &mut self.finished[rank][epoch - 1];
        *left -= 1;
        join(clock, &self.threads[id].clock);
        self.threads[id].next = None;
        self.threads[id].round += 1;
        if round + 1 < rounds {
            return Ok(());
        }
        self.threads[id].done = true;
        if self.workers_of[rank].iter().all(|worker| self.threads[*worker].done) {
            self.end_call(rank, call)?;
        }
        Ok(())
    }

    /// The rank's workers meet, and the application reads its outputs; then the next call begins.
    fn end_call(&mut self, rank: usize, call: usize) -> Result<(), Defect> {
        let workers = self.workers_of[rank].clone();
        let mut clock = vec![0; self.threads[workers[0]].clock.len()];
        for worker in &workers {
            join(&mut clock, &self.threads[*worker].clock);
        }
        for worker in &workers {
            let thread = &mut self.threads[*worker];
            thread.clock.clone_from(&clock);
            (thread.call, thread.round, thread.done) = (call + 1, 0, false);
        }
        self.check_outputs(rank, call)?;
        self.begin_call(rank, call + 1)
    }

    /// The application writes its inputs and outputs. After the last call this only checks that
    /// nobody touches them any more.
    fn begin_call(&mut self, rank: usize, call: usize) -> Result<(), Defect> {
        let (plan, rounds, _) = self.steps[call.min(self.steps.len() - 1)];
        let shape = &plan.shape;
        let (inputs, outputs) = shape.collective.blocks(self.world, shape.root, rank);
        let id = self.workers_of[rank][0];
        let at = application(rank, "the application before the call");
        self.tick(id);
        for round in 0..rounds {
            for part in 0..shape.parts {
                for index in 0..outputs {
                    let location =
                        Location { rank, buffer: Buffer::Output, window: round, index, part };
                    self.write(id, location, None, &at)?;
                }
                for block in 0..inputs {
                    let value = Value::Input { call, round, rank, block, part };
                    let value = self.values.intern(value);
                    let location =
                        Location { rank, buffer: Buffer::Input, window: round, index: block, part };
                    let location = self.alias(call, location);
                    let held = Held { value, part, partial: false };
                    self.write(id, location, Some(held), &at)?;
                }
            }
        }
        // What the application wrote happened before all workers of the call start.
        let clock = self.threads[id].clock.clone();
        for worker in self.workers_of[rank].clone() {
            join(&mut self.threads[worker].clock, &clock);
        }
        Ok(())
    }

    fn check_outputs(&mut self, rank: usize, call: usize) -> Result<(), Defect> {
        let (plan, rounds, _) = self.steps[call];
        let shape = &plan.shape;
        let (_, outputs) = shape.collective.blocks(self.world, shape.root, rank);
        let id = self.workers_of[rank][0];
        let at = application(rank, "the application after the call");
        for round in 0..rounds {
            for (block, part) in (0..outputs).flat_map(|b| (0..shape.parts).map(move |p| (b, p))) {
                let location =
                    Location { rank, buffer: Buffer::Output, window: round, index: block, part };
                let wrong = |problem| Defect::WrongResult { rank, block, part, round, problem };
                self.read(id, location, &at)?;
                let Some(held) = self.cells[&location].held else {
                    return Err(wrong("was never written".into()));
                };
                let chunk = Chunk { call, round, rank, block, part };
                let (canonical, once) =
                    self.values.check(shape, held.value, chunk).map_err(wrong)?;
                self.found.canonical &= canonical;
                self.found.finishes_once &= once;
                self.compare_bits(call, chunk, held.value);
            }
        }
        Ok(())
    }

    /// All ranks' all-reduce outputs must be the same expression.
    fn compare_bits(&mut self, call: usize, chunk: Chunk, value: ValueId) {
        let shape = &self.steps[call].0.shape;
        if shape.collective != super::super::Collective::AllReduce {
            return;
        }
        // A location that no program can name holds the first rank's expression.
        let location = Location {
            rank: usize::MAX - call,
            buffer: Buffer::Output,
            window: chunk.round,
            index: chunk.block,
            part: chunk.part,
        };
        let held = Held { value, part: chunk.part, partial: false };
        let first = *self.cells.entry(location).or_default().held.get_or_insert(held);
        self.found.same_bits &= first.value == value;
    }

    /// Executes an instruction, if it can be executed now.
    fn execute(&mut self, id: usize, instruction: &Instruction, at: &Site) -> Result<bool, Defect> {
        match instruction {
            Instruction::Move { part, to, from, reduce } => {
                self.move_part(id, *part, to, from, *reduce, at)
            }
            Instruction::Signal { semaphore, to } => {
                self.tick(id);
                let clock = Rc::new(self.threads[id].clock.clone());
                for peer in to {
                    self.signal(id, id, *semaphore, *peer, clock.clone(), at)?;
                }
                Ok(true)
            }
            Instruction::Wait { semaphore, from } => self.wait(id, *semaphore, from, at),
            Instruction::Put { port, part, to, from, then_signal } => {
                self.put(id, *port, *part, to, from, *then_signal, at)?;
                Ok(true)
            }
            Instruction::Flush { port } => {
                self.flush(id, *port);
                Ok(true)
            }
        }
    }

    fn move_part(
        &mut self,
        id: usize,
        part: usize,
        to: &[Place],
        from: &[Place],
        reduce: bool,
        at: &Site,
    ) -> Result<bool, Defect> {
        let epoch = self.epoch(self.threads[id].call, self.threads[id].round);
        let sources: Vec<_> = from.iter().flat_map(|p| self.locations(id, p, part)).collect();
        for (location, place) in &sources {
            if place.buffer == Buffer::Packets && !self.packet_ready(id, *location, epoch) {
                return Ok(false);
            }
        }
        self.tick(id);
        let mut loaded = Vec::with_capacity(sources.len());
        for (location, place) in &sources {
            let held = self.load(id, *location, place, part, at)?;
            loaded.push((held.value, held.partial));
            if reduce && !held.partial {
                let from = place.writer.unwrap_or(location.rank);
                self.found.contributors &= self.values.contributor(held.value) == Some(from);
            }
        }
        let value = if reduce {
            self.switch(from, &mut loaded);
            let sum = self.values.fold(&loaded, self.world);
            sum.map_err(|problem| instruction_defect(at, problem))?
        } else {
            loaded[0].0
        };
        let partial = to[0].partial;
        let value =
            if reduce && !partial { self.values.intern(Value::Finished(value)) } else { value };
        let held = Held { value, part, partial };
        let clock = self.clock_for_packets(id, to, at)?;
        let targets: Vec<_> = to.iter().flat_map(|p| self.locations(id, p, part)).collect();
        for (location, place) in targets {
            // In place, a copy onto itself does nothing.
            if !reduce && sources.iter().any(|(source, _)| *source == location) {
                continue;
            }
            self.store(id, location, &place, held, at)?;
            if let Some(clock) = &clock {
                self.send(id, location, &place, (epoch, clock), at)?;
            }
        }
        Ok(true)
    }

    /// Replaces what was loaded from all ranks by the switch's sum of it.
    fn switch(&mut self, from: &[Place], loaded: &mut Vec<(ValueId, bool)>) {
        for (at, place) in from.iter().enumerate() {
            if place.whose == Whose::Group && self.world > 1 {
                let terms = loaded[at..at + self.world].iter().map(|(value, _)| *value).collect();
                let sum = (self.values.switched(terms), true);
                loaded.splice(at..at + self.world, [sum]);
            }
        }
    }

    /// The clock that goes with packets, if any of the destinations is one.
    fn clock_for_packets(
        &mut self,
        id: usize,
        to: &[Place],
        at: &Site,
    ) -> Result<Option<Rc<Clock>>, Defect> {
        let packets = |place: &Place| place.buffer == Buffer::Packets;
        if !to.iter().any(packets) {
            return Ok(None);
        }
        self.keep(at)?;
        Ok(Some(Rc::new(self.threads[id].clock.clone())))
    }

    fn keep(&mut self, at: &Site) -> Result<(), Defect> {
        self.kept += 1;
        let width = self.threads[0].clock.len();
        if self.kept.saturating_mul(width) > MAX_KEPT {
            let problem = "more signals and packets are under way than can be verified";
            return Err(instruction_defect(at, problem.into()));
        }
        Ok(())
    }

    pub(super) fn load(
        &mut self,
        id: usize,
        location: Location,
        place: &Place,
        part: usize,
        at: &Site,
    ) -> Result<Held, Defect> {
        let problem = |problem| instruction_defect(at, problem);
        self.read(id, location, at)?;
        let cell = self.cells.entry(location).or_default();
        cell.unread = false;
        let name = || place_text(location.rank, place);
        if let Some(packet) = &cell.packet
            && Some(packet.writer) != place.writer
        {
            return Err(problem(format!("{} is written by rank {}", name(), packet.writer)));
        }
        let held = cell.held.ok_or_else(|| problem(format!("{} holds nothing yet", name())))?;
        if held.part != part {
            return Err(problem(format!("{} holds part {}, not part {part}", name(), held.part)));
        }
        if held.partial != place.partial {
            let (is, wants) =
                if held.partial { ("partial", "not") } else { ("not partial", "as such") };
            return Err(problem(format!("{} is {is}, but is read {wants}", name())));
        }
        Ok(held)
    }

    /// A store. Over a packet, only if that has been read.
    fn store(
        &mut self,
        id: usize,
        location: Location,
        place: &Place,
        held: Held,
        at: &Site,
    ) -> Result<(), Defect> {
        self.write(id, location, Some(held), at)?;
        if self.cells.entry(location).or_default().unread {
            let place = place_text(location.rank, place);
            return Err(Defect::UnreadPacket { at: at.clone(), place });
        }
        Ok(())
    }

    /// Puts the flag to a packet.
    fn send(
        &mut self,
        id: usize,
        location: Location,
        place: &Place,
        (epoch, clock): (u64, &Rc<Clock>),
        at: &Site,
    ) -> Result<(), Defect> {
        if place.buffer != Buffer::Packets {
            return Ok(());
        }
        let cell = self.cells.entry(location).or_default();
        let packet = Packet { epoch, writer: self.threads[id].rank, clock: clock.clone() };
        if let Some(old) = cell.packet.replace(packet) {
            // Both have the same flag: a reader of the second could take the first.
            if old.epoch == epoch {
                let place = place_text(location.rank, place);
                let problem = format!("{place} is written twice in a round");
                return Err(instruction_defect(at, problem));
            }
            self.kept -= usize::from(Rc::strong_count(&old.clock) == 1);
        }
        // What goes to the whole group need not be read by all of it.
        cell.unread = place.whose != Whose::Group;
        Ok(())
    }

    /// Whether the packet of this epoch is there; if so, its writer's past is now the reader's.
    fn packet_ready(&mut self, id: usize, location: Location, epoch: u64) -> bool {
        let packet = self.cells.get(&location).and_then(|cell| cell.packet.as_ref());
        let Some(packet) = packet.filter(|packet| packet.epoch == epoch) else {
            return false;
        };
        join(&mut self.threads[id].clock, &packet.clock);
        true
    }

    pub(super) fn signal(
        &mut self,
        thread: usize,
        id: usize,
        semaphore: usize,
        peer: usize,
        clock: Rc<Clock>,
        at: &Site,
    ) -> Result<(), Defect> {
        self.keep(at)?;
        let key = (semaphore, self.threads[id].rank, peer);
        let call = self.threads[id].call;
        let word = self.semaphores.entry(key).or_default();
        if let Some((last_call, (last, time))) = word.signaller
            && last != thread
        {
            let to = format!("semaphore {semaphore} to rank {peer}");
            if last_call == call {
                let problem = format!("{to} has two signalling workers");
                return Err(instruction_defect(at, problem));
            }
            if clock[last] < time {
                let problem = format!("{to}: the signal of the call before may still be under way");
                return Err(instruction_defect(at, problem));
            }
        }
        word.signaller = Some((call, (thread, clock[thread])));
        word.signals.push_back(clock);
        Ok(())
    }

    fn wait(
        &mut self,
        id: usize,
        semaphore: usize,
        from: &[usize],
        at: &Site,
    ) -> Result<bool, Defect> {
        let call = self.threads[id].call;
        while let Some(peer) = from.get(self.threads[id].waited) {
            let word =
                self.semaphores.entry((semaphore, *peer, self.threads[id].rank)).or_default();
            let other = |(last, waiter): (usize, usize)| last == call && waiter != id;
            if word.waiter.replace((call, id)).is_some_and(other) {
                let problem =
                    format!("semaphore {semaphore} from rank {peer} has two waiting workers");
                return Err(instruction_defect(at, problem));
            }
            let Some(clock) = word.signals.pop_front() else {
                return Ok(false);
            };
            self.kept -= 1;
            join(&mut self.threads[id].clock, &clock);
            self.threads[id].waited += 1;
        }
        self.threads[id].waited = 0;
        self.tick(id);
        Ok(true)
    }

    /// The locations that a place means for a thread now: one, or one per rank of the group.
    pub(super) fn locations(
        &self,
        id: usize,
        place: &Place,
        part: usize,
    ) -> Vec<(Location, Place)> {
        let thread = &self.threads[id];
        let owners = match place.whose {
            Whose::Rank(rank) => rank..rank + 1,
            Whose::Group => 0..self.world,
        };
        let half = (self.epoch(thread.call, thread.round) % 2) as usize;
        let locate = |rank| {
            let (window, part) = if place.is_user() { (thread.round, part) } else { (half, 0) };
            let location =
                Location { rank, buffer: place.buffer, window, index: place.index, part };
            (self.alias(thread.call, location), *place)
        };
        owners.map(locate).collect()
    }

    /// In place, an input block may be an output block.
    fn alias(&self, call: usize, location: Location) -> Location {
        let shape = &self.steps[call.min(self.steps.len() - 1)].0.shape;
        if !self.in_place || location.buffer != Buffer::Input {
            return location;
        }
        match shape.collective.alias(shape.root, location.rank, location.index) {
            Some(index) => Location { buffer: Buffer::Output, index, ..location },
            None => location,
        }
    }

    pub(super) fn read(&mut self, id: usize, location: Location, at: &Site) -> Result<(), Defect> {
        let clock = &self.threads[id].clock;
        let cell = self.cells.entry(location).or_default();
        if let Some(write) = cell.write.filter(|event| clock[event.0] < event.1) {
            return Err(self.race(at, "reads", location, write, "write"));
        }
        cell.reads.push((id, clock[id]));
        Ok(())
    }

    pub(super) fn write(
        &mut self,
        id: usize,
        location: Location,
        held: Option<Held>,
        at: &Site,
    ) -> Result<(), Defect> {
        let clock = &self.threads[id].clock;
        let cell = self.cells.entry(location).or_default();
        let unordered = |event: &Event| clock[event.0] < event.1;
        if let Some(read) = cell.reads.iter().copied().find(unordered) {
            return Err(self.race(at, "writes", location, read, "read"));
        }
        if let Some(write) = cell.write.filter(unordered) {
            return Err(self.race(at, "writes", location, write, "write"));
        }
        cell.reads.clear();
        cell.write = Some((id, clock[id]));
        cell.held = held;
        Ok(())
    }

    fn race(
        &self,
        at: &Site,
        access: &'static str,
        location: Location,
        other: Event,
        others_access: &'static str,
    ) -> Defect {
        let place = Place {
            whose: Whose::Rank(location.rank),
            buffer: location.buffer,
            index: location.index,
            partial: false,
            writer: None,
        };
        let other = match self.threads.get(other.0) {
            Some(thread) => format!("rank {} worker {}", thread.rank, thread.worker),
            None => "a port's transfer".to_owned(),
        };
        let place = place_text(usize::MAX, &place);
        Defect::Race { at: at.clone(), access, place, other, others_access }
    }

    pub(super) fn tick(&mut self, id: usize) {
        self.threads[id].clock[id] += 1;
    }

    fn deadlock(&self) -> Defect {
        let stuck = self.threads.iter().filter(|t| t.call < self.steps.len() && !t.done);
        let describe = |thread: &Thread| {
            let program = &self.steps[thread.call].0.programs[thread.rank];
            match thread
                .next
                .and_then(|next| Some((next, program.workers.get(thread.worker)?.get(next)?)))
            {
                Some((next, instruction)) => site_of(thread, next, instruction).to_string(),
                None => format!("rank {} waits for a former epoch to be finished", thread.rank),
            }
        };
        Defect::Deadlock { waiting: stuck.map(describe).take(16).collect() }
    }

    fn check_unmatched(&self) -> Result<(), Defect> {
        let mut left: Vec<_> = self
            .semaphores
            .iter()
            .filter(|(_, word)| !word.signals.is_empty())
            .map(|(key, word)| (*key, word.signals.len()))
            .collect();
        left.sort_unstable();
        match left.first() {
            Some(((semaphore, from, to), extra)) => Err(Defect::UnmatchedSignal {
                semaphore: *semaphore,
                from: *from,
                to: *to,
                extra: *extra,
            }),
            None => Ok(()),
        }
    }

    /// Whether every rank's end knows of every worker's start of the last round.
    fn all_know_all(&self) -> bool {
        // A rank's first worker has an event of the application before the start of its round.
        let start = |thread: &Thread| if thread.worker == 0 { 2 } else { 1 };
        let starts: Vec<u32> = self.threads.iter().map(start).collect();
        let knows = |clock: &Clock| starts.iter().zip(clock).all(|(start, seen)| seen >= start);
        self.workers_of.iter().all(|workers| knows(&self.threads[workers[0]].clock))
    }
}

fn instruction_defect(at: &Site, problem: String) -> Defect {
    let at = at.clone();
    Defect::Instruction { at, problem }
}

fn site_of(thread: &Thread, next: usize, instruction: &Instruction) -> Site {
    site(thread.rank, thread.worker, next, instruction)
}

fn application(rank: usize, text: &str) -> Site {
    Site { rank, worker: 0, instruction: None, text: text.to_owned() }
}

pub(super) fn join(clock: &mut Clock, other: &Clock) {
    for (mine, theirs) in clock.iter_mut().zip(other) {
        *mine = (*mine).max(*theirs);
    }
}
