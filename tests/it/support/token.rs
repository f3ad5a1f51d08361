//! Real signed tokens, as an application's login would issue them.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

/// The HMAC secret that every test's gateway knows.
pub const SECRET: &str = "a-secret-that-must-never-reach-a-log";

/// A private key of `tests/keys`.
pub fn private_key(name: &str) -> Vec<u8> {
    std::fs::read(key_path(&format!("test-{name}-private.pem"))).unwrap()
}

/// A file of `tests/keys`.
pub fn key_path(name: &str) -> String {
    format!("{}/tests/keys/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Seconds since the Unix epoch.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A token under construction.
#[derive(Clone)]
pub struct Token {
    header: Header,
    claims: Value,
    key: EncodingKey,
}

impl Token {
    /// A good token of that user: an hour and more to live, signed with [`SECRET`].
    pub fn of(user: &str) -> Self {
        Self::claims(json!({ "sub": user, "exp": unix_now() + 1_000_000 }))
    }

    /// A token with exactly these claims, signed with [`SECRET`].
    pub fn claims(claims: Value) -> Self {
        Self { header: Header::new(Algorithm::HS256), claims, key: EncodingKey::from_secret(SECRET.as_bytes()) }
    }

    /// With another claim.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims[name] = value.into();
        self
    }

    /// Running out so many seconds from now, or before now.
    pub fn expiring_in(self, seconds: i64) -> Self {
        self.with("exp", unix_now().saturating_add_signed(seconds))
    }

    /// Signed with another key.
    pub fn signed(mut self, algorithm: Algorithm, key: EncodingKey, kid: Option<&str>) -> Self {
        self.header = Header::new(algorithm);
        self.header.kid = kid.map(str::to_owned);
        self.key = key;
        self
    }

    /// The token.
    pub fn sign(&self) -> String {
        jsonwebtoken::encode(&self.header, &self.claims, &self.key).unwrap()
    }
}
