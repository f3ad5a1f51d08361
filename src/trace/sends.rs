//! What recorded calls have sent and devices are yet to confirm, by log and offset, for a while.
//!
//! Bounds: so many sends, so long, so many sessions of each. What a full table does not take is counted as lost.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;

use super::{Recorded, Value};
use crate::{
    clock::Instant,
    limits,
    types::{LogId, Offset, SessionId},
};

/// How the end of a wait is called.
const OUTCOME: &str = "pushgate.outcome";
/// Whose wait it was.
const SESSION: &str = "pushgate.session.id";

/// A session that has confirmed, and what is known of the way there.
#[derive(Clone, Copy, Debug)]
pub struct Handed {
    /// The session.
    pub session: SessionId,
    /// When it was handed over to it.
    pub handed_at: Instant,
    /// When the last of it went into the socket, where that is known.
    pub written_at: Option<Instant>,
}

/// What a recorded call has sent.
struct Sent {
    call: Arc<Recorded>,
    /// Sessions that it was handed to and that have not confirmed.
    open: Vec<SessionId>,
    since: Instant,
}

impl Sent {
    fn unconfirmed(&self, session: SessionId, now: Instant) {
        if self.call.has_room() {
            self.call.child("confirm", (self.since, now), about(session, "unconfirmed"), None);
        }
    }
}

fn about(session: SessionId, outcome: &str) -> super::Attributes {
    vec![(SESSION, Value::Text(session.to_string())), (OUTCOME, Value::Text(outcome.to_owned()))]
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Sends {
    table: Mutex<Table>,
    /// How many there are, for who need not take the lock.
    count: AtomicUsize,
}

#[derive(Default)]
struct Table {
    sends: HashMap<(LogId, Offset), Sent>,
    /// In how many of them a session is, so that whoever leaves is looked for only where he is.
    open: HashMap<SessionId, u32>,
}

impl Table {
    /// The session is in one less.
    fn release(open: &mut HashMap<SessionId, u32>, session: SessionId) {
        if let Entry::Occupied(mut count) = open.entry(session) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// Takes out all that `over` says of; nobody is to confirm them any more.
    fn end(&mut self, now: Instant, over: impl Fn(&Sent) -> bool) {
        for (_, sent) in self.sends.extract_if(|_, sent| over(sent)) {
            for session in &sent.open {
                sent.unconfirmed(*session, now);
                Self::release(&mut self.open, *session);
            }
        }
    }
}

impl Sends {
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Notes one; `false`: there are too many.
    pub(super) fn note(
        &self,
        call: &Arc<Recorded>,
        place: (LogId, Offset),
        sessions: impl Iterator<Item = SessionId>,
        now: Instant,
    ) -> bool {
        self.with(|table| {
            if table.sends.len() >= limits::SPAN_SENDS_MAX {
                return false;
            }
            let open: Vec<_> = sessions.take(limits::SPAN_SESSIONS_MAX as usize).collect();
            for session in &open {
                *table.open.entry(*session).or_default() += 1;
            }
            table.sends.insert(place, Sent { call: Arc::clone(call), open, since: now });
            true
        })
    }

    /// A session has confirmed; it may have got it later than at once.
    pub(super) fn confirmed(&self, log: LogId, offset: Offset, handed: &Handed, now: Instant) {
        let Handed { session, handed_at, written_at } = *handed;
        self.with(|table| {
            let Entry::Occupied(mut entry) = table.sends.entry((log, offset)) else { return };
            let sent = entry.get_mut();
            let found = sent.open.iter().position(|open| *open == session);
            if let Some(at) = found {
                sent.open.swap_remove(at);
                Table::release(&mut table.open, session);
            }
            let room = sent.call.has_room();
            if room {
                if let Some(written_at) = written_at {
                    let attributes = vec![(SESSION, Value::Text(session.to_string()))];
                    sent.call.child("deliver", (handed_at, written_at), attributes, None);
                }
                sent.call.child("confirm", (handed_at, now), about(session, "confirmed"), None);
            }
            // Where it was handed to nobody at once, others may come for it.
            if !room || (found.is_some() && sent.open.is_empty()) {
                let sent = entry.remove();
                sent.open.iter().for_each(|session| Table::release(&mut table.open, *session));
            }
        });
    }

    pub(super) fn left(&self, session: SessionId, now: Instant) {
        self.with(|table| {
            if table.open.remove(&session).is_none() {
                return;
            }
            table.sends.retain(|_, sent| {
                let Some(at) = sent.open.iter().position(|open| *open == session) else { return true };
                sent.open.swap_remove(at);
                sent.unconfirmed(session, now);
                !sent.open.is_empty()
            });
        });
    }

    pub(super) fn sweep(&self, now: Instant) {
        self.with(|table| table.end(now, |sent| now >= sent.since + limits::SPAN_CONFIRM_MAX));
    }

    pub(super) fn close(&self, now: Instant) {
        self.with(|table| table.end(now, |_| true));
    }

    fn with<T>(&self, does: impl FnOnce(&mut Table) -> T) -> T {
        let mut table = self.table.lock();
        let done = does(&mut table);
        self.count.store(table.sends.len(), Ordering::Relaxed);
        done
    }

    /// Whether nothing is left of what was noted.
    #[cfg(test)]
    pub(super) fn is_clean(&self) -> bool {
        let table = self.table.lock();
        table.sends.is_empty() && table.open.is_empty()
    }
}
