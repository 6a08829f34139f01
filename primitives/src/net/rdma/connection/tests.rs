//! Connections over queues that a test empties in any order.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;

const TABLE: u64 = 1 << 40;
const TARGET: u64 = 1 << 20;

/// A NIC that holds its requests until the test lets one through.
#[derive(Clone, Debug, Default)]
struct Wire {
    held: Rc<RefCell<VecDeque<Work>>>,
    depth: usize,
}

impl Queue for Wire {
    fn post(&mut self, batch: &[Work]) -> io::Result<()> {
        let mut held = self.held.borrow_mut();
        held.extend(batch);
        assert!(held.len() <= self.depth, "the send queue overflows");
        Ok(())
    }
}

/// The peer: which bytes have come, and its semaphores.
struct Peer {
    bytes: Vec<bool>,
    words: Vec<u64>,
    lanes: usize,
    connection_lanes: usize,
}

impl Peer {
    fn take(&mut self, lane: usize, work: &Work) {
        let write = |bytes: &mut [bool]| {
            let at = (work.remote - TARGET) as usize;
            for byte in &mut bytes[at..at + work.local.bytes as usize] {
                assert!(!*byte, "written twice");
                *byte = true;
            }
        };
        match work.op {
            Op::Write => write(&mut self.bytes),
            Op::WriteImm(semaphore) => {
                if work.local.bytes > 0 {
                    write(&mut self.bytes);
                }
                for word in words(lane, self.connection_lanes, self.lanes) {
                    self.words[semaphore as usize * self.lanes + word] += 1;
                }
            }
            Op::FetchAdd(n) => self.words[((work.remote - TABLE) / 8) as usize] += n,
        }
    }

    fn seen(&self, semaphore: usize) -> u64 {
        let words = &self.words[semaphore * self.lanes..][..self.lanes];
        words.iter().copied().min().unwrap_or(0)
    }
}

struct Rig {
    connection: Connection<Wire>,
    wires: Vec<Wire>,
    peer: Peer,
}

fn rig(mode: SignalMode, lanes: usize, peer_lanes: usize, depth: usize) -> Rig {
    let wires: Vec<Wire> = (0..lanes).map(|_| Wire { depth, ..Wire::default() }).collect();
    let signalling = Signalling { key: 0, sink: Local { address: 8, bytes: 8, key: 0 } };
    let queues = wires.iter().map(|wire| (Lane::new(wire.clone(), 0, depth), signalling)).collect();
    let rules = Rules { mode, stripe: 10_000, longest: 7_000, inline: 100 };
    let table = Table { address: TABLE, semaphores: 2, lanes: peer_lanes as u32 };
    let connection = Connection::new(queues, rules, table);
    let words = vec![0; 2 * peer_lanes];
    let peer =
        Peer { bytes: vec![false; 1 << 18], words, lanes: peer_lanes, connection_lanes: lanes };
    Rig { connection, wires, peer }
}

impl Rig {
    /// Lets one request of a lane through; whether there was one.
    fn step(&mut self, lane: usize) -> bool {
        let Some(work) = self.wires[lane].held.borrow_mut().pop_front() else { return false };
        self.peer.take(lane, &work);
        if work.signalled {
            assert!(self.connection.completed(lane, work.id as u32));
            self.connection.flush().unwrap();
        }
        true
    }

    fn post(&mut self, to: u64, bytes: u64, signal: Option<u32>) {
        let keys = &[0; 4];
        let from = 0;
        let job = Job {
            from,
            from_keys: keys,
            to: TARGET + to,
            to_keys: keys,
            bytes,
            signal,
            on_host: true,
        };
        self.connection.post(&job).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever the order in which lanes get on: a signal that is seen has all data before it, and in the end all has
    /// come, once.
    #[test]
    fn signals_never_overtake_data(
        immediate in any::<bool>(),
        lanes in 1_usize..4,
        more in 0_usize..3,
        depth in 1_usize..9,
        sizes in prop::collection::vec((0_u64..20_000, prop::option::of(0_u32..2)), 1..12),
        order in prop::collection::vec(0_usize..4, 0..100),
    ) {
        let mode = if immediate { SignalMode::Immediate } else { SignalMode::FetchAdd };
        let mut rig = rig(mode, lanes, lanes + more, depth);
        let mut order = order.into_iter();
        // For each semaphore: how much data lies before its first, second, ... signal.
        let (mut before, mut end) = ([Vec::new(), Vec::new()], 0);
        for (bytes, signal) in sizes.iter().copied() {
            rig.post(end, bytes, signal);
            end += bytes;
            if let Some(semaphore) = signal {
                before[semaphore as usize].push(end as usize);
            }
            for lane in order.by_ref().take(5) {
                rig.step(lane % lanes);
                check(&rig, &before)?;
            }
        }
        for lane in order.chain((0..lanes).cycle().take(100_000)) {
            if !rig.connection.is_busy() {
                break;
            }
            rig.step(lane % lanes);
            check(&rig, &before)?;
        }
        prop_assert_eq!(rig.connection.sent(), sizes.len() as u64);
        prop_assert!(rig.peer.bytes[..end as usize].iter().all(|byte| *byte));
        prop_assert!(rig.peer.bytes[end as usize..].iter().all(|byte| !*byte));
        for (semaphore, before) in before.iter().enumerate() {
            prop_assert_eq!(rig.peer.seen(semaphore), before.len() as u64);
        }
    }
}

fn check(rig: &Rig, before: &[Vec<usize>; 2]) -> Result<(), TestCaseError> {
    for (semaphore, before) in before.iter().enumerate() {
        let seen = rig.peer.seen(semaphore) as usize;
        prop_assert!(seen <= before.len());
        if seen > 0 {
            prop_assert!(rig.peer.bytes[..before[seen - 1]].iter().all(|byte| *byte));
        }
    }
    Ok(())
}

#[test]
fn large_transfers_use_all_lanes_and_small_ones_one_after_the_other() {
    let mut rig = rig(SignalMode::Immediate, 2, 2, 64);
    rig.post(0, 20_000, None);
    let load = |rig: &Rig| rig.connection.lanes.iter().map(Lane::load).collect::<Vec<_>>();
    assert_eq!(load(&rig), [12_288, 7_712]); // half, up to a whole number of pages
    rig.post(20_000, 100, None);
    assert_eq!(load(&rig), [12_288, 7_812]); // the lane with less to do
}

#[test]
fn a_signal_without_data_counts_as_sent_when_it_is() {
    let mut rig = rig(SignalMode::FetchAdd, 2, 2, 8);
    rig.post(0, 0, Some(1));
    assert_eq!(rig.connection.sent(), 0);
    assert!(rig.step(0) && rig.step(1));
    assert_eq!((rig.connection.sent(), rig.peer.seen(1), rig.peer.seen(0)), (1, 1, 0));
    rig.post(0, 0, None); // nothing at all
    assert_eq!(rig.connection.sent(), 2);
}

#[test]
fn small_data_of_the_host_is_copied_and_that_of_devices_is_not() {
    let mut rig = rig(SignalMode::FetchAdd, 1, 1, 8);
    rig.post(0, 64, None);
    let keys = &[0];
    let device = Job {
        from: 0,
        from_keys: keys,
        to: TARGET + 64,
        to_keys: keys,
        bytes: 64,
        signal: None,
        on_host: false,
    };
    rig.connection.post(&device).unwrap();
    let held = rig.wires[0].held.borrow();
    assert_eq!(held.iter().map(|work| work.inline).collect::<Vec<_>>(), [true, false]);
}
