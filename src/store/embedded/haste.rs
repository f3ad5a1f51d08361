//! How soon an op is to be committed, and how much of a commit it takes.

use crate::{limits, store::Op};

/// How soon an op is to be committed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Haste {
    /// Somebody waits for it, or for what follows from it.
    Urgent,
    /// A notification for which nobody waits.
    Patient,
    /// Whatever else nobody waits for.
    Lazy,
}

/// How soon it is to be committed.
pub fn haste(op: &Op) -> Haste {
    match op {
        Op::Append { done: None, remember: None, .. } => Haste::Patient,
        Op::Append { .. }
        | Op::PutDevice { .. }
        | Op::RemoveDevice { .. }
        | Op::ForgetUser { .. }
        | Op::Revoke { .. } => Haste::Urgent,
        Op::Delete { done, .. }
        | Op::PutMember { done, .. }
        | Op::RemoveMember { done, .. }
        | Op::ForgetDue { done, .. }
        | Op::ForgetId { done, .. }
            if done.is_some() =>
        {
            Haste::Urgent
        }
        Op::Delete { .. }
        | Op::PutMember { .. }
        | Op::RemoveMember { .. }
        | Op::ForgetDue { .. }
        | Op::ForgetId { .. }
        | Op::Cursor { .. }
        | Op::ForgetRevocations { .. } => Haste::Lazy,
    }
}

/// The rows an op writes, and the bytes of its record.
pub fn weight(op: &Op) -> (usize, usize) {
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
        Op::Cursor { .. } | Op::PutMember { .. } | Op::RemoveMember { .. } | Op::ForgetDue { .. } => (1, 0),
        Op::PutDevice { .. } | Op::ForgetId { .. } => (2, 0),
        Op::RemoveDevice { unremembered, topics, .. } => (2 + unremembered.len() + topics.len(), 0),
        Op::Revoke { revoked, .. } => (revoked.len(), 0),
        Op::ForgetRevocations { ids } => (ids.len(), 0),
        // A commit of its own: what it removes is what was there before.
        Op::ForgetUser { .. } => (limits::STORE_BATCH_ROWS_MAX + 1, 0),
    }
}
