//! Bugs that the model test turns on, one at a time, to see that it finds them. They exist in test builds only: nothing
//! of this is in the daemon.

use std::cell::Cell;

/// A rule that is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A device's cursor moves when a notification is handed to its session, and not when it is confirmed.
    CursorAtPush,
    /// A session turns Live although something is staged that it has not seen.
    LiveTooEarly,
    /// A repeated call is answered before the first one is on disk.
    DuplicateBeforeDurable,
    /// A notification that takes another's place takes its offset, too: who has that one is not given the new one.
    CollapseWithoutCursor,
    /// What one device has confirmed is taken back from the writer, whoever else lacks it.
    RecallOfUnconfirmed,
    /// What was staged behind something that is taken back is counted as if that were there.
    RecalledIsCounted,
    /// After a restart offsets go on from the clock, whatever was given before.
    OffsetReused,
    /// A device is told that it is in a durable topic before that is on disk.
    JoinedBeforeDurable,
    /// What is published to a durable topic goes to who is there alone: nobody pulls it.
    TopicNotPulled,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 9] = [
        Bug::CursorAtPush,
        Bug::LiveTooEarly,
        Bug::DuplicateBeforeDurable,
        Bug::CollapseWithoutCursor,
        Bug::RecallOfUnconfirmed,
        Bug::RecalledIsCounted,
        Bug::OffsetReused,
        Bug::JoinedBeforeDurable,
        Bug::TopicNotPulled,
    ];
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Whether it is turned on, on this thread.
pub fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Turns one on, or all off, on this thread.
pub fn set(bug: Option<Bug>) {
    PLANTED.set(bug);
}
