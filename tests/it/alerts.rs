//! Alerts: each one is made to fire and to clear for real, with low thresholds.
//!
//! With both spans at zero an alert fires with the first look that finds too much, and clears with the first that does
//! not: looks are a second apart, and so are the windows of rates and percentiles.

use pushgate::{
    api::proto::{Alert, AlertState, Notification, PurgePendingRequest, SendToSessionRequest, event::Event as Body},
    types::{AlertName, EventBody, UserId},
};
use serde_json::json;

use crate::support::{
    Gateway, Http, Rpc, child,
    child::Daemon,
    rpc::{Events, confirmed, notification, request, ttl},
    soon, until,
};

/// A gateway on which nothing but this alert can happen, and that at once.
async fn watching(name: &str, threshold: &str, more: &[(&str, &str)]) -> (Gateway, Rpc, Events) {
    let key = format!("alerts.{name}");
    let mut changes = vec![("alerts.fire_after", "0s"), ("alerts.clear_after", "0s")];
    for off in AlertName::ALL.iter().map(|name| name.as_str()).filter(|other| *other != name) {
        let zero = match off {
            "error_rate" | "pending_count" | "certificate_reload" => "0",
            "confirm_p99" | "reply_p99" | "certificate_expiry" => "0s",
            "disk_free" => "0B",
            _ => "0%",
        };
        changes.push((Box::leak(format!("alerts.{off}").into_boxed_str()), zero));
    }
    changes.push((&key, threshold));
    changes.extend(more);
    let gateway = Gateway::with(&changes).await;
    let mut rpc = gateway.rpc().await;
    let events = rpc.events(&["alert"], "").await;
    (gateway, rpc, events)
}

async fn alert(events: &mut Events) -> Alert {
    match events.body().await {
        Body::Alert(alert) => alert,
        other => panic!("{other:?}"),
    }
}

/// Whether it fires and how often it began to, as `/metrics` says it.
async fn gauges(gateway: &Gateway, name: AlertName) -> (f64, f64) {
    let text = Http::new(gateway.ops).get("/metrics").await.body;
    let sample = |family: &str| {
        let start = format!("pushgate_{family}{{alert=\"{}\"}} ", name.as_str());
        text.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse::<f64>().unwrap()
    };
    (sample("alert_firing"), sample("alerts_total"))
}

/// The next event says that it fires; so do the status page and the gauge.
async fn fires(gateway: &Gateway, events: &mut Events, name: AlertName) -> Alert {
    let alert = alert(events).await;
    assert_eq!((alert.name.as_str(), alert.state()), (name.as_str(), AlertState::Firing), "{alert:?}");
    assert!(alert.since.is_some() && !alert.text.is_empty(), "{alert:?}");
    assert_eq!(gauges(gateway, name).await, (1.0, 1.0));
    let shown = gateway.rpc().await.status().await.alerts;
    assert_eq!(shown.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), [name.as_str()]);
    assert_eq!((shown[0].since, shown[0].threshold), (alert.since, alert.threshold));
    alert
}

/// The next event says that it is over; the status page is empty.
async fn clears(gateway: &Gateway, events: &mut Events, fired: &Alert) -> Alert {
    let alert = alert(events).await;
    assert_eq!((&alert.name, alert.state()), (&fired.name, AlertState::Cleared), "{alert:?}");
    assert_eq!(alert.since, fired.since);
    assert_eq!(gateway.rpc().await.status().await.alerts, []);
    let name = AlertName::ALL.iter().find(|name| name.as_str() == alert.name).unwrap();
    assert_eq!(gauges(gateway, *name).await, (0.0, 1.0));
    alert
}

#[tokio::test(flavor = "multi_thread")]
async fn connections() {
    // Half of four: two fire nothing, three do; two are not below 80 % of two.
    let (gateway, _, mut events) = watching("connections", "50%", &[("limits.connections", "4")]).await;
    let (one, two) = (gateway.client("alice").await, gateway.client("bob").await);
    let three = gateway.client("carol").await;
    let fired = fires(&gateway, &mut events, AlertName::Connections).await;
    assert_eq!((fired.value, fired.threshold, &*fired.text), (3.0, 2.0, "3 connections, above 2"));
    three.close().await;
    two.close().await;
    let cleared = clears(&gateway, &mut events, &fired).await;
    assert_eq!((cleared.value, cleared.threshold, &*cleared.text), (1.0, 2.0, "1 connections, below 2"));
    drop(one);
}

#[tokio::test(flavor = "multi_thread")]
async fn error_rate() {
    let (gateway, mut rpc, mut events) = watching("error_rate", "20", &[]).await;
    let bad = || request("", Notification::default());
    // Over one window or two, whenever they begin.
    for _ in 0..200 {
        rpc.try_send(bad()).await.unwrap_err();
    }
    let fired = fires(&gateway, &mut events, AlertName::ErrorRate).await;
    assert!(fired.value > 20.0 && fired.threshold == 20.0, "{fired:?}");
    clears(&gateway, &mut events, &fired).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_count_and_bytes() {
    for (name, threshold, by_name) in
        [("pending_count", "2", AlertName::PendingCount), ("pending_bytes", "1KiB", AlertName::PendingBytes)]
    {
        let (gateway, mut rpc, mut events) = watching(name, threshold, &[]).await;
        for _ in 0..3 {
            rpc.send("away", "x".repeat(300)).await;
        }
        let fired = fires(&gateway, &mut events, by_name).await;
        assert!(fired.value > fired.threshold, "{fired:?}");
        let purge = PurgePendingRequest { user_id: "away".into(), force: true, ..Default::default() };
        assert_eq!(rpc.purge(purge).await.unwrap(), 3);
        let cleared = clears(&gateway, &mut events, &fired).await;
        assert_eq!(cleared.value, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disk() {
    // redb takes twice what is stored; once that is gone, half of it counts as free.
    let changes = [("store.engine", "redb"), ("limits.notification_bytes", "4MiB"), ("alerts.clear_below", "100%")];
    let (gateway, mut rpc, mut events) = watching("disk", "44MiB", &changes).await;
    for _ in 0..14 {
        rpc.send("away", "x".repeat(2 << 20)).await;
    }
    let fired = fires(&gateway, &mut events, AlertName::Disk).await;
    assert!(fired.text.contains("MiB, above 44.0 MiB"), "{fired:?}");
    // Files hardly shrink, but what is free in them counts as free.
    let purge = PurgePendingRequest { user_id: "away".into(), force: true, ..Default::default() };
    rpc.purge(purge).await.unwrap();
    clears(&gateway, &mut events, &fired).await;
}

/// A folder on a file system in memory, where there is one, which nobody fills with much while a test runs.
fn quiet_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// What senders may fill, as the store measures it.
fn room(gateway: &Gateway) -> u64 {
    gateway.hub.store().disk().free_bytes.expect("a file system that can be asked")
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_free() {
    const MIB: u64 = 1 << 20;
    // The disk may be others', too: where they took or gave as much as this does, it is tried again.
    for tries_left in (0..5).rev() {
        let folder = quiet_folder();
        let path = folder.path().join("data").display().to_string();
        let gateway = Gateway::with(&[("store.path", &path)]).await;
        let begun = room(&gateway);
        gateway.stop().await;
        let taken = (begun / 2).min(64 * MIB);
        assert!(taken > 4 * MIB, "there is hardly any room at {path}");
        let threshold = begun - taken / 2;
        let changes = [("alerts.clear_below", "100%"), ("store.path", &path)];
        let (gateway, _, mut events) = watching("disk_free", &format!("{threshold}B"), &changes).await;
        if room(&gateway) <= threshold && tries_left > 0 {
            continue;
        }
        let file = std::fs::File::create(folder.path().join("filler")).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, taken).unwrap();
        let system = rustix::fs::statvfs(folder.path()).unwrap();
        if system.f_bavail * system.f_frsize >= begun && tries_left > 0 {
            continue;
        }
        let fired = fires(&gateway, &mut events, AlertName::DiskFree).await;
        assert!(fired.value < fired.threshold && fired.threshold == threshold as f64, "{fired:?}");
        file.set_len(0).unwrap();
        let cleared = clears(&gateway, &mut events, &fired).await;
        assert!(cleared.value > cleared.threshold, "{cleared:?}");
        return;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn event_lag() {
    let (gateway, mut rpc, mut events) = watching("event_lag", "1000", &[]).await;
    let mut slow = rpc.events(&["user_online"], "").await;
    const COUNT: u64 = 20_000;
    let user = UserId::parse("a-user-with-a-long-name-so-that-what-the-transport-holds-is-soon-full").unwrap();
    for _ in 0..COUNT {
        gateway.hub.events().emit(EventBody::UserOnline { user: user.clone() });
    }
    let fired = fires(&gateway, &mut events, AlertName::EventLag).await;
    assert!(fired.value > 1000.0, "{fired:?}");
    let mut read = 0;
    while read < COUNT {
        read += match slow.body().await {
            Body::EventsLost(lost) => lost.count,
            _ => 1,
        };
    }
    clears(&gateway, &mut events, &fired).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn confirm_p99() {
    let (gateway, mut rpc, mut events) = watching("confirm_p99", "100ms", &[]).await;
    let mut client = gateway.client_with("alice", "ackMode=client").await;
    for n in 1..30 {
        rpc.send("alice", n).await;
    }
    // It comes back when nobody has confirmed for so long.
    let last = rpc.try_send(confirmed("alice", notification(30), 300)).await.unwrap();
    client.data(30).await;
    client.say(&json!({ "type": "ack", "offset": last.offset })).await;
    let fired = fires(&gateway, &mut events, AlertName::ConfirmP99).await;
    assert!((0.3..30.0).contains(&fired.value) && fired.threshold == 0.1, "{fired:?}");
    // With nothing more to measure nothing is slow.
    clears(&gateway, &mut events, &fired).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reply_p99() {
    let (gateway, mut rpc, mut events) = watching("reply_p99", "100ms", &[("clients.forward", r#"["order"]"#)]).await;
    let mut service = rpc.events(&["message_received"], "").await;
    let mut client = gateway.client("alice").await;
    let mut asked = Vec::new();
    for n in 0..30 {
        client.say(&json!({ "type": "order", "id": n.to_string() })).await;
        asked.push(service.body().await);
    }
    // It comes back when nobody has confirmed for so long.
    rpc.try_send(confirmed("away", notification(1), 300)).await.unwrap();
    for message in asked {
        let Body::MessageReceived(message) = message else { panic!("{message:?}") };
        let (session_id, reply_to) = (message.session_id, message.id);
        rpc.send_to_session(SendToSessionRequest { session_id, reply_to, notification: Some(notification(2)) })
            .await
            .unwrap();
        assert_eq!(client.next().await["type"], "reply");
    }
    let fired = fires(&gateway, &mut events, AlertName::ReplyP99).await;
    assert!((0.3..30.0).contains(&fired.value) && fired.threshold == 0.1, "{fired:?}");
    clears(&gateway, &mut events, &fired).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_for_less_than_its_span_is_no_alert() {
    let (gateway, mut rpc, mut events) =
        watching("pending_count", "2", &[("alerts.fire_after", "1h"), ("alerts.clear_after", "1h")]).await;
    for n in 0..5 {
        rpc.send("away", n).await;
    }
    // Each look is a second later: three of them have seen it.
    let seen = gateway.hub.clock().now() + 3 * pushgate::limits::ALERT_TICK;
    soon("three looks", tokio::time::sleep_until(seen)).await;
    assert_eq!(rpc.status().await.alerts, []);
    gateway.hub.events().emit(EventBody::Alert(pushgate::types::Alert {
        name: AlertName::Disk,
        firing: true,
        value: 1.0,
        threshold: 1.0,
        text: "made up".into(),
        since: gateway.clock.unix_millis(),
    }));
    assert_eq!(alert(&mut events).await.text, "made up", "nothing was told before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_begins_without_alerts_and_tells_anew_what_is_still_wrong() {
    let (gateway, mut rpc, mut events) = watching("pending_count", "2", &[]).await;
    for n in 0..3 {
        rpc.send_to("away", Notification { ttl: ttl(3600, 0), ..notification(n) }).await;
    }
    let before = fires(&gateway, &mut events, AlertName::PendingCount).await;
    let gateway = gateway.restart().await;
    let mut events = gateway.rpc().await.events(&["alert"], "").await;
    // The first look of a start may come before anybody can listen.
    until("the alerts", 1, async || gateway.rpc().await.status().await.alerts.len()).await;
    let again = gateway.rpc().await.status().await.alerts.remove(0);
    assert!(again.since.unwrap().seconds >= before.since.unwrap().seconds && again.state() == AlertState::Firing);
    let purge = PurgePendingRequest { user_id: "away".into(), force: true, ..Default::default() };
    gateway.rpc().await.purge(purge).await.unwrap();
    loop {
        if alert(&mut events).await.state() == AlertState::Cleared {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_is_a_line_in_the_log_when_it_fires_and_one_when_it_clears() {
    let folder = tempfile::tempdir().unwrap();
    let alerts = "alerts.fire_after = \"0s\"\nalerts.clear_after = \"0s\"\nalerts.connections = \"1\"\n";
    let mut daemon = Daemon::start(&child::config(folder.path(), alerts)).await;
    let address = daemon.address("http");
    let connect = async |user: &str| {
        let token = crate::support::Token::of(user).sign();
        crate::support::Client::connect(&format!("ws://{address}/ws?token={token}")).await
    };
    let (alice, bob) = (connect("alice").await, connect("bob").await);
    let line = daemon.logged("alert fires").await;
    assert_eq!((&line["level"], &line["name"]), (&json!("WARN"), &json!("connections")), "{line}");
    assert_eq!((&line["value"], &line["threshold"]), (&json!(2.0), &json!(1.0)), "{line}");
    assert_eq!(line["text"], "2 connections, above 1");
    drop((alice, bob));
    let line = daemon.logged("alert cleared").await;
    assert_eq!((&line["level"], &line["text"]), (&json!("INFO"), &json!("0 connections, below 1")), "{line}");
}
