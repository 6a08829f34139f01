//! What the machine can do: copying, and adding floats, by all ranks at the same time. Measured
//! in the same run as the collectives, so that noise and neighbours hit both.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;

use super::control::Control;

/// Bandwidths in GB/s, summed over the ranks that took part; each byte that was written counts
/// once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Copying memory.
    pub copy: f64,
    /// Adding two rows of f32 into a third.
    pub add: f64,
    /// Ranks that took part, as many as there are cores for.
    pub workers: usize,
    /// Bytes that each wrote at a time.
    pub bytes: usize,
}

const REPETITIONS: usize = 4;

impl Machine {
    /// Measures with buffers of `bytes` bytes, within bounds, on the first `workers` ranks. Every
    /// rank calls it.
    pub fn measure(control: &Control, rank: usize, workers: usize, bytes: usize) -> Result<Self> {
        let bytes = bytes.clamp(1 << 20, 64 << 20);
        let mut work = (rank < workers).then(|| Work::new(bytes / 4));
        let copy = best(control, workers, bytes, || work.as_mut().map(Work::copy))?;
        let add = best(control, workers, bytes, || work.as_mut().map(Work::add))?;
        Ok(Self { copy, add, workers, bytes })
    }

    /// The share of the copy bandwidth that it takes to write `bytes` bytes in `seconds`.
    pub fn fraction(&self, bytes: f64, seconds: f64) -> f64 {
        bytes / seconds / 1e9 / self.copy
    }
}

/// The best of some repetitions; of each the time of the slowest rank counts.
fn best<R>(
    control: &Control,
    workers: usize,
    bytes: usize,
    mut work: impl FnMut() -> R,
) -> Result<f64> {
    let mut best = f64::MAX;
    // The first one touches the pages.
    for repetition in 0..=REPETITIONS {
        control.gather(&[])?;
        let start = Instant::now();
        work();
        let slowest = control.max(start.elapsed().as_secs_f64())?;
        if repetition > 0 {
            best = best.min(slowest);
        }
    }
    Ok((workers * bytes) as f64 / best / 1e9)
}

struct Work {
    a: Vec<f32>,
    b: Vec<f32>,
    to: Vec<f32>,
}

impl Work {
    fn new(count: usize) -> Self {
        Self { a: vec![1.0; count], b: vec![2.0; count], to: vec![0.0; count] }
    }

    fn copy(&mut self) {
        self.to.copy_from_slice(black_box(&self.a));
        black_box(&mut self.to);
    }

    fn add(&mut self) {
        let (a, b) = (black_box(&self.a), black_box(&self.b));
        for ((to, a), b) in self.to.iter_mut().zip(a).zip(b) {
            *to = a + b;
        }
        black_box(&mut self.to);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use warpmesh::bootstrap::LocalBootstrap;

    use super::*;

    #[test]
    fn a_machine_copies_and_adds() {
        let mut alone = LocalBootstrap::create(1, Duration::from_secs(60)).unwrap();
        let control = Control::new(alone.remove(0));
        let machine = Machine::measure(&control, 0, 1, 0).unwrap();
        assert!(machine.copy > 0.01 && machine.add > 0.01, "{machine:?}");
        assert_eq!((machine.workers, machine.bytes), (1, 1 << 20));
        let half = machine.fraction(machine.copy * 0.5e9, 1.0);
        assert!((half - 0.5).abs() < 1e-9);
    }
}
