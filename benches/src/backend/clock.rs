//! What calls are timed with: the host's clock, or a stream's events.

use std::time::Instant;

use anyhow::Result;

/// Marks on a time line.
pub trait Clock {
    /// Marks the end of what was run so far.
    fn mark(&mut self) -> Result<()>;

    /// Seconds from each mark to the next. Asked for after everything is finished.
    fn intervals(&mut self) -> Result<Vec<f64>>;
}

/// The clock of calls that end when they return.
pub struct HostClock(Vec<Instant>);

impl HostClock {
    /// With room for so many marks, so that none of them allocates.
    pub fn new(marks: usize) -> Self {
        Self(Vec::with_capacity(marks))
    }
}

impl Clock for HostClock {
    #[inline]
    fn mark(&mut self) -> Result<()> {
        self.0.push(Instant::now());
        Ok(())
    }

    fn intervals(&mut self) -> Result<Vec<f64>> {
        Ok(self.0.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_lie_between_marks() {
        let mut clock = HostClock::new(3);
        for _ in 0..3 {
            clock.mark().unwrap();
        }
        let intervals = clock.intervals().unwrap();
        assert!(intervals.len() == 2 && intervals.iter().all(|seconds| *seconds >= 0.0));
    }
}
