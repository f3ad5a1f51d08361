//! Fetches one document over HTTPS, bounded in time and size; over plain HTTP from this machine only.
//!
//! Redirects are followed a few times, and never from TLS to none. What is said of a failure names the place without its
//! query, and nothing of what came.

use std::{fmt, net::IpAddr, path::Path, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::keys;
use crate::limits;

/// The bytes of a response's head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The bytes of a file of certificates.
const CA_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Where a document is.
#[derive(Clone, PartialEq, Eq)]
pub struct Place {
    secure: bool,
    /// A name or an address, without brackets.
    host: String,
    port: u16,
    path_and_query: String,
}

/// Without the query, which may hold what is nobody else's.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        let path = self.path_and_query.split('?').next().unwrap_or_default();
        write!(f, "{scheme}://{}{path}", self.authority())
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Place {
    /// Reads a URL. The error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "is no URL such as \"https://id.example.com/.well-known/jwks.json\"".to_owned();
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(wrong()) };
        if authority.as_str().contains('@') {
            return Err("holds a name or a password, which are not sent; leave them out".to_owned());
        }
        let secure = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(wrong()),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        // A port that is none is neither there nor not.
        if host.is_empty() || (authority.port_u16().is_none() && authority.as_str() != authority.host()) {
            return Err(wrong());
        }
        let path_and_query = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let place = Self { secure, host, port, path_and_query };
        if !secure && !place.is_local() {
            return Err(
                "is not https, and keys that come in the clear can be anybody's; http is for 127.0.0.1, [::1] and \
                        localhost only"
                    .to_owned(),
            );
        }
        Ok(place)
    }

    /// Whether TLS is spoken there.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    fn is_local(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost") || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == if self.secure { 443 } else { 80 } { host } else { format!("{host}:{}", self.port) }
    }

    /// Where a redirect leads.
    fn redirected(&self, location: &str) -> Result<Self, String> {
        let next = if location.starts_with('/') && !location.starts_with("//") {
            Self { path_and_query: location.to_owned(), ..self.clone() }
        } else {
            Self::parse(location).map_err(|why| format!("redirects to what {why}"))?
        };
        if self.secure && !next.secure {
            return Err("redirects from https to http, which is not followed".to_owned());
        }
        Ok(next)
    }
}

/// Speaks TLS with whom it trusts.
#[derive(Clone)]
pub(super) struct Fetcher {
    tls: TlsConnector,
}

impl Fetcher {
    /// Trusts whom `ca_file` names, or the system where it is empty.
    pub(super) fn new(ca_file: &Path) -> Result<Self, String> {
        Ok(Self { tls: tls_trusting(ca_file)? })
    }

    /// What is there.
    pub(super) async fn fetch(&self, place: &Place) -> Result<Bytes, String> {
        let within = limits::JWKS_FETCH_TIMEOUT;
        let fetched = tokio::time::timeout(within, self.follow(place)).await;
        fetched.unwrap_or_else(|_| Err(format!("{place}: no answer within {} s", within.as_secs())))
    }

    async fn follow(&self, place: &Place) -> Result<Bytes, String> {
        let mut place = place.clone();
        for _ in 0..=limits::JWKS_REDIRECTS_MAX {
            let at = |why: String| format!("{place}: {why}");
            let answer = self.ask(&place).await.map_err(at)?;
            match answer {
                Answer::Here(body) => return Ok(body),
                Answer::There(location) => place = place.redirected(&location).map_err(at)?,
            }
        }
        Err(format!("{place}: redirects more than {} times", limits::JWKS_REDIRECTS_MAX))
    }

    async fn ask(&self, place: &Place) -> Result<Answer, String> {
        let stream = TcpStream::connect((place.host.as_str(), place.port))
            .await
            .map_err(|error| format!("cannot connect: {error}"))?;
        if place.secure {
            let name = ServerName::try_from(place.host.clone()).map_err(|_| "no certificate can have that name")?;
            let stream = self.tls.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?;
            return exchange(stream, place).await;
        }
        // A name of this machine that leads to another one.
        if !stream.peer_addr().is_ok_and(|peer| peer.ip().is_loopback()) {
            return Err("is not on this machine, and not https".to_owned());
        }
        exchange(stream, place).await
    }
}

/// Speaks TLS with whom `ca_file` (PEM) vouches for, or the system where it is empty.
///
/// # Errors
/// A file that cannot be read or has no certificate.
pub fn tls_trusting(ca_file: &Path) -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    if ca_file.as_os_str().is_empty() {
        // A system has certificates that no library reads; what is left is what there is.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    } else {
        let pem = keys::read(ca_file, CA_FILE_BYTES_MAX, "a list of certificates")?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| format!("is not PEM: {error}"))?;
            roots.add(certificate).map_err(|error| format!("holds a certificate that is none: {error}"))?;
        }
        if roots.is_empty() {
            return Err("holds no certificate in PEM".to_owned());
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

enum Answer {
    Here(Bytes),
    There(String),
}

async fn exchange(stream: impl AsyncRead + AsyncWrite + Unpin + Send, place: &Place) -> Result<Answer, String> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| format!("no HTTP: {error}"))?;
    let request = Request::get(&place.path_and_query)
        .header(header::HOST, place.authority())
        .header(header::ACCEPT, "application/jwk-set+json, application/json")
        .header(header::USER_AGENT, concat!("pushgate/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answering = async {
        let response = sender.send_request(request).await.map_err(|error| format!("no answer: {error}"))?;
        read(response).await
    };
    // The connection carries what is asked, and ends with it, or with the error that it then has, too.
    let carrying = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        answer = answering => answer,
        () = carrying => Err("the connection ended".to_owned()),
    }
}

async fn read(response: Response<Incoming>) -> Result<Answer, String> {
    let status = response.status();
    if matches!(
        status,
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    ) {
        let location = response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
        return location.map(|location| Answer::There(location.to_owned())).ok_or("redirects to nowhere".to_owned());
    }
    if status != StatusCode::OK {
        return Err(format!("answers {status}"));
    }
    let most = limits::JWKS_BYTES_MAX;
    let body = Limited::new(response.into_body(), most).collect().await;
    let body = body.map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            format!("has more than {most} bytes")
        } else {
            format!("ends too early: {error}")
        }
    })?;
    Ok(Answer::Here(body.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_fetched_by_https_and_in_the_clear_from_this_machine_only() {
        for good in [
            "https://id.example.com/jwks?x=1",
            "https://[2001:db8::1]:8443/",
            "http://127.0.0.1:80/a",
            "http://localhost",
            "http://[::1]:9/x",
        ] {
            Place::parse(good).unwrap_or_else(|why| panic!("{good} {why}"));
        }
        for bad in [
            "",
            "jwks.json",
            "/jwks",
            "ftp://a/b",
            "https://",
            "https://a:99999/",
            "http://id.example.com/jwks",
            "http://10.0.0.1/jwks",
            "http://127.0.0.1.example.com/",
            "https://user:password@id.example.com/",
        ] {
            assert!(Place::parse(bad).is_err(), "{bad}");
        }
        let place = Place::parse("https://id.example.com/jwks?key=secret").unwrap();
        assert_eq!((place.to_string().as_str(), place.port), ("https://id.example.com/jwks", 443));
        assert!(!format!("{place:?}").contains("secret"));
    }

    #[test]
    fn a_redirect_never_leads_out_of_tls() {
        let secure = Place::parse("https://id.example.com/jwks").unwrap();
        assert_eq!(secure.redirected("/other?a=b").unwrap().path_and_query, "/other?a=b");
        assert_eq!(secure.redirected("https://b.example/x").unwrap().host, "b.example");
        for location in ["http://id.example.com/jwks", "http://127.0.0.1/jwks", "//b.example/x", "other", "ftp://a/"] {
            assert!(secure.redirected(location).is_err(), "{location}");
        }
        let local = Place::parse("http://127.0.0.1:1/").unwrap();
        assert!(local.redirected("https://b.example/x").unwrap().secure && local.redirected("/x").is_ok());
        assert!(local.redirected("http://b.example/x").is_err());
    }
}
