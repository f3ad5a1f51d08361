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
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use super::{
    engine::{Engine, EngineError, Write},
    keys::{self, Key},
    panic_text, queries,
    queue::Next,
    reader::Slot,
    record,
    recovery::Recovery,
    room::Room,
    rows,
    shared::{Permit, Shared},
    witness::{Tally, Witness},
};
use crate::{
    limits,
    store::{Counters, Done, DueId, Hold, LogObserver, Op, Place, Remembered, StoreError, Totals},
    types::{LogId, NotificationId, Offset, UnixMillis, UserId},
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

/// Ops folded into one batch.
#[derive(Default)]
struct Batch {
    writes: Vec<Write>,
    counters: HashMap<LogId, Counters>,
    /// Ids that this batch remembers.
    remembered: HashSet<(LogId, NotificationId)>,
    /// Ids that may be forgotten.
    due_ids: Vec<(DueId, UnixMillis)>,
    /// Users of whom nothing is to be left.
    gone: Vec<UserId>,
    after: After,
}

/// What is to be told and let go of, once a batch's fate is known.
#[derive(Default)]
struct After {
    logs: HashMap<LogId, (Arc<dyn LogObserver>, Offset)>,
    done: Vec<Done>,
    permits: Vec<Permit>,
    holds: Vec<Hold>,
}

impl After {
    fn tell(self, fate: &Result<(), StoreError>) {
        for (observer, upto) in self.logs.into_values() {
            match fate {
                Ok(()) => observer.applied(upto),
                Err(error) => observer.failed(error),
            }
        }
        // Before the answers: whoever hears one may ask for the next permit at once, and must find this one's room free.
        drop(self.permits);
        for done in self.done {
            // Whoever asked may have gone.
            let _ = done.send(fate.clone());
        }
        drop(self.holds);
    }
}

impl Batch {
    fn of(ops: Vec<Op>) -> Self {
        let mut batch = Self::default();
        for op in ops {
            batch.add(op);
        }
        batch
    }

    fn put(&mut self, key: &Key, value: Vec<u8>) {
        self.writes.push((key.encode(), Some(value)));
    }

    fn remove(&mut self, key: &Key) {
        self.writes.push((key.encode(), None));
    }

    fn remove_record(&mut self, log: &LogId, place: Place) {
        self.remove(&Key::Head(log.clone(), place.offset));
        for index in 0..place.chunks {
            self.remove(&Key::Chunk(log.clone(), place.offset, index));
        }
    }

    fn remove_buckets(&mut self, log: &LogId, minutes: impl IntoIterator<Item = u64>) {
        for minute in minutes {
            self.remove(&Key::Expiry(minute, log.clone()));
        }
    }

    fn add(&mut self, op: Op) {
        match op {
            Op::Append { log, offset, notification, replaces, emptied, remember, counters, permit, observer, done } => {
                if let Some(place) = replaces {
                    self.remove_record(&log, place);
                }
                self.remove_buckets(&log, emptied);
                let (head, chunks) = record::encode(&notification, remember.is_some());
                for (index, chunk) in (0..=u16::MAX).zip(chunks) {
                    self.put(&Key::Chunk(log.clone(), offset, index), chunk);
                }
                self.put(&Key::Head(log.clone(), offset), head);
                if let Some(moment) = notification.expires_at {
                    self.put(&Key::Expiry(keys::expiry_minute(moment), log.clone()), Vec::new());
                }
                if let Some((until, digest, sessions)) = remember {
                    let id = notification.id.clone();
                    let row = rows::encode_remembered(&Remembered { offset, digest, until, sessions });
                    self.put(&Key::Id(log.clone(), id.clone()), row);
                    self.put(&Key::IdEnd(keys::expiry_minute(until), log.clone(), id.clone()), Vec::new());
                    self.remembered.insert((log.clone(), id));
                }
                self.counters.insert(log.clone(), counters);
                let log = self.after.logs.entry(log).or_insert_with(|| (Arc::clone(&observer), offset));
                *log = (observer, log.1.max(offset));
                self.after.permits.push(permit);
                self.after.done.extend(done);
            }
            Op::Delete { log, places, emptied, counters, hold, done } => {
                for place in places {
                    self.remove_record(&log, place);
                }
                self.remove_buckets(&log, emptied);
                self.counters.insert(log, counters);
                self.after.holds.push(hold);
                self.after.done.extend(done);
            }
            Op::Cursor { user, device, row, hold } => {
                self.put(&Key::Device(user, device), rows::encode_device(&row));
                self.after.holds.push(hold);
            }
            Op::PutDevice { user, device, row, counters, hold, done } => {
                self.remove(&Key::Forgotten(user.clone(), device.clone()));
                self.put(&Key::Device(user.clone(), device), rows::encode_device(&row));
                self.counters.insert(LogId::User(user), counters);
                self.after.holds.push(hold);
                self.after.done.push(done);
            }
            Op::RemoveDevice { user, device, at, unremembered, hold, done } => {
                for device in unremembered {
                    self.remove(&Key::Forgotten(user.clone(), device));
                }
                self.put(&Key::Forgotten(user.clone(), device.clone()), rows::encode_forgotten(at));
                self.remove(&Key::Device(user, device));
                self.after.holds.push(hold);
                self.after.done.extend(done);
            }
            Op::ForgetUser { user, hold, done } => {
                self.gone.push(user);
                self.after.holds.push(hold);
                self.after.done.push(done);
            }
            Op::ForgetDue { due, done } => {
                self.remove(&Key::Expiry(due.minute, due.log));
                self.after.done.extend(done);
            }
            Op::ForgetId { due, now, done } => {
                self.due_ids.push((due, now));
                self.after.done.extend(done);
            }
            Op::Revoke { revoked, done } => {
                let row = |(id, one)| (Key::Revocation(id).encode(), Some(rows::encode_revocation(&one)));
                self.writes.extend(revoked.into_iter().map(row));
                self.after.done.push(done);
            }
            Op::ForgetRevocations { ids } => ids.iter().for_each(|id| self.remove(&Key::Revocation(*id))),
        }
    }

    /// Removes the rows of ids that may be forgotten, and were not remembered anew.
    fn forget_ids(&mut self, engine: &dyn Engine) -> Result<(), EngineError> {
        for (DueId { minute, log, id }, now) in std::mem::take(&mut self.due_ids) {
            let pair = (log, id);
            if !self.remembered.contains(&pair) {
                let key = Key::Id(pair.0.clone(), pair.1.clone());
                let row = engine.get(&key.encode())?;
                // One that cannot be read stands for nothing.
                let stands = |row: &[u8]| rows::decode_remembered(row).is_ok_and(|id| id.until > now);
                if row.is_some_and(|row| !stands(&row)) {
                    self.remove(&key);
                }
            }
            self.remove(&Key::IdEnd(minute, pair.0, pair.1));
        }
        Ok(())
    }

    /// Removes all that is written of those who are to be forgotten. Such a batch holds nothing else.
    fn forget_users(&mut self, engine: &dyn Engine) -> Result<(), EngineError> {
        for user in std::mem::take(&mut self.gone) {
            let keys = queries::keys_of(engine, &user)?;
            self.writes.extend(keys.into_iter().map(|key| (key, None)));
            self.counters.insert(LogId::User(user), Counters::default());
        }
        Ok(())
    }
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
        if !after.permits.is_empty()
            && self.shared.spare_bytes.load(Ordering::Relaxed) < limits::STORE_BALLAST_BYTES_MAX
        {
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
            let row = (*counters != Counters::default()).then(|| rows::encode_counters(counters));
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
