//! A connection to a peer: how transfers become requests of its lanes.
//!
//! Everything here is arithmetic on addresses that were checked before; nothing touches memory or a NIC, so the tests
//! put queues of their own below it.

use std::collections::VecDeque;
use std::io;

use super::lane::{Lane, Piece, Queue};
use super::options::SignalMode;
use super::wire::Table;
use crate::sys::verbs::{Local, Op, Work};

/// Stripes begin at multiples of so many bytes of the transfer: a page, so that NICs do not share cache lines.
const STRIPE_GRAIN: u64 = 4096;

/// A transfer whose ranges were checked, as addresses and keys.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Job<'a> {
    pub from: u64,
    /// The keys for it, one for each lane (there may be more).
    pub from_keys: &'a [u32],
    pub to: u64,
    pub to_keys: &'a [u32],
    pub bytes: u64,
    pub signal: Option<u32>,
    /// Whether the processor can read it.
    pub on_host: bool,
}

/// How a connection cuts and signals.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub mode: SignalMode,
    /// Transfers of at least so many bytes go over all lanes.
    pub stripe: u64,
    /// Bytes of a request at most.
    pub longest: u32,
    /// Bytes of a request that is copied when it is posted, at most.
    pub inline: u32,
}

/// What a lane needs for signals.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signalling {
    /// The key of the peer's table of semaphores.
    pub key: u32,
    /// Where the former values go that fetch-add brings. Nobody reads them.
    pub sink: Local,
}

#[derive(Debug)]
pub(super) struct Connection<Q> {
    pub(super) lanes: Vec<Lane<Q>>,
    signalling: Vec<Signalling>,
    rules: Rules,
    table: Table,
    left: Left,
    /// Where the search for the lane with the least load begins.
    turn: usize,
    /// Requests of the transfer at hand, by lane.
    parts: Vec<Part>,
}

/// A part of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    lane: usize,
    offset: u64,
    bytes: u32,
}

impl<Q: Queue> Connection<Q> {
    pub(super) fn new(lanes: Vec<(Lane<Q>, Signalling)>, rules: Rules, table: Table) -> Self {
        let (lanes, signalling) = lanes.into_iter().unzip();
        let (left, parts) = (Left::default(), Vec::new());
        Self { lanes, signalling, rules, table, left, turn: 0, parts }
    }

    /// How many semaphores the peer has.
    pub(super) fn semaphores(&self) -> u32 {
        self.table.semaphores
    }

    pub(super) fn mode(&self) -> SignalMode {
        self.rules.mode
    }

    /// Transfers that have left, of all that were posted.
    pub(super) fn sent(&self) -> u64 {
        self.left.first
    }

    /// Whether requests wait for room.
    pub(super) fn is_waiting(&self) -> bool {
        self.lanes.iter().any(Lane::is_waiting)
    }

    /// Whether anything is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.lanes.iter().any(|lane| lane.unfinished() > 0)
    }

    /// Puts a transfer in the lanes' queues, and to the NICs as far as these have little to do. The error names the lane.
    pub(super) fn post(&mut self, job: &Job<'_>) -> Result<(), (usize, io::Error)> {
        self.cut(job.bytes);
        let parts = std::mem::take(&mut self.parts);
        // A transfer without data has left when its signals have.
        let waits_for = if parts.is_empty() { self.signals_of(job) } else { parts.len() };
        let transfer = self.left.begin(waits_for as u32);
        for (i, part) in parts.iter().enumerate() {
            let last = parts[i + 1..].iter().all(|later| later.lane != part.lane);
            let signal = job.signal.filter(|_| last && self.rules.mode == SignalMode::Immediate);
            let write = self.write(job, *part, signal, Some(transfer));
            self.lanes[part.lane].push(write);
        }
        if let Some(semaphore) = job.signal {
            let alone = parts.is_empty().then_some(transfer);
            self.signal(job, semaphore, &parts, alone);
        }
        self.parts = parts;
        self.flush_idle().map(drop)
    }

    /// Hands over what waits, as far as there is room; whether anything was. The error names the lane.
    pub(super) fn flush(&mut self) -> Result<bool, (usize, io::Error)> {
        self.each_lane(Lane::flush)
    }

    /// Begins a transfer whose requests come one after the other, by [`Connection::push`]; its number. It has not left before
    /// [`Connection::end`].
    pub(super) fn begin(&mut self) -> u64 {
        self.left.begin(1)
    }

    /// Puts a request of a transfer, or of none, in a lane's queue. [`Connection::flush_idle`] hands it over.
    pub(super) fn push(&mut self, lane: usize, transfer: Option<u64>, frees: u64, work: Work) {
        transfer.into_iter().for_each(|transfer| self.left.join(transfer));
        self.lanes[lane].push(Piece { work, transfer, frees: frees as u32 });
    }

    /// All requests of a transfer are in the queues. Signals behind them.
    pub(super) fn end(&mut self, transfer: u64, signal: Option<u32>) {
        if let Some(semaphore) = signal {
            self.signal(&Job { signal, ..Job::default() }, semaphore, &[], None);
        }
        self.left.leave(transfer);
    }

    /// Hands over what waits where the NIC has little to do.
    pub(super) fn flush_idle(&mut self) -> Result<bool, (usize, io::Error)> {
        self.each_lane(Lane::flush_if_idle)
    }

    /// Bytes of a request at most.
    pub(super) fn longest(&self) -> u64 {
        u64::from(self.rules.longest)
    }

    /// Whether so many bytes of the host are copied when they are posted.
    pub(super) fn is_inline(&self, bytes: u64) -> bool {
        bytes > 0 && bytes <= u64::from(self.rules.inline)
    }

    fn each_lane(
        &mut self,
        act: impl Fn(&mut Lane<Q>) -> io::Result<bool>,
    ) -> Result<bool, (usize, io::Error)> {
        let mut any = false;
        for (i, lane) in self.lanes.iter_mut().enumerate() {
            any |= act(lane).map_err(|error| (i, error))?;
        }
        Ok(any)
    }

    /// Takes a completion; whether it was one of this lane's.
    pub(super) fn completed(&mut self, lane: usize, sequence: u32) -> bool {
        let left = &mut self.left;
        let lane = self.lanes.get_mut(lane);
        lane.is_some_and(|lane| lane.completed(sequence, |transfer| left.leave(transfer)))
    }

    /// Fills `parts`. Large transfers are cut over all lanes; small ones go to the lane with the least to do.
    fn cut(&mut self, bytes: u64) {
        self.parts.clear();
        let lanes = self.lanes.len();
        let striped = lanes > 1 && bytes >= self.rules.stripe;
        let stripe = if striped { bytes.div_ceil(lanes as u64) } else { bytes };
        let stripe = if striped { stripe.next_multiple_of(STRIPE_GRAIN) } else { stripe };
        let (mut lane, mut offset) = (if striped { 0 } else { self.idlest() }, 0);
        while offset < bytes {
            let end = bytes.min(offset + stripe);
            while offset < end {
                let part = (end - offset).min(u64::from(self.rules.longest));
                self.parts.push(Part { lane, offset, bytes: part as u32 });
                offset += part;
            }
            lane += 1;
        }
    }

    /// The lane with the least load; of several, each in turn.
    fn idlest(&mut self) -> usize {
        let lanes = self.lanes.len();
        let turn = self.turn;
        let all = (0..lanes).map(|i| (turn + i) % lanes);
        let idlest = all.min_by_key(|lane| self.lanes[*lane].load()).unwrap_or(0);
        self.turn = idlest + 1;
        idlest
    }

    fn write(
        &self,
        job: &Job<'_>,
        part: Part,
        signal: Option<u32>,
        transfer: Option<u64>,
    ) -> Piece {
        let key = |keys: &[u32]| keys.get(part.lane).copied().unwrap_or(0);
        let (address, bytes) = (job.from + part.offset, part.bytes);
        let work = Work {
            id: 0,
            op: signal.map_or(Op::Write, Op::WriteImm),
            local: Local { address, bytes, key: key(job.from_keys) },
            remote: job.to + part.offset,
            key: key(job.to_keys),
            signalled: false,
            inline: job.on_host && bytes > 0 && bytes <= self.rules.inline,
        };
        Piece { work, transfer, frees: 0 }
    }

    /// Signals on every lane, as the protocol wants it.
    fn signal(&mut self, job: &Job<'_>, semaphore: u32, parts: &[Part], transfer: Option<u64>) {
        for lane in 0..self.lanes.len() {
            match self.rules.mode {
                SignalMode::FetchAdd => self.add(lane, semaphore, transfer),
                SignalMode::Immediate if parts.iter().any(|part| part.lane == lane) => {}
                SignalMode::Immediate => {
                    let nothing = Part { lane, offset: 0, bytes: 0 };
                    let bare = Job { from_keys: &[], to_keys: &[], to: 0, from: 0, ..*job };
                    let write = self.write(&bare, nothing, Some(semaphore), transfer);
                    self.lanes[lane].push(write);
                }
            }
        }
    }

    /// Counts up the words of a semaphore that this lane stands for.
    fn add(&mut self, lane: usize, semaphore: u32, transfer: Option<u64>) {
        let Signalling { key, sink } = self.signalling[lane];
        for word in words(lane, self.lanes.len(), self.table.lanes as usize) {
            let word = u64::from(semaphore) * u64::from(self.table.lanes) + word as u64;
            let work = Work {
                id: 0,
                op: Op::FetchAdd(1),
                local: sink,
                remote: self.table.address + 8 * word,
                key,
                signalled: false,
                inline: false,
            };
            self.lanes[lane].push(Piece { work, transfer, frees: 0 });
        }
    }

    /// Requests that signal, for a transfer without data.
    fn signals_of(&self, job: &Job<'_>) -> usize {
        match (job.signal, self.rules.mode) {
            (None, _) => 0,
            (Some(_), SignalMode::FetchAdd) => self.table.lanes as usize,
            (Some(_), SignalMode::Immediate) => self.lanes.len(),
        }
    }
}

/// The words of a semaphore that lane `lane` of `lanes` counts up, of a rank that has `words` of them: its own and,
/// if the rank has more NICs than the connection has lanes, those that have none.
pub(super) fn words(lane: usize, lanes: usize, words: usize) -> impl Iterator<Item = usize> {
    (lane..words).step_by(lanes.max(1))
}

/// Which transfers have left their source. They are counted in the order in which they were posted.
#[derive(Debug, Default)]
struct Left {
    /// All before this one have.
    first: u64,
    /// Requests of the others that are under way.
    under_way: VecDeque<u32>,
}

impl Left {
    /// A transfer of so many requests; its number.
    fn begin(&mut self, requests: u32) -> u64 {
        self.under_way.push_back(requests);
        let number = self.first + self.under_way.len() as u64 - 1;
        self.advance();
        number
    }

    /// There is one more request of a transfer that has not left.
    fn join(&mut self, transfer: u64) {
        let at = transfer.wrapping_sub(self.first) as usize;
        if let Some(requests) = self.under_way.get_mut(at) {
            *requests += 1;
        }
    }

    /// A request of this transfer has completed.
    fn leave(&mut self, transfer: u64) {
        let at = transfer.wrapping_sub(self.first) as usize;
        if let Some(requests) = self.under_way.get_mut(at) {
            *requests = requests.saturating_sub(1);
        }
        self.advance();
    }

    fn advance(&mut self) {
        while self.under_way.front() == Some(&0) {
            self.under_way.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests;
