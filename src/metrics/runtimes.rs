//! The tokio runtimes, as they say it of themselves.

use std::{sync::OnceLock, time::Duration};

use tokio::runtime::RuntimeMetrics;

/// The runtimes that a daemon may have.
pub const RUNTIMES: [&str; 2] = ["sessions", "calls"];

/// Those that run, in the order of [`RUNTIMES`].
#[derive(Debug, Default)]
pub struct Runtimes([OnceLock<RuntimeMetrics>; RUNTIMES.len()]);

/// One runtime at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Its name.
    pub name: &'static str,
    /// Its worker threads.
    pub workers: u64,
    /// Tasks that have not ended.
    pub tasks: u64,
    /// Tasks that wait for a worker in the queue that all of them share.
    pub queued: u64,
    /// How long the workers were busy, together.
    pub busy: Duration,
    /// How often a worker had nothing to do and went to sleep.
    pub parks: u64,
}

impl Runtimes {
    /// The runtime of that name, from now on; only the first counts.
    pub fn set(&self, name: &str, runtime: RuntimeMetrics) {
        if let Some(at) = RUNTIMES.iter().position(|known| *known == name) {
            let _ = self.0[at].set(runtime);
        }
    }

    /// Those that run, as they are now.
    pub fn now(&self) -> Vec<Runtime> {
        let set = RUNTIMES.iter().zip(&self.0).filter_map(|(name, runtime)| Some((*name, runtime.get()?)));
        set.map(|(name, runtime)| {
            let workers = 0..runtime.num_workers();
            Runtime {
                name,
                workers: runtime.num_workers() as u64,
                tasks: runtime.num_alive_tasks() as u64,
                queued: runtime.global_queue_depth() as u64,
                busy: workers.clone().map(|worker| runtime.worker_total_busy_duration(worker)).sum(),
                parks: workers.map(|worker| runtime.worker_park_count(worker)).sum(),
            }
        })
        .collect()
    }
}
