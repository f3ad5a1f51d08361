//! Lists, a page at a time.

use std::collections::BTreeSet;

use pushgate::api::proto::{AckMode, ListSessionsRequest, SessionState};
use serde_json::json;
use tonic::Code;

use crate::support::{Gateway, until};

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
