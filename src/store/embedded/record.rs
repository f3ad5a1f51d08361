//! A notification as bytes, and the head row that leads to it.
//!
//! Record, version 2: `version(1) flags(1) [type] [from] [count(2) user…] [kind] [topic] accepted_at(8) payload`, where
//! texts stand behind a varint (LEB128) of their length, numbers are little-endian, what is bracketed is there if its flag
//! is set, and the payload is all that is left. Flags: 1 binary payload, 2 type, 4 from, 8 users whom it is not for,
//! 16 kind, 32 topic.
//!
//! Head row, version 2: `version(1) flags(1) chunks(2) bytes(4) expires_at(8) length(4) id [collapse key]`, and behind it
//! the record, unless `chunks` says that it lies in so many chunk rows. Flags: 1 collapse key, 2 the id is remembered.
//! So a mailbox is listed, and a collapse key found, without reading what is large.
//!
//! Rule: what comes from disk is checked as if it came from a stranger. No bytes make it panic or allocate more than
//! they themselves take. Rows of version 1 are read by [`super::migrate`] alone.

use bytes::Bytes;

use crate::{
    limits,
    store::IndexEntry,
    types::{CollapseKey, Notification, NotificationId, Offset, Payload, Topic, TypeName, UnixMillis, UserId},
};

const VERSION: u8 = 2;
const BINARY: u8 = 1;
const TYPE: u8 = 2;
const FROM: u8 = 4;
const NOT_FOR: u8 = 8;
const KIND: u8 = 16;
const TOPIC: u8 = 32;

const HEAD_VERSION: u8 = 2;
const COLLAPSE: u8 = 1;
const REMEMBERED: u8 = 2;
/// The bytes of a head row before the id.
const HEAD_BYTES: usize = 1 + 1 + 2 + 4 + 8 + 4;

/// Why stored bytes are not what they should be. Names the place, never the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

fn head_len(notification: &Notification) -> usize {
    let collapse = notification.collapse_key.as_ref().map_or(0, |key| text_len(key.as_str()));
    HEAD_BYTES + text_len(notification.id.as_str()) + collapse
}

/// How many chunk rows a notification takes; 0: it stands in its head row.
pub fn chunks_of(notification: &Notification) -> u16 {
    let length = record_len(notification);
    if head_len(notification) + length <= limits::STORE_CHUNK_BYTES_MAX {
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
    /// The notification's id.
    pub id: NotificationId,
    /// Whether that id is a caller's own, remembered for repeated calls.
    pub remembered: bool,
    /// What it took the place of, and what will take its place.
    pub collapse_key: Option<CollapseKey>,
}

impl Head {
    /// The entry of the record at `offset`.
    pub fn entry(self, offset: Offset) -> IndexEntry {
        let Head { chunks, bytes, expires_at, id, remembered, collapse_key, .. } = self;
        IndexEntry { offset, bytes, chunks, expires_at, id, remembered, collapse_key, confirmed: false }
    }
}

/// The rows of a notification: its head row's value, and the values of its chunk rows.
pub fn encode(notification: &Notification, remembered: bool) -> (Vec<u8>, Vec<Vec<u8>>) {
    let length = record_len(notification);
    let chunks = chunks_of(notification);
    let inline = if chunks == 0 { length } else { 0 };
    let mut head = Vec::with_capacity(head_len(notification) + inline);
    let collapse = notification.collapse_key.as_ref();
    let flags = if collapse.is_some() { COLLAPSE } else { 0 } | if remembered { REMEMBERED } else { 0 };
    head.extend_from_slice(&[HEAD_VERSION, flags]);
    head.extend_from_slice(&chunks.to_le_bytes());
    head.extend_from_slice(&saturated(notification.accounted_bytes()).to_le_bytes());
    head.extend_from_slice(&notification.expires_at.unwrap_or(UnixMillis(u64::MAX)).0.to_le_bytes());
    head.extend_from_slice(&saturated(length as u64).to_le_bytes());
    write_text(&mut head, notification.id.as_str());
    if let Some(key) = collapse {
        write_text(&mut head, key.as_str());
    }
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
    let flags = input.byte()?;
    if flags & !(COLLAPSE | REMEMBERED) != 0 {
        return Err(Malformed("a head row with unknown flags"));
    }
    let chunks = u16::from_le_bytes(input.array()?);
    let bytes = u32::from_le_bytes(input.array()?);
    let expires_at = UnixMillis(u64::from_le_bytes(input.array()?));
    let length = u32::from_le_bytes(input.array()?);
    let id = NotificationId::parse(input.text()?).map_err(|_| Malformed("a head row with an invalid id"))?;
    let collapse_key = if flags & COLLAPSE != 0 {
        let key = CollapseKey::parse(input.text()?);
        Some(key.map_err(|_| Malformed("a head row with an invalid collapse key"))?)
    } else {
        None
    };
    let head = Head { chunks, bytes, expires_at, length, id, remembered: flags & REMEMBERED != 0, collapse_key };
    let inline = (head.chunks == 0).then_some(input.0);
    if input.0.len() != if inline.is_some() { head.length as usize } else { 0 } {
        return Err(Malformed("a head row of another length than it says"));
    }
    Ok((head, inline))
}

/// Reads the record that `head` leads to. The payload is a slice of `bytes`, not a copy.
pub fn decode_record(head: Head, bytes: &Bytes) -> Result<Notification, Malformed> {
    let mut input = Input(bytes);
    if input.byte()? != VERSION {
        return Err(Malformed("a record of an unknown version"));
    }
    let flags = input.byte()?;
    if flags & !(BINARY | TYPE | FROM | NOT_FOR | KIND | TOPIC) != 0 {
        return Err(Malformed("a record with unknown flags"));
    }
    let has = |flag| flags & flag != 0;
    let named = |text| TypeName::parse(text).map_err(|_| Malformed("a record with an invalid type"));
    let type_name = if has(TYPE) { named(input.text()?)? } else { TypeName::NOTIFICATION };
    let user = |text| UserId::parse(text).map_err(|_| Malformed("a record with an invalid user"));
    let from_user = if has(FROM) { Some(user(input.text()?)?) } else { None };
    let mut not_for = Vec::new();
    if has(NOT_FOR) {
        for _ in 0..u16::from_le_bytes(input.array()?) {
            not_for.push(user(input.text()?)?);
        }
    }
    let kind = if has(KIND) { Some(named(input.text()?)?) } else { None };
    let topic = |text| Topic::parse(text).map_err(|_| Malformed("a record with an invalid topic"));
    let topic = if has(TOPIC) { Some(topic(input.text()?)?) } else { None };
    let accepted_at = UnixMillis(u64::from_le_bytes(input.array()?));
    let payload = bytes.slice_ref(input.0);
    let payload = if has(BINARY) {
        Payload::Binary(payload)
    } else if std::str::from_utf8(&payload).is_ok() {
        Payload::Json(payload)
    } else {
        // A text frame that is not UTF-8 would close the session.
        return Err(Malformed("a record with JSON that is not UTF-8"));
    };
    let expires_at = Some(head.expires_at).filter(|end| end.0 != u64::MAX);
    let (id, collapse_key, not_for) = (head.id, head.collapse_key, not_for.into());
    Ok(Notification { id, type_name, payload, from_user, topic, kind, collapse_key, not_for, accepted_at, expires_at })
}

/// The type as it is written: nothing for the default.
fn written_type(notification: &Notification) -> Option<&str> {
    (notification.type_name != TypeName::NOTIFICATION).then(|| notification.type_name.as_str())
}

fn record_len(notification: &Notification) -> usize {
    let users: usize = notification.not_for.iter().map(|user| text_len(user.as_str())).sum();
    2 + written_type(notification).map_or(0, text_len)
        + notification.from_user.as_ref().map_or(0, |user| text_len(user.as_str()))
        + if notification.not_for.is_empty() { 0 } else { 2 + users }
        + notification.kind.as_ref().map_or(0, |kind| text_len(kind.as_str()))
        + notification.topic.as_ref().map_or(0, |topic| text_len(topic.as_str()))
        + 8
        + notification.payload.bytes().len()
}

fn write_record(out: &mut Vec<u8>, notification: &Notification) {
    let type_name = written_type(notification);
    let mut flags = 0;
    for (flag, set) in [
        (BINARY, matches!(notification.payload, Payload::Binary(_))),
        (TYPE, type_name.is_some()),
        (FROM, notification.from_user.is_some()),
        (NOT_FOR, !notification.not_for.is_empty()),
        (KIND, notification.kind.is_some()),
        (TOPIC, notification.topic.is_some()),
    ] {
        flags |= if set { flag } else { 0 };
    }
    out.extend_from_slice(&[VERSION, flags]);
    if let Some(name) = type_name {
        write_text(out, name);
    }
    if let Some(user) = &notification.from_user {
        write_text(out, user.as_str());
    }
    if !notification.not_for.is_empty() {
        // `limits` keeps it far below 2^16.
        out.extend_from_slice(&(notification.not_for.len() as u16).to_le_bytes());
        for user in notification.not_for.iter() {
            write_text(out, user.as_str());
        }
    }
    if let Some(kind) = &notification.kind {
        write_text(out, kind.as_str());
    }
    if let Some(topic) = &notification.topic {
        write_text(out, topic.as_str());
    }
    out.extend_from_slice(&notification.accepted_at.0.to_le_bytes());
    out.extend_from_slice(notification.payload.bytes());
}

fn text_len(text: &str) -> usize {
    varint_len(text.len()) + text.len()
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

    /// The next text.
    pub fn text(&mut self) -> Result<&'a str, Malformed> {
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
            (3900usize..13_000).prop_map(|len| Payload::Json(Bytes::from(vec![b'1'; len]))),
        ];
        let moment = (0..u64::MAX).prop_map(UnixMillis);
        let user = "[a-z]{1,255}".prop_map(|user| UserId::parse(&user).unwrap());
        let names = ("[a-zä]{1,60}", "[a-z.]{0,128}", option::of("[a-z]{1,128}"));
        let places = (option::of("[a-zä.]{1,100}"), option::of("[a-z.]{0,128}"));
        (names, places, payload, option::of(user.clone()), vec(user, 0..3), moment.clone(), option::of(moment))
            .prop_map(|((id, name, collapse), (topic, kind), payload, from_user, not_for, accepted_at, expires_at)| {
                Notification {
                    id: NotificationId::parse(&id).unwrap(),
                    type_name: TypeName::parse(&name).unwrap_or(TypeName::NOTIFICATION),
                    payload,
                    from_user,
                    topic: topic.map(|topic| Topic::parse(&topic).unwrap()),
                    kind: kind.map(|kind| TypeName::parse(&kind).unwrap_or(TypeName::NOTIFICATION)),
                    collapse_key: collapse.map(|key| CollapseKey::parse(&key).unwrap()),
                    not_for: not_for.into(),
                    accepted_at,
                    expires_at,
                }
            })
    }

    #[test]
    fn the_format_is_pinned() {
        let original = Notification {
            id: NotificationId::parse("n1").unwrap(),
            type_name: TypeName::parse("t").unwrap(),
            payload: Payload::Binary(Bytes::from_static(&[9, 8])),
            from_user: Some(UserId::parse("bob").unwrap()),
            topic: None,
            kind: None,
            collapse_key: Some(CollapseKey::parse("k").unwrap()),
            not_for: [UserId::parse("eve").unwrap()].into(),
            accepted_at: UnixMillis(1),
            expires_at: Some(UnixMillis(2)),
        };
        let (head, chunks) = encode(&original, true);
        assert!(chunks.is_empty());
        assert_eq!(head[..20], [2, 3, 0, 0, 76, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0, 0]);
        assert_eq!(head[20..25], [2, b'n', b'1', 1, b'k']);
        assert_eq!(head[25..33], [2, 15, 1, b't', 3, b'b', b'o', b'b']);
        assert_eq!(head[33..], [1, 0, 3, b'e', b'v', b'e', 1, 0, 0, 0, 0, 0, 0, 0, 9, 8]);

        let original = Notification {
            type_name: TypeName::NOTIFICATION,
            payload: Payload::Json(Bytes::from_static(b"7")),
            from_user: None,
            topic: Some(Topic::parse("r").unwrap()),
            kind: Some(TypeName::parse("chat").unwrap()),
            collapse_key: None,
            not_for: [].into(),
            ..original
        };
        let head = encode(&original, false).0;
        assert_eq!(head[23..], [2, 48, 4, b'c', b'h', b'a', b't', 1, b'r', 1, 0, 0, 0, 0, 0, 0, 0, b'7']);
    }

    proptest! {
        #[test]
        fn a_record_is_read_back(original in notification(), remembered in any::<bool>()) {
            let (row, chunks) = encode(&original, remembered);
            prop_assert!(row.len() <= limits::STORE_CHUNK_BYTES_MAX);
            prop_assert!(chunks.iter().all(|chunk| chunk.len() <= limits::STORE_CHUNK_BYTES_MAX && !chunk.is_empty()));
            let (head, inline) = decode_head(&row).unwrap();
            prop_assert_eq!(head.chunks, chunks_of(&original));
            prop_assert_eq!(head.chunks as usize, chunks.len());
            prop_assert_eq!(u64::from(head.bytes), original.accounted_bytes());
            prop_assert_eq!(head.expires_at, original.expires_at.unwrap_or(UnixMillis(u64::MAX)));
            prop_assert_eq!((head.remembered, &head.id), (remembered, &original.id));
            let record = inline.map_or_else(|| chunks.concat(), <[u8]>::to_vec);
            prop_assert_eq!(record.len(), head.length as usize);
            prop_assert_eq!(decode_record(head, &Bytes::from(record)).unwrap(), original);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..300), original in notification()) {
            let _ = decode_head(&bytes);
            let (row, _) = encode(&original, false);
            let _ = decode_record(decode_head(&row).unwrap().0, &Bytes::from(bytes));
        }

        #[test]
        fn a_damaged_record_is_read_without_a_panic(
            original in notification(), at in any::<proptest::sample::Index>(), flip in 1u8.., cut in any::<proptest::sample::Index>(),
        ) {
            let (row, _) = encode(&original, false);
            let (head, _) = decode_head(&row).unwrap();
            let mut record = Vec::new();
            write_record(&mut record, &original);
            let at = at.index(record.len());
            record[at] ^= flip;
            let _ = decode_record(head.clone(), &Bytes::from(record.clone()));
            record.truncate(cut.index(record.len()));
            let _ = decode_record(head, &Bytes::from(record));
        }
    }
}
