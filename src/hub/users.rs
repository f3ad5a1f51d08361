//! Who is in memory. Users come on demand and stay while they have sessions or writes under way; those without are
//! kept while there is room, the longest idle leave first.

use std::{
    borrow::Borrow,
    collections::{BTreeSet, HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    ops::Bound,
    sync::{Arc, atomic::Ordering},
};

use parking_lot::Mutex;

use super::{handle::Handle, user::User};
use crate::{limits, types::UserId};

const SHARDS: usize = 64;
/// What the idle users of a shard may weigh together; an index entry weighs two, a user sixteen.
const IDLE_WEIGHT_MAX: usize = limits::IDLE_USERS_MAX * 16 / SHARDS;

/// Candidates looked at in one go.
const LOOKS_MAX: usize = 16;

/// All users in memory.
#[derive(Debug)]
pub struct Users {
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
    /// Those with sessions, in order. Locked behind a user's state.
    online: Mutex<BTreeSet<ById>>,
}

/// A user who is online.
#[derive(Debug)]
pub struct OnlineUser {
    /// Who.
    pub id: UserId,
    /// His sessions, those that are being closed among them. None: the last has left in this very moment.
    pub sessions: usize,
    /// His oldest and his latest session.
    pub ends: Option<(Arc<Handle>, Arc<Handle>)>,
}

impl OnlineUser {
    pub(super) fn of(user: &User) -> Self {
        let state = user.state();
        // Ids rise with the time at which they were given.
        let oldest = state.sessions.iter().min_by_key(|handle| handle.id);
        let latest = state.sessions.iter().max_by_key(|handle| handle.id);
        let ends = oldest.zip(latest).map(|(oldest, latest)| (Arc::clone(oldest), Arc::clone(latest)));
        Self { id: user.id.clone(), sessions: state.sessions.len(), ends }
    }
}

/// A user in the order of ids.
#[derive(Debug)]
struct ById(Arc<User>);

impl Borrow<UserId> for ById {
    fn borrow(&self) -> &UserId {
        &self.0.id
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

impl PartialOrd for ById {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ById {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.id.cmp(&other.0.id)
    }
}

#[derive(Debug, Default)]
struct Shard {
    users: HashMap<UserId, Arc<User>>,
    /// In the order in which they were found idle.
    idle: VecDeque<UserId>,
    idle_weight: usize,
}

impl Users {
    /// Nobody yet.
    pub fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { hasher: RandomState::new(), shards, online: Mutex::default() }
    }

    fn shard(&self, id: &UserId) -> &Mutex<Shard> {
        &self.shards[self.hasher.hash_one(id) as usize % SHARDS]
    }

    /// The user, if he is in memory.
    pub fn get(&self, id: &UserId) -> Option<Arc<User>> {
        self.shard(id).lock().users.get(id).cloned()
    }

    /// The user, taken into memory where he is not.
    pub fn get_or_insert(&self, id: &UserId) -> Arc<User> {
        let mut shard = self.shard(id).lock();
        if let Some(user) = shard.users.get(id) {
            return Arc::clone(user);
        }
        let user = Arc::new(User::new(id.clone()));
        shard.users.insert(id.clone(), Arc::clone(&user));
        user
    }

    /// Notes that a user was used and may be idle from now on, and forgets the longest idle ones beyond the bound.
    pub fn touch(&self, user: &Arc<User>) {
        let (weight, counted) = (user.weight(), user.idle_weight.load(Ordering::Relaxed));
        // Counted anew only where it makes a difference.
        if counted != 0 && weight < counted.saturating_mul(2) && counted < weight.saturating_mul(2) {
            return;
        }
        let mut shard = self.shard(&user.id).lock();
        let shard = &mut *shard;
        let counted = user.idle_weight.swap(weight, Ordering::Relaxed);
        if counted == 0 {
            shard.idle.push_back(user.id.clone());
        }
        shard.idle_weight = shard.idle_weight + weight - counted;
        for _ in 0..LOOKS_MAX {
            if shard.idle_weight <= IDLE_WEIGHT_MAX {
                break;
            }
            let Some(id) = shard.idle.pop_front() else { break };
            let Some(candidate) = shard.users.get(&id) else { continue };
            // Nobody can take a new reference while the shard is locked, so the count cannot rise from 1.
            if Arc::strong_count(candidate) == 1 && candidate.is_forgettable() {
                shard.idle_weight -= candidate.idle_weight.load(Ordering::Relaxed);
                shard.users.remove(&id);
            } else if candidate.has_sessions() {
                // Not idle: he is noted again when the last of them has left.
                shard.idle_weight -= candidate.idle_weight.swap(0, Ordering::Relaxed);
            } else {
                // In somebody's hands, or with writes under way: he stays in the queue, behind the others.
                shard.idle.push_back(id);
            }
        }
    }

    /// All that are in memory.
    pub fn all(&self) -> Vec<Arc<User>> {
        self.shards.iter().flat_map(|shard| shard.lock().users.values().cloned().collect::<Vec<_>>()).collect()
    }

    /// The user's first session has come. With his state locked, as for the next.
    pub fn came(&self, user: &Arc<User>) {
        self.online.lock().insert(ById(Arc::clone(user)));
    }

    /// His last session has left.
    pub fn went(&self, user: &User) {
        self.online.lock().remove(&user.id);
    }

    /// Those with a session and an id above `after`, the lowest `max` of them, in order.
    pub fn online(&self, after: Option<&UserId>, max: usize) -> Vec<Arc<User>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let online = self.online.lock();
        online.range::<UserId, _>((from, Bound::Unbounded)).take(max).map(|ById(user)| Arc::clone(user)).collect()
    }

    /// How many have a session.
    pub fn online_count(&self) -> usize {
        self.online.lock().len()
    }

    /// How many are in memory.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().users.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mailbox_that_grows_weighs_more() {
        const ENTRIES: u64 = 1000;
        let (users, mut entries) = (Users::new(), 0);
        for n in 0..1500 {
            let user = users.get_or_insert(&UserId::parse(&format!("user-{n}")).unwrap());
            users.touch(&user);
            for offset in 1..=ENTRIES {
                user.state().log.push(crate::store::IndexEntry {
                    offset: crate::types::Offset::new(offset),
                    bytes: 1,
                    chunks: 0,
                    expires_at: crate::types::UnixMillis(u64::MAX),
                    id: crate::types::NotificationId::parse("n").unwrap(),
                    remembered: false,
                    collapse_key: None,
                    confirmed: false,
                });
            }
            users.touch(&user);
        }
        for user in users.all() {
            entries += user.state().log.index.len();
        }
        assert!(entries <= limits::IDLE_USERS_MAX * 16 / 2 + SHARDS * ENTRIES as usize, "{entries}");
    }

    #[test]
    fn idle_users_are_forgotten_beyond_the_bound_and_held_ones_are_not() {
        let users = Users::new();
        let held = users.get_or_insert(&UserId::parse("held").unwrap());
        users.touch(&held);
        for n in 0..limits::IDLE_USERS_MAX * 3 / 2 {
            users.touch(&users.get_or_insert(&UserId::parse(&format!("user-{n}")).unwrap()));
        }
        assert!(users.len() <= limits::IDLE_USERS_MAX + 1, "{}", users.len());
        assert!(Arc::ptr_eq(&held, &users.get(&UserId::parse("held").unwrap()).unwrap()));
    }

    #[test]
    fn a_page_of_those_who_are_online_costs_a_page_however_many_are_not() {
        const IDLE: usize = 50_000;
        const PAGES: usize = 200;
        let users = Users::new();
        for n in 0..IDLE {
            users.get_or_insert(&UserId::parse(&format!("idle-{n}")).unwrap());
        }
        for n in 0..PAGES * 10 {
            users.came(&users.get_or_insert(&UserId::parse(&format!("user-{n:04}")).unwrap()));
        }
        let listed = || {
            let (mut listed, mut after) = (Vec::new(), None);
            loop {
                let page = users.online(after.as_ref(), 10);
                let Some(last) = page.last() else { return listed };
                after = Some(last.id.clone());
                listed.extend(page.iter().map(|user| user.id.as_str().to_owned()));
            }
        };
        assert_eq!(listed(), (0..PAGES * 10).map(|n| format!("user-{n:04}")).collect::<Vec<_>>());
        // Two hundred pages take less than ten walks through everybody; the machine may be busy meanwhile.
        let timed = |work: &dyn Fn() -> usize| {
            let begun = std::time::Instant::now();
            assert!(work() > 0);
            begun.elapsed()
        };
        let cheap = (0..10).any(|_| timed(&|| listed().len()) < 10 * timed(&|| users.all().len()));
        assert!(cheap);
        users.went(&users.get(&UserId::parse("user-0003").unwrap()).unwrap());
        assert_eq!((users.online(None, 9999).len(), users.online_count()), (PAGES * 10 - 1, PAGES * 10 - 1));
    }
}
