//! Lists of sessions with a filter, a page at a time: each that matches is there once, whatever goes meanwhile.

use std::collections::BTreeSet;

use pushgate::api::proto::{ListSessionsRequest, SubscribeRequest};

use crate::support::{Gateway, Rpc};

/// All pages of it: user and session of each row.
async fn listed(rpc: &mut Rpc, request: &ListSessionsRequest) -> Vec<(String, String)> {
    let (mut request, mut listed) = (request.clone(), Vec::new());
    loop {
        let page = rpc.list(request.clone()).await.unwrap();
        assert!(page.sessions.len() <= request.page_size as usize);
        listed.extend(page.sessions.into_iter().map(|row| (row.user_id, row.session_id)));
        if page.next_page_token.is_empty() {
            return listed;
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_filter_lists_each_session_once_over_any_pages() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let (mut clients, mut all, mut phones, mut members) =
        (Vec::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for n in 0..24 {
        // A name with a blank, as ids may have.
        let (user, device) = (format!("user {}", n % 5), if n % 3 == 0 { "phone" } else { "desk" });
        let client = gateway.client_with(&user, &format!("device={device}")).await;
        let row = (user, client.session());
        all.insert(row.clone());
        if n % 3 == 0 {
            phones.insert(row.clone());
        }
        if n % 2 == 0 {
            members.insert(row);
        }
        clients.push(client);
    }
    let session_ids: Vec<_> = members.iter().map(|(_, session)| session.clone()).collect();
    let subscribe = SubscribeRequest { topic: "t".into(), session_ids, ..Default::default() };
    assert_eq!(rpc.subscribe(subscribe).await.unwrap().changed, 12);
    let both: BTreeSet<_> = phones.intersection(&members).cloned().collect();
    let phone = Some("phone".to_owned());
    for page_size in [1, 2, 5, 24, 1000] {
        let of = |request: ListSessionsRequest| ListSessionsRequest { page_size, ..request };
        let address = |address: &str| of(ListSessionsRequest { address: address.into(), ..Default::default() });
        let topic = of(ListSessionsRequest { topic: "t".into(), ..Default::default() });
        for (request, expected) in [
            (of(Default::default()), &all),
            (of(ListSessionsRequest { device: phone.clone(), ..Default::default() }), &phones),
            (address("127.0.0.0/8"), &all),
            (address("10.0.0.0/8"), &BTreeSet::new()),
            (topic.clone(), &members),
            (ListSessionsRequest { device: phone.clone(), address: "127.0.0.1".into(), ..topic }, &both),
        ] {
            let rows = listed(&mut rpc, &request).await;
            assert_eq!(rows.len(), expected.len(), "{request:?}");
            assert_eq!(rows.iter().cloned().collect::<BTreeSet<_>>(), *expected, "{request:?}");
            if request.topic.is_empty() {
                assert!(rows.is_sorted_by_key(|(_, session)| session), "by id: {rows:?}");
            } else {
                assert!(rows.is_sorted(), "by user, then by id: {rows:?}");
            }
        }
    }

    // Whoever was last on a page may leave, and the next goes on behind him.
    let request = ListSessionsRequest { topic: "t".into(), page_size: 5, ..Default::default() };
    let first = rpc.list(request.clone()).await.unwrap();
    let mut seen: Vec<_> = first.sessions.into_iter().map(|row| row.session_id).collect();
    let last = seen.last().unwrap().clone();
    let gone = clients.remove(clients.iter().position(|client| client.session() == last).unwrap());
    gone.close().await;
    let rest = listed(&mut rpc, &ListSessionsRequest { page_token: first.next_page_token, ..request }).await;
    seen.extend(rest.into_iter().map(|(_, session)| session));
    assert_eq!(seen.len(), 12);
    let seen: BTreeSet<_> = seen.into_iter().collect();
    assert_eq!(seen, members.into_iter().map(|(_, session)| session).collect());
}
