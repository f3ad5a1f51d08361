//! From an address to a WebSocket: TCP, TLS where it is wanted, and the handshake of RFC 6455 section 4.1.
//!
//! The handshake is spoken through hyper and handed to tokio-tungstenite when it is done: tungstenite's own would write
//! the request, token and all, to whatever log has its traces on.

use std::{
    io,
    net::SocketAddr,
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
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
    time::{Instant, timeout},
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
    error::ConnectError,
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

/// Connects. The caller bounds the time, by `until`. The flag is set by every read that brings something.
pub async fn dial(
    options: &Options,
    tls: Option<&TlsConnector>,
    token: Option<&Secret>,
    until: Instant,
) -> Result<(Socket, Arc<AtomicBool>), ConnectError> {
    let target = &options.target;
    let network = |problem: String| ConnectError::Network { address: target.address.clone(), problem };
    let stream = connect(&target.host, target.port, until).await.map_err(|error| network(error.to_string()))?;
    // Only latency depends on it.
    let _ = stream.set_nodelay(true);
    let stream = match tls {
        None => Stream::Plain(stream),
        Some(tls) => {
            let name = ServerName::try_from(options.server_name.as_ref().unwrap_or(&target.host).clone())
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
            return Err(refusal(options, token, answer).await);
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

async fn connect(host: &str, port: u16, until: Instant) -> io::Result<TcpStream> {
    let addresses: Vec<_> = lookup_host((host, port)).await?.collect();
    connect_to_one(&addresses, until).await
}

/// Tries one after the other. Each but the last has a share of the time, so that one that is not answered leaves some to
/// the others and to the handshake.
async fn connect_to_one(addresses: &[SocketAddr], until: Instant) -> io::Result<TcpStream> {
    let Some((last, others)) = addresses.split_last() else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    };
    for (tried, address) in others.iter().enumerate() {
        let shares = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX).saturating_add(1);
        let share = until.saturating_duration_since(Instant::now()) / shares;
        if let Ok(Ok(stream)) = timeout(share, TcpStream::connect(address)).await {
            return Ok(stream);
        }
    }
    TcpStream::connect(last).await
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
    if headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        return Err("it speaks a sub-protocol that was not offered");
    }
    Ok(())
}

/// What an answer other than 101 says.
async fn refusal(options: &Options, token: Option<&Secret>, answer: Response<Incoming>) -> ConnectError {
    let status = answer.status().as_u16();
    let retry_after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = retry_after.and_then(|value| retry::retry_after(value, SystemTime::now()));
    let secrets = secrets(options, token);
    // A secret that begins within what is kept must be known by its end.
    let enough = BODY_BYTES_MAX + secrets.iter().map(Vec::len).max().unwrap_or_default();
    let mut body = answer.into_body();
    let mut text = Vec::new();
    // The status is what counts; a text that does not come is done without.
    let reading = async {
        while text.len() < enough
            && let Some(Ok(frame)) = body.frame().await
        {
            text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        }
    };
    let _ = timeout(BODY_TIMEOUT, reading).await;
    let text = String::from_utf8_lossy(&shown(&text, &secrets)).trim().replace(char::is_control, " ");
    ConnectError::Http { address: options.target.address.clone(), status, body: text, retry_after }
}

/// What a server may repeat that is to be in no error.
fn secrets(options: &Options, token: Option<&Secret>) -> Vec<Vec<u8>> {
    let token = token.map(|token| token.expose().as_bytes().to_vec());
    let headers = options.headers.values().map(|value| value.as_bytes().to_vec());
    // As it stands, and each value as it is meant.
    let query = options.target.query.expose();
    let raw = query.split('&').filter_map(|pair| pair.split_once('=')).map(|(_, value)| value.as_bytes().to_vec());
    let meant = form_urlencoded::parse(query.as_bytes()).map(|(_, value)| value.into_owned().into_bytes());
    let all = token.into_iter().chain(headers).chain([query.as_bytes().to_vec()]).chain(raw).chain(meant);
    let mut all: Vec<_> = all.filter(|secret| !secret.is_empty()).collect();
    // The longest first, where one is the start of another.
    all.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    all
}

/// The start of a text, with `***` in place of secrets and of a part of one that the text breaks off in.
fn shown(text: &[u8], secrets: &[Vec<u8>]) -> Vec<u8> {
    /// What is shorter is a coincidence.
    const PART_MIN: usize = 4;
    let mut shown = Vec::new();
    let mut rest = text;
    while text.len() - rest.len() < BODY_BYTES_MAX
        && let Some((first, further)) = rest.split_first()
    {
        if rest.len() >= PART_MIN && secrets.iter().any(|secret| secret.starts_with(rest)) {
            shown.extend_from_slice(b"***");
            break;
        } else if let Some(secret) = secrets.iter().find(|secret| rest.starts_with(secret)) {
            shown.extend_from_slice(b"***");
            rest = &rest[secret.len()..];
        } else {
            shown.push(*first);
            rest = further;
        }
    }
    shown
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
    use tokio::net::{TcpListener, TcpSocket};

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
        let other = [&good[..], &[("sec-websocket-protocol", "mqtt")]].concat();
        assert!(check(&headers(&other), "k").is_err());
    }

    #[test]
    fn a_text_is_shown_without_secrets_and_parts_of_one_at_its_end() {
        let secrets = [b"s3cret-and-more".to_vec(), b"s3cret".to_vec()];
        let shown = |text: &str| String::from_utf8(shown(text.as_bytes(), &secrets)).unwrap();
        assert_eq!(shown("no s3cret, s3cret-and-more s3c"), "no ***, *** s3c");
        assert_eq!(shown("it ends in s3cret-and-m"), "it ends in ***");
        assert_eq!(shown("it ends in s3cre"), "it ends in ***");
        let long = format!("{}s3cret and all", "x".repeat(BODY_BYTES_MAX - 1));
        assert_eq!(shown(&long), format!("{}***", "x".repeat(BODY_BYTES_MAX - 1)));
    }

    #[tokio::test]
    async fn an_address_that_is_not_answered_leaves_time_to_the_next() {
        let full = TcpSocket::new_v4().unwrap();
        full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = full.listen(1).unwrap();
        let silent = full.local_addr().unwrap();
        // Nobody accepts: once its queue is full the system answers no more.
        let mut queued = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(silent)).await {
            queued.push(stream.unwrap());
        }
        let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = there.local_addr().unwrap();
        let until = Instant::now() + Duration::from_millis(600);
        let addresses = [silent, address];
        let connecting = timeout(Duration::from_secs(10), connect_to_one(&addresses, until));
        assert_eq!(connecting.await.unwrap().unwrap().peer_addr().unwrap(), address);
        assert!(connect_to_one(&[], until).await.is_err());
    }
}
