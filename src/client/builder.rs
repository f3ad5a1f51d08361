//! How a client is made: what it is told, what it does where it is told nothing, and its start.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use tokio::{runtime, sync::oneshot};

use super::{
    AckMode, Client, Handle,
    driver::Driver,
    error::{BoxError, BuildError, ConnectError, Disconnect, Error, GiveUp},
    events::State,
    handler::Handler,
    message::{Message, Session},
    options::{Callbacks, Options, Target},
    outbox::Bounds,
    shared::{Shared, Weaks},
    tls,
    tokens::{self, Source},
};
use crate::types::{Device, Secret};

/// The longest span that an option can name.
const SPAN_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// The least bound of a wait: one of nothing would stay nothing, however often it doubles.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// Headers that the handshake itself sends.
const OWN_HEADERS: [HeaderName; 7] = [
    header::HOST,
    header::CONNECTION,
    header::UPGRADE,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_EXTENSIONS,
    header::SEC_WEBSOCKET_PROTOCOL,
];

/// What a client is told before it starts. The defaults are in the [module](super#defaults-and-bounds).
///
/// Nothing is checked before [`Builder::start`] or [`Builder::connect`], which say what is wrong. A span of more than a year is
/// taken as a year.
#[must_use = "a client is started with `start` or `connect`"]
pub struct Builder {
    url: String,
    headers: Vec<(String, Secret)>,
    source: Source,
    device: Option<String>,
    ack_mode: AckMode,
    binary: bool,
    auto_reconnect: bool,
    reconnect_delay: Duration,
    max_delay: Duration,
    max_reconnects: u32,
    queue: Bounds,
    dedup_ids: usize,
    handshake_timeout: Duration,
    request_timeout: Duration,
    heartbeat_interval: Option<Duration>,
    heartbeat_timeout: Duration,
    close_timeout: Duration,
    message_bytes_max: usize,
    roots: Vec<Vec<u8>>,
    server_name: Option<String>,
    callbacks: Callbacks,
    handler: Option<Handler>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the query, and what else an address should not hold.
        let address = Target::parse(&self.url, &[]).map(|target| target.address);
        f.debug_struct("Builder").field("address", &address).field("device", &self.device).finish_non_exhaustive()
    }
}

impl Builder {
    pub(super) fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            headers: Vec::new(),
            source: Source::None,
            device: None,
            ack_mode: AckMode::Client,
            binary: false,
            auto_reconnect: true,
            reconnect_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(30),
            max_reconnects: 0,
            queue: Bounds { messages: 1024, bytes: 4 * 1024 * 1024 },
            dedup_ids: 4096,
            handshake_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            heartbeat_interval: None,
            heartbeat_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(10),
            message_bytes_max: 16 * 1024 * 1024,
            roots: Vec::new(),
            server_name: None,
            callbacks: Callbacks::default(),
            handler: None,
        }
    }

    /// The token, always the same one: once it is refused or has run out, the client gives up. It goes into the handshake's
    /// `Authorization` header, and is shown nowhere.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.source = Source::Fixed(Secret::new(token.into().trim()));
        self
    }

    /// Where tokens come from. It is asked for the first connection, again before the token in use runs out (a minute, or a
    /// quarter of a shorter life, and when the gateway says so), and after the gateway refused one (close code 4401). A token
    /// is used for every connection in between.
    ///
    /// A provider that fails, panics, or takes longer than 30 s counts as a failed attempt, and is asked again after the
    /// back-off. One that answers with the very token that was just refused ends the client ([`GiveUp::Refused`]).
    pub fn token_provider<F, T>(mut self, provider: F) -> Self
    where
        F: Fn() -> T + Send + Sync + 'static,
        T: Future<Output = Result<String, BoxError>> + Send + 'static,
    {
        self.source = Source::Provider(Arc::new(move || Box::pin(provider())));
        self
    }

    /// One more header of the handshake, for a proxy on the way. Its value is shown nowhere. The headers of the WebSocket
    /// handshake itself are refused.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), Secret::new(value)));
        self
    }

    /// The device to be: 1 to 64 of `A-Za-z0-9._-`. Delivery is per device. Without it the user's unnamed one.
    pub fn device(mut self, device: impl Into<String>) -> Self {
        self.device = Some(device.into());
        self
    }

    /// What confirms a notification; see the [module](super#confirmation).
    pub fn ack_mode(mut self, mode: AckMode) -> Self {
        self.ack_mode = mode;
        self
    }

    /// Whether payloads that are bytes come as binary messages instead of base64. [`Message::bytes`] reads both.
    pub fn binary(mut self, on: bool) -> Self {
        self.binary = on;
        self
    }

    /// Whether to come back when the connection ends or an attempt fails. Off, the first such end is the client's
    /// ([`GiveUp::ReconnectOff`]).
    pub fn auto_reconnect(mut self, on: bool) -> Self {
        self.auto_reconnect = on;
        self
    }

    /// The bound of the first wait; it doubles with every attempt in a row. A wait is evenly distributed between nothing and
    /// its bound (full jitter), so that many clients do not come back at one moment. At least 1 ms.
    pub fn reconnect_delay(mut self, delay: Duration) -> Self {
        self.reconnect_delay = delay;
        self
    }

    /// The most that the bound of a wait grows to. What the gateway asks for (`reconnectAfterMs`, `Retry-After`) may be
    /// longer, up to ten minutes.
    pub fn max_delay(mut self, delay: Duration) -> Self {
        self.max_delay = delay;
        self
    }

    /// After so many attempts in a row that came to nothing the client gives up ([`GiveUp::Attempts`]); 0: never. The count
    /// starts over with a session that lived for 5 s or brought a message.
    pub fn max_reconnects(mut self, attempts: u32) -> Self {
        self.max_reconnects = attempts;
        self
    }

    /// How many messages wait to be sent while there is no session; one more is refused ([`super::SendError::Full`]). 0: none.
    /// With a session up to 1,024 wait at least, for what the socket takes in its own time.
    pub fn queue_messages(mut self, messages: usize) -> Self {
        self.queue.messages = messages;
        self
    }

    /// The bytes of those messages; a queue that is empty takes one of any size. With a session 4 MiB at least.
    pub fn queue_bytes(mut self, bytes: usize) -> Self {
        self.queue.bytes = bytes;
        self
    }

    /// How many ids of handled messages are remembered, so that a repeat is kept from the handler; 0: none.
    pub fn dedup_ids(mut self, ids: usize) -> Self {
        self.dedup_ids = ids;
        self
    }

    /// How long it may take from a token to a session: name, connection, TLS, handshake, authentication.
    /// Where a name has several addresses, each but the last has a share of it. More than 0.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// How long [`Client::ping`], [`Client::subscribe`] and their like wait for the answer. [`Client::request`] is told.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// After how long a silence the client pings the gateway: 100 ms to 5 min. Without it, what the gateway says itself
    /// (`heartbeatIntervalMs`, 30 s), within these bounds.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.heartbeat_interval = Some(interval);
        self
    }

    /// How long after that ping the connection is taken for lost, if nothing at all was heard. More than 0.
    pub fn heartbeat_timeout(mut self, timeout: Duration) -> Self {
        self.heartbeat_timeout = timeout;
        self
    }

    /// How long [`Client::close`] waits for the handler under way and for what waits to be sent.
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.close_timeout = timeout;
        self
    }

    /// The largest message that is taken from the gateway; a larger one breaks the connection. At least 1.
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.message_bytes_max = bytes;
        self
    }

    /// Certificates (PEM) that `wss://` trusts besides the system's own.
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots.push(pem.into());
        self
    }

    /// The name that the gateway's certificate must hold, where it is not the address's host: behind a tunnel, for one.
    /// Names that no certificate can have are refused when the client connects.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// What handles messages: one at a time, in the order of delivery, on a task of its own, so that it may take its time. `Ok`
    /// confirms the message to the gateway; after an error or a panic a stored one is handed over again. See the
    /// [module](super#confirmation). Another call replaces the handler.
    ///
    /// [`Message::client`] is the client, to answer with; a handler that holds a `Client` of its own would keep it alive.
    pub fn on_message<F, T>(mut self, handler: F) -> Self
    where
        F: Fn(Message) -> T + Send + Sync + 'static,
        T: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.handler = Some(Arc::new(move |message| Box::pin(handler(message))));
        self
    }

    /// Called when a session begins, the first and every further one ([`Session::number`]).
    ///
    /// This and the callbacks below run on the client's own task: they must not block, nor take long. One that panics is told
    /// as [`Error::Callback`].
    pub fn on_connect(mut self, callback: impl Fn(&Session) + Send + Sync + 'static) -> Self {
        self.callbacks.connect.push(Box::new(callback));
        self
    }

    /// Called when a session ends, whoever ended it. Must not block.
    pub fn on_disconnect(mut self, callback: impl Fn(&Disconnect) + Send + Sync + 'static) -> Self {
        self.callbacks.disconnect.push(Box::new(callback));
        self
    }

    /// Called when something goes wrong and the client goes on: attempts that fail, handlers that do. Must not block.
    pub fn on_error(mut self, callback: impl Fn(&Error) + Send + Sync + 'static) -> Self {
        self.callbacks.error.push(Box::new(callback));
        self
    }

    /// Called once, when the client comes to its end by itself. Must not block.
    pub fn on_give_up(mut self, callback: impl Fn(&GiveUp) + Send + Sync + 'static) -> Self {
        self.callbacks.give_up.push(Box::new(callback));
        self
    }

    /// Called at every change of the state. Must not block.
    pub fn on_state(mut self, callback: impl Fn(State) + Send + Sync + 'static) -> Self {
        self.callbacks.state.push(Box::new(callback));
        self
    }

    /// Starts the client and returns at once; it connects in the background, as often as it takes.
    ///
    /// # Errors
    /// What the builder was told cannot be used, or there is no tokio runtime around.
    pub fn start(self) -> Result<Client, BuildError> {
        self.run(None)
    }

    /// Starts the client and waits for its first session. Where the first attempt fails, so does this, and nothing is left
    /// behind; for a client that goes on trying from the start there is [`Builder::start`]. Can be dropped.
    ///
    /// # Errors
    /// Why the first attempt failed, or [`ConnectError::Build`].
    pub async fn connect(self) -> Result<Client, ConnectError> {
        let (tell, first) = oneshot::channel();
        let client = self.run(Some(tell)).map_err(|error| ConnectError::Build(Arc::new(error)))?;
        match first.await {
            Ok(Ok(())) => Ok(client),
            Ok(Err(error)) => Err(error),
            // The runtime is shutting down.
            Err(_) => Err(ConnectError::Build(Arc::new(BuildError::NoRuntime))),
        }
    }

    fn run(self, first: Option<oneshot::Sender<Result<(), ConnectError>>>) -> Result<Client, BuildError> {
        let runtime = runtime::Handle::try_current().map_err(|_| BuildError::NoRuntime)?;
        let device = Device::parse(self.device.as_deref().unwrap_or_default())?;
        let mut query = vec![("ackMode", self.ack_mode.as_str())];
        if !device.is_unnamed() {
            query.push(("device", device.as_str()));
        }
        if self.binary {
            query.push(("binary", "1"));
        }
        let target = Target::parse(&self.url, &query)?;
        let headers = headers(&self.headers)?;
        if let Source::Fixed(token) = &self.source {
            tokens::bearer(token).map_err(BuildError::Token)?;
        }
        let zeros = [
            ("handshake_timeout", self.handshake_timeout.is_zero()),
            ("heartbeat_timeout", self.heartbeat_timeout.is_zero()),
            ("max_message_bytes", self.message_bytes_max == 0),
        ];
        if let Some((name, _)) = zeros.into_iter().find(|(_, zero)| *zero) {
            return Err(BuildError::Zero(name));
        }
        // What is longer is never waited for, and moments that far away cannot be told.
        let span = |span: Duration| span.min(SPAN_MAX);
        let wait = |wait: Duration| wait.clamp(WAIT_MIN, SPAN_MAX);
        let tls = if target.tls { Some(tls::connector(&self.roots, None, None)?) } else { None };
        let options = Options {
            target,
            headers,
            ack_mode: self.ack_mode,
            auto_reconnect: self.auto_reconnect,
            reconnect_delay: wait(self.reconnect_delay),
            max_delay: wait(self.max_delay),
            max_reconnects: self.max_reconnects,
            queue: self.queue,
            dedup_ids: self.dedup_ids,
            handshake_timeout: span(self.handshake_timeout),
            request_timeout: span(self.request_timeout),
            heartbeat_interval: self.heartbeat_interval,
            heartbeat_timeout: span(self.heartbeat_timeout),
            close_timeout: span(self.close_timeout),
            message_bytes_max: self.message_bytes_max,
            server_name: self.server_name,
            callbacks: self.callbacks,
            manual: self.handler.is_none(),
        };
        let shared = Arc::new(Shared::new(options));
        let handle = Arc::new(Handle { shared: Arc::clone(&shared) });
        let weaks = Weaks { shared: Arc::downgrade(&shared), handle: Arc::downgrade(&handle) };
        let driver = Driver::new(shared, weaks, self.source, tls, first);
        runtime.spawn(driver.run(self.handler));
        Ok(Client(handle))
    }
}

fn headers(given: &[(String, Secret)]) -> Result<HeaderMap, BuildError> {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let wrong = |problem| BuildError::Header { name: name.clone(), problem };
        let parsed = HeaderName::try_from(name.as_str()).map_err(|_| wrong("is no header's name"))?;
        if OWN_HEADERS.contains(&parsed) {
            return Err(wrong("belongs to the handshake itself"));
        }
        let mut value =
            HeaderValue::try_from(value.expose()).map_err(|_| wrong("has a value that no header can have"))?;
        value.set_sensitive(true);
        headers.append(parsed, value);
    }
    Ok(headers)
}
