//! Makes a store small: copies every row into a fresh one beside it, and puts that in its place.
//!
//! Rule: whenever it is interrupted the store lies whole under its name, the old one or the new one. Until the swap,
//! which is one call, the copy is a folder of its own with a file in it that says so; the next attempt removes it. After
//! the swap that folder holds the old store, and stays where it could not be removed.

use std::fs;

use sha2::{Digest as _, Sha256};

use super::{
    super::{
        engine::{Engine, EngineError},
        keys,
    },
    Place, ToolError, beside,
    files::Fresh,
    walk::{self, Batches},
};

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// The rows, all of which are in the new one.
    pub rows: u64,
    /// The bytes of the old one's files.
    pub bytes_before: u64,
    /// The bytes of the new one's files.
    pub bytes_after: u64,
}

/// Rewrites the store. Brings an older format up to the present one first.
pub fn compact(place: &Place) -> Result<Compacted, ToolError> {
    let found = |source| ToolError::File { what: "cannot find", path: place.path.clone(), source };
    // Where it is a link, what it leads to is what is swapped.
    let path = match fs::canonicalize(&place.path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(ToolError::NoStore { path: place.path.clone() });
        }
        path => path.map_err(found)?,
    };
    let place = Place { path, engine: place.engine };
    let kind = place.kind()?;
    place.with_store(true, |engine, _| {
        let failed = |error| ToolError::engine(&place.path, error);
        let bytes_before = engine.disk_bytes().map_err(failed)?;
        let folder = beside(&place.path, ".compact")?;
        let fresh = Fresh::make(kind, folder.clone()).map_err(|error| match error {
            EngineError::Io(source) => {
                ToolError::File { what: "nothing has changed: cannot make the copy", path: folder.clone(), source }
            }
            error => ToolError::engine(&folder, error),
        })?;
        let in_copy = |error| ToolError::engine(&folder, error);
        let copy = fresh.engine().map_err(in_copy)?;
        let original = copy_all(engine, copy).map_err(in_copy)?;
        let copied = seal(copy).map_err(in_copy)?;
        if original != copied {
            let why = format!("{} rows of {}", copied.rows, original.rows);
            return Err(ToolError::Differs { path: place.path.clone(), why });
        }
        let bytes_after = copy.disk_bytes().map_err(in_copy)?;
        // The lock of the old one is held until the new one is in its place.
        fresh.swap_with(&place.path, kind)?;
        Ok(Compacted { rows: original.rows, bytes_before, bytes_after })
    })
}

/// How many rows there are, and a hash over all of them in order.
#[derive(Debug, PartialEq, Eq)]
struct Seal {
    rows: u64,
    hash: [u8; 32],
}

#[derive(Default)]
struct Sealing {
    rows: u64,
    hash: Sha256,
}

impl Sealing {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.rows += 1;
        for part in [key, value] {
            self.hash.update((part.len() as u64).to_le_bytes());
            self.hash.update(part);
        }
    }

    fn done(self) -> Seal {
        Seal { rows: self.rows, hash: self.hash.finalize().into() }
    }
}

fn copy_all(from: &dyn Engine, to: &dyn Engine) -> Result<Seal, EngineError> {
    let (mut sealing, mut batches) = (Sealing::default(), Batches::default());
    walk::each(from, keys::all(), |(key, value)| {
        sealing.add(&key, &value);
        batches.put(to, key, value)
    })?;
    batches.commit(to)?;
    Ok(sealing.done())
}

fn seal(engine: &dyn Engine) -> Result<Seal, EngineError> {
    let mut sealing = Sealing::default();
    walk::each(engine, keys::all(), |(key, value)| {
        sealing.add(&key, &value);
        Ok::<_, EngineError>(())
    })?;
    Ok(sealing.done())
}
