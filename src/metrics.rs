//! What is counted. Counters only rise, gauges follow what is there; reading them never blocks what they count.
//!
//! Everything is reachable through one [`Metrics`], shared by reference count.

mod alerts;
mod certificates;
mod classes;
mod distribution;
mod entrances;
mod fates;
mod limits;
mod repeats;
mod requests;
mod runtimes;
mod spans;
mod spread;

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub use self::{
    alerts::{Since, Slice},
    certificates::LISTENERS,
    classes::{Class, PerClass, Traffic},
    distribution::{Distribution, SIZE_BYTES, WAIT_MICROS, WORK_MICROS},
    entrances::Handshake,
    fates::Fate,
    repeats::{Line, Repeats},
    requests::{CODES, Requests},
    runtimes::{RUNTIMES, Runtime, Runtimes},
    spans::{Buckets, Percentiles, Spans},
    spread::{SpreadCounter, SpreadCounters},
};
use parking_lot::Mutex;

/// A number that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number of things that are there now, and the most there ever were.
#[derive(Debug, Default)]
pub struct Gauge {
    now: AtomicU64,
    peak: AtomicU64,
}

impl Gauge {
    /// One more; returns how many there are with it.
    pub fn enter(&self) -> u64 {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak.fetch_max(now, Ordering::Relaxed);
        now
    }

    /// One more, unless there are `limit` already; returns whether it was let in.
    pub fn enter_below(&self, limit: u64) -> bool {
        let entered = self.now.try_update(Ordering::Relaxed, Ordering::Relaxed, |now| (now < limit).then_some(now + 1));
        if let Ok(before) = entered {
            self.peak.fetch_max(before + 1, Ordering::Relaxed);
        }
        entered.is_ok()
    }

    /// One less.
    pub fn leave(&self) {
        self.now.fetch_sub(1, Ordering::Relaxed);
    }

    /// One less, where there is one.
    pub fn leave_if_any(&self) {
        let _ = self.now.try_update(Ordering::Relaxed, Ordering::Relaxed, |now| now.checked_sub(1));
    }

    /// How many there are.
    pub fn get(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// The most there were.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

macro_rules! failures {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What can go wrong and is counted. The names are what `GetStatus.errors` shows.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Failure {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Failure {
            /// All of them.
            pub const ALL: &'static [Failure] = &[$(Failure::$variant,)+];

            /// The name callers see.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Failure::$variant => $name,)+
                }
            }
        }
    };
}

failures! {
    /// An HTTP request on the public listener that is not a WebSocket handshake it can serve, or whose head is malformed
    /// or too large.
    BadHandshake = "bad_handshake",
    /// A connection whose TLS handshake failed, or was not done in time.
    TlsHandshake = "tls_handshake",
    /// A connection of a trusted proxy without a header of the PROXY protocol that is taken.
    ProxyRefused = "proxy_refused",
    /// A handshake of a page whose origin may not connect.
    OriginRefused = "origin_refused",
    /// A connection that could not authenticate.
    AuthFailed = "auth_failed",
    /// Keys could not be fetched, or a key file that changed not be read: those from before stay.
    KeySourceFailed = "key_source_failed",
    /// A configuration that was to be loaded anew and was refused: that from before stays.
    ReloadRefused = "reload_refused",
    /// More guests at once than `auth.anonymous_connections` (1013).
    GuestLimit = "guest_limit",
    /// RFC 6455 violated by a client (1002).
    ProtocolError = "protocol_error",
    /// A binary message that is not one of the protocol's (1003).
    UnsupportedData = "unsupported_data",
    /// Text that is not UTF-8 (1007).
    InvalidUtf8 = "invalid_utf8",
    /// A compressed message that cannot be inflated (1007).
    InvalidDeflate = "invalid_deflate",
    /// A client's message over its limit (1009), or larger, as others would get it, than `limits.notification_bytes`.
    MessageTooBig = "message_too_big",
    /// A client's message that is not one of the protocol's.
    BadMessage = "bad_message",
    /// A client's message of a type that nobody answers.
    UnknownType = "unknown_type",
    /// A client's message that it is not allowed to send.
    Forbidden = "forbidden",
    /// A client's message over a rate, a session warned or closed over one (4429).
    RateLimited = "rate_limited",
    /// A client's message for the services that none of them listened for.
    NoService = "no_service",
    /// A client's request that no service answered within `clients.reply_timeout`.
    ReplyTimeout = "reply_timeout",
    /// A topic that a session could not be subscribed to, or a client's message that could not be kept, over a limit.
    LimitReached = "limit_reached",
    /// A session closed for too many bad messages (4400).
    TooManyBadMessages = "too_many_bad_messages",
    /// A session closed because nothing was received from it (4408).
    HeartbeatTimeout = "heartbeat_timeout",
    /// A session closed because it confirmed nothing (4408).
    ConfirmTimeout = "confirm_timeout",
    /// A session closed because it did not ack (4410).
    AckTimeout = "ack_timeout",
    /// A session closed because it did not take what was written to it (4409).
    SlowConsumer = "slow_consumer",
    /// A connection refused over `limits.connections`.
    ConnectionLimit = "connection_limit",
    /// A session refused over `limits.connections_per_user`.
    UserConnectionLimit = "user_connection_limit",
    /// A connection refused over `limits.connections_per_address`.
    AddressConnectionLimit = "address_connection_limit",
    /// A session closed for a newer one of its device, or refused, over `limits.connections_per_device`.
    DeviceConnectionLimit = "device_connection_limit",
    /// A handshake refused over `limits.handshakes_per_second` or `limits.address_handshakes_per_second`.
    HandshakeRate = "handshake_rate",
    /// A connection refused because the process has as much memory as `limits.memory` gives it.
    MemoryLimit = "memory_limit",
    /// A call that was refused before any handler saw it: a message over its size or one that does not decode, or a
    /// method that does not exist; a connection that was cut off for what it sent.
    GrpcRefused = "grpc_refused",
    /// A request to an ops listener that was refused before it was a call: its path, method, type, size or origin, or a head
    /// that is malformed, too large or too slow.
    HttpRefused = "http_refused",
    /// A call without a valid token.
    GrpcUnauthenticated = "grpc_unauthenticated",
    /// A call without the scope it needs.
    GrpcPermissionDenied = "grpc_permission_denied",
    /// A call with a field that a retry cannot mend.
    GrpcInvalidArgument = "grpc_invalid_argument",
    /// A call refused because a mailbox or the store is full.
    QuotaExceeded = "quota_exceeded",
    /// A call that did not finish before its deadline.
    GrpcDeadlineExceeded = "grpc_deadline_exceeded",
    /// A call refused or broken off because the store fails or the node stops.
    Unavailable = "unavailable",
    /// A stored notification whose TTL ran out before every device had it.
    Expired = "expired",
    /// A stored notification that a full mailbox dropped before every device had it; another device had confirmed it.
    LaggardLost = "laggard_lost",
    /// A stored notification that a full mailbox dropped although no device had confirmed it
    /// (`store.overflow = "drop-oldest"`).
    OverflowLost = "overflow_lost",
    /// A stored notification that a device was given `delivery.max_attempts` times and never acked.
    MaxAttempts = "max_attempts",
    /// A call whose notification id stands for other content already, or that would make what is there already.
    AlreadyExists = "already_exists",
    /// A call about something that is not there, such as a device that its user does not have.
    NotFound = "not_found",
    /// A read or write of the store that failed.
    StoreError = "store_error",
    /// The store's disk was full at a write, and the store was opened again.
    DiskFull = "disk_full",
    /// Stored data that was found damaged.
    StoreDamage = "store_damage",
    /// A session's task that panicked.
    Panic = "panic",
}

/// All that is counted on a node. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Inner>);

/// See [`Metrics`].
#[derive(Debug)]
pub struct Inner {
    /// Connections to the public listener that speak, or are about to speak, WebSocket.
    pub connections: Gauge,
    /// Those since the start.
    pub connections_total: Counter,
    /// Bytes from clients, frame headers and control frames included.
    pub received_bytes: SpreadCounter,
    /// Messages from clients, with the bytes of their payloads.
    pub received: Traffic,
    /// To clients, with the bytes as they are written, frame headers included.
    pub sent: Traffic,
    /// Spans that a collector has taken.
    pub spans_exported: Counter,
    /// Spans that none has, and none will.
    pub spans_dropped: Counter,
    /// Streams of events that are open.
    pub event_streams: Gauge,
    /// Events that consumers were told they lost.
    pub events_lost: Counter,
    /// How late the tasks of the sessions' runtime get their turn.
    pub scheduler_delay: Spans,
    /// The same of the runtime that calls run on.
    pub calls_scheduler_delay: Spans,
    /// From a client's request to the first reply of a service, or to the end of the wait for it.
    pub reply_latency: Spans,
    /// From a broadcast's place in the queue to every session's outbox, in µs.
    pub broadcast_latency: Distribution,
    /// The same of what is published to a topic.
    pub publish_latency: Distribution,
    /// From the call to each device's confirmation, in µs.
    pub call_to_confirm: Distribution,
    /// The runtimes.
    pub runtimes: Runtimes,
    /// Calls over gRPC, once it is known which there are.
    pub requests: OnceLock<Requests>,
    entrances: entrances::Entrances,
    alerts: alerts::Alerts,
    hits: limits::Hits,
    fates: fates::Fates,
    certificates: certificates::Certificates,
    failures: [Counter; Failure::ALL.len()],
    confirm_latency: Spans,
    samples: Mutex<VecDeque<Sample>>,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            connections: Gauge::default(),
            connections_total: Counter::default(),
            received_bytes: SpreadCounter::default(),
            received: Traffic::default(),
            sent: Traffic::default(),
            spans_exported: Counter::default(),
            spans_dropped: Counter::default(),
            event_streams: Gauge::default(),
            events_lost: Counter::default(),
            scheduler_delay: Spans::default(),
            calls_scheduler_delay: Spans::default(),
            reply_latency: Spans::default(),
            broadcast_latency: Distribution::new(&WORK_MICROS),
            publish_latency: Distribution::new(&WORK_MICROS),
            call_to_confirm: Distribution::new(&WAIT_MICROS),
            runtimes: Runtimes::default(),
            requests: OnceLock::new(),
            entrances: entrances::Entrances::default(),
            alerts: alerts::Alerts::default(),
            hits: limits::Hits::default(),
            fates: fates::Fates::default(),
            certificates: certificates::Certificates::default(),
            failures: std::array::from_fn(|_| Counter::default()),
            confirm_latency: Spans::default(),
            samples: Mutex::default(),
        }
    }
}

/// Counters at one moment, for rates.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: crate::clock::Instant,
    values: [u64; 5],
}

/// Per second, over the last [`Metrics::RATE_WINDOW`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    /// Messages from clients.
    pub messages_received: f64,
    /// Bytes from clients.
    pub bytes_received: f64,
    /// Messages to clients.
    pub messages_sent: f64,
    /// Bytes to clients.
    pub bytes_sent: f64,
    /// Failures of every kind.
    pub failures: f64,
}

impl std::ops::Deref for Metrics {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Metrics {
    /// The span that rates are taken over.
    pub const RATE_WINDOW: Duration = Duration::from_secs(10);

    /// Counts one failure.
    pub fn failure(&self, failure: Failure) {
        self.failures[failure as usize].inc();
    }

    /// How often it happened.
    pub fn failures(&self, failure: Failure) -> u64 {
        self.failures[failure as usize].get()
    }

    /// Records the time from hand-over to confirmation of `count` notifications.
    pub fn confirmed(&self, latency: Duration, count: u64) {
        self.confirm_latency.record(latency, count);
    }

    /// The times from hand-over to confirmation.
    pub fn confirm_spans(&self) -> &Spans {
        &self.confirm_latency
    }

    /// Percentiles of the time from hand-over to confirmation.
    pub fn confirm_latency(&self) -> Percentiles {
        self.confirm_latency.percentiles()
    }

    /// Takes a sample for [`Metrics::rates`]; call it once a second.
    pub fn sample(&self, now: crate::clock::Instant) {
        let sample = self.current(now);
        let mut samples = self.samples.lock();
        while samples.front().is_some_and(|oldest| now.duration_since(oldest.at) > Self::RATE_WINDOW) {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// Rates over the last [`Metrics::RATE_WINDOW`].
    pub fn rates(&self, now: crate::clock::Instant) -> Rates {
        let Some(oldest) = self.samples.lock().front().copied() else { return Rates::default() };
        let seconds = now.duration_since(oldest.at).as_secs_f64();
        if seconds <= 0.0 {
            return Rates::default();
        }
        let current = self.current(now);
        let rate = |i: usize| (current.values[i] - oldest.values[i]) as f64 / seconds;
        Rates {
            messages_received: rate(0),
            bytes_received: rate(1),
            messages_sent: rate(2),
            bytes_sent: rate(3),
            failures: rate(4),
        }
    }

    fn current(&self, at: crate::clock::Instant) -> Sample {
        let failures = self.failures_total();
        let values =
            [self.received.messages(), self.received_bytes.get(), self.sent.messages(), self.sent.bytes(), failures];
        Sample { at, values }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rates_are_taken_over_ten_seconds() {
        let metrics = Metrics::default();
        for _ in 0..20 {
            metrics.sample(crate::clock::Instant::now());
            metrics.sent.add(Class::Durable, 5, 0);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let rates = metrics.rates(crate::clock::Instant::now());
        assert!((rates.messages_sent - 5.0).abs() < 0.6, "{rates:?}");
    }

    #[test]
    fn a_gauge_remembers_its_peak() {
        let gauge = Gauge::default();
        gauge.enter();
        gauge.enter();
        gauge.leave();
        assert_eq!((gauge.get(), gauge.peak()), (1, 2));
        assert!(gauge.enter_below(2) && !gauge.enter_below(2));
        assert_eq!((gauge.get(), gauge.peak()), (2, 2), "who is refused was never there");
    }
}
