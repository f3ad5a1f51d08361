//! Who is in memory. Users come on demand and stay while they have sessions or writes under way; those without are
//! kept while there is room, the longest idle leave first.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, atomic::Ordering},
};

use parking_lot::Mutex;

use super::user::User;
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
        Self { hasher: RandomState::new(), shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
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

    /// Those with a session and an id above `after`, the lowest `max` of them, in order. Not of one moment: who comes or
    /// goes meanwhile may be among them or not.
    pub async fn online(&self, after: Option<&UserId>, max: usize) -> Vec<Arc<User>> {
        let mut found: Vec<Arc<User>> = Vec::new();
        for shard in &self.shards {
            // Whether they have sessions is for their own locks to say, which come before a shard's.
            let all: Vec<_> = shard.lock().users.values().cloned().collect();
            found.extend(
                all.into_iter().filter(|user| after.is_none_or(|after| user.id > *after) && user.has_sessions()),
            );
            if found.len() > max.saturating_mul(2) {
                found.select_nth_unstable_by(max, |one, other| one.id.cmp(&other.id));
                found.truncate(max);
            }
            tokio::task::yield_now().await;
        }
        found.sort_unstable_by(|one, other| one.id.cmp(&other.id));
        found.truncate(max);
        found
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
}
