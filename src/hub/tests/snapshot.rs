//! What is listed for a snapshot, beside what the events say at the same time.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use super::{
    super::*,
    support::{Bounds, World, device, until, user},
};
use crate::types::EventBody;

/// Everything that is listed.
fn listed(hub: &Hub) -> Vec<SessionId> {
    let (mut all, mut after) = (Vec::new(), None);
    while let Some((page, last)) = hub.open_sessions(after, 3) {
        all.extend(page.iter().map(|handle| handle.id));
        after = Some(last);
    }
    all
}

/// Whoever reads of a beginning finds the session, and whoever reads of an end does not, however soon he looks.
#[tokio::test]
async fn a_snapshot_has_what_the_events_before_it_say() {
    const ROUNDS: usize = 100;
    const EACH: usize = 10;
    let world = World::new(Bounds { events: 65_536, ..Bounds::default() });
    let (hub, told) = (world.hub.clone(), Arc::new(AtomicUsize::new(0)));
    let mut reader = hub.events().consume(Interest { types: 0b11, ..Interest::default() }, Start::Now);
    let count = Arc::clone(&told);
    let watching = thread::spawn(move || {
        while count.load(Ordering::Relaxed) < 2 * ROUNDS * EACH {
            let Some(Read::Events(events)) = reader.try_read() else { continue };
            let listed = listed(&hub);
            for event in &events {
                match &event.body {
                    EventBody::SessionOpened { session, .. } => assert!(listed.contains(session), "it has begun"),
                    EventBody::SessionClosed { session, .. } => assert!(!listed.contains(session), "it has ended"),
                    other => panic!("{other:?}"),
                }
            }
            count.fetch_add(events.len(), Ordering::Relaxed);
        }
    });
    for round in 0..ROUNDS {
        let mut clients = Vec::new();
        for n in 0..EACH {
            clients.push(world.attach(&user(&format!("user-{}", n % 4)), &device("phone")).await);
        }
        let so_far = |told: &AtomicUsize, wanted| told.load(Ordering::Relaxed) == wanted || watching.is_finished();
        until("their beginnings are told", || so_far(&told, (2 * round + 1) * EACH)).await;
        clients.iter().for_each(|client| drop(client.detach()));
        until("their ends are told", || so_far(&told, (2 * round + 2) * EACH)).await;
    }
    watching.join().unwrap();
    assert!(listed(&world.hub).is_empty());
}

/// A session leaves its user, with its event, a moment before it leaves the list of all.
#[tokio::test]
async fn who_has_left_his_user_is_not_listed_although_the_list_of_all_has_him() {
    let world = World::new(Bounds::default());
    let mut clients = Vec::new();
    for name in ["ann", "bob", "eve", "ann"] {
        clients.push(world.attach(&user(name), &device("phone")).await);
    }
    let left = clients[1].handle.id;
    world.user(&user("bob")).state().sessions.clear();
    let expected: Vec<_> = clients.iter().map(|client| client.handle.id).filter(|id| *id != left).collect();
    assert_eq!(listed(&world.hub), expected);
    assert!(world.hub.session(left).is_some());
}
