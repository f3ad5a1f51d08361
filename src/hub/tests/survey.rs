//! What a look at all sessions finds, and what waits for the store's writer.

use super::{
    super::{survey::Survey, *},
    support::{Bounds, World, device, notification, plain, until, user},
};
use crate::{protocol::close::CloseCode, types::ClosedBy};

/// What is found from now on, and not what was found just before.
async fn survey(world: &World) -> Survey {
    *world.hub.0.surveyed.lock().await = None;
    world.hub.survey().await
}

#[tokio::test]
async fn a_survey_finds_each_session_in_the_state_that_it_is_in() {
    let world = World::new(Bounds { window: 2, ..Bounds::default() });
    let (ann, bob, eve) = (user("ann"), user("bob"), user("eve"));
    assert_eq!(survey(&world).await, Survey::default());
    let mut clients = Vec::new();
    for who in [&ann, &bob, &eve] {
        clients.push(world.attach(who, &device("phone")).await);
    }
    assert_eq!(survey(&world).await, Survey { live: 3, ..Survey::default() });

    // More than the window takes, and nothing of it is confirmed; more than the socket takes; an end that it does not take.
    for _ in 0..3 {
        world.send(&ann, 10).await;
    }
    clients[1].takes(Some(0));
    let broadcast = world.hub.broadcast(notification(1000)).await.unwrap();
    assert_eq!(broadcast.sessions, 3);
    clients[2].takes(Some(0));
    assert!(clients[2].handle.close(CloseCode::NORMAL, "bye", ClosedBy::Caller));
    let found = survey(&world).await;
    assert_eq!((found.live, found.pulling, found.closing), (1, 1, 1));
    assert_eq!((found.stalled, found.unconfirmed), (2, 2));
    assert!(found.outbox_bytes_max > 1000 && found.outbox_bytes > found.outbox_bytes_max, "{found:?}");

    for client in &mut clients {
        client.takes(None);
    }
    clients.pop().unwrap().detach();
    let found = survey(&world).await;
    assert_eq!((found.live, found.pulling, found.closing, found.stalled), (1, 1, 0, 0));
    assert_eq!((found.outbox_bytes, found.outbox_bytes_max), (0, 0));
}

#[tokio::test]
async fn who_asks_again_at_once_is_told_the_same() {
    let world = World::new(Bounds::default());
    let known = Survey { live: 7, ..Survey::default() };
    *world.hub.0.surveyed.lock().await = Some((crate::clock::Instant::now(), limits::CLOSE_LINGER, known));
    assert_eq!(world.hub.survey().await, known);
}

#[tokio::test]
async fn what_waits_for_the_writer_is_counted_until_it_is_written() {
    let world = World::new(Bounds::default());
    let ann = user("ann");
    world.known(&ann, &device("phone")).await;
    let held = world.double.hold();
    assert_eq!(world.hub.store().queued(), (0, 0));
    let before = world.double.commits_begun();
    let sends: Vec<_> = (0..3)
        .map(|_| {
            let (hub, ann) = (world.hub.clone(), ann.clone());
            tokio::spawn(async move { hub.send(&ann, notification(100), plain(Wait::Stored)).await })
        })
        .collect();
    until("all are staged", || world.user(&ann).state().log.index.len() == 3).await;
    world.double.begun(before + 1).await;
    // What the writer has taken waits for it no more, and is not written.
    let (operations, bytes) = world.hub.store().queued();
    assert!(operations < 3 && bytes > 300, "{operations} operations, {bytes} bytes");
    drop(held);
    for send in sends {
        send.await.unwrap().unwrap();
    }
    until("all is written", || world.hub.store().queued() == (0, 0)).await;
    assert_eq!(world.hub.store().commits().took.count(), world.hub.store().commits().bytes.count());
    assert!(world.hub.store().commits().rows.sum() >= 3);
}
