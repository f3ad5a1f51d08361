//! The hub: users → devices → sessions, and the only place that orders store → outboxes → events.
//!
//! * [`send`](Hub::send), [`broadcast`](Hub::broadcast), [`close_sessions`](Hub::close_sessions): what services ask for.
//! * [`attach`](Hub::attach), [`detach`](Hub::detach), [`incoming`](Hub::incoming), [`plan_pull`](Hub::plan_pull): what
//!   a connection's task calls.
//! * [`Events`]: what happens, for whoever listens.
//!
//! Delivery state changes only under its log's lock (a user's state, see `user.rs`).

mod admit;
mod alerts;
mod attach;
mod broadcast;
mod close;
pub mod config;
mod devices;
mod drain;
mod durable;
mod ends;
mod events;
mod filter;
mod forward;
mod guests;
mod handle;
mod lane;
mod live;
mod log;
mod mailbox;
mod members;
mod outbox;
mod outgoing;
mod presence;
mod receive;
mod recovery;
mod renew;
mod replay;
mod revoke;
mod rules;
mod send;
mod sessions;
mod shared_log;
mod subscriptions;
mod survey;
mod sweep;
mod talk;
#[cfg(test)]
mod tests;
mod timers;
mod topics;
mod traces;
mod user;
mod users;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

pub use alerts::AlertsConfig;
pub use attach::{AttachError, Ended};
pub use config::{Clients, Drain as DrainConfig, Events as EventsConfig, Presence, TopicRule};
pub use drain::{DrainPlan, DrainRefused, DrainStep, UndrainRefused};
pub use events::{Events, Interest, Read, Reader, Start};
pub use filter::Filter;
pub use handle::{Closing, Counts, Handle, Peer};
pub use live::{Live, View};
pub use mailbox::{DeviceInfo, MailboxError, PendingPage, Purge};
pub use outbox::Wire;
pub use replay::{PageRequest, Pull};
pub use revoke::{RevokeError, Revoked};
pub use rules::{BadRule, Rules};
pub use send::{Begun, CloseFilter, Outcome, SendError, SendOptions, Sent, Wait};
pub use subscriptions::{Changes, TopicRow};
pub use survey::Survey;
pub use sweep::CleanedUp;
pub use users::OnlineUser;

use self::{
    drain::Drain,
    handle::Shared,
    revoke::Revoking,
    sessions::Sessions,
    shared_log::{SharedLog, TopicLogs},
    timers::{Leavers, Wheel},
    topics::{Room, Topics},
    user::User,
    users::Users,
};
use crate::{
    auth::Authenticator,
    clock::Clock,
    lifecycle::Lifecycle,
    limits,
    metrics::{Failure, Gauge, Metrics},
    store::{Overflow, Store, StoreError},
    trace::Tracer,
    types::{Alert, SessionId, UserId},
};

/// What a hub is built from.
pub struct Parts {
    /// The truth.
    pub store: Store,
    /// Who may come in.
    pub authenticator: Arc<Authenticator>,
    /// Time.
    pub clock: Clock,
    /// Counters.
    pub metrics: Metrics,
    /// Records calls, or does not.
    pub tracer: Tracer,
    /// Where tasks live.
    pub life: Lifecycle,
    /// `[events]`.
    pub events: EventsConfig,
    /// What a reload may change.
    pub live: Live,
}

/// The bounds on what is stored.
#[derive(Clone, Copy, Debug)]
pub struct Quotas {
    /// `store.ttl`.
    pub ttl: Duration,
    /// `store.max_ttl`.
    pub max_ttl: Duration,
    /// `store.max_bytes`, for the status page; the store itself keeps it.
    pub max_bytes: u64,
    /// `store.max_pending_per_user`.
    pub pending_per_user: usize,
    /// `store.max_devices_per_user`.
    pub devices_per_user: usize,
    /// `store.device_ttl`.
    pub device_ttl: Duration,
    /// `store.overflow`.
    pub overflow: Overflow,
    /// `store.idempotency_window`.
    pub idempotency_window: Duration,
}

/// See the module's documentation. Cheap to clone.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    store: Store,
    authenticator: ArcSwap<Authenticator>,
    /// Told when it is another.
    keys_changed: watch::Sender<()>,
    life: Lifecycle,
    shared: Arc<Shared>,
    store_epoch: String,
    users: Users,
    guests: Gauge,
    revoking: Revoking,
    sessions: Sessions,
    broadcasts: Arc<SharedLog>,
    topics: Topics,
    topic_logs: TopicLogs,
    tracer: Tracer,
    events: Arc<Events>,
    wheel: Wheel,
    leavers: Leavers<Arc<User>>,
    topic_leavers: Leavers<(Arc<Room>, UserId)>,
    alerts_firing: Mutex<Vec<Alert>>,
    /// One sweep at a time.
    sweeping: tokio::sync::Mutex<()>,
    drain: Drain,
    /// What the descriptors leave for connections; 0: no bound.
    connections_within: AtomicU64,
    /// Told when another configuration is in force.
    reconfigured: Notify,
    surveyed: survey::Surveyed,
    /// Told when a session has left and its events are out.
    left: Notify,
}

/// A user whom someone works with.
struct InUse<'a> {
    users: &'a Users,
    user: Arc<User>,
}

impl std::ops::Deref for InUse<'_> {
    type Target = Arc<User>;

    fn deref(&self) -> &Arc<User> {
        &self.user
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.users.touch(&self.user);
    }
}

impl Hub {
    /// A hub over an open store. [`Hub::start`] sets its clockwork going.
    pub fn new(parts: Parts) -> Self {
        let Parts { store, authenticator, clock, metrics, tracer, life, events, live } = parts;
        if store.lost_commits() > 0 {
            metrics.failure(Failure::StoreDamage);
        }
        let longest = live.shortest_deadline();
        Self(Arc::new(Inner {
            store_epoch: store.epoch().to_string(),
            store,
            authenticator: ArcSwap::new(authenticator),
            keys_changed: watch::Sender::new(()),
            life,
            users: Users::new(),
            guests: Gauge::default(),
            revoking: Revoking::default(),
            sessions: Sessions::new(),
            broadcasts: SharedLog::of_broadcasts(),
            topics: Topics::new(),
            topic_logs: TopicLogs::default(),
            tracer,
            events: Events::new(events.buffer as usize, clock.clone()),
            wheel: Wheel::new(clock.now(), longest),
            leavers: Leavers::default(),
            topic_leavers: Leavers::default(),
            alerts_firing: Mutex::default(),
            sweeping: tokio::sync::Mutex::default(),
            drain: Drain::default(),
            connections_within: AtomicU64::new(0),
            reconfigured: Notify::new(),
            surveyed: survey::Surveyed::default(),
            left: Notify::new(),
            shared: Arc::new(Shared { live: ArcSwap::from_pointee(live), clock, metrics }),
        }))
    }

    /// Starts the tasks that watch deadlines, presence and expiry. They are essential.
    pub fn start(&self) {
        let life = &self.0.life;
        let stop = life.stopping().clone();
        let until_stop = move |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            let stop = stop.clone();
            async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = task => {}
                }
                Ok::<(), std::convert::Infallible>(())
            }
        };
        let hub = self.clone();
        life.spawn_essential("the session timers", until_stop(Box::pin(async move { hub.run_wheel().await })));
        let hub = self.clone();
        life.spawn_essential("presence", until_stop(Box::pin(async move { hub.run_presence().await })));
        let hub = self.clone();
        life.spawn_essential("presence in topics", until_stop(Box::pin(async move { hub.run_topic_presence().await })));
        let hub = self.clone();
        life.spawn_essential("the expiry sweep", until_stop(Box::pin(async move { hub.run_sweep().await })));
        let hub = self.clone();
        life.spawn_essential("the device sweep", until_stop(Box::pin(async move { hub.run_device_sweep().await })));
        let hub = self.clone();
        life.spawn_essential("the rate sampler", until_stop(Box::pin(async move { hub.run_sampler().await })));
        let hub = self.clone();
        life.spawn_essential("the alerts", until_stop(Box::pin(async move { hub.run_alerts().await })));
        let hub = self.clone();
        life.spawn_essential("the store's return", until_stop(Box::pin(async move { hub.run_recovery().await })));
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// What happens.
    pub fn events(&self) -> &Arc<Events> {
        &self.0.events
    }

    /// Counters.
    pub fn metrics(&self) -> &Metrics {
        &self.0.shared.metrics
    }

    /// Time.
    pub fn clock(&self) -> &Clock {
        &self.0.shared.clock
    }

    /// Users with at least one session.
    pub fn users_online(&self) -> u64 {
        self.0.users.online_count() as u64
    }

    /// Authenticated sessions.
    pub fn session_count(&self) -> usize {
        self.0.sessions.len()
    }

    /// Sessions with the lowest ids above `after`, at most `max`, in order.
    pub fn session_page(&self, after: Option<SessionId>, max: usize) -> Vec<Arc<Handle>> {
        self.0.sessions.page(after, max)
    }

    /// The bytes of broadcasts and publications that wait to be handed out.
    pub fn queued_bytes(&self) -> usize {
        self.0.sessions.queued_bytes()
    }

    /// The topics that somebody is in, or was a moment ago.
    pub fn topic_count(&self) -> usize {
        self.0.topics.len()
    }

    /// The sessions of one user, in order of their ids.
    pub fn user_sessions(&self, user: &UserId) -> Vec<Arc<Handle>> {
        let mut sessions = self.0.users.get(user).map(|user| user.state().sessions.clone()).unwrap_or_default();
        sessions.sort_unstable_by_key(|handle| handle.id);
        sessions
    }

    /// The users with a session and an id above `after`, the lowest `max` of them, in order.
    pub fn online_page(&self, after: Option<&UserId>, max: usize) -> Vec<OnlineUser> {
        self.0.users.online(after, max).iter().map(|user| OnlineUser::of(user)).collect()
    }

    /// One session, by id.
    pub fn session(&self, id: SessionId) -> Option<Arc<Handle>> {
        self.0.sessions.get(id)
    }

    /// The next sessions behind `after`, in order, and where to go on, at most `max` looked at; `None` behind the last. A
    /// session of whose beginning the events have told is there, and one of whose end they have told is not.
    pub fn open_sessions(&self, after: Option<SessionId>, max: usize) -> Option<(Vec<Arc<Handle>>, SessionId)> {
        let mut page = self.session_page(after, max);
        let last = page.last()?.id;
        // The list of all still has one for a moment after its end was told.
        page.retain(|handle| handle.user.state().sessions.iter().any(|session| session.id == handle.id));
        Some((page, last))
    }

    /// The user, his state read from the store where it is not in memory, or was read before the store's engine was lost.
    /// Whoever lets go of him notes that he may be idle from then on, however that comes about.
    async fn user(&self, id: &UserId) -> Result<InUse<'_>, StoreError> {
        let user = InUse { users: &self.0.users, user: self.0.users.get_or_insert(id) };
        while self.is_stale(&user.state().log) {
            let _one_at_a_time = user.loading.lock().await;
            if self.is_stale(&user.state().log) {
                self.read_in(&user).await?;
            }
        }
        Ok(user)
    }

    /// Counts a read or write that failed; that the disk is full is counted as such.
    fn store_error(&self, error: &StoreError) {
        if !matches!(error, StoreError::Recovering(_) | StoreError::Closed) {
            self.metrics().failure(Failure::StoreError);
        }
    }

    async fn run_wheel(&self) {
        let mut ticks = tokio::time::interval(timers::TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut done = self.0.wheel.tick_of(self.clock().now());
        loop {
            ticks.tick().await;
            let now = self.0.wheel.tick_of(self.clock().now());
            while done < now {
                done += 1;
                for (index, handle) in self.0.wheel.take(done).enumerate() {
                    self.look_at(&handle);
                    if index % limits::FANOUT_SLICE_SESSIONS == limits::FANOUT_SLICE_SESSIONS - 1 {
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
    }

    async fn run_sampler(&self) {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        loop {
            seconds.tick().await;
            self.metrics().sample(self.clock().now());
        }
    }
}
