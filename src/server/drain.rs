//! What the daemon does while its node goes out of service and comes back: the public listeners are closed and opened, the
//! log is told; health (`health.rs`) and the service manager (`manager.rs`) are told by theirs. What a drain is, and its
//! steps, are the hub's.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::watch, time::Instant};

use crate::{
    hub::{DrainStep, Hub},
    net::door::{Door, Origin},
    types::{DrainProgress, DrainState},
};

/// How often the log has a line on the progress; each step has one anyway.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// The public listeners. Each is closed by whoever accepts from it, as soon as nobody is let in.
#[derive(Default)]
pub struct Doors(Vec<Arc<Door>>);

impl Doors {
    /// One more, open.
    pub fn add(&mut self, listener: TcpListener, address: SocketAddr, origin: Origin) -> Arc<Door> {
        let door = Arc::new(Door::new(listener, address, origin));
        self.0.push(Arc::clone(&door));
        door
    }

    /// Opens all that are closed, or says which cannot be.
    pub fn open(&self) -> Result<(), String> {
        self.0.iter().try_for_each(|door| door.open().map_err(|error| error.to_string()))
    }
}

/// What the log says of how far a drain is: each step, and in between a line every few seconds. One for the daemon's life,
/// so that nothing is said twice.
pub struct Log {
    steps: watch::Receiver<DrainStep>,
    lines: Lines,
}

impl Log {
    /// Of a hub that is in service.
    pub fn new(hub: &Hub) -> Self {
        Self { steps: hub.drain_progress(), lines: Lines::default() }
    }

    /// Does not end; may be given up and begun again.
    pub async fn follow(&mut self) {
        // The hub has the sender.
        while self.steps.changed().await.is_ok() {
            self.catch_up();
        }
        std::future::pending().await
    }

    /// Says what is not said yet.
    pub fn catch_up(&mut self) {
        let (_, progress) = *self.steps.borrow_and_update();
        for step in progress.since(self.lines.told.state) {
            self.lines.tell(step);
        }
    }
}

/// What was told last.
#[derive(Default)]
struct Lines {
    told: DrainProgress,
    at: Option<Instant>,
}

impl Lines {
    fn tell(&mut self, progress: DrainProgress) {
        let DrainProgress { state, stopping, sessions, left, .. } = progress;
        let step = (state, stopping) != (self.told.state, self.told.stopping);
        let now = Instant::now();
        if progress == self.told || !step && self.at.is_some_and(|at| now - at < LOG_INTERVAL) {
            return;
        }
        (self.told, self.at) = (progress, Some(now));
        match state {
            DrainState::Serving => tracing::info!(sessions = left, "in service again"),
            _ => tracing::info!(state = state.as_str(), stopping, sessions, left, "draining"),
        }
    }
}
