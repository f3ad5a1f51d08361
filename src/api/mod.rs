//! The admin API, whatever carries it: the proto's types, what may be asked by whom, and one short function an RPC.
//! Below this floor nothing knows the proto.
//!
//! The hub is reachable only through `gate.rs`, so that no call can forget to ask for its scope. Calls that take something
//! away are lines of the audit (`audit.rs`).

pub mod access;
mod audit;
mod backup;
mod batch;
mod codec;
mod convert;
mod drain;
mod error;
mod events;
mod figures;
mod filter;
mod gate;
pub mod json;
mod lists;
mod mailbox;
mod node;
mod pages;
pub mod process;
mod reload;
mod revoke;
pub mod scope;
mod send;
mod standing;
mod status;
mod topics;
mod users;
mod values;

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

pub use self::{
    drain::Opener,
    error::ApiError,
    figures::Figures,
    node::{CleanedUp, LogControl},
    reload::{Change, ReloadControl, ReloadRefused, Reloaded},
    standing::Standing,
};
use self::{
    gate::Gate,
    scope::{Scope, ScopeSet},
};
use crate::{
    clock::Instant,
    hub::Hub,
    lifecycle::Lifecycle,
    metrics::{Metrics, Requests},
    trace::Tracer,
    types::{Count, DrainState, UnixMillis},
};

/// The proto's types, generated at build time, and their descriptors for reflection.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated; the comments are those of the proto")]
pub mod proto {
    tonic::include_proto!("pushgate.v1");

    /// The compiled `FileDescriptorSet`.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gateway.binpb"));
}

/// Who calls, and what he may do.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The name of his token, or how he came in.
    pub name: Arc<str>,
    /// What he may do.
    pub scopes: ScopeSet,
    /// Whether he still may.
    pub standing: Standing,
}

impl Caller {
    /// Somebody who may call from now on.
    pub fn new(name: &str, scopes: ScopeSet) -> Self {
        Self { name: name.into(), scopes, standing: Standing::default() }
    }

    /// Whether he goes on as another who may do as much under his name.
    pub fn goes_on_as(&self, other: &Self) -> bool {
        self.name == other.name && other.scopes.covers(self.scopes)
    }
}

/// One address that the daemon listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// `http`, `grpc` or `ops`.
    pub name: &'static str,
    /// As bound.
    pub address: String,
    /// Whether TLS is spoken.
    pub tls: bool,
}

/// The limits of the admin API over gRPC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallLimits {
    /// `grpc.max_connections`.
    pub connections: Count,
    /// `grpc.max_streams`.
    pub streams: u32,
    /// The largest message of a call, in bytes.
    pub message_bytes: usize,
}

/// The admin API of one node. Cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    gate: Gate,
    life: Lifecycle,
    tracer: Tracer,
    node: String,
    started: Instant,
    started_at: UnixMillis,
    listeners: OnceLock<Vec<Listener>>,
    call_limits: Mutex<CallLimits>,
    log_control: OnceLock<LogControl>,
    reload_control: Mutex<Option<ReloadControl>>,
    opener: OnceLock<Opener>,
}

impl Api {
    /// The API of a node that starts now.
    pub fn new(hub: Hub, life: Lifecycle) -> Self {
        let (started, started_at) = (hub.clock().now(), hub.clock().unix_millis());
        let node = process::host_name();
        let _ = hub.metrics().requests.set(Requests::new(json::methods()));
        Self(Arc::new(Inner {
            tracer: hub.tracer().clone(),
            gate: Gate::new(hub),
            life,
            node,
            started,
            started_at,
            listeners: OnceLock::new(),
            call_limits: Mutex::default(),
            log_control: OnceLock::new(),
            reload_control: Mutex::default(),
            opener: OnceLock::new(),
        }))
    }

    /// Says where the node listens, once it does.
    pub fn set_listeners(&self, listeners: Vec<Listener>) {
        let _ = self.0.listeners.set(listeners);
    }

    /// Says what the limits of calls over gRPC are.
    pub fn set_call_limits(&self, limits: CallLimits) {
        *self.0.call_limits.lock() = limits;
    }

    /// The largest notification, encoded, in bytes: for transports that bound by it what they read.
    pub fn notification_bytes(&self) -> usize {
        self.0.gate.of_node().limits().notification_bytes.as_usize()
    }

    /// Counters, for what transports count of their own.
    pub fn metrics(&self) -> &Metrics {
        self.0.gate.of_node().metrics()
    }

    /// Records calls, or does not.
    pub fn tracer(&self) -> &Tracer {
        &self.0.tracer
    }

    /// The one way to the hub.
    fn authorise(&self, caller: &Caller, scope: Scope) -> Result<&Hub, ApiError> {
        self.0.gate.open(caller, scope)
    }

    /// Whether a caller may call what takes that scope; looked at again where it is done. For transports that would read and
    /// parse what comes before they ask.
    pub fn check_scope(&self, caller: &Caller, scope: Scope) -> Result<(), ApiError> {
        self.authorise(caller, scope).map(drop)
    }

    /// `GetStatus`.
    pub fn get_status(&self, caller: &Caller) -> Result<proto::GetStatusResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Read)?;
        Ok(status::status(&self.0, hub))
    }

    /// `ListSessions`.
    pub async fn list_sessions(
        &self,
        caller: &Caller,
        request: &proto::ListSessionsRequest,
    ) -> Result<proto::ListSessionsResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Read)?;
        lists::sessions(hub, request).await
    }

    /// `StreamEvents`.
    pub fn stream_events(
        &self,
        caller: &Caller,
        request: &proto::StreamEventsRequest,
    ) -> Result<events::EventStream, ApiError> {
        let hub = self.authorise(caller, Scope::Events)?;
        events::stream(hub, &self.0.life, &caller.standing, request)
    }

    /// Whether a caller may use reflection.
    pub fn authorise_reflection(&self, caller: &Caller) -> Result<(), ApiError> {
        Gate::describe(caller)
    }

    /// Whether the node takes new work: the store is healthy, keys that are fetched were, and it neither drains nor stops. Else why
    /// not.
    pub fn ready(&self) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        let hub = self.0.gate.of_node();
        let drained = hub.drained();
        match drained.state {
            _ if drained.stopping => reasons.push("the node is stopping".to_owned()),
            DrainState::Serving => {}
            DrainState::NotReady | DrainState::Closing => reasons.push("the node is draining".to_owned()),
            DrainState::Drained => reasons.push("the node is drained".to_owned()),
        }
        if let Err(error) = hub.store().health() {
            reasons.push(format!("the store is not healthy: {error}"));
        }
        reasons.extend(hub.authenticator().trouble());
        if let Some(failure) = self.0.life.failure() {
            reasons.push(failure);
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }
}
