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

/// Reads the figures from clock_gettime(2), /proc (proc(5)) and sysinfo(2).
pub fn usage() -> Usage {
    // Finer than the ticks of /proc/self/stat: what a short measurement takes is to be seen.
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_ascii_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or_default();
    // Not from /proc/meminfo, which a sandboxed service does not see (ProcSubset=pid).
    let system = rustix::system::sysinfo();
    Usage {
        cpu: Duration::try_from(cpu).unwrap_or_default(),
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
        assert!(
            usage.rss_bytes > 100_000 && !usage.cpu.is_zero() && usage.memory_total_bytes > usage.rss_bytes,
            "{usage:?}"
        );
        assert!(!host_name().is_empty());
    }
}
