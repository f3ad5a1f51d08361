//! From a token to an identity: JSON Web Tokens (RFC 7519), signed (RFC 7515), never encrypted.
//!
//! The order of verdicts is fixed: shape, signature, time (`exp`, `nbf`), issuer, audience, user, device, topics. Nothing a
//! token says is believed before its signature holds, and no message repeats what a token says.

mod cache;
mod config;
mod keys;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Map, Value};

pub use self::{
    config::{Algorithm, BadKey, Config, JwksConfig, KeyConfig},
    keys::KeyError,
};
pub use crate::protocol::auth_code::AuthCode;
use crate::{
    clock::Clock,
    limits,
    types::{Claims, Device, Topic, UnixMillis, UserId},
};
use cache::Cache;
use keys::{KeySet, Refusal};

/// Who a connection belongs to. Only [`Authenticator::verify`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    user: UserId,
    device: Option<Device>,
    expires_at: Option<UnixMillis>,
    valid_until: Option<UnixMillis>,
    claims: Claims,
    topics: Option<Arc<[Topic]>>,
}

impl Identity {
    /// The user.
    pub fn user(&self) -> &UserId {
        &self.user
    }

    /// The device, where the token names one; it then overrides what the client says.
    pub fn device(&self) -> Option<&Device> {
        self.device.as_ref()
    }

    /// The token's `exp`; `None` where it has none.
    pub fn expires_at(&self) -> Option<UnixMillis> {
        self.expires_at
    }

    /// When the token stops being accepted: `exp` and the leeway.
    pub fn valid_until(&self) -> Option<UnixMillis> {
        self.valid_until
    }

    /// The topics that the token subscribes its session to.
    pub fn topics(&self) -> &[Topic] {
        self.topics.as_deref().unwrap_or_default()
    }

    /// The claims that its session keeps.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }
}

/// Why a token was not accepted. The message repeats nothing of the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AuthError {
    /// What the client hears as `code`.
    pub code: AuthCode,
    /// What the client hears as `message`.
    pub message: String,
    /// The user, where the signature held and the token named one.
    pub user: Option<UserId>,
}

impl AuthError {
    /// A refusal that has no user to name.
    pub fn new(code: AuthCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), user: None }
    }
}

/// Verifies tokens, and knows those that it found good until they run out. Its keys and rules never change: a changed
/// configuration is a new one.
pub struct Authenticator {
    keys: KeySet,
    user_claim: Vec<String>,
    require_exp: bool,
    issuer: Vec<String>,
    audience: Vec<String>,
    leeway_millis: u64,
    /// The names of the claims that a session keeps.
    kept_claims: Vec<String>,
    /// Those of them that others see.
    public_claims: Vec<String>,
    clock: Clock,
    verified: Cache,
}

/// The part of a JOSE header that matters here; the rest is neither read nor believed.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood (RFC 7515 section 4.1.11). None is.
    crit: Option<serde::de::IgnoredAny>,
}

impl Authenticator {
    /// Reads the keys, from files where the configuration says so.
    ///
    /// # Errors
    /// A key that is missing, unreadable, or not what its algorithm needs.
    pub fn new(config: &Config, clock: Clock) -> Result<Authenticator, KeyError> {
        Ok(Self {
            keys: KeySet::load(&config.keys)?,
            user_claim: config.user_claim.clone(),
            require_exp: config.require_exp,
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            leeway_millis: u64::try_from(config.leeway.0.as_millis()).unwrap_or(u64::MAX),
            kept_claims: config.public_claims.iter().chain(&config.session_claims).cloned().collect(),
            public_claims: config.public_claims.clone(),
            clock,
            verified: Cache::default(),
        })
    }

    /// The names of the claims that others see: `auth.public_claims`.
    pub fn public_claims(&self) -> &[String] {
        &self.public_claims
    }

    /// Has sessions keep these claims, too.
    #[must_use]
    pub fn keeping(mut self, claims: impl IntoIterator<Item = String>) -> Self {
        self.kept_claims.extend(claims);
        self
    }

    /// The names of the claims that a session keeps.
    pub fn kept_claims(&self) -> &[String] {
        &self.kept_claims
    }

    /// How many keys there are.
    pub fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// Says who the bearer of `token` is. One that was verified lately costs a look-up by its hash, where there is a key
    /// whose signatures take longer than that: one of HMAC (RFC 2104) does not, and is not remembered.
    ///
    /// # Errors
    /// One of the codes of the protocol; [`AuthCode::TokenMissing`] for an empty token.
    pub fn verify(&self, token: &str) -> Result<Identity, AuthError> {
        if !self.keys.is_dear() || token.is_empty() || token.len() > limits::TOKEN_BYTES_MAX {
            return self.verify_anew(token);
        }
        let hash = Cache::hash(token);
        if let Some(identity) = self.verified.get(&hash, self.clock.unix_millis()) {
            return Ok(identity);
        }
        let identity = self.verify_anew(token)?;
        // What would weigh much is verified each time.
        if identity.claims.bytes() <= limits::REMEMBERED_CLAIMS_BYTES_MAX {
            self.verified.put(hash, identity.clone());
        }
        Ok(identity)
    }

    /// As [`Authenticator::verify`], whatever is known already.
    ///
    /// # Errors
    /// The same.
    pub fn verify_anew(&self, token: &str) -> Result<Identity, AuthError> {
        let claims = self.signed_claims(token)?;
        let user = self.user(&claims);
        let known = user.as_ref().ok().cloned();
        self.check_claims(&claims, user).map_err(|error| AuthError { user: known, ..error })
    }

    /// The claims, once the signature is known to hold.
    fn signed_claims(&self, token: &str) -> Result<Map<String, Value>, AuthError> {
        if token.is_empty() {
            return Err(AuthError::new(AuthCode::TokenMissing, "no token was given"));
        }
        if token.len() > limits::TOKEN_BYTES_MAX {
            let max = limits::TOKEN_BYTES_MAX;
            return Err(invalid(format!("the token is longer than {max} bytes")));
        }
        let (message, signature) = token.rsplit_once('.').ok_or_else(not_a_token)?;
        let (header, payload) = message.split_once('.').ok_or_else(not_a_token)?;
        let header: Header = decode(header).ok_or_else(not_a_token)?;
        if header.crit.is_some() {
            return Err(invalid("the token's header names critical extensions, and none is supported"));
        }
        self.keys.verify(&header.alg, header.kid.as_deref(), message.as_bytes(), signature).map_err(|refusal| {
            invalid(match refusal {
                Refusal::UnknownKey => "the token's key is not known here",
                Refusal::Algorithm => "the token's algorithm is not that of its key",
                Refusal::Signature => "the token's signature does not match",
            })
        })?;
        decode(payload).ok_or_else(|| invalid("the token's claims are not a JSON object"))
    }

    fn check_claims(
        &self,
        claims: &Map<String, Value>,
        user: Result<UserId, AuthError>,
    ) -> Result<Identity, AuthError> {
        let now = self.clock.unix_millis().0;
        let expires_at = numeric_date(claims, "exp")?;
        if expires_at.is_none() && self.require_exp {
            return Err(invalid("the token has no `exp` claim, and one is required"));
        }
        let valid_until = expires_at.map(|exp| exp.saturating_add(self.leeway_millis));
        if valid_until.is_some_and(|end| end <= now) {
            return Err(AuthError::new(AuthCode::TokenExpired, "the token has expired"));
        }
        if numeric_date(claims, "nbf")?.is_some_and(|start| start > now.saturating_add(self.leeway_millis)) {
            return Err(invalid("the token is not valid yet (`nbf`)"));
        }
        if !self.issuer.is_empty() && !claims.get("iss").is_some_and(|iss| names_one_of(iss, &self.issuer)) {
            return Err(AuthError::new(AuthCode::IssuerMismatch, "the token's issuer is not accepted here"));
        }
        if !self.audience.is_empty() && !claims.get("aud").is_some_and(|aud| self.is_audience(aud)) {
            return Err(AuthError::new(AuthCode::AudienceMismatch, "the token is meant for another audience"));
        }
        let kept = Claims::of(claims, &self.kept_claims);
        if kept.bytes() > limits::KEPT_CLAIMS_BYTES_MAX {
            let max = limits::KEPT_CLAIMS_BYTES_MAX;
            return Err(invalid(format!(
                "those of the token's claims that a session keeps have more than {max} bytes"
            )));
        }
        Ok(Identity {
            user: user?,
            device: device(claims)?,
            expires_at: expires_at.map(UnixMillis),
            valid_until: valid_until.map(UnixMillis),
            claims: kept,
            topics: topics(claims)?,
        })
    }

    /// RFC 7519 section 4.1.3: a string, or an array of them of which one is enough.
    fn is_audience(&self, aud: &Value) -> bool {
        match aud {
            Value::Array(many) => many.iter().any(|one| names_one_of(one, &self.audience)),
            one => names_one_of(one, &self.audience),
        }
    }

    fn user(&self, claims: &Map<String, Value>) -> Result<UserId, AuthError> {
        let there =
            self.user_claim.iter().find_map(|name| Some((name, claims.get(name)?)).filter(|(_, v)| !v.is_null()));
        let Some((name, value)) = there else {
            let names = self.user_claim.join("`, `");
            return Err(AuthError::new(
                AuthCode::UserMissing,
                format!("the token names no user: it has none of `{names}`"),
            ));
        };
        let parsed = match value {
            Value::String(text) => UserId::parse(text),
            Value::Number(number) if number.is_u64() || number.is_i64() => UserId::parse(&number.to_string()),
            _ => return Err(invalid(format!("the token's claim `{name}` must be a string or an integer"))),
        };
        parsed.map_err(|rule| invalid(format!("the token's claim `{name}` is not a user id: {rule}")))
    }
}

fn device(claims: &Map<String, Value>) -> Result<Option<Device>, AuthError> {
    match claims.get("device") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Device::parse(text)
            .map(Some)
            .map_err(|rule| invalid(format!("the token's claim `device` is not a device: {rule}"))),
        Some(_) => Err(invalid("the token's claim `device` must be a string")),
    }
}

/// A list of names, or one.
fn topics(claims: &Map<String, Value>) -> Result<Option<Arc<[Topic]>>, AuthError> {
    let all = match claims.get("topics") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(many)) => many.as_slice(),
        Some(one) => std::slice::from_ref(one),
    };
    let topic = |value: &Value| {
        let text = value.as_str().ok_or_else(|| invalid("the token's claim `topics` must be a list of strings"))?;
        Topic::parse(text).map_err(|rule| invalid(format!("the token's claim `topics` holds what is none: {rule}")))
    };
    all.iter().map(topic).collect::<Result<Arc<[Topic]>, _>>().map(|topics| Some(topics).filter(|all| !all.is_empty()))
}

/// A NumericDate (RFC 7519 section 2), in milliseconds: seconds, possibly with a fraction. What lies before 1970 is
/// taken as 1970, what lies beyond the end of time as that.
fn numeric_date(claims: &Map<String, Value>, name: &str) -> Result<Option<u64>, AuthError> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let millis = match value {
        Value::Number(number) => match (number.as_u64(), number.as_f64()) {
            (Some(seconds), _) => Some(seconds.saturating_mul(1000)),
            // The cast saturates at both ends.
            (None, Some(seconds)) => Some((seconds * 1000.0) as u64),
            (None, None) => None,
        },
        _ => None,
    };
    millis.map(Some).ok_or_else(|| invalid(format!("the token's claim `{name}` must be a number of seconds")))
}

fn names_one_of(value: &Value, accepted: &[String]) -> bool {
    value.as_str().is_some_and(|text| accepted.iter().any(|one| one == text))
}

fn decode<T: serde::de::DeserializeOwned>(part: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

fn not_a_token() -> AuthError {
    invalid("this is not a signed JSON Web Token")
}

fn invalid(message: impl Into<String>) -> AuthError {
    AuthError::new(AuthCode::TokenInvalid, message)
}
