//! What the ranks tell each other about the measurement: small, and not by what is measured.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use warpmesh::bootstrap::{Bootstrap, BootstrapError};

/// One bootstrap for the benchmark and the communicator that it makes. Both make collective calls
/// only, one after the other and in the same order on every rank.
#[derive(Clone)]
pub struct Control {
    bootstrap: Arc<Mutex<Box<dyn Bootstrap>>>,
}

impl Control {
    /// Shares a bootstrap.
    pub fn new(bootstrap: impl Bootstrap + 'static) -> Self {
        Self { bootstrap: Arc::new(Mutex::new(Box::new(bootstrap))) }
    }

    /// Every rank's numbers, by rank. Every rank calls it, with as many.
    pub fn gather(&self, mine: &[f64]) -> Result<Vec<Vec<f64>>> {
        let bytes: Vec<u8> = mine.iter().flat_map(|number| number.to_le_bytes()).collect();
        let all = self.gather_bytes(&bytes)?;
        let same = all.iter().all(|theirs| theirs.len() == bytes.len());
        ensure!(same, "ranks are out of step: they report on different measurements");
        let number = |bytes: &[u8; 8]| f64::from_le_bytes(*bytes);
        Ok(all.iter().map(|bytes| bytes.as_chunks().0.iter().map(number).collect()).collect())
    }

    /// Every rank's text, by rank.
    pub fn gather_text(&self, mine: &str) -> Result<Vec<String>> {
        let all = self.gather_bytes(mine.as_bytes())?;
        Ok(all.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect())
    }

    /// The sum over all ranks.
    pub fn sum(&self, mine: f64) -> Result<f64> {
        Ok(self.gather(&[mine])?.iter().map(|of| of[0]).sum())
    }

    /// The greatest of all ranks.
    pub fn max(&self, mine: f64) -> Result<f64> {
        Ok(self.gather(&[mine])?.iter().map(|of| of[0]).fold(f64::MIN, f64::max))
    }

    fn gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut bootstrap = self.bootstrap.lock().unwrap_or_else(PoisonError::into_inner);
        bootstrap.all_gather(mine).context("exchanging results with the other ranks")
    }
}

impl Bootstrap for Control {
    fn rank(&self) -> usize {
        self.bootstrap.lock().unwrap_or_else(PoisonError::into_inner).rank()
    }

    fn world(&self) -> usize {
        self.bootstrap.lock().unwrap_or_else(PoisonError::into_inner).world()
    }

    fn all_gather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, BootstrapError> {
        self.bootstrap.lock().unwrap_or_else(PoisonError::into_inner).all_gather(mine)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use warpmesh::bootstrap::LocalBootstrap;

    use super::*;

    #[test]
    fn ranks_see_each_others_numbers() {
        let ranks = LocalBootstrap::create(3, Duration::from_secs(10)).unwrap();
        let ask = |bootstrap: LocalBootstrap| {
            let control = Control::new(bootstrap);
            let rank = control.rank() as f64;
            (control.sum(rank).unwrap(), control.max(rank).unwrap())
        };
        std::thread::scope(|scope| {
            let ranks: Vec<_> = ranks.into_iter().map(|b| scope.spawn(move || ask(b))).collect();
            for rank in ranks {
                assert_eq!(rank.join().unwrap(), (3.0, 2.0));
            }
        });
    }
}
