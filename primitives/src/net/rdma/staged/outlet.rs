//! The sending half: from the device, or from memory that the NIC reaches, to the peer's rings or its memory.
//!
//! ```text
//!   tasks ──cut──► steps: pieces whose copies are underway, signals ──send, in order──► lanes
//!           room in the rings?                              landed?
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::connection::{Connection, Job};
use super::super::lane::Queue;
use super::super::wire::RingEnd;
use super::{GRAIN, Head, PIECE, RECORD, Ring};
use crate::gpu::CopyQueue;
use crate::net::Region;
use crate::net::copies::{Copier, Copies};
use crate::sys::verbs::{Local, Op, Work};

/// A transfer whose ranges were checked.
#[derive(Clone, Debug)]
pub(in crate::net::rdma) struct Task {
    pub from: Source,
    pub to: Target,
    pub bytes: u64,
    pub signal: Option<u32>,
}

/// Where bytes come from.
#[derive(Clone, Debug)]
pub(in crate::net::rdma) enum Source {
    /// Memory that the NICs reach, by their keys; and whether the processor does.
    Direct {
        address: u64,
        keys: Vec<u32>,
        on_host: bool,
    },
    Staged {
        number: u32,
        region: Arc<dyn Region>,
        offset: u64,
    },
}

/// Where they go.
#[derive(Clone, Debug)]
pub(in crate::net::rdma) enum Target {
    Direct { address: u64, keys: Vec<u32> },
    Staged { memory: u32, offset: u64 },
}

/// What goes to one peer.
#[derive(Debug)]
pub(in crate::net::rdma) struct Outlet<C = CopyQueue> {
    /// None where the transport has no GPU.
    copies: Option<Copies<u32, C>>,
    lanes: Vec<OutLane>,
    tasks: VecDeque<Task>,
    /// Bytes of the first task that are cut.
    cut: u64,
    steps: VecDeque<Step>,
    /// The transfer whose pieces are being sent.
    transfer: Option<u64>,
    /// Where the search for a lane begins.
    turn: usize,
}

/// Rings of a lane. Positions count bytes for ever.
#[derive(Debug)]
pub(in crate::net::rdma) struct OutLane {
    own: Ring,
    /// Bytes of the own ring that were taken. (Up to where it is free again says the lane.)
    taken: u64,
    peer: Option<RingEnd>,
    /// Bytes of the peer's ring that were taken.
    sent: u64,
    /// Up to where it is free again.
    credit: u64,
    records: u64,
}

#[derive(Debug)]
enum Step {
    Piece(Piece),
    /// All pieces of a transfer were sent.
    End(Option<u32>),
    /// A transfer between memories that NICs reach.
    Whole(Task),
}

/// A piece of a transfer.
#[derive(Debug)]
struct Piece {
    lane: usize,
    /// When its copy has landed.
    ready: u64,
    /// The requests, in order.
    works: [Option<Work>; 2],
    /// Bytes of the own ring that are free when they are done.
    frees: u64,
}

/// How much goes over which lane.
#[derive(Clone, Copy, Debug)]
struct Cut {
    lane: usize,
    bytes: u64,
}

/// What stops an outlet.
#[derive(Debug)]
pub(in crate::net::rdma) struct Stopped {
    pub lane: usize,
    pub cause: String,
}

impl OutLane {
    pub(in crate::net::rdma) fn new(own: Ring, peer: Option<RingEnd>) -> Self {
        Self { own, taken: 0, peer, sent: 0, credit: 0, records: 0 }
    }

    /// Bytes of the two rings that are free, and of these in a row from where the next piece begins. The peer's only if it has one.
    fn room(&self, freed: u64) -> [(u64, u64); 2] {
        let own = self.own.bytes - (self.taken - freed);
        let own = (own, Ring::row(self.own.bytes, self.taken));
        let Some(peer) = &self.peer else { return [own, (0, 0)] };
        let bytes = u64::from(peer.bytes);
        [own, (bytes - (self.sent - self.credit), Ring::row(bytes, self.sent))]
    }
}

impl<C: Copier> Outlet<C> {
    /// With rings for each lane of the connection.
    pub(in crate::net::rdma) fn new(copier: Option<C>, lanes: Vec<OutLane>) -> Self {
        let (tasks, steps) = (VecDeque::new(), VecDeque::new());
        let copies = copier.map(Copies::new);
        Self { copies, lanes, tasks, cut: 0, steps, transfer: None, turn: 0 }
    }

    /// Whether nothing waits here: then what needs no ring may go to the lanes at once.
    pub(in crate::net::rdma) fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.steps.is_empty()
    }

    /// Whether there is what a transfer needs: copies out of staged memory, rings of the peer's for such memory there.
    pub(in crate::net::rdma) fn can(&self, task: &Task) -> bool {
        (self.copies.is_some() || !task.from.is_staged())
            && (!task.to.is_staged() || self.lanes.iter().all(|lane| lane.peer.is_some()))
    }

    /// Puts a transfer behind the others.
    pub(in crate::net::rdma) fn push(&mut self, task: Task) {
        self.tasks.push_back(task);
    }

    /// Whether something that is not sent has bytes of this memory.
    pub(in crate::net::rdma) fn reads(
        &self,
        number: u32,
        addresses: &std::ops::Range<u64>,
    ) -> bool {
        let steps = self.steps.iter().any(|step| match step {
            Step::Whole(task) => task.reads(number, addresses),
            // The works of a piece that was copied name the ring.
            Step::Piece(Piece { works: [Some(work), _], .. }) => {
                addresses.contains(&work.local.address)
            }
            _ => false,
        });
        let copies = self.copies.as_ref();
        steps
            || self.tasks.iter().any(|task| task.reads(number, addresses))
            || copies.is_some_and(|copies| copies.uses(|kept| *kept == number))
    }

    /// Bytes of the peer's rings that were taken, since the beginning.
    #[cfg(test)]
    pub(super) fn lanes_taken(&self) -> Vec<u64> {
        self.lanes.iter().map(|lane| lane.sent).collect()
    }

    /// Waits for copies that are underway: their memory may go then. That takes no longer than copies do.
    pub(in crate::net::rdma) fn finish(&mut self) {
        self.copies.iter_mut().for_each(Copies::finish);
    }

    /// Goes on as far as there is room; whether anything went. `credited` says up to where a ring of the peer's is free.
    pub(in crate::net::rdma) fn pump<Q: Queue>(
        &mut self,
        connection: &mut Connection<Q>,
        credited: impl Fn(usize) -> u64,
    ) -> Result<bool, Stopped> {
        if self.is_empty() {
            return Ok(false);
        }
        self.take_credits(credited)?;
        let landed = match &mut self.copies {
            Some(copies) => copies.look().map_err(|cause| Stopped { lane: 0, cause })?,
            None => false,
        };
        let cut = self.cut(connection);
        Ok(self.send(connection)? | cut | landed)
    }

    fn take_credits(&mut self, credited: impl Fn(usize) -> u64) -> Result<(), Stopped> {
        for (i, lane) in self.lanes.iter_mut().enumerate().filter(|(_, lane)| lane.peer.is_some()) {
            let credit = credited(i);
            if credit > lane.sent || credit < lane.credit {
                let (sent, before) = (lane.sent, lane.credit);
                let cause = format!(
                    "the peer says it has taken {credit} bytes, of {sent} that were sent; before it said {before}"
                );
                return Err(Stopped { lane: i, cause });
            }
            lane.credit = credit;
        }
        Ok(())
    }

    /// Makes steps of tasks, and begins their copies, as far as rings have room.
    fn cut<Q: Queue>(&mut self, connection: &Connection<Q>) -> bool {
        let mut any = false;
        while let Some(task) = self.tasks.pop_front() {
            if !task.is_staged() {
                self.steps.push_back(Step::Whole(task));
                continue;
            }
            while self.cut < task.bytes {
                let Some(cut) = self.choose(connection, &task) else {
                    self.tasks.push_front(task);
                    return any;
                };
                let piece = self.piece(connection, &task, cut);
                self.steps.push_back(Step::Piece(piece));
                self.cut += cut.bytes;
                any = true;
            }
            self.cut = 0;
            self.steps.push_back(Step::End(task.signal));
        }
        any
    }

    /// The lane with the most room of those that have enough; of several, each in turn.
    fn choose<Q: Queue>(&mut self, connection: &Connection<Q>, task: &Task) -> Option<Cut> {
        let (lanes, turn) = (self.lanes.len(), self.turn);
        let left = task.bytes - self.cut;
        let cut = |lane: usize| {
            let freed = connection.lanes[lane].freed();
            let [own, peer] = self.lanes[lane].room(freed);
            let bytes = self.lanes[lane].fits(task, left, [own, peer])?;
            let bytes = bytes.min(connection.longest() - Head::BYTES);
            Some((if task.to.is_staged() { peer.0 } else { own.0 }, Cut { lane, bytes }))
        };
        let mut best: Option<(u64, Cut)> = None;
        for found in (0..lanes).filter_map(|i| cut((turn + i) % lanes)) {
            if best.is_none_or(|(room, _)| found.0 > room) {
                best = Some(found);
            }
        }
        let (_, cut) = best?;
        self.turn = cut.lane + 1;
        Some(cut)
    }

    /// Takes the rings' bytes for a piece, begins its copy, and says what is to be written.
    fn piece<Q: Queue>(&mut self, connection: &Connection<Q>, task: &Task, cut: Cut) -> Piece {
        let Cut { lane: i, bytes } = cut;
        let (at, staged) = (self.cut, task.from.is_staged());
        let head = if task.to.is_staged() { Head::BYTES } else { 0 };
        let own = self.lanes[i].own;
        let place = self.lanes[i].taken % own.bytes;
        let frees = (head + if staged { bytes } else { 0 }).next_multiple_of(GRAIN);
        self.lanes[i].taken += frees;
        let ready = self.fetch(task, own.device + place + head, bytes);
        let (data, on_host) = match &task.from {
            Source::Direct { address, keys, on_host } => {
                let (address, key) = (address + at, keys.get(i).copied().unwrap_or(0));
                (Local { address, bytes: bytes as u32, key }, *on_host)
            }
            Source::Staged { .. } => {
                let (address, key) = (own.host + place + head, own.key);
                (Local { address, bytes: bytes as u32, key }, true)
            }
        };
        let work = |op, local: Local, on_host, remote, key| {
            let inline = on_host && connection.is_inline(u64::from(local.bytes));
            Work { id: 0, op, local, remote, key, signalled: false, inline }
        };
        let works = match &task.to {
            Target::Direct { address, keys } => {
                let key = keys.get(i).copied().unwrap_or(0);
                [Some(work(Op::Write, data, on_host, address + at, key)), None]
            }
            Target::Staged { memory, offset } => {
                let begin = own.host + place;
                let (remote, key) = self.lanes[i].write_head(begin, *memory, bytes, offset + at);
                let head = Local { address: begin, bytes: Head::BYTES as u32, key: own.key };
                let all = Local { bytes: (Head::BYTES + bytes) as u32, ..head };
                let last = |local| work(Op::WriteImm(RECORD), local, true, remote, key);
                if staged {
                    [Some(last(all)), None]
                } else {
                    let data = work(Op::Write, data, on_host, remote + Head::BYTES, key);
                    [Some(data), Some(last(head))]
                }
            }
        };
        Piece { lane: i, ready, works, frees }
    }

    /// Begins the copy of a piece to its place in a ring, if it is staged; when it has landed.
    fn fetch(&mut self, task: &Task, to: u64, bytes: u64) -> u64 {
        let Source::Staged { number, region, offset } = &task.from else { return 0 };
        let Some(copies) = &mut self.copies else { return 0 };
        let from = region.address() as u64 + offset + self.cut;
        // SAFETY: the range was checked; `forget` waits for copies out of what it forgets; the ring's part is not taken again before
        // the request that reads it is done.
        unsafe { copies.copy(to, from, bytes as usize, *number) };
        copies.begun()
    }

    /// Gives the lanes what is ready, in order.
    fn send<Q: Queue>(&mut self, connection: &mut Connection<Q>) -> Result<bool, Stopped> {
        let landed = self.copies.as_ref().map_or(0, Copies::landed);
        let failed = |(lane, error): (usize, std::io::Error)| {
            let cause = format!("posting requests: {error}");
            Stopped { lane, cause }
        };
        let mut any = false;
        while let Some(step) = self.steps.pop_front() {
            match step {
                Step::Piece(piece) if piece.ready > landed => {
                    self.steps.push_front(Step::Piece(piece));
                    break;
                }
                Step::Piece(Piece { lane, works, frees, .. }) => {
                    let transfer = *self.transfer.get_or_insert_with(|| connection.begin());
                    let last = if works[1].is_some() { 1 } else { 0 };
                    for (i, work) in works.into_iter().enumerate() {
                        // The ring is read until the last is done.
                        let frees = if i == last { frees } else { 0 };
                        work.into_iter()
                            .for_each(|w| connection.push(lane, Some(transfer), frees, w));
                    }
                }
                Step::End(signal) => {
                    let transfer = self.transfer.take();
                    let transfer = transfer.unwrap_or_else(|| connection.begin());
                    connection.end(transfer, signal);
                }
                Step::Whole(task) => connection.post(&task.job()).map_err(failed)?,
            }
            any = true;
        }
        connection.flush_idle().map_err(failed)?;
        Ok(any)
    }
}

impl OutLane {
    /// Bytes of a task's next piece here, if the rings have room for all of it. A row that ends sooner makes it shorter.
    fn fits(&self, task: &Task, left: u64, [own, peer]: [(u64, u64); 2]) -> Option<u64> {
        let head = if task.to.is_staged() { Head::BYTES } else { 0 };
        let mut bytes = left;
        if task.from.is_staged() {
            bytes = bytes.min(self.own.bytes / PIECE).min(own.1 - head);
        }
        if task.to.is_staged() {
            let ring = u64::from(self.peer.as_ref()?.bytes);
            bytes = bytes.min(ring / PIECE).min(peer.1 - head);
        }
        let in_own = (head + if task.from.is_staged() { bytes } else { 0 }).next_multiple_of(GRAIN);
        let fits = in_own <= own.0 && (!task.to.is_staged() || Head::record(bytes) <= peer.0);
        fits.then_some(bytes)
    }

    /// Writes a record's head to its place in the own ring; where the record goes at the peer, and with which key.
    fn write_head(&mut self, at: u64, memory: u32, bytes: u64, offset: u64) -> (u64, u32) {
        let head = Head { number: self.records, memory, bytes: bytes as u32, offset };
        // SAFETY: a place in the own ring that was taken for this, and that no request reads.
        unsafe { (at as *mut [u8; Head::BYTES as usize]).write(head.to_bytes()) };
        let Some(peer) = &self.peer else { return (0, 0) };
        let remote = peer.address + self.sent % u64::from(peer.bytes);
        self.records += 1;
        self.sent += Head::record(bytes);
        (remote, peer.key)
    }
}

impl Task {
    /// A signal alone.
    pub(in crate::net::rdma) fn signal(signal: Option<u32>) -> Self {
        let from = Source::Direct { address: 0, keys: Vec::new(), on_host: true };
        let to = Target::Direct { address: 0, keys: Vec::new() };
        Self { from, to, bytes: 0, signal }
    }

    fn is_staged(&self) -> bool {
        self.bytes > 0 && (self.from.is_staged() || self.to.is_staged())
    }

    fn reads(&self, memory: u32, addresses: &std::ops::Range<u64>) -> bool {
        match &self.from {
            Source::Direct { address, .. } => self.bytes > 0 && addresses.contains(address),
            Source::Staged { number, .. } => *number == memory,
        }
    }

    /// As a job of the lanes: only for tasks that need no ring.
    fn job(&self) -> Job<'_> {
        let Source::Direct { address: from, keys: from_keys, on_host } = &self.from else {
            return Job { signal: self.signal, ..Job::default() };
        };
        let Target::Direct { address: to, keys: to_keys } = &self.to else {
            return Job { signal: self.signal, ..Job::default() };
        };
        Job {
            from: *from,
            from_keys,
            to: *to,
            to_keys,
            bytes: self.bytes,
            signal: self.signal,
            on_host: *on_host,
        }
    }
}

impl Source {
    pub(in crate::net::rdma) fn is_staged(&self) -> bool {
        matches!(self, Self::Staged { .. })
    }
}

impl Target {
    pub(in crate::net::rdma) fn is_staged(&self) -> bool {
        matches!(self, Self::Staged { .. })
    }
}
