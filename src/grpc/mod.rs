//! The gRPC face of the admin API: listeners, health and reflection. What a call does is the
//! `api` floor's.

pub mod clients;
pub mod config;
mod front;
mod listen;
mod nest;
mod service;

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

pub use self::{clients::Clients, config::Config};
use futures_util::StreamExt as _;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Request, Status,
    service::{Interceptor, Routes, interceptor::InterceptedService},
};
use tonic_health::pb::health_server::{Health, HealthServer};

use self::{
    front::Front,
    listen::{Connection, Terms},
    nest::Nest,
};
use crate::{
    api::{
        Api, CallLimits,
        access::{self, Access},
        proto::{DESCRIPTORS, gateway_server::GatewayServer},
    },
    lifecycle::Lifecycle,
    limits::{self, Limit},
    metrics::Metrics,
    net::{Bound, tls::Tls},
    types::ByteSize,
};

/// The services' names in health checks.
pub const HEALTH_NAMES: [&str; 2] = ["", "pushgate.v1.Gateway"];

/// What every listener serves.
#[derive(Clone)]
pub struct Services<H: Health> {
    /// The admin API.
    pub api: Api,
    /// Health, shared so that all listeners tell the same.
    pub health: HealthServer<H>,
    /// TLS, where it is spoken; Unix sockets have none.
    pub tls: Option<Tls>,
    /// Whom certificates name.
    pub clients: Arc<Clients>,
    /// Its limits; a connection has those that are in force when it comes.
    pub limits: watch::Receiver<Bounds>,
}

/// What bounds a listener's connections and calls.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections, calls at once on each, the size of their messages.
    pub calls: CallLimits,
    /// `grpc.keepalive_interval`, `grpc.keepalive_timeout`.
    pub keepalive: (Duration, Duration),
    /// `grpc.max_pending_resets`, `grpc.max_error_resets`.
    pub resets: (usize, usize),
}

impl Bounds {
    /// Those of the configuration.
    pub fn of(config: &Config, notification_bytes: ByteSize) -> Self {
        let message_bytes = config.message_bytes(notification_bytes);
        let calls = CallLimits { connections: config.max_connections, streams: config.max_streams, message_bytes };
        let resets = (config.max_pending_resets as usize, config.max_error_resets as usize);
        Self { calls, keepalive: (config.keepalive_interval.0, config.keepalive_timeout.0), resets }
    }
}

/// Serves one listener until the stop, then lets calls under way finish. Those that do not are cut off.
pub async fn serve<H: Health>(
    bound: Bound,
    access: Access,
    services: Services<H>,
    life: Lifecycle,
) -> Result<(), Infallible> {
    let Services { api, health, tls, clients, limits: bounds } = services;
    let gateway = GatewayServer::new(service::Service(api.clone()));
    let (metrics, tracer) = (api.metrics().clone(), api.tracer().clone());
    let known = (access, Arc::clone(&clients));
    let terms = Terms { tls, clients, metrics: metrics.clone(), bounds: bounds.clone() };
    let guard = ReflectionGuard(api);
    let others = Routes::new(health)
        .add_service(InterceptedService::new(reflection().build_v1().expect(DESCRIPTORS_HOLD), guard.clone()))
        .add_service(InterceptedService::new(reflection().build_v1alpha().expect(DESCRIPTORS_HOLD), guard));
    let front = Front::new(known, (metrics.clone(), tracer), gateway, others);
    let (connections, stop, cut) = (TaskTracker::new(), life.stopping().clone(), CancellationToken::new());
    let accept = async {
        let mut incoming = pin!(listen::incoming(bound, terms, life));
        while let Some(mut connection) = incoming.next().await {
            let (stranger, bounds) = (connection.is_strangers(), *bounds.borrow());
            let front = front.of(connection.take_certified(), bounds.calls.message_bytes);
            let (metrics, stop) = (metrics.clone(), stop.clone());
            let (serving, cut) = (serve_connection((connection, stranger), bounds, front, metrics, stop), cut.clone());
            connections.spawn(async move { cut.run_until_cancelled(serving).await });
        }
    };
    tokio::select! {
        () = accept => {}
        () = stop.cancelled() => {}
    }
    connections.close();
    // A stream that never ends, or a peer that never answers, must not hold the stop up.
    let _ = tokio::time::timeout(limits::GRPC_STOP_GRACE, connections.wait()).await;
    // Nor may it go on beside what is being closed.
    cut.cancel();
    connections.wait().await;
    Ok(())
}

/// Serves one connection; a stranger's to its first call only, if that takes too long. hyper does it without tonic's own
/// layers around each call, which are for what is not used here.
async fn serve_connection(
    (connection, stranger): (Connection, bool),
    bounds: Bounds,
    front: Front,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let (used, heard) = (front.used(), connection.heard());
    let nest = Nest::default();
    let serving = http2::Builder::new(nest.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(bounds.calls.streams)
        .initial_stream_window_size(limits::GRPC_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::GRPC_CONNECTION_WINDOW_BYTES)
        .max_header_list_size(limits::GRPC_HEADER_BYTES_MAX)
        .max_pending_accept_reset_streams(bounds.resets.0)
        .max_local_error_reset_streams(bounds.resets.1)
        .keep_alive_interval(bounds.keepalive.0)
        .keep_alive_timeout(bounds.keepalive.1)
        // gRPC has no use for it.
        .auto_date_header(false)
        .serve_connection(TokioIo::new(connection), front);
    let unused = async {
        if stranger {
            tokio::time::sleep(limits::GRPC_FIRST_CALL_TIMEOUT).await;
        }
        if !stranger || used.get() {
            std::future::pending::<()>().await;
        }
    };
    let full = || metrics.hit(Limit::GrpcStreams);
    let served = async {
        let (mut serving, unused) = (pin!(serving), pin!(unused));
        tokio::select! {
            biased;
            // What a peer does wrong is its own affair; it was told.
            served = serving.as_mut() => {
                if served.is_err_and(|error| is_excess(&error)) {
                    metrics.hit(Limit::GrpcExcess);
                } else if heard.nothing_for(bounds.keepalive.1) {
                    // hyper does not say why it closed one whose peer is still there.
                    metrics.hit(Limit::GrpcKeepalive);
                }
                return;
            }
            () = stop.cancelled() => {
                serving.as_mut().graceful_shutdown();
                let _ = serving.await;
                return;
            }
            () = unused => {}
        }
        // Its place is for those who call. A client that has nothing to ask yet connects again once it has.
        metrics.hit(Limit::GrpcFirstCall);
        serving.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(limits::CLOSE_LINGER, serving).await;
    };
    nest.run(served, bounds.calls.streams as usize, full).await;
}

/// Whether a connection was cut off for what costs much and asks for nothing. hyper keeps the reason to itself, all but its
/// words.
fn is_excess(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.to_string().contains("excessive load") {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Lets callers with any valid token use reflection.
#[derive(Clone)]
struct ReflectionGuard(Api);

impl Interceptor for ReflectionGuard {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let allowed =
            access::call(request.extensions_mut()).and_then(|(caller, _)| self.0.authorise_reflection(&caller));
        allowed.map_err(|error| error.into_status(self.0.metrics()))?;
        Ok(request)
    }
}

/// Why building reflection cannot fail: a test builds it from the same bytes.
const DESCRIPTORS_HOLD: &str = "the descriptors are built with the program";

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // The details of errors, so that callers who learn everything by reflection can read them.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        // The last word on google.rpc.Status is the file that the gateway's imports.
        .register_encoded_file_descriptor_set(DESCRIPTORS)
}

#[cfg(test)]
mod tests {
    #[test]
    fn reflection_builds_from_the_descriptors() {
        assert!(super::reflection().build_v1().is_ok());
        assert!(super::reflection().build_v1alpha().is_ok());
    }
}
