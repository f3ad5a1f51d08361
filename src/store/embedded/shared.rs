//! What the store's handle, its permits and its writer have in common: the queue, the sequencer, what is stored, and
//! whether it failed.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::{changes::Changes, progress::Progress, queue::Queue, room, sequencer::Sequencer};
use crate::{
    limits,
    store::{Commits, Config, Disk, Op, StoreError, Totals},
    types::Offset,
};

/// The generation that a store begins with; 0 is none.
const FIRST_GENERATION: u64 = 1;

/// How many bytes of files a byte of rows is taken to cost, until the files are looked at.
const GROWTH: u64 = 2;

/// See the file's head.
pub struct Shared {
    pub queue: Queue,
    pub sequencer: Sequencer,
    pub totals: Mutex<Totals>,
    pub disk_bytes: AtomicU64,
    pub changes: Changes,
    /// How much of the disk senders may fill; see [`super::room`].
    pub spare_bytes: AtomicU64,
    /// Why it takes no more: it was closed, or waits for room on its disk, or (which is never taken back) a commit failed
    /// or the writer died.
    pub end: watch::Sender<Option<StoreError>>,
    /// Told when its health changes.
    pub changed: watch::Sender<()>,
    /// The generation of the engine that is open, for those who follow it.
    pub opened: watch::Sender<u64>,
    /// What the writer is at.
    pub progress: Progress,
    /// How large its commits were, and how long they took.
    pub commits: Arc<Commits>,
    /// Rises when the engine is lost: what is in memory may differ from the disk from then on.
    generation: AtomicU64,
    stuck: AtomicBool,
    /// Room in the queue, in bytes. A semaphore since it is fair and can be closed over those who wait.
    room: Arc<Semaphore>,
    /// Bytes with a permit that are not committed.
    admitted_bytes: AtomicU64,
    /// `store.max_bytes` and `store.max_disk`; 0: no bound.
    bytes_max: AtomicU64,
    disk_max: AtomicU64,
}

/// A bound as an operator writes it: 0 is none.
fn bound(bytes: &AtomicU64) -> u64 {
    match bytes.load(Ordering::Relaxed) {
        0 => u64::MAX,
        bytes => bytes,
    }
}

impl Shared {
    pub fn new(config: &Config, sequencer: Sequencer, totals: Totals) -> Self {
        Self {
            queue: Queue::of(FIRST_GENERATION),
            sequencer,
            totals: Mutex::new(totals),
            disk_bytes: AtomicU64::new(0),
            changes: Changes::default(),
            spare_bytes: AtomicU64::new(u64::MAX),
            end: watch::Sender::new(None),
            changed: watch::Sender::new(()),
            opened: watch::Sender::new(FIRST_GENERATION),
            progress: Progress::default(),
            commits: Arc::default(),
            generation: AtomicU64::new(FIRST_GENERATION),
            stuck: AtomicBool::new(false),
            room: Arc::new(Semaphore::new(limits::WRITER_QUEUE_BYTES_MAX)),
            admitted_bytes: AtomicU64::new(0),
            bytes_max: AtomicU64::new(config.max_bytes.0),
            disk_max: AtomicU64::new(config.max_disk.0),
        }
    }

    /// Takes other bounds, for what is admitted from now on.
    pub fn set_bounds(&self, max_bytes: u64, max_disk: u64) {
        self.bytes_max.store(max_bytes, Ordering::Relaxed);
        self.disk_max.store(max_disk, Ordering::Relaxed);
    }

    /// What senders may fill of `store.max_disk`.
    fn disk_for_senders(&self) -> u64 {
        let disk = bound(&self.disk_max);
        disk - (disk / 16).min(limits::STORE_DISK_RESERVE_BYTES_MAX)
    }

    /// Marks the store as failed, once and for good.
    pub fn fail(&self, error: &StoreError) {
        self.end.send_if_modified(|end| {
            let first = !matches!(end, Some(StoreError::Failed(_)));
            if first {
                tracing::error!(%error, "a commit failed; the store takes nothing until the daemon is started again");
                *end = Some(error.clone());
            }
            first
        });
        self.room.close();
        self.changed.send_replace(());
    }

    /// Marks the store as waiting for room on its disk: nothing is admitted, and what was staged or is staged late for
    /// the lost engine is not written. Returns what was staged.
    pub fn suspend(&self, error: &StoreError) -> Vec<Op> {
        // First, so that whoever sees the new generation sees that there is no engine for it yet.
        self.end.send_if_modified(|end| {
            let serving = end.is_none();
            end.get_or_insert_with(|| error.clone());
            serving
        });
        let generation = self.generation.fetch_add(1, Ordering::SeqCst) + 1;
        self.changed.send_replace(());
        self.queue.discard(generation)
    }

    /// The engine is there again.
    pub fn resume(&self) {
        self.queue.accept();
        self.end.send_if_modified(|end| {
            let waited = matches!(end, Some(StoreError::Recovering(_)));
            if waited {
                *end = None;
            }
            waited
        });
        self.changed.send_replace(());
        self.opened.send_replace(self.generation());
    }

    /// Accounted bytes that have a permit and are not committed.
    pub fn admitted_bytes(&self) -> u64 {
        self.admitted_bytes.load(Ordering::Relaxed)
    }

    /// How often the engine was lost, beginning with 1.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// A commit does not end, or has ended after all.
    pub fn set_stuck(&self, stuck: bool) {
        self.stuck.store(stuck, Ordering::Relaxed);
        self.changed.send_replace(());
    }

    /// Takes no more permits and ops.
    pub fn close(&self) {
        self.end.send_if_modified(|end| {
            let first = matches!(end, None | Some(StoreError::Recovering(_)));
            if first {
                *end = Some(StoreError::Closed);
            }
            first
        });
        self.room.close();
        self.queue.close();
    }

    /// Whether it takes more, and why not.
    pub fn serving(&self) -> Result<(), StoreError> {
        self.end.borrow().clone().map_or(Ok(()), Err)
    }

    /// Whether it works, and why not.
    pub fn health(&self) -> Result<(), StoreError> {
        self.serving()?;
        if self.stuck.load(Ordering::Relaxed) { Err(StoreError::Stuck) } else { Ok(()) }
    }

    /// Why an op of an engine that was lost was not taken.
    pub fn refusal_of_late(&self) -> StoreError {
        self.serving().err().unwrap_or_else(|| StoreError::Recovering("it was opened again meanwhile".into()))
    }

    /// Why it takes no more.
    pub fn refusal(&self) -> StoreError {
        self.end.borrow().clone().unwrap_or(StoreError::Closed)
    }

    /// See [`crate::store::Store::permit`].
    pub async fn permit(self: &Arc<Self>, record_bytes: u64) -> Result<Permit, StoreError> {
        let Some(bytes) = u32::try_from(record_bytes).ok().filter(|n| *n as usize <= limits::WRITER_QUEUE_BYTES_MAX)
        else {
            return Err(StoreError::Full);
        };
        // Before the look at the state: a permit of this generation is one of an engine that was there.
        let generation = self.generation();
        self.serving()?;
        let room = self.room(bytes).await?;
        // From here on dropping it gives back what it has, wherever this is left.
        let bytes = u64::from(bytes);
        let mut permit = Permit { shared: Arc::clone(self), _room: room, bytes, generation, place: Place::None };
        let admitted = self.admitted_bytes.fetch_add(permit.bytes, Ordering::Relaxed) + permit.bytes;
        let (disk, stored) = (self.disk_bytes.load(Ordering::Relaxed), self.totals.lock().bytes);
        if stored.saturating_add(admitted) > bound(&self.bytes_max)
            // Files do not shrink by themselves, but what is free in them is used again.
            || disk - room::reusable(disk, stored) >= self.disk_for_senders()
            || admitted > self.spare_bytes.load(Ordering::Relaxed)
        {
            return Err(StoreError::Full);
        }
        self.below_the_mark(|| self.sequencer.reserve()).await?;
        permit.place = Place::Reserved;
        Ok(permit)
    }

    /// So many bytes of rows were written: the size on disk and the room there are taken to have changed by what that
    /// may cost, until they are looked at again. Whether that should be soon.
    pub fn grew(&self, bytes: u64) -> bool {
        let cost = bytes.saturating_mul(GROWTH);
        let disk = self.disk_bytes.fetch_add(cost, Ordering::Relaxed).saturating_add(cost);
        let spend = |spare: u64| (spare != u64::MAX).then(|| spare.saturating_sub(cost));
        let spare = self.spare_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend);
        disk >= self.disk_for_senders() || spare.is_ok_and(|before| before <= cost)
    }

    /// How full the disk is.
    pub fn disk(&self) -> Disk {
        let (disk, stored) = (self.disk_bytes.load(Ordering::Relaxed), self.totals.lock().bytes);
        let free = self.spare_bytes.load(Ordering::Relaxed);
        Disk {
            used_bytes: disk.saturating_sub(room::reusable(disk, stored)),
            max_bytes: self.disk_max.load(Ordering::Relaxed),
            free_bytes: (free != u64::MAX).then_some(free),
        }
    }

    /// Waits for room in the queue, or the end.
    async fn room(&self, bytes: u32) -> Result<OwnedSemaphorePermit, StoreError> {
        // Overtakes nobody: while one waits, all that there is belongs to him.
        if let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(bytes) {
            return Ok(room);
        }
        // What has it need not wait for anybody.
        self.queue.hurry();
        let mut end = self.end.subscribe();
        tokio::select! {
            biased;
            _ = end.wait_for(Option::is_some) => Err(self.refusal()),
            room = Arc::clone(&self.room).acquire_many_owned(bytes) => room.map_err(|_| self.refusal()),
        }
    }

    /// Waits for the mark to be above the last offset of a log that was read: that it is not takes a damaged store.
    pub async fn admit(&self, last: Offset) -> Result<(), StoreError> {
        self.below_the_mark(|| self.sequencer.admit(last)).await
    }

    /// Tries until `settled`, each time with a higher mark on disk.
    async fn below_the_mark(&self, mut settled: impl FnMut() -> bool) -> Result<(), StoreError> {
        let mut mark = self.sequencer.subscribe();
        let mut end = self.end.subscribe();
        loop {
            mark.mark_unchanged();
            if settled() {
                return Ok(());
            }
            if self.sequencer.is_exhausted() {
                return Err(StoreError::Failed("all offsets below 2^53 have been given".into()));
            }
            self.queue.raise();
            tokio::select! {
                biased;
                _ = end.wait_for(Option::is_some) => return Err(self.refusal()),
                _ = mark.changed() => {}
            }
        }
    }
}

enum Place {
    None,
    Reserved,
    Assigned,
}

/// Room for one record: in the writer's queue, and for its offset below the mark. Gives back what was not used when it
/// is dropped.
pub struct Permit {
    shared: Arc<Shared>,
    _room: OwnedSemaphorePermit,
    bytes: u64,
    generation: u64,
    place: Place,
}

impl Permit {
    /// The generation of the store that it was given in; it is good in no other.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The next offset of a log whose last one is `last`. A permit has one: a second call gives what comes after
    /// `last` without a place below the mark, which is a mistake of the caller.
    pub fn assign(&mut self, last: Offset) -> Offset {
        debug_assert!(matches!(self.place, Place::Reserved), "a permit is good for one offset");
        self.place = Place::Assigned;
        self.shared.sequencer.assign(last)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared.admitted_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if matches!(self.place, Place::Reserved) {
            self.shared.sequencer.release();
        }
    }
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Permit({} bytes)", self.bytes)
    }
}
