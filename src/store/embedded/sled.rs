//! The engine on sled 0.34.7.
//!
//! What sled wants of its user, each of it seen to matter: what was not flushed is lost on `kill -9`, so every commit
//! flushes; `flush_async` and `Mode::HighThroughput` deadlock, so neither is used; memory is about ten times the cache;
//! values stay far below the 128 KiB at which sled writes them to side files that it never syncs. `flush` hands the
//! data to the kernel and does not wait for the disk: it survives the process, not the power.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::engine::{Engine, EngineError, Visit, Write};

const CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// sled's file in the folder, which it also locks.
pub const DATA_FILE: &str = "db";

/// Whether a file or folder of that name in the folder is sled's.
pub fn is_own(name: &str) -> bool {
    matches!(name, DATA_FILE | "conf" | "blobs") || name.starts_with("snap.")
}

/// Whether it is a snapshot that a crash left unfinished. Every opening fails as long as one is there.
pub fn is_unfinished_snapshot(name: &str) -> bool {
    name.starts_with("snap.") && name.ends_with(".generating")
}

/// An opened sled.
pub struct SledEngine {
    tree: sled::Db,
    path: PathBuf,
}

impl SledEngine {
    /// Opens or creates it. May panic over damage; see [`super::open`].
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let tree = sled::Config::new()
            .path(path)
            .mode(sled::Mode::LowSpace)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .open()?;
        Ok(Self { tree, path: path.to_owned() })
    }
}

impl Engine for SledEngine {
    fn name(&self) -> &'static str {
        "sled"
    }

    fn commit(&self, writes: Vec<Write>) -> Result<(), EngineError> {
        let mut batch = sled::Batch::default();
        for (key, value) in writes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        self.tree.apply_batch(batch)?;
        self.tree.flush()?;
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        Ok(self.tree.get(key)?.map(|value| value.to_vec()))
    }

    fn range(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> Visit) -> Result<(), EngineError> {
        for row in self.tree.range(from..to) {
            let (key, value) = row?;
            if visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn disk_bytes(&self) -> Result<u64, EngineError> {
        Ok(size_of(&self.path, is_own)? + size_of(&self.path.join("blobs"), |_| true)?)
    }
}

fn size_of(folder: &Path, counts: fn(&str) -> bool) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(file) if file.is_file() && counts(&entry.file_name().to_string_lossy()) => bytes += file.len(),
            Ok(_) => {}
            // sled removed it in between.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

impl From<sled::Error> for EngineError {
    fn from(error: sled::Error) -> Self {
        match error {
            // sled gives the busy lock no kind of its own.
            sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => EngineError::Busy,
            // A file that is shorter than what refers to it.
            sled::Error::Io(error)
                if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData) =>
            {
                EngineError::Corrupt(format!("a file that ends too early: {error}"))
            }
            sled::Error::Io(error) => EngineError::Io(error),
            // It names the version or the setting that differs.
            sled::Error::Unsupported(why) => {
                EngineError::Format { found: format!("files of another sled ({why})"), supported: "sled 0.34".into() }
            }
            error => EngineError::Corrupt(error.to_string()),
        }
    }
}
