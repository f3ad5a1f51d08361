//! A notification as bytes, and the head row that leads to it.
//!
//! Record, version 1: `version(1) flags(1) id [type] [from] accepted_at(8) [expires_at(8)] payload`, where texts stand
//! behind a varint (LEB128) of their length, numbers are little-endian, what is bracketed is there if its flag is set,
//! and the payload is all that is left. Flags: 1 binary payload, 2 type, 4 from, 8 expires_at.
//!
//! Head row, version 1: `version(1) chunks(2) bytes(4) expires_at(8) length(4)`, and behind it the record, unless
//! `chunks` says that it lies in so many chunk rows. So a mailbox is listed without reading what is large.
//!
//! Rule: what comes from disk is checked as if it came from a stranger. No bytes make it panic or allocate more than
//! they themselves take.

use bytes::Bytes;

use crate::{
    limits,
    store::IndexEntry,
    types::{Notification, NotificationId, Offset, Payload, TypeName, UnixMillis, UserId},
};

const VERSION: u8 = 1;
const BINARY: u8 = 1;
const TYPE: u8 = 2;
const FROM: u8 = 4;
const EXPIRES: u8 = 8;

/// The bytes of a head row before an inline record.
const HEAD_BYTES: usize = 1 + 2 + 4 + 8 + 4;
const HEAD_VERSION: u8 = 1;

/// Why stored bytes are not what they should be. Names the place, never the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// How many chunk rows a notification takes; 0: it stands in its head row.
pub fn chunks_of(notification: &Notification) -> u16 {
    let length = record_len(notification);
    if HEAD_BYTES + length <= limits::STORE_CHUNK_BYTES_MAX {
        0
    } else {
        u16::try_from(length.div_ceil(limits::STORE_CHUNK_BYTES_MAX)).unwrap_or(u16::MAX)
    }
}

/// What a head row says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Chunk rows; 0: the record is inline.
    pub chunks: u16,
    /// What it counts against the quotas.
    pub bytes: u32,
    /// When it expires; the end of time where it does not.
    pub expires_at: UnixMillis,
    /// The bytes of the record.
    pub length: u32,
}

impl Head {
    /// The entry of the record at `offset`.
    pub fn entry(&self, offset: Offset) -> IndexEntry {
        IndexEntry { offset, bytes: self.bytes, chunks: self.chunks, expires_at: self.expires_at }
    }
}

/// The rows of a notification: its head row's value, and the values of its chunk rows.
pub fn encode(notification: &Notification) -> (Vec<u8>, Vec<Vec<u8>>) {
    let length = record_len(notification);
    let chunks = chunks_of(notification);
    let inline = if chunks == 0 { length } else { 0 };
    let mut head = Vec::with_capacity(HEAD_BYTES + inline);
    head.push(HEAD_VERSION);
    head.extend_from_slice(&chunks.to_le_bytes());
    head.extend_from_slice(&saturated(notification.accounted_bytes()).to_le_bytes());
    head.extend_from_slice(&notification.expires_at.unwrap_or(UnixMillis(u64::MAX)).0.to_le_bytes());
    head.extend_from_slice(&saturated(length as u64).to_le_bytes());
    if chunks == 0 {
        write_record(&mut head, notification);
        (head, Vec::new())
    } else {
        let mut record = Vec::with_capacity(length);
        write_record(&mut record, notification);
        (head, record.chunks(limits::STORE_CHUNK_BYTES_MAX).map(<[u8]>::to_vec).collect())
    }
}

/// Reads a head row; the second is the record where it is inline.
pub fn decode_head(row: &[u8]) -> Result<(Head, Option<&[u8]>), Malformed> {
    let mut input = Input(row);
    if input.byte()? != HEAD_VERSION {
        return Err(Malformed("a head row of an unknown version"));
    }
    let head = Head {
        chunks: u16::from_le_bytes(input.array()?),
        bytes: u32::from_le_bytes(input.array()?),
        expires_at: UnixMillis(u64::from_le_bytes(input.array()?)),
        length: u32::from_le_bytes(input.array()?),
    };
    let inline = (head.chunks == 0).then_some(input.0);
    if input.0.len() != if inline.is_some() { head.length as usize } else { 0 } {
        return Err(Malformed("a head row of another length than it says"));
    }
    Ok((head, inline))
}

/// Reads a record. The payload is a slice of `bytes`, not a copy.
pub fn decode_record(bytes: &Bytes) -> Result<Notification, Malformed> {
    let mut input = Input(bytes);
    if input.byte()? != VERSION {
        return Err(Malformed("a record of an unknown version"));
    }
    let flags = input.byte()?;
    if flags & !(BINARY | TYPE | FROM | EXPIRES) != 0 {
        return Err(Malformed("a record with unknown flags"));
    }
    let has = |flag| flags & flag != 0;
    let id = NotificationId::parse(input.text()?).map_err(|_| Malformed("a record with an invalid id"))?;
    let type_name = if has(TYPE) {
        TypeName::parse(input.text()?).map_err(|_| Malformed("a record with an invalid type"))?
    } else {
        TypeName::NOTIFICATION
    };
    let from_user = if has(FROM) {
        Some(UserId::parse(input.text()?).map_err(|_| Malformed("a record with an invalid sender"))?)
    } else {
        None
    };
    let accepted_at = UnixMillis(u64::from_le_bytes(input.array()?));
    let expires_at = if has(EXPIRES) { Some(UnixMillis(u64::from_le_bytes(input.array()?))) } else { None };
    let payload = bytes.slice_ref(input.0);
    let payload = if has(BINARY) {
        Payload::Binary(payload)
    } else if std::str::from_utf8(&payload).is_ok() {
        Payload::Json(payload)
    } else {
        // A text frame that is not UTF-8 would close the session.
        return Err(Malformed("a record with JSON that is not UTF-8"));
    };
    Ok(Notification { id, type_name, payload, from_user, accepted_at, expires_at })
}

/// The type as it is written: nothing for the default.
fn written_type(notification: &Notification) -> Option<&str> {
    (notification.type_name != TypeName::NOTIFICATION).then(|| notification.type_name.as_str())
}

fn record_len(notification: &Notification) -> usize {
    let text = |text: &str| varint_len(text.len()) + text.len();
    2 + text(notification.id.as_str())
        + written_type(notification).map_or(0, text)
        + notification.from_user.as_ref().map_or(0, |user| text(user.as_str()))
        + 8
        + notification.expires_at.map_or(0, |_| 8)
        + notification.payload.bytes().len()
}

fn write_record(out: &mut Vec<u8>, notification: &Notification) {
    let type_name = written_type(notification);
    let mut flags = 0;
    for (flag, set) in [
        (BINARY, matches!(notification.payload, Payload::Binary(_))),
        (TYPE, type_name.is_some()),
        (FROM, notification.from_user.is_some()),
        (EXPIRES, notification.expires_at.is_some()),
    ] {
        flags |= if set { flag } else { 0 };
    }
    out.extend_from_slice(&[VERSION, flags]);
    write_text(out, notification.id.as_str());
    if let Some(name) = type_name {
        write_text(out, name);
    }
    if let Some(user) = &notification.from_user {
        write_text(out, user.as_str());
    }
    out.extend_from_slice(&notification.accepted_at.0.to_le_bytes());
    if let Some(moment) = notification.expires_at {
        out.extend_from_slice(&moment.0.to_le_bytes());
    }
    out.extend_from_slice(notification.payload.bytes());
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    let mut len = text.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(text.as_bytes());
}

fn varint_len(mut value: usize) -> usize {
    let mut len = 1;
    while value >= 0x80 {
        value >>= 7;
        len += 1;
    }
    len
}

fn saturated(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// What is left to read.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next byte.
    pub fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Malformed("a row that ends too early"))?;
        self.0 = rest;
        Ok(*array)
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        let mut len = 0usize;
        // Every text of a record is shorter than 2^14 bytes.
        for shift in [0, 7] {
            let byte = self.byte()?;
            len |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let (text, rest) = self.0.split_at_checked(len).ok_or(Malformed("a row that ends too early"))?;
                self.0 = rest;
                return std::str::from_utf8(text).map_err(|_| Malformed("a text that is not UTF-8"));
            }
        }
        Err(Malformed("a text that is too long"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn notification() -> impl Strategy<Value = Notification> {
        let payload = prop_oneof![
            "[a-z\"{}ä ]{0,80}".prop_map(|text| Payload::Json(Bytes::from(text))),
            vec(any::<u8>(), 0..200).prop_map(|bytes| Payload::Binary(Bytes::from(bytes))),
            (4000usize..13_000).prop_map(|len| Payload::Json(Bytes::from(vec![b'1'; len]))),
        ];
        let moment = any::<u64>().prop_map(UnixMillis);
        ("[a-zä]{1,60}", "[a-z.]{0,128}", payload, option::of("[a-z]{1,255}"), moment.clone(), option::of(moment))
            .prop_map(|(id, name, payload, from, accepted_at, expires_at)| Notification {
                id: NotificationId::parse(&id).unwrap(),
                type_name: TypeName::parse(&name).unwrap_or(TypeName::NOTIFICATION),
                payload,
                from_user: from.map(|user| UserId::parse(&user).unwrap()),
                accepted_at,
                expires_at,
            })
    }

    #[test]
    fn the_first_format_is_pinned() {
        let (head, chunks) = encode(&Notification {
            id: NotificationId::parse("n1").unwrap(),
            type_name: TypeName::parse("t").unwrap(),
            payload: Payload::Binary(Bytes::from_static(&[9, 8])),
            from_user: Some(UserId::parse("bob").unwrap()),
            accepted_at: UnixMillis(1),
            expires_at: Some(UnixMillis(2)),
        });
        assert!(chunks.is_empty());
        assert_eq!(head[..19], [1, 0, 0, 72, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 29, 0, 0, 0]);
        assert_eq!(head[19..30], [1, 15, 2, b'n', b'1', 1, b't', 3, b'b', b'o', b'b']);
        assert_eq!(head[30..], [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9, 8]);
    }

    proptest! {
        #[test]
        fn a_record_is_read_back(original in notification()) {
            let (row, chunks) = encode(&original);
            prop_assert!(row.len() <= limits::STORE_CHUNK_BYTES_MAX);
            prop_assert!(chunks.iter().all(|chunk| chunk.len() <= limits::STORE_CHUNK_BYTES_MAX && !chunk.is_empty()));
            let (head, inline) = decode_head(&row).unwrap();
            prop_assert_eq!(head.chunks, chunks_of(&original));
            prop_assert_eq!(head.chunks as usize, chunks.len());
            prop_assert_eq!(u64::from(head.bytes), original.accounted_bytes());
            prop_assert_eq!(head.expires_at, original.expires_at.unwrap_or(UnixMillis(u64::MAX)));
            let record = inline.map_or_else(|| chunks.concat(), <[u8]>::to_vec);
            prop_assert_eq!(record.len(), head.length as usize);
            prop_assert_eq!(decode_record(&Bytes::from(record)).unwrap(), original);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..300)) {
            let _ = decode_head(&bytes);
            let _ = decode_record(&Bytes::from(bytes));
        }

        #[test]
        fn a_damaged_record_is_read_without_a_panic(
            original in notification(), at in any::<proptest::sample::Index>(), flip in 1u8.., cut in any::<proptest::sample::Index>(),
        ) {
            let mut record = Vec::new();
            write_record(&mut record, &original);
            let at = at.index(record.len());
            record[at] ^= flip;
            let _ = decode_record(&Bytes::from(record.clone()));
            record.truncate(cut.index(record.len()));
            let _ = decode_record(&Bytes::from(record));
        }
    }
}
