//! A stop in order: not ready, nobody let in, sessions told and closed, callers told, the store closed.

use std::time::{Duration, Instant};

use pushgate::{
    api::proto::{DrainState, event::Event},
    hub::DrainPlan,
    server::{Ended, Server},
};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt as _;

use crate::support::{
    Client, Gateway, Raw, Rpc, Token,
    client::request as handshake,
    raw,
    rpc::{notification, request},
    soon, until,
};

/// `GET` on the ops listener: the status and the body.
async fn probe(gateway: &Gateway, path: &str) -> (u16, String) {
    let mut raw = Raw::connect(gateway.ops).await;
    let head = raw.request(&format!("GET {path} HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n\r\n")).await;
    (head[9..12].parse().unwrap(), raw.rest().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_tell_whether_it_lives_and_takes_work() {
    let gateway = Gateway::start().await;
    assert_eq!(probe(&gateway, "/livez").await, (200, "ok\n".to_owned()));
    let (status, body) = probe(&gateway, "/readyz").await;
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()), (200, json!({ "ready": true, "reasons": [] })));
    assert_eq!(probe(&gateway, "/").await.0, 404);
    assert_eq!(probe(&gateway, "/ws").await.0, 404, "clients have a listener of their own");
    let mut raw = Raw::connect(gateway.ops).await;
    assert!(raw.request("POST /livez HTTP/1.1\r\nHost: ops\r\nContent-Length: 0\r\n\r\n").await.contains(" 405 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_told_to_come_back_and_closed_with_1012() {
    let gateway = Gateway::start().await;
    let mut events = gateway.rpc().await.events(&["draining", "session_closed"], "").await;
    let (mut alice, mut bob) = (gateway.client("alice").await, gateway.client("bob").await);
    let (mut waiting, _) = Client::open(handshake(&gateway.url(""), &[])).await.unwrap();
    let mut idle = Raw::connect(gateway.http).await;
    gateway.begin_stop();
    for client in [&mut alice, &mut bob] {
        let told = client.next().await;
        assert_eq!(told["type"], "draining");
        assert!((1..25_000).contains(&told["reconnectAfterMs"].as_u64().unwrap()), "{told}");
        assert_eq!(client.closed().await.0, 1012);
    }
    let told = waiting.next().await;
    assert!(told["reconnectAfterMs"].as_u64().unwrap() >= 500, "who has not yet authenticated, too: {told}");
    assert_eq!(waiting.closed().await.0, 1012);
    assert_eq!(idle.drained().await, 0);
    // Each state once at least, in order, and the ends of the sessions between them.
    let (mut states, mut closed) = (Vec::new(), 0);
    let end = loop {
        match soon("the stream", events.0.message()).await.map(|event| event.unwrap().event.unwrap()) {
            Ok(Event::Draining(step)) => {
                assert!(step.stopping && step.deadline.is_some() && step.sessions == 2, "{step:?}");
                states.push((step.state(), closed));
            }
            Ok(Event::SessionClosed(session)) => {
                assert_eq!(session.code, 1012);
                closed += 1;
            }
            Ok(other) => panic!("{other:?}"),
            Err(end) => break end,
        }
    };
    states.dedup();
    assert_eq!(states[..2], [(DrainState::NotReady, 0), (DrainState::Closing, 0)]);
    assert_eq!(*states.last().unwrap(), (DrainState::Drained, 2));
    assert_eq!(end.code(), Code::Unavailable);
    assert_eq!(end.get_error_details().error_info().unwrap().reason, "DRAINING");
    assert_eq!(gateway.ended().await, Ended::InOrder);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_load_balancers_notice_it_is_not_ready_and_serves_on() {
    let gateway = Gateway::with(&[("shutdown.lb_delay", "1s")]).await;
    let mut rpc = gateway.rpc().await;
    let mut health = HealthClient::new(rpc.channel.clone());
    let mut check = async || {
        let answer = soon("health", health.check(HealthCheckRequest { service: String::new() })).await.unwrap();
        answer.into_inner().status()
    };
    assert_eq!(check().await, ServingStatus::Serving);
    let mut early = gateway.client("alice").await;
    gateway.begin_stop();
    until("readiness", 503, async || probe(&gateway, "/readyz").await.0).await;
    let (_, body) = probe(&gateway, "/readyz").await;
    assert_eq!(
        serde_json::from_str::<Value>(&body).unwrap(),
        json!({ "ready": false, "reasons": ["the node is stopping"] })
    );
    assert_eq!(probe(&gateway, "/livez").await.0, 200);
    until("health", true, || {
        let mut health = HealthClient::new(rpc.channel.clone());
        async move {
            let answer = health.check(HealthCheckRequest { service: "pushgate.v1.Gateway".into() }).await.unwrap();
            answer.into_inner().status() == ServingStatus::NotServing
        }
    })
    .await;
    assert!(rpc.status().await.draining);
    // Clients still come and calls are still taken.
    let mut late = gateway.client("alice").await;
    assert_eq!(rpc.send("alice", "still").await.sessions, 2);
    for client in [&mut early, &mut late] {
        assert_eq!(client.data(1).await, ["still"]);
        assert_eq!(client.next().await["type"], "draining");
        assert_eq!(client.closed().await.0, 1012);
    }
    let http = gateway.http;
    assert_eq!(gateway.ended().await, Ended::InOrder);
    assert!(TcpStream::connect(http).await.is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_while_sessions_are_closed_is_stored_and_stays_until_all_is_unavailable() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    // So many that closing them takes a moment.
    let mut clients = Vec::new();
    for n in 0..400 {
        clients.push(Raw::session(&gateway, &format!("user-{n}"), "").await);
    }
    gateway.begin_stop();
    let (mut stored, mut while_closing) = (0_i32, 0_i32);
    // By the gateway, or because it has gone a moment later.
    soon("a refusal", async {
        loop {
            match rpc.try_send(request("absent", notification(stored))).await {
                Ok(_) => {
                    stored += 1;
                    while_closing += i32::from(gateway.hub.is_draining());
                }
                Err(_) => return,
            }
        }
    })
    .await;
    assert!(while_closing > 1, "{while_closing} of {stored}");
    let gateway = gateway.restart().await;
    let pending = gateway.client("absent").await.hello["pending"].as_i64().unwrap();
    // The last answer may not have come back.
    assert!((i64::from(stored)..=i64::from(stored) + 1).contains(&pending), "{pending}, not {stored}");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_of_a_stop_all_is_refused_and_may_be_tried_again() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    gateway.hub.refuse_everything();
    let refused = rpc.try_send(request("absent", notification(1))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let details = refused.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "DRAINING");
    assert!(details.retry_info().unwrap().retry_delay.is_some());
    let broadcast =
        pushgate::api::proto::BroadcastRequest { notification: Some(notification(1)), ..Default::default() };
    assert_eq!(rpc.client.broadcast(broadcast).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(gateway.stop().await, Ended::InOrder);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_let_in_during_a_drain() {
    let gateway = Gateway::start().await;
    let mut half = Raw::connect(gateway.http).await;
    half.write(b"GET /ws HTTP/1.1\r\n").await;
    gateway.hub.refuse_everything();
    let url = gateway.url(&format!("token={}", Token::of("alice").sign()));
    let refused = crate::support::client::refusal(handshake(&url, &[])).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(gateway.errors("unavailable").await, 1);
    assert_eq!(gateway.stop().await, Ended::InOrder);
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_neither_read_nor_answer_do_not_hold_the_stop_up() {
    let gateway = Gateway::with(&[("shutdown.deadline", "3s")]).await;
    let mut rpc = gateway.rpc().await;
    let mut silent = Raw::session(&gateway, "silent", "").await;
    let stalled = Raw::connect_narrow(gateway.http).await.welcomed("stalled", "").await;
    for n in 0..60 {
        rpc.send("stalled", json!([n, "x".repeat(100_000)])).await;
    }
    let _open = rpc.events(&[], "").await;
    let _idle = (Raw::connect(gateway.http).await, Raw::connect(gateway.grpc).await, Raw::connect(gateway.ops).await);
    let started = Instant::now();
    gateway.begin_stop();
    assert_eq!(silent.text().await["type"], "draining");
    assert_eq!(silent.close_frame().await.close_code(), Some(1012));
    let folder = std::sync::Arc::clone(&gateway.folder);
    assert_eq!(gateway.ended().await, Ended::InOrder);
    assert!(started.elapsed() < Duration::from_millis(3500), "{:?}", started.elapsed());
    drop((stalled, folder));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_gives_ports_socket_and_store_back() {
    let gateway = Gateway::start().await;
    let (http, socket) = (gateway.http, gateway.socket.clone());
    let _client = gateway.client("alice").await;
    let gateway = gateway.restart().await;
    assert!(gateway.socket == socket && socket.exists());
    soon("a call", Rpc::over_unix(&socket)).await.status().await;
    drop(TcpStream::connect(http).await);
    gateway.stop().await;
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_store_serves_one_gateway_at_a_time() {
    let gateway = Gateway::start().await;
    let other = pushgate::config::Config::load(pushgate::config::Sources {
        file: Some(gateway.folder.path().join("pushgate.toml")),
        environment: vec![("PUSHGATE_GRPC__LISTEN".into(), r#"["127.0.0.1:0"]"#.into())],
        ..Default::default()
    })
    .unwrap();
    let Err(refused) = Server::bind(&other.config, pushgate::clock::Clock::system()).await else {
        panic!("two gateways over one store");
    };
    let refused = refused.to_string();
    assert!(refused.contains("in use by another process") && !refused.contains('\n'), "{refused}");
    let mut client = gateway.client("alice").await;
    client.nothing_more().await;
    let mut raw = Raw::session(&gateway, "bob", "").await;
    raw.send(raw::CLOSE, b"").await;
    assert_eq!(raw.close_frame().await.close_code(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_the_health_hears_of_a_drain_and_of_the_stop() {
    let gateway = Gateway::start().await;
    let mut health = HealthClient::new(gateway.rpc().await.channel.clone());
    for service in ["", "pushgate.v1.Gateway"] {
        let watched = soon("a watch", health.watch(HealthCheckRequest { service: service.into() })).await.unwrap();
        let mut watched = watched.into_inner();
        let first = soon("the first word", watched.message()).await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving, "{service}");
    }
    let mut watched =
        soon("a watch", health.watch(HealthCheckRequest { service: String::new() })).await.unwrap().into_inner();
    assert_eq!(soon("a word", watched.message()).await.unwrap().unwrap().status(), ServingStatus::Serving);
    let _ = gateway.hub.start_drain(DrainPlan::default()).unwrap();
    assert_eq!(soon("a word", watched.message()).await.unwrap().unwrap().status(), ServingStatus::NotServing);
    gateway.begin_stop();
    // The stream ends with the node; until then it says nothing else.
    while let Ok(Some(more)) = soon("the end", watched.message()).await {
        assert_eq!(more.status(), ServingStatus::NotServing);
    }
    assert_eq!(gateway.ended().await, Ended::InOrder);
}
