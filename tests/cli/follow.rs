//! The commands that go on: `events`, `status --watch`.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Follower, Gateway, binary, send_signal};

fn events(gateway: &Gateway, further: &[&str]) -> Follower {
    Follower::start(binary(&gateway.args(&[&["events"], further].concat())), "events of unix:")
}

#[test]
fn events_are_a_line_each() {
    let gateway = Gateway::new();
    let mut all = events(&gateway, &[]);
    let mut json =
        events(&gateway, &["--json", "--user", "alice", "--type", "session_opened", "--type", "session_closed"]);
    let _bob = gateway.client("bob", &[]);
    let alice = gateway.client("alice", &["--device", "phone"]);
    gateway.command(&["close", "alice", "--reason", "bye"]).ok();
    alice.end();

    let mut lines = Vec::new();
    while !lines.last().is_some_and(|line: &String| line.contains("session_closed")) {
        lines.push(all.line());
    }
    let find =
        |name: &str| lines.iter().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}: {lines:#?}"));
    assert!(find("  session_opened ").contains("user bob, session "), "{lines:#?}");
    assert!(find("  user_online ").ends_with("  user bob"), "{lines:#?}");
    let closed = find("  session_closed ");
    assert!(
        closed.contains("user alice, device phone, session ") && closed.contains(", 1000 (bye) by a caller after ")
    );
    assert!(closed.starts_with("20") && closed.contains("Z  session_closed "), "{closed}");

    let mut next = || serde_json::from_str::<Value>(&json.line()).unwrap();
    let opened = next();
    assert_eq!(opened["sessionOpened"]["device"], json!("phone"), "{opened}");
    assert!(opened["sequence"].is_string(), "{opened}");
    let closed = next();
    assert_eq!(closed["sessionClosed"]["closedBy"], json!("CLOSED_BY_CALLER"));
    assert_eq!(closed["sessionClosed"]["userId"], json!("alice"));
}

#[test]
fn an_alert_is_a_line_and_stands_on_the_page_until_it_clears() {
    let gateway = Gateway::with("[alerts]\nfire_after = \"0s\"\nclear_after = \"0s\"\nconnections = \"1\"");
    let mut alerts = events(&gateway, &["--type", "alert"]);
    let (alice, bob) = (gateway.client("alice", &[]), gateway.client("bob", &[]));
    assert!(alerts.line().ends_with("  alert                   connections fires: 2 connections, above 1"));
    let page = gateway.command(&["status"]).ok();
    assert!(page.contains("  alerts       connections: 2 connections, above 1\n"), "{page}");
    let document = gateway.command(&["status", "--json"]).json();
    assert_eq!((&document["alerts"][0]["name"], &document["alerts"][0]["value"]), (&json!("connections"), &json!(2.0)));
    gateway.command(&["close", "alice"]).ok();
    gateway.command(&["close", "bob"]).ok();
    assert!(alerts.line().contains("  connections cleared: "));
    assert!(gateway.command(&["status"]).ok().contains("  alerts       none\n"));
    drop((alice, bob));
}

#[test]
fn events_begin_with_what_there_is_or_behind_a_place() {
    let gateway = Gateway::with("[clients]\nforward = [\"order\"]\n");
    let _alice = gateway.client("alice", &["--device", "phone"]);
    let mut snapshot = events(&gateway, &["--snapshot", "--type", "session_closed"]);
    assert!(snapshot.line().contains("  snapshot_session        user alice, device phone, session "));
    assert!(snapshot.line().ends_with("  snapshot_end            1 session"));
    let next = |follower: &mut Follower| serde_json::from_str::<Value>(&follower.line()).unwrap();
    let told = next(&mut events(&gateway, &["--json", "--snapshot"]));
    assert_eq!((&told["snapshotSession"]["session"]["userId"], &told["sequence"]), (&json!("alice"), &json!("2")));
    let place = |sequence: u32| format!("{}:{sequence}", told["epoch"].as_str().unwrap());
    let opened = next(&mut events(&gateway, &["--json", "--resume-after", &place(0)]));
    assert_eq!((&opened["sequence"], &opened["sessionOpened"]["device"]), (&json!("1"), &json!("phone")));
    let online = next(&mut events(&gateway, &["--json", "--resume-after", &place(1)]));
    assert_eq!(online["userOnline"]["userId"], json!("alice"));
    let mut elsewhere = events(&gateway, &["--resume-after", "another:1"]);
    assert!(elsewhere.line().ends_with("  events_lost             0 events, and what came in the other epoch"));
    let refused = gateway.command(&["events", "--resume-after", &place(3)]);
    refused.fails(1, "resume_after.sequence: 3 is not reached yet in this epoch");
}

/// Whoever reads events without asking for clients' messages is no service: clients would wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn clients_messages_are_for_who_asks_for_them() {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::tungstenite::Message;
    let gateway = Gateway::with("[clients]\nforward = [\"order\", \"chat\"]\n");
    let token = gateway.command(&["token", "user", "--sub", "alice"]).ok();
    let url = format!("{}?token={}", gateway.url(), token.trim());
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    let mut ask = async |text: &str| {
        socket.send(Message::text(text)).await.unwrap();
        loop {
            match socket.next().await.unwrap().unwrap() {
                Message::Text(text) if text.contains("replyTo") => return text.to_string(),
                _ => {}
            }
        }
    };
    let _all = events(&gateway, &[]);
    let mut orders = events(&gateway, &["--message-type", "order", "--group", "orders"]);
    assert!(ask(r#"{"type":"chat","id":"1","data":1}"#).await.contains("no_service"));
    let long = "x".repeat(300);
    socket.send(Message::text(format!(r#"{{"type":"order","id":"2","data":"{long}"}}"#))).await.unwrap();
    let line = loop {
        let line = orders.line();
        if line.contains("message_received") {
            break line;
        }
    };
    assert!(line.contains("  message_received        user alice, session "), "{line}");
    assert!(line.ends_with(&format!(", order, id 2: \"{}… (302B)", "x".repeat(199))), "{line}");
}

#[test]
fn an_interrupt_and_a_reader_that_goes_away_are_good_ends() {
    let gateway = Gateway::new();
    let interrupted = events(&gateway, &[]);
    interrupted.signal(Signal::INT);
    assert_eq!(interrupted.end().code, 0);

    let mut unread = events(&gateway, &[]);
    drop(unread.stdout.take());
    // Nothing has happened on the gateway that could not be written.
    assert_eq!(unread.end().code, 0);

    let mut watching =
        Follower::start(binary(&gateway.args(&["listen", "--user", "a", "--url", &gateway.url()])), "connected");
    drop(watching.stdout.take());
    assert_eq!(watching.end().code, 0);
}

#[test]
fn events_end_with_the_gateway() {
    let gateway = Gateway::new();
    let follower = events(&gateway, &["--type", "draining"]);
    gateway.stop();
    let run = follower.end();
    assert!(run.stdout.contains("  draining  "), "{run:?}");
    assert_eq!(run.code, 69, "{run:?}");
}

#[test]
fn status_is_watched_until_it_is_interrupted() {
    let gateway = Gateway::new();
    let mut command = binary(&gateway.args(&["status", "--watch", "--json"]));
    let mut child = command.spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    for _ in 0..2 {
        let page: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(page["users"], json!(0));
    }
    send_signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
