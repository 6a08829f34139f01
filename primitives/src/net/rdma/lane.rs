//! One queue pair of a connection: which requests go to the NIC, when, and which have completed.
//!
//! ```text
//!   push ──► waiting ──► flush: at most `depth` with the NIC ──► in flight ──► completed(sequence): all up to it
//!            (memory)     one list; its last request is signalled, and some before
//! ```
//!
//! Requests of a queue pair complete in order, so the completion of one tells those of all before it. The last of each
//! list asks for one, so nothing is ever in flight behind that; and in long lists one of every [`OFTEN`] requests or
//! [`MUCH`] bytes, so that room is made while the NIC still has something to do. As never more than `depth` requests are
//! in flight, neither the NIC's queue nor the completion queue overflows.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;

use crate::sys::verbs::{Local, Work};

/// Completions under way below which a request goes at once; with more, requests wait for the next flush and share a
/// list.
const EAGER: usize = 4;

/// Requests, and bytes, of which one asks for a completion.
const OFTEN: usize = 16;
const MUCH: u64 = 64 << 10;

/// Where requests go: a queue pair, or what a test puts in its place.
pub(super) trait Queue: fmt::Debug {
    /// Hands requests over, in this order. The error is the system's.
    fn post(&mut self, batch: &[Work]) -> std::io::Result<()>;
}

/// A request, and the transfer that has left its source when it completes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub work: Work,
    /// None: nobody waits for it.
    pub transfer: Option<u64>,
    /// Bytes of a ring that it reads, and that are free when it completes.
    pub frees: u32,
}

#[derive(Debug)]
pub(super) struct Lane<Q> {
    pub(super) queue: Q,
    /// Goes into the upper half of the requests' identities; the lower is the sequence number.
    tag: u64,
    depth: usize,
    waiting: VecDeque<Piece>,
    /// Bytes of those that wait or are in flight: the lane's load.
    load: u64,
    in_flight: VecDeque<InFlight>,
    /// The sequence number of the first in flight.
    first: u32,
    /// Of those in flight, the ones that ask for a completion.
    signalled: usize,
    /// Bytes of a ring that requests have read, since the beginning.
    freed: u64,
    batch: Vec<Work>,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    transfer: Option<u64>,
    address: u64,
    bytes: u32,
    frees: u32,
    signalled: bool,
}

impl<Q: Queue> Lane<Q> {
    pub(super) fn new(queue: Q, tag: u32, depth: usize) -> Self {
        Self {
            queue,
            tag: u64::from(tag) << 32,
            depth: depth.max(1),
            waiting: VecDeque::new(),
            load: 0,
            in_flight: VecDeque::with_capacity(depth),
            first: 0,
            signalled: 0,
            freed: 0,
            batch: Vec::with_capacity(depth),
        }
    }

    /// Puts a request behind the others.
    pub(super) fn push(&mut self, piece: Piece) {
        self.load += u64::from(piece.work.local.bytes);
        self.waiting.push_back(piece);
    }

    /// Bytes that have not been acknowledged.
    pub(super) fn load(&self) -> u64 {
        self.load
    }

    /// Bytes of a ring that requests have read, since the beginning: they may be written again.
    pub(super) fn freed(&self) -> u64 {
        self.freed
    }

    /// Whether requests wait in memory.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// [`Lane::flush`], unless the NIC has enough to do.
    pub(super) fn flush_if_idle(&mut self) -> std::io::Result<bool> {
        if self.signalled < EAGER { self.flush() } else { Ok(false) }
    }

    /// Hands over what waits, as far as there is room; whether anything was.
    pub(super) fn flush(&mut self) -> std::io::Result<bool> {
        let count = self.waiting.len().min(self.depth - self.in_flight.len());
        if count == 0 {
            return Ok(false);
        }
        self.batch.clear();
        let (mut requests, mut load) = (0, 0);
        for (i, piece) in self.waiting.drain(..count).enumerate() {
            requests += 1;
            load += u64::from(piece.work.local.bytes);
            let signalled = i + 1 == count || requests >= OFTEN || load >= MUCH;
            if signalled {
                (requests, load) = (0, 0);
                self.signalled += 1;
            }
            let sequence = self.first.wrapping_add(self.in_flight.len() as u32);
            let id = self.tag | u64::from(sequence);
            self.batch.push(Work { id, signalled, ..piece.work });
            let Local { address, bytes, .. } = piece.work.local;
            let Piece { transfer, frees, .. } = piece;
            self.in_flight.push_back(InFlight { transfer, address, bytes, frees, signalled });
        }
        self.queue.post(&self.batch).map(|()| true)
    }

    /// Takes the completion of the request with this sequence number, and so of all before it. `left` is called for each
    /// that had a transfer. Whether there was such a request.
    pub(super) fn completed(&mut self, sequence: u32, mut left: impl FnMut(u64)) -> bool {
        let count = sequence.wrapping_sub(self.first) as usize + 1;
        if count > self.in_flight.len() {
            return false;
        }
        for done in self.in_flight.drain(..count) {
            self.load -= u64::from(done.bytes);
            self.freed += u64::from(done.frees);
            self.signalled -= usize::from(done.signalled);
            done.transfer.into_iter().for_each(&mut left);
        }
        self.first = sequence.wrapping_add(1);
        true
    }

    /// Whether a request that is not finished has local bytes in this range.
    pub(super) fn reads(&self, range: &Range<u64>) -> bool {
        let waiting = self.waiting.iter().map(|piece| piece.work.local);
        let waiting = waiting.map(|local| (local.address, local.bytes));
        let in_flight = self.in_flight.iter().map(|request| (request.address, request.bytes));
        waiting.chain(in_flight).any(|(address, bytes)| bytes > 0 && range.contains(&address))
    }

    /// Requests that wait or are in flight.
    pub(super) fn unfinished(&self) -> usize {
        self.waiting.len() + self.in_flight.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::verbs::Op;

    /// Takes requests as a NIC does: refuses more than it has room for.
    #[derive(Debug, Default)]
    struct FakeQueue {
        room: usize,
        held: VecDeque<Work>,
        lists: usize,
        largest: usize,
    }

    impl Queue for FakeQueue {
        fn post(&mut self, batch: &[Work]) -> std::io::Result<()> {
            self.held.extend(batch);
            self.lists += 1;
            self.largest = self.largest.max(batch.len());
            if self.held.len() > self.room {
                return Err(std::io::ErrorKind::OutOfMemory.into());
            }
            Ok(())
        }
    }

    fn lane(depth: usize) -> Lane<FakeQueue> {
        Lane::new(FakeQueue { room: depth, ..FakeQueue::default() }, 3, depth)
    }

    fn piece(transfer: u64, bytes: u32) -> Piece {
        let local = Local { address: 4096, bytes, key: 1 };
        let (op, signalled, inline) = (Op::Write, false, false);
        let work = Work { id: 0, op, local, remote: 0, key: 0, signalled, inline };
        Piece { work, transfer: Some(transfer), frees: 3 }
    }

    /// The NIC does all up to the next signalled request.
    fn complete(lane: &mut Lane<FakeQueue>) -> Vec<u64> {
        let mut left = Vec::new();
        while let Some(work) = lane.queue.held.pop_front() {
            if work.signalled {
                assert_eq!(work.id >> 32, 3);
                assert!(lane.completed(work.id as u32, |transfer| left.push(transfer)));
                break;
            }
        }
        left
    }

    #[test]
    fn the_send_queue_never_overflows_and_everything_goes_in_order() {
        for depth in [1, 2, 7, 64] {
            let mut lane = lane(depth);
            let (mut pushed, mut left) = (0, Vec::new());
            while left.len() < 1000 {
                for _ in 0..(pushed % 11 + 1).min(1000 - pushed) {
                    lane.push(piece(pushed, 8));
                    pushed += 1;
                    lane.flush_if_idle().unwrap();
                }
                lane.flush().unwrap();
                assert!(lane.in_flight.len() <= depth);
                left.extend(complete(&mut lane));
            }
            assert_eq!(left, (0..1000).collect::<Vec<_>>(), "depth {depth}");
            assert_eq!(lane.freed(), 3 * 1000);
            assert_eq!((lane.load(), lane.unfinished(), lane.signalled), (0, 0, 0));
        }
    }

    #[test]
    fn a_request_goes_at_once_and_many_share_a_list() {
        let mut lane = lane(64);
        for i in 0..40 {
            lane.push(piece(i, 1));
            lane.flush_if_idle().unwrap();
        }
        assert_eq!((lane.queue.lists, lane.queue.largest), (EAGER, 1));
        lane.flush().unwrap();
        assert_eq!((lane.queue.lists, lane.queue.largest), (EAGER + 1, 40 - EAGER));
        let signalled = lane.queue.held.iter().filter(|work| work.signalled).count();
        assert_eq!(signalled, EAGER + (40 - EAGER).div_ceil(OFTEN));
        assert_eq!(signalled, lane.signalled);
    }

    #[test]
    fn large_requests_make_room_one_by_one() {
        let mut lane = lane(64);
        for i in 0..40 {
            lane.push(piece(i, MUCH as u32));
        }
        lane.flush().unwrap();
        assert_eq!((lane.queue.lists, lane.signalled), (1, 40));
        assert_eq!(complete(&mut lane), [0]);
    }

    #[test]
    fn sequence_numbers_wrap() {
        let mut lane = lane(4);
        lane.first = u32::MAX - 1;
        for i in 0..4 {
            lane.push(piece(i, 1));
        }
        lane.flush().unwrap();
        assert_eq!(complete(&mut lane), [0, 1, 2, 3]);
        assert_eq!(lane.first, 2);
    }

    #[test]
    fn completions_of_what_is_not_in_flight_are_noticed() {
        let mut lane = lane(4);
        lane.push(piece(0, 1));
        lane.flush().unwrap();
        assert!(!lane.completed(1, |_| ()));
        assert!(!lane.completed(u32::MAX, |_| ()));
        assert!(lane.completed(0, |_| ()));
        assert!(!lane.completed(0, |_| ()));
    }

    #[test]
    fn a_refusal_is_told() {
        let mut lane = lane(4);
        lane.queue.room = 0;
        lane.push(piece(0, 1));
        assert!(lane.flush().is_err());
    }
}
