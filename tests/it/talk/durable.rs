//! Durable topics: what is published to one comes to each device that is in it, now or when it is back.

use std::time::Duration;

use pushgate::api::proto::{
    DropReason, ListTopicsRequest, Notification, Outcome, PublishRequest, PublishResponse, SubscribeRequest,
    UnsubscribeRequest, event::Event,
};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{
    Client, Gateway, Raw, Rpc, Token,
    rpc::{notification, own, ttl},
    until,
};

const LOGS: (&str, &str) = (
    "topics",
    r#"[{ pattern = "log.*", subscribe = ["*"], publish = ["*"], presence = ["*"], durable = true, max_records = 5 },
        { pattern = "day.*", subscribe = ["*"], durable = true, ttl = "24h" },
        { pattern = "team.{team}", subscribe = ["*"], durable = true },
        { pattern = "room.*", subscribe = ["*"], publish = ["*"] }]"#,
);

async fn logs() -> Gateway {
    Gateway::with(&[LOGS]).await
}

impl Rpc {
    async fn tell(&mut self, topic: &str, notification: Notification) -> PublishResponse {
        let request = PublishRequest { topic: topic.to_owned(), notification: Some(notification) };
        self.try_publish(request).await.unwrap()
    }

    async fn in_topics(&mut self, user: &str) -> Vec<(String, Vec<(String, u32)>)> {
        let devices = self.devices(user).await;
        let topics = |device: pushgate::api::proto::Device| {
            let topics = device.topics.into_iter().map(|one| (one.topic, one.pending));
            (device.device, topics.collect())
        };
        devices.into_iter().map(topics).collect()
    }
}

/// Has a device of a user in a topic, and away.
async fn member(gateway: &Gateway, user: &str, device: &str, topic: &str) {
    let mut client = gateway.client_with(user, &format!("device={device}")).await;
    client.subscribe(topic).await;
    client.close().await;
    gateway.sessions(user, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_gets_what_was_published_while_it_was_away_across_restarts() {
    let gateway = logs().await;
    let mut rpc = gateway.rpc().await;
    rpc.tell("log.1", notification("before")).await;
    member(&gateway, "alice", "phone", "log.1").await;
    let mut bob = gateway.client_with("bob", "device=desk").await;
    bob.subscribe("log.1").await;
    let mut out = gateway.client("out").await;
    let sent = rpc.tell("log.1", notification("one")).await;
    assert_eq!((sent.outcome(), sent.sessions, sent.duplicate), (Outcome::Stored, 1, false));
    assert!(sent.offset > 0);
    let live = bob.next().await;
    assert_eq!((&live["data"], &live["topic"], &live["offset"]), (&json!("one"), &json!("log.1"), &json!(sent.offset)));
    assert!(live.get("replayed").is_none());
    bob.settle().await;
    rpc.tell("log.2", notification("elsewhere")).await;
    out.nothing_more().await;
    assert_eq!(rpc.in_topics("alice").await, [("phone".to_owned(), vec![("log.1".to_owned(), 1)])]);
    assert_eq!(rpc.in_topics("bob").await, [("desk".to_owned(), vec![("log.1".to_owned(), 0)])]);

    let gateway = gateway.restart().await;
    let mut rpc = gateway.rpc().await;
    rpc.tell("log.1", notification("two")).await;
    let mut alice = gateway.client_with("alice", "device=phone").await;
    assert_eq!((&alice.hello["pending"], &alice.hello["topics"]), (&json!(2), &json!(["log.1"])));
    let got = alice.next().await;
    assert_eq!((&got["data"], &got["replayed"], &got["id"]), (&json!("one"), &json!(true), &json!(sent.id)));
    assert_eq!(alice.data(1).await, ["two"]);
    // It is in it without having asked again.
    rpc.tell("log.1", notification("three")).await;
    assert_eq!(alice.data(1).await, ["three"]);
    alice.settle().await;
    until("what waits", vec![("phone".to_owned(), vec![("log.1".to_owned(), 0)])], async || {
        gateway.rpc().await.in_topics("alice").await
    })
    .await;
    alice.close().await;
    gateway.sessions("alice", 0).await;
    let mut alice = gateway.client_with("alice", "device=phone").await;
    assert_eq!(alice.hello["pending"], 0);
    alice.nothing_more().await;
    let mut bob = gateway.client_with("bob", "device=desk").await;
    assert_eq!(bob.data(2).await, ["two", "three"], "what it confirmed before does not come again");
    // Another device of hers is not in it.
    let mut tablet = gateway.client_with("alice", "device=tablet").await;
    assert_eq!(tablet.hello.get("topics"), None);
    tablet.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_confirmed_comes_again() {
    let gateway = logs().await;
    let mut rpc = gateway.rpc().await;
    member(&gateway, "alice", "phone", "log.1").await;
    for n in 0..3 {
        rpc.tell("log.1", notification(n)).await;
    }
    let mut silent = Raw::session(&gateway, "alice", "device=phone").await;
    for n in 0..3 {
        assert_eq!(silent.text().await["data"], n);
    }
    drop(silent);
    gateway.sessions("alice", 0).await;
    let mut alice = gateway.client_with("alice", "device=phone&ackMode=client").await;
    let (first, second) = (alice.next().await, alice.next().await);
    assert_eq!((&first["data"], &second["data"]), (&json!(0), &json!(1)));
    alice.say(&json!({ "type": "ack", "offset": second["offset"] })).await;
    assert_eq!(alice.data(1).await, [2]);
    alice.close().await;
    gateway.sessions("alice", 0).await;
    let mut alice = gateway.client_with("alice", "device=phone").await;
    assert_eq!(alice.data(1).await, [2]);
    alice.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_membership_is_the_devices_and_ends_when_it_says_so_or_is_forgotten() {
    let gateway = logs().await;
    let mut rpc = gateway.rpc().await;
    // Two sessions of one device: what one joins, the other hears.
    let mut first = gateway.client_with("alice", "device=phone").await;
    let mut second = gateway.client_with("alice", "device=phone").await;
    first.subscribe("log.1").await;
    let answer = second.ask(&json!({ "type": "join_room", "roomId": "log.1", "id": "7" })).await;
    assert_eq!(
        (&answer["type"], &answer["roomId"], &answer["replyTo"]),
        (&json!("subscribed"), &json!("log.1"), &json!("7"))
    );
    rpc.tell("log.1", notification(1)).await;
    for client in [&mut first, &mut second] {
        assert_eq!(client.data(1).await, [1]);
    }
    // What one leaves, both have left.
    let answer = first.ask(&json!({ "type": "unsubscribe", "topic": "log.1" })).await;
    assert_eq!(answer["type"], "unsubscribed");
    let sent = rpc.tell("log.1", notification(2)).await;
    assert_eq!((sent.outcome(), sent.sessions), (Outcome::Stored, 0));
    for client in [&mut first, &mut second] {
        client.nothing_more().await;
    }
    drop((first, second));
    gateway.sessions("alice", 0).await;
    let gateway = gateway.restart().await;
    let mut rpc = gateway.rpc().await;
    let mut alice = gateway.client_with("alice", "device=phone").await;
    assert_eq!((&alice.hello["pending"], alice.hello.get("topics")), (&json!(0), None));
    // Again in it, it begins at the present.
    alice.subscribe("log.1").await;
    alice.nothing_more().await;
    alice.close().await;
    gateway.sessions("alice", 0).await;
    rpc.tell("log.1", notification(3)).await;
    rpc.forget_device("alice", Some("phone")).await.unwrap();
    let mut alice = gateway.client_with("alice", "device=phone").await;
    assert_eq!((&alice.hello["gap"], alice.hello.get("topics")), (&json!(true), None));
    alice.nothing_more().await;
    assert_eq!(rpc.in_topics("alice").await, [("phone".to_owned(), vec![])]);
    // Nothing of it is left on disk either.
    alice.close().await;
    gateway.sessions("alice", 0).await;
    member(&gateway, "alice", "phone", "log.1").await;
    rpc.forget_user("alice").await;
    let gateway = gateway.restart().await;
    assert_eq!(gateway.client_with("alice", "device=phone").await.hello.get("topics"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_publish_durably_and_do_not_hear_themselves() {
    let gateway = logs().await;
    member(&gateway, "bob", "desk", "log.1").await;
    let mut alice = gateway.client_with("alice", "device=phone").await;
    let mut tablet = gateway.client_with("alice", "device=tablet").await;
    alice.subscribe("log.1").await;
    assert_eq!(alice.hello["type"], "auth_success");
    tablet.subscribe("log.1").await;
    for n in 0..3 {
        alice.say(&json!({ "type": "publish", "topic": "log.1", "kind": "chat", "data": n })).await;
    }
    for n in 0..3 {
        let got = tablet.next().await;
        assert_eq!((&got["type"], &got["fromUserId"], &got["data"]), (&json!("publish"), &json!("alice"), &json!(n)));
        assert!(got["offset"].as_u64().is_some_and(|offset| offset > 0));
    }
    // Typing is never stored.
    alice.say(&json!({ "type": "typing", "topic": "log.1", "data": null })).await;
    assert_eq!(tablet.next().await["type"], "typing");
    alice.nothing_more().await;
    until("what waits", vec![0, 0], async || {
        let devices = gateway.rpc().await.in_topics("alice").await;
        devices.into_iter().map(|(_, topics)| topics[0].1).collect::<Vec<_>>()
    })
    .await;
    alice.close().await;
    let mut bob = gateway.client_with("bob", "device=desk").await;
    assert_eq!(bob.hello["pending"], 3);
    for n in 0..3 {
        let got = bob.next().await;
        assert_eq!((&got["kind"], &got["data"], &got["topic"]), (&json!("chat"), &json!(n), &json!("log.1")));
    }
    bob.nothing_more().await;
    let mut alice = gateway.client_with("alice", "device=phone").await;
    assert_eq!(alice.hello["pending"], 0);
    alice.nothing_more().await;
    // Who may not publish may not publish durably, and who may not subscribe is no member.
    let (code, _) = alice.refused(&json!({ "type": "publish", "topic": "day.1", "data": 1 })).await;
    assert_eq!(code, "forbidden");
    let (code, _) = alice.refused(&json!({ "type": "subscribe", "topic": "other" })).await;
    assert_eq!(code, "forbidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_keeps_its_latest_records_and_each_as_long_as_it_says() {
    let gateway = logs().await;
    let mut rpc = gateway.rpc().await;
    member(&gateway, "alice", "phone", "log.1").await;
    member(&gateway, "alice", "phone", "day.1").await;
    let mut events = rpc.events(&["notification_expired", "notification_dropped"], "").await;
    let first = rpc.tell("log.1", notification(0)).await;
    for n in 1..7 {
        rpc.tell("log.1", notification(n)).await;
    }
    let Event::NotificationDropped(dropped) = events.body().await else { panic!() };
    assert_eq!(
        (dropped.reason(), dropped.offset, dropped.topic.as_str()),
        (DropReason::TopicFull, first.offset, "log.1")
    );
    assert!(!dropped.broadcast && dropped.user_id.is_empty());
    assert!(matches!(events.body().await, Event::NotificationDropped(_)));
    let mut alice = gateway.client_with("alice", "device=phone").await;
    assert_eq!((&alice.hello["pending"], &alice.hello["gap"]), (&json!(5), &json!(true)));
    assert_eq!(alice.data(5).await, [2, 3, 4, 5, 6]);
    alice.settle().await;
    alice.close().await;
    gateway.sessions("alice", 0).await;
    // A newer one takes the place of one with its key, and what has expired is not there.
    let keyed = |data: &str| Notification { collapse_key: "k".into(), ..notification(data) };
    rpc.tell("log.1", keyed("old")).await;
    rpc.tell("log.1", keyed("new")).await;
    assert!(matches!(events.body().await, Event::NotificationDropped(one) if one.reason() == DropReason::TopicFull));
    assert!(matches!(events.body().await, Event::NotificationDropped(one) if one.reason() == DropReason::Superseded));
    let short = rpc.tell("log.1", Notification { ttl: ttl(60, 0), ..notification("short") }).await;
    assert!(matches!(events.body().await, Event::NotificationDropped(one) if one.reason() == DropReason::TopicFull));
    let day = rpc.tell("day.1", notification("day")).await;
    gateway.later(Duration::from_secs(121));
    let Event::NotificationExpired(expired) = events.body().await else { panic!() };
    assert_eq!((expired.offset, expired.topic.as_str(), expired.broadcast), (short.offset, "log.1", false));
    let mut alice = gateway.client_with("alice", "device=phone").await;
    assert_eq!((&alice.hello["pending"], &alice.hello["gap"]), (&json!(2), &json!(false)));
    let mut got = alice.data(2).await;
    got.sort_by_key(Value::to_string);
    assert_eq!(got, ["day", "new"]);
    alice.close().await;
    gateway.later(Duration::from_secs(24 * 3600 + 121));
    let Event::NotificationExpired(expired) = events.body().await else { panic!() };
    assert_eq!((expired.offset, expired.topic.as_str()), (day.offset, "day.1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_own_id_is_published_once_in_each_topic() {
    let gateway = logs().await;
    let mut rpc = gateway.rpc().await;
    let mut alice = gateway.client("alice").await;
    alice.subscribe("log.1").await;
    let first = rpc.tell("log.1", own("mine", 1)).await;
    let again = rpc.tell("log.1", own("mine", 1)).await;
    assert_eq!((again.offset, again.duplicate, first.duplicate), (first.offset, true, false));
    let other = PublishRequest { topic: "log.1".into(), notification: Some(own("mine", 2)) };
    assert_eq!(rpc.try_publish(other).await.unwrap_err().code(), Code::AlreadyExists);
    assert!(!rpc.tell("log.2", own("mine", 2)).await.duplicate);
    assert_eq!(alice.data(1).await, [1]);
    alice.nothing_more().await;
    // Now or never is not stored, and reaches who is there.
    let now = rpc.tell("log.1", Notification { ttl: ttl(0, 0), ..notification("now") }).await;
    assert_eq!((now.outcome(), now.offset, now.sessions), (Outcome::Accepted, 0, 1));
    assert_eq!(alice.data(1).await, ["now"]);
    let gateway = gateway.restart().await;
    let again = gateway.rpc().await.tell("log.1", own("mine", 1)).await;
    assert_eq!((again.offset, again.duplicate), (first.offset, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn services_have_devices_in_topics_that_are_away() {
    let gateway = logs().await;
    let mut rpc = gateway.rpc().await;
    for (user, device) in [("alice", "phone"), ("alice", "tablet"), ("bob", "desk")] {
        gateway.client_with(user, &format!("device={device}")).await.close().await;
        gateway.sessions(user, 0).await;
    }
    let mut carol = gateway.client_with("carol", "device=c").await;
    let request = SubscribeRequest {
        topic: "log.9".into(),
        user_ids: vec!["alice".into(), "nobody".into()],
        session_ids: vec![carol.session()],
    };
    let changes = rpc.subscribe(request.clone()).await.unwrap();
    assert_eq!((changes.devices, changes.sessions, changes.changed, changes.refused), (3, 1, 1, 0));
    let changes = rpc.subscribe(request).await.unwrap();
    assert_eq!((changes.devices, changes.sessions, changes.changed), (3, 1, 0));
    rpc.tell("log.9", notification(1)).await;
    assert_eq!(carol.data(1).await, [1]);
    let listed = rpc.topics(ListTopicsRequest { prefix: "log.".into(), ..Default::default() }).await.unwrap().topics;
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].topic.as_str(), listed[0].durable, listed[0].records, listed[0].sessions),
        ("log.9", true, 1, 1)
    );
    assert!(listed[0].bytes > 0);
    assert_eq!(gateway.client_with("alice", "device=phone").await.data(1).await, [1]);
    let request = UnsubscribeRequest { topic: "log.9".into(), user_ids: vec!["alice".into()], ..Default::default() };
    rpc.unsubscribe(request).await.unwrap();
    let mut tablet = gateway.client_with("alice", "device=tablet").await;
    tablet.nothing_more().await;
    assert_eq!(gateway.client_with("bob", "device=desk").await.hello["pending"], 0);
    // It is listed although nobody is in it, for as long as something is kept.
    let gateway = gateway.restart().await;
    let mut rpc = gateway.rpc().await;
    let topic = ListTopicsRequest { topic: "log.9".into(), ..Default::default() };
    let listed = rpc.topics(topic).await.unwrap().topics;
    assert_eq!((listed[0].records, listed[0].sessions, listed[0].durable), (1, 0, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_has_its_device_in_topics_and_one_that_is_not_allowed_hears_nothing() {
    let gateway = logs().await;
    let mut rpc = gateway.rpc().await;
    let red = Token::of("alice").with("team", json!("red"));
    let mut alice = gateway.client_by(&red, "device=phone").await;
    alice.subscribe("team.red").await;
    alice.close().await;
    gateway.sessions("alice", 0).await;
    rpc.tell("team.red", notification(1)).await;
    // Her token does not say so any more.
    let mut alice = gateway.client_with("alice", "device=phone").await;
    assert_eq!((&alice.hello["pending"], alice.hello.get("topics")), (&json!(0), None));
    alice.nothing_more().await;
    alice.close().await;
    let mut alice = gateway.client_by(&red, "device=phone").await;
    assert_eq!(alice.data(1).await, [1], "what it lacked was kept for it");

    let named = Token::of("bob").with("topics", json!(["day.7", "room.7"]));
    let bob = gateway.client_by(&named, "device=desk").await;
    assert_eq!(bob.hello["topics"], json!(["room.7", "day.7"]));
    bob.close().await;
    gateway.sessions("bob", 0).await;
    rpc.tell("day.7", notification(2)).await;
    rpc.tell("room.7", notification(3)).await;
    let mut bob = gateway.client_with("bob", "device=desk").await;
    assert_eq!(bob.hello["topics"], json!(["day.7"]));
    assert_eq!(bob.data(1).await, [2]);
    bob.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_in_at_most_as_many_topics_as_a_session_may_be() {
    let gateway = Gateway::with(&[LOGS, ("limits.topics_per_session", "2")]).await;
    let mut alice: Client = gateway.client("alice").await;
    alice.subscribe("log.1").await;
    alice.subscribe("log.2").await;
    let (code, message) = alice.refused(&json!({ "type": "subscribe", "topic": "log.3" })).await;
    assert_eq!(code, "limit_reached");
    assert!(message.contains("limits.topics_per_session"), "{message}");
    alice.ask(&json!({ "type": "unsubscribe", "topic": "log.1" })).await;
    alice.subscribe("log.3").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_members_of_two_topics_get_all_of_each_in_order() {
    let gateway = Gateway::with(&[(LOGS.0, r#"[{ pattern = "*", subscribe = ["*"], durable = true }]"#)]).await;
    let mut rpc = gateway.rpc().await;
    let mut clients = Vec::new();
    for n in 0..100 {
        let mut client = gateway.client(&format!("user{n}")).await;
        client.subscribe("all").await;
        client.subscribe("second").await;
        clients.push(client);
    }
    for n in 0..150 {
        let topic = if n % 3 == 0 { "second" } else { "all" };
        rpc.tell(topic, notification(n)).await;
    }
    for client in &mut clients {
        let mut got = client.data(150).await;
        assert!(got.iter().filter(|n| n.as_u64().unwrap() % 3 == 0).is_sorted_by_key(|n| n.as_u64()));
        assert!(got.iter().filter(|n| n.as_u64().unwrap() % 3 != 0).is_sorted_by_key(|n| n.as_u64()));
        got.sort_by_key(|n| n.as_u64());
        assert_eq!(got, (0..150).map(Value::from).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_session_of_a_member_hears_by_its_own_token() {
    let gateway = logs().await;
    let mut rpc = gateway.rpc().await;
    let red = Token::of("alice").with("team", json!("red"));
    let mut allowed = gateway.client_by(&red, "device=phone").await;
    let mut other = gateway.client_with("alice", "device=phone").await;
    allowed.subscribe("team.red").await;
    assert_eq!(other.refused(&json!({ "type": "subscribe", "topic": "team.red" })).await.0, "forbidden");
    rpc.tell("team.red", notification(1)).await;
    assert_eq!(allowed.data(1).await, [1]);
    allowed.settle().await;
    other.nothing_more().await;
    // What its token says, or a service, holds without a right of its own.
    let named = Token::of("alice").with("topics", json!(["team.red"]));
    let mut named = gateway.client_by(&named, "device=phone").await;
    assert_eq!(named.hello["topics"], json!(["team.red"]));
    rpc.tell("team.red", notification(2)).await;
    for client in [&mut allowed, &mut other, &mut named] {
        assert_eq!(client.data(1).await, [2]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_on_an_open_session_adds_its_durable_topics() {
    let gateway = logs().await;
    let mut rpc = gateway.rpc().await;
    let mut alice = gateway.client_with("alice", "device=phone").await;
    let token = Token::of("alice").with("topics", json!(["log.1", "room.1"])).sign();
    let answer = alice.ask(&json!({ "type": "auth", "token": token })).await;
    assert_eq!((&answer["type"], &answer["topics"]), (&json!("auth_success"), &json!(["room.1"])));
    until("its topics", vec![("phone".to_owned(), vec![("log.1".to_owned(), 0)])], async || {
        gateway.rpc().await.in_topics("alice").await
    })
    .await;
    rpc.tell("log.1", notification(1)).await;
    assert_eq!(alice.data(1).await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_is_no_member_and_what_is_empty_is_not_listed() {
    let gateway = Gateway::with(&[LOGS, ("limits.topics_per_session", "2")]).await;
    let mut rpc = gateway.rpc().await;
    let mut alice = gateway.client_with("alice", "device=phone").await;
    alice.subscribe("room.1").await;
    alice.subscribe("room.2").await;
    assert_eq!(alice.refused(&json!({ "type": "subscribe", "topic": "log.1" })).await.0, "limit_reached");
    assert_eq!(rpc.in_topics("alice").await, [("phone".to_owned(), vec![])]);
    for n in 0..4 {
        rpc.tell(&format!("log.{n}"), Notification { ttl: ttl(60, 0), ..notification(n) }).await;
    }
    rpc.tell("log.z", notification("kept")).await;
    gateway.later(Duration::from_secs(121));
    let listed = async |size| {
        let request = ListTopicsRequest { prefix: "log.".into(), page_size: size, ..Default::default() };
        let page = gateway.rpc().await.topics(request).await.unwrap();
        page.topics.into_iter().map(|topic| topic.topic).collect::<Vec<_>>()
    };
    until("what is kept", vec!["log.z".to_owned()], async || listed(100).await).await;
    assert_eq!(listed(2).await, ["log.z"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_nobody_waits_for_is_carried_out_all_the_same() {
    let gateway = logs().await;
    gateway.client_with("alice", "device=phone").await.close().await;
    gateway.sessions("alice", 0).await;
    // Dropped at whatever point it has come to.
    for n in 0..50 {
        let mut rpc = gateway.rpc().await;
        let (topic, user_ids) = (format!("log.{n}"), vec!["alice".to_owned()]);
        let call = rpc.subscribe(SubscribeRequest { topic, user_ids, session_ids: Vec::new() });
        let _ = tokio::time::timeout(Duration::from_micros(200 * n), call).await;
    }
    let joined = || async { gateway.rpc().await.in_topics("alice").await.remove(0).1 };
    let mut settled = joined().await;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = joined().await;
        if now == settled {
            break;
        }
        settled = now;
    }
    let mut rpc = gateway.rpc().await;
    for (topic, _) in &settled {
        rpc.tell(topic, notification(topic.as_str())).await;
    }
    let mut alice = gateway.client_with("alice", "device=phone").await;
    assert_eq!(alice.hello["pending"], settled.len(), "what is listed is what it hears");
    alice.data(settled.len()).await;
    alice.nothing_more().await;
}
