//! Tokens: renewed on the session before they run out, asked for anew once refused.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use pushgate::client::{ConnectError, Error, GiveUp, State};
use serde_json::json;

use super::support::{Played, Told, client_at};
use crate::support::{Gateway, Token, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_on_the_session_before_it_runs_out() {
    let gateway = Gateway::start().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let client = client_at(format!("ws://{}/ws", gateway.http))
        .token_provider(move || {
            // The first is good for two seconds, so short that the gateway warns of nothing.
            let lasts = if counted.fetch_add(1, Ordering::SeqCst) == 0 { 2 } else { 1000 };
            async move { Ok(Token::of("alice").expiring_in(lasts).sign()) }
        })
        .connect()
        .await
        .unwrap();
    let first = client.session().unwrap();
    until("another end", true, async || client.session().unwrap().token_expires_at != first.token_expires_at).await;
    let renewed = client.session().unwrap();
    assert_eq!((renewed.number, &renewed.id), (1, &first.id), "the session is the same");
    assert!(renewed.token_expires_at > first.token_expires_at);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    client.ping().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_warning_of_the_gateway_is_answered_and_a_refusal_keeps_the_session() {
    let played = Played::new().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let (failed, mut failures) = Told::new();
    let client = client_at(played.url())
        .token_provider(move || {
            let n = counted.fetch_add(1, Ordering::SeqCst);
            async move { if n == 1 { Err("no login".into()) } else { Ok(format!("token-{n}")) } }
        })
        .on_error(move |error| failed(error.clone()))
        .start()
        .unwrap();
    let mut peer = played.session().await;
    assert_eq!(peer.token, "Bearer token-0");
    peer.say(json!({ "type": "token_expiring", "expiresAt": "2026-01-31T09:36:00.000Z" })).await;
    assert!(matches!(failures.next().await, Error::Renewal(text) if text == "no login"));
    let auth = peer.hear().await;
    assert_eq!((&auth["type"], &auth["token"]), (&json!("auth"), &json!("token-2")));
    let refusal = json!({ "type": "auth_failure", "code": "token_invalid", "message": "m", "replyTo": auth["id"] });
    peer.say(refusal).await;
    assert!(matches!(failures.next().await, Error::Renewal(text) if text == "token_invalid: m"));
    let auth = peer.hear().await;
    assert_eq!(auth["token"], "token-3");
    peer.say(json!({ "type": "auth_success", "sessionId": "s", "tokenExpiresAt": "2036-01-31T09:36:00.000Z",
        "timestamp": "2026-01-31T09:36:00.000Z", "replyTo": auth["id"] }))
        .await;
    until("the new end", true, async || client.session().unwrap().token_expires_at.is_some()).await;
    assert_eq!((client.session().unwrap().user_id.as_str(), client.state()), ("alice", State::Connected));
    // The token that is in force now is the next connection's, too.
    peer.close(1011).await;
    assert_eq!(played.session().await.token, "Bearer token-3");
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_refusal_the_provider_is_asked_again() {
    let gateway = Gateway::start().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let (failed, mut failures) = Told::new();
    let client = client_at(format!("ws://{}/ws", gateway.http))
        .token_provider(move || {
            let n = counted.fetch_add(1, Ordering::SeqCst);
            async move {
                match n {
                    0 => Err("no login".into()),
                    1 => Ok(Token::of("alice").expiring_in(-100).sign()),
                    _ => Ok(Token::of("alice").sign()),
                }
            }
        })
        .on_error(move |error| failed(error.clone()))
        .start()
        .unwrap();
    assert!(matches!(failures.next().await, Error::Connect(ConnectError::Token(text)) if text == "no login"));
    let Error::Connect(ConnectError::Refused(failure)) = failures.next().await else { panic!("another error") };
    assert_eq!(failure.code, "token_expired");
    assert!(soon("a session", client.states().wait_for(State::Connected)).await);
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_closed_with_4401_comes_back_with_another_token() {
    let played = Played::new().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let _client = client_at(played.url())
        .token_provider(move || {
            let n = counted.fetch_add(1, Ordering::SeqCst);
            async move { Ok(format!("token-{n}")) }
        })
        .start()
        .unwrap();
    let peer = played.session().await;
    assert_eq!(peer.token, "Bearer token-0");
    peer.close(4401).await;
    let peer = played.session().await;
    assert_eq!(peer.token, "Bearer token-1");
    peer.close(1013).await;
    assert_eq!(played.session().await.token, "Bearer token-1", "it was not refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_refused_token_again_is_the_end() {
    let gateway = Gateway::start().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let (gave_up, mut reasons) = Told::new();
    let expired = Token::of("alice").expiring_in(-100).sign();
    let client = client_at(format!("ws://{}/ws", gateway.http))
        .token_provider(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            let expired = expired.clone();
            async move { Ok(expired) }
        })
        .on_give_up(move |why| gave_up(why.clone()))
        .start()
        .unwrap();
    let GiveUp::Refused(ConnectError::Refused(failure)) = reasons.next().await else { panic!("another reason") };
    assert_eq!(failure.code, "token_expired");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    until("the state", State::GaveUp, async || client.state()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_fails_counts_as_an_attempt() {
    let played = Played::new().await;
    let (gave_up, mut reasons) = Told::new();
    let _client = client_at(played.url())
        .token_provider(|| async { Err("never".into()) })
        .max_reconnects(2)
        .on_give_up(move |why| gave_up(why.clone()))
        .start()
        .unwrap();
    let GiveUp::Attempts { attempts: 2, last } = reasons.next().await else { panic!("another reason") };
    assert_eq!(last, "no token: never");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_to_which_every_token_has_run_out_is_not_sent_one_after_the_other() {
    let played = Played::new().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let _client = client_at(played.url())
        .token_provider(move || {
            let n = counted.fetch_add(1, Ordering::SeqCst);
            async move { Ok(format!("token-{n}")) }
        })
        .start()
        .unwrap();
    let over = json!({ "tokenExpiresAt": "2026-01-31T09:34:50.000Z" });
    let mut peer = played.session_with(over).await;
    let since = Instant::now();
    for _ in 0..3 {
        let auth = peer.hear().await;
        assert_eq!(auth["type"], "auth");
        peer.say(json!({ "type": "auth_success", "sessionId": "s", "replyTo": auth["id"],
            "tokenExpiresAt": "2026-01-31T09:34:50.000Z", "timestamp": "2026-01-31T09:35:00.000Z" }))
            .await;
        peer.say(json!({ "type": "token_expiring", "expiresAt": "2026-01-31T09:36:00.000Z" })).await;
    }
    // At once, after one second, after two more.
    super::support::at_least(since, Duration::from_secs(3));
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_waits_to_leave_holds_up_nothing_that_comes() {
    let played = Played::new().await;
    let (asked, mut asks) = Told::new();
    let (builder, mut messages) = super::support::collecting(client_at(played.url()));
    let client = builder
        .queue_bytes(64 * 1024 * 1024)
        .token_provider(move || {
            asked(());
            async { Ok(format!("token-{:?}", Instant::now())) }
        })
        .start()
        .unwrap();
    asks.next().await;
    // More than the system takes for a peer that does not read.
    let filler = "x".repeat(60_000);
    for _ in 0..800 {
        client.send_json(&json!({ "type": "say", "data": filler })).unwrap();
    }
    let mut peer = played.session().await;
    for n in 0..1000 {
        peer.say(json!({ "type": "tick", "data": n })).await;
        assert_eq!(super::support::next(&mut messages).await, n);
    }
    peer.say(json!({ "type": "token_expiring", "expiresAt": "2026-01-31T09:36:00.000Z" })).await;
    asks.next().await;
    peer.say(json!({ "type": "tick", "data": "behind" })).await;
    assert_eq!(super::support::next(&mut messages).await, "behind");
    // It leaves as soon as there is room.
    while peer.hear().await["type"] != "auth" {}
}

/// Notes whether something that must never be logged was.
struct Watcher;

/// What must never be logged.
static SECRETS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static SHOWN: AtomicUsize = AtomicUsize::new(0);
static FRAMES: AtomicUsize = AtomicUsize::new(0);

impl log::Log for Watcher {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        let secrets = SECRETS.lock().unwrap();
        SHOWN.fetch_add(secrets.iter().filter(|secret| text.contains(*secret)).count(), Ordering::SeqCst);
        FRAMES.fetch_add(usize::from(text.starts_with("Sending frame")), Ordering::SeqCst);
    }

    fn flush(&self) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn no_trace_of_a_library_shows_a_token() {
    let gateway = Gateway::start().await;
    // The gateway reads frames itself, so that all that tungstenite logs of these tokens is of the client.
    log::set_logger(&Watcher).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let client = client_at(format!("ws://{}/ws", gateway.http))
        .token_provider(move || {
            let mut secrets = SECRETS.lock().unwrap();
            let lasts = if secrets.is_empty() { 2 } else { 1000 };
            // Long enough for a length of two bytes.
            let token = Token::of("alice").with("filler", "x".repeat(1000)).expiring_in(lasts).sign();
            // As text, and as the hexadecimal digits of its bytes.
            secrets.push(token[token.len() - 40..].to_owned());
            secrets.push(token[token.len() - 40..].bytes().map(|byte| format!("{byte:02x}")).collect());
            async { Ok(token) }
        })
        .connect()
        .await
        .unwrap();
    let first = client.session().unwrap();
    until("another end", true, async || {
        client.ping().await.unwrap();
        client.session().unwrap().token_expires_at != first.token_expires_at
    })
    .await;
    log::set_max_level(log::LevelFilter::Off);
    assert_eq!((client.session().unwrap().number, SECRETS.lock().unwrap().len()), (1, 4));
    assert!(FRAMES.load(Ordering::SeqCst) > 1, "the watch was on");
    assert_eq!(SHOWN.load(Ordering::SeqCst), 0);
}
