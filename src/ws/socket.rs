//! The socket as the outbox and the connection's task see it: both hold it, the outbox writes, the task reads.

use std::{
    cell::RefCell,
    io::{self, IoSlice, Read, Write},
    net::Shutdown,
    task::{Context, Poll},
};

use rustix::{
    io::Errno,
    net::{SendAncillaryBuffer, SendFlags, Shutdown as How, send, sendmsg, shutdown},
};
use tokio::net::TcpStream;

use super::secure::Secure;
use crate::{hub::Wire, limits, net::tls::Secured};

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

/// A TCP connection, with TLS over it or without.
#[derive(Debug)]
pub struct Socket {
    tcp: TcpStream,
    secure: Option<Box<Secure>>,
}

impl Socket {
    /// Takes over a connected stream.
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, secure: None }
    }

    /// Takes over a connection with TLS.
    pub fn secured(secured: Secured) -> Self {
        let (tcp, connection) = secured.into_inner();
        Self { tcp, secure: Some(Box::new(Secure::new(connection))) }
    }

    /// Reads what is there; `WouldBlock` where nothing is.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.secure {
            None => self.tcp.try_read(buffer),
            Some(secure) => secure.read(&mut Below(&self.tcp), buffer),
        }
    }

    /// Whether something may be there to read.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.has_unread() {
            return Poll::Ready(Ok(()));
        }
        self.tcp.poll_read_ready(cx)
    }

    /// Whether the kernel may take bytes.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_write_ready(cx)
    }

    /// Waits until something may be there to read.
    pub async fn readable(&self) -> io::Result<()> {
        if self.has_unread() {
            return Ok(());
        }
        self.tcp.readable().await
    }

    /// Waits until the kernel may take bytes.
    pub async fn writable(&self) -> io::Result<()> {
        self.tcp.writable().await
    }

    fn has_unread(&self) -> bool {
        self.secure.as_ref().is_some_and(|secure| secure.has_unread())
    }

    /// Whether TLS holds something back, which is the session's task's to write.
    pub fn holds_back(&self) -> bool {
        self.secure.as_ref().is_some_and(|secure| secure.holds_back())
    }

    /// Ends one direction or both. What was written before still leaves.
    pub fn shutdown(&self, how: Shutdown) {
        if let (Some(secure), Shutdown::Write) = (&self.secure, how) {
            secure.say_goodbye(&mut Below(&self.tcp));
        }
        let how = match how {
            Shutdown::Read => How::Read,
            Shutdown::Write => How::Write,
            Shutdown::Both => How::Both,
        };
        // The peer may have gone already; there is nothing more to do then.
        let _ = shutdown(&self.tcp, how);
    }
}

/// What TLS reads from and writes to.
struct Below<'a>(&'a TcpStream);

impl Read for Below<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Below<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        try_send(self.0, &[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        try_send(self.0, slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Past tokio, which would look up first what it knows of the socket. It has to be told where the kernel takes nothing,
/// since it is what waits until it does again.
fn try_send(tcp: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = match slices {
        [one] => send(tcp, one, flags),
        many => sendmsg(tcp, many, &mut SendAncillaryBuffer::default(), flags),
    };
    match sent {
        Err(Errno::AGAIN) => match slices {
            [one] => tcp.try_write(one),
            many => tcp.try_write_vectored(many),
        },
        sent => Ok(sent?),
    }
}

impl Wire for Socket {
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.secure {
            None => try_send(&self.tcp, slices),
            Some(secure) => secure.write(&mut Below(&self.tcp), slices),
        }
    }

    fn finish(&self) -> io::Result<()> {
        match &self.secure {
            None => Ok(()),
            Some(secure) => secure.finish(&mut Below(&self.tcp)),
        }
    }

    fn has_moved(&self) -> bool {
        self.secure.as_ref().is_some_and(|secure| secure.has_moved())
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
    while let Err(error) = socket.finish() {
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(error);
        }
        socket.writable().await?;
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
