//! Beginnings and ends of sessions take turns, lest those of thousands at once stand before everybody else.
//!
//! The kernel reports a thousand sockets in one go, and a task for each is put into the runtime's queue. A message that is
//! read costs a few microseconds; a handshake or an end costs tens, and whoever comes behind a thousand of those waits for
//! longer than any promise of latency allows. So each goes to the end of the queue once it has its turn, and a few of them
//! are there at a time; the others wait outside, where they hold no more than their socket.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use tokio::sync::Semaphore;

/// Those in the queue at a time: so many are a millisecond on one core.
const AT_ONCE: usize = 32;
/// The same for each core, where there are many.
const AT_ONCE_PER_CORE: usize = 4;

/// Lets all who are in the runtime's queue go first. tokio's own `yield_now` has the worker ask the kernel for news before,
/// which for a turn of tens of microseconds is dear.
async fn to_the_end_of_the_queue() {
    let mut woken = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut woken, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Who may go on.
#[derive(Debug)]
pub struct Turns(Semaphore);

impl Default for Turns {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self(Semaphore::new(AT_ONCE.max(cores * AT_ONCE_PER_CORE)))
    }
}

impl Turns {
    /// Does something in turns, in the order of asking. Where it has to wait its turn is over, and another one is needed to
    /// go on: a slow peer or the store holds nobody up who could.
    pub async fn take<F: Future>(&self, does: F) -> F::Output {
        let mut does = pin!(does);
        loop {
            // The semaphore is never closed. Its place is held in the queue, too: a turn that begins where it is asked for
            // would never find another one taken.
            let turn = self.0.acquire().await;
            to_the_end_of_the_queue().await;
            if let Poll::Ready(done) = poll_fn(|cx| Poll::Ready(does.as_mut().poll(cx))).await {
                return done;
            }
            drop(turn);
            // What it waits for wakes this task.
            let mut woken = false;
            poll_fn(|_| if std::mem::replace(&mut woken, true) { Poll::Ready(()) } else { Poll::Pending }).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::sync::watch;

    use super::*;

    #[tokio::test]
    async fn who_comes_behind_thousands_does_not_wait_for_all_of_them() {
        const ALL: usize = 4000;
        let (turns, done) = (Arc::new(Turns::default()), Arc::new(AtomicUsize::new(0)));
        let (report, reported) = watch::channel(false);
        let each = || {
            let (turns, done, mut reported) = (Arc::clone(&turns), Arc::clone(&done), reported.clone());
            async move {
                reported.wait_for(|is| *is).await.unwrap();
                turns.take(async { done.fetch_add(1, Ordering::Relaxed) }).await;
            }
        };
        let all: Vec<_> = (0..ALL).map(|_| tokio::spawn(each())).collect();
        // All of them wait for the report before it comes.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        let behind = {
            let done = Arc::clone(&done);
            async move {
                tokio::task::yield_now().await;
                done.load(Ordering::Relaxed)
            }
        };
        report.send_replace(true);
        let before = tokio::spawn(behind).await.unwrap();
        assert!(before <= ALL / 8, "{before} before one that came behind them");
        for one in all {
            one.await.unwrap();
        }
        assert_eq!(done.load(Ordering::Relaxed), ALL);
    }

    #[tokio::test]
    async fn who_waits_for_something_holds_nobody_up() {
        let turns = Arc::new(Turns::default());
        let (open, opened) = watch::channel(false);
        let places = turns.0.available_permits();
        let waiting: Vec<_> = (0..2 * places)
            .map(|_| {
                let (turns, mut opened) = (Arc::clone(&turns), opened.clone());
                tokio::spawn(async move { turns.take(async { opened.wait_for(|is| *is).await.is_ok() }).await })
            })
            .collect();
        for _ in 0..4 * places {
            tokio::task::yield_now().await;
        }
        let mine = turns.take(async {});
        tokio::time::timeout(std::time::Duration::from_secs(20), mine).await.expect("a turn");
        open.send_replace(true);
        for one in waiting {
            assert!(one.await.unwrap());
        }
        assert_eq!(turns.0.available_permits(), places);
    }
}
