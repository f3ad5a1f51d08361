//! What callers are told in moments that are hard to meet: between a write and its durability, while the engine is lost,
//! when a device is moved past what it never had; and what of all that stays on disk.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    task::{Wake, Waker},
};

use futures_util::FutureExt as _;

use super::{
    super::*,
    support::{Bounds, World, device, notification, plain, until, user},
};
use crate::{
    store::Store,
    types::{LogId, Notification, NotificationId},
};

const PHONE: &str = "phone";

fn own(id: &str) -> (Notification, SendOptions) {
    let notification = Notification { id: NotificationId::parse(id).unwrap(), ..notification(10) };
    (notification, SendOptions { wait: Wait::Stored, own_id: true })
}

fn calling(
    world: &World,
    to: &UserId,
    sent: &Notification,
    options: SendOptions,
) -> tokio::task::JoinHandle<Result<Sent, SendError>> {
    let (hub, to, sent) = (world.hub.clone(), to.clone(), sent.clone());
    tokio::spawn(async move { hub.send(&to, sent, options).await })
}

/// Whether the store knew an id each time that it was asked. Takes as long as look-ups that were asked for before.
async fn looked_up(world: &World, user: &UserId, id: &NotificationId) -> [bool; 8] {
    let (log, mut found) = (LogId::User(user.clone()), [false; 8]);
    for found in &mut found {
        let now = world.hub.clock().unix_millis();
        *found = world.hub.store().remembered(&log, id, now).await.unwrap().is_some();
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }
    found
}

#[tokio::test]
async fn a_repeated_call_waits_for_the_first_although_its_row_can_be_read() {
    let world = World::new(Bounds::default());
    let ann = user("ann");
    world.known(&ann, &device(PHONE)).await;
    world.double.shows_early.store(true, Ordering::SeqCst);
    let held = world.double.hold();
    // Not one that began before it was held.
    let begun = world.double.commits_begun();
    let (sent, options) = own("order-1");
    let call = || calling(&world, &ann, &sent, options);
    let first = call();
    world.double.begun(begun + 1).await;
    let again = call();
    let other = Notification { payload: notification(11).payload, ..sent.clone() };
    let taken = world.hub.send(&ann, other, options).await;
    assert!(matches!(taken, Err(SendError::IdTaken)), "{taken:?}");
    // Time enough for the repeated call's look-up: these go through the same readers, behind it.
    let found = looked_up(&world, &ann, &sent.id).await;
    assert_eq!(found, [true; 8], "its row can be read");
    assert!(!first.is_finished() && !again.is_finished(), "the commit is not through");
    drop(held);
    let (first, again) = (first.await.unwrap().unwrap(), again.await.unwrap().unwrap());
    assert_eq!(again, Sent { duplicate: true, ..first });
}

#[tokio::test]
async fn a_repeated_call_that_looked_before_the_first_was_on_disk_looks_again() {
    let world = World::new(Bounds::default());
    let ann = user("ann");
    world.known(&ann, &device(PHONE)).await;
    let held = world.double.hold();
    let begun = world.double.commits_begun();
    let (sent, options) = own("order-1");
    let call = || calling(&world, &ann, &sent, options);
    let first = call();
    world.double.begun(begun + 1).await;
    // All the room there is: the repeated call gets its own once the first one's is given back, so behind its commit.
    let mut room = Vec::new();
    for size in (0..27).rev() {
        while let Some(permit) = world.hub.store().permit(1 << size).now_or_never() {
            room.push(permit.unwrap());
        }
    }
    let again = call();
    // Time enough for its look-up, which finds nothing: these go through the same readers, behind it.
    let found = looked_up(&world, &ann, &sent.id).await;
    assert_eq!(found, [false; 8], "its row is not on disk");
    drop(held);
    let (first, again) = (first.await.unwrap().unwrap(), again.await.unwrap().unwrap());
    assert_eq!(again, Sent { duplicate: true, ..first });
    assert_eq!(world.user(&ann).state().log.index.len(), 1);
}

/// Loses the engine when it is first woken.
struct Loses(Store, AtomicBool);

impl Wake for Loses {
    fn wake(self: Arc<Self>) {
        if !self.1.swap(true, Ordering::SeqCst) {
            self.0.lose_engine();
        }
    }
}

#[tokio::test]
async fn a_send_that_loses_the_engine_under_its_hands_can_be_repeated() {
    // A window of one, so that the second send wakes the session's task: in the middle of its staging.
    let world = World::new(Bounds { window: 1, ..Bounds::default() });
    let hub = world.hub.clone();
    tokio::spawn(async move { hub.run_recovery().await });
    let ann = user("ann");
    let client = world.attach(&ann, &device(PHONE)).await;
    world.offset(&ann, 10).await;
    world.all_applied(&ann).await;
    world.barrier().await;
    assert!(client.is_live());
    client.handle.register_task(&Waker::from(Arc::new(Loses(world.hub.store().clone(), AtomicBool::new(false)))));
    let (sent, options) = own("order-1");
    let first = world.hub.send(&ann, sent.clone(), options).await;
    assert!(matches!(first, Err(SendError::Unknown(_) | SendError::Store(_))), "{first:?}");
    until("he is read anew", || !world.hub.is_stale(&world.user(&ann).state().log)).await;
    let again = world.hub.send(&ann, sent, options).await.unwrap();
    assert!(!again.duplicate, "the first was never on disk");
    let waits = world.user(&ann).state().log.entry(again.offset.unwrap()).is_some();
    assert!(waits);
}

#[tokio::test]
async fn what_is_delivered_leaves_nothing_on_disk_however_long_its_ttl() {
    let world = World::new(Bounds::default());
    let ann = user("ann");
    let mut client = world.attach(&ann, &device(PHONE)).await;
    let mut before = 0;
    for minute in 0..50 {
        if minute == 1 {
            world.barrier().await;
            before = world.double.rows();
        }
        let expires_at = world.hub.clock().unix_millis().saturating_add(Duration::from_secs(60 * (minute + 10)));
        let sent = Notification { expires_at: Some(expires_at), ..notification(10) };
        world.hub.send(&ann, sent, plain(Wait::Stored)).await.unwrap();
        client.settle().await;
    }
    world.barrier().await;
    assert_eq!(client.offsets().len(), 50);
    assert_eq!(world.double.rows(), before, "rows are left");
}

#[tokio::test]
async fn a_device_whose_share_is_purged_gets_none_of_it_and_what_it_confirmed_stays_so() {
    let world = World::new(Bounds { window: 1, ..Bounds::default() });
    let ann = user("ann");
    world.known(&ann, &device("desk")).await;
    world.known(&ann, &device(PHONE)).await;
    let confirmed = world.offset(&ann, 10).await;
    world.all_applied(&ann).await;
    let mut client = world.attach(&ann, &device(PHONE)).await;
    client.settle().await;
    client.takes(Some(0));
    for _ in 0..5 {
        world.offset(&ann, 10).await;
    }
    world.all_applied(&ann).await;
    assert!(!client.is_live());
    let purge = Purge { device: Some(device(PHONE)), force: true };
    assert_eq!(world.hub.purge(&ann, &purge).await.unwrap(), 5);
    client.takes(None);
    client.settle().await;
    assert_eq!(client.offsets().len(), 2, "the one confirmed, and the one that was in its socket already");
    let confirmed_by_some = |offset| {
        let user = world.user(&ann);
        let state = user.state();
        state.log.index.iter().find(|entry| entry.offset.get() == offset).map(|entry| entry.confirmed)
    };
    assert_eq!(confirmed_by_some(confirmed), Some(true), "the desk lacks it, the phone has it");
    let last = world.user(&ann).state().log.last.get();
    assert_eq!(confirmed_by_some(last), Some(false), "nobody has it");
}
