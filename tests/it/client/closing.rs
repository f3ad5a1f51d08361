//! Closing and giving up: how long that takes, what is handed over meanwhile, and what is told in which order.

use std::time::{Duration, Instant};

use pushgate::client::{AckMode, Error, Event, State};
use serde_json::json;

use super::support::{Gate, Peer, Played, Told, client_at};
use crate::support::soon;

#[tokio::test(flavor = "multi_thread")]
async fn closing_takes_its_time_once() {
    let played = Played::new().await;
    let (began, mut begun) = Told::new();
    let client = client_at(played.url())
        .close_timeout(Duration::from_secs(2))
        .on_message(move |_| {
            began(());
            std::future::pending()
        })
        .start()
        .unwrap();
    let mut peer = played.session().await;
    peer.push("a", 1).await;
    begun.next().await;
    let since = Instant::now();
    // The peer answers no close frame.
    soon("the end", client.close()).await;
    assert!(since.elapsed() < Duration::from_millis(3500), "{:?}", since.elapsed());
    assert_eq!(client.state(), State::Closed);
    assert_eq!(peer.closed().await, 1000, "and nothing was acked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_waits_for_another_try_is_the_last() {
    for _ in 0..20 {
        let played = Played::new().await;
        let (failed, mut failures) = Told::new();
        let (came, mut coming) = Told::new();
        let client = client_at(played.url())
            .on_error(move |error| failed(error.clone()))
            .on_message(move |message| {
                came(message.id().unwrap().to_owned());
                async { Err("not now".into()) }
            })
            .start()
            .unwrap();
        let mut peer = played.session().await;
        peer.push("a", 1).await;
        peer.push("b", 2).await;
        peer.nothing_more().await;
        assert!(matches!(failures.next().await, Error::Handler { .. }));
        let closing = tokio::spawn(async move { client.close().await });
        assert_eq!(peer.closed().await, 1000);
        drop(peer);
        soon("the end", closing).await.unwrap();
        while let Some(id) = coming.0.recv().await {
            assert_eq!(id, "a");
        }
    }
}

/// A client whose handler waits at a gate, and what it was given.
fn held(played: &Played, mode: AckMode) -> (pushgate::client::Client, Gate, Told<String>) {
    let (came, coming) = Told::new();
    let gate = Gate::new();
    let held = gate.clone();
    let builder = client_at(played.url()).ack_mode(mode).on_message(move |message| {
        came(message.id().unwrap().to_owned());
        let held = held.clone();
        async move {
            held.passed().await;
            Ok(())
        }
    });
    (builder.start().unwrap(), gate, coming)
}

/// Closes the client while its handler is with the first; what is handed over behind that.
async fn closed_with(
    client: pushgate::client::Client,
    gate: Gate,
    mut coming: Told<String>,
    mut peer: Peer,
) -> Vec<String> {
    assert_eq!(coming.next().await, "under way");
    let mut states = client.states();
    let closing = tokio::spawn(async move { client.close().await });
    assert!(soon("closing", states.wait_for(State::Closing)).await);
    peer.say(json!({ "type": "tick", "id": "late" })).await;
    peer.push("late and stored", 9).await;
    gate.open();
    assert_eq!(peer.closed().await, 1000);
    drop(peer);
    soon("the end", closing).await.unwrap();
    let mut all = Vec::new();
    while let Some(id) = coming.0.recv().await {
        all.push(id);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn once_closed_nothing_more_is_handed_over() {
    let played = Played::new().await;
    let (client, gate, coming) = held(&played, AckMode::Client);
    let mut peer = played.session().await;
    for id in ["under way", "waits"] {
        peer.say(json!({ "type": "tick", "id": id })).await;
    }
    peer.nothing_more().await;
    assert_eq!(closed_with(client, gate, coming, peer).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pong_has_confirmed_is_handed_over_yet_and_nothing_more_is_read() {
    let played = Played::new().await;
    let (client, gate, coming) = held(&played, AckMode::Transport);
    let mut peer = played.session_with(json!({ "ackMode": "transport" })).await;
    peer.push("under way", 1).await;
    peer.say(json!({ "type": "tick", "id": "not stored" })).await;
    peer.push("confirmed", 2).await;
    peer.nothing_more().await;
    assert_eq!(closed_with(client, gate, coming, peer).await, ["confirmed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_closes_while_the_client_does_changes_nothing() {
    for code in [1012, 1000] {
        let played = Played::new().await;
        let (gave_up, mut reasons) = Told::new();
        let (disconnected, mut ends) = Told::new();
        let (began, mut begun) = Told::new();
        let gate = Gate::new();
        let held = gate.clone();
        let client = client_at(played.url())
            .on_give_up(move |why| gave_up(why.clone()))
            .on_disconnect(move |end| disconnected(end.code))
            .on_message(move |_| {
                began(());
                let held = held.clone();
                async move {
                    held.passed().await;
                    Ok(())
                }
            })
            .start()
            .unwrap();
        let mut peer = played.session().await;
        peer.push("a", 1).await;
        begun.next().await;
        let mut states = client.states();
        let closing = tokio::spawn(async move { client.close().await });
        assert!(soon("closing", states.wait_for(State::Closing)).await);
        peer.close(code).await;
        assert_eq!(ends.next().await, code);
        gate.open();
        soon("the end", closing).await.unwrap();
        assert_eq!((states.next().await, states.next().await), (Some(State::Closed), None), "{code}");
        assert!(reasons.0.try_recv().is_err(), "{code}: it was asked to");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn giving_up_is_told_when_it_is_over() {
    let played = Played::new().await;
    let gate = Gate::new();
    let held = gate.clone();
    let client = client_at(played.url())
        .on_message(move |_| {
            let held = held.clone();
            async move {
                held.passed().await;
                Ok(())
            }
        })
        .start()
        .unwrap();
    let mut events = client.events();
    let mut peer = played.session().await;
    for n in 0..3 {
        peer.say(json!({ "type": "tick", "data": n })).await;
    }
    peer.close(1000).await;
    let mut states = client.states();
    assert!(soon("the drain", states.wait_for(State::Closing)).await);
    assert_eq!(client.send_text(r#"{"type":"a"}"#), Err(pushgate::client::SendError::Ended));
    gate.open();
    let (mut messages, mut last) = (0, Vec::new());
    while let Some(event) = soon("the end of the events", events.next()).await {
        messages += usize::from(matches!(event, Event::Message(_)));
        last.push(event);
    }
    assert_eq!(messages, 3);
    assert!(matches!(last[last.len() - 2..], [Event::GaveUp(_), Event::State(State::GaveUp)]), "{last:?}");
}
