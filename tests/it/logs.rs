//! What is logged: JSON where nobody looks, one line an ended session, and never a token or a payload.

use futures_util::stream;
use pushgate::api::proto::{Notification, PurgePendingRequest, SendBatchRequest, notification::Payload};
use rustix::process::Signal;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    Client, Raw, Rpc, Token,
    child::{Daemon, config},
    client::request as handshake,
    gateway::ADMIN,
    raw,
    rpc::{durable, notification, own, request},
    token::SECRET,
};

/// Stands in every payload.
const PAYLOAD: &str = "payload-that-must-never-reach-a-log";

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ended_is_one_line_with_its_counts() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(&config(folder.path(), "")).await;
    let url = format!("ws://{}/ws?device=phone&token={}", daemon.address("http"), Token::of("alice").sign());
    let mut client = Client::connect(&url).await;
    let session = client.session();
    let mut rpc = Rpc::over_tcp(daemon.address("grpc"), Some(ADMIN)).await;
    rpc.send("alice", 1).await;
    client.data(1).await;
    client.settle().await;
    client.close().await;
    let line = daemon.logged("session ended").await;
    let expected = [
        ("level", json!("INFO")),
        ("session", json!(session)),
        ("user", json!("alice")),
        ("device", json!("phone")),
        ("code", json!(1005)),
        ("closed_by", json!("client")),
        ("messages_received", json!(2)),
        ("messages_sent", json!(4)),
        ("unconfirmed", json!(0)),
    ];
    for (field, value) in expected {
        assert_eq!(line[field], value, "{field} of {line}");
    }
    for field in ["bytes_received", "bytes_sent", "duration_ms"] {
        assert!(line[field].is_u64(), "{field} of {line}");
    }
    assert!(line["remote"].as_str().unwrap().starts_with("127.0.0.1:") && line["timestamp"].is_string());
    daemon.signal(Signal::TERM);
    assert!(daemon.ended().await.success());
    assert_eq!(daemon.log.matches("\"session ended\"").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_clears_something_is_a_line_with_his_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(&config(folder.path(), "")).await;
    let mut rpc = Rpc::over_tcp(daemon.address("grpc"), Some(ADMIN)).await;
    let url = format!("ws://{}/ws?device=phone&token={}", daemon.address("http"), Token::of("alice").sign());
    Client::connect(&url).await.close().await;
    rpc.send("alice", 1).await;
    let purge = |force| PurgePendingRequest { user_id: "alice".into(), device: Some("phone".into()), force };
    assert_eq!(rpc.purge(purge(false)).await.unwrap(), 1);
    assert_eq!(rpc.purge(purge(true)).await.unwrap(), 1);
    let line = daemon.logged("audit").await;
    assert_eq!((&line["level"], &line["target"]), (&json!("INFO"), &json!("pushgate::audit")));
    assert_eq!((&line["action"], &line["caller"]), (&json!("purge"), &json!("admin")), "what only counted is no line");
    assert_eq!((&line["subject"], &line["result"]), (&json!("user alice, device phone"), &json!("1 purged")));
    rpc.forget_device("alice", Some("phone")).await.unwrap();
    let line = daemon.logged("audit").await;
    assert_eq!((&line["action"], &line["caller"]), (&json!("forget device"), &json!("admin")));
    assert_eq!((&line["subject"], &line["result"]), (&json!("user alice, device phone"), &json!("forgotten")));
    rpc.send("alice", 2).await;
    rpc.forget_user("alice").await;
    let line = daemon.logged("audit").await;
    assert_eq!(
        (&line["action"], &line["caller"], &line["subject"]),
        (&json!("forget user"), &json!("admin"), &json!("user alice"))
    );
    assert_eq!(line["result"], "0 devices and 1 notifications forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_logged_within_a_call_of_a_trace_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(&config(folder.path(), "")).await;
    let mut rpc = Rpc::over_tcp(daemon.address("grpc"), Some(ADMIN)).await;
    rpc.log_filter("warn,pushgate::audit=info").await.unwrap();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parents = [
        (format!("00-{trace}-00f067aa0ba902b7-01"), Some(trace)),
        (format!("00-{trace}-00f067aa0ba902b7-00"), Some(trace)),
        (format!("ff-{trace}-00f067aa0ba902b7-01"), None),
    ];
    for (parent, logged) in parents {
        let request = PurgePendingRequest { user_id: "alice".into(), device: None, force: true };
        let mut request = tonic::Request::new(request);
        request.metadata_mut().insert("traceparent", parent.parse().unwrap());
        rpc.client.purge_pending(request).await.unwrap();
        let line = daemon.logged("audit").await;
        assert_eq!((&line["action"], line["trace_id"].as_str()), (&json!("purge"), logged), "{line}");
    }
    let http = crate::support::Http::new(daemon.address("ops")).bearer(ADMIN);
    http.with("traceparent", &format!("00-{trace}-00f067aa0ba902b7-00")).post("/ws/cleanup", json!({})).await.good();
    let line = daemon.logged("audit").await;
    assert_eq!(line["trace_id"], trace, "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_and_no_payload_is_logged_at_any_level() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(&config(folder.path(), "log.filter = \"trace\"\ndelivery.window = 4")).await;
    let (http, grpc) = (daemon.address("http"), daemon.address("grpc"));
    let url = |query: &str| format!("ws://{http}/ws?{query}");
    let token = Token::of("alice").sign();
    let mut secrets = vec![SECRET.to_owned(), PAYLOAD.to_owned(), token.clone(), ADMIN.to_owned()];

    // The four places, with a good token, one that ran out, and nonsense.
    for token in [token, Token::of("alice").expiring_in(-600).sign(), "nonsense.of-a.forged-signature".to_owned()] {
        let bearer = format!("Bearer {token}");
        let protocol = format!("pushgate.v1.json, bearer.{token}");
        let requests = [
            handshake(&url(""), &[("authorization", &bearer)]),
            handshake(&url(""), &[("sec-websocket-protocol", &protocol)]),
            handshake(&url(&format!("token={token}")), &[]),
        ];
        for request in requests {
            Client::open(request).await.unwrap().0.next().await;
        }
        let (mut client, _) = Client::open(handshake(&url(""), &[])).await.unwrap();
        client.ask(&json!({ "type": "auth", "token": token })).await;
        // Refused before anything is read: an unknown sub-protocol, a device that is none.
        let _ = Client::open(handshake(&url(&format!("token={token}&device=a%20b")), &[])).await;
        let _ = Client::open(handshake(&url(""), &[("sec-websocket-protocol", &*format!("bearer.{token}"))])).await;
        let mut raw = Raw::connect(http).await;
        raw.request(&format!("GET /ws?token={token} HTTP/1.1\r\nHost gateway\r\n\r\n")).await;
        secrets.push(token.rsplit('.').next().unwrap().to_owned());
        secrets.push(token);
    }

    // Payloads of every kind, live and replayed, good and bad, both ways.
    let mut rpc = Rpc::over_tcp(grpc, Some(ADMIN)).await;
    let large = format!("{PAYLOAD}{}", "x".repeat(20_000));
    let bytes = Notification { payload: Some(Payload::Binary(PAYLOAD.into())), ..Default::default() };
    rpc.send("bob", PAYLOAD).await;
    rpc.send("bob", large.clone()).await;
    rpc.send_to("bob", bytes.clone()).await;
    let mut bob = Client::connect(&url(&format!("token={}", Token::of("bob").sign()))).await;
    for _ in 0..3 {
        bob.next().await;
    }
    for data in [json!(PAYLOAD), json!(large), json!({ PAYLOAD: PAYLOAD })] {
        rpc.send("bob", data.clone()).await;
        rpc.broadcast(data.clone()).await;
        rpc.try_broadcast(durable(own("same", data), &[])).await.ok();
    }
    for _ in 0..7 {
        bob.next().await;
    }
    bob.ask(&json!({ "type": "echo", "data": PAYLOAD })).await;
    bob.ask(&json!({ "type": "auth", "token": "secret-of-a-second-auth" })).await;
    secrets.push("secret-of-a-second-auth".to_owned());
    for text in
        [PAYLOAD.to_owned(), format!("{{\"type\":\"{PAYLOAD}\"}}"), format!("{{\"type\":1,\"x\":\"{PAYLOAD}\"}}")]
    {
        bob.send(Message::text(text)).await;
        bob.next().await;
    }
    bob.settle().await;
    let broken = Notification { payload: Some(Payload::Json(format!("{{{PAYLOAD}"))), ..Default::default() };
    rpc.try_send(request("bob", broken.clone())).await.unwrap_err();
    let batch = [request("bob", broken), request("carol", notification(PAYLOAD))];
    let batch = batch.map(|send| SendBatchRequest { request_id: String::new(), send: Some(send) });
    let mut answers = rpc.client.send_batch(stream::iter(batch)).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    let carol = PurgePendingRequest { user_id: "carol".into(), force: true, ..Default::default() };
    assert_eq!(rpc.purge(carol).await.unwrap(), 1);
    rpc.try_send(request("", notification(PAYLOAD))).await.unwrap_err();
    let wrong = "caller-token-that-is-wrong";
    Rpc::over_tcp(grpc, Some(wrong)).await.try_send(request("bob", notification(PAYLOAD))).await.unwrap_err();
    secrets.push(wrong.to_owned());
    let mut raw = Raw::connect(http).await.upgraded(&format!("token={}", Token::of("carol").sign())).await;
    raw.send(raw::TEXT, format!("{PAYLOAD}\u{1}").as_bytes()).await;
    raw.send(raw::TEXT, &[PAYLOAD.as_bytes(), b"\xFF"].concat()).await;
    assert_eq!(raw.close_frame().await.close_code(), Some(1007));

    daemon.signal(Signal::TERM);
    assert!(daemon.ended().await.success());
    assert!(daemon.log.contains("\"DEBUG\""), "the level was not what this test is about");
    // Libraries show headers, frames and rows below INFO: no filter lets them.
    for line in daemon.log.lines().filter(|line| line.contains("\"DEBUG\"") || line.contains("\"TRACE\"")) {
        assert!(line.contains("\"target\":\"pushgate"), "{line}");
    }
    assert!(daemon.log.contains("\"not let in\"") && daemon.log.contains("\"session ended\""));
    for secret in secrets {
        let line = daemon.log.lines().find(|line| line.contains(&secret));
        assert!(line.is_none(), "`{secret}` was logged: {}", line.unwrap_or_default());
    }
    let base64 = "cGF5bG9hZC10aGF0LW11c3QtbmV2ZXI";
    assert!(!daemon.log.contains(base64));
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_come_and_go_do_not_flood_the_log() {
    const SESSIONS: u64 = 60;
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(&config(folder.path(), "")).await;
    let http = daemon.address("http");
    for n in 0..SESSIONS {
        let mut raw = Raw::connect(http).await.welcomed("alice", "").await;
        if n % 2 == 0 {
            raw.reset();
        } else {
            // A frame that is not masked.
            raw.write(b"\x81\0").await;
            assert_eq!(raw.close_frame().await.close_code(), Some(1002));
        }
    }
    let (mut lines, mut more) = (0, 0);
    while lines + more < SESSIONS {
        let line = daemon.line().await.expect("it runs");
        lines += u64::from(line["message"] == "session ended");
        more += line["more"].as_u64().unwrap_or_default();
    }
    // Twenty in ten seconds, however slow the machine is.
    assert!(lines + more == SESSIONS && more >= SESSIONS / 3, "{lines} and {more}");
}
