//! Counts the calls that tonic refuses before any handler sees them: messages over their size, messages that do not
//! decode, methods that do not exist.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::Code;
use tower::{Layer, Service};

use crate::metrics::{Failure, Metrics};

/// See the module's documentation.
#[derive(Clone)]
pub struct CountRefused(pub Metrics);

impl<S> Layer<S> for CountRefused {
    type Service = Counting<S>;

    fn layer(&self, inner: S) -> Counting<S> {
        Counting { inner, metrics: self.0.clone() }
    }
}

/// A service whose refusals are counted.
#[derive(Clone)]
pub struct Counting<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, Q, A> Service<Request<Q>> for Counting<S>
where
    S: Service<Request<Q>, Response = Response<A>>,
    S::Future: Send + 'static,
{
    type Response = Response<A>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let metrics = self.metrics.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            let status = answer.headers().get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()));
            // No handler of this house answers with one of these.
            if matches!(status, Some(Code::OutOfRange | Code::Internal | Code::Unimplemented)) {
                metrics.failure(Failure::GrpcRefused);
            }
            Ok(answer)
        })
    }
}
