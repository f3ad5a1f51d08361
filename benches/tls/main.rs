//! What TLS costs: memory of idle sessions, CPU time of echoes and of connects, with it and without.
//!
//! `cargo bench --bench tls [-- SESSIONS ECHOES]`, 2,000 sessions and 100,000 echoes where nothing is said. It prints the
//! rows that BENCHMARKS.md shows, and decides nothing.

#[path = "../support/daemon.rs"]
mod daemon;

use std::{sync::Arc, time::Duration};

use daemon::{Daemon, Error, SECRET};
use futures_util::{SinkExt as _, StreamExt as _};
use pushgate::api::proto::{GetStatusRequest, ProcessStatus};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

/// Sessions that echo at the same time.
const ECHOING: u64 = 50;
/// What an echo carries.
const ECHO: &str = r#"{"type":"echo","data":"0123456789012345678901234567890123456789"}"#;

trait Line: AsyncRead + AsyncWrite + Send + Unpin {}
impl<L: AsyncRead + AsyncWrite + Send + Unpin> Line for L {}
type Socket = WebSocketStream<Box<dyn Line>>;

async fn connect(daemon: &Daemon, tls: Option<&TlsConnector>, user: u64) -> Result<Socket, Error> {
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    let claims = serde_json::json!({ "sub": format!("user-{user}") });
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key)?;
    let stream = TcpStream::connect(daemon.http).await?;
    stream.set_nodelay(true)?;
    let line: Box<dyn Line> = match tls {
        None => Box::new(stream),
        Some(tls) => Box::new(tls.connect(ServerName::try_from("localhost")?, stream).await?),
    };
    let url = format!("ws://localhost/ws?token={token}");
    let (mut socket, _) = tokio_tungstenite::client_async(url, line).await?;
    let hello = socket.next().await.ok_or("no greeting")??;
    if hello.to_text()?.contains("auth_success") { Ok(socket) } else { Err("not let in".into()) }
}

async fn process(daemon: &Daemon) -> Result<ProcessStatus, Error> {
    let page = daemon.client().await?.get_status(GetStatusRequest {}).await?.into_inner();
    Ok(page.process.unwrap_or_default())
}

/// Microseconds of CPU time.
fn cpu(process: &ProcessStatus) -> f64 {
    let cpu = process.cpu.unwrap_or_default();
    cpu.seconds as f64 * 1e6 + f64::from(cpu.nanos) / 1e3
}

async fn measure(further: &str, tls: Option<&TlsConnector>, sessions: u64, echoes: u64) -> Result<[f64; 3], Error> {
    let folder = tempfile::TempDir::new()?;
    let daemon = Daemon::start(folder.path(), "sled", further)?;
    // What a first session brings with it is none's.
    drop(connect(&daemon, tls, u64::MAX).await?);
    let before = process(&daemon).await?;
    let mut idle = Vec::new();
    for user in 0..sessions {
        idle.push(connect(&daemon, tls, user).await?);
    }
    let connected = process(&daemon).await?;
    // The allocator gives back what the handshakes took.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let resting = process(&daemon).await?;
    let mut echoing = JoinSet::new();
    for mut socket in idle.drain(..ECHOING.min(sessions) as usize) {
        echoing.spawn(async move {
            for _ in 0..echoes / ECHOING {
                socket.send(Message::text(ECHO)).await?;
                while !matches!(socket.next().await, Some(Ok(Message::Text(_)))) {}
            }
            Ok::<_, Error>(socket)
        });
    }
    let mut kept = Vec::new();
    let begun = process(&daemon).await?;
    while let Some(done) = echoing.join_next().await {
        kept.push(done??);
    }
    let done = process(&daemon).await?;
    Ok([
        (resting.rss_bytes as f64 - before.rss_bytes as f64) / 1024.0 / sessions as f64,
        (cpu(&connected) - cpu(&before)) / sessions as f64,
        (cpu(&done) - cpu(&begun)) / (echoes / ECHOING * ECHOING) as f64,
    ])
}

async fn run(sessions: u64, echoes: u64) -> Result<(), Error> {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let folder = tempfile::TempDir::new()?;
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    std::fs::write(&certificate, certified.cert.pem())?;
    std::fs::write(&key, certified.signing_key.serialize_pem())?;
    let mut roots = RootCertStore::empty();
    roots.add(certified.cert.der().clone())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    // Every handshake is a whole one.
    config.resumption = rustls::client::Resumption::disabled();
    let connector = TlsConnector::from(Arc::new(config));
    let further =
        format!("http.tls = {{ certificate_file = \"{}\", key_file = \"{}\" }}", certificate.display(), key.display());
    println!("| {sessions} sessions | KiB a session, idle | µs CPU a connect | µs CPU an echo |\n|---|---|---|---|");
    for (name, further, tls) in [("plain", "", None), ("TLS 1.3", further.as_str(), Some(&connector))] {
        let [memory, connect, echo] = measure(further, tls, sessions, echoes).await?;
        println!("| {name} | {memory:.2} | {connect:.1} | {echo:.2} |");
    }
    Ok(())
}

fn main() -> Result<(), Error> {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let (sessions, echoes) = (numbers.first().copied().unwrap_or(2000), numbers.get(1).copied().unwrap_or(100_000));
    tokio::runtime::Runtime::new()?.block_on(run(sessions, echoes))
}
