//! Semaphores that peers of other hosts count up.

use std::sync::Arc;

use super::words::HostWords;
use crate::error::Error;
use crate::gpu::Gpu;
use crate::sync::{AtomicU64, Ordering};
use crate::sys::Mapping;

/// A table of counters, each with one peer that counts it up and any number of readers. A semaphore has a word for
/// each *lane* (a NIC): transfers of one lane arrive in order, those of different lanes do not. Begins with zeros;
/// counts for ever. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Signals {
    words: Arc<HostWords>,
    semaphores: usize,
    lanes: usize,
    /// Where kernels find the words, if they can.
    device: Option<u64>,
}

impl Signals {
    /// A table for so many semaphores.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(semaphores: usize, lanes: usize) -> Result<Self, Error> {
        let (semaphores, lanes) = (semaphores.max(1), lanes.max(1));
        let words = HostWords::new(semaphores * lanes * 8, "memory for signals")?;
        Ok(Self { words: Arc::new(words), semaphores, lanes, device: None })
    }

    /// As [`Signals::new`], in pinned memory of the host, so that kernels of a GPU can wait for them too.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn on_gpu(gpu: &Gpu, semaphores: usize, lanes: usize) -> Result<Self, Error> {
        let (semaphores, lanes) = (semaphores.max(1), lanes.max(1));
        let words = HostWords::pinned(gpu, semaphores * lanes * 8)?;
        let device = words.device();
        Ok(Self { words: Arc::new(words), semaphores, lanes, device })
    }

    /// Words of one lane in memory of the host that peers write, and beside them, for kernels, the same in memory of the device.
    pub(crate) fn doubled(words: Mapping, semaphores: usize, device: u64) -> Self {
        assert!(words.len() >= semaphores * 8, "{semaphores} semaphores");
        let words = Arc::new(HostWords::Mapped(words));
        Self { words, semaphores, lanes: 1, device: Some(device) }
    }

    /// Words of a semaphore: it is the least of them.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// Where a semaphore's words lie for kernels, in the memory of which this was made: None without one, or for a semaphore that
    /// there is not.
    pub fn device_words(&self, semaphore: u32) -> Option<u64> {
        let there = (semaphore as usize) < self.semaphores;
        let at = |base| base + semaphore as u64 * self.lanes as u64 * 8;
        self.device.filter(|_| there).map(at)
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
