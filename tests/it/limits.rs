//! What each limit does to whoever runs into it, and to nobody else; and that it is counted by its name.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use pushgate::{api::process, limits::ADDRESS_REFUSALS_MAX};
use serde_json::{Value, json};

use crate::support::{
    Gateway, Raw, Rpc, Token,
    raw::{PING, TEXT, frame, handshake},
    soon, until,
};

impl Gateway {
    /// How often somebody ran into a limit, by its key.
    async fn hits(&self, limit: &str) -> u64 {
        let limits = self.rpc().await.status().await.limits.unwrap();
        *limits.hits.get(limit).unwrap_or_else(|| panic!("no limit {limit}"))
    }

    /// A handshake from an address; the head of the answer.
    async fn asked_from(&self, source: &str) -> (Raw, String) {
        let mut raw = Raw::connect_from(source.parse().unwrap(), self.http).await;
        let head = raw.request(&handshake(&format!("token={}", Token::of("alice").sign()), "")).await;
        (raw, head)
    }
}

fn refused(head: &str, after: u32) {
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(head.to_lowercase().contains(&format!("\r\nretry-after: {after}\r\n")), "{head}");
}

fn let_in(head: &str) {
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_has_so_many_connections_and_others_have_theirs() {
    let gateway = Gateway::with(&[("limits.connections_per_address", "2")]).await;
    let (first, head) = gateway.asked_from("127.0.0.1").await;
    let_in(&head);
    let (_second, head) = gateway.asked_from("127.0.0.1").await;
    let_in(&head);
    let (_, head) = gateway.asked_from("127.0.0.1").await;
    refused(&head, 5);
    let (_other, head) = gateway.asked_from("127.0.0.2").await;
    let_in(&head);
    assert_eq!(gateway.hits("connections_per_address").await, 1);
    assert_eq!(gateway.errors("address_connection_limit").await, 1);
    let scraped = gateway.ops().get("/metrics").await.body;
    assert!(scraped.contains("pushgate_limits_hit_total{limit=\"connections_per_address\"} 1\n"), "{scraped}");
    first.reset();
    until("the place is free again", true, async || gateway.asked_from("127.0.0.1").await.1.contains(" 101 ")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_opens_sockets_and_says_nothing_is_dropped_unheard() {
    let gateway = Gateway::with(&[("limits.connections_per_address", "1")]).await;
    let source: IpAddr = "127.0.0.3".parse().unwrap();
    let mut silent = Vec::new();
    for _ in 0..1 + ADDRESS_REFUSALS_MAX {
        silent.push(Raw::connect_from(source, gateway.http).await);
    }
    let mut over = Raw::connect_from(source, gateway.http).await;
    assert_eq!(over.drained().await, 0);
    assert_eq!(gateway.hits("connections_per_address").await, 1);
    let (_other, head) = gateway.asked_from("127.0.0.4").await;
    let_in(&head);
    drop(silent);
    until("its places are free again", true, async || {
        let mut raw = Raw::connect_from(source, gateway.http).await;
        raw.write(handshake("", "").as_bytes()).await;
        raw.drained().await > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_session_of_a_device_takes_the_place_of_the_oldest() {
    let gateway = Gateway::with(&[
        ("limits.connections_per_device", "2"),
        // It makes its own room.
        ("limits.connections_per_user", "3"),
    ])
    .await;
    for device in ["device=phone", ""] {
        let mut first = Raw::session(&gateway, "alice", device).await;
        let mut second = Raw::session(&gateway, "alice", device).await;
        let mut other = Raw::session(&gateway, "alice", "device=tablet").await;
        let mut third = Raw::session(&gateway, "alice", device).await;
        let close = first.close_frame().await;
        assert_eq!(close.close_code(), Some(1008));
        assert_eq!(&close.payload[2..], b"replaced by a newer connection of this device");
        gateway.rpc().await.send("alice", "to all").await;
        for stays in [&mut second, &mut other, &mut third] {
            assert_eq!(stays.text().await["data"], "to all");
        }
        for raw in [first, second, other, third] {
            raw.reset();
        }
        gateway.sessions("alice", 0).await;
    }
    assert_eq!(gateway.hits("connections_per_device").await, 2);
    assert_eq!(gateway.errors("device_connection_limit").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_of_a_device_too_many_is_refused_where_that_is_configured() {
    let gateway = Gateway::with(&[("limits.connections_per_device", "1"), ("limits.device_overflow", "refuse")]).await;
    let mut first = Raw::session(&gateway, "alice", "device=phone").await;
    let mut second = Raw::connect(gateway.http).await;
    second = second.upgraded(&format!("device=phone&token={}", Token::of("alice").sign())).await;
    assert_eq!(second.close_frame().await.close_code(), Some(1013));
    let mut tablet = Raw::session(&gateway, "alice", "device=tablet").await;
    gateway.rpc().await.send("alice", 1).await;
    assert_eq!((first.text().await["data"].clone(), tablet.text().await["data"].clone()), (json!(1), json!(1)));
    assert_eq!(gateway.hits("connections_per_device").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_come_too_fast_wait_and_all_get_in() {
    let gateway = Gateway::with(&[("limits.accepts_per_second", "10")]).await;
    let started = Instant::now();
    let mut all = Vec::new();
    for n in 0..20 {
        all.push(Raw::session(&gateway, &format!("user-{n}"), "").await);
    }
    // Ten at once, and ten at ten a second.
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    assert!(gateway.hits("accepts_per_second").await >= 5);
    assert_eq!(gateway.errors("handshake_rate").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_over_their_rate_are_told_when_to_come_again() {
    for key in ["limits.handshakes_per_second", "limits.address_handshakes_per_second"] {
        let gateway = Gateway::with(&[(key, "3")]).await;
        let mut heads = Vec::new();
        let mut open = Vec::new();
        // Within a second there are three, and three more come back.
        for _ in 0..12 {
            let (raw, head) = gateway.asked_from("127.0.0.1").await;
            heads.push(head);
            open.push(raw);
        }
        heads[..3].iter().for_each(|head| let_in(head));
        let over: Vec<_> = heads.iter().filter(|head| !head.contains(" 101 ")).collect();
        assert!(over.len() >= 4, "{}", over.len());
        over.iter().for_each(|head| refused(head, 1));
        let name = key.trim_start_matches("limits.");
        assert_eq!(gateway.hits(name).await, over.len() as u64);
        assert_eq!(gateway.errors("handshake_rate").await, over.len() as u64);
        until("there is room again", true, async || gateway.asked_from("127.0.0.1").await.1.contains(" 101 ")).await;
        if name.starts_with("address") {
            let (_, head) = gateway.asked_from("127.0.0.9").await;
            let_in(&head);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_has_so_much_time_and_so_many_bytes() {
    let gateway = Gateway::with(&[("limits.handshake_timeout", "300ms"), ("limits.handshake_bytes", "2KiB")]).await;
    let mut session = Raw::session(&gateway, "alice", "").await;
    let mut silent = Raw::connect(gateway.http).await;
    let mut slow = Raw::connect(gateway.http).await;
    slow.write(b"GET /ws HTTP/1.1\r\nHost: ga").await;
    silent.drained().await;
    slow.drained().await;
    until("both are counted", 2, async || gateway.hits("handshake_timeout").await).await;
    let mut long = Raw::connect(gateway.http).await;
    let head = long.request(&handshake("", &format!("X-Long: {}\r\n", "x".repeat(2048)))).await;
    assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
    until("it is counted", 1, async || gateway.hits("handshake_bytes").await).await;
    let mut fits = Raw::connect(gateway.http).await;
    let head = fits.request(&handshake("", &format!("X-Long: {}\r\n", "x".repeat(1500)))).await;
    let_in(&head);
    session.say(&json!({ "type": "ping" })).await;
    assert_eq!(session.text().await["type"], "pong");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_before_auth_comes_to_an_end() {
    let gateway = Gateway::with(&[("auth.timeout", "20s")]).await;
    let mut raw = Raw::connect(gateway.http).await.upgraded("").await;
    let pings = frame(PING, &[0; 100]).repeat(64);
    let closed = async {
        // Whatever it sends, it is told once it was too much.
        for _ in 0..100 {
            raw.write(&pings).await;
            if let Ok(close) = tokio::time::timeout(Duration::from_millis(20), raw.close_frame()).await {
                return close;
            }
        }
        panic!("it goes on")
    };
    assert_eq!(soon("the close", closed).await.close_code(), Some(1009));
    assert_eq!(gateway.hits("handshake_bytes").await, 1);
}

/// What a session hears until it is closed: whether it was warned, and the code.
async fn until_closed(raw: &mut Raw) -> (Vec<Value>, Option<u16>) {
    let mut said = Vec::new();
    loop {
        let frame = raw.frame().await;
        match frame.first {
            TEXT => said.push(frame.json()),
            0x88 => return (said, frame.close_code()),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_sends_too_much_is_warned_and_then_closed() {
    let gateway = Gateway::with(&[
        ("limits.messages_per_second", "20"),
        ("limits.bytes_per_second", "4KiB"),
        ("limits.message_bytes", "2KiB"),
    ])
    .await;
    let mut good = Raw::session(&gateway, "bob", "").await;
    let echo = |data: &str| frame(TEXT, json!({ "type": "echo", "data": data }).to_string().as_bytes());
    for (limit, bytes) in [
        ("messages_per_second", echo("").repeat(60)),
        ("messages_per_second", frame(PING, b"").repeat(200)),
        ("bytes_per_second", echo(&"x".repeat(1000)).repeat(15)),
    ] {
        let before = gateway.hits(limit).await;
        let mut raw = Raw::session(&gateway, "alice", "").await;
        raw.write(&bytes).await;
        let (said, code) = until_closed(&mut raw).await;
        assert_eq!(code, Some(4429), "{limit}: {said:?}");
        let warnings: Vec<_> = said.iter().filter(|one| one["type"] == "error").collect();
        assert_eq!(warnings.len(), 1, "{said:?}");
        assert_eq!(warnings[0]["code"], "rate_limited");
        assert!(warnings[0]["message"].as_str().unwrap().contains(limit), "{said:?}");
        assert_eq!(gateway.hits(limit).await - before, 2, "the warning and the close");
    }
    assert_eq!(gateway.errors("rate_limited").await, 6);
    // Twenty are no offence, and were never stopped by those of others.
    good.write(&echo("fine").repeat(20)).await;
    for _ in 0..20 {
        assert_eq!(good.text().await["type"], "echo_response");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_of_what_was_sent_are_no_offence_however_many() {
    let gateway = Gateway::with(&[("limits.messages_per_second", "10")]).await;
    let mut rpc = gateway.rpc().await;
    let mut raw = Raw::session(&gateway, "alice", "ackMode=client").await;
    for n in 0..100 {
        rpc.send("alice", n).await;
        let got = raw.text().await;
        raw.say(&json!({ "type": "ack", "offset": got["offset"] })).await;
    }
    until("all are confirmed", 0, async || gateway.pending().await).await;
    assert_eq!(gateway.hits("messages_per_second").await, 0);
    // Those that confirm nothing are.
    raw.write(&frame(TEXT, br#"{"type":"ack","offset":1}"#).repeat(100)).await;
    assert_eq!(until_closed(&mut raw).await.1, Some(4429));
}

#[tokio::test(flavor = "multi_thread")]
async fn new_tokens_come_so_often_a_minute() {
    let gateway = Gateway::with(&[("limits.reauths_per_minute", "2")]).await;
    let mut client = gateway.client("alice").await;
    let auth = json!({ "type": "auth", "token": Token::of("alice").sign() });
    for _ in 0..2 {
        assert_eq!(client.ask(&auth).await["type"], "auth_success");
    }
    let refused = client.ask(&auth).await;
    assert_eq!((&refused["type"], &refused["code"]), (&json!("error"), &json!("rate_limited")));
    assert!(refused["message"].as_str().unwrap().starts_with("at most 2 "), "{refused}");
    assert_eq!(gateway.hits("reauths_per_minute").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_so_many_new_devices_an_hour() {
    let gateway = Gateway::with(&[("limits.new_devices_per_hour", "2"), ("store.max_devices_per_user", "0")]).await;
    let come = async |gateway: &Gateway, device: &str| {
        let query = format!("device={device}&token={}", Token::of("alice").sign());
        let mut raw = Raw::connect(gateway.http).await.upgraded(&query).await;
        let hello = raw.frame().await.json();
        (hello["type"].as_str().unwrap().to_owned(), hello["code"].clone())
    };
    let success = ("auth_success".to_owned(), Value::Null);
    for device in ["a", "b", "a"] {
        assert_eq!(come(&gateway, device).await, success);
    }
    let refused = ("auth_failure".to_owned(), json!("device_limit"));
    assert_eq!(come(&gateway, "c").await, refused);
    assert_eq!(gateway.hits("new_devices_per_hour").await, 1);
    // Those that are known come as they like, also after a restart.
    let gateway = gateway.restart().await;
    assert_eq!((come(&gateway, "b").await, come(&gateway, "c").await), (success.clone(), refused));
    gateway.later(Duration::from_secs(3601));
    assert_eq!(come(&gateway, "c").await, success);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_let_in_while_there_is_no_memory_and_the_others_live_on() {
    const ROOM: usize = 256 << 20;
    let most = process::resident_bytes() + ROOM as u64;
    let gateway = Gateway::with(&[("limits.memory", &format!("{most}B")), ("auth.timeout", "20s")]).await;
    let mut old = Raw::session(&gateway, "bob", "").await;
    let mut waiting = Raw::connect(gateway.http).await.upgraded("").await;
    // This process is the gateway's.
    let ballast = vec![1_u8; 2 * ROOM];
    until("nobody is let in", true, async || gateway.asked_from("127.0.0.1").await.1.contains(" 503 ")).await;
    let (_, head) = gateway.asked_from("127.0.0.1").await;
    refused(&head, 5);
    waiting.say(&json!({ "type": "auth", "token": Token::of("alice").sign() })).await;
    assert_eq!(waiting.close_frame().await.close_code(), Some(1013));
    old.say(&json!({ "type": "echo", "data": 1 })).await;
    assert_eq!(old.text().await["data"], 1);
    assert!(gateway.hits("memory").await >= 3 && gateway.errors("memory_limit").await >= 3);
    drop(std::hint::black_box(ballast));
    until("others are let in again", true, async || gateway.asked_from("127.0.0.1").await.1.contains(" 101 ")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_page_shows_the_limits() {
    let gateway = Gateway::with(&[
        ("limits.connections_per_address", "7"),
        ("limits.device_overflow", "refuse"),
        ("limits.memory", "4GiB"),
        ("limits.handshake_timeout", "3s"),
        ("grpc.max_streams", "99"),
        ("limits.notification_bytes", "2MiB"),
    ])
    .await;
    let limits = gateway.rpc().await.status().await.limits.unwrap();
    assert_eq!((limits.connections_per_address, limits.device_overflow.as_str()), (7, "refuse"));
    assert_eq!((limits.memory_bytes, limits.handshake_timeout.unwrap().seconds), (4 << 30, 3));
    assert_eq!((limits.grpc_max_streams, limits.grpc_max_message_bytes), (99, 8 << 20));
    assert_eq!(limits.hits.len(), pushgate::limits::Limit::ALL.len());
    let page = gateway.ops().get("/ws/stats").await.json();
    assert_eq!(page["limits"]["hits"]["memory"], "0", "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_callers_beyond_their_number_wait() {
    let gateway = Gateway::with(&[("grpc.max_connections", "1")]).await;
    // The Unix socket has places of its own.
    let mut rpc = Rpc::over_unix(&gateway.socket).await;
    let hits = async |rpc: &mut Rpc| rpc.status().await.limits.unwrap().hits["grpc.max_connections"];
    let mut first = Raw::connect(gateway.grpc).await;
    first.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    first.some_bytes().await;
    assert_eq!(hits(&mut rpc).await, 0, "nobody waits");
    let mut second = Raw::connect(gateway.grpc).await;
    second.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    until("the second waits", 1, async || hits(&mut rpc.clone()).await).await;
    assert!(tokio::time::timeout(Duration::from_millis(100), second.some_bytes()).await.is_err(), "it was let in");
    first.reset();
    second.some_bytes().await;
}

/// What a connection to the admin API begins with: the preface, and SETTINGS.
const BEGINS: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test(flavor = "multi_thread")]
async fn who_connects_to_the_admin_api_and_never_calls_loses_his_place() {
    let gateway = Gateway::with(&[("grpc.max_connections", "3")]).await;
    let mut rpc = Rpc::over_unix(&gateway.socket).await;
    // One who calls, one whose calls are refused, and one who says nothing.
    let mut caller = gateway.rpc().await;
    caller.send("alice", 1).await;
    let mut stranger = Rpc::over_tcp(gateway.grpc, Some("no-token")).await;
    stranger.try_send(crate::support::rpc::request("alice", crate::support::rpc::notification(1))).await.unwrap_err();
    let mut silent = Raw::connect(gateway.grpc).await;
    silent.write(BEGINS).await;
    silent.some_bytes().await;
    let mut waiting = Raw::connect(gateway.grpc).await;
    waiting.write(BEGINS).await;
    // Within the ten seconds that the two have.
    waiting.some_bytes().await;
    silent.drained().await;
    let hits = rpc.status().await.limits.unwrap().hits;
    assert_eq!(hits["grpc.max_connections"], 1, "{hits:?}");
    assert_eq!(hits["grpc.first_call"], 2, "both, and not the one who called: {hits:?}");
    caller.send("alice", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_a_connection_beyond_their_number_wait() {
    let gateway = Gateway::with(&[("grpc.max_streams", "2")]).await;
    let mut rpc = Rpc::over_unix(&gateway.socket).await;
    let hits = async |rpc: &mut Rpc| rpc.status().await.limits.unwrap().hits["grpc.max_streams"];
    let mut caller = gateway.rpc().await;
    let first = caller.events(&[], "").await;
    assert_eq!(hits(&mut rpc).await, 0, "one is not all");
    let _second = caller.events(&[], "").await;
    until("as many as there may be", 1, async || hits(&mut rpc.clone()).await).await;
    let mut third = tokio::spawn(async move { caller.send("alice", 1).await });
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut third).await.is_err(), "it did not wait");
    drop(first);
    soon("the third", third).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_answers_no_ping_is_let_go() {
    let gateway = Gateway::with(&[("grpc.keepalive_interval", "1s"), ("grpc.keepalive_timeout", "1s")]).await;
    let mut rpc = Rpc::over_unix(&gateway.socket).await;
    let mut caller = gateway.rpc().await;
    let mut silent = Raw::connect(gateway.grpc).await;
    silent.write(BEGINS).await;
    silent.drained().await;
    // One who answers stays, and one who goes by himself is none of these.
    let mut gone = Raw::connect(gateway.grpc).await;
    gone.write(BEGINS).await;
    gone.some_bytes().await;
    gone.reset();
    caller.send("alice", 1).await;
    assert_eq!(rpc.status().await.limits.unwrap().hits["grpc.keepalive_timeout"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_the_probes_beyond_their_number_wait() {
    let gateway = Gateway::start().await;
    let ask = b"GET /livez HTTP/1.1\r\nHost: ops\r\n\r\n";
    let mut all = Vec::new();
    for _ in 0..pushgate::limits::OPS_CONNECTIONS_MAX {
        let mut raw = Raw::connect(gateway.ops).await;
        raw.write(ask).await;
        assert!(raw.head().await.starts_with("HTTP/1.1 200 "));
        all.push(raw);
    }
    assert_eq!(gateway.hits("ops.connections").await, 0, "nobody waits");
    let mut over = Raw::connect(gateway.ops).await;
    over.write(ask).await;
    until("it waits", 1, async || gateway.hits("ops.connections").await).await;
    all.pop().unwrap().reset();
    assert!(over.head().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_and_lists_come_so_often() {
    let rule = r#"[{ pattern = "room.*", subscribe = ["*"], presence = ["*"] }]"#;
    let gateway =
        Gateway::with(&[("limits.membership_changes", "3"), ("limits.user_lists", "2"), ("topics", rule)]).await;
    let mut client = gateway.client("alice").await;
    for (limit, most, message) in [
        ("membership_changes", 3, json!({ "type": "subscribe", "topic": "room.1" })),
        ("user_lists", 2, json!({ "type": "user_list", "topic": "room.1" })),
    ] {
        let started = Instant::now();
        let mut refused = 0;
        for _ in 0..most + 100 {
            let answer = client.ask(&message).await;
            refused += u64::from(answer["code"] == "rate_limited");
        }
        // Some come back while it asks.
        let back = 1 + started.elapsed().as_secs() * 9;
        assert!(refused <= 100 && refused + back >= 100, "{limit}: {refused} in {:?}", started.elapsed());
        assert_eq!(gateway.hits(limit).await, refused);
    }
}

#[test]
fn the_readme_names_every_limit() {
    let readme = include_str!("../../README.md");
    for limit in pushgate::limits::Limit::ALL {
        assert!(readme.contains(&format!("`{}`", limit.as_str())), "{limit:?}");
    }
}
