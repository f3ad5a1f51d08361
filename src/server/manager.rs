//! What the service manager hears over the daemon's life, besides that it is ready: how it stands, and that a long start or
//! stop goes on.
//!
//! A start may be extended (`EXTEND_TIMEOUT_USEC`, sd_notify(3)) for as long as it works: it has used the processor, or
//! read and written, since it was looked last. One that hangs on a disk does neither, and `TimeoutStartSec` ends it. A stop
//! is extended up to its own deadline, for as long as there are turns to say so.

use std::{fs, future::Future, pin::pin, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{Listener, process},
    hub::Hub,
    limits, systemd,
    types::DrainState,
};

/// How often a start or a stop is looked at, and how long it is extended by each time.
const LOOK: Duration = Duration::from_secs(5);
const EXTENSION: Duration = Duration::from_secs(15);
/// Less than that is what waiting costs.
const CPU_MIN: Duration = Duration::from_millis(50);
const IO_BYTES_MIN: u64 = 256 * 1024;

/// What the process has done since it began.
#[derive(Clone, Copy, Debug, Default)]
struct Effort {
    cpu: Duration,
    io_bytes: u64,
}

impl Effort {
    /// By the kernel's word (clock_gettime(2), proc(5)).
    fn of_process() -> Self {
        let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
        let of = |line: &str| -> Option<u64> {
            let (name, bytes) = line.split_once(": ")?;
            // What was asked of the kernel, and what the disk had to do for pages that are mapped.
            matches!(name, "rchar" | "wchar" | "read_bytes").then(|| bytes.trim().parse().ok())?
        };
        Self { cpu: process::usage().cpu, io_bytes: io.lines().filter_map(of).sum() }
    }

    fn is_beyond(self, before: Self) -> bool {
        self.cpu.saturating_sub(before.cpu) >= CPU_MIN || self.io_bytes.saturating_sub(before.io_bytes) >= IO_BYTES_MIN
    }
}

/// Does what a start takes, and has the start extended while it works.
pub async fn while_it_starts<T>(work: impl Future<Output = T>) -> T {
    extended(work, Effort::of_process, systemd::extend).await
}

async fn extended<T>(
    work: impl Future<Output = T>,
    mut effort: impl FnMut() -> Effort,
    mut extend: impl FnMut(Duration),
) -> T {
    let (mut work, mut before) = (pin!(work), effort());
    loop {
        tokio::select! {
            done = work.as_mut() => return done,
            () = sleep(LOOK) => {}
        }
        let now = effort();
        if now.is_beyond(before) {
            extend(EXTENSION);
        }
        before = now;
    }
}

/// Has a stop extended until its deadline.
pub async fn while_it_stops(deadline: Instant) {
    while Instant::now() < deadline {
        systemd::extend(EXTENSION);
        sleep_until(deadline.min(Instant::now() + LOOK)).await;
    }
}

/// Where it listens, in a line.
pub fn places(listeners: &[Listener]) -> String {
    listeners.iter().map(|listener| format!("{} {}", listener.name, listener.address)).collect::<Vec<_>>().join(", ")
}

/// How it stands, in a line.
pub fn standing(hub: &Hub, places: &str, stopping: bool) -> String {
    let (sessions, users, pending) = (hub.session_count(), hub.users_online(), hub.store().totals().count);
    let counts = format!("sessions {sessions}, users {users}, pending {pending}");
    let drained = hub.drained();
    let doing = if stopping { "stopping" } else { "draining" };
    match drained.state {
        DrainState::Serving if !stopping => format!("{counts}; {places}"),
        DrainState::Serving | DrainState::NotReady => format!("{doing}; {counts}"),
        DrainState::Closing => {
            // The step was told a moment ago: the count beside it is the one that holds.
            format!("{doing}, {sessions} of {} sessions left; {counts}", (drained.sessions as usize).max(sessions))
        }
        DrainState::Drained if stopping => format!("stopping; {counts}"),
        DrainState::Drained => format!("drained, out of service until it is stopped or undrained; {counts}"),
    }
}

/// Tells how it stands, every few seconds where that has changed, and at each step out of service and back. Does not end.
pub async fn report(hub: Hub, places: String, stopping: CancellationToken) {
    let mut steps = hub.drain_progress();
    loop {
        let stops = stopping.is_cancelled();
        let state = steps.borrow_and_update().1.state;
        systemd::status(&standing(&hub, &places, stops));
        let serves = !stops && state == DrainState::Serving;
        let interval = if serves { limits::STATUS_INTERVAL } else { limits::STATUS_INTERVAL_STOPPING };
        // Not at each count that a drain tells. The hub has the sender.
        let step = async {
            let _ = steps.wait_for(|(_, progress)| progress.state != state).await;
        };
        tokio::select! {
            () = sleep(interval) => {}
            () = stopping.cancelled(), if !stops => {}
            () = step => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_start_is_extended_while_it_works_and_not_while_it_hangs() {
        let started = Instant::now();
        // It works for 20 s, then hangs.
        let effort = || Effort { cpu: started.elapsed().min(Duration::from_secs(20)) / 10, io_bytes: 0 };
        let mut extended_at = Vec::new();
        let done = extended(sleep(Duration::from_secs(60)), effort, |by| {
            assert_eq!(by, EXTENSION);
            extended_at.push(started.elapsed().as_secs());
        });
        done.await;
        assert_eq!(extended_at, [5, 10, 15, 20]);
    }

    #[test]
    fn reading_counts_as_work_and_waiting_does_not() {
        let before = Effort::of_process();
        assert!(!before.is_beyond(before));
        let more = |cpu_ms, io_bytes| Effort {
            cpu: before.cpu + Duration::from_millis(cpu_ms),
            io_bytes: before.io_bytes + io_bytes,
        };
        assert!(!more(49, IO_BYTES_MIN - 1).is_beyond(before));
        assert!(more(50, 0).is_beyond(before) && more(0, IO_BYTES_MIN).is_beyond(before));
        // /dev/zero takes no room and is read all the same.
        let mut bytes = vec![0; usize::try_from(IO_BYTES_MIN).unwrap()];
        std::io::Read::read_exact(&mut fs::File::open("/dev/zero").unwrap(), &mut bytes).unwrap();
        assert!(Effort::of_process().is_beyond(before));
    }
}
