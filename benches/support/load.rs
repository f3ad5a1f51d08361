//! Sessions on a daemon and calls to it, for benchmarks that put a load of their own on one.
#![allow(dead_code, reason = "no benchmark uses all of it")]

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use pushgate::{
    api::proto::Wait,
    stress::{
        fleet::{Fleet, Place, Tally, Target},
        report::Usage,
        sender::{self, Calls, Pace, Sent, Via, Work},
    },
};
use tonic::transport::Channel;

use super::daemon::{At, Error, SECRET};

/// Connections to the admin API.
const CHANNELS: usize = 4;
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long nothing may come before it is given up, and what one waits for at most.
const PATIENCE: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(30);
/// Handshakes under way at once.
const OPENING: usize = 500;
/// How often it is looked what has come.
const LOOK: Duration = Duration::from_millis(1);

/// The daemon's admin API.
pub async fn calls(at: At) -> Result<Calls, Error> {
    let mut channels = Vec::new();
    for _ in 0..CHANNELS {
        channels.push(Channel::from_shared(format!("http://{}", at.grpc))?.connect().await?);
    }
    Ok(Calls::new(channels, None, ANSWER_MAX))
}

/// Where its sessions connect.
pub fn target(at: At) -> Target {
    Target { address: at.http, host: "gateway".into(), path: "/ws".into(), client_acks: false }
}

/// A token of a user.
pub fn token(user: &str) -> Result<String, Error> {
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    Ok(jsonwebtoken::encode(&jsonwebtoken::Header::default(), &serde_json::json!({ "sub": user }), &key)?)
}

/// A session's place.
pub fn place(user: &str, device: Option<String>) -> Result<Place, Error> {
    Ok(Place { token: token(user)?.into(), device })
}

/// Users' names.
pub fn users(name: &str, count: usize) -> Vec<Arc<str>> {
    (0..count).map(|number| format!("{name}-{number}").into()).collect()
}

/// What is sent, and how.
#[derive(Clone, Copy)]
pub struct Load {
    pub via: Via,
    pub wait: Wait,
    pub volatile: bool,
    pub payload: usize,
    pub callers: usize,
    pub pace: Pace,
}

impl Load {
    /// So many for a span, evenly.
    pub fn paced(self, a_second: f64, span: Duration) -> Self {
        let count = (span.as_secs_f64() * a_second).ceil().max(1.0) as u64;
        Self { pace: Pace::Every { interval: Duration::from_secs_f64(1.0 / a_second), count }, ..self }
    }
}

/// What came of it.
pub struct Took {
    pub run: u32,
    pub sent: Sent,
    pub tally: Tally,
    /// Deliveries that should have come and did not.
    pub missing: u64,
    /// What the daemon took for it, in µs of CPU time.
    pub cpu_micros: f64,
    pub seconds: f64,
}

/// Sessions on a daemon.
pub struct Sessions {
    pub calls: Calls,
    pub fleet: Fleet,
}

impl Sessions {
    /// Threads for these sessions; none is connected.
    pub async fn new(at: At, places: Vec<Place>, threads: usize) -> Result<Self, Error> {
        let fleet = Fleet::start(&target(at), places, threads)?;
        Ok(Self { calls: calls(at).await?, fleet })
    }

    /// The same, connected.
    pub async fn connected(at: At, users: &[Arc<str>]) -> Result<Self, Error> {
        let places = users.iter().map(|user| place(user, None)).collect::<Result<_, _>>()?;
        let sessions = Self::new(at, places, 1).await?;
        sessions.connect().await?;
        Ok(sessions)
    }

    /// Connects all of them.
    pub async fn connect(&self) -> Result<(), Error> {
        self.connect_for(self.begin().await).await
    }

    /// Connects all of them, and counts what comes of this run.
    pub async fn connect_for(&self, run: u32) -> Result<(), Error> {
        self.fleet.begin(run, 1);
        self.fleet.connect(OPENING);
        self.until("the sessions", || self.fleet.live().connecting.load(Ordering::Acquire) == 0).await?;
        let (open, places) = (self.fleet.live().open.load(Ordering::Relaxed), self.fleet.places());
        if open < places as u64 {
            let failures = self.fleet.collect().await.tally.failures;
            return Err(format!("{open} of {places} sessions: {failures:?}").into());
        }
        Ok(())
    }

    /// Closes all of them.
    pub async fn leave(&self) -> Result<(), Error> {
        self.fleet.close();
        self.until("the sessions' ends", || self.fleet.live().open.load(Ordering::Acquire) == 0).await
    }

    /// Waits until so many messages have come.
    pub async fn heard(&self, messages: u64) -> Result<(), Error> {
        let live = self.fleet.live();
        self.until("messages", || live.came.load(Ordering::Acquire) >= messages).await
    }

    /// Counts anew; the run that is counted.
    pub async fn begin(&self) -> u32 {
        // Others may use the daemon at the same time.
        let run = uuid::Uuid::new_v4().as_u128() as u32;
        self.fleet.begin(run, 1);
        // So that no thread counts what is sent before it began.
        self.fleet.collect().await;
        run
    }

    /// Waits until it is so, as long as one is patient.
    pub async fn until(&self, what: &str, so: impl Fn() -> bool) -> Result<(), Error> {
        let began = tokio::time::Instant::now();
        while !so() {
            if began.elapsed() > LONGEST {
                return Err(format!("waited in vain for {what}").into());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// What the daemon has taken so far.
    pub async fn usage(&self) -> Result<Usage, Error> {
        Ok(self.calls.status().await?.process.map(Usage::from).unwrap_or_default())
    }

    /// Sends to the users (of a broadcast: to all), each of whom has so many of these sessions, and waits until all came.
    pub async fn send(&self, load: Load, users: &Arc<[Arc<str>]>, sessions: u64) -> Result<Took, Error> {
        let Load { via, wait, volatile, payload, callers, pace } = load;
        let run = self.begin().await;
        let keys = if via == Via::Broadcast { Arc::from([Arc::from("0")]) } else { Arc::clone(users) };
        let (patience, again, over) = (PATIENCE, false, None);
        let work = Work { via, wait, volatile, payload, run, keys, callers, pace, patience, again, over };
        let before = self.usage().await?;
        let live = self.fleet.live();
        let began = live.now_micros();
        let sent = sender::send(&self.calls, &work, live, &|_| {}).await;
        let due = (0..work.keys.len()).map(|key| sent.due(key)).sum::<u64>() * sessions;
        let came = || live.came.load(Ordering::Acquire);
        while came() < due {
            let quiet = live.now_micros().saturating_sub(live.last_micros.load(Ordering::Relaxed));
            if quiet > PATIENCE.as_micros() as u64 {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        let missing = due.saturating_sub(came());
        let seconds = (live.now_micros() - began) as f64 / 1e6;
        let cpu = self.usage().await?.cpu.saturating_sub(before.cpu);
        let tally = self.fleet.collect().await.tally;
        Ok(Took { run, sent, tally, missing, cpu_micros: cpu.as_secs_f64() * 1e6, seconds })
    }
}
