//! TLS on every listener: who is let in over it, certificates that change while it runs, callers with certificates.

use std::{sync::Arc, time::Duration};

use pushgate::{
    api::proto::{AlertState, Notification, event::Event as Body},
    server::StartError,
    types::UserId,
};
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};

use crate::support::{
    Client, Gateway, Rpc, Token,
    child::{self, Daemon},
    client::request,
    gateway::ADMIN,
    raw,
    rpc::{self, notification},
    soon,
    tls::{Authority, Files, Issued, client_config, client_config_of, connect, connect_narrow, der, shake, shown},
    until,
};

/// A gateway with keys that are computed.
async fn gateway(keys: &[(String, String)], more: &[(&str, &str)]) -> Gateway {
    let mut changes: Vec<(&str, &str)> = keys.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    changes.extend(more);
    Gateway::with(&changes).await
}

fn server(authority: &Authority) -> Issued {
    authority.server(&["localhost", "127.0.0.1"], 90)
}

/// A session over TLS.
async fn session(gateway: &Gateway, config: &Arc<ClientConfig>, user: &str, query: &str) -> Client {
    let stream = connect(gateway.http, config).await.unwrap();
    let url = gateway.url(&format!("token={}&{query}", Token::of(user).sign()));
    Client::open_over(stream, request(&url, &[])).await.unwrap().0.welcomed().await
}

/// A channel to the admin API over TLS.
async fn channel(gateway: &Gateway, mut config: ClientConfig) -> Result<Channel, tonic::transport::Error> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (address, config) = (gateway.grpc, Arc::new(config));
    let connector = tower::service_fn(move |_: Uri| {
        let config = Arc::clone(&config);
        async move { connect(address, &config).await.map(hyper_util::rt::TokioIo::new) }
    });
    soon("a connection", Endpoint::from_static("http://gateway").connect_with_connector(connector)).await
}

/// A gateway's metric with its labels.
fn metric(text: &str, name: &str) -> Option<i64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_live_over_both_versions_of_tls() {
    let authority = Authority::new();
    let files = Files::new(&server(&authority), &authority);
    let gateway = gateway(&files.keys("http"), &[]).await;
    let mut rpc = gateway.rpc().await;
    for (version, number) in
        [(&rustls::version::TLS12, ProtocolVersion::TLSv1_2), (&rustls::version::TLS13, ProtocolVersion::TLSv1_3)]
    {
        let mut config = client_config_of(&authority.pem, version);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let config = Arc::new(config);
        let stream = connect(gateway.http, &config).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(number));
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        // A first message instead of a token in the handshake, and right behind it another one.
        let opened = Client::open_over(stream, request(&gateway.url(""), &[])).await.unwrap();
        let mut client = opened.0;
        client.say(&json!({ "type": "auth", "token": Token::of("alice").sign() })).await;
        client.say(&json!({ "type": "echo", "data": "x".repeat(60_000) })).await;
        assert_eq!(client.next().await["type"], "auth_success");
        assert_eq!(client.next().await["data"].as_str().unwrap().len(), 60_000);
        rpc.send("alice", "y".repeat(200_000)).await;
        assert_eq!(client.data(1).await[0].as_str().unwrap().len(), 200_000);
        client.settle().await;
        until("all is confirmed", 0, async || gateway.pending().await).await;
        client.close().await;
        gateway.sessions("alice", 0).await;
    }
    // Nothing else than HTTP/1.1 is spoken.
    let mut config = client_config(&authority.pem, None);
    config.alpn_protocols = vec![b"h2".to_vec()];
    assert!(connect(gateway.http, &Arc::new(config)).await.is_err());
    until("a failure", 1, async || gateway.errors("tls_handshake").await).await;
}

/// What the kernel does not take is held back encrypted, and nothing of it is lost, doubled or out of order.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_gets_everything_over_tls() {
    let authority = Authority::new();
    let files = Files::new(&server(&authority), &authority);
    // However long the machine takes, he is slow and not gone.
    let patient = [("delivery.confirm_timeout", "1h"), ("limits.write_timeout", "1h"), ("heartbeat.interval", "1h")];
    let gateway = gateway(&files.keys("http"), &patient).await;
    let config = Arc::new(client_config(&authority.pem, None));
    let stream = connect_narrow(gateway.http, &config).await.unwrap();
    let url = gateway.url(&format!("token={}", Token::of("alice").sign()));
    let mut client = Client::open_over(stream, request(&url, &[])).await.unwrap().0.welcomed().await;
    let mut rpc = gateway.rpc().await;
    for n in 0..150 {
        rpc.send("alice", json!({ "n": n, "filling": "z".repeat(20_000) })).await;
    }
    for n in 0..150 {
        assert_eq!(client.data(1).await[0]["n"], n);
    }
    client.settle().await;
    until("all is confirmed", 0, async || gateway.pending().await).await;
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_back_resumes_also_after_a_reload() {
    let authority = Authority::new();
    let mut files = Files::new(&server(&authority), &authority);
    let gateway = gateway(&files.keys("http"), &[]).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = Arc::new(client_config_of(&authority.pem, version));
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let stream = connect(gateway.http, &config).await.unwrap();
            let url = gateway.url(&format!("token={}", Token::of("alice").sign()));
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind), "{version:?}");
            // The ticket comes with what is read.
            Client::open_over(stream, request(&url, &[])).await.unwrap().0.welcomed().await.close().await;
        }
        let next = authority.server(&["localhost"], 30);
        files.swap(&next.certificate, &next.key, &authority.pem);
        until("the next certificate", Some(next.expires_at), async || {
            metric(&gateway.ops().get("/metrics").await.body, EXPIRY)
        })
        .await;
        let stream = connect(gateway.http, &config).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed), "{version:?}");
    }
}

const EXPIRY: &str = "pushgate_tls_certificate_expiry_timestamp_seconds{listener=\"http\"}";

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_while_connections_live_and_bad_ones_do_not() {
    let authority = Authority::new();
    let first = server(&authority);
    let mut files = Files::new(&first, &authority);
    let gateway = gateway(&files.keys("http"), &[]).await;
    let config = Arc::new(client_config(&authority.pem, None));
    // No ticket tells which certificate there is now.
    let anew = || Arc::new(client_config(&authority.pem, None));
    let mut old = session(&gateway, &config, "alice", "").await;
    let expiry = async || metric(&gateway.ops().get("/metrics").await.body, EXPIRY);
    assert_eq!(expiry().await, Some(first.expires_at));
    let page = gateway.rpc().await.status().await;
    let listener = page.listeners.iter().find(|one| one.name == "http").unwrap();
    assert!(listener.tls);
    assert_eq!(listener.certificate_expires_at.unwrap().seconds, first.expires_at);

    let second = authority.server(&["localhost"], 60);
    files.swap(&second.certificate, &second.key, &authority.pem);
    until("the second certificate", Some(second.expires_at), expiry).await;
    assert_eq!(shown(&connect(gateway.http, &anew()).await.unwrap()), der(&second.certificate));
    // The first connection does not notice.
    assert_eq!(old.ask(&json!({ "type": "echo", "data": 1 })).await["data"], 1);

    let mut events = gateway.rpc().await.events(&["alert"], "").await;
    let expired = authority.server(&["localhost"], 0);
    let third = authority.server(&["localhost"], 30);
    for (certificate, key) in [
        (expired.certificate.as_str(), expired.key.as_str()),
        (third.certificate.as_str(), second.key.as_str()),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", second.key.as_str()),
        ("", ""),
        (third.certificate.as_str(), "no key"),
    ] {
        files.swap(certificate, key, &authority.pem);
        let Body::Alert(fired) = events.body().await else { panic!() };
        assert_eq!((fired.name.as_str(), fired.state()), ("certificate_reload", AlertState::Firing), "{fired:?}");
        let metrics = gateway.ops().get("/metrics").await.body;
        assert_eq!(metric(&metrics, "pushgate_alert_firing{alert=\"certificate_reload\"}"), Some(1));
        assert_eq!(metric(&metrics, EXPIRY), Some(second.expires_at));
        assert_eq!(shown(&connect(gateway.http, &anew()).await.unwrap()), der(&second.certificate));
        assert_eq!(old.ask(&json!({ "type": "echo", "data": 2 })).await["data"], 2);
        // Back to what is in use, which clears it.
        files.swap(&second.certificate, &second.key, &authority.pem);
        let Body::Alert(cleared) = events.body().await else { panic!() };
        assert_eq!((cleared.name.as_str(), cleared.state()), ("certificate_reload", AlertState::Cleared));
    }
    files.swap(&third.certificate, &third.key, &authority.pem);
    until("the third certificate", Some(third.expires_at), expiry).await;
    assert_eq!(shown(&connect(gateway.http, &anew()).await.unwrap()), der(&third.certificate));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_soon_expires_is_an_alert() {
    let authority = Authority::new();
    let mut files = Files::new(&authority.server(&["localhost"], 2), &authority);
    let more = [("alerts.fire_after", "0s"), ("alerts.clear_after", "0s"), ("alerts.certificate_expiry", "7d")];
    let gateway = gateway(&files.keys("ops"), &more).await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&["alert"], "").await;
    // It may have fired before somebody listened.
    until("it fires", vec!["certificate_expiry".to_owned()], async || {
        rpc.clone().status().await.alerts.into_iter().map(|one| one.name).collect::<Vec<_>>()
    })
    .await;
    let fired = &rpc.status().await.alerts[0];
    assert!(fired.value > 86_400.0 && fired.value < 2.0 * 86_400.0 && fired.threshold == 7.0 * 86_400.0, "{fired:?}");
    assert!(fired.text.starts_with("the first certificate expires in 2.0 days, below 7.0 days"), "{fired:?}");
    let next = authority.server(&["localhost"], 90);
    files.swap(&next.certificate, &next.key, &authority.pem);
    loop {
        let Body::Alert(alert) = events.body().await else { panic!() };
        assert_eq!(alert.name, "certificate_expiry");
        if alert.state() == AlertState::Cleared {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_keep_it_from_starting() {
    let authority = Authority::new();
    let (one, other) = (server(&authority), server(&authority));
    let files = Files::new(&Issued { key: other.key.clone(), ..one.clone() }, &authority);
    let folder = tempfile::tempdir().unwrap();
    let lines: Vec<String> = files.keys("http").iter().map(|(key, value)| format!("{key} = \"{value}\"")).collect();
    let config = child::config(folder.path(), &(lines.join("\n") + "\n"));
    for command in [&["serve"][..], &["config", "check"]] {
        let args = [command, &["--config", config.to_str().unwrap()]].concat();
        let (code, _, stderr) = child::run(&args).await;
        assert_eq!(code, 78, "{stderr}");
        assert!(
            stderr.contains("http.tls") && stderr.contains("tls.key is not the key of the certificate in"),
            "{stderr}"
        );
    }
    let bad = pushgate::config::Config {
        http: pushgate::ws::Config {
            tls: pushgate::types::TlsFiles {
                certificate_file: "/nowhere/tls.crt".into(),
                key_file: "/nowhere/tls.key".into(),
                ..Default::default()
            },
            ..Default::default()
        },
        ..Default::default()
    };
    let bound = pushgate::server::Server::bind(&bad, pushgate::clock::Clock::system()).await;
    assert!(matches!(bound.err().unwrap(), StartError::Config(_)));
}

/// What callers hear: a good send or its refusal.
async fn sends(rpc: &mut Rpc) -> Result<(), Status> {
    rpc.try_send(rpc::request("alice", notification(1))).await.map(drop)
}

/// Keys of a gRPC listener that asks for certificates.
fn mutual(files: &Files) -> Vec<(String, String)> {
    let mut keys = files.keys("grpc");
    keys.push(("grpc.tls.client_ca_file".to_owned(), files.text("ca.crt")));
    let clients = "[{ name = \"orders.internal\", scopes = [\"send\"] }, \
                   { name = \"spiffe://internal/reader\", scopes = [\"read\"] }]";
    keys.push(("grpc.clients".to_owned(), clients.to_owned()));
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_certificate_says_who_he_is_and_the_configuration_what_he_may() {
    let authority = Authority::new();
    let files = Files::new(&server(&authority), &authority);
    let gateway = gateway(&mutual(&files), &[]).await;
    let caller = async |names: &[&str]| {
        let issued = authority.client(names);
        let channel = channel(&gateway, client_config(&authority.pem, Some(&issued))).await.unwrap();
        Rpc::through(channel, None)
    };
    let mut orders = caller(&["orders.internal"]).await;
    sends(&mut orders).await.unwrap();
    let refused = orders.list(Default::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("orders.internal"), "{refused:?}");
    let mut reader = caller(&["other.internal", "spiffe://internal/reader"]).await;
    reader.status().await;
    assert_eq!(sends(&mut reader).await.unwrap_err().code(), Code::PermissionDenied);
    // Trusted, and listed nowhere.
    let refused = sends(&mut caller(&["stranger.internal"]).await).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("stranger.internal"), "{refused:?}");
    // Tokens are configured as well: who has one needs no certificate, and who has neither is nobody.
    let plain = channel(&gateway, client_config(&authority.pem, None)).await.unwrap();
    sends(&mut Rpc::through(plain.clone(), Some("send-token"))).await.unwrap();
    let nobody = sends(&mut Rpc::through(plain, None)).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated);
    // A token goes before a certificate.
    let both = channel(&gateway, client_config(&authority.pem, Some(&authority.client(&["orders.internal"])))).await;
    let both = both.unwrap();
    Rpc::through(both.clone(), Some(ADMIN)).status().await;
    assert_eq!(sends(&mut Rpc::through(both, Some("wrong"))).await.unwrap_err().code(), Code::Unauthenticated);
    // Another authority's certificate is refused in the handshake.
    let stranger = Authority::new().client(&["orders.internal"]);
    let refused = match channel(&gateway, client_config(&authority.pem, Some(&stranger))).await {
        Ok(channel) => sends(&mut Rpc::through(channel, None)).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
    // The Unix socket has no TLS, and needs none.
    let mut unix = Rpc::over_unix(&gateway.socket).await;
    until("a failure", true, async || unix.clone().errors("tls_handshake").await > 0).await;
    unix.status().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_services_and_operators_change_while_a_stream_lives_and_bad_authorities_do_not() {
    let authority = Authority::new();
    let mut files = Files::new(&server(&authority), &authority);
    let mut keys = mutual(&files);
    keys.extend(files.keys("ops"));
    let gateway = gateway(&keys, &[]).await;
    let config = || client_config(&authority.pem, None);
    let mut rpc = Rpc::through(channel(&gateway, config()).await.unwrap(), Some(ADMIN));
    let mut events = rpc.events(&["alert", "session_opened"], "").await;

    let second = authority.server(&["localhost", "127.0.0.1"], 60);
    files.swap(&second.certificate, &second.key, &authority.pem);
    until("the second certificate on both", vec![second.expires_at; 2], async || {
        let with_tls = rpc.clone().status().await.listeners.into_iter().filter(|one| one.tls);
        with_tls.map(|one| one.certificate_expires_at.unwrap().seconds).collect::<Vec<_>>()
    })
    .await;
    for address in [gateway.grpc, gateway.ops] {
        assert_eq!(shown(&connect(address, &Arc::new(config())).await.unwrap()), der(&second.certificate));
    }
    // The stream does not notice.
    gateway.client("alice").await.close().await;
    assert!(matches!(events.body().await, Body::SessionOpened(opened) if opened.user_id == "alice"));

    // Authorities that are none: those that were there stay.
    let calls_by = async |authority: &Authority, trusted: &str| {
        let issued = authority.client(&["orders.internal"]);
        match channel(&gateway, client_config(trusted, Some(&issued))).await {
            Ok(channel) => sends(&mut Rpc::through(channel, None)).await.is_ok(),
            Err(_) => false,
        }
    };
    let other = Authority::new();
    for bad in ["junk", "", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        files.swap(&second.certificate, &second.key, bad);
        let Body::Alert(fired) = events.body().await else { panic!() };
        assert_eq!((fired.name.as_str(), fired.state()), ("certificate_reload", AlertState::Firing), "{fired:?}");
        assert!(calls_by(&authority, &authority.pem).await, "{bad:?}");
        assert!(!calls_by(&other, &authority.pem).await, "{bad:?}");
        files.swap(&second.certificate, &second.key, &authority.pem);
        let Body::Alert(cleared) = events.body().await else { panic!() };
        assert_eq!((cleared.name.as_str(), cleared.state()), ("certificate_reload", AlertState::Cleared));
    }
    // Another one takes their place, and the stream lives on.
    files.swap(&second.certificate, &second.key, &other.pem);
    until("the other authority", true, async || calls_by(&other, &authority.pem).await).await;
    assert!(!calls_by(&authority, &authority.pem).await);
    gateway.client("bob").await.close().await;
    assert!(matches!(events.body().await, Body::SessionOpened(opened) if opened.user_id == "bob"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tokens_every_caller_needs_a_certificate() {
    let authority = Authority::new();
    let files = Files::new(&server(&authority), &authority);
    let gateway = gateway(&mutual(&files), &[("grpc.tokens", "[]")]).await;
    let known = client_config(&authority.pem, Some(&authority.client(&["orders.internal"])));
    sends(&mut Rpc::through(channel(&gateway, known).await.unwrap(), None)).await.unwrap();
    let refused = match channel(&gateway, client_config(&authority.pem, None)).await {
        Ok(channel) => sends(&mut Rpc::through(channel, None)).await.unwrap_err().code(),
        Err(_) => Code::Unavailable,
    };
    assert_ne!(refused, Code::Unauthenticated, "no call comes so far");
    let unix = Rpc::over_unix(&gateway.socket).await;
    until("a failure", true, async || unix.clone().errors("tls_handshake").await > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_loopback_calls_need_tls_and_get_it() {
    let authority = Authority::new();
    let files = Files::new(&server(&authority), &authority);
    let mut keys = files.keys("grpc");
    keys.extend(files.keys("ops"));
    let more = [("grpc.listen", "[\"0.0.0.0:0\"]"), ("ops.listen", "[\"0.0.0.0:0\"]")];
    let mut gateway = gateway(&keys, &more).await;
    gateway.grpc.set_ip([127, 0, 0, 1].into());
    gateway.ops.set_ip([127, 0, 0, 1].into());
    let channel = channel(&gateway, client_config(&authority.pem, None)).await.unwrap();
    Rpc::through(channel, Some(ADMIN)).status().await;
    let config = Arc::new(client_config(&authority.pem, None));
    let ask = async |head: &str| {
        let mut stream = connect(gateway.ops, &config).await.unwrap();
        stream.write_all(format!("{head}\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon("an answer", stream.read_to_string(&mut answer)).await.unwrap();
        answer
    };
    assert!(ask("GET /ws/stats HTTP/1.1").await.starts_with("HTTP/1.1 401 "));
    let answer = ask(&format!("GET /ws/stats HTTP/1.1\r\nAuthorization: Bearer {ADMIN}")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let metrics = ask("GET /metrics HTTP/1.1").await;
    assert!(metrics.contains("pushgate_tls_certificate_expiry_timestamp_seconds{listener=\"ops\"} "), "{metrics}");
    assert!(!metrics.contains("{listener=\"http\"}"), "it has none");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_shake_hands_is_counted_and_holds_nobody_up() {
    let authority = Authority::new();
    let files = Files::new(&server(&authority), &authority);
    let gateway = gateway(&files.keys("http"), &[]).await;
    let config = Arc::new(client_config(&authority.pem, None));
    // The beginning of a ClientHello, and no more.
    let mut half = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(gateway.http).await.unwrap();
        stream.write_all(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03").await.unwrap();
        half.push(stream);
    }
    let client = tokio::time::timeout(Duration::from_secs(5), session(&gateway, &config, "alice", "")).await;
    client.expect("in time").close().await;
    // Plain HTTP, junk, and who goes at once: the first two are failures.
    let mut plain = TcpStream::connect(gateway.http).await.unwrap();
    plain.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("the end", plain.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    until("a failure", 1, async || gateway.errors("tls_handshake").await).await;
    drop(TcpStream::connect(gateway.http).await.unwrap());
    // Those that stay silent are let go of when their time is over.
    for mut stream in half {
        let mut rest = Vec::new();
        let _ = soon("the end", stream.read_to_end(&mut rest)).await;
    }
    assert_eq!(gateway.errors("tls_handshake").await, 301);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_handshake_makes_room_for_one_too_many() {
    let authority = Authority::new();
    let files = Files::new(&server(&authority), &authority);
    let gateway = gateway(&files.keys("http"), &[("limits.tls_handshakes", "3")]).await;
    let config = Arc::new(client_config(&authority.pem, None));
    let mut half = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(gateway.http).await.unwrap();
        stream.write_all(b"\x16").await.unwrap();
        half.push(stream);
        // They come in this order.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let client = session(&gateway, &config, "alice", "").await;
    // Well before its time was over.
    let mut oldest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), half[0].read_to_end(&mut oldest)).await.expect("it goes");
    let hits = gateway.rpc().await.status().await.limits.unwrap().hits["tls_handshakes"];
    assert_eq!((hits, gateway.errors("tls_handshake").await), (1, 1));
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_says_comes_before_tls() {
    let authority = Authority::new();
    let files = Files::new(&server(&authority), &authority);
    let more = [("http.trusted_proxies", "[\"127.0.0.1\"]"), ("http.proxy_protocol", "true")];
    let gateway = gateway(&files.keys("http"), &more).await;
    let mut stream = TcpStream::connect(gateway.http).await.unwrap();
    let header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x07\x7f\0\0\x01\x12\x67\x1b\x58";
    stream.write_all(header).await.unwrap();
    let stream = shake(stream, &Arc::new(client_config(&authority.pem, None))).await.unwrap();
    let url = gateway.url(&format!("token={}", Token::of("alice").sign()));
    let _client = Client::open_over(stream, request(&url, &[])).await.unwrap().0.welcomed().await;
    let sessions = gateway.rpc().await.list(Default::default()).await.unwrap().sessions;
    assert_eq!(sessions[0].remote_address, "203.0.113.7:4711");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_binary_reloads_on_sighup_and_its_commands_speak_tls() {
    let authority = Authority::new();
    let first = server(&authority);
    let mut files = Files::new(&first, &authority);
    let folder = tempfile::tempdir().unwrap();
    let mut keys = mutual(&files);
    keys.extend(files.keys("http"));
    let value = |value: &str| if value.starts_with('[') { value.to_owned() } else { format!("\"{value}\"") };
    let lines: Vec<String> = keys.iter().map(|(key, text)| format!("{key} = {}\n", value(text))).collect();
    let config = child::config(folder.path(), &lines.concat());
    let mut daemon = Daemon::start(&config).await;
    let config_flag = ["--config", config.to_str().unwrap()];

    // Commands: by https://, by --ca alone, with a certificate of one's own, and not by guessing.
    let (grpc, ca) = (format!("https://localhost:{}", daemon.address("grpc").port()), files.text("ca.crt"));
    let token = folder.path().join("token");
    std::fs::write(&token, ADMIN).unwrap();
    let token = ["--token-file", token.to_str().unwrap()];
    let run = async |args: &[&[&str]]| child::run(&args.concat()).await;
    let (code, out, err) = run(&[&["status", "--json", "--grpc", &grpc, "--ca", &ca], &token]).await;
    assert_eq!(code, 0, "{err}");
    let page: Value = serde_json::from_str(&out).unwrap();
    let has_tls = |one: &&Value| one["tls"] == true && one["certificateExpiresAt"].is_string();
    assert_eq!(page["listeners"].as_array().unwrap().iter().filter(has_tls).count(), 2, "{out}");
    let (code, _, err) = run(&[&["status", "--grpc", &grpc], &token]).await;
    assert_eq!(code, 69, "{err}");
    assert!(err.contains("TLS: ") && err.contains("--ca"), "{err}");
    let (code, _, err) = run(&[&["status", "--grpc", &grpc["https://".len()..]], &token]).await;
    assert_ne!(code, 0, "{err}");
    let (code, _, err) =
        run(&[&["status", "--grpc", &grpc, "--ca", &ca, "--server-name", "other.example"], &token]).await;
    assert_eq!(code, 69, "{err}");
    let caller = authority.client(&["orders.internal"]);
    let (certificate, key) = (files.path("client.crt"), files.path("client.key"));
    std::fs::write(&certificate, &caller.certificate).unwrap();
    std::fs::write(&key, &caller.key).unwrap();
    let own = ["--cert", certificate.to_str().unwrap(), "--key", key.to_str().unwrap()];
    let (code, _, err) = run(&[&["send", "alice", "1", "--grpc", &grpc, "--ca", &ca], &own]).await;
    assert_eq!(code, 0, "{err}");
    let (code, _, err) = run(&[&["status", "--grpc", &grpc, "--ca", &ca], &own]).await;
    assert_eq!(code, 77, "{err}");
    assert!(err.contains("orders.internal"), "{err}");
    let url = format!("wss://localhost:{}/ws", daemon.address("http").port());
    let listen = ["listen", "--user", "alice", "--url", &url, "--count", "1", "--for", "10s"];
    let (code, out, err) = run(&[&listen, &["--ca", &ca], &config_flag]).await;
    assert_eq!(code, 0, "{out}{err}");
    let (code, _, err) = run(&[&listen, &config_flag]).await;
    assert_eq!(code, 69, "{err}");

    // SIGHUP, the file written over in its place.
    let anew = || Arc::new(client_config(&authority.pem, None));
    let second = authority.server(&["localhost", "127.0.0.1"], 60);
    files.swap(&second.certificate, &second.key, &authority.pem);
    daemon.signal(rustix::process::Signal::HUP);
    loop {
        let line = daemon.logged("the certificate was reloaded").await;
        if line["listener"] == "http" {
            break;
        }
    }
    assert_eq!(shown(&connect(daemon.address("http"), &anew()).await.unwrap()), der(&second.certificate));
    files.swap("junk", "junk", &authority.pem);
    daemon.signal(rustix::process::Signal::HUP);
    daemon.logged("the new certificate cannot be used; the old one stays").await;
    assert_eq!(shown(&connect(daemon.address("http"), &anew()).await.unwrap()), der(&second.certificate));

    // Commands that find all of it in the configuration.
    files.swap(&second.certificate, &second.key, &authority.pem);
    let (code, out, err) = run(&[&["doctor"], &config_flag, &["--ca", &ca], &token]).await;
    assert!(out.contains("round trip"), "{out}{err}");
    let trip = out.lines().find(|line| line.contains("round trip")).unwrap();
    assert!(trip.starts_with("ok "), "{code} {out}{err}");
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.ended().await.success());
    assert!(!daemon.log.contains("PRIVATE KEY"), "{}", daemon.log);
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_without_certificates_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(&child::config(folder.path(), "")).await;
    daemon.signal(rustix::process::Signal::HUP);
    let line = daemon.logged("the configuration was read again").await;
    assert_eq!((&line["changed"], &line["needs_restart"]), (&json!(""), &json!("")));
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.ended().await.success());
}

/// What the kernel left of the very last message is nobody's to write but the session's task's: nothing else is sent, and
/// the client says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_the_last_message_is_written_when_the_socket_takes_it() {
    let authority = Authority::new();
    let files = Files::new(&server(&authority), &authority);
    let patient = [("limits.write_timeout", "1h"), ("heartbeat.interval", "1h")];
    let gateway = gateway(&files.keys("http"), &patient).await;
    let config = Arc::new(client_config(&authority.pem, None));
    let mut stream = connect_narrow(gateway.http, &config).await.unwrap();
    let head = raw::handshake(&format!("token={}", Token::of("alice").sign()), "");
    stream.write_all(head.as_bytes()).await.unwrap();
    gateway.sessions("alice", 1).await;
    let session = gateway.hub.user_sessions(&UserId::parse("alice").unwrap()).remove(0);
    let stalled = || {
        let core = session.core();
        core.outbox.stalled_since().map(|_| core.outbox.bytes())
    };
    let mut rpc = gateway.rpc().await;
    let mut sent = 0;
    let left = loop {
        sent += 1;
        let text = format!("{sent:0>8000}");
        let notification = Notification { ttl: rpc::ttl(0, 0), ..notification(text) };
        rpc.send_to("alice", notification).await;
        if let Some(left) = stalled() {
            break left;
        }
        assert!(sent < 10_000, "it never stalls");
    };
    assert_eq!(left, 0, "the outbox is done: TLS holds the rest");
    let last = format!("{sent:0>8000}\"");
    let (mut received, mut buffer) = (Vec::new(), vec![0; 65_536]);
    while !received.windows(last.len()).any(|window| window == last.as_bytes()) {
        let count = soon("the rest", stream.read(&mut buffer)).await.unwrap();
        assert!(count > 0, "the end of the connection");
        // Only where the last one may end is looked for it.
        let keep = received.len().saturating_sub(last.len());
        received.drain(..keep);
        received.extend_from_slice(&buffer[..count]);
    }
    until("nothing is stalled", None, async || stalled()).await;
}
