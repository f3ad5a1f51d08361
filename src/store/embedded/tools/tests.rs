//! The tools over stores that the writer filled: in memory, on sled, and with every kind of damage.

use std::{fs, io::BufReader, sync::Arc};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::{
    super::engine::{MemoryEngine, Write},
    check::{PROBLEMS_TOLD_MAX, check_rows},
    export::export_rows,
    import::{Stopped, import_rows},
    *,
};
use crate::{
    clock::Clock,
    store::{
        Config, Counters, DeviceRow, Done, Hold, LogObserver, MemberRow, Op, Place as Row, Store, StoreError,
        chunks_of,
        double::Double,
        embedded::{keys, record},
    },
    types::{
        CollapseKey, Device, LogId, Notification, NotificationId, Offset, Payload, Revocation, RevocationId,
        SubscriptionCause, TokenId, Topic, TypeName, UnixMillis, UserId,
    },
};

const NOW: UnixMillis = UnixMillis(1_769_852_100_000);

pub fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

fn topic(name: &str) -> Topic {
    Topic::parse(name).unwrap()
}

fn device(name: &str) -> Device {
    Device::parse(name).unwrap()
}

/// Whoever does not listen.
struct Nobody;

impl LogObserver for Nobody {
    fn applied(&self, _: Offset) {}
    fn failed(&self, _: &StoreError) {}
}

pub fn json(text: &str) -> Payload {
    Payload::Json(Bytes::from(text.to_owned()))
}

pub fn notification(payload: Payload) -> Notification {
    Notification {
        id: NotificationId::generate(),
        type_name: TypeName::parse("order").unwrap(),
        payload,
        from_user: Some(user("shop")),
        topic: None,
        kind: None,
        collapse_key: None,
        not_for: [].into(),
        accepted_at: NOW,
        expires_at: Some(UnixMillis(NOW.0 + 90_000)),
    }
}

/// A log as the hub keeps it.
pub struct Log {
    pub id: LogId,
    pub counters: Counters,
}

impl Log {
    pub fn of(id: LogId) -> Self {
        Self { id, counters: Counters::default() }
    }

    pub async fn append(
        &mut self,
        store: &Store,
        notification: Notification,
        replaces: Option<(Row, u64)>,
        remember: bool,
    ) -> Result<Row, StoreError> {
        let bytes = notification.accounted_bytes();
        let mut permit = store.permit(bytes).await?;
        let offset = store.assign(&mut permit, self.counters.last);
        let before = replaces.map_or(0, |(_, bytes)| bytes);
        self.counters.count += 1 - u32::from(replaces.is_some());
        self.counters.bytes = self.counters.bytes + bytes - before;
        self.counters.last = offset;
        let row = Row { offset, chunks: chunks_of(&notification) };
        let (done, answer) = oneshot::channel();
        store.stage(Op::Append {
            log: self.id.clone(),
            offset,
            remember: remember.then(|| (UnixMillis(NOW.0 + 600_000), notification.digest(), 3)),
            notification: Arc::new(notification),
            emptied: None,
            replaces: replaces.map(|(row, _)| row),
            counters: self.counters,
            permit,
            observer: Arc::new(Nobody),
            done: Some(done),
        });
        answer.await.unwrap().map(|()| row)
    }

    pub async fn delete(&mut self, store: &Store, row: Row, bytes: u64) {
        self.counters.count -= 1;
        self.counters.bytes -= bytes;
        let (done, answer) = oneshot::channel();
        store.stage(Op::Delete {
            log: self.id.clone(),
            emptied: Vec::new(),
            places: vec![row],
            counters: self.counters,
            hold: Hold::default(),
            done: Some(done),
        });
        answer.await.unwrap().unwrap();
    }
}

async fn done(store: &Store, op: impl FnOnce(Done) -> Op) {
    let (done, answer) = oneshot::channel();
    store.stage(op(done));
    answer.await.unwrap().unwrap();
}

/// Something of every kind: 6 pending notifications of ann, one of bob, 2 broadcasts, 2 of a topic that a device is in, 4
/// remembered ids, 2 revocations.
pub async fn fill(store: &Store) {
    let (mut ann, mut bob) = (Log::of(LogId::User(user("ann"))), Log::of(LogId::User(user("bob"))));
    let row = DeviceRow { created_at: UnixMillis(5), last_seen: UnixMillis(6), ..DeviceRow::default() };
    for name in ["phone", "tablet", ""] {
        done(store, |done| Op::PutDevice {
            user: user("ann"),
            device: device(name),
            row,
            counters: ann.counters,
            hold: Hold::default(),
            done,
        })
        .await;
    }
    for payload in [json("{\"a\": 1.0, \"a\": 2}"), json("{\n1}"), Payload::Binary(vec![7; 9000].into()), json("null")]
    {
        let payload = if payload == json("{\n1}") { json("[\n 1 ]") } else { payload };
        ann.append(store, notification(payload), None, false).await.unwrap();
    }
    let mut second = notification(json("2"));
    second.collapse_key = Some(CollapseKey::parse("state").unwrap());
    second.id = NotificationId::parse("ann's own").unwrap();
    let first = Notification { payload: Payload::Binary(vec![1; 5000].into()), ..second.clone() };
    let bytes = first.accounted_bytes();
    let replaced = ann.append(store, first, None, false).await.unwrap();
    ann.append(store, second, Some((replaced, bytes)), true).await.unwrap();
    let mut for_ever = notification(json("\"no end\""));
    for_ever.expires_at = None;
    let last = ann.append(store, for_ever, None, false).await.unwrap();
    let cursor = DeviceRow { cursor: last.offset, broadcast: last.offset, began: Offset::new(1), ..row };
    store.stage(Op::Cursor { user: user("ann"), device: device("phone"), row: cursor, hold: Hold::default() });
    done(store, |done| Op::RemoveDevice {
        user: user("ann"),
        device: device("tablet"),
        at: UnixMillis(9),
        unremembered: Vec::new(),
        topics: vec![topic("left")],
        hold: Hold::default(),
        done: Some(done),
    })
    .await;
    for (name, cause) in [("news", SubscriptionCause::Client), ("left", SubscriptionCause::Token)] {
        let row = MemberRow { cursor: Offset::new(7), began: Offset::new(6), cause };
        let (user, device, topic) = (user("ann"), device("phone"), topic(name));
        let put = |done| Op::PutMember { user, device, topic, row, hold: Hold::default(), done: Some(done) };
        done(store, put).await;
    }
    let row = MemberRow { cursor: last.offset, began: Offset::new(6), cause: SubscriptionCause::Caller };
    let (phone, hold) = (device("phone"), Hold::default());
    store.stage(Op::PutMember { user: user("ann"), device: phone, topic: topic("news"), row, hold, done: None });
    done(store, |done| Op::RemoveMember {
        user: user("ann"),
        device: device("phone"),
        topic: topic("left"),
        hold: Hold::default(),
        done: Some(done),
    })
    .await;
    let large = notification(json(&format!("\"{}\"", "x".repeat(10_000))));
    let bytes = large.accounted_bytes();
    let gone = bob.append(store, large, None, true).await.unwrap();
    bob.append(store, notification(json("1")), None, false).await.unwrap();
    bob.delete(store, gone, bytes).await;
    let mut all = Log::of(LogId::Broadcast);
    for payload in [json("\"to all\""), Payload::Binary(vec![3; 6000].into())] {
        let mut broadcast = notification(payload);
        broadcast.not_for = [user("eve"), user("bob")].into();
        broadcast.id = NotificationId::parse(&format!("b{}", all.counters.count)).unwrap();
        let remember = all.counters.count == 0;
        all.append(store, broadcast, None, remember).await.unwrap();
    }
    let mut news = Log::of(LogId::Topic(topic("news")));
    for payload in [json("1"), Payload::Binary(vec![4; 5000].into())] {
        let published = Notification { topic: Some(topic("news")), ..notification(payload) };
        let remember = news.counters.count == 0;
        news.append(store, published, None, remember).await.unwrap();
    }
    let revoked = vec![
        (RevocationId::of_token(TokenId::of("a jti")), Revocation::whole(UnixMillis(u64::MAX / 2))),
        (
            RevocationId::of_user(&user("eve")),
            Revocation { issued_before: UnixMillis(7), expires_at: UnixMillis(1_700_000_000_000) },
        ),
    ];
    done(store, |done| Op::Revoke { revoked, done }).await;
}

/// A filled store in memory, closed.
async fn filled() -> Arc<Double> {
    let double = Arc::new(Double::default());
    let store = Store::open_double(&double, Clock::system());
    fill(&store).await;
    store.close().unwrap();
    double
}

fn sled_at(folder: &TempDir) -> Config {
    Config { path: folder.path().join("store"), ..Config::default() }
}

/// A filled store on sled, closed.
async fn filled_sled(folder: &TempDir) -> Place {
    let config = sled_at(folder);
    let store = Store::open(&config, Clock::system()).unwrap();
    fill(&store).await;
    store.close().unwrap();
    drop(store);
    Place { path: config.path, engine: None }
}

fn rows(engine: &dyn Engine) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    walk::each(engine, keys::all(), |row| {
        rows.push(row);
        Ok::<_, EngineError>(())
    })
    .unwrap();
    rows
}

fn rows_at(place: &Place) -> Vec<(Vec<u8>, Vec<u8>)> {
    place.with_engine(|engine| Ok(rows(&**engine))).unwrap()
}

fn checked(engine: &dyn Engine) -> Report {
    check_rows(engine, &OwnRows::read(engine).unwrap()).unwrap()
}

fn own(engine: &dyn Engine) -> Own {
    Place { path: "memory".into(), engine: None }.own_rows(engine, false).unwrap()
}

fn exported(engine: &dyn Engine, only: Option<&UserId>) -> String {
    let mut out = Vec::new();
    export_rows(engine, &own(engine), only, NOW, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn export_of(place: &Place) -> String {
    let mut out = Vec::new();
    assert_eq!(export(place, None, NOW, &mut out).unwrap().unreadable, 0);
    String::from_utf8(out).unwrap()
}

fn refused(text: &str) -> String {
    match import_rows(&MemoryEngine::default(), &mut text.as_bytes()) {
        Err(Stopped::Told(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_store_that_the_writer_filled_is_whole() {
    let double = filled().await;
    let report = checked(&double);
    assert_eq!(report.problems, []);
    assert_eq!((report.users, report.devices, report.ids, report.revocations), (2, 2, 4, 2));
    assert_eq!((report.pending.count, report.broadcasts, report.topics), (11, 2, 2));
    assert_eq!((report.members, report.chunks), (1, 7));
    assert_eq!(report.rows, rows(&double).len() as u64);
}

/// Changes made to a filled store, and what is said of them.
type Damage = (&'static str, fn(&dyn Engine) -> Vec<Write>);

/// The first row whose key is so.
fn first(engine: &dyn Engine, wanted: fn(&Key) -> bool) -> (Vec<u8>, Vec<u8>) {
    rows(engine).into_iter().find(|(key, _)| Key::decode(key).is_some_and(|key| wanted(&key))).unwrap()
}

fn without(engine: &dyn Engine, wanted: fn(&Key) -> bool) -> Vec<Write> {
    vec![(first(engine, wanted).0, None)]
}

/// The same row with its last byte changed or missing.
fn spoilt(engine: &dyn Engine, wanted: fn(&Key) -> bool) -> Vec<Write> {
    let (key, mut row) = first(engine, wanted);
    row.pop();
    vec![(key, Some(row))]
}

#[tokio::test]
async fn every_kind_of_damage_is_found_and_placed() {
    let damages: [Damage; 22] = [
        ("the format version", |_| vec![(Key::Format.encode(), None)]),
        ("the store epoch", |_| vec![(Key::Epoch.encode(), Some(vec![9]))]),
        ("the offset reservation", |_| vec![(Key::Mark.encode(), None)]),
        ("the totals", |_| vec![(Key::Totals.encode(), None)]),
        ("the totals are 8", |_| {
            vec![(Key::Totals.encode(), Some(rows::encode_totals(&Totals { count: 8, bytes: 1 })))]
        }),
        ("a key of 2 bytes and kind 0x77", |_| vec![(vec![0x77, 1], Some(vec![1]))]),
        ("a row that", |engine| spoilt(engine, |key| matches!(key, Key::Counters(_)))),
        ("a row that", |engine| spoilt(engine, |key| matches!(key, Key::Device(..)))),
        ("a row that", |engine| spoilt(engine, |key| matches!(key, Key::Forgotten(..)))),
        ("a head row of another length", |engine| spoilt(engine, |key| matches!(key, Key::Head(..)))),
        ("a row that", |engine| spoilt(engine, |key| matches!(key, Key::Id(..)))),
        ("its counters say 6", |engine| without(engine, |key| matches!(key, Key::Head(LogId::User(_), _)))),
        ("chunks are not all there", |engine| without(engine, |key| matches!(key, Key::Chunk(..)))),
        ("belongs to no notification", |_| {
            vec![(Key::Chunk(LogId::User(user("ann")), Offset::new(3), 0).encode(), Some(vec![1]))]
        }),
        ("its expiry bucket is missing", |engine| without(engine, |key| matches!(key, Key::Expiry(..)))),
        ("the row of its end is missing", |engine| without(engine, |key| matches!(key, Key::IdEnd(..)))),
        ("an expiry bucket that holds", |engine| {
            let (key, _) = first(engine, |key| matches!(key, Key::Expiry(..)));
            vec![(key, Some(vec![1]))]
        }),
        ("the end of an id that holds", |engine| {
            let (key, _) = first(engine, |key| matches!(key, Key::IdEnd(..)));
            vec![(key, Some(vec![1]))]
        }),
        ("there are 6 of", |_| {
            let few = Counters { count: 5, bytes: 5, last: Offset::new(5), lost: Offset::ZERO };
            vec![(Key::Counters(LogId::User(user("ann"))).encode(), Some(rows::encode_counters(&few)))]
        }),
        ("was the last offset", |engine| {
            let key = Key::Counters(LogId::User(user("ann"))).encode();
            let row = engine.get(&key).unwrap().unwrap();
            let low = Counters { last: Offset::new(5), ..rows::decode_counters(&row).unwrap() };
            vec![(key, Some(rows::encode_counters(&low)))]
        }),
        ("1 notifications of 2 bytes are missing", |_| {
            let none = Counters { count: 1, bytes: 2, last: Offset::new(5), lost: Offset::ZERO };
            vec![(Key::Counters(LogId::User(user("eve"))).encode(), Some(rows::encode_counters(&none)))]
        }),
        ("is not below the offset reservation 7", |_| vec![(Key::Mark.encode(), Some(rows::encode_mark(7)))]),
    ];
    let double = filled().await;
    for (said, damage) in damages {
        let engine = MemoryEngine::default();
        engine.commit(rows(&double).into_iter().map(|(key, row)| (key, Some(row))).collect()).unwrap();
        engine.commit(damage(&engine)).unwrap();
        let report = checked(&engine);
        assert!(report.problems.iter().any(|one| one.what.contains(said)), "{said}: {:?}", report.problems);
        assert_eq!(report.damaged, report.problems.len() as u64);
    }
}

#[tokio::test]
async fn of_many_problems_some_are_told_and_all_are_counted() {
    let double = filled().await;
    let orphan = |index| (Key::Chunk(LogId::Broadcast, Offset::new(3), index).encode(), Some(vec![1]));
    Engine::commit(&double, (0..200).map(orphan).collect()).unwrap();
    let report = checked(&double);
    assert_eq!((report.damaged, report.problems.len()), (200, PROBLEMS_TOLD_MAX));
    let (log, offset) = (report.problems[0].log.clone(), report.problems[0].offset);
    assert_eq!((log, offset), (Some(LogId::Broadcast), Some(Offset::new(3))));
}

#[tokio::test]
async fn an_export_is_read_back_into_the_same_store_whatever_the_engine() {
    let double = filled().await;
    let text = exported(&double, None);
    assert!(text.contains(r#""data":{"a": 1.0, "a": 2}}"#), "{text}");
    assert!(text.contains(r#""dataText":"[\n 1 ]""#), "{text}");
    assert!(text.contains(r#""expiresAt":null"#) && text.contains(r#""notFor":["eve","bob"]"#), "{text}");

    let folder = TempDir::new().unwrap();
    let place = Place { path: folder.path().join("a/store"), engine: None };
    let lines = text.lines().count() as u64;
    assert_eq!(import(&place, &mut text.as_bytes()).unwrap(), lines - 2);
    assert_eq!(check(&place).unwrap().problems, []);
    let again = export_of(&place);
    assert_eq!(again.replacen("\"sled\"", "\"double\"", 1), text);

    let memory = MemoryEngine::default();
    import_rows(&memory, &mut BufReader::with_capacity(7, again.as_bytes())).unwrap();
    // How many commits it took is each store's own.
    let but_commits = |engine: &dyn Engine| rows(engine).into_iter().filter(|(key, _)| *key != Key::Commits.encode());
    assert!(but_commits(&memory).eq(but_commits(&double)), "every row, those that follow from others too");
    assert_eq!(fs::read_dir(folder.path().join("a")).unwrap().count(), 1, "nothing is left beside it");
}

#[tokio::test]
async fn an_emptied_store_takes_its_own_export_and_did_not_go_back() {
    let folder = TempDir::new().unwrap();
    let config = Config { on_corruption: Some(crate::store::OnCorruption::Refuse), ..sled_at(&folder) };
    let place = Place { path: config.path.clone(), engine: None };
    let store = Store::open(&config, Clock::system()).unwrap();
    let mut ann = Log { id: LogId::User(user("ann")), counters: Counters::default() };
    for _ in 0..20 {
        ann.append(&store, notification(json("1")), None, false).await.unwrap();
    }
    store.close().unwrap();
    drop(store);
    let text = export_of(&place);
    let store = Store::open(&config, Clock::system()).unwrap();
    let (done, written) = tokio::sync::oneshot::channel();
    store.stage(Op::ForgetUser { user: user("ann"), hold: Hold::default(), done });
    written.await.unwrap().unwrap();
    store.close().unwrap();
    drop(store);
    import(&place, &mut text.as_bytes()).unwrap();
    assert_eq!(check(&place).unwrap().problems, []);
    let store = Store::open(&config, Clock::system()).unwrap();
    assert_eq!((store.lost_commits(), store.load(&user("ann")).await.unwrap().index.len()), (0, 20));
    store.close().unwrap();
}

#[tokio::test]
async fn the_store_that_was_imported_goes_on_where_the_other_stood() {
    let double = filled().await;
    let folder = TempDir::new().unwrap();
    let config = sled_at(&folder);
    let place = Place { path: config.path.clone(), engine: None };
    import(&place, &mut exported(&double, None).as_bytes()).unwrap();
    let (before, store) = (own(&double), Store::open(&config, Clock::system()).unwrap());
    assert_eq!(store.epoch(), before.epoch);
    let mailbox = store.load(&user("ann")).await.unwrap();
    assert_eq!((mailbox.damaged, mailbox.index.len()), (None, 6));
    let mut ann = Log { id: LogId::User(user("ann")), counters: mailbox.counters };
    let row = ann.append(&store, notification(json("1")), None, false).await.unwrap();
    assert!(row.offset.get() >= before.mark);
    store.close().unwrap();
}

#[tokio::test]
async fn one_user_is_exported_alone_and_makes_no_store() {
    let double = filled().await;
    let text = exported(&double, Some(&user("bob")));
    let kinds: Vec<_> = text.lines().map(|line| line.split('"').nth(1).unwrap()).collect();
    assert_eq!(kinds, ["export", "counters", "notification", "id", "end"]);
    assert!(!text.contains("ann"), "{text}");
    assert!(refused(&text).contains("line 1: an export of one user"));
}

#[tokio::test]
async fn an_export_that_is_cut_off_or_changed_is_refused_with_its_line() {
    let double = filled().await;
    let text = exported(&double, None);
    let lines: Vec<_> = text.lines().collect();
    let last = lines.len();
    let joined = |lines: &[&str]| lines.join("\n") + "\n";
    assert!(refused("").starts_with("line 1: an export begins with"));
    assert!(refused(&joined(&lines[1..])).starts_with("line 1: an export begins with"));
    let said = refused(&joined(&lines[..last - 1]));
    assert!(said.starts_with(&format!("line {last}: the export is cut off")), "{said}");
    let said = refused(&text[..text.len() - 9]);
    assert!(said.starts_with(&format!("line {last}: is no line of an export, or is cut off")), "{said}");
    let said = refused(&joined(&[&lines[..4], &lines[5..]].concat()));
    assert!(said.ends_with("the last line counts other rows than there are"), "{said}");
    let said = refused(&(text.clone() + lines[1] + "\n"));
    assert!(said.starts_with(&format!("line {}: there is more", last + 1)), "{said}");
    let said = refused(&text.replacen("\"lost\":0", "\"lost\":0,\"new\":0", 1));
    assert!(said.starts_with("line 2: ") && said.contains("unknown field `new`"), "{said}");
    assert!(refused(&text.replacen("\"version\":1", "\"version\":2", 1)).starts_with("line 1: an export of version 2"));
    assert!(refused(&text.replacen("\"storeFormat\":3", "\"storeFormat\":9", 1)).contains("format version 9"));
    let at = text.find("\"offset\":").unwrap() + 9;
    let said = refused(&format!("{}9007199254740990{}", &text[..at], &text[at + 16..]));
    assert!(said.contains("the offset 9007199254740990 is not below the mark"), "{said}");
    let twice = text.lines().position(|line| line.contains("\"notification\"")).unwrap();
    let mut doubled = lines.clone();
    doubled[twice + 1] = lines[twice];
    assert!(refused(&joined(&doubled)).ends_with("two notifications have the same place"));
}

#[tokio::test]
async fn what_cannot_be_read_is_left_out_of_an_export_and_counted() {
    let double = filled().await;
    Engine::commit(&double, without(&double, |key| matches!(key, Key::Chunk(..)))).unwrap();
    let mut out = Vec::new();
    let exported = export_rows(&double, &own(&double), None, NOW, &mut out).unwrap();
    assert_eq!(exported.unreadable, 1);
    let memory = MemoryEngine::default();
    import_rows(&memory, &mut out.as_slice()).unwrap();
    let report = checked(&memory);
    assert_eq!((report.problems, report.pending.count), (Vec::new(), 10), "what was left makes a whole store");
}

#[tokio::test]
async fn looking_at_a_store_changes_no_row_and_compacting_keeps_them_all() {
    let folder = TempDir::new().unwrap();
    let place = filled_sled(&folder).await;
    let before = rows_at(&place);
    assert_eq!(check(&place).unwrap().problems, []);
    let found = stats(&place).unwrap();
    assert_eq!((found.users, found.devices, found.forgotten, found.ids, found.revocations), (2, 2, 1, 4, 2));
    assert_eq!((found.notifications.count, found.broadcasts.count), (7, 2));
    assert_eq!((found.topics.count, found.members), (2, 1));
    assert_eq!((found.oldest, found.newest), (Some(NOW), Some(NOW)));
    let names = |top: &[Mailbox]| top.iter().map(|one| (one.user.to_string(), one.count)).collect::<Vec<_>>();
    assert_eq!(names(&found.by_count), [("ann".to_owned(), 6), ("bob".to_owned(), 1)]);
    assert_eq!(names(&found.by_bytes), [("ann".to_owned(), 6), ("bob".to_owned(), 1)]);
    export_of(&place);
    assert_eq!(rows_at(&place), before);

    // A backup of the operator's in the folder stays where it is.
    fs::create_dir(place.path.join("backup-1")).unwrap();
    fs::write(place.path.join("backup-1/db"), "mine").unwrap();
    let done = compact(&place).unwrap();
    assert_eq!(done.rows, before.len() as u64);
    assert_eq!(rows_at(&place), before);
    assert_eq!(fs::read(place.path.join("backup-1/db")).unwrap(), b"mine");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    let store = Store::open(&sled_at(&folder), Clock::system()).unwrap();
    assert_eq!(store.totals().count, 11);
    store.close().unwrap();
}

#[tokio::test]
async fn what_an_interrupted_compaction_left_is_made_anew_and_nothing_else_is_removed() {
    let folder = TempDir::new().unwrap();
    let place = filled_sled(&folder).await;
    let beside = folder.path().join("store.compact");
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("unfinished"), "").unwrap();
    fs::write(beside.join("db"), "half").unwrap();
    compact(&place).unwrap();
    assert!(!beside.exists());
    // Without the mark it may be the old store, whose removal was interrupted.
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("db"), "the old one").unwrap();
    let said = compact(&place).unwrap_err().to_string();
    assert!(said.contains("nothing has changed") && said.contains("store.compact"), "{said}");
    assert_eq!(fs::read(beside.join("db")).unwrap(), b"the old one");
    assert_eq!(check(&place).unwrap().problems, []);
}

#[tokio::test]
async fn a_store_that_is_in_use_missing_or_not_empty_is_refused_by_name() {
    let folder = TempDir::new().unwrap();
    let config = sled_at(&folder);
    let place = Place { path: config.path.clone(), engine: None };
    let said = check(&place).unwrap_err().to_string();
    assert!(said.starts_with(&format!("there is no store at {}", config.path.display())), "{said}");
    assert!(!config.path.exists(), "nothing was made");

    // One that has no rows but its own is as good as none.
    Store::open(&config, Clock::system()).unwrap().close().unwrap();
    let double = filled().await;
    let text = exported(&double, None);
    import(&place, &mut text.as_bytes()).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    let said = import(&place, &mut text.as_bytes()).unwrap_err().to_string();
    assert!(said.contains("is not empty: a sled store of"), "{said}");
    let other = Place { path: folder.path().join("other"), engine: None };
    fs::create_dir(&other.path).unwrap();
    import(&other, &mut text.as_bytes()).unwrap();
    assert_eq!(check(&other).unwrap().problems, []);
    fs::remove_dir_all(&other.path).unwrap();
    fs::create_dir(&other.path).unwrap();
    fs::write(other.path.join("notes"), "mine").unwrap();
    let said = import(&other, &mut text.as_bytes()).unwrap_err().to_string();
    assert!(said.contains("is not empty: notes is there"), "{said}");

    let store = Store::open(&config, Clock::system()).unwrap();
    for refused in [
        check(&place).map(|_| ()),
        stats(&place).map(|_| ()),
        export(&place, None, NOW, &mut Vec::new()).map(|_| ()),
        compact(&place).map(|_| ()),
        import(&place, &mut text.as_bytes()).map(|_| ()),
    ] {
        let said = refused.unwrap_err().to_string();
        assert!(said.contains("is in use by another process"), "{said}");
    }
    store.close().unwrap();
}

#[tokio::test]
async fn an_older_format_is_not_read_by_what_changes_nothing_and_a_newer_one_by_nobody() {
    let folder = TempDir::new().unwrap();
    let place = filled_sled(&folder).await;
    let set = |version| {
        let row = vec![(Key::Format.encode(), Some(rows::encode_format(version)))];
        place.with_engine(|engine| engine.commit(row).map_err(|error| ToolError::engine(&place.path, error))).unwrap();
    };
    set(rows::FORMAT - 1);
    for refused in [check(&place).map(|_| ()), stats(&place).map(|_| ())] {
        let said = refused.unwrap_err().to_string();
        assert!(said.contains("format version 2, and this changes nothing"), "{said}");
    }
    export_of(&place);
    assert_eq!(check(&place).unwrap().problems, []);
    set(rows::FORMAT + 1);
    for refused in [check(&place).map(|_| ()), compact(&place).map(|_| ())] {
        let said = refused.unwrap_err().to_string();
        assert!(said.contains("has format version 4, and this build reads format version 3"), "{said}");
    }
}

#[test]
fn records_of_chunks_are_among_what_is_filled() {
    let (_, chunks) = record::encode(&notification(Payload::Binary(vec![7; 9000].into())), false);
    assert_eq!(chunks.len(), 3, "or the tests above would not see chunks");
}
