//! What is said at the start about a bound on memory that lets nobody in.

use crate::{api::process, config::Config};

/// What the least of what serves clients takes besides, in bytes: less room than this is none.
const ROOM_MIN: u64 = 8 * 1024 * 1024;

/// Says where the process, with its store open, has already about all that `limits.memory` gives it.
pub fn warn(config: &Config) {
    let resident = process::resident_bytes();
    if let Some(limit) = process::memory_bound(config.limits.memory)
        && limit < resident.saturating_add(ROOM_MIN)
    {
        tracing::warn!(
            limit,
            resident,
            "limits.memory is about what the process has with nobody connected: clients may not be let in; raise it"
        );
    }
}
