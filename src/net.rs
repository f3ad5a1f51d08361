//! Listening: binding an address, accepting for as long as it takes, and whether a request means this machine.
//!
//! * `proxy.rs`: what a proxy says in front of a connection.
//! * `stamp.rs`: whether files have changed.
//! * `tls.rs`: TLS, from certificates in files to the handshake.

pub mod proxy;
mod stamp;
pub mod tls;

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use http::{
    HeaderMap, header,
    uri::{Authority, Uri},
};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

pub use self::stamp::Stamp;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;
/// How long to wait after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often an accept failed for want of descriptors or memory, since the start.
static ACCEPTS_FAILED: AtomicU64 = AtomicU64::new(0);
/// The Unix socket's mode: the daemon's user and group.
const SOCKET_MODE: u32 = 0o660;

/// An address that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct BindError {
    address: String,
    source: io::Error,
}

/// A bound listener of either kind.
#[derive(Debug)]
pub enum Bound {
    /// TCP.
    Tcp(TcpListener, SocketAddr),
    /// A Unix socket. One that was bound here is removed when the daemon ends.
    Unix(UnixListener, SocketFile),
}

/// A Unix socket's file. Removed when dropped, unless another has taken its place, or it is the service manager's.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: Option<u64>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|there| Some(there.ino()) == self.inode);
        if ours {
            // It may be gone by now; nothing depends on it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Bound {
    /// Whether only this machine reaches it.
    pub fn is_loopback(&self) -> bool {
        match self {
            Bound::Tcp(_, address) => address.ip().to_canonical().is_loopback(),
            Bound::Unix(..) => true,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Tcp(_, address) => fmt::Display::fmt(address, f),
            Bound::Unix(_, file) => write!(f, "unix:{}", file.path.display()),
        }
    }
}

/// Binds `host:port` or `unix:PATH`.
pub fn bind(address: &str) -> Result<Bound, BindError> {
    let bound = match address.strip_prefix("unix:") {
        // Absolute, so that what is shown as bound can be used from anywhere.
        Some(path) => std::path::absolute(path).and_then(|path| bind_unix(&path)),
        None => bind_tcp(address),
    };
    bound.map_err(|source| BindError { address: address.to_owned(), source })
}

/// A TCP listener that was bound elsewhere, as one of the runtime that this is called on.
pub fn adopt_tcp(listener: std::net::TcpListener) -> io::Result<Bound> {
    listener.set_nonblocking(true)?;
    let local = listener.local_addr()?;
    Ok(Bound::Tcp(TcpListener::from_std(listener)?, local))
}

/// A Unix socket that was bound elsewhere, likewise. Its file stays.
pub fn adopt_unix(listener: std::os::unix::net::UnixListener, path: PathBuf) -> io::Result<Bound> {
    listener.set_nonblocking(true)?;
    Ok(Bound::Unix(UnixListener::from_std(listener)?, SocketFile { path, inode: None }))
}

fn bind_tcp(address: &str) -> io::Result<Bound> {
    let address = address
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::AddrNotAvailable, "the name resolves to no address"))?;
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    let local = listener.local_addr()?;
    Ok(Bound::Tcp(listener, local))
}

fn bind_unix(path: &Path) -> io::Result<Bound> {
    if let Ok(there) = std::fs::symlink_metadata(path) {
        if !there.file_type().is_socket() {
            let text = "something that is not a socket is there; remove it, or choose another path";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        // One that nobody listens on is what an earlier run left; one that answers is another daemon's.
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        if std::os::unix::net::UnixStream::connect(path).is_err_and(refused) {
            std::fs::remove_file(path)?;
        }
    }
    // Nobody gets in between the bind and the mode: the socket is made with no rights for others.
    let before = rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o777 & !SOCKET_MODE));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    let inode = Some(std::fs::symlink_metadata(path)?.ino());
    Ok(Bound::Unix(listener, SocketFile { path: path.to_owned(), inode }))
}

/// Accepts the next TCP connection. Errors of one connection are skipped; want of descriptors is waited out.
pub async fn accept_tcp(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                // Only latency depends on it.
                let _ = stream.set_nodelay(true);
                return (stream, remote);
            }
            Err(error) => after_error(error).await,
        }
    }
}

/// Accepts the next connection on a Unix socket.
pub async fn accept_unix(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => after_error(error).await,
        }
    }
}

async fn after_error(error: io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        // It fails ten times a second for as long as it lasts, and anybody who opens connections can bring it about.
        let times = ACCEPTS_FAILED.fetch_add(1, Ordering::Relaxed) + 1;
        if times.is_power_of_two() || times.is_multiple_of(1000) {
            tracing::warn!(%error, times, "cannot accept a connection; waiting");
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// The `Host` of a request, where it is this machine's own; without user information, which it must not have. A listener
/// on loopback that trusts whoever reaches it answers to no other: a site whose name was made to resolve to loopback is of
/// the same origin as the listener in a browser's eyes.
pub fn loopback_host(headers: &HeaderMap) -> Option<Authority> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let authority: Authority = hosts.next()?.to_str().ok()?.parse().ok()?;
    if hosts.next().is_some() || authority.as_str().contains('@') {
        return None;
    }
    let name = authority.host();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let is_loopback = address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    (is_loopback || name.eq_ignore_ascii_case("localhost")).then_some(authority)
}

/// Whether every `Origin` is at the host that the request names.
pub fn is_same_origin(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    headers.get_all(header::ORIGIN).iter().all(|origin| {
        let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
        let authority = origin.as_ref().filter(|origin| origin.scheme().is_some()).and_then(Uri::authority);
        authority.zip(host).is_some_and(|(authority, host)| authority.as_str().eq_ignore_ascii_case(host))
    })
}

/// Raises the soft limit on descriptors to the hard one. The limit that is in force then (`None`: there is none), and
/// whether that could be done.
pub fn raise_descriptor_limit() -> (Option<u64>, io::Result<()>) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let before = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: before.maximum, maximum: before.maximum }) {
        Ok(()) => (before.maximum, Ok(())),
        Err(error) => (before.current, Err(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let Bound::Tcp(_listener, address) = bind("127.0.0.1:0").unwrap() else { panic!() };
        let error = bind(&address.to_string()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot listen on {address}: Address already in use")), "{error}");
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("unix:{}/admin.sock", folder.path().display());
        drop(std::os::unix::net::UnixListener::bind(&address[5..]).unwrap());
        let bound = bind(&address).unwrap();
        let mode = std::fs::metadata(&address[5..]).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert!(bind(&address).is_err());
        let text = bind("unix:/dev/null").unwrap_err().to_string();
        assert!(text.contains("not a socket"), "{text}");
        drop(bound);
        assert!(!Path::new(&address[5..]).exists());
    }
}
