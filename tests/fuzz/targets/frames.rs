//! The frame reader: what it makes of bytes is what a reader makes of them that has all of them at once and nothing to
//! save; it is the same however they are cut; and it holds no more than it may.
//!
//! The first byte says the limit, whether compression was negotiated and how the input is cut; the rest is the input.

use std::ops::ControlFlow;

use pushgate::protocol::{
    close::CloseCode,
    frame::{CONTROL_PAYLOAD_BYTES_MAX, FrameReader, Incoming, ReadError},
};

use super::{kind, size};
use crate::{inflate, memory};

pub const WORDS: &[&[u8]] = &[
    b"\x81\x85\0\0\0\0hello",
    b"\x01\x81\0\0\0\0a",
    b"\x80\x80\0\0\0\0",
    b"\x89\x80\0\0\0\0",
    b"\x88\x82\0\0\0\0\x03\xE8",
    b"\xC1\x87\0\0\0\0\xf2\x48\xcd\xc9\xc9\x07\x00",
    b"\x41\x83\0\0\0\0\xf2\x48\xcd",
    b"\x82\xFE\0\x7e\0\0\0\0",
    b"\x82\xFF\0\0\0\0\0\x01\0\0\0\0\0\0",
    b"\xE2\x98\x83",
];

/// What is heard, in words.
type Heard = Vec<(u8, Vec<u8>)>;
/// How it ended: open, closed by the peer, or failed with a code.
type End = Result<bool, u16>;

pub fn run(input: &[u8]) -> u64 {
    let Some((&how, wire)) = input.split_first() else { return 0 };
    let limit = [0, 1, 20, 125, 300, 4096, 70_000, 1 << 20][usize::from(how & 7)];
    let inflates = how & 8 != 0;
    let expected = plainly(wire, limit, inflates);
    let whole = read(wire, limit, inflates, &[]);
    // A compressed message that is both bad and too long is refused for either (`compression.rs` looks closer).
    let refused = |end: End| matches!(end, Err(1007 | 1009));
    let either = inflates && refused(whole.1) && refused(expected.1) && whole.0 == expected.0;
    if !either {
        assert_eq!(whole, expected, "the reader and the plain one (limit {limit}, inflates {inflates})");
    }
    assert_eq!(read(wire, limit, inflates, &[1]), whole, "byte by byte");
    let sizes = [usize::from(how >> 4) + 1, 3, usize::from(how) + 1];
    assert_eq!(read(wire, limit, inflates, &sizes), whole, "in pieces of {sizes:?}");
    let first = read_first(wire, limit, inflates);
    assert_eq!(first, whole, "a message at a time");
    let (heard, end) = whole;
    let shape: Vec<_> = heard.iter().take(4).map(|(opcode, payload)| (*opcode, size(payload.len()))).collect();
    kind((shape, heard.len().min(9), end, inflates, why(wire, limit, inflates)))
}

fn reader(limit: usize, inflates: bool) -> FrameReader {
    if inflates { FrameReader::inflating(limit) } else { FrameReader::new(limit) }
}

fn note(incoming: Incoming<'_>) -> (u8, Vec<u8>) {
    match incoming {
        Incoming::Text(text) => (1, text.into()),
        Incoming::Binary(bytes) => (2, bytes.into()),
        Incoming::Ping(bytes) => (9, bytes.into()),
        Incoming::Pong(bytes) => (10, bytes.into()),
        Incoming::Close(None) => (8, Vec::new()),
        Incoming::Close(Some((code, reason))) => (8, [&code.0.to_be_bytes()[..], reason.as_bytes()].concat()),
    }
}

fn read(wire: &[u8], limit: usize, inflates: bool, sizes: &[usize]) -> (Heard, End) {
    let mut reader = reader(limit, inflates);
    let mut heard = Vec::new();
    let mut wire = wire.to_vec();
    let mut rest = &mut wire[..];
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at_mut(sizes.next().copied().unwrap_or(usize::MAX).min(rest.len()));
        rest = behind;
        // What is handed out is copied here; apart from that there is the reader's own.
        let mut copied = 0;
        let (fed, peak) = memory::peak_of(|| {
            reader.feed(piece, &mut |incoming| {
                let noted = note(incoming);
                copied += noted.1.capacity() + 4 * (heard.len() + 4) * size_of::<(u8, Vec<u8>)>();
                heard.push(noted);
                ControlFlow::Continue(())
            })
        });
        // Both buffers of a growth at once; an eighth more of what is compressed; and what a thread keeps to inflate.
        let most =
            2 * (limit + limit / 8 + 256 + CONTROL_PAYLOAD_BYTES_MAX) + if inflates { 2 * limit + 300_000 } else { 0 };
        assert!(peak <= most + copied, "held {peak} bytes, of which {copied} copied, with a limit of {limit}");
        match fed {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => return (heard, Ok(true)),
            Err(error) => return (heard, Err(error.close_code().0)),
        }
    }
    (heard, Ok(false))
}

/// As a connection reads that waits for its first message.
fn read_first(wire: &[u8], limit: usize, inflates: bool) -> (Heard, End) {
    let mut reader = reader(limit, inflates);
    let mut heard = Vec::new();
    let mut rest = wire.to_vec();
    while !rest.is_empty() {
        let read = reader.feed_first(&mut rest, &mut |incoming| {
            heard.push(note(incoming));
            ControlFlow::Continue(())
        });
        match read {
            Ok((ControlFlow::Continue(()), left)) => drop(rest.drain(..rest.len() - left)),
            Ok((ControlFlow::Break(()), _)) => return (heard, Ok(true)),
            Err(error) => return (heard, Err(error.close_code().0)),
        }
    }
    (heard, Ok(false))
}

/// Which mistake it was.
fn why(wire: &[u8], limit: usize, inflates: bool) -> Option<std::mem::Discriminant<ReadError>> {
    let read = reader(limit, inflates).feed(&mut wire.to_vec(), &mut |_| ControlFlow::Continue(()));
    read.err().map(|error| std::mem::discriminant(&error))
}

/// A reader that has all of the input, written once more from the RFCs.
fn plainly(wire: &[u8], limit: usize, inflates: bool) -> (Heard, End) {
    let mut heard = Vec::new();
    let end = plain_frames(wire, limit, inflates, &mut heard);
    (heard, end)
}

fn plain_frames(mut rest: &[u8], limit: usize, inflates: bool, heard: &mut Heard) -> End {
    // Opcode, whether compressed, what came of it.
    let mut message: Option<(u8, bool, Vec<u8>)> = None;
    loop {
        let Some(&first) = rest.first() else { return Ok(false) };
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0F);
        let control = opcode >= 8;
        let deflated = first & 0x40 != 0;
        let known = matches!(opcode, 0..=2 | 8..=10);
        let misplaced = match opcode {
            0 => message.is_none(),
            1 | 2 => message.is_some(),
            _ => !fin,
        };
        if first & 0x30 != 0 || (deflated && !(inflates && matches!(opcode, 1 | 2))) || !known || misplaced {
            return Err(1002);
        }
        let Some(&second) = rest.get(1) else { return Ok(false) };
        let short = second & 0x7F;
        if second & 0x80 == 0 || (control && short > 125) {
            return Err(1002);
        }
        let width = [0, 2, 8][usize::from(short > 125) + usize::from(short > 126)];
        let Some(extended) = rest.get(2..2 + width) else { return Ok(false) };
        let length = match width {
            0 => u64::from(short),
            _ => extended.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        if length >> 63 != 0 || (width == 2 && length < 126) || (width == 8 && length < 1 << 16) {
            return Err(1002);
        }
        if !control {
            let (deflated, held) = match &message {
                Some((_, deflated, held)) => (*deflated, held.len()),
                None => (deflated, 0),
            };
            let most = if deflated { limit + limit / 8 + 256 } else { limit };
            if length > (most - held) as u64 {
                return Err(1009);
            }
        }
        let Some(mask) = rest.get(2 + width..6 + width) else { return Ok(false) };
        let there = &rest[6 + width..];
        let cut = (length as usize).min(there.len());
        let payload: Vec<u8> = there[..cut].iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        let whole = cut as u64 == length;
        rest = &there[cut..];
        if control {
            if !whole {
                return Ok(false);
            }
            if opcode == 8 {
                return plain_close(payload, heard);
            }
            heard.push((opcode, payload));
            continue;
        }
        let (opcode, deflated, held) = message.get_or_insert((opcode, deflated, Vec::new()));
        let (opcode, deflated) = (*opcode, *deflated);
        held.extend_from_slice(&payload);
        let text_fails = |held: &[u8], ends: bool| match std::str::from_utf8(held) {
            Ok(_) => false,
            Err(error) => ends || error.error_len().is_some(),
        };
        let ends = whole && fin;
        if opcode == 1 && !deflated && text_fails(held, ends) {
            return Err(1007);
        }
        if !whole {
            return Ok(false);
        }
        if ends {
            let mut bytes = message.take().unwrap().2;
            if deflated {
                bytes = match inflate::message(&bytes, limit) {
                    Ok(inflated) => inflated.bytes,
                    Err(inflate::Bad::TooLong) => return Err(1009),
                    Err(_) => return Err(1007),
                };
                if opcode == 1 && text_fails(&bytes, true) {
                    return Err(1007);
                }
            }
            heard.push((opcode, bytes));
        }
    }
}

fn plain_close(payload: Vec<u8>, heard: &mut Heard) -> End {
    if let [_] = payload[..] {
        return Err(1002);
    }
    if let [a, b, reason @ ..] = &payload[..] {
        let code = u16::from_be_bytes([*a, *b]);
        if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
            return Err(1002);
        }
        if std::str::from_utf8(reason).is_err() {
            return Err(CloseCode::INVALID_UTF8.0);
        }
    }
    heard.push((8, payload));
    Ok(true)
}
