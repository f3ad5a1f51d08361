//! RFC 6455, requirement by requirement: tables of what a client sends and what the gateway must answer, played over real
//! sockets. Each row is sent whole, byte by byte, and cut in two at every position; what comes out must not depend on it.
//!
//! * `handshake.rs`: section 4, requests and responses.
//! * `frames.rs`: sections 5 to 7 and what they rest on (8.1, 10.4).
//! * `deflate.rs`: RFC 7692, sections 6 and 7.2, the same way; its negotiation is among the handshakes.
//! * `wire.rs`: what plays a row, and reads what comes as strictly as the RFC allows to.

mod deflate;
mod frames;
mod handshake;
mod wire;

use serde_json::Value;

/// How the connection began that a row is played on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Opening {
    /// A session, as most are.
    Session,
    /// One that takes bytes as such.
    Binary,
    /// One with permessage-deflate.
    Deflate,
    /// One whose messages may have 1 KiB.
    Small,
    /// The same with permessage-deflate.
    SmallDeflate,
    /// Upgraded, and nobody has said who he is.
    Nobody,
}

/// What must come.
#[derive(Clone, Debug, PartialEq)]
pub enum Out {
    /// The answer to an `echo` with this `data`.
    Echo(Value),
    /// The same to bytes, in a binary message.
    EchoBytes(&'static [u8]),
    /// The same to a session that takes no binary messages.
    EchoBase64(&'static str),
    /// The session goes on, but what it said was none of the protocol's messages.
    Error(&'static str),
    /// A pong.
    Pong(Vec<u8>),
    /// A close frame, behind it the end of the connection, in order.
    Close(Option<u16>),
    /// The end of the connection in order, and no close frame: the client ends it first.
    End,
}

/// A requirement, and how it shows.
#[derive(Clone, Debug)]
pub struct Row {
    /// Where it stands.
    pub section: &'static str,
    /// What it says.
    pub requirement: String,
    /// What it is tried on.
    pub opening: Opening,
    /// What the client sends.
    pub input: Vec<u8>,
    /// What it must get: data in this order, pongs at any place among it, of several at least the last.
    pub output: Vec<Out>,
}

/// A masked frame; its length in the shortest form.
pub fn frame(first: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    crate::support::raw::frame(first, payload.as_ref())
}

/// An `echo` message with that text as its data.
pub fn echo(data: &str) -> String {
    serde_json::json!({ "type": "echo", "data": data }).to_string()
}

/// An `echo` message of so many bytes in all, and the answer to it.
pub fn echo_of(bytes: usize) -> (String, Out) {
    let data = "x".repeat(bytes - echo("").len());
    (echo(&data), Out::Echo(data.into()))
}

pub fn echoed(data: &str) -> Out {
    Out::Echo(data.into())
}
