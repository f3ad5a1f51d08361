//! What every engine must do, run over each of them: what [`Engine`] promises, and nothing of how it is done.

use std::{
    fs,
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use tempfile::TempDir;

use super::{
    engine::{Engine, EngineError, MemoryEngine, Write},
    kind::{KINDS, Kind},
};
use crate::{limits::STORE_CHUNK_BYTES_MAX, store::Durability};

type Row = (Vec<u8>, Vec<u8>);

/// An engine to be opened, in a folder of its own.
struct Case {
    /// None: in memory.
    kind: Option<&'static Kind>,
    durability: Durability,
    folder: TempDir,
}

impl Case {
    /// Opens it. An engine may let go of its files a moment after it was dropped, as the daemon knows, too.
    fn open(&self) -> Arc<dyn Engine> {
        let deadline = Instant::now() + crate::limits::STORE_LOCK_WAIT;
        loop {
            match self.try_open() {
                Err(EngineError::Busy) if Instant::now() < deadline => std::thread::yield_now(),
                opened => return opened.unwrap_or_else(|error| panic!("{}: {error}", self.name())),
            }
        }
    }

    fn try_open(&self) -> Result<Arc<dyn Engine>, EngineError> {
        self.open_at(self.folder.path())
    }

    fn open_at(&self, path: &Path) -> Result<Arc<dyn Engine>, EngineError> {
        match self.kind {
            Some(kind) => (kind.open)(path, self.durability),
            None => Ok(Arc::new(MemoryEngine::default())),
        }
    }

    fn name(&self) -> String {
        format!("{} with {:?}", self.kind.map_or("memory", |kind| kind.name), self.durability)
    }
}

fn on_disk() -> impl Iterator<Item = Case> {
    KINDS.into_iter().flat_map(|kind| {
        [Durability::Process, Durability::Power].map(|durability| Case {
            kind: Some(kind),
            durability,
            folder: TempDir::new().unwrap(),
        })
    })
}

fn all() -> impl Iterator<Item = Case> {
    let memory = Case { kind: None, durability: Durability::Process, folder: TempDir::new().unwrap() };
    on_disk().chain([memory])
}

fn put(key: &[u8], value: &[u8]) -> Write {
    (key.to_vec(), Some(value.to_vec()))
}

fn remove(key: &[u8]) -> Write {
    (key.to_vec(), None)
}

fn rows(engine: &dyn Engine, from: &[u8], to: &[u8]) -> Vec<Row> {
    let mut rows = Vec::new();
    engine
        .range(from, to, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
    rows
}

fn everything(engine: &dyn Engine) -> Vec<Row> {
    rows(engine, &[], &[0xFF; 8])
}

fn key(number: u32) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

#[test]
fn a_commit_is_seen_whole_when_it_returns_and_the_last_write_of_a_key_counts() {
    for case in all() {
        let engine = case.open();
        assert_eq!(everything(&*engine), [], "{}", case.name());
        assert_eq!(engine.get(b"a").unwrap(), None);
        engine.commit(vec![put(b"a", b"1"), put(b"b", b""), put(b"c", b"3")]).unwrap();
        engine
            .commit(vec![remove(b"c"), put(b"a", b"2"), remove(b"a"), put(b"a", b"4"), put(b"d", b"x"), remove(b"d")])
            .unwrap();
        assert_eq!(engine.get(b"a").unwrap().as_deref(), Some(&b"4"[..]), "{}", case.name());
        assert_eq!(engine.get(b"b").unwrap().as_deref(), Some(&b""[..]), "an empty value is a value");
        assert_eq!((engine.get(b"c").unwrap(), engine.get(b"d").unwrap()), (None, None), "{}", case.name());
        assert_eq!(everything(&*engine), [(b"a".to_vec(), b"4".to_vec()), (b"b".to_vec(), Vec::new())]);
        engine.commit(vec![remove(b"a"), remove(b"b"), remove(b"never there")]).unwrap();
        engine.commit(Vec::new()).unwrap();
        assert_eq!(everything(&*engine), [], "{}", case.name());
    }
}

#[test]
fn a_range_has_its_beginning_and_not_its_end_and_breaks_off_when_it_is_told_to() {
    for case in all() {
        let engine = case.open();
        let keys: [&[u8]; 6] = [b"a", b"a\0", b"ab", b"b", b"b\xFF", b"c"];
        engine.commit(keys.iter().rev().map(|key| put(key, key)).collect()).unwrap();
        let found =
            |from: &[u8], to: &[u8]| rows(&*engine, from, to).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(found(b"", b"\xFF"), keys, "{}", case.name());
        assert_eq!(found(b"a\0", b"b\xFF"), keys[1..4], "{}", case.name());
        assert_eq!(found(b"aa", b"bb"), keys[2..4], "{}", case.name());
        assert_eq!(found(b"b", b"b"), Vec::<Vec<u8>>::new(), "{}: empty", case.name());
        assert_eq!(found(b"c", b"a"), Vec::<Vec<u8>>::new(), "{}: inverted", case.name());
        assert_eq!(found(b"d", b"e"), Vec::<Vec<u8>>::new(), "{}: nothing there", case.name());
        let mut seen = 0;
        engine
            .range(b"a", b"z", &mut |_, _| {
                seen += 1;
                if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
        assert_eq!(seen, 2, "{}", case.name());
    }
}

#[test]
fn many_rows_and_large_records_in_chunks_come_back_after_a_close_and_after_a_kill() {
    for case in on_disk() {
        let engine = case.open();
        let mut wanted = Vec::new();
        // In batches, since that is how they come; later ones write over, and remove, what earlier ones wrote.
        for batch in 0..8 {
            let mut writes = Vec::new();
            for number in batch * 400..batch * 400 + 600 {
                writes.push((key(number), Some(vec![batch as u8; (number % 97) as usize])));
            }
            writes.push(remove(&key(batch * 400 + 7)));
            engine.commit(writes).unwrap();
        }
        // 4 MiB in one batch, each value as large as values are.
        let chunk: Vec<u8> = (0..STORE_CHUNK_BYTES_MAX - 1).map(|n| (n / 3) as u8).collect();
        engine.commit((10_000..11_024).map(|number| (key(number), Some(chunk.clone()))).collect()).unwrap();
        engine.commit((10_100..10_200).map(|number| (key(number), None)).collect()).unwrap();
        for number in 0..3400u32 {
            let batch = (number / 400).min(7);
            if number % 400 != 7 || number / 400 > 7 {
                wanted.push((key(number), vec![batch as u8; (number % 97) as usize]));
            }
        }
        wanted.extend((10_000..11_024).filter(|n| !(10_100..10_200).contains(n)).map(|n| (key(n), chunk.clone())));
        assert!(everything(&*engine) == wanted, "{}", case.name());
        assert!(engine.disk_bytes().unwrap() >= 4 << 20, "{}: {:?}", case.name(), engine.disk_bytes());

        // The files are what `kill -9` would leave at this moment.
        let killed = TempDir::new().unwrap();
        copy(case.folder.path(), killed.path());
        let found = case.open_at(killed.path()).unwrap();
        assert!(everything(&*found) == wanted, "{}: killed", case.name());
        drop(engine);
        assert!(everything(&*case.open()) == wanted, "{}: closed", case.name());
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn each_commit_is_in_the_files_when_it_returns() {
    for case in on_disk() {
        let engine = case.open();
        for number in 0..12 {
            engine.commit(vec![(key(number), Some(vec![1; 2000])), put(b"last", &key(number))]).unwrap();
            let killed = TempDir::new().unwrap();
            copy(case.folder.path(), killed.path());
            let found = case.open_at(killed.path()).unwrap();
            assert_eq!(found.get(b"last").unwrap(), Some(key(number)), "{}", case.name());
            assert_eq!(everything(&*found).len(), number as usize + 2, "{}", case.name());
        }
    }
}

#[test]
fn it_is_busy_while_it_is_open_and_free_when_it_is_not() {
    for case in on_disk() {
        let engine = case.open();
        engine.commit(vec![put(b"a", b"1")]).unwrap();
        assert!(matches!(case.try_open(), Err(EngineError::Busy)), "{}", case.name());
        assert!(case.kind.is_some_and(|kind| case.folder.path().join(kind.lock_file).is_file()), "{}", case.name());
        let lock =
            fs::File::options().read(true).write(true).open(case.folder.path().join(case.kind.unwrap().lock_file));
        assert!(lock.unwrap().try_lock().is_err(), "{}: others can see that", case.name());
        drop(engine);
        assert_eq!(case.open().get(b"a").unwrap().as_deref(), Some(&b"1"[..]), "{}", case.name());
    }
}

#[test]
fn its_files_and_no_other_are_its_own() {
    for case in on_disk() {
        drop(case.open());
        drop(case.open());
        let kind = case.kind.unwrap();
        for name in fs::read_dir(case.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()) {
            let name = name.to_str().unwrap();
            assert!((kind.is_own)(name), "{}: {name}", case.name());
            for other in KINDS.into_iter().filter(|other| other.name != kind.name) {
                assert!(!(other.is_own)(name) && other.owner_beside(name).is_some_and(|owner| owner.name == kind.name));
            }
        }
        for name in ["begun", super::suspect::FILE, "corrupt-1769852100", "dev.key"] {
            assert!(!(kind.is_own)(name));
        }
    }
}

#[test]
fn readers_go_on_while_one_thread_commits_and_never_see_a_commit_taken_back() {
    for case in all() {
        let engine = case.open();
        engine.commit(vec![put(b"count", &key(0))]).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let readers: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut seen = 0;
                        loop {
                            let last_round = done.load(Ordering::SeqCst);
                            let value = engine.get(b"count").unwrap().unwrap();
                            let now = u32::from_be_bytes(value.try_into().unwrap());
                            assert!(now >= seen, "{}: {now} after {seen}", case.name());
                            seen = now;
                            // What was committed before the value was read is in the range.
                            assert!(rows(&*engine, b"row", b"rox").len() >= now as usize, "{}", case.name());
                            if last_round {
                                break seen;
                            }
                        }
                    })
                })
                .collect();
            for number in 1..=60u32 {
                let row = [&b"row"[..], &key(number)].concat();
                engine.commit(vec![put(&row, &[5; 300])]).unwrap();
                engine.commit(vec![put(b"count", &key(number))]).unwrap();
            }
            done.store(true, Ordering::SeqCst);
            for reader in readers {
                assert_eq!(reader.join().unwrap(), 60, "{}", case.name());
            }
        });
    }
}
