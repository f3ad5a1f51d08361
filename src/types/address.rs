//! Where a listener listens, as configuration writes it: `host:port` or `unix:PATH`.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

/// The longest path of a Unix socket on Linux (`sun_path` less its final zero).
const UNIX_PATH_BYTES_MAX: usize = 107;

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// A host (a name, an IPv4 address, or an IPv6 address in brackets) and a port; port 0 takes a free one.
    Tcp {
        /// The host, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// Neither form.
    #[error("`{0}` is not an address; write host:port, such as \"127.0.0.1:7000\" or \"[::1]:7000\"")]
    Tcp(String),
    /// A Unix socket without a path, or with one that the system cannot take.
    #[error("`{0}` is not the address of a Unix socket; write unix: and a path of 1 to {UNIX_PATH_BYTES_MAX} bytes")]
    Unix(String),
}

impl ListenAddress {
    /// Reads `host:port` or `unix:PATH`.
    pub fn parse(text: &str) -> Result<Self, InvalidAddress> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() || path.len() > UNIX_PATH_BYTES_MAX || path.contains('\0') {
                return Err(InvalidAddress::Unix(text.to_owned()));
            }
            return Ok(Self::Unix(path.into()));
        }
        let bad = || InvalidAddress::Tcp(text.to_owned());
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::Tcp { host: address.ip().to_string(), port: address.port() });
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        // Digits and dots that did not parse above are a mistyped address, not a name.
        let is_name = host.contains(|c: char| c.is_ascii_alphabetic()) && host.chars().all(plain);
        if !is_name || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        Ok(Self::Tcp { host: host.to_owned(), port: port.parse().map_err(|_| bad())? })
    }

    /// Whether only this machine can reach it: a Unix socket, a loopback address, or the name `localhost`.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } => {
                host.eq_ignore_ascii_case("localhost")
                    || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
            }
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_back() {
        for text in ["127.0.0.1:0", "0.0.0.0:7000", "[::1]:7000", "[::]:1", "gateway.internal:7000", "unix:./a.sock"] {
            assert_eq!(ListenAddress::parse(text).unwrap().to_string(), text);
        }
        for bad in [
            "",
            "7000",
            ":7000",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:65536",
            "127.0.0:1",
            "::1:7000",
            "a b:1",
            "a:+1",
            "http://a:1",
            "unix:",
            "unix:\0",
        ] {
            assert!(ListenAddress::parse(bad).is_err(), "{bad}");
        }
        assert!(ListenAddress::parse(&format!("unix:{}", "x".repeat(107))).is_ok());
        assert!(ListenAddress::parse(&format!("unix:{}", "x".repeat(108))).is_err());
    }

    #[test]
    fn only_what_this_machine_alone_can_reach_is_local() {
        for local in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "localhost:1", "unix:a"] {
            assert!(ListenAddress::parse(local).unwrap().is_local(), "{local}");
        }
        for other in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "gateway:1", "localhost.example:1"] {
            assert!(!ListenAddress::parse(other).unwrap().is_local(), "{other}");
        }
    }
}
