//! Tokens that are void before they run out, in memory: asked for every token, whether it was verified before or not.
//!
//! Who makes them void stores that, too, and brings it back after a restart; here is what is asked. Bounded by
//! [`limits::REVOCATIONS_MAX`], some 50 bytes each.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::RwLock;

use crate::{
    limits,
    types::{Revocation, RevocationId, TokenMark, UnixMillis, UserId},
};

/// No moment: nothing is there that could be forgotten.
const NEVER: u64 = u64::MAX;

/// See the module's documentation.
#[derive(Debug)]
pub struct Revocations {
    table: RwLock<HashMap<RevocationId, Revocation>>,
    /// When the first of them may be forgotten; `None` of them is there where this says so and `any` is 0.
    earliest: AtomicU64,
    any: AtomicU64,
}

/// As many are known as may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Default for Revocations {
    fn default() -> Self {
        Self { table: RwLock::default(), earliest: AtomicU64::new(NEVER), any: AtomicU64::new(0) }
    }
}

impl Revocations {
    /// Whether a token of that user is void.
    pub fn covers(&self, token: &TokenMark, user: &UserId, now: UnixMillis) -> bool {
        // The usual case costs a load.
        if self.any.load(Ordering::Acquire) == 0 {
            return false;
        }
        let table = self.table.read();
        let void = |id: RevocationId| {
            table.get(&id).is_some_and(|one| one.expires_at > now && one.covers(token.issued_at_secs))
        };
        token.id.is_some_and(|id| void(RevocationId::of_token(id))) || void(RevocationId::of_user(user))
    }

    /// Adds to what is known; what is known of the same tokens afterwards, for each. None of them where there is no room
    /// for all.
    pub fn add(
        &self,
        added: &[(RevocationId, Revocation)],
        now: UnixMillis,
    ) -> Result<Vec<(RevocationId, Revocation)>, Full> {
        let mut table = self.table.write();
        let new = added.iter().filter(|(id, _)| !table.contains_key(id)).count();
        if table.len() + new > limits::REVOCATIONS_MAX {
            return Err(Full);
        }
        let merged = added.iter().map(|(id, one)| {
            // What has run out says nothing any more.
            let before = table.get(id).filter(|before| before.expires_at > now);
            let both = before.map_or(*one, |before| before.and(*one));
            table.insert(*id, both);
            self.earliest.fetch_min(both.expires_at.0, Ordering::AcqRel);
            (*id, both)
        });
        let merged = merged.collect();
        self.any.store(table.len() as u64, Ordering::Release);
        Ok(merged)
    }

    /// Takes out what may be forgotten.
    pub fn take_expired(&self, now: UnixMillis) -> Vec<RevocationId> {
        if self.earliest.load(Ordering::Acquire) > now.0 {
            return Vec::new();
        }
        let mut table = self.table.write();
        let expired: Vec<_> = table.extract_if(|_, one| one.expires_at <= now).map(|(id, _)| id).collect();
        if table.capacity() > 4 * table.len().max(1024) {
            table.shrink_to_fit();
        }
        let earliest = table.values().map(|one| one.expires_at.0).min().unwrap_or(NEVER);
        self.earliest.store(earliest, Ordering::Release);
        self.any.store(table.len() as u64, Ordering::Release);
        expired
    }

    /// When the first of them may be forgotten.
    pub fn earliest_end(&self) -> UnixMillis {
        UnixMillis(self.earliest.load(Ordering::Acquire))
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        usize::try_from(self.any.load(Ordering::Acquire)).unwrap_or(usize::MAX)
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TokenId;

    fn mark(jti: &str, issued_at_secs: u32) -> TokenMark {
        TokenMark { id: Some(TokenId::of(jti)), issued_at_secs, ..TokenMark::NONE }
    }

    #[test]
    fn what_is_revoked_is_void_until_it_is_forgotten_and_nothing_else_is() {
        let revocations = Revocations::default();
        let (ann, bob, now) = (UserId::parse("ann").unwrap(), UserId::parse("bob").unwrap(), UnixMillis(1_000_000));
        let of = |id: &str| RevocationId::of_token(TokenId::of(id));
        revocations.add(&[(of("x"), Revocation::whole(UnixMillis(2_000_000)))], now).unwrap();
        let by_user = Revocation { issued_before: UnixMillis(500_000), expires_at: UnixMillis(3_000_000) };
        revocations.add(&[(RevocationId::of_user(&bob), by_user)], now).unwrap();
        assert!(revocations.covers(&mark("x", 999), &ann, now) && !revocations.covers(&mark("y", 0), &ann, now));
        assert!(revocations.covers(&mark("y", 499), &bob, now) && !revocations.covers(&mark("y", 500), &bob, now));
        assert!(!revocations.covers(&mark("x", 0), &ann, UnixMillis(2_000_000)), "its time is over");
        // What is said later of the same does not make it shorter.
        let earlier = Revocation { issued_before: UnixMillis(1), expires_at: UnixMillis(2_500_000) };
        let merged = revocations.add(&[(RevocationId::of_user(&bob), earlier)], now).unwrap();
        assert_eq!(merged, [(RevocationId::of_user(&bob), by_user)]);
        assert!(revocations.take_expired(UnixMillis(1_999_999)).is_empty());
        assert_eq!(revocations.take_expired(UnixMillis(2_000_000)), [of("x")]);
        assert_eq!(revocations.earliest_end(), UnixMillis(3_000_000));
        assert_eq!(revocations.take_expired(UnixMillis(u64::MAX)).len(), 1);
        assert!(revocations.is_empty());
    }

    #[test]
    fn there_are_only_so_many_and_what_is_known_already_needs_no_room() {
        let revocations = Revocations::default();
        let (now, end) = (UnixMillis(0), Revocation::whole(UnixMillis(10)));
        let id = |n: usize| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            RevocationId::from_bytes(bytes)
        };
        let all: Vec<_> = (0..limits::REVOCATIONS_MAX).map(|n| (id(n), end)).collect();
        revocations.add(&all, now).unwrap();
        assert_eq!(revocations.add(&[(id(0), end), (id(all.len()), end)], now), Err(Full));
        assert!(revocations.add(&[(id(0), end)], now).is_ok());
        assert_eq!(revocations.len(), limits::REVOCATIONS_MAX);
        assert_eq!(revocations.take_expired(UnixMillis(10)).len(), limits::REVOCATIONS_MAX);
        assert!(revocations.add(&[(id(all.len()), end)], now).is_ok());
    }
}
