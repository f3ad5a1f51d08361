//! Broadcasts: to every session that is connected, and where they are durable also to every known device that was away,
//! on its next connection, from a log of their own.
//!
//! A durable one is assigned, staged and queued for the fan-out under the broadcast log's lock, so that every session is
//! offered them in the order of their offsets. Lock order: a user's state, the broadcast log, a session's core.

use std::sync::{Arc, Weak, atomic::Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::{
    Hub,
    admit::entry,
    ends::Why,
    filter::Filter,
    handle::Handle,
    log::{Known, LogState},
    outgoing::Outgoing,
    send::{Outcome, SendError, Sent},
};
use crate::{
    limits,
    metrics::Failure,
    store::{IndexEntry, LogObserver, Op, StoreError},
    types::{DropReason, LogId, Notification, Offset},
};

/// The log of durable broadcasts, in memory.
#[derive(Debug, Default)]
pub struct Broadcasts {
    state: Mutex<BroadcastState>,
    /// One load at a time.
    loading: tokio::sync::Mutex<()>,
}

/// See [`Broadcasts`].
#[derive(Debug, Default)]
pub struct BroadcastState {
    /// The log.
    pub log: LogState,
    /// Sessions that wait for more of it to be readable, each once.
    pub waiting: Vec<Weak<Handle>>,
}

impl Broadcasts {
    /// Its state; what the log's lock protects.
    pub fn state(&self) -> MutexGuard<'_, BroadcastState> {
        self.state.lock()
    }

    fn wake_waiting(&self) {
        let waiting = std::mem::take(&mut self.state.lock().waiting);
        for handle in waiting.iter().filter_map(Weak::upgrade) {
            handle.waits_for_broadcasts.store(false, Ordering::Release);
            handle.wake();
        }
    }
}

impl LogObserver for Broadcasts {
    fn applied(&self, upto: Offset) {
        self.state.lock().log.applied(upto);
        self.wake_waiting();
    }

    fn failed(&self, error: &StoreError) {
        self.state.lock().log.failed(error);
        self.wake_waiting();
    }
}

impl Hub {
    /// The broadcast log, read from the store where that was not done yet, or before the store's engine was lost.
    pub(super) async fn broadcasts(&self) -> Result<&Arc<Broadcasts>, StoreError> {
        let broadcasts = &self.0.broadcasts;
        while self.is_stale(&broadcasts.state().log) {
            let _one_at_a_time = broadcasts.loading.lock().await;
            if self.is_stale(&broadcasts.state().log) {
                // Taken first: where the engine is lost during the read, it is stale again.
                let generation = self.0.store.generation();
                let mut mailbox = self.0.store.load_broadcasts().await.inspect_err(|error| self.store_error(error))?;
                if let Some(damage) = &mailbox.damaged {
                    self.metrics().failure(Failure::StoreDamage);
                    tracing::error!(%damage, "durable broadcasts are missing or damaged");
                }
                {
                    let mut state = broadcasts.state();
                    state.log.load_mailbox(&mut mailbox);
                    state.log.generation = generation;
                }
                broadcasts.wake_waiting();
            }
        }
        Ok(broadcasts)
    }

    /// Hands a notification to every session that is connected now, those of `not_for` left out.
    pub async fn broadcast(&self, notification: Notification) -> Result<Sent, SendError> {
        self.broadcast_to(Filter::default(), notification).await
    }

    /// The same, to those sessions alone that pass the filter.
    pub async fn broadcast_to(&self, filter: Filter, mut notification: Notification) -> Result<Sent, SendError> {
        if self.is_draining() {
            return Err(SendError::Draining);
        }
        if notification.is_now_or_never() {
            notification.expires_at = None;
        }
        let draft = self.draft(&notification, false)?;
        let outgoing = Outgoing::new(draft, &notification, None, false, true);
        let room = self.0.sessions.room(&outgoing).await;
        let filter = (!filter.is_empty()).then_some(filter);
        let (job, handed) = self.0.sessions.job(outgoing, Arc::new(notification), filter, None, room);
        self.0.sessions.enqueue(job, &self.0.life);
        let sessions = handed.await.unwrap_or_default();
        Ok(self.sent_unstored(sessions))
    }

    /// Broadcasts durably. Returns once it is on disk and was handed to every session that is connected now.
    pub async fn broadcast_durably(&self, notification: Notification, own_id: bool) -> Result<Sent, SendError> {
        if self.is_draining() {
            return Err(SendError::Draining);
        }
        let draft = self.draft(&notification, true)?;
        let broadcasts = Arc::clone(self.broadcasts().await?);
        let own = self.own_id(&notification, own_id);
        let notification = Arc::new(notification);
        let mut permit = None;
        let (handed, stored, offset) = loop {
            let as_of = broadcasts.state().log.settled_ids;
            let log = LogId::Broadcast;
            let mut on_disk = None;
            if let Some(own) = &own {
                on_disk = self.0.store.remembered(&log, &own.id, self.clock().unix_millis()).await?;
            }
            if permit.is_none() && on_disk.is_none() {
                // First the one that may take long: the other is room for the writer.
                let room = self.0.sessions.room_for(draft.message_bytes()).await;
                permit = Some((self.0.store.permit(notification.accounted_bytes()).await?, room));
            }
            let joined = {
                let mut guard = broadcasts.state();
                let state = &mut *guard;
                self.ensure_fresh(&state.log)?;
                match own.as_ref().map_or(Known::Free, |own| state.log.staged_id(&own.id, &own.digest)) {
                    Known::Taken => return Err(SendError::IdTaken),
                    Known::Same { offset, sessions, fate } => (offset, sessions, fate),
                    // A row may be seen before its commit is durable: then it is still among what is staged.
                    Known::Free if let Some((known, own)) = on_disk.as_ref().zip(own.as_ref()) => {
                        self.ensure_durable(&state.log)?;
                        if known.digest != own.digest {
                            return Err(SendError::IdTaken);
                        }
                        (known.offset, known.sessions, None)
                    }
                    Known::Free if own.is_some() && state.log.settled_ids != as_of => continue,
                    Known::Free => {
                        let Some((mut permit, room)) = permit.take() else { continue };
                        if permit.generation() != state.log.generation {
                            return Err(SendError::Store(StoreError::Recovering(
                                "it was opened again meanwhile".into(),
                            )));
                        }
                        let replaced = self.make_broadcast_room(state, &notification)?;
                        let offset = self.0.store.assign(&mut permit, state.log.last);
                        state.log.push(entry(&notification, offset, own.is_some()));
                        if let Some(own) = &own {
                            state.log.stage_id(own.id.clone(), offset, own.digest, 0);
                        }
                        if let Some(old) = &replaced {
                            let why = Why::Dropped(DropReason::Superseded);
                            self.ended(&log, &mut state.log, std::slice::from_ref(old), why);
                        }
                        let (done, stored) = oneshot::channel();
                        let op = Op::Append {
                            log,
                            offset,
                            notification: Arc::clone(&notification),
                            replaces: replaced.as_ref().map(IndexEntry::place),
                            emptied: state.log.emptied_by(replaced.as_ref()),
                            remember: own.as_ref().map(|own| (own.until, own.digest, 0)),
                            counters: state.log.counters(),
                            permit,
                            observer: Arc::clone(&broadcasts) as Arc<dyn LogObserver>,
                            done: Some(done),
                        };
                        self.append(&mut state.log, op).map_err(SendError::Unknown)?;
                        let outgoing = Outgoing::new(draft, &notification, Some(offset), false, true);
                        let (job, handed) =
                            self.0.sessions.job(outgoing, Arc::clone(&notification), None, Some(offset), room);
                        self.0.sessions.enqueue(job, &self.0.life);
                        break (handed, stored, offset);
                    }
                }
            };
            let (offset, sessions, fate) = joined;
            if let Some(fate) = fate {
                self.durable(fate).await?;
            }
            return Ok(repeated(offset, sessions));
        };
        let sessions = handed.await.unwrap_or_default();
        self.durable(stored).await?;
        Ok(Sent { offset: Some(offset), outcome: Outcome::Stored, sessions, duplicate: false })
    }

    async fn durable(&self, stored: oneshot::Receiver<Result<(), StoreError>>) -> Result<(), SendError> {
        stored.await.unwrap_or(Err(StoreError::Closed)).map_err(|error| {
            self.store_error(&error);
            SendError::Unknown(error)
        })
    }

    /// Takes out what the broadcast takes the place of; or sees to it that there is room for one more.
    fn make_broadcast_room(
        &self,
        state: &mut BroadcastState,
        notification: &Notification,
    ) -> Result<Option<IndexEntry>, SendError> {
        if let Some(key) = &notification.collapse_key {
            self.expire_broadcasts(state);
            if let Some(replaced) = state.log.take_collapsed(key) {
                return Ok(Some(replaced));
            }
        }
        if state.log.index.len() >= limits::BROADCASTS_MAX {
            self.expire_broadcasts(state);
        }
        if state.log.index.len() >= limits::BROADCASTS_MAX {
            return Err(SendError::BroadcastsFull { pending: state.log.index.len() });
        }
        Ok(None)
    }

    /// Deletes the durable broadcasts that have expired, under the log's lock; how many.
    pub(super) fn expire_broadcasts(&self, state: &mut BroadcastState) -> usize {
        if self.is_stale(&state.log) {
            return 0;
        }
        let entries = state.log.take_expired(self.clock().unix_millis());
        self.end_broadcasts(&mut state.log, &entries, Why::Expired);
        entries.len()
    }
}

fn repeated(offset: Offset, sessions: u32) -> Sent {
    Sent { offset: Some(offset), outcome: Outcome::Stored, sessions, duplicate: true }
}
