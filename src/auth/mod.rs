//! From a token to an identity: JSON Web Tokens (RFC 7519), signed (RFC 7515), never encrypted.
//!
//! The order of verdicts is fixed: shape, signature, time (`exp`, `nbf`), issuer, audience, user, device, topics, revocation.
//! Nothing a token says is believed before its signature holds, and no message repeats what a token says.
//!
//! `keys.rs` is what a key may do, `material.rs` what its bytes are, `keyring.rs` which there are and how they change, `jwk.rs`
//! a set of them as others publish it, `fetch.rs` how that comes here; `succession.rs` is what a reload puts in the place of
//! what there is; `cache.rs` are tokens that were found good, `revocation.rs` those that are void.

mod cache;
mod config;
mod fetch;
mod identity;
mod jwk;
mod keyring;
mod keys;
mod material;
mod revocation;
mod succession;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Map, Value};

pub use self::{
    config::{Algorithm, BadKey, Config, JwksConfig, KeyConfig},
    fetch::{Place as KeySetPlace, tls_trusting},
    identity::{AuthError, Identity},
    keys::KeyError,
    revocation::{Full as RevocationsFull, Revocations},
    succession::follow_keys,
};
pub use crate::protocol::auth_code::AuthCode;
use crate::{
    clock::Clock,
    limits,
    types::{Claims, Device, TokenId, TokenMark, Topic, UnixMillis, UserId},
};
use cache::Cache;
use keyring::Keyring;
use keys::{KeySet, Refusal};

/// What the names of guests begin with.
const GUEST: &str = "guest-";

/// Why no token can be verified: a source of keys that is none. One line, without a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// One of `[[auth.keys]]`.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// `[auth.jwks]`.
    #[error("auth.jwks.{field}: {problem}")]
    Jwks {
        /// The key of the section.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// Verifies tokens, and knows those that it found good until they run out, are revoked, or the keys change. Its rules never
/// change: a changed configuration is a new one, which succeeds it.
pub struct Authenticator {
    keys: Arc<Keyring>,
    revocations: Arc<Revocations>,
    max_lifetime_millis: u64,
    anonymous: bool,
    /// Whether the names of guests are guests': once some may have been let in, they stay so.
    knows_guests: bool,
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
    pub fn new(config: &Config, clock: Clock) -> Result<Authenticator, LoadError> {
        Ok(Self::with(config, Keyring::new(config)?, clock))
    }

    fn with(config: &Config, keys: Keyring, clock: Clock) -> Authenticator {
        let millis = |span: crate::types::Span| u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX);
        Self {
            keys: Arc::new(keys),
            revocations: Arc::default(),
            max_lifetime_millis: millis(config.max_lifetime),
            anonymous: config.anonymous,
            knows_guests: config.anonymous,
            user_claim: config.user_claim.clone(),
            require_exp: config.require_exp,
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            leeway_millis: millis(config.leeway),
            kept_claims: config.public_claims.iter().chain(&config.session_claims).cloned().collect(),
            public_claims: config.public_claims.clone(),
            clock,
        }
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

    /// How many keys there are now.
    pub fn key_count(&self) -> usize {
        self.keys.current().len()
    }

    /// Why tokens are refused that should be good, where that is so: a key set that was never fetched.
    pub fn trouble(&self) -> Option<String> {
        self.keys.trouble()
    }

    /// Waits for keys that a token asked for and nobody knew ([`AuthError::may_be_new`]): for the fetch that is under way, or
    /// for one that this begins, which is done so often and no more. True: it is worth a second look.
    pub async fn renewed(&self) -> bool {
        self.keys.renewed().await
    }

    /// The tokens that are void.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// How far clocks may be apart, in milliseconds: a token is accepted for so long behind its `exp`.
    pub fn leeway_millis(&self) -> u64 {
        self.leeway_millis
    }

    /// Whether the token that somebody was let in by was revoked since.
    pub fn is_revoked(&self, identity: &Identity) -> bool {
        !identity.guest && self.revocations.covers(&identity.mark, &identity.user, self.clock.unix_millis())
    }

    /// Somebody who brought no token, where that is allowed (`auth.anonymous`): a new name, which no token may have, and no
    /// claims.
    pub fn guest(&self) -> Option<Identity> {
        let name = format!("{GUEST}{}", uuid::Uuid::new_v4());
        let user = UserId::parse(&name).ok().filter(|_| self.anonymous)?;
        Some(Identity {
            user,
            device: None,
            expires_at: None,
            valid_until: None,
            claims: Claims::default(),
            topics: None,
            mark: TokenMark::NONE,
            guest: true,
        })
    }

    /// Whether guests are let in.
    pub fn lets_guests_in(&self) -> bool {
        self.anonymous
    }

    /// Whether that is the name of a guest.
    pub fn is_guest(&self, user: &UserId) -> bool {
        self.knows_guests && user.as_str().starts_with(GUEST)
    }

    /// Says who the bearer of `token` is. One that was verified lately costs a look-up by its hash, where there is a key
    /// whose signatures take longer than that: one of HMAC (RFC 2104) does not, and is not remembered.
    ///
    /// # Errors
    /// One of the codes of the protocol; [`AuthCode::TokenMissing`] for an empty token.
    pub fn verify(&self, token: &str) -> Result<Identity, AuthError> {
        let keys = self.keys.current();
        if !keys.is_dear() || token.is_empty() || token.len() > limits::TOKEN_BYTES_MAX {
            return self.settle(self.verify_by(&keys, token)?);
        }
        let hash = Cache::hash(token);
        if let Some(identity) = keys.verified.get(&hash, self.clock.unix_millis()) {
            return self.settle(identity);
        }
        let identity = self.verify_by(&keys, token)?;
        // What would weigh much is verified each time.
        if identity.claims.bytes() <= limits::REMEMBERED_CLAIMS_BYTES_MAX {
            keys.verified.put(hash, identity.clone());
        }
        self.settle(identity)
    }

    /// What is looked at each time, however well a token is known: that it is not revoked, and how long it is good from now.
    fn settle(&self, mut identity: Identity) -> Result<Identity, AuthError> {
        if self.is_revoked(&identity) {
            let error = AuthError::new(AuthCode::TokenRevoked, "the token was revoked");
            return Err(AuthError { user: Some(identity.user), ..error });
        }
        if self.max_lifetime_millis > 0 {
            let most = UnixMillis(self.clock.unix_millis().0.saturating_add(self.max_lifetime_millis));
            identity.expires_at = Some(identity.expires_at.map_or(most, |end| end.min(most)));
        }
        Ok(identity)
    }

    /// As [`Authenticator::verify`], whatever is known already.
    ///
    /// # Errors
    /// The same.
    pub fn verify_anew(&self, token: &str) -> Result<Identity, AuthError> {
        self.settle(self.verify_by(&self.keys.current(), token)?)
    }

    fn verify_by(&self, keys: &KeySet, token: &str) -> Result<Identity, AuthError> {
        let claims = self.signed_claims(keys, token)?;
        let user = self.user(&claims);
        let known = user.as_ref().ok().cloned();
        self.check_claims(&claims, user).map_err(|error| AuthError { user: known, ..error })
    }

    /// The claims, once the signature is known to hold.
    fn signed_claims(&self, keys: &KeySet, token: &str) -> Result<Map<String, Value>, AuthError> {
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
        let kid = header.kid.as_deref();
        keys.verify(&header.alg, kid, message.as_bytes(), signature).map_err(|refusal| {
            let error = invalid(match refusal {
                Refusal::UnknownKey => "the token's key is not known here",
                Refusal::Algorithm => "the token's algorithm is not that of its key",
                Refusal::Signature => "the token's signature does not match",
            });
            AuthError { may_be_new: kid.is_some_and(|kid| !keys.knows(kid)), ..error }
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
        let user = user?;
        if self.is_guest(&user) {
            return Err(invalid("the token names its user as guests are named, who have no token"));
        }
        Ok(Identity {
            mark: mark(claims, expires_at)?,
            guest: false,
            user,
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

/// What is to be known of a token for the day that it is revoked.
fn mark(claims: &Map<String, Value>, expires_at: Option<u64>) -> Result<TokenMark, AuthError> {
    let id = match claims.get("jti") {
        None | Some(Value::Null) => None,
        // One that all tokens of an issuer may share names none of them.
        Some(Value::String(jti)) if jti.is_empty() => None,
        Some(Value::String(jti)) => Some(TokenId::of(jti)),
        Some(Value::Number(jti)) => Some(TokenId::of(&jti.to_string())),
        Some(_) => return Err(invalid("the token's claim `jti` must be a string")),
    };
    // One that cannot be read says nothing, and what says nothing is older than any moment.
    let issued_at = numeric_date(claims, "iat").ok().flatten().unwrap_or(0) / 1000;
    Ok(TokenMark {
        id,
        issued_at_secs: u32::try_from(issued_at).unwrap_or(u32::MAX),
        expires_at_secs: expires_at.map_or(u32::MAX, |end| u32::try_from(end.div_ceil(1000)).unwrap_or(u32::MAX)),
    })
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
