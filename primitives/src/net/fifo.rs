//! The way to the proxy: a ring into which kernels, or threads of the host, push transfers. The device's side is
//! `kernels/device/port.cuh`, with the same words.
//!
//! ```text
//!   producers: take a number (head), wait for room (tail), store word 1, then word 0 with the lap's parity
//!   consumer:  sees the lap's parity in word 0, reads word 1, gives the entry back (tail), carries it out, counts (done)
//! ```
//!
//! A trigger is 16 bytes in two words. Word 0 is stored last and its parity tells the laps of the ring apart, so the
//! consumer polls one word, and neither side ever clears an entry.
//!
//! | word | written by | read by | order |
//! |---|---|---|---|
//! | `Entry::second` | the producer that has its number, before `first` | the consumer, after `first` | Relaxed; by `first`, and back by `tail` |
//! | `Entry::first` | the same producer | the consumer | Release / Acquire: also what the producer knows of the source |
//! | `tail` | the consumer | producers, before they use an entry again | Release / Acquire: the consumer has read the entry |
//! | `done` | the consumer | whoever flushes | Release / Acquire: the sources may be written again |
//! | `head` | producers of the host | they | Relaxed: a number only; `tail` orders the entry |
//! | `sleeping` | the consumer | producers of the host, after their trigger | Relaxed, between SeqCst fences on both sides: one of the two sees the other |

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};

use crate::error::{Error, system};
use crate::net::NetError;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};
use crate::sys::Mapping;

/// Bits of the fields, as `trigger` in port.cuh has them.
mod layout {
    pub(super) const BYTES_BITS: u32 = 36;
    pub(super) const OFFSET_BITS: u32 = 36;
    pub(super) const PORT_BITS: u32 = 16;
    pub(super) const WHAT_BITS: u32 = 3;
    pub(super) const PORT_SHIFT: u32 = 36;
    pub(super) const WHAT_SHIFT: u32 = 52;
    pub(super) const FROM_HIGH_SHIFT: u32 = 55;
    pub(super) const TO_HIGH_SHIFT: u32 = 59;
    pub(super) const PARITY_SHIFT: u32 = 63;
    pub(super) const TO_LOW_SHIFT: u32 = 32;

    const _: () = assert!(BYTES_BITS == PORT_SHIFT && PORT_SHIFT + PORT_BITS == WHAT_SHIFT);
    const _: () = assert!(WHAT_SHIFT + WHAT_BITS == FROM_HIGH_SHIFT);
    const _: () = assert!(TO_HIGH_SHIFT == FROM_HIGH_SHIFT + OFFSET_BITS - 32);
    const _: () = assert!(PARITY_SHIFT == TO_HIGH_SHIFT + OFFSET_BITS - 32);
}

/// Offsets and sizes of triggers are below this: 64 GiB.
pub const LIMIT: u64 = 1 << layout::OFFSET_BITS;

/// What to do, in this order; any of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct What(u8);

impl What {
    /// Data goes to the peer.
    pub const PUT: Self = Self(1);
    /// The peer's semaphore counts up behind it.
    pub const SIGNAL: Self = Self(2);
    /// Somebody waits until this and all before has left its source.
    pub const FLUSH: Self = Self(4);

    /// Both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is asked for.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// One request to the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trigger {
    /// What to do.
    pub what: What,
    /// Which row of the proxy's table of ports.
    pub port: u16,
    /// Offset in the port's destination, bytes, below [`LIMIT`].
    pub to: u64,
    /// Offset in its source, as that.
    pub from: u64,
    /// Bytes, below [`LIMIT`].
    pub bytes: u64,
}

impl Trigger {
    /// Whether its numbers fit.
    #[inline]
    pub fn fits(&self) -> bool {
        (self.to | self.from | self.bytes) < LIMIT
    }

    /// Words 0 and 1; of numbers that do not fit, the low bits.
    #[inline]
    fn encode(&self, parity: u64) -> (u64, u64) {
        use layout::*;
        let first = (self.bytes & (LIMIT - 1))
            | u64::from(self.port) << PORT_SHIFT
            | u64::from(self.what.0) << WHAT_SHIFT
            | (self.from >> 32 & 0xF) << FROM_HIGH_SHIFT
            | (self.to >> 32 & 0xF) << TO_HIGH_SHIFT
            | parity << PARITY_SHIFT;
        (first, (self.from & 0xFFFF_FFFF) | self.to << TO_LOW_SHIFT)
    }

    #[inline]
    fn decode(first: u64, second: u64) -> Self {
        use layout::*;
        let field = |shift: u32, bits: u32| first >> shift & ((1 << bits) - 1);
        let high = OFFSET_BITS - 32;
        Self {
            what: What(field(WHAT_SHIFT, WHAT_BITS) as u8),
            port: field(PORT_SHIFT, PORT_BITS) as u16,
            to: field(TO_HIGH_SHIFT, high) << 32 | second >> TO_LOW_SHIFT,
            from: field(FROM_HIGH_SHIFT, high) << 32 | (second & 0xFFFF_FFFF),
            bytes: field(0, BYTES_BITS),
        }
    }
}

/// A place in the ring.
#[derive(Debug, Default)]
#[repr(C, align(16))]
struct Entry {
    first: AtomicU64,
    second: AtomicU64,
}

/// The words beside the ring.
#[derive(Debug, Default)]
#[repr(C)]
struct Counters {
    tail: CachePadded<AtomicU64>,
    done: CachePadded<AtomicU64>,
    head: CachePadded<AtomicU64>,
    sleeping: CachePadded<AtomicU32>,
}

/// Where the ring begins in the FIFO's memory.
const RING: usize = 4096;
const _: () = assert!(cfg!(loom) || size_of::<Counters>() <= RING);
const _: () = assert!(cfg!(loom) || size_of::<Entry>() == 16);

/// The ring's words, wherever they lie.
#[derive(Clone, Copy, Debug)]
struct Words<'a> {
    counters: &'a Counters,
    ring: &'a [Entry],
}

impl Words<'_> {
    /// The parity of a trigger's lap: 1 in the first, for the ring begins with zeros.
    #[inline]
    fn parity(&self, number: u64) -> u64 {
        (number / self.ring.len() as u64 & 1) ^ 1
    }

    #[inline]
    fn entry(&self, number: u64) -> &Entry {
        &self.ring[number as usize & (self.ring.len() - 1)]
    }

    /// The trigger's number, or None if the ring is full.
    #[inline]
    fn push(&self, trigger: &Trigger) -> Option<u64> {
        let mut number = self.counters.head.load(Ordering::Relaxed);
        loop {
            let tail = self.counters.tail.load(Ordering::Acquire);
            // A head that was read before others pushed may be behind the tail; then the exchange fails.
            if number.saturating_sub(tail) >= self.ring.len() as u64 {
                return None;
            }
            let (ok, failed) = (Ordering::Relaxed, Ordering::Relaxed);
            match self.counters.head.compare_exchange_weak(number, number + 1, ok, failed) {
                Ok(_) => break,
                Err(other) => number = other,
            }
        }
        let (first, second) = trigger.encode(self.parity(number));
        let entry = self.entry(number);
        entry.second.store(second, Ordering::Relaxed);
        entry.first.store(first, Ordering::Release);
        Some(number)
    }

    /// Whether the consumer sleeps, or is about to, and may have missed what was pushed before.
    #[inline]
    fn must_ring(&self) -> bool {
        // Pairs with the fence in `lie_down`: either this sees `sleeping`, or the consumer's last look the trigger.
        fence(Ordering::SeqCst);
        self.counters.sleeping.load(Ordering::Relaxed) != 0
    }

    /// Trigger `next`, if it is there; its entry is given back.
    #[inline]
    fn poll(&self, next: u64) -> Option<Trigger> {
        let entry = self.entry(next);
        let first = entry.first.load(Ordering::Acquire);
        if first >> layout::PARITY_SHIFT != self.parity(next) {
            return None;
        }
        let trigger = Trigger::decode(first, entry.second.load(Ordering::Relaxed));
        self.counters.tail.store(next + 1, Ordering::Release);
        Some(trigger)
    }

    /// Says that the consumer sleeps; whether trigger `next` has come before that was to be seen.
    fn lie_down(&self, next: u64) -> bool {
        self.counters.sleeping.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.holds(next)
    }

    /// Whether a trigger is there. Relaxed: nothing of it is read.
    fn holds(&self, number: u64) -> bool {
        let first = self.entry(number).first.load(Ordering::Relaxed);
        first >> layout::PARITY_SHIFT == self.parity(number)
    }

    fn get_up(&self) {
        self.counters.sleeping.store(0, Ordering::Relaxed);
    }
}

/// A FIFO: its memory, and the bell of its consumer. Cheap to clone; any thread may push.
#[derive(Clone, Debug)]
pub struct Fifo {
    memory: Arc<Mapping>,
    size: usize,
    bell: Bell,
}

/// What wakes a proxy. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Bell(Arc<OwnedFd>);

impl Bell {
    /// A bell that nobody has rung.
    ///
    /// # Errors
    /// There are no descriptors.
    pub fn new() -> Result<Self, Error> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self(Arc::new(fd.map_err(system("a proxy's bell"))?)))
    }

    /// Wakes the proxy, or keeps it from falling asleep. One system call.
    pub fn ring(&self) {
        // The only error is that it was rung 2^64 times.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    /// Whether it was rung; it is silent then.
    pub(super) fn hush(&self) -> bool {
        rustix::io::read(&*self.0, &mut [0; 8]).is_ok()
    }

    /// Sleeps until it is rung, at most so long.
    pub(super) fn wait(&self, longest: Duration) {
        let mut fds = [PollFd::from_borrowed_fd(self.fd(), PollFlags::IN)];
        let _ = crate::bootstrap::wire::wait(&mut fds, longest);
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Fifo {
    /// A FIFO for so many triggers, a power of two, whose consumer is woken by `bell`.
    ///
    /// # Errors
    /// Another size, or there is no memory.
    pub fn new(size: usize, bell: Bell) -> Result<Self, Error> {
        if !size.is_power_of_two() || size > 1 << 20 {
            let problem = "has to be a power of two, at most 2^20";
            return Err(Error::Argument { argument: "size of a FIFO", problem });
        }
        let memory = Mapping::create(RING + size * 16).map_err(system("memory for a FIFO"))?.0;
        Ok(Self { memory: Arc::new(memory), size, bell })
    }

    /// Triggers that the ring holds: `Fifo::size` of port.cuh.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Its memory, page aligned, for a device to map: address and bytes. Good as long as the FIFO or a clone lives.
    pub fn memory(&self) -> (*mut u8, usize) {
        (self.memory.base(), self.memory.len())
    }

    /// Where `Fifo::ring`, `tail` and `done` of port.cuh lie in it. Its `head` and `tail_cache` are device memory of the
    /// kernel's side; a FIFO has producers on one device or on the host, not both.
    pub fn offsets(&self) -> (usize, usize, usize) {
        let [tail, done] =
            [std::mem::offset_of!(Counters, tail), std::mem::offset_of!(Counters, done)];
        (RING, tail, done)
    }

    /// What wakes its consumer: whoever launches a kernel that pushes should ring it, for kernels cannot.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    fn words(&self) -> Words<'_> {
        let base = self.memory.base();
        // SAFETY: the mapping is page aligned, has room for the counters and behind them for `size` entries, began as
        // zeros, which are valid, and is only ever accessed as atomics.
        unsafe {
            let ring = std::slice::from_raw_parts(base.add(RING).cast::<Entry>(), self.size);
            Words { counters: &*base.cast::<Counters>(), ring }
        }
    }

    /// Pushes a trigger of the host, if there is room; its number. Wakes the consumer if it sleeps. What this thread has
    /// written, or seen to be written, of the source is sent.
    ///
    /// # Errors
    /// [`NetError::OutOfRange`] for numbers that have more than 36 bits.
    #[inline]
    pub fn try_push(&self, trigger: &Trigger) -> Result<Option<u64>, NetError> {
        if !trigger.fits() {
            let (what, memory) = ("a trigger", u32::from(trigger.port));
            let (offset, len) = (trigger.to.max(trigger.from), trigger.bytes);
            return Err(NetError::OutOfRange { what, memory, offset, len, size: LIMIT });
        }
        let words = self.words();
        let number = words.push(trigger);
        if number.is_some() && words.must_ring() {
            self.bell.ring();
        }
        Ok(number)
    }

    /// As [`Fifo::try_push`], but waits for room, at most so long.
    ///
    /// # Errors
    /// Also [`NetError::TimedOut`]: the proxy carries nothing out.
    #[inline]
    pub fn push(&self, trigger: &Trigger, timeout: Duration) -> Result<u64, NetError> {
        match self.try_push(trigger)? {
            Some(number) => Ok(number),
            None => self.push_slowly(trigger, timeout),
        }
    }

    #[cold]
    fn push_slowly(&self, trigger: &Trigger, timeout: Duration) -> Result<u64, NetError> {
        let mut wait = Wait::new(timeout);
        loop {
            if let Some(number) = self.try_push(trigger)? {
                return Ok(number);
            }
            if !wait.pause() {
                let what = format!("room in a FIFO of {} for port {}", self.size, trigger.port);
                return Err(NetError::TimedOut { what, timeout });
            }
        }
    }

    /// Triggers that are carried out, all before them too: their sources may be written again. Acquire.
    #[inline]
    pub fn done(&self) -> u64 {
        self.words().counters.done.load(Ordering::Acquire)
    }

    /// Waits until `number` and all before have been carried out.
    ///
    /// # Errors
    /// [`NetError::TimedOut`].
    pub fn wait_done(&self, number: u64, timeout: Duration) -> Result<(), NetError> {
        let mut wait = Wait::new(timeout);
        while self.done() <= number {
            if !wait.pause() {
                let what = format!("trigger {number} of a FIFO; {} are carried out", self.done());
                return Err(NetError::TimedOut { what, timeout });
            }
        }
        Ok(())
    }
}

/// The one consumer's side of a FIFO.
#[derive(Debug)]
pub struct Consumer {
    fifo: Fifo,
    next: u64,
    done: u64,
}

impl Consumer {
    /// Of a FIFO that has none, from its first trigger on.
    pub fn new(fifo: Fifo) -> Self {
        Self { fifo, next: 0, done: 0 }
    }

    /// The next trigger, if it is there. Its entry is free then.
    #[inline]
    pub fn poll(&mut self) -> Option<Trigger> {
        let trigger = self.fifo.words().poll(self.next)?;
        self.next += 1;
        Some(trigger)
    }

    /// Triggers that were polled.
    #[inline]
    pub fn polled(&self) -> u64 {
        self.next
    }

    /// Triggers that are there and were not polled.
    pub fn pending(&self) -> u64 {
        let words = self.fifo.words();
        let there = |number: &u64| words.holds(*number);
        (self.next..self.next + self.fifo.size as u64).take_while(there).count() as u64
    }

    /// Publishes that so many triggers have been carried out: their sources may be written again.
    #[inline]
    pub fn publish_done(&mut self, done: u64) {
        if done != self.done {
            self.done = done;
            self.fifo.words().counters.done.store(done, Ordering::Release);
        }
    }

    /// Before a sleep: producers ring from now on; whether there is something, so that it must not sleep.
    pub fn lie_down(&self) -> bool {
        self.fifo.words().lie_down(self.next)
    }

    /// After it.
    pub fn get_up(&self) {
        self.fifo.words().get_up();
    }
}

/// A bounded wait of the host for words that nobody rings for: spins, yields, then sleeps in growing slices.
#[derive(Debug)]
pub(super) struct Wait {
    looks: u32,
    timeout: Duration,
    since: Option<Instant>,
}

impl Wait {
    const SPINS: u32 = 2_000;
    const YIELD: Duration = Duration::from_millis(2);
    const SLICE: Duration = Duration::from_millis(1);

    pub(super) fn new(timeout: Duration) -> Self {
        Self { looks: 0, timeout, since: None }
    }

    /// After a look that found nothing; false if the time is over.
    #[inline]
    pub(super) fn pause(&mut self) -> bool {
        if self.looks < Self::SPINS {
            self.looks += 1;
            std::hint::spin_loop();
            return true;
        }
        self.pause_slow()
    }

    #[cold]
    fn pause_slow(&mut self) -> bool {
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        if waited >= self.timeout {
            return false;
        }
        if waited < Self::YIELD {
            rustix::thread::sched_yield();
        } else {
            // The sleep is a small part of the wait.
            std::thread::sleep((waited / 16).min(Self::SLICE).min(self.timeout - waited));
        }
        true
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fifo(size: usize) -> Fifo {
        Fifo::new(size, Bell::new().unwrap()).unwrap()
    }

    fn signal(port: u16) -> Trigger {
        Trigger { what: What::SIGNAL, port, ..Trigger::default() }
    }

    /// The constants of port.cuh, from its text.
    #[test]
    fn both_sides_have_one_layout() {
        let header = include_str!("../../../kernels/device/port.cuh");
        let constant = |name: &str| -> u32 {
            let at = header.find(&format!("{name} = ")).unwrap_or_else(|| panic!("no {name}"));
            let digits = header[at + name.len() + 3..].chars().take_while(char::is_ascii_digit);
            digits.collect::<String>().parse().unwrap()
        };
        for (name, ours) in [
            ("BYTES_BITS", layout::BYTES_BITS),
            ("OFFSET_BITS", layout::OFFSET_BITS),
            ("PORT_BITS", layout::PORT_BITS),
            ("WHAT_BITS", layout::WHAT_BITS),
            ("PORT_SHIFT", layout::PORT_SHIFT),
            ("WHAT_SHIFT", layout::WHAT_SHIFT),
            ("FROM_HIGH_SHIFT", layout::FROM_HIGH_SHIFT),
            ("TO_HIGH_SHIFT", layout::TO_HIGH_SHIFT),
            ("PARITY_SHIFT", layout::PARITY_SHIFT),
            ("TO_LOW_SHIFT", layout::TO_LOW_SHIFT),
            ("PUT", What::PUT.0.into()),
            ("SIGNAL", What::SIGNAL.0.into()),
            ("FLUSH", What::FLUSH.0.into()),
        ] {
            assert_eq!(constant(name), ours, "{name}");
        }
    }

    #[test]
    fn a_full_ring_says_so_and_laps_are_told_apart() {
        let fifo = fifo(4);
        let mut consumer = Consumer::new(fifo.clone());
        for lap in 0..5 {
            assert_eq!(consumer.poll(), None);
            for k in 0..4 {
                assert_eq!(fifo.try_push(&signal(k)).unwrap(), Some(4 * lap + u64::from(k)));
            }
            assert_eq!(fifo.try_push(&signal(9)).unwrap(), None);
            let full = fifo.push(&signal(9), Duration::from_millis(20)).unwrap_err();
            assert!(full.to_string().contains("room in a FIFO of 4 for port 9"), "{full}");
            (0..4).for_each(|k| assert_eq!(consumer.poll(), Some(signal(k))));
        }
        assert_eq!((consumer.polled(), fifo.done()), (20, 0));
        assert!(fifo.wait_done(19, Duration::from_millis(20)).is_err());
        consumer.publish_done(20);
        fifo.wait_done(19, Duration::ZERO).unwrap();
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let fifo = fifo(4);
        let good = Trigger { bytes: LIMIT - 1, to: LIMIT - 1, from: LIMIT - 1, ..signal(u16::MAX) };
        for bad in [
            Trigger { bytes: LIMIT, ..good },
            Trigger { to: LIMIT, ..good },
            Trigger { from: u64::MAX, ..good },
        ] {
            assert!(matches!(fifo.try_push(&bad), Err(NetError::OutOfRange { .. })));
        }
        fifo.try_push(&good).unwrap();
        assert_eq!(Consumer::new(fifo).poll(), Some(good));
        for size in [0, 3, 1 << 21] {
            assert!(Fifo::new(size, Bell::new().unwrap()).is_err());
        }
    }

    #[test]
    fn producers_of_several_threads_lose_nothing() {
        let fifo = fifo(8);
        let mut consumer = Consumer::new(fifo.clone());
        let (threads, each) = (3u64, 5_000u64);
        std::thread::scope(|s| {
            for port in 0..threads as u16 {
                let fifo = fifo.clone();
                s.spawn(move || {
                    for bytes in 0..each {
                        fifo.push(&Trigger { bytes, ..signal(port) }, Duration::from_secs(20))
                            .unwrap();
                    }
                });
            }
            let mut next = vec![0; threads as usize];
            let mut wait = Wait::new(Duration::from_secs(20));
            while consumer.polled() < threads * each {
                match consumer.poll() {
                    Some(trigger) => {
                        let next = &mut next[usize::from(trigger.port)];
                        assert_eq!(trigger.bytes, *next, "in the order of its thread");
                        *next += 1;
                    }
                    None => assert!(wait.pause()),
                }
            }
        });
    }

    #[test]
    fn a_sleeper_is_rung_for() {
        let fifo = fifo(8);
        let mut consumer = Consumer::new(fifo.clone());
        fifo.try_push(&signal(1)).unwrap();
        assert!(!fifo.bell().hush(), "nobody sleeps");
        assert!(consumer.lie_down(), "something is there");
        consumer.get_up();
        consumer.poll().unwrap();
        assert!(!consumer.lie_down());
        fifo.try_push(&signal(2)).unwrap();
        let begin = Instant::now();
        fifo.bell().wait(Duration::from_secs(20));
        assert!(begin.elapsed() < Duration::from_secs(10) && fifo.bell().hush());
    }

    proptest! {
        #[test]
        fn triggers_survive_their_words(what in 0..8u8, port: u16, to in 0..LIMIT, from in 0..LIMIT,
                                        bytes in 0..LIMIT, parity in 0..2u64) {
            let trigger = Trigger { what: What(what), port, to, from, bytes };
            let (first, second) = trigger.encode(parity);
            prop_assert_eq!(Trigger::decode(first, second), trigger);
            prop_assert_eq!(first >> 63, parity);
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;

    struct Memory {
        counters: Counters,
        ring: Vec<Entry>,
        /// What each trigger is about: its source.
        sources: Vec<UnsafeCell<u64>>,
    }

    fn memory(size: usize, sources: usize) -> Arc<Memory> {
        let ring = (0..size).map(|_| Entry::default()).collect();
        let sources = (0..sources).map(|_| UnsafeCell::new(0)).collect();
        Arc::new(Memory { counters: Counters::default(), ring, sources })
    }

    impl Memory {
        fn words(&self) -> Words<'_> {
            Words { counters: &self.counters, ring: &self.ring }
        }

        fn push(&self, source: usize) {
            // SAFETY: ordered by the FIFO; that is what loom checks here.
            self.sources[source].with_mut(|at| unsafe { *at = 100 + source as u64 });
            let trigger =
                Trigger { bytes: source as u64, from: source as u64, ..Trigger::default() };
            while self.words().push(&trigger).is_none() {
                loom::thread::yield_now();
            }
        }

        /// Takes so many triggers, reads their sources, and counts them as done.
        fn consume(&self, count: u64) {
            for next in 0..count {
                let trigger = loop {
                    match self.words().poll(next) {
                        Some(trigger) => break trigger,
                        None => loom::thread::yield_now(),
                    }
                };
                // Of two words of one trigger, not of two laps.
                assert_eq!(trigger.bytes, trigger.from);
                // SAFETY: as above.
                let value = self.sources[trigger.from as usize].with(|at| unsafe { *at });
                assert_eq!(value, 100 + trigger.from);
                self.counters.done.store(next + 1, Ordering::Release);
            }
        }
    }

    /// Triggers come whole and once, with their sources, over several laps of the ring.
    #[test]
    fn laps_of_a_ring_of_one() {
        loom::model(|| {
            let shared = memory(1, 3);
            let theirs = shared.clone();
            let producer =
                loom::thread::spawn(move || (0..3).for_each(|source| theirs.push(source)));
            shared.consume(3);
            producer.join().unwrap();
        });
    }

    #[test]
    fn two_producers_of_the_host() {
        loom::model(|| {
            let shared = memory(2, 2);
            let producers = [0, 1].map(|source| {
                let theirs = shared.clone();
                loom::thread::spawn(move || theirs.push(source))
            });
            shared.consume(2);
            producers.into_iter().for_each(|producer| producer.join().unwrap());
        });
    }

    /// A source may be written again once it is done.
    #[test]
    fn a_flushed_source_may_be_written() {
        loom::model(|| {
            let shared = memory(1, 1);
            let theirs = shared.clone();
            let producer = loom::thread::spawn(move || {
                theirs.push(0);
                while theirs.counters.done.load(Ordering::Acquire) < 1 {
                    loom::thread::yield_now();
                }
                // SAFETY: as above.
                theirs.sources[0].with_mut(|at| unsafe { *at = 7 });
            });
            shared.consume(1);
            producer.join().unwrap();
        });
    }

    /// Either the producer sees that the consumer sleeps, or the consumer sees the trigger.
    #[test]
    fn no_wake_up_is_missed() {
        loom::model(|| {
            let shared = memory(2, 1);
            let theirs = shared.clone();
            let producer = loom::thread::spawn(move || {
                theirs.push(0);
                theirs.words().must_ring()
            });
            let saw = shared.words().lie_down(0);
            let rung = producer.join().unwrap();
            assert!(saw || rung, "asleep for ever");
        });
    }
}
