//! What can go wrong: once at opening ([`OpenError`]), and ever after ([`StoreError`]).

use std::{io, path::PathBuf, sync::Arc};

/// Why the store did not open. Each is one line: what, which path, what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the store at {path} is in use by another process; stop that one, or set store.path to another folder")]
    Locked {
        /// The store's folder.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error("the store at {path} cannot be written ({source}); give this user the folder, or set store.path")]
    NotWritable {
        /// The store's folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system failed to read or write it.
    #[error("the store at {path} failed ({source}); check the disk and the free space, then start again")]
    Io {
        /// The store's folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is damaged, and the configuration says to refuse.
    #[error(
        "the store at {path} is damaged ({detail}); restore a backup, or set store.on_corruption = \"quarantine\" to \
         move it aside and begin a new one"
    )]
    Corrupt {
        /// The store's folder.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// Another version wrote it.
    #[error(
        "the store at {path} has {found}, and this build reads {supported}; start the version that wrote it, or set \
         store.path to another folder"
    )]
    Format {
        /// The store's folder.
        path: PathBuf,
        /// What the store says of itself.
        found: String,
        /// What this build reads.
        supported: String,
    },
    /// The engine panicked over a damaged store, which was moved aside. What the panic left behind in this process is
    /// unknown: the process must end and be started again, and will find a new store.
    #[error("the store at {path} is damaged ({detail}) and was moved to {moved_to}; start again for a new one")]
    Panicked {
        /// The store's folder.
        path: PathBuf,
        /// Where the damaged files are now.
        moved_to: PathBuf,
        /// What the panic said.
        detail: String,
    },
    /// Another engine wrote it.
    #[error(
        "the store at {path} was written by {found}, and store.engine is \"{configured}\"; set store.engine = \"{found}\", \
         or bring what it holds over with `pushgate store export` and `pushgate store import`"
    )]
    Foreign {
        /// The store's folder.
        path: PathBuf,
        /// The engine whose files are there.
        found: &'static str,
        /// The engine that is configured.
        configured: &'static str,
    },
}

/// Why the store did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A commit or a read failed. After a failed commit the store is dead, and what the commit carried may or may not
    /// be there after a restart.
    #[error("the store failed: {0}")]
    Failed(Arc<str>),
    /// Its disk is full. A commit failed for it, and what that carried may or may not be there. The store is opened again
    /// as soon as that can be done, and then takes and gives as before.
    #[error("the store waits for room on its disk: {0}")]
    Recovering(Arc<str>),
    /// One commit takes far longer than any should.
    #[error("the store is stuck: a commit does not end")]
    Stuck,
    /// `store.max_bytes` or `store.max_disk` is reached, its disk is nearly full, or the record is larger than the
    /// writer's whole queue.
    #[error(
        "the store is full; make room on its disk, raise store.max_bytes or store.max_disk, or let devices confirm what \
         is pending"
    )]
    Full,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// Why a copy of the running store was not made. Nothing is left of it then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// Nothing can be made at that path, now or later.
    #[error("{0}")]
    Path(String),
    /// Something is there.
    #[error("{0} is there already; name a folder that is not")]
    Exists(PathBuf),
    /// Another copy is being made.
    #[error("another backup is under way; there is one at a time")]
    Running,
    /// The disk that it should lie on is full.
    #[error("there is no room for a copy of the store at {path} ({detail})")]
    NoSpace {
        /// Where it should have come.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// Commits changed more than could be followed.
    #[error("the store changed faster than it could be copied; try again when less is sent")]
    TooFast,
    /// The copy could not be made.
    #[error("the backup failed: {0}")]
    Failed(String),
    /// The store itself cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}
