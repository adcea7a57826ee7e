//! Stands in for the published crate `base2histogram`, through `[patch.crates-io]`.
//!
//! openraft and raft-log count latencies and batch sizes with it. The published crate (0.2.3) fills
//! lookup tables for 16 precisions on first use, 24 MB of which one precision is ever used: half of
//! the memory of an idle agent. This one has the part of its interface that they call, and computes
//! what that looks up. It goes when the published crate fills its tables on demand.

#![forbid(unsafe_code)]

use std::{fmt, marker::PhantomData};

/// Bits of a value, behind its highest one, that are kept: buckets are at most a quarter wide.
const PRECISION: u32 = 2;
const PER_POWER: usize = 1 << PRECISION;
/// Values below have a bucket each; every power of two above has [`PER_POWER`].
const BUCKETS: usize = PER_POWER + (64 - PRECISION as usize) * PER_POWER;

/// Counts of `u64` values in logarithmic buckets. The parameter is that of the published crate's
/// slots, which are not used.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    /// Empty until the first value.
    counts: Vec<u64>,
    slots: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Histogram {
            counts: Vec::new(),
            slots: PhantomData,
        }
    }
}

impl<T> fmt::Debug for Histogram<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram")
            .field("stats", &self.percentile_stats())
            .finish()
    }
}

/// The bucket of a value.
fn bucket(value: u64) -> usize {
    if value < PER_POWER as u64 {
        return value as usize;
    }
    let power = value.ilog2();
    let within = (value >> (power - PRECISION)) as usize & (PER_POWER - 1);
    PER_POWER + (power - PRECISION) as usize * PER_POWER + within
}

/// The smallest value of a bucket.
fn smallest(bucket: usize) -> u64 {
    if bucket < PER_POWER {
        return bucket as u64;
    }
    let (shift, within) = (
        (bucket - PER_POWER) / PER_POWER,
        (bucket - PER_POWER) % PER_POWER,
    );
    ((PER_POWER + within) as u64) << shift
}

impl<T> Histogram<T> {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Records a value as often as `count` says.
    pub fn record_n(&mut self, value: u64, count: u64) {
        if self.counts.is_empty() {
            self.counts = vec![0; BUCKETS];
        }
        self.counts[bucket(value)] += count;
    }

    /// The smallest value of the bucket that holds the value below which `share` of all values lie.
    fn percentile(&self, samples: u64, share: f64) -> u64 {
        let rank = (samples as f64 * share).ceil() as u64;
        let mut below = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            below += count;
            if below >= rank.max(1) {
                return smallest(bucket);
            }
        }
        0
    }

    pub fn percentile_stats(&self) -> PercentileStats {
        let samples = self.counts.iter().sum();
        let at = |share| self.percentile(samples, share);
        PercentileStats {
            samples,
            p0_1: at(0.001),
            p1: at(0.01),
            p5: at(0.05),
            p10: at(0.1),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
        }
    }
}

/// Percentiles of a [`Histogram`]; all 0 while it is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} samples, p50 {}, p90 {}, p99 {}, p99.9 {}",
            self.samples, self.p50, self.p90, self.p99, self.p99_9
        )
    }
}

/// Several histograms, one line each.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart(Vec<(String, PercentileStats)>);

impl AsciiChart {
    pub fn new() -> Self {
        Self::default()
    }

    #[allow(clippy::should_implement_trait)]
    pub fn add<T>(mut self, name: impl Into<String>, histogram: Histogram<T>) -> Self {
        self.0.push((name.into(), histogram.percentile_stats()));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|(name, stats)| writeln!(f, "{name}: {stats}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_falls_into_the_bucket_that_begins_at_or_below_it() {
        let values = (0..=70u32).chain(1000..1100).map(u64::from);
        let powers = (2..64).flat_map(|power| [(1 << power) - 1, 1 << power, (1 << power) + 1]);
        for value in values.chain(powers).chain([u64::MAX]) {
            let bucket = bucket(value);
            assert!(bucket < BUCKETS && smallest(bucket) <= value, "{value}");
            assert!(
                bucket + 1 == BUCKETS || smallest(bucket + 1) > value,
                "{value}"
            );
        }
    }

    #[test]
    fn percentiles_are_within_a_quarter() {
        let mut histogram: Histogram = Histogram::new();
        assert_eq!(histogram.percentile_stats().p99, 0);
        for value in 1..=1000 {
            histogram.record(value);
        }
        let stats = histogram.percentile_stats();
        assert_eq!(stats.samples, 1000);
        for (found, exact) in [(stats.p1, 10), (stats.p50, 500), (stats.p99, 990)] {
            assert!(
                found <= exact && exact - found <= exact / 4,
                "{found} for {exact}"
            );
        }
    }
}
