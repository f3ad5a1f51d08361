//! What no good client sends: each thing has its answer and its counter, and the gateway goes on.

use std::time::{Duration, Instant};

use pushgate::server::Ended;
use serde_json::json;

use crate::support::{
    Client, Gateway, Raw, Token,
    client::request,
    raw::{self, handshake},
    until,
};

/// The frame that a session hears last, and that the connection ends behind it in order.
async fn last_word(raw: &mut Raw) -> Option<u16> {
    let code = raw.frame().await.close_code();
    assert_eq!(raw.try_frame().await, None, "nothing is sent after a close frame");
    code
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_break_the_rules_are_closed_with_1002() {
    let gateway = Gateway::start().await;
    let unmasked = [raw::header(raw::TEXT, 2, false), b"{}".to_vec()].concat();
    let not_minimal = [&[raw::TEXT, 0x80 | 126, 0, 2][..], &[0; 6]].concat();
    let top_bit = [&[raw::TEXT, 0x80 | 127, 0x80][..], &[0; 11]].concat();
    let cases: [(&str, Vec<u8>); 14] = [
        ("unmasked", unmasked),
        ("RSV1", raw::frame(0xC1, b"{}")),
        ("RSV2", raw::frame(0xA1, b"{}")),
        ("RSV3", raw::frame(0x91, b"{}")),
        ("opcode 3", raw::frame(0x83, b"{}")),
        ("opcode 11", raw::frame(0x8B, b"{}")),
        ("a fragmented ping", raw::frame(0x09, b"")),
        ("a ping of 126 bytes", raw::frame(raw::PING, &[0; 126])),
        ("a continuation of nothing", raw::frame(0x80, b"{}")),
        ("a message in a message", [raw::frame(0x01, b"{"), raw::frame(raw::TEXT, b"{}")].concat()),
        ("a length longer than needed", not_minimal),
        ("a length with its top bit", top_bit),
        ("a close code of one byte", raw::frame(raw::CLOSE, &[3])),
        ("close code 1005", raw::frame(raw::CLOSE, &1005_u16.to_be_bytes())),
    ];
    let count = cases.len() as u64;
    for (what, bytes) in cases {
        // As a session, and before authentication.
        let mut session = Raw::session(&gateway, "alice", "").await;
        session.write(&bytes).await;
        assert_eq!(last_word(&mut session).await, Some(1002), "{what}");
        let mut unknown = Raw::connect(gateway.http).await.upgraded("").await;
        unknown.write(&bytes).await;
        assert_eq!(last_word(&mut unknown).await, Some(1002), "{what}, unauthenticated");
    }
    assert_eq!(gateway.errors("protocol_error").await, count * 2);
    until("sessions", 0, async || gateway.hub.session_count()).await;
    gateway.client("alice").await.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_not_utf8_is_closed_with_1007() {
    let gateway = Gateway::start().await;
    let cases = [
        raw::frame(raw::TEXT, b"{\"type\":\"\xFF\"}"),
        raw::frame(raw::TEXT, b"\xC3"),
        raw::frame(raw::TEXT, b"\xED\xA0\x80"),
        [raw::frame(0x01, b"\xC3"), raw::frame(0x80, b"\x28")].concat(),
        raw::frame(raw::CLOSE, b"\x03\xE8\xFF"),
    ];
    let count = cases.len() as u64;
    for bytes in cases {
        let mut session = Raw::session(&gateway, "alice", "").await;
        session.write(&bytes).await;
        assert_eq!(last_word(&mut session).await, Some(1007), "{bytes:?}");
    }
    assert_eq!(gateway.errors("invalid_utf8").await, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_its_limit_is_closed_with_1009_before_it_has_come() {
    let gateway = Gateway::with(&[("limits.message_bytes", "2KiB")]).await;
    let text = |bytes: usize| {
        let empty = json!({ "type": "echo", "data": "" }).to_string().len();
        json!({ "type": "echo", "data": "x".repeat(bytes - empty) }).to_string()
    };
    let mut session = Raw::session(&gateway, "alice", "").await;
    session.send(raw::TEXT, text(2048).as_bytes()).await;
    assert_eq!(session.frame().await.json()["type"], "echo_response");
    session.send(raw::TEXT, text(2049).as_bytes()).await;
    assert_eq!(last_word(&mut session).await, Some(1009));

    // The header alone tells; nobody waits for the rest.
    let mut session = Raw::session(&gateway, "alice", "").await;
    session.write(&[raw::header(raw::TEXT, 1 << 40, true), vec![0; 4]].concat()).await;
    assert_eq!(last_word(&mut session).await, Some(1009));
    // Nor is a message small because its fragments are.
    let mut session = Raw::session(&gateway, "alice", "").await;
    session.send(0x01, &[b' '; 2000]).await;
    session.send(0x00, &[b' '; 49]).await;
    assert_eq!(last_word(&mut session).await, Some(1009));
    assert_eq!(gateway.errors("message_too_big").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_frame_is_answered_with_its_code_and_nothing_comes_after_it() {
    let gateway = Gateway::start().await;
    for code in [1000_u16, 1001, 3000, 4999] {
        let mut raw = Raw::session(&gateway, "alice", "").await;
        let mut bytes = raw::frame(raw::CLOSE, &[&code.to_be_bytes()[..], b"bye"].concat());
        // What a client says behind its close frame is not heard.
        bytes.extend(raw::frame(raw::TEXT, br#"{"type":"ping"}"#));
        raw.write(&bytes).await;
        let answer = raw.frame().await;
        assert_eq!(answer.payload, code.to_be_bytes(), "the code, without the reason");
        assert_eq!(raw.try_frame().await, None);
    }
    let mut raw = Raw::session(&gateway, "alice", "").await;
    raw.send(raw::CLOSE, b"").await;
    assert_eq!(last_word(&mut raw).await, None, "no code is answered by none");

    // What waits for a session that is being closed is not sent to it.
    let mut raw = Raw::session(&gateway, "alice", "").await;
    let mut rpc = gateway.rpc().await;
    let close = pushgate::api::proto::CloseUserSessionsRequest { user_id: "alice".into(), ..Default::default() };
    assert_eq!(rpc.close(close).await.unwrap(), 1);
    assert_eq!(rpc.send("alice", 1).await.sessions, 0);
    assert_eq!(last_word(&mut raw).await, Some(1000));
    assert_eq!(gateway.client("alice").await.data(1).await, [json!(1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_answer_the_close_frame_is_let_go_all_the_same() {
    let gateway = Gateway::start().await;
    let mut raw = Raw::session(&gateway, "alice", "").await;
    let close = pushgate::api::proto::CloseUserSessionsRequest { user_id: "alice".into(), ..Default::default() };
    gateway.rpc().await.close(close).await.unwrap();
    assert_eq!(last_word(&mut raw).await, Some(1000));
    // It never closes its side.
    until("connections", 0, async || gateway.rpc().await.status().await.connections.unwrap().now).await;
    drop(raw);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_handshakes_are_refused() {
    let gateway = Gateway::start().await;
    let good = handshake("", "");
    let without = |line: &str| good.replace(line, "");
    let with = |line: &str, other: &str| good.replace(line, other);
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let cases = [
        (400, without(key)),
        (400, with(key, "Sec-WebSocket-Key: c2hvcnQ=\r\n")),
        (400, with(key, "Sec-WebSocket-Key: !!!!\r\n")),
        (400, with(key, &format!("{key}{key}"))),
        (426, without("Sec-WebSocket-Version: 13\r\n")),
        (426, with("Version: 13", "Version: 8")),
        (426, without("Upgrade: websocket\r\n")),
        (426, with("Upgrade: websocket", "Upgrade: h2c")),
        (426, with("Connection: Upgrade", "Connection: keep-alive")),
        (426, with("HTTP/1.1", "HTTP/1.0")),
        (426, with("GET", "PUT")),
        (400, "nonsense\r\n\r\n".to_owned()),
        (400, good.replace("Host: gateway", "Host gateway")),
        (400, good.replace("Host: gateway", "Host: gate\u{1}way")),
    ];
    let count = cases.len() as u64;
    for (status, text) in cases {
        let mut raw = Raw::connect(gateway.http).await;
        let head = raw.request(&text).await;
        assert!(
            head.starts_with(&format!("HTTP/1.{} {status} ", u8::from(!text.contains("HTTP/1.0")))),
            "{text}{head}"
        );
    }
    until("bad handshakes", count, async || gateway.errors("bad_handshake").await).await;
    gateway.client("alice").await.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_connects_and_says_nothing_is_cut_off_after_ten_seconds() {
    let gateway = Gateway::start().await;
    let began = Instant::now();
    let mut silent = Raw::connect(gateway.http).await;
    let mut late = Raw::connect(gateway.http).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    late.write(b"G").await;
    assert_eq!(silent.drained().await, 0);
    assert!((10..15).contains(&began.elapsed().as_secs()), "after {:?}", began.elapsed());
    late.drained().await;
    assert!((10..15).contains(&began.elapsed().as_secs()), "the late one after {:?}", began.elapsed());
    until("bad handshakes", 2, async || gateway.errors("bad_handshake").await).await;
    // A stop does not wait for it.
    let _another = Raw::connect(gateway.http).await;
    assert_eq!(gateway.stop().await, Ended::InOrder);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_of_more_than_8_kib_gets_431() {
    let gateway = Gateway::start().await;
    let mut raw = Raw::connect(gateway.http).await;
    let long = handshake("", &format!("X-Long: {}\r\n", "x".repeat(9000)));
    let head = raw.request(&long).await;
    assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
    let mut raw = Raw::connect(gateway.http).await;
    let many: String = (0..150).map(|n| format!("X-{n}: 1\r\n")).collect();
    let head = raw.request(&handshake("", &many)).await;
    assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
    let mut raw = Raw::connect(gateway.http).await;
    let head = raw.request(&handshake(&"x".repeat(9000), "")).await;
    assert!(head.starts_with("HTTP/1.1 431 ") || head.starts_with("HTTP/1.1 414 "), "{head}");
    until("bad handshakes", 3, async || gateway.errors("bad_handshake").await).await;
    // A token of 7 KiB still fits.
    let token = Token::of("alice").with("pad", "p".repeat(5000)).sign();
    assert!(token.len() > 6500);
    Client::connect(&gateway.url(&format!("token={token}"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_vanishes_in_the_middle_of_anything_leaves_nothing_behind() {
    let gateway = Gateway::start().await;
    let mut cut = Raw::session(&gateway, "alice", "").await;
    cut.write(&raw::frame(raw::TEXT, &[b'x'; 1000])[..500]).await;
    cut.reset();
    let mut fragment = Raw::session(&gateway, "alice", "").await;
    fragment.send(0x01, b"{\"type\":").await;
    drop(fragment);
    let unauthenticated = Raw::connect(gateway.http).await.upgraded("").await;
    unauthenticated.reset();
    let mut half = Raw::connect(gateway.http).await;
    half.write(b"GET /ws HTT").await;
    drop(half);
    until("connections", 0, async || gateway.rpc().await.status().await.connections.unwrap().now).await;
    assert_eq!(gateway.hub.session_count(), 0);
    assert_eq!(gateway.errors("panic").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_pings_is_answered_by_the_latest_and_grows_nothing() {
    let gateway = Gateway::start().await;
    let mut raw = Raw::session(&gateway, "alice", "").await;
    let mut bytes = Vec::new();
    for n in 0..10_000_u32 {
        bytes.extend(raw::frame(raw::PING, &n.to_be_bytes()));
    }
    bytes.extend(raw::frame(raw::TEXT, br#"{"type":"ping","id":"end"}"#));
    raw.write(&bytes).await;
    let (mut last, mut count) = (None, 0);
    loop {
        let frame = raw.frame().await;
        match frame.first {
            raw::PONG => {
                let number = u32::from_be_bytes(frame.payload.try_into().unwrap());
                assert!(last.is_none_or(|last| number > last));
                last = Some(number);
                count += 1;
            }
            _ => {
                assert_eq!(frame.json()["replyTo"], "end");
                break;
            }
        }
    }
    assert_eq!(last, Some(9999), "older ones need no answer (RFC 6455 section 5.5.3)");
    assert!(count < 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_error_text_repeats_what_was_sent() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client("alice").await;
    let secret = "s3cr3t";
    for text in [
        format!(r#"{{"type":"auth","token":"x","ackMode":"{secret}"}}"#),
        format!(r#"{{"type":"{secret}"}}"#),
        secret.to_owned(),
        format!(r#"{{"type":"ping","{secret}"#),
    ] {
        client.send(tokio_tungstenite::tungstenite::Message::text(text)).await;
        let answer = client.next().await.to_string();
        assert!(!answer.contains(secret), "{answer}");
    }
    let url = gateway.url(&format!("token={secret}"));
    let (mut refused, _) = Client::open(request(&url, &[])).await.unwrap();
    assert!(!refused.next().await.to_string().contains(secret));
    assert!(!refused.closed().await.1.contains(secret));
}
