//! Damage that is met after the opening, and what the next opening is to know of it.
//!
//! An engine may open although a part of its files is damaged, and fail over it each time that part is touched: the
//! daemon would end at the same commit after every start. So what fails over damage leaves a file behind. The next
//! opening finds it and reads everything; if that finds nothing, and then another commit fails so, the one after it
//! takes the store for damaged. The file goes when an engine was closed in order, or with what is set aside.

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use super::{
    engine::{Engine, EngineError, Visit, Write},
    keys, panic_text,
};

/// The file in the store's folder: how many commits failed over damage, and why the last one did.
pub const FILE: &str = "suspect";

/// Commits that fail over damage, in a row, before the store counts as damaged although all of it can be read.
const FAILURES_MAX: u32 = 2;

/// What earlier runs left behind.
#[derive(Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// Nothing.
    None,
    /// Something failed: read everything.
    Read,
    /// It fails again and again.
    Damaged(String),
}

/// Reads what earlier runs left behind.
pub fn suspicion(path: &Path) -> io::Result<Suspicion> {
    let text = match fs::read(path.join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Suspicion::None),
        Err(error) => return Err(error),
    };
    // Of a file that was cut short, nothing but that it is there is known.
    let text = String::from_utf8_lossy(&text);
    let (failures, why) = text.split_once('\n').unwrap_or(("", ""));
    if failures.parse().unwrap_or(0) < FAILURES_MAX {
        return Ok(Suspicion::Read);
    }
    let file = path.join(FILE);
    Ok(Suspicion::Damaged(format!(
        "{failures} commits failed over it, the last with: {}; remove {} to have it tried again",
        why.trim(),
        file.display()
    )))
}

/// Reads every row, to see whether that can be done.
pub fn read_all(engine: &dyn Engine) -> Result<(), EngineError> {
    let (from, to) = keys::all();
    engine.range(&from, &to, &mut |_, _| Visit::Continue(()))
}

/// An engine that leaves the file behind when it fails over damage.
pub struct Watched {
    engine: Arc<dyn Engine>,
    file: PathBuf,
    /// What failed of it: [`NOTHING`], [`A_READ`] or [`A_COMMIT`].
    failed: AtomicU8,
}

const NOTHING: u8 = 0;
const A_READ: u8 = 1;
const A_COMMIT: u8 = 2;

impl Watched {
    /// Watches over an engine whose files are in the folder `path`.
    pub fn over(engine: Arc<dyn Engine>, path: &Path) -> Self {
        Self { engine, file: path.join(FILE), failed: AtomicU8::new(NOTHING) }
    }

    fn watch<T>(&self, what: u8, act: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
        match catch_unwind(AssertUnwindSafe(act)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                match &error {
                    EngineError::Corrupt(why) => self.note(what, why),
                    _ => drop(self.failed.fetch_max(what, Ordering::Relaxed)),
                }
                Err(error)
            }
            Err(panic) => {
                self.note(what, &format!("a panic: {}", panic_text(&*panic)));
                resume_unwind(panic)
            }
        }
    }

    fn note(&self, what: u8, why: &str) {
        // Of several failures in one run, the first counts.
        if self.failed.fetch_max(what, Ordering::Relaxed) >= what {
            return;
        }
        let before = fs::read_to_string(&self.file).unwrap_or_default();
        let before = before.split('\n').next().and_then(|failures| failures.parse().ok()).unwrap_or(0u32);
        // What cannot be read fails alone, and is found when everything is read: only commits count.
        let failures = before.saturating_add(u32::from(what == A_COMMIT));
        let text = format!("{failures}\n{}\n", why.replace('\n', " "));
        if let Err(error) = fs::write(&self.file, text) {
            tracing::error!(file = %self.file.display(), %error, "a suspicion of damage could not be noted");
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.failed.load(Ordering::Relaxed) == NOTHING {
            // Next to always there is none.
            let _ = fs::remove_file(&self.file);
        }
    }
}

impl Engine for Watched {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn commit(&self, writes: Vec<Write>) -> Result<(), EngineError> {
        self.watch(A_COMMIT, || self.engine.commit(writes))
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        self.watch(A_READ, || self.engine.get(key))
    }

    fn range(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> Visit) -> Result<(), EngineError> {
        self.watch(A_READ, || self.engine.range(from, to, visit))
    }

    fn disk_bytes(&self) -> Result<u64, EngineError> {
        self.engine.disk_bytes()
    }

    fn nudge(&self) {
        self.engine.nudge();
    }
}
