//! The section `[ops]`: the listener for operators and their tools.

use serde::{Deserialize, Serialize};

use crate::types::TlsFiles;

/// The section `[ops]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The addresses it listens on, `host:port`. Empty: there is no such listener.
    pub listen: Vec<String>,
    /// `[ops.tls]`.
    pub tls: TlsFiles,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: vec!["127.0.0.1:7002".to_owned()], tls: TlsFiles::default() }
    }
}
