//! Beginnings and ends of sessions take turns, lest those of thousands at once stand before everybody else.
//!
//! The kernel reports a thousand sockets in one go, and a task for each is put into the runtime's queue. A message that is
//! read costs a few microseconds; a handshake or an end costs tens, and whoever comes behind a thousand of those waits for
//! longer than any promise of latency allows. So a few of them are in the queue at a time, and the others wait outside, where
//! they hold no more than their socket.

use std::{future::Future, pin::pin};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Those in the queue at a time. Enough for every core to have one at hand; so many are half a millisecond on one core.
const AT_ONCE: usize = 16;

/// Who may go on.
#[derive(Debug)]
pub struct Turns(Semaphore);

/// A place in the queue.
pub struct Turn<'a>(Option<SemaphorePermit<'a>>);

impl Default for Turns {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

impl Turns {
    /// Waits for a turn, in the order of asking.
    pub async fn next(&self) -> Turn<'_> {
        // The semaphore is never closed.
        Turn(self.0.acquire().await.ok())
    }
}

impl Turn<'_> {
    /// Does something that may have to wait for others. As soon as it does, the turn is over: a slow peer or the store must
    /// not hold up who could go on.
    pub async fn take<F: Future>(&mut self, does: F) -> F::Output {
        let mut does = pin!(does);
        std::future::poll_fn(|cx| {
            let poll = does.as_mut().poll(cx);
            if poll.is_pending() {
                self.0 = None;
            }
            poll
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[tokio::test]
    async fn a_thousand_at_once_let_others_between_them() {
        const ALL: usize = 1000;
        let (turns, done) = (Arc::new(Turns::default()), Arc::new(AtomicUsize::new(0)));
        for _ in 0..ALL {
            let (turns, done) = (Arc::clone(&turns), Arc::clone(&done));
            tokio::spawn(async move {
                // The kernel's report comes to all of them first, as with sockets.
                tokio::task::yield_now().await;
                let mut turn = turns.next().await;
                turn.take(async {
                    done.fetch_add(1, Ordering::Relaxed);
                })
                .await;
            });
        }
        // The runtime has one thread, and this task takes turns with the others.
        let mut seen = 0;
        while seen < ALL {
            tokio::task::yield_now().await;
            let now = done.load(Ordering::Relaxed);
            assert!(now - seen <= 4 * AT_ONCE, "{} between two looks", now - seen);
            seen = now;
        }
    }

    #[tokio::test]
    async fn who_waits_for_something_holds_nobody_up() {
        let turns = Arc::new(Turns::default());
        for _ in 0..2 * AT_ONCE {
            let turns = Arc::clone(&turns);
            tokio::spawn(async move { turns.next().await.take(std::future::pending::<()>()).await });
        }
        let mine = async {
            let mut turn = turns.next().await;
            turn.take(async {}).await;
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), mine).await.expect("a turn");
    }
}
