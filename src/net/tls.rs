//! TLS for listeners (rustls over aws-lc-rs): certificates and keys from files, read anew when they change, and the
//! handshake of a connection.
//!
//! What is in use is one [`ServerConfig`] behind a lock. A reload puts another in its place where everything about the
//! files is right; connections that are there go on with the one they began with. The keys of session tickets outlive a
//! reload. Where callers prove who they are by a certificate there are no tickets: each connection proves it anew.
//!
//! * `files.rs`: from files to a configuration.
//! * `room.rs`: the handshakes that are under way.
//! * `x509.rs`: what a certificate says of itself.

mod files;
mod room;
pub mod x509;

use std::{io, net::SocketAddr, sync::Arc};

use parking_lot::{Mutex, RwLock};
use rustls::{ServerConfig, server::ProducesTickets};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

pub use self::files::TlsError;
use self::{files::Loaded, room::Room, x509::Name};
use super::Stamp;
use crate::{
    limits::{self, Limit},
    types::{Count, TlsFiles, UnixMillis},
};

/// A connection after its handshake.
pub type Secured = Box<TlsStream<TcpStream>>;

/// What is spoken over TLS (RFC 7301); a client that offers something and not this is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// `http/1.1`.
    Http1,
    /// `h2`.
    Http2,
}

impl Speaks {
    fn id(self) -> Vec<u8> {
        match self {
            Speaks::Http1 => b"http/1.1".to_vec(),
            Speaks::Http2 => b"h2".to_vec(),
        }
    }
}

/// What listeners of one kind share.
#[derive(Clone, Debug)]
pub struct Terms {
    /// `http`, `grpc` or `ops`.
    pub listener: &'static str,
    /// The files.
    pub files: TlsFiles,
    /// What is spoken.
    pub speaks: Speaks,
    /// Whether a peer without a certificate is let in where `files` names authorities.
    pub anonymous: bool,
    /// `limits.tls_handshakes`.
    pub handshakes: Count,
}

/// TLS as listeners of one kind speak it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    listener: &'static str,
    /// How the files looked before they were read first.
    opened: Stamp,
    current: RwLock<Arc<State>>,
    tickets: Arc<dyn ProducesTickets>,
    /// Handshakes that may be under way.
    room: Room,
    failures: Mutex<Failures>,
}

/// What is in use, and by which terms it was made.
#[derive(Debug)]
struct State {
    terms: Terms,
    loaded: Loaded,
}

/// What was made to take the place of what is in use.
#[derive(Debug)]
pub struct Prepared {
    tls: Tls,
    state: State,
}

/// What was not yet said of failed handshakes.
#[derive(Debug, Default)]
struct Failures {
    said_at: Option<Instant>,
    unsaid: u64,
}

/// What a reload came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// Another certificate, or others who are trusted.
    Changed,
    /// The same as before.
    Same,
}

/// Why a connection has no TLS.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer went without a word, as probes of TCP do: not worth counting.
    #[error("it was closed before anything came")]
    Silent,
    /// It was the oldest of those under way, and made room for a newer one.
    #[error("it made room for a newer one (limits.tls_handshakes)")]
    TooMany,
    /// It took too long.
    #[error("the handshake was not done in time")]
    TimedOut,
    /// It was none, or the two sides could not agree.
    #[error("{0}")]
    Failed(#[from] io::Error),
}

impl HandshakeError {
    /// The limit that it ran into, if it is that.
    pub fn limit(&self) -> Option<Limit> {
        matches!(self, HandshakeError::TooMany).then_some(Limit::TlsHandshakes)
    }
}

impl State {
    fn read(terms: Terms, tickets: &Arc<dyn ProducesTickets>) -> Result<Self, TlsError> {
        let tickets = terms.files.client_ca_file.as_os_str().is_empty().then(|| Arc::clone(tickets));
        let loaded = Loaded::read(&terms, tickets)?;
        Ok(Self { terms, loaded })
    }

    fn check_validity(&self, now: UnixMillis) -> Result<(), TlsError> {
        self.loaded.check_validity(&self.terms.files, now)
    }
}

impl Prepared {
    /// Whose it is.
    pub fn tls(&self) -> &Tls {
        &self.tls
    }

    /// Puts it in place of what there was.
    pub fn install(self) -> Reloaded {
        self.tls.0.room.set_most(self.state.terms.handshakes.limit());
        let mut current = self.tls.0.current.write();
        let same = current.loaded.is_same(&self.state.loaded);
        *current = Arc::new(self.state);
        if same { Reloaded::Same } else { Reloaded::Changed }
    }
}

impl Tls {
    /// Reads the files. A certificate that is not valid now is taken: there is none that could stay in its place.
    ///
    /// # Errors
    /// Files that cannot be read or do not fit together.
    pub fn open(terms: Terms) -> Result<Self, TlsError> {
        let tickets = rustls::crypto::aws_lc_rs::Ticketer::new();
        let tickets = tickets.map_err(|error| TlsError::Config(error.to_string()))?;
        let (listener, room, opened) = (terms.listener, Room::new(terms.handshakes.limit()), look(&terms.files));
        let current = RwLock::new(Arc::new(State::read(terms, &tickets)?));
        Ok(Self(Arc::new(Inner { listener, opened, current, tickets, room, failures: Mutex::default() })))
    }

    /// Reads the files of other terms, for [`Prepared::install`] to put in place. What is in use already may have expired.
    ///
    /// # Errors
    /// As of [`Tls::reload`].
    pub fn prepare(&self, terms: Terms, now: UnixMillis) -> Result<Prepared, TlsError> {
        let state = State::read(terms, &self.0.tickets)?;
        if !self.0.current.read().loaded.is_same(&state.loaded) {
            state.check_validity(now)?;
        }
        Ok(Prepared { tls: self.clone(), state })
    }

    /// Reads the files again and puts what they hold in place of what there was, which stays where anything is wrong.
    ///
    /// # Errors
    /// As [`Tls::open`], and a certificate that is not valid at `now`.
    pub fn reload(&self, now: UnixMillis) -> Result<Reloaded, TlsError> {
        let before = Arc::clone(&self.0.current.read());
        let state = State::read(before.terms.clone(), &self.0.tickets)?;
        state.check_validity(now)?;
        let mut current = self.0.current.write();
        // By other terms in the meantime, it was read a moment ago.
        if current.loaded.is_same(&state.loaded) || !Arc::ptr_eq(&current, &before) {
            return Ok(Reloaded::Same);
        }
        *current = Arc::new(state);
        Ok(Reloaded::Changed)
    }

    /// Whether the certificate in use is valid at `now`.
    ///
    /// # Errors
    /// It is not, and why.
    pub fn check_validity(&self, now: UnixMillis) -> Result<(), TlsError> {
        self.0.current.read().check_validity(now)
    }

    /// How the files look, to be compared.
    pub fn stamp(&self) -> Stamp {
        look(&self.0.current.read().terms.files)
    }

    /// How they looked before [`Tls::open`] read them: what differs from that may have changed since.
    pub fn opened_stamp(&self) -> &Stamp {
        &self.0.opened
    }

    /// Whether these are the files that it reads.
    pub fn reads(&self, files: &TlsFiles) -> bool {
        self.0.current.read().terms.files == *files
    }

    /// `http`, `grpc` or `ops`.
    pub fn listener(&self) -> &'static str {
        self.0.listener
    }

    /// When the certificate in use expires, in seconds since the Unix epoch.
    pub fn expires_at(&self) -> i64 {
        self.0.current.read().loaded.certificate.not_after
    }

    /// What a new connection is served by.
    fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.current.read().loaded.config)
    }

    /// Shakes hands, until then at most. The log hears of failures now and then, whatever their number.
    ///
    /// # Errors
    /// There is no TLS to be had; the connection is over.
    pub async fn accept(&self, stream: TcpStream, peer: SocketAddr, until: Instant) -> Result<Secured, HandshakeError> {
        let failed = match timeout_at(until, self.shake_hands(stream)).await {
            Ok(Ok(secured)) => return Ok(secured),
            Ok(Err(error)) => error,
            Err(_) => HandshakeError::TimedOut,
        };
        if !matches!(failed, HandshakeError::Silent) {
            self.note(peer, &failed);
        }
        Err(failed)
    }

    async fn shake_hands(&self, stream: TcpStream) -> Result<Secured, HandshakeError> {
        if stream.peek(&mut [0]).await? == 0 {
            return Err(HandshakeError::Silent);
        }
        let mut place = self.0.room.enter();
        tokio::select! {
            biased;
            shaken = TlsAcceptor::from(self.config()).accept(stream) => Ok(Box::new(shaken?)),
            () = place.lost() => Err(HandshakeError::TooMany),
        }
    }

    fn note(&self, peer: SocketAddr, error: &HandshakeError) {
        let listener = self.listener();
        tracing::debug!(listener, %peer, %error, "a TLS handshake failed");
        let now = Instant::now();
        let mut failures = self.0.failures.lock();
        failures.unsaid += 1;
        if failures.said_at.is_some_and(|said| now.duration_since(said) < limits::TLS_FAILURES_LOG_INTERVAL) {
            return;
        }
        let count = std::mem::take(&mut failures.unsaid);
        failures.said_at = Some(now);
        drop(failures);
        tracing::info!(listener, count, %peer, %error, "TLS handshakes failed; this is the latest of them");
    }
}

fn look(files: &TlsFiles) -> Stamp {
    Stamp::of([&*files.certificate_file, &*files.key_file, &*files.client_ca_file])
}

/// The names that a peer's certificate holds, which was verified in the handshake. None: he brought no certificate.
pub fn peer_names(secured: &Secured) -> Vec<Name> {
    let certificates = secured.get_ref().1.peer_certificates().unwrap_or_default();
    let certificate = certificates.first().and_then(|der| x509::Certificate::parse(der));
    certificate.map(|certificate| certificate.names).unwrap_or_default()
}
