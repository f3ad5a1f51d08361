//! The life of the daemon's tasks: every one is tracked, an essential one that ends or panics stops the daemon, those
//! that have to be seen alive give signs of it, and a stop is joined under a deadline. Knows nothing of signals.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::types::Span;

/// How far apart the signs of life of one task are at most, while it gets its turns.
pub const BEAT: Duration = Duration::from_millis(500);

/// The section `[shutdown]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shutdown {
    /// How long a stop may take from the signal to the exit.
    pub deadline: Span,
    /// How long to serve on while not ready, so that load balancers notice before the listener closes.
    pub lb_delay: Span,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { deadline: Span::secs(25), lb_delay: Span::secs(0) }
    }
}

/// Starts tasks, tells them to stop, waits for them. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    /// Where tasks are started, whoever asks for it; on the runtime of who asks where there is none.
    runtime: Option<Handle>,
    stop: CancellationToken,
    tracker: TaskTracker,
    failure: Arc<Mutex<Option<String>>>,
    failed: CancellationToken,
    beats: Beats,
}

type Beats = Arc<Mutex<Vec<Arc<Signs>>>>;

/// What one task has shown of itself.
#[derive(Debug)]
struct Signs {
    name: &'static str,
    count: AtomicU64,
}

/// A task that gives signs of life for as long as it has this.
#[derive(Debug)]
pub struct Beat {
    signs: Arc<Signs>,
    all: Beats,
}

impl Beat {
    /// Waits for something, however long, with a sign of life every [`BEAT`].
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            self.signs.count.fetch_add(1, Ordering::Relaxed);
            // What is there at once needs no timer.
            tokio::select! {
                biased;
                done = work.as_mut() => return done,
                () = tokio::time::sleep(BEAT) => {}
            }
        }
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.all.lock().retain(|signs| !Arc::ptr_eq(signs, &self.signs));
    }
}

impl Lifecycle {
    /// A life that has just begun, with its tasks on the runtime that this is called on.
    pub fn new() -> Self {
        Self { runtime: Handle::try_current().ok(), ..Self::default() }
    }

    /// The same life, with what is started from here on another runtime.
    pub fn on(&self, runtime: Handle) -> Self {
        Self { runtime: Some(runtime), ..self.clone() }
    }

    /// Cancelled when tasks are to end.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Starts a task that may end whenever it likes. A panic in it is logged by the panic hook and ends it alone.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        match &self.runtime {
            Some(runtime) => self.tracker.spawn_on(task, runtime),
            None => self.tracker.spawn(task),
        };
    }

    /// Starts a task without which the daemon is not whole: its end before the stop, its error or its panic is a
    /// failure that [`Lifecycle::failed`] reports.
    pub fn spawn_essential<E: std::fmt::Display>(
        &self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let life = self.clone();
        self.spawn(async move {
            let failure = match AssertUnwindSafe(task).catch_unwind().await {
                Ok(Ok(())) if life.stop.is_cancelled() => return,
                Ok(Ok(())) => format!("{name} ended"),
                Ok(Err(error)) => format!("{name} failed: {error}"),
                Err(_) => format!("{name} panicked"),
            };
            life.fail(failure);
        });
    }

    /// A task that is to be seen alive from now on, by what people call it.
    pub fn beat(&self, name: &'static str) -> Beat {
        let signs = Arc::new(Signs { name, count: AtomicU64::new(0) });
        self.beats.lock().push(Arc::clone(&signs));
        Beat { signs, all: Arc::clone(&self.beats) }
    }

    /// The signs of life that each such task has given, oldest task first.
    pub fn beats(&self) -> Vec<(&'static str, u64)> {
        self.beats.lock().iter().map(|signs| (signs.name, signs.count.load(Ordering::Relaxed))).collect()
    }

    /// Records the first failure and wakes [`Lifecycle::failed`].
    pub fn fail(&self, what: String) {
        tracing::error!(failure = %what, "essential task lost; stopping");
        self.failure.lock().get_or_insert(what);
        self.failed.cancel();
    }

    /// Resolves with the first failure of an essential task.
    pub async fn failed(&self) -> String {
        self.failed.cancelled().await;
        self.failure.lock().clone().unwrap_or_default()
    }

    /// The first failure, if there was one.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    /// Tells every task to end and waits for them, at most `deadline`. Returns how many were left.
    pub async fn stop(&self, deadline: Duration) -> usize {
        self.stop.cancel();
        self.tracker.close();
        let _ = tokio::time::timeout(deadline, self.tracker.wait()).await;
        self.tracker.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_essential_task_that_panics_is_a_failure() {
        let life = Lifecycle::new();
        life.spawn_essential::<String>("the heart", async { panic!("stopped") });
        assert_eq!(life.failed().await, "the heart panicked");
    }

    #[tokio::test]
    async fn an_essential_task_that_ends_early_is_a_failure() {
        let life = Lifecycle::new();
        life.spawn_essential::<String>("the heart", async { Ok(()) });
        assert_eq!(life.failed().await, "the heart ended");
    }

    #[tokio::test]
    async fn an_essential_task_that_ends_when_told_to_is_none() {
        let life = Lifecycle::new();
        let stop = life.stopping().clone();
        life.spawn_essential::<String>("the heart", async move {
            stop.cancelled().await;
            Ok(())
        });
        assert_eq!(life.stop(Duration::from_secs(5)).await, 0);
        assert_eq!(life.failure(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_waits_shows_that_it_lives_and_is_forgotten_with_its_end() {
        let life = Lifecycle::new();
        let beat = life.beat("the heart");
        let waiting = tokio::spawn(async move { beat.during(tokio::time::sleep(BEAT * 10)).await });
        tokio::time::sleep(BEAT * 5).await;
        let [("the heart", count)] = life.beats()[..] else { panic!("{:?}", life.beats()) };
        assert!((5..=6).contains(&count), "{count}");
        waiting.await.unwrap();
        assert_eq!(life.beats(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_does_not_wait_longer_than_its_deadline() {
        let life = Lifecycle::new();
        life.spawn(std::future::pending());
        assert_eq!(life.stop(Duration::from_secs(5)).await, 1);
    }
}
