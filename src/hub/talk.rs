//! What is said in topics, and by clients to users: `Publish`, and the messages `publish`, `message`, `typing`.
//!
//! What is published is encoded once and queued in the topic's lane, in order. A client's message to a user is handed to
//! whoever is there or, where `clients.message_durable` says so, sent like a service's, one after the other.

use std::{collections::VecDeque, sync::Arc};

use super::{
    Hub,
    admit::Unflushed,
    filter::Filter,
    handle::{Aside, Core, Handle},
    outgoing::Outgoing,
    presence::begin_turn,
    rules::{Action, Client},
    send::{SendError, SendOptions, Sent, Wait},
    sessions::Job,
    topics::Room,
};
use crate::{
    limits,
    metrics::Failure,
    protocol::{
        client::{Recipient, Verb},
        error_code::ErrorCode,
    },
    session::Saying,
    types::{Notification, NotificationId, Topic, TypeName, UserId},
};

/// Messages of a session that are to be stored, in order. A task sends them for as long as this is there.
#[derive(Debug, Default)]
pub(super) struct Sends {
    waiting: VecDeque<(UserId, Notification, Option<String>)>,
    bytes: usize,
}

impl Core {
    /// Its topics.
    pub fn rooms(&self) -> &[Arc<Room>] {
        self.aside.as_ref().map_or(&[], |aside| &aside.rooms)
    }

    /// Whether it is in a topic.
    pub fn is_in(&self, topic: &Topic) -> bool {
        self.rooms().iter().any(|room| room.name == *topic)
    }

    pub(super) fn enter(&mut self, room: Arc<Room>) {
        let rooms = &mut self.aside().rooms;
        if rooms.is_empty() {
            rooms.reserve_exact(1);
        }
        rooms.push(room);
    }

    pub(super) fn take_room(&mut self, topic: &Topic) -> Option<Arc<Room>> {
        let at = self.rooms().iter().position(|room| room.name == *topic)?;
        let room = self.aside().rooms.swap_remove(at);
        self.tidy();
        Some(room)
    }

    pub(super) fn take_rooms(&mut self) -> Vec<Arc<Room>> {
        let rooms = self.aside.as_mut().map(|aside| std::mem::take(&mut aside.rooms)).unwrap_or_default();
        self.tidy();
        rooms
    }

    /// Gives back what nothing is in any more.
    fn tidy(&mut self) {
        self.aside = self.aside.take().filter(|aside| {
            let Aside { claims, rooms, sends } = &**aside;
            !claims.is_empty() || !rooms.is_empty() || sends.is_some()
        });
    }

    /// Queues a message that is to be stored. `None`: there is no room for it. True: nobody sends yet.
    pub(super) fn queue_send(&mut self, to: UserId, message: Notification, reply_to: Option<String>) -> Option<bool> {
        let sends = &mut self.aside().sends;
        let idle = sends.is_none();
        let sends = sends.get_or_insert_default();
        let bytes = message.payload.bytes().len();
        let full = sends.waiting.len() >= limits::CLIENT_SENDS_MAX;
        if full || (!sends.waiting.is_empty() && sends.bytes + bytes > limits::CLIENT_SENDS_BYTES_MAX) {
            return None;
        }
        sends.bytes += bytes;
        sends.waiting.push_back((to, message, reply_to));
        Some(idle)
    }

    /// The next message that is to be stored. `None`: whoever sends them is done.
    pub(super) fn next_send(&mut self) -> Option<(UserId, Notification, Option<String>)> {
        let sends = &mut self.aside.as_mut()?.sends;
        let next = sends.as_mut().and_then(|sends| {
            let next = sends.waiting.pop_front()?;
            sends.bytes -= next.1.payload.bytes().len();
            Some(next)
        });
        if next.is_none() {
            *sends = None;
            self.tidy();
        }
        next
    }
}

impl Hub {
    /// Publishes to the members of a topic, as a service. Returns once it was handed to all of them.
    pub async fn publish(&self, topic: &Topic, notification: Notification) -> Result<Sent, SendError> {
        let notification = Notification { topic: Some(topic.clone()), ..notification };
        self.broadcast_in(topic, Filter::default(), notification).await
    }

    /// Hands a notification to those members of a topic that pass the filter, those of `not_for` left out.
    pub async fn broadcast_in(
        &self,
        topic: &Topic,
        filter: Filter,
        mut notification: Notification,
    ) -> Result<Sent, SendError> {
        if self.is_draining() {
            return Err(SendError::Draining);
        }
        if notification.is_now_or_never() {
            notification.expires_at = None;
        }
        let outgoing = self.outgoing(&notification)?;
        let mut sessions = 0;
        // Who is in it is looked at after the wait, which may be long.
        let permit = self.0.sessions.room(&outgoing).await;
        if let Some(room) = self.0.topics.get(topic) {
            let filter = (!filter.is_empty()).then_some(filter);
            let (job, handed) = Job::to_topic(outgoing, Arc::new(notification), filter, None, permit);
            begin_turn();
            self.run_lane(&room, |lane| lane.hand(job));
            sessions = handed.await.unwrap_or_default();
        }
        Ok(self.sent_unstored(sessions))
    }

    /// What is never stored, as sessions are sent it.
    fn outgoing(&self, notification: &Notification) -> Result<Outgoing, SendError> {
        let draft = self.draft(notification, false)?;
        Ok(Outgoing::new(draft, notification, None, false, true))
    }

    /// A client says something to others.
    pub(super) fn client_says(&self, handle: &Arc<Handle>, saying: Saying) {
        let Saying { verb, to, kind, payload, reply_to } = saying;
        let reply_to = reply_to.as_deref();
        let claims = handle.core().claims();
        let client = Client { user: &handle.user.id, claims: &claims };
        let allowed = match &to {
            Recipient::Topic(topic) => self.0.rules.allows(Action::Publish, topic, client),
            Recipient::User(_) => self.0.rules.allows_messages(client),
        };
        if !allowed {
            let text = match to {
                Recipient::Topic(_) => "this client may not publish to this topic",
                Recipient::User(_) => "this client may not send messages to users",
            };
            return self.forbid(handle, text, reply_to);
        }
        let durable = verb == Verb::Message && self.0.clients.message_durable;
        let now = self.clock().unix_millis();
        let message = Notification {
            id: NotificationId::generate(),
            type_name: TypeName::parse(verb.as_str()).unwrap_or(TypeName::NOTIFICATION),
            payload,
            from_user: Some(handle.user.id.clone()),
            topic: if let Recipient::Topic(topic) = &to { Some(topic.clone()) } else { None },
            kind,
            collapse_key: None,
            not_for: [].into(),
            accepted_at: now,
            expires_at: durable.then(|| now.saturating_add(self.quotas().ttl)),
        };
        let said = match to {
            Recipient::Topic(topic) => self.say_to_topic(handle, &topic, message),
            Recipient::User(user) if durable => self.say_durably(handle, user, message, reply_to),
            Recipient::User(user) => self.say_to_user(handle, &user, message),
        };
        if let Err(error) = said {
            self.not_said(handle, &error, reply_to);
        }
    }

    fn say_to_topic(&self, handle: &Handle, topic: &Topic, message: Notification) -> Result<(), NotSaid> {
        let outgoing = self.outgoing(&message)?;
        let Some(room) = self.0.topics.get(topic) else { return Ok(()) };
        let permit = self.0.sessions.room_now(&outgoing).ok_or(NotSaid::Busy)?;
        // Nobody waits for how many it reaches.
        let (job, _) = Job::to_topic(outgoing, Arc::new(message), None, Some(handle.id), Some(permit));
        self.run_lane(&room, |lane| lane.hand(job));
        Ok(())
    }

    /// To the sessions that are there now, the speaker's own left out.
    fn say_to_user(&self, handle: &Handle, to: &UserId, message: Notification) -> Result<(), NotSaid> {
        let outgoing = self.outgoing(&message)?;
        let Some(user) = self.0.users.get(to) else { return Ok(()) };
        let mut taken = Unflushed::default();
        {
            let state = user.state();
            let others = state.sessions.iter().filter(|session| session.id != handle.id);
            taken.0.extend(others.filter(|session| session.push(&outgoing)).cloned());
        }
        // Few are flushed as it is dropped.
        if !taken.is_small() {
            self.0.life.spawn(taken.flush());
        }
        Ok(())
    }

    fn say_durably(
        &self,
        handle: &Arc<Handle>,
        to: UserId,
        message: Notification,
        reply_to: Option<&str>,
    ) -> Result<(), NotSaid> {
        let most = self.0.clients.message_durable_per_minute;
        if !handle.user.state().sends(most.limit(), self.clock().now()) {
            return Err(NotSaid::TooMany(most.0));
        }
        let queued = handle.core().queue_send(to, message, reply_to.map(str::to_owned));
        if queued.ok_or(NotSaid::Busy)? {
            let (hub, handle) = (self.clone(), Arc::clone(handle));
            self.0.life.spawn(async move { hub.send_for(&handle).await });
        }
        Ok(())
    }

    /// Sends what a session wants stored, in its order, until nothing is left.
    async fn send_for(&self, handle: &Handle) {
        loop {
            let Some((to, message, reply_to)) = handle.core().next_send() else { return };
            let options = SendOptions { wait: Wait::Accepted, own_id: false };
            if let Err(error) = self.send(&to, message, options).await {
                self.not_said(handle, &error.into(), reply_to.as_deref());
                handle.flush();
            }
        }
    }

    /// Tells a client why what it said is not passed on.
    fn not_said(&self, handle: &Handle, error: &NotSaid, reply_to: Option<&str>) {
        let (code, text, failure) = match error {
            NotSaid::Busy => (
                ErrorCode::RateLimited,
                "too much waits to be passed on; try again later".to_owned(),
                Failure::RateLimited,
            ),
            NotSaid::TooMany(most) => (
                ErrorCode::RateLimited,
                format!("more than {most} messages to be stored in a minute (clients.message_durable_per_minute)"),
                Failure::RateLimited,
            ),
            NotSaid::Send(SendError::TooLarge { bytes, limit }) => (
                ErrorCode::TooLarge,
                format!("the message takes {bytes} bytes as others get it; limits.notification_bytes allows {limit}"),
                Failure::MessageTooBig,
            ),
            NotSaid::Send(SendError::MailboxFull { .. }) => (
                ErrorCode::LimitReached,
                "as many messages wait for this user as may (store.max_pending_per_user)".to_owned(),
                Failure::LimitReached,
            ),
            NotSaid::Send(_) => {
                (ErrorCode::Unavailable, "it cannot be stored now; try again later".to_owned(), Failure::Unavailable)
            }
        };
        self.refuse(handle, code, &text, reply_to, failure);
    }
}

/// Why what a client says is not passed on.
#[derive(Clone, Debug)]
enum NotSaid {
    /// Too much waits already.
    Busy,
    /// More than so many a minute.
    TooMany(u32),
    Send(SendError),
}

impl From<SendError> for NotSaid {
    fn from(error: SendError) -> Self {
        NotSaid::Send(error)
    }
}
