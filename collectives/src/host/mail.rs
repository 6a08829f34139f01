//! Point-to-point messages between ranks.
//!
//! Every ordered pair of ranks has a ring of slots in the receiver's memory. The sender fills a slot
//! and signals; the receiver empties it and signals back, which gives the slot to the sender again.
//! Each slot begins with what the whole message is, so that a receiver that expects something else
//! notices before it copies.
//!
//! A slot for a rank of another host is filled here, in memory that is laid out alike, and put there with the signal. The
//! two connect when their first messages meet.
//!
//! A group's messages are in flight together, each going on whenever it can, those of one pair and
//! direction in the order in which they were posted. So no order of sends and receives deadlocks.

use std::sync::Arc;

use warpmesh_primitives::failure::{Failure, FailureKind};
use warpmesh_primitives::memory::SharedMemory;
use warpmesh_primitives::net::Signals;
use warpmesh_primitives::node::{Node, Outgoing};
use warpmesh_primitives::patience::{Patience, WaitingFor};

use crate::plan::verify::PLAN_SEMAPHORES;

/// A message to be sent or received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Letter {
    pub(crate) peer: usize,
    pub(crate) direction: Direction,
    pub(crate) bytes: usize,
    /// The type's code; both sides must agree.
    pub(crate) dtype: u8,
    /// Bytes that have gone or come.
    pub(crate) done: usize,
}

// SAFETY: a letter's address is followed only by the thread that runs the group which posted it.
unsafe impl Send for Letter {}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    Send(*const u8),
    Receive(*mut u8),
}

const FILLED: usize = PLAN_SEMAPHORES;
const EMPTIED: usize = PLAN_SEMAPHORES + 1;
const SLOTS: u64 = 4;
const HEADER: usize = 64;
/// The step that a waiting sender or receiver reports.
pub(crate) const AT_SEND: u32 = u32::MAX - 1;
pub(crate) const AT_RECEIVE: u32 = u32::MAX - 2;
/// What a receiver reports that found another message than it expects.
pub(crate) const AT_OTHER: u32 = u32::MAX - 5;

/// A rank's side of all its rings.
pub(crate) struct Mail {
    node: Arc<Node>,
    memory: SharedMemory,
    /// None if all ranks are on this host.
    away: Option<Away>,
    slot: usize,
    /// By peer: slots filled there, slots emptied here.
    filled: Vec<u64>,
    emptied: Vec<u64>,
    /// By peer and direction: whether an earlier letter of this pass is still under way.
    busy: Vec<[bool; 2]>,
}

/// What messages to ranks of other hosts need.
pub(crate) struct Away {
    /// Where slots for other ranks are filled, by receiver.
    pub(crate) outbox: SharedMemory,
    /// The numbers of the outbox and of the rings.
    pub(crate) numbers: (u32, u32),
    pub(crate) signals: Signals,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Header {
    bytes: u64,
    dtype: u64,
}

impl Mail {
    /// Bytes of memory that every rank needs for rings within `budget`.
    pub(crate) fn memory_bytes(world: usize, budget: usize) -> usize {
        Self::slot_bytes(world, budget) * SLOTS as usize * world
    }

    fn slot_bytes(world: usize, budget: usize) -> usize {
        let each = budget / world / SLOTS as usize;
        (each / HEADER * HEADER).clamp(4 * HEADER, 128 << 10)
    }

    pub(crate) fn new(node: Arc<Node>, memory: SharedMemory, away: Option<Away>) -> Self {
        let world = node.world();
        let slot = memory.len() / SLOTS as usize / world / HEADER * HEADER;
        let (filled, emptied) = (vec![0; world], vec![0; world]);
        Self { node, memory, away, slot, filled, emptied, busy: vec![[false; 2]; world] }
    }

    /// Carries out all letters. Blocks until all are done.
    pub(crate) fn run(&mut self, letters: &mut [Letter]) -> Result<(), Failure> {
        let mut patience = Patience::default();
        loop {
            self.busy.fill([false; 2]);
            let (mut progress, mut blocked) = (false, None);
            for i in 0..letters.len() {
                let letter = letters[i];
                let way = usize::from(matches!(letter.direction, Direction::Receive(_)));
                if letter.done >= letter.bytes || self.busy[letter.peer][way] {
                    continue;
                }
                let moved = if letter.peer == self.node.rank() {
                    self.to_myself(letters, i)
                } else {
                    self.step(&mut letters[i])?
                };
                progress |= moved;
                if !moved {
                    blocked = blocked.or(Some(i));
                }
                self.busy[letter.peer][way] = letters[i].done < letters[i].bytes;
            }
            if letters.iter().all(|letter| letter.done >= letter.bytes) {
                return letters.iter().try_for_each(|letter| self.see_off(letter));
            }
            match blocked {
                Some(i) if !progress => self.pause(&mut patience, &letters[i])?,
                _ => patience = Patience::default(),
            }
        }
    }

    fn pause(&self, patience: &mut Patience, letter: &Letter) -> Result<(), Failure> {
        let peer = letter.peer;
        let (place, expected) = match letter.direction {
            Direction::Send(_) => (AT_SEND, self.filled[peer] + 1),
            Direction::Receive(_) => (AT_RECEIVE, self.emptied[peer] + 1),
        };
        let on = WaitingFor { peer, place, expected, sequence: 0 };
        patience.pause(&self.node, on, expected - 1)
    }

    /// What goes to a rank of another host has to leave, for afterwards nobody may look after it.
    fn see_off(&self, letter: &Letter) -> Result<(), Failure> {
        if self.node.is_near(letter.peer) {
            return Ok(());
        }
        let peer = letter.peer;
        let on = WaitingFor { peer, place: AT_SEND, expected: 1, sequence: 0 };
        // A peer that has emptied all slots and gone need not hear that this rank has, too.
        let over = || self.node.is_gone(peer) && self.reached(EMPTIED, peer, self.filled[peer]);
        self.node.wait(on, || if self.node.has_sent(peer) || over() { Ok(()) } else { Err(0) })
    }

    /// Moves one slot's worth, if it can.
    fn step(&mut self, letter: &mut Letter) -> Result<bool, Failure> {
        if !self.node.is_near(letter.peer) && !self.node.try_reach(letter.peer)? {
            return Ok(false);
        }
        match letter.direction {
            Direction::Send(from) => self.send(letter, from),
            Direction::Receive(to) => self.receive(letter, to),
        }
    }

    /// Whether a peer has counted one of its semaphores up so far.
    fn reached(&self, semaphore: usize, peer: usize, count: u64) -> bool {
        match &self.away {
            Some(away) if !self.node.is_near(peer) => {
                away.signals.seen((semaphore * self.node.world() + peer) as u32) >= count
            }
            _ => {
                let word = self.node.control(peer).semaphore(semaphore, self.node.rank());
                word.reached(count).is_ok()
            }
        }
    }

    fn send(&mut self, letter: &mut Letter, from: *const u8) -> Result<bool, Failure> {
        let (peer, me) = (letter.peer, self.node.rank());
        let next = self.filled[peer] + 1;
        // Slot `next` was used SLOTS ago; the peer's count says whether it was emptied.
        if !self.reached(EMPTIED, peer, next.saturating_sub(SLOTS)) {
            return Ok(false);
        }
        let away = self.away.as_ref().filter(|_| !self.node.is_near(peer));
        let slot = match away {
            Some(away) => self.slot_of(&away.outbox, me, peer, next),
            None => self.slot_of(&self.memory, peer, me, next),
        };
        let chunk = (letter.bytes - letter.done).min(self.slot - HEADER);
        let header = Header { bytes: letter.bytes as u64, dtype: u64::from(letter.dtype) };
        // SAFETY: the slot is ours until it is signalled; the caller's buffer has `bytes` bytes.
        unsafe {
            slot.cast::<Header>().write(header);
            std::ptr::copy_nonoverlapping(from.add(letter.done), slot.add(HEADER), chunk);
        }
        letter.done += chunk;
        self.filled[peer] = next;
        match away {
            Some(away) => {
                let offset = |rank| self.offset_of(rank, next) as u64;
                let what = Outgoing {
                    memory: away.numbers,
                    offset: (offset(peer), offset(me)),
                    bytes: (HEADER + chunk) as u64,
                    signal: Some(FILLED),
                };
                self.node.put(peer, &what)?;
            }
            None => {
                self.node.me().semaphore(FILLED, peer).publish(next);
                self.node.control(peer).ring();
            }
        }
        Ok(true)
    }

    fn receive(&mut self, letter: &mut Letter, to: *mut u8) -> Result<bool, Failure> {
        let (peer, me) = (letter.peer, self.node.rank());
        let next = self.emptied[peer] + 1;
        if !self.reached(FILLED, peer, next) {
            return Ok(false);
        }
        let slot = self.slot_of(&self.memory, me, peer, next);
        // SAFETY: the slot is ours until it is signalled back; any bits are a header.
        let header = unsafe { slot.cast::<Header>().read() };
        if header.bytes != letter.bytes as u64 || header.dtype != u64::from(letter.dtype) {
            return Err(self.mismatch(letter, header));
        }
        let chunk = (letter.bytes - letter.done).min(self.slot - HEADER);
        // SAFETY: as above; the caller's buffer has `bytes` bytes.
        unsafe { std::ptr::copy_nonoverlapping(slot.add(HEADER), to.add(letter.done), chunk) };
        letter.done += chunk;
        self.emptied[peer] = next;
        if self.node.is_near(peer) {
            self.node.me().semaphore(EMPTIED, peer).publish(next);
            self.node.control(peer).ring();
        } else {
            self.node.tell_signal(peer, EMPTIED);
        }
        Ok(true)
    }

    /// A send to this rank itself meets the first receive from itself. One that never comes is
    /// found by the timeout like any other.
    fn to_myself(&self, letters: &mut [Letter], i: usize) -> bool {
        let Direction::Send(from) = letters[i].direction else {
            return false;
        };
        let me = self.node.rank();
        let open = |l: &Letter| l.peer == me && l.done == 0 && l.bytes == letters[i].bytes;
        let receive = letters.iter().enumerate().find_map(|(j, letter)| match letter.direction {
            Direction::Receive(to) if open(letter) => Some((j, to)),
            _ => None,
        });
        let Some((j, to)) = receive else { return false };
        // SAFETY: both are buffers of the caller of that many bytes; `copy` allows overlap.
        unsafe { std::ptr::copy(from, to, letters[i].bytes) };
        letters[j].done = letters[j].bytes;
        letters[i].done = letters[i].bytes;
        true
    }

    #[cold]
    fn mismatch(&self, letter: &Letter, header: Header) -> Failure {
        use warpmesh_primitives::control::{Progress, State};
        let progress = Progress {
            state: State::Working,
            peer: letter.peer,
            place: AT_OTHER,
            expected: letter.bytes as u64,
            seen: header.bytes,
            heartbeat: 0,
        };
        self.node.me().set_progress(&progress);
        let by = self.node.rank();
        self.node.post(Failure { kind: FailureKind::Mismatch, by, culprit: Some(letter.peer) })
    }

    /// Where slot number `index` (counted for ever) of a rank's ring begins.
    fn offset_of(&self, rank: usize, index: u64) -> usize {
        (rank * SLOTS as usize + (index % SLOTS) as usize) * self.slot
    }

    /// That slot, in `owner`'s memory.
    fn slot_of(&self, memory: &SharedMemory, owner: usize, rank: usize, index: u64) -> *mut u8 {
        let slot = memory.range(owner, self.offset_of(rank, index), self.slot);
        slot.expect("all ranks have made rings of the same size")
    }
}
