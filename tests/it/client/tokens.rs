//! Tokens: renewed on the session before they run out, asked for anew once refused.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
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
