//! Gateways that refuse: by HTTP status, by token, or by not being there.

use std::time::{Duration, Instant};

use pushgate::client::{AckMode, BuildError, Client, ConnectError, Error, GiveUp, State};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::support::{Played, Told, at_least, client_at, client_of};
use crate::support::{Gateway, Token, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_token_ends_the_client_and_is_shown_nowhere() {
    let gateway = Gateway::start().await;
    let (gave_up, mut reasons) = Told::new();
    let builder =
        client_at(format!("ws://{}/ws", gateway.http)).token("s3cret.s3cret.s3cret").header("x-key", "s3cret2");
    let client = builder.on_give_up(move |why| gave_up(why.clone())).start().unwrap();
    let shown = format!("{client:?}");
    let why = reasons.next().await;
    let GiveUp::Refused(ConnectError::Refused(failure)) = &why else { panic!("{why:?}") };
    assert_eq!(failure.code, "token_invalid");
    assert!(!format!("{shown} {why} {why:?}").contains("s3cret"));
    let builder = client_at(format!("ws://{}/ws?token=s3cret", gateway.http)).token("s3cret").header("x-key", "s3cret");
    assert!(!format!("{builder:?}").contains("s3cret"));
    let error = builder.connect().await.unwrap_err();
    assert!(matches!(&error, ConnectError::Refused(_)) && !format!("{error:?}").contains("s3cret"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_says_at_once_why_it_cannot() {
    let gateway = Gateway::start().await;
    let here = format!("ws://{}", gateway.http);
    let token = || Token::of("alice").sign();
    let error = client_at(format!("{here}/elsewhere?token=x")).token(token()).connect().await.unwrap_err();
    let ConnectError::Http { status: 404, body, address, .. } = &error else { panic!("{error:?}") };
    assert_eq!((&**body, address.as_str()), ("not found", &*format!("{here}/elsewhere")));
    let gone = Played::new().await.url();
    let error = client_at(gone).token(token()).connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Network { .. }), "{error:?}");
    let expired = Token::of("alice").expiring_in(-100).sign();
    let error = client_at(format!("{here}/ws")).token(expired).connect().await.unwrap_err();
    assert!(matches!(&error, ConnectError::Refused(failure) if failure.code == "token_expired"), "{error:?}");
    gateway.sessions("alice", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_client_can_be_made_of_is_said_before_anything_is_tried() {
    let build = |url: &str| Client::builder(url);
    assert!(matches!(build("http://a/ws").start(), Err(BuildError::Url(_))));
    assert!(matches!(build("ws://a/").device("no spaces").start(), Err(BuildError::Device(_))));
    assert!(matches!(build("ws://a/").token("a\nb").start(), Err(BuildError::Token(_))));
    assert!(matches!(build("ws://a/").token("").start(), Err(BuildError::Token(_))));
    for (name, value) in [("a b", "x"), ("x", "a\nb"), ("sec-websocket-key", "x"), ("Host", "x")] {
        let error = build("ws://a/").header(name, value).start().unwrap_err();
        assert!(matches!(error, BuildError::Header { .. }), "{name}: {error}");
    }
    let error = build("wss://a/").root_certificates("no PEM").start().unwrap_err();
    assert!(matches!(error, BuildError::Tls(_)), "{error}");
    let error = build("nothing").connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Build(_)), "{error}");
    for (builder, name) in [
        (build("ws://a/").handshake_timeout(Duration::ZERO), "handshake_timeout"),
        (build("ws://a/").heartbeat_timeout(Duration::ZERO), "heartbeat_timeout"),
        (build("ws://a/").max_message_bytes(0), "max_message_bytes"),
    ] {
        let error = builder.start().unwrap_err();
        assert!(matches!(error, BuildError::Zero(zero) if zero == name), "{name}: {error}");
    }
    let outside = std::thread::spawn(|| Client::builder("ws://a/").start().unwrap_err());
    assert!(matches!(outside.join().unwrap(), BuildError::NoRuntime));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_for_the_moment_is_waited_out_and_retry_after_kept() {
    let played = Played::new().await;
    let (failed, mut failures) = Told::new();
    let client = client_at(played.url()).on_error(move |error| failed(error.clone())).start().unwrap();
    played.answer("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nnope").await;
    let Error::Connect(ConnectError::Http { status: 502, body, retry_after: None, .. }) = failures.next().await else {
        panic!("another error");
    };
    assert_eq!(body, "nope");
    let since = Instant::now();
    played.answer("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n").await;
    let Error::Connect(ConnectError::Http { status: 503, retry_after, .. }) = failures.next().await else {
        panic!("another error");
    };
    assert_eq!(retry_after, Some(Duration::from_secs(1)));
    let _peer = played.session().await;
    at_least(since, Duration::from_secs(1));
    until("the state", State::Connected, async || client.state()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_statuses_end_the_client() {
    for (status, line) in [(400, "Bad Request"), (403, "Forbidden"), (404, "Not Found"), (426, "Upgrade Required")] {
        let played = Played::new().await;
        let (gave_up, mut reasons) = Told::new();
        let _client = client_at(played.url()).on_give_up(move |why| gave_up(why.clone())).start().unwrap();
        played.answer(&format!("HTTP/1.1 {status} {line}\r\nContent-Length: 0\r\n\r\n")).await;
        let GiveUp::Refused(ConnectError::Http { status: said, .. }) = reasons.next().await else { panic!("{status}") };
        assert_eq!(said, status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_full_is_come_back_to() {
    let gateway = Gateway::with(&[("limits.connections_per_user", "1")]).await;
    let first = client_of(&gateway, "alice").connect().await.unwrap();
    let error = client_of(&gateway, "alice").connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Closed { code: 1013, .. }), "{error:?}");
    let (failed, mut failures) = Told::new();
    let second = client_of(&gateway, "alice").on_error(move |error| failed(error.clone())).start().unwrap();
    assert!(matches!(failures.next().await, Error::Connect(ConnectError::Closed { code: 1013, .. })));
    first.close().await;
    let mut states = second.states();
    assert!(soon("a session", states.wait_for(State::Connected)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_speaks_no_websocket_is_told_as_such() {
    for (answer, protocol) in [
        ("SSH-2.0-x\r\n\r\n", true),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", true),
        ("", false),
    ] {
        let played = Played::new().await;
        let url = played.url();
        let connecting = tokio::spawn(async move { client_at(url).connect().await.unwrap_err() });
        played.answer(answer).await;
        let error = soon("an error", connecting).await.unwrap();
        assert_eq!(matches!(error, ConnectError::Protocol { .. }), protocol, "{answer}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sub_protocol_that_was_not_asked_for_is_refused() {
    let played = Played::new().await;
    let url = played.url();
    let connecting = tokio::spawn(async move { client_at(url).connect().await.unwrap_err() });
    played
        .answer_with(|head| {
            let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
            let accept = derive_accept_key(key.as_bytes());
            format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
            )
        })
        .await;
    let error = soon("an error", connecting).await.unwrap();
    assert!(matches!(&error, ConnectError::Protocol { problem, .. } if problem.contains("sub-protocol")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_repeats_the_request_shows_no_secret() {
    let played = Played::new().await;
    let url = format!("{}?key=s3cr%65t-query", played.url());
    let builder = client_at(url).token("s3cret-token").header("x-key", "s3cret-header");
    let connecting = tokio::spawn(async move { builder.connect().await.unwrap_err() });
    played
        .answer_with(|head| {
            let body = format!("s3cret-query {head}");
            assert!(body.matches("s3cr").count() == 4, "{body}");
            // All that matters, at the start.
            let (mut lines, mut short): (Vec<&str>, _) = (body.lines().collect(), String::new());
            lines.retain(|line| line.contains("s3cr"));
            short.push_str(&lines.join(" "));
            format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n{short}", short.len())
        })
        .await;
    let error = soon("an error", connecting).await.unwrap();
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("s3cr") && shown.contains("authorization: Bearer ***"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handshake_says_who_asks_and_for_what() {
    let played = Played::new().await;
    let url = format!("{}?x=1", played.url());
    let builder = client_at(url).token("t.o.k").header("X-Test", "yes").device("phone");
    let client = builder.ack_mode(AckMode::Transport).binary(true).start().unwrap();
    let peer = played.accept().await;
    assert_eq!((&*peer.token, &*peer.header), ("Bearer t.o.k", "yes"));
    assert_eq!(peer.query, "x=1&ackMode=transport&device=phone&binary=1");
    drop(client);
    let _plain = client_at(played.url()).start().unwrap();
    let peer = played.accept().await;
    assert_eq!((&*peer.token, &*peer.query), ("", "ackMode=client"));
}
