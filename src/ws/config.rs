//! The section `[http]`: the public listener.

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
    /// `[http.tls]`.
    pub tls: TlsFiles,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: vec!["0.0.0.0:7000".to_owned()], path: "/ws".to_owned(), tls: TlsFiles::default() }
    }
}
