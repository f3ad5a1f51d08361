//! Ends: of single sessions, because a service wants it; and of the node, when nobody is let in any more, and whoever is there is told to
//! come back later.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{Hub, handle::Handle, send::CloseFilter, timers};
use crate::{
    protocol::{close::CloseCode, server},
    types::{ClosedBy, UserId},
};

/// The least time that a drained client is told to stay away.
const RECONNECT_AFTER_MIN: Duration = Duration::from_millis(500);
/// The least time that drained clients' returns are spread over.
const RECONNECT_SPREAD_MIN: Duration = Duration::from_secs(2);

impl Hub {
    /// Whether the node is stopping.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// From now on nobody is let in and nothing is accepted.
    pub fn begin_drain(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// Tells every session to come back later and closes it, evenly over `window`.
    pub async fn drain(&self, window: Duration) {
        let started = self.clock().now();
        let sessions = self.session_page(None, usize::MAX);
        let total = u32::try_from(sessions.len()).unwrap_or(u32::MAX).max(1);
        for (index, handle) in (0..total).zip(&sessions) {
            // A return spread over as long again as the close itself, so that the fleet does not come back at once. The
            // low bits of an id are random.
            let share = f64::from(handle.id.as_u128() as u16) / 65_536.0;
            let spread = RECONNECT_AFTER_MIN + window.max(RECONNECT_SPREAD_MIN).mul_f64(share);
            handle.reply(server::draining(spread));
            handle.flush();
            handle.close(CloseCode::RESTART, "restarting", ClosedBy::Gateway);
            let due = started + window * (index + 1) / total;
            if index.is_multiple_of(64) || due > self.clock().now() + timers::TICK {
                tokio::time::sleep_until(due.min(started + window)).await;
            }
        }
    }

    /// Resolves when there is no session left.
    pub async fn emptied(&self) {
        loop {
            let left = self.0.left.notified();
            if self.session_count() == 0 {
                return;
            }
            left.await;
        }
    }

    /// Begins to close sessions of a user. Returns how many.
    pub fn close_sessions(&self, user: &UserId, filter: &CloseFilter, code: CloseCode, reason: &str) -> u32 {
        let sessions = self.matching_sessions(user, filter);
        let closed = sessions.iter().filter(|handle| handle.close(code, reason, ClosedBy::Caller));
        u32::try_from(closed.count()).unwrap_or(u32::MAX)
    }

    pub(super) fn matching_sessions(&self, user: &UserId, filter: &CloseFilter) -> Vec<Arc<Handle>> {
        let mut sessions = self.user_sessions(user);
        sessions.retain(|handle| {
            filter.session.is_none_or(|id| id == handle.id)
                && filter.device.as_ref().is_none_or(|device| *device == handle.device)
        });
        sessions
    }
}
