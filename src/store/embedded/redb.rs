//! The engine on redb: one file, one table of byte strings.
//!
//! Every commit is synced before it returns (`Durability::Immediate`), so it survives the power with either
//! `store.durability`. After a crash redb mends its file when it is opened, and looks at every checksum in it; a file
//! that was closed in order it would trust, and panic over later, so that an opening is rehearsed first: over the file
//! as it is, with every checksum looked at and all that would be written kept in memory. A file that is refused is left
//! as it was by that.
//!
//! After an error of the system redb takes nothing more on the same handle, and its end writes nothing: the file is as
//! the last commit that succeeded left it, or has the one that failed as a whole.

use std::{fs, io, os::unix::fs::MetadataExt, path::PathBuf, sync::Arc};

use redb::{Builder, Database, Durability as Sync, ReadableDatabase as _, StorageBackend, TableDefinition, TableError};

use self::backend::{Direct, Rehearsal};
use super::{
    engine::{Engine, EngineError, Visit, Write},
    kind::Kind,
};

mod backend;

const CACHE_BYTES: usize = 32 * 1024 * 1024;
const DATA_FILE: &str = "store.redb";
const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");
/// What `st_blocks` counts in, whatever the file system's own blocks are.
const BLOCK_BYTES: u64 = 512;

/// redb, as `store.engine` names it.
pub const KIND: Kind = Kind {
    name: "redb",
    lock_file: DATA_FILE,
    is_own: |name| name == DATA_FILE,
    is_leftover: |_| false,
    rehearse: |path, _| {
        let path = path.join(DATA_FILE);
        Ok(Some(Arc::new(RedbEngine::open(Rehearsal::over(&path)?, true, path)?)))
    },
    open: |path, _| {
        let path = path.join(DATA_FILE);
        Ok(Arc::new(RedbEngine::open(Direct::over(&path)?, false, path)?))
    },
};

/// An opened redb.
struct RedbEngine {
    database: Database,
    path: PathBuf,
}

impl RedbEngine {
    fn open(backend: impl StorageBackend, check: bool, path: PathBuf) -> Result<Self, EngineError> {
        let database = Builder::new()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(check)
            .create_with_backend(backend)
            .map_err(failed)?;
        let engine = Self { database, path };
        match engine.read().map_err(failed)?.open_table(ROWS) {
            Ok(_) => {}
            // Reads find a table only where one was written.
            Err(TableError::TableDoesNotExist(_)) => engine.commit(Vec::new())?,
            Err(error) => return Err(failed(error)),
        }
        Ok(engine)
    }

    fn read(&self) -> Result<redb::ReadTransaction, redb::TransactionError> {
        self.database.begin_read()
    }

    fn write(&self, writes: Vec<Write>) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Sync::Immediate)?;
        {
            let mut rows = transaction.open_table(ROWS)?;
            for (key, value) in writes {
                match value {
                    Some(value) => drop(rows.insert(key.as_slice(), value.as_slice())?),
                    None => drop(rows.remove(key.as_slice())?),
                }
            }
        }
        Ok(transaction.commit()?)
    }

    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, redb::Error> {
        let rows = self.read()?.open_table(ROWS)?;
        Ok(rows.get(key)?.map(|value| value.value().to_vec()))
    }

    fn show(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> Visit) -> Result<(), redb::Error> {
        let rows = self.read()?.open_table(ROWS)?;
        for row in rows.range(from..to)? {
            let (key, value) = row?;
            if visit(key.value(), value.value()).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Engine for RedbEngine {
    fn name(&self) -> &'static str {
        KIND.name
    }

    fn commit(&self, writes: Vec<Write>) -> Result<(), EngineError> {
        self.write(writes).map_err(failed)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        self.value(key).map_err(failed)
    }

    fn range(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> Visit) -> Result<(), EngineError> {
        if from >= to {
            return Ok(());
        }
        self.show(from, to, visit).map_err(failed)
    }

    fn disk_bytes(&self) -> Result<u64, EngineError> {
        // The file doubles when it grows; what of it was never written takes no room.
        Ok(fs::metadata(&self.path)?.blocks().saturating_mul(BLOCK_BYTES))
    }
}

fn failed(error: impl Into<redb::Error>) -> EngineError {
    match error.into() {
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => EngineError::Busy,
        // A file that is shorter than what refers to it, or none of redb's.
        redb::Error::Io(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData) => {
            EngineError::Corrupt(error.to_string())
        }
        redb::Error::Io(error) => EngineError::Io(error),
        error @ (redb::Error::PreviousIo
        | redb::Error::DatabaseClosed
        | redb::Error::LockPoisoned(_)
        | redb::Error::TransactionPoisoned
        | redb::Error::Unsupported) => EngineError::Io(io::Error::other(error.to_string())),
        redb::Error::UpgradeRequired(version) => EngineError::Format {
            found: format!("a file of redb's format {version}"),
            supported: "format 3, of redb 4".into(),
        },
        error => EngineError::Corrupt(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use redb::backends::FileBackend;

    use super::*;

    /// A file on a disk that has room for so many more writes.
    #[derive(Debug)]
    struct Filling {
        file: FileBackend,
        writes_left: Arc<AtomicU64>,
        syncs_fail: bool,
    }

    impl StorageBackend for Filling {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }

        fn set_len(&self, length: u64) -> io::Result<()> {
            self.file.set_len(length)
        }

        fn sync_data(&self) -> io::Result<()> {
            if self.syncs_fail && self.writes_left.load(Ordering::Relaxed) == 0 {
                return Err(super::super::engine::sync_failed(io::ErrorKind::StorageFull.into()));
            }
            self.file.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            let left = |left: u64| left.checked_sub(1);
            match self.writes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left) {
                Err(_) if !self.syncs_fail => Err(io::ErrorKind::StorageFull.into()),
                _ => self.file.write(offset, data),
            }
        }
    }

    fn filling(path: &std::path::Path, writes_left: u64, syncs_fail: bool) -> (RedbEngine, Arc<AtomicU64>) {
        let file = fs::File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        let left = Arc::new(AtomicU64::new(u64::MAX));
        let backend = Filling { file: FileBackend::new(file).unwrap(), writes_left: Arc::clone(&left), syncs_fail };
        let engine = RedbEngine::open(backend, false, path.to_owned()).unwrap();
        left.store(writes_left, Ordering::Relaxed);
        (engine, left)
    }

    fn batch(number: u8) -> Vec<Write> {
        (0..40u8).map(|row| (vec![number, row], Some(vec![row; 3000]))).collect()
    }

    #[test]
    fn a_full_disk_fails_the_commit_as_such_and_loses_nothing_that_was_committed() {
        // It fills at every write that a few commits make.
        for writes in 0..60 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(DATA_FILE);
            let (engine, left) = filling(&path, writes, false);
            let committed = (0..20).take_while(|number| match engine.commit(batch(*number)) {
                Ok(()) => true,
                Err(EngineError::Io(error)) => {
                    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
                    false
                }
                Err(error) => panic!("{error}"),
            });
            let committed = committed.count() as u8;
            assert!(committed < 20, "the disk was filled");
            // There is room again, but not for this handle.
            left.store(u64::MAX, Ordering::Relaxed);
            assert!(engine.commit(batch(99)).is_err());
            drop(engine);
            let engine = (KIND.open)(folder.path(), crate::store::Durability::Process).unwrap();
            let mut rows = 0;
            engine
                .range(&[0], &[99], &mut |key, value| {
                    assert!(value == vec![key[1]; 3000]);
                    rows += 1;
                    Visit::Continue(())
                })
                .unwrap();
            // What failed is there as a whole or not at all.
            assert!([committed, committed + 1].map(|batches| usize::from(batches) * 40).contains(&rows), "{rows}");
            engine.commit(batch(99)).unwrap();
            assert!(engine.get(&[99, 39]).unwrap().is_some());
        }
    }

    #[test]
    fn a_sync_that_failed_is_no_full_disk_that_could_be_waited_out() {
        let folder = tempfile::tempdir().unwrap();
        let (engine, _) = filling(&folder.path().join(DATA_FILE), 3, true);
        match engine.commit(batch(1)) {
            Err(EngineError::Io(error)) => {
                assert_ne!(error.kind(), io::ErrorKind::StorageFull);
                assert!(error.to_string().contains("syncing failed"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_rehearsal_reads_the_store_and_leaves_its_file_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let engine = (KIND.open)(folder.path(), crate::store::Durability::Process).unwrap();
        engine.commit(batch(1)).unwrap();
        let path = folder.path().join(DATA_FILE);
        let rehearse = |path| (KIND.rehearse)(path, crate::store::OnCorruption::Quarantine);
        assert!(matches!(rehearse(folder.path()), Err(EngineError::Busy)));
        // As after a kill, and as after a close.
        let killed = tempfile::tempdir().unwrap();
        fs::copy(&path, killed.path().join(DATA_FILE)).unwrap();
        drop(engine);
        for folder in [&folder, &killed] {
            let before = fs::read(folder.path().join(DATA_FILE)).unwrap();
            let engine = rehearse(folder.path()).unwrap().unwrap();
            assert!(engine.get(&[1, 39]).unwrap().is_some());
            engine.commit(batch(2)).unwrap();
            assert!(engine.get(&[2, 39]).unwrap().is_some());
            drop(engine);
            assert!(fs::read(folder.path().join(DATA_FILE)).unwrap() == before);
        }
    }
}
