//! What makes tokens void before they run out: their `jti`, or their user and when they were issued.

use std::{fmt, num::NonZeroU64};

use sha2::{Digest as _, Sha256};

use super::{UnixMillis, UserId};

/// Which tokens: those of one `jti` (RFC 7519 section 4.1.7), or those of one user. A part of a SHA-256, so that what is kept
/// of either has one size, and neither stands in the store: 16 bytes for a user. Of a `jti` there are 8, which is as much
/// as each session keeps of its own; with as many revoked as may be, a good token is taken for one of them once in 2^46.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RevocationId([u8; 16]);

impl RevocationId {
    /// The tokens of this user.
    pub fn of_user(user: &UserId) -> Self {
        Self(Self::hash(b"user:", user.as_str()))
    }

    /// The tokens with this `jti`.
    pub fn of_token(jti: TokenId) -> Self {
        let mut id = *b"\0\0\0\0\0\0\0\0     jti";
        id[..8].copy_from_slice(&jti.0.get().to_be_bytes());
        Self(id)
    }

    /// As [`RevocationId::to_bytes`] gave it.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// As it is stored.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    fn hash(kind: &[u8], text: &str) -> [u8; 16] {
        let digest: [u8; 32] = Sha256::new().chain_update(kind).chain_update(text).finalize().into();
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        half
    }
}

/// A `jti`, by a part of its SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenId(NonZeroU64);

impl TokenId {
    /// The `jti` as the token has it.
    pub fn of(jti: &str) -> Self {
        let hash = RevocationId::hash(b"jti:", jti);
        let number = hash.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte));
        Self(NonZeroU64::new(number).unwrap_or(NonZeroU64::MIN))
    }
}

/// What is known of a token while a session lives by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenMark {
    /// Its `jti`, where it has one.
    pub id: Option<TokenId>,
    /// When it was issued (`iat`), in seconds since the Unix epoch; 0 where it does not say.
    pub issued_at_secs: u32,
    /// When it runs out (`exp`), in seconds, rounded up; the highest number where it does not, or not before 2106.
    pub expires_at_secs: u32,
}

impl TokenMark {
    /// Of no token.
    pub const NONE: TokenMark = TokenMark { id: None, issued_at_secs: u32::MAX, expires_at_secs: u32::MAX };

    /// When it runs out; the end of time where it does not, or not before 2106.
    pub fn expires_at(&self) -> UnixMillis {
        UnixMillis(if self.expires_at_secs == u32::MAX { u64::MAX } else { u64::from(self.expires_at_secs) * 1000 })
    }
}

impl fmt::Debug for RevocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// What is void of them, and until when that has to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Those that were issued before; one that does not say when it was issued counts as issued before any moment. Of one
    /// `jti` all are: the end of time.
    pub issued_before: UnixMillis,
    /// By then they have run out by themselves, and this may be forgotten.
    pub expires_at: UnixMillis,
}

impl Revocation {
    /// Every token of the `jti`.
    pub const fn whole(expires_at: UnixMillis) -> Self {
        Self { issued_before: UnixMillis(u64::MAX), expires_at }
    }

    /// Whether it makes a token void that was issued then, in seconds since the Unix epoch; 0: it does not say.
    pub fn covers(&self, issued_at_secs: u32) -> bool {
        u64::from(issued_at_secs) * 1000 < self.issued_before.0
    }

    /// Both of two for the same tokens: what either makes void is, for as long as either is known.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            issued_before: self.issued_before.max(other.issued_before),
            expires_at: self.expires_at.max(other.expires_at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_and_a_user_of_one_name_are_two() {
        let user = UserId::parse("a").unwrap();
        assert_ne!(RevocationId::of_token(TokenId::of("a")), RevocationId::of_user(&user));
        assert_ne!(TokenId::of("a"), TokenId::of("b"));
        let id = RevocationId::of_token(TokenId::of("a"));
        assert_eq!(format!("{id:?}"), "bf7b66c4f6a6722020202020206a7469", "stores hold it");
    }

    #[test]
    fn what_was_issued_in_the_second_of_the_moment_is_covered_and_later_is_not() {
        let revocation = Revocation { issued_before: UnixMillis(10_500), expires_at: UnixMillis(0) };
        assert!(revocation.covers(0) && revocation.covers(10) && !revocation.covers(11));
        assert!(Revocation::whole(UnixMillis(0)).covers(u32::MAX));
        let exact = Revocation { issued_before: UnixMillis(10_000), expires_at: UnixMillis(0) };
        assert!(exact.covers(9) && !exact.covers(10));
    }
}
