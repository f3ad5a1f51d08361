//! A notification as it travels through the house: validated, its payload untouched.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{CollapseKey, NotificationId, Topic, TypeName, UserId};

/// A moment in milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// Later by `span`; stays at the end of time instead of wrapping.
    pub fn saturating_add(self, span: std::time::Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// RFC 3339, UTC, with milliseconds; what clients see. Moments after the year 9999 are shown as its end.
    pub fn rfc3339(self) -> Rfc3339 {
        const YEAR_9999_END: u64 = 253_402_300_799_999;
        const DAY_MILLIS: u64 = 86_400_000;
        let millis = self.0.min(YEAR_9999_END);
        let (days, of_day) = (millis / DAY_MILLIS, millis % DAY_MILLIS);
        let (year, month, day) = civil(days);
        let mut text = *b"0000-00-00T00:00:00.000Z";
        digits(&mut text[0..4], year);
        digits(&mut text[5..7], month);
        digits(&mut text[8..10], day);
        digits(&mut text[11..13], of_day / 3_600_000);
        digits(&mut text[14..16], of_day / 60_000 % 60);
        digits(&mut text[17..19], of_day / 1000 % 60);
        digits(&mut text[20..23], of_day % 1000);
        Rfc3339(text)
    }
}

/// A moment as text, `2026-01-31T09:35:00.123Z`. Written by hand: it is part of every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rfc3339([u8; 24]);

impl Rfc3339 {
    /// The text, which is ASCII.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(str::from_utf8(&self.0).unwrap_or_default())
    }
}

/// Writes `number` right-aligned over all of `place`.
fn digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        // No loss: below 10.
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Year, month and day of a day since 1970-01-01 (proleptic Gregorian; <https://howardhinnant.github.io/date_algorithms.html>).
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, so that the leap day is a year's last and every 400 years are alike.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
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
    /// The topic that it was published to; what clients see as `topic`.
    pub topic: Option<Topic>,
    /// What a client called what he says; what others see as `kind`.
    pub kind: Option<TypeName>,
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

    /// What it counts against the quotas, in bytes: payload, id, type, sender, topic, kind, collapse key and whom it
    /// leaves out, and 64 for the row itself.
    pub fn accounted_bytes(&self) -> u64 {
        let from = self.from_user.as_ref().map_or(0, |user| user.as_str().len());
        let collapse = self.collapse_key.as_ref().map_or(0, |key| key.as_str().len());
        let not_for: usize = self.not_for.iter().map(|user| user.as_str().len()).sum();
        let topic = self.topic.as_ref().map_or(0, |topic| topic.as_str().len());
        let kind = self.kind.as_ref().map_or(0, |kind| kind.as_str().len());
        let texts = self.id.as_str().len() + self.type_name.as_str().len() + from + topic + kind + collapse + not_for;
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
        // Only where they are there: what was remembered before there were such stays what it was.
        let topic = self.topic.as_ref().map(|topic| ("topic", topic.as_str()));
        let kind = self.kind.as_ref().map(|kind| ("kind", kind.as_str()));
        for (name, text) in [topic, kind].into_iter().flatten() {
            hash.update(name);
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
        assert_eq!(UnixMillis(0).rfc3339().to_string(), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn every_day_has_the_date_that_others_give_it() {
        // Each day to the year 2500, and each moment of leap years that end a century and that do not, some milliseconds in.
        for day in 0..193_000u64 {
            let millis = day * 86_400_000 + day * 7919 % 86_400_000;
            let moment = std::time::UNIX_EPOCH + std::time::Duration::from_millis(millis);
            let expected = humantime::format_rfc3339_millis(moment).to_string();
            assert_eq!(UnixMillis(millis).rfc3339().to_string(), expected);
        }
    }
}
