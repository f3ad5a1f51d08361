//! The messages of OTLP for traces, as far as they are used: opentelemetry/proto/trace/v1/trace.proto, with common.proto,
//! resource.proto and collector/trace/v1/trace_service.proto (version 1.3.2). What is not used is left out; who decodes by
//! the whole files reads the same.

use prost::{Enumeration, Message, Oneof};

/// What is posted.
#[derive(Clone, PartialEq, Message)]
pub struct ExportTraceServiceRequest {
    /// By resource.
    #[prost(message, repeated, tag = "1")]
    pub resource_spans: Vec<ResourceSpans>,
}

/// What is answered.
#[derive(Clone, PartialEq, Message)]
pub struct ExportTraceServiceResponse {
    /// There where not all was taken.
    #[prost(message, optional, tag = "1")]
    pub partial_success: Option<ExportTracePartialSuccess>,
}

/// What was not taken.
#[derive(Clone, PartialEq, Message)]
pub struct ExportTracePartialSuccess {
    /// So many spans.
    #[prost(int64, tag = "1")]
    pub rejected_spans: i64,
    /// Why.
    #[prost(string, tag = "2")]
    pub error_message: String,
}

/// The spans of one resource.
#[derive(Clone, PartialEq, Message)]
pub struct ResourceSpans {
    /// The resource.
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    /// By instrumentation scope.
    #[prost(message, repeated, tag = "2")]
    pub scope_spans: Vec<ScopeSpans>,
}

/// A process.
#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    /// What it is.
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

/// The spans of one instrumentation scope.
#[derive(Clone, PartialEq, Message)]
pub struct ScopeSpans {
    /// The scope.
    #[prost(message, optional, tag = "1")]
    pub scope: Option<InstrumentationScope>,
    /// The spans.
    #[prost(message, repeated, tag = "2")]
    pub spans: Vec<Span>,
}

/// What makes spans.
#[derive(Clone, PartialEq, Message)]
pub struct InstrumentationScope {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its version.
    #[prost(string, tag = "2")]
    pub version: String,
}

/// One span.
#[derive(Clone, PartialEq, Message)]
pub struct Span {
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub trace_id: Vec<u8>,
    /// 8 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub span_id: Vec<u8>,
    /// As in the header.
    #[prost(string, tag = "3")]
    pub trace_state: String,
    /// 8 bytes, or none.
    #[prost(bytes = "vec", tag = "4")]
    pub parent_span_id: Vec<u8>,
    /// What it is.
    #[prost(string, tag = "5")]
    pub name: String,
    /// Its place among others.
    #[prost(enumeration = "SpanKind", tag = "6")]
    pub kind: i32,
    /// When it began.
    #[prost(fixed64, tag = "7")]
    pub start_time_unix_nano: u64,
    /// When it ended.
    #[prost(fixed64, tag = "8")]
    pub end_time_unix_nano: u64,
    /// More about it.
    #[prost(message, repeated, tag = "9")]
    pub attributes: Vec<KeyValue>,
    /// How it went.
    #[prost(message, optional, tag = "15")]
    pub status: Option<Status>,
    /// Bits 0 to 7: the flags of `traceparent`; 8: the next is known; 9: the parent is in another process.
    #[prost(fixed32, tag = "16")]
    pub flags: u32,
}

/// A span's place among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub enum SpanKind {
    /// Not said.
    Unspecified = 0,
    /// Within a process.
    Internal = 1,
    /// A call, from the side that answers.
    Server = 2,
}

/// How a span went.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    /// More about it.
    #[prost(string, tag = "2")]
    pub message: String,
    /// 0: not said, 1: well, 2: it failed.
    #[prost(int32, tag = "3")]
    pub code: i32,
}

/// A name and its value.
#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    /// The name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The value.
    #[prost(message, optional, tag = "2")]
    pub value: Option<AnyValue>,
}

/// A value.
#[derive(Clone, PartialEq, Message)]
pub struct AnyValue {
    /// Of one kind.
    #[prost(oneof = "Value", tags = "1, 3")]
    pub value: Option<Value>,
}

/// The kinds of values.
#[derive(Clone, PartialEq, Oneof)]
pub enum Value {
    /// A text.
    #[prost(string, tag = "1")]
    StringValue(String),
    /// A number.
    #[prost(int64, tag = "3")]
    IntValue(i64),
}
