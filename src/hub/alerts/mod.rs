//! Alerts: what has gone too far for too long is an event, a line in the log and a gauge, and so is its end.
//!
//! One task measures once a second and asks a [`Watch`] for each alert. Nothing is kept over a restart: a node that
//! starts has no alerts, and what is wrong fires anew when it has been wrong for long enough.
//!
//! * `watch.rs`: when an alert fires and clears, by its series of measurements.
//! * `config.rs`: the section `[alerts]`, and the rules that follow from it.
//! * `measure.rs`: what is measured.
//! * here: who is told.

mod config;
mod measure;
mod watch;

pub use self::config::Config as AlertsConfig;
use self::{
    config::Whole,
    measure::Measure,
    watch::{Change, Fires, Measured, Rule, Watch},
};
use std::time::Duration;

use super::Hub;
use crate::{
    limits,
    types::{Alert, AlertName, EventBody},
};

impl Hub {
    /// The alerts that fire now with what was measured last, in the order of [`AlertName::ALL`].
    pub fn alerts(&self) -> Vec<Alert> {
        self.0.alerts_firing.lock().clone()
    }

    pub(super) async fn run_alerts(&self) {
        let begun = self.clock().now();
        let mut window = self.live().alerts.fire_after;
        let mut measure = Measure::new(window, Duration::ZERO, self.metrics());
        let mut watches = Vec::new();
        self.take_rules(&mut watches);
        let mut ticks = tokio::time::interval(limits::ALERT_TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.0.reconfigured.notified() => {
                    self.take_rules(&mut watches);
                    let other = self.live().alerts.fire_after;
                    if std::mem::replace(&mut window, other) != other {
                        measure = Measure::new(other, self.clock().now().duration_since(begun), self.metrics());
                    }
                    continue;
                }
            }
            let at = self.clock().now().duration_since(begun);
            measure.turn(at, self.metrics());
            for (name, watch) in &mut watches {
                let measured = measure.of(*name, self);
                let change = watch.look(at, measured);
                self.note_alert(*name, watch, measured, change);
            }
        }
    }

    /// Watches by the rules that are in force now. An alert goes on as it is where its rule is another; one that is switched
    /// off while it fires is over.
    fn take_rules(&self, watches: &mut Vec<(AlertName, Watch)>) {
        let live = self.live();
        let whole = Whole {
            connections: self.connections_max(),
            store_bytes: live.quotas.max_bytes,
            disk_bytes: self.0.store.disk().max_bytes,
            events: self.0.events.capacity(),
        };
        let mut before = std::mem::take(watches).into_iter().peekable();
        for &name in AlertName::ALL {
            let watch = before.next_if(|(known, _)| *known == name).map(|(_, watch)| watch);
            match (watch, live.alerts.rule(name, whole)) {
                (Some(watch), Some(rule)) => watches.push((name, watch.under(rule))),
                (None, Some(rule)) => watches.push((name, Watch::new(rule))),
                (Some(watch), None) if watch.is_firing() => self.end_alert(name),
                (_, None) => {}
            }
        }
    }

    /// An alert that fires is switched off.
    fn end_alert(&self, name: AlertName) {
        let mut all = self.0.alerts_firing.lock();
        let Some(place) = all.iter().position(|one| one.name == name) else { return };
        let alert = Alert { firing: false, text: "switched off".into(), ..all.remove(place) };
        drop(all);
        tracing::info!(name = name.as_str(), text = %alert.text, "alert cleared");
        self.metrics().set_alert(name, false);
        self.0.events.emit(EventBody::Alert(alert));
    }

    /// Keeps what fires up to date, and tells of a change.
    fn note_alert(&self, name: AlertName, watch: &Watch, measured: Measured, change: Option<Change>) {
        let firing = watch.is_firing();
        // Of what cannot be told, what was told last stands.
        if measured == Measured::Unknown || (!firing && change.is_none()) {
            return;
        }
        let value = if let Measured::Value(value) = measured { Some(value) } else { None };
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
}
