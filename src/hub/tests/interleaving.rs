//! Short random sequences of everything that can happen to two users, checked step by step against what a session may
//! see: a gapless, ascending run of its user's log from where it started.

use std::collections::BTreeMap;

use tokio::task::JoinHandle;

use super::{
    super::*,
    agrees_with_the_store,
    support::{Bounds, Client, World, device, until, user},
};
use crate::{
    protocol::ack_mode::AckMode,
    store::double::Held,
    types::{Device, UserId},
};

const SEQUENCES: u64 = 2000;
const STEPS: usize = 60;
const USERS: [&str; 2] = ["ann", "bob"];
const DEVICES: [&str; 3] = ["", "desk", "phone"];
const SESSIONS_MAX: usize = 6;

/// xorshift64*: the same sequence for the same seed, everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides
    }
}

/// Says which sequence it was, where a test fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the sequence of seed {}", self.0);
        }
    }
}

type Attaching = JoinHandle<Result<Client, AttachError>>;

struct Attached {
    user: usize,
    device: usize,
    client: Client,
}

/// What is known of a device: where its first session started, and up to where its sessions saw the log.
#[derive(Clone, Copy)]
struct Known {
    start: u64,
    seen: u64,
}

struct Play {
    /// Goes first: a store closes when what it was given is committed.
    held: Option<Held>,
    world: World,
    dice: Dice,
    users: [UserId; 2],
    devices: [Device; 3],
    /// Per user, in order.
    sent: [Vec<u64>; 2],
    known: BTreeMap<(usize, usize), Known>,
    sessions: Vec<Attached>,
    attaching: Vec<(usize, usize, Attaching)>,
}

impl Play {
    fn new(seed: u64) -> Play {
        Play {
            held: None,
            world: World::new(Bounds { window: 3, outbox_bytes: 900, ..Bounds::default() }),
            // A seed of 0 would stay there.
            dice: Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            users: USERS.map(user),
            devices: DEVICES.map(device),
            sent: Default::default(),
            known: BTreeMap::new(),
            sessions: Vec::new(),
            attaching: Vec::new(),
        }
    }

    async fn step(&mut self) {
        let some_session = (!self.sessions.is_empty()).then(|| self.dice.roll(self.sessions.len().max(1)));
        match (self.dice.roll(20), some_session) {
            (0..=4, _) => self.send().await,
            (5, _) => self.held = self.held.take().or_else(|| Some(self.world.double.hold())),
            (6, _) => self.let_one_through().await,
            (7, _) => self.open().await,
            (8..=9, _) | (_, None) => self.attach().await,
            (10..=11, Some(n)) => drop(self.sessions[n].client.begin_pull().await),
            (12..=13, Some(n)) => drop(self.sessions[n].client.end_pull()),
            (14..=16, Some(n)) => drop(self.sessions[n].client.confirm()),
            (17, Some(n)) => self.sessions[n].client.takes(Some(0)),
            (18, Some(n)) => {
                let room = [Some(1), Some(100), Some(700), None][self.dice.roll(4)];
                self.sessions[n].client.takes(room);
            }
            (_, Some(n)) => {
                let mut left = self.sessions.swap_remove(n);
                self.look(&mut left);
                left.client.detach();
            }
        }
        self.arrivals().await;
        self.look_at_all();
    }

    async fn send(&mut self) {
        let (to, bytes) = (self.dice.roll(2), self.dice.roll(400));
        self.sent[to].push(self.world.offset(&self.users[to], bytes).await);
        if self.held.is_some() {
            // What the commit takes that waits now, and what the next one, is no accident then.
            until("a commit waits", || self.world.double.is_waiting()).await;
        }
    }

    fn nothing_is_staged(&self) -> bool {
        self.attaching.is_empty() && (0..2).all(|n| self.is_applied(n))
    }

    fn is_applied(&self, n: usize) -> bool {
        self.world.hub.0.users.get(&self.users[n]).is_none_or(|user| {
            let state = user.state();
            state.log.applied == state.log.last
        })
    }

    async fn let_one_through(&mut self) {
        if self.held.is_some() && self.world.double.is_waiting() {
            let begun = self.world.double.commits_begun();
            self.held.iter().for_each(Held::let_one_through);
            // Logs are told before the next commit begins.
            let through = || self.world.double.commits_begun() > begun || (0..2).all(|n| self.is_applied(n));
            until("one is through", through).await;
        }
    }

    async fn open(&mut self) {
        self.held = None;
        self.world.barrier().await;
    }

    async fn attach(&mut self) {
        if self.sessions.len() + self.attaching.len() >= SESSIONS_MAX {
            return;
        }
        let (to, with) = (self.dice.roll(2), self.dice.roll(3));
        let mode = if self.dice.roll(3) == 0 { AckMode::Client } else { AckMode::Transport };
        let attaching = tokio::spawn(self.world.attaching(&self.users[to], &self.devices[with], mode));
        // It comes as far as it can: it is there, or its device waits to be written.
        let (id, name) = (&self.users[to], &self.devices[with]);
        let waits = || {
            let user = self.world.hub.0.users.get(id);
            let is_new = user.is_some_and(|user| user.state().device(name).is_some_and(|known| !known.durable));
            is_new && (self.held.is_none() || self.world.double.is_waiting())
        };
        until("it is attached or waits", || attaching.is_finished() || waits()).await;
        self.attaching.push((to, with, attaching));
    }

    /// Those whose device was written meanwhile.
    async fn arrivals(&mut self) {
        if self.held.is_none() && !self.nothing_is_staged() {
            self.world.barrier().await;
        }
        let arrived = || self.attaching.iter().all(|(.., attaching)| attaching.is_finished());
        until("they have arrived", || arrived() || self.world.double.is_waiting()).await;
        let mut waiting = Vec::new();
        for (to, with, attaching) in std::mem::take(&mut self.attaching) {
            if !attaching.is_finished() {
                waiting.push((to, with, attaching));
                continue;
            }
            let client = attaching.await.unwrap().unwrap();
            let known = self.known.entry((to, with)).or_insert(Known { start: client.start, seen: client.start });
            assert!(client.start <= known.seen, "it starts behind what its device has not seen");
            self.sessions.push(Attached { user: to, device: with, client });
        }
        self.attaching = waiting;
    }

    /// What a session saw is a run of its user's log from where it started, and nothing else.
    fn look(&mut self, attached: &mut Attached) {
        let Attached { user, device, client } = attached;
        let seen = client.offsets();
        let log = &self.sent[*user];
        let from = log.partition_point(|offset| *offset <= client.start);
        assert!(log[from..].starts_with(&seen), "from {}: {seen:?} of {log:?}", client.start);
        assert_eq!(client.closed, None);
        let known = self.known.get_mut(&(*user, *device)).unwrap();
        known.seen = known.seen.max(seen.last().copied().unwrap_or(0));
    }

    fn look_at_all(&mut self) {
        let mut sessions = std::mem::take(&mut self.sessions);
        for session in &mut sessions {
            self.look(session);
        }
        self.sessions = sessions;
        for ((user, device), known) in &self.known {
            let user = self.world.user(&self.users[*user]);
            let mut state = user.state();
            let cursor = state.device(&self.devices[*device]).unwrap().row.cursor.get();
            assert!(cursor <= known.seen, "{cursor} is confirmed and {} was seen", known.seen);
        }
    }

    /// Everything is let go, every device comes once more: nobody lacks anything.
    async fn end(mut self) {
        self.open().await;
        self.arrivals().await;
        for (user, device) in self.known.keys().copied().collect::<Vec<_>>() {
            let client = self.world.attach(&self.users[user], &self.devices[device]).await;
            assert!(client.start <= self.known[&(user, device)].seen, "it would skip what nobody saw");
            self.sessions.push(Attached { user, device, client });
        }
        for session in &mut self.sessions {
            session.client.takes(None);
        }
        for session in &mut self.sessions {
            // A page may have been read and not handed over.
            session.client.end_pull();
            session.client.settle().await;
            let name = (session.user, session.device);
            assert!(session.client.is_live(), "{name:?} is stuck");
            let log = &self.sent[session.user];
            let from = log.partition_point(|offset| *offset <= session.client.start);
            assert_eq!(session.client.offsets(), log[from..], "{name:?} from {}", session.client.start);
        }
        self.look_at_all();
        for ((user, device), known) in &self.known {
            let last = self.sent[*user].iter().rfind(|offset| **offset > known.start);
            assert!(last.is_none_or(|last| known.seen == *last), "{device} of {user} has not seen everything");
        }
        for session in &self.sessions {
            session.client.detach();
        }
        for (n, id) in self.users.iter().enumerate() {
            if self.known.keys().any(|(user, _)| *user == n) {
                let user = self.world.user(id);
                let state = user.state();
                assert_eq!(
                    (state.log.index.len(), state.log.bytes, state.sessions.len()),
                    (0, 0, 0),
                    "all was confirmed"
                );
            }
        }
    }
}

#[tokio::test]
async fn every_session_sees_its_log_once_and_in_order_however_things_interleave() {
    for seed in 1..=SEQUENCES {
        let named = Seed(seed);
        let mut play = Play::new(seed);
        for _ in 0..STEPS {
            play.step().await;
        }
        play.end().await;
        drop(named);
    }
    println!("{SEQUENCES} sequences of {STEPS} steps, seeds 1 to {SEQUENCES}");
}

#[tokio::test]
async fn wherever_a_sequence_is_cut_off_memory_and_store_agree() {
    for seed in 1..=SEQUENCES / 10 {
        let named = Seed(seed);
        let mut play = Play::new(seed);
        for _ in 0..STEPS {
            play.step().await;
        }
        play.open().await;
        play.arrivals().await;
        for session in &play.sessions {
            session.client.detach();
        }
        for id in &play.users {
            if play.world.hub.0.users.get(id).is_some() {
                agrees_with_the_store(&play.world, id).await;
            }
        }
        drop(named);
    }
}
