//! Who is trusted, and what is shown to who asks: TLS from a client's side.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio_rustls::TlsConnector;

use super::error::BuildError;

/// A chain of certificates and its key, both PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The chain, the client's own certificate first.
    pub chain: Vec<u8>,
    /// The private key.
    pub key: Vec<u8>,
}

/// Trusts the system's certificates and further ones (PEM). `speaks` is the protocol that is offered (RFC 7301); none: no
/// offer.
///
/// # Errors
/// What is given is no PEM, or nothing is left to trust.
pub fn connector(
    further: &[Vec<u8>],
    identity: Option<&Identity>,
    speaks: Option<&str>,
) -> Result<TlsConnector, BuildError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    // A system has certificates that no library reads; what is left is what there is.
    roots.add_parsable_certificates(system.certs);
    for pem in further {
        let wrong = |what: String| BuildError::Tls(format!("the root certificates: {what}"));
        for certificate in certificates(pem).map_err(wrong)? {
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
    }
    if roots.is_empty() {
        return Err(BuildError::Tls("the system has no root certificates, and none were given".to_owned()));
    }
    let unusable = |error: rustls::Error| BuildError::Tls(error.to_string());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(unusable)?.with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(Identity { chain, key }) => {
            let wrong = |what: String| BuildError::Tls(format!("the own certificate: {what}"));
            let chain = certificates(chain).map_err(wrong)?;
            // What is wrong with a key is said without a word of it.
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| wrong("its key is none (PEM)".to_owned()))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| wrong(error.to_string()))?
        }
    };
    config.alpn_protocols = speaks.map(|id| id.as_bytes().to_vec()).into_iter().collect();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| format!("not PEM: {error}"))?;
    if found.is_empty() { Err("there is none in them".to_owned()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_certificates_are_read_or_refused() {
        for bad in ["", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(matches!(connector(&[bad.into()], None, None), Err(BuildError::Tls(_))), "{bad}");
        }
    }
}
