//! The public listener: one task a connection, HTTP/1.1 up to the WebSocket handshake and a session from there.
//!
//! * `upgrade.rs`: what a request asks for, and the answer.
//! * `opening.rs`: from the finished handshake to a session.
//! * `connection.rs`: a session's connection, to its close.
//! * `gates.rs`: who may come in just now; `addresses.rs`: of each address; `quiet.rs`: log lines that anybody can cause.
//! * `page.rs`: the page of `serve --dev`; no other run has one.
//! * `origins.rs`: where a connection comes from, and which pages may open one.
//! * `socket.rs`: the socket as the outbox and the connection see it; `secure.rs`: TLS over it.
//! * `turns.rs`: how many begin and end at a time.

mod addresses;
pub mod config;
mod connection;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod gates;
mod opening;
mod origins;
mod page;
mod quiet;
mod secure;
mod socket;
mod turns;
mod upgrade;

use std::{convert::Infallible, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, Guard};
pub use config::{Compression, Config, ForwardedHeader};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout_at},
};

use self::{addresses::Place, connection::Connection, gates::Gates, quiet::Quiet, turns::Turns, upgrade::Accepted};
pub use self::{origins::Addresses, page::Page};
use crate::{
    hub::Hub,
    lifecycle::{Beat, Lifecycle},
    limits::{self, Limit},
    metrics::{Failure, Handshake},
    net::{
        self,
        door::Door,
        proxy,
        tls::{HandshakeError, Secured, Tls},
    },
};

/// Connections beyond `limits.connections` that are let in to be told so, at most; further ones are dropped unheard. Where
/// descriptors are few it is a part of them: one in so many, but not fewer than so many, and never more than an eighth.
const REFUSALS_MAX: u64 = 1024;
const REFUSALS_SHARE: u64 = 32;
const REFUSALS_MIN: u64 = 128;

/// What is left at least for a request's head, however late its first byte came.
const HEAD_TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// How long those who came in last have to ask and be answered.
const LAST_ANSWERS_MAX: Duration = Duration::from_millis(250);

/// What every connection needs.
pub struct Context {
    /// The hub.
    pub hub: Hub,
    /// Where tasks live.
    pub life: Lifecycle,
    /// What stands at `/`.
    pub page: Option<Page>,
    /// TLS, where it is spoken.
    pub tls: Option<Tls>,
    /// What a reload may change.
    terms: ArcSwap<Terms>,
    /// Who may begin or end a session just now.
    turns: Turns,
    /// Who may come in just now.
    gates: ArcSwap<Gates>,
    /// Lines on those who were not let in, and on sessions that could not be opened.
    not_let_in: Quiet,
    not_opened: Quiet,
    /// And on sessions that ended, of those that anybody can have over and over.
    ended: Quiet,
    /// Sockets that are open, whatever they speak.
    open: crate::metrics::Gauge,
    /// Sockets beyond the connections that there may be, as far as the process's descriptors allow.
    refusals: u64,
}

/// What a connection that comes meets.
#[derive(Debug)]
pub struct Terms {
    /// `http.path`.
    pub path: String,
    /// `auth.timeout`.
    pub auth_timeout: Duration,
    /// Whether messages may be compressed.
    pub compression: Compression,
    /// Who is believed about addresses, and which pages may connect.
    pub addresses: Addresses,
}

impl Context {
    /// A context with no connection yet.
    pub fn new(hub: Hub, life: Lifecycle, terms: Terms) -> Self {
        let (turns, open) = (Turns::default(), crate::metrics::Gauge::default());
        let gates = ArcSwap::from_pointee(Gates::new(&hub.limits()));
        let quiet = |what| Quiet::new(what, &life);
        let (not_let_in, not_opened) = (quiet("not let in"), quiet("a session could not be opened"));
        let ended = quiet("session ended");
        Self {
            hub,
            life,
            page: None,
            tls: None,
            terms: ArcSwap::from_pointee(terms),
            turns,
            gates,
            not_let_in,
            not_opened,
            ended,
            open,
            refusals: REFUSALS_MAX,
        }
    }

    /// Leaves something of the process's descriptors to whatever else needs them: the store, callers, probes.
    pub fn keep_within(&mut self, descriptors: u64) {
        let clients = limits::room_for_clients(descriptors);
        let refusals = (clients / REFUSALS_SHARE).clamp(REFUSALS_MIN, REFUSALS_MAX).min(clients / 8);
        self.hub.keep_connections_within(clients - refusals);
        self.refusals = refusals;
    }

    /// What a connection that comes now meets.
    pub fn terms(&self) -> Guard<Arc<Terms>> {
        self.terms.load()
    }

    fn gates(&self) -> Guard<Arc<Gates>> {
        self.gates.load()
    }

    /// Connections at once, and sockets that are let in beyond them to be told so; further ones are dropped unheard.
    fn room(&self) -> (u64, u64) {
        let connections = self.hub.connections_max();
        (if connections == 0 { u64::MAX } else { connections }, self.refusals)
    }

    /// Takes other terms, and the hub's limits as they are now, for what comes from now on.
    pub fn reconfigure(&self, terms: Terms) {
        self.terms.store(Arc::new(terms));
        self.gates.store(Arc::new(self.gates().successor(&self.hub.limits())));
    }
}

impl Context {
    /// Resolves once nobody is let in and those who came in last have had the time for their answers: connections that
    /// are no sessions yet are then given up.
    async fn given_up(&self) {
        loop {
            self.hub.letting_in().cancelled().await;
            tokio::time::sleep(LAST_ANSWERS_MAX).await;
            // The node may be back by now.
            if self.hub.letting_in().is_cancelled() {
                return;
            }
        }
    }
}

/// Counts an open socket for as long as it lives.
pub struct OpenSocket(Arc<Context>);

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.open.leave();
    }
}

/// Serves until the stop, while somebody is let in.
pub async fn serve(door: Arc<Door>, context: Arc<Context>) -> Result<(), Infallible> {
    let beat = context.life.beat("the public listener");
    loop {
        let listener = tokio::select! {
            () = context.life.stopping().cancelled() => return Ok(()),
            listener = beat.during(door.opened()) => listener,
        };
        let shut = context.hub.letting_in();
        tokio::select! {
            () = shut.cancelled() => {}
            () = accept_all(&listener, &context, &beat) => {}
        }
        drop(listener);
        // It may have been opened again already.
        door.close_if(|| context.hub.letting_in().is_cancelled());
    }
}

async fn accept_all(listener: &TcpListener, context: &Arc<Context>, beat: &Beat) {
    loop {
        let (stream, remote) = beat.during(accept(listener, context)).await;
        // Behind a proxy there are many; whose connection it is comes with its handshake, or before that.
        let is_proxy = context.terms().addresses.is_proxy(remote.ip());
        let place = if is_proxy { Ok(None) } else { context.gates().socket(remote.ip()) };
        let place = match place {
            Ok(place) => place,
            Err(limit) => {
                context.hub.metrics().hit(limit);
                continue;
            }
        };
        let open = context.open.enter();
        let socket = OpenSocket(Arc::clone(context));
        let (most, beyond) = context.room();
        if open > most.saturating_add(beyond) {
            context.hub.metrics().hit(Limit::Connections);
            continue;
        }
        // One task a connection, from its first byte to its last. What the handshake needs, and what a session's beginning
        // does, lie in boxes of their own, each given back before what may take longer.
        let beginning = Box::pin(begin(stream, remote, Arc::clone(context), (socket, place)));
        context.life.spawn(async move {
            if let Some(mut connection) = beginning.await {
                connection.run().await;
            }
        });
    }
}

/// The next connection, once one may come.
async fn accept(listener: &TcpListener, context: &Context) -> (TcpStream, SocketAddr) {
    let gates = context.gates.load_full();
    gates.accept(context.hub.metrics()).await;
    net::accept_tcp(listener).await
}

/// From the first byte to a session, which is none where the peer is not let in. Whatever the peer keeps it waiting for, and
/// its turn, it waits for with little in its hands.
async fn begin(
    stream: TcpStream,
    remote: SocketAddr,
    context: Arc<Context>,
    socket: (OpenSocket, Option<Box<Place>>),
) -> Option<Box<Connection>> {
    let timeout = context.hub.limits().handshake_timeout.0;
    let first_byte = Box::pin(tokio::time::timeout(timeout, stream.readable()));
    let asked = Instant::now();
    let came = tokio::select! {
        () = context.given_up() => return None,
        came = first_byte => came,
    };
    if came.is_err() {
        context.hub.metrics().hit(Limit::HandshakeTimeout);
        tracing::debug!(%remote, "nothing came on a new connection");
        return None;
    }
    // Whatever comes before a session has this time in all.
    let until = asked + timeout;
    let handshake = Box::pin(shake_hands(stream, remote, until, Arc::clone(&context), socket));
    let beginning = async {
        let opening = handshake.await?;
        opening.await
    };
    context.turns.take(beginning).await
}

/// From a finished handshake to a session, which is none where the peer is not let in.
type Opening = Pin<Box<dyn Future<Output = Option<Box<Connection>>> + Send>>;

/// What HTTP is spoken over.
enum Line {
    Plain(TcpStream),
    Secured(Secured),
}

/// What comes before HTTP: where the connection comes from, where a proxy says so, and TLS.
async fn prepare(
    mut stream: TcpStream,
    mut remote: SocketAddr,
    until: Instant,
    context: &Context,
) -> Option<(Line, SocketAddr)> {
    if context.terms().addresses.has_proxy_header(remote) {
        let refused = match timeout_at(until, proxy::source(&mut stream, remote)).await {
            Ok(Ok(source)) => {
                remote = source;
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no whole PROXY protocol header came in time".to_owned()),
        };
        if let Some(error) = refused {
            context.hub.metrics().failure(Failure::ProxyRefused);
            tracing::debug!(proxy = %remote, error, "a proxy's connection is refused");
            return None;
        }
    }
    let Some(tls) = &context.tls else { return Some((Line::Plain(stream), remote)) };
    match tls.accept(stream, remote, until).await {
        Ok(secured) => Some((Line::Secured(secured), remote)),
        Err(HandshakeError::Silent) => None,
        Err(error) => {
            context.hub.metrics().handshake_failed(error.limit());
            None
        }
    }
}

/// Everything up to the end of the handshake.
async fn shake_hands(
    stream: TcpStream,
    remote: SocketAddr,
    until: Instant,
    context: Arc<Context>,
    socket: (OpenSocket, Option<Box<Place>>),
) -> Option<Opening> {
    let (line, remote) = if context.tls.is_none() && !context.terms().addresses.has_proxy_header(remote) {
        (Line::Plain(stream), remote)
    } else {
        let preparing = Box::pin(prepare(stream, remote, until, &context));
        tokio::select! {
            () = context.given_up() => return None,
            prepared = preparing => prepared?,
        }
    };
    match line {
        Line::Plain(stream) => speak_http(stream, remote, until, context, socket).await,
        Line::Secured(secured) => Box::pin(speak_http(secured, remote, until, context, socket)).await,
    }
}

/// HTTP/1.1, up to the end of the handshake.
async fn speak_http<L: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    line: L,
    remote: SocketAddr,
    until: Instant,
    context: Arc<Context>,
    (socket, place): (OpenSocket, Option<Box<Place>>),
) -> Option<Opening> {
    let accepted = Mutex::new(None);
    let head_bytes = context.hub.limits().handshake_bytes.as_usize();
    let service = service_fn(|request: http::Request<Incoming>| {
        std::future::ready(Ok::<_, Infallible>(upgrade::answer(request, remote, &context, &accepted)))
    });
    // However late its first byte came, something is left for the head.
    let least = HEAD_TIMEOUT_MIN.min(context.hub.limits().handshake_timeout.0);
    let head_timeout = until.saturating_duration_since(Instant::now()).max(least);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        // Besides the bound on the head, one on what is read at a time, which hyper wants to be this at least.
        .max_buf_size(head_bytes.max(limits::HTTP_HEAD_BYTES_MAX))
        .max_header_size(head_bytes)
        .serve_connection(TokioIo::new(line), service)
        .with_upgrades();
    tokio::select! {
        () = context.given_up() => {}
        served = connection => if let Err(error) = served {
            // hyper has answered what could be answered (400, 414, 431).
            let metrics = context.hub.metrics();
            if error.is_timeout() || error.is_parse() {
                metrics.handshake(Handshake::Malformed);
            }
            if error.is_timeout() {
                metrics.hit(Limit::HandshakeTimeout);
            } else if error.is_parse_too_large() {
                metrics.hit(Limit::HandshakeBytes);
            } else if error.is_parse() {
                metrics.failure(Failure::BadHandshake);
            }
            tracing::debug!(%remote, %error, "an HTTP connection ended badly");
        },
    }
    drop(place);
    let Accepted { upgraded, opening, peer, counted } = accepted.into_inner()?;
    match upgraded.await {
        Ok(upgraded) => Some(Box::pin(connection::open(upgraded, opening, peer, (socket, counted), context))),
        Err(error) => {
            tracing::debug!(%remote, %error, "the handshake was not finished");
            context.hub.metrics().handshake(Handshake::Gone);
            None
        }
    }
}
