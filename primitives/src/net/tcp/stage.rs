//! Where bytes of device memory wait on their way to a socket, or from one: a ring in pinned memory of the host, and a stream of the
//! copy engine. Never blocks.
//!
//! ```text
//!   to the socket:    device ──copy──► ring ──sendmsg──►      begun: copies were queued up to here
//!   from the socket:  ──recvmsg──► ring ──copy──► device      landed: they are done; freed: the ring's bytes may be written again
//! ```

use std::collections::VecDeque;

use super::connection::Cause;
use super::memories::Range;
use crate::gpu::{CopyQueue, CudaError, Gpu, HostMemory};

/// Bytes of a ring.
const RING: usize = 1 << 20;
/// Bytes of a copy: some fit in the ring, so that copying and sending overlap.
const CHUNK: usize = 256 << 10;

/// A ring and its stream. Positions count bytes for ever.
#[derive(Debug)]
pub(super) struct Stage {
    // Dropped before the memory that its copies use: it waits for them.
    copies: CopyQueue,
    memory: HostMemory,
    begun: u64,
    landed: u64,
    freed: u64,
    underway: VecDeque<Underway>,
    /// Semaphores to count up when what lies before a position has landed.
    signals: VecDeque<(u64, u32)>,
    failed: Option<CudaError>,
}

/// A copy that was queued.
#[derive(Debug)]
struct Underway {
    mark: u64,
    end: u64,
    /// Keeps its memory.
    _range: Range,
}

impl Stage {
    pub(super) fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        Ok(Self {
            copies: CopyQueue::new(gpu)?,
            memory: gpu.host_memory(RING)?,
            begun: 0,
            landed: 0,
            freed: 0,
            underway: VecDeque::with_capacity(2 * RING / CHUNK),
            signals: VecDeque::new(),
            failed: None,
        })
    }

    /// Where new bytes go, and how many have room there in a row.
    pub(super) fn room(&self) -> (*mut u8, usize) {
        let free = RING - (self.begun - self.freed) as usize;
        let at = self.begun as usize % RING;
        (self.at(self.begun), free.min(RING - at))
    }

    /// A position's byte.
    pub(super) fn at(&self, position: u64) -> *mut u8 {
        // SAFETY: inside the ring.
        unsafe { self.memory.host().add(position as usize % RING) }
    }

    /// Where the next bytes go.
    pub(super) fn begun(&self) -> u64 {
        self.begun
    }

    /// Bytes in a row from a position on that have landed.
    pub(super) fn ready(&self, position: u64) -> usize {
        let row = RING - position as usize % RING;
        (self.landed.saturating_sub(position) as usize).min(row)
    }

    /// Queues a copy out of a range, from `at` on: how many bytes it is of.
    pub(super) fn fetch(&mut self, range: &Range, at: usize) -> usize {
        let (_, room) = self.room();
        let bytes = (range.bytes - at).min(room).min(CHUNK);
        if bytes > 0 {
            self.copy(range, self.begun, range.at(at) as u64, false, bytes);
        }
        bytes
    }

    /// Queues a copy of bytes that were written to [`Stage::room`] into a range, from `at` on.
    pub(super) fn store(&mut self, range: &Range, at: usize, bytes: usize) {
        if bytes > 0 {
            self.copy(range, self.begun, range.at(at) as u64, true, bytes);
        }
    }

    fn copy(&mut self, range: &Range, position: u64, device: u64, in_: bool, bytes: usize) {
        let ring = self.memory.device() + position % RING as u64;
        let (to, from) = if in_ { (device, ring) } else { (ring, device) };
        // SAFETY: the range was checked, and what is underway keeps it; the ring's part is this copy's until it has landed.
        let queued = unsafe { self.copies.copy(to, from, bytes) };
        self.begun += bytes as u64;
        match queued.and_then(|()| self.copies.mark()) {
            Ok(mark) => {
                let (end, _range) = (self.begun, range.clone());
                self.underway.push_back(Underway { mark, end, _range });
            }
            Err(error) => self.failed = Some(error),
        }
    }

    /// Takes note of copies that are done; whether any were.
    #[inline]
    pub(super) fn look(&mut self) -> Result<bool, Cause> {
        if let Some(error) = &self.failed {
            return Err(format!("copying to or from the device: {error}"));
        }
        if self.underway.is_empty() {
            return Ok(false);
        }
        let (done, before) = (self.copies.done(), self.landed);
        while self.underway.front().is_some_and(|copy| copy.mark <= done) {
            self.landed = self.underway.pop_front().map_or(self.landed, |copy| copy.end);
        }
        if before == self.landed {
            // A copy that failed is never done.
            self.copies
                .check()
                .map_err(|error| format!("copying to or from the device: {error}"))?;
        }
        Ok(before != self.landed)
    }

    /// Bytes were sent: their place is free.
    pub(super) fn free(&mut self, bytes: usize) {
        self.freed += bytes as u64;
    }

    /// What has landed needs no place any more.
    pub(super) fn free_landed(&mut self) {
        self.freed = self.landed;
    }

    /// Whether copies are underway.
    #[inline]
    pub(super) fn is_copying(&self) -> bool {
        !self.underway.is_empty()
    }

    /// Keeps a signal until all that was stored before has landed.
    pub(super) fn signal_behind(&mut self, semaphore: u32) {
        self.signals.push_back((self.begun, semaphore));
    }

    /// The next signal whose data has landed.
    pub(super) fn next_signal(&mut self) -> Option<u32> {
        let (position, semaphore) = *self.signals.front()?;
        if position > self.landed {
            return None;
        }
        self.signals.pop_front();
        Some(semaphore)
    }

    /// Waits for all copies, which wait for nothing.
    pub(super) fn finish(&mut self) {
        if self.copies.finish().is_ok() {
            let _ = self.look();
        }
    }
}
