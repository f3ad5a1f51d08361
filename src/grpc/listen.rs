//! Connections to a gRPC listener: bounded in number, and each has to say something before tonic hears of it.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};

use crate::{
    lifecycle::Lifecycle,
    limits,
    net::{self, Bound},
};

/// An accepted connection of either kind. It is counted for as long as it lives.
pub struct Connection {
    io: Io,
    _counted: OwnedSemaphorePermit,
}

enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The connections of a listener that have said something, until the stop.
pub fn incoming(bound: Bound, life: Lifecycle) -> impl Stream<Item = Connection> {
    let (sender, receiver) = mpsc::channel(1);
    let accept_life = life.clone();
    life.spawn(async move {
        tokio::select! {
            () = accept_life.stopping().cancelled() => {}
            () = accept(bound, sender, &accept_life) => {}
        }
    });
    stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|connection| (connection, receiver)) })
}

async fn accept(bound: Bound, sender: mpsc::Sender<Connection>, life: &Lifecycle) {
    let room = Arc::new(Semaphore::new(limits::GRPC_CONNECTIONS_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(counted) = Arc::clone(&room).acquire_owned().await else { return };
        let io = match &bound {
            Bound::Tcp(listener, _) => Io::Tcp(net::accept_tcp(listener).await.0),
            Bound::Unix(listener, _) => Io::Unix(net::accept_unix(listener).await),
        };
        let connection = Connection { io, _counted: counted };
        let (sender, stopping) = (sender.clone(), life.stopping().clone());
        life.spawn(async move {
            let spoken = tokio::time::timeout(limits::HANDSHAKE_HEAD_TIMEOUT, connection.readable());
            tokio::select! {
                () = stopping.cancelled() => {}
                spoken = spoken => if let Ok(Ok(())) = spoken {
                    // The server may have ended; then so does the connection.
                    let _ = sender.send(connection).await;
                },
            }
        });
    }
}

impl Connection {
    async fn readable(&self) -> io::Result<()> {
        match &self.io {
            Io::Tcp(stream) => stream.ready(Interest::READABLE).await.map(drop),
            Io::Unix(stream) => stream.ready(Interest::READABLE).await.map(drop),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
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
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Io::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
