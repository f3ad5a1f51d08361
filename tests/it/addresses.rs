//! Where connections come from, as sessions and events show it, and which pages may open one.

use std::net::SocketAddr;

use pushgate::api::proto::{ListSessionsRequest, event::Event as Body};
use tokio::io::AsyncWriteExt as _;

use crate::support::{
    Client, Gateway, Raw, Token,
    client::{refusal, request},
    raw::handshake,
    until,
};

const TRUSTED: &str = "[\"127.0.0.1\", \"10.0.0.0/8\"]";

/// A gateway that believes who is on loopback.
async fn believing(more: &[(&str, &str)]) -> Gateway {
    let mut changes = vec![("http.trusted_proxies", TRUSTED)];
    changes.extend(more);
    Gateway::with(&changes).await
}

/// The address that the one session of a user shows.
async fn address_of(gateway: &Gateway, user: &str) -> String {
    let filter = ListSessionsRequest { user_id: user.to_owned(), ..Default::default() };
    let sessions = gateway.rpc().await.list(filter).await.unwrap().sessions;
    assert_eq!(sessions.len(), 1);
    sessions[0].remote_address.clone()
}

/// Connects with these headers; the address that is shown.
async fn shown(gateway: &Gateway, headers: &[(&'static str, &str)]) -> String {
    let url = gateway.url(&format!("token={}", Token::of("alice").sign()));
    let client = Client::open(request(&url, headers)).await.unwrap().0.welcomed().await;
    let shown = address_of(gateway, "alice").await;
    client.close().await;
    gateway.sessions("alice", 0).await;
    shown
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy_says_whom_it_speaks_for() {
    let gateway = believing(&[]).await;
    for (headers, address) in [
        (&[("x-forwarded-for", "203.0.113.7")][..], "203.0.113.7"),
        (&[("x-forwarded-for", "198.51.100.1, 203.0.113.7, 10.1.1.1")], "203.0.113.7"),
        (&[("x-forwarded-for", "198.51.100.1"), ("x-forwarded-for", "203.0.113.7:4711")], "203.0.113.7:4711"),
        (&[("x-forwarded-for", "2001:db8::7")], "2001:db8::7"),
        (&[("forwarded", "for=198.51.100.1, for=\"[2001:db8::7]:4711\";proto=https")], "[2001:db8::7]:4711"),
        (&[("forwarded", "for=1.1.1.1;x=\", for=203.0.113.7")], "127.0.0.1"),
        (&[("x-forwarded-for", "203.0.113.7, junk")], "127.0.0.1"),
    ] {
        let found = shown(&gateway, headers).await;
        let found = found.strip_prefix("127.0.0.1:").map_or(found.as_str(), |_| "127.0.0.1");
        assert_eq!(found, address, "{headers:?}");
    }
    // So do the events, and the filter of lists.
    let mut events = gateway.rpc().await.events(&["session_opened"], "bob").await;
    let url = gateway.url(&format!("token={}", Token::of("bob").sign()));
    let headers = [("x-forwarded-for", "203.0.113.9")];
    let _bob = Client::open(request(&url, &headers)).await.unwrap().0.welcomed().await;
    let Body::SessionOpened(opened) = events.body().await else { panic!() };
    assert_eq!(opened.remote_address, "203.0.113.9");
    let filter = ListSessionsRequest { address: "203.0.113.0/24".to_owned(), ..Default::default() };
    assert_eq!(gateway.rpc().await.list(filter).await.unwrap().sessions.len(), 1);
}

/// A proxy appends to one of the headers, and lets the other one through as its client wrote it.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_cannot_hide_in_the_header_that_its_proxy_does_not_write() {
    for (name, address) in [("auto", "127.0.0.1:"), ("x-forwarded-for", "203.0.113.7"), ("forwarded", "198.51.100.9")] {
        let gateway = believing(&[("http.forwarded_header", name)]).await;
        let found = shown(&gateway, &[("x-forwarded-for", "203.0.113.7"), ("forwarded", "for=198.51.100.9")]).await;
        assert!(found.starts_with(address), "{name}: {found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_is_believed() {
    for trusted in ["[]", "[\"192.0.2.0/24\"]"] {
        let gateway = Gateway::with(&[("http.trusted_proxies", trusted)]).await;
        let headers = [("x-forwarded-for", "203.0.113.7"), ("forwarded", "for=203.0.113.7")];
        let found = shown(&gateway, &headers).await;
        assert!(found.starts_with("127.0.0.1:") && !found.ends_with(":0"), "{found}");
    }
}

/// A header of the PROXY protocol: what comes behind its signature.
fn proxied(version: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    bytes.extend([version, family]);
    bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
    bytes.extend(rest);
    bytes
}

const FROM: [u8; 12] = [203, 0, 113, 7, 127, 0, 0, 1, 0x12, 0x67, 0x1B, 0x58];

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_protocol_says_where_a_connection_comes_from() {
    let gateway = believing(&[("http.proxy_protocol", "true")]).await;
    let mut v6 = [0_u8; 36];
    v6[..16].copy_from_slice(&"2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
    v6[33] = 99;
    let mut with_tlvs = FROM.to_vec();
    with_tlvs.extend([0x04, 0, 3, 1, 2, 3]);
    for (header, address) in [
        (proxied(0x21, 0x11, &FROM), "203.0.113.7:4711"),
        (proxied(0x21, 0x11, &with_tlvs), "203.0.113.7:4711"),
        (proxied(0x21, 0x21, &v6), "[2001:db8::7]:99"),
        // LOCAL, unspecified, Unix.
        (proxied(0x20, 0x00, &[]), "127.0.0.1"),
        (proxied(0x21, 0x00, &[0; 7]), "127.0.0.1"),
        (proxied(0x21, 0x31, &[0; 216]), "127.0.0.1"),
    ] {
        for parts in [1, header.len()] {
            let mut raw = Raw::connect(gateway.http).await;
            for part in header.chunks(header.len().div_ceil(parts)) {
                raw.write(part).await;
            }
            let raw = raw.welcomed("alice", "").await;
            let found = address_of(&gateway, "alice").await;
            let found = found.strip_prefix("127.0.0.1:").map_or(found.as_str(), |_| "127.0.0.1");
            assert_eq!(found, address, "{header:?} in {parts} parts");
            raw.reset();
            gateway.sessions("alice", 0).await;
        }
    }
    // All in one piece with the request; the header of a request is believed from whom the connection comes from.
    let mut raw = Raw::connect(gateway.http).await;
    let query = format!("token={}", Token::of("alice").sign());
    let whole =
        [&proxied(0x21, 0x11, &FROM)[..], handshake(&query, "X-Forwarded-For: 198.51.100.1\r\n").as_bytes()].concat();
    raw.write(&whole).await;
    assert!(raw.head().await.starts_with("HTTP/1.1 101 "));
    assert_eq!(raw.frame().await.json()["type"], "auth_success");
    assert_eq!(address_of(&gateway, "alice").await, "203.0.113.7:4711");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_without_its_header_is_refused_and_counted() {
    let gateway = believing(&[("http.proxy_protocol", "true")]).await;
    let request = handshake("", "");
    let long = proxied(0x21, 0x11, &[0; 65_000]);
    let all = [
        b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 7000\r\n".as_slice(),
        request.as_bytes(),
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        &proxied(0x31, 0x11, &FROM),
        &proxied(0x22, 0x11, &FROM),
        &proxied(0x21, 0x12, &FROM),
        &proxied(0x21, 0x21, &FROM),
        &long,
    ];
    for (count, bytes) in (1..).zip(all) {
        let mut stream = tokio::net::TcpStream::connect(gateway.http).await.unwrap();
        // It may be over before all of it is written.
        let _ = stream.write_all(bytes).await;
        assert_eq!(Raw::of(stream).drained().await, 0, "{bytes:?}");
        until("a refusal", count, async || gateway.errors("proxy_refused").await).await;
    }
    // One that is cut off is refused as well.
    let mut stream = tokio::net::TcpStream::connect(gateway.http).await.unwrap();
    stream.write_all(&proxied(0x21, 0x11, &FROM)[..20]).await.unwrap();
    stream.shutdown().await.unwrap();
    until("a refusal", all.len() as u64 + 1, async || gateway.errors("proxy_refused").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_of_the_proxy_protocol_is_junk_from_anyone_else() {
    let gateway = Gateway::with(&[("http.trusted_proxies", "[\"192.0.2.1\"]"), ("http.proxy_protocol", "true")]).await;
    let mut raw = Raw::connect(gateway.http).await;
    raw.write(&[&proxied(0x21, 0x11, &FROM)[..], handshake("", "").as_bytes()].concat()).await;
    let answer = raw.rest().await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    until("a refusal", 1, async || gateway.errors("bad_handshake").await).await;
    // Without one it is a client like any other.
    let client = gateway.client("alice").await;
    let address: SocketAddr = address_of(&gateway, "alice").await.parse().unwrap();
    assert!(address.ip().is_loopback());
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_are_refused() {
    let origins = "[\"https://*.example.com\", \"http://localhost:*\"]";
    let gateway = Gateway::with(&[("http.origins", origins)]).await;
    let url = gateway.url(&format!("token={}", Token::of("alice").sign()));
    for origin in ["https://app.example.com", "https://a.b.example.com", "http://localhost:5173"] {
        let client = Client::open(request(&url, &[("origin", origin)])).await.unwrap().0.welcomed().await;
        client.close().await;
    }
    let refused =
        ["https://example.com", "https://app.example.com.evil.example", "http://app.example.com", "null", "junk"];
    for origin in refused {
        let answer = refusal(request(&url, &[("origin", origin)])).await;
        assert_eq!(answer.status(), 403, "{origin}");
    }
    assert_eq!(gateway.errors("origin_refused").await, refused.len() as u64);
    // Who names none is no browser.
    gateway.client("alice").await.close().await;
    let any = Gateway::start().await;
    let url = any.url(&format!("token={}", Token::of("alice").sign()));
    Client::open(request(&url, &[("origin", "https://any.example")])).await.unwrap().0.welcomed().await;
}
