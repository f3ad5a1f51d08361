//! Durable topics: what is published to one is kept in a log of its own, and comes to every device that is in it.
//!
//! It is devices that are in them, not sessions: a membership is a row of the device, with its cursor in that log, on disk
//! before anybody is told of it. Its sessions are in the topic for as long as they live. It ends when the client, or a
//! service, says so, or with the device. A member whose token, at a later connection, does not allow it the topic any more
//! is not given it in that session; it stays a member, and lacks nothing once it is allowed again.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};

use super::{
    Hub,
    attach::AttachError,
    handle::{Core, Handle},
    members::Joined,
    outbox::Entry,
    rules::{Action, Client},
    send::{Outcome, SendError, Sent},
    shared_log::{Audience, SharedLog},
    subscriptions::{Changes, Entered},
    user::{DeviceState, Member, User},
};
use crate::{
    auth::Identity,
    limits::Limit,
    store::StoreError,
    types::{Device, Notification, Offset, SessionId, SubscriptionCause, Topic, UserId},
};

/// Memberships that one call changes at the same time, so that they share commits.
const JOINS_AT_ONCE: usize = 64;

impl Hub {
    /// Whether what is published to a topic is kept.
    pub fn is_durable(&self, topic: &Topic) -> bool {
        self.rules().kept(topic).is_some()
    }

    /// Publishes to a durable topic: to the sessions in it, that one left out, and for the devices that are away. Returns once
    /// it is on disk and was handed to the sessions.
    pub(super) async fn publish_durably(
        &self,
        topic: &Topic,
        mut notification: Notification,
        own_id: bool,
        except: Option<SessionId>,
    ) -> Result<Sent, SendError> {
        if self.refuses_all() {
            return Err(SendError::Draining);
        }
        let rules = self.rules();
        let Some(kept) = rules.kept(topic) else {
            return Ok(Sent { offset: None, outcome: Outcome::Dropped, sessions: 0, duplicate: false });
        };
        let ttl = kept.ttl.unwrap_or(self.quotas().ttl);
        notification.expires_at.get_or_insert(notification.accepted_at.saturating_add(ttl));
        notification.topic = Some(topic.clone());
        let log = self.0.topic_logs.get(topic, self.clock().unix_millis());
        let audience = Audience::Topic { name: topic, max_records: kept.max_records, except };
        self.append_shared(&log, audience, notification, own_id).await
    }

    /// Moves a device, and its session, past what that session itself published, where nothing else of the topic is before
    /// that: who said it need not be told when he comes back.
    pub(super) fn pass_own(&self, handle: &Arc<Handle>, topic: &Topic, offset: Offset) {
        let log = self.0.topic_logs.get(topic, self.clock().unix_millis());
        let mut guard = handle.user.state();
        let state = &mut *guard;
        let shared = log.state();
        let is_next = |from: Offset| shared.log.first_above(from).is_some_and(|first| first.offset == offset);
        let mut core = handle.core();
        if is_next(core.session.delivery.position(log.of)) {
            core.session.delivery.advance(log.of, offset);
        }
        drop(core);
        let Some(known) = state.devices.iter_mut().find(|known| known.name == handle.device) else { return };
        let Some(member) = known.member(topic).filter(|member| is_next(member.row.cursor)) else { return };
        member.row.cursor = offset;
        self.put_member_cursor(&handle.user, known, topic, &state.log);
    }

    /// The durable topics that a device is in, and those its token names: on disk, and their logs read.
    pub(super) async fn ensure_members(
        &self,
        user: &Arc<User>,
        device: &Device,
        identity: &Identity,
    ) -> Result<Vec<Arc<SharedLog>>, AttachError> {
        let named: Vec<Topic> = identity.topics().iter().filter(|topic| self.is_durable(topic)).cloned().collect();
        if !named.is_empty() {
            // What few sessions need, in a box of its own.
            Box::pin(self.join_named(user, device, named)).await.map_err(AttachError::Store)?;
        }
        let client = Client { user: identity.user(), claims: identity.claims() };
        let topics: Vec<Topic> = {
            let mut state = user.state();
            let members = state.device(device).map_or(&[][..], |known| known.members());
            members.iter().filter(|member| self.is_heard(member, client)).map(|member| member.topic.clone()).collect()
        };
        let mut logs = Vec::with_capacity(topics.len());
        for topic in &topics {
            logs.push(self.topic_log(topic).await.map_err(AttachError::Store)?);
        }
        Ok(logs)
    }

    /// Has a device in the durable topics that its token names, and its other sessions as well.
    async fn join_named(&self, user: &Arc<User>, device: &Device, named: Vec<Topic>) -> Result<(), StoreError> {
        // Together: each waits for a commit.
        let joined: Vec<_> = stream::iter(named)
            .map(async move |topic| {
                let joined = self.join(user, device, &topic, SubscriptionCause::Token).await?;
                match joined {
                    Joined::Already => Ok(()),
                    new => self.follow_as_joined(user, device, &topic, new).await,
                }
            })
            .buffer_unordered(JOINS_AT_ONCE)
            .collect()
            .await;
        joined.into_iter().collect()
    }

    /// Whether a membership counts for a session with such a token.
    fn is_heard(&self, member: &Member, client: Client<'_>) -> bool {
        let allowed = member.row.cause != SubscriptionCause::Client
            || self.rules().allows(Action::Subscribe, &member.topic, client);
        member.durable && allowed && self.is_durable(&member.topic)
    }

    /// Puts a session that begins into the durable topics of its device, under its user's lock and its own; into which. Their
    /// logs are `logs`.
    pub(super) fn follow_all(
        &self,
        handle: &Arc<Handle>,
        core: &mut Core,
        known: &DeviceState,
        logs: &[Arc<SharedLog>],
    ) -> Vec<Topic> {
        let claims = core.claims();
        let client = Client { user: &handle.user.id, claims: &claims };
        let mut entered = Vec::new();
        for member in known.members().iter().filter(|member| self.is_heard(member, client)) {
            let Some(log) = logs.iter().find(|log| log.id.topic() == Some(&member.topic)) else { continue };
            let now = self.follow(handle, core, log, member, None);
            self.count_refused(now);
            if now == Entered::New {
                entered.push(member.topic.clone());
            }
        }
        entered
    }

    /// Whether the logs of all that a device is in are among these.
    pub(super) fn knows_all(&self, known: &DeviceState, identity: &Identity, logs: &[Arc<SharedLog>]) -> bool {
        let client = Client { user: identity.user(), claims: identity.claims() };
        let mut members = known.members().iter().filter(|member| self.is_heard(member, client));
        members.all(|member| logs.iter().any(|log| log.id.topic() == Some(&member.topic)))
    }

    /// Puts one session of a member into its topic; `answer` goes before whatever comes from it.
    fn follow(
        &self,
        handle: &Arc<Handle>,
        core: &mut Core,
        log: &Arc<SharedLog>,
        member: &Member,
        answer: Option<Entry>,
    ) -> Entered {
        let entered = self.enter(handle, core, &member.topic, member.row.cause, answer);
        if entered == Entered::New {
            core.follow(log, member.row.cursor);
            handle.note_flow(log.of, &core.session.delivery);
        }
        entered
    }

    /// Puts the sessions of a member that are not in its topic into it; `asker` with its answer.
    fn follow_with(
        &self,
        user: &User,
        name: &Device,
        log: &Arc<SharedLog>,
        topic: &Topic,
        mut asker: Option<(&Arc<Handle>, Entry)>,
    ) -> Vec<(Arc<Handle>, Entered)> {
        let mut state = user.state();
        let Some(member) = state.device(name).and_then(|known| known.member(topic)).map(|member| member.clone()) else {
            return Vec::new();
        };
        let mut entered = Vec::new();
        for session in state.sessions.iter().filter(|session| session.device == *name) {
            let answer = asker.take_if(|(asker, _)| asker.id == session.id).map(|(_, answer)| answer);
            let mut core = session.core();
            let claims = core.claims();
            // Each by its own token: another of the device's may not be allowed it.
            if !self.is_heard(&member, Client { user: &user.id, claims: &claims }) {
                continue;
            }
            let now = self.follow(session, &mut core, log, &member, answer);
            drop(core);
            entered.push((Arc::clone(session), now));
        }
        drop(state);
        for (session, _) in &entered {
            let _ = self.plan_pull(session);
            session.flush();
            // It has something to pull, or nothing to do.
            session.wake();
        }
        entered
    }

    /// A client's device is to be in a durable topic. What became of its session there; `None`: the session is closing, or was
    /// taken out of it meanwhile.
    pub(super) async fn join_for(
        &self,
        handle: &Arc<Handle>,
        topic: &Topic,
        answer: Entry,
    ) -> Result<Option<Entered>, StoreError> {
        let joined = self.join(&handle.user, &handle.device, topic, SubscriptionCause::Client).await?;
        match joined {
            Joined::Gone => return Ok(None),
            Joined::Full => return Ok(Some(Entered::SessionFull)),
            Joined::New | Joined::Already => {}
        }
        let log = self.topic_log(topic).await?;
        let entered = self.follow_with(&handle.user, &handle.device, &log, topic, Some((handle, answer)));
        let its = entered.iter().find(|(session, _)| session.id == handle.id).map(|(_, entered)| *entered);
        if joined == Joined::New && matches!(its, Some(Entered::SessionFull | Entered::TopicFull)) {
            // Who is refused is no member.
            self.part_from(&handle.user, &handle.device, topic, SubscriptionCause::Client).await?;
        }
        Ok(its)
    }

    /// A new token has the device of an open session in a durable topic.
    pub(super) async fn join_by_token(&self, handle: &Arc<Handle>, topic: &Topic) -> Result<(), StoreError> {
        let joined = self.join(&handle.user, &handle.device, topic, SubscriptionCause::Token).await?;
        self.follow_as_joined(&handle.user, &handle.device, topic, joined).await
    }

    /// Puts the sessions of a device that others had join a topic into it.
    async fn follow_as_joined(
        &self,
        user: &User,
        device: &Device,
        topic: &Topic,
        joined: Joined,
    ) -> Result<(), StoreError> {
        match joined {
            Joined::Full => self.metrics().hit(Limit::TopicsPerSession),
            Joined::Gone => {}
            Joined::New | Joined::Already => {
                let log = self.topic_log(topic).await?;
                for (_, entered) in self.follow_with(user, device, &log, topic, None) {
                    self.count_refused(entered);
                }
            }
        }
        Ok(())
    }

    /// A session is in a durable topic no more, or ends: its place there goes.
    pub(super) fn unfollow(&self, handle: &Handle, core: &mut Core, topic: &Topic) {
        if let Some(log) = core.unfollow(topic) {
            handle.note_flow(log, &core.session.delivery);
        }
    }

    /// A service wants devices in a durable topic, or out of it: those of these sessions, and all known ones of these users.
    pub async fn change_members(
        &self,
        topic: &Topic,
        users: &[UserId],
        sessions: &[Arc<Handle>],
        wanted: bool,
    ) -> Result<Changes, StoreError> {
        let mut devices: Vec<(UserId, Device)> = Vec::new();
        for id in users {
            let user = self.user(id).await?;
            let state = user.state();
            let known = state.devices.iter().filter(|known| known.durable);
            devices.extend(known.map(|known| (id.clone(), known.name.clone())));
        }
        devices.extend(sessions.iter().map(|session| (session.user.id.clone(), session.device.clone())));
        devices.sort_unstable();
        devices.dedup();
        let all: Vec<_> = stream::iter(devices)
            .map(async |(id, device)| {
                let user = self.user(&id).await?;
                if wanted {
                    return self.join_as_caller(&user, &device, topic).await;
                }
                let of_device = |session: &&Arc<Handle>| session.device == device && session.core().is_in(topic);
                let sessions = user.state().sessions.iter().filter(of_device).count();
                let mut changes = Changes::default();
                if self.part_from(&user, &device, topic, SubscriptionCause::Caller).await? {
                    changes.devices = 1;
                    changes.changed = u32::try_from(sessions).unwrap_or(u32::MAX);
                }
                Ok::<_, StoreError>(changes)
            })
            // Together: each waits for a commit.
            .buffer_unordered(JOINS_AT_ONCE)
            .collect()
            .await;
        let mut changes = Changes::default();
        for one in all {
            let Changes { sessions, changed, refused, devices } = one?;
            changes.sessions += sessions;
            changes.changed += changed;
            changes.refused += refused;
            changes.devices += devices;
        }
        Ok(changes)
    }

    async fn join_as_caller(&self, user: &Arc<User>, device: &Device, topic: &Topic) -> Result<Changes, StoreError> {
        let mut changes = Changes::default();
        match self.join(user, device, topic, SubscriptionCause::Caller).await? {
            Joined::Gone => return Ok(changes),
            Joined::Full => {
                self.metrics().hit(Limit::TopicsPerSession);
                changes.refused = 1;
                return Ok(changes);
            }
            Joined::New | Joined::Already => changes.devices = 1,
        }
        let log = self.topic_log(topic).await?;
        for (_, entered) in self.follow_with(user, device, &log, topic, None) {
            self.count_refused(entered);
            changes.add(entered);
        }
        Ok(changes)
    }
}
