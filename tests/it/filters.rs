//! Broadcasts for some sessions, and lists of some: by device, user agent, moment, claim and address.

use pushgate::api::proto::{BroadcastFilter, BroadcastRequest, ListSessionsRequest, Outcome, event::Event as Body};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::{Client, Gateway, Rpc, Token, client::request, rpc::notification, rpc::ttl};

/// A client with a user agent of its own.
async fn agent(gateway: &Gateway, user: &str, agent: &str) -> Client {
    let url = gateway.url(&format!("token={}", Token::of(user).sign()));
    Client::open(request(&url, &[("user-agent", agent)])).await.unwrap().0.welcomed().await
}

/// A client with more in its token.
async fn claiming(gateway: &Gateway, user: &str, claims: &[(&str, Value)]) -> Client {
    let token = claims.iter().fold(Token::of(user), |token, (name, value)| token.with(name, value.clone()));
    Client::connect(&gateway.url(&format!("token={}", token.sign()))).await
}

fn to(filter: BroadcastFilter, data: impl Into<Value>) -> BroadcastRequest {
    BroadcastRequest { notification: Some(notification(data)), filter: Some(filter), durable: false }
}

/// Broadcasts with a filter; each of `all` gets it or not, and the answer says how many did.
async fn reaches(rpc: &mut Rpc, filter: BroadcastFilter, all: &mut [(&mut Client, bool)]) {
    let sent = rpc.try_broadcast(to(filter.clone(), "filtered")).await.unwrap();
    let expected = all.iter().filter(|(_, reached)| *reached).count();
    assert_eq!(sent.sessions as usize, expected, "{filter:?}");
    let outcome = if expected == 0 { Outcome::Dropped } else { Outcome::Accepted };
    assert_eq!((sent.outcome(), sent.offset), (outcome, 0));
    for (client, reached) in all {
        if *reached {
            assert_eq!(client.data(1).await, ["filtered"], "{filter:?}");
        }
        client.nothing_more().await;
    }
}

/// The fields that a refusal names.
fn fields(refused: &Status) -> Vec<String> {
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let details = refused.get_error_details();
    details.bad_request().unwrap().field_violations.iter().map(|violation| violation.field.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_reaches_the_devices_it_names() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut phone = gateway.client_with("alice", "device=phone").await;
    let mut tablet = gateway.client_with("bob", "device=tablet").await;
    let mut unnamed = gateway.client("carol").await;
    let devices = |names: &[&str]| BroadcastFilter {
        devices: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    for (names, reached) in [
        (&["phone"][..], [true, false, false]),
        (&["phone", "tablet", "phone"], [true, true, false]),
        (&[""], [false, false, true]),
        (&["", "tablet"], [false, true, true]),
        (&["Phone"], [false, false, false]),
        (&[], [true, true, true]),
    ] {
        let mut all = [(&mut phone, reached[0]), (&mut tablet, reached[1]), (&mut unnamed, reached[2])];
        reaches(&mut rpc, devices(names), &mut all).await;
    }
    // What is set holds together.
    let both = BroadcastFilter { exclude_user_ids: vec!["bob".into()], ..devices(&["phone", "tablet"]) };
    reaches(&mut rpc, both, &mut [(&mut phone, true), (&mut tablet, false), (&mut unnamed, false)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_reaches_the_user_agents_that_are_like_its_pattern() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut old = agent(&gateway, "alice", "MyApp/1.9 (iPhone; iOS 18.1)").await;
    let mut new = agent(&gateway, "bob", "MyApp/2.0 (iPhone; iOS 18.1)").await;
    let mut none = gateway.client("carol").await;
    for (pattern, reached) in [
        ("MyApp/1.*", [true, false, false]),
        ("*iphone*", [true, true, false]),
        ("MYAPP/?.? (iPhone; iOS 18.1)", [true, true, false]),
        ("iPhone", [false, false, false]),
        ("*", [true, true, true]),
        ("?*", [true, true, false]),
        ("", [true, true, true]),
    ] {
        let filter = BroadcastFilter { user_agent: pattern.to_owned(), ..Default::default() };
        let mut all = [(&mut old, reached[0]), (&mut new, reached[1]), (&mut none, reached[2])];
        reaches(&mut rpc, filter, &mut all).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_span_of_connections_holds_its_beginning_and_not_its_end() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut early = gateway.client("alice").await;
    gateway.later(std::time::Duration::from_secs(60));
    let mut late = gateway.client("bob").await;
    let moment = |user: &str| {
        let (gateway, request) = (&gateway, ListSessionsRequest { user_id: user.to_owned(), ..Default::default() });
        async move { gateway.rpc().await.list(request).await.unwrap().sessions[0].connected_at.unwrap() }
    };
    let (first, second) = (moment("alice").await, moment("bob").await);
    let between =
        |after, before| BroadcastFilter { connected_after: after, connected_before: before, ..Default::default() };
    for (filter, reached) in [
        (between(Some(first), Some(second)), [true, false]),
        (between(Some(second), None), [false, true]),
        (between(None, Some(second)), [true, false]),
        (between(None, Some(first)), [false, false]),
        (between(Some(first), None), [true, true]),
    ] {
        reaches(&mut rpc, filter, &mut [(&mut early, reached[0]), (&mut late, reached[1])]).await;
    }
    let empty = rpc.try_broadcast(to(between(Some(second), Some(first)), 1)).await.unwrap_err();
    assert_eq!(fields(&empty), ["filter.connected_before"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_reaches_those_whose_claims_hold_what_it_asks_for() {
    let gateway = Gateway::with(&[("auth.session_claims", r#"["role", "tenant", "level", "vip"]"#)]).await;
    let mut rpc = gateway.rpc().await;
    let mut admin = claiming(
        &gateway,
        "alice",
        &[("role", json!(["admin", "dev"])), ("tenant", json!("acme")), ("level", json!(7)), ("vip", json!(true))],
    )
    .await;
    let mut dev = claiming(&gateway, "bob", &[("role", json!("dev")), ("tenant", json!("other"))]).await;
    let mut none = gateway.client("carol").await;
    let claims = |all: &[(&str, &str)]| BroadcastFilter {
        claims: all.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect(),
        ..Default::default()
    };
    for (asked, reached) in [
        (&[("role", "dev")][..], [true, true, false]),
        (&[("role", "admin")], [true, false, false]),
        (&[("role", "dev"), ("tenant", "other")], [false, true, false]),
        (&[("level", "7"), ("vip", "true")], [true, false, false]),
        (&[("role", "ad")], [false, false, false]),
        (&[("role", "")], [false, false, false]),
    ] {
        let mut all = [(&mut admin, reached[0]), (&mut dev, reached[1]), (&mut none, reached[2])];
        reaches(&mut rpc, claims(asked), &mut all).await;
    }
    // A new token brings its claims.
    let promoted = Token::of("carol").with("role", "admin").sign();
    assert_eq!(none.ask(&json!({ "type": "auth", "token": promoted })).await["type"], "auth_success");
    reaches(&mut rpc, claims(&[("role", "admin")]), &mut [(&mut admin, true), (&mut dev, false), (&mut none, true)])
        .await;
    let unknown = rpc.try_broadcast(to(claims(&[("email", "a@b")]), 1)).await.unwrap_err();
    assert_eq!(fields(&unknown), ["filter.claims"]);
    let told = unknown.message();
    assert!(told.contains("`email`") && told.contains("auth.session_claims") && told.contains("`tenant`"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_can_be_left_out_while_its_users_others_are_not() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let (mut one, mut other) = (gateway.client("alice").await, gateway.client("alice").await);
    let gone = gateway.client("bob").await;
    let exclude_session_ids = vec![one.session(), gone.session().to_uppercase(), one.session()];
    gone.close().await;
    gateway.sessions("bob", 0).await;
    let filter = BroadcastFilter { exclude_session_ids, ..Default::default() };
    reaches(&mut rpc, filter, &mut [(&mut one, false), (&mut other, true)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filtered_broadcasts_keep_their_place_among_the_others() {
    let gateway = Gateway::start().await;
    let mut phone = gateway.client_with("alice", "device=phone").await;
    let mut tablet = gateway.client_with("alice", "device=tablet").await;
    let rpc = gateway.rpc().await;
    // From one task, each is accepted before the next is; together they wait for each other in no order of their own.
    for n in 0..60 {
        let devices = if n % 3 == 0 { vec!["phone".to_owned()] } else { Vec::new() };
        let filter = BroadcastFilter { devices, ..Default::default() };
        let sent = rpc.clone().try_broadcast(to(filter, n)).await.unwrap();
        assert_eq!(sent.sessions, if n % 3 == 0 { 1 } else { 2 });
    }
    assert_eq!(phone.data(60).await, (0..60).map(Value::from).collect::<Vec<_>>());
    let rest: Vec<_> = (0..60).filter(|n| n % 3 != 0).map(Value::from).collect();
    assert_eq!(tablet.data(40).await, rest);
    tablet.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_wrong_with_a_filter_is_told_at_once_and_nobody_gets_anything() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut alice = gateway.client("alice").await;
    let bad = BroadcastFilter {
        topic: "a\nb".into(),
        devices: vec!["a b".into()],
        user_agent: "a\tb".into(),
        connected_after: Some(prost_types::Timestamp { seconds: 0, nanos: -1 }),
        connected_before: Some(prost_types::Timestamp { seconds: i64::MIN, nanos: 0 }),
        claims: [("role".to_owned(), "admin".to_owned())].into(),
        exclude_user_ids: vec![String::new()],
        exclude_session_ids: vec!["not-a-uuid".into()],
    };
    let mut wrong = to(bad.clone(), 1);
    wrong.notification.as_mut().unwrap().r#type = "auth_success".into();
    let refused = rpc.try_broadcast(wrong).await.unwrap_err();
    let expected = [
        "notification.type",
        "filter.exclude_user_ids",
        "filter.topic",
        "filter.devices",
        "filter.user_agent",
        "filter.connected_after",
        "filter.connected_before",
        "filter.claims",
        "filter.exclude_session_ids",
    ];
    assert_eq!(fields(&refused), expected);

    let mut durable = BroadcastRequest { durable: true, ..to(bad, 1) };
    durable.notification.as_mut().unwrap().ttl = ttl(0, 0);
    let refused = rpc.try_broadcast(durable).await.unwrap_err();
    let mut expected = [&expected[1..], &["notification.ttl"]].concat();
    expected.sort_unstable();
    let mut told = fields(&refused);
    told.sort_unstable();
    assert_eq!(told, expected, "a durable one takes users only");
    assert!(refused.message().contains("filter.devices: is not for durable broadcasts"), "{refused}");
    let filter = BroadcastFilter { devices: vec!["d".into(); 101], ..Default::default() };
    assert_eq!(fields(&rpc.try_broadcast(to(filter, 1)).await.unwrap_err()), ["filter.devices"]);
    alice.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_listed_by_the_address_or_network_that_they_come_from() {
    let gateway = Gateway::with(&[("http.listen", r#"["127.0.0.1:0", "[::]:0"]"#)]).await;
    let mut rpc = gateway.rpc().await;
    // The second listener takes IPv6, and IPv4 mapped into it.
    let port = rpc.status().await.listeners.iter().filter(|one| one.name == "http").nth(1).unwrap().address.clone();
    let port = port.rsplit_once(':').unwrap().1.to_owned();
    let over = async |host: &str, user: &str| {
        Client::connect(&format!("ws://{host}:{port}/ws?token={}", Token::of(user).sign())).await
    };
    let plain = gateway.client("plain").await;
    let mapped = over("127.0.0.1", "mapped").await;
    let six = over("[::1]", "six").await;
    let users = async |address: &str| -> Vec<String> {
        let request = ListSessionsRequest { address: address.to_owned(), ..Default::default() };
        let mut users: Vec<_> =
            gateway.rpc().await.list(request).await.unwrap().sessions.into_iter().map(|one| one.user_id).collect();
        users.sort_unstable();
        users
    };
    for (address, listed) in [
        ("127.0.0.1", &["mapped", "plain"][..]),
        ("127.0.0.0/8", &["mapped", "plain"]),
        ("127.200.0.1/8", &["mapped", "plain"]),
        ("0.0.0.0/0", &["mapped", "plain"]),
        ("::ffff:127.0.0.1", &["mapped", "plain"]),
        ("::ffff:127.0.0.0/104", &["mapped", "plain"]),
        ("::1", &["six"]),
        ("::/0", &["six"]),
        ("::/64", &["six"]),
        ("10.0.0.0/8", &[]),
        ("2001:db8::/32", &[]),
        ("127.0.0.2", &[]),
        ("", &["mapped", "plain", "six"]),
    ] {
        assert_eq!(users(address).await, listed, "{address}");
    }
    let of = |address: &str, user: &str| ListSessionsRequest {
        address: address.to_owned(),
        user_id: user.to_owned(),
        ..Default::default()
    };
    assert_eq!(rpc.list(of("::1", "plain")).await.unwrap().sessions.len(), 0, "both must hold");

    let first = rpc.list(ListSessionsRequest { page_size: 1, ..of("127.0.0.0/8", "") }).await.unwrap();
    let next = |address: &str| ListSessionsRequest {
        page_size: 1,
        page_token: first.next_page_token.clone(),
        ..of(address, "")
    };
    let second = rpc.list(next("127.0.0.0/8")).await.unwrap();
    assert_ne!(first.sessions[0].session_id, second.sessions[0].session_id);
    assert_eq!((second.sessions.len(), second.next_page_token.as_str()), (1, ""));
    for other in ["", "127.0.0.1", "0.0.0.0/0"] {
        assert_eq!(fields(&rpc.list(next(other)).await.unwrap_err()), ["page_token"], "{other}");
    }
    for bad in ["localhost", "127.0.0.1:80", "10.0.0.0/33", "10.0.0", "::1/129", "[::1]", " "] {
        let refused = rpc.list(of(bad, "a\nb")).await.unwrap_err();
        assert_eq!(fields(&refused), ["user_id", "address"], "{bad}");
        assert!(refused.message().contains("10.0.0.0/8") && refused.message().contains("2001:db8::/32"), "{refused}");
    }
    drop((plain, mapped, six));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_asks_no_more_of_who_is_being_closed() {
    let gateway = Gateway::with(&[("auth.session_claims", r#"["role"]"#)]).await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&["session_closed"], "").await;
    let mut alice = claiming(&gateway, "alice", &[("role", json!("dev"))]).await;
    let close = pushgate::api::proto::CloseUserSessionsRequest { user_id: "alice".into(), ..Default::default() };
    assert_eq!(rpc.close(close).await.unwrap(), 1);
    let filter = BroadcastFilter { claims: [("role".to_owned(), "dev".to_owned())].into(), ..Default::default() };
    assert_eq!(rpc.try_broadcast(to(filter, 1)).await.unwrap().sessions, 0);
    assert_eq!(alice.closed().await.0, 1000);
    drop(alice);
    assert!(matches!(events.body().await, Body::SessionClosed(_)));
}
