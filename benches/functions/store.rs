//! The store on a disk: appends up to the answer that they are on it, and pages read back.
//!
//! Appends of one group are staged one behind the other, as concurrent callers stage them, each in a log of its own;
//! the time runs from the first permit to the last answer. Records are deleted between measured stretches, so that the
//! store does not grow with the length of the run.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, SamplingMode, Throughput};
use pushgate::{
    clock::Clock,
    store::{
        Config, Counters, Durability, EngineName, LogObserver, Op, PageLimit, Place, Store, StoreError, chunks_of,
    },
    types::{LogId, Notification, NotificationId, Offset},
};
use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::oneshot};

use super::made::{json_notification, user};

const GROUPS: [usize; 3] = [1, 64, 512];
const PAYLOAD_BYTES: usize = 256;
const PAGE_RECORDS: usize = 256;
/// Records that are left in the store between two deletions, at most.
const LEFT_MAX: usize = 2048;
/// What stands on the disk before anything is measured: nobody appends to an empty store.
const BEFORE_RECORDS: usize = 20_000;
/// The file that records are written over in, for the bare disk.
const FLOOR_BYTES: u64 = 8 * 1024 * 1024;

const ENGINES: [(&str, EngineName, Durability); 3] = [
    ("sled-process", EngineName::Sled, Durability::Process),
    ("sled-power", EngineName::Sled, Durability::Power),
    ("redb", EngineName::Redb, Durability::Power),
];

type Error = Box<dyn std::error::Error>;

/// Nobody listens.
struct Deaf;

impl LogObserver for Deaf {
    fn applied(&self, _: Offset) {}

    fn failed(&self, error: &StoreError) {
        panic!("{error}");
    }
}

/// One user's log, and what of it is to be deleted.
struct Log {
    id: LogId,
    counters: Counters,
    places: Vec<Place>,
}

impl Log {
    fn new(name: &str) -> Log {
        Log { id: LogId::User(user(name)), counters: Counters::default(), places: Vec::new() }
    }
}

/// An open store in a folder of its own.
struct Opened {
    runtime: Runtime,
    store: Store,
    observer: Arc<dyn LogObserver>,
    template: Notification,
    /// Below the build's folder: the system's temporary one may lie in memory.
    _folder: TempDir,
}

fn folder() -> std::io::Result<TempDir> {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))
}

impl Opened {
    fn new(engine: EngineName, durability: Durability) -> Result<Opened, Error> {
        let folder = folder()?;
        let config = Config { path: folder.path().join("data"), engine, durability, ..Config::default() };
        Ok(Opened {
            runtime: tokio::runtime::Builder::new_current_thread().build()?,
            store: Store::open(&config, Clock::system())?,
            observer: Arc::new(Deaf),
            template: json_notification(PAYLOAD_BYTES),
            _folder: folder,
        })
    }

    /// Appends one record to each log and waits until all are as durable as was asked for.
    fn append<'a>(&self, logs: impl Iterator<Item = &'a mut Log>) -> Result<(), Error> {
        self.runtime.block_on(async {
            let mut answers = Vec::with_capacity(logs.size_hint().0);
            for log in logs {
                let notification = Notification { id: NotificationId::generate(), ..self.template.clone() };
                let bytes = notification.accounted_bytes();
                let mut permit = self.store.permit(bytes).await?;
                let offset = self.store.assign(&mut permit, log.counters.last);
                log.counters.count += 1;
                log.counters.bytes += bytes;
                log.counters.last = offset;
                log.places.push(Place { offset, chunks: chunks_of(&notification) });
                let (done, answer) = oneshot::channel();
                self.store.stage_in(
                    self.store.generation(),
                    Op::Append {
                        log: log.id.clone(),
                        offset,
                        notification: Arc::new(notification),
                        replaces: None,
                        emptied: None,
                        remember: None,
                        counters: log.counters,
                        permit,
                        observer: Arc::clone(&self.observer),
                        done: Some(done),
                    },
                );
                answers.push(answer);
            }
            for answer in answers {
                answer.await??;
            }
            Ok(())
        })
    }

    fn delete_all(&self, logs: &mut [Log]) -> Result<(), Error> {
        self.runtime.block_on(async {
            let mut answers = Vec::with_capacity(logs.len());
            for log in logs {
                log.counters = Counters { count: 0, bytes: 0, ..log.counters };
                let (done, answer) = oneshot::channel();
                self.store.stage_in(
                    self.store.generation(),
                    Op::Delete {
                        log: log.id.clone(),
                        places: std::mem::take(&mut log.places),
                        emptied: Vec::new(),
                        counters: log.counters,
                        hold: Arc::default(),
                        done: Some(done),
                    },
                );
                answers.push(answer);
            }
            for answer in answers {
                answer.await??;
            }
            Ok(())
        })
    }

    fn fill(&self, records: usize) -> Result<(), Error> {
        let mut logs: Vec<_> = (0..1000).map(|number| Log::new(&format!("before-{number}"))).collect();
        for _ in 0..records / logs.len() {
            self.append(logs.iter_mut())?;
        }
        Ok(())
    }
}

/// The disk itself: as many bytes as a record has, left to the kernel; waited for, where the file's length stays; and
/// waited for, where the file grows, which the file system must note down as well.
pub fn floor(c: &mut Criterion) {
    let folder = folder().unwrap_or_else(|error| panic!("{error}"));
    let mut group = c.benchmark_group("store/floor");
    group.sample_size(20).throughput(Throughput::Elements(1));
    let record = [b'x'; PAYLOAD_BYTES * 2];
    for (name, length, synced) in
        [("write", FLOOR_BYTES, false), ("overwrite_and_sync", FLOOR_BYTES, true), ("grow_and_sync", 0, true)]
    {
        let file = laid_out(&folder.path().join(name), length).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut place = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                file.write_all_at(&record, place)?;
                place += record.len() as u64;
                if length > 0 && place >= length {
                    place = 0;
                }
                if synced { file.sync_data() } else { Ok(()) }
            });
        });
    }
    group.finish();
}

/// A file of that length that has its blocks.
fn laid_out(path: &Path, length: u64) -> std::io::Result<File> {
    let file = File::create(path)?;
    let zeros = vec![0; FLOOR_BYTES as usize];
    file.write_all_at(&zeros[..length as usize], 0)?;
    file.sync_all()?;
    Ok(file)
}

/// Appends, alone and in groups.
pub fn append(c: &mut Criterion) {
    let mut group = c.benchmark_group("store/append");
    group.sample_size(15).sampling_mode(SamplingMode::Flat).measurement_time(Duration::from_millis(1500));
    for (name, engine, durability) in ENGINES {
        let mut opened = None;
        for size in GROUPS {
            group.throughput(Throughput::Elements(size as u64));
            group.bench_function(format!("{name}/{size}"), |b| {
                // Only where the filter asks for it.
                let store = opened.get_or_insert_with(|| {
                    let store = Opened::new(engine, durability).unwrap_or_else(|error| panic!("{name}: {error}"));
                    store.fill(BEFORE_RECORDS).unwrap_or_else(|error| panic!("{name}: {error}"));
                    store
                });
                let mut logs: Vec<_> = (0..size).map(|number| Log::new(&format!("user-{size}-{number}"))).collect();
                b.iter_custom(|iterations| {
                    timed(store, &mut logs, iterations).unwrap_or_else(|error| panic!("{name}: {error}"))
                });
            });
        }
    }
    group.finish();
}

fn timed(store: &Opened, logs: &mut [Log], iterations: u64) -> Result<Duration, Error> {
    let (mut took, mut left) = (Duration::ZERO, 0);
    for _ in 0..iterations {
        let began = Instant::now();
        store.append(logs.iter_mut())?;
        took += began.elapsed();
        left += logs.len();
        if left >= LEFT_MAX {
            store.delete_all(logs)?;
            left = 0;
        }
    }
    store.delete_all(logs)?;
    Ok(took)
}

/// A page of a log, as a session that comes back is given.
pub fn page(c: &mut Criterion) {
    let mut group = c.benchmark_group("store/page");
    group.sample_size(20).throughput(Throughput::Elements(PAGE_RECORDS as u64));
    for (name, engine) in [("sled", EngineName::Sled), ("redb", EngineName::Redb)] {
        let mut opened = None;
        group.bench_function(format!("{name}/{PAGE_RECORDS}"), |b| {
            // Only where the filter asks for it.
            let (store, log) =
                opened.get_or_insert_with(|| with_a_page(engine).unwrap_or_else(|error| panic!("{name}: {error}")));
            let limit = PageLimit { records: PAGE_RECORDS, bytes: usize::MAX };
            b.iter(|| {
                let read = store.store.page(&log.id, Offset::ZERO, log.counters.last, limit);
                let page = store.runtime.block_on(read).unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!(page.records.len(), PAGE_RECORDS);
                page
            });
        });
    }
    group.finish();
}

/// A store with a log that has a page among the others.
fn with_a_page(engine: EngineName) -> Result<(Opened, Log), Error> {
    let store = Opened::new(engine, Durability::Process)?;
    store.fill(BEFORE_RECORDS)?;
    let mut log = Log::new("somebody");
    for _ in 0..PAGE_RECORDS {
        store.append(std::iter::once(&mut log))?;
    }
    Ok((store, log))
}
