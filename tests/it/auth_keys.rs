//! Keys that come from elsewhere and change: a set by HTTPS or from a file, key files, and what a source that fails does.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::support::{
    Client, Gateway, Token,
    child::{Daemon, config},
    client::request,
    token::{key_path, private_key},
    until,
};

/// Serves one answer to whoever asks, by TLS or in the clear; counts how often.
struct Provider {
    url: String,
    asked: Arc<AtomicUsize>,
    answer: Arc<Mutex<Vec<u8>>>,
    task: JoinHandle<()>,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer_one(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: Vec<u8>) {
    let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(count) if count > 0 => head.extend_from_slice(&buffer[..count]),
            _ => return,
        }
    }
    let _ = stream.write_all(&answer).await;
    let _ = stream.shutdown().await;
}

impl Provider {
    async fn start(tls: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = tls.then(|| {
            let certificate = CertificateDer::from_pem_file(key_path("test-tls-certificate.pem")).unwrap();
            let key = PrivateKeyDer::from_pem_file(key_path("test-tls-private.pem")).unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
            let config = config.unwrap().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
            TlsAcceptor::from(Arc::new(config))
        });
        let (asked, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (counter, shown) = (Arc::clone(&asked), Arc::clone(&answer));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (counter, shown, acceptor) = (Arc::clone(&counter), Arc::clone(&shown), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        // Who does not trust the certificate is gone again.
                        Some(acceptor) => {
                            let Ok(stream) = acceptor.accept(stream).await else { return };
                            counter.fetch_add(1, Ordering::SeqCst);
                            let answer = shown.lock().clone();
                            answer_one(stream, answer).await;
                        }
                        None => {
                            counter.fetch_add(1, Ordering::SeqCst);
                            let answer = shown.lock().clone();
                            answer_one(stream, answer).await;
                        }
                    }
                });
            }
        });
        let scheme = if tls { "https" } else { "http" };
        let provider = Self { url: format!("{scheme}://localhost:{port}/jwks"), asked, answer, task };
        provider.serve(&[]);
        provider
    }

    fn serve(&self, keys: &[Value]) {
        self.say("200 OK", &json!({ "keys": keys }).to_string());
    }

    fn say(&self, status: &str, body: &str) {
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
        *self.answer.lock() = format!("{head}connection: close\r\n\r\n{body}").into_bytes();
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// What DER says behind the last header that is there: the bit string of a public key.
fn der(name: &str) -> Vec<u8> {
    let pem = std::fs::read_to_string(key_path(&format!("test-{name}-public.pem"))).unwrap();
    let text: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

fn ec(kid: &str) -> Value {
    let der = der("p256");
    let (x, y) = der[der.len() - 64..].split_at(32);
    json!({ "kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y) })
}

fn ed(kid: &str) -> Value {
    let der = der("ed25519");
    json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": URL_SAFE_NO_PAD.encode(&der[der.len() - 32..]) })
}

fn rsa(kid: &str) -> Value {
    let der = der("rsa");
    // The end is the exponent, 65537, behind a modulus of 2048 bits.
    let end = der.len() - 5;
    let modulus = &der[end - 256..end];
    json!({ "kty": "RSA", "kid": kid, "n": URL_SAFE_NO_PAD.encode(modulus), "e": "AQAB" })
}

fn by_ec(user: &str, kid: Option<&str>) -> Token {
    Token::of(user).signed(Algorithm::ES256, EncodingKey::from_ec_pem(&private_key("p256")).unwrap(), kid)
}

fn by_ed(user: &str, kid: Option<&str>) -> Token {
    Token::of(user).signed(Algorithm::EdDSA, EncodingKey::from_ed_pem(&private_key("ed25519")).unwrap(), kid)
}

fn by_rsa(user: &str, algorithm: Algorithm, kid: Option<&str>) -> Token {
    Token::of(user).signed(algorithm, EncodingKey::from_rsa_pem(&private_key("rsa")).unwrap(), kid)
}

/// What a token is answered: the user, or the code.
async fn answer(gateway: &Gateway, token: &Token) -> String {
    let (mut client, _) = Client::open(request(&gateway.url(&format!("token={}", token.sign())), &[])).await.unwrap();
    let said = client.next().await;
    said["userId"].as_str().or(said["code"].as_str()).unwrap().to_owned()
}

async fn ready(gateway: &Gateway) -> Value {
    gateway.ops().get("/readyz").await.json()
}

fn settings<'a>(provider: &'a Provider, ca: &'a str) -> Vec<(&'a str, String)> {
    let mut all = vec![("auth.jwks.url", provider.url.clone()), ("auth.jwks.refresh", "1s".to_owned())];
    if !ca.is_empty() {
        all.push(("auth.jwks.ca_file", key_path(ca)));
    }
    all
}

async fn gateway(provider: &Provider, ca: &str, more: &[(&str, &str)]) -> Gateway {
    let settings = settings(provider, ca);
    let mut all: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    all.extend(more);
    Gateway::with(&all).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_set_by_https_vouches_for_tokens_and_changes_without_a_restart() {
    let provider = Provider::start(true).await;
    provider.serve(&[ec("one"), rsa("rsa")]);
    let gateway = gateway(&provider, "test-tls-certificate.pem", &[]).await;
    until("the node is ready", json!(true), async || ready(&gateway).await["ready"].clone()).await;
    assert_eq!(answer(&gateway, &by_ec("ann", Some("one"))).await, "ann");
    assert_eq!(
        answer(&gateway, &by_ec("ann", None)).await,
        "ann",
        "one that names no key is tried with those that fit"
    );
    // Without an `alg` a key of RSA is for all of its own.
    assert_eq!(answer(&gateway, &by_rsa("ann", Algorithm::RS256, Some("rsa"))).await, "ann");
    assert_eq!(answer(&gateway, &by_rsa("ann", Algorithm::PS512, Some("rsa"))).await, "ann");
    assert_eq!(answer(&gateway, &by_ed("ann", Some("two"))).await, "token_invalid");
    let mut live = gateway.client_by(&by_ec("ann", Some("one")), "").await;

    // The key is there as soon as it is asked for, and the old one gone.
    provider.serve(&[ed("two")]);
    assert_eq!(answer(&gateway, &by_ed("ann", Some("two"))).await, "ann");
    assert_eq!(answer(&gateway, &by_ec("ann", Some("one"))).await, "token_invalid");
    live.nothing_more().await;
    // A new token on a session waits for its key as well.
    provider.serve(&[ec("three"), ed("two")]);
    let renewed = live.ask(&json!({ "type": "auth", "id": "r", "token": by_ec("ann", Some("three")).sign() })).await;
    assert_eq!((&renewed["type"], &renewed["replyTo"]), (&json!("auth_success"), &json!("r")), "{renewed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_source_does_wrong_leaves_the_last_good_keys() {
    let provider = Provider::start(false).await;
    provider.serve(&[ec("one")]);
    let gateway = gateway(&provider, "", &[]).await;
    until("the node is ready", json!(true), async || ready(&gateway).await["ready"].clone()).await;
    let large = format!("{{\"keys\":[],\"pad\":\"{}\"}}", "x".repeat(1024 * 1024));
    for (status, body) in [
        ("500 Internal Server Error", "{}"),
        ("200 OK", "<html>"),
        ("200 OK", "{\"keys\":[]}"),
        ("200 OK", "[]"),
        ("200 OK", &large),
        ("404 Not Found", "{\"keys\":[]}"),
        ("302 Found\r\nlocation: http://example.com/jwks", ""),
        ("302 Found\r\nlocation: /jwks", ""),
    ] {
        provider.say(status, body);
        let (asked, failed) = (provider.asked(), gateway.errors("key_source_failed").await);
        until("the set was fetched", true, async || provider.asked() > asked).await;
        until("that was no set", true, async || gateway.errors("key_source_failed").await > failed).await;
        assert_eq!(
            answer(&gateway, &by_ec("ann", Some("one"))).await,
            "ann",
            "{status} {}",
            &body[..body.len().min(40)]
        );
        assert_eq!(ready(&gateway).await["ready"], true, "what is known is enough");
    }
    provider.serve(&[ed("two")]);
    until("the next good one counts", "token_invalid".to_owned(), async || {
        answer(&gateway, &by_ec("ann", Some("one"))).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_not_there_at_the_start_is_said_and_tried_again() {
    let provider = Provider::start(true).await;
    provider.serve(&[ec("one")]);
    // It vouches for nobody: the certificate is another one's.
    let gateway = gateway(&provider, "test-tls-other-certificate.pem", &[]).await;
    let mut said = Value::Null;
    for _ in 0..2 {
        until("why is said", true, async || {
            let now = ready(&gateway).await;
            now["reasons"][0].as_str().is_some_and(|why| why.contains("TLS"))
        })
        .await;
        said = ready(&gateway).await;
    }
    let why = said["reasons"][0].as_str().unwrap();
    assert!(why.starts_with("no keys were fetched for auth.jwks.url yet: https://localhost:"), "{why}");
    assert_eq!(answer(&gateway, &by_ec("ann", Some("one"))).await, "token_invalid");
    assert_eq!(answer(&gateway, &Token::of("ann")).await, "ann", "what other keys vouch for is believed");
    assert_eq!(provider.asked(), 0);

    let provider = Provider::start(false).await;
    provider.say("503 Service Unavailable", "");
    let gateway = self::gateway(&provider, "", &[]).await;
    until("not ready", json!(false), async || ready(&gateway).await["ready"].clone()).await;
    provider.serve(&[ec("one")]);
    until("ready once it answers", json!(true), async || ready(&gateway).await["ready"].clone()).await;
    assert_eq!(answer(&gateway, &by_ec("ann", Some("one"))).await, "ann");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_key_names_have_the_set_fetched_at_a_bounded_rate_and_hold_nobody_up() {
    let provider = Provider::start(false).await;
    provider.serve(&[ec("one")]);
    let gateway = gateway(&provider, "", &[("auth.jwks.refresh", "1h")]).await;
    until("the node is ready", json!(true), async || ready(&gateway).await["ready"].clone()).await;
    let before = provider.asked();
    let began = std::time::Instant::now();
    let flood = (0..400).map(|n| {
        let gateway = &gateway;
        async move {
            let token = by_ec("eve", Some(&format!("unknown-{n}")));
            assert_eq!(answer(gateway, &token).await, "token_invalid");
        }
    });
    futures_util::future::join_all(flood).await;
    assert_eq!(answer(&gateway, &by_ec("ann", Some("one"))).await, "ann");
    // Five at once, and one in ten seconds.
    let most = 5 + usize::try_from(began.elapsed().as_secs() / 10).unwrap();
    let asked = provider.asked() - before;
    assert!((1..=most).contains(&asked), "{asked} fetches, {most} allowed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_a_key_is_passed_over() {
    let provider = Provider::start(false).await;
    let secret = URL_SAFE_NO_PAD.encode([b'k'; 64]);
    let with = |mut key: Value, name: &str, value: Value| {
        key[name] = value;
        key
    };
    let mut short = rsa("short");
    let modulus = URL_SAFE_NO_PAD.decode(short["n"].as_str().unwrap()).unwrap();
    short["n"] = json!(URL_SAFE_NO_PAD.encode(&modulus[..128]));
    let bad = [
        ("a secret that everybody has", json!({ "kty": "oct", "kid": "bad", "alg": "HS256", "k": secret })),
        ("for encryption", with(ec("bad"), "use", json!("enc"))),
        ("for something else", with(ec("bad"), "key_ops", json!(["encrypt"]))),
        ("another's algorithm", with(ec("bad"), "alg", json!("HS256"))),
        ("no algorithm", with(ec("bad"), "alg", json!("none"))),
        ("a private key", with(ec("bad"), "d", json!(secret))),
        ("an unknown curve", with(ec("bad"), "crv", json!("secp256k1"))),
        ("half a point", with(ec("bad"), "y", json!("AA"))),
        ("too short", short),
        ("an exponent of one", with(rsa("bad"), "e", json!("AQ"))),
        ("no object", json!("bad")),
    ];
    let keys: Vec<Value> = bad.iter().map(|(_, key)| key.clone()).chain([ed("good")]).collect();
    provider.serve(&keys);
    let gateway = gateway(&provider, "", &[]).await;
    until("the node is ready", json!(true), async || ready(&gateway).await["ready"].clone()).await;
    assert_eq!(gateway.hub.authenticator().key_count(), 2, "the configured one and the good one");
    assert_eq!(answer(&gateway, &by_ed("ann", Some("good"))).await, "ann");
    let hmac = |key: &[u8]| Token::of("eve").signed(Algorithm::HS256, EncodingKey::from_secret(key), Some("bad"));
    assert_eq!(answer(&gateway, &hmac(&[b'k'; 64])).await, "token_invalid");
    assert_eq!(answer(&gateway, &by_ec("eve", Some("bad"))).await, "token_invalid");
    // A public key is no secret.
    let public = der("ed25519");
    let forged =
        Token::of("eve").signed(Algorithm::HS256, EncodingKey::from_secret(&public[public.len() - 32..]), Some("good"));
    assert_eq!(answer(&gateway, &forged).await, "token_invalid");
    let none = format!(
        "{}.{}.",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"good"}"#),
        URL_SAFE_NO_PAD.encode(r#"{"sub":"eve","exp":9999999999}"#)
    );
    let (mut client, _) = Client::open(request(&gateway.url(&format!("token={none}")), &[])).await.unwrap();
    assert_eq!(client.next().await["code"], "token_invalid");
}

/// Puts a file in its place at one stroke.
fn put(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn key_files_are_read_again_when_they_change() {
    let folder = tempfile::tempdir().unwrap();
    let (set, secret) = (folder.path().join("jwks.json"), folder.path().join("secret"));
    put(&set, &json!({ "keys": [ec("one")] }).to_string());
    put(&secret, &"1".repeat(32));
    let keys = format!(r#"[{{ algorithm = "HS256", secret_file = "{}" }}]"#, secret.display());
    let gateway = Gateway::with(&[("auth.jwks.file", set.to_str().unwrap()), ("auth.keys", &keys)]).await;
    let hmac =
        |secret: &str| Token::of("ann").signed(Algorithm::HS256, EncodingKey::from_secret(secret.as_bytes()), None);
    assert_eq!(answer(&gateway, &by_ec("ann", Some("one"))).await, "ann");
    assert_eq!(answer(&gateway, &hmac(&"1".repeat(32))).await, "ann");

    put(&secret, &"2".repeat(32));
    let (old, new) = (hmac(&"1".repeat(32)), hmac(&"2".repeat(32)));
    until("the new secret counts", "ann".to_owned(), async || answer(&gateway, &new).await).await;
    assert_eq!(answer(&gateway, &old).await, "token_invalid");
    // What is none leaves all as it was.
    let failing = async || gateway.ops().get("/metrics").await.body.contains("\npushgate_key_source_failing 1\n");
    assert!(!failing().await);
    put(&set, "{");
    until("that is counted", true, async || gateway.errors("key_source_failed").await > 0).await;
    until("that is a gauge, too", true, failing).await;
    assert_eq!(answer(&gateway, &by_ec("ann", Some("one"))).await, "ann");
    put(&set, &json!({ "keys": [ed("two")] }).to_string());
    until("the new set counts", "ann".to_owned(), async || answer(&gateway, &by_ed("ann", Some("two"))).await).await;
    assert_eq!(answer(&gateway, &by_ec("ann", Some("one"))).await, "token_invalid");
    until("it is mended", false, failing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_has_keys_read_again_and_short_secrets_are_refused_or_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let short = format!("auth.keys = [{{ algorithm = \"HS256\", secret = \"{}\" }}]", "s3cret-".repeat(4));
    // The common configuration has a key already: this one takes its place in the environment of the command.
    let file = config(folder.path(), "");
    let text = std::fs::read_to_string(&file).unwrap();
    let start = text.find("auth.keys").unwrap();
    let end = start + text[start..].find('\n').unwrap();
    std::fs::write(&file, text.replace(&text[start..end], &short)).unwrap();
    let (code, _, error) = crate::support::child::run(&["config", "check", "--config", file.to_str().unwrap()]).await;
    assert_eq!(code, 78);
    assert!(
        error.contains("holds a secret of 28 bytes, and HS256 needs 32 at least") && !error.contains("s3cret"),
        "{error}"
    );
    std::fs::write(&file, text.replace(&text[start..end], &format!("{short}\nauth.weak_keys = true"))).unwrap();
    let mut daemon = Daemon::start(&file).await;
    assert!(daemon.log.contains("this HMAC secret is too short for its algorithm"), "{}", daemon.log);
    assert!(!daemon.log.contains("s3cret"));
    // It lives on.
    daemon.signal(rustix::process::Signal::HUP);
    let url = format!("ws://{}/ws?token=x", daemon.address("http"));
    let (mut client, _) = Client::open(request(&url, &[])).await.unwrap();
    assert_eq!(client.next().await["code"], "token_invalid");
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_secret_that_comes_later_is_warned_of_once() {
    const WARNING: &str = "this HMAC secret is too short for its algorithm; auth.weak_keys lets it pass";
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    let put = |text: &str| std::fs::write(&secret, text).unwrap();
    put(&"1".repeat(32));
    let file = config(folder.path(), "auth.weak_keys = true\n");
    let text = std::fs::read_to_string(&file).unwrap();
    let start = text.find("auth.keys").unwrap();
    let end = start + text[start..].find('\n').unwrap();
    let keys =
        format!("auth.keys = [{{ algorithm = \"HS256\", kid = \"k\", secret_file = \"{}\" }}]", secret.display());
    std::fs::write(&file, text.replace(&text[start..end], &keys)).unwrap();
    let mut daemon = Daemon::start(&file).await;
    assert!(!daemon.log.contains(WARNING), "{}", daemon.log);
    put("short");
    daemon.signal(rustix::process::Signal::HUP);
    let line = daemon.logged(WARNING).await;
    assert_eq!((&line["level"], &line["kid"], &line["bytes"]), (&json!("WARN"), &json!("k"), &json!(5)));
    daemon.logged("keys were read again").await;
    // Nothing has changed.
    daemon.signal(rustix::process::Signal::HUP);
    put(&"2".repeat(32));
    daemon.signal(rustix::process::Signal::HUP);
    daemon.logged("keys were read again").await;
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.ended().await.success());
    assert_eq!(daemon.log.matches(WARNING).count(), 1, "{}", daemon.log);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_far_exp_is_clamped_and_the_session_ends_then() {
    let gateway = Gateway::with(&[("auth.max_lifetime", "3s")]).await;
    let began = std::time::SystemTime::now();
    let mut client = gateway.client("ann").await;
    let end = humantime::parse_rfc3339(client.hello["tokenExpiresAt"].as_str().unwrap()).unwrap();
    let lifetime = end.duration_since(began).unwrap();
    assert!((Duration::from_millis(2990)..Duration::from_secs(10)).contains(&lifetime), "{lifetime:?}");
    assert_eq!(client.next().await["type"], "token_expiring");
    assert_eq!(client.closed().await, (4401, "token_expired".to_owned()));
    // The token itself is as good as it was.
    assert_eq!(answer(&gateway, &Token::of("ann")).await, "ann");
}
