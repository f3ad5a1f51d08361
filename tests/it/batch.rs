//! `SendBatch`: many sends over one stream.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::stream;
use prost::Message as _;
use pushgate::{
    api::proto::{
        Notification, Outcome, SendBatchRequest, SendBatchResponse, SendToUserRequest, SendToUserResponse, Wait,
        send_batch_response::Result as Answer,
    },
    limits,
};
use serde_json::Value;
use tokio::sync::mpsc;
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::support::{
    Gateway, Rpc,
    rpc::{confirmed, notification, own, request, ttl},
    soon, until,
};

/// A stream of sends and its answers.
struct Batch {
    requests: Option<mpsc::Sender<SendBatchRequest>>,
    answers: Streaming<SendBatchResponse>,
}

fn item(request_id: &str, send: SendToUserRequest) -> SendBatchRequest {
    SendBatchRequest { request_id: request_id.to_owned(), send: Some(send) }
}

impl Batch {
    async fn open(rpc: &mut Rpc, timeout: Option<&str>) -> Self {
        let (requests, sent) = mpsc::channel(1);
        let sent = stream::unfold(sent, |mut sent| async { sent.recv().await.map(|request| (request, sent)) });
        let mut call = Request::new(sent);
        if let Some(timeout) = timeout {
            call.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
        }
        let answers = soon("the stream", rpc.client.send_batch(call)).await.unwrap().into_inner();
        Self { requests: Some(requests), answers }
    }

    async fn send(&self, request_id: &str, send: SendToUserRequest) {
        soon("a request to leave", self.requests.as_ref().unwrap().send(item(request_id, send))).await.unwrap();
    }

    /// Nothing else comes from here.
    fn half_close(&mut self) {
        self.requests = None;
    }

    /// The next answer; `None` at the end of the stream.
    async fn next(&mut self) -> Result<Option<(String, Answer)>, Status> {
        let answer = soon("an answer", self.answers.message()).await?;
        Ok(answer.map(|answer| (answer.request_id, answer.result.unwrap())))
    }

    async fn response(&mut self) -> (String, SendToUserResponse) {
        match self.next().await.unwrap().unwrap() {
            (id, Answer::Response(response)) => (id, response),
            (id, Answer::Error(error)) => panic!("{id}: {error:?}"),
        }
    }

    async fn error(&mut self) -> (String, Status) {
        match self.next().await.unwrap().unwrap() {
            (id, Answer::Error(error)) => {
                let code = Code::from_i32(error.code);
                (id, Status::with_details(code, error.message.clone(), error.encode_to_vec().into()))
            }
            (id, Answer::Response(response)) => panic!("{id}: {response:?}"),
        }
    }
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().unwrap().reason.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_stream_is_answered_to_its_last_request_and_ends_well() {
    let gateway = Gateway::start().await;
    let mut batch = Batch::open(&mut gateway.rpc().await, None).await;
    let mut outstanding = BTreeSet::new();
    for n in 0..500 {
        batch.send(&n.to_string(), request(&format!("user-{}", n % 50), notification(n))).await;
        outstanding.insert(n.to_string());
    }
    batch.half_close();
    while let Some((id, answer)) = batch.next().await.unwrap() {
        let Answer::Response(response) = answer else { panic!("{answer:?}") };
        assert_eq!((response.outcome(), response.duplicate), (Outcome::Stored, false));
        assert!(outstanding.remove(&id), "{id} was answered twice");
    }
    assert_eq!(outstanding, BTreeSet::new());
    assert_eq!(gateway.pending().await, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_one_user_take_effect_in_their_order() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    // Some of them are cold, one is not.
    let mut warm = gateway.client("user-0").await;
    gateway.live("user-0").await;
    let mut batch = Batch::open(&mut rpc, None).await;
    for n in 0..900 {
        // An own id is looked up first, which takes its time; what needs none must not overtake it.
        let sent = if n / 9 % 2 == 0 { own(&n.to_string(), n) } else { notification(n) };
        batch.send(&n.to_string(), request(&format!("user-{}", n % 9), sent)).await;
    }
    batch.half_close();
    let mut offsets: HashMap<usize, BTreeMap<usize, u64>> = HashMap::new();
    for _ in 0..900 {
        let (id, response) = batch.response().await;
        let n: usize = id.parse().unwrap();
        offsets.entry(n % 9).or_default().insert(n, response.offset);
    }
    for (user, offsets) in offsets {
        assert_eq!(offsets.len(), 100);
        assert!(offsets.values().is_sorted(), "user-{user}: {offsets:?}");
    }
    let expected: Vec<_> = (0..900).step_by(9).map(Value::from).collect();
    assert_eq!(warm.data(100).await, expected);
    assert_eq!(gateway.client("user-3").await.data(2).await, [3, 12]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_never_stored_does_not_overtake_what_was_asked_for_before_it() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut alice = gateway.client("alice").await;
    gateway.live("alice").await;
    let mut batch = Batch::open(&mut rpc, None).await;
    let never_stored = |n: i32| Notification { ttl: ttl(0, 0), ..notification(n) };
    for n in 0..400 {
        // An own id is looked up in the store first; what is never stored waits for nothing, and could go at once.
        let sent = if n % 4 == 0 { own(&n.to_string(), n) } else { never_stored(n) };
        batch.send(&n.to_string(), request("alice", sent)).await;
    }
    batch.half_close();
    let mut answered = BTreeSet::new();
    while let Some((id, answer)) = batch.next().await.unwrap() {
        let Answer::Response(response) = answer else { panic!("{answer:?}") };
        let n: i32 = id.parse().unwrap();
        let expected = if n % 4 == 0 { Outcome::Stored } else { Outcome::Accepted };
        assert_eq!((response.outcome(), response.sessions), (expected, 1), "{n}");
        assert!(answered.insert(n), "{n} was answered twice");
    }
    assert_eq!(answered.len(), 400);
    let expected: Vec<_> = (0..400).map(Value::from).collect();
    assert_eq!(alice.data(400).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_overtake_one_that_waits_for_long() {
    let gateway = Gateway::start().await;
    let mut batch = Batch::open(&mut gateway.rpc().await, None).await;
    batch.send("slow", confirmed("alice", notification(1), 60_000)).await;
    batch.send("same user", request("alice", notification(2))).await;
    batch.send("other user", request("bob", notification(3))).await;
    let mut ids = [batch.response().await.0, batch.response().await.0];
    ids.sort();
    assert_eq!(ids, ["other user", "same user"]);
    let mut alice = gateway.client("alice").await;
    assert_eq!(alice.data(2).await, [1, 2]);
    alice.settle().await;
    let (id, response) = batch.response().await;
    assert_eq!((id.as_str(), response.outcome()), ("slow", Outcome::Confirmed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_fails_alone_and_as_it_would_alone() {
    let gateway = Gateway::with(&[("store.max_pending_per_user", "1")]).await;
    let mut batch = Batch::open(&mut gateway.rpc().await, None).await;
    batch.send("good", request("alice", notification(1))).await;
    assert_eq!(batch.response().await.0, "good");
    batch.send("no user", request("", notification(1))).await;
    let (id, refused) = batch.error().await;
    assert_eq!(
        (id.as_str(), refused.code(), reason(&refused).as_str()),
        ("no user", Code::InvalidArgument, "INVALID_ARGUMENT")
    );
    assert_eq!(refused.get_error_details().bad_request().unwrap().field_violations[0].field, "user_id");
    batch.send("full", request("alice", notification(2))).await;
    let (id, refused) = batch.error().await;
    assert_eq!(
        (id.as_str(), refused.code(), reason(&refused).as_str()),
        ("full", Code::ResourceExhausted, "MAILBOX_FULL")
    );
    assert!(refused.get_error_details().retry_info().is_some());
    let nothing = SendBatchRequest { request_id: "nothing".into(), send: None };
    batch.requests.as_ref().unwrap().send(nothing).await.unwrap();
    let (id, refused) = batch.error().await;
    assert_eq!((id.as_str(), refused.message()), ("nothing", "send: is required"));
    batch.send(&"i".repeat(129), request("bob", notification(1))).await;
    let (id, refused) = batch.error().await;
    assert_eq!((id.as_str(), refused.message()), ("", "request_id: must have at most 128 bytes, this has 129"));
    batch.send(&"i".repeat(128), request("bob", notification(1))).await;
    assert_eq!(batch.response().await.0, "i".repeat(128));
    assert_eq!(gateway.pending().await, 2);
    assert_eq!(gateway.errors("grpc_invalid_argument").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeats_are_seen_within_a_stream_and_across_streams() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut batch = Batch::open(&mut rpc, None).await;
    for id in ["a", "b", "c"] {
        batch.send(id, request("alice", own("order", 1))).await;
    }
    batch.send("other", request("alice", own("order", 2))).await;
    batch.half_close();
    let mut answers = BTreeMap::new();
    while let Some((id, answer)) = batch.next().await.unwrap() {
        answers.insert(id, answer);
    }
    let mut offsets = BTreeSet::new();
    for (id, duplicate) in [("a", false), ("b", true), ("c", true)] {
        let Answer::Response(response) = &answers[id] else { panic!("{answers:?}") };
        assert_eq!(response.duplicate, duplicate, "{id}");
        offsets.insert(response.offset);
    }
    assert_eq!(offsets.len(), 1);
    assert!(matches!(&answers["other"], Answer::Error(error) if error.code == Code::AlreadyExists as i32));
    let again = rpc.send_to("alice", own("order", 1)).await;
    assert!(again.duplicate && offsets.contains(&again.offset));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_cancelled_starts_nothing_else() {
    let gateway = Gateway::with(&[("store.max_pending_per_user", "0")]).await;
    let mut rpc = gateway.rpc().await;
    let batch = Batch::open(&mut rpc, None).await;
    let most = limits::BATCH_IN_FLIGHT_MAX as i32;
    for n in 0..most + 50 {
        batch.send(&n.to_string(), confirmed("alice", own(&n.to_string(), n), 60_000)).await;
    }
    until("what is pending", most as u64, || gateway.pending()).await;
    drop(batch);
    // On the same connection it comes behind the end of the stream.
    rpc.status().await;
    let mut alice = gateway.client("alice").await;
    let expected: Vec<_> = (0..most).map(Value::from).collect();
    assert_eq!(alice.data(most as usize).await, expected, "what has begun stays begun");
    // That makes room for the others, which nobody reads any more.
    alice.settle().await;
    until("what is pending", 0, || gateway.pending()).await;
    alice.nothing_more().await;
    assert!(rpc.send_to("alice", own("0", 0)).await.duplicate);
    assert!(!rpc.send_to("alice", own(&most.to_string(), most)).await.duplicate);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_calls_deadline_what_is_under_way_is_answered_so() {
    let gateway = Gateway::start().await;
    let mut batch = Batch::open(&mut gateway.rpc().await, Some("800m")).await;
    batch.send("stored", request("bob", notification(1))).await;
    assert_eq!(batch.response().await.0, "stored");
    batch.send("waits", confirmed("alice", notification(1), 60_000)).await;
    let (id, response) = batch.response().await;
    assert_eq!((id.as_str(), response.outcome()), ("waits", Outcome::Stored), "a wait ends in time for an answer");
    let end = batch.next().await.unwrap_err();
    assert_eq!((end.code(), reason(&end).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    assert_eq!(gateway.errors("grpc_deadline_exceeded").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_queued_at_the_deadline_is_answered_too() {
    let gateway = Gateway::with(&[("store.max_pending_per_user", "0")]).await;
    let mut rpc = gateway.rpc().await;
    let large = "x".repeat(100_000);
    let late = soon("a stream with work left at its deadline", async {
        loop {
            let mut batch = Batch::open(&mut rpc, Some("150m")).await;
            let (requests, large) = (batch.requests.take().unwrap(), large.clone());
            let writer = tokio::spawn(async move {
                for n in 0.. {
                    if requests.send(item(&n.to_string(), request("alice", notification(large.clone())))).await.is_err()
                    {
                        return;
                    }
                }
            });
            let (mut answered, mut late) = (BTreeSet::new(), 0);
            let end = loop {
                match batch.next().await {
                    Ok(Some((id, answer))) => {
                        assert!(answered.insert(id));
                        late += match answer {
                            Answer::Response(_) => 0,
                            Answer::Error(error) => {
                                assert_eq!(error.code, Code::DeadlineExceeded as i32, "{error:?}");
                                1
                            }
                        };
                    }
                    Ok(None) => panic!("it was not half-closed"),
                    Err(end) => break end,
                }
            };
            writer.abort();
            assert_eq!(end.code(), Code::DeadlineExceeded);
            if late > 0 {
                assert!((0..answered.len()).all(|n| answered.contains(&n.to_string())), "all that was read");
                return late;
            }
        }
    })
    .await;
    assert!(gateway.errors("grpc_deadline_exceeded").await > late, "each of them, and the stream");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_answers_what_is_under_way() {
    let gateway = Gateway::start().await;
    let mut batch = Batch::open(&mut gateway.rpc().await, None).await;
    batch.send("waits", confirmed("alice", notification(1), 60_000)).await;
    until("what is pending", 1, || gateway.pending()).await;
    gateway.begin_stop();
    // It is in the store, and nobody will confirm it here any more.
    let (id, response) = batch.response().await;
    assert_eq!((id.as_str(), response.outcome()), ("waits", Outcome::Stored));
    let end = batch.next().await.unwrap_err();
    assert_eq!((end.code(), reason(&end).as_str()), (Code::Unavailable, "DRAINING"));
    gateway.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_the_transport_refuses_ends_the_stream_when_all_before_it_is_answered() {
    let gateway = Gateway::start().await;
    let mut batch = Batch::open(&mut gateway.rpc().await, None).await;
    batch.send("good", request("alice", notification(1))).await;
    batch.send("huge", request("alice", notification("x".repeat(5_000_000)))).await;
    assert_eq!(batch.response().await.0, "good");
    assert_eq!(batch.next().await.unwrap_err().code(), Code::OutOfRange);
    assert_eq!(gateway.errors("grpc_refused").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_does_not_read_his_answers_is_not_read_on() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut batch = Batch::open(&mut rpc, None).await;
    let accepted = |n: i32| SendToUserRequest {
        wait: Wait::Accepted.into(),
        // A long id makes the answers large, so that little of them fits into the connection's own buffers.
        ..request(&format!("user-{}", n % 64), Notification { id: format!("{n:0>128}"), ..notification(n) })
    };
    let requests = batch.requests.take().unwrap();
    let writer = tokio::spawn(async move {
        for n in 0..20_000 {
            let send = accepted(n);
            if requests.send(item(&format!("{n:0>128}"), send)).await.is_err() {
                return n;
            }
        }
        20_000
    });
    // It stands still at some number: others' work goes on meanwhile, and it does not.
    let mut other = gateway.rpc().await;
    let (mut last, mut others) = (u64::MAX, 0);
    soon("the stream to stand still", async {
        loop {
            for n in 0..50 {
                other.send(&format!("bystander-{others}"), n).await;
                others += 1;
            }
            let now = gateway.pending().await - others;
            if now == last && now > 0 {
                return;
            }
            last = now;
        }
    })
    .await;
    assert!(last >= limits::BATCH_IN_FLIGHT_MAX as u64, "{last}: so many may be under way");
    assert!(last < 10_000 && !writer.is_finished(), "{last}: answers pile up");
    // Whoever reads goes on to the end.
    let mut answered = 0;
    while let Some((_, answer)) = batch.next().await.unwrap() {
        assert!(matches!(answer, Answer::Response(_)), "{answer:?}");
        answered += 1;
    }
    assert_eq!((answered, soon("the writer", writer).await.unwrap()), (20_000, 20_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_larger_than_the_bound_on_bytes_is_under_way_alone() {
    let gateway = Gateway::with(&[("limits.notification_bytes", "12MiB"), ("store.max_pending_per_user", "0")]).await;
    let mut batch = Batch::open(&mut gateway.rpc().await, None).await;
    let large = "x".repeat(limits::BATCH_IN_FLIGHT_BYTES_MAX + 1);
    for n in 0..3 {
        batch.send(&n.to_string(), request("bob", notification(large.clone()))).await;
    }
    batch.half_close();
    for n in 0..3 {
        assert_eq!(batch.response().await.0, n.to_string());
    }
}

#[tokio::test]
async fn a_burst_to_many_sessions_lets_others_have_their_turn() {
    const SESSIONS: usize = 32;
    const REQUESTS: usize = 64;
    let gateway = Gateway::with_calls_beside().await;
    let mut clients = Vec::new();
    for _ in 0..SESSIONS {
        clients.push(gateway.client("alice").await);
    }
    gateway.live("alice").await;
    let sessions = gateway.hub.user_sessions(&pushgate::types::UserId::parse("alice").unwrap());
    let written = move || sessions.iter().map(|session| session.core().counts.messages_sent).sum::<u64>();
    let before = written();
    // The runtime has one thread, and this task takes turns with the one that sends.
    let looker = tokio::spawn(async move {
        let (mut seen, mut most) = (before, 0);
        while seen < before + (SESSIONS * REQUESTS) as u64 {
            tokio::task::yield_now().await;
            let now = written();
            (most, seen) = (most.max(now - seen), now);
        }
        most
    });
    let unstored = |n: usize| request("alice", Notification { ttl: ttl(0, 0), ..notification(n) });
    let requests: Vec<_> = (0..REQUESTS).map(|n| item(&n.to_string(), unstored(n))).collect();
    let mut rpc = gateway.rpc().await;
    let mut answers = rpc.client.send_batch(stream::iter(requests)).await.unwrap().into_inner();
    for _ in 0..REQUESTS {
        soon("an answer", answers.message()).await.unwrap().unwrap();
    }
    let most = soon("the writes", looker).await.unwrap();
    assert!(most <= 256, "{most} writes at once");
    for mut client in clients {
        client.data(REQUESTS).await;
    }
}
