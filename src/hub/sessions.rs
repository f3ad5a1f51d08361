//! All sessions of the node, in shards, in the order of their ids; and the fan-out of a broadcast over them.
//!
//! A broadcast is queued to every shard under one lock, so that no shard sees two of them in another order than the
//! others. Each shard hands out what is queued in that order, in slices with yields: what came while it was at it
//! leaves together, in one write a session. There are as many shards as can run at once: more would only stand in the
//! runtime's queue before everybody else, each with a slice.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{filter::Filter, handle::Handle, outgoing::Outgoing};
use crate::{
    clock::Instant,
    lifecycle::Lifecycle,
    limits,
    session::Log,
    types::{Notification, Offset, SessionId, UserId},
};

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
pub struct Job {
    outgoing: Outgoing,
    notification: Arc<Notification>,
    /// Its place in the broadcast log, where it is durable.
    offset: Option<Offset>,
    /// Whom it leaves out.
    not_for: HashSet<UserId>,
    /// Which sessions it is for, where it is not for all of them.
    filter: Option<Filter>,
    sessions: AtomicU32,
    shards_left: AtomicUsize,
    done: Mutex<Option<oneshot::Sender<u32>>>,
    /// Its share of what may be queued.
    _room: Option<OwnedSemaphorePermit>,
}

impl Job {
    fn leaves_out(&self, handle: &Handle) -> bool {
        (!self.not_for.is_empty() && self.not_for.contains(&handle.user.id))
            || self.filter.as_ref().is_some_and(|filter| !filter.admits(handle))
    }

    /// Whether it is the same bytes for everybody, whatever becomes of other messages.
    fn is_plain(&self) -> bool {
        self.offset.is_none() && self.not_for.is_empty() && self.filter.is_none() && self.outgoing.is_plain()
    }

    fn shard_done(&self) {
        if self.shards_left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(done) = self.done.lock().take()
        {
            // The caller may have gone; the broadcast is out all the same.
            let _ = done.send(self.sessions.load(Ordering::Acquire));
        }
    }
}

/// Broadcasts that leave together, one after the other. What is the same for everybody is put together once, so that a
/// session is handed one piece instead of many.
struct Parcel<'a> {
    jobs: &'a [Arc<Job>],
    /// All of them, where they are plain and more than one, and where each ends.
    together: Option<(Bytes, Arc<[u32]>)>,
    /// How many sessions took each.
    taken: Vec<u32>,
}

impl<'a> Parcel<'a> {
    fn pack(mut rest: &'a [Arc<Job>]) -> Vec<Parcel<'a>> {
        let mut parcels = Vec::new();
        while !rest.is_empty() {
            let (jobs, behind) = rest.split_at(Self::fitting(rest).max(1));
            parcels.push(Parcel { jobs, together: Self::together(jobs), taken: vec![0; jobs.len()] });
            rest = behind;
        }
        parcels
    }

    /// How many of the first may be put together.
    fn fitting(jobs: &[Arc<Job>]) -> usize {
        let mut bytes = 0;
        let fits = |job: &&Arc<Job>| {
            bytes += job.outgoing.bytes();
            job.is_plain() && bytes <= limits::TOGETHER_BYTES_MAX
        };
        jobs.iter().take_while(fits).count()
    }

    fn together(jobs: &[Arc<Job>]) -> Option<(Bytes, Arc<[u32]>)> {
        if jobs.len() < 2 {
            return None;
        }
        let mut bytes = BytesMut::with_capacity(jobs.iter().map(|job| job.outgoing.bytes()).sum());
        let ends = jobs.iter().map(|job| {
            bytes.extend_from_slice(job.outgoing.frame(false));
            u32::try_from(bytes.len()).unwrap_or(u32::MAX)
        });
        let ends = ends.collect();
        Some((bytes.freeze(), ends))
    }

    /// Appends it to a session's outbox; flush that afterwards.
    fn hand_to(&mut self, handle: &Handle, now: Instant) {
        if let Some(taken) = self.together.as_ref().and_then(|(frames, ends)| handle.push_together(frames, ends)) {
            self.taken.iter_mut().for_each(|count| *count += u32::from(taken));
            return;
        }
        for (job, count) in self.jobs.iter().zip(&mut self.taken) {
            let taken = match job.offset {
                _ if job.leaves_out(handle) => false,
                None => handle.push_or_write(&job.outgoing),
                Some(offset) => handle.offer(Log::Broadcast, &job.notification, offset, &job.outgoing, now),
            };
            *count += u32::from(taken);
        }
    }

    /// Writes the only one there is at once, where it is for that session. False: it is one that is appended and flushed.
    fn send_to(&mut self, handle: &Handle) -> bool {
        let [job] = self.jobs else { return false };
        if job.offset.is_some() {
            return false;
        }
        if !job.leaves_out(handle) {
            self.taken[0] += u32::from(handle.send(&job.outgoing));
        }
        true
    }

    fn count(self) {
        for (job, taken) in self.jobs.iter().zip(self.taken) {
            job.sessions.fetch_add(taken, Ordering::Relaxed);
        }
    }
}

impl Sessions {
    /// None yet.
    pub fn new() -> Self {
        let shards = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            shards: (0..shards).map(|_| Arc::default()).collect(),
            order: Mutex::default(),
            room: Arc::new(Semaphore::new(limits::BROADCAST_QUEUE_BYTES_MAX)),
        }
    }

    fn shard(&self, id: SessionId) -> &Shard {
        // The low bits of a UUIDv7 are random.
        &self.shards[(id.as_u128() % self.shards.len() as u128) as usize]
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

    /// Waits for room for a broadcast among those that are queued.
    pub async fn room(&self, outgoing: &Outgoing) -> Option<OwnedSemaphorePermit> {
        self.room_for(outgoing.bytes()).await
    }

    /// The same, of so many bytes.
    pub async fn room_for(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let share = u32::try_from(bytes.min(limits::BROADCAST_QUEUE_BYTES_MAX)).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        Arc::clone(&self.room).acquire_many_owned(share).await.ok()
    }

    /// A broadcast, and to how many sessions it was handed once it is in all their outboxes.
    pub fn job(
        &self,
        outgoing: Outgoing,
        notification: Arc<Notification>,
        filter: Option<Filter>,
        offset: Option<Offset>,
        room: Option<OwnedSemaphorePermit>,
    ) -> (Arc<Job>, oneshot::Receiver<u32>) {
        let (done, handed) = oneshot::channel();
        let job = Job {
            outgoing,
            not_for: notification.not_for.iter().cloned().collect(),
            filter,
            notification,
            offset,
            sessions: AtomicU32::new(0),
            shards_left: AtomicUsize::new(self.shards.len()),
            done: Mutex::new(Some(done)),
            _room: room,
        };
        (Arc::new(job), handed)
    }

    /// Queues a broadcast for every session that is there now. Whoever calls it in an order has it kept.
    pub fn enqueue(&self, job: Arc<Job>, life: &Lifecycle) {
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
}

impl Queue {
    /// Takes out what is handed to each session in one go: all that waits, up to a bound, so that neither a slice's time nor
    /// what is put together grows with the backlog. Where there is nothing the shard rests.
    fn next_pass(&mut self) -> Vec<Arc<Job>> {
        let mut bytes = 0;
        let fits = |job: &&Arc<Job>| {
            bytes += job.outgoing.bytes();
            bytes <= limits::FANOUT_PASS_BYTES_MAX
        };
        let count = self.jobs.iter().take_while(fits).count().max(1);
        self.running = !self.jobs.is_empty();
        self.jobs.drain(..count.min(self.jobs.len())).collect()
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
            let jobs = self.queue.lock().next_pass();
            if jobs.is_empty() {
                return;
            }
            let mut parcels = Parcel::pack(&jobs);
            let mut after = None;
            loop {
                let slice = self.slice(after);
                let Some(last) = slice.last() else { break };
                after = Some(last.id);
                let now = Instant::now();
                let last_slice = slice.len() < limits::FANOUT_SLICE_SESSIONS;
                for handle in slice {
                    if let [only] = &mut parcels[..]
                        && only.send_to(&handle)
                    {
                        continue;
                    }
                    parcels.iter_mut().for_each(|parcel| parcel.hand_to(&handle, now));
                    handle.flush();
                }
                if last_slice {
                    break;
                }
                tokio::task::yield_now().await;
            }
            for parcel in parcels {
                parcel.count();
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
