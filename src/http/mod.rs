//! The ops listener: `/livez`, `/readyz` and `/metrics`, open to whoever reaches it (loopback by default), and the JSON twin
//! of the admin API for callers who do not speak gRPC. What a call does is the `api` floor's.
//!
//! * `calls.rs`: the calls, from their path to their answer; `guard.rs`: whose requests are none; `body.rs`: what a request
//!   brings; `reply.rs`: what is answered, errors in the shape of `google.rpc.Status`.
//! * `exposition.rs`: `/metrics`.

mod body;
mod calls;
pub mod config;
mod exposition;
mod guard;
mod reply;

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

pub use config::Config;
use http::{HeaderValue, Method, Request, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::Instant,
};
use tonic::Code;

use self::{
    calls::Calls,
    exposition::Exposition,
    reply::{Refusal, Reply},
};
use crate::{
    api::{Api, access::Access},
    lifecycle::Lifecycle,
    limits::{self, Limit},
    metrics::Failure,
    net::{
        self,
        tls::{HandshakeError, Tls},
    },
};

/// What one listener serves.
pub struct Services {
    /// The admin API.
    pub api: Api,
    /// Who may call; `None`: nobody, because others than this machine reach the listener, and there is no TLS.
    pub access: Option<Access>,
    /// TLS, where it is spoken.
    pub tls: Option<Tls>,
}

/// What stands at a path.
enum Place {
    Livez,
    Readyz,
    Metrics,
}

struct Ops {
    api: Api,
    calls: Calls,
    exposition: Exposition,
}

#[derive(Serialize)]
struct Readiness<'a> {
    ready: bool,
    reasons: &'a [String],
}

/// Serves until the stop, then lets calls under way finish. Those that do not are cut off.
pub async fn serve(listener: TcpListener, services: Services, life: Lifecycle) -> Result<(), Infallible> {
    let Services { api, access, tls } = services;
    let calls = Calls::new(api.clone(), access);
    let ops = Arc::new(Ops { exposition: Exposition::new(api.clone()), calls, api });
    let room = Arc::new(Semaphore::new(limits::OPS_CONNECTIONS_MAX));
    let beat = life.beat("the ops listener");
    let accept = async {
        loop {
            let (stream, peer) = beat.during(net::accept_tcp(&listener)).await;
            let counted = match Arc::clone(&room).try_acquire_owned() {
                Ok(counted) => counted,
                // One is here and waits for a place; those behind it wait to be accepted.
                Err(_) => {
                    ops.api.metrics().hit(Limit::OpsConnections);
                    // The semaphore is never closed.
                    let Ok(counted) = beat.during(Arc::clone(&room).acquire_owned()).await else { return };
                    counted
                }
            };
            let (ops, tls, connection_life) = (Arc::clone(&ops), tls.clone(), life.clone());
            life.spawn(async move {
                secure_and_serve(stream, peer, tls, ops, connection_life).await;
                drop(counted);
            });
        }
    };
    tokio::select! {
        () = life.stopping().cancelled() => {}
        () = accept => {}
    }
    Ok(())
}

/// Shakes hands where TLS is spoken, and serves.
async fn secure_and_serve(stream: TcpStream, peer: SocketAddr, tls: Option<Tls>, ops: Arc<Ops>, life: Lifecycle) {
    let Some(tls) = tls else { return serve_connection(stream, ops, life).await };
    let until = Instant::now() + limits::HANDSHAKE_HEAD_TIMEOUT;
    let shaken = tokio::select! {
        () = life.stopping().cancelled() => return,
        shaken = tls.accept(stream, peer, until) => shaken,
    };
    match shaken {
        Ok(secured) => serve_connection(secured, ops, life).await,
        Err(HandshakeError::Silent) => {}
        Err(error) => ops.api.metrics().handshake_failed(error.limit()),
    }
}

async fn serve_connection<L: AsyncRead + AsyncWrite + Unpin>(stream: L, ops: Arc<Ops>, life: Lifecycle) {
    let asked = AtomicBool::new(false);
    let service = service_fn(|request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        let ops = Arc::clone(&ops);
        async move { Ok::<_, Infallible>(ops.answer(request).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits::HANDSHAKE_HEAD_TIMEOUT)
            .max_buf_size(limits::HTTP_HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        ended = connection.as_mut() => {
            // Hyper has answered what it could not read. Who has asked and is silent then only keeps his connection.
            if ended.is_err_and(|error| error.is_parse() || (error.is_timeout() && !asked.load(Ordering::Relaxed))) {
                ops.api.metrics().failure(Failure::HttpRefused);
            }
            return;
        }
        () = life.stopping().cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = tokio::time::timeout(limits::GRPC_STOP_GRACE, connection).await;
}

impl Ops {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        let place = match request.uri().path() {
            "/livez" => Place::Livez,
            "/readyz" => Place::Readyz,
            "/metrics" => Place::Metrics,
            _ => return self.calls.answer(request).await,
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Refusal::method("GET, HEAD").reply(self.api.metrics());
        }
        match place {
            Place::Livez => reply::text(StatusCode::OK, "text/plain; charset=utf-8", "ok\n"),
            Place::Readyz => match self.api.ready() {
                Ok(()) => reply::json(StatusCode::OK, &Readiness { ready: true, reasons: &[] }),
                Err(reasons) => {
                    reply::json(StatusCode::SERVICE_UNAVAILABLE, &Readiness { ready: false, reasons: &reasons })
                }
            },
            Place::Metrics => self.metrics(exposition::Format::accepted(request.headers())).await,
        }
    }

    async fn metrics(&self, format: exposition::Format) -> Reply {
        let Some(text) = self.exposition.text(format).await else {
            let message = "the metrics cannot be written down";
            return Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, Code::Internal, "METRICS_FAILED", message)
                .reply(self.api.metrics());
        };
        let mut reply = reply::text(StatusCode::OK, format.content_type(), text);
        reply.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
        reply
    }
}
