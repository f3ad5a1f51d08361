//! How values are distributed, counted by bounds that are known beforehand: what is recorded for every call or message. It
//! takes no lock and allocates nothing; where percentiles are wanted, see [`Spans`](super::Spans).

use std::time::Duration;

use super::spread::SpreadCounters;

/// The most bounds.
const BOUNDS_MAX: usize = 22;
/// Behind the counts of each bound and of what is above: the sum.
const SUM: usize = BOUNDS_MAX + 1;

/// Bounds of how long the gateway's own work takes, in µs: 100 µs to 60 s.
pub const WORK_MICROS: [u64; 14] =
    [100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 500_000, 2_500_000, 10_000_000, 60_000_000];
/// Bounds of how long others take for their part, in µs: 1 ms to a day.
pub const WAIT_MICROS: [u64; 18] = [
    1000,
    2000,
    5000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    3_600_000_000,
    86_400_000_000,
];
/// Bounds of sizes, in bytes: 256 B to 64 MiB.
pub const SIZE_BYTES: [u64; 10] =
    [1 << 8, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26];

/// See the module's documentation. The unit is that of its bounds.
#[derive(Debug)]
pub struct Distribution {
    bounds: &'static [u64],
    counts: SpreadCounters<{ BOUNDS_MAX + 2 }>,
}

impl Distribution {
    /// Nothing yet, with these bounds, which rise.
    pub fn new(bounds: &'static [u64]) -> Self {
        debug_assert!(bounds.len() <= BOUNDS_MAX && bounds.is_sorted());
        Self { bounds, counts: SpreadCounters::default() }
    }

    /// Records a value.
    pub fn record(&self, value: u64) {
        let bound = self.bounds.partition_point(|bound| *bound < value);
        self.counts.add_both((bound, 1), (SUM, value));
    }

    /// Records a span, in µs.
    pub fn record_span(&self, span: Duration) {
        self.record(u64::try_from(span.as_micros()).unwrap_or(u64::MAX >> 16));
    }

    /// Each bound with how many lie above the one before and not above it, and how many lie above the last.
    pub fn buckets(&self) -> (Vec<(u64, u64)>, u64) {
        let counts = self.bounds.iter().enumerate().map(|(index, bound)| (*bound, self.counts.get(index)));
        (counts.collect(), self.counts.get(self.bounds.len()))
    }

    /// The sum of all values.
    pub fn sum(&self) -> u64 {
        self.counts.get(SUM)
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        (0..=self.bounds.len()).map(|index| self.counts.get(index)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_under_the_first_bound_that_is_not_below_it() {
        let sizes = Distribution::new(&[10, 100]);
        for value in [0, 10, 11, 100, 101, 5000] {
            sizes.record(value);
        }
        assert_eq!(sizes.buckets(), (vec![(10, 2), (100, 2)], 2));
        assert_eq!((sizes.sum(), sizes.count()), (5222, 6));
        for bounds in [&WORK_MICROS[..], &WAIT_MICROS, &SIZE_BYTES] {
            assert!(bounds.is_sorted() && bounds.len() <= BOUNDS_MAX);
        }
    }
}
