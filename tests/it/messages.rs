//! What a client may say, and what it hears back.

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Gateway, Raw, raw};

#[tokio::test(flavor = "multi_thread")]
async fn ping_and_echo_are_answered_with_the_clients_id() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client("alice").await;
    let pong = client.ask(&json!({ "type": "ping", "id": "p-1" })).await;
    assert_eq!((&pong["type"], &pong["replyTo"]), (&json!("pong"), &json!("p-1")));
    assert!(pong["timestamp"].as_str().unwrap().ends_with('Z'));
    assert!(client.ask(&json!({ "type": "ping" })).await.get("replyTo").is_none(), "no id, no replyTo");

    let data = json!({ "text": "ü \u{1F600} \"quoted\"", "deep": [[[{ "n": 1.5 }]]] });
    let echo = client.ask(&json!({ "type": "echo", "id": "e-1", "data": data })).await;
    assert_eq!((&echo["type"], &echo["replyTo"], &echo["data"]), (&json!("echo_response"), &json!("e-1"), &data));
    assert_eq!(client.ask(&json!({ "type": "echo" })).await["data"], json!(null));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_comes_back_byte_for_byte() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client("alice").await;
    let data = r#"{ "b":1.0,  "a" : 12345678901234567890123 , "s":"\u00e9\/" }"#;
    client.send(Message::text(format!(r#"{{"type":"echo","data":{data}}}"#))).await;
    let Message::Text(text) = client.next_message().await else { panic!("not text") };
    assert!(text.contains(&format!(r#""data":{data},"#)), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fragmented_message_is_one_message() {
    let gateway = Gateway::start().await;
    let mut raw = Raw::session(&gateway, "alice", "").await;
    // Cut inside a character, with a ping between the parts.
    let text = r#"{"type":"echo","id":"ü","data":1}"#.as_bytes();
    raw.send(0x01, &text[..21]).await;
    raw.send(raw::PING, b"between").await;
    raw.send(0x00, &text[21..25]).await;
    raw.send(0x80, &text[25..]).await;
    assert_eq!(raw.frame().await, raw::Frame { first: raw::PONG, payload: b"between".to_vec() });
    assert_eq!(raw.frame().await.json()["replyTo"], "ü");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_answers_and_what_is_not_allowed_is_said() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client("alice").await;
    for kind in ["chat.say", "auth_success", "notification", "draining"] {
        let answer = client.ask(&json!({ "type": kind, "id": "u", "data": {} })).await;
        assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!("unknown_type")), "{kind}");
        assert_eq!(answer["replyTo"], "u");
    }
    let forbidden =
        ["subscribe", "unsubscribe", "join_room", "leave_room", "user_list", "message", "publish", "typing"];
    for kind in forbidden {
        let answer = client.ask(&json!({ "type": kind, "id": "f", "topic": "t", "to": "bob" })).await;
        assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!("forbidden")), "{kind}");
        assert_eq!(answer["replyTo"], "f");
    }
    let mut rpc = gateway.rpc().await;
    assert_eq!(rpc.errors("unknown_type").await, 4);
    assert_eq!(rpc.errors("forbidden").await, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_messages_are_answered_and_the_session_stays() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client("alice").await;
    let deep = format!(r#"{{"type":"echo","data":{}{}}}"#, "[".repeat(32), "]".repeat(32));
    let huge = format!(r#"{{"type":"echo","data":{}"#, "[".repeat(60_000));
    let bad = [
        "",
        "nonsense",
        "[1]",
        "\"ping\"",
        "null",
        "{}",
        r#"{"type":5}"#,
        r#"{"type":""}"#,
        r#"{"type":"ping","id":7}"#,
        r#"{"type":"ack","offset":"7"}"#,
        r#"{"type":"auth"}"#,
        r#"{"type":"ping"} {"type":"ping"}"#,
        &deep,
        &huge,
    ];
    for text in bad {
        client.send(Message::text(text)).await;
        let answer = client.next().await;
        assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!("bad_message")), "{text:.80}");
        assert!(answer["message"].as_str().is_some_and(|text| !text.is_empty()));
    }
    let answer = client.ask(&json!({ "type": "ack", "id": "mine" })).await;
    assert_eq!((&answer["code"], &answer["replyTo"]), (&json!("bad_message"), &json!("mine")));
    // 31 levels below the object are allowed.
    client.send(Message::text(deep.replace("[[", "[").replace("]]", "]"))).await;
    assert_eq!(client.next().await["type"], "echo_response");
    client.nothing_more().await;
    assert_eq!(gateway.errors("bad_message").await, bad.len() as u64 + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_bad_messages_in_a_minute_close_the_session_with_4400() {
    let gateway = Gateway::with(&[("limits.bad_messages", "3")]).await;
    let mut client = gateway.client("alice").await;
    let mut other = gateway.client("alice").await;
    for _ in 0..3 {
        client.send(Message::text("nonsense")).await;
        assert_eq!(client.next().await["code"], "bad_message");
    }
    client.send(Message::text("nonsense")).await;
    assert_eq!(client.closed().await.0, 4400);
    other.nothing_more().await;
    let mut rpc = gateway.rpc().await;
    assert_eq!((rpc.errors("bad_message").await, rpc.errors("too_many_bad_messages").await), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ack_is_not_answered_whatever_it_names() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client_with("alice", "ackMode=client").await;
    client.say(&json!({ "type": "ack", "offset": 0 })).await;
    client.say(&json!({ "type": "ack", "offset": 9_007_199_254_740_991_u64 })).await;
    client.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_ping_frame_is_answered_with_its_payload() {
    let gateway = Gateway::start().await;
    let mut raw = Raw::session(&gateway, "alice", "").await;
    let payload = [7; 125];
    raw.send(raw::PING, &payload).await;
    assert_eq!(raw.frame().await, raw::Frame { first: raw::PONG, payload: payload.to_vec() });
    // Unsolicited pongs are allowed and mean nothing (RFC 6455 section 5.5.3).
    raw.send(raw::PONG, b"whatever").await;
    raw.say(&json!({ "type": "ping", "id": "alive" })).await;
    assert_eq!(raw.frame().await.json()["replyTo"], "alive");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binary_message_without_a_whole_envelope_is_refused_with_1003() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client("alice").await;
    client.send(Message::binary(vec![0, 0, 0, 2, b'{', b'}'])).await;
    assert_eq!(client.next().await["code"], "bad_message", "its envelope is whole");
    client.send(Message::binary(vec![0, 0, 0, 3, b'{', b'}'])).await;
    assert_eq!(client.closed().await.0, 1003);
    assert_eq!(gateway.errors("unsupported_data").await, 1);
}
