//! The name of a topic: what sessions subscribe to and what is published to.

use std::{borrow::Borrow, fmt, sync::Arc};

use super::ids::{InvalidId, checked};
use crate::limits;

/// A topic: 1 to 200 bytes of UTF-8 without control characters. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Checks and takes a name.
    pub fn parse(value: &str) -> Result<Self, InvalidId> {
        checked("a topic", value, 1, limits::TOPIC_BYTES_MAX)?;
        Ok(Self(value.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_has_1_to_200_bytes_and_no_control_characters() {
        for good in ["a", "room.7", "Ärger im Büro", "*", "{sub}", &"a".repeat(200)] {
            assert_eq!(Topic::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", &"a".repeat(201), &"ä".repeat(101), "a\n", "a\0", "\u{7f}", "a\u{85}b"] {
            assert!(Topic::parse(bad).is_err(), "{bad:?}");
        }
    }
}
