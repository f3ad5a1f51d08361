//! When an alert fires and when it clears, by what was measured and when: no clock, no metrics.
//!
//! ```text
//! quiet ── beyond the threshold for all of `fire_after` ──▶ firing
//! quiet ◀── short of the lower bound for all of `clear_after` ── firing
//! ```
//!
//! Between the two bounds nothing changes, and either span begins anew with the first measurement that does not carry
//! it on. So what swings around one bound fires once, and clears once it is really over.

use std::time::Duration;

/// On which side of its threshold an alert fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fires {
    /// Where there is more than that; it clears where there is less than the other bound.
    Above,
    /// Where there is less than that; it clears where there is more than the other bound.
    Below,
}

/// What is too much, and what is well again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// The side.
    pub fires: Fires,
    /// Beyond this it fires; exactly this is not beyond.
    pub threshold: f64,
    /// Short of this it clears; exactly this is not short of it.
    pub clears_at: f64,
    /// For how long it must be beyond.
    pub fire_after: Duration,
    /// For how long it must be short.
    pub clear_after: Duration,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measured {
    /// So much.
    Value(f64),
    /// Too little to tell, or it could not be found out: changes nothing. What is about to fire begins anew, since it is not
    /// known to be beyond; what is about to clear waits for a measurement that says so.
    Unknown,
    /// There was nothing to measure: nobody waits for anything, and nothing is too much.
    Nothing,
}

/// What a measurement changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It fires from now on.
    Fired,
    /// It has cleared.
    Cleared,
}

/// One alert.
#[derive(Clone, Debug)]
pub struct Watch {
    rule: Rule,
    firing: bool,
    /// Since when the measurements ask for a change.
    asked_since: Option<Duration>,
}

impl Watch {
    /// A quiet one: whatever was before, a start begins with nothing known.
    pub fn new(rule: Rule) -> Self {
        Self { rule, firing: false, asked_since: None }
    }

    /// The same under another rule: what fires goes on until it is well again by that one.
    #[must_use]
    pub fn under(self, rule: Rule) -> Self {
        if self.rule == rule { self } else { Self { rule, asked_since: None, ..self } }
    }

    /// Its rule.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// Whether it fires.
    pub fn is_firing(&self) -> bool {
        self.firing
    }

    /// Takes a measurement made at `at`, since whatever beginning; `at` never falls.
    pub fn look(&mut self, at: Duration, measured: Measured) -> Option<Change> {
        let Rule { fires, threshold, clears_at, fire_after, clear_after } = self.rule;
        let (beyond, short) = match (measured, fires) {
            (Measured::Value(value), Fires::Above) => (value > threshold, value < clears_at),
            (Measured::Value(value), Fires::Below) => (value < threshold, value > clears_at),
            (Measured::Nothing, _) => (false, true),
            (Measured::Unknown, _) if self.firing => return None,
            (Measured::Unknown, _) => (false, false),
        };
        let (asked, span) = if self.firing { (short, clear_after) } else { (beyond, fire_after) };
        if !asked {
            self.asked_since = None;
            return None;
        }
        let since = *self.asked_since.get_or_insert(at);
        if at.saturating_sub(since) < span {
            return None;
        }
        self.asked_since = None;
        self.firing = !self.firing;
        Some(if self.firing { Change::Fired } else { Change::Cleared })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule {
        fires: Fires::Above,
        threshold: 100.0,
        clears_at: 80.0,
        fire_after: Duration::from_secs(3),
        clear_after: Duration::from_secs(5),
    };

    const NOTHING: f64 = f64::NAN;
    const UNKNOWN: f64 = f64::NEG_INFINITY;

    fn measured(value: f64) -> Measured {
        match value {
            value if value.is_nan() => Measured::Nothing,
            UNKNOWN => Measured::Unknown,
            value => Measured::Value(value),
        }
    }

    /// A measurement a second; where each change came.
    fn changes(rule: Rule, series: &[f64]) -> Vec<(usize, Change)> {
        let mut watch = Watch::new(rule);
        let look = |(second, value): (usize, &f64)| {
            watch.look(Duration::from_secs(second as u64), measured(*value)).map(|change| (second, change))
        };
        series.iter().enumerate().filter_map(look).collect()
    }

    /// So many seconds of each value.
    fn series(parts: &[(f64, usize)]) -> Vec<f64> {
        parts.iter().flat_map(|(value, seconds)| std::iter::repeat_n(*value, *seconds)).collect()
    }

    use Change::{Cleared, Fired};

    #[test]
    fn it_fires_after_a_span_beyond_and_clears_after_a_span_below() {
        let rise_and_fall = series(&[(50.0, 2), (150.0, 10), (10.0, 20)]);
        assert_eq!(changes(RULE, &rise_and_fall), [(5, Fired), (17, Cleared)]);
        assert_eq!(changes(RULE, &series(&[(150.0, 100)])), [(3, Fired)], "told once");
        assert_eq!(changes(RULE, &series(&[(0.0, 100)])), []);
    }

    #[test]
    fn exactly_at_a_bound_is_not_beyond_it() {
        assert_eq!(changes(RULE, &series(&[(100.0, 100)])), []);
        assert_eq!(changes(RULE, &series(&[(100.001, 4), (80.0, 100)])), [(3, Fired)]);
        assert_eq!(changes(RULE, &series(&[(100.001, 4), (79.999, 100)])), [(3, Fired), (9, Cleared)]);
    }

    #[test]
    fn what_is_short_changes_nothing() {
        let peaks: Vec<_> = (0..100).map(|n| if n % 4 == 3 { 50.0 } else { 500.0 }).collect();
        assert_eq!(changes(RULE, &peaks), [], "each peak is a second too short");
        let dips: Vec<_> = (0..100).map(|n| if n % 6 == 5 { 500.0 } else { 0.0 }).collect();
        let dips = [series(&[(500.0, 4)]), dips].concat();
        assert_eq!(changes(RULE, &dips), [(3, Fired)], "each dip is a second too short");
    }

    #[test]
    fn what_swings_between_the_bounds_changes_nothing() {
        let swing: Vec<_> = (0..200).map(|n| 90.0 + 20.0 * f64::from(n).sin()).collect();
        let fired = [series(&[(150.0, 4)]), swing.iter().map(|value| value.max(80.0)).collect()].concat();
        assert_eq!(changes(RULE, &fired), [(3, Fired)]);
        let quiet: Vec<_> = swing.iter().map(|value| value.min(100.0)).collect();
        assert_eq!(changes(RULE, &quiet), []);
    }

    #[test]
    fn after_a_clearance_it_has_to_be_earned_anew() {
        let twice = series(&[(150.0, 4), (0.0, 6), (150.0, 3), (0.0, 1), (150.0, 4)]);
        assert_eq!(changes(RULE, &twice), [(3, Fired), (9, Cleared), (17, Fired)]);
    }

    #[test]
    fn a_restart_begins_quiet_and_with_a_full_span() {
        let mut watch = Watch::new(RULE);
        let second = Duration::from_secs;
        assert_eq!((0..=2).find_map(|at| watch.look(second(at), Measured::Value(150.0))), None);
        let mut again = Watch::new(RULE);
        assert!(!again.is_firing());
        // Its moments begin where they like.
        let fired = (1000..).find(|at| again.look(second(*at), Measured::Value(150.0)).is_some());
        assert_eq!(fired, Some(1003));
    }

    #[test]
    fn without_spans_every_crossing_counts() {
        let at_once = Rule { fire_after: Duration::ZERO, clear_after: Duration::ZERO, ..RULE };
        let series = [0.0, 101.0, 90.0, 79.0, 101.0, 0.0];
        assert_eq!(changes(at_once, &series), [(1, Fired), (3, Cleared), (4, Fired), (5, Cleared)]);
    }

    #[test]
    fn where_less_is_worse_the_bounds_are_the_other_way_round() {
        let rule = Rule { fires: Fires::Below, threshold: 100.0, clears_at: 125.0, ..RULE };
        assert_eq!(changes(rule, &series(&[(200.0, 5), (50.0, 10), (200.0, 10)])), [(8, Fired), (20, Cleared)]);
        assert_eq!(changes(rule, &series(&[(100.0, 100)])), []);
        assert_eq!(changes(rule, &series(&[(50.0, 4), (125.0, 100)])), [(3, Fired)]);
    }

    #[test]
    fn nothing_to_measure_is_nothing_wrong() {
        for fires in [Fires::Above, Fires::Below] {
            let (bad, clears_at) = if fires == Fires::Above { (500.0, 80.0) } else { (1.0, 125.0) };
            let rule = Rule { fires, clears_at, ..RULE };
            assert_eq!(changes(rule, &series(&[(NOTHING, 100)])), []);
            assert_eq!(changes(rule, &series(&[(bad, 2), (NOTHING, 1), (bad, 3), (NOTHING, 1)])), []);
            let silence = series(&[(bad, 4), (NOTHING, 100)]);
            assert_eq!(changes(rule, &silence), [(3, Fired), (9, Cleared)]);
        }
    }

    #[test]
    fn too_little_to_tell_fires_nothing_and_clears_nothing() {
        for fires in [Fires::Above, Fires::Below] {
            let (bad, good, clears_at) = if fires == Fires::Above { (500.0, 1.0, 80.0) } else { (1.0, 500.0, 125.0) };
            let rule = Rule { fires, clears_at, ..RULE };
            assert_eq!(changes(rule, &series(&[(UNKNOWN, 100)])), []);
            assert_eq!(changes(rule, &series(&[(bad, 3), (UNKNOWN, 9), (bad, 3), (UNKNOWN, 1)])), []);
            assert_eq!(changes(rule, &series(&[(bad, 4), (UNKNOWN, 1000)])), [(3, Fired)], "it stays");
            // What was well once is well where that is seen again, and not before.
            let seldom = series(&[(bad, 4), (good, 1), (UNKNOWN, 50), (good, 1)]);
            assert_eq!(changes(rule, &seldom), [(3, Fired), (55, Cleared)]);
            let again = series(&[(bad, 4), (good, 1), (UNKNOWN, 50), (bad, 1), (good, 3)]);
            assert_eq!(changes(rule, &again), [(3, Fired)]);
        }
    }

    #[test]
    fn a_late_look_fires_no_earlier_than_it_looks() {
        let mut watch = Watch::new(RULE);
        assert_eq!(watch.look(Duration::from_secs(1), Measured::Value(150.0)), None);
        assert_eq!(
            watch.look(Duration::from_secs(3600), Measured::Value(150.0)),
            Some(Fired),
            "it was beyond whenever it was seen"
        );
    }
}
