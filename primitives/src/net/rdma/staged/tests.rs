//! Both halves of staging, between memories of the test: NICs, copies, receives and credits get on in any order.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::connection::{Connection, Rules, Signalling, words};
use super::super::lane::{Lane, Queue};
use super::super::options::SignalMode;
use super::super::wire::{RingEnd, Table};
use super::*;
use crate::net::Region;
use crate::net::copies::fake::FakeCopier;
use crate::sys::verbs::{Local, Op, Work};

const TABLE: u64 = 1 << 60;
const DEVICE: u32 = 5;

/// Memory that lies still.
#[derive(Debug)]
struct Bytes {
    bytes: Box<[std::cell::UnsafeCell<u8>]>,
    on_device: bool,
}

// SAFETY: tests with it have one thread.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

// SAFETY: bytes in cells, as long as the value lives.
unsafe impl Region for Bytes {
    fn address(&self) -> *mut u8 {
        self.bytes.as_ptr().cast_mut().cast()
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn is_on_device(&self) -> bool {
        self.on_device
    }
}

impl Bytes {
    fn new(len: usize, on_device: bool, byte: impl Fn(usize) -> u8) -> Arc<Self> {
        let bytes = (0..len).map(|i| std::cell::UnsafeCell::new(byte(i))).collect();
        Arc::new(Self { bytes, on_device })
    }

    fn at(&self) -> u64 {
        self.address() as u64
    }

    fn ring(&self, at: u64, bytes: u64) -> Ring {
        let host = self.at() + at;
        Ring { host, device: host, bytes, key: 0 }
    }

    fn get(&self, at: usize) -> u8 {
        // SAFETY: one thread, no references.
        unsafe { *self.bytes[at].get() }
    }

    fn clear(&self, range: std::ops::Range<usize>) {
        // SAFETY: as above.
        range.for_each(|at| unsafe { *self.bytes[at].get() = 0 });
    }
}

/// A request, and what of it was copied.
type Held = (Work, Vec<u8>);

/// A NIC that holds its requests until the test lets one through. What is inline it has copied.
#[derive(Clone, Debug, Default)]
struct Wire {
    held: Rc<RefCell<VecDeque<Held>>>,
}

fn read(local: Local) -> Vec<u8> {
    // SAFETY: requests read memory of the test.
    let bytes = |i| unsafe { *((local.address + i) as *const u8) };
    (0..u64::from(local.bytes)).map(bytes).collect()
}

impl Queue for Wire {
    fn post(&mut self, batch: &[Work]) -> io::Result<()> {
        let copy = |work: &Work| if work.inline { read(work.local) } else { Vec::new() };
        self.held.borrow_mut().extend(batch.iter().map(|work| (*work, copy(work))));
        Ok(())
    }
}

/// What the test is about: a sender and a receiver.
struct Rig {
    connection: Connection<Wire>,
    wires: Vec<Wire>,
    outlet: Outlet<FakeCopier>,
    inlet: Inlet<FakeCopier>,
    copiers: [FakeCopier; 2],
    /// Receives that completed, by lane, and were not polled: their immediate numbers.
    arrived: Vec<VecDeque<u32>>,
    /// Credits: what was told, and what of that has come.
    told: Vec<(VecDeque<u64>, u64)>,
    words: Vec<u64>,
    lanes: usize,
    sources: [Arc<Bytes>; 2],
    targets: [Arc<Bytes>; 2],
    _rings: [Arc<Bytes>; 2],
    /// What was posted: from and to which kind, where, how much.
    posted: Vec<(bool, bool, usize, usize)>,
    /// For each semaphore, how many transfers lie before its signals.
    before: [Vec<usize>; 2],
    ends: usize,
    cleared: usize,
}

fn pattern(i: usize) -> u8 {
    ((i * 31) >> 2) as u8 ^ i as u8 | 1
}

const TOTAL: usize = 1 << 17;

fn rig(mode: SignalMode, lanes: usize, own: u64, ring: u64, depth: usize) -> Rig {
    rig_with(mode, lanes, (own, ring), depth, 40)
}

/// With rings of so many bytes at both ends, and requests that are copied when they are posted up to so many.
fn rig_with(
    mode: SignalMode,
    lanes: usize,
    (own, ring): (u64, u64),
    depth: usize,
    inline: u32,
) -> Rig {
    let wires: Vec<Wire> = vec![Wire::default(); lanes].iter().map(|_| Wire::default()).collect();
    let signalling = Signalling { key: 0, sink: Local { address: 8, bytes: 8, key: 0 } };
    let queues = wires.iter().map(|wire| (Lane::new(wire.clone(), 0, depth), signalling)).collect();
    let rules = Rules { mode, stripe: 3000, longest: 4096, inline };
    let table = Table { address: TABLE, semaphores: 2, lanes: lanes as u32 };
    let rings = [own, ring].map(|bytes| Bytes::new(bytes as usize * lanes, false, |_| 0));
    let out = |lane: usize| {
        let at = lane as u64;
        let peer = RingEnd { address: rings[1].at() + at * ring, bytes: ring as u32, key: 0 };
        OutLane::new(rings[0].ring(at * own, own), Some(peer))
    };
    let copiers = [FakeCopier::default(), FakeCopier::default()];
    let into = (0..lanes as u64).map(|lane| rings[1].ring(lane * ring, ring));
    Rig {
        connection: Connection::new(queues, rules, table),
        wires,
        outlet: Outlet::new(Some(copiers[0].clone()), (0..lanes).map(out).collect()),
        inlet: Inlet::new(copiers[1].clone(), into),
        copiers,
        arrived: vec![VecDeque::new(); lanes],
        told: vec![(VecDeque::new(), 0); lanes],
        words: vec![0; 2 * lanes],
        lanes,
        sources: [false, true].map(|device| Bytes::new(TOTAL, device, pattern)),
        targets: [false, true].map(|device| Bytes::new(TOTAL, device, |_| 0)),
        _rings: rings,
        posted: Vec::new(),
        before: [Vec::new(), Vec::new()],
        ends: 0,
        cleared: 0,
    }
}

impl Rig {
    fn post(&mut self, bytes: usize, (from, to): (bool, bool), signal: Option<u32>) {
        let at = self.ends as u64;
        let [near, far] = [&self.sources[usize::from(from)], &self.targets[usize::from(to)]];
        let keys = vec![0; self.lanes];
        let source = if from {
            Source::Staged { number: 1, region: near.clone(), offset: at }
        } else {
            Source::Direct { address: near.at() + at, keys: keys.clone(), on_host: true }
        };
        let target = if to {
            Target::Staged { memory: DEVICE, offset: at }
        } else {
            Target::Direct { address: far.at() + at, keys }
        };
        let bytes_ = bytes as u64;
        self.outlet.push(Task { from: source, to: target, bytes: bytes_, signal });
        self.posted.push((from, to, self.ends, bytes));
        self.ends += bytes;
        let all = self.posted.len();
        signal.into_iter().for_each(|signal| self.before[signal as usize].push(all));
    }

    /// One of the things that may happen. Whether it did.
    fn step(&mut self, what: usize) -> bool {
        let lane = what / 6 % self.lanes;
        match what % 6 {
            0 => self.nic(lane),
            1 => self.copiers[0].step(),
            2 => self.copiers[1].step(),
            3 => self.poll(lane),
            4 => {
                let (told, come) = &mut self.told[lane];
                told.pop_front().map(|credit| *come = credit).is_some()
            }
            _ => self.progress(),
        }
    }

    fn nic(&mut self, lane: usize) -> bool {
        let Some((work, copy)) = self.wires[lane].held.borrow_mut().pop_front() else {
            return false;
        };
        match work.op {
            Op::FetchAdd(n) => self.words[((work.remote - TABLE) / 8) as usize] += n,
            Op::Write | Op::WriteImm(_) => {
                let data = if work.inline { copy } else { read(work.local) };
                let to = |i: usize| (work.remote + i as u64) as *mut u8;
                // SAFETY: requests write memory of the test.
                data.iter().enumerate().for_each(|(i, byte)| unsafe { *to(i) = *byte });
            }
        }
        if let Op::WriteImm(number) = work.op {
            self.arrived[lane].push_back(number);
        }
        if work.signalled {
            assert!(self.connection.completed(lane, work.id as u32));
            self.connection.flush().unwrap();
        }
        true
    }

    fn poll(&mut self, lane: usize) -> bool {
        let Some(number) = self.arrived[lane].pop_front() else { return false };
        let device = self.targets[1].clone();
        if number == RECORD {
            let region = |memory| (memory == DEVICE).then_some(device as Arc<dyn Region>);
            self.inlet.record(lane, region).unwrap();
        } else if !self.inlet.holds(number, lane) {
            self.count(number, lane);
        }
        true
    }

    fn count(&mut self, semaphore: u32, lane: usize) {
        for word in words(lane, self.lanes, self.lanes) {
            self.words[semaphore as usize * self.lanes + word] += 1;
        }
    }

    fn progress(&mut self) -> bool {
        let mut signals = Vec::new();
        let landed = self.inlet.land(|semaphore, lane| signals.push((semaphore, lane))).unwrap();
        signals.into_iter().for_each(|(semaphore, lane)| self.count(semaphore, lane));
        for (lane, free) in self.inlet.credits() {
            self.told[lane].0.push_back(free);
        }
        let told: Vec<u64> = self.told.iter().map(|(_, come)| *come).collect();
        landed | self.outlet.pump(&mut self.connection, |lane| told[lane]).unwrap()
    }

    /// What is promised, at any time: a signal that is seen has all before it; sources that were left may be written.
    fn check(&mut self) -> Result<(), TestCaseError> {
        for (semaphore, before) in self.before.iter().enumerate() {
            let words = &self.words[semaphore * self.lanes..][..self.lanes];
            let seen = words.iter().copied().min().unwrap_or(0) as usize;
            prop_assert!(seen <= before.len(), "semaphore {semaphore}: {seen}");
            let there = if seen > 0 { before[seen - 1] } else { 0 };
            for (_, to, at, bytes) in &self.posted[..there] {
                let target = &self.targets[usize::from(*to)];
                let wrong = (*at..at + bytes).find(|i| target.get(*i) != pattern(*i));
                prop_assert!(wrong.is_none(), "{wrong:?} of {at}+{bytes}, to a device: {to}");
            }
        }
        while (self.cleared as u64) < self.connection.sent() {
            let (from, _, at, bytes) = self.posted[self.cleared];
            self.sources[usize::from(from)].clear(at..at + bytes);
            self.cleared += 1;
        }
        Ok(())
    }

    /// Everything gets on until nothing does.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..1_000_000 {
            let moved = (0..6 * self.lanes).fold(false, |moved, what| self.step(what) | moved);
            self.check()?;
            if !moved {
                break;
            }
        }
        prop_assert_eq!(self.connection.sent(), self.posted.len() as u64);
        prop_assert!(self.outlet.is_empty() && !self.inlet.is_copying());
        for (semaphore, before) in self.before.iter().enumerate() {
            let words = &self.words[semaphore * self.lanes..][..self.lanes];
            prop_assert!(words.iter().all(|word| *word == before.len() as u64), "{words:?}");
        }
        for (_, to, at, bytes) in &self.posted {
            let [other, target] = [!*to, *to].map(|to| &self.targets[usize::from(to)]);
            prop_assert!((*at..at + bytes).all(|i| target.get(i) == pattern(i)));
            prop_assert!((*at..at + bytes).all(|i| other.get(i) == 0), "written elsewhere, too");
        }
        prop_assert!((self.ends..TOTAL).all(|i| self.targets[1].get(i) == 0));
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever the order in which NICs, copies, receives and credits get on.
    #[test]
    fn signals_come_behind_data_and_rings_never_overflow(
        lanes in 1_usize..4,
        own in 16_u64..50,
        ring in 16_u64..50,
        depth in 1_usize..9,
        transfers in prop::collection::vec(
            (0_usize..6000, any::<(bool, bool)>(), prop::option::of(0_u32..2)), 1..14),
        order in prop::collection::vec(any::<u16>(), 0..600),
    ) {
        let mut rig = rig(SignalMode::Immediate, lanes, own * GRAIN, ring * GRAIN, depth);
        let mut order = order.into_iter().map(usize::from);
        for (bytes, ends, signal) in transfers {
            rig.post(bytes, ends, signal);
            for what in order.by_ref().take(40) {
                rig.step(what);
                rig.check()?;
            }
        }
        for what in order {
            rig.step(what);
            rig.check()?;
        }
        rig.finish()?;
    }

    /// To a peer whose NICs reach its memory, which is signalled by fetch-add.
    #[test]
    fn what_is_staged_at_this_end_alone_is_signalled_by_the_nics(
        lanes in 1_usize..3,
        own in 16_u64..50,
        transfers in prop::collection::vec(
            (0_usize..6000, any::<bool>(), prop::option::of(0_u32..2)), 1..14),
        order in prop::collection::vec(any::<u16>(), 0..300),
    ) {
        let mut rig = rig(SignalMode::FetchAdd, lanes, own * GRAIN, LEAST_RING, 4);
        for (bytes, from, signal) in transfers {
            rig.post(bytes, (from, false), signal);
        }
        for what in order {
            rig.step(usize::from(what));
            rig.check()?;
        }
        rig.finish()?;
    }
}

#[test]
fn many_small_transfers_share_a_ring_and_few_credits() {
    let mut rig = rig(SignalMode::Immediate, 1, 4096, 4096, 64);
    for i in 0..220 {
        rig.post(8, (true, true), (i % 10 == 9).then_some(0));
    }
    rig.progress();
    // As many records as have room, though no copy has landed.
    assert_eq!(rig.outlet.lanes_taken(), [4096]);
    rig.finish().unwrap();
    assert_eq!(rig.told[0].1, 220 * GRAIN / (4096 / CREDIT) * (4096 / CREDIT));
}

/// Where the NIC copies no heads when they are posted: a place is taken again when the second request of its record is done.
#[test]
fn a_head_stays_until_it_was_sent_behind_its_data() {
    let mut rig = rig_with(SignalMode::Immediate, 1, (16 * GRAIN, 64 * GRAIN), 1, 0);
    (0..17).for_each(|_| rig.post(8, (false, true), None));
    rig.progress();
    assert_eq!(rig.outlet.lanes_taken(), [16 * GRAIN]);
    assert!(rig.nic(0));
    rig.progress();
    assert_eq!(rig.outlet.lanes_taken(), [16 * GRAIN], "with a head over that of the first record");
    rig.finish().unwrap();
}

#[test]
fn what_has_landed_is_told_to_be_free_and_no_more() {
    let mut rig = rig(SignalMode::Immediate, 1, 8192, 4096, 64);
    (0..4).for_each(|_| rig.post(1024 - Head::BYTES as usize, (true, true), None));
    let mut polled = 0;
    for _ in 0..40 {
        rig.progress();
        rig.copiers[0].step();
        rig.nic(0);
        polled += u64::from(rig.poll(0));
    }
    assert_eq!((polled, rig.told[0].0.len()), (4, 0));
    for landed in 1..=4 {
        assert!(rig.copiers[1].step());
        rig.progress();
        assert_eq!(rig.told[0].0.back(), Some(&(landed * 1024)));
    }
    rig.finish().unwrap();
}

#[test]
fn records_that_cannot_be_are_refused() {
    let memory = Bytes::new(4096, true, |_| 0);
    let ring = Bytes::new(1024, false, |_| 0);
    let host = Bytes::new(64, false, |_| 0);
    let head = |number, which, bytes, offset| Head { number, memory: which, bytes, offset };
    for (head, words) in [
        (head(0, DEVICE, 64, 4033), "bytes 4033..4033+64 of memory 5, which has 4096"),
        (head(0, DEVICE, 64, u64::MAX), "of memory 5"),
        (head(0, 9, 64, 0), "memory 9, which is not registered"),
        (head(0, 6, 64, 0), "memory 6, which is not registered, or no device's"),
        (head(1, DEVICE, 64, 0), "record 1 of 64 bytes where record 0 was expected"),
        (head(0, DEVICE, 0, 0), "record 0 of 0 bytes"),
        (head(0, DEVICE, 993, 0), "of at most 1024"),
        (head(0, DEVICE, u32::MAX, 0), "of at most 1024"),
    ] {
        let copier = FakeCopier::default();
        let mut inlet = Inlet::new(copier.clone(), [ring.ring(0, 1024)]);
        for (i, byte) in head.to_bytes().into_iter().enumerate() {
            // SAFETY: inside the ring, without references.
            unsafe { *ring.bytes[i].get() = byte };
        }
        let region = |number| match number {
            DEVICE => Some(memory.clone() as Arc<dyn Region>),
            6 => Some(host.clone() as Arc<dyn Region>),
            _ => None,
        };
        let error = inlet.record(0, region).unwrap_err();
        assert!(error.contains(words), "{error}");
        assert!(!copier.step(), "something is copied");
        assert!(inlet.record(1, region).is_err(), "a lane that there is not");
    }
}

#[test]
fn a_sender_that_does_not_wait_for_room_is_refused() {
    let memory = Bytes::new(4096, true, |_| 0);
    let ring = Bytes::new(1024, false, |_| 0);
    let copier = FakeCopier::default();
    let mut inlet = Inlet::new(copier.clone(), [ring.ring(0, 1024)]);
    let region = |_| Some(memory.clone() as Arc<dyn Region>);
    // Sixteen fill the ring; when two have landed there is room for two again, and not for three.
    for (number, bytes, good) in
        (0..16).map(|i| (i, 32, true)).chain([(16, 32, false), (16, 97, false), (16, 96, true)])
    {
        if bytes == 97 {
            assert!(copier.step() && copier.step() && inlet.land(|_, _| ()).unwrap());
        }
        let at = number as usize * 64 % 1024;
        let head = Head { number, memory: DEVICE, bytes, offset: 0 };
        for (i, byte) in head.to_bytes().into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { *ring.bytes[at + i].get() = byte };
        }
        let taken = inlet.record(0, region);
        assert_eq!(taken.is_ok(), good, "{number}: {taken:?}");
    }
}

#[test]
fn credits_that_cannot_be_are_refused() {
    for (first, second) in [(64, None), (0, Some(4097))] {
        let mut rig = rig(SignalMode::Immediate, 1, 4096, 4096, 64);
        if second.is_some() {
            rig.post(3000, (false, true), None);
            rig.progress();
        }
        rig.post(8, (true, true), None);
        let credit = second.unwrap_or(first);
        let stopped = rig.outlet.pump(&mut rig.connection, |_| credit).unwrap_err();
        assert!(stopped.cause.contains("of"), "{stopped:?}");
        assert!(stopped.cause.contains(&credit.to_string()), "{stopped:?}");
    }
}

#[test]
fn a_copy_that_fails_stops_the_connection() {
    let mut rig = rig(SignalMode::Immediate, 1, 4096, 4096, 64);
    rig.copiers[0].break_it();
    rig.post(8, (true, true), None);
    let told = |_| 0;
    let failed = (0..2).any(|_| rig.outlet.pump(&mut rig.connection, told).is_err());
    assert!(failed && rig.wires[0].held.borrow().is_empty(), "data that was not copied is sent");
}

#[test]
fn what_a_transfer_reads_is_known_until_it_was_copied() {
    let mut rig = rig(SignalMode::Immediate, 1, 4096, 4096, 64);
    rig.post(6000, (true, true), None);
    let nothing = 0..0;
    assert!(rig.outlet.reads(1, &nothing) && !rig.outlet.reads(2, &nothing));
    rig.progress();
    assert!(rig.outlet.reads(1, &nothing));
    rig.finish().unwrap();
    assert!(!rig.outlet.reads(1, &nothing));
    rig.post(3000, (false, true), None);
    let at = rig.sources[0].at();
    assert!(rig.outlet.reads(9, &(at..at + TOTAL as u64)));
}
