//! What grpc.health.v1 says: the gateway serves while its store takes writes and it neither drains nor stops. Whoever
//! watches hears of each change.

use tonic_health::{
    ServingStatus,
    pb::health_server::{Health as Service, HealthServer},
    server::HealthReporter,
};

use crate::{grpc, hub::Hub, limits};

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
        let mut changes = hub.store().health_changes();
        let mut told = true;
        loop {
            let serves = hub.store().health().is_ok() && !hub.is_draining();
            if told != serves {
                told = serves;
                self.set(serves).await;
            }
            // A drain has no signal of its own; nor does a store that was closed, which is the end.
            let _ = tokio::time::timeout(limits::HEALTH_LOOK_INTERVAL, async {
                if changes.changed().await.is_err() {
                    std::future::pending().await
                }
            })
            .await;
        }
    }
}
