//! What alerts need of the metrics: how many fire, and what [`Spans`] measured since a moment.

use std::sync::atomic::{AtomicBool, Ordering};

use hdrhistogram::Histogram;

use super::{Counter, Failure, Metrics, Percentiles, Spans};
use crate::types::AlertName;

/// How each alert stands, in the order of [`AlertName::ALL`].
#[derive(Debug, Default)]
pub struct Alerts([Standing; AlertName::ALL.len()]);

#[derive(Debug, Default)]
struct Standing {
    firing: AtomicBool,
    fired: Counter,
}

impl Metrics {
    /// An alert fires from now on, or has cleared.
    pub fn set_alert(&self, name: AlertName, firing: bool) {
        let standing = &self.alerts.0[name as usize];
        if !standing.firing.swap(firing, Ordering::Relaxed) && firing {
            standing.fired.inc();
        }
    }

    /// Whether an alert fires.
    pub fn alert_is_firing(&self, name: AlertName) -> bool {
        self.alerts.0[name as usize].firing.load(Ordering::Relaxed)
    }

    /// How often an alert has begun to fire.
    pub fn alerts_fired(&self, name: AlertName) -> u64 {
        self.alerts.0[name as usize].fired.get()
    }

    /// Failures of every kind.
    pub fn failures_total(&self) -> u64 {
        Failure::ALL.iter().map(|&failure| self.failures(failure)).sum()
    }
}

/// What [`Spans`] had measured at a moment.
#[derive(Debug)]
pub struct Since(Histogram<u64>);

impl Spans {
    /// Marks this moment.
    pub fn mark(&self) -> Since {
        Since(self.histogram())
    }

    /// What was recorded since `mark`, which is this moment from now on.
    pub fn cut(&self, mark: &mut Since) -> Slice {
        let mut recorded = self.histogram();
        let before = std::mem::replace(&mut mark.0, recorded.clone());
        // What was recorded is never taken back, so there is nothing that could fail here.
        if recorded.subtract(&before).is_err() {
            recorded.reset();
        }
        Slice(recorded)
    }
}

/// What [`Spans`] measured in a time.
#[derive(Clone, Debug)]
pub struct Slice(Histogram<u64>);

impl Slice {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Puts another with it.
    pub fn join(&mut self, other: &Slice) {
        // All are made alike, so that each has room for the other's values.
        let _ = self.0.add(&other.0);
    }

    /// Their percentiles.
    pub fn percentiles(&self) -> Percentiles {
        Percentiles::of(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_before_the_mark_does_not_count() {
        let spans = Spans::default();
        spans.record(Duration::from_secs(30), 1000);
        let mut mark = spans.mark();
        assert_eq!(spans.cut(&mut mark).count(), 0);
        spans.record(Duration::from_millis(10), 99);
        spans.record(Duration::from_secs(1), 1);
        let mut slice = spans.cut(&mut mark);
        let recent = slice.percentiles();
        assert_eq!(recent.count, 100);
        assert!(recent.p99 < Duration::from_millis(11) && recent.max >= Duration::from_millis(990), "{recent:?}");
        assert_eq!(spans.cut(&mut mark).count(), 0, "the mark has moved");
        spans.record(Duration::from_secs(3), 100);
        slice.join(&spans.cut(&mut mark));
        assert!(slice.count() == 200 && slice.percentiles().p99 > Duration::from_millis(2900), "{slice:?}");
        assert_eq!(spans.percentiles().count, 1200, "and nothing was taken away");
    }

    #[test]
    fn an_alert_is_counted_when_it_begins() {
        let metrics = Metrics::default();
        let (name, other) = (AlertName::Disk, AlertName::DiskFree);
        for firing in [false, true, true, false, true] {
            metrics.set_alert(name, firing);
        }
        assert!(metrics.alert_is_firing(name) && !metrics.alert_is_firing(other));
        assert_eq!((metrics.alerts_fired(name), metrics.alerts_fired(other)), (2, 0));
    }
}
