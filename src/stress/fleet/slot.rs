//! One session's place: its connection, where that is at, and what came, over all its connections.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use serde::Deserialize;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::{Place, tally::Tally};
use crate::stress::{
    mark::{self, Mark},
    track::{Seen, Track},
    wire::{self, WireError},
};

/// The longest that it stays away because it was asked to, in ms: as the client library.
const ASKED_MILLIS_MAX: u64 = 600_000;
/// The largest message that is put together from fragments.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How far a connection is.
#[derive(Debug, PartialEq, Eq)]
pub enum Phase {
    /// The socket connects.
    Connecting,
    /// The handshake was sent, with this key.
    Upgrading(String),
    /// It is a WebSocket; `auth_success` is waited for.
    Greeting,
    /// A session.
    Open,
    /// Closed from this side; the other side's close frame is waited for.
    Closing,
}

/// A connection.
pub struct Conn {
    pub stream: TcpStream,
    pub phase: Phase,
    /// What was received and is no whole frame yet.
    carry: Vec<u8>,
    /// The message whose fragments have begun to come.
    fragments: Option<Vec<u8>>,
    /// What the kernel did not take yet.
    pub out: Vec<u8>,
    /// When it began to connect, in µs.
    pub began_micros: u64,
    /// When it became a session, in µs.
    opened_micros: u64,
    /// Whether epoll was asked for room to write.
    pub wants_room: bool,
}

impl Conn {
    pub fn new(stream: TcpStream, began_micros: u64) -> Self {
        Self {
            stream,
            phase: Phase::Connecting,
            carry: Vec::new(),
            fragments: None,
            out: Vec::new(),
            began_micros,
            opened_micros: began_micros,
            wants_room: true,
        }
    }

    /// Queues a frame.
    pub fn say(&mut self, opcode: OpCode, mask: [u8; 4], payload: &[u8]) {
        wire::write(&mut self.out, opcode, mask, payload);
    }

    /// Writes what is queued. `false`: some is left.
    pub fn flush(&mut self) -> io::Result<bool> {
        let mut written = 0;
        while written < self.out.len() {
            match self.stream.write(&self.out[written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.drain(..written);
        if self.out.is_empty() {
            // An idle session holds no buffer.
            self.out = Vec::new();
        }
        Ok(self.out.is_empty())
    }

    /// Reads what is there, at most what the buffer holds. `None`: nothing is.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.stream.read(buffer) {
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// What a piece of input brought about.
#[derive(Debug, Default)]
pub struct Taken {
    /// `auth_success` came.
    pub opened: bool,
    /// Messages of this run that had not come before, and all of them.
    pub new: u64,
    pub heard: u64,
    /// What the last ping carried, which its pong brings back.
    pub pong: Option<Vec<u8>>,
    /// The offset of the last one delivered, which confirms what came before it, too.
    pub ack: Option<u64>,
    /// Why it ends.
    pub end: Option<End>,
}

/// How a connection ends.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// By the other side's close frame.
    Closed(u16),
    /// What came is no gateway's.
    Wrong(WireError),
    /// `auth_failure`.
    Refused(String),
}

/// A session's place.
pub struct Slot {
    pub index: usize,
    pub place: Place,
    pub user: Option<Arc<str>>,
    pub device: Option<String>,
    /// What stands for its user in a mark.
    whom: Option<u64>,
    pub conn: Option<Conn>,
    /// Rises with each connection, so that what was meant for an earlier one is known.
    pub generation: u32,
    pub tracks: Vec<Track>,
    /// Echoes sent and answered in this run.
    pub echoes: u64,
    pub echoes_back: u64,
    /// When its next echo was due that could not be sent then.
    pub overdue_micros: Option<u64>,
    /// How many messages of its first lane it expects, until they have come.
    pub expected: Option<u64>,
    /// When the gateway asked it to be back, in µs, until it goes.
    pub asked_micros: Option<u64>,
    /// Attempts to come back, up to the one that came to something.
    pub tries: u32,
}

/// The parts of a message that carries no mark.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    r#type: String,
    #[serde(default)]
    user_id: Option<String>,
    #[serde(default)]
    device: Option<String>,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    reconnect_after_ms: Option<u64>,
}

impl Slot {
    pub fn new(index: usize, place: Place) -> Self {
        Self {
            index,
            place,
            user: None,
            device: None,
            whom: None,
            conn: None,
            generation: 0,
            tracks: Vec::new(),
            echoes: 0,
            echoes_back: 0,
            overdue_micros: None,
            expected: None,
            asked_micros: None,
            tries: 0,
        }
    }

    pub fn is_open(&self) -> bool {
        self.conn.as_ref().is_some_and(|conn| conn.phase == Phase::Open)
    }

    /// Takes what was read.
    pub fn take(&mut self, input: &[u8], run: u32, now_micros: u64, tally: &mut Tally) -> Taken {
        let mut taken = Taken::default();
        let Some(conn) = &mut self.conn else { return taken };
        let carried;
        let mut rest = if conn.carry.is_empty() {
            input
        } else {
            conn.carry.extend_from_slice(input);
            carried = std::mem::take(&mut conn.carry);
            &carried
        };
        if let Phase::Upgrading(key) = &conn.phase {
            match wire::answer(rest, key) {
                Ok(Some(used)) => rest = &rest[used..],
                Ok(None) => {
                    conn.carry = rest.to_vec();
                    return taken;
                }
                Err(wrong) => {
                    taken.end = Some(End::Wrong(wrong));
                    return taken;
                }
            }
            conn.phase = Phase::Greeting;
        }
        while taken.end.is_none() {
            match wire::frame(rest) {
                Ok(Some((frame, used))) => {
                    rest = &rest[used..];
                    self.frame(&frame, run, now_micros, tally, &mut taken);
                }
                Ok(None) => break,
                Err(wrong) => taken.end = Some(End::Wrong(wrong)),
            }
        }
        if let Some(conn) = self.conn.as_mut().filter(|_| taken.end.is_none()) {
            conn.carry = rest.to_vec();
        }
        taken
    }

    fn frame(&mut self, frame: &wire::Frame<'_>, run: u32, now: u64, tally: &mut Tally, taken: &mut Taken) {
        let Some(conn) = &mut self.conn else { return };
        let wrong = |what| Some(End::Wrong(WireError::Frame(what)));
        match (frame.opcode, &mut conn.fragments) {
            (OpCode::Data(Data::Continue), Some(begun)) => {
                begun.extend_from_slice(frame.payload);
                if begun.len() > MESSAGE_BYTES_MAX {
                    taken.end = wrong("its message has more than 64 MiB");
                } else if frame.last {
                    let message = conn.fragments.take().unwrap_or_default();
                    self.message(&message, run, now, tally, taken);
                }
            }
            (OpCode::Data(Data::Continue), None) => taken.end = wrong("it goes on with nothing"),
            (OpCode::Data(_), Some(_)) => taken.end = wrong("it begins a message within another"),
            (OpCode::Data(_), None) if frame.last => self.message(frame.payload, run, now, tally, taken),
            (OpCode::Data(_), begun) => *begun = Some(frame.payload.to_vec()),
            (OpCode::Control(_), _) if !frame.last || frame.payload.len() > 125 => {
                taken.end = wrong("a control frame is long or in fragments");
            }
            (OpCode::Control(Control::Ping), _) => taken.pong = Some(frame.payload.to_vec()),
            (OpCode::Control(Control::Close), _) => {
                let code = frame.payload.first_chunk::<2>().map_or(1005, |code| u16::from_be_bytes(*code));
                taken.end = Some(End::Closed(code));
            }
            (OpCode::Control(_), _) => {}
        }
    }

    fn message(&mut self, message: &[u8], run: u32, now: u64, tally: &mut Tally, taken: &mut Taken) {
        // No session asked for payload bytes, so that every message is text.
        if std::str::from_utf8(message).is_err() {
            taken.end = Some(End::Wrong(WireError::Frame("its text is not UTF-8")));
            return;
        }
        if let Some(mark) = Mark::find(message) {
            taken.ack = mark::offset(message).or(taken.ack);
            self.marked(mark, message.len(), run, now, tally, taken);
            return;
        }
        // What is neither marked nor JSON is nobody's of this run; an offset is confirmed whatever it stands for.
        taken.ack = mark::offset(message).or(taken.ack);
        let Ok(envelope) = serde_json::from_slice::<Envelope>(message) else { return };
        match (&*envelope.r#type, &mut self.conn) {
            ("auth_success", Some(conn)) if conn.phase == Phase::Greeting => {
                (conn.phase, conn.opened_micros) = (Phase::Open, now);
                self.user = envelope.user_id.map(Into::into);
                self.device = envelope.device;
                self.whom = self.user.as_deref().map(mark::user);
                taken.opened = true;
            }
            // Of a session: its close frame says the rest.
            ("auth_failure", Some(conn)) if conn.phase != Phase::Greeting => {
                *tally.errors.entry(envelope.code.unwrap_or_default()).or_default() += 1;
            }
            ("auth_failure", _) => taken.end = Some(End::Refused(envelope.code.unwrap_or_default())),
            ("draining", _) => {
                let after = envelope.reconnect_after_ms.map(|after| after.min(ASKED_MILLIS_MAX) * 1000);
                self.asked_micros = after.map(|after| now + after);
            }
            ("error", _) => *tally.errors.entry(envelope.code.unwrap_or_default()).or_default() += 1,
            _ => {}
        }
    }

    fn marked(&mut self, mark: Mark, bytes: usize, run: u32, now: u64, tally: &mut Tally, taken: &mut Taken) {
        let track = self.tracks.get_mut(mark.lane as usize).filter(|_| mark.run == run);
        let Some(track) = track else {
            tally.foreign += 1;
            return;
        };
        taken.heard += 1;
        let mine = [Some(mark::EVERYBODY), self.whom, Some(mark::session(self.index))].contains(&Some(mark.whom));
        if !mine {
            tally.misdelivered += 1;
            return;
        }
        tally.received += 1;
        tally.received_bytes += bytes as u64;
        match track.saw(mark.number) {
            Seen::Duplicate => {
                tally.duplicates += 1;
                return;
            }
            Seen::OutOfOrder => tally.out_of_order += 1,
            Seen::New => {}
        }
        taken.new += 1;
        self.echoes_back += 1;
        tally.latency.saturating_record(now.saturating_sub(mark.due_micros).max(1));
        let there = self.conn.as_ref().map_or(0, |conn| conn.opened_micros);
        tally.present.saturating_record(now.saturating_sub(mark.due_micros.max(there)).max(1));
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    const RUN: u32 = 7;

    /// A session of alice, with a connection that nothing is read from.
    fn session() -> Slot {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut slot = Slot::new(4, Place { token: "t".into(), device: None });
        slot.conn = Some(Conn { phase: Phase::Greeting, ..Conn::new(stream, 0) });
        slot.tracks = vec![Track::default()];
        let hello = br#"{"type":"auth_success","userId":"alice","device":"phone"}"#;
        assert!(take(&mut slot, &frame(0x81, hello)).0.opened && slot.is_open());
        slot
    }

    fn take(slot: &mut Slot, input: &[u8]) -> (Taken, Tally) {
        let mut tally = Tally::default();
        let taken = slot.take(input, RUN, 1000, &mut tally);
        (taken, tally)
    }

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let head = match payload.len() {
            short @ ..126 => vec![first, short as u8],
            long => [vec![first, 126], (long as u16).to_be_bytes().to_vec()].concat(),
        };
        [head, payload.to_vec()].concat()
    }

    fn message(run: u32, whom: u64, number: u64) -> Vec<u8> {
        let data = Mark { run, lane: 0, whom, number, due_micros: 900 }.payload(0);
        frame(0x81, format!("{{\"type\":\"notification\",\"offset\":{},\"data\":{data}}}", number + 50).as_bytes())
    }

    #[test]
    fn what_is_its_own_is_counted_and_nothing_else() {
        let mut slot = session();
        let own = [mark::user("alice"), mark::EVERYBODY, mark::session(4)];
        let others = [mark::user("bob"), mark::session(5)];
        let all: Vec<u8> = own
            .iter()
            .chain(&others)
            .enumerate()
            .flat_map(|(number, whom)| message(RUN, *whom, number as u64))
            .chain(message(RUN + 1, mark::EVERYBODY, 9))
            .collect();
        let (taken, tally) = take(&mut slot, &all);
        assert_eq!((taken.new, tally.received, tally.misdelivered, tally.foreign), (3, 3, 2, 1));
        assert_eq!((slot.tracks[0].count(), tally.latency.max(), taken.ack), (3, 100, Some(59)));
    }

    #[test]
    fn input_may_be_cut_anywhere() {
        let input: Vec<u8> = (0..3).flat_map(|number| message(RUN, mark::EVERYBODY, number)).collect();
        for cut in 0..input.len() {
            let mut slot = session();
            let (first, second) = input.split_at(cut);
            let new = take(&mut slot, first).0.new + take(&mut slot, second).0.new;
            assert_eq!((new, slot.tracks[0].count()), (3, 3), "cut at {cut}");
        }
    }

    #[test]
    fn fragments_make_a_message_and_what_breaks_the_rules_ends_the_session() {
        let whole = message(RUN, mark::EVERYBODY, 0);
        let (one, two) = whole[4..].split_at(20);
        let mut slot = session();
        let input = [frame(0x01, one), frame(0x89, b"ping"), frame(0x80, two)].concat();
        let (taken, _) = take(&mut slot, &input);
        assert_eq!((taken.new, taken.pong.as_deref(), taken.end), (1, Some(&b"ping"[..]), None));
        for wrong in [
            frame(0x80, b"goes on with nothing"),
            [frame(0x01, one), whole.clone()].concat(),
            frame(0x09, b"a ping in fragments"),
            frame(0x89, &[b'x'; 126]),
            frame(0x81, b"\xff\xfe"),
            vec![0x81, 0x80, 0, 0, 0, 0],
        ] {
            assert!(matches!(take(&mut session(), &wrong).0.end, Some(End::Wrong(_))), "{wrong:?}");
        }
        assert_eq!(take(&mut session(), &frame(0x88, &1012u16.to_be_bytes())).0.end, Some(End::Closed(1012)));
        assert_eq!(take(&mut session(), &frame(0x88, b"")).0.end, Some(End::Closed(1005)));
    }
}
