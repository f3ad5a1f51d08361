//! How clients and tokens bring sessions into topics, and how they leave.

use pushgate::api::proto::{ListSessionsRequest, SubscriptionCause, event::Event};
use serde_json::json;

use super::{ROOMS, rooms};
use crate::support::{Client, Gateway, Token, client::request, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_gets_what_is_published_until_he_leaves() {
    let gateway = rooms().await;
    let mut rpc = gateway.rpc().await;
    let mut alice = gateway.client("alice").await;
    let mut bob = gateway.client("bob").await;
    assert_eq!(rpc.publish("room.1", 0).await, 0, "nobody is in it");

    alice.say(&json!({ "type": "subscribe", "topic": "room.1", "id": "s" })).await;
    let expected = json!({ "type": "subscribed", "topic": "room.1", "replyTo": "s" });
    assert_eq!(alice.next_plain().await, expected);
    bob.say(&json!({ "type": "join_room", "roomId": "room.1" })).await;
    assert_eq!(bob.next_plain().await, json!({ "type": "subscribed", "topic": "room.1", "roomId": "room.1" }));
    let came = alice.next().await;
    assert_eq!((&came["type"], &came["userId"]), (&json!("user_joined"), &json!("bob")));
    alice.subscribe("room.1").await;
    alice.subscribe("room.2").await;

    assert_eq!(rpc.publish("room.1", json!({ "n": 1 })).await, 2, "subscribed once, however often it was asked");
    assert_eq!(rpc.publish("room.2", 2).await, 1);
    let one = json!({ "type": "notification", "topic": "room.1", "data": { "n": 1 } });
    assert_eq!(bob.next_plain().await, one);
    assert_eq!(alice.next_plain().await, one);
    assert_eq!(alice.next_plain().await["topic"], "room.2");

    alice.say(&json!({ "type": "unsubscribe", "topic": "room.1", "id": 1.to_string() })).await;
    assert_eq!(alice.next_plain().await, json!({ "type": "unsubscribed", "topic": "room.1", "replyTo": "1" }));
    assert_eq!(bob.next().await["type"], "user_left");
    bob.say(&json!({ "type": "leave_room", "roomId": "room.1" })).await;
    assert_eq!(bob.next_plain().await, json!({ "type": "unsubscribed", "topic": "room.1", "roomId": "room.1" }));
    // Leaving what one is not in changes nothing.
    assert_eq!(bob.ask(&json!({ "type": "leave_room", "roomId": "room.1" })).await["type"], "unsubscribed");
    assert_eq!(rpc.publish("room.1", 3).await, 0);
    alice.nothing_more().await;
    bob.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_comes_to_each_member_in_order() {
    let gateway = rooms().await;
    let mut members = Vec::new();
    for n in 0..40 {
        let mut member = gateway.client_with(&format!("user-{}", n % 7), &format!("device=d{n}")).await;
        // Those of the same user are quiet about it.
        member.say(&json!({ "type": "subscribe", "topic": "room.1" })).await;
        while member.next().await["type"] != "subscribed" {}
        members.push(member);
    }
    let mut rpc = gateway.rpc().await;
    for n in 0..100 {
        assert_eq!(rpc.publish("room.1", n).await, 40);
    }
    for member in &mut members {
        let mut data = Vec::new();
        while data.len() < 100 {
            let message = member.next().await;
            if message["type"] == "notification" {
                data.push(message["data"].as_u64().unwrap());
            }
        }
        assert_eq!(data, (0..100).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_takes_its_subscriptions_along_when_it_ends() {
    let gateway = rooms().await;
    let mut rpc = gateway.rpc().await;
    let mut first = gateway.client("alice").await;
    let mut second = gateway.client("alice").await;
    first.subscribe("room.1").await;
    second.subscribe("room.1").await;
    first.close().await;
    gateway.sessions("alice", 1).await;
    assert_eq!(rpc.publish("room.1", 1).await, 1);
    drop(second);
    gateway.sessions("alice", 0).await;
    assert_eq!(rpc.publish("room.1", 2).await, 0);
    // A new session has none of them.
    let mut third = gateway.client("alice").await;
    assert_eq!(rpc.publish("room.1", 3).await, 0);
    third.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_none_is_a_bad_message() {
    let gateway = Gateway::with(&[
        ("topics", r#"[{ pattern = "*", subscribe = ["*"], publish = ["*"], presence = ["*"] }]"#),
        ("limits.bad_messages", "0"),
    ])
    .await;
    let mut alice = gateway.client("alice").await;
    let verbs = [("subscribe", "topic"), ("unsubscribe", "topic"), ("join_room", "roomId"), ("leave_room", "roomId")];
    for (verb, field) in verbs.into_iter().chain([("publish", "topic"), ("user_list", "topic"), ("typing", "topic")]) {
        for (name, text) in [
            (json!(""), "a topic must have 1 to 200 bytes, this one has 0"),
            (json!("x".repeat(201)), "a topic must have 1 to 200 bytes, this one has 201"),
            (json!("a\u{0}b"), "a topic must not hold control characters"),
            (json!(7), &*format!("`{verb}` needs `{field}`, a string")),
        ] {
            let (code, message) = alice.refused(&json!({ "type": verb, field: name })).await;
            assert_eq!(code, "bad_message");
            assert!(message.ends_with(text), "{verb} {name}: {message}");
        }
        assert_eq!(alice.refused(&json!({ "type": verb })).await.0, "bad_message", "{verb}");
    }
    for good in ["x", &"ä".repeat(100), "*", "{sub}", " "] {
        alice.subscribe(good).await;
        assert_eq!(gateway.rpc().await.publish(good, 1).await, 1);
        assert_eq!(alice.next().await["topic"], good);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_and_a_topic_have_limits() {
    let limits = [ROOMS, ("limits.topics_per_session", "2"), ("limits.topic_sessions", "3")];
    let gateway = Gateway::with(&limits).await;
    let mut alice = gateway.client("alice").await;
    alice.subscribe("room.1").await;
    alice.subscribe("room.2").await;
    let ask = |topic: &str| json!({ "type": "subscribe", "topic": topic });
    let (code, message) = alice.refused(&ask("room.3")).await;
    assert_eq!(code, "limit_reached");
    assert_eq!(message, "a session is in at most 2 topics (limits.topics_per_session); leave one first");
    alice.subscribe("room.2").await;
    assert_eq!(alice.ask(&json!({ "type": "unsubscribe", "topic": "room.2" })).await["type"], "unsubscribed");
    alice.subscribe("room.3").await;

    let mut others = Vec::new();
    for n in 0..2 {
        let mut other = gateway.client(&format!("user-{n}")).await;
        other.subscribe("room.1").await;
        others.push(other);
    }
    let mut late = gateway.client("late").await;
    let (code, message) = late.refused(&ask("room.1")).await;
    assert_eq!(code, "limit_reached");
    assert_eq!(message, "this topic has as many sessions as it may have, 3 (limits.topic_sessions)");
    assert_eq!(gateway.errors("limit_reached").await, 2);
    // Whoever leaves makes room.
    drop(others.pop());
    gateway.sessions("user-1", 0).await;
    late.subscribe("room.1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_brings_its_session_into_topics_whatever_the_rules() {
    let gateway = Gateway::with(&[("limits.topics_per_session", "3")]).await;
    let mut rpc = gateway.rpc().await;
    let token = |topics| Token::of("alice").with("topics", topics);
    let mut alice = gateway.client_by(&token(json!(["secret.1", "news", "news"])), "").await;
    assert_eq!(alice.hello["topics"], json!(["secret.1", "news"]));
    assert_eq!(rpc.publish("secret.1", 1).await, 1);
    assert_eq!(alice.next().await["topic"], "secret.1");
    // Other tokens have none, and the rules stay what they are.
    let mut bob = gateway.client("bob").await;
    assert_eq!(bob.hello.get("topics"), None);
    assert_eq!(bob.refused(&json!({ "type": "subscribe", "topic": "news" })).await.0, "forbidden");
    assert_eq!(alice.refused(&json!({ "type": "subscribe", "topic": "other" })).await.0, "forbidden");
    // What a client is in it may leave.
    assert_eq!(alice.ask(&json!({ "type": "unsubscribe", "topic": "news" })).await["type"], "unsubscribed");
    assert_eq!(alice.refused(&json!({ "type": "unsubscribe", "topic": "news" })).await.0, "forbidden");
    assert_eq!(rpc.publish("news", 2).await, 0);
    // A new token adds what it names; what was there before stays.
    let renewal = json!({ "type": "auth", "token": token(json!(["other", "secret.1"])).sign() });
    assert_eq!(alice.ask(&renewal).await["topics"], json!(["other"]));
    assert_eq!((rpc.publish("other", 3).await, rpc.publish("secret.1", 3).await), (1, 1));
    assert_eq!(
        (alice.next().await["topic"].clone(), alice.next().await["topic"].clone()),
        (json!("other"), json!("secret.1"))
    );
    // Beyond the limit it is not subscribed, and can see so.
    let many = gateway.client_by(&token(json!(["a", "b", "c", "d"])), "device=second").await;
    assert_eq!(many.hello["topics"], json!(["a", "b", "c"]));
    assert_eq!(gateway.errors("limit_reached").await, 1);
    drop(many);

    for bad in [json!(7), json!(["ok", ""]), json!(["x".repeat(201)]), json!([["a"]]), json!({ "a": 1 })] {
        let url = gateway.url(&format!("token={}", token(bad.clone()).sign()));
        let (mut client, _) = Client::open(request(&url, &[])).await.unwrap();
        let refused = client.next().await;
        assert_eq!((&refused["type"], &refused["code"]), (&json!("auth_failure"), &json!("token_invalid")), "{bad}");
        assert_eq!(client.closed().await.0, 4401);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn comings_and_goings_are_events_in_order_with_their_causes() {
    let gateway = rooms().await;
    let mut rpc = gateway.rpc().await;
    let types = ["session_opened", "subscribed", "unsubscribed", "session_closed"];
    let mut events = rpc.events(&types, "alice").await;
    let token = Token::of("alice").with("topics", json!(["t"]));
    let mut alice = gateway.client_by(&token, "device=phone").await;
    alice.subscribe("room.1").await;
    alice.subscribe("room.1").await;
    let by_session = pushgate::api::proto::SubscribeRequest {
        topic: "s".into(),
        session_ids: vec![alice.session()],
        ..Default::default()
    };
    rpc.subscribe(by_session).await.unwrap();
    let by_user = pushgate::api::proto::UnsubscribeRequest {
        topic: "s".into(),
        user_ids: vec!["alice".into()],
        ..Default::default()
    };
    assert_eq!(rpc.unsubscribe(by_user).await.unwrap(), 1);
    alice.ask(&json!({ "type": "unsubscribe", "topic": "t" })).await;
    let session = alice.session();
    alice.close().await;

    let mut told = Vec::new();
    while told.last() != Some(&"closed".to_owned()) {
        told.push(match events.body().await {
            Event::SessionOpened(_) => "opened".to_owned(),
            Event::SessionClosed(_) => "closed".to_owned(),
            Event::Subscribed(e) => {
                assert_eq!((&*e.user_id, &*e.device, &e.session_id), ("alice", "phone", &session));
                format!("+{} {}", e.topic, e.cause().as_str_name().trim_start_matches("SUBSCRIPTION_CAUSE_"))
            }
            Event::Unsubscribed(e) => {
                assert_eq!((&*e.user_id, &*e.device, &e.session_id), ("alice", "phone", &session));
                format!("-{} {}", e.topic, e.cause().as_str_name().trim_start_matches("SUBSCRIPTION_CAUSE_"))
            }
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(SubscriptionCause::Token.as_str_name(), "SUBSCRIPTION_CAUSE_TOKEN");
    let expected = [
        "opened",
        "+t TOKEN",
        "+room.1 CLIENT",
        "+s CALLER",
        "-s CALLER",
        "-t CLIENT",
        "-room.1 SESSION_ENDED",
        "closed",
    ];
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_listed_with_their_topics_and_by_them() {
    let gateway = rooms().await;
    let mut rpc = gateway.rpc().await;
    let mut alice = gateway.client("alice").await;
    let mut phone = gateway.client_with("alice", "device=phone").await;
    let mut bob = gateway.client_with("bob", "device=phone").await;
    let other = gateway.client("carol").await;
    for topic in ["room.1", "room.2"] {
        alice.subscribe(topic).await;
    }
    phone.subscribe("room.1").await;
    bob.subscribe("room.1").await;
    let of = |topic: &str| ListSessionsRequest { topic: topic.into(), ..Default::default() };
    let mut ids = async |request: ListSessionsRequest| {
        let mut ids: Vec<_> =
            rpc.list(request).await.unwrap().sessions.into_iter().map(|session| session.session_id).collect();
        ids.sort();
        ids
    };
    let sorted = |clients: &[&Client]| {
        let mut ids: Vec<_> = clients.iter().map(|client| client.session()).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(of("room.1")).await, sorted(&[&alice, &phone, &bob]));
    assert_eq!(ids(of("room.2")).await, sorted(&[&alice]));
    assert_eq!(ids(of("room.3")).await, [""; 0]);
    let device = Some("phone".to_owned());
    assert_eq!(ids(ListSessionsRequest { device: device.clone(), ..of("room.1") }).await, sorted(&[&phone, &bob]));
    let user_id = "alice".to_owned();
    assert_eq!(ids(ListSessionsRequest { user_id: user_id.clone(), ..of("room.1") }).await, sorted(&[&alice, &phone]));
    let session_id = other.session();
    assert_eq!(ids(ListSessionsRequest { session_id, ..of("room.1") }).await, [""; 0]);
    let session_id = bob.session();
    assert_eq!(ids(ListSessionsRequest { session_id, ..of("room.1") }).await, sorted(&[&bob]));

    let first = rpc.list(ListSessionsRequest { page_size: 2, ..of("room.1") }).await.unwrap();
    assert_eq!(first.sessions.len(), 2);
    let wrong = ListSessionsRequest { page_token: first.next_page_token.clone(), ..of("room.2") };
    assert_eq!(rpc.list(wrong).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let rest = ListSessionsRequest { page_token: first.next_page_token, ..of("room.1") };
    let rest = rpc.list(rest).await.unwrap();
    assert_eq!((rest.sessions.len(), &*rest.next_page_token), (1, ""));
    let bad = rpc.list(of(&"x".repeat(201))).await.unwrap_err();
    assert!(bad.message().starts_with("topic: a topic must have"), "{bad}");

    let row = rpc.list(ListSessionsRequest { session_id: alice.session(), ..Default::default() }).await.unwrap();
    assert_eq!(row.sessions[0].topics, ["room.1", "room.2"]);
    let row = rpc.list(ListSessionsRequest { session_id: other.session(), ..Default::default() }).await.unwrap();
    assert!(row.sessions[0].topics.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sessions_that_come_and_go_leave_nothing_behind() {
    let gateway = rooms().await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let url = gateway.url(&format!("token={}", Token::of(&format!("user-{}", n % 3)).sign()));
        tasks.spawn(async move {
            for round in 0..10 {
                let mut client = Client::connect(&url).await;
                for topic in ["room.1", "room.2", "room.3"] {
                    client.say(&json!({ "type": "subscribe", "topic": topic })).await;
                }
                client.say(&json!({ "type": "unsubscribe", "topic": "room.2", "id": "last" })).await;
                while client.next().await["replyTo"] != "last" {}
                if round % 2 == 0 {
                    client.close().await;
                }
            }
        });
    }
    let mut rpc = gateway.rpc().await;
    for n in 0..50 {
        rpc.publish("room.1", n).await;
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    for n in 0..3 {
        gateway.sessions(&format!("user-{n}"), 0).await;
    }
    until("topics", 0, async || {
        gateway
            .rpc()
            .await
            .topics(Default::default())
            .await
            .unwrap()
            .topics
            .iter()
            .map(|topic| topic.sessions)
            .sum::<u32>()
    })
    .await;
}
