//! Who is online, and who is in a topic: told when the first session of a user comes, and `presence.linger` after the last
//! went, so that a reconnect makes no noise. In a topic only those are told, and given lists, whom a rule allows it.
//!
//! A list is made in its turn among what is on its way to the members: who came or went before it was told before it, and
//! who comes or goes later is told later.

use std::{cell::Cell, sync::Arc};

use bytes::Bytes;

use super::{
    Hub,
    handle::Handle,
    lane::Lane,
    outgoing::Outgoing,
    rules::{Action, Client},
    sessions::Job,
    topics::{Room, RoomState},
};
use crate::{
    limits,
    metrics::Failure,
    protocol::{error_code::ErrorCode, topics},
    types::{Claims, EventBody, SessionId, Topic, UserId},
};

/// How often what one read of a client's messages brings is handed out at once, before it is left to tasks.
const AT_ONCE_MAX: u8 = 16;

thread_local! {
    static AT_ONCE_LEFT: Cell<u8> = const { Cell::new(AT_ONCE_MAX) };
}

/// A task of this thread begins with something else.
pub(super) fn begin_turn() {
    AT_ONCE_LEFT.set(AT_ONCE_MAX);
}

fn has_turn_left() -> bool {
    let left = AT_ONCE_LEFT.get().checked_sub(1);
    left.map(|left| AT_ONCE_LEFT.set(left)).is_some()
}

impl Hub {
    pub(super) async fn run_presence(&self) {
        loop {
            let (left_at, user) = self.0.leavers.next(|| self.presence().linger.0).await;
            {
                let mut state = user.state();
                if state.left_at == Some(left_at) && state.sessions.is_empty() && state.online {
                    state.online = false;
                    self.0.events.emit(EventBody::UserOffline { user: user.id.clone() });
                }
            }
            self.0.users.touch(&user);
        }
    }

    pub(super) async fn run_topic_presence(&self) {
        loop {
            let (left_at, (room, user)) = self.0.topic_leavers.next(|| self.presence().linger.0).await;
            {
                let mut state = room.state();
                let Some(gone) = state.lingered(&user, left_at) else { continue };
                if !gone.untold {
                    self.tell_of(false, &room, &state, &user, &gone.claims, None);
                }
            }
            self.0.topics.forget_if_empty(&room);
        }
    }

    /// Has the members of a topic told that a user came or went, but for that session. Under the topic's lock, so that it is
    /// told in the order in which it happened. False: they are too many, or too much is told already, and nobody is told.
    pub(super) fn tell_of(
        &self,
        came: bool,
        room: &Arc<Room>,
        state: &RoomState,
        user: &UserId,
        claims: &Claims,
        except: Option<SessionId>,
    ) -> bool {
        if state.users() > self.presence().max_listed.limit() {
            return false;
        }
        if state.sessions() <= usize::from(except.is_some()) {
            return true;
        }
        if came && !room.lane.takes_presence() {
            return false;
        }
        let frame = topics::came_or_went(came, &room.name, user, claims, self.clock().unix_millis());
        let job = Job::of_presence(Outgoing::of(frame), except);
        if room.lane.hand(job) {
            self.spawn_lane(room);
        }
        true
    }

    /// Queues something for a topic, and has it handed out where nobody is at it: at once to few, so that what somebody says
    /// in several small topics is heard in that order, and nobody has to be woken. With no lock held.
    pub(super) fn run_lane(&self, room: &Arc<Room>, queue: impl FnOnce(&Lane) -> bool) {
        if queue(&room.lane) {
            let small = room.state().sessions() <= limits::FANOUT_SLICE_SESSIONS && has_turn_left();
            if !(small && room.lane.run_at_once(&**room)) {
                self.spawn_lane(room);
            }
        }
    }

    fn spawn_lane(&self, room: &Arc<Room>) {
        let room = Arc::clone(room);
        self.0.life.spawn(async move { room.lane.run(&*room).await });
    }

    /// A client wants to know who is in a topic.
    pub(super) fn client_lists(&self, handle: &Arc<Handle>, topic: &Topic, reply_to: Option<String>) {
        let claims = handle.core().claims();
        let client = Client { user: &handle.user.id, claims: &claims };
        if !self.rules().allows(Action::Presence, topic, client) {
            return self.forbid(handle, "this client may not know who is in this topic", reply_to.as_deref());
        }
        match self.0.topics.get(topic) {
            Some(room) if !room.lane.takes_calls() => {
                let text = "too many want to know who is in this topic; try again later";
                self.refuse(handle, ErrorCode::RateLimited, text, reply_to.as_deref(), Failure::RateLimited);
            }
            Some(room) => {
                let (hub, asker, of) = (self.clone(), Arc::clone(handle), Arc::clone(&room));
                self.run_lane(&room, |lane| {
                    lane.call(move || {
                        asker.reply(hub.list(&of, &asker, reply_to.as_deref()));
                        asker.flush();
                    })
                });
            }
            None => {
                let now = self.clock().unix_millis();
                handle.reply(topics::user_list(topic, 0, Some(&[]), reply_to.as_deref(), now));
            }
        }
    }

    /// `user_list`, charged to who asked.
    fn list(&self, room: &Room, asker: &Handle, reply_to: Option<&str>) -> Bytes {
        let now = self.clock().unix_millis();
        let limit = self.presence().max_listed.limit();
        let (count, roll) = {
            let state = room.state();
            let count = state.users();
            // What could not be sent anyway need not be put together.
            let fits =
                count <= limit && count <= self.limits().notification_bytes.as_usize() / topics::PRESENT_BYTES_MIN;
            (count, fits.then(|| state.roll()))
        };
        let Some(roll) = roll else { return topics::user_list(&room.name, count, None, reply_to, now) };
        asker.core().session.listed(roll.len());
        let mut users = Vec::with_capacity(roll.len());
        for (mut present, handle) in roll {
            if let Some(handle) = handle {
                present.claims = self.public_claims(&handle.core());
            }
            users.push(present);
        }
        let list = topics::user_list(&room.name, count, Some(&users), reply_to, now);
        if list.len() > self.limits().notification_bytes.as_usize() {
            return topics::user_list(&room.name, count, None, reply_to, now);
        }
        room.state().listed(&users);
        list
    }
}
