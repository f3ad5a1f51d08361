//! The runtime of the calls: gRPC has threads of its own.
//!
//! On the sessions' workers a call waits behind whatever is in their queue: two thousand clients who come back at once are
//! thirty milliseconds of turns, each of them short, and the call's first turn comes after the last of them. With threads
//! of its own it competes for the cores as one thread against another, which the system's scheduler settles in favour of
//! who has slept. What a call has written for a session it writes itself, so nothing of a delivery is handed over.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// Where calls run, for as long as this lives. What is left on threads of their own then is let go of, not waited for.
pub struct Calls {
    handle: Handle,
    own: Option<Runtime>,
}

impl Calls {
    /// On threads of their own, as many as a runtime has by default: one a core.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn apart() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().thread_name("pushgate-calls").enable_all().build()?;
        Ok(Self { handle: runtime.handle().clone(), own: Some(runtime) })
    }

    /// Beside the sessions, on the runtime that this is called on.
    pub fn beside() -> Self {
        Self { handle: Handle::current(), own: None }
    }

    /// Where their tasks are started.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Does something as one of their tasks would: what is bound is watched by their runtime.
    pub fn within<T>(&self, does: impl FnOnce() -> T) -> T {
        let _entered = self.handle.enter();
        does()
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        // Dropped where tasks run, a runtime must not wait for its own.
        if let Some(runtime) = self.own.take() {
            runtime.shutdown_background();
        }
    }
}
