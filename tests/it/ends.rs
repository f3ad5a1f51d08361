//! How notifications end other than by confirmation, and what is left of a mailbox that is full.

use std::time::Duration;

use pushgate::api::proto::{DropReason, Notification, event::Event};
use serde_json::json;

use crate::support::{
    Gateway, Raw,
    rpc::{durable, notification, ttl},
    until,
};

fn keyed(key: &str, data: i32) -> Notification {
    Notification { collapse_key: key.into(), ..notification(data) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_one_replaces_the_waiting_one_of_its_key() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&["notification_dropped"], "alice").await;
    let old = rpc.send_to("alice", keyed("a", 1)).await;
    rpc.send_to("alice", keyed("b", 2)).await;
    rpc.send("alice", 3).await;
    let new = rpc.send_to("alice", keyed("a", 4)).await;
    assert!(new.offset > old.offset);
    let Event::NotificationDropped(dropped) = events.body().await else { panic!() };
    assert_eq!((dropped.reason(), dropped.offset, dropped.id), (DropReason::Superseded, old.offset, old.id));
    rpc.send_to("bob", keyed("a", 5)).await;
    assert_eq!(gateway.pending().await, 4);
    let gateway = gateway.restart().await;
    let mut client = gateway.client("alice").await;
    assert_eq!(client.data(3).await, [2, 3, 4], "the new one has its place at the end");
    client.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_had_the_old_one_gets_the_new_one_too() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut phone = gateway.client_with("alice", "device=phone").await;
    gateway.client_with("alice", "device=tablet").await.close().await;
    gateway.live("alice").await;
    rpc.send_to("alice", keyed("a", 1)).await;
    assert_eq!(phone.data(1).await, [1]);
    phone.settle().await;
    phone.close().await;
    rpc.send_to("alice", keyed("a", 2)).await;
    assert_eq!(gateway.pending().await, 1);
    assert_eq!(gateway.client_with("alice", "device=phone").await.data(1).await, [2]);
    assert_eq!(gateway.client_with("alice", "device=tablet").await.data(1).await, [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_mailbox_that_drops_the_oldest_tells_of_the_gap() {
    let changes = [("store.max_pending_per_user", "3"), ("store.overflow", "drop-oldest")];
    let gateway = Gateway::with(&changes).await;
    let mut rpc = gateway.rpc().await;
    gateway.client_with("alice", "device=phone").await.close().await;
    gateway.sessions("alice", 0).await;
    let mut events = rpc.events(&["notification_dropped"], "alice").await;
    for n in 0..5 {
        rpc.send("alice", n).await;
    }
    for _ in 0..2 {
        let Event::NotificationDropped(dropped) = events.body().await else { panic!() };
        assert_eq!((dropped.reason(), dropped.device), (DropReason::Overflow, None));
    }
    assert_eq!((rpc.errors("overflow_lost").await, rpc.errors("quota_exceeded").await), (2, 0));
    let gateway = gateway.restart().await;
    let mut phone = gateway.client_with("alice", "device=phone").await;
    assert_eq!((&phone.hello["pending"], &phone.hello["gap"]), (&json!(3), &json!(true)));
    assert_eq!(phone.data(3).await, [2, 3, 4]);
    phone.settle().await;
    phone.close().await;
    gateway.sessions("alice", 0).await;
    assert_eq!(gateway.client_with("alice", "device=phone").await.hello["gap"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_never_acks_is_given_up_after_so_many_attempts() {
    let gateway = Gateway::with(&[("delivery.max_attempts", "2")]).await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&["notification_dropped", "session_closed"], "alice").await;
    let poison = rpc.send("alice", "poison").await;
    rpc.send("alice", "good").await;
    for attempt in 1..=2 {
        let mut phone = gateway.client_with("alice", "device=phone&ackMode=client").await;
        assert_eq!(phone.data(2).await, ["poison", "good"], "{attempt}");
        // It is alive after it was given that.
        phone.nothing_more().await;
        phone.close().await;
        if attempt == 2 {
            let Event::NotificationDropped(dropped) = events.body().await else { panic!() };
            assert_eq!((dropped.reason(), dropped.offset), (DropReason::MaxAttempts, poison.offset));
            assert_eq!(dropped.device.as_deref(), Some("phone"));
        }
        assert!(matches!(events.body().await, Event::SessionClosed(_)));
    }
    assert_eq!(rpc.errors("max_attempts").await, 1);
    let mut phone = gateway.client_with("alice", "device=phone&ackMode=client").await;
    assert_eq!(phone.hello["gap"], true);
    assert_eq!(phone.data(1).await, ["good"], "the next one gets its chance");
    phone.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_that_is_given_up_tells_for_whom() {
    let gateway = Gateway::with(&[("delivery.max_attempts", "1")]).await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&["notification_dropped"], "alice").await;
    let mut phone = gateway.client_with("alice", "device=phone&ackMode=client").await;
    gateway.live("alice").await;
    let sent = rpc.try_broadcast(durable(notification("poison"), &[])).await.unwrap();
    assert_eq!(phone.data(1).await, ["poison"]);
    phone.nothing_more().await;
    phone.close().await;
    let Event::NotificationDropped(dropped) = events.body().await else { panic!() };
    assert_eq!((dropped.reason(), dropped.broadcast, dropped.offset), (DropReason::MaxAttempts, true, sent.offset));
    assert_eq!((dropped.user_id.as_str(), dropped.device.as_deref()), ("alice", Some("phone")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expires_is_told_and_counted() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&["notification_expired"], "").await;
    let sent = rpc.send_to("alice", Notification { ttl: ttl(60, 0), ..notification(1) }).await;
    // The sweep looks for what expired by the start of a minute.
    gateway.later(Duration::from_secs(121));
    let Event::NotificationExpired(expired) = events.body().await else { panic!() };
    assert_eq!((expired.user_id.as_str(), expired.offset, expired.id), ("alice", sent.offset, sent.id));
    assert_eq!(rpc.errors("expired").await, 1);
    until("what is pending", 0, || gateway.pending()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_session_of_a_device_gets_what_is_new_and_one_confirms_for_all() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut one = gateway.client_with("alice", "device=phone").await;
    let mut two = Raw::session(&gateway, "alice", "device=phone").await;
    gateway.live("alice").await;
    assert_eq!(rpc.send_to("alice", keyed("a", 1)).await.sessions, 2);
    assert_eq!(rpc.send_to("alice", keyed("a", 2)).await.sessions, 2);
    assert_eq!(one.data(2).await, [1, 2], "what a live session was handed is not taken back");
    assert_eq!((two.text().await["data"].clone(), two.text().await["data"].clone()), (json!(1), json!(2)));
    one.settle().await;
    until("what is pending", 0, || gateway.pending()).await;
    assert_eq!(rpc.devices("alice").await.len(), 1);
}
