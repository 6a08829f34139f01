//! Where bytes of device memory wait on their way to a socket, or from one: a ring in pinned memory of the host, and a stream of the
//! copy engine. Never blocks.
//!
//! ```text
//!   to the socket:    device ──copy──► ring ──sendmsg──►      begun: copies were queued up to here
//!   from the socket:  ──recvmsg──► ring ──copy──► device      landed: they are done; freed: the ring's bytes may be written again
//! ```

use super::connection::Cause;
use super::memories::Range;
use crate::gpu::{CopyQueue, CudaError, Gpu, HostMemory};
use crate::net::copies::{Behind, Copies};

/// Bytes of a ring.
const RING: usize = 1 << 20;
/// Bytes of a copy: some fit in the ring, so that copying and sending overlap.
const CHUNK: usize = 256 << 10;

/// A ring and its stream. Positions count bytes for ever.
#[derive(Debug)]
pub(super) struct Stage {
    // Dropped before the memory that its copies use: it waits for them.
    copies: Copies<Range>,
    memory: HostMemory,
    freed: u64,
    /// Semaphores to count up when what lies before a position has landed.
    signals: Behind<u32>,
}

impl Stage {
    pub(super) fn new(gpu: &Gpu) -> Result<Self, CudaError> {
        let copies = Copies::new(CopyQueue::new(gpu)?);
        let memory = gpu.host_memory(RING)?;
        Ok(Self { copies, memory, freed: 0, signals: Behind::default() })
    }

    /// Where new bytes go, and how many have room there in a row.
    pub(super) fn room(&self) -> (*mut u8, usize) {
        let begun = self.copies.begun();
        let free = RING - (begun - self.freed) as usize;
        let at = begun as usize % RING;
        (self.at(begun), free.min(RING - at))
    }

    /// A position's byte.
    pub(super) fn at(&self, position: u64) -> *mut u8 {
        // SAFETY: inside the ring.
        unsafe { self.memory.host().add(position as usize % RING) }
    }

    /// Where the next bytes go.
    pub(super) fn begun(&self) -> u64 {
        self.copies.begun()
    }

    /// Bytes in a row from a position on that have landed.
    pub(super) fn ready(&self, position: u64) -> usize {
        let row = RING - position as usize % RING;
        (self.copies.landed().saturating_sub(position) as usize).min(row)
    }

    /// Queues a copy out of a range, from `at` on: how many bytes it is of.
    pub(super) fn fetch(&mut self, range: &Range, at: usize) -> usize {
        let (_, room) = self.room();
        let bytes = (range.bytes - at).min(room).min(CHUNK);
        if bytes > 0 {
            self.copy(range, range.at(at) as u64, false, bytes);
        }
        bytes
    }

    /// Queues a copy of bytes that were written to [`Stage::room`] into a range, from `at` on.
    pub(super) fn store(&mut self, range: &Range, at: usize, bytes: usize) {
        if bytes > 0 {
            self.copy(range, range.at(at) as u64, true, bytes);
        }
    }

    fn copy(&mut self, range: &Range, device: u64, in_: bool, bytes: usize) {
        let ring = self.memory.device() + self.copies.begun() % RING as u64;
        let (to, from) = if in_ { (device, ring) } else { (ring, device) };
        // SAFETY: the range was checked, and keeps its memory; the ring's part is this copy's until it has landed.
        unsafe { self.copies.copy(to, from, bytes, range.clone()) };
    }

    /// Takes note of copies that are done; whether any were.
    #[inline]
    pub(super) fn look(&mut self) -> Result<bool, Cause> {
        self.copies.look()
    }

    /// Bytes were sent: their place is free.
    pub(super) fn free(&mut self, bytes: usize) {
        self.freed += bytes as u64;
    }

    /// What has landed needs no place any more.
    pub(super) fn free_landed(&mut self) {
        self.freed = self.copies.landed();
    }

    /// Whether copies are underway.
    #[inline]
    pub(super) fn is_copying(&self) -> bool {
        self.copies.is_copying()
    }

    /// Keeps a signal until all that was stored before has landed.
    pub(super) fn signal_behind(&mut self, semaphore: u32) {
        self.signals.push(self.copies.begun(), semaphore);
    }

    /// The next signal whose data has landed.
    pub(super) fn next_signal(&mut self) -> Option<u32> {
        self.signals.next(self.copies.landed())
    }

    /// Waits for all copies, which wait for nothing.
    pub(super) fn finish(&mut self) {
        self.copies.finish();
    }
}
