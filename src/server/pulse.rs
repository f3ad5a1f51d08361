//! The pulse: how late a runtime's tasks get their turn; each runtime has one. A task sleeps a short span over and over and
//! looks how much later than that it runs; whatever keeps the workers from their queue (a long turn, too many turns before
//! it, a system that gives the process no core) shows in it.
//!
//! The timer's own grain is a millisecond, so that a delay below it says nothing. A hold shows from the moment that the
//! next beat was due, so up to a beat shorter than it was: in quiet times, where beats are far apart, one of less than that
//! may not show at all. Nor does one of a single worker while another takes the beat. What is recorded is in
//! [`Metrics::scheduler_delay`](crate::metrics::Inner::scheduler_delay); the longest of each quarter of a second is logged
//! at `trace` (`log.filter = "info,pushgate::server::pulse=trace"`), a bad one at `warn`.

use std::{convert::Infallible, time::Duration};

use tokio::{
    runtime::{Handle, RuntimeMetrics},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    limits,
    metrics::{Metrics, Spans},
};

/// How often it is looked while the workers have something to do.
const BEAT: Duration = Duration::from_millis(10);
/// The same while they have not: a beat takes about 50 µs of CPU time.
const REST: Duration = Duration::from_millis(100);
/// They have something to do when they are busy for more than this part of one worker's time.
const BUSY: f64 = 0.05;
/// How far apart lines at `trace` are at least, and warnings.
const LINE_EVERY: Duration = Duration::from_millis(250);
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Whose runtime it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// That of the sessions, and of everything but calls.
    Sessions,
    /// That of the calls.
    Calls,
}

impl Of {
    /// Its name in metrics and log lines.
    pub fn name(self) -> &'static str {
        match self {
            Of::Sessions => "sessions",
            Of::Calls => "calls",
        }
    }

    fn delays(self, metrics: &Metrics) -> &Spans {
        match self {
            Of::Sessions => &metrics.scheduler_delay,
            Of::Calls => &metrics.calls_scheduler_delay,
        }
    }
}

/// Runs on a runtime until it is told to stop.
pub async fn run(of: Of, metrics: Metrics, stop: CancellationToken) -> Result<(), Infallible> {
    let runtime = Handle::current().metrics();
    let mut busy = busy_time(&runtime);
    let (mut lately, mut bad) = (Late::default(), Late::default());
    let mut last = Instant::now();
    let (mut traced, mut warned) = (last, None);
    let mut beat = BEAT;
    loop {
        let due = last + beat;
        tokio::select! {
            () = sleep_until(due) => {}
            () = stop.cancelled() => return Ok(()),
        }
        let now = Instant::now();
        let delay = now.saturating_duration_since(due);
        of.delays(&metrics).record(delay, 1);
        lately.note(delay);
        if now.duration_since(traced) >= LINE_EVERY {
            tracing::trace!(runtime = of.name(), longest_us = lately.micros(), "scheduler delay");
            (lately, traced) = (Late::default(), now);
        }
        if delay >= limits::SCHEDULER_DELAY_WARN {
            bad.note(delay);
        }
        if bad.times > 0 && warned.is_none_or(|warned| now.duration_since(warned) >= WARN_EVERY) {
            tracing::warn!(
                runtime = of.name(),
                times = bad.times,
                longest_us = bad.micros(),
                "the runtime was held up"
            );
            (bad, warned) = (Late::default(), Some(now));
        }
        let before = std::mem::replace(&mut busy, busy_time(&runtime));
        let is_busy = busy.saturating_sub(before) >= now.duration_since(last).mul_f64(BUSY);
        (beat, last) = (if is_busy { BEAT } else { REST }, now);
    }
}

/// How long the workers were busy since the start, together.
fn busy_time(runtime: &RuntimeMetrics) -> Duration {
    (0..runtime.num_workers()).map(|worker| runtime.worker_total_busy_duration(worker)).sum()
}

/// Delays since something was logged.
#[derive(Default)]
struct Late {
    times: u32,
    longest: Duration,
}

impl Late {
    fn note(&mut self, delay: Duration) {
        self.times += 1;
        self.longest = self.longest.max(delay);
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.longest.as_micros()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_turn_that_takes_long_is_seen() {
        let (metrics, stop) = (Metrics::default(), CancellationToken::new());
        let pulse = tokio::spawn(run(Of::Sessions, metrics.clone(), stop.clone()));
        let beats = async |count| {
            let came = async {
                while metrics.scheduler_delay.percentiles().count < count {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), came).await.expect("a beat");
        };
        beats(1).await;
        let held = REST * 2;
        // The very thing that no task of the daemon does.
        std::thread::sleep(held);
        beats(2).await;
        // The next beat was due a rest later at most; a histogram has two figures.
        assert!(metrics.scheduler_delay.percentiles().max >= (held - REST).mul_f64(0.98));
        stop.cancel();
        let Ok(()) = pulse.await.unwrap();
    }
}
