//! That each family moves by what it says it counts, and by nothing else: seen where operators see it, in `/metrics` of a
//! gateway to which it happens.

use std::{collections::BTreeMap, fs, time::Duration};

use pushgate::api::proto::{
    CloseUserSessionsRequest, Notification, RevokeTokensRequest, SendToSessionRequest, event::Event as Body,
};
use serde_json::json;
use tonic::Code;

use crate::{
    http::samples,
    support::{
        Client, Gateway, Http, Raw, Rpc, Token,
        client::{refusal, request},
        raw::{self, handshake},
        rpc::{confirmed, durable, notification, request as send, ttl},
        soon, until,
    },
};

/// What a scrape finds.
struct Scraped(BTreeMap<String, f64>);

impl Scraped {
    async fn of(gateway: &Gateway) -> Self {
        Self(samples(&Http::new(gateway.ops).get("/metrics").await.body))
    }

    /// The value of a series, named without `pushgate_`; labels as `name=value`.
    fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let series = format!("pushgate_{name}{labels}");
        *self.0.get(&series).unwrap_or_else(|| panic!("{series} is not there"))
    }

    /// The series of a family with one label that are not 0, by its values.
    fn by_label(&self, name: &str) -> BTreeMap<&str, f64> {
        let start = format!("pushgate_{name}{{");
        let all = self.0.iter().filter_map(|(series, value)| Some((series.strip_prefix(&start)?, *value)));
        all.filter(|(_, value)| *value != 0.0)
            .map(|(labels, value)| (labels.split('"').nth(1).unwrap(), value))
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_and_bytes_count_by_what_they_are_and_in_which_direction() {
    let topics = r#"[{ pattern = "room", subscribe = ["*"], publish = ["*"] },
        { pattern = "log", subscribe = ["*"], publish = ["*"], durable = true }]"#;
    let changes = [("topics", topics), ("clients.message", r#"["*"]"#), ("clients.forward", r#"["order"]"#)];
    let gateway = Gateway::with(&changes).await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&["message_received"], "").await;
    let (mut alice, mut bob) = (gateway.client("alice").await, gateway.client("bob").await);
    for topic in ["room", "log"] {
        alice.subscribe(topic).await;
    }

    // Each is read before the next, so that what is expected cannot come in another order.
    rpc.send("alice", 1).await;
    assert_eq!(alice.data(1).await, [1]);
    rpc.send_to("alice", Notification { ttl: ttl(0, 0), ..notification(2) }).await;
    assert_eq!(alice.data(1).await, [2]);
    rpc.broadcast(3).await;
    rpc.try_broadcast(durable(notification(4), &[])).await.unwrap();
    for client in [&mut alice, &mut bob] {
        let mut seen = client.data(2).await;
        seen.sort_by_key(serde_json::Value::as_u64);
        assert_eq!(seen, [3, 4]);
    }
    rpc.publish("room", 5).await;
    assert_eq!(alice.next().await["data"], 5);
    for (message, data) in [
        (json!({ "type": "publish", "topic": "room", "data": 6 }), 6),
        (json!({ "type": "publish", "topic": "log", "data": 7 }), 7),
        (json!({ "type": "message", "to": "alice", "data": 8 }), 8),
    ] {
        bob.say(&message).await;
        assert_eq!(alice.next().await["data"], data);
    }
    let order = json!({ "type": "order", "id": "o", "data": 9 });
    bob.say(&order).await;
    let Body::MessageReceived(received) = events.body().await else { panic!("another event") };
    let reply = SendToSessionRequest {
        session_id: received.session_id,
        reply_to: received.id,
        notification: Some(notification(10)),
    };
    rpc.send_to_session(reply).await.unwrap();
    assert_eq!(bob.next().await["data"], 10);
    alice.settle().await;
    bob.settle().await;

    let messages = |all: &Scraped, direction: &str, class: &str| {
        all.get("class_messages_total", &[("direction", direction), ("class", class)])
    };
    let of = |all: &Scraped, direction: &str| {
        ["durable", "transient", "broadcast", "publish", "request"].map(|class| messages(all, direction, class))
    };
    // Counted behind the write that the client read; so is the confirmation.
    until("all is counted", ([4.0, 2.0, 2.0, 2.0, 1.0], 4.0), async || {
        let all = Scraped::of(&gateway).await;
        (of(&all, "sent"), all.get("call_to_confirm_seconds_count", &[]))
    })
    .await;
    let all = Scraped::of(&gateway).await;
    assert_eq!(of(&all, "received"), [1.0, 1.0, 0.0, 1.0, 1.0]);
    let bytes =
        |direction: &str, class: &str| all.get("class_bytes_total", &[("direction", direction), ("class", class)]);
    assert_eq!(bytes("received", "request"), order.to_string().len() as f64);
    for (direction, class) in [("sent", "durable"), ("sent", "broadcast"), ("sent", "publish"), ("received", "durable")]
    {
        let each = bytes(direction, class) / messages(&all, direction, class);
        assert!((30.0..400.0).contains(&each), "{direction} {class}: {each} bytes each");
    }
    for direction in ["sent", "received"] {
        assert!(messages(&all, direction, "system") >= 4.0, "what the barriers ask and are answered");
        assert!(messages(&all, direction, "control") >= 1.0, "pings and pongs");
        let sum = |name: &str| {
            let start = format!("pushgate_{name}{{direction=\"{direction}\",");
            let of = all.0.iter().filter(|(series, _)| series.starts_with(&start));
            of.filter(|(series, _)| name != "class_messages_total" || !series.contains("control"))
                .map(|(_, n)| n)
                .sum::<f64>()
        };
        assert_eq!(sum("class_messages_total"), all.get("messages_total", &[("direction", direction)]), "{direction}");
        let traffic = all.get("traffic_bytes_total", &[("direction", direction)]);
        match direction {
            "sent" => assert_eq!(sum("class_bytes_total"), traffic),
            _ => assert!(sum("class_bytes_total") < traffic, "the headers of frames are traffic, too"),
        }
    }

    let count = |family: &str, labels: &[(&str, &str)]| all.get(&format!("{family}_seconds_count"), labels);
    assert_eq!((count("confirm_latency", &[]), count("reply_latency", &[])), (4.0, 1.0));
    assert_eq!(count("fanout_latency", &[("audience", "broadcast")]), 2.0);
    assert_eq!(count("fanout_latency", &[("audience", "topic")]), 3.0);
    let took = all.get("call_to_confirm_seconds_sum", &[]);
    assert!((0.0..60.0).contains(&took), "{took} s from four calls to their confirmations");
    assert_eq!(all.get("topics", &[]), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_for_its_device_counts_from_its_call_on() {
    let gateway = Gateway::start().await;
    gateway.rpc().await.send("alice", 1).await;
    gateway.later(Duration::from_secs(1000));
    let mut alice = gateway.client("alice").await;
    alice.data(1).await;
    alice.settle().await;
    let counted = async || Scraped::of(&gateway).await.get("call_to_confirm_seconds_count", &[]);
    until("the confirmation", 1.0, counted).await;
    let all = Scraped::of(&gateway).await;
    let took = all.get("call_to_confirm_seconds_sum", &[]);
    assert!((1000.0..1100.0).contains(&took), "{took} s");
    assert!(all.get("confirm_latency_seconds_sum", &[]) < 100.0, "from its hand-over on");
}

/// What the gateway says to who comes with that.
async fn turned_away(gateway: &Gateway, query: &str, code: &str) {
    let (mut client, _) = Client::open(request(&gateway.url(query), &[])).await.unwrap();
    assert_eq!(client.next().await["code"], code);
    assert_eq!(client.closed().await, (4401, code.to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_count_by_result_and_refused_tokens_by_code() {
    let gateway = Gateway::with(&[
        ("auth.audience", r#"["app"]"#),
        ("auth.issuer", r#"["login"]"#),
        ("http.origins", r#"["https://app.example.com"]"#),
        ("limits.connections_per_user", "1"),
        ("limits.new_devices_per_hour", "1"),
    ])
    .await;
    let good = |user: &str| Token::of(user).with("aud", "app").with("iss", "login").with("jti", user);
    let query = |token: &Token| format!("token={}", token.sign());
    let alice = gateway.client_by(&good("alice"), "device=a").await;

    let mut second = Raw::connect(gateway.http).await.upgraded(&format!("device=a&{}", query(&good("alice")))).await;
    assert_eq!(second.close_frame().await.close_code(), Some(1013));
    alice.close().await;
    gateway.sessions("alice", 0).await;
    let revoke = RevokeTokensRequest {
        jti: "revoked".into(),
        expires_at: Some((std::time::SystemTime::now() + Duration::from_secs(3600)).into()),
        ..Default::default()
    };
    gateway.rpc().await.revoke(revoke).await.unwrap();
    let no_user = Token::claims(json!({ "exp": crate::support::token::unix_now() + 60, "aud": "app", "iss": "login" }));
    for (query, code) in [
        (format!("device=b&{}", query(&good("alice"))), "device_limit"),
        ("token=nonsense".to_owned(), "token_invalid"),
        (query(&good("bob").expiring_in(-100)), "token_expired"),
        (query(&good("revoked")), "token_revoked"),
        (query(&no_user), "user_missing"),
        (query(&good("bob").with("aud", "elsewhere")), "audience_mismatch"),
        (query(&good("bob").with("iss", "elsewhere")), "issuer_mismatch"),
    ] {
        turned_away(&gateway, &query, code).await;
    }
    let (mut client, _) = Client::open(request(&gateway.url(""), &[])).await.unwrap();
    assert_eq!(client.ask(&json!({ "type": "ping" })).await["code"], "token_missing");

    // No handshake, one of a page that may not, a first frame that breaks the protocol, one who leaves with any code.
    let head = Raw::connect(gateway.http).await.request("GET /ws HTTP/1.1\r\nHost: gateway\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 426 "), "{head}");
    let foreign = request(&gateway.url(""), &[("origin", "https://evil.example.com")]);
    assert_eq!(refusal(foreign).await.status(), 403);
    let mut unmasked = Raw::connect(gateway.http).await.upgraded("").await;
    unmasked.write(&[raw::TEXT, 2, b'{', b'}']).await;
    assert_eq!(unmasked.close_frame().await.close_code(), Some(1002));
    let mut leaves = Raw::connect(gateway.http).await.upgraded("").await;
    leaves.send(raw::CLOSE, &1011_u16.to_be_bytes()).await;
    assert_eq!(leaves.close_frame().await.close_code(), Some(1011));

    // The store is gone, for whoever is new to it; and then the node stops.
    let hub = gateway.hub.clone();
    tokio::task::spawn_blocking(move || hub.store().close()).await.unwrap().unwrap();
    let mut new = Raw::connect(gateway.http).await.upgraded(&query(&good("new"))).await;
    assert_eq!(new.close_frame().await.close_code(), Some(1011));
    gateway.hub.begin_drain();
    let head = Raw::connect(gateway.http).await.request(&handshake(&query(&good("late")), "")).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");

    let all = Scraped::of(&gateway).await;
    let codes = [
        "audience_mismatch",
        "device_limit",
        "issuer_mismatch",
        "token_expired",
        "token_invalid",
        "token_missing",
        "token_revoked",
        "user_missing",
    ];
    assert_eq!(all.by_label("auth_failures_total"), codes.map(|code| (code, 1.0)).into());
    assert_eq!(all.get("failures_total", &[("kind", "auth_failed")]), codes.len() as f64);
    let results = [
        ("opened", 1.0),
        // With the one whose device is one too many.
        ("limited", 2.0),
        ("unauthorized", 7.0),
        ("malformed", 2.0),
        ("origin_refused", 1.0),
        ("gone", 1.0),
        ("failed", 1.0),
        ("draining", 1.0),
    ];
    assert_eq!(all.by_label("handshakes_total"), results.into());
    assert_eq!(all.get("sessions_opened_total", &[]), 1.0);
    assert_eq!(all.get("ready", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_brings_no_token_in_time_counts_as_that() {
    let gateway = Gateway::with(&[("auth.timeout", "50ms")]).await;
    turned_away(&gateway, "", "auth_timeout").await;
    let all = Scraped::of(&gateway).await;
    assert_eq!(all.by_label("auth_failures_total"), [("auth_timeout", 1.0)].into());
    assert_eq!(all.by_label("handshakes_total"), [("unauthorized", 1.0)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_end_count_by_close_code_and_slow_consumers_by_theirs() {
    let gateway = Gateway::with(&[("limits.outbox_bytes", "64KiB"), ("limits.write_timeout", "1h")]).await;
    let mut rpc = gateway.rpc().await;
    let closed = async || Scraped::of(&gateway).await.by_label("sessions_closed_total").values().sum::<f64>();
    let mut leaves = Raw::session(&gateway, "leaves", "").await;
    leaves.send(raw::CLOSE, &1000_u16.to_be_bytes()).await;
    // What a client writes makes it no slow consumer.
    let mut lies = Raw::session(&gateway, "lies", "").await;
    lies.send(raw::CLOSE, &4409_u16.to_be_bytes()).await;
    let mut silent = Raw::session(&gateway, "silent", "").await;
    silent.send(raw::CLOSE, &[]).await;
    Raw::session(&gateway, "breaks", "").await.reset();
    let mut kicked = Raw::session(&gateway, "kicked", "").await;
    let kick = CloseUserSessionsRequest { user_id: "kicked".into(), code: 4001, ..Default::default() };
    assert_eq!(rpc.close(kick).await.unwrap(), 1);
    assert_eq!(kicked.close_frame().await.close_code(), Some(4001));
    let mut wrong = Raw::session(&gateway, "wrong", "").await;
    wrong.write(&[raw::TEXT, 2, b'{', b'}']).await;
    assert_eq!(wrong.close_frame().await.close_code(), Some(1002));
    until("their ends", 6.0, closed).await;

    let slow = Raw::connect_narrow(gateway.http).await.welcomed("slow", "").await;
    let mut sent = 0;
    while rpc.send_to("slow", Notification { ttl: ttl(0, 0), ..notification("x".repeat(20_000)) }).await.sessions == 1 {
        sent += 1;
        assert!(sent < 5000, "an outbox without bound");
    }
    until("the end of the slow one", 7.0, closed).await;
    let all = Scraped::of(&gateway).await;
    let expected = [("1000", 1.0), ("1002", 1.0), ("1005", 1.0), ("1006", 1.0), ("4409", 1.0), ("other", 2.0)];
    assert_eq!(all.by_label("sessions_closed_total"), expected.into());
    assert_eq!(all.get("failures_total", &[("kind", "slow_consumer")]), 1.0);
    assert_eq!(all.get("limits_hit_total", &[("limit", "outbox_bytes")]), 1.0);
    assert_eq!((all.get("sessions_opened_total", &[]), all.get("sessions", &[])), (7.0, 0.0));
    drop(slow);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_sees_the_sessions_as_they_are() {
    let gateway = Gateway::with(&[("limits.outbox_bytes", "64MiB"), ("limits.write_timeout", "1h")]).await;
    let mut rpc = gateway.rpc().await;
    let slow = Raw::connect_narrow(gateway.http).await.welcomed("slow", "").await;
    let behind = Raw::session(&gateway, "behind", "").await;
    let _good = gateway.client("good").await;
    // More than the kernel takes.
    for _ in 0..60 {
        rpc.send_to("slow", Notification { ttl: ttl(0, 0), ..notification("x".repeat(200_000)) }).await;
    }
    // More than the window takes unconfirmed.
    for n in 0..300 {
        rpc.send("behind", n).await;
    }
    until("one stalls, one pulls", (1.0, 2.0, 1.0, 0.0), async || {
        let all = Scraped::of(&gateway).await;
        let state = |state| all.get("sessions_by_state", &[("transport", "websocket"), ("state", state)]);
        (all.get("sessions_stalled", &[]), state("live"), state("pulling"), state("closing"))
    })
    .await;
    let all = Scraped::of(&gateway).await;
    let most = all.get("outbox_bytes_max", &[]);
    assert!(most > 1_000_000.0 && all.get("outbox_bytes", &[]) >= most, "{most}");
    let unconfirmed = all.get("unconfirmed_notifications", &[]);
    assert!((200.0..300.0).contains(&unconfirmed), "{unconfirmed}");
    assert_eq!(all.get("pending_notifications", &[]), 300.0);
    drop((slow, behind));
    until("they are gone", (0.0, 1.0), async || {
        let all = Scraped::of(&gateway).await;
        (all.get("outbox_bytes", &[]), all.get("sessions", &[]))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_count_by_method_and_code_and_by_how_long_they_took() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let caller = async |token| Rpc::over_tcp(gateway.grpc, token).await.try_send(send("bob", notification(1))).await;
    assert_eq!(caller(None).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(caller(Some("read-token")).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(rpc.try_send(send("", notification(1))).await.unwrap_err().code(), Code::InvalidArgument);
    rpc.try_send(confirmed("bob", notification(1), 50)).await.unwrap();
    let _events = rpc.events(&[], "").await;

    // A caller that gives up.
    let mut patient = rpc.clone();
    let waits = tokio::spawn(async move { patient.try_send(confirmed("eve", notification(1), 20_000)).await });
    until("it waits for a confirmation", 2, async || gateway.pending().await).await;
    waits.abort();
    let of = |all: &Scraped, method: &str, code: &str| {
        let labels = format!("pushgate_grpc_requests_total{{method=\"{method}\",code=\"{code}\"}}");
        all.0.get(&labels).copied().unwrap_or_default()
    };
    until("it is given up", 1.0, async || of(&Scraped::of(&gateway).await, "SendToUser", "CANCELLED")).await;

    let all = Scraped::of(&gateway).await;
    for code in ["OK", "UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT", "CANCELLED"] {
        assert_eq!(of(&all, "SendToUser", code), 1.0, "{code}");
    }
    assert_eq!((of(&all, "StreamEvents", "OK"), of(&all, "Broadcast", "OK"), of(&all, "other", "OK")), (1.0, 0.0, 0.0));
    let took = |part: &str| all.get(&format!("grpc_request_seconds_{part}"), &[("method", "SendToUser")]);
    assert_eq!(took("count"), 5.0);
    assert!(took("sum") >= 0.05, "the wait for a confirmation counts: {} s", took("sum"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_s_commits_and_bounds_are_told() {
    let changes = [("store.max_bytes", "1GiB"), ("store.max_disk", "2GiB"), ("limits.connections", "1234")];
    let gateway = Gateway::with(&changes).await;
    let before = Scraped::of(&gateway).await;
    gateway.rpc().await.send("alice", "x".repeat(5000)).await;
    let after = Scraped::of(&gateway).await;
    let more = |name: &str| after.get(name, &[]) - before.get(name, &[]);
    for of in ["seconds", "bytes", "rows"] {
        assert!(more(&format!("store_commit_{of}_count")) >= 1.0, "{of}");
    }
    assert!(more("store_commit_seconds_sum") > 0.0);
    assert!((5000.0..20_000.0).contains(&more("store_commit_bytes_sum")), "{}", more("store_commit_bytes_sum"));
    assert!(more("store_commit_rows_sum") >= 2.0, "a record and counters");
    assert!(after.get("pending_bytes", &[]) >= 5000.0);
    assert_eq!((after.get("store_quarantined", &[]), after.get("store_healthy", &[])), (0.0, 1.0));
    let gib = f64::from(1 << 30);
    assert_eq!((after.get("pending_limit_bytes", &[]), after.get("store_disk_limit_bytes", &[])), (gib, 2.0 * gib));
    assert_eq!(after.get("connections_limit", &[]), 1234.0);
    until("nothing waits", (0.0, 0.0), async || {
        let all = Scraped::of(&gateway).await;
        (all.get("store_queue_operations", &[]), all.get("store_queue_bytes", &[]))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_set_aside_is_told_until_the_next_start() {
    let changes = [("store.engine", "redb"), ("store.on_corruption", "quarantine")];
    let gateway = Gateway::with(&changes).await;
    gateway.rpc().await.send("alice", 1).await;
    let folder = std::sync::Arc::clone(&gateway.folder);
    // Twice, for a store that was never opened again is one whose making was cut short.
    let gateway = gateway.restart().await;
    gateway.stop().await;
    let data = folder.path().join("data");
    let mut damaged = 0;
    for file in fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().path()) {
        if fs::metadata(&file).unwrap().len() > 4096 {
            let mut bytes = fs::read(&file).unwrap();
            bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 151 / 7) as u8);
            fs::write(&file, bytes).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    let gateway = Gateway::over_again(&folder, &changes).await;
    let told = async |gateway: &Gateway| {
        let all = Scraped::of(gateway).await;
        ["store_quarantined", "store_healthy", "pending_notifications"].map(|name| all.get(name, &[]))
    };
    assert_eq!(told(&gateway).await, [1.0, 1.0, 0.0]);
    assert_eq!(told(&gateway.restart().await).await, [0.0, 1.0, 0.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_and_its_runtimes_are_told() {
    let gateway = Gateway::start().await;
    let before = Scraped::of(&gateway).await;
    let clients: Vec<_> = futures_util::future::join_all((0..8).map(|n| {
        let gateway = &gateway;
        async move { gateway.client(&format!("user-{n}")).await }
    }))
    .await;
    let all = Scraped::of(&gateway).await;
    assert_eq!((all.get("connections_open", &[]), all.get("connections_total", &[])), (8.0, 8.0));
    assert!(all.get("process_open_fds", &[]) >= 16.0, "both ends of eight connections");
    assert!(all.get("process_max_fds", &[]) >= all.get("process_open_fds", &[]));
    assert!(all.get("process_threads", &[]) >= 2.0);
    assert!(all.get("process_resident_memory_bytes", &[]) > 1e6);
    assert!(all.get("memory_limit_bytes", &[]) > all.get("process_resident_memory_bytes", &[]));
    let started = all.get("start_time_seconds", &[]);
    assert!((-1.0..600.0).contains(&(crate::support::token::unix_now() as f64 - started)), "{started}");
    for runtime in ["sessions", "calls"] {
        let of = [("runtime", runtime)];
        assert!(all.get("runtime_workers", &of) >= 1.0 && all.get("runtime_tasks", &of) >= 1.0, "{runtime}");
        assert!(all.get("runtime_queued_tasks", &of) >= 0.0);
    }
    assert!(all.get("runtime_tasks", &[("runtime", "sessions")]) >= 8.0, "one for each connection");
    let rises = async |name: &str, labels: &[(&str, &str)]| {
        let was = before.get(name, labels);
        soon(name, async { while Scraped::of(&gateway).await.get(name, labels) <= was {} }).await;
    };
    rises("process_cpu_seconds_total", &[]).await;
    for runtime in ["sessions", "calls"] {
        let mut rpc = gateway.rpc().await;
        rpc.status().await;
        let of = [("runtime", runtime)];
        rises("runtime_busy_seconds_total", &of).await;
        rises("runtime_parks_total", &of).await;
        rises("scheduler_delay_seconds_count", &of).await;
    }
    drop(clients);
    until("they are gone", (0.0, 8.0), async || {
        let all = Scraped::of(&gateway).await;
        (all.get("connections_open", &[]), all.get("connections_open_peak", &[]))
    })
    .await;
}
