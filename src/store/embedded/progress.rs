//! What the writer shows of itself: that it goes on, what it does on the disk, since when, and whether it has ended. Commits mostly, and
//! whatever else may hang there: taking the store's size, opening it again, a backup's last reads.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// See the module's documentation.
#[derive(Default)]
pub struct Progress {
    state: Mutex<State>,
    ended: Condvar,
}

struct State {
    /// When it began its last turn; it takes one every [`crate::limits::STORE_DISK_REST`] at least.
    turned: Instant,
    /// How many of these have begun.
    begun: u64,
    since: Option<Instant>,
    over: bool,
}

impl Default for State {
    fn default() -> Self {
        Self { turned: Instant::now(), begun: 0, since: None, over: false }
    }
}

impl Progress {
    /// The writer begins a turn.
    pub fn turn(&self) {
        self.state.lock().turned = Instant::now();
    }

    /// How long ago the writer began its last turn; once it has ended, `None`.
    pub fn quiet_for(&self) -> Option<Duration> {
        let state = self.state.lock();
        (!state.over).then(|| state.turned.elapsed())
    }

    /// It runs until the returned guard is dropped. One at a time.
    pub fn begin(&self) -> impl Drop {
        let mut state = self.state.lock();
        state.begun += 1;
        state.since = Some(Instant::now());
        drop(state);
        Running(self)
    }

    /// The number of the one that runs, and since when.
    pub fn running(&self) -> Option<(u64, Instant)> {
        let state = self.state.lock();
        state.since.map(|since| (state.begun, since))
    }

    /// The writer has ended.
    pub fn end(&self) {
        self.state.lock().over = true;
        self.ended.notify_all();
    }

    /// Waits, for `delay` at most, for the writer's end.
    pub fn is_over_within(&self, delay: Duration) -> bool {
        let mut state = self.state.lock();
        let _ = self.ended.wait_while_for(&mut state, |state| !state.over, delay);
        state.over
    }
}

struct Running<'a>(&'a Progress);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.state.lock().since = None;
    }
}
