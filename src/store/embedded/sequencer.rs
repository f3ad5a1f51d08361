//! Gives offsets, so that none is ever given twice, whatever the clock or a crash does.
//!
//! An offset is the time in microseconds where that is possible, one more than the last where it is not. All logs of a
//! process draw from one rising sequence. On disk stands a mark: every offset given so far is below it, because it is
//! raised, and flushed, before one is given that would not be. A restart goes on at the mark it finds, hence above
//! everything that any client may have seen.
//!
//! Rule: a permit takes its offset's place below the mark in advance, so that giving it under a log's lock cannot fail
//! and need not wait. `given < mark − outstanding` always holds.

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{clock::Clock, types::Offset};

/// How far the mark is raised beyond what is needed, in offsets, hence in microseconds: ten seconds, against a flush
/// that takes milliseconds.
pub const AHEAD: u64 = 10_000_000;

/// What an offset that follows the clock leaves free below the mark, so that the senders behind it need not wait for a
/// flush after a quiet time, in which the clock passes the mark.
const SPARE: u64 = 65_536;

/// Clocks beyond this (the year 2112) are not followed: a clock gone wild must not use up the offsets.
const CLOCK_MICROS_MAX: u64 = 1 << 52;

/// The sequencer of a store.
pub struct Sequencer {
    clock: Clock,
    state: Mutex<State>,
    /// The mark on disk, for those who wait for it to rise.
    mark: watch::Sender<u64>,
}

struct State {
    /// The highest offset given.
    given: u64,
    /// Offsets from here on must not be given: the mark on disk.
    mark: u64,
    /// Permits that have no offset yet.
    outstanding: u64,
    /// Offsets that were seen although they are beyond the mark, which takes a damaged store.
    floor: u64,
}

impl State {
    fn room(&self) -> u64 {
        self.mark - 1 - self.given - self.outstanding
    }
}

impl Sequencer {
    /// Goes on at `mark`, as it stands on disk; 1 for a new store. There is no room below it until it is raised.
    pub fn new(clock: Clock, mark: u64) -> Self {
        #[cfg(test)]
        let mark = if crate::planted::is(crate::planted::Bug::OffsetReused) { 1 } else { mark };
        let mark = mark.clamp(1, Offset::MAX.get());
        let state = State { given: mark - 1, mark, outstanding: 0, floor: 0 };
        Self { clock, state: Mutex::new(state), mark: watch::Sender::new(mark) }
    }

    fn now(&self) -> u64 {
        let now = self.clock.unix_micros();
        if now < CLOCK_MICROS_MAX { now } else { 0 }
    }

    /// Takes a place below the mark; false where there is none. To be followed by [`Sequencer::assign`] or
    /// [`Sequencer::release`], once.
    pub fn reserve(&self) -> bool {
        let mut state = self.state.lock();
        let free = state.room() > 0;
        state.outstanding += u64::from(free);
        free
    }

    /// Gives a reserved place back.
    pub fn release(&self) {
        let mut state = self.state.lock();
        state.outstanding = state.outstanding.saturating_sub(1);
    }

    /// Turns a reserved place into an offset above `last`.
    pub fn assign(&self, last: Offset) -> Offset {
        let now = self.now();
        let mut state = self.state.lock();
        state.outstanding = state.outstanding.saturating_sub(1);
        let below = (state.mark - 1 - state.outstanding).saturating_sub(SPARE);
        // `last` is below `given` unless a damaged store was read past `admit`; order within the log comes first then.
        let offset = (state.given + 1).max(now.min(below)).max(last.get() + 1);
        state.given = state.given.max(offset.min(state.mark - 1 - state.outstanding));
        Offset::new(offset)
    }

    /// Whether `last`, read from a log, is below what will be given next. If not (the mark row went back to an older
    /// state: damage), the mark must be raised before that log is written to.
    pub fn admit(&self, last: Offset) -> bool {
        let mut state = self.state.lock();
        if last.get() <= state.given {
            return true;
        }
        if last.get() < state.mark - state.outstanding {
            state.given = last.get();
            return true;
        }
        state.floor = state.floor.max(last.get());
        false
    }

    /// The mark that the next commit should carry: where there is little room left, or the clock comes close, or
    /// `asked`.
    pub fn next_mark(&self, asked: bool) -> Option<u64> {
        let now = self.now();
        let state = self.state.lock();
        let needed = now.max(state.given + state.outstanding).max(state.floor);
        let next = (needed + AHEAD).min(Offset::MAX.get());
        (next > state.mark && (asked || needed + AHEAD / 2 > state.mark)).then_some(next)
    }

    /// The mark on disk.
    pub fn mark(&self) -> u64 {
        self.state.lock().mark
    }

    /// `mark` is on disk.
    pub fn raised(&self, mark: u64) {
        {
            let mut state = self.state.lock();
            state.mark = state.mark.max(mark);
        }
        self.mark.send_if_modified(|known| {
            let higher = mark > *known;
            *known = mark.max(*known);
            higher
        });
    }

    /// To wait for the mark to rise. Whoever subscribes before [`Sequencer::reserve`] misses nothing.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.mark.subscribe()
    }

    /// Whether the mark cannot rise any more.
    pub fn is_exhausted(&self) -> bool {
        self.state.lock().mark == Offset::MAX.get()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_769_852_100_000_000;

    fn clock() -> Clock {
        Clock::simulated(Duration::from_micros(NOW))
    }

    fn raise(sequencer: &Sequencer) {
        sequencer.raised(sequencer.next_mark(true).unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn offsets_follow_the_clock_below_the_mark() {
        let sequencer = Sequencer::new(clock(), 1);
        assert!(!sequencer.reserve(), "a new store has no room before its mark is on disk");
        raise(&sequencer);
        assert!(sequencer.reserve() && sequencer.reserve());
        assert_eq!(sequencer.assign(Offset::ZERO).get(), NOW);
        assert_eq!(sequencer.assign(Offset::new(NOW)).get(), NOW + 1);
        assert_eq!(sequencer.next_mark(false), None, "it was raised just now");
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(sequencer.next_mark(false).is_some(), "the clock comes close to it");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_quiet_time_offsets_stay_below_the_mark_and_leave_room() {
        let sequencer = Sequencer::new(clock(), 1);
        raise(&sequencer);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(sequencer.reserve());
        let first = sequencer.assign(Offset::ZERO);
        assert!(first.get() < NOW + AHEAD);
        for _ in 0..1000 {
            assert!(sequencer.reserve(), "the senders behind it do not wait");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_permit_gets_an_offset_below_the_mark_and_no_further_one_is_given() {
        let sequencer = Sequencer::new(clock(), 1);
        sequencer.raised(11);
        let mut permits = 0;
        while sequencer.reserve() {
            permits += 1;
        }
        assert_eq!(permits, 10);
        sequencer.release();
        assert!(sequencer.reserve(), "what is given back can be taken again");
        let offsets: Vec<u64> = (0..permits).map(|_| sequencer.assign(Offset::ZERO).get()).collect();
        assert_eq!(offsets, (1..=10).collect::<Vec<_>>());
        assert!(!sequencer.reserve());
        raise(&sequencer);
        assert!(sequencer.reserve());
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_gone_wild_is_not_followed() {
        let clock = clock();
        let sequencer = Sequencer::new(clock.clone(), 1);
        raise(&sequencer);
        clock.set_skew_micros(i64::MAX - NOW as i64);
        assert!(sequencer.reserve());
        assert_eq!(sequencer.assign(Offset::new(41)).get(), 42);
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_beyond_the_mark_is_admitted_once_the_mark_is_above_it() {
        let sequencer = Sequencer::new(clock(), 1);
        raise(&sequencer);
        let last = Offset::new(NOW + 3 * AHEAD);
        assert!(!sequencer.admit(last));
        raise(&sequencer);
        assert!(sequencer.admit(last));
        assert!(sequencer.reserve());
        assert!(sequencer.assign(Offset::ZERO) > last);
    }

    proptest! {
        #[test]
        fn offsets_rise_and_stay_below_the_mark_whatever_the_clock_does(
            steps in proptest::collection::vec((0u8..4, -10_000_000i64..20_000_000), 1..300),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let _guard = runtime.enter();
            let clock = clock();
            let sequencer = Sequencer::new(clock.clone(), 1);
            let (mut mark, mut last, mut held) = (1, 0, 0);
            for (step, skew) in steps {
                clock.set_skew_micros(skew);
                match step {
                    0 => held += u32::from(sequencer.reserve()),
                    1 if held > 0 => {
                        held -= 1;
                        let offset = sequencer.assign(Offset::new(last)).get();
                        prop_assert!(offset > last && offset < mark, "{last} < {offset} < {mark}");
                        last = offset;
                    }
                    2 if held > 0 => {
                        held -= 1;
                        sequencer.release();
                    }
                    _ => if let Some(next) = sequencer.next_mark(skew > 0) {
                        prop_assert!(next > mark);
                        mark = next;
                        sequencer.raised(next);
                    }
                }
            }
        }
    }
}
