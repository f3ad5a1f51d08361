//! `drain` and `undrain`: what they print and how they end.

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Follower, Gateway, READ_TOKEN, binary, pushgate};

/// `drain` as a command that goes on, once it has told how it begins.
fn draining(gateway: &Gateway, further: &[&str]) -> (Follower, String) {
    // A note about what it does would be one too many: it says nothing but its progress.
    let mut follower = Follower::quiet(binary(&gateway.args(&[&["drain"], further].concat())));
    let first = follower.line();
    (follower, first)
}

fn listens(gateway: &Gateway) -> bool {
    TcpStream::connect(gateway.address("http")).is_ok()
}

#[test]
fn drain_tells_its_progress_and_undrain_takes_the_gateway_back() {
    let gateway = Gateway::with("[shutdown]\nlb_delay = \"1s\"");
    let mut alice = gateway.client("alice", &["--json"]);
    let said = gateway.command(&["drain"]).ok();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "not ready, and serves on: 1 session", "{said}");
    assert!(lines.contains(&"closing: 1 of 1 session left"), "{said}");
    assert_eq!(lines.last(), Some(&"drained: no session left"), "{said}");
    assert!(!listens(&gateway));
    // Whoever listens hears when to come back, and does, once there is somebody to come back to.
    alice.note("the gateway restarts: 1012");
    gateway.command(&["health"]).fails(69, "is not serving: NOT_SERVING");

    // Who asks again hears what there is.
    assert_eq!(gateway.command(&["drain"]).ok(), "drained: no session left\n");
    assert!(gateway.command(&["send", "alice", "1"]).ok().starts_with("stored; id "));
    gateway.command(&["send", "alice", "2", "--ttl", "0s"]).fails(69, "UNAVAILABLE");

    assert_eq!(gateway.command(&["undrain"]).ok(), "in service again, with 0 sessions\n");
    assert!(listens(&gateway));
    gateway.command(&["health"]).ok();
    alice.note("connected to ");
    assert!(alice.line().contains(r#""data":1"#));
    assert_eq!(gateway.command(&["undrain"]).ok(), "it was in service, with 1 session\n");
    gateway.stop();
}

#[test]
fn as_json_each_step_is_a_line() {
    let gateway = Gateway::new();
    let _alice = gateway.client("alice", &[]);
    let run = gateway.command(&["drain", "--deadline", "30s", "--json"]);
    let steps: Vec<Value> = run.ok().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let states: Vec<&str> = steps.iter().map(|step| step["state"].as_str().unwrap()).collect();
    assert_eq!((states[0], states[states.len() - 1]), ("DRAIN_STATE_NOT_READY", "DRAIN_STATE_DRAINED"));
    for step in &steps {
        assert_eq!((&step["stopping"], &step["sessions"]), (&json!(false), &json!(1)), "{step}");
        assert!(step["deadline"].as_str().unwrap().ends_with('Z') && step["left"].is_u64(), "{step}");
    }
    let back = gateway.command(&["undrain", "--json"]).json();
    assert_eq!(back, json!({ "wasDraining": true, "sessions": 0 }));
    gateway.stop();
}

#[test]
fn the_deadline_wins_and_a_second_pace_is_refused() {
    let gateway = Gateway::new();
    let clients: Vec<_> = (0..30).map(|n| gateway.client(&format!("user-{n}"), &[])).collect();
    // Three seconds, at ten a second.
    let (one, _) = draining(&gateway, &["--over", "60s"]);
    gateway.command(&["drain", "--over", "1s"]).fails(1, "ALREADY_EXISTS");
    gateway.command(&["drain", "--deadline", "1s"]).fails(1, "Undrain ends it");
    assert_eq!(gateway.command(&["undrain"]).code, 0);
    one.end().fails(1, "somebody took the gateway back into service");
    let began = Instant::now();
    gateway.command(&["drain", "--over", "60s", "--deadline", "1s"]).ok();
    assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
    drop(clients);
}

#[test]
fn spans_that_are_none_are_mistakes_and_who_may_not_is_told() {
    pushgate(&["drain", "--over", "soon"]).fails(2, "--over");
    pushgate(&["drain", "--deadline", "-1s"]).fails(2, "");
    let gateway = Gateway::new();
    gateway.command(&["drain", "--over", "61m"]).fails(1, "must be 0 to 1h");
    gateway.command(&["drain", "--deadline", "25h"]).fails(1, "must be 1ms to 1d");
    gateway.over_tcp(&["drain"], READ_TOKEN).fails(77, "lacks the scope `admin`");
    gateway.over_tcp(&["undrain"], READ_TOKEN).fails(77, "lacks the scope `admin`");
    assert!(listens(&gateway));
    gateway.stop();
    for command in ["drain", "undrain"] {
        pushgate(&[command, "--grpc", "127.0.0.1:1"]).fails(69, "127.0.0.1:1");
    }
}

#[test]
fn who_is_interrupted_does_not_end_the_drain_and_a_stop_goes_on_with_it_to_its_end() {
    let gateway = Gateway::with("[shutdown]\nlb_delay = \"9s\"\ndeadline = \"10s\"");
    let (mut one, first) = draining(&gateway, &[]);
    assert_eq!(first, "not ready, and serves on: 0 sessions");
    one.signal(Signal::INT);
    one.note("the drain goes on; pushgate undrain ends it");
    assert_eq!(one.end().code, 0);
    let (two, joined) = draining(&gateway, &[]);
    assert_eq!(joined, first);
    gateway.stop();
    let run = two.end();
    assert!(run.stdout.contains("; the gateway stops"), "{run:?}");
    // It is drained, which is what was asked for.
    assert!(run.stdout.ends_with("drained: no session left; the gateway stops"), "{run:?}");
    assert_eq!(run.code, 0, "{run:?}");
}
