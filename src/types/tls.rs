//! The files that a listener needs for TLS, as configuration names them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One of `[http.tls]`, `[grpc.tls]`, `[ops.tls]`. Empty: not set; all empty: the listener speaks plain text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsFiles {
    /// The certificate chain, PEM.
    pub certificate_file: PathBuf,
    /// Its private key, PEM.
    pub key_file: PathBuf,
    /// The authorities whose client certificates are accepted, PEM.
    pub client_ca_file: PathBuf,
}

impl TlsFiles {
    /// Whether the listener speaks TLS.
    pub fn is_set(&self) -> bool {
        !self.certificate_file.as_os_str().is_empty()
    }

    /// Whether the listener's callers may prove by a certificate who they are.
    pub fn has_authorities(&self) -> bool {
        !self.client_ca_file.as_os_str().is_empty()
    }
}
