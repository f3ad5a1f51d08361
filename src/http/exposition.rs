//! `/metrics`: what is counted, as OpenMetrics text (openmetrics.io, version 1.0.0), made anew for each scrape. Names begin
//! with `pushgate_` and end with their unit; labels are of a few values that are known beforehand, and never of a user.

use std::{fmt, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, text},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Registry,
};

use crate::{
    api::{Api, Figures},
    limits::Limit,
    metrics::{Failure, Fate, LISTENERS, Spans, Traffic},
    types::AlertName,
};

/// What it is sent as.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The bounds of histograms, in milliseconds: from a round trip within a machine to a confirmation that comes too late.
const BOUNDS_MS: [u64; 15] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 300_000];

/// Writes the metrics of a node down.
pub struct Exposition(Registry);

impl Exposition {
    /// Of this node.
    pub fn new(api: Api) -> Self {
        let mut registry = Registry::with_prefix("pushgate");
        registry.register_collector(Box::new(Node(api)));
        Self(registry)
    }

    /// The text. `None` where it cannot be written, which a test shows that it can.
    pub fn text(&self) -> Option<String> {
        let mut out = String::new();
        text::encode(&mut out, &self.0).ok()?;
        Some(out)
    }
}

struct Node(Api);

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Node")
    }
}

/// Labels, where there are any.
type Labels<'a> = &'a [(&'static str, &'a str)];

/// Writes one metric after the other.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn family<'s>(&'s mut self, name: &'s str, help: &str, of: MetricType) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, of)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.family(name, help, MetricType::Gauge)?.encode_gauge(&value)
    }

    /// `_total` is added to its name.
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        count(&mut self.family(name, help, MetricType::Counter)?, value)
    }

    /// A family with a label: a value each.
    fn labelled<'v>(
        &mut self,
        name: &str,
        help: &str,
        of: MetricType,
        label: &'static str,
        values: impl Iterator<Item = (&'v str, u64)>,
    ) -> fmt::Result {
        let mut family = self.family(name, help, of)?;
        for (value, n) in values {
            let labels: Labels<'_> = &[(label, value)];
            let mut one = family.encode_family(&labels)?;
            match of {
                MetricType::Counter => count(&mut one, n)?,
                _ => one.encode_gauge(&n)?,
            }
        }
        Ok(())
    }

    fn histogram(&mut self, name: &str, help: &str, spans: &Spans) -> fmt::Result {
        distribution(&mut self.family(name, help, MetricType::Histogram)?, spans)
    }

    /// The same with a label.
    fn histograms(&mut self, name: &str, help: &str, label: &'static str, values: &[(&str, &Spans)]) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Histogram)?;
        for (value, spans) in values {
            let labels: Labels<'_> = &[(label, *value)];
            distribution(&mut family.encode_family(&labels)?, spans)?;
        }
        Ok(())
    }
}

fn distribution(encoder: &mut MetricEncoder<'_>, spans: &Spans) -> fmt::Result {
    let recorded = spans.buckets(&BOUNDS_MS.map(Duration::from_millis));
    let bounds = BOUNDS_MS.iter().map(|ms| *ms as f64 / 1000.0).chain([f64::INFINITY]);
    let counts = recorded.counts.into_iter().chain([recorded.above]);
    let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
    let count = buckets.iter().map(|(_, count)| count).sum();
    encoder.encode_histogram::<NoLabels>(recorded.sum.as_secs_f64(), count, &buckets, None)
}

fn count(encoder: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    encoder.encode_counter::<NoLabels, _, u64>(&value, None::<&Exemplar<NoLabels, u64>>)
}

/// The labels of exemplars, of which there are none.
type NoLabels = [(&'static str, &'static str); 0];

impl Collector for Node {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (metrics, now) = (self.0.metrics(), self.0.figures());
        let mut out = Out(encoder);
        node(&mut out, &now)?;
        out.gauge(
            "connections_open",
            "Connections to the public listener, those that have not yet authenticated included",
            metrics.connections.get(),
        )?;
        out.gauge(
            "connections_open_peak",
            "The most that were open at once since the start",
            metrics.connections.peak(),
        )?;
        out.counter("connections", "Connections to the public listener", metrics.connections_total.get())?;
        out.gauge("sessions", "Authenticated sessions", now.sessions)?;
        out.gauge("users_online", "Users with at least one session", now.users_online)?;
        out.gauge("topics", "Topics that somebody is in", now.topics)?;
        out.gauge("fanout_bytes", "Broadcasts and publications that wait to be handed out", now.fanout_bytes)?;
        let both =
            |of: fn(&Traffic) -> u64| [("received", of(&metrics.received)), ("sent", of(&metrics.sent))].into_iter();
        out.labelled(
            "messages",
            "WebSocket messages from and to clients, control frames left out",
            MetricType::Counter,
            "direction",
            both(|traffic| traffic.messages.get()),
        )?;
        out.labelled(
            "traffic_bytes",
            "Bytes from and to clients, frame headers and control frames included",
            MetricType::Counter,
            "direction",
            both(|traffic| traffic.bytes.get()),
        )?;
        let failures = Failure::ALL.iter().map(|failure| (failure.as_str(), metrics.failures(*failure)));
        out.labelled(
            "failures",
            "What was refused or went wrong, by kind; the kinds are those of GetStatus.errors",
            MetricType::Counter,
            "kind",
            failures,
        )?;
        let hits = Limit::ALL.iter().map(|limit| (limit.as_str(), metrics.hits(*limit)));
        out.labelled(
            "limits_hit",
            "How often somebody ran into a limit, by its key; those of [limits] without the section",
            MetricType::Counter,
            "limit",
            hits,
        )?;
        out.histogram(
            "confirm_latency_seconds",
            "From handing a stored notification to a session to its confirmation, to two significant figures",
            metrics.confirm_spans(),
        )?;
        out.histogram("reply_latency_seconds", "From a client's request to a service's reply", &metrics.reply_latency)?;
        let runtimes = [("sessions", &metrics.scheduler_delay), ("calls", &metrics.calls_scheduler_delay)];
        out.histograms("scheduler_delay_seconds", "How late a runtime's tasks get their turn", "runtime", &runtimes)?;
        let fates = Fate::ALL.iter().map(|fate| (fate.as_str(), metrics.fates(*fate)));
        out.labelled("notifications", "What became of notifications", MetricType::Counter, "outcome", fates)?;
        let (pending, bytes) = now.pending;
        out.gauge(
            "pending_notifications",
            "Stored notifications that some device has yet to confirm, or that wait for a first one",
            pending,
        )?;
        out.gauge("pending_bytes", "Their bytes as accounted against the quotas", bytes)?;
        out.gauge("store_disk_bytes", "The store's files", now.store_disk_bytes)?;
        if let Some(free) = now.store_free_bytes {
            out.gauge("store_disk_free_bytes", "What senders may yet fill of the store's file system", free)?;
        }
        out.gauge("store_healthy", "1: the store takes writes", now.store_healthy.into())?;
        let firing = AlertName::ALL.iter().map(|name| (name.as_str(), metrics.alert_is_firing(*name).into()));
        out.labelled("alert_firing", "1: the alert fires", MetricType::Gauge, "alert", firing)?;
        let fired = AlertName::ALL.iter().map(|name| (name.as_str(), metrics.alerts_fired(*name)));
        out.labelled("alerts", "Alerts that began to fire", MetricType::Counter, "alert", fired)?;
        let certificates = LISTENERS.iter();
        let expiry = certificates.filter_map(|name| Some((*name, metrics.certificate_expires_at(name)?)));
        out.labelled(
            "tls_certificate_expiry_timestamp_seconds",
            "When a listener's certificate expires, in seconds since the Unix epoch",
            MetricType::Gauge,
            "listener",
            expiry.map(|(name, seconds)| (name, u64::try_from(seconds).unwrap_or_default())),
        )?;
        out.gauge("event_streams", "Consumers of StreamEvents", metrics.event_streams.get())?;
        out.gauge("event_lag", "Events between the newest and what the slowest consumer has read", now.event_lag)?;
        out.counter("events", "Events", now.events)?;
        out.counter("events_lost", "Events that consumers were told they lost", metrics.events_lost.get())
    }
}

/// The process and its state.
fn node(out: &mut Out<'_>, now: &Figures) -> fmt::Result {
    let version: Labels<'_> = &[("version", now.version)];
    out.family("build", "The daemon's version", MetricType::Info)?.encode_info(&version)?;
    let started = now.started_at.0 as f64 / 1000.0;
    out.family("start_time_seconds", "When the daemon started, in seconds since the Unix epoch", MetricType::Gauge)?
        .encode_gauge(&started)?;
    out.gauge("ready", "1: the node takes new work", now.ready.into())?;
    let cpu = now.process.cpu.as_secs_f64();
    out.family("process_cpu_seconds", "User and system CPU time", MetricType::Counter)?
        .encode_counter::<NoLabels, _, u64>(&cpu, None::<&Exemplar<NoLabels, u64>>)?;
    out.gauge("process_resident_memory_bytes", "Resident memory", now.process.rss_bytes)
}
