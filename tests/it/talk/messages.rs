//! What clients say to each other: `publish`, `message`, `typing`, in text and in binary.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::{ROOMS, rooms};
use crate::support::{Client, Gateway, Token, until};

const EVERYBODY: (&str, &str) = ("clients.message", r#"["*"]"#);
const DURABLE: (&str, &str) = ("clients.message_durable", "true");

/// A binary message: a length, an envelope, a payload.
fn framed(envelope: &Value, payload: &[u8]) -> Message {
    let envelope = envelope.to_string();
    Message::binary([&u32::try_from(envelope.len()).unwrap().to_be_bytes(), envelope.as_bytes(), payload].concat())
}

/// The envelope and the payload of a binary message.
fn unframed(message: Message) -> (Value, Vec<u8>) {
    let Message::Binary(frame) = message else { panic!("instead of binary: {message:?}") };
    let length = u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
    (serde_json::from_slice(&frame[4..4 + length]).unwrap(), frame[4 + length..].to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_reaches_all_members_but_the_session_it_comes_from() {
    let gateway = rooms().await;
    let mut phone = gateway.client_with("alice", "device=phone").await;
    let mut tablet = gateway.client_with("alice", "device=tablet").await;
    let mut bob = gateway.client("bob").await;
    let mut out = gateway.client("out").await;
    for client in [&mut phone, &mut tablet, &mut bob] {
        client.subscribe("room.1").await;
    }
    for client in [&mut phone, &mut tablet] {
        assert_eq!(client.next().await["type"], "user_joined");
    }
    let data = r#"{ "text":"h\u00ef", "n" : 1.50 }"#;
    phone.send(Message::text(format!(r#"{{"type":"publish","topic":"room.1","kind":"chat","data":{data}}}"#))).await;
    for client in [&mut tablet, &mut bob] {
        let Message::Text(text) = client.next_message().await else { panic!("not text") };
        let end = format!(r#","fromUserId":"alice","topic":"room.1","kind":"chat","data":{data}}}"#);
        assert!(text.starts_with(r#"{"type":"publish","id":""#) && text.ends_with(&end), "{text}");
    }
    phone.nothing_more().await;
    // Who may publish need not be a member, and nobody can say who he is not.
    out.say(&json!({ "type": "publish", "topic": "room.1", "fromUserId": "alice", "id": "mine", "data": 2 })).await;
    for client in [&mut phone, &mut tablet, &mut bob] {
        let message = client.next().await;
        assert_eq!((&message["fromUserId"], &message["data"]), (&json!("out"), &json!(2)));
        assert!(message["id"] != "mine" && message.get("kind").is_none() && message.get("offset").is_none());
    }
    out.nothing_more().await;
    assert_eq!(gateway.pending().await, 0, "nothing of it is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn typing_is_passed_on_and_never_stored() {
    let gateway = Gateway::with(&[ROOMS, EVERYBODY, DURABLE]).await;
    let mut alice = gateway.client("alice").await;
    let mut bob = gateway.client("bob").await;
    bob.subscribe("room.1").await;
    alice.say(&json!({ "type": "typing", "topic": "room.1" })).await;
    let typing = json!({ "type": "typing", "fromUserId": "alice", "topic": "room.1", "data": null });
    assert_eq!(bob.next_plain().await, typing);
    alice.say(&json!({ "type": "typing", "to": "bob", "data": true })).await;
    assert_eq!(bob.next_plain().await, json!({ "type": "typing", "fromUserId": "alice", "data": true }));
    alice.say(&json!({ "type": "typing", "to": "away" })).await;
    alice.nothing_more().await;
    let mut away = gateway.client("away").await;
    assert_eq!(away.hello["pending"], 0);
    away.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_reaches_the_sessions_of_its_user() {
    let gateway = Gateway::with(&[("clients.message", r#"["role=agent"]"#)]).await;
    let agent = Token::of("alice").with("role", json!(["agent", "dev"]));
    let mut alice = gateway.client_by(&agent, "device=a").await;
    let mut second = gateway.client_by(&agent, "device=b").await;
    let mut phone = gateway.client_with("bob", "device=phone").await;
    let mut tablet = gateway.client_with("bob", "device=tablet&binary=1").await;
    alice.say(&json!({ "type": "message", "to": "bob", "kind": "chat", "data": { "text": "hi" } })).await;
    let expected = json!({ "type": "message", "kind": "chat", "fromUserId": "alice", "data": { "text": "hi" } });
    for client in [&mut phone, &mut tablet] {
        assert_eq!(client.next_plain().await, expected);
    }
    // To oneself: the session that speaks does not hear itself.
    alice.say(&json!({ "type": "message", "to": "alice", "data": 1 })).await;
    assert_eq!(second.next().await["data"], 1);
    // To nobody: nothing is kept, and nothing said about who is there.
    alice.say(&json!({ "type": "message", "to": "away", "data": 2, "id": "x" })).await;
    alice.nothing_more().await;
    assert_eq!(gateway.client("away").await.hello["pending"], 0);
    // Without the claim it is forbidden.
    for verb in ["message", "typing"] {
        let (code, text) = phone.refused(&json!({ "type": verb, "to": "alice" })).await;
        assert_eq!((&*code, &*text), ("forbidden", "this client may not send messages to users"));
    }
    assert_eq!(gateway.errors("forbidden").await, 2);
    second.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_to_who_is_away_waits_where_that_is_configured() {
    let gateway = Gateway::with(&[EVERYBODY, DURABLE]).await;
    let mut alice = gateway.client("alice").await;
    let bob = gateway.client_with("bob", "device=phone").await;
    bob.close().await;
    gateway.sessions("bob", 0).await;
    for n in 0..100 {
        alice.say(&json!({ "type": "message", "to": "bob", "kind": "chat", "data": n })).await;
    }
    alice.nothing_more().await;
    until("stored", 100, async || gateway.pending().await).await;
    // Across a restart, with all that belongs to it, in order.
    let gateway = gateway.restart().await;
    let mut bob = gateway.client_with("bob", "device=phone").await;
    assert_eq!(bob.hello["pending"], 100);
    let mut last = 0;
    for n in 0..100 {
        let message = bob.next().await;
        let offset = message["offset"].as_u64().unwrap();
        assert!(offset > last, "{message}");
        last = offset;
        assert_eq!((&message["type"], &message["kind"]), (&json!("message"), &json!("chat")));
        assert_eq!((&message["fromUserId"], &message["data"]), (&json!("alice"), &json!(n)));
        assert_eq!(message["replayed"], true);
    }
    bob.settle().await;
    until("confirmed", 0, async || gateway.pending().await).await;
    // Who is there gets it at once.
    let mut alice = gateway.client("alice").await;
    alice.say(&json!({ "type": "message", "to": "bob", "data": "now" })).await;
    let message = bob.next().await;
    assert!(message["offset"].as_u64().unwrap() > last && message.get("replayed").is_none(), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_mailbox_is_said_to_who_fills_it() {
    let gateway = Gateway::with(&[EVERYBODY, DURABLE, ("store.max_pending_per_user", "2")]).await;
    let mut alice = gateway.client("alice").await;
    for n in 0..2 {
        alice.say(&json!({ "type": "message", "to": "bob", "data": n })).await;
    }
    let (code, text) = alice.refused(&json!({ "type": "message", "to": "bob", "data": 3 })).await;
    assert_eq!(code, "limit_reached");
    assert!(text.contains("store.max_pending_per_user"), "{text}");
    assert_eq!(gateway.errors("limit_reached").await, 1);
    until("stored", 2, async || gateway.pending().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_stored_is_said() {
    let gateway = Gateway::with(&[EVERYBODY, DURABLE]).await;
    let mut alice = gateway.client("alice").await;
    gateway.hub.refuse_everything();
    let refused = alice.refused(&json!({ "type": "message", "to": "bob", "data": 1 })).await;
    assert_eq!(refused, ("unavailable".to_owned(), "it cannot be stored now; try again later".to_owned()));
    assert_eq!(gateway.errors("unavailable").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_travel_both_ways_behind_their_envelope() {
    let gateway = Gateway::with(&[ROOMS, EVERYBODY, DURABLE]).await;
    let mut alice = gateway.client("alice").await;
    let mut text = gateway.client("text").await;
    let mut binary = gateway.client_with("binary", "binary=1").await;
    binary.subscribe("room.1").await;
    text.subscribe("room.1").await;
    assert_eq!(binary.next().await["type"], "user_joined");
    let payload = [0, 255, 7, b'{'];
    alice.send(framed(&json!({ "type": "publish", "topic": "room.1", "kind": "picture" }), &payload)).await;
    let (envelope, got) = unframed(binary.next_message().await);
    assert_eq!(got, payload);
    let fields = ["type", "topic", "kind", "fromUserId"].map(|name| envelope[name].as_str().unwrap().to_owned());
    assert_eq!(fields, ["publish", "room.1", "picture", "alice"]);
    let mut plain = text.next_plain().await;
    assert_eq!(plain["dataBase64"].take(), "AP8Hew==");
    assert_eq!((&plain["kind"], plain.get("data")), (&json!("picture"), None));

    // Stored, it is the same after a while.
    alice.send(framed(&json!({ "type": "message", "to": "away", "kind": "picture" }), &payload)).await;
    alice.nothing_more().await;
    until("stored", 1, async || gateway.pending().await).await;
    let mut away = gateway.client_with("away", "binary=1").await;
    let (envelope, got) = unframed(away.next_message().await);
    assert_eq!((envelope["kind"].as_str(), envelope["replayed"].as_bool()), (Some("picture"), Some(true)));
    assert_eq!(got, payload);

    // Whatever has no payload may come so as well; an echo brings its payload back.
    alice.send(framed(&json!({ "type": "ping", "id": "p" }), &[])).await;
    assert_eq!(alice.next().await["replyTo"], "p");
    alice.send(framed(&json!({ "type": "echo", "id": "e" }), &payload)).await;
    let echo = alice.next().await;
    assert_eq!(
        (&echo["type"], &echo["dataBase64"], &echo["replyTo"]),
        (&json!("echo_response"), &json!("AP8Hew=="), &json!("e"))
    );
    binary.send(framed(&json!({ "type": "echo", "id": "e" }), &payload)).await;
    let (envelope, got) = unframed(binary.next_message().await);
    assert_eq!((&envelope["replyTo"], &*got), (&json!("e"), &payload[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binary_message_that_is_none_ends_the_session_and_a_bad_one_is_answered() {
    let gateway = rooms().await;
    for bad in [&[][..], &[0, 0, 0], &[0, 0, 0, 1], &[0, 0, 0, 2, b'{'], &[255; 8]] {
        let mut client = gateway.client("alice").await;
        client.send(Message::binary(bad.to_vec())).await;
        let (code, reason) = client.closed().await;
        assert_eq!(code, 1003, "{bad:?}");
        assert!(reason.contains("4-byte length"), "{reason}");
    }
    assert_eq!(gateway.errors("unsupported_data").await, 5);
    let mut client = gateway.client("alice").await;
    // A whole envelope that is none is what a text that is none is.
    for (bad, text) in [
        (&[0, 0, 0, 0][..], "a message must be one JSON object"),
        (&[0, 0, 0, 1, 255], "the envelope is not UTF-8"),
        (b"\0\0\0\x02{}", "`type` is missing"),
        (b"\0\0\0\x02{x\xff\xff", "not JSON at line 1 column 2"),
        (b"\0\0\0\x02[]\xff", "a message must be one JSON object"),
    ] {
        client.send(Message::binary(bad.to_vec())).await;
        let answer = client.next().await;
        assert_eq!((&answer["code"], &answer["message"]), (&json!("bad_message"), &json!(text)), "{bad:?}");
    }
    for (envelope, text) in [
        (
            json!({ "type": "publish", "topic": "room.1", "data": 1 }),
            "`data` of a binary message stands behind its envelope",
        ),
        (json!({ "type": "publish" }), "`publish` needs `topic`, a string"),
        (json!({ "type": "subscribe", "topic": "room.1" }), "`subscribe` takes no payload"),
        (json!({ "type": "publish", "topic": "other" }), "this client may not publish to this topic"),
        (json!({ "type": "whatever" }), "nobody here answers this `type`"),
    ] {
        client.send(framed(&envelope, b"x")).await;
        let answer = client.next().await;
        assert_eq!((&answer["type"], &answer["message"]), (&json!("error"), &json!(text)));
    }
    client.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_with_the_limit() {
    let limits = [ROOMS, EVERYBODY, ("limits.notification_bytes", "2KiB"), ("limits.message_bytes", "4KiB")];
    let gateway = Gateway::with(&limits).await;
    let mut alice = gateway.client("alice").await;
    let text = "x".repeat(2000);
    for (verb, place) in [("publish", ("topic", "room.1")), ("message", ("to", "bob")), ("typing", ("to", "bob"))] {
        let (code, text) = alice.refused(&json!({ "type": verb, place.0: place.1, "data": text })).await;
        assert_eq!(code, "too_large", "{verb}");
        assert!(text.ends_with("as others get it; limits.notification_bytes allows 2048"), "{text}");
    }
    assert_eq!(gateway.errors("message_too_big").await, 3);
    let large = framed(&json!({ "type": "publish", "topic": "room.1" }), &[0; 5000]);
    alice.send(large).await;
    assert_eq!(alice.closed().await, (1009, "a message has at most 4096 bytes here".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_is_the_applications_own_but_for_what_the_gateway_says() {
    let gateway = rooms().await;
    let mut alice = gateway.client("alice").await;
    let mut bob = gateway.client("bob").await;
    bob.subscribe("room.1").await;
    for (kind, text) in [
        (json!("auth_success"), "`kind`: type `auth_success` is reserved for the gateway; choose another name"),
        (json!("x".repeat(129)), "`kind`: a type must have 1 to 128 bytes, this one has 129"),
        (json!({}), "`publish` needs `kind`, a string"),
    ] {
        let refused = alice.refused(&json!({ "type": "publish", "topic": "room.1", "kind": kind })).await;
        assert_eq!(refused, ("bad_message".to_owned(), text.to_owned()));
    }
    // A file, as several messages.
    for kind in ["file_start", "file_chunk", "file_end"] {
        alice.say(&json!({ "type": "publish", "topic": "room.1", "kind": kind, "data": 1 })).await;
        assert_eq!(bob.next().await["kind"], kind);
    }
}

/// What is published by several at once comes to all members in one order.
#[tokio::test(flavor = "multi_thread")]
async fn all_members_hear_the_same_in_the_same_order() {
    let gateway = rooms().await;
    let mut members: Vec<Client> = Vec::new();
    for n in 0..3 {
        let mut member = gateway.client(&format!("member-{n}")).await;
        member.say(&json!({ "type": "subscribe", "topic": "room.1" })).await;
        while member.next().await["type"] != "subscribed" {}
        members.push(member);
    }
    let mut tasks = tokio::task::JoinSet::new();
    for speaker in 0..3 {
        let mut client = gateway.client(&format!("speaker-{speaker}")).await;
        tasks.spawn(async move {
            for n in 0..50 {
                client.say(&json!({ "type": "publish", "topic": "room.1", "data": [speaker, n] })).await;
            }
            client.nothing_more().await;
        });
    }
    let mut heard = Vec::new();
    for member in &mut members {
        let mut all = Vec::new();
        while all.len() < 150 {
            let message = member.next().await;
            if message["type"] == "publish" {
                all.push(message["data"].to_string());
            }
        }
        heard.push(all);
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert!(heard.iter().all(|all| *all == heard[0]));
    for speaker in 0..3 {
        let own: Vec<_> = heard[0].iter().filter(|data| data.starts_with(&format!("[{speaker},"))).cloned().collect();
        assert_eq!(own, (0..50).map(|n| format!("[{speaker},{n}]")).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_user_may_have_stored_is_bounded_over_all_his_sessions() {
    let gateway = Gateway::with(&[ROOMS, EVERYBODY, DURABLE, ("clients.message_durable_per_minute", "3")]).await;
    let mut phone = gateway.client_with("alice", "device=phone").await;
    let mut bob = gateway.client("bob").await;
    let message = |n: u32| json!({ "type": "message", "to": if n.is_multiple_of(2) { "away" } else { "bob" }, "id": n.to_string(), "data": n });
    let refused = |answer: &Value, n: u32| {
        assert_eq!((&answer["code"], &answer["replyTo"]), (&json!("rate_limited"), &json!(n.to_string())), "{answer}");
        let text = "more than 3 messages to be stored in a minute (clients.message_durable_per_minute)";
        assert_eq!(answer["message"], text);
    };
    for n in 0..2 {
        phone.say(&message(n)).await;
    }
    phone.nothing_more().await;
    // Another session, and one that comes back, is the same user.
    let mut tablet = gateway.client_with("alice", "device=tablet").await;
    tablet.say(&message(2)).await;
    tablet.say(&message(3)).await;
    refused(&tablet.next().await, 3);
    phone.close().await;
    let mut phone = gateway.client_with("alice", "device=phone").await;
    refused(&phone.ask(&message(4)).await, 4);
    assert_eq!(bob.next().await["data"], 1);
    bob.settle().await;
    until("stored for who is away", 2, async || gateway.pending().await).await;
    assert_eq!(gateway.errors("rate_limited").await, 2);
    // What is not stored has no part in it, nor have others.
    phone.say(&json!({ "type": "typing", "to": "bob" })).await;
    assert_eq!(bob.next().await["type"], "typing");
    bob.say(&message(6)).await;
    until("bob's is stored", 3, async || gateway.pending().await).await;
    bob.nothing_more().await;
}
