//! What systemd is told (sd_notify(3)) where it started the daemon: that it is ready, that it is stopping. Elsewhere
//! `NOTIFY_SOCKET` is not set, and nothing is said.

use sd_notify::NotifyState;

/// Everything is served; `status` is what `systemctl status` shows beside it.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What `systemctl status` shows, until the next.
pub fn status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

/// The stop has begun.
pub fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be told how things stand");
    }
}
