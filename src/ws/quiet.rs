//! Log lines that anybody can cause as often as he likes: beyond so many, one line says how many more there were.

use std::{sync::Arc, time::Duration};

use crate::{
    clock::Instant,
    hub::Ended,
    lifecycle::Lifecycle,
    metrics::{Line, Repeats},
    protocol::close::CloseCode,
};

/// A session that was shorter is one that anybody with a token, or as a guest, can have over and over.
const SHORT_SESSION: Duration = Duration::from_secs(1);

/// The lines of one kind.
pub struct Quiet {
    what: &'static str,
    life: Lifecycle,
    lines: Arc<Repeats>,
}

impl Quiet {
    /// Lines that say this.
    pub fn new(what: &'static str, life: &Lifecycle) -> Self {
        Self { what, life: life.clone(), lines: Arc::default() }
    }

    /// Whether one more is written.
    pub fn admits(&self) -> bool {
        let span = match self.lines.line(Instant::now()) {
            Line::Write => return true,
            Line::LeaveOut(None) => return false,
            Line::LeaveOut(Some(span)) => span,
        };
        let (what, lines, stopping) = (self.what, Arc::clone(&self.lines), self.life.stopping().clone());
        self.life.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(span) => {}
            }
            let more = lines.left_out();
            tracing::info!(more, "{more} more like this: {what}");
        });
        false
    }
}

/// Whether the end of a session is one of those that anybody can cause as often as he likes: a guest's, a short one's, one for
/// what the client did wrong.
pub fn is_cheap(ended: &Ended, guest: bool) -> bool {
    const WRONG: [CloseCode; 6] = [
        CloseCode::PROTOCOL,
        CloseCode::UNSUPPORTED,
        CloseCode::INVALID_UTF8,
        CloseCode::TOO_BIG,
        CloseCode::BAD_MESSAGES,
        CloseCode::RATE_LIMIT,
    ];
    guest || ended.duration < SHORT_SESSION || WRONG.contains(&ended.closing.code)
}
