//! How long things took: a histogram of two significant figures, read as percentiles or counted by bounds.

use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

/// A distribution of spans, from 1 µs to 10 min, to two significant figures: about 30 KiB.
#[derive(Debug)]
pub struct Spans(Mutex<Recorded>);

#[derive(Debug)]
struct Recorded {
    histogram: Histogram<u64>,
    sum_micros: u64,
}

impl Default for Spans {
    fn default() -> Self {
        match Histogram::new_with_bounds(1, 600_000_000, 2) {
            Ok(histogram) => Self(Mutex::new(Recorded { histogram, sum_micros: 0 })),
            Err(_) => unreachable!("constant bounds, low < high, figures in 0..=5"),
        }
    }
}

impl Spans {
    /// Records the same span `count` times.
    pub fn record(&self, span: Duration, count: u64) {
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX).max(1);
        let mut recorded = self.0.lock();
        recorded.histogram.saturating_record_n(micros, count);
        recorded.sum_micros = recorded.sum_micros.saturating_add(micros.saturating_mul(count));
    }

    /// What was recorded so far.
    pub fn percentiles(&self) -> Percentiles {
        Percentiles::of(&self.0.lock().histogram)
    }

    pub(super) fn histogram(&self) -> Histogram<u64> {
        self.0.lock().histogram.clone()
    }

    /// What was recorded so far, counted by these bounds, which rise: how many lie above the bound before and not above the
    /// bound, to two significant figures; and how many lie above the last one.
    pub fn buckets<const N: usize>(&self, bounds: &[Duration; N]) -> Buckets<N> {
        let recorded = self.0.lock();
        let (mut least, mut within, mut counts) = (0, 0, [0; N]);
        for (count, bound) in counts.iter_mut().zip(bounds) {
            let most = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
            // What the histogram cannot tell apart from the bound before was counted with it.
            least = recorded.histogram.next_non_equivalent(least).max(1);
            *count = if least <= most { recorded.histogram.count_between(least, most) } else { 0 };
            (least, within) = (most, within + *count);
        }
        let above = recorded.histogram.len().saturating_sub(within);
        Buckets { counts, above, sum: Duration::from_micros(recorded.sum_micros) }
    }
}

/// [`Spans`], counted by bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buckets<const N: usize> {
    /// How many up to each bound and above the one before.
    pub counts: [u64; N],
    /// How many above the last.
    pub above: u64,
    /// All of them together.
    pub sum: Duration,
}

/// Percentiles of [`Spans`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Percentiles {
    /// How many were measured.
    pub count: u64,
    /// The median.
    pub p50: Duration,
    /// The 90th percentile.
    pub p90: Duration,
    /// The 99th percentile.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

impl Percentiles {
    pub(super) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| Duration::from_micros(histogram.value_at_quantile(quantile));
        Self {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: Duration::from_micros(histogram.max()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_counted_by_bounds() {
        let (spans, ms) = (Spans::default(), Duration::from_millis);
        for (span, count) in
            [(ms(0), 1), (ms(1), 2), (ms(3), 4), (ms(5), 8), (ms(9), 16), (ms(20), 32), (ms(60_000), 64)]
        {
            spans.record(span, count);
        }
        let buckets = spans.buckets(&[ms(1), ms(5), ms(10)]);
        assert_eq!((buckets.counts, buckets.above), ([3, 12, 16], 96));
        let sum = Duration::from_micros(1) + ms(2 + 12 + 40 + 144 + 640 + 64 * 60_000);
        assert_eq!(buckets.sum, sum);
        assert_eq!(Spans::default().buckets(&[ms(1)]), Buckets { counts: [0], above: 0, sum: Duration::ZERO });
        let fine: [Duration; 100] = std::array::from_fn(|n| Duration::from_micros(1000 + n as u64));
        let all = spans.buckets(&fine);
        assert_eq!(all.counts.iter().sum::<u64>() + all.above, 127, "nothing is counted twice");
    }
}
