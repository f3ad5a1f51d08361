//! An event as the proto has it.

use crate::{
    api::{
        convert::{duration, timestamp},
        drain,
        proto::{self, event::Event as Body, message_received::Payload as Received},
        values,
    },
    types::{
        Alert, ClosedBy, DropReason, Event, EventBody, ForgetReason, Forwarded, LogId, Payload, SubscriptionCause,
        Topic, UserId, shown_address,
    },
};

/// An event of this epoch. `raw_json`: with the JSON of a client's message as text.
pub fn event(event: &Event, epoch: &str, raw_json: bool) -> proto::Event {
    proto::Event {
        sequence: event.sequence,
        epoch: epoch.to_owned(),
        time: Some(timestamp(event.time)),
        event: Some(body(&event.body, raw_json)),
    }
}

fn message_received(message: &Forwarded, raw_json: bool) -> proto::MessageReceived {
    let payload = match &message.payload {
        Payload::Binary(bytes) => Received::Binary(bytes.clone()),
        Payload::Json(text) => {
            let value = if raw_json { None } else { values::from_json(text) };
            // What came from a client as JSON is UTF-8.
            value.map_or_else(|| Received::Json(String::from_utf8_lossy(text).into_owned()), Received::Data)
        }
    };
    proto::MessageReceived {
        session_id: message.session.to_string(),
        user_id: message.user.to_string(),
        device: message.device.to_string(),
        r#type: message.type_name.as_str().to_owned(),
        id: message.id.as_deref().unwrap_or_default().to_owned(),
        payload: Some(payload),
        claims: Some(values::claims(&message.claims)),
        reply_by: message.reply_by.map(timestamp),
    }
}

fn body(body: &EventBody, raw_json: bool) -> Body {
    match body {
        EventBody::SessionOpened { session, user, device, remote, user_agent } => {
            Body::SessionOpened(proto::SessionOpened {
                session_id: session.to_string(),
                user_id: user.to_string(),
                device: device.to_string(),
                remote_address: shown_address(*remote),
                user_agent: user_agent.as_deref().unwrap_or_default().to_owned(),
            })
        }
        EventBody::SessionClosed {
            session,
            user,
            device,
            code,
            reason,
            by,
            duration: lasted,
            messages_received,
            bytes_received,
            messages_sent,
            bytes_sent,
            unconfirmed,
        } => Body::SessionClosed(proto::SessionClosed {
            session_id: session.to_string(),
            user_id: user.to_string(),
            device: device.to_string(),
            code: u32::from(*code),
            reason: reason.to_string(),
            closed_by: match by {
                ClosedBy::Client => proto::ClosedBy::Client,
                ClosedBy::Gateway => proto::ClosedBy::Gateway,
                ClosedBy::Caller => proto::ClosedBy::Caller,
            }
            .into(),
            duration: Some(duration(*lasted)),
            messages_received: *messages_received,
            bytes_received: *bytes_received,
            messages_sent: *messages_sent,
            bytes_sent: *bytes_sent,
            unconfirmed: *unconfirmed,
        }),
        EventBody::UserOnline { user } => Body::UserOnline(proto::UserOnline { user_id: user.to_string() }),
        EventBody::UserOffline { user } => Body::UserOffline(proto::UserOffline { user_id: user.to_string() }),
        EventBody::MessageReceived(message) => Body::MessageReceived(message_received(message, raw_json)),
        EventBody::NotificationConfirmed { user, device, session, id, offset, shared } => {
            Body::NotificationConfirmed(proto::NotificationConfirmed {
                user_id: user.to_string(),
                device: device.to_string(),
                session_id: session.to_string(),
                id: id.to_string(),
                offset: offset.get(),
                broadcast: *shared == Some(LogId::Broadcast),
                topic: shared.as_ref().map(topic_of).unwrap_or_default(),
            })
        }
        EventBody::NotificationExpired { log, id, offset } => Body::NotificationExpired(proto::NotificationExpired {
            user_id: log.user().map(UserId::to_string).unwrap_or_default(),
            id: id.to_string(),
            offset: offset.get(),
            broadcast: *log == LogId::Broadcast,
            topic: topic_of(log),
        }),
        EventBody::NotificationDropped { log, device, id, offset, reason } => {
            Body::NotificationDropped(proto::NotificationDropped {
                user_id: body.user().map(UserId::to_string).unwrap_or_default(),
                device: device.as_ref().map(|(_, name)| name.to_string()),
                id: id.to_string(),
                offset: offset.get(),
                reason: drop_reason(*reason).into(),
                broadcast: *log == LogId::Broadcast,
                topic: topic_of(log),
            })
        }
        EventBody::DeviceForgotten { user, device, reason } => Body::DeviceForgotten(proto::DeviceForgotten {
            user_id: user.to_string(),
            device: device.to_string(),
            reason: match reason {
                ForgetReason::Unseen => proto::ForgetReason::Unseen,
                ForgetReason::Replaced => proto::ForgetReason::Replaced,
                ForgetReason::Caller => proto::ForgetReason::Caller,
            }
            .into(),
        }),
        EventBody::AuthFailed { code, message, remote, user } => Body::AuthFailed(proto::AuthFailed {
            code: (*code).to_owned(),
            message: message.to_string(),
            remote_address: shown_address(*remote),
            user_id: user.as_ref().map(UserId::to_string).unwrap_or_default(),
        }),
        EventBody::Subscribed { topic, session, user, device, cause } => Body::Subscribed(proto::Subscribed {
            topic: topic.to_string(),
            user_id: user.to_string(),
            session_id: session.to_string(),
            device: device.to_string(),
            cause: subscription_cause(*cause).into(),
        }),
        EventBody::Unsubscribed { topic, session, user, device, cause } => Body::Unsubscribed(proto::Unsubscribed {
            topic: topic.to_string(),
            user_id: user.to_string(),
            session_id: session.to_string(),
            device: device.to_string(),
            cause: subscription_cause(*cause).into(),
        }),
        EventBody::Alert(alert) => Body::Alert(self::alert(alert)),
        EventBody::Draining(progress) => Body::Draining(drain::progress(progress)),
    }
}

fn topic_of(log: &LogId) -> String {
    log.topic().map(Topic::to_string).unwrap_or_default()
}

fn subscription_cause(cause: SubscriptionCause) -> proto::SubscriptionCause {
    match cause {
        SubscriptionCause::Client => proto::SubscriptionCause::Client,
        SubscriptionCause::Token => proto::SubscriptionCause::Token,
        SubscriptionCause::Caller => proto::SubscriptionCause::Caller,
        SubscriptionCause::SessionEnded => proto::SubscriptionCause::SessionEnded,
    }
}

/// An alert as the proto has it.
pub fn alert(alert: &Alert) -> proto::Alert {
    let state = if alert.firing { proto::AlertState::Firing } else { proto::AlertState::Cleared };
    proto::Alert {
        name: alert.name.as_str().to_owned(),
        state: state.into(),
        value: alert.value,
        threshold: alert.threshold,
        text: alert.text.to_string(),
        since: Some(timestamp(alert.since)),
    }
}

fn drop_reason(reason: DropReason) -> proto::DropReason {
    match reason {
        DropReason::Superseded => proto::DropReason::Superseded,
        DropReason::LaggardLost => proto::DropReason::LaggardLost,
        DropReason::Overflow => proto::DropReason::Overflow,
        DropReason::Purged => proto::DropReason::Purged,
        DropReason::MaxAttempts => proto::DropReason::MaxAttempts,
        DropReason::DeviceForgotten => proto::DropReason::DeviceForgotten,
        DropReason::UserForgotten => proto::DropReason::UserForgotten,
        DropReason::TopicFull => proto::DropReason::TopicFull,
    }
}
