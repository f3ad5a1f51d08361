//! The keys that tokens are verified with, and which of them a token may be tried with.
//!
//! The rule: a key is used with the algorithms that it was given and no other, and what it is decides which these may be:
//! a secret is never used with a public key's, nor a public key as a secret. A token's header chooses among the keys; it
//! never chooses how one is used, and `none` is the name of no algorithm here.

use std::{
    fmt, fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use jsonwebtoken::{DecodingKey, DecodingKeyKind, crypto};
use sha2::{Digest as _, Sha256};

use super::{
    cache::Cache,
    config::{Algorithm, KeyConfig, KeySource},
    material::Form,
};
use crate::limits;

/// The largest key file that is read; a PEM of 8192 bits has 1.4 KB.
const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;
/// The shortest RSA modulus that tokens are verified with (NIST SP 800-131A).
pub(super) const RSA_BITS_MIN: usize = 2048;
/// The longest RSA modulus that tokens are verified with.
pub(super) const RSA_BITS_MAX: usize = 8192;

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

/// Algorithms, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Algorithms(u16);

impl Algorithms {
    /// These.
    pub(super) fn of(all: &[Algorithm]) -> Self {
        Self(all.iter().fold(0, |bits, one| bits | 1 << *one as u16))
    }

    fn contains(self, one: Algorithm) -> bool {
        self.0 & 1 << one as u16 != 0
    }
}

/// A key, ready for use. It prints without itself.
pub(super) struct Key {
    kid: Option<String>,
    algorithms: Algorithms,
    decoding: DecodingKey,
    /// A SHA-256 over all of it: whether a key that was read again is another.
    print: [u8; 32],
    /// Its bytes, where it is a secret that is shorter than its algorithm asks for.
    weak_bytes: Option<usize>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).field("algorithms", &self.algorithms).finish_non_exhaustive()
    }
}

impl Key {
    /// A key that is used with these algorithms.
    pub(super) fn new(kid: Option<String>, algorithms: Algorithms, decoding: DecodingKey) -> Self {
        let mut print = Sha256::new().chain_update(algorithms.0.to_be_bytes());
        for text in [&[u8::from(kid.is_some())], kid.as_deref().unwrap_or_default().as_bytes()] {
            print.update(text.len().to_be_bytes());
            print.update(text);
        }
        match decoding.kind() {
            DecodingKeyKind::SecretOrDer(bytes) => print.update(bytes),
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                print.update(n.len().to_be_bytes());
                print.update(n);
                print.update(e);
            }
        }
        Self { kid, algorithms, decoding, print: print.finalize().into(), weak_bytes: None }
    }

    /// A secret for one algorithm. The error says why it is not taken.
    pub(super) fn secret(
        kid: Option<String>,
        algorithm: Algorithm,
        secret: &[u8],
        weak_too: bool,
    ) -> Result<Self, String> {
        let (bytes, least) = (secret.len(), algorithm.secret_bytes_min());
        if secret.is_empty() {
            return Err("holds an empty secret".to_owned());
        }
        if let Some(form) = Form::of(secret) {
            return Err(form.instead_of_a_secret());
        }
        let weak = bytes < least;
        if weak && !weak_too {
            let name = algorithm.as_str();
            return Err(format!(
                "holds a secret of {bytes} bytes, and {name} needs {least} at least (RFC 7518 section 3.2); make a longer \
                 one, or set auth.weak_keys = true until all tokens are signed by one"
            ));
        }
        let key = Self::new(kid, Algorithms::of(&[algorithm]), DecodingKey::from_secret(secret));
        Ok(Self { weak_bytes: weak.then_some(bytes), ..key })
    }

    /// Whether that is the same key, for the same use.
    pub(super) fn is(&self, other: &Key) -> bool {
        self.print == other.print
    }

    /// What to warn of: a secret that is shorter than it should be, by its name and its bytes.
    pub(super) fn weakness(&self) -> Option<(&str, usize)> {
        self.weak_bytes.map(|bytes| (self.kid.as_deref().unwrap_or_default(), bytes))
    }
}

/// All keys there are at one time, and the tokens that they were found to vouch for.
pub(super) struct KeySet {
    keys: Vec<Arc<Key>>,
    dear: bool,
    pub(super) verified: Cache,
}

/// Reads and checks every key of the configuration.
pub(super) fn load(configs: &[KeyConfig], weak_too: bool) -> Result<Vec<Arc<Key>>, KeyError> {
    let key = |(index, config)| load_key(index, config, weak_too).map(Arc::new);
    configs.iter().enumerate().map(key).collect()
}

impl KeySet {
    /// These keys, and no token known yet.
    pub(super) fn new(keys: Vec<Arc<Key>>) -> Self {
        let hmac = Algorithms::of(&[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512]);
        let dear = keys.iter().any(|key| key.algorithms.0 & !hmac.0 != 0);
        Self { keys, dear, verified: Cache::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The keys.
    pub(super) fn keys(&self) -> &[Arc<Key>] {
        &self.keys
    }

    /// Whether it holds these keys and no other, in this order.
    pub(super) fn is(&self, keys: &[Arc<Key>]) -> bool {
        self.keys.iter().map(|key| key.print).eq(keys.iter().map(|key| key.print))
    }

    /// Whether some key's signatures cost more than a look-up among those that were verified: all but HMAC's.
    pub(super) fn is_dear(&self) -> bool {
        self.dear
    }

    /// Whether a key has that name.
    pub(super) fn knows(&self, kid: &str) -> bool {
        self.keys.iter().any(|key| key.kid.as_deref() == Some(kid))
    }

    /// Whether one of the keys that fit made `signature` (base64url) over `message`. A token that names no key is tried with
    /// those for its algorithm, the first [`limits::KEYS_TRIED_MAX`] of them.
    pub(super) fn verify(&self, alg: &str, kid: Option<&str>, message: &[u8], signature: &str) -> Result<(), Refusal> {
        let named = kid.is_some_and(|kid| self.knows(kid));
        let may_try = |key: &&Arc<Key>| match kid {
            Some(kid) if named => key.kid.as_deref() == Some(kid),
            Some(_) => key.kid.is_none(),
            None => true,
        };
        // A name that no algorithm has, `none` among them, fits no key.
        let algorithm = Algorithm::ALL.into_iter().find(|one| one.as_str() == alg);
        let (mut refusal, mut tried) = (Refusal::UnknownKey, 0);
        for key in self.keys.iter().filter(may_try) {
            let Some(algorithm) = algorithm.filter(|algorithm| key.algorithms.contains(*algorithm)) else {
                refusal = refusal.max(Refusal::Algorithm);
                continue;
            };
            tried += 1;
            if tried > limits::KEYS_TRIED_MAX {
                break;
            }
            if crypto::verify(signature, message, &key.decoding, library_name(algorithm)).unwrap_or(false) {
                return Ok(());
            }
            refusal = Refusal::Signature;
        }
        Err(refusal)
    }
}

fn load_key(index: usize, config: &KeyConfig, weak_too: bool) -> Result<Key, KeyError> {
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
    let kid = Some(config.kid.clone()).filter(|kid| !kid.is_empty());
    let secret = |bytes: &[u8], file: Option<&Path>| {
        Key::secret(kid.clone(), algorithm, bytes, weak_too).map_err(|problem| fail(field, file, problem))
    };
    match source {
        KeySource::Secret(text) => secret(text.as_bytes(), None),
        KeySource::SecretBase64(text) => {
            let bytes = decode_base64(text.trim()).ok_or_else(|| fail(field, None, "is not base64".to_owned()))?;
            secret(&bytes, None)
        }
        KeySource::SecretFile(file) => {
            let bytes = read(file, KEY_FILE_BYTES_MAX, "a key").map_err(|problem| fail(field, Some(file), problem))?;
            // Before its last byte is taken for the end of a line: that may be one of a key's.
            if let Some(form) = Form::of(&bytes) {
                return Err(fail(field, Some(file), form.instead_of_a_secret()));
            }
            let line = bytes.strip_suffix(b"\n").map_or(&bytes[..], |line| line.strip_suffix(b"\r").unwrap_or(line));
            secret(line, Some(file))
        }
        KeySource::PublicKeyFile(file) => read(file, KEY_FILE_BYTES_MAX, "a key")
            .and_then(|pem| public_key(algorithm, &pem))
            .map(|decoding| Key::new(kid.clone(), Algorithms::of(&[algorithm]), decoding))
            .map_err(|problem| fail(field, Some(file), problem)),
    }
}

/// A file of at most `most` bytes; larger ones cannot be `what`.
pub(super) fn read(file: &Path, most: u64, what: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    fs::File::open(file)
        .and_then(|opened| opened.take(most + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > most {
        return Err(format!("has more than {most} bytes and cannot be {what}"));
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
    if Form::of(pem) == Some(Form::PrivatePem) {
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
    bits_of(&modulus)
}

/// The bits of a number, big-endian.
pub(super) fn bits_of(number: &[u8]) -> Option<usize> {
    let first = number.iter().position(|byte| *byte != 0)?;
    Some((number.len() - first) * 8 - number[first].leading_zeros() as usize)
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
