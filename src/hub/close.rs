//! Ends of single sessions, because a service wants it.

use std::sync::Arc;

use super::{Hub, handle::Handle, send::CloseFilter};
use crate::{
    protocol::close::CloseCode,
    types::{ClosedBy, UserId},
};

impl Hub {
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
