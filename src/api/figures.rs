//! What everybody who reaches the ops listener may know of the node: numbers, and none of a user.

use super::{Api, process};
use std::sync::Arc;

use crate::{
    hub::Survey,
    store::Commits,
    types::{DrainState, UnixMillis},
};

/// See the module's documentation. What is counted anyway is in [`Api::metrics`].
#[derive(Clone, Debug)]
pub struct Figures {
    /// The daemon's version.
    pub version: &'static str,
    /// When it started.
    pub started_at: UnixMillis,
    /// Authenticated sessions.
    pub sessions: u64,
    /// Users with at least one session.
    pub users_online: u64,
    /// Notifications that wait in the store, and their bytes as accounted.
    pub pending: (u64, u64),
    /// Whether the store takes writes.
    pub store_healthy: bool,
    /// The store's bytes on disk.
    pub store_disk_bytes: u64,
    /// What is left of the store's disk for what is sent; `None` where it cannot be told.
    pub store_free_bytes: Option<u64>,
    /// What the store may hold: `store.max_bytes` and `store.max_disk`; 0: no bound.
    pub store_bounds: (u64, u64),
    /// Its commits.
    pub store_commits: Arc<Commits>,
    /// Operations that wait for its writer, and admitted bytes that are not written.
    pub store_queued: (u64, u64),
    /// Whether what stood there was damaged as it was opened, and moved aside.
    pub store_set_aside: bool,
    /// Connections at once, by `limits.connections` and the descriptors; 0: no bound.
    pub connections_max: u64,
    /// What `limits.memory` comes to in bytes; 0: no bound.
    pub memory_max_bytes: u64,
    /// Topics that somebody is in.
    pub topics: u64,
    /// Bytes of broadcasts and publications that wait to be handed out.
    pub fanout_bytes: u64,
    /// Events since the start.
    pub events: u64,
    /// The events by which the slowest consumer is behind.
    pub event_lag: u64,
    /// Whether the node takes new work.
    pub ready: bool,
    /// Whether somebody drained it. A stop is none of that.
    pub draining: bool,
    /// Whether the last look at a source of keys failed.
    pub key_source_failing: bool,
    /// CPU time, resident memory.
    pub process: process::Usage,
}

impl Api {
    /// How the sessions are now.
    pub async fn survey(&self) -> Survey {
        self.0.gate.of_node().survey().await
    }

    /// The node's numbers now.
    pub fn figures(&self) -> Figures {
        let hub = self.0.gate.of_node();
        let (totals, drained) = (hub.store().totals(), hub.drained());
        Figures {
            version: env!("CARGO_PKG_VERSION"),
            started_at: self.0.started_at,
            sessions: hub.session_count() as u64,
            users_online: hub.users_online(),
            pending: (totals.count, totals.bytes),
            store_healthy: hub.store().health().is_ok(),
            store_disk_bytes: hub.store().disk_bytes(),
            store_free_bytes: hub.store().disk().free_bytes,
            store_bounds: (hub.quotas().max_bytes, hub.store().disk().max_bytes),
            store_commits: hub.store().commits(),
            store_queued: hub.store().queued(),
            store_set_aside: hub.store().was_set_aside(),
            connections_max: hub.connections_max(),
            memory_max_bytes: process::memory_bound(hub.limits().memory).unwrap_or_default(),
            topics: hub.topic_count() as u64,
            fanout_bytes: hub.queued_bytes() as u64,
            events: hub.events().count(),
            event_lag: hub.events().lag(),
            ready: self.ready().is_ok(),
            draining: drained.state != DrainState::Serving && !drained.stopping,
            key_source_failing: hub.authenticator().key_source_failing(),
            process: process::usage(),
        }
    }
}
