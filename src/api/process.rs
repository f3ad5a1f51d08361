//! What the kernel says of this process. Where it says nothing, the figures are zero.

use std::{fs, time::Duration};

/// CPU time, resident memory, memory of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time since the start.
    pub cpu: Duration,
    /// Resident bytes.
    pub rss_bytes: u64,
    /// Bytes of the machine.
    pub memory_total_bytes: u64,
}

/// The host's name.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Reads the figures from /proc (proc(5)) and sysinfo(2).
pub fn usage() -> Usage {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    // The command's name stands in parentheses and may hold spaces; utime and stime are the 12th and 13th behind it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|&i| fields.get(i)?.parse::<u64>().ok()).sum();
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let pages: u64 = statm.split_ascii_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or_default();
    // Not from /proc/meminfo, which a sandboxed service does not see (ProcSubset=pid).
    let system = rustix::system::sysinfo();
    Usage {
        cpu: Duration::from_millis(ticks.saturating_mul(1000) / per_second),
        rss_bytes: pages * rustix::param::page_size() as u64,
        memory_total_bytes: system.totalram.saturating_mul(u64::from(system.mem_unit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_something_plausible() {
        let usage = usage();
        assert!(usage.rss_bytes > 100_000 && usage.memory_total_bytes > usage.rss_bytes, "{usage:?}");
        assert!(!host_name().is_empty());
    }
}
