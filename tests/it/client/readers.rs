//! Readers of events: what a client without a handler hands out, to whom, and how often.

use pushgate::client::{Client, Event, Events, Message};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message as Frame;

use super::support::{Peer, Played, client_at};
use crate::support::soon;

/// The next message, whatever else happens.
async fn message(events: &mut Events) -> Message {
    loop {
        match soon("an event", events.next()).await.expect("an event, and not the end") {
            Event::Message(message) => return message,
            Event::Missed(count) => panic!("{count} were missed"),
            _ => {}
        }
    }
}

/// A client without a handler, one reader, and a session.
async fn reading(played: &Played) -> (Client, Events, Peer) {
    let client = client_at(played.url()).start().unwrap();
    let mut events = client.events();
    let peer = played.session().await;
    while !matches!(soon("a session", events.next()).await, Some(Event::Connected(_))) {}
    (client, events, peer)
}

/// Waits until everything up to that offset is acked.
async fn acked(peer: &mut Peer, offset: u64) {
    while peer.hear().await["offset"] != offset {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_dropped_takes_nothing_along() {
    for _ in 0..10 {
        let played = Played::new().await;
        let (client, mut events, mut peer) = reading(&played).await;
        // Once one was read, the next is waited for.
        peer.say(json!({ "type": "tick", "data": 0 })).await;
        assert_eq!(message(&mut events).await.data(), Some("0"));
        drop(events);
        peer.push("a", 1).await;
        peer.push("b", 2).await;
        peer.say(json!({ "type": "tick", "data": 1 })).await;
        // All of it is here.
        peer.nothing_more().await;
        let mut events = client.events();
        for expected in ["\"a\"", "\"b\"", "1"] {
            let message = message(&mut events).await;
            assert_eq!(message.data(), Some(expected));
            message.ack();
        }
        acked(&mut peer, 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_reader_misses_no_message_however_late_he_is() {
    const COUNT: u64 = 40;
    let played = Played::new().await;
    let (_client, mut events, mut peer) = reading(&played).await;
    // More than a reader has room for; then other events, more than that as well.
    let filler = "x".repeat(300_000);
    for n in 0..COUNT {
        peer.say(json!({ "type": "notification", "id": n.to_string(), "offset": n + 1, "data": filler })).await;
    }
    for _ in 0..1100 {
        peer.send(Frame::text("{")).await;
    }
    peer.nothing_more().await;
    let (mut heard, mut missed) = (0, 0);
    while heard < COUNT {
        match soon("an event", events.next()).await.unwrap() {
            Event::Message(message) => {
                assert_eq!(message.id(), Some(&*heard.to_string()));
                heard += 1;
                message.ack();
            }
            Event::Missed(count) => missed += count,
            _ => {}
        }
    }
    assert!(missed > 0, "errors make room for each other");
    acked(&mut peer, COUNT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_again_and_was_handled_meanwhile_is_passed_over() {
    let played = Played::new().await;
    let (client, mut events, mut peer) = reading(&played).await;
    let mut second = client.events();
    peer.push("a", 1).await;
    peer.push("b", 2).await;
    // Both are in the queues, unread.
    while message(&mut second).await.id() != Some("b") {}
    peer.close(1011).await;
    let mut peer = played.session().await;
    peer.push("a", 1).await;
    peer.push("b", 2).await;
    while message(&mut second).await.id() != Some("b") {}
    peer.push("c", 3).await;
    for expected in ["a", "b", "c"] {
        let message = message(&mut events).await;
        assert_eq!(message.id(), Some(expected));
        message.ack();
    }
    acked(&mut peer, 3).await;
    // The other reader sees what was acked by the first.
    assert_eq!(message(&mut second).await.id(), Some("c"));
}
