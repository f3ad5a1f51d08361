//! The store: what users have not received yet, on disk.
//!
//! A log (a user's own, or the one of durable broadcasts) holds pending notifications by offset; each device has a
//! cursor in each log. A sender takes a
//! [`Permit`], and then, under the log's lock, an offset and a place in the writer's queue, neither of which can fail.
//! One thread writes batches and answers when they are durable; reads go through a small pool, a page at a time.
//!
//! Rules: nobody hears that something is stored before it is on disk in the sense configured. The order of a log is the
//! order of its offsets, of its staging and of its becoming readable. A commit that failed ends the store: what is
//! staged then and later is answered with the failure, and only a restart tells what was kept. The exception is a full
//! disk: what is staged is answered with the failure, too, but the engine is opened again, as another *generation* of the
//! store, and what of the failed batch was kept is there for whoever reads his log anew.

mod commits;
mod config;
#[cfg(test)]
pub(crate) mod double;
mod embedded;
mod error;
mod mailbox;
mod model;
mod reads;
mod staging;
#[cfg(test)]
mod tests;

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use uuid::Uuid;

pub use commits::Commits;
pub use config::{Config, Durability, Engine as EngineName, OnCorruption, Overflow};
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use embedded::fuzzing;
pub use embedded::{Permit, record::chunks_of, tools};
pub use error::{BackupError, OpenError, StoreError};
pub use mailbox::Mailbox;
pub use model::{
    Backup, Counters, DeviceRow, Disk, Done, Due, DueId, Hold, IndexEntry, LogObserver, MemberRow, Op, Page, PageLimit,
    Place, Remembered, Totals,
};
pub use staging::Recallable;

use crate::{
    clock::Clock,
    types::{ByteSize, Offset},
};
use embedded::{
    backup,
    engine::MemoryEngine,
    open::{self, Opened},
    reader::{Readers, Slot},
    recovery::Recovery,
    shared::Shared,
    watchdog::Watchdog,
    writer::Writer,
};

/// A handle to the store; cheap to clone. The last one closes it when it is dropped, which blocks until all that was
/// staged is written: [`Store::close`] on a blocking thread is the better way.
#[derive(Clone)]
pub struct Store(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    readers: Readers,
    engine: &'static str,
    epoch: Uuid,
    lost_commits: u64,
    set_aside: bool,
    config: Config,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// The writer of a store without threads.
    #[cfg(test)]
    writer: Option<Mutex<Writer>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({}, {})", self.0.engine, self.0.epoch)
    }
}

impl Store {
    /// Opens the store, or makes it where there is none. Blocks: for as long as the engine takes to recover, and up to
    /// [`crate::limits::STORE_LOCK_WAIT`] for another process to let go of it.
    pub fn open(config: &Config, clock: Clock) -> Result<Store, OpenError> {
        let opened = open::open(config, &clock)?;
        Self::start(opened, config).map_err(|source| OpenError::Io { path: config.path.clone(), source })
    }

    /// A store that lives in memory and ends with the process, for tests: all else is as on disk.
    ///
    /// # Panics
    ///
    /// Where the system gives no threads.
    pub fn open_memory(config: &Config, clock: Clock) -> Store {
        let opened = Opened::over(Arc::new(MemoryEngine::default()), clock, true);
        let opened = opened.unwrap_or_else(|error| panic!("an empty engine in memory did not open: {error}"));
        Self::start(opened, config).unwrap_or_else(|error| panic!("no threads for a store in memory: {error}"))
    }

    /// A store over an engine that the test holds up, makes fail, and opens again.
    #[cfg(test)]
    pub(crate) fn open_double(double: &Arc<double::Double>, clock: Clock) -> Store {
        Self::open_watched(double, clock, Watchdog::default())
    }

    /// The same, watched as the test says.
    #[cfg(test)]
    pub(crate) fn open_watched(double: &Arc<double::Double>, clock: Clock, watchdog: Watchdog) -> Store {
        let mut opened = Opened::over(Arc::new(Arc::clone(double)), clock, true).unwrap();
        let again = Arc::clone(double);
        opened.reopen = Some(Box::new(move || again.reopen()));
        double.forget();
        Self::start_watched(opened, &Config::default(), watchdog).unwrap()
    }

    #[cfg(test)]
    fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    #[cfg(test)]
    fn readers(&self) -> &Readers {
        &self.0.readers
    }

    fn start(opened: Opened, config: &Config) -> std::io::Result<Store> {
        Self::start_watched(opened, config, Watchdog::default())
    }

    fn start_watched(opened: Opened, config: &Config, watchdog: Watchdog) -> std::io::Result<Store> {
        let Opened { engine, epoch, sequencer, totals, reopen, room, witness, lost_commits, set_aside } = opened;
        let shared = Arc::new(Shared::new(config, sequencer, totals));
        let name = engine.name();
        let slot: Slot = Arc::new(RwLock::new(engine));
        let (readers, mut threads) = Readers::start(&slot)?;
        let recovery = reopen.map(|reopen| Recovery::new(reopen, epoch));
        let watched_slot = Arc::clone(&slot);
        let writer = Writer::new(Arc::clone(&shared), slot, recovery, room, witness).map_err(std::io::Error::other)?;
        threads.push(thread::Builder::new().name("pushgate-writer".into()).spawn(move || writer.run())?);
        let watched = Arc::clone(&shared);
        threads.push(
            thread::Builder::new()
                .name("pushgate-watchdog".into())
                .spawn(move || watchdog.run(&watched, &watched_slot))?,
        );
        Ok(Store(Arc::new(Handle {
            shared,
            readers,
            engine: name,
            epoch,
            lost_commits,
            set_aside,
            config: config.clone(),
            threads: Mutex::new(threads),
            #[cfg(test)]
            writer: None,
        })))
    }

    /// A store without threads: reads are done where they are asked for, and nothing is committed but by
    /// [`Store::turn`]. What is staged when it is dropped is lost, as in a crash.
    #[cfg(test)]
    pub(crate) fn open_by_hand(engine: Arc<dyn embedded::engine::Engine>, clock: Clock) -> Store {
        let Opened { engine, epoch, sequencer, totals, .. } = Opened::over(engine, clock, true).unwrap();
        let shared = Arc::new(Shared::new(&Config::default(), sequencer, totals));
        let readers = Readers::inline(Arc::clone(&engine));
        let name = engine.name();
        let writer = Some(Mutex::new(
            Writer::new(Arc::clone(&shared), Arc::new(RwLock::new(engine)), None, None, None).unwrap(),
        ));
        let config = Config::default();
        Store(Arc::new(Handle {
            shared,
            readers,
            engine: name,
            epoch,
            lost_commits: 0,
            set_aside: false,
            config,
            threads: Mutex::default(),
            writer,
        }))
    }

    /// The engine is lost, and opened again at once.
    #[cfg(test)]
    pub(crate) fn lose_engine(&self) {
        assert!(self.0.shared.suspend(&StoreError::Recovering("on purpose".into())).is_empty());
        self.0.shared.resume();
    }

    /// Commits one batch of what is staged, `lazy` writes included or not; whether there was something.
    #[cfg(test)]
    pub(crate) fn turn(&self, lazy: bool) -> bool {
        self.0.writer.as_ref().is_some_and(|writer| writer.lock().turn(lazy))
    }

    /// The store's identity: made with it and kept with it. Another epoch is another store, with other offsets.
    pub fn epoch(&self) -> Uuid {
        self.0.epoch
    }

    /// Commits that were made before it was opened, and are not there any more: it was damaged, or lost its power.
    pub fn lost_commits(&self) -> u64 {
        self.0.lost_commits
    }

    /// Whether what stood there was damaged as it was opened, and moved aside.
    pub fn was_set_aside(&self) -> bool {
        self.0.set_aside
    }

    /// Its commits so far.
    pub fn commits(&self) -> Arc<Commits> {
        Arc::clone(&self.0.shared.commits)
    }

    /// What waits for the writer: operations, and the accounted bytes that were admitted and are not written.
    pub fn queued(&self) -> (u64, u64) {
        (self.0.shared.queue.len() as u64, self.0.shared.admitted_bytes())
    }

    /// The engine, as the configuration names it; `memory` in tests.
    pub fn engine_name(&self) -> &'static str {
        self.0.engine
    }

    /// Whether it takes writes and makes them, and if not, why.
    pub fn health(&self) -> Result<(), StoreError> {
        self.0.shared.health()
    }

    /// How long ago the writer began its last turn: [`crate::limits::STORE_DISK_REST`] at most while it has nothing to do,
    /// and what it does takes less than [`crate::limits::STORE_STUCK_AFTER`]. `None`: it has ended, as it should.
    pub fn writer_quiet_for(&self) -> Option<std::time::Duration> {
        self.0.shared.progress.quiet_for()
    }

    /// Told whenever [`Store::health`] may answer otherwise than before.
    pub fn health_changes(&self) -> watch::Receiver<()> {
        self.0.shared.changed.subscribe()
    }

    /// Whether its disk is full and it waits to be opened again: then there is nothing to be read or staged.
    pub fn is_recovering(&self) -> bool {
        matches!(*self.0.shared.end.borrow(), Some(StoreError::Recovering(_)))
    }

    /// Which opening of the engine this is. It rises when the engine is lost, before anything else is told of that; what
    /// was read in an earlier generation may not be so any more.
    pub fn generation(&self) -> u64 {
        self.0.shared.generation()
    }

    /// The generation that was opened last: it changes when the store works again after its engine was lost.
    pub fn opened(&self) -> watch::Receiver<u64> {
        self.0.shared.opened.subscribe()
    }

    /// Resolves when the store has failed for good. Closing it is no failure, nor is a full disk.
    pub async fn failed(&self) -> StoreError {
        let mut end = self.0.shared.end.subscribe();
        let failed = end.wait_for(|end| matches!(end, Some(StoreError::Failed(_)))).await;
        match failed.map(|end| end.clone()) {
            Ok(Some(error)) => error,
            // The sender lives as long as this handle.
            Ok(None) | Err(_) => StoreError::Closed,
        }
    }

    /// What all users have pending, as of the last commit.
    pub fn totals(&self) -> Totals {
        *self.0.shared.totals.lock()
    }

    /// The bytes that the store's files take, at most about a second old. Files set aside as damaged do not count.
    pub fn disk_bytes(&self) -> u64 {
        self.0.shared.disk_bytes.load(Ordering::Relaxed)
    }

    /// How full its disk is, at most about a second old.
    pub fn disk(&self) -> Disk {
        self.0.shared.disk()
    }

    /// Takes another `store.max_bytes` and `store.max_disk`, for what is admitted from now on.
    pub fn set_bounds(&self, max_bytes: ByteSize, max_disk: ByteSize) {
        self.0.shared.set_bounds(max_bytes.0, max_disk.0);
    }

    /// Admits one record of `record_bytes` accounted bytes: waits for room in the writer's queue, in the order of the
    /// calls, and for an offset below the mark on disk.
    ///
    /// [`StoreError::Full`] where `store.max_bytes` or `store.max_disk` (less its reserve) is reached, its disk is nearly
    /// full, or the record is larger than [`crate::limits::WRITER_QUEUE_BYTES_MAX`].
    pub async fn permit(&self, record_bytes: u64) -> Result<Permit, StoreError> {
        self.0.shared.permit(record_bytes).await
    }

    /// The next offset of a log whose last assigned one is `last`. To be called under the log's lock, once for each
    /// permit. Never fails, never waits.
    pub fn assign(&self, permit: &mut Permit, last: Offset) -> Offset {
        permit.assign(last)
    }

    /// [`Store::stage_in`] the present generation.
    #[cfg(test)]
    pub(crate) fn stage(&self, op: Op) {
        let _ = self.stage_in(self.generation(), op);
    }

    /// Copies the store to `path`, while it is in use: a folder that `store.path` can be set to, with the store as it is at
    /// one moment between two commits after the call began. `path` must be absolute, on this machine, not there yet, and
    /// in a folder that is. Whoever drops the future ends the copying. One at a time.
    pub async fn backup(&self, path: &Path) -> Result<Backup, BackupError> {
        self.health()?;
        backup::backup(&self.0.shared, &self.0.readers, &self.0.config, path).await
    }

    /// Writes all that is staged, ends the threads and lets go of the files. Blocks. What comes after it is answered
    /// with [`StoreError::Closed`]; closing again does nothing. Fails where the store has failed.
    pub fn close(&self) -> Result<(), StoreError> {
        self.0.close()
    }
}

impl Handle {
    fn close(&self) -> Result<(), StoreError> {
        self.shared.close();
        self.readers.close();
        // Held while joining, so that a second caller returns after the first.
        let mut threads = self.threads.lock();
        for thread in threads.drain(..) {
            // The last handle may be dropped by an observer, on the writer's own thread.
            if thread.thread().id() != thread::current().id() && thread.join().is_err() {
                self.shared.fail(&StoreError::Failed("a thread of the store panicked".into()));
            }
        }
        match self.shared.refusal() {
            StoreError::Closed => Ok(()),
            error => Err(error),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A failure was logged when it happened.
        let _ = self.close();
    }
}
