//! TLS on the command line: who is trusted, who one is, and what of it the gateway's own configuration tells.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::Args;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::failure::{Failure, Outcome};
use crate::{
    client::tls::{self, Identity},
    net::tls::x509::{Certificate, Name},
    types::TlsFiles,
};

/// Whom a connection trusts.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "TLS")]
pub struct Trust {
    /// Speak TLS, and trust the authorities in this file (PEM) besides the system's own
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Speak TLS, and expect the gateway's certificate to hold this name [default: the host that is called]
    #[arg(long, value_name = "NAME")]
    pub server_name: Option<String>,
}

/// Who one is.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "TLS")]
pub struct Own {
    /// Speak TLS, and show this certificate, PEM (grpc.tls.client_ca_file, [[grpc.clients]])
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// The private key of --cert, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
}

impl Trust {
    /// Whether it asks for TLS.
    pub fn is_set(&self) -> bool {
        self.ca.is_some() || self.server_name.is_some()
    }
}

/// What is needed to speak TLS with one gateway.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// Trusted besides the system's authorities, PEM.
    pub roots: Vec<Vec<u8>>,
    /// The name that the gateway's certificate must hold; `None`: the host that is called.
    pub server_name: Option<String>,
    identity: Option<Identity>,
}

fn read(path: &Path) -> Outcome<Vec<u8>> {
    fs::read(path).map_err(|error| Failure::file("cannot read", path, &error))
}

impl Terms {
    /// As the command line says.
    pub fn given(trust: &Trust, own: &Own) -> Outcome<Self> {
        let roots = trust.ca.as_deref().map(read).transpose()?.into_iter().collect();
        let identity = match (&own.cert, &own.key) {
            (Some(chain), Some(key)) => Some(Identity { chain: read(chain)?, key: read(key)? }),
            _ => None,
        };
        Ok(Self { roots, server_name: trust.server_name.clone(), identity })
    }

    /// The same for a listener of this machine, at `host`, whose files the configuration names: its certificate is trusted
    /// as it stands, and looked for by a name that it has. Where it may not be read, nothing is added.
    pub fn and_files(mut self, files: &TlsFiles, host: &str) -> Self {
        let Ok(pem) = fs::read(&files.certificate_file) else { return self };
        let leaf = CertificateDer::from_pem_slice(&pem).ok().and_then(|der| Certificate::parse(&der));
        let Some(leaf) = leaf else { return self };
        if self.server_name.is_none() {
            self.server_name = name_for(&leaf.names, host);
        }
        self.roots.push(pem);
        self
    }

    /// What connects; `speaks` is the protocol that is offered.
    pub fn connector(&self, speaks: Option<&str>) -> Outcome<TlsConnector> {
        tls::connector(&self.roots, self.identity.as_ref(), speaks).map_err(|error| Failure::usage(error.to_string()))
    }

    /// Shakes hands with the gateway at `host`.
    pub async fn connect(
        &self,
        connector: &TlsConnector,
        host: &str,
        stream: TcpStream,
    ) -> io::Result<Box<dyn Stream>> {
        let name = self.server_name.as_deref().unwrap_or(host);
        let wrong = |_| io::Error::new(io::ErrorKind::InvalidInput, format!("`{name}` is no name of a certificate"));
        let name = ServerName::try_from(name.to_owned()).map_err(wrong)?;
        match connector.connect(name, stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(io::Error::new(error.kind(), format!("TLS: {error}{}", hint(&error)))),
        }
    }
}

/// What to do about a certificate that is not believed.
fn hint(error: &io::Error) -> &'static str {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
            " (say whom to trust with --ca FILE)"
        }
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::NotValidForNameContext { .. })) => {
            " (say the certificate's name with --server-name NAME)"
        }
        Some(rustls::Error::InvalidMessage(_)) => " (does it speak TLS?)",
        _ => "",
    }
}

/// The name by which a certificate is looked for at `host`: that itself where it stands there, else the first.
fn name_for(names: &[Name], host: &str) -> Option<String> {
    let own = |name: &&Name| match name {
        Name::Dns(name) => name.eq_ignore_ascii_case(host),
        Name::Ip(ip) => ip.to_string() == host,
        _ => false,
    };
    if names.iter().any(|name| own(&name)) {
        return None;
    }
    names.iter().find_map(|name| match name {
        // Whatever stands below a pattern will do.
        Name::Dns(name) => Some(name.strip_prefix("*.").map_or_else(|| name.clone(), |rest| format!("gateway.{rest}"))),
        Name::Ip(ip) => Some(ip.to_string()),
        _ => None,
    })
}

/// A connection of whatever kind.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_looked_for_by_a_name_that_it_has() {
        let dns = |name: &str| Name::Dns(name.to_owned());
        assert_eq!(name_for(&[dns("a.example"), dns("localhost")], "localhost"), None);
        assert_eq!(name_for(&[Name::Ip([127, 0, 0, 1].into())], "127.0.0.1"), None);
        assert_eq!(name_for(&[dns("a.example")], "127.0.0.1").as_deref(), Some("a.example"));
        assert_eq!(name_for(&[dns("*.a.example")], "127.0.0.1").as_deref(), Some("gateway.a.example"));
        assert_eq!(name_for(&[], "127.0.0.1"), None);
    }
}
