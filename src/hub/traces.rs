//! What the hub tells of a recorded call: that what it sends went to the writer, is on disk, and who confirmed it.

use super::{Hub, handle::Handle};
use crate::{
    session::Confirmed,
    trace::{Handed, Tracer},
    types::{LogId, Offset, SessionId},
};

impl Hub {
    /// Records calls, or does not.
    pub fn tracer(&self) -> &Tracer {
        &self.0.tracer
    }

    /// What the current call sends has its place and goes to the writer, and to these sessions. Under the log's lock, so that
    /// nobody confirms it before.
    pub(super) fn trace_sent(
        &self,
        log: impl FnOnce() -> LogId,
        offset: Offset,
        sessions: impl Iterator<Item = SessionId>,
    ) {
        if let Some(call) = self.tracer().current() {
            call.sent(log(), offset, sessions);
        }
    }

    /// It is on disk, or could not be brought there.
    pub(super) fn trace_written(&self, done: bool) {
        if let Some(call) = self.tracer().current() {
            call.written(done);
        }
    }

    /// A session has confirmed these. Under its user's lock, which is that of his log.
    pub(super) fn trace_confirmed(&self, handle: &Handle, confirmed: &[Confirmed]) {
        if !self.tracer().awaits_confirmations() {
            return;
        }
        for one in confirmed {
            let log = self.shared_log_of(handle, one.log).unwrap_or_else(|| handle.user.log());
            let handed = Handed { session: handle.id, handed_at: one.handed_at, written_at: one.written_at };
            self.tracer().confirmed(log, one.offset, &handed);
        }
    }
}
