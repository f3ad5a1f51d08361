//! What the client is tried against, beside the gateway: a server that is played word by word, and a relay in front of the
//! gateway whose address stays while what is behind it goes, stalls or breaks.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{SinkExt as _, StreamExt as _};
use pushgate::client::{Builder, Client, Message};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message as Frame,
        handshake::server::{Request, Response},
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use crate::support::{Gateway, Token, soon};

/// A client of the gateway as that user, with waits that a test can bear.
pub fn client_of(gateway: &Gateway, user: &str) -> Builder {
    client_at(format!("ws://{}/ws", gateway.http)).token(Token::of(user).sign())
}

/// A client of any address, with waits that a test can bear.
pub fn client_at(url: String) -> Builder {
    Client::builder(url).reconnect_delay(Duration::from_millis(20)).max_delay(Duration::from_millis(200))
}

/// A handler that takes everything, and what it was given.
pub fn collecting(builder: Builder) -> (Builder, mpsc::UnboundedReceiver<Message>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let builder = builder.on_message(move |message| {
        let _ = sender.send(message);
        async { Ok(()) }
    });
    (builder, receiver)
}

/// The payload of the next message.
pub async fn next(messages: &mut mpsc::UnboundedReceiver<Message>) -> Value {
    soon("a message", messages.recv()).await.unwrap().json().unwrap()
}

/// A server that is played.
pub struct Played {
    listener: TcpListener,
    /// Where it listens.
    pub address: SocketAddr,
}

/// One connection to it.
pub struct Peer {
    pub socket: WebSocketStream<TcpStream>,
    /// The request's `Authorization`.
    pub token: String,
    /// The request's query.
    pub query: String,
    /// The value of the request's `x-test`.
    pub header: String,
}

impl Played {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    pub fn url(&self) -> String {
        format!("ws://{}/ws", self.address)
    }

    /// The next connection, nothing said on it.
    pub async fn connection(&self) -> TcpStream {
        soon("a connection", self.listener.accept()).await.unwrap().0
    }

    /// The next connection, past its handshake.
    #[allow(clippy::disallowed_methods, reason = "a played peer is not the gateway")]
    pub async fn accept(&self) -> Peer {
        let stream = self.connection().await;
        let (mut token, mut query, mut header) = (String::new(), String::new(), String::new());
        #[allow(clippy::result_large_err, reason = "the library's own type")]
        let look = |request: &Request, response: Response| {
            let text = |name| request.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
            (token, header) = (text("authorization"), text("x-test"));
            query = request.uri().query().unwrap_or_default().to_owned();
            Ok(response)
        };
        let socket = soon("a handshake", accept_hdr_async(stream, look)).await.unwrap();
        Peer { socket, token, query, header }
    }

    /// The next connection, authenticated with fields of `auth_success` changed.
    pub async fn session_with(&self, changes: Value) -> Peer {
        let mut peer = self.accept().await;
        let mut hello = json!({
            "type": "auth_success", "sessionId": "s", "userId": "alice", "device": "", "pending": 0, "gap": false,
            "storeEpoch": "e", "ackMode": "client", "heartbeatIntervalMs": 30_000, "maxMessageBytes": 65_536,
            "timestamp": "2026-01-31T09:35:00.000Z",
        });
        hello.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        peer.say(hello).await;
        peer
    }

    /// The next connection, authenticated.
    pub async fn session(&self) -> Peer {
        self.session_with(json!({})).await
    }

    /// Answers the next connection's request with this, and closes it.
    pub async fn answer(&self, text: &str) {
        self.answer_with(|_| text.to_owned()).await;
    }

    /// Answers the next connection's request with what is made of its head, and closes it.
    pub async fn answer_with(&self, make: impl FnOnce(&str) -> String) {
        let mut stream = self.connection().await;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon("a request", stream.read_u8()).await.unwrap());
        }
        let text = make(std::str::from_utf8(&head).unwrap());
        stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Makes sure that nobody connects within that time.
    pub async fn nobody_within(&self, time: Duration) {
        assert!(tokio::time::timeout(time, self.listener.accept()).await.is_err(), "somebody came");
    }
}

impl Peer {
    pub async fn say(&mut self, message: Value) {
        self.send(Frame::text(message.to_string())).await;
    }

    pub async fn send(&mut self, frame: Frame) {
        soon("a frame to leave", self.socket.send(frame)).await.unwrap();
    }

    /// A stored notification.
    pub async fn push(&mut self, id: &str, offset: u64) {
        self.say(json!({ "type": "notification", "id": id, "offset": offset, "data": id })).await;
    }

    /// The next frame that is none of the heartbeat's.
    pub async fn frame(&mut self) -> Frame {
        loop {
            match soon("a frame", self.socket.next()).await.expect("a frame, and not the end").unwrap() {
                Frame::Ping(_) | Frame::Pong(_) => {}
                other => return other,
            }
        }
    }

    /// The next message.
    pub async fn hear(&mut self) -> Value {
        match self.frame().await {
            Frame::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("instead of text: {other:?}"),
        }
    }

    /// Proves that nothing else was on its way: the answer to a ping of the WebSocket comes first.
    pub async fn nothing_more(&mut self) {
        self.send(Frame::Ping("barrier".into())).await;
        loop {
            match soon("a pong", self.socket.next()).await.unwrap().unwrap() {
                Frame::Pong(payload) if &payload[..] == b"barrier" => return,
                Frame::Ping(_) | Frame::Pong(_) => {}
                other => panic!("there is more: {other:?}"),
            }
        }
    }

    /// Closes with that code and waits for the end.
    pub async fn close(mut self, code: u16) {
        let frame = CloseFrame { code: CloseCode::from(code), reason: "played".into() };
        let _ = self.socket.close(Some(frame)).await;
        while let Some(Ok(_)) = soon("the end", self.socket.next()).await {}
    }

    /// The client's close frame.
    pub async fn closed(&mut self) -> u16 {
        match self.frame().await {
            Frame::Close(frame) => frame.map_or(1005, |frame| frame.code.into()),
            other => panic!("instead of a close frame: {other:?}"),
        }
    }
}

/// What a relay does with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Passes them on to that address.
    To(SocketAddr),
    /// Ends those that are there and every new one.
    Cut,
    /// Holds all bytes back, for good.
    Stall,
}

/// A relay in front of something.
pub struct Relay {
    /// Its address, which stays.
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    _tasks: JoinSet<()>,
}

impl Relay {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, seen) = watch::channel(Mode::To(target));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(carry(stream, seen.clone()));
            }
        });
        Self { address, mode, _tasks: tasks }
    }

    pub fn url(&self) -> String {
        format!("ws://{}/ws", self.address)
    }

    /// From now on to that address.
    pub fn set(&self, target: SocketAddr) {
        self.mode.send_replace(Mode::To(target));
    }

    /// Ends everything that is there, and what comes.
    pub fn cut(&self) {
        self.mode.send_replace(Mode::Cut);
    }

    /// Nothing gets through what is there any more, and nobody is told. New connections are passed on after [`Relay::set`].
    pub fn stall(&self) {
        self.mode.send_replace(Mode::Stall);
    }
}

async fn carry(mut stream: TcpStream, mut mode: watch::Receiver<Mode>) {
    let now = *mode.borrow_and_update();
    let Mode::To(target) = now else { return };
    let Ok(mut behind) = TcpStream::connect(target).await else { return };
    let changed = tokio::select! {
        _ = copy_bidirectional(&mut stream, &mut behind) => return,
        changed = mode.wait_for(|mode| *mode != now) => changed.map(|mode| *mode),
    };
    if changed.is_ok_and(|mode| mode == Mode::Stall) {
        // Held open, unread.
        std::future::pending::<()>().await;
    }
}

/// Something that a handler waits for, opened by the test.
#[derive(Clone)]
pub struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    pub fn open(&self) {
        self.0.send_replace(true);
    }

    pub async fn passed(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

/// What happened, in order, told by callbacks.
pub struct Told<T>(pub mpsc::UnboundedReceiver<T>);

impl<T> Told<T> {
    /// What a callback calls, and what it told.
    pub fn new() -> (impl Fn(T) + Clone + Send + Sync + 'static, Self)
    where
        T: Send + 'static,
    {
        let (sender, receiver) = mpsc::unbounded_channel();
        let tell = move |what| {
            let _ = sender.send(what);
        };
        (tell, Self(receiver))
    }

    pub async fn next(&mut self) -> T {
        soon("a callback", self.0.recv()).await.expect("a callback, and not the end")
    }
}

/// Checks that at least so much time has passed. (The clock of a timer and this one may differ by a millisecond.)
pub fn at_least(since: Instant, time: Duration) {
    assert!(since.elapsed() + Duration::from_millis(2) >= time, "{:?} instead of {time:?}", since.elapsed());
}
