//! Where a connection comes from, and which pages may open one.
//!
//! A connection's own other end is the client, unless it is a proxy that is trusted (`http.trusted_proxies`): then what it
//! says in front of the connection (the PROXY protocol) or in the request's head is believed. The address so found is what
//! everything else sees.
//!
//! A browser says in `Origin` whose page opens a connection, and lets pages of every site open one to anywhere: where
//! `http.origins` lists some, others are refused. Who sends no such header is no browser.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, header};

use super::{Config, ForwardedHeader};
use crate::{
    protocol::forwarded,
    types::{InvalidNetwork, InvalidOrigin, Network, OriginPattern},
};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Who is believed, and which pages may connect.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    trusted: Vec<Network>,
    header: ForwardedHeader,
    proxy_protocol: bool,
    origins: Vec<OriginPattern>,
}

/// What of the section `[http]` cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAddress {
    /// One of `http.origins`: its place, and why.
    #[error("http.origins[{0}]: {1}")]
    Origin(usize, InvalidOrigin),
    /// One of `http.trusted_proxies`.
    #[error("http.trusted_proxies[{0}]: {1}")]
    Proxy(usize, InvalidNetwork),
}

impl Addresses {
    /// As the configuration says.
    ///
    /// # Errors
    /// The first entry that cannot be understood; a configuration that was checked has none.
    pub fn new(config: &Config) -> Result<Self, BadAddress> {
        let origins = config.origins.iter().enumerate();
        let origins = origins.map(|(at, text)| text.parse().map_err(|error| BadAddress::Origin(at, error)));
        let trusted = config.trusted_proxies.iter().enumerate();
        let trusted = trusted.map(|(at, text)| text.parse().map_err(|error| BadAddress::Proxy(at, error)));
        Ok(Self {
            origins: origins.collect::<Result<_, _>>()?,
            trusted: trusted.collect::<Result<_, _>>()?,
            header: config.forwarded_header,
            proxy_protocol: config.proxy_protocol,
        })
    }

    /// Whether a proxy of ours connects from there, for many.
    pub fn is_proxy(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }

    /// Whether a connection from there begins with a header of the PROXY protocol. One from elsewhere is a client's own,
    /// and a header on it is junk like any other.
    pub fn has_proxy_header(&self, remote: SocketAddr) -> bool {
        self.proxy_protocol && self.is_proxy(remote.ip())
    }

    /// Where a request comes from that came from `remote`.
    pub fn client(&self, remote: SocketAddr, headers: &HeaderMap) -> SocketAddr {
        if self.trusted.is_empty() {
            return remote;
        }
        // The one that the proxies do not write is the client's own word.
        let values = |name: HeaderName, other: ForwardedHeader| {
            let written = self.header != other;
            headers.get_all(name).into_iter().filter(move |_| written).map(|value| value.to_str().ok())
        };
        let standard = values(header::FORWARDED, ForwardedHeader::XForwardedFor);
        let usual = values(X_FORWARDED_FOR, ForwardedHeader::Forwarded);
        forwarded::client(remote, standard, usual, |ip| self.is_proxy(ip))
    }

    /// Whether a page of that origin may connect; whoever names none may.
    pub fn lets_in(&self, headers: &HeaderMap) -> bool {
        let mut origins = headers.get_all(header::ORIGIN).into_iter();
        let (first, second) = (origins.next(), origins.next());
        let Some(origin) = first.filter(|_| !self.origins.is_empty()) else { return true };
        // A browser names one.
        let origin = origin.to_str().ok().filter(|_| second.is_none());
        origin.is_some_and(|origin| self.origins.iter().any(|pattern| pattern.matches(origin)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn appended(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn pages_of_other_origins_are_refused_and_who_is_no_browser_is_not() {
        let origins = vec!["https://*.example.com".to_owned(), "http://localhost:*".to_owned()];
        let some = Addresses::new(&Config { origins, ..Config::default() }).unwrap();
        let any = Addresses::default();
        for good in ["https://app.example.com", "http://localhost:3000"] {
            assert!(some.lets_in(&headers(&[("origin", good)])), "{good}");
        }
        for bad in ["https://example.com", "https://evil.example", "null", ""] {
            assert!(!some.lets_in(&headers(&[("origin", bad)])), "{bad}");
            assert!(any.lets_in(&headers(&[("origin", bad)])), "{bad}");
        }
        let two = appended(&[("origin", "https://app.example.com"), ("origin", "https://app.example.com")]);
        assert!(!some.lets_in(&two));
        assert!(some.lets_in(&HeaderMap::new()));
    }

    #[test]
    fn of_the_header_that_the_proxies_do_not_write_nothing_is_believed() {
        let said = headers(&[("x-forwarded-for", "203.0.113.7"), ("forwarded", "for=198.51.100.9")]);
        let junk = headers(&[("x-forwarded-for", "203.0.113.7"), ("forwarded", "for=\"")]);
        for (forwarded_header, client, beside_junk) in [
            (ForwardedHeader::Auto, "10.1.2.3:4", "10.1.2.3:4"),
            (ForwardedHeader::XForwardedFor, "203.0.113.7:0", "203.0.113.7:0"),
            (ForwardedHeader::Forwarded, "198.51.100.9:0", "10.1.2.3:4"),
        ] {
            let trusted_proxies = vec!["10.0.0.0/8".to_owned()];
            let addresses = Addresses::new(&Config { trusted_proxies, forwarded_header, ..Config::default() }).unwrap();
            let found = |said| addresses.client("10.1.2.3:4".parse().unwrap(), said).to_string();
            assert_eq!(found(&said), client, "{forwarded_header:?}");
            assert_eq!(found(&junk), beside_junk, "{forwarded_header:?}");
        }
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let trusted_proxies = vec!["10.0.0.0/8".to_owned()];
        let config = Config { trusted_proxies, proxy_protocol: true, ..Config::default() };
        let addresses = Addresses::new(&config).unwrap();
        let said = headers(&[("x-forwarded-for", "203.0.113.7")]);
        let client = |from: &str| addresses.client(from.parse().unwrap(), &said).to_string();
        assert_eq!(client("10.1.2.3:4"), "203.0.113.7:0");
        assert_eq!(client("192.0.2.1:4"), "192.0.2.1:4");
        assert!(addresses.has_proxy_header("10.1.2.3:4".parse().unwrap()));
        assert!(!addresses.has_proxy_header("192.0.2.1:4".parse().unwrap()));
        let junk = HeaderMap::from_iter([(X_FORWARDED_FOR, http::HeaderValue::from_bytes(b"\xff").unwrap())]);
        assert_eq!(addresses.client("10.1.2.3:4".parse().unwrap(), &junk).to_string(), "10.1.2.3:4");
    }
}
