//! From files to a configuration of TLS: a chain with its key, and the authorities of clients.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};

use super::{Terms, x509::Certificate};
use crate::{
    limits,
    types::{TlsFiles, UnixMillis},
};

/// Why files cannot be used. One line each, with the file and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// It cannot be read.
    #[error("{file}: cannot be read: {1}", file = .0.display())]
    Unreadable(PathBuf, String),
    /// It holds something else.
    #[error("{file}: {1}", file = .0.display())]
    Content(PathBuf, String),
    /// The key is another certificate's.
    #[error("{key} is not the key of the certificate in {certificate}", key = .key.display(), certificate = .certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
    },
    /// It is not valid any more.
    #[error("the certificate in {file} expired on {1}; renew it", file = .0.display())]
    Expired(PathBuf, String),
    /// It is not valid yet.
    #[error("the certificate in {file} is not valid before {1}; is the clock right?", file = .0.display())]
    NotYet(PathBuf, String),
    /// What rustls does not take.
    #[error("TLS cannot be set up: {0}")]
    Config(String),
}

/// What the files held.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) config: Arc<ServerConfig>,
    pub(super) certificate: Certificate,
    /// All that was read, to be compared.
    chain: Vec<CertificateDer<'static>>,
    authorities: Vec<CertificateDer<'static>>,
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |error: std::io::Error| TlsError::Unreadable(file.to_owned(), error.to_string());
    let mut bytes = Vec::new();
    let opened = fs::File::open(file).map_err(unreadable)?;
    opened.take(limits::TLS_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > limits::TLS_FILE_BYTES_MAX {
        return Err(content(file, format!("has more than {} bytes", limits::TLS_FILE_BYTES_MAX)));
    }
    Ok(bytes)
}

fn content(file: &Path, problem: impl Into<String>) -> TlsError {
    TlsError::Content(file.to_owned(), problem.into())
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| content(file, format!("is not PEM: {error}")))?;
    if found.is_empty() {
        return Err(content(file, "holds no certificate (PEM, BEGIN CERTIFICATE)"));
    }
    Ok(found)
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let found = PrivateKeyDer::from_pem_slice(&read(file)?);
    // What is wrong with it is said without a word of it.
    found.map_err(|_| content(file, "holds no private key (PEM, PKCS #8, PKCS #1 or SEC 1, not encrypted)"))
}

impl Loaded {
    pub(super) fn read(terms: &Terms, tickets: Option<Arc<dyn ProducesTickets>>) -> Result<Self, TlsError> {
        let TlsFiles { certificate_file, key_file, client_ca_file } = &terms.files;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = certificates(certificate_file)?;
        let certificate = chain.first().and_then(|der| Certificate::parse(der));
        let certificate =
            certificate.ok_or_else(|| content(certificate_file, "begins with a certificate that cannot be read"))?;
        let key = provider.key_provider.load_private_key(private_key(key_file)?);
        let key = key.map_err(|_| content(key_file, "holds a private key of a kind that cannot be used"))?;
        let certified = CertifiedKey::new(chain.clone(), key);
        match certified.keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(TlsError::Mismatch { certificate: certificate_file.clone(), key: key_file.clone() });
            }
            Err(error) => {
                return Err(content(certificate_file, format!("holds a certificate that cannot be used: {error}")));
            }
        }
        let wrong = |error: rustls::Error| TlsError::Config(error.to_string());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(wrong)?;
        let (builder, authorities) = if client_ca_file.as_os_str().is_empty() {
            (builder.with_no_client_auth(), Vec::new())
        } else {
            let authorities = certificates(client_ca_file)?;
            let mut roots = RootCertStore::empty();
            for authority in &authorities {
                let added = roots.add(authority.clone());
                added.map_err(|error| {
                    content(client_ca_file, format!("holds a certificate that cannot be used: {error}"))
                })?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if terms.anonymous { verifier.allow_unauthenticated() } else { verifier };
            let verifier = verifier.build().map_err(|error| TlsError::Config(error.to_string()))?;
            (builder.with_client_cert_verifier(verifier), authorities)
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![terms.speaks.id()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        match tickets {
            Some(tickets) => config.ticketer = tickets,
            None => config.send_tls13_tickets = 0,
        }
        Ok(Self { config: Arc::new(config), certificate, chain, authorities })
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.chain == other.chain && self.authorities == other.authorities
    }

    pub(super) fn check_validity(&self, files: &TlsFiles, now: UnixMillis) -> Result<(), TlsError> {
        let now = i64::try_from(now.0 / 1000).unwrap_or(i64::MAX);
        let (file, Certificate { not_before, not_after, .. }) = (&files.certificate_file, &self.certificate);
        if now > *not_after {
            return Err(TlsError::Expired(file.clone(), moment(*not_after)));
        }
        if now < *not_before {
            return Err(TlsError::NotYet(file.clone(), moment(*not_before)));
        }
        Ok(())
    }
}

fn moment(seconds: i64) -> String {
    UnixMillis(u64::try_from(seconds).unwrap_or_default().saturating_mul(1000)).rfc3339().to_string()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Speaks, Tls},
        *,
    };

    #[test]
    fn a_private_key_does_not_print() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: String| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let files = TlsFiles {
            certificate_file: file("crt", certificate.pem()),
            key_file: file("key", key.serialize_pem()),
            ..TlsFiles::default()
        };
        let tls = Tls::open(Terms {
            listener: "http",
            files,
            speaks: Speaks::Http1,
            anonymous: false,
            handshakes: crate::types::Count(0),
        })
        .unwrap();
        let shown = format!("{tls:?}").to_lowercase();
        assert!(shown.contains("certificate"), "{shown}");
        // PKCS #8 (RFC 5958) of an EC key: the octets behind the tag and length of the first string of 32 are the secret.
        let der = key.serialize_der();
        let at = der.windows(2).position(|tag| tag == [4, 32]).unwrap() + 2;
        for part in der[at..at + 32].chunks(8) {
            let numbers: Vec<String> = part.iter().map(u8::to_string).collect();
            let digits: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(!shown.contains(&numbers.join(", ")) && !shown.contains(&digits), "{shown}");
        }
    }
}
