//! How sessions come into topics and leave them: because their clients ask, their tokens say so, or services want it.
//!
//! A session's topics stand in its core and its membership in the topic, changed together under both locks (the core
//! first), so that an end of the session finds all of them and nothing is subscribed behind it. Events, and what other
//! members are told, are queued under the topic's lock, so that nobody is told that somebody left who came back.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Hub,
    handle::{Core, Handle},
    outbox::Entry,
    rules::{Action, Client},
    talk::Errand,
    topics::Room,
};
use crate::{
    limits::{self, Limit},
    metrics::Failure,
    protocol::{client::Membership, error_code::ErrorCode, server, topics},
    session::Counts,
    store::StoreError,
    types::{Claims, EventBody, SessionId, SubscriptionCause, Topic, UserId},
};

/// What became of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// It is new.
    New,
    /// It was there already.
    Already,
    /// The session is being closed.
    Closing,
    /// `limits.topics_per_session` is reached.
    SessionFull,
    /// `limits.topic_sessions` is reached.
    TopicFull,
}

/// What became of the subscriptions that a service asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Sessions that are in the topic now, or not any more.
    pub sessions: u32,
    /// Those of them that were not before, or were.
    pub changed: u32,
    /// Sessions that could not be subscribed, over a limit.
    pub refused: u32,
    /// Of a durable topic: devices that are in it now, or not any more.
    pub devices: u32,
}

impl Changes {
    /// One session more.
    pub(super) fn add(&mut self, entered: Entered) {
        match entered {
            Entered::New => (self.sessions, self.changed) = (self.sessions + 1, self.changed + 1),
            Entered::Already => self.sessions += 1,
            Entered::SessionFull | Entered::TopicFull => self.refused += 1,
            Entered::Closing => {}
        }
    }
}

impl Hub {
    /// A client wants to be in a topic.
    pub(super) fn client_subscribes(&self, handle: &Arc<Handle>, of: &Membership, reply_to: Option<&str>) {
        let now = self.clock().unix_millis();
        let answer = topics::membership(true, of, reply_to, now);
        if !self.may_subscribe(handle, &of.topic) {
            return self.forbid(handle, "this client may not subscribe to this topic", reply_to);
        }
        if self.is_durable(&of.topic) {
            return self.queue_errand(handle, Errand::Join(of.clone(), reply_to.map(str::to_owned)));
        }
        let mut core = handle.core();
        let entered = self.enter(handle, &mut core, &of.topic, SubscriptionCause::Client, Some(Entry::message(answer)));
        drop(core);
        self.tell_entered(handle, entered, reply_to);
    }

    /// Tells a client why it is not in a topic, where it is not.
    pub(super) fn tell_entered(&self, handle: &Handle, entered: Entered, reply_to: Option<&str>) {
        let (limit, text) = match entered {
            Entered::New | Entered::Already | Entered::Closing => return,
            Entered::SessionFull => {
                let most = self.limits().topics_per_session.0;
                let text =
                    format!("a session is in at most {most} topics (limits.topics_per_session); leave one first");
                (Limit::TopicsPerSession, text)
            }
            Entered::TopicFull => {
                let most = self.limits().topic_sessions.0;
                let text = format!("this topic has as many sessions as it may have, {most} (limits.topic_sessions)");
                (Limit::TopicSessions, text)
            }
        };
        self.refuse(handle, ErrorCode::LimitReached, &text, reply_to, limit);
    }

    /// A client does not want to be in a topic any more. That it may leave whatever brought it there.
    pub(super) fn client_unsubscribes(&self, handle: &Arc<Handle>, of: &Membership, reply_to: Option<&str>) {
        // A rule that says so no more leaves memberships behind.
        let is_member =
            || handle.user.state().device(&handle.device).is_some_and(|known| known.member(&of.topic).is_some());
        if self.is_durable(&of.topic) || is_member() {
            return self.queue_errand(handle, Errand::Leave(of.clone(), reply_to.map(str::to_owned)));
        }
        let left = self.leave(handle, &mut handle.core(), &of.topic, SubscriptionCause::Client);
        self.tell_left(handle, of, left, reply_to);
    }

    /// Tells a client that it is not in a topic.
    pub(super) fn tell_left(&self, handle: &Handle, of: &Membership, left: bool, reply_to: Option<&str>) {
        if !left && !self.may_subscribe(handle, &of.topic) {
            return self.forbid(handle, "this client is not in this topic, and may not subscribe to it", reply_to);
        }
        handle.reply(topics::membership(false, of, reply_to, self.clock().unix_millis()));
    }

    fn may_subscribe(&self, handle: &Handle, topic: &Topic) -> bool {
        let claims = handle.core().claims();
        self.rules().allows(Action::Subscribe, topic, Client { user: &handle.user.id, claims: &claims })
    }

    /// The topics of its token, but for durable ones: those that it is in from now on.
    pub(super) fn subscribe_by_token(&self, handle: &Arc<Handle>, core: &mut Core, wanted: &[Topic]) -> Vec<Topic> {
        let mut entered = Vec::new();
        for topic in wanted.iter().filter(|topic| !self.is_durable(topic)) {
            let now = self.enter(handle, core, topic, SubscriptionCause::Token, None);
            self.count_refused(now);
            if now == Entered::New {
                entered.push(topic.clone());
            }
        }
        entered
    }

    /// Counts a session that finds no room in a topic.
    pub(super) fn count_refused(&self, entered: Entered) {
        match entered {
            Entered::SessionFull => self.metrics().hit(Limit::TopicsPerSession),
            Entered::TopicFull => self.metrics().hit(Limit::TopicSessions),
            Entered::New | Entered::Already | Entered::Closing => {}
        }
    }

    /// A session has another token: what it may know of others in its topics goes by that.
    pub(super) fn hear_by_token(&self, handle: &Arc<Handle>, core: &Core) {
        let claims = core.claims();
        let client = Client { user: &handle.user.id, claims: &claims };
        for room in core.rooms().iter().filter(|room| room.shows_presence) {
            let hears = self.rules().allows(Action::Presence, &room.name, client);
            room.state().set_hears(handle, hears);
        }
    }

    /// A service wants these sessions in a topic.
    pub async fn subscribe(&self, topic: &Topic, sessions: &[Arc<Handle>]) -> Changes {
        let mut changes = Changes::default();
        for slice in sessions.chunks(limits::FANOUT_SLICE_SESSIONS) {
            for handle in slice {
                let entered = self.enter(handle, &mut handle.core(), topic, SubscriptionCause::Caller, None);
                self.count_refused(entered);
                changes.add(entered);
            }
            tokio::task::yield_now().await;
        }
        changes
    }

    /// A service wants these sessions out of a topic.
    pub async fn unsubscribe(&self, topic: &Topic, sessions: &[Arc<Handle>]) -> Changes {
        let mut changes = Changes::default();
        for slice in sessions.chunks(limits::FANOUT_SLICE_SESSIONS) {
            for handle in slice {
                let left = self.leave(handle, &mut handle.core(), topic, SubscriptionCause::Caller);
                changes.sessions += 1;
                changes.changed += u32::from(left);
            }
            tokio::task::yield_now().await;
        }
        changes
    }

    /// Topics with the lowest names above `after` that begin with `prefix`, at most `max`, in order: those that somebody is
    /// in, and those that something is kept of.
    pub async fn topic_page(
        &self,
        prefix: &str,
        after: Option<&Topic>,
        max: usize,
    ) -> Result<Vec<TopicRow>, StoreError> {
        let kept = self.0.store.topics_after(prefix, after.cloned(), max).await;
        let kept = kept.inspect_err(|error| self.store_error(error))?;
        let rooms = self.0.topics.page(prefix, after, max);
        let mut rows: BTreeMap<Topic, TopicRow> = rooms
            .iter()
            .map(|room| (room.name.clone(), TopicRow { durable: self.is_durable(&room.name), ..TopicRow::of(room) }))
            .collect();
        for (topic, counters) in kept {
            let durable = self.is_durable(&topic);
            let row = rows.entry(topic.clone()).or_insert_with(|| TopicRow::empty(topic));
            (row.durable, row.records, row.bytes) = (durable, counters.count, counters.bytes);
        }
        Ok(rows.into_values().take(max).collect())
    }

    /// One topic, if somebody is in it, or something is kept of it.
    pub async fn topic(&self, name: &Topic) -> Result<Option<TopicRow>, StoreError> {
        let page = self.topic_page(name.as_str(), None, 1).await?;
        Ok(page.into_iter().find(|row| row.name == *name))
    }

    /// The next sessions in a topic behind `after`, at most `max`: by user, then by id.
    pub fn topic_sessions(&self, topic: &Topic, after: Option<&(UserId, SessionId)>, max: usize) -> Vec<Arc<Handle>> {
        self.0.topics.get(topic).map_or_else(Vec::new, |room| room.sessions(after, max))
    }

    /// Subscribes a session whose core is locked; `answer` goes before whatever comes from the topic.
    pub(super) fn enter(
        &self,
        handle: &Arc<Handle>,
        core: &mut Core,
        topic: &Topic,
        cause: SubscriptionCause,
        answer: Option<Entry>,
    ) -> Entered {
        if core.closing.is_some() {
            return Entered::Closing;
        }
        if core.is_in(topic) {
            answer.map(|answer| handle.append(core, answer));
            return Entered::Already;
        }
        if core.rooms().len() >= self.limits().topics_per_session.limit() {
            return Entered::SessionFull;
        }
        let rules = self.rules();
        loop {
            let room = self.0.topics.get_or_insert(topic, || rules.may_show_presence(topic));
            let claims = core.claims();
            let client = Client { user: &handle.user.id, claims: &claims };
            let hears = room.shows_presence && rules.allows(Action::Presence, topic, client);
            let mut state = room.state();
            if state.is_gone() {
                continue;
            }
            if state.sessions() >= self.limits().topic_sessions.limit() {
                return Entered::TopicFull;
            }
            if answer.is_some_and(|answer| !handle.append(core, answer)) {
                // It does not take what waits for it already, and is closed for that.
                drop(state);
                self.0.topics.forget_if_empty(&room);
                return Entered::Closing;
            }
            let came = state.insert(handle, self.clock().unix_millis(), hears);
            let topic = topic.clone();
            let (session, user, device) = (handle.id, handle.user.id.clone(), handle.device.clone());
            self.0.events.emit(EventBody::Subscribed { topic, session, user, device, cause });
            if came && room.shows_presence {
                let claims = self.public_claims(core);
                if !self.tell_of(true, &room, &state, &handle.user.id, &claims, Some(handle.id)) {
                    state.set_untold(handle);
                }
            }
            drop(state);
            core.enter(room);
            return Entered::New;
        }
    }

    /// Takes a session whose core is locked out of a topic. False: it was not in it.
    pub(super) fn leave(&self, handle: &Arc<Handle>, core: &mut Core, topic: &Topic, cause: SubscriptionCause) -> bool {
        let Some(room) = core.take_room(topic) else { return false };
        self.unfollow(handle, core, topic);
        let claims = if room.shows_presence { self.public_claims(core) } else { Claims::default() };
        self.vacate(&room, handle, &claims, cause);
        true
    }

    /// The session ended: it leaves all its topics. With none of its locks held.
    pub(super) fn leave_all(&self, handle: &Arc<Handle>) {
        let (rooms, claims) = {
            let mut core = handle.core();
            let rooms = core.take_rooms();
            let shown = rooms.iter().any(|room| room.shows_presence);
            (rooms, if shown { self.public_claims(&core) } else { Claims::default() })
        };
        for room in rooms {
            self.vacate(&room, handle, &claims, SubscriptionCause::SessionEnded);
        }
    }

    /// The one place where a membership ends. Who left on purpose is gone at once; one whose last session ended is given
    /// `presence.linger` to come back.
    fn vacate(&self, room: &Arc<Room>, handle: &Arc<Handle>, claims: &Claims, cause: SubscriptionCause) {
        let mut state = room.state();
        let Some(left) = state.remove(handle) else { return };
        let topic = room.name.clone();
        let (session, user, device) = (handle.id, handle.user.id.clone(), handle.device.clone());
        self.0.events.emit(EventBody::Unsubscribed { topic, session, user, device, cause });
        if left.last && room.shows_presence {
            let now = self.clock().now();
            if cause == SubscriptionCause::SessionEnded && !self.presence().linger.0.is_zero() {
                state.linger(&handle.user.id, left, now, claims.clone());
                self.0.topic_leavers.push(now, (Arc::clone(room), handle.user.id.clone()));
            } else if !left.untold {
                self.tell_of(false, room, &state, &handle.user.id, claims, None);
            }
        }
        drop(state);
        self.0.topics.forget_if_empty(room);
    }

    /// What others may know of a session's user.
    pub(super) fn public_claims(&self, core: &Core) -> Claims {
        core.claims().only(&self.live().public_claims)
    }

    /// Tells a client that it may not do something.
    pub(super) fn forbid(&self, handle: &Handle, text: &str, reply_to: Option<&str>) {
        self.refuse(handle, ErrorCode::Forbidden, text, reply_to, Failure::Forbidden);
    }

    /// Tells a client that something is not done, and counts it.
    pub(super) fn refuse(
        &self,
        handle: &Handle,
        code: ErrorCode,
        text: &str,
        reply_to: Option<&str>,
        counts: impl Into<Counts>,
    ) {
        counts.into().count(self.metrics());
        handle.reply(server::error(code, text, reply_to));
    }
}

/// A topic, as lists show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicRow {
    /// Its name.
    pub name: Topic,
    /// Sessions in it.
    pub sessions: usize,
    /// Users in it, those among them whose last session ended a moment ago where account is kept of them.
    pub users: usize,
    /// Whether what is published to it is kept.
    pub durable: bool,
    /// What is kept of it.
    pub records: u32,
    /// Its bytes.
    pub bytes: u64,
}

impl TopicRow {
    fn empty(name: Topic) -> Self {
        Self { name, sessions: 0, users: 0, durable: false, records: 0, bytes: 0 }
    }

    fn of(room: &Arc<Room>) -> Self {
        let state = room.state();
        Self { sessions: state.sessions(), users: state.users(), ..Self::empty(room.name.clone()) }
    }
}
