//! Copies between memory of a device and rings in memory of the host, for transports whose network does not reach the device, and what
//! waits behind these copies. Never blocks.
//!
//! Copies land in the order in which they were queued. A *position* counts bytes that were queued, for ever.

use std::collections::VecDeque;
use std::fmt;

use crate::gpu::{CopyQueue, CudaError};

/// What copies: a stream of the copy engine, or what a test puts in its place.
pub(in crate::net) trait Copier: Send + fmt::Debug {
    /// Queues a copy.
    ///
    /// # Safety
    /// Both ranges are memory that the device reaches, until the mark behind is done.
    unsafe fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), CudaError>;

    /// A number that [`Copier::done`] reaches when all that was queued before has happened.
    fn mark(&mut self) -> Result<u64, CudaError>;

    /// The last mark that has happened. Acquire.
    fn done(&self) -> u64;

    /// Whether something went wrong. Does not block.
    fn check(&mut self) -> Result<(), CudaError>;

    /// Waits for all that was queued, which waits for nothing.
    fn finish(&mut self) -> Result<(), CudaError>;
}

impl Copier for CopyQueue {
    unsafe fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { CopyQueue::copy(self, to, from, bytes) }
    }

    fn mark(&mut self) -> Result<u64, CudaError> {
        CopyQueue::mark(self)
    }

    #[inline]
    fn done(&self) -> u64 {
        CopyQueue::done(self)
    }

    fn check(&mut self) -> Result<(), CudaError> {
        CopyQueue::check(self)
    }

    fn finish(&mut self) -> Result<(), CudaError> {
        CopyQueue::finish(self)
    }
}

/// Copies that were queued, with what keeps their memory.
#[derive(Debug)]
pub(in crate::net) struct Copies<K, C = CopyQueue> {
    // Dropped before what the copies use: it waits for them.
    copier: C,
    underway: VecDeque<Underway<K>>,
    begun: u64,
    landed: u64,
    failed: Option<CudaError>,
}

#[derive(Debug)]
struct Underway<K> {
    mark: u64,
    end: u64,
    keep: K,
}

impl<K, C: Copier> Copies<K, C> {
    pub(in crate::net) fn new(copier: C) -> Self {
        Self { copier, underway: VecDeque::with_capacity(16), begun: 0, landed: 0, failed: None }
    }

    /// Bytes that were queued.
    #[inline]
    pub(in crate::net) fn begun(&self) -> u64 {
        self.begun
    }

    /// Of these, those that have landed.
    #[inline]
    pub(in crate::net) fn landed(&self) -> u64 {
        self.landed
    }

    /// Queues a copy. What fails is told by [`Copies::look`].
    ///
    /// # Safety
    /// `keep` keeps the memory of the device, and the ring's range is this copy's until it has landed.
    pub(in crate::net) unsafe fn copy(&mut self, to: u64, from: u64, bytes: usize, keep: K) {
        // SAFETY: the caller's promise.
        let queued = unsafe { self.copier.copy(to, from, bytes) };
        self.begun += bytes as u64;
        match queued.and_then(|()| self.copier.mark()) {
            Ok(mark) => self.underway.push_back(Underway { mark, end: self.begun, keep }),
            Err(error) => self.failed = Some(error),
        }
    }

    /// Takes note of copies that are done; whether any were.
    #[inline]
    pub(in crate::net) fn look(&mut self) -> Result<bool, String> {
        let failed = |error: &CudaError| format!("copying to or from the device: {error}");
        if let Some(error) = &self.failed {
            return Err(failed(error));
        }
        if self.underway.is_empty() {
            return Ok(false);
        }
        let (done, before) = (self.copier.done(), self.landed);
        while self.underway.front().is_some_and(|copy| copy.mark <= done) {
            self.landed = self.underway.pop_front().map_or(self.landed, |copy| copy.end);
        }
        if before == self.landed {
            // A copy that failed is never done.
            self.copier.check().map_err(|error| failed(&error))?;
        }
        Ok(before != self.landed)
    }

    /// Whether copies are underway.
    #[inline]
    pub(in crate::net) fn is_copying(&self) -> bool {
        !self.underway.is_empty()
    }

    /// Whether a copy is underway whose memory is such.
    pub(in crate::net) fn uses(&self, is: impl Fn(&K) -> bool) -> bool {
        self.underway.iter().any(|copy| is(&copy.keep))
    }

    /// Waits for all copies, which wait for nothing.
    pub(in crate::net) fn finish(&mut self) {
        if self.copier.finish().is_ok() {
            let _ = self.look();
        }
    }
}

/// What happens when all copies before it have landed.
#[derive(Debug)]
pub(in crate::net) struct Behind<T>(VecDeque<(u64, T)>);

impl<T> Default for Behind<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Behind<T> {
    /// Keeps it until all up to a position has landed. Positions never fall.
    pub(in crate::net) fn push(&mut self, position: u64, what: T) {
        self.0.push_back((position, what));
    }

    /// The next one, if what it waits for has landed.
    pub(in crate::net) fn next(&mut self, landed: u64) -> Option<T> {
        let ready = self.0.front().is_some_and(|(position, _)| *position <= landed);
        if ready { self.0.pop_front().map(|(_, what)| what) } else { None }
    }
}

#[cfg(test)]
pub(in crate::net) mod fake {
    //! Copies by the processor, each when the test lets it happen.

    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use super::*;

    #[derive(Debug, Default)]
    struct Held {
        waiting: RefCell<VecDeque<(u64, u64, usize)>>,
        queued: Cell<u64>,
        done: Cell<u64>,
        broken: Cell<bool>,
    }

    /// A stream whose work happens by [`FakeCopier::step`].
    #[derive(Clone, Debug, Default)]
    pub(in crate::net) struct FakeCopier(Rc<Held>);

    // SAFETY: tests with it have one thread.
    unsafe impl Send for FakeCopier {}

    impl FakeCopier {
        /// Does the first copy that waits; whether there was one.
        pub(in crate::net) fn step(&self) -> bool {
            let Some((to, from, bytes)) = self.0.waiting.borrow_mut().pop_front() else {
                return false;
            };
            // SAFETY: both are memory of the test, as who queued it promised.
            unsafe { (from as *const u8).copy_to(to as *mut u8, bytes) };
            self.0.done.set(self.0.done.get() + 1);
            true
        }

        /// All that comes fails.
        pub(in crate::net) fn break_it(&self) {
            self.0.broken.set(true);
        }
    }

    impl Copier for FakeCopier {
        unsafe fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), CudaError> {
            self.0.waiting.borrow_mut().push_back((to, from, bytes));
            self.0.queued.set(self.0.queued.get() + 1);
            self.check()
        }

        fn mark(&mut self) -> Result<u64, CudaError> {
            Ok(self.0.queued.get())
        }

        fn done(&self) -> u64 {
            self.0.done.get()
        }

        fn check(&mut self) -> Result<(), CudaError> {
            if self.0.broken.get() { Err(CudaError::NoDriver) } else { Ok(()) }
        }

        fn finish(&mut self) -> Result<(), CudaError> {
            while self.step() {}
            self.check()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::FakeCopier;
    use super::*;

    #[test]
    fn what_waits_comes_when_all_before_it_has_landed() {
        let copier = FakeCopier::default();
        let mut copies: Copies<(), _> = Copies::new(copier.clone());
        let (mut behind, from, mut to) = (Behind::default(), [1_u8; 8], [0_u8; 8]);
        let addresses = (to.as_mut_ptr() as u64, from.as_ptr() as u64);
        for half in [0, 4] {
            // SAFETY: halves of two arrays that outlive the copies.
            unsafe { copies.copy(addresses.0 + half, addresses.1 + half, 4, ()) };
            behind.push(copies.begun(), half);
        }
        assert!(!copies.look().unwrap() && copies.is_copying());
        assert_eq!(behind.next(copies.landed()), None);
        assert!(copier.step() && copies.look().unwrap());
        assert_eq!((behind.next(copies.landed()), behind.next(copies.landed())), (Some(0), None));
        copies.finish();
        assert_eq!((behind.next(copies.landed()), to), (Some(4), [1; 8]));
        assert!(!copies.is_copying());
    }

    #[test]
    fn a_copy_that_fails_is_told() {
        let copier = FakeCopier::default();
        let mut copies: Copies<(), _> = Copies::new(copier.clone());
        copier.break_it();
        let mut byte = 0_u8;
        let at = &raw mut byte as u64;
        // SAFETY: a byte that outlives the copy.
        unsafe { copies.copy(at, at, 1, ()) };
        assert!(copies.look().unwrap_err().contains("copying to or from the device"));
    }
}
