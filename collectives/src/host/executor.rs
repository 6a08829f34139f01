//! Runs prepared programs.
//!
//! One executor belongs to one communicator and knows where all ranks are: the epoch, how often
//! each semaphore was signalled and waited for. None of it is ever reset, and all ranks count
//! alike because all run the same plans in the same order.
//!
//! A program of one worker blocks where it has to wait. Several workers of a rank share the calling
//! thread: each goes on until it would have to wait, then the next one has its turn.

use std::sync::Arc;

use warpmesh_primitives::control::Control;
use warpmesh_primitives::failure::{Failure, FailureKind};
use warpmesh_primitives::memory::SharedMemory;
use warpmesh_primitives::net::Signals;
use warpmesh_primitives::node::{Node, Outgoing};
use warpmesh_primitives::packet::Flag;
use warpmesh_primitives::patience::{Patience, WaitingFor};

use super::away::Far;
use super::fold::{self, Dest, Fold, FoldArgs, Source};
use super::prepare::{Prepared, Step, Target};
use super::tiles::TILE;
use crate::communicator::call::{Address, Board};
use crate::plan::part_range;

/// One call of a collective, as the executor sees it.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) sequence: u64,
    pub(crate) tag: u32,
    /// Bytes of an element, and of an element in the accumulation type.
    pub(crate) size: usize,
    pub(crate) accumulator: usize,
    /// Elements of a cache line.
    pub(crate) grain: usize,
    pub(crate) fold: Fold,
    pub(crate) args: FoldArgs,
    /// Whether contributions are multiplied by their ranks' factors.
    pub(crate) scaled: bool,
    pub(crate) input: *const u8,
    pub(crate) output: *mut u8,
    /// Elements of every block.
    pub(crate) count: usize,
    /// Where blocks lie, in elements, if they are not equal and in a row.
    pub(crate) spans: Option<&'a Spans<'a>>,
    /// Elements of a block that a round covers, and how many rounds there are.
    pub(crate) window: usize,
    pub(crate) rounds: usize,
    /// Non-temporal stores for what goes to users' buffers.
    pub(crate) streaming: bool,
}

/// First element and number of elements of each block.
#[derive(Debug)]
pub(crate) struct Spans<'a> {
    pub(crate) input: &'a [(usize, usize)],
    pub(crate) output: &'a [(usize, usize)],
}

/// A range of elements, resolved for a move: first element within the block's window and count.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    pub(super) first: usize,
    pub(super) count: usize,
}

/// Why a step cannot be done now.
pub(super) struct Blocked {
    pub(super) peer: usize,
    pub(super) expected: u64,
    pub(super) seen: u64,
}

pub(super) enum Stop {
    Blocked(Blocked),
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The state of a rank's side of all collectives.
pub(crate) struct Executor {
    pub(super) node: Arc<Node>,
    /// Where ranks of other hosts signal, if there are any.
    signals: Option<Signals>,
    pub(super) epoch: u64,
    /// Whether the last epoch left this rank knowing that all ranks had started it.
    synchronised: bool,
    /// By semaphore * world + peer.
    sent: Vec<u64>,
    waited: Vec<u64>,
    /// The last call whose description was compared with the peer's.
    compared: Vec<u64>,
    /// Where the peers' buffers of a call are, once looked up.
    remote: Vec<Remote>,
    pub(super) memories: Vec<Option<Registered>>,
    /// Where buffers of a call are in the numbers between hosts, once looked up.
    pub(super) far: Vec<Far>,
    pub(super) sources: Vec<Source>,
    pub(super) dests: Vec<Dest>,
    pub(super) copies: Vec<*mut u8>,
    pub(super) tiles: Vec<u64>,
    /// Each worker's next step.
    next: Vec<usize>,
}

// SAFETY: the pointers are scratch space of a running call; between calls they are not followed.
unsafe impl Send for Executor {}

/// Memory that all ranks have registered, each its own.
pub(super) struct Registered {
    memory: SharedMemory,
    /// Its number between hosts, if there are several.
    pub(super) number: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Remote {
    sequence: u64,
    input: usize,
    output: usize,
    scale: u64,
}

impl Executor {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        let world = node.world();
        let counters = world * warpmesh_primitives::control::SEMAPHORES;
        Self {
            signals: node.signals().cloned(),
            node,
            epoch: 0,
            synchronised: true,
            sent: vec![0; counters],
            waited: vec![0; counters],
            compared: vec![0; world],
            remote: vec![Remote::default(); world],
            memories: Vec::new(),
            far: vec![Far::default(); world],
            sources: Vec::new(),
            dests: Vec::new(),
            copies: Vec::new(),
            tiles: Vec::new(),
            next: Vec::new(),
        }
    }

    /// Makes room for a program, so that running it allocates nothing.
    pub(crate) fn reserve(&mut self, prepared: &Prepared) {
        let operands = prepared.places.len();
        self.sources.reserve(operands);
        self.dests.reserve(operands);
        self.copies.reserve(operands);
        self.next.reserve(prepared.workers.len());
        let tiles = (prepared.most_packets + 1) * TILE;
        self.tiles.resize(self.tiles.len().max(tiles), 0);
    }

    /// Keeps a registered memory by its id, which is the same on all ranks, as its number between hosts is.
    pub(crate) fn keep(&mut self, id: usize, memory: SharedMemory, number: Option<u32>) {
        if self.memories.len() <= id {
            self.memories.resize_with(id + 1, || None);
        }
        self.memories[id] = Some(Registered { memory, number });
    }

    /// Lets go of a registered memory.
    pub(crate) fn forget(&mut self, id: usize) {
        if let Some(Registered { number: Some(number), .. }) = self.memories[id].take() {
            self.node.withdraw(number);
        }
    }

    /// Where `len` bytes at `address` lie in registered memory of this rank, if they do.
    #[inline]
    pub(crate) fn locate(&self, address: *const u8, len: usize) -> Option<Address> {
        self.memories.iter().enumerate().find_map(|(id, memory)| {
            let memory = &memory.as_ref()?.memory;
            let offset = memory.offset_of(address)?;
            (offset + len <= memory.len()).then_some(Address { id, offset })
        })
    }

    /// Runs a program for all rounds of a call. Blocks until this rank's part is done.
    pub(crate) fn run(&mut self, prepared: &Prepared, job: &Job<'_>) -> Result<(), Failure> {
        if !prepared.away.is_empty() {
            self.node.reach(&prepared.away, job.sequence)?;
            prepared.away.iter().for_each(|&peer| self.node.tell_call(peer, job.sequence));
        }
        for round in 0..job.rounds {
            self.begin_epoch(prepared, job)?;
            match prepared.workers.as_slice() {
                [only] => self.run_one(prepared, only, job, round)?,
                many => self.run_many(prepared, many, job, round)?,
            }
            self.node.me().finish_epoch(self.epoch);
            self.synchronised = prepared.synchronises;
        }
        Ok(())
    }

    /// Enters the next epoch. Its half of scratch memory was last used two epochs ago; unless the
    /// last epoch has shown that all ranks are past that, they are waited for: those of this host, and
    /// those elsewhere with which this rank exchanges now, each of which answers for its host, for its memory is
    /// used by the ranks of its host alone and by those with which it has exchanged.
    fn begin_epoch(&mut self, prepared: &Prepared, job: &Job<'_>) -> Result<(), Failure> {
        self.epoch += 1;
        if self.synchronised || self.epoch <= 2 {
            return Ok(());
        }
        let needed = self.epoch - 2;
        let near = |peer: &usize| *peer != self.node.rank() && self.node.is_near(*peer);
        for peer in (0..self.node.world()).filter(near) {
            self.past(peer, needed, job, |control| control.finished_epoch())?;
        }
        if !prepared.away.is_empty() {
            self.node.tell_cleared(&prepared.away, needed);
        }
        for &peer in &prepared.away {
            self.past(peer, needed, job, |control| control.cleared_epoch())?;
        }
        Ok(())
    }

    /// Waits for a peer to say that it is past an epoch.
    fn past(
        &self,
        peer: usize,
        needed: u64,
        job: &Job<'_>,
        said: impl Fn(&Control) -> u64,
    ) -> Result<(), Failure> {
        let on = WaitingFor { peer, place: u32::MAX, expected: needed, sequence: job.sequence };
        let control = self.node.control(peer);
        self.node.wait(on, || match said(control) {
            seen if seen >= needed => Ok(()),
            seen => Err(seen),
        })
    }

    fn run_one(
        &mut self,
        prepared: &Prepared,
        steps: &[Step],
        job: &Job<'_>,
        round: usize,
    ) -> Result<(), Failure> {
        for (place, step) in steps.iter().enumerate() {
            if let Step::Wait { .. } | Step::Flush = step {
                let mut patience = Patience::default();
                while let Err(stop) = self.try_step(prepared, step, place, job, round) {
                    self.pause(&mut patience, stop, place, job)?;
                }
            } else {
                self.act(prepared, step, place, job, round)?;
            }
        }
        Ok(())
    }

    fn run_many(
        &mut self,
        prepared: &Prepared,
        workers: &[Vec<Step>],
        job: &Job<'_>,
        round: usize,
    ) -> Result<(), Failure> {
        self.next.clear();
        self.next.resize(workers.len(), 0);
        let mut patience = Patience::default();
        loop {
            let mut blocked = None;
            let mut progress = false;
            for (worker, steps) in workers.iter().enumerate() {
                while let Some(step) = steps.get(self.next[worker]) {
                    let place = self.next[worker];
                    match self.try_step(prepared, step, place, job, round) {
                        Ok(()) => {
                            self.next[worker] += 1;
                            progress = true;
                        }
                        Err(Stop::Failed(failure)) => return Err(failure),
                        Err(stop) => {
                            blocked = blocked.or(Some((stop, place)));
                            break;
                        }
                    }
                }
            }
            match blocked {
                None => return Ok(()),
                Some(_) if progress => patience = Patience::default(),
                Some((stop, place)) => self.pause(&mut patience, stop, place, job)?,
            }
        }
    }

    fn try_step(
        &mut self,
        prepared: &Prepared,
        step: &Step,
        place: usize,
        job: &Job<'_>,
        round: usize,
    ) -> Result<(), Stop> {
        match step {
            Step::Wait { semaphore, peer } => self.try_wait(*semaphore, *peer, job),
            Step::Flush => {
                let done = |peer: usize| {
                    self.node.has_sent(peer) || self.node.has_left_after(peer, job.sequence)
                };
                match prepared.away.iter().find(|peer| !done(**peer)) {
                    Some(&peer) => Err(Stop::Blocked(Blocked { peer, expected: 1, seen: 0 })),
                    None => Ok(()),
                }
            }
            Step::Move { packets: true, .. } => {
                self.packets_arrived(prepared, step, job, round)?;
                Ok(self.act(prepared, step, place, job, round)?)
            }
            _ => Ok(self.act(prepared, step, place, job, round)?),
        }
    }

    /// A step that does not wait, or only for packets.
    fn act(
        &mut self,
        prepared: &Prepared,
        step: &Step,
        place: usize,
        job: &Job<'_>,
        round: usize,
    ) -> Result<(), Failure> {
        match step {
            Step::Signal { semaphore, peer } => self.signal(*semaphore, *peer),
            Step::Move { packets: true, .. } => {
                self.move_packets(prepared, step, place, job, round)
            }
            Step::Move { .. } => self.move_plain(prepared, step, job, round),
            Step::Put { .. } => self.put(prepared, step, job, round),
            Step::Wait { .. } | Step::Flush => unreachable!("waits are tried by the callers"),
        }
    }

    #[inline]
    fn signal(&mut self, semaphore: usize, peer: usize) -> Result<(), Failure> {
        if self.signals.is_some() && !self.node.is_near(peer) {
            let (memory, offset) = ((0, 0), (0, 0));
            let signal = Some(semaphore);
            return self.node.put(peer, &Outgoing { memory, offset, bytes: 0, signal });
        }
        let sent = &mut self.sent[semaphore * self.node.world() + peer];
        *sent += 1;
        // This rank is the word's only writer; Release publishes all moves before.
        self.node.me().semaphore(semaphore, peer).publish(*sent);
        self.node.control(peer).ring();
        Ok(())
    }

    #[inline]
    fn try_wait(&mut self, semaphore: usize, peer: usize, job: &Job<'_>) -> Result<(), Stop> {
        let number = semaphore * self.node.world() + peer;
        let expected = self.waited[number] + 1;
        let reached = match &self.signals {
            Some(signals) if !self.node.is_near(peer) => match signals.seen(number as u32) {
                seen if seen >= expected => Ok(()),
                seen => Err(seen),
            },
            _ => self.node.control(peer).semaphore(semaphore, self.node.rank()).reached(expected),
        };
        if let Err(seen) = reached {
            return Err(Stop::Blocked(Blocked { peer, expected, seen }));
        }
        self.waited[number] = expected;
        Ok(self.compare(peer, job)?)
    }

    /// Once per call and peer: is it making the same call? Its description was on the board before
    /// its first signal of the call.
    #[inline]
    fn compare(&mut self, peer: usize, job: &Job<'_>) -> Result<(), Failure> {
        if self.compared[peer] == job.sequence || peer == self.node.rank() {
            return Ok(());
        }
        self.compared[peer] = job.sequence;
        match self.node.control(peer).call(job.sequence) {
            Some(call) if Board::tag_of(&call) == job.tag => Ok(()),
            _ => Err(self.mismatch(peer)),
        }
    }

    #[cold]
    pub(super) fn mismatch(&self, peer: usize) -> Failure {
        let by = self.node.rank();
        self.node.post(Failure { kind: FailureKind::Mismatch, by, culprit: Some(peer) })
    }

    pub(super) fn pause(
        &self,
        patience: &mut Patience,
        stop: Stop,
        place: usize,
        job: &Job<'_>,
    ) -> Result<(), Failure> {
        match stop {
            Stop::Failed(failure) => Err(failure),
            Stop::Blocked(Blocked { peer, expected, seen }) => {
                let (place, sequence) = (place as u32, job.sequence);
                patience.pause(&self.node, WaitingFor { peer, place, expected, sequence }, seen)
            }
        }
    }

    /// The part of a block that a move covers. Its places' blocks have equal lengths, or, where
    /// blocks differ, the own block among them counts.
    pub(super) fn extent(
        &self,
        places: &[Target],
        prepared: &Prepared,
        part: usize,
        job: &Job<'_>,
        round: usize,
    ) -> Extent {
        let length = match job.spans {
            None => job.count,
            Some(spans) => places
                .iter()
                .find_map(|place| match *place {
                    Target::Input { block } => Some(spans.input[block].1),
                    Target::Output { block } => Some(spans.output[block].1),
                    _ => None,
                })
                .unwrap_or(0),
        };
        self.window(length, prepared, part, job, round)
    }

    /// A part of the round's window of a block of so many elements.
    pub(super) fn window(
        &self,
        length: usize,
        prepared: &Prepared,
        part: usize,
        job: &Job<'_>,
        round: usize,
    ) -> Extent {
        let begin = (round * job.window).min(length);
        let window = (length - begin).min(job.window);
        let (first, count) = part_range(window, prepared.parts, job.grain, part);
        Extent { first: begin + first, count }
    }

    fn move_plain(
        &mut self,
        prepared: &Prepared,
        step: &Step,
        job: &Job<'_>,
        round: usize,
    ) -> Result<(), Failure> {
        let Step::Move { part, to, from, reduce, to_user, .. } = step else {
            return Ok(());
        };
        let (to, from) = (to.clone(), from.clone());
        let places = &prepared.places[to.start.min(from.start)..to.end.max(from.end)];
        let extent = self.extent(places, prepared, *part, job, round);
        if extent.count == 0 {
            return Ok(());
        }
        self.operands(prepared, to, from, extent, job)?;
        let count = extent.count;
        let streaming = job.streaming && *to_user;
        if *reduce {
            // SAFETY: the operands are good for `count` elements: users' buffers by the checks of
            // the call, slots because a window was chosen to fit; the plan, which is proven, has
            // ordered this access against all others.
            unsafe { (job.fold)(&self.dests, &self.sources, count, &job.args, streaming) };
            return Ok(());
        }
        let size = if self.sources[0].partial { job.accumulator } else { job.size };
        self.copies.clear();
        self.copies.extend(self.dests.iter().map(|dest| dest.at));
        // SAFETY: as above.
        unsafe { fold::copy(&self.copies, self.sources[0].at, count * size, streaming) };
        Ok(())
    }

    /// Resolves a plain move's places to addresses.
    fn operands(
        &mut self,
        prepared: &Prepared,
        to: std::ops::Range<usize>,
        from: std::ops::Range<usize>,
        extent: Extent,
        job: &Job<'_>,
    ) -> Result<(), Failure> {
        self.sources.clear();
        self.dests.clear();
        for place in &prepared.places[from] {
            let (at, partial) = self.address(place, extent, job)?;
            let scale = self.scale(place, job)?;
            self.sources.push(Source { at, partial, scale });
        }
        for place in &prepared.places[to] {
            let (at, partial) = self.address(place, extent, job)?;
            self.dests.push(Dest { at, partial });
        }
        Ok(())
    }

    /// Where a place's part begins, and whether it holds partial sums.
    #[inline]
    pub(super) fn address(
        &mut self,
        place: &Target,
        extent: Extent,
        job: &Job<'_>,
    ) -> Result<(*mut u8, bool), Failure> {
        let at = match *place {
            Target::Input { block } => {
                let start = job.spans.map_or(block * job.count, |spans| spans.input[block].0);
                job.input.cast_mut().wrapping_add((start + extent.first) * job.size)
            }
            Target::Output { block } => {
                let start = job.spans.map_or(block * job.count, |spans| spans.output[block].0);
                job.output.wrapping_add((start + extent.first) * job.size)
            }
            Target::PeerInput { rank, block } => {
                let base = self.remote(rank, job)?.input;
                (base + (block * job.count + extent.first) * job.size) as *mut u8
            }
            Target::PeerOutput { rank, block } => {
                let base = self.remote(rank, job)?.output;
                (base + (block * job.count + extent.first) * job.size) as *mut u8
            }
            Target::Scratch { halves, partial, .. } => {
                return Ok((halves[(self.epoch % 2) as usize], partial));
            }
            Target::Packets { halves, partial, .. } => {
                return Ok((halves[(self.epoch % 2) as usize].cast_mut().cast(), partial));
            }
        };
        Ok((at, false))
    }

    /// Where a peer's buffers of this call are mapped here. The peer has said so on its board, and
    /// what it says is checked against the memory that it registered.
    #[inline]
    fn remote(&mut self, rank: usize, job: &Job<'_>) -> Result<Remote, Failure> {
        let known = self.remote[rank];
        if known.sequence == job.sequence {
            return Ok(known);
        }
        let board = self.node.control(rank).call(job.sequence).map(|call| Board::read(&call));
        let board = board.ok_or_else(|| self.mismatch(rank))?;
        let find = |address: Option<Address>, len: usize| {
            let Some(Address { id, offset }) = address else {
                return Some(0);
            };
            let memory = &self.memories.get(id)?.as_ref()?.memory;
            Some(memory.range(rank, offset, len).ok()? as usize)
        };
        let (input, output) = (
            find(board.input, board.input_bytes(rank, self.node.world())),
            find(board.output, board.output_bytes(rank, self.node.world())),
        );
        let (Some(input), Some(output)) = (input, output) else {
            return Err(self.mismatch(rank));
        };
        let remote = Remote { sequence: job.sequence, input, output, scale: board.scale };
        self.remote[rank] = remote;
        Ok(remote)
    }

    /// The factor of the rank whose contribution a place holds.
    #[inline]
    pub(super) fn scale(&mut self, place: &Target, job: &Job<'_>) -> Result<u64, Failure> {
        if !job.scaled {
            return Ok(0);
        }
        let contributor = match *place {
            Target::Input { .. } | Target::Output { .. } => self.node.rank(),
            Target::PeerInput { rank, .. } | Target::PeerOutput { rank, .. } => rank,
            Target::Scratch { owner, .. } => owner,
            Target::Packets { peer, .. } => peer,
        };
        Ok(self.remote(contributor, job)?.scale)
    }

    pub(super) fn flag(&self, job: &Job<'_>) -> Flag {
        Flag::new(self.epoch, job.tag)
    }
}
