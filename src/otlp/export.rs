//! Batches on their way to the collector. One is under way at a time; what comes meanwhile waits in the tracer's queue, which
//! is bounded. A batch is tried again with growing pauses (or when the collector says), for a minute; then it is dropped, and
//! newer spans have their turn.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    send::{Answer, Sender},
    wire,
};
use crate::{
    api::process,
    limits,
    metrics::Metrics,
    trace::{Span, Tracer, Value},
};

/// How long spans wait for others to go with.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// The first pause before a batch is tried again, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How often it is said that the collector takes nothing.
const SAID_EVERY: Duration = Duration::from_secs(600);
/// `SpanFlags` (trace.proto): whether the parent is remote is known, and it is.
const FLAG_KNOWN: u32 = 0x100;
const FLAG_REMOTE: u32 = 0x200;
/// The flag of `traceparent` that all of these have: they are recorded.
const FLAG_SAMPLED: u32 = 1;

/// Brings spans to a collector.
pub struct Exporter {
    tracer: Tracer,
    metrics: Metrics,
    sender: Sender,
    resource: wire::Resource,
    stop: CancellationToken,
    /// When it was last said that the collector takes nothing; `None`: it takes what comes.
    said: Option<Instant>,
}

impl Exporter {
    /// By this sender, until `stop`.
    pub fn new(tracer: Tracer, metrics: Metrics, sender: Sender, service: &str, stop: CancellationToken) -> Self {
        let attributes = [
            ("service.name", service.to_owned()),
            ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
            // Another one at each start: no two that run have the same (semantic conventions, "Service").
            ("service.instance.id", Uuid::new_v4().to_string()),
            ("host.name", process::host_name()),
        ];
        let attributes = attributes.map(|(key, value)| attribute(key, Value::Text(value))).into();
        Self { tracer, metrics, sender, resource: wire::Resource { attributes }, stop, said: None }
    }

    /// Exports until the stop, and then what is left.
    pub async fn run(mut self) {
        let (tracer, metrics, stop) = (self.tracer.clone(), self.metrics.clone(), self.stop.clone());
        // Also while a batch is under way, which may take long.
        let keeping = async {
            let mut ticks = tokio::time::interval(FLUSH_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                tracer.sweep();
                metrics.spans_dropped.add(tracer.take_lost());
            }
        };
        let exporting = async {
            while !stop.is_cancelled() {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = self.tracer.has_batch() => {}
                    () = tokio::time::sleep(FLUSH_EVERY) => {}
                }
                self.flush().await;
            }
            self.tracer.close();
            self.flush().await;
        };
        tokio::select! {
            () = keeping => {}
            () = exporting => {}
        }
        metrics.spans_dropped.add(tracer.take_lost());
    }

    /// Exports all that waits.
    async fn flush(&mut self) {
        loop {
            let spans = self.tracer.take(limits::SPANS_PER_BATCH);
            if spans.is_empty() {
                return;
            }
            self.export(spans).await;
        }
    }

    async fn export(&mut self, spans: Vec<Span>) {
        let count = spans.len() as u64;
        let body = Bytes::from(self.request(spans).encode_to_vec());
        let (until, mut pause) = (Instant::now() + limits::SPANS_EXPORT_MAX, PAUSES.0);
        loop {
            match self.sender.send(body.clone()).await {
                Answer::Taken { rejected, why } => {
                    let rejected = rejected.min(count);
                    self.metrics.spans_exported.add(count - rejected);
                    self.metrics.spans_dropped.add(rejected);
                    if rejected > 0 {
                        self.say(&format!("it did not take {rejected} spans: {}", why.escape_debug()));
                    } else if self.said.take().is_some() {
                        tracing::info!("traces are exported again");
                    }
                    return;
                }
                Answer::Refused(why) => {
                    self.say(&why);
                    return self.metrics.spans_dropped.add(count);
                }
                Answer::Later { after, why } => {
                    self.say(&why);
                    let wait = after.unwrap_or_else(|| pause.mul_f64(spread()));
                    if self.stop.is_cancelled() || wait > until.saturating_duration_since(Instant::now()) {
                        return self.metrics.spans_dropped.add(count);
                    }
                    tokio::select! {
                        // Once more, and no more.
                        () = self.stop.cancelled() => {}
                        () = tokio::time::sleep(wait) => {}
                    }
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    }

    /// Says that the collector takes nothing, once in a while.
    fn say(&mut self, why: &str) {
        if self.said.is_none_or(|said| said.elapsed() >= SAID_EVERY) {
            self.said = Some(Instant::now());
            tracing::warn!(why, "traces cannot be exported; they are dropped where that lasts, and all else goes on");
        }
    }

    fn request(&self, spans: Vec<Span>) -> wire::ExportTraceServiceRequest {
        let scope =
            wire::InstrumentationScope { name: "pushgate".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let spans = spans.into_iter().map(of_wire).collect();
        let scope_spans = vec![wire::ScopeSpans { scope: Some(scope), spans }];
        let resource_spans = vec![wire::ResourceSpans { resource: Some(self.resource.clone()), scope_spans }];
        wire::ExportTraceServiceRequest { resource_spans }
    }
}

/// Between a half and one and a half, so that many who lost the same collector do not come back at once.
fn spread() -> f64 {
    let [byte, ..] = Uuid::new_v4().into_bytes();
    0.5 + f64::from(byte) / 255.0
}

fn attribute(key: &str, value: Value) -> wire::KeyValue {
    let value = match value {
        Value::Text(text) => wire::Value::StringValue(text),
        Value::Number(number) => wire::Value::IntValue(number),
    };
    wire::KeyValue { key: key.to_owned(), value: Some(wire::AnyValue { value: Some(value) }) }
}

fn of_wire(span: Span) -> wire::Span {
    let kind = if span.of_call { wire::SpanKind::Server } else { wire::SpanKind::Internal };
    let remote = if span.of_call && span.parent.is_some() { FLAG_REMOTE } else { 0 };
    wire::Span {
        trace_id: span.trace.0.to_vec(),
        span_id: span.id.0.to_vec(),
        trace_state: span.state.to_string(),
        parent_span_id: span.parent.map(|parent| parent.0.to_vec()).unwrap_or_default(),
        name: span.name.into_owned(),
        kind: kind.into(),
        start_time_unix_nano: span.start_nanos,
        end_time_unix_nano: span.end_nanos,
        attributes: span.attributes.into_iter().map(|(key, value)| attribute(key, value)).collect(),
        // 2: STATUS_CODE_ERROR. That all is well is for the application to say, and is left unsaid.
        status: span.error.map(|error| wire::Status { message: error.to_owned(), code: 2 }),
        flags: FLAG_SAMPLED | FLAG_KNOWN | remote,
    }
}
