//! A client that does everything by hand: it sends what no library would, and answers nothing on its own.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use super::{Gateway, Token, soon};

pub const TEXT: u8 = 0x81;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8A;

/// A TCP connection to the gateway.
pub struct Raw {
    stream: TcpStream,
    received: Vec<u8>,
}

/// A frame as the server sent it: its first byte and its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub first: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    /// A text frame's JSON.
    pub fn json(&self) -> Value {
        assert_eq!(self.first, TEXT, "{self:?}");
        serde_json::from_slice(&self.payload).unwrap()
    }

    /// A close frame's code; none where it is empty.
    pub fn close_code(&self) -> Option<u16> {
        assert_eq!(self.first, CLOSE, "{self:?}");
        self.payload.first_chunk().map(|code| u16::from_be_bytes(*code))
    }
}

impl Raw {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Self {
        Self { stream: soon("a connection", TcpStream::connect(address)).await.unwrap(), received: Vec::new() }
    }

    /// Connects from an address of this machine, such as another one of loopback.
    pub async fn connect_from(source: std::net::IpAddr, address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(source, 0)).unwrap();
        Self { stream: soon("a connection", socket.connect(address)).await.unwrap(), received: Vec::new() }
    }

    /// Goes on with a connection that is there.
    pub fn of(stream: TcpStream) -> Self {
        Self { stream, received: Vec::new() }
    }

    /// Connects with a receive buffer as small as the kernel allows.
    pub async fn connect_narrow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(2048).unwrap();
        Self { stream: soon("a connection", socket.connect(address)).await.unwrap(), received: Vec::new() }
    }

    /// Does the handshake with this query.
    pub async fn upgraded(mut self, query: &str) -> Self {
        let head = self.request(&handshake(query, "")).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        self
    }

    /// A session of that user, past its `auth_success`.
    pub async fn session(gateway: &Gateway, user: &str, query: &str) -> Self {
        let raw = Self::connect(gateway.http).await;
        raw.welcomed(user, query).await
    }

    /// Authenticates a fresh connection.
    pub async fn welcomed(self, user: &str, query: &str) -> Self {
        let mut raw = self.upgraded(&format!("token={}&{query}", Token::of(user).sign())).await;
        let hello = raw.frame().await.json();
        assert_eq!(hello["type"], "auth_success", "{hello}");
        raw
    }

    /// Sends bytes.
    pub async fn write(&mut self, bytes: &[u8]) {
        soon("bytes to leave", self.stream.write_all(bytes)).await.unwrap();
    }

    /// Sends bytes; false where nobody takes them any more.
    #[allow(dead_code, reason = "tests/abuse needs it")]
    pub async fn try_write(&mut self, bytes: &[u8]) -> bool {
        soon("bytes to leave", self.stream.write_all(bytes)).await.is_ok()
    }

    /// Says that nothing more comes.
    #[allow(dead_code, reason = "tests/abuse needs it")]
    pub async fn end_writing(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Sends a masked frame.
    pub async fn send(&mut self, first: u8, payload: &[u8]) {
        self.write(&frame(first, payload)).await;
    }

    /// Sends text.
    pub async fn say(&mut self, message: &Value) {
        self.send(TEXT, message.to_string().as_bytes()).await;
    }

    /// Sends an HTTP request; returns the head of the answer.
    pub async fn request(&mut self, request: &str) -> String {
        self.write(request.as_bytes()).await;
        self.head().await
    }

    /// The head of an HTTP answer, if there comes one.
    #[allow(dead_code, reason = "tests/it needs it")]
    pub async fn try_head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.received.windows(4).position(|window| window == b"\r\n\r\n") {
                return String::from_utf8(self.received.drain(..end + 4).collect()).ok();
            }
            let mut buffer = [0; 1024];
            match soon("bytes or the end", self.stream.read(&mut buffer)).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// The head of an HTTP answer.
    pub async fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.received.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = self.received.drain(..end + 4).collect();
                return String::from_utf8(head).unwrap();
            }
            assert!(self.read().await > 0, "no answer, but {:?}", String::from_utf8_lossy(&self.received));
        }
    }

    /// The next frame; `None` at the end of the connection, in order (a FIN, not a reset).
    pub async fn try_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, length)) = parse(&self.received) {
                self.received.drain(..length);
                return Some(frame);
            }
            if self.read().await == 0 {
                assert!(self.received.is_empty(), "an unfinished frame: {:?}", self.received);
                return None;
            }
        }
    }

    /// The next frame.
    pub async fn frame(&mut self) -> Frame {
        self.try_frame().await.expect("a frame, and not the end")
    }

    /// The next frame that is text; pings on the way are not answered.
    pub async fn text(&mut self) -> Value {
        loop {
            let frame = self.frame().await;
            if frame.first != PING {
                return frame.json();
            }
        }
    }

    /// Waits for the close frame; whatever comes before it is thrown away.
    pub async fn close_frame(&mut self) -> Frame {
        loop {
            let frame = self.frame().await;
            if frame.first == CLOSE {
                return frame;
            }
        }
    }

    /// Waits for the end of the connection, in order or not; how many bytes came before it.
    pub async fn drained(&mut self) -> usize {
        let mut count = self.received.len();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match soon("bytes or the end", self.stream.read(&mut buffer)).await {
                Ok(0) | Err(_) => return count,
                Ok(read) => count += read,
            }
        }
    }

    /// Waits until something came.
    pub async fn some_bytes(&mut self) {
        assert!(self.read().await > 0, "the end");
    }

    /// What comes up to the end of the connection, as text.
    pub async fn rest(mut self) -> String {
        while self.read().await > 0 {}
        String::from_utf8(self.received).unwrap()
    }

    /// Ends the connection by a reset, without a closing handshake.
    pub fn reset(self) {
        let _ = self.stream.set_zero_linger();
    }

    async fn read(&mut self) -> usize {
        soon("bytes", self.stream.read_buf(&mut self.received)).await.unwrap()
    }
}

/// A handshake's request with this query and more header lines.
pub fn handshake(query: &str, more: &str) -> String {
    format!(
        "GET /ws?{query} HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
}

/// A client's frame, masked.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
    let mut bytes = header(first, payload.len(), true);
    bytes.extend_from_slice(&MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A frame's header up to its mask.
pub fn header(first: u8, length: usize, masked: bool) -> Vec<u8> {
    let bit = if masked { 0x80 } else { 0 };
    match length {
        0..=125 => vec![first, bit | length as u8],
        126..=65_535 => [&[first, bit | 126], &(length as u16).to_be_bytes()[..]].concat(),
        _ => [&[first, bit | 127], &(length as u64).to_be_bytes()[..]].concat(),
    }
}

fn parse(bytes: &[u8]) -> Option<(Frame, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    assert_eq!(second & 0x80, 0, "a server never masks");
    let (length, start) = match second {
        126 => (usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap())), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap()) as usize, 10),
        short => (usize::from(short), 2),
    };
    let payload = bytes.get(start..start + length)?.to_vec();
    Some((Frame { first, payload }, start + length))
}
