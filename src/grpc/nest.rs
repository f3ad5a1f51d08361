//! One connection as one task: what speaks HTTP/2 on it and the calls that come over it.
//!
//! A call's answer is handed to the connection, and the connection tells the call that it has taken it. As tasks of their
//! own they would wake each other, and at every other turn an idle worker with them, which costs more than the call. So
//! they are polled in turns by one task, and what is woken during a turn is polled in the next one.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered, task::AtomicWaker};
use hyper::rt::Executor;
use parking_lot::Mutex;

/// Turns until other tasks have theirs.
const TURNS_MAX: usize = 16;

/// Nobody polls, and nobody was woken since.
const IDLE: u8 = 0;
/// The nest is being polled.
const POLLING: u8 = 1;
/// Somebody in it has to be polled.
const WOKEN: u8 = 2;

/// Wakes the nest's task, but not while it is at work anyway.
#[derive(Default)]
struct Bell {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == IDLE {
            self.task.wake();
        }
    }
}

/// Takes in what the connection starts.
#[derive(Clone, Default)]
pub struct Nest(Arc<Mutex<Vec<BoxFuture<'static, ()>>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Nest {
    fn execute(&self, call: F) {
        // One that panics, which the panic hook logs, ends alone; its stream is reset.
        let call = AssertUnwindSafe(call).catch_unwind().map(drop);
        self.0.lock().push(Box::pin(call));
    }
}

impl Nest {
    /// Runs a connection that starts its calls in this nest, until it ends. Calls that are left then go with it.
    pub async fn run<C: Future>(self, connection: C) -> C::Output {
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));
        let mut connection = std::pin::pin!(connection);
        let mut calls = FuturesUnordered::new();
        std::future::poll_fn(|cx| {
            bell.task.register(cx.waker());
            for _ in 0..TURNS_MAX {
                // Whatever was rung for so far is seen in this turn.
                bell.state.swap(POLLING, Ordering::AcqRel);
                if let Poll::Ready(end) = self.turn(connection.as_mut(), &mut calls, &mut Context::from_waker(&waker)) {
                    return Poll::Ready(end);
                }
                let idle = bell.state.compare_exchange(POLLING, IDLE, Ordering::AcqRel, Ordering::Acquire);
                if idle.is_ok() {
                    return Poll::Pending;
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    fn turn<C: Future>(
        &self,
        connection: Pin<&mut C>,
        calls: &mut FuturesUnordered<BoxFuture<'static, ()>>,
        cx: &mut Context<'_>,
    ) -> Poll<C::Output> {
        let end = connection.poll(cx);
        calls.extend(self.0.lock().drain(..));
        if end.is_pending() {
            while let Poll::Ready(Some(())) = calls.poll_next_unpin(cx) {}
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::{mpsc, oneshot};

    use super::*;

    #[tokio::test]
    async fn calls_go_on_side_by_side_and_a_panic_ends_one_alone() {
        let nest = Nest::default();
        let (answers, mut taken) = mpsc::unbounded_channel();
        let (open, opened) = oneshot::channel();
        let begin = nest.clone();
        let connection = async move {
            let slow = answers.clone();
            begin.execute(async move {
                opened.await.unwrap();
                slow.send("slow").unwrap();
            });
            begin.execute(async { panic!("a call that panics") });
            begin.execute(async move {
                answers.send("fast").unwrap();
                tokio::task::yield_now().await;
                open.send(()).unwrap();
            });
            let mut came = Vec::new();
            while let Some(answer) = taken.recv().await {
                came.push(answer);
            }
            came
        };
        assert_eq!(tokio::spawn(nest.run(connection)).await.unwrap(), ["fast", "slow"]);
    }

    #[test]
    fn what_wakes_itself_is_polled_on_and_lets_others_have_their_turn() {
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let task = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&task));
        let mut left = TURNS_MAX + 1;
        let connection = std::future::poll_fn(move |cx| {
            left -= 1;
            if left == 0 {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        let mut nest = std::pin::pin!(Nest::default().run(connection));
        assert!(nest.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(task.0.load(Ordering::Relaxed), 1, "once it has had its turns, and not before");
        assert!(nest.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
    }

    #[test]
    fn a_wake_from_elsewhere_is_not_lost_whenever_it_comes() {
        // Two threads ring while the nest is polled; each ring must be seen by a turn that begins after it.
        const RINGS: usize = 20_000;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async {
            let (ring, mut rung) = mpsc::channel(1);
            let bells = tokio::spawn(async move {
                for _ in 0..RINGS {
                    ring.send(()).await.unwrap();
                }
            });
            let heard = tokio::spawn(Nest::default().run(async move {
                let mut heard = 0;
                while rung.recv().await.is_some() {
                    heard += 1;
                }
                heard
            }));
            bells.await.unwrap();
            assert_eq!(heard.await.unwrap(), RINGS);
        });
    }
}
