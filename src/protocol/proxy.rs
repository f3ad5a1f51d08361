//! The header of the PROXY protocol, version 2 (haproxy.org, `proxy-protocol.txt`, section 2.2): what a proxy says in front
//! of a connection about where that comes from. A decoder without I/O; every input has an answer.
//!
//! ```text
//! 12 bytes  the signature
//!  1 byte   version (2) and command (0 LOCAL, 1 PROXY)
//!  1 byte   family (0 unspecified, 1 IPv4, 2 IPv6, 3 Unix) and transport (0 unspecified, 1 stream, 2 datagram)
//!  2 bytes  how many bytes follow, big-endian
//!  …        source and destination address, source and destination port; then TLVs, which are skipped
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::limits;

/// What every header begins with.
pub const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The part whose length does not change, the signature included.
pub const PREFIX_BYTES: usize = 16;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The proxy itself, such as its health check (`LOCAL`), or somewhere that has no IP address (a Unix socket, or not
    /// specified): the connection's own address stands.
    Proxy,
    /// This address.
    Address(SocketAddr),
}

/// How far a header is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Not whole: it has at least so many bytes in all.
    Incomplete(usize),
    /// Whole, and this is how many bytes it has; what lies behind them is the connection's.
    Whole(Source, usize),
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// Something else.
    #[error("it does not begin with a PROXY protocol header")]
    Signature,
    /// The version with text.
    #[error("it begins with a PROXY protocol header of version 1; only version 2 is taken")]
    Version1,
    /// A later one.
    #[error("its PROXY protocol header has version {0}; only version 2 is taken")]
    Version(u8),
    /// Neither LOCAL nor PROXY.
    #[error("its PROXY protocol header has the unknown command {0}")]
    Command(u8),
    /// A family or a transport that is not known, or a datagram's.
    #[error("its PROXY protocol header has the unknown or unsuitable family and transport {0:#04x}")]
    Family(u8),
    /// Longer than is read.
    #[error("its PROXY protocol header has {0} bytes, more than {max}", max = limits::PROXY_HEADER_BYTES_MAX)]
    TooLong(usize),
    /// The addresses do not fit into what follows.
    #[error("its PROXY protocol header is too short for its addresses")]
    TooShort,
}

/// Reads the header at the beginning of `bytes`. What cannot become one is refused as early as that shows.
///
/// # Errors
/// The bytes are the beginning of no header that is taken.
pub fn decode(bytes: &[u8]) -> Result<Decoded, ProxyError> {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] != SIGNATURE[..known] {
        return Err(if bytes.starts_with(b"PROXY") { ProxyError::Version1 } else { ProxyError::Signature });
    }
    let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>() else { return Ok(Decoded::Incomplete(PREFIX_BYTES)) };
    let (version, command) = (prefix[12] >> 4, prefix[12] & 0xF);
    if version != 2 {
        return Err(ProxyError::Version(version));
    }
    if command > 1 {
        return Err(ProxyError::Command(command));
    }
    let length = PREFIX_BYTES + usize::from(u16::from_be_bytes([prefix[14], prefix[15]]));
    if length > limits::PROXY_HEADER_BYTES_MAX {
        return Err(ProxyError::TooLong(length));
    }
    let (family, transport) = (prefix[13] >> 4, prefix[13] & 0xF);
    // What a proxy says of its own connection does not matter.
    let addresses = match (command, family, transport) {
        (0, ..) | (1, 0, 0 | 1) | (1, 1..=3, 0) => 0,
        (1, 1, 1) => 12,
        (1, 2, 1) => 36,
        (1, 3, 1) => 216,
        _ => return Err(ProxyError::Family(prefix[13])),
    };
    if length - PREFIX_BYTES < addresses {
        return Err(ProxyError::TooShort);
    }
    let Some(rest) = bytes.get(PREFIX_BYTES..length) else { return Ok(Decoded::Incomplete(length)) };
    let source = match addresses {
        12 => address::<4, _>(rest, 8, Ipv4Addr::from),
        36 => address::<16, _>(rest, 32, Ipv6Addr::from),
        _ => None,
    };
    Ok(Decoded::Whole(source.map_or(Source::Proxy, Source::Address), length))
}

/// The source: its address at the beginning, its port at `port`. IPv4 that is mapped into IPv6 is IPv4.
fn address<const N: usize, A: Into<IpAddr>>(rest: &[u8], port: usize, make: fn([u8; N]) -> A) -> Option<SocketAddr> {
    let ip: IpAddr = make(*rest.first_chunk::<N>()?).into();
    let port = u16::from_be_bytes(*rest.get(port..)?.first_chunk()?);
    Some(SocketAddr::new(ip.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(version: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([version, family]);
        bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    fn v4() -> Vec<u8> {
        header(0x21, 0x11, &[203, 0, 113, 7, 10, 0, 0, 1, 0xC0, 0x01, 0x1B, 0x58])
    }

    fn source(text: &str) -> Source {
        Source::Address(text.parse().unwrap())
    }

    #[test]
    fn addresses_of_both_families_are_read() {
        assert_eq!(decode(&v4()), Ok(Decoded::Whole(source("203.0.113.7:49153"), 28)));
        let mut rest = "2001:db8::7".parse::<Ipv6Addr>().unwrap().octets().to_vec();
        rest.extend([0; 16]);
        rest.extend([0, 80, 0, 81]);
        assert_eq!(decode(&header(0x21, 0x21, &rest)), Ok(Decoded::Whole(source("[2001:db8::7]:80"), 52)));
        rest[..16].copy_from_slice(&"::ffff:10.1.2.3".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(decode(&header(0x21, 0x21, &rest)), Ok(Decoded::Whole(source("10.1.2.3:80"), 52)));
    }

    #[test]
    fn what_is_local_or_has_no_address_is_the_proxys_own() {
        for (command, family, rest) in [
            (0x20, 0x00, &[][..]),
            (0x20, 0x11, &[1; 12]),
            // Of LOCAL nothing else is looked at.
            (0x20, 0xFF, &[1; 3]),
            (0x21, 0x00, &[]),
            (0x21, 0x00, &[9; 40]),
            (0x21, 0x31, &[0; 216]),
        ] {
            let bytes = header(command, family, rest);
            assert_eq!(decode(&bytes), Ok(Decoded::Whole(Source::Proxy, bytes.len())), "{command:x} {family:x}");
        }
    }

    #[test]
    fn tlvs_are_skipped_and_what_follows_is_not_touched() {
        let mut rest = v4()[PREFIX_BYTES..].to_vec();
        rest.extend([0x04, 0, 2, 1, 1, 0xEA, 0xFF, 0xFF]);
        let mut bytes = header(0x21, 0x11, &rest);
        let length = bytes.len();
        bytes.extend(b"GET / HTTP/1.1\r\n");
        assert_eq!(decode(&bytes), Ok(Decoded::Whole(source("203.0.113.7:49153"), length)));
    }

    #[test]
    fn everything_else_is_refused() {
        assert_eq!(decode(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"), Err(ProxyError::Version1));
        assert_eq!(decode(b"GET / HTTP/1.1\r\n"), Err(ProxyError::Signature));
        assert_eq!(decode(b"\r\n\r\n\0\r\nQUIX"), Err(ProxyError::Signature));
        assert_eq!(decode(b"\x16\x03\x01"), Err(ProxyError::Signature), "TLS");
        assert_eq!(decode(&header(0x11, 0x11, &[0; 12])), Err(ProxyError::Version(1)));
        assert_eq!(decode(&header(0x22, 0x11, &[0; 12])), Err(ProxyError::Command(2)));
        for family in [0x12, 0x22, 0x32, 0x13, 0x41, 0xF1] {
            assert_eq!(decode(&header(0x21, family, &[0; 216])), Err(ProxyError::Family(family)));
        }
        for (family, length) in [(0x11, 11), (0x21, 35), (0x31, 215)] {
            assert_eq!(decode(&header(0x21, family, &vec![0; length])), Err(ProxyError::TooShort));
        }
        let long = header(0x21, 0x11, &vec![0; limits::PROXY_HEADER_BYTES_MAX - PREFIX_BYTES + 1]);
        assert_eq!(decode(&long[..PREFIX_BYTES]), Err(ProxyError::TooLong(limits::PROXY_HEADER_BYTES_MAX + 1)));
        let most = header(0x21, 0x11, &vec![0; limits::PROXY_HEADER_BYTES_MAX - PREFIX_BYTES]);
        assert!(decode(&most).is_ok());
    }

    #[test]
    fn a_part_says_how_much_there_must_be() {
        let whole = v4();
        for cut in 0..whole.len() {
            let expected = if cut < PREFIX_BYTES { PREFIX_BYTES } else { whole.len() };
            assert_eq!(decode(&whole[..cut]), Ok(Decoded::Incomplete(expected)), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics_and_none_is_read_past_its_end(
            begun in any::<bool>(), bytes in proptest::collection::vec(any::<u8>(), 0..400)
        ) {
            let mut input = if begun { SIGNATURE.to_vec() } else { Vec::new() };
            input.extend(bytes);
            match decode(&input) {
                Ok(Decoded::Whole(_, length)) => prop_assert!(length <= input.len()),
                Ok(Decoded::Incomplete(length)) => {
                    prop_assert!(length > input.len() && length <= limits::PROXY_HEADER_BYTES_MAX);
                }
                Err(_) => {}
            }
        }
    }
}
