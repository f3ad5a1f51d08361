//! Traces of calls: which calls are recorded, the spans of those that are, and the id of the trace in the log lines of each.
//!
//! A call's `traceparent` decides: what its caller records is recorded here, what it does not is not. Of calls without one a
//! share is. A recorded call is *current* while its own future runs ([`Call::within`]), so that the hub finds it without
//! being handed it; what outlives the call, the way to the devices, is looked up in `sends.rs` by log and offset. Without a
//! recorded call under way that is one look at an atomic; without a tracer, at an `Option`.
//!
//! Spans wait in a bounded queue for whoever exports them. No payload, no token and no user is ever in one.

mod sends;
mod span;

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use http::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::Instrument as _;
use uuid::Uuid;

use self::sends::Sends;
pub use self::{
    sends::Handed,
    span::{Attributes, Span, Value},
};
use crate::{
    clock::{Clock, Instant},
    limits,
    protocol::traceparent::{SpanId, TraceId, TraceParent},
    types::{LogId, Offset, SessionId, Share},
};

/// The target of the span that log lines stand in.
pub const LOG_TARGET: &str = "pushgate::trace";

/// The random part of a trace's id that decides whether a root is recorded: its last 56 bits (W3C Trace Context, level 2).
const RANDOM_BITS: u32 = 56;

tokio::task_local! {
    static CURRENT: Arc<Recorded>;
}

/// Records calls, or does not. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Inner>>);

struct Inner {
    clock: Clock,
    /// Roots whose random part is at least this are recorded.
    threshold: u64,
    /// Recorded calls under way.
    calls: AtomicUsize,
    sends: Sends,
    queue: Mutex<VecDeque<Span>>,
    /// Told when there are enough spans for a batch.
    full: Notify,
    lost: AtomicU64,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tracer").field(&self.0.is_some()).finish()
    }
}

impl Tracer {
    /// Records what callers record, and that share of the other calls.
    pub fn new(roots: Share, clock: Clock) -> Self {
        let all = 1u64 << RANDOM_BITS;
        // Exact at both ends: nothing, and all.
        let threshold = all - (roots.ratio() * all as f64) as u64;
        Self(Some(Arc::new(Inner {
            clock,
            threshold,
            calls: AtomicUsize::new(0),
            sends: Sends::default(),
            queue: Mutex::default(),
            full: Notify::new(),
            lost: AtomicU64::new(0),
        })))
    }

    /// A call begins. `None`: it is in no trace.
    pub fn begin(&self, headers: &HeaderMap, name: impl FnOnce() -> String) -> Option<Call> {
        let parent = TraceParent::of(headers);
        let Some((inner, trace)) = self.recorded(parent.as_ref()) else {
            // Its lines can still be found by the trace that its caller named.
            let trace = parent?.trace;
            let log = tracing::error_span!(target: LOG_TARGET, "call", trace_id = %trace);
            return Some(Call { recorded: None, log });
        };
        let (remote, state) = parent.map(|parent| (parent.span, parent.state)).unzip();
        let id = span::id();
        let log = tracing::error_span!(target: LOG_TARGET, "call", trace_id = %trace, span_id = %id);
        inner.calls.fetch_add(1, Ordering::Relaxed);
        let recorded = Recorded {
            tracer: Arc::clone(inner),
            trace,
            id,
            parent: remote,
            state: state.unwrap_or_default().into(),
            name: name(),
            began: inner.clock.now(),
            unix_nanos: inner.clock.unix_micros().saturating_mul(1000),
            staged: OnceLock::new(),
            sessions: AtomicU32::new(0),
        };
        Some(Call { recorded: Some(Arc::new(recorded)), log })
    }

    fn recorded(&self, parent: Option<&TraceParent>) -> Option<(&Arc<Inner>, TraceId)> {
        let inner = self.0.as_ref()?;
        match parent {
            Some(parent) => parent.sampled.then_some((inner, parent.trace)),
            None => {
                let trace = Uuid::new_v4().into_bytes();
                let low = u128::from_be_bytes(trace) as u64 & ((1 << RANDOM_BITS) - 1);
                (low >= inner.threshold).then_some((inner, TraceId(trace)))
            }
        }
    }

    /// The recorded call whose future this runs in.
    pub fn current(&self) -> Option<Arc<Recorded>> {
        let inner = self.0.as_ref()?;
        if inner.calls.load(Ordering::Relaxed) == 0 {
            return None;
        }
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Whether somebody's confirmation is waited for.
    pub fn awaits_confirmations(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| !inner.sends.is_empty())
    }

    /// A session has confirmed what has that place in a log.
    pub fn confirmed(&self, log: LogId, offset: Offset, handed: &Handed) {
        if let Some(inner) = &self.0 {
            inner.sends.confirmed(log, offset, handed, inner.clock.now());
        }
    }

    /// A session is gone, with what it has not confirmed.
    pub fn left(&self, session: SessionId) {
        if let Some(inner) = self.0.as_ref().filter(|inner| !inner.sends.is_empty()) {
            inner.sends.left(session, inner.clock.now());
        }
    }

    /// Ends what has been waited for long enough; call it once a second.
    pub fn sweep(&self) {
        if let Some(inner) = self.0.as_ref().filter(|inner| !inner.sends.is_empty()) {
            inner.sends.sweep(inner.clock.now());
        }
    }

    /// Ends whatever is waited for: nothing more will come.
    pub fn close(&self) {
        if let Some(inner) = &self.0 {
            inner.sends.close(inner.clock.now());
        }
    }

    /// Takes spans to be exported, the oldest first.
    pub fn take(&self, max: usize) -> Vec<Span> {
        let Some(inner) = &self.0 else { return Vec::new() };
        let mut queue = inner.queue.lock();
        let count = max.min(queue.len());
        queue.drain(..count).collect()
    }

    /// Waits until there is a batch of spans.
    pub async fn has_batch(&self) {
        match &self.0 {
            Some(inner) => inner.full.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Spans that were lost since it was asked last, because too many waited.
    pub fn take_lost(&self) -> u64 {
        self.0.as_ref().map_or(0, |inner| inner.lost.swap(0, Ordering::Relaxed))
    }
}

impl Inner {
    fn push(&self, span: Span) {
        let mut queue = self.queue.lock();
        if queue.len() >= limits::SPANS_WAITING_MAX {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.push_back(span);
        if queue.len() >= limits::SPANS_PER_BATCH {
            self.full.notify_one();
        }
    }
}

/// A call that is in a trace, from its beginning to its answer. Dropped before that, it was given up by its caller.
pub struct Call {
    recorded: Option<Arc<Recorded>>,
    log: tracing::Span,
}

impl Call {
    /// Does the call's work: what is logged meanwhile has the trace's id, and what it sends is recorded where the call is.
    pub fn within<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        let recorded = self.recorded.clone();
        let work = async move {
            match recorded {
                Some(recorded) => CURRENT.scope(recorded, work).await,
                None => work.await,
            }
        };
        work.instrument(self.log.clone())
    }

    /// It was answered. `error` is for what the gateway could not do, and not for what a caller did wrong.
    pub fn end(mut self, attributes: impl FnOnce() -> Attributes, error: Option<&'static str>) {
        if let Some(recorded) = self.recorded.take() {
            recorded.end(attributes(), error);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(recorded) = self.recorded.take() {
            recorded.end(vec![("pushgate.outcome", Value::Text("given up by its caller".to_owned()))], None);
        }
    }
}

/// A call that is recorded, and what its spans have in common.
pub struct Recorded {
    tracer: Arc<Inner>,
    trace: TraceId,
    id: SpanId,
    parent: Option<SpanId>,
    state: Arc<str>,
    name: String,
    began: Instant,
    /// The same, in nanoseconds since the Unix epoch.
    unix_nanos: u64,
    /// When what it sends went to the writer.
    staged: OnceLock<Instant>,
    /// Sessions whose way has been recorded.
    sessions: AtomicU32,
}

impl Recorded {
    /// What it sends has its place in a log and goes to the writer; and to these sessions, at once.
    pub fn sent(self: &Arc<Self>, log: LogId, offset: Offset, sessions: impl Iterator<Item = SessionId>) {
        let now = self.tracer.clock.now();
        let _ = self.staged.set(now);
        if !self.tracer.sends.note(self, (log, offset), sessions, now) {
            self.tracer.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What it sends is on disk, or could not be brought there.
    pub fn written(&self, done: bool) {
        // A repeated call has written nothing.
        if let Some(staged) = self.staged.get() {
            let error = (!done).then_some("the store has failed");
            self.child("store.commit", (*staged, self.tracer.clock.now()), Vec::new(), error);
        }
    }

    /// Whether one more session's way is recorded.
    fn has_room(&self) -> bool {
        self.sessions.fetch_add(1, Ordering::Relaxed) < limits::SPAN_SESSIONS_MAX
    }

    fn nanos(&self, at: Instant) -> u64 {
        let nanos = |span: std::time::Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        match at.checked_duration_since(self.began) {
            Some(after) => self.unix_nanos.saturating_add(nanos(after)),
            None => self.unix_nanos.saturating_sub(nanos(self.began.duration_since(at))),
        }
    }

    fn child(
        &self,
        name: &'static str,
        (from, to): (Instant, Instant),
        attributes: Attributes,
        error: Option<&'static str>,
    ) {
        self.tracer.push(Span {
            trace: self.trace,
            id: span::id(),
            parent: Some(self.id),
            state: Arc::clone(&self.state),
            name: name.into(),
            of_call: false,
            start_nanos: self.nanos(from),
            end_nanos: self.nanos(to.max(from)),
            attributes,
            error,
        });
    }

    fn end(&self, attributes: Attributes, error: Option<&'static str>) {
        self.tracer.calls.fetch_sub(1, Ordering::Relaxed);
        self.tracer.push(Span {
            trace: self.trace,
            id: self.id,
            parent: self.parent,
            state: Arc::clone(&self.state),
            name: self.name.clone().into(),
            of_call: true,
            start_nanos: self.unix_nanos,
            end_nanos: self.nanos(self.tracer.clock.now()),
            attributes,
            error,
        });
    }
}

#[cfg(test)]
mod tests;
