//! The one thread that changes the store.
//!
//! It takes what is staged, folds it into one batch, commits it, and only then tells the logs and answers the callers:
//! observers first, then permits, answers, and holds last. Nothing delays a write that stands alone; while one commit
//! runs, the next batch gathers.
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
    engine::{Engine, EngineError, Write},
    keys::{self, Key},
    panic_text,
    queue::Next,
    reader::Slot,
    record,
    recovery::Recovery,
    room::Room,
    rows,
    shared::{Permit, Shared},
};
use crate::{
    limits,
    store::{Counters, Done, Hold, LogObserver, Op, StoreError, Totals},
    types::{Offset, UserId},
};

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
    /// What the mailbox rows of users hold that were written lately, so that the totals move by the difference without
    /// a read. Emptied when it grows too large.
    pub(super) written: HashMap<UserId, Counters>,
    disk_read: Instant,
    disk_stale: bool,
}

/// Ops folded into one batch.
#[derive(Default)]
struct Batch {
    writes: Vec<Write>,
    counters: HashMap<UserId, Counters>,
    after: After,
}

/// What is to be told and let go of, once a batch's fate is known.
#[derive(Default)]
struct After {
    logs: HashMap<UserId, (Arc<dyn LogObserver>, Offset)>,
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

    fn add(&mut self, op: Op) {
        match op {
            Op::Append { user, offset, notification, counters, permit, observer, done } => {
                let (head, chunks) = record::encode(&notification);
                for (index, chunk) in (0..=u16::MAX).zip(chunks) {
                    self.put(&Key::Chunk(user.clone(), offset, index), chunk);
                }
                self.put(&Key::Head(user.clone(), offset), head);
                if let Some(moment) = notification.expires_at {
                    self.put(&Key::Expiry(keys::expiry_minute(moment), user.clone()), Vec::new());
                }
                self.counters.insert(user.clone(), counters);
                let log = self.after.logs.entry(user).or_insert_with(|| (Arc::clone(&observer), offset));
                *log = (observer, log.1.max(offset));
                self.after.permits.push(permit);
                self.after.done.extend(done);
            }
            Op::Delete { user, entries, counters, hold } => {
                for entry in entries {
                    self.remove(&Key::Head(user.clone(), entry.offset));
                    for index in 0..entry.chunks {
                        self.remove(&Key::Chunk(user.clone(), entry.offset, index));
                    }
                }
                self.counters.insert(user, counters);
                self.after.holds.push(hold);
            }
            Op::Cursor { user, device, row, hold } => {
                self.put(&Key::Device(user, device), rows::encode_device(&row));
                self.after.holds.push(hold);
            }
            Op::PutDevice { user, device, row, counters, hold, done } => {
                self.put(&Key::Device(user.clone(), device), rows::encode_device(&row));
                self.counters.insert(user, counters);
                self.after.holds.push(hold);
                self.after.done.push(done);
            }
            Op::RemoveDevice { user, device, hold, done } => {
                self.remove(&Key::Device(user, device));
                self.after.holds.push(hold);
                self.after.done.extend(done);
            }
            Op::ForgetDue { due } => self.remove(&Key::Expiry(due.minute, due.user)),
        }
    }
}

impl Writer {
    /// A writer over an opened engine.
    pub fn new(shared: Arc<Shared>, slot: Slot, recovery: Option<Recovery>, room: Option<Room>) -> Self {
        let engine = Arc::clone(&*slot.read());
        let (written, disk_read) = (HashMap::new(), Instant::now());
        let mut writer = Self { shared, engine, slot, recovery, room, written, disk_read, disk_stale: true };
        writer.take_stock();
        writer
    }

    /// Writes until the queue is closed and empty.
    pub fn run(mut self) {
        loop {
            // A panic in an observer must not leave those unanswered that come after it.
            match catch_unwind(AssertUnwindSafe(|| self.work())) {
                Ok(()) => return self.shared.progress.end(),
                Err(panic) => {
                    self.shared
                        .fail(&StoreError::Failed(format!("the writer panicked: {}", panic_text(&*panic)).into()));
                }
            }
        }
    }

    fn work(&mut self) {
        loop {
            let alarm = self.disk_stale.then(|| self.disk_read + limits::STORE_DISK_INTERVAL);
            match self.shared.queue.next(alarm) {
                Next::Stop => return,
                Next::Alarm => self.take_stock(),
                Next::Commit { ops, raise } => {
                    self.write(ops, raise);
                    self.disk_stale = true;
                    if self.disk_read.elapsed() >= limits::STORE_DISK_INTERVAL {
                        self.take_stock();
                    }
                }
            }
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
        let running = self.shared.progress.begin();
        let committed = catch_unwind(AssertUnwindSafe(|| {
            let totals = self.count(&mut batch)?;
            if !batch.writes.is_empty() {
                self.engine.commit(std::mem::take(&mut batch.writes))?;
            }
            Ok::<_, EngineError>(totals)
        }));
        drop(running);
        let totals = match committed {
            Ok(Ok(totals)) => totals,
            Ok(Err(error)) if error.is_no_space() && self.can_recover() => {
                return Err(StoreError::Recovering(error.to_string().into()));
            }
            Ok(Err(error)) => return Err(StoreError::Failed(error.to_string().into())),
            Err(panic) => return Err(StoreError::Failed(format!("a commit panicked: {}", panic_text(&*panic)).into())),
        };
        *self.shared.totals.lock() = totals;
        if self.written.len() + batch.counters.len() > limits::IDLE_USERS_MAX {
            self.written.clear();
        }
        self.written.extend(batch.counters);
        if let Some(mark) = mark {
            self.shared.sequencer.raised(mark);
        }
        Ok(())
    }

    /// Writes each user's latest counters, and the totals that follow from them.
    fn count(&self, batch: &mut Batch) -> Result<Totals, EngineError> {
        let before = *self.shared.totals.lock();
        let mut totals = before;
        for (user, counters) in &batch.counters {
            let key = Key::Mailbox(user.clone()).encode();
            let old = match self.written.get(user) {
                Some(written) => *written,
                // A row that cannot be read was reported when the user's mailbox was loaded.
                None => self.engine.get(&key)?.and_then(|row| rows::decode_counters(&row).ok()).unwrap_or_default(),
            };
            totals.count = (totals.count + u64::from(counters.count)).saturating_sub(u64::from(old.count));
            totals.bytes = totals.bytes.saturating_add(counters.bytes).saturating_sub(old.bytes);
            batch.writes.push((key, Some(rows::encode_counters(counters))));
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
        self.disk_read = Instant::now();
        self.disk_stale = false;
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
