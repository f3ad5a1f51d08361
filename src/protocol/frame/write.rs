//! Writing: frames encoded once, whatever the number of receivers. Unmasked, never fragmented, lengths in their
//! shortest form.
//!
//! Owns the header's bytes. Rule: a frame is whole before anyone sees it, in one piece of memory, so that an outbox only
//! ever counts, queues and writes bytes.

use std::fmt;

use bytes::{Buf, Bytes};

use super::{CONTROL_PAYLOAD_BYTES_MAX, FIN, LENGTH_16, LENGTH_64, Opcode};
use crate::{limits::CLOSE_REASON_BYTES_MAX, protocol::close::CloseCode};

/// The longest header of a server's frame: two bytes and eight of length.
const HEADER_BYTES_MAX: usize = 10;
/// A control frame: the header is two bytes.
const CONTROL_FRAME_BYTES_MAX: usize = 2 + CONTROL_PAYLOAD_BYTES_MAX;

const _: () = assert!(2 + CLOSE_REASON_BYTES_MAX == CONTROL_PAYLOAD_BYTES_MAX, "a close frame is a code and a reason");

/// A header at the end of its array, so that it can be laid right before a payload; its length is the second value.
pub(super) fn header(first: u8, payload_bytes: usize) -> ([u8; HEADER_BYTES_MAX], usize) {
    let mut bytes = [0; HEADER_BYTES_MAX];
    let length = match u16::try_from(payload_bytes) {
        // No loss: below 126.
        Ok(short) if short < u16::from(LENGTH_16) => {
            bytes[8..].copy_from_slice(&[first, short as u8]);
            2
        }
        Ok(medium) => {
            bytes[6..8].copy_from_slice(&[first, LENGTH_16]);
            bytes[8..].copy_from_slice(&medium.to_be_bytes());
            4
        }
        Err(_) => {
            bytes[..2].copy_from_slice(&[first, LENGTH_64]);
            bytes[2..].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
            10
        }
    };
    (bytes, length)
}

/// Writes the header of an unfragmented, unmasked frame of `payload_bytes`: 2, 4 or 10 bytes.
///
/// A control frame's payload has at most 125 bytes; [`ControlFrame`] sees to that.
pub fn write_header(out: &mut Vec<u8>, opcode: Opcode, payload_bytes: usize) {
    let (bytes, length) = header(FIN | opcode as u8, payload_bytes);
    out.extend_from_slice(&bytes[HEADER_BYTES_MAX - length..]);
}

/// A text message as a frame. That `payload` is UTF-8 is the caller's promise.
pub fn text_frame(payload: &[u8]) -> Bytes {
    frame(Opcode::Text, payload)
}

/// A binary message as a frame.
pub fn binary_frame(payload: &[u8]) -> Bytes {
    frame(Opcode::Binary, payload)
}

fn frame(opcode: Opcode, payload: &[u8]) -> Bytes {
    let (header, length) = header(FIN | opcode as u8, payload.len());
    let mut out = Vec::with_capacity(length + payload.len());
    out.extend_from_slice(&header[HEADER_BYTES_MAX - length..]);
    out.extend_from_slice(payload);
    Bytes::from(out)
}

/// A frame whose payload is written straight to its place, and whose header is put before it when its length is known.
pub struct FrameBuilder {
    /// Room for the longest header, then the payload.
    buf: Vec<u8>,
    opcode: Opcode,
}

impl FrameBuilder {
    /// A text message of about `payload_capacity` bytes. That it becomes UTF-8 is the caller's promise.
    pub fn text(payload_capacity: usize) -> Self {
        Self::new(Opcode::Text, payload_capacity)
    }

    /// A binary message of about `payload_capacity` bytes.
    pub fn binary(payload_capacity: usize) -> Self {
        Self::new(Opcode::Binary, payload_capacity)
    }

    fn new(opcode: Opcode, payload_capacity: usize) -> Self {
        let mut buf = Vec::with_capacity(HEADER_BYTES_MAX.saturating_add(payload_capacity));
        buf.resize(HEADER_BYTES_MAX, 0);
        Self { buf, opcode }
    }

    /// Where the payload is appended. What is there already stays: before it lies the room for the header.
    pub fn buf(&mut self) -> &mut Vec<u8> {
        &mut self.buf
    }

    /// The length of the payload so far, in bytes.
    pub fn payload_bytes(&self) -> usize {
        self.buf.len().saturating_sub(HEADER_BYTES_MAX)
    }

    /// The frame. The payload is not copied.
    pub fn finish(self) -> Bytes {
        let Self { mut buf, opcode } = self;
        debug_assert!(buf.len() >= HEADER_BYTES_MAX, "the room for the header was taken away");
        if buf.len() < HEADER_BYTES_MAX {
            buf.resize(HEADER_BYTES_MAX, 0);
        }
        let (header, length) = header(FIN | opcode as u8, buf.len() - HEADER_BYTES_MAX);
        buf[..HEADER_BYTES_MAX].copy_from_slice(&header);
        let mut frame = Bytes::from(buf);
        // Not `slice`, which would allocate a reference count before anyone shares the frame.
        frame.advance(HEADER_BYTES_MAX - length);
        frame
    }
}

impl fmt::Debug for FrameBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the payload: none may reach a log.
        f.debug_struct("FrameBuilder")
            .field("opcode", &self.opcode)
            .field("payload_bytes", &self.payload_bytes())
            .finish_non_exhaustive()
    }
}

/// A ping, pong or close frame, held inline: none of them allocates until it has to be queued as [`Bytes`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ControlFrame {
    buf: [u8; CONTROL_FRAME_BYTES_MAX],
    len: u8,
}

impl ControlFrame {
    /// A ping. Of a `payload` over 125 bytes only the first 125 are sent.
    pub fn ping(payload: &[u8]) -> Self {
        Self::new(Opcode::Ping, &[payload])
    }

    /// A pong; it carries the ping's payload. Of one over 125 bytes (no ping has one) only the first 125 are sent.
    pub fn pong(payload: &[u8]) -> Self {
        Self::new(Opcode::Pong, &[payload])
    }

    /// A close frame. A `reason` over 123 bytes is cut, between characters. A code that must never be sent, such as
    /// [`CloseCode::NO_STATUS`], gives a close frame without code and reason.
    pub fn close(code: CloseCode, reason: &str) -> Self {
        if !code.is_valid_from_peer() {
            return Self::new(Opcode::Close, &[]);
        }
        let reason = &reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
        Self::new(Opcode::Close, &[&code.0.to_be_bytes(), reason.as_bytes()])
    }

    fn new(opcode: Opcode, parts: &[&[u8]]) -> Self {
        let mut buf = [0; CONTROL_FRAME_BYTES_MAX];
        let mut len = 2;
        for part in parts {
            let taken = part.len().min(CONTROL_FRAME_BYTES_MAX - len);
            buf[len..len + taken].copy_from_slice(&part[..taken]);
            len += taken;
        }
        // No loss in either: `len` is at most 127.
        buf[..2].copy_from_slice(&[FIN | opcode as u8, (len - 2) as u8]);
        Self { buf, len: len as u8 }
    }

    /// The frame as it is written.
    pub fn as_bytes(&self) -> &[u8] {
        &self.buf[..usize::from(self.len)]
    }
}

impl AsRef<[u8]> for ControlFrame {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl From<ControlFrame> for Bytes {
    fn from(frame: ControlFrame) -> Self {
        Bytes::copy_from_slice(frame.as_bytes())
    }
}

impl fmt::Debug for ControlFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the payload: a pong's is the client's.
        f.debug_struct("ControlFrame")
            .field("opcode", &Opcode::from_first_byte(self.buf[0]))
            .field("payload_bytes", &(self.len - 2))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Cursor, Read, Write};

    use proptest::{collection::vec, prelude::*};
    use tokio_tungstenite::tungstenite::{
        Error, Message, WebSocket,
        protocol::{CloseFrame, Role},
    };

    use super::*;

    /// What a client reads; what it would answer goes nowhere.
    struct Wire(Cursor<Vec<u8>>);

    impl Read for Wire {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.0.read(buf)
        }
    }

    impl Write for Wire {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Has another implementation, as a client, read all of `wire`.
    fn read_as_client(wire: &[u8]) -> Vec<Message> {
        let mut client = WebSocket::from_raw_socket(Wire(Cursor::new(wire.to_vec())), Role::Client, None);
        let mut messages = Vec::new();
        loop {
            match client.read() {
                Ok(message) => messages.push(message),
                // Nothing is left, or the close frame was the last.
                Err(Error::Protocol(_) | Error::ConnectionClosed) => return messages,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn the_examples_of_section_5_7_are_written() {
        assert_eq!(&text_frame(b"Hello")[..], b"\x81\x05Hello");
        assert_eq!(ControlFrame::ping(b"Hello").as_bytes(), b"\x89\x05Hello");
        assert_eq!(ControlFrame::pong(b"Hello").as_bytes(), b"\x8a\x05Hello");
        assert_eq!(&binary_frame(&[1; 256])[..5], b"\x82\x7e\x01\x00\x01");
        assert_eq!(&binary_frame(&[1; 65_536])[..11], b"\x82\x7f\0\0\0\0\0\x01\0\0\x01");
    }

    #[test]
    fn lengths_take_their_shortest_form() {
        for (payload_bytes, expected) in [
            (0, &b"\x81\x00"[..]),
            (125, b"\x81\x7d"),
            (126, b"\x81\x7e\x00\x7e"),
            (65_535, b"\x81\x7e\xff\xff"),
            (65_536, b"\x81\x7f\0\0\0\0\0\x01\0\0"),
        ] {
            let mut out = vec![b'<'];
            write_header(&mut out, Opcode::Text, payload_bytes);
            assert_eq!(out, [b"<", expected].concat(), "{payload_bytes}");
        }
    }

    #[test]
    fn a_builder_makes_the_same_frame_without_moving_the_payload() {
        for payload_bytes in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![b'x'; payload_bytes];
            let mut builder = FrameBuilder::text(payload_bytes);
            builder.buf().extend_from_slice(&payload);
            assert_eq!(builder.payload_bytes(), payload_bytes);
            let written_to = builder.buf().as_ptr_range().end;
            let frame = builder.finish();
            assert_eq!(frame.as_ptr_range().end, written_to);
            assert_eq!(frame, text_frame(&payload));
        }
    }

    #[test]
    fn json_goes_straight_into_a_frame() {
        let mut builder = FrameBuilder::text(0);
        serde_json::to_writer(builder.buf(), &serde_json::json!({ "type": "pong" })).unwrap();
        assert_eq!(&builder.finish()[..], b"\x81\x0f{\"type\":\"pong\"}");
    }

    #[test]
    fn a_close_reason_is_cut_between_characters() {
        let frame = ControlFrame::close(CloseCode::UNAUTHORIZED, &"é".repeat(100));
        let payload = [&4401u16.to_be_bytes()[..], "é".repeat(61).as_bytes()].concat();
        assert_eq!(frame.as_bytes(), [&[0x88, 124], &payload[..]].concat());
        let frame = ControlFrame::close(CloseCode::NORMAL, &"x".repeat(200));
        assert_eq!(frame.as_bytes().len(), 127);
    }

    #[test]
    fn a_code_that_must_not_be_sent_is_left_out() {
        for code in [CloseCode::NO_STATUS, CloseCode::ABNORMAL, CloseCode(0)] {
            assert_eq!(ControlFrame::close(code, "why").as_bytes(), b"\x88\x00");
        }
    }

    #[test]
    fn a_control_payload_never_exceeds_its_bound() {
        assert_eq!(ControlFrame::ping(&[1; 125]).as_bytes().len(), 127);
        assert_eq!(ControlFrame::ping(&[1; 126]), ControlFrame::ping(&[1; 125]));
        assert_eq!(size_of::<ControlFrame>(), 128);
    }

    #[test]
    fn nothing_of_a_payload_is_in_a_debug_text() {
        let mut builder = FrameBuilder::text(0);
        builder.buf().extend_from_slice(b"secret");
        assert_eq!(format!("{builder:?}"), "FrameBuilder { opcode: Text, payload_bytes: 6, .. }");
        let ping = format!("{:?}", ControlFrame::ping(b"secret"));
        assert_eq!(ping, "ControlFrame { opcode: Some(Ping), payload_bytes: 6, .. }");
    }

    proptest! {
        #[test]
        fn a_client_reads_what_was_written(
            parts in vec(any::<char>(), 0..20),
            repeats in prop_oneof![0usize..20, Just(5_000)],
            control in vec(any::<u8>(), 0..=125),
            code in prop_oneof![1000u16..=1003, 1007u16..=1013, 3000u16..=4999],
        ) {
            let text = String::from_iter(parts).repeat(repeats);
            let bytes = text.clone().into_bytes();
            let mut built = FrameBuilder::binary(0);
            built.buf().extend_from_slice(&bytes);
            let close = ControlFrame::close(CloseCode(code), "why");
            let wire = [
                text_frame(text.as_bytes()),
                ControlFrame::ping(&control).into(),
                binary_frame(&bytes),
                ControlFrame::pong(&control).into(),
                built.finish(),
                close.into(),
            ]
            .concat();
            prop_assert_eq!(read_as_client(&wire), vec![
                Message::text(text),
                Message::Ping(control.clone().into()),
                Message::binary(bytes.clone()),
                Message::Pong(control.into()),
                Message::binary(bytes),
                Message::Close(Some(CloseFrame { code: code.into(), reason: "why".into() })),
            ]);
        }
    }
}
