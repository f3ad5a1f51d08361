//! What comes from a client, and what time brings: the hub carries out what the session says.

use std::sync::Arc;

use super::{Hub, handle::Handle, log::End, presence::begin_turn};
use crate::{
    limits::Limit,
    metrics::Class,
    protocol::{
        client::{Recipient, Verb},
        close::CloseCode,
        error_code::ErrorCode,
        frame::{ControlFrame, Incoming},
        server,
    },
    session::{Confirmed, Log, Over, Reaction, Session, Tick, Verdict},
    types::{EventBody, LogId},
};

impl Hub {
    /// Bytes arrived: the peer is alive.
    pub fn received(&self, handle: &Arc<Handle>, bytes: usize) {
        begin_turn();
        let mut core = handle.core();
        core.session.received(bytes, &self.settings(), self.clock().now());
        core.counts.bytes_received += bytes as u64;
        let over = core.session.over_rate(&self.settings());
        drop(core);
        self.metrics().received_bytes.add(bytes as u64);
        if let Some(over) = over {
            self.over_rate(handle, over);
        }
    }

    /// A message that arrived compressed came to so many bytes.
    pub fn inflated(&self, handle: &Arc<Handle>, bytes: usize) {
        let mut core = handle.core();
        core.session.inflated(bytes, &self.settings());
        let over = core.session.over_rate(&self.settings());
        drop(core);
        if let Some(over) = over {
            self.over_rate(handle, over);
        }
    }

    /// One message or control frame from the client. Flush the session afterwards.
    pub fn incoming(&self, handle: &Arc<Handle>, incoming: Incoming<'_>) {
        match incoming {
            Incoming::Text(text) => {
                handle.core().counts.messages_received += 1;
                let (now, unix) = (self.clock().now(), self.clock().unix_millis());
                self.said(handle, text.len(), |session| session.on_text(text, &self.settings(), now, unix));
            }
            Incoming::Binary(bytes) => {
                handle.core().counts.messages_received += 1;
                let (now, unix) = (self.clock().now(), self.clock().unix_millis());
                self.said(handle, bytes.len(), |session| session.on_binary(bytes, &self.settings(), now, unix));
            }
            Incoming::Ping(payload) => {
                self.metrics().received.add(Class::Control, 1, payload.len() as u64);
                let mut core = handle.core();
                core.outbox.set_pong(ControlFrame::pong(payload).as_bytes());
                core.session.on_ping(&self.settings());
                let over = core.session.over_rate(&self.settings());
                drop(core);
                if let Some(over) = over {
                    self.over_rate(handle, over);
                }
            }
            Incoming::Pong(payload) => {
                self.metrics().received.add(Class::Control, 1, payload.len() as u64);
                let now = self.clock().now();
                let mut core = handle.core();
                let confirmed = core.session.on_pong(payload, &self.settings(), now);
                let over = core.session.over_rate(&self.settings());
                drop(core);
                if let Some(over) = over {
                    self.over_rate(handle, over);
                }
                self.confirm(handle, &confirmed);
                // The next ping goes out if anything is unconfirmed by now.
                handle.ping_behind_data();
            }
            Incoming::Close(close) => {
                let bytes = close.as_ref().map_or(0, |(_, reason)| 2 + reason.len());
                self.metrics().received.add(Class::Control, 1, bytes as u64);
                let (code, reason) = close.map_or((None, ""), |(code, reason)| (Some(code), reason));
                // Answers to what came before the close go out before it drops what was not started.
                handle.flush();
                handle.closed_by_peer(code, reason);
            }
        }
    }

    /// Does what a message asks for, unless it was one too many.
    fn said<'a>(&self, handle: &Arc<Handle>, bytes: usize, says: impl FnOnce(&mut Session) -> Reaction<'a>) {
        let (reaction, over) = {
            let mut core = handle.core();
            let reaction = says(&mut core.session);
            (reaction, core.session.over_rate(&self.settings()))
        };
        self.metrics().received.add(self.class_of(&reaction), 1, bytes as u64);
        if let Some(over) = over {
            self.over_rate(handle, over);
            if matches!(over, Over::Close(_)) {
                return;
            }
        }
        self.react(handle, reaction);
    }

    /// Warns a session that sends more than it may, or closes it where it goes on.
    fn over_rate(&self, handle: &Arc<Handle>, over: Over) {
        match over {
            Over::Warn(limit) => {
                self.metrics().hit(limit);
                let text = format!("more than limits.{}; slow down, or the session is closed", limit.as_str());
                handle.reply(server::error(ErrorCode::RateLimited, &text, None));
                // Before it can be closed, which drops what was not started.
                handle.flush();
            }
            Over::Close(limit) => handle.close_for_failure(CloseCode::RATE_LIMIT, "rate_limited", limit),
        }
    }

    /// What a client's message is counted as.
    fn class_of(&self, reaction: &Reaction<'_>) -> Class {
        match reaction {
            Reaction::Forward(_) => Class::Request,
            Reaction::Say(saying) => match &saying.to {
                Recipient::Topic(topic) if saying.verb == Verb::Publish && self.is_durable(topic) => Class::Durable,
                Recipient::Topic(_) => Class::Publish,
                Recipient::User(_) if saying.verb == Verb::Message && self.clients().message_durable => Class::Durable,
                Recipient::User(_) => Class::Transient,
            },
            _ => Class::System,
        }
    }

    /// Carries out what the session makes of a message.
    fn react(&self, handle: &Arc<Handle>, reaction: Reaction) {
        match reaction {
            Reaction::None => {}
            Reaction::Reply(frame, counts) => {
                if let Some(counts) = counts {
                    counts.count(self.metrics());
                }
                handle.reply(frame);
            }
            Reaction::Confirmed(confirmed) => self.confirm(handle, &confirmed),
            Reaction::Reauthenticate(auth, id) => self.reauthenticate(handle, auth.token, id),
            Reaction::Forward(unanswered) => self.forward(handle, &unanswered),
            Reaction::Subscribe(of, id) => self.client_subscribes(handle, &of, id.as_deref()),
            Reaction::Unsubscribe(of, id) => self.client_unsubscribes(handle, &of, id.as_deref()),
            Reaction::ListUsers(topic, id) => self.client_lists(handle, &topic, id),
            Reaction::Say(saying) => self.client_says(handle, *saying),
            Reaction::Close(verdict) => {
                handle.flush();
                handle.close_by_rule(verdict);
            }
        }
    }

    /// The device of this session has everything up to the last of these in each log: its cursors move at once, the
    /// store follows lazily, and what every device has is deleted.
    fn confirm(&self, handle: &Arc<Handle>, confirmed: &[Confirmed]) {
        if confirmed.is_empty() {
            return;
        }
        let now = self.clock().now();
        for one in confirmed {
            self.metrics().confirmed(now.duration_since(one.handed_at), 1);
        }
        let user = &handle.user;
        let mut guard = user.state();
        let state = &mut *guard;
        self.end_left_out(handle, state);
        self.trace_confirmed(handle, confirmed);
        let Some(known) = state.devices.iter_mut().find(|known| known.name == handle.device) else { return };
        let mut news = Vec::new();
        for one in confirmed {
            let shared = self.shared_log_of(handle, one.log);
            let topic = shared.as_ref().and_then(LogId::topic);
            // Another session of the device may have been faster; one that left a topic has nothing to confirm there.
            if known.confirm(one.log, topic, one.offset) {
                if let Some(topic) = topic {
                    self.put_member_cursor(user, known, topic, &state.log);
                }
                news.push((one, shared));
            }
        }
        if news.is_empty() {
            return;
        }
        let unix = self.clock().unix_millis();
        for (one, _) in &news {
            self.metrics().call_to_confirm.record(unix.0.saturating_sub(one.accepted_at.0).saturating_mul(1000));
        }
        known.row.last_seen = unix;
        known.attempts = None;
        self.put_cursor(user, known, &state.log);
        for (one, shared) in news {
            if one.log == Log::User {
                let remembered = state.log.confirm(one.offset);
                state.log.ended(one.offset, remembered, End::Confirmed);
                #[cfg(test)]
                if crate::planted::is(crate::planted::Bug::RecallOfUnconfirmed) {
                    self.0.store.recall(state.log.generation, &[one.offset], &mut state.log.recallable);
                }
            }
            self.0.events.emit(EventBody::NotificationConfirmed {
                user: user.id.clone(),
                device: handle.device.clone(),
                session: handle.id,
                id: one.id.clone(),
                offset: one.offset,
                shared,
            });
        }
        self.drop_done(user, state);
    }

    /// Which log that is, where it is none of the user's own.
    pub(super) fn shared_log_of(&self, handle: &Handle, log: Log) -> Option<LogId> {
        match log {
            Log::User => None,
            Log::Broadcast => Some(LogId::Broadcast),
            Log::Topic(_) => handle.followed(log).map(|log| log.id.clone()),
        }
    }

    /// Something of this session may be due.
    pub(super) fn look_at(&self, handle: &Arc<Handle>) {
        let now = self.clock().now();
        let write_timeout = self.limits().write_timeout.0;
        loop {
            let (tick, stalled) = {
                let mut core = handle.core();
                if core.closing.is_some() {
                    return;
                }
                let stalled = core.outbox.stalled_since().is_some_and(|since| since + write_timeout <= now);
                let tick = core.session.on_tick(&self.settings(), now);
                match &tick {
                    Tick::Ping(payload) => core.push_ping(payload),
                    // Before a late reply can come between.
                    Tick::TimedOut(id) => self.push_timeout(handle, &mut core, id),
                    _ => {}
                }
                (tick, stalled)
            };
            if stalled {
                handle.close_by_rule(Verdict::slow_consumer(Limit::WriteTimeout));
                return;
            }
            match tick {
                Tick::Idle => break,
                Tick::Ping(_) | Tick::TimedOut(_) => handle.flush(),
                Tick::TokenExpiring(end) => {
                    handle.reply(server::token_expiring(end));
                    handle.flush();
                }
                Tick::Close(verdict) => {
                    handle.close_by_rule(verdict);
                    return;
                }
            }
        }
        self.schedule_look(handle);
    }

    /// Has the wheel look at the session when something of its may be due next.
    pub(super) fn schedule_look(&self, handle: &Arc<Handle>) {
        let deadline = {
            let core = handle.core();
            let stalled = core.outbox.stalled_since().map(|since| since + self.limits().write_timeout.0);
            let deadline = core.session.next_deadline(&self.settings());
            stalled.map_or(deadline, |stalled| stalled.min(deadline))
        };
        self.0.wheel.schedule(handle, deadline, self.clock().now());
    }
}
