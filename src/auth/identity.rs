//! What comes of a token: who its bearer is, or why it was not accepted.

use std::sync::Arc;

use crate::{
    protocol::auth_code::AuthCode,
    types::{Claims, Device, TokenMark, Topic, UnixMillis, UserId},
};

/// Who a connection belongs to. Only [`super::Authenticator`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub(super) user: UserId,
    pub(super) device: Option<Device>,
    pub(super) expires_at: Option<UnixMillis>,
    pub(super) valid_until: Option<UnixMillis>,
    pub(super) claims: Claims,
    pub(super) topics: Option<Arc<[Topic]>>,
    pub(super) mark: TokenMark,
    pub(super) guest: bool,
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

    /// Whether it is one who brought no token.
    pub fn is_guest(&self) -> bool {
        self.guest
    }

    /// What is to be known of the token for the day that it is revoked.
    pub fn mark(&self) -> TokenMark {
        self.mark
    }

    /// The token's `exp`, or `auth.max_lifetime` from now where that is earlier; `None` where there is neither.
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
    /// The token asks for a key that nobody knows here and that may be there once [`super::Authenticator::renewed`] is.
    pub may_be_new: bool,
}

impl AuthError {
    /// A refusal that has no user to name.
    pub fn new(code: AuthCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), user: None, may_be_new: false }
    }
}
