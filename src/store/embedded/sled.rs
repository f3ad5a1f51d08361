//! The engine on sled 0.34.7.
//!
//! What sled wants of its user, each of it seen to matter: what was not flushed is lost on `kill -9`, so every commit
//! flushes; `flush_async` and `Mode::HighThroughput` deadlock, so neither is used; memory is about ten times the cache;
//! values stay far below the 128 KiB at which sled writes them to side files that it never syncs. `flush` hands the
//! data to the kernel and does not wait for the disk: it survives the process, not the power. For the power there is a
//! sync of our own behind it, of the one file that holds all the data; a snapshot only shortens the next opening, and
//! sled syncs it by itself.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use self::rehearsal::Rehearsal;
use super::{
    engine::{Engine, EngineError, Visit, Write, sync_failed},
    kind::Kind,
};
use crate::store::{Durability, OnCorruption};

mod rehearsal;

const CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// sled's file in the folder, which it also locks.
const DATA_FILE: &str = "db";

/// sled's settings; it reads them without a look at the checksum at their end.
const SETTINGS_FILE: &str = "conf";

/// sled, as `store.engine` names it.
pub const KIND: Kind = Kind {
    name: "sled",
    lock_file: DATA_FILE,
    is_own,
    is_leftover: rehearsal::is_leftover,
    rehearse: |path, on_corruption| match on_corruption {
        OnCorruption::Refuse => Ok(Rehearsal::over(path)?.map(|engine| Arc::new(engine) as Arc<dyn Engine>)),
        OnCorruption::Quarantine => Ok(None),
    },
    open: |path, durability| Ok(Arc::new(SledEngine::open(path, durability)?)),
};

fn is_own(name: &str) -> bool {
    matches!(name, DATA_FILE | SETTINGS_FILE | rehearsal::FOLDER | "blobs") || name.starts_with("snap.")
}

/// Whether it is a snapshot that a crash left unfinished. Every opening fails as long as one is there.
fn is_unfinished_snapshot(name: &str) -> bool {
    name.starts_with("snap.") && name.ends_with(".generating")
}

/// An opened sled.
struct SledEngine {
    tree: sled::Db,
    path: PathBuf,
    /// What is synced behind every commit, where it must survive the power.
    data: Option<File>,
}

impl SledEngine {
    /// Opens or creates it. May panic over damage; see [`super::open`].
    fn open(path: &Path, durability: Durability) -> Result<Self, EngineError> {
        let tree = sled::Config::new()
            .path(path)
            .mode(sled::Mode::LowSpace)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .open();
        let tree = tree.map_err(|error| match error {
            sled::Error::Unsupported(_) if !is_intact(&path.join(SETTINGS_FILE)) => {
                EngineError::Corrupt(format!("its file {SETTINGS_FILE} is not as it was written"))
            }
            error => error.into(),
        })?;
        let data = match durability {
            Durability::Process => None,
            Durability::Power => {
                // sled wrote them without a sync, and does not open without them.
                File::open(path.join(SETTINGS_FILE))?.sync_all()?;
                Some(File::open(path.join(DATA_FILE))?)
            }
        };
        Ok(Self { tree, path: path.to_owned(), data })
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
        if let Some(data) = &self.data {
            data.sync_data().map_err(sync_failed)?;
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        Ok(self.tree.get(key)?.map(|value| value.to_vec()))
    }

    fn range(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> Visit) -> Result<(), EngineError> {
        if from >= to {
            return Ok(());
        }
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

    /// A thread of sled's own that meets an error notes it and wakes nobody (`Log::exit_reservation`): who had just gone
    /// to sleep in `flush` would sleep for good. Another `flush` sees the error, wakes all and returns; on a disk that
    /// hangs it sleeps as well, hence on a thread that is nobody's.
    fn nudge(&self) {
        let tree = self.tree.clone();
        // The next nudge comes soon; the error is the commit's to tell.
        let _ = std::thread::Builder::new().name("pushgate-nudge".into()).spawn(move || tree.flush().is_ok());
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

/// Whether a file ends with the CRC-32 of what comes before it.
fn is_intact(file: &Path) -> bool {
    let Ok(bytes) = fs::read(file) else { return false };
    let Some((text, written)) = bytes.split_last_chunk::<4>() else { return false };
    let crc = text.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    });
    !crc == u32::from_le_bytes(*written)
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

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn a_commit_that_must_survive_the_power_fails_where_it_cannot_be_synced() {
        let folder = tempfile::tempdir().unwrap();
        let mut engine = SledEngine::open(folder.path(), Durability::Power).unwrap();
        assert!(engine.data.is_some());
        engine.commit(vec![(vec![1], Some(vec![1]))]).unwrap();
        // A pipe cannot be synced.
        engine.data = Some(File::from(OwnedFd::from(std::io::pipe().unwrap().1)));
        match engine.commit(vec![(vec![2], Some(vec![2]))]) {
            Err(EngineError::Io(error)) => assert!(error.to_string().contains("syncing failed"), "{error}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn settings_of_another_sled_are_told_apart_from_damaged_ones() {
        let folder = tempfile::tempdir().unwrap();
        let open = || SledEngine::open(folder.path(), Durability::Process).map(drop);
        open().unwrap();
        let settings = folder.path().join(SETTINGS_FILE);
        assert!(is_intact(&settings));
        let mut bytes = fs::read(&settings).unwrap();
        // "version: 0.34", one bit off.
        let at = bytes.windows(4).position(|four| four == b"0.34").unwrap();
        bytes[at + 3] ^= 1;
        fs::write(&settings, &bytes).unwrap();
        assert!(matches!(open(), Err(EngineError::Corrupt(_))));
        fs::remove_file(folder.path().join(DATA_FILE)).unwrap();
        fs::remove_file(&settings).unwrap();
        // Another size of segments, by sled itself.
        drop(sled::Config::new().path(folder.path()).segment_size(1 << 18).open().unwrap());
        assert!(matches!(open(), Err(EngineError::Format { .. })));
    }

    #[test]
    fn a_full_disk_stays_one_through_its_errors() {
        let full = sled::Error::Io(io::ErrorKind::StorageFull.into());
        assert!(matches!(full.into(), EngineError::Io(error) if error.kind() == io::ErrorKind::StorageFull));
    }
}
