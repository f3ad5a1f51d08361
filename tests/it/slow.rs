//! Clients that do not read, do not answer or do not ack: each is closed with its code, and nobody else notices.

use std::time::Duration;

use pushgate::api::proto::{ClosedBy, Notification, SessionState, event::Event};
use serde_json::json;

use crate::support::{Gateway, Raw, raw, rpc::notification, rpc::ttl, soon, until};

/// How a session ended, by the event stream.
async fn ended(events: &mut crate::support::rpc::Events) -> (u32, String, ClosedBy, u32) {
    let Event::SessionClosed(closed) = events.body().await else { panic!("another event") };
    (closed.code, closed.reason.clone(), closed.closed_by(), closed.unconfirmed)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_what_is_not_stored_is_closed_with_4409_and_others_get_all_of_it() {
    let gateway = Gateway::with(&[("limits.outbox_bytes", "64KiB"), ("limits.write_timeout", "1h")]).await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&["session_closed"], "").await;
    let mut slow = Raw::connect_narrow(gateway.http).await.welcomed("slow", "").await;
    let mut good = gateway.client("good").await;
    let text = "x".repeat(20_000);
    let mut sent = 0;
    // Unread, the kernel's buffers fill first, then the outbox.
    while rpc.broadcast(json!([sent, text])).await.sessions == 2 {
        assert_eq!(good.next().await["data"][0], sent);
        sent += 1;
        assert!(sent < 5000, "an outbox without bound");
    }
    assert_eq!(good.next().await["data"][0], sent);
    assert_eq!(rpc.errors("slow_consumer").await, 1);
    assert_eq!(ended(&mut events).await, (4409, "slow_consumer".to_owned(), ClosedBy::Gateway, 0));
    assert_eq!(rpc.broadcast("after").await.sessions, 1);
    assert_eq!(good.data(1).await, ["after"]);
    good.nothing_more().await;
    assert!(slow.drained().await < (sent as usize + 1) * text.len(), "it cannot have got everything");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_make_no_progress_close_the_session_with_4409() {
    let gateway = Gateway::with(&[("limits.outbox_bytes", "64MiB"), ("limits.write_timeout", "200ms")]).await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&["session_closed"], "").await;
    let _slow = Raw::connect_narrow(gateway.http).await.welcomed("slow", "").await;
    let mut good = gateway.client("good").await;
    let big = || Notification { ttl: ttl(0, 0), ..notification("x".repeat(200_000)) };
    for _ in 0..60 {
        rpc.send_to("slow", big()).await;
    }
    assert_eq!(ended(&mut events).await, (4409, "slow_consumer".to_owned(), ClosedBy::Gateway, 0));
    assert_eq!(rpc.errors("slow_consumer").await, 1);
    assert_eq!(rpc.send_to("slow", big()).await.sessions, 0);
    good.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_reader_goes_back_to_pulling_and_loses_nothing_that_is_stored() {
    let gateway = Gateway::with(&[("limits.outbox_bytes", "64KiB")]).await;
    let mut rpc = gateway.rpc().await;
    let mut slow = Raw::connect_narrow(gateway.http).await.welcomed("slow", "").await;
    let mut good = gateway.client("good").await;
    let text = "x".repeat(20_000);
    let mut live = 0;
    for n in 0..120 {
        live += rpc.send("slow", json!([n, text])).await.sessions;
        rpc.send("good", n).await;
    }
    assert!((1..120).contains(&live), "{live} of 120 were handed to a session that reads nothing");
    let sessions = rpc.list(Default::default()).await.unwrap().sessions;
    let session = sessions.iter().find(|session| session.user_id == "slow").unwrap();
    assert_eq!(session.state(), SessionState::Pulling);
    assert!(session.outbox_bytes <= 64 * 1024 + 21_000, "{} bytes wait", session.outbox_bytes);
    assert_eq!(good.data(120).await, (0..120).map(|n| json!(n)).collect::<Vec<_>>());

    let mut next = 0;
    while next < 120 {
        let frame = slow.frame().await;
        if frame.first == raw::PING {
            slow.send(raw::PONG, &frame.payload).await;
        } else {
            assert_eq!(frame.json()["data"][0], next);
            next += 1;
        }
    }
    until("it is live again", SessionState::Live, async || {
        let sessions = rpc.clone().list(Default::default()).await.unwrap().sessions;
        sessions.iter().find(|session| session.user_id == "slow").unwrap().state()
    })
    .await;
    assert_eq!(rpc.errors("slow_consumer").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_answers_no_heartbeat_is_closed_with_4408() {
    let gateway = Gateway::with(&[("heartbeat.interval", "200ms"), ("heartbeat.timeout", "200ms")]).await;
    let mut events = gateway.rpc().await.events(&["session_closed"], "").await;
    let mut good = gateway.client("good").await;
    let mut silent = Raw::session(&gateway, "silent", "").await;
    // The good one is read from, and so answers, for as long as it takes.
    let (reading, stop) = tokio::sync::oneshot::channel::<()>();
    let reader = tokio::spawn(async move {
        tokio::pin!(stop);
        loop {
            tokio::select! {
                _ = &mut stop => return good,
                frame = good.next_frame() => assert!(frame.is_some_and(|frame| frame.is_ok())),
            }
        }
    });
    assert_eq!(silent.frame().await.first, raw::PING);
    let close = silent.frame().await;
    assert_eq!(close.close_code(), Some(4408), "and no second ping");
    assert_eq!(ended(&mut events).await.0, 4408);
    assert_eq!(gateway.errors("heartbeat_timeout").await, 1);
    let _ = reading.send(());
    let mut good = soon("the reader", reader).await.unwrap();
    good.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_but_confirms_nothing_is_closed_with_4408() {
    let gateway = Gateway::with(&[("delivery.confirm_timeout", "300ms")]).await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&["session_closed"], "").await;
    let mut raw = Raw::session(&gateway, "alice", "").await;
    raw.say(&json!({ "type": "ping", "id": "idle" })).await;
    assert_eq!(raw.text().await["replyTo"], "idle");
    rpc.send("alice", 1).await;
    assert_eq!(raw.text().await["data"], 1);
    raw.say(&json!({ "type": "ping", "id": "alive" })).await;
    assert_eq!(raw.text().await["replyTo"], "alive");
    assert_eq!(raw.close_frame().await.close_code(), Some(4408));
    let (code, _, by, unconfirmed) = ended(&mut events).await;
    assert_eq!((code, by, unconfirmed), (4408, ClosedBy::Gateway, 1));
    assert_eq!((rpc.errors("confirm_timeout").await, rpc.errors("heartbeat_timeout").await), (1, 0));
    assert_eq!(gateway.client("alice").await.data(1).await, [json!(1)], "the device gets it again");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_ack_is_closed_with_4410() {
    let gateway = Gateway::with(&[("delivery.ack_timeout", "300ms")]).await;
    let mut rpc = gateway.rpc().await;
    let mut acking = gateway.client_with("acking", "ackMode=client").await;
    let mut client = gateway.client_with("alice", "ackMode=client").await;
    let sent = rpc.send("acking", 1).await;
    acking.data(1).await;
    acking.say(&json!({ "type": "ack", "offset": sent.offset })).await;
    rpc.send("alice", 1).await;
    client.data(1).await;
    assert_eq!(client.closed().await.0, 4410);
    assert_eq!((rpc.errors("ack_timeout").await, rpc.errors("confirm_timeout").await), (1, 0));
    acking.nothing_more().await;
    assert_eq!(gateway.client("alice").await.data(1).await, [json!(1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_never_finishes_its_request_holds_nothing_up() {
    let gateway = Gateway::start().await;
    let mut half = Raw::connect(gateway.http).await;
    half.write(b"GET /ws HTTP/1.1\r\nHost: gate").await;
    let mut client = soon("another client", gateway.client("alice")).await;
    client.nothing_more().await;
    assert_eq!(gateway.rpc().await.status().await.connections.unwrap().now, 1, "it is no connection yet");
    assert!(Duration::from_secs(10) >= pushgate::limits::HANDSHAKE_HEAD_TIMEOUT);
}
