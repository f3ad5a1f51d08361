//! What the writer does when its disk is full: the engine, which is of no use after a failed commit, is let go, the
//! ballast makes room, and the engine is opened again, for as long as it takes.
//!
//! Rules: nothing that was staged for the lost engine is written to the next. What the failed commit carried may or may
//! not be there: whoever keeps something in memory reads it anew, and knows by the generation that he must. Any other
//! failure than one for want of room ends the store.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    engine::{Engine, EngineError, Gone},
    keys::Key,
    open::{Own, Reopen},
    rows, witness,
    writer::Writer,
};
use crate::{
    limits,
    store::{StoreError, Totals},
};

/// How long another hand on the files is waited for: the lost engine's own threads, mostly.
const BUSY_MAX: Duration = Duration::from_secs(10);
/// An engine that is lost within this time since it was opened again was not worth opening so soon.
const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// How the engine of a writer is opened again.
pub struct Recovery {
    reopen: Reopen,
    epoch: uuid::Uuid,
    /// When it was opened last, and what was waited before.
    last: Option<(Instant, Duration)>,
}

impl Recovery {
    /// Opens by `reopen`, and expects to find the store `epoch`.
    pub fn new(reopen: Reopen, epoch: uuid::Uuid) -> Self {
        Self { reopen, epoch, last: None }
    }
}

impl Writer {
    /// Opens the engine again. Comes back when that is done, the store is closed, or has failed for good.
    pub(super) fn recover(&mut self) {
        let Some(mut recovery) = self.recovery.take() else { return };
        // Waits for the reads that are under way; then nobody holds the engine.
        let gone: Arc<dyn Engine> = Arc::new(Gone);
        *self.slot.write() = Arc::clone(&gone);
        self.engine = gone;
        self.written.clear();
        if let Some(room) = &mut self.room {
            room.release();
        }
        let begun = Instant::now();
        let mut delay = match recovery.last {
            Some((opened, delay)) if opened.elapsed() < SETTLED_AFTER => next_delay(delay),
            _ => Duration::ZERO,
        };
        loop {
            self.shared.progress.turn();
            if self.shared.queue.is_closed_within(delay) {
                break;
            }
            match self.reopened(&recovery) {
                Ok(()) => {
                    let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                    tracing::warn!(took_ms, "the store is open again");
                    recovery.last = Some((Instant::now(), delay));
                    self.shared.resume();
                    break;
                }
                Err(error) if error.is_no_space() => tracing::debug!(%error, "the store's disk is still full"),
                Err(EngineError::Busy) if begun.elapsed() < BUSY_MAX => {}
                Err(error) => {
                    self.shared.fail(&StoreError::Failed(format!("it could not be opened again: {error}").into()));
                    break;
                }
            }
            delay = next_delay(delay);
        }
        self.recovery = Some(recovery);
    }

    fn reopened(&mut self, recovery: &Recovery) -> Result<(), EngineError> {
        let shared = Arc::clone(&self.shared);
        let (engine, totals) = {
            let _running = shared.progress.begin();
            let engine = (recovery.reopen)()?;
            // No power was lost meanwhile: what is missing is damage, and the next start sees to that.
            let (before, now) = (self.tally.commits, witness::commits_of(&*engine)?);
            if now < before {
                let lost = before - now;
                return Err(EngineError::Corrupt(format!("it went back to an earlier state: {lost} commits are lost")));
            }
            let totals = self.adopt(&*engine, recovery.epoch)?;
            (engine, totals)
        };
        *self.shared.totals.lock() = totals;
        self.tally.commits = witness::commits_of(&*engine)?;
        *self.slot.write() = Arc::clone(&engine);
        self.engine = engine;
        self.take_stock();
        Ok(())
    }

    /// Finds the store in an engine, and proves that it can be written.
    fn adopt(&self, engine: &dyn Engine, epoch: uuid::Uuid) -> Result<Totals, EngineError> {
        let own = Own::of(engine)?;
        if own.epoch != epoch {
            return Err(EngineError::Corrupt("another store lies there now".into()));
        }
        let sequencer = &self.shared.sequencer;
        // The failed commit may have raised it.
        sequencer.raised(own.mark);
        let mark = sequencer.next_mark(true).unwrap_or_else(|| sequencer.mark());
        engine.commit(vec![(Key::Mark.encode(), Some(rows::encode_mark(mark)))])?;
        sequencer.raised(mark);
        Ok(own.totals)
    }
}

fn next_delay(delay: Duration) -> Duration {
    let (first, longest) = limits::STORE_REOPEN_DELAY;
    (delay * 2).clamp(first, longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_longer_each_time_up_to_a_bound() {
        let delays: Vec<_> =
            std::iter::successors(Some(Duration::ZERO), |delay| Some(next_delay(*delay))).take(9).collect();
        let millis = [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000];
        assert_eq!(delays, millis.map(Duration::from_millis));
    }
}
