//! The commands about what is stored for a user.

use rustix::process::Signal;
use serde_json::json;

use crate::support::{Gateway, READ_TOKEN, pushgate};

/// Makes a device known, and has it leave.
fn known(gateway: &Gateway, user: &str, device: &str) {
    let client = gateway.client(user, &["--device", device]);
    client.signal(Signal::INT);
    client.end();
    // The gateway may notice a moment later.
    let gone = |text: &String| text == "no sessions\n";
    std::iter::repeat_with(|| gateway.command(&["sessions", "--user", user]).ok()).find(gone).unwrap();
}

#[test]
fn what_waits_is_listed_and_cleared_with_force_only() {
    let gateway = Gateway::new();
    assert_eq!(gateway.command(&["pending", "alice"]).ok(), "nothing waits\n");
    for n in 0..3 {
        gateway.command(&["send", "alice", "1", "--id", &format!("order-{n}"), "--type", "order", "--ttl", "1h"]).ok();
    }
    gateway.command(&["send", "alice", "2", "--collapse-key", "score"]).ok();
    gateway.command(&["send", "alice", "3", "--collapse-key", "score"]).ok();

    let table = gateway.command(&["pending", "alice"]).ok();
    assert_eq!(table.lines().count(), 5, "{table}");
    for part in ["OFFSET", "  order-1  ", "  order  ", "59m", "a first device"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let listed = gateway.command(&["pending", "alice", "--json"]).json();
    let ids: Vec<_> =
        listed["notifications"].as_array().unwrap().iter().map(|one| one["collapseKey"].clone()).collect();
    assert_eq!(ids, [json!(""), json!(""), json!(""), json!("score")]);
    assert_eq!(listed["nextPageToken"], "");

    assert_eq!(gateway.command(&["purge", "alice"]).ok(), "would purge 4 notifications; --force does it\n");
    assert_eq!(gateway.command(&["purge", "alice", "--json"]).json(), json!({ "purged": 4 }));
    assert_eq!(gateway.command(&["purge", "alice", "--force"]).ok(), "purged 4 notifications\n");
    assert_eq!(gateway.command(&["pending", "alice"]).ok(), "nothing waits\n");
    for command in ["pending", "purge", "forget"] {
        gateway
            .command(&[command, "alice", "--device", "watch"])
            .fails(1, "says NOT_FOUND: this user has no such device");
    }
}

#[test]
fn devices_are_listed_and_forgotten() {
    let gateway = Gateway::new();
    assert_eq!(gateway.command(&["devices", "alice"]).ok(), "no devices\n");
    known(&gateway, "alice", "phone");
    known(&gateway, "alice", "tablet");
    gateway.command(&["send", "alice", "1"]).ok();
    gateway.command(&["broadcast", "2", "--durable"]).ok();
    gateway.command(&["purge", "alice", "--device", "tablet", "--force"]).ok();
    let table = gateway.command(&["devices", "alice"]).ok();
    let words = |at: usize| table.lines().nth(at).unwrap().split_whitespace().take(4).collect::<Vec<_>>();
    assert_eq!(words(1), ["phone", "0", "1", "1"], "{table}");
    assert_eq!(words(2), ["tablet", "0", "0", "1"], "{table}");
    assert!(table.lines().nth(2).unwrap().contains(" yes "), "{table}");
    let listed = gateway.command(&["devices", "alice", "--json"]).json();
    assert_eq!(listed["devices"][0]["pendingBroadcasts"], 1);

    let forget = ["forget", "alice", "--device", "tablet"];
    assert_eq!(gateway.command(&forget).ok(), "forgot the device tablet of alice\n");
    let client = gateway.client("alice", &["--device", "phone"]);
    gateway.command(&["forget", "alice"]).fails(2, "that needs --force");
    assert_eq!(gateway.command(&["forget", "alice", "--device", "phone", "--json"]).json(), json!({}));
    client.end().fails(0, "closed on purpose: 1000 device forgotten");
    gateway.command(&["send", "alice", "1"]).ok();
    let gone = gateway.command(&["forget", "alice", "--force"]).ok();
    assert!(gone.starts_with("forgot alice: 0 devices, "), "{gone}");
    assert_eq!(gateway.command(&["forget", "nobody", "--force"]).ok(), "forgot nobody: 0 devices, 0 notifications\n");
}

#[test]
fn a_call_that_is_made_again_says_so() {
    let gateway = Gateway::new();
    let send = ["send", "alice", "1", "--id", "order-1"];
    assert!(!gateway.command(&send).ok().contains("earlier"));
    let again = gateway.command(&send).ok();
    assert!(
        again.starts_with("stored; id order-1, offset ") && again.ends_with("; an earlier call sent it\n"),
        "{again}"
    );
    assert_eq!(gateway.command(&[&send[..], &["--json"]].concat()).json()["duplicate"], true);
    gateway
        .command(&["send", "alice", "2", "--id", "order-1"])
        .fails(1, "says ALREADY_EXISTS: this id was used with other");
    let all = ["broadcast", "1", "--durable", "--id", "news", "--exclude-user", "bob", "--exclude-user", "carol"];
    let said = gateway.command(&all).ok();
    assert!(said.starts_with("stored; id news, offset ") && said.ends_with(", handed to 0 sessions\n"), "{said}");
    assert!(gateway.command(&all).ok().ends_with("; an earlier call sent it\n"));
    gateway.command(&["broadcast", "1", "--durable", "--ttl", "0s"]).fails(1, "notification.ttl: must not be zero");
}

#[test]
fn send_can_wait_for_a_device() {
    let gateway = Gateway::new();
    let confirmed = ["send", "alice", "1", "--wait", "confirmed"];
    let short = [&confirmed[..], &["--wait-timeout", "10ms"]].concat();
    assert!(gateway.command(&short).ok().starts_with("stored; id "), "nobody is there");
    // It may take longer than an answer may.
    let patient = [&confirmed[..], &["--wait-timeout", "500ms", "--timeout", "400ms"]].concat();
    assert!(gateway.command(&patient).ok().starts_with("stored; id "));
    let mut alice = gateway.client("alice", &["--ack-mode", "transport"]);
    let said = gateway.command(&confirmed).ok();
    assert!(said.starts_with("confirmed; id "), "{said}");
    alice.line();
    gateway.command(&["send", "alice", "1", "--wait-timeout", "1s"]).fails(2, "is for --wait confirmed");
}

#[test]
fn each_command_needs_its_scope() {
    let gateway = Gateway::new();
    for args in [&["pending", "alice"][..], &["devices", "alice"]] {
        gateway.over_tcp(args, READ_TOKEN).ok();
    }
    for args in [&["purge", "alice"][..], &["forget", "alice", "--force"], &["forget", "alice", "--device", ""]] {
        gateway.over_tcp(args, READ_TOKEN).fails(77, "lacks the scope `admin`");
    }
    for args in [&["pending", "alice"][..], &["purge", "alice"], &["devices", "alice"], &["forget", "alice", "--force"]]
    {
        pushgate(&[args, &["--grpc", "unix:/nowhere/admin.sock"]].concat()).fails(69, "no gateway answers at ");
    }
}
