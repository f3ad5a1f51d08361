//! What is read, page by page. Each function is one job of a reader.
//!
//! Rule: a range is not a snapshot, for commits pass between its steps. So a record whose chunks are not all there is
//! looked up again before it is called damaged: it may have been deleted in between.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::{
    engine::{Engine, EngineError},
    keys::{self, Key, KeyRange},
    record::{self, Head, Malformed},
    rows,
};
use crate::{
    store::{Counters, DeviceRow, Due, DueId, IndexEntry, MemberRow, Page, PageLimit, Remembered},
    types::{Device, LogId, Notification, NotificationId, Offset, Revocation, RevocationId, Topic, UnixMillis, UserId},
};

/// The head rows that are read at once.
const HEADS_AT_ONCE: usize = 64;

/// The head rows of a mailbox that one job reads: about 2 MiB where each holds as much as it can.
const INDEX_ROWS_AT_ONCE: usize = 512;

type Row = (Vec<u8>, Vec<u8>);

fn rows_of(engine: &dyn Engine, range: &KeyRange, limit: usize) -> Result<Vec<Row>, EngineError> {
    let mut rows = Vec::new();
    engine.range(&range.0, &range.1, &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        if rows.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(rows)
}

/// What a user's small rows say.
pub struct Profile {
    /// `None`: there is no row.
    pub counters: Option<Counters>,
    /// His devices.
    pub devices: Vec<(Device, DeviceRow)>,
    /// Devices that he had.
    pub forgotten: Vec<(Device, UnixMillis)>,
    /// The durable topics of his devices.
    pub members: Vec<(Device, Topic, MemberRow)>,
    /// Rows that cannot be read.
    pub unreadable: usize,
}

/// A user's counters and devices.
pub fn profile(engine: &dyn Engine, user: &UserId) -> Result<Profile, EngineError> {
    let mut unreadable = 0;
    let mut readable = |ok: bool| unreadable += usize::from(!ok);
    let counters = counters(engine, &LogId::User(user.clone()))?;
    readable(!matches!(counters, Some(Err(_))));
    let mut devices = Vec::new();
    for (key, value) in rows_of(engine, &keys::devices(user), usize::MAX)? {
        match (Key::decode(&key), rows::decode_device(&value)) {
            (Some(Key::Device(_, device)), Ok(row)) => devices.push((device, row)),
            _ => readable(false),
        }
    }
    let mut forgotten = Vec::new();
    for (key, value) in rows_of(engine, &keys::forgotten(user), usize::MAX)? {
        // One that cannot be read costs a device that returns the word that it lacks something.
        if let (Some(Key::Forgotten(_, device)), Ok(at)) = (Key::decode(&key), rows::decode_forgotten(&value)) {
            forgotten.push((device, at));
        }
    }
    let mut members = Vec::new();
    for (key, value) in rows_of(engine, &keys::members(user), usize::MAX)? {
        match (Key::decode(&key), rows::decode_member(&value)) {
            (Some(Key::Member(_, device, topic)), Ok(row)) => members.push((device, topic, row)),
            _ => readable(false),
        }
    }
    Ok(Profile { counters: counters.and_then(Result::ok), devices, forgotten, members, unreadable })
}

/// A log's counters; `None`: there is no row.
pub fn counters(engine: &dyn Engine, log: &LogId) -> Result<Option<Result<Counters, Malformed>>, EngineError> {
    let row = engine.get(&Key::Counters(log.clone()).encode())?;
    Ok(row.as_deref().map(rows::decode_counters))
}

/// What a caller's own id stands for at `now`.
pub fn remembered(
    engine: &dyn Engine,
    log: &LogId,
    id: &NotificationId,
    now: UnixMillis,
) -> Result<Option<Remembered>, EngineError> {
    let row = engine.get(&Key::Id(log.clone(), id.clone()).encode())?;
    // One that cannot be read stands for nothing.
    Ok(row.and_then(|row| rows::decode_remembered(&row).ok()).filter(|id| id.until > now))
}

/// The keys of all rows of a user.
pub fn keys_of(engine: &dyn Engine, user: &UserId) -> Result<Vec<Vec<u8>>, EngineError> {
    let log = LogId::User(user.clone());
    let mut keys = vec![Key::Counters(log.clone()).encode()];
    for range in [keys::devices(user), keys::forgotten(user), keys::members(user)] {
        keys.extend(rows_of(engine, &range, usize::MAX)?.into_iter().map(|(key, _)| key));
    }
    let (from, to) = keys::heads(&log, Offset::ZERO, Offset::MAX);
    engine.range(&from, &to, &mut |key, value| {
        if let Ok((head, _)) = record::decode_head(value) {
            keys.push(Key::Expiry(keys::expiry_minute(head.expires_at), log.clone()).encode());
        }
        keys.push(key.to_vec());
        ControlFlow::Continue(())
    })?;
    let (from, to) = keys::all_chunks(&log);
    engine.range(&from, &to, &mut |key, _| {
        keys.push(key.to_vec());
        ControlFlow::Continue(())
    })?;
    for (key, value) in rows_of(engine, &keys::ids(&log), usize::MAX)? {
        if let (Some(Key::Id(_, id)), Ok(remembered)) = (Key::decode(&key), rows::decode_remembered(&value)) {
            keys.push(Key::IdEnd(keys::expiry_minute(remembered.until), log.clone(), id).encode());
        }
        keys.push(key);
    }
    Ok(keys)
}

/// Devices of all users, from behind `after` on; at most `max`.
pub fn devices_after(
    engine: &dyn Engine,
    after: Option<&(UserId, Device)>,
    max: usize,
) -> Result<Vec<(UserId, Device, DeviceRow)>, EngineError> {
    let after = after.map(|(user, device)| Key::Device(user.clone(), device.clone()));
    let mut devices = Vec::new();
    for (key, value) in rows_of(engine, &keys::all_devices(after.as_ref()), max)? {
        if let (Some(Key::Device(user, device)), Ok(row)) = (Key::decode(&key), rows::decode_device(&value)) {
            devices.push((user, device, row));
        }
    }
    Ok(devices)
}

/// The topics that something is kept of, by name, from behind `after` on; at most `max`.
pub fn topics_after(
    engine: &dyn Engine,
    prefix: &str,
    after: Option<&Topic>,
    max: usize,
) -> Result<Vec<(Topic, Counters)>, EngineError> {
    let (from, to) = keys::topic_counters(prefix, after);
    let mut found = Vec::new();
    engine.range(&from, &to, &mut |key, value| {
        if let (Some(Key::Counters(LogId::Topic(topic))), Ok(counters)) =
            (Key::decode(key), rows::decode_counters(value))
            && counters.count > 0
        {
            found.push((topic, counters));
        }
        if found.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(found)
}

/// A piece of a log's index.
pub struct IndexPage {
    /// By offset.
    pub entries: Vec<IndexEntry>,
    /// Rows that cannot be read.
    pub unreadable: usize,
    /// The offset to go on after; `None`: that was all.
    pub next: Option<Offset>,
}

/// The index of a log after `after`, in part.
pub fn index(engine: &dyn Engine, log: &LogId, after: Offset) -> Result<IndexPage, EngineError> {
    let mut page = IndexPage { entries: Vec::new(), unreadable: 0, next: None };
    let (from, to) = keys::heads(log, after, Offset::MAX);
    let mut seen = 0;
    engine.range(&from, &to, &mut |key, value| {
        seen += 1;
        match (Key::decode(key), record::decode_head(value)) {
            (Some(Key::Head(_, offset)), Ok((head, _))) => {
                page.entries.push(head.entry(offset));
                page.next = Some(offset);
            }
            _ => page.unreadable += 1,
        }
        // A row that cannot be read gives no offset to go on after.
        let enough = seen >= INDEX_ROWS_AT_ONCE && page.next.is_some();
        if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if seen < INDEX_ROWS_AT_ONCE {
        page.next = None;
    }
    Ok(page)
}

/// A piece of a log: offsets in (`after`, `upto`].
pub fn page(
    engine: &dyn Engine,
    log: &LogId,
    after: Offset,
    upto: Offset,
    limit: PageLimit,
) -> Result<Page, EngineError> {
    let (mut page, mut bytes, mut after) = (Page::default(), 0, after);
    while after < upto {
        let wanted = limit.records.saturating_sub(page.records.len()).clamp(1, HEADS_AT_ONCE);
        let heads = rows_of(engine, &keys::heads(log, after, upto), wanted)?;
        let last = heads.len() < wanted;
        for (key, row) in heads {
            let Some(Key::Head(_, offset)) = Key::decode(&key) else {
                return Err(EngineError::Corrupt("a key in a log that is none".into()));
            };
            if !page.records.is_empty() {
                let length = record::decode_head(&row).map_or(0, |(head, _)| head.length as usize);
                if page.records.len() >= limit.records || bytes + length > limit.bytes {
                    return Ok(page);
                }
            }
            match fetch(engine, log, offset, row)? {
                Fetched::Record(length, notification) => {
                    bytes += length;
                    page.records.push((offset, notification));
                }
                Fetched::Gone => {}
                Fetched::Damaged(why) => {
                    tracing::error!(%offset, why, "a stored notification cannot be read and is passed over");
                    page.damaged.push(offset);
                }
            }
            after = offset;
        }
        if last {
            break;
        }
    }
    page.complete = true;
    Ok(page)
}

enum Fetched {
    Record(usize, Notification),
    Gone,
    Damaged(String),
}

/// Reads the record that a head row leads to; looks twice before it says that it is damaged.
fn fetch(engine: &dyn Engine, log: &LogId, offset: Offset, row: Vec<u8>) -> Result<Fetched, EngineError> {
    match assemble(engine, log, offset, row)? {
        Fetched::Damaged(_) => match engine.get(&Key::Head(log.clone(), offset).encode())? {
            Some(row) => assemble(engine, log, offset, row),
            None => Ok(Fetched::Gone),
        },
        fetched => Ok(fetched),
    }
}

/// The record that a head row leads to, or why it cannot be read. For a store that nobody changes meanwhile.
pub fn record(
    engine: &dyn Engine,
    log: &LogId,
    offset: Offset,
    row: Vec<u8>,
) -> Result<Result<Notification, String>, EngineError> {
    Ok(match assemble(engine, log, offset, row)? {
        Fetched::Record(_, notification) => Ok(notification),
        Fetched::Damaged(why) => Err(why),
        Fetched::Gone => Err("it is gone".into()),
    })
}

fn assemble(engine: &dyn Engine, log: &LogId, offset: Offset, row: Vec<u8>) -> Result<Fetched, EngineError> {
    let (head, inline) = match record::decode_head(&row) {
        Ok((head, inline)) => (head, inline.map(<[u8]>::len)),
        Err(malformed) => return Ok(Fetched::Damaged(malformed.to_string())),
    };
    let record = match inline {
        Some(length) => {
            let row = Bytes::from(row);
            row.slice(row.len() - length..)
        }
        None => match chunks(engine, log, offset, &head)? {
            Some(record) => record,
            None => return Ok(Fetched::Damaged(format!("its {} chunks are not all there", head.chunks))),
        },
    };
    let length = head.length as usize;
    Ok(match record::decode_record(head, &record) {
        Ok(notification) => Fetched::Record(length, notification),
        Err(malformed) => Fetched::Damaged(malformed.to_string()),
    })
}

/// Puts a record's chunks together; `None` where one is missing.
fn chunks(engine: &dyn Engine, log: &LogId, offset: Offset, head: &Head) -> Result<Option<Bytes>, EngineError> {
    let (from, to) = keys::chunks(log, offset);
    let (mut record, mut found) = (Vec::new(), 0u32);
    engine.range(&from, &to, &mut |key, value| {
        let in_order = key.ends_with(&(found as u16).to_be_bytes());
        record.extend_from_slice(value);
        found += 1;
        if in_order && found <= u32::from(head.chunks) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    let whole = found == u32::from(head.chunks) && record.len() == head.length as usize;
    Ok(whole.then(|| Bytes::from(record)))
}

/// Logs of which something may have expired at `now`, by minute; at most `max`.
pub fn due(engine: &dyn Engine, now: UnixMillis, max: usize) -> Result<Vec<Due>, EngineError> {
    due_in(engine, &keys::due(now), max, |key| match key {
        Key::Expiry(minute, log) => Some(Due { minute, log }),
        _ => None,
    })
}

/// Ids that may be forgotten at `now`, by minute; at most `max`.
pub fn due_ids(engine: &dyn Engine, now: UnixMillis, max: usize) -> Result<Vec<DueId>, EngineError> {
    due_in(engine, &keys::due_ids(now), max, |key| match key {
        Key::IdEnd(minute, log, id) => Some(DueId { minute, log, id }),
        _ => None,
    })
}

/// Tokens that are void, from behind `after` on; at most `max`. Where a row cannot be read, all of what it names is.
pub fn revocations(
    engine: &dyn Engine,
    after: Option<RevocationId>,
    max: usize,
) -> Result<Vec<(RevocationId, Revocation)>, EngineError> {
    let rows = rows_of(engine, &keys::revocations(after), max)?;
    let read = |(key, value): (Vec<u8>, Vec<u8>)| match Key::decode(&key) {
        Some(Key::Revocation(id)) => {
            let whole = |_| Revocation::whole(UnixMillis(u64::MAX));
            Some((id, rows::decode_revocation(&value).unwrap_or_else(whole)))
        }
        _ => None,
    };
    Ok(rows.into_iter().filter_map(read).collect())
}

fn due_in<T>(
    engine: &dyn Engine,
    ranges: &[KeyRange],
    max: usize,
    wanted: impl Fn(Key) -> Option<T>,
) -> Result<Vec<T>, EngineError> {
    let mut due = Vec::new();
    for (from, to) in ranges {
        if due.len() >= max {
            break;
        }
        engine.range(from, to, &mut |key, _| {
            due.extend(Key::decode(key).and_then(&wanted));
            if due.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
    }
    Ok(due)
}
