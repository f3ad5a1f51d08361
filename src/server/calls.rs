//! The runtime of the calls: gRPC has threads of its own.
//!
//! On the sessions' workers a call waits behind whatever is in their queue: two thousand clients who come back at once are
//! thirty milliseconds of turns, each of them short, and the call's first turn comes after the last of them. With threads
//! of its own it competes for the cores as one thread against another, which the system's scheduler settles in favour of
//! who has slept. What a call has written for a session it writes itself, so nothing of a delivery is handed over.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// The runtime, for as long as this lives. What is left on it then is let go of, not waited for.
pub struct Calls(Option<Runtime>);

impl Calls {
    /// Starts its threads, as many as there are cores.
    pub fn start() -> io::Result<Self> {
        Builder::new_multi_thread()
            .thread_name("pushgate-calls")
            .enable_all()
            .build()
            .map(|runtime| Self(Some(runtime)))
    }

    /// Where its tasks are started.
    pub fn handle(&self) -> Handle {
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }

    /// Does something as one of its tasks would: what is bound is watched by this runtime.
    pub fn within<T>(&self, does: impl FnOnce() -> T) -> T {
        let runtime = self.handle();
        let _entered = runtime.enter();
        does()
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        // Dropped where tasks run, a runtime must not wait for its own.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_does_not_wait_for_the_sessions_workers() {
        let calls = Calls::start().unwrap();
        let (answer, answered) = std::sync::mpsc::channel();
        calls.handle().spawn(async move { answer.send(()).unwrap() });
        // This runtime's only worker is here, and does nothing else meanwhile.
        answered.recv_timeout(std::time::Duration::from_secs(30)).unwrap();
        drop(calls);
    }
}
