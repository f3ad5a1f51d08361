//! Durable broadcasts: at once to who is there, on its next connection to each known device that was not.

use std::time::Duration;

use pushgate::api::proto::{BroadcastFilter, BroadcastRequest, DropReason, Notification, Outcome, event::Event};
use serde_json::json;
use tonic::Code;

use crate::support::{
    Gateway, Raw,
    rpc::{durable, notification, ttl},
    until,
};

/// Makes devices known, and has them leave.
async fn known(gateway: &Gateway, users: &[(&str, &str)]) {
    for (user, query) in users {
        gateway.client_with(user, query).await.close().await;
        gateway.sessions(user, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_known_gets_it_now_or_later_and_nobody_else() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    known(&gateway, &[("away", "device=phone"), ("excluded", ""), ("online", "device=tablet")]).await;
    let mut online = gateway.client_with("online", "device=phone").await;
    let mut left_out = gateway.client_with("excluded", "device=phone").await;
    let sent = rpc.try_broadcast(durable(notification("all"), &["excluded"])).await.unwrap();
    assert_eq!((sent.outcome(), sent.sessions, sent.duplicate), (Outcome::Stored, 1, false));
    let got = online.next().await;
    assert_eq!((&got["id"], &got["data"]), (&json!(sent.id), &json!("all")));
    left_out.nothing_more().await;

    let gateway = gateway.restart().await;
    let mut away = gateway.client_with("away", "device=phone").await;
    let got = away.next().await;
    assert_eq!((&got["id"], &got["data"], &got["replayed"]), (&json!(sent.id), &json!("all"), &json!(true)));
    away.nothing_more().await;
    let mut tablet = gateway.client_with("online", "device=tablet").await;
    assert_eq!(tablet.data(1).await, ["all"]);
    for (user, query) in [("excluded", ""), ("new", ""), ("away", "device=new")] {
        let mut client = gateway.client_with(user, query).await;
        client.nothing_more().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_device_has_a_cursor_of_its_own_in_the_broadcast_log() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    known(&gateway, &[("alice", "device=phone"), ("alice", "device=tablet")]).await;
    let mut events = rpc.events(&["notification_confirmed"], "alice").await;
    let mut offsets = Vec::new();
    for n in 0..3 {
        offsets.push(rpc.try_broadcast(durable(notification(n), &[])).await.unwrap().offset);
    }
    assert!(offsets.is_sorted() && offsets[0] > 0);
    let mut phone = gateway.client_with("alice", "device=phone").await;
    assert_eq!(phone.data(3).await, [0, 1, 2]);
    phone.settle().await;
    for offset in &offsets {
        let Event::NotificationConfirmed(confirmed) = events.body().await else { panic!() };
        assert_eq!((confirmed.broadcast, confirmed.offset, confirmed.device.as_str()), (true, *offset, "phone"));
    }
    phone.close().await;
    let pending = async |rpc: &mut crate::support::Rpc| {
        let devices = rpc.devices("alice").await;
        devices.into_iter().map(|device| device.pending_broadcasts).collect::<Vec<_>>()
    };
    assert_eq!(pending(&mut rpc).await, [0, 3]);
    let gateway = gateway.restart().await;
    assert_eq!(gateway.client_with("alice", "device=phone").await.hello["pending"], 0);
    let mut tablet = Raw::session(&gateway, "alice", "device=tablet").await;
    for n in 0..3 {
        assert_eq!(tablet.text().await["data"], n);
    }
    drop(tablet);
    gateway.sessions("alice", 0).await;
    assert_eq!(gateway.client_with("alice", "device=tablet").await.data(3).await, [0, 1, 2], "it confirmed nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_durable_broadcast_ends_with_its_ttl_or_its_collapse_key() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    known(&gateway, &[("alice", "")]).await;
    let mut events = rpc.events(&["notification_expired", "notification_dropped"], "").await;
    let short = Notification { ttl: ttl(60, 0), ..notification("short") };
    let short = rpc.try_broadcast(durable(short, &[])).await.unwrap();
    let keyed = |data: &str| Notification { collapse_key: "k".into(), ..notification(data) };
    let old = rpc.try_broadcast(durable(keyed("old"), &[])).await.unwrap();
    rpc.try_broadcast(durable(keyed("new"), &[])).await.unwrap();
    let Event::NotificationDropped(dropped) = events.body().await else { panic!() };
    assert_eq!((dropped.reason(), dropped.offset, dropped.user_id.as_str()), (DropReason::Superseded, old.offset, ""));
    gateway.later(Duration::from_secs(121));
    let Event::NotificationExpired(expired) = events.body().await else { panic!() };
    assert_eq!((expired.offset, expired.id, expired.user_id.as_str()), (short.offset, short.id, ""));
    let mut alice = gateway.client("alice").await;
    assert_eq!(alice.data(1).await, ["new"]);
    alice.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn live_sessions_get_durable_and_passing_ones_in_one_order() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut alice = gateway.client("alice").await;
    gateway.live("alice").await;
    for n in 0..20 {
        let request = BroadcastRequest { durable: n % 2 == 0, ..durable(notification(n), &[]) };
        assert_eq!(rpc.try_broadcast(request).await.unwrap().sessions, 1);
    }
    assert_eq!(alice.data(20).await, (0..20).map(serde_json::Value::from).collect::<Vec<_>>());
    alice.settle().await;
    until("what waits", 0, async || gateway.rpc().await.devices("alice").await[0].pending_broadcasts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passing_broadcast_can_leave_out_users_too() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let (mut alice, mut bob) = (gateway.client("alice").await, gateway.client("bob").await);
    let filter = Some(BroadcastFilter { exclude_user_ids: vec!["bob".into()], ..Default::default() });
    let request = BroadcastRequest { notification: Some(notification(1)), filter, durable: false };
    let sent = rpc.try_broadcast(request).await.unwrap();
    assert_eq!((sent.outcome(), sent.sessions, sent.offset), (Outcome::Accepted, 1, 0));
    assert_eq!(alice.data(1).await, [1]);
    bob.nothing_more().await;
    let too_large = rpc.try_broadcast(durable(notification("x".repeat(300_000)), &[])).await.unwrap_err();
    assert_eq!(too_large.code(), Code::InvalidArgument);
}
