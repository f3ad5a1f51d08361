//! A session's connection: one loop, then the close.
//!
//! The loop waits for one of: the session is being closed, a page from the store is there, the kernel takes bytes
//! again, something arrived. Writing is whoever's who has something to say (see the outbox); this task only goes on
//! where the kernel stopped.

use std::{
    future::poll_fn,
    io,
    ops::ControlFlow,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
};

use hyper::upgrade::{Parts, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{
    Context, OpenSocket,
    opening::{self, First, Opened},
    quiet,
    socket::{self, Socket},
    upgrade::Connected,
};
use crate::{
    hub::{Closing, Handle, PageRequest, Peer, Pull, Wire as _},
    limits,
    metrics::Failure,
    net::tls::Secured,
    protocol::{
        close::CloseCode,
        frame::{FrameReader, Incoming},
    },
    session::{Opening, Verdict},
    store::{Page, StoreError},
    types::ClosedBy,
};

/// Reads of one connection before others have their turn.
const READS_MAX: usize = 4;
/// What compressed messages of one connection may come to before others have their turn: one read may hold a thousand times
/// as much.
const INFLATED_BYTES_MAX: usize = 256 * 1024;

/// Lets the peer of a finished handshake in. `None`: he was told why not, or is gone.
pub async fn open(
    upgraded: Upgraded,
    opening: Opening,
    peer: Peer,
    counted: (OpenSocket, Connected),
    context: Arc<Context>,
) -> Option<Box<Connection>> {
    let taken = match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(Parts { io, read_buf, .. }) => Ok((Socket::new(io.into_inner()), read_buf)),
        Err(upgraded) => upgraded
            .downcast::<TokioIo<Secured>>()
            .map(|Parts { io, read_buf, .. }| (Socket::secured(io.into_inner()), read_buf)),
    };
    let Ok((socket, read_buf)) = taken else {
        // The listener makes exactly these types.
        tracing::error!("an upgraded connection is neither a TCP stream nor TLS over one");
        return None;
    };
    let socket = Arc::new(socket);
    // Copied: what hyper read into is 8 KiB, and mostly nothing is in it.
    let early = read_buf.to_vec();
    drop(read_buf);
    let Opened { handle, reader, said, early } = opening::open(&socket, opening, early, &peer, &context).await?;
    let connection =
        Connection { context, socket, handle, reader, unread: early, pull: None, paused_at: None, _counted: counted };
    if let Some(said) = said {
        connection.take_first(&said);
    }
    Some(Box::new(connection))
}

type PageRead = Pin<Box<dyn Future<Output = (PageRequest, Result<Page, StoreError>)> + Send>>;

/// A session's connection. Boxed, since a task that moves it from one step to the next would have room for it twice; and
/// what is only needed now and then is in a box of its own.
pub struct Connection {
    context: Arc<Context>,
    socket: Arc<Socket>,
    handle: Arc<Handle>,
    reader: FrameReader,
    /// What was read and not looked at yet: what came behind the handshake, or behind the last message of a turn.
    unread: Vec<u8>,
    /// The page that is being read.
    pull: Option<PageRead>,
    /// The last page did not fit into the window with so many in flight: nothing is pulled before there are fewer.
    paused_at: Option<usize>,
    /// Its places among the open sockets and the connections.
    _counted: (OpenSocket, Connected),
}

/// Whether a connection has had what it may have before others.
#[derive(PartialEq, Eq)]
enum Turn {
    Done,
    Over,
}

/// Why the loop goes on.
enum Woken {
    Closing,
    Page(PageRequest, Result<Page, StoreError>),
    Writable,
    Readable,
}

/// Takes the session out of the hub and says how it went, however its task ends.
struct Attached(Arc<Context>, Arc<Handle>);

/// What is logged as reason: the gateway's or the caller's. A client's is whatever he likes.
fn own_reason(closing: &Closing) -> &str {
    if closing.by == ClosedBy::Client && !closing.broken { "" } else { &closing.reason }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let (hub, handle) = (&self.0.hub, &self.1);
        if std::thread::panicking() {
            hub.metrics().failure(Failure::Panic);
        }
        let ended = hub.detach(handle);
        if quiet::is_cheap(&ended, hub.is_guest(&handle.user.id)) && !self.0.ended.admits() {
            return;
        }
        tracing::info!(
            session = %handle.id,
            user = %handle.user.id,
            device = %handle.device,
            remote = %handle.peer.remote,
            code = ended.closing.code.0,
            reason = own_reason(&ended.closing),
            closed_by = ended.closing.by.as_str(),
            duration_ms = u64::try_from(ended.duration.as_millis()).unwrap_or(u64::MAX),
            messages_received = ended.counts.messages_received,
            bytes_received = ended.counts.bytes_received,
            messages_sent = ended.counts.messages_sent,
            bytes_sent = ended.counts.bytes_sent,
            unconfirmed = ended.unconfirmed,
            "session ended"
        );
    }
}

impl Connection {
    /// What came before it was a session.
    fn take_first(&self, said: &First) {
        let hub = &self.context.hub;
        let (incoming, bytes) = match said {
            First::Text(text) => (Incoming::Text(text), text.len()),
            First::Binary(bytes) => (Incoming::Binary(bytes), bytes.len()),
            First::Close(_) => return,
        };
        hub.received(&self.handle, bytes);
        hub.incoming(&self.handle, incoming);
        self.handle.flush();
    }

    /// To its end.
    pub async fn run(&mut self) {
        let attached = Attached(Arc::clone(&self.context), Arc::clone(&self.handle));
        self.reader.set_max_message_bytes(self.context.hub.limits().message_bytes.as_usize());
        if !self.unread.is_empty() {
            self.context.hub.received(&self.handle, self.unread.len());
        }
        self.serve().await;
        // Not through `self`, which is borrowed for writing below.
        let context = Arc::clone(&self.context);
        let end = async {
            self.write_close().await;
            drop(attached);
        };
        Box::pin(context.turns.take(end)).await;
        Box::pin(socket::linger(&self.socket)).await;
    }

    async fn serve(&mut self) {
        loop {
            match poll_fn(|cx| self.poll_next(cx)).await {
                Woken::Closing => return,
                Woken::Page(request, Ok(page)) => {
                    let progress = self.context.hub.finish_pull(&self.handle, &request, page);
                    self.paused_at = (!progress).then(|| self.handle.core().session.delivery.unconfirmed());
                }
                // Asked for again once the store works.
                Woken::Page(_, Err(StoreError::Recovering(_))) => {}
                Woken::Page(_, Err(_)) => self.handle.close_by_rule(Verdict {
                    code: CloseCode::INTERNAL,
                    reason: "internal error",
                    counts: None,
                }),
                Woken::Writable => {
                    // An error shows in the read that follows.
                    let _ = self.socket.finish();
                    self.handle.resume();
                }
                Woken::Readable => {
                    // A client that sends without end would keep this thread to itself, and others from what they sent.
                    if self.read() == Turn::Over {
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
    }

    /// The order is the policy: a close goes before everything, what waits to be written before what arrives.
    fn poll_next(&mut self, cx: &mut TaskContext<'_>) -> Poll<Woken> {
        // Registered before anything is looked at, so that no wake-up falls between the look and the wait.
        self.handle.register_task(cx.waker());
        let (closing, stalled, unconfirmed) = {
            let core = self.handle.core();
            let unconfirmed = core.session.delivery.unconfirmed();
            (core.closing.is_some(), core.outbox.stalled_since().is_some(), unconfirmed)
        };
        if closing {
            return Poll::Ready(Woken::Closing);
        }
        self.paused_at = self.paused_at.filter(|paused| unconfirmed > 0 && unconfirmed >= *paused);
        if self.pull.is_none()
            && self.paused_at.is_none()
            && self.handle.is_behind()
            && let Pull::Read(request) = self.context.hub.plan_pull(&self.handle)
        {
            let hub = self.context.hub.clone();
            self.pull = Some(Box::pin(async move {
                let page = hub.read_page(&request).await;
                (request, page)
            }));
        }
        if let Some(pull) = &mut self.pull
            && let Poll::Ready((request, page)) = pull.as_mut().poll(cx)
        {
            self.pull = None;
            return Poll::Ready(Woken::Page(request, page));
        }
        // An error shows in the write or read that follows.
        if (stalled || self.socket.holds_back()) && self.socket.poll_writable(cx).is_ready() {
            return Poll::Ready(Woken::Writable);
        }
        if !self.unread.is_empty() {
            return Poll::Ready(Woken::Readable);
        }
        self.socket.poll_readable(cx).map(|_| Woken::Readable)
    }

    fn read(&mut self) -> Turn {
        let turn = match std::mem::take(&mut self.unread) {
            unread if unread.is_empty() => socket::with_buffer(|buffer| self.read_into(buffer)),
            mut unread => {
                let _ = self.feed(&mut unread);
                Turn::Over
            }
        };
        self.handle.flush();
        turn
    }

    fn read_into(&mut self, buffer: &mut [u8]) -> Turn {
        for _ in 0..READS_MAX {
            match self.socket.try_read(buffer) {
                Ok(0) => {
                    self.handle.broke();
                    return Turn::Done;
                }
                Ok(count) => {
                    self.context.hub.received(&self.handle, count);
                    if self.feed(&mut buffer[..count]).is_break() || !self.unread.is_empty() {
                        return Turn::Over;
                    }
                    if count < buffer.len() {
                        return Turn::Done;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Turn::Done,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.handle.broke();
                    return Turn::Done;
                }
            }
        }
        Turn::Over
    }

    /// Hands over what was received; keeps what is beyond a turn.
    fn feed(&mut self, mut input: &mut [u8]) -> ControlFlow<()> {
        let (hub, handle) = (&self.context.hub, &self.handle);
        let mut inflated = 0;
        loop {
            let fed = self.reader.feed_some(input, &mut |incoming| {
                hub.incoming(handle, incoming);
                if handle.core().closing.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            let fed = match fed {
                Ok(fed) => fed,
                Err(error) => {
                    // Answers to what came before go out, however it was cut: a close drops what was not started.
                    handle.flush();
                    handle.close_for_failure(error.close_code(), &error.to_string(), opening::counts_of(&error));
                    return ControlFlow::Break(());
                }
            };
            if fed.inflated > 0 {
                hub.inflated(handle, fed.inflated);
                inflated += fed.inflated;
            }
            if fed.flow.is_break() || fed.left == 0 {
                return fed.flow;
            }
            let used = input.len() - fed.left;
            input = &mut input[used..];
            if inflated >= INFLATED_BYTES_MAX {
                self.unread = input.to_vec();
                return ControlFlow::Continue(());
            }
        }
    }

    /// Sees the started frame and the close frame out.
    async fn write_close(&mut self) {
        let written = poll_fn(|cx| {
            loop {
                self.handle.register_task(cx.waker());
                let (done, stalled) = {
                    let core = self.handle.core();
                    let broken = core.closing.as_ref().is_some_and(|closing| closing.broken);
                    (broken || core.outbox.is_empty(), core.outbox.stalled_since().is_some())
                };
                if done {
                    return Poll::Ready(());
                }
                if !stalled {
                    self.handle.flush();
                    let core = self.handle.core();
                    if core.outbox.stalled_since().is_none() && !core.outbox.is_empty() {
                        // Someone else is writing; he wakes this task when he is done.
                        return Poll::Pending;
                    }
                    continue;
                }
                match self.socket.poll_writable(cx) {
                    Poll::Ready(_) => self.handle.resume(),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        let _ = tokio::time::timeout(limits::CLOSE_LINGER, written).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of each session there is one, for as long as it lives.
    #[test]
    fn a_connection_stays_small() {
        let bytes = size_of::<Connection>();
        assert!(bytes <= 160, "{bytes} bytes; put what is needed now and then into a box");
    }
}
