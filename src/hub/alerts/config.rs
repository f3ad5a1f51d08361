//! The section `[alerts]`: from when on a node says that something has gone too far.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::watch::{Fires, Rule};
use crate::types::{AlertName, ByteSize, Count, Level, Span};

/// The section `[alerts]`. A threshold of zero switches its alert off.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// For how long a measure must be beyond its threshold.
    pub fire_after: Span,
    /// For how long it must be short of `clear_below`.
    pub clear_after: Span,
    /// Where it is well again: a share of the threshold.
    pub clear_below: Level,
    /// Refusals and failures a second.
    pub error_rate: Count,
    /// Connections to the public listener: a share of how many there may be, or a number.
    pub connections: Level,
    /// Stored notifications that wait.
    pub pending_count: Count,
    /// Their bytes: a share of `store.max_bytes`, or a size.
    pub pending_bytes: Level,
    /// The store's files: a share of `store.max_disk`, or a size.
    pub disk: Level,
    /// What is left of the store's disk for what is sent; fires below it.
    pub disk_free: ByteSize,
    /// The events by which the slowest consumer is behind: a share of `events.buffer`, or a number.
    pub event_lag: Level,
    /// The time from hand-over to confirmation, of all but one in a hundred.
    pub confirm_p99: Span,
    /// The time from a client's request to a service's reply, of all but one in a hundred.
    pub reply_p99: Span,
    /// For how long the certificate that expires first is still valid; fires below it.
    pub certificate_expiry: Span,
    /// Listeners whose changed files of certificates and keys cannot be used: from so many on, at once.
    pub certificate_reload: Count,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            fire_after: Span::secs(60),
            clear_after: Span::secs(300),
            clear_below: Level::Share(80),
            error_rate: Count(100),
            connections: Level::Share(90),
            pending_count: Count(0),
            pending_bytes: Level::Share(80),
            disk: Level::Share(85),
            disk_free: ByteSize::mib(256),
            event_lag: Level::Share(50),
            confirm_p99: Span::secs(10),
            reply_p99: Span::secs(10),
            certificate_expiry: Span::secs(7 * 86_400),
            certificate_reload: Count(1),
        }
    }
}

/// What shares are shares of; 0 is no bound.
#[derive(Clone, Copy, Debug)]
pub struct Whole {
    /// `limits.connections`, or what the descriptors leave.
    pub connections: u64,
    /// `store.max_bytes`.
    pub store_bytes: u64,
    /// `store.max_disk`.
    pub disk_bytes: u64,
    /// `events.buffer`.
    pub events: u64,
}

impl Config {
    /// When an alert fires and clears; `None`: it is switched off.
    pub fn rule(&self, name: AlertName, whole: Whole) -> Option<Rule> {
        let seconds = |span: Span| (!span.0.is_zero()).then_some(span.0.as_secs_f64());
        let threshold = match name {
            AlertName::ErrorRate => Level::Count(self.error_rate.0.into()).of(0),
            AlertName::Connections => self.connections.of(whole.connections),
            AlertName::PendingCount => Level::Count(self.pending_count.0.into()).of(0),
            AlertName::PendingBytes => self.pending_bytes.of(whole.store_bytes),
            AlertName::Disk => self.disk.of(whole.disk_bytes),
            AlertName::DiskFree => Level::Size(self.disk_free).of(0),
            AlertName::EventLag => self.event_lag.of(whole.events),
            AlertName::ConfirmP99 => seconds(self.confirm_p99),
            AlertName::ReplyP99 => seconds(self.reply_p99),
            AlertName::CertificateExpiry => seconds(self.certificate_expiry),
            // Nothing that swings: it is so, or it is not.
            AlertName::CertificateReload if self.certificate_reload.0 == 0 => None,
            AlertName::CertificateReload => {
                let clears_at = f64::from(self.certificate_reload.0);
                let (threshold, at_once) = (clears_at - 1.0, Duration::ZERO);
                return Some(Rule {
                    fires: Fires::Above,
                    threshold,
                    clears_at,
                    fire_after: at_once,
                    clear_after: at_once,
                });
            }
        }?;
        // The configuration allows shares from 1 % to 100 % only.
        let share = self.clear_below.of(100).map_or(1.0, |hundredths| (hundredths / 100.0).min(1.0));
        let (fires, clears_at) = match name {
            AlertName::DiskFree | AlertName::CertificateExpiry => (Fires::Below, threshold / share),
            _ => (Fires::Above, threshold * share),
        };
        Some(Rule { fires, threshold, clears_at, fire_after: self.fire_after.0, clear_after: self.clear_after.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Whole = Whole { connections: 1000, store_bytes: 1 << 30, disk_bytes: 0, events: 500 };

    #[test]
    fn shares_are_of_the_bounds_and_zero_is_off() {
        let config = Config { event_lag: Level::Count(7), confirm_p99: Span::secs(0), ..Config::default() };
        let rule = |name| config.rule(name, WHOLE);
        let connections = rule(AlertName::Connections).unwrap();
        assert_eq!((connections.threshold, connections.clears_at), (900.0, 720.0));
        assert_eq!(rule(AlertName::EventLag).unwrap().threshold, 7.0);
        assert_eq!(rule(AlertName::PendingCount), None, "off by default");
        assert_eq!(rule(AlertName::ConfirmP99), None);
        assert_eq!(rule(AlertName::Disk), None, "a share of no bound");
    }

    #[test]
    fn what_is_left_clears_above_its_threshold() {
        let free = Config::default().rule(AlertName::DiskFree, WHOLE).unwrap();
        assert_eq!(free.fires, Fires::Below);
        assert_eq!((free.threshold, free.clears_at), (268_435_456.0, 335_544_320.0));
    }
}
