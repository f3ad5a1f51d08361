//! Why a client was not let in, in the words it hears: the `code` of `auth_failure`.

use std::fmt;

/// Why authentication failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthCode {
    /// No token came, or something else came first.
    TokenMissing,
    /// Not a token, or not one of ours.
    TokenInvalid,
    /// The token's time is over.
    TokenExpired,
    /// The application took the token back.
    TokenRevoked,
    /// The token is good and names no user.
    UserMissing,
    /// The token is meant for someone else.
    AudienceMismatch,
    /// The token was issued by someone else.
    IssuerMismatch,
    /// No token came in time.
    AuthTimeout,
    /// The user has as many devices as he may have, and each was seen lately.
    DeviceLimit,
}

impl AuthCode {
    /// Every code, in the order of the protocol's page.
    pub const ALL: [AuthCode; 9] = [
        AuthCode::TokenMissing,
        AuthCode::TokenInvalid,
        AuthCode::TokenExpired,
        AuthCode::TokenRevoked,
        AuthCode::UserMissing,
        AuthCode::AudienceMismatch,
        AuthCode::IssuerMismatch,
        AuthCode::AuthTimeout,
        AuthCode::DeviceLimit,
    ];

    /// The code as clients and events see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            AuthCode::TokenMissing => "token_missing",
            AuthCode::TokenInvalid => "token_invalid",
            AuthCode::TokenExpired => "token_expired",
            AuthCode::TokenRevoked => "token_revoked",
            AuthCode::UserMissing => "user_missing",
            AuthCode::AudienceMismatch => "audience_mismatch",
            AuthCode::IssuerMismatch => "issuer_mismatch",
            AuthCode::AuthTimeout => "auth_timeout",
            AuthCode::DeviceLimit => "device_limit",
        }
    }
}

impl fmt::Display for AuthCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
