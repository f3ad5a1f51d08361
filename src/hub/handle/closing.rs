//! A session's end: why it is closed and by whom, and how that begins.

use super::{Core, Handle};
use crate::{
    clock::Instant,
    limits::Limit,
    protocol::{close::CloseCode, frame::ControlFrame},
    session::{Counts, Verdict},
    types::ClosedBy,
};

/// Why and by whom a session is being closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closing {
    /// The code that the client is told, or that is recorded where it is not told one.
    pub code: CloseCode,
    /// In words.
    pub reason: Box<str>,
    /// Who did it.
    pub by: ClosedBy,
    /// When it began.
    pub since: Instant,
    /// The connection is broken: nothing can be written any more.
    pub broken: bool,
    /// The peer's close frame has arrived.
    pub peer_closed: bool,
}

impl Closing {
    /// The connection broke.
    pub(in crate::hub) fn lost(since: Instant) -> Self {
        let reason = "connection lost".into();
        Self { code: CloseCode::ABNORMAL, reason, by: ClosedBy::Client, since, broken: true, peer_closed: false }
    }
}

impl Handle {
    /// Begins to close the session: whole queued frames are dropped, the close frame is queued, the task is woken to
    /// see it through. Only the first close counts; returns whether this was it.
    pub fn close(&self, code: CloseCode, reason: &str, by: ClosedBy) -> bool {
        self.close_and_count(code, reason, by, None)
    }

    /// Closes the session by a rule of the gateway, and counts it.
    pub fn close_by_rule(&self, verdict: Verdict) {
        self.close_and_count(verdict.code, verdict.reason, ClosedBy::Gateway, verdict.counts);
    }

    /// Closes the session for what the peer did wrong, in its own words, and counts it.
    pub fn close_for_failure(&self, code: CloseCode, reason: &str, counts: impl Into<Counts>) {
        self.close_and_count(code, reason, ClosedBy::Gateway, Some(counts.into()));
    }

    fn close_and_count(&self, code: CloseCode, reason: &str, by: ClosedBy, counts: Option<Counts>) -> bool {
        let since = self.shared.clock.now();
        let closing = Closing { code, reason: reason.into(), by, since, broken: false, peer_closed: false };
        let first = self.close_core(&mut self.core.lock(), closing);
        if first {
            // Before the frame is out: whoever sees it finds it counted.
            if let Some(counts) = counts {
                counts.count(&self.shared.metrics);
            }
            self.flush();
        }
        first
    }

    /// The peer's close frame arrived: it is answered in kind (RFC 6455 section 5.5.1), or it answers ours.
    pub fn closed_by_peer(&self, code: Option<CloseCode>, reason: &str) {
        let since = self.shared.clock.now();
        let mut core = self.core.lock();
        let recorded = code.unwrap_or(CloseCode::NO_STATUS);
        let closing = Closing {
            code: recorded,
            reason: reason.into(),
            by: ClosedBy::Client,
            since,
            broken: false,
            peer_closed: true,
        };
        if !self.close_core(&mut core, closing)
            && let Some(closing) = &mut core.closing
        {
            closing.peer_closed = true;
        }
        drop(core);
        self.flush();
    }

    /// The connection broke.
    pub fn broke(&self) {
        let mut core = self.core.lock();
        match &mut core.closing {
            Some(closing) => closing.broken = true,
            None => {
                core.closing = Some(Box::new(Closing::lost(self.shared.clock.now())));
            }
        }
        drop(core);
        self.wake();
    }

    pub(super) fn close_core(&self, core: &mut Core, closing: Closing) -> bool {
        if core.closing.is_some() {
            return false;
        }
        // A peer's close is answered with its code; "no code" by a close frame without one.
        let reason = if closing.by == ClosedBy::Client { "" } else { &*closing.reason };
        let frame = ControlFrame::close(closing.code, reason);
        core.outbox.close(frame.as_bytes());
        core.closing = Some(Box::new(closing));
        self.wake();
        true
    }
}

impl Verdict {
    /// The client does not take what is written to it: of its bytes, or for so long.
    pub const fn slow_consumer(limit: Limit) -> Verdict {
        Verdict { code: CloseCode::SLOW_CONSUMER, reason: "slow_consumer", counts: Some(Counts::Limit(limit)) }
    }

    pub(super) fn into_closing(self, since: Instant) -> Closing {
        let Verdict { code, reason, .. } = self;
        Closing { code, reason: reason.into(), by: ClosedBy::Gateway, since, broken: false, peer_closed: false }
    }
}
