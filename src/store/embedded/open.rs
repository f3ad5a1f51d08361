//! Opens an engine and reads the store's own rows, whatever state the files are in.
//!
//! Rules: nothing is ever deleted but snapshots that a crash left unfinished. What cannot be read for want of rights
//! or for a failing disk is left alone and refused; what is damaged is moved aside or refused, as configured. The
//! engine is opened on a thread of its own, because it may panic over damage; what such a panic leaves behind in the
//! process is unknown, so the process must end then.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    engine::{Engine, EngineError, is_no_space},
    keys::{self, Key},
    panic_text,
    room::Room,
    rows,
    sequencer::Sequencer,
    sled::{self, SledEngine},
};
use crate::{
    clock::Clock,
    limits,
    store::{Config, OnCorruption, OpenError, Totals},
};

/// Stands in the folder from before the engine first opens it until the store's own rows are in it. So a folder whose
/// files hold no rows is told apart: begun and cut short, or emptied by damage that the engine took for a new store.
const BEGUN: &str = "begun";

/// An opened engine, and what the store's own rows say.
pub struct Opened {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// The store's identity.
    pub epoch: Uuid,
    /// Goes on above everything ever given; its mark is raised already.
    pub sequencer: Sequencer,
    /// What is pending.
    pub totals: Totals,
    /// Opens the engine once more, after it was let go; none where it cannot be lost.
    pub reopen: Option<Reopen>,
    /// The room on its disk, where it has one.
    pub room: Option<Room>,
}

/// Opens an engine once more.
pub type Reopen = Box<dyn Fn() -> Result<Arc<dyn Engine>, EngineError> + Send>;

impl Opened {
    /// Reads the store's own rows. Writes them where the engine is empty, and `may_be_new`.
    pub fn over(engine: Arc<dyn Engine>, clock: Clock, may_be_new: bool) -> Result<Self, EngineError> {
        if is_empty(&*engine)? {
            if !may_be_new {
                return Err(EngineError::Corrupt("its files are there, but nothing is in them".into()));
            }
            engine.commit(vec![
                (Key::Format.encode(), Some(rows::encode_format(rows::FORMAT))),
                (Key::Epoch.encode(), Some(rows::encode_epoch(Uuid::new_v4()))),
                (Key::Mark.encode(), Some(rows::encode_mark(1))),
                (Key::Totals.encode(), Some(rows::encode_totals(&Totals::default()))),
            ])?;
        }
        let Own { epoch, mark, totals } = Own::of(&*engine)?;
        let sequencer = Sequencer::new(clock, mark);
        // Also the proof that the store can be written.
        if let Some(mark) = sequencer.next_mark(true) {
            engine.commit(vec![(Key::Mark.encode(), Some(rows::encode_mark(mark)))])?;
            sequencer.raised(mark);
        }
        Ok(Self { engine, epoch, sequencer, totals, reopen: None, room: None })
    }
}

/// The store's own rows.
pub struct Own {
    /// Its identity.
    pub epoch: Uuid,
    /// Offsets from here on were never given.
    pub mark: u64,
    /// What is pending.
    pub totals: Totals,
}

impl Own {
    /// Reads them.
    pub fn of(engine: &dyn Engine) -> Result<Self, EngineError> {
        let damaged = |what: &str| EngineError::Corrupt(format!("{what} is missing or cannot be read"));
        let read = |key: Key| engine.get(&key.encode());
        let format = read(Key::Format)?.and_then(|row| rows::decode_format(&row).ok());
        let format = format.ok_or_else(|| damaged("the format version"))?;
        if format != rows::FORMAT {
            let name = |version: u32| format!("format version {version}");
            return Err(EngineError::Format { found: name(format), supported: name(rows::FORMAT) });
        }
        let epoch = read(Key::Epoch)?.and_then(|row| rows::decode_epoch(&row).ok());
        let epoch = epoch.ok_or_else(|| damaged("the store epoch"))?;
        let mark = read(Key::Mark)?.and_then(|row| rows::decode_mark(&row).ok());
        let mark = mark.ok_or_else(|| damaged("the offset reservation"))?;
        let totals = match read(Key::Totals)?.and_then(|row| rows::decode_totals(&row).ok()) {
            Some(totals) => totals,
            None => recount(engine)?,
        };
        Ok(Self { epoch, mark, totals })
    }
}

fn is_empty(engine: &dyn Engine) -> Result<bool, EngineError> {
    let (from, to) = keys::all();
    let mut empty = true;
    engine.range(&from, &to, &mut |_, _| {
        empty = false;
        std::ops::ControlFlow::Break(())
    })?;
    Ok(empty)
}

/// The totals from every user's counters.
fn recount(engine: &dyn Engine) -> Result<Totals, EngineError> {
    tracing::error!("the store's totals are missing; they are counted anew");
    let mut totals = Totals::default();
    let (from, to) = keys::mailboxes();
    engine.range(&from, &to, &mut |_, row| {
        if let Ok(counters) = rows::decode_counters(row) {
            totals.count = totals.count.saturating_add(u64::from(counters.count));
            totals.bytes = totals.bytes.saturating_add(counters.bytes);
        }
        std::ops::ControlFlow::Continue(())
    })?;
    Ok(totals)
}

/// Opens the store on disk.
pub fn open(config: &Config, clock: &Clock) -> Result<Opened, OpenError> {
    let path = &config.path;
    let mut opened = attempt(path, clock);
    if let Err(Failure::Refused(OpenError::Io { source, .. })) = &opened
        && is_no_space(source)
        && Room::release_in(path)
    {
        tracing::warn!(path = %path.display(), "the store's disk is full; the room kept for that was let go");
        opened = attempt(path, clock);
    }
    let mut opened = opened_or_set_aside(config, clock, opened)?;
    opened.reopen = Some(reopening(path.clone()));
    match Room::of(path) {
        Ok(room) => opened.room = Some(room),
        Err(error) => tracing::warn!(%error, "the free space of the store's disk cannot be read"),
    }
    Ok(opened)
}

fn opened_or_set_aside(config: &Config, clock: &Clock, opened: Result<Opened, Failure>) -> Result<Opened, OpenError> {
    let path = &config.path;
    match opened {
        Err(Failure::Damaged { detail, panicked }) => {
            if config.on_corruption() == OnCorruption::Refuse {
                return Err(OpenError::Corrupt { path: path.clone(), detail });
            }
            let moved_to = quarantine(path, clock).map_err(|source| io_error(path, source))?;
            tracing::error!(
                path = %path.display(), moved_to = %moved_to.display(), detail,
                "the store is damaged; it was moved aside and a new one is begun"
            );
            if panicked {
                return Err(OpenError::Panicked { path: path.clone(), moved_to, detail });
            }
            attempt(path, clock).map_err(|failure| match failure {
                Failure::Damaged { detail, .. } => OpenError::Corrupt { path: path.clone(), detail },
                Failure::Refused(error) => error,
            })
        }
        Err(Failure::Refused(error)) => Err(error),
        Ok(opened) => Ok(opened),
    }
}

enum Failure {
    Damaged { detail: String, panicked: bool },
    Refused(OpenError),
}

fn io_error(path: &Path, source: io::Error) -> OpenError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => OpenError::NotWritable { path, source },
        _ => OpenError::Io { path, source },
    }
}

/// Opens what lies at `path`, and waits a while for another process to let go of it.
fn attempt(path: &Path, clock: &Clock) -> Result<Opened, Failure> {
    let deadline = Instant::now() + limits::STORE_LOCK_WAIT;
    loop {
        let tried = prepare(path).and_then(|new| guarded(path, clock, new));
        match tried {
            Err(Attempt::Engine(EngineError::Busy)) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(50));
            }
            Ok(opened) => return Ok(opened),
            Err(Attempt::Panicked(detail)) => return Err(Failure::Damaged { detail, panicked: true }),
            Err(Attempt::Engine(error)) => {
                let path = path.to_owned();
                return Err(match error {
                    EngineError::Busy => Failure::Refused(OpenError::Locked { path }),
                    EngineError::Io(source) => Failure::Refused(io_error(&path, source)),
                    EngineError::Format { found, supported } => {
                        Failure::Refused(OpenError::Format { path, found, supported })
                    }
                    EngineError::Corrupt(detail) => Failure::Damaged { detail, panicked: false },
                });
            }
        }
    }
}

enum Attempt {
    Engine(EngineError),
    Panicked(String),
}

impl<E: Into<EngineError>> From<E> for Attempt {
    fn from(error: E) -> Self {
        Attempt::Engine(error.into())
    }
}

/// Makes the folder, and removes what would keep the engine from opening. Looks at the lock first, since an unfinished
/// snapshot may be another process at work. Tells whether the store may be a new one.
fn prepare(path: &Path) -> Result<bool, Attempt> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let lock = match File::options().read(true).write(true).open(path.join(sled::DATA_FILE)) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Some(file),
            Err(TryLockError::WouldBlock) => return Err(EngineError::Busy.into()),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let mut is_new = true;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        if sled::is_unfinished_snapshot(&name.to_string_lossy()) {
            tracing::warn!(file = %entry.path().display(), "removing a snapshot that a crash left unfinished");
            fs::remove_file(entry.path())?;
        }
        is_new &= !sled::is_own(&name.to_string_lossy());
    }
    let begun = path.join(BEGUN);
    if is_new {
        File::create(&begun)?;
    }
    drop(lock);
    Ok(begun.try_exists()?)
}

/// Opens the engine and reads the store's rows where a panic does no harm.
fn guarded(path: &Path, clock: &Clock, may_be_new: bool) -> Result<Opened, Attempt> {
    let (owned, clock) = (path.to_owned(), clock.clone());
    let opened = aside(move || Opened::over(Arc::new(SledEngine::open(&owned)?), clock, may_be_new))?;
    if may_be_new {
        fs::remove_file(path.join(BEGUN))?;
    }
    Ok(opened)
}

/// Runs what may panic on a thread of its own.
fn aside<T: Send + 'static>(open: impl FnOnce() -> Result<T, EngineError> + Send + 'static) -> Result<T, Attempt> {
    let opening =
        thread::Builder::new().name("pushgate-open".into()).spawn(move || catch_unwind(AssertUnwindSafe(open)))?;
    match opening.join() {
        Ok(Ok(opened)) => Ok(opened?),
        Ok(Err(panic)) | Err(panic) => Err(Attempt::Panicked(panic_text(&*panic))),
    }
}

/// Opens the engine at `path` once more, as it was opened first.
fn reopening(path: PathBuf) -> Reopen {
    Box::new(move || {
        let open = || {
            prepare(&path)?;
            let path = path.clone();
            aside(move || Ok(Arc::new(SledEngine::open(&path)?) as Arc<dyn Engine>))
        };
        open().map_err(|attempt| match attempt {
            Attempt::Engine(error) => error,
            Attempt::Panicked(detail) => EngineError::Corrupt(format!("opening it panicked: {detail}")),
        })
    })
}

/// Moves the engine's files to a folder beside the store's, or to one inside where none can be made beside it (it may
/// be a mount, or the only folder that the daemon may write).
fn quarantine(path: &Path, clock: &Clock) -> io::Result<PathBuf> {
    let seconds = clock.unix_micros() / 1_000_000;
    let inside = path.join(format!("corrupt-{seconds}"));
    let beside = path.file_name().map(|name| {
        let mut name = name.to_owned();
        name.push(format!(".corrupt-{seconds}"));
        path.with_file_name(name)
    });
    match beside.map(|beside| move_aside(path, &beside)) {
        Some(Ok(moved_to)) => Ok(moved_to),
        Some(Err(_)) | None => move_aside(path, &inside),
    }
}

fn move_aside(path: &Path, to: &Path) -> io::Result<PathBuf> {
    let folder = free_name(to)?;
    fs::DirBuilder::new().mode(0o700).create(&folder)?;
    let moved = move_files(path, &folder);
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

fn move_files(path: &Path, folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        if sled::is_own(&name.to_string_lossy()) {
            fs::rename(entry.path(), folder.join(&name))?;
        }
    }
    Ok(())
}
