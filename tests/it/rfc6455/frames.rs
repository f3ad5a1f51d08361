//! Sections 5 to 7 of RFC 6455, and what they rest on: 8.1 (UTF-8) and 10.4 (limits).

use super::{
    Opening::{self, Binary, Nobody, Session, Small},
    Out, Row, echo, echo_of, echoed, frame, wire,
};

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8A;
const FAILED: Out = Out::Close(Some(1002));

/// The rows of a table as they grow.
struct Table(Vec<Row>);

impl Table {
    fn on(
        &mut self,
        opening: Opening,
        section: &'static str,
        requirement: impl Into<String>,
        input: impl AsRef<[u8]>,
        output: &[Out],
    ) {
        let (requirement, input, output) = (requirement.into(), input.as_ref().to_vec(), output.to_vec());
        self.0.push(Row { section, requirement, opening, input, output });
    }

    fn row(&mut self, section: &'static str, requirement: impl Into<String>, input: impl AsRef<[u8]>, output: &[Out]) {
        self.on(Session, section, requirement, input, output);
    }
}

/// A frame with everything given: its first byte, its length as written, its mask, its payload before it is masked.
fn raw_frame(first: u8, length: &[u8], mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let masked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    [first].into_iter().chain(length.iter().copied()).chain(mask).chain(masked).collect()
}

fn close(code: u16, reason: &str) -> Vec<u8> {
    frame(CLOSE, [&code.to_be_bytes()[..], reason.as_bytes()].concat())
}

/// A message in fragments of these lengths, the rest in the last one.
fn fragments(first: u8, message: &str, lengths: &[usize]) -> Vec<Vec<u8>> {
    let mut rest = message.as_bytes();
    let mut all: Vec<&[u8]> = Vec::new();
    for length in lengths {
        let (part, behind) = rest.split_at(*length);
        all.push(part);
        rest = behind;
    }
    all.push(rest);
    let last = all.len() - 1;
    let first_of = |at: usize| if at == 0 { first & 0x0F } else { 0 } | if at == last { 0x80 } else { 0 };
    all.iter().enumerate().map(|(at, part)| frame(first_of(at), part)).collect()
}

fn masking(table: &mut Table) {
    let hello = echo("hello");
    for (what, first) in [("text", TEXT), ("binary", BINARY), ("ping", PING), ("pong", PONG), ("close", CLOSE)] {
        let unmasked = [&[first, 2][..], b"{}"].concat();
        table.row("5.1", format!("a {what} frame that is not masked closes the connection"), unmasked, &[FAILED]);
        table.row("5.1", format!("the same of an empty {what} frame"), [first, 0], &[FAILED]);
    }
    let second = [frame(0x01, b"{"), vec![0x80, 1, b'}']].concat();
    table.row("5.1", "a continuation that is not masked closes the connection", second, &[FAILED]);
    for mask in [[0; 4], [0xFF; 4], [1, 2, 3, 4], [0x80, 0, 0, 0x7F]] {
        let input = raw_frame(TEXT, &[0x80 | hello.len() as u8], mask, hello.as_bytes());
        table.row("5.3", format!("the mask {mask:02x?} is taken off"), input, &[echoed("hello")]);
    }
    for length in 0..=9 {
        let payload: Vec<u8> = (0..length).collect();
        let input = raw_frame(PING, &[0x80 | length], [0x11, 0x22, 0x44, 0x88], &payload);
        table.row(
            "5.3",
            format!("octet i is masked by octet i mod 4, of {length} octets"),
            input,
            &[Out::Pong(payload)],
        );
    }
    let two = [
        raw_frame(0x01, &[0x80 | 5], [9, 8, 7, 6], &hello.as_bytes()[..5]),
        raw_frame(0x80, &[0x80 | (hello.len() - 5) as u8], [1, 3, 5, 7], &hello.as_bytes()[5..]),
    ];
    table.row("5.3", "every frame has a mask of its own", two.concat(), &[echoed("hello")]);
}

fn header(table: &mut Table) {
    let hello = echo("hello");
    for (bit, name) in [(0x40, "RSV1"), (0x20, "RSV2"), (0x10, "RSV3"), (0x70, "RSV1 to 3")] {
        for (what, first) in [("text", TEXT), ("binary", BINARY), ("ping", PING), ("pong", PONG), ("close", CLOSE)] {
            let requirement = format!("{name} of a {what} frame is zero where nothing negotiated it");
            table.row("5.2", requirement, frame(first | bit, b""), &[FAILED]);
        }
        let second = [frame(0x01, b"{"), frame(0x80 | bit, b"}")].concat();
        table.row("5.2", format!("{name} of a continuation is zero where nothing negotiated it"), second, &[FAILED]);
    }
    for opcode in (0x3..=0x7).chain(0xB..=0xF) {
        table.row(
            "5.2",
            format!("the reserved opcode {opcode:#x} fails the connection"),
            frame(0x80 | opcode, b"x"),
            &[FAILED],
        );
        table.row("5.2", format!("the reserved opcode {opcode:#x} does so without FIN"), frame(opcode, b""), &[FAILED]);
        let within = [frame(0x01, b"{"), frame(0x80 | opcode, b"")].concat();
        table.row("5.2", format!("the reserved opcode {opcode:#x} does so within a message"), within, &[FAILED]);
    }
    for length in [30, 124, 125, 126, 127, 128, 255, 256, 257, 1000, 65_535, 65_536, 65_537] {
        let (text, answer) = echo_of(length);
        table.row(
            "5.2",
            format!("a payload of {length} bytes is read, its length in the shortest form"),
            frame(TEXT, text),
            &[answer],
        );
    }
    table.row("5.2", "an empty message is a message", frame(TEXT, b""), &[Out::Error("bad_message")]);
    let long = |length: u64| [&[0xFF][..], &length.to_be_bytes()].concat();
    let short = |length: u16| [&[0xFE][..], &length.to_be_bytes()].concat();
    for length in [0, 1, hello.len() as u16, 125] {
        let payload = vec![b' '; length.into()];
        let input = raw_frame(TEXT, &short(length), [0; 4], &payload);
        table.row("5.2", format!("a length of {length} is not written in 2 bytes"), input, &[FAILED]);
    }
    for length in [0, 125, 126, 65_535] {
        let input = raw_frame(TEXT, &long(length), [0; 4], b"");
        table.row("5.2", format!("a length of {length} is not written in 8 bytes"), input, &[FAILED]);
    }
    for length in [1 << 63, u64::MAX] {
        let input = raw_frame(TEXT, &long(length), [0; 4], b"");
        table.row("5.2", format!("the top bit of a length is zero, unlike in {length:#x}"), input, &[FAILED]);
    }
}

fn fragmentation(table: &mut Table) {
    let text = echo("in pieces");
    let end = text.len();
    let whole = [echoed("in pieces")];
    for (what, lengths) in [
        ("two", vec![10]),
        ("three", vec![5, 10]),
        ("as many fragments as bytes", vec![1; end - 1]),
        ("an empty first", vec![0]),
        ("an empty last", vec![end]),
        ("an empty one in the middle", vec![10, 0]),
        ("none but the middle one not empty", vec![0, 0, end, 0]),
    ] {
        let input = fragments(TEXT, &text, &lengths).concat();
        table.row("5.4", format!("a message in fragments is put together: {what}"), input, &whole);
    }
    table.row(
        "5.4",
        "empty fragments are an empty message",
        fragments(TEXT, "", &[0, 0]).concat(),
        &[Out::Error("bad_message")],
    );
    let parts = fragments(TEXT, &text, &[7, 9]);
    let with = |between: Vec<u8>| [&parts[0][..], &between, &parts[1], &parts[2]].concat();
    let ping = || frame(PING, b"in between");
    let ponged = Out::Pong(b"in between".to_vec());
    table.row("5.4", "a ping may come between fragments", with(ping()), &[ponged.clone(), whole[0].clone()]);
    table.row("5.4", "a pong may come between fragments", with(frame(PONG, b"nobody asked")), &whole);
    let many: Vec<u8> = (0..20_u8).flat_map(|n| frame(PING, [n])).collect();
    let ponged_many: Vec<Out> = (0..20_u8).map(|n| Out::Pong(vec![n])).chain(whole.clone()).collect();
    table.row("5.4", "many pings may come between fragments", with(many), &ponged_many);
    let longest = frame(PING, [7; 125]);
    table.row(
        "5.4",
        "the longest ping may come between fragments",
        with(longest),
        &[Out::Pong(vec![7; 125]), whole[0].clone()],
    );
    table.row("5.4", "a close may come between fragments", with(close(1000, "")), &[Out::Close(Some(1000))]);
    table.row("5.4", "fragments of another text are not mixed in", with(frame(0x01, b"{")), &[FAILED]);
    table.row("5.4", "nor a whole text", with(frame(TEXT, b"{}")), &[FAILED]);
    table.row("5.4", "nor a whole binary message", with(frame(BINARY, b"{}")), &[FAILED]);
    table.row("5.4", "nor fragments of a binary one", with(frame(0x02, b"{")), &[FAILED]);
    table.row("5.4", "a continuation continues something", frame(0x80, &text), &[FAILED]);
    table.row("5.4", "so does one that is not the last", frame(0x00, &text), &[FAILED]);
    let behind = [frame(TEXT, &text), frame(0x80, b"")].concat();
    table.row("5.4", "behind a whole message nothing is to be continued", behind, &[whole[0].clone(), FAILED]);
    let behind = [fragments(TEXT, &text, &[5]).concat(), frame(0x80, b"")].concat();
    table.row("5.4", "behind the last fragment neither", behind, &[whole[0].clone(), FAILED]);
    let behind_ping = [frame(PING, b"x"), frame(0x80, b"")].concat();
    table.row("5.4", "a ping opens nothing that could be continued", behind_ping, &[Out::Pong(b"x".to_vec()), FAILED]);
    let two = [fragments(TEXT, &text, &[3, 3]).concat(), fragments(TEXT, &echo("next"), &[1]).concat()].concat();
    table.row(
        "5.4",
        "fragments come in the order they were sent, one message behind the other",
        two,
        &[whole[0].clone(), echoed("next")],
    );
    let binary = binary_echo(b"bytes");
    let input = [frame(0x02, &binary[..6]), frame(0x00, &binary[6..9]), frame(0x80, &binary[9..])].concat();
    table.on(Binary, "5.4", "a binary message in fragments keeps its type", input, &[Out::EchoBytes(b"bytes")]);
}

/// An `echo` in a binary message: the length of its envelope, that, the bytes.
fn binary_echo(data: &[u8]) -> Vec<u8> {
    let envelope = br#"{"type":"echo"}"#;
    [&(envelope.len() as u32).to_be_bytes()[..], envelope, data].concat()
}

fn control_frames(table: &mut Table) {
    for (what, first) in [("ping", PING), ("pong", PONG), ("close", CLOSE)] {
        table.row("5.5", format!("a {what} is not fragmented"), frame(first & 0x0F, b""), &[FAILED]);
        table.row("5.5", format!("a {what} has at most 125 bytes"), frame(first, [0; 126]), &[FAILED]);
        let long = raw_frame(first, &[&[0xFF][..], &65_536_u64.to_be_bytes()].concat(), [0; 4], b"");
        table.row("5.5", format!("a {what} of 64 KiB is refused by its header"), long, &[FAILED]);
        let not_minimal = raw_frame(first, &[0xFE, 0, 2], [0; 4], b"\x03\xE8");
        table.row("5.5", format!("a {what} with its length in 2 bytes is refused"), not_minimal, &[FAILED]);
    }
    for payload in [&b""[..], b"a", b"\0\xFF\xC3", &[0x55; 124], &[0xAA; 125]] {
        let requirement = format!("a pong has the {} bytes of its ping", payload.len());
        table.row("5.5.3", requirement, frame(PING, payload), &[Out::Pong(payload.to_vec())]);
    }
    let pings: Vec<u8> = (0..9_u8).flat_map(|n| frame(PING, [n])).collect();
    let pongs: Vec<Out> = (0..9_u8).map(|n| Out::Pong(vec![n])).collect();
    table.row("5.5.3", "of pings in a row the last is answered, and none out of order", pings, &pongs);
    table.row(
        "5.5.2",
        "a ping is answered behind the message before it",
        [frame(TEXT, echo("a")), frame(PING, b"b")].concat(),
        &[echoed("a"), Out::Pong(b"b".to_vec())],
    );
    table.row(
        "5.5.2",
        "no ping is answered behind a close",
        [close(1000, ""), frame(PING, b"late")].concat(),
        &[Out::Close(Some(1000))],
    );
    for payload in [&b""[..], b"unasked", &[1; 125]] {
        table.row("5.5.3", "a pong that nobody asked for needs no answer", frame(PONG, payload), &[]);
    }
    table.on(
        Nobody,
        "5.5.2",
        "a ping is answered before anybody has said who he is",
        frame(PING, b"who"),
        &[Out::Pong(b"who".to_vec())],
    );
    table.on(Nobody, "5.5.1", "a close is answered then, too", close(1001, "bye"), &[Out::Close(Some(1001))]);
    table.on(Nobody, "5.1", "an unmasked frame closes the connection then, too", [TEXT, 0], &[FAILED]);
}

fn closing(table: &mut Table) {
    table.row("5.5.1", "an empty close is answered by an empty one", frame(CLOSE, b""), &[Out::Close(None)]);
    for code in (1000..=1003).chain(1007..=1014).chain([3000, 3999, 4000, 4321, 4999]) {
        let code_only = close(code, "");
        table.row("7.4", format!("code {code} is taken, and sent back"), code_only, &[Out::Close(Some(code))]);
    }
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 65_535] {
        table.row("7.4", format!("code {code} must not be sent"), close(code, ""), &[FAILED]);
    }
    for byte in [0, 3, 255] {
        table.row("5.5.1", format!("a close of the single byte {byte} has no code"), frame(CLOSE, [byte]), &[FAILED]);
    }
    for reason in ["bye", "ünïcödé ✓ 𝄞", &"r".repeat(123), &"é".repeat(61)] {
        let requirement = format!("a reason of {} bytes is taken", reason.len());
        table.row("7.1.6", requirement, close(1000, reason), &[Out::Close(Some(1000))]);
    }
    let not_utf8 = |bytes: &[u8]| frame(CLOSE, [&1000_u16.to_be_bytes()[..], bytes].concat());
    for bytes in [&b"\xFF"[..], b"bye\xC3", b"\xED\xA0\x80", b"\xC0\x80"] {
        table.row(
            "5.5.1",
            format!("a reason is UTF-8, unlike {bytes:02x?}"),
            not_utf8(bytes),
            &[Out::Close(Some(1007))],
        );
    }
    let hello = frame(TEXT, echo("hello"));
    let before = [&hello[..], &close(1000, "")].concat();
    table.row(
        "5.5.1",
        "what came before a close is answered before it",
        before,
        &[echoed("hello"), Out::Close(Some(1000))],
    );
    let behind = [&close(1000, "")[..], &hello].concat();
    table.row("1.4", "what comes behind a close is discarded", behind, &[Out::Close(Some(1000))]);
    let twice = [close(4000, ""), close(4001, "")].concat();
    table.row("7.1.5", "the first close frame counts", twice, &[Out::Close(Some(4000))]);
    let junk = [&close(1000, "")[..], &[0xFF; 40]].concat();
    table.row("7.1.5", "what is behind a close need not even be a frame", junk, &[Out::Close(Some(1000))]);
    let failed = [&frame(0x83, b"")[..], &hello].concat();
    table.row("7.1.7", "a connection that failed processes nothing more", failed, &[FAILED]);
    let failed = [&hello[..], &frame(0x83, b""), &hello].concat();
    table.row("7.1.7", "what came before the failure is answered", failed, &[echoed("hello"), FAILED]);
    table.row("7.1.4", "a connection may end without a close", [], &[Out::End]);
    table.row("7.2.1", "it may end in the middle of a frame", &hello[..hello.len() - 1], &[Out::End]);
    table.row("7.2.1", "it may end in the middle of a header", &hello[..1], &[Out::End]);
    table.row("7.2.1", "it may end in the middle of a message", frame(0x01, b"{"), &[Out::End]);
    let then_ends = [&hello[..], &hello[..3]].concat();
    table.row("7.2.1", "what was whole before such an end is answered", then_ends, &[echoed("hello"), Out::End]);
}

fn data(table: &mut Table) {
    table.row(
        "5.7",
        "the example of a masked text message",
        b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
        &[Out::Error("bad_message")],
    );
    table.row(
        "5.7",
        "the example of a ping",
        b"\x89\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58",
        &[Out::Pong(b"Hello".to_vec())],
    );
    table.row("5.7", "the example of a pong", b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", &[]);
    let hello = [frame(0x01, b"Hel"), frame(0x80, b"lo")].concat();
    table.row("5.7", "the example of fragments", hello, &[Out::Error("bad_message")]);
    table.on(
        Binary,
        "5.6",
        "a binary message is answered by one",
        frame(BINARY, binary_echo(b"\0\xFF")),
        &[Out::EchoBytes(b"\0\xFF")],
    );
    table.row(
        "5.6",
        "bytes of a binary message need not be UTF-8, nor be wanted as such",
        frame(BINARY, binary_echo(b"z")),
        &[Out::EchoBase64("z")],
    );
    table.row(
        "5.6",
        "a binary message that is none of the protocol's is refused by the application",
        frame(BINARY, b"\x00"),
        &[Out::Close(Some(1003))],
    );
    let two = [frame(TEXT, echo("one")), frame(TEXT, echo("two")), frame(TEXT, echo("three"))].concat();
    table.row("6.2", "messages are taken in their order", two, &[echoed("one"), echoed("two"), echoed("three")]);
    let both =
        [frame(TEXT, echo("text")), frame(BINARY, binary_echo(b"bytes")), frame(TEXT, echo("text again"))].concat();
    table.on(
        Binary,
        "6.2",
        "the type of a message is that of its first frame",
        both,
        &[echoed("text"), Out::EchoBytes(b"bytes"), echoed("text again")],
    );
    let (text, answer) = echo_of(70_000);
    table.row("6.1", "a long message is answered in one frame, its length in 8 bytes", frame(TEXT, text), &[answer]);
}

/// What an application's refusal does to what came before it, which is no different from a failure of the frames.
fn refusals(table: &mut Table) {
    let input = [frame(TEXT, echo("before")), frame(BINARY, b"\0"), frame(TEXT, echo("behind"))].concat();
    table.row(
        "7.1.7",
        "what came before a refused message is answered",
        input,
        &[echoed("before"), Out::Close(Some(1003))],
    );
}

fn utf8(table: &mut Table) {
    let text = echo("κόσμε ߿ࠀ￿𐀀􏿿 ☃");
    let answer = [echoed("κόσμε ߿ࠀ￿𐀀􏿿 ☃")];
    table.row("8.1", "text is UTF-8 of every length", frame(TEXT, &text), &answer);
    let each: Vec<usize> = vec![1; text.len() - 1];
    table.row("8.1", "a character may lie in several fragments", fragments(TEXT, &text, &each).concat(), &answer);
    let parts = fragments(TEXT, &text, &each);
    let pinged: Vec<u8> = parts.iter().flat_map(|part| [&part[..], &frame(PONG, b"")].concat()).collect();
    table.row("8.1", "even with control frames inside the character", pinged, &answer);
    for (what, bytes) in [
        ("a continuation byte alone", &b"\x80"[..]),
        ("one that begins nothing", b"\xFF"),
        ("an overlong slash of 2 bytes", b"\xC0\xAF"),
        ("an overlong slash of 3 bytes", b"\xE0\x80\xAF"),
        ("an overlong slash of 4 bytes", b"\xF0\x80\x80\xAF"),
        ("an overlong zero", b"\xC0\x80"),
        ("half of a surrogate pair", b"\xED\xA0\x80"),
        ("a surrogate pair", b"\xED\xA1\x8C\xED\xBE\xB4"),
        ("what lies beyond U+10FFFF", b"\xF4\x90\x80\x80"),
        ("a sequence of 5 bytes", b"\xF8\x88\x80\x80\x80"),
        ("a character that is cut off", b"\xE2\x98"),
        ("a character in whose middle another begins", b"\xE2\x98A"),
    ] {
        let text = [&b"\"a"[..], bytes, b"z\""].concat();
        table.row("8.1", format!("text is UTF-8, not {what}"), frame(TEXT, &text), &[Out::Close(Some(1007))]);
        let split = [frame(0x01, &text[..3]), frame(0x80, &text[3..])].concat();
        table.row("8.1", format!("nor is it so in fragments: {what}"), split, &[Out::Close(Some(1007))]);
        if !bytes.starts_with(b"\xE2") {
            let first = frame(0x01, &text);
            table.row("8.1", format!("{what} fails before the message is whole"), first, &[Out::Close(Some(1007))]);
        }
    }
    let cut = [frame(0x01, b"\"\xE2\x98"), frame(0x80, b"")].concat();
    table.row("8.1", "an empty last fragment completes no character", cut, &[Out::Close(Some(1007))]);
}

fn limits(table: &mut Table) {
    let at_limit = echo_of(1024);
    table.on(
        Small,
        "10.4",
        "a message of limits.message_bytes is taken",
        frame(TEXT, &at_limit.0),
        std::slice::from_ref(&at_limit.1),
    );
    let too_big = Out::Close(Some(1009));
    table.on(
        Small,
        "10.4",
        "one of a byte more is refused",
        frame(TEXT, echo_of(1025).0),
        std::slice::from_ref(&too_big),
    );
    let announced = raw_frame(TEXT, &[0xFE, 0x04, 0x01], [0; 4], b"");
    table.on(Small, "10.4", "its header is enough for that", announced, std::slice::from_ref(&too_big));
    let announced = raw_frame(BINARY, &[&[0xFF][..], &(u64::MAX >> 1).to_be_bytes()].concat(), [0; 4], b"");
    table.on(Small, "10.4", "so it is for one of 2^63 - 1 bytes", announced, std::slice::from_ref(&too_big));
    let text = &at_limit.0;
    table.on(
        Small,
        "10.4",
        "fragments of that many bytes are taken",
        fragments(TEXT, text, &[1000]).concat(),
        std::slice::from_ref(&at_limit.1),
    );
    let over = fragments(TEXT, &echo_of(1025).0, &[1000]).concat();
    table.on(Small, "10.4", "fragments of a byte more are refused", over, std::slice::from_ref(&too_big));
    let over = [frame(0x01, vec![b' '; 1024]), frame(0x00, b""), frame(0x00, b" ")].concat();
    table.on(Small, "10.4", "however little the last of them brings", over, &[too_big]);
    let parts = fragments(TEXT, text, &[1000]);
    let pinged = [&parts[0][..], &frame(PING, [3; 125]), &parts[1]].concat();
    table.on(Small, "10.4", "control frames do not count", pinged, &[Out::Pong(vec![3; 125]), at_limit.1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_requirement_of_sections_5_to_7_holds_however_it_is_cut() {
    let mut table = Table(Vec::new());
    for part in [masking, header, fragmentation, control_frames, closing, data, refusals, utf8, limits] {
        part(&mut table);
    }
    let (count, wrong) = wire::play(table.0).await;
    println!("RFC 6455 sections 5 to 7: {} of {count} rows passed", count - wrong.len());
    assert!(wrong.is_empty(), "{} of {count} rows failed:\n{}", wrong.len(), wrong.join("\n"));
}
