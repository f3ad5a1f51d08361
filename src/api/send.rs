//! `SendToUser` and `Broadcast`: what is checked, and what the answers say.

use std::time::Duration;

use super::{
    Api, Caller,
    convert::{Checks, span},
    error::ApiError,
    proto,
    scope::Scope,
};
use crate::{
    clock::Instant,
    hub::{Hub, Outcome, SendError, SendOptions, Sent, Wait},
    limits,
    types::{Notification, NotificationId, SessionId, UserId},
};

/// A wait for confirmation ends so long before the call's deadline, at most, so that its answer is still an answer.
const WAIT_MARGIN: Duration = Duration::from_millis(100);

/// One send, checked.
pub(super) struct ToSend {
    pub(super) user: UserId,
    pub(super) notification: Notification,
    pub(super) options: SendOptions,
}

/// Checks a request to send; `deadline` is the call's.
pub(super) fn to_send(
    hub: &Hub,
    request: proto::SendToUserRequest,
    deadline: Option<Instant>,
) -> Result<ToSend, ApiError> {
    let mut checks = Checks::default();
    let user = checks.field("user_id", UserId::parse(&request.user_id));
    let wait = checks.wait(request.wait, request.wait_timeout, hub.clock().now(), deadline);
    let own_id = is_own(&request.notification);
    let notification = checks.notification(request.notification, hub.quotas(), hub.clock().unix_millis(), true);
    let (user, wait, notification) = checks.finish((user, wait, notification))?;
    Ok(ToSend { user, notification, options: SendOptions { wait, own_id } })
}

/// Whether a notification's id is the caller's.
fn is_own(notification: &Option<proto::Notification>) -> bool {
    notification.as_ref().is_some_and(|notification| !notification.id.is_empty())
}

/// The answer to a send.
pub(super) fn answer(id: &NotificationId, sent: Sent) -> proto::SendToUserResponse {
    proto::SendToUserResponse {
        id: id.as_str().to_owned(),
        offset: sent.offset.map_or(0, |offset| offset.get()),
        outcome: outcome(sent.outcome).into(),
        sessions: sent.sessions,
        duplicate: sent.duplicate,
    }
}

/// An outcome as the proto has it.
pub(super) fn outcome(outcome: Outcome) -> proto::Outcome {
    match outcome {
        Outcome::Confirmed => proto::Outcome::Confirmed,
        Outcome::Stored => proto::Outcome::Stored,
        Outcome::Accepted => proto::Outcome::Accepted,
        Outcome::Dropped => proto::Outcome::Dropped,
        Outcome::Superseded => proto::Outcome::Superseded,
        Outcome::Expired => proto::Outcome::Expired,
        Outcome::Purged => proto::Outcome::Purged,
    }
}

impl Api {
    /// `SendToUser`. `deadline`: when the call has to be answered.
    pub async fn send_to_user(
        &self,
        caller: &Caller,
        request: proto::SendToUserRequest,
        deadline: Option<Instant>,
    ) -> Result<proto::SendToUserResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Send)?;
        let ToSend { user, notification, options } = to_send(hub, request, deadline)?;
        let id = notification.id.clone();
        Ok(answer(&id, hub.send(&user, notification, options).await?))
    }

    /// `Broadcast`.
    pub async fn broadcast(
        &self,
        caller: &Caller,
        request: proto::BroadcastRequest,
    ) -> Result<proto::BroadcastResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Send)?;
        let durable = request.durable;
        let mut checks = Checks::default();
        let own_id = is_own(&request.notification);
        let notification = checks.notification(request.notification, hub.quotas(), hub.clock().unix_millis(), durable);
        let filter = request.filter.unwrap_or_default();
        let not_for = checks.excluded_users(&filter.exclude_user_ids);
        let topic = if durable { Some(None) } else { checks.topic(&filter.topic) };
        let filter = match durable {
            true => checks.no_filter(&filter),
            false => checks.filter(filter, hub.authenticator().kept_claims()),
        };
        let never = durable && notification.as_ref().is_some_and(Notification::is_now_or_never);
        checks.check("notification.ttl", !never, || "must not be zero for a durable broadcast".to_owned());
        let (notification, not_for, topic, filter) = checks.finish((notification, not_for, topic, filter))?;
        let notification = Notification { not_for, ..notification };
        let id = notification.id.clone();
        let sent = match topic {
            _ if durable => hub.broadcast_durably(notification, own_id).await?,
            Some(topic) => hub.broadcast_in(&topic, filter, notification).await?,
            None => hub.broadcast_to(filter, notification).await?,
        };
        Ok(proto::BroadcastResponse {
            id: id.as_str().to_owned(),
            offset: sent.offset.map_or(0, |offset| offset.get()),
            outcome: outcome(sent.outcome).into(),
            sessions: sent.sessions,
            duplicate: sent.duplicate,
        })
    }
}

impl Api {
    /// `SendToSession`.
    pub fn send_to_session(
        &self,
        caller: &Caller,
        request: proto::SendToSessionRequest,
    ) -> Result<proto::SendToSessionResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Send)?;
        let mut checks = Checks::default();
        let session = checks.field("session_id", SessionId::parse(&request.session_id));
        let notification = checks.notification(request.notification, hub.quotas(), hub.clock().unix_millis(), false);
        let max = limits::CLIENT_ID_BYTES_MAX;
        checks.check("reply_to", request.reply_to.len() <= max, || format!("must have at most {max} bytes"));
        let (session, notification) = checks.finish((session, notification))?;
        let id = notification.id.as_str().to_owned();
        let reply_to = Some(request.reply_to.as_str()).filter(|id| !id.is_empty());
        let sent = hub.send_to_session(session, notification, reply_to)?;
        Ok(proto::SendToSessionResponse { id, outcome: outcome(sent.outcome).into() })
    }
}

impl From<SendError> for ApiError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::TooLarge { .. } => ApiError::invalid("notification", &error.to_string()),
            SendError::MailboxFull { .. } => ApiError::Quota { reason: "MAILBOX_FULL", message: error.to_string() },
            SendError::BroadcastsFull { .. } => {
                ApiError::Quota { reason: "BROADCASTS_FULL", message: error.to_string() }
            }
            SendError::IdTaken => ApiError::AlreadyExists { reason: "ID_TAKEN", message: error.to_string() },
            SendError::StoreFull => ApiError::Quota { reason: "STORE_FULL", message: error.to_string() },
            SendError::SessionGone => ApiError::NotFound { reason: "SESSION_UNKNOWN", message: error.to_string() },
            SendError::Draining => ApiError::Unavailable { reason: "DRAINING", message: error.to_string() },
            SendError::Store(_) => ApiError::Unavailable { reason: "STORE_FAILED", message: error.to_string() },
            SendError::Unknown(_) => {
                ApiError::Unavailable { reason: "MAY_HAVE_BEEN_DELIVERED", message: error.to_string() }
            }
        }
    }
}

impl Checks {
    fn wait(
        &mut self,
        wait: i32,
        timeout: Option<prost_types::Duration>,
        now: Instant,
        deadline: Option<Instant>,
    ) -> Option<Wait> {
        let timeout = match timeout {
            None => Some(limits::WAIT_TIMEOUT_DEFAULT),
            Some(timeout) => span(timeout).map(|timeout| timeout.min(limits::WAIT_TIMEOUT_MAX)),
        };
        self.check("wait_timeout", timeout.is_some(), || "must be 0 or more, and is taken as 5 min at most".to_owned());
        match proto::Wait::try_from(wait) {
            Ok(proto::Wait::Unspecified | proto::Wait::Stored) => Some(Wait::Stored),
            Ok(proto::Wait::Accepted) => Some(Wait::Accepted),
            Ok(proto::Wait::Confirmed) => timeout.map(|timeout| Wait::Confirmed(wait_until(now, timeout, deadline))),
            Err(_) => {
                let known = "WAIT_STORED (1), WAIT_ACCEPTED (2), WAIT_CONFIRMED (3)";
                self.violation("wait", format!("{wait} is not one of {known}"));
                None
            }
        }
    }
}

/// When a wait that begins now ends: in time for the answer to be given before the call's deadline.
fn wait_until(now: Instant, timeout: Duration, deadline: Option<Instant>) -> Instant {
    let until = now + timeout;
    let Some(deadline) = deadline else { return until };
    let margin = WAIT_MARGIN.min(deadline.saturating_duration_since(now) / 10);
    until.min(deadline - margin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_before_its_call_does() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        assert_eq!(wait_until(now, ms(5000), None), now + ms(5000));
        assert_eq!(wait_until(now, ms(5000), Some(now + ms(6000))), now + ms(5000));
        assert_eq!(wait_until(now, ms(5000), Some(now + ms(1000))), now + ms(900));
        assert_eq!(wait_until(now, ms(5000), Some(now + ms(100))), now + ms(90));
        assert_eq!(wait_until(now + ms(1), ms(5000), Some(now)), now, "it is over already");
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_is_bounded_and_has_a_default() {
        let now = Instant::now();
        let wait = |timeout| {
            let mut checks = Checks::default();
            let wait = checks.wait(proto::Wait::Confirmed.into(), timeout, now, None);
            checks.finish((wait,)).map(|(wait,)| wait)
        };
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        for (timeout, secs) in
            [(None, 10), (seconds(0), 0), (seconds(7), 7), (seconds(301), 300), (seconds(i64::MAX), 300)]
        {
            assert_eq!(wait(timeout).unwrap(), Wait::Confirmed(now + Duration::from_secs(secs)), "{timeout:?}");
        }
        assert!(matches!(wait(seconds(-1)), Err(ApiError::Invalid(_))));
    }
}
