//! Log lines that anybody can cause as often as he likes: so many are written, the others are counted, and the count is
//! written once the span is over.

use std::time::Duration;

use parking_lot::Mutex;

use crate::{
    clock::Instant,
    limits::{REPEATED_LINES_MAX, REPEATED_LINES_SPAN},
};

/// The lines of one kind.
#[derive(Debug, Default)]
pub struct Repeats(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    began: Option<Instant>,
    written: u32,
    left_out: u64,
}

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// It is written.
    Write,
    /// It is left out. Where a span is named it is the first one: once that is over, ask for [`Repeats::left_out`] and write
    /// it down.
    LeaveOut(Option<Duration>),
}

impl Repeats {
    /// One more line.
    pub fn line(&self, now: Instant) -> Line {
        let mut state = self.0.lock();
        let over = state.began.is_none_or(|began| now.saturating_duration_since(began) >= REPEATED_LINES_SPAN);
        // As long as nobody has asked how many were left out the span goes on: they would be forgotten.
        if over && state.left_out == 0 {
            *state = State { began: Some(now), ..State::default() };
        }
        if state.written < REPEATED_LINES_MAX {
            state.written += 1;
            return Line::Write;
        }
        state.left_out += 1;
        Line::LeaveOut((state.left_out == 1).then(|| {
            let passed = state.began.map_or(Duration::ZERO, |began| now.saturating_duration_since(began));
            REPEATED_LINES_SPAN.saturating_sub(passed)
        }))
    }

    /// The span is over: how many lines were left out in it. A new one begins with the next line.
    pub fn left_out(&self) -> u64 {
        std::mem::take(&mut *self.0.lock()).left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_are_written_in_a_span_and_the_others_are_one_number() {
        let (repeats, start) = (Repeats::default(), Instant::now());
        for _ in 0..REPEATED_LINES_MAX {
            assert_eq!(repeats.line(start), Line::Write);
        }
        let later = start + Duration::from_secs(4);
        assert_eq!(repeats.line(later), Line::LeaveOut(Some(REPEATED_LINES_SPAN - Duration::from_secs(4))));
        for _ in 0..99 {
            assert_eq!(repeats.line(later), Line::LeaveOut(None), "one asks");
        }
        assert_eq!(repeats.line(start + 2 * REPEATED_LINES_SPAN), Line::LeaveOut(None), "nobody asked yet");
        assert_eq!(repeats.left_out(), 101);
        assert_eq!(repeats.line(later), Line::Write);
        assert_eq!(repeats.left_out(), 0);
    }

    #[test]
    fn few_lines_are_all_written() {
        let (repeats, start) = (Repeats::default(), Instant::now());
        for n in 0..10 * REPEATED_LINES_MAX {
            assert_eq!(repeats.line(start + n * REPEATED_LINES_SPAN / REPEATED_LINES_MAX), Line::Write, "{n}");
        }
    }
}
