//! Semaphores that peers of other hosts count up.

use std::sync::Arc;

use crate::error::{Error, system};
use crate::sync::{AtomicU64, Ordering};
use crate::sys::Mapping;

/// A table of counters, each with one peer that counts it up and any number of readers. A semaphore has a word for
/// each *lane* (a NIC): transfers of one lane arrive in order, those of different lanes do not. Begins with zeros;
/// counts for ever. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Signals {
    words: Arc<Mapping>,
    semaphores: usize,
    lanes: usize,
}

impl Signals {
    /// A table for so many semaphores.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(semaphores: usize, lanes: usize) -> Result<Self, Error> {
        let (semaphores, lanes) = (semaphores.max(1), lanes.max(1));
        let (words, _) =
            Mapping::create(semaphores * lanes * 8).map_err(system("memory for signals"))?;
        Ok(Self { words: Arc::new(words), semaphores, lanes })
    }

    /// How many semaphores there are.
    pub fn len(&self) -> usize {
        self.semaphores
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.semaphores == 0
    }

    /// Signals that have come, with all data before them. Acquire.
    ///
    /// # Panics
    /// If there is no such semaphore.
    #[inline]
    pub fn seen(&self, semaphore: u32) -> u64 {
        let lane = |lane| self.word(semaphore, lane).load(Ordering::Acquire);
        (0..self.lanes).map(lane).min().unwrap_or(0)
    }

    /// Counts up, for data that the calling thread has written, or has seen to be written. Release.
    #[inline]
    pub(crate) fn count(&self, semaphore: u32, lane: usize) {
        self.word(semaphore, lane).fetch_add(1, Ordering::Release);
    }

    /// Where the words are, and how many bytes: semaphore by semaphore, lane by lane.
    pub(crate) fn memory(&self) -> (*mut u8, usize) {
        (self.words.base(), self.words.len())
    }

    /// The word of a lane, which NICs of peers may count up.
    #[inline]
    pub(crate) fn word(&self, semaphore: u32, lane: usize) -> &AtomicU64 {
        assert!(
            (semaphore as usize) < self.semaphores && lane < self.lanes,
            "semaphore {semaphore}"
        );
        // SAFETY: in range by the assertion; page aligned; only ever accessed as atomics in this process.
        unsafe {
            &*self.words.base().cast::<AtomicU64>().add(semaphore as usize * self.lanes + lane)
        }
    }
}
