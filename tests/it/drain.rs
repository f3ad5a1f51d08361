//! A node out of service and back (`Drain`, `Undrain`), and a fleet that returns over a restart. What of it a stop does is in
//! `stop.rs`.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use pushgate::{
    api::proto::{DrainRequest, DrainState, Draining, Outcome, event::Event, notification::Payload},
    client::Client as Library,
    server::Ended,
};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tonic::{Code, Status, Streaming};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt as _;

use crate::support::{
    Client, Gateway, Raw, Rpc, Token,
    client::request as handshake,
    rpc::{notification, request, ttl},
    soon, until,
};

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

async fn next(steps: &mut Streaming<Draining>) -> Option<Draining> {
    soon("a step", steps.message()).await.unwrap()
}

/// The states that a stream tells until its end.
async fn states(mut steps: Streaming<Draining>) -> Vec<DrainState> {
    let mut states = Vec::new();
    while let Some(step) = next(&mut steps).await {
        states.push(step.state());
    }
    states.dedup();
    states
}

fn reason(status: &Status) -> (Code, String) {
    (status.code(), status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default())
}

async fn health(rpc: &Rpc) -> ServingStatus {
    let request = HealthCheckRequest { service: "pushgate.v1.Gateway".into() };
    soon("health", HealthClient::new(rpc.channel.clone()).check(request)).await.unwrap().into_inner().status()
}

async fn readiness(gateway: &Gateway) -> (u16, Value) {
    let mut raw = Raw::connect(gateway.ops).await;
    let head = raw.request("GET /readyz HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n\r\n").await;
    (head[9..12].parse().unwrap(), serde_json::from_str(&raw.rest().await).unwrap())
}

fn not_ready(reason: &str) -> (u16, Value) {
    (503, json!({ "ready": false, "reasons": [reason] }))
}

/// Is told to come back, and closed.
async fn sent_away(client: &mut Client) -> u64 {
    let told = client.next().await;
    assert_eq!(told["type"], "draining", "{told}");
    assert_eq!(client.closed().await, (1012, "restarting".to_owned()));
    told["reconnectAfterMs"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_goes_out_of_service_in_order_idles_and_comes_back() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&["draining"], "").await;
    let (mut alice, mut bob) = (gateway.client("alice").await, gateway.client("bob").await);
    let (mut waiting, _) = Client::open(handshake(&gateway.url(""), &[])).await.unwrap();
    let mut idle = Raw::connect(gateway.http).await;
    let mut half = Raw::connect(gateway.http).await;
    half.write(b"GET /ws HTTP/1.1\r\n").await;

    let began = Instant::now();
    let steps = rpc.drain(DrainRequest::default()).await.unwrap();
    // Who has no session yet is told so, too.
    for client in [&mut alice, &mut bob, &mut waiting] {
        let after = sent_away(client).await;
        assert!((500..=3000).contains(&after), "{after}");
    }
    assert_eq!((idle.drained().await, half.drained().await), (0, 0));
    assert_eq!(*states(steps).await.last().unwrap(), DrainState::Drained);
    assert!(began.elapsed() < Duration::from_secs(5), "a handful is closed within a second: {:?}", began.elapsed());

    // It idles: nobody listens for clients, callers are answered, what is stored is taken.
    assert!(TcpStream::connect(gateway.http).await.is_err());
    assert_eq!(readiness(&gateway).await, not_ready("the node is drained"));
    until("health", ServingStatus::NotServing, async || health(&rpc).await).await;
    let status = rpc.status().await;
    assert!(status.draining && status.sessions == 0 && status.store.unwrap().healthy);
    let stored = rpc.send("alice", "kept").await;
    assert_eq!((stored.outcome(), stored.sessions), (Outcome::Stored, 0));
    let mut never = notification("now or never");
    never.ttl = ttl(0, 0);
    let refused = rpc.try_send(request("alice", never.clone())).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::Unavailable, "DRAINING".to_owned()));
    let broadcast = pushgate::api::proto::BroadcastRequest { notification: Some(never), ..Default::default() };
    assert_eq!(reason(&rpc.try_broadcast(broadcast).await.unwrap_err()), reason(&refused));

    let back = rpc.undrain().await.unwrap();
    assert!(back.was_draining && back.sessions == 0);
    assert_eq!(readiness(&gateway).await.0, 200);
    until("health", ServingStatus::Serving, async || health(&rpc).await).await;
    assert!(!rpc.status().await.draining);
    let mut alice = gateway.client("alice").await;
    assert_eq!(alice.data(1).await, ["kept"]);
    assert_eq!(rpc.send("alice", "live").await.sessions, 1);
    assert_eq!(alice.data(1).await, ["live"]);
    assert!(!rpc.undrain().await.unwrap().was_draining, "it is no error");
    let mut told = Vec::new();
    while told.last() != Some(&DrainState::Serving) {
        let Event::Draining(step) = events.body().await else { panic!("another event") };
        assert!(!step.stopping);
        told.push(step.state());
    }
    told.dedup();
    assert_eq!(told, [DrainState::NotReady, DrainState::Closing, DrainState::Drained, DrainState::Serving]);

    // And again, by whoever comes: then the process ends as ever.
    let steps = rpc.drain(DrainRequest::default()).await.unwrap();
    sent_away(&mut alice).await;
    assert_eq!(*states(steps).await.last().unwrap(), DrainState::Drained);
    assert_eq!(gateway.stop().await, Ended::InOrder);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_load_balancers_notice_a_draining_node_serves_on() {
    let gateway = Gateway::with(&[("shutdown.lb_delay", "2s")]).await;
    let mut rpc = gateway.rpc().await;
    let mut early = gateway.client("alice").await;
    let began = Instant::now();
    let mut steps = rpc.drain(DrainRequest::default()).await.unwrap();
    assert_eq!(readiness(&gateway).await, not_ready("the node is draining"), "at once");
    until("health", ServingStatus::NotServing, async || health(&rpc).await).await;
    let first = next(&mut steps).await.unwrap();
    assert_eq!((first.state(), first.sessions, first.deadline), (DrainState::NotReady, 1, None));
    let mut late = gateway.client("alice").await;
    assert_eq!(rpc.send("alice", "still").await.sessions, 2);
    for client in [&mut early, &mut late] {
        assert_eq!(client.data(1).await, ["still"]);
        sent_away(client).await;
    }
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(TcpStream::connect(gateway.http).await.is_err());
    assert_eq!(*states(steps).await.last().unwrap(), DrainState::Drained);
    rpc.undrain().await.unwrap();

    // Half a deadline of it at most.
    let began = Instant::now();
    let steps = rpc.drain(DrainRequest { deadline: seconds(1), over: None }).await.unwrap();
    // With nobody to close the step between is over in a moment.
    let mut told = states(steps).await;
    told.retain(|state| *state != DrainState::Closing);
    assert_eq!(told, [DrainState::NotReady, DrainState::Drained]);
    assert!(began.elapsed() < Duration::from_millis(1900), "{:?}", began.elapsed());
}

/// So many that no pace closes them within a moment.
async fn crowd(gateway: &Gateway, count: usize) -> Vec<Raw> {
    let mut clients = Vec::with_capacity(count);
    for n in 0..count {
        clients.push(Raw::session(gateway, &format!("user-{n}"), "").await);
    }
    clients
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_is_taken_back_stops_in_the_middle() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    // Closed one after the other, in the order in which they came: ten a second.
    let mut clients = crowd(&gateway, 100).await;
    let mut steps = rpc.drain(DrainRequest { over: seconds(60), deadline: None }).await.unwrap();
    assert_eq!(clients[0].text().await["type"], "draining");
    assert!(rpc.status().await.sessions >= 50);
    // Whoever is left is served as ever, also with what is not stored.
    let mut now = notification("to you");
    now.ttl = ttl(0, 0);
    assert_eq!(rpc.try_send(request("user-99", now)).await.unwrap().sessions, 1);
    let back = rpc.undrain().await.unwrap();
    assert!(back.was_draining && back.sessions >= 50, "{back:?}");
    let last = loop {
        match next(&mut steps).await {
            Some(step) if step.state() == DrainState::Serving => break step,
            Some(step) => assert!(matches!(step.state(), DrainState::NotReady | DrainState::Closing), "{step:?}"),
            None => panic!("it ended without a word"),
        }
    };
    assert!(!last.stopping);
    assert!(next(&mut steps).await.is_none());
    // Longer than it would have taken for the next dozen.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(rpc.send("user-99", "still here").await.sessions, 1);
    assert!(rpc.status().await.sessions >= 50);
    let last = &mut clients[99];
    assert_eq!(
        (last.text().await["data"].clone(), last.text().await["data"].clone()),
        ("to you".into(), "still here".into())
    );
    drop(gateway.client("newcomer").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_drain_is_joined_or_refused_and_goes_on_without_its_callers() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let _clients = crowd(&gateway, 30).await;
    let first = rpc.drain(DrainRequest { over: seconds(60), deadline: None }).await.unwrap();
    for request in
        [DrainRequest { over: seconds(1), deadline: None }, DrainRequest { over: None, deadline: seconds(1) }]
    {
        let refused = rpc.drain(request).await.unwrap_err();
        assert_eq!(reason(&refused), (Code::AlreadyExists, "DRAINING".to_owned()));
    }
    let joined = rpc.drain(DrainRequest::default()).await.unwrap();
    drop(first);
    assert_eq!(states(joined).await, [DrainState::Closing, DrainState::Drained]);
    let over = rpc.drain(DrainRequest::default()).await.unwrap();
    assert_eq!(states(over).await, [DrainState::Drained], "who asks later hears what there is");
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_out_of_bounds_are_refused_and_change_nothing() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    for (request, field) in [
        (DrainRequest { over: seconds(3601), deadline: None }, "over"),
        (DrainRequest { over: seconds(-1), deadline: None }, "over"),
        (DrainRequest { over: None, deadline: seconds(0) }, "deadline"),
        (DrainRequest { over: None, deadline: seconds(86_401) }, "deadline"),
    ] {
        let refused = rpc.drain(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert_eq!(refused.get_error_details().bad_request().unwrap().field_violations[0].field, field);
    }
    assert_eq!(readiness(&gateway).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_goes_on_with_a_drain_at_once() {
    let gateway = Gateway::with(&[("shutdown.deadline", "5s")]).await;
    let mut rpc = gateway.rpc().await;
    let mut clients = crowd(&gateway, 200).await;
    // 20 seconds, were it left alone.
    let mut steps = rpc.drain(DrainRequest { over: seconds(60), deadline: None }).await.unwrap();
    assert_eq!(clients[0].text().await["type"], "draining");
    let began = Instant::now();
    gateway.begin_stop();
    for client in &mut clients[1..] {
        assert_eq!(client.text().await["type"], "draining");
        assert_eq!(client.close_frame().await.close_code(), Some(1012));
    }
    let mut stopping = false;
    let end = loop {
        match soon("a step", steps.message()).await {
            Ok(Some(step)) => stopping |= step.stopping,
            Ok(None) => panic!("it ended as if all was done"),
            Err(end) => break end,
        }
    };
    assert!(stopping && reason(&end) == (Code::Unavailable, "DRAINING".to_owned()), "{end:?}");
    assert_eq!(gateway.ended().await, Ended::InOrder);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_port_was_taken_meanwhile_stays_out_of_service_until_it_is_free() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let drained = async |rpc: &mut Rpc| states(rpc.drain(DrainRequest::default()).await.unwrap()).await;
    assert_eq!(drained(&mut rpc).await.last(), Some(&DrainState::Drained));
    let taker = TcpListener::bind(gateway.http).await.unwrap();
    let refused = rpc.undrain().await.unwrap_err();
    assert_eq!(reason(&refused), (Code::Unavailable, "LISTENER_CLOSED".to_owned()));
    assert!(
        refused.message().contains(&format!("cannot listen on {}: Address already in use", gateway.http)),
        "{refused}"
    );
    assert_eq!(drained(&mut rpc).await.last(), Some(&DrainState::Drained));
    assert_eq!(readiness(&gateway).await, not_ready("the node is drained"));
    drop(taker);
    assert!(rpc.undrain().await.unwrap().was_draining);
    drop(gateway.client("alice").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_open_all_the_time_are_all_gone_in_the_end() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let url: Arc<str> = gateway.url(&format!("token={}", Token::of("alice").sign())).into();
    for _ in 0..10 {
        let comers: Vec<_> = (0..8)
            .map(|_| {
                let url = Arc::clone(&url);
                // Until nobody listens any more.
                tokio::spawn(async move {
                    let mut open = Vec::new();
                    while let Ok((client, _)) = Client::open(handshake(&url, &[])).await {
                        open.push(client);
                    }
                    open
                })
            })
            .collect();
        until("somebody came", true, async || gateway.hub.session_count() > 20).await;
        let steps = rpc.drain(DrainRequest::default()).await.unwrap();
        assert_eq!(*states(steps).await.last().unwrap(), DrainState::Drained);
        assert_eq!(gateway.hub.session_count(), 0);
        for comer in comers {
            drop(soon("the end", comer).await.unwrap());
        }
        assert_eq!(gateway.hub.session_count(), 0);
        rpc.undrain().await.unwrap();
    }
    assert_eq!(gateway.stop().await, Ended::InOrder);
}

/// What a fleet of the project's client does over a restart of the gateway: `benches/restart.sh` does the same at size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_returns_evenly_over_a_restart_and_loses_nothing() {
    const FLEET: usize = 600;
    const RATE: usize = 200;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = Gateway::with(&[("http.listen", &format!("[\"{free}\"]")), ("drain.rate", &RATE.to_string())]).await;
    let came: Arc<Vec<Mutex<Vec<u64>>>> = Arc::new((0..FLEET).map(|_| Mutex::default()).collect());
    let (connected, returned) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let mut fleet = Vec::with_capacity(FLEET);
    for n in 0..FLEET {
        let (came, connected, returned) = (Arc::clone(&came), Arc::clone(&connected), Arc::clone(&returned));
        let client = Library::builder(gateway.url(""))
            .token(Token::of(&format!("user-{n}")).sign())
            .on_connect(move |session| match session.number {
                1 => drop(connected.fetch_add(1, Ordering::Relaxed)),
                _ => returned.lock().push(Instant::now()),
            })
            .on_message(move |message| {
                let number = message.json::<u64>();
                let came = Arc::clone(&came);
                async move {
                    came[n].lock().push(number?);
                    Ok(())
                }
            })
            .start()
            .unwrap();
        fleet.push(client);
    }
    until("all are there", FLEET, async || connected.load(Ordering::Relaxed)).await;

    // One after the other to everybody, through all of it. Who is told UNAVAILABLE tries again, with the same id.
    let address = Arc::new(Mutex::new(gateway.grpc));
    let (done, at) = (Arc::new(std::sync::atomic::AtomicBool::new(false)), Arc::clone(&address));
    let over = Arc::clone(&done);
    let sending = tokio::spawn(async move {
        let mut rounds = 0;
        let mut rpc = None;
        while !over.load(Ordering::Relaxed) || rounds < 3 {
            for n in 0..FLEET {
                loop {
                    let mut one = notification(rounds);
                    assert!(matches!(one.payload, Some(Payload::Json(_))));
                    one.id = format!("round-{rounds}");
                    let caller = match &mut rpc {
                        Some(rpc) => rpc,
                        none => {
                            let endpoint = format!("http://{}", *at.lock());
                            let endpoint = tonic::transport::Endpoint::from_shared(endpoint).unwrap();
                            match endpoint.connect().await {
                                Ok(channel) => none.insert(Rpc::through(channel, Some("admin-token"))),
                                Err(_) => {
                                    tokio::time::sleep(Duration::from_millis(50)).await;
                                    continue;
                                }
                            }
                        }
                    };
                    match caller.try_send(request(&format!("user-{n}"), one)).await {
                        Ok(_) => break,
                        Err(_) => {
                            rpc = None;
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                    }
                }
            }
            rounds += 1;
        }
        rounds
    });
    until("the first round", true, async || came.iter().all(|one| !one.lock().is_empty())).await;

    let began = Instant::now();
    let gateway = gateway.restart().await;
    *address.lock() = gateway.grpc;
    until("all are back", FLEET, async || returned.lock().len()).await;
    done.store(true, Ordering::Relaxed);
    let rounds: u64 = sending.await.unwrap();
    let whole: Vec<u64> = (0..rounds).collect();
    for one in came.iter() {
        until("what one got", whole.clone(), async || one.lock().clone()).await;
    }
    assert_eq!(came.len(), fleet.len());

    // Each but once, and evenly: a window of 3 s, as the rate says.
    let mut returns: Vec<f64> = returned.lock().iter().map(|at| (*at - began).as_secs_f64()).collect();
    returns.sort_by(f64::total_cmp);
    let (first, last) = (returns[0], returns[FLEET - 1]);
    let mut tenths = [0; 10];
    for at in &returns {
        tenths[(((at - first) / (last - first) * 10.0) as usize).min(9)] += 1;
    }
    println!(
        "back from {first:.2} s to {last:.2} s after the signal, a tenth of that each: {tenths:?}; {rounds} rounds"
    );
    assert!(last - first >= 2.0, "they came within {:.2} s", last - first);
    assert!(tenths.iter().all(|tenth| *tenth <= 3 * FLEET / 10), "{tenths:?}");
    assert!(tenths.iter().copied().collect::<BTreeSet<_>>().first().is_some_and(|least| *least > 0), "{tenths:?}");
    drop(fleet);
    assert_eq!(gateway.stop().await, Ended::InOrder);
}
