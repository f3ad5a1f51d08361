//! The store as its users see it: over each engine in a temporary folder, over memory, and over engines that misbehave.

use std::{
    fs,
    path::Path,
    sync::{Arc, mpsc},
    time::Duration,
};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::{
    double::Double,
    embedded::{
        engine::{Engine, EngineError, Visit},
        keys::Key,
        kind::Kind,
        sequencer::Sequencer,
        witness,
    },
    *,
};
use crate::types::{ByteSize, Device, LogId, Notification, NotificationId, Payload, TypeName, UnixMillis, UserId};

const NOW: Duration = Duration::from_secs(1_769_852_100);
const EVERYTHING: PageLimit = PageLimit { records: 1000, bytes: 1 << 30 };

fn config_at(path: &Path) -> Config {
    Config { path: path.join("store"), ..Config::default() }
}

fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

fn device(name: &str) -> Device {
    Device::parse(name).unwrap()
}

fn notification(payload_bytes: usize) -> Notification {
    Notification {
        id: NotificationId::generate(),
        type_name: TypeName::parse("order.created").unwrap(),
        payload: Payload::Binary(Bytes::from((0..payload_bytes).map(|n| (n / 7) as u8).collect::<Vec<_>>())),
        from_user: Some(user("shop")),
        topic: None,
        kind: None,
        collapse_key: None,
        not_for: [].into(),
        accepted_at: UnixMillis(1),
        expires_at: Some(UnixMillis(NOW.as_millis() as u64 + 90_000)),
    }
}

fn row(cursor: Offset) -> DeviceRow {
    DeviceRow { cursor, created_at: UnixMillis(5), last_seen: UnixMillis(6), ..DeviceRow::default() }
}

#[derive(Default)]
struct Observer {
    applied: Mutex<Vec<Offset>>,
    failed: Mutex<Vec<StoreError>>,
}

impl LogObserver for Observer {
    fn applied(&self, upto: Offset) {
        self.applied.lock().push(upto);
    }

    fn failed(&self, error: &StoreError) {
        self.failed.lock().push(error.clone());
    }
}

/// A user's log as the hub keeps it.
struct Log {
    user: UserId,
    counters: Counters,
    index: Vec<IndexEntry>,
    observer: Arc<Observer>,
}

type Answer = oneshot::Receiver<Result<(), StoreError>>;

impl Log {
    fn of(name: &str) -> Self {
        Self { user: user(name), counters: Counters::default(), index: Vec::new(), observer: Arc::default() }
    }

    fn id(&self) -> LogId {
        LogId::User(self.user.clone())
    }

    async fn stage(&mut self, store: &Store, notification: &Notification) -> Result<(Offset, Answer), StoreError> {
        let mut permit = store.permit(notification.accounted_bytes()).await?;
        let offset = store.assign(&mut permit, self.counters.last);
        assert!(offset > self.counters.last);
        self.counters.count += 1;
        self.counters.bytes += notification.accounted_bytes();
        self.counters.last = offset;
        self.index.push(IndexEntry {
            offset,
            bytes: notification.accounted_bytes() as u32,
            chunks: chunks_of(notification),
            expires_at: notification.expires_at.unwrap(),
            id: notification.id.clone(),
            remembered: false,
            collapse_key: None,
            confirmed: false,
        });
        let (done, answer) = oneshot::channel();
        store.stage(Op::Append {
            log: self.id(),
            offset,
            notification: Arc::new(notification.clone()),
            replaces: None,
            emptied: None,
            remember: None,
            counters: self.counters,
            permit,
            observer: self.observer.clone(),
            done: Some(done),
        });
        Ok((offset, answer))
    }

    async fn append(&mut self, store: &Store, notification: &Notification) -> Result<Offset, StoreError> {
        let (offset, answer) = self.stage(store, notification).await?;
        answer.await.unwrap().map(|()| offset)
    }

    fn delete(&mut self, store: &Store, upto: Offset) -> Hold {
        let (entries, rest): (Vec<_>, _) = self.index.drain(..).partition(|entry| entry.offset <= upto);
        self.index = rest;
        self.counters.count -= entries.len() as u32;
        self.counters.bytes -= entries.iter().map(|entry| u64::from(entry.bytes)).sum::<u64>();
        let hold = Hold::default();
        store.stage(Op::Delete {
            log: self.id(),
            places: entries.iter().map(IndexEntry::place).collect(),
            emptied: Vec::new(),
            counters: self.counters,
            hold: hold.clone(),
            done: None,
        });
        hold
    }

    async fn put_device(&self, store: &Store, name: &str, cursor: Offset) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        store.stage(Op::PutDevice {
            user: self.user.clone(),
            device: device(name),
            row: row(cursor),
            counters: self.counters,
            hold: Hold::default(),
            done,
        });
        answer.await.unwrap()
    }

    fn cursor(&self, store: &Store, name: &str, to: Offset) -> Hold {
        let hold = Hold::default();
        store.stage(Op::Cursor { user: self.user.clone(), device: device(name), row: row(to), hold: hold.clone() });
        hold
    }

    async fn page(&self, store: &Store, after: Offset) -> Page {
        store.page(&self.id(), after, Offset::MAX, EVERYTHING).await.unwrap()
    }
}

/// Comes back when an op that was staged with a hold is durable.
async fn released(hold: Hold) {
    while Arc::strong_count(&hold) > 1 {
        tokio::task::yield_now().await;
    }
}

fn open_sled(folder: &TempDir) -> Store {
    Store::open(&config_at(folder.path()), Clock::system()).unwrap()
}

const ENGINES: [EngineName; 2] = [EngineName::Sled, EngineName::Redb];

/// Every way of keeping a store on disk, at the same place in the folder.
fn on_disk(folder: &TempDir) -> [Config; 3] {
    [
        (EngineName::Sled, Durability::Process),
        (EngineName::Sled, Durability::Power),
        (EngineName::Redb, Durability::Process),
    ]
    .map(|(engine, durability)| Config { engine, durability, ..config_at(folder.path()) })
}

/// Runs `test` over every way of keeping a store on disk, each in a folder of its own.
async fn over_every_disk(test: impl AsyncFn(TempDir, Config)) {
    for number in 0..3 {
        let folder = TempDir::new().unwrap();
        let config = on_disk(&folder)[number].clone();
        test(folder, config).await;
    }
}

fn open(config: &Config) -> Store {
    Store::open(config, Clock::system()).unwrap_or_else(|error| panic!("{:?}: {error}", config.engine))
}

/// Runs `test` over every engine.
async fn over_every_engine(test: impl AsyncFn(Store)) {
    test(Store::open_memory(&Config::default(), Clock::system())).await;
    over_every_disk(async |_folder, config| test(open(&config)).await).await;
}

fn over(double: &Arc<Double>) -> Store {
    Store::open_double(double, Clock::system())
}

#[tokio::test]
async fn what_is_appended_is_paged_until_it_is_deleted() {
    over_every_engine(async |store| {
        let (mut ann, mut bob) = (Log::of("ann"), Log::of("bob"));
        let sent: Vec<_> = (0..10).map(|n| notification(n * 10)).collect();
        let mut offsets = Vec::new();
        for one in &sent {
            offsets.push(ann.append(&store, one).await.unwrap());
            bob.append(&store, &notification(1)).await.unwrap();
        }
        let found = ann.page(&store, Offset::ZERO).await;
        assert!(found.complete && found.damaged.is_empty());
        let wanted: Vec<_> = offsets.iter().copied().zip(sent.iter().cloned()).collect();
        assert_eq!(found.records, wanted);
        assert_eq!(ann.page(&store, offsets[6]).await.records, wanted[7..]);
        let upto = store.page(&ann.id(), offsets[1], offsets[3], EVERYTHING).await.unwrap();
        assert_eq!(upto.records, wanted[2..=3]);
        assert_eq!(*ann.observer.applied.lock(), offsets);

        released(ann.delete(&store, offsets[8])).await;
        assert_eq!(ann.page(&store, Offset::ZERO).await.records, wanted[9..]);
        assert_eq!(store.totals(), Totals { count: 11, bytes: ann.counters.bytes + bob.counters.bytes });
        store.close().unwrap();
    })
    .await;
}

#[tokio::test]
async fn everything_survives_closing_and_opening_again() {
    over_every_disk(async |_folder, config| {
        let store = open(&config);
        let epoch = store.epoch();
        let mut ann = Log::of("ann");
        for n in [10, 5000, 300] {
            ann.append(&store, &notification(n)).await.unwrap();
        }
        let first = ann.index[0].offset;
        ann.put_device(&store, "phone", Offset::ZERO).await.unwrap();
        ann.put_device(&store, "", ann.counters.last).await.unwrap();
        ann.put_device(&store, "gone", Offset::ZERO).await.unwrap();
        let (done, answer) = oneshot::channel();
        let hold = Hold::default();
        store.stage(Op::RemoveDevice {
            user: ann.user.clone(),
            device: device("gone"),
            at: UnixMillis(9),
            unremembered: Vec::new(),
            topics: Vec::new(),
            hold,
            done: Some(done),
        });
        answer.await.unwrap().unwrap();
        ann.cursor(&store, "phone", first);
        ann.delete(&store, first);
        // Lazy writes are flushed by closing.
        store.close().unwrap();

        let store = open(&config);
        assert_eq!(store.epoch(), epoch);
        assert_eq!(store.engine_name(), Kind::of(config.engine).name);
        assert_eq!(store.totals(), Totals { count: 2, bytes: ann.counters.bytes });
        let found = store.load(&ann.user).await.unwrap();
        let forgotten = vec![(device("gone"), UnixMillis(9))];
        let devices = vec![(Device::UNNAMED, row(ann.counters.last)), (device("phone"), row(first))];
        assert_eq!(
            found,
            Mailbox {
                counters: ann.counters,
                devices,
                forgotten,
                members: Vec::new(),
                index: ann.index.clone(),
                damaged: None
            }
        );
        assert_eq!(store.load(&user("stranger")).await.unwrap(), Mailbox::default());
        assert!(store.disk_bytes() > 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_users_at_once_each_get_their_own_log_in_order() {
    over_every_disk(async |_folder, config| {
        const USERS: usize = 32;
        const ROUNDS: usize = 20;
        let store = open(&config);
        let users = (0..USERS).map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut log = Log::of(&format!("user-{number}"));
                for round in 0..ROUNDS {
                    let sent = [notification(round * 10), notification(round * 900)];
                    for one in &sent {
                        log.append(&store, one).await.unwrap();
                    }
                    let before = log.index.iter().rev().nth(2).map_or(Offset::ZERO, |entry| entry.offset);
                    let found = log.page(&store, before).await;
                    assert!(found.records.iter().map(|(_, one)| one).eq(&sent));
                    log.cursor(&store, "phone", before);
                    if round % 3 == 2 {
                        log.delete(&store, before);
                    }
                }
                log
            })
        });
        let mut logs = Vec::new();
        for user in users.collect::<Vec<_>>() {
            logs.push(user.await.unwrap());
        }
        store.close().unwrap();
        let store = open(&config);
        for log in &logs {
            let found = store.load(&log.user).await.unwrap();
            assert_eq!((found.counters, &found.index, found.damaged), (log.counters, &log.index, None));
        }
        let count = logs.iter().map(|log| u64::from(log.counters.count)).sum();
        let bytes = logs.iter().map(|log| log.counters.bytes).sum();
        assert_eq!(store.totals(), Totals { count, bytes });
    })
    .await;
}

#[tokio::test]
async fn an_append_is_answered_when_it_is_durable_and_its_log_is_told_before() {
    let double = Arc::new(Double::default());
    let store = over(&double);
    let mut ann = Log::of("ann");
    let held = double.hold();
    let (offset, mut answer) = ann.stage(&store, &notification(1)).await.unwrap();
    double.begun(1).await;
    assert!(answer.try_recv().is_err());
    assert!(ann.observer.applied.lock().is_empty());
    drop(held);
    answer.await.unwrap().unwrap();
    assert_eq!(*ann.observer.applied.lock(), [offset]);
}

#[tokio::test]
async fn what_was_answered_is_in_the_files_although_nothing_was_closed() {
    over_every_disk(async |_folder, config| {
        let store = open(&config);
        let mut ann = Log::of("ann");
        for n in 0..20 {
            ann.append(&store, &notification(n * 300)).await.unwrap();
            // The files are what `kill -9` would leave at this moment.
            let killed = TempDir::new().unwrap();
            let again = Config { path: config_at(killed.path()).path, ..config.clone() };
            copy(&config.path, &again.path);
            let found = open(&again).load(&ann.user).await.unwrap();
            assert_eq!((found.counters, found.index, found.damaged), (ann.counters, ann.index.clone(), None));
        }
    })
    .await;
}

#[tokio::test]
async fn a_failed_commit_fails_its_whole_batch_and_the_store_for_good() {
    for panics in [false, true] {
        let double = Arc::new(Double::default());
        let store = over(&double);
        let (mut ann, mut bob) = (Log::of("ann"), Log::of("bob"));
        let held = double.hold();
        let (_, first) = ann.stage(&store, &notification(1)).await.unwrap();
        double.begun(1).await;
        let (_, second) = bob.stage(&store, &notification(1)).await.unwrap();
        let waiting = bob.cursor(&store, "phone", Offset::new(1));
        double.fails.store(true, Ordering::SeqCst);
        double.panics.store(panics, Ordering::SeqCst);
        drop(held);
        for answer in [first, second] {
            assert!(matches!(answer.await.unwrap(), Err(StoreError::Failed(why)) if why.contains("on purpose")));
        }
        released(waiting).await;
        assert!(matches!(store.failed().await, StoreError::Failed(_)));
        assert!(store.health().is_err());
        for log in [&ann, &bob] {
            assert!(log.observer.applied.lock().is_empty());
            assert_eq!(log.observer.failed.lock().len(), 1);
        }
        assert!(matches!(store.permit(1).await, Err(StoreError::Failed(_))));
        assert!(matches!(bob.put_device(&store, "late", Offset::ZERO).await, Err(StoreError::Failed(_))));
        assert!(matches!(store.load(&ann.user).await, Err(StoreError::Failed(_))));
        assert_eq!(double.commits_begun(), 1, "nothing is committed after a failure");
        assert!(matches!(store.close(), Err(StoreError::Failed(_))));
    }
}

#[tokio::test]
async fn what_gathers_during_a_commit_is_one_batch_with_one_row_for_counters_and_cursors() {
    let double = Arc::new(Double::default());
    let store = over(&double);
    let mut ann = Log::of("ann");
    let held = double.hold();
    let mut answers = vec![ann.stage(&store, &notification(1)).await.unwrap().1];
    double.begun(1).await;
    for _ in 0..100 {
        let (offset, answer) = ann.stage(&store, &notification(1)).await.unwrap();
        answers.push(answer);
        ann.cursor(&store, "phone", offset);
    }
    drop(held);
    for answer in answers {
        answer.await.unwrap().unwrap();
    }
    let commits = double.commits.lock().clone();
    assert_eq!(commits.len(), 2);
    let count = |wanted: &dyn Fn(&Key) -> bool| {
        commits[1].iter().filter(|(key, _)| Key::decode(key).is_some_and(|key| wanted(&key))).count()
    };
    assert_eq!(count(&|key| matches!(key, Key::Head(..))), 100);
    assert_eq!(count(&|key| matches!(key, Key::Counters(_))), 1);
    assert_eq!(count(&|key| matches!(key, Key::Device(..))), 1);
    assert_eq!(count(&|key| matches!(key, Key::Totals)), 1);
    assert_eq!(ann.observer.applied.lock().last(), Some(&ann.counters.last));
    assert_eq!(ann.observer.applied.lock().len(), 2, "once for each batch");
    let row = store.load(&ann.user).await.unwrap().devices[0].1;
    assert_eq!(row.cursor, ann.counters.last);
}

#[tokio::test]
async fn offsets_go_on_above_all_that_were_given_when_the_clock_went_back() {
    over_every_disk(async |_folder, config| {
        let store = open(&config);
        let mut ann = Log::of("ann");
        let before = ann.append(&store, &notification(1)).await.unwrap();
        // Given, and perhaps seen, but never written.
        let lost = store.assign(&mut store.permit(1).await.unwrap(), before);
        store.close().unwrap();

        let clock = Clock::system();
        clock.set_skew_micros(-3_600_000_000);
        let store = Store::open(&config, clock).unwrap();
        let mut bob = Log::of("bob");
        let after = bob.append(&store, &notification(1)).await.unwrap();
        assert!(after > lost && lost > before, "{before} < {lost} < {after}");
        assert_eq!(store.load(&ann.user).await.unwrap().damaged, None);
    })
    .await;
}

#[tokio::test]
async fn a_permit_waits_for_the_mark_to_be_raised_on_disk() {
    let double = Arc::new(Double::default());
    let mut opened = Opened::over(Arc::new(Arc::clone(&double)), Clock::system(), true).unwrap();
    opened.sequencer = Sequencer::new(Clock::system(), 4);
    opened.sequencer.raised(6);
    double.forget();
    double.commits.lock().clear();
    let store = Store::start(opened, &Config::default()).unwrap();
    let (mut first, mut second) = (store.permit(1).await.unwrap(), store.permit(1).await.unwrap());
    let held = double.hold();
    let mut waiting = Box::pin(store.permit(1));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    double.begun(1).await;
    assert!(futures_util::poll!(&mut waiting).is_pending(), "the mark is not on disk yet");
    let offsets = [store.assign(&mut first, Offset::ZERO).get(), store.assign(&mut second, Offset::ZERO).get()];
    assert_eq!(offsets, [4, 5]);
    drop(held);
    let mut third = waiting.await.unwrap();
    let (key, _) = double.commits.lock()[0][0].clone();
    assert_eq!(Key::decode(&key), Some(Key::Mark));
    assert!(store.assign(&mut third, Offset::ZERO).get() > 1_000_000);
}

#[tokio::test]
async fn a_permit_that_waits_for_the_mark_ends_with_the_store() {
    for fails in [true, false] {
        let double = Arc::new(Double::default());
        let mut opened = Opened::over(Arc::new(Arc::clone(&double)), Clock::system(), true).unwrap();
        opened.sequencer = Sequencer::new(Clock::system(), 1);
        double.fails.store(fails, Ordering::SeqCst);
        double.forget();
        let store = Store::start(opened, &Config::default()).unwrap();
        let held = double.hold();
        let mut waiting = Box::pin(store.permit(1));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        double.begun(1).await;
        if !fails {
            store.0.shared.close();
        }
        drop(held);
        match waiting.await.map(drop) {
            Err(StoreError::Failed(_)) => assert!(fails),
            Err(StoreError::Closed) => assert!(!fails),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_permit_holds_room_in_the_queue_until_it_is_dropped() {
    let store = Store::open_memory(&Config::default(), Clock::system());
    let all = crate::limits::WRITER_QUEUE_BYTES_MAX as u64;
    assert_eq!(store.permit(all + 1).await.map(drop), Err(StoreError::Full));
    let whole = store.permit(all).await.unwrap();
    let mut next = Box::pin(store.permit(1));
    assert!(futures_util::poll!(&mut next).is_pending());
    drop(whole);
    drop(next.await.unwrap());
    // An append gives it back when it is committed.
    let mut ann = Log::of("ann");
    for _ in 0..3 {
        ann.append(&store, &notification(40 << 20)).await.unwrap();
    }
}

#[tokio::test]
async fn nothing_is_admitted_beyond_the_bytes_and_the_disk_configured() {
    let one = notification(10_000);
    let config = Config { max_bytes: ByteSize(2 * one.accounted_bytes()), ..Config::default() };
    let store = Store::open_memory(&config, Clock::system());
    let mut ann = Log::of("ann");
    let first = ann.append(&store, &one).await.unwrap();
    let held = store.permit(one.accounted_bytes()).await.unwrap();
    assert_eq!(ann.append(&store, &one).await, Err(StoreError::Full), "permits count");
    drop(held);
    ann.append(&store, &one).await.unwrap();
    assert_eq!(ann.append(&store, &one).await, Err(StoreError::Full));
    released(ann.delete(&store, first)).await;
    ann.append(&store, &one).await.unwrap();

    let folder = TempDir::new().unwrap();
    let config = Config { max_disk: ByteSize(1), ..config_at(folder.path()) };
    let store = Store::open(&config, Clock::system()).unwrap();
    assert_eq!(ann.append(&store, &one).await, Err(StoreError::Full));
    // What frees room is still taken.
    ann.put_device(&store, "phone", Offset::ZERO).await.unwrap();
}

#[tokio::test]
async fn large_notifications_come_back_as_they_were_and_leave_nothing_behind() {
    over_every_engine(async |store| {
        let mut ann = Log::of("ann");
        let sent = [notification(200 * 1024), notification(10), notification(4096), notification(8192)];
        for one in &sent {
            ann.append(&store, one).await.unwrap();
        }
        assert!(ann.index[0].chunks > 50 && ann.index[1].chunks == 0 && ann.index[3].chunks == 3);
        let found = ann.page(&store, Offset::ZERO).await;
        assert!(found.records.iter().map(|(_, one)| one).eq(&sent));
        assert_eq!(store.load(&ann.user).await.unwrap().index, ann.index);
        released(ann.delete(&store, ann.counters.last)).await;
        let left = store.0.readers.read(|engine| {
            let mut left = Vec::new();
            engine.range(&[0x20], &[0x22], &mut |key, _| {
                left.push(key.to_vec());
                Visit::Continue(())
            })?;
            Ok(left)
        });
        assert_eq!(left.await.unwrap(), Vec::<Vec<u8>>::new());
        let mailbox = store.load(&ann.user).await.unwrap();
        assert_eq!((mailbox.counters, mailbox.damaged), (ann.counters, None));
    })
    .await;
}

#[tokio::test]
async fn a_page_keeps_to_its_limits_but_has_one_record_at_least() {
    over_every_engine(async |store| {
        let mut ann = Log::of("ann");
        for n in [9000, 100, 100, 100, 9000] {
            ann.append(&store, &notification(n)).await.unwrap();
        }
        let page = async |after: Offset, records, bytes| {
            let page = store.page(&ann.id(), after, Offset::MAX, PageLimit { records, bytes }).await.unwrap();
            (page.records.len(), page.complete)
        };
        assert_eq!(page(Offset::ZERO, 10, 1).await, (1, false));
        assert_eq!(page(Offset::ZERO, 0, 0).await, (1, false));
        assert_eq!(page(ann.index[0].offset, 10, 1000).await, (3, false));
        assert_eq!(page(Offset::ZERO, 2, 1 << 20).await, (2, false));
        assert_eq!(page(Offset::ZERO, 5, 1 << 20).await, (5, true));
        assert_eq!(page(ann.index[3].offset, 1, 1).await, (1, true));
        assert_eq!(page(ann.counters.last, 1, 1).await, (0, true));
    })
    .await;
}

#[tokio::test]
async fn a_mailbox_of_any_length_is_listed_and_paged_whole() {
    let store = Store::open_memory(&Config::default(), Clock::system());
    let mut ann = Log::of("ann");
    let mut answers = Vec::new();
    // An even number of index pages, so that the last one is full.
    for _ in 0..1024 {
        answers.push(ann.stage(&store, &notification(1)).await.unwrap().1);
    }
    for answer in answers {
        answer.await.unwrap().unwrap();
    }
    let found = store.load(&ann.user).await.unwrap();
    assert_eq!((found.index, found.damaged), (ann.index.clone(), None));
    let limit = PageLimit { records: 2000, bytes: 1 << 30 };
    let page = store.page(&ann.id(), Offset::ZERO, Offset::MAX, limit).await.unwrap();
    assert_eq!((page.records.len(), page.complete), (1024, true));
}

#[tokio::test]
async fn lost_and_unreadable_rows_are_passed_over_and_reported() {
    let double = Arc::new(Double::default());
    let store = over(&double);
    let mut ann = Log::of("ann");
    for n in [10, 9000, 10, 10] {
        ann.append(&store, &notification(n)).await.unwrap();
    }
    let at = |n: usize| ann.index[n].offset;
    assert_eq!(store.load(&ann.user).await.unwrap().damaged, None);
    let key = Key::Chunk(ann.id(), at(1), 1).encode();
    double.rows.commit(vec![(key, None), (Key::Head(ann.id(), at(2)).encode(), None)]).unwrap();
    let page = ann.page(&store, Offset::ZERO).await;
    assert_eq!(page.records.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [at(0), at(3)]);
    assert!(page.complete && page.damaged == [at(1)]);
    let mailbox = store.load(&ann.user).await.unwrap();
    assert!(mailbox.damaged.is_some());
    assert_eq!((mailbox.counters.count, mailbox.counters.last), (3, ann.counters.last));

    let row = (Key::Head(ann.id(), at(0)).encode(), Some(vec![9, 9]));
    double.rows.commit(vec![row]).unwrap();
    assert_eq!(ann.page(&store, Offset::ZERO).await.damaged, [at(0), at(1)]);
    assert!(store.load(&ann.user).await.unwrap().damaged.unwrap().contains("cannot be read"));
}

#[tokio::test]
async fn a_cursor_that_a_crash_leaves_ahead_of_its_log_is_no_damage() {
    let double = Arc::new(Double::default());
    let store = over(&double);
    let (mut ann, mut bob) = (Log::of("ann"), Log::of("bob"));
    ann.append(&store, &notification(10)).await.unwrap();
    let held = double.hold();
    bob.stage(&store, &notification(1)).await.unwrap();
    double.begun(2).await;
    // A newer cursor takes the place of the one that waits, here in a batch before that of the record it confirms.
    ann.cursor(&store, "phone", ann.counters.last);
    bob.stage(&store, &notification(crate::limits::STORE_BATCH_BYTES_MAX)).await.unwrap();
    ann.stage(&store, &notification(10)).await.unwrap();
    ann.cursor(&store, "phone", ann.counters.last);
    held.let_one_through();
    held.let_one_through();
    double.begun(4).await;
    // What a crash leaves now.
    let mailbox = store.load(&ann.user).await.unwrap();
    assert_eq!((mailbox.index.len(), mailbox.devices[0].1.cursor), (1, ann.counters.last));
    assert_eq!(mailbox.counters.last, ann.counters.last, "nothing is ever given at or below a cursor");
    assert_eq!(mailbox.damaged, None);
}

#[tokio::test]
async fn users_are_due_when_something_of_theirs_has_expired() {
    over_every_engine(async |store| {
        let expires_at = NOW.as_millis() as u64 + 90_000;
        for name in ["ann", "bob", "ann"] {
            Log::of(name).append(&store, &notification(1)).await.unwrap();
        }
        let minute = expires_at.div_ceil(60_000);
        let whole = UnixMillis(minute * 60_000);
        assert_eq!(store.due(UnixMillis(whole.0 - 1), 10).await.unwrap(), []);
        let due = store.due(whole, 10).await.unwrap();
        assert_eq!(due, ["ann", "bob"].map(|name| Due { minute, log: LogId::User(user(name)) }));
        assert_eq!(store.due(whole, 1).await.unwrap(), due[..1]);
        assert_eq!(store.due(whole, 0).await.unwrap(), []);
        store.stage(Op::ForgetDue { due: due[0].clone(), done: None });
        // Whatever is committed after it is committed with or after it.
        Log::of("eve").put_device(&store, "phone", Offset::ZERO).await.unwrap();
        assert_eq!(store.due(whole, 10).await.unwrap(), due[1..]);
    })
    .await;
}

#[tokio::test]
async fn a_closed_store_has_written_everything_and_takes_nothing() {
    let double = Arc::new(Double::default());
    let store = over(&double);
    let mut ann = Log::of("ann");
    let (_, answer) = ann.stage(&store, &notification(1)).await.unwrap();
    let permit = store.permit(1).await.unwrap();
    let hold = ann.cursor(&store, "phone", Offset::new(1));
    store.close().unwrap();
    store.close().unwrap();
    answer.await.unwrap().unwrap();
    assert_eq!(Arc::strong_count(&hold), 1);
    assert!(double.rows.get(&Key::Device(ann.user.clone(), device("phone")).encode()).unwrap().is_some());
    assert_eq!(store.permit(1).await.map(drop), Err(StoreError::Closed));
    assert_eq!(ann.put_device(&store, "late", Offset::ZERO).await, Err(StoreError::Closed));
    assert_eq!(store.load(&ann.user).await, Err(StoreError::Closed));
    assert_eq!(store.health(), Err(StoreError::Closed));
    assert!(futures_util::poll!(Box::pin(store.failed())).is_pending(), "closing is no failure");
    drop(permit);
}

#[tokio::test]
async fn a_store_in_use_is_locked_and_free_again_when_it_is_closed() {
    over_every_disk(async |_folder, config| {
        let store = open(&config);
        let again = Store::open(&config, Clock::system());
        assert!(matches!(again.map(drop), Err(OpenError::Locked { .. })));
        store.close().unwrap();
        // The handle may live on.
        drop(open(&config));
        drop(store);
        drop(open(&config));
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_that_a_crash_left_unfinished_is_removed() {
    let folder = TempDir::new().unwrap();
    let store = open_sled(&folder);
    let mut ann = Log::of("ann");
    ann.append(&store, &notification(1)).await.unwrap();
    store.close().unwrap();
    let unfinished = folder.path().join("store/snap.00000000FFFFFFFF.generating");
    fs::write(&unfinished, b"half").unwrap();
    let store = open_sled(&folder);
    assert!(!unfinished.exists());
    assert_eq!(ann.page(&store, Offset::ZERO).await.records.len(), 1);
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_left_alone() {
    for engine in ENGINES {
        let folder = TempDir::new().unwrap();
        let config = Config { engine, ..config_at(folder.path()) };
        drop(open(&config));
        let raw = (Kind::of(engine).open)(&config.path, Durability::Process).unwrap();
        raw.commit(vec![(Key::Format.encode(), Some(4u32.to_le_bytes().to_vec()))]).unwrap();
        drop(raw);
        match Store::open(&config, Clock::system()).map(drop) {
            Err(OpenError::Format { found, supported, .. }) => {
                assert_eq!((&*found, &*supported), ("format version 4", "format version 3"));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error_that_names_it() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("store"), b"a file").unwrap();
    let error = Store::open(&config_at(folder.path()), Clock::system()).map(drop).unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }));
    assert!(error.to_string().contains(&*folder.path().join("store").to_string_lossy()), "{error}");
}

/// All files of a folder and what is in them.
fn contents(folder: &Path) -> std::collections::BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(contents(&entry.path()));
        } else {
            found.insert(entry.path(), fs::read(entry.path()).unwrap());
        }
    }
    found
}

#[test]
fn a_store_of_another_engine_is_refused_with_its_name_and_left_alone() {
    for [written, configured] in [ENGINES, [EngineName::Redb, EngineName::Sled]] {
        let folder = TempDir::new().unwrap();
        drop(open(&Config { engine: written, ..config_at(folder.path()) }));
        let before = contents(folder.path());
        for on_corruption in [OnCorruption::Quarantine, OnCorruption::Refuse] {
            let config = Config { engine: configured, on_corruption: Some(on_corruption), ..config_at(folder.path()) };
            let error = Store::open(&config, Clock::system()).map(drop).unwrap_err();
            assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
            let wanted = format!("set store.engine = \"{}\"", Kind::of(written).name);
            assert!(
                error.to_string().contains(&wanted) && error.to_string().contains("pushgate store export"),
                "{error}"
            );
        }
        assert!(contents(folder.path()) == before);
        drop(open(&Config { engine: written, ..config_at(folder.path()) }));
    }
}

#[test]
fn a_beginning_that_was_cut_short_is_set_aside_where_damage_is_refused() {
    for (engine, file) in ENGINES.into_iter().zip(["db", "store.redb"]) {
        let folder = TempDir::new().unwrap();
        let config = Config { engine, on_corruption: Some(OnCorruption::Refuse), ..config_at(folder.path()) };
        fs::create_dir(&config.path).unwrap();
        fs::write(config.path.join("begun"), b"").unwrap();
        fs::write(config.path.join(file), vec![0xA5; 70_000]).unwrap();
        match Store::open(&config, Clock::system()) {
            Ok(_) => {}
            Err(OpenError::Panicked { .. }) => drop(open(&config)),
            Err(error) => panic!("{error}"),
        }
        assert!(!config.path.join("begun").exists());
        drop(open(&config));
    }
}

#[tokio::test]
async fn a_store_over_which_commits_fail_is_read_whole_and_at_last_taken_for_damaged() {
    over_every_disk(async |_folder, config| {
        let mut ann = Log::of("ann");
        ann.append(&open(&config), &notification(1)).await.unwrap();
        // What a commit that failed over damage leaves.
        let suspect = config.path.join("suspect");
        fs::write(&suspect, "1\nsomething is wrong\n").unwrap();
        let store = open(&config);
        assert_eq!(ann.page(&store, Offset::ZERO).await.records.len(), 1, "all of it can be read");
        assert!(suspect.exists(), "nothing is proven yet");
        drop(store);
        assert!(!suspect.exists(), "it went on until it was closed");

        fs::write(&suspect, "2\nsomething is wrong\n").unwrap();
        let refuse = Config { on_corruption: Some(OnCorruption::Refuse), ..config.clone() };
        let before = contents(&config.path);
        let error = Store::open(&refuse, Clock::system()).map(drop).unwrap_err();
        assert!(
            matches!(error, OpenError::Corrupt { .. }) && error.to_string().contains("something is wrong"),
            "{error}"
        );
        assert!(contents(&config.path) == before);
        let quarantine = Config { on_corruption: Some(OnCorruption::Quarantine), ..config.clone() };
        let store = open(&quarantine);
        assert_eq!(ann.page(&store, Offset::ZERO).await.records, []);
        assert!(!suspect.exists(), "it is set aside with the files");
    })
    .await;
}

#[test]
fn an_engine_is_opened_again_in_the_process_once_nobody_has_it() {
    for config in
        on_disk(&TempDir::new().unwrap()).into_iter().filter(|config| config.durability == Durability::Process)
    {
        let folder = TempDir::new().unwrap();
        let config = Config { path: config_at(folder.path()).path, ..config };
        let store = open(&config);
        assert!(matches!(open::reopen(&config), Err(EngineError::Busy)));
        let epoch = store.epoch();
        drop(store);
        let engine = open::reopen(&config).unwrap();
        let opened = Opened::over(engine, Clock::system(), false).unwrap();
        assert_eq!(opened.epoch, epoch);
        drop(opened);
        fs::remove_dir_all(&config.path).unwrap();
        assert!(matches!(open::reopen(&config), Err(EngineError::Corrupt(_))), "and no other one is made");
    }
}

/// Opens on a thread of its own, since an opening that hangs could not be ended.
fn opened_in_time(config: &Config) -> Result<Store, OpenError> {
    let (answer, answered) = mpsc::channel();
    let config = config.clone();
    std::thread::spawn(move || answer.send(Store::open(&config, Clock::system())));
    answered.recv_timeout(Duration::from_secs(60)).expect("opening hangs")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else if entry.file_name() != "ballast" {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test]
async fn a_damaged_store_is_opened_moved_aside_or_refused_but_never_hangs_or_panics() {
    for engine in ENGINES {
        damaged(engine).await;
    }
}

async fn damaged(engine: EngineName) {
    let folder = TempDir::new().unwrap();
    let config = Config { engine, ..config_at(folder.path()) };
    // Twice, so that there is a snapshot, and something behind it.
    let mut logs: Vec<_> = (0..20).map(|n| Log::of(&format!("user-{n}"))).collect();
    for _ in 0..2 {
        let store = open(&config);
        for log in &mut logs {
            log.append(&store, &notification(3000)).await.unwrap();
            log.append(&store, &notification(9000)).await.unwrap();
        }
        store.close().unwrap();
    }
    let sound = config.path.clone();
    let names = fs::read_dir(&sound).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    // What is kept for a full disk holds nothing.
    let names: Vec<_> = names.filter(|name| name != "ballast").collect();
    let blobs = usize::from(names.iter().any(|name| name == "blobs"));
    let mut damages: Vec<(&str, Option<u64>, u64)> = Vec::new();
    for file in names.iter().map(String::as_str).filter(|name| *name != "blobs") {
        let step = match file {
            "conf" => 9,
            snapshot if snapshot.starts_with("snap.") => 211,
            _ => 97_531,
        };
        let length = fs::metadata(sound.join(file)).unwrap().len();
        let positions = (0..length).step_by(step).chain([1, 20, length - 1]);
        damages.extend(positions.take(16).map(|at| (file, None, at)));
        damages.extend([0, 7, length / 3, length / 2, length - 1].map(|cut| (file, Some(cut), 0)));
    }
    let (mut refused, mut moved) = (0, 0);
    for (number, (file, cut, flip)) in damages.into_iter().enumerate() {
        for on_corruption in [OnCorruption::Refuse, OnCorruption::Quarantine] {
            let place = TempDir::new().unwrap();
            let config = Config { engine, on_corruption: Some(on_corruption), ..config_at(place.path()) };
            copy(&sound, &config.path);
            let mut bytes = fs::read(config.path.join(file)).unwrap();
            match cut {
                Some(length) => bytes.truncate(length as usize),
                None => bytes[flip as usize] ^= 0x10,
            }
            fs::write(config.path.join(file), &bytes).unwrap();
            let quarantined = || fs::read_dir(place.path()).unwrap().count() == 2;
            match opened_in_time(&config) {
                Ok(store) => {
                    moved += usize::from(quarantined());
                    for log in &logs {
                        // Lost is possible, a panic or a hang is not.
                        let _ = store.load(&log.user).await;
                        let _ = store.page(&log.id(), Offset::ZERO, Offset::MAX, EVERYTHING).await;
                    }
                    let _ = Log::of("newcomer").append(&store, &notification(10)).await;
                }
                Err(OpenError::Panicked { moved_to, .. }) => {
                    assert!(on_corruption == OnCorruption::Quarantine);
                    assert!(moved_to.join(Kind::of(engine).lock_file).exists());
                    moved += 1;
                    opened_in_time(&config).expect("the next start finds a new store");
                }
                Err(OpenError::Corrupt { .. }) => {
                    assert_eq!(on_corruption, OnCorruption::Refuse, "{number}");
                    assert!(!quarantined());
                    assert!(fs::read(config.path.join(file)).unwrap() == bytes, "{file} was changed");
                    assert_eq!(contents(&config.path).len(), names.len() - blobs, "nothing else is there");
                    refused += 1;
                }
                Err(error) => panic!("{file} {cut:?} {flip}: {error}"),
            }
        }
    }
    assert!(refused > 0 && moved > 0, "{refused} refused, {moved} moved");
}

/// Reads all that these users have and appends to it. Whether that was possible.
async fn is_usable(store: &Store, users: &[UserId]) -> bool {
    let mut is_usable = true;
    for user in users {
        is_usable &= store.load(user).await.is_ok();
        is_usable &= store.page(&LogId::User(user.clone()), Offset::ZERO, Offset::MAX, EVERYTHING).await.is_ok();
        let mut log = Log { user: user.clone(), ..Log::of("ann") };
        is_usable &= log.append(store, &notification(10)).await.is_ok();
    }
    is_usable
}

#[tokio::test]
async fn what_is_damaged_below_an_open_store_is_met_once_and_not_at_every_start() {
    let folder = TempDir::new().unwrap();
    let users: Vec<_> = (0..40).map(|n| user(&format!("user-{n}"))).collect();
    for _ in 0..2 {
        let store = open_sled(&folder);
        for user in &users {
            let mut log = Log { user: user.clone(), ..Log::of("ann") };
            for _ in 0..5 {
                log.append(&store, &notification(3000)).await.unwrap();
            }
        }
        store.close().unwrap();
    }
    let (sound, mut met) = (config_at(folder.path()).path, 0);
    let length = fs::metadata(sound.join("db")).unwrap().len();
    for part in 0..16 {
        for on_corruption in [OnCorruption::Refuse, OnCorruption::Quarantine] {
            let place = TempDir::new().unwrap();
            let config = Config { on_corruption: Some(on_corruption), ..config_at(place.path()) };
            copy(&sound, &config.path);
            let store = opened_in_time(&config).unwrap();
            let file = fs::File::options().write(true).open(config.path.join("db")).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], length * part / 16 / 4096 * 4096).unwrap();
            drop(file);
            if is_usable(&store, &users).await {
                continue;
            }
            met += 1;
            drop(store);
            let mut usable = false;
            for _start in 0..3 {
                match opened_in_time(&config) {
                    Ok(store) => usable = is_usable(&store, &users).await,
                    Err(OpenError::Panicked { .. }) => assert_eq!(on_corruption, OnCorruption::Quarantine),
                    Err(OpenError::Corrupt { .. }) => {
                        assert_eq!(on_corruption, OnCorruption::Refuse);
                        usable = true;
                    }
                    Err(error) => panic!("{error}"),
                }
                if usable {
                    break;
                }
            }
            assert!(usable, "{part}, {on_corruption:?}: it fails at every start");
        }
    }
    assert!(met > 0, "no damage was met");
}

#[test]
fn an_emptied_store_is_damage_and_one_cut_short_at_its_making_is_not() {
    let folder = TempDir::new().unwrap();
    let config = Config { on_corruption: Some(OnCorruption::Refuse), ..config_at(folder.path()) };
    drop(open_sled(&folder));
    let open = || Store::open(&config, Clock::system()).map(drop);
    open().unwrap();
    for entry in fs::read_dir(&config.path).unwrap().map(Result::unwrap) {
        if entry.file_name() != "conf" && entry.file_type().unwrap().is_file() {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    fs::write(config.path.join("db"), b"").unwrap();
    assert!(matches!(open(), Err(OpenError::Corrupt { .. })));
    fs::write(config.path.join("begun"), b"").unwrap();
    open().unwrap();
    assert!(!config.path.join("begun").exists());
}

#[test]
fn what_is_set_aside_takes_no_name_that_is_taken() {
    let folder = TempDir::new().unwrap();
    // A slash at the end of a path must not turn "beside" into "inside".
    let config = Config { path: config_at(folder.path()).path.join(""), ..Config::default() };
    drop(open_sled(&folder));
    fs::write(config.path.join("db"), b"short").unwrap();
    let aside = |end: &str| folder.path().join(format!("store.corrupt-{}{end}", NOW.as_secs()));
    fs::write(aside(""), b"").unwrap();
    match Store::open(&config, Clock::simulated(NOW)) {
        Ok(_) | Err(OpenError::Panicked { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    assert!(aside("-2").join("db").exists() && aside("").is_file());
}

#[test]
fn a_store_that_fills_a_mount_is_set_aside_inside_it() {
    let folder = TempDir::new().unwrap();
    let config = config_at(folder.path());
    drop(open_sled(&folder));
    fs::write(config.path.join("db"), b"short").unwrap();
    // Nothing can be made beside a folder whose name is as long as names may be.
    let long = Config { path: folder.path().join("s".repeat(250)), ..config.clone() };
    fs::rename(&config.path, &long.path).unwrap();
    match Store::open(&long, Clock::simulated(NOW)) {
        Ok(_) | Err(OpenError::Panicked { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    assert!(long.path.join(format!("corrupt-{}/db", NOW.as_secs())).exists());
}

/// The errors of the log's batches that failed.
fn recovering(error: &StoreError) -> bool {
    matches!(error, StoreError::Recovering(_))
}

#[tokio::test]
async fn a_full_disk_fails_the_batch_and_what_waits_and_the_store_goes_on_in_another_generation() {
    for keeps in [false, true] {
        let double = Arc::new(Double::default());
        let store = over(&double);
        let (mut ann, mut bob) = (Log::of("ann"), Log::of("bob"));
        ann.append(&store, &notification(10)).await.unwrap();
        let mut opened = store.opened();
        let before = store.generation();
        let held = double.hold();
        let begun = double.commits_begun();
        let (lost, first) = ann.stage(&store, &notification(20)).await.unwrap();
        double.begun(begun + 1).await;
        let (_, second) = bob.stage(&store, &notification(1)).await.unwrap();
        let waiting = bob.cursor(&store, "phone", Offset::new(1));
        let early = store.permit(1).await.unwrap();
        // The commit, and three openings.
        double.is_full_for(1, 3, keeps);
        drop(held);
        for answer in [first, second] {
            assert!(recovering(&answer.await.unwrap().unwrap_err()));
        }
        released(waiting).await;
        opened.changed().await.unwrap();
        assert_eq!((store.generation(), *opened.borrow_and_update()), (before + 1, before + 1));
        assert_eq!(double.is_full_still_for(), (0, 0));
        assert_eq!((store.health(), store.is_recovering()), (Ok(()), false));
        for log in [&ann, &bob] {
            assert!(matches!(&log.observer.failed.lock()[..], [error] if recovering(error)));
        }
        assert!(futures_util::poll!(Box::pin(store.failed())).is_pending(), "a full disk is no failure");

        let found = store.load(&ann.user).await.unwrap();
        assert_eq!(found.damaged, None);
        assert_eq!(found.index, ann.index[..1 + usize::from(keeps)], "the batch is there as a whole or not at all");
        assert_eq!(store.totals().count, found.index.len() as u64);
        assert_eq!(store.load(&bob.user).await.unwrap(), Mailbox::default(), "what waited behind it is not");

        // What was read and permitted before is good for nothing.
        assert_ne!(early.generation(), store.generation());
        let (done, late) = oneshot::channel();
        let hold = Hold::default();
        store.stage_in(
            before,
            Op::RemoveDevice {
                user: user("late"),
                device: device("x"),
                at: UnixMillis(1),
                unremembered: Vec::new(),
                topics: Vec::new(),
                hold,
                done: Some(done),
            },
        );
        assert!(recovering(&late.await.unwrap().unwrap_err()));
        drop(early);

        (ann.counters, ann.index) = (found.counters, found.index);
        let after = ann.append(&store, &notification(30)).await.unwrap();
        assert!(after > lost, "no offset is given twice");
        store.close().unwrap();
        assert_eq!(over(&double).load(&ann.user).await.unwrap().index, ann.index);
    }
}

#[tokio::test]
async fn while_the_disk_is_full_nothing_is_admitted_or_read_and_the_store_can_be_closed() {
    let double = Arc::new(Double::default());
    let store = over(&double);
    let mut changes = store.health_changes();
    let mut ann = Log::of("ann");
    double.is_full_for(1, usize::MAX, false);
    assert!(recovering(&ann.append(&store, &notification(1)).await.unwrap_err()));
    changes.changed().await.unwrap();
    assert!(store.is_recovering() && recovering(&store.health().unwrap_err()));
    assert!(recovering(&store.permit(1).await.map(drop).unwrap_err()));
    assert!(recovering(&store.load(&ann.user).await.unwrap_err()));
    assert!(recovering(&store.page(&ann.id(), Offset::ZERO, Offset::MAX, EVERYTHING).await.unwrap_err()));
    assert!(recovering(&store.due(UnixMillis(0), 1).await.unwrap_err()));
    assert!(recovering(&ann.put_device(&store, "phone", Offset::ZERO).await.unwrap_err()));
    // It is tried again and again.
    let (_, left) = double.is_full_still_for();
    while double.is_full_still_for().1 > left - 2 {
        tokio::task::yield_now().await;
    }
    store.close().unwrap();
    assert_eq!(store.health(), Err(StoreError::Closed));
}

#[tokio::test]
async fn a_permit_that_waits_for_room_ends_when_the_disk_is_full() {
    let double = Arc::new(Double::default());
    let store = over(&double);
    let whole = store.permit(crate::limits::WRITER_QUEUE_BYTES_MAX as u64).await.unwrap();
    let mut waiting = Box::pin(store.permit(1));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    double.is_full_for(1, usize::MAX, false);
    let mut opened = store.opened();
    assert!(recovering(&Log::of("ann").put_device(&store, "", Offset::ZERO).await.unwrap_err()));
    assert!(recovering(&waiting.await.map(drop).unwrap_err()));
    double.is_full_for(0, 0, false);
    opened.changed().await.unwrap();
    drop(whole);
    store.permit(1).await.unwrap();
}

#[tokio::test]
async fn what_fails_the_reopening_or_a_closing_store_fails_for_good() {
    // Another store lies there: whoever put it there.
    let double = Arc::new(Double::default());
    let store = over(&double);
    double.rows.commit(vec![(Key::Epoch.encode(), Some(vec![7; 16]))]).unwrap();
    double.is_full_for(1, 0, false);
    let mut ann = Log::of("ann");
    assert!(recovering(&ann.append(&store, &notification(1)).await.unwrap_err()));
    assert!(matches!(store.failed().await, StoreError::Failed(why) if why.contains("opened again")));
    assert!(matches!(ann.put_device(&store, "", Offset::ZERO).await, Err(StoreError::Failed(_))));

    // A store that is being closed does not wait for room.
    let double = Arc::new(Double::default());
    let store = over(&double);
    let held = double.hold();
    let (_, answer) = Log::of("ann").stage(&store, &notification(1)).await.unwrap();
    double.begun(1).await;
    store.0.shared.close();
    double.is_full_for(1, 0, false);
    drop(held);
    assert!(matches!(answer.await.unwrap(), Err(StoreError::Failed(_))));
    assert!(matches!(store.close(), Err(StoreError::Failed(_))));
}

#[tokio::test]
async fn senders_are_refused_while_the_disk_is_nearly_full_and_deletions_are_not() {
    let folder = TempDir::new().unwrap();
    let store = open_sled(&folder);
    let mut ann = Log::of("ann");
    let first = ann.append(&store, &notification(10)).await.unwrap();
    assert!(config_at(folder.path()).path.join("ballast").exists());
    store.0.shared.spare_bytes.store(10, Ordering::Relaxed);
    assert_eq!(ann.append(&store, &notification(10)).await, Err(StoreError::Full));
    released(ann.delete(&store, first)).await;
    ann.put_device(&store, "phone", first).await.unwrap();
    // The next look finds room.
    while ann.append(&store, &notification(10)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_commit_that_does_not_end_shows_in_the_health_and_ends_the_process() {
    static ENDED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let end = || {
        ENDED.fetch_add(1, Ordering::SeqCst);
    };
    let millis = Duration::from_millis;
    let double = Arc::new(Double::default());
    let store =
        Store::open_watched(&double, Clock::system(), Watchdog { stuck_after: millis(20), grace: millis(20_000), end });
    let mut changes = store.health_changes();
    let mut ann = Log::of("ann");
    let held = double.hold();
    let (_, answer) = ann.stage(&store, &notification(1)).await.unwrap();
    changes.changed().await.unwrap();
    assert_eq!(store.health(), Err(StoreError::Stuck));
    // One that ends after all is forgiven.
    drop(held);
    answer.await.unwrap().unwrap();
    changes.changed().await.unwrap();
    assert_eq!(store.health(), Ok(()));
    store.close().unwrap();
    assert_eq!(ENDED.load(Ordering::SeqCst), 0);

    let store =
        Store::open_watched(&double, Clock::system(), Watchdog { stuck_after: millis(20), grace: millis(20), end });
    // Neither an idle store nor one that waits for room is stuck.
    double.is_full_for(1, 2, false);
    assert!(recovering(&ann.append(&store, &notification(1)).await.unwrap_err()));
    while store.is_recovering() {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(millis(60)).await;
    assert_eq!((store.health(), ENDED.load(Ordering::SeqCst)), (Ok(()), 0));
    let held = double.hold();
    let (_, answer) = ann.stage(&store, &notification(1)).await.unwrap();
    while ENDED.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    drop((held, answer));
}

#[tokio::test]
async fn a_commit_that_sleeps_over_an_error_is_woken_to_tell_it() {
    let double = Arc::new(Double::default());
    let millis = Duration::from_millis;
    let end = || unreachable!("the error is heard before that");
    let store =
        Store::open_watched(&double, Clock::system(), Watchdog { stuck_after: millis(60_000), grace: millis(50), end });
    let held = double.hold();
    let (_, answer) = Log::of("ann").stage(&store, &notification(1)).await.unwrap();
    double.fails.store(true, Ordering::SeqCst);
    assert!(matches!(answer.await.unwrap(), Err(StoreError::Failed(_))));
    drop(held);
}

/// Stages what joins a log, and waits until it is there.
async fn join(store: &Store, log: LogId, original: &Notification, remember: Option<UnixMillis>, count: u32) -> Offset {
    let mut permit = store.permit(original.accounted_bytes()).await.unwrap();
    let offset = store.assign(&mut permit, Offset::ZERO);
    let (done, answer) = oneshot::channel();
    let counters = Counters { count, bytes: u64::from(count), last: offset, lost: Offset::ZERO };
    store.stage(Op::Append {
        log,
        offset,
        notification: Arc::new(original.clone()),
        replaces: None,
        emptied: None,
        remember: remember.map(|until| (until, original.digest(), 3)),
        counters,
        permit,
        observer: Arc::<Observer>::default(),
        done: Some(done),
    });
    answer.await.unwrap().unwrap();
    offset
}

#[tokio::test]
async fn of_a_forgotten_user_no_row_is_left_and_others_keep_theirs() {
    let double = Arc::new(Double::default());
    let store = over(&double);
    // One's name is the beginning of the other's.
    for name in ["an", "ann"] {
        let log = LogId::User(user(name));
        let until = UnixMillis(NOW.as_millis() as u64 + 600_000);
        for (count, size) in [(1, 10), (2, 9000)] {
            join(&store, log.clone(), &notification(size), Some(until), count).await;
        }
        Log { counters: Counters { count: 2, bytes: 2, ..Counters::default() }, ..Log::of(name) }
            .put_device(&store, "phone", Offset::ZERO)
            .await
            .unwrap();
    }
    let names = |double: &Double| {
        let (mut found, mut rows) = (Vec::new(), 0);
        let (from, to) = super::embedded::keys::all();
        double
            .rows
            .range(&from, &to, &mut |key, _| {
                rows += 1;
                let text = String::from_utf8_lossy(key).into_owned();
                found.extend(text.contains("ann").then_some(text));
                Visit::Continue(())
            })
            .unwrap();
        (found, rows)
    };
    let (of_ann, before) = names(&double);
    // Counters, a device, two heads, three chunks, an expiry bucket, two ids and their ends.
    assert_eq!(of_ann.len(), 12, "{of_ann:?}");
    let (done, answer) = oneshot::channel();
    store.stage(Op::ForgetUser { user: user("ann"), hold: Hold::default(), done });
    answer.await.unwrap().unwrap();
    let (of_ann, after) = names(&double);
    assert_eq!((of_ann, after), (Vec::new(), before - 12));
    assert_eq!(store.load(&user("ann")).await.unwrap(), Mailbox::default());
    assert_eq!(store.load(&user("an")).await.unwrap().index.len(), 2);
    assert_eq!(store.totals(), Totals { count: 2, bytes: 2 });
}

#[tokio::test]
async fn an_id_is_forgotten_in_its_minute_unless_it_was_remembered_anew() {
    over_every_engine(async |store| {
        for log in [LogId::User(user("ann")), LogId::Broadcast] {
            let original = notification(10);
            let (first, second) = (UnixMillis(120_000), UnixMillis(240_000));
            join(&store, log.clone(), &original, Some(first), 1).await;
            let known = store.remembered(&log, &original.id, UnixMillis(119_999)).await.unwrap().unwrap();
            assert_eq!((known.digest, known.until, known.sessions), (original.digest(), first, 3));
            assert_eq!(store.remembered(&log, &original.id, first).await.unwrap(), None, "its time is over");
            // Sent again before it was swept: the sweep of the first minute finds it, and leaves it.
            let offset = join(&store, log.clone(), &original, Some(second), 2).await;
            let due = store.due_ids(first, 10).await.unwrap();
            assert_eq!(due, [DueId { minute: 2, log: log.clone(), id: original.id.clone() }]);
            store.stage(Op::ForgetId { due: due[0].clone(), now: first, done: None });
            Log::of("barrier").put_device(&store, "x", Offset::ZERO).await.unwrap();
            assert_eq!(store.due_ids(first, 10).await.unwrap(), []);
            assert_eq!(store.remembered(&log, &original.id, first).await.unwrap().unwrap().offset, offset);
            let due = store.due_ids(second, 10).await.unwrap();
            store.stage(Op::ForgetId { due: due[0].clone(), now: second, done: None });
            Log::of("barrier").put_device(&store, "x", Offset::ZERO).await.unwrap();
            assert_eq!(store.remembered(&log, &original.id, UnixMillis(0)).await.unwrap(), None);
            assert_eq!(store.due_ids(second, 10).await.unwrap(), []);
        }
    })
    .await;
}

/// Many records, one commit each, and a byte of sled's log flipped in the middle.
async fn flipped_in_the_middle(folder: &TempDir, on_corruption: OnCorruption) -> (Config, Log) {
    let config = Config { on_corruption: Some(on_corruption), ..config_at(folder.path()) };
    let store = open(&config);
    let mut ann = Log::of("ann");
    for _ in 0..200 {
        ann.append(&store, &notification(300)).await.unwrap();
    }
    store.close().unwrap();
    drop(store);
    let file = config.path.join("db");
    let mut bytes = fs::read(&file).unwrap();
    // Behind it lies room that was not written yet.
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[written / 2] ^= 0x10;
    fs::write(&file, &bytes).unwrap();
    (config, ann)
}

#[tokio::test]
async fn a_store_that_went_back_to_an_earlier_state_says_so_and_gives_no_offset_twice() {
    let folder = TempDir::new().unwrap();
    let (config, ann) = flipped_in_the_middle(&folder, OnCorruption::Quarantine).await;
    let place = super::tools::Place { path: config.path.clone(), engine: None };
    let report = super::tools::check(&place).unwrap();
    assert!(report.damaged > 0 && report.problems[0].what.contains("went back"), "{:?}", report.problems);
    let store = open(&config);
    assert!(store.lost_commits() > 50, "{}", store.lost_commits());
    let left = store.load(&ann.user).await.unwrap();
    assert!(left.index.len() < 200);
    let mut again = Log { user: ann.user.clone(), counters: left.counters, ..Log::of("ann") };
    assert!(again.append(&store, &notification(10)).await.unwrap() > ann.counters.last);
    store.close().unwrap();
    drop(store);
    assert_eq!(open(&config).lost_commits(), 0, "it is said once");

    let folder = TempDir::new().unwrap();
    let (config, _) = flipped_in_the_middle(&folder, OnCorruption::Refuse).await;
    let before = contents(&config.path);
    match Store::open(&config, Clock::system()).map(drop) {
        Err(OpenError::Corrupt { detail, .. }) => assert!(detail.contains("went back"), "{detail}"),
        other => panic!("{other:?}"),
    }
    assert!(contents(&config.path) == before, "the files are as they were");
}

#[tokio::test]
async fn what_a_loss_of_power_took_that_nobody_promised_to_keep_refuses_nothing() {
    for (durability, starts) in [(Durability::Process, true), (Durability::Power, false)] {
        let folder = TempDir::new().unwrap();
        let (config, _) = flipped_in_the_middle(&folder, OnCorruption::Refuse).await;
        let config = Config { durability, ..config };
        let path = config.path.clone();
        let seen = witness::Seen::of(&path).unwrap();
        let promised = durability == Durability::Power;
        let mut witness = witness::Witness::of(&path, seen.epoch, promised).booted(witness::boot() - 1000);
        witness.saw(seen.commits, seen.mark);
        match Store::open(&config, Clock::system()) {
            Ok(store) => assert!(starts && store.lost_commits() > 0),
            Err(error) => assert!(!starts, "{error}"),
        }
    }
}
