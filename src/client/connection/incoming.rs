//! What the gateway says: its own messages taken in, the rest handed on.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    super::{
        error::{AuthFailure, Error, RequestError},
        events::Event,
        message::{Message, Session},
        retry::ASKED_WAIT_MAX,
        shared::Delivery,
        wishes::Refused,
    },
    Connection, END_TIMEOUT, HEARTBEAT_BOUNDS, masked_text,
};
use crate::{protocol::ack_mode::AckMode, types::Secret};

impl Connection<'_> {
    /// Takes a message of the gateway's.
    pub(super) fn message(&mut self, message: Message) {
        let fields = message.fields();
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        match &*fields.type_name {
            "auth_success" => self.welcome(&message),
            "auth_failure" => {
                let failure = AuthFailure { code: text(&fields.code), message: text(&fields.message) };
                if self.session.is_none() {
                    self.refused = Some(failure);
                    // The close frame is behind it; who waits for one that does not come waits long enough.
                    self.until = self.until.min(Instant::now() + END_TIMEOUT);
                } else {
                    self.renewal.failed();
                    self.shared.error(Error::Renewal(failure.to_string()));
                }
            }
            // To who is not let in because of it, too.
            "draining" => {
                #[derive(serde::Deserialize)]
                #[serde(rename_all = "camelCase")]
                struct Draining {
                    #[serde(default)]
                    reconnect_after_ms: u64,
                }
                let draining = serde_json::from_str::<Draining>(message.envelope());
                // One that names no time leaves it to the back-off.
                let after = draining.map_or(Duration::ZERO, |one| Duration::from_millis(one.reconnect_after_ms));
                self.after = Some(after.min(ASKED_WAIT_MAX)).filter(|after| !after.is_zero());
            }
            _ if self.session.is_none() => {
                self.shared.error(Error::BadMessage("it says something before `auth_success`".to_owned()));
            }
            "token_expiring" => self.renewal.expiring(),
            "error" => self.error(&message),
            _ => self.hand_on(message),
        }
    }

    /// `auth_success`: a session begins, or has a new token.
    fn welcome(&mut self, message: &Message) {
        let number = self.session.as_ref().map_or(self.number, |session| session.number);
        let session = match Session::read(message.envelope(), number, self.shared.options.ack_mode) {
            Ok(session) => session,
            Err(problem) => return self.shared.error(Error::BadMessage(problem)),
        };
        let sent = self.renewal.take_sent();
        let lasts = session.token_lasts();
        self.renewal.accepted(self.tokens.accepted(sent, lasts), lasts, self.session.is_some());
        if let Some(present) = &mut self.session {
            let renewed = Session { token_expires_at: session.token_expires_at, ..Session::clone(present) };
            *present = Arc::new(renewed);
            self.shared.core.lock().session = Some(Arc::clone(present));
            return;
        }
        let bounded = |interval: Duration| interval.clamp(HEARTBEAT_BOUNDS.0, HEARTBEAT_BOUNDS.1);
        self.interval = bounded(self.shared.options.heartbeat_interval.unwrap_or(session.heartbeat_interval));
        self.shows = self.interval.min(bounded(session.heartbeat_interval));
        self.since = Instant::now();
        let session = Arc::new(session);
        self.session = Some(Arc::clone(&session));
        self.shared.connected(&session);
        if let Some(first) = self.first.take() {
            // Where nobody waits any more, the last handle is gone.
            let _ = first.send(Ok(()));
        }
    }

    /// `error`: the answer to a request, to a subscription, to a new token, or to nothing that is known here.
    fn error(&mut self, message: &Message) {
        let fields = message.fields();
        let code = fields.code.clone().unwrap_or_default();
        let text = fields.message.clone().unwrap_or_default();
        if self.renewal.is_answer(fields.reply_to.as_deref()) {
            self.renewal.failed();
            return self.shared.error(Error::Renewal(format!("{code}: {text}")));
        }
        if let Some(id) = &fields.reply_to {
            let refused = RequestError::Refused { code: code.clone(), message: text.clone() };
            let mut core = self.shared.core.lock();
            if core.outbox.answer(id, Err(refused)).is_ok() {
                return;
            }
            let refused = RequestError::Refused { code: code.clone(), message: text.clone() };
            if core.wishes.answer(id, Err(refused)) {
                return;
            }
            let refused = core.wishes.refuse(id, &code, &text, Instant::now());
            drop(core);
            if let Some(Refused { wish, again }) = refused {
                let what = wish.to_string();
                return self.shared.error(Error::Subscription { what, code, message: text, again });
            }
            if self.shared.is_own_id(id) {
                // Too late: whoever asked was told so.
                return;
            }
        }
        self.shared.error(Error::Gateway { code, message: text, reply_to: fields.reply_to.clone() });
    }

    /// Any other message: the answer to what was asked, or one for the application.
    fn hand_on(&mut self, message: Message) {
        let stored = message.offset().is_some();
        let manual = self.shared.options.manual;
        let message = message.of_client(self.weaks.clone(), self.number, manual);
        let mut core = self.shared.core.lock();
        let reply_to = message.fields().reply_to.clone().filter(|_| !stored);
        if let Some(id) = reply_to {
            if let Some(wish) = core.wishes.confirm(&id) {
                drop(core);
                return self.shared.events.show(&Event::Subscribed(wish.to_string()));
            }
            if core.wishes.answer(&id, Ok(())) {
                return;
            }
            if core.outbox.answer(&id, Ok(message.clone())).is_ok() || self.shared.is_own_id(&id) {
                return;
            }
        }
        let session = self.session.as_ref();
        let acked = stored && session.is_some_and(|session| session.ack_mode == AckMode::Client);
        if core.inbox.finished {
            // What is stored stays unconfirmed, and comes again.
            return;
        }
        if acked {
            core.ledger.delivered(&message);
        }
        core.inbox.push(Delivery { message, session: self.number, acked });
        drop(core);
        self.useful = true;
        self.shared.arrived.notify_one();
    }

    /// Sends the provider's token, or tells why there is none.
    pub(super) fn renew(&mut self, provided: Result<Secret, String>) {
        let id = self.shared.new_id();
        match self.renewal.provided(provided, self.tokens, &id) {
            Ok(token) => {
                let auth = serde_json::json!({ "type": "auth", "id": id, "token": token.expose() });
                // There is never more than one under way.
                self.secret = Some((masked_text(&auth.to_string()), 0));
            }
            Err(problem) => self.shared.error(Error::Renewal(problem)),
        }
    }
}
