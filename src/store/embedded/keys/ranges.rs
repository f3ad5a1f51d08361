//! Which keys stand together: what is read in one go.

use super::{CHUNKS, COUNTERS, EXPIRIES, HEADS, ID_ENDS, IDS, Key, KeyRange, Kind, at, names, of_log, until_minute};
use crate::types::{LogId, Offset, RevocationId, Topic, UnixMillis, UserId};

/// The notifications of a log with offsets in (`after`, `upto`].
pub fn heads(log: &LogId, after: Offset, upto: Offset) -> KeyRange {
    // One past the highest offset is 2^53, which a key holds although no offset is.
    (at(HEADS, log, after.get() + 1), at(HEADS, log, upto.get() + 1))
}

/// The notifications of all users.
pub fn user_heads() -> KeyRange {
    (vec![Kind::Head as u8], vec![Kind::Head as u8 + 1])
}

/// The pieces of one notification.
pub fn chunks(log: &LogId, offset: Offset) -> KeyRange {
    (at(CHUNKS, log, offset.get()), at(CHUNKS, log, offset.get() + 1))
}

/// The pieces of all notifications of a log.
pub fn all_chunks(log: &LogId) -> KeyRange {
    (at(CHUNKS, log, 0), at(CHUNKS, log, Offset::MAX.get() + 1))
}

/// The counters of all users, and of all topics.
pub fn all_counters() -> [KeyRange; 2] {
    [whole(Kind::Counters), whole(Kind::TopicCounters)]
}

/// The counters of topics with names that begin with `prefix`, from the first behind `after` on.
pub fn topic_counters(prefix: &str, after: Option<&Topic>) -> KeyRange {
    let mut from = vec![Kind::TopicCounters as u8];
    from.extend_from_slice(prefix.as_bytes());
    let mut to = from.clone();
    // No name, being UTF-8, holds this byte.
    to.push(u8::MAX);
    if let Some(after) = after.filter(|after| after.as_str() >= prefix) {
        from = Key::Counters(LogId::Topic(after.clone())).encode();
        from.push(0);
    }
    (from, to)
}

fn whole(kind: Kind) -> KeyRange {
    (vec![kind as u8], vec![kind as u8 + 1])
}

/// What the devices of a user are members of.
pub fn members(user: &UserId) -> KeyRange {
    names(Kind::Member, user)
}

/// The devices of `user`.
pub fn devices(user: &UserId) -> KeyRange {
    names(Kind::Device, user)
}

/// The forgotten devices of `user`.
pub fn forgotten(user: &UserId) -> KeyRange {
    names(Kind::Forgotten, user)
}

/// The devices of all users, from the first one behind `after` on.
pub fn all_devices(after: Option<&Key>) -> KeyRange {
    let from = after.map_or_else(
        || vec![Kind::Device as u8],
        |key| {
            let mut next = key.encode();
            next.push(0);
            next
        },
    );
    (from, vec![Kind::Device as u8 + 1])
}

/// The own ids of callers in a log.
pub fn ids(log: &LogId) -> KeyRange {
    let from = of_log(IDS, log, 0);
    let mut to = from.clone();
    // No id, being UTF-8, holds this byte.
    to.push(u8::MAX);
    (from, to)
}

/// The expiry rows of users, of the broadcast log and of topics that are due at `now`.
pub fn due(now: UnixMillis) -> [KeyRange; 3] {
    [until_minute(EXPIRIES.0, now), until_minute(EXPIRIES.1, now), until_minute(EXPIRIES.2, now)]
}

/// The rows of ids that are due at `now`.
pub fn due_ids(now: UnixMillis) -> [KeyRange; 3] {
    [until_minute(ID_ENDS.0, now), until_minute(ID_ENDS.1, now), until_minute(ID_ENDS.2, now)]
}

/// Every kind of row that an export writes down: what other rows follow from. Kinds beside each other are one range.
pub fn exported() -> Vec<KeyRange> {
    let small = (vec![Kind::Counters as u8], vec![Kind::Member as u8 + 1]);
    let ids = (vec![Kind::Id as u8], vec![Kind::BroadcastId as u8 + 1]);
    [small].into_iter().chain(all_heads()).chain([ids, whole(Kind::TopicId), revocations(None)]).collect()
}

/// The notifications of all logs.
pub fn all_heads() -> [KeyRange; 3] {
    [whole(HEADS.0), whole(HEADS.1), whole(HEADS.2)]
}

/// The same of one user.
pub fn exported_of(user: &UserId) -> Vec<KeyRange> {
    let log = LogId::User(user.clone());
    let counters = of_log(COUNTERS, &log, 0);
    let mut behind = counters.clone();
    behind.push(0);
    let heads = heads(&log, Offset::ZERO, Offset::MAX);
    vec![(counters, behind), devices(user), forgotten(user), members(user), heads, ids(&log)]
}

/// What is known of tokens that are void, from the first one behind `after` on.
pub fn revocations(after: Option<RevocationId>) -> KeyRange {
    let (from, to) = whole(Kind::Revocation);
    let behind = |id| {
        let mut next = Key::Revocation(id).encode();
        next.push(0);
        next
    };
    (after.map_or(from, behind), to)
}

/// The whole map.
pub fn all() -> KeyRange {
    (vec![0], vec![u8::MAX])
}
