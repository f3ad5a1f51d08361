//! The listeners: those that the service manager has bound and passed in (sd_listen_fds(3)), and those that are bound here.
//!
//! A passed socket is known by its name (`FileDescriptorName=`: `http`, `grpc` or `ops`; one that bears another name may be
//! any) and by its address. It takes the place of the listener that the configuration has there; the port 0 of the
//! configuration means any. What is left over is an error: nobody would ever answer there. One alone is closed with a warning:
//! `pushgate-grpc.socket` has the place for callers with tokens, and not every configuration has it. What was not passed is
//! bound.
//!
//! Rule: a passed socket is the service manager's. The daemon closes its own descriptor and no more, so that whoever comes
//! between two runs waits in the socket's queue instead of being refused, and a socket file stays where it is.

use std::{
    env, fs,
    net::{SocketAddr, TcpListener, ToSocketAddrs as _},
    os::unix::{fs::MetadataExt as _, net::UnixListener},
    path::PathBuf,
    process,
    sync::Arc,
};

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

use super::{Calls, StartError, tls};
use crate::{
    api::access::{Access, Tokens},
    config::Config,
    net::{self, Bound, door::Origin},
};

/// The names that a socket may have; each is a section of the configuration.
const NAMES: [&str; 3] = ["http", "grpc", "ops"];
/// The rights of others on a socket file: where they have one, they may call.
const OTHERS: u32 = 0o007;

/// Sockets that were passed in and nobody has taken yet.
#[derive(Debug, Default)]
pub struct Passed(Vec<Socket>);

#[derive(Debug)]
struct Socket {
    name: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener, PathBuf),
}

impl Passed {
    /// None: everything is bound here.
    pub fn none() -> Self {
        Self::default()
    }

    /// Those that were passed to this process. To be called once, before it has threads: the variables that say so are
    /// removed.
    ///
    /// # Errors
    /// A descriptor that is no listening stream socket.
    pub fn of_process() -> Result<Self, StartError> {
        // The same variables may be another process's that this one inherited them from.
        let ours = env::var("LISTEN_PID").is_ok_and(|pid| pid.parse() == Ok(process::id()));
        if !ours {
            return Ok(Self::none());
        }
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut descriptors = ListenFd::from_env();
        let sockets = (0..descriptors.len()).map(|index| {
            let name = names.next().unwrap_or_default().to_owned();
            let place = Place::of(&mut descriptors, index);
            let place = place.map_err(|problem| {
                StartError::Config(format!("the socket {index} that was passed in, `{name}`, {problem}"))
            })?;
            Ok(Socket { name, place })
        });
        sockets.collect::<Result<_, _>>().map(Self)
    }

    /// The one that stands for this address of this section.
    fn take(&mut self, section: &str, address: &str) -> Option<Socket> {
        let fits = |socket: &Socket| socket.may_be(section) && socket.place.is_at(address);
        let index = self.0.iter().position(fits)?;
        Some(self.0.remove(index))
    }

    /// Nobody is to be left, but a place for callers of this machine that the configuration could do without.
    fn finish(self, config: &Config) -> Result<(), StartError> {
        let (spare, left): (Vec<_>, Vec<_>) =
            self.0.into_iter().partition(|socket| socket.is_spare(&config.grpc.listen));
        for Socket { name, place } in spare {
            let address = place.address();
            tracing::warn!(
                name,
                address,
                "the service manager's socket is closed, grpc.listen does not have its address: who calls there is not answered"
            );
        }
        let Some(Socket { name, place }) = left.into_iter().next() else { return Ok(()) };
        let address = place.address();
        let section = if NAMES.contains(&name.as_str()) { name.as_str() } else { "http.listen, grpc.listen or ops" };
        Err(StartError::Config(format!(
            "the service manager passes in the socket `{name}` at {address}, which the configuration does not know: add \
             \"{address}\" to {section}.listen, or take it out of the .socket unit"
        )))
    }
}

impl Socket {
    /// For calls over TCP from this machine, where the configuration has none such. With one that is, the address there, or
    /// here, is a mistake; and with the same port at every address it could not be bound.
    fn is_spare(&self, listen: &[String]) -> bool {
        let Place::Tcp(_, address) = &self.place else { return false };
        self.name == "grpc" && address.ip().is_loopback() && listen.iter().all(|wanted| wanted.starts_with("unix:"))
    }

    fn may_be(&self, section: &str) -> bool {
        self.name == section || !NAMES.contains(&self.name.as_str())
    }
}

impl Place {
    fn of(descriptors: &mut ListenFd, index: usize) -> Result<Self, String> {
        let wrong = |error: std::io::Error| format!("cannot be used: {error}");
        if let Ok(Some(listener)) = descriptors.take_tcp_listener(index) {
            is_listening(&listener)?;
            let address = listener.local_addr().map_err(wrong)?;
            return Ok(Place::Tcp(listener, address));
        }
        let Ok(Some(listener)) = descriptors.take_unix_listener(index) else {
            return Err("is neither a TCP nor a Unix stream socket; use ListenStream=".to_owned());
        };
        is_listening(&listener)?;
        let address = listener.local_addr().map_err(wrong)?;
        let path = address.as_pathname().ok_or("has no path; write one after ListenStream=")?.to_owned();
        // Whoever reaches it may call, so that its mode is all that guards the admin API; systemd's own is 0666.
        let mode = fs::metadata(&path).map_err(wrong)?.mode();
        if mode & OTHERS != 0 {
            return Err(format!(
                "{}, has the mode {:04o}, so that everybody on this machine could call; set SocketMode=0660, \
                 SocketUser= and SocketGroup= in its .socket unit",
                path.display(),
                mode & 0o7777
            ));
        }
        Ok(Place::Unix(listener, path))
    }

    fn is_at(&self, address: &str) -> bool {
        match (self, address.strip_prefix("unix:")) {
            (Place::Unix(_, path), Some(wanted)) => std::path::absolute(wanted).is_ok_and(|wanted| wanted == *path),
            (Place::Tcp(_, bound), None) => address.to_socket_addrs().is_ok_and(|mut wanted| {
                wanted.any(|wanted| wanted.ip() == bound.ip() && (wanted.port() == 0 || wanted.port() == bound.port()))
            }),
            _ => false,
        }
    }

    fn address(&self) -> String {
        match self {
            Place::Tcp(_, address) => address.to_string(),
            Place::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    /// As one that was bound here.
    fn adopt(self) -> std::io::Result<Bound> {
        match self {
            Place::Tcp(listener, _) => net::adopt_tcp(listener),
            Place::Unix(listener, path) => net::adopt_unix(listener, path),
        }
    }
}

fn is_listening(socket: &impl std::os::fd::AsFd) -> Result<(), String> {
    match socket_acceptconn(socket) {
        Ok(true) => Ok(()),
        Ok(false) => Err("does not listen; use ListenStream=, and Accept=no".to_owned()),
        Err(error) => Err(format!("cannot be used: {error}")),
    }
}

/// Every listener, with who may call at those of the API, in their order.
pub(super) struct Open {
    pub(super) bound: Vec<(&'static str, Bound, Origin)>,
    pub(super) access: Vec<Access>,
    pub(super) ops_access: Vec<Option<Access>>,
}

/// Takes what was passed, and binds the rest. What is passed and not known is said before anything is bound.
pub(super) fn open(
    config: &Config,
    mut passed: Passed,
    calls: &Calls,
    tokens: &Arc<Tokens>,
    tls: &tls::Listeners,
) -> Result<Open, StartError> {
    let mut wanted = Vec::new();
    for (section, listen) in [("http", &config.http.listen), ("grpc", &config.grpc.listen), ("ops", &config.ops.listen)]
    {
        wanted.extend(listen.iter().map(|address| (section, address, passed.take(section, address))));
    }
    passed.finish(config)?;
    let mut open = Open { bound: Vec::new(), access: Vec::new(), ops_access: Vec::new() };
    for (section, address, socket) in wanted {
        let origin = if socket.is_some() { Origin::PassedIn } else { Origin::Here };
        let listen = || -> Result<Bound, StartError> {
            let Some(Socket { name, place }) = socket else { return Ok(net::bind(address)?) };
            let bound = place.adopt()?;
            tracing::info!(section, address = %bound, name, "the service manager's socket is used");
            Ok(bound)
        };
        let listener = if section == "http" { listen()? } else { calls.within(listen)? };
        match section {
            "http" => {}
            "grpc" => open.access.push(match (&listener, config.grpc.insecure) {
                (Bound::Unix(..), _) => Access::open("unix-socket"),
                (Bound::Tcp(..), true) => Access::open("insecure"),
                (Bound::Tcp(..), false) => Access::Tokens(Arc::clone(tokens)),
            }),
            _ => open.ops_access.push(match (listener.is_loopback(), config.grpc.insecure) {
                (false, _) if tls.ops.is_none() => None,
                (false, _) => Some(Access::Tokens(Arc::clone(tokens))),
                (true, true) => Some(Access::open("insecure")),
                (true, false) => Some(Access::Tokens(Arc::clone(tokens))),
            }),
        }
        open.bound.push((section, listener, origin));
    }
    Ok(open)
}
