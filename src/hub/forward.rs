//! What clients ask of services, and what services say to one session: requests go out as events, replies come back by
//! `SendToSession`. Each request that awaits a reply ends once: by a reply, by `timeout`, or with its session.

use std::sync::Arc;

use super::{
    Hub, Interest,
    handle::{Core, Handle},
    outbox::Entry,
    outgoing::Outgoing,
    send::{SendError, Sent},
};
use crate::{
    limits,
    metrics::Failure,
    protocol::{
        error_code::ErrorCode,
        server::{self, Draft},
    },
    session::Unanswered,
    types::{Forwarded, Notification, SessionId, TypeName},
};

impl Hub {
    /// A client's message of a type that the gateway does not answer itself: an event for the services that listen for
    /// it, where `clients.forward` lets it through.
    pub(super) fn forward(&self, handle: &Arc<Handle>, message: &Unanswered<'_>) {
        let Err((code, failure, text)) = self.try_forward(handle, message) else { return };
        self.metrics().failure(failure);
        handle.reply(server::error(code, &text, message.id.as_deref()));
    }

    fn try_forward(&self, handle: &Arc<Handle>, message: &Unanswered<'_>) -> Result<(), (ErrorCode, Failure, String)> {
        // The gateway's own types, which a notification may not have either, are never anybody else's.
        let allowed = self.clients().forwards(&message.type_name).then(|| TypeName::parse(&message.type_name));
        let Some(Ok(type_name)) = allowed else {
            return Err((ErrorCode::UnknownType, Failure::UnknownType, "nobody here answers this `type`".into()));
        };
        let nobody = || {
            let text = "no service listens for this `type`, or takes more of it now; try again later";
            Err((ErrorCode::NoService, Failure::NoService, text.to_owned()))
        };
        let events = &self.0.events;
        let wants = |interest: &Interest| interest.wants_message(&handle.user.id, &type_name);
        // Who only looks on is shown it all the same.
        let served = events.is_wanted(|interest| interest.serves && wants(interest));
        if !(served || events.is_wanted(wants)) {
            return nobody();
        }
        let (now, timeout) = (self.clock().now(), self.clients().reply_timeout.0);
        let deadline = now + timeout;
        // Without an id there is nothing that a reply could name.
        let id = message.id.as_deref().filter(|id| !id.is_empty());
        let claims = {
            let mut core = handle.core();
            // Before anybody is told of it, so that no reply comes too early.
            if let Some(id) = id
                && served
                && !core.session.open_request(id, deadline)
            {
                let text = format!("{} requests wait for a reply already", limits::OPEN_REQUESTS_MAX);
                return Err((ErrorCode::RateLimited, Failure::RateLimited, text));
            }
            core.claims()
        };
        let taken = events.offer(Forwarded {
            session: handle.id,
            user: handle.user.id.clone(),
            device: handle.device.clone(),
            type_name,
            id: id.map(Box::from),
            payload: message.data.to_payload(),
            claims,
            reply_by: id.filter(|_| served).map(|_| self.clock().unix_millis().saturating_add(timeout)),
        });
        let Some(id) = id.filter(|_| served) else { return if taken.is_some() { Ok(()) } else { nobody() } };
        let Some(open) = taken else {
            handle.core().session.withdraw_request(id);
            return nobody();
        };
        handle.core().session.hold_with_request(id, Box::new(open));
        self.0.wheel.schedule(handle, deadline, now);
        Ok(())
    }

    /// Nobody answered in time: the client is told, under the session's lock. Flush it afterwards.
    pub(super) fn push_timeout(&self, handle: &Handle, core: &mut Core, id: &str) {
        self.metrics().failure(Failure::ReplyTimeout);
        // What was never answered took at least so long.
        self.metrics().reply_latency.record(self.clients().reply_timeout.0, 1);
        let frame = server::error(ErrorCode::Timeout, "no service answered in time", Some(id));
        handle.append(core, Entry::message(frame));
    }

    /// Sends to one session, at once and never stored. With `reply_to` as a `reply` to the client's request with that
    /// id, whether that is still open or not.
    ///
    /// # Errors
    /// [`SendError::TooLarge`]; [`SendError::SessionGone`].
    pub fn send_to_session(
        &self,
        session: SessionId,
        mut notification: Notification,
        reply_to: Option<&str>,
    ) -> Result<Sent, SendError> {
        if notification.is_now_or_never() {
            // What a session's outbox took is written as soon as the socket takes it.
            notification.expires_at = None;
        }
        let draft = match reply_to {
            Some(id) => self.fitting(Draft::reply(&notification, id))?,
            None => self.draft(&notification, false)?,
        };
        let handle = self.session(session).ok_or(SendError::SessionGone)?;
        let outgoing = match reply_to {
            Some(id) => Outgoing::reply(draft, &notification, id),
            None => Outgoing::new(draft, &notification, None, false, true),
        };
        let (taken, deadline) = handle.answer(&outgoing, reply_to).ok_or(SendError::SessionGone)?;
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(self.clock().now());
            self.metrics().reply_latency.record(self.clients().reply_timeout.0.saturating_sub(left), 1);
        }
        Ok(self.sent_unstored(u32::from(taken)))
    }
}
