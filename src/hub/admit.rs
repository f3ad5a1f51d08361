//! What happens to a send under its log's lock: room is made for it, its entry joins the index, and the user's live
//! sessions are handed it.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{
    Hub,
    ends::Why,
    handle::Handle,
    outgoing::Outgoing,
    send::SendError,
    user::{User, UserState},
};
use crate::{
    clock::Instant,
    limits,
    protocol::server::Draft,
    session::Log,
    store::{IndexEntry, Overflow, Permit, StoreError, chunks_of},
    types::{Digest, DropReason, Notification, NotificationId, Offset, Payload, UnixMillis},
};

/// Sessions that got a frame and have yet to be flushed. Flushes what is left when dropped, so that a caller who goes
/// away leaves nothing unwritten.
#[derive(Default)]
pub(super) struct Unflushed(pub(super) Vec<Arc<Handle>>);

impl Unflushed {
    /// Writes to all of them, yielding between slices.
    pub(super) async fn flush(mut self) {
        while self.0.len() > limits::FANOUT_SLICE_SESSIONS {
            for handle in self.0.drain(..limits::FANOUT_SLICE_SESSIONS) {
                handle.flush();
            }
            tokio::task::yield_now().await;
        }
    }

    /// Whether they are flushed in one go.
    pub(super) fn is_small(&self) -> bool {
        self.0.len() <= limits::FANOUT_SLICE_SESSIONS
    }

    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }
}

impl Drop for Unflushed {
    fn drop(&mut self) {
        for handle in &self.0 {
            handle.flush();
        }
    }
}

/// A caller's own id, to be remembered with the content it stands for.
pub(super) struct OwnId {
    pub(super) id: NotificationId,
    pub(super) digest: Digest,
    pub(super) until: UnixMillis,
}

impl Hub {
    /// The caller's own id of a notification, where it is one and ids are remembered at all.
    pub(super) fn own_id(&self, notification: &Notification, own: bool) -> Option<OwnId> {
        let window = self.quotas().idempotency_window;
        (own && !window.is_zero()).then(|| OwnId {
            id: notification.id.clone(),
            digest: notification.digest(),
            until: notification.accepted_at.saturating_add(window),
        })
    }

    /// Takes out what the notification takes the place of; or sees to it that the mailbox has room for one more.
    pub(super) fn make_room(
        &self,
        user: &User,
        state: &mut UserState,
        notification: &Notification,
    ) -> Result<Option<IndexEntry>, SendError> {
        if let Some(key) = &notification.collapse_key {
            // What has expired is not superseded.
            self.expire(user, state);
            if let Some(replaced) = state.log.take_collapsed(key) {
                return Ok(Some(replaced));
            }
        }
        let limit = self.quotas().pending_per_user;
        if state.log.index.len() < limit {
            return Ok(None);
        }
        self.expire(user, state);
        let over = |state: &UserState| (state.log.index.len() + 1).saturating_sub(limit);
        let entries = state.take_oldest_confirmed(over(state));
        self.lose(user, state, &entries, DropReason::LaggardLost);
        if over(state) > 0 && self.quotas().overflow == Overflow::DropOldest {
            let entries = state.log.take_first(over(state), |_| true);
            self.lose(user, state, &entries, DropReason::Overflow);
        }
        if over(state) > 0 {
            return Err(SendError::MailboxFull { pending: state.log.index.len() });
        }
        Ok(None)
    }

    /// Room in the store for so many bytes. Where `store.max_bytes` is reached, the user's own mailbox makes it, as a full
    /// one does.
    pub(super) async fn permit(&self, user: &Arc<User>, bytes: u64) -> Result<Permit, StoreError> {
        let store = &self.0.store;
        match store.permit(bytes).await {
            Err(StoreError::Full) if self.quotas().max_bytes > 0 => {
                let over = (store.totals().bytes + bytes).saturating_sub(self.quotas().max_bytes);
                let Some(written) = self.make_byte_room(user, over) else { return Err(StoreError::Full) };
                written.await.unwrap_or(Err(StoreError::Closed))?;
                store.permit(bytes).await
            }
            permit => permit,
        }
    }

    /// Drops at least `over` bytes of what some device has confirmed, or of the oldest where that is allowed; nothing where
    /// there is not as much.
    fn make_byte_room(&self, user: &Arc<User>, over: u64) -> Option<oneshot::Receiver<Result<(), StoreError>>> {
        let mut guard = user.state();
        let state = &mut *guard;
        if over == 0 || self.is_stale(&state.log) {
            return None;
        }
        let enough = |wanted: &dyn Fn(&IndexEntry) -> bool| {
            let mut bytes = 0;
            let entries = state.log.index.iter().filter(|entry| wanted(entry));
            let count = entries.take_while(|entry| (bytes < over, bytes += u64::from(entry.bytes)).0).count();
            (bytes >= over).then_some(count)
        };
        let (entries, reason) = if let Some(count) = enough(&|entry| entry.confirmed) {
            (state.take_oldest_confirmed(count), DropReason::LaggardLost)
        } else if self.quotas().overflow == Overflow::DropOldest {
            (state.log.take_first(enough(&|_| true)?, |_| true), DropReason::Overflow)
        } else {
            return None;
        };
        state.log.lost = state.log.lost.max(entries.last()?.offset);
        self.ended(&user.log(), &mut state.log, &entries, Why::Dropped(reason));
        let (done, written) = oneshot::channel();
        self.delete(&user.log(), &mut state.log, &entries, Some(done));
        Some(written)
    }

    /// Drops what some device has yet to take, which will be told that it lacks something.
    pub(super) fn lose(&self, user: &User, state: &mut UserState, entries: &[IndexEntry], reason: DropReason) {
        if let Some(last) = entries.iter().map(|entry| entry.offset).max() {
            state.log.lost = state.log.lost.max(last);
            self.end(user, state, entries, Why::Dropped(reason));
        }
    }
}

/// What waits once the notification has its offset.
pub(super) fn entry(notification: &Notification, offset: Offset, remembered: bool) -> IndexEntry {
    IndexEntry {
        offset,
        bytes: u32::try_from(notification.accounted_bytes()).unwrap_or(u32::MAX),
        chunks: chunks_of(notification),
        expires_at: notification.expires_at.unwrap_or(UnixMillis(u64::MAX)),
        id: notification.id.clone(),
        remembered,
        collapse_key: notification.collapse_key.clone(),
        confirmed: false,
    }
}

/// Hands a notification that has just got its offset to the user's Live sessions.
pub(super) fn hand_out(
    state: &mut UserState,
    notification: &Notification,
    draft: Draft,
    offset: Offset,
    now: Instant,
) -> Unflushed {
    let mut taken = Unflushed::default();
    if state.sessions.is_empty() {
        return taken;
    }
    let bytes = matches!(notification.payload, Payload::Binary(_));
    let binary = bytes && state.sessions.iter().any(|session| session.core().session.binary);
    let outgoing = Outgoing::new(draft, notification, Some(offset), false, binary);
    let mut pulling = state.maybe_pulling;
    for session in &state.sessions {
        if session.offer(Log::User, notification, offset, &outgoing, now) {
            taken.0.push(Arc::clone(session));
        }
        pulling |= session.is_pulling(Log::User);
    }
    state.maybe_pulling = pulling;
    taken
}
