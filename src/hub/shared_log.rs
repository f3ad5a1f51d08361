//! Logs that many devices read: the one of durable broadcasts, and one for each durable topic.
//!
//! What joins one is assigned, staged and queued for the fan-out under the log's lock, so that every session is offered it
//! in the order of its offsets. Records stay until their TTL: who has them all is not known without asking every user.
//! Lock order: a user's state, such a log, a session's core, a topic's state.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::{
    Hub,
    admit::entry,
    ends::Why,
    handle::Handle,
    log::{Known, LogState},
    outgoing::Outgoing,
    send::{Outcome, SendError, Sent},
    sessions::Job,
};
use crate::{
    limits,
    metrics::Failure,
    session::Log,
    store::{IndexEntry, LogObserver, Op, StoreError},
    types::{DropReason, LogId, Notification, Offset, SessionId, Topic, UnixMillis},
};

/// A log that many read, in memory.
#[derive(Debug)]
pub struct SharedLog {
    /// Which.
    pub id: LogId,
    /// The same, as sessions know it.
    pub of: Log,
    state: Mutex<SharedState>,
    /// One load at a time.
    loading: tokio::sync::Mutex<()>,
    /// When it was asked for last, in milliseconds since the Unix epoch.
    used: AtomicU64,
}

/// See [`SharedLog`].
#[derive(Debug, Default)]
pub struct SharedState {
    /// The log.
    pub log: LogState,
    /// Sessions that wait for more of it to be readable, each once.
    pub waiting: Vec<Weak<Handle>>,
}

/// Of those that are in memory at the same time no two are of the same log.
impl PartialEq for SharedLog {
    fn eq(&self, other: &Self) -> bool {
        self.of == other.of
    }
}

impl Eq for SharedLog {}

impl SharedLog {
    fn new(id: LogId, of: Log) -> Arc<Self> {
        let (state, loading) = (Mutex::default(), tokio::sync::Mutex::default());
        Arc::new(Self { id, of, state, loading, used: AtomicU64::new(0) })
    }

    /// The log of durable broadcasts.
    pub fn of_broadcasts() -> Arc<Self> {
        Self::new(LogId::Broadcast, Log::Broadcast)
    }

    /// Its state; what the log's lock protects.
    pub fn state(&self) -> MutexGuard<'_, SharedState> {
        self.state.lock()
    }

    fn wake_waiting(&self) {
        let waiting = std::mem::take(&mut self.state.lock().waiting);
        for handle in waiting.iter().filter_map(Weak::upgrade) {
            handle.note_waiting(self.of, false);
            handle.wake();
        }
    }
}

impl LogObserver for SharedLog {
    fn applied(&self, upto: Offset) {
        self.state.lock().log.applied(upto);
        self.wake_waiting();
    }

    fn failed(&self, error: &StoreError) {
        self.state.lock().log.failed(error);
        self.wake_waiting();
    }
}

/// The logs of durable topics that somebody works with, and for a while longer.
#[derive(Debug, Default)]
pub struct TopicLogs(Mutex<Registry>, AtomicU64);

#[derive(Debug, Default)]
struct Registry {
    logs: HashMap<Topic, Arc<SharedLog>>,
    numbers: HashSet<u32>,
    /// The number of the last that was made.
    last: u32,
}

impl Registry {
    /// Numbers begin again some day; those that are in use are left out.
    fn free_number(&self) -> u32 {
        let mut number = self.last.wrapping_add(1);
        while self.numbers.contains(&number) {
            number = number.wrapping_add(1);
        }
        number
    }
}

impl TopicLogs {
    /// A topic's log, which may have to be read first.
    pub fn get(&self, topic: &Topic, now: UnixMillis) -> Arc<SharedLog> {
        let registry = &mut *self.0.lock();
        let log = match registry.logs.get(topic) {
            Some(log) => Arc::clone(log),
            None => {
                registry.last = registry.free_number();
                let log = SharedLog::new(LogId::Topic(topic.clone()), Log::Topic(registry.last));
                registry.numbers.insert(registry.last);
                registry.logs.insert(topic.clone(), Arc::clone(&log));
                log
            }
        };
        log.used.store(now.0, Ordering::Relaxed);
        log
    }

    /// A number for a membership that is about to be made.
    pub fn next_attempt(&self) -> u64 {
        self.1.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<SharedLog>> {
        self.0.lock().logs.values().cloned().collect()
    }

    /// Lets go of those that nobody has, and nobody asked for since then.
    pub fn forget_idle(&self, since: UnixMillis) {
        let registry = &mut *self.0.lock();
        // Whoever else gets one gets it under this lock.
        let idle = |log: &Arc<SharedLog>| {
            Arc::strong_count(log) == 1 && log.used.load(Ordering::Relaxed) < since.0 && log.state().log.is_quiet()
        };
        for (_, log) in registry.logs.extract_if(|_, log| idle(log)) {
            if let Log::Topic(number) = log.of {
                registry.numbers.remove(&number);
            }
        }
    }
}

/// Whom what joins a log is handed to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Audience<'a> {
    /// Every session.
    Everybody,
    /// The sessions in a durable topic, which keeps at most so many records; not that one, from which it came.
    Topic { name: &'a Topic, max_records: usize, except: Option<SessionId> },
}

impl Hub {
    /// Reads a log from the store where that was not done yet, or before the store's engine was lost.
    pub(super) async fn load_shared(&self, shared: &SharedLog) -> Result<(), StoreError> {
        while self.is_stale(&shared.state().log) {
            let _one_at_a_time = shared.loading.lock().await;
            if self.is_stale(&shared.state().log) {
                // Taken first: where the engine is lost during the read, it is stale again.
                let generation = self.0.store.generation();
                let loaded = self.0.store.load_shared(&shared.id).await;
                let mut mailbox = loaded.inspect_err(|error| self.store_error(error))?;
                if let Some(damage) = &mailbox.damaged {
                    self.metrics().failure(Failure::StoreDamage);
                    tracing::error!(log = %shared.id, %damage, "notifications are missing or damaged");
                }
                {
                    let mut state = shared.state();
                    state.log.load_mailbox(&mut mailbox);
                    state.log.generation = generation;
                }
                shared.wake_waiting();
            }
        }
        Ok(())
    }

    /// The broadcast log, read from the store.
    pub(super) async fn broadcasts(&self) -> Result<&Arc<SharedLog>, StoreError> {
        let broadcasts = &self.0.broadcasts;
        self.load_shared(broadcasts).await?;
        Ok(broadcasts)
    }

    /// A durable topic's log, read from the store.
    pub(super) async fn topic_log(&self, topic: &Topic) -> Result<Arc<SharedLog>, StoreError> {
        let log = self.0.topic_logs.get(topic, self.clock().unix_millis());
        self.load_shared(&log).await?;
        Ok(log)
    }

    /// Adds a notification to a log that many read. Returns once it is on disk and was handed to every session of its
    /// audience that is connected now.
    pub(super) async fn append_shared(
        &self,
        shared: &Arc<SharedLog>,
        audience: Audience<'_>,
        notification: Notification,
        own_id: bool,
    ) -> Result<Sent, SendError> {
        let draft = self.draft(&notification, true)?;
        let own = self.own_id(&notification, own_id);
        let notification = Arc::new(notification);
        let log = &shared.id;
        let mut permit = None;
        let (handed, stored, offset, lane) = loop {
            self.load_shared(shared).await?;
            let as_of = shared.state().log.settled_ids;
            let mut on_disk = None;
            if let Some(own) = &own {
                on_disk = self.0.store.remembered(log, &own.id, self.clock().unix_millis()).await?;
            }
            if permit.is_none() && on_disk.is_none() {
                // First the one that may take long: the other is room for the writer.
                let room = self.0.sessions.room_for(draft.message_bytes()).await;
                permit = Some((self.0.store.permit(notification.accounted_bytes()).await?, room));
            }
            let joined = {
                let mut guard = shared.state();
                let state = &mut *guard;
                self.ensure_fresh(&state.log)?;
                match own.as_ref().map_or(Known::Free, |own| state.log.staged_id(&own.id, &own.digest)) {
                    Known::Taken => return Err(SendError::IdTaken),
                    Known::Same { offset, sessions, fate } => (offset, sessions, fate),
                    // A row may be seen before its commit is durable: then it is still among what is staged.
                    Known::Free if let Some((known, own)) = on_disk.as_ref().zip(own.as_ref()) => {
                        self.ensure_durable(&state.log)?;
                        if known.digest != own.digest {
                            return Err(SendError::IdTaken);
                        }
                        (known.offset, known.sessions, None)
                    }
                    Known::Free if own.is_some() && state.log.settled_ids != as_of => continue,
                    Known::Free => {
                        let Some((mut permit, room)) = permit.take() else { continue };
                        if permit.generation() != state.log.generation {
                            return Err(SendError::Store(StoreError::Recovering(
                                "it was opened again meanwhile".into(),
                            )));
                        }
                        let replaced = self.make_shared_room(log, &mut state.log, audience, &notification)?;
                        let offset = self.0.store.assign(&mut permit, state.log.last);
                        state.log.push(entry(&notification, offset, own.is_some()));
                        if let Some(own) = &own {
                            state.log.stage_id(own.id.clone(), offset, own.digest, 0);
                        }
                        let (done, stored) = oneshot::channel();
                        let op = Op::Append {
                            log: log.clone(),
                            offset,
                            notification: Arc::clone(&notification),
                            replaces: replaced.as_ref().map(IndexEntry::place),
                            emptied: state.log.emptied_by(replaced.as_ref()),
                            remember: own.as_ref().map(|own| (own.until, own.digest, 0)),
                            counters: state.log.counters(),
                            permit,
                            observer: Arc::clone(shared) as Arc<dyn LogObserver>,
                            done: Some(done),
                        };
                        self.append(&mut state.log, op).map_err(SendError::Unknown)?;
                        // Before anybody is handed it, so that nobody confirms it before.
                        self.trace_sent(|| log.clone(), offset, std::iter::empty());
                        let outgoing = Outgoing::new(draft, &notification, Some(offset), false, true);
                        let place = Some((shared.of, offset));
                        let (handed, lane) = match audience {
                            Audience::Everybody => {
                                let (job, handed) =
                                    self.0.sessions.job(outgoing, Arc::clone(&notification), None, place, room);
                                job.measure(self.metrics());
                                self.0.sessions.enqueue(job, &self.0.life);
                                (Some(handed), None)
                            }
                            Audience::Topic { name, except, .. } => match self.0.topics.get(name) {
                                Some(topic) => {
                                    let (job, handed) =
                                        Job::to_topic(outgoing, Arc::clone(&notification), None, except, place, room);
                                    job.measure(self.metrics());
                                    let rested = topic.lane.hand(job);
                                    (Some(handed), rested.then_some(topic))
                                }
                                // Whoever comes to it from now on finds it in the log.
                                None => (None, None),
                            },
                        };
                        break (handed, stored, offset, lane);
                    }
                }
            };
            let (offset, sessions, fate) = joined;
            if let Some(fate) = fate {
                self.durable(fate).await?;
            }
            return Ok(repeated(offset, sessions));
        };
        if let Some(topic) = lane {
            // It rested, and runs with no lock held.
            self.run_lane(&topic, |_| true);
        }
        let sessions = match handed {
            Some(handed) => handed.await.unwrap_or_default(),
            None => 0,
        };
        self.durable(stored).await?;
        Ok(Sent { offset: Some(offset), outcome: Outcome::Stored, sessions, duplicate: false })
    }

    async fn durable(&self, stored: oneshot::Receiver<Result<(), StoreError>>) -> Result<(), SendError> {
        let stored = stored.await.unwrap_or(Err(StoreError::Closed));
        self.trace_written(stored.is_ok());
        stored.map_err(|error| {
            self.store_error(&error);
            SendError::Unknown(error)
        })
    }

    /// Takes out what the notification takes the place of; or sees to it that there is room for one more. Of broadcasts none
    /// is lost for want of room; a topic keeps the latest, and the oldest goes.
    fn make_shared_room(
        &self,
        log: &LogId,
        state: &mut LogState,
        audience: Audience<'_>,
        notification: &Notification,
    ) -> Result<Option<IndexEntry>, SendError> {
        if let Some(key) = &notification.collapse_key {
            self.expire_shared(log, state);
            if let Some(replaced) = state.take_collapsed(key) {
                let why = Why::Dropped(DropReason::Superseded);
                self.ended(log, state, std::slice::from_ref(&replaced), why);
                return Ok(Some(replaced));
            }
        }
        let max = match audience {
            Audience::Everybody => limits::BROADCASTS_MAX,
            Audience::Topic { max_records, .. } => max_records,
        };
        if state.index.len() >= max {
            self.expire_shared(log, state);
        }
        let over = (state.index.len() + 1).saturating_sub(max);
        if over == 0 {
            return Ok(None);
        }
        if matches!(audience, Audience::Everybody) {
            return Err(SendError::BroadcastsFull { pending: state.index.len() });
        }
        let mut oldest = state.take_first(over, |_| true);
        if let Some(last) = oldest.last() {
            state.lost = state.lost.max(last.offset);
        }
        self.ended(log, state, &oldest, Why::Dropped(DropReason::TopicFull));
        let replaced = oldest.pop();
        if !oldest.is_empty() {
            // More than one, where the topic kept more until now.
            self.delete(log, state, &oldest, None);
        }
        Ok(replaced)
    }

    /// Deletes what has expired, under the log's lock; how many.
    pub(super) fn expire_shared(&self, log: &LogId, state: &mut LogState) -> usize {
        if self.is_stale(state) {
            return 0;
        }
        let entries = state.take_expired(self.clock().unix_millis());
        self.end_shared(log, state, &entries, Why::Expired);
        entries.len()
    }
}

fn repeated(offset: Offset, sessions: u32) -> Sent {
    Sent { offset: Some(offset), outcome: Outcome::Stored, sessions, duplicate: true }
}
