//! The sections `[http]`, the public listener, and `[ws]`, what is spoken on it.

use serde::{Deserialize, Serialize};

use crate::types::TlsFiles;

/// The section `[http]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The addresses it listens on, `host:port`.
    pub listen: Vec<String>,
    /// The path of the WebSocket endpoint.
    pub path: String,
    /// The origins of pages that may connect: patterns such as `https://*.example.com`. Empty: any.
    pub origins: Vec<String>,
    /// The proxies that are believed about where a connection comes from: addresses, and networks in CIDR notation.
    pub trusted_proxies: Vec<String>,
    /// In which header of a request they say so.
    pub forwarded_header: ForwardedHeader,
    /// Whether they say so in a header of the PROXY protocol, version 2.
    pub proxy_protocol: bool,
    /// `[http.tls]`.
    pub tls: TlsFiles,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec!["0.0.0.0:7000".to_owned()],
            path: "/ws".to_owned(),
            origins: Vec::new(),
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::Auto,
            proxy_protocol: false,
            tls: TlsFiles::default(),
        }
    }
}

/// The header in which trusted proxies say whom a request comes from. What stands in the other one comes from the client, where
/// the proxies let it through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeader {
    /// Either; where both are there and disagree, none is believed.
    #[default]
    Auto,
    /// `X-Forwarded-For` alone.
    XForwardedFor,
    /// `Forwarded` (RFC 7239) alone.
    Forwarded,
}

/// The section `[ws]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct WsConfig {
    /// Whether messages may be compressed.
    pub compression: Compression,
}

/// permessage-deflate (RFC 7692).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// With every client that offers it.
    #[default]
    Auto,
    /// With none.
    Off,
}
