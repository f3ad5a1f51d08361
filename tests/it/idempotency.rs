//! Calls that are made again: a caller's own id is sent once, as long as it is remembered.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use pushgate::api::proto::{BroadcastRequest, Notification, Outcome, SendToUserRequest, Wait};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::{
    Gateway,
    rpc::{durable, own, request, ttl},
};

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().unwrap().reason.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_call_again_sends_nothing_and_gets_the_first_answer() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut client = gateway.client("alice").await;
    gateway.live("alice").await;
    let first = rpc.send_to("alice", own("order-1", 1)).await;
    assert_eq!((first.duplicate, first.outcome(), first.sessions), (false, Outcome::Stored, 1));
    for _ in 0..3 {
        let again = rpc.send_to("alice", own("order-1", 1)).await;
        assert_eq!((again.duplicate, again.outcome()), (true, Outcome::Stored));
        assert_eq!((&again.id, again.offset, again.sessions), (&first.id, first.offset, 1));
    }
    // How long it is kept, and what is waited for, are no content.
    let other_ttl = Notification { ttl: ttl(60, 0), ..own("order-1", 1) };
    let accepted = SendToUserRequest { wait: Wait::Accepted.into(), ..request("alice", other_ttl) };
    assert!(rpc.try_send(accepted).await.unwrap().duplicate);
    assert_eq!(client.data(1).await, [1]);
    client.settle().await;
    assert!(rpc.send_to("alice", own("order-1", 1)).await.duplicate, "also once every device has it");
    client.nothing_more().await;
    // Each user has a space of his own.
    let bob = rpc.send_to("bob", own("order-1", "other")).await;
    assert!(!bob.duplicate && bob.offset != first.offset);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_with_other_content_is_taken() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    rpc.send_to("alice", own("a", 1)).await;
    let others = [
        own("a", 2),
        Notification { r#type: "other".into(), ..own("a", 1) },
        Notification { from_user_id: "bob".into(), ..own("a", 1) },
        Notification { collapse_key: "k".into(), ..own("a", 1) },
    ];
    for other in others {
        let refused = rpc.try_send(request("alice", other)).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::AlreadyExists, "ID_TAKEN"));
    }
    assert_eq!(rpc.errors("already_exists").await, 4);
    assert_eq!(gateway.pending().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_the_gateway_gives_are_never_repeats() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let one = rpc.send("alice", 1).await;
    let two = rpc.send("alice", 1).await;
    assert!(!one.duplicate && !two.duplicate && one.id != two.id);
    // And they take no place among the callers' own.
    let own = rpc.send_to("alice", own(&one.id, "other")).await;
    assert!(!own.duplicate);
    assert_eq!(gateway.pending().await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_made_again_while_the_first_is_under_way_is_the_same_call() {
    let gateway = Gateway::start().await;
    let rpc = gateway.rpc().await;
    let calls = (0..40).map(|n| {
        let mut rpc = rpc.clone();
        async move { rpc.try_send(request("alice", own("a", n % 2))).await }
    });
    let (sent, refused): (Vec<_>, Vec<_>) = join_all(calls).await.into_iter().partition(Result::is_ok);
    let sent: Vec<_> = sent.into_iter().map(Result::unwrap).collect();
    assert_eq!((sent.len(), refused.len()), (20, 20), "one of the two contents was first");
    assert_eq!(sent.iter().filter(|answer| !answer.duplicate).count(), 1);
    assert_eq!(sent.iter().map(|answer| answer.offset).collect::<BTreeSet<_>>().len(), 1);
    assert!(refused.iter().all(|answer| answer.as_ref().unwrap_err().code() == Code::AlreadyExists));
    assert_eq!(gateway.pending().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_remembered_across_a_restart() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let first = rpc.send_to("alice", own("a", 1)).await;
    let all = rpc.try_broadcast(durable(own("a", 1), &[])).await.unwrap();
    let gateway = gateway.restart().await;
    let mut rpc = gateway.rpc().await;
    let again = rpc.send_to("alice", own("a", 1)).await;
    assert_eq!((again.duplicate, again.offset), (true, first.offset));
    let again = rpc.try_broadcast(durable(own("a", 1), &[])).await.unwrap();
    assert_eq!((again.duplicate, again.offset), (true, all.offset));
    assert_eq!(rpc.try_send(request("alice", own("a", 2))).await.unwrap_err().code(), Code::AlreadyExists);
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_forgotten_after_their_window() {
    let gateway = Gateway::with(&[("store.idempotency_window", "1h")]).await;
    let mut rpc = gateway.rpc().await;
    let first = rpc.send_to("alice", own("a", 1)).await;
    gateway.later(Duration::from_secs(3599));
    assert!(rpc.send_to("alice", own("a", 1)).await.duplicate);
    gateway.later(Duration::from_secs(3601));
    let other = rpc.send_to("alice", own("a", 2)).await;
    assert!(!other.duplicate && other.offset > first.offset);

    let gateway = Gateway::with(&[("store.idempotency_window", "0s")]).await;
    let mut rpc = gateway.rpc().await;
    rpc.send_to("alice", own("a", 1)).await;
    assert!(!rpc.send_to("alice", own("a", 1)).await.duplicate, "a window of nothing remembers nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_and_what_is_never_stored_is_not_remembered() {
    let gateway = Gateway::with(&[("store.max_pending_per_user", "1")]).await;
    let mut rpc = gateway.rpc().await;
    rpc.send("alice", 0).await;
    assert_eq!(rpc.try_send(request("alice", own("a", 1))).await.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(rpc.forget_user("alice").await, (1, 0));
    assert!(!rpc.send_to("alice", own("a", 2)).await.duplicate, "it may even be another");
    let now = || Notification { ttl: ttl(0, 0), ..own("now", 1) };
    for _ in 0..2 {
        let answer = rpc.send_to("bob", now()).await;
        assert_eq!((answer.duplicate, answer.outcome()), (false, Outcome::Dropped));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn durable_broadcasts_have_a_space_of_their_own_and_others_none() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    rpc.send_to("alice", own("a", 1)).await;
    let first = rpc.try_broadcast(durable(own("a", "all"), &["bob", "carol"])).await.unwrap();
    assert_eq!((first.duplicate, first.outcome()), (false, Outcome::Stored));
    let again = rpc.try_broadcast(durable(own("a", "all"), &["carol", "bob", "bob"])).await.unwrap();
    assert_eq!((again.duplicate, again.offset, again.id.as_str()), (true, first.offset, "a"));
    for other in [durable(own("a", "all"), &["bob"]), durable(own("a", "other"), &["bob", "carol"])] {
        assert_eq!(rpc.try_broadcast(other).await.unwrap_err().code(), Code::AlreadyExists);
    }
    let passing = || BroadcastRequest { durable: false, ..durable(own("a", "all"), &[]) };
    for _ in 0..2 {
        let answer = rpc.try_broadcast(passing()).await.unwrap();
        assert_eq!((answer.duplicate, answer.offset, answer.outcome()), (false, 0, Outcome::Dropped));
    }
    let calls = (0..20).map(|_| {
        let mut rpc = rpc.clone();
        async move { rpc.try_broadcast(durable(own("b", 1), &[])).await.unwrap() }
    });
    let answers = join_all(calls).await;
    assert_eq!(answers.iter().filter(|answer| !answer.duplicate).count(), 1);
}
