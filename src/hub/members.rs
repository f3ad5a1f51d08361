//! Memberships of devices in durable topics: how one is made and ended, on disk and in memory alike.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{
    Hub,
    log::LogState,
    user::{DeviceState, Member, User},
};
use crate::{
    store::{Done, MemberRow, Op, StoreError},
    types::{Device, SubscriptionCause, Topic, UserId},
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
    /// The device is not known any more, or was taken out of it meanwhile.
    Gone,
}

/// Answers when something is on disk.
type Written = oneshot::Receiver<Result<(), StoreError>>;

impl Hub {
    /// Makes a device a member of a durable topic, and that durable. Whoever stops waiting for it changes nothing of it.
    pub(super) async fn join(
        &self,
        user: &Arc<User>,
        name: &Device,
        topic: &Topic,
        cause: SubscriptionCause,
    ) -> Result<Joined, StoreError> {
        let log = self.topic_log(topic).await?;
        let (attempt, written) = {
            let mut guard = user.state();
            let state = &mut *guard;
            self.ensure_fresh(&state.log)?;
            let Some(known) = state.devices.iter_mut().find(|known| known.name == *name && known.durable) else {
                return Ok(Joined::Gone);
            };
            let in_topics = known.members().iter().filter(|member| self.is_durable(&member.topic)).count();
            let (row, attempt) = match known.member(topic) {
                Some(member) if member.durable => {
                    // What others want of it holds without the client's own right.
                    if member.row.cause == SubscriptionCause::Client && cause != SubscriptionCause::Client {
                        member.row.cause = cause;
                        self.put_member_cursor(user, known, topic, &state.log);
                        // Sessions that were not allowed it hear it from now on.
                        return Ok(Joined::New);
                    }
                    return Ok(Joined::Already);
                }
                // Another call's creation of it is under way: this one waits for a write of its own.
                Some(member) => (member.row, member.attempt),
                None if in_topics >= self.limits().topics_per_session.limit() => return Ok(Joined::Full),
                None => {
                    let shared = log.state();
                    self.ensure_fresh(&shared.log)?;
                    // It begins at the present.
                    let row = MemberRow { cursor: shared.log.last, began: shared.log.last, cause };
                    let attempt = self.0.topic_logs.next_attempt();
                    known.members_mut().push(Member { topic: topic.clone(), row, durable: false, attempt });
                    (row, attempt)
                }
            };
            let (done, written) = oneshot::channel();
            self.put_member(&user.id, known, topic, row, &state.log, Some(done));
            (attempt, written)
        };
        #[cfg(test)]
        if crate::planted::is(crate::planted::Bug::JoinedBeforeDurable) {
            user.state().device(name).and_then(|known| known.member(topic)).unwrap().durable = true;
            return Ok(Joined::New);
        }
        let (hub, user, name, topic) = (self.clone(), Arc::clone(user), name.clone(), topic.clone());
        let joined = async move { hub.joined(&user, &name, &topic, attempt, written).await };
        self.carried_out(joined).await
    }

    /// A membership is on disk, or is not.
    async fn joined(
        &self,
        user: &User,
        name: &Device,
        topic: &Topic,
        attempt: u64,
        written: Written,
    ) -> Result<Joined, StoreError> {
        let result = written.await.unwrap_or(Err(StoreError::Closed)).inspect_err(|error| self.store_error(error));
        let mut state = user.state();
        // What came in its place meanwhile is somebody else's.
        let known = state.device(name).filter(|known| known.members().iter().any(|member| member.attempt == attempt));
        let Some(known) = known else { return result.map(|()| Joined::Gone) };
        match result {
            Ok(()) => {
                known.member(topic).into_iter().for_each(|member| member.durable = true);
                Ok(Joined::New)
            }
            Err(error) => {
                known.retain_members(|member| member.attempt != attempt || member.durable);
                Err(error)
            }
        }
    }

    /// Has it carried out to its end, also where nobody waits for that any more: what is written and what is in memory are
    /// to be the same.
    async fn carried_out<T: Send + 'static>(
        &self,
        what: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (done, told) = oneshot::channel();
        self.0.life.spawn(async move {
            // Whoever asked may have gone.
            let _ = done.send(what.await);
        });
        told.await.unwrap_or(Err(StoreError::Closed))
    }

    fn put_member(
        &self,
        user: &UserId,
        known: &DeviceState,
        topic: &Topic,
        row: MemberRow,
        log: &LogState,
        done: Option<Done>,
    ) {
        if self.is_guest(user) {
            // Nothing of a guest is on disk. Whoever asked may have gone.
            let _ = done.map(|done| done.send(Ok(())));
            return;
        }
        let (user, device, topic, hold) = (user.clone(), known.name.clone(), topic.clone(), Arc::clone(&log.hold));
        self.write(log, Op::PutMember { user, device, topic, row, hold, done });
    }

    /// Writes a member's row, lazily: losing it only repeats.
    pub(super) fn put_member_cursor(&self, user: &User, known: &DeviceState, topic: &Topic, log: &LogState) {
        if let Some(member) = known.members().iter().find(|member| member.topic == *topic && member.durable) {
            self.put_member(&user.id, known, topic, member.row, log, None);
        }
    }

    /// Ends a membership, and with it that its sessions are in the topic, once that is on disk. False: there was none. Whoever
    /// stops waiting for it changes nothing of it.
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
            let Some(known) = state.device(device) else { return Ok(false) };
            if known.member(topic).is_none() {
                return Ok(false);
            }
            known.retain_members(|member| member.topic != *topic);
            let (done, written) = oneshot::channel();
            let op = Op::RemoveMember {
                user: user.id.clone(),
                device: device.clone(),
                topic: topic.clone(),
                hold: Arc::clone(&state.log.hold),
                done: Some(done),
            };
            self.write(&state.log, op);
            written
        };
        let (hub, user, device, topic) = (self.clone(), Arc::clone(user), device.clone(), topic.clone());
        self.carried_out(async move {
            // Where it fails, the membership is found on disk when the user is read anew, and its sessions are in the topic yet.
            written.await.unwrap_or(Err(StoreError::Closed)).inspect_err(|error| hub.store_error(error))?;
            let mut state = user.state();
            // Unless it came back meanwhile.
            if state.device(&device).is_none_or(|known| known.member(&topic).is_none()) {
                for session in state.sessions.iter().filter(|session| session.device == device) {
                    hub.leave(session, &mut session.core(), &topic, cause);
                }
            }
            Ok(true)
        })
        .await
    }
}
