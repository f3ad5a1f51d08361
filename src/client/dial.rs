//! From an address to a WebSocket: TCP, TLS where it is wanted, and the handshake of RFC 6455 section 4.1.
//!
//! The handshake is spoken through hyper and handed to tokio-tungstenite when it is done: tungstenite's own would write
//! the request, token and all, to whatever log has its traces on.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

use super::{
    error::{BuildError, ConnectError},
    options::{Options, Target},
    retry, tokens,
};
use crate::types::Secret;

/// How much of a refusal's text is kept.
const BODY_BYTES_MAX: usize = 256;
/// How long that text is waited for.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);
/// The buffers of a connection: a client has one, and its messages are mostly small.
const BUFFER_BYTES: usize = 16 * 1024;

/// An open connection.
pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Who is trusted: the system's certificates and further ones.
pub fn tls(further: &[Vec<u8>]) -> Result<TlsConnector, BuildError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    // A system has certificates that no library reads; what is left is what there is.
    roots.add_parsable_certificates(system.certs);
    for pem in further {
        let wrong = |what: String| BuildError::Tls(format!("the root certificates: {what}"));
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(format!("not PEM: {error}")))?;
        if certificates.is_empty() {
            return Err(wrong("there is none in them".to_owned()));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
    }
    if roots.is_empty() {
        return Err(BuildError::Tls("the system has no root certificates, and none were given".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| BuildError::Tls(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Connects. The caller bounds the time. The flag is set by every read that brings something.
pub async fn dial(
    options: &Options,
    tls: Option<&TlsConnector>,
    token: Option<&Secret>,
) -> Result<(Socket, Arc<AtomicBool>), ConnectError> {
    let target = &options.target;
    let network = |problem: String| ConnectError::Network { address: target.address.clone(), problem };
    let stream = TcpStream::connect((&*target.host, target.port)).await.map_err(|error| network(error.to_string()))?;
    // Only latency depends on it.
    let _ = stream.set_nodelay(true);
    let stream = match tls {
        None => Stream::Plain(stream),
        Some(tls) => {
            let name = ServerName::try_from(target.host.clone())
                .map_err(|_| network("TLS: not a name that a certificate can have".to_owned()))?;
            let stream = tls.connect(name, stream).await.map_err(|error| network(format!("TLS: {error}")))?;
            Stream::Tls(Box::new(stream))
        }
    };
    let received = Arc::new(AtomicBool::new(false));
    let stream = Wire { stream, received: Arc::clone(&received) };
    let (request, accept) = request(options, token)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| network(error.to_string()))?;
    // It carries the request and ends with the upgrade, or with the error that the request then has, too.
    let carrying = async {
        let _ = connection.with_upgrades().await;
        std::future::pending::<()>().await;
    };
    let shaking = async {
        let answer = sender.send_request(request).await.map_err(|error| broken(target, &error))?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(target, answer).await);
        }
        let protocol =
            |problem: &str| ConnectError::Protocol { address: target.address.clone(), problem: problem.to_owned() };
        check(answer.headers(), &accept).map_err(protocol)?;
        hyper::upgrade::on(answer).await.map_err(|error| broken(target, &error))
    };
    let upgraded = tokio::select! {
        biased;
        upgraded = shaking => upgraded?,
        () = carrying => return Err(network("the connection ended".to_owned())),
    };
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(options.message_bytes_max))
        .max_frame_size(Some(options.message_bytes_max));
    Ok((WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config)).await, received))
}

fn broken(target: &Target, error: &hyper::Error) -> ConnectError {
    let address = target.address.clone();
    let problem = error.to_string();
    if error.is_parse() {
        ConnectError::Protocol { address, problem }
    } else {
        ConnectError::Network { address, problem }
    }
}

/// The handshake, and what its answer must hold.
fn request(options: &Options, token: Option<&Secret>) -> Result<(Request<Empty<Bytes>>, String), ConnectError> {
    let target = &options.target;
    let key = STANDARD.encode(uuid::Uuid::new_v4().as_bytes());
    let accept = derive_accept_key(key.as_bytes());
    let wrong =
        |_| ConnectError::Protocol { address: target.address.clone(), problem: "it makes no request".to_owned() };
    let mut request = Request::get(&target.path_and_query)
        .header(header::HOST, &target.authority)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, key)
        .body(Empty::new())
        .map_err(wrong)?;
    let headers = request.headers_mut();
    for (name, value) in &options.headers {
        headers.append(name, value.clone());
    }
    let agent = HeaderValue::from_static(concat!("pushgate-client/", env!("CARGO_PKG_VERSION")));
    headers.entry(header::USER_AGENT).or_insert(agent);
    if let Some(token) = token {
        let bearer = tokens::bearer(token).map_err(|problem| ConnectError::Token(format!("the token {problem}")))?;
        headers.insert(header::AUTHORIZATION, bearer);
    }
    Ok((request, accept))
}

/// RFC 6455 section 4.1, what a client must look at.
fn check(headers: &HeaderMap, accept: &str) -> Result<(), &'static str> {
    let says = |name, word: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(word))
    };
    if !says(header::UPGRADE, "websocket") || !says(header::CONNECTION, "upgrade") {
        return Err("it switches to another protocol");
    }
    if headers.get(header::SEC_WEBSOCKET_ACCEPT).is_none_or(|value| value.as_bytes() != accept.as_bytes()) {
        return Err("it answers another key");
    }
    if headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
        return Err("it uses an extension that was not offered");
    }
    Ok(())
}

/// What an answer other than 101 says.
async fn refusal(target: &Target, answer: Response<Incoming>) -> ConnectError {
    let status = answer.status().as_u16();
    let retry_after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = retry_after.and_then(|value| retry::retry_after(value, SystemTime::now()));
    let mut body = answer.into_body();
    let mut text = Vec::new();
    // The status is what counts; a text that does not come is done without.
    let reading = async {
        while text.len() < BODY_BYTES_MAX
            && let Some(Ok(frame)) = body.frame().await
        {
            text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        }
    };
    let _ = tokio::time::timeout(BODY_TIMEOUT, reading).await;
    text.truncate(BODY_BYTES_MAX);
    let text = String::from_utf8_lossy(&text).trim().replace(char::is_control, " ");
    ConnectError::Http { address: target.address.clone(), status, body: text, retry_after }
}

/// A connection with or without TLS.
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that notes whether something was received.
struct Wire {
    stream: Stream,
    received: Arc<AtomicBool>,
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let wire = self.get_mut();
        let read = match &mut wire.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        };
        if buffer.filled().len() > before {
            wire.received.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_must_be_one_to_this_handshake() {
        let headers = |list: &[(&'static str, &'static str)]| {
            let list = list.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            list.collect::<HeaderMap>()
        };
        let good = [("upgrade", "WebSocket"), ("connection", "keep-alive, Upgrade"), ("sec-websocket-accept", "k")];
        assert_eq!(check(&headers(&good), "k"), Ok(()));
        assert!(check(&headers(&good), "other").is_err());
        assert!(check(&headers(&good[..2]), "k").is_err());
        assert!(check(&headers(&good[1..]), "k").is_err());
        let extended = [&good[..], &[("sec-websocket-extensions", "permessage-deflate")]].concat();
        assert!(check(&headers(&extended), "k").is_err());
    }

    #[test]
    fn root_certificates_are_read_or_refused() {
        for bad in ["", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(matches!(tls(&[bad.into()]), Err(BuildError::Tls(_))), "{bad}");
        }
    }
}
