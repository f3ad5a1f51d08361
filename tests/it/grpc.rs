//! The admin API: who may call what, what is refused and how, and what calls do to sessions.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use http_body_util::{Full, StreamBody, combinators::BoxBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use pushgate::api::proto::{
    BackupRequest, BroadcastRequest, CloseUserSessionsRequest, ForgetDeviceRequest, ForgetUserRequest,
    GetStatusRequest, ListDevicesRequest, ListPendingRequest, ListSessionsRequest, ListTopicsRequest, Notification,
    PublishRequest, PurgePendingRequest, SendBatchRequest, SendToSessionRequest, SendToUserRequest,
    StreamEventsRequest, SubscribeRequest, UnsubscribeRequest, notification::Payload,
};
use pushgate::server::Ended;
use serde_json::json;
use tokio::net::TcpStream;
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};
use tonic_types::StatusExt as _;

use crate::support::{
    Gateway, Rpc,
    rpc::{SCOPES, durable, notification, request, ttl},
    soon, until,
};

/// How many RPCs there are.
const CALLS: usize = 18;

/// A session that is not there.
const NOBODY: &str = "0197f3a1-0000-7000-8000-000000000000";

/// Makes one call of each RPC; the code of each answer.
async fn call_all(rpc: &mut Rpc) -> [Code; CALLS] {
    fn code<T>(answer: Result<T, Status>) -> Code {
        answer.map_or_else(|status| status.code(), |_| Code::Ok)
    }
    let client = &mut rpc.client;
    let user_id = "nobody".to_owned();
    let close = CloseUserSessionsRequest { user_id: user_id.clone(), ..Default::default() };
    let pending = ListPendingRequest { user_id: user_id.clone(), ..Default::default() };
    let purge = PurgePendingRequest { user_id: user_id.clone(), ..Default::default() };
    // The call that it may make finds that there is nothing to forget.
    let forget = ForgetDeviceRequest { user_id: user_id.clone(), device: Some("none".into()) };
    let forgot = match client.forget_device(forget).await.unwrap_err().code() {
        Code::NotFound => Code::Ok,
        refused => refused,
    };
    // Nor is there a session to send to.
    let to_session =
        SendToSessionRequest { session_id: NOBODY.into(), notification: Some(notification(1)), ..Default::default() };
    let sent_to = match client.send_to_session(to_session).await.unwrap_err().code() {
        Code::NotFound => Code::Ok,
        refused => refused,
    };
    let batch = stream::iter([SendBatchRequest::default()]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy").to_str().unwrap().to_owned();
    let (topic, user_ids) = ("scopes".to_owned(), vec![user_id.clone()]);
    let publish = PublishRequest { topic: topic.clone(), notification: Some(notification(1)) };
    let subscribe = SubscribeRequest { topic: topic.clone(), user_ids: user_ids.clone(), session_ids: vec![] };
    let unsubscribe = UnsubscribeRequest { topic, user_ids, session_ids: vec![] };
    [
        code(client.send_to_user(request("scopes", notification(1))).await),
        code(client.send_batch(batch).await),
        code(client.broadcast(BroadcastRequest { notification: Some(notification(1)), ..Default::default() }).await),
        code(client.close_user_sessions(close).await),
        code(client.list_pending(pending).await),
        code(client.purge_pending(purge).await),
        code(client.list_devices(ListDevicesRequest { user_id: user_id.clone() }).await),
        forgot,
        code(client.forget_user(ForgetUserRequest { user_id }).await),
        code(client.get_status(GetStatusRequest {}).await),
        code(client.list_sessions(ListSessionsRequest::default()).await),
        code(client.stream_events(StreamEventsRequest::default()).await),
        code(client.backup(BackupRequest { path }).await),
        sent_to,
        code(client.publish(publish).await),
        code(client.subscribe(subscribe).await),
        code(client.unsubscribe(unsubscribe).await),
        code(client.list_topics(ListTopicsRequest::default()).await),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_needs_its_scope_and_admin_opens_all() {
    let gateway = Gateway::start().await;
    let needs = [
        "send", "send", "send", "close", "read", "admin", "read", "admin", "admin", "read", "read", "events", "admin",
        "send", "send", "send", "send", "read",
    ];
    let mut denied = 0;
    for scope in SCOPES {
        let mut rpc = Rpc::over_tcp(gateway.grpc, Some(&format!("{scope}-token"))).await;
        let expected =
            needs.map(|needed| if scope == "admin" || scope == needed { Code::Ok } else { Code::PermissionDenied });
        assert_eq!(soon("answers", call_all(&mut rpc)).await, expected, "{scope}");
        denied += expected.iter().filter(|code| **code != Code::Ok).count() as u64;
    }
    assert_eq!(gateway.errors("grpc_permission_denied").await, denied);
    let mut reader = Rpc::over_tcp(gateway.grpc, Some("read-token")).await;
    let refused = reader.try_send(request("alice", notification(1))).await.unwrap_err();
    let details = refused.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!((&*info.domain, &*info.reason, &*info.metadata["scope"]), ("pushgate", "SCOPE_MISSING", "send"));
    assert!(refused.message().contains("`read` lacks the scope `send`"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_valid_token_every_call_over_tcp_is_unauthenticated() {
    let gateway = Gateway::start().await;
    for token in [None, Some("wrong"), Some("admin-token2"), Some("")] {
        let mut rpc = Rpc::over_tcp(gateway.grpc, token).await;
        assert_eq!(soon("answers", call_all(&mut rpc)).await, [Code::Unauthenticated; CALLS], "{token:?}");
    }
    let mut anonymous = Rpc::over_tcp(gateway.grpc, None).await;
    let refused = anonymous.try_send(request("alice", notification(1))).await.unwrap_err();
    assert_eq!(refused.get_error_details().error_info().unwrap().domain, "pushgate");
    let mut rpc = gateway.rpc().await;
    assert_eq!(rpc.errors("grpc_unauthenticated").await, 4 * CALLS as u64 + 1);
    assert_eq!(rpc.status().await.pending.unwrap().count, 0, "nothing of it happened");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unix_socket_needs_no_token_and_gives_all_scopes() {
    use std::os::unix::fs::PermissionsExt as _;
    let gateway = Gateway::start().await;
    let mut rpc = Rpc::over_unix(&gateway.socket).await;
    assert_eq!(soon("answers", call_all(&mut rpc)).await, [Code::Ok; CALLS]);
    assert_eq!(std::fs::metadata(&gateway.socket).unwrap().permissions().mode() & 0o777, 0o660);
    let socket = gateway.socket.clone();
    drop(rpc);
    gateway.stop().await;
    assert!(!socket.exists(), "it goes with the daemon");
}

#[tokio::test(flavor = "multi_thread")]
async fn insecure_opens_loopback_to_callers_without_a_token() {
    let changes = [("grpc.insecure", "true"), ("grpc.tokens", "[]"), ("grpc.listen", r#"["127.0.0.1:0"]"#)];
    let gateway = Gateway::with(&changes).await;
    let mut rpc = Rpc::over_tcp(gateway.grpc, None).await;
    assert_eq!(soon("answers", call_all(&mut rpc)).await, [Code::Ok; CALLS]);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_open_to_everyone() {
    use tonic_health::pb::health_check_response::ServingStatus;
    let gateway = Gateway::start().await;
    let mut health = HealthClient::new(Rpc::over_tcp(gateway.grpc, None).await.channel);
    for service in ["", "pushgate.v1.Gateway"] {
        let answer = soon("health", health.check(HealthCheckRequest { service: service.into() })).await.unwrap();
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service:?}");
    }
    let unknown = soon("health", health.check(HealthCheckRequest { service: "other".into() })).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

fn with_token<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    request
}

/// Lists the services by reflection, in either version: they differ in nothing else.
macro_rules! list_services {
    ($version:ident, $rpc:expr, $token:expr) => {{
        let ask = $version::ServerReflectionRequest {
            host: String::new(),
            message_request: Some($version::server_reflection_request::MessageRequest::ListServices(String::new())),
        };
        let mut client = $version::server_reflection_client::ServerReflectionClient::new($rpc.channel.clone());
        let asked = with_token(stream::iter([ask]), $token);
        match soon("reflection", client.server_reflection_info(asked)).await {
            Err(status) => Err(status.code()),
            Ok(answers) => {
                let answer = soon("an answer", answers.into_inner().next()).await.unwrap().unwrap();
                match answer.message_response.unwrap() {
                    $version::server_reflection_response::MessageResponse::ListServicesResponse(list) => {
                        let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
                        names.sort();
                        Ok(names)
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_in_both_versions_needs_any_valid_token() {
    let gateway = Gateway::start().await;
    let rpc = Rpc::over_tcp(gateway.grpc, None).await;
    for token in [None, Some("wrong")] {
        assert_eq!(list_services!(v1, rpc, token), Err(Code::Unauthenticated));
        assert_eq!(list_services!(v1alpha, rpc, token), Err(Code::Unauthenticated));
    }
    for scope in SCOPES {
        let token = format!("{scope}-token");
        for names in [list_services!(v1, rpc, Some(&token)), list_services!(v1alpha, rpc, Some(&token))] {
            let names = names.unwrap();
            for name in ["grpc.health.v1.Health", "pushgate.v1.Gateway"] {
                assert!(names.iter().any(|known| known == name), "{name} is not among {names:?}");
            }
        }
    }
    let unix = Rpc::over_unix(&gateway.socket).await;
    assert!(list_services!(v1, unix, None).is_ok() && list_services!(v1alpha, unix, None).is_ok());
    assert_eq!(gateway.errors("grpc_unauthenticated").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_wrong_with_a_send_is_told_by_field() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let json = |text: &str| Notification { payload: Some(Payload::Json(text.into())), ..Default::default() };
    let number = |value| {
        let kind = Some(prost_types::value::Kind::NumberValue(value));
        Notification { payload: Some(Payload::Data(prost_types::Value { kind })), ..Default::default() }
    };
    let named = |name: &str| Notification { r#type: name.into(), ..Default::default() };
    let for_user = |user: &str| request(user, notification(1));
    let deep = "[".repeat(129) + &"]".repeat(129);
    let huge = notification("x".repeat(300_000));
    let cases: Vec<(SendToUserRequest, &str)> = vec![
        (for_user(""), "user_id"),
        (for_user(&"u".repeat(256)), "user_id"),
        (for_user("a\nb"), "user_id"),
        (for_user("a\u{85}b"), "user_id"),
        (SendToUserRequest { user_id: "alice".into(), ..Default::default() }, "notification"),
        (SendToUserRequest { wait: 9, ..for_user("alice") }, "wait"),
        (request("alice", Notification { id: "i".repeat(129), ..Default::default() }), "notification.id"),
        (request("alice", Notification { id: "a\tb".into(), ..Default::default() }), "notification.id"),
        (request("alice", named(&"t".repeat(129))), "notification.type"),
        (request("alice", named("auth_success")), "notification.type"),
        (request("alice", named("draining")), "notification.type"),
        (request("alice", named("pong")), "notification.type"),
        (
            request("alice", Notification { from_user_id: "a\u{0}".into(), ..Default::default() }),
            "notification.from_user_id",
        ),
        (SendToUserRequest { wait_timeout: ttl(-1, 0), ..for_user("alice") }, "wait_timeout"),
        (SendToUserRequest { wait_timeout: ttl(0, i32::MAX), ..for_user("alice") }, "wait_timeout"),
        (
            request("alice", Notification { collapse_key: "k".repeat(129), ..Default::default() }),
            "notification.collapse_key",
        ),
        (request("alice", Notification { ttl: ttl(-1, 0), ..Default::default() }), "notification.ttl"),
        (request("alice", Notification { ttl: ttl(31 * 86_400, 0), ..Default::default() }), "notification.ttl"),
        (request("alice", json("{\"a\":")), "notification.json"),
        (request("alice", json("")), "notification.json"),
        (request("alice", json(&deep)), "notification.json"),
        (request("alice", number(f64::NAN)), "notification.data"),
        (request("alice", number(f64::INFINITY)), "notification.data"),
        (request("alice", huge), "notification"),
    ];
    let count = cases.len() as u64;
    for (request, field) in cases {
        let refused = rpc.try_send(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{field}: {refused}");
        let details = refused.get_error_details();
        let fields: Vec<_> = details.bad_request().unwrap().field_violations.iter().map(|v| v.field.clone()).collect();
        assert_eq!(fields, [field], "{refused}");
        let info = details.error_info().unwrap();
        assert_eq!((&*info.domain, &*info.reason), ("pushgate", "INVALID_ARGUMENT"));
    }
    let several = request("", Notification { r#type: "error".into(), ttl: ttl(-1, 0), ..json("nonsense") });
    let refused = rpc.try_send(several).await.unwrap_err();
    assert_eq!(refused.get_error_details().bad_request().unwrap().field_violations.len(), 4);
    let broadcast = BroadcastRequest { notification: Some(named("error")), ..Default::default() };
    assert_eq!(rpc.client.broadcast(broadcast).await.unwrap_err().code(), Code::InvalidArgument);
    let many: Vec<_> = (0..1001).map(|n| n.to_string()).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let never = Notification { ttl: ttl(0, 0), ..notification(1) };
    for (request, field) in [
        (durable(notification(1), &["a\nb"]), "filter.exclude_user_ids"),
        (durable(notification(1), &many), "filter.exclude_user_ids"),
        (durable(never, &[]), "notification.ttl"),
    ] {
        let refused = rpc.try_broadcast(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(&format!("{field}: ")), "{refused}");
    }
    assert_eq!(rpc.errors("grpc_invalid_argument").await, count + 5);
    assert_eq!(rpc.status().await.pending.unwrap().count, 0);
    for allowed in ["notification", "system_message", "order.shipped"] {
        rpc.send_to("alice", named(allowed)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_transport_cannot_take_is_answered_before_any_handler() {
    use prost_types::{ListValue, Value, value::Kind};
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let oversized = rpc.try_send(request("alice", notification("x".repeat(5_000_000)))).await.unwrap_err();
    assert_eq!(oversized.code(), Code::OutOfRange, "{oversized}");
    let mut value = Value { kind: Some(Kind::NullValue(0)) };
    for _ in 0..100 {
        value = Value { kind: Some(Kind::ListValue(ListValue { values: vec![value] })) };
    }
    let deep = Notification { payload: Some(Payload::Data(value)), ..Default::default() };
    assert_eq!(rpc.try_send(request("alice", deep)).await.unwrap_err().code(), Code::Internal);
    rpc.send("alice", "the connection is as good as before").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_ends_with_deadline_exceeded_just_before_its_deadline() {
    let gateway = Gateway::with(&[("limits.notification_bytes", "4MiB"), ("store.max_pending_per_user", "0")]).await;
    // Large records keep the writer busy, and small ones wait behind them.
    let mut busy = tokio::task::JoinSet::new();
    for n in 0..4 {
        let mut rpc = gateway.rpc().await;
        busy.spawn(async move {
            let data = "x".repeat(3_000_000);
            for _ in 0..6 {
                rpc.send(&format!("large-{n}"), data.clone()).await;
            }
        });
    }
    let mut rpc = gateway.rpc().await;
    let refused = soon("a call that is late", async {
        loop {
            let mut call = Request::new(request("small", notification(1)));
            // Set by hand, so that only the gateway looks at it.
            call.metadata_mut().insert("grpc-timeout", "8m".parse().unwrap());
            match rpc.client.send_to_user(call).await {
                Err(status) if status.code() == Code::DeadlineExceeded => return status,
                // It was in time, or the caller's own side gave up first.
                Ok(_) | Err(_) => assert!(!busy.is_empty() && busy.try_join_next().is_none_or(|done| done.is_ok())),
            }
        }
    })
    .await;
    assert_eq!(refused.get_error_details().error_info().unwrap().reason, "DEADLINE_EXCEEDED");
    assert!(gateway.errors("grpc_deadline_exceeded").await >= 1);
    soon("the large ones", busy.join_all()).await;
}

fn close(user: &str) -> CloseUserSessionsRequest {
    CloseUserSessionsRequest { user_id: user.to_owned(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_closed_by_user_device_or_id_with_the_callers_code_and_reason() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut phone = gateway.client_with("alice", "device=phone").await;
    let mut tablet = gateway.client_with("alice", "device=tablet").await;
    let mut unnamed = gateway.client("alice").await;
    let (mut one, mut two) = (gateway.client("alice").await, gateway.client("alice").await);
    let mut bob = gateway.client("bob").await;

    let reason = "ü".repeat(61);
    let by_device =
        CloseUserSessionsRequest { device: Some("phone".into()), code: 4099, reason: reason.clone(), ..close("alice") };
    assert_eq!(rpc.close(by_device.clone()).await.unwrap(), 1);
    assert_eq!(phone.closed().await, (4099, reason));
    until("sessions", 5, async || gateway.hub.session_count()).await;
    assert_eq!(rpc.close(by_device).await.unwrap(), 0);

    let by_id = |user: &str, id: String| CloseUserSessionsRequest { session_id: id, code: 1008, ..close(user) };
    assert_eq!(rpc.close(by_id("bob", one.session())).await.unwrap(), 0, "it is not bob's");
    assert_eq!(rpc.close(by_id("alice", one.session())).await.unwrap(), 1);
    assert_eq!(one.closed().await, (1008, String::new()));

    assert_eq!(
        rpc.close(CloseUserSessionsRequest { device: Some(String::new()), code: 3000, ..close("alice") })
            .await
            .unwrap(),
        2
    );
    assert_eq!(unnamed.closed().await.0, 3000, "set and empty: the unnamed device");
    assert_eq!(two.closed().await.0, 3000);
    assert_eq!(rpc.close(close("alice")).await.unwrap(), 1);
    assert_eq!(tablet.closed().await, (1000, String::new()), "1000 is the default");
    assert_eq!(rpc.close(close("nobody")).await.unwrap(), 0);
    bob.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_that_is_not_allowed_is_refused_and_closes_nothing() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut client = gateway.client("alice").await;
    let code = |code| (CloseUserSessionsRequest { code, ..close("alice") }, "code");
    let device = |name: &str| CloseUserSessionsRequest { device: Some(name.into()), ..close("alice") };
    let mut cases: Vec<_> =
        [1, 999, 1001, 1005, 1006, 1012, 1015, 2999, 4100, 4401, 5000, 65_536, 66_536].map(code).into();
    cases.push((CloseUserSessionsRequest { reason: "ü".repeat(62), ..close("alice") }, "reason"));
    cases.push((close(""), "user_id"));
    cases.push((CloseUserSessionsRequest { session_id: "x".into(), ..close("alice") }, "session_id"));
    cases.push((device("a b"), "device"));
    for (request, field) in cases {
        let refused = rpc.close(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(refused.get_error_details().bad_request().unwrap().field_violations[0].field, field);
    }
    client.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_page_tells_what_happened() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut client = gateway.client("alice").await;
    rpc.send("alice", 1).await;
    rpc.send("bob", 1).await;
    client.data(1).await;
    client.settle().await;
    client.send(tokio_tungstenite::tungstenite::Message::text("nonsense")).await;
    client.next().await;
    until("what was sent", 5, async || rpc.clone().status().await.sent.unwrap().messages).await;
    // What is confirmed is deleted lazily.
    until("what is pending", 1, async || rpc.clone().status().await.pending.unwrap().count).await;
    let status = rpc.status().await;
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    assert!(!status.node.is_empty() && !status.draining);
    let mut listeners: Vec<_> = status.listeners.iter().map(|l| (l.name.as_str(), l.address.clone())).collect();
    listeners.sort();
    let socket = format!("unix:{}", gateway.socket.display());
    let expected = [
        ("grpc", gateway.grpc.to_string()),
        ("grpc", socket),
        ("http", gateway.http.to_string()),
        ("ops", gateway.ops.to_string()),
    ];
    assert_eq!(listeners, expected);
    let connections = status.connections.unwrap();
    assert_eq!((connections.now, connections.peak, connections.total), (1, 1, 1));
    assert_eq!((status.users, status.sessions), (1, 1));
    assert_eq!((status.received.unwrap().messages, status.sent.unwrap().messages), (3, 5));
    let latency = status.confirm_latency.unwrap();
    assert_eq!(latency.count, 1);
    assert!(latency.max.is_some());
    let pending = status.pending.unwrap();
    assert!(pending.count == 1 && pending.bytes > 0, "bob's");
    let store = status.store.unwrap();
    assert_eq!((store.engine.as_str(), store.healthy, store.reason.as_str()), ("sled", true, ""));
    assert!(store.disk_bytes > 0);
    let process = status.process.unwrap();
    assert!(process.rss_bytes > 0 && process.memory_total_bytes > process.rss_bytes && process.cpu.is_some());
    let names: Vec<_> = pushgate::metrics::Failure::ALL.iter().map(|failure| failure.as_str()).collect();
    assert_eq!(status.errors.len(), names.len(), "those that are 0 are here too");
    assert!(
        status.errors.iter().all(|(name, count)| *count == u64::from(name == "bad_message")),
        "{:?}",
        status.errors
    );
    let limits = status.limits.unwrap();
    assert_eq!((limits.connections, limits.window, limits.message_bytes), (100_000, 256, 65_536));
    assert_eq!(json!(status.store_epoch), client.hello["storeEpoch"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_says_what_is_in_it_and_what_is_wrong_with_its_path() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    for n in 0..3 {
        rpc.send("alice", n).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| BackupRequest { path: folder.path().join(name).to_str().unwrap().to_owned() };
    let made = rpc.client.backup(path("copy")).await.unwrap().into_inner();
    assert!(made.bytes > 0 && made.records == 3, "{made:?}");

    let there = rpc.client.backup(path("copy")).await.unwrap_err();
    assert_eq!(there.code(), Code::AlreadyExists);
    assert_eq!(there.get_error_details().error_info().unwrap().reason, "PATH_EXISTS");
    for bad in [path("no/such"), BackupRequest { path: "copy".into() }, BackupRequest::default()] {
        let refused = rpc.client.backup(bad).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert_eq!(refused.get_error_details().bad_request().unwrap().field_violations[0].field, "path");
    }
    assert_eq!(gateway.errors("grpc_invalid_argument").await, 3);
    assert_eq!(gateway.errors("already_exists").await, 1);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// A connection that speaks HTTP/2 and knows nothing of gRPC.
struct Http2(hyper::client::conn::http2::SendRequest<BoxBody<Bytes, Infallible>>);

impl Http2 {
    async fn connect(gateway: &Gateway) -> Self {
        let stream = TokioIo::new(soon("a connection", TcpStream::connect(gateway.grpc)).await.unwrap());
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    /// Calls with these headers and this body; without one it never comes. The status that is the whole answer.
    async fn call(&self, path: &str, headers: &[(&str, &str)], body: Option<&'static [u8]>) -> Option<Code> {
        let body = match body {
            Some(bytes) => BoxBody::new(Full::new(Bytes::from_static(bytes))),
            None => BoxBody::new(StreamBody::new(stream::pending::<Result<hyper::body::Frame<Bytes>, _>>())),
        };
        let mut call = http::Request::post(format!("http://gateway{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", "Bearer admin-token");
        for (name, value) in headers {
            call = call.header(*name, *value);
        }
        let answer = self.0.clone().send_request(call.body(body).unwrap()).await.ok()?;
        Some(Code::from_bytes(answer.headers()["grpc-status"].as_bytes()))
    }
}

const SEND: &str = "/pushgate.v1.Gateway/SendToUser";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_never_comes_to_its_end_is_answered_at_its_deadline() {
    let gateway = Gateway::start().await;
    let raw = Http2::connect(&gateway).await;
    for path in [SEND, "/pushgate.v1.Gateway/GetStatus"] {
        let answer = soon("the deadline", raw.call(path, &[("grpc-timeout", "50m")], None)).await;
        assert_eq!(answer, Some(Code::DeadlineExceeded), "{path}");
    }
    assert_eq!(gateway.errors("grpc_deadline_exceeded").await, 2);
    let scraped = crate::http::samples(&gateway.ops().get("/metrics").await.body);
    for method in ["SendToUser", "GetStatus"] {
        let series = format!("pushgate_grpc_requests_total{{method=\"{method}\",code=\"DEADLINE_EXCEEDED\"}}");
        assert_eq!(scraped.get(&series), Some(&1.0), "{series}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_handler_sees_is_refused_and_counted() {
    let gateway = Gateway::start().await;
    let raw = Http2::connect(&gateway).await;
    let compressed = [1, 0, 0, 0, 0].as_slice();
    let cases = [
        ("/pushgate.v1.Gateway/Nothing", None, Code::Unimplemented),
        ("/pushgate.v1.Other/SendToUser", None, Code::Unimplemented),
        (SEND, Some(("grpc-encoding", "gzip")), Code::Unimplemented),
        // Compressed, and it does not say how.
        (SEND, None, Code::Internal),
    ];
    for (n, (path, header, code)) in cases.into_iter().enumerate() {
        let answer = soon("an answer", raw.call(path, header.as_slice(), Some(compressed))).await;
        assert_eq!(answer, Some(code), "{path} {header:?}");
        assert_eq!(gateway.errors("grpc_refused").await, n as u64 + 1, "{path} {header:?}");
    }
    let scraped = crate::http::samples(&gateway.ops().get("/metrics").await.body);
    // Methods that do not exist are one, however many names are tried.
    for (method, code, count) in
        [("other", "UNIMPLEMENTED", 2.0), ("SendToUser", "UNIMPLEMENTED", 1.0), ("SendToUser", "INTERNAL", 1.0)]
    {
        let series = format!("pushgate_grpc_requests_total{{method=\"{method}\",code=\"{code}\"}}");
        assert_eq!(scraped.get(&series), Some(&count), "{series}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_hangs_ends_with_the_gateway() {
    let gateway = Gateway::start().await;
    let raw = Http2::connect(&gateway).await;
    let mut hanging = Box::pin(raw.call(SEND, &[], None));
    // It is there once the gateway answered one that followed it.
    let later = async { soon("an answer", raw.call("/other.Service/Call", &[], Some(&[]))).await };
    tokio::select! {
        biased;
        answer = hanging.as_mut() => panic!("{answer:?}"),
        answer = later => assert_eq!(answer, Some(Code::Unimplemented)),
    }
    gateway.begin_stop();
    assert_eq!(gateway.ended().await, Ended::InOrder);
    assert_eq!(soon("the connection's end", hanging).await, None);
}
