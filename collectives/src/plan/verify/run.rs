//! The symbolic run.

use std::collections::HashMap;
use std::rc::Rc;

use super::super::{Buffer, Instruction, Place, Plan, Whose};
use super::value::{Chunk, Findings, Value, ValueId, Values};
use super::{Defect, Site, site};
use crate::plan::text::place_text;

type Clock = Vec<u32>;

/// Where and when something happened: thread and its own time.
type Event = (usize, u32);

/// A place that can be raced for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Location {
    rank: usize,
    buffer: Buffer,
    /// The half of scratch and packets; the round's window of users' buffers.
    window: usize,
    index: usize,
    /// Of users' buffers.
    part: usize,
}

#[derive(Debug, Default)]
struct Cell {
    write: Option<Event>,
    reads: Vec<Event>,
    held: Option<Held>,
    /// Of a packet: when it was written and its writer's clock, and whether someone has read it.
    packet: Option<(u64, Rc<Clock>)>,
    unread: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Held {
    value: ValueId,
    part: usize,
    partial: bool,
}

#[derive(Debug, Default)]
struct Semaphore {
    signals: Vec<Rc<Clock>>,
    consumed: usize,
    signaller: Option<usize>,
    waiter: Option<usize>,
}

#[derive(Debug)]
struct Thread {
    rank: usize,
    worker: usize,
    clock: Clock,
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
type Step<'a> = (&'a Plan, usize, bool);

pub(super) struct Run<'a> {
    steps: &'a [Step<'a>],
    in_place: bool,
    world: usize,
    /// Workers first, then the ports' proxies.
    threads: Vec<Thread>,
    workers_of: Vec<Vec<usize>>,
    ports: HashMap<(usize, usize, usize), usize>,
    clocks_of_ports: Vec<Clock>,
    cells: HashMap<Location, Cell>,
    semaphores: HashMap<(usize, usize, usize), Semaphore>,
    values: Values,
    /// Per rank and epoch (from 1): workers still in it, and their joined clock once none is.
    finished: Vec<Vec<(usize, Clock)>>,
    found: Findings,
}

enum Turn {
    Progress,
    Blocked,
}

impl<'a> Run<'a> {
    pub(super) fn new(steps: &'a [Step<'a>], in_place: bool) -> Self {
        let world = steps[0].0.shape.world;
        let most = |rank: usize| {
            steps
                .iter()
                .map(|(p, ..)| p.programs[rank].workers.len())
                .max()
        };
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
        let ports = ports_of(steps, threads.len());
        let width = threads.len() + ports.len();
        threads
            .iter_mut()
            .for_each(|thread| thread.clock = vec![0; width]);
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
            if self
                .threads
                .iter()
                .all(|thread| thread.call == self.steps.len())
            {
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
        let previous = if round > 0 {
            Some(call)
        } else {
            call.checked_sub(1)
        };
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
        if self.workers_of[rank]
            .iter()
            .all(|worker| self.threads[*worker].done)
        {
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
                    let location = Location {
                        rank,
                        buffer: Buffer::Output,
                        window: round,
                        index,
                        part,
                    };
                    self.write(id, location, None, &at)?;
                }
                for block in 0..inputs {
                    let value = Value::Input {
                        call,
                        round,
                        rank,
                        block,
                        part,
                    };
                    let value = self.values.intern(value);
                    let location = Location {
                        rank,
                        buffer: Buffer::Input,
                        window: round,
                        index: block,
                        part,
                    };
                    let location = self.alias(call, location);
                    let held = Held {
                        value,
                        part,
                        partial: false,
                    };
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
                let location = Location {
                    rank,
                    buffer: Buffer::Output,
                    window: round,
                    index: block,
                    part,
                };
                let wrong = |problem| Defect::WrongResult {
                    rank,
                    block,
                    part,
                    round,
                    problem,
                };
                self.read(id, location, &at)?;
                let Some(held) = self.cells[&location].held else {
                    return Err(wrong("was never written".into()));
                };
                let chunk = Chunk {
                    call,
                    round,
                    rank,
                    block,
                    part,
                };
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
        let held = Held {
            value,
            part: chunk.part,
            partial: false,
        };
        let first = *self
            .cells
            .entry(location)
            .or_default()
            .held
            .get_or_insert(held);
        self.found.same_bits &= first.value == value;
    }

    /// Executes an instruction, if it can be executed now.
    fn execute(&mut self, id: usize, instruction: &Instruction, at: &Site) -> Result<bool, Defect> {
        match instruction {
            Instruction::Move {
                part,
                to,
                from,
                reduce,
            } => self.move_part(id, *part, to, from, *reduce, at),
            Instruction::Signal { semaphore, to } => {
                self.tick(id);
                let clock = Rc::new(self.threads[id].clock.clone());
                for peer in to {
                    self.signal(id, id, *semaphore, *peer, clock.clone(), at)?;
                }
                Ok(true)
            }
            Instruction::Wait { semaphore, from } => self.wait(id, *semaphore, from, at),
            Instruction::Put {
                port,
                part,
                to,
                from,
                then_signal,
            } => {
                self.put(id, *port, *part, to, from, *then_signal, at)?;
                Ok(true)
            }
            Instruction::Flush { port } => {
                if let Some(proxy) = self.port(id, *port) {
                    let clock = self.clocks_of_ports[proxy - self.threads.len()].clone();
                    join(&mut self.threads[id].clock, &clock);
                }
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
        let sources: Vec<_> = from
            .iter()
            .flat_map(|p| self.locations(id, p, part))
            .collect();
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
            self.values.fold(&loaded)
        } else {
            loaded[0].0
        };
        let partial = to[0].partial;
        let value = if reduce && !partial {
            self.values.intern(Value::Finished(value))
        } else {
            value
        };
        let held = Held {
            value,
            part,
            partial,
        };
        let clock = Rc::new(self.threads[id].clock.clone());
        let targets: Vec<_> = to
            .iter()
            .flat_map(|p| self.locations(id, p, part))
            .collect();
        for (location, place) in targets {
            // In place, a copy onto itself does nothing.
            if !reduce && sources.iter().any(|(source, _)| *source == location) {
                continue;
            }
            self.store(id, location, &place, held, epoch, &clock, at)?;
        }
        Ok(true)
    }

    fn load(
        &mut self,
        id: usize,
        location: Location,
        place: &Place,
        part: usize,
        at: &Site,
    ) -> Result<Held, Defect> {
        let problem = |problem: String| Defect::Instruction {
            at: at.clone(),
            problem,
        };
        self.read(id, location, at)?;
        let cell = self.cells.entry(location).or_default();
        cell.unread = false;
        let name = || place_text(location.rank, place);
        let held = cell
            .held
            .ok_or_else(|| problem(format!("{} holds nothing yet", name())))?;
        if held.part != part {
            return Err(problem(format!(
                "{} holds part {}, not part {part}",
                name(),
                held.part
            )));
        }
        if held.partial != place.partial {
            let (is, wants) = if held.partial {
                ("partial", "not")
            } else {
                ("not partial", "as such")
            };
            return Err(problem(format!("{} is {is}, but is read {wants}", name())));
        }
        Ok(held)
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "one store, with all that the race report names"
    )]
    fn store(
        &mut self,
        id: usize,
        location: Location,
        place: &Place,
        held: Held,
        epoch: u64,
        clock: &Rc<Clock>,
        at: &Site,
    ) -> Result<(), Defect> {
        self.write(id, location, Some(held), at)?;
        if place.buffer == Buffer::Packets {
            let cell = self.cells.entry(location).or_default();
            if cell.unread {
                let place = place_text(location.rank, place);
                return Err(Defect::UnreadPacket {
                    at: at.clone(),
                    place,
                });
            }
            cell.packet = Some((epoch, clock.clone()));
            cell.unread = true;
        }
        Ok(())
    }

    /// Whether the packet of this epoch is there; if so, its writer's past is now the reader's.
    fn packet_ready(&mut self, id: usize, location: Location, epoch: u64) -> bool {
        let packet = self
            .cells
            .get(&location)
            .and_then(|cell| cell.packet.as_ref());
        let Some((_, clock)) = packet.filter(|(written, _)| *written == epoch) else {
            return false;
        };
        let clock = clock.clone();
        join(&mut self.threads[id].clock, &clock);
        true
    }

    fn signal(
        &mut self,
        thread: usize,
        id: usize,
        semaphore: usize,
        peer: usize,
        clock: Rc<Clock>,
        at: &Site,
    ) -> Result<(), Defect> {
        let key = (semaphore, self.threads[id].rank, peer);
        let word = self.semaphores.entry(key).or_default();
        if *word.signaller.get_or_insert(thread) != thread {
            let problem =
                format!("semaphore {semaphore} to rank {peer} has two signalling workers");
            return Err(Defect::Instruction {
                at: at.clone(),
                problem,
            });
        }
        word.signals.push(clock);
        Ok(())
    }

    fn wait(
        &mut self,
        id: usize,
        semaphore: usize,
        from: &[usize],
        at: &Site,
    ) -> Result<bool, Defect> {
        while let Some(peer) = from.get(self.threads[id].waited) {
            let word = self
                .semaphores
                .entry((semaphore, *peer, self.threads[id].rank))
                .or_default();
            if *word.waiter.get_or_insert(id) != id {
                let problem =
                    format!("semaphore {semaphore} from rank {peer} has two waiting workers");
                return Err(Defect::Instruction {
                    at: at.clone(),
                    problem,
                });
            }
            let Some(clock) = word.signals.get(word.consumed) else {
                return Ok(false);
            };
            let clock = clock.clone();
            word.consumed += 1;
            join(&mut self.threads[id].clock, &clock);
            self.threads[id].waited += 1;
        }
        self.threads[id].waited = 0;
        self.tick(id);
        Ok(true)
    }

    /// A transfer by a port's proxy, a thread of its own that starts after the worker's past.
    #[allow(clippy::too_many_arguments, reason = "the fields of the instruction")]
    fn put(
        &mut self,
        id: usize,
        port: usize,
        part: usize,
        to: &Place,
        from: &Place,
        then_signal: Option<usize>,
        at: &Site,
    ) -> Result<(), Defect> {
        let proxy = self
            .port(id, port)
            .expect("ports were counted before the run");
        self.tick(id);
        let past = self.threads[id].clock.clone();
        let slot = proxy - self.threads.len();
        join(&mut self.clocks_of_ports[slot], &past);
        self.clocks_of_ports[slot][proxy] += 1;
        // The proxy acts in the worker's name, with its own clock.
        let proxys = self.clocks_of_ports[slot].clone();
        let own = std::mem::replace(&mut self.threads[id].clock, proxys);
        let done = self.transfer(id, proxy, part, to, from, at);
        let proxys = std::mem::replace(&mut self.threads[id].clock, own);
        self.clocks_of_ports[slot].clone_from(&proxys);
        done?;
        if let (Some(semaphore), Whose::Rank(peer)) = (then_signal, to.whose) {
            self.signal(proxy, id, semaphore, peer, Rc::new(proxys), at)?;
        }
        Ok(())
    }

    fn transfer(
        &mut self,
        id: usize,
        proxy: usize,
        part: usize,
        to: &Place,
        from: &Place,
        at: &Site,
    ) -> Result<(), Defect> {
        for (source, place) in self.locations(id, from, part) {
            let held = self.load(id, source, &place, part, at)?;
            let event = (proxy, self.threads[id].clock[proxy]);
            self.cells.entry(source).or_default().reads.push(event);
            for (destination, _) in self.locations(id, to, part) {
                self.write(id, destination, Some(held), at)?;
                self.cells.entry(destination).or_default().write = Some(event);
            }
        }
        Ok(())
    }

    fn port(&self, id: usize, port: usize) -> Option<usize> {
        let thread = &self.threads[id];
        self.ports.get(&(thread.rank, thread.worker, port)).copied()
    }

    /// The locations that a place means for a thread now: one, or one per rank of the group.
    fn locations(&self, id: usize, place: &Place, part: usize) -> Vec<(Location, Place)> {
        let thread = &self.threads[id];
        let owners = match place.whose {
            Whose::Rank(rank) => rank..rank + 1,
            Whose::Group => 0..self.world,
        };
        let half = (self.epoch(thread.call, thread.round) % 2) as usize;
        let locate = |rank| {
            let (window, part) = if place.is_user() {
                (thread.round, part)
            } else {
                (half, 0)
            };
            let location = Location {
                rank,
                buffer: place.buffer,
                window,
                index: place.index,
                part,
            };
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
        match shape
            .collective
            .alias(shape.root, location.rank, location.index)
        {
            Some(index) => Location {
                buffer: Buffer::Output,
                index,
                ..location
            },
            None => location,
        }
    }

    fn read(&mut self, id: usize, location: Location, at: &Site) -> Result<(), Defect> {
        let clock = &self.threads[id].clock;
        let cell = self.cells.entry(location).or_default();
        if let Some(write) = cell.write.filter(|event| clock[event.0] < event.1) {
            return Err(self.race(at, "reads", location, write, "write"));
        }
        cell.reads.push((id, clock[id]));
        Ok(())
    }

    fn write(
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
        Defect::Race {
            at: at.clone(),
            access,
            place,
            other,
            others_access,
        }
    }

    fn tick(&mut self, id: usize) {
        self.threads[id].clock[id] += 1;
    }

    fn deadlock(&self) -> Defect {
        let stuck = self
            .threads
            .iter()
            .filter(|t| t.call < self.steps.len() && !t.done);
        let describe = |thread: &Thread| {
            let program = &self.steps[thread.call].0.programs[thread.rank];
            match thread
                .next
                .and_then(|next| Some((next, program.workers.get(thread.worker)?.get(next)?)))
            {
                Some((next, instruction)) => site_of(thread, next, instruction).to_string(),
                None => format!(
                    "rank {} waits for a former epoch to be finished",
                    thread.rank
                ),
            }
        };
        Defect::Deadlock {
            waiting: stuck.map(describe).take(16).collect(),
        }
    }

    fn check_unmatched(&self) -> Result<(), Defect> {
        let mut left: Vec<_> = self
            .semaphores
            .iter()
            .filter(|(_, word)| word.consumed < word.signals.len())
            .map(|(key, word)| (*key, word.signals.len() - word.consumed))
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
        self.workers_of
            .iter()
            .all(|workers| knows(&self.threads[workers[0]].clock))
    }
}

fn site_of(thread: &Thread, next: usize, instruction: &Instruction) -> Site {
    site(thread.rank, thread.worker, next, instruction)
}

fn application(rank: usize, text: &str) -> Site {
    Site {
        rank,
        worker: 0,
        instruction: None,
        text: text.to_owned(),
    }
}

fn join(clock: &mut Clock, other: &Clock) {
    for (mine, theirs) in clock.iter_mut().zip(other) {
        *mine = (*mine).max(*theirs);
    }
}

fn ports_of(steps: &[Step<'_>], first: usize) -> HashMap<(usize, usize, usize), usize> {
    let mut ports = HashMap::new();
    for (plan, ..) in steps {
        for (rank, program) in plan.programs.iter().enumerate() {
            for (worker, list) in program.workers.iter().enumerate() {
                for instruction in list {
                    if let Instruction::Put { port, .. } = instruction {
                        let id = first + ports.len();
                        ports.entry((rank, worker, *port)).or_insert(id);
                    }
                }
            }
        }
    }
    ports
}
