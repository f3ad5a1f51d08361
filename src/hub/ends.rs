//! How notifications leave a log: each end is told to whoever waits for it, counted, an event, and written.

use super::{
    Hub,
    handle::Handle,
    log::{End, LogState},
    user::{User, UserState},
};
use crate::{
    metrics::{Failure, Fate},
    session::Log,
    store::{Done, IndexEntry, Op},
    types::{Device, DropReason, EventBody, LogId, UserId},
};

/// Why notifications leave a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Every device has confirmed them, or is past them.
    Done,
    /// Their TTL ran out.
    Expired,
    /// For a reason that callers are told.
    Dropped(DropReason),
    /// What was stored of them is damaged; that was reported already.
    Damaged,
}

impl Why {
    fn end(self) -> End {
        match self {
            Why::Done => End::Confirmed,
            Why::Expired => End::Expired,
            Why::Dropped(DropReason::Superseded) => End::Superseded,
            Why::Dropped(DropReason::Purged | DropReason::UserForgotten) => End::Purged,
            Why::Dropped(_) | Why::Damaged => End::Dropped,
        }
    }
}

/// In numbers; none of what was damaged.
fn fate(why: Why) -> Option<Fate> {
    match why {
        Why::Done => Some(Fate::Confirmed),
        Why::Expired => Some(Fate::Expired),
        Why::Dropped(DropReason::Superseded) => Some(Fate::Superseded),
        Why::Dropped(DropReason::Purged | DropReason::UserForgotten) => Some(Fate::Purged),
        Why::Dropped(_) => Some(Fate::Dropped),
        Why::Damaged => None,
    }
}

impl Hub {
    /// Notifications have left their log: tells, counts and reports it. Whoever holds the log's lock deletes them.
    pub(super) fn ended(&self, log: &LogId, state: &mut LogState, entries: &[IndexEntry], why: Why) {
        if let Some(fate) = fate(why) {
            self.metrics().fate(fate, entries.len());
        }
        for entry in entries {
            state.ended(entry.offset, entry.remembered, why.end());
            match why {
                Why::Done | Why::Damaged => {}
                Why::Expired => {
                    self.metrics().failure(Failure::Expired);
                    let (log, id, offset) = (log.clone(), entry.id.clone(), entry.offset);
                    self.0.events.emit(EventBody::NotificationExpired { log, id, offset });
                }
                Why::Dropped(reason) => self.dropped(log.clone(), None, entry, reason),
            }
        }
    }

    /// A notification was dropped: for one device, or for all that lack it.
    pub(super) fn dropped(&self, log: LogId, device: Option<(UserId, Device)>, entry: &IndexEntry, reason: DropReason) {
        let failure = match reason {
            DropReason::LaggardLost => Some(Failure::LaggardLost),
            DropReason::Overflow => Some(Failure::OverflowLost),
            DropReason::MaxAttempts => Some(Failure::MaxAttempts),
            // What a caller asked for is no failure.
            DropReason::Superseded
            | DropReason::Purged
            | DropReason::DeviceForgotten
            | DropReason::UserForgotten
            | DropReason::TopicFull => None,
        };
        if let Some(failure) = failure {
            self.metrics().failure(failure);
        }
        let (id, offset) = (entry.id.clone(), entry.offset);
        self.0.events.emit(EventBody::NotificationDropped { log, device, id, offset, reason });
    }

    /// Ends notifications that were taken out of a user's log, and deletes them, under the log's lock.
    pub(super) fn end(&self, user: &User, state: &mut UserState, entries: &[IndexEntry], why: Why) {
        if !entries.is_empty() {
            self.ended(&user.log(), &mut state.log, entries, why);
            self.delete(&user.log(), &mut state.log, entries, None);
        }
    }

    /// Ends what was taken out of a log that many read, and deletes it, under its lock.
    pub(super) fn end_shared(&self, log: &LogId, state: &mut LogState, entries: &[IndexEntry], why: Why) {
        if !entries.is_empty() {
            self.ended(log, state, entries, why);
            self.delete(log, state, entries, None);
        }
    }

    /// Stages the deletion of what was taken out of a log, under its lock.
    pub(super) fn delete(&self, log: &LogId, state: &mut LogState, entries: &[IndexEntry], done: Option<Done>) {
        let (places, emptied) = (entries.iter().map(IndexEntry::place).collect(), state.emptied(entries));
        let (log, counters, hold) = (log.clone(), state.counters(), state.hold.clone());
        self.write_counted(state, Op::Delete { log, places, emptied, counters, hold, done });
    }

    /// Deletes what every device has: what is not written yet, and for which nobody waits, never will be.
    fn delete_done(&self, log: &LogId, state: &mut LogState, mut entries: Vec<IndexEntry>) {
        let offsets: Vec<_> = entries.iter().map(|entry| entry.offset).collect();
        let recalled = self.0.store.recall(state.generation, &offsets, &mut state.recallable);
        let written: Vec<_> = entries.extract_if(.., |entry| recalled.binary_search(&entry.offset).is_err()).collect();
        if !written.is_empty() || state.has_bare_buckets() {
            self.delete(log, state, &written, None);
        }
        if !entries.is_empty() {
            state.pass_recalled();
        }
    }

    /// Deletes what has expired, under the log's lock; how many.
    pub(super) fn expire(&self, user: &User, state: &mut UserState) -> usize {
        if self.is_stale(&state.log) {
            return 0;
        }
        let entries = state.log.take_expired(self.clock().unix_millis());
        self.end(user, state, &entries, Why::Expired);
        entries.len()
    }

    /// Deletes what was left out of the session's socket because its TTL had run out, before a cursor moves past it: it
    /// ends as expired and not as confirmed, whatever the clock says by now.
    pub(super) fn end_left_out(&self, handle: &Handle, state: &mut UserState) {
        let left_out = handle.core().session.delivery.take_expired();
        for (of, offset) in left_out {
            match of {
                Log::User => {
                    let entries = state.log.take_offsets(&[offset]);
                    self.end(&handle.user, state, &entries, Why::Expired);
                }
                Log::Broadcast | Log::Topic(_) => {
                    let followed = handle.followed(of);
                    let shared = if of == Log::Broadcast { Some(&self.0.broadcasts) } else { followed.as_ref() };
                    // One of a topic that it is in no more is found by the sweep.
                    let Some(shared) = shared else { continue };
                    let mut state = shared.state();
                    let entries = state.log.take_offsets(&[offset]);
                    self.end_shared(&shared.id, &mut state.log, &entries, Why::Expired);
                }
            }
        }
    }

    /// Deletes what every device is past and nobody has yet to take, under the log's lock. What none of them confirmed
    /// waited for a device that was forgotten.
    pub(super) fn drop_done(&self, user: &User, state: &mut UserState) {
        if self.is_stale(&state.log) {
            return;
        }
        let entries = state.take_done();
        if entries.is_empty() {
            return;
        }
        let log = user.log();
        for entry in &entries {
            let why = if entry.confirmed { Why::Done } else { Why::Dropped(DropReason::DeviceForgotten) };
            self.ended(&log, &mut state.log, std::slice::from_ref(entry), why);
        }
        self.delete_done(&log, &mut state.log, entries);
    }
}
