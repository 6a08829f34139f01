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

mod trigger;
mod words;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};

pub use self::trigger::{LIMIT, Trigger, What};
use self::words::{Counters, Entry, RING, Words};
use crate::error::{Error, system};
use crate::gpu::Gpu;
use crate::net::NetError;
use crate::net::wait::Wait;
use crate::net::words::HostWords;
use crate::sync::Ordering;

/// A FIFO: its memory, and the bell of its consumer. Cheap to clone; any thread may push.
#[derive(Clone, Debug)]
pub struct Fifo {
    memory: Arc<HostWords>,
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
        let bytes = Self::bytes(size)?;
        Ok(Self { memory: Arc::new(HostWords::new(bytes, "memory for a FIFO")?), size, bell })
    }

    /// As [`Fifo::new`], in memory that kernels of a GPU reach: they push, and no thread of the host does. What they need besides
    /// is in [`DevicePorts`](crate::net::proxy::DevicePorts).
    ///
    /// # Errors
    /// Another size, or the driver refuses.
    pub fn on_gpu(gpu: &Gpu, size: usize, bell: Bell) -> Result<Self, Error> {
        let bytes = Self::bytes(size)?;
        Ok(Self { memory: Arc::new(HostWords::pinned(gpu, bytes)?), size, bell })
    }

    fn bytes(size: usize) -> Result<usize, Error> {
        if !size.is_power_of_two() || size > 1 << 20 {
            let problem = "has to be a power of two, at most 2^20";
            return Err(Error::Argument { argument: "size of a FIFO", problem });
        }
        Ok(RING + size * 16)
    }

    /// Triggers that the ring holds: `Fifo::size` of port.cuh.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Its memory, page aligned, for a device to map: address and bytes. Good as long as the FIFO or a clone lives.
    pub fn memory(&self) -> (*mut u8, usize) {
        (self.memory.base(), self.memory.len())
    }

    /// Where its memory begins for the GPU of [`Fifo::on_gpu`].
    pub fn device(&self) -> Option<u64> {
        self.memory.device()
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

#[cfg(all(test, not(loom)))]
mod tests;
