//! What is slow: handshakes, connections that are half open, handlers.

use std::time::Duration;

use futures_util::StreamExt as _;
use pushgate::client::{AckMode, Builder, Client, ConnectError, Event, GiveUp};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio_tungstenite::tungstenite::{
    Message as Frame,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::support::{Gate, Peer, Played, Relay, Told, client_at, collecting, next};
use crate::support::{Gateway, Token, soon};

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_end_is_given_up() {
    let patience = Duration::from_millis(100);
    let silent = Played::new().await;
    let error = soon("an error", client_at(silent.url()).handshake_timeout(patience).connect()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { timeout, .. } if timeout == patience), "{error:?}");
    // One that shakes hands and then says nothing.
    let mute = Played::new().await;
    let url = mute.url();
    let connecting = tokio::spawn(async move { client_at(url).handshake_timeout(patience).connect().await });
    let _peer = mute.accept().await;
    let error = soon("an error", connecting).await.unwrap().unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_half_open_is_found_out_and_replaced() {
    let gateway = Gateway::start().await;
    let relay = Relay::to(gateway.http).await;
    let (disconnected, mut ends) = Told::new();
    let (connected, mut sessions) = Told::new();
    let (builder, mut messages) = collecting(client_at(relay.url()).token(Token::of("alice").sign()));
    let _client = builder
        .heartbeat_interval(Duration::from_millis(100))
        .heartbeat_timeout(Duration::from_millis(100))
        .on_connect(move |session| connected(session.number))
        .on_disconnect(move |end| disconnected(end.clone()))
        .start()
        .unwrap();
    assert_eq!(sessions.next().await, 1);
    relay.stall();
    gateway.rpc().await.send("alice", 1).await;
    let end = ends.next().await;
    assert!(end.code == 1006 && end.reason.contains("nothing was heard"), "{end}");
    relay.set(gateway.http);
    assert_eq!(sessions.next().await, 2);
    assert_eq!(next(&mut messages).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_message_on_a_slow_line_is_a_sign_of_life() {
    let played = Played::new().await;
    let (builder, mut messages) = collecting(client_at(played.url()));
    let patience = Duration::from_millis(100);
    let client = builder.heartbeat_interval(patience).heartbeat_timeout(patience).start().unwrap();
    let mut peer = played.session().await;
    let text = json!({ "type": "large", "data": "x".repeat(800) }).to_string();
    let mut frame = vec![0x81, 126];
    frame.extend_from_slice(&u16::try_from(text.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(text.as_bytes());
    // Longer than the interval and the timeout together, and never silent for long.
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    for part in frame.chunks(frame.len() / 20) {
        pace.tick().await;
        peer.socket.get_mut().write_all(part).await.unwrap();
    }
    assert_eq!(soon("the message", messages.recv()).await.unwrap().type_name(), "large");
    assert_eq!(client.session().unwrap().number, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_are_answered_while_the_handler_takes_its_time() {
    let played = Played::new().await;
    let (began, mut begun) = Told::new();
    let _client = client_at(played.url())
        .on_message(move |_| {
            began(());
            std::future::pending()
        })
        .start()
        .unwrap();
    let mut peer = played.session_with(json!({ "heartbeatIntervalMs": 100 })).await;
    peer.push("a", 1).await;
    begun.next().await;
    for _ in 0..3 {
        peer.nothing_more().await;
    }
    // And the client asks for signs of life itself.
    loop {
        if let Frame::Ping(_) = soon("a ping", peer.socket.next()).await.unwrap().unwrap() {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_lags_holds_up_the_gateway_and_loses_nothing() {
    const COUNT: u64 = 5_000;
    let played = Played::new().await;
    let gate = Gate::new();
    let (held, (handled, mut all)) = (gate.clone(), Told::new());
    let _client = client_at(played.url())
        .ack_mode(AckMode::Client)
        .on_message(move |message| {
            let (held, handled) = (held.clone(), handled.clone());
            async move {
                held.passed().await;
                handled(message.json::<(u64, String)>()?.0);
                Ok(())
            }
        })
        .start()
        .unwrap();
    let peer = played.session_with(json!({ "heartbeatIntervalMs": 300 })).await;
    let (mut sink, mut stream) = peer.socket.split();
    let sending = tokio::spawn(async move {
        let filler = "x".repeat(10_000);
        for n in 0..COUNT {
            let text = json!({ "type": "tick", "data": [n, filler] }).to_string();
            futures_util::SinkExt::send(&mut sink, Frame::text(text)).await.unwrap();
        }
        sink
    });
    // Reading pauses, and what shows the gateway that somebody is there comes unasked.
    for _ in 0..3 {
        loop {
            if let Frame::Pong(payload) = soon("a pong", stream.next()).await.unwrap().unwrap() {
                assert!(payload.is_empty());
                break;
            }
        }
    }
    assert!(!sending.is_finished(), "50 MB were taken in without a handler");
    gate.open();
    for n in 0..COUNT {
        assert_eq!(all.next().await, n);
    }
    drop(soon("all to be sent", sending).await.unwrap());
}

/// A client whose handler takes one message for ever, and a peer that has sent so many that reading pauses.
async fn paused(played: &Played, builder: Builder, fields: Value) -> (Client, Peer) {
    let client = builder.on_message(|_| std::future::pending()).start().unwrap();
    let mut peer = played.session_with(fields).await;
    // Little enough for the system to hold what is not read.
    for n in 0..1100 {
        peer.say(json!({ "type": "tick", "data": n })).await;
    }
    (client, peer)
}

/// The next sign of life that nobody asked for.
async fn sign(peer: &mut Peer) {
    let frame = soon("a pong", peer.socket.next()).await.unwrap().unwrap();
    assert!(matches!(&frame, Frame::Pong(payload) if payload.is_empty()), "{frame:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn signs_of_life_come_as_the_gateway_needs_them() {
    let played = Played::new().await;
    // The client itself would be content with one an hour.
    let builder = client_at(played.url()).heartbeat_interval(Duration::from_secs(3600));
    let (_client, mut peer) = paused(&played, builder, json!({ "heartbeatIntervalMs": 300 })).await;
    for _ in 0..3 {
        sign(&mut peer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_code_of_a_gateway_that_closes_while_reading_pauses_is_heard() {
    let played = Played::new().await;
    let (gave_up, mut reasons) = Told::new();
    let builder = client_at(played.url()).close_timeout(Duration::ZERO).on_give_up(move |why| gave_up(why.clone()));
    let (_client, mut peer) = paused(&played, builder, json!({ "heartbeatIntervalMs": 300 })).await;
    sign(&mut peer).await;
    peer.send(Frame::Close(Some(CloseFrame { code: CloseCode::Policy, reason: "banned".into() }))).await;
    drop(peer);
    let GiveUp::Closed(end) = reasons.next().await else { panic!("another reason") };
    assert_eq!((end.code, &*end.reason), (1008, "banned"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_events_that_lags_hears_so_and_delays_nobody() {
    let played = Played::new().await;
    let (builder, mut messages) = collecting(client_at(played.url()));
    let client = builder.start().unwrap();
    let mut lagging = client.events();
    let mut peer = played.session().await;
    for n in 0..2_000 {
        peer.say(json!({ "type": "tick", "data": n })).await;
        assert_eq!(next(&mut messages).await, n);
    }
    let missed = soon("an event", lagging.next()).await.unwrap();
    assert!(matches!(missed, Event::Missed(n) if n > 900), "{missed:?}");
    assert!(matches!(lagging.next().await, Some(Event::Message(_))));
}
