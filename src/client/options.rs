//! What a client was told before it started, checked and ready for use.

use std::{fmt, time::Duration};

use http::{HeaderMap, Uri};

use super::{
    error::{BuildError, Disconnect, Error, GiveUp},
    events::State,
    message::Session,
    outbox::Bounds,
};
use crate::{protocol::ack_mode::AckMode, types::Secret};

/// One callback of a kind, shared by every task of the client.
pub type Callback<T> = Box<dyn Fn(&T) + Send + Sync>;

/// What is called when something happens. Several of a kind are called in the order in which they were given.
#[derive(Default)]
pub struct Callbacks {
    pub state: Vec<Box<dyn Fn(State) + Send + Sync>>,
    pub connect: Vec<Callback<Session>>,
    pub disconnect: Vec<Callback<Disconnect>>,
    pub error: Vec<Callback<Error>>,
    pub give_up: Vec<Callback<GiveUp>>,
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Callbacks")
    }
}

/// See the module.
#[derive(Debug)]
pub struct Options {
    pub target: Target,
    pub headers: HeaderMap,
    pub ack_mode: AckMode,
    pub auto_reconnect: bool,
    pub reconnect_delay: Duration,
    pub max_delay: Duration,
    pub max_reconnects: u32,
    pub queue: Bounds,
    pub dedup_ids: usize,
    pub handshake_timeout: Duration,
    pub request_timeout: Duration,
    pub heartbeat_interval: Option<Duration>,
    pub heartbeat_timeout: Duration,
    pub close_timeout: Duration,
    pub message_bytes_max: usize,
    /// The name that the gateway's certificate must hold, where it is not the target's host.
    pub server_name: Option<String>,
    pub callbacks: Callbacks,
    /// Whether whoever reads the events says what was handled.
    pub manual: bool,
}

/// Where to connect.
#[derive(Clone)]
pub struct Target {
    pub tls: bool,
    /// Without the brackets of an IPv6 address.
    pub host: String,
    pub port: u16,
    /// For `Host`.
    pub authority: String,
    /// With everything asked for in the query.
    pub path_and_query: String,
    /// The query that was given, which may hold secrets.
    pub query: Secret,
    /// For people: without the query, where a token may be.
    pub address: String,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

impl Target {
    /// Reads the address of an endpoint and adds to its query.
    pub fn parse(url: &str, query: &[(&str, &str)]) -> Result<Self, BuildError> {
        // A fragment is none of the server's business.
        let uri: Uri = url.split('#').next().unwrap_or_default().parse().map_err(|_| BuildError::Url("is none"))?;
        let tls = match uri.scheme_str() {
            Some("ws") => false,
            Some("wss") => true,
            _ => return Err(BuildError::Url("is not one of a WebSocket")),
        };
        let authority = uri.authority().ok_or(BuildError::Url("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(BuildError::Url("holds a user's name, which belongs into a header"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(BuildError::Url("names no host"));
        }
        let port =
            match (authority.port_u16(), authority.as_str().rsplit_once(']').map_or(authority.as_str(), |(_, p)| p)) {
                (Some(port), _) => port,
                (None, rest) if rest.contains(':') => return Err(BuildError::Url("has a port that is none")),
                (None, _) if tls => 443,
                (None, _) => 80,
            };
        let path = if uri.path().is_empty() { "/" } else { uri.path() };
        let mut whole = form_urlencoded::Serializer::new(uri.query().unwrap_or_default().to_owned());
        for (name, value) in query {
            whole.append_pair(name, value);
        }
        let whole = whole.finish();
        let path_and_query = if whole.is_empty() { path.to_owned() } else { format!("{path}?{whole}") };
        let scheme = if tls { "wss" } else { "ws" };
        Ok(Self {
            tls,
            host,
            port,
            authority: authority.as_str().to_owned(),
            path_and_query,
            query: Secret::new(uri.query().unwrap_or_default()),
            address: format!("{scheme}://{authority}{path}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_with_its_query_and_shown_without() {
        let target = Target::parse("ws://localhost:7000/ws?token=s3cret#x", &[("device", "a b")]).unwrap();
        assert_eq!((target.tls, &*target.host, target.port), (false, "localhost", 7000));
        assert_eq!(target.path_and_query, "/ws?token=s3cret&device=a+b");
        assert_eq!((&*target.address, format!("{target:?}")), ("ws://localhost:7000/ws", target.address.clone()));
        let target = Target::parse("wss://[::1]/ws", &[]).unwrap();
        assert_eq!((target.tls, &*target.host, target.port, &*target.authority), (true, "::1", 443, "[::1]"));
        assert_eq!(Target::parse("ws://a", &[("x", "1")]).unwrap().path_and_query, "/?x=1");
        for bad in
            ["", "localhost:7000", "http://a/ws", "ws://", "ws:///x", "ws://u:p@a/", "ws://a:99999/", "ws://a b/"]
        {
            let error = Target::parse(bad, &[]).unwrap_err().to_string();
            assert!(error.contains("ws://HOST:PORT/PATH"), "{bad}: {error}");
        }
    }
}
