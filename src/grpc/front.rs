//! What every call meets first: who calls and until when is noted, the gateway's own methods go straight to it and the
//! others to a router, and what tonic refuses before any handler sees it is counted (messages over their size, messages
//! that do not decode, methods that do not exist).

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::{task::JoinError, time::Sleep};
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Code, Status,
    body::Body,
    codegen::{BoxFuture, Service as _},
    service::Routes,
};

use super::{
    clients::{Certified, Clients},
    service::Service,
};
use crate::{
    api::{
        ApiError,
        access::{self, Access},
        proto::gateway_server::GatewayServer,
    },
    clock::Instant,
    limits::Limit,
    metrics::{CODES, Failure, Metrics},
    trace::{self, Call, Tracer, Value},
};

/// The gateway's own service.
const SERVICE: &str = "pushgate.v1.Gateway";
/// Where its methods are.
const GATEWAY: &str = "/pushgate.v1.Gateway/";
/// Those that are frequent and soon done, or go on in a task of their own. They run in the connection's task, where nobody
/// has to be woken for them; the gateway's others might hold it up. Health and reflection, which never take long, do not.
const AT_ONCE: [&str; 3] =
    ["/pushgate.v1.Gateway/SendToUser", "/pushgate.v1.Gateway/SendToSession", "/pushgate.v1.Gateway/SendBatch"];

/// The services of one listener, as a connection has them. Cheap to clone.
#[derive(Clone)]
pub struct Front {
    inner: Arc<Inner>,
    /// The gateway's own methods, with the bounds that were in force when the connection came.
    gateway: GatewayServer<Service>,
    /// Who the connection's certificate says calls.
    certified: Option<Arc<Certified>>,
    used: Used,
}

/// Whether a connection has been of use: somebody has called over it who may, or whose call was answered OK.
#[derive(Clone, Default)]
pub struct Used(Arc<AtomicBool>);

impl Used {
    fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it has.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

struct Inner {
    access: Access,
    clients: Arc<Clients>,
    metrics: Metrics,
    tracer: Tracer,
    others: Routes,
}

impl Front {
    /// The gateway's own methods, and others.
    pub fn new(
        (access, clients): (Access, Arc<Clients>),
        (metrics, tracer): (Metrics, Tracer),
        gateway: GatewayServer<Service>,
        others: Routes,
    ) -> Self {
        let inner = Arc::new(Inner { access, clients, metrics, tracer, others: others.prepare() });
        Self { inner, gateway, certified: None, used: Used::default() }
    }

    /// The same for another connection, whose certificate names that caller, with messages of so many bytes at most.
    pub fn of(&self, certified: Option<Certified>, request_bytes: usize) -> Self {
        let gateway = self.gateway.clone().max_decoding_message_size(request_bytes);
        Self { inner: Arc::clone(&self.inner), gateway, certified: certified.map(Arc::new), used: Used::default() }
    }

    /// Whether the connection has been of use.
    pub fn used(&self) -> Used {
        self.used.clone()
    }
}

impl hyper::service::Service<Request<Incoming>> for Front {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, mut request: Request<Incoming>) -> Answer {
        let (Inner { access, clients, metrics, tracer, others }, gateway) = (&*self.inner, &self.gateway);
        let certified = self.certified.as_deref().map(|certified| clients.present(certified));
        let deadline = access.note(&mut request, certified.as_deref());
        // Noted as it begins: it may take longer than a connection has for its first call.
        if access::has_caller(request.extensions()) {
            self.used.note();
        }
        let path = request.uri().path();
        let known = metrics.requests.get();
        let method = known.map(|known| known.method(path.strip_prefix(GATEWAY).unwrap_or_default()));
        let name = method.and_then(|method| known?.name(method));
        let trace = name.and_then(|name| tracer.begin(request.headers(), || format!("{}{name}", &GATEWAY[1..])));
        let (is_own, at_once) = (path.starts_with(GATEWAY), AT_ONCE.contains(&path));
        let work: BoxFuture<_, _> = if is_own {
            let work = gateway.clone().call(request);
            match &trace {
                Some(trace) => Box::pin(trace.within(work)),
                None => work,
            }
        } else {
            Box::pin(others.clone().call(request))
        };
        let work = if is_own && !at_once { Box::pin(apart(AbortOnDropHandle::new(tokio::spawn(work)))) } else { work };
        Answer {
            work,
            deadline,
            over: None,
            metrics: metrics.clone(),
            used: self.used.clone(),
            asked: method.map(|method| (method, Instant::now())),
            trace,
        }
    }
}

/// Waits for a call in a task of its own. A panic in it is one in here.
async fn apart(work: AbortOnDropHandle<Result<Response<Body>, Infallible>>) -> Result<Response<Body>, Infallible> {
    match work.await.map_err(JoinError::try_into_panic) {
        Ok(answer) => answer,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_)) => Ok(Status::unavailable("the node is stopping").into_http()),
    }
}

/// An answer that is being worked on: its head; what a stream has to say follows.
pub struct Answer {
    work: BoxFuture<Response<Body>, Infallible>,
    deadline: Option<Instant>,
    /// The deadline's timer, once the answer turns out to take time.
    over: Option<Pin<Box<Sleep>>>,
    metrics: Metrics,
    used: Used,
    /// Which method was called when, until that is counted.
    asked: Option<(usize, Instant)>,
    /// Its place in a trace, until it is answered; of a stream: until that opens.
    trace: Option<Call>,
}

impl Answer {
    /// Counts the call, once.
    fn count(&mut self, code: Code) {
        if let Some((method, since)) = self.asked.take()
            && let Some(requests) = self.metrics.requests.get()
        {
            requests.answered(method, code as usize, since.elapsed());
            if let Some(trace) = self.trace.take() {
                let name = requests.name(method).unwrap_or_default().to_owned();
                trace.end(|| attributes(name, code), failed(code));
            }
        }
    }
}

/// As the semantic conventions have them ("Semantic conventions for gRPC", 1.26).
fn attributes(method: String, code: Code) -> trace::Attributes {
    vec![
        ("rpc.system", Value::Text("grpc".to_owned())),
        ("rpc.service", Value::Text(SERVICE.to_owned())),
        ("rpc.method", Value::Text(method)),
        ("rpc.grpc.status_code", Value::Number(i64::from(code as i32))),
    ]
}

/// Whether the server is to blame (the same conventions, "Server").
fn failed(code: Code) -> Option<&'static str> {
    let blamed =
        [Code::Unknown, Code::DeadlineExceeded, Code::Unimplemented, Code::Internal, Code::Unavailable, Code::DataLoss];
    blamed.contains(&code).then(|| CODES[code as usize])
}

impl Drop for Answer {
    fn drop(&mut self) {
        // Whoever called has gone, or his connection has.
        self.count(Code::Cancelled);
    }
}

impl Future for Answer {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Poll::Ready(answer) = this.work.as_mut().poll(cx) {
            let answer = answer?;
            let status = answer.headers().get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()));
            // No handler of this house answers with one of these.
            match status {
                Some(Code::OutOfRange) => this.metrics.hit(Limit::GrpcMessageBytes),
                Some(Code::Internal | Code::Unimplemented) => this.metrics.failure(Failure::GrpcRefused),
                None | Some(Code::Ok) => this.used.note(),
                _ => {}
            }
            // Where nothing is said of it before the body, there is one.
            this.count(status.unwrap_or(Code::Ok));
            return Poll::Ready(Ok(answer));
        }
        // Handlers keep the deadline themselves; a request that does not come to its end never reaches one.
        let Some(deadline) = this.deadline else { return Poll::Pending };
        let over = this.over.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        ready!(over.as_mut().poll(cx));
        this.count(Code::DeadlineExceeded);
        Poll::Ready(Ok(ApiError::DeadlineExceeded.into_status(&this.metrics).into_http()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::{client, server::conn::http2, service::service_fn};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use parking_lot::Mutex;
    use tokio::sync::oneshot;

    use super::{super::nest::Nest, *};

    #[tokio::test]
    async fn a_call_apart_is_aborted_when_its_caller_resets_it() {
        let (begin, begun) = oneshot::channel();
        let (held, let_go) = oneshot::channel::<()>();
        let ends = Mutex::new(Some((begin, held)));
        let service = service_fn(move |_: Request<Incoming>| {
            let (begin, held) = ends.lock().take().unwrap();
            apart(AbortOnDropHandle::new(tokio::spawn(async move {
                let _held = held;
                begin.send(()).unwrap();
                std::future::pending().await
            })))
        });
        let (near, far) = tokio::io::duplex(4096);
        let nest = Nest::default();
        let serving = http2::Builder::new(nest.clone()).serve_connection(TokioIo::new(far), service);
        tokio::spawn(nest.run(serving, usize::MAX, || {}));
        let (mut sender, connection) =
            client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(near)).await.unwrap();
        tokio::spawn(connection);
        let mut call = Box::pin(sender.send_request(Request::post("http://gateway/").body(Body::empty()).unwrap()));
        tokio::select! {
            _ = call.as_mut() => panic!("it never ends"),
            begun = begun => begun.unwrap(),
        }
        drop(call);
        // The connection lives on, and the call does not.
        let let_go = tokio::time::timeout(Duration::from_secs(20), let_go).await.expect("it goes on");
        assert!(let_go.is_err() && !sender.is_closed());
    }
}
