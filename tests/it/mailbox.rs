//! Mailboxes and devices as callers see and clear them.

use std::time::Duration;

use pushgate::api::proto::{
    ClosedBy, DropReason, ForgetReason, ListPendingRequest, Notification, PurgePendingRequest, event::Event,
};
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::{
    Gateway, Raw,
    rpc::{durable, notification, own, ttl},
    until,
};

fn of(user: &str) -> ListPendingRequest {
    ListPendingRequest { user_id: user.to_owned(), ..Default::default() }
}

fn purge(device: Option<&str>, force: bool) -> PurgePendingRequest {
    PurgePendingRequest { user_id: "alice".into(), device: device.map(str::to_owned), force }
}

/// Makes a device known, and has it leave.
async fn known(gateway: &Gateway, user: &str, device: &str) {
    gateway.client_with(user, &format!("device={device}")).await.close().await;
    gateway.sessions(user, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_listed_in_pages_in_the_order_of_the_log() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut sent = Vec::new();
    for n in 0..7 {
        sent.push(rpc.send("alice", n).await.offset);
    }
    rpc.send("bob", "not his").await;
    for page_size in [1, 2, 3, 7, 0, 1_000_000] {
        let mut request = ListPendingRequest { page_size, ..of("alice") };
        let mut listed = Vec::new();
        loop {
            let page = rpc.pending(request.clone()).await.unwrap();
            assert!(page_size == 0 || page.notifications.len() <= page_size as usize);
            listed.extend(page.notifications.into_iter().map(|one| one.offset));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        assert_eq!(listed, sent, "{page_size}");
    }
    assert_eq!(rpc.pending(of("nobody")).await.unwrap().notifications.len(), 0);

    let token = rpc.pending(ListPendingRequest { page_size: 1, ..of("alice") }).await.unwrap().next_page_token;
    known(&gateway, "alice", "phone").await;
    let others = [of("bob"), ListPendingRequest { device: Some("phone".into()), ..of("alice") }];
    for other in others {
        let refused = rpc.pending(ListPendingRequest { page_token: token.clone(), ..other }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with("page_token: "), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_tells_what_waits_for_whom_and_until_when() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let full = Notification {
        r#type: "order".into(),
        collapse_key: "k".into(),
        ttl: ttl(60, 0),
        from_user_id: "bob".into(),
        ..own("a", "x")
    };
    let sent = rpc.send_to("alice", full).await;
    let rows = rpc.pending(of("alice")).await.unwrap().notifications;
    let row = &rows[0];
    assert_eq!((row.id.as_str(), row.offset, row.r#type.as_str()), ("a", sent.offset, "order"));
    assert_eq!((row.bytes, row.collapse_key.as_str()), (3 + 1 + 5 + 3 + 1 + 64, "k"));
    let (created, expires) = (row.created_at.unwrap(), row.expires_at.unwrap());
    assert_eq!((expires.seconds - created.seconds, expires.nanos), (60, created.nanos));
    assert!(row.waiting_devices.is_empty(), "it waits for a first device");

    // The first device takes it, further ones do not; the unnamed one has an empty name.
    let mut silent = Raw::session(&gateway, "alice", "").await;
    assert_eq!(silent.text().await["id"], "a");
    known(&gateway, "bob", "phone").await;
    let tablet = gateway.client_with("alice", "device=tablet").await;
    tablet.close().await;
    rpc.send("alice", 2).await;
    let rows = rpc.pending(of("alice")).await.unwrap().notifications;
    let waiting = |at: usize| {
        let mut devices = rows[at].waiting_devices.clone();
        devices.sort();
        devices
    };
    assert_eq!((waiting(0), waiting(1)), (vec![String::new()], vec![String::new(), "tablet".to_owned()]));
    let for_tablet = rpc.pending(ListPendingRequest { device: Some("tablet".into()), ..of("alice") }).await.unwrap();
    assert_eq!(for_tablet.notifications.len(), 1);
    let unknown = ListPendingRequest { device: Some("watch".into()), ..of("alice") };
    let refused = rpc.pending(unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert_eq!(refused.get_error_details().error_info().unwrap().reason, "DEVICE_UNKNOWN");
    assert_eq!(rpc.errors("not_found").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailbox_is_cleared_only_with_force() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&["notification_dropped"], "alice").await;
    for n in 0..3 {
        rpc.send("alice", n).await;
    }
    rpc.send("bob", "not his").await;
    assert_eq!(rpc.purge(purge(None, false)).await.unwrap(), 3);
    assert_eq!(gateway.pending().await, 4, "that only counted");
    assert_eq!(rpc.purge(purge(None, true)).await.unwrap(), 3);
    assert_eq!((gateway.pending().await, rpc.pending(of("alice")).await.unwrap().notifications.len()), (1, 0));
    for _ in 0..3 {
        let Event::NotificationDropped(dropped) = events.body().await else { panic!() };
        assert_eq!((dropped.reason(), dropped.device.as_deref()), (DropReason::Purged, None));
    }
    assert_eq!(rpc.purge(purge(None, true)).await.unwrap(), 0);

    let gateway = gateway.restart().await;
    let mut rpc = gateway.rpc().await;
    assert_eq!(rpc.pending(of("alice")).await.unwrap().notifications.len(), 0, "for good");
    rpc.send("alice", "after").await;
    assert_eq!(gateway.client("alice").await.data(1).await, ["after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_one_device_is_cleared_for_that_one_alone() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    known(&gateway, "alice", "phone").await;
    known(&gateway, "alice", "tablet").await;
    let mut events = rpc.events(&["notification_dropped"], "alice").await;
    let sent = rpc.send("alice", 1).await;
    assert_eq!(rpc.purge(purge(Some("phone"), false)).await.unwrap(), 1);
    assert_eq!(rpc.purge(purge(Some("phone"), true)).await.unwrap(), 1);
    let Event::NotificationDropped(dropped) = events.body().await else { panic!() };
    assert_eq!(
        (dropped.reason(), dropped.device.as_deref(), &dropped.id),
        (DropReason::Purged, Some("phone"), &sent.id)
    );
    assert_eq!(rpc.purge(purge(Some("phone"), true)).await.unwrap(), 0);
    let phone = gateway.client_with("alice", "device=phone").await;
    assert_eq!((&phone.hello["pending"], &phone.hello["gap"]), (&json!(0), &json!(true)));
    assert_eq!(gateway.client_with("alice", "device=tablet").await.data(1).await, [1]);
    assert_eq!(rpc.purge(purge(Some("watch"), true)).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_listed_with_what_waits_for_them() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    assert_eq!(rpc.devices("alice").await, []);
    known(&gateway, "alice", "tablet").await;
    let mut one = gateway.client_with("alice", "device=phone").await;
    let _two = gateway.client_with("alice", "device=phone").await;
    gateway.live("alice").await;
    let sent = rpc.send("alice", 1).await;
    let all = rpc.try_broadcast(durable(notification("all"), &[])).await.unwrap();
    one.data(2).await;
    one.settle().await;
    let ask = || {
        let mut rpc = rpc.clone();
        async move {
            let devices = rpc.devices("alice").await;
            let row = |at: usize| {
                let device: &pushgate::api::proto::Device = &devices[at];
                (device.device.clone(), device.sessions, device.pending, device.pending_broadcasts)
            };
            (row(0), row(1))
        }
    };
    until("the devices", (("phone".to_owned(), 2, 0, 0), ("tablet".to_owned(), 0, 1, 1)), ask).await;
    let devices = rpc.devices("alice").await;
    assert_eq!((devices[0].cursor, devices[0].broadcast_cursor), (sent.offset, all.offset));
    assert!(devices[1].cursor < sent.offset && devices[1].broadcast_cursor < all.offset);
    assert!(devices.iter().all(|device| device.created_at.is_some() && device.last_seen.is_some() && !device.gap));
    assert_eq!(rpc.purge(purge(Some("tablet"), true)).await.unwrap(), 1);
    let tablet = &rpc.devices("alice").await[1];
    assert_eq!((tablet.pending, tablet.gap), (0, true), "it lost something and was not told yet");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_device_is_closed_and_new_when_it_returns() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    known(&gateway, "alice", "tablet").await;
    let mut phone = gateway.client_with("alice", "device=phone").await;
    let mut events = rpc.events(&["device_forgotten", "session_closed", "notification_dropped"], "alice").await;
    for bad in [None, Some("a b")] {
        assert_eq!(rpc.forget_device("alice", bad).await.unwrap_err().code(), Code::InvalidArgument);
    }
    for (user, device) in [("alice", "watch"), ("nobody", "phone"), ("alice", "")] {
        assert_eq!(rpc.forget_device(user, Some(device)).await.unwrap_err().code(), Code::NotFound);
    }
    rpc.forget_device("alice", Some("phone")).await.unwrap();
    assert_eq!(phone.closed().await, (1000, "device forgotten".to_owned()));
    let Event::DeviceForgotten(forgotten) = events.body().await else { panic!() };
    assert_eq!((forgotten.device.as_str(), forgotten.reason()), ("phone", ForgetReason::Caller));
    let Event::SessionClosed(closed) = events.body().await else { panic!() };
    assert_eq!((closed.code, closed.closed_by()), (1000, ClosedBy::Caller));
    assert_eq!(rpc.devices("alice").await.len(), 1);
    rpc.send("alice", "meanwhile").await;

    let gateway = gateway.restart().await;
    let mut rpc = gateway.rpc().await;
    let mut phone = gateway.client_with("alice", "device=phone").await;
    assert_eq!((&phone.hello["pending"], &phone.hello["gap"]), (&json!(0), &json!(true)), "it is new, and told");
    gateway.live("alice").await;
    rpc.send("alice", "since").await;
    assert_eq!(phone.data(1).await, ["since"]);
    phone.settle().await;
    phone.close().await;
    gateway.sessions("alice", 0).await;
    let again = gateway.client_with("alice", "device=phone").await;
    assert_eq!(again.hello["gap"], false, "until it has confirmed something since");
    // What only a forgotten device lacked waits for nobody.
    let mut events = rpc.events(&["notification_dropped"], "alice").await;
    rpc.forget_device("alice", Some("tablet")).await.unwrap();
    let Event::NotificationDropped(dropped) = events.body().await else { panic!() };
    assert_eq!(dropped.reason(), DropReason::DeviceForgotten);
    until("what is pending", 0, || gateway.pending()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_stays_away_is_forgotten_by_itself() {
    let gateway = Gateway::with(&[("store.device_ttl", "1d")]).await;
    let mut rpc = gateway.rpc().await;
    known(&gateway, "alice", "phone").await;
    let mut events = rpc.events(&["device_forgotten"], "alice").await;
    gateway.later(Duration::from_secs(24 * 3600 + 60));
    assert_eq!(rpc.devices("alice").await, []);
    let Event::DeviceForgotten(forgotten) = events.body().await else { panic!() };
    assert_eq!((forgotten.device.as_str(), forgotten.reason()), ("phone", ForgetReason::Unseen));
    let phone = gateway.client_with("alice", "device=phone").await;
    assert_eq!(phone.hello["gap"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_user_leaves_nothing() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    known(&gateway, "alice", "tablet").await;
    let mut silent = Raw::session(&gateway, "alice", "device=phone").await;
    gateway.live("alice").await;
    rpc.send_to("alice", own("a", 1)).await;
    rpc.send("bob", "stays").await;
    let mut events = rpc.events(&["notification_dropped", "device_forgotten"], "alice").await;
    assert_eq!(rpc.forget_user("alice").await, (1, 2));
    assert_eq!(silent.close_frame().await.close_code(), Some(1000));
    let Event::NotificationDropped(dropped) = events.body().await else { panic!() };
    assert_eq!(dropped.reason(), DropReason::UserForgotten);
    for _ in 0..2 {
        assert!(matches!(events.body().await, Event::DeviceForgotten(_)));
    }
    drop(silent);
    gateway.sessions("alice", 0).await;
    assert_eq!((gateway.pending().await, rpc.devices("alice").await), (1, vec![]));
    assert_eq!(rpc.forget_user("alice").await, (0, 0), "a user that is not known is no error");

    let gateway = gateway.restart().await;
    let mut rpc = gateway.rpc().await;
    assert_eq!((gateway.pending().await, rpc.devices("alice").await), (1, vec![]));
    assert!(!rpc.send_to("alice", own("a", "other")).await.duplicate, "his ids are free again");
    let mut tablet = gateway.client_with("alice", "device=tablet").await;
    assert_eq!(tablet.hello["gap"], false, "nothing is known of him, not even that");
    assert_eq!(tablet.data(1).await, ["other"], "a first device takes all that waits");
}
