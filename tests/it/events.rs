//! What services see of a node as it happens.

use pushgate::{
    api::proto::{ClosedBy, StreamEventsRequest, event::Event},
    types::{EventBody, UserId},
};
use serde_json::json;
use tonic::Code;

use crate::support::{Client, Gateway, Raw, Rpc, client::request, raw, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_sessions_life_is_told_in_order() {
    let gateway = Gateway::with(&[("presence.linger", "50ms")]).await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&[], "").await;
    let status = rpc.status().await;
    assert_eq!(status.event_streams.unwrap().open, 1);
    let url = gateway.url(&format!("token={}&device=phone", crate::support::Token::of("alice").sign()));
    let (client, _) = Client::open(request(&url, &[("user-agent", "tests/1")])).await.unwrap();
    let mut client = client.welcomed().await;

    let mut sequence = 0;
    let mut next = async || {
        let event = events.next().await;
        sequence += 1;
        assert_eq!((event.sequence, &event.epoch), (sequence, &status.epoch));
        assert!(event.time.is_some());
        event.event.unwrap()
    };
    let Event::SessionOpened(opened) = next().await else { panic!() };
    assert_eq!((&*opened.user_id, &*opened.device, &*opened.user_agent), ("alice", "phone", "tests/1"));
    assert_eq!(opened.session_id, client.session());
    assert!(opened.remote_address.starts_with("127.0.0.1:"));
    let Event::UserOnline(online) = next().await else { panic!() };
    assert_eq!(online.user_id, "alice");

    let sent = rpc.send("alice", 1).await;
    client.data(1).await;
    client.settle().await;
    let Event::NotificationConfirmed(confirmed) = next().await else { panic!() };
    assert_eq!((&confirmed.id, confirmed.offset), (&sent.id, sent.offset));
    assert_eq!(
        (&*confirmed.user_id, &*confirmed.device, &confirmed.session_id),
        ("alice", "phone", &opened.session_id)
    );

    client.close().await;
    let Event::SessionClosed(closed) = next().await else { panic!() };
    assert_eq!((&closed.session_id, closed.code, closed.closed_by()), (&opened.session_id, 1005, ClosedBy::Client));
    assert_eq!((closed.messages_received, closed.messages_sent, closed.unconfirmed), (2, 4, 0));
    assert!(closed.bytes_received > 0 && closed.bytes_sent > 0 && closed.duration.is_some());
    let Event::UserOffline(offline) = next().await else { panic!() };
    assert_eq!(offline.user_id, "alice");

    let (mut wrong, _) = Client::open(request(&gateway.url("token=wrong"), &[])).await.unwrap();
    wrong.next().await;
    let Event::AuthFailed(failed) = next().await else { panic!() };
    assert_eq!((&*failed.code, &*failed.user_id), ("token_invalid", ""));
    assert!(!failed.message.is_empty() && failed.remote_address.starts_with("127.0.0.1:"));
    drop(events);
    until("streams", 0, async || gateway.rpc().await.status().await.event_streams.unwrap().open).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_session_ended_is_told_whoever_ended_it() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&["session_closed"], "").await;
    let mut ended = async || match events.body().await {
        Event::SessionClosed(closed) => (closed.code, closed.reason.clone(), closed.closed_by()),
        other => panic!("{other:?}"),
    };
    let mut raw = Raw::session(&gateway, "alice", "").await;
    let close = [&4123_u16.to_be_bytes()[..], "dinner is ready".as_bytes()].concat();
    raw.send(raw::CLOSE, &close).await;
    assert_eq!(ended().await, (4123, "dinner is ready".to_owned(), ClosedBy::Client));
    Raw::session(&gateway, "alice", "").await.reset();
    let (code, _, by) = ended().await;
    assert_eq!((code, by), (1006, ClosedBy::Client));
    let _client = gateway.client("alice").await;
    let close = pushgate::api::proto::CloseUserSessionsRequest {
        user_id: "alice".into(),
        code: 4001,
        reason: "kicked".into(),
        ..Default::default()
    };
    assert_eq!(rpc.close(close).await.unwrap(), 1);
    assert_eq!(ended().await, (4001, "kicked".to_owned(), ClosedBy::Caller));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_gets_only_the_types_and_the_user_it_asked_for() {
    let gateway = Gateway::with(&[("presence.linger", "0s")]).await;
    let mut rpc = gateway.rpc().await;
    let mut by_type = rpc.events(&["session_opened", "user_offline", "events_lost"], "").await;
    let mut by_user = rpc.events(&[], "bob").await;
    let mut by_both = rpc.events(&["user_online"], "bob").await;
    gateway.client("alice").await.close().await;
    until("users of the node", 0, async || gateway.rpc().await.status().await.users).await;
    let bob = gateway.client("bob").await;
    let opened = |event: Event| match event {
        Event::SessionOpened(opened) => opened.user_id,
        other => panic!("{other:?}"),
    };
    assert_eq!(opened(by_type.body().await), "alice");
    assert!(matches!(by_type.body().await, Event::UserOffline(offline) if offline.user_id == "alice"));
    assert_eq!(opened(by_type.body().await), "bob");
    assert_eq!(opened(by_user.body().await), "bob");
    assert!(matches!(by_user.body().await, Event::UserOnline(online) if online.user_id == "bob"));
    let online = by_both.next().await;
    assert!(online.sequence > 3, "those that a filter leaves out are counted");
    // A token that was good for a user but not for now is that user's event.
    let expired = crate::support::Token::of("bob").expiring_in(-100).sign();
    let (mut refused, _) = Client::open(request(&gateway.url(&format!("token={expired}")), &[])).await.unwrap();
    refused.next().await;
    assert!(matches!(by_user.body().await, Event::AuthFailed(failed) if failed.user_id == "bob"));
    drop(bob);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnect_within_the_linger_makes_no_noise() {
    let gateway = Gateway::with(&[("presence.linger", "1h")]).await;
    let mut events = gateway.rpc().await.events(&["user_online", "user_offline", "session_opened"], "").await;
    gateway.client("alice").await.close().await;
    until("sessions", 0, async || gateway.hub.session_count()).await;
    gateway.client("alice").await.close().await;
    gateway.client("bob").await;
    let mut names = Vec::new();
    for _ in 0..5 {
        names.push(match events.body().await {
            Event::SessionOpened(opened) => format!("opened {}", opened.user_id),
            Event::UserOnline(online) => format!("online {}", online.user_id),
            other => format!("{other:?}"),
        });
    }
    assert_eq!(names, ["opened alice", "online alice", "opened alice", "opened bob", "online bob"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_falls_behind_is_told_how_many_it_lost_and_goes_on() {
    let gateway = Gateway::with(&[("events.buffer", "16")]).await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&["user_offline", "user_online"], "").await;
    const COUNT: u64 = 20_000;
    let user = UserId::parse("alice").unwrap();
    for _ in 0..COUNT {
        gateway.hub.events().emit(EventBody::UserOnline { user: user.clone() });
    }
    gateway.hub.events().emit(EventBody::UserOffline { user });
    let (mut seen, mut lost, mut last) = (0, 0, 0);
    loop {
        let event = events.next().await;
        match event.event.unwrap() {
            Event::EventsLost(behind) => {
                assert!(behind.count > 0);
                lost += behind.count;
                assert_eq!(event.sequence, last + behind.count, "the sequence of the last that was lost");
            }
            body => {
                assert_eq!(event.sequence, last + 1, "nothing is missing that was not told");
                seen += 1;
                if matches!(body, Event::UserOffline(_)) {
                    break;
                }
            }
        }
        last = event.sequence;
    }
    assert!(lost > 0, "a ring of 16 took 20,000 events");
    assert_eq!(seen + lost, COUNT + 1);
    let streams = rpc.status().await.event_streams.unwrap();
    assert_eq!((streams.events, streams.lost), (COUNT + 1, lost));
    let scraped = crate::http::samples(&gateway.ops().get("/metrics").await.body);
    assert_eq!(scraped["pushgate_events_lost_total"], lost as f64);
    assert_eq!((scraped["pushgate_events_total"], scraped["pushgate_event_streams"]), ((COUNT + 1) as f64, 1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_is_told_by_a_new_epoch_that_counts_from_one() {
    let gateway = Gateway::start().await;
    let mut events = gateway.rpc().await.events(&[], "").await;
    let _alice = gateway.client("alice").await;
    let before = events.next().await;
    let gateway = gateway.restart().await;
    let mut events = gateway.rpc().await.events(&[], "").await;
    let _alice = gateway.client("alice").await;
    let after = events.next().await;
    assert_ne!(before.epoch, after.epoch);
    assert_eq!((before.sequence, after.sequence), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_can_match_nothing_is_refused() {
    let gateway = Gateway::start().await;
    let mut rpc: Rpc = gateway.rpc().await;
    for (types, user) in [(vec!["session_open"], ""), (vec![], "a\nb"), (vec!["session_opened", "message"], "")] {
        let types = types.into_iter().map(str::to_owned).collect();
        let request = StreamEventsRequest { types, user_id: user.to_owned(), ..Default::default() };
        let refused = soon("an answer", rpc.client.stream_events(request)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    assert_eq!(rpc.errors("grpc_invalid_argument").await, 3);
    assert_eq!(rpc.status().await.event_streams.unwrap().open, 0);
    assert_eq!(json!(rpc.status().await.event_streams.unwrap().events), json!(0));
}
