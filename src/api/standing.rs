//! Whether somebody may still call: what ends when his token or certificate is not listed any more, or opens less. A call
//! is short, and the next one is refused; a stream that is open ends with it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::{Stream, StreamExt as _, future::BoxFuture};
use tokio::sync::Notify;
use tonic::Status;

/// What a caller is told whose stream is ended.
pub(super) const ENDED: &str = "the token or certificate that this stream was opened with does not open it any more";

/// See the module's documentation. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Standing(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    ended: AtomicBool,
    told: Notify,
}

impl Standing {
    /// Whether it is that very one.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Ends it, for good.
    pub fn end(&self) {
        self.0.ended.store(true, Ordering::Release);
        self.0.told.notify_waiters();
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.0.ended.load(Ordering::Acquire)
    }

    /// Resolves once it has ended.
    pub async fn ended(&self) {
        let told = self.0.told.notified();
        if !self.has_ended() {
            told.await;
        }
    }
}

/// What somebody asks over a stream, for as long as he may.
pub(super) struct While<S> {
    requests: S,
    standing: Standing,
    ended: BoxFuture<'static, ()>,
    over: bool,
}

impl<S> While<S> {
    pub(super) fn new(standing: &Standing, requests: S) -> Self {
        let (standing, waits) = (standing.clone(), standing.clone());
        Self { requests, standing, ended: Box::pin(async move { waits.ended().await }), over: false }
    }
}

impl<T, S: Stream<Item = Result<T, Status>> + Unpin> Stream for While<S> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        if !this.standing.has_ended() {
            let next = this.requests.poll_next_unpin(cx);
            if next.is_ready() || this.ended.as_mut().poll(cx).is_pending() {
                return next;
            }
        }
        this.over = true;
        Poll::Ready(Some(Err(Status::unauthenticated(ENDED))))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::stream;

    use super::*;

    #[tokio::test]
    async fn who_waits_hears_of_the_end_and_who_comes_later_does_too() {
        let standing = Standing::default();
        let waits = standing.clone();
        let waiting = tokio::spawn(async move { waits.ended().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        standing.end();
        waiting.await.unwrap();
        standing.ended().await;
    }

    #[tokio::test]
    async fn a_stream_ends_with_the_standing_whether_it_is_silent_or_never_is() {
        let standing = Standing::default();
        let silent = stream::pending::<Result<u8, Status>>();
        let mut requests = While::new(&standing, silent);
        let over = tokio::spawn(async move { requests.next().await.unwrap().unwrap_err().code() });
        let mut busy = While::new(&standing, stream::repeat_with(|| Ok::<u8, Status>(1)));
        assert_eq!(busy.next().await.unwrap().unwrap(), 1);
        standing.end();
        let over = tokio::time::timeout(Duration::from_secs(20), over).await.unwrap().unwrap();
        assert_eq!(over, tonic::Code::Unauthenticated);
        assert!(busy.next().await.unwrap().is_err() && busy.next().await.is_none());
    }
}
