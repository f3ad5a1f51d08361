//! Where tokens come from, and when another one is needed: before the one in use runs out, and after it was refused.

use std::{fmt, future::Future, panic::AssertUnwindSafe, pin::Pin, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use http::HeaderValue;
use tokio::time::Instant;

use super::error::BoxError;
use crate::{limits, types::Secret};

/// How long before its end a token is renewed, where it is good for long enough.
const MARGIN: Duration = Duration::from_secs(60);
/// How long a provider may take.
pub const PROVIDER_TIMEOUT: Duration = Duration::from_secs(30);

/// A provider's future.
pub type Providing = Pin<Box<dyn Future<Output = Result<String, BoxError>> + Send>>;

/// Where tokens come from.
#[derive(Clone, Default)]
pub enum Source {
    /// Nowhere: the address or a header brings what the gateway wants.
    #[default]
    None,
    /// Always the same one.
    Fixed(Secret),
    /// The application.
    Provider(Arc<dyn Fn() -> Providing + Send + Sync>),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::None => "None",
            Source::Fixed(_) => "Fixed(***)",
            Source::Provider(_) => "Provider",
        })
    }
}

/// Why there is no token.
#[derive(Debug, PartialEq, Eq)]
pub enum NoToken {
    /// The provider failed; later it may not.
    Failed(String),
    /// There is none but the one that was refused.
    Refused,
}

/// A token as the handshake carries it.
pub fn bearer(token: &Secret) -> Result<HeaderValue, &'static str> {
    if token.is_empty() {
        return Err("is empty");
    }
    if token.expose().len() > limits::TOKEN_BYTES_MAX {
        return Err("has more than 7 KiB");
    }
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose()))
        .map_err(|_| "has characters that no token can have")?;
    value.set_sensitive(true);
    Ok(value)
}

/// Asks a provider once. Its panic, and taking too long, are failures like any other.
pub async fn ask(provider: Arc<dyn Fn() -> Providing + Send + Sync>) -> Result<Secret, String> {
    // Its error is put into words and dropped in here, where it may panic.
    let asked = AssertUnwindSafe(async move { provider().await.map_err(|error| error.to_string()) }).catch_unwind();
    let token = match tokio::time::timeout(PROVIDER_TIMEOUT, asked).await {
        Err(_) => return Err(format!("the provider took longer than {PROVIDER_TIMEOUT:?}")),
        Ok(Err(_)) => return Err("the provider panicked".to_owned()),
        Ok(Ok(Err(problem))) => return Err(problem),
        Ok(Ok(Ok(token))) => Secret::new(token.trim()),
    };
    bearer(&token).map_err(|problem| format!("the provider's token {problem}"))?;
    Ok(token)
}

/// The token in use over all connections.
#[derive(Debug)]
pub struct Tokens {
    source: Source,
    current: Option<Secret>,
    /// From when on another one is wanted.
    renew_at: Option<Instant>,
    refused: Option<Secret>,
}

impl Tokens {
    pub fn new(source: Source) -> Self {
        Self { source, current: None, renew_at: None, refused: None }
    }

    /// The provider, where there is one.
    pub fn provider(&self) -> Option<Arc<dyn Fn() -> Providing + Send + Sync>> {
        match &self.source {
            Source::Provider(provider) => Some(Arc::clone(provider)),
            Source::None | Source::Fixed(_) => None,
        }
    }

    /// The token for a connection that begins now.
    pub async fn for_connection(&mut self) -> Result<Option<Secret>, NoToken> {
        match &self.source {
            Source::None => Ok(None),
            Source::Fixed(token) if self.refused.as_ref() == Some(token) => Err(NoToken::Refused),
            Source::Fixed(token) => {
                self.current = Some(token.clone());
                Ok(self.current.clone())
            }
            Source::Provider(provider) => {
                let near_end = self.renew_at.is_some_and(|at| at <= Instant::now());
                if let Some(token) = self.current.as_ref().filter(|_| !near_end) {
                    return Ok(Some(token.clone()));
                }
                let token = ask(Arc::clone(provider)).await.map_err(NoToken::Failed)?;
                if self.refused.as_ref() == Some(&token) {
                    return Err(NoToken::Refused);
                }
                (self.current, self.renew_at) = (Some(token.clone()), None);
                Ok(Some(token))
            }
        }
    }

    /// Whether it is the one in use.
    pub fn is_current(&self, token: &Secret) -> bool {
        self.current.as_ref() == Some(token)
    }

    /// The gateway took a token that is good for so long from now on. Returns when another one is wanted.
    pub fn accepted(&mut self, token: Option<Secret>, lasts: Option<Duration>) -> Option<Instant> {
        if let Some(token) = token {
            self.current = Some(token);
        }
        self.refused = None;
        // A far end needs no timer: the session does not live that long, or is warned of it.
        const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
        self.renew_at = lasts.filter(|lasts| *lasts < FAR).map(|lasts| Instant::now() + lasts - margin(lasts));
        self.renew_at
    }

    /// The gateway refuses the one in use. Whether another one can be had.
    pub fn refuse(&mut self) -> bool {
        self.refused = self.current.take();
        self.renew_at = None;
        matches!(self.source, Source::Provider(_))
    }
}

/// How long before its end a token that lasts so long is renewed: a minute, and a quarter of one that is short.
pub fn margin(lasts: Duration) -> Duration {
    MARGIN.min(lasts / 4)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn counting(asked: &Arc<AtomicUsize>) -> Source {
        let asked = Arc::clone(asked);
        Source::Provider(Arc::new(move || {
            let n = asked.fetch_add(1, Ordering::SeqCst);
            Box::pin(async move { Ok(format!("token-{n}")) })
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_is_asked_first_near_the_end_and_after_a_refusal() {
        let asked = Arc::new(AtomicUsize::new(0));
        let mut tokens = Tokens::new(counting(&asked));
        let first = tokens.for_connection().await.unwrap();
        assert_eq!(first, Some(Secret::new("token-0")));
        assert_eq!(tokens.for_connection().await.unwrap(), first, "it was never refused");
        let renew = tokens.accepted(None, Some(Duration::from_secs(600))).unwrap();
        assert_eq!(renew - Instant::now(), Duration::from_secs(540));
        assert_eq!(tokens.for_connection().await.unwrap(), first);
        tokio::time::advance(Duration::from_secs(541)).await;
        assert_eq!(tokens.for_connection().await.unwrap(), Some(Secret::new("token-1")));
        assert!(tokens.refuse());
        assert_eq!(tokens.for_connection().await.unwrap(), Some(Secret::new("token-2")));
        assert_eq!(margin(Duration::from_secs(8)), Duration::from_secs(2));
    }

    #[tokio::test]
    async fn the_refused_token_again_is_the_end() {
        let mut fixed = Tokens::new(Source::Fixed(Secret::new("t")));
        assert!(fixed.for_connection().await.is_ok());
        assert!(!fixed.refuse());
        assert_eq!(fixed.for_connection().await, Err(NoToken::Refused));
        let mut same = Tokens::new(Source::Provider(Arc::new(|| Box::pin(async { Ok("t".to_owned()) }))));
        assert!(same.for_connection().await.is_ok());
        assert!(same.refuse());
        assert_eq!(same.for_connection().await, Err(NoToken::Refused));
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_a_provider_does_wrong_is_a_failure_without_the_token() {
        let provide = |future: fn() -> Providing| Tokens::new(Source::Provider(Arc::new(future)));
        let fails = |text: &str| Err(NoToken::Failed(text.to_owned()));
        let mut error = provide(|| Box::pin(async { Err("no login".into()) }));
        assert_eq!(error.for_connection().await, fails("no login"));
        let mut panic = provide(|| panic!("at once"));
        assert_eq!(panic.for_connection().await, fails("the provider panicked"));
        let mut late = provide(|| Box::pin(async { panic!("late") }));
        assert_eq!(late.for_connection().await, fails("the provider panicked"));
        let mut never = provide(|| Box::pin(std::future::pending()));
        assert_eq!(never.for_connection().await, fails("the provider took longer than 30s"));
        let mut bad = provide(|| Box::pin(async { Ok("a\nb".to_owned()) }));
        assert_eq!(bad.for_connection().await, fails("the provider's token has characters that no token can have"));
        let mut empty = provide(|| Box::pin(async { Ok(String::new()) }));
        assert_eq!(empty.for_connection().await, fails("the provider's token is empty"));
        assert!(bearer(&Secret::new("x".repeat(8000))).is_err());
    }

    #[test]
    fn a_token_is_never_shown() {
        let tokens =
            Tokens { current: Some(Secret::new("s3cret")), ..Tokens::new(Source::Fixed(Secret::new("s3cret"))) };
        assert!(!format!("{tokens:?} {:?}", bearer(&Secret::new("s3cret"))).contains("s3cret"));
    }
}
