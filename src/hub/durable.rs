//! Durable topics: what is published to one is kept in a log of its own, and comes to every device that is in it.
//!
//! It is devices that are in them, not sessions: a membership is a row of the device, with its cursor in that log, on disk
//! before anybody is told of it. Its sessions are in the topic for as long as they live. It ends when the client, or a
//! service, says so, or with the device. A member whose token, at a later connection, does not allow it the topic any more
//! is not given it in that session; it stays a member, and lacks nothing once it is allowed again.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{
    Hub,
    attach::AttachError,
    handle::{Core, Handle},
    outbox::Entry,
    rules::{Action, Client},
    send::{Outcome, SendError, Sent},
    shared_log::{Audience, SharedLog},
    subscriptions::{Changes, Entered},
    user::{DeviceState, Member, User, UserState},
};
use crate::{
    auth::Identity,
    limits::{self, Limit},
    store::{MemberRow, Op, StoreError},
    types::{Device, Notification, Offset, SessionId, SubscriptionCause, Topic, UserId},
};

/// What became of a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Joined {
    /// It is new.
    New,
    /// It was there already.
    Already,
    /// The device is in as many as it may be in.
    Full,
    /// The device is not known any more.
    NoDevice,
}

/// Answers when something is on disk.
type Written = oneshot::Receiver<Result<(), StoreError>>;

impl Hub {
    /// Whether what is published to a topic is kept.
    pub fn is_durable(&self, topic: &Topic) -> bool {
        self.0.rules.kept(topic).is_some()
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
        if self.is_draining() {
            return Err(SendError::Draining);
        }
        let Some(kept) = self.0.rules.kept(topic) else {
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
        for topic in identity.topics().iter().filter(|topic| self.is_durable(topic)) {
            match self.join(user, device, topic, SubscriptionCause::Token).await.map_err(AttachError::Store)? {
                Joined::Full => self.metrics().hit(Limit::TopicsPerSession),
                Joined::New | Joined::Already | Joined::NoDevice => {}
            }
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

    /// Whether a membership counts for a session with such a token.
    fn is_heard(&self, member: &Member, client: Client<'_>) -> bool {
        let allowed = member.row.cause != SubscriptionCause::Client
            || self.0.rules.allows(Action::Subscribe, &member.topic, client);
        member.durable && allowed && self.is_durable(&member.topic)
    }

    /// Puts a session that begins into the durable topics of its device, under its user's lock and its own. False: the log of
    /// one is not among `logs`, and has to be read first.
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

    /// Makes a device a member of a durable topic, and that durable.
    pub(super) async fn join(
        &self,
        user: &Arc<User>,
        name: &Device,
        topic: &Topic,
        cause: SubscriptionCause,
    ) -> Result<Joined, StoreError> {
        let log = self.topic_log(topic).await?;
        let written = {
            let mut guard = user.state();
            let state = &mut *guard;
            self.ensure_fresh(&state.log)?;
            let Some(known) = state.devices.iter_mut().find(|known| known.name == *name && known.durable) else {
                return Ok(Joined::NoDevice);
            };
            let full = known.members().len() >= self.limits().topics_per_session.limit();
            let row = match known.member(topic) {
                Some(member) if member.durable => return Ok(Joined::Already),
                // Another call's creation of it is under way: this one waits for a write of its own.
                Some(member) => member.row,
                None if full => return Ok(Joined::Full),
                None => {
                    let shared = log.state();
                    self.ensure_fresh(&shared.log)?;
                    // It begins at the present.
                    MemberRow { cursor: shared.log.last, began: shared.log.last, cause }
                }
            };
            if known.member(topic).is_none() {
                known.members_mut().push(Member { topic: topic.clone(), row, durable: false });
            }
            let (done, written) = oneshot::channel();
            self.put_member(&user.id, known, topic, row, &state.log, Some(done));
            written
        };
        #[cfg(test)]
        if crate::planted::is(crate::planted::Bug::JoinedBeforeDurable) {
            user.state().device(name).and_then(|known| known.member(topic)).unwrap().durable = true;
            return Ok(Joined::New);
        }
        let result = written.await.unwrap_or(Err(StoreError::Closed)).inspect_err(|error| self.store_error(error));
        let mut state = user.state();
        let Some(known) = state.device(name) else { return Ok(Joined::NoDevice) };
        match result {
            Ok(()) => match known.member(topic) {
                Some(member) => {
                    member.durable = true;
                    Ok(Joined::New)
                }
                // It was ended at once.
                None => Ok(Joined::NoDevice),
            },
            Err(error) => {
                known.retain_members(|member| member.topic != *topic || member.durable);
                Err(error)
            }
        }
    }

    fn put_member(
        &self,
        user: &UserId,
        known: &DeviceState,
        topic: &Topic,
        row: MemberRow,
        log: &super::log::LogState,
        done: Option<crate::store::Done>,
    ) {
        let (user, device, topic, hold) = (user.clone(), known.name.clone(), topic.clone(), Arc::clone(&log.hold));
        self.write(log, Op::PutMember { user, device, topic, row, hold, done });
    }

    /// Writes a member's row, lazily: losing it only repeats.
    pub(super) fn put_member_cursor(
        &self,
        user: &User,
        known: &DeviceState,
        topic: &Topic,
        log: &super::log::LogState,
    ) {
        if let Some(member) = known.members().iter().find(|member| member.topic == *topic && member.durable) {
            self.put_member(&user.id, known, topic, member.row, log, None);
        }
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
            let now = self.follow(session, &mut core, log, &member, answer);
            drop(core);
            entered.push((Arc::clone(session), now));
        }
        entered
    }

    /// A client's device is to be in a durable topic. What became of its session there; `None`: its device is gone.
    pub(super) async fn join_for(
        &self,
        handle: &Arc<Handle>,
        topic: &Topic,
        answer: Entry,
    ) -> Result<Option<Entered>, StoreError> {
        match self.join(&handle.user, &handle.device, topic, SubscriptionCause::Client).await? {
            Joined::NoDevice => return Ok(None),
            Joined::Full => return Ok(Some(Entered::SessionFull)),
            Joined::New | Joined::Already => {}
        }
        let log = self.topic_log(topic).await?;
        let entered = self.follow_with(&handle.user, &handle.device, &log, topic, Some((handle, answer)));
        for (session, _) in &entered {
            let _ = self.plan_pull(session);
            session.flush();
            // It has something to pull, or nothing to do.
            session.wake();
        }
        Ok(entered.iter().find(|(session, _)| session.id == handle.id).map(|(_, entered)| *entered))
    }

    /// Ends a membership, under its user's lock, and with it that its sessions are in the topic. `None`: there was none.
    fn part(
        &self,
        user: &User,
        state: &mut UserState,
        name: &Device,
        topic: &Topic,
        cause: SubscriptionCause,
    ) -> Option<Written> {
        let known = state.device(name)?;
        known.member(topic)?;
        known.retain_members(|member| member.topic != *topic);
        let (done, written) = oneshot::channel();
        let op = Op::RemoveMember {
            user: user.id.clone(),
            device: name.clone(),
            topic: topic.clone(),
            hold: Arc::clone(&state.log.hold),
            done: Some(done),
        };
        self.write(&state.log, op);
        for session in state.sessions.iter().filter(|session| session.device == *name) {
            self.leave(session, &mut session.core(), topic, cause);
        }
        Some(written)
    }

    /// The same, and waits until it is on disk. False: there was none.
    pub(super) async fn part_from(
        &self,
        user: &Arc<User>,
        device: &Device,
        topic: &Topic,
        cause: SubscriptionCause,
    ) -> Result<bool, StoreError> {
        let written = {
            let mut guard = user.state();
            let state = &mut *guard;
            self.ensure_fresh(&state.log)?;
            self.part(user, state, device, topic, cause)
        };
        let Some(written) = written else { return Ok(false) };
        written.await.unwrap_or(Err(StoreError::Closed)).inspect_err(|error| self.store_error(error))?;
        Ok(true)
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
        let mut changes = Changes::default();
        for (at, (id, device)) in devices.iter().enumerate() {
            let user = self.user(id).await?;
            if wanted {
                self.join_as_caller(&user, device, topic, &mut changes).await?;
            } else {
                let sessions =
                    user.state().sessions.iter().filter(|one| one.device == *device && one.core().is_in(topic)).count();
                if self.part_from(&user, device, topic, SubscriptionCause::Caller).await? {
                    changes.devices += 1;
                    changes.changed += u32::try_from(sessions).unwrap_or(u32::MAX);
                }
            }
            if at % limits::FANOUT_SLICE_SESSIONS == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(changes)
    }

    async fn join_as_caller(
        &self,
        user: &Arc<User>,
        device: &Device,
        topic: &Topic,
        changes: &mut Changes,
    ) -> Result<(), StoreError> {
        match self.join(user, device, topic, SubscriptionCause::Caller).await? {
            Joined::NoDevice => return Ok(()),
            Joined::Full => {
                self.metrics().hit(Limit::TopicsPerSession);
                changes.refused += 1;
                return Ok(());
            }
            Joined::New | Joined::Already => changes.devices += 1,
        }
        let log = self.topic_log(topic).await?;
        for (session, entered) in self.follow_with(user, device, &log, topic, None) {
            self.count_refused(entered);
            changes.add(entered);
            let _ = self.plan_pull(&session);
            session.flush();
            session.wake();
        }
        Ok(())
    }
}
