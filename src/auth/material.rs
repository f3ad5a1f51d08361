//! What the bytes of a key are, as far as their form tells: a public key is known to others, and makes no secret.
//!
//! The forms are those in which public keys are handed about: PEM (RFC 7468), DER (RFC 5280 section 4.1, RFC 8017 appendix
//! A.1.1), the base64 of DER without its PEM lines, OpenSSH (RFC 4253 section 6.6), SSH2 (RFC 4716) and JSON Web Keys
//! (RFC 7517). A secret that was drawn at random has none of them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use memchr::memmem;
use serde_json::Value;

use crate::net::tls::x509;

/// How the algorithms of OpenSSH's public keys begin.
const OPENSSH: [&[u8]; 5] = [b"ssh-rsa ", b"ssh-dss ", b"ssh-ed25519 ", b"ecdsa-sha2-", b"sk-"];

/// A form that tells what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A private key in PEM.
    PrivatePem,
    /// Anything else in PEM: a public key, a certificate.
    Pem,
    /// A public key or a certificate in DER, as bytes or in base64.
    Der,
    /// A public key of SSH.
    Ssh,
    /// A JSON Web Key, or a set of them.
    Jwk,
}

impl Form {
    /// The form of these bytes; `None`: they may be anything.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let has = |text: &[u8]| memmem::find(bytes, text).is_some();
        let text = bytes.trim_ascii();
        if has(b"PRIVATE KEY-") {
            Some(Form::PrivatePem)
        } else if has(b"-----BEGIN ") {
            Some(Form::Pem)
        } else if is_public_der(bytes) || is_public_der(&unwrapped(text)) {
            Some(Form::Der)
        } else if has(b"---- BEGIN SSH2 PUBLIC KEY") || OPENSSH.iter().any(|name| is_openssh(text, name)) {
            Some(Form::Ssh)
        } else if is_jwk(text) {
            Some(Form::Jwk)
        } else {
            None
        }
    }

    /// Why this is no secret, and what to do.
    pub(super) fn instead_of_a_secret(self) -> String {
        let what = match self {
            Form::PrivatePem => {
                return "holds a private key, where a secret for HMAC belongs; the gateway needs its public \
                key: give that as public_key_file, with the algorithm that signs with it"
                    .to_owned();
            }
            Form::Pem => "a public key or a certificate in PEM",
            Form::Der => "a public key or a certificate in DER",
            Form::Ssh => "a public key of SSH",
            Form::Jwk => {
                return "holds a JSON Web Key, where a secret for HMAC belongs; give the set as auth.jwks.file"
                    .to_owned();
            }
        };
        format!(
            "holds {what}, where a secret for HMAC belongs: whoever knows it, and others do, could sign tokens; give it as \
             public_key_file (PEM) with the algorithm that signs with it, such as RS256 or ES256, or make a secret of its own"
        )
    }
}

fn is_public_der(der: &[u8]) -> bool {
    x509::is_public_key(der) || x509::Certificate::parse(der).is_some()
}

/// What base64 in lines holds; nothing where it is none.
fn unwrapped(text: &[u8]) -> Vec<u8> {
    let text: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    STANDARD.decode(text).unwrap_or_default()
}

/// `ssh-ed25519 AAAA…`: the name, and behind the first space a blob, which begins with the length of the name.
fn is_openssh(text: &[u8], name: &[u8]) -> bool {
    let blob = text.iter().position(|byte| *byte == b' ').map_or(&b""[..], |space| text[space..].trim_ascii_start());
    text.starts_with(name) && blob.starts_with(b"AAAA")
}

fn is_jwk(text: &[u8]) -> bool {
    let json = || serde_json::from_slice::<Value>(text).ok();
    text.starts_with(b"{") && json().is_some_and(|json| json.get("kty").is_some() || json.get("keys").is_some())
}
