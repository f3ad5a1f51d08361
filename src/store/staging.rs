//! How writes come into the writer's queue, and how a notification for which nobody waits is taken out again, where
//! everybody confirmed it before it was written.
//!
//! Rule: what is taken back was never there. It is counted in no row, its room is free at once, and whatever else follows
//! from it (an id to be remembered, a place that it takes, an answer) keeps it from being taken back.

use super::{Op, Store};
use crate::types::Offset;

/// What of a log is in the writer's queue and may be taken back, and what is counted behind it. It lives with the log,
/// under its lock.
#[derive(Debug, Default)]
pub struct Recallable(Vec<Staged>);

/// An op in the queue.
#[derive(Debug)]
struct Staged {
    /// Its number in the queue.
    number: u64,
    /// The last offset of its log when it was staged; an append's own.
    last: Offset,
    /// Whether it is an append that may be taken back.
    may_go: bool,
}

impl Recallable {
    /// An op was staged. It is remembered where it may be taken back, or is counted behind one that may.
    fn staged(&mut self, number: u64, front: u64, last: Offset, may_go: bool) {
        self.0.drain(..self.0.partition_point(|staged| staged.number < front));
        if may_go || !self.0.is_empty() {
            self.0.push(Staged { number, last, may_go });
        }
    }

    /// All up to `upto` is on disk.
    pub fn applied(&mut self, upto: Offset) {
        self.0.drain(..self.0.partition_point(|staged| staged.last <= upto));
        self.forget_idle();
    }

    /// Nothing of the log is in the queue any more.
    pub fn clear(&mut self) {
        self.0 = Vec::new();
    }

    fn forget_idle(&mut self) {
        if !self.0.iter().any(|staged| staged.may_go) {
            self.0 = Vec::new();
        }
    }
}

impl Store {
    /// Queues a write that follows from what was read in `generation`. To be called under the log's lock, so that writes
    /// are queued in the order of their offsets. Never fails, never waits: what becomes of it is told to the op's
    /// observer and `done`, from the writer's thread; only where the store is closed or of another generation, `done` is
    /// answered right here, the observer is not told, and the return is false.
    pub fn stage_in(&self, generation: u64, op: Op) -> bool {
        self.stage_recallable(generation, op, &mut Recallable::default())
    }

    /// [`Store::stage_in`], for an op of the log that `recallable` lives with: an append for which nobody waits can be taken
    /// back then, as long as every op with counters of that log is staged so.
    pub fn stage_recallable(&self, generation: u64, op: Op, recallable: &mut Recallable) -> bool {
        let counted = op.counted();
        let refused = match (self.0.shared.queue.place(generation, op), counted) {
            (Ok(place), Some((last, may_go))) => {
                recallable.staged(place.number, place.front, last, may_go);
                return true;
            }
            (Ok(_), None) => return true,
            (Err(refused), _) => refused,
        };
        if let Some(done) = refused.into_done() {
            // Whoever asked may have gone.
            let _ = done.send(Err(self.0.shared.refusal_of_late()));
        }
        false
    }

    /// Takes the appends at `offsets` back, which ascend, where they may be and the writer does not have them yet: they are
    /// not written, their room is free, and their observer will not hear of them. To be called under the log's lock. Returns
    /// those that were taken back.
    pub fn recall(&self, generation: u64, offsets: &[Offset], recallable: &mut Recallable) -> Vec<Offset> {
        let Some(first) = offsets.first() else { return Vec::new() };
        let from = recallable.0.partition_point(|staged| staged.last < *first);
        let mut staged = recallable.0[from..].iter().peekable();
        if staged.peek().is_none() {
            return Vec::new();
        }
        let wanted = |staged: &Staged| staged.may_go && offsets.binary_search(&staged.last).is_ok();
        let ops = self.0.shared.queue.recall(generation, staged.map(|staged| (staged.number, wanted(staged))));
        let recalled: Vec<Offset> = ops.iter().filter_map(|op| Some(op.counted()?.0)).collect();
        recallable.0.retain(|staged| !staged.may_go || recalled.binary_search(&staged.last).is_err());
        recallable.forget_idle();
        recalled
    }

    /// Has the writer commit what is staged, also that for which nobody waits.
    pub fn hurry(&self) {
        self.0.shared.queue.hurry();
    }

    /// How many appends were taken back since it was opened.
    pub fn recalled(&self) -> u64 {
        self.0.shared.queue.recalled()
    }
}
