//! What became of notifications, in numbers.

use super::{Metrics, SpreadCounter};

/// What became of a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was taken into a log, of a user or of broadcasts. Each of these has one more of those below in the end, but for
    /// what was damaged, and for what broadcasts leave behind, which expire.
    Stored,
    /// It was not to be stored, and handed to one session at least.
    Accepted,
    /// Every device of its user has it.
    Confirmed,
    /// Another with its collapse key took its place.
    Superseded,
    /// Its TTL ran out.
    Expired,
    /// A caller had it deleted.
    Purged,
    /// It was not to be stored, and no session took it; or a full mailbox, or too many attempts, ended it.
    Dropped,
}

impl Fate {
    /// All of them.
    pub const ALL: &'static [Fate] =
        &[Fate::Stored, Fate::Accepted, Fate::Confirmed, Fate::Superseded, Fate::Expired, Fate::Purged, Fate::Dropped];

    /// The name that operators see.
    pub fn as_str(self) -> &'static str {
        match self {
            Fate::Stored => "stored",
            Fate::Accepted => "accepted",
            Fate::Confirmed => "confirmed",
            Fate::Superseded => "superseded",
            Fate::Expired => "expired",
            Fate::Purged => "purged",
            Fate::Dropped => "dropped",
        }
    }
}

/// How many met each fate, in the order of [`Fate::ALL`].
#[derive(Debug, Default)]
pub struct Fates([SpreadCounter; Fate::ALL.len()]);

impl Metrics {
    /// So many more met that fate.
    pub fn fate(&self, fate: Fate, count: usize) {
        self.fates.0[fate as usize].add(count as u64);
    }

    /// How many have met it.
    pub fn fates(&self, fate: Fate) -> u64 {
        self.fates.0[fate as usize].get()
    }
}
