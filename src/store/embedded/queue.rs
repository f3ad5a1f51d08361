//! What waits for the writer, in the order in which it was staged.
//!
//! Rule: pushing never waits and never fails for want of room. Appends are bounded by their permits' bytes; a device
//! has at most one cursor here, because a newer one takes the place of the one that still waits; deletions are bounded
//! by what was appended. Urgent ops wake the writer, lazy ones let it sleep until the oldest is due. An op belongs to the
//! opening of the engine that its stager knew: those of an earlier one are not taken, however late they come.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::{
    limits,
    store::Op,
    types::{Device, UserId},
};

/// What the writer is to do next.
pub enum Next {
    /// Commit these, and a higher mark where `raise` says that somebody waits for one.
    Commit {
        /// In the order in which they were staged.
        ops: Vec<Op>,
        /// Whether somebody waits for a higher mark.
        raise: bool,
    },
    /// The moment it asked to be woken at has come.
    Alarm,
    /// Nothing more will come.
    Stop,
}

/// The queue between those who stage and the writer.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    ops: VecDeque<Op>,
    /// The number of the op at the front; numbers rise by one.
    front: u64,
    /// Waiting cursors, by the number of their op.
    cursors: HashMap<(UserId, Device), u64>,
    /// Ops that somebody waits for.
    urgent: usize,
    /// Since when the oldest lazy op waits.
    lazy_since: Option<Instant>,
    raise: bool,
    closing: bool,
    /// How often the engine was lost so far.
    generation: u64,
    /// The engine is lost and not opened again.
    discarding: bool,
}

/// Whether somebody waits for the op.
fn is_urgent(op: &Op) -> bool {
    match op {
        Op::Append { .. } | Op::PutDevice { .. } | Op::RemoveDevice { .. } | Op::ForgetUser { .. } => true,
        Op::Delete { done, .. } | Op::ForgetDue { done, .. } | Op::ForgetId { done, .. } => done.is_some(),
        Op::Cursor { .. } => false,
    }
}

/// The rows an op writes, and the bytes of its record.
fn weight(op: &Op) -> (usize, usize) {
    match op {
        Op::Append { notification, replaces, remember, .. } => {
            let bytes = notification.payload.bytes().len();
            let replaced = replaces.map_or(0, |place| 1 + place.chunks as usize);
            let remembered = if remember.is_some() { 2 } else { 0 };
            (4 + bytes / limits::STORE_CHUNK_BYTES_MAX + replaced + remembered, bytes)
        }
        Op::Delete { places, emptied, .. } => {
            (1 + emptied.len() + places.iter().map(|place| 1 + place.chunks as usize).sum::<usize>(), 0)
        }
        Op::Cursor { .. } | Op::ForgetDue { .. } => (1, 0),
        Op::PutDevice { .. } | Op::ForgetId { .. } => (2, 0),
        Op::RemoveDevice { unremembered, .. } => (2 + unremembered.len(), 0),
        // A commit of its own: what it removes is what was there before.
        Op::ForgetUser { .. } => (limits::STORE_BATCH_ROWS_MAX + 1, 0),
    }
}

impl State {
    fn push(&mut self, op: Op) {
        let number = self.front + self.ops.len() as u64;
        match &op {
            Op::Cursor { user, device, .. } => {
                let waiting = *self.cursors.entry((user.clone(), device.clone())).or_insert(number);
                if waiting != number {
                    // `waiting` is the number of an op between the front and the back: popping one forgets it.
                    self.ops[(waiting - self.front) as usize] = op;
                    return;
                }
            }
            // A cursor staged from here on must not move in front of this.
            Op::PutDevice { user, device, .. } | Op::RemoveDevice { user, device, .. } => {
                self.cursors.remove(&(user.clone(), device.clone()));
            }
            Op::ForgetUser { user, .. } => self.cursors.retain(|(of, _), _| of != user),
            Op::Append { .. } | Op::Delete { .. } | Op::ForgetDue { .. } | Op::ForgetId { .. } => {}
        }
        if is_urgent(&op) {
            self.urgent += 1;
        } else if self.lazy_since.is_none() {
            self.lazy_since = Some(Instant::now());
        }
        self.ops.push_back(op);
    }

    fn pop(&mut self) -> Option<Op> {
        let op = self.ops.pop_front()?;
        if let Op::Cursor { user, device, .. } = &op {
            let key = (user.clone(), device.clone());
            if self.cursors.get(&key) == Some(&self.front) {
                self.cursors.remove(&key);
            }
        }
        self.urgent -= usize::from(is_urgent(&op));
        self.front += 1;
        Some(op)
    }

    fn take(&mut self) -> Next {
        let (mut rows, mut bytes, mut ops) = (0, 0, Vec::new());
        while let Some(op) = self.ops.front() {
            let (more_rows, more_bytes) = weight(op);
            rows += more_rows;
            bytes += more_bytes;
            let full = rows > limits::STORE_BATCH_ROWS_MAX || bytes > limits::STORE_BATCH_BYTES_MAX;
            if full && !ops.is_empty() {
                break;
            }
            ops.extend(self.pop());
        }
        if self.ops.is_empty() {
            self.lazy_since = None;
        }
        Next::Commit { ops, raise: std::mem::take(&mut self.raise) }
    }

    fn is_ready(&self) -> bool {
        self.urgent > 0 || self.raise || self.closing || self.ops.len() >= limits::STORE_BATCH_ROWS_MAX
    }
}

impl Queue {
    /// An empty one that takes ops of that generation.
    pub fn of(generation: u64) -> Self {
        Self { state: Mutex::new(State { generation, ..State::default() }), wake: Condvar::new() }
    }

    /// Queues an op of that generation; gives it back where the queue is closing or the engine was lost since.
    #[must_use = "an op that is given back must be answered"]
    pub fn push(&self, generation: u64, op: Op) -> Option<Op> {
        let mut state = self.state.lock();
        if state.closing || state.discarding || state.generation != generation {
            return Some(op);
        }
        let slept_until = (state.is_ready(), state.lazy_since);
        state.push(op);
        if slept_until != (state.is_ready(), state.lazy_since) {
            self.wake.notify_one();
        }
        None
    }

    /// Asks for a commit with a higher mark.
    pub fn raise(&self) {
        let mut state = self.state.lock();
        if !state.raise {
            state.raise = true;
            self.wake.notify_one();
        }
    }

    /// The engine is lost: takes nothing until [`Queue::accept`], and of this generation nothing ever again. Returns what
    /// is queued.
    pub fn discard(&self, generation: u64) -> Vec<Op> {
        let mut state = self.state.lock();
        state.generation = generation;
        state.discarding = true;
        state.raise = false;
        let ops = std::iter::from_fn(|| state.pop()).collect();
        state.lazy_since = None;
        ops
    }

    /// The engine is there again.
    pub fn accept(&self) {
        self.state.lock().discarding = false;
    }

    /// Waits, for `delay` at most, for the queue to be closed. Tells whether it is.
    pub fn is_closed_within(&self, delay: Duration) -> bool {
        let mut state = self.state.lock();
        let _ = self.wake.wait_while_for(&mut state, |state| !state.closing, delay);
        state.closing
    }

    /// Takes no more ops. What is queued is still taken.
    pub fn close(&self) {
        self.state.lock().closing = true;
        self.wake.notify_one();
    }

    /// The next thing to do now, without waiting. `lazy`: what nobody waits for is due, too.
    #[cfg(test)]
    pub fn next_now(&self, lazy: bool) -> Option<Next> {
        let mut state = self.state.lock();
        (state.is_ready() || lazy && !state.ops.is_empty()).then(|| state.take())
    }

    /// Waits for the next thing to do; until `alarm` at most.
    pub fn next(&self, alarm: Option<Instant>) -> Next {
        let mut state = self.state.lock();
        loop {
            if state.closing && state.ops.is_empty() {
                return Next::Stop;
            }
            let lazy_due = state.lazy_since.map(|since| since + limits::STORE_LAZY_DELAY);
            let now = Instant::now();
            if state.is_ready() || lazy_due.is_some_and(|due| due <= now) {
                return state.take();
            }
            if alarm.is_some_and(|alarm| alarm <= now) {
                return Next::Alarm;
            }
            match [lazy_due, alarm].into_iter().flatten().min() {
                Some(moment) => drop(self.wake.wait_until(&mut state, moment)),
                None => self.wake.wait(&mut state),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        store::{DeviceRow, Hold},
        types::{Offset, UnixMillis},
    };

    fn user() -> UserId {
        UserId::parse("ann").unwrap()
    }

    fn cursor(device: &str, to: u64) -> Op {
        let row = DeviceRow { cursor: Offset::new(to), ..DeviceRow::default() };
        Op::Cursor { user: user(), device: Device::parse(device).unwrap(), row, hold: Hold::default() }
    }

    fn remove(device: &str) -> Op {
        Op::RemoveDevice {
            user: user(),
            device: Device::parse(device).unwrap(),
            at: UnixMillis(0),
            unremembered: Vec::new(),
            hold: Hold::default(),
            done: None,
        }
    }

    fn taken(queue: &Queue) -> Vec<String> {
        let show = |op: &Op| match op {
            Op::Cursor { device, row, .. } => format!("{device}={}", row.cursor),
            Op::RemoveDevice { device, .. } => format!("-{device}"),
            other => format!("{other:?}"),
        };
        match queue.next(None) {
            Next::Commit { ops, .. } => ops.iter().map(show).collect(),
            Next::Alarm | Next::Stop => Vec::new(),
        }
    }

    #[test]
    fn the_latest_cursor_of_a_device_takes_the_place_of_the_one_that_waits() {
        let queue = Queue::default();
        for op in [cursor("a", 1), cursor("b", 1), cursor("a", 2), remove("c"), cursor("a", 3)] {
            assert!(queue.push(0, op).is_none());
        }
        assert_eq!(taken(&queue), ["a=3", "b=1", "-c"]);
        assert!(queue.push(0, cursor("a", 4)).is_none());
        assert_eq!(taken(&queue), ["a=4"], "after the lazy delay, without an urgent op");
    }

    #[test]
    fn a_cursor_does_not_move_in_front_of_its_devices_coming_and_going() {
        let queue = Queue::default();
        for op in [cursor("a", 1), remove("a"), cursor("a", 2), cursor("a", 3)] {
            assert!(queue.push(0, op).is_none());
        }
        assert_eq!(taken(&queue), ["a=1", "-a", "a=3"]);
    }

    #[test]
    fn an_op_larger_than_a_batch_is_a_batch_of_its_own() {
        let queue = Queue::default();
        let delete = || Op::Delete {
            log: crate::types::LogId::User(user()),
            places: vec![crate::store::Place { offset: Offset::new(1), chunks: u16::MAX }],
            emptied: Vec::new(),
            counters: Default::default(),
            hold: Arc::default(),
            done: None,
        };
        assert!(queue.push(0, cursor("a", 1)).is_none());
        assert!(queue.push(0, delete()).is_none());
        assert!(queue.push(0, remove("a")).is_none());
        assert_eq!(taken(&queue), ["a=1"]);
        assert_eq!(taken(&queue).len(), 1);
        assert_eq!(taken(&queue), ["-a"]);
    }

    #[test]
    fn a_closed_queue_takes_nothing_and_gives_what_it_has() {
        let queue = Queue::default();
        assert!(queue.push(0, cursor("a", 1)).is_none());
        queue.close();
        assert!(queue.push(0, cursor("a", 2)).is_some());
        assert_eq!(taken(&queue), ["a=1"]);
        assert!(matches!(queue.next(None), Next::Stop));
    }

    #[test]
    fn what_was_staged_for_a_lost_engine_is_not_taken_however_late_it_comes() {
        let queue = Queue::default();
        for op in [cursor("a", 1), remove("b")] {
            assert!(queue.push(0, op).is_none());
        }
        assert_eq!(queue.discard(1).len(), 2);
        assert!(queue.push(0, remove("a")).is_some());
        assert!(queue.push(1, remove("a")).is_some(), "the engine is not there yet");
        queue.accept();
        assert!(queue.push(0, remove("a")).is_some());
        assert!(queue.push(1, cursor("a", 2)).is_none());
        assert!(queue.push(1, remove("c")).is_none());
        assert_eq!(taken(&queue), ["a=2", "-c"]);
        assert!(!queue.is_closed_within(Duration::ZERO));
        queue.close();
        assert!(queue.is_closed_within(Duration::MAX));
    }
}
