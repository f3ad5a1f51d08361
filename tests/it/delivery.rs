//! To each device of a user, at least once, in order, across reconnects and restarts.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use pushgate::api::proto::{
    Notification, Outcome, SendToUserRequest, SessionState, Wait, event::Event, notification::Payload,
};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    Client, Gateway, Raw, Token,
    client::request as handshake,
    raw,
    rpc::{notification, request, ttl},
    token::unix_now,
    until,
};

fn numbers(range: std::ops::Range<i32>) -> Vec<Value> {
    range.map(Value::from).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_to_a_user_reaches_all_his_sessions_at_once_and_nobody_else() {
    let gateway = Gateway::start().await;
    let (mut one, mut two) = (gateway.client("alice").await, gateway.client("alice").await);
    let mut other = gateway.client("bob").await;
    let notification = Notification {
        id: "order-7".into(),
        r#type: "order.shipped".into(),
        from_user_id: "shop".into(),
        ..notification(json!({ "n": 1 }))
    };
    let sent = gateway.rpc().await.send_to("alice", notification).await;
    assert_eq!((sent.id.as_str(), sent.outcome(), sent.sessions), ("order-7", Outcome::Stored, 2));
    assert!(sent.offset > 0 && sent.offset < 1 << 53);
    for client in [&mut one, &mut two] {
        let got = client.next().await;
        assert_eq!(
            (&got["type"], &got["id"], &got["data"]),
            (&json!("order.shipped"), &json!("order-7"), &json!({ "n": 1 }))
        );
        assert_eq!((&got["offset"], &got["fromUserId"]), (&json!(sent.offset), &json!("shop")));
        assert!(got.get("replayed").is_none(), "it did not have to wait");
        client.nothing_more().await;
    }
    other.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_comes_on_the_next_connection_in_order_and_once() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut sent = Vec::new();
    for n in 0..20 {
        let answer = rpc.send("alice", n).await;
        assert_eq!((answer.outcome(), answer.sessions), (Outcome::Stored, 0));
        sent.push((answer.id, answer.offset));
    }
    assert!(sent.windows(2).all(|pair| pair[0].1 < pair[1].1), "offsets rise: {sent:?}");
    assert_eq!(gateway.pending().await, 20);

    let mut client = gateway.client("alice").await;
    assert_eq!(client.hello["pending"], 20);
    for (n, (id, offset)) in sent.iter().enumerate() {
        let got = client.next().await;
        assert_eq!((&got["id"], &got["offset"], &got["data"]), (&json!(id), &json!(offset), &json!(n)));
        assert_eq!(got["replayed"], true);
    }
    client.settle().await;
    until("what is pending", 0, || gateway.pending()).await;
    client.close().await;
    let mut again = gateway.client("alice").await;
    assert_eq!(again.hello["pending"], 0);
    again.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_answers_pings_gets_everything_again() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let first = rpc.send("alice", 1).await;
    let mut raw = Raw::session(&gateway, "alice", "").await;
    let got = raw.text().await;
    assert_eq!((&got["id"], &got["replayed"]), (&json!(first.id), &json!(true)));
    gateway.live("alice").await;
    let second = rpc.send("alice", 2).await;
    assert_eq!(second.sessions, 1, "it is live");
    let got = raw.text().await;
    assert_eq!((&got["id"], &got["offset"]), (&json!(second.id), &json!(second.offset)));
    assert!(got.get("replayed").is_none());
    // Reading, answering other things and closing in order are no confirmation.
    raw.say(&json!({ "type": "ack", "offset": second.offset })).await;
    raw.say(&json!({ "type": "ping", "id": "alive" })).await;
    assert_eq!(raw.text().await["replyTo"], "alive");
    raw.send(raw::CLOSE, &1000_u16.to_be_bytes()).await;
    assert_eq!(raw.close_frame().await.close_code(), Some(1000));
    assert_eq!(raw.try_frame().await, None);

    until("sessions", 0, async || gateway.hub.session_count()).await;
    let mut client = gateway.client("alice").await;
    assert_eq!(client.hello["pending"], 2);
    for sent in [first, second] {
        let got = client.next().await;
        assert_eq!(
            (&got["id"], &got["offset"], &got["replayed"]),
            (&json!(sent.id), &json!(sent.offset), &json!(true))
        );
    }
    client.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ping_behind_the_data_confirms_exactly_what_came_before_it() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&["notification_confirmed"], "alice").await;
    let mut raw = Raw::session(&gateway, "alice", "device=phone").await;
    let first = rpc.send("alice", 1).await;
    assert_eq!(raw.frame().await.json()["id"], json!(first.id));
    let ping = raw.frame().await;
    assert_eq!((ping.first, ping.payload.len()), (raw::PING, 16), "a nonce and a number behind the data");
    // While one is outstanding no other ping is sent, and its pong does not speak for what came later.
    let second = rpc.send("alice", 2).await;
    assert_eq!(raw.frame().await.json()["id"], json!(second.id));
    let mut forged = ping.payload.clone();
    forged[0] ^= 1;
    raw.send(raw::PONG, &forged).await;
    raw.send(raw::PONG, b"").await;
    raw.say(&json!({ "type": "ping", "id": "x" })).await;
    assert_eq!(raw.frame().await.json()["replyTo"], "x");
    assert_eq!(gateway.pending().await, 2, "a forged pong confirms nothing");

    raw.send(raw::PONG, &ping.payload).await;
    let Event::NotificationConfirmed(confirmed) = events.body().await else { panic!() };
    assert_eq!((&confirmed.id, confirmed.offset, &*confirmed.device), (&first.id, first.offset, "phone"));
    let next = raw.frame().await;
    assert_eq!(next.first, raw::PING, "the next one goes out for what is unconfirmed");
    raw.send(raw::PONG, &ping.payload).await;
    raw.send(raw::PONG, &next.payload).await;
    let Event::NotificationConfirmed(confirmed) = events.body().await else { panic!() };
    assert_eq!((&confirmed.id, confirmed.offset), (&second.id, second.offset));
    until("what is pending", 0, || gateway.pending()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_acks_gets_again_what_it_did_not_ack() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut client = gateway.client_with("alice", "device=phone&ackMode=client").await;
    let mut offsets = Vec::new();
    for n in 0..4 {
        offsets.push(rpc.send("alice", n).await.offset);
    }
    assert_eq!(client.data(4).await, numbers(0..4));
    client.say(&json!({ "type": "ack", "offset": offsets[1] })).await;
    // Not in flight: ignored.
    client.say(&json!({ "type": "ack", "offset": offsets[3] + 1 })).await;
    client.settle().await;
    until("what is pending", 2, || gateway.pending()).await;
    client.close().await;
    let mut client = gateway.client_with("alice", "device=phone&ackMode=client").await;
    assert_eq!(client.data(2).await, numbers(2..4));
    client.nothing_more().await;
    client.say(&json!({ "type": "ack", "offset": offsets[3] })).await;
    client.nothing_more().await;
    until("what is pending", 0, || gateway.pending()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_may_be_the_rule_for_clients_that_say_nothing() {
    let gateway = Gateway::with(&[("delivery.ack_mode", "client")]).await;
    let client = gateway.client("alice").await;
    assert_eq!(client.hello["ackMode"], "client");
    assert_eq!(gateway.client_with("alice", "ackMode=transport").await.hello["ackMode"], "transport");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_everything_that_is_not_confirmed() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut client = gateway.client("alice").await;
    rpc.send("alice", "confirmed").await;
    assert_eq!(client.data(1).await, ["confirmed"]);
    client.settle().await;
    client.close().await;
    let large = "x".repeat(100_000);
    let mut sent = Vec::new();
    for data in [json!("first"), json!(large), json!(null), json!([1.5, { "ü": true }])] {
        sent.push((rpc.send("alice", data.clone()).await, data));
    }
    let bytes = Notification { payload: Some(Payload::Binary(vec![0, 255, 10].into())), ..Default::default() };
    let binary = rpc.send_to("bob", bytes).await;
    let (epoch, store_epoch) = (rpc.status().await.epoch, rpc.status().await.store_epoch);

    let gateway = gateway.restart().await;
    let status = gateway.rpc().await.status().await;
    assert_eq!(status.pending.unwrap().count, 5);
    assert_eq!(status.store_epoch, store_epoch, "it is the same store");
    assert_ne!(status.epoch, epoch, "and another start");
    let mut client = gateway.client("alice").await;
    for (sent, data) in &sent {
        let got = client.next().await;
        assert_eq!((&got["id"], &got["offset"], &got["data"]), (&json!(sent.id), &json!(sent.offset), data));
        assert_eq!(got["replayed"], true);
    }
    let later = gateway.rpc().await.send("alice", "later").await;
    assert!(later.offset > binary.offset, "no offset is ever given twice");
    assert_eq!(client.data(1).await, ["later"]);
    let got = gateway.client("bob").await.next().await;
    assert_eq!((&got["id"], &got["dataBase64"]), (&json!(binary.id), &json!("AP8K")));
    assert!(got.get("data").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn cursors_survive_a_restart() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut phone = gateway.client_with("alice", "device=phone").await;
    let tablet = gateway.client_with("alice", "device=tablet").await;
    tablet.close().await;
    rpc.send("alice", 1).await;
    assert_eq!(phone.data(1).await, numbers(1..2));
    phone.settle().await;
    phone.close().await;
    let gateway = gateway.restart().await;
    assert_eq!(gateway.client_with("alice", "device=phone").await.hello["pending"], 0);
    let mut tablet = gateway.client_with("alice", "device=tablet").await;
    assert_eq!(tablet.data(1).await, numbers(1..2));
    tablet.settle().await;
    until("what is pending", 0, || gateway.pending()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_device_takes_all_that_waits_and_a_further_one_starts_at_the_present() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    rpc.send("alice", 0).await;
    rpc.send("alice", 1).await;
    // With no answer to the pings nothing is confirmed, so that all of it stays.
    let mut phone = Raw::session(&gateway, "alice", "device=phone").await;
    assert_eq!(phone.text().await["data"], 0);
    assert_eq!(phone.text().await["data"], 1);
    let mut tablet = gateway.client_with("alice", "device=tablet").await;
    assert_eq!(tablet.hello["pending"], 0);
    gateway.live("alice").await;
    assert_eq!(rpc.send("alice", 2).await.sessions, 2);
    assert_eq!(tablet.data(1).await, numbers(2..3));
    tablet.settle().await;
    tablet.close().await;
    rpc.send("alice", 3).await;
    // Each device has a cursor of its own.
    assert_eq!(gateway.client_with("alice", "device=tablet").await.data(1).await, numbers(3..4));
    drop(phone);
    let mut phone = gateway.client_with("alice", "device=phone").await;
    assert_eq!(phone.data(4).await, numbers(0..4));
    phone.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_session_of_a_device_confirmed_is_not_replayed_to_another() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut silent = Raw::session(&gateway, "alice", "device=phone").await;
    let mut answering = gateway.client_with("alice", "device=phone").await;
    assert_eq!(rpc.send("alice", 1).await.sessions, 2, "both get it live");
    assert_eq!(silent.text().await["data"], 1);
    assert_eq!(answering.data(1).await, numbers(1..2));
    answering.settle().await;
    until("what is pending", 0, || gateway.pending()).await;
    silent.reset();
    until("sessions", 1, async || gateway.hub.session_count()).await;
    assert_eq!(gateway.client_with("alice", "device=phone").await.hello["pending"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seventeenth_device_is_refused_while_the_others_were_seen_lately() {
    let gateway = Gateway::start().await;
    for n in 0..16 {
        gateway.client_with("alice", &format!("device=d{n}")).await.close().await;
    }
    let url = gateway.url(&format!("token={}&device=d16", Token::of("alice").sign()));
    let (mut refused, _) = Client::open(handshake(&url, &[])).await.unwrap();
    let failure = refused.next().await;
    assert_eq!((&failure["type"], &failure["code"]), (&json!("auth_failure"), &json!("device_limit")));
    assert_eq!(refused.closed().await, (4401, "device_limit".to_owned()));
    gateway.client_with("alice", "device=d3").await;
    assert_eq!(gateway.errors("auth_failed").await, 1);

    // A day later the longest unseen one that is not online makes room: d0 is online, d1 is not.
    let online = gateway.client_with("alice", "device=d0").await;
    gateway.later(Duration::from_secs(25 * 3600));
    let token = Token::of("alice").with("exp", unix_now() + 10_000_000).sign();
    let connect = async |device: &str| {
        let (mut client, _) =
            Client::open(handshake(&gateway.url(&format!("token={token}&device={device}")), &[])).await.unwrap();
        client.next().await
    };
    gateway.rpc().await.send("alice", "since").await;
    assert_eq!(connect("d16").await["type"], "auth_success");
    assert_eq!(connect("d1").await["pending"], 0, "it was forgotten, and is new: it starts at the present");
    assert_eq!(connect("d15").await["pending"], 1);
    assert_eq!(connect("d0").await["type"], "auth_success");
    drop(online);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_of_four_holds_the_fifth_back_until_something_is_confirmed() {
    let gateway = Gateway::with(&[("delivery.window", "4")]).await;
    let mut rpc = gateway.rpc().await;
    let mut raw = Raw::session(&gateway, "alice", "").await;
    for n in 0..10 {
        let sessions = rpc.send("alice", n).await.sessions;
        assert_eq!(sessions, u32::from(n < 4), "{n}: what does not fit is pulled later");
    }
    let first = raw.frame().await;
    assert_eq!(first.json()["data"], 0);
    let mut ping = raw.frame().await;
    for n in 1..4 {
        assert_eq!(raw.frame().await.json()["data"], n);
    }
    raw.say(&json!({ "type": "ping", "id": "held" })).await;
    assert_eq!(raw.frame().await.json()["replyTo"], "held", "and not the fifth");
    let session = &rpc.list(Default::default()).await.unwrap().sessions[0];
    assert_eq!((session.unconfirmed, session.state()), (4, SessionState::Pulling));

    // Each pong frees what its ping covered, and only so many come.
    let mut next = 4;
    let mut unconfirmed = 4;
    let mut covered = 1;
    while next < 10 {
        raw.send(raw::PONG, &ping.payload).await;
        unconfirmed -= covered;
        let mut got = Vec::new();
        loop {
            let frame = raw.frame().await;
            if frame.first == raw::PING {
                ping = frame;
                covered = unconfirmed;
                if next < 10 && unconfirmed < 4 {
                    continue;
                }
                break;
            }
            assert_eq!(frame.json()["data"], next);
            got.push(next);
            next += 1;
            unconfirmed += 1;
            assert!(unconfirmed <= 4, "more in flight than the window takes");
            if unconfirmed == 4 || next == 10 {
                break;
            }
        }
    }
    raw.send(raw::PONG, &ping.payload).await;
    raw.say(&json!({ "type": "ping", "id": "end" })).await;
    assert_eq!(raw.text().await["replyTo"], "end", "nothing comes twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_a_window_waiting_arrives_whole_and_in_order() {
    let gateway = Gateway::with(&[("delivery.window", "3")]).await;
    let mut rpc = gateway.rpc().await;
    for n in 0..40 {
        rpc.send("alice", n).await;
    }
    let mut client = gateway.client("alice").await;
    let mut live = gateway.rpc().await;
    let sender = tokio::spawn(async move {
        for n in 40..80 {
            live.send("alice", n).await;
        }
    });
    assert_eq!(client.data(80).await, numbers(0..80));
    sender.await.unwrap();
    client.settle().await;
    until("what is pending", 0, || gateway.pending()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_larger_than_the_window_come_one_at_a_time() {
    let gateway = Gateway::with(&[("limits.notification_bytes", "2MiB"), ("limits.outbox_bytes", "64KiB")]).await;
    let mut rpc = gateway.rpc().await;
    let large = |n: i32| json!([n, "x".repeat(900_000)]);
    for n in 0..3 {
        rpc.send("alice", large(n)).await;
    }
    let mut client = gateway.client("alice").await;
    for n in 0..3 {
        assert_eq!(client.next().await["data"][0], n);
    }
    client.settle().await;
    gateway.live("alice").await;
    assert_eq!(rpc.send("alice", large(3)).await.sessions, 1, "an empty outbox takes one of any size");
    assert_eq!(client.next().await["data"], large(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_does_not_wait_for_the_disk_and_reaches_sessions_and_the_store() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let accepted = |user: &str, data: Value| SendToUserRequest {
        wait: Wait::Accepted.into(),
        ..request(user, notification(data))
    };
    let absent = rpc.try_send(accepted("alice", json!(1))).await.unwrap();
    assert_eq!((absent.outcome(), absent.sessions), (Outcome::Accepted, 0));
    assert!(absent.offset > 0);
    let mut bob = gateway.client("bob").await;
    let present = rpc.try_send(accepted("bob", json!(2))).await.unwrap();
    assert_eq!((present.outcome(), present.sessions), (Outcome::Accepted, 1));
    assert_eq!(bob.data(1).await, numbers(2..3));
    let stored = rpc.try_send(SendToUserRequest { wait: Wait::Stored.into(), ..accepted("alice", json!(3)) }).await;
    assert_eq!(stored.unwrap().outcome(), Outcome::Stored);
    let mut alice = gateway.client("alice").await;
    assert_eq!(alice.data(2).await, [json!(1), json!(3)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_ttl_of_zero_it_is_now_or_never() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let now_or_never = Notification { ttl: ttl(0, 0), ..notification("now") };
    let dropped = rpc.send_to("alice", now_or_never.clone()).await;
    assert_eq!((dropped.outcome(), dropped.offset, dropped.sessions), (Outcome::Dropped, 0, 0));
    assert!(!dropped.id.is_empty());
    let mut client = gateway.client("alice").await;
    assert_eq!(client.hello["pending"], 0);
    let accepted = rpc.send_to("alice", now_or_never).await;
    assert_eq!((accepted.outcome(), accepted.offset, accepted.sessions), (Outcome::Accepted, 0, 1));
    let got = client.next().await;
    assert_eq!((&got["data"], &got["id"]), (&json!("now"), &json!(accepted.id)));
    assert!(got.get("offset").is_none() && got.get("replayed").is_none());
    assert_eq!(gateway.pending().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_stored_is_not_held_up_by_a_replay() {
    let gateway = Gateway::with(&[("delivery.window", "1")]).await;
    let mut rpc = gateway.rpc().await;
    rpc.send("alice", 0).await;
    rpc.send("alice", 1).await;
    let mut raw = Raw::session(&gateway, "alice", "").await;
    assert_eq!(raw.text().await["data"], 0);
    let at_once = Notification { ttl: ttl(0, 0), ..notification("at once") };
    assert_eq!(rpc.send_to("alice", at_once).await.sessions, 1);
    assert_eq!(raw.text().await["data"], "at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_outlived_its_ttl_is_not_delivered_and_leaves_the_store() {
    let gateway = Gateway::with(&[("store.ttl", "1h")]).await;
    let mut rpc = gateway.rpc().await;
    rpc.send_to("alice", Notification { ttl: ttl(60, 0), ..notification("short") }).await;
    rpc.send("alice", "default").await;
    rpc.send_to("alice", Notification { ttl: ttl(7200, 0), ..notification("long") }).await;
    gateway.later(Duration::from_secs(61));
    let mut raw = Raw::session(&gateway, "alice", "").await;
    assert_eq!(raw.text().await["data"], "default");
    assert_eq!(raw.text().await["data"], "long");
    drop(raw);
    gateway.later(Duration::from_secs(3661));
    // A sweep comes by every few seconds, whether anybody connects or not, and finds what expired by the minute.
    until("what is pending", 1, || gateway.pending()).await;
    let mut client = gateway.client("alice").await;
    assert_eq!(client.hello["pending"], 1);
    assert_eq!(client.data(1).await, ["long"]);
    client.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_come_as_base64_or_as_bytes_where_the_client_asked_for_them() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut text = gateway.client("alice").await;
    let mut binary = gateway.client_with("alice", "binary=1").await;
    let payload: Vec<u8> = (0..=255).collect();
    let bytes = Notification { payload: Some(Payload::Binary(payload.clone().into())), ..Default::default() };
    let sent = rpc.send_to("alice", bytes.clone()).await;
    let got = text.next().await;
    assert!(got["dataBase64"].as_str().unwrap().starts_with("AAECAwQF") && got.get("data").is_none());

    let check = |message: Message, replayed: bool| {
        let Message::Binary(message) = message else { panic!("{message:?}") };
        let (length, rest) = message.split_first_chunk().unwrap();
        let (envelope, data) = rest.split_at(u32::from_be_bytes(*length) as usize);
        let envelope: Value = serde_json::from_slice(envelope).unwrap();
        assert_eq!((&envelope["type"], &envelope["id"]), (&json!("notification"), &json!(sent.id)));
        assert_eq!(envelope["offset"], sent.offset);
        assert!(envelope.get("data").is_none() && envelope.get("dataBase64").is_none());
        assert_eq!(envelope.get("replayed").is_some(), replayed);
        assert_eq!(data, payload);
    };
    check(binary.next_message().await, false);
    // JSON is text for everyone; what is not stored has the same two forms.
    rpc.send("alice", 1).await;
    assert_eq!(binary.data(1).await, numbers(1..2));
    rpc.send_to("alice", Notification { ttl: ttl(0, 0), ..bytes }).await;
    assert!(matches!(binary.next_message().await, Message::Binary(_)));
    drop((text, binary));

    // And so has a replay: this device has confirmed nothing.
    let mut first = Raw::session(&gateway, "bob", "").await;
    first.say(&json!({ "type": "ping" })).await;
    first.text().await;
    drop(first);
    let bytes = Notification {
        payload: Some(Payload::Binary(payload.clone().into())),
        id: sent.id.clone(),
        ..Default::default()
    };
    let again = rpc.send_to("bob", bytes).await;
    until("sessions of bob", 0, async || sessions_of(&gateway, "bob")).await;
    let mut bob = gateway.client_with("bob", "binary=1").await;
    let Message::Binary(message) = bob.next_message().await else { panic!() };
    assert!(message.ends_with(&payload));
    assert!(String::from_utf8_lossy(&message).contains(&again.offset.to_string()));
    assert!(String::from_utf8_lossy(&message).contains("\"replayed\":true"));
}

fn sessions_of(gateway: &Gateway, user: &str) -> usize {
    gateway.hub.user_sessions(&pushgate::types::UserId::parse(user).unwrap()).len()
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_passed_on_byte_for_byte_and_values_as_json() {
    use prost_types::{ListValue, Struct, value::Kind};
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut client = gateway.client("alice").await;
    let json = r#"{ "b":1.0,  "a" : 12345678901234567890123, "s":"\u00e9<script>" }"#;
    let exact = Notification { payload: Some(Payload::Json(json.into())), ..Default::default() };
    rpc.send_to("alice", exact).await;
    let Message::Text(text) = client.next_message().await else { panic!() };
    assert!(text.contains(&format!(r#""data":{json}"#)), "{text}");

    let value = |kind| prost_types::Value { kind: Some(kind) };
    let list = ListValue {
        values: vec![value(Kind::NumberValue(3.0)), value(Kind::NumberValue(0.5)), value(Kind::NullValue(0))],
    };
    let fields = Struct { fields: [("k".to_owned(), value(Kind::ListValue(list)))].into() };
    let data = Notification { payload: Some(Payload::Data(value(Kind::StructValue(fields)))), ..Default::default() };
    rpc.send_to("alice", data).await;
    let Message::Text(text) = client.next_message().await else { panic!() };
    assert!(text.contains(r#""data":{"k":[3,0.5,null]}"#), "{text}");
    rpc.send_to("alice", Notification::default()).await;
    assert_eq!(client.data(1).await, [Value::Null], "without a payload it is null");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_reaches_every_session_in_one_order_and_is_not_stored() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let nobody = rpc.broadcast("nobody").await;
    assert_eq!((nobody.outcome(), nobody.sessions), (Outcome::Dropped, 0));
    let mut clients = Vec::new();
    for n in 0..40 {
        clients.push(gateway.client(&format!("user-{}", n % 7)).await);
    }
    let calls = (0..50).map(|n| {
        let mut rpc = rpc.clone();
        async move { rpc.broadcast(n).await }
    });
    for answer in join_all(calls).await {
        assert_eq!((answer.outcome(), answer.sessions), (Outcome::Accepted, 40));
    }
    let seen = join_all(clients.iter_mut().map(|client| client.data(50))).await;
    let mut sorted: Vec<_> = seen[0].iter().map(|n| n.as_i64().unwrap()).collect();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..50).collect::<Vec<_>>(), "each once");
    assert!(seen.iter().all(|order| *order == seen[0]), "none overtakes another anywhere");
    assert_eq!(gateway.pending().await, 0);
    clients[0].nothing_more().await;
    assert!(gateway.client("user-0").await.hello["pending"] == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_senders_to_one_user_are_seen_in_the_order_of_their_offsets() {
    let gateway = Gateway::start().await;
    let (mut live, gateway) = (gateway.client("alice").await, Arc::new(gateway));
    let senders = (0..8).map(|sender| {
        let gateway = Arc::clone(&gateway);
        tokio::spawn(async move {
            let mut rpc = gateway.rpc().await;
            let mut offsets = Vec::new();
            for n in 0..25 {
                offsets.push((rpc.send("alice", json!([sender, n])).await.offset, json!([sender, n])));
            }
            offsets
        })
    });
    let mut expected: Vec<_> = join_all(senders).await.into_iter().flat_map(Result::unwrap).collect();
    expected.sort_by_key(|(offset, _)| *offset);
    for (offset, data) in &expected {
        let got = live.next().await;
        assert_eq!((&got["offset"], &got["data"]), (&json!(offset), data));
    }
    live.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_come_and_go_under_traffic_miss_nothing() {
    let gateway = Arc::new(Gateway::with(&[("delivery.window", "8")]).await);
    gateway.client("alice").await.close().await;
    let sender = tokio::spawn({
        let gateway = Arc::clone(&gateway);
        async move {
            let mut rpc = gateway.rpc().await;
            for n in 0..400 {
                rpc.send("alice", n).await;
            }
        }
    });
    // Each connection takes some and leaves without a word; drops repeats by offset, as clients do.
    let mut seen = Vec::new();
    let mut last = 0;
    while seen.len() < 400 {
        let mut client = gateway.client("alice").await;
        for _ in 0..23 {
            if seen.len() == 400 {
                break;
            }
            let got = client.next().await;
            let offset = got["offset"].as_u64().unwrap();
            if offset > last {
                last = offset;
                seen.push(got["data"].clone());
            }
        }
    }
    sender.await.unwrap();
    assert_eq!(seen, numbers(0..400));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_mailbox_refuses_until_something_is_confirmed() {
    use tonic_types::StatusExt as _;
    let gateway = Gateway::with(&[("store.max_pending_per_user", "3")]).await;
    let mut rpc = gateway.rpc().await;
    for n in 0..3 {
        rpc.send("alice", n).await;
    }
    let refused = rpc.try_send(request("alice", notification(3))).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    let details = refused.get_error_details();
    assert!(details.retry_info().unwrap().retry_delay.is_some());
    assert_eq!(details.error_info().unwrap().reason, "MAILBOX_FULL");
    rpc.send("bob", "others are not concerned").await;
    assert_eq!(rpc.errors("quota_exceeded").await, 1);
    assert_eq!(rpc.status().await.limits.unwrap().max_pending_per_user, 3);

    let mut client = gateway.client("alice").await;
    assert_eq!(client.data(3).await, numbers(0..3));
    client.settle().await;
    rpc.send("alice", 4).await;
    assert_eq!(client.data(1).await, numbers(4..5), "what was refused is nowhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_mailbox_makes_room_from_what_only_laggards_lack_and_tells_them_of_the_gap() {
    let gateway = Gateway::with(&[("store.max_pending_per_user", "3")]).await;
    let mut rpc = gateway.rpc().await;
    let laggard = gateway.client_with("alice", "device=tablet").await;
    laggard.close().await;
    let mut phone = gateway.client_with("alice", "device=phone").await;
    for n in 0..5 {
        rpc.send("alice", n).await;
        assert_eq!(phone.data(1).await, numbers(n..n + 1));
        phone.settle().await;
    }
    assert_eq!(rpc.errors("laggard_lost").await, 2);
    assert_eq!(rpc.errors("quota_exceeded").await, 0);

    let gateway = gateway.restart().await;
    let mut laggard = gateway.client_with("alice", "device=tablet").await;
    assert_eq!((&laggard.hello["pending"], &laggard.hello["gap"]), (&json!(3), &json!(true)));
    assert_eq!(laggard.data(3).await, numbers(2..5));
    laggard.settle().await;
    laggard.close().await;
    let again = gateway.client_with("alice", "device=tablet").await;
    assert_eq!((&again.hello["pending"], &again.hello["gap"]), (&json!(0), &json!(false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_refuses_stored_notifications_and_takes_the_others() {
    use tonic_types::StatusExt as _;
    let gateway = Gateway::with(&[("store.max_bytes", "64KiB")]).await;
    let mut rpc = gateway.rpc().await;
    let mut stored = 0_u32;
    let refused = loop {
        match rpc.try_send(request(&format!("user-{stored}"), notification("x".repeat(5000)))).await {
            Ok(_) => stored += 1,
            Err(status) => break status,
        }
        assert!(stored < 20, "64 KiB take no more than that");
    };
    assert!(stored >= 10, "only {stored}");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    assert_eq!(refused.get_error_details().error_info().unwrap().reason, "STORE_FULL");
    let mut client = gateway.client("user-0").await;
    client.data(1).await;
    let at_once = Notification { ttl: ttl(0, 0), ..notification("x".repeat(5000)) };
    assert_eq!(rpc.send_to("user-0", at_once).await.outcome(), Outcome::Accepted);
    client.data(1).await;
    client.settle().await;
    until("room", true, async || rpc.clone().try_send(request("user-0", notification("x".repeat(4000)))).await.is_ok())
        .await;
}
