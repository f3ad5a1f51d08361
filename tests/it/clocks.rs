//! The wall clock is set back and forth by an hour while the gateway runs.

use serde_json::json;

use crate::support::{
    Gateway,
    rpc::{self, notification},
    until,
};

const HOUR_MICROS: i64 = 3_600_000_000;

#[tokio::test]
async fn a_clock_that_jumps_an_hour_back_and_forth_loses_nothing_and_gives_no_offset_twice() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut live = gateway.client("ann").await;
    let mut offsets = Vec::new();
    for round in 0..8_i64 {
        gateway.clock.set_skew_micros([0, -HOUR_MICROS, HOUR_MICROS, -HOUR_MICROS][(round % 4) as usize]);
        for user in ["ann", "bob"] {
            let sent = rpc.send(user, json!({ "round": round })).await;
            offsets.push(sent.offset);
        }
        assert_eq!(live.data(1).await, [json!({ "round": round })], "the session lives, and gets it at once");
    }
    assert!(offsets.is_sorted_by(|a, b| a < b), "offsets rise whatever the clock does: {offsets:?}");
    live.settle().await;
    let session = live.session();

    // Across a restart with the clock an hour behind.
    gateway.clock.set_skew_micros(-HOUR_MICROS);
    live.close().await;
    let gateway = gateway.restart().await;
    gateway.clock.set_skew_micros(-HOUR_MICROS);
    let after = gateway.rpc().await.send("ann", json!("after")).await.offset;
    assert!(after > *offsets.last().unwrap(), "{after}");
    let mut ann = gateway.client("ann").await;
    assert_ne!(ann.session(), session);
    assert_eq!(ann.data(1).await, [json!("after")], "what was confirmed does not come again");
    ann.nothing_more().await;
    let mut bob = gateway.client("bob").await;
    let rounds: Vec<_> = (0..8).map(|round| json!({ "round": round })).collect();
    assert_eq!(bob.data(8).await, rounds, "nothing is lost");
    bob.nothing_more().await;
}

#[tokio::test]
async fn what_expires_does_so_by_the_clock_as_it_is_and_within_the_jump_at_most() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let send = async |rpc: &mut rpc::Rpc, data: &str, seconds| {
        let mut one = notification(data);
        one.ttl = rpc::ttl(seconds, 0);
        assert!(rpc.send_to("ann", one).await.offset > 0);
    };
    // Half an hour lives through an hour back, and not through an hour forth.
    send(&mut rpc, "half an hour", 1800).await;
    send(&mut rpc, "two hours", 7200).await;
    gateway.clock.set_skew_micros(-HOUR_MICROS);
    send(&mut rpc, "of the hour before", 1800).await;
    assert_eq!(gateway.client_with("ann", "device=early&ackMode=client").await.hello["pending"], 3);
    gateway.clock.set_skew_micros(0);
    // Accepted an hour ago by this clock: it has expired half an hour ago.
    let ann = gateway.client_with("ann", "device=early&ackMode=client").await;
    assert_eq!(ann.hello["pending"], 2);
    gateway.clock.set_skew_micros(HOUR_MICROS);
    let mut ann = gateway.client_with("ann", "device=early&ackMode=client").await;
    assert_eq!(ann.hello["pending"], 1);
    assert_eq!(ann.data(1).await, [json!("two hours")]);
    // The store forgets them, too, at the next sweep or sooner.
    until("two have expired", 2, async || gateway.errors("expired").await).await;
}
