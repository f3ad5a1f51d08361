//! All sessions of the node, in shards, in the order of their ids; and the fan-out of a broadcast over them, or of what is
//! published over the members of a topic.
//!
//! A broadcast is queued to every shard under one lock, so that no shard sees two of them in another order than the
//! others; each has a [`Lane`]. There are as many shards as can run at once: more would only stand in the runtime's queue
//! before everybody else, each with a slice.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashSet},
    ops::Bound,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    filter::Filter,
    handle::Handle,
    lane::{Audience, Lane, Listener},
    outgoing::Outgoing,
};
use crate::{
    clock::Instant,
    lifecycle::Lifecycle,
    limits,
    metrics::{Class, Metrics},
    protocol::frame::Window,
    session::Log,
    types::{Notification, Offset, SessionId, UserId},
};

/// What a shard gives to a page beyond its share.
const PAGE_SLACK: usize = 16;

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
    lane: Lane,
}

/// One broadcast or publication under way.
#[derive(Debug)]
pub struct Job {
    outgoing: Outgoing,
    notification: Option<Arc<Notification>>,
    /// Its log and its place there, where it is durable.
    place: Option<(Log, Offset)>,
    /// Whom it leaves out.
    not_for: HashSet<UserId>,
    /// Which sessions it is for, where it is not for all of them.
    filter: Option<Filter>,
    /// The session that it came from, which does not get it.
    except: Option<SessionId>,
    /// Whether it is for those alone who are told of who comes and goes.
    presence: bool,
    sessions: AtomicU32,
    lanes_left: AtomicUsize,
    /// Since when it is under way, and where it is counted how long that was.
    measured: OnceLock<(Metrics, Instant)>,
    done: Mutex<Option<oneshot::Sender<u32>>>,
    /// Its share of what may be queued.
    _room: Option<OwnedSemaphorePermit>,
}

impl Job {
    /// What goes through `lanes` lanes, and to how many sessions it was handed once it is in all their outboxes.
    fn new(
        outgoing: Outgoing,
        notification: Option<Arc<Notification>>,
        lanes: usize,
        room: Option<OwnedSemaphorePermit>,
    ) -> (Self, oneshot::Receiver<u32>) {
        let (done, handed) = oneshot::channel();
        let not_for = notification.iter().flat_map(|notification| notification.not_for.iter().cloned()).collect();
        let job = Self {
            outgoing,
            notification,
            place: None,
            not_for,
            filter: None,
            except: None,
            presence: false,
            sessions: AtomicU32::new(0),
            lanes_left: AtomicUsize::new(lanes),
            measured: OnceLock::new(),
            done: Mutex::new(Some(done)),
            _room: room,
        };
        (job, handed)
    }

    /// What is for the members of a topic that pass the filter; not for the session that it comes from.
    pub fn to_topic(
        outgoing: Outgoing,
        notification: Arc<Notification>,
        filter: Option<Filter>,
        except: Option<SessionId>,
        place: Option<(Log, Offset)>,
        room: Option<OwnedSemaphorePermit>,
    ) -> (Arc<Self>, oneshot::Receiver<u32>) {
        let (job, handed) = Self::new(outgoing, Some(notification), 1, room);
        (Arc::new(Self { filter, except, place, ..job }), handed)
    }

    /// Who came to a topic, or left it; not for that session of his.
    pub fn of_presence(outgoing: Outgoing, except: Option<SessionId>) -> Arc<Self> {
        Arc::new(Self { presence: true, except, ..Self::new(outgoing, None, 1, None).0 })
    }

    /// Counts how long it takes from here until it is in every outbox.
    pub fn measure(&self, metrics: &Metrics) {
        let _ = self.measured.set((metrics.clone(), Instant::now()));
    }

    /// Its bytes, in all its forms.
    pub(super) fn bytes(&self) -> usize {
        self.outgoing.bytes()
    }

    /// Those of them that nothing else accounts for.
    pub(super) fn presence_bytes(&self) -> usize {
        if self.presence { self.bytes() } else { 0 }
    }

    fn leaves_out(&self, listener: &Listener) -> bool {
        let handle = &listener.handle;
        (!self.not_for.is_empty() && self.not_for.contains(&handle.user.id))
            || self.except == Some(handle.id)
            || (self.presence && !listener.hears_presence)
            || self.filter.as_ref().is_some_and(|filter| !filter.admits(handle))
    }

    /// Whether it is the same bytes for everybody, whatever becomes of other messages.
    fn is_plain(&self) -> bool {
        let for_all = self.not_for.is_empty() && self.filter.is_none() && self.except.is_none() && !self.presence;
        self.place.is_none() && for_all && self.outgoing.is_plain()
    }

    pub(super) fn lane_done(&self) {
        if self.lanes_left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(done) = self.done.lock().take()
        {
            if let Some((metrics, since)) = self.measured.get() {
                let of_topic = self.notification.as_ref().is_some_and(|notification| notification.topic.is_some());
                let latency = if of_topic { &metrics.publish_latency } else { &metrics.broadcast_latency };
                latency.record_span(since.elapsed());
            }
            // The caller may have gone; the broadcast is out all the same.
            let _ = done.send(self.sessions.load(Ordering::Acquire));
        }
    }
}

/// Frames that were put together, and where each ends.
type Together = (Bytes, Arc<[u32]>);

/// Broadcasts that leave together, one after the other. What is the same for everybody is put together once, so that a
/// session is handed one piece instead of many.
pub(super) struct Parcel<'a> {
    jobs: &'a [Arc<Job>],
    /// All of them, where they are the same for everybody and more than one, and where each ends.
    together: Option<Together>,
    /// The same as it is for those who take compressed messages, once there is one.
    together_deflated: OnceCell<Together>,
    /// How many sessions took each.
    taken: Vec<u32>,
}

impl<'a> Parcel<'a> {
    pub(super) fn pack(mut rest: &'a [Arc<Job>]) -> Vec<Parcel<'a>> {
        let mut parcels = Vec::new();
        while !rest.is_empty() {
            let (jobs, behind) = rest.split_at(Self::fitting(rest).max(1));
            let together = (jobs.len() > 1).then(|| Self::together(jobs, |outgoing| outgoing.frame(false)));
            parcels.push(Parcel { jobs, together, together_deflated: OnceCell::new(), taken: vec![0; jobs.len()] });
            rest = behind;
        }
        parcels
    }

    /// How many of the first may be put together.
    fn fitting(jobs: &[Arc<Job>]) -> usize {
        let mut bytes = 0;
        let fits = |job: &&Arc<Job>| {
            bytes += job.bytes();
            job.is_plain() && bytes <= limits::TOGETHER_BYTES_MAX
        };
        jobs.iter().take_while(fits).count()
    }

    fn together(jobs: &[Arc<Job>], form: impl Fn(&Outgoing) -> &Bytes) -> Together {
        let mut bytes = BytesMut::with_capacity(jobs.iter().map(|job| job.bytes()).sum());
        let ends = jobs.iter().map(|job| {
            bytes.extend_from_slice(form(&job.outgoing));
            u32::try_from(bytes.len()).unwrap_or(u32::MAX)
        });
        let ends = ends.collect();
        (bytes.freeze(), ends)
    }

    /// All of them in the form that a session takes. `None`: each is to be handed to it alone.
    fn together_for(&self, window: Option<Window>) -> Option<&Together> {
        let plain = self.together.as_ref()?;
        match window {
            None => Some(plain),
            Some(Window::LARGEST) => {
                Some(self.together_deflated.get_or_init(|| Self::together(self.jobs, Outgoing::deflated)))
            }
            Some(_) => None,
        }
    }

    /// Appends it to a session's outbox; flush that afterwards.
    pub(super) fn hand_to(&mut self, listener: &Listener, now: Instant) {
        let handle = &listener.handle;
        let together = self.together_for(handle.window);
        // What is put together is of one lane, and so of one class.
        let class = self.jobs.first().map_or(Class::System, |job| job.outgoing.class());
        if let Some(taken) = together.and_then(|together| handle.push_together(together, class)) {
            self.taken.iter_mut().for_each(|count| *count += u32::from(taken));
            return;
        }
        for (job, count) in self.jobs.iter().zip(&mut self.taken) {
            let taken = match job.place.zip(job.notification.as_ref()) {
                Some(((log, offset), _)) if job.except == Some(handle.id) => {
                    handle.pass(log, offset);
                    false
                }
                _ if job.leaves_out(listener) => false,
                None => handle.push_or_write(&job.outgoing),
                Some(((log, offset), notification)) => handle.offer(log, notification, offset, &job.outgoing, now),
            };
            *count += u32::from(taken);
        }
    }

    /// Writes the only one there is at once, where it is for that session. False: it is one that is appended and flushed.
    pub(super) fn send_to(&mut self, listener: &Listener) -> bool {
        let [job] = self.jobs else { return false };
        if job.place.is_some() {
            return false;
        }
        if !job.leaves_out(listener) {
            self.taken[0] += u32::from(listener.handle.send(&job.outgoing));
        }
        true
    }

    pub(super) fn count(self) {
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
        // Each shard has its share of them, since the low bits of ids are random; a little more, so that few are left for
        // another round.
        let share = (max / self.shards.len()).saturating_add(PAGE_SLACK).min(max);
        let (mut page, mut after) = (Vec::new(), after);
        while page.len() < max {
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            let (begun, mut upto) = (page.len(), None);
            for shard in &self.shards {
                let sessions = shard.sessions.lock();
                let before = page.len();
                page.extend(sessions.range((from, Bound::Unbounded)).take(share).map(|(_, handle)| Arc::clone(handle)));
                // Where a shard may have more, those of others behind them come later.
                let last = page.last().filter(|_| page.len() - before == share).map(|handle: &Arc<Handle>| handle.id);
                upto = [upto, last].into_iter().flatten().min();
            }
            page[begun..].sort_unstable_by_key(|handle| handle.id);
            let Some(upto) = upto else { break };
            page.truncate(page.partition_point(|handle| handle.id <= upto));
            after = Some(upto);
        }
        page.truncate(max);
        page
    }

    /// The bytes of broadcasts and publications that wait to be handed out.
    pub fn queued_bytes(&self) -> usize {
        limits::BROADCAST_QUEUE_BYTES_MAX.saturating_sub(self.room.available_permits())
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

    /// The same, of those who do not wait. `None`: there is none now.
    pub fn room_now(&self, outgoing: &Outgoing) -> Option<OwnedSemaphorePermit> {
        let share = u32::try_from(outgoing.bytes().min(limits::BROADCAST_QUEUE_BYTES_MAX)).unwrap_or(u32::MAX);
        Arc::clone(&self.room).try_acquire_many_owned(share).ok()
    }

    /// A broadcast, and to how many sessions it was handed once it is in all their outboxes.
    pub fn job(
        &self,
        outgoing: Outgoing,
        notification: Arc<Notification>,
        filter: Option<Filter>,
        place: Option<(Log, Offset)>,
        room: Option<OwnedSemaphorePermit>,
    ) -> (Arc<Job>, oneshot::Receiver<u32>) {
        let (job, handed) = Job::new(outgoing, Some(notification), self.shards.len(), room);
        (Arc::new(Job { filter, place, ..job }), handed)
    }

    /// Queues a broadcast for every session that is there now. Whoever calls it in an order has it kept.
    pub fn enqueue(&self, job: Arc<Job>, life: &Lifecycle) {
        let _order = self.order.lock();
        for shard in &self.shards {
            if shard.lane.hand(Arc::clone(&job)) {
                let shard = Arc::clone(shard);
                life.spawn(async move { shard.lane.run(&*shard).await });
            }
        }
    }
}

impl Audience for Shard {
    fn slice(&self, after: Option<&Listener>) -> Vec<Listener> {
        let from = after.map_or(Bound::Unbounded, |last| Bound::Excluded(last.handle.id));
        let sessions = self.sessions.lock();
        let rest = sessions.range((from, Bound::Unbounded));
        let listener = |handle| Listener { handle: Arc::clone(handle), hears_presence: false };
        rest.take(limits::FANOUT_SLICE_SESSIONS).map(|(_, handle)| listener(handle)).collect()
    }
}
