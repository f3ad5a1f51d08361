//! permessage-deflate on whole sessions: what is compressed, for whom, and what is not. The rules of single messages are
//! in `rfc6455/deflate.rs`.

use pushgate::api::proto::{Notification, notification::Payload};
use serde_json::{Value, json};

use crate::support::{
    Gateway, Raw, Rpc, Token,
    child::{Daemon, config},
    gateway::ADMIN,
    inflate,
    raw::{self, Frame, TEXT, handshake},
    rpc::{durable, notification},
};

const DEFLATED_TEXT: u8 = 0xC1;
const DEFLATED_BINARY: u8 = 0xC2;

/// A session that offered this; its `auth_success` was read.
async fn session(gateway: &Gateway, user: &str, query: &str, offer: &str) -> Raw {
    let mut raw = Raw::connect(gateway.http).await;
    let query = format!("token={}&{query}", Token::of(user).sign());
    let line = if offer.is_empty() { String::new() } else { format!("Sec-WebSocket-Extensions: {offer}\r\n") };
    let head = raw.request(&handshake(&query, &line)).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(head.contains("permessage-deflate"), !offer.is_empty(), "{head}");
    assert_eq!(message(&next(&mut raw).await)["type"], "auth_success");
    raw
}

/// The next frame that carries a message.
async fn next(raw: &mut Raw) -> Frame {
    loop {
        let frame = raw.frame().await;
        match frame.first {
            raw::PING => raw.send(raw::PONG, &frame.payload).await,
            _ => return frame,
        }
    }
}

fn inflated(frame: &Frame) -> inflate::Inflated {
    inflate::message(&frame.payload, 1 << 20).unwrap()
}

/// What a text frame says, compressed or not.
fn message(frame: &Frame) -> Value {
    match frame.first {
        TEXT => frame.json(),
        DEFLATED_TEXT => serde_json::from_slice(&inflated(frame).bytes).unwrap(),
        other => panic!("a frame that begins with {other:#x}"),
    }
}

fn long() -> Value {
    let items: Vec<_> = (0..30).map(|n| json!({ "orderId": n * 7919 % 1000, "status": "shipped" })).collect();
    json!({ "items": items })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_get_is_compressed_for_those_who_take_it() {
    let gateway = Gateway::with(&[("topics", r#"[{ pattern = "*", subscribe = ["*"] }]"#)]).await;
    let mut rpc = gateway.rpc().await;
    let mut takes = Vec::new();
    for (user, device) in [("alice", "a"), ("alice", "b"), ("bob", "c")] {
        takes.push(session(&gateway, user, &format!("device={device}"), "permessage-deflate").await);
    }
    let mut plain = session(&gateway, "alice", "device=plain", "").await;
    for one in takes.iter_mut().chain([&mut plain]) {
        one.say(&json!({ "type": "subscribe", "topic": "t" })).await;
        assert_eq!(message(&next(one).await)["type"], "subscribed");
    }
    gateway.live("alice").await;

    for (what, receivers) in [("send", 2), ("broadcast", 3), ("publish", 3), ("durable", 3)] {
        match what {
            "send" => drop(rpc.send("alice", long()).await),
            "broadcast" => drop(rpc.broadcast(long()).await),
            "publish" => assert_eq!(rpc.publish("t", long()).await, 4),
            _ => drop(rpc.try_broadcast(durable(notification(long()), &[])).await.unwrap()),
        }
        let there = next(&mut plain).await;
        assert_eq!((there.first, &there.json()["data"]), (TEXT, &long()), "{what}");
        let mut frames = Vec::new();
        for one in &mut takes[..receivers] {
            let frame = next(one).await;
            assert_eq!((frame.first, message(&frame)), (DEFLATED_TEXT, there.json()), "{what}");
            assert!(
                frame.payload.len() * 2 < there.payload.len(),
                "{} of {}",
                frame.payload.len(),
                there.payload.len()
            );
            frames.push(frame);
        }
        assert!(frames.iter().all(|frame| *frame == frames[0]), "{what}");
    }
    // Little is sent as it is.
    rpc.broadcast("little").await;
    for one in &mut takes {
        assert_eq!(next(one).await.json()["data"], "little");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broadcasts_that_leave_together_come_whole_and_in_order() {
    let gateway = Gateway::start().await;
    let mut takes = session(&gateway, "alice", "", "permessage-deflate").await;
    let mut narrow = session(&gateway, "bob", "", "permessage-deflate; server_max_window_bits=9").await;
    let mut plain = session(&gateway, "carol", "", "").await;
    let calls = (0..60).map(|n| {
        let mut rpc = None;
        let gateway = &gateway;
        async move {
            let rpc = rpc.get_or_insert(gateway.rpc().await);
            rpc.broadcast(if n % 3 == 0 { json!({ "n": n }) } else { json!({ "n": n, "of": long() }) }).await;
        }
    });
    futures_util::future::join_all(calls).await;
    let mut orders = Vec::new();
    for one in [&mut takes, &mut narrow, &mut plain] {
        let mut order = Vec::new();
        for _ in 0..60 {
            let frame = next(one).await;
            let message = message(&frame);
            assert!(message["data"].get("of").is_none_or(|of| *of == long()));
            order.push(message["data"]["n"].as_u64().unwrap());
        }
        orders.push(order);
    }
    assert!(orders.iter().all(|order| *order == orders[0]), "{orders:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_is_compressed_when_it_is_replayed() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    for n in 0..20 {
        rpc.send("away", json!({ "n": n, "of": long() })).await;
    }
    let gateway = gateway.restart().await;
    let mut away = session(&gateway, "away", "device=phone", "permessage-deflate").await;
    for n in 0..20 {
        let frame = next(&mut away).await;
        assert_eq!(frame.first, DEFLATED_TEXT);
        let message = message(&frame);
        assert_eq!((&message["data"]["n"], &message["replayed"]), (&json!(n), &json!(true)));
    }
    // All of it was confirmed by its pongs: what the account says of compressed frames is what the window says of them.
    let answering = async {
        loop {
            next(&mut away).await;
        }
    };
    tokio::select! {
        _ = crate::support::until("pending", 0, async || gateway.pending().await) => {}
        () = answering => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_compressed_in_the_form_that_was_asked_for() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut binary = session(&gateway, "alice", "device=b&binary=1", "permessage-deflate").await;
    let mut text = session(&gateway, "alice", "device=t", "permessage-deflate").await;
    gateway.live("alice").await;
    let bytes = b"again and again and ".repeat(50);
    let one = Notification { payload: Some(Payload::Binary(bytes.clone().into())), ..Default::default() };
    rpc.send_to("alice", one).await;
    let frame = next(&mut binary).await;
    assert_eq!(frame.first, DEFLATED_BINARY);
    assert!(inflated(&frame).bytes.ends_with(&bytes));
    let frame = next(&mut text).await;
    assert!(message(&frame)["dataBase64"].as_str().unwrap().len() > bytes.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_referred_to_than_the_window_that_was_asked_for() {
    let gateway = Gateway::start().await;
    for bits in 8..=15 {
        let offer = format!("permessage-deflate; server_max_window_bits={bits}");
        let mut narrow = session(&gateway, "alice", "", &offer).await;
        for items in [1, 4, 16, 300, 1500] {
            let data: Vec<_> = (0..items).map(|n| format!("value {} {}", n * 7919 % 1009, n % 3)).collect();
            narrow.say(&json!({ "type": "echo", "data": data })).await;
            let frame = next(&mut narrow).await;
            assert_eq!(message(&frame)["data"], json!(data));
            if frame.first == DEFLATED_TEXT {
                let furthest = inflated(&frame).furthest;
                assert!(furthest <= 1 << bits, "{furthest} back in a window of 2^{bits}");
            }
            assert_eq!(frame.first, if items < 16 { TEXT } else { DEFLATED_TEXT }, "{items}");
        }
        narrow.send(raw::CLOSE, b"").await;
        narrow.close_frame().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_switched_off_is_not_negotiated() {
    let gateway = Gateway::with(&[("ws.compression", "\"off\"")]).await;
    let mut raw = Raw::connect(gateway.http).await;
    let query = format!("token={}", Token::of("alice").sign());
    let head = raw.request(&handshake(&query, "Sec-WebSocket-Extensions: permessage-deflate\r\n")).await;
    assert!(head.starts_with("HTTP/1.1 101 ") && !head.to_ascii_lowercase().contains("extensions"), "{head}");
    assert_eq!(raw.frame().await.json()["type"], "auth_success");
    raw.say(&json!({ "type": "echo", "data": long() })).await;
    assert_eq!(raw.frame().await.json()["data"], long());
    raw.send(DEFLATED_TEXT, b"\xf2\x48\xcd\xc9\xc9\x07\x00").await;
    assert_eq!(raw.close_frame().await.close_code(), Some(1002));
    let wrong = Raw::connect(gateway.http).await.request(&handshake("", "Sec-WebSocket-Extensions: ;\r\n")).await;
    assert!(wrong.starts_with("HTTP/1.1 400 "), "{wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_messages_that_are_wrong_are_counted() {
    let gateway = Gateway::start().await;
    let mut bad = session(&gateway, "alice", "", "permessage-deflate").await;
    bad.send(DEFLATED_TEXT, &[0xFF; 20]).await;
    assert_eq!(bad.close_frame().await.close_code(), Some(1007));
    let mut bomb = session(&gateway, "alice", "", "permessage-deflate").await;
    bomb.send(DEFLATED_TEXT, &deflated(&vec![b' '; 1 << 20])).await;
    assert_eq!(bomb.close_frame().await.close_code(), Some(1009));
    assert_eq!(gateway.errors("invalid_deflate").await, 1);
    assert_eq!(gateway.errors("message_too_big").await, 1);
    assert_eq!(gateway.errors("invalid_utf8").await, 0);
}

/// A message of 60,000 bytes that asks for nothing, compressed to some hundred: many in one write.
fn flood(messages: usize) -> Vec<u8> {
    let message = json!({ "type": "ack", "offset": 1, "of": "x".repeat(60_000) }).to_string();
    raw::frame(DEFLATED_TEXT, &deflated(message.as_bytes())).repeat(messages)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_message_comes_to_is_what_counts() {
    let gateway = Gateway::with(&[("limits.bytes_per_second", "64KiB")]).await;
    let mut raw = session(&gateway, "alice", "", "permessage-deflate").await;
    // 128 KiB at once: the third is too much, and by the fifth it was warned in vain.
    raw.write(&flood(20)).await;
    let warned = next(&mut raw).await.json();
    assert_eq!((&warned["type"], &warned["code"]), (&json!("error"), &json!("rate_limited")), "{warned}");
    assert!(warned["message"].as_str().unwrap().contains("bytes_per_second"), "{warned}");
    assert_eq!(raw.close_frame().await.close_code(), Some(4429));
    assert_eq!(gateway.errors("rate_limited").await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn others_have_their_turn_while_a_read_comes_to_many_megabytes() {
    let gateway = Gateway::with(&[("limits.bytes_per_second", "0B"), ("limits.messages_per_second", "0")]).await;
    let mut other = session(&gateway, "bob", "", "").await;
    let mut raw = session(&gateway, "alice", "", "permessage-deflate").await;
    // What fits into one read: a moment where it is handed over at once, and it is not.
    let flood = flood(300);
    assert!(flood.len() < 64 * 1024, "{}", flood.len());
    raw.write(&flood).await;
    raw.say(&json!({ "type": "ping", "id": "behind" })).await;
    let (mut done, mut answers) = (Box::pin(next(&mut raw)), 0);
    loop {
        other.say(&json!({ "type": "ping" })).await;
        tokio::select! {
            biased;
            frame = &mut done => {
                assert_eq!(frame.json()["replyTo"], "behind");
                break;
            }
            frame = next(&mut other) => assert_eq!(frame.json()["type"], "pong"),
        }
        answers += 1;
    }
    // Eighteen megabytes in 60 turns; without them it is answered once.
    assert!(answers >= 5, "another session was answered {answers} times meanwhile");
}

/// A message as a client sends it.
fn deflated(message: &[u8]) -> Vec<u8> {
    let mut stream = flate2::Compress::new(flate2::Compression::best(), false);
    let mut out = vec![0; message.len() + 100];
    stream.compress(message, &mut out, flate2::FlushCompress::Sync).unwrap();
    out.truncate(stream.total_out() as usize - 4);
    out
}

/// Sessions whose memory is measured.
const SESSIONS: usize = 2000;

/// What a session takes that is idle again after messages in both directions, in bytes of the daemon's resident memory.
async fn idle_session_bytes(compression: &str) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let more = format!("ws.compression = \"{compression}\"\nlimits.connections_per_user = 0\n");
    let daemon = Daemon::start(&config(folder.path(), &more)).await;
    let mut rpc = Rpc::over_tcp(daemon.address("grpc"), Some(ADMIN)).await;
    let query = format!("token={}", Token::of("alice").sign());
    let text = json!({ "type": "echo", "data": long() }).to_string();
    let compressed = deflated(text.as_bytes());
    let mut sessions = Vec::new();
    let mut before = 0;
    // The first ones are not counted: what the process needs but once is there then.
    for number in 0..SESSIONS + 200 {
        if number == 200 {
            before = rpc.status().await.process.unwrap().rss_bytes;
        }
        let mut raw = Raw::connect(daemon.address("http")).await;
        let head = raw.request(&handshake(&query, "Sec-WebSocket-Extensions: permessage-deflate\r\n")).await;
        assert_eq!(head.contains("permessage-deflate"), compression == "auto", "{head}");
        message(&next(&mut raw).await);
        raw.say(&json!({ "type": "echo", "data": long() })).await;
        assert_eq!(message(&next(&mut raw).await)["data"], long());
        match compression {
            "auto" => raw.send(DEFLATED_TEXT, &compressed).await,
            _ => raw.send(TEXT, text.as_bytes()).await,
        }
        assert_eq!(message(&next(&mut raw).await)["data"], long());
        sessions.push(raw);
    }
    let after = rpc.status().await.process.unwrap().rss_bytes;
    (after.saturating_sub(before)) as f64 / SESSIONS as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_session_takes_no_more_memory_where_it_may_compress() {
    let (off, auto) = (idle_session_bytes("off").await, idle_session_bytes("auto").await);
    println!("an idle session: {off:.0} bytes without compression, {auto:.0} with it");
    // A window alone would be 32 KiB each way.
    assert!(auto <= off * 1.1, "{auto} bytes, and {off} without");
}
