//! Tokens that are void before they run out: on sessions, for whoever comes, after a restart and a crash.

use std::time::{Duration, Instant, SystemTime};

use pushgate::api::proto::{CloseUserSessionsRequest, RevokeTokensRequest};
use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{
    Client, Gateway, Rpc, Token,
    child::{Daemon, config},
    client::request,
    gateway::ADMIN,
    token::unix_now,
};

fn at(unix: u64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: i64::try_from(unix).unwrap(), nanos: 0 })
}

fn in_an_hour() -> Option<prost_types::Timestamp> {
    Some((SystemTime::now() + Duration::from_secs(3600)).into())
}

fn by_jti(jti: &str) -> RevokeTokensRequest {
    RevokeTokensRequest { jti: jti.to_owned(), expires_at: in_an_hour(), ..Default::default() }
}

fn by_user(user: &str, issued_before: u64) -> RevokeTokensRequest {
    RevokeTokensRequest {
        user_id: user.to_owned(),
        issued_before: at(issued_before),
        expires_at: in_an_hour(),
        ..Default::default()
    }
}

fn token(user: &str, jti: &str, issued_at: u64) -> Token {
    Token::of(user).with("jti", jti).with("iat", issued_at)
}

async fn says(url: &str, token: &Token) -> Value {
    let (mut client, _) = Client::open(request(&format!("{url}token={}", token.sign()), &[])).await.unwrap();
    let said = client.next().await;
    if said["type"] == "auth_failure" {
        assert_eq!(client.closed().await, (4401, said["code"].as_str().unwrap().to_owned()));
    }
    said["code"].as_str().map_or(json!("in"), |code| json!(code))
}

async fn answer(gateway: &Gateway, token: &Token) -> Value {
    says(&gateway.url(""), token).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_void_by_its_jti_at_once_on_sessions_and_for_whoever_comes_after_a_restart_too() {
    let gateway = Gateway::start().await;
    let (one, two) = (token("ann", "one", 1000), token("ann", "two", 1000));
    let mut first = gateway.client_by(&one, "device=a").await;
    let mut second = gateway.client_by(&one, "device=b").await;
    let mut other = gateway.client_by(&two, "device=c").await;
    let began = Instant::now();
    assert_eq!(gateway.rpc().await.revoke(by_jti("one")).await.unwrap(), 2);
    for client in [&mut first, &mut second] {
        assert_eq!(client.closed().await, (4401, "token_revoked".to_owned()));
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    other.nothing_more().await;
    assert_eq!(answer(&gateway, &one).await, "token_revoked");
    assert_eq!(answer(&gateway, &two).await, "in");
    // Nor does a session take it.
    let refused = other.ask(&json!({ "type": "auth", "token": one.sign() })).await;
    assert_eq!((&refused["type"], &refused["code"]), (&json!("auth_failure"), &json!("token_revoked")));
    other.nothing_more().await;
    assert_eq!(gateway.rpc().await.revoke(by_jti("one")).await.unwrap(), 0, "again does no harm");

    let gateway = gateway.restart().await;
    assert_eq!(answer(&gateway, &one).await, "token_revoked");
    assert_eq!(answer(&gateway, &two).await, "in");
    let events = gateway.errors("auth_failed").await;
    assert!(events >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_verified_and_is_known_does_not_slip_through() {
    use jsonwebtoken::{Algorithm, EncodingKey};
    let path = crate::support::token::key_path("test-ed25519-public.pem");
    let keys = format!(r#"[{{ algorithm = "EdDSA", public_key_file = "{path}" }}]"#);
    let gateway = Gateway::with(&[("auth.keys", &keys)]).await;
    let key = EncodingKey::from_ed_pem(&crate::support::token::private_key("ed25519")).unwrap();
    let good = token("ann", "one", 1000).signed(Algorithm::EdDSA, key, None);
    for _ in 0..3 {
        assert_eq!(answer(&gateway, &good).await, "in");
    }
    gateway.rpc().await.revoke(by_jti("one")).await.unwrap();
    assert_eq!(answer(&gateway, &good).await, "token_revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_s_tokens_are_void_that_were_issued_before_and_those_that_do_not_say_when() {
    let gateway = Gateway::start().await;
    let now = unix_now();
    let (old, new, silent) = (token("ann", "a", now - 10), token("ann", "b", now + 1), Token::of("ann"));
    let mut clients = Vec::new();
    for (device, token) in [("a", &old), ("b", &new), ("c", &silent)] {
        clients.push(gateway.client_by(token, &format!("device={device}")).await);
    }
    let mut bob = gateway.client_by(&token("bob", "c", now - 10), "").await;
    assert_eq!(gateway.rpc().await.revoke(by_user("ann", now)).await.unwrap(), 2);
    assert_eq!(clients[0].closed().await, (4401, "token_revoked".to_owned()));
    assert_eq!(clients[2].closed().await, (4401, "token_revoked".to_owned()));
    clients[1].nothing_more().await;
    bob.nothing_more().await;
    for (token, says) in [(&old, "token_revoked"), (&silent, "token_revoked"), (&new, "in")] {
        assert_eq!(answer(&gateway, token).await, says);
    }
    // What is said later of an earlier moment takes nothing back; without one it is now.
    gateway.rpc().await.revoke(by_user("ann", 5)).await.unwrap();
    assert_eq!(answer(&gateway, &old).await, "token_revoked");
    let request = RevokeTokensRequest { issued_before: None, ..by_user("bob", 0) };
    assert_eq!(gateway.rpc().await.revoke(request).await.unwrap(), 1);
    assert_eq!(bob.closed().await.0, 4401);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_forgotten_when_the_tokens_have_run_out_by_themselves() {
    let gateway = Gateway::with(&[("auth.leeway", "1s")]).await;
    let token = token("ann", "one", 1000);
    let request = RevokeTokensRequest { expires_at: at(unix_now() + 3600), ..by_jti("one") };
    gateway.rpc().await.revoke(request).await.unwrap();
    assert_eq!(answer(&gateway, &token).await, "token_revoked");
    gateway.later(Duration::from_secs(3602));
    assert_eq!(answer(&gateway, &token).await, "in", "its expires_at was a lie");
    crate::support::until("nothing is kept", true, async || gateway.hub.authenticator().revocations().is_empty()).await;
    let gateway = gateway.restart().await;
    assert!(gateway.hub.authenticator().revocations().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_closed_together_with_the_tokens_that_they_live_by() {
    let gateway = Gateway::start().await;
    let (phone, tablet, other) = (token("ann", "p", 1000), token("ann", "t", 1000), Token::of("ann").with("iat", 2000));
    let mut by_phone = gateway.client_by(&phone, "device=phone").await;
    let mut beside = gateway.client_by(&phone, "device=beside").await;
    let mut by_tablet = gateway.client_by(&tablet, "device=tablet").await;
    let close = |device: &str| CloseUserSessionsRequest {
        user_id: "ann".into(),
        device: Some(device.into()),
        code: 1008,
        reason: "stolen".into(),
        revoke_tokens: true,
        ..Default::default()
    };
    let mut rpc = gateway.rpc().await;
    assert_eq!(rpc.close(close("phone")).await.unwrap(), 2);
    assert_eq!(by_phone.closed().await, (1008, "stolen".to_owned()));
    assert_eq!(beside.closed().await, (4401, "token_revoked".to_owned()));
    by_tablet.nothing_more().await;
    assert_eq!(answer(&gateway, &phone).await, "token_revoked");
    assert_eq!(answer(&gateway, &tablet).await, "in");
    // One without a `jti`: by when it was issued.
    let mut without = gateway.client_by(&other, "device=without").await;
    assert_eq!(rpc.close(close("without")).await.unwrap(), 2, "the tablet's was issued no later");
    assert_eq!(without.closed().await.0, 1008);
    assert_eq!(by_tablet.closed().await.0, 4401);
    assert_eq!(answer(&gateway, &other).await, "token_revoked");
    assert_eq!(answer(&gateway, &Token::of("ann").with("iat", 2001)).await, "in");
}

/// Sessions take newer tokens in the very moment in which they are closed: whatever one lived by at its end is void.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_a_session_takes_while_it_is_closed_is_void_too() {
    use tokio_tungstenite::tungstenite::Message;
    let gateway = Gateway::start().await;
    let rpc = gateway.rpc().await;
    for round in 0..5 {
        let mut clients = Vec::new();
        for n in 0..60 {
            let name = format!("{round}-{n}");
            let client = gateway.client_by(&token("ann", &format!("old-{name}"), 1000), "").await;
            clients.push((client, token("ann", &format!("new-{name}"), 1000)));
        }
        let mut caller = rpc.clone();
        let close = CloseUserSessionsRequest { user_id: "ann".into(), revoke_tokens: true, ..Default::default() };
        let closing = tokio::spawn(async move { caller.close(close).await.unwrap() });
        let ends = clients.into_iter().map(|(mut client, newer)| async move {
            client.say(&json!({ "type": "auth", "token": newer.sign() })).await;
            let mut taken = false;
            loop {
                match client.next_frame().await {
                    Some(Ok(Message::Text(text))) => taken |= text.contains("auth_success"),
                    Some(Ok(Message::Close(_))) | None => return taken.then_some(newer),
                    _ => {}
                }
            }
        });
        let taken = futures_util::future::join_all(ends).await;
        assert_eq!(closing.await.unwrap(), 60);
        for newer in taken.iter().flatten() {
            assert_eq!(answer(&gateway, newer).await, "token_revoked");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_jti_is_no_name_that_all_who_have_one_share() {
    let gateway = Gateway::start().await;
    let (ann, bob) = (token("ann", "", 1000), token("bob", "", 1000));
    let mut of_ann = gateway.client_by(&ann, "").await;
    let mut of_bob = gateway.client_by(&bob, "").await;
    let close = CloseUserSessionsRequest { user_id: "ann".into(), revoke_tokens: true, ..Default::default() };
    assert_eq!(gateway.rpc().await.close(close).await.unwrap(), 1);
    assert_eq!(of_ann.closed().await.0, 1000);
    of_bob.nothing_more().await;
    assert_eq!(answer(&gateway, &ann).await, "token_revoked", "by its user and when it was issued");
    assert_eq!(answer(&gateway, &bob).await, "in");
    assert_eq!(answer(&gateway, &token("ann", "", 1001)).await, "in");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_revocation_may_not_say() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let none = RevokeTokensRequest::default();
    let cases = [
        (RevokeTokensRequest { expires_at: in_an_hour(), ..none.clone() }, "jti"),
        (RevokeTokensRequest { user_id: "ann".into(), ..by_jti("x") }, "user_id"),
        (RevokeTokensRequest { issued_before: at(5), ..by_jti("x") }, "issued_before"),
        (RevokeTokensRequest { expires_at: None, ..by_jti("x") }, "expires_at"),
        (RevokeTokensRequest { expires_at: at(unix_now() - 1), ..by_jti("x") }, "expires_at"),
        (by_jti(&"x".repeat(8000)), "jti"),
        (by_user("a\nb", 5), "user_id"),
    ];
    for (request, field) in cases {
        use tonic_types::StatusExt as _;
        let refused = rpc.revoke(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{request:?}");
        let details = refused.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, field, "{request:?}");
    }
    assert!(gateway.hub.authenticator().revocations().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_forgets_nothing_that_was_answered_and_each_is_an_audit_line_without_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let file = config(folder.path(), "");
    let mut daemon = Daemon::start(&file).await;
    let mut rpc = Rpc::over_tcp(daemon.address("grpc"), Some(ADMIN)).await;
    let (gone, good) = (token("ann", "one", 1000), token("ann", "two", 1000));
    rpc.revoke(by_jti("one")).await.unwrap();
    let line = daemon.logged("audit").await;
    assert_eq!(line["target"], "pushgate::audit");
    let said = ["action", "caller", "subject", "result"].map(|field| line[field].as_str().unwrap().to_owned());
    assert_eq!(said, ["revoke", "admin", "jti one", "0 closed"]);
    let mut reader = Rpc::over_tcp(daemon.address("grpc"), Some("read-token")).await;
    reader.revoke(by_jti("one")).await.unwrap_err();
    let line = daemon.logged("audit").await;
    assert_eq!((&line["caller"], &line["result"]), (&json!("read"), &json!("refused: PERMISSION_DENIED")));
    reader.close(CloseUserSessionsRequest { user_id: "a\nb".into(), ..Default::default() }).await.unwrap_err();
    assert_eq!(daemon.logged("audit").await["subject"], "user a\\nb");
    rpc.close(CloseUserSessionsRequest { user_id: "ann".into(), ..Default::default() }).await.unwrap();
    let line = daemon.logged("audit").await;
    assert_eq!((&line["action"], &line["result"]), (&json!("close"), &json!("0 closed")));
    daemon.signal(Signal::KILL);
    assert!(!daemon.ended().await.success());

    let daemon = Daemon::start(&file).await;
    let url = format!("ws://{}/ws?", daemon.address("http"));
    assert_eq!(says(&url, &gone).await, "token_revoked");
    assert_eq!(says(&url, &good).await, "in");
    assert!(!daemon.log.contains(ADMIN) && !daemon.log.contains(&good.sign()));
}
