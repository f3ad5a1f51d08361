//! A witness beside the engine's files: how many commits there were, so that a store that went back to an earlier state
//! is known as such.
//!
//! sled takes a damaged byte of its log for the torn end of a crash: what comes behind it is gone without a word, the
//! counters that would tell with it. So every commit counts itself in a row, and the count is written to a file as well,
//! at most a second late and at the end. A store that has fewer commits than its witness saw has lost some. The witness
//! is always behind, so a crash of the process never looks like that. A loss of power may, where nobody promised that it
//! loses nothing: hence it says as well whether that was promised, and when the machine had started.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    engine::{Engine, EngineError},
    keys::Key,
    rows,
};
use crate::clock::Clock;

/// Its name in the store's folder.
const FILE: &str = "witness";
/// What it is called until it is whole.
const FRESH: &str = "witness.new";
/// How far two looks at when the machine started may differ, in seconds: the clock is steered.
const BOOT_TOLERANCE: u64 = 30;

/// Whether a file in the store's folder has a name of the witness's.
pub fn is_own(name: &str) -> bool {
    name == FILE || name == FRESH
}

/// What a witness saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which store.
    pub epoch: Uuid,
    /// How many commits.
    pub commits: u64,
    /// The offset mark at that time.
    pub mark: u64,
    /// Whether a loss of power was to take none of them.
    pub promised: bool,
    /// When the machine had started, in seconds of Unix time.
    pub boot: u64,
}

impl Seen {
    fn text(&self) -> String {
        let Seen { epoch, commits, mark, promised, boot } = self;
        let said = format!("{epoch} {commits} {mark} {promised} {boot}");
        let sum = Sha256::digest(&said).iter().take(8).fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        format!("{said} {sum:016x}\n")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let seen = Seen {
            epoch: words.next()?.parse().ok()?,
            commits: words.next()?.parse().ok()?,
            mark: words.next()?.parse().ok()?,
            promised: words.next()?.parse().ok()?,
            boot: words.next()?.parse().ok()?,
        };
        (seen.text() == text).then_some(seen)
    }

    /// What the witness in a folder saw; `None` where there is none, or it cannot be read.
    pub fn of(folder: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(folder.join(FILE)).ok()?)
    }

    /// Whether the machine started anew since, as far as its clock says.
    pub fn rebooted(&self) -> bool {
        self.boot.abs_diff(boot()) > BOOT_TOLERANCE
    }

    /// How many commits of this store an engine has lost; 0: none that is known of.
    pub fn lost_by(&self, engine: &dyn Engine) -> Result<u64, EngineError> {
        let epoch = engine.get(&Key::Epoch.encode())?.and_then(|row| rows::decode_epoch(&row).ok());
        if epoch != Some(self.epoch) {
            return Ok(0);
        }
        Ok(self.commits.saturating_sub(commits_of(engine)?))
    }
}

/// When the machine started, in seconds of Unix time: sysinfo(2), since a sandboxed service does not see its boot id
/// (`ProcSubset=pid`). Setting the clock moves it.
pub fn boot() -> u64 {
    let up = u64::try_from(rustix::system::sysinfo().uptime).unwrap_or_default();
    (Clock::system().unix_micros() / 1_000_000).saturating_sub(up)
}

/// How many commits an engine says there were.
pub fn commits_of(engine: &dyn Engine) -> Result<u64, EngineError> {
    let row = engine.get(&Key::Commits.encode())?;
    // Without one it is of a version that did not count.
    Ok(row.and_then(|row| rows::decode_mark(&row).ok()).unwrap_or(0))
}

/// Writes what it sees.
pub struct Witness {
    folder: PathBuf,
    epoch: Uuid,
    promised: bool,
    boot: u64,
    last: Option<Seen>,
    warned: bool,
}

impl Witness {
    /// The witness of the store `epoch` in a folder, where a loss of power is `promised` to take nothing.
    pub fn of(folder: &Path, epoch: Uuid, promised: bool) -> Self {
        Self { folder: folder.to_owned(), epoch, promised, boot: boot(), last: None, warned: false }
    }

    /// The same, from when the machine had started at another time.
    #[cfg(test)]
    pub(in crate::store) fn booted(self, boot: u64) -> Self {
        Self { boot, ..self }
    }

    /// There were so many commits.
    pub fn saw(&mut self, commits: u64, mark: u64) {
        let Self { epoch, promised, boot, .. } = *self;
        let seen = Seen { epoch, commits, mark, promised, boot };
        if self.last == Some(seen) {
            return;
        }
        match self.write(&seen) {
            Ok(()) => (self.last, self.warned) = (Some(seen), false),
            // It is behind then, and says less.
            Err(error) if !self.warned => {
                self.warned = true;
                tracing::warn!(%error, "the store's witness could not be written; damage may go unnoticed");
            }
            Err(_) => {}
        }
    }

    fn write(&self, seen: &Seen) -> io::Result<()> {
        let fresh = self.folder.join(FRESH);
        let written = fs::write(&fresh, seen.text()).and_then(|()| fs::rename(&fresh, self.folder.join(FILE)));
        if written.is_err() {
            // Perhaps another user's, from a crash: the next time it is this one's.
            let _ = fs::remove_file(&fresh);
        }
        written
    }
}

/// How many commits there were, and who is told.
pub struct Tally {
    /// How many.
    pub commits: u64,
    witness: Option<Witness>,
}

impl Tally {
    /// As many as the engine says.
    pub fn of(engine: &dyn Engine, witness: Option<Witness>) -> Result<Self, EngineError> {
        Ok(Self { commits: commits_of(engine)?, witness })
    }

    /// Tells the witness, where there is one.
    pub fn show(&mut self, mark: u64) {
        if let Some(witness) = &mut self.witness {
            witness.saw(self.commits, mark);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_read_back_and_nothing_else_is() {
        let folder = tempfile::TempDir::new().unwrap();
        assert_eq!(Seen::of(folder.path()), None);
        let epoch = Uuid::new_v4();
        let mut witness = Witness::of(folder.path(), epoch, true);
        witness.saw(7, 1000);
        let seen = Seen::of(folder.path()).unwrap();
        assert_eq!(seen, Seen { epoch, commits: 7, mark: 1000, promised: true, boot: witness.boot });
        assert!(!seen.rebooted());
        let file = folder.path().join(FILE);
        let text = fs::read_to_string(&file).unwrap();
        for place in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[place] ^= 1;
            fs::write(&file, &bytes).unwrap();
            assert_eq!(Seen::of(folder.path()), None, "at {place}");
            fs::write(&file, &text[..place]).unwrap();
            assert_eq!(Seen::of(folder.path()), None, "up to {place}");
        }
    }
}
