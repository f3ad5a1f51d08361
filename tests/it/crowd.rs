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

/// Each of a user of his own, so that each end is the end of his being online, too.
const SESSIONS: usize = 50_000;
/// Those that leave while nobody is stalled, for comparison.
const FEW: usize = SESSIONS / 10;
/// `events.buffer` by default.
const RING: u64 = 65_536;

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

async fn crowd(gateway: &Arc<Gateway>, sessions: usize) -> Vec<Arc<Handle>> {
    let workers = (0..64).map(|worker| {
        let gateway = Arc::clone(gateway);
        tokio::spawn(async move {
            let mut handles = Vec::new();
            for user in (worker..sessions).step_by(64) {
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

    // A few leave while one consumer reads what comes, and nobody else listens.
    let few = crowd(&gateway, FEW).await;
    let ids: HashSet<_> = few.iter().map(|handle| handle.id.to_string()).collect();
    let before = gateway.hub.events().count();
    let told = before + 2 * FEW as u64;
    let mut live = rpc.events(&[], "").await;
    let mut account = Account { last: before, ..Account::default() };
    let reading = tokio::spawn(async move {
        account.read(&mut live, told).await;
        (account, live)
    });
    let leaving = Arc::clone(&gateway);
    let alone = soon("all to leave", tokio::task::spawn_blocking(move || leave(&leaving, few))).await.unwrap();
    let (mut account, mut live) = soon("all to be told", reading).await.unwrap();
    assert_eq!((account.seen, account.lost), (2 * FEW as u64, 0), "the ring has room for all of it");
    assert_eq!(account.closed, ids);

    // The crowd leaves while others listen, too, and do not read: one alone, and two of a group.
    let all = crowd(&gateway, SESSIONS).await;
    let ids: HashSet<_> = all.iter().map(|handle| handle.id.to_string()).collect();
    let opened = gateway.hub.events().count();
    // Of what came while it did not read, too.
    account.read(&mut live, opened).await;
    let mut lost = account.lost;
    let told = opened + 2 * SESSIONS as u64;
    let mut stalled = Vec::new();
    for group in ["", "a", "a"] {
        let request = StreamEventsRequest { group: group.to_owned(), ..Default::default() };
        stalled.push(gateway.rpc().await.stream(request).await.unwrap());
    }
    let mut account = Account { last: opened, ..Account::default() };
    let reading = tokio::spawn(async move {
        account.read(&mut live, told).await;
        account
    });
    let leaving = Arc::clone(&gateway);
    let watched = soon("all to leave", tokio::task::spawn_blocking(move || leave(&leaving, all))).await.unwrap();
    let account = soon("all to be told", reading).await.unwrap();
    assert_eq!(account.seen + account.lost, 2 * SESSIONS as u64);
    assert!(account.seen >= RING && account.closed.is_subset(&ids));
    let bound = alone * (5 * SESSIONS / FEW) as u32 + Duration::from_secs(1);
    assert!(watched < bound, "{SESSIONS} in {watched:?} with stalled consumers, {FEW} in {alone:?} without");
    until("users", 0, async || gateway.hub.users_online()).await;

    // They read on at last, and are told how much has passed them by.
    lost += account.lost;
    for mut events in stalled {
        let mut account = Account { last: opened, ..Account::default() };
        soon("the rest", account.read(&mut events, told)).await;
        assert_eq!(account.seen + account.lost, 2 * SESSIONS as u64);
        assert!(account.seen >= RING && account.lost > 0, "what is in the ring is still to be had");
        lost += account.lost;
    }
    assert_eq!(rpc.status().await.event_streams.unwrap().lost, lost);
}
