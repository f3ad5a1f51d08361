//! Identifiers. Each is checked where it enters and cannot be built otherwise.

use std::{fmt, sync::Arc};

use uuid::Uuid;

use super::topic::Topic;
use crate::limits;

/// Why a string is not the identifier it was meant to be. The text names the rule, never the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Too short or too long.
    #[error("{what} must have {min} to {max} bytes, this one has {len}")]
    Length {
        /// Which identifier.
        what: &'static str,
        /// The least bytes allowed.
        min: usize,
        /// The most bytes allowed.
        max: usize,
        /// The bytes it had.
        len: usize,
    },
    /// A control character (U+0000–U+001F, U+007F–U+009F).
    #[error("{what} must not hold control characters")]
    Control {
        /// Which identifier.
        what: &'static str,
    },
    /// A character outside the allowed set.
    #[error("{what} may only hold {allowed}")]
    Charset {
        /// Which identifier.
        what: &'static str,
        /// The allowed characters.
        allowed: &'static str,
    },
    /// Not a UUID.
    #[error("{what} must be a UUID")]
    Uuid {
        /// Which identifier.
        what: &'static str,
    },
    /// A type name that the gateway keeps for itself.
    #[error("type `{0}` is reserved for the gateway; choose another name")]
    Reserved(String),
}

pub(super) fn checked(what: &'static str, value: &str, min: usize, max: usize) -> Result<(), InvalidId> {
    if value.len() < min || value.len() > max {
        return Err(InvalidId::Length { what, min, max, len: value.len() });
    }
    if value.chars().any(char::is_control) {
        return Err(InvalidId::Control { what });
    }
    Ok(())
}

/// A user: 1 to 255 bytes of UTF-8 without control characters. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(Arc<str>);

impl UserId {
    /// Checks and takes a user id.
    pub fn parse(value: &str) -> Result<Self, InvalidId> {
        checked("a user id", value, 1, limits::USER_ID_BYTES_MAX)?;
        Ok(Self(value.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An installation of a user: 1 to 64 of `A-Za-z0-9._-`, or the unnamed device (empty). Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Device(Option<Arc<str>>);

impl Device {
    /// The device of sessions that name none.
    pub const UNNAMED: Device = Device(None);

    /// Checks and takes a device name; the empty name is the unnamed device.
    pub fn parse(value: &str) -> Result<Self, InvalidId> {
        if value.is_empty() {
            return Ok(Self::UNNAMED);
        }
        let what = "a device";
        if value.len() > limits::DEVICE_BYTES_MAX {
            return Err(InvalidId::Length { what, min: 1, max: limits::DEVICE_BYTES_MAX, len: value.len() });
        }
        if !value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
            return Err(InvalidId::Charset { what, allowed: "A-Z a-z 0-9 . _ -" });
        }
        Ok(Self(Some(value.into())))
    }

    /// The name; empty for the unnamed device.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or("")
    }

    /// Whether it is the unnamed device.
    pub fn is_unnamed(&self) -> bool {
        self.0.is_none()
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A session: a UUIDv7, so that ids sort by the time of their making.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Uuid);

impl SessionId {
    /// A new one.
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// Reads one back from its text.
    pub fn parse(value: &str) -> Result<Self, InvalidId> {
        Uuid::try_parse(value).map(Self).map_err(|_| InvalidId::Uuid { what: "a session id" })
    }

    /// Its bits, for hashing and nonces.
    pub fn as_u128(self) -> u128 {
        self.0.as_u128()
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A notification's id: the caller's own (1 to 128 bytes, no control characters) or a UUIDv7. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct NotificationId(Arc<str>);

impl NotificationId {
    /// Checks and takes a caller's id.
    pub fn parse(value: &str) -> Result<Self, InvalidId> {
        checked("a notification id", value, 1, limits::NOTIFICATION_ID_BYTES_MAX)?;
        Ok(Self(value.into()))
    }

    /// A new UUIDv7.
    pub fn generate() -> Self {
        let mut text = Uuid::encode_buffer();
        Self(Arc::from(&*Uuid::now_v7().hyphenated().encode_lower(&mut text)))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for NotificationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for NotificationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a newer notification replaces an older one by: 1 to 128 bytes, no control characters. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CollapseKey(Arc<str>);

impl CollapseKey {
    /// Checks and takes a collapse key.
    pub fn parse(value: &str) -> Result<Self, InvalidId> {
        checked("a collapse key", value, 1, limits::COLLAPSE_KEY_BYTES_MAX)?;
        Ok(Self(value.into()))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for CollapseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A log: what is stored for one user, or for everybody.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LogId {
    /// A user's own.
    User(UserId),
    /// The one that durable broadcasts join.
    Broadcast,
    /// A durable topic's.
    Topic(Topic),
}

impl LogId {
    /// The user, where it is a user's.
    pub fn user(&self) -> Option<&UserId> {
        match self {
            LogId::User(user) => Some(user),
            LogId::Broadcast | LogId::Topic(_) => None,
        }
    }

    /// The topic, where it is a topic's.
    pub fn topic(&self) -> Option<&Topic> {
        match self {
            LogId::Topic(topic) => Some(topic),
            LogId::User(_) | LogId::Broadcast => None,
        }
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogId::User(user) => write!(f, "the log of user {user}"),
            LogId::Broadcast => f.write_str("the broadcast log"),
            LogId::Topic(topic) => write!(f, "the log of topic {topic}"),
        }
    }
}

/// A message type that a sender may choose: 1 to 128 bytes, no control characters, not one of the gateway's own.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TypeName(Option<Arc<str>>);

impl TypeName {
    /// `notification`, what clients see where the sender chose nothing.
    pub const NOTIFICATION: TypeName = TypeName(None);

    /// Checks and takes a type name; empty is `notification`.
    pub fn parse(value: &str) -> Result<Self, InvalidId> {
        if value.is_empty() || value == "notification" {
            return Ok(Self::NOTIFICATION);
        }
        checked("a type", value, 1, limits::TYPE_BYTES_MAX)?;
        if crate::protocol::is_reserved_type(value) {
            return Err(InvalidId::Reserved(value.to_owned()));
        }
        Ok(Self(Some(value.into())))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or("notification")
    }
}

impl fmt::Debug for TypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// A position in a log: above every earlier one of the same log, never given twice, below 2^53 so that it is exact
/// in JavaScript. 0 is before everything.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Offset(u64);

impl Offset {
    /// Before everything.
    pub const ZERO: Offset = Offset(0);
    /// The highest there can be: 2^53 − 1.
    pub const MAX: Offset = Offset((1 << 53) - 1);

    /// An offset from its number; values above [`Offset::MAX`] are taken as that.
    pub const fn new(value: u64) -> Self {
        if value > Self::MAX.0 { Self::MAX } else { Self(value) }
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_id_has_1_to_255_bytes_and_no_control_characters() {
        assert!(UserId::parse("").is_err());
        assert!(UserId::parse("a").is_ok());
        assert!(UserId::parse(&"a".repeat(255)).is_ok());
        assert!(UserId::parse(&"a".repeat(256)).is_err());
        assert!(UserId::parse(&"ä".repeat(128)).is_err(), "bytes count, not characters");
        for bad in ["a\0", "\n", "a\u{7f}", "a\u{85}b"] {
            assert_eq!(UserId::parse(bad), Err(InvalidId::Control { what: "a user id" }));
        }
    }

    #[test]
    fn a_device_has_up_to_64_plain_characters() {
        assert_eq!(Device::parse(""), Ok(Device::UNNAMED));
        assert!(Device::parse("Pixel-7_a.b").is_ok());
        assert!(Device::parse(&"d".repeat(64)).is_ok());
        assert!(Device::parse(&"d".repeat(65)).is_err());
        assert!(Device::parse("a b").is_err());
        assert!(Device::parse("ä").is_err());
    }

    #[test]
    fn reserved_types_are_refused_and_others_pass() {
        assert_eq!(TypeName::parse(""), Ok(TypeName::NOTIFICATION));
        assert_eq!(TypeName::parse("notification"), Ok(TypeName::NOTIFICATION));
        assert!(TypeName::parse("system_message").is_ok());
        assert!(TypeName::parse("order.created").is_ok());
        assert!(matches!(TypeName::parse("auth_success"), Err(InvalidId::Reserved(_))));
        assert!(TypeName::parse(&"x".repeat(129)).is_err());
    }

    #[test]
    fn offsets_stay_below_two_to_the_53() {
        assert_eq!(Offset::new(u64::MAX), Offset::MAX);
        assert_eq!(Offset::MAX.get(), 9_007_199_254_740_991);
    }
}
