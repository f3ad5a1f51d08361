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
    /// The keys that are set, by name.
    pub fn set_keys(&self) -> impl Iterator<Item = &'static str> {
        [
            ("certificate_file", &self.certificate_file),
            ("key_file", &self.key_file),
            ("client_ca_file", &self.client_ca_file),
        ]
        .into_iter()
        .filter(|(_, file)| !file.as_os_str().is_empty())
        .map(|(name, _)| name)
    }
}
