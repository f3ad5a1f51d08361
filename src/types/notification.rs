//! A notification as it travels through the house: validated, its payload untouched.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{CollapseKey, NotificationId, TypeName, UserId};

/// A moment in milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// Later by `span`; stays at the end of time instead of wrapping.
    pub fn saturating_add(self, span: std::time::Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// RFC 3339, UTC, with milliseconds; what clients see. Moments after the year 9999 are shown as its end.
    pub fn rfc3339(self) -> impl std::fmt::Display {
        const YEAR_9999_END: u64 = 253_402_300_799_999;
        let moment = std::time::UNIX_EPOCH + std::time::Duration::from_millis(self.0.min(YEAR_9999_END));
        humantime::format_rfc3339_millis(moment)
    }
}

/// What a notification carries. Passed on as it came, never altered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// JSON text that was checked once.
    Json(Bytes),
    /// Bytes; clients get them as such where they asked for it, else as base64.
    Binary(Bytes),
}

impl Payload {
    /// The payload of a notification that carries nothing.
    pub const NULL: Payload = Payload::Json(Bytes::from_static(b"null"));

    /// Its bytes, whatever they mean.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Payload::Json(bytes) | Payload::Binary(bytes) => bytes,
        }
    }
}

/// The bytes of a [`Digest`].
const DIGEST_BYTES: usize = 16;

/// See [`Notification::digest`].
pub type Digest = [u8; DIGEST_BYTES];

/// What a user should see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// The caller's id or a UUIDv7.
    pub id: NotificationId,
    /// What clients see as `type`.
    pub type_name: TypeName,
    /// What clients see as `data`.
    pub payload: Payload,
    /// What clients see as `fromUserId`.
    pub from_user: Option<UserId>,
    /// What it takes the place of: the stored one of the same log with the same key.
    pub collapse_key: Option<CollapseKey>,
    /// Whom a broadcast leaves out; empty for what goes to one user.
    pub not_for: Arc<[UserId]>,
    /// When the gateway accepted it; what clients see as `timestamp`.
    pub accepted_at: UnixMillis,
    /// When it stops being worth delivering. `None`: never by itself (only for what is not stored).
    pub expires_at: Option<UnixMillis>,
}

impl Notification {
    /// Whether its time has run out at `now`.
    pub fn is_expired(&self, now: UnixMillis) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    /// Whether it was accepted with a TTL of zero: for those who are there now, and never stored.
    pub fn is_now_or_never(&self) -> bool {
        self.is_expired(self.accepted_at)
    }

    /// What it counts against the quotas, in bytes: payload, id, type, sender, collapse key and whom it leaves out, and
    /// 64 for the row itself.
    pub fn accounted_bytes(&self) -> u64 {
        let from = self.from_user.as_ref().map_or(0, |user| user.as_str().len());
        let collapse = self.collapse_key.as_ref().map_or(0, |key| key.as_str().len());
        let not_for: usize = self.not_for.iter().map(|user| user.as_str().len()).sum();
        let texts = self.id.as_str().len() + self.type_name.as_str().len() + from + collapse + not_for;
        (self.payload.bytes().len() + texts + 64) as u64
    }

    /// A digest of what a user would see of it: the same for a repeated call, whenever it comes.
    pub fn digest(&self) -> Digest {
        let mut hash = Sha256::new();
        let kind = match self.payload {
            Payload::Json(_) => "json",
            Payload::Binary(_) => "binary",
        };
        let from = self.from_user.as_ref().map_or("", |user| user.as_str());
        let collapse = self.collapse_key.as_ref().map_or("", |key| key.as_str());
        let users = self.not_for.iter().map(UserId::as_str);
        for text in [kind, self.type_name.as_str(), from, collapse].into_iter().chain(users) {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hash.update(self.payload.bytes());
        let mut digest = [0; DIGEST_BYTES];
        digest.copy_from_slice(&hash.finalize()[..DIGEST_BYTES]);
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_shown_in_utc_with_milliseconds() {
        assert_eq!(UnixMillis(1_769_852_100_123).rfc3339().to_string(), "2026-01-31T09:35:00.123Z");
        assert_eq!(UnixMillis(u64::MAX).rfc3339().to_string(), "9999-12-31T23:59:59.999Z");
    }
}
