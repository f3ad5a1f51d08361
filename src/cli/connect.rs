//! How a command reaches the gateway: the Unix socket of the configuration's `grpc.listen`, or the address it is given.
//!
//! A connection is made once, before the first call, so that a gateway that is not there, and a socket that may not be
//! opened, are told for what they are. It is not made again; a command ends with its connection.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint, Uri},
};

use super::{
    failure::{EXIT_CONFIG, EXIT_FAILURE, EXIT_PERMISSION, EXIT_UNAVAILABLE, Failure, Outcome, deepest},
    secure::{Own, Stream, Terms, Trust},
};
use crate::{
    api::proto::gateway_client::GatewayClient,
    config::{Config, DEFAULT_FILE, Loaded, Sources},
    dev,
    types::{ListenAddress, Span},
};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest token file that is read.
const TOKEN_FILE_BYTES_MAX: u64 = 8 * 1024;
/// The largest answer: a page of a thousand sessions has about half a MiB.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Where the gateway is, and who calls.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Gateway")]
pub struct Target {
    #[command(flatten)]
    pub file: File,
    /// Call the gateway at this address, host:port or unix:PATH, whatever the configuration says; with https:// in front,
    /// TLS is spoken
    #[arg(long, value_name = "ADDR", env = "PUSHGATE_GRPC", hide_env_values = true)]
    pub grpc: Option<String>,
    /// The file that holds the token of one of grpc.tokens, needed over TCP
    #[arg(long, value_name = "FILE", env = "PUSHGATE_TOKEN_FILE", hide_env_values = true)]
    pub token_file: Option<PathBuf>,
    #[command(flatten)]
    pub trust: Trust,
    #[command(flatten)]
    pub own: Own,
    /// How long an answer may take
    #[arg(long, value_name = "SPAN", default_value = "10s", value_parser = span)]
    pub timeout: Duration,
}

/// The configuration that a command reads.
#[derive(Args, Clone, Debug)]
pub struct File {
    /// The gateway's configuration, TOML [default: /etc/pushgate/pushgate.toml, where it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// How it is printed.
#[derive(Args, Clone, Copy, Debug)]
pub struct Format {
    /// Print JSON: 64-bit integers as strings, as proto JSON has them
    #[arg(long)]
    pub json: bool,
}

/// A span on the command line, such as `30s`.
pub fn span(text: &str) -> Result<Duration, String> {
    Span::parse(text).map(|span| span.0).map_err(|error| error.to_string())
}

impl File {
    /// Where the configuration is read from: the same places as `serve`, without its flags.
    pub fn sources(&self) -> Sources {
        Sources::of_process(self.config.clone(), Vec::new())
    }

    /// The configuration as far as it can be understood: a command needs an address or a key of it, not all of it.
    pub fn read(&self) -> Outcome<Loaded> {
        if !self.is_dev() {
            return Ok(Config::read(self.sources())?);
        }
        let mut loaded = Config::read(Sources { mode: dev::settings(), ..self.sources() })?;
        dev::add_key(&mut loaded.config);
        Ok(loaded)
    }

    /// Whether nothing names a configuration and `serve --dev` was run in this folder: its gateway is meant.
    pub fn is_dev(&self) -> bool {
        self.config.is_none() && !Path::new(DEFAULT_FILE).exists() && dev::was_here()
    }

    /// The configuration for the sake of an address, and where that came from. The file at the default place holds
    /// keys, and so may be closed to those who may open the socket: for them the socket is where it is by default.
    fn read_address(&self) -> Outcome<(Loaded, String)> {
        let closed = |error: io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        if self.config.is_none() && fs::File::open(DEFAULT_FILE).is_err_and(closed) {
            let loaded = Config::read(Sources { default_file: None, ..self.sources() })?;
            return Ok((loaded, format!("the default, since {DEFAULT_FILE} may not be read")));
        }
        let loaded = self.read()?;
        let why = if self.is_dev() {
            "serve --dev, which was run in this folder".to_owned()
        } else {
            address_origin(&loaded)
        };
        Ok((loaded, why))
    }
}

/// What a line calls the place that `grpc.listen` came from.
fn address_origin(loaded: &Loaded) -> String {
    match std::env::var_os("PUSHGATE_GRPC__LISTEN") {
        Some(_) => "PUSHGATE_GRPC__LISTEN".to_owned(),
        None => format!("grpc.listen of {}", origin(loaded)),
    }
}

/// What a line calls the place that a configuration was read from.
pub fn origin(loaded: &Loaded) -> String {
    loaded
        .file()
        .map_or_else(|| format!("the defaults, since {DEFAULT_FILE} does not exist"), |file| file.display().to_string())
}

/// An address, and why that one.
#[derive(Clone, Debug)]
pub struct Place {
    address: ListenAddress,
    why: String,
    /// What TLS needs, where it is spoken.
    tls: Option<Terms>,
}

impl Place {
    /// The address, such as `unix:/run/pushgate/admin.sock`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }
}

impl Target {
    /// Where the gateway should be.
    pub fn place(&self) -> Outcome<Place> {
        let asked = self.trust.is_set() || self.own.cert.is_some();
        if let Some(text) = &self.grpc {
            let (secure, plain) = (text.strip_prefix("https://"), text.strip_prefix("http://"));
            let address = secure.or(plain).map_or(text.as_str(), |rest| rest.trim_end_matches('/'));
            let address = ListenAddress::parse(address).map_err(|error| Failure::usage(format!("--grpc: {error}")))?;
            let is_tcp = matches!(address, ListenAddress::Tcp { .. });
            if (!is_tcp && (asked || secure.is_some())) || (plain.is_some() && asked) {
                return Err(Failure::usage("--grpc: TLS is spoken over TCP, at https://HOST:PORT"));
            }
            let tls = (asked || secure.is_some()).then(|| Terms::given(&self.trust, &self.own)).transpose()?;
            return Ok(Place { address, why: "--grpc".to_owned(), tls });
        }
        let (loaded, why) = self.file.read_address()?;
        let addresses: Vec<ListenAddress> =
            loaded.config.grpc.listen.iter().filter_map(|text| ListenAddress::parse(text).ok()).collect();
        // Who shows a certificate means an address where somebody looks at it.
        let shows = self.own.cert.is_some();
        let unix = addresses.iter().find(|address| matches!(address, ListenAddress::Unix(_))).filter(|_| !shows);
        let tcp = addresses.iter().find(|address| matches!(address, ListenAddress::Tcp { .. })).filter(|_| shows);
        let none = || Failure::new(EXIT_CONFIG, format!("{why} names no usable address; say it with --grpc ADDR"));
        let address = reachable(unix.or(tcp).or(addresses.first()).ok_or_else(none)?.clone());
        if let ListenAddress::Tcp { port: 0, .. } = address {
            let text = format!("{why} says port 0, which is a free one at each start; say which with --grpc ADDR");
            return Err(Failure::new(EXIT_CONFIG, text));
        }
        let files = &loaded.config.grpc.tls;
        let tls = match &address {
            ListenAddress::Tcp { host, .. } if files.is_set() => {
                Some(Terms::given(&self.trust, &self.own)?.and_files(files, host))
            }
            ListenAddress::Tcp { .. } if asked => Some(Terms::given(&self.trust, &self.own)?),
            _ => None,
        };
        Ok(Place { address, why, tls })
    }

    /// Connects.
    pub async fn connect(&self) -> Outcome<Gateway> {
        let place = self.place()?;
        let token = self.token_file.as_deref().map(read_token).transpose()?;
        if token.is_some() && place.tls.is_none() && !place.address.is_local() {
            return Err(Failure::usage(format!(
                "the token would cross the network to {0} unencrypted; where TLS is spoken there, write https://{0}, or call \
                 over a tunnel that ends on loopback, such as ssh -L 7001:127.0.0.1:7001",
                place.address
            )));
        }
        let line = Line::new(&place)?;
        let channel = match tokio::time::timeout(CONNECT_TIMEOUT, open(&line)).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(nobody(&place, &error)),
            Err(_) => return Err(nobody(&place, &io::Error::from(io::ErrorKind::TimedOut))),
        };
        let has_credentials = token.is_some() || self.own.cert.is_some();
        Ok(Gateway { place, line, channel, token, has_credentials, timeout: self.timeout })
    }
}

/// The address to call for an address that is listened on.
fn reachable(address: ListenAddress) -> ListenAddress {
    match address {
        ListenAddress::Tcp { host, port } => ListenAddress::Tcp { host: reachable_host(&host).to_owned(), port },
        unix @ ListenAddress::Unix(_) => unix,
    }
}

/// The host to call for a host that is listened on: loopback for all addresses.
pub fn reachable_host(host: &str) -> &str {
    match host {
        "0.0.0.0" => "127.0.0.1",
        "::" => "::1",
        other => other,
    }
}

fn read_token(path: &Path) -> Outcome<MetadataValue<Ascii>> {
    let token = read_secret(path, TOKEN_FILE_BYTES_MAX)?;
    let bad = |_| Failure::new(EXIT_FAILURE, format!("{} holds no token: it has a line break", path.display()));
    let mut value = MetadataValue::try_from(format!("Bearer {}", token.trim())).map_err(bad)?;
    value.set_sensitive(true);
    Ok(value)
}

/// A small file of text, such as a token.
pub fn read_secret(path: &Path, bytes_max: u64) -> Outcome<String> {
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(bytes_max).read_to_string(&mut text))
        .map_err(|error| Failure::file("cannot read", path, &error))?;
    Ok(text)
}

/// How a place is reached.
#[derive(Clone)]
struct Line {
    address: ListenAddress,
    tls: Option<(Terms, TlsConnector)>,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Line {
    fn new(place: &Place) -> Outcome<Self> {
        let tls = place.tls.clone().map(|terms| terms.connector(Some("h2")).map(|connector| (terms, connector)));
        Ok(Self { address: place.address.clone(), tls: tls.transpose()? })
    }

    async fn dial(&self) -> io::Result<Box<dyn Stream>> {
        let (host, port) = match &self.address {
            ListenAddress::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
            ListenAddress::Tcp { host, port } => (host.as_str(), *port),
        };
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => Ok(Box::new(stream)),
            Some((terms, connector)) => terms.connect(connector, host, stream).await,
        }
    }
}

async fn open(line: &Line) -> io::Result<Channel> {
    let stream = line.dial().await?;
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.take().map(TokioIo::new).ok_or_else(|| io::Error::other("the connection was lost"));
        async move { stream }
    });
    // The address stands in no header that matters: the stream is there.
    let channel = Endpoint::from_static("http://pushgate").connect_with_connector(connector).await;
    channel.map_err(|error| io::Error::other(deepest(&error)))
}

fn nobody(place: &Place, error: &io::Error) -> Failure {
    let Place { address, why, .. } = place;
    if error.kind() == io::ErrorKind::PermissionDenied {
        let text = format!(
            "cannot open {address} ({why}): {error}; call as root or as a member of the group that the socket belongs to"
        );
        return Failure::new(EXIT_PERMISSION, text);
    }
    let text = format!(
        "no gateway answers at {address} ({why}): {error}; start it with `pushgate serve`, or say where it listens with \
         --grpc ADDR"
    );
    Failure::new(EXIT_UNAVAILABLE, text)
}

/// A gateway that answered.
#[derive(Clone, Debug)]
pub struct Gateway {
    place: Place,
    line: Line,
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
    /// Whether the caller says who he is, by a token or a certificate.
    has_credentials: bool,
    timeout: Duration,
}

impl Gateway {
    /// Where it is.
    pub fn address(&self) -> String {
        self.place.address()
    }

    /// The connection.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Another connection to it, made when it is needed, and again when it was lost.
    pub fn another(&self) -> Channel {
        let line = self.line.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let line = line.clone();
            async move { line.dial().await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://pushgate").connect_with_connector_lazy(connector)
    }

    /// The caller's token.
    pub fn token(&self) -> Option<MetadataValue<Ascii>> {
        self.token.clone()
    }

    /// Its calls.
    pub fn calls(&self) -> GatewayClient<Channel> {
        GatewayClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// A request with the caller's token and deadline.
    pub fn request<T>(&self, message: T) -> Request<T> {
        self.patient(message, Duration::ZERO)
    }

    /// The same for one whose answer may take `longer`.
    pub fn patient<T>(&self, message: T, longer: Duration) -> Request<T> {
        let mut request = self.endless(message);
        request.set_timeout(self.timeout.saturating_add(longer));
        request
    }

    /// A request with the caller's token, and no deadline.
    pub fn endless<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }

    /// What a call was refused with, for the operator.
    pub fn refused(&self, status: &Status) -> Failure {
        Failure::status(status, &self.address(), self.has_credentials)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_may_not_be_opened_is_a_matter_of_permission() {
        let place =
            Place { address: ListenAddress::parse("unix:a.sock").unwrap(), why: "--grpc".to_owned(), tls: None };
        let failure = |kind| nobody(&place, &io::Error::from(kind));
        assert_eq!(failure(io::ErrorKind::PermissionDenied).code(), EXIT_PERMISSION);
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused, io::ErrorKind::TimedOut] {
            assert_eq!(failure(kind).code(), EXIT_UNAVAILABLE);
        }
        let text = failure(io::ErrorKind::NotFound).message().to_owned();
        assert!(text.starts_with("no gateway answers at unix:a.sock (--grpc): "), "{text}");
    }

    #[test]
    fn all_addresses_are_called_on_loopback() {
        for (listened, called) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("10.0.0.1:1", "10.0.0.1:1"), ("unix:a", "unix:a")]
        {
            assert_eq!(reachable(ListenAddress::parse(listened).unwrap()).to_string(), called);
        }
    }
}
