//! The schema: every kind of row, and how its key is written.
//!
//! One ordered map holds all. A key's first byte is its kind; `u` is a user id behind one byte of its length; numbers
//! are big-endian, so that keys sort as their numbers do. Kinds are never reused for another meaning.
//!
//! | kind | key | value |
//! |---|---|---|
//! | `01` | format | the version of all this, `u32` |
//! | `02` | epoch | a UUID, made with the store |
//! | `03` | mark | offsets from it on were never given |
//! | `04` | totals | pending notifications of all users |
//! | `10` | mailbox `u` | a user's counters |
//! | `11` | device `u` name | a device's cursor and moments |
//! | `20` | head `u` offset | a notification, or what leads to its chunks |
//! | `21` | chunk `u` offset index(2) | a piece of a large notification |
//! | `30` | expiry minute(8) `u` | nothing: something of the user's expires by then |

use crate::types::{Device, Offset, UnixMillis, UserId};

/// The first byte of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Format = 0x01,
    Epoch = 0x02,
    Mark = 0x03,
    Totals = 0x04,
    Mailbox = 0x10,
    Device = 0x11,
    Head = 0x20,
    Chunk = 0x21,
    Expiry = 0x30,
}

impl Kind {
    const ALL: [Kind; 9] = [
        Kind::Format,
        Kind::Epoch,
        Kind::Mark,
        Kind::Totals,
        Kind::Mailbox,
        Kind::Device,
        Kind::Head,
        Kind::Chunk,
        Kind::Expiry,
    ];
}

/// A row's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// The version of the schema.
    Format,
    /// The store's identity.
    Epoch,
    /// Offsets from here on were never given.
    Mark,
    /// Pending notifications of all users.
    Totals,
    /// A user's counters.
    Mailbox(UserId),
    /// A device of a user.
    Device(UserId, Device),
    /// A notification of a user's log.
    Head(UserId, Offset),
    /// A piece of a large notification.
    Chunk(UserId, Offset, u16),
    /// Something of the user's expires by the start of this minute.
    Expiry(u64, UserId),
}

/// Half-open: from the first key up to, not including, the second.
pub type KeyRange = (Vec<u8>, Vec<u8>);

impl Key {
    /// The key as it is stored.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Key::Format => vec![Kind::Format as u8],
            Key::Epoch => vec![Kind::Epoch as u8],
            Key::Mark => vec![Kind::Mark as u8],
            Key::Totals => vec![Kind::Totals as u8],
            Key::Mailbox(user) => of_user(Kind::Mailbox, user, 0),
            Key::Device(user, device) => {
                let mut key = of_user(Kind::Device, user, device.as_str().len());
                key.extend_from_slice(device.as_str().as_bytes());
                key
            }
            Key::Head(user, offset) => at(Kind::Head, user, offset.get()),
            Key::Chunk(user, offset, index) => {
                let mut key = at(Kind::Chunk, user, offset.get());
                key.extend_from_slice(&index.to_be_bytes());
                key
            }
            Key::Expiry(minute, user) => {
                let mut key = expiry_from(*minute);
                push_user(&mut key, user);
                key
            }
        }
    }

    /// Reads a stored key; `None` where it is none of ours.
    pub fn decode(key: &[u8]) -> Option<Key> {
        let (kind, rest) = key.split_first()?;
        let kind = Kind::ALL.into_iter().find(|known| *known as u8 == *kind)?;
        let (decoded, rest) = match kind {
            Kind::Format => (Key::Format, rest),
            Kind::Epoch => (Key::Epoch, rest),
            Kind::Mark => (Key::Mark, rest),
            Kind::Totals => (Key::Totals, rest),
            Kind::Mailbox => {
                let (user, rest) = take_user(rest)?;
                (Key::Mailbox(user), rest)
            }
            Kind::Device => {
                let (user, name) = take_user(rest)?;
                (Key::Device(user, Device::parse(std::str::from_utf8(name).ok()?).ok()?), &[][..])
            }
            Kind::Head => {
                let (user, rest) = take_user(rest)?;
                let (offset, rest) = take_offset(rest)?;
                (Key::Head(user, offset), rest)
            }
            Kind::Chunk => {
                let (user, rest) = take_user(rest)?;
                let (offset, rest) = take_offset(rest)?;
                let (index, rest) = rest.split_first_chunk()?;
                (Key::Chunk(user, offset, u16::from_be_bytes(*index)), rest)
            }
            Kind::Expiry => {
                let (minute, rest) = rest.split_first_chunk()?;
                let (user, rest) = take_user(rest)?;
                (Key::Expiry(u64::from_be_bytes(*minute), user), rest)
            }
        };
        rest.is_empty().then_some(decoded)
    }
}

/// The notifications of `user` with offsets in (`after`, `upto`].
pub fn heads(user: &UserId, after: Offset, upto: Offset) -> KeyRange {
    // One past the highest offset is 2^53, which a key holds although no offset is.
    (at(Kind::Head, user, after.get() + 1), at(Kind::Head, user, upto.get() + 1))
}

/// The pieces of one notification.
pub fn chunks(user: &UserId, offset: Offset) -> KeyRange {
    (at(Kind::Chunk, user, offset.get()), at(Kind::Chunk, user, offset.get() + 1))
}

/// The counters of all users.
pub fn mailboxes() -> KeyRange {
    (vec![Kind::Mailbox as u8], vec![Kind::Mailbox as u8 + 1])
}

/// The devices of `user`.
pub fn devices(user: &UserId) -> KeyRange {
    let from = of_user(Kind::Device, user, 0);
    // Names hold ASCII only, so that no device of this user sorts behind this.
    let mut to = from.clone();
    to.push(u8::MAX);
    (from, to)
}

/// The expiry rows that are due at `now`.
pub fn due(now: UnixMillis) -> KeyRange {
    (expiry_from(0), expiry_from((now.0 / MINUTE_MILLIS).saturating_add(1)))
}

/// The whole map.
pub fn all() -> KeyRange {
    (vec![0], vec![u8::MAX])
}

const MINUTE_MILLIS: u64 = 60_000;

/// The bucket of a notification that expires at `moment`: the first minute at whose start it has expired, so that all
/// of a bucket has expired when it is due.
pub fn expiry_minute(moment: UnixMillis) -> u64 {
    moment.0.div_ceil(MINUTE_MILLIS)
}

fn push_user(key: &mut Vec<u8>, user: &UserId) {
    // At most 255 bytes: `limits` asserts that a byte holds it.
    key.push(user.as_str().len() as u8);
    key.extend_from_slice(user.as_str().as_bytes());
}

fn of_user(kind: Kind, user: &UserId, more: usize) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 + user.as_str().len() + more);
    key.push(kind as u8);
    push_user(&mut key, user);
    key
}

fn at(kind: Kind, user: &UserId, offset: u64) -> Vec<u8> {
    let mut key = of_user(kind, user, 10);
    key.extend_from_slice(&offset.to_be_bytes());
    key
}

fn expiry_from(minute: u64) -> Vec<u8> {
    let mut key = vec![Kind::Expiry as u8];
    key.extend_from_slice(&minute.to_be_bytes());
    key
}

fn take_user(bytes: &[u8]) -> Option<(UserId, &[u8])> {
    let (len, rest) = bytes.split_first()?;
    let (user, rest) = rest.split_at_checked(*len as usize)?;
    Some((UserId::parse(std::str::from_utf8(user).ok()?).ok()?, rest))
}

fn take_offset(bytes: &[u8]) -> Option<(Offset, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    let number = u64::from_be_bytes(*number);
    (number <= Offset::MAX.get()).then_some((Offset::new(number), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user() -> impl Strategy<Value = UserId> {
        // Short alphabets make prefixes of each other likely; the length byte must tell them apart.
        prop_oneof!["[ab]{1,4}", "[a-zä€]{1,60}"].prop_map(|text| UserId::parse(&text).unwrap())
    }

    fn offset() -> impl Strategy<Value = Offset> {
        prop_oneof![0u64..300, 0..=Offset::MAX.get()].prop_map(Offset::new)
    }

    fn key() -> impl Strategy<Value = Key> {
        prop_oneof![
            Just(Key::Format),
            Just(Key::Epoch),
            Just(Key::Mark),
            Just(Key::Totals),
            user().prop_map(Key::Mailbox),
            (user(), "[A-Za-z0-9._-]{0,64}").prop_map(|(user, name)| Key::Device(user, Device::parse(&name).unwrap())),
            (user(), offset()).prop_map(|(user, offset)| Key::Head(user, offset)),
            (user(), offset(), any::<u16>()).prop_map(|(user, offset, index)| Key::Chunk(user, offset, index)),
            (any::<u64>(), user()).prop_map(|(minute, user)| Key::Expiry(minute, user)),
        ]
    }

    fn holds(range: &KeyRange, key: &[u8]) -> bool {
        *range.0 <= *key && *key < *range.1
    }

    #[test]
    fn keys_are_pinned() {
        let ann = UserId::parse("ann").unwrap();
        let at = Offset::new(0x0102);
        for (key, bytes) in [
            (Key::Format, &[0x01][..]),
            (Key::Epoch, &[0x02]),
            (Key::Mark, &[0x03]),
            (Key::Totals, &[0x04]),
            (Key::Mailbox(ann.clone()), &[0x10, 3, b'a', b'n', b'n']),
            (Key::Device(ann.clone(), Device::UNNAMED), &[0x11, 3, b'a', b'n', b'n']),
            (Key::Device(ann.clone(), Device::parse("x1").unwrap()), &[0x11, 3, b'a', b'n', b'n', b'x', b'1']),
            (Key::Head(ann.clone(), at), &[0x20, 3, b'a', b'n', b'n', 0, 0, 0, 0, 0, 0, 1, 2]),
            (Key::Chunk(ann.clone(), at, 7), &[0x21, 3, b'a', b'n', b'n', 0, 0, 0, 0, 0, 0, 1, 2, 0, 7]),
            (Key::Expiry(0x0304, ann), &[0x30, 0, 0, 0, 0, 0, 0, 3, 4, 3, b'a', b'n', b'n']),
        ] {
            assert_eq!(key.encode(), bytes, "{key:?}");
        }
    }

    #[test]
    fn a_bucket_is_due_when_all_of_it_has_expired() {
        let ann = UserId::parse("ann").unwrap();
        for (expires_at, minute) in
            [(0, 0), (1, 1), (59_999, 1), (60_000, 1), (60_001, 2), (u64::MAX, u64::MAX / 60_000 + 1)]
        {
            assert_eq!(expiry_minute(UnixMillis(expires_at)), minute);
        }
        let row = Key::Expiry(2, ann).encode();
        assert!(!holds(&due(UnixMillis(119_999)), &row));
        assert!(holds(&due(UnixMillis(120_000)), &row));
    }

    proptest! {
        #[test]
        fn keys_are_read_back(key in key()) {
            let bytes = key.encode();
            prop_assert_eq!(Key::decode(&bytes), Some(key));
            let (from, to) = all();
            prop_assert!(from <= bytes && bytes < to);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(key) = Key::decode(&bytes) {
                prop_assert_eq!(key.encode(), bytes);
            }
        }

        #[test]
        fn offsets_chunks_and_minutes_sort_as_numbers(
            user in user(), a in offset(), b in offset(), i in any::<u16>(), j in any::<u16>(), m in any::<u64>(), n in any::<u64>(),
        ) {
            let head = |offset| Key::Head(user.clone(), offset).encode();
            prop_assert_eq!(head(a).cmp(&head(b)), a.cmp(&b));
            let chunk = |offset, index| Key::Chunk(user.clone(), offset, index).encode();
            prop_assert_eq!(chunk(a, i).cmp(&chunk(b, j)), (a, i).cmp(&(b, j)));
            let minute = |minute| Key::Expiry(minute, user.clone()).encode();
            prop_assert_eq!(minute(m).cmp(&minute(n)), m.cmp(&n));
        }

        #[test]
        fn ranges_hold_what_they_name_and_nothing_else(
            key in key(), user in user(), a in offset(), b in offset(), now in 0u64..u64::MAX,
        ) {
            let bytes = key.encode();
            let wanted = matches!(&key, Key::Head(u, o) if *u == user && *o > a && *o <= b);
            prop_assert_eq!(holds(&heads(&user, a, b), &bytes), wanted);
            let wanted = matches!(&key, Key::Chunk(u, o, _) if *u == user && *o == a);
            prop_assert_eq!(holds(&chunks(&user, a), &bytes), wanted);
            let wanted = matches!(&key, Key::Device(u, _) if *u == user);
            prop_assert_eq!(holds(&devices(&user), &bytes), wanted);
            let wanted = matches!(&key, Key::Expiry(minute, _) if *minute <= now / 60_000);
            prop_assert_eq!(holds(&due(UnixMillis(now)), &bytes), wanted);
        }
    }
}
