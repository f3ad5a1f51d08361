//! Whether and when to come back: HTTP statuses, and the back-off.
//!
//! The back-off is full jitter: the n-th wait is evenly distributed between nothing and `first · 2^n`, at most `max`.

use std::time::{Duration, SystemTime};

use crate::protocol::close::Next;

/// The longest wait that a gateway or proxy may ask for.
pub const ASKED_WAIT_MAX: Duration = Duration::from_secs(600);

/// A handshake that was answered by another status than 101. What stands for the moment is worth another try; anything
/// else the server would only say again.
pub fn after_status(status: u16) -> Next {
    match status {
        401 => Next::OtherToken,
        408 | 425 | 429 | 500..=599 => Next::Again,
        _ => Next::Stay,
    }
}

/// Reads `Retry-After` (RFC 9110 section 10.2.3): seconds or a date. At most [`ASKED_WAIT_MAX`].
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are a long time, too.
        return Some(value.parse().map_or(ASKED_WAIT_MAX, Duration::from_secs).min(ASKED_WAIT_MAX));
    }
    // Sun, 06 Nov 1994 08:49:37 GMT
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = value.split(", ").nth(1)?.split(' ');
    let (day, month, year, time) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let then = humantime::parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z")).ok()?;
    Some(then.duration_since(now).unwrap_or_default().min(ASKED_WAIT_MAX))
}

/// The waits between attempts.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    step: u32,
}

impl Backoff {
    /// Starts at `first`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, step: 0 }
    }

    /// The most that the next wait can be.
    pub fn ceiling(&self) -> Duration {
        self.first.saturating_mul(1u32.checked_shl(self.step).unwrap_or(u32::MAX)).min(self.max)
    }

    /// The next wait; `random` is any 32 bits.
    pub fn next(&mut self, random: u32) -> Duration {
        let wait = self.ceiling().mul_f64(f64::from(random) / f64::from(u32::MAX));
        self.step = self.step.saturating_add(1);
        wait
    }

    /// Starts over.
    pub fn reset(&mut self) {
        self.step = 0;
    }
}

/// 32 random bits of the system. Clients that start at one moment must not come back at one moment, so no clock will do.
pub fn random() -> u32 {
    let mut bytes = [0; 4];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(4) => u32::from_le_bytes(bytes),
        // Up to 256 bytes come whole (getrandom(2)); a kernel without it still has random ids.
        _ => uuid::Uuid::new_v4().as_u128() as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_stands_for_the_moment_is_tried_again() {
        for status in [408, 429, 500, 502, 503, 504] {
            assert_eq!(after_status(status), Next::Again, "{status}");
        }
        for status in [200, 302, 400, 403, 404, 426] {
            assert_eq!(after_status(status), Next::Stay, "{status}");
        }
        assert_eq!(after_status(401), Next::OtherToken);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = humantime::parse_rfc3339("1994-11-06T08:49:30Z").unwrap();
        let read = |text: &str| retry_after(text, now);
        assert_eq!(read("5"), Some(Duration::from_secs(5)));
        assert_eq!(read(" 0 "), Some(Duration::ZERO));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(7)));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:00 GMT"), Some(Duration::ZERO), "it is over");
        assert_eq!(read("99999999999999999999999"), Some(ASKED_WAIT_MAX));
        assert_eq!(read("86400"), Some(ASKED_WAIT_MAX));
        for text in ["", "-1", "soon", "Sun, 99 Nov 1994 08:49:37 GMT", "Sun, 06"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn waits_double_up_to_the_most_and_are_spread_from_nothing() {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(4));
        let ceilings: Vec<_> =
            (0..6).map(|_| (backoff.ceiling().as_millis(), backoff.next(u32::MAX).as_millis())).collect();
        assert_eq!(ceilings, [(500, 500), (1000, 1000), (2000, 2000), (4000, 4000), (4000, 4000), (4000, 4000)]);
        assert_eq!(backoff.next(0), Duration::ZERO);
        assert_eq!(backoff.next(u32::MAX / 2 + 1).as_millis(), 2000);
        for _ in 0..100 {
            assert!(backoff.next(u32::MAX) <= Duration::from_secs(4), "nothing overflows");
        }
        backoff.reset();
        assert_eq!(backoff.next(u32::MAX), Duration::from_millis(500));
    }

    #[test]
    fn randomness_is_not_a_constant() {
        assert!((0..8).any(|_| random() != random()));
    }
}
