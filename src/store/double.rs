//! An engine for tests: in memory, and at the test's command. Its commits can be held up and let through one by one,
//! and be made to fail; its rows outlive the store, which can be opened over it again. Its disk can be full: then the
//! engine is lost until it is reopened, as sled's is.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use parking_lot::{Condvar, Mutex};

use super::embedded::{
    engine::{Engine, EngineError, MemoryEngine, Visit, Write},
    keys::Key,
};
use crate::types::{Device, UserId};

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Double {
    pub(super) rows: MemoryEngine,
    pub(super) commits: Mutex<Vec<Vec<Write>>>,
    gate: Mutex<Gate>,
    opened: Condvar,
    begun: AtomicUsize,
    pub(crate) fails: AtomicBool,
    /// The next commit is applied, and its process ends before it hears of it.
    pub(crate) cut_off: AtomicBool,
    pub(super) panics: AtomicBool,
    /// What a commit carries can be read before the commit is through, as with sled.
    pub(crate) shows_early: AtomicBool,
    full: Mutex<Full>,
}

/// The disk of a double, once it is full.
#[derive(Default)]
struct Full {
    /// Commits that find no room.
    commits: usize,
    /// Whether what they carry is there all the same.
    keeps: bool,
    /// Openings that find no room.
    openings: usize,
    /// A commit found no room, and it was not opened again.
    is_lost: bool,
}

fn no_space() -> EngineError {
    EngineError::Io(std::io::ErrorKind::StorageFull.into())
}

#[derive(Default)]
struct Gate {
    is_shut: bool,
    /// Commits that may pass although it is shut.
    passes: usize,
    /// A commit has come to it and may not pass.
    is_waiting: bool,
}

/// Holds a double's commits up until it is dropped, also by a test that fails.
pub(crate) struct Held(Arc<Double>);

impl Held {
    /// Lets one commit through: the one that waits, or else the next.
    pub(crate) fn let_one_through(&self) {
        let mut gate = self.0.gate.lock();
        gate.passes += 1;
        gate.is_waiting = false;
        drop(gate);
        self.0.opened.notify_all();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.gate.lock() = Gate::default();
        self.0.opened.notify_all();
    }
}

impl Double {
    /// Holds up every commit from now on.
    pub(crate) fn hold(self: &Arc<Self>) -> Held {
        self.gate.lock().is_shut = true;
        Held(Arc::clone(self))
    }

    /// Comes back when so many commits have begun since the store was opened.
    pub(crate) async fn begun(&self, commits: usize) {
        while self.commits_begun() < commits {
            tokio::task::yield_now().await;
        }
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        let (mut count, (from, to)) = (0, super::embedded::keys::all());
        let counted = self.rows.range(&from, &to, &mut |_, _| {
            count += 1;
            Visit::Continue(())
        });
        counted.unwrap();
        count
    }

    /// Whether a commit is held up.
    pub(crate) fn is_waiting(&self) -> bool {
        self.gate.lock().is_waiting
    }

    /// The commits that have begun since the store was opened.
    pub(crate) fn commits_begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    /// So many commits from now on find no room, and after each of them so many openings. What the commits carry is
    /// there after the next opening if it `keeps` them.
    pub(crate) fn is_full_for(&self, commits: usize, openings: usize, keeps: bool) {
        *self.full.lock() = Full { commits, openings, keeps, is_lost: false };
    }

    /// How many commits and openings will find no room.
    pub(crate) fn is_full_still_for(&self) -> (usize, usize) {
        let full = self.full.lock();
        (full.commits, full.openings)
    }

    /// Loses a row behind the store's back.
    pub(crate) fn lose_device(&self, user: &UserId, device: &Device) {
        let lost = self.rows.commit(vec![(Key::Device(user.clone(), device.clone()).encode(), None)]);
        assert!(lost.is_ok());
    }

    /// Opens it again.
    pub(super) fn reopen(self: &Arc<Self>) -> Result<Arc<dyn Engine>, EngineError> {
        let mut full = self.full.lock();
        if full.openings > 0 {
            full.openings -= 1;
            return Err(no_space());
        }
        full.is_lost = false;
        Ok(Arc::new(Arc::clone(self)))
    }

    fn is_there(&self) -> Result<(), EngineError> {
        if self.full.lock().is_lost { Err(no_space()) } else { Ok(()) }
    }

    /// Begins to count anew.
    pub(super) fn forget(&self) {
        self.begun.store(0, Ordering::SeqCst);
        self.commits.lock().clear();
    }
}

impl Engine for Arc<Double> {
    fn name(&self) -> &'static str {
        "double"
    }

    fn commit(&self, writes: Vec<Write>) -> Result<(), EngineError> {
        if self.shows_early.load(Ordering::SeqCst) {
            self.rows.commit(writes.clone())?;
        }
        self.begun.fetch_add(1, Ordering::SeqCst);
        {
            let mut gate = self.gate.lock();
            self.opened.wait_while(&mut gate, |gate| {
                gate.is_waiting = gate.is_shut && gate.passes == 0;
                gate.is_waiting
            });
            gate.passes = gate.passes.saturating_sub(1);
        }
        assert!(!self.panics.load(Ordering::SeqCst), "on purpose");
        if self.fails.load(Ordering::SeqCst) {
            return Err(EngineError::Io(std::io::Error::other("on purpose")));
        }
        self.is_there()?;
        let lacks_room = {
            let mut full = self.full.lock();
            full.is_lost = full.commits > 0;
            full.commits = full.commits.saturating_sub(1);
            full.is_lost.then_some(full.keeps)
        };
        if lacks_room != Some(false) {
            self.commits.lock().push(writes.clone());
            self.rows.commit(writes)?;
        }
        if self.cut_off.load(Ordering::SeqCst) {
            return Err(EngineError::Io(std::io::Error::other("the process ended")));
        }
        if lacks_room.is_some() { Err(no_space()) } else { Ok(()) }
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        self.is_there()?;
        self.rows.get(key)
    }

    fn range(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> Visit) -> Result<(), EngineError> {
        self.is_there()?;
        self.rows.range(from, to, visit)
    }

    fn disk_bytes(&self) -> Result<u64, EngineError> {
        self.rows.disk_bytes()
    }

    fn nudge(&self) {
        if self.fails.load(Ordering::SeqCst) {
            self.gate.lock().is_shut = false;
            self.opened.notify_all();
        }
    }
}
