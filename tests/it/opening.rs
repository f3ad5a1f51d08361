//! How a connection becomes a session, or is told why not.

use std::collections::HashSet;

use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Message, handshake::client::Request};

use crate::support::{
    Client, Gateway, Raw, Token,
    client::{refusal, request},
    raw::{self, handshake},
    soon,
    token::{key_path, private_key, unix_now},
    until,
};

const PROTOCOL: &str = "sec-websocket-protocol";

fn auth(token: &str) -> Value {
    json!({ "type": "auth", "token": token })
}

async fn open(request: Request) -> Client {
    Client::open(request).await.unwrap().0
}

/// `auth_failure` with that code, then close 4401 with the code as reason, then nothing.
async fn turned_away(mut client: Client, code: &str) -> Value {
    let failure = client.next().await;
    assert_eq!((&failure["type"], &failure["code"]), (&json!("auth_failure"), &json!(code)), "{failure}");
    assert!(failure["message"].is_string() && failure["timestamp"].is_string(), "{failure}");
    assert_eq!(client.closed().await, (4401, code.to_owned()));
    assert!(client.next_frame().await.is_none_or(|frame| frame.is_err()), "something after the close frame");
    failure
}

/// Sets the gateway's clock so that a token has so many milliseconds left.
fn leave_millis(gateway: &Gateway, exp: u64, left: i64) {
    let now = i64::try_from(gateway.clock.unix_micros()).unwrap();
    let end = i64::try_from(exp * 1_000_000).unwrap();
    gateway.clock.set_skew_micros(end - left * 1000 - now);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_taken_from_each_of_the_four_places() {
    let gateway = Gateway::start().await;
    let token = Token::of("alice").sign();
    let bearer = format!("Bearer {token}");
    let header = open(request(&gateway.url(""), &[("authorization", &bearer)])).await.welcomed().await;
    assert_eq!(header.hello["userId"], "alice");

    let names = format!("pushgate.v1.json, bearer.{token}");
    let (protocol, response) = Client::open(request(&gateway.url(""), &[(PROTOCOL, &names)])).await.unwrap();
    assert_eq!(response.headers()[PROTOCOL], "pushgate.v1.json", "the token is never echoed");
    let protocol = protocol.welcomed().await;
    assert_eq!(protocol.hello["userId"], "alice");

    let query = Client::connect(&gateway.url(&format!("token={token}"))).await;
    assert_eq!(query.hello["userId"], "alice");

    let mut message = open(request(&gateway.url(""), &[])).await;
    message
        .say(&json!({ "type": "auth", "id": "first", "token": token, "device": "phone", "ackMode": "client" }))
        .await;
    let message = message.welcomed().await;
    assert_eq!(message.hello["userId"], "alice");
    assert_eq!(message.hello["replyTo"], "first");
    assert_eq!((&message.hello["device"], &message.hello["ackMode"]), (&json!("phone"), &json!("client")));
    assert_eq!(gateway.hub.session_count(), 4, "a user may have many sessions");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_place_that_holds_a_token_decides() {
    let gateway = Gateway::start().await;
    let token = |user| Token::of(user).sign();
    let url = gateway.url(&format!("token={}", token("query")));
    let protocol = format!("pushgate.v1.json, bearer.{}", token("protocol"));
    let bearer = format!("bearer {}", token("header"));
    let all = open(request(&url, &[("authorization", &bearer), (PROTOCOL, &protocol)])).await.welcomed().await;
    assert_eq!(all.hello["userId"], "header");
    let proxied = [("authorization", "Basic cHJveHk6c2VjcmV0"), (PROTOCOL, &*protocol)];
    let without_header = open(request(&url, &proxied)).await.welcomed().await;
    assert_eq!(without_header.hello["userId"], "protocol", "another scheme is a proxy's");
    let without_protocol = open(request(&url, &[(PROTOCOL, "pushgate.v1.json")])).await.welcomed().await;
    assert_eq!(without_protocol.hello["userId"], "query");
    // A wrong token in an earlier place is not made good by a right one in a later.
    let wrong = request(&url, &[("authorization", "Bearer wrong")]);
    turned_away(open(wrong).await, "token_invalid").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn auth_success_says_what_the_client_needs_to_know() {
    let gateway = Gateway::with(&[("heartbeat.interval", "17s"), ("limits.message_bytes", "32KiB")]).await;
    let token = Token::of("alice").with("exp", 4_000_000_000_u64);
    let client = Client::connect(&gateway.url(&format!("token={}&device=a.B_c-9", token.sign()))).await;
    let hello = &client.hello;
    assert_eq!(hello["device"], "a.B_c-9");
    assert_eq!(hello["pending"], 0);
    assert_eq!(hello["gap"], false);
    assert_eq!(hello["ackMode"], "transport");
    assert_eq!(hello["heartbeatIntervalMs"], 17_000);
    assert_eq!(hello["maxMessageBytes"], 32_768);
    assert_eq!(hello["tokenExpiresAt"], "2096-10-02T07:06:40.000Z");
    assert_eq!(hello["storeEpoch"], gateway.rpc().await.status().await.store_epoch);
    assert_eq!(hello["sessionId"].as_str().unwrap().len(), 36);
    assert!(hello["timestamp"].as_str().unwrap().ends_with('Z'));
    assert!(hello.get("replyTo").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_the_node_libraries_works_unchanged_where_exp_is_not_required() {
    let gateway = Gateway::with(&[("auth.require_exp", "false")]).await;
    // jsonwebtoken's `sign({ userId }, secret)`: HS256, `iat`, no `exp`.
    let token = Token::claims(json!({ "userId": "user123", "iat": unix_now() })).sign();
    let client = Client::connect(&gateway.url(&format!("token={token}"))).await;
    assert_eq!(client.hello["userId"], "user123");
    assert!(client.hello.get("tokenExpiresAt").is_none());
    let strict = Gateway::start().await;
    turned_away(open(request(&strict.url(&format!("token={token}")), &[])).await, "token_invalid").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_told_its_code_and_closed_with_4401() {
    let gateway = Gateway::with(&[("auth.audience", r#"["app"]"#), ("auth.issuer", r#"["login"]"#)]).await;
    let good = Token::of("alice").with("aud", json!(["app", "other"])).with("iss", "login");
    Client::connect(&gateway.url(&format!("token={}", good.sign()))).await;
    let other_key = good.clone().signed(Algorithm::HS256, EncodingKey::from_secret(b"another secret"), None);
    let no_user = Token::claims(json!({ "exp": unix_now() + 60, "aud": "app", "iss": "login" }));
    let cases = [
        ("token_invalid", "not-a-token".to_owned()),
        ("token_invalid", other_key.sign()),
        ("token_invalid", good.clone().with("nbf", unix_now() + 600).sign()),
        ("token_invalid", good.clone().with("sub", "a\nb").sign()),
        ("token_invalid", good.clone().with("sub", "u".repeat(256)).sign()),
        ("token_invalid", good.clone().with("sub", "").sign()),
        ("token_invalid", good.clone().with("device", "a device").sign()),
        ("token_expired", good.clone().expiring_in(-60).sign()),
        ("user_missing", no_user.sign()),
        ("audience_mismatch", good.clone().with("aud", "elsewhere").sign()),
        ("issuer_mismatch", good.clone().with("iss", "elsewhere").sign()),
    ];
    let count = cases.len() as u64;
    for (code, token) in cases {
        let failure = turned_away(open(request(&gateway.url(&format!("token={token}")), &[])).await, code).await;
        assert!(!failure.to_string().contains(&token), "the token came back: {failure}");
    }
    assert_eq!(gateway.errors("auth_failed").await, count);
    until("connections that are left", 0, async || gateway.rpc().await.status().await.connections.unwrap().now).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_within_the_leeway_is_accepted_and_ends_with_it() {
    let gateway = Gateway::with(&[("auth.leeway", "2s")]).await;
    let exp = unix_now() + 1000;
    leave_millis(&gateway, exp, -1500);
    let token = Token::of("alice").with("exp", exp).sign();
    let mut client = Client::connect(&gateway.url(&format!("token={token}"))).await;
    client.nothing_more().await;
    assert_eq!(client.closed().await, (4401, "token_expired".to_owned()));
    assert!(gateway.clock.unix_micros() >= (exp + 2) * 1_000_000, "before the leeway's end");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_message_must_be_auth_and_in_time() {
    let gateway = Gateway::with(&[("auth.timeout", "150ms")]).await;
    turned_away(open(request(&gateway.url(""), &[])).await, "auth_timeout").await;

    for first in [Message::text(r#"{"type":"ping"}"#), Message::text("nonsense"), Message::binary(vec![1, 2, 3])] {
        let mut client = open(request(&gateway.url(""), &[])).await;
        client.send(first).await;
        turned_away(client, "token_missing").await;
    }
    let mut client = open(request(&gateway.url(""), &[])).await;
    client.say(&auth("")).await;
    turned_away(client, "token_missing").await;
    let mut client = open(request(&gateway.url(""), &[])).await;
    client.say(&json!({ "type": "auth", "id": "mine", "token": "wrong" })).await;
    assert_eq!(turned_away(client, "token_invalid").await["replyTo"], "mine");
    assert_eq!(gateway.errors("auth_failed").await, 6);
    assert_eq!(gateway.hub.session_count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn before_authentication_a_message_has_at_most_8_kib() {
    let gateway = Gateway::start().await;
    let mut client = open(request(&gateway.url(""), &[])).await;
    client.say(&json!({ "type": "auth", "token": "t".repeat(8192) })).await;
    assert_eq!(client.closed().await.0, 1009);
    assert_eq!(gateway.errors("message_too_big").await, 1);

    // Behind `auth` the session's own limit holds.
    let mut client = open(request(&gateway.url(""), &[])).await;
    client.say(&auth(&Token::of("alice").sign())).await;
    let mut client = client.welcomed().await;
    let long = "x".repeat(60_000);
    assert_eq!(client.ask(&json!({ "type": "echo", "data": long })).await["data"], json!(long));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_behind_auth_in_the_same_packet_is_answered_too() {
    let gateway = Gateway::start().await;
    let mut raw = Raw::connect(gateway.http).await;
    let mut bytes = handshake("", "").into_bytes();
    bytes.extend(raw::frame(raw::PING, b"early"));
    bytes.extend(raw::frame(raw::TEXT, auth(&Token::of("alice").sign()).to_string().as_bytes()));
    bytes.extend(raw::frame(raw::TEXT, br#"{"type":"ping","id":"1"}"#));
    bytes.extend(raw::frame(raw::TEXT, br#"{"type":"echo","id":"2","data":[1]}"#));
    raw.write(&bytes).await;
    assert!(raw.head().await.starts_with("HTTP/1.1 101 "));
    assert_eq!(raw.frame().await, raw::Frame { first: raw::PONG, payload: b"early".to_vec() });
    assert_eq!(raw.frame().await.json()["type"], "auth_success");
    assert_eq!(raw.frame().await.json()["replyTo"], "1");
    assert_eq!(raw.frame().await.json()["data"], json!([1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_closes_before_it_authenticated_is_answered_in_kind() {
    let gateway = Gateway::start().await;
    let mut raw = Raw::connect(gateway.http).await.upgraded("").await;
    raw.send(raw::CLOSE, &1000_u16.to_be_bytes()).await;
    assert_eq!(raw.frame().await.close_code(), Some(1000));
    assert_eq!(raw.try_frame().await, None);
    assert_eq!(gateway.errors("auth_failed").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn auth_failure_is_readable_although_the_client_went_on_talking() {
    let gateway = Gateway::start().await;
    let mut raw = Raw::connect(gateway.http).await;
    let mut bytes = handshake("token=wrong", "").into_bytes();
    for _ in 0..200 {
        bytes.extend(raw::frame(raw::TEXT, &[b'x'; 1000]));
    }
    raw.write(&bytes).await;
    assert!(raw.head().await.starts_with("HTTP/1.1 101 "));
    assert_eq!(raw.frame().await.json()["code"], "token_invalid");
    assert_eq!(raw.frame().await.close_code(), Some(4401));
    assert_eq!(raw.try_frame().await, None);
    // It is read on for a moment: unread bytes would make a reset of the end, which may destroy what was sent before.
    raw.write(&raw::frame(raw::TEXT, b"one more word")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_told_apart_by_kid_and_the_algorithm_is_that_of_the_key() {
    let keys = [("RS256", "rsa"), ("PS384", "rsa"), ("ES256", "p256"), ("ES384", "p384"), ("EdDSA", "ed25519")];
    let mut listed: Vec<_> = keys
        .iter()
        .map(|(algorithm, file)| {
            let path = key_path(&format!("test-{file}-public.pem"));
            format!(r#"{{ kid = "{algorithm}", algorithm = "{algorithm}", public_key_file = "{path}" }}"#)
        })
        .collect();
    for algorithm in ["HS256", "HS384", "HS512"] {
        listed.push(format!(
            r#"{{ kid = "{algorithm}", algorithm = "{algorithm}", secret = "{algorithm}-secret{}" }}"#,
            "x".repeat(64)
        ));
    }
    let gateway = Gateway::with(&[("auth.keys", &format!("[{}]", listed.join(", ")))]).await;
    let rsa = || EncodingKey::from_rsa_pem(&private_key("rsa")).unwrap();
    let ec = |name| EncodingKey::from_ec_pem(&private_key(name)).unwrap();
    let hmac = |secret: &str| EncodingKey::from_secret((secret.to_owned() + &"x".repeat(64)).as_bytes());
    let good = [
        (Algorithm::RS256, rsa(), "RS256"),
        (Algorithm::PS384, rsa(), "PS384"),
        (Algorithm::ES256, ec("p256"), "ES256"),
        (Algorithm::ES384, ec("p384"), "ES384"),
        (Algorithm::EdDSA, EncodingKey::from_ed_pem(&private_key("ed25519")).unwrap(), "EdDSA"),
        (Algorithm::HS256, hmac("HS256-secret"), "HS256"),
        (Algorithm::HS384, hmac("HS384-secret"), "HS384"),
        (Algorithm::HS512, hmac("HS512-secret"), "HS512"),
    ];
    for (algorithm, key, kid) in good {
        let token = Token::of(kid).signed(algorithm, key, Some(kid)).sign();
        assert_eq!(Client::connect(&gateway.url(&format!("token={token}"))).await.hello["userId"], kid);
    }
    // The public key is no secret: a token that says HS256 and was signed with it is not believed.
    let public = std::fs::read(key_path("test-rsa-public.pem")).unwrap();
    let confused = Token::of("mallory").signed(Algorithm::HS256, EncodingKey::from_secret(&public), Some("RS256"));
    let other_algorithm = Token::of("mallory").signed(Algorithm::RS512, rsa(), Some("RS256"));
    let other_key = Token::of("mallory").signed(Algorithm::RS256, rsa(), Some("ES256"));
    let unknown_kid = Token::of("mallory").signed(Algorithm::RS256, rsa(), Some("2020"));
    for token in [confused, other_algorithm, other_key, unknown_kid] {
        turned_away(open(request(&gateway.url(&format!("token={}", token.sign())), &[])).await, "token_invalid").await;
    }
    let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJtYWxsb3J5IiwiZXhwIjo0MDAwMDAwMDAwfQ.";
    turned_away(open(request(&gateway.url(&format!("token={none}")), &[])).await, "token_invalid").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_known_sub_protocol_is_selected() {
    let gateway = Gateway::start().await;
    let url = gateway.url(&format!("token={}", Token::of("alice").sign()));
    let (_client, response) = Client::open(request(&url, &[])).await.unwrap();
    assert!(!response.headers().contains_key(PROTOCOL), "none was named");
    let (_client, response) = Client::open(request(&url, &[(PROTOCOL, "chat, pushgate.v1.json")])).await.unwrap();
    assert_eq!(response.headers()[PROTOCOL], "pushgate.v1.json");
    for names in ["chat", "bearer.abc", "chat, bearer.abc"] {
        assert_eq!(refusal(request(&url, &[(PROTOCOL, names)])).await.status(), 400, "{names}");
    }
    assert_eq!(gateway.errors("bad_handshake").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_query_asks_for_must_be_allowed() {
    let gateway = Gateway::start().await;
    let token = Token::of("alice").sign();
    for query in ["device=a%20b", &format!("device={}", "d".repeat(65)), "ackMode=maybe", "binary=yes"] {
        let refused = refusal(request(&gateway.url(&format!("token={token}&{query}")), &[])).await;
        assert_eq!(refused.status(), 400, "{query}");
    }
    let client = gateway.client_with("alice", "unknown=1&device=phone&ackMode=client").await;
    assert_eq!((&client.hello["device"], &client.hello["ackMode"]), (&json!("phone"), &json!("client")));
    assert_eq!(gateway.errors("bad_handshake").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_the_token_names_overrides_what_the_client_says() {
    let gateway = Gateway::start().await;
    let token = Token::of("alice").with("device", "issued").sign();
    let client = Client::connect(&gateway.url(&format!("token={token}&device=claimed"))).await;
    assert_eq!(client.hello["device"], "issued");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_gets_426_on_the_path_and_404_elsewhere() {
    let gateway = Gateway::start().await;
    let mut raw = Raw::connect(gateway.http).await;
    let head = raw.request("GET /ws HTTP/1.1\r\nHost: gateway\r\n\r\n").await.to_lowercase();
    assert!(head.starts_with("http/1.1 426 ") && head.contains("\r\nupgrade: websocket\r\n"), "{head}");
    assert!(head.contains("\r\nsec-websocket-version: 13\r\n"), "{head}");
    for (path, status) in [("/", 404), ("/wss", 404), ("/readyz", 404), ("/livez", 200)] {
        let mut raw = Raw::connect(gateway.http).await;
        let head = raw.request(&format!("GET {path} HTTP/1.1\r\nHost: gateway\r\n\r\n")).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head}");
        assert!(head.to_lowercase().contains("\r\nconnection: close\r\n"), "{path} keeps its socket: {head}");
        raw.drained().await;
    }
    let mut raw = Raw::connect(gateway.http).await;
    let head = raw.request("POST /ws HTTP/1.1\r\nHost: gateway\r\nContent-Length: 0\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 426 "), "{head}");
    assert_eq!(gateway.errors("bad_handshake").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_the_limit_get_503_until_one_leaves() {
    let gateway = Gateway::with(&[("limits.connections", "2")]).await;
    let first = gateway.client("alice").await;
    let _second = gateway.client("bob").await;
    let url = gateway.url(&format!("token={}", Token::of("carol").sign()));
    let refused = refusal(request(&url, &[])).await;
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "5");
    let status = gateway.rpc().await.status().await;
    assert_eq!(status.errors["connection_limit"], 1);
    let connections = status.connections.unwrap();
    assert_eq!((connections.now, connections.peak, connections.total), (2, 2, 2), "a refused one is not among them");
    first.close().await;
    until("connections", 1, async || gateway.rpc().await.status().await.connections.unwrap().now).await;
    Client::connect(&url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_over_the_limit_of_a_user_are_closed_with_1013() {
    let gateway = Gateway::with(&[("limits.connections_per_user", "2")]).await;
    let first = gateway.client("alice").await;
    let mut second = gateway.client("alice").await;
    let url = gateway.url(&format!("token={}", Token::of("alice").sign()));
    assert_eq!(open(request(&url, &[])).await.closed().await.0, 1013);
    gateway.client("bob").await;
    second.nothing_more().await;
    assert_eq!(gateway.errors("user_connection_limit").await, 1);
    first.close().await;
    until("sessions of alice", 1, async || gateway.hub.session_count() - sessions_of(&gateway, "bob")).await;
    Client::connect(&url).await;
}

fn sessions_of(gateway: &Gateway, user: &str) -> usize {
    gateway.hub.user_sessions(&pushgate::types::UserId::parse(user).unwrap()).len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_on_a_session_takes_the_place_of_the_old_one() {
    let gateway = Gateway::start().await;
    let exp = unix_now() + 1000;
    leave_millis(&gateway, exp, 700);
    let token = Token::of("alice").with("exp", exp).sign();
    let mut client = Client::connect(&gateway.url(&format!("token={token}"))).await;
    let renewed = Token::of("alice").with("exp", 4_000_000_000_u64).sign();
    let answer = client.ask(&json!({ "type": "auth", "id": "renewal", "token": renewed })).await;
    assert_eq!((&answer["type"], &answer["replyTo"]), (&json!("auth_success"), &json!("renewal")));
    assert_eq!(answer["tokenExpiresAt"], "2096-10-02T07:06:40.000Z");
    assert_eq!(answer["sessionId"], client.hello["sessionId"], "it is the same session");
    until("the old token's end", true, async || gateway.clock.unix_micros() > exp * 1_000_000 + 200_000).await;
    client.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_auth_leaves_the_old_token_in_force_until_its_end() {
    let gateway = Gateway::start().await;
    let exp = unix_now() + 1000;
    leave_millis(&gateway, exp, 1500);
    let token = Token::of("alice").with("exp", exp).sign();
    let mut client = Client::connect(&gateway.url(&format!("token={token}"))).await;
    for (token, code) in [
        (Token::of("bob").sign(), "token_invalid"),
        (Token::of("alice").with("device", "another").sign(), "token_invalid"),
        (Token::of("alice").expiring_in(-100).sign(), "token_expired"),
        ("junk".to_owned(), "token_invalid"),
    ] {
        let answer = client.ask(&json!({ "type": "auth", "id": "x", "token": token })).await;
        assert_eq!((&answer["type"], &answer["code"]), (&json!("auth_failure"), &json!(code)), "{answer}");
        assert_eq!(answer["replyTo"], "x");
    }
    client.nothing_more().await;
    assert_eq!(client.closed().await, (4401, "token_expired".to_owned()));
    assert_eq!(gateway.errors("auth_failed").await, 5, "four refused tokens, and one that ran out");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_auth_messages_are_limited_to_ten_a_minute() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client("alice").await;
    let token = Token::of("alice").sign();
    for _ in 0..10 {
        assert_eq!(client.ask(&auth(&token)).await["type"], "auth_success");
    }
    let answer = client.ask(&auth(&token)).await;
    assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!("rate_limited")));
    client.nothing_more().await;
    assert_eq!(gateway.errors("rate_limited").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_of_a_short_token_halfway_to_its_end_and_of_a_new_one_as_well() {
    let gateway = Gateway::start().await;
    let exp = unix_now() + 1000;
    leave_millis(&gateway, exp, 2_800);
    let (short, long) = (Token::of("alice").with("exp", exp), Token::of("alice").with("exp", exp + 5000));
    let mut renewed = gateway.client_by(&long, "device=b").await;
    let mut client = gateway.client_by(&short, "device=a").await;
    let answer = renewed.ask(&auth(&short.sign())).await;
    assert_eq!(answer["type"], "auth_success");
    for (client, hello) in [(&mut client, None), (&mut renewed, Some(&answer))] {
        let end = hello.unwrap_or(&client.hello)["tokenExpiresAt"].clone();
        assert_eq!(client.next().await, json!({ "type": "token_expiring", "expiresAt": end }));
        assert!(gateway.clock.unix_micros() < exp * 1_000_000, "in time");
    }
    for mut client in [client, renewed] {
        assert_eq!(client.closed().await, (4401, "token_expired".to_owned()), "once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_id_may_be_a_number_and_anything_printable_of_255_bytes() {
    let gateway = Gateway::start().await;
    let names = [json!(42), json!("ü".repeat(127)), json!("a b/c?d"), json!("u".repeat(255))];
    let mut sessions = HashSet::new();
    for name in names {
        let token = Token::claims(json!({ "sub": name, "exp": unix_now() + 60 })).sign();
        let client = Client::connect(&gateway.url(&format!("token={token}"))).await;
        let expected = name.as_str().map_or_else(|| name.to_string(), str::to_owned);
        assert_eq!(client.hello["userId"], expected);
        assert!(sessions.insert(client.session()));
    }
    assert_eq!(soon("the status", gateway.rpc()).await.status().await.connections.unwrap().total, 4);
}
