//! What proxies say in a request's head about where it comes from: `Forwarded` (RFC 7239) and `X-Forwarded-For`.
//!
//! Each proxy appends whom it has the request from, so the list is as good as whoever wrote its end. It is read from the
//! right: what a trusted proxy said is believed, and its word on another trusted proxy leads one further. The first
//! address that is nobody's who is trusted is the client. What is malformed or says no address is never read past.

use std::net::{IpAddr, SocketAddr};

/// Where a request comes from.
///
/// `peer` is the connection's other end. `forwarded` and `x_forwarded_for` are the values of these headers, in order;
/// `None` stands for one that is no text. Where both headers are there, and lead to different addresses, one of them went
/// through a proxy that did not look at it, and may say what a client likes: neither is believed. The port is 0 where it
/// is not known.
pub fn client<'a>(
    peer: SocketAddr,
    forwarded: impl Iterator<Item = Option<&'a str>>,
    x_forwarded_for: impl Iterator<Item = Option<&'a str>>,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> SocketAddr {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    if !is_trusted(peer.ip()) {
        return peer;
    }
    let mut nodes = Vec::new();
    for value in forwarded {
        elements(value, &mut nodes);
    }
    let standard = (!nodes.is_empty()).then(|| walk(peer, &nodes, &is_trusted));
    nodes.clear();
    for value in x_forwarded_for {
        match value {
            Some(value) => nodes.extend(value.split(',').map(node)),
            None => nodes.push(None),
        }
    }
    let usual = (!nodes.is_empty()).then(|| walk(peer, &nodes, &is_trusted));
    match (standard, usual) {
        (Some(one), Some(other)) if one.ip() != other.ip() => peer,
        (Some(one), Some(other)) => {
            if one.port() == 0 {
                other
            } else {
                one
            }
        }
        (one, other) => one.or(other).unwrap_or(peer),
    }
}

fn walk(peer: SocketAddr, nodes: &[Option<SocketAddr>], is_trusted: impl Fn(IpAddr) -> bool) -> SocketAddr {
    let mut at = peer;
    for node in nodes.iter().rev() {
        let Some(address) = node else { return at };
        at = *address;
        if !is_trusted(at.ip()) {
            break;
        }
    }
    at
}

/// An address with or without a port; IPv6 with a port stands in brackets. `unknown`, names and `_hidden` are none.
fn node(text: &str) -> Option<SocketAddr> {
    let text = text.trim();
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        (IpAddr::V6(host.parse().ok()?), rest)
    } else if let Ok(ip) = text.parse::<IpAddr>() {
        (ip, "")
    } else {
        let colon = text.find(':')?;
        (IpAddr::V4(text[..colon].parse().ok()?), &text[colon..])
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => 0,
        None => return None,
        // RFC 7239 section 6.3: a port may be hidden, too.
        Some(hidden) if hidden.len() > 1 && hidden.starts_with('_') && hidden.bytes().all(is_token) => 0,
        Some(digits) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().ok()?
        }
        Some(_) => return None,
    };
    Some(SocketAddr::new(host.to_canonical(), port))
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Appends what each element of one `Forwarded` header says in `for`; one that says nothing of use is `None`. Of a header
/// that is malformed anywhere nothing can be told apart, so all of it is one `None`.
fn elements(value: Option<&str>, nodes: &mut Vec<Option<SocketAddr>>) {
    let before = nodes.len();
    if value.and_then(|value| read(value, nodes)).is_none() {
        nodes.truncate(before);
        nodes.push(None);
    }
}

fn read(value: &str, nodes: &mut Vec<Option<SocketAddr>>) -> Option<()> {
    let bytes = value.as_bytes();
    let (mut at, mut found, mut has_for) = (0, None, false);
    let space = |at: &mut usize| {
        while matches!(bytes.get(*at), Some(b' ' | b'\t')) {
            *at += 1
        }
    };
    loop {
        space(&mut at);
        // Empty elements and pairs are allowed (RFC 9110 section 5.6.1).
        if !matches!(bytes.get(at), None | Some(b',' | b';')) {
            let name = token(value, &mut at)?;
            if bytes.get(at) != Some(&b'=') {
                return None;
            }
            at += 1;
            let text = match bytes.get(at) {
                Some(b'"') => quoted(value, &mut at)?,
                _ => token_of_address(value, &mut at)?.to_owned(),
            };
            if name.eq_ignore_ascii_case("for") {
                // Twice in one element is none of the standard's.
                if std::mem::replace(&mut has_for, true) {
                    return None;
                }
                found = node(&text);
            }
            space(&mut at);
        }
        match bytes.get(at) {
            Some(b';') => at += 1,
            Some(b',') | None => {
                nodes.push(found.take());
                has_for = false;
                if at >= bytes.len() {
                    return Some(());
                }
                at += 1;
            }
            Some(_) => return None,
        }
    }
}

fn token<'a>(value: &'a str, at: &mut usize) -> Option<&'a str> {
    let start = *at;
    *at += value.as_bytes()[start..].iter().take_while(|byte| is_token(**byte)).count();
    (*at > start).then(|| &value[start..*at])
}

/// As [`token`], with what addresses have and should have quoted: proxies forget it.
fn token_of_address<'a>(value: &'a str, at: &mut usize) -> Option<&'a str> {
    let start = *at;
    let is_part = |byte: u8| is_token(byte) || matches!(byte, b':' | b'[' | b']');
    *at += value.as_bytes()[start..].iter().take_while(|byte| is_part(**byte)).count();
    (*at > start).then(|| &value[start..*at])
}

/// RFC 9110 section 5.6.4; `at` is the opening quote.
fn quoted(value: &str, at: &mut usize) -> Option<String> {
    let mut text = String::new();
    let mut rest = value[*at + 1..].char_indices();
    while let Some((place, c)) = rest.next() {
        match c {
            '"' => {
                *at += 1 + place + 1;
                return Some(text);
            }
            '\\' => text.push(rest.next()?.1),
            c => text.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = "10.0.0.1:5000";

    fn found(peer: &str, forwarded: &[&str], usual: &[&str]) -> String {
        let trusted = |ip: IpAddr| ip.to_string().starts_with("10.") || ip.to_string().starts_with("fd00:");
        let some = |list: &[&'static str]| list.iter().map(|one| Some(*one)).collect::<Vec<_>>();
        // Leaked: tests have little of it.
        let own = |list: &[&str]| list.iter().map(|one| &*one.to_string().leak()).collect::<Vec<&'static str>>();
        let (forwarded, usual) = (some(&own(forwarded)), some(&own(usual)));
        client(peer.parse().unwrap(), forwarded.into_iter(), usual.into_iter(), trusted).to_string()
    }

    #[test]
    fn the_rightmost_address_that_is_not_trusted_is_the_client() {
        for (usual, client) in [
            (&["203.0.113.7"][..], "203.0.113.7:0"),
            (&["203.0.113.7, 10.0.0.2"], "203.0.113.7:0"),
            (&["198.51.100.1, 203.0.113.7,10.0.0.2 , 10.0.0.3"], "203.0.113.7:0"),
            (&["198.51.100.1", "203.0.113.7", "10.0.0.2"], "203.0.113.7:0"),
            (&["203.0.113.7:4711"], "203.0.113.7:4711"),
            (&["2001:db8::7"], "[2001:db8::7]:0"),
            (&["[2001:db8::7]"], "[2001:db8::7]:0"),
            (&["[2001:db8::7]:4711"], "[2001:db8::7]:4711"),
            (&["::ffff:203.0.113.7"], "203.0.113.7:0"),
            (&["203.0.113.7, fd00::2"], "203.0.113.7:0"),
            (&["10.0.0.9, 10.0.0.2"], "10.0.0.9:0"),
        ] {
            assert_eq!(found(PROXY, &[], usual), client, "{usual:?}");
        }
        assert_eq!(found(PROXY, &[], &[]), PROXY);
    }

    #[test]
    fn nobody_else_is_believed() {
        assert_eq!(found("192.0.2.9:1", &["for=203.0.113.7"], &["203.0.113.7"]), "192.0.2.9:1");
        assert_eq!(found("[::ffff:192.0.2.9]:1", &[], &["203.0.113.7"]), "192.0.2.9:1");
        assert_eq!(found("[::ffff:10.0.0.1]:1", &[], &["203.0.113.7"]), "203.0.113.7:0", "a mapped proxy is one");
    }

    #[test]
    fn what_says_no_address_is_not_read_past() {
        for bad in [
            "",
            "unknown",
            "_hidden",
            "localhost",
            "203.0.113",
            "203.0.113.7:",
            "203.0.113.7:x",
            "203.0.113.7:70000",
            "203.0.113.7 203.0.113.8",
            "[2001:db8::7",
            "[2001:db8::7]x",
            "[203.0.113.7]",
            "fe80::1%eth0",
            "\"203.0.113.7\"",
        ] {
            let list = format!("203.0.113.7, {bad}, 10.0.0.2");
            assert_eq!(found(PROXY, &[], &[&list]), "10.0.0.2:0", "{bad}");
            assert_eq!(found(PROXY, &[], &[bad]), PROXY, "{bad}");
        }
    }

    #[test]
    fn the_standard_header_is_read_with_its_quoting() {
        for (value, client) in [
            ("for=203.0.113.7", "203.0.113.7:0"),
            ("For=\"203.0.113.7:4711\"", "203.0.113.7:4711"),
            ("for=\"[2001:db8::7]:4711\"", "[2001:db8::7]:4711"),
            ("for=\"[2001:db8::7]\";proto=https;by=10.0.0.1", "[2001:db8::7]:0"),
            ("for=\"203.0.113.7:_secret\"", "203.0.113.7:0"),
            ("for=\"\\203.0.113.7\"", "203.0.113.7:0"),
            ("for=198.51.100.1, for=203.0.113.7;host=\"a,b;for=1.1.1.1\", proto=http;for=10.0.0.2", "203.0.113.7:0"),
            ("by=10.0.0.1 ; for=203.0.113.7 ; ", "203.0.113.7:0"),
            ("for=[2001:db8::7]:4711", "[2001:db8::7]:4711"),
        ] {
            assert_eq!(found(PROXY, &[value], &[]), client, "{value}");
        }
        for value in [
            "for=unknown",
            "for=_gazonk",
            "proto=https",
            "for",
            "for=",
            "for=\"203.0.113.7",
            "=203.0.113.7",
            "for=203.0.113.7;for=203.0.113.8",
            "for = 203.0.113.7",
            "for=203.0.113.7 x",
            "for=203.0.113.7\"",
        ] {
            assert_eq!(found(PROXY, &[value], &[]), PROXY, "{value}");
        }
    }

    /// What a client begins, a proxy ends: no quote that the one leaves open hides what the other appends.
    #[test]
    fn an_open_quote_makes_nothing_believed() {
        for begun in ["for=1.1.1.1;x=\"", "for=\"1.1.1.1", "for=1.1.1.1;x=\"\\", "x=\", for=1.1.1.1;y=\""] {
            for appended in ["for=203.0.113.7", "for=\"203.0.113.7\"", "for=\"[2001:db8::7]\""] {
                let found = found(PROXY, &[&format!("{begun}, {appended}")], &[]);
                assert!(found == PROXY || !found.starts_with("1.1.1.1"), "{begun} {appended}: {found}");
            }
        }
        // In a header of its own it does not matter.
        assert_eq!(found(PROXY, &["for=\"1.1.1.1", "for=203.0.113.7"], &[]), "203.0.113.7:0");
    }

    #[test]
    fn two_headers_that_disagree_are_not_believed() {
        assert_eq!(found(PROXY, &["for=1.1.1.1"], &["203.0.113.7"]), PROXY);
        assert_eq!(found(PROXY, &["for=203.0.113.7"], &["203.0.113.7:9"]), "203.0.113.7:9");
    }

    proptest::proptest! {
        #[test]
        fn no_header_panics(value in "\\PC{0,60}", other in "[for=\\[\\]\"\\\\:;, .0-9a-f]{0,60}") {
            found(PROXY, &[&value, &other], &[&other, &value]);
        }
    }
}
