//! Which addresses are meant: one, or those of a network in CIDR notation (RFC 4632, RFC 4291 section 2.3).

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// An address or a network. An IPv4 address that is mapped into IPv6 (`::ffff:10.1.2.3`) is that IPv4 address, on either
/// side: IPv4 networks hold it and IPv6 networks do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    /// How many of its leading bits an address has in common with `first`.
    bits: u32,
}

/// Why a text is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be an IP address, such as 10.1.2.3 or 2001:db8::7, or a network in CIDR notation, such as 10.0.0.0/8 or \
     2001:db8::/32; names, ports and zones are not accepted"
)]
pub struct InvalidNetwork;

/// The bits in front of an IPv4 address that is mapped into IPv6.
const MAPPED_BITS: u32 = 96;

impl Network {
    /// Whether the address is in it.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.first, address.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                (first.to_bits() ^ address.to_bits()).checked_shr(32 - self.bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                (first.to_bits() ^ address.to_bits()).checked_shr(128 - self.bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// A remote address as people read it: without the port where that is 0, which is one that nobody knows.
pub fn shown_address(address: SocketAddr) -> String {
    if address.port() == 0 { address.ip().to_string() } else { address.to_string() }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    /// Reads an address, or an address, `/` and the length of the network's prefix. Bits behind the prefix do not matter.
    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let written: IpAddr = address.parse().map_err(|_| InvalidNetwork)?;
        let width = if written.is_ipv4() { 32 } else { 128 };
        let bits = match prefix {
            None => width,
            // Digits alone: a number would also be read with a sign, or with zeros in front.
            Some("0") => 0,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0') => {
                digits.parse().ok().filter(|bits| *bits <= width).ok_or(InvalidNetwork)?
            }
            Some(_) => return Err(InvalidNetwork),
        };
        match written.to_canonical() {
            IpAddr::V4(first) if written.is_ipv6() && bits >= MAPPED_BITS => {
                Ok(Self { first: first.into(), bits: bits - MAPPED_BITS })
            }
            IpAddr::V4(first) if written.is_ipv4() => Ok(Self { first: first.into(), bits }),
            // A network around the mapped addresses, or any other of IPv6.
            _ => Ok(Self { first: written, bits }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(network: &str, address: &str) -> bool {
        network.parse::<Network>().unwrap().contains(address.parse().unwrap())
    }

    #[test]
    fn a_network_holds_what_begins_as_it_does() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.1.2.3/8", "10.0.0.0", "9.255.255.255"),
            ("192.168.1.128/25", "192.168.1.255", "192.168.1.127"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("10.1.2.3/32", "10.1.2.3", "10.1.2.2"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("2001:db8::7", "2001:db8::7", "2001:db8::8"),
            ("fe80::/10", "febf::1", "fec0::1"),
            ("::/0", "ffff::1", "127.0.0.1"),
            ("::1/128", "::1", "::2"),
        ] {
            assert!(contains(network, inside), "{network} {inside}");
            assert!(!contains(network, outside), "{network} {outside}");
        }
    }

    #[test]
    fn a_mapped_ipv4_address_is_an_ipv4_address() {
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(contains("::ffff:10.1.2.3", "10.1.2.3"));
        assert!(contains("::ffff:10.0.0.0/104", "10.1.2.3") && !contains("::ffff:10.0.0.0/104", "11.1.2.3"));
        assert!(contains("::ffff:0.0.0.0/96", "11.1.2.3") && !contains("::ffff:0.0.0.0/96", "2001:db8::1"));
        assert!(!contains("::/0", "::ffff:10.1.2.3"), "it counts as IPv4");
        assert!(contains("::ffff:0:0/80", "::1:2"), "wider than the mapped addresses: a network of IPv6");
    }

    #[test]
    fn everything_else_is_refused() {
        for bad in [
            "",
            "/",
            "10",
            "10.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "10.0.0.0/8/8",
            "10.0.0.0 /8",
            "10.0.0.256",
            "010.0.0.1",
            "::/129",
            "2001:db8::/x",
            "fe80::1%eth0",
            "[::1]",
            "127.0.0.1:80",
            "[::1]:80",
            "localhost",
            "10.*",
            "10.0.0.0/255.0.0.0",
            "2001:db8:::/32",
        ] {
            assert_eq!(bad.parse::<Network>(), Err(InvalidNetwork), "{bad}");
        }
    }
}
