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
    outbox::Entry,
    outgoing::Outgoing,
    presence::begin_turn,
    rules::{Action, Client},
    send::{SendError, SendOptions, Sent, Wait},
    sessions::Job,
    topics::Room,
};
use crate::{
    limits,
    metrics::{Class, Failure},
    protocol::{
        client::{Membership, Recipient, Verb},
        error_code::ErrorCode,
        topics,
    },
    session::Saying,
    types::{Notification, NotificationId, SubscriptionCause, Topic, TypeName, UserId},
};

/// What a session wants that has to wait for the store, in order. A task does it for as long as this is there.
#[derive(Debug, Default)]
pub(super) struct Sends {
    waiting: VecDeque<Errand>,
    bytes: usize,
}

/// What has to wait for the store, and the client's id of it.
#[derive(Debug)]
pub(super) enum Errand {
    /// A message that is to be stored.
    Send(UserId, Notification, Option<String>),
    /// What is published to a durable topic.
    Publish(Topic, Notification, Option<String>),
    /// To be in a durable topic.
    Join(Membership, Option<String>),
    /// To be in it no more.
    Leave(Membership, Option<String>),
    /// To be in a durable topic that a new token names.
    JoinByToken(Topic),
}

impl Errand {
    fn bytes(&self) -> usize {
        match self {
            Errand::Send(_, message, _) | Errand::Publish(_, message, _) => message.payload.bytes().len(),
            Errand::Join(..) | Errand::Leave(..) | Errand::JoinByToken(_) => 0,
        }
    }

    pub(super) fn reply_to(&self) -> Option<&str> {
        match self {
            Errand::Send(.., reply_to)
            | Errand::Publish(.., reply_to)
            | Errand::Join(_, reply_to)
            | Errand::Leave(_, reply_to) => reply_to.as_deref(),
            Errand::JoinByToken(_) => None,
        }
    }
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
            let Aside { claims, rooms, sends, .. } = &**aside;
            !claims.is_empty() || !rooms.is_empty() || !aside.follows_none() || sends.is_some()
        });
    }

    /// Queues what has to wait for the store. `None`: there is no room for it. True: nobody is at it yet.
    pub(super) fn queue(&mut self, errand: Errand) -> Option<bool> {
        let sends = &mut self.aside().sends;
        let idle = sends.is_none();
        let sends = sends.get_or_insert_default();
        let bytes = errand.bytes();
        let full = sends.waiting.len() >= limits::CLIENT_SENDS_MAX;
        if full || (!sends.waiting.is_empty() && sends.bytes + bytes > limits::CLIENT_SENDS_BYTES_MAX) {
            return None;
        }
        sends.bytes += bytes;
        sends.waiting.push_back(errand);
        Some(idle)
    }

    /// The next that has to wait for the store. `None`: whoever does it is done.
    pub(super) fn next_errand(&mut self) -> Option<Errand> {
        let sends = &mut self.aside.as_mut()?.sends;
        let next = sends.as_mut().and_then(|sends| {
            let next = sends.waiting.pop_front()?;
            sends.bytes -= next.bytes();
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
    /// Publishes to the members of a topic, as a service. Returns once it was handed to all of them and, where the topic is
    /// durable, is on disk.
    pub async fn publish(&self, topic: &Topic, notification: Notification, own_id: bool) -> Result<Sent, SendError> {
        let notification = Notification { topic: Some(topic.clone()), ..notification };
        if self.is_durable(topic) && !notification.is_now_or_never() {
            return self.publish_durably(topic, notification, own_id, None).await;
        }
        self.broadcast_in(topic, Filter::default(), notification).await
    }

    /// Hands a notification to those members of a topic that pass the filter, those of `not_for` left out.
    pub async fn broadcast_in(
        &self,
        topic: &Topic,
        filter: Filter,
        mut notification: Notification,
    ) -> Result<Sent, SendError> {
        if self.refuses_unstored() {
            return Err(SendError::Draining);
        }
        if notification.is_now_or_never() {
            notification.expires_at = None;
        }
        let outgoing = self.outgoing(&notification)?.counted_as(Class::Publish);
        let mut sessions = 0;
        // Who is in it is looked at after the wait, which may be long.
        let permit = self.0.sessions.room(&outgoing).await;
        if let Some(room) = self.0.topics.get(topic) {
            let filter = (!filter.is_empty()).then_some(filter);
            let (job, handed) = Job::to_topic(outgoing, Arc::new(notification), filter, None, None, permit);
            job.measure(self.metrics());
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
            Recipient::Topic(topic) => self.rules().allows(Action::Publish, topic, client),
            Recipient::User(_) => self.rules().allows_messages(client),
        };
        if !allowed {
            let text = match to {
                Recipient::Topic(_) => "this client may not publish to this topic",
                Recipient::User(_) => "this client may not send messages to users",
            };
            return self.forbid(handle, text, reply_to);
        }
        let durable = verb == Verb::Message && self.clients().message_durable;
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
        let id = || reply_to.map(str::to_owned);
        let said = match to {
            Recipient::Topic(topic) if verb == Verb::Publish && self.is_durable(&topic) => {
                return self.queue_errand(handle, Errand::Publish(topic, message, id()));
            }
            Recipient::User(user) if durable => {
                let most = self.clients().message_durable_per_minute;
                if !handle.user.state().sends(most.limit(), self.clock().now()) {
                    return self.not_said(handle, &NotSaid::TooMany(most.0), reply_to);
                }
                return self.queue_errand(handle, Errand::Send(user, message, id()));
            }
            Recipient::Topic(topic) => self.say_to_topic(handle, &topic, message),
            Recipient::User(user) => self.say_to_user(handle, &user, message),
        };
        if let Err(error) = said {
            self.not_said(handle, &error, reply_to);
        }
    }

    fn say_to_topic(&self, handle: &Handle, topic: &Topic, message: Notification) -> Result<(), NotSaid> {
        let outgoing = self.outgoing(&message)?.counted_as(Class::Publish);
        let Some(room) = self.0.topics.get(topic) else { return Ok(()) };
        let permit = self.0.sessions.room_now(&outgoing).ok_or(NotSaid::Busy)?;
        // Nobody waits for how many it reaches.
        let (job, _) = Job::to_topic(outgoing, Arc::new(message), None, Some(handle.id), None, Some(permit));
        job.measure(self.metrics());
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

    /// Has what has to wait for the store done, behind what the session wanted before.
    pub(super) fn queue_errand(&self, handle: &Arc<Handle>, errand: Errand) {
        let reply_to = errand.reply_to().map(str::to_owned);
        let queued = handle.core().queue(errand);
        match queued {
            None => self.not_said(handle, &NotSaid::Busy, reply_to.as_deref()),
            Some(true) => {
                let (hub, handle) = (self.clone(), Arc::clone(handle));
                self.0.life.spawn(async move { hub.run_errands(&handle).await });
            }
            Some(false) => {}
        }
    }

    /// Does what a session wants of the store, in its order, until nothing is left.
    async fn run_errands(&self, handle: &Arc<Handle>) {
        loop {
            let Some(errand) = handle.core().next_errand() else { return };
            if let Err((error, reply_to)) = self.run_errand(handle, errand).await {
                self.not_said(handle, &error.into(), reply_to.as_deref());
            }
            handle.flush();
        }
    }

    async fn run_errand(&self, handle: &Arc<Handle>, errand: Errand) -> Result<(), (SendError, Option<String>)> {
        match errand {
            Errand::Send(to, message, reply_to) => {
                let options = SendOptions { wait: Wait::Accepted, own_id: false };
                self.send(&to, message, options).await.map_err(|error| (error, reply_to))?;
            }
            Errand::Publish(topic, message, reply_to) => {
                let sent = self.publish_durably(&topic, message, false, Some(handle.id)).await;
                let sent = sent.map_err(|error| (error, reply_to))?;
                if let Some(offset) = sent.offset {
                    self.pass_own(handle, &topic, offset);
                }
            }
            Errand::Join(of, reply_to) => {
                let answer = topics::membership(true, &of, reply_to.as_deref(), self.clock().unix_millis());
                match self.join_for(handle, &of.topic, Entry::message(answer)).await {
                    Ok(Some(entered)) => self.tell_entered(handle, entered, reply_to.as_deref()),
                    Ok(None) => {
                        let text = "its device was taken out of this topic meanwhile; try again";
                        let (code, failure) = (ErrorCode::Unavailable, Failure::Unavailable);
                        self.refuse(handle, code, text, reply_to.as_deref(), failure);
                    }
                    Err(error) => return Err((error.into(), reply_to)),
                }
            }
            Errand::JoinByToken(topic) => {
                self.join_by_token(handle, &topic).await.map_err(|error| (error.into(), None))?;
            }
            Errand::Leave(of, reply_to) => {
                let left = self.part_from(&handle.user, &handle.device, &of.topic, SubscriptionCause::Client).await;
                match left {
                    Ok(left) => self.tell_left(handle, &of, left, reply_to.as_deref()),
                    Err(error) => return Err((error.into(), reply_to)),
                }
            }
        }
        Ok(())
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
