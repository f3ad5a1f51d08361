//! Reads ranges of rows in pages, so that a store of any size is read with little memory.

use std::ops::ControlFlow;

use super::super::{
    engine::{Engine, EngineError, Write},
    keys::KeyRange,
};
use crate::limits;

/// A row: its key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// The bytes of a page, about.
const PAGE_BYTES: usize = 1024 * 1024;
/// The rows of a page.
const PAGE_ROWS: usize = 512;

/// The rows of a range from its beginning, as many as make a page.
pub fn page(engine: &dyn Engine, range: &KeyRange) -> Result<Vec<Row>, EngineError> {
    let (mut rows, mut bytes) = (Vec::new(), 0);
    engine.range(&range.0, &range.1, &mut |key, value| {
        bytes += key.len() + value.len();
        rows.push((key.to_vec(), value.to_vec()));
        if rows.len() < PAGE_ROWS && bytes < PAGE_BYTES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(rows)
}

/// The range behind a page of it; `None` where the page was empty, which was the last.
pub fn behind(range: KeyRange, page: &[Row]) -> Option<KeyRange> {
    let (last, _) = page.last()?;
    let mut from = last.clone();
    from.push(0);
    Some((from, range.1))
}

/// Shows `visit` every row of a range, in order. Between rows it may read whatever else it wants.
pub fn each<E: From<EngineError>>(
    engine: &dyn Engine,
    range: KeyRange,
    mut visit: impl FnMut(Row) -> Result<(), E>,
) -> Result<(), E> {
    let mut rest = Some(range);
    while let Some(range) = rest {
        let rows = page(engine, &range)?;
        rest = behind(range, &rows);
        for row in rows {
            visit(row)?;
        }
    }
    Ok(())
}

/// Writes that are committed in batches of bounded size.
#[derive(Default)]
pub struct Batches {
    writes: Vec<Write>,
    bytes: usize,
}

impl Batches {
    /// Adds a row, and commits where enough has come together.
    pub fn put(&mut self, engine: &dyn Engine, key: Vec<u8>, value: Vec<u8>) -> Result<(), EngineError> {
        self.bytes += key.len() + value.len();
        self.writes.push((key, Some(value)));
        if self.writes.len() >= limits::STORE_BATCH_ROWS_MAX || self.bytes >= limits::STORE_BATCH_BYTES_MAX {
            self.commit(engine)?;
        }
        Ok(())
    }

    /// Commits what is left.
    pub fn commit(&mut self, engine: &dyn Engine) -> Result<(), EngineError> {
        self.bytes = 0;
        if self.writes.is_empty() { Ok(()) } else { engine.commit(std::mem::take(&mut self.writes)) }
    }
}
