//! The ops listener: the admin API as JSON over HTTP, `/metrics`, and what is refused there.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use pushgate::{
    api::{
        Api,
        proto::{PurgePendingRequest, SubscribeRequest},
    },
    http,
    lifecycle::Lifecycle,
    metrics::Failure,
    server::Ended,
    types::AlertName,
};
use serde_json::{Value, json};

use crate::support::{
    Gateway, Http, Raw, Rpc,
    gateway::ADMIN,
    rpc::{SCOPES, notification, ttl},
    soon, until,
};

/// Every call, and how it is asked for.
const CALLS: [(&str, &str, &str); 6] = [
    ("GET", "/ws/online", "read"),
    ("GET", "/ws/stats", "read"),
    ("GET", "/ws/sessions", "read"),
    ("POST", "/ws/send", "send"),
    ("POST", "/ws/broadcast", "send"),
    ("POST", "/ws/cleanup", "admin"),
];

/// A body that each POST takes.
fn body(path: &str) -> Value {
    match path {
        "/ws/send" => json!({ "user_id": "alice", "notification": { "data": 1 } }),
        "/ws/broadcast" => json!({ "notification": { "data": 1 } }),
        _ => json!({}),
    }
}

async fn ask(caller: &Http, method: &str, path: &str) -> crate::support::http::Answer {
    match method {
        "GET" => caller.get(path).await,
        _ => caller.post(path, body(path)).await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_over_http_arrives() {
    let gateway = Gateway::start().await;
    let mut alice = gateway.client("alice").await;
    let ops = gateway.ops();
    let request = json!({
        "user_id": "alice",
        "notification": { "type": "order", "from_user_id": "shop", "data": { "n": 1, "list": [true, null, "x"] } },
        "wait": "WAIT_CONFIRMED",
        "wait_timeout": "5s",
    });
    let sent = ops.post("/ws/send", request);
    let (sent, told) = tokio::join!(sent, async {
        let told = alice.next().await;
        alice.settle().await;
        told
    });
    assert_eq!(told["data"], json!({ "n": 1, "list": [true, null, "x"] }));
    assert_eq!((&told["type"], &told["fromUserId"]), (&json!("order"), &json!("shop")));
    let sent = sent.good();
    assert_eq!(
        (&sent["outcome"], &sent["sessions"], &sent["duplicate"]),
        (&json!("OUTCOME_CONFIRMED"), &json!(1), &json!(false))
    );
    assert!(
        sent["offset"].as_str().unwrap().parse::<u64>().unwrap() > 0 && sent["id"].as_str().unwrap().len() == 36,
        "{sent}"
    );

    // camelCase, a number for an enum, text that is passed on as it is.
    let request =
        json!({ "userId": "bob", "notification": { "json": "[1.50]", "collapseKey": "k", "ttl": "60s" }, "wait": 2 });
    assert_eq!(ops.post("/ws/send", request).await.good()["outcome"], "OUTCOME_ACCEPTED");
    let waits = gateway.client("bob").await.data(1).await;
    assert_eq!(waits, [json!([1.5])]);
    gateway.sessions("bob", 0).await;

    let broadcast =
        ops.post("/ws/broadcast", json!({ "notification": { "data": "all", "type": "system_message" } })).await;
    assert_eq!(broadcast.good()["sessions"], 1, "bob has gone");
    assert_eq!(alice.next().await["data"], "all");
    let durable = json!({ "notification": { "id": "mine", "data": 2 }, "durable": true, "filter": { "excludeUserIds": ["carol"] } });
    let stored = ops.post("/ws/broadcast", &durable).await.good();
    assert_eq!((&stored["outcome"], &stored["id"]), (&json!("OUTCOME_STORED"), &json!("mine")));
    let again = ops.post("/ws/broadcast", &durable).await.good();
    assert_eq!((&again["duplicate"], &again["offset"]), (&json!(true), &stored["offset"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_online_and_how_the_node_does_is_read_over_http() {
    let gateway = Gateway::start().await;
    let (alice, _bob) = (gateway.client_with("alice", "device=phone").await, gateway.client("bob").await);
    let _other = gateway.client("alice").await;
    let ops = gateway.ops();

    let online = ops.get("/ws/online").await.good();
    let users: Vec<_> =
        online["users"].as_array().unwrap().iter().map(|user| (&user["userId"], &user["sessions"])).collect();
    assert_eq!(users, [(&json!("alice"), &json!(2)), (&json!("bob"), &json!(1))]);
    assert_eq!(online["nextPageToken"], "");
    let first = ops.get("/ws/online?page_size=1").await.good();
    let token = first["nextPageToken"].as_str().unwrap();
    let second = ops.get(&format!("/ws/online?pageSize=1&pageToken={token}")).await.good();
    assert_eq!((&first["users"][0]["userId"], &second["users"][0]["userId"]), (&json!("alice"), &json!("bob")));

    let stats = ops.get("/ws/stats").await.good();
    assert_eq!(stats["connections"], json!({ "now": 3, "peak": 3, "total": "3" }));
    assert_eq!((&stats["users"], &stats["sessions"], &stats["draining"]), (&json!(2), &json!(3), &json!(false)));

    for query in ["user_id=alice&device=phone", "userId=alice&device=phone", &format!("session_id={}", alice.session())]
    {
        let listed = ops.get(&format!("/ws/sessions?{query}")).await.good();
        let [row] = listed["sessions"].as_array().unwrap().as_slice() else { panic!("{query}: {listed}") };
        assert_eq!((&row["sessionId"], &row["device"]), (&json!(alice.session()), &json!("phone")), "{query}");
        assert!(row["bytesSent"].is_string() && row["state"].as_str().unwrap().starts_with("SESSION_STATE_"), "{row}");
    }
    let unnamed = ops.get("/ws/sessions?user_id=alice&device=").await.good();
    assert_eq!(unnamed["sessions"].as_array().unwrap().len(), 1, "set and empty: the unnamed device");
    assert_eq!(ops.get("/ws/sessions").await.good()["sessions"].as_array().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_up_deletes_what_has_expired_at_once() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let short = pushgate::api::proto::Notification { ttl: ttl(2, 0), ..notification(1) };
    for user in ["alice", "bob"] {
        rpc.send_to(user, short.clone()).await;
        rpc.send(user, 2).await;
    }
    let mut idle = Raw::session(&gateway, "carol", "").await;
    assert_eq!(gateway.pending().await, 4);
    gateway.later(std::time::Duration::from_secs(3));
    let cleaned = gateway.ops().post("/ws/cleanup", "{}").await.good();
    until("what waits", 2, async || gateway.pending().await).await;
    assert_eq!(gateway.errors("expired").await, 2);
    // The sweep that goes on by itself may have had a part in it, where a minute has just ended.
    assert!(cleaned["expired"].as_u64().unwrap() <= 2 && cleaned["closed"] == 0, "{cleaned}");
    // Whose time is not over stays, and no body is as good as an empty one.
    idle.send(crate::support::raw::PING, b"there").await;
    assert_eq!(idle.frame().await.payload, b"there");
    assert_eq!(gateway.ops().post("/ws/cleanup", "").await.good(), json!({ "closed": 0, "expired": 0 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_holds_every_path_that_there_is() {
    let gateway = Gateway::start().await;
    let nothing = gateway.ops().get("/nothing").await.refused(404, 5, "PATH_UNKNOWN");
    let named = nothing.split([' ', ',']).filter(|word| word.starts_with("/ws/"));
    assert_eq!(named.collect::<BTreeSet<_>>(), CALLS.iter().map(|(_, path, _)| *path).collect(), "{nothing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_needs_a_token_with_its_scope() {
    let gateway = Gateway::start().await;
    let nobody = Http::new(gateway.ops);
    let wrong =
        [nobody.clone(), nobody.bearer("wrong"), nobody.with("authorization", "Basic admin-token"), nobody.bearer("")];
    for (method, path, scope) in CALLS {
        for caller in &wrong {
            let answer = ask(caller, method, path).await;
            answer.refused(401, 16, "UNAUTHENTICATED");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
        // No other place holds a token here.
        ask(&nobody.with("cookie", "token=admin-token"), method, &format!("{path}?token={ADMIN}")).await.refused(
            401,
            16,
            "UNAUTHENTICATED",
        );
        for held in SCOPES {
            let answer = ask(&nobody.bearer(&format!("{held}-token")), method, path).await;
            if held == scope || held == "admin" {
                answer.good();
            } else {
                let message = answer.refused(403, 7, "SCOPE_MISSING");
                assert_eq!(message, format!("caller `{held}` lacks the scope `{scope}`"), "{path}");
            }
        }
    }
    for open in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(nobody.get(open).await.status, 200, "{open}");
    }
    assert_eq!(gateway.errors("grpc_unauthenticated").await, 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_configured_tokens_nothing_but_the_probes_answers() {
    // The Unix socket alone: whoever reaches it may do everything, and nobody does so over HTTP.
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("[\"unix:{}/admin.sock\"]", folder.path().display());
    let gateway = Gateway::with(&[("grpc.tokens", "[]"), ("grpc.listen", &socket)]).await;
    for (method, path, _) in CALLS {
        for caller in [Http::new(gateway.ops), gateway.ops(), Http::new(gateway.ops).bearer("")] {
            ask(&caller, method, path).await.refused(401, 16, "UNAUTHENTICATED");
        }
    }
    assert_eq!(Http::new(gateway.ops).get("/readyz").await.status, 200);
    assert_eq!(Http::new(gateway.ops).get("/metrics").await.status, 200);
    let mut rpc = Rpc::over_unix(&gateway.socket).await;
    assert_eq!(rpc.errors("grpc_unauthenticated").await, 18);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_others_reach_takes_no_calls_without_tls() {
    let gateway = Gateway::start().await;
    let life = Lifecycle::new();
    // As if it could be reached: what it is given is what such a one is given.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let api = Api::new(gateway.hub.clone(), life.clone());
    let services = http::Services { api, access: None, tls: None };
    tokio::spawn(http::serve(listener, services, life.clone()));
    for (method, path, _) in CALLS {
        ask(&Http::new(address).bearer(ADMIN), method, path).await.refused(403, 7, "TLS_NEEDED");
    }
    for probe in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(Http::new(address).get(probe).await.status, 200);
    }
    assert_eq!(life.stop(std::time::Duration::from_secs(20)).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn insecure_needs_no_token_and_answers_to_this_machine_s_names_only() {
    let gateway = Gateway::with(&[("grpc.insecure", "true")]).await;
    let caller = Http::new(gateway.ops);
    for (method, path, _) in CALLS {
        ask(&caller, method, path).await.good();
        ask(&caller.with("host", "localhost"), method, path).await.good();
        for host in ["evil.example", "evil.example:7002", "127.0.0.1.evil.example"] {
            ask(&caller.with("host", host), method, path).await.refused(403, 7, "HOST_REFUSED");
        }
        ask(&caller.without("host"), method, path).await.refused(403, 7, "HOST_REFUSED");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_in_a_browser_cannot_call() {
    let gateway = Gateway::with(&[("grpc.insecure", "true")]).await;
    let page = Http::new(gateway.ops).with("origin", "http://evil.example");
    for (method, path, _) in CALLS {
        // The preflight that a page of another origin needs for JSON, or for a header of its own.
        let preflight = page.with("access-control-request-method", method);
        let answer = preflight.with("access-control-request-headers", "content-type").call("OPTIONS", path, "").await;
        answer.refused(405, 12, "METHOD_NOT_ALLOWED");
        let read = if method == "GET" { page.get(path).await } else { answer };
        assert!(read.headers.keys().all(|name| !name.as_str().starts_with("access-control-")), "{read:?}");
        assert_eq!(read.header("set-cookie"), "");
        if method == "POST" {
            // What needs none.
            for simple in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
                let answer = Http::new(gateway.ops).with("content-type", simple).post(path, body(path)).await;
                answer.refused(415, 3, "CONTENT_TYPE");
                assert_eq!(answer.header("accept"), "application/json");
            }
            for origin in ["http://evil.example", "null", "http://127.0.0.1:1"] {
                page.with("origin", origin).post(path, body(path)).await.refused(403, 7, "ORIGIN_REFUSED");
            }
            let own = format!("http://{}", gateway.ops);
            page.with("origin", &own).post(path, body(path)).await.good();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_and_paths_that_are_none_are_told_so() {
    let gateway = Gateway::start().await;
    let ops = gateway.ops();
    for (method, path, _) in CALLS {
        let others = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];
        let reads = method == "GET";
        for other in
            others.into_iter().filter(|other| if reads { !matches!(*other, "GET" | "HEAD") } else { *other != "POST" })
        {
            let answer = ops.call(other, path, "").await;
            assert_eq!(answer.header("allow"), if reads { "GET, HEAD" } else { "POST" }, "{other} {path}");
            if other != "HEAD" {
                answer.refused(405, 12, "METHOD_NOT_ALLOWED");
            } else {
                assert_eq!((answer.status.as_u16(), answer.body.as_str()), (405, ""));
            }
        }
        if reads {
            let (get, head) = (ops.get(path).await, ops.call("HEAD", path, "").await);
            assert_eq!((head.status, head.body.as_str()), (get.status, ""));
            assert_eq!(head.header("content-type"), "application/json");
        }
    }
    for probe in ["/livez", "/readyz", "/metrics"] {
        let answer = ops.call("POST", probe, "").await;
        answer.refused(405, 12, "METHOD_NOT_ALLOWED");
        assert_eq!(answer.header("allow"), "GET, HEAD");
        assert_eq!(ops.call("HEAD", probe, "").await.status, 200);
    }
    for path in ["/", "/ws", "/ws/", "/ws/sends", "/ws/send/", "/WS/send", "/ws//send", "/metrics/"] {
        ops.get(path).await.refused(404, 5, "PATH_UNKNOWN");
        Http::new(gateway.ops).post(path, "{}").await.refused(404, 5, "PATH_UNKNOWN");
    }
    assert!(gateway.errors("http_refused").await > 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_became_of_notifications_and_what_waits_is_in_the_metrics() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut alice = gateway.client("alice").await;
    let fates = async || {
        let all = samples(&Http::new(gateway.ops).get("/metrics").await.body);
        let outcomes = ["stored", "accepted", "confirmed", "superseded", "expired", "purged", "dropped"];
        outcomes.map(|outcome| all[&format!("pushgate_notifications_total{{outcome=\"{outcome}\"}}")] as u64)
    };
    assert_eq!(fates().await, [0; 7]);
    // Confirmed; never stored, to somebody and to nobody, by each way there is; superseded, purged, expired.
    rpc.send("alice", 1).await;
    alice.data(1).await;
    alice.settle().await;
    until("confirmed", 1, async || fates().await[2]).await;
    let now = |data: u32| pushgate::api::proto::Notification { ttl: ttl(0, 0), ..notification(data) };
    rpc.send_to("alice", now(2)).await;
    rpc.send_to("nobody", now(3)).await;
    rpc.broadcast(4).await;
    rpc.publish("empty", 5).await;
    let subscribe = SubscribeRequest { topic: "t".into(), user_ids: vec!["alice".into()], ..Default::default() };
    rpc.subscribe(subscribe).await.unwrap();
    rpc.publish("t", 6).await;
    assert_eq!(fates().await, [1, 3, 1, 0, 0, 0, 2]);
    let key = |data: u32| pushgate::api::proto::Notification { collapse_key: "k".into(), ..notification(data) };
    rpc.send_to("away", key(7)).await;
    rpc.send_to("away", key(8)).await;
    rpc.send_to("away", pushgate::api::proto::Notification { ttl: ttl(2, 0), ..notification(9) }).await;
    gateway.later(std::time::Duration::from_secs(3));
    gateway.ops().post("/ws/cleanup", "").await.good();
    until("expired", 1, async || fates().await[4]).await;
    let purge = PurgePendingRequest { user_id: "away".into(), force: true, ..Default::default() };
    assert_eq!(rpc.purge(purge).await.unwrap(), 1);
    assert_eq!(fates().await, [4, 3, 1, 1, 1, 1, 2]);

    let slow = gateway.hub.events().consume(Default::default(), pushgate::hub::Start::Now);
    let user = pushgate::types::UserId::parse("somebody").unwrap();
    for _ in 0..7 {
        gateway.hub.events().emit(pushgate::types::EventBody::UserOnline { user: user.clone() });
    }
    let all = samples(&Http::new(gateway.ops).get("/metrics").await.body);
    assert_eq!((all["pushgate_topics"], all["pushgate_event_lag"]), (1.0, 7.0));
    drop(slow);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_at_all_is_counted_too() {
    let gateway = Gateway::start().await;
    let large = format!("GET /livez HTTP/1.1\r\nHost: ops\r\nX: {}\r\n\r\n", "x".repeat(16 * 1024));
    let before = gateway.errors("http_refused").await;
    for (refused, (bad, status)) in
        [("hello\r\n\r\n", 400), ("GET /livez HTTP/1.1\r\nHost : ops\r\n\r\n", 400), (&large, 431)]
            .into_iter()
            .enumerate()
    {
        let answer = Raw::connect(gateway.ops).await.request(bad).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        until("it is counted", before + refused as u64 + 1, async || gateway.errors("http_refused").await).await;
    }
    // Who comes, asks and goes, or says nothing and goes, has done nothing wrong.
    for good in
        ["GET /livez HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n\r\n", "GET /livez HTTP/1.1\r\nHost: ops\r\n\r\n"]
    {
        assert!(Raw::connect(gateway.ops).await.request(good).await.starts_with("HTTP/1.1 200 "));
    }
    drop(Raw::connect(gateway.ops).await);
    assert_eq!(Http::new(gateway.ops).get("/livez").await.status, 200);
    assert_eq!(gateway.errors("http_refused").await, before + 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_refused_by_field() {
    let gateway = Gateway::start().await;
    let ops = gateway.ops();
    for (text, field) in [
        ("{", "body"),
        ("hello", "body"),
        ("[]", "body"),
        ("{\"user_id\":\"a\",}", "body"),
        ("{} {}", "body"),
        (r#"{"user":"alice"}"#, "user"),
        (r#"{"user_id":7}"#, "user_id"),
        (r#"{"user_id":"a","notification":{"payload":1}}"#, "notification.payload"),
        (r#"{"user_id":"a","notification":{"ttl":"tomorrow"}}"#, "notification.ttl"),
        (r#"{"user_id":"a","notification":{"binary":"?"}}"#, "notification.binary"),
        (r#"{"user_id":"a","notification":{"data":1,"json":"1"}}"#, "notification"),
        (r#"{"user_id":"a","notification":{},"wait":"SOON"}"#, "wait"),
        // These are the API's own words, as over gRPC.
        (r#"{"user_id":"","notification":{"data":1}}"#, "user_id"),
        (r#"{"user_id":"a","notification":{"json":"{"}}"#, "notification.json"),
        (r#"{"user_id":"a","notification":{"ttl":"-1s"}}"#, "notification.ttl"),
        (r#"{"user_id":"a","notification":{},"wait":9}"#, "wait"),
    ] {
        ops.post("/ws/send", text).await.invalid(&[field]);
    }
    ops.post("/ws/send", "").await.invalid(&["user_id", "notification"]);
    ops.post("/ws/send?user_id=alice", body("/ws/send")).await.invalid(&["query"]);
    ops.post("/ws/cleanup", r#"{"force":true}"#).await.invalid(&["force"]);
    ops.post("/ws/broadcast", r#"{"notification":{"ttl":"0s"},"durable":true}"#).await.invalid(&["notification.ttl"]);
    let nested = format!(r#"{{"user_id":"a","notification":{{"data":{}1{}}}}}"#, "[".repeat(90), "]".repeat(90));
    assert_eq!(ops.post("/ws/send", nested).await.status, 400, "deeper than a message can be");
    for (query, field) in [
        ("user=alice", "user"),
        ("page_size=many", "page_size"),
        ("page_token=made-up", "page_token"),
        ("user_id=a&userId=a", "userId"),
        ("session_id=7", "session_id"),
    ] {
        ops.get(&format!("/ws/sessions?{query}")).await.invalid(&[field]);
    }
    ops.get("/ws/stats?verbose=1").await.invalid(&["verbose"]);
    ops.get("/ws/online?page_token=x").await.invalid(&["page_token"]);
    let typed = |kind: &str| ops.with("content-type", kind);
    typed("application/json; charset=utf-8").post("/ws/send", body("/ws/send")).await.good();
    typed("application/json; charset=latin1").post("/ws/send", body("/ws/send")).await.refused(415, 3, "CONTENT_TYPE");
    ops.call("POST", "/ws/send", body("/ws/send").to_string()).await.refused(415, 3, "CONTENT_TYPE");
    let packed = ops.with("content-encoding", "gzip").post("/ws/send", body("/ws/send")).await;
    packed.refused(415, 3, "CONTENT_TYPE");
    assert_eq!(gateway.pending().await, 1, "one of them was good");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_has_a_limit_which_is_named() {
    let gateway = Gateway::start().await;
    let ops = gateway.ops();
    let of = |bytes: usize| {
        let fixed = r#"{"user_id":"","notification":{"json":"[]"}}"#.len();
        format!(r#"{{"user_id":"{}","notification":{{"json":"[]"}}}}"#, "u".repeat(bytes - fixed))
    };
    const LIMIT: usize = 1024 * 1024;
    ops.post("/ws/send", of(LIMIT)).await.invalid(&["user_id"]);
    // Its sender does not wait for leave; he gets to read the answer all the same.
    for bytes in [LIMIT + 1, 8 * LIMIT] {
        let message = ops.post("/ws/send", of(bytes)).await.refused(413, 11, "BODY_TOO_LARGE");
        assert_eq!(message, "the body has more than 1048576 bytes");
    }
    // One that does is not given it.
    let mut raw = Raw::connect(gateway.ops).await;
    let head = |length: &str| {
        format!(
            "POST /ws/send HTTP/1.1\r\nHost: ops\r\nAuthorization: Bearer {ADMIN}\r\nContent-Type: application/json\r\n{length}\r\n"
        )
    };
    let answer = raw.request(&head("Expect: 100-continue\r\nContent-Length: 2000000\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // Nor is a length that nobody names a way around it.
    let mut raw = Raw::connect(gateway.ops).await;
    raw.write(head("Transfer-Encoding: chunked\r\n").as_bytes()).await;
    let chunk = [format!("{:x}\r\n", LIMIT / 2).into_bytes(), vec![b' '; LIMIT / 2], b"\r\n".to_vec()].concat();
    for _ in 0..3 {
        raw.write(&chunk).await;
    }
    raw.write(b"0\r\n\r\n").await;
    let answer = raw.head().await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // The limit follows the notifications', which is the smaller one here.
    let message =
        ops.post("/ws/send", json!({ "user_id": "a", "notification": { "data": "x".repeat(300_000) } })).await;
    message.invalid(&["notification"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_tried_again_says_when() {
    let gateway = Gateway::with(&[("store.max_pending_per_user", "1")]).await;
    let ops = gateway.ops();
    let send = |id: &str, data: i32| json!({ "user_id": "alice", "notification": { "id": id, "data": data } });
    ops.post("/ws/send", send("a", 1)).await.good();
    let taken = ops.post("/ws/send", send("a", 2)).await;
    taken.refused(409, 6, "ID_TAKEN");
    assert_eq!(taken.header("retry-after"), "");
    let full = ops.post("/ws/send", send("b", 1)).await;
    full.refused(429, 8, "MAILBOX_FULL");
    assert_eq!(full.header("retry-after"), "5");
    assert!(full.body.contains(r#""retryDelay":"5s""#), "{full:?}");
    gateway.hub.refuse_everything();
    let draining = ops.post("/ws/send", send("c", 1)).await;
    draining.refused(503, 14, "DRAINING");
    assert_eq!(draining.header("retry-after"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_keeps_its_deadline_and_ends_with_its_caller() {
    let gateway = Gateway::start().await;
    let ops = gateway.ops();
    let waits =
        json!({ "user_id": "alice", "notification": { "data": 1 }, "wait": "WAIT_CONFIRMED", "wait_timeout": "60s" });
    let begun = std::time::Instant::now();
    let stored = ops.with("grpc-timeout", "500m").post("/ws/send", &waits).await;
    assert_eq!(stored.good()["outcome"], "OUTCOME_STORED", "in time for an answer");
    assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    // A disk may be faster than that.
    let hasty = async || ops.with("grpc-timeout", "1n").post("/ws/send", &waits).await;
    let mut answer = hasty().await;
    while answer.status == 200 {
        answer = hasty().await;
    }
    answer.refused(504, 4, "DEADLINE_EXCEEDED");
    for bad in ["", "5", "S", "5s", "-1S", "+5S", "1.5S", "123456789S", "5 S", "never"] {
        ops.with("grpc-timeout", bad).post("/ws/send", &waits).await.invalid(&["grpc-timeout"]);
        ops.with("grpc-timeout", bad).get("/ws/stats").await.invalid(&["grpc-timeout"]);
    }

    // As many as there is room for. Whoever finds none, because the question below has taken it, comes back.
    let calls: Vec<_> = (0..pushgate::limits::OPS_CALLS_MAX)
        .map(|_| {
            let (caller, body) = (ops.with("content-type", "application/json"), Bytes::from(waits.to_string()));
            tokio::spawn(async move { while caller.begin("POST", "/ws/send", body.clone()).await.status == 503 {} })
        })
        .collect();
    let one_more = async || ops.get("/ws/stats").await.status.as_u16();
    until("there is no room", 503, one_more).await;
    let full = ops.get("/ws/stats").await;
    full.refused(503, 14, "TOO_MANY_CALLS");
    assert_eq!(full.header("retry-after"), "1");
    assert_eq!(Http::new(gateway.ops).get("/livez").await.status, 200, "a probe is no call");
    for call in calls {
        call.abort();
    }
    until("who goes makes room", 200, one_more).await;
    assert!(gateway.errors("unavailable").await >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_call_is_told_before_his_body_is_read() {
    let gateway = Gateway::start().await;
    let mut raw = Raw::connect(gateway.ops).await;
    let answer = raw
        .request(
            "POST /ws/send HTTP/1.1\r\nHost: ops\r\nAuthorization: Bearer read-token\r\nContent-Type: application/json\r\n\
             Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n",
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    // A body where none is read would be a filter that does not filter.
    let mut raw = Raw::connect(gateway.ops).await;
    let answer = raw
        .request(&format!(
            "GET /ws/sessions HTTP/1.1\r\nHost: ops\r\nAuthorization: Bearer {ADMIN}\r\nContent-Length: 2\r\n\r\n{{}}"
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let gateway = Gateway::start().await;
    let mut raw = Raw::connect(gateway.ops).await;
    let head = format!(
        "POST /ws/send HTTP/1.1\r\nHost: ops\r\nAuthorization: Bearer {ADMIN}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    );
    let answer = raw.request(&head).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    // One that ends too early was never asked.
    let mut raw = Raw::connect(gateway.ops).await;
    raw.write(head.as_bytes()).await;
    drop(raw);
    assert_eq!(gateway.pending().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_waits_does_not_hold_the_stop_up() {
    let gateway = Gateway::start().await;
    let ops = gateway.ops().with("content-type", "application/json");
    let waits =
        json!({ "user_id": "alice", "notification": { "data": 1 }, "wait": "WAIT_CONFIRMED", "wait_timeout": "60s" });
    let call = tokio::spawn(async move { ops.begin("POST", "/ws/send", waits.to_string().into()).await });
    until("it is stored", 1, async || gateway.pending().await).await;
    assert_eq!(soon("the end", gateway.stop()).await, Ended::InOrder);
    call.abort();
}

/// The samples of an exposition, by name and labels; it is well formed.
pub fn samples(text: &str) -> BTreeMap<String, f64> {
    let (mut families, mut found) = (BTreeMap::new(), BTreeMap::new());
    let mut last = String::new();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.last(), Some(&"# EOF"));
    for line in &lines[..lines.len() - 1] {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, of) = rest.split_once(' ').unwrap();
            assert!(families.insert(name.to_owned(), of.to_owned()).is_none(), "{name} is declared twice");
            last = name.to_owned();
        } else if !line.starts_with("# ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let bare = name.split('{').next().unwrap();
            assert!(bare.starts_with(&last) && bare.starts_with("pushgate_"), "{line} is not of {last}");
            let suffixes: &[&str] = match families[&last].as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "info" => &["_info"],
                "histogram" => &["_sum", "_count", "_bucket"],
                other => panic!("{other}"),
            };
            assert!(suffixes.contains(&&bare[last.len()..]), "{line}");
            assert!(found.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{name} stands twice");
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_in_the_older_format_for_who_asks_for_it() {
    let gateway = Gateway::start().await;
    let answer = Http::new(gateway.ops).with("accept", "text/plain;version=0.0.4").get("/metrics").await;
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert!(answer.body.contains("\n# TYPE pushgate_build_info gauge\npushgate_build_info{"), "{}", answer.body);
    assert!(answer.body.contains("\n# TYPE pushgate_connections_total counter\npushgate_connections_total "));
    assert!(!answer.body.contains("# EOF") && !answer.body.contains("# UNIT") && !answer.body.contains(" info\n"));
    for both in ["*/*", "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"] {
        let answer = Http::new(gateway.ops).with("accept", both).get("/metrics").await;
        assert_eq!(answer.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_openmetrics_of_what_happens() {
    let gateway = Gateway::start().await;
    let nobody = Http::new(gateway.ops);
    let scrape = async || {
        let answer = nobody.get("/metrics").await;
        assert_eq!(answer.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
        assert!(!answer.body.contains("alice"), "nothing of a user");
        samples(&answer.body)
    };
    let before = scrape().await;
    assert_eq!((before["pushgate_sessions"], before["pushgate_confirm_latency_seconds_count"]), (0.0, 0.0));
    assert_eq!((before["pushgate_ready"], before["pushgate_store_healthy"]), (1.0, 1.0));
    let mut rpc = gateway.rpc().await;
    let mut alice = gateway.client("alice").await;
    let _events = rpc.events(&[], "").await;
    rpc.send("alice", 1).await;
    alice.data(1).await;
    alice.settle().await;
    rpc.send("bob", 2).await;
    nobody.get("/ws/stats").await.refused(401, 16, "UNAUTHENTICATED");
    until("the consumer is up to date", 0, async || gateway.hub.events().lag()).await;
    let after = scrape().await;
    for (name, value) in [
        ("pushgate_sessions", 1.0),
        ("pushgate_users_online", 1.0),
        ("pushgate_connections_open", 1.0),
        ("pushgate_connections_open_peak", 1.0),
        ("pushgate_connections_total", 1.0),
        ("pushgate_pending_notifications", 1.0),
        ("pushgate_event_streams", 1.0),
        ("pushgate_events_lost_total", 0.0),
        ("pushgate_confirm_latency_seconds_count", 1.0),
        ("pushgate_confirm_latency_seconds_bucket{le=\"+Inf\"}", 1.0),
        ("pushgate_failures_total{kind=\"grpc_unauthenticated\"}", 1.0),
        ("pushgate_alert_firing{alert=\"connections\"}", 0.0),
        ("pushgate_alerts_total{alert=\"disk_free\"}", 0.0),
        ("pushgate_reply_latency_seconds_count", 0.0),
        ("pushgate_topics", 0.0),
        ("pushgate_fanout_bytes", 0.0),
        ("pushgate_event_lag", 0.0),
        ("pushgate_notifications_total{outcome=\"stored\"}", 2.0),
        ("pushgate_notifications_total{outcome=\"confirmed\"}", 1.0),
    ] {
        assert_eq!(after.get(name), Some(&value), "{name}");
    }
    assert!(after["pushgate_store_disk_free_bytes"] > 0.0);
    for more in ["messages_total{direction=\"sent\"}", "traffic_bytes_total{direction=\"sent\"}", "events_total"] {
        let name = format!("pushgate_{more}");
        assert!(after[&name] > before[&name], "{name}");
    }
    assert!(after["pushgate_pending_bytes"] > 0.0 && after["pushgate_store_disk_bytes"] > 0.0);
    assert!(after.keys().any(|name| name.starts_with("pushgate_build_info{version=")));
    let kinds: BTreeSet<_> =
        after.keys().filter_map(|name| name.strip_prefix("pushgate_failures_total{kind=\"")).collect();
    assert_eq!(kinds.len(), Failure::ALL.len(), "one for each, and no more");
    let limits = after.keys().filter(|name| name.starts_with("pushgate_limits_hit_total{limit=\"")).count();
    assert_eq!(limits, pushgate::limits::Limit::ALL.len(), "one for each, and no more");
    let alerts: BTreeSet<_> =
        after.keys().filter_map(|name| name.strip_prefix("pushgate_alert_firing{alert=\"")).collect();
    assert_eq!(alerts.len(), AlertName::ALL.len(), "one for each, off or not");
    assert_eq!(before.len(), after.len(), "no traffic makes a new series");
    for runtime in ["sessions", "calls"] {
        let of = format!("runtime=\"{runtime}\"");
        let name = |name: &str| format!("pushgate_scheduler_delay_seconds_{name}{{{of}}}");
        let is_bucket = |name: &str| name.starts_with("pushgate_scheduler_delay_seconds_bucket{") && name.contains(&of);
        let buckets: Vec<f64> = after.iter().filter(|(name, _)| is_bucket(name)).map(|(_, count)| *count).collect();
        assert_eq!(buckets.len(), 16);
        assert!(buckets.iter().all(|count| *count <= after[&name("count")]) && after[&name("sum")] >= 0.0);
    }
}
