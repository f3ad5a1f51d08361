//! Lists, a page at a time.

use std::collections::BTreeSet;

use prost_types::value::Kind;
use pushgate::api::proto::{AckMode, ListSessionsRequest, ListUsersRequest, SessionState};
use serde_json::json;
use tonic::Code;

use crate::support::{Client, Gateway, Rpc, Token, until};

fn of(user: &str) -> ListSessionsRequest {
    ListSessionsRequest { user_id: user.to_owned(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_list_every_session_once_in_a_stable_order() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut clients = Vec::new();
    for n in 0..7 {
        clients.push(gateway.client(&format!("user-{}", n % 3)).await);
    }
    let expected: BTreeSet<_> = clients.iter().map(|client| client.session()).collect();
    for page_size in [1, 2, 3, 7, 1_000_000] {
        let mut request = ListSessionsRequest { page_size, ..Default::default() };
        let mut listed = Vec::new();
        let mut pages = 0;
        loop {
            let page = rpc.list(request.clone()).await.unwrap();
            pages += 1;
            assert!(page.sessions.len() <= page_size as usize);
            listed.extend(page.sessions.into_iter().map(|session| session.session_id));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        assert_eq!(pages, 7_usize.div_ceil(page_size as usize));
        assert!(listed.is_sorted(), "{listed:?}");
        assert_eq!(listed.len(), 7);
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), expected);
    }
    let unsized_page = rpc.list(Default::default()).await.unwrap();
    assert_eq!((unsized_page.sessions.len(), unsized_page.next_page_token.as_str()), (7, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_leave_out_everything_else() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let phone = gateway.client_with("alice", "device=phone").await;
    let unnamed = gateway.client("alice").await;
    let bob = gateway.client_with("bob", "device=phone").await;
    let mut ids = async |request: ListSessionsRequest| -> BTreeSet<String> {
        rpc.list(request).await.unwrap().sessions.into_iter().map(|session| session.session_id).collect()
    };
    let set =
        |clients: &[&crate::support::Client]| clients.iter().map(|client| client.session()).collect::<BTreeSet<_>>();
    assert_eq!(ids(of("alice")).await, set(&[&phone, &unnamed]));
    assert_eq!(ids(of("nobody")).await, set(&[]));
    let device = |name: &str| ListSessionsRequest { device: Some(name.into()), ..Default::default() };
    assert_eq!(ids(device("phone")).await, set(&[&phone, &bob]));
    assert_eq!(ids(device("")).await, set(&[&unnamed]), "set and empty: the unnamed device");
    assert_eq!(ids(ListSessionsRequest { device: Some("phone".into()), ..of("bob") }).await, set(&[&bob]));
    let session = |id: String, user: &str| ListSessionsRequest { session_id: id, ..of(user) };
    assert_eq!(ids(session(bob.session(), "")).await, set(&[&bob]));
    assert_eq!(ids(session(bob.session(), "alice")).await, set(&[]));
    let filtered = ListSessionsRequest { page_size: 1, ..device("phone") };
    let first = rpc.list(filtered.clone()).await.unwrap();
    let second = rpc.list(ListSessionsRequest { page_token: first.next_page_token, ..filtered }).await.unwrap();
    let both = [&first.sessions[0].session_id, &second.sessions[0].session_id];
    assert_eq!(both.into_iter().cloned().collect::<BTreeSet<_>>(), set(&[&phone, &bob]));
    assert_eq!(second.next_page_token, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_token_is_refused_with_another_filter() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let _clients = (gateway.client("alice").await, gateway.client("alice").await, gateway.client("bob").await);
    let page = rpc.list(ListSessionsRequest { page_size: 1, ..of("alice") }).await.unwrap();
    let token = page.next_page_token;
    assert!(!token.is_empty());
    let junk = ["x", "AAAA", "%%%"].map(|junk| ListSessionsRequest { page_token: junk.into(), ..of("alice") });
    let others = [of("bob"), of(""), ListSessionsRequest { device: Some(String::new()), ..of("alice") }];
    let others = others.map(|other| ListSessionsRequest { page_token: token.clone(), ..other });
    for request in junk.into_iter().chain(others) {
        let refused = rpc.list(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with("page_token: "), "{refused}");
    }
    // The page's size is no part of the filter.
    let next = rpc.list(ListSessionsRequest { page_token: token, page_size: 5, ..of("alice") }).await.unwrap();
    assert_eq!((next.sessions.len(), next.next_page_token.as_str()), (1, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_filter_is_refused() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let device = |name: &str| ListSessionsRequest { device: Some(name.into()), ..Default::default() };
    let session = ListSessionsRequest { session_id: "not-a-uuid".into(), ..Default::default() };
    for request in [of(&"u".repeat(256)), of("a\u{7f}"), device("a b"), device(&"d".repeat(65)), session] {
        assert_eq!(rpc.list(request).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(rpc.errors("grpc_invalid_argument").await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_tells_how_its_session_stands() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut client = gateway.client_with("alice", "device=phone&ackMode=client").await;
    rpc.send("alice", 1).await;
    client.data(1).await;
    client.ask(&json!({ "type": "echo", "data": 1 })).await;
    until("messages sent", 3, async || rpc.clone().list(of("alice")).await.unwrap().sessions[0].messages_sent).await;
    let rows = rpc.list(of("alice")).await.unwrap().sessions;
    let row = &rows[0];
    assert_eq!((row.session_id.as_str(), row.device.as_str()), (client.session().as_str(), "phone"));
    assert_eq!((row.state(), row.ack_mode()), (SessionState::Live, AckMode::Client));
    assert_eq!((row.unconfirmed, row.outbox_messages, row.outbox_bytes), (1, 0, 0));
    assert_eq!((row.messages_received, row.messages_sent), (1, 3));
    assert!(row.bytes_received > 0 && row.bytes_sent > 0);
    assert!(row.remote_address.starts_with("127.0.0.1:") && row.connected_at.is_some() && row.last_activity.is_some());
    assert!(row.token_expires_at.is_some() && row.rtt.is_none());

    let mut confirming = gateway.client("bob").await;
    rpc.send("bob", 1).await;
    confirming.data(1).await;
    confirming.settle().await;
    let row = &rpc.list(of("bob")).await.unwrap().sessions[0];
    assert!(row.rtt.is_some() && row.unconfirmed == 0 && row.device.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn users_who_are_online_are_listed_once_in_pages() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    assert_eq!(rpc.users(Default::default()).await.unwrap().users, []);
    let mut clients = Vec::new();
    for n in 0..7 {
        clients.push(gateway.client(&format!("user-{}", n % 5)).await);
    }
    // Known, and not online.
    rpc.send("user-9", 1).await;
    for page_size in [1, 2, 5, 1_000_000] {
        let mut request = ListUsersRequest { page_size, ..Default::default() };
        let mut listed = Vec::new();
        loop {
            let page = rpc.users(request.clone()).await.unwrap();
            assert!(page.users.len() <= page_size as usize);
            listed.extend(page.users.into_iter().map(|user| (user.user_id, user.sessions)));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        let expected: Vec<_> = [("user-0", 2), ("user-1", 2), ("user-2", 1), ("user-3", 1), ("user-4", 1)]
            .map(|(user, sessions)| (user.to_owned(), sessions))
            .into();
        assert_eq!(listed, expected, "{page_size}");
    }
    let sessions = rpc.list(ListSessionsRequest { page_size: 1, ..Default::default() }).await.unwrap().next_page_token;
    for page_token in ["x".to_owned(), sessions] {
        let refused = rpc.users(ListUsersRequest { page_token, ..Default::default() }).await.unwrap_err();
        assert!(refused.code() == Code::InvalidArgument && refused.message().starts_with("page_token: "), "{refused}");
    }
    clients.remove(2).close().await;
    gateway.sessions("user-2", 0).await;
    let left = rpc.users(Default::default()).await.unwrap().users;
    assert_eq!(left.len(), 4, "who has gone is not online, though his going is not told yet: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_listed_with_what_others_may_know_of_him() {
    let gateway = Gateway::with(&[("auth.public_claims", r#"["username", "roles", "missing"]"#)]).await;
    let mut rpc = gateway.rpc().await;
    let connect = async |token: Token| Client::connect(&gateway.url(&format!("token={}", token.sign()))).await;
    let alice = Token::of("alice").with("secret", "mine").with("roles", json!(["a", { "of": 1.5 }]));
    let _old = connect(alice.clone().with("username", "Alice")).await;
    let first = rpc.users(Default::default()).await.unwrap().users.remove(0);
    let _new = connect(alice.with("username", "Alice the Second")).await;
    let _bob = connect(Token::of("bob").with("secret", "his")).await;
    let users = rpc.users(Default::default()).await.unwrap().users;
    let [alice, bob] = users.as_slice() else { panic!("{users:?}") };
    assert_eq!((alice.sessions, alice.since), (2, first.since), "since the oldest session");
    let claims = &alice.claims.as_ref().unwrap().fields;
    assert_eq!(claims.keys().collect::<Vec<_>>(), ["roles", "username"]);
    assert_eq!(claims["username"].kind, Some(Kind::StringValue("Alice the Second".to_owned())), "the latest");
    assert_eq!((bob.sessions, &bob.claims), (1, &None));
    let shown = gateway.ops().get("/ws/online").await.good();
    assert_eq!(shown["users"][0]["claims"], json!({ "roles": ["a", { "of": 1.5 }], "username": "Alice the Second" }));
    assert!(shown["users"][1].get("claims").is_none(), "{shown}");
    for scope in ["send", "close", "events"] {
        let mut other = Rpc::over_tcp(gateway.grpc, Some(&format!("{scope}-token"))).await;
        assert_eq!(other.users(Default::default()).await.unwrap_err().code(), Code::PermissionDenied);
    }
}
