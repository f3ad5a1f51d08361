//! Which web origins (RFC 6454) are meant: one, or a pattern over many.

use std::str::FromStr;

/// A pattern over the `Origin` header: `*` is any origin, `null` the opaque one, and `scheme://host[:port]` one, where the
/// host may begin with `*.` (whatever lies below that name, however deep, and not the name itself) and the port may be `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    /// Any, the opaque one included.
    Any,
    /// `null`: of a page that has no origin of its own, such as a file or a sandboxed frame.
    Opaque,
    /// Those of a scheme, host and port.
    Of {
        /// In small letters.
        scheme: String,
        /// In small letters; what stands behind `*.` where `below` is set.
        host: String,
        /// Whether the names below `host` are meant, and not `host` itself.
        below: bool,
        /// The port.
        port: Port,
    },
}

/// The port of an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Any.
    Any,
    /// This one; `None` is the scheme's own.
    Is(Option<u16>),
}

/// Why a text is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be an origin, such as https://app.example.com, where the host may begin with *. and the port may be *, such as \
     https://*.example.com or http://localhost:*; or null, or * for any; without a path or a slash at the end"
)]
pub struct InvalidOrigin;

/// The parts of an origin, as they stand.
fn parts(text: &str) -> Option<(&str, &str, Option<&str>)> {
    let (scheme, authority) = text.split_once("://")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(plain) {
        return None;
    }
    // The colons of an IPv6 address stand in brackets.
    let end = authority.rfind(']').map_or(0, |at| at + 1);
    match authority[end..].find(':') {
        Some(colon) => Some((scheme, &authority[..end + colon], Some(&authority[end + colon + 1..]))),
        None => Some((scheme, authority, None)),
    }
}

fn is_host(text: &str) -> bool {
    if let Some(address) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

/// The port of a scheme that is left out.
fn own_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

fn port_of(scheme: &str, digits: Option<&str>) -> Option<Option<u16>> {
    let Some(digits) = digits else { return Some(None) };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let port = digits.parse().ok()?;
    Some(if own_port(scheme) == Some(port) { None } else { Some(port) })
}

impl FromStr for OriginPattern {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        match text {
            "*" => return Ok(Self::Any),
            "null" => return Ok(Self::Opaque),
            _ => {}
        }
        let (scheme, host, port) = parts(text).ok_or(InvalidOrigin)?;
        let scheme = scheme.to_ascii_lowercase();
        let (host, below) = host.strip_prefix("*.").map_or((host, false), |rest| (rest, true));
        if !is_host(host) || (below && (host.starts_with(['[', '.']))) {
            return Err(InvalidOrigin);
        }
        let port = match port {
            Some("*") => Port::Any,
            digits => Port::Is(port_of(&scheme, digits).ok_or(InvalidOrigin)?),
        };
        Ok(Self::Of { scheme, host: host.to_ascii_lowercase(), below, port })
    }
}

impl OriginPattern {
    /// Whether an `Origin` header's value is meant. What is no origin is only by [`OriginPattern::Any`].
    pub fn matches(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Opaque => origin == "null",
            Self::Of { scheme, host, below, port } => {
                let Some((its_scheme, its_host, its_port)) = parts(origin) else { return false };
                if !its_scheme.eq_ignore_ascii_case(scheme) || !is_host(its_host) {
                    return false;
                }
                let Some(its_port) = port_of(scheme, its_port) else { return false };
                let is_host = match its_host.len().checked_sub(host.len()) {
                    Some(0) => !below && its_host.eq_ignore_ascii_case(host),
                    // At least one character, and the point.
                    Some(more) if *below && more >= 2 => {
                        its_host.as_bytes()[more - 1] == b'.'
                            && its_host.as_bytes()[more..].eq_ignore_ascii_case(host.as_bytes())
                            && its_host.as_bytes()[0] != b'.'
                    }
                    _ => false,
                };
                is_host && (*port == Port::Any || *port == Port::Is(its_port))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, origin: &str) -> bool {
        pattern.parse::<OriginPattern>().unwrap().matches(origin)
    }

    #[test]
    fn an_origin_is_its_scheme_host_and_port() {
        for (pattern, origin) in [
            ("https://app.example.com", "https://app.example.com"),
            ("https://app.example.com", "HTTPS://App.Example.Com"),
            ("https://app.example.com:443", "https://app.example.com"),
            ("https://app.example.com", "https://app.example.com:443"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("http://localhost:*", "http://localhost:3000"),
            ("http://localhost:*", "http://localhost"),
            ("http://[::1]:*", "http://[::1]:8080"),
            ("capacitor://localhost", "capacitor://localhost"),
            ("null", "null"),
            ("*", "null"),
            ("*", "https://any.example"),
        ] {
            assert!(matches(pattern, origin), "{pattern} {origin}");
        }
        for (pattern, origin) in [
            ("https://app.example.com", "http://app.example.com"),
            ("https://app.example.com", "https://app.example.com:8443"),
            ("https://app.example.com", "https://app.example.com.evil.example"),
            ("https://app.example.com", "https://evil-app.example.com"),
            ("https://app.example.com", "https://app.example.com@evil.example"),
            ("https://app.example.com", "https://app.example.com/"),
            ("https://app.example.com", "app.example.com"),
            ("https://app.example.com", "null"),
            ("https://app.example.com", ""),
            ("http://localhost:*", "http://localhost:"),
            ("http://localhost:*", "http://localhost:99999"),
            ("http://[::1]", "http://[::2]"),
            ("null", "https://null"),
        ] {
            assert!(!matches(pattern, origin), "{pattern} {origin}");
        }
    }

    #[test]
    fn a_wildcard_is_what_lies_below_a_name() {
        for origin in ["https://a.example.com", "https://a.b.example.com", "https://A.EXAMPLE.com:443"] {
            assert!(matches("https://*.example.com", origin), "{origin}");
        }
        for origin in [
            "https://example.com",
            "https://.example.com",
            "https://evilexample.com",
            "https://a.example.com.evil.example",
            "https://evil.example/.example.com",
            "https://evil.example?.example.com",
            "https://evil.example#.example.com",
            "https://evil.example\\.example.com",
            "https://evil@a.example.com",
            "http://a.example.com",
            "https://a.example.com:8443",
        ] {
            assert!(!matches("https://*.example.com", origin), "{origin}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in [
            "",
            "example.com",
            "*.example.com",
            "https://",
            "https://*",
            "https://*.",
            "https://a.*.com",
            "https://*a.example.com",
            "https://a.example.com/",
            "https://a.example.com/path",
            "https://a.example.com:",
            "https://a.example.com:x",
            "https://a.example.com:70000",
            "https://u@a.example.com",
            "*://a.example.com",
            "https://*.[::1]",
            "https://[::1",
            "https://a b",
        ] {
            assert_eq!(bad.parse::<OriginPattern>(), Err(InvalidOrigin), "{bad}");
        }
    }
}
