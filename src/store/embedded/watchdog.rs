//! Watches the writer from a thread of its own: a commit that does not end (a disk that hangs) is nudged, in case an
//! error only went unheard; then it shows in the store's health, and then ends the process. Nothing is lost by that, since
//! all that was acknowledged is flushed; whoever supervises the process starts it again, and callers and clients meet a
//! gateway that works or one that is not there.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{reader::Slot, shared::Shared};
use crate::limits;

/// What the process exits with (EX_IOERR).
const EXIT_STUCK: i32 = 74;

/// When a commit is stuck, and what is done then.
pub struct Watchdog {
    /// How long a commit may run.
    pub stuck_after: Duration,
    /// How long it has from then on.
    pub grace: Duration,
    /// Ends the process.
    pub end: fn(),
}

impl Default for Watchdog {
    fn default() -> Self {
        Self {
            stuck_after: limits::STORE_STUCK_AFTER,
            grace: limits::STORE_STUCK_GRACE,
            // Without a core: it would hold tokens and notifications, and who is stuck is known.
            end: || std::process::exit(EXIT_STUCK),
        }
    }
}

impl Watchdog {
    /// Watches until the writer ends.
    pub fn run(&self, shared: &Arc<Shared>, slot: &Slot) {
        let step = (self.stuck_after.min(self.grace) / 5).max(Duration::from_millis(1));
        let mut stuck = None;
        while !shared.progress.is_over_within(step) {
            let running = shared.progress.running();
            if running.is_some_and(|(_, since)| since.elapsed() >= step)
                && let Some(engine) = slot.try_read()
            {
                engine.nudge();
            }
            if let Some((commit, _)) = stuck
                && running.is_none_or(|(now, _)| now != commit)
            {
                tracing::warn!("the commit that was stuck has ended");
                stuck = None;
                shared.set_stuck(false);
            }
            if let Some((commit, since)) = running
                && stuck.is_none()
                && since.elapsed() >= self.stuck_after
            {
                stuck = Some((commit, Instant::now()));
                tracing::error!(
                    grace_ms = u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX),
                    "a commit of the store does not end; unless it does, the process is ended"
                );
                shared.set_stuck(true);
            }
            if stuck.is_some_and(|(_, since)| since.elapsed() >= self.grace) {
                (self.end)();
                return;
            }
        }
    }
}
