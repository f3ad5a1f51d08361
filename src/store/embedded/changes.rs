//! What a backup asks of the writer: which keys commits change while it copies, and a look at the store between two
//! commits.
//!
//! Rules: keys are noted behind their commit, so that whoever takes a key here and then reads its row reads what the
//! commit made of it. Noting begins and ends between two commits. What is noted is bounded; past the bound it is no longer
//! complete, and the backup fails. Where nobody copies a commit pays for one load of an atomic.

use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;

use super::engine::{Engine, Write};
use crate::limits;

/// What is done between two commits.
type Between = Box<dyn FnOnce(&dyn Engine) + Send>;

/// See the file's head.
#[derive(Default)]
pub struct Changes {
    /// Somebody copies.
    taken: AtomicBool,
    noting: AtomicBool,
    noted: Mutex<Noted>,
    between: Mutex<Slot>,
}

#[derive(Default)]
struct Noted {
    keys: HashSet<Vec<u8>>,
    bytes: usize,
    overflowed: bool,
}

#[derive(Default)]
struct Slot {
    job: Option<Between>,
    closed: bool,
}

/// More changed than could be noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflowed;

impl Changes {
    /// Takes the only place for one who copies; false where another has it.
    pub fn take(&self) -> bool {
        !self.taken.swap(true, Ordering::AcqRel)
    }

    /// Gives that place back.
    pub fn give_back(&self) {
        self.taken.store(false, Ordering::Release);
    }

    /// Begins to note. To be called between two commits.
    pub fn begin(&self) {
        *self.noted.lock() = Noted::default();
        self.noting.store(true, Ordering::Release);
    }

    /// Notes no more, and forgets what was noted.
    pub fn end(&self) {
        self.noting.store(false, Ordering::Release);
        *self.noted.lock() = Noted::default();
    }

    /// The keys that a commit is about to change; none where nobody wants to know.
    pub fn keys_of(&self, writes: &[Write]) -> Vec<Vec<u8>> {
        if !self.noting.load(Ordering::Acquire) {
            return Vec::new();
        }
        writes.iter().map(|(key, _)| key.clone()).collect()
    }

    /// Notes the keys of a commit that was made, or failed.
    pub fn note(&self, keys: Vec<Vec<u8>>) {
        if keys.is_empty() || !self.noting.load(Ordering::Acquire) {
            return;
        }
        let mut noted = self.noted.lock();
        for key in keys {
            if noted.bytes >= limits::BACKUP_NOTED_BYTES_MAX {
                noted.overflowed = true;
                return;
            }
            let bytes = key.len() + NOTED_KEY_BYTES;
            if noted.keys.insert(key) {
                noted.bytes += bytes;
            }
        }
    }

    /// How many keys are noted.
    pub fn noted(&self) -> usize {
        self.noted.lock().keys.len()
    }

    /// Takes what is noted.
    pub fn take_noted(&self) -> Result<HashSet<Vec<u8>>, Overflowed> {
        let mut noted = self.noted.lock();
        if noted.overflowed {
            return Err(Overflowed);
        }
        Ok(std::mem::take(&mut *noted).keys)
    }

    /// Leaves `job` to the writer, which does it after its next commit; the caller sees to it that there is one. Dropped
    /// undone where the writer has ended.
    pub fn leave_to_writer(&self, job: Between) {
        let mut slot = self.between.lock();
        if !slot.closed {
            slot.job = Some(job);
        }
    }

    /// Does what was left to the writer. To be called between two commits, on its thread.
    pub fn run_between(&self, engine: &dyn Engine) {
        let job = self.between.lock().job.take();
        if let Some(job) = job {
            // Whoever waits for it hears that it was dropped; the writer goes on.
            let _ = catch_unwind(AssertUnwindSafe(|| job(engine)));
        }
    }

    /// The writer has ended.
    pub fn close(&self) {
        let mut slot = self.between.lock();
        slot.closed = true;
        slot.job = None;
    }
}

/// What a noted key takes beside its own bytes.
const NOTED_KEY_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::{super::engine::MemoryEngine, *};

    fn writes(keys: &[u8]) -> Vec<Write> {
        keys.iter().map(|key| (vec![*key], None)).collect()
    }

    #[test]
    fn keys_are_noted_once_and_only_while_somebody_copies() {
        let changes = Changes::default();
        assert!(changes.keys_of(&writes(&[1])).is_empty());
        changes.begin();
        for keys in [[1, 2], [2, 3]] {
            changes.note(changes.keys_of(&writes(&keys)));
        }
        assert_eq!(changes.noted(), 3);
        assert_eq!(changes.take_noted().unwrap(), [vec![1], vec![2], vec![3]].into());
        assert_eq!(changes.noted(), 0);
        changes.end();
        assert!(changes.keys_of(&writes(&[1])).is_empty());
    }

    #[test]
    fn more_than_can_be_noted_is_never_taken_for_all() {
        let changes = Changes::default();
        changes.begin();
        let long = |number: usize| (number.to_be_bytes().repeat(4096), None);
        let many: Vec<Write> = (0..limits::BACKUP_NOTED_BYTES_MAX / 32_768 + 2).map(long).collect();
        changes.note(changes.keys_of(&many));
        assert_eq!(changes.take_noted(), Err(Overflowed));
        changes.begin();
        assert_eq!(changes.take_noted(), Ok(HashSet::new()));
    }

    #[test]
    fn a_job_that_panics_or_comes_too_late_is_dropped() {
        let changes = Changes::default();
        changes.leave_to_writer(Box::new(|_| panic!("on purpose")));
        changes.run_between(&MemoryEngine::default());
        let (answer, answered) = std::sync::mpsc::channel::<()>();
        changes.close();
        changes.leave_to_writer(Box::new(move |_| answer.send(()).unwrap()));
        changes.run_between(&MemoryEngine::default());
        assert!(answered.recv().is_err());
    }
}
