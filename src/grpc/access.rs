//! Who calls: the Unix socket and `grpc.insecure` open everything, elsewhere a bearer token names the caller. And how
//! long he waits.

use std::time::Duration;

use http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tonic::{Request, Status, service::Interceptor};

use crate::{
    api::{Api, ApiError, Caller, scope::ScopeSet},
    clock::Instant,
};

/// Part of a call's time that is kept for the answer to travel.
const MARGIN_MAX: Duration = Duration::from_millis(20);

/// Who may call on one listener.
#[derive(Debug)]
pub enum Access {
    /// Everyone, everything: reaching the listener is the proof.
    Open(Caller),
    /// Bearers of these tokens.
    Tokens(Vec<Token>),
}

/// A token, by its hash.
#[derive(Clone, Debug)]
pub struct Token {
    sha256: [u8; 32],
    caller: Caller,
}

impl Token {
    /// The token with this SHA-256, its bearer's name, and what he may do.
    pub fn new(sha256: [u8; 32], name: &str, scopes: ScopeSet) -> Self {
        Self { sha256, caller: Caller { name: name.into(), scopes } }
    }
}

impl Access {
    /// Everyone may do everything; `name` is who they are in log lines.
    pub fn open(name: &str) -> Self {
        Self::Open(Caller { name: name.into(), scopes: ScopeSet::ALL })
    }

    /// Notes who calls, and until when, for the handlers. When the call has to be answered.
    pub fn note<B>(&self, request: &mut http::Request<B>) -> Option<Instant> {
        let caller = self.identify(request.headers());
        let timeout = request.headers().get("grpc-timeout").and_then(|value| parse_timeout(value.to_str().ok()?));
        let deadline = timeout.and_then(|timeout| {
            let margin = MARGIN_MAX.min(timeout / 10);
            Instant::now().checked_add(timeout - margin)
        });
        request.extensions_mut().insert(Call { caller, deadline });
        deadline
    }

    fn identify(&self, headers: &HeaderMap) -> Option<Caller> {
        match self {
            Access::Open(caller) => Some(caller.clone()),
            Access::Tokens(tokens) => {
                let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
                let (scheme, token) = value.split_once(' ')?;
                if !scheme.eq_ignore_ascii_case("bearer") {
                    return None;
                }
                let sha256: [u8; 32] = Sha256::digest(token.trim()).into();
                // Every token is compared, and each in constant time: how long it takes tells nothing.
                let mut found = None;
                for known in tokens {
                    if bool::from(known.sha256.ct_eq(&sha256)) {
                        found = Some(known.caller.clone());
                    }
                }
                found
            }
        }
    }
}

/// What is known of a call before its handler sees it.
#[derive(Clone, Debug, Default)]
struct Call {
    caller: Option<Caller>,
    deadline: Option<Instant>,
}

/// Reads `grpc-timeout` (gRPC over HTTP/2: 1 to 8 digits and a unit).
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // The parser of numbers would take a sign, too.
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// Lets callers with any valid token use reflection.
#[derive(Clone)]
pub struct ReflectionGuard(pub Api);

impl Interceptor for ReflectionGuard {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let allowed = call(request.extensions_mut()).and_then(|(caller, _)| self.0.authorise_reflection(&caller));
        allowed.map_err(|error| error.into_status(self.0.metrics()))?;
        Ok(request)
    }
}

/// The caller, and when his call has to be answered, as [`Access::note`] noted them; to be asked for once.
pub fn call(extensions: &mut http::Extensions) -> Result<(Caller, Option<Instant>), ApiError> {
    let missing = "a valid token is needed: authorization: Bearer <token>";
    let Call { caller, deadline } = extensions.remove::<Call>().unwrap_or_default();
    Ok((caller.ok_or(ApiError::Unauthenticated(missing))?, deadline))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_with_their_units() {
        assert_eq!(parse_timeout("10S"), Some(Duration::from_secs(10)));
        assert_eq!(parse_timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(parse_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "10", "10x", "123456789S", "-1S", "+5S", " 5S", "1é"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_bearer_token_names_its_caller_and_nothing_else_does() {
        let caller = Caller { name: "orders".into(), scopes: ScopeSet::ALL };
        let access = Access::Tokens(vec![Token { sha256: Sha256::digest("right").into(), caller }]);
        let identify = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("authorization", value.parse().unwrap());
            access.identify(&headers).map(|caller| caller.name)
        };
        assert_eq!(identify("Bearer right").as_deref(), Some("orders"));
        assert_eq!(identify("bearer right").as_deref(), Some("orders"));
        for bad in ["Bearer wrong", "Bearer", "Bearer ", "right", "Basic right", "Bearer right right"] {
            assert_eq!(identify(bad), None, "{bad}");
        }
        assert!(access.identify(&HeaderMap::new()).is_none());
    }
}
