//! What the kernel says of this process. Where it says nothing, the figures are zero.

use std::{fs, path::Path, time::Duration};

use crate::types::Level;

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

/// Resident bytes of this process (proc(5)).
pub fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_ascii_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or_default();
    pages * rustix::param::page_size() as u64
}

/// What `limits.memory` comes to in bytes, of what this process may have: the machine's memory, or what its control groups
/// leave it of that. `None`: no bound.
pub fn memory_bound(level: Level) -> Option<u64> {
    let total = match level {
        Level::Share(_) => available_bytes(),
        Level::Count(_) | Level::Size(_) => 0,
    };
    level.of(total).map(|bytes| bytes as u64)
}

/// The memory of the machine, or less where a control group of this process (cgroups(7), version 2) has less.
fn available_bytes() -> u64 {
    let machine = usage().memory_total_bytes;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let root = Path::new("/sys/fs/cgroup");
    let own = root.join(group);
    own.ancestors()
        .take_while(|group| group.starts_with(root))
        .filter_map(|group| fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok())
        .fold(machine, u64::min)
}

/// What the process has of what it may have: descriptors, and threads (proc(5), getrlimit(2)).
#[derive(Clone, Copy, Debug, Default)]
pub struct Handles {
    /// Descriptors that are open.
    pub descriptors: u64,
    /// The most that may be; 0: no bound.
    pub descriptors_max: u64,
    /// Threads.
    pub threads: u64,
}

/// Reads them.
pub fn handles() -> Handles {
    // Linux 6.2 and newer say it as the folder's size; before, one has to count.
    let own = Path::new("/proc/self/fd");
    let size = fs::metadata(own).map(|folder| folder.len()).unwrap_or_default();
    let counted = || fs::read_dir(own).map(|entries| entries.count() as u64).unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse().ok());
    Handles {
        descriptors: if size > 0 { size } else { counted() },
        descriptors_max: rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or_default(),
        threads: threads.unwrap_or_default(),
    }
}

/// Reads the figures from clock_gettime(2), /proc (proc(5)) and sysinfo(2).
pub fn usage() -> Usage {
    // Finer than the ticks of /proc/self/stat: what a short measurement takes is to be seen.
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    // Not from /proc/meminfo, which a sandboxed service does not see (ProcSubset=pid).
    let system = rustix::system::sysinfo();
    Usage {
        cpu: Duration::try_from(cpu).unwrap_or_default(),
        rss_bytes: resident_bytes(),
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
        let handles = handles();
        assert!(handles.descriptors > 2 && handles.threads > 0 && handles.descriptors_max > 2, "{handles:?}");
        let available = available_bytes();
        assert!(available > usage.rss_bytes && available <= usage.memory_total_bytes, "{available}");
        assert_eq!(memory_bound(Level::Share(50)), Some(available / 2));
        assert_eq!(memory_bound(Level::Size(crate::types::ByteSize::mib(1))), Some(1 << 20));
        assert_eq!((memory_bound(Level::Share(0)), memory_bound(Level::Count(0))), (None, None));
    }
}
