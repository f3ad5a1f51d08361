//! What services ask for: send, broadcast, close.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{
    Hub,
    handle::{Handle, Outgoing},
    user::{User, UserState},
};
use crate::{
    limits,
    metrics::Failure,
    protocol::{close::CloseCode, server::Draft},
    store::{IndexEntry, LogObserver, Op, Permit, StoreError, chunks_of},
    types::{ClosedBy, Device, Notification, Offset, Payload, SessionId, UserId},
};

/// What a send waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Durable on disk.
    Stored,
    /// Staged and handed to live sessions.
    Accepted,
}

/// What is true when a send returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its offset, where it is stored.
    pub offset: Option<Offset>,
    /// Whether it is durable.
    pub stored: bool,
    /// Live sessions it was handed to.
    pub sessions: u32,
}

/// Why a send was refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SendError {
    /// Larger than `limits.notification_bytes`.
    #[error("the notification takes {bytes} bytes encoded for the client; limits.notification_bytes allows {limit}")]
    TooLarge {
        /// What it takes.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// `store.max_pending_per_user` is reached.
    #[error("{pending} notifications wait for this user already; store.max_pending_per_user allows no more")]
    MailboxFull {
        /// How many wait.
        pending: usize,
    },
    /// `store.max_bytes` or `store.max_disk` is reached, or the disk is nearly full.
    #[error("the store is full; see the room on its disk, store.max_bytes and store.max_disk")]
    StoreFull,
    /// The store failed before the notification was staged.
    #[error("{0}")]
    Store(StoreError),
    /// The store failed with the notification under way; live sessions may have received it.
    #[error("{0}; the notification may have been delivered")]
    Unknown(StoreError),
    /// The node stops.
    #[error("the node is stopping")]
    Draining,
}

/// Which of a user's sessions to close.
#[derive(Clone, Debug, Default)]
pub struct CloseFilter {
    /// Only this one.
    pub session: Option<SessionId>,
    /// Only those of this device.
    pub device: Option<Device>,
}

/// Sessions that got a frame and have yet to be flushed. Flushes what is left when dropped, so that a caller who goes
/// away leaves nothing unwritten.
struct Unflushed(Vec<Arc<Handle>>);

impl Unflushed {
    /// Writes to all of them, yielding between slices.
    async fn flush(mut self) {
        while self.0.len() > limits::FANOUT_SLICE_SESSIONS {
            for handle in self.0.drain(..limits::FANOUT_SLICE_SESSIONS) {
                handle.flush();
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Unflushed {
    fn drop(&mut self) {
        for handle in &self.0 {
            handle.flush();
        }
    }
}

impl Hub {
    /// Sends to each device of a user. With an `expires_at` that has passed already it is never stored, and handed to
    /// whoever is live.
    pub async fn send(&self, to: &UserId, notification: Notification, wait: Wait) -> Result<Sent, SendError> {
        if self.is_draining() {
            return Err(SendError::Draining);
        }
        if notification.is_now_or_never() {
            return self.send_unstored(to, notification).await;
        }
        let draft = self.draft(&notification, true)?;
        let permit = match self.0.store.permit(notification.accounted_bytes()).await {
            Ok(permit) => permit,
            Err(StoreError::Full) => return Err(SendError::StoreFull),
            Err(error) => return Err(SendError::Store(error)),
        };
        let user = self.user(to).await.map_err(SendError::Store)?;
        let (done, stored) = oneshot::channel();
        let (offset, unflushed) =
            self.stage(&user, Arc::new(notification), draft, permit, (wait == Wait::Stored).then_some(done))?;
        let sessions = u32::try_from(unflushed.0.len()).unwrap_or(u32::MAX);
        unflushed.flush().await;
        if wait == Wait::Stored {
            // The writer answers every append; its end without an answer is a failure like any other.
            stored.await.unwrap_or(Err(StoreError::Closed)).map_err(|error| {
                self.metrics().failure(Failure::StoreError);
                SendError::Unknown(error)
            })?;
        }
        Ok(Sent { offset: Some(offset), stored: wait == Wait::Stored, sessions })
    }

    /// Admission, offset, staging and hand-over, all under the log's lock and in one order.
    fn stage(
        &self,
        user: &Arc<User>,
        notification: Arc<Notification>,
        draft: Draft,
        mut permit: Permit,
        done: Option<oneshot::Sender<Result<(), StoreError>>>,
    ) -> Result<(Offset, Unflushed), SendError> {
        let now = self.clock().now();
        let mut state = user.state();
        // Admitted and loaded before the engine was lost, in whole or in part: nothing of it holds any more.
        if permit.generation() != user.generation() || self.is_stale(user) {
            return Err(SendError::Store(StoreError::Recovering("it was opened again meanwhile".into())));
        }
        if state.index.len() >= self.0.quotas.pending_per_user {
            self.expire(user, &mut state);
            self.make_mailbox_room(user, &mut state);
            if state.index.len() >= self.0.quotas.pending_per_user {
                return Err(SendError::MailboxFull { pending: state.index.len() });
            }
        }
        let offset = self.0.store.assign(&mut permit, state.last);
        state.last = offset;
        let bytes = notification.accounted_bytes();
        state.index.push_back(IndexEntry {
            offset,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            chunks: chunks_of(&notification),
            expires_at: notification.expires_at.unwrap_or(crate::types::UnixMillis(u64::MAX)),
        });
        state.bytes += bytes;
        let op = Op::Append {
            user: user.id.clone(),
            offset,
            notification: Arc::clone(&notification),
            counters: state.counters(),
            permit,
            observer: Arc::clone(user) as Arc<dyn LogObserver>,
            done,
        };
        self.write(user, op);
        let mut taken = Vec::new();
        if !state.sessions.is_empty() {
            let bytes = matches!(notification.payload, Payload::Binary(_));
            let binary = bytes && state.sessions.iter().any(|session| session.core().session.binary);
            let outgoing = Outgoing::new(draft, &notification, Some(offset), false, binary);
            let mut pulling = state.maybe_pulling;
            for session in &state.sessions {
                if session.offer(&notification, offset, &outgoing, now) {
                    taken.push(Arc::clone(session));
                }
                pulling |= session.is_pulling();
            }
            state.maybe_pulling = pulling;
        }
        Ok((offset, Unflushed(taken)))
    }

    /// In a full mailbox, what some device has confirmed and only laggards lack makes room, oldest first.
    fn make_mailbox_room(&self, user: &Arc<User>, state: &mut UserState) {
        let over = (state.index.len() + 1).saturating_sub(self.0.quotas.pending_per_user);
        let entries = state.take_oldest_confirmed(over);
        let Some(last) = entries.last().map(|entry| entry.offset) else { return };
        for _ in &entries {
            self.metrics().failure(Failure::LaggardLost);
        }
        let mut laggards = 0_usize;
        for known in state.devices.iter_mut().filter(|known| known.row.cursor < last) {
            laggards += 1;
            known.row.lost = last;
            self.put_cursor(user, known, &state.hold);
        }
        // With a device away for long this is every send: the counter tells operators, not a line each.
        tracing::debug!(user = %user.id, notifications = entries.len(), laggards, "a full mailbox made room");
        self.delete(user, state, entries);
    }

    /// To the sessions that are there now, and to nobody later.
    async fn send_unstored(&self, to: &UserId, mut notification: Notification) -> Result<Sent, SendError> {
        // "Now or never" is about the store: what a live session's outbox took is written as soon as the socket takes it.
        notification.expires_at = None;
        let draft = self.draft(&notification, false)?;
        let outgoing = Outgoing::new(draft, &notification, None, false, true);
        let mut taken = Unflushed(Vec::new());
        if let Some(user) = self.0.users.get(to) {
            let state = user.state();
            for session in &state.sessions {
                if session.push(&outgoing) {
                    taken.0.push(Arc::clone(session));
                }
            }
        }
        let sessions = u32::try_from(taken.0.len()).unwrap_or(u32::MAX);
        taken.flush().await;
        Ok(Sent { offset: None, stored: false, sessions })
    }

    /// Hands a notification to every session that is connected now. Returns to how many.
    pub async fn broadcast(&self, mut notification: Notification) -> Result<u32, SendError> {
        if self.is_draining() {
            return Err(SendError::Draining);
        }
        if notification.is_now_or_never() {
            notification.expires_at = None;
        }
        let draft = self.draft(&notification, false)?;
        let outgoing = Outgoing::new(draft, &notification, None, false, true);
        Ok(self.0.sessions.broadcast(outgoing, &self.0.life).await)
    }

    /// Encodes but for the offset, and refuses what is too large.
    fn draft(&self, notification: &Notification, stored: bool) -> Result<Draft, SendError> {
        let draft = Draft::text(notification, stored, false);
        // A replay says so, which makes the message a little longer; the limit holds for the first sending.
        let (bytes, limit) = (draft.message_bytes(), self.limits().notification_bytes.as_usize());
        if bytes > limit { Err(SendError::TooLarge { bytes, limit }) } else { Ok(draft) }
    }

    /// Begins to close sessions of a user. Returns how many.
    pub fn close_sessions(&self, user: &UserId, filter: &CloseFilter, code: CloseCode, reason: &str) -> u32 {
        let matches = |handle: &&Arc<Handle>| {
            filter.session.is_none_or(|id| id == handle.id)
                && filter.device.as_ref().is_none_or(|device| *device == handle.device)
        };
        let sessions = self.user_sessions(user);
        let closed = sessions.iter().filter(matches).filter(|handle| handle.close(code, reason, ClosedBy::Caller));
        u32::try_from(closed.count()).unwrap_or(u32::MAX)
    }
}
