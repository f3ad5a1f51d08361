//! The opening handshake (RFC 6455 section 4.2): what a request asks for, and the answer. The token is taken from the
//! first place that holds one; it is never echoed and never logged.

use std::net::SocketAddr;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, uri::Authority};
use http_body_util::Full;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use parking_lot::Mutex;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{Addresses, Compression, Context, addresses::Place};
use crate::{
    hub::Peer,
    limits::{self, Limit},
    metrics::{Failure, Handshake, Metrics},
    net,
    protocol::{ack_mode::AckMode, frame::Extensions},
    session::{Counts, Opening, Options},
    types::{Device, Secret},
};

/// The sub-protocol's name.
const PROTOCOL: &str = "pushgate.v1.json";
/// What stands before a token among the sub-protocols.
const BEARER: &str = "bearer.";
/// Seconds after which a refused client may try again; after a rate, there is room again soon.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");
const RETRY_SOON: HeaderValue = HeaderValue::from_static("1");

pub(super) type Reply = Response<Full<Bytes>>;

/// Why a request is not upgraded.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    text: String,
    counts: Counts,
}

impl Refusal {
    /// What became of the handshake.
    fn result(&self) -> Handshake {
        match self.counts {
            Counts::Limit(_) => Handshake::Limited,
            Counts::Failure(Failure::OriginRefused) => Handshake::OriginRefused,
            Counts::Failure(Failure::Unavailable) => Handshake::Draining,
            Counts::Failure(_) | Counts::Auth(_) => Handshake::Malformed,
        }
    }
}

fn bad_request(text: impl Into<String>) -> Refusal {
    Refusal { status: StatusCode::BAD_REQUEST, text: text.into(), counts: Failure::BadHandshake.into() }
}

impl From<Limit> for Refusal {
    fn from(limit: Limit) -> Self {
        let text = format!("limits.{} is reached", limit.as_str());
        Refusal { status: StatusCode::SERVICE_UNAVAILABLE, text, counts: limit.into() }
    }
}

/// A handshake that was found good: what the connection is once its answer is out.
pub struct Accepted {
    /// The connection, once hyper lets go of it.
    pub upgraded: OnUpgrade,
    /// What the client brought and asked for.
    pub opening: Opening,
    /// Who he is.
    pub peer: Peer,
    /// His place among the connections.
    pub counted: Connected,
}

/// Answers a request; a good handshake is left in `accepted`.
pub fn answer(
    request: Request<Incoming>,
    remote: SocketAddr,
    context: &Context,
    accepted: &Mutex<Option<Accepted>>,
) -> Reply {
    let (path, terms) = (request.uri().path(), context.terms());
    if path == "/livez" && path != terms.path {
        // A probe asks once; kept open, its socket would be held without a bound on its time.
        return closing(text(StatusCode::OK, "ok\n".to_owned()));
    }
    if let Some(page) = context.page.as_ref().filter(|_| path == "/" && path != terms.path) {
        return page.answer(&request);
    }
    if path != terms.path {
        return text(StatusCode::NOT_FOUND, "not found\n".to_owned());
    }
    match upgrade(request, remote, context) {
        Ok((reply, good)) => {
            *accepted.lock() = Some(good);
            reply
        }
        Err(refusal) => {
            refusal.counts.count(context.hub.metrics());
            context.hub.metrics().handshake(refusal.result());
            let mut reply = text(refusal.status, refusal.text + "\n");
            let headers = reply.headers_mut();
            match refusal.status {
                StatusCode::UPGRADE_REQUIRED => {
                    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade, close"));
                    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                }
                StatusCode::SERVICE_UNAVAILABLE => {
                    let soon = matches!(
                        refusal.counts,
                        Counts::Limit(Limit::HandshakesPerSecond | Limit::AddressHandshakesPerSecond)
                    );
                    headers.insert(header::RETRY_AFTER, if soon { RETRY_SOON } else { RETRY_AFTER });
                }
                _ => {}
            }
            reply
        }
    }
}

fn upgrade(
    mut request: Request<Incoming>,
    remote: SocketAddr,
    context: &Context,
) -> Result<(Reply, Accepted), Refusal> {
    let (terms, gates) = (context.terms(), context.gates());
    let remote = terms.addresses.client(remote, request.headers());
    gates.handshake(remote.ip(), context.hub.clock().now())?;
    let accept = check_handshake(&request)?;
    check_origin(request.headers(), &terms.addresses, context)?;
    let (protocol, bearer) = sub_protocol(request.headers())?;
    let mut opening = opening(&request, bearer)?;
    let extensions = extensions(request.headers(), terms.compression)?;
    opening.options.window = extensions.deflate;
    let user_agent = user_agent(request.headers());
    if context.hub.is_draining() {
        let text = "the node lets nobody in: it drains or stops".to_owned();
        return Err(Refusal { status: StatusCode::SERVICE_UNAVAILABLE, text, counts: Failure::Unavailable.into() });
    }
    let place = gates.connection(remote.ip())?;
    let counted = Connected::enter(context, place).ok_or(Limit::Connections)?;

    let peer = Peer { remote, user_agent };
    let accepted = Accepted { upgraded: hyper::upgrade::on(&mut request), opening, peer, counted };

    let mut reply = Response::new(Full::default());
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = reply.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if protocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    }
    if let Some(answer) = extensions.answer().and_then(|answer| HeaderValue::from_str(&answer).ok()) {
        headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, answer);
    }
    Ok((reply, accepted))
}

/// Whether the page that connects may, where a page it is.
fn check_origin(headers: &HeaderMap, addresses: &Addresses, context: &Context) -> Result<(), Refusal> {
    // The page that this listener serves itself, which it only does on loopback.
    let own = || context.page.is_some() && net::is_same_origin(headers) && net::loopback_host(headers).is_some();
    if addresses.lets_in(headers) || own() {
        return Ok(());
    }
    let text = "pages of this origin may not connect (http.origins)".to_owned();
    Err(Refusal { status: StatusCode::FORBIDDEN, text, counts: Failure::OriginRefused.into() })
}

/// What is taken of the extensions on offer. That they are malformed is an error even where none would be taken.
fn extensions(headers: &HeaderMap, compression: Compression) -> Result<Extensions, Refusal> {
    let lines = headers.get_all(header::SEC_WEBSOCKET_EXTENSIONS).iter().map(HeaderValue::as_bytes);
    let negotiated = Extensions::negotiate(lines).map_err(|error| bad_request(error.to_string()))?;
    Ok(match compression {
        Compression::Auto => negotiated,
        Compression::Off => Extensions::default(),
    })
}

/// Whether a request is a handshake, and the status where it is none.
#[cfg(feature = "fuzzing")]
pub(super) fn checked<B>(request: &Request<B>, compression: Compression) -> Result<(), StatusCode> {
    let all = || {
        check_handshake(request)?;
        let (_, bearer) = sub_protocol(request.headers())?;
        opening(request, bearer)?;
        user_agent(request.headers());
        extensions(request.headers(), compression).map(drop)
    };
    all().map_err(|refusal: Refusal| refusal.status)
}

/// Counts a connection for as long as it lives, and among those of its address.
pub struct Connected(Metrics, #[allow(dead_code, reason = "held")] Option<Box<Place>>);

impl Connected {
    /// `None` where `limits.connections` is reached, or what the descriptors are enough for.
    fn enter(context: &Context, place: Option<Box<Place>>) -> Option<Self> {
        let metrics = context.hub.metrics();
        if !metrics.connections.enter_below(context.room().0) {
            return None;
        }
        metrics.connections_total.inc();
        Some(Self(metrics.clone(), place))
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.leave();
    }
}

/// RFC 6455 section 4.2.1; what stands behind the head belongs to WebSocket, so there can be no body (RFC 9110 section
/// 7.8). Returns the value of `Sec-WebSocket-Accept`.
fn check_handshake<B>(request: &Request<B>) -> Result<HeaderValue, Refusal> {
    let headers = request.headers();
    if request.version() >= Version::HTTP_11 && !has_one_host(headers) {
        // RFC 9112 section 3.2.
        return Err(bad_request("Host must be there once, and name a host"));
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if headers.contains_key(header::TRANSFER_ENCODING) || lengths.any(|length| length.as_bytes() != b"0") {
        return Err(bad_request("a handshake has no body"));
    }
    let upgrade_required = |text: &str| Refusal {
        status: StatusCode::UPGRADE_REQUIRED,
        text: text.to_owned(),
        counts: Failure::BadHandshake.into(),
    };
    if request.method() != Method::GET
        || request.version() < Version::HTTP_11
        || !has_token(headers, header::CONNECTION, "upgrade")
        || !has_token(headers, header::UPGRADE, "websocket")
    {
        return Err(upgrade_required("this is a WebSocket endpoint"));
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(upgrade_required("Sec-WebSocket-Version must be 13"));
    }
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    let key = keys.next().ok_or_else(|| bad_request("Sec-WebSocket-Key is missing"))?;
    let decoded = STANDARD.decode(key.as_bytes()).ok().filter(|decoded| decoded.len() == 16);
    if decoded.is_none() || keys.next().is_some() {
        return Err(bad_request("Sec-WebSocket-Key must be 16 bytes in base64, once"));
    }
    HeaderValue::try_from(derive_accept_key(key.as_bytes())).map_err(|_| bad_request("Sec-WebSocket-Key is not usable"))
}

fn has_one_host(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    hosts.next().is_none() && host.is_some_and(|host| !host.host().is_empty() && !host.as_str().contains('@'))
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    list(headers, name).any(|item| item.eq_ignore_ascii_case(token))
}

fn list(headers: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|item| !item.is_empty())
}

/// Whether the sub-protocol is named in the answer, and the token that came among them.
fn sub_protocol(headers: &HeaderMap) -> Result<(bool, Option<&str>), Refusal> {
    let mut named = false;
    let mut bearer = None;
    let mut any = false;
    for item in list(headers, header::SEC_WEBSOCKET_PROTOCOL) {
        any = true;
        named |= item == PROTOCOL;
        if let Some(token) = item.strip_prefix(BEARER).filter(|token| !token.is_empty()) {
            bearer.get_or_insert(token);
        }
    }
    if any && !named {
        return Err(bad_request(format!("none of the sub-protocols is known; offer {PROTOCOL}")));
    }
    Ok((named, bearer))
}

/// The token, from the first place that holds one, and what else the client asks for.
fn opening<B>(request: &Request<B>, bearer: Option<&str>) -> Result<Opening, Refusal> {
    let mut options = Options::default();
    let mut query_token = None;
    for (name, value) in form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()) {
        match &*name {
            "token" if !value.is_empty() => query_token = Some(value.into_owned()),
            "device" if value.is_empty() => return Err(bad_request("device: leave it out, or name one")),
            "device" => {
                let device = Device::parse(&value);
                options.device = Some(device.map_err(|error| bad_request(format!("device: {error}")))?);
            }
            "ackMode" => {
                let mode = AckMode::parse(&value);
                options.ack_mode = Some(mode.ok_or_else(|| bad_request("ackMode must be transport or client"))?);
            }
            "binary" => match &*value {
                "1" | "true" => options.binary = true,
                "0" | "false" => options.binary = false,
                _ => return Err(bad_request("binary must be 0 or 1")),
            },
            _ => {}
        }
    }
    let authorization = request.headers().get_all(header::AUTHORIZATION).iter().find_map(|value| {
        // Another scheme is a proxy's own affair.
        let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
        let token = token.trim();
        (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
    });
    let token = authorization.or_else(|| bearer.map(str::to_owned)).or(query_token).map(Secret::new);
    Ok(Opening { token, options })
}

/// The `User-Agent`, at most [`limits::USER_AGENT_BYTES_MAX`] of it.
fn user_agent(headers: &HeaderMap) -> Option<Box<str>> {
    let text = headers.get(header::USER_AGENT)?.to_str().ok()?;
    // `to_str` lets visible ASCII pass only, so that every byte is a character.
    Some(text[..text.len().min(limits::USER_AGENT_BYTES_MAX)].into())
}

pub(super) fn text(status: StatusCode, body: String) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // Who is refused over and over has to connect over and over, which the limits see.
    if status == StatusCode::OK { reply } else { closing(reply) }
}

fn closing(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)], uri: &str) -> Request<()> {
        let mut builder = Request::get(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    const GOOD: [(&str, &str); 5] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("host", "gateway"),
    ];

    #[test]
    fn the_rfcs_own_example_is_accepted() {
        let accept = check_handshake(&request(&GOOD, "/ws")).unwrap();
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_handshake_that_lacks_something_is_refused() {
        for (index, status) in [(0, 426), (1, 426), (2, 426), (3, 400), (4, 400)] {
            let mut headers = GOOD.to_vec();
            headers.remove(index);
            assert_eq!(check_handshake(&request(&headers, "/ws")).unwrap_err().status, status);
        }
        let mut headers = GOOD;
        headers[3].1 = "c2hvcnQ=";
        assert_eq!(check_handshake(&request(&headers, "/ws")).unwrap_err().status, 400);
        headers = GOOD;
        headers[2].1 = "8";
        assert_eq!(check_handshake(&request(&headers, "/ws")).unwrap_err().status, 426);
    }

    fn token(headers: &[(&str, &str)], uri: &str) -> Option<String> {
        let request = request(headers, uri);
        let (_, bearer) = sub_protocol(request.headers()).unwrap();
        opening(&request, bearer).unwrap().token.map(|token| token.expose().to_owned())
    }

    #[test]
    fn the_first_place_that_holds_a_token_is_taken() {
        let protocol = ("sec-websocket-protocol", "pushgate.v1.json, bearer.two");
        let all = [("authorization", "Bearer one"), protocol];
        assert_eq!(token(&all, "/ws?token=three").as_deref(), Some("one"));
        assert_eq!(token(&[("authorization", "Basic x"), protocol], "/ws?token=three").as_deref(), Some("two"));
        assert_eq!(token(&[("authorization", "Bearer ")], "/ws?token=three").as_deref(), Some("three"));
        assert_eq!(token(&[], "/ws?token="), None);
    }

    #[test]
    fn unknown_sub_protocols_are_refused_and_none_is_fine() {
        let named = |value| sub_protocol(request(&[("sec-websocket-protocol", value)], "/").headers()).map(|(n, _)| n);
        assert!(named("pushgate.v1.json").unwrap());
        assert!(named("chat, pushgate.v1.json").unwrap());
        assert_eq!(named("chat").unwrap_err().status, 400);
        assert_eq!(named("bearer.token").unwrap_err().status, 400);
        assert!(!sub_protocol(&HeaderMap::new()).unwrap().0);
    }

    #[test]
    fn what_else_the_query_asks_for_is_checked() {
        let options =
            |query: &str| opening(&request(&[], &format!("/ws?{query}")), None).map(|opening| opening.options);
        let asked = options("device=pho%6Ee&ackMode=client&binary=1&x=y").unwrap();
        assert_eq!(
            (asked.device.unwrap().as_str(), asked.ack_mode, asked.binary),
            ("phone", Some(AckMode::Client), true)
        );
        for bad in ["device=a%20b", "ackMode=never", "binary=2"] {
            assert_eq!(options(bad).unwrap_err().status, 400, "{bad}");
        }
    }
}
