//! The threads that read the store, so that no read blocks a worker of the runtime.
//!
//! Rule: a job is one page, small enough that first come, first served is fair. The queue is bounded and its callers
//! wait for room; a job whose caller went away is passed over. No thread holds the engine between jobs, so that it can
//! be let go and replaced.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};

use super::{
    engine::{Engine, EngineError},
    panic_text,
};
use crate::{limits, store::StoreError};

/// The engine, for the time being. Read for as long as a job runs.
pub type Slot = Arc<RwLock<Arc<dyn Engine>>>;

type Job = Box<dyn FnOnce(&dyn Engine) + Send>;

/// The pool's door. Once it is closed, what was queued is still read.
pub struct Readers {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    /// Reads are done where they are asked for, and nothing runs beside.
    #[cfg(test)]
    inline: Option<Arc<dyn Engine>>,
}

impl Readers {
    /// Starts the threads.
    pub fn start(engine: &Slot) -> io::Result<(Self, Vec<JoinHandle<()>>)> {
        let (jobs, queue) = mpsc::channel::<Job>(limits::STORE_READ_QUEUE_JOBS_MAX);
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..limits::STORE_READERS).map(|number| {
            let (queue, engine) = (Arc::clone(&queue), Arc::clone(engine));
            std::thread::Builder::new().name(format!("pushgate-reader-{number}")).spawn(move || {
                loop {
                    // The one that waits for a job holds the queue; the other gets it when the job has been taken.
                    let job = queue.lock().blocking_recv();
                    let Some(job) = job else { return };
                    job(&**engine.read());
                }
            })
        });
        let threads = threads.collect::<io::Result<_>>()?;
        let readers = Self {
            jobs: Mutex::new(Some(jobs)),
            #[cfg(test)]
            inline: None,
        };
        Ok((readers, threads))
    }

    /// A pool without threads.
    #[cfg(test)]
    pub fn inline(engine: Arc<dyn Engine>) -> Self {
        Self { jobs: Mutex::new(None), inline: Some(engine) }
    }

    /// Takes no more jobs; the threads end when the queue is empty.
    pub fn close(&self) {
        self.jobs.lock().take();
    }

    /// Runs `read` on one of the threads.
    pub async fn read<T, F>(&self, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Engine) -> Result<T, EngineError> + Send + 'static,
    {
        #[cfg(test)]
        if let Some(engine) = &self.inline {
            return read(&**engine).map_err(|error| StoreError::Failed(error.to_string().into()));
        }
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |engine| {
            if answer.is_closed() {
                return;
            }
            let result = match catch_unwind(AssertUnwindSafe(|| read(engine))) {
                Ok(result) => result.map_err(|error| match error.is_no_space() {
                    true => StoreError::Recovering(error.to_string().into()),
                    false => StoreError::Failed(format!("a read failed: {error}").into()),
                }),
                Err(panic) => Err(StoreError::Failed(format!("a read panicked: {}", panic_text(&*panic)).into())),
            };
            let _ = answer.send(result);
        });
        let jobs = self.jobs.lock().clone().ok_or(StoreError::Closed)?;
        jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        // Let go of the queue, or an open question would keep the threads from ending.
        drop(jobs);
        answered.await.unwrap_or(Err(StoreError::Closed))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::engine::MemoryEngine, *};

    #[tokio::test]
    async fn a_read_that_panics_fails_alone() {
        let engine: Slot = Arc::new(RwLock::new(Arc::new(MemoryEngine::default())));
        let (readers, threads) = Readers::start(&engine).unwrap();
        for _ in 0..4 {
            let failed = readers.read(|_| -> Result<(), EngineError> { panic!("on purpose") }).await;
            assert!(matches!(failed, Err(StoreError::Failed(text)) if text.contains("on purpose")));
        }
        assert_eq!(readers.read(|engine| Ok(engine.name())).await, Ok("memory"));
        readers.close();
        assert_eq!(readers.read(|_| Ok(())).await, Err(StoreError::Closed));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[tokio::test]
    async fn a_read_whose_caller_went_away_is_passed_over() {
        let engine: Slot = Arc::new(RwLock::new(Arc::new(MemoryEngine::default())));
        let (readers, threads) = Readers::start(&engine).unwrap();
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let (gate, ran) = (Arc::new(Mutex::new(gate)), Arc::new(Mutex::new(0)));
        let mut waiting: Vec<_> = (0..limits::STORE_READERS + 3)
            .map(|_| {
                let (gate, ran) = (Arc::clone(&gate), Arc::clone(&ran));
                Box::pin(readers.read(move |_| {
                    // Ends when the other end is dropped.
                    let _ = gate.lock().recv();
                    *ran.lock() += 1;
                    Ok(())
                }))
            })
            .collect();
        for future in &mut waiting {
            assert!(futures_util::poll!(future).is_pending());
        }
        drop(waiting);
        drop(open);
        readers.close();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(*ran.lock() <= limits::STORE_READERS, "only those that had begun");
    }
}
