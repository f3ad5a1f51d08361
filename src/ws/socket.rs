//! The socket as the outbox and the connection's task see it: both hold it, the outbox writes, the task reads.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    net::Shutdown,
    task::{Context, Poll},
};

use rustix::{
    io::Errno,
    net::{SendAncillaryBuffer, SendFlags, Shutdown as How, send, sendmsg, shutdown},
};
use tokio::net::TcpStream;

use crate::{hub::Wire, limits};

/// What a worker reads at once.
const READ_BYTES: usize = 64 * 1024;

thread_local! {
    /// One read buffer a worker thread: a connection keeps only what is unfinished.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// Lends the worker's read buffer. Not to be called within itself.
pub fn with_buffer<T>(read: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| read(buffer))
}

/// A plain TCP connection.
#[derive(Debug)]
pub struct Socket(TcpStream);

impl Socket {
    /// Takes over a connected stream.
    pub fn new(stream: TcpStream) -> Self {
        Self(stream)
    }

    /// Reads what is there; `WouldBlock` where nothing is.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }

    /// Whether something may be there to read.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read_ready(cx)
    }

    /// Whether the kernel may take bytes.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_write_ready(cx)
    }

    /// Waits until something may be there to read.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await
    }

    /// Waits until the kernel may take bytes.
    pub async fn writable(&self) -> io::Result<()> {
        self.0.writable().await
    }

    /// Ends one direction or both. What was written before still leaves.
    pub fn shutdown(&self, how: Shutdown) {
        let how = match how {
            Shutdown::Read => How::Read,
            Shutdown::Write => How::Write,
            Shutdown::Both => How::Both,
        };
        // The peer may have gone already; there is nothing more to do then.
        let _ = shutdown(&self.0, how);
    }
}

impl Wire for Socket {
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        // Past tokio, which would look up first what it knows of the socket. It has to be told where the kernel takes
        // nothing, since it is what waits until it does again.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = match slices {
            [one] => send(&self.0, one, flags),
            many => sendmsg(&self.0, many, &mut SendAncillaryBuffer::default(), flags),
        };
        match sent {
            Err(Errno::AGAIN) => match slices {
                [one] => self.0.try_write(one),
                many => self.0.try_write_vectored(many),
            },
            sent => Ok(sent?),
        }
    }
}

/// Writes all of it, for a connection that has no outbox yet.
pub async fn write_all(socket: &Socket, mut bytes: &[u8]) -> io::Result<()> {
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
pub async fn linger(socket: &Socket) {
    socket.shutdown(Shutdown::Write);
    let until_gone = async {
        loop {
            match with_buffer(|buffer| socket.try_read(buffer)) {
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
