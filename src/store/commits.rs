//! How large the writer's commits were, and how long they took.

use std::time::Duration;

use crate::metrics::{Distribution, SIZE_BYTES, WORK_MICROS};

/// Bounds of how many rows a commit writes.
const ROWS: [u64; 8] = [1, 4, 16, 64, 256, 1024, 4096, 16_384];

/// The commits of a store since it was opened; those that failed are not among them.
#[derive(Debug)]
pub struct Commits {
    /// How long each took, until it was as durable as `store.durability` has it; in µs.
    pub took: Distribution,
    /// The bytes of keys and rows that each wrote.
    pub bytes: Distribution,
    /// The rows that each wrote or deleted.
    pub rows: Distribution,
}

impl Default for Commits {
    fn default() -> Self {
        Self {
            took: Distribution::new(&WORK_MICROS),
            bytes: Distribution::new(&SIZE_BYTES),
            rows: Distribution::new(&ROWS),
        }
    }
}

impl Commits {
    /// One more.
    pub(super) fn note(&self, took: Duration, rows: usize, bytes: usize) {
        self.took.record_span(took);
        self.rows.record(rows as u64);
        self.bytes.record(bytes as u64);
    }
}
