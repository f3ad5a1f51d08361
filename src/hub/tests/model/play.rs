//! What is done in a sequence, one step at a time, and what is looked at after each.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::{
    super::{
        super::*,
        support::{Bounds, Client, World, device, user},
    },
    Dice,
    book::{Book, Device as Known, In, InTopic, OwnId},
    look::enter,
    members::Changing,
};
use crate::{
    protocol::ack_mode::AckMode,
    store::double::Double,
    types::{CollapseKey, Device, LogId, Notification, NotificationId, Payload, Topic, TypeName, UserId},
};

const USERS: [&str; 2] = ["ann", "bob"];
const DEVICES: [&str; 3] = ["", "desk", "phone"];
const SESSIONS_MAX: usize = 7;
const START: Duration = Duration::from_secs(1_769_852_100);
const WINDOW: u64 = 600_000;
pub const BOUNDS: Bounds = Bounds { window: 3, outbox_bytes: 900, events: 4096 };

pub struct Attached {
    pub owner: (usize, usize),
    pub client: Client,
    /// The step in which it began.
    pub since: usize,
    /// How much of what it saw, and of what it confirmed, was entered into the book.
    pub entered: usize,
    pub confirmed: usize,
    /// Its socket was full at some time: a frame may be finished after its time.
    pub was_slow: bool,
}

pub struct Attaching {
    pub owner: (usize, usize),
    pub task: JoinHandle<Result<Client, AttachError>>,
    /// Where a new device begins that is not the first.
    pub lasts: (u64, u64),
    /// Whether its user had another device when it came; `None`: that is not known.
    pub others: Option<bool>,
}

/// What a call with a caller's own id must be answered.
#[derive(Clone, Copy, Debug)]
pub enum Expected {
    New,
    Repeated(u64),
    Taken,
    /// It depends on what a crash left, or on what came first.
    Either,
}

pub struct Call {
    pub log: In,
    pub wait: Option<Wait>,
    pub expected: Expected,
    pub task: JoinHandle<Result<Sent, SendError>>,
}

pub struct Play {
    pub world: World,
    pub double: Arc<Double>,
    pub clock: Clock,
    pub dice: Dice,
    pub book: Book,
    pub users: [UserId; 2],
    pub devices: [Device; 3],
    pub topics: [Topic; 2],
    pub changing: Vec<Changing>,
    /// The durable topics of devices that were forgotten.
    pub maybe_in: HashMap<(usize, usize), HashMap<usize, InTopic>>,
    pub sessions: Vec<Attached>,
    pub attaching: Vec<Attaching>,
    pub calls: Vec<Call>,
    /// Mailboxes that are being cleared and devices that are being forgotten.
    pub chores: Vec<JoinHandle<()>>,
    /// Devices whose creation, or end, a crash cut off.
    pub uncertain: HashSet<(usize, usize)>,
    /// Devices that were certainly forgotten.
    pub forgotten: HashSet<(usize, usize)>,
    /// What was asked to be sent: when it expires, and its collapse key.
    pub asked: HashMap<(In, String), (u64, Option<String>)>,
    pub events: Reader,
    /// What holds a collapse key.
    pub keys: HashMap<(In, String), u64>,
    pub numbers: u64,
    pub lives: usize,
}

impl Play {
    pub fn new(dice: Dice) -> Play {
        let (double, clock) = (Arc::<Double>::default(), Clock::simulated(START));
        let world = World::by_hand(Arc::clone(&double), clock.clone(), BOUNDS);
        world.hub.start();
        Play {
            events: world.hub.events().consume(Interest::default(), Start::Now),
            asked: HashMap::new(),
            world,
            double,
            clock,
            dice,
            book: Book::default(),
            users: USERS.map(user),
            devices: DEVICES.map(device),
            sessions: Vec::new(),
            attaching: Vec::new(),
            calls: Vec::new(),
            chores: Vec::new(),
            uncertain: HashSet::new(),
            forgotten: HashSet::new(),
            keys: HashMap::new(),
            topics: ["log.0", "log.1"].map(|name| Topic::parse(name).unwrap()),
            changing: Vec::new(),
            maybe_in: HashMap::new(),
            numbers: 0,
            lives: 0,
        }
    }

    pub fn hub(&self) -> &Hub {
        &self.world.hub
    }

    pub async fn step(&mut self) {
        self.book.step += 1;
        self.book.now = self.clock.unix_millis().0;
        self.book.latest = self.book.latest.max(self.book.now);
        let some = (!self.sessions.is_empty()).then(|| self.dice.roll(self.sessions.len().max(1)));
        let roll = self.dice.roll(82);
        match (roll, some) {
            (0..=11, _) => self.send(),
            (12..=13, _) => (0..=self.dice.roll(4)).for_each(|_| self.send()),
            (14..=15, _) => self.broadcast(),
            (16..=19, _) => self.repeat(),
            (20..=24, _) => drop(self.hub().store().turn(false)),
            (25..=28, _) => drop(self.hub().store().turn(true)),
            (29..=34, _) | (_, None) => self.attach(),
            (35..=39, Some(n)) => drop(self.sessions[n].client.begin_pull().await),
            (40..=43, Some(n)) => drop(self.sessions[n].client.end_pull()),
            (44..=48, Some(n)) => drop(self.sessions[n].client.confirm()),
            (49, Some(n)) => self.confirm_some(n),
            (50, Some(n)) => self.slow(n, Some(0)),
            (51, Some(n)) => {
                let room = [Some(1), Some(100), Some(700), None][self.dice.roll(4)];
                self.slow(n, room);
            }
            (52..=54, Some(n)) => self.leave(n),
            (55..=56, _) => self.advance().await,
            (57, _) => self.clock.set_skew_micros([-3_600_000_000, 3_600_000_000, 0, 0][self.dice.roll(4)]),
            (58, _) => self.purge(),
            (59, Some(n)) => self.forget(self.sessions[n].owner),
            (60..=61, _) => self.crash().await,
            (62, _) => self.restart().await,
            (63..=66, Some(n)) => self.confirm_at_once(n).await,
            (67..=71, _) => self.publish(),
            (72..=75, Some(n)) => self.change(n, true),
            (76, Some(n)) => self.change(n, false),
            (_, Some(n)) => self.settle(n).await,
        }
        self.look().await;
    }

    /// Lets every task come as far as it can.
    pub async fn quiet(&self) {
        for _ in 0..24 {
            tokio::task::yield_now().await;
        }
    }

    pub fn notification(&mut self, id: Option<String>, content: usize, bytes: usize) -> Notification {
        self.numbers += 1;
        let ttl = [4000, 15_000, 3_000_000, 3_000_000][self.dice.roll(4)];
        let now = self.clock.unix_millis();
        let id = id.unwrap_or_else(|| format!("n{}", self.numbers));
        Notification {
            id: NotificationId::parse(&id).unwrap(),
            type_name: TypeName::NOTIFICATION,
            payload: Payload::Json(Bytes::from(format!("\"{content}{}\"", "x".repeat(bytes)))),
            from_user: None,
            topic: None,
            kind: None,
            collapse_key: None,
            not_for: [].into(),
            accepted_at: now,
            expires_at: Some(now.saturating_add(Duration::from_millis(ttl))),
        }
    }

    fn send(&mut self) {
        let to = self.dice.roll(2);
        let bytes = self.dice.roll(400);
        let mut notification = self.notification(None, 0, bytes);
        if self.dice.roll(3) == 0 {
            let key = ["k", "l"][self.dice.roll(2)];
            notification.collapse_key = Some(CollapseKey::parse(key).unwrap());
        }
        self.call(In::User(to), notification, None, Expected::New);
    }

    fn broadcast(&mut self) {
        let bytes = self.dice.roll(300);
        let mut notification = self.notification(None, 0, bytes);
        if self.dice.roll(4) == 0 {
            notification.collapse_key = Some(CollapseKey::parse("k").unwrap());
        }
        self.book.counts.broadcasts += 1;
        self.call(In::Broadcast, notification, None, Expected::New);
    }

    /// A call with one of a few ids of the caller's own, with one of two contents.
    fn repeat(&mut self) {
        let log = match self.dice.roll(6) {
            0 => In::Broadcast,
            1 => In::Topic(self.dice.roll(2)),
            _ => In::User(self.dice.roll(2)),
        };
        let id = format!("own{}", self.dice.roll(2));
        let content = usize::from(self.dice.roll(5) == 0);
        for _ in 0..=self.dice.roll(2) {
            self.repeat_as(log, &id, content);
        }
    }

    fn repeat_as(&mut self, log: In, id: &str, content: usize) {
        let notification = self.notification(Some(id.to_owned()), content, 20);
        let expected = match self.book.ids.get(&(log, id.to_owned())) {
            None => Expected::New,
            Some(known) if known.until <= self.book.latest || !known.certain => Expected::Either,
            Some(OwnId { content: known, .. }) if *known != content => Expected::Taken,
            Some(OwnId { offset: Some(offset), .. }) => Expected::Repeated(*offset),
            Some(_) => Expected::Either,
        };
        self.call(log, notification, Some(content), expected);
    }

    /// Sends what nobody waits for, and whatever else behind it; the user's sessions confirm what they can before it is
    /// written.
    async fn confirm_at_once(&mut self, n: usize) {
        let to = self.sessions[n].owner.0;
        let notification = self.notification(None, 0, 20);
        self.call_waiting(In::User(to), notification, None, Expected::New, Wait::Accepted);
        for _ in 0..self.dice.roll(3) {
            let notification = self.notification(None, 0, 20);
            self.call(In::User(to), notification, None, Expected::New);
        }
        self.look().await;
        for session in self.sessions.iter_mut().filter(|session| session.owner.0 == to) {
            session.client.confirm();
        }
        if self.dice.roll(2) == 0 {
            self.hub().store().turn(false);
        }
    }

    pub fn call(&mut self, log: In, notification: Notification, own: Option<usize>, expected: Expected) {
        let until = self.clock.now() + Duration::from_secs(5);
        let wait = [Wait::Accepted, Wait::Stored, Wait::Stored, Wait::Confirmed(until)][self.dice.roll(4)];
        self.call_waiting(log, notification, own, expected, wait);
    }

    fn call_waiting(
        &mut self,
        log: In,
        notification: Notification,
        own: Option<usize>,
        expected: Expected,
        wait: Wait,
    ) {
        self.book.counts.sent += 1;
        if let Some(content) = own {
            let key = (log, notification.id.as_str().to_owned());
            let until = notification.accepted_at.0 + WINDOW;
            // Where it is not known what the id stands for, it is not known after this call either.
            match expected {
                Expected::New => drop(self.book.ids.insert(key, OwnId { content, until, offset: None, certain: true })),
                Expected::Either => {
                    let known = self.book.ids.get_mut(&key).unwrap();
                    (known.certain, known.offset, known.until) = (false, None, known.until.max(until));
                }
                Expected::Repeated(_) | Expected::Taken => {}
            }
        }
        let key = notification.collapse_key.as_ref().map(|key| key.as_str().to_owned());
        let expires_at = notification.expires_at.unwrap().0;
        self.asked.insert((log, notification.id.as_str().to_owned()), (expires_at, key));
        let hub = self.hub().clone();
        let options = SendOptions { wait, own_id: own.is_some() };
        let to = self.id_of(log);
        let task = tokio::spawn(async move {
            match to {
                LogId::User(to) => hub.send(&to, notification, options).await,
                LogId::Broadcast => hub.broadcast_durably(notification, options.own_id).await,
                LogId::Topic(topic) => hub.publish(&topic, notification, options.own_id).await,
            }
        });
        let wait = matches!(log, In::User(_)).then_some(wait);
        self.calls.push(Call { log, wait, expected, task });
    }

    pub fn id_of(&self, log: In) -> LogId {
        match log {
            In::User(to) => LogId::User(self.users[to].clone()),
            In::Broadcast => LogId::Broadcast,
            In::Topic(topic) => LogId::Topic(self.topics[topic].clone()),
        }
    }

    fn attach(&mut self) {
        if self.sessions.len() + self.attaching.len() >= SESSIONS_MAX {
            return;
        }
        let owner = (self.dice.roll(2), self.dice.roll(3));
        let mode = if self.dice.roll(3) == 0 { AckMode::Client } else { AckMode::Transport };
        self.attach_to(owner, mode);
    }

    pub fn attach_to(&mut self, owner: (usize, usize), mode: AckMode) {
        let task = tokio::spawn(self.world.attaching(&self.users[owner.0], &self.devices[owner.1], mode));
        let user = self.hub().0.users.get(&self.users[owner.0]);
        let last = user.filter(|user| user.is_loaded()).map(|user| user.state().log.last.get());
        let lasts = (last.unwrap_or(0), self.hub().0.broadcasts.state().log.last.get());
        let others = self.book.devices.keys().any(|other| other.0 == owner.0);
        let maybe = self.uncertain.iter().any(|other| other.0 == owner.0)
            || self.attaching.iter().any(|attaching| attaching.owner.0 == owner.0);
        let others = if others { Some(true) } else { (!maybe).then_some(false) };
        self.attaching.push(Attaching { owner, task, lasts, others });
    }

    async fn advance(&mut self) {
        let by = [100, 2000, 6000, 31_000, 200_000][self.dice.roll(5)];
        tokio::time::advance(Duration::from_millis(by)).await;
    }

    fn purge(&mut self) {
        let of = self.dice.roll(2);
        let (hub, id) = (self.hub().clone(), self.users[of].clone());
        for sent in self.book.sent.values_mut().filter(|sent| sent.log == In::User(of)) {
            sent.purged = true;
        }
        self.book.counts.purged += 1;
        self.chores.push(tokio::spawn(async move {
            let _ = hub.purge(&id, &Purge { device: None, force: true }).await;
        }));
    }

    fn forget(&mut self, owner: (usize, usize)) {
        let Some(known) = self.book.devices.remove(&owner) else { return };
        // Where a crash keeps the device, it is in them yet.
        let maybe =
            known.topics.into_iter().map(|(topic, stands)| (topic, InTopic { from: None, left: None, ..stands }));
        self.maybe_in.insert(owner, maybe.collect());
        let (hub, id, name) = (self.hub().clone(), self.users[owner.0].clone(), self.devices[owner.1].clone());
        self.chores.push(tokio::spawn(async move {
            let _ = hub.forget_device(&id, &name).await;
        }));
        self.uncertain.remove(&owner);
        self.forgotten.insert(owner);
        self.changing.retain(|one| one.owner != owner);
        // What only it lacked goes with it: all of it, where a device may be there of which nobody was told.
        let maybe_others = self.uncertain.iter().any(|other| other.0 == owner.0);
        let others: Vec<&Known> =
            self.book.devices.iter().filter(|(other, _)| other.0 == owner.0).map(|(_, known)| known).collect();
        let lacks = |known: &Known, offset: u64| offset > known.start && !known.confirmed.contains_key(&offset);
        for (offset, sent) in &mut self.book.sent {
            let had = sent.confirmed_at.is_some();
            let done = if others.is_empty() { had } else { !others.iter().any(|known| lacks(known, *offset)) };
            sent.purged |= sent.log == In::User(owner.0) && (done || maybe_others);
        }
    }

    async fn settle(&mut self, n: usize) {
        while self.hub().store().turn(true) {}
        self.look().await;
        let Some(attached) = self.sessions.get_mut(n) else { return };
        attached.client.takes(None);
        attached.client.end_pull();
        attached.client.settle().await;
        self.quiet().await;
        let attached = &mut self.sessions[n];
        if attached.client.handle.core().closing.is_none() && attached.client.handle.core().session.delivery.is_live() {
            enter(&mut self.book, attached);
            let seen = attached.client.offsets();
            self.book.must_have_seen(attached.owner, attached.since, &seen);
        }
    }
}
