//! Another token for a session that lives: asked for in time, sent, and judged by the gateway's answer.

use std::{pin::Pin, time::Duration};

use tokio::time::Instant;

use super::{
    retry::Backoff,
    tokens::{self, Tokens},
};
use crate::types::Secret;

/// The waits after a renewal that failed; the gateway takes ten `auth` messages a minute.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long the gateway has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A provider's answer on its way.
pub type Asking = Pin<Box<dyn Future<Output = Result<Secret, String>> + Send>>;

/// See the module.
#[derive(Debug)]
pub struct Renewal {
    /// When to ask the provider.
    at: Option<Instant>,
    /// Whether it is being asked.
    asking: bool,
    /// The message that is to be answered, its token, and until when.
    sent: Option<(String, Secret, Instant)>,
    refused: Option<Secret>,
    backoff: Backoff,
    /// The least time from one renewal to the next, longer each time while tokens last no longer than that.
    pace: Backoff,
    /// Not sooner than this, by that pace.
    not_before: Option<Instant>,
}

impl Default for Renewal {
    fn default() -> Self {
        let waits = Backoff::new(AGAIN.0, AGAIN.1);
        Self {
            at: None,
            asking: false,
            sent: None,
            refused: None,
            backoff: waits.clone(),
            pace: waits,
            not_before: None,
        }
    }
}

impl Renewal {
    /// The token in force is good, for so long; another one is wanted then. A gateway that says of every renewal that it
    /// has run out already is not asked again at once.
    pub fn accepted(&mut self, at: Option<Instant>, lasts: Option<Duration>, renewed: bool) {
        let (mut pace, mut not_before) = (self.pace.clone(), None);
        if renewed {
            let least = pace.ceiling();
            not_before = Some(Instant::now() + least);
            if lasts.is_some_and(|lasts| lasts < least) {
                pace.next(u32::MAX);
            } else {
                pace.reset();
            }
        }
        *self = Self { at: at.max(at.and(not_before)), pace, not_before, ..Self::default() };
    }

    /// The gateway says that the token runs out.
    pub fn expiring(&mut self) {
        if self.sent.is_none() {
            self.at = Some(Instant::now()).max(self.not_before);
        }
    }

    /// When something has to be done at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        if self.asking {
            return None;
        }
        self.sent.as_ref().map_or(self.at, |(_, _, until)| Some(*until))
    }

    /// The provider, where it is to be asked by now.
    pub fn ask(&mut self, tokens: &Tokens, now: Instant) -> Option<Asking> {
        if self.asking || self.sent.is_some() || self.at.is_none_or(|at| at > now) {
            return None;
        }
        self.at = None;
        let provider = tokens.provider()?;
        self.asking = true;
        Some(Box::pin(tokens::ask(provider)))
    }

    /// What the provider said: the token to send, or why there is none.
    pub fn provided(&mut self, provided: Result<Secret, String>, tokens: &Tokens, id: &str) -> Result<Secret, String> {
        self.asking = false;
        let fresh = provided.and_then(|token| {
            let known = tokens.is_current(&token) || self.refused.as_ref() == Some(&token);
            if known { Err("the provider gives the same token again".to_owned()) } else { Ok(token) }
        });
        match fresh {
            Ok(token) => {
                self.sent = Some((id.to_owned(), token.clone(), Instant::now() + ANSWER_TIMEOUT));
                Ok(token)
            }
            Err(problem) => {
                self.try_again();
                Err(problem)
            }
        }
    }

    /// The token that the gateway has just accepted, where one was sent.
    pub fn take_sent(&mut self) -> Option<Secret> {
        self.sent.take().map(|(_, token, _)| token)
    }

    /// Whether it is the answer to what was sent.
    pub fn is_answer(&self, reply_to: Option<&str>) -> bool {
        self.sent.as_ref().is_some_and(|(id, ..)| reply_to == Some(id))
    }

    /// The gateway refuses what was sent; `false` where nothing was.
    pub fn failed(&mut self) -> bool {
        self.refused = self.take_sent();
        self.try_again();
        self.refused.is_some()
    }

    /// Whether something was sent that is to be answered.
    pub fn waits(&self) -> bool {
        self.sent.is_some()
    }

    /// Whether what was sent has gone unanswered for too long; then it is given up.
    pub fn overdue(&mut self, now: Instant) -> bool {
        let overdue = self.sent.as_ref().is_some_and(|(_, _, until)| *until <= now);
        if overdue {
            self.sent = None;
            self.try_again();
        }
        overdue
    }

    fn try_again(&mut self) {
        self.at = Some(Instant::now() + self.backoff.ceiling());
        // The bound itself is the wait: one client need not be kept apart from others here.
        self.backoff.next(u32::MAX);
    }
}
