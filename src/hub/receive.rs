//! What comes from a client, and what time brings: the hub carries out what the session says.

use std::sync::Arc;

use super::{Hub, handle::Handle, log::End, presence::begin_turn};
use crate::{
    protocol::{
        frame::{ControlFrame, Incoming},
        server,
    },
    session::{Confirmed, Log, Reaction, Tick, Verdict},
    types::EventBody,
};

impl Hub {
    /// Bytes arrived: the peer is alive.
    pub fn received(&self, handle: &Handle, bytes: usize) {
        begin_turn();
        let mut core = handle.core();
        core.session.received(self.clock().now());
        core.counts.bytes_received += bytes as u64;
        self.metrics().received.bytes.add(bytes as u64);
    }

    /// One message or control frame from the client. Flush the session afterwards.
    pub fn incoming(&self, handle: &Arc<Handle>, incoming: Incoming<'_>) {
        match incoming {
            Incoming::Text(text) => {
                self.count_message(handle);
                self.text(handle, text);
            }
            Incoming::Binary(bytes) => {
                self.count_message(handle);
                let (now, unix) = (self.clock().now(), self.clock().unix_millis());
                let reaction = handle.core().session.on_binary(bytes, self.settings(), now, unix);
                self.react(handle, reaction);
            }
            Incoming::Ping(payload) => handle.core().outbox.set_pong(ControlFrame::pong(payload).as_bytes()),
            Incoming::Pong(payload) => {
                let now = self.clock().now();
                let confirmed = handle.core().session.on_pong(payload, now);
                self.confirm(handle, &confirmed);
                // The next ping goes out if anything is unconfirmed by now.
                handle.ping_behind_data();
            }
            Incoming::Close(close) => {
                let (code, reason) = close.map_or((None, ""), |(code, reason)| (Some(code), reason));
                // Answers to what came before the close go out before it drops what was not started.
                handle.flush();
                handle.closed_by_peer(code, reason);
            }
        }
    }

    fn count_message(&self, handle: &Handle) {
        handle.core().counts.messages_received += 1;
        self.metrics().received.messages.inc();
    }

    fn text(&self, handle: &Arc<Handle>, text: &str) {
        let (now, unix) = (self.clock().now(), self.clock().unix_millis());
        let reaction = handle.core().session.on_text(text, self.settings(), now, unix);
        self.react(handle, reaction);
    }

    /// Carries out what the session makes of a message.
    fn react(&self, handle: &Arc<Handle>, reaction: Reaction) {
        match reaction {
            Reaction::None => {}
            Reaction::Reply(frame, failure) => {
                if let Some(failure) = failure {
                    self.metrics().failure(failure);
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
            Reaction::Close(verdict) => handle.close_by_rule(verdict),
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
        let Some(known) = state.devices.iter_mut().find(|known| known.name == handle.device) else { return };
        let mut news = Vec::new();
        for one in confirmed {
            // Another session of the device may have been faster.
            if known.confirm(one.log, one.offset) {
                news.push(one);
            }
        }
        if news.is_empty() {
            return;
        }
        known.row.last_seen = self.clock().unix_millis();
        known.attempts = None;
        self.put_cursor(user, known, &state.log);
        for one in news {
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
                broadcast: one.log == Log::Broadcast,
            });
        }
        self.drop_done(user, state);
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
                let tick = core.session.on_tick(self.settings(), now);
                match &tick {
                    Tick::Ping(payload) => core.push_ping(payload),
                    // Before a late reply can come between.
                    Tick::TimedOut(id) => self.push_timeout(handle, &mut core, id),
                    _ => {}
                }
                (tick, stalled)
            };
            if stalled {
                handle.close_by_rule(Verdict::SLOW_CONSUMER);
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
            let deadline = core.session.next_deadline(self.settings());
            stalled.map_or(deadline, |stalled| stalled.min(deadline))
        };
        self.0.wheel.schedule(handle, deadline, self.clock().now());
    }
}
