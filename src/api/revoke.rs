//! `CloseUserSessions` and `RevokeTokens`: who is to go, and by which tokens nobody comes back.

use super::{
    Api, Caller,
    audit::{self, Subject, named},
    convert::Checks,
    error::ApiError,
    proto,
    scope::Scope,
};
use crate::{
    hub::{CloseFilter, RevokeError, Revoked},
    limits,
    protocol::close::CloseCode,
    types::{SessionId, TokenId, UnixMillis, UserId},
};

impl Api {
    /// `CloseUserSessions`.
    pub async fn close_user_sessions(
        &self,
        caller: &Caller,
        request: proto::CloseUserSessionsRequest,
    ) -> Result<proto::CloseUserSessionsResponse, ApiError> {
        let proto::CloseUserSessionsRequest { user_id, session_id, device, .. } = &request;
        let subject =
            Subject(&[("user", Some(user_id)), ("session", named(session_id)), ("device", device.as_deref())]);
        let action = if request.revoke_tokens { "close and revoke" } else { "close" };
        let line = audit::begin(action, caller, &subject);
        let outcome = self.close(caller, &request).await;
        line.note(&outcome, |answer| format!("{} closed", answer.closed));
        outcome
    }

    async fn close(
        &self,
        caller: &Caller,
        request: &proto::CloseUserSessionsRequest,
    ) -> Result<proto::CloseUserSessionsResponse, ApiError> {
        let mut hub = self.authorise(caller, Scope::Close)?;
        if request.revoke_tokens {
            hub = self.authorise(caller, Scope::Admin)?;
        }
        let mut checks = Checks::default();
        let user = checks.field("user_id", UserId::parse(&request.user_id));
        let session = checks.optional("session_id", &request.session_id, SessionId::parse);
        let device = checks.device(request.device.as_deref());
        let code = checks.close_code(request.code);
        checks.check("reason", request.reason.len() <= limits::CLOSE_REASON_BYTES_MAX, || {
            format!("must have at most {} bytes, this has {}", limits::CLOSE_REASON_BYTES_MAX, request.reason.len())
        });
        let (user, session, device, code) = checks.finish((user, session, device, code))?;
        let filter = CloseFilter { session, device };
        let closed = if request.revoke_tokens {
            hub.close_and_revoke(&user, &filter, code, &request.reason).await?
        } else {
            hub.close_sessions(&user, &filter, code, &request.reason)
        };
        Ok(proto::CloseUserSessionsResponse { closed })
    }

    /// `RevokeTokens`.
    pub async fn revoke_tokens(
        &self,
        caller: &Caller,
        request: proto::RevokeTokensRequest,
    ) -> Result<proto::RevokeTokensResponse, ApiError> {
        let subject = Subject(&[("jti", named(&request.jti)), ("user", named(&request.user_id))]);
        let line = audit::begin("revoke", caller, &subject);
        let outcome = self.revoke(caller, &request).await;
        line.note(&outcome, |answer| format!("{} closed", answer.closed));
        outcome
    }

    async fn revoke(
        &self,
        caller: &Caller,
        request: &proto::RevokeTokensRequest,
    ) -> Result<proto::RevokeTokensResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Admin)?;
        let now = hub.clock().unix_millis();
        let mut checks = Checks::default();
        let before = checks.moment("issued_before", request.issued_before);
        let expires_at = match request.expires_at {
            None => {
                let text = "is required: when the last of these tokens runs out by itself";
                checks.violation("expires_at", text.to_owned());
                None
            }
            some => checks.moment("expires_at", some).flatten(),
        };
        checks.check("expires_at", expires_at.is_none_or(|end| end > now), || {
            "must lie ahead: tokens that have run out need no revocation".to_owned()
        });
        let which = match (&*request.jti, &*request.user_id) {
            ("", "") => {
                checks.violation("jti", "or user_id is required: which tokens are meant".to_owned());
                None
            }
            (jti, "") => {
                let max = limits::TOKEN_BYTES_MAX;
                checks.check("jti", jti.len() <= max, || {
                    format!("must have at most {max} bytes, this has {}", jti.len())
                });
                checks.check("issued_before", request.issued_before.is_none(), || {
                    "goes with user_id; a jti is one token, whenever it was issued".to_owned()
                });
                Some(Revoked::Token(TokenId::of(jti)))
            }
            ("", user) => {
                let user = checks.field("user_id", UserId::parse(user));
                let before = before.map(|before| before.unwrap_or(UnixMillis(now.0.saturating_add(1))));
                user.zip(before).map(|(user, before)| Revoked::User(user, before))
            }
            _ => {
                checks
                    .violation("user_id", "and jti exclude each other: a jti is one token, whoever's it is".to_owned());
                None
            }
        };
        let (which, expires_at) = checks.finish((which, expires_at))?;
        let closed = hub.revoke(which, expires_at).await?;
        Ok(proto::RevokeTokensResponse { closed })
    }
}

impl Checks {
    fn close_code(&mut self, code: u32) -> Option<CloseCode> {
        let code = if code == 0 { CloseCode::NORMAL } else { CloseCode(u16::try_from(code).unwrap_or(u16::MAX)) };
        let allowed = code.is_allowed_for_callers();
        self.check("code", allowed, || "must be 1000, 1008, 3000 to 3999 or 4000 to 4099".to_owned());
        allowed.then_some(code)
    }
}

impl From<RevokeError> for ApiError {
    fn from(error: RevokeError) -> Self {
        let message = error.to_string();
        match error {
            RevokeError::Full { .. } => ApiError::Quota { reason: "REVOCATIONS_FULL", message },
            RevokeError::Store(_) => ApiError::Unavailable { reason: "STORE_FAILED", message },
        }
    }
}
