//! The folder of a store, for those who work on it while no daemon does: whose files are in it, opening them without
//! reading or writing a row, making a fresh one beside it, and putting that in its place.
//!
//! Rules: whoever works on a store holds the engine's lock. A fresh store is made under a name of its own with a file
//! [`UNFINISHED`] in it, and comes to its name by one rename, synced, whole. What in a store's folder is not the
//! engine's (backups, what was set aside as damaged) stays in it.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, chown},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{
    super::{
        engine::{Engine, EngineError},
        kind::Kind,
        witness,
    },
    ToolError,
};
use crate::{
    limits,
    store::{Durability, OpenError},
};

/// Stands in the folder of a store that is being made, until all is in it.
const UNFINISHED: &str = "unfinished";

/// Opens the engine of a store that is there. Waits up to [`limits::STORE_LOCK_WAIT`] for another process to let go of
/// it. May panic over damage.
pub fn open(kind: &Kind, path: &Path) -> Result<Arc<dyn Engine>, ToolError> {
    if !path.join(kind.lock_file).exists() {
        return Err(ToolError::NoStore { path: path.to_owned() });
    }
    if path.join(UNFINISHED).exists() {
        return Err(ToolError::Unfinished { path: path.to_owned() });
    }
    let deadline = Instant::now() + limits::STORE_LOCK_WAIT;
    loop {
        let opened = remove_leftovers(kind, path).and_then(|()| (kind.open)(path, Durability::Process));
        match opened {
            Err(EngineError::Busy) if Instant::now() < deadline => thread::sleep(Duration::from_millis(50)),
            opened => return opened.map_err(|error| ToolError::engine(path, error)),
        }
    }
}

/// What a crash of the daemon left and keeps the engine from opening. Under the lock, for it may be somebody's work.
fn remove_leftovers(kind: &Kind, path: &Path) -> Result<(), EngineError> {
    let lock = File::options().read(true).write(true).open(path.join(kind.lock_file))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(EngineError::Busy),
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if (kind.is_leftover)(&entry.file_name().to_string_lossy()) {
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

/// A store that is being made, beside the place it is for. Removed when it is dropped before it is whole.
pub struct Fresh {
    folder: PathBuf,
    kind: &'static Kind,
    engine: Option<Arc<dyn Engine>>,
    is_whole: bool,
}

impl Fresh {
    /// An empty store of that engine at `folder`. What an earlier attempt left there unfinished is removed; anything
    /// else there is an error ([`io::ErrorKind::AlreadyExists`]).
    pub fn make(kind: &'static Kind, folder: PathBuf) -> Result<Self, EngineError> {
        remove_unfinished(&folder)?;
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let mut fresh = Self { folder, kind, engine: None, is_whole: false };
        File::create(fresh.folder.join(UNFINISHED))?;
        fresh.engine = Some((kind.open)(&fresh.folder, Durability::Process)?);
        Ok(fresh)
    }

    /// Its engine.
    pub fn engine(&self) -> Result<&dyn Engine, EngineError> {
        self.engine.as_deref().ok_or_else(|| EngineError::Io(io::Error::other("it is closed already")))
    }

    /// Closes it and brings it to the disk. It has no marker any more, and stays unless it is dropped before
    /// it got its name.
    fn finish(&mut self) -> io::Result<()> {
        self.engine = None;
        self.wait_for_the_lock()?;
        sync_files(&self.folder)?;
        fs::remove_file(self.folder.join(UNFINISHED))?;
        sync_folder(&self.folder)
    }

    /// Engines let go of their files a moment after they are dropped.
    fn wait_for_the_lock(&self) -> io::Result<()> {
        let deadline = Instant::now() + limits::STORE_LOCK_WAIT;
        let file = File::options().read(true).write(true).open(self.folder.join(self.kind.lock_file))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Brings it to the disk, and to a name that nothing has.
    pub fn put_at(mut self, path: &Path) -> io::Result<()> {
        self.finish()?;
        renameat_with(CWD, &self.folder, CWD, path, RenameFlags::NOREPLACE)?;
        self.is_whole = true;
        sync_folder(parent(path))
    }

    /// Brings it to the disk and in the place of the empty folder at `path`; fails where that is not empty any more.
    pub fn put_over(mut self, path: &Path) -> io::Result<()> {
        self.finish()?;
        self.give_to_owner_of(path)?;
        fs::rename(&self.folder, path)?;
        self.is_whole = true;
        sync_folder(parent(path))
    }

    /// Brings it to the disk and in the place of the folder at `path`, at one stroke; the files of `old` that were there
    /// are removed. The caller holds the old one's lock. Its files are given to who had the folder.
    pub fn swap_with(mut self, path: &Path, old: &Kind) -> Result<(), ToolError> {
        let failed = |what: &'static str| {
            let path = path.to_owned();
            move |source: io::Error| ToolError::File { what, path, source }
        };
        self.finish().map_err(failed("cannot bring to the disk what is to replace"))?;
        self.give_to_owner_of(path).map_err(failed("cannot give the owner of the store a copy of"))?;
        renameat_with(CWD, &self.folder, CWD, path, RenameFlags::EXCHANGE).map_err(|error| {
            failed("nothing has changed: cannot swap two folders (RENAME_EXCHANGE) for")(error.into())
        })?;
        // From here on the old one lies where the fresh one was made.
        self.is_whole = true;
        sync_folder(parent(path)).map_err(failed("cannot sync the folder of"))?;
        let left = self.folder.clone();
        clear_away(&left, path, old).map_err(|source| ToolError::OldOneLeft { path: path.to_owned(), left, source })
    }

    fn give_to_owner_of(&self, path: &Path) -> io::Result<()> {
        let owner = fs::metadata(path)?;
        fs::set_permissions(&self.folder, owner.permissions())?;
        give_to(&self.folder, &owner)
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if self.is_whole {
            return;
        }
        self.engine = None;
        // A failure has been told, and that it is unfinished stands in it.
        let _ = self.wait_for_the_lock();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Removes what is left of a store that was being made when its maker ended; nothing else.
fn remove_unfinished(folder: &Path) -> io::Result<()> {
    let kind = Kind::at(folder);
    if !folder.join(UNFINISHED).exists() {
        return Ok(());
    }
    if let Some(kind) = kind {
        let file = File::options().read(true).write(true).open(folder.join(kind.lock_file))?;
        file.try_lock().map_err(|_| io::Error::new(io::ErrorKind::ResourceBusy, "somebody is at work there"))?;
    }
    fs::remove_dir_all(folder)
}

/// Brings what is not the engine's from the folder `old` to `path`, and removes the rest.
fn clear_away(old: &Path, path: &Path, kind: &Kind) -> io::Result<()> {
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(old)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // A witness saw the store that was there.
        let is_own = (kind.is_own)(&name) || witness::is_own(&name);
        if is_own { &mut own } else { &mut others }.push(entry);
    }
    for entry in others {
        renameat_with(CWD, entry.path(), CWD, path.join(entry.file_name()), RenameFlags::NOREPLACE)?;
    }
    for entry in own {
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) }?;
    }
    fs::remove_dir(old)
}

/// Gives the engine's files in `path` to the folder's owner, for whoever worked on them was perhaps root.
pub fn keep_owner(kind: &Kind, path: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(path)?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if (kind.is_own)(&entry.file_name().to_string_lossy()) {
            give_to(&entry.path(), &owner)?;
        }
    }
    Ok(())
}

fn give_to(path: &Path, owner: &fs::Metadata) -> io::Result<()> {
    let there = fs::symlink_metadata(path)?;
    if (there.uid(), there.gid()) != (owner.uid(), owner.gid()) {
        chown(path, Some(owner.uid()), Some(owner.gid()))?;
    }
    if there.is_dir() {
        for entry in fs::read_dir(path)? {
            give_to(&entry?.path(), owner)?;
        }
    }
    Ok(())
}

fn sync_files(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_files(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The folder that `path` is in.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The name beside `path` under which something is made that is to take its place.
pub fn beside(path: &Path, suffix: &str) -> Result<PathBuf, ToolError> {
    let mut name = path.file_name().map(ToOwned::to_owned).ok_or_else(|| ToolError::File {
        what: "cannot make anything beside",
        path: path.to_owned(),
        source: io::ErrorKind::InvalidInput.into(),
    })?;
    name.push(suffix);
    Ok(path.with_file_name(name))
}

/// An error of the engine as one of opening: the same words as the daemon's.
pub fn open_error(path: &Path, error: EngineError) -> OpenError {
    let path = path.to_owned();
    match error {
        EngineError::Busy => OpenError::Locked { path },
        EngineError::Format { found, supported } => OpenError::Format { path, found, supported },
        EngineError::Corrupt(detail) => OpenError::Corrupt { path, detail },
        EngineError::Foreign { found, configured } => OpenError::Foreign { path, found, configured },
        EngineError::Io(source) => match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                OpenError::NotWritable { path, source }
            }
            _ => OpenError::Io { path, source },
        },
    }
}
