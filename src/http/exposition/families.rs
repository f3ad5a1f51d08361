//! Which families there are, in what order, and what each says. One that is new has a row in `docs/metrics.md`.

use std::fmt;

use prometheus_client::metrics::{MetricType, exemplar::Exemplar};

use super::{Labels, MICROS, NoLabels, Out};
use crate::{
    api::{Api, Figures, process},
    hub::Survey,
    limits::Limit,
    metrics::{Class, Failure, Fate, Handshake, LISTENERS, Metrics, Runtime, Traffic},
    types::AlertName,
};

/// The only transport of sessions.
const TRANSPORT: &str = "websocket";

/// All of them.
pub fn write(out: &mut Out<'_>, api: &Api, survey: &Survey) -> fmt::Result {
    let (metrics, now) = (api.metrics(), api.figures());
    node(out, &now)?;
    sessions(out, metrics, &now, survey)?;
    traffic(out, metrics)?;
    delivery(out, metrics, &now)?;
    store(out, &now)?;
    services(out, metrics, &now)?;
    runtimes(out, metrics)
}

/// The process and its state.
fn node(out: &mut Out<'_>, now: &Figures) -> fmt::Result {
    let version: Labels<'_> = &[("version", now.version)];
    out.family("build", "The daemon's version", MetricType::Info)?.encode_info(&version)?;
    let started = now.started_at.0 as f64 / 1000.0;
    out.family("start_time_seconds", "When the daemon started, in seconds since the Unix epoch", MetricType::Gauge)?
        .encode_gauge(&started)?;
    out.gauge("ready", "1: the node takes new work", now.ready.into())?;
    out.gauge("draining", "1: somebody drained the node, so that it is not ready on purpose", now.draining.into())?;
    let cpu = now.process.cpu.as_secs_f64();
    out.family("process_cpu_seconds", "User and system CPU time", MetricType::Counter)?
        .encode_counter::<NoLabels, _, u64>(&cpu, None::<&Exemplar<NoLabels, u64>>)?;
    out.gauge("process_resident_memory_bytes", "Resident memory", now.process.rss_bytes)?;
    out.gauge("memory_limit_bytes", "What limits.memory comes to; 0: no bound", now.memory_max_bytes)?;
    let handles = process::handles();
    out.gauge("process_open_fds", "Descriptors that are open", handles.descriptors)?;
    out.gauge("process_max_fds", "The most descriptors that may be open; 0: no bound", handles.descriptors_max)?;
    out.gauge("process_threads", "Threads", handles.threads)
}

/// Connections, handshakes, sessions, users, topics.
fn sessions(out: &mut Out<'_>, metrics: &Metrics, now: &Figures, survey: &Survey) -> fmt::Result {
    out.gauge(
        "connections_open",
        "WebSocket connections, from their upgrade on, those that have not yet authenticated included",
        metrics.connections.get(),
    )?;
    out.gauge("connections_open_peak", "The most of them at once since the start", metrics.connections.peak())?;
    let help = "How many there may be: limits.connections, or what the descriptors leave, if that is less; 0: no bound";
    out.gauge("connections_limit", help, now.connections_max)?;
    out.counter("connections", "WebSocket connections, from their upgrade on", metrics.connections_total.get())?;
    let handshakes = Handshake::ALL.iter().map(|result| (result.as_str(), metrics.handshakes(*result)));
    out.labelled("handshakes", "What became of WebSocket handshakes", MetricType::Counter, "result", handshakes)?;
    out.labelled(
        "auth_failures",
        "Clients that were not let in, or not any longer, by the code that they heard",
        MetricType::Counter,
        "code",
        metrics.auth_failures(),
    )?;
    out.gauge("sessions", "Authenticated sessions", now.sessions)?;
    let states = [("live", survey.live), ("pulling", survey.pulling), ("closing", survey.closing)];
    out.labelled_twice(
        "sessions_by_state",
        "Sessions by how they get their notifications: at once, or from the store; or that are being closed",
        MetricType::Gauge,
        ["transport", "state"],
        states.into_iter().map(|(state, count)| ([TRANSPORT, state], count)),
    )?;
    out.gauge("sessions_stalled", "Sessions whose sockets take nothing of what waits for them", survey.stalled)?;
    out.counter("sessions_opened", "Sessions that began", metrics.sessions_opened())?;
    let closed = metrics.sessions_closed();
    out.labelled("sessions_closed", "Sessions that ended, by close code", MetricType::Counter, "code", closed)?;
    out.gauge("outbox_bytes", "Bytes that wait for the sockets of all sessions", survey.outbox_bytes)?;
    out.gauge("outbox_bytes_max", "The most that wait for one session", survey.outbox_bytes_max)?;
    out.gauge("unconfirmed_notifications", "Handed to sessions and not confirmed", survey.unconfirmed)?;
    out.gauge("users_online", "Users with at least one session", now.users_online)?;
    out.gauge("topics", "Topics that somebody is in", now.topics)?;
    out.gauge("fanout_bytes", "Broadcasts and publications that wait to be handed out", now.fanout_bytes)
}

/// Messages and bytes; what was refused.
fn traffic(out: &mut Out<'_>, metrics: &Metrics) -> fmt::Result {
    let directions = [("received", &metrics.received), ("sent", &metrics.sent)];
    out.labelled(
        "messages",
        "WebSocket messages from and to clients, control frames left out",
        MetricType::Counter,
        "direction",
        directions.map(|(direction, traffic)| (direction, traffic.messages())).into_iter(),
    )?;
    out.labelled(
        "traffic_bytes",
        "Bytes from and to clients, frame headers and control frames included",
        MetricType::Counter,
        "direction",
        [("received", metrics.received_bytes.get()), ("sent", metrics.sent.bytes())].into_iter(),
    )?;
    let classes = |of: fn(&Traffic, Class) -> u64| {
        directions.into_iter().flat_map(move |(direction, traffic)| {
            Class::ALL.map(move |class| ([direction, class.as_str()], of(traffic, class)))
        })
    };
    out.labelled_twice(
        "class_messages",
        "WebSocket messages by what they are; of control, frames",
        MetricType::Counter,
        ["direction", "class"],
        classes(Traffic::messages_of),
    )?;
    out.labelled_twice(
        "class_bytes",
        "Their bytes: sent as written, with frame headers; received without, and inflated",
        MetricType::Counter,
        ["direction", "class"],
        classes(Traffic::bytes_of),
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
    )
}

/// From the call to the confirmation.
fn delivery(out: &mut Out<'_>, metrics: &Metrics, now: &Figures) -> fmt::Result {
    out.histogram(
        "confirm_latency_seconds",
        "From handing a stored notification to a session to its confirmation, to two significant figures",
        metrics.confirm_spans(),
    )?;
    out.distribution(
        "call_to_confirm_seconds",
        "From accepting a stored notification to its confirmation by each device, however long that was away",
        &metrics.call_to_confirm,
        MICROS,
    )?;
    let fanouts = [("broadcast", &metrics.broadcast_latency), ("topic", &metrics.publish_latency)];
    out.distributions(
        "fanout_latency_seconds",
        "From queueing what is for many sessions to having offered it to the last of them",
        "audience",
        fanouts.into_iter(),
    )?;
    out.histogram("reply_latency_seconds", "From a client's request to a service's reply", &metrics.reply_latency)?;
    let fates = Fate::ALL.iter().map(|fate| (fate.as_str(), metrics.fates(*fate)));
    out.labelled("notifications", "What became of notifications", MetricType::Counter, "outcome", fates)?;
    let (pending, bytes) = now.pending;
    out.gauge(
        "pending_notifications",
        "Stored notifications that some device has yet to confirm, or that wait for a first one",
        pending,
    )?;
    out.gauge("pending_bytes", "Their bytes as accounted against the quotas", bytes)?;
    out.gauge("pending_limit_bytes", "store.max_bytes; 0: no bound", now.store_bounds.0)
}

/// The store and its writer.
fn store(out: &mut Out<'_>, now: &Figures) -> fmt::Result {
    out.gauge("store_disk_bytes", "The store's files", now.store_disk_bytes)?;
    out.gauge("store_disk_limit_bytes", "store.max_disk; 0: no bound", now.store_bounds.1)?;
    let mut free =
        out.family("store_disk_free_bytes", "What senders may yet fill of the store's file system", MetricType::Gauge)?;
    if let Some(bytes) = now.store_free_bytes {
        free.encode_gauge(&bytes)?;
    }
    out.gauge("store_healthy", "1: the store takes writes", now.store_healthy.into())?;
    let set_aside = now.store_set_aside.into();
    out.gauge("store_quarantined", "1: the store was damaged at the start, moved aside, and begun anew", set_aside)?;
    let (ops, bytes) = now.store_queued;
    out.gauge("store_queue_operations", "Operations that wait for the store's writer", ops)?;
    out.gauge("store_queue_bytes", "Bytes of notifications that were admitted and are not written", bytes)?;
    let commits = &now.store_commits;
    out.distribution(
        "store_commit_seconds",
        "How long a commit takes until it is as durable as store.durability has it",
        &commits.took,
        MICROS,
    )?;
    out.distribution("store_commit_bytes", "Bytes of keys and rows of a commit", &commits.bytes, 1.0)?;
    out.distribution("store_commit_rows", "Rows that a commit writes or deletes", &commits.rows, 1.0)
}

/// Calls, events, alerts, certificates.
fn services(out: &mut Out<'_>, metrics: &Metrics, now: &Figures) -> fmt::Result {
    if let Some(requests) = metrics.requests.get() {
        out.labelled_twice(
            "grpc_requests",
            "Calls over gRPC that were answered, by method and status code; of streams, their opening",
            MetricType::Counter,
            ["method", "code"],
            requests.counts().map(|(method, code, count)| ([method, code], count)),
        )?;
        out.distributions(
            "grpc_request_seconds",
            "How long a call took to be answered; of streams, their opening",
            "method",
            requests.took(),
        )?;
    }
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
    let help = "1: the last reading of the key files failed, or the last fetch of the key set";
    out.gauge("key_source_failing", help, now.key_source_failing.into())?;
    out.gauge("event_streams", "Consumers of StreamEvents", metrics.event_streams.get())?;
    out.gauge("event_lag", "Events between the newest and what the slowest consumer has read", now.event_lag)?;
    out.counter("events", "Events", now.events)?;
    out.counter("events_lost", "Events that consumers were told they lost", metrics.events_lost.get())?;
    out.counter("spans_exported", "Spans of traces that the collector has taken", metrics.spans_exported.get())?;
    out.counter(
        "spans_dropped",
        "Spans of traces that were lost: the collector took them not, or not in time, or too many waited",
        metrics.spans_dropped.get(),
    )
}

/// The tokio runtimes.
fn runtimes(out: &mut Out<'_>, metrics: &Metrics) -> fmt::Result {
    let runtimes = [("sessions", &metrics.scheduler_delay), ("calls", &metrics.calls_scheduler_delay)];
    out.histograms("scheduler_delay_seconds", "How late a runtime's tasks get their turn", "runtime", &runtimes)?;
    let now = metrics.runtimes.now();
    for (name, help, of) in [
        ("runtime_workers", "Worker threads of a runtime", (|runtime| runtime.workers) as fn(&Runtime) -> u64),
        ("runtime_tasks", "Tasks of a runtime that have not ended", |runtime| runtime.tasks),
        ("runtime_queued_tasks", "Tasks that wait in the queue that its workers share", |runtime| runtime.queued),
    ] {
        let values = now.iter().map(|runtime| (runtime.name, of(runtime)));
        out.labelled(name, help, MetricType::Gauge, "runtime", values)?;
    }
    let busy = now.iter().map(|runtime| (runtime.name, runtime.busy));
    out.seconds("runtime_busy_seconds", "How long its workers were busy, together", "runtime", busy)?;
    let parks = now.iter().map(|runtime| (runtime.name, runtime.parks));
    out.labelled("runtime_parks", "How often a worker found nothing to do", MetricType::Counter, "runtime", parks)
}
