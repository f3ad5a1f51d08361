//! What the bodies of calls over HTTP may cost: their bytes while they are under way, and what they become.

use std::fmt::Write as _;

use bytes::Bytes;
use serde_json::json;

use crate::support::{
    Gateway, Http, Raw,
    child::{Daemon, config},
    gateway::ADMIN,
    until,
};

/// A send whose `data` is a list of so many numbers.
fn numbers(many: usize) -> Bytes {
    let list = vec!["1"; many].join(",");
    format!(r#"{{"user_id":"alice","notification":{{"data":[{list}]}},"wait":"WAIT_ACCEPTED"}}"#).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_values_in_small_bodies_do_not_become_much_memory() {
    const CALLS: usize = 16;
    const MIB: u64 = 1024 * 1024;
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&config(folder.path(), "")).await;
    let caller = Http::new(daemon.address("ops")).bearer(ADMIN).with("content-type", "application/json");
    // Once, so that all that is made at the first call is there.
    caller.call("POST", "/ws/send", numbers(1)).await.good();
    let before = daemon.peak_memory();
    let (most, above) = (numbers(32 * 1024 - 12), numbers(524_000));
    let calls = (0..2 * CALLS).map(|n| {
        let (caller, body) = (caller.clone(), if n % 2 == 0 { most.clone() } else { above.clone() });
        tokio::spawn(async move { caller.begin("POST", "/ws/send", body).await })
    });
    for (n, call) in calls.collect::<Vec<_>>().into_iter().enumerate() {
        let answer = call.await.unwrap();
        if n % 2 == 0 {
            assert_eq!(answer.good()["outcome"], "OUTCOME_ACCEPTED");
        } else {
            answer.invalid(&["notification.data"]);
            let text = answer.refused(400, 3, "INVALID_ARGUMENT");
            assert!(text.contains("more than 32768 values and names; `json` takes any number"), "{text}");
        }
    }
    let grown = daemon.peak_memory() - before;
    assert!(grown < 200 * MIB, "{} MiB for {CALLS} bodies of 64 KiB and {CALLS} of 1 MiB", grown / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_under_way_share_a_room_and_who_finds_none_is_told_so() {
    let gateway = Gateway::with(&[("limits.notification_bytes", "15MiB"), ("limits.outbox_bytes", "16MiB")]).await;
    let begin = async |bytes: usize| {
        let mut raw = Raw::connect(gateway.ops).await;
        let mut head = format!("POST /ws/send HTTP/1.1\r\nHost: ops\r\nAuthorization: Bearer {ADMIN}\r\n");
        write!(head, "Content-Type: application/json\r\nContent-Length: {bytes}\r\n\r\n").unwrap();
        raw.write(head.as_bytes()).await;
        raw
    };
    const MIB: usize = 1024 * 1024;
    let mut slow = begin(60 * MIB).await;
    slow.write(&vec![b' '; 59 * MIB]).await;
    let ask = async || {
        let body = format!(r#"{{"user_id":"alice","notification":{{"data":"{}"}}}}"#, "x".repeat(6 * MIB));
        gateway.ops().post("/ws/send", body).await
    };
    until("the room is taken", 503, async || ask().await.status.as_u16()).await;
    let full = ask().await;
    let text = full.refused(503, 14, "TOO_MANY_BYTES");
    assert_eq!((text.as_str(), full.header("retry-after")), ("bodies of 67108864 bytes are under way", "1"));
    // There is room for what is small, and again for all of it when the slow one is done.
    gateway.ops().post("/ws/send", json!({ "user_id": "alice", "notification": { "data": 1 } })).await.good();
    slow.write(&vec![b' '; MIB]).await;
    let answer = slow.request("").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    ask().await.good();
}
