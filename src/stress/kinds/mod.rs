//! The tests that a gateway is put to, and what they have in common: beginning with everybody connected, waiting for what
//! is missing, ending.
//!
//! * `echo.rs`: those that need only sessions; `push.rs`: those that send; `restart.rs`: one over a restart.

mod echo;
mod push;
mod restart;

use std::{collections::HashSet, sync::atomic::Ordering, time::Duration};

use super::{
    Plan, RunError, Users, Watch,
    fleet::{Collected, Fleet, SlotReport},
    report::{Report, Usage},
    sender::Calls,
};

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
    /// The gateway is restarted while stored notifications are sent.
    Restart,
}

impl Kind {
    /// Those that need nothing but a gateway, in the order in which they are run.
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
            Self::Restart => "restart",
        }
    }

    /// Whether it sends over gRPC.
    pub const fn sends(self) -> bool {
        matches!(self, Self::Fanout | Self::Unicast | Self::Replay | Self::Churn | Self::Restart)
    }
}

/// Nothing counts as lost sooner: sessions that come and go are away for up to a second.
const PATIENCE_MIN: Duration = Duration::from_secs(3);
/// How long nothing must have come before a test is over.
const QUIET: Duration = Duration::from_millis(250);
/// How often it is looked what is done.
const LOOK: Duration = Duration::from_millis(2);
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
    pub async fn run(&mut self, kind: Kind) -> Result<Report, RunError> {
        match kind {
            Kind::Storm => self.storm().await,
            Kind::Throughput | Kind::Sustained => self.echoes(kind).await,
            Kind::Fanout => self.fanout().await,
            Kind::Unicast => self.unicast().await,
            Kind::Replay => self.replay().await,
            Kind::Churn => self.churn().await,
            Kind::Restart => self.restart().await,
        }
    }

    /// Has everybody go.
    pub async fn leave(&self) {
        self.fleet.close();
        self.wait(|_| self.open() == 0, |_| 0).await;
    }

    fn open(&self) -> u64 {
        self.fleet.live().open.load(Ordering::Relaxed)
    }

    /// Begins a test whose messages have so many lanes, with everybody connected.
    async fn begin(&self, kind: Kind, lanes: usize) -> Result<Test, RunError> {
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
        if kind.sends() {
            let mut devices = HashSet::new();
            for slot in test.present(&test.all.slots) {
                let device = slot.user.clone().zip(slot.device.clone());
                if let Some((user, device)) = device.filter(|device| !devices.insert(device.clone())) {
                    return Err(RunError::SameDevice { user, device });
                }
            }
        }
        Ok(test)
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
    async fn wait(&self, so: impl Fn(&Self) -> bool, done: impl Fn(&Self) -> u64) {
        let live = self.fleet.live();
        let began = live.now_micros();
        let patience = self.plan.patience.max(PATIENCE_MIN).as_micros() as u64;
        while !so(self) {
            self.watch.at(done(self));
            let last = live.last_micros.load(Ordering::Relaxed).max(began);
            if live.now_micros().saturating_sub(last) > patience {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until nothing is missing, by the count and then by each session's own account: what comes besides, such as
    /// messages whose call seemed to fail, is in the count, too.
    async fn wait_for(&self, kind: Kind, messages: u64, missing: impl Fn(&[SlotReport]) -> u64) {
        self.watch.begins(kind.as_str(), "receiving", messages);
        let came = |stage: &Self| stage.fleet.live().came.load(Ordering::Acquire);
        self.wait(|stage| came(stage) >= messages, came).await;
        let live = self.fleet.live();
        let patience = self.plan.patience.max(PATIENCE_MIN).as_micros() as u64;
        while missing(&self.fleet.look().await) > 0 {
            if live.now_micros().saturating_sub(live.last_micros.load(Ordering::Relaxed)) > patience {
                break;
            }
            tokio::time::sleep(QUIET / 5).await;
        }
        // What comes twice may come behind the last.
        let quiet = |stage: &Self| {
            let live = stage.fleet.live();
            live.now_micros().saturating_sub(live.heard_micros.load(Ordering::Relaxed)) > QUIET.as_micros() as u64
        };
        self.wait(quiet, |_| messages).await;
    }

    /// Ends a test whose measured part began then: what was received, and how long it took.
    async fn end(&self, test: &mut Test, began_micros: u64) {
        let live = self.fleet.live();
        let last = live.last_micros.load(Ordering::Relaxed).max(began_micros + 1);
        test.report.seconds = (last - began_micros) as f64 / 1e6;
        test.look(self.fleet.collect().await);
        test.report.received(&test.all.tally);
    }
}

impl Test {
    fn look(&mut self, collected: Collected) {
        self.all.tally.add(collected.tally);
        self.all.slots = collected.slots;
    }

    /// Those of the sessions that were there when it began.
    fn present<'a>(&self, slots: &'a [SlotReport]) -> impl Iterator<Item = &'a SlotReport> + use<'a, '_> {
        slots.iter().zip(&self.present).filter(|(_, present)| **present).map(|(slot, _)| slot)
    }
}
