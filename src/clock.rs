//! Time, injected: wall-clock moments for what clients and the store see, monotonic ones for deadlines.
//!
//! Tests hold a [`Clock`] whose wall clock they set, and pause tokio's time for the monotonic one.

use std::{
    num::NonZeroI64,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use tokio::time::Instant;

use crate::types::UnixMillis;

/// The clock of a node. Cheap to clone; clones share their skew.
#[derive(Clone, Debug)]
pub struct Clock {
    /// Where the moments come from: a start that monotonic time is added to (tests), or the machine's wall clock.
    origin: Option<(Instant, Duration)>,
    /// Added to the wall clock, in microseconds. Only tests set it.
    skew_micros: Arc<AtomicI64>,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self { origin: None, skew_micros: Arc::default() }
    }

    /// A wall clock that starts at `unix` and runs with tokio's time, paused or not.
    pub fn simulated(unix: Duration) -> Self {
        Self { origin: Some((Instant::now(), unix)), skew_micros: Arc::default() }
    }

    /// Sets the wall clock off by `micros`, as an operator or NTP would.
    pub fn set_skew_micros(&self, micros: i64) {
        self.skew_micros.store(micros, Ordering::Relaxed);
    }

    /// Microseconds since the Unix epoch.
    pub fn unix_micros(&self) -> u64 {
        let since_epoch = match self.origin {
            // A clock before 1970 is as good as none: offsets rise by one then.
            None => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            Some((start, unix)) => unix + start.elapsed(),
        };
        let micros = u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX);
        micros.saturating_add_signed(self.skew_micros.load(Ordering::Relaxed))
    }

    /// Milliseconds since the Unix epoch.
    pub fn unix_millis(&self) -> UnixMillis {
        UnixMillis(self.unix_micros() / 1000)
    }

    /// A monotonic moment, for deadlines.
    pub fn now(&self) -> Instant {
        Instant::now()
    }
}

/// What [`Moment`]s are counted from.
static BASE: LazyLock<Instant> = LazyLock::new(|| Instant::from_std(std::time::Instant::now()));

/// An [`Instant`] in eight bytes, and an `Option` of one in no more: for what every session has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(NonZeroI64);

impl Moment {
    /// To the nanosecond, within 292 years.
    pub fn of(instant: Instant) -> Self {
        let nanos = |span: Duration| i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
        let number = match instant.checked_duration_since(*BASE) {
            Some(later) => nanos(later),
            None => -nanos(BASE.saturating_duration_since(instant)),
        };
        // For the base itself a nanosecond later: there is no zero.
        Self(NonZeroI64::new(number).unwrap_or(const { NonZeroI64::new(1).unwrap() }))
    }

    /// The instant.
    pub fn instant(self) -> Instant {
        let span = Duration::from_nanos(self.0.get().unsigned_abs());
        let moved = if self.0.is_positive() { BASE.checked_add(span) } else { BASE.checked_sub(span) };
        moved.unwrap_or(*BASE)
    }
}

impl std::fmt::Debug for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.instant().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_its_instant_in_eight_bytes() {
        let now = Instant::now();
        let hours = Duration::from_secs(3600);
        for instant in [now, now + hours, now.checked_sub(hours).unwrap(), *BASE + Duration::from_nanos(1)] {
            assert_eq!(Moment::of(instant).instant(), instant);
        }
        assert_eq!(Moment::of(*BASE).instant(), *BASE + Duration::from_nanos(1));
        assert_eq!(size_of::<Option<Moment>>(), 8);
    }
}
