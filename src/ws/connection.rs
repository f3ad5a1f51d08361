//! A connection's life: the first message where the handshake brought no token, then one loop, then the close.
//!
//! The loop waits for one of: the session is being closed, a page from the store is there, the kernel takes bytes
//! again, something arrived. Writing is whoever's who has something to say (see the outbox); this task only goes on
//! where the kernel stopped.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    net::Shutdown,
    ops::ControlFlow,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
};

use hyper::upgrade::{Parts, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Context, socket::Socket};
use crate::{
    hub::{AttachError, Handle, Hub, PageRequest, Peer, Pull, Wire as _},
    limits,
    metrics::Failure,
    protocol::{
        auth_code::AuthCode,
        close::CloseCode,
        frame::{ControlFrame, FrameReader, Incoming, ReadError},
        server,
    },
    session::{Granted, Opening, Refused, Unauthenticated, Verdict},
    store::{Page, StoreError},
    types::ClosedBy,
};

/// What a worker reads at once.
const READ_BYTES: usize = 64 * 1024;
/// Reads of one connection before others have their turn.
const READS_MAX: usize = 4;

thread_local! {
    /// One read buffer a worker thread: a connection keeps only what is unfinished.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// Runs a connection from the finished handshake to its end.
pub async fn run(upgraded: Upgraded, opening: Opening, peer: Peer, context: &Context) {
    let Ok(Parts { io, read_buf, .. }) = upgraded.downcast::<TokioIo<TcpStream>>() else {
        // The listener makes exactly this type.
        tracing::error!("an upgraded connection is not a TCP stream");
        return;
    };
    let socket = Socket::new(io.into_inner());
    let mut opener = Opener {
        socket: &socket,
        reader: FrameReader::new(limits::UNAUTHENTICATED_MESSAGE_BYTES_MAX),
        early: read_buf.to_vec(),
        later: Vec::new(),
    };
    let authenticator = Arc::clone(context.hub.authenticator());
    let granted = match opening.authenticate(authenticator) {
        Ok(granted) => Ok(granted),
        Err(Err(refused)) => Err(End::Refused(refused)),
        Err(Ok(unauthenticated)) => {
            let first = opener.first_message(unauthenticated);
            tokio::select! {
                () = context.accepting.cancelled() => Err(End::Close(CloseCode::RESTART, "restarting".to_owned())),
                first = tokio::time::timeout(context.auth_timeout, first) => first.unwrap_or_else(|_| {
                    Err(End::Refused(Refused::new(AuthCode::AuthTimeout, "no `auth` message came in time")))
                }),
            }
        }
    };
    let Opener { reader, early, later, .. } = opener;
    let attached = match granted {
        Ok(granted) => attach(granted, &peer, &socket, context).await,
        Err(end) => Err(end),
    };
    match attached {
        Ok(handle) => {
            Connection { hub: &context.hub, socket: &socket, handle, reader, pull: None, paused: false }
                .run(early, later)
                .await
        }
        Err(end) => turn_away(&socket, end, &peer, context).await,
    }
}

/// How a connection ends before it is a session.
enum End {
    Refused(Refused),
    Close(CloseCode, String),
    Violation(ReadError),
    Gone,
}

async fn attach(granted: Granted, peer: &Peer, socket: &Socket, context: &Context) -> Result<Arc<Handle>, End> {
    let (user, reply_to) = (granted.identity.user().clone(), granted.reply_to.clone());
    context.hub.attach(granted, peer.clone(), Box::new(socket.clone())).await.map_err(|error| match error {
        AttachError::DeviceLimit => End::Refused(Refused {
            code: AuthCode::DeviceLimit,
            message: error.to_string(),
            user: Some(user),
            reply_to,
        }),
        AttachError::UserConnections => {
            context.hub.metrics().failure(Failure::UserConnectionLimit);
            End::Close(CloseCode::TRY_LATER, error.to_string())
        }
        AttachError::Draining => End::Close(CloseCode::RESTART, error.to_string()),
        AttachError::Store(ref cause) => {
            tracing::error!(%user, error = %cause, "a session could not be opened");
            End::Close(CloseCode::INTERNAL, error.to_string())
        }
    })
}

/// Tells the peer why, and closes.
async fn turn_away(socket: &Socket, end: End, peer: &Peer, context: &Context) {
    let mut bytes = Vec::new();
    match end {
        End::Gone => return,
        End::Refused(refused) => {
            context.hub.auth_failed(&refused, peer);
            tracing::info!(remote = %peer.remote, code = refused.code.as_str(), message = %refused.message, "not let in");
            let now = context.hub.clock().unix_millis();
            bytes.extend_from_slice(&server::auth_failure(
                refused.code,
                &refused.message,
                refused.reply_to.as_deref(),
                now,
            ));
            bytes.extend_from_slice(ControlFrame::close(CloseCode::UNAUTHORIZED, refused.code.as_str()).as_bytes());
        }
        End::Close(code, reason) => bytes.extend_from_slice(ControlFrame::close(code, &reason).as_bytes()),
        End::Violation(error) => {
            context.hub.metrics().failure(failure_of(&error));
            bytes.extend_from_slice(ControlFrame::close(error.close_code(), &error.to_string()).as_bytes());
        }
    }
    let _ = tokio::time::timeout(limits::CLOSE_LINGER, write_all(socket, &bytes)).await;
    linger(socket).await;
}

fn failure_of(error: &ReadError) -> Failure {
    match error.close_code() {
        CloseCode::INVALID_UTF8 => Failure::InvalidUtf8,
        CloseCode::TOO_BIG => Failure::MessageTooBig,
        _ => Failure::ProtocolError,
    }
}

async fn write_all(socket: &Socket, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.try_write(&[IoSlice::new(bytes)]) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// After the close frame: nothing more is written, what still comes is thrown away for a moment, so that the frames
/// before the close are not destroyed by a reset.
async fn linger(socket: &Socket) {
    socket.shutdown(Shutdown::Write);
    let until_gone = async {
        loop {
            let read = BUFFER.with_borrow_mut(|buffer| socket.try_read(buffer));
            match read {
                Ok(0) => return,
                Ok(_) => tokio::task::yield_now().await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if socket.readable().await.is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    };
    let _ = tokio::time::timeout(limits::CLOSE_LINGER, until_gone).await;
    socket.shutdown(Shutdown::Both);
}

/// A connection that waits for its first message.
struct Opener<'a> {
    socket: &'a Socket,
    reader: FrameReader,
    /// Bytes that came behind the handshake and were not looked at yet.
    early: Vec<u8>,
    /// What came behind the first message, in the same read.
    later: Vec<Owned>,
}

/// A message or control frame that is kept until the session stands.
enum Owned {
    Text(String),
    Binary,
    Ping(Vec<u8>),
    Close(Option<(CloseCode, String)>),
}

impl Opener<'_> {
    async fn first_message(&mut self, unauthenticated: Unauthenticated) -> Result<Granted, End> {
        let mut input = std::mem::take(&mut self.early);
        loop {
            let mut came = Vec::new();
            let fed = self.reader.feed(&mut input, &mut |incoming| {
                match incoming {
                    Incoming::Text(text) => came.push(Owned::Text(text.to_owned())),
                    Incoming::Binary(_) => came.push(Owned::Binary),
                    Incoming::Ping(payload) => came.push(Owned::Ping(payload.to_vec())),
                    Incoming::Pong(_) => {}
                    Incoming::Close(close) => {
                        came.push(Owned::Close(close.map(|(code, reason)| (code, reason.to_owned()))));
                    }
                }
                ControlFlow::Continue(())
            });
            let mut came = came.into_iter();
            while let Some(first) = came.next() {
                match first {
                    Owned::Text(text) => {
                        let granted = unauthenticated.on_text(&text).map_err(End::Refused)?;
                        self.later = came.collect();
                        let _ = fed.map_err(End::Violation)?;
                        return Ok(granted);
                    }
                    Owned::Binary => {
                        let text = "the first message must be `auth` with a `token`";
                        return Err(End::Refused(Refused::new(AuthCode::TokenMissing, text)));
                    }
                    Owned::Ping(payload) => {
                        let pong = ControlFrame::pong(&payload);
                        write_all(self.socket, pong.as_bytes()).await.map_err(|_| End::Gone)?;
                    }
                    Owned::Close(close) => {
                        let code = close.map_or(CloseCode::NO_STATUS, |(code, _)| code);
                        return Err(End::Close(code, String::new()));
                    }
                }
            }
            let _ = fed.map_err(End::Violation)?;
            input = self.read().await.map_err(|_| End::Gone)?;
        }
    }

    async fn read(&self) -> io::Result<Vec<u8>> {
        loop {
            let mut buffer = vec![0; limits::UNAUTHENTICATED_MESSAGE_BYTES_MAX];
            match self.socket.try_read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    buffer.truncate(count);
                    return Ok(buffer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Nothing is held while nothing comes.
                    drop(buffer);
                    self.socket.readable().await?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

type PageRead = Pin<Box<dyn Future<Output = (PageRequest, Result<Page, StoreError>)> + Send>>;

/// A session's connection.
struct Connection<'a> {
    hub: &'a Hub,
    socket: &'a Socket,
    handle: Arc<Handle>,
    reader: FrameReader,
    /// The page that is being read.
    pull: Option<PageRead>,
    /// The last page did not fit: nothing is pulled before something arrives.
    paused: bool,
}

/// Why the loop goes on.
enum Woken {
    Closing,
    Page(PageRequest, Result<Page, StoreError>),
    Writable,
    Readable,
}

/// Takes the session out of the hub and says how it went, however its task ends.
struct Attached<'a>(&'a Hub, &'a Arc<Handle>);

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.metrics().failure(Failure::Panic);
        }
        let ended = self.0.detach(self.1);
        let handle = self.1;
        tracing::info!(
            session = %handle.id,
            user = %handle.user.id,
            device = %handle.device,
            remote = %handle.peer.remote,
            code = ended.closing.code.0,
            reason = %ended.closing.reason,
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

impl Connection<'_> {
    async fn run(mut self, mut early: Vec<u8>, later: Vec<Owned>) {
        let handle = Arc::clone(&self.handle);
        {
            let _attached = Attached(self.hub, &handle);
            self.reader.set_max_message_bytes(self.hub.limits().message_bytes.as_usize());
            self.catch_up(&mut early, later);
            self.serve().await;
            self.write_close().await;
        }
        linger(self.socket).await;
    }

    /// What came before the session stood.
    fn catch_up(&mut self, early: &mut [u8], later: Vec<Owned>) {
        for owned in later {
            let incoming = match &owned {
                Owned::Text(text) => Incoming::Text(text),
                Owned::Binary => Incoming::Binary(&[]),
                Owned::Ping(payload) => Incoming::Ping(payload),
                Owned::Close(close) => Incoming::Close(close.as_ref().map(|(code, reason)| (*code, reason.as_str()))),
            };
            self.hub.incoming(&self.handle, incoming);
        }
        if !early.is_empty() {
            let _ = self.feed(early);
        }
        self.handle.flush();
    }

    async fn serve(&mut self) {
        loop {
            match poll_fn(|cx| self.poll_next(cx)).await {
                Woken::Closing => return,
                Woken::Page(request, Ok(page)) => self.paused = !self.hub.finish_pull(&self.handle, &request, page),
                Woken::Page(_, Err(_)) => self.handle.close_by_rule(Verdict {
                    code: CloseCode::INTERNAL,
                    reason: "internal error",
                    failure: None,
                }),
                Woken::Writable => self.handle.resume(),
                Woken::Readable => self.read(),
            }
        }
    }

    /// The order is the policy: a close goes before everything, what waits to be written before what arrives.
    fn poll_next(&mut self, cx: &mut TaskContext<'_>) -> Poll<Woken> {
        // Registered before anything is looked at, so that no wake-up falls between the look and the wait.
        self.handle.register_task(cx.waker());
        let (closing, stalled) = {
            let core = self.handle.core();
            (core.closing.is_some(), core.outbox.stalled_since().is_some())
        };
        if closing {
            return Poll::Ready(Woken::Closing);
        }
        if self.pull.is_none()
            && !self.paused
            && self.handle.is_pulling()
            && let Pull::Read(request) = self.hub.plan_pull(&self.handle)
        {
            let hub = self.hub.clone();
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
        if stalled && self.socket.poll_writable(cx).is_ready() {
            return Poll::Ready(Woken::Writable);
        }
        self.socket.poll_readable(cx).map(|_| Woken::Readable)
    }

    fn read(&mut self) {
        self.paused = false;
        BUFFER.with_borrow_mut(|buffer| {
            for _ in 0..READS_MAX {
                match self.socket.try_read(buffer) {
                    Ok(0) => return self.handle.broke(),
                    Ok(count) => {
                        if self.feed(&mut buffer[..count]).is_break() {
                            return;
                        }
                        if count < READ_BYTES {
                            break;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return self.handle.broke(),
                }
            }
        });
        self.handle.flush();
    }

    fn feed(&mut self, input: &mut [u8]) -> ControlFlow<()> {
        self.hub.received(&self.handle, input.len());
        let (hub, handle) = (self.hub, &self.handle);
        let fed = self.reader.feed(input, &mut |incoming| {
            hub.incoming(handle, incoming);
            if handle.core().closing.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match fed {
            Ok(flow) => flow,
            Err(error) => {
                let failure = Some(failure_of(&error));
                self.handle.close_counted(error.close_code(), &error.to_string(), ClosedBy::Gateway, failure);
                ControlFlow::Break(())
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
