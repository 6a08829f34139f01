//! How threads of the host wait for words of the network's side.

use std::time::{Duration, Instant};

/// A bounded wait of the host for words that nobody rings for: spins, yields, then sleeps in growing slices.
#[derive(Debug)]
pub(in crate::net) struct Wait {
    looks: u32,
    timeout: Duration,
    since: Option<Instant>,
}

impl Wait {
    const SPINS: u32 = 2_000;
    const YIELD: Duration = Duration::from_millis(2);
    const SLICE: Duration = Duration::from_millis(1);

    pub(in crate::net) fn new(timeout: Duration) -> Self {
        Self { looks: 0, timeout, since: None }
    }

    /// After a look that found nothing; false if the time is over.
    #[inline]
    pub(in crate::net) fn pause(&mut self) -> bool {
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
