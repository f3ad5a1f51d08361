//! How redb reaches its file: [`Direct`]ly, or in a [`Rehearsal`] that leaves the file as it is.

use std::{collections::BTreeMap, fs::File, io, ops::Bound, path::Path};

use parking_lot::Mutex;
use redb::{BackendError, StorageBackend, backends::FileBackend};

use super::super::engine::{EngineError, sync_failed};

/// In what pieces a rehearsal keeps what was written.
const PIECE_BYTES: u64 = 4096;

/// The file itself. All that it does beside what redb's own does is to say of a sync that failed that it was one.
#[derive(Debug)]
pub struct Direct(FileBackend);

/// The file as it is, and over it in memory what was written.
#[derive(Debug)]
pub struct Rehearsal {
    file: FileBackend,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    length: u64,
    /// By their number. What was cut off and came back is zero, so a piece there goes before what the file has.
    pieces: BTreeMap<u64, Vec<u8>>,
    /// How much of the file still counts.
    of_file: u64,
}

impl Direct {
    /// Opens the file, or makes it.
    pub fn over(path: &Path) -> Result<Self, EngineError> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Self(FileBackend::new(file).map_err(super::failed)?))
    }
}

impl Rehearsal {
    /// Opens the file, which must be there.
    pub fn over(path: &Path) -> Result<Self, EngineError> {
        // For writing, since locks ask for it.
        let file = File::options().read(true).write(true).open(path)?;
        let length = file.metadata()?.len();
        let written = Written { length, pieces: BTreeMap::new(), of_file: length };
        Ok(Self { file: FileBackend::new(file).map_err(super::failed)?, written: Mutex::new(written) })
    }

    /// The piece of that number as it is now.
    fn piece(&self, written: &Written, number: u64) -> io::Result<Vec<u8>> {
        if let Some(piece) = written.pieces.get(&number) {
            return Ok(piece.clone());
        }
        let mut piece = vec![0; PIECE_BYTES as usize];
        let start = number * PIECE_BYTES;
        let there = written.of_file.saturating_sub(start).min(PIECE_BYTES) as usize;
        if there > 0 {
            self.file.read(start, &mut piece[..there])?;
        }
        Ok(piece)
    }
}

/// The parts of `offset..offset + length`, piece by piece: the piece's number, where in it, how much.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset.saturating_add(length as u64);
    (offset / PIECE_BYTES..end.div_ceil(PIECE_BYTES)).map(move |number| {
        let start = (number * PIECE_BYTES).max(offset);
        let stop = ((number + 1) * PIECE_BYTES).min(end);
        (number, (start % PIECE_BYTES) as usize, (stop - start) as usize)
    })
}

/// What both leave to redb's own backend: the locks, and the end.
macro_rules! locks_of {
    ($field:tt) => {
        fn close(&self) -> io::Result<()> {
            self.$field.close()
        }

        fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
            self.$field.try_lock_range(start, end)
        }

        fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
            self.$field.try_lock_shared_range(start, end)
        }

        fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
            self.$field.lock_range(start, end)
        }

        fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
            self.$field.lock_shared_range(start, end)
        }

        fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
            self.$field.unlock_range(start, end)
        }

        fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
            self.$field.query_lock_range(start, end)
        }
    };
}

impl StorageBackend for Direct {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data().map_err(sync_failed)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    locks_of!(0);
}

impl StorageBackend for Rehearsal {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written.lock().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.written.lock();
        let end = offset.saturating_add(out.len() as u64);
        if end > written.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if end <= written.of_file
            && written.pieces.range(offset / PIECE_BYTES..end.div_ceil(PIECE_BYTES)).next().is_none()
        {
            return self.file.read(offset, out);
        }
        let mut rest = out;
        for (number, from, count) in parts(offset, rest.len()) {
            let (here, after) = rest.split_at_mut(count);
            here.copy_from_slice(&self.piece(&written, number)?[from..from + count]);
            rest = after;
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut written = self.written.lock();
        if length < written.length {
            // What comes back after a cut is zero.
            let last = length / PIECE_BYTES;
            let mut piece = self.piece(&written, last)?;
            piece[(length % PIECE_BYTES) as usize..].fill(0);
            written.pieces.retain(|number, _| *number < last);
            written.pieces.insert(last, piece);
            written.of_file = written.of_file.min(length);
        }
        written.length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written.lock();
        let mut rest = data;
        for (number, to, count) in parts(offset, data.len()) {
            let (here, after) = rest.split_at(count);
            let mut piece = self.piece(&written, number)?;
            piece[to..to + count].copy_from_slice(here);
            written.pieces.insert(number, piece);
            rest = after;
        }
        written.length = written.length.max(offset.saturating_add(data.len() as u64));
        Ok(())
    }

    locks_of!(file);
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        Length(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..20_000, prop::collection::vec(any::<u8>(), 1..9000)).prop_map(|(at, data)| Step::Write(at, data)),
            (0u64..25_000).prop_map(Step::Length),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_rehearsal_reads_as_the_file_would_and_leaves_it_alone(
            before in prop::collection::vec(any::<u8>(), 0..15_000),
            steps in prop::collection::vec(step(), 0..8),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let (kept, changed) = (folder.path().join("kept"), folder.path().join("changed"));
            fs::write(&kept, &before).unwrap();
            fs::write(&changed, &before).unwrap();
            let rehearsal = Rehearsal::over(&kept).unwrap();
            let direct = Direct::over(&changed).unwrap();
            for step in steps {
                for backend in [&rehearsal as &dyn StorageBackend, &direct] {
                    match &step {
                        Step::Write(at, data) => backend.write(*at, data).unwrap(),
                        Step::Length(length) => backend.set_len(*length).unwrap(),
                    }
                }
                let length = direct.len().unwrap();
                prop_assert_eq!(rehearsal.len().unwrap(), length);
                let read = |backend: &dyn StorageBackend, at: u64, count: u64| {
                    let mut bytes = vec![7; count as usize];
                    backend.read(at, &mut bytes).map(|()| bytes).map_err(|error| error.kind())
                };
                for (at, count) in [(0, length), (length / 3, length / 2), (length / 2, length), (1, length.min(5))] {
                    prop_assert_eq!(read(&rehearsal, at, count), read(&direct, at, count));
                }
            }
            prop_assert_eq!(fs::read(&kept).unwrap(), before);
        }
    }
}
