//! What services ask for: send to a user, close his sessions. A send has two halves: what is done in the order of the
//! calls, up to the hand-over to live sessions, and what is waited for then.

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::{
    Hub,
    admit::{OwnId, Unflushed, entry, hand_out},
    ends::Why,
    log::{End, Known},
    outgoing::Outgoing,
    user::{User, UserState},
};
use crate::{
    clock::Instant,
    metrics::Fate,
    protocol::server::Draft,
    store::{IndexEntry, LogObserver, Op, Permit, StoreError},
    types::{Device, DropReason, Notification, Offset, SessionId, UnixMillis, UserId},
};

/// How long what should have ended by its TTL, and has not, is left alone.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What a send waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Durable on disk.
    Stored,
    /// Staged and handed to live sessions.
    Accepted,
    /// Durable, and confirmed by some device, or ended otherwise, or that moment has come.
    Confirmed(Instant),
}

/// How a send is to be done.
#[derive(Clone, Copy, Debug)]
pub struct SendOptions {
    /// What it waits for.
    pub wait: Wait,
    /// Whether the notification's id is the caller's own, and repeated calls with it are one.
    pub own_id: bool,
}

/// What is true when a send returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Some device confirmed it.
    Confirmed,
    /// It is durable.
    Stored,
    /// It is staged, or was handed to at least one session where it is never stored.
    Accepted,
    /// Nobody took what is never stored; or what was stored made room in a full mailbox.
    Dropped,
    /// A newer one took its place.
    Superseded,
    /// Its TTL ran out.
    Expired,
    /// A caller cleared the mailbox.
    Purged,
}

impl From<End> for Outcome {
    fn from(end: End) -> Self {
        match end {
            End::Confirmed => Outcome::Confirmed,
            End::Superseded => Outcome::Superseded,
            End::Expired => Outcome::Expired,
            End::Purged => Outcome::Purged,
            End::Dropped => Outcome::Dropped,
        }
    }
}

/// What is true when a send returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its offset, where it is stored.
    pub offset: Option<Offset>,
    /// What became of it.
    pub outcome: Outcome,
    /// Live sessions it was handed to.
    pub sessions: u32,
    /// An earlier call with the same id sent it.
    pub duplicate: bool,
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
    /// As many durable broadcasts wait as may.
    #[error("{pending} durable broadcasts are kept already; they leave when their TTL runs out")]
    BroadcastsFull {
        /// How many wait.
        pending: usize,
    },
    /// `store.max_bytes` or `store.max_disk` is reached, or the disk is nearly full.
    #[error("the store is full; see the room on its disk, store.max_bytes and store.max_disk")]
    StoreFull,
    /// The caller's own id stands for another content.
    #[error("this id was used with other content within store.idempotency_window; choose another id")]
    IdTaken,
    /// The store failed before the notification was staged.
    #[error("{0}")]
    Store(StoreError),
    /// The store failed with the notification under way; live sessions may have received it.
    #[error("{0}; the notification may have been delivered")]
    Unknown(StoreError),
    /// There is no such session.
    #[error("no session has this id, or it is being closed")]
    SessionGone,
    /// The node stops; or it is drained, and this could not be stored.
    #[error("the node is draining or stopping")]
    Draining,
}

impl From<StoreError> for SendError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => SendError::StoreFull,
            error => SendError::Store(error),
        }
    }
}

/// Which of a user's sessions to close.
#[derive(Clone, Debug, Default)]
pub struct CloseFilter {
    /// Only this one.
    pub session: Option<SessionId>,
    /// Only those of this device.
    pub device: Option<Device>,
}

/// A send that has its place in the log and was handed to live sessions: what is left is to write and to wait.
/// [`Hub::finish_send`] does; dropping it leaves the notification sent.
pub struct Begun {
    unflushed: Unflushed,
    sent: Sent,
    /// Until it is durable, where that is waited for.
    stored: Option<oneshot::Receiver<Result<(), StoreError>>>,
    /// Until it ends, where that is waited for.
    end: Option<AwaitedEnd>,
}

/// An end that is waited for until the caller's patience ends. The sweep may notice much later that the TTL ran out, so
/// that is looked at when it does.
struct AwaitedEnd {
    user: Arc<User>,
    end: oneshot::Receiver<End>,
    until: Instant,
    expires_at: UnixMillis,
}

impl Begun {
    /// Sessions that are yet to be written to.
    pub fn sessions(&self) -> u32 {
        self.unflushed.count()
    }

    /// Nothing is left to wait for.
    fn settled(sent: Sent) -> Self {
        Self { unflushed: Unflushed::default(), sent, stored: None, end: None }
    }
}

impl Hub {
    /// Sends to each device of a user. With an `expires_at` that has passed already it is never stored, and handed to
    /// whoever is live.
    pub async fn send(&self, to: &UserId, notification: Notification, options: SendOptions) -> Result<Sent, SendError> {
        let begun = self.begin_send(to, notification, options).await?;
        self.finish_send(begun).await
    }

    /// The first half of a send. Calls for one user take effect in the order in which their first halves end.
    pub async fn begin_send(
        &self,
        to: &UserId,
        notification: Notification,
        options: SendOptions,
    ) -> Result<Begun, SendError> {
        if self.refuses_all() {
            return Err(SendError::Draining);
        }
        // Nothing is stored for a guest, who has one session and no other.
        if notification.is_now_or_never() || self.is_guest(to) {
            return self.begin_unstored(to, notification);
        }
        let draft = self.draft(&notification, true)?;
        let user = self.user(to).await?;
        let own = self.own_id(&notification, options.own_id);
        let notification = Arc::new(notification);
        let mut permit = None;
        loop {
            let as_of = user.state().log.settled_ids;
            let mut on_disk = None;
            if let Some(own) = &own {
                on_disk = self.0.store.remembered(&user.log(), &own.id, self.clock().unix_millis()).await?;
            }
            if permit.is_none() && on_disk.is_none() {
                permit = Some(self.permit(&user, notification.accounted_bytes()).await?);
            }
            let mut state = user.state();
            if let Some(own) = &own {
                match state.log.staged_id(&own.id, &own.digest) {
                    Known::Taken => return Err(SendError::IdTaken),
                    Known::Same { offset, sessions, fate } => {
                        return Ok(Self::repeated(&user, &mut state, offset, sessions, fate, options.wait));
                    }
                    // A row may be seen before its commit is durable: then it is still among what is staged.
                    Known::Free if let Some(known) = &on_disk => {
                        self.ensure_durable(&state.log)?;
                        if known.digest != own.digest {
                            return Err(SendError::IdTaken);
                        }
                        let (offset, sessions) = (known.offset, known.sessions);
                        return Ok(Self::repeated(&user, &mut state, offset, sessions, None, options.wait));
                    }
                    // More ids are on disk than when it was looked up: this one may be among them.
                    Known::Free if state.log.settled_ids != as_of => continue,
                    Known::Free => {}
                }
            }
            let Some(permit) = permit.take() else { continue };
            return self.stage(&user, &mut state, notification, draft, permit, own, options.wait);
        }
    }

    /// The first half of a send that is never stored ([`Notification::is_now_or_never`]): it waits for nothing.
    pub fn begin_unstored(&self, to: &UserId, notification: Notification) -> Result<Begun, SendError> {
        if self.refuses_unstored() { Err(SendError::Draining) } else { self.send_unstored(to, notification) }
    }

    /// The second half of a send, if it waits for nothing and its sessions are so few that nobody else has to be let in
    /// between. Else it comes back, for [`Hub::finish_send`].
    pub fn finish_at_once(&self, begun: Begun) -> Result<Sent, Begun> {
        if begun.stored.is_some() || begun.end.is_some() || !begun.unflushed.is_small() {
            return Err(begun);
        }
        // Being dropped, it flushes.
        Ok(begun.sent)
    }

    /// The second half of a send: writes to the sockets, and waits for what is asked.
    pub async fn finish_send(&self, begun: Begun) -> Result<Sent, SendError> {
        let Begun { unflushed, mut sent, stored, end } = begun;
        unflushed.flush().await;
        if let Some(stored) = stored {
            // The writer answers every append; its end without an answer is a failure like any other.
            let stored = stored.await.unwrap_or(Err(StoreError::Closed));
            self.trace_written(stored.is_ok());
            stored.map_err(|error| {
                self.store_error(&error);
                SendError::Unknown(error)
            })?;
        }
        if let Some(awaited) = end {
            sent.outcome = self.awaited(awaited).await.map_or(Outcome::Stored, Outcome::from);
        }
        Ok(sent)
    }

    /// The answer to a repeated call: that of the first, once that one is durable. Under the log's lock.
    fn repeated(
        user: &Arc<User>,
        state: &mut UserState,
        offset: Offset,
        sessions: u32,
        fate: Option<oneshot::Receiver<Result<(), StoreError>>>,
        wait: Wait,
    ) -> Begun {
        let mut sent = Sent { offset: Some(offset), outcome: Outcome::Stored, sessions, duplicate: true };
        let mut end = None;
        if let Wait::Confirmed(until) = wait {
            let waits = state.log.entry(offset).is_some();
            // A cursor that is past one that is gone says nothing about how that one ended.
            let is_confirmed = state.log.entry(offset).is_some_and(|entry| entry.confirmed);
            let known = state.log.end_of(offset).or(is_confirmed.then_some(End::Confirmed));
            match known {
                Some(known) if !waits || known == End::Confirmed => sent.outcome = known.into(),
                _ if waits => end = Some(Self::wait_for(user, state, offset, until)),
                // It is gone, and how is not known any more: what the first call was told stands.
                _ => {}
            }
        }
        Begun { unflushed: Unflushed::default(), sent, stored: fate, end }
    }

    /// Will wait for the end of what is in the log; under its lock.
    fn wait_for(user: &Arc<User>, state: &mut UserState, offset: Offset, until: Instant) -> AwaitedEnd {
        let expires_at = state.log.entry(offset).map_or(UnixMillis(u64::MAX), |entry| entry.expires_at);
        AwaitedEnd { user: Arc::clone(user), end: state.log.wait_for(offset), until, expires_at }
    }

    /// Waits for an end; `None`: there was none in time, or the node stops.
    async fn awaited(&self, awaited: AwaitedEnd) -> Option<End> {
        let AwaitedEnd { user, mut end, until, expires_at } = awaited;
        let mut least = Duration::from_millis(1);
        loop {
            // The wall clock may be set, so the moment is worked out anew each time.
            let left = Duration::from_millis(expires_at.0.saturating_sub(self.clock().unix_millis().0)).max(least);
            let expiry = self.clock().now().checked_add(left);
            let moment = expiry.map_or(until, |expiry| expiry.min(until));
            tokio::select! {
                biased;
                ended = &mut end => return ended.ok(),
                () = tokio::time::sleep_until(moment) => {}
                () = self.0.life.stopping().cancelled() => return None,
            }
            if moment == until {
                // One that came with the moment counts.
                return end.try_recv().ok();
            }
            self.expire(&user, &mut user.state());
            if let Ok(ended) = end.try_recv() {
                return Some(ended);
            }
            // The log is being read anew, or the clock was set back.
            least = LOOK_AGAIN;
        }
    }

    /// Admission, offset, hand-over and staging, all under the log's lock and in one order.
    #[allow(clippy::too_many_arguments, reason = "one step of a send, split off for its lock's extent")]
    fn stage(
        &self,
        user: &Arc<User>,
        state: &mut UserState,
        notification: Arc<Notification>,
        draft: Draft,
        mut permit: Permit,
        own: Option<OwnId>,
        wait: Wait,
    ) -> Result<Begun, SendError> {
        // Admitted and loaded before the engine was lost, in whole or in part: nothing of it holds any more.
        self.ensure_fresh(&state.log)?;
        if permit.generation() != state.log.generation {
            return Err(SendError::Store(StoreError::Recovering("it was opened again meanwhile".into())));
        }
        let now = self.clock().now();
        let replaced = self.make_room(user, state, &notification)?;
        let offset = self.0.store.assign(&mut permit, state.log.last);
        #[cfg(test)]
        let offset = match &replaced {
            Some(old) if crate::planted::is(crate::planted::Bug::CollapseWithoutCursor) => old.offset,
            _ => offset,
        };
        state.log.push(entry(&notification, offset, own.is_some()));
        let unflushed = hand_out(state, &notification, draft, offset, now);
        #[cfg(test)]
        if crate::planted::is(crate::planted::Bug::CursorAtPush) {
            for handle in &unflushed.0 {
                state.device(&handle.device).map(|known| known.confirm(crate::session::Log::User, None, offset));
            }
        }
        let sessions = unflushed.count();
        if let Some(own) = &own {
            state.log.stage_id(own.id.clone(), offset, own.digest, sessions);
        }
        let end = match wait {
            Wait::Confirmed(until) => Some(Self::wait_for(user, state, offset, until)),
            Wait::Stored | Wait::Accepted => None,
        };
        let (done, stored) = (wait != Wait::Accepted).then(oneshot::channel).unzip();
        if let Some(old) = &replaced {
            let why = Why::Dropped(DropReason::Superseded);
            self.ended(&user.log(), &mut state.log, std::slice::from_ref(old), why);
        }
        let op = Op::Append {
            log: user.log(),
            offset,
            notification,
            replaces: replaced.as_ref().map(IndexEntry::place),
            emptied: state.log.emptied_by(replaced.as_ref()),
            remember: own.map(|own| (own.until, own.digest, sessions)),
            counters: state.log.counters(),
            permit,
            observer: Arc::clone(user) as Arc<dyn LogObserver>,
            done,
        };
        self.append(&mut state.log, op).map_err(SendError::Unknown)?;
        self.trace_sent(|| user.log(), offset, unflushed.0.iter().map(|session| session.id));
        let outcome = if wait == Wait::Accepted { Outcome::Accepted } else { Outcome::Stored };
        Ok(Begun { unflushed, sent: Sent { offset: Some(offset), outcome, sessions, duplicate: false }, stored, end })
    }

    /// To the sessions that are there now, and to nobody later.
    fn send_unstored(&self, to: &UserId, mut notification: Notification) -> Result<Begun, SendError> {
        // "Now or never" is about the store: what a live session's outbox took is written as soon as the socket takes it.
        notification.expires_at = None;
        let draft = self.draft(&notification, false)?;
        let outgoing = Outgoing::new(draft, &notification, None, false, true);
        let mut taken = Unflushed::default();
        if let Some(user) = self.0.users.get(to) {
            let state = user.state();
            if let [only] = &state.sessions[..] {
                // The usual case. With one session the order among its frames is all there is.
                let only = Arc::clone(only);
                drop(state);
                let sessions = u32::from(only.send(&outgoing));
                return Ok(Begun::settled(self.sent_unstored(sessions)));
            }
            for session in &state.sessions {
                if session.push(&outgoing) {
                    taken.0.push(Arc::clone(session));
                }
            }
        }
        let sent = self.sent_unstored(taken.count());
        Ok(Begun { unflushed: taken, ..Begun::settled(sent) })
    }

    /// What is not to be stored was handed to so many; counted.
    pub(super) fn sent_unstored(&self, sessions: u32) -> Sent {
        let (fate, outcome) = match sessions {
            0 => (Fate::Dropped, Outcome::Dropped),
            _ => (Fate::Accepted, Outcome::Accepted),
        };
        self.metrics().fate(fate, 1);
        Sent { offset: None, outcome, sessions, duplicate: false }
    }
}
