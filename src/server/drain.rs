//! What the daemon does while its node goes out of service and comes back: the public listeners are closed and opened,
//! health, the log and systemd are told. What a drain is, and its steps, are the hub's.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, time::Instant};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    grpc,
    hub::Hub,
    net::door::Door,
    systemd,
    types::{DrainProgress, DrainState},
};

/// How often the log has a line on the progress; each step has one anyway.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// The public listeners. Each is closed by whoever accepts from it, as soon as nobody is let in.
#[derive(Default)]
pub struct Doors(Vec<Arc<Door>>);

impl Doors {
    /// One that was bound here, open.
    pub fn add(&mut self, listener: TcpListener, address: SocketAddr) -> Arc<Door> {
        let door = Arc::new(Door::bound(listener, address));
        self.0.push(Arc::clone(&door));
        door
    }

    /// Opens all that are closed, or says which cannot be.
    pub fn open(&self) -> Result<(), String> {
        self.0.iter().try_for_each(|door| door.open().map_err(|error| error.to_string()))
    }
}

/// Says how the node is: in the health service with what the store says of itself, and a drain's progress to systemd and in
/// the log. `listening` is what systemd is told of a node in service. Does not end.
pub async fn follow(hub: &Hub, reporter: &HealthReporter, listening: &str) {
    let mut health = hub.store().health_changes();
    let mut steps = hub.drain_progress();
    let mut lines = Lines::default();
    // Where a stop follows a drain it has begun already.
    if steps.borrow().1.state != DrainState::Serving {
        steps.mark_changed();
    }
    loop {
        tokio::select! {
            changed = health.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
            // The hub has the sender.
            _ = steps.changed() => {}
        }
        let (_, progress) = *steps.borrow_and_update();
        let serving = progress.state == DrainState::Serving && hub.store().health().is_ok();
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in grpc::HEALTH_NAMES {
            reporter.set_service_status(name, status).await;
        }
        lines.tell(progress, listening);
    }
}

/// What was told last.
#[derive(Default)]
struct Lines {
    told: DrainProgress,
    at: Option<Instant>,
}

impl Lines {
    fn tell(&mut self, progress: DrainProgress, listening: &str) {
        if progress == self.told {
            return;
        }
        let DrainProgress { state, stopping, sessions, left, .. } = progress;
        let step = (state, stopping) != (self.told.state, self.told.stopping);
        self.told = progress;
        let ends = if stopping { "stopping" } else { "draining" };
        systemd::status(&match state {
            DrainState::Serving => listening.to_owned(),
            DrainState::NotReady => format!("{ends}: not ready, {left} sessions"),
            DrainState::Closing => format!("{ends}: {left} of {sessions} sessions left"),
            DrainState::Drained if stopping => "stopping: no session left".to_owned(),
            DrainState::Drained => "drained: out of service until it is stopped or undrained".to_owned(),
        });
        let now = Instant::now();
        if step || self.at.is_none_or(|at| now - at >= LOG_INTERVAL) {
            self.at = Some(now);
            match state {
                DrainState::Serving => tracing::info!(sessions = left, "in service again"),
                _ => tracing::info!(state = state.as_str(), stopping, sessions, left, "draining"),
            }
        }
    }
}
