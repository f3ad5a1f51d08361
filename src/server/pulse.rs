//! The pulse: how late the runtime's tasks get their turn. A task sleeps a short span over and over and looks how much
//! later than that it runs; whatever keeps the workers from their queue (a long turn, too many turns before it, a system
//! that gives the process no core) shows in it.
//!
//! The timer's own grain is a millisecond, so that a delay below it says nothing. What is recorded is in
//! [`Metrics::scheduler_delay`](crate::metrics::Inner::scheduler_delay); the longest of each quarter of a second is logged at `trace`
//! (`log.filter = "info,pushgate::server::pulse=trace"`), a bad one at `warn`.

use std::{convert::Infallible, time::Duration};

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{limits, metrics::Metrics};

/// How often it is looked. A hundred wake-ups a second cost an idle daemon about a thousandth of a core.
const BEAT: Duration = Duration::from_millis(10);
/// Beats of a line at `trace`.
const BEATS_A_LINE: u32 = 25;
/// How far apart warnings are at least.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Runs until it is told to stop.
pub async fn run(metrics: Metrics, stop: CancellationToken) -> Result<(), Infallible> {
    let mut beats = tokio::time::interval(BEAT);
    // The beat that was late counts once, with all of its delay.
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut quarter = Late::default();
    let mut bad = Late::default();
    let mut warned: Option<Instant> = None;
    loop {
        let due = tokio::select! {
            due = beats.tick() => due,
            () = stop.cancelled() => return Ok(()),
        };
        let now = Instant::now();
        let delay = now.saturating_duration_since(due);
        metrics.scheduler_delay.record(delay, 1);
        quarter.note(delay);
        if quarter.count == BEATS_A_LINE {
            tracing::trace!(longest_us = micros(quarter.longest), "scheduler delay");
            quarter = Late::default();
        }
        if delay >= limits::SCHEDULER_DELAY_WARN {
            bad.note(delay);
        }
        if bad.count > 0 && warned.is_none_or(|warned| now.duration_since(warned) >= WARN_EVERY) {
            tracing::warn!(times = bad.count, longest_us = micros(bad.longest), "the runtime was held up");
            (bad, warned) = (Late::default(), Some(now));
        }
    }
}

/// Delays since something was logged.
#[derive(Default)]
struct Late {
    count: u32,
    longest: Duration,
}

impl Late {
    fn note(&mut self, delay: Duration) {
        self.count += 1;
        self.longest = self.longest.max(delay);
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_turn_that_takes_long_is_seen() {
        let (metrics, stop) = (Metrics::default(), CancellationToken::new());
        let pulse = tokio::spawn(run(metrics.clone(), stop.clone()));
        while metrics.scheduler_delay.percentiles().count == 0 {
            tokio::task::yield_now().await;
        }
        let held = BEAT * 5;
        // The very thing that no task of the daemon does.
        std::thread::sleep(held);
        while metrics.scheduler_delay.percentiles().count < 2 {
            tokio::task::yield_now().await;
        }
        // The beat was due at most one beat after the hold began; a histogram has two figures.
        assert!(metrics.scheduler_delay.percentiles().max >= (held - BEAT).mul_f64(0.98));
        stop.cancel();
        let Ok(()) = pulse.await.unwrap();
    }
}
