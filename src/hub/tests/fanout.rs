//! Broadcasts that are pending at once: what leaves together, in which order, and what each caller is told.

use futures_util::future::join_all;

use super::support::{Bounds, World, device, notification, user};
use crate::{
    hub::Filter,
    metrics::Failure,
    protocol::{
        close::CloseCode,
        frame::{DEFLATED_FRAMES, Window},
    },
    session::Options,
    types::{ClosedBy, Notification, UnixMillis},
};

/// One that is the same for everybody and never expires: such are put together.
fn plain(bytes: usize) -> Notification {
    Notification { expires_at: None, ..notification(bytes) }
}

#[tokio::test]
async fn broadcasts_that_are_pending_at_once_leave_in_one_write_in_order() {
    let world = World::new(Bounds::default());
    let mut clients = Vec::new();
    for name in ["ann", "bob", "eve"] {
        clients.push(world.attach(&user(name), &device("phone")).await);
    }
    let before: Vec<_> = clients.iter().map(|client| client.writes()).collect();
    let ids: Vec<_> = (0..40).map(|_| plain(700)).collect();
    let sent = join_all(ids.iter().cloned().map(|one| world.hub.broadcast(one))).await;
    assert!(sent.iter().all(|sent| sent.as_ref().unwrap().sessions == 3), "{sent:?}");
    let ids: Vec<_> = ids.iter().map(|one| one.id.as_str().to_owned()).collect();
    for (client, before) in clients.iter_mut().zip(before) {
        client.read();
        assert!(client.ids == ids, "each once, in order");
        assert_eq!(client.writes() - before, 1);
        assert_eq!(client.handle.core().counts.messages_sent, 41, "each one counts");
    }
}

#[tokio::test]
async fn what_is_not_the_same_for_all_keeps_its_place_among_what_is_put_together() {
    let world = World::new(Bounds::default());
    let mut ann = world.attach(&user("ann"), &device("phone")).await;
    let mut bob = world.attach(&user("bob"), &device("phone")).await;
    world.barrier().await;
    let but_ann = |one: Notification| Notification { not_for: [user("ann")].into(), ..one };
    let one = |n| match n % 4 {
        1 => plain(50),
        2 => but_ann(plain(50)),
        3 => notification(50),
        // Two in a row that may be put together, and one with an end of its own among them.
        _ => {
            if n == 4 {
                notification(50)
            } else {
                plain(50)
            }
        }
    };
    let all: Vec<_> = (0..12).map(one).collect();
    let calls = all.iter().cloned().enumerate().map(async |(n, one)| match n % 4 {
        3 => world.hub.broadcast_durably(one, false).await.unwrap().sessions,
        _ => world.hub.broadcast(one).await.unwrap().sessions,
    });
    let sessions = join_all(calls).await;
    let expected: Vec<u32> = (0..12).map(|n| if n % 4 == 2 { 1 } else { 2 }).collect();
    assert_eq!(sessions, expected);
    ann.read();
    bob.read();
    // Durable ones wait for the store first, so they may come later than those that were called after them; each kind
    // keeps its order.
    let of = |durable: bool, name: &str| -> Vec<String> {
        let wanted = |n: usize| (n % 4 == 3) == durable && !(name == "ann" && n % 4 == 2);
        all.iter().enumerate().filter(|(n, _)| wanted(*n)).map(|(_, one)| one.id.as_str().to_owned()).collect()
    };
    for (client, name) in [(&ann, "ann"), (&bob, "bob")] {
        for durable in [false, true] {
            let seen = client.seen.iter().zip(&client.ids).filter(|(seen, _)| (seen.offset > 0) == durable);
            assert_eq!(seen.map(|(_, id)| id.clone()).collect::<Vec<_>>(), of(durable, name), "{name} {durable}");
        }
    }
}

#[tokio::test]
async fn each_of_those_that_are_pending_at_once_reaches_whom_it_is_for() {
    let world = World::new(Bounds::default());
    let mut ann = world.attach(&user("ann"), &device("phone")).await;
    let mut bob = world.attach(&user("bob"), &device("tablet")).await;
    let all: Vec<_> = (0..40).map(|_| plain(50)).collect();
    let id = ann.handle.id;
    let filter = |n: usize| match n % 5 {
        0 => Filter::default().devices([device("phone")]),
        1 => Filter::default().not_to([id]),
        2 => Filter::default().connected(None, Some(UnixMillis(0))),
        _ => Filter::default(),
    };
    let calls = all.iter().cloned().enumerate().map(|(n, one)| world.hub.broadcast_to(filter(n), one));
    let calls: Vec<_> = calls.collect();
    let reached: Vec<_> = join_all(calls).await.into_iter().map(|sent| sent.unwrap().sessions).collect();
    assert_eq!(reached, (0..40).map(|n| [1, 1, 0, 2, 2][n % 5]).collect::<Vec<_>>());
    for (client, not) in [(&mut ann, [1, 2]), (&mut bob, [0, 2])] {
        client.read();
        let wanted = all.iter().enumerate().filter(|(n, _)| !not.contains(&(n % 5)));
        assert_eq!(client.ids, wanted.map(|(_, one)| one.id.as_str().to_owned()).collect::<Vec<_>>());
    }
    // One alone takes another way.
    assert_eq!(world.hub.broadcast_to(filter(2), plain(50)).await.unwrap().sessions, 0);
    assert_eq!(world.hub.broadcast_to(filter(0), plain(50)).await.unwrap().sessions, 1);
    bob.read();
    assert_eq!(bob.ids.len(), 24);
}

#[tokio::test]
async fn who_takes_what_is_written_is_not_slow_however_much_is_pending_and_who_does_not_is() {
    let world = World::new(Bounds { outbox_bytes: 1000, ..Bounds::default() });
    let mut slow = world.attach(&user("ann"), &device("phone")).await;
    let mut fast = world.attach(&user("bob"), &device("phone")).await;
    slow.takes(Some(50));
    let sent = join_all((0..6).map(|_| world.hub.broadcast(plain(200)))).await;
    let reached: Vec<_> = sent.into_iter().map(|sent| sent.unwrap().sessions).collect();
    assert_eq!(reached, [2, 2, 2, 1, 1, 1], "three frames fill the outbox");
    assert_eq!(world.hub.metrics().failures(Failure::SlowConsumer), 1);
    slow.takes(None);
    assert_eq!((slow.seen.len(), slow.closed), (1, Some(4409)), "the started frame is finished, then the close frame");
    fast.read();
    assert_eq!((fast.seen.len(), fast.closed), (6, None));
}

#[tokio::test]
async fn what_is_put_together_is_one_piece_and_a_close_ends_it_at_the_started_frame() {
    let world = World::new(Bounds::default());
    let mut ann = world.attach(&user("ann"), &device("phone")).await;
    ann.takes(Some(50));
    let sent = join_all((0..10).map(|_| world.hub.broadcast(plain(200)))).await;
    assert!(sent.iter().all(|sent| sent.as_ref().unwrap().sessions == 1));
    assert_eq!(ann.handle.core().outbox.pieces(), 1);
    assert_eq!(ann.handle.core().outbox.frames(), 10, "whoever looks sees messages");
    ann.handle.close(CloseCode::NORMAL, "", ClosedBy::Caller);
    ann.takes(None);
    assert_eq!((ann.seen.len(), ann.closed), (1, Some(1000)), "those that were not started are dropped");
    assert_eq!(ann.handle.core().counts.messages_sent, 2, "auth_success and that one");
}

#[tokio::test]
async fn a_broadcast_beyond_the_bound_closes_nobody_who_takes_it() {
    let world = World::new(Bounds { outbox_bytes: 1000, ..Bounds::default() });
    let mut ann = world.attach(&user("ann"), &device("phone")).await;
    let sent = join_all((0..3).map(|_| world.hub.broadcast(plain(3000)))).await;
    assert!(sent.iter().all(|sent| sent.as_ref().unwrap().sessions == 1), "{sent:?}");
    ann.read();
    assert_eq!((ann.seen.len(), ann.closed), (3, None));
}

#[tokio::test]
async fn whatever_the_number_of_those_who_get_it_compressed_it_is_compressed_once() {
    let world = World::new(Bounds::default());
    let mut clients = Vec::new();
    for n in 0..40 {
        let window = (n % 4 != 0).then_some(Window::LARGEST);
        let options = Options { device: Some(device(&format!("d{n}"))), window, ..Options::default() };
        clients.push(world.attaching_with(&user(&format!("u{}", n % 5)), options).await.unwrap());
    }
    world.barrier().await;
    let compressed = || DEFLATED_FRAMES.replace(0);
    compressed();
    // To a user's sessions, to everybody, and several at once to everybody.
    world.send(&user("u1"), 900).await;
    assert_eq!(compressed(), 1);
    world.hub.broadcast(plain(900)).await.unwrap();
    assert_eq!(compressed(), 1);
    world.hub.broadcast_durably(notification(900), false).await.unwrap();
    assert_eq!(compressed(), 1);
    join_all((0..5).map(|_| world.hub.broadcast(plain(700)))).await;
    assert_eq!(compressed(), 5);
    // Where nobody takes it compressed, it is not.
    for client in clients.iter().filter(|client| client.handle.window.is_some()) {
        world.hub.detach(&client.handle);
    }
    world.send(&user("u0"), 900).await;
    world.hub.broadcast(plain(900)).await.unwrap();
    assert_eq!(compressed(), 0);
    assert!(clients.iter().all(|client| client.handle.core().counts.messages_sent > 7));
}
