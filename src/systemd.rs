//! What the service manager is told (sd_notify(3)) where it started the daemon, and what it wants to be fed
//! (sd_watchdog_enabled(3)). Elsewhere `NOTIFY_SOCKET` is not set, and nothing is said.
//!
//! Rule: one line of status, which is sent where it is another than before. Whoever reloads says [`reloading`] first and
//! [`reloaded`] behind it, whatever came of it: systemd waits for that (`Type=notify-reload`). Neither is said before the
//! daemon is ready, nor once it stops: to systemd READY is the start's end, and STOPPING the last word.

use std::{
    env,
    fmt::Write as _,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use sd_notify::NotifyState;

/// How far the daemon is, and the status that was told last. Held while something is said of either, so that what is said
/// last is what holds.
static TOLD: Mutex<Told> = Mutex::new(Told { phase: Phase::Starting, status: String::new() });
/// Whether it was logged that nobody listens.
static UNHEARD: AtomicBool = AtomicBool::new(false);

struct Told {
    phase: Phase,
    status: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    Serving,
    Stopping,
}

/// Everything is served; `text` is what `systemctl status` shows beside it.
pub fn ready(text: &str) {
    let mut told = TOLD.lock();
    told.phase = Phase::Serving;
    text.clone_into(&mut told.status);
    notify(&[NotifyState::Ready, NotifyState::Status(text)]);
}

/// What `systemctl status` shows, where it has changed.
pub fn status(text: &str) {
    let mut told = TOLD.lock();
    if told.status != text {
        text.clone_into(&mut told.status);
        notify(&[NotifyState::Status(text)]);
    }
}

/// Why it does not start, or did not end in order: the first line of it.
pub fn failed(why: &str) {
    status(why.lines().next().unwrap_or_default());
}

/// The configuration is being read again. systemd 253 and newer match the moment with the signal that they sent; older
/// ones pass over it.
pub fn reloading() {
    let told = TOLD.lock();
    if told.phase != Phase::Serving {
        return;
    }
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the time of the reload is not known; systemd is not told of it"),
    }
}

/// It was, and all is served as before.
pub fn reloaded() {
    let told = TOLD.lock();
    if told.phase == Phase::Serving {
        notify(&[NotifyState::Ready]);
    }
}

/// The stop has begun.
pub fn stopping() {
    let mut told = TOLD.lock();
    told.phase = Phase::Stopping;
    "stopping".clone_into(&mut told.status);
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
    if let Err(error) = send(states)
        && !UNHEARD.swap(true, Ordering::Relaxed)
    {
        tracing::warn!(%error, "systemd cannot be told how things stand; further failures are not logged");
    }
}

fn send(states: &[NotifyState<'_>]) -> io::Result<()> {
    let socket = env::var_os("NOTIFY_SOCKET").unwrap_or_default();
    // `@` stands for the zero byte of a name that is in no file system (sd_notify(3), unix(7)); the library takes it for a path.
    let Some(name) = socket.as_bytes().strip_prefix(b"@") else { return sd_notify::notify(states) };
    let mut message = String::new();
    for state in states {
        let _ = writeln!(message, "{state}"); // into a String, which cannot fail
    }
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &SocketAddr::from_abstract_name(name)?)?;
    Ok(())
}
