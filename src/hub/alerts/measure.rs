//! What alerts are about: gauges when they are asked for; rates and percentiles over slots of time, of which the latest few
//! are kept. A rate is that of the latest slot. A percentile is that of as many of the latest slots as have enough
//! measurements together, so that what is measured often is seen soon, and what is measured seldom is seen at all.

use std::{collections::VecDeque, time::Duration};

use super::{super::Hub, watch::Measured};
use crate::{
    limits,
    metrics::{LISTENERS, Metrics, Since, Slice, Spans},
    types::{AlertName, Span},
};

/// What is measured.
pub struct Measure {
    slot: Duration,
    /// When the slot began that is open.
    opened: Duration,
    failures: u64,
    error_rate: Measured,
    confirmed: Series,
    replied: Series,
}

/// The latest slots of something, as many as there are at most.
struct Series {
    mark: Since,
    slots: VecDeque<Slice>,
    most: usize,
}

impl Measure {
    /// Nothing so far, from `at` on, to be seen within `fire_after`.
    pub fn new(Span(fire_after): Span, at: Duration, metrics: &Metrics) -> Self {
        let (least, most) = limits::ALERT_WINDOW;
        let window = fire_after.clamp(least, most);
        let slot = (window / limits::ALERT_SLOTS).max(limits::ALERT_TICK);
        let slots = (window.as_millis() / slot.as_millis()) as usize;
        Self {
            slot,
            opened: at,
            failures: metrics.failures_total(),
            error_rate: Measured::Unknown,
            confirmed: Series::new(metrics.confirm_spans(), slots),
            replied: Series::new(&metrics.reply_latency, slots),
        }
    }

    /// Closes the slot and opens the next, where it is time.
    pub fn turn(&mut self, at: Duration, metrics: &Metrics) {
        let open = at.saturating_sub(self.opened);
        // A tick comes a little early or late.
        if open + limits::ALERT_TICK / 2 < self.slot {
            return;
        }
        let failures = metrics.failures_total();
        self.error_rate = Measured::Value((failures - self.failures) as f64 / open.as_secs_f64());
        self.confirmed.turn(metrics.confirm_spans());
        self.replied.turn(&metrics.reply_latency);
        (self.opened, self.failures) = (at, failures);
    }

    /// What is measured now.
    pub fn of(&self, name: AlertName, hub: &Hub) -> Measured {
        let value = match name {
            AlertName::ErrorRate => return self.error_rate,
            AlertName::ConfirmP99 => return self.confirmed.p99(),
            AlertName::ReplyP99 => return self.replied.p99(),
            AlertName::CertificateExpiry => {
                let expiries = LISTENERS.iter().filter_map(|name| hub.metrics().certificate_expires_at(name));
                let now = hub.clock().unix_millis().0 as f64 / 1000.0;
                let first = expiries.min().map(|first| first as f64 - now);
                return first.map_or(Measured::Unknown, Measured::Value);
            }
            AlertName::CertificateReload => u64::try_from(hub.metrics().certificates_refused()).unwrap_or_default(),
            AlertName::DiskFree => match hub.store().disk().free_bytes {
                Some(bytes) => bytes,
                None => return Measured::Unknown,
            },
            AlertName::Connections => hub.metrics().connections.get(),
            AlertName::PendingCount => hub.store().totals().count,
            AlertName::PendingBytes => hub.store().totals().bytes,
            AlertName::Disk => hub.store().disk().used_bytes,
            AlertName::EventLag => hub.events().lag(),
        };
        Measured::Value(value as f64)
    }
}

impl Series {
    fn new(spans: &Spans, most: usize) -> Self {
        Self { mark: spans.mark(), slots: VecDeque::new(), most: most.max(1) }
    }

    fn turn(&mut self, spans: &Spans) {
        self.slots.push_front(spans.cut(&mut self.mark));
        self.slots.truncate(self.most);
    }

    /// In seconds. Of a few measurements one in a hundred is none, and a single slow one no alert.
    fn p99(&self) -> Measured {
        let mut slots = self.slots.iter();
        let Some(mut latest) = slots.next().cloned() else { return Measured::Unknown };
        while latest.count() < limits::ALERT_MEASUREMENTS_MIN {
            match slots.next() {
                Some(earlier) => latest.join(earlier),
                None if latest.count() == 0 => return Measured::Nothing,
                None => return Measured::Unknown,
            }
        }
        Measured::Value(latest.percentiles().p99.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{metrics::Failure, types::Span};

    const SECOND: Duration = Duration::from_secs(1);

    fn over(seconds: u64) -> (Metrics, Measure) {
        let metrics = Metrics::default();
        let measure = Measure::new(Span::secs(seconds), Duration::ZERO, &metrics);
        (metrics, measure)
    }

    fn seconds(measured: Measured) -> f64 {
        let Measured::Value(seconds) = measured else { panic!("{measured:?}") };
        (seconds * 10.0).round() / 10.0
    }

    #[test]
    fn a_rate_is_that_of_the_latest_sixth_of_the_span() {
        let (metrics, mut measure) = over(60);
        for second in 1..=120 {
            // Two a second for a minute, then two hundred.
            (0..if second <= 60 { 2 } else { 200 }).for_each(|_| metrics.failure(Failure::Forbidden));
            measure.turn(SECOND * second, &metrics);
            let expected = match second {
                ..10 => Measured::Unknown,
                10..70 => Measured::Value(2.0),
                _ => Measured::Value(200.0),
            };
            assert_eq!(measure.error_rate, expected, "{second}");
        }
    }

    #[test]
    fn a_percentile_is_that_of_the_latest_slots_with_enough_measurements() {
        let (metrics, mut measure) = over(60);
        let mut at = Duration::ZERO;
        let mut slot = |measure: &mut Measure, seconds: u64, count: u64| {
            if count > 0 {
                metrics.confirmed(SECOND * u32::try_from(seconds).unwrap(), count);
            }
            at += 10 * SECOND;
            measure.turn(at, &metrics);
            measure.confirmed.p99()
        };
        assert_eq!(measure.confirmed.p99(), Measured::Unknown);
        assert_eq!(slot(&mut measure, 0, 0), Measured::Nothing);
        assert_eq!(slot(&mut measure, 1, 19), Measured::Unknown);
        assert_eq!(seconds(slot(&mut measure, 2, 1)), 2.0, "twenty, in two slots");
        assert_eq!(seconds(slot(&mut measure, 3, 20)), 3.0, "at once where there are enough");
        assert_eq!(seconds(slot(&mut measure, 1, 1000)), 1.0);
        assert_eq!(seconds(slot(&mut measure, 30, 1)), 1.0, "one in a thousand");
        for _ in 0..4 {
            assert_eq!(seconds(slot(&mut measure, 0, 0)), 1.0, "the latest that there were");
        }
        // The thousand fall out of the minute, and then the last one.
        assert_eq!(slot(&mut measure, 0, 0), Measured::Unknown);
        assert_eq!(slot(&mut measure, 0, 0), Measured::Nothing);
        assert_eq!(slot(&mut measure, 5, 19), Measured::Unknown);
        assert!((0..5).all(|_| slot(&mut measure, 0, 0) == Measured::Unknown));
        assert_eq!(slot(&mut measure, 0, 0), Measured::Nothing);
    }

    #[test]
    fn no_slot_is_shorter_than_a_look_and_the_window_has_whole_ones() {
        for (span, slot, slots) in
            [(0, 1000, 1), (1, 1000, 1), (3, 1000, 3), (6, 1000, 6), (30, 5000, 6), (3600, 10_000, 6)]
        {
            let (_, measure) = over(span);
            assert_eq!((measure.slot.as_millis(), measure.confirmed.most), (slot, slots), "{span}");
        }
    }
}
