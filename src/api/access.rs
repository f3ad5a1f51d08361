//! Who calls, whatever carries the call: the Unix socket and `grpc.insecure` open everything, elsewhere a bearer token or a
//! certificate names the caller. And how long he waits: both are read from a request's headers.

use std::{fmt, future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use arc_swap::ArcSwap;
use http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{ApiError, Caller, scope::ScopeSet};
use crate::clock::Instant;

/// Part of a call's time that is kept for the answer to travel.
const MARGIN_MAX: Duration = Duration::from_millis(20);
/// What a caller without a token is told.
const TOKEN_MISSING: &str = "a valid token is needed: authorization: Bearer <token>";

/// Who may call on one listener.
#[derive(Debug)]
pub enum Access {
    /// Everyone, everything: reaching the listener is the proof.
    Open(Caller),
    /// Bearers of these tokens.
    Tokens(Arc<Tokens>),
}

/// The tokens that there are now.
#[derive(Debug, Default)]
pub struct Tokens(ArcSwap<Vec<Token>>);

impl Tokens {
    /// These.
    pub fn new(tokens: Vec<Token>) -> Arc<Self> {
        Arc::new(Self(ArcSwap::from_pointee(tokens)))
    }

    /// These from now on; whether they are others than before. The standing of those that are not there any more, or open
    /// less, ends.
    pub fn replace(&self, mut tokens: Vec<Token>) -> bool {
        let before = self.0.load_full();
        for token in &mut tokens {
            let same = before.iter().find(|old| old.sha256 == token.sha256 && old.caller.goes_on_as(&token.caller));
            if let Some(old) = same {
                token.caller.standing = old.caller.standing.clone();
            }
        }
        let print = |token: &Token| (token.sha256, Arc::clone(&token.caller.name), token.caller.scopes);
        let changed = !before.iter().map(print).eq(tokens.iter().map(print));
        let goes_on = |old: &Token| tokens.iter().any(|token| token.caller.standing.is(&old.caller.standing));
        let over: Vec<_> = before.iter().filter(|old| !goes_on(old)).collect();
        self.0.store(Arc::new(tokens.clone()));
        // Not before, so that whoever comes back is refused.
        over.into_iter().for_each(|old| old.caller.standing.end());
        changed
    }
}

/// A token, by its hash. It prints as its bearer: of a token that somebody thought up the hash gives away too much.
#[derive(Clone)]
pub struct Token {
    sha256: [u8; 32],
    caller: Caller,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("caller", &self.caller).finish_non_exhaustive()
    }
}

impl Token {
    /// The token with this SHA-256, its bearer's name, and what he may do.
    pub fn new(sha256: [u8; 32], name: &str, scopes: ScopeSet) -> Self {
        Self { sha256, caller: Caller::new(name, scopes) }
    }
}

impl Access {
    /// Everyone may do everything; `name` is who they are in log lines.
    pub fn open(name: &str) -> Self {
        Self::Open(Caller::new(name, ScopeSet::ALL))
    }

    /// Notes who calls, and until when, for the handlers. When the call has to be answered. `certified` is who the
    /// connection's certificate says that it is, which was verified; a token goes before it.
    pub fn note<B>(&self, request: &mut http::Request<B>, certified: Option<&Caller>) -> Option<Instant> {
        let caller = self.identify(request.headers(), certified);
        // A deadline that is none is none to gRPC's own servers either.
        let deadline = deadline(request.headers()).unwrap_or_default();
        request.extensions_mut().insert(Call { caller, deadline });
        deadline
    }

    /// Who calls; nobody where a token is needed and this is none.
    pub fn caller(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        self.identify(headers, None).ok_or(ApiError::Unauthenticated(TOKEN_MISSING))
    }

    fn identify(&self, headers: &HeaderMap, certified: Option<&Caller>) -> Option<Caller> {
        match self {
            Access::Open(caller) => Some(caller.clone()),
            Access::Tokens(tokens) => {
                let Some(value) = headers.get(header::AUTHORIZATION) else { return certified.cloned() };
                let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
                if !scheme.eq_ignore_ascii_case("bearer") {
                    return None;
                }
                let sha256: [u8; 32] = Sha256::digest(token.trim()).into();
                // Every token is compared, and each in constant time: how long it takes tells nothing.
                let mut found = None;
                for known in tokens.0.load().iter() {
                    if bool::from(known.sha256.ct_eq(&sha256)) {
                        found = Some(known.caller.clone());
                    }
                }
                found
            }
        }
    }
}

/// The header in which a caller says how long he waits.
const TIMEOUT: &str = "grpc-timeout";

/// When a call has to be answered: what its caller says in `grpc-timeout`, less a margin for the answer to travel. `None`: he
/// says nothing.
///
/// # Errors
/// INVALID_ARGUMENT where he says what is no time, or says it twice.
pub fn deadline(headers: &HeaderMap) -> Result<Option<Instant>, ApiError> {
    let mut said = headers.get_all(TIMEOUT).iter();
    let Some(timeout) = said.next() else { return Ok(None) };
    let timeout = timeout.to_str().ok().and_then(parse_timeout).filter(|_| said.next().is_none()).ok_or_else(|| {
        ApiError::invalid(
            TIMEOUT,
            "must be one to eight digits and a unit, one of H, M, S, m, u, n; such as `10S`, `500m`",
        )
    })?;
    let margin = MARGIN_MAX.min(timeout / 10);
    Ok(Instant::now().checked_add(timeout - margin))
}

/// Answers by what `work` says, or by DEADLINE_EXCEEDED just before the caller gives up.
pub async fn in_time<A>(
    deadline: Option<Instant>,
    work: impl Future<Output = Result<A, ApiError>>,
) -> Result<A, ApiError> {
    let mut work = pin!(work);
    // Most are done at once, and need no timer.
    match (poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await, deadline) {
        (Poll::Ready(answer), _) => answer,
        (Poll::Pending, None) => work.await,
        (Poll::Pending, Some(at)) => tokio::time::timeout_at(at, work).await.unwrap_or(Err(ApiError::DeadlineExceeded)),
    }
}

/// What is known of a call before its handler sees it.
#[derive(Clone, Debug, Default)]
struct Call {
    caller: Option<Caller>,
    deadline: Option<Instant>,
}

/// Whether a request that was noted comes from somebody who may call.
pub fn has_caller(extensions: &http::Extensions) -> bool {
    extensions.get::<Call>().is_some_and(|call| call.caller.is_some())
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

/// The caller, and when his call has to be answered, as [`Access::note`] noted them; to be asked for once.
pub fn call(extensions: &mut http::Extensions) -> Result<(Caller, Option<Instant>), ApiError> {
    let Call { caller, deadline } = extensions.remove::<Call>().unwrap_or_default();
    Ok((caller.ok_or(ApiError::Unauthenticated(TOKEN_MISSING))?, deadline))
}

#[cfg(test)]
mod tests {
    use super::{super::scope::Scope, *};

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
        let token = Token::new(Sha256::digest("right").into(), "orders", ScopeSet::ALL);
        let access = Access::Tokens(Tokens::new(vec![token]));
        let identify = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("authorization", value.parse().unwrap());
            access.identify(&headers, None).map(|caller| caller.name)
        };
        assert_eq!(identify("Bearer right").as_deref(), Some("orders"));
        assert_eq!(identify("bearer right").as_deref(), Some("orders"));
        for bad in ["Bearer wrong", "Bearer", "Bearer ", "right", "Basic right", "Bearer right right"] {
            assert_eq!(identify(bad), None, "{bad}");
        }
        assert!(access.identify(&HeaderMap::new(), None).is_none());
        let shown = format!("{access:?}");
        assert!(shown.contains("orders") && !shown.contains("sha256"), "{shown}");
    }

    #[test]
    fn the_standing_of_a_token_ends_when_it_is_gone_or_opens_less() {
        let token = |text: &str, name: &str, scopes: &[Scope]| {
            Token::new(Sha256::digest(text).into(), name, scopes.iter().copied().collect())
        };
        let tokens = Tokens::new(vec![token("a", "one", &[Scope::Send]), token("b", "two", &[Scope::Send])]);
        let standings = || tokens.0.load().iter().map(|token| token.caller.standing.clone()).collect::<Vec<_>>();
        let before = standings();
        let same = vec![token("b", "two", &[Scope::Send]), token("a", "one", &[Scope::Send])];
        assert!(tokens.replace(same.clone()), "the order is another");
        assert!(!tokens.replace(same));
        assert!(before.iter().all(|standing| !standing.has_ended()));
        tokens.replace(vec![token("a", "one", &[Scope::Send, Scope::Read]), token("c", "two", &[Scope::Send])]);
        assert!(!before[0].has_ended(), "it opens more");
        assert!(before[1].has_ended(), "another token in its place");
        tokens.replace(vec![token("a", "one", &[Scope::Read])]);
        assert!(before[0].has_ended(), "it opens less");
        assert!(standings().iter().all(|standing| !standing.has_ended()));
    }

    #[test]
    fn a_certificate_names_its_caller_where_no_token_does() {
        let named = |name: &str| Caller::new(name, ScopeSet::NONE);
        let token = Token::new(Sha256::digest("right").into(), "orders", ScopeSet::NONE);
        let access = Access::Tokens(Tokens::new(vec![token]));
        let identify = |headers: &HeaderMap| {
            access.identify(headers, Some(&named("certified"))).map(|caller| caller.name.to_string())
        };
        let bearer =
            |token: &str| HeaderMap::from_iter([(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap())]);
        assert_eq!(identify(&HeaderMap::new()).as_deref(), Some("certified"));
        assert_eq!(identify(&bearer("right")).as_deref(), Some("orders"));
        assert_eq!(identify(&bearer("wrong")), None, "who brings a token is who it says, or nobody");
    }
}
