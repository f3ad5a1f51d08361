//! All sessions of the node, in shards, in the order of their ids; and the fan-out of a broadcast over them.
//!
//! A broadcast is queued to every shard under one lock, so that no shard sees two of them in another order than the
//! others. Each shard hands out what is queued in that order, in slices with yields: what came while it was at it
//! leaves together, in one write a session.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::handle::{Handle, Outgoing};
use crate::{lifecycle::Lifecycle, limits, types::SessionId};

const SHARDS: usize = 16;

/// All sessions.
#[derive(Debug)]
pub struct Sessions {
    shards: Box<[Arc<Shard>]>,
    order: Mutex<()>,
    /// Room for queued broadcasts, in bytes; further ones wait for it, in their order.
    room: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Shard {
    sessions: Mutex<BTreeMap<SessionId, Arc<Handle>>>,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Arc<Job>>,
    running: bool,
}

/// One broadcast under way.
#[derive(Debug)]
struct Job {
    outgoing: Outgoing,
    sessions: AtomicU32,
    shards_left: AtomicUsize,
    done: Mutex<Option<oneshot::Sender<u32>>>,
    /// Its share of what may be queued.
    _room: OwnedSemaphorePermit,
}

impl Job {
    fn shard_done(&self) {
        if self.shards_left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(done) = self.done.lock().take()
        {
            // The caller may have gone; the broadcast is out all the same.
            let _ = done.send(self.sessions.load(Ordering::Acquire));
        }
    }
}

impl Sessions {
    /// None yet.
    pub fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Arc::default()).collect(),
            order: Mutex::default(),
            room: Arc::new(Semaphore::new(limits::BROADCAST_QUEUE_BYTES_MAX)),
        }
    }

    fn shard(&self, id: SessionId) -> &Shard {
        // The low bits of a UUIDv7 are random.
        &self.shards[(id.as_u128() % SHARDS as u128) as usize]
    }

    /// Adds a session.
    pub fn insert(&self, handle: &Arc<Handle>) {
        self.shard(handle.id).sessions.lock().insert(handle.id, Arc::clone(handle));
    }

    /// Removes a session; false where it was not there.
    pub fn remove(&self, id: SessionId) -> bool {
        self.shard(id).sessions.lock().remove(&id).is_some()
    }

    /// A session, by id.
    pub fn get(&self, id: SessionId) -> Option<Arc<Handle>> {
        self.shard(id).sessions.lock().get(&id).cloned()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.sessions.lock().len()).sum()
    }

    /// The sessions with the lowest ids above `after`, at most `max`, in order.
    pub fn page(&self, after: Option<SessionId>, max: usize) -> Vec<Arc<Handle>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut page = Vec::new();
        for shard in &self.shards {
            page.extend(
                shard.sessions.lock().range((from, Bound::Unbounded)).take(max).map(|(_, handle)| Arc::clone(handle)),
            );
        }
        page.sort_unstable_by_key(|handle| handle.id);
        page.truncate(max);
        page
    }

    /// Hands `outgoing` to every session. Returns to how many, once it is in all their outboxes.
    pub async fn broadcast(&self, outgoing: Outgoing, life: &Lifecycle) -> u32 {
        let bytes = outgoing.bytes().min(limits::BROADCAST_QUEUE_BYTES_MAX);
        let share = u32::try_from(bytes).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(share).await else { return 0 };
        let (done, handed) = oneshot::channel();
        let job = Arc::new(Job {
            outgoing,
            sessions: AtomicU32::new(0),
            shards_left: AtomicUsize::new(SHARDS),
            done: Mutex::new(Some(done)),
            _room: room,
        });
        {
            let _order = self.order.lock();
            for shard in &self.shards {
                let mut queue = shard.queue.lock();
                queue.jobs.push_back(Arc::clone(&job));
                if !std::mem::replace(&mut queue.running, true) {
                    let shard = Arc::clone(shard);
                    life.spawn(async move { shard.run().await });
                }
            }
        }
        handed.await.unwrap_or_default()
    }
}

/// Lets the next broadcast start the shard again, should serving this one panic.
struct Running<'a>(&'a Shard);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.queue.lock().running = false;
        }
    }
}

impl Shard {
    async fn run(&self) {
        let _running = Running(self);
        loop {
            let jobs = {
                let mut queue = self.queue.lock();
                if queue.jobs.is_empty() {
                    queue.running = false;
                    return;
                }
                std::mem::take(&mut queue.jobs)
            };
            let mut after = None;
            loop {
                let slice = self.slice(after);
                let Some(last) = slice.last() else { break };
                after = Some(last.id);
                let last_slice = slice.len() < limits::FANOUT_SLICE_SESSIONS;
                for handle in slice {
                    for job in &jobs {
                        if handle.push(&job.outgoing) {
                            job.sessions.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    handle.flush();
                }
                if last_slice {
                    break;
                }
                tokio::task::yield_now().await;
            }
            for job in jobs {
                job.shard_done();
            }
            tokio::task::yield_now().await;
        }
    }

    fn slice(&self, after: Option<SessionId>) -> Vec<Arc<Handle>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let sessions = self.sessions.lock();
        let rest = sessions.range((from, Bound::Unbounded));
        rest.take(limits::FANOUT_SLICE_SESSIONS).map(|(_, handle)| Arc::clone(handle)).collect()
    }
}
