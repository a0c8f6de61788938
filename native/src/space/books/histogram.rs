//! How long windows were open: counts in eighths of an octave, so a quantile is right to about 9 %.

use std::time::Duration;

const STEPS: usize = 8; // per doubling
const BUCKETS: usize = 40 * STEPS; // 2^40 ns is 18 minutes

/// Durations, by order of magnitude.
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: vec![0; BUCKETS], total: 0, max: Duration::ZERO }
    }
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, took: Duration) {
        let nanos = took.as_nanos().max(1) as f64;
        let bucket = (nanos.log2() * STEPS as f64) as usize;
        self.counts[bucket.min(BUCKETS - 1)] += 1;
        self.total += 1;
        self.max = self.max.max(took);
    }

    /// How many were counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The longest, exactly.
    pub fn max(&self) -> Duration {
        self.max
    }

    /// The duration that a `share` of them (0 to 1) did not exceed; never more than the longest.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = (self.total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                let upper = 2f64.powf((bucket + 1) as f64 / STEPS as f64);
                return Duration::from_nanos(upper as u64).min(self.max);
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_close_and_the_maximum_is_exact() {
        let mut h = Histogram::default();
        assert_eq!(h.quantile(0.99), Duration::ZERO);
        for micros in 1..=1000 {
            h.record(Duration::from_micros(micros));
        }
        let p99 = h.quantile(0.99).as_micros() as f64;
        assert!((900.0..=1090.0).contains(&p99), "{p99}");
        assert_eq!(h.max(), Duration::from_micros(1000));
        assert_eq!(h.quantile(1.0), Duration::from_micros(1000));
    }
}
