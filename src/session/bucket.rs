//! A rate by points: so many at once, and so many more a second. What costs more than is left is still done, and paid off
//! before the next.

use crate::clock::Instant;

/// The points that there are at most.
const POINTS_MAX: u32 = 20;
/// The points that come back a second.
const POINTS_PER_SECOND: u32 = 2;

/// See the module's documentation. In thousandths, full at first.
#[derive(Debug, Default)]
pub struct Bucket {
    spent: u64,
    since: Option<Instant>,
}

impl Bucket {
    /// Spends a point, if there is one.
    pub fn admit(&mut self, now: Instant) -> bool {
        self.admit_of(POINTS_MAX, POINTS_PER_SECOND, now)
    }

    /// The same where there are so many at most, and so many come back a second.
    pub fn admit_of(&mut self, most: u32, a_second: u32, now: Instant) -> bool {
        let back = self.since.map_or(0, |since| now.saturating_duration_since(since).as_millis());
        let back = u64::try_from(back).unwrap_or(u64::MAX).saturating_mul(a_second.into());
        self.spent = self.spent.saturating_sub(back);
        self.since = Some(now);
        let admitted = self.spent + 1000 <= u64::from(most) * 1000;
        if admitted {
            self.charge(1);
        }
        admitted
    }

    /// Spends points, whether they are there or not.
    pub fn charge(&mut self, points: u32) {
        self.spent = self.spent.saturating_add(u64::from(points) * 1000);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn so_many_at_once_then_so_many_a_second_and_debts_are_paid_off() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        let admitted = |bucket: &mut Bucket, at: u64| {
            let now = start + Duration::from_millis(at);
            std::iter::repeat_with(|| bucket.admit(now)).take_while(|admitted| *admitted).count()
        };
        assert_eq!(admitted(&mut bucket, 0), 20);
        assert_eq!(admitted(&mut bucket, 499), 0);
        assert_eq!(admitted(&mut bucket, 500), 1);
        assert_eq!(admitted(&mut bucket, 3_600_000), 20);
        bucket.charge(10);
        assert_eq!(admitted(&mut bucket, 3_605_000), 0, "ten came back for those that were owed");
        assert_eq!(admitted(&mut bucket, 3_605_500), 1);
    }
}
