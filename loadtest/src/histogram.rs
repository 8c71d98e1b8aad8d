//! Latencies in constant memory: a log-linear histogram, 64 steps per power of two (error below 1.6 %).

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

const STEP_BITS: u32 = 6;
const STEPS: usize = 1 << STEP_BITS;
/// 2^36 microseconds are 19 hours.
const POWERS: usize = 36;

/// Counts of durations by microseconds.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u32>,
    total: u64,
    max_us: u64,
}

/// The percentiles a report prints, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// How many durations were counted.
    pub count: u64,
    /// Half are not above this.
    pub p50_ms: f64,
    /// 95 of 100 are not above this.
    pub p95_ms: f64,
    /// 99 of 100 are not above this.
    pub p99_ms: f64,
    /// 999 of 1,000 are not above this.
    pub p999_ms: f64,
    /// The largest one, exact.
    pub max_ms: f64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram {
            counts: vec![0; STEPS * POWERS],
            total: 0,
            max_us: 0,
        }
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Percentiles {
            count,
            p50_ms,
            p95_ms,
            p99_ms,
            p999_ms,
            max_ms,
        } = self;
        write!(
            f,
            "p50={p50_ms:.2} p95={p95_ms:.2} p99={p99_ms:.2} p99.9={p999_ms:.2} max={max_ms:.2} n={count}"
        )
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.max_us = self.max_us.max(us);
        self.total += 1;
        let last = self.counts.len() - 1;
        if let Some(count) = self.counts.get_mut(index(us).min(last)) {
            *count += 1;
        }
    }

    /// Adds what another session counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.max_us = self.max_us.max(other.max_us);
    }

    /// The figures a report prints.
    pub fn percentiles(&self) -> Percentiles {
        Percentiles {
            count: self.total,
            p50_ms: self.quantile(0.50),
            p95_ms: self.quantile(0.95),
            p99_ms: self.quantile(0.99),
            p999_ms: self.quantile(0.999),
            max_ms: self.max_us as f64 / 1000.0,
        }
    }

    fn quantile(&self, share: f64) -> f64 {
        let wanted = (self.total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= wanted && seen > 0 {
                return upper(at).min(self.max_us) as f64 / 1000.0;
            }
        }
        0.0
    }
}

/// Values below `STEPS` have a place each; above, each power of two is cut into `STEPS` equal parts.
fn index(us: u64) -> usize {
    if us < STEPS as u64 {
        return us as usize;
    }
    let power = us.ilog2() - STEP_BITS;
    (power as usize + 1) * STEPS + ((us >> power) as usize - STEPS)
}

/// The largest value counted at `at`.
fn upper(at: usize) -> u64 {
    if at < STEPS {
        return at as u64;
    }
    let power = (at / STEPS - 1) as u32;
    (((at % STEPS + STEPS) as u64 + 1) << power) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_within_its_place() {
        for us in (0..5_000_000u64).step_by(37) {
            let high = upper(index(us));
            assert!(
                high >= us && high as f64 <= us as f64 * 1.016 + 1.0,
                "{us} {high}"
            );
        }
    }

    #[test]
    fn percentiles_of_a_ramp() {
        let mut one = Histogram::default();
        let mut two = Histogram::default();
        for us in 1..=10_000u64 {
            if us % 2 == 0 { &mut one } else { &mut two }.record(Duration::from_micros(us));
        }
        one.merge(&two);
        let got = one.percentiles();
        assert_eq!(got.count, 10_000);
        assert!(
            (got.p50_ms - 5.0).abs() < 0.08 && (got.p99_ms - 9.9).abs() < 0.16,
            "{got:?}"
        );
        assert_eq!(got.max_ms, 10.0);
        assert_eq!(Histogram::default().percentiles(), Percentiles::default());
    }
}
