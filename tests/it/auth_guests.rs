//! Guests: who brings no token, where that is allowed.

use pushgate::api::proto::{Outcome, Wait};
use serde_json::json;

use crate::support::{
    Client, Gateway, Http, Token,
    client::request,
    rpc::{notification, request as send},
    until,
};

async fn open(gateway: &Gateway, query: &str) -> Client {
    Client::open(request(&gateway.url(query), &[])).await.unwrap().0
}

async fn guests(more: &[(&str, &str)]) -> Gateway {
    Gateway::with(&[&[("auth.anonymous", "true")], more].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_brings_no_token_is_a_guest_with_a_name_of_his_own_and_leaves_nothing() {
    let gateway = guests(&[]).await;
    // Who says nothing; who says something else first, which is not lost; and who says that he has no token.
    let mut silent = open(&gateway, "").await.welcomed().await;
    let mut speaks = open(&gateway, "device=d").await;
    speaks.say(&json!({ "type": "echo", "id": "e", "data": 7 })).await;
    let mut speaks = speaks.welcomed().await;
    let echo = speaks.next().await;
    assert_eq!((&echo["type"], &echo["data"], &echo["replyTo"]), (&json!("echo_response"), &json!(7), &json!("e")));
    let mut asks = open(&gateway, "").await;
    let hello = asks.ask(&json!({ "type": "auth", "id": "g" })).await;
    assert_eq!((&hello["type"], &hello["replyTo"]), (&json!("auth_success"), &json!("g")), "{hello}");
    let names: Vec<String> =
        [&silent.hello, &speaks.hello, &hello].map(|hello| hello["userId"].as_str().unwrap().to_owned()).into();
    for name in &names {
        let id = name.strip_prefix("guest-").unwrap_or_else(|| panic!("{name}"));
        assert_eq!(uuid::Uuid::parse_str(id).unwrap().get_version_num(), 4);
    }
    assert!(names[0] != names[1] && names[1] != names[2]);
    assert!(hello.get("tokenExpiresAt").is_none());

    // What is sent to him reaches him while he is there, and waits for nobody.
    let mut rpc = gateway.rpc().await;
    let sent = rpc.send(&names[0], "hi").await;
    assert_eq!((sent.outcome(), sent.offset, sent.sessions), (Outcome::Accepted, 0, 1));
    assert_eq!(silent.data(1).await, ["hi"]);
    silent.settle().await;
    silent.close().await;
    gateway.sessions(&names[0], 0).await;
    let late = rpc.try_send(pushgate::api::proto::SendToUserRequest {
        wait: Wait::Stored.into(),
        ..send(&names[0], notification(1))
    });
    assert_eq!(late.await.unwrap().outcome(), Outcome::Dropped);
    speaks.close().await;
    asks.close().await;
    until("all are gone", 0, async || gateway.hub.guests()).await;
    assert!(rpc.devices(&names[1]).await.is_empty());
    let folder = gateway.folder.path().join("data");
    let folder_of = gateway.folder.clone();
    gateway.stop().await;
    let run = crate::support::child::run(&["store", "stats", "--path", folder.to_str().unwrap(), "--json"]).await;
    let stats: serde_json::Value = serde_json::from_str(&run.1).unwrap_or_else(|_| panic!("{run:?}"));
    assert_eq!(
        (&stats["users"], &stats["devices"], &stats["forgotten"]),
        (&json!("0"), &json!("0"), &json!("0")),
        "{stats}"
    );
    drop(folder_of);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_counts_where_one_is_sent_and_a_bad_one_is_refused() {
    let gateway = guests(&[]).await;
    assert_eq!(gateway.client("ann").await.hello["userId"], "ann");
    let mut late = open(&gateway, "").await;
    late.say(&json!({ "type": "auth", "token": Token::of("ann").sign() })).await;
    assert_eq!(late.welcomed().await.hello["userId"], "ann");
    let mut bad = open(&gateway, "token=nonsense").await;
    assert_eq!(bad.next().await["code"], "token_invalid");
    let mut bad = open(&gateway, "").await;
    assert_eq!(bad.ask(&json!({ "type": "auth", "token": "nonsense" })).await["code"], "token_invalid");
    // No token makes one a guest, or another guest.
    let name = "guest-0197f1c2-8a4e-4d31-9b1c-2f6f0b7e5a11";
    let mut claims = open(&gateway, &format!("token={}", Token::of(name).sign())).await;
    assert_eq!(claims.next().await["code"], "token_invalid");
    let mut guest = open(&gateway, "").await;
    guest.say(&json!({ "type": "ping" })).await;
    let mut guest = guest.welcomed().await;
    assert_eq!(guest.next().await["type"], "pong");
    let answer = guest.ask(&json!({ "type": "auth", "token": Token::of("ann").sign() })).await;
    assert_eq!(answer["code"], "token_invalid", "{answer}");
    guest.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_so_many_guests_and_no_more_and_others_are_not_counted() {
    let gateway = guests(&[("auth.anonymous_connections", "2")]).await;
    let guest = async || {
        let mut client = open(&gateway, "").await;
        client.say(&json!({ "type": "auth" })).await;
        client
    };
    let first = guest().await.welcomed().await;
    let _second = guest().await.welcomed().await;
    let mut third = guest().await;
    assert_eq!(third.closed().await, (1013, "as many guests are connected as may be".to_owned()));
    assert_eq!(gateway.errors("guest_limit").await, 1);
    let _ann = gateway.client("ann").await;
    first.close().await;
    until("a place is free", 1, async || gateway.hub.guests()).await;
    let _third = guest().await.welcomed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_setting_there_are_no_guests_and_their_names_are_like_others() {
    let gateway = Gateway::with(&[("auth.timeout", "1s")]).await;
    let mut client = open(&gateway, "").await;
    assert_eq!(client.ask(&json!({ "type": "auth" })).await["code"], "token_missing");
    let mut client = open(&gateway, "").await;
    assert_eq!(client.next().await["code"], "auth_timeout");
    assert_eq!(gateway.client("guest-7").await.hello["userId"], "guest-7");
    assert_eq!(Http::new(gateway.ops).get("/readyz").await.good()["ready"], true);
}
