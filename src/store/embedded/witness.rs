//! A witness beside the engine's files: how many commits there were, so that a store that went back to an earlier state
//! is known as such.
//!
//! sled takes a damaged byte of its log for the torn end of a crash: what comes behind it is gone without a word, the
//! counters that would tell with it. So every commit counts itself in a row, and the count is written to a file as well,
//! at most a second late and at the end. A store that has fewer commits than its witness saw has lost some. The witness
//! is always behind, so a crash of the process never looks like that. A loss of power may, where nobody promised that it
//! loses nothing: hence it says in which boot of the machine it was written as well.

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

/// Its name in the store's folder.
const FILE: &str = "witness";

/// What a witness saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which store.
    pub epoch: Uuid,
    /// How many commits.
    pub commits: u64,
    /// The offset mark at that time.
    pub mark: u64,
    /// In which boot of the machine; nil where the machine does not say.
    pub boot: Uuid,
}

impl Seen {
    fn text(&self) -> String {
        let Seen { epoch, commits, mark, boot } = self;
        let said = format!("{epoch} {commits} {mark} {boot}");
        let sum = Sha256::digest(&said).iter().take(8).fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        format!("{said} {sum:016x}\n")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let seen = Seen {
            epoch: words.next()?.parse().ok()?,
            commits: words.next()?.parse().ok()?,
            mark: words.next()?.parse().ok()?,
            boot: words.next()?.parse().ok()?,
        };
        (seen.text() == text).then_some(seen)
    }

    /// What the witness in a folder saw; `None` where there is none, or it cannot be read.
    pub fn of(folder: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(folder.join(FILE)).ok()?)
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

/// The boot of the machine (`random(4)`); nil where it does not say.
pub fn boot() -> Uuid {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.ok().and_then(|id| id.trim().parse().ok()).unwrap_or(Uuid::nil())
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
    boot: Uuid,
    last: Option<Seen>,
}

impl Witness {
    /// The witness of the store `epoch` in a folder.
    pub fn of(folder: &Path, epoch: Uuid) -> Self {
        Self::of_boot(folder, epoch, boot())
    }

    /// The same, in another boot.
    pub(in crate::store) fn of_boot(folder: &Path, epoch: Uuid, boot: Uuid) -> Self {
        Self { folder: folder.to_owned(), epoch, boot, last: None }
    }

    /// There were so many commits.
    pub fn saw(&mut self, commits: u64, mark: u64) {
        let seen = Seen { epoch: self.epoch, commits, mark, boot: self.boot };
        if self.last == Some(seen) {
            return;
        }
        match self.write(&seen) {
            Ok(()) => self.last = Some(seen),
            // It is behind then, and says less.
            Err(error) => tracing::debug!(%error, "the store's witness could not be written"),
        }
    }

    fn write(&self, seen: &Seen) -> io::Result<()> {
        let fresh = self.folder.join(format!("{FILE}.new"));
        fs::write(&fresh, seen.text())?;
        fs::rename(&fresh, self.folder.join(FILE))
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
        let mut witness = Witness::of(folder.path(), epoch);
        witness.saw(7, 1000);
        assert_eq!(Seen::of(folder.path()), Some(Seen { epoch, commits: 7, mark: 1000, boot: boot() }));
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
