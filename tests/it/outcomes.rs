//! WAIT_CONFIRMED: what a call that waits for a device's confirmation is told, however the notification ends.

use std::time::Duration;

use pushgate::api::proto::{Notification, Outcome, PurgePendingRequest, SendToUserRequest, SendToUserResponse, Wait};
use tokio::task::JoinHandle;
use tonic::Request;

use crate::support::{
    Gateway, Raw,
    rpc::{confirmed, notification, own, request, ttl},
    soon, until,
};

/// Sends and waits for confirmation, in a task of its own; returns once it is stored.
async fn waiting(gateway: &Gateway, notification: Notification) -> JoinHandle<SendToUserResponse> {
    let before = gateway.pending().await;
    let mut rpc = gateway.rpc().await;
    let call = tokio::spawn(async move { rpc.try_send(confirmed("alice", notification, 60_000)).await.unwrap() });
    until("what is pending", before + 1, || gateway.pending()).await;
    call
}

async fn outcome(call: JoinHandle<SendToUserResponse>) -> Outcome {
    soon("the outcome", call).await.unwrap().outcome()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_device_confirms() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client("alice").await;
    gateway.live("alice").await;
    let call = waiting(&gateway, notification(1)).await;
    assert_eq!(client.data(1).await, [1]);
    client.settle().await;
    let answer = soon("the outcome", call).await.unwrap();
    assert_eq!((answer.outcome(), answer.sessions), (Outcome::Confirmed, 1));
    assert!(answer.offset > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_comes_back_confirms_and_so_does_an_ack() {
    let gateway = Gateway::start().await;
    let call = waiting(&gateway, own("a", 1)).await;
    let mut client = gateway.client_with("alice", "ackMode=client").await;
    let got = client.next().await;
    assert!(!call.is_finished(), "it was received, and not confirmed");
    client.say(&serde_json::json!({ "type": "ack", "offset": got["offset"] })).await;
    assert_eq!(outcome(call).await, Outcome::Confirmed);
    // What a repeated call is told is true now.
    let again = gateway.rpc().await.try_send(confirmed("alice", own("a", 1), 60_000)).await.unwrap();
    assert_eq!((again.outcome(), again.duplicate), (Outcome::Confirmed, true));
    let stored = gateway.rpc().await.try_send(request("alice", own("a", 1))).await.unwrap();
    assert_eq!((stored.outcome(), stored.offset), (Outcome::Stored, again.offset));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_confirms_in_time_it_is_stored() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let answer = rpc.try_send(confirmed("alice", notification(1), 50)).await.unwrap();
    assert_eq!((answer.outcome(), answer.sessions), (Outcome::Stored, 0));
    let mut silent = Raw::session(&gateway, "alice", "").await;
    assert_eq!(silent.text().await["data"], 1);
    gateway.live("alice").await;
    let answer = rpc.try_send(confirmed("alice", notification(2), 0)).await.unwrap();
    assert_eq!((answer.outcome(), answer.sessions), (Outcome::Stored, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_below_the_calls_deadline() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    for (millis, wait_timeout) in [(2000, 60), (1000, 100_000)] {
        let mut call = Request::new(SendToUserRequest {
            wait_timeout: ttl(wait_timeout, 0),
            ..confirmed("alice", notification(1), 0)
        });
        call.metadata_mut().insert("grpc-timeout", format!("{millis}m").parse().unwrap());
        let answer = soon("an answer", rpc.client.send_to_user(call)).await.unwrap().into_inner();
        assert_eq!(answer.outcome(), Outcome::Stored);
    }
    assert_eq!(rpc.errors("grpc_deadline_exceeded").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_replaced_was_superseded() {
    let gateway = Gateway::start().await;
    let keyed = |data: i32| Notification { collapse_key: "score".into(), ..notification(data) };
    let call = waiting(&gateway, keyed(1)).await;
    gateway.rpc().await.send_to("alice", keyed(2)).await;
    assert_eq!(outcome(call).await, Outcome::Superseded);
    assert_eq!(gateway.pending().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_ttl_runs_out_has_expired() {
    let gateway = Gateway::start().await;
    let call = waiting(&gateway, Notification { ttl: ttl(60, 0), ..own("a", 1) }).await;
    gateway.later(Duration::from_secs(121));
    assert_eq!(outcome(call).await, Outcome::Expired, "the sweep finds it");
    let again = gateway.rpc().await.try_send(confirmed("alice", own("a", 1), 60_000)).await.unwrap();
    assert_eq!((again.outcome(), again.duplicate), (Outcome::Expired, true), "that is not waited for again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_is_told_when_it_comes_and_not_when_the_sweep_does() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let short = || Notification { ttl: ttl(0, 200_000_000), ..own("a", 1) };
    let mut call = gateway.rpc().await;
    let first = tokio::spawn(async move { call.try_send(confirmed("alice", short(), 60_000)).await.unwrap() });
    until("what is pending", 1, || gateway.pending()).await;
    let again = rpc.try_send(confirmed("alice", short(), 60_000)).await.unwrap();
    assert_eq!((again.outcome(), again.duplicate), (Outcome::Expired, true));
    assert_eq!(outcome(first).await, Outcome::Expired);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_a_caller_clears_was_purged() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let call = waiting(&gateway, notification(1)).await;
    let purge = PurgePendingRequest { user_id: "alice".into(), force: true, ..Default::default() };
    assert_eq!(rpc.purge(purge).await.unwrap(), 1);
    assert_eq!(outcome(call).await, Outcome::Purged);
    let call = waiting(&gateway, notification(2)).await;
    assert_eq!(rpc.forget_user("alice").await, (1, 0));
    assert_eq!(outcome(call).await, Outcome::Purged);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_makes_room_or_loses_its_device_was_dropped() {
    let changes = [("store.max_pending_per_user", "1"), ("store.overflow", "drop-oldest")];
    let gateway = Gateway::with(&changes).await;
    let mut rpc = gateway.rpc().await;
    let call = waiting(&gateway, notification(1)).await;
    rpc.send("alice", 2).await;
    assert_eq!(outcome(call).await, Outcome::Dropped);

    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    gateway.client_with("alice", "device=old").await.close().await;
    gateway.sessions("alice", 0).await;
    let call = waiting(&gateway, notification(1)).await;
    gateway.client_with("alice", "device=new").await.close().await;
    rpc.forget_device("alice", Some("old")).await.unwrap();
    assert_eq!(outcome(call).await, Outcome::Dropped, "the other device began later");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_never_stored_is_not_waited_for() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let now = || SendToUserRequest {
        wait: Wait::Confirmed.into(),
        ..request("alice", Notification { ttl: ttl(0, 0), ..notification(1) })
    };
    assert_eq!(rpc.try_send(now()).await.unwrap().outcome(), Outcome::Dropped);
    let _silent = Raw::session(&gateway, "alice", "").await;
    assert_eq!(rpc.try_send(now()).await.unwrap().outcome(), Outcome::Accepted);
}
