//! One request to a collector, over a connection that is kept.
//!
//! What an answer means is OTLP's ("OTLP/HTTP Response"): 429, 502, 503 and 504 may be tried again, and whatever is said of
//! the connection; anything else but a success is final. Redirects are not followed.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    config::{Endpoint, Files},
    wire::ExportTraceServiceResponse,
};

/// The bytes of an answer's head, and of its body.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was taken, but for so many spans.
    Taken {
        /// Spans that were not.
        rejected: u64,
        /// Why, in the collector's words.
        why: String,
    },
    /// It will never be.
    Refused(String),
    /// It may be, later.
    Later {
        /// When to come back, where the collector says so.
        after: Option<Duration>,
        /// Why not now.
        why: String,
    },
}

type Connection = (SendRequest<Full<Bytes>>, AbortOnDropHandle<()>);

/// Sends to one collector.
pub struct Sender {
    endpoint: Endpoint,
    files: Files,
    timeout: Duration,
    kept: Option<Connection>,
}

impl Sender {
    /// To that one; each request may take so long.
    pub fn new(endpoint: Endpoint, files: Files, timeout: Duration) -> Self {
        Self { endpoint, files, timeout, kept: None }
    }

    /// Sends one request.
    pub async fn send(&mut self, body: Bytes) -> Answer {
        let later = |why: String| Answer::Later { after: None, why };
        match tokio::time::timeout(self.timeout, self.exchange(body)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => later(why),
            // The connection may be of no use any more; it went with the exchange.
            Err(_) => later(format!("no answer within {} ms", self.timeout.as_millis())),
        }
    }

    async fn exchange(&mut self, body: Bytes) -> Result<Answer, String> {
        let mut connection = match self.kept.take() {
            Some(kept) => kept,
            None => self.connect().await?,
        };
        // The collector may have closed it meanwhile.
        if connection.0.ready().await.is_err() {
            connection = self.connect().await?;
        }
        let mut request = Request::post(&self.endpoint.path)
            .header(header::HOST, self.endpoint.authority())
            .header(header::USER_AGENT, concat!("pushgate/", env!("CARGO_PKG_VERSION")))
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        request.headers_mut().extend(self.files.headers.clone());
        let response = connection.0.send_request(request).await.map_err(|error| format!("no answer: {error}"))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        if body.is_ok() {
            self.kept = Some(connection);
        }
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        Ok(answer(status, &headers, &body))
    }

    async fn connect(&self) -> Result<Connection, String> {
        let Endpoint { host, port, .. } = &self.endpoint;
        let stream = TcpStream::connect((host.as_str(), *port)).await;
        let stream = stream.map_err(|error| format!("cannot connect: {error}"))?;
        // A batch goes out whole.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.files.tls else { return shake(stream).await };
        let name = ServerName::try_from(host.clone()).map_err(|_| "no certificate can have that name")?;
        shake(tls.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?).await
    }
}

async fn shake(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Connection, String> {
    let shaken = http1::Builder::new().max_buf_size(ANSWER_BYTES_MAX).handshake(TokioIo::new(stream)).await;
    let (sender, connection) = shaken.map_err(|error| format!("no HTTP: {error}"))?;
    let carrying = tokio::spawn(async move {
        // What is wrong with it the request hears, too.
        let _ = connection.await;
    });
    Ok((sender, AbortOnDropHandle::new(carrying)))
}

fn answer(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Answer {
    let why = format!("it answers {status}");
    match status {
        status if status.is_success() => {
            // A body that is none says nothing against it.
            let partial = ExportTraceServiceResponse::decode(body).unwrap_or_default().partial_success;
            let partial = partial.unwrap_or_default();
            let rejected = u64::try_from(partial.rejected_spans).unwrap_or(0);
            Answer::Taken { rejected, why: partial.error_message.chars().take(256).collect() }
        }
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            // Seconds; a date, which it may also be (RFC 9110, 10.2.3), is left aside.
            let after = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
            Answer::Later { after: after.map(Duration::from_secs), why }
        }
        _ => Answer::Refused(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::wire::ExportTracePartialSuccess;

    #[test]
    fn an_answer_says_whether_to_come_back() {
        let said = |status: u16, retry: Option<&str>, body: &[u8]| {
            let headers = retry.map(|value| (header::RETRY_AFTER, value.parse().unwrap()));
            answer(StatusCode::from_u16(status).unwrap(), &headers.into_iter().collect(), body)
        };
        let all = Answer::Taken { rejected: 0, why: String::new() };
        assert_eq!(said(200, None, b""), all);
        assert_eq!(said(200, None, b"\xff\xff"), all);
        let partial = ExportTracePartialSuccess { rejected_spans: 3, error_message: "old".to_owned() };
        let body = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
        assert_eq!(said(200, None, &body), Answer::Taken { rejected: 3, why: "old".to_owned() });
        for status in [429, 502, 503, 504] {
            for (retry, seconds) in [(None, None), (Some("7"), Some(7)), (Some("Wed, 21 Oct 2026 07:28:00 GMT"), None)]
            {
                let Answer::Later { after, .. } = said(status, retry, b"") else { panic!("{status}") };
                assert_eq!(after, seconds.map(Duration::from_secs));
            }
        }
        for status in [301, 400, 401, 404, 413, 500] {
            assert!(matches!(said(status, Some("1"), b""), Answer::Refused(_)), "{status}");
        }
    }
}
