//! Brings a store that an older version wrote up to the present format.
//!
//! Rule for upgrades: an older format is migrated when it is opened, a newer one is refused. A migration rewrites rows
//! in commits of their own, each of which leaves a store that the same migration can be begun on again; the format
//! version is written last. So a crash in the middle of it loses nothing. There is no way back: a backup is.
//!
//! | from | to | what changes |
//! |---|---|---|
//! | 1 | 2 | head rows carry the id, records no longer do; counters know what was lost |
//! | 2 | 3 | there may be rows of durable topics, and of members in them; nothing is rewritten |

use std::ops::ControlFlow;

use bytes::Bytes;

use super::{
    engine::{Engine, EngineError, Write},
    keys::{self, Key},
    record::{self, Input, Malformed},
    rows,
};
use crate::types::{LogId, Notification, NotificationId, Offset, Payload, TypeName, UnixMillis, UserId};

/// Rows that one commit of a migration rewrites.
const ROWS_AT_ONCE: usize = 256;

/// Migrates from `format`, which is older than the present one.
pub fn bring_up(engine: &dyn Engine, format: u32) -> Result<(), EngineError> {
    if format == 0 {
        return Err(EngineError::Corrupt("format version 0 never was".into()));
    }
    tracing::info!(from = format, to = rows::FORMAT, "migrating the store");
    let rewritten = if format == 1 { from_1(engine)? } else { 0 };
    engine.commit(vec![(Key::Format.encode(), Some(rows::encode_format(rows::FORMAT)))])?;
    tracing::info!(rewritten, "the store is migrated");
    Ok(())
}

/// Rewrites every notification of format 1. Those that were rewritten before a crash are passed over.
fn from_1(engine: &dyn Engine) -> Result<usize, EngineError> {
    let (mut from, to) = keys::user_heads();
    let mut rewritten = 0;
    loop {
        let mut found = Vec::new();
        engine.range(&from, &to, &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            if found.len() < ROWS_AT_ONCE { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        let Some((last, _)) = found.last() else { return Ok(rewritten) };
        from.clone_from(last);
        from.push(0);
        let mut writes = Vec::new();
        for (key, row) in found {
            if row.first() != Some(&1) {
                continue;
            }
            // What cannot be read now could not be read before: it is left for the daemon to find and report.
            let Some(Key::Head(log, offset)) = Key::decode(&key) else { continue };
            match rewrite(engine, &log, offset, &row)? {
                Ok(more) => {
                    writes.extend(more);
                    rewritten += 1;
                }
                Err(malformed) => {
                    tracing::error!(%log, %offset, %malformed, "a notification could not be migrated");
                }
            }
        }
        if !writes.is_empty() {
            engine.commit(writes)?;
        }
    }
}

fn rewrite(
    engine: &dyn Engine,
    log: &LogId,
    offset: Offset,
    row: &[u8],
) -> Result<Result<Vec<Write>, Malformed>, EngineError> {
    let (chunks, length, inline) = match decode_head(row) {
        Ok(head) => head,
        Err(malformed) => return Ok(Err(malformed)),
    };
    let mut record = inline.to_vec();
    for index in 0..chunks {
        let Some(chunk) = engine.get(&Key::Chunk(log.clone(), offset, index).encode())? else {
            return Ok(Err(Malformed("a chunk is missing")));
        };
        record.extend_from_slice(&chunk);
    }
    if record.len() != length as usize {
        return Ok(Err(Malformed("a record of another length than its head says")));
    }
    let notification = match decode_record(&Bytes::from(record)) {
        Ok(notification) => notification,
        Err(malformed) => return Ok(Err(malformed)),
    };
    let (head, pieces) = record::encode(&notification, false);
    let mut writes: Vec<Write> =
        (0..chunks).map(|index| (Key::Chunk(log.clone(), offset, index).encode(), None)).collect();
    for (index, piece) in (0..=u16::MAX).zip(pieces) {
        writes.push((Key::Chunk(log.clone(), offset, index).encode(), Some(piece)));
    }
    writes.push((Key::Head(log.clone(), offset).encode(), Some(head)));
    Ok(Ok(writes))
}

/// Format 1: `version(1) chunks(2) bytes(4) expires_at(8) length(4)` and the record where it is inline.
fn decode_head(row: &[u8]) -> Result<(u16, u32, &[u8]), Malformed> {
    let mut input = Input(row);
    input.byte()?;
    let chunks = u16::from_le_bytes(input.array()?);
    let _bytes: [u8; 4] = input.array()?;
    let _expires_at: [u8; 8] = input.array()?;
    let length = u32::from_le_bytes(input.array()?);
    Ok((chunks, length, input.0))
}

/// Format 1: `version(1) flags(1) id [type] [from] accepted_at(8) [expires_at(8)] payload`; flags: 1 binary payload, 2
/// type, 4 from, 8 expires_at.
fn decode_record(bytes: &Bytes) -> Result<Notification, Malformed> {
    let mut input = Input(bytes);
    let (version, flags) = (input.byte()?, input.byte()?);
    if version != 1 || flags & !15 != 0 {
        return Err(Malformed("a record of an unknown version or with unknown flags"));
    }
    let has = |flag| flags & flag != 0;
    let id = NotificationId::parse(input.text()?).map_err(|_| Malformed("a record with an invalid id"))?;
    let name = if has(2) { input.text()? } else { "" };
    let type_name = TypeName::parse(name).map_err(|_| Malformed("a record with an invalid type"))?;
    let from_user = if has(4) {
        Some(UserId::parse(input.text()?).map_err(|_| Malformed("a record with an invalid sender"))?)
    } else {
        None
    };
    let accepted_at = UnixMillis(u64::from_le_bytes(input.array()?));
    let expires_at = if has(8) { Some(UnixMillis(u64::from_le_bytes(input.array()?))) } else { None };
    let payload = bytes.slice_ref(input.0);
    let payload = if has(1) { Payload::Binary(payload) } else { Payload::Json(payload) };
    let not_for = [].into();
    let (topic, kind, collapse_key) = (None, None, None);
    Ok(Notification { id, type_name, payload, from_user, topic, kind, collapse_key, not_for, accepted_at, expires_at })
}

#[cfg(test)]
pub(in crate::store) mod tests {
    use super::*;
    use crate::store::embedded::engine::MemoryEngine;

    /// The rows of a notification as format 1 wrote them, its record cut into chunks of `chunk_bytes`; 0: inline.
    pub(in crate::store) fn written_by_1(notification: &Notification, chunk_bytes: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
        let (binary, json) = match &notification.payload {
            Payload::Binary(bytes) => (1, bytes),
            Payload::Json(bytes) => (0, bytes),
        };
        let mut record = vec![1, binary | 2 | if notification.from_user.is_some() { 4 } else { 0 } | 8];
        let from = notification.from_user.as_ref().map(UserId::as_str);
        for text in [Some(notification.id.as_str()), Some(notification.type_name.as_str()), from].into_iter().flatten()
        {
            assert!(text.len() < 128, "a varint of one byte");
            record.push(text.len() as u8);
            record.extend_from_slice(text.as_bytes());
        }
        record.extend_from_slice(&notification.accepted_at.0.to_le_bytes());
        let expires_at = notification.expires_at.unwrap().0.to_le_bytes();
        record.extend_from_slice(&expires_at);
        record.extend_from_slice(json);
        let chunks: Vec<_> = match chunk_bytes {
            0 => Vec::new(),
            bytes => record.chunks(bytes).map(<[u8]>::to_vec).collect(),
        };
        let mut head = vec![1];
        head.extend_from_slice(&(chunks.len() as u16).to_le_bytes());
        head.extend_from_slice(&(notification.accounted_bytes() as u32).to_le_bytes());
        head.extend_from_slice(&expires_at);
        head.extend_from_slice(&(record.len() as u32).to_le_bytes());
        if chunks.is_empty() {
            head.extend_from_slice(&record);
        }
        (head, chunks)
    }

    fn notification(id: &str, payload: usize) -> Notification {
        Notification {
            id: NotificationId::parse(id).unwrap(),
            type_name: TypeName::parse("order").unwrap(),
            payload: Payload::Json(Bytes::from(vec![b'1'; payload])),
            from_user: Some(UserId::parse("shop").unwrap()),
            topic: None,
            kind: None,
            collapse_key: None,
            not_for: [].into(),
            accepted_at: UnixMillis(5),
            expires_at: Some(UnixMillis(1 << 50)),
        }
    }

    #[test]
    fn a_migration_that_was_cut_off_anywhere_is_finished_by_the_next() {
        let log = LogId::User(UserId::parse("ann").unwrap());
        let sizes = [10, 5000, 3990, 20_000, 1];
        let originals: Vec<_> = (1..).zip(sizes).map(|(n, size)| (n, notification(&format!("n{n}"), size))).collect();
        let engine = MemoryEngine::default();
        for (offset, original) in &originals {
            let offset = Offset::new(*offset);
            let (head, chunks) = written_by_1(original, if original.payload.bytes().len() > 3000 { 4096 } else { 0 });
            let mut writes = vec![(Key::Head(log.clone(), offset).encode(), Some(head))];
            for (index, chunk) in (0..).zip(chunks) {
                writes.push((Key::Chunk(log.clone(), offset, index).encode(), Some(chunk)));
            }
            // The second one was migrated before the crash.
            if offset.get() == 2 {
                let (head, chunks) = record::encode(original, false);
                writes[0].1 = Some(head);
                for (index, chunk) in (0..).zip(chunks) {
                    writes.push((Key::Chunk(log.clone(), offset, index).encode(), Some(chunk)));
                }
            }
            engine.commit(writes).unwrap();
        }
        let damaged = Key::Head(log.clone(), Offset::new(99)).encode();
        engine.commit(vec![(damaged.clone(), Some(vec![1, 0, 0]))]).unwrap();
        bring_up(&engine, 1).unwrap();
        bring_up(&engine, 1).unwrap();
        assert_eq!(engine.get(&damaged).unwrap(), Some(vec![1, 0, 0]), "left as it was");
        assert_eq!(engine.get(&Key::Format.encode()).unwrap(), Some(rows::encode_format(rows::FORMAT)));
        let limit = crate::store::PageLimit { records: 100, bytes: usize::MAX };
        let page = super::super::queries::page(&engine, &log, Offset::ZERO, Offset::new(98), limit).unwrap();
        let read: Vec<_> =
            page.records.into_iter().map(|(offset, notification)| (offset.get(), notification)).collect();
        assert_eq!(read, originals);
    }
}
