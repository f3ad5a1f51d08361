//! Tokens that were found good, so that a client who comes back is not verified again: by the SHA-256 of the whole
//! token, until it runs out.
//!
//! Bounded: two generations a shard, the older one dropped where the younger is full, so that what was not seen for
//! longest goes. Only what was good is kept, so what strangers send leaves nothing here. The cache lives and dies with the
//! keys that its entries were judged by: other keys are another [`super::keys::KeySet`]. Whether a token has run out is
//! looked at each time, and whether it was revoked by whoever asks.

use std::{collections::HashMap, mem};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::Identity;
use crate::{limits, types::UnixMillis};

const SHARDS: usize = 16;
const GENERATION_MAX: usize = limits::VERIFIED_TOKENS_MAX / SHARDS / 2;

/// A token's SHA-256. Nobody finds another token with the same one.
pub(super) type Hash = [u8; 32];

#[derive(Default)]
struct Shard {
    young: HashMap<Hash, Identity>,
    old: HashMap<Hash, Identity>,
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Cache {
    shards: [Mutex<Shard>; SHARDS],
}

impl Cache {
    pub(super) fn hash(token: &str) -> Hash {
        Sha256::digest(token).into()
    }

    fn shard(&self, hash: &Hash) -> &Mutex<Shard> {
        &self.shards[usize::from(hash[0]) % SHARDS]
    }

    /// Whose token it is, where it was verified before and has not run out.
    pub(super) fn get(&self, hash: &Hash, now: UnixMillis) -> Option<Identity> {
        let mut shard = self.shard(hash).lock();
        let found = match shard.young.get(hash) {
            Some(identity) => identity.clone(),
            None => {
                let identity = shard.old.remove(hash)?;
                shard.put(*hash, identity.clone());
                identity
            }
        };
        if found.valid_until().is_none_or(|end| end > now) {
            return Some(found);
        }
        shard.young.remove(hash);
        None
    }

    /// Keeps what was found good.
    pub(super) fn put(&self, hash: Hash, identity: Identity) {
        self.shard(&hash).lock().put(hash, identity);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let count = |shard: &Mutex<Shard>| {
            let shard = shard.lock();
            shard.young.len() + shard.old.len()
        };
        self.shards.iter().map(count).sum()
    }
}

impl Shard {
    fn put(&mut self, hash: Hash, identity: Identity) {
        if self.young.len() >= GENERATION_MAX {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(hash, identity);
    }
}
