//! The one thread that changes the store.
//!
//! It takes what is staged, folds it into one batch, commits it, and only then tells the logs and answers the callers:
//! observers first, then permits, answers, and holds last. Nothing delays a write that somebody waits for, while what nobody
//! waits for stays in the queue for a while (`queue.rs`); while one commit runs, the next batch gathers.
//!
//! Rule: after a commit that failed the engine is not written to again, since nobody knows what of it is on disk. Where
//! the disk was full it is opened again (`recovery.rs`); else the thread stays, to answer whatever is still staged with
//! the failure, until the store is closed.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use super::{
    batch::Batch,
    engine::{Engine, EngineError},
    keys::Key,
    panic_text,
    queue::Next,
    reader::Slot,
    recovery::Recovery,
    room::Room,
    rows,
    shared::Shared,
    witness::{Tally, Witness},
};
use crate::{
    limits,
    store::{Counters, Op, StoreError, Totals},
    types::{LogId, Offset},
};

/// How often the size of the store is taken where it is near its bound.
const DISK_NEAR_FULL_INTERVAL: std::time::Duration = std::time::Duration::from_millis(20);

/// The writer: owned by its thread.
pub struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) engine: Arc<dyn Engine>,
    /// Where the readers find the engine.
    pub(super) slot: Slot,
    /// How it is opened again; none where it cannot be.
    pub(super) recovery: Option<Recovery>,
    /// The room on its disk, where it has one.
    pub(super) room: Option<Room>,
    /// How many commits there were.
    pub(super) tally: Tally,
    /// What the counters of logs hold that were written lately, so that the totals move by the difference without a
    /// read. Emptied when it grows too large.
    pub(super) written: HashMap<LogId, Counters>,
    disk_read: Instant,
    disk_stale: bool,
    /// What was written since the last look may have filled the disk.
    disk_near_full: bool,
}

impl Writer {
    /// A writer over an opened engine.
    pub fn new(
        shared: Arc<Shared>,
        slot: Slot,
        recovery: Option<Recovery>,
        room: Option<Room>,
        witness: Option<Witness>,
    ) -> Result<Self, EngineError> {
        let engine = Arc::clone(&*slot.read());
        let tally = Tally::of(&*engine, witness)?;
        let (written, disk_read, disk_stale, disk_near_full) = (HashMap::new(), Instant::now(), true, false);
        let mut writer =
            Self { shared, engine, slot, recovery, room, tally, written, disk_read, disk_stale, disk_near_full };
        writer.take_stock();
        Ok(writer)
    }

    /// Writes until the queue is closed and empty.
    pub fn run(mut self) {
        loop {
            // A panic in an observer must not leave those unanswered that come after it.
            match catch_unwind(AssertUnwindSafe(|| self.work())) {
                Ok(()) => {
                    self.take_stock();
                    self.shared.changes.close();
                    return self.shared.progress.end();
                }
                Err(panic) => {
                    self.shared
                        .fail(&StoreError::Failed(format!("the writer panicked: {}", panic_text(&*panic)).into()));
                }
            }
        }
    }

    fn work(&mut self) {
        loop {
            self.shared.progress.turn();
            let until = if self.disk_stale { limits::STORE_DISK_INTERVAL } else { limits::STORE_DISK_REST };
            match self.shared.queue.next(Some(self.disk_read + until)) {
                Next::Stop => return,
                Next::Alarm => self.take_stock(),
                Next::Commit { ops, raise } => {
                    self.write(ops, raise);
                    {
                        let _running = self.shared.progress.begin();
                        self.shared.changes.run_between(&*self.engine);
                    }
                    self.disk_stale = true;
                    let soon = if self.disk_near_full { DISK_NEAR_FULL_INTERVAL } else { limits::STORE_DISK_INTERVAL };
                    if self.disk_read.elapsed() >= soon {
                        self.take_stock();
                    }
                }
            }
        }
    }

    /// Commits one batch of what is staged, if there is something to commit.
    #[cfg(test)]
    pub fn turn(&mut self, lazy: bool) -> bool {
        match self.shared.queue.next_now(lazy) {
            Some(Next::Commit { ops, raise }) => {
                self.write(ops, raise);
                true
            }
            Some(Next::Alarm | Next::Stop) | None => false,
        }
    }

    fn write(&mut self, ops: Vec<Op>, raise: bool) {
        let mut batch = Batch::of(ops);
        let after = std::mem::take(&mut batch.after);
        if after.has_records() && self.shared.spare_bytes.load(Ordering::Relaxed) < limits::STORE_BALLAST_BYTES_MAX {
            self.look_at_room();
        }
        // A store that was closed still writes what was staged before.
        let fate = match self.shared.serving() {
            Err(failed @ StoreError::Failed(_)) => Err(failed),
            Ok(()) | Err(_) => self.commit(batch, raise),
        };
        match &fate {
            Err(error @ StoreError::Recovering(why)) => {
                tracing::error!(error = %why, "the store's disk is full; it is opened again as soon as there is room");
                let discarded = Batch::of(self.shared.suspend(error)).after;
                after.tell(&fate);
                discarded.tell(&fate);
                return self.recover();
            }
            Err(error) => self.shared.fail(error),
            Ok(()) => {}
        }
        after.tell(&fate);
    }

    fn commit(&mut self, mut batch: Batch, raise: bool) -> Result<(), StoreError> {
        let mark = self.shared.sequencer.next_mark(raise);
        if let Some(mark) = mark {
            batch.put(&Key::Mark, rows::encode_mark(mark));
        }
        let (mut changed, mut written) = (Vec::new(), 0);
        let (began, rows) = (Instant::now(), batch.writes.len());
        let running = self.shared.progress.begin();
        let committed = catch_unwind(AssertUnwindSafe(|| {
            batch.forget_ids(&*self.engine)?;
            batch.forget_users(&*self.engine)?;
            let totals = self.count(&mut batch)?;
            if !batch.writes.is_empty() {
                batch.put(&Key::Commits, rows::encode_mark(self.tally.commits + 1));
                changed = self.shared.changes.keys_of(&batch.writes);
                written = batch.writes.iter().map(|(key, row)| key.len() + row.as_ref().map_or(0, Vec::len)).sum();
                self.engine.commit(std::mem::take(&mut batch.writes))?;
            }
            Ok::<_, EngineError>(totals)
        }));
        drop(running);
        // Also after a failure: what of it is there is for a reader to see.
        self.shared.changes.note(changed);
        let totals = match committed {
            Ok(Ok(totals)) => totals,
            Ok(Err(error)) if error.is_no_space() && self.can_recover() => {
                return Err(StoreError::Recovering(error.to_string().into()));
            }
            Ok(Err(error)) => return Err(StoreError::Failed(error.to_string().into())),
            Err(panic) => return Err(StoreError::Failed(format!("a commit panicked: {}", panic_text(&*panic)).into())),
        };
        *self.shared.totals.lock() = totals;
        self.disk_near_full = self.shared.grew(written as u64);
        self.tally.commits += u64::from(written > 0);
        if written > 0 {
            self.shared.commits.note(began.elapsed(), rows, written);
        }
        if self.written.len() + batch.counters.len() > limits::IDLE_USERS_MAX {
            self.written.clear();
        }
        for (log, counters) in batch.counters {
            // Most users have a device and never a notification: of those there is nothing to know.
            if counters == Counters::default() {
                self.written.remove(&log);
            } else {
                self.written.insert(log, counters);
            }
        }
        if let Some(mark) = mark {
            self.shared.sequencer.raised(mark);
        }
        Ok(())
    }

    /// Writes each log's latest counters, and the totals that follow from them. A user of whom nothing is left has none.
    fn count(&self, batch: &mut Batch) -> Result<Totals, EngineError> {
        let before = *self.shared.totals.lock();
        let mut totals = before;
        for (log, counters) in &batch.counters {
            let key = Key::Counters(log.clone()).encode();
            let old = match self.written.get(log) {
                Some(written) => *written,
                // A row that cannot be read was reported when the log was loaded.
                None => self.engine.get(&key)?.and_then(|row| rows::decode_counters(&row).ok()).unwrap_or_default(),
            };
            totals.count = (totals.count + u64::from(counters.count)).saturating_sub(u64::from(old.count));
            totals.bytes = totals.bytes.saturating_add(counters.bytes).saturating_sub(old.bytes);
            // Of a topic that nothing is kept of there is nothing to be known: its next offset is above all that were given.
            let is_empty = match log {
                LogId::Topic(_) => (counters.count, counters.lost) == (0, Offset::ZERO),
                LogId::User(_) | LogId::Broadcast => *counters == Counters::default(),
            };
            let row = (!is_empty).then(|| rows::encode_counters(counters));
            batch.writes.push((key, row));
        }
        if totals != before {
            batch.put(&Key::Totals, rows::encode_totals(&totals));
        }
        Ok(totals)
    }

    /// Whether a full disk can be waited for: not by a store that is being closed.
    fn can_recover(&self) -> bool {
        self.recovery.is_some() && self.shared.serving().is_ok()
    }

    /// Reads the size of the store and the room on its disk.
    pub(super) fn take_stock(&mut self) {
        // A disk that hangs here is noticed, too.
        let shared = Arc::clone(&self.shared);
        let _running = shared.progress.begin();
        self.disk_read = Instant::now();
        self.disk_stale = false;
        if matches!(*shared.end.borrow(), None | Some(StoreError::Closed)) {
            self.tally.show(shared.sequencer.mark());
        }
        match self.engine.disk_bytes() {
            Ok(bytes) => self.shared.disk_bytes.store(bytes, Ordering::Relaxed),
            Err(error) => tracing::warn!(%error, "the size of the store on disk could not be read"),
        }
        self.look_at_room();
    }
    /// Where there is little, it is looked at again in a while, whether or not something is written.
    fn look_at_room(&mut self) {
        let Some(room) = &mut self.room else { return };
        let (disk, stored) = (self.shared.disk_bytes.load(Ordering::Relaxed), self.shared.totals.lock().bytes);
        match room.spare(disk, stored) {
            Ok(spare) => {
                let before = self.shared.spare_bytes.swap(spare, Ordering::Relaxed);
                if (before == 0) != (spare == 0) {
                    tracing::warn!(
                        spare,
                        "the store's disk {}",
                        if spare == 0 { "is nearly full" } else { "has room" }
                    );
                }
                self.disk_stale |= spare < limits::STORE_BALLAST_BYTES_MAX;
            }
            Err(error) => tracing::warn!(%error, "the free space of the store's disk could not be read"),
        }
    }
}
