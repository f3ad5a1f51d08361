//! Rates by points: so many at once, and so many more a second. What costs more than is left is still done, and paid off
//! before the next.
//!
//! A [`Bucket`] is asked. [`Ahead`] is for what every session does all the time: eight bytes, no clock of its own, and who
//! is idle owes nothing.

use std::time::Duration;

use crate::{
    clock::Instant,
    limits::{Limit, Limits},
};

/// A point.
const POINT: u64 = 1_000_000;

/// See the module's documentation. In millionths, full at first.
#[derive(Clone, Debug, Default)]
pub struct Bucket {
    spent: u64,
    since: Option<Instant>,
}

impl Bucket {
    /// Spends a point, if there is one: of so many at most, of which so many come back a second.
    pub fn admit_of(&mut self, most: u32, a_second: u32, now: Instant) -> bool {
        let admitted = self.wait_of(most, a_second, now).is_zero();
        if admitted {
            self.charge(1);
        }
        admitted
    }

    /// How long it takes until there is a point.
    pub fn wait_of(&mut self, most: u32, a_second: u32, now: Instant) -> Duration {
        let back = self.since.map_or(0, |since| now.saturating_duration_since(since).as_micros());
        let back = u64::try_from(back).unwrap_or(u64::MAX).saturating_mul(a_second.into());
        self.spent = self.spent.saturating_sub(back);
        self.since = Some(now);
        let missing = (self.spent + POINT).saturating_sub(u64::from(most) * POINT);
        Duration::from_micros(missing.div_ceil(u64::from(a_second.max(1))))
    }

    /// Spends points, whether they are there or not.
    pub fn charge(&mut self, points: u32) {
        self.spent = self.spent.saturating_add(u64::from(points) * POINT);
    }
}

/// What a session may send, of what all have in common.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// What a message takes of the second, in µs; nothing where there is no limit.
    message_micros: u32,
    /// `limits.bytes_per_second`; 0: none.
    bytes_per_second: u64,
    /// How many bytes may come at once, in µs of their rate: a second's, and two of the largest messages.
    bytes_at_once_micros: u32,
}

/// A second, of messages.
const SECOND_MICROS: u32 = 1_000_000;

impl Rates {
    /// Those of the configuration.
    pub fn of(limits: &Limits) -> Self {
        let Limits { messages_per_second, bytes_per_second, message_bytes, .. } = limits;
        let bytes_at_once = bytes_per_second.0.max(message_bytes.0.saturating_mul(2));
        let message_micros = SECOND_MICROS.checked_div(messages_per_second.0).unwrap_or(0);
        let mut rates = Self { message_micros, bytes_per_second: bytes_per_second.0, bytes_at_once_micros: 0 };
        rates.bytes_at_once_micros = rates.micros(bytes_at_once).max(1);
        rates
    }

    /// Bytes in µs of their rate, rounded up; nothing where there is none.
    fn micros(&self, bytes: u64) -> u32 {
        let micros = bytes.saturating_mul(SECOND_MICROS.into()).checked_div(self.bytes_per_second);
        micros.map_or(0, |micros| u32::try_from(micros).unwrap_or(u32::MAX).saturating_add(1))
    }
}

/// What a session has sent ahead of its rates, in µs of them as of its last receipt.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ahead {
    messages: u32,
    bytes: u32,
}

/// What is to be done about a session that is ahead of a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Warn it, once until it has fallen back.
    Warn(Limit),
    /// Close it.
    Close(Limit),
}

impl Ahead {
    /// So many bytes came, so long after the last.
    pub fn received(&mut self, bytes: usize, passed: Duration, rates: &Rates) {
        // In the session's favour, lest what comes in short steps is never paid off.
        let passed = u32::try_from(passed.as_micros()).unwrap_or(u32::MAX).saturating_add(1);
        self.messages = self.messages.saturating_sub(passed);
        self.bytes = self.bytes.saturating_sub(passed).saturating_add(rates.micros(bytes as u64));
    }

    /// What came was compressed, and came to so many bytes.
    pub fn inflated(&mut self, bytes: usize, rates: &Rates) {
        self.bytes = self.bytes.saturating_add(rates.micros(bytes as u64));
    }

    /// A message came, or what counts as one.
    pub fn message(&mut self, rates: &Rates) {
        self.messages = self.messages.saturating_add(rates.message_micros);
    }

    /// Whether it is ahead by more than it may be at once; and by twice that, in spite of the warning. That it was warned is
    /// noted beside it, where a session has room for a bit.
    pub fn over(&self, warned: &mut bool, rates: &Rates) -> Option<Over> {
        let bytes_at_once = rates.bytes_at_once_micros;
        let (limit, ahead, at_once) = if self.messages > SECOND_MICROS {
            (Limit::MessagesPerSecond, self.messages, SECOND_MICROS)
        } else if self.bytes > bytes_at_once {
            (Limit::BytesPerSecond, self.bytes, bytes_at_once)
        } else {
            // A client that goes on as fast as it may is warned once, not over and over.
            *warned &= self.messages > SECOND_MICROS / 2 || self.bytes > bytes_at_once / 2;
            return None;
        };
        if ahead > at_once.saturating_mul(2) && *warned {
            return Some(Over::Close(limit));
        }
        (!std::mem::replace(warned, true)).then_some(Over::Warn(limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::types::{ByteSize, Count};

    #[test]
    fn so_many_at_once_then_so_many_a_second_and_debts_are_paid_off() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        let admitted = |bucket: &mut Bucket, at: u64| {
            let now = start + Duration::from_millis(at);
            std::iter::repeat_with(|| bucket.admit_of(20, 2, now)).take_while(|admitted| *admitted).count()
        };
        assert_eq!(admitted(&mut bucket, 0), 20);
        assert_eq!(admitted(&mut bucket, 499), 0);
        assert_eq!(admitted(&mut bucket, 500), 1);
        assert_eq!(admitted(&mut bucket, 3_600_000), 20);
        bucket.charge(10);
        assert_eq!(admitted(&mut bucket, 3_605_000), 0, "ten came back for those that were owed");
        assert_eq!(admitted(&mut bucket, 3_605_500), 1);
    }

    #[test]
    fn points_come_back_however_often_one_asks() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        let asked = (0..100_000).filter(|n| bucket.admit_of(10, 100, start + Duration::from_micros(n * 10))).count();
        assert!((109..=110).contains(&asked), "ten at once, a hundred in the second: {asked}");
        // The last one was let in on its own point, at most 10 ms ago.
        let wait = bucket.wait_of(10, 100, start + Duration::from_micros(999_990));
        assert!(wait <= Duration::from_millis(10), "{wait:?}");
    }

    fn rates(messages: u32, bytes: u64) -> Rates {
        Rates::of(&Limits {
            messages_per_second: Count(messages),
            bytes_per_second: ByteSize(bytes),
            message_bytes: ByteSize(1000),
            ..Limits::default()
        })
    }

    /// After how many messages it is warned, and closed, where each comes so long after the last; of 10,000.
    fn ends(rates: Rates, bytes: usize, apart: Duration) -> (Option<usize>, Option<usize>) {
        let (mut ahead, mut is_warned, mut warned) = (Ahead::default(), false, None);
        for n in 1..=10_000 {
            ahead.received(bytes, apart, &rates);
            ahead.message(&rates);
            match ahead.over(&mut is_warned, &rates) {
                None => {}
                Some(Over::Warn(_)) => assert_eq!(warned.replace(n), None, "warned once"),
                Some(Over::Close(_)) => return (warned, Some(n)),
            }
        }
        (warned, None)
    }

    #[test]
    fn who_is_ahead_by_a_second_is_warned_and_by_two_is_closed() {
        let none = Duration::ZERO;
        assert_eq!(ends(rates(10, 0), 100, none), (Some(11), Some(21)));
        assert_eq!(ends(rates(10, 0), 100, Duration::from_millis(100)), (None, None), "as fast as it may");
        // A half more than it may: half a second ahead after each.
        let (warned, closed) = ends(rates(10, 0), 100, Duration::from_micros(66_667));
        assert!(warned.is_some_and(|n| (29..=32).contains(&n)) && closed.is_some_and(|n| (59..=62).contains(&n)));
        assert_eq!(ends(rates(0, 10_000), 100, none), (Some(101), Some(201)));
        assert_eq!(ends(rates(0, 10_000), 100, Duration::from_millis(10)), (None, None));
        // Two of the largest messages are no offence, whatever the rate.
        assert_eq!(ends(rates(0, 1024), 1000, none), (Some(3), Some(5)));
        assert_eq!(ends(rates(0, 0), 1000, none), (None, None), "no limits");
    }

    #[test]
    fn who_slows_down_is_forgiven_and_warned_anew() {
        let rates = rates(10, 0);
        let (mut ahead, mut warned) = (Ahead::default(), false);
        for _ in 0..2 {
            for n in 1..=11 {
                ahead.received(1, Duration::ZERO, &rates);
                ahead.message(&rates);
                let over = ahead.over(&mut warned, &rates);
                assert_eq!(over, (n == 11).then_some(Over::Warn(Limit::MessagesPerSecond)), "{n}");
            }
            ahead.received(1, Duration::from_secs(2), &rates);
            assert_eq!(ahead.over(&mut warned, &rates), None);
        }
    }

    #[test]
    fn what_one_read_brings_is_warned_of_before_it_is_closed() {
        let rates = rates(0, 10);
        let (mut ahead, mut warned) = (Ahead::default(), false);
        ahead.received(1_000_000, Duration::ZERO, &rates);
        assert_eq!(ahead.over(&mut warned, &rates), Some(Over::Warn(Limit::BytesPerSecond)));
        assert_eq!(ahead.over(&mut warned, &rates), Some(Over::Close(Limit::BytesPerSecond)));
    }
}
