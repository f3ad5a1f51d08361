//! A crowd that leaves at once: 50,000 sessions over transports in memory, in a gateway with all else real. Whoever
//! listens knows what came and how much did not.

use std::{
    collections::HashSet,
    io::{self, IoSlice},
    sync::Arc,
    time::{Duration, Instant},
};

use pushgate::{
    api::proto::{StreamEventsRequest, event::Event},
    hub::{Handle, Peer, Wire},
    session::{Granted, Options},
};

use crate::support::{Gateway, Token, rpc::Events, soon, until};

const SESSIONS: usize = 50_000;
/// Each user has one of these many sessions in a wave, so that each end is the end of his being online, too.
const WAVES: usize = 2;

/// A transport that takes everything.
struct Nowhere;

impl Wire for Nowhere {
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }
}

async fn attach(gateway: &Gateway, user: usize) -> Arc<Handle> {
    let token = Token::of(&format!("user-{user}")).sign();
    let identity = gateway.hub.authenticator().verify(&token).unwrap();
    let granted = Granted { identity, options: Options::default(), reply_to: None };
    let peer = Peer { remote: ([127, 0, 0, 1], 1).into(), user_agent: None };
    gateway.hub.attach(granted, peer, Arc::new(Nowhere)).await.unwrap()
}

async fn crowd(gateway: &Arc<Gateway>) -> Vec<Arc<Handle>> {
    let workers = (0..64).map(|worker| {
        let gateway = Arc::clone(gateway);
        tokio::spawn(async move {
            let mut handles = Vec::new();
            for user in (worker..SESSIONS / WAVES).step_by(64) {
                handles.push(attach(&gateway, user).await);
            }
            handles
        })
    });
    let attached = futures_util::future::join_all(workers).await;
    attached.into_iter().flat_map(Result::unwrap).collect()
}

/// All connections break at once. How long the hub took over it.
fn leave(gateway: &Gateway, crowd: Vec<Arc<Handle>>) -> Duration {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for part in crowd.chunks(crowd.len().div_ceil(4)) {
            scope.spawn(move || {
                for handle in part {
                    handle.broke();
                    gateway.hub.detach(handle);
                }
            });
        }
    });
    began.elapsed()
}

/// What a consumer was told.
#[derive(Default)]
struct Account {
    closed: HashSet<String>,
    seen: u64,
    lost: u64,
    last: u64,
}

impl Account {
    /// Reads up to the event with that sequence.
    async fn read(&mut self, events: &mut Events, upto: u64) {
        while self.last < upto {
            let event = events.next().await;
            match event.event.unwrap() {
                Event::EventsLost(lost) => {
                    assert_eq!(event.sequence, self.last + lost.count);
                    self.lost += lost.count;
                }
                body => {
                    assert_eq!(event.sequence, self.last + 1, "nothing is missing that was not told");
                    self.seen += 1;
                    if let Event::SessionClosed(closed) = body {
                        assert!(self.closed.insert(closed.session_id), "once");
                    }
                }
            }
            self.last = event.sequence;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_thousand_ends_at_once_are_each_told_or_counted_as_lost() {
    let gateway = Arc::new(Gateway::with(&[("presence.linger", "0s")]).await);
    let mut rpc = gateway.rpc().await;
    let first = crowd(&gateway).await;
    let ids: HashSet<_> = first.iter().map(|handle| handle.id.to_string()).collect();
    let before = gateway.hub.events().count();
    let mut live = rpc.events(&[], "").await;
    let mut account = Account { last: before, ..Account::default() };
    let all = (SESSIONS / WAVES * 2) as u64;

    // The first half leaves while a consumer reads what comes, and nobody else listens.
    let reading = tokio::spawn(async move {
        account.read(&mut live, before + all).await;
        (account, live)
    });
    let leaving = Arc::clone(&gateway);
    let alone = soon("all to leave", tokio::task::spawn_blocking(move || leave(&leaving, first))).await.unwrap();
    let (mut account, mut live) = soon("all to be told", reading).await.unwrap();
    assert_eq!(account.seen + account.lost, all);
    assert!(account.closed.is_subset(&ids));
    if account.lost == 0 {
        assert_eq!(account.closed.len(), ids.len());
    }

    // The second half leaves while others listen, too, and do not read: one alone, and two of a group.
    let second = crowd(&gateway).await;
    let mut stalled = Vec::new();
    for group in ["", "a", "a"] {
        let request = StreamEventsRequest { group: group.to_owned(), ..Default::default() };
        stalled.push(gateway.rpc().await.stream(request).await.unwrap());
    }
    let opened = gateway.hub.events().count();
    account.read(&mut live, opened).await;
    let reading = tokio::spawn(async move {
        account.read(&mut live, opened + all).await;
        account
    });
    let leaving = Arc::clone(&gateway);
    let watched = soon("all to leave", tokio::task::spawn_blocking(move || leave(&leaving, second))).await.unwrap();
    let account = soon("all to be told", reading).await.unwrap();
    assert_eq!(account.seen + account.lost, account.last - before);
    assert!(watched < 5 * alone + Duration::from_secs(2), "{watched:?} with stalled consumers, {alone:?} without");
    until("users", 0, async || gateway.hub.users_online()).await;
    // They read on at last, and are told how much has passed them by.
    for mut events in stalled {
        let mut account = Account { last: opened, ..Account::default() };
        soon("the rest", account.read(&mut events, opened + all)).await;
        assert_eq!(account.seen + account.lost, all);
        assert!(account.seen >= 32_768, "what is in the ring is still to be had: {}", account.seen);
    }
    let streams = rpc.status().await.event_streams.unwrap();
    assert!(streams.lost >= account.lost);
}
