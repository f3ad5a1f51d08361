//! A sled opened over a copy of its files, since sled mends its files while it finds out whether it can read them.
//!
//! Where damage is to be refused, an operator shall find what was damaged, and not what is left of it. The copy lies in
//! the store's folder and goes with the engine; where a crash leaves it, the next opening removes it.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use super::{
    super::engine::{Engine, EngineError, Visit, Write},
    DATA_FILE, SledEngine, is_own, is_unfinished_snapshot,
};
use crate::{limits::STORE_COPY_BYTES_MAX, store::Durability};

/// The copy's folder.
pub const FOLDER: &str = "rehearsal";

/// An engine over a copy.
pub struct Rehearsal {
    // Closed before its files go.
    engine: SledEngine,
    _copy: Copy,
}

/// Removed when it is dropped.
struct Copy(PathBuf);

impl Rehearsal {
    /// Copies the files and opens them. None where they are too large for that, or the disk has no room for it.
    pub fn over(path: &Path) -> Result<Option<Self>, EngineError> {
        // Nobody else may write meanwhile.
        let lock = File::options().read(true).write(true).open(path.join(DATA_FILE))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(EngineError::Busy),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let mut files = Vec::new();
        let mut bytes = 0u64;
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name();
            if is_own(&name.to_string_lossy()) && entry.file_type()?.is_file() {
                bytes = bytes.saturating_add(entry.metadata()?.len());
                files.push(name);
            }
        }
        if bytes > STORE_COPY_BYTES_MAX {
            tracing::warn!(
                bytes,
                "the store is too large to be tried out on a copy; where it is damaged, sled may change it"
            );
            return Ok(None);
        }
        let copy = Copy(path.join(FOLDER));
        fs::DirBuilder::new().mode(0o700).create(&copy.0)?;
        for name in files {
            match fs::copy(path.join(&name), copy.0.join(&name)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    tracing::warn!("no room to try the store out on a copy; where it is damaged, sled may change it");
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
        drop(lock);
        Ok(Some(Self { engine: SledEngine::open(&copy.0, Durability::Process)?, _copy: copy }))
    }
}

/// Whether it is a copy that a crash left, or a snapshot that one left unfinished.
pub fn is_leftover(name: &str) -> bool {
    name == FOLDER || is_unfinished_snapshot(name)
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "a copy of the store could not be removed");
        }
    }
}

impl Engine for Rehearsal {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn commit(&self, writes: Vec<Write>) -> Result<(), EngineError> {
        self.engine.commit(writes)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        self.engine.get(key)
    }

    fn range(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> Visit) -> Result<(), EngineError> {
        self.engine.range(from, to, visit)
    }

    fn disk_bytes(&self) -> Result<u64, EngineError> {
        self.engine.disk_bytes()
    }
}
