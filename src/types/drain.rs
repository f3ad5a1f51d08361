//! How a node goes out of service, as callers and consumers of the event stream see it.

use super::UnixMillis;

/// How far a node is out of service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DrainState {
    /// It is in service.
    #[default]
    Serving,
    /// It says that it is not ready, and serves on, so that load balancers notice.
    NotReady,
    /// Nobody is let in any more; sessions are told to come back, and closed.
    Closing,
    /// There is no session left.
    Drained,
}

impl DrainState {
    /// Its name in log lines.
    pub fn as_str(self) -> &'static str {
        match self {
            DrainState::Serving => "serving",
            DrainState::NotReady => "not ready",
            DrainState::Closing => "closing",
            DrainState::Drained => "drained",
        }
    }
}

/// A drain as it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainProgress {
    /// How far it is.
    pub state: DrainState,
    /// Whether the process ends behind it.
    pub stopping: bool,
    /// The sessions that there were when the closing began; before that, those there are.
    pub sessions: u32,
    /// Those that are left.
    pub left: u32,
    /// When it will be over at the latest, where somebody said so.
    pub deadline: Option<UnixMillis>,
}
