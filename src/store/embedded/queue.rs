//! What waits for the writer, in the order in which it was staged.
//!
//! Rule: pushing never waits and never fails for want of room. Appends are bounded by their permits' bytes; a device
//! has at most one cursor here, because a newer one takes the place of the one that still waits; deletions are bounded
//! by what was appended. An op belongs to the opening of the engine that its stager knew: those of an earlier one are not
//! taken, however late they come.
//!
//! Three kinds of haste: an *urgent* op, for which somebody waits, wakes the writer, and all that is there goes with it. An
//! append for which nobody waits is *patient*: it stays for [`limits::STORE_PATIENCE`] at most, and may be taken back
//! until then ([`Queue::recall`]), as if it had never been here. A *lazy* op stays for [`limits::STORE_LAZY_DELAY`] at most.
//! Whatever the haste, ops are taken in the order in which they came: a patient or lazy one whose time has come takes along
//! what is older than half of that patience, and what came just now may yet be taken back.
//!
//! What was taken back leaves its slot empty until what is before it is taken. Slots are bounded all the same: at
//! [`limits::STORE_QUEUE_SLOTS_MAX`] the oldest ops are due.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::haste::{Haste, haste, weight};
use crate::{
    limits,
    store::Op,
    types::{Device, Topic, UserId},
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
    slots: VecDeque<Slot>,
    /// The number of the slot at the front; numbers rise by one.
    front: u64,
    /// Ops in the slots.
    ops: usize,
    /// Waiting cursors, by the number of their op.
    cursors: HashMap<CursorOf, u64>,
    /// Ops that somebody waits for.
    urgent: usize,
    /// The numbers of patient ops from the front on; those that were taken back are passed over.
    patient: VecDeque<u64>,
    /// How many of them there are, and the bytes of their records.
    patient_ops: usize,
    patient_bytes: usize,
    /// The numbers of lazy ops from the front on.
    lazy: VecDeque<u64>,
    raise: bool,
    /// Ops with lower numbers are waited for, patient ones too.
    hurry: u64,
    closing: bool,
    /// How often the engine was lost so far.
    generation: u64,
    /// The engine is lost and not opened again.
    discarding: bool,
    /// Until when the writer sleeps, where it does.
    sleeps: Option<Option<Instant>>,
    /// How many ops were taken back.
    recalled: u64,
}

/// Whose cursor, and in which durable topic, where it is in one.
type CursorOf = (UserId, Device, Option<Topic>);

/// What a lazy op says the place of, where the latest counts.
fn cursor_of(op: &Op) -> Option<CursorOf> {
    match op {
        Op::Cursor { user, device, .. } => Some((user.clone(), device.clone(), None)),
        Op::PutMember { user, device, topic, done: None, .. } => {
            Some((user.clone(), device.clone(), Some(topic.clone())))
        }
        _ => None,
    }
}

struct Slot {
    /// `None`: it was taken back.
    op: Option<Op>,
    since: Instant,
}

/// Where an op stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number.
    pub number: u64,
    /// The number of the op at the front: those below are taken.
    pub front: u64,
}

/// Gives back the room of a rush, once it is over.
fn give_back<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() && queue.capacity() > limits::STORE_QUEUE_SLOTS_MAX / 4 {
        *queue = VecDeque::new();
    }
}

impl State {
    fn at(&mut self, number: u64) -> Option<&mut Slot> {
        let place = usize::try_from(number.checked_sub(self.front)?).ok()?;
        self.slots.get_mut(place)
    }

    fn push(&mut self, op: Op) -> u64 {
        let number = self.front + self.slots.len() as u64;
        if let Some(of) = cursor_of(&op) {
            let waiting = *self.cursors.entry(of).or_insert(number);
            // `waiting` is the number of an op between the front and the back: popping one forgets it.
            if waiting != number
                && let Some(slot) = self.at(waiting)
            {
                slot.op = Some(op);
                return waiting;
            }
        }
        // A cursor staged from here on must not move in front of this.
        match &op {
            Op::PutDevice { user, device, .. } => {
                self.cursors.remove(&(user.clone(), device.clone(), None));
            }
            Op::RemoveDevice { user, device, topics, .. } => {
                for topic in topics.iter().cloned().map(Some).chain([None]) {
                    self.cursors.remove(&(user.clone(), device.clone(), topic));
                }
            }
            Op::PutMember { user, device, topic, done: Some(_), .. } | Op::RemoveMember { user, device, topic, .. } => {
                self.cursors.remove(&(user.clone(), device.clone(), Some(topic.clone())));
            }
            Op::ForgetUser { user, .. } => self.cursors.retain(|(of, ..), _| of != user),
            Op::Append { .. }
            | Op::Delete { .. }
            | Op::Cursor { .. }
            | Op::PutMember { .. }
            | Op::ForgetDue { .. }
            | Op::ForgetId { .. }
            | Op::Revoke { .. }
            | Op::ForgetRevocations { .. } => {}
        }
        match haste(&op) {
            Haste::Urgent => self.urgent += 1,
            Haste::Patient => {
                self.patient.push_back(number);
                self.patient_ops += 1;
                self.patient_bytes += weight(&op).1;
            }
            Haste::Lazy => self.lazy.push_back(number),
        }
        self.ops += 1;
        self.slots.push_back(Slot { op: Some(op), since: Instant::now() });
        number
    }

    /// Takes the op out of the front slot, and the slot away; `None`: it was taken back before.
    fn pop(&mut self) -> Option<Op> {
        let op = self.slots.pop_front()?.op;
        self.front += 1;
        for numbers in [&mut self.patient, &mut self.lazy] {
            while numbers.front().is_some_and(|number| *number < self.front) {
                numbers.pop_front();
            }
            give_back(numbers);
        }
        give_back(&mut self.slots);
        let op = op?;
        if let Some(of) = cursor_of(&op)
            && self.cursors.get(&of) == Some(&(self.front - 1))
        {
            self.cursors.remove(&of);
        }
        self.gone(&op);
        Some(op)
    }

    /// An op has left its slot.
    fn gone(&mut self, op: &Op) {
        self.ops -= 1;
        match haste(op) {
            Haste::Urgent => self.urgent -= 1,
            Haste::Patient => {
                self.patient_ops -= 1;
                self.patient_bytes -= weight(op).1;
            }
            Haste::Lazy => {}
        }
    }

    /// Takes the oldest, those that came up to `until` at most.
    fn take(&mut self, until: Option<Instant>) -> Next {
        let (mut rows, mut bytes, mut ops) = (0, 0, Vec::new());
        while let Some(slot) = self.slots.front() {
            let Some(op) = &slot.op else {
                self.pop();
                continue;
            };
            if until.is_some_and(|until| slot.since > until) {
                break;
            }
            let (more_rows, more_bytes) = weight(op);
            rows += more_rows;
            bytes += more_bytes;
            let full = rows > limits::STORE_BATCH_ROWS_MAX || bytes > limits::STORE_BATCH_BYTES_MAX;
            if full && !ops.is_empty() {
                break;
            }
            ops.extend(self.pop());
        }
        Next::Commit { ops, raise: std::mem::take(&mut self.raise) }
    }

    fn is_ready(&self) -> bool {
        self.urgent > 0
            || self.raise
            || self.closing
            || (self.hurry > self.front && self.patient_ops > 0)
            || self.ops >= limits::STORE_BATCH_ROWS_MAX
            || self.patient_bytes >= limits::STORE_BATCH_BYTES_MAX
    }

    /// Whether there are so many slots, most of them empty where there are few ops, that the oldest ops must go.
    fn is_crowded(&self) -> bool {
        self.slots.len() >= limits::STORE_QUEUE_SLOTS_MAX
    }

    /// When the oldest op that nobody waits for is due.
    fn due(&mut self) -> Option<Instant> {
        let State { slots, front, patient, lazy, .. } = self;
        let since = |number: u64| {
            let slot = slots.get(usize::try_from(number.checked_sub(*front)?).ok()?)?;
            slot.op.is_some().then_some(slot.since)
        };
        let oldest = |numbers: &mut VecDeque<u64>| {
            while let Some(number) = numbers.front() {
                match since(*number) {
                    Some(since) => return Some(since),
                    None => numbers.pop_front(),
                };
            }
            None
        };
        let patient = oldest(patient).map(|since| since + limits::STORE_PATIENCE);
        let lazy = oldest(lazy).map(|since| since + limits::STORE_LAZY_DELAY);
        patient.into_iter().chain(lazy).min()
    }

    /// What the writer should do now, where there is something.
    fn next(&mut self, now: Instant) -> Option<Next> {
        if self.is_ready() {
            return Some(self.take(None));
        }
        if !self.is_crowded() && self.due().is_none_or(|due| due > now) {
            return None;
        }
        // Those that are due soon go with it; what came just now may yet be taken back.
        let oldest = self.slots.front().map(|slot| slot.since);
        Some(self.take(oldest.max(now.checked_sub(limits::STORE_PATIENCE / 2))))
    }
}

impl Queue {
    /// An empty one that takes ops of that generation.
    pub fn of(generation: u64) -> Self {
        Self { state: Mutex::new(State { generation, ..State::default() }), wake: Condvar::new() }
    }

    /// Queues an op of that generation; gives it back where the queue is closing or the engine was lost since.
    #[cfg(test)]
    #[must_use = "an op that is given back must be answered"]
    pub fn push(&self, generation: u64, op: Op) -> Option<Op> {
        self.place(generation, op).err()
    }

    /// How many ops wait.
    pub fn len(&self) -> usize {
        self.state.lock().ops
    }

    /// Queues an op of that generation, and says where it stands; gives it back where the queue is closing or the engine
    /// was lost since.
    #[allow(clippy::result_large_err, reason = "it is what came in")]
    pub fn place(&self, generation: u64, op: Op) -> Result<Place, Op> {
        let mut state = self.state.lock();
        if state.closing || state.discarding || state.generation != generation {
            return Err(op);
        }
        let number = state.push(op);
        if let Some(sleeps) = state.sleeps
            && (state.is_ready()
                || state.is_crowded()
                || state.due().is_some_and(|due| sleeps.is_none_or(|until| due < until)))
        {
            self.wake(&mut state);
        }
        Ok(Place { number, front: state.front })
    }

    /// Goes through ops of one log in their order, and takes back those that are `wanted`, which must be appends, unless
    /// somebody waits for one or the writer has it. What comes behind is counted without them.
    pub fn recall(&self, generation: u64, ops: impl Iterator<Item = (u64, bool)>) -> Vec<Op> {
        let mut recalled = Vec::new();
        let mut state = self.state.lock();
        if state.generation != generation {
            return recalled;
        }
        let (mut count, mut bytes) = (0, 0);
        for (number, wanted) in ops {
            let Some(slot) = state.at(number) else { continue };
            if wanted && let Some(op) = slot.op.take_if(|op| haste(op) == Haste::Patient) {
                state.gone(&op);
                if let Op::Append { notification, .. } = &op {
                    (count, bytes) = (count + 1, bytes + notification.accounted_bytes());
                }
                recalled.push(op);
                #[cfg(test)]
                if crate::planted::is(crate::planted::Bug::RecalledIsCounted) {
                    (count, bytes) = (0, 0);
                }
            } else if let Some(
                Op::Append { counters, .. } | Op::Delete { counters, .. } | Op::PutDevice { counters, .. },
            ) = &mut slot.op
            {
                counters.count = counters.count.saturating_sub(count);
                counters.bytes = counters.bytes.saturating_sub(bytes);
            }
        }
        state.recalled += recalled.len() as u64;
        while state.slots.front().is_some_and(|slot| slot.op.is_none()) {
            state.pop();
        }
        recalled
    }

    /// Somebody waits for what is there, patient ops among it.
    pub fn hurry(&self) {
        let mut state = self.state.lock();
        state.hurry = state.front + state.slots.len() as u64;
        if state.patient_ops > 0 {
            self.wake(&mut state);
        }
    }

    /// How many ops were taken back.
    pub fn recalled(&self) -> u64 {
        self.state.lock().recalled
    }

    fn wake(&self, state: &mut State) {
        if state.sleeps.take().is_some() {
            self.wake.notify_one();
        }
    }

    /// Asks for a commit with a higher mark.
    pub fn raise(&self) {
        let mut state = self.state.lock();
        if !state.raise {
            state.raise = true;
            self.wake(&mut state);
        }
    }

    /// The engine is lost: takes nothing until [`Queue::accept`], and of this generation nothing ever again. Returns what
    /// is queued.
    pub fn discard(&self, generation: u64) -> Vec<Op> {
        let mut state = self.state.lock();
        state.generation = generation;
        state.discarding = true;
        state.raise = false;
        let mut ops = Vec::with_capacity(state.ops);
        while !state.slots.is_empty() {
            ops.extend(state.pop());
        }
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
        // Also whoever waits for just that.
        self.wake.notify_one();
    }

    /// The next thing to do now, without waiting. `lazy`: what nobody waits for is due, too.
    #[cfg(test)]
    pub fn next_now(&self, lazy: bool) -> Option<Next> {
        let mut state = self.state.lock();
        (state.is_ready() || lazy && state.ops > 0).then(|| state.take(None))
    }

    /// Waits for the next thing to do; until `alarm` at most.
    pub fn next(&self, alarm: Option<Instant>) -> Next {
        let mut state = self.state.lock();
        loop {
            if state.closing && state.ops == 0 {
                return Next::Stop;
            }
            let now = Instant::now();
            if let Some(next) = state.next(now) {
                return next;
            }
            if alarm.is_some_and(|alarm| alarm <= now) {
                return Next::Alarm;
            }
            let until = [state.due(), alarm].into_iter().flatten().min();
            state.sleeps = Some(until);
            match until {
                Some(moment) => drop(self.wake.wait_until(&mut state, moment)),
                None => self.wake.wait(&mut state),
            }
            state.sleeps = None;
        }
    }
}

#[cfg(test)]
mod tests;
