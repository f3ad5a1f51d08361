//! However many sessions a call reaches, others have their turn in between. (That what one session does not take stays
//! bounded, and the others get theirs, is in `slow.rs`.)
//!
//! On one thread a turn of another task between two writes is a fact, not a matter of time.

use std::{
    io::{self, IoSlice},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use futures_util::stream;
use pushgate::{
    api::proto::{self, SendBatchRequest},
    hub::{Handle, Hub, Peer, SendOptions, Wait, Wire},
    limits::FANOUT_SLICE_SESSIONS,
    session::{Granted, Options},
    types::{Device, Notification, NotificationId, Payload, TypeName, UserId},
};
use tokio::task::yield_now;

use crate::support::{
    Gateway, Rpc, Token,
    gateway::ADMIN,
    rpc::{self, request, ttl},
};

/// Several slices, and a part of one.
const SESSIONS: usize = FANOUT_SLICE_SESSIONS * 7 + 3;

/// The writes of many sessions, and how many of them nobody else had a turn between.
#[derive(Default)]
struct Writes {
    /// Since somebody else had a turn.
    in_a_row: AtomicUsize,
    most_in_a_row: AtomicUsize,
    all: AtomicUsize,
    over: AtomicBool,
}

struct Counted(Arc<Writes>);

impl Wire for Counted {
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.all.fetch_add(1, Ordering::Relaxed);
        let in_a_row = self.0.in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        self.0.most_in_a_row.fetch_max(in_a_row, Ordering::Relaxed);
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }
}

impl Writes {
    /// Counts anew while it is done; what was written, and the most in a row.
    async fn during(self: &Arc<Self>, work: impl Future<Output = ()>) -> (usize, usize) {
        for counter in [&self.in_a_row, &self.most_in_a_row, &self.all] {
            counter.store(0, Ordering::Relaxed);
        }
        self.over.store(false, Ordering::Relaxed);
        let writes = Arc::clone(self);
        let somebody_else = tokio::spawn(async move {
            while !writes.over.load(Ordering::Relaxed) {
                writes.in_a_row.store(0, Ordering::Relaxed);
                yield_now().await;
            }
        });
        work.await;
        self.over.store(true, Ordering::Relaxed);
        somebody_else.await.unwrap();
        (self.all.load(Ordering::Relaxed), self.most_in_a_row.load(Ordering::Relaxed))
    }
}

/// Sessions of one user, which have no socket.
async fn attach(hub: &Hub, user: &str, count: usize) -> Arc<Writes> {
    let writes = Arc::new(Writes::default());
    for _ in 0..count {
        attach_over(hub, user, Arc::new(Counted(Arc::clone(&writes)))).await;
    }
    writes
}

async fn attach_over(hub: &Hub, user: &str, wire: Arc<dyn Wire>) -> Arc<Handle> {
    let identity = hub.authenticator().verify(&Token::of(user).sign()).unwrap();
    let options = Options { device: Some(Device::parse("phone").unwrap()), ..Options::default() };
    let peer = Peer { remote: ([127, 0, 0, 1], 1).into(), user_agent: None };
    let granted = Granted { identity, options, reply_to: None };
    hub.attach(granted, peer, wire).await.unwrap()
}

fn notification(hub: &Hub, stored: bool) -> Notification {
    let now = hub.clock().unix_millis();
    Notification {
        id: NotificationId::generate(),
        type_name: TypeName::NOTIFICATION,
        payload: Payload::Json("1".into()),
        from_user: None,
        topic: None,
        kind: None,
        collapse_key: None,
        not_for: [].into(),
        accepted_at: now,
        expires_at: Some(if stored { now.saturating_add(hub.quotas().ttl) } else { now }),
    }
}

#[tokio::test]
async fn a_call_to_a_user_with_very_many_sessions_is_written_in_slices() {
    let gateway = Gateway::with(&[("limits.connections_per_user", "100000")]).await;
    let (hub, user) = (&gateway.hub, UserId::parse("many").unwrap());
    let writes = attach(hub, "many", SESSIONS).await;
    for stored in [false, true] {
        let (all, in_a_row) = writes
            .during(async {
                let options = SendOptions { wait: Wait::Accepted, own_id: false };
                let sent = hub.send(&user, notification(hub, stored), options).await.unwrap();
                assert_eq!(sent.sessions as usize, SESSIONS);
            })
            .await;
        assert_eq!(all, SESSIONS, "stored: {stored}");
        assert!(in_a_row <= FANOUT_SLICE_SESSIONS, "{in_a_row} in a row, stored: {stored}");
    }
}

#[tokio::test]
async fn a_broadcast_is_written_in_slices() {
    let gateway = Gateway::with(&[("limits.connections_per_user", "100000")]).await;
    let hub = &gateway.hub;
    let shards = std::thread::available_parallelism().unwrap().get();
    let count = SESSIONS * shards;
    let writes = attach(hub, "many", count).await;
    let (all, in_a_row) = writes
        .during(async {
            let sent = hub.broadcast(notification(hub, false)).await.unwrap();
            assert_eq!(sent.sessions as usize, count);
        })
        .await;
    assert_eq!(all, count);
    // There are as many shards as can run at once, each with a slice; and the runtime turns the order of those who
    // yielded round, so that each may be the last of one round and the first of the next.
    assert!(in_a_row <= 2 * FANOUT_SLICE_SESSIONS * shards, "{in_a_row} in a row");
}

/// What is written to a session first.
#[derive(Default)]
struct First(OnceLock<Vec<u8>>);

impl Wire for First {
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.get_or_init(|| slices[0].to_vec());
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn auth_success_comes_first_whatever_is_broadcast_meanwhile() {
    const SESSIONS: usize = 3000;
    let gateway = Gateway::start().await;
    let over = Arc::new(AtomicBool::new(false));
    let talkers: Vec<_> = (0..2)
        .map(|_| {
            let (hub, over) = (gateway.hub.clone(), Arc::clone(&over));
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    hub.broadcast(notification(&hub, false)).await.unwrap();
                }
            })
        })
        .collect();
    for _ in 0..SESSIONS {
        let wire = Arc::new(First::default());
        let session = attach_over(&gateway.hub, "alice", Arc::<First>::clone(&wire)).await;
        // Another may be writing for it yet, whose batch it joined.
        while wire.0.get().is_none() {
            tokio::task::yield_now().await;
        }
        let first = String::from_utf8_lossy(wire.0.get().unwrap()).into_owned();
        assert!(first.contains(r#""type":"auth_success""#), "{first}");
        gateway.hub.detach(&session);
    }
    over.store(true, Ordering::Relaxed);
    for talker in talkers {
        talker.await.unwrap();
    }
}

/// The sessions' runtime has one thread here, and it does nothing else meanwhile.
#[tokio::test]
async fn calls_are_answered_while_the_sessions_workers_are_held_up() {
    let gateway = Gateway::start().await;
    let _client = gateway.client("alice").await;
    gateway.live("alice").await;
    let (answer, answered) = mpsc::channel();
    let address = gateway.grpc;
    let caller = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut caller = Rpc::over_tcp(address, Some(ADMIN)).await;
            let unary = caller.send_to("alice", never_stored()).await;
            let request = request("alice", never_stored());
            let batch = [SendBatchRequest { request_id: "1".to_owned(), send: Some(request) }];
            let mut answers = caller.client.send_batch(stream::iter(batch)).await.unwrap().into_inner();
            let batched = answers.message().await.unwrap().unwrap();
            answer.send((unary.sessions, batched.request_id)).unwrap();
        });
    });
    let (sessions, batched) = answered.recv_timeout(Duration::from_secs(30)).expect("calls of threads of their own");
    assert_eq!((sessions, batched.as_str()), (1, "1"));
    caller.join().unwrap();
}

fn never_stored() -> proto::Notification {
    proto::Notification { ttl: ttl(0, 0), ..rpc::notification(1) }
}
