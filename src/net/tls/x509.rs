//! The little of a certificate (RFC 5280) that no library here tells: when it is valid, and whose it is; and whether
//! something is a public key. Reads DER; whether it is to be trusted is for others to verify.

use std::net::IpAddr;

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Not valid before, in seconds since the Unix epoch.
    pub not_before: i64,
    /// Not valid after.
    pub not_after: i64,
    /// Its alternative names, in order: DNS names, e-mail addresses, URIs and IP addresses. Others are left out.
    pub names: Vec<Name>,
}

/// One of the alternative names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// A host.
    Dns(String),
    /// An e-mail address.
    Email(String),
    /// A URI, such as a SPIFFE id.
    Uri(String),
    /// An address.
    Ip(IpAddr),
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Name::Dns(text) | Name::Email(text) | Name::Uri(text) => f.write_str(text),
            Name::Ip(ip) => ip.fmt(f),
        }
    }
}

const SEQUENCE: u8 = 0x30;
const OID: u8 = 0x06;
const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BITS: u8 = 0x03;
const OCTETS: u8 = 0x04;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xA0;
const EXTENSIONS: u8 = 0xA3;
/// 2.5.29.17, `subjectAltName`.
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1D, 0x11];

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next element: its tag and what is in it. `None` where there is none, or it is malformed.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        // No tag of more than one byte stands in what is read here.
        if tag & 0x1F == 0x1F {
            return None;
        }
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7F => (usize::from(first), rest),
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, value))
    }

    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, value)| value)
    }

    fn skip(&mut self, tag: u8) {
        if self.0.first() == Some(&tag) {
            self.next();
        }
    }
}

impl Certificate {
    /// Reads a certificate. `None`: it is none.
    pub fn parse(der: &[u8]) -> Option<Self> {
        let whole = Reader(der).expect(SEQUENCE)?;
        let mut fields = Reader(Reader(whole).expect(SEQUENCE)?);
        fields.skip(VERSION);
        let _serial = fields.next()?;
        let _algorithm = fields.next()?;
        let _issuer = fields.expect(SEQUENCE)?;
        let mut validity = Reader(fields.expect(SEQUENCE)?);
        let (not_before, not_after) = (time(validity.next()?)?, time(validity.next()?)?);
        let _subject = fields.expect(SEQUENCE)?;
        let _key = fields.expect(SEQUENCE)?;
        let mut names = Vec::new();
        while let Some((tag, value)) = fields.next() {
            if tag == EXTENSIONS {
                alternative_names(value, &mut names)?;
            }
        }
        Some(Self { not_before, not_after, names })
    }
}

/// Whether that is a public key: a `SubjectPublicKeyInfo` (RFC 5280 section 4.1) or an `RSAPublicKey` (RFC 8017 appendix
/// A.1.1), and possibly something behind it.
pub fn is_public_key(der: &[u8]) -> bool {
    let Some(whole) = Reader(der).expect(SEQUENCE) else { return false };
    let is = |(first, second): (u8, u8)| {
        let mut fields = Reader(whole);
        let value = fields.expect(first).filter(|_| fields.expect(second).is_some() && fields.0.is_empty());
        value.is_some_and(|value| first != SEQUENCE || Reader(value).expect(OID).is_some())
    };
    [(SEQUENCE, BITS), (INTEGER, INTEGER)].into_iter().any(is)
}

fn alternative_names(extensions: &[u8], names: &mut Vec<Name>) -> Option<()> {
    let mut extensions = Reader(Reader(extensions).expect(SEQUENCE)?);
    while let Some((SEQUENCE, extension)) = extensions.next() {
        let mut extension = Reader(extension);
        let id = extension.expect(OID)?;
        extension.skip(BOOLEAN);
        let value = extension.expect(OCTETS)?;
        if id != ALTERNATIVE_NAMES {
            continue;
        }
        let mut all = Reader(Reader(value).expect(SEQUENCE)?);
        while let Some((tag, value)) = all.next() {
            // IA5String: ASCII. What is none, or would not fit into a line of the log, is nobody's name.
            let text = || {
                let printable = !value.is_empty() && value.iter().all(u8::is_ascii_graphic);
                printable.then(|| String::from_utf8_lossy(value).into_owned())
            };
            names.extend(match tag {
                0x81 => text().map(Name::Email),
                0x82 => text().map(Name::Dns),
                0x86 => text().map(Name::Uri),
                0x87 => match value.len() {
                    4 => value.first_chunk::<4>().map(|octets| Name::Ip(IpAddr::from(*octets))),
                    16 => value.first_chunk::<16>().map(|octets| Name::Ip(IpAddr::from(*octets))),
                    _ => None,
                },
                _ => None,
            });
        }
    }
    Some(())
}

/// RFC 5280 section 4.1.2.5: `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`, in seconds since the Unix epoch.
fn time((tag, text): (u8, &[u8])) -> Option<i64> {
    let digits = text.strip_suffix(b"Z").filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    let number = |digits: &[u8]| digits.iter().fold(0_i64, |number, digit| number * 10 + i64::from(digit - b'0'));
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let year = number(&digits[..2]);
            (if year < 50 { 2000 + year } else { 1900 + year }, &digits[2..])
        }
        (GENERALIZED_TIME, 14) => (number(&digits[..4]), &digits[4..]),
        _ => return None,
    };
    let part = |index: usize| number(&rest[2 * index..2 * index + 2]);
    let (month, day, hour, minute, second) = (part(0), part(1), part(2), part(3), part(4));
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since the epoch; a year begins in March, so that the leap day is its last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (tag, text, seconds) in [
            (UTC_TIME, "700101000000Z", 0),
            (UTC_TIME, "000229235959Z", 951_868_799),
            (UTC_TIME, "491231235959Z", 2_524_607_999),
            (UTC_TIME, "500101000000Z", -631_152_000),
            (GENERALIZED_TIME, "20240301120000Z", 1_709_294_400),
            (GENERALIZED_TIME, "99991231235959Z", 253_402_300_799),
        ] {
            assert_eq!(time((tag, text.as_bytes())), Some(seconds), "{text}");
        }
        for bad in ["", "Z", "7001010000Z", "700101000000", "701301000000Z", "70010100000xZ", "700100000000Z"] {
            assert_eq!(time((UTC_TIME, bad.as_bytes())), None, "{bad}");
        }
        assert_eq!(time((0x04, b"700101000000Z")), None);
    }

    #[test]
    fn names_and_times_of_a_certificate_are_read() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params =
            rcgen::CertificateParams::new(vec!["*.example.com".to_owned(), "10.1.2.3".to_owned()]).unwrap();
        let name = |text: &str| rcgen::string::Ia5String::try_from(text).unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI(name("spiffe://example.com/orders")));
        params.subject_alt_names.push(rcgen::SanType::Rfc822Name(name("orders@example.com")));
        params.not_before = rcgen::date_time_ymd(2024, 2, 29);
        params.not_after = rcgen::date_time_ymd(2055, 3, 1);
        let certificate = params.self_signed(&key).unwrap();
        let read = Certificate::parse(certificate.der()).unwrap();
        assert_eq!((read.not_before, read.not_after), (1_709_164_800, 2_687_472_000));
        let expected = [
            Name::Dns("*.example.com".to_owned()),
            Name::Ip(IpAddr::from([10, 1, 2, 3])),
            Name::Uri("spiffe://example.com/orders".to_owned()),
            Name::Email("orders@example.com".to_owned()),
        ];
        assert_eq!(read.names, expected);
        // Cut anywhere it is none, and nothing panics.
        for cut in 0..certificate.der().len() {
            assert_eq!(Certificate::parse(&certificate.der()[..cut]), None, "{cut}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = Certificate::parse(&bytes);
        }
    }
}
