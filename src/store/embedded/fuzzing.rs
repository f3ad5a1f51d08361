//! Keys and rows as they are read from disk, for `tests/fuzz`. The feature `fuzzing` alone has it.

use bytes::Bytes;

use super::{keys::Key, record, rows};

/// How many kinds of row there are.
pub const ROWS: u8 = 10;

/// A row that could be read.
#[derive(Debug)]
pub struct Read {
    /// What it says.
    pub meaning: String,
    /// The same, written anew.
    pub written: Vec<u8>,
}

/// A key, read and written again; `None`: it is none.
pub fn key(bytes: &[u8]) -> Option<Vec<u8>> {
    Key::decode(bytes).map(|key| key.encode())
}

/// A row of that kind, read and written again.
///
/// # Errors
/// Why it is none.
pub fn row(which: u8, bytes: &[u8]) -> Result<Read, &'static str> {
    let read = match which % ROWS {
        0 => rows::decode_counters(bytes).map(|it| (format!("{it:?}"), rows::encode_counters(&it))),
        1 => rows::decode_device(bytes).map(|it| (format!("{it:?}"), rows::encode_device(&it))),
        2 => rows::decode_forgotten(bytes).map(|it| (format!("{it:?}"), rows::encode_forgotten(it))),
        3 => rows::decode_remembered(bytes).map(|it| (format!("{it:?}"), rows::encode_remembered(&it))),
        4 => rows::decode_totals(bytes).map(|it| (format!("{it:?}"), rows::encode_totals(&it))),
        5 => rows::decode_mark(bytes).map(|it| (format!("{it:?}"), rows::encode_mark(it))),
        6 => rows::decode_epoch(bytes).map(|it| (format!("{it:?}"), rows::encode_epoch(it))),
        7 => return notification(bytes),
        8 => rows::decode_member(bytes).map(|it| (format!("{it:?}"), rows::encode_member(&it))),
        _ => rows::decode_revocation(bytes).map(|it| (format!("{it:?}"), rows::encode_revocation(&it))),
    };
    read.map(|(meaning, written)| Read { meaning, written }).map_err(|malformed| malformed.0)
}

/// A head row with its record, or with the pieces that would be the values of its chunk rows right behind it.
fn notification(bytes: &[u8]) -> Result<Read, &'static str> {
    let (head, record) = match record::decode_head(bytes) {
        Ok((head, Some(record))) => (head, Bytes::copy_from_slice(record)),
        Ok((_, None)) => return Err("a head row that leads to chunks"),
        Err(malformed) => return Err(malformed.0),
    };
    let remembered = head.remembered;
    let notification = record::decode_record(head, &record).map_err(|malformed| malformed.0)?;
    let (written, chunks) = record::encode(&notification, remembered);
    if !chunks.is_empty() {
        return Err("a record that belongs into chunks");
    }
    let payload = notification.payload.bytes().to_vec();
    Ok(Read { meaning: format!("{notification:?} {payload:?} {remembered}"), written })
}
