//! What a run found, as figures.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    fleet::{SlotReport, Tally},
    sender::Sent,
};
use crate::api::proto::ProcessStatus;

/// What one test found.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Which test.
    pub test: &'static str,
    /// Sessions.
    pub connections: Connections,
    /// How long the measured part took, in seconds.
    pub seconds: f64,
    /// Messages that were sent: notifications, broadcasts or echoes.
    pub sent: u64,
    /// Messages that were due and were not sent: the gateway held the sender up or was gone.
    pub unsent: u64,
    /// Calls that failed, by code.
    pub refused: BTreeMap<String, u64>,
    /// Of those, the ones whose message may have been delivered nevertheless (the connection broke, a deadline came).
    pub unknown: u64,
    /// What the gateway answered to the others, by outcome.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Messages that came, repeats included.
    pub received: u64,
    /// Their bytes, without frame headers.
    pub received_bytes: u64,
    /// Connections, messages sent and messages received, a second.
    pub per_second: Rates,
    /// From the start of connecting to `auth_success`.
    pub connect: Option<Latency>,
    /// From the moment a message was due to the moment it came.
    pub latency: Option<Latency>,
    /// From the moment a call was due to its answer.
    pub answer: Option<Latency>,
    /// From the start of connecting to the last of what waited.
    pub replay: Option<Latency>,
    /// Messages that were accepted and never came, counted for each session that should have had them.
    pub lost: u64,
    /// Messages that came again. At least once is the promise, so that they fail nothing.
    pub duplicates: u64,
    /// Messages that came behind one that they should have preceded.
    pub out_of_order: u64,
    /// Messages that came to a session they were not for.
    pub misdelivered: u64,
    /// Messages that came although the gateway had said that nobody gets them.
    pub unexpected: u64,
    /// Marked messages of another run, such as what an earlier one left behind.
    pub foreign: u64,
    /// `error` messages, `auth_failure` of a session, and what broke RFC 6455, by code or rule.
    pub errors: BTreeMap<String, u64>,
    /// Whether it was laid down how much was to be sent.
    #[serde(skip)]
    pub planned: bool,
    /// How sessions came back, where the gateway was restarted.
    pub restart: Option<Restart>,
    /// What the gateway's process took. `None`: it could not be asked.
    pub server: Option<ServerUse>,
}

/// Sessions of a test.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Connections {
    /// How many were wanted.
    pub asked: u64,
    /// How many were there when the test began.
    pub connected: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Those, by reason.
    pub failures: BTreeMap<String, u64>,
    /// Sessions that the gateway ended, by close code; 1006: without one.
    pub closed: BTreeMap<u16, u64>,
}

/// What happened in a second, on the mean.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rates {
    /// Sessions that were let in.
    pub connects: f64,
    /// Messages sent.
    pub sent: f64,
    /// Messages received.
    pub received: f64,
}

/// A distribution of spans, in µs, to three digits.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the names are percentiles")]
pub struct Latency {
    pub count: u64,
    pub mean_micros: f64,
    pub p50_micros: u64,
    pub p90_micros: u64,
    pub p99_micros: u64,
    pub p999_micros: u64,
    pub max_micros: u64,
}

impl Latency {
    /// `None` where nothing was measured.
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| histogram.value_at_quantile(quantile);
        (!histogram.is_empty()).then(|| Self {
            count: histogram.len(),
            mean_micros: histogram.mean(),
            p50_micros: at(0.5),
            p90_micros: at(0.9),
            p99_micros: at(0.99),
            p999_micros: at(0.999),
            max_micros: histogram.max(),
        })
    }
}

/// How sessions went and came back over a restart. Moments are seconds since the restart was asked for.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Restart {
    /// When the first and the last session was ended by the gateway.
    pub left: Option<[f64; 2]>,
    /// When the first and the last came back.
    pub returned: Option<[f64; 2]>,
    /// Returns in each tenth of that window.
    pub tenths: [u64; 10],
    /// Returns in each second.
    pub each_second: Vec<u64>,
    /// Sessions that were there in the end.
    pub back: u64,
    /// How many times something was sent again because nobody had taken it yet.
    pub sent_again: u64,
    /// From the moment a message was due and its session was there to the moment it came: before the restart was asked for,
    /// until all were back, and then.
    pub before: Option<Latency>,
    /// See `before`.
    pub around: Option<Latency>,
    /// See `before`.
    pub after: Option<Latency>,
}

impl Restart {
    pub(super) fn of(asked_micros: u64, before: &Tally, around: &Tally, after: &Tally) -> Self {
        let seconds = |of: fn(&Tally) -> &Vec<u64>| -> Vec<f64> {
            let all = [before, around, after].into_iter().flat_map(of);
            let mut all: Vec<f64> = all.map(|at| at.saturating_sub(asked_micros) as f64 / 1e6).collect();
            all.sort_by(f64::total_cmp);
            all
        };
        let ends = |all: &[f64]| Some([*all.first()?, *all.last()?]);
        let (left, returns) = (seconds(|tally| &tally.left), seconds(|tally| &tally.returns));
        let (left, returned) = (ends(&left), ends(&returns));
        let (mut tenths, mut each_second) = ([0; 10], Vec::new());
        if let Some([first, last]) = returned {
            each_second = vec![0; last as usize + 1];
            for at in returns {
                tenths[(((at - first) / (last - first).max(1e-6) * 10.0) as usize).min(9)] += 1;
                each_second[at as usize] += 1;
            }
        }
        let [before, around, after] = [before, around, after].map(|tally| Latency::of(&tally.present));
        Self { left, returned, tenths, each_second, before, around, after, back: 0, sent_again: 0 }
    }
}

/// What the gateway's process took, by its own account (`GetStatus`).
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerUse {
    /// User and system CPU time of the measured part, in seconds.
    pub cpu_seconds: f64,
    /// The same for each unit of the test's work, in µs.
    pub cpu_micros_per_unit: Option<f64>,
    /// What a unit is: a connect, an echo, a send or a delivery.
    pub unit: &'static str,
    /// Resident memory before the test, in bytes.
    pub rss_before_bytes: u64,
    /// Resident memory after it, its sessions still connected where they stay, in bytes.
    pub rss_bytes: u64,
    /// How much resident memory grew for each session while they connected, in bytes.
    pub rss_bytes_per_session: Option<f64>,
}

/// CPU and memory of the gateway at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system CPU time since its start.
    pub cpu: Duration,
    /// Resident memory.
    pub rss_bytes: u64,
}

impl From<ProcessStatus> for Usage {
    fn from(process: ProcessStatus) -> Self {
        let cpu = process.cpu.and_then(|cpu| Duration::try_from(cpu).ok()).unwrap_or_default();
        Self { cpu, rss_bytes: process.rss_bytes }
    }
}

impl Report {
    /// Whether the gateway kept its word: nothing lost, nothing out of order, nothing to a wrong one or unannounced.
    pub fn kept(&self) -> bool {
        self.lost + self.out_of_order + self.misdelivered + self.unexpected == 0
    }

    /// What kept the test from being done as it was planned, if anything did. Where nobody was to be done with (as fast as
    /// they are taken), a full mailbox is an answer like any other.
    pub fn shortfall(&self) -> Option<String> {
        let Connections { asked, connected, failed, failures, closed } = &self.connections;
        let most = |counts: &BTreeMap<String, u64>| {
            let most = counts.iter().max_by_key(|(_, count)| **count);
            most.map_or_else(String::new, |(what, _)| format!(" (such as: {what})"))
        };
        let comes_and_goes = matches!(self.test, "churn" | "restart");
        if let Some(restart) = self.restart.as_ref().filter(|restart| restart.back < *connected) {
            return Some(format!("{} sessions did not come back", connected - restart.back));
        }
        if self.restart.as_ref().is_some_and(|restart| restart.returned.is_none()) {
            return Some("the gateway was not restarted".to_owned());
        }
        if connected < asked || (*failed > 0 && !comes_and_goes) {
            let attempts = if *failed == 1 { "attempt" } else { "attempts" };
            return Some(format!("{failed} {attempts} to connect failed{}", most(failures)));
        }
        if let Some((code, count)) = closed.iter().next().filter(|_| !comes_and_goes) {
            return Some(format!("{count} sessions were ended by the gateway (with {code})"));
        }
        let quota = if self.planned { 0 } else { self.refused.get("ResourceExhausted").copied().unwrap_or_default() };
        let refused = self.refused.values().sum::<u64>() - quota;
        if refused > 0 {
            return Some(format!("{refused} of {} calls failed{}", self.sent, most(&self.refused)));
        }
        if self.unsent > 0 {
            return Some(format!("{} messages that were due were not sent", self.unsent));
        }
        let dropped = self.outcomes.get("OUTCOME_DROPPED").copied().unwrap_or_default();
        (dropped > 0).then(|| format!("{dropped} messages were taken by no session"))
    }

    /// Whether the gateway kept its word, and all was done that was planned.
    pub fn passed(&self) -> bool {
        self.kept() && self.shortfall().is_none()
    }

    /// Takes in what the sessions counted.
    pub(super) fn received(&mut self, tally: &Tally) {
        self.connections.failed = tally.failures.values().sum();
        self.connections.failures = tally.failures.clone();
        self.connections.closed = tally.closes.clone();
        (self.received, self.received_bytes) = (tally.received, tally.received_bytes);
        (self.duplicates, self.out_of_order) = (tally.duplicates, tally.out_of_order);
        (self.misdelivered, self.foreign) = (tally.misdelivered, tally.foreign);
        self.errors = tally.errors.clone();
        self.connect = Latency::of(&tally.connect);
        self.latency = Latency::of(&tally.latency);
        self.replay = Latency::of(&tally.replay);
        self.per_second.received = self.a_second(tally.received);
    }

    /// Takes in what was sent over gRPC, of so many that were planned. `None`: as fast as they are taken.
    pub(super) fn sent(&mut self, sent: &Sent, planned: Option<u64>, began_micros: u64) {
        self.sent = sent.total();
        self.unsent = planned.map_or(0, |planned| planned.saturating_sub(self.sent));
        self.planned = planned.is_some();
        self.refused = sent.failed.clone();
        self.unknown = sent.unknown;
        self.outcomes = sent.outcomes.clone();
        self.answer = Latency::of(&sent.answers);
        let seconds = sent.last_micros.saturating_sub(began_micros) as f64 / 1e6;
        self.per_second.sent = if seconds > 0.0 { sent.accepted() as f64 / seconds } else { 0.0 };
    }

    /// Takes in the echoes that were sent, and those that were due `until` then, one each `interval_micros`, and were not.
    /// Those that did not come back are lost.
    pub(super) fn echoed(&mut self, slots: &[SlotReport], schedule: Option<(u64, u64)>) {
        self.planned = true;
        self.sent = slots.iter().map(|slot| slot.echoes).sum();
        self.per_second.sent = self.a_second(self.sent);
        let lost = |slot: &SlotReport| slot.tracks.first().map_or(0, |track| track.lost(slot.echoes, None));
        self.lost = slots.iter().map(lost).sum();
        if let Some((until, interval)) = schedule {
            let overdue = slots.iter().filter_map(|slot| slot.overdue_micros);
            self.unsent = overdue.map(|due| until.saturating_sub(due).div_ceil(interval.max(1))).sum();
        }
    }

    /// Takes in what the gateway's process took for so many units of work.
    pub(super) fn served(&mut self, before: Option<Usage>, after: Option<Usage>, unit: &'static str, units: u64) {
        let (Some(before), Some(after)) = (before, after) else { return };
        let cpu_seconds = after.cpu.saturating_sub(before.cpu).as_secs_f64();
        self.server = Some(ServerUse {
            cpu_seconds,
            cpu_micros_per_unit: (units > 0).then(|| cpu_seconds * 1e6 / units as f64),
            unit,
            rss_before_bytes: before.rss_bytes,
            rss_bytes: after.rss_bytes,
            rss_bytes_per_session: None,
        });
    }

    pub(super) fn a_second(&self, count: u64) -> f64 {
        if self.seconds > 0.0 { count as f64 / self.seconds } else { 0.0 }
    }
}
