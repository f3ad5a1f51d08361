//! What can go wrong, one type an operation. No text holds a token, the query of the address or a payload.

use std::{sync::Arc, time::Duration};

use crate::types::InvalidId;

/// Any error: what handlers and token providers answer with. `?` turns every error into it, `"text".into()` makes one.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a client cannot be made of what its [`Builder`](super::Builder) was told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Not an address of a WebSocket endpoint.
    #[error("the address {0}; write ws://HOST:PORT/PATH or wss://HOST/PATH")]
    Url(&'static str),
    /// Not a header, or one that belongs to the handshake itself.
    #[error("the header `{name}` {problem}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// Not a device.
    #[error(transparent)]
    Device(#[from] InvalidId),
    /// Characters that a token cannot have, or too many of them.
    #[error("the token {0}")]
    Token(&'static str),
    /// TLS cannot be set up.
    #[error("no TLS: {0}")]
    Tls(String),
    /// A bound of nothing, within which nothing could ever happen.
    #[error("`{0}` must be more than 0")]
    Zero(&'static str),
    /// Called outside of a tokio runtime with time and I/O.
    #[error("a client is started inside a tokio runtime")]
    NoRuntime,
}

/// Why there is no session: what one attempt to connect came to, or why the client gave up.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// What the builder was told cannot be used. Never from a started client.
    #[error(transparent)]
    Build(Arc<BuildError>),
    /// Nobody answers, or the connection broke before there was a session.
    #[error("nobody answers at {address}: {problem}")]
    Network {
        /// Scheme, host, port and path.
        address: String,
        /// What the system says.
        problem: String,
    },
    /// [`Builder::handshake_timeout`](super::Builder::handshake_timeout) is over.
    #[error("{address} let nobody in within {timeout:?}")]
    Timeout {
        /// Scheme, host, port and path.
        address: String,
        /// The bound.
        timeout: Duration,
    },
    /// The handshake was answered by another status than 101.
    #[error("{address} answers HTTP {status}: {body}")]
    Http {
        /// Scheme, host, port and path.
        address: String,
        /// The status.
        status: u16,
        /// The start of the answer's text, without control characters.
        body: String,
        /// What `Retry-After` says, at most ten minutes.
        retry_after: Option<Duration>,
    },
    /// What answers does not speak WebSocket.
    #[error("{address} is no WebSocket endpoint: {problem}")]
    Protocol {
        /// Scheme, host, port and path.
        address: String,
        /// What is wrong.
        problem: String,
    },
    /// The token provider failed, took too long or gave what no token can be.
    #[error("no token: {0}")]
    Token(String),
    /// The gateway refuses the token.
    #[error("the token was refused: {0}")]
    Refused(AuthFailure),
    /// The gateway closed the connection before there was a session.
    #[error("closed with {code} {reason}")]
    Closed {
        /// The close code; 1006 where the connection was lost.
        code: u16,
        /// The close reason.
        reason: String,
    },
}

/// What `auth_failure` says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct AuthFailure {
    /// Such as `token_expired`; the codes are those of [`AuthCode`](crate::protocol::auth_code::AuthCode).
    pub code: String,
    /// In words.
    pub message: String,
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("closed with {code} {reason}")]
pub struct Disconnect {
    /// The close code; 1005 where the gateway named none, 1006 where the connection was lost, 1000 after
    /// [`Client::close`](super::Client::close).
    pub code: u16,
    /// The close reason, or how the connection was lost.
    pub reason: String,
    /// When the gateway asked to come back at the earliest (`draining`), at most ten minutes.
    pub reconnect_after: Option<Duration>,
}

/// Why the client came to its end without having been asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GiveUp {
    /// The gateway closed the session with a code that means to stay away: 1000, 1008, 3000–3999, 4000–4099, 4400.
    #[error("{0}, which means to stay away")]
    Closed(Disconnect),
    /// The gateway refuses for good: the token and there is no other, or the handshake (400, 403, 404, 426 …).
    #[error("{0}")]
    Refused(ConnectError),
    /// [`Builder::max_reconnects`](super::Builder::max_reconnects) attempts in a row came to nothing.
    #[error("{attempts} attempts in a row came to nothing: {last}")]
    Attempts {
        /// How many.
        attempts: u32,
        /// What the last one came to.
        last: String,
    },
    /// The connection ended, and [`Builder::auto_reconnect`](super::Builder::auto_reconnect) is off.
    #[error("{0}, and reconnecting is off")]
    ReconnectOff(String),
}

/// Why a message is not sent. It has not left, and will not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The client was closed or gave up.
    #[error("the client has ended")]
    Ended,
    /// As many messages or bytes as may be wait to be sent already.
    #[error("{messages} messages of {bytes} bytes wait to be sent already")]
    Full {
        /// How many wait.
        messages: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// Larger than the gateway takes (`maxMessageBytes` of the last session).
    #[error("the message has {bytes} bytes, and the gateway takes {max}")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// The most that may be.
        max: u64,
    },
    /// Not a message of the protocol: one JSON object with a `type`, nested up to 32 levels.
    #[error("not a message of the protocol: {0}")]
    NotAMessage(String),
    /// `auth` and `ack` are the client's own to send.
    #[error("`{0}` is sent by the client itself")]
    Reserved(&'static str),
}

/// Why a request brought no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// It was not sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The gateway answered with `error`.
    #[error("{code}: {message}")]
    Refused {
        /// Such as `forbidden`; the codes are those of [`ErrorCode`](crate::protocol::error_code::ErrorCode).
        code: String,
        /// In words.
        message: String,
    },
    /// No answer in time. A request that still waited to be sent will not be.
    #[error("no answer in time")]
    Timeout,
    /// The connection ended with the request under way: it may have been carried out or not.
    #[error("the connection ended before the answer came")]
    Lost,
    /// The client was closed or gave up.
    #[error("the client has ended")]
    Ended,
    /// As many as may be are under way already.
    #[error("{0} requests are under way already")]
    TooMany(usize),
    /// A subscription that was given up meanwhile by `unsubscribe` or `leave_room`.
    #[error("given up meanwhile")]
    Withdrawn,
}

/// What goes wrong in the background, for [`Builder::on_error`](super::Builder::on_error) and
/// [`Event::Error`](super::Event::Error). The client goes on after each of these.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An attempt to connect came to nothing.
    #[error("{0}")]
    Connect(ConnectError),
    /// The handler failed on a message. A stored one is handed over again; see the [module](super#confirmation).
    #[error("the handler failed on message {id}, attempt {attempt}: {problem}")]
    Handler {
        /// The message's id; empty where it has none.
        id: String,
        /// Its place in the log, where it is stored.
        offset: Option<u64>,
        /// How often it was tried on this session.
        attempt: u32,
        /// What the handler said, or that it panicked.
        problem: String,
    },
    /// The gateway sent what is no message of the protocol. It is left out.
    #[error("the gateway sent what is no message: {0}")]
    BadMessage(String),
    /// The gateway answered something that was sent without a request, or nothing in particular, with `error`.
    #[error("the gateway answers {code}: {message}")]
    Gateway {
        /// Such as `unknown_type`.
        code: String,
        /// In words.
        message: String,
        /// The id of the message that it answers.
        reply_to: Option<String>,
    },
    /// A subscription or room was refused: for good, or for now (`rate_limited`).
    #[error("{what} was refused: {code}: {message}")]
    Subscription {
        /// `topic NAME` or `room NAME`.
        what: String,
        /// Such as `forbidden`.
        code: String,
        /// In words.
        message: String,
        /// After what it is asked for again on this session; `None`: never.
        again: Option<Duration>,
    },
    /// The token runs out and there is no better one yet. The session stays until its end; the client tries again.
    #[error("the token could not be renewed: {0}")]
    Renewal(String),
    /// What waited to be sent is larger than the session takes, and was left out.
    #[error("left out: {0}")]
    NotSent(SendError),
    /// A callback panicked.
    #[error("the callback {0} panicked")]
    Callback(&'static str),
}
