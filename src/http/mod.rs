//! The ops listener: `/livez` and `/readyz`, open to whoever reaches it (loopback by default).

pub mod config;

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
pub use config::Config;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::{api::Api, lifecycle::Lifecycle, limits, net};

/// What a listener of this floor answers.
pub type Reply = Response<Full<Bytes>>;

#[derive(Serialize)]
struct Readiness<'a> {
    ready: bool,
    reasons: &'a [String],
}

/// Serves until the stop.
pub async fn serve(listener: TcpListener, api: Api, life: Lifecycle) -> Result<(), Infallible> {
    let room = Arc::new(Semaphore::new(limits::OPS_CONNECTIONS_MAX));
    let accept = async {
        // The semaphore is never closed.
        while let Ok(counted) = Arc::clone(&room).acquire_owned().await {
            let (stream, _) = net::accept_tcp(&listener).await;
            let connection = serve_connection(stream, api.clone(), life.clone());
            life.spawn(async move {
                connection.await;
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

async fn serve_connection(stream: TcpStream, api: Api, life: Lifecycle) {
    let service = service_fn(move |request: Request<Incoming>| {
        let reply = answer(&request, &api);
        async move { Ok::<_, Infallible>(reply) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HANDSHAKE_HEAD_TIMEOUT)
        .max_buf_size(limits::HTTP_HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        () = life.stopping().cancelled() => {}
        // What a peer does wrong here is its own affair; hyper has answered it.
        _ = connection => {}
    }
}

fn answer(request: &Request<Incoming>, api: &Api) -> Reply {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        reply.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
        return reply;
    }
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match api.ready() {
            Ok(()) => json(StatusCode::OK, &Readiness { ready: true, reasons: &[] }),
            Err(reasons) => json(StatusCode::SERVICE_UNAVAILABLE, &Readiness { ready: false, reasons: &reasons }),
        },
        _ => text(StatusCode::NOT_FOUND, "not found; there are /livez and /readyz\n"),
    }
}

fn text(status: StatusCode, body: &'static str) -> Reply {
    reply(status, "text/plain; charset=utf-8", Bytes::from_static(body.as_bytes()))
}

fn json(status: StatusCode, body: &impl Serialize) -> Reply {
    // Structs of booleans and strings always serialise.
    reply(status, "application/json", serde_json::to_vec(body).unwrap_or_default().into())
}

fn reply(status: StatusCode, content_type: &'static str, body: Bytes) -> Reply {
    let mut reply = Response::new(Full::new(body));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    reply
}
