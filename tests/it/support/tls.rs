//! Certificates made in the test, and connections that speak TLS.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::soon;

/// An authority that issues certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub pem: String,
}

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Issued {
    pub certificate: String,
    pub key: String,
    /// When it expires, in seconds since the Unix epoch.
    pub expires_at: i64,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, "a test's authority");
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A server's certificate, good for so many days from an hour ago.
    pub fn server(&self, names: &[&str], days: i64) -> Issued {
        self.issue(names, days, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client's, with these names, of which those with `://` are URIs.
    pub fn client(&self, names: &[&str]) -> Issued {
        self.issue(names, 1, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(&self, names: &[&str], days: i64, usage: ExtendedKeyUsagePurpose) -> Issued {
        let key = KeyPair::generate().unwrap();
        let (uris, plain): (Vec<&str>, Vec<&str>) = names.iter().copied().partition(|name| name.contains("://"));
        let plain: Vec<String> = plain.into_iter().map(str::to_owned).collect();
        let mut params = CertificateParams::new(plain).unwrap();
        params.subject_alt_names.extend(uris.into_iter().map(|uri| SanType::URI(uri.try_into().unwrap())));
        params.extended_key_usages = vec![usage];
        let hour = Duration::from_secs(3600);
        let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(super::token::unix_now());
        (params.not_before, params.not_after) = (now - hour, now - hour + hour * 24 * u32::try_from(days).unwrap());
        if days == 0 {
            params.not_before = now - hour * 2;
        }
        let expires_at = params.not_after.unix_timestamp();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued { certificate, key: key.serialize_pem(), expires_at }
    }
}

/// A folder with `tls.crt`, `tls.key` and `ca.crt`, which are swapped as certificate managers do: `..data` is a symbolic
/// link to a folder, and is replaced by a rename.
pub struct Files {
    pub folder: tempfile::TempDir,
    swaps: usize,
}

impl Files {
    pub fn new(issued: &Issued, authority: &Authority) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Self { folder, swaps: 0 };
        files.swap(&issued.certificate, &issued.key, &authority.pem);
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            std::os::unix::fs::symlink(Path::new("..data").join(name), files.path(name)).unwrap();
        }
        files
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Others in their place, all at once.
    pub fn swap(&mut self, certificate: &str, key: &str, authority: &str) {
        self.swaps += 1;
        let data = self.path(&format!("..{}", self.swaps));
        std::fs::create_dir(&data).unwrap();
        for (name, text) in [("tls.crt", certificate), ("tls.key", key), ("ca.crt", authority)] {
            std::fs::write(data.join(name), text).unwrap();
        }
        let link = self.path("..data_tmp");
        std::os::unix::fs::symlink(data.file_name().unwrap(), &link).unwrap();
        std::fs::rename(link, self.path("..data")).unwrap();
    }

    /// The keys of a section that speaks TLS with them.
    pub fn keys(&self, section: &str) -> Vec<(String, String)> {
        vec![
            (format!("{section}.tls.certificate_file"), self.text("tls.crt")),
            (format!("{section}.tls.key_file"), self.text("tls.key")),
        ]
    }
}

/// What a client of the test trusts and shows.
pub fn client_config(authority: &str, identity: Option<&Issued>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    match identity {
        None => builder.with_no_client_auth(),
        Some(issued) => {
            let chain = vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    }
}

/// The same with one version of TLS only.
pub fn client_config_of(authority: &str, version: &'static rustls::SupportedProtocolVersion) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
    builder.with_root_certificates(roots).with_no_client_auth()
}

/// Connects to `localhost`.
pub async fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    shake(soon("a connection", TcpStream::connect(address)).await?, config).await
}

/// The same with a small receive buffer.
pub async fn connect_narrow(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    shake(soon("a connection", socket.connect(address)).await?, config).await
}

/// Shakes hands on a connection that is there.
pub async fn shake(stream: TcpStream, config: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(Arc::clone(config));
    soon("a handshake", connector.connect(ServerName::try_from("localhost").unwrap(), stream)).await
}

/// The certificate that the other end showed, PEM's content.
pub fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// The DER of a PEM.
pub fn der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}
