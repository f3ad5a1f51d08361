//! The schema: every kind of row, and how its key is written.
//!
//! One ordered map holds all. A key's first byte is its kind; `u` is a user id behind one byte of its length, `t` a
//! topic's name, `d` a device's, likewise; numbers are big-endian, so that keys sort as their numbers do. Kinds are never
//! reused for another meaning.
//!
//! | kind | key | value |
//! |---|---|---|
//! | `01` | format | the version of all this, `u32` |
//! | `02` | epoch | a UUID, made with the store |
//! | `03` | mark | offsets from it on were never given |
//! | `04` | totals | pending notifications of all users |
//! | `05` | commits | how many there were |
//! | `10` | counters `u` | what a user has pending |
//! | `11` | device `u` name | a device's cursors and moments |
//! | `12` | counters | what is pending of the broadcast log |
//! | `13` | forgotten `u` name | when the device was forgotten |
//! | `14` | counters name | what is pending of a topic's log; without a length, so that they sort by name |
//! | `15` | member `u` `d` name | a device's membership in a durable topic |
//! | `20` | head `u` offset | a notification, or what leads to its chunks |
//! | `21` | chunk `u` offset index(2) | a piece of a large notification |
//! | `22` | head offset | the same in the broadcast log |
//! | `23` | chunk offset index(2) | the same in the broadcast log |
//! | `24` | head `t` offset | the same in a topic's log |
//! | `25` | chunk `t` offset index(2) | the same in a topic's log |
//! | `30` | expiry minute(8) `u` | nothing: something of the user's expires by then |
//! | `31` | expiry minute(8) | the same for the broadcast log |
//! | `32` | expiry minute(8) `t` | the same for a topic's log |
//! | `40` | id `u` id | what a caller's own id stood for |
//! | `41` | id id | the same in the broadcast log |
//! | `42` | id's end minute(8) `u` id | nothing: that id may be forgotten then |
//! | `43` | id's end minute(8) id | the same in the broadcast log |
//! | `44` | id `t` id | the same in a topic's log |
//! | `45` | id's end minute(8) `t` id | the same in a topic's log |
//! | `50` | revocation hash(16) | which tokens are void, and until when that is known |

mod ranges;

pub use ranges::*;

use crate::types::{Device, LogId, NotificationId, Offset, RevocationId, Topic, UnixMillis, UserId};

/// The first byte of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Format = 0x01,
    Epoch = 0x02,
    Mark = 0x03,
    Totals = 0x04,
    Commits = 0x05,
    Counters = 0x10,
    Device = 0x11,
    BroadcastCounters = 0x12,
    Forgotten = 0x13,
    TopicCounters = 0x14,
    Member = 0x15,
    Head = 0x20,
    Chunk = 0x21,
    BroadcastHead = 0x22,
    BroadcastChunk = 0x23,
    TopicHead = 0x24,
    TopicChunk = 0x25,
    Expiry = 0x30,
    BroadcastExpiry = 0x31,
    TopicExpiry = 0x32,
    Id = 0x40,
    BroadcastId = 0x41,
    IdEnd = 0x42,
    BroadcastIdEnd = 0x43,
    TopicId = 0x44,
    TopicIdEnd = 0x45,
    Revocation = 0x50,
}

impl Kind {
    const ALL: [Kind; 27] = [
        Kind::Format,
        Kind::Epoch,
        Kind::Mark,
        Kind::Totals,
        Kind::Commits,
        Kind::Counters,
        Kind::Device,
        Kind::BroadcastCounters,
        Kind::Forgotten,
        Kind::TopicCounters,
        Kind::Member,
        Kind::Head,
        Kind::Chunk,
        Kind::BroadcastHead,
        Kind::BroadcastChunk,
        Kind::TopicHead,
        Kind::TopicChunk,
        Kind::Expiry,
        Kind::BroadcastExpiry,
        Kind::TopicExpiry,
        Kind::Id,
        Kind::BroadcastId,
        Kind::IdEnd,
        Kind::BroadcastIdEnd,
        Kind::TopicId,
        Kind::TopicIdEnd,
        Kind::Revocation,
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
    /// Pending notifications of all logs.
    Totals,
    /// How many commits there were.
    Commits,
    /// A log's counters.
    Counters(LogId),
    /// A device of a user.
    Device(UserId, Device),
    /// A device that a user had.
    Forgotten(UserId, Device),
    /// A device of a user in a durable topic.
    Member(UserId, Device, Topic),
    /// A notification of a log.
    Head(LogId, Offset),
    /// A piece of a large notification.
    Chunk(LogId, Offset, u16),
    /// Something of the log expires by the start of this minute.
    Expiry(u64, LogId),
    /// What a caller's own id stood for.
    Id(LogId, NotificationId),
    /// That id may be forgotten at the start of this minute.
    IdEnd(u64, LogId, NotificationId),
    /// Tokens that are void.
    Revocation(RevocationId),
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
            Key::Commits => vec![Kind::Commits as u8],
            Key::Counters(LogId::Topic(topic)) => {
                let mut key = vec![Kind::TopicCounters as u8];
                key.extend_from_slice(topic.as_str().as_bytes());
                key
            }
            Key::Counters(log) => of_log(COUNTERS, log, 0),
            Key::Device(user, device) => of_device(Kind::Device, user, device),
            Key::Forgotten(user, device) => of_device(Kind::Forgotten, user, device),
            Key::Member(user, device, topic) => {
                let mut key = of_member(user, device);
                key.extend_from_slice(topic.as_str().as_bytes());
                key
            }
            Key::Head(log, offset) => at(HEADS, log, offset.get()),
            Key::Chunk(log, offset, index) => {
                let mut key = at(CHUNKS, log, offset.get());
                key.extend_from_slice(&index.to_be_bytes());
                key
            }
            Key::Expiry(minute, log) => in_minute(EXPIRIES, *minute, log, 0),
            Key::Id(log, id) => {
                let mut key = of_log(IDS, log, id.as_str().len());
                key.extend_from_slice(id.as_str().as_bytes());
                key
            }
            Key::IdEnd(minute, log, id) => {
                let mut key = in_minute(ID_ENDS, *minute, log, id.as_str().len());
                key.extend_from_slice(id.as_str().as_bytes());
                key
            }
            Key::Revocation(id) => [&[Kind::Revocation as u8][..], &id.to_bytes()].concat(),
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
            Kind::Commits => (Key::Commits, rest),
            Kind::Counters | Kind::BroadcastCounters => {
                let (log, rest) = take_log(kind, rest)?;
                (Key::Counters(log), rest)
            }
            Kind::TopicCounters => (Key::Counters(LogId::Topic(topic_of(rest)?)), &[][..]),
            Kind::Device => {
                let (user, device) = take_device(rest)?;
                (Key::Device(user, device), &[][..])
            }
            Kind::Forgotten => {
                let (user, device) = take_device(rest)?;
                (Key::Forgotten(user, device), &[][..])
            }
            Kind::Member => {
                let (user, rest) = take_user(rest)?;
                let (device, topic) = take_text(rest)?;
                (Key::Member(user, Device::parse(device).ok()?, topic_of(topic)?), &[][..])
            }
            Kind::Head | Kind::BroadcastHead | Kind::TopicHead => {
                let (log, rest) = take_log(kind, rest)?;
                let (offset, rest) = take_offset(rest)?;
                (Key::Head(log, offset), rest)
            }
            Kind::Chunk | Kind::BroadcastChunk | Kind::TopicChunk => {
                let (log, rest) = take_log(kind, rest)?;
                let (offset, rest) = take_offset(rest)?;
                let (index, rest) = rest.split_first_chunk()?;
                (Key::Chunk(log, offset, u16::from_be_bytes(*index)), rest)
            }
            Kind::Expiry | Kind::BroadcastExpiry | Kind::TopicExpiry => {
                let (minute, rest) = rest.split_first_chunk()?;
                let (log, rest) = take_log(kind, rest)?;
                (Key::Expiry(u64::from_be_bytes(*minute), log), rest)
            }
            Kind::Id | Kind::BroadcastId | Kind::TopicId => {
                let (log, id) = take_log(kind, rest)?;
                (Key::Id(log, take_id(id)?), &[][..])
            }
            Kind::IdEnd | Kind::BroadcastIdEnd | Kind::TopicIdEnd => {
                let (minute, rest) = rest.split_first_chunk()?;
                let (log, id) = take_log(kind, rest)?;
                (Key::IdEnd(u64::from_be_bytes(*minute), log, take_id(id)?), &[][..])
            }
            Kind::Revocation => {
                let (id, rest) = rest.split_first_chunk()?;
                (Key::Revocation(RevocationId::from_bytes(*id)), rest)
            }
        };
        rest.is_empty().then_some(decoded)
    }
}

/// A kind of row that every log has: of a user's log, of the broadcast log, and of a topic's.
type OfLog = (Kind, Kind, Kind);

const COUNTERS: OfLog = (Kind::Counters, Kind::BroadcastCounters, Kind::TopicCounters);
const HEADS: OfLog = (Kind::Head, Kind::BroadcastHead, Kind::TopicHead);
const CHUNKS: OfLog = (Kind::Chunk, Kind::BroadcastChunk, Kind::TopicChunk);
const EXPIRIES: OfLog = (Kind::Expiry, Kind::BroadcastExpiry, Kind::TopicExpiry);
const IDS: OfLog = (Kind::Id, Kind::BroadcastId, Kind::TopicId);
const ID_ENDS: OfLog = (Kind::IdEnd, Kind::BroadcastIdEnd, Kind::TopicIdEnd);

const MINUTE_MILLIS: u64 = 60_000;

/// The bucket of what expires at `moment`: the first minute at whose start it has expired, so that all of a bucket has
/// expired when it is due.
pub fn expiry_minute(moment: UnixMillis) -> u64 {
    moment.0.div_ceil(MINUTE_MILLIS)
}

fn until_minute(kind: Kind, now: UnixMillis) -> KeyRange {
    let from = |minute: u64| {
        let mut key = vec![kind as u8];
        key.extend_from_slice(&minute.to_be_bytes());
        key
    };
    (from(0), from((now.0 / MINUTE_MILLIS).saturating_add(1)))
}

fn names(kind: Kind, user: &UserId) -> KeyRange {
    let mut from = vec![kind as u8];
    push_user(&mut from, user);
    // Names of devices hold ASCII only, and their lengths are below this, so that none of this user sorts behind.
    let mut to = from.clone();
    to.push(u8::MAX);
    (from, to)
}

fn push_user(key: &mut Vec<u8>, user: &UserId) {
    push_text(key, user.as_str());
}

fn push_text(key: &mut Vec<u8>, text: &str) {
    // At most 255 bytes: `limits` asserts that a byte holds it.
    key.push(text.len() as u8);
    key.extend_from_slice(text.as_bytes());
}

fn of_member(user: &UserId, device: &Device) -> Vec<u8> {
    let mut key = vec![Kind::Member as u8];
    push_user(&mut key, user);
    push_text(&mut key, device.as_str());
    key
}

fn of_device(kind: Kind, user: &UserId, device: &Device) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 + user.as_str().len() + device.as_str().len());
    key.push(kind as u8);
    push_user(&mut key, user);
    key.extend_from_slice(device.as_str().as_bytes());
    key
}

fn of_log(kind: OfLog, log: &LogId, more: usize) -> Vec<u8> {
    let (kind, name) = named(kind, log);
    let mut key = Vec::with_capacity(2 + name.map_or(0, str::len) + more);
    key.push(kind as u8);
    if let Some(name) = name {
        push_text(&mut key, name);
    }
    key
}

/// The kind of a log's row, and the name that tells the log from others of its kind.
fn named(kind: OfLog, log: &LogId) -> (Kind, Option<&str>) {
    match log {
        LogId::User(user) => (kind.0, Some(user.as_str())),
        LogId::Broadcast => (kind.1, None),
        LogId::Topic(topic) => (kind.2, Some(topic.as_str())),
    }
}

fn at(kind: OfLog, log: &LogId, offset: u64) -> Vec<u8> {
    let mut key = of_log(kind, log, 10);
    key.extend_from_slice(&offset.to_be_bytes());
    key
}

fn in_minute(kind: OfLog, minute: u64, log: &LogId, more: usize) -> Vec<u8> {
    let (kind, name) = named(kind, log);
    let mut key = Vec::with_capacity(10 + name.map_or(0, str::len) + more);
    key.push(kind as u8);
    key.extend_from_slice(&minute.to_be_bytes());
    if let Some(name) = name {
        push_text(&mut key, name);
    }
    key
}

fn take_text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (len, rest) = bytes.split_first()?;
    let (text, rest) = rest.split_at_checked(*len as usize)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

fn take_user(bytes: &[u8]) -> Option<(UserId, &[u8])> {
    let (user, rest) = take_text(bytes)?;
    Some((UserId::parse(user).ok()?, rest))
}

fn topic_of(bytes: &[u8]) -> Option<Topic> {
    Topic::parse(std::str::from_utf8(bytes).ok()?).ok()
}

fn take_log(kind: Kind, bytes: &[u8]) -> Option<(LogId, &[u8])> {
    let all = [COUNTERS, HEADS, CHUNKS, EXPIRIES, IDS, ID_ENDS];
    if all.iter().any(|(_, of_broadcasts, _)| *of_broadcasts == kind) {
        return Some((LogId::Broadcast, bytes));
    }
    let (name, rest) = take_text(bytes)?;
    let of_topic = all.iter().any(|(.., of_topics)| *of_topics == kind);
    let log = if of_topic { LogId::Topic(Topic::parse(name).ok()?) } else { LogId::User(UserId::parse(name).ok()?) };
    Some((log, rest))
}

fn take_device(bytes: &[u8]) -> Option<(UserId, Device)> {
    let (user, name) = take_user(bytes)?;
    Some((user, Device::parse(std::str::from_utf8(name).ok()?).ok()?))
}

fn take_id(bytes: &[u8]) -> Option<NotificationId> {
    NotificationId::parse(std::str::from_utf8(bytes).ok()?).ok()
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

    fn log() -> impl Strategy<Value = LogId> {
        let topic = prop_oneof!["[ab]{1,4}", "[a-zä€]{1,60}"];
        let topic = topic.prop_map(|text| LogId::Topic(Topic::parse(&text).unwrap()));
        prop_oneof![1 => Just(LogId::Broadcast), 4 => user().prop_map(LogId::User), 4 => topic]
    }

    fn id() -> impl Strategy<Value = NotificationId> {
        "[a-c\u{10ffff}]{1,30}".prop_map(|text| NotificationId::parse(&text).unwrap())
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
            Just(Key::Commits),
            log().prop_map(Key::Counters),
            (user(), "[A-Za-z0-9._-]{0,64}").prop_map(|(user, name)| Key::Device(user, Device::parse(&name).unwrap())),
            (user(), "[A-Za-z0-9._-]{0,64}")
                .prop_map(|(user, name)| Key::Forgotten(user, Device::parse(&name).unwrap())),
            (user(), "[A-Za-z0-9._-]{0,64}", "[a-zä]{1,60}").prop_map(|(user, name, topic)| Key::Member(
                user,
                Device::parse(&name).unwrap(),
                Topic::parse(&topic).unwrap()
            )),
            (log(), offset()).prop_map(|(log, offset)| Key::Head(log, offset)),
            (log(), offset(), any::<u16>()).prop_map(|(log, offset, index)| Key::Chunk(log, offset, index)),
            (any::<u64>(), log()).prop_map(|(minute, log)| Key::Expiry(minute, log)),
            (log(), id()).prop_map(|(log, id)| Key::Id(log, id)),
            (any::<u64>(), log(), id()).prop_map(|(minute, log, id)| Key::IdEnd(minute, log, id)),
            any::<[u8; 16]>().prop_map(|id| Key::Revocation(RevocationId::from_bytes(id))),
        ]
    }

    fn holds(range: &KeyRange, key: &[u8]) -> bool {
        *range.0 <= *key && *key < *range.1
    }

    #[test]
    fn keys_are_pinned() {
        let ann = UserId::parse("ann").unwrap();
        let (log, all) = (LogId::User(ann.clone()), LogId::Broadcast);
        let (topic, x1) = (Topic::parse("to").unwrap(), Device::parse("x1").unwrap());
        let of_topic = LogId::Topic(topic.clone());
        let at = Offset::new(0x0102);
        let id = NotificationId::parse("n").unwrap();
        for (key, bytes) in [
            (Key::Format, &[0x01][..]),
            (Key::Epoch, &[0x02]),
            (Key::Mark, &[0x03]),
            (Key::Totals, &[0x04]),
            (Key::Commits, &[0x05]),
            (Key::Counters(log.clone()), &[0x10, 3, b'a', b'n', b'n']),
            (Key::Counters(all.clone()), &[0x12]),
            (Key::Device(ann.clone(), Device::UNNAMED), &[0x11, 3, b'a', b'n', b'n']),
            (Key::Device(ann.clone(), Device::parse("x1").unwrap()), &[0x11, 3, b'a', b'n', b'n', b'x', b'1']),
            (Key::Forgotten(ann.clone(), x1.clone()), &[0x13, 3, b'a', b'n', b'n', b'x', b'1']),
            (Key::Counters(of_topic.clone()), &[0x14, b't', b'o']),
            (Key::Member(ann, x1, topic), &[0x15, 3, b'a', b'n', b'n', 2, b'x', b'1', b't', b'o']),
            (Key::Head(of_topic.clone(), at), &[0x24, 2, b't', b'o', 0, 0, 0, 0, 0, 0, 1, 2]),
            (Key::Chunk(of_topic.clone(), at, 7), &[0x25, 2, b't', b'o', 0, 0, 0, 0, 0, 0, 1, 2, 0, 7]),
            (Key::Expiry(0x0304, of_topic.clone()), &[0x32, 0, 0, 0, 0, 0, 0, 3, 4, 2, b't', b'o']),
            (Key::Id(of_topic.clone(), id.clone()), &[0x44, 2, b't', b'o', b'n']),
            (Key::IdEnd(0x0304, of_topic, id.clone()), &[0x45, 0, 0, 0, 0, 0, 0, 3, 4, 2, b't', b'o', b'n']),
            (Key::Head(log.clone(), at), &[0x20, 3, b'a', b'n', b'n', 0, 0, 0, 0, 0, 0, 1, 2]),
            (Key::Head(all.clone(), at), &[0x22, 0, 0, 0, 0, 0, 0, 1, 2]),
            (Key::Chunk(log.clone(), at, 7), &[0x21, 3, b'a', b'n', b'n', 0, 0, 0, 0, 0, 0, 1, 2, 0, 7]),
            (Key::Chunk(all.clone(), at, 7), &[0x23, 0, 0, 0, 0, 0, 0, 1, 2, 0, 7]),
            (Key::Expiry(0x0304, log.clone()), &[0x30, 0, 0, 0, 0, 0, 0, 3, 4, 3, b'a', b'n', b'n']),
            (Key::Expiry(0x0304, all.clone()), &[0x31, 0, 0, 0, 0, 0, 0, 3, 4]),
            (Key::Id(log.clone(), id.clone()), &[0x40, 3, b'a', b'n', b'n', b'n']),
            (Key::Id(all.clone(), id.clone()), &[0x41, b'n']),
            (Key::IdEnd(0x0304, log, id.clone()), &[0x42, 0, 0, 0, 0, 0, 0, 3, 4, 3, b'a', b'n', b'n', b'n']),
            (Key::IdEnd(0x0304, all, id), &[0x43, 0, 0, 0, 0, 0, 0, 3, 4, b'n']),
            (
                Key::Revocation(RevocationId::from_bytes([7; 16])),
                &[0x50, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7],
            ),
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
        let row = Key::Expiry(2, LogId::User(ann)).encode();
        assert!(!holds(&due(UnixMillis(119_999))[0], &row));
        assert!(holds(&due(UnixMillis(120_000))[0], &row));
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
            log in log(), a in offset(), b in offset(), i in any::<u16>(), j in any::<u16>(), m in any::<u64>(), n in any::<u64>(),
        ) {
            let head = |offset| Key::Head(log.clone(), offset).encode();
            prop_assert_eq!(head(a).cmp(&head(b)), a.cmp(&b));
            let chunk = |offset, index| Key::Chunk(log.clone(), offset, index).encode();
            prop_assert_eq!(chunk(a, i).cmp(&chunk(b, j)), (a, i).cmp(&(b, j)));
            let minute = |minute| Key::Expiry(minute, log.clone()).encode();
            prop_assert_eq!(minute(m).cmp(&minute(n)), m.cmp(&n));
        }

        #[test]
        fn ranges_hold_what_they_name_and_nothing_else(
            key in key(), user in user(), log in log(), a in offset(), b in offset(), now in 0u64..u64::MAX,
        ) {
            let bytes = key.encode();
            let wanted = matches!(&key, Key::Head(l, o) if *l == log && *o > a && *o <= b);
            prop_assert_eq!(holds(&heads(&log, a, b), &bytes), wanted);
            let wanted = matches!(&key, Key::Chunk(l, o, _) if *l == log && *o == a);
            prop_assert_eq!(holds(&chunks(&log, a), &bytes), wanted);
            let wanted = matches!(&key, Key::Device(u, _) if *u == user);
            prop_assert_eq!(holds(&devices(&user), &bytes), wanted);
            let wanted = matches!(&key, Key::Forgotten(u, _) if *u == user);
            prop_assert_eq!(holds(&forgotten(&user), &bytes), wanted);
            let wanted = matches!(&key, Key::Member(u, ..) if *u == user);
            prop_assert_eq!(holds(&members(&user), &bytes), wanted);
            let of_topic = matches!(&key, Key::Counters(LogId::Topic(_)));
            prop_assert_eq!(holds(&topic_counters("", None), &bytes), of_topic);
            let wanted = matches!(&key, Key::Counters(LogId::Topic(t)) if t.as_str().starts_with('a') && t.as_str() > "ab");
            prop_assert_eq!(holds(&topic_counters("a", Some(&Topic::parse("ab").unwrap())), &bytes), wanted);
            let wanted = matches!(&key, Key::Id(l, _) if *l == log);
            prop_assert_eq!(holds(&ids(&log), &bytes), wanted);
            prop_assert_eq!(holds(&all_devices(None), &bytes), matches!(&key, Key::Device(..)));
            prop_assert!(!holds(&all_devices(Some(&key)), &bytes));
            prop_assert_eq!(holds(&revocations(None), &bytes), matches!(&key, Key::Revocation(_)));
            if let Key::Revocation(id) = &key {
                prop_assert!(!holds(&revocations(Some(*id)), &bytes));
            }
            let wanted = matches!(&key, Key::Expiry(minute, _) if *minute <= now / 60_000);
            prop_assert_eq!(due(UnixMillis(now)).iter().any(|range| holds(range, &bytes)), wanted);
            let wanted = matches!(&key, Key::IdEnd(minute, ..) if *minute <= now / 60_000);
            prop_assert_eq!(due_ids(UnixMillis(now)).iter().any(|range| holds(range, &bytes)), wanted);
        }
    }
}
