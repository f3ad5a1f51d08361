//! Connections to a gRPC listener: bounded in number, and each has to say that it speaks HTTP/2 before hyper hears of it:
//! hyper would wait for that without end, and what is silent after it is pinged. Before that comes TLS, where it is spoken,
//! and with it who a caller's certificate says that he is.

use std::{
    io,
    net::SocketAddr,
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, stream};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, timeout_at},
};

use super::{
    Bounds,
    clients::{Certified, Clients},
};
use crate::{
    lifecycle::Lifecycle,
    limits::{self, Limit},
    metrics::Metrics,
    net::{
        self, Bound,
        tls::{self, HandshakeError, Secured, Tls},
    },
};

/// What a connection begins with (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// An accepted connection of either kind. It is counted for as long as it lives.
pub struct Connection {
    io: Io,
    /// What it began with, and how much of that is there and not read yet.
    head: [u8; PREFACE.len()],
    unread: Range<usize>,
    /// Who its certificate says calls.
    certified: Option<Certified>,
    heard: Heard,
    _counted: OwnedSemaphorePermit,
}

/// When the peer of a connection last said something; nothing: it has ended what it says.
#[derive(Clone)]
pub struct Heard(Arc<Mutex<Option<Instant>>>);

impl Heard {
    /// Whether the peer is there, as far as one knows, and has said nothing for so long.
    pub fn nothing_for(&self, span: Duration) -> bool {
        self.0.lock().is_some_and(|last| last.elapsed() >= span)
    }
}

enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
    Secured(Secured),
}

/// What of a connection is decided before its first call.
#[derive(Clone)]
pub struct Terms {
    /// TLS, where it is spoken; a Unix socket has none.
    pub tls: Option<Tls>,
    /// Whom certificates name.
    pub clients: Arc<Clients>,
    /// Where failures are counted.
    pub metrics: Metrics,
    /// Connections at once, among others; further ones wait to be accepted.
    pub bounds: watch::Receiver<Bounds>,
}

/// The connections of a listener that have begun as they should, or clearly otherwise, until the stop.
pub fn incoming(bound: Bound, terms: Terms, life: Lifecycle) -> impl Stream<Item = Connection> {
    let (sender, receiver) = mpsc::channel(1);
    let accept_life = life.clone();
    life.spawn(async move {
        tokio::select! {
            () = accept_life.stopping().cancelled() => {}
            () = accept(bound, terms, sender, &accept_life) => {}
        }
    });
    stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|connection| (connection, receiver)) })
}

async fn accept(bound: Bound, mut terms: Terms, sender: mpsc::Sender<Connection>, life: &Lifecycle) {
    let mut room = Places::default();
    let beat = life.beat("the gRPC listener");
    loop {
        let (io, peer) = match &bound {
            Bound::Tcp(listener, _) => {
                let (stream, peer) = beat.during(net::accept_tcp(listener)).await;
                (Io::Tcp(stream), Some(peer))
            }
            Bound::Unix(listener, _) => (Io::Unix(beat.during(net::accept_unix(listener)).await), None),
        };
        // One is here and waits for a place where there is none; those behind it wait to be accepted.
        let Some(counted) = beat.during(room.enter(&mut terms)).await else { return };
        let (sender, terms, stopping) = (sender.clone(), terms.clone(), life.stopping().clone());
        life.spawn(async move {
            let begun = async {
                let until = Instant::now() + limits::HANDSHAKE_HEAD_TIMEOUT;
                let mut connection = Connection::secured(io, peer, &terms, until, counted).await?;
                connection.begins(until).await.then_some(connection)
            };
            tokio::select! {
                () = stopping.cancelled() => {}
                begun = begun => if let Some(connection) = begun {
                    // The server may have ended; then so does the connection.
                    let _ = sender.send(connection).await;
                },
            }
        });
    }
}

/// The places of a listener's connections.
struct Places {
    free: Arc<Semaphore>,
    most: usize,
}

impl Default for Places {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(0)), most: 0 }
    }
}

impl Places {
    /// The next place, of as many as there may be by then. The semaphore is never closed, so there is one some day.
    async fn enter(&mut self, terms: &mut Terms) -> Option<OwnedSemaphorePermit> {
        let mut said = false;
        loop {
            self.set_most(terms.bounds.borrow_and_update().calls.connections.limit().min(Semaphore::MAX_PERMITS));
            if let Ok(counted) = Arc::clone(&self.free).try_acquire_owned() {
                return Some(counted);
            }
            if !std::mem::replace(&mut said, true) {
                terms.metrics.hit(Limit::GrpcConnections);
            }
            tokio::select! {
                counted = Arc::clone(&self.free).acquire_owned() => return counted.ok(),
                Ok(()) = terms.bounds.changed() => {}
            }
        }
    }

    /// So many from now on. Of those that are taken none is taken back; it is as many as can be until they are left.
    fn set_most(&mut self, most: usize) {
        if most > self.most {
            self.free.add_permits(most - self.most);
            self.most = most;
        } else {
            self.most -= self.free.forget_permits(self.most - most);
        }
    }
}

impl Connection {
    fn new(io: Io, counted: OwnedSemaphorePermit) -> Self {
        let heard = Heard(Arc::new(Mutex::new(Some(Instant::now()))));
        Self { io, head: [0; PREFACE.len()], unread: 0..0, certified: None, heard, _counted: counted }
    }

    /// Shakes hands where TLS is spoken. `None`: there is no connection any more.
    async fn secured(
        io: Io,
        peer: Option<SocketAddr>,
        terms: &Terms,
        until: Instant,
        counted: OwnedSemaphorePermit,
    ) -> Option<Self> {
        let (tls, stream, peer) = match (io, peer, &terms.tls) {
            (Io::Tcp(stream), Some(peer), Some(tls)) => (tls, stream, peer),
            (io, ..) => return Some(Self::new(io, counted)),
        };
        match tls.accept(stream, peer, until).await {
            Ok(secured) => {
                let certified = terms.clients.certified(tls::peer_names(&secured));
                Some(Self { certified, ..Self::new(Io::Secured(secured), counted) })
            }
            Err(HandshakeError::Silent) => None,
            Err(error) => {
                terms.metrics.handshake_failed(error.limit());
                None
            }
        }
    }

    /// What tells when its peer was last heard.
    pub fn heard(&self) -> Heard {
        self.heard.clone()
    }

    /// Whether anybody can open it: it came over TCP, and no certificate that is known was shown.
    pub fn is_strangers(&self) -> bool {
        !matches!(self.io, Io::Unix(_)) && self.certified.is_none()
    }

    /// Who its certificate says calls.
    pub fn take_certified(&mut self) -> Option<Certified> {
        self.certified.take()
    }

    /// Waits for the preface, until then at most. What is none is left to hyper, which says so; false if nothing whole comes.
    async fn begins(&mut self, until: Instant) -> bool {
        let head = async {
            while self.unread.end < PREFACE.len() && PREFACE.starts_with(&self.head[self.unread.clone()]) {
                let rest = &mut self.head[self.unread.end..];
                let count = match &mut self.io {
                    Io::Tcp(stream) => stream.read(rest).await?,
                    Io::Unix(stream) => stream.read(rest).await?,
                    Io::Secured(stream) => stream.read(rest).await?,
                };
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.unread.end += count;
            }
            io::Result::Ok(())
        };
        matches!(timeout_at(until, head).await, Ok(Ok(())))
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let count = self.unread.len().min(buf.remaining());
            let first = self.unread.start;
            buf.put_slice(&self.head[first..first + count]);
            self.unread.start += count;
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = match &mut self.io {
            Io::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Secured(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if let Poll::Ready(read) = &read {
            let said = read.is_ok() && buf.filled().len() > before;
            *self.heard.0.lock() = said.then(Instant::now);
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Secured(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Io::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Io::Secured(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Io::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Io::Secured(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Secured(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    fn within(time: Duration) -> Instant {
        Instant::now() + time
    }

    fn accepted() -> (UnixStream, Connection) {
        let (peer, io) = UnixStream::pair().unwrap();
        let counted = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        (peer, Connection::new(Io::Unix(io), counted))
    }

    #[tokio::test]
    async fn a_part_of_the_preface_does_not_hold_a_place() {
        for part in [0, 1, PREFACE.len() - 1] {
            let (mut peer, mut connection) = accepted();
            peer.write_all(&PREFACE[..part]).await.unwrap();
            assert!(!connection.begins(within(Duration::from_millis(20))).await, "{part} bytes");
            let (mut peer, mut connection) = accepted();
            peer.write_all(&PREFACE[..part]).await.unwrap();
            drop(peer);
            assert!(!connection.begins(within(Duration::from_secs(60))).await, "{part} bytes, and the end");
        }
    }

    #[tokio::test]
    async fn what_was_looked_at_is_read_all_the_same() {
        let whole = [PREFACE.as_slice(), b"and more"].concat();
        for text in [whole.as_slice(), b"GET / HTTP/1.0\r\n\r\n"] {
            let (mut peer, mut connection) = accepted();
            for part in text.chunks(10) {
                peer.write_all(part).await.unwrap();
            }
            assert!(connection.begins(within(Duration::from_secs(60))).await);
            let mut read = vec![0; text.len()];
            for byte in &mut read {
                *byte = connection.read_u8().await.unwrap();
            }
            assert_eq!(read, text);
        }
    }
}
