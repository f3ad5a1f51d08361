//! The admin API, whatever carries it: the proto's types, what may be asked by whom, and one short function an RPC.
//! Below this floor nothing knows the proto.
//!
//! The hub is reachable only through `Api::authorise`, so that no call can forget to ask for its scope.

pub mod access;
mod backup;
mod batch;
mod codec;
mod convert;
mod error;
mod events;
mod figures;
mod filter;
pub mod json;
mod lists;
mod mailbox;
mod node;
mod pages;
mod process;
pub mod scope;
mod send;
mod status;
mod topics;
mod users;
mod values;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use self::scope::{Scope, ScopeSet};
pub use self::{
    error::ApiError,
    figures::Figures,
    node::{CleanedUp, LogControl},
};
use crate::{
    clock::Instant,
    hub::{CloseFilter, Hub},
    lifecycle::Lifecycle,
    limits,
    metrics::Metrics,
    protocol::close::CloseCode,
    types::{EventBody, SessionId, UnixMillis, UserId},
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

/// The admin API of one node. Cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    hub: Hub,
    life: Lifecycle,
    node: String,
    started: Instant,
    started_at: UnixMillis,
    listeners: OnceLock<Vec<Listener>>,
    stopping: AtomicBool,
    log_control: OnceLock<LogControl>,
}

impl Api {
    /// The API of a node that starts now.
    pub fn new(hub: Hub, life: Lifecycle) -> Self {
        let (started, started_at) = (hub.clock().now(), hub.clock().unix_millis());
        let node = process::host_name();
        Self(Arc::new(Inner {
            hub,
            life,
            node,
            started,
            started_at,
            listeners: OnceLock::new(),
            stopping: AtomicBool::new(false),
            log_control: OnceLock::new(),
        }))
    }

    /// Says where the node listens, once it does.
    pub fn set_listeners(&self, listeners: Vec<Listener>) {
        let _ = self.0.listeners.set(listeners);
    }

    /// The node is not ready from now on, and will have ended after `deadline` at the latest.
    pub fn set_stopping(&self, deadline: Duration) {
        if !self.0.stopping.swap(true, Ordering::AcqRel) {
            let deadline = self.0.hub.clock().unix_millis().saturating_add(deadline);
            self.0.hub.events().emit(EventBody::Draining { deadline });
        }
    }

    /// Counters, for what transports count of their own.
    pub fn metrics(&self) -> &Metrics {
        self.0.hub.metrics()
    }

    /// The one way to the hub.
    fn authorise(&self, caller: &Caller, scope: Scope) -> Result<&Hub, ApiError> {
        if caller.scopes.contains(scope) {
            return Ok(&self.0.hub);
        }
        Err(ApiError::PermissionDenied { caller: Arc::clone(&caller.name), scope })
    }

    /// Whether a caller may call what takes that scope; looked at again where it is done. For transports that would read and
    /// parse what comes before they ask.
    pub fn check_scope(&self, caller: &Caller, scope: Scope) -> Result<(), ApiError> {
        self.authorise(caller, scope).map(drop)
    }

    /// `CloseUserSessions`.
    pub fn close_user_sessions(
        &self,
        caller: &Caller,
        request: proto::CloseUserSessionsRequest,
    ) -> Result<proto::CloseUserSessionsResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Close)?;
        let mut checks = convert::Checks::default();
        let user = checks.field("user_id", UserId::parse(&request.user_id));
        let session = checks.optional("session_id", &request.session_id, SessionId::parse);
        let device = checks.device(request.device.as_deref());
        let code = checks.close_code(request.code);
        checks.check("reason", request.reason.len() <= limits::CLOSE_REASON_BYTES_MAX, || {
            format!("must have at most {} bytes, this has {}", limits::CLOSE_REASON_BYTES_MAX, request.reason.len())
        });
        let (user, session, device, code) = checks.finish((user, session, device, code))?;
        let closed = hub.close_sessions(&user, &CloseFilter { session, device }, code, &request.reason);
        tracing::info!(caller = %caller.name, user = %user, code = code.0, closed, "sessions closed by a caller");
        Ok(proto::CloseUserSessionsResponse { closed })
    }

    /// `GetStatus`.
    pub fn get_status(&self, caller: &Caller) -> Result<proto::GetStatusResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Read)?;
        Ok(status::status(&self.0, hub))
    }

    /// `ListSessions`.
    pub fn list_sessions(
        &self,
        caller: &Caller,
        request: &proto::ListSessionsRequest,
    ) -> Result<proto::ListSessionsResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Read)?;
        lists::sessions(hub, request)
    }

    /// `StreamEvents`.
    pub fn stream_events(
        &self,
        caller: &Caller,
        request: &proto::StreamEventsRequest,
    ) -> Result<events::EventStream, ApiError> {
        let hub = self.authorise(caller, Scope::Events)?;
        events::stream(hub, &self.0.life, request)
    }

    /// Whether a caller may use reflection.
    pub fn authorise_reflection(&self, caller: &Caller) -> Result<(), ApiError> {
        // Any valid token will do.
        if caller.scopes.is_empty() {
            return Err(ApiError::PermissionDenied { caller: Arc::clone(&caller.name), scope: Scope::Read });
        }
        Ok(())
    }

    /// Whether the node takes new work: the store is healthy and it is not stopping. Else why not.
    pub fn ready(&self) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        if self.0.stopping.load(Ordering::Acquire) {
            reasons.push("the node is stopping".to_owned());
        }
        if let Err(error) = self.0.hub.store().health() {
            reasons.push(format!("the store is not healthy: {error}"));
        }
        if let Some(failure) = self.0.life.failure() {
            reasons.push(failure);
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }
}

impl convert::Checks {
    fn close_code(&mut self, code: u32) -> Option<CloseCode> {
        let code = if code == 0 { CloseCode::NORMAL } else { CloseCode(u16::try_from(code).unwrap_or(u16::MAX)) };
        let allowed = code.is_allowed_for_callers();
        self.check("code", allowed, || "must be 1000, 1008, 3000 to 3999 or 4000 to 4099".to_owned());
        allowed.then_some(code)
    }
}
