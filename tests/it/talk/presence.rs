//! Who is in a topic: lists, comings and goings, and the linger that swallows reconnects.

use pushgate::api::proto::{ListTopicsRequest, SubscribeRequest};
use serde_json::{Value, json};

use super::{ROOMS, rooms};
use crate::support::{Client, Gateway, Token, until};

fn list(topic: &str) -> Value {
    json!({ "type": "user_list", "topic": topic, "id": "list" })
}

impl Client {
    /// Asks who is in a topic; what comes before the answer is left out.
    async fn users(&mut self, topic: &str) -> Value {
        self.say(&list(topic)).await;
        loop {
            let answer = self.next().await;
            if answer["replyTo"] == "list" {
                assert_eq!((&answer["type"], &answer["topic"]), (&json!("user_list"), &json!(topic)), "{answer}");
                return answer;
            }
        }
    }

    /// The next who came or went: `+name` or `-name`.
    async fn came_or_went(&mut self) -> String {
        let message = self.next().await;
        let sign = match message["type"].as_str() {
            Some("user_joined") => "+",
            Some("user_left") => "-",
            _ => panic!("{message}"),
        };
        format!("{sign}{}", message["userId"].as_str().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_told_of_who_comes_and_goes_and_may_ask() {
    let gateway =
        Gateway::with(&[ROOMS, ("auth.public_claims", r#"["name", "team"]"#), ("presence.linger", "50ms")]).await;
    let token = |user: &str, name: &str| Token::of(user).with("name", name).with("secret", "never shown");
    let mut alice = gateway.client_by(&token("alice", "Alice"), "").await;
    let empty = alice.users("room.1").await;
    assert_eq!((&empty["count"], &empty["users"]), (&json!(0), &json!([])));
    alice.subscribe("room.1").await;
    let mut bob = gateway.client_by(&token("bob", "Bob").with("team", json!(["red"])), "").await;
    bob.subscribe("room.1").await;
    let mut came = alice.next().await;
    assert!(came["timestamp"].take().is_string());
    let expected = json!({
        "type": "user_joined", "topic": "room.1", "userId": "bob", "claims": { "name": "Bob", "team": ["red"] },
        "timestamp": null,
    });
    assert_eq!(came, expected);
    // A second session of his makes no noise, and counts.
    let mut second = gateway.client_by(&token("bob", "Bob"), "device=second").await;
    second.subscribe("room.1").await;
    let mut answer = alice.users("room.1").await;
    let since = ["/users/0/since", "/users/1/since"]
        .map(|place| answer.pointer_mut(place).unwrap().take().as_str().unwrap().to_owned());
    assert!(since.is_sorted() && since[0].ends_with('Z'), "{since:?}");
    let row =
        |user: &str, sessions, claims| json!({ "userId": user, "sessions": sessions, "since": null, "claims": claims });
    let users = answer["users"].as_array().unwrap().clone();
    assert_eq!((answer["count"].as_u64(), users.len()), (Some(2), 2));
    assert_eq!(users[0], row("alice", 1, json!({ "name": "Alice" })));
    // The latest session speaks for him, as in ListUsers.
    assert_eq!(users[1], row("bob", 2, json!({ "name": "Bob" })), "{answer}");
    let online = gateway.rpc().await.users(Default::default()).await.unwrap().users;
    assert_eq!(online[1].claims.as_ref().unwrap().fields.keys().collect::<Vec<_>>(), ["name"]);

    bob.ask(&json!({ "type": "unsubscribe", "topic": "room.1" })).await;
    alice.nothing_more().await;
    second.close().await;
    let gone = alice.next().await;
    let expected = (&json!("user_left"), &json!("bob"), &json!({ "name": "Bob" }));
    assert_eq!((&gone["type"], &gone["userId"], &gone["claims"]), expected);
    assert_eq!(alice.users("room.1").await["count"], 1);
    bob.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnect_within_the_linger_makes_no_noise() {
    let gateway = Gateway::with(&[ROOMS, ("presence.linger", "1500ms")]).await;
    let mut rpc = gateway.rpc().await;
    let mut watcher = gateway.client("watcher").await;
    watcher.subscribe("room.1").await;
    let mut alice = gateway.client("alice").await;
    alice.subscribe("room.1").await;
    assert_eq!(watcher.came_or_went().await, "+alice");
    let before = watcher.users("room.1").await["users"].clone();
    drop(alice);
    gateway.sessions("alice", 0).await;
    // She counts as present, with no session and since when she was there.
    let mut away = before.clone();
    let at = away.as_array().unwrap().iter().position(|user| user["userId"] == "alice").unwrap();
    away[at]["sessions"] = json!(0);
    let mut rows = watcher.users("room.1").await["users"].as_array().unwrap().clone();
    rows.sort_by_key(|row| row["userId"].to_string());
    assert_eq!(json!(rows), away);
    let topic = rpc.topics(ListTopicsRequest { topic: "room.1".into(), ..Default::default() }).await.unwrap();
    assert_eq!((topic.topics[0].sessions, topic.topics[0].users), (1, 2));
    let mut alice = gateway.client("alice").await;
    alice.subscribe("room.1").await;
    let mut rows = watcher.users("room.1").await["users"].as_array().unwrap().clone();
    rows.sort_by_key(|row| row["userId"].to_string());
    assert_eq!(json!(rows), before);
    // Somebody who leaves later is told of first: nobody will be told of her.
    let mut bob = gateway.client("bob").await;
    bob.subscribe("room.1").await;
    assert_eq!(watcher.came_or_went().await, "+bob");
    assert_eq!(alice.came_or_went().await, "+bob");
    drop(bob);
    for client in [&mut watcher, &mut alice] {
        assert_eq!(client.came_or_went().await, "-bob");
    }
    // And who stays away is gone.
    drop(alice);
    assert_eq!(watcher.came_or_went().await, "-alice");
    watcher.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_on_purpose_is_gone_at_once() {
    let gateway = Gateway::with(&[ROOMS, ("presence.linger", "1h")]).await;
    let mut rpc = gateway.rpc().await;
    let mut watcher = gateway.client("watcher").await;
    watcher.subscribe("room.1").await;
    let mut alice = gateway.client("alice").await;
    for _ in 0..2 {
        alice.subscribe("room.1").await;
        assert_eq!(watcher.came_or_went().await, "+alice");
        alice.ask(&json!({ "type": "leave_room", "roomId": "room.1" })).await;
        assert_eq!(watcher.came_or_went().await, "-alice");
    }
    // A topic of which everybody is away is there while they may come back.
    alice.subscribe("room.2").await;
    drop(alice);
    gateway.sessions("alice", 0).await;
    let away = watcher.users("room.2").await;
    assert_eq!((&away["count"], &away["users"][0]["sessions"]), (&json!(1), &json!(0)));
    let subscribe = SubscribeRequest { topic: "room.2".into(), user_ids: vec!["watcher".into()], ..Default::default() };
    rpc.subscribe(subscribe).await.unwrap();
    assert_eq!(watcher.users("room.2").await["count"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_those_who_may_are_told() {
    let rule = r#"[{ pattern = "room.*", subscribe = ["*"], presence = ["role=host"] }]"#;
    let gateway = Gateway::with(&[("topics", rule)]).await;
    let mut host = gateway.client_by(&Token::of("host").with("role", "host"), "").await;
    let mut guest = gateway.client("guest").await;
    host.subscribe("room.1").await;
    guest.subscribe("room.1").await;
    assert_eq!(host.came_or_went().await, "+guest");
    let mut late = gateway.client("late").await;
    late.subscribe("room.1").await;
    assert_eq!(host.came_or_went().await, "+late");
    assert_eq!(host.users("room.1").await["count"], 3);
    for client in [&mut guest, &mut late] {
        let (code, text) = client.refused(&json!({ "type": "user_list", "topic": "room.1" })).await;
        assert_eq!((&*code, &*text), ("forbidden", "this client may not know who is in this topic"));
        client.nothing_more().await;
    }
    // Who may see it need not be in it.
    let mut second = gateway.client_by(&Token::of("second").with("role", "host"), "").await;
    assert_eq!(second.users("room.1").await["count"], 3);
    second.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn above_the_most_listed_they_are_only_counted() {
    let gateway = Gateway::with(&[ROOMS, ("presence.max_listed", "2")]).await;
    let mut alice = gateway.client("alice").await;
    alice.subscribe("room.1").await;
    let mut bob = gateway.client("bob").await;
    bob.subscribe("room.1").await;
    assert_eq!(alice.came_or_went().await, "+bob");
    assert_eq!(alice.users("room.1").await["users"].as_array().unwrap().len(), 2);
    let mut carol = gateway.client("carol").await;
    carol.subscribe("room.1").await;
    let answer = alice.users("room.1").await;
    assert_eq!((answer["count"].as_u64(), answer.get("users")), (Some(3), None));
    alice.nothing_more().await;
    // That she came nobody was told, and so nobody is that she left, with how few there ever are by then.
    let unsubscribe = json!({ "type": "unsubscribe", "topic": "room.1" });
    carol.ask(&unsubscribe).await;
    alice.nothing_more().await;
    // Whoever was told of comes and goes as before. A second session of hers changes nothing.
    carol.subscribe("room.1").await;
    let mut second = gateway.client_with("carol", "device=second").await;
    second.subscribe("room.1").await;
    carol.ask(&unsubscribe).await;
    bob.ask(&unsubscribe).await;
    assert_eq!(alice.came_or_went().await, "-bob");
    second.ask(&unsubscribe).await;
    alice.nothing_more().await;
    // Once she was in a list she is known.
    bob.subscribe("room.1").await;
    assert_eq!(alice.came_or_went().await, "+bob");
    carol.subscribe("room.1").await;
    bob.ask(&unsubscribe).await;
    assert_eq!(alice.came_or_went().await, "-bob");
    assert_eq!(alice.users("room.1").await["users"].as_array().unwrap().len(), 2);
    carol.ask(&unsubscribe).await;
    assert_eq!(alice.came_or_went().await, "-carol");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_came_untold_leaves_untold_when_the_linger_is_over() {
    let gateway = Gateway::with(&[ROOMS, ("presence.max_listed", "2"), ("presence.linger", "50ms")]).await;
    let mut alice = gateway.client("alice").await;
    alice.subscribe("room.1").await;
    let (mut bob, mut carol) = (gateway.client("bob").await, gateway.client("carol").await);
    bob.subscribe("room.1").await;
    assert_eq!(alice.came_or_went().await, "+bob");
    carol.subscribe("room.1").await;
    let present = async || {
        let request = ListTopicsRequest { topic: "room.1".into(), ..Default::default() };
        gateway.rpc().await.topics(request).await.unwrap().topics[0].users
    };
    carol.close().await;
    until("carol has gone for good", 2, present).await;
    bob.close().await;
    assert_eq!(alice.came_or_went().await, "-bob");
    alice.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_charged_to_who_asks() {
    let gateway = rooms().await;
    let mut alice = gateway.client("alice").await;
    let mut bob = gateway.client("bob").await;
    let mut answered = 0;
    for _ in 0..200 {
        let answer = alice.ask(&list("room.1")).await;
        if answer["type"] == "user_list" {
            answered += 1;
            continue;
        }
        assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!("rate_limited")));
        assert_eq!(answer["replyTo"], "list");
    }
    // Twenty at once; as it takes a while, some came back.
    assert!((20..100).contains(&answered), "{answered}");
    assert_eq!(bob.users("room.1").await["count"], 0, "nobody else pays for it");
    assert_eq!(gateway.errors("rate_limited").await, 200 - answered);
    until("a list", json!("user_list"), async || {
        let mut again = gateway.client("alice").await;
        again.ask(&list("room.1")).await["type"].clone()
    })
    .await;
}

/// Whatever comes between a list and what is told of comings and goings, both together are the truth.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_and_what_is_told_around_it_add_up() {
    let gateway = Gateway::with(&[ROOMS, ("presence.linger", "0s")]).await;
    let mut watcher = gateway.client("watcher").await;
    watcher.subscribe("room.1").await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..4 {
        let mut client = gateway.client(&format!("user-{n}")).await;
        tasks.spawn(async move {
            for round in 0..40 {
                let verb = if round % 2 == 0 { "subscribe" } else { "unsubscribe" };
                client.say(&json!({ "type": verb, "topic": "room.1", "id": "x" })).await;
                while client.next().await["replyTo"] != "x" {}
            }
            client.say(&json!({ "type": "subscribe", "topic": "room.1", "id": "x" })).await;
            while client.next().await["replyTo"] != "x" {}
            client
        });
    }
    // One list in the middle of it; from there on what is told.
    let list = watcher.users("room.1").await;
    let mut present: std::collections::BTreeSet<String> =
        list["users"].as_array().unwrap().iter().map(|user| user["userId"].as_str().unwrap().to_owned()).collect();
    let mut clients = Vec::new();
    while let Some(done) = tasks.join_next().await {
        clients.push(done.unwrap());
    }
    watcher.say(&json!({ "type": "user_list", "topic": "room.1", "id": "end" })).await;
    loop {
        let message = watcher.next().await;
        let user = || message["userId"].as_str().unwrap().to_owned();
        match message["type"].as_str().unwrap() {
            "user_joined" => present.insert(user()),
            "user_left" => present.remove(&user()),
            "user_list" => break,
            _ => panic!("{message}"),
        };
    }
    let all: Vec<_> = present.into_iter().collect();
    assert_eq!(all, ["user-0", "user-1", "user-2", "user-3", "watcher"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_know_of_others_goes_by_the_token_in_force() {
    let rules = ("topics", r#"[{ pattern = "room.*", subscribe = ["*"], presence = ["role=host"] }]"#);
    let gateway = Gateway::with(&[rules, ("presence.linger", "50ms")]).await;
    let token = |role: &str| Token::of("alice").with("role", role);
    let mut alice = gateway.client_by(&token("guest"), "").await;
    let mut bob = gateway.client("bob").await;
    alice.subscribe("room.1").await;
    bob.subscribe("room.1").await;
    // What was to be told of that is told by now: it comes behind.
    gateway.rpc().await.publish("room.1", 0).await;
    for client in [&mut alice, &mut bob] {
        assert_eq!(client.data(1).await, [0]);
    }
    for (role, hears) in [("host", true), ("guest", false)] {
        let renewed = alice.ask(&json!({ "type": "auth", "token": token(role).sign() })).await;
        assert_eq!(renewed["type"], "auth_success", "{renewed}");
        for request in ["unsubscribe", "subscribe"] {
            bob.ask(&json!({ "type": request, "topic": "room.1" })).await;
        }
        if hears {
            assert_eq!([alice.came_or_went().await, alice.came_or_went().await], ["-bob", "+bob"]);
        }
    }
    alice.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn coming_and_going_has_a_rate() {
    let gateway = rooms().await;
    let mut client = gateway.client("alice").await;
    let mut refused = 0;
    for n in 0..1100 {
        let request = if n % 2 == 0 { "subscribe" } else { "unsubscribe" };
        let answer = client.ask(&json!({ "type": request, "topic": "room.1" })).await;
        if answer["type"] == "error" {
            assert_eq!(answer["code"], "rate_limited", "{answer}");
            assert!(n >= 1024, "{n}");
            refused += 1;
        }
    }
    assert!(refused > 0);
}
