//! When each session of a drain is closed, and when it is asked to be back.
//!
//! Of n sessions the k-th has the share u = (k + x) / n, x evenly distributed over [0, 1): of n equal parts of [0, 1) each
//! holds one share. From the beginning of the closing it
//!
//! * is closed at W·u, where W is the window of the closes, and
//! * is asked to be back at A + R·u, where A is when the first may return and R ≥ W the window of the returns;
//!
//! so what it is told (`reconnectAfterMs`) is the difference, A + (R − W)·u, which is never below A. An interval of length L
//! inside [A, A + R] holds n·L/R returns, give or take one at each end: more even than n independent draws, which are off by
//! about √(n·L/R).
//!
//! A wait that is drawn without a look at the close would not do. The returns would be the sum of two independent even
//! distributions, one over W and one over the waits' own window S: a trapezoid, and for S = W a triangle, in the middle of
//! which clients come at twice the mean rate.

use std::time::Duration;

use crate::{clock::Instant, limits::Limits};

/// Closes a second below which nothing is gained: so few clients are no stampede.
pub const RATE_MIN: u32 = 10;
/// The least time that a client is told to stay away.
const WAIT_MIN: Duration = Duration::from_millis(500);
/// The longest; clients keep to no longer one.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// The least time that returns are spread over.
const SPREAD_MIN: Duration = Duration::from_secs(2);
/// From the last close to the next start of the gateway: its connections' ends, its store closed and opened again.
const RESTART_TIME: Duration = Duration::from_secs(2);

/// Who takes clients that are told to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returns {
    /// Another gateway, at once.
    Elsewhere,
    /// This one, once it has ended and was started again: before that they would be refused, and left to their back-offs.
    Here,
}

/// The closes and the returns of one drain.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    began: Instant,
    /// W.
    window: Duration,
    /// A.
    first: Duration,
    /// R.
    spread: Duration,
}

impl Schedule {
    /// For so many sessions, `rate` a second unless `over` says how long, and within `most` whatever else is asked for.
    pub fn new(
        began: Instant,
        sessions: usize,
        rate: u32,
        over: Option<Duration>,
        most: Option<Duration>,
        returns: Returns,
        limits: &Limits,
    ) -> Self {
        let at = |rate: u32| Duration::from_secs_f64(sessions as f64 / f64::from(rate.max(1)));
        // Slower than that helps nobody: a handful is gone within a second.
        let wanted = over.unwrap_or(at(rate)).min(at(RATE_MIN));
        let window = most.map_or(wanted, |most| wanted.min(most));
        let first = match returns {
            Returns::Elsewhere => WAIT_MIN,
            Returns::Here => (window + RESTART_TIME).min(WAIT_MAX),
        };
        // Where the gateway would not let them in as fast as they were closed, they come as fast as it does.
        let taken = [limits.handshakes_per_second, limits.accepts_per_second].map(|count| count.limit());
        let taken = u32::try_from(taken[0].min(taken[1])).unwrap_or(u32::MAX).min(rate);
        let spread = window.max(at(taken)).max(SPREAD_MIN);
        // No wait is longer than clients keep to.
        let spread = spread.min(WAIT_MAX.saturating_sub(first) + window);
        Self { began, window, first, spread }
    }

    /// When the session with that share is closed.
    pub fn close_at(&self, share: f64) -> Instant {
        self.began + self.window.mul_f64(share)
    }

    /// When the last one is closed.
    pub fn end(&self) -> Instant {
        self.began + self.window
    }

    /// What the session with that share is told when it is closed `now`, which may be later than it should be.
    pub fn wait(&self, share: f64, now: Instant) -> Duration {
        let back = self.began + self.first + self.spread.mul_f64(share);
        back.saturating_duration_since(now).max(WAIT_MIN)
    }

    /// What somebody is told who is not among those sessions: he comes back evenly over what is left of the returns.
    pub fn late_wait(&self, random: f64, now: Instant) -> Duration {
        let soonest = (self.began + self.first).max(now + WAIT_MIN);
        let latest = (self.began + self.first + self.spread).max(soonest + SPREAD_MIN);
        (soonest - now) + (latest - soonest).mul_f64(random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Count, SessionId};

    fn random() -> f64 {
        super::super::random(SessionId::generate())
    }

    fn schedule(sessions: usize, over: Option<u64>, most: Option<u64>, returns: Returns) -> Schedule {
        let seconds = |span: Option<u64>| span.map(Duration::from_secs);
        Schedule::new(Instant::now(), sessions, 1000, seconds(over), seconds(most), returns, &Limits::default())
    }

    /// When the sessions are back, in seconds from the beginning, in order; each closed when it should be.
    fn returns(schedule: &Schedule, sessions: usize) -> Vec<f64> {
        let mut returns: Vec<f64> = (0..sessions)
            .map(|index| {
                let share = (index as f64 + random()) / sessions as f64;
                let closed = schedule.close_at(share);
                let wait = schedule.wait(share, closed);
                assert!((WAIT_MIN..=WAIT_MAX).contains(&wait), "{wait:?}");
                (closed + wait - schedule.began).as_secs_f64()
            })
            .collect();
        returns.sort_by(f64::total_cmp);
        returns
    }

    #[test]
    fn every_part_of_the_window_of_returns_holds_its_share_whatever_the_deadline_does_to_the_closes() {
        for (over, most, to) in [
            (None, None, Returns::Elsewhere),
            (None, Some(15), Returns::Here),
            (None, Some(1), Returns::Here),
            (None, Some(0), Returns::Elsewhere),
            (Some(60), None, Returns::Elsewhere),
            (Some(60), Some(30), Returns::Here),
            (Some(2), None, Returns::Elsewhere),
        ] {
            let sessions = 18_000;
            let schedule = schedule(sessions, over, most, to);
            let (first, spread) = (schedule.first.as_secs_f64(), schedule.spread.as_secs_f64());
            let mut parts = [0i32; 20];
            for at in returns(&schedule, sessions) {
                parts[(((at - first) / spread * 20.0) as usize).min(19)] += 1;
            }
            assert!(parts.iter().all(|part| (part - 900).abs() <= 1), "{over:?} {most:?} {to:?}: {parts:?}");
            // As fast as they are closed or as `rate` says, whichever is the slower.
            assert!(spread >= 17.99 && spread >= schedule.window.as_secs_f64(), "{spread}");
        }
    }

    #[test]
    fn waits_that_know_nothing_of_the_closes_would_bring_twice_the_rate() {
        // What the schedule is there to avoid: the sum of two even distributions over the same span.
        let mut parts = [0; 20];
        for _ in 0..18_000 {
            parts[((random() + random()) * 10.0) as usize] += 1;
        }
        assert!(parts[9] > 1500, "{parts:?}");
    }

    #[test]
    fn a_handful_is_closed_within_a_second_and_back_within_a_few() {
        for (sessions, over) in [(1, None), (5, Some(60)), (10, Some(3600)), (400, None)] {
            let schedule = schedule(sessions, over, None, Returns::Elsewhere);
            assert!(schedule.window <= Duration::from_secs(1), "{schedule:?}");
            let returns = returns(&schedule, sessions);
            assert!(returns[0] >= 0.5 && returns[sessions - 1] <= 3.0, "{returns:?}");
        }
        // A slower pace is kept from ten a second on.
        assert_eq!(schedule(1200, Some(60), None, Returns::Elsewhere).window, Duration::from_secs(60));
    }

    #[test]
    fn who_returns_here_finds_the_gateway_there_again() {
        let schedule = schedule(18_000, None, Some(15), Returns::Here);
        assert_eq!(schedule.end() - schedule.began, Duration::from_secs(15));
        assert!(returns(&schedule, 18_000)[0] >= 15.0 + RESTART_TIME.as_secs_f64());
    }

    #[test]
    fn no_faster_than_handshakes_are_let_in_and_never_longer_than_clients_wait() {
        let limits = Limits { handshakes_per_second: Count(100), ..Limits::default() };
        let slow = Schedule::new(Instant::now(), 18_000, 1000, None, None, Returns::Elsewhere, &limits);
        assert_eq!((slow.window, slow.spread), (Duration::from_secs(18), Duration::from_secs(180)));
        let endless = Schedule::new(Instant::now(), 10_000_000, 10, None, None, Returns::Here, &limits);
        assert_eq!(endless.wait(1.0, endless.end()), WAIT_MAX);
    }

    #[test]
    fn who_comes_late_to_it_returns_among_the_others_or_soon() {
        let schedule = schedule(18_000, None, Some(15), Returns::Here);
        for (at, soonest, latest) in [(0, 17.0, 35.0), (20, 0.5, 15.0), (1000, 0.5, 2.5)] {
            let now = schedule.began + Duration::from_secs(at);
            let waits = [0.0, 0.5, 1.0].map(|random| schedule.late_wait(random, now).as_secs_f64());
            let close = |a: f64, b: f64| (a - b).abs() < 0.001;
            assert!(close(waits[0], soonest) && close(waits[2], latest), "{at}: {waits:?}");
            assert!(close(waits[1], (soonest + latest) / 2.0), "{at}: {waits:?}");
        }
    }
}
