//! A node's way out of service and back. Not ready → `shutdown.lb_delay`, serving on → nobody is let in any more →
//! sessions told to come back and closed, a few at a time → nobody left. The order is the same whether a caller wants it
//! (`Drain`) or the process is to end; what differs is who waits for it, what is still taken, and when clients return
//! (`schedule.rs`).
//!
//! What others do about it they do because they watch it ([`Hub::drain_progress`], [`Hub::letting_in`]): public listeners
//! close, health says so.

mod schedule;

use std::{
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::schedule::{Returns, Schedule};
use super::{Hub, handle::Handle, timers};
use crate::{
    clock::Instant,
    limits,
    protocol::{close::CloseCode, server},
    types::{ClosedBy, DrainProgress, DrainState, EventBody, SessionId},
};

/// How often the progress is told.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// The part of the time left that the closes may take; the rest is for the connections' ends, and the store's.
const CLOSES_SHARE: f64 = 0.6;

/// How long the ends of closed sessions are waited for before the process ends.
const SESSION_ENDS_MAX: Duration = Duration::from_secs(3);

/// What is taken. Each refuses what the ones before it do, and more.
const EVERYTHING: u8 = 0;
/// Nobody is let in.
const NOBODY_NEW: u8 = 1;
/// Nor is anything taken that could not be stored: there is nobody left to take it.
const WHAT_IS_STORED: u8 = 2;
/// Nor anything else: the store is about to close.
const NOTHING: u8 = 3;

/// What a caller wants.
#[derive(Clone, Copy, Debug, Default)]
pub struct DrainPlan {
    /// How long the closes are spread over; unset: as `drain.rate` says.
    pub over: Option<Duration>,
    /// When it is to be over at the latest, from the call on. It wins.
    pub deadline: Option<Duration>,
}

/// Why a drain does not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainRefused {
    /// One is under way, or is over and the node is drained.
    Already,
    /// The process ends.
    Stopping,
}

/// Why a node does not come back into service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UndrainRefused {
    /// The process ends.
    Stopping,
    /// A listener cannot be opened again.
    Listener(String),
}

/// What a drain was told last, and which drain it is: a number for each that begins or is taken back.
pub type DrainStep = (u64, DrainProgress);

/// Where the node is between in service and out of it.
#[derive(Debug)]
pub(super) struct Drain {
    /// Read by every send.
    taken: AtomicU8,
    step: watch::Sender<DrainStep>,
    control: Mutex<Control>,
}

#[derive(Debug, Default)]
struct Control {
    /// Cancelled while nobody is let in.
    letting_in: CancellationToken,
    /// Ends the drain that is under way; still there once it is over.
    running: Option<CancellationToken>,
    stopping: bool,
    /// Since when it is not ready.
    since: Option<Instant>,
    schedule: Option<Schedule>,
}

/// One drain.
struct Run {
    number: u64,
    plan: DrainPlan,
    began: Instant,
    /// When closing begins.
    closes_at: Instant,
    returns: Returns,
}

impl Run {
    fn deadline(&self) -> Option<Instant> {
        self.plan.deadline.map(|deadline| self.began + deadline)
    }
}

impl Default for Drain {
    fn default() -> Self {
        let (step, _) = watch::channel((0, DrainProgress::default()));
        Self { taken: AtomicU8::new(EVERYTHING), step, control: Mutex::default() }
    }
}

impl Drain {
    fn refuses(&self, least: u8) -> bool {
        self.taken.load(Ordering::Acquire) >= least
    }
}

/// A part of one that is different for each session: the low bits of ids are random.
fn random(id: SessionId) -> f64 {
    f64::from(id.as_u128() as u16) / 65_536.0
}

impl Hub {
    /// Whether nobody is let in: the node drains or stops, and load balancers had their time.
    pub fn is_draining(&self) -> bool {
        self.0.drain.refuses(NOBODY_NEW)
    }

    /// Whether nothing is taken that could not be stored.
    pub(super) fn refuses_unstored(&self) -> bool {
        self.0.drain.refuses(WHAT_IS_STORED)
    }

    /// Whether nothing is taken.
    pub(super) fn refuses_all(&self) -> bool {
        self.0.drain.refuses(NOTHING)
    }

    /// How far the node is out of service, now and from now on.
    pub fn drain_progress(&self) -> watch::Receiver<DrainStep> {
        self.0.drain.step.subscribe()
    }

    /// How far it is now.
    pub fn drained(&self) -> DrainProgress {
        self.0.drain.step.borrow().1
    }

    /// Cancelled once nobody is let in any more; another one each time that the node comes back.
    pub fn letting_in(&self) -> CancellationToken {
        self.0.drain.control.lock().letting_in.clone()
    }

    /// Takes the node out of service, in the background. The progress from its first step on.
    pub fn start_drain(&self, plan: DrainPlan) -> Result<watch::Receiver<DrainStep>, DrainRefused> {
        let mut control = self.0.drain.control.lock();
        if control.stopping {
            return Err(DrainRefused::Stopping);
        }
        if control.running.is_some() {
            return Err(DrainRefused::Already);
        }
        let began = self.clock().now();
        self.run_in_background(&mut control, plan, began + self.notice(plan.deadline));
        Ok(self.drain_progress())
    }

    fn run_in_background(&self, control: &mut Control, plan: DrainPlan, closes_at: Instant) {
        let cancel = CancellationToken::new();
        control.running = Some(cancel.clone());
        let began = self.clock().now();
        control.since.get_or_insert(began);
        let number = self.begin_step(false, plan.deadline);
        let run = Run { number, plan, began, closes_at, returns: Returns::Elsewhere };
        let hub = self.clone();
        self.0.life.spawn(async move {
            let stop = hub.0.life.stopping().clone();
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = stop.cancelled() => {}
                () = hub.run_drain(&run, &cancel, WHAT_IS_STORED) => {}
            }
        });
    }

    /// How long load balancers have to notice.
    fn notice(&self, deadline: Option<Duration>) -> Duration {
        let notice = self.live().notice;
        deadline.map_or(notice, |deadline| notice.min(deadline / 2))
    }

    /// Takes the node back into service, wherever its drain is; `open` opens the public listeners. False: it was in service.
    pub fn undrain(&self, open: impl FnOnce() -> Result<(), String>) -> Result<bool, UndrainRefused> {
        let drain = &self.0.drain;
        // Held over the opening, which waits for nobody, so that no other drain begins in between.
        let mut control = drain.control.lock();
        if control.stopping {
            return Err(UndrainRefused::Stopping);
        }
        let Some(running) = control.running.take() else { return Ok(false) };
        running.cancel();
        drain.taken.store(EVERYTHING, Ordering::Release);
        if control.letting_in.is_cancelled() {
            control.letting_in = CancellationToken::new();
        }
        if let Err(why) = open() {
            // Out of service as before; who came in meanwhile is told to go again.
            control.letting_in.cancel();
            let now = self.clock().now();
            self.run_in_background(&mut control, DrainPlan::default(), now);
            return Err(UndrainRefused::Listener(why));
        }
        (control.since, control.schedule) = (None, None);
        drain.step.send_modify(|(number, progress)| {
            (*number, *progress) = (*number + 1, DrainProgress::default());
        });
        let progress = self.drained();
        drop(control);
        self.0.events.emit(EventBody::Draining(progress));
        Ok(true)
    }

    /// The node is to end within `deadline`: takes it out of service, or goes on with a drain that is under way, and returns
    /// when there is no session left or it is time for what comes behind that. `heed`: load balancers get their time.
    pub async fn drain_to_stop(&self, deadline: Duration, heed: bool) {
        let began = self.clock().now();
        let run = {
            let mut control = self.0.drain.control.lock();
            control.stopping = true;
            if let Some(running) = control.running.take() {
                running.cancel();
            }
            // They have had a part of their time, or all of it, where a drain was under way.
            let since = *control.since.get_or_insert(began);
            let notice = if heed { self.notice(Some(deadline)) } else { Duration::ZERO };
            let closes_at = if control.letting_in.is_cancelled() { began } else { since + notice };
            let number = self.begin_step(true, Some(deadline));
            let plan = DrainPlan { over: None, deadline: Some(deadline) };
            Run { number, plan, began, closes_at, returns: Returns::Here }
        };
        let never = CancellationToken::new();
        let _ = tokio::time::timeout(deadline, self.run_drain(&run, &never, NOTHING)).await;
        // Also where it was not over in time.
        self.refuse_everything();
    }

    /// From now on nobody is let in and nothing is taken, as at the end of a stop; nobody is told.
    pub fn refuse_everything(&self) {
        self.0.drain.taken.store(NOTHING, Ordering::Release);
    }

    /// A drain begins, or becomes a stop. Its number.
    fn begin_step(&self, stopping: bool, deadline: Option<Duration>) -> u64 {
        let deadline = deadline.map(|deadline| self.clock().unix_millis().saturating_add(deadline));
        let left = self.sessions_left();
        let mut begun = (0, DrainProgress::default());
        self.0.drain.step.send_modify(|(number, progress)| {
            *number += 1;
            let sessions = if progress.state == DrainState::Closing { progress.sessions } else { left };
            let state = if progress.state == DrainState::Serving { DrainState::NotReady } else { progress.state };
            *progress = DrainProgress { state, stopping, sessions, left, deadline };
            begun = (*number, *progress);
        });
        self.0.events.emit(EventBody::Draining(begun.1));
        begun.0
    }

    fn sessions_left(&self) -> u32 {
        u32::try_from(self.session_count()).unwrap_or(u32::MAX)
    }

    fn shut(&self, control: &mut Control) {
        self.0.drain.taken.fetch_max(NOBODY_NEW, Ordering::AcqRel);
        control.letting_in.cancel();
    }

    /// Tells how far it is, if that is news. False: another drain has taken this one's place.
    fn tell(&self, number: u64, state: Option<DrainState>) -> bool {
        let left = self.sessions_left();
        let mut told = None;
        let mut present = false;
        self.0.drain.step.send_if_modified(|(current, progress)| {
            present = *current == number;
            let state = match state {
                // Out of service as before, with nobody who came in meanwhile.
                Some(DrainState::Closing) if progress.state == DrainState::Drained && left == 0 => progress.state,
                state => state.unwrap_or(progress.state),
            };
            let closing = state == DrainState::Closing && progress.state == DrainState::Closing;
            let sessions = if closing || state == DrainState::Drained { progress.sessions.max(left) } else { left };
            let news = DrainProgress { state, sessions, left, ..*progress };
            if !present || news == *progress {
                return false;
            }
            (*progress, told) = (news, Some(news));
            true
        });
        if let Some(progress) = told {
            self.0.events.emit(EventBody::Draining(progress));
        }
        present
    }

    /// The steps of a drain, told as they are made. `refused`: what is, from when there is nobody left.
    async fn run_drain(&self, run: &Run, cancel: &CancellationToken, refused: u8) {
        let steps = async {
            tokio::time::sleep_until(run.closes_at).await;
            let schedule = {
                let mut control = self.0.drain.control.lock();
                if cancel.is_cancelled() {
                    return;
                }
                let now = self.clock().now();
                let most = run.deadline().map(|end| end.saturating_duration_since(now).mul_f64(CLOSES_SHARE));
                let (count, rate) = (self.session_count(), self.live().drain.rate);
                let schedule = Schedule::new(now, count, rate, run.plan.over, most, run.returns, &self.limits());
                control.schedule = Some(schedule);
                self.shut(&mut control);
                schedule
            };
            self.tell(run.number, Some(DrainState::Closing));
            self.close_all(&schedule, cancel).await;
            match (run.returns, run.deadline()) {
                (Returns::Here, Some(deadline)) => {
                    let left = deadline.saturating_duration_since(self.clock().now());
                    let ends = left.mul_f64(CLOSES_SHARE).min(SESSION_ENDS_MAX);
                    let _ = tokio::time::timeout(ends, self.emptied()).await;
                }
                _ => self.emptied().await,
            }
            let control = self.0.drain.control.lock();
            if !cancel.is_cancelled() {
                self.0.drain.taken.fetch_max(refused, Ordering::AcqRel);
                drop(control);
                self.tell(run.number, Some(DrainState::Drained));
            }
        };
        let telling = async {
            let mut ticks = tokio::time::interval(TELL_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if !self.tell(run.number, None) {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            () = steps => {}
            () = telling => {}
        }
    }

    /// Tells every session to come back later and closes it, each at its time. Who was let in at the last moment and is
    /// not among them is told by whoever let him in ([`Hub::send_away_if_draining`]).
    async fn close_all(&self, schedule: &Schedule, cancel: &CancellationToken) {
        let sessions = self.session_page(None, usize::MAX);
        let total = sessions.len().max(1) as f64;
        for (index, handle) in sessions.iter().enumerate() {
            let share = (index as f64 + random(handle.id)) / total;
            let (now, due) = (self.clock().now(), schedule.close_at(share));
            if index.is_multiple_of(limits::FANOUT_SLICE_SESSIONS) || due > now + timers::TICK {
                tokio::time::sleep_until(due).await;
                // Even where it is late, others have their turn.
                tokio::task::yield_now().await;
            }
            if cancel.is_cancelled() {
                return;
            }
            self.send_away(handle, schedule.wait(share, self.clock().now()));
        }
        tokio::time::sleep_until(schedule.end()).await;
    }

    fn send_away(&self, handle: &Handle, after: Duration) {
        handle.reply(server::draining(after));
        handle.flush();
        handle.close(CloseCode::RESTART, "restarting", ClosedBy::Gateway);
    }

    /// A session that was just let in has to go where the node lets nobody in any more.
    pub(super) fn send_away_if_draining(&self, handle: &Handle) {
        if self.is_draining() {
            self.send_away(handle, self.late_wait(handle.id));
        }
    }

    /// `draining`, for somebody who is not let in because of it.
    pub fn come_back_later(&self) -> Bytes {
        server::draining(self.late_wait(SessionId::generate()))
    }

    fn late_wait(&self, id: SessionId) -> Duration {
        let now = self.clock().now();
        let schedule = self.0.drain.control.lock().schedule;
        let schedule = schedule.unwrap_or_else(|| {
            Schedule::new(now, 0, self.live().drain.rate, None, None, Returns::Elsewhere, &self.limits())
        });
        schedule.late_wait(random(id), now)
    }

    /// Resolves when there is no session left.
    pub async fn emptied(&self) {
        loop {
            let left = self.0.left.notified();
            if self.session_count() == 0 {
                return;
            }
            left.await;
        }
    }
}
