//! What grpc.health.v1 says: the gateway serves while its store takes writes and it neither drains nor stops. Whoever
//! watches hears of each change.

use tonic_health::{
    ServingStatus,
    pb::health_server::{Health as Service, HealthServer},
    server::HealthReporter,
};

use crate::{grpc, hub::Hub, types::DrainState};

/// The one who tells.
pub struct Health(HealthReporter);

impl Health {
    /// It, and the service that listeners serve.
    pub async fn new() -> (Self, HealthServer<impl Service>) {
        let (reporter, service) = tonic_health::server::health_reporter();
        let health = Self(reporter);
        health.set(true).await;
        (health, service)
    }

    /// What all names are told from now on.
    pub async fn set(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in grpc::HEALTH_NAMES {
            self.0.set_service_status(name, status).await;
        }
    }

    /// Follows the store and the drain. Does not end.
    pub async fn follow(&self, hub: &Hub) {
        let (mut changes, mut steps) = (hub.store().health_changes(), hub.drain_progress());
        let mut told = true;
        loop {
            // Not so from the first step of a drain on: load balancers need the time before the listeners close.
            let serves = hub.store().health().is_ok() && steps.borrow_and_update().1.state == DrainState::Serving;
            if told != serves {
                told = serves;
                self.set(serves).await;
            }
            // A store that was closed says nothing more; that is the end.
            let store = async {
                if changes.changed().await.is_err() {
                    std::future::pending().await
                }
            };
            tokio::select! {
                () = store => {}
                // The hub has the sender.
                _ = steps.changed() => {}
            }
        }
    }
}
