//! Work on a store while no daemon has it open: looking whether it is whole, what is in it, writing it out as text and
//! reading that in again, and making it small.
//!
//! Each function opens the store exclusively; one that another process has is refused in the daemon's own words. What
//! only reads changes no row, not even the mark. An older format: [`check()`] and [`stats()`] refuse it, since they change
//! nothing; [`export()`] and [`compact()`] bring it up to the present one first, as the daemon does.

mod check;
mod compact;
mod export;
pub(super) mod files;
mod import;
mod line;
mod stats;
#[cfg(test)]
pub(super) mod tests;
pub(super) mod walk;

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use uuid::Uuid;

use self::files::beside;
use super::{
    engine::{Engine, EngineError},
    keys::Key,
    kind::Kind,
    migrate, panic_text, rows,
};
use crate::store::{EngineName, OpenError, Totals};

pub use check::{Problem, Report, check};
pub use compact::{Compacted, compact};
pub use export::{Exported, export};
pub use import::import;
pub use stats::{Mailbox, Stats, stats};

/// Why a tool did not do what it should. Each is one line: what, which path, what to do.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It did not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Nothing is there.
    #[error("there is no store at {path}; name the folder of one with --path, or its configuration with --config")]
    NoStore {
        /// The folder.
        path: PathBuf,
    },
    /// A copy or an import that did not come to its end.
    #[error("the store at {path} was being made and is not whole; remove that folder, and make it again")]
    Unfinished {
        /// The folder.
        path: PathBuf,
    },
    /// Its format is of an older version.
    #[error(
        "the store at {path} has format version {found}, and this changes nothing; start the gateway once, or run \
         `pushgate store compact`, to bring it to version {present}"
    )]
    Older {
        /// The store's folder.
        path: PathBuf,
        /// The version that it has.
        found: u32,
        /// The version that it would have.
        present: u32,
    },
    /// Something is there that must not be lost.
    #[error("{path} is not empty: {what}; import into a folder that is not there yet")]
    NotEmpty {
        /// The folder.
        path: PathBuf,
        /// What is in it.
        what: String,
    },
    /// A file or folder.
    #[error("{what} {path}: {source}")]
    File {
        /// What could not be done with it.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The new one is in place, and the old one could not be removed.
    #[error("the store at {path} is the new one, but {left}, which holds the old one, could not be removed: {source}")]
    OldOneLeft {
        /// The store's folder.
        path: PathBuf,
        /// The old one's.
        left: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line of an export.
    #[error("line {line}: {why}")]
    Line {
        /// From 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// What is written or read beside the store.
    #[error("{what}: {source}")]
    Stream {
        /// What could not be done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A copy that is not what was copied.
    #[error("the copy of {path} is not the same ({why}); nothing has changed; check the disk")]
    Differs {
        /// The store's folder.
        path: PathBuf,
        /// How they differ.
        why: String,
    },
}

impl ToolError {
    fn engine(path: &Path, error: EngineError) -> Self {
        Self::Open(files::open_error(path, error))
    }
}

/// Where a store is.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its folder.
    pub path: PathBuf,
    /// Its engine; `None`: the one whose files are there.
    pub engine: Option<EngineName>,
}

impl Place {
    fn kind(&self) -> Result<&'static Kind, ToolError> {
        match self.engine {
            Some(name) => Ok(Kind::of(name)),
            None => Kind::at(&self.path).ok_or_else(|| ToolError::NoStore { path: self.path.clone() }),
        }
    }

    /// Opens the store, whatever its rows say, has `work` done on it, and closes it. What an engine does over damaged
    /// files may be a panic: that is damage, too.
    fn with_engine<T>(&self, work: impl FnOnce(&Arc<dyn Engine>) -> Result<T, ToolError>) -> Result<T, ToolError> {
        let kind = self.kind()?;
        let guarded = catch_unwind(AssertUnwindSafe(|| {
            let engine = files::open(kind, &self.path)?;
            work(&engine)
        }));
        let owned = files::keep_owner(kind, &self.path);
        let done = guarded.unwrap_or_else(|panic| {
            let detail = format!("the engine gave up over it: {}", panic_text(&*panic));
            Err(OpenError::Corrupt { path: self.path.clone(), detail }.into())
        })?;
        let what = "cannot give its owner a file in";
        owned.map_err(|source| ToolError::File { what, path: self.path.clone(), source })?;
        Ok(done)
    }

    /// The same for a store whose own rows must be there, in the present format: `migrates`, or they must be already.
    fn with_store<T>(
        &self,
        migrates: bool,
        work: impl FnOnce(&dyn Engine, &Own) -> Result<T, ToolError>,
    ) -> Result<T, ToolError> {
        self.with_engine(|engine| {
            let own = self.own_rows(&**engine, migrates)?;
            work(&**engine, &own)
        })
    }

    fn own_rows(&self, engine: &dyn Engine, migrates: bool) -> Result<Own, ToolError> {
        let failed = |error| ToolError::engine(&self.path, error);
        let rows = OwnRows::read(engine).map_err(failed)?;
        let damaged = |what: &str| failed(EngineError::Corrupt(format!("{what} is missing or cannot be read")));
        let format = rows.format.ok_or_else(|| damaged("the format version"))?;
        self.check_format(format, migrates)?;
        if format < rows::FORMAT {
            migrate::bring_up(engine, format).map_err(failed)?;
        }
        let epoch = rows.epoch.ok_or_else(|| damaged("the store epoch"))?;
        let mark = rows.mark.ok_or_else(|| damaged("the offset reservation"))?;
        Ok(Own { format: rows::FORMAT, epoch, mark })
    }

    /// A newer format is never read; an older one where it may be migrated.
    fn check_format(&self, format: u32, migrates: bool) -> Result<(), ToolError> {
        let path = self.path.clone();
        if format > rows::FORMAT {
            let name = |version: u32| format!("format version {version}");
            return Err(OpenError::Format { path, found: name(format), supported: name(rows::FORMAT) }.into());
        }
        if format < rows::FORMAT && !migrates {
            return Err(ToolError::Older { path, found: format, present: rows::FORMAT });
        }
        Ok(())
    }
}

/// What a store says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    /// The version of its format.
    pub format: u32,
    /// Its identity.
    pub epoch: Uuid,
    /// No offset from it on was ever given.
    pub mark: u64,
}

/// The same, as far as it can be read.
struct OwnRows {
    format: Option<u32>,
    epoch: Option<Uuid>,
    mark: Option<u64>,
    totals: Option<Totals>,
}

impl OwnRows {
    fn read(engine: &dyn Engine) -> Result<Self, EngineError> {
        let read = |key: Key| engine.get(&key.encode());
        Ok(Self {
            format: read(Key::Format)?.and_then(|row| rows::decode_format(&row).ok()),
            epoch: read(Key::Epoch)?.and_then(|row| rows::decode_epoch(&row).ok()),
            mark: read(Key::Mark)?.and_then(|row| rows::decode_mark(&row).ok()),
            totals: read(Key::Totals)?.and_then(|row| rows::decode_totals(&row).ok()),
        })
    }
}
