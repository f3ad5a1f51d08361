//! One connection of a client: the handshake, what comes, what is confirmed, and how it ends.

use std::{borrow::Cow, pin::Pin, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, Request, Uri, header};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest as _,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::{Stop, Tokens};
use crate::cli::{
    connect::Format,
    failure::Outcome,
    output::{self, clean},
    secure::{Stream, Terms},
};

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end is waited for: the gateway's close frame, and the ping behind the last message.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest wait that a gateway may ask for.
const ASKED_WAIT_MAX: Duration = Duration::from_secs(600);

/// An open connection.
pub type Socket = WebSocketStream<Box<dyn Stream>>;

/// What to connect to, and as what.
#[derive(Clone, Debug)]
pub struct Connection {
    /// A `ws://` or `wss://` address.
    pub url: String,
    /// What the latter needs.
    pub terms: Terms,
    /// The device; `None`: the user's unnamed one.
    pub device: Option<String>,
    /// Whether messages are confirmed by `ack`.
    pub client_acks: bool,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum Refusal {
    /// The address is none.
    Usage(String),
    /// Nobody answers, or too many are connected: later there may be one.
    NotNow(String),
    /// There never will be one.
    Final(String),
}

impl Connection {
    fn request(&self, token: &str) -> Result<Request<()>, Refusal> {
        let url = &self.url;
        let wrong = |what: &str| {
            Refusal::Usage(format!("--url {url}: {what}; write ws://HOST:PORT/PATH or wss://HOST:PORT/PATH"))
        };
        let uri: Uri = url.parse().map_err(|_| wrong("is not an address"))?;
        match uri.scheme_str() {
            Some("ws" | "wss") => {}
            _ => return Err(wrong("is not a WebSocket address")),
        }
        let mut query = form_urlencoded::Serializer::new(uri.query().unwrap_or_default().to_owned());
        if let Some(device) = &self.device {
            query.append_pair("device", device);
        }
        query.append_pair("ackMode", if self.client_acks { "client" } else { "transport" });
        let whole = format!("{}?{}", url.split(['?', '#']).next().unwrap_or(url), query.finish());
        let mut request = whole.into_client_request().map_err(|_| wrong("is not an address"))?;
        let bearer = HeaderValue::try_from(format!("Bearer {token}"));
        let mut bearer =
            bearer.map_err(|_| Refusal::Usage("the token has characters that none can have".to_owned()))?;
        bearer.set_sensitive(true);
        let agent = HeaderValue::from_static(concat!("pushgate-listen/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(header::AUTHORIZATION, bearer);
        request.headers_mut().insert(header::USER_AGENT, agent);
        Ok(request)
    }
}

/// Connects with a token. Whether that is accepted is the first message's to say.
pub async fn connect(connection: &Connection, token: &str) -> Result<Socket, Refusal> {
    let request = connection.request(token)?;
    let url = &connection.url;
    let host = request.uri().host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let secure = request.uri().scheme_str() == Some("wss");
    let port = request.uri().port_u16().unwrap_or(if secure { 443 } else { 80 });
    let terms = &connection.terms;
    let connector = secure.then(|| terms.connector(None)).transpose();
    let connector = connector.map_err(|failure| Refusal::Usage(failure.message().to_owned()))?;
    let nobody = |problem: &str| {
        Refusal::NotNow(format!(
            "nobody answers at {url}: {problem}; is the gateway running (pushgate health), and does it listen there?"
        ))
    };
    let connecting = async {
        let stream = TcpStream::connect((&*host, port)).await.map_err(|error| nobody(&error.to_string()))?;
        // Only latency depends on it.
        let _ = stream.set_nodelay(true);
        let stream: Box<dyn Stream> = match &connector {
            None => Box::new(stream),
            Some(connector) => {
                terms.connect(connector, &host, stream).await.map_err(|error| nobody(&error.to_string()))?
            }
        };
        match client_async(request, stream).await {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(answer)) => {
                let body = answer.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                let text = format!("{url} answers HTTP {}: {}", answer.status(), clean(body.trim()));
                let later = answer.status() == http::StatusCode::SERVICE_UNAVAILABLE;
                Err(if later { Refusal::NotNow(text) } else { Refusal::Final(text) })
            }
            Err(error) => Err(nobody(&error.to_string())),
        }
    };
    tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await.unwrap_or_else(|_| Err(nobody("it takes too long")))
}

/// The parts of a message that matter here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope<'a> {
    /// What it is.
    #[serde(borrow, default)]
    pub r#type: Cow<'a, str>,
    /// Its id.
    #[serde(borrow)]
    pub id: Option<Cow<'a, str>>,
    /// Its place in the log, where it is stored.
    pub offset: Option<u64>,
    #[serde(borrow)]
    timestamp: Option<Cow<'a, str>>,
    #[serde(borrow)]
    from_user_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    topic: Option<Cow<'a, str>>,
    #[serde(borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(default)]
    replayed: bool,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    data_base64: Option<Cow<'a, str>>,
    /// Of `auth_success`.
    #[serde(borrow)]
    session_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    user_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    device: Option<Cow<'a, str>>,
    #[serde(default)]
    pending: u64,
    #[serde(default)]
    gap: bool,
    /// Of `auth_failure` and `error`.
    #[serde(borrow)]
    pub code: Option<Cow<'a, str>>,
    /// Of `auth_failure` and `error`.
    #[serde(borrow)]
    pub message: Option<Cow<'a, str>>,
    /// Of `draining`.
    reconnect_after_ms: Option<u64>,
}

/// How a connection ended.
pub enum End {
    /// From this side.
    Stopped(Stop),
    /// All that was asked for came.
    Counted,
    /// There was none.
    Refused(Refusal),
    /// From the other side.
    Closed {
        /// The close code; 1006 where there was none.
        code: u16,
        /// The close reason.
        reason: String,
        /// What `auth_failure` said.
        detail: Option<String>,
        /// When `draining` asked to come back.
        after: Option<Duration>,
    },
}

/// A client over all its connections.
pub struct Client {
    connection: Connection,
    format: Format,
    wanted: Option<u64>,
    came: u64,
    connected: bool,
    let_in: bool,
    /// Of the present connection.
    detail: Option<String>,
    after: Option<Duration>,
}

impl Client {
    /// A client that ends after `wanted` messages.
    pub fn new(connection: Connection, format: Format, wanted: Option<u64>) -> Self {
        Self { connection, format, wanted, came: 0, connected: false, let_in: false, detail: None, after: None }
    }

    /// Whether there ever was a session.
    pub fn was_connected(&self) -> bool {
        self.connected
    }

    /// Whether the last connection became a session.
    pub fn was_let_in(&self) -> bool {
        self.let_in
    }

    /// How many messages were wanted and how many came, where that is fewer.
    pub fn missing(&self) -> Option<(u64, u64)> {
        self.wanted.filter(|wanted| self.came < *wanted).map(|wanted| (wanted, self.came))
    }

    /// Connects and prints until either side ends it.
    pub async fn run(&mut self, tokens: &Tokens, mut stop: Pin<&mut impl Future<Output = Stop>>) -> Outcome<End> {
        (self.let_in, self.detail, self.after) = (false, None, None);
        let token = tokens.next()?;
        let mut socket = tokio::select! {
            stop = &mut stop => return Ok(End::Stopped(stop)),
            connected = connect(&self.connection, &token) => match connected {
                Ok(socket) => socket,
                Err(refusal) => return Ok(End::Refused(refusal)),
            },
        };
        loop {
            let came = tokio::select! {
                biased;
                stop = &mut stop => {
                    goodbye(&mut socket).await;
                    return Ok(End::Stopped(stop));
                }
                came = socket.next() => came,
            };
            match came {
                Some(Ok(Message::Text(text))) => {
                    let stored = self.take(&text, tokens, &mut socket).await?;
                    if self.missing().is_none() && self.wanted.is_some() {
                        if stored && !self.connection.client_acks {
                            // The ping behind the message, whose pong confirms it. Another message in between stays
                            // unread, and so unconfirmed.
                            let next = tokio::time::timeout(END_TIMEOUT, socket.next()).await;
                            if let Ok(Some(Ok(Message::Ping(_)))) = next {
                                // The pong is only queued, and a close frame would overtake it.
                                let _ = socket.flush().await;
                            }
                        }
                        goodbye(&mut socket).await;
                        return Ok(End::Counted);
                    }
                }
                Some(Ok(Message::Binary(bytes))) => {
                    output::note(&format!("{} bytes that were not asked for", bytes.len()))
                }
                Some(Ok(Message::Close(frame))) => {
                    let (code, reason) = frame.map_or((1005, String::new()), |frame| {
                        (u16::from(frame.code), frame.reason.as_str().to_owned())
                    });
                    // Reads on to the end, which sends the answer to the close frame.
                    let _ = tokio::time::timeout(END_TIMEOUT, async { while socket.next().await.is_some() {} }).await;
                    return Ok(self.closed(code, reason));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Ok(self.closed(1006, error.to_string())),
                None => return Ok(self.closed(1006, String::new())),
            }
        }
    }

    /// A refusal that was heard stands, even if the close frame behind it was lost.
    fn closed(&mut self, code: u16, reason: String) -> End {
        let code = if code == 1006 && self.detail.is_some() { 4401 } else { code };
        End::Closed { code, reason, detail: self.detail.take(), after: self.after.take() }
    }

    /// Takes a message; whether it is one that has to be confirmed.
    async fn take(&mut self, text: &str, tokens: &Tokens, socket: &mut Socket) -> Outcome<bool> {
        let Ok(message) = serde_json::from_str::<Envelope<'_>>(text) else {
            output::line(&clean(text))?;
            return Ok(false);
        };
        match &*message.r#type {
            "auth_success" => {
                (self.connected, self.let_in) = (true, true);
                output::note(&welcome(&message, &self.connection.url));
            }
            "auth_failure" => {
                let code = message.code.unwrap_or_default();
                self.detail = Some(format!("{code}: {}", message.message.unwrap_or_default()));
            }
            "token_expiring" if tokens.renewable() => {
                let token = tokens.next()?;
                let text = serde_json::json!({ "type": "auth", "token": token }).to_string();
                // A connection that breaks here is told by the next read.
                let _ = socket.send(Message::from(text)).await;
            }
            "draining" => {
                let asked = message.reconnect_after_ms.map(Duration::from_millis);
                self.after = asked.map(|after| after.min(ASKED_WAIT_MAX));
            }
            "token_expiring" | "pong" => {}
            _ => {
                self.came += 1;
                if self.format.json {
                    // White space between values may be a line break, which JSON has nowhere else.
                    output::line(&text.replace(['\n', '\r'], " "))?;
                } else {
                    output::line(&clean(&shown(&message)))?;
                }
                if self.connection.client_acks
                    && let Some(offset) = message.offset
                {
                    let ack = format!("{{\"type\":\"ack\",\"offset\":{offset}}}");
                    let _ = socket.send(Message::from(ack)).await;
                }
                return Ok(message.offset.is_some());
            }
        }
        Ok(false)
    }
}

fn welcome(message: &Envelope<'_>, url: &str) -> String {
    let device = match message.device.as_deref() {
        None | Some("") => String::new(),
        Some(device) => format!(", device {device}"),
    };
    let gap = if message.gap { "; what waited for this device was dropped" } else { "" };
    let text = format!(
        "connected to {url} as {}{device}: session {}, {} waiting{gap}",
        message.user_id.as_deref().unwrap_or_default(),
        message.session_id.as_deref().unwrap_or_default(),
        message.pending
    );
    clean(&text).into_owned()
}

/// A message for people: when, what, the data, and the rest.
fn shown(message: &Envelope<'_>) -> String {
    let data = match (message.data, &message.data_base64) {
        (Some(data), _) => data.get().replace(['\n', '\r'], " "),
        (None, Some(bytes)) => format!("base64:{bytes}"),
        // An error's text, or who came or went.
        (None, None) => message.message.as_deref().or(message.user_id.as_deref()).unwrap_or_default().to_owned(),
    };
    let from = message.from_user_id.as_deref().map(|user| format!(", from {user}")).unwrap_or_default();
    let topic = message.topic.as_deref().map(|topic| format!(", topic {topic}")).unwrap_or_default();
    let kind = message.kind.as_deref().map(|kind| format!(", kind {kind}")).unwrap_or_default();
    let id = message.id.as_deref().map(|id| format!("id {id}")).unwrap_or_default();
    let replayed = if message.replayed { ", replayed" } else { "" };
    let rest = format!("{id}{from}{topic}{kind}{replayed}");
    let rest = if rest.is_empty() { rest } else { format!("  ({})", rest.trim_start_matches(", ")) };
    format!("{}  {}  {data}{rest}", message.timestamp.as_deref().unwrap_or_default(), message.r#type)
}

/// Closes from this side and waits a moment for the answer, so that what was confirmed arrives.
pub async fn goodbye(socket: &mut Socket) {
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let closing = async {
        if socket.close(Some(frame)).await.is_ok() {
            while let Some(Ok(_)) = socket.next().await {}
        }
    };
    let _ = tokio::time::timeout(END_TIMEOUT, closing).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_for_people() {
        let say = |text: &str| shown(&serde_json::from_str(text).unwrap());
        assert_eq!(
            say("{\"type\":\"notification\",\"id\":\"a\",\"offset\":1,\"timestamp\":\"T\",\"replayed\":true,\
                 \"fromUserId\":\"bob\",\"data\":{\n\"x\":1.0}}"),
            "T  notification  { \"x\":1.0}  (id a, from bob, replayed)"
        );
        assert_eq!(
            say(r#"{"type":"publish","id":"a","timestamp":"T","fromUserId":"bob","topic":"t","kind":"chat","data":1}"#),
            "T  publish  1  (id a, from bob, topic t, kind chat)"
        );
        assert_eq!(
            say(r#"{"type":"user_left","topic":"t","userId":"bob","timestamp":"T"}"#),
            "T  user_left  bob  (topic t)"
        );
        assert_eq!(say(r#"{"type":"b","dataBase64":"AAE=","timestamp":"T"}"#), "T  b  base64:AAE=");
    }

    #[test]
    fn the_address_says_what_is_asked_for_and_the_header_who_asks() {
        let request = |url: &str| {
            let terms = Terms::default();
            let connection =
                Connection { url: url.to_owned(), terms, device: Some("a b".to_owned()), client_acks: true };
            connection.request("t.o.k")
        };
        let good = request("ws://localhost:7000/ws?x=1").unwrap();
        assert_eq!(good.uri(), "ws://localhost:7000/ws?x=1&device=a+b&ackMode=client");
        assert_eq!(good.headers()["authorization"], "Bearer t.o.k");
        for bad in ["", "localhost:7000", "http://a/ws", "ws://"] {
            assert!(matches!(request(bad), Err(Refusal::Usage(_))), "{bad}");
        }
    }
}
