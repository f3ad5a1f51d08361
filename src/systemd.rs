//! What the service manager is told (sd_notify(3)) where it started the daemon, and what it wants to be fed
//! (sd_watchdog_enabled(3)). Elsewhere `NOTIFY_SOCKET` is not set, and nothing is said.
//!
//! Rule: one line of status, which is sent where it is another than before. Whoever reloads says [`reloading`] first and
//! [`ready`] or [`reloaded`] behind it, whatever came of it: systemd waits for that (`Type=notify-reload`).

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use sd_notify::NotifyState;

/// The status that was told last.
static STATUS: Mutex<String> = Mutex::new(String::new());
/// Whether it was logged that nobody listens.
static UNHEARD: AtomicBool = AtomicBool::new(false);

/// Everything is served; `text` is what `systemctl status` shows beside it.
pub fn ready(text: &str) {
    text.clone_into(&mut STATUS.lock());
    notify(&[NotifyState::Ready, NotifyState::Status(text)]);
}

/// What `systemctl status` shows, where it has changed.
pub fn status(text: &str) {
    let mut told = STATUS.lock();
    if *told != text {
        text.clone_into(&mut told);
        notify(&[NotifyState::Status(text)]);
    }
}

/// The configuration is being read again. systemd 253 and newer match the moment with the signal that they sent; older
/// ones pass over it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the time of the reload is not known; systemd is not told of it"),
    }
}

/// It was, and all is served as before.
pub fn reloaded() {
    notify(&[NotifyState::Ready]);
}

/// The stop has begun.
pub fn stopping() {
    "stopping".clone_into(&mut STATUS.lock());
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// A start or a stop makes progress, and says so again within `within`: it is not to be ended before that, even where
/// `TimeoutStartSec` or `TimeoutStopSec` is over.
pub fn extend(within: Duration) {
    notify(&[NotifyState::ExtendTimeoutUsec(u32::try_from(within.as_micros()).unwrap_or(u32::MAX))]);
}

/// How long the daemon may be silent before it counts as hanging (`WatchdogSec`), where that is watched and meant for this
/// process.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero())
}

/// It lives.
pub fn alive() {
    notify(&[NotifyState::Watchdog]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states)
        && !UNHEARD.swap(true, Ordering::Relaxed)
    {
        tracing::warn!(%error, "systemd cannot be told how things stand; further failures are not logged");
    }
}
