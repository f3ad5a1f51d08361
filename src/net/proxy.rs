//! Reads the PROXY protocol's header from a connection, and not a byte more: what follows it is the connection's.

use std::{io, net::SocketAddr};

use tokio::{io::AsyncReadExt as _, net::TcpStream};

use crate::{
    limits,
    protocol::proxy::{self, Decoded, PREFIX_BYTES, ProxyError, Source},
};

/// Why a connection has no header.
#[derive(Debug, thiserror::Error)]
pub enum NoHeader {
    /// It begins with something else.
    #[error(transparent)]
    Refused(#[from] ProxyError),
    /// It ended, or broke.
    #[error("no whole PROXY protocol header came: {0}")]
    Io(#[from] io::Error),
}

/// Where the connection comes from: what its header says, or `peer`, its own other end. The caller bounds the time.
///
/// # Errors
/// No header came, or one that is not taken.
pub async fn source(stream: &mut TcpStream, peer: SocketAddr) -> Result<SocketAddr, NoHeader> {
    let mut header = Vec::with_capacity(PREFIX_BYTES);
    loop {
        let needed = match proxy::decode(&header)? {
            Decoded::Whole(Source::Proxy, _) => return Ok(peer),
            Decoded::Whole(Source::Address(address), _) => return Ok(address),
            Decoded::Incomplete(needed) => needed,
        };
        debug_assert!(needed > header.len() && needed <= limits::PROXY_HEADER_BYTES_MAX, "the decoder's promise");
        // By parts, so that what is no header is refused before it has the length of one.
        let missing = needed - header.len();
        if stream.take(missing as u64).read_buf(&mut header).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}
