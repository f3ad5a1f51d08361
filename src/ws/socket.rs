//! The socket as the outbox and the connection's task see it: both hold it, the outbox writes, the task reads.

use std::{
    io::{self, IoSlice},
    net::Shutdown,
    sync::Arc,
    task::{Context, Poll},
};

use rustix::net::{Shutdown as How, shutdown};
use tokio::net::TcpStream;

use crate::hub::Wire;

/// A plain TCP connection.
#[derive(Clone, Debug)]
pub struct Socket(Arc<TcpStream>);

impl Socket {
    /// Takes over a connected stream.
    pub fn new(stream: TcpStream) -> Self {
        Self(Arc::new(stream))
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
        let _ = shutdown(&*self.0, how);
    }
}

impl Wire for Socket {
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match slices {
            [one] => self.0.try_write(one),
            many => self.0.try_write_vectored(many),
        }
    }
}
