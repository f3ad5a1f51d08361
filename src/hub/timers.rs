//! Deadlines without a timer a session: a wheel that looks at each session when something of its may be due, and a
//! queue of those who left.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::handle::Handle;
use crate::clock::Instant;

/// The grain of the wheel: deadlines are met at most this much late.
pub const TICK: Duration = Duration::from_millis(50);
const SLOTS: usize = 512;

/// Sessions by when to look at them next: one entry a session counts, that of the next look.
#[derive(Debug)]
pub struct Wheel {
    start: Instant,
    slots: Box<[Mutex<Vec<Weak<Handle>>>]>,
    /// No look is further away than this, in milliseconds.
    longest_ms: AtomicU64,
}

impl Wheel {
    /// A wheel whose looks at a session are at most `longest` apart.
    pub fn new(start: Instant, longest: Duration) -> Self {
        let slots = (0..SLOTS).map(|_| Mutex::default()).collect();
        let wheel = Self { start, slots, longest_ms: AtomicU64::new(0) };
        wheel.set_longest(longest);
        wheel
    }

    /// Has further looks at a session at most so far apart.
    pub fn set_longest(&self, longest: Duration) {
        let turn = TICK * (SLOTS as u32 - 2);
        let longest = u64::try_from(longest.min(turn).max(TICK).as_millis()).unwrap_or(u64::MAX);
        self.longest_ms.store(longest, Ordering::Relaxed);
    }

    /// Looks at `handle` at `deadline`, or earlier.
    pub fn schedule(&self, handle: &Arc<Handle>, deadline: Instant, now: Instant) {
        let longest = Duration::from_millis(self.longest_ms.load(Ordering::Relaxed));
        let at = deadline.min(now + longest).max(now);
        let (tick, present) = (self.tick_of(at) + 1, self.tick_of(now));
        // A look that is yet to come and comes early enough is all that is needed; it finds out when the next is due. So
        // a session is not entered anew for each thing that may be due, and none of them makes another's look later.
        let is_late = |scheduled: u32| {
            let ahead = |tick: u32| tick.wrapping_sub(present as u32).cast_signed();
            ahead(scheduled) <= 0 || ahead(scheduled) > ahead(tick as u32)
        };
        let scheduled = &handle.look_at_tick;
        let entered =
            scheduled.try_update(Ordering::Relaxed, Ordering::Relaxed, |one| is_late(one).then_some(tick as u32));
        if entered.is_ok() {
            self.slots[tick % SLOTS].lock().push(Arc::downgrade(handle));
        }
    }

    /// The tick that `at` lies in.
    pub fn tick_of(&self, at: Instant) -> usize {
        (at.saturating_duration_since(self.start).as_nanos() / TICK.as_nanos()) as usize
    }

    /// Takes out the sessions of a tick.
    pub fn take(&self, tick: usize) -> impl Iterator<Item = Arc<Handle>> + use<> {
        let due = std::mem::take(&mut *self.slots[tick % SLOTS].lock());
        // An entry that a later call of `schedule` has replaced is left out; no look is more than a turn away.
        let due = due.into_iter().filter_map(|handle| handle.upgrade());
        due.filter(move |handle| handle.look_at_tick.load(Ordering::Relaxed) == tick as u32)
    }
}

/// Those who left, such as users whose last session did, in that order, until they count as gone.
#[derive(Debug)]
pub struct Leavers<T> {
    queue: Mutex<VecDeque<(Instant, T)>>,
    arrived: Notify,
    changed: Notify,
}

impl<T> Default for Leavers<T> {
    fn default() -> Self {
        Self { queue: Mutex::default(), arrived: Notify::new(), changed: Notify::new() }
    }
}

impl<T> Leavers<T> {
    /// One left.
    pub fn push(&self, left_at: Instant, leaver: T) {
        self.queue.lock().push_back((left_at, leaver));
        self.arrived.notify_one();
    }

    /// What `linger` says is another span now.
    pub fn linger_changed(&self) {
        self.changed.notify_one();
    }

    /// The next one who left `linger` ago; waits for one.
    pub async fn next(&self, linger: impl Fn() -> Duration) -> (Instant, T) {
        loop {
            let due = self.queue.lock().front().map(|(left_at, _)| *left_at + linger());
            match due {
                None => self.arrived.notified().await,
                Some(due) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(due) => {}
                        () = self.changed.notified() => continue,
                    }
                    if let Some(leaver) = self.queue.lock().pop_front() {
                        return leaver;
                    }
                }
            }
        }
    }
}
