//! Where a consumer of events begins: with what there is, or where it was before.

use std::collections::BTreeSet;

use pushgate::{
    api::proto::{EventPosition, EventsLost, SessionState, StreamEventsRequest, event::Event},
    types::{EventBody, UserId},
};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::{Gateway, rpc::Events};

fn snapshot(user: &str) -> StreamEventsRequest {
    StreamEventsRequest { user_id: user.to_owned(), snapshot: true, ..Default::default() }
}

fn after(epoch: &str, sequence: u64) -> StreamEventsRequest {
    let place = EventPosition { epoch: epoch.to_owned(), sequence };
    StreamEventsRequest { resume_after: Some(place), ..Default::default() }
}

/// The sessions of a snapshot, by their ids, and the sequence that it was taken at.
async fn sessions(events: &mut Events) -> (BTreeSet<String>, u64) {
    let mut sessions = BTreeSet::new();
    loop {
        let event = events.next().await;
        assert!(event.time.is_some());
        match event.event.unwrap() {
            Event::SnapshotSession(one) => assert!(sessions.insert(one.session.unwrap().session_id), "each once"),
            Event::SnapshotEnd(end) => {
                assert_eq!(end.sessions as usize, sessions.len());
                return (sessions, event.sequence);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Something that happens, and that a test can tell from all else.
fn happen(gateway: &Gateway, user: &str) {
    gateway.hub.events().emit(EventBody::UserOffline { user: UserId::parse(user).unwrap() });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_what_there_is_and_goes_on_from_there() {
    let gateway = Gateway::with(&[("presence.linger", "1h")]).await;
    let alice = gateway.client_with("alice", "device=phone").await;
    let bob = gateway.client("bob").await;
    gateway.live("alice").await;
    let mut events = gateway.rpc().await.stream(snapshot("")).await.unwrap();
    let first = events.next().await;
    let Some(Event::SnapshotSession(one)) = first.event else { panic!() };
    let session = one.session.unwrap();
    assert_eq!((&session.session_id, &*session.user_id, &*session.device), (&alice.session(), "alice", "phone"));
    assert_eq!(session.state(), SessionState::Live);
    assert!(session.connected_at.is_some() && session.remote_address.starts_with("127.0.0.1:"));
    let second = events.next().await;
    assert!(
        matches!(second.event, Some(Event::SnapshotSession(one)) if one.session.as_ref().unwrap().user_id == "bob")
    );
    let end = events.next().await;
    assert!(matches!(end.event, Some(Event::SnapshotEnd(end)) if end.sessions == 2));
    // Two sessions opened, two users came online.
    assert_eq!([first.sequence, second.sequence, end.sequence], [4; 3], "the last event before it");
    assert_eq!(first.epoch, end.epoch);
    bob.close().await;
    let next = events.next().await;
    assert_eq!(next.sequence, 5);
    assert!(matches!(next.event, Some(Event::SessionClosed(closed)) if closed.user_id == "bob"));

    let (only, _) = sessions(&mut gateway.rpc().await.stream(snapshot("alice")).await.unwrap()).await;
    assert_eq!(only, [alice.session()].into());
    let (none, at) = sessions(&mut gateway.rpc().await.stream(snapshot("bob")).await.unwrap()).await;
    assert_eq!((none.len(), at), (0, 5));
    // The types are those of what follows.
    let typed = StreamEventsRequest { types: vec!["user_offline".into(), "snapshot_end".into()], ..snapshot("") };
    let mut typed = gateway.rpc().await.stream(typed).await.unwrap();
    assert_eq!(sessions(&mut typed).await.0.len(), 1);
    let _carol = gateway.client("carol").await;
    happen(&gateway, "dave");
    assert!(matches!(typed.body().await, Event::UserOffline(offline) if offline.user_id == "dave"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_many_sessions_comes_in_pages() {
    let gateway = Gateway::with(&[("limits.connections_per_user", "0")]).await;
    let mut clients = Vec::new();
    for n in 0..600 {
        clients.push(gateway.client(&format!("user-{}", n % 7)).await);
    }
    let expected: BTreeSet<_> = clients.iter().map(|client| client.session()).collect();
    let (all, _) = sessions(&mut gateway.rpc().await.stream(snapshot("")).await.unwrap()).await;
    assert_eq!(all, expected);
    let (some, _) = sessions(&mut gateway.rpc().await.stream(snapshot("user-3")).await.unwrap()).await;
    assert_eq!(some.len(), 86);
}

/// What a consumer has that adds sessions by their ids and takes out those that closed.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_come_and_go_during_a_snapshot_are_there_in_the_end_or_not() {
    let gateway = Gateway::with(&[("presence.linger", "0s"), ("limits.connections_per_user", "0")]).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let movers: Vec<_> = (0..6)
        .map(|n| {
            let (stop, url) =
                (stop.clone(), gateway.url(&format!("token={}", crate::support::Token::of("alice").sign())));
            tokio::spawn(async move {
                let mut held = Vec::new();
                while !stop.is_cancelled() {
                    held.push(crate::support::Client::connect(&url).await);
                    if held.len() > 3 + n {
                        held.remove(0).close().await;
                    }
                }
                held
            })
        })
        .collect();
    let mut streams = Vec::new();
    for _ in 0..40 {
        let mut events = gateway.rpc().await.stream(snapshot("")).await.unwrap();
        let mut present = BTreeSet::new();
        loop {
            match events.body().await {
                Event::SnapshotSession(one) => assert!(present.insert(one.session.unwrap().session_id)),
                Event::SnapshotEnd(_) => break,
                other => panic!("{other:?}"),
            }
        }
        streams.push((events, present));
    }
    stop.cancel();
    let mut held = BTreeSet::new();
    let mut clients = Vec::new();
    for mover in movers {
        for client in mover.await.unwrap() {
            held.insert(client.session());
            clients.push(client);
        }
    }
    gateway.sessions("alice", held.len()).await;
    happen(&gateway, "the end");
    for (mut events, mut present) in streams {
        loop {
            match events.body().await {
                Event::SessionOpened(one) => drop(present.insert(one.session_id)),
                Event::SessionClosed(one) => drop(present.remove(&one.session_id)),
                Event::UserOffline(one) if one.user_id == "the end" => break,
                Event::EventsLost(lost) => panic!("{lost:?}"),
                _ => {}
            }
        }
        assert_eq!(present, held);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_comes_back_gets_what_came_meanwhile() {
    let gateway = Gateway::with(&[("events.buffer", "16")]).await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&[], "").await;
    (0..10).for_each(|n| happen(&gateway, &n.to_string()));
    let mut reached = events.next().await;
    for _ in 0..4 {
        reached = events.next().await;
    }
    drop(events);
    assert_eq!(reached.sequence, 5);
    (10..15).for_each(|n| happen(&gateway, &n.to_string()));
    let epoch = reached.epoch;
    let users = async |events: &mut Events, count: usize| {
        let mut users = Vec::new();
        for _ in 0..count {
            match events.body().await {
                Event::UserOffline(one) => users.push(one.user_id.parse::<u64>().unwrap()),
                other => panic!("{other:?}"),
            }
        }
        users
    };
    let mut events = rpc.stream(after(&epoch, 5)).await.unwrap();
    assert_eq!(users(&mut events, 10).await, (5..15).collect::<Vec<_>>(), "each once");
    happen(&gateway, "15");
    assert_eq!(users(&mut events, 1).await, [15], "and then what comes");
    let only = StreamEventsRequest { user_id: "12".into(), ..after(&epoch, 5) };
    assert_eq!(users(&mut rpc.stream(only).await.unwrap(), 1).await, [12]);
    let mut present = rpc.stream(after(&epoch, 16)).await.unwrap();
    happen(&gateway, "16");
    assert_eq!(users(&mut present, 1).await, [16]);

    // 17 came, 16 are kept: 20 more push out all that was there.
    (17..37).for_each(|n| happen(&gateway, &n.to_string()));
    let mut events = rpc.stream(after(&epoch, 5)).await.unwrap();
    let lost = events.next().await;
    assert_eq!((lost.sequence, &lost.epoch), (21, &epoch));
    assert_eq!(lost.event, Some(Event::EventsLost(EventsLost { count: 16, epoch_changed: false })));
    assert_eq!(users(&mut events, 16).await, (21..37).collect::<Vec<_>>());
    assert!(rpc.status().await.event_streams.unwrap().lost >= 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_another_epoch_a_consumer_is_told_and_goes_on_from_the_beginning_of_this_one() {
    let gateway = Gateway::with(&[("events.buffer", "16")]).await;
    let mut events = gateway.rpc().await.events(&[], "").await;
    (0..9).for_each(|_| happen(&gateway, "before"));
    let before = events.next().await;
    let gateway = gateway.restart().await;
    let mut rpc = gateway.rpc().await;
    (0..3).for_each(|_| happen(&gateway, "since"));
    for place in [after(&before.epoch, 9), after(&before.epoch, 2), after("no-such-epoch", u64::MAX)] {
        let mut events = rpc.stream(place).await.unwrap();
        let lost = events.next().await;
        assert_eq!(lost.event, Some(Event::EventsLost(EventsLost { count: 0, epoch_changed: true })));
        assert!(lost.sequence == 0 && lost.epoch != before.epoch, "of this epoch nothing");
        for sequence in 1..=3 {
            assert_eq!(events.next().await.sequence, sequence);
        }
    }
    (0..20).for_each(|_| happen(&gateway, "since"));
    let mut events = rpc.stream(after(&before.epoch, 9)).await.unwrap();
    let lost = events.next().await;
    assert_eq!(lost.event, Some(Event::EventsLost(EventsLost { count: 7, epoch_changed: true })));
    assert_eq!((lost.sequence, events.next().await.sequence), (7, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_cannot_be_is_refused() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    happen(&gateway, "alice");
    let epoch = rpc.status().await.epoch;
    let both = StreamEventsRequest { snapshot: true, ..after(&epoch, 1) };
    for (request, field) in [
        (after("", 1), "resume_after.epoch"),
        (after(&epoch, 2), "resume_after.sequence"),
        (after(&epoch, u64::MAX), "resume_after.sequence"),
        (both, "resume_after"),
    ] {
        let Err(refused) = rpc.stream(request).await else { panic!("{field} is taken") };
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert_eq!(refused.get_error_details().bad_request().unwrap().field_violations[0].field, field);
    }
    assert_eq!(rpc.status().await.event_streams.unwrap().open, 0);
    assert!(rpc.stream(after(&epoch, 0)).await.is_ok());
}
