//! The section `[auth]`: which tokens are believed, and who their bearer is.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::types::{Count, Secret, Span};

/// The section `[auth]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The claims that may name the user; the first that a token has does.
    pub user_claim: Vec<String>,
    /// The claims that other users see in presence.
    pub public_claims: Vec<String>,
    /// Further claims that a session keeps: for the filters of broadcasts and for the services that its messages go to.
    pub session_claims: Vec<String>,
    /// Whether a token without `exp` is refused.
    pub require_exp: bool,
    /// The issuers that are believed. Empty: not checked.
    pub issuer: Vec<String>,
    /// The audiences that this gateway belongs to. Empty: not checked.
    pub audience: Vec<String>,
    /// How far the clocks of issuer and gateway may be apart, for `exp` and `nbf`.
    pub leeway: Span,
    /// How long a connection may take to bring its token.
    pub timeout: Span,
    /// The keys that tokens are verified with.
    pub keys: Vec<KeyConfig>,
    /// Keys published by an identity provider.
    pub jwks: JwksConfig,
    /// Whether HMAC secrets are taken that are shorter than their algorithm asks for.
    pub weak_keys: bool,
    /// How long a session lives by one token, however far its `exp` is. 0: until that.
    pub max_lifetime: Span,
    /// Whether who brings no token is let in, as a guest.
    pub anonymous: bool,
    /// The guests who are connected at once; further ones are refused.
    pub anonymous_connections: Count,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            user_claim: vec!["sub".to_owned(), "userId".to_owned()],
            public_claims: Vec::new(),
            session_claims: Vec::new(),
            require_exp: true,
            issuer: Vec::new(),
            audience: Vec::new(),
            leeway: Span::secs(30),
            timeout: Span::secs(5),
            keys: Vec::new(),
            jwks: JwksConfig::default(),
            weak_keys: false,
            max_lifetime: Span::secs(0),
            anonymous: false,
            anonymous_connections: Count(1000),
        }
    }
}

/// The section `[auth.jwks]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct JwksConfig {
    /// Where the key set is fetched from. Empty: nowhere.
    pub url: String,
    /// The file that holds the key set. Empty: none.
    pub file: PathBuf,
    /// How often it is fetched again; a file is read again when it changes.
    pub refresh: Span,
    /// The certificates (PEM) of those who vouch for the host of `url`, in place of the system's. Empty: the system's.
    pub ca_file: PathBuf,
}

impl Default for JwksConfig {
    fn default() -> Self {
        Self { url: String::new(), file: PathBuf::new(), refresh: Span::secs(600), ca_file: PathBuf::new() }
    }
}

/// One of `[[auth.keys]]`. Exactly one of the four places of a key is given, the one that fits the algorithm.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// The name by which tokens ask for this key. Empty: it has none.
    #[serde(default)]
    pub kid: String,
    /// The only algorithm that this key is used with, whatever a token says.
    pub algorithm: Algorithm,
    /// An HMAC secret, as text.
    #[serde(default)]
    pub secret: Secret,
    /// The file whose bytes are an HMAC secret; one newline at its end is not part of it.
    #[serde(default)]
    pub secret_file: PathBuf,
    /// An HMAC secret, base64 (either alphabet, padded or not).
    #[serde(default)]
    pub secret_base64: Secret,
    /// The file that holds a public key in PEM.
    #[serde(default)]
    pub public_key_file: PathBuf,
}

/// Where the bytes of a key come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeySource<'a> {
    Secret(&'a str),
    SecretFile(&'a Path),
    SecretBase64(&'a str),
    PublicKeyFile(&'a Path),
}

impl KeySource<'_> {
    /// The configuration's name for it.
    pub(super) fn field(self) -> &'static str {
        match self {
            KeySource::Secret(_) => "secret",
            KeySource::SecretFile(_) => "secret_file",
            KeySource::SecretBase64(_) => "secret_base64",
            KeySource::PublicKeyFile(_) => "public_key_file",
        }
    }
}

/// What is wrong with a key as it is configured, before anything is read: what and what to do, without the key's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadKey(String);

impl KeyConfig {
    /// A key of that algorithm with nothing else set.
    pub fn new(algorithm: Algorithm) -> Self {
        Self {
            kid: String::new(),
            algorithm,
            secret: Secret::default(),
            secret_file: PathBuf::new(),
            secret_base64: Secret::default(),
            public_key_file: PathBuf::new(),
        }
    }

    /// Checks that there is one source of the sort that the algorithm needs. Reads nothing.
    pub fn check(&self) -> Result<(), BadKey> {
        self.source().map(drop)
    }

    pub(super) fn source(&self) -> Result<KeySource<'_>, BadKey> {
        let wanted = self.algorithm.source_names();
        let given: Vec<KeySource<'_>> = [
            (!self.secret.is_empty()).then(|| KeySource::Secret(self.secret.expose())),
            (!self.secret_file.as_os_str().is_empty()).then_some(KeySource::SecretFile(&self.secret_file)),
            (!self.secret_base64.is_empty()).then(|| KeySource::SecretBase64(self.secret_base64.expose())),
            (!self.public_key_file.as_os_str().is_empty()).then_some(KeySource::PublicKeyFile(&self.public_key_file)),
        ]
        .into_iter()
        .flatten()
        .collect();
        let algorithm = self.algorithm.as_str();
        match given.as_slice() {
            [] => Err(BadKey(format!("has no key; {algorithm} needs {wanted}"))),
            [one] if self.algorithm.is_hmac() == matches!(one, KeySource::PublicKeyFile(_)) => {
                Err(BadKey(format!("{} does not go with {algorithm}, which needs {wanted}", one.field())))
            }
            [one] => Ok(*one),
            several => {
                let names: Vec<_> = several.iter().map(|source| source.field()).collect();
                Err(BadKey(format!("has several keys ({}); {algorithm} needs {wanted}", names.join(", "))))
            }
        }
    }
}

/// A signature algorithm (RFC 7518 section 3.1, RFC 8037 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[allow(missing_docs, reason = "the names are the standard's own")]
pub enum Algorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Algorithm; 12] = [
        Algorithm::HS256,
        Algorithm::HS384,
        Algorithm::HS512,
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
        Algorithm::ES256,
        Algorithm::ES384,
        Algorithm::EdDSA,
    ];

    /// Its name in tokens and in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Algorithm::HS256 => "HS256",
            Algorithm::HS384 => "HS384",
            Algorithm::HS512 => "HS512",
            Algorithm::RS256 => "RS256",
            Algorithm::RS384 => "RS384",
            Algorithm::RS512 => "RS512",
            Algorithm::PS256 => "PS256",
            Algorithm::PS384 => "PS384",
            Algorithm::PS512 => "PS512",
            Algorithm::ES256 => "ES256",
            Algorithm::ES384 => "ES384",
            Algorithm::EdDSA => "EdDSA",
        }
    }

    /// Whether issuer and verifier share a secret.
    pub const fn is_hmac(self) -> bool {
        matches!(self, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
    }

    /// The fewest bytes of its secret (RFC 7518 section 3.2: as many as its hash has).
    pub const fn secret_bytes_min(self) -> usize {
        match self {
            Algorithm::HS256 => 32,
            Algorithm::HS384 => 48,
            Algorithm::HS512 => 64,
            _ => 0,
        }
    }

    fn source_names(self) -> &'static str {
        if self.is_hmac() { "exactly one of secret, secret_file, secret_base64" } else { "public_key_file" }
    }
}
