//! The service's side of a run: notifications over gRPC, at their time or as fast as they are taken, and what the
//! gateway answered to each.
//!
//! A key is a sequence of its own: a user, or, of broadcasts, a lane. Keys are dealt out to callers; one caller sends
//! all of a key's, in order, since two calls that are under way at once have none.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    num::NonZeroU64,
    sync::Arc,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

use super::{
    fleet::{Live, histogram},
    mark::Mark,
};
use crate::{
    api::proto::{
        BroadcastRequest, ForgetUserRequest, GetStatusRequest, GetStatusResponse, Notification, Outcome,
        SendBatchRequest, SendToUserRequest, Wait, gateway_client::GatewayClient, notification::Payload,
        send_batch_response,
    },
    limits,
};

/// The gateway's admin API, over one or more connections.
#[derive(Clone, Debug)]
pub struct Calls {
    channels: Arc<[Channel]>,
    token: Option<MetadataValue<Ascii>>,
}

impl Calls {
    /// Calls over these connections, at least one, with this token.
    pub fn new(channels: Vec<Channel>, token: Option<MetadataValue<Ascii>>) -> Self {
        Self { channels: channels.into(), token }
    }

    fn client(&self, number: usize) -> GatewayClient<Channel> {
        GatewayClient::new(self.channels[number % self.channels.len()].clone())
    }

    fn request<T>(&self, message: T) -> Request<T> {
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// What the gateway answered.
pub struct Sent {
    /// How many were sent, by key: their numbers are those below.
    pub sent: Vec<u64>,
    /// Those that were not accepted, or may not have been: they need not come.
    pub excused: HashMap<usize, BTreeSet<u64>>,
    /// Calls that failed, by code.
    pub refused: BTreeMap<String, u64>,
    /// Of those, the ones that may have been delivered nevertheless.
    pub unknown: u64,
    /// Calls that succeeded, by outcome.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// From when a call was due to its answer, in µs.
    pub answers: Histogram<u64>,
}

impl Sent {
    fn new(keys: usize) -> Self {
        Self {
            sent: vec![0; keys],
            excused: HashMap::new(),
            refused: BTreeMap::new(),
            unknown: 0,
            outcomes: BTreeMap::new(),
            answers: histogram(),
        }
    }

    /// Nothing was sent.
    pub fn empty() -> Self {
        Self::new(0)
    }

    /// How many were sent.
    pub fn total(&self) -> u64 {
        self.sent.iter().sum()
    }

    /// How many of a key's must come.
    pub fn due(&self, key: usize) -> u64 {
        let excused = self.excused.get(&key).map_or(0, |set| set.len() as u64);
        self.sent.get(key).copied().unwrap_or_default().saturating_sub(excused)
    }

    fn excuse(&mut self, job: &Numbered) {
        self.excused.entry(job.key).or_default().insert(job.number);
    }

    fn answered(&mut self, job: &Numbered, answer: Result<Outcome, Status>, now_micros: u64) {
        match answer {
            Ok(outcome) => {
                self.answers.saturating_record(now_micros.saturating_sub(job.due_micros).max(1));
                *self.outcomes.entry(outcome.as_str_name()).or_default() += 1;
                if !matches!(outcome, Outcome::Stored | Outcome::Accepted | Outcome::Confirmed) {
                    self.excuse(job);
                }
            }
            Err(status) => {
                let sure = matches!(
                    status.code(),
                    Code::InvalidArgument
                        | Code::AlreadyExists
                        | Code::ResourceExhausted
                        | Code::PermissionDenied
                        | Code::Unauthenticated
                );
                self.unknown += u64::from(!sure);
                *self.refused.entry(format!("{:?}", status.code())).or_default() += 1;
                self.excuse(job);
            }
        }
    }

    fn add(&mut self, other: Self) {
        for (of, more) in self.sent.iter_mut().zip(other.sent) {
            *of += more;
        }
        // Each key is one caller's.
        self.excused.extend(other.excused);
        for (what, count) in other.refused {
            *self.refused.entry(what).or_default() += count;
        }
        self.unknown += other.unknown;
        for (what, count) in other.outcomes {
            *self.outcomes.entry(what).or_default() += count;
        }
        // All have the same bounds.
        let _ = self.answers.add(other.answers);
    }
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
            pacer = Some(std::thread::spawn(move || pace(start, first, interval, count, keys, &tell)));
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
    let mut sent = Sent::new(keys);
    let lanes = jobs.into_iter().enumerate().map(|(number, jobs)| async move {
        let mut caller = Caller { calls, work, live, count, numbers: HashMap::new(), sent: Sent::new(keys) };
        match work.via {
            Via::Batch => caller.batch(number, jobs).await,
            Via::Unary | Via::Broadcast => caller.one_by_one(number, jobs).await,
        }
        for (key, number) in &caller.numbers {
            caller.sent.sent[*key] = *number;
        }
        caller.sent
    });
    for one in futures_util::future::join_all(lanes).await {
        sent.add(one);
    }
    if let Some(pacer) = pacer {
        // It has ended, or nobody listens to it any more.
        let _ = pacer.join();
    }
    sent
}

/// Says what is due when it is, however long callers take.
fn pace(
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
        let wait = (start + after).saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        let key = (turn % keys as u64) as usize;
        let due_micros = first + u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        if callers[key % callers.len()].send(Job { key, due_micros }).is_err() {
            return;
        }
    }
}

/// One who sends.
struct Caller<'a> {
    calls: &'a Calls,
    work: &'a Work,
    live: &'a Live,
    count: &'a (dyn Fn(u64) + Sync),
    numbers: HashMap<usize, u64>,
    sent: Sent,
}

impl Caller<'_> {
    fn number(&mut self, job: &Job) -> Numbered {
        let next = self.numbers.entry(job.key).or_default();
        let number = *next;
        *next += 1;
        Numbered { key: job.key, number, due_micros: job.due_micros }
    }

    fn notification(&self, job: &Numbered) -> Notification {
        let lane = if self.work.via == Via::Broadcast { job.key as u32 } else { 0 };
        let mark = Mark { run: self.work.run, lane, number: job.number, due_micros: job.due_micros };
        Notification {
            payload: Some(Payload::Json(mark.payload(self.work.payload))),
            ttl: self.work.volatile.then(prost_types::Duration::default),
            ..Notification::default()
        }
    }

    fn to_user(&self, job: &Numbered) -> SendToUserRequest {
        SendToUserRequest {
            user_id: self.work.keys[job.key].as_ref().to_owned(),
            notification: Some(self.notification(job)),
            wait: self.work.wait.into(),
            ..SendToUserRequest::default()
        }
    }

    async fn one_by_one(&mut self, number: usize, mut jobs: Jobs<'_>) {
        let mut client = self.calls.client(number);
        while let Some(job) = jobs.next().await {
            let job = self.number(&job);
            let answer = if self.work.via == Via::Broadcast {
                let request = BroadcastRequest { notification: Some(self.notification(&job)), ..Default::default() };
                client.broadcast(self.calls.request(request)).await.map(|answer| answer.into_inner().outcome())
            } else {
                let request = self.calls.request(self.to_user(&job));
                client.send_to_user(request).await.map(|answer| answer.into_inner().outcome())
            };
            self.sent.answered(&job, answer, self.live.now_micros());
            (self.count)(1);
        }
    }

    async fn batch(&mut self, number: usize, mut jobs: Jobs<'_>) {
        let (tell, told) = mpsc::channel::<SendBatchRequest>(64);
        let stream = futures_util::stream::unfold(told, async |mut told| Some((told.recv().await?, told)));
        let pending: Mutex<HashMap<u64, Numbered>> = Mutex::default();
        let room = Semaphore::new(limits::BATCH_IN_FLIGHT_MAX);
        let mut client = self.calls.client(number);
        let request = self.calls.request(stream);
        let mut answers = Sent::new(self.work.keys.len());
        let (live, count) = (self.live, self.count);
        let write = async {
            let mut id = 0u64;
            while let Some(job) = jobs.next().await {
                let Ok(permit) = room.acquire().await else { break };
                permit.forget();
                let job = self.number(&job);
                pending.lock().insert(id, job);
                let request = SendBatchRequest { request_id: id.to_string(), send: Some(self.to_user(&job)) };
                if tell.send(request).await.is_err() {
                    break;
                }
                id += 1;
            }
            // Half-closes the stream.
            drop(tell);
        };
        let read = async {
            let end = async {
                let mut stream = client.send_batch(request).await?.into_inner();
                while let Some(answer) = stream.message().await? {
                    let job = answer.request_id.parse().ok().and_then(|id: u64| pending.lock().remove(&id));
                    let Some(job) = job else { continue };
                    let outcome = match answer.result {
                        Some(send_batch_response::Result::Response(response)) => Ok(response.outcome()),
                        Some(send_batch_response::Result::Error(error)) => {
                            Err(Status::new(Code::from_i32(error.code), error.message))
                        }
                        None => Err(Status::unknown("an answer without a result")),
                    };
                    answers.answered(&job, outcome, live.now_micros());
                    count(1);
                    room.add_permits(1);
                }
                Ok::<_, Status>(())
            };
            let end = end.await;
            // Nobody answers what is yet to be sent.
            room.close();
            end
        };
        let ((), end) = tokio::join!(write, read);
        let status = end.err().unwrap_or_else(|| Status::unknown("not answered"));
        let left: Vec<Numbered> = pending.lock().drain().map(|(_, job)| job).collect();
        for job in left {
            answers.answered(&job, Err(status.clone()), 0);
        }
        self.sent = answers;
    }
}
