//! New tokens on sessions.

use std::sync::Arc;

use super::{Hub, attach::token_end, handle::Handle, talk::Errand};
use crate::{
    auth::{AuthCode, AuthError, Identity},
    limits,
    protocol::{close::CloseCode, server},
    types::{ClosedBy, EventBody, Secret},
};

impl Hub {
    /// A new token on a session: accepted where it names the same user, and the same device or none. One whose key nobody
    /// knows yet is looked at once more when the keys are there; others are not kept waiting for that.
    pub(super) fn reauthenticate(&self, handle: &Arc<Handle>, token: Secret, reply_to: Option<String>) {
        match self.authenticator().verify(token.expose()) {
            Err(error) if error.may_be_new => {
                let (hub, handle) = (self.clone(), Arc::clone(handle));
                self.0.life.spawn(async move {
                    let renewed = tokio::time::timeout(limits::JWKS_FETCH_TIMEOUT, hub.authenticator().renewed()).await;
                    let verified =
                        if renewed == Ok(true) { hub.authenticator().verify(token.expose()) } else { Err(error) };
                    hub.renew(&handle, verified, reply_to.as_deref());
                    handle.flush();
                });
            }
            verified => self.renew(handle, verified, reply_to.as_deref()),
        }
    }

    fn renew(&self, handle: &Arc<Handle>, verified: Result<Identity, AuthError>, reply_to: Option<&str>) {
        let (now, unix) = (self.clock().now(), self.clock().unix_millis());
        let verified = verified.and_then(|identity| {
            let same_device = identity.device().is_none_or(|device| *device == handle.device);
            if *identity.user() == handle.user.id && same_device {
                return Ok(identity);
            }
            let text = if self.is_guest(&handle.user.id) {
                "this session is a guest's; connect anew, with the token"
            } else {
                "the token names another user or device than this session's"
            };
            let error = AuthError::new(AuthCode::TokenInvalid, text);
            Err(AuthError { user: Some(handle.user.id.clone()), ..error })
        });
        let frame = match verified {
            Ok(identity) => {
                let waiting = {
                    let mut state = handle.user.state();
                    self.expire(&handle.user, &mut state);
                    self.waiting(&state, &handle.device, &handle.followed_logs())
                };
                let hello = {
                    let mut core = handle.core();
                    core.session.set_token_expiry(token_end(&identity, unix), now, unix);
                    core.session.set_token(identity.mark());
                    core.set_claims(identity.claims());
                    self.hear_by_token(handle, &core);
                    let topics = self.subscribe_by_token(handle, &mut core, identity.topics());
                    self.auth_success(handle, &core, waiting, &topics, reply_to)
                };
                // The new end may be nearer than the next look.
                self.schedule_look(handle);
                handle.reply(hello);
                for topic in identity.topics().iter().filter(|topic| self.is_durable(topic)) {
                    self.queue_errand(handle, Errand::JoinByToken(topic.clone()));
                }
                self.close_if_revoked(handle, &identity);
                return;
            }
            Err(error) => {
                self.metrics().auth_failed(error.code);
                self.0.events.emit(EventBody::AuthFailed {
                    code: error.code.as_str(),
                    message: error.message.as_str().into(),
                    remote: handle.peer.remote,
                    user: error.user.clone(),
                });
                server::auth_failure(error.code, &error.message, reply_to, unix)
            }
        };
        handle.reply(frame);
    }

    /// Closes a session whose token was revoked while it was taken.
    pub(super) fn close_if_revoked(&self, handle: &Handle, identity: &Identity) {
        if self.authenticator().is_revoked(identity) {
            handle.close(CloseCode::UNAUTHORIZED, AuthCode::TokenRevoked.as_str(), ClosedBy::Caller);
        }
    }
}
