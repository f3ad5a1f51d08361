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

mod config;
#[cfg(test)]
pub(crate) mod double;
mod embedded;
mod error;
mod model;
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

pub use config::{Config, Durability, Engine as EngineName, OnCorruption, Overflow};
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use embedded::fuzzing;
pub use embedded::{Permit, record::chunks_of, tools};
pub use error::{BackupError, OpenError, StoreError};
pub use model::{
    Backup, Counters, DeviceRow, Disk, Done, Due, DueId, Hold, IndexEntry, LogObserver, Mailbox, MemberRow, Op, Page,
    PageLimit, Place, Remembered, Totals,
};
pub use staging::Recallable;

use crate::{
    clock::Clock,
    types::{Device, LogId, NotificationId, Offset, Revocation, RevocationId, Topic, UnixMillis, UserId},
};
use embedded::{
    backup,
    engine::{Engine, EngineError, MemoryEngine},
    open::{self, Opened},
    queries,
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
        let Opened { engine, epoch, sequencer, totals, reopen, room, witness, lost_commits } = opened;
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

    /// The engine, as the configuration names it; `memory` in tests.
    pub fn engine_name(&self) -> &'static str {
        self.0.engine
    }

    /// Whether it takes writes and makes them, and if not, why.
    pub fn health(&self) -> Result<(), StoreError> {
        self.0.shared.health()
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
        self.0.shared.disk(self.0.config.max_disk.0)
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

    /// What the store has of a user. Whoever calls it sees to it that nothing of the user is staged meanwhile, or
    /// ignores what it says of damage. Refused, as every read is, once the store has failed: what a read would show may
    /// not be durable.
    pub async fn load(&self, user: &UserId) -> Result<Mailbox, StoreError> {
        let generation = self.generation();
        let (wanted, log) = (user.clone(), LogId::User(user.clone()));
        let (profile, first) = self
            .read(generation, move |engine| {
                let first = queries::index(engine, &LogId::User(wanted.clone()), Offset::ZERO)?;
                Ok((queries::profile(engine, &wanted)?, first))
            })
            .await?;
        let (index, unreadable) = self.whole_index(generation, &log, first).await?;
        let (unreadable, forgotten) = (unreadable + profile.unreadable, profile.forgotten);
        let mut mailbox = Mailbox::of(profile.counters, profile.devices, forgotten, index, unreadable);
        mailbox.members = profile.members;
        self.0.shared.admit(mailbox.counters.last).await?;
        Ok(mailbox)
    }

    /// What the store has of a log that many read, the broadcast log or a topic's; its devices stand with their users.
    pub async fn load_shared(&self, log: &LogId) -> Result<Mailbox, StoreError> {
        let generation = self.generation();
        let of = log.clone();
        let read = move |engine: &dyn Engine| {
            Ok((queries::counters(engine, &of)?, queries::index(engine, &of, Offset::ZERO)?))
        };
        let (counters, first) = self.read(generation, read).await?;
        let (index, mut unreadable) = self.whole_index(generation, log, first).await?;
        unreadable += usize::from(matches!(counters, Some(Err(_))));
        let mailbox = Mailbox::of(counters.and_then(Result::ok), Vec::new(), Vec::new(), index, unreadable);
        self.0.shared.admit(mailbox.counters.last).await?;
        Ok(mailbox)
    }

    /// The rest of an index whose first part was read, and how many of its rows cannot be read.
    async fn whole_index(
        &self,
        generation: u64,
        log: &LogId,
        first: queries::IndexPage,
    ) -> Result<(Vec<IndexEntry>, usize), StoreError> {
        let (mut index, mut unreadable, mut next) = (first.entries, first.unreadable, first.next);
        while let Some(after) = next {
            let log = log.clone();
            let mut part = self.read(generation, move |engine| queries::index(engine, &log, after)).await?;
            index.append(&mut part.entries);
            unreadable += part.unreadable;
            next = part.next;
        }
        Ok((index, unreadable))
    }

    /// The records of a log with offsets in (`after`, `upto`]. `upto` should be at or below what was applied, or the
    /// page may show what is not durable yet.
    pub async fn page(&self, log: &LogId, after: Offset, upto: Offset, limit: PageLimit) -> Result<Page, StoreError> {
        let log = log.clone();
        self.read(self.generation(), move |engine| queries::page(engine, &log, after, upto, limit)).await
    }

    /// What a caller's own id stands for at `now`, as of the last commit.
    pub async fn remembered(
        &self,
        log: &LogId,
        id: &NotificationId,
        now: UnixMillis,
    ) -> Result<Option<Remembered>, StoreError> {
        let (log, id) = (log.clone(), id.clone());
        self.read(self.generation(), move |engine| queries::remembered(engine, &log, &id, now)).await
    }

    /// The durable topics that something is stored of with names that begin with `prefix`, by name from behind `after` on;
    /// at most `max`.
    pub async fn topics_after(
        &self,
        prefix: &str,
        after: Option<Topic>,
        max: usize,
    ) -> Result<Vec<(Topic, Counters)>, StoreError> {
        let prefix = prefix.to_owned();
        let read = move |engine: &dyn Engine| queries::topics_after(engine, &prefix, after.as_ref(), max);
        self.read(self.generation(), read).await
    }

    /// Devices of all users, in a stable order from behind `after` on; at most `max`.
    pub async fn devices_after(
        &self,
        after: Option<(UserId, Device)>,
        max: usize,
    ) -> Result<Vec<(UserId, Device, DeviceRow)>, StoreError> {
        self.read(self.generation(), move |engine| queries::devices_after(engine, after.as_ref(), max)).await
    }

    /// Own ids of callers that may be forgotten at `now`, oldest first, at most `max`. One is shown until
    /// [`Op::ForgetId`] is committed.
    pub async fn due_ids(&self, now: UnixMillis, max: usize) -> Result<Vec<DueId>, StoreError> {
        self.read(self.generation(), move |engine| queries::due_ids(engine, now, max)).await
    }

    /// Logs of which something may have expired at `now`, oldest first, at most `max`. A bucket is shown until
    /// [`Op::ForgetDue`] is committed, whether or not its records are still there, and only once all of it has expired.
    pub async fn due(&self, now: UnixMillis, max: usize) -> Result<Vec<Due>, StoreError> {
        self.read(self.generation(), move |engine| queries::due(engine, now, max)).await
    }

    /// Tokens that are void, in a stable order from behind `after` on; at most `max`.
    pub async fn revocations(
        &self,
        after: Option<RevocationId>,
        max: usize,
    ) -> Result<Vec<(RevocationId, Revocation)>, StoreError> {
        self.read(self.generation(), move |engine| queries::revocations(engine, after, max)).await
    }

    /// Reads from the engine of that generation, and from no other.
    async fn read<T, F>(&self, generation: u64, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Engine) -> Result<T, EngineError> + Send + 'static,
    {
        let shared = &self.0.shared;
        shared.serving()?;
        let found = self.0.readers.read(read).await;
        if matches!(found, Err(StoreError::Recovering(_))) {
            // Where the read met a full disk first: so does this commit.
            shared.queue.raise();
        }
        // A lost engine may show what is not on disk, or fail at what is.
        if shared.generation() == generation { found } else { Err(shared.refusal_of_late()) }
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
