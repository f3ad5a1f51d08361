//! What is to be known of an engine before it is opened: which files in the store's folder are its own, which of them it
//! locks, how it is opened. All that differs between engines is here; [`super::open`] does the same with each.

use std::{path::Path, sync::Arc};

use super::{
    engine::{Engine, EngineError},
    redb, sled,
};
use crate::store::{Durability, EngineName, OnCorruption};

/// An engine that is not opened yet.
pub struct Kind {
    /// Its name, as `store.engine` has it.
    pub name: &'static str,
    /// The file in the folder on which whoever has the engine open holds a lock (`flock`).
    pub lock_file: &'static str,
    /// Whether a file or folder of that name in the store's folder is the engine's. No two engines share a name.
    pub is_own: fn(&str) -> bool,
    /// Whether one of its own files or folders is what a crash left, and holds nothing that is not elsewhere.
    pub is_leftover: fn(&str) -> bool,
    /// Opens it in a way that leaves its files as they are, whatever they are; gone when it is dropped. None where that
    /// is not worth its price.
    pub rehearse: fn(&Path, OnCorruption) -> Rehearsed,
    /// Opens it, or makes it where there is none.
    pub open: fn(&Path, Durability) -> Opening,
}

/// What comes of an opening.
pub type Opening = Result<Arc<dyn Engine>, EngineError>;

/// What comes of a rehearsal.
pub type Rehearsed = Result<Option<Arc<dyn Engine>>, EngineError>;

/// All engines.
pub const KINDS: [&Kind; 2] = [&sled::KIND, &redb::KIND];

impl Kind {
    /// The engine of that name.
    pub fn of(name: EngineName) -> &'static Kind {
        match name {
            EngineName::Sled => &sled::KIND,
            EngineName::Redb => &redb::KIND,
        }
    }

    /// The engine whose files are in the folder.
    pub fn at(path: &Path) -> Option<&'static Kind> {
        KINDS.into_iter().find(|kind| path.join(kind.lock_file).exists())
    }

    /// Another engine that has a file of that name.
    pub fn owner_beside(&self, name: &str) -> Option<&'static Kind> {
        KINDS.into_iter().find(|kind| kind.name != self.name && (kind.is_own)(name))
    }
}
