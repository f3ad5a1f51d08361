//! What the client sends: in order, once, bounded while there is nobody to take it; requests and their answers;
//! subscriptions and rooms.

use std::time::Duration;

use pushgate::{
    client::{Error, Event, RequestError, SendError, State},
    protocol::close::CloseCode,
    types::{ClosedBy, UserId},
};
use serde_json::{Value, json};

use super::support::{Played, Told, client_at, client_of, collecting};
use crate::support::{Gateway, soon, until};

const LONG: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn answers_find_their_requests() {
    let gateway = Gateway::start().await;
    let client = client_of(&gateway, "alice").connect().await.unwrap();
    let asked = (0..50).map(|n| {
        let client = client.clone();
        async move { client.request("echo", &json!({ "n": n }), LONG).await.unwrap().json::<Value>().unwrap() }
    });
    let answers = soon("all answers", futures_util::future::join_all(asked)).await;
    assert_eq!(answers, (0..50).map(|n| json!({ "n": n })).collect::<Vec<_>>());
    let answer = client.request("echo", &json!("a"), LONG).await.unwrap();
    assert_eq!((answer.type_name(), answer.data()), ("echo_response", Some("\"a\"")));
    assert!(client.ping().await.unwrap() < LONG);
    let refused = client.request("nobody.knows", &(), LONG).await.unwrap_err();
    assert!(matches!(&refused, RequestError::Refused { code, .. } if code == "unknown_type"), "{refused:?}");
    let refused = client.ask(&json!({ "type": "user_list", "topic": "t" }), LONG).await.unwrap_err();
    assert!(matches!(&refused, RequestError::Refused { code, .. } if code == "forbidden"), "{refused:?}");
    assert!(matches!(client.request("", &(), LONG).await, Err(RequestError::Send(SendError::NotAMessage(_)))));
    let large = client.request("echo", &"x".repeat(70_000), LONG).await.unwrap_err();
    assert!(matches!(large, RequestError::Send(SendError::TooLarge { max: 65_536, .. })), "{large:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_without_a_request_is_answered_by_message_or_error() {
    let gateway = Gateway::start().await;
    let (failed, mut failures) = Told::new();
    let (builder, mut messages) = collecting(client_of(&gateway, "alice"));
    let client = builder.on_error(move |error| failed(error.clone())).connect().await.unwrap();
    client.send_text(r#"{"type":"echo","id":"mine","data":[1]}"#).unwrap();
    let answer = soon("a message", messages.recv()).await.unwrap();
    assert_eq!((answer.type_name(), answer.reply_to(), answer.data()), ("echo_response", Some("mine"), Some("[1]")));
    client.send_json(&json!({ "type": "what", "id": "x" })).unwrap();
    let Error::Gateway { code, reply_to, .. } = failures.next().await else { panic!("another error") };
    assert_eq!((&*code, reply_to.as_deref()), ("unknown_type", Some("x")));
    assert!(answer.client().is_some_and(|client| client.state() == State::Connected));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_ends_in_time_and_with_its_connection() {
    let played = Played::new().await;
    let client = client_at(played.url()).start().unwrap();
    // While there is nobody: it is taken back.
    assert_eq!(client.request("a", &1, Duration::from_millis(50)).await.unwrap_err(), RequestError::Timeout);
    let asking = |name: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { client.request(name, &1, LONG).await })
    };
    let waiting = asking("waits");
    let mut peer = played.session().await;
    let asked = peer.hear().await;
    assert_eq!(asked["type"], "waits", "the one that was taken back has not left");
    // A late answer to what nobody waits for, an answer to another, and the one.
    peer.say(json!({ "type": "reply", "replyTo": "other", "data": 0 })).await;
    peer.say(json!({ "type": "reply", "replyTo": asked["id"], "data": 7 })).await;
    assert_eq!(soon("an answer", waiting).await.unwrap().unwrap().data(), Some("7"));

    let under_way = asking("lost");
    peer.hear().await;
    peer.close(1011).await;
    assert_eq!(soon("an answer", under_way).await.unwrap().unwrap_err(), RequestError::Lost);
    let mut peer = played.session().await;
    peer.nothing_more().await;
    let under_way = asking("ended");
    peer.hear().await;
    let closing = tokio::spawn(async move { client.close().await });
    assert_eq!(peer.closed().await, 1000);
    let error = soon("an answer", under_way).await.unwrap().unwrap_err();
    assert!(matches!(error, RequestError::Lost | RequestError::Ended), "{error:?}");
    soon("the end", closing).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_offline_waits_in_order_and_leaves_once() {
    let played = Played::new().await;
    let client = client_at(played.url()).queue_messages(3).start().unwrap();
    for n in 0..3 {
        client.send_json(&json!({ "type": "say", "data": n })).unwrap();
    }
    let full = client.send_json(&json!({ "type": "say", "data": 3 })).unwrap_err();
    assert!(matches!(full, SendError::Full { messages: 3, bytes } if bytes > 0), "{full:?}");
    let error = client.request("say", &4, LONG).await.unwrap_err();
    assert!(matches!(error, RequestError::Send(SendError::Full { .. })), "{error:?}");
    let mut peer = played.session().await;
    for n in 0..3 {
        assert_eq!(peer.hear().await["data"], n);
    }
    peer.close(1011).await;
    let mut peer = played.session().await;
    client.send_json(&json!({ "type": "say", "data": "next" })).unwrap();
    assert_eq!(peer.hear().await["data"], "next", "nothing leaves twice");

    let none = client_at(Played::new().await.url()).queue_messages(0).start().unwrap();
    assert_eq!(none.send_text(r#"{"type":"a"}"#), Err(SendError::Full { messages: 0, bytes: 0 }));
    let bytes = client_at(Played::new().await.url()).queue_bytes(20).start().unwrap();
    bytes.send_text(r#"{"type":"a"}"#).unwrap();
    assert!(matches!(bytes.send_text(r#"{"type":"a"}"#), Err(SendError::Full { messages: 1, bytes: 12 })));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_is_not_sent() {
    let played = Played::new().await;
    let client = client_at(played.url()).start().unwrap();
    assert!(matches!(client.send_text("hello"), Err(SendError::NotAMessage(_))));
    assert!(matches!(client.send_json(&json!({ "no": "type" })), Err(SendError::NotAMessage(_))));
    assert!(matches!(client.send_binary(&json!({ "type": "b", "data": 1 }), []), Err(SendError::NotAMessage(_))));
    assert_eq!(client.send_json(&json!({ "type": "ack", "offset": 1 })), Err(SendError::Reserved("ack")));
    // Queued before it is known how much the gateway takes.
    let (failed, mut failures) = Told::new();
    let small = Played::new().await;
    let client = client_at(small.url()).on_error(move |error| failed(error.clone())).start().unwrap();
    client.send_json(&json!({ "type": "say", "data": "x".repeat(500) })).unwrap();
    client.send_json(&json!({ "type": "say", "data": "y" })).unwrap();
    let mut peer = small.session_with(json!({ "maxMessageBytes": 100 })).await;
    assert!(matches!(failures.next().await, Error::NotSent(SendError::TooLarge { max: 100, .. })));
    assert_eq!(peer.hear().await["data"], "y");
}

/// Answers the next so many subscriptions; what was asked for.
async fn confirm(peer: &mut super::support::Peer, count: usize) -> Vec<String> {
    let mut asked = Vec::new();
    for _ in 0..count {
        let ask = peer.hear().await;
        let name = ask["topic"].as_str().or(ask["roomId"].as_str()).unwrap();
        asked.push(format!("{} {name}", ask["type"].as_str().unwrap()));
        let answer = match ask["type"].as_str().unwrap() {
            "unsubscribe" | "leave_room" => "unsubscribed",
            _ => "subscribed",
        };
        peer.say(json!({ "type": answer, "replyTo": ask["id"] })).await;
    }
    asked.sort();
    asked
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_and_rooms_are_taken_up_again() {
    let played = Played::new().await;
    let client = client_at(played.url()).start().unwrap();
    let mut events = client.events();
    // Before there is a session.
    let (one, two) = (client.clone(), client.clone());
    let wanting = tokio::spawn(async move { tokio::join!(one.subscribe("news"), one.join_room("lobby")) });
    let mut peer = played.session().await;
    assert_eq!(confirm(&mut peer, 2).await, ["join_room lobby", "subscribe news"]);
    assert_eq!(soon("the answers", wanting).await.unwrap(), (Ok(()), Ok(())));
    client.subscribe("news").await.unwrap();
    peer.nothing_more().await;
    peer.close(1011).await;
    let mut peer = played.session().await;
    assert_eq!(confirm(&mut peer, 2).await, ["join_room lobby", "subscribe news"]);
    // Confirmed on the first session, and on this one.
    let mut subscribed = Vec::new();
    while subscribed.len() < 4 {
        if let Event::Subscribed(what) = soon("an event", events.next()).await.unwrap() {
            subscribed.push(what);
        }
    }
    subscribed.sort();
    assert_eq!(subscribed, ["room lobby", "room lobby", "topic news", "topic news"]);
    let leaving = tokio::spawn(async move { tokio::join!(two.leave_room("lobby"), two.unsubscribe("nothing")) });
    assert_eq!(confirm(&mut peer, 1).await, ["leave_room lobby"]);
    assert_eq!(soon("the answers", leaving).await.unwrap(), (Ok(()), Ok(())));
    peer.close(1011).await;
    let mut peer = played.session().await;
    assert_eq!(confirm(&mut peer, 1).await, ["subscribe news"]);
    assert!(matches!(client.subscribe("").await, Err(RequestError::Send(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_is_refused_is_told_and_dropped() {
    let gateway = Gateway::start().await;
    let (failed, mut failures) = Told::new();
    let client = client_of(&gateway, "alice").on_error(move |error| failed(error.clone())).connect().await.unwrap();
    let refused = client.subscribe("news").await.unwrap_err();
    assert!(matches!(&refused, RequestError::Refused { code, .. } if code == "forbidden"), "{refused:?}");
    let Error::Subscription { what, code, .. } = failures.next().await else { panic!("another error") };
    assert_eq!((&*what, &*code), ("topic news", "forbidden"));
    let refused = client.join_room("lobby").await.unwrap_err();
    assert!(matches!(refused, RequestError::Refused { .. }));
    assert!(matches!(failures.next().await, Error::Subscription { .. }));
    until("no sign of more", true, async || client.ping().await.is_ok()).await;
    assert!(failures.0.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_the_gateway_are_taken_up_again_and_spoken_in() {
    let rule = r#"[{ pattern = "room.*", subscribe = ["*"], publish = ["*"], presence = ["*"] }]"#;
    let gateway = Gateway::with(&[("topics", rule), ("limits.topics_per_session", "2")]).await;
    let (builder, mut messages) = collecting(client_of(&gateway, "alice"));
    let alice = builder.connect().await.unwrap();
    alice.subscribe("room.1").await.unwrap();
    alice.join_room("room.2").await.unwrap();
    let bob = client_of(&gateway, "bob").connect().await.unwrap();
    bob.send_json(&json!({ "type": "publish", "topic": "room.1", "kind": "chat", "data": 1 })).unwrap();
    bob.send_binary(&json!({ "type": "publish", "topic": "room.2", "kind": "picture" }), [7, 8]).unwrap();
    let said = soon("a message", messages.recv()).await.unwrap();
    assert_eq!(
        (said.type_name(), said.topic(), said.kind(), said.data()),
        ("publish", Some("room.1"), Some("chat"), Some("1"))
    );
    assert_eq!(said.from_user_id(), Some("bob"));
    let said = soon("a message", messages.recv()).await.unwrap();
    assert_eq!(
        (said.topic(), said.kind(), said.bytes().map(|bytes| &**bytes)),
        (Some("room.2"), Some("picture"), Some(&[7, 8][..]))
    );
    let there = alice.ask(&json!({ "type": "user_list", "topic": "room.1" }), LONG).await.unwrap();
    assert_eq!(there.type_name(), "user_list");
    // Over a limit it is put off, not given up.
    let wanted = tokio::spawn({
        let alice = alice.clone();
        async move { alice.subscribe("room.3").await }
    });
    until("refused", true, async || gateway.errors("limit_reached").await > 0).await;
    alice.unsubscribe("room.1").await.unwrap();
    soon("the third", wanted).await.unwrap().unwrap();

    let user = UserId::parse("alice").unwrap();
    for session in gateway.hub.user_sessions(&user) {
        session.close(CloseCode::RESTART, "again", ClosedBy::Gateway);
    }
    until("back in both", (1, 1), async || {
        let mut rpc = gateway.rpc().await;
        (rpc.publish("room.2", 2).await, rpc.publish("room.3", 3).await)
    })
    .await;
    assert_eq!(gateway.rpc().await.publish("room.1", 1).await, 0, "she left it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_left_and_is_wanted_again_is_wanted() {
    let played = Played::new().await;
    let client = client_at(played.url()).start().unwrap();
    let wanting = tokio::spawn({
        let client = client.clone();
        async move { client.subscribe("t").await }
    });
    let mut peer = played.session().await;
    confirm(&mut peer, 1).await;
    soon("the answer", wanting).await.unwrap().unwrap();
    for _ in 0..20 {
        let client = client.clone();
        let changing = tokio::spawn(async move { tokio::join!(client.unsubscribe("t"), client.subscribe("t")) });
        for expected in ["unsubscribe", "subscribe"] {
            let ask = peer.hear().await;
            assert_eq!(ask["type"], expected);
            peer.say(json!({ "type": "done", "replyTo": ask["id"] })).await;
        }
        assert_eq!(soon("the answers", changing).await.unwrap(), (Ok(()), Ok(())));
    }
    // What is under way ends with the session, and so does what the gateway knew.
    let leaving = tokio::spawn(async move { client.unsubscribe("t").await.map(|()| client) });
    assert_eq!(peer.hear().await["type"], "unsubscribe");
    peer.close(1011).await;
    let _client = soon("the end of the session", leaving).await.unwrap().unwrap();
    played.session().await.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_is_put_off_is_asked_for_again() {
    let played = Played::new().await;
    let (failed, mut failures) = Told::new();
    let client = client_at(played.url()).on_error(move |error| failed(error.clone())).start().unwrap();
    let wanting = tokio::spawn(async move { client.subscribe("t").await.map(|()| client) });
    let mut peer = played.session().await;
    for session in 0..2 {
        let ask = peer.hear().await;
        let since = std::time::Instant::now();
        peer.say(json!({ "type": "error", "code": "rate_limited", "message": "later", "replyTo": ask["id"] })).await;
        let Error::Subscription { what, code, again: Some(again), .. } = failures.next().await else {
            panic!("another error")
        };
        assert_eq!((&*what, &*code), ("topic t", "rate_limited"));
        if session == 0 {
            peer.close(1011).await;
            peer = played.session().await;
        } else {
            let ask = peer.hear().await;
            super::support::at_least(since, again);
            peer.say(json!({ "type": "subscribed", "replyTo": ask["id"] })).await;
        }
    }
    soon("the answer", wanting).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_larger_than_the_next_session_takes_hears_so() {
    let played = Played::new().await;
    let client = client_at(played.url()).start().unwrap();
    let text = "x".repeat(500);
    let asking = client.request("echo", &text, Duration::MAX);
    let mut asking = std::pin::pin!(asking);
    // Asked before it is known how much the gateway takes.
    assert!(futures_util::poll!(&mut asking).is_pending());
    let _peer = played.session_with(json!({ "maxMessageBytes": 100 })).await;
    let error = soon("an answer", asking).await.unwrap_err();
    assert!(matches!(error, RequestError::Send(SendError::TooLarge { max: 100, .. })), "{error:?}");
}
