//! What is to be done about what a client sent, or because time has passed. The hub does it.

use std::borrow::Cow;

use bytes::Bytes;

use super::{Confirmed, PingPayload};
use crate::{
    limits::Limit,
    metrics::{Failure, Metrics},
    protocol::{
        auth_code::AuthCode,
        client::{AuthRequest, Data, Membership, Recipient, Verb},
        close::CloseCode,
    },
    types::{Payload, Topic, TypeName, UnixMillis},
};

/// A message of a type that the gateway does not answer itself.
#[derive(Debug)]
pub struct Unanswered<'a> {
    /// Its `type`.
    pub type_name: Cow<'a, str>,
    /// What it carries.
    pub data: Data<'a>,
    /// The client's own id.
    pub id: Option<Cow<'a, str>>,
}

/// What is to be done about a client's message.
#[derive(Debug)]
pub enum Reaction<'a> {
    /// Nothing.
    None,
    /// Send this; count that.
    Reply(Bytes, Option<Counts>),
    /// These were confirmed.
    Confirmed(Vec<Confirmed>),
    /// Verify this token, then call [`Session::set_token_expiry`](super::Session::set_token_expiry) where it is good. The text is the client's own id.
    Reauthenticate(AuthRequest, Option<String>),
    /// It is for the services, if it is for anybody.
    Forward(Unanswered<'a>),
    /// Subscribe to that, if it is allowed. The text is the client's own id, here and below.
    Subscribe(Membership, Option<String>),
    /// Leave that.
    Unsubscribe(Membership, Option<String>),
    /// Say who is in that, if it is allowed; then call [`Session::listed`](super::Session::listed).
    ListUsers(Topic, Option<String>),
    /// Pass it on, if it is allowed.
    Say(Box<Saying>),
    /// Close the session.
    Close(Verdict),
}

/// What a client says to others.
#[derive(Clone, Debug)]
pub struct Saying {
    /// How.
    pub verb: Verb,
    /// To whom.
    pub to: Recipient,
    /// What the client calls it.
    pub kind: Option<TypeName>,
    /// What it is.
    pub payload: Payload,
    /// The client's own id.
    pub reply_to: Option<String>,
}

/// Why the gateway closes a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What the client is told.
    pub code: CloseCode,
    /// In words.
    pub reason: &'static str,
    /// What is counted.
    pub counts: Option<Counts>,
}

/// What something is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// As a failure.
    Failure(Failure),
    /// As a limit that was reached, and the failure that this is.
    Limit(Limit),
    /// As a client that is not let in any longer.
    Auth(AuthCode),
}

impl Counts {
    /// Counts it.
    pub fn count(self, metrics: &Metrics) {
        match self {
            Counts::Failure(failure) => metrics.failure(failure),
            Counts::Limit(limit) => metrics.hit(limit),
            Counts::Auth(code) => metrics.auth_failed(code),
        }
    }
}

impl From<Failure> for Counts {
    fn from(failure: Failure) -> Self {
        Counts::Failure(failure)
    }
}

impl From<AuthCode> for Counts {
    fn from(code: AuthCode) -> Self {
        Counts::Auth(code)
    }
}

impl From<Limit> for Counts {
    fn from(limit: Limit) -> Self {
        Counts::Limit(limit)
    }
}

/// What is to be done because time has passed.
#[derive(Debug, PartialEq, Eq)]
pub enum Tick {
    /// Nothing.
    Idle,
    /// Send this ping.
    Ping(PingPayload),
    /// Tell the client that its token runs out then.
    TokenExpiring(UnixMillis),
    /// Tell the client that nobody answered its request with this id.
    TimedOut(Box<str>),
    /// Close the session.
    Close(Verdict),
}
