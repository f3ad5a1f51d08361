//! Plays a row on a connection and looks at what comes.

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use pushgate::{hub::Handle, types::SessionId};
use serde_json::Value;
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Opening, Out, Row, echo, frame};
use crate::support::{
    Gateway, PATIENCE, Token, inflate,
    raw::{self, handshake},
    soon,
};

/// A row up to this many bytes is cut at every position; of a longer one, at those of its ends and every 4093rd.
const CUT_EVERYWHERE: usize = 2048;
/// Connections at once.
const AT_ONCE: usize = 16;

/// The gateways that the rows need.
pub struct Gateways {
    large: Gateway,
    small: Gateway,
}

impl Gateways {
    pub async fn start() -> Self {
        let limits = |bytes| {
            // A row in pieces is more messages a second than anybody means to send.
            [("limits.bad_messages", "0"), ("limits.messages_per_second", "0"), ("limits.message_bytes", bytes)]
        };
        Self { large: Gateway::with(&limits("128KiB")).await, small: Gateway::with(&limits("1KiB")).await }
    }

    fn of(&self, opening: Opening) -> &Gateway {
        match opening {
            Opening::Small | Opening::SmallDeflate => &self.small,
            Opening::Session | Opening::Binary | Opening::Deflate | Opening::Nobody => &self.large,
        }
    }
}

/// Plays all rows; how many were played, and what went wrong.
pub async fn play(rows: Vec<Row>) -> (usize, Vec<String>) {
    let gateways = Arc::new(Gateways::start().await);
    let count = rows.len();
    let rows = Arc::new(parking_lot::Mutex::new(rows));
    let mut players = tokio::task::JoinSet::new();
    for player in 0..AT_ONCE {
        let (gateways, rows) = (Arc::clone(&gateways), Arc::clone(&rows));
        players.spawn(async move {
            let mut wrong = Vec::new();
            loop {
                let Some(row) = rows.lock().pop() else { return wrong };
                if let Err(text) = play_row(&gateways, &row, &format!("player-{player}")).await {
                    wrong.push(format!("section {}: {}: {text}", row.section, row.requirement));
                }
            }
        });
    }
    let wrong = players.join_all().await.concat();
    for gateway in [&gateways.large, &gateways.small] {
        assert_eq!(gateway.errors("panic").await, 0);
    }
    (count, wrong)
}

/// How a row's bytes are handed to the socket: where each piece ends.
fn cuts(length: usize) -> Vec<Vec<usize>> {
    let mut all = vec![vec![], (1..length).collect()];
    let everywhere = length <= CUT_EVERYWHERE;
    let at = (1..length).filter(|at| everywhere || *at < 40 || length - at < 40 || at % 4093 == 0);
    all.extend(at.map(|at| vec![at]));
    all
}

async fn play_row(gateways: &Gateways, row: &Row, user: &str) -> Result<(), String> {
    let mut peer: Option<Peer> = None;
    for ends in cuts(row.input.len()) {
        // A connection that a row leaves open is used for the next cut of it.
        let mut now = match peer.take() {
            Some(peer) => peer,
            None => Peer::open(gateways.of(row.opening), row.opening, user).await,
        };
        let how = match &ends[..] {
            [] => "whole".to_owned(),
            [at] => format!("cut at {at}"),
            _ => "byte by byte".to_owned(),
        };
        let stays_open = now.play(row, &ends).await.map_err(|text| format!("{how}: {text}"))?;
        peer = stays_open.then_some(now);
    }
    Ok(())
}

/// How far is read.
#[derive(Clone, Copy, PartialEq)]
enum Until {
    /// To the end of the connection.
    End,
    /// To the answer to what was sent last.
    Barrier,
    /// So many frames.
    Frames(usize),
}

/// What is asked behind a row that leaves the connection open.
const BARRIER: &str = "barrier";

/// A client's end of a connection.
struct Peer {
    stream: TcpStream,
    received: Vec<u8>,
    inflates: bool,
    /// The gateway's side of it.
    handle: Option<Arc<Handle>>,
}

impl Peer {
    async fn open(gateway: &Gateway, opening: Opening, user: &str) -> Self {
        let mut stream = soon("a connection", TcpStream::connect(gateway.http)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let inflates = matches!(opening, Opening::Deflate | Opening::SmallDeflate);
        let extensions = if inflates { "Sec-WebSocket-Extensions: permessage-deflate\r\n" } else { "" };
        let query = match opening {
            Opening::Nobody => String::new(),
            _ => format!("token={}&binary={}", Token::of(user).sign(), u8::from(opening == Opening::Binary)),
        };
        stream.write_all(handshake(&query, extensions).as_bytes()).await.unwrap();
        let mut peer = Self { stream, received: Vec::new(), inflates, handle: None };
        while !peer.received.windows(4).any(|window| window == b"\r\n\r\n") {
            assert!(peer.read().await.unwrap() > 0, "no answer to the handshake");
        }
        let end = peer.received.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8(peer.received.drain(..end).collect()).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert_eq!(head.contains("permessage-deflate"), inflates, "{head}");
        if opening != Opening::Nobody {
            let Ok(Some(Frame::Text(hello))) = peer.frame().await else { panic!("no auth_success") };
            let id = hello["sessionId"].as_str().map(|id| SessionId::parse(id).unwrap()).unwrap();
            peer.handle = Some(gateway.hub.session(id).unwrap());
        }
        peer
    }

    async fn read(&mut self) -> std::io::Result<usize> {
        match tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.received)).await {
            Ok(read) => read,
            Err(_) => Err(std::io::Error::other("waiting in vain")),
        }
    }

    /// Sends the row's bytes in these pieces, and looks at what comes. True: the connection is open.
    async fn play(&mut self, row: &Row, ends: &[usize]) -> Result<bool, String> {
        let mut sent = 0;
        let before = self.handle.as_ref().map_or(0, |handle| handle.core().counts.bytes_received);
        for end in ends.iter().copied().chain([row.input.len()]) {
            // The gateway may have closed already; that shows below.
            let _ = self.stream.write_all(&row.input[sent..end]).await;
            sent = end;
            self.wait_for_receipt(before + sent as u64).await;
        }
        let closes = matches!(row.output.last(), Some(Out::Close(_) | Out::End));
        if row.output.last() == Some(&Out::End) {
            self.stream.shutdown().await.unwrap();
        }
        let until = match self.handle {
            _ if closes => Until::End,
            // Nothing else is answered there, and of several pings maybe only the last.
            None => Until::Frames(row.output.len()),
            Some(_) => {
                // Whatever comes of the row comes before the answer to this.
                let _ = self.stream.write_all(&frame(raw::TEXT, echo(BARRIER))).await;
                Until::Barrier
            }
        };
        let came = self.gather(until).await?;
        compare(&row.output, &came)?;
        Ok(!closes)
    }

    /// Waits until the gateway has read so much, so that what is sent next is read apart from it.
    async fn wait_for_receipt(&self, bytes: u64) {
        let Some(handle) = &self.handle else { return tokio::task::yield_now().await };
        let read = || {
            let core = handle.core();
            core.closing.is_some() || core.counts.bytes_received >= bytes
        };
        soon("the gateway to read", async {
            while !read() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// What comes, so far.
    async fn gather(&mut self, until: Until) -> Result<Vec<Frame>, String> {
        let mut came = Vec::new();
        while until != Until::Frames(came.len()) {
            match self.frame().await? {
                Some(Frame::Text(json)) if until == Until::Barrier && json["data"] == BARRIER => break,
                // The gateway's own: it need not be answered for as long as this takes.
                Some(Frame::Ping) => {}
                Some(frame) => came.push(frame),
                None if until == Until::End => break,
                None => return Err(format!("the connection ended behind {came:?}")),
            }
        }
        Ok(came)
    }

    /// The next frame; `None` at the end of the connection.
    async fn frame(&mut self) -> Result<Option<Frame>, String> {
        loop {
            if let Some((frame, length)) = parse(&self.received, self.inflates)? {
                self.received.drain(..length);
                return Ok(Some(frame));
            }
            match self.read().await {
                Ok(0) if self.received.is_empty() => return Ok(None),
                Ok(0) => return Err(format!("the connection ended in the middle of {:02x?}", self.received)),
                Ok(_) => {}
                Err(error) => return Err(format!("the connection ended by {error}")),
            }
        }
    }
}

/// A frame of the gateway.
#[derive(Debug, PartialEq)]
enum Frame {
    Text(Value),
    /// The envelope and the bytes behind it.
    Binary(Value, Vec<u8>),
    Ping,
    Pong(Vec<u8>),
    Close(Option<u16>),
}

/// Reads a frame as sections 5.1, 5.2 and 5.5 have it, and nothing else.
fn parse(bytes: &[u8], inflates: bool) -> Result<Option<(Frame, usize)>, String> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let bad = |what: &str| Err(format!("{what}: {:02x?}", &bytes[..bytes.len().min(20)]));
    if second & 0x80 != 0 {
        return bad("a masked frame");
    }
    let (length, extra) = match (second & 0x7F, rest) {
        (126, [a, b, ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 2),
        (127, [a, b, c, d, e, f, g, h, ..]) => (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 8),
        (126 | 127, _) => return Ok(None),
        (short, _) => (u64::from(short), 0),
    };
    let shortest = match length {
        0..126 => 0,
        126..=0xFFFF => 2,
        _ => 8,
    };
    if extra != shortest {
        return bad("a length that is not in its shortest form");
    }
    let Some(payload) = rest.get(extra..).and_then(|rest| rest.get(..length as usize)) else { return Ok(None) };
    let control = first & 0x08 != 0;
    let deflated = first & 0x40 != 0;
    if first & 0x80 == 0 || first & 0x30 != 0 || (deflated && (control || !inflates)) || (control && length > 125) {
        return bad("a frame that must not be sent");
    }
    let payload = match deflated {
        true => inflate::message(payload, 1 << 20).map_err(|why| format!("cannot be inflated: {why:?}"))?.bytes,
        false => payload.to_vec(),
    };
    let json = |bytes: &[u8]| serde_json::from_slice(bytes).map_err(|error| format!("not JSON: {error}"));
    let frame = match first & 0x0F {
        0x1 => Frame::Text(json(&payload)?),
        0x2 => {
            let (length, rest) = payload.split_first_chunk().ok_or("a short binary message")?;
            let (envelope, data) = rest.split_at(u32::from_be_bytes(*length) as usize);
            Frame::Binary(json(envelope)?, data.to_vec())
        }
        0x8 => match payload[..] {
            [] => Frame::Close(None),
            [a, b, ref reason @ ..] => {
                let code = u16::from_be_bytes([a, b]);
                if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) || std::str::from_utf8(reason).is_err() {
                    return bad("a close frame that must not be sent");
                }
                Frame::Close(Some(code))
            }
            [_] => return bad("a close frame of one byte"),
        },
        0x9 => Frame::Ping,
        0xA => Frame::Pong(payload),
        _ => return bad("a frame of another kind"),
    };
    Ok(Some((frame, 2 + extra + length as usize)))
}

fn compare(expected: &[Out], came: &[Frame]) -> Result<(), String> {
    let wrong = || {
        let mut text = format!("there came {came:?}, and not {expected:?}");
        text.truncate(text.floor_char_boundary(600));
        Err(text)
    };
    let is_pong = |out: &&Out| matches!(out, Out::Pong(_));
    let pongs: Vec<&[u8]> =
        expected.iter().filter_map(|out| if let Out::Pong(p) = out { Some(&p[..]) } else { None }).collect();
    let ponged: Vec<&[u8]> =
        came.iter().filter_map(|frame| if let Frame::Pong(p) = frame { Some(&p[..]) } else { None }).collect();
    // Of pings in a row the last must be answered (section 5.5.3); none twice, none that was not sent.
    let places: HashMap<&[u8], usize> = pongs.iter().enumerate().map(|(place, payload)| (*payload, place)).collect();
    let order: Option<Vec<usize>> = ponged.iter().map(|payload| places.get(payload).copied()).collect();
    let in_order = order.is_some_and(|order| order.is_sorted_by(|a, b| a < b));
    if !in_order || ponged.last() != pongs.last() {
        return wrong();
    }
    let expected_data: Vec<&Out> = expected.iter().filter(|out| !is_pong(out) && **out != Out::End).collect();
    let data: Vec<&Frame> = came.iter().filter(|frame| !matches!(frame, Frame::Pong(_))).collect();
    let matches =
        expected_data.len() == data.len() && expected_data.iter().zip(&data).all(|(out, frame)| is(out, frame));
    if matches { Ok(()) } else { wrong() }
}

fn is(out: &Out, frame: &Frame) -> bool {
    let echo = |json: &Value| json["type"] == "echo_response" && json["timestamp"].is_string();
    match (out, frame) {
        (Out::Echo(data), Frame::Text(json)) => echo(json) && json["data"] == *data,
        (Out::EchoBytes(bytes), Frame::Binary(json, data)) => echo(json) && data == bytes,
        (Out::EchoBase64(text), Frame::Text(json)) => {
            echo(json) && json["dataBase64"] == STANDARD.encode(text.as_bytes())
        }
        (Out::Error(code), Frame::Text(json)) => json["type"] == "error" && json["code"] == *code,
        (Out::Close(code), Frame::Close(came)) => code == came,
        _ => false,
    }
}
