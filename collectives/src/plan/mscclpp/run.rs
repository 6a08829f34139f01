//! Goes through all thread blocks' actions once, in an order that their waits allow, and writes
//! down our instructions for them.
//!
//! One order is enough: where another would read something else, the plan has a race, and the
//! verifier finds that in what is written here.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use super::super::{Buffer, Instruction, Place, Whose};
use super::decode::{Action, Block, Operand};
use super::layout::Cell;
use super::memory::{Memory, Packet, PacketUse, Read, Value};
use super::names::Channel;
use super::semaphores::{Meetings, Semaphores, Use};
use super::{At, MscclppError};

/// An instruction, or what becomes one when all is known.
#[derive(Debug)]
pub(super) enum Item {
    Plain(Instruction),
    /// The transfer of this number.
    Put(usize),
    /// Until the packets that this transfer brings are there.
    Arrived(usize),
}

/// A transfer by a port.
#[derive(Debug)]
pub(super) struct Put {
    pub(super) rank: usize,
    pub(super) sender: usize,
    pub(super) channel: Channel,
    pub(super) part: usize,
    pub(super) to: Place,
    pub(super) from: Place,
    pub(super) then_signal: Option<usize>,
    /// Of packets: the thread block that reads them.
    pub(super) reader: Option<usize>,
    pub(super) packets: bool,
}

/// A thread block on its way.
#[derive(Debug, Default)]
pub(super) struct Progress {
    next: usize,
    /// Has come to the barrier that it is at.
    pub(super) arrived: bool,
    pub(super) visits: HashMap<usize, usize>,
    pub(super) releases: HashMap<usize, usize>,
    pub(super) acquisitions: HashMap<usize, usize>,
    /// The last transfer on each port channel, if no signal has followed it.
    unsignalled: HashMap<Channel, usize>,
    /// Port channels with transfers since their last flush.
    unflushed: BTreeSet<usize>,
    ports: HashMap<Channel, usize>,
}

/// One direction of a channel.
#[derive(Debug, Default)]
struct Line {
    /// Semaphores of the signals that nobody has waited for yet.
    signals: VecDeque<usize>,
    signaller: Option<usize>,
    waiter: Option<usize>,
}

pub(super) struct Run<'a, 'l> {
    blocks: Vec<Block<'a>>,
    pub(super) progress: Vec<Progress>,
    pub(super) meetings: Meetings,
    pub(super) memory: Memory<'l>,
    pub(super) semaphores: Semaphores,
    /// By signalling rank, waiting rank, type and ordinal.
    lines: HashMap<(usize, usize, bool, usize), Line>,
    /// Tokens on their way, by semaphore, giver and taker.
    pub(super) tokens: HashMap<(usize, usize, usize), usize>,
    /// What each thread block does.
    pub(super) lists: Vec<Vec<Item>>,
    pub(super) puts: Vec<Put>,
    /// Packet slots that somebody reads.
    pub(super) read_packets: HashSet<(usize, usize)>,
}

/// Whether an action could be done.
#[derive(PartialEq)]
pub(super) enum Turn {
    Done,
    Blocked,
}

impl<'a, 'l> Run<'a, 'l> {
    pub(super) fn new(blocks: Vec<Block<'a>>, meetings: Meetings, memory: Memory<'l>) -> Self {
        let count = blocks.len();
        Self {
            blocks,
            progress: std::iter::repeat_with(Progress::default).take(count).collect(),
            meetings,
            memory,
            semaphores: Semaphores::default(),
            lines: HashMap::new(),
            tokens: HashMap::new(),
            lists: std::iter::repeat_with(Vec::new).take(count).collect(),
            puts: Vec::new(),
            read_packets: HashSet::new(),
        }
    }

    /// Goes through all actions.
    pub(super) fn finish(&mut self) -> Result<(), MscclppError> {
        let mut progressed = true;
        while progressed {
            progressed = false;
            for id in 0..self.blocks.len() {
                while self.step(id)? == Turn::Done {
                    progressed = true;
                }
            }
        }
        let stuck = self.blocks.iter().zip(&self.progress);
        let mut stuck = stuck.filter_map(|(block, progress)| block.actions.get(progress.next));
        match stuck.next() {
            Some((at, _)) => Err(at.wrong("it is waited for for ever: nobody can go on")),
            None => {
                self.flush_all();
                Ok(())
            }
        }
    }

    /// The rank of a thread block.
    pub(super) fn rank_of(&self, block: usize) -> usize {
        self.blocks[block].rank
    }

    fn step(&mut self, id: usize) -> Result<Turn, MscclppError> {
        let rank = self.blocks[id].rank;
        let next = self.progress[id].next;
        let Some((at, action)) = self.blocks[id].actions.get_mut(next) else {
            return Ok(Turn::Blocked);
        };
        let at = *at;
        let mut action = std::mem::replace(action, Action::Release(0));
        let turn = match &mut action {
            Action::Move { to, from, reduce } => self.move_chunk(id, at, to, from, *reduce),
            Action::Put { channel, to, from } => self.put(id, at, *channel, *to, *from),
            Action::Signal(channel) => self.signal(id, at, *channel),
            Action::Wait(channel) => self.wait(id, at, *channel),
            Action::Flush(channel) => {
                self.flush(id, *channel);
                Ok(Turn::Done)
            }
            Action::Barrier { id: barrier, .. } => self.barrier(id, rank, *barrier),
            Action::Acquire(semaphore) => self.acquire(id, rank, *semaphore),
            Action::Release(semaphore) => self.release(id, rank, *semaphore),
        }?;
        self.blocks[id].actions[next].1 = action;
        if turn == Turn::Done {
            self.progress[id].next += 1;
        }
        Ok(turn)
    }

    fn emit(&mut self, id: usize, instruction: Instruction) {
        self.lists[id].push(Item::Plain(instruction));
    }

    /// A signal, together with the one before if that is of the same semaphore.
    pub(super) fn emit_signal(&mut self, id: usize, semaphore: usize, peer: usize) {
        if let Some(Item::Plain(Instruction::Signal { semaphore: last, to })) =
            self.lists[id].last_mut()
            && *last == semaphore
            && !to.contains(&peer)
        {
            return to.push(peer);
        }
        let to = vec![peer];
        self.emit(id, Instruction::Signal { semaphore, to });
    }

    pub(super) fn emit_wait(&mut self, id: usize, semaphore: usize, peer: usize) {
        if let Some(Item::Plain(Instruction::Wait { semaphore: last, from })) =
            self.lists[id].last_mut()
            && *last == semaphore
            && !from.contains(&peer)
        {
            return from.push(peer);
        }
        let from = vec![peer];
        self.emit(id, Instruction::Wait { semaphore, from });
    }

    fn line(&mut self, from: usize, to: usize, channel: Channel) -> &mut Line {
        let key = (from, to, channel.port, channel.ordinal);
        self.lines.entry(key).or_default()
    }

    fn signal(&mut self, id: usize, at: At<'_>, channel: Channel) -> Result<Turn, MscclppError> {
        let (rank, Channel { port, peer, ordinal }) = (self.blocks[id].rank, channel);
        let put = self.progress[id].unsignalled.remove(&channel);
        let what = match put {
            Some(_) => Use::Arrival { ordinal },
            None => Use::Channel { port, ordinal },
        };
        let semaphore = self.semaphores.index(rank, peer, what)?;
        let line = self.line(rank, peer, channel);
        if *line.signaller.get_or_insert(id) != id {
            return Err(
                at.wrong(format!("two thread blocks signal rank {peer} by the same channel"))
            );
        }
        line.signals.push_back(semaphore);
        match put {
            Some(put) => self.puts[put].then_signal = Some(semaphore),
            None => self.emit_signal(id, semaphore, peer),
        }
        Ok(Turn::Done)
    }

    fn wait(&mut self, id: usize, at: At<'_>, channel: Channel) -> Result<Turn, MscclppError> {
        let rank = self.blocks[id].rank;
        let line = self.line(channel.peer, rank, channel);
        if *line.waiter.get_or_insert(id) != id {
            return Err(at.wrong(format!(
                "two thread blocks wait for rank {} by the same channel",
                channel.peer
            )));
        }
        let Some(semaphore) = line.signals.pop_front() else {
            return Ok(Turn::Blocked);
        };
        self.emit_wait(id, semaphore, channel.peer);
        Ok(Turn::Done)
    }

    /// Our number for a port channel: this thread block's, in the order of their first use.
    fn port(&mut self, id: usize, channel: Channel) -> usize {
        let ports = &mut self.progress[id].ports;
        let next = ports.len();
        *ports.entry(channel).or_insert(next)
    }

    fn flush(&mut self, id: usize, channel: Channel) {
        let port = self.port(id, channel);
        if self.progress[id].unflushed.remove(&port) {
            self.emit(id, Instruction::Flush { port });
        }
    }

    /// At its end every thread block has its transfers' sources back.
    fn flush_all(&mut self) {
        for id in 0..self.blocks.len() {
            for port in std::mem::take(&mut self.progress[id].unflushed) {
                self.emit(id, Instruction::Flush { port });
            }
        }
    }

    /// The packets that an operand names, if they have been written.
    fn packets_are_there(&self, from: &[Operand]) -> bool {
        from.iter().all(|operand| match operand {
            Operand::Packet { rank, chunk } => self.memory.packets.contains_key(&(*rank, *chunk)),
            _ => true,
        })
    }

    fn move_chunk(
        &mut self,
        id: usize,
        at: At<'_>,
        to: &[Operand],
        from: &[Operand],
        reduce: bool,
    ) -> Result<Turn, MscclppError> {
        if !self.packets_are_there(from) {
            return Ok(Turn::Blocked);
        }
        let mut sources = Vec::with_capacity(from.len());
        for operand in from {
            sources.push(self.load(id, at, *operand)?);
        }
        let part = self.part(at, to, &sources)?;
        let mut value = match reduce {
            true => {
                // The format leaves the order to its executor; ours is the order of the ranks.
                sources.sort_by_key(|source| source.value.ranks.first().copied());
                let values: Vec<Value> = sources.iter().map(|s| s.value.clone()).collect();
                self.memory.sum(&values)?
            }
            false => sources[0].value.clone(),
        };
        value.part = Some(part);
        let mut targets = Vec::with_capacity(to.len());
        for operand in to {
            targets.push(self.store(id, at, *operand, &value)?);
        }
        self.emit(
            id,
            Instruction::Move {
                part,
                to: targets,
                from: sources.into_iter().map(|source| source.place).collect(),
                reduce,
            },
        );
        Ok(Turn::Done)
    }

    /// The part of the window that a move is of: all users' buffers in it must say the same.
    fn part(&self, at: At<'_>, to: &[Operand], from: &[Read]) -> Result<usize, MscclppError> {
        let mut part = None;
        let users = from.iter().filter(|source| source.place.is_user());
        let read = users.filter_map(|source| source.value.part);
        let written = to.iter().filter_map(|operand| match operand {
            Operand::Plain(cell) => cell.part(),
            Operand::Group { buffer, chunk } => {
                let cell = self.memory.layout.cell(0, *buffer, *chunk);
                cell.ok().and_then(Cell::part)
            }
            _ => None,
        });
        for other in read.chain(written) {
            if *part.get_or_insert(other) != other {
                return Err(at.wrong("it moves a chunk to another place within its block"));
            }
        }
        let held = from.iter().find_map(|source| source.value.part);
        Ok(part.or(held).unwrap_or(0))
    }

    fn load(&mut self, id: usize, at: At<'_>, operand: Operand) -> Result<Read, MscclppError> {
        match operand {
            Operand::Plain(cell) => Ok(self.memory.read(cell)),
            Operand::Packet { rank, chunk } => match self.memory.packets.get(&(rank, chunk)) {
                Some(packet) => {
                    let packet = packet.clone();
                    self.receive(id, at, rank, packet)
                }
                None => Err(at.wrong("it reads packets that nobody writes")),
            },
            Operand::Group { buffer, chunk } => {
                let mut all = Vec::with_capacity(self.memory.layout.world);
                for rank in 0..self.memory.layout.world {
                    let cell = self.memory.layout.cell(rank, buffer, chunk);
                    let cell = cell.map_err(|problem| at.wrong(problem))?;
                    all.push(self.memory.read(cell));
                }
                let values: Vec<Value> = all.iter().map(|read| read.value.clone()).collect();
                let place = same_for_all(at, all.iter().map(|read| read.place))?;
                let mut value = self.memory.sum(&values)?;
                value.part = values[0].part;
                Ok(Read { place, value })
            }
            Operand::GroupPacket { .. } => Err(at.wrong("packets of a group are not read")),
        }
    }

    fn receive(
        &mut self,
        id: usize,
        at: At<'_>,
        rank: usize,
        packet: Packet,
    ) -> Result<Read, MscclppError> {
        let Some(put) = packet.put else {
            self.read_packets.insert((rank, packet.read.place.index));
            return Ok(packet.read);
        };
        if *self.puts[put].reader.get_or_insert(id) != id {
            return Err(at.wrong("two thread blocks read packets that one port's transfer brought"));
        }
        self.lists[id].push(Item::Arrived(put));
        Ok(packet.read)
    }

    fn store(
        &mut self,
        id: usize,
        at: At<'_>,
        operand: Operand,
        value: &Value,
    ) -> Result<Place, MscclppError> {
        let writer = self.blocks[id].rank;
        let ranks = 0..self.memory.layout.world;
        match operand {
            Operand::Plain(cell) => Ok(self.memory.write(cell, value)),
            Operand::Packet { rank, chunk } => {
                let slot = PacketUse::Chunk(chunk);
                Ok(self.memory.send(rank, chunk, slot, value, writer))
            }
            Operand::Group { buffer, chunk } => {
                let mut places = Vec::with_capacity(ranks.len());
                for rank in ranks {
                    let cell = self.memory.layout.cell(rank, buffer, chunk);
                    let cell = cell.map_err(|problem| at.wrong(problem))?;
                    places.push(self.memory.write(cell, value));
                }
                same_for_all(at, places.into_iter())
            }
            Operand::GroupPacket { chunk } => {
                let slot = PacketUse::Group(chunk);
                let send = |rank| self.memory.send(rank, chunk, slot, value, writer);
                let places: Vec<Place> = ranks.map(send).collect();
                same_for_all(at, places.into_iter())
            }
        }
    }

    fn put(
        &mut self,
        id: usize,
        at: At<'_>,
        channel: Channel,
        to: Operand,
        from: Operand,
    ) -> Result<Turn, MscclppError> {
        if !self.packets_are_there(&[from]) {
            return Ok(Turn::Blocked);
        }
        let read = self.load(id, at, from)?;
        let part = match to {
            Operand::Plain(_) => self.part(at, &[to], std::slice::from_ref(&read))?,
            _ => read.value.part.unwrap_or(0),
        };
        let mut value = read.value;
        value.part = Some(part);
        let place = self.stage((id, at.threadblock), from, read.place, part, &value);
        let number = self.puts.len();
        let (to, packets) = match to {
            Operand::Plain(cell) => (self.memory.write(cell, &value), false),
            Operand::Packet { rank, chunk } => {
                (self.memory.arrive(rank, chunk, &value, number), true)
            }
            _ => return Err(at.wrong("a port does not lead to a group")),
        };
        self.puts.push(Put {
            rank: self.blocks[id].rank,
            sender: id,
            channel,
            part,
            to,
            from: place,
            then_signal: None,
            reader: None,
            packets,
        });
        self.lists[id].push(Item::Put(number));
        let port = self.port(id, channel);
        self.progress[id].unflushed.insert(port);
        if !packets {
            self.progress[id].unsignalled.insert(channel, number);
        }
        Ok(Turn::Done)
    }

    /// A port sends plain memory only: packets are read into some first.
    fn stage(
        &mut self,
        (id, threadblock): (usize, usize),
        from: Operand,
        place: Place,
        part: usize,
        value: &Value,
    ) -> Place {
        let (Operand::Packet { rank, chunk }, Buffer::Packets) = (from, place.buffer) else {
            return place;
        };
        let (staged, is_there) = self.memory.staged(rank, threadblock, chunk, value);
        if is_there {
            return staged;
        }
        let copy = Instruction::Move { part, to: vec![staged], from: vec![place], reduce: false };
        self.emit(id, copy);
        staged
    }

    /// The number of the port that a transfer goes over.
    pub(super) fn port_of(&self, block: usize, put: usize) -> usize {
        let channel = &self.puts[put].channel;
        self.progress[block].ports.get(channel).copied().unwrap_or(0)
    }
}

/// The group's place, if the ranks' are alike.
fn same_for_all(
    at: At<'_>,
    mut places: impl Iterator<Item = Place>,
) -> Result<Place, MscclppError> {
    let Some(first) = places.next() else {
        return Err(at.wrong("the group is empty"));
    };
    let alike = |place: Place| Place { whose: first.whose, ..place } == first;
    if !places.all(alike) {
        return Err(at.wrong("the group's chunk is in different places at different ranks"));
    }
    let place = Place { whose: Whose::Group, writer: None, ..first };
    Ok(place)
}
