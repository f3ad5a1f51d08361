//! The handover between the store and live traffic: whatever the order in which notifications are staged, become
//! readable, are pulled, confirmed or held up by a socket, a session sees each of them once and in order.

mod answers;
mod clean_up;
mod fanout;
mod interleaving;
mod line;
mod model;
mod recall;
mod recovery;
mod snapshot;
mod support;
mod survey;
mod topics;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Wake, Waker},
    time::Instant,
};

use support::{Bounds, Seen, World, device, notification, plain, until, user};

use super::*;
use crate::{
    protocol::close::CloseCode,
    store::{Counters, DeviceRow},
    types::{ClosedBy, Device, UnixMillis},
};

const PHONE: &str = "phone";

#[tokio::test]
async fn a_session_does_not_turn_live_over_what_is_staged_and_not_readable_yet() {
    let world = World::new(Bounds::default());
    let ann = user("ann");
    world.known(&ann, &device(PHONE)).await;

    let held = world.double.hold();
    let begun = world.double.commits_begun();
    let mut sent = vec![world.offset(&ann, 10).await];
    // The first is in a commit of its own, which is held up; the others gather behind it.
    world.double.begun(begun + 1).await;
    for _ in 0..2 {
        sent.push(world.offset(&ann, 10).await);
    }
    let mut client = world.attach(&ann, &device(PHONE)).await;
    assert_eq!(client.pending, 3);
    assert!(!client.is_live(), "three are staged that it has not seen");
    assert_eq!(world.hub.plan_pull(&client.handle), Pull::Wait, "nothing is readable");
    let live = world.send(&ann, 10).await;
    assert_eq!(live.sessions, 0, "it must not overtake what is staged before it");
    sent.push(live.offset.unwrap().get());
    assert_eq!(client.offsets(), [0; 0]);

    held.let_one_through();
    world.applied(&ann, sent[0]).await;
    client.settle().await;
    assert_eq!(client.offsets(), sent[..1], "what is readable, and not more");
    assert!(!client.is_live());
    assert_eq!(world.hub.plan_pull(&client.handle), Pull::Wait);

    world.double.begun(begun + 2).await;
    sent.push(world.offset(&ann, 10).await);
    held.let_one_through();
    world.applied(&ann, sent[3]).await;
    assert!(client.begin_pull().await);
    // Between the reading of a page and its handing over.
    sent.push(world.offset(&ann, 10).await);
    client.end_pull();
    assert_eq!(client.offsets(), sent[..4]);

    drop(held);
    world.all_applied(&ann).await;
    client.settle().await;
    assert!(client.is_live());
    assert_eq!(client.offsets(), sent, "each once, in order");
    assert!(client.seen.iter().all(|seen| seen.replayed), "each of them had to wait");
    let live = world.send(&ann, 10).await;
    assert_eq!(live.sessions, 1, "from now on at once");
    client.read();
    assert_eq!(client.seen.last(), Some(&Seen { offset: live.offset.unwrap().get(), replayed: false }));
}

#[tokio::test]
async fn a_user_without_a_device_has_everything_staged_pulled_by_his_first() {
    let world = World::new(Bounds::default());
    let ann = user("ann");
    let held = world.double.hold();
    let mut sent = vec![world.offset(&ann, 10).await, world.offset(&ann, 10).await];
    let attaching = tokio::spawn(world.attaching(&ann, &device(PHONE), Default::default()));
    until("the device is staged", || !world.user(&ann).state().devices.is_empty()).await;
    sent.push(world.offset(&ann, 10).await);
    assert!(!attaching.is_finished(), "its device is not on disk");
    drop(held);
    let mut client = attaching.await.unwrap().unwrap();
    world.all_applied(&ann).await;
    client.settle().await;
    assert!(client.is_live());
    assert_eq!(client.offsets(), sent);
}

#[tokio::test]
async fn a_full_window_in_live_traffic_is_pulled_from_the_store_without_gap_or_repeat() {
    let world = World::new(Bounds { window: 4, ..Bounds::default() });
    let ann = user("ann");
    let mut client = world.attach(&ann, &device(PHONE)).await;
    assert!(client.is_live());
    let mut sent = Vec::new();
    for n in 0..10 {
        let one = world.send(&ann, 10).await;
        assert_eq!(one.sessions, u32::from(n < 4), "the window takes four");
        sent.push(one.offset.unwrap().get());
    }
    assert!(!client.is_live());
    assert_eq!(client.offsets(), sent[..4]);
    world.all_applied(&ann).await;
    assert!(!client.begin_pull().await, "the window is still full");
    // The first ping stands behind the first notification; its pong makes room for one.
    assert!(client.pong());
    assert!(client.begin_pull().await);
    sent.push(world.offset(&ann, 10).await);
    client.end_pull();
    assert_eq!(client.offsets(), sent[..5]);
    world.all_applied(&ann).await;
    client.settle().await;
    assert_eq!(client.offsets(), sent);
    assert!(client.is_live(), "all of it was taken");
    let one = world.send(&ann, 10).await;
    assert_eq!(one.sessions, 1);
    sent.push(one.offset.unwrap().get());
    assert_eq!(client.offsets(), sent);
}

#[tokio::test]
async fn a_full_outbox_in_live_traffic_is_pulled_from_the_store_without_gap_or_repeat() {
    let world = World::new(Bounds { outbox_bytes: 2000, ..Bounds::default() });
    let ann = user("ann");
    let mut client = world.attach(&ann, &device(PHONE)).await;
    // In the middle of a frame.
    client.takes(Some(100));
    let mut sent = Vec::new();
    while client.is_live() {
        sent.push(world.offset(&ann, 300).await);
        assert!(sent.len() < 10, "the outbox takes 2000 bytes");
    }
    for _ in 0..5 {
        sent.push(world.offset(&ann, 300).await);
    }
    assert!(client.handle.core().outbox.bytes() <= 2000);
    world.all_applied(&ann).await;
    assert!(!client.begin_pull().await, "there is no room");
    let mut turns = 0;
    while !client.is_live() {
        client.takes(Some(150));
        client.pong();
        client.begin_pull().await;
        if turns < 20 {
            sent.push(world.offset(&ann, 300).await);
        }
        client.end_pull();
        world.all_applied(&ann).await;
        turns += 1;
        assert!(turns < 1000, "it never catches up");
        assert!(client.handle.core().outbox.bytes() <= 2000 + limits::WINDOW_BYTES_MAX);
    }
    client.takes(None);
    assert_eq!(client.offsets(), sent);
    assert_eq!(world.send(&ann, 300).await.sessions, 1);
}

#[tokio::test]
async fn the_slower_of_two_sessions_of_a_device_still_takes_what_the_faster_confirmed() {
    let world = World::new(Bounds { window: 4, ..Bounds::default() });
    let ann = user("ann");
    let (mut fast, mut slow) = (world.attach(&ann, &device(PHONE)).await, world.attach(&ann, &device(PHONE)).await);
    slow.takes(Some(0));
    let mut sent = Vec::new();
    for _ in 0..12 {
        sent.push(world.offset(&ann, 10).await);
        world.all_applied(&ann).await;
        fast.settle().await;
    }
    assert_eq!(fast.offsets(), sent);
    let state = |world: &World| {
        let user = world.user(&ann);
        let state = user.state();
        (state.devices[0].row.cursor.get(), state.log.index.len())
    };
    assert_eq!(state(&world), (sent[11], 8), "confirmed by the device; four are on their way to the slower one");
    assert!(!slow.is_live());
    slow.takes(None);
    slow.settle().await;
    assert!(slow.is_live());
    assert_eq!(slow.offsets(), sent, "each once, in order");
    assert_eq!(state(&world), (sent[11], 0), "nobody has yet to take anything");
}

#[tokio::test]
async fn a_session_that_left_holds_nothing_back_for_others_to_take() {
    let world = World::new(Bounds { window: 4, ..Bounds::default() });
    let ann = user("ann");
    let (mut fast, mut slow) = (world.attach(&ann, &device(PHONE)).await, world.attach(&ann, &device(PHONE)).await);
    slow.takes(Some(0));
    for _ in 0..8 {
        world.offset(&ann, 10).await;
        world.all_applied(&ann).await;
        fast.settle().await;
    }
    assert_eq!(world.user(&ann).state().log.index.len(), 4);
    slow.detach();
    assert_eq!(world.user(&ann).state().log.index.len(), 0);
}

#[tokio::test]
async fn a_slow_consumer_of_what_is_not_stored_is_closed_and_nobody_else_notices() {
    let world = World::new(Bounds { outbox_bytes: 1000, ..Bounds::default() });
    let (ann, bob) = (user("ann"), user("bob"));
    let mut slow = world.attach(&ann, &device(PHONE)).await;
    let mut others = [world.attach(&ann, &device("desk")).await, world.attach(&bob, &device(PHONE)).await];
    slow.takes(Some(50));
    let mut reached = Vec::new();
    for _ in 0..6 {
        reached.push(world.hub.broadcast(notification(200)).await.unwrap().sessions);
    }
    assert_eq!(reached, [3, 3, 3, 2, 2, 2], "three frames fill the outbox");
    assert_eq!(slow.handle.core().closing.as_ref().unwrap().code, CloseCode::SLOW_CONSUMER);
    assert_eq!(world.hub.metrics().failures(Failure::SlowConsumer), 1);
    slow.takes(None);
    assert_eq!((slow.seen.len(), slow.closed), (1, Some(4409)), "the started frame is finished, then the close frame");
    let now_or_never = crate::types::Notification { expires_at: Some(UnixMillis(0)), ..notification(200) };
    let sent = world.hub.send(&ann, now_or_never, plain(Wait::Stored)).await.unwrap();
    assert_eq!((sent.outcome, sent.sessions), (Outcome::Accepted, 1));
    for (other, count) in others.iter_mut().zip([7, 6]) {
        assert_eq!(other.offsets(), vec![0; count]);
        assert!(other.is_live() && other.closed.is_none() && other.handle.core().closing.is_none());
    }
    assert_eq!(world.offset(&ann, 10).await, *others[0].offsets().last().unwrap());
}

/// Counts how often a task was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_failed_commit_is_told_to_every_caller_and_leaves_no_session_waiting() {
    let world = World::new(Bounds::default());
    let ann = user("ann");
    world.known(&ann, &device(PHONE)).await;
    world.known(&ann, &device("desk")).await;
    let mut live = world.attach(&ann, &device("desk")).await;
    world.barrier().await;

    let held = world.double.hold();
    let calls: Vec<_> = (0..3)
        .map(|_| {
            let (hub, ann) = (world.hub.clone(), ann.clone());
            tokio::spawn(async move { hub.send(&ann, notification(10), plain(Wait::Stored)).await })
        })
        .collect();
    until("all are staged", || world.user(&ann).state().log.index.len() == 3).await;
    let mut pulling = world.attach(&ann, &device(PHONE)).await;
    let stranger = tokio::spawn(world.attaching(&ann, &device("new"), Default::default()));
    until("the new device is staged", || world.user(&ann).state().devices.len() == 3).await;
    let woken = Arc::new(Woken::default());
    pulling.handle.register_task(&Waker::from(Arc::clone(&woken)));
    assert_eq!(world.hub.plan_pull(&pulling.handle), Pull::Wait);

    world.double.fails.store(true, Ordering::SeqCst);
    drop(held);
    for call in calls {
        assert!(matches!(call.await.unwrap(), Err(SendError::Unknown(StoreError::Failed(_)))));
    }
    assert!(matches!(stranger.await.unwrap().map(drop), Err(AttachError::Store(StoreError::Failed(_)))));
    assert!(matches!(world.hub.send(&ann, notification(10), plain(Wait::Accepted)).await, Err(SendError::Store(_))));
    let bob = user("bob");
    assert!(matches!(world.hub.send(&bob, notification(10), plain(Wait::Stored)).await, Err(SendError::Store(_))));
    assert_eq!(world.hub.store().failed().await, world.hub.store().health().unwrap_err());

    assert!(woken.0.load(Ordering::SeqCst) > 0, "a session that waits for the log looks again");
    assert_eq!(world.hub.plan_pull(&pulling.handle), Pull::Live, "there is nothing to wait for any more");
    assert_eq!((live.offsets().len(), pulling.offsets().len()), (3, 0), "live ones may have it already");
    {
        let user = world.user(&ann);
        let state = user.state();
        assert_eq!((state.log.index.len(), state.log.bytes, state.log.last), (0, 0, state.log.applied));
        assert_eq!(state.devices.len(), 2, "the device that was not written is not known");
    }
    for mut client in [live, pulling] {
        assert!(client.handle.close(CloseCode::RESTART, "restarting", ClosedBy::Gateway));
        client.read();
        assert_eq!(client.closed, Some(1012));
        client.detach();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confirming_and_sending_at_once_leave_cursor_index_and_counters_in_agreement() {
    const SENDERS: usize = 2;
    const SENT: usize = 300;
    let world = World::new(Bounds { window: 16, ..Bounds::default() });
    let ann = user("ann");
    // Stays behind, so that something is left.
    world.known(&ann, &device("desk")).await;
    for _ in 0..5 {
        world.offset(&ann, 5000).await;
    }
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(world.attach(&ann, &device(PHONE)).await);
    }
    let senders: Vec<_> = (0..SENDERS)
        .map(|_| {
            let (hub, ann) = (world.hub.clone(), ann.clone());
            tokio::spawn(async move {
                let mut offsets = Vec::new();
                for n in 0..SENT {
                    let wait = if n % 8 == 0 { Wait::Stored } else { Wait::Accepted };
                    let sent = hub.send(&ann, notification(n), plain(wait)).await.unwrap();
                    offsets.push(sent.offset.unwrap().get());
                    if n == SENT / 2 {
                        // Catches up, so that deletions are raced with, too.
                        let desk = device("desk");
                        let user = hub.0.users.get(&ann).unwrap();
                        let mut state = user.state();
                        let last = state.log.applied;
                        state.device(&desk).unwrap().row.cursor = last;
                        let known = state.devices.iter().find(|known| known.name == desk).unwrap();
                        hub.put_cursor(&user, known, &state.log);
                    }
                }
                offsets
            })
        })
        .collect();
    let takers: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            tokio::spawn(async move {
                let begun = Instant::now();
                while client.seen.len() < SENDERS * SENT {
                    assert!(begun.elapsed() < Duration::from_secs(20), "{} were seen", client.seen.len());
                    client.settle().await;
                    tokio::task::yield_now().await;
                }
                client.settle().await;
                client
            })
        })
        .collect();
    let mut sent = Vec::new();
    for sender in senders {
        let offsets = sender.await.unwrap();
        assert!(offsets.is_sorted());
        sent.extend(offsets);
    }
    sent.sort_unstable();
    for taker in takers {
        let mut client = taker.await.unwrap();
        assert_eq!(client.offsets(), sent);
        client.detach();
    }
    let mut desk = world.attach(&ann, &device("desk")).await;
    assert!(desk.begin_pull().await && desk.end_pull());
    desk.detach();
    agrees_with_the_store(&world, &ann).await;
}

/// Closes the store, opens it again, and finds the user as he was in memory.
async fn agrees_with_the_store(world: &World, id: &UserId) {
    world.hub.store().close().unwrap();
    let (counters, devices, index) = {
        let user = world.user(id);
        let state = user.state();
        let mut devices: Vec<(Device, DeviceRow)> =
            state.devices.iter().map(|known| (known.name.clone(), known.row)).collect();
        devices.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
        // What is confirmed by some device only is known in memory.
        let forget = |entry: &crate::store::IndexEntry| crate::store::IndexEntry { confirmed: false, ..entry.clone() };
        let index: Vec<_> = state.log.index.iter().map(forget).collect();
        let bytes = index.iter().map(|entry| u64::from(entry.bytes)).sum();
        assert_eq!(
            state.log.counters(),
            Counters { count: index.len() as u32, bytes, last: state.log.last, lost: state.log.lost }
        );
        (state.log.counters(), devices, index)
    };
    let again = World::over(Arc::clone(&world.double), Bounds::default());
    let mut mailbox = again.hub.store().load(id).await.unwrap();
    mailbox.devices.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
    assert_eq!(mailbox.damaged, None);
    assert_eq!(mailbox.counters, counters);
    assert_eq!(mailbox.index, index);
    assert_eq!(mailbox.devices, devices);
}
