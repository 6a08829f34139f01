//! Counting semaphores between two ranks.
//!
//! One word has one writer (the signalling rank, in whose memory it lies) and one reader.
//! It counts up from zero for ever; at one signal a nanosecond 64 bits last 584 years, so it is
//! never reset and there is no epoch to agree on.
//!
//! ```text
//!   writer (owns the memory)       reader
//!   data stores
//!   signal: store count+1 Release ──► wait: load Acquire until >= expected
//!                                   data loads
//! ```

use crate::sync::{AtomicU64, Ordering};

/// The shared word.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct SemaphoreWord(AtomicU64);

impl SemaphoreWord {
    /// Publishes the writer's `count`: everything that this thread stored before is visible to
    /// the reader that sees it. Only the one writer calls this, with ascending counts, so a store
    /// is enough and no read-modify-write is needed.
    #[inline]
    pub fn publish(&self, count: u64) {
        self.0.store(count, Ordering::Release);
    }

    /// Whether the writer has counted to `expected`; if not, how far it is. Does not block.
    /// Success makes all that the writer stored before that signal visible (Acquire).
    #[inline]
    pub fn reached(&self, expected: u64) -> Result<(), u64> {
        let seen = self.0.load(Ordering::Acquire);
        if seen >= expected { Ok(()) } else { Err(seen) }
    }
}

/// The writer's end: how often it has signalled.
#[derive(Debug, Default)]
pub struct SignalCount(u64);

impl SignalCount {
    /// Counts up and publishes. Never blocks.
    #[inline]
    pub fn signal(&mut self, word: &SemaphoreWord) {
        self.0 += 1;
        word.publish(self.0);
    }
}

/// The reader's end: how many signals it has consumed.
#[derive(Debug, Default)]
pub struct WaitCount(u64);

impl WaitCount {
    /// The count that the next wait needs.
    #[inline]
    pub fn expected(&self) -> u64 {
        self.0 + 1
    }

    /// Consumes one signal if it is there; otherwise says how far the writer is.
    #[inline]
    pub fn try_wait(&mut self, word: &SemaphoreWord) -> Result<(), u64> {
        word.reached(self.0 + 1)?;
        self.0 += 1;
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_signal_is_consumed_once() {
        let word = SemaphoreWord::default();
        let (mut signals, mut waits) = (SignalCount::default(), WaitCount::default());
        assert_eq!(waits.try_wait(&word), Err(0));
        signals.signal(&word);
        signals.signal(&word);
        assert_eq!(waits.try_wait(&word), Ok(()));
        assert_eq!(waits.try_wait(&word), Ok(()));
        assert_eq!(waits.try_wait(&word), Err(2));
        assert_eq!(waits.expected(), 3);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;

    /// Data written before a signal is seen after the wait, and may be overwritten once the
    /// reader's own signal came back. With a Relaxed store or load loom reports the race.
    #[test]
    fn signals_order_plain_data_both_ways() {
        loom::model(|| {
            let shared = Arc::new((
                UnsafeCell::new(0_u64),
                SemaphoreWord::default(),
                SemaphoreWord::default(),
            ));
            let theirs = shared.clone();
            let writer = loom::thread::spawn(move || {
                let (data, full, empty) = &*theirs;
                let (mut signals, mut waits) = (SignalCount::default(), WaitCount::default());
                for value in 1..=2 {
                    // SAFETY: ordered by the semaphores; that is what loom checks here.
                    data.with_mut(|data| unsafe { *data = value });
                    signals.signal(full);
                    while waits.try_wait(empty).is_err() {
                        loom::thread::yield_now();
                    }
                }
            });
            let (data, full, empty) = &*shared;
            let (mut signals, mut waits) = (SignalCount::default(), WaitCount::default());
            for value in 1..=2 {
                while waits.try_wait(full).is_err() {
                    loom::thread::yield_now();
                }
                // SAFETY: as above.
                data.with(|data| assert_eq!(unsafe { *data }, value));
                signals.signal(empty);
            }
            writer.join().unwrap();
        });
    }
}
