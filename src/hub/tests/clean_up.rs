//! A clean-up does at once, and says so, what the clockwork would do in its time. Nothing of that runs here.

use std::time::Duration;

use super::{
    support::{World, device, notification, plain, user},
    *,
};
use crate::types::Notification;

fn for_a_while(seconds: u64) -> Notification {
    let notification = notification(10);
    Notification {
        expires_at: Some(notification.accepted_at.saturating_add(Duration::from_secs(seconds))),
        ..notification
    }
}

#[tokio::test]
async fn what_has_expired_goes_and_is_counted() {
    let world = World::new(Bounds::default());
    let (hub, ann, ben) = (&world.hub, user("ann"), user("ben"));
    for who in [&ann, &ben] {
        for seconds in [20, 90, 3000] {
            hub.send(who, for_a_while(seconds), plain(Wait::Stored)).await.unwrap();
        }
    }
    world.known(&ann, &device(PHONE)).await;
    hub.broadcast_durably(for_a_while(20), false).await.unwrap();
    assert_eq!(hub.clean_up().await.unwrap(), CleanedUp { closed: 0, expired: 0 });

    // Within the minute that they expire in, so that no bucket is due yet; then past it.
    hub.clock().set_skew_micros(30_000_000);
    assert_eq!(hub.clean_up().await.unwrap(), CleanedUp { closed: 0, expired: 3 });
    assert_eq!(hub.clean_up().await.unwrap(), CleanedUp { closed: 0, expired: 0 });
    hub.clock().set_skew_micros(200_000_000);
    assert_eq!(hub.clean_up().await.unwrap(), CleanedUp { closed: 0, expired: 2 });
    assert_eq!(hub.metrics().failures(Failure::Expired), 5);
    world.barrier().await;
    assert_eq!(hub.store().totals().count, 2);
}

#[tokio::test]
async fn a_session_whose_heartbeat_failed_is_closed() {
    let world = World::new(Bounds::default());
    let (hub, ann) = (&world.hub, user("ann"));
    let silent = world.attach(&ann, &device(PHONE)).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    let lively = world.attach(&ann, &device("tablet")).await;
    assert_eq!(hub.clean_up().await.unwrap().closed, 0, "it is asked first");
    tokio::time::advance(Duration::from_secs(11)).await;
    assert_eq!(hub.clean_up().await.unwrap().closed, 1);
    assert!(silent.handle.is_closing() && !lively.handle.is_closing());
    assert_eq!(hub.clean_up().await.unwrap().closed, 0, "it is closing already");
    assert_eq!(hub.metrics().failures(Failure::HeartbeatTimeout), 1);
}

#[tokio::test]
async fn a_store_that_fails_meanwhile_is_said() {
    let world = World::new(Bounds::default());
    let (hub, ann) = (&world.hub, user("ann"));
    let expired = async |minutes: i64| {
        hub.send(&ann, for_a_while(20), plain(Wait::Stored)).await.unwrap();
        hub.clock().set_skew_micros(minutes * 60_000_000);
    };
    expired(5).await;
    world.double.is_full_for(1, 0, false);
    assert!(matches!(hub.clean_up().await, Err(StoreError::Recovering(_))));
    until("the store works again", || hub.store().health().is_ok()).await;
    assert_eq!(hub.clean_up().await.map(|cleaned| cleaned.closed), Ok(0));

    expired(10).await;
    world.double.fails.store(true, Ordering::SeqCst);
    assert!(matches!(hub.clean_up().await, Err(StoreError::Failed(_))));
    assert!(matches!(hub.clean_up().await, Err(StoreError::Failed(_))), "and nothing is begun any more");
}
