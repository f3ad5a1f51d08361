//! `wss://`: a proxy that ends TLS stands before the gateway.

use std::sync::Arc;

use pushgate::client::ConnectError;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::support::{client_at, collecting, next};
use crate::support::{Gateway, Token, token::key_path};

/// Ends TLS in front of the gateway, with the certificate of `tests/keys`; its port.
async fn proxy(gateway: &Gateway, host: &str) -> (u16, JoinSet<()>) {
    let certificate = CertificateDer::from_pem_file(key_path("test-tls-certificate.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(key_path("test-tls-private.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((host, 0)).await.unwrap();
    let (port, behind) = (listener.local_addr().unwrap().port(), gateway.http);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                // Who does not trust the certificate is gone again.
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut gateway = TcpStream::connect(behind).await.unwrap();
                let _ = copy_bidirectional(&mut stream, &mut gateway).await;
            });
        }
    });
    (port, tasks)
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_with_whom_the_client_was_told_to_trust_and_nobody_else() {
    let gateway = Gateway::start().await;
    let (port, _proxy) = proxy(&gateway, "127.0.0.1").await;
    let certificate = std::fs::read(key_path("test-tls-certificate.pem")).unwrap();
    for host in ["localhost", "127.0.0.1"] {
        let builder = client_at(format!("wss://{host}:{port}/ws")).token(Token::of("alice").sign());
        let (builder, mut messages) = collecting(builder.root_certificates(certificate.clone()));
        let client = builder.connect().await.unwrap();
        gateway.rpc().await.send("alice", host).await;
        assert_eq!(next(&mut messages).await, host);
        client.close().await;
    }
    let other = std::fs::read(key_path("test-tls-other-certificate.pem")).unwrap();
    let builder = client_at(format!("wss://localhost:{port}/ws")).token(Token::of("alice").sign());
    let error = builder.root_certificates(other).connect().await.unwrap_err();
    assert!(matches!(&error, ConnectError::Network { problem, .. } if problem.starts_with("TLS: ")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_name_is_refused() {
    let gateway = Gateway::start().await;
    // The certificate holds `localhost` and 127.0.0.1.
    let (port, _proxy) = proxy(&gateway, "127.0.0.2").await;
    let certificate = std::fs::read(key_path("test-tls-certificate.pem")).unwrap();
    let builder = client_at(format!("wss://127.0.0.2:{port}/ws")).token(Token::of("alice").sign());
    let error = builder.root_certificates(certificate).connect().await.unwrap_err();
    assert!(matches!(&error, ConnectError::Network { problem, .. } if problem.starts_with("TLS: ")), "{error:?}");
    gateway.sessions("alice", 0).await;
}
