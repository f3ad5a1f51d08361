//! When a session is told that its token is about to run out.

use std::time::Duration;

/// How long before a token's end its session is told; where the token has less than that to begin with, halfway to its end.
const AHEAD: Duration = Duration::from_secs(60);
/// Where half is less than this, it is not told: no answer would come in time, and a client that answers each warning by a
/// token as short as the last would do nothing else.
const AHEAD_MIN: Duration = Duration::from_secs(1);
/// A session keeps the time in a byte: so many of these.
const QUARTER: Duration = Duration::from_millis(250);

/// How long before its token's end a session is told of that. Nothing: it was, or will not be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Warning(u8);

impl Warning {
    /// For a token that has so much left.
    pub fn of(left: Duration) -> Self {
        let ahead = if left < AHEAD { left / 2 } else { AHEAD };
        if ahead < AHEAD_MIN {
            return Self::default();
        }
        Self(u8::try_from(ahead.as_millis() / QUARTER.as_millis()).unwrap_or(u8::MAX))
    }

    /// So long before the end.
    pub fn ahead(self) -> Option<Duration> {
        Some(self.0).filter(|quarters| *quarters > 0).map(|quarters| QUARTER * quarters.into())
    }
}
