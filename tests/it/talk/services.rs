//! What services do with topics: Publish, Subscribe, Unsubscribe, ListTopics, and a broadcast to a topic.

use pushgate::api::proto::{
    BroadcastFilter, BroadcastRequest, ListTopicsRequest, Notification, Outcome, PublishRequest, SubscribeRequest,
    UnsubscribeRequest, notification::Payload,
};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::rooms;
use crate::support::{
    Gateway, Rpc,
    rpc::{notification, ttl},
};

fn subscribe(topic: &str, users: &[&str], sessions: &[String]) -> SubscribeRequest {
    let user_ids = users.iter().map(|user| (*user).to_owned()).collect();
    SubscribeRequest { topic: topic.into(), user_ids, session_ids: sessions.to_vec() }
}

fn unsubscribe(topic: &str, users: &[&str], sessions: &[String]) -> UnsubscribeRequest {
    let SubscribeRequest { topic, user_ids, session_ids } = subscribe(topic, users, sessions);
    UnsubscribeRequest { topic, user_ids, session_ids }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_subscribe_users_and_sessions_whatever_clients_may_do() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut phone = gateway.client_with("alice", "device=phone").await;
    let mut tablet = gateway.client_with("alice", "device=tablet").await;
    let mut bob = gateway.client("bob").await;
    let changes = rpc.subscribe(subscribe("t", &["alice", "nobody"], &[])).await.unwrap();
    assert_eq!((changes.sessions, changes.changed, changes.refused), (2, 2, 0));
    // Named twice it is there once; who is in it already is not new.
    let both = subscribe("t", &["alice"], &[bob.session(), phone.session()]);
    let changes = rpc.subscribe(both).await.unwrap();
    assert_eq!((changes.sessions, changes.changed, changes.refused), (3, 1, 0));
    assert_eq!(rpc.publish("t", 1).await, 3);
    for client in [&mut phone, &mut tablet, &mut bob] {
        assert_eq!(client.next_plain().await, json!({ "type": "notification", "topic": "t", "data": 1 }));
    }
    assert_eq!(rpc.unsubscribe(unsubscribe("t", &[], &[phone.session(), bob.session()])).await.unwrap(), 2);
    assert_eq!(rpc.unsubscribe(unsubscribe("t", &["bob"], &[])).await.unwrap(), 0);
    assert_eq!(rpc.publish("t", 2).await, 1);
    assert_eq!(tablet.next().await["data"], 2);
    // A session that comes later is not in it.
    let mut late = gateway.client_with("alice", "device=late").await;
    assert_eq!(rpc.publish("t", 3).await, 1);
    assert_eq!(tablet.next().await["data"], 3);
    for client in [&mut phone, &mut bob, &mut late] {
        client.nothing_more().await;
    }
    // A client may leave what a service brought it into.
    assert_eq!(tablet.ask(&json!({ "type": "unsubscribe", "topic": "t" })).await["type"], "unsubscribed");
    assert_eq!(rpc.publish("t", 4).await, 0);
    // What is gone is no error.
    let gone = phone.session();
    phone.close().await;
    assert_eq!(rpc.subscribe(subscribe("t", &[], &[gone])).await.unwrap().sessions, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_for_services_too() {
    let gateway = Gateway::with(&[("limits.topics_per_session", "1"), ("limits.topic_sessions", "2")]).await;
    let mut rpc = gateway.rpc().await;
    let _clients = [gateway.client("alice").await, gateway.client("alice").await, gateway.client("alice").await];
    let changes = rpc.subscribe(subscribe("a", &["alice"], &[])).await.unwrap();
    assert_eq!((changes.sessions, changes.changed, changes.refused), (2, 2, 1));
    let changes = rpc.subscribe(subscribe("b", &["alice"], &[])).await.unwrap();
    assert_eq!((changes.sessions, changes.changed, changes.refused), (1, 1, 2));
    assert_eq!(gateway.errors("limit_reached").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_has_what_a_notification_has() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut text = gateway.client("alice").await;
    let mut binary = gateway.client_with("bob", "binary=1").await;
    rpc.subscribe(subscribe("t", &["alice", "bob"], &[])).await.unwrap();
    let publish = |notification| PublishRequest { topic: "t".into(), notification: Some(notification) };
    let raw = Notification {
        id: "mine".into(),
        r#type: "score".into(),
        from_user_id: "shop".into(),
        payload: Some(Payload::Json("{ \"a\":1.50 }".into())),
        ..Default::default()
    };
    let answer = rpc.try_publish(publish(raw.clone())).await.unwrap();
    assert_eq!((&*answer.id, answer.offset, answer.outcome(), answer.sessions), ("mine", 0, Outcome::Accepted, 2));
    let Message::Text(got) = text.next_message().await else { panic!("not text") };
    assert!(got.starts_with(r#"{"type":"score","id":"mine","timestamp":""#), "{got}");
    assert!(got.ends_with(r#","fromUserId":"shop","topic":"t","data":{ "a":1.50 }}"#), "{got}");
    binary.next().await;
    // Its id is not remembered: it is sent a second time.
    assert_eq!(rpc.try_publish(publish(raw)).await.unwrap().sessions, 2);
    assert_eq!((&text.next().await["id"], &binary.next().await["id"]), (&json!("mine"), &json!("mine")));

    let bytes = Notification { payload: Some(Payload::Binary(vec![0, 255].into())), ..Default::default() };
    rpc.try_publish(publish(bytes)).await.unwrap();
    assert_eq!(text.next_plain().await, json!({ "type": "notification", "topic": "t", "dataBase64": "AP8=" }));
    let Message::Binary(frame) = binary.next_message().await else { panic!("not binary") };
    let length = u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
    let envelope: serde_json::Value = serde_json::from_slice(&frame[4..4 + length]).unwrap();
    assert_eq!((&envelope["topic"], &frame[4 + length..]), (&json!("t"), &[0, 255][..]));

    let now = Notification { ttl: ttl(0, 0), ..notification(7) };
    assert_eq!(rpc.try_publish(publish(now)).await.unwrap().sessions, 2);
    let nobody = PublishRequest { topic: "nobody".into(), notification: Some(notification(1)) };
    let answer = rpc.try_publish(nobody).await.unwrap();
    assert_eq!((answer.outcome(), answer.sessions), (Outcome::Dropped, 0));
    assert!(!answer.id.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_may_be_for_a_topic() {
    let gateway = rooms().await;
    let mut rpc = gateway.rpc().await;
    let mut alice = gateway.client("alice").await;
    let mut bob = gateway.client("bob").await;
    let mut carol = gateway.client("carol").await;
    rpc.subscribe(subscribe("t", &["alice", "bob"], &[])).await.unwrap();
    let broadcast = |topic: &str, exclude: &[&str]| {
        let exclude_user_ids = exclude.iter().map(|user| (*user).to_owned()).collect();
        let in_topic = BroadcastFilter { topic: topic.into(), ..Default::default() };
        let filter = Some(BroadcastFilter { exclude_user_ids, ..in_topic });
        BroadcastRequest { notification: Some(notification(1)), filter, durable: false }
    };
    assert_eq!(rpc.try_broadcast(broadcast("t", &[])).await.unwrap().sessions, 2);
    assert_eq!(rpc.try_broadcast(broadcast("t", &["alice", "carol"])).await.unwrap().sessions, 1);
    let none = rpc.try_broadcast(broadcast("other", &[])).await.unwrap();
    assert_eq!((none.sessions, none.outcome()), (0, Outcome::Dropped));
    assert_eq!(alice.next_plain().await, json!({ "type": "notification", "data": 1 }), "it is no publication");
    bob.data(2).await;
    for client in [&mut alice, &mut bob, &mut carol] {
        client.nothing_more().await;
    }
    let durable = BroadcastRequest { durable: true, ..broadcast("t", &[]) };
    let refused = rpc.try_broadcast(durable).await.unwrap_err();
    assert!(refused.message().starts_with("filter.topic: is not for durable broadcasts"), "{refused}");
    let refused = rpc.try_broadcast(broadcast("a\nb", &[])).await.unwrap_err();
    assert_eq!(refused.message(), "filter.topic: a topic must not hold control characters");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_listed_by_name_in_pages() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let _clients = [gateway.client("alice").await, gateway.client("alice").await, gateway.client("bob").await];
    for topic in ["room.b", "room.a", "news", "room.c"] {
        rpc.subscribe(subscribe(topic, &["alice"], &[])).await.unwrap();
    }
    rpc.subscribe(subscribe("news", &["bob"], &[])).await.unwrap();
    let mut listed = async |request: ListTopicsRequest| {
        let page = rpc.topics(request).await.unwrap();
        let rows = page.topics.into_iter().map(|topic| (topic.topic, topic.sessions, topic.users)).collect::<Vec<_>>();
        (rows, page.next_page_token)
    };
    let row = |name: &str, sessions, users| (name.to_owned(), sessions, users);
    let all = [row("news", 3, 2), row("room.a", 2, 1), row("room.b", 2, 1), row("room.c", 2, 1)];
    assert_eq!(listed(ListTopicsRequest::default()).await, (all.to_vec(), String::new()));
    let of = |topic: &str| ListTopicsRequest { topic: topic.into(), ..Default::default() };
    let begin = |prefix: &str| ListTopicsRequest { prefix: prefix.into(), ..Default::default() };
    assert_eq!(listed(of("news")).await.0, [row("news", 3, 2)]);
    assert_eq!(listed(of("new")).await.0, []);
    assert_eq!(listed(ListTopicsRequest { prefix: "room.".into(), ..of("news") }).await.0, []);
    let (first, token) = listed(ListTopicsRequest { page_size: 2, ..begin("room.") }).await;
    assert_eq!(first, all[1..3]);
    let (rest, end) = listed(ListTopicsRequest { page_token: token.clone(), ..begin("room.") }).await;
    assert_eq!((rest, &*end), (all[3..].to_vec(), ""));
    for bad in [
        ListTopicsRequest { page_token: token, ..begin("news") },
        ListTopicsRequest { page_token: "x".into(), ..Default::default() },
        of(&"x".repeat(201)),
        begin("a\n"),
    ] {
        assert_eq!(rpc.topics(bad).await.unwrap_err().code(), Code::InvalidArgument);
    }
    // With their last members they are gone.
    rpc.unsubscribe(unsubscribe("news", &["alice", "bob"], &[])).await.unwrap();
    assert_eq!(rpc.topics(of("news")).await.unwrap().topics.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_malformed_is_refused_with_its_field() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let fields = |status: tonic::Status| {
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        let violations = status.get_error_details().bad_request().unwrap().field_violations.clone();
        violations.into_iter().map(|violation| violation.field).collect::<Vec<_>>()
    };
    let publish = |topic: &str, notification| PublishRequest { topic: topic.into(), notification };
    assert_eq!(fields(rpc.try_publish(publish("", None)).await.unwrap_err()), ["topic", "notification"]);
    let reserved = Notification { r#type: "user_joined".into(), ..notification(1) };
    assert_eq!(
        fields(rpc.try_publish(publish("a\u{7f}", Some(reserved))).await.unwrap_err()),
        ["topic", "notification.type"]
    );
    let large = Notification { payload: Some(Payload::Binary(vec![0; 300_000].into())), ..Default::default() };
    let refused = rpc.try_publish(publish("t", Some(large))).await.unwrap_err();
    assert!(refused.message().contains("limits.notification_bytes allows 262144"), "{refused}");
    let bad = SubscribeRequest::default();
    assert_eq!(fields(rpc.subscribe(bad).await.unwrap_err()), ["topic", "user_ids"]);
    let bad = subscribe("t", &["ok", ""], &["no-uuid".into()]);
    assert_eq!(fields(rpc.subscribe(bad).await.unwrap_err()), ["user_ids", "session_ids"]);
    let many = vec!["u"; 1001];
    assert_eq!(fields(rpc.subscribe(subscribe("t", &many, &[])).await.unwrap_err()), ["user_ids"]);
    assert_eq!(fields(rpc.unsubscribe(unsubscribe("", &["u"], &[])).await.unwrap_err()), ["topic"]);
    assert_eq!(fields(rpc.unsubscribe(unsubscribe("t", &[], &[])).await.unwrap_err()), ["user_ids"]);
    // Each call needs its scope.
    let mut reader = Rpc::over_tcp(gateway.grpc, Some("read-token")).await;
    let refused = reader.try_publish(publish("t", Some(notification(1)))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}
