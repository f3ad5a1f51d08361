//! A copy of the running store, as it was at one moment between two commits.
//!
//! The way: a fresh engine at `PATH.partial`, on a thread of its own. The writer begins to note the keys that commits
//! change. The readers read all rows, a page at a time, and the thread writes them into the copy; then the noted keys are
//! read again, in passes, until few are left. Those the writer itself reads between two commits: with them the copy is
//! the store of that moment. Then it is synced and gets its name.
//!
//! Rules: the writer never waits for the copy's disk. A copy without the row of its format is none, so that row comes
//! last. Whoever asked and goes away ends the copying; what was made of it is removed.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use tokio::sync::{mpsc, oneshot};

use super::{
    changes::Overflowed,
    engine::{Engine, EngineError, Write},
    keys::{self, Key},
    kind::Kind,
    reader::Readers,
    rows,
    shared::Shared,
    tools::{
        files::{Fresh, parent},
        walk,
    },
    witness,
};
use crate::{
    limits,
    store::{Backup, BackupError, Config, StoreError, Totals},
};

/// Passes over what changed meanwhile, before the last one.
const PASSES_MAX: usize = 64;
/// Noted keys that are left to the writer: reading them takes it some milliseconds.
const LAST_PASS_KEYS: usize = 256;
/// The same where no pass brings them below that: some tens of milliseconds.
const LAST_PASS_KEYS_MAX: usize = 4096;
/// The keys that one job of a reader reads again.
const KEYS_AT_ONCE: usize = 512;
/// Noted keys that are read again before the first pass over all rows has ended, so that they do not grow too many.
const NOTED_KEYS_KEPT: usize = 65_536;
/// Pages on their way from the readers to the copy.
const PAGES_AHEAD: usize = 2;

/// What the copying thread is sent.
enum Piece {
    Rows(Vec<Write>),
    /// That was all; the answer says what it came to.
    End,
}

/// Gives the place of the one who copies back.
struct Turn(Arc<Shared>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.changes.give_back();
    }
}

/// Lets the writer note no more, however copying ends.
struct Noting<'a>(&'a Shared);

impl Drop for Noting<'_> {
    fn drop(&mut self) {
        self.0.changes.end();
    }
}

/// Copies the store to `path`.
pub async fn backup(
    shared: &Arc<Shared>,
    readers: &Readers,
    config: &Config,
    path: &Path,
) -> Result<Backup, BackupError> {
    let kind = Kind::of(config.engine);
    backup_with(shared, readers, &config.path, path, kind).await
}

pub(super) async fn backup_with(
    shared: &Arc<Shared>,
    readers: &Readers,
    store: &Path,
    path: &Path,
    kind: &'static Kind,
) -> Result<Backup, BackupError> {
    check_path(path, store, kind)?;
    if !shared.changes.take() {
        return Err(BackupError::Running);
    }
    let turn = Turn(Arc::clone(shared));
    let (pieces, queue) = mpsc::channel(PAGES_AHEAD);
    let (ready, is_ready) = oneshot::channel();
    let (answer, ended) = oneshot::channel();
    let to = path.to_owned();
    let copying = move || {
        let copied = write(kind, &to, queue, ready);
        drop(turn);
        // Whoever asked may have gone.
        let _ = answer.send(copied);
    };
    let thread = thread::Builder::new().name("pushgate-backup".into()).spawn(copying);
    thread.map_err(|error| BackupError::Failed(format!("no thread for it: {error}")))?;
    let read = if is_ready.await.is_ok() { read(shared, readers, &pieces).await } else { Ok(()) };
    match read {
        // Either the thread has all, or it ended before and says why.
        Ok(()) => {
            let _ = pieces.send(Piece::End).await;
            drop(pieces);
            ended.await.unwrap_or_else(|_| Err(BackupError::Failed("the thread that copies panicked".into())))
        }
        Err(error) => {
            drop(pieces);
            // The partial copy is gone when the caller hears it.
            let _ = ended.await;
            Err(error)
        }
    }
}

/// What can be said of the path before anything is made.
fn check_path(path: &Path, store: &Path, kind: &Kind) -> Result<(), BackupError> {
    let bad = |why: &str| Err(BackupError::Path(why.to_owned()));
    if !path.is_absolute() {
        return bad("must be absolute, such as /var/backups/pushgate");
    }
    let Some(name) = path.file_name() else { return bad("must end in the name of a folder that is not there yet") };
    let name = name.to_string_lossy();
    match fs::symlink_metadata(path) {
        Ok(_) => return Err(BackupError::Exists(path.to_owned())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
        Err(error) => return bad(&format!("cannot be looked at: {error}")),
    }
    match fs::canonicalize(parent(path)) {
        Ok(folder) if !folder.is_dir() => bad(&format!("{} is not a folder", folder.display())),
        // A file of such a name would be taken for one of the store's.
        Ok(folder)
            if ((kind.is_own)(&name) || witness::is_own(&name))
                && fs::canonicalize(store).is_ok_and(|store| store == folder) =>
        {
            bad("has the name of one of the store's own files")
        }
        Ok(_) => Ok(()),
        Err(error) => bad(&format!("the folder {} cannot be found: {error}", parent(path).display())),
    }
}

/// Reads the whole store, and sends it to the copy.
async fn read(shared: &Arc<Shared>, readers: &Readers, pieces: &mpsc::Sender<Piece>) -> Result<(), BackupError> {
    // Held to the end, and made before noting begins.
    let noting = Noting(shared);
    let beginning = Arc::clone(shared);
    between(shared, move |_| {
        beginning.changes.begin();
        Ok(())
    })
    .await?;
    // Behind the format, which no commit changes, and which the copy gets last.
    let mut rest = walk::behind(keys::all(), &[(Key::Format.encode(), Vec::new())]);
    while let Some(range) = rest {
        let wanted = range.clone();
        let page = readers.read(move |engine| walk::page(engine, &wanted)).await?;
        rest = walk::behind(range, &page);
        if !send(pieces, page.into_iter().map(|(key, value)| (key, Some(value))).collect()).await {
            return Ok(());
        }
        if shared.changes.noted() > NOTED_KEYS_KEPT
            && let Some((from, _)) = &rest
        {
            let mut keys = shared.changes.take_noted().map_err(too_fast)?;
            // What lies ahead is read when its turn comes.
            keys.retain(|key| key < from);
            if !read_again(readers, pieces, keys).await? {
                return Ok(());
            }
        }
    }
    for _ in 0..PASSES_MAX {
        if shared.changes.noted() <= LAST_PASS_KEYS {
            break;
        }
        let keys = shared.changes.take_noted().map_err(too_fast)?;
        if !read_again(readers, pieces, keys).await? {
            return Ok(());
        }
    }
    let last = Arc::clone(shared);
    let rows = between(shared, move |engine| {
        let keys = match last.changes.take_noted() {
            Ok(keys) if keys.len() <= LAST_PASS_KEYS_MAX => keys,
            Ok(_) | Err(Overflowed) => return Ok(None),
        };
        last.changes.end();
        // As is every other row of its kind by now: with it the copy is a store.
        let mut rows = rows_at(engine, keys)?;
        rows.push((Key::Format.encode(), Some(rows::encode_format(rows::FORMAT))));
        Ok(Some(rows))
    })
    .await?;
    drop(noting);
    send(pieces, rows.ok_or(BackupError::TooFast)?).await;
    Ok(())
}

fn too_fast(_: Overflowed) -> BackupError {
    BackupError::TooFast
}

/// Whether the copy still takes what it is sent.
async fn send(pieces: &mpsc::Sender<Piece>, rows: Vec<Write>) -> bool {
    rows.is_empty() || pieces.send(Piece::Rows(rows)).await.is_ok()
}

async fn read_again(
    readers: &Readers,
    pieces: &mpsc::Sender<Piece>,
    keys: HashSet<Vec<u8>>,
) -> Result<bool, BackupError> {
    let mut keys = keys.into_iter();
    loop {
        let some: HashSet<_> = keys.by_ref().take(KEYS_AT_ONCE).collect();
        if some.is_empty() {
            return Ok(true);
        }
        let rows = readers.read(move |engine| rows_at(engine, some)).await?;
        if !send(pieces, rows).await {
            return Ok(false);
        }
    }
}

/// The keys with what stands there now.
fn rows_at(engine: &dyn Engine, keys: HashSet<Vec<u8>>) -> Result<Vec<Write>, EngineError> {
    keys.into_iter().map(|key| engine.get(&key).map(|value| (key, value))).collect()
}

/// Has the writer do `work` between two commits, and waits for it.
async fn between<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&dyn Engine) -> Result<T, EngineError> + Send + 'static,
) -> Result<T, BackupError> {
    shared.health()?;
    let (answer, answered) = oneshot::channel();
    let changes = Arc::clone(shared);
    shared.changes.leave_to_writer(Box::new(move |engine| {
        if answer.send(work(engine)).is_err() {
            // Whoever asked went away, perhaps before this began.
            changes.changes.end();
        }
    }));
    // A commit of its own, if there is no other.
    shared.queue.raise();
    match answered.await {
        Ok(done) => done.map_err(|error| BackupError::Store(StoreError::Failed(error.to_string().into()))),
        Err(_) => Err(shared
            .health()
            .map_or_else(BackupError::from, |()| BackupError::Failed("the writer could not read what changed".into()))),
    }
}

/// The copying thread: makes the copy, and removes it where it does not come to its end.
fn write(
    kind: &'static Kind,
    path: &Path,
    mut queue: mpsc::Receiver<Piece>,
    ready: oneshot::Sender<()>,
) -> Result<Backup, BackupError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    let fresh = Fresh::make(kind, partial.clone()).map_err(|error| not_made(&partial, error))?;
    let failed = |error| not_written(path, error);
    let _ = ready.send(());
    loop {
        match queue.blocking_recv() {
            Some(Piece::Rows(rows)) => fresh.engine().and_then(|engine| engine.commit(rows)).map_err(failed)?,
            Some(Piece::End) => break,
            None => return Err(BackupError::Failed("it was given up".into())),
        }
    }
    let engine = fresh.engine().map_err(failed)?;
    let whole = engine.get(&Key::Format.encode()).map_err(failed)?.is_some();
    if !whole {
        return Err(BackupError::Failed("not all rows came".into()));
    }
    let totals = engine.get(&Key::Totals.encode()).map_err(failed)?;
    let totals = totals.and_then(|row| rows::decode_totals(&row).ok()).unwrap_or_else(Totals::default);
    let bytes = engine.disk_bytes().map_err(failed)?;
    fresh.put_at(path).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists(path.to_owned()),
        _ => failed(source.into()),
    })?;
    Ok(Backup { bytes, records: totals.count })
}

/// Why the folder of the copy could not be made.
fn not_made(partial: &Path, error: EngineError) -> BackupError {
    match error {
        EngineError::Io(source) => match source.kind() {
            io::ErrorKind::AlreadyExists => BackupError::Exists(partial.to_owned()),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                BackupError::Path(format!("{} cannot be made by the gateway's user: {source}", partial.display()))
            }
            _ => not_written(partial, source.into()),
        },
        error => not_written(partial, error),
    }
}

fn not_written(path: &Path, error: EngineError) -> BackupError {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match error {
        EngineError::Io(source) if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge) => {
            BackupError::NoSpace { path: path.to_owned(), detail: source.to_string() }
        }
        error => BackupError::Failed(format!("{} cannot be written: {error}", path.display())),
    }
}

const _: () =
    assert!(NOTED_KEYS_KEPT * 512 < limits::BACKUP_NOTED_BYTES_MAX, "they are taken before they are too many");

#[cfg(test)]
mod tests;
