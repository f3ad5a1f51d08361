//! A set of JSON Web Keys (RFC 7517), as an identity provider publishes it.
//!
//! Rule: a key that cannot be used, or must not be, is passed over with a reason, and the others are taken; a document
//! that is no set, or of which no key is left, is none. What a key is (`kty`, `crv`) decides which algorithms it may be used
//! with, and its `alg` narrows that to one; `use` and `key_ops` that do not mean verifying keep it out. Secrets (`oct`) are
//! taken from files alone: what a server hands to everybody is none.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::DecodingKey;
use serde_json::{Map, Value};

use super::{
    config::Algorithm,
    keys::{Algorithms, Key, RSA_BITS_MAX, RSA_BITS_MIN, bits_of},
};
use crate::limits;

const RSA: [Algorithm; 6] =
    [Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];
/// How much of a `kid` a log line shows.
const KID_CHARS_SHOWN: usize = 64;

/// Where a set comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// A file of this machine.
    File,
    /// A server.
    Server,
}

/// A set that was read. It prints without its keys.
#[derive(Debug)]
pub(super) struct Set {
    /// Its keys.
    pub(super) keys: Vec<Key>,
    /// Why others are not among them.
    pub(super) passed_over: Vec<String>,
}

/// Reads a set. The error says what is wrong with it, and holds nothing of it but names.
pub(super) fn parse(text: &[u8], from: From, weak_too: bool) -> Result<Set, String> {
    // What serde_json says of it names places only.
    let document: Value = serde_json::from_slice(text).map_err(|error| format!("is not JSON: {error}"))?;
    let keys = document.get("keys").and_then(Value::as_array).ok_or("is no key set: it has no list `keys`")?;
    if keys.len() > limits::JWKS_KEYS_MAX {
        return Err(format!("has {} keys, and {} are taken at most", keys.len(), limits::JWKS_KEYS_MAX));
    }
    let mut set = Set { keys: Vec::new(), passed_over: Vec::new() };
    for (index, key) in keys.iter().enumerate() {
        match key.as_object().ok_or("is no object".to_owned()).and_then(|key| read(key, from, weak_too)) {
            Ok(key) => set.keys.push(key),
            Err(why) => {
                let kid = key.get("kid").and_then(Value::as_str).map(shown).unwrap_or_default();
                set.passed_over.push(format!("keys[{index}]{kid}: {why}"));
            }
        }
    }
    if set.keys.is_empty() {
        let why = set.passed_over.first().map(|first| format!(", the first because: {first}")).unwrap_or_default();
        return Err(format!("has no key that tokens can be verified with{why}"));
    }
    Ok(set)
}

fn shown(kid: &str) -> String {
    format!(" (kid `{}`)", kid.chars().take(KID_CHARS_SHOWN).collect::<String>().escape_debug())
}

type Fields = Map<String, Value>;

fn text<'a>(key: &'a Fields, name: &str) -> Result<Option<&'a str>, String> {
    match key.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("its `{name}` is no text")),
    }
}

fn bytes(key: &Fields, name: &str) -> Result<Vec<u8>, String> {
    let text = text(key, name)?.ok_or_else(|| format!("it has no `{name}`"))?;
    // Some write the padding that RFC 7515 section 2 leaves out.
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| format!("its `{name}` is not base64url"))
}

fn read(key: &Fields, from: From, weak_too: bool) -> Result<Key, String> {
    if let Some(usage) = text(key, "use")?
        && usage != "sig"
    {
        return Err("its `use` is not `sig`".to_owned());
    }
    if let Some(operations) = key.get("key_ops") {
        let operations = operations.as_array().ok_or("its `key_ops` is no list")?;
        if !operations.iter().any(|one| one == "verify") {
            return Err("its `key_ops` do not have `verify`".to_owned());
        }
    }
    let kid = text(key, "kid")?.filter(|kid| !kid.is_empty()).map(str::to_owned);
    let alg = match text(key, "alg")? {
        None => None,
        Some(name) => {
            let known = Algorithm::ALL.into_iter().find(|one| one.as_str() == name);
            Some(known.ok_or("its `alg` is none that tokens are verified with here")?)
        }
    };
    let kty = text(key, "kty")?.ok_or("it has no `kty`")?;
    if kty == "oct" {
        return secret(key, kid, alg, from, weak_too);
    }
    if key.contains_key("d") {
        return Err("it holds a private key; only the public one belongs here".to_owned());
    }
    let (fitting, decoding): (&[Algorithm], DecodingKey) = match (kty, text(key, "crv")?) {
        ("RSA", _) => (&RSA, rsa(key)?),
        ("EC", Some("P-256")) => (&[Algorithm::ES256], point(key, 32)?),
        ("EC", Some("P-384")) => (&[Algorithm::ES384], point(key, 48)?),
        ("OKP", Some("Ed25519")) => {
            let x = bytes(key, "x")?;
            if x.len() != 32 {
                return Err("its `x` does not have 32 bytes".to_owned());
            }
            (&[Algorithm::EdDSA], DecodingKey::from_ed_der(&x))
        }
        _ => return Err("its `kty` or `crv` is none that tokens are verified with here".to_owned()),
    };
    match alg {
        None => Ok(Key::new(kid, Algorithms::of(fitting), decoding)),
        Some(alg) if fitting.contains(&alg) => Ok(Key::new(kid, Algorithms::of(&[alg]), decoding)),
        Some(_) => Err("its `alg` is not for a key of its `kty`".to_owned()),
    }
}

fn secret(
    key: &Fields,
    kid: Option<String>,
    alg: Option<Algorithm>,
    from: From,
    weak_too: bool,
) -> Result<Key, String> {
    if from == From::Server {
        return Err("it is a secret (`oct`), and what is fetched is known to others; give it in auth.keys".to_owned());
    }
    match alg {
        Some(alg) if alg.is_hmac() => Key::secret(kid, alg, &bytes(key, "k")?, weak_too),
        Some(_) => Err("its `alg` is not for a secret".to_owned()),
        None => Err("it is a secret (`oct`) without an `alg`, so nobody knows what it is for".to_owned()),
    }
}

fn rsa(key: &Fields) -> Result<DecodingKey, String> {
    let (n, e) = (bytes(key, "n")?, bytes(key, "e")?);
    let bits = bits_of(&n).unwrap_or(0);
    if !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
        return Err(format!("it has {bits} bits; {RSA_BITS_MIN} to {RSA_BITS_MAX} are taken"));
    }
    // An exponent of 1 is no signature at all; what verifies takes up to 33 bits (FIPS 186-5 and its own bound).
    if !(2..=33).contains(&bits_of(&e).unwrap_or(0)) || e.last().is_none_or(|last| last % 2 == 0) {
        return Err("its `e` is no exponent of RSA".to_owned());
    }
    let without_zeros = |number: &[u8]| number.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<_>>();
    Ok(DecodingKey::from_rsa_raw_components(&without_zeros(&n), &without_zeros(&e)))
}

/// An uncompressed point (SEC 1 section 2.3.3); whether it is on its curve is looked at with each signature.
fn point(key: &Fields, length: usize) -> Result<DecodingKey, String> {
    let mut point = vec![4];
    for name in ["x", "y"] {
        let number = bytes(key, name)?;
        if number.len() != length {
            return Err(format!("its `{name}` does not have {length} bytes"));
        }
        point.extend(number);
    }
    Ok(DecodingKey::from_ec_der(&point))
}
