//! What is delivered: acked once it was handled, handed over in order, once, across restarts and broken connections.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use pushgate::client::{AckMode, Error, Event, State};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message as Frame;

use super::support::{Gate, Played, Relay, Told, client_at, client_of, collecting, next};
use crate::support::{Gateway, Token, rpc::notification, rpc::ttl, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn what_the_handler_took_is_confirmed() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    rpc.send("alice", json!({ "n": 1.50 })).await;
    let (builder, mut messages) = collecting(client_of(&gateway, "alice").device("phone"));
    let client = builder.connect().await.unwrap();
    let session = client.session().unwrap();
    assert_eq!((&*session.user_id, &*session.device, session.pending, session.gap), ("alice", "phone", 1, false));
    assert_eq!((session.number, session.ack_mode), (1, AckMode::Client));
    assert!(!session.id.is_empty() && !session.store_epoch.is_empty() && session.token_expires_at.is_some());
    assert_eq!(client.state(), State::Connected);
    let first = soon("a message", messages.recv()).await.unwrap();
    assert_eq!((first.type_name(), first.data(), first.replayed()), ("notification", Some(r#"{"n":1.5}"#), true));
    assert!(first.id().is_some() && first.offset().is_some() && first.timestamp().is_some());
    rpc.send("alice", 2).await;
    assert_eq!(next(&mut messages).await, 2);
    until("what waits", 0, || gateway.pending()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_handler_refuses_comes_again_and_holds_up_what_follows() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let (failed, mut failures) = Told::new();
    let (sender, mut handled) = mpsc::unbounded_channel();
    let tries = Arc::new(AtomicU32::new(0));
    let gate = Gate::new();
    let held = gate.clone();
    let _client = client_of(&gateway, "alice")
        .on_error(move |error| failed(error.clone()))
        .on_message(move |message| {
            let (sender, tries, held) = (sender.clone(), Arc::clone(&tries), held.clone());
            async move {
                let n = message.json::<u32>()?;
                match (n, tries.fetch_add(u32::from(n == 2), Ordering::SeqCst)) {
                    (2, 0) => Err("not now".into()),
                    (2, 1) => panic!("nor now"),
                    (2, _) => {
                        held.passed().await;
                        sender.send(n).map_err(Into::into)
                    }
                    _ => sender.send(n).map_err(Into::into),
                }
            }
        })
        .connect()
        .await
        .unwrap();
    for n in 1..=3 {
        rpc.send("alice", n).await;
    }
    for (expected, text) in [(1, "not now"), (2, "it panicked: nor now")] {
        let Error::Handler { attempt, problem, offset, .. } = failures.next().await else { panic!("another error") };
        assert_eq!((attempt, &*problem, offset.is_some()), (expected, text, true));
    }
    assert_eq!(soon("the first", handled.recv()).await, Some(1));
    // The first is acked; the second and the one behind it are not.
    until("what waits", 2, || gateway.pending()).await;
    assert!(handled.try_recv().is_err());
    gate.open();
    assert_eq!(soon("the second", handled.recv()).await, Some(2));
    assert_eq!(soon("the third", handled.recv()).await, Some(3));
    until("what waits", 0, || gateway.pending()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_loses_nothing_and_repeats_nothing_that_was_handled() {
    let mut gateway = Gateway::start().await;
    let relay = Relay::to(gateway.http).await;
    let (connected, mut sessions) = Told::new();
    let (disconnected, mut ends) = Told::new();
    let (builder, mut messages) = collecting(client_at(relay.url()).token(Token::of("alice").sign()));
    let client = builder
        .on_connect(move |session| connected(session.number))
        .on_disconnect(move |end| disconnected(end.clone()))
        .connect()
        .await
        .unwrap();
    let mut heard = Vec::new();
    for round in 0..2 {
        assert_eq!(sessions.next().await, round + 1);
        let mut rpc = gateway.rpc().await;
        for n in 0..40 {
            rpc.send("alice", round * 1000 + n).await;
        }
        // Some are handled before the restart, some on the way, some never arrived.
        for _ in 0..10 {
            heard.push(next(&mut messages).await.as_u64().unwrap());
        }
        relay.cut();
        assert_eq!(ends.next().await.code, 1006);
        gateway = gateway.restart().await;
        relay.set(gateway.http);
    }
    while heard.len() < 80 {
        heard.push(next(&mut messages).await.as_u64().unwrap());
    }
    assert_eq!(heard, (0..40).chain(1000..1040).collect::<Vec<_>>());
    until("what waits", 0, || gateway.pending()).await;
    assert!(messages.try_recv().is_err(), "nothing twice");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_gateway_is_come_back_to() {
    let mut gateway = Gateway::start().await;
    let relay = Relay::to(gateway.http).await;
    let (disconnected, mut ends) = Told::new();
    let (builder, mut messages) = collecting(client_at(relay.url()).token(Token::of("alice").sign()));
    let client = builder.on_disconnect(move |end| disconnected(end.clone())).connect().await.unwrap();
    let mut states = client.states();
    gateway.rpc().await.send("alice", 1).await;
    assert_eq!(next(&mut messages).await, 1);
    let since = std::time::Instant::now();
    gateway = gateway.restart().await;
    relay.set(gateway.http);
    let end = ends.next().await;
    assert_eq!(end.code, 1012, "{end}");
    let after = end.reconnect_after.expect("it was asked to wait");
    gateway.rpc().await.send("alice", 2).await;
    assert_eq!(next(&mut messages).await, 2);
    super::support::at_least(since, after);
    let mut seen = Vec::new();
    while seen.last() != Some(&State::Connected) || seen.len() == 1 {
        seen.push(soon("a state", states.next()).await.unwrap());
    }
    assert_eq!(seen, [State::Connected, State::Waiting, State::Connecting, State::Connected]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_handled_while_the_connection_breaks_is_not_handed_over_again() {
    let gateway = Gateway::start().await;
    let relay = Relay::to(gateway.http).await;
    let (connected, mut sessions) = Told::new();
    let (began, mut begun) = Told::new();
    let gate = Gate::new();
    let (held, counts) = (gate.clone(), Arc::new(Mutex::new(HashMap::<u64, u32>::new())));
    let counted = Arc::clone(&counts);
    let _client = client_at(relay.url())
        .token(Token::of("alice").sign())
        .on_connect(move |session| connected(session.clone()))
        .on_message(move |message| {
            let (held, counted, began) = (held.clone(), Arc::clone(&counted), began.clone());
            async move {
                let n = message.json::<u64>()?;
                began(n);
                held.passed().await;
                *counted.lock().unwrap().entry(n).or_default() += 1;
                Ok(())
            }
        })
        .connect()
        .await
        .unwrap();
    sessions.next().await;
    let mut rpc = gateway.rpc().await;
    rpc.send("alice", 1).await;
    rpc.send("alice", 2).await;
    assert_eq!(begun.next().await, 1);
    relay.cut();
    gateway.sessions("alice", 0).await;
    relay.set(gateway.http);
    assert_eq!(sessions.next().await.pending, 2, "nothing was acked");
    gate.open();
    assert_eq!(begun.next().await, 2);
    until("what waits", 0, || gateway.pending()).await;
    assert_eq!(*counts.lock().unwrap(), HashMap::from([(1, 1), (2, 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_follow_the_order_of_delivery_and_repeats_are_acked_unseen() {
    let played = Played::new().await;
    let (builder, mut messages) = collecting(client_at(played.url()));
    let _client = builder.start().unwrap();
    let mut peer = played.session().await;
    // Offsets of two logs, and what is not stored in between.
    peer.push("a", 10).await;
    peer.say(json!({ "type": "tick", "data": "live" })).await;
    peer.push("b", 3).await;
    for expected in ["a", "live", "b"] {
        assert_eq!(next(&mut messages).await, expected);
    }
    let mut acked = Vec::new();
    while acked.last() != Some(&json!(3)) {
        acked.push(peer.hear().await["offset"].clone());
    }
    assert!(acked == [json!(10), json!(3)] || acked == [json!(3)], "{acked:?}");
    peer.close(1011).await;
    let mut peer = played.session().await;
    peer.push("b", 3).await;
    peer.push("c", 11).await;
    assert_eq!(next(&mut messages).await, "c", "the repeat is kept from the handler");
    let mut acked = Vec::new();
    while acked.last() != Some(&json!(11)) {
        acked.push(peer.hear().await["offset"].clone());
    }
    assert!(acked == [json!(3), json!(11)] || acked == [json!(11)], "{acked:?}");
    peer.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_handler_messages_wait_for_a_reader_who_says_what_he_handled() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let relay = Relay::to(gateway.http).await;
    let client = client_at(relay.url()).token(Token::of("alice").sign()).connect().await.unwrap();
    for n in 1..=3 {
        rpc.send("alice", n).await;
    }
    client.ping().await.unwrap();
    let mut events = client.events();
    let mut messages = Vec::new();
    while messages.len() < 3 {
        if let Event::Message(message) = soon("an event", events.next()).await.unwrap() {
            messages.push(message);
        }
    }
    // Not in order: what is before it is not handled.
    messages[1].ack();
    client.ping().await.unwrap();
    assert_eq!(gateway.pending().await, 3);
    messages[0].ack();
    messages[0].ack();
    until("what waits", 1, || gateway.pending()).await;
    relay.cut();
    gateway.sessions("alice", 0).await;
    relay.set(gateway.http);
    loop {
        if let Event::Message(message) = soon("an event", events.next()).await.unwrap() {
            assert_eq!(message.json::<u32>().unwrap(), 3, "it was not handled, and comes again");
            // The one of the earlier session will do: it is the same.
            messages[2].ack();
            break;
        }
    }
    until("what waits", 0, || gateway.pending()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_transport_mode_pongs_confirm() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let (builder, mut messages) = collecting(client_of(&gateway, "alice").ack_mode(AckMode::Transport));
    let client = builder.connect().await.unwrap();
    assert_eq!(client.session().unwrap().ack_mode, AckMode::Transport);
    rpc.send("alice", 1).await;
    assert_eq!(next(&mut messages).await, 1);
    until("what waits", 0, || gateway.pending()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_stored_is_tried_once() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let (failed, mut failures) = Told::new();
    let (came, mut seen) = Told::new();
    let _client = client_of(&gateway, "alice")
        .on_error(move |error| failed(error.clone()))
        .on_message(move |message| {
            came(message.json::<u32>().unwrap());
            async { Err("never".into()) }
        })
        .connect()
        .await
        .unwrap();
    for n in 1..=2 {
        rpc.send_to("alice", pushgate::api::proto::Notification { ttl: ttl(0, 0), ..notification(n) }).await;
    }
    for n in 1..=2 {
        assert_eq!(seen.next().await, n);
        assert!(matches!(failures.next().await, Error::Handler { attempt: 1, offset: None, .. }));
    }
}

/// An error that cannot be put into words.
#[derive(Debug)]
struct Unspeakable;

impl std::fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("no words")
    }
}

impl std::error::Error for Unspeakable {}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_panics_is_a_failure_like_any() {
    let played = Played::new().await;
    let (failed, mut failures) = Told::new();
    let (came, mut coming) = Told::new();
    let _client = client_at(played.url())
        .token_provider(|| async { Ok("t".to_owned()) })
        .on_error(move |error| failed(error.clone()))
        .on_message(move |message| {
            came(message.json::<u32>().unwrap());
            async { Err(Unspeakable.into()) }
        })
        .start()
        .unwrap();
    let mut peer = played.session().await;
    for n in 0..3 {
        peer.say(json!({ "type": "tick", "data": n })).await;
        assert_eq!(coming.next().await, n);
        let Error::Handler { problem, .. } = failures.next().await else { panic!("another error") };
        assert_eq!(problem, "it panicked: no words");
    }
    let error =
        client_at(played.url()).token_provider(|| async { Err(Unspeakable.into()) }).connect().await.unwrap_err();
    assert_eq!(error.to_string(), "no token: the provider panicked");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_come_as_binary_or_base64_and_leave_as_binary() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    for binary in [true, false] {
        let (builder, mut messages) = collecting(client_of(&gateway, &format!("user-{binary}")).binary(binary));
        let client = builder.connect().await.unwrap();
        let payload = pushgate::api::proto::notification::Payload::Binary(vec![0, 255, 1].into());
        let bytes = pushgate::api::proto::Notification { payload: Some(payload), ..Default::default() };
        rpc.send_to(&format!("user-{binary}"), bytes).await;
        let message = soon("a message", messages.recv()).await.unwrap();
        assert_eq!((message.bytes().map(|bytes| bytes.to_vec()), message.data()), (Some(vec![0, 255, 1]), None));
        assert!(message.offset().is_some());
        client.close().await;
    }
    until("what waits", 0, || gateway.pending()).await;

    let played = Played::new().await;
    let client = client_at(played.url()).start().unwrap();
    client.send_binary(&json!({ "type": "blob", "to": "bob" }), [0, 255]).unwrap();
    let mut peer = played.session().await;
    let Frame::Binary(frame) = peer.frame().await else { panic!("no binary message") };
    let length = u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
    let envelope: serde_json::Value = serde_json::from_slice(&frame[4..4 + length]).unwrap();
    assert_eq!((envelope, &frame[4 + length..]), (json!({ "type": "blob", "to": "bob" }), &[0, 255][..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_is_told_and_left_out() {
    let played = Played::new().await;
    let (failed, mut failures) = Told::new();
    let (builder, mut messages) = collecting(client_at(played.url()));
    let _client = builder.on_error(move |error| failed(error.clone())).start().unwrap();
    let mut peer = played.session().await;
    for frame in [Frame::text("{"), Frame::text("[]"), Frame::binary(&b"\0\0"[..]), Frame::binary(&b"\xff\0\0\0{}"[..])]
    {
        peer.send(frame).await;
        assert!(matches!(failures.next().await, Error::BadMessage(_)));
    }
    peer.say(json!({ "type": "notification", "id": "a", "data": 1, "unknown": { "x": [] } })).await;
    assert_eq!(next(&mut messages).await, 1);
}
