//! A span as it is recorded, whoever exports it.

use std::{borrow::Cow, sync::Arc};

use uuid::Uuid;

use crate::protocol::traceparent::{SpanId, TraceId};

/// Names and values.
pub type Attributes = Vec<(&'static str, Value)>;

/// What an attribute says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

/// Something that took time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its trace.
    pub trace: TraceId,
    /// Its id.
    pub id: SpanId,
    /// What it is a part of; nothing: it is a root.
    pub parent: Option<SpanId>,
    /// The caller's `tracestate`.
    pub state: Arc<str>,
    /// What it is.
    pub name: Cow<'static, str>,
    /// Whether it is the call itself, whose parent is elsewhere.
    pub of_call: bool,
    /// When it began, in nanoseconds since the Unix epoch.
    pub start_nanos: u64,
    /// When it ended.
    pub end_nanos: u64,
    /// More about it.
    pub attributes: Attributes,
    /// Why it failed, where it did.
    pub error: Option<&'static str>,
}

/// The id of a new span: of a UUID (version 4) those bytes that are random to the last bit.
pub(super) fn id() -> SpanId {
    let [a, b, c, d, e, f, _, _, _, g, h, ..] = Uuid::new_v4().into_bytes();
    let id = [a, b, c, d, e, f, g, h];
    SpanId(if id == [0; 8] { [1; 8] } else { id })
}
