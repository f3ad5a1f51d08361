//! A store that is copied while it is written to, and copies that do not come to their end.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tempfile::TempDir;

use super::{
    super::{
        engine::{MemoryEngine, Visit},
        tools::{
            Place, check,
            tests::{Log, fill, json, notification, user},
        },
    },
    *,
};
use crate::{
    clock::Clock,
    store::{Durability, Store, double::Double},
    types::{LogId, Payload},
};

fn place(path: &Path) -> Place {
    Place { path: path.to_owned(), engine: None }
}

/// Nothing but these names is in the folder.
fn holds(folder: &Path, names: &[&str]) {
    let mut found: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    found.sort();
    assert_eq!(found, names);
}

fn in_memory() -> Store {
    Store::open_memory(&Config::default(), Clock::system())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_under_way_with_sends_has_all_that_was_answered_before_and_is_one_moment() {
    let folder = TempDir::new().unwrap();
    let config = Config { path: folder.path().join("store"), ..Config::default() };
    let store = Store::open(&config, Clock::system()).unwrap();
    fill(&store).await;
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let senders: Vec<_> = (0..8)
        .map(|number| {
            let (store, stop, answered) = (store.clone(), Arc::clone(&stop), Arc::clone(&answered));
            tokio::spawn(async move {
                let mut log = Log::of(LogId::User(user(&format!("u{number}"))));
                let (mut slowest, mut sent) = (Duration::ZERO, 0);
                while !stop.load(Ordering::Relaxed) {
                    // Every other one has chunks, and does not stay: a torn copy has pieces of it.
                    let payload = if sent % 2 == 0 { json("1") } else { Payload::Binary(vec![7; 9000].into()) };
                    let one = notification(payload);
                    let (id, bytes, began) = (one.id.clone(), one.accounted_bytes(), Instant::now());
                    let row = log.append(&store, one, None, sent % 3 == 0).await.unwrap();
                    slowest = slowest.max(began.elapsed());
                    if sent % 2 == 0 {
                        answered.lock().push((log.id.clone(), row.offset, id));
                    } else {
                        log.delete(&store, row, bytes).await;
                    }
                    sent += 1;
                }
                (sent, slowest)
            })
        })
        .collect();
    let mut copies = Vec::new();
    for number in 0..3 {
        while answered.lock().len() < 500 * (number + 1) {
            tokio::task::yield_now().await;
        }
        let before = answered.lock().clone();
        let path = folder.path().join(format!("copy-{number}"));
        let made = store.backup(&path).await.unwrap();
        assert!(made.bytes > 0 && made.records >= before.len() as u64 + 9, "{made:?}");
        copies.push((path, made, before));
    }
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        let (sent, slowest) = sender.await.unwrap();
        assert!(sent > 0 && slowest < Duration::from_secs(2), "{sent} sends, the slowest took {slowest:?}");
    }
    store.close().unwrap();
    for (path, made, before) in copies {
        let report = check(&place(&path)).unwrap();
        assert_eq!(report.problems, []);
        assert_eq!(report.pending.count, made.records);
        let copy = Store::open(&Config { path, ..Config::default() }, Clock::system()).unwrap();
        assert_eq!(copy.epoch(), store.epoch());
        for number in 0..8 {
            let who = user(&format!("u{number}"));
            let found = copy.load(&who).await.unwrap();
            assert_eq!(found.damaged, None);
            let log = LogId::User(who);
            for (_, offset, id) in before.iter().filter(|(of, ..)| *of == log) {
                assert!(found.index.iter().any(|entry| entry.offset == *offset && entry.id == *id), "{log} {offset}");
            }
        }
        copy.close().unwrap();
    }
    holds(folder.path(), &["copy-0", "copy-1", "copy-2", "store"]);
}

#[tokio::test]
async fn there_is_one_at_a_time_and_one_that_nobody_waits_for_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let double = Arc::new(Double::default());
    let store = Store::open_double(&double, Clock::system());
    fill(&store).await;
    let held = double.hold();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let mut first = Box::pin(store.backup(&a));
    // It waits for the writer, which waits for the engine.
    while !double.is_waiting() {
        assert!(futures_util::poll!(first.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    assert_eq!(store.backup(&b).await, Err(BackupError::Running));
    drop(first);
    while folder.path().join("a.partial").exists() {
        tokio::task::yield_now().await;
    }
    drop(held);
    // The place is given back when all is cleared away.
    let made = loop {
        match store.backup(&b).await {
            Err(BackupError::Running) => tokio::task::yield_now().await,
            made => break made.unwrap(),
        }
    };
    assert_eq!(made.records, 11);
    holds(folder.path(), &["b"]);
    assert_eq!(check(&place(&b)).unwrap().problems, []);
    assert!(double_is_quiet(&store), "nobody notes any more");
    store.close().unwrap();
}

fn double_is_quiet(store: &Store) -> bool {
    store.shared().changes.keys_of(&[(vec![1], None)]).is_empty()
}

#[tokio::test]
async fn a_path_that_cannot_be_used_is_refused_and_nothing_is_made() {
    let folder = TempDir::new().unwrap();
    let config = Config { path: folder.path().join("store"), ..Config::default() };
    let store = Store::open(&config, Clock::system()).unwrap();
    let refused = async |path: &Path| match store.backup(path).await {
        Err(BackupError::Path(why)) => why,
        other => panic!("{}: {other:?}", path.display()),
    };
    assert!(refused(Path::new("copy")).await.contains("must be absolute"));
    assert!(refused(Path::new("/")).await.contains("must end in the name of a folder"));
    assert!(refused(&folder.path().join("no/copy")).await.contains("cannot be found"));
    assert!(refused(&config.path.join("db/copy")).await.contains("is not a folder"));
    assert!(refused(&config.path.join("snap.1")).await.contains("one of the store's own files"));
    for there in [folder.path().to_owned(), config.path.clone(), config.path.join("db")] {
        assert_eq!(store.backup(&there).await, Err(BackupError::Exists(there)));
    }
    // What is there under the name that it has until it is whole is not touched, unless it was left unfinished.
    let partial = folder.path().join("copy.partial");
    fs::create_dir(&partial).unwrap();
    assert_eq!(store.backup(&folder.path().join("copy")).await, Err(BackupError::Exists(partial.clone())));
    fs::write(partial.join("unfinished"), "").unwrap();
    store.backup(&folder.path().join("copy")).await.unwrap();
    // Beside the store's own files there is room.
    store.backup(&config.path.join("copy")).await.unwrap();
    holds(folder.path(), &["copy", "store"]);
    store.close().unwrap();
}

/// An engine whose disk is full after a few commits.
struct Full(MemoryEngine, AtomicBool);

impl Engine for Full {
    fn name(&self) -> &'static str {
        "full"
    }

    fn commit(&self, writes: Vec<Write>) -> Result<(), EngineError> {
        if self.1.swap(true, Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::StorageFull).into());
        }
        self.0.commit(writes)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        self.0.get(key)
    }

    fn range(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> Visit) -> Result<(), EngineError> {
        self.0.range(from, to, visit)
    }

    fn disk_bytes(&self) -> Result<u64, EngineError> {
        self.0.disk_bytes()
    }
}

const FULL: Kind = Kind {
    rehearse: |_, _| Ok(None),
    name: "full",
    lock_file: "db",
    is_own: |_| false,
    is_leftover: |_| false,
    open: |_: &Path, _: Durability| Ok(Arc::new(Full(MemoryEngine::default(), AtomicBool::new(false)))),
};

#[tokio::test]
async fn a_full_disk_ends_the_copy_and_not_the_store() {
    let folder = TempDir::new().unwrap();
    let store = in_memory();
    fill(&store).await;
    let path = folder.path().join("copy");
    let (shared, readers) = (store.shared(), store.readers());
    let failed = backup_with(shared, readers, Path::new("/nowhere"), &path, &FULL).await;
    assert!(matches!(&failed, Err(BackupError::NoSpace { path: at, .. }) if *at == path), "{failed:?}");
    holds(folder.path(), &[]);
    store.health().unwrap();
    assert_eq!(store.backup(&path).await.unwrap().records, 11);
}

#[tokio::test]
async fn a_store_that_fails_or_is_closed_is_not_copied() {
    let folder = TempDir::new().unwrap();
    let double = Arc::new(Double::default());
    let store = Store::open_double(&double, Clock::system());
    fill(&store).await;
    double.fails.store(true, Ordering::SeqCst);
    let failed = store.backup(&folder.path().join("copy")).await;
    assert!(matches!(failed, Err(BackupError::Store(StoreError::Failed(_)))), "{failed:?}");
    holds(folder.path(), &[]);

    let store = in_memory();
    store.close().unwrap();
    assert_eq!(store.backup(&folder.path().join("copy")).await, Err(BackupError::Store(StoreError::Closed)));
    holds(folder.path(), &[]);
}
