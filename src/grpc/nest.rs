//! One connection as one task: what speaks HTTP/2 on it and the calls that come over it.
//!
//! A call's answer is handed to the connection, and the connection tells the call that it has taken it. As tasks of their
//! own they would wake each other, and at every other turn an idle worker with them, which costs more than the call. So
//! they are polled in turns by one task, and what is woken during a turn is polled in the next one.
//!
//! So all of a connection's calls share one core, and what they do at once is bounded, lest other tasks of that worker wait
//! for a burst of them.

use std::{
    collections::VecDeque,
    future::Future,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
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
/// Calls that are begun, and calls that are ended, until then. One may write to a user's sessions as it begins.
const CALLS_MAX: usize = 32;

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
pub struct Nest(Arc<Mutex<VecDeque<BoxFuture<'static, ()>>>>);

/// How many calls may still be begun, and ended, before other tasks have their turn.
struct Share {
    begun: usize,
    ended: usize,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Nest {
    fn execute(&self, call: F) {
        // One that panics, which the panic hook logs, ends alone; its stream is reset.
        let call = AssertUnwindSafe(call).catch_unwind().map(drop);
        self.0.lock().push_back(Box::pin(call));
    }
}

/// Lets go of the calls that were never begun: each of them holds the nest that holds it.
struct Emptied<'a>(&'a Nest);

impl Drop for Emptied<'_> {
    fn drop(&mut self) {
        let left = std::mem::take(&mut *self.0.0.lock());
        drop(left);
    }
}

impl Nest {
    /// Runs a connection that starts its calls in this nest, until it ends. Calls that are left then go with it. `full` hears
    /// of each time that so many calls are there.
    pub async fn run<C: Future>(self, connection: C, most: usize, full: impl Fn()) -> C::Output {
        let _emptied = Emptied(&self);
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));
        let mut connection = pin!(connection);
        let mut calls = FuturesUnordered::new();
        let mut was_full = false;
        let mut there_are = |calls| {
            let is_full = calls >= most;
            if is_full && !was_full {
                full();
            }
            was_full = is_full;
        };
        std::future::poll_fn(|cx| {
            bell.task.register(cx.waker());
            let mut share = Share { begun: CALLS_MAX, ended: CALLS_MAX };
            for _ in 0..TURNS_MAX {
                // Whatever was rung for so far is seen in this turn.
                bell.state.swap(POLLING, Ordering::AcqRel);
                let cx = &mut Context::from_waker(&waker);
                if let Poll::Ready(end) = self.turn(connection.as_mut(), &mut calls, &mut share, &mut there_are, cx) {
                    return Poll::Ready(end);
                }
                if share.begun == 0 || share.ended == 0 {
                    break;
                }
                let idle = bell.state.compare_exchange(POLLING, IDLE, Ordering::AcqRel, Ordering::Acquire);
                if idle.is_ok() {
                    return Poll::Pending;
                }
            }
            // Behind all others, sockets that became ready among them; it wakes this task even though it is dropped here.
            let _ = pin!(tokio::task::yield_now()).poll(cx);
            Poll::Pending
        })
        .await
    }

    /// Polls all once, as far as the share goes. Where nothing of it is left there may be more to do.
    fn turn<C: Future>(
        &self,
        connection: Pin<&mut C>,
        calls: &mut FuturesUnordered<BoxFuture<'static, ()>>,
        share: &mut Share,
        there_are: &mut impl FnMut(usize),
        cx: &mut Context<'_>,
    ) -> Poll<C::Output> {
        let end = connection.poll(cx);
        if end.is_ready() {
            return end;
        }
        let mut waiting = self.0.lock();
        let begun = waiting.len().min(share.begun);
        calls.extend(waiting.drain(..begun));
        there_are(calls.len() + waiting.len());
        drop(waiting);
        share.begun -= begun;
        while share.ended > 0
            && let Poll::Ready(Some(())) = calls.poll_next_unpin(cx)
        {
            share.ended -= 1;
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::{mpsc, oneshot, watch};

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
        assert_eq!(tokio::spawn(nest.run(connection, usize::MAX, || {})).await.unwrap(), ["fast", "slow"]);
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
        let mut nest = std::pin::pin!(Nest::default().run(connection, usize::MAX, || {}));
        assert!(nest.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(task.0.load(Ordering::Relaxed), 1, "once it has had its turns, and not before");
        assert!(nest.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
    }

    #[tokio::test]
    async fn a_burst_of_calls_lets_others_have_their_turn_as_it_begins_and_as_it_ends() {
        const CALLS: usize = 1000;
        let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (open, gate) = watch::channel(false);
        let nest = Nest::default();
        for _ in 0..CALLS {
            let (begun, ended, mut gate) = (Arc::clone(&begun), Arc::clone(&ended), gate.clone());
            nest.execute(async move {
                begun.fetch_add(1, Ordering::Relaxed);
                gate.wait_for(|open| *open).await.unwrap();
                ended.fetch_add(1, Ordering::Relaxed);
            });
        }
        let (close, closed) = oneshot::channel();
        // The runtime has one thread, and these two tasks take turns on it.
        let connection = tokio::spawn(nest.run(closed, usize::MAX, || {}));
        let other = tokio::spawn(async move {
            for (count, opens) in [(begun, false), (ended, true)] {
                open.send_replace(opens);
                let mut seen = 0;
                while seen < CALLS {
                    tokio::task::yield_now().await;
                    let now = count.load(Ordering::Relaxed);
                    // Who yields last is first in the next round, so two shares may follow each other.
                    assert!(now - seen <= 2 * CALLS_MAX, "{} at once", now - seen);
                    seen = now;
                }
            }
        });
        other.await.unwrap();
        close.send(()).unwrap();
        connection.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn calls_that_were_never_begun_go_with_the_connection() {
        let nest = Nest::default();
        let held = Arc::new(());
        let begin = nest.clone();
        let calls = Arc::clone(&held);
        let connection = async move {
            for _ in 0..3 * CALLS_MAX {
                let (nest, held) = (begin.clone(), Arc::clone(&calls));
                begin.execute(async move {
                    let _held = (nest, held);
                    std::future::pending::<()>().await;
                });
            }
            drop(calls);
            tokio::task::yield_now().await;
        };
        nest.run(connection, usize::MAX, || {}).await;
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[test]
    fn a_wake_from_elsewhere_is_not_lost_whenever_it_comes() {
        // Another thread rings for the connection and for a call while the nest is polled; each ring must be seen by a turn
        // that begins after it.
        const RINGS: usize = 20_000;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async {
            let ((ring, rung), (ring_call, rung_call)) = (mpsc::channel(1), mpsc::channel(1));
            let bells = tokio::spawn(async move {
                for n in 0..RINGS {
                    let ring = if n % 2 == 0 { &ring } else { &ring_call };
                    ring.send(()).await.unwrap();
                }
            });
            async fn hear(mut rung: mpsc::Receiver<()>) -> usize {
                let mut heard = 0;
                while rung.recv().await.is_some() {
                    heard += 1;
                }
                heard
            }
            let nest = Nest::default();
            let (tell, told) = oneshot::channel();
            nest.execute(async move { tell.send(hear(rung_call).await).unwrap() });
            let heard =
                tokio::spawn(nest.run(async move { hear(rung).await + told.await.unwrap() }, usize::MAX, || {}));
            bells.await.unwrap();
            assert_eq!(heard.await.unwrap(), RINGS);
        });
    }
}
