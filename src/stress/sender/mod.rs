//! The service's side of a run: notifications over gRPC, at their time or as fast as they are taken.
//!
//! * `caller.rs`: one who sends; `sent.rs`: what the gateway answered.
//!
//! A key is a sequence of its own: a user, or, of broadcasts, a lane. Keys are dealt out to callers; one caller sends
//! all of a key's, in order, since two calls that are under way at once have none. A call that fails otherwise than by
//! refusal, and a stream that breaks, are tried again with what is due then; a caller to whom nothing is said for as
//! long as one is patient sends no more. What has to arrive whatever happens ([`Work::again`]) is sent until it is taken.

mod caller;
mod sent;

use std::{
    collections::VecDeque,
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::sync::mpsc;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

use self::caller::Caller;
pub use self::sent::Sent;
use super::fleet::Live;
use crate::api::proto::{ForgetUserRequest, GetStatusRequest, GetStatusResponse, Wait, gateway_client::GatewayClient};

/// The gateway's admin API, over one or more connections.
#[derive(Clone, Debug)]
pub struct Calls {
    channels: Arc<[Channel]>,
    token: Option<MetadataValue<Ascii>>,
    timeout: Duration,
}

impl Calls {
    /// Calls over these connections, at least one, with this token. An answer may take so long.
    pub fn new(channels: Vec<Channel>, token: Option<MetadataValue<Ascii>>, timeout: Duration) -> Self {
        Self { channels: channels.into(), token, timeout }
    }

    fn client(&self, number: usize) -> GatewayClient<Channel> {
        GatewayClient::new(self.channels[number % self.channels.len()].clone())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.endless(message);
        request.set_timeout(self.timeout);
        request
    }

    fn endless<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }

    /// How the gateway is.
    ///
    /// # Errors
    /// As `GetStatus`.
    pub async fn status(&self) -> Result<GetStatusResponse, Status> {
        Ok(self.client(0).get_status(self.request(GetStatusRequest {})).await?.into_inner())
    }

    /// Erases what is stored for a user.
    ///
    /// # Errors
    /// As `ForgetUser`.
    pub async fn forget(&self, user: &str) -> Result<(), Status> {
        let request = self.request(ForgetUserRequest { user_id: user.to_owned() });
        self.client(0).forget_user(request).await.map(drop)
    }
}

/// How notifications are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Via {
    /// `SendToUser`, a call each.
    Unary,
    /// `SendBatch`, a stream a caller.
    Batch,
    /// `Broadcast`, to all.
    Broadcast,
}

/// What is sent, and how.
#[derive(Clone, Debug)]
pub struct Work {
    /// How.
    pub via: Via,
    /// What each call waits for.
    pub wait: Wait,
    /// Never stored.
    pub volatile: bool,
    /// The payload, in bytes.
    pub payload: usize,
    /// The run that its marks name.
    pub run: u32,
    /// The users by key; of broadcasts, a name for each lane.
    pub keys: Arc<[Arc<str>]>,
    /// How many send.
    pub callers: usize,
    /// When.
    pub pace: Pace,
    /// How long calls may fail, or a stream be silent, before a caller sends no more.
    pub patience: Duration,
    /// Whether what was neither taken nor refused is sent again, with the same id, before anything newer. Of `Via::Batch`.
    pub again: bool,
    /// Set where nothing is due any more, before `pace` says so.
    pub over: Option<Arc<AtomicBool>>,
}

/// When notifications are sent.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// One every so often, to the keys in turn, until so many were due. Whether earlier ones were answered does not
    /// matter: each carries the moment it was due (so coordinated omission is in the figures).
    Every {
        /// How often.
        interval: Duration,
        /// How many.
        count: u64,
    },
    /// So many, as fast as they are taken.
    Count(u64),
    /// For so long, as fast as they are taken.
    For(Duration),
}

/// One that is due.
struct Job {
    key: usize,
    due_micros: u64,
}

/// One that was given its number.
#[derive(Clone, Copy)]
struct Numbered {
    key: usize,
    number: u64,
    due_micros: u64,
}

/// A caller's jobs.
enum Jobs<'a> {
    Paced(mpsc::UnboundedReceiver<Job>),
    Free { key: usize, callers: usize, keys: usize, left: u64, until: Option<Instant>, live: &'a Live },
}

impl Jobs<'_> {
    async fn next(&mut self) -> Option<Job> {
        match self {
            Self::Paced(jobs) => jobs.recv().await,
            Self::Free { left: 0, .. } => None,
            Self::Free { until: Some(until), .. } if Instant::now() >= *until => None,
            Self::Free { key, callers, keys, left, live, .. } => {
                let due = Job { key: *key, due_micros: live.now_micros() };
                *left -= 1;
                *key += *callers;
                if *key >= *keys {
                    *key %= *callers;
                }
                Some(due)
            }
        }
    }
}

/// Sends all of it. `count` sees how many calls were answered.
pub async fn send(calls: &Calls, work: &Work, live: &Live, count: &(dyn Fn(u64) + Sync)) -> Sent {
    let keys = work.keys.len();
    let callers = work.callers.clamp(1, keys.max(1));
    let mut jobs = Vec::with_capacity(callers);
    let mut pacer = None;
    match work.pace {
        Pace::Every { interval, count } => {
            let (tell, told): (Vec<_>, Vec<_>) = (0..callers).map(|_| mpsc::unbounded_channel()).unzip();
            jobs.extend(told.into_iter().map(Jobs::Paced));
            let first = live.now_micros();
            let start = live.instant(first);
            let over = work.over.clone().unwrap_or_default();
            let is_over = move |ended: &AtomicBool| ended.load(Ordering::Relaxed) || over.load(Ordering::Relaxed);
            pacer =
                Some(Pacer::start(move |ended| pace(|| is_over(ended), start, first, interval, count, keys, &tell)));
        }
        Pace::Count(_) | Pace::For(_) => {
            let until = if let Pace::For(span) = work.pace { Some(Instant::now() + span) } else { None };
            let total = if let Pace::Count(total) = work.pace { total } else { u64::MAX };
            for caller in 0..callers {
                // Each sends its keys' part; keys that get one more are the first ones.
                let whole = total / keys as u64;
                let rest = usize::try_from(total % keys as u64).unwrap_or(usize::MAX);
                let own = (keys - caller).div_ceil(callers) as u64;
                let more = (rest.saturating_sub(caller)).div_ceil(callers) as u64;
                let left = if until.is_some() { u64::MAX } else { whole * own + more };
                jobs.push(Jobs::Free { key: caller, callers, keys, left, until, live });
            }
        }
    }
    let mut sent = Sent::default();
    let lanes = jobs.into_iter().enumerate().map(|(number, jobs)| async move {
        let mut caller =
            Caller { calls, work, live, count, heard: Instant::now(), sent: Sent::default(), again: VecDeque::new() };
        match work.via {
            Via::Batch => caller.batch(number, jobs).await,
            Via::Unary | Via::Broadcast => caller.one_by_one(number, jobs).await,
        }
        caller.sent
    });
    for one in futures_util::future::join_all(lanes).await {
        sent.add(one);
    }
    drop(pacer);
    sent
}

/// The thread that keeps the schedule; it ends when this is dropped.
struct Pacer {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pacer {
    fn start(run: impl FnOnce(&AtomicBool) + Send + 'static) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ended);
        Self { ended, thread: Some(std::thread::spawn(move || run(&told))) }
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic has said so itself.
            let _ = thread.join();
        }
    }
}

/// How long the schedule's thread sleeps at once, so that it can be ended.
const NAP: Duration = Duration::from_millis(50);

/// Says what is due when it is, however long callers take.
fn pace(
    is_over: impl Fn() -> bool,
    start: Instant,
    first: u64,
    interval: Duration,
    count: u64,
    keys: usize,
    callers: &[mpsc::UnboundedSender<Job>],
) {
    // Else a sleep may take 50 µs longer. Without it only the figures are a little worse.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    for turn in 0..count {
        let after = Duration::from_secs_f64(interval.as_secs_f64() * turn as f64);
        loop {
            let wait = (start + after).saturating_duration_since(Instant::now());
            if is_over() {
                return;
            }
            if wait.is_zero() {
                break;
            }
            std::thread::sleep(wait.min(NAP));
        }
        let key = (turn % keys as u64) as usize;
        let due_micros = first + u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        // One who has given up sends no more; the others go on.
        let _ = callers[key % callers.len()].send(Job { key, due_micros });
    }
}
