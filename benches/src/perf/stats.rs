//! What a row of times says.

/// Of the times of single iterations, in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// The times, in the order in which they were measured.
    pub times: Vec<f64>,
    sorted: Vec<f64>,
}

impl Stats {
    /// None of no times.
    pub fn new(times: Vec<f64>) -> Option<Self> {
        let mut sorted = times.clone();
        sorted.sort_by(f64::total_cmp);
        (!times.is_empty()).then_some(Self { times, sorted })
    }

    /// The least.
    pub fn min(&self) -> f64 {
        self.sorted[0]
    }

    /// The greatest.
    pub fn max(&self) -> f64 {
        self.sorted[self.sorted.len() - 1]
    }

    /// The value that `percent` of the times do not exceed (nearest rank). Below 100 times the
    /// 99th percentile is the greatest.
    pub fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.sorted.len() * percent).div_ceil(100).max(1);
        self.sorted[rank - 1]
    }

    /// The mean.
    pub fn mean(&self) -> f64 {
        self.sorted.iter().sum::<f64>() / self.sorted.len() as f64
    }

    /// The standard deviation of these times.
    pub fn deviation(&self) -> f64 {
        let mean = self.mean();
        let squares = self.sorted.iter().map(|time| (time - mean).powi(2));
        (squares.sum::<f64>() / self.sorted.len() as f64).sqrt()
    }

    /// The standard deviation as a percentage of the mean.
    pub fn variation(&self) -> f64 {
        let mean = self.mean();
        if mean > 0.0 { 100.0 * self.deviation() / mean } else { 0.0 }
    }
}

/// The middle of some values, 0 of none.
pub fn median(values: &[f64]) -> f64 {
    Stats::new(values.to_vec()).map_or(0.0, |stats| stats.percentile(50))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let stats = Stats::new((1..=200).rev().map(f64::from).collect()).unwrap();
        assert_eq!((stats.min(), stats.max()), (1.0, 200.0));
        assert_eq!((stats.percentile(50), stats.percentile(99)), (100.0, 198.0));
        assert_eq!(stats.mean(), 100.5);
        assert!((stats.deviation() - 57.73).abs() < 0.01);
        assert!(Stats::new(vec![]).is_none());
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }
}
