//! What this process has taken.
#![allow(dead_code, reason = "no benchmark uses all of it")]

use std::time::Duration;

/// User and system CPU time since its start.
pub fn cpu() -> Duration {
    Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// Resident bytes (proc(5)); 0 where they cannot be had.
pub fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * rustix::param::page_size() as u64
}
