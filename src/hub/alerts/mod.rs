//! Alerts: what has gone too far for too long is an event, a line in the log and a gauge, and so is its end.
//!
//! One task measures once a second and asks a [`Watch`] for each alert. Nothing is kept over a restart: a node that
//! starts has no alerts, and what is wrong fires anew when it has been wrong for long enough.
//!
//! * `watch.rs`: when an alert fires and clears, by its series of measurements.
//! * `config.rs`: the section `[alerts]`, and the rules that follow from it.
//! * here: what is measured, and who is told.

mod config;
mod watch;

use std::time::Duration;

pub use self::config::Config as AlertsConfig;
use self::{
    config::Whole,
    watch::{Change, Fires, Rule, Watch},
};
use super::Hub;
use crate::{
    limits,
    metrics::{LISTENERS, Metrics, Percentiles, Since},
    types::{Alert, AlertName, EventBody},
};

impl Hub {
    /// The alerts that fire now with what was measured last, in the order of [`AlertName::ALL`].
    pub fn alerts(&self) -> Vec<Alert> {
        self.0.alerts_firing.lock().clone()
    }

    pub(super) async fn run_alerts(&self) {
        let config = &self.0.alerts;
        let mut measure = Measure::new(config, self.metrics());
        let whole = Whole {
            connections: self.limits().connections.0.into(),
            store_bytes: self.quotas().max_bytes,
            disk_bytes: self.0.store.disk().max_bytes,
            events: self.0.events.capacity(),
        };
        let rule = |name: AlertName| Some((name, Watch::new(config.rule(name, whole)?)));
        let mut watches: Vec<_> = AlertName::ALL.iter().copied().filter_map(rule).collect();
        let begun = self.clock().now();
        let mut ticks = tokio::time::interval(limits::ALERT_TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let at = self.clock().now().duration_since(begun);
            measure.turn(at, self.metrics());
            for (name, watch) in &mut watches {
                let value = measure.of(*name, self);
                let change = watch.look(at, value);
                self.note_alert(*name, watch, value, change);
            }
        }
    }

    /// Keeps what fires up to date, and tells of a change.
    fn note_alert(&self, name: AlertName, watch: &Watch, value: Option<f64>, change: Option<Change>) {
        let firing = watch.is_firing();
        if !firing && change.is_none() {
            return;
        }
        let (rule, measured) = (watch.rule(), value.unwrap_or_default());
        let text = text(name, rule, firing, value, change.is_some());
        let since = self.clock().unix_millis();
        let mut alert = Alert { name, firing, value: measured, threshold: rule.threshold, text: text.into(), since };
        {
            let mut all = self.0.alerts_firing.lock();
            let place = all.partition_point(|one| (one.name as usize) < name as usize);
            if all.get(place).is_some_and(|one| one.name == name) {
                alert.since = all.remove(place).since;
            }
            if firing {
                all.insert(place, alert.clone());
            }
        }
        let (name, threshold) = (name.as_str(), rule.threshold);
        match change {
            None => return,
            Some(Change::Fired) => tracing::warn!(name, value = measured, threshold, text = %alert.text, "alert fires"),
            Some(Change::Cleared) => {
                tracing::info!(name, value = measured, threshold, text = %alert.text, "alert cleared");
            }
        }
        self.metrics().set_alert(alert.name, firing);
        self.0.events.emit(EventBody::Alert(alert));
    }
}

/// What is measured: gauges when they are asked for, rates and percentiles over windows, one after the other.
struct Measure {
    window: Duration,
    /// When the window began that is open.
    opened: Duration,
    failures: u64,
    confirmed: Since,
    replied: Since,
    /// Of the last window that was closed.
    error_rate: Option<f64>,
    confirm_p99: Option<f64>,
    reply_p99: Option<f64>,
}

impl Measure {
    fn new(config: &AlertsConfig, metrics: &Metrics) -> Self {
        let (least, most) = limits::ALERT_WINDOW;
        Self {
            window: config.fire_after.0.clamp(least, most),
            opened: Duration::ZERO,
            failures: metrics.failures_total(),
            confirmed: metrics.confirm_spans().mark(),
            replied: metrics.reply_latency.mark(),
            error_rate: None,
            confirm_p99: None,
            reply_p99: None,
        }
    }

    /// Closes the window and opens the next, where it is time.
    fn turn(&mut self, at: Duration, metrics: &Metrics) {
        let open = at.saturating_sub(self.opened);
        // A tick comes a little early or late.
        if open + limits::ALERT_TICK / 2 < self.window {
            return;
        }
        let failures = metrics.failures_total();
        self.error_rate = Some((failures - self.failures) as f64 / open.as_secs_f64());
        self.confirm_p99 = p99(metrics.confirm_spans().since(&mut self.confirmed));
        self.reply_p99 = p99(metrics.reply_latency.since(&mut self.replied));
        (self.opened, self.failures) = (at, failures);
    }

    /// What is measured now; `None`: there is nothing to be measured.
    fn of(&self, name: AlertName, hub: &Hub) -> Option<f64> {
        match name {
            AlertName::ErrorRate => self.error_rate,
            AlertName::Connections => Some(hub.metrics().connections.get() as f64),
            AlertName::PendingCount => Some(hub.0.store.totals().count as f64),
            AlertName::PendingBytes => Some(hub.0.store.totals().bytes as f64),
            AlertName::Disk => Some(hub.0.store.disk().used_bytes as f64),
            AlertName::DiskFree => hub.0.store.disk().free_bytes.map(|bytes| bytes as f64),
            AlertName::EventLag => Some(hub.0.events.lag() as f64),
            AlertName::ConfirmP99 => self.confirm_p99,
            AlertName::ReplyP99 => self.reply_p99,
            AlertName::CertificateExpiry => {
                let expiries = LISTENERS.iter().filter_map(|name| hub.metrics().certificate_expires_at(name));
                let now = hub.clock().unix_millis().0 as f64 / 1000.0;
                expiries.min().map(|first| first as f64 - now)
            }
            AlertName::CertificateReload => Some(hub.metrics().certificates_refused() as f64),
        }
    }
}

/// In seconds. Of a few measurements one in a hundred is none, and a single slow one no alert.
fn p99(measured: Percentiles) -> Option<f64> {
    (measured.count >= limits::ALERT_MEASUREMENTS_MIN).then_some(measured.p99.as_secs_f64())
}

/// The state in words: what is measured, which bound that is beyond, and where it changed, for how long.
fn text(name: AlertName, rule: &Rule, firing: bool, value: Option<f64>, changed: bool) -> String {
    let bound = if firing { rule.threshold } else { rule.clears_at };
    let side = match (rule.fires, firing) {
        (Fires::Above, true) | (Fires::Below, false) => "above",
        (Fires::Above, false) | (Fires::Below, true) => "below",
    };
    let span = if firing { rule.fire_after } else { rule.clear_after };
    let lasting = match changed && !span.is_zero() {
        true => format!(" for {}", humantime::format_duration(span)),
        false => String::new(),
    };
    match value {
        Some(value) => format!("{}, {side} {}{lasting}", what(name, value), amount(name, bound)),
        None => format!("nothing was measured{lasting}"),
    }
}

fn what(name: AlertName, value: f64) -> String {
    let amount = amount(name, value);
    match name {
        AlertName::ErrorRate => format!("{amount} errors a second"),
        AlertName::Connections => format!("{amount} connections"),
        AlertName::PendingCount => format!("{amount} notifications wait"),
        AlertName::PendingBytes => format!("{amount} wait"),
        AlertName::Disk => format!("the store's files take {amount}"),
        AlertName::DiskFree => format!("the store's disk has room for {amount}"),
        AlertName::EventLag => format!("the slowest consumer is {amount} events behind"),
        AlertName::ConfirmP99 => format!("confirmations take {amount} (p99)"),
        AlertName::ReplyP99 => format!("replies take {amount} (p99)"),
        AlertName::CertificateExpiry => format!("the first certificate expires in {amount}"),
        AlertName::CertificateReload => format!("the new certificates of {amount} listeners cannot be used"),
    }
}

fn amount(name: AlertName, value: f64) -> String {
    const KIB: f64 = 1024.0;
    match name {
        AlertName::ErrorRate => format!("{value:.1}"),
        AlertName::Connections | AlertName::PendingCount | AlertName::EventLag | AlertName::CertificateReload => {
            format!("{value:.0}")
        }
        AlertName::PendingBytes | AlertName::Disk | AlertName::DiskFree => match value {
            bytes if bytes < KIB => format!("{bytes:.0} B"),
            bytes if bytes < KIB * KIB => format!("{:.1} KiB", bytes / KIB),
            bytes if bytes < KIB * KIB * KIB => format!("{:.1} MiB", bytes / KIB / KIB),
            bytes => format!("{:.1} GiB", bytes / KIB / KIB / KIB),
        },
        AlertName::ConfirmP99 | AlertName::ReplyP99 => format!("{value:.3} s"),
        AlertName::CertificateExpiry => format!("{:.1} days", value / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_says_what_how_much_beyond_what_and_for_how_long() {
        let whole = Whole { connections: 1000, store_bytes: 0, disk_bytes: 0, events: 100 };
        let config = AlertsConfig::default();
        let rule = |name| config.rule(name, whole).unwrap();
        let said = |name, firing, value, changed| text(name, &rule(name), firing, value, changed);
        let connections = AlertName::Connections;
        assert_eq!(said(connections, true, Some(950.0), true), "950 connections, above 900 for 1m");
        assert_eq!(said(connections, true, Some(950.0), false), "950 connections, above 900");
        assert_eq!(said(connections, false, Some(7.0), true), "7 connections, below 720 for 5m");
        assert_eq!(
            said(AlertName::DiskFree, true, Some(1_572_864.0), true),
            "the store's disk has room for 1.5 MiB, below 256.0 MiB for 1m"
        );
        assert_eq!(
            said(AlertName::DiskFree, false, Some(1e10), true),
            "the store's disk has room for 9.3 GiB, above 320.0 MiB for 5m"
        );
        assert_eq!(said(AlertName::ConfirmP99, false, None, true), "nothing was measured for 5m");
        assert_eq!(
            said(AlertName::ConfirmP99, true, Some(12.3456), false),
            "confirmations take 12.346 s (p99), above 10.000 s"
        );
    }

    #[test]
    fn windows_follow_each_other_and_a_few_measurements_are_none() {
        let metrics = Metrics::default();
        let mut measure = Measure::new(&AlertsConfig::default(), &metrics);
        let second = Duration::from_secs;
        let fail = |count| (0..count).for_each(|_| metrics.failure(crate::metrics::Failure::BadMessage));
        fail(120);
        metrics.confirmed(second(20), 50);
        metrics.reply_latency.record(second(20), limits::ALERT_MEASUREMENTS_MIN - 1);
        measure.turn(second(30), &metrics);
        assert_eq!((measure.error_rate, measure.confirm_p99), (None, None), "it is still open");
        measure.turn(second(60), &metrics);
        assert_eq!((measure.error_rate, measure.reply_p99), (Some(2.0), None));
        assert!(measure.confirm_p99.is_some_and(|p99| (19.5..20.5).contains(&p99)), "{:?}", measure.confirm_p99);
        // What was is not in the next one.
        fail(60);
        metrics.confirmed(second(1), 50);
        measure.turn(second(119), &metrics);
        assert_eq!(measure.error_rate, Some(2.0));
        measure.turn(second(120), &metrics);
        assert_eq!(measure.error_rate, Some(1.0));
        assert!(measure.confirm_p99.is_some_and(|p99| (0.9..1.1).contains(&p99)), "{:?}", measure.confirm_p99);
        measure.turn(second(180), &metrics);
        assert_eq!((measure.error_rate, measure.confirm_p99), (Some(0.0), None));
    }
}
