//! What recorded calls have sent and devices are yet to confirm, by log and offset, for a while.
//!
//! Bounds: so many sends, so long, so many sessions of each. What a full table does not take is counted as lost.

use std::{
    collections::HashMap,
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
    table: Mutex<HashMap<(LogId, Offset), Sent>>,
    /// How many there are, for who need not take the lock.
    count: AtomicUsize,
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
        let mut table = self.table.lock();
        if table.len() >= limits::SPAN_SENDS_MAX {
            return false;
        }
        let open = sessions.take(limits::SPAN_SESSIONS_MAX as usize).collect();
        table.insert(place, Sent { call: Arc::clone(call), open, since: now });
        self.count.store(table.len(), Ordering::Relaxed);
        true
    }

    /// A session has confirmed; it may have got it later than at once.
    pub(super) fn confirmed(&self, log: LogId, offset: Offset, handed: &Handed, now: Instant) {
        let mut table = self.table.lock();
        let place = (log, offset);
        let Some(sent) = table.get_mut(&place) else { return };
        let Handed { session, handed_at, written_at } = *handed;
        let known = sent.open.len();
        sent.open.retain(|open| *open != session);
        let room = sent.call.has_room();
        if room {
            if let Some(written_at) = written_at {
                let attributes = vec![(SESSION, Value::Text(session.to_string()))];
                sent.call.child("deliver", (handed_at, written_at), attributes, None);
            }
            sent.call.child("confirm", (handed_at, now), about(session, "confirmed"), None);
        }
        // Where it was handed to nobody at once, others may come for it.
        if !room || (known > 0 && sent.open.is_empty()) {
            table.remove(&place);
            self.count.store(table.len(), Ordering::Relaxed);
        }
    }

    pub(super) fn left(&self, session: SessionId, now: Instant) {
        self.retain(|sent| {
            let known = sent.open.len();
            sent.open.retain(|open| *open != session);
            if sent.open.len() < known {
                sent.unconfirmed(session, now);
            }
            known == 0 || !sent.open.is_empty()
        });
    }

    pub(super) fn sweep(&self, now: Instant) {
        self.retain(|sent| {
            let over = now >= sent.since + limits::SPAN_CONFIRM_MAX;
            if over {
                sent.open.iter().for_each(|session| sent.unconfirmed(*session, now));
            }
            !over
        });
    }

    pub(super) fn close(&self, now: Instant) {
        self.retain(|sent| {
            sent.open.iter().for_each(|session| sent.unconfirmed(*session, now));
            false
        });
    }

    fn retain(&self, mut keep: impl FnMut(&mut Sent) -> bool) {
        let mut table = self.table.lock();
        table.retain(|_, sent| keep(sent));
        self.count.store(table.len(), Ordering::Relaxed);
    }
}
