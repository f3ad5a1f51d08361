//! The room on the store's disk: what is free, and the ballast, a file that takes room for the time when all else is
//! taken. It is let go when a commit finds no room, so that the engine can be opened again and deletions get through.
//!
//! Rule: senders are only served while, the ballast aside, as much again is free, and what it takes to delete all that
//! is stored: an engine that only ever appends needs room to delete (for some ten MiB at once, sled was seen to take as
//! much again). Files do not shrink when what was in them is deleted, but are used again: such room counts, too.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::limits;

/// The ballast's name in the store's folder.
const BALLAST: &str = "ballast";
/// What `st_blocks` counts in.
const BLOCK_BYTES: u64 = 512;

/// See the module's documentation.
pub struct Room {
    folder: PathBuf,
    /// The ballast's size, and what must be free besides.
    bytes: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Held,
    LetGo,
    /// The file system gives no room in advance: as much must be free instead.
    Unsupported,
}

impl Room {
    /// The room around the store in `folder`.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let system = statvfs(folder)?;
        let bytes = (system.f_blocks.saturating_mul(system.f_frsize) / 16).min(limits::STORE_BALLAST_BYTES_MAX);
        let mut room = Self { folder: folder.to_owned(), bytes, state: State::LetGo };
        // From an earlier life.
        if fs::metadata(room.ballast()).is_ok_and(|file| file.len() == bytes && file.blocks() * BLOCK_BYTES >= bytes) {
            room.state = State::Held;
        }
        Ok(room)
    }

    /// Lets go of what an earlier life held. Tells whether there was something.
    pub fn release_in(folder: &Path) -> bool {
        fs::remove_file(folder.join(BALLAST)).is_ok()
    }

    /// Lets go of the ballast.
    pub fn release(&mut self) {
        match fs::remove_file(self.ballast()) {
            Ok(()) => tracing::warn!(bytes = self.bytes, "the room kept for a full disk was let go"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::error!(%error, "the room kept for a full disk could not be let go"),
        }
        if self.state == State::Held {
            self.state = State::LetGo;
        }
    }

    /// Takes the ballast where there is room for it, and tells how many bytes senders may fill, where the store's files
    /// have `disk_bytes` and `stored_bytes` are in them.
    pub fn spare(&mut self, disk_bytes: u64, stored_bytes: u64) -> io::Result<u64> {
        let mut free = self.free()?;
        if self.state == State::LetGo && free >= self.bytes.saturating_mul(2) {
            match self.take() {
                Ok(()) => self.state = State::Held,
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) => {
                    self.state = State::Unsupported;
                }
                // Taken by others in between, or a quota that `free` knows nothing of.
                Err(error) => tracing::debug!(%error, "there is no room to keep for a full disk"),
            }
            free = self.free()?;
        }
        let kept = match self.state {
            State::Held => self.bytes,
            State::Unsupported | State::LetGo => self.bytes.saturating_mul(2),
        };
        let to_delete = stored_bytes.saturating_mul(2).min(limits::STORE_DISK_RESERVE_BYTES_MAX);
        Ok(free.saturating_add(reusable(disk_bytes, stored_bytes)).saturating_sub(kept).saturating_sub(to_delete))
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join(BALLAST)
    }

    fn free(&self) -> io::Result<u64> {
        let system = statvfs(&self.folder)?;
        Ok(system.f_bavail.saturating_mul(system.f_frsize))
    }

    /// Takes twice the room, to see that it is there whatever counts it, and gives half of it back.
    fn take(&self) -> io::Result<()> {
        let path = self.ballast();
        let taken = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path).and_then(|file| {
            fallocate(&file, FallocateFlags::empty(), 0, self.bytes.saturating_mul(2))?;
            file.set_len(self.bytes)
        });
        if taken.is_err() {
            // What was made of it would only be in the way.
            let _ = fs::remove_file(&path);
        }
        taken
    }
}

/// How much of the store's files is free for what comes: nobody says, so it is guessed, and low. What is stored takes up to
/// three times its bytes, a few segments of sled's are half written, and of the rest half may be needed to tidy up.
pub fn reusable(disk_bytes: u64, stored_bytes: u64) -> u64 {
    disk_bytes.saturating_sub(stored_bytes.saturating_mul(3)).saturating_sub(4 * 1024 * 1024) / 2
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn the_ballast_takes_room_is_let_go_and_taken_again() {
        let folder = TempDir::new().unwrap();
        let file = || fs::metadata(folder.path().join(BALLAST));
        let mut room = Room::of(folder.path()).unwrap();
        assert!(room.spare(0, 0).unwrap() > 0, "this needs a disk with some room");
        assert!(room.state == State::Held, "this needs a disk that gives room in advance");
        let ballast = file().unwrap();
        assert_eq!((ballast.len(), ballast.mode() & 0o777), (room.bytes, 0o600));
        assert!(ballast.blocks() * BLOCK_BYTES >= room.bytes, "it is a hole");

        assert!(Room::of(folder.path()).unwrap().state == State::Held, "a further life finds it");
        room.release();
        assert!(file().is_err() && room.state == State::LetGo);
        room.release();
        assert!(!Room::release_in(folder.path()));
        assert!(room.spare(0, 0).unwrap() > 0 && file().is_ok());
        File::options().write(true).open(folder.path().join(BALLAST)).unwrap().set_len(5).unwrap();
        assert!(Room::of(folder.path()).unwrap().state == State::LetGo, "a part of it is none");
        assert!(Room::release_in(folder.path()));
    }

    #[test]
    fn without_ballast_and_room_for_it_senders_have_none() {
        let folder = TempDir::new().unwrap();
        let mut room = Room::of(folder.path()).unwrap();
        room.bytes = u64::MAX / 4;
        assert_eq!(room.spare(0, 0).unwrap(), 0);
        assert!(!folder.path().join(BALLAST).exists());
        // There is no such room, whatever `free` says.
        assert!(room.take().is_err());
        assert!(!folder.path().join(BALLAST).exists());
    }

    #[test]
    fn what_is_stored_keeps_room_to_be_deleted_and_what_was_deleted_gives_room() {
        const MIB: u64 = 1024 * 1024;
        let folder = TempDir::new().unwrap();
        let mut room = Room::of(folder.path()).unwrap();
        // Others use the same disk.
        let about = |spare: u64, wanted: u64| assert!(spare.abs_diff(wanted) < 512 * MIB, "{spare}, not {wanted}");
        let empty = room.spare(0, 0).unwrap();
        about(room.spare(100 * MIB, 100 * MIB).unwrap(), empty - 200 * MIB);
        about(room.spare(u64::MAX / 4, u64::MAX / 8).unwrap(), empty - limits::STORE_DISK_RESERVE_BYTES_MAX);
        about(room.spare(4096 * MIB, 0).unwrap(), empty + 2046 * MIB);
        assert_eq!(reusable(30 * MIB, 5 * MIB), 11 * MIB / 2);
        assert_eq!(reusable(30 * MIB, 10 * MIB), 0);
    }
}
