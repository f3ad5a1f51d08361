//! A full disk under a hub at work: callers hear it, sessions stay, and afterwards everyone goes on from where he was,
//! whether or not what the failed commit carried is there.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{
    super::*,
    agrees_with_the_store,
    support::{Bounds, Client, World, device, notification, plain, until, user},
};
use crate::protocol::ack_mode::AckMode;

const PHONE: &str = "phone";

/// A world whose hub reads its users anew by itself.
fn world() -> World {
    let world = World::new(Bounds::default());
    let hub = world.hub.clone();
    tokio::spawn(async move { hub.run_recovery().await });
    world
}

/// Comes back when the store works again and all users in memory are as it has them.
async fn settled(world: &World) {
    let hub = &world.hub;
    let fresh = || hub.0.users.all().iter().all(|user| !user.is_loaded() || !hub.is_stale(&user.state().log));
    until("all are read anew", || !hub.store().is_recovering() && fresh()).await;
}

/// Fills the disk at the next commit, and sends; the call hears it. Returns the offset that it had.
async fn lost_at(world: &World, to: &UserId, openings: usize, keeps: bool) -> u64 {
    let generation = world.hub.store().generation();
    world.double.is_full_for(1, openings, keeps);
    let error = world.hub.send(to, notification(10), plain(Wait::Stored)).await.unwrap_err();
    assert!(matches!(error, SendError::Unknown(StoreError::Recovering(_))), "{error}");
    assert_eq!(world.hub.store().generation(), generation + 1);
    world.user(to).state().log.last.get()
}

async fn all_seen(client: &mut Client) -> Vec<u64> {
    client.settle().await;
    assert!(client.is_live() && client.closed.is_none());
    client.offsets()
}

#[tokio::test]
async fn after_a_full_disk_live_and_pulling_sessions_go_on_without_gap_or_repeat() {
    for keeps in [false, true] {
        let world = world();
        let ann = user("ann");
        world.known(&ann, &device("away")).await;
        let mut live = world.attach(&ann, &device("desk")).await;
        let mut sent = vec![world.offset(&ann, 10).await];
        world.all_applied(&ann).await;
        let mut pulling = world.attach(&ann, &device("away")).await;
        assert!(!pulling.is_live());
        // A page is on its way while the disk fills.
        assert!(pulling.begin_pull().await);

        let lost = lost_at(&world, &ann, 2, keeps).await;
        assert_eq!(world.hub.plan_pull(&pulling.handle), Pull::Wait, "what is there is not known");
        for _ in 0..2 {
            let refused = world.hub.send(&ann, notification(10), plain(Wait::Accepted)).await.unwrap_err();
            assert!(matches!(refused, SendError::Store(StoreError::Recovering(_))), "{refused}");
        }
        let unstored = crate::types::Notification { expires_at: Some(crate::types::UnixMillis(0)), ..notification(1) };
        assert_eq!(world.hub.send(&ann, unstored, plain(Wait::Stored)).await.unwrap().sessions, 2, "sessions stay");
        pulling.end_pull();
        settled(&world).await;
        assert!(!live.is_live() && !pulling.is_live(), "each looks at what is there");

        let after = world.hub.send(&ann, notification(10), plain(Wait::Stored)).await.unwrap().offset.unwrap().get();
        assert!(after > lost);
        // The live one had it handed before the commit failed.
        let (mut had, mut pulled) = (sent.clone(), sent.clone());
        had.extend([lost, 0, after]);
        pulled.insert(0, 0);
        if keeps {
            sent.push(lost);
            pulled.push(lost);
        }
        sent.push(after);
        pulled.push(after);
        assert_eq!(all_seen(&mut live).await, had, "each once, in order");
        assert_eq!(all_seen(&mut pulling).await, pulled);
        let mut newcomer = world.attach(&ann, &device("away")).await;
        assert_eq!((newcomer.pending, all_seen(&mut newcomer).await.len()), (0, 0), "all was confirmed");
        for client in [live, pulling, newcomer] {
            client.detach();
        }
        assert_eq!(world.user(&ann).state().log.index.len(), 0);
        agrees_with_the_store(&world, &ann).await;
    }
}

#[tokio::test]
async fn what_was_acknowledged_before_is_there_after_and_nothing_else_is_missing() {
    for keeps in [false, true] {
        let world = world();
        let (ann, bob) = (user("ann"), user("bob"));
        let mut stored = Vec::new();
        for _ in 0..3 {
            let sent = world.hub.send(&ann, notification(3000), plain(Wait::Stored)).await.unwrap();
            stored.push(sent.offset.unwrap().get());
        }
        world.hub.send(&bob, notification(1), plain(Wait::Stored)).await.unwrap();
        // What gathers behind the commit that fails is not written either.
        let held = world.double.hold();
        let begun = world.double.commits_begun();
        let hub = world.hub.clone();
        let send = move |to: &UserId| {
            let (hub, to) = (hub.clone(), to.clone());
            tokio::spawn(async move { hub.send(&to, notification(10), plain(Wait::Stored)).await })
        };
        let mut calls = vec![send(&ann)];
        world.double.begun(begun + 1).await;
        calls.extend([send(&bob), send(&ann)]);
        until("all are staged", || {
            world.user(&ann).state().log.index.len() + world.user(&bob).state().log.index.len() == 7
        })
        .await;
        let lost: Vec<u64> = world.user(&ann).state().log.index.iter().map(|entry| entry.offset.get()).collect();
        world.double.is_full_for(1, 1, keeps);
        drop(held);
        for call in calls {
            assert!(matches!(call.await.unwrap(), Err(SendError::Unknown(StoreError::Recovering(_)))));
        }
        settled(&world).await;
        if keeps {
            stored.push(lost[3]);
        }
        let mut client = world.attach(&ann, &device(PHONE)).await;
        assert_eq!(client.pending as usize, stored.len());
        assert_eq!(all_seen(&mut client).await, stored);
        assert_eq!(world.attach(&bob, &device(PHONE)).await.pending, 1);
        assert_eq!(world.hub.metrics().failures(Failure::DiskFull), 1);
    }
}

#[tokio::test]
async fn what_is_confirmed_while_the_disk_is_full_does_not_come_again() {
    for keeps in [false, true] {
        for stays in [false, true] {
            let world = world();
            let ann = user("ann");
            let mut client = world.attaching(&ann, &device(PHONE), AckMode::Client).await.unwrap();
            let sent = [world.offset(&ann, 10).await, world.offset(&ann, 10).await];
            world.all_applied(&ann).await;
            assert_eq!(client.offsets(), sent);
            let lost = lost_at(&world, &user("bob"), usize::MAX, keeps).await;
            assert!(lost > sent[1] && client.ack());
            let cursor = || world.user(&ann).state().device(&device(PHONE)).unwrap().row.cursor.get();
            assert_eq!(cursor(), sent[1], "in memory it moves at once");
            if !stays {
                client.detach();
            }
            world.double.is_full_for(0, 0, false);
            settled(&world).await;
            assert_eq!((cursor(), world.user(&ann).state().log.index.len()), (sent[1], 0));
            if stays {
                assert_eq!(all_seen(&mut client).await, sent, "nothing is repeated");
                client.detach();
            }
            agrees_with_the_store(&world, &ann).await;
        }
    }
}

#[tokio::test]
async fn a_device_that_comes_while_the_disk_is_full_is_refused_and_then_known_if_it_is_on_disk() {
    for keeps in [false, true] {
        let world = world();
        let ann = user("ann");
        world.known(&ann, &device("desk")).await;
        let first = world.offset(&ann, 10).await;
        world.all_applied(&ann).await;
        world.double.is_full_for(1, 1, keeps);
        let refused = world.attaching(&ann, &device(PHONE), AckMode::Client).await.map(drop);
        assert!(matches!(refused, Err(AttachError::Store(StoreError::Recovering(_)))));
        settled(&world).await;
        let known = |name: &str| world.user(&ann).state().device(&device(name)).map(|known| known.durable);
        assert_eq!((known("desk"), known(PHONE)), (Some(true), keeps.then_some(true)));
        let second = world.offset(&ann, 10).await;
        world.all_applied(&ann).await;
        // It begins at the present: that of its first coming where that is on disk.
        let mut phone = world.attach(&ann, &device(PHONE)).await;
        assert_eq!(all_seen(&mut phone).await, if keeps { vec![second] } else { vec![] });
        let mut desk = world.attach(&ann, &device("desk")).await;
        assert_eq!(all_seen(&mut desk).await, [first, second]);
        phone.detach();
        desk.detach();
        agrees_with_the_store(&world, &ann).await;
    }
}

#[tokio::test]
async fn a_session_that_would_open_while_the_disk_is_full_is_refused_until_it_has_room() {
    let world = world();
    let ann = user("ann");
    world.known(&ann, &device(PHONE)).await;
    let sent = world.offset(&ann, 10).await;
    world.all_applied(&ann).await;
    lost_at(&world, &user("bob"), usize::MAX, false).await;
    // He is in memory, and his device is on disk: but what else is there is not known.
    let refused = world.attaching(&ann, &device(PHONE), AckMode::Transport).await.map(drop);
    assert!(matches!(refused, Err(AttachError::Store(StoreError::Recovering(_)))));
    world.double.is_full_for(0, 0, false);
    settled(&world).await;
    let mut client = world.attach(&ann, &device(PHONE)).await;
    assert_eq!(all_seen(&mut client).await, [sent]);
}

#[tokio::test]
async fn a_device_that_memory_has_and_the_disk_lost_is_written_again() {
    let world = world();
    let ann = user("ann");
    let mut client = world.attach(&ann, &device(PHONE)).await;
    let sent = world.offset(&ann, 10).await;
    world.all_applied(&ann).await;
    client.settle().await;
    world.barrier().await;
    world.double.lose_device(&ann, &device(PHONE));
    lost_at(&world, &user("bob"), 0, false).await;
    settled(&world).await;
    assert_eq!(all_seen(&mut client).await, [sent]);
    client.detach();
    agrees_with_the_store(&world, &ann).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senders_and_takers_at_work_lose_nothing_acknowledged_however_often_the_disk_fills() {
    // The store waits longer each time.
    const FULL: usize = 6;
    let world = world();
    let ann = user("ann");
    let clients = [world.attach(&ann, &device(PHONE)).await, world.attach(&ann, &device("desk")).await];
    let over = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> = (0..3)
        .map(|n| {
            let (hub, ann, over) = (world.hub.clone(), ann.clone(), Arc::clone(&over));
            tokio::spawn(async move {
                let (mut stored, mut failed) = (Vec::new(), 0);
                while !over.load(Ordering::SeqCst) {
                    match hub.send(&ann, notification(n * 40), plain(Wait::Stored)).await {
                        Ok(sent) => stored.push(sent.offset.unwrap().get()),
                        Err(
                            SendError::Unknown(StoreError::Recovering(_)) | SendError::Store(StoreError::Recovering(_)),
                        ) => {
                            failed += 1;
                            tokio::task::yield_now().await;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                assert!(stored.is_sorted());
                (stored, failed)
            })
        })
        .collect();
    let takers = clients.map(|mut client| {
        let over = Arc::clone(&over);
        tokio::spawn(async move {
            while !over.load(Ordering::SeqCst) {
                client.try_settle().await;
                tokio::task::yield_now().await;
            }
            client
        })
    });
    for round in 0..FULL {
        let generation = world.hub.store().generation();
        world.double.is_full_for(1, 0, round % 2 == 0);
        until("it was full", || world.hub.store().generation() > generation).await;
        settled(&world).await;
        let begun = world.double.commits_begun();
        world.double.begun(begun + 5).await;
    }
    over.store(true, Ordering::SeqCst);
    let (mut stored, mut failed) = (Vec::new(), 0);
    for sender in senders {
        let (offsets, failures) = sender.await.unwrap();
        stored.extend(offsets);
        failed += failures;
    }
    stored.sort_unstable();
    assert!(stored.windows(2).all(|pair| pair[0] < pair[1]), "an offset was given twice");
    for taker in takers {
        let mut client = taker.await.unwrap();
        let seen = all_seen(&mut client).await;
        assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "out of order, or twice in a session");
        assert!(stored.iter().all(|offset| seen.binary_search(offset).is_ok()), "something acknowledged is missing");
        client.detach();
    }
    assert!(failed >= FULL && !stored.is_empty());
    println!("{FULL} times full, {} stored, {failed} calls failed", stored.len());
    agrees_with_the_store(&world, &ann).await;
}
