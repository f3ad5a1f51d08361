//! Opens an engine and reads the store's own rows, whatever state the files are in.
//!
//! Rules: nothing is ever deleted but what a crash left unfinished, a snapshot or a copy. What cannot be read for want of rights
//! or for a failing disk is left alone and refused; what is damaged is moved aside or refused, as configured; what
//! another engine wrote is left alone. The engine is opened on a thread of its own, because it may panic over damage;
//! what such a panic leaves behind in the process is unknown, so the process must end then.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    aside::{set_aside, sync_folder},
    engine::{Engine, EngineError, is_no_space},
    keys::{self, Key},
    kind::Kind,
    migrate, panic_text,
    room::Room,
    rows,
    sequencer::{self, Sequencer},
    suspect::{self, Suspicion, Watched},
    witness::{Seen, Witness},
};
use crate::{
    clock::Clock,
    limits,
    store::{Config, Durability, EngineName, OnCorruption, OpenError, Totals},
    types::LogId,
};

/// Stands in the folder from before the engine first opens it until the store's own rows are in it. So a folder whose
/// files hold no rows is told apart: begun and cut short, or emptied by damage that the engine took for a new store.
/// Nobody was ever told that something is stored as long as it stands.
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
    /// What counts its commits beside it, where it lies on a disk.
    pub witness: Option<Witness>,
    /// Commits that are known to have been made and are not there.
    pub lost_commits: u64,
    /// What stood there was damaged and moved aside; this is a new one.
    pub set_aside: bool,
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
        let (reopen, room, witness, lost_commits, set_aside) = (None, None, None, 0, false);
        Ok(Self { engine, epoch, sequencer, totals, reopen, room, witness, lost_commits, set_aside })
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
        if format < rows::FORMAT {
            migrate::bring_up(engine, format)?;
        } else if format > rows::FORMAT {
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

/// The totals from the counters of every log.
fn recount(engine: &dyn Engine) -> Result<Totals, EngineError> {
    tracing::error!("the store's totals are missing; they are counted anew");
    let mut totals = Totals::default();
    for (from, to) in keys::all_counters() {
        engine.range(&from, &to, &mut |_, row| {
            if let Ok(counters) = rows::decode_counters(row) {
                totals.count = totals.count.saturating_add(u64::from(counters.count));
                totals.bytes = totals.bytes.saturating_add(counters.bytes);
            }
            std::ops::ControlFlow::Continue(())
        })?;
    }
    let broadcasts = engine.get(&Key::Counters(LogId::Broadcast).encode())?;
    if let Some(Ok(counters)) = broadcasts.as_deref().map(rows::decode_counters) {
        totals.count = totals.count.saturating_add(u64::from(counters.count));
        totals.bytes = totals.bytes.saturating_add(counters.bytes);
    }
    Ok(totals)
}

/// Opens the store on disk.
pub fn open(config: &Config, clock: &Clock) -> Result<Opened, OpenError> {
    let path = &config.path;
    let mut opened = attempt(config, clock);
    if let Err(Failure::Refused(OpenError::Io { source, .. })) = &opened
        && is_no_space(source)
        && Room::release_in(path)
    {
        tracing::warn!(path = %path.display(), "the store's disk is full; the room kept for that was let go");
        opened = attempt(config, clock);
    }
    let mut opened = opened_or_set_aside(config, clock, opened)?;
    let again = config.clone();
    opened.reopen = Some(Box::new(move || reopen(&again)));
    match Room::of(path) {
        Ok(room) => opened.room = Some(room),
        Err(error) => tracing::warn!(%error, "the free space of the store's disk cannot be read"),
    }
    Ok(opened)
}

fn opened_or_set_aside(config: &Config, clock: &Clock, opened: Result<Opened, Failure>) -> Result<Opened, OpenError> {
    let (path, kind) = (&config.path, Kind::of(config.engine));
    match opened {
        Err(Failure::Damaged { detail, panicked, cut_short }) => {
            // A beginning that was cut short holds nothing that an operator could want back.
            if config.on_corruption() == OnCorruption::Refuse && !cut_short {
                return Err(OpenError::Corrupt { path: path.clone(), detail });
            }
            let moved_to = set_aside(kind, path, clock).map_err(|source| io_error(path, source))?;
            let (path_name, moved_to_name) = (path.display(), moved_to.display());
            if cut_short {
                tracing::warn!(path = %path_name, moved_to = %moved_to_name, detail, "a store whose making was cut short was moved aside");
            } else {
                tracing::error!(path = %path_name, moved_to = %moved_to_name, detail, "the store is damaged; it was moved aside and a new one is begun, empty: what was stored is not delivered, and tokens that were revoked are good again until they are revoked anew");
            }
            if panicked {
                return Err(OpenError::Panicked { path: path.clone(), moved_to, detail });
            }
            let mut opened = attempt(config, clock).map_err(|failure| match failure {
                Failure::Damaged { detail, .. } => OpenError::Corrupt { path: path.clone(), detail },
                Failure::Refused(error) => error,
            })?;
            opened.set_aside = !cut_short;
            Ok(opened)
        }
        Err(Failure::Refused(error)) => Err(error),
        Ok(opened) => Ok(opened),
    }
}

/// Opens the engine of a store that this process had open, and nothing else: no rows are read or written, nothing is
/// moved aside. Whatever used the engine before must be gone; [`EngineError::Busy`] where it is not within
/// [`limits::STORE_LOCK_WAIT`]. Blocks.
pub fn reopen(config: &Config) -> Result<Arc<dyn Engine>, EngineError> {
    let (kind, path, durability) = (Kind::of(config.engine), config.path.clone(), config.durability);
    let reopened = when_free(|| {
        if prepare(kind, &config.path)? {
            return Err(EngineError::Corrupt("its files are gone".into()).into());
        }
        let (path, opened) = (path.clone(), config.path.clone());
        let engine = on_a_thread(move || (kind.open)(&path, durability))?;
        Ok(Arc::new(Watched::over(engine, &opened)) as Arc<dyn Engine>)
    });
    reopened.map_err(|attempt| match attempt {
        Attempt::Engine(error) => error,
        Attempt::Panicked(detail) => EngineError::Corrupt(format!("a panic: {detail}")),
    })
}

enum Failure {
    Damaged { detail: String, panicked: bool, cut_short: bool },
    Refused(OpenError),
}

fn io_error(path: &Path, source: io::Error) -> OpenError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => OpenError::NotWritable { path, source },
        _ => OpenError::Io { path, source },
    }
}

/// Opens what lies at the store's path, and waits a while for another process to let go of it.
fn attempt(config: &Config, clock: &Clock) -> Result<Opened, Failure> {
    let (kind, path) = (Kind::of(config.engine), &config.path);
    let mut cut_short = false;
    let tried = when_free(|| {
        let may_be_new = prepare(kind, path)?;
        cut_short = may_be_new;
        guarded(config, clock, may_be_new)
    });
    let refused = |error| Err(Failure::Refused(error));
    let path = path.to_owned();
    match tried {
        Ok(opened) => Ok(opened),
        Err(Attempt::Panicked(detail)) => Err(Failure::Damaged { detail, panicked: true, cut_short }),
        Err(Attempt::Engine(error)) => match error {
            EngineError::Busy => refused(OpenError::Locked { path }),
            EngineError::Io(source) => refused(io_error(&path, source)),
            EngineError::Format { found, supported } => refused(OpenError::Format { path, found, supported }),
            EngineError::Foreign { found, configured } => refused(OpenError::Foreign { path, found, configured }),
            EngineError::Corrupt(detail) => Err(Failure::Damaged { detail, panicked: false, cut_short }),
        },
    }
}

/// Tries until no other process has the store, for as long as is waited for that.
fn when_free<T>(mut attempt: impl FnMut() -> Result<T, Attempt>) -> Result<T, Attempt> {
    let deadline = Instant::now() + limits::STORE_LOCK_WAIT;
    loop {
        match attempt() {
            Err(Attempt::Engine(EngineError::Busy)) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(50));
            }
            tried => return tried,
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

/// Makes the folder, sees to it that no other engine's files are in it, and removes what would keep the engine from
/// opening. Looks at the lock first, since an unfinished snapshot may be another process at work. Tells whether the
/// store may be a new one.
fn prepare(kind: &Kind, path: &Path) -> Result<bool, Attempt> {
    make_folder(path)?;
    let lock = match File::options().read(true).write(true).open(path.join(kind.lock_file)) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Some(file),
            Err(TryLockError::WouldBlock) => return Err(EngineError::Busy.into()),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let (mut is_new, mut leftovers) = (true, Vec::new());
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if let Some(other) = kind.owner_beside(&name) {
            return Err(EngineError::Foreign { found: other.name, configured: kind.name }.into());
        }
        if (kind.is_leftover)(&name) {
            leftovers.push((entry.path(), entry.file_type()?.is_dir()));
            continue;
        }
        is_new &= !(kind.is_own)(&name);
    }
    for (entry, is_folder) in leftovers {
        tracing::warn!(path = %entry.display(), "removing what a crash left unfinished");
        if is_folder { fs::remove_dir_all(entry)? } else { fs::remove_file(entry)? }
    }
    let begun = path.join(BEGUN);
    if is_new {
        File::create(&begun)?;
        // Before anything else is there, or a power cut could leave the engine's files and not this one.
        sync_folder(path)?;
    }
    let may_be_new = begun.try_exists()?;
    if lock.is_none() && !may_be_new {
        // The engine would make it anew.
        return Err(EngineError::Corrupt(format!("its file {} is missing", kind.lock_file)).into());
    }
    Ok(may_be_new)
}

/// Makes the store's folder where it is missing, and brings it to the disk.
fn make_folder(path: &Path) -> io::Result<()> {
    let missing = path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).count();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    path.ancestors().skip(1).take(missing).try_for_each(sync_folder)
}

/// Opens the engine and reads the store's rows where a panic does no harm.
fn guarded(config: &Config, clock: &Clock, may_be_new: bool) -> Result<Opened, Attempt> {
    let (kind, path, durability) = (Kind::of(config.engine), config.path.clone(), config.durability);
    let (clock, on_corruption) = (clock.clone(), config.on_corruption());
    let promised = durability == Durability::Power || config.engine == EngineName::Redb;
    let opened = on_a_thread(move || {
        let suspicion = suspect::suspicion(&path)?;
        if let Suspicion::Damaged(why) = suspicion {
            return Err(EngineError::Corrupt(why));
        }
        if !may_be_new && let Some(engine) = (kind.rehearse)(&path, on_corruption)? {
            went_back(&path, &*engine)?.filter(|back| back.refuses(on_corruption)).map_or(Ok(()), refused)?;
            let rehearsed = Opened::over(engine, clock.clone(), false)?;
            if suspicion == Suspicion::Read {
                suspect::read_all(&*rehearsed.engine)?;
            }
        }
        let engine = (kind.open)(&path, durability)?;
        if suspicion == Suspicion::Read {
            tracing::warn!(path = %path.display(), "something failed over damage before; the whole store is read");
            suspect::read_all(&*engine)?;
        }
        let back = went_back(&path, &*engine)?;
        if let Some(back @ Back { commits, seen, .. }) = back {
            if back.refuses(on_corruption) {
                refused(back)?;
            }
            let mark = Own::of(&*engine)?.mark.max(back.mark);
            tracing::error!(
                path = %path.display(), commits,
                "the store went back to an earlier state: what its last commits wrote is lost; it goes on with what is there"
            );
            // Nothing that was given since is given again, and this is said once.
            engine.commit(vec![
                (Key::Mark.encode(), Some(rows::encode_mark(mark))),
                (Key::Commits.encode(), Some(rows::encode_mark(seen))),
            ])?;
        }
        let mut opened = Opened::over(Arc::new(Watched::over(engine, &path)), clock, may_be_new)?;
        opened.lost_commits = back.map_or(0, |back| back.commits);
        opened.witness = Some(Witness::of(&path, opened.epoch, promised));
        Ok(opened)
    })?;
    if may_be_new {
        // The engine's files are in the folder for good before this one is not.
        sync_folder(&config.path)?;
        fs::remove_file(config.path.join(BEGUN))?;
        sync_folder(&config.path)?;
    }
    Ok(opened)
}

/// How far the engine is behind what its witness saw.
#[derive(Clone, Copy)]
struct Back {
    commits: u64,
    /// The offset mark from which on nothing was given.
    mark: u64,
    /// How many the witness saw.
    seen: u64,
    /// The machine started anew since, and it was not promised that a loss of power takes nothing.
    expected: bool,
}

impl Back {
    /// What a loss of power took that nobody promised to keep is no damage.
    fn refuses(&self, on_corruption: OnCorruption) -> bool {
        on_corruption == OnCorruption::Refuse && !self.expected
    }
}

fn went_back(path: &Path, engine: &dyn Engine) -> Result<Option<Back>, EngineError> {
    let Some(seen) = Seen::of(path) else { return Ok(None) };
    let commits = seen.lost_by(engine)?;
    // The mark may have risen once more since it was seen.
    let mark = seen.mark.saturating_add(2 * sequencer::AHEAD);
    let expected = !seen.promised && seen.rebooted();
    Ok((commits > 0).then_some(Back { commits, mark, seen: seen.commits, expected }))
}

fn refused(back: Back) -> Result<(), EngineError> {
    let commits = back.commits;
    Err(EngineError::Corrupt(format!(
        "it went back to an earlier state: its last {commits} commits or more are not there (if older files were put in \
         their place on purpose, remove the file witness beside them)"
    )))
}

fn on_a_thread<T: Send + 'static>(
    open: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, Attempt> {
    let opening =
        thread::Builder::new().name("pushgate-open".into()).spawn(move || catch_unwind(AssertUnwindSafe(open)))?;
    match opening.join() {
        Ok(Ok(opened)) => Ok(opened?),
        Ok(Err(panic)) | Err(panic) => Err(Attempt::Panicked(panic_text(&*panic))),
    }
}
