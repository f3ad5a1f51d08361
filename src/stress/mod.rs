//! A load on a running gateway, and what became of it: `pushgate stress`.
//!
//! * `fleet/`: many light sessions on a few threads; `wire.rs`: their side of RFC 6455.
//! * `sender/`: the service's side, over gRPC.
//! * `mark.rs`: what each message carries; `track.rs`: which came, which did not, which twice or late.
//! * `kinds/`: the tests that a gateway is put to; `report.rs`: what they found.
//!
//! What is counted as lost was accepted by the gateway and did not come to a session that was there for it, or that came
//! back. What the gateway refused, or said that nobody took, is not lost; the test was not done as planned then, which
//! fails it, too. Latency runs from the moment a message was due by the schedule, not
//! from when the tool got round to sending it, so a gateway that holds the sender up does not look better for it
//! (coordinated omission). Where there is no schedule (as fast as possible), it runs from the moment of sending.

pub mod fleet;
mod kinds;
pub mod mark;
pub mod report;
pub mod sender;
pub mod track;
mod wire;

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use serde::{Serialize, Serializer};

pub use self::kinds::Kind;
use self::{
    fleet::{Fleet, Place, Target},
    report::Report,
    sender::{Calls, Via},
};
use crate::api::proto::Wait;

/// What is to be done. Bounds are the caller's to check: counts and spans of zero make no test.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// How many handshakes may be under way at once.
    pub max_concurrent: usize,
    /// How many messages: echoes a session, broadcasts, or notifications a user that wait for their replay.
    pub messages: u64,
    /// How long `sustained`, `unicast` and `churn` go on.
    #[serde(serialize_with = "seconds")]
    pub duration: Duration,
    /// How often a broadcast, or an echo of each session (at least 1 ms). Zero: broadcasts as fast as they are taken.
    #[serde(serialize_with = "seconds")]
    pub message_interval: Duration,
    /// A message's payload, in bytes.
    pub payload: usize,
    /// Notifications a second of `unicast` and `churn`, echoes a second of `sustained`. `None`: by the test. Zero:
    /// notifications as fast as they are taken.
    pub rate: Option<f64>,
    /// How `unicast` sends.
    pub via: Via,
    /// What the calls of `unicast` wait for.
    #[serde(serialize_with = "wait_name")]
    pub wait: Wait,
    /// Whether `unicast` sends what is never stored.
    pub volatile: bool,
    /// How many callers send at once. `None`: by the test.
    pub callers: Option<usize>,
    /// The mean life of a connection in `churn`.
    #[serde(serialize_with = "seconds")]
    pub lifetime: Duration,
    /// What has the gateway restarted, as a shell's command; else somebody else does, once he is told.
    pub restart: Option<String>,
    /// How long nothing may come before what is missing counts as lost.
    #[serde(serialize_with = "seconds")]
    pub patience: Duration,
    /// The threads that hold the sessions.
    pub threads: usize,
}

fn seconds<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(span.as_secs_f64())
}

fn wait_name<S: Serializer>(wait: &Wait, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(wait.as_str_name())
}

/// Who looks on.
pub trait Watch: Sync {
    /// A part begins that has so many steps (0: nobody knows).
    fn begins(&self, test: &'static str, part: &'static str, steps: u64);
    /// So many are done.
    fn at(&self, done: u64);
    /// Something that whoever looks on has to know, or to do.
    fn says(&self, _text: &str) {}
}

/// Why tests could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The system refuses threads or descriptors.
    #[error("cannot hold the sessions: {0}")]
    System(#[from] io::Error),
    /// The command that restarts the gateway failed.
    #[error("the command that is to restart the gateway failed: {0}")]
    Restart(String),
    /// A device's cursor is moved by each of its sessions, so that none of them needs to get everything.
    #[error(
        "two sessions are the device `{device}` of the user `{user}`, which no account can be kept of; give each session a \
         token of its own, without a `device` claim"
    )]
    SameDevice {
        /// The user.
        user: Arc<str>,
        /// The device; empty: the unnamed one.
        device: String,
    },
}

/// Runs tests one after the other, with the same sessions. `told` gets each report as soon as it is there.
///
/// # Errors
/// The threads cannot be started, or two sessions turn out to be the same device of a user.
pub async fn run(
    kinds: &[Kind],
    plan: &Plan,
    target: &Target,
    places: Vec<Place>,
    calls: Option<&Calls>,
    watch: &dyn Watch,
    mut told: impl FnMut(&Report),
) -> Result<Vec<Report>, RunError> {
    let usage = kinds::usage(calls).await;
    let fleet = Fleet::start(target, places, plan.threads)?;
    let mut stage = kinds::Stage { plan, fleet: &fleet, calls, watch, idle: usage, users: Users::default() };
    let mut reports = Vec::with_capacity(kinds.len());
    for kind in kinds {
        let report = stage.run(*kind).await?;
        told(&report);
        reports.push(report);
    }
    stage.leave().await;
    Ok(reports)
}

/// The users whom the sessions turned out to be.
#[derive(Clone, Debug, Default)]
pub struct Users {
    names: Vec<Arc<str>>,
    keys: HashMap<Arc<str>, usize>,
}

impl Users {
    fn key(&mut self, user: &Arc<str>) -> usize {
        *self.keys.entry(Arc::clone(user)).or_insert_with(|| {
            self.names.push(Arc::clone(user));
            self.names.len() - 1
        })
    }
}
