//! What happens on a node, as consumers of the event stream see it.

use std::{net::SocketAddr, time::Duration};

use super::{
    Alert, Claims, Device, DrainProgress, LogId, NotificationId, Offset, Payload, SessionId, Topic, TypeName,
    UnixMillis, UserId,
};

/// Who ended a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedBy {
    /// The client closed, or its connection broke.
    Client,
    /// The gateway, by one of its rules.
    Gateway,
    /// A caller of the admin API.
    Caller,
}

impl ClosedBy {
    /// Its name in log lines.
    pub fn as_str(self) -> &'static str {
        match self {
            ClosedBy::Client => "client",
            ClosedBy::Gateway => "gateway",
            ClosedBy::Caller => "caller",
        }
    }
}

/// Why a stored notification ended before every device had confirmed it, other than by its TTL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// A newer one with its collapse key took its place.
    Superseded,
    /// A full mailbox made room: some device had confirmed it, and only laggards lacked it.
    LaggardLost,
    /// A full mailbox made room, and nobody had confirmed it (`store.overflow = "drop-oldest"`).
    Overflow,
    /// A caller cleared the mailbox.
    Purged,
    /// A device was given it `delivery.max_attempts` times and never acked it.
    MaxAttempts,
    /// It waited for a device that was forgotten, and every other one began later.
    DeviceForgotten,
    /// Its user was forgotten.
    UserForgotten,
    /// The oldest of a durable topic that keeps as many records as it may made room.
    TopicFull,
}

/// Why a device was forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForgetReason {
    /// It was not seen for `store.device_ttl`.
    Unseen,
    /// It was the longest unseen, and another one needed its place (`store.max_devices_per_user`).
    Replaced,
    /// A caller asked for it.
    Caller,
}

/// A client's message that goes to the services.
#[derive(Clone, Debug)]
pub struct Forwarded {
    /// Whose it is.
    pub session: SessionId,
    /// Its user.
    pub user: UserId,
    /// Its device.
    pub device: Device,
    /// What the client gave as `type`.
    pub type_name: TypeName,
    /// The client's own id, by which it knows the reply. `None`: it awaits none.
    pub id: Option<Box<str>>,
    /// Its `data` as it came.
    pub payload: Payload,
    /// What its token says of it, as far as it is kept.
    pub claims: Claims,
    /// When the client is told that nobody answered. `None`: it awaits no reply.
    pub reply_by: Option<UnixMillis>,
}

impl Forwarded {
    /// What it takes in memory, its claims left out, which its session has anyway.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.payload.bytes().len() + self.id.as_ref().map_or(0, |id| id.len())
    }
}

/// Why a session came to be in a topic, or left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscriptionCause {
    /// Its client asked for it.
    Client,
    /// Its token says so.
    Token,
    /// A caller of the admin API asked for it.
    Caller,
    /// The session ended.
    SessionEnded,
}

/// One event, numbered in the total order of its node.
#[derive(Clone, Debug)]
pub struct Event {
    /// Rises by one with every event of the node.
    pub sequence: u64,
    /// When it happened.
    pub time: UnixMillis,
    /// What happened.
    pub body: EventBody,
}

/// What happened.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the fields are documented where callers see them: in the proto")]
pub enum EventBody {
    SessionOpened {
        session: SessionId,
        user: UserId,
        device: Device,
        remote: SocketAddr,
        user_agent: Option<Box<str>>,
    },
    SessionClosed {
        session: SessionId,
        user: UserId,
        device: Device,
        code: u16,
        reason: Box<str>,
        by: ClosedBy,
        duration: Duration,
        messages_received: u64,
        bytes_received: u64,
        messages_sent: u64,
        bytes_sent: u64,
        unconfirmed: u32,
    },
    UserOnline {
        user: UserId,
    },
    UserOffline {
        user: UserId,
    },
    MessageReceived(Box<Forwarded>),
    NotificationConfirmed {
        user: UserId,
        device: Device,
        session: SessionId,
        id: NotificationId,
        offset: Offset,
        /// `None`: the user's own log.
        shared: Option<LogId>,
    },
    NotificationExpired {
        log: LogId,
        id: NotificationId,
        offset: Offset,
    },
    NotificationDropped {
        log: LogId,
        /// `None`: for all devices that lack it. Else the one device, and its user.
        device: Option<(UserId, Device)>,
        id: NotificationId,
        offset: Offset,
        reason: DropReason,
    },
    DeviceForgotten {
        user: UserId,
        device: Device,
        reason: ForgetReason,
    },
    AuthFailed {
        code: &'static str,
        message: Box<str>,
        remote: SocketAddr,
        user: Option<UserId>,
    },
    Subscribed {
        topic: Topic,
        session: SessionId,
        user: UserId,
        device: Device,
        cause: SubscriptionCause,
    },
    Unsubscribed {
        topic: Topic,
        session: SessionId,
        user: UserId,
        device: Device,
        cause: SubscriptionCause,
    },
    Alert(Alert),
    Draining(DrainProgress),
}

impl EventBody {
    /// The names by which a consumer may filter, in the order of the proto.
    pub const NAMES: [&'static str; 14] = [
        "session_opened",
        "session_closed",
        "user_online",
        "user_offline",
        "message_received",
        "notification_confirmed",
        "notification_expired",
        "notification_dropped",
        "device_forgotten",
        "auth_failed",
        "subscribed",
        "unsubscribed",
        "alert",
        "draining",
    ];

    /// The place of `message_received` in [`EventBody::NAMES`].
    pub const MESSAGE_RECEIVED: usize = 4;

    /// Its name: the proto's oneof field.
    pub fn name(&self) -> &'static str {
        Self::NAMES[self.index()]
    }

    /// Its place in [`EventBody::NAMES`].
    pub fn index(&self) -> usize {
        match self {
            EventBody::SessionOpened { .. } => 0,
            EventBody::SessionClosed { .. } => 1,
            EventBody::UserOnline { .. } => 2,
            EventBody::UserOffline { .. } => 3,
            EventBody::MessageReceived(_) => Self::MESSAGE_RECEIVED,
            EventBody::NotificationConfirmed { .. } => 5,
            EventBody::NotificationExpired { .. } => 6,
            EventBody::NotificationDropped { .. } => 7,
            EventBody::DeviceForgotten { .. } => 8,
            EventBody::AuthFailed { .. } => 9,
            EventBody::Subscribed { .. } => 10,
            EventBody::Unsubscribed { .. } => 11,
            EventBody::Alert(_) => 12,
            EventBody::Draining(_) => 13,
        }
    }

    /// The user it concerns, where it concerns one.
    pub fn user(&self) -> Option<&UserId> {
        match self {
            EventBody::SessionOpened { user, .. }
            | EventBody::SessionClosed { user, .. }
            | EventBody::UserOnline { user }
            | EventBody::UserOffline { user }
            | EventBody::NotificationConfirmed { user, .. }
            | EventBody::Subscribed { user, .. }
            | EventBody::Unsubscribed { user, .. }
            | EventBody::DeviceForgotten { user, .. } => Some(user),
            EventBody::MessageReceived(message) => Some(&message.user),
            EventBody::NotificationDropped { log, device, .. } => {
                log.user().or(device.as_ref().map(|(owner, _)| owner))
            }
            EventBody::NotificationExpired { log, .. } => log.user(),
            EventBody::AuthFailed { user, .. } => user.as_ref(),
            EventBody::Alert(_) | EventBody::Draining(_) => None,
        }
    }
}
