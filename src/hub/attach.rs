//! A session's beginning and end in the hub.

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use super::{
    Hub,
    handle::{Closing, Core, Counts, Handle, Peer},
    outbox::{Entry, Wire},
    shared_log::SharedLog,
    user::{User, UserState},
};
use crate::{
    auth::Identity,
    limits::{DeviceOverflow, Limit},
    protocol::{
        close::CloseCode,
        server::{self, AuthSuccess},
    },
    session::{Granted, Log, Options, Session},
    store::StoreError,
    types::{ClosedBy, Device, EventBody, SessionId, Topic, UnixMillis},
};

/// What a session hears that makes room for a newer one of its device.
const REPLACED: &str = "replaced by a newer connection of this device";

/// Why an authenticated connection does not become a session.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AttachError {
    /// `store.max_devices_per_user` is reached and every device was seen lately.
    #[error("this user has as many devices as he may have, and each was seen within a day")]
    DeviceLimit,
    /// `limits.new_devices_per_hour` is reached.
    #[error("this user has had as many new devices within an hour as he may have")]
    DeviceRate,
    /// `limits.connections_per_user` is reached.
    #[error("this user has as many connections as he may have")]
    UserConnections,
    /// `limits.connections_per_device` is reached, and newer ones do not make older ones leave.
    #[error("this device has as many connections as it may have")]
    DeviceConnections,
    /// `auth.anonymous_connections` is reached.
    #[error("as many guests are connected as may be")]
    Guests,
    /// The token was revoked after it was looked at.
    #[error("the token was revoked")]
    Revoked,
    /// The node stops.
    #[error("restarting")]
    Draining,
    /// The store fails.
    #[error("internal error")]
    Store(StoreError),
}

/// How a session went.
#[derive(Clone, Debug)]
pub struct Ended {
    /// How it ended.
    pub closing: Closing,
    /// How long it lasted.
    pub duration: Duration,
    /// What it received and was sent.
    pub counts: Counts,
    /// Handed over and not confirmed.
    pub unconfirmed: u32,
}

impl Hub {
    /// Makes a session of an authenticated connection: its device is on disk before it hears `auth_success`, which is
    /// the first thing it hears. The caller ends it by [`Hub::detach`].
    pub async fn attach(&self, granted: Granted, peer: Peer, wire: Arc<dyn Wire>) -> Result<Arc<Handle>, AttachError> {
        let Granted { identity, options, reply_to } = granted;
        let device = options.device.clone().unwrap_or_default();
        let mut wire = Some(wire);
        let guest = if identity.is_guest() { Some(self.enter_guest()?) } else { None };
        loop {
            let user = self.user(identity.user()).await.map_err(AttachError::Store)?;
            self.ensure_device(&user, &device).await?;
            let logs = self.ensure_members(&user, &device, &identity).await?;
            if self.is_draining() {
                return Err(AttachError::Draining);
            }
            let registered =
                self.register(&user, &device, &identity, &logs, &options, reply_to.as_deref(), &peer, &mut wire)?;
            if let Some(Registered { handle, replaced }) = registered {
                for older in replaced {
                    self.metrics().hit(Limit::ConnectionsPerDevice);
                    older.close(CloseCode::POLICY, REPLACED, ClosedBy::Gateway);
                }
                // Registered first, and then the logs that many read are looked at: what joins them from now on finds the
                // session.
                let _ = self.plan_pull(&handle);
                self.schedule_look(&handle);
                handle.flush();
                // His place is given back when the session ends.
                if let Some(place) = guest {
                    place.keep();
                }
                // Registered first, and then looked at: who revokes it looks for sessions behind what is looked at here.
                self.close_if_revoked(&handle, &identity);
                tracing::debug!(session = %handle.id, user = %handle.user.id, device = %handle.device, "session opened");
                self.send_away_if_draining(&handle);
                return Ok(handle);
            }
        }
    }

    /// Whether one more session may come, and which of its device it takes the place of. Sessions that are being closed
    /// have given up theirs.
    pub(super) fn admit_session(&self, state: &UserState, device: &Device) -> Result<Vec<Arc<Handle>>, AttachError> {
        let (per_user, per_device) =
            (self.limits().connections_per_user.limit(), self.limits().connections_per_device.limit());
        if state.sessions.len() < per_user.min(per_device) {
            return Ok(Vec::new());
        }
        let open: Vec<_> = state.sessions.iter().filter(|session| !session.is_closing()).collect();
        // In the order in which they came.
        let mut same: Vec<_> = open.iter().filter(|session| session.device == *device).collect();
        let over = (same.len() + 1).saturating_sub(per_device);
        if over > 0 && self.limits().device_overflow == DeviceOverflow::Refuse {
            return Err(AttachError::DeviceConnections);
        }
        if open.len() - over >= per_user {
            return Err(AttachError::UserConnections);
        }
        same.truncate(over);
        Ok(same.into_iter().map(|session| Arc::clone(session)).collect())
    }

    /// Registers the session under the log's lock; with those that it takes the place of. `None`: its device was forgotten
    /// meanwhile, or came into a durable topic whose log is not among these, or the store's engine was lost.
    #[allow(clippy::too_many_arguments, reason = "one step of attach, split off for its lock's extent")]
    fn register(
        &self,
        user: &Arc<User>,
        device: &Device,
        identity: &Identity,
        logs: &[Arc<SharedLog>],
        options: &Options,
        reply_to: Option<&str>,
        peer: &Peer,
        wire: &mut Option<Arc<dyn Wire>>,
    ) -> Result<Option<Registered>, AttachError> {
        let (now, unix) = (self.clock().now(), self.clock().unix_millis());
        let mut guard = user.state();
        let state = &mut *guard;
        if self.is_stale(&state.log) {
            return Ok(None);
        }
        if self.authenticator().is_revoked(identity) {
            return Err(AttachError::Revoked);
        }
        // The count is taken again: others may have come while the device was written.
        let replaced = self.admit_session(state, device)?;
        let Some(known) = state.devices.iter_mut().find(|known| known.name == *device && known.durable) else {
            return Ok(None);
        };
        if !self.knows_all(known, identity, logs) {
            return Ok(None);
        }
        let Some(wire) = wire.take() else { return Ok(None) };
        known.row.last_seen = unix;
        let (cursor, broadcast) = (known.row.cursor, known.row.broadcast);
        self.put_cursor(user, known, &state.log);
        // So that `pending` counts what can still be delivered.
        self.expire(user, state);

        let settings = self.settings();
        let nonce = Uuid::new_v4().as_u64_pair().0;
        let mut session = Session::new(options, settings.delivery.ack_mode, &settings.heartbeat, nonce, now);
        session.set_token_expiry(token_end(identity, unix), now, unix);
        session.set_token(identity.mark());
        session.delivery.start(Log::User, cursor);
        session.delivery.start(Log::Broadcast, broadcast);
        let live = state.log.pending_above(cursor) == 0;
        if live {
            session.delivery.go_live(Log::User, state.log.last);
        }
        let waiting = self.waiting(state, device, logs);
        let id = SessionId::generate();
        let shared = Arc::clone(&self.0.shared);
        let wire = (wire, options.window);
        let handle = Arc::new(Handle::new(id, Arc::clone(user), device.clone(), peer.clone(), session, wire, shared));
        state.maybe_pulling |= !live;
        if state.sessions.is_empty() {
            state.sessions.reserve_exact(1);
        }
        state.sessions.push(Arc::clone(&handle));
        state.left_at = None;
        if state.sessions.len() == 1 {
            self.0.users.came(user);
        }
        // Whoever finds it from here on waits for its core, so that what he has for it comes behind `auth_success`.
        let mut core = handle.core();
        core.set_claims(identity.claims());
        // Before its event, so that a snapshot that begins behind that finds it.
        self.0.sessions.insert(&handle);
        self.metrics().session_opened();
        self.0.events.emit(EventBody::SessionOpened {
            session: id,
            user: user.id.clone(),
            device: device.clone(),
            remote: peer.remote,
            user_agent: peer.user_agent.clone(),
        });
        if !state.online {
            state.online = true;
            self.0.events.emit(EventBody::UserOnline { user: user.id.clone() });
        }
        let mut topics = self.subscribe_by_token(&handle, &mut core, identity.topics());
        if let Some(known) = state.devices.iter().find(|known| known.name == *device) {
            topics.extend(self.follow_all(&handle, &mut core, known, logs));
        }
        let hello = self.auth_success(&handle, &core, waiting, &topics, reply_to);
        core.outbox.push(Entry::message(hello));
        handle.note_flow(Log::User, &core.session.delivery);
        drop(core);
        Ok(Some(Registered { handle, replaced }))
    }

    /// What waits for a device.
    pub(super) fn waiting(&self, state: &UserState, device: &Device, logs: &[Arc<SharedLog>]) -> Waiting {
        let Some(known) = state.devices.iter().find(|known| known.name == *device) else {
            return Waiting { pending: 0, gap: false };
        };
        let now = self.clock().unix_millis();
        let broadcasts = self.0.broadcasts.state().log.alive_above(known.row.broadcast, now);
        let of_topics = logs.iter().filter_map(|log| {
            let member = known.members().iter().find(|member| log.id.topic() == Some(&member.topic))?;
            Some(log.state().log.alive_above(member.row.cursor, now))
        });
        let pending = state.log.pending_above(known.row.cursor) + broadcasts + of_topics.sum::<usize>();
        Waiting { pending, gap: state.lacks(known) || known.lacks_of(logs) }
    }

    /// `auth_success` for a session, as things stand.
    pub(super) fn auth_success(
        &self,
        handle: &Handle,
        core: &Core,
        waiting: Waiting,
        topics: &[Topic],
        reply_to: Option<&str>,
    ) -> bytes::Bytes {
        let settings = self.settings();
        server::auth_success(&AuthSuccess {
            session_id: &handle.id.to_string(),
            user_id: handle.user.id.as_str(),
            device: handle.device.as_str(),
            pending: waiting.pending,
            gap: waiting.gap,
            store_epoch: &self.0.store_epoch,
            ack_mode: core.session.ack_mode.as_str(),
            heartbeat_interval_ms: u64::try_from(settings.heartbeat.interval.0.as_millis()).unwrap_or(u64::MAX),
            max_message_bytes: self.limits().message_bytes.0,
            token_expires_at: core.session.token_expires_at().map(|end| end.rfc3339().to_string()),
            topics,
            timestamp: self.clock().unix_millis().rfc3339().to_string(),
            reply_to,
        })
    }

    /// Takes a session out of the hub. Only its own id removes it, so a late goodbye never removes a newcomer.
    pub fn detach(&self, handle: &Arc<Handle>) -> Ended {
        let now = self.clock().now();
        let ended = {
            let mut core = handle.core();
            let closing = core.closing.get_or_insert_with(|| Box::new(Closing::lost(now)));
            Ended {
                closing: Closing::clone(closing),
                duration: now.duration_since(handle.opened),
                counts: core.counts,
                unconfirmed: u32::try_from(core.session.delivery.unconfirmed()).unwrap_or(u32::MAX),
            }
        };
        // It is being closed by now, so that nothing is subscribed behind this.
        self.leave_all(handle);
        let user = &handle.user;
        let mut guard = user.state();
        let state = &mut *guard;
        let before = state.sessions.len();
        state.sessions.retain(|session| session.id != handle.id);
        self.note_attempt(handle, state);
        if let Some(known) = state.devices.iter_mut().find(|known| known.name == handle.device) {
            known.row.last_seen = self.clock().unix_millis();
            self.put_cursor(user, known, &state.log);
        }
        self.drop_done(user, state);
        self.tracer().left(handle.id);
        self.metrics().session_closed(ended.closing.code, ended.closing.by);
        self.0.events.emit(EventBody::SessionClosed {
            session: handle.id,
            user: user.id.clone(),
            device: handle.device.clone(),
            code: ended.closing.code.0,
            reason: ended.closing.reason.clone(),
            by: ended.closing.by,
            duration: ended.duration,
            messages_received: ended.counts.messages_received,
            bytes_received: ended.counts.bytes_received,
            messages_sent: ended.counts.messages_sent,
            bytes_sent: ended.counts.bytes_sent,
            unconfirmed: ended.unconfirmed,
        });
        if self.is_guest(&user.id) && before > state.sessions.len() {
            self.leave_guest();
            // He does not come back.
            state.devices.retain(|known| state.sessions.iter().any(|session| session.device == known.name));
        }
        if state.sessions.is_empty() && before > 0 {
            self.0.users.went(user);
            state.left_at = Some(now);
            self.0.leavers.push(now, Arc::clone(user));
        }
        drop(guard);
        // Last, so that whoever waits for the last session to leave finds all of its events out.
        self.0.sessions.remove(handle.id);
        self.0.left.notify_waiters();
        ended
    }

    /// A connection that could not authenticate, for the event stream and the counters.
    pub fn auth_failed(&self, refused: &crate::session::Refused, peer: &Peer) {
        self.metrics().auth_failed(refused.code);
        self.0.events.emit(EventBody::AuthFailed {
            code: refused.code.as_str(),
            message: refused.message.as_str().into(),
            remote: peer.remote,
            user: refused.user.clone(),
        });
    }
}

/// A session that is in the hub from now on, and those of its device that make room for it.
struct Registered {
    handle: Arc<Handle>,
    replaced: Vec<Arc<Handle>>,
}

/// What a session is told of its device's logs.
#[derive(Clone, Copy)]
pub(super) struct Waiting {
    /// How many wait.
    pub(super) pending: usize,
    /// The device lacks something for good.
    pub(super) gap: bool,
}

/// When a session has to end: at the token's `exp`; one that was accepted within the leeway ends with that.
pub(super) fn token_end(identity: &Identity, now: UnixMillis) -> Option<UnixMillis> {
    identity.expires_at().filter(|end| *end > now).or(identity.valid_until())
}
