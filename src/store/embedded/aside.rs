//! Moves a damaged store's files aside, to where an operator can look at them. Nothing is deleted, nothing overwritten.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use super::{kind::Kind, suspect};
use crate::clock::Clock;

/// Moves the engine's files to a folder beside the store's, or to one inside where none can be made beside it (it may
/// be a mount, or the only folder that the daemon may write). Tells which.
pub fn set_aside(kind: &Kind, path: &Path, clock: &Clock) -> io::Result<PathBuf> {
    let seconds = clock.unix_micros() / 1_000_000;
    let inside = path.join(format!("corrupt-{seconds}"));
    let beside = path.file_name().map(|name| {
        let mut name = name.to_owned();
        name.push(format!(".corrupt-{seconds}"));
        path.with_file_name(name)
    });
    match beside.map(|beside| move_aside(kind, path, &beside)) {
        Some(Ok(moved_to)) => Ok(moved_to),
        Some(Err(_)) | None => move_aside(kind, path, &inside),
    }
}

/// Brings to the disk which files a folder holds.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path)?.sync_all()
}

fn move_aside(kind: &Kind, path: &Path, to: &Path) -> io::Result<PathBuf> {
    let folder = free_name(to)?;
    fs::DirBuilder::new().mode(0o700).create(&folder)?;
    let moved = move_files(kind, path, &folder).and_then(|()| sync_folder(&folder));
    if moved.is_err() {
        // Only goes where nothing was moved.
        let _ = fs::remove_dir(&folder);
    }
    moved.map(|()| folder)
}

fn free_name(to: &Path) -> io::Result<PathBuf> {
    let mut name = to.to_owned();
    let mut number = 1;
    while name.try_exists()? {
        number += 1;
        let mut next = to.as_os_str().to_owned();
        next.push(format!("-{number}"));
        name = next.into();
    }
    Ok(name)
}

fn move_files(kind: &Kind, path: &Path, folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        if (kind.is_own)(&name.to_string_lossy()) || name == suspect::FILE {
            fs::rename(entry.path(), folder.join(&name))?;
        }
    }
    Ok(())
}
