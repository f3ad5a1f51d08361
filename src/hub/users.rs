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
/// What the idle users of a shard may weigh together; an index entry weighs one, a user sixteen.
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
    /// In the order in which they were found idle, with their weight then.
    idle: VecDeque<(UserId, usize)>,
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
        if user.idle.swap(true, Ordering::Relaxed) {
            return;
        }
        let weight = user.weight();
        let mut shard = self.shard(&user.id).lock();
        let shard = &mut *shard;
        shard.idle.push_back((user.id.clone(), weight));
        shard.idle_weight += weight;
        for _ in 0..LOOKS_MAX {
            if shard.idle_weight <= IDLE_WEIGHT_MAX {
                break;
            }
            let Some((id, weight)) = shard.idle.pop_front() else { break };
            shard.idle_weight -= weight;
            let Some(candidate) = shard.users.get(&id) else { continue };
            // Nobody can take a new reference while the shard is locked, so the count cannot rise from 1.
            if Arc::strong_count(candidate) == 1 && candidate.is_forgettable() {
                shard.users.remove(&id);
            } else {
                // In use, or with writes under way: he stays in the queue, behind the others.
                shard.idle.push_back((id, weight));
                shard.idle_weight += weight;
            }
        }
    }

    /// All that are in memory.
    pub fn all(&self) -> Vec<Arc<User>> {
        self.shards.iter().flat_map(|shard| shard.lock().users.values().cloned().collect::<Vec<_>>()).collect()
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
