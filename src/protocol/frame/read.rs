//! Reading: a sans-I/O frame reader, one per session, over a read buffer that belongs to a worker thread.
//!
//! Owns what is unfinished between two reads and nothing else. Rule: memory follows what was received, never what a
//! header announced, and stays below the message limit (for a compressed message an eighth more) plus one control frame;
//! between messages nothing is allocated.
//!
//! - A message that lies in the input as one whole frame is unmasked there and handed out without a copy. Anything else
//!   is collected in one buffer, which is given back with the message's end.
//! - A control frame may come between the fragments of a message but not inside a frame. Cut into pieces it is collected
//!   behind the unfinished message in the same buffer, and taken off again.
//! - A compressed message is collected as it came and inflated when it is whole, so that between two reads no session
//!   holds a window; what it may take before that is bounded like what it may become.
//! - Every check is made as soon as its bytes are there, in the order of those bytes, so how the input was cut changes
//!   neither the messages nor the error.
//! - No step's cost grows with what is already held: the buffer doubles, the UTF-8 check goes on where it stopped.

use std::{fmt, ops::ControlFlow, str};

use super::{
    CONTROL_PAYLOAD_BYTES_MAX, FIN, Incoming, LENGTH_16, LENGTH_64, LENGTH_BITS, MASKED, OPCODE_BITS, Opcode,
    RESERVED_BITS, RSV1, ReadError,
    deflate::{self, deflated_bytes_max},
    incoming::{ControlKind, MessageKind},
    mask::unmask,
};

/// The longest header of a client's frame: two bytes, eight of length, four of mask.
const HEADER_BYTES_MAX: usize = 14;

/// Turns the bytes of one connection into messages.
///
/// Lengths are kept in 32 bits so that an idle session stays small; the largest message is therefore 4 GiB less a byte.
pub struct FrameReader {
    /// The payload of the unfinished message so far, unmasked, and behind it that of an unfinished control frame.
    buf: Vec<u8>,
    state: State,
    max_message_bytes: u32,
    /// How much of an unfinished text message is known to be UTF-8: up to a character that may yet be completed.
    utf8_bytes: u32,
    /// The message that a data frame opened and none has ended.
    message: Option<Message>,
    /// Whether permessage-deflate was negotiated.
    inflates: bool,
}

/// What became of a part of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fed {
    /// Whether the connection has more to say.
    pub flow: ControlFlow<()>,
    /// How many bytes, at the end of the input, were left untouched: the next to be fed.
    pub left: usize,
    /// The length of the compressed message behind which it stopped, inflated; 0: it did not stop behind one.
    pub inflated: usize,
}

/// Behind which data message the reader stops, whatever is left.
#[derive(Clone, Copy)]
enum Stop {
    Never,
    First,
    Inflated,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Before or inside a header, of which `held` bytes are there.
    Header { bytes: [u8; HEADER_BYTES_MAX], held: u8 },
    /// Behind a header.
    Payload(Frame),
    /// Closed by the peer, by its mistake or by the sink.
    Ended,
}

impl State {
    const START: State = State::Header { bytes: [0; HEADER_BYTES_MAX], held: 0 };
}

/// A frame whose header was read and found good.
#[derive(Clone, Copy, Debug)]
struct Frame {
    kind: FrameKind,
    /// The mask, turned so that its first byte belongs to the next byte of payload.
    mask: [u8; 4],
    payload_bytes: u32,
    remaining_bytes: u32,
}

#[derive(Clone, Copy, Debug)]
enum FrameKind {
    Data { opens: Option<Message>, fin: bool },
    Control(ControlKind),
}

#[derive(Clone, Copy, Debug)]
struct Message {
    kind: MessageKind,
    deflated: bool,
}

impl FrameReader {
    /// A reader for a fresh connection that refuses messages of more than `max_message_bytes`.
    pub fn new(max_message_bytes: usize) -> Self {
        let mut reader = Self {
            buf: Vec::new(),
            state: State::START,
            max_message_bytes: 0,
            utf8_bytes: 0,
            message: None,
            inflates: false,
        };
        reader.set_max_message_bytes(max_message_bytes);
        reader
    }

    /// The same for one that negotiated permessage-deflate.
    pub fn inflating(max_message_bytes: usize) -> Self {
        Self { inflates: true, ..Self::new(max_message_bytes) }
    }

    /// Changes the limit for frames whose header is yet to be read.
    pub fn set_max_message_bytes(&mut self, max_message_bytes: usize) {
        self.max_message_bytes = u32::try_from(max_message_bytes).unwrap_or(u32::MAX);
    }

    /// Whether nothing is held: no part of a frame, no part of a message.
    pub fn is_idle(&self) -> bool {
        let between_frames = matches!(self.state, State::Header { held: 0, .. } | State::Ended);
        between_frames && self.message.is_none()
    }

    /// Takes all of `input` and calls `sink` with every message and control frame that it completes, in order. `input`
    /// is unmasked in place.
    ///
    /// Answers `Break` where the connection has no more to say: the sink said `Break`, or the peer's close frame was
    /// handed out (section 1.4: what follows it is discarded). After that, and after an error, the reader holds nothing
    /// and answers `Break` to whatever it is fed.
    pub fn feed(
        &mut self,
        input: &mut [u8],
        sink: &mut impl FnMut(Incoming<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ReadError> {
        self.read(input, sink, Stop::Never).map(|fed| fed.flow)
    }

    /// As [`FrameReader::feed`], but stops behind every message that was compressed, since a few bytes may be much work: so
    /// that its caller reckons with what it came to, and lets others have their turn.
    pub fn feed_some(
        &mut self,
        input: &mut [u8],
        sink: &mut impl FnMut(Incoming<'_>) -> ControlFlow<()>,
    ) -> Result<Fed, ReadError> {
        self.read(input, sink, Stop::Inflated)
    }

    /// As [`FrameReader::feed`], but stops behind the first whole data message (control frames before it are handed out
    /// too). Also answers how many bytes of `input`, at its end, were left untouched: the next to be fed. So the limit
    /// can be changed between two messages that arrive together.
    pub fn feed_first(
        &mut self,
        input: &mut [u8],
        sink: &mut impl FnMut(Incoming<'_>) -> ControlFlow<()>,
    ) -> Result<(ControlFlow<()>, usize), ReadError> {
        self.read(input, sink, Stop::First).map(|fed| (fed.flow, fed.left))
    }

    fn read(
        &mut self,
        input: &mut [u8],
        sink: &mut impl FnMut(Incoming<'_>) -> ControlFlow<()>,
        stop: Stop,
    ) -> Result<Fed, ReadError> {
        let result = self.read_frames(input, sink, stop);
        if !matches!(result, Ok(Fed { flow: ControlFlow::Continue(()), .. })) {
            self.state = State::Ended;
            self.end_message();
        }
        result
    }

    fn read_frames(
        &mut self,
        mut input: &mut [u8],
        sink: &mut impl FnMut(Incoming<'_>) -> ControlFlow<()>,
        stop: Stop,
    ) -> Result<Fed, ReadError> {
        loop {
            let mut frame = match self.state {
                State::Payload(frame) => frame,
                State::Header { bytes, held } => match self.read_header(bytes, held, input)? {
                    Some((frame, used)) => {
                        input = &mut input[used..];
                        frame
                    }
                    None => return Ok(Fed { flow: ControlFlow::Continue(()), left: 0, inflated: 0 }),
                },
                State::Ended => return Ok(Fed { flow: ControlFlow::Break(()), left: 0, inflated: 0 }),
            };

            let taken = input.len().min(frame.remaining_bytes as usize);
            let (payload, rest) = input.split_at_mut(taken);
            input = rest;
            unmask(payload, &mut frame.mask);
            // No loss: `taken` is at most `remaining_bytes`.
            frame.remaining_bytes -= taken as u32;
            self.state = if frame.remaining_bytes > 0 { State::Payload(frame) } else { State::START };

            let mut inflated = 0;
            let flow = match frame.kind {
                FrameKind::Data { fin, .. } => self.data(&frame, fin, payload, &mut inflated, sink)?,
                FrameKind::Control(kind) => self.control(&frame, kind, payload, sink)?,
            };
            let stops = match stop {
                Stop::Never => false,
                Stop::First => matches!(frame.kind, FrameKind::Data { fin: true, .. }),
                Stop::Inflated => inflated > 0,
            };
            if flow.is_break() || frame.remaining_bytes > 0 || stops {
                return Ok(Fed { flow, left: input.len(), inflated });
            }
        }
    }

    /// Completes the header of which `held` bytes are in `bytes`: the frame, and how much of `input` belonged to the
    /// header; or `None` where `input` ended before the header did, which then keeps all of it.
    fn read_header(
        &mut self,
        mut bytes: [u8; HEADER_BYTES_MAX],
        held: u8,
        input: &[u8],
    ) -> Result<Option<(Frame, usize)>, ReadError> {
        let before = usize::from(held);
        let copied = input.len().min(HEADER_BYTES_MAX - before);
        let held = before + copied;
        bytes[before..held].copy_from_slice(&input[..copied]);
        match self.parse_header(&bytes[..held])? {
            Some((frame, header_bytes)) => {
                if let FrameKind::Data { opens: Some(message), .. } = frame.kind {
                    self.message = Some(message);
                }
                // Without these bytes the header would have been complete before, so it ends in `input`.
                Ok(Some((frame, header_bytes - before)))
            }
            None => {
                // No loss: at most HEADER_BYTES_MAX. Nor was any input left out: that many bytes are always a header.
                self.state = State::Header { bytes, held: held as u8 };
                Ok(None)
            }
        }
    }

    /// The frame and the length of its header, `None` where bytes are missing. Checks go by the order of the bytes they
    /// need, and each is made although later bytes are missing.
    fn parse_header(&self, bytes: &[u8]) -> Result<Option<(Frame, usize)>, ReadError> {
        let Some((&first, after_first)) = bytes.split_first() else { return Ok(None) };
        let kind = self.frame_kind(first)?;

        let Some((&second, extended)) = after_first.split_first() else { return Ok(None) };
        if second & MASKED == 0 {
            return Err(ReadError::Unmasked);
        }
        let short = second & LENGTH_BITS;
        if matches!(kind, FrameKind::Control(_)) && usize::from(short) > CONTROL_PAYLOAD_BYTES_MAX {
            return Err(ReadError::ControlTooLong);
        }

        let (length, least, masked) = match short {
            LENGTH_16 => match extended.split_first_chunk() {
                Some((&length, masked)) => (u64::from(u16::from_be_bytes(length)), u64::from(LENGTH_16), masked),
                None => return Ok(None),
            },
            LENGTH_64 => match extended.split_first_chunk() {
                Some((&length, masked)) => (u64::from_be_bytes(length), 1 << 16, masked),
                None => return Ok(None),
            },
            short => (u64::from(short), 0, extended),
        };
        if length >> 63 == 1 {
            return Err(ReadError::LengthTopBit);
        }
        if length < least {
            return Err(ReadError::LengthNotMinimal(length));
        }
        let payload_bytes = self.admit(kind, length)?;

        let Some((&mask, payload)) = masked.split_first_chunk() else { return Ok(None) };
        let frame = Frame { kind, mask, payload_bytes, remaining_bytes: payload_bytes };
        Ok(Some((frame, bytes.len() - payload.len())))
    }

    /// What the first byte of a frame says, where it may stand at this point of the connection.
    fn frame_kind(&self, first: u8) -> Result<FrameKind, ReadError> {
        let opcode = Opcode::from_first_byte(first);
        let deflated = first & RSV1 != 0;
        let may_be = self.inflates && matches!(opcode, Some(Opcode::Text | Opcode::Binary));
        if first & RESERVED_BITS & !RSV1 != 0 || (deflated && !may_be) {
            return Err(ReadError::ReservedBits);
        }
        let fin = first & FIN != 0;
        let opens = |kind| match self.message {
            None => Ok(FrameKind::Data { opens: Some(Message { kind, deflated }), fin }),
            Some(_) => Err(ReadError::MessageInterrupted),
        };
        let control = |kind| if fin { Ok(FrameKind::Control(kind)) } else { Err(ReadError::ControlFragmented) };
        match opcode {
            Some(Opcode::Continuation) if self.message.is_none() => Err(ReadError::ContinuationWithoutStart),
            Some(Opcode::Continuation) => Ok(FrameKind::Data { opens: None, fin }),
            Some(Opcode::Text) => opens(MessageKind::Text),
            Some(Opcode::Binary) => opens(MessageKind::Binary),
            Some(Opcode::Close) => control(ControlKind::Close),
            Some(Opcode::Ping) => control(ControlKind::Ping),
            Some(Opcode::Pong) => control(ControlKind::Pong),
            None => Err(ReadError::ReservedOpcode(first & OPCODE_BITS)),
        }
    }

    /// The length of a frame, where the message it belongs to stays within the limit with it.
    fn admit(&self, kind: FrameKind, length: u64) -> Result<u32, ReadError> {
        let limit = match kind {
            // Whole frames of the same message are all that is held when a header is read.
            FrameKind::Data { opens, .. } => {
                u64::from(self.bytes_max(opens.or(self.message))).saturating_sub(self.buf.len() as u64)
            }
            FrameKind::Control(_) => CONTROL_PAYLOAD_BYTES_MAX as u64,
        };
        match u32::try_from(length) {
            Ok(payload_bytes) if length <= limit => Ok(payload_bytes),
            _ => Err(ReadError::MessageTooBig { limit: self.max_message_bytes as usize }),
        }
    }

    /// What may be held of a message.
    fn bytes_max(&self, message: Option<Message>) -> u32 {
        match message {
            Some(Message { deflated: true, .. }) => deflated_bytes_max(self.max_message_bytes),
            _ => self.max_message_bytes,
        }
    }

    fn data(
        &mut self,
        frame: &Frame,
        fin: bool,
        payload: &[u8],
        inflated: &mut usize,
        sink: &mut impl FnMut(Incoming<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ReadError> {
        let ends_message = fin && frame.remaining_bytes == 0;
        // An empty buffer means that the payload is the whole message: earlier fragments, if any, were empty.
        let whole = ends_message && self.buf.is_empty();
        if !whole {
            self.keep(payload);
            self.check_utf8()?;
        }
        if !ends_message {
            return Ok(ControlFlow::Continue(()));
        }
        let bytes = if whole { payload } else { self.buf.as_slice() };
        // There is always a message here: a data frame opens one or was refused for want of one.
        let flow = match self.message {
            Some(Message { kind, deflated: true }) => {
                deflate::inflate(bytes, self.max_message_bytes as usize, |bytes| {
                    *inflated = bytes.len();
                    Ok(sink(Incoming::message(kind, bytes)?))
                })?
            }
            message => sink(Incoming::message(message.map_or(MessageKind::Binary, |message| message.kind), bytes)?),
        };
        self.end_message();
        Ok(flow)
    }

    fn control(
        &mut self,
        frame: &Frame,
        kind: ControlKind,
        payload: &[u8],
        sink: &mut impl FnMut(Incoming<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ReadError> {
        if payload.len() == frame.payload_bytes as usize {
            return Ok(flow_behind(kind, sink(Incoming::control(kind, payload)?)));
        }
        self.keep(payload);
        if frame.remaining_bytes > 0 {
            return Ok(ControlFlow::Continue(()));
        }
        let message_bytes = self.buf.len() - frame.payload_bytes as usize;
        let flow = flow_behind(kind, sink(Incoming::control(kind, &self.buf[message_bytes..])?));
        if message_bytes == 0 {
            self.buf = Vec::new();
        } else {
            self.buf.truncate(message_bytes);
        }
        Ok(flow)
    }

    /// Adds to the buffer. It doubles, but not past what a message and a control frame can need.
    fn keep(&mut self, payload: &[u8]) {
        let needed = self.buf.len() + payload.len();
        if needed > self.buf.capacity() {
            let ceiling = (self.bytes_max(self.message) as usize).saturating_add(CONTROL_PAYLOAD_BYTES_MAX);
            let doubled = self.buf.capacity().saturating_mul(2).min(ceiling);
            self.buf.reserve_exact(doubled.max(needed) - self.buf.len());
        }
        self.buf.extend_from_slice(payload);
    }

    /// Refuses an unfinished text message that no further byte can make UTF-8. Only bytes not yet known to be good are
    /// looked at: what is new, and up to three that began a character.
    fn check_utf8(&mut self) -> Result<(), ReadError> {
        let Some(Message { kind: MessageKind::Text, deflated: false }) = self.message else { return Ok(()) };
        let good = match str::from_utf8(&self.buf[self.utf8_bytes as usize..]) {
            Ok(text) => text.len(),
            Err(error) if error.error_len().is_some() => return Err(ReadError::TextNotUtf8),
            Err(error) => error.valid_up_to(),
        };
        // No loss: the buffer holds at most `max_message_bytes` of a message.
        self.utf8_bytes += good as u32;
        Ok(())
    }

    fn end_message(&mut self) {
        self.buf = Vec::new();
        self.utf8_bytes = 0;
        self.message = None;
    }
}

/// Nothing follows a close frame, whatever the sink says.
fn flow_behind(kind: ControlKind, said: ControlFlow<()>) -> ControlFlow<()> {
    if matches!(kind, ControlKind::Close) { ControlFlow::Break(()) } else { said }
}

impl fmt::Debug for FrameReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the buffer: payloads must not reach a log.
        f.debug_struct("FrameReader")
            .field("held_bytes", &self.buf.len())
            .field("max_message_bytes", &self.max_message_bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use proptest::{collection::vec, prelude::*};
    use tokio_tungstenite::tungstenite::protocol::frame::{
        Frame as PeerFrame, FrameHeader,
        coding::{Control, Data, OpCode},
    };

    use super::*;
    use crate::protocol::close::CloseCode;

    const LIMIT: usize = 1 << 20;
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    #[derive(Clone, Debug, PartialEq)]
    enum Heard {
        Text(String),
        Binary(Vec<u8>),
        Ping(Vec<u8>),
        Pong(Vec<u8>),
        Close(Option<(u16, String)>),
    }

    impl From<Incoming<'_>> for Heard {
        fn from(incoming: Incoming<'_>) -> Self {
            match incoming {
                Incoming::Text(text) => Self::Text(text.into()),
                Incoming::Binary(bytes) => Self::Binary(bytes.into()),
                Incoming::Ping(bytes) => Self::Ping(bytes.into()),
                Incoming::Pong(bytes) => Self::Pong(bytes.into()),
                Incoming::Close(close) => Self::Close(close.map(|(code, reason)| (code.0, reason.into()))),
            }
        }
    }

    fn text(text: &str) -> Heard {
        Heard::Text(text.into())
    }

    /// What came out of a reader, and how it ended: still open, `Break`, or an error.
    type Outcome = (Vec<Heard>, Result<ControlFlow<()>, ReadError>);

    const OPEN: Result<ControlFlow<()>, ReadError> = Ok(ControlFlow::Continue(()));
    const ENDED: Result<ControlFlow<()>, ReadError> = Ok(ControlFlow::Break(()));

    /// Feeds `input` in pieces of these sizes, then the rest, and holds the reader to its bound after every piece.
    fn read_in_pieces(limit: usize, input: &[u8], pieces: impl IntoIterator<Item = usize>) -> Outcome {
        let mut reader = FrameReader::new(limit);
        let mut heard = Vec::new();
        let mut input = input.to_vec();
        let mut rest = input.as_mut_slice();
        let mut pieces = pieces.into_iter();
        let mut last = OPEN;
        while !rest.is_empty() {
            let size = pieces.next().unwrap_or(usize::MAX).min(rest.len());
            let (piece, after) = rest.split_at_mut(size);
            rest = after;
            last = reader.feed(piece, &mut |incoming| {
                heard.push(incoming.into());
                ControlFlow::Continue(())
            });
            assert!(reader.buf.capacity() <= limit + CONTROL_PAYLOAD_BYTES_MAX, "holds {}", reader.buf.capacity());
            assert!(!reader.is_idle() || reader.buf.capacity() == 0, "an idle reader holds memory");
            if last != OPEN {
                assert!(reader.is_idle());
                break;
            }
        }
        (heard, last)
    }

    /// Reads `input` whole, byte by byte and cut at every position, and demands the same of all three.
    fn read(limit: usize, input: &[u8]) -> Outcome {
        let whole = read_in_pieces(limit, input, []);
        assert_eq!(read_in_pieces(limit, input, iter::repeat(1)), whole, "byte by byte");
        for at in 1..input.len() {
            assert_eq!(read_in_pieces(limit, input, [at]), whole, "cut at {at}");
        }
        whole
    }

    /// A client's frame with `first` as its first byte, in the shortest form.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            n @ 0..=125 => out.push(0x80 | n as u8),
            n @ 126..=0xffff => {
                out.push(0x80 | 126);
                out.extend((n as u16).to_be_bytes());
            }
            n => {
                out.push(0x80 | 127);
                out.extend((n as u64).to_be_bytes());
            }
        }
        out.extend(MASK);
        out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        out
    }

    fn fails(input: &[u8], error: ReadError, code: u16) {
        assert_eq!(read(LIMIT, input), (vec![], Err(error)), "{input:02x?}");
        assert_eq!(error.close_code(), CloseCode(code));
    }

    #[test]
    fn an_idle_reader_is_small_and_holds_nothing() {
        assert_eq!(size_of::<FrameReader>(), 56);
        let reader = FrameReader::new(LIMIT);
        assert!(reader.is_idle());
        assert_eq!(reader.buf.capacity(), 0);
    }

    #[test]
    fn the_examples_of_section_5_7_are_read() {
        let single = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(read(LIMIT, &single), (vec![text("Hello")], OPEN));
        let pong = [0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(read(LIMIT, &pong), (vec![Heard::Pong(b"Hello".into())], OPEN));
        let fragments = [frame(0x01, b"Hel"), frame(0x80, b"lo")].concat();
        assert_eq!(read(LIMIT, &fragments), (vec![text("Hello")], OPEN));
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(read(LIMIT, &frame(0x82, &bytes)), (vec![Heard::Binary(bytes)], OPEN));
    }

    #[test]
    fn the_largest_length_form_is_read() {
        let payload: Vec<u8> = (0..65_536u32).map(|i| (i * 7) as u8).collect();
        let input = frame(0x82, &payload);
        let expected = (vec![Heard::Binary(payload)], OPEN);
        assert_eq!(read_in_pieces(LIMIT, &input, []), expected);
        assert_eq!(read_in_pieces(LIMIT, &input, iter::repeat(1)), expected);
        for at in (1..40).chain(input.len() - 20..input.len()) {
            assert_eq!(read_in_pieces(LIMIT, &input, [at]), expected, "cut at {at}");
        }
    }

    // Section 5.1: "a server MUST close the connection upon receiving a frame that is not masked".
    #[test]
    fn an_unmasked_frame_is_refused() {
        fails(b"\x81\x05Hello", ReadError::Unmasked, 1002);
        fails(b"\x89\x00", ReadError::Unmasked, 1002);
    }

    // Section 5.2: RSV1–3 "MUST be 0 unless an extension is negotiated".
    #[test]
    fn each_reserved_bit_is_refused() {
        for bit in [0x40, 0x20, 0x10] {
            fails(&frame(0x81 | bit, b"a"), ReadError::ReservedBits, 1002);
            fails(&frame(0x89 | bit, b""), ReadError::ReservedBits, 1002);
        }
    }

    // Section 5.2: "If an unknown opcode is received, the receiving endpoint MUST fail the WebSocket connection".
    #[test]
    fn every_reserved_opcode_is_refused() {
        for opcode in (0x3..=0x7).chain(0xb..=0xf) {
            fails(&frame(0x80 | opcode, b"a"), ReadError::ReservedOpcode(opcode), 1002);
            fails(&frame(opcode, b"a"), ReadError::ReservedOpcode(opcode), 1002);
        }
    }

    // Section 5.2: "the minimal number of bytes MUST be used to encode the length", "the most significant bit MUST be 0".
    #[test]
    fn a_length_in_another_than_its_shortest_form_is_refused() {
        for length in [0u16, 1, 125] {
            let input = [&[0x82, 0xfe], &length.to_be_bytes()[..], &MASK].concat();
            fails(&input, ReadError::LengthNotMinimal(length.into()), 1002);
        }
        for length in [0u64, 125, 126, 65_535] {
            let input = [&[0x82, 0xff], &length.to_be_bytes()[..], &MASK].concat();
            fails(&input, ReadError::LengthNotMinimal(length), 1002);
        }
        for length in [1u64 << 63, u64::MAX] {
            let input = [&[0x82, 0xff], &length.to_be_bytes()[..], &MASK].concat();
            fails(&input, ReadError::LengthTopBit, 1002);
        }
        for length in [125, 126, 127, 300] {
            let payload = vec![b'x'; length];
            assert_eq!(read(LIMIT, &frame(0x82, &payload)), (vec![Heard::Binary(payload)], OPEN));
        }
    }

    // Section 5.3: the mask's byte i mod 4 goes with byte i of the payload.
    #[test]
    fn masks_come_off_at_every_length_and_every_alignment() {
        let plain: Vec<u8> = (0..67).collect();
        for length in 0..plain.len() {
            for at in 0..=length {
                let mut masked: Vec<u8> =
                    plain[..length].iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
                let mut mask = MASK;
                let (left, right) = masked.split_at_mut(at);
                unmask(left, &mut mask);
                unmask(right, &mut mask);
                assert_eq!(masked, plain[..length], "{length} bytes cut at {at}");
            }
        }
    }

    #[test]
    fn a_mask_of_zeros_is_a_mask() {
        assert_eq!(read(LIMIT, b"\x81\x82\0\0\0\0hi"), (vec![text("hi")], OPEN));
    }

    // Section 5.4.
    #[test]
    fn fragments_become_one_message_and_may_be_empty() {
        let input = [frame(0x01, b""), frame(0x00, b"ab"), frame(0x00, b""), frame(0x00, b"c"), frame(0x80, b"")];
        assert_eq!(read(LIMIT, &input.concat()), (vec![text("abc")], OPEN));
        let nothing = [frame(0x02, b""), frame(0x00, b""), frame(0x80, b"")];
        assert_eq!(read(LIMIT, &nothing.concat()), (vec![Heard::Binary(vec![])], OPEN));
        let late = [frame(0x01, b""), frame(0x80, b"all of it")];
        assert_eq!(read(LIMIT, &late.concat()), (vec![text("all of it")], OPEN));
        let empty = [frame(0x81, b""), frame(0x82, b""), frame(0x81, b"x")];
        assert_eq!(read(LIMIT, &empty.concat()), (vec![text(""), Heard::Binary(vec![]), text("x")], OPEN));
    }

    // Section 5.4: "Control frames MAY be injected in the middle of a fragmented message".
    #[test]
    fn control_frames_between_fragments_come_out_at_once() {
        let input = [
            frame(0x01, b"Hel"),
            frame(0x89, b"are you there"),
            frame(0x8a, b""),
            frame(0x00, b"l"),
            frame(0x89, &[7; 125]),
            frame(0x80, b"o"),
            frame(0x81, b"next"),
        ];
        let expected = vec![
            Heard::Ping(b"are you there".into()),
            Heard::Pong(vec![]),
            Heard::Ping(vec![7; 125]),
            text("Hello"),
            text("next"),
        ];
        assert_eq!(read(LIMIT, &input.concat()), (expected, OPEN));
        let leaves = [frame(0x01, b"Hel"), frame(0x88, b"\x03\xe8bye"), frame(0x80, b"lo")];
        assert_eq!(read(LIMIT, &leaves.concat()), (vec![Heard::Close(Some((1000, "bye".into())))], ENDED));
    }

    #[test]
    fn a_continuation_needs_a_message_to_continue() {
        fails(&frame(0x80, b"lo"), ReadError::ContinuationWithoutStart, 1002);
        fails(&frame(0x00, b""), ReadError::ContinuationWithoutStart, 1002);
        let after_end = [frame(0x01, b"a"), frame(0x80, b"b"), frame(0x80, b"c")].concat();
        assert_eq!(read(LIMIT, &after_end), (vec![text("ab")], Err(ReadError::ContinuationWithoutStart)));
    }

    #[test]
    fn a_message_must_not_begin_inside_another() {
        for opens in [0x01, 0x02] {
            for first in [0x01, 0x02, 0x81, 0x82] {
                fails(&[frame(opens, b""), frame(first, b"a")].concat(), ReadError::MessageInterrupted, 1002);
            }
        }
    }

    // Section 5.5: "All control frames MUST have a payload length of 125 bytes or less and MUST NOT be fragmented."
    #[test]
    fn control_frames_are_short_and_whole() {
        for opcode in [0x8, 0x9, 0xa] {
            fails(&frame(opcode, b""), ReadError::ControlFragmented, 1002);
            fails(&frame(0x80 | opcode, &[0; 126]), ReadError::ControlTooLong, 1002);
            fails(&frame(0x80 | opcode, &vec![0; 65_536])[..20], ReadError::ControlTooLong, 1002);
        }
    }

    // Section 5.5.1.
    #[test]
    fn a_close_frame_ends_the_reading() {
        let closes = |payload: &[u8]| read(LIMIT, &[frame(0x88, payload), frame(0x81, b"too late")].concat());
        assert_eq!(closes(b""), (vec![Heard::Close(None)], ENDED));
        assert_eq!(closes(b"\x03\xe8"), (vec![Heard::Close(Some((1000, String::new())))], ENDED));
        assert_eq!(
            closes(b"\x0f\xa1au revoir \xc3\xa0"),
            (vec![Heard::Close(Some((4001, "au revoir à".into())))], ENDED)
        );
        let reason = [b"\x03\xe9", &[b'x'; 123][..]].concat();
        assert_eq!(closes(&reason), (vec![Heard::Close(Some((1001, "x".repeat(123))))], ENDED));
        fails(&frame(0x88, b"\x03"), ReadError::CloseCodeCut, 1002);
        fails(&frame(0x88, b"\x03\xe8\xff"), ReadError::CloseReasonNotUtf8, 1007);
        fails(&frame(0x88, b"\x03\xe8cut \xc3"), ReadError::CloseReasonNotUtf8, 1007);
    }

    // Section 7.4.
    #[test]
    fn a_close_code_that_must_not_be_sent_is_refused() {
        for code in [0u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
            fails(&frame(0x88, &code.to_be_bytes()), ReadError::CloseCodeInvalid(code), 1002);
        }
        for code in [1000u16, 1001, 1002, 1003, 1007, 1011, 1014, 3000, 3999, 4000, 4999] {
            let closed = vec![Heard::Close(Some((code, String::new())))];
            assert_eq!(read(LIMIT, &frame(0x88, &code.to_be_bytes())), (closed, ENDED));
        }
    }

    // Section 8.1, and 5.6: a fragment "might include a partial UTF-8 sequence; however, the whole message MUST" be valid.
    #[test]
    fn text_is_utf8_across_its_fragments() {
        let plain = "κόσμε 🦀 z";
        for at in 0..=plain.len() {
            let (left, right) = plain.as_bytes().split_at(at);
            let input = [frame(0x01, left), frame(0x89, b"p"), frame(0x80, right)].concat();
            assert_eq!(read(LIMIT, &input), (vec![Heard::Ping(b"p".into()), text(plain)], OPEN));
        }
        let single_bytes: Vec<Vec<u8>> = plain.bytes().map(|byte| frame(0x00, &[byte])).collect();
        let input = [frame(0x01, b""), single_bytes.concat(), frame(0x80, b"")].concat();
        assert_eq!(read_in_pieces(LIMIT, &input, []), (vec![text(plain)], OPEN));
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_as_soon_as_it_can_be_told() {
        let bad: [&[u8]; 6] = [b"\xff", b"a\xc3(", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"cut \xf0\x9f"];
        for payload in bad {
            fails(&frame(0x81, payload), ReadError::TextNotUtf8, 1007);
            fails(&[frame(0x01, payload), frame(0x80, b"")].concat(), ReadError::TextNotUtf8, 1007);
            let bytes = vec![Heard::Binary(payload.into())];
            assert_eq!(read(LIMIT, &frame(0x82, payload)), (bytes, OPEN));
        }
        // The frame says 100 bytes and its message does not end, but the first four decide it.
        let mut early = frame(0x01, &[&b"abc\xff"[..], &[b'x'; 96]].concat());
        early.truncate(6 + 4);
        fails(&early, ReadError::TextNotUtf8, 1007);
    }

    #[test]
    fn a_message_over_the_limit_is_refused_by_its_header() {
        let limit = 200;
        let fits = frame(0x82, &[1; 200]);
        assert_eq!(read(limit, &fits), (vec![Heard::Binary(vec![1; 200])], OPEN));
        // No mask and no payload is needed to tell.
        let too_big = Err(ReadError::MessageTooBig { limit });
        assert_eq!(read(limit, &frame(0x82, &[1; 201])[..4]), (vec![], too_big));
        for length in [1u64 << 16, 1 << 32, (1 << 63) - 1] {
            let input = [&[0x82, 0xff], &length.to_be_bytes()[..]].concat();
            assert_eq!(read(limit, &input), (vec![], too_big));
        }
        assert_eq!(ReadError::MessageTooBig { limit }.close_code(), CloseCode::TOO_BIG);
    }

    #[test]
    fn the_limit_is_on_the_sum_of_the_fragments_and_not_on_control_frames() {
        let limit = 10;
        let fits = [frame(0x01, b"12345"), frame(0x89, &[0; 125]), frame(0x80, b"67890")].concat();
        assert_eq!(read(limit, &fits), (vec![Heard::Ping(vec![0; 125]), text("1234567890")], OPEN));
        let over = [frame(0x01, b"12345"), frame(0x00, b"67890"), frame(0x80, b"1")].concat();
        assert_eq!(read(limit, &over), (vec![], Err(ReadError::MessageTooBig { limit })));
        let next = [frame(0x81, b"1234567890"), frame(0x81, b"1234567890")].concat();
        assert_eq!(read(limit, &next), (vec![text("1234567890"), text("1234567890")], OPEN));
    }

    #[test]
    fn a_raised_limit_holds_for_what_comes_after() {
        let mut reader = FrameReader::new(10);
        let mut heard = Vec::new();
        let mut sink = |incoming: Incoming<'_>| {
            heard.push(Heard::from(incoming));
            ControlFlow::Continue(())
        };
        assert_eq!(reader.feed(&mut frame(0x81, b"auth"), &mut sink), OPEN);
        reader.set_max_message_bytes(20);
        assert_eq!(reader.feed(&mut frame(0x81, b"12345678901234567890"), &mut sink), OPEN);
        reader.set_max_message_bytes(usize::MAX);
        assert_eq!(reader.feed(&mut frame(0x81, &[b'x'; 100]), &mut sink), OPEN);
        assert_eq!(heard.len(), 3);
    }

    #[test]
    fn a_sink_that_breaks_hears_no_more() {
        let mut reader = FrameReader::new(LIMIT);
        let mut input = [frame(0x81, b"one"), frame(0x81, b"two"), frame(0x81, b"three")].concat();
        let mut heard = 0;
        let mut sink = |_: Incoming<'_>| {
            heard += 1;
            if heard == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        assert_eq!(reader.feed(&mut input, &mut sink), ENDED);
        assert_eq!(reader.feed(&mut frame(0x81, b"four"), &mut sink), ENDED);
        assert_eq!(heard, 2);
        assert!(reader.is_idle());
    }

    #[test]
    fn a_whole_frame_is_handed_out_from_the_input_and_a_cut_one_gives_its_memory_back() {
        let mut reader = FrameReader::new(LIMIT);
        let mut input = frame(0x81, b"in place");
        let range = input.as_ptr_range();
        let flow = reader.feed(&mut input, &mut |incoming| {
            let Incoming::Text(text) = incoming else { panic!("{incoming:?}") };
            assert!(range.contains(&text.as_ptr()));
            ControlFlow::Continue(())
        });
        assert_eq!(flow, OPEN);

        let mut ignore = |_: Incoming<'_>| ControlFlow::Continue(());
        let mut input = frame(0x82, &[1; 1000]);
        let (left, right) = input.split_at_mut(500);
        assert_eq!(reader.feed(left, &mut ignore), OPEN);
        assert!(!reader.is_idle());
        assert_eq!(reader.feed(right, &mut ignore), OPEN);
        assert!(reader.is_idle());
        assert_eq!(reader.buf.capacity(), 0);

        // A ping that was cut, with no message around it.
        let mut input = frame(0x89, b"ping");
        let (left, right) = input.split_at_mut(8);
        assert_eq!(reader.feed(left, &mut ignore), OPEN);
        assert!(!reader.is_idle());
        assert_eq!(reader.feed(right, &mut ignore), OPEN);
        assert_eq!(reader.buf.capacity(), 0);
    }

    #[test]
    fn memory_follows_what_was_received_and_not_what_was_announced() {
        let mut reader = FrameReader::new(LIMIT);
        let mut ignore = |_: Incoming<'_>| ControlFlow::Continue(());
        let mut input = frame(0x82, &vec![1; LIMIT]);
        assert_eq!(reader.feed(&mut input[..14], &mut ignore), OPEN);
        assert_eq!(reader.buf.capacity(), 0);
        assert_eq!(reader.feed(&mut input[14..114], &mut ignore), OPEN);
        assert_eq!(reader.buf.capacity(), 100);
        assert_eq!(reader.feed(&mut input[114..115], &mut ignore), OPEN);
        assert_eq!(reader.buf.capacity(), 200);
    }

    #[test]
    fn tiny_pieces_and_tiny_fragments_cost_no_more_than_their_number() {
        // Counted, not timed: how often the buffer moves, and how much of the text is left to check again.
        let big = frame(0x81, "é".repeat(20_000).as_bytes());
        let fragments: Vec<u8> = iter::once(frame(0x01, b""))
            .chain("é".repeat(20_000).bytes().map(|byte| frame(0x00, &[byte])))
            .flatten()
            .collect();
        for mut input in [big, fragments] {
            let mut reader = FrameReader::new(LIMIT);
            let (mut moves, mut capacity) = (0, 0);
            for byte in input.chunks_mut(1) {
                assert_eq!(reader.feed(byte, &mut |_| ControlFlow::Continue(())), OPEN);
                assert!(reader.buf.len() - reader.utf8_bytes as usize <= 3);
                if reader.buf.capacity() > capacity {
                    moves += 1;
                }
                capacity = reader.buf.capacity();
            }
            assert!(moves <= 20, "the buffer moved {moves} times");
        }
    }

    #[test]
    fn nothing_a_client_said_is_in_a_debug_text() {
        let mut reader = FrameReader::new(LIMIT);
        let mut input = frame(0x81, b"secret");
        let cut = input.len() - 1;
        let mut shown = String::new();
        let mut sink = |incoming: Incoming<'_>| {
            shown = format!("{incoming:?}");
            ControlFlow::Continue(())
        };
        assert_eq!(reader.feed(&mut input[..cut], &mut sink), OPEN);
        let held = format!("{reader:?}");
        assert_eq!(reader.feed(&mut input[cut..], &mut sink), OPEN);
        assert_eq!(shown, "Text(6 bytes)");
        assert!(held.contains("held_bytes: 5") && !held.contains("115"), "{held}");
    }

    /// A message as a client might send it: where it is cut into fragments, and what comes before each of them.
    #[derive(Clone, Debug)]
    struct Sent {
        message: Heard,
        cuts: Vec<prop::sample::Index>,
        between: Vec<Option<Heard>>,
    }

    fn arb_sent() -> impl Strategy<Value = Sent> {
        let length = prop_oneof![6 => 0usize..40, 2 => 120usize..132, 1 => 65_530usize..65_545];
        let filler = vec(any::<char>(), 1..8).prop_map(String::from_iter);
        let message = (any::<bool>(), length, filler).prop_map(|(is_text, length, filler)| {
            let mut text = filler.repeat(length / filler.len() + 1);
            text.truncate(text.floor_char_boundary(length));
            if is_text { Heard::Text(text) } else { Heard::Binary(text.into_bytes()) }
        });
        let control = (any::<bool>(), vec(any::<u8>(), 0..=125))
            .prop_map(|(ping, payload)| if ping { Heard::Ping(payload) } else { Heard::Pong(payload) });
        (message, vec(any::<prop::sample::Index>(), 0..5), vec(prop::option::of(control), 6))
            .prop_map(|(message, cuts, between)| Sent { message, cuts, between })
    }

    /// Has another implementation write the frame.
    fn write_as_peer(out: &mut Vec<u8>, opcode: OpCode, is_final: bool, mask: [u8; 4], payload: &[u8]) {
        let header = FrameHeader { is_final, opcode, mask: Some(mask), ..FrameHeader::default() };
        PeerFrame::from_payload(header, payload.to_vec().into()).format(out).unwrap();
    }

    /// The wire bytes of these messages, and what is to be heard, in order.
    fn encode(sent: &[Sent], mut mask: impl FnMut() -> [u8; 4]) -> (Vec<u8>, Vec<Heard>) {
        let (mut wire, mut expected) = (Vec::new(), Vec::new());
        for Sent { message, cuts, between } in sent {
            let (kind, payload) = match message {
                Heard::Text(text) => (Data::Text, text.as_bytes()),
                Heard::Binary(bytes) => (Data::Binary, bytes.as_slice()),
                other => unreachable!("{other:?}"),
            };
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
            cuts.sort_unstable();
            let ends: Vec<usize> = cuts.into_iter().chain([payload.len()]).collect();
            let mut start = 0;
            for (i, (&end, control)) in ends.iter().zip(between).enumerate() {
                if let Some(control) = control {
                    let (opcode, payload) = match control {
                        Heard::Ping(payload) => (Control::Ping, payload),
                        Heard::Pong(payload) => (Control::Pong, payload),
                        other => unreachable!("{other:?}"),
                    };
                    write_as_peer(&mut wire, OpCode::Control(opcode), true, mask(), payload);
                    expected.push(control.clone());
                }
                let opcode = OpCode::Data(if i == 0 { kind } else { Data::Continue });
                write_as_peer(&mut wire, opcode, i + 1 == ends.len(), mask(), &payload[start..end]);
                start = end;
            }
            expected.push(message.clone());
        }
        (wire, expected)
    }

    fn arb_pieces() -> impl Strategy<Value = Vec<usize>> {
        prop_oneof![vec(1usize..4, 1..20), vec(1usize..300, 1..20), vec(1usize..70_000, 1..5)]
    }

    proptest! {
        #[test]
        fn what_a_client_sends_is_what_is_heard_however_it_was_framed_and_cut(
            sent in vec(arb_sent(), 1..6),
            masks in vec(any::<[u8; 4]>(), 1..7),
            pieces in arb_pieces(),
        ) {
            let mut masks = masks.into_iter().cycle();
            let (wire, expected) = encode(&sent, || masks.next().unwrap());
            prop_assert_eq!(read_in_pieces(LIMIT, &wire, []), (expected.clone(), OPEN));
            prop_assert_eq!(read_in_pieces(LIMIT, &wire, pieces.into_iter().cycle()), (expected, OPEN));
        }

        #[test]
        fn arbitrary_bytes_neither_panic_nor_bloat_and_cuts_change_nothing(
            bytes in vec(any::<u8>(), 0..400),
            limit in 0usize..300,
            pieces in arb_pieces(),
        ) {
            let whole = read_in_pieces(limit, &bytes, []);
            prop_assert_eq!(read_in_pieces(limit, &bytes, pieces.into_iter().cycle()), whole);
        }

        #[test]
        fn one_wrong_byte_in_good_traffic_neither_panics_nor_bloats(
            sent in vec(arb_sent(), 1..4),
            mask in any::<[u8; 4]>(),
            at in any::<prop::sample::Index>(),
            wrong in any::<u8>(),
            limit in prop_oneof![0usize..300, Just(LIMIT)],
            pieces in arb_pieces(),
        ) {
            let (mut wire, _) = encode(&sent, || mask);
            *at.get_mut(&mut wire) = wrong;
            let whole = read_in_pieces(limit, &wire, []);
            prop_assert_eq!(read_in_pieces(limit, &wire, pieces.into_iter().cycle()), whole);
        }
    }
}
