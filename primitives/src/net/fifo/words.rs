//! The ring's words, and what both sides do with them. See the table in the [module above](super).

use crossbeam_utils::CachePadded;

use super::trigger::{Trigger, layout};
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// A place in the ring.
#[derive(Debug, Default)]
#[repr(C, align(16))]
pub(super) struct Entry {
    first: AtomicU64,
    second: AtomicU64,
}

/// The words beside the ring.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Counters {
    pub(super) tail: CachePadded<AtomicU64>,
    pub(super) done: CachePadded<AtomicU64>,
    pub(super) head: CachePadded<AtomicU64>,
    pub(super) sleeping: CachePadded<AtomicU32>,
}

/// Where the ring begins in the FIFO's memory.
pub(super) const RING: usize = 4096;
const _: () = assert!(cfg!(loom) || size_of::<Counters>() <= RING);
const _: () = assert!(cfg!(loom) || size_of::<Entry>() == 16);

/// The ring's words, wherever they lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words<'a> {
    pub(super) counters: &'a Counters,
    pub(super) ring: &'a [Entry],
}

impl Words<'_> {
    /// The parity of a trigger's lap: 1 in the first, for the ring begins with zeros.
    #[inline]
    fn parity(&self, number: u64) -> u64 {
        u64::from((number / self.ring.len() as u64).is_multiple_of(2))
    }

    #[inline]
    fn entry(&self, number: u64) -> &Entry {
        &self.ring[number as usize & (self.ring.len() - 1)]
    }

    /// The trigger's number, or None if the ring is full.
    #[inline]
    pub(super) fn push(&self, trigger: &Trigger) -> Option<u64> {
        let number = self.claim()?;
        self.fill(number, trigger);
        Some(number)
    }

    /// A number whose entry the consumer has given back.
    #[inline]
    fn claim(&self) -> Option<u64> {
        let mut number = self.counters.head.load(Ordering::Relaxed);
        loop {
            let tail = self.counters.tail.load(Ordering::Acquire);
            // A head that was read before others pushed may be behind the tail; then the exchange fails.
            if number.saturating_sub(tail) >= self.ring.len() as u64 {
                return None;
            }
            let (ok, failed) = (Ordering::Relaxed, Ordering::Relaxed);
            match self.counters.head.compare_exchange_weak(number, number + 1, ok, failed) {
                Ok(_) => return Some(number),
                Err(other) => number = other,
            }
        }
    }

    #[inline]
    fn fill(&self, number: u64, trigger: &Trigger) {
        let (first, second) = trigger.encode(self.parity(number));
        let entry = self.entry(number);
        entry.second.store(second, Ordering::Relaxed);
        entry.first.store(first, Ordering::Release);
    }

    /// Whether the consumer sleeps, or is about to, and may have missed what was pushed before.
    #[inline]
    pub(super) fn must_ring(&self) -> bool {
        // Pairs with the fence in `lie_down`: either this sees `sleeping`, or the consumer's last look the trigger.
        fence(Ordering::SeqCst);
        self.counters.sleeping.load(Ordering::Relaxed) != 0
    }

    /// Trigger `next`, if it is there; its entry is given back.
    #[inline]
    pub(super) fn poll(&self, next: u64) -> Option<Trigger> {
        let trigger = self.peek(next)?;
        self.give_back(next);
        Some(trigger)
    }

    #[inline]
    fn peek(&self, next: u64) -> Option<Trigger> {
        let entry = self.entry(next);
        let first = entry.first.load(Ordering::Acquire);
        if first >> layout::PARITY_SHIFT != self.parity(next) {
            return None;
        }
        Some(Trigger::decode(first, entry.second.load(Ordering::Relaxed)))
    }

    #[inline]
    fn give_back(&self, next: u64) {
        self.counters.tail.store(next + 1, Ordering::Release);
    }

    /// Says that the consumer sleeps; whether trigger `next` has come before that was to be seen.
    pub(super) fn lie_down(&self, next: u64) -> bool {
        self.counters.sleeping.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.holds(next)
    }

    /// Whether a trigger is there. Relaxed: nothing of it is read.
    pub(super) fn holds(&self, number: u64) -> bool {
        let first = self.entry(number).first.load(Ordering::Relaxed);
        first >> layout::PARITY_SHIFT == self.parity(number)
    }

    pub(super) fn get_up(&self) {
        self.counters.sleeping.store(0, Ordering::Relaxed);
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
        /// What `second` of each entry would be if it were no atomic: tells whether anybody uses an entry too early.
        shadows: Vec<UnsafeCell<u64>>,
    }

    fn memory(size: usize, sources: usize) -> Arc<Memory> {
        let ring = (0..size).map(|_| Entry::default()).collect();
        let cells = |count| (0..count).map(|_| UnsafeCell::new(0)).collect();
        let (sources, shadows) = (cells(sources), cells(size));
        Arc::new(Memory { counters: Counters::default(), ring, sources, shadows })
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
            let number = loop {
                match self.words().claim() {
                    Some(number) => break number,
                    None => loom::thread::yield_now(),
                }
            };
            // SAFETY: as above.
            self.shadow(number).with_mut(|at| unsafe { *at = source as u64 });
            self.words().fill(number, &trigger);
        }

        fn shadow(&self, number: u64) -> &UnsafeCell<u64> {
            &self.shadows[number as usize % self.shadows.len()]
        }

        /// Takes so many triggers, reads their sources, and counts them as done.
        fn consume(&self, count: u64) {
            for next in 0..count {
                let trigger = loop {
                    match self.words().peek(next) {
                        Some(trigger) => break trigger,
                        None => loom::thread::yield_now(),
                    }
                };
                // Of two words of one trigger, not of two laps.
                assert_eq!(trigger.bytes, trigger.from);
                // SAFETY: as above.
                assert_eq!(self.shadow(next).with(|at| unsafe { *at }), trigger.from);
                self.words().give_back(next);
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
