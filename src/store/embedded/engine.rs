//! What an embedded engine must do, and no more: one ordered map of byte strings, changed in batches.
//!
//! Rule: one thread commits, any thread reads. A commit is durable when it returns; after one that failed the engine
//! is not committed to again. A range is not a snapshot: commits may pass between its steps.

use std::{
    collections::BTreeMap,
    io,
    ops::{Bound, ControlFlow},
};

use parking_lot::RwLock;

/// One change: a key, and its value or its end. Of several for one key in a batch, the last counts.
pub type Write = (Vec<u8>, Option<Vec<u8>>);

/// What became of a scan's row: go on, or enough.
pub type Visit = ControlFlow<()>;

/// Why an engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Another process has it.
    #[error("it is in use by another process")]
    Busy,
    /// The system said no; the error's kind is the system's, so that a full disk can be told apart.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What is on disk makes no sense.
    #[error("{0}")]
    Corrupt(String),
    /// What is on disk was written by another version.
    #[error("{found}, where {supported} is supported")]
    Format {
        /// What the files say.
        found: String,
        /// What this build reads.
        supported: String,
    },
    /// The folder holds the files of another engine.
    #[error("{found} wrote it, and store.engine is {configured}")]
    Foreign {
        /// Whose files are there.
        found: &'static str,
        /// Whose were to be opened.
        configured: &'static str,
    },
}

/// A sync of the disk that failed. What of it is on disk is unknown, and the kernel takes it as written from then on:
/// so it keeps the kind of no error that could be waited out in this process, such as a full disk.
pub fn sync_failed(error: io::Error) -> io::Error {
    io::Error::other(format!("syncing failed: {error}"))
}

/// Whether the system had no room.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl EngineError {
    /// Whether there was no room for it, which passes.
    pub fn is_no_space(&self) -> bool {
        matches!(self, EngineError::Io(error) if is_no_space(error))
    }
}

/// An embedded engine.
pub trait Engine: Send + Sync + 'static {
    /// Its name, as the configuration writes it.
    fn name(&self) -> &'static str;

    /// Applies all of `writes` or, after a crash, none. Durable when it returns.
    fn commit(&self, writes: Vec<Write>) -> Result<(), EngineError>;

    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError>;

    /// Shows `visit` the rows from `from` up to, not including, `to`, in order, until it breaks off.
    fn range(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> Visit) -> Result<(), EngineError>;

    /// The bytes that its files take.
    fn disk_bytes(&self) -> Result<u64, EngineError>;

    /// A commit takes long: whatever its thread sleeps over looks again whether an error is to be told. Does not wait.
    fn nudge(&self) {}
}

/// Stands where the engine was, until it is opened again.
pub struct Gone;

impl Gone {
    fn error() -> EngineError {
        EngineError::Io(io::ErrorKind::StorageFull.into())
    }
}

impl Engine for Gone {
    fn name(&self) -> &'static str {
        "none"
    }

    fn commit(&self, _: Vec<Write>) -> Result<(), EngineError> {
        Err(Self::error())
    }

    fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        Err(Self::error())
    }

    fn range(&self, _: &[u8], _: &[u8], _: &mut dyn FnMut(&[u8], &[u8]) -> Visit) -> Result<(), EngineError> {
        Err(Self::error())
    }

    fn disk_bytes(&self) -> Result<u64, EngineError> {
        Err(Self::error())
    }
}

/// The engine of tests: nothing survives it.
#[derive(Default)]
pub struct MemoryEngine {
    rows: RwLock<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl Engine for MemoryEngine {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn commit(&self, writes: Vec<Write>) -> Result<(), EngineError> {
        let mut rows = self.rows.write();
        for (key, value) in writes {
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        Ok(self.rows.read().get(key).cloned())
    }

    fn range(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> Visit) -> Result<(), EngineError> {
        if from >= to {
            return Ok(());
        }
        let rows = self.rows.read();
        for (key, value) in rows.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))) {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn disk_bytes(&self) -> Result<u64, EngineError> {
        Ok(self.rows.read().iter().map(|(key, value)| (key.len() + value.len()) as u64).sum())
    }
}
