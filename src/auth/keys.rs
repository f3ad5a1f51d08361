//! The keys that tokens are verified with, and which of them a token may be tried with.
//!
//! The rule: a key is used with the algorithm of its configuration and no other. A token's header chooses among the
//! keys; it never chooses how one is used.

use std::{
    fmt, fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use jsonwebtoken::{DecodingKey, DecodingKeyKind, crypto};

use super::config::{Algorithm, KeyConfig, KeySource};

/// The largest key file that is read; a PEM of 8192 bits has 1.4 KB.
const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;
/// The shortest RSA modulus that tokens are verified with (NIST SP 800-131A).
const RSA_BITS_MIN: usize = 2048;
/// The longest RSA modulus that tokens are verified with.
const RSA_BITS_MAX: usize = 8192;

/// A key that cannot be used: which, from where, and what is wrong with it. One line, without the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct KeyError {
    /// Its place in `auth.keys`, from 0.
    pub index: usize,
    /// Its `kid`; empty where it has none.
    pub kid: String,
    /// The key of the configuration that gives it; empty where that is the trouble.
    pub field: &'static str,
    /// The file it was to be read from.
    pub file: Option<PathBuf>,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "auth.keys[{}]", self.index)?;
        if !self.field.is_empty() {
            write!(f, ".{}", self.field)?;
        }
        if !self.kid.is_empty() {
            write!(f, " (kid `{}`)", self.kid)?;
        }
        if let Some(file) = &self.file {
            write!(f, ": {}", file.display())?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// Why no key vouches for a token; a later one came closer to a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    /// No key has the token's `kid`, and every key has one.
    UnknownKey,
    /// No key that may be tried is for the algorithm the token names.
    Algorithm,
    /// None of the keys that were tried made this signature.
    Signature,
}

/// A key, ready for use.
struct Key {
    kid: Option<String>,
    algorithm: Algorithm,
    decoding: DecodingKey,
}

/// All keys of the configuration.
pub(super) struct KeySet(Vec<Key>);

impl KeySet {
    /// Reads and checks every key.
    pub(super) fn load(configs: &[KeyConfig]) -> Result<Self, KeyError> {
        configs.iter().enumerate().map(|(index, config)| load_key(index, config)).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether some key's signatures cost more than a look-up among those that were verified: all but HMAC's.
    pub(super) fn is_dear(&self) -> bool {
        self.0.iter().any(|key| !key.algorithm.is_hmac())
    }

    /// Whether one of the keys that fit made `signature` (base64url) over `message`.
    pub(super) fn verify(&self, alg: &str, kid: Option<&str>, message: &[u8], signature: &str) -> Result<(), Refusal> {
        let named = kid.is_some_and(|kid| self.0.iter().any(|key| key.kid.as_deref() == Some(kid)));
        let may_try = |key: &&Key| match kid {
            Some(kid) if named => key.kid.as_deref() == Some(kid),
            Some(_) => key.kid.is_none(),
            None => true,
        };
        let mut refusal = Refusal::UnknownKey;
        for key in self.0.iter().filter(may_try) {
            if key.algorithm.as_str() != alg {
                refusal = refusal.max(Refusal::Algorithm);
                continue;
            }
            if crypto::verify(signature, message, &key.decoding, library_name(key.algorithm)).unwrap_or(false) {
                return Ok(());
            }
            refusal = Refusal::Signature;
        }
        Err(refusal)
    }
}

fn load_key(index: usize, config: &KeyConfig) -> Result<Key, KeyError> {
    let fail = |field, file: Option<&Path>, problem: String| KeyError {
        index,
        kid: config.kid.clone(),
        field,
        file: file.map(Path::to_owned),
        problem,
    };
    let source = config.source().map_err(|bad| fail("", None, bad.to_string()))?;
    let field = source.field();
    let algorithm = config.algorithm;
    let decoding = match source {
        KeySource::Secret(text) => DecodingKey::from_secret(text.as_bytes()),
        KeySource::SecretBase64(text) => {
            let bytes = decode_base64(text.trim()).ok_or_else(|| fail(field, None, "is not base64".to_owned()))?;
            if bytes.is_empty() {
                return Err(fail(field, None, "holds an empty secret".to_owned()));
            }
            DecodingKey::from_secret(&bytes)
        }
        KeySource::SecretFile(file) => {
            let bytes = read(file).map_err(|problem| fail(field, Some(file), problem))?;
            let secret = bytes.strip_suffix(b"\n").map_or(&bytes[..], |line| line.strip_suffix(b"\r").unwrap_or(line));
            if secret.is_empty() {
                return Err(fail(field, Some(file), "holds an empty secret".to_owned()));
            }
            DecodingKey::from_secret(secret)
        }
        KeySource::PublicKeyFile(file) => read(file)
            .and_then(|pem| public_key(algorithm, &pem))
            .map_err(|problem| fail(field, Some(file), problem))?,
    };
    let kid = Some(config.kid.clone()).filter(|kid| !kid.is_empty());
    Ok(Key { kid, algorithm, decoding })
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    fs::File::open(file)
        .and_then(|opened| opened.take(KEY_FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > KEY_FILE_BYTES_MAX {
        return Err(format!("has more than {KEY_FILE_BYTES_MAX} bytes and cannot be a key"));
    }
    Ok(bytes)
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let alphabet = if text.contains(['-', '_']) { &alphabet::URL_SAFE } else { &alphabet::STANDARD };
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(alphabet, config).decode(text).ok()
}

/// Reads a PEM and makes sure that it holds a key of the sort, and of the curve or size, that `algorithm` takes: a
/// wrong one would otherwise show only as tokens that never verify.
fn public_key(algorithm: Algorithm, pem: &[u8]) -> Result<DecodingKey, String> {
    if pem.windows(12).any(|window| window == b"PRIVATE KEY-") {
        return Err("holds a private key; the gateway only needs, and only takes, the public one".to_owned());
    }
    let wrong = |what: &str| format!("does not hold {what} in PEM, which {} needs", algorithm.as_str());
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => Err(wrong("a secret")),
        Algorithm::RS256
        | Algorithm::RS384
        | Algorithm::RS512
        | Algorithm::PS256
        | Algorithm::PS384
        | Algorithm::PS512 => {
            let key = DecodingKey::from_rsa_pem(pem).map_err(|_| wrong("an RSA public key"))?;
            let bits = rsa_bits(&key).ok_or_else(|| wrong("an RSA public key"))?;
            if (RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
                return Ok(key);
            }
            Err(format!("holds an RSA key of {bits} bits; {RSA_BITS_MIN} to {RSA_BITS_MAX} are taken"))
        }
        Algorithm::ES256 => sized(DecodingKey::from_ec_pem(pem), &[33, 65]).ok_or_else(|| wrong("a P-256 public key")),
        Algorithm::ES384 => sized(DecodingKey::from_ec_pem(pem), &[49, 97]).ok_or_else(|| wrong("a P-384 public key")),
        Algorithm::EdDSA => sized(DecodingKey::from_ed_pem(pem), &[32]).ok_or_else(|| wrong("an Ed25519 public key")),
    }
}

fn rsa_bits(key: &DecodingKey) -> Option<usize> {
    let DecodingKeyKind::SecretOrDer(der) = key.kind() else { return None };
    let (modulus, _) = (crypto::aws_lc::DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_public_key)(der).ok()?;
    let first = modulus.iter().position(|byte| *byte != 0)?;
    Some((modulus.len() - first) * 8 - modulus[first].leading_zeros() as usize)
}

/// The key, where its point has one of these lengths: curves differ in nothing else here.
fn sized(key: jsonwebtoken::errors::Result<DecodingKey>, lengths: &[usize]) -> Option<DecodingKey> {
    key.ok().filter(|key| key.try_get_as_bytes().is_ok_and(|point| lengths.contains(&point.len())))
}

fn library_name(algorithm: Algorithm) -> jsonwebtoken::Algorithm {
    match algorithm {
        Algorithm::HS256 => jsonwebtoken::Algorithm::HS256,
        Algorithm::HS384 => jsonwebtoken::Algorithm::HS384,
        Algorithm::HS512 => jsonwebtoken::Algorithm::HS512,
        Algorithm::RS256 => jsonwebtoken::Algorithm::RS256,
        Algorithm::RS384 => jsonwebtoken::Algorithm::RS384,
        Algorithm::RS512 => jsonwebtoken::Algorithm::RS512,
        Algorithm::PS256 => jsonwebtoken::Algorithm::PS256,
        Algorithm::PS384 => jsonwebtoken::Algorithm::PS384,
        Algorithm::PS512 => jsonwebtoken::Algorithm::PS512,
        Algorithm::ES256 => jsonwebtoken::Algorithm::ES256,
        Algorithm::ES384 => jsonwebtoken::Algorithm::ES384,
        Algorithm::EdDSA => jsonwebtoken::Algorithm::EdDSA,
    }
}
