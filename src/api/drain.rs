//! `Drain` and `Undrain`: the node out of service and back.

use std::{collections::VecDeque, pin::Pin, time::Duration};

use futures_util::{Stream, stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Api, ApiError, Caller,
    audit::{self, Subject},
    convert::{Checks, span, timestamp},
    proto,
    scope::Scope,
};
use crate::{
    hub::{DrainPlan, DrainRefused, DrainStep, Hub, UndrainRefused},
    types::{DrainProgress, DrainState},
};

/// The longest that closes may be spread over.
const OVER_MAX: Duration = Duration::from_secs(3600);
/// The bounds of a deadline.
const DEADLINE_MIN: Duration = Duration::from_millis(1);
const DEADLINE_MAX: Duration = Duration::from_secs(86_400);

/// Opens the public listeners again; or says which cannot be. It is handed down by whoever holds them.
pub type Opener = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What `Drain` answers with.
pub type DrainStream = Pin<Box<dyn Stream<Item = Result<proto::Draining, ApiError>> + Send>>;

impl Api {
    /// Says how the public listeners are opened again.
    pub fn set_opener(&self, opener: Opener) {
        let _ = self.0.opener.set(opener);
    }

    /// `Drain`.
    pub fn drain(&self, caller: &Caller, request: &proto::DrainRequest) -> Result<DrainStream, ApiError> {
        let outcome = self.begin_drain(caller, request);
        self.note("drain", caller, &outcome, |(_, joined)| if *joined { "joined" } else { "begun" });
        let (steps, joined) = outcome?;
        Ok(follow(steps, joined, self.0.life.stopping().clone()))
    }

    /// The steps of the drain, and whether it was under way already.
    fn begin_drain(
        &self,
        caller: &Caller,
        request: &proto::DrainRequest,
    ) -> Result<(watch::Receiver<DrainStep>, bool), ApiError> {
        let hub = self.authorise(caller, Scope::Admin)?;
        let mut checks = Checks::default();
        let over = checks.within("over", request.over, Duration::ZERO, OVER_MAX, "0 to 1h");
        let deadline = checks.within("deadline", request.deadline, DEADLINE_MIN, DEADLINE_MAX, "1ms to 1d");
        let (over, deadline) = checks.finish((over, deadline))?;
        let joins = over.is_none() && deadline.is_none();
        match hub.start_drain(DrainPlan { over, deadline }) {
            Ok(steps) => Ok((steps, false)),
            Err(DrainRefused::Already) if joins => Ok((hub.drain_progress(), true)),
            Err(DrainRefused::Already) => {
                let message =
                    "the node drains or is drained already; a call without over and deadline joins that, Undrain \
                               ends it"
                        .to_owned();
                Err(ApiError::AlreadyExists { reason: "DRAINING", message })
            }
            Err(DrainRefused::Stopping) => Err(stopping()),
        }
    }

    /// `Undrain`.
    pub fn undrain(&self, caller: &Caller) -> Result<proto::UndrainResponse, ApiError> {
        let outcome = self.end_drain(caller);
        self.note(
            "undrain",
            caller,
            &outcome,
            |answer| if answer.was_draining { "in service" } else { "was in service" },
        );
        outcome
    }

    fn end_drain(&self, caller: &Caller) -> Result<proto::UndrainResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Admin)?;
        let open = || self.0.opener.get().map_or(Ok(()), |opener| opener());
        let was_draining = hub.undrain(open).map_err(|refused| match refused {
            UndrainRefused::Stopping => stopping(),
            UndrainRefused::Listener(why) => {
                let message = format!("the node stays out of service: {why}");
                ApiError::Unavailable { reason: "LISTENER_CLOSED", message }
            }
        })?;
        Ok(proto::UndrainResponse { was_draining, sessions: sessions(hub) })
    }

    fn note<T>(
        &self,
        action: &'static str,
        caller: &Caller,
        outcome: &Result<T, ApiError>,
        done: impl FnOnce(&T) -> &'static str,
    ) {
        let subject = Subject(&[("node", Some(&self.0.node))]);
        audit::note(action, caller, &subject, outcome, |answer| done(answer).to_owned());
    }
}

fn sessions(hub: &Hub) -> u32 {
    u32::try_from(hub.session_count()).unwrap_or(u32::MAX)
}

fn stopping() -> ApiError {
    ApiError::Unavailable { reason: "DRAINING", message: "the node is stopping".to_owned() }
}

/// Who follows a drain, and how far he is told of it.
struct Follower {
    steps: watch::Receiver<DrainStep>,
    stop: CancellationToken,
    /// Which drain it is, and what was told of it last.
    told: (u64, DrainState),
    /// What is to be told before it is looked again: a watch has the last step alone.
    due: VecDeque<DrainProgress>,
}

/// The progress: of a drain that is joined from what there is on, of another one from its first step on.
fn follow(mut steps: watch::Receiver<DrainStep>, joined: bool, stop: CancellationToken) -> DrainStream {
    steps.mark_changed();
    let (number, progress) = *steps.borrow();
    let told = (number, if joined { progress.state } else { DrainState::Serving });
    let follower = Follower { steps, stop, told, due: VecDeque::new() };
    Box::pin(stream::unfold(Some(follower), |follower| async {
        let mut follower = follower?;
        let Some(progress) = follower.next().await else { return Some((Err(stopping()), None)) };
        let over = match progress.state {
            DrainState::Serving => true,
            // Behind that the process ends, and says so.
            DrainState::Drained => !progress.stopping,
            DrainState::NotReady | DrainState::Closing => false,
        };
        Some((Ok(self::progress(&progress)), (!over).then_some(follower)))
    }))
}

impl Follower {
    /// The next step; none where the node stops.
    async fn next(&mut self) -> Option<DrainProgress> {
        if let Some(due) = self.due.pop_front() {
            return Some(due);
        }
        tokio::select! {
            biased;
            changed = self.steps.changed() => changed.ok()?,
            () = self.stop.cancelled() => return None,
        }
        let (number, progress) = *self.steps.borrow_and_update();
        if number != self.told.0 && !progress.stopping {
            // That drain was taken back; the one that may be under way now is another caller's.
            return Some(DrainProgress { sessions: progress.left, left: progress.left, ..DrainProgress::default() });
        }
        self.due.extend(progress.since(self.told.1));
        self.told = (number, progress.state);
        self.due.pop_front()
    }
}

/// The progress as the proto has it.
pub(super) fn progress(progress: &DrainProgress) -> proto::Draining {
    let state = match progress.state {
        DrainState::Serving => proto::DrainState::Serving,
        DrainState::NotReady => proto::DrainState::NotReady,
        DrainState::Closing => proto::DrainState::Closing,
        DrainState::Drained => proto::DrainState::Drained,
    };
    let &DrainProgress { stopping, sessions, left, deadline, .. } = progress;
    proto::Draining { deadline: deadline.map(timestamp), state: state.into(), stopping, sessions, left }
}

impl Checks {
    /// A span that may be left out.
    fn within(
        &mut self,
        field: &'static str,
        given: Option<prost_types::Duration>,
        least: Duration,
        most: Duration,
        allowed: &str,
    ) -> Option<Option<Duration>> {
        let Some(given) = given else { return Some(None) };
        let span = span(given).filter(|span| (least..=most).contains(span));
        self.check(field, span.is_some(), || format!("must be {allowed}"));
        span.map(Some)
    }
}
