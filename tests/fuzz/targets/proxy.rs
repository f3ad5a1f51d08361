//! The header of the PROXY protocol, version 2, against a reader that is written for clarity only, whole and cut at every
//! byte. An input is a header, and what of the connection comes behind it.

use std::net::{IpAddr, SocketAddr};

use pushgate::{
    limits,
    protocol::proxy::{Decoded, PREFIX_BYTES, SIGNATURE, Source, decode},
};

use super::{kind, size};

pub const WORDS: &[&[u8]] = &[
    b"\r\n\r\n\0\r\nQUIT\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\xD8",
    b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    b"\x21",
    b"\x11",
    b"\0\x0C",
    b"\x7F\0\0\x01\x7F\0\0\x01\x04\xD2\0\x50",
    b"\0\0\0\0\0\0\0\0\0\0\xFF\xFF\x7F\0\0\x01",
    b"\x03\0\x04crc!",
    b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n",
    b"GET / HTTP/1.1\r\n",
];

/// What the specification makes of a whole header at the beginning of the input; `None`: there is none that is taken.
fn expected(input: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    let rest = input.strip_prefix(SIGNATURE)?;
    let [version_command, family_transport, high, low, rest @ ..] = rest else { return None };
    let length = usize::from(*high) * 256 + usize::from(*low);
    if PREFIX_BYTES + length > limits::PROXY_HEADER_BYTES_MAX || rest.len() < length {
        return None;
    }
    let block = &rest[..length];
    let port = |at: usize| u16::from_be_bytes([block[at], block[at + 1]]);
    let source = match (*version_command, *family_transport) {
        (0x20, _) | (0x21, 0x00 | 0x01 | 0x10 | 0x20 | 0x30) => None,
        (0x21, 0x11) if length >= 12 => {
            let ip: [u8; 4] = block[..4].try_into().unwrap();
            Some(SocketAddr::new(IpAddr::from(ip), port(8)))
        }
        (0x21, 0x21) if length >= 36 => {
            let ip: [u8; 16] = block[..16].try_into().unwrap();
            Some(SocketAddr::new(IpAddr::from(ip).to_canonical(), port(32)))
        }
        (0x21, 0x31) if length >= 216 => None,
        _ => return None,
    };
    Some((source, PREFIX_BYTES + length))
}

pub fn run(input: &[u8]) -> u64 {
    let decoded = decode(input);
    let read = match decoded {
        Ok(Decoded::Whole(Source::Proxy, length)) => Some((None, length)),
        Ok(Decoded::Whole(Source::Address(source), length)) => Some((Some(source), length)),
        Ok(Decoded::Incomplete(least)) => {
            assert!(least > input.len() && least <= limits::PROXY_HEADER_BYTES_MAX, "{least} of {}", input.len());
            None
        }
        Err(_) => None,
    };
    assert_eq!(read, expected(input));
    if let Some((_, length)) = read {
        // What comes behind it changes nothing, and of what is before its end nothing is taken for it.
        assert_eq!(decode(&input[..length]), decoded);
    }
    let end = read.map_or(input.len(), |(_, length)| length).min(limits::PROXY_HEADER_BYTES_MAX);
    for cut in 0..end {
        match decode(&input[..cut]) {
            Ok(Decoded::Whole(_, length)) => panic!("{length} bytes of a header in the first {cut}"),
            Ok(Decoded::Incomplete(_)) => {}
            // What is refused early is refused; for what may show later only, as of version 1.
            Err(early) => assert!(decoded.is_err(), "{early} at {cut}, and then {decoded:?}"),
        }
    }
    kind((decoded.map_err(|error| std::mem::discriminant(&error)).is_ok(), read.is_some(), size(end)))
}
