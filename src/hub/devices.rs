//! A user's devices: how one becomes known, how it is forgotten, and what follows for his log.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{
    Hub,
    attach::AttachError,
    log::LogState,
    user::{DeviceState, User, UserState},
};
use crate::{
    limits::{self, Limit},
    session::Log,
    store::{DeviceRow, Done, Op, StoreError},
    types::{Device, DropReason, EventBody, ForgetReason, LogId, Offset, UnixMillis},
};

/// A device seen within this time does not make room for another.
const DEVICE_KEPT: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

impl Hub {
    /// Makes the device known and durable.
    pub(super) async fn ensure_device(&self, user: &Arc<User>, device: &Device) -> Result<(), AttachError> {
        self.broadcasts().await.map_err(AttachError::Store)?;
        let written = {
            let mut state = user.state();
            self.ensure_fresh(&state.log).map_err(AttachError::Store)?;
            self.admit_session(&state, device)?;
            // One that comes back too late comes as a new one.
            self.forget_unseen(user, &mut state);
            let row = match state.device(device) {
                Some(known) if known.durable => return Ok(()),
                Some(known) => known.row,
                None => self.new_device(user, &mut state, device)?,
            };
            self.put_device(user, &mut state, device, row)
        };
        let result = written.await.unwrap_or(Err(StoreError::Closed));
        let mut state = user.state();
        match result {
            Ok(()) => {
                if let Some(known) = state.device(device) {
                    known.durable = true;
                }
                Ok(())
            }
            Err(error) => {
                state.devices.retain(|known| known.name != *device || known.durable);
                Err(AttachError::Store(error))
            }
        }
    }

    fn put_device(
        &self,
        user: &User,
        state: &mut UserState,
        device: &Device,
        row: DeviceRow,
    ) -> oneshot::Receiver<Result<(), StoreError>> {
        let (done, written) = oneshot::channel();
        if self.is_guest(&user.id) {
            let _ = done.send(Ok(()));
            return written;
        }
        let op = Op::PutDevice {
            user: user.id.clone(),
            device: device.clone(),
            row,
            counters: state.log.counters(),
            hold: Arc::clone(&state.log.hold),
            done,
        };
        self.write_counted(&mut state.log, op);
        written
    }

    /// The first device takes all that waits; a further one starts at the present. One that was forgotten is new, and is
    /// told that it lacks something.
    fn new_device(&self, user: &User, state: &mut UserState, device: &Device) -> Result<DeviceRow, AttachError> {
        let now = self.clock().unix_millis();
        let recent = |known: &&DeviceState| known.row.created_at.saturating_add(limits::NEW_DEVICE_SPAN) > now;
        let most = self.limits().new_devices_per_hour.limit();
        if state.devices.len() >= most && state.devices.iter().filter(recent).count() >= most {
            self.metrics().hit(Limit::NewDevicesPerHour);
            return Err(AttachError::DeviceRate);
        }
        if state.devices.len() >= self.quotas().devices_per_user {
            self.make_device_room(user, state, now)?;
        }
        // One whose creation is still under way may yet fail, and must not have taken the mailbox with it.
        let first = !state.devices.iter().any(|known| known.durable);
        let cursor = if first { Offset::ZERO } else { state.log.last };
        let before = state.forgotten.len();
        state.forgotten.retain(|(name, _)| name != device);
        let returns = state.forgotten.len() < before;
        let row = DeviceRow {
            cursor,
            broadcast: self.0.broadcasts.state().log.last,
            began: cursor,
            lost: if returns { cursor.max(Offset::new(1)) } else { Offset::ZERO },
            created_at: now,
            last_seen: now,
        };
        if state.devices.is_empty() {
            // Most have one and never another.
            state.devices.reserve_exact(1);
        }
        state.devices.push(DeviceState::new(device.clone(), row, false));
        Ok(row)
    }

    /// Forgets the device that was unseen for longest, unless it is online or was seen within a day.
    fn make_device_room(&self, user: &User, state: &mut UserState, now: UnixMillis) -> Result<(), AttachError> {
        let may_go = |known: &&DeviceState| {
            known.durable && known.row.last_seen.saturating_add(DEVICE_KEPT) <= now && !is_online(state, &known.name)
        };
        let oldest = state.devices.iter().filter(may_go).min_by_key(|known| known.row.last_seen);
        let name = oldest.map(|known| known.name.clone()).ok_or_else(|| {
            self.metrics().hit(Limit::Devices);
            AttachError::DeviceLimit
        })?;
        self.forget(user, state, &name, ForgetReason::Replaced, None);
        Ok(())
    }

    /// Forgets the devices that were not seen for `store.device_ttl` and are not online.
    pub(super) fn forget_unseen(&self, user: &User, state: &mut UserState) {
        if self.is_stale(&state.log) {
            return;
        }
        let (now, ttl) = (self.clock().unix_millis(), self.quotas().device_ttl);
        let unseen = |known: &&DeviceState| {
            known.durable && known.row.last_seen.saturating_add(ttl) <= now && !is_online(state, &known.name)
        };
        let unseen: Vec<_> = state.devices.iter().filter(unseen).map(|known| known.name.clone()).collect();
        for name in unseen {
            self.forget(user, state, &name, ForgetReason::Unseen, None);
        }
    }

    /// Forgets a device, under the log's lock; false where it is not known. What only it lacked waits for nobody any
    /// more. Without a device the mailbox waits.
    pub(super) fn forget(
        &self,
        user: &User,
        state: &mut UserState,
        name: &Device,
        reason: ForgetReason,
        done: Option<Done>,
    ) -> bool {
        let Some(index) = state.devices.iter().position(|known| known.name == *name) else { return false };
        let removed = state.devices.remove(index);
        let topics = removed.members().iter().map(|member| member.topic.clone()).collect();
        let device = removed.name;
        if self.is_guest(&user.id) {
            done.map(|done| done.send(Ok(())));
            return true;
        }
        let at = self.clock().unix_millis();
        state.forgotten.retain(|(known, _)| *known != device);
        state.forgotten.push((device.clone(), at));
        let over = state.forgotten.len().saturating_sub(limits::FORGOTTEN_DEVICES_MAX);
        let unremembered = state.forgotten.drain(..over).map(|(name, _)| name).collect();
        let op = Op::RemoveDevice {
            user: user.id.clone(),
            device: device.clone(),
            at,
            unremembered,
            topics,
            hold: Arc::clone(&state.log.hold),
            done,
        };
        self.write(&state.log, op);
        self.drop_done(user, state);
        self.0.events.emit(EventBody::DeviceForgotten { user: user.id.clone(), device, reason });
        true
    }

    /// Writes a device's row, lazily: losing it only repeats.
    pub(super) fn put_cursor(&self, user: &User, known: &DeviceState, log: &LogState) {
        // One whose creation is under way is written by that, and has confirmed nothing.
        if known.durable && !self.is_guest(&user.id) {
            let (user, device, hold) = (user.id.clone(), known.name.clone(), Arc::clone(&log.hold));
            self.write(log, Op::Cursor { user, device, row: known.row, hold });
        }
    }

    /// A session in `client` mode ended with something unacked at the head of its window, which it was given and after
    /// which it was still alive: that is one attempt. After `delivery.max_attempts` of them the device is given it no
    /// more.
    pub(super) fn note_attempt(&self, handle: &super::Handle, state: &mut UserState) {
        let max = self.settings().delivery.max_attempts.0;
        let head = {
            let core = handle.core();
            let alive_after = |written: crate::clock::Instant| core.session.last_received() > written;
            let by_client = core.session.ack_mode == crate::protocol::ack_mode::AckMode::Client;
            let head = core.session.delivery.head().filter(|head| head.written_at.is_some_and(alive_after));
            head.filter(|_| max > 0 && by_client).map(|head| (head.log, head.offset))
        };
        let Some((log, offset)) = head else { return };
        let shared = self.shared_log_of(handle, log);
        let topic = shared.as_ref().and_then(LogId::topic);
        let Some(known) = state.device(&handle.device) else { return };
        if known.is_past(log, topic, offset) {
            return;
        }
        let before = known.attempts.filter(|(at, _)| *at == offset).map_or(0, |(_, count)| count);
        known.attempts = Some((offset, before + 1));
        if before + 1 < max {
            return;
        }
        known.attempts = None;
        known.confirm(log, topic, offset);
        if log == Log::User {
            known.row.lost = known.row.lost.max(offset);
        }
        let user = &handle.user;
        if let Some(known) = state.devices.iter().find(|known| known.name == handle.device) {
            self.put_cursor(user, known, &state.log);
            if let Some(topic) = topic {
                self.put_member_cursor(user, known, topic, &state.log);
            }
        }
        let entry = match log {
            Log::User => state.log.entry(offset).cloned(),
            Log::Broadcast => self.0.broadcasts.state().log.entry(offset).cloned(),
            Log::Topic(_) => handle.followed(log).and_then(|followed| followed.state().log.entry(offset).cloned()),
        };
        let Some(entry) = entry else { return };
        let of = shared.unwrap_or_else(|| user.log());
        tracing::warn!(user = %user.id, device = %handle.device, id = %entry.id, attempts = max, "given up: never acked");
        self.dropped(of, Some((user.id.clone(), handle.device.clone())), &entry, DropReason::MaxAttempts);
        // Nobody is left who could confirm it: it ends with that.
        let past = state.devices.iter().all(|known| known.row.cursor >= offset);
        if log == Log::User && past && !entry.confirmed && !self.is_stale(&state.log) {
            let given_up = state.log.take_offsets(&[offset]);
            state.log.ended(offset, entry.remembered, super::log::End::Dropped);
            self.delete(&user.log(), &mut state.log, &given_up, None);
        }
    }
}

fn is_online(state: &UserState, device: &Device) -> bool {
    state.sessions.iter().any(|session| session.device == *device)
}
