//! How the watchdog knows that something moves, at next to no cost for those who move.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A value with cache lines of its own (two, because processors fetch them in pairs).
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub T);

/// Counts of what was done, one per worker so that none waits for another's cache line, and one for launches and ends.
pub(crate) struct Progress {
    counts: Box<[Padded<AtomicU64>]>,
    others: AtomicU64,
    /// The sum when somebody last looked and it was new, and when that was.
    seen: Mutex<(u64, Instant)>,
}

impl Progress {
    /// Counts for so many workers.
    pub fn new(workers: usize) -> Self {
        Progress {
            counts: (0..workers).map(|_| Padded::default()).collect(),
            others: AtomicU64::new(0),
            seen: Mutex::new((0, Instant::now())),
        }
    }

    /// A worker's block did something. Relaxed, and no atomic addition: only this worker writes its count.
    pub fn moved(&self, worker: usize) {
        let count = &self.counts[worker].0;
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// A launch began or a block ended.
    pub fn event(&self) {
        self.others.fetch_add(1, Ordering::Relaxed);
        self.quiet_for();
    }

    /// For how long nothing has moved, as far as earlier calls can tell: they are what takes the time.
    pub fn quiet_for(&self) -> Duration {
        let counts = self.counts.iter().map(|c| c.0.load(Ordering::Relaxed));
        let sum = counts.fold(self.others.load(Ordering::Relaxed), u64::wrapping_add);
        let mut seen = self.seen.lock().unwrap();
        if seen.0 != sum {
            *seen = (sum, Instant::now());
        }
        seen.1.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::Progress;
    use std::time::{Duration, Instant};

    #[test]
    fn vgpu_quiet_time_begins_again_with_every_move() {
        let p = Progress::new(2);
        let wait = Duration::from_millis(20);
        std::thread::sleep(wait);
        assert!(p.quiet_for() >= wait);
        for step in [&|| p.moved(1), &|| p.event()] as [&dyn Fn(); 2] {
            let before = Instant::now();
            step();
            let quiet = p.quiet_for();
            assert!(quiet <= before.elapsed(), "{quiet:?}");
            std::thread::sleep(wait);
            assert!(p.quiet_for() >= wait);
        }
    }
}
