//! The codecs: what a client says, what it is told, and the frames of both.

use std::{hint::black_box, ops::ControlFlow};

use criterion::{Criterion, Throughput};
use pushgate::{
    clock::Clock,
    protocol::{
        client,
        frame::{FrameReader, Incoming, Opcode},
        server::{self, Draft},
    },
    types::{Notification, NotificationId, Offset, Payload},
};

use super::made::{json, json_notification, notification};

/// The mask of the frames here. Its bytes are below 0x80: text that is masked with it, or unmasked twice, is ASCII
/// still, so that an input that was unmasked in place can be read again as it lies there.
const MASK: [u8; 4] = [0x15, 0x2A, 0x33, 0x4C];
/// As many small frames as one read may bring.
const MANY: usize = 64;
/// The bytes of TCP that one packet of an Ethernet carries.
const SEGMENT_BYTES: usize = 1448;
const ACK: &str = r#"{"type":"ack","offset":1769852100123456}"#;

/// Decoding of what clients say.
pub fn decode(c: &mut Criterion) {
    // Three parts with the lengths of an HS256 token's.
    let token = format!("{}.{}.{}", "h".repeat(36), "c".repeat(120), "s".repeat(43));
    let cases = [
        ("ack", ACK.to_owned(), true),
        ("ping", r#"{"type":"ping","id":"42"}"#.to_owned(), true),
        ("echo/256", format!(r#"{{"type":"echo","id":"42","data":{}}}"#, json(256)), true),
        ("auth", format!(r#"{{"type":"auth","id":"42","token":"{token}","device":"phone","binary":true}}"#), true),
        ("bad/json", r#"{"type":"ack","offset":17698521001234"#.to_owned(), false),
        ("bad/field", r#"{"type":"ack","offset":"1769852100123456"}"#.to_owned(), false),
    ];
    let mut group = c.benchmark_group("decode");
    for (name, text, good) in &cases {
        assert_eq!(client::decode(text).is_ok(), *good, "{name}");
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(*name, |b| b.iter(|| client::decode(black_box(text))));
    }
    group.finish();
}

/// Encoding of a notification up to the whole frame, and of the gateway's shorter answers.
pub fn encode(c: &mut Criterion) {
    type Encode = fn(&Notification) -> Draft;
    let text: Encode = |notification| Draft::text(notification, true, false);
    let binary: Encode = |notification| Draft::binary(notification, true, false);
    let bytes = |size: usize| notification(Payload::Binary((0..size).map(|n| n as u8).collect()));
    let offset = Offset::new(1_769_852_100_123_456);

    let mut group = c.benchmark_group("encode");
    for (name, size, notification, encode) in [
        ("json", 256, json_notification(256), text),
        ("json", 4096, json_notification(4096), text),
        ("base64", 256, bytes(256), text),
        ("base64", 4096, bytes(4096), text),
        ("binary", 256, bytes(256), binary),
        ("binary", 4096, bytes(4096), binary),
    ] {
        group.throughput(Throughput::Bytes(size));
        group.bench_function(format!("{name}/{size}"), |b| b.iter(|| encode(black_box(&notification)).seal(offset)));
    }
    let now = Clock::system().unix_millis();
    let data = json(256);
    group.throughput(Throughput::Bytes(256));
    group.bench_function("echo_response/256", |b| b.iter(|| server::echo_response(black_box(&data), Some("42"), now)));
    group.throughput(Throughput::Elements(1));
    // Every notification whose sender gave it no id, before it is encoded.
    group.bench_function("new_id", |b| b.iter(NotificationId::generate));
    group.bench_function("pong", |b| b.iter(|| server::pong(black_box(Some("42")), now)));
    group.finish();
}

/// A client's frame, masked.
fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x80 | opcode as u8];
    match payload.len() {
        short @ ..126 => out.push(0x80 | short as u8),
        medium @ 126..65_536 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// Feeds all of `input` in pieces of `piece` bytes; how many messages came of it.
fn feed(reader: &mut FrameReader, input: &mut [u8], piece: usize) -> usize {
    let mut messages = 0;
    let mut sink = |incoming: Incoming<'_>| {
        black_box(incoming);
        messages += 1;
        ControlFlow::Continue(())
    };
    for piece in input.chunks_mut(piece) {
        let fed = reader.feed(piece, &mut sink);
        assert!(matches!(fed, Ok(ControlFlow::Continue(()))), "{fed:?}");
    }
    messages
}

/// The frame reader, over what a socket gives at once and over cuts in bad places.
pub fn read(c: &mut Criterion) {
    let small = json(256);
    let large = json(64 * 1024);
    let text = |payload: &str| frame(Opcode::Text, payload.as_bytes());
    let whole = usize::MAX;
    let cases: [(&str, Vec<u8>, usize, usize); 9] = [
        ("ping", frame(Opcode::Ping, &[7; 16]), whole, 1),
        ("pong", frame(Opcode::Pong, &[7; 16]), whole, 1),
        ("pongs/64_in_one_read", frame(Opcode::Pong, &[7; 16]).repeat(MANY), whole, MANY),
        ("ack", text(ACK), whole, 1),
        ("acks/64_in_one_read", text(ACK).repeat(MANY), whole, MANY),
        ("text/256", text(&small), whole, 1),
        ("text/256_byte_by_byte", text(&small), 1, 1),
        ("text/65536", text(&large), whole, 1),
        // The header is cut, too: the first frame is followed by a second one that ends off the pieces' bounds.
        ("text/65536_in_segments", text(&large).repeat(2), SEGMENT_BYTES, 2),
    ];
    let mut group = c.benchmark_group("read");
    for (name, mut input, piece, messages) in cases {
        let mut reader = FrameReader::new(64 * 1024);
        assert_eq!(feed(&mut reader, &mut input, piece), messages, "{name}");
        assert!(reader.is_idle(), "{name}");
        group.throughput(Throughput::ElementsAndBytes { elements: messages as u64, bytes: input.len() as u64 });
        group.bench_function(name, |b| b.iter(|| feed(&mut reader, black_box(&mut input), piece)));
    }
    group.finish();
}
