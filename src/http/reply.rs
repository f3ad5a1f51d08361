//! What is answered. Errors have the shape of `google.rpc.Status` in JSON, `{"code":…,"message":…,"details":[…]}`, and the
//! HTTP status that google.rpc.Code gives for their code, or a nearer one where HTTP itself is at fault.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    api::{ApiError, json as proto_json},
    metrics::Metrics,
};

/// What a listener of this floor answers.
pub type Reply = Response<Full<Bytes>>;

/// Why a request is not answered with what it asks for.
#[derive(Debug)]
pub struct Refusal {
    /// Where it is not the one of the error's code.
    status: Option<StatusCode>,
    error: ApiError,
    header: Option<(header::HeaderName, &'static str)>,
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self { status: None, error, header: None }
    }
}

impl Refusal {
    /// A request that is no call.
    pub fn new(status: StatusCode, code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        let error = ApiError::Refused { code, reason, message: message.into() };
        Self { status: Some(status), error, header: None }
    }

    /// Another method than these.
    pub fn method(allowed: &'static str) -> Self {
        let message = format!("this is for {allowed} only");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented, "METHOD_NOT_ALLOWED", message)
            .with(header::ALLOW, allowed)
    }

    /// With a header that says more.
    pub fn with(mut self, name: header::HeaderName, value: &'static str) -> Self {
        self.header = Some((name, value));
        self
    }

    /// The answer; counted.
    pub fn reply(self, metrics: &Metrics) -> Reply {
        let status = self.error.into_status(metrics);
        let http = self.status.unwrap_or_else(|| http_status(status.code()));
        let mut reply = json(http, &proto_json::status(&status));
        let headers = reply.headers_mut();
        if http == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = retry_after(&status) {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        headers.extend(self.header.map(|(name, value)| (name, HeaderValue::from_static(value))));
        reply
    }
}

/// Whole seconds, at least one, where the status says when to come back.
fn retry_after(status: &Status) -> Option<u64> {
    let delay = status.get_details_retry_info()?.retry_delay?;
    Some((delay.as_secs() + u64::from(delay.subsec_nanos() > 0)).max(1))
}

/// As the comments of google.rpc.Code have it.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        // 499, of nginx; nobody is there to read it.
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Text of some type.
pub fn text(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

/// JSON, on a line.
pub fn json(status: StatusCode, body: &impl Serialize) -> Reply {
    match serde_json::to_vec(body) {
        Ok(mut body) => {
            body.push(b'\n');
            text(status, "application/json", body)
        }
        Err(error) => {
            // A message without descriptor: they are built from the same file, and a test shows each.
            tracing::error!(%error, "an answer cannot be shown as JSON");
            let body = br#"{"code":13,"message":"the answer cannot be shown as JSON","details":[]}"#;
            text(StatusCode::INTERNAL_SERVER_ERROR, "application/json", &body[..])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_by_its_headers_what_to_do() {
        let metrics = Metrics::default();
        let shown = |refusal: Refusal, name: header::HeaderName| {
            let reply = refusal.reply(&metrics);
            (reply.status().as_u16(), reply.headers().get(name).map(|value| value.to_str().unwrap().to_owned()))
        };
        let quota = || ApiError::Quota { reason: "MAILBOX_FULL", message: "full".into() }.into();
        assert_eq!(shown(quota(), header::RETRY_AFTER), (429, Some("5".to_owned())));
        let nobody = ApiError::Unauthenticated("no token").into();
        assert_eq!(shown(nobody, header::WWW_AUTHENTICATE), (401, Some("Bearer".to_owned())));
        assert_eq!(shown(Refusal::method("POST"), header::ALLOW), (405, Some("POST".to_owned())));
        assert_eq!(shown(Refusal::method("POST"), header::RETRY_AFTER), (405, None));
    }
}
