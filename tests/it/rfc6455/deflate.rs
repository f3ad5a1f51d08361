//! RFC 7692, sections 6 and 7.2: messages with and without compression on a connection that negotiated it.

use flate2::{Compress, Compression, FlushCompress};

use super::{
    Opening::{Deflate, Session, Small, SmallDeflate},
    Out, Row, echo, echo_of, echoed, frame, wire,
};

const FAILED: Out = Out::Close(Some(1002));
const BAD: Out = Out::Close(Some(1007));

/// A message as a client sends it: up to, not including, the empty block of a sync flush.
fn deflated(message: &[u8], level: u32) -> Vec<u8> {
    let mut stream = Compress::new(Compression::new(level), false);
    let mut out = vec![0; message.len() * 2 + 100];
    stream.compress(message, &mut out, FlushCompress::Sync).unwrap();
    out.truncate(stream.total_out() as usize);
    out.strip_suffix(&[0, 0, 0xFF, 0xFF]).unwrap().to_vec()
}

/// Blocks that hold the bytes as they are.
fn stored(message: &[u8], last: bool) -> Vec<u8> {
    let length = message.len() as u16;
    [&[u8::from(last)][..], &length.to_le_bytes(), &(!length).to_le_bytes(), message].concat()
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |section, requirement: &str, input: Vec<u8>, output: &[Out]| {
        rows.push(Row {
            section,
            requirement: requirement.to_owned(),
            opening: Deflate,
            input,
            output: output.to_vec(),
        });
    };
    let text = echo("compressed, compressed, compressed");
    let answer = [echoed("compressed, compressed, compressed")];
    let small = deflated(text.as_bytes(), 6);
    let cut = small.len() / 2;

    row("6", "a compressed text message is inflated", frame(0xC1, &small), &answer);
    row("6", "a message may be sent plain all the same", frame(0x81, &text), &answer);
    let both = [frame(0x81, echo("plain")), frame(0xC1, &small), frame(0x81, echo("plain again"))].concat();
    row("6", "every message says for itself", both, &[echoed("plain"), answer[0].clone(), echoed("plain again")]);
    let parts = [frame(0x41, &small[..cut]), frame(0x80, &small[cut..])];
    row("6.1", "fragments of a compressed message, RSV1 on the first alone", parts.concat(), &answer);
    let each: Vec<u8> = small
        .iter()
        .enumerate()
        .flat_map(|(at, byte)| {
            let first = if at == 0 { 0x41 } else { 0 } | if at + 1 == small.len() { 0x80 } else { 0 };
            frame(first, [*byte])
        })
        .collect();
    row("6.1", "a fragment a byte", each, &answer);
    let empties = [frame(0x41, b""), frame(0x00, &small), frame(0x00, b""), frame(0x80, b"")].concat();
    row("6.1", "empty fragments around", empties, &answer);
    let pinged = [&parts[0][..], &frame(0x89, b"?"), &parts[1]].concat();
    row("6", "a ping between, which is never compressed", pinged, &[Out::Pong(b"?".to_vec()), answer[0].clone()]);
    for (what, first) in [("ping", 0xC9), ("pong", 0xCA), ("close", 0xC8)] {
        row("6", &format!("RSV1 of a {what} is zero"), frame(first, b""), &[FAILED]);
    }
    let again = [frame(0x41, &small[..cut]), frame(0xC0, &small[cut..])].concat();
    row("6", "RSV1 of a continuation is zero", again, &[FAILED]);
    let late = [frame(0x01, &text[..9]), frame(0xC0, &text[9..])].concat();
    row("6", "RSV1 of a plain message's continuation, too", late, &[FAILED]);
    for (what, bit) in [("RSV2", 0x20), ("RSV3", 0x10)] {
        row("6", &format!("{what} stays reserved"), frame(0x81 | bit, &text), &[FAILED]);
        row("6", &format!("{what} stays reserved beside RSV1"), frame(0xC1 | bit, &small), &[FAILED]);
    }

    for level in [0, 1, 9] {
        row("7.2.1", &format!("a message of level {level}"), frame(0xC1, deflated(text.as_bytes(), level)), &answer);
    }
    let plain_block = [&stored(text.as_bytes(), false)[..], &[0]].concat();
    row("7.2.3.3", "a block without compression", frame(0xC1, plain_block), &answer);
    let (a, b) = text.as_bytes().split_at(9);
    let two = [stored(a, false), deflated(b, 6)].concat();
    row("7.2.3.5", "several blocks in a message", frame(0xC1, two), &answer);
    row(
        "7.2.3.4",
        "a last block, and the end",
        frame(0xC1, [&stored(text.as_bytes(), true)[..], &[0]].concat()),
        &answer,
    );
    row("7.2.3.4", "a last block and nothing behind it", frame(0xC1, stored(text.as_bytes(), true)), &answer);
    let several = [stored(a, true), stored(b, true), vec![0]].concat();
    row("7.2.3.4", "more blocks behind a last one", frame(0xC1, several), &answer);
    row("7.2.3.6", "an empty message", frame(0xC1, [0]), &[Out::Error("bad_message")]);
    row("7.2.3.6", "an empty message of no bytes", frame(0xC1, b""), &[Out::Error("bad_message")]);
    let hello: &[u8] = &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    row("7.2.3.1", "the example", frame(0xC1, hello), &[Out::Error("bad_message")]);
    let sliding = [frame(0xC1, hello), frame(0xC1, [0xf2, 0x00, 0x11, 0x00, 0x00])].concat();
    row("7.1.1.2", "what refers to an earlier message", sliding, &[Out::Error("bad_message"), BAD]);
    row("7.2.2", "a block of the fourth kind", frame(0xC1, [0x06]), &[BAD]);
    row(
        "7.2.2",
        "a stored block whose lengths differ",
        frame(0xC1, [0x00, 0x05, 0x00, 0x05, 0x00, 1, 2, 3, 4, 5]),
        &[BAD],
    );
    row("7.2.2", "a reference in front of the message", frame(0xC1, [0x02, 0x02, 0x00, 0x00]), &[BAD]);
    row("7.2.2", "no deflate data at all", frame(0xC2, [0xFF; 60]), &[BAD]);
    for length in [1, small.len() / 3, small.len() - 1] {
        row("7.2.2", &format!("a message that is cut off after {length} bytes"), frame(0xC1, &small[..length]), &[BAD]);
    }
    let not_utf8 = deflated(b"\"abc\xFF\"", 6);
    row("8.1", "text is UTF-8 once it is inflated", frame(0xC1, &not_utf8), &[BAD]);
    row("8.1", "which a binary message need not be", frame(0xC2, &not_utf8), &[Out::Close(Some(1003))]);
    let (long, long_answer) = echo_of(70_000);
    row("7.2.2", "a long message", frame(0xC1, deflated(long.as_bytes(), 6)), std::slice::from_ref(&long_answer));

    let mut row_of = |opening, requirement: &str, input: Vec<u8>, output: &[Out]| {
        let (requirement, output) = (requirement.to_owned(), output.to_vec());
        rows.push(Row { section: "10.4", requirement, opening, input, output });
    };
    let too_big = Out::Close(Some(1009));
    let at_limit = echo_of(1024);
    let over = echo_of(1025).0;
    let compressed = |text: &str| frame(0xC1, deflated(text.as_bytes(), 6));
    row_of(
        SmallDeflate,
        "a message that inflates to limits.message_bytes",
        compressed(&at_limit.0),
        std::slice::from_ref(&at_limit.1),
    );
    row_of(SmallDeflate, "one that inflates to a byte more", compressed(&over), std::slice::from_ref(&too_big));
    let bomb = deflated(&vec![b' '; 1 << 20], 9);
    row_of(
        SmallDeflate,
        "one that inflates to a thousand times as much",
        frame(0xC1, &bomb),
        std::slice::from_ref(&too_big),
    );
    let level_0 = frame(0xC1, deflated(at_limit.0.as_bytes(), 0));
    row_of(
        SmallDeflate,
        "one that compression made longer than the limit, and is not",
        level_0,
        std::slice::from_ref(&at_limit.1),
    );
    let padded = frame(0xC1, [&deflated(at_limit.0.as_bytes(), 6)[..], &[0, 0, 0, 0xFF, 0xFF].repeat(400)].concat());
    row_of(
        SmallDeflate,
        "one that takes more than any message of the limit could",
        padded,
        std::slice::from_ref(&too_big),
    );
    row_of(Small, "nothing is compressed where nothing was negotiated", compressed(&text), &[FAILED]);
    row_of(Session, "nor on a session with larger messages", compressed(&text), &[FAILED]);
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn every_requirement_on_compressed_messages_holds_however_they_are_cut() {
    let (count, wrong) = wire::play(rows()).await;
    println!("RFC 7692 sections 6 and 7.2: {} of {count} rows passed", count - wrong.len());
    assert!(wrong.is_empty(), "{} of {count} rows failed:\n{}", wrong.len(), wrong.join("\n"));
}
