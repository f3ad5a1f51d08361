//! The tests that a gateway is put to.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    Plan, Users, Watch,
    fleet::{Collected, Doing, Fleet, SlotReport, Tally},
    report::{Report, Usage},
    sender::{self, Calls, Pace, Sent, Via, Work},
};
use crate::api::proto::Wait;

/// A test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All connect at once, each is answered a question, all go.
    Storm,
    /// Each session sends echoes, as fast as answers come.
    Throughput,
    /// Each session sends echoes at their time.
    Sustained,
    /// Broadcasts to all.
    Fanout,
    /// Notifications to users in turn.
    Unicast,
    /// Notifications wait for users who then come back all at once.
    Replay,
    /// Sessions come and go while stored notifications are sent.
    Churn,
}

impl Kind {
    /// All of them, in the order in which they are run.
    pub const ALL: [Self; 7] =
        [Self::Storm, Self::Throughput, Self::Sustained, Self::Fanout, Self::Unicast, Self::Replay, Self::Churn];

    /// Its name on the command line and in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Storm => "storm",
            Self::Throughput => "throughput",
            Self::Sustained => "sustained",
            Self::Fanout => "fanout",
            Self::Unicast => "unicast",
            Self::Replay => "replay",
            Self::Churn => "churn",
        }
    }

    /// Whether it sends over gRPC.
    pub const fn sends(self) -> bool {
        matches!(self, Self::Fanout | Self::Unicast | Self::Replay | Self::Churn)
    }
}

/// How often it is looked what is done.
const LOOK: Duration = Duration::from_millis(2);
/// Echoes that a session may have unanswered in `throughput`.
const WINDOW: u64 = 16;
/// Notifications a second where nothing is said.
const RATE: f64 = 2000.0;
/// Callers where nothing is said: of unary calls, of streams that store, of broadcasts back to back.
const CALLERS_UNARY: usize = 64;
const CALLERS_REPLAY: usize = 4;
const CALLERS_BACK_TO_BACK: usize = 32;

/// What the gateway's process has taken so far.
pub(super) async fn usage(calls: Option<&Calls>) -> Option<Usage> {
    let status = calls?.status().await.ok()?;
    status.process.map(Usage::from)
}

/// Where tests are run.
pub(super) struct Stage<'a> {
    pub plan: &'a Plan,
    pub fleet: &'a Fleet,
    pub calls: Option<&'a Calls>,
    pub watch: &'a dyn Watch,
    /// What the gateway took before anybody came.
    pub idle: Option<Usage>,
    pub users: Users,
}

/// A test under way.
struct Test {
    report: Report,
    run: u32,
    all: Collected,
    /// The sessions that were there when it began.
    present: Vec<bool>,
    /// How many had to connect for that.
    connected: u64,
}

impl Stage<'_> {
    /// Runs one.
    pub async fn run(&mut self, kind: Kind) -> Report {
        match kind {
            Kind::Storm => self.storm().await,
            Kind::Throughput | Kind::Sustained => self.echoes(kind).await,
            Kind::Fanout => self.fanout().await,
            Kind::Unicast => self.unicast().await,
            Kind::Replay => self.replay().await,
            Kind::Churn => self.churn().await,
        }
    }

    /// Has everybody go.
    pub async fn leave(&self) {
        self.fleet.close();
        self.wait("leaving", 0, |_| self.open() == 0, |_| 0).await;
    }

    fn open(&self) -> u64 {
        self.fleet.live().open.load(Ordering::Relaxed)
    }

    /// Begins a test whose messages have so many lanes, with everybody connected.
    async fn begin(&self, kind: Kind, lanes: usize) -> Test {
        let mut tag = [0; 4];
        // A tag that is not random is still one: runs of one invocation have their places in the order.
        let _ = rustix::rand::getrandom(&mut tag, rustix::rand::GetRandomFlags::empty());
        let mut test = Test {
            report: Report { test: kind.as_str(), ..Report::default() },
            run: u32::from_le_bytes(tag),
            all: Collected::default(),
            present: Vec::new(),
            connected: 0,
        };
        test.report.connections.asked = self.fleet.places() as u64;
        self.fleet.begin(test.run, lanes);
        self.connect(kind).await;
        test.look(self.fleet.collect().await);
        test.connected = test.all.tally.connected;
        test.present = test.all.slots.iter().map(|slot| slot.open).collect();
        test.report.connections.connected = test.present.iter().filter(|open| **open).count() as u64;
        test
    }

    async fn connect(&self, kind: Kind) {
        let places = self.fleet.places() as u64;
        self.watch.begins(kind.as_str(), "connecting", places);
        self.fleet.connect(self.plan.max_concurrent);
        let connecting = || self.fleet.live().connecting.load(Ordering::Acquire);
        loop {
            let left = connecting();
            self.watch.at(places.saturating_sub(left));
            if left == 0 {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until it is so, or nothing has come for as long as one is patient.
    async fn wait(&self, test: &'static str, steps: u64, so: impl Fn(&Self) -> bool, done: impl Fn(&Self) -> u64) {
        if steps > 0 {
            self.watch.begins(test, "receiving", steps);
        }
        let live = self.fleet.live();
        let began = live.now_micros();
        let patience = self.plan.patience.as_micros() as u64;
        while !so(self) {
            self.watch.at(done(self));
            let last = live.last_micros.load(Ordering::Relaxed).max(began);
            if live.now_micros().saturating_sub(last) > patience {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits for so many messages.
    async fn wait_for(&self, test: &'static str, messages: u64) {
        let came = |stage: &Self| stage.fleet.live().came.load(Ordering::Acquire);
        self.wait(test, messages, |stage| came(stage) >= messages, came).await;
    }

    /// Ends a test whose measured part began then: what was received, and how long it took.
    async fn end(&self, test: &mut Test, began_micros: u64) {
        let live = self.fleet.live();
        let last = live.last_micros.load(Ordering::Relaxed).max(began_micros + 1);
        test.report.seconds = (last - began_micros) as f64 / 1e6;
        test.look(self.fleet.collect().await);
        test.report.received(&test.all.tally);
    }

    async fn storm(&self) -> Report {
        self.leave().await;
        let before = usage(self.calls).await;
        let began = self.fleet.live().now_micros();
        let mut test = self.begin(Kind::Storm, 1).await;
        let connected_in = (self.fleet.live().now_micros() - began) as f64 / 1e6;
        let connected = test.report.connections.connected;
        let after = usage(self.calls).await;
        test.report.per_second.connects = connected as f64 / connected_in.max(1e-6);
        let asked = self.fleet.live().now_micros();
        // Each is asked something, so that all are known to be there.
        self.fleet.order(Doing::Echoes { messages: 1, window: 1, payload: self.plan.payload });
        self.wait_for(Kind::Storm.as_str(), connected).await;
        self.end(&mut test, asked).await;
        test.report.echoed(&test.all.slots);
        test.report.seconds = connected_in;
        test.report.served(before, after, "connect", connected);
        if let (Some(server), true) = (&mut test.report.server, connected > 0) {
            let from = self.idle.map_or(server.rss_before_bytes, |idle| idle.rss_bytes);
            let grown = server.rss_bytes.saturating_sub(from);
            server.rss_bytes_per_session = Some(grown as f64 / connected as f64);
        }
        self.leave().await;
        test.report
    }

    async fn echoes(&self, kind: Kind) -> Report {
        let Plan { messages, duration, message_interval, payload, rate, .. } = *self.plan;
        let mut test = self.begin(kind, 1).await;
        let connected = test.report.connections.connected;
        let before = usage(self.calls).await;
        let live = self.fleet.live();
        let began = live.now_micros();
        if kind == Kind::Throughput {
            self.fleet.order(Doing::Echoes { messages, window: WINDOW, payload });
            self.wait_for(kind.as_str(), connected * messages).await;
        } else {
            let interval = match rate {
                Some(rate) if rate > 0.0 => Duration::from_secs_f64(connected.max(1) as f64 / rate),
                _ => message_interval.max(Duration::from_millis(1)),
            };
            let until_micros = began + duration.as_micros() as u64;
            self.fleet.order(Doing::EchoEvery { interval, until_micros, payload });
            self.watch.begins(kind.as_str(), "echoes", duration.as_secs());
            while live.now_micros() < until_micros && connected > 0 {
                self.watch.at((live.now_micros() - began) / 1_000_000);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let all_back = |stage: &Self| {
                let live = stage.fleet.live();
                live.came.load(Ordering::Acquire) >= live.echoes.load(Ordering::Acquire)
            };
            self.wait(kind.as_str(), 0, all_back, |_| duration.as_secs()).await;
        }
        let after = usage(self.calls).await;
        self.end(&mut test, began).await;
        test.report.echoed(&test.all.slots);
        let sent = test.report.sent;
        test.report.served(before, after, "echo", sent);
        test.report
    }

    async fn fanout(&self) -> Report {
        let Plan { messages, message_interval, .. } = *self.plan;
        let back_to_back = message_interval.is_zero();
        let callers = self.plan.callers.unwrap_or(if back_to_back { CALLERS_BACK_TO_BACK } else { 1 });
        let pace = match back_to_back {
            true => Pace::Count(messages),
            false => Pace::Every { interval: message_interval, count: messages },
        };
        let mut test = self.begin(Kind::Fanout, callers).await;
        let lanes: Vec<Arc<str>> = (0..callers).map(|lane| lane.to_string().into()).collect();
        let work = Work {
            via: Via::Broadcast,
            wait: Wait::Accepted,
            volatile: false,
            ..self.work(&test, lanes, callers, pace)
        };
        let before = usage(self.calls).await;
        let began = self.fleet.live().now_micros();
        let sent = self.send(Kind::Fanout, &work, messages).await;
        let due: u64 = (0..callers).map(|lane| sent.due(lane)).sum();
        self.wait_for(Kind::Fanout.as_str(), due * test.report.connections.connected).await;
        let after = usage(self.calls).await;
        self.end(&mut test, began).await;
        test.report.sent(&sent);
        let lost = |slot: &SlotReport| -> u64 {
            let lanes = slot.tracks.iter().zip(&sent.sent).enumerate();
            lanes.map(|(lane, (track, sent_to))| track.lost(*sent_to, sent.excused.get(&lane))).sum()
        };
        test.report.lost = test.present_slots().map(lost).sum();
        let received = test.report.received;
        test.report.served(before, after, "delivery", received);
        test.report
    }

    async fn unicast(&mut self) -> Report {
        let Plan { duration, rate, via, wait, volatile, .. } = *self.plan;
        let mut test = self.begin(Kind::Unicast, 1).await;
        let default = if via == Via::Unary { CALLERS_UNARY } else { 1 };
        let callers = self.plan.callers.unwrap_or(default);
        let pace = pace(rate, duration);
        let users = self.present_users(&test);
        let work = Work { via, wait, volatile, ..self.work(&test, users, callers, pace) };
        let before = usage(self.calls).await;
        let began = self.fleet.live().now_micros();
        let sent = self.send(Kind::Unicast, &work, expected(pace)).await;
        self.wait_for(Kind::Unicast.as_str(), self.due(&test, &sent)).await;
        let after = usage(self.calls).await;
        self.end(&mut test, began).await;
        test.report.sent(&sent);
        test.report.lost = self.lost(&test, &sent);
        let total = test.report.sent;
        test.report.served(before, after, "send", total);
        test.report
    }

    async fn replay(&mut self) -> Report {
        let messages = self.plan.messages;
        let mut test = self.begin(Kind::Replay, 1).await;
        let users = self.present_users(&test);
        let connected = test.report.connections.connected;
        self.leave().await;
        let total = messages * users.len() as u64;
        let callers = self.plan.callers.unwrap_or(CALLERS_REPLAY);
        let work = Work { via: Via::Batch, wait: Wait::Stored, ..self.work(&test, users, callers, Pace::Count(total)) };
        let stored_from = self.fleet.live().now_micros();
        let sent = self.send(Kind::Replay, &work, total).await;
        let stored_in = (self.fleet.live().now_micros() - stored_from) as f64 / 1e6;
        // What was counted of the first connection says nothing of the return.
        test.all.tally = Tally::default();
        let _ = self.fleet.collect().await;
        self.fleet.expect(messages);
        let before = usage(self.calls).await;
        let began = self.fleet.live().now_micros();
        self.connect(Kind::Replay).await;
        self.wait_for(Kind::Replay.as_str(), self.due(&test, &sent)).await;
        let after = usage(self.calls).await;
        self.end(&mut test, began).await;
        test.report.sent(&sent);
        test.report.per_second.sent = sent.total() as f64 / stored_in.max(1e-6);
        test.report.per_second.connects = test.report.a_second(connected);
        test.report.lost = self.lost(&test, &sent);
        // They waited; how long is not the gateway's doing.
        test.report.latency = None;
        let received = test.report.received;
        test.report.served(before, after, "delivery", received);
        test.report
    }

    async fn churn(&mut self) -> Report {
        let Plan { duration, rate, lifetime, .. } = *self.plan;
        let mut test = self.begin(Kind::Churn, 1).await;
        let users = self.present_users(&test);
        let pace = pace(rate, duration);
        let callers = self.plan.callers.unwrap_or(1);
        let work = Work { via: Via::Batch, wait: Wait::Stored, ..self.work(&test, users, callers, pace) };
        let before = usage(self.calls).await;
        let began = self.fleet.live().now_micros();
        let until_micros = began + duration.as_micros() as u64;
        self.fleet.order(Doing::Churn { lifetime, until_micros });
        let sent = self.send(Kind::Churn, &work, expected(pace)).await;
        self.wait_for(Kind::Churn.as_str(), self.due(&test, &sent)).await;
        let after = usage(self.calls).await;
        self.end(&mut test, began).await;
        test.report.sent(&sent);
        let again = test.all.tally.connected - test.connected;
        test.report.per_second.connects = test.report.a_second(again);
        test.report.lost = self.lost(&test, &sent);
        let received = test.report.received;
        test.report.served(before, after, "delivery", received);
        test.report
    }

    fn work(&self, test: &Test, keys: Vec<Arc<str>>, callers: usize, pace: Pace) -> Work {
        let (run, payload) = (test.run, self.plan.payload);
        Work { via: Via::Batch, wait: Wait::Stored, volatile: false, payload, run, keys: keys.into(), callers, pace }
    }

    async fn send(&self, kind: Kind, work: &Work, steps: u64) -> Sent {
        self.watch.begins(kind.as_str(), "sending", steps);
        let answered = AtomicU64::new(0);
        let count = |more| self.watch.at(answered.fetch_add(more, Ordering::Relaxed) + more);
        match self.calls.filter(|_| !work.keys.is_empty()) {
            Some(calls) => sender::send(calls, work, self.fleet.live(), &count).await,
            None => Sent::empty(),
        }
    }

    /// The users who have a session, each once; a user's place is his key.
    fn present_users(&mut self, test: &Test) -> Vec<Arc<str>> {
        self.users = Users::default();
        for user in test.present_slots().filter_map(|slot| slot.user.as_ref()) {
            self.users.key(user);
        }
        self.users.names.clone()
    }

    fn key(&self, slot: &SlotReport) -> Option<usize> {
        slot.user.as_ref().and_then(|user| self.users.keys.get(user).copied())
    }

    /// How many messages must come, over all sessions.
    fn due(&self, test: &Test, sent: &Sent) -> u64 {
        test.present_slots().filter_map(|slot| self.key(slot)).map(|key| sent.due(key)).sum()
    }

    /// How many of them did not.
    fn lost(&self, test: &Test, sent: &Sent) -> u64 {
        let lost = |slot: &SlotReport| {
            let key = self.key(slot)?;
            Some(slot.tracks.first()?.lost(*sent.sent.get(key)?, sent.excused.get(&key)))
        };
        test.present_slots().filter_map(lost).sum()
    }
}

impl Test {
    fn look(&mut self, collected: Collected) {
        self.all.tally.add(collected.tally);
        self.all.slots = collected.slots;
    }

    fn present_slots(&self) -> impl Iterator<Item = &SlotReport> {
        self.all.slots.iter().zip(&self.present).filter(|(_, present)| **present).map(|(slot, _)| slot)
    }
}

fn pace(rate: Option<f64>, duration: Duration) -> Pace {
    let rate = rate.unwrap_or(RATE);
    if rate <= 0.0 {
        return Pace::For(duration);
    }
    let count = (duration.as_secs_f64() * rate).ceil().max(1.0) as u64;
    Pace::Every { interval: Duration::from_secs_f64(1.0 / rate), count }
}

/// How many that is; 0: nobody knows.
fn expected(pace: Pace) -> u64 {
    match pace {
        Pace::Every { count, .. } | Pace::Count(count) => count,
        Pace::For(_) => 0,
    }
}
