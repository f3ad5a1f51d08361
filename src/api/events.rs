//! `StreamEvents`: a consumer's view of the ring, filtered, at its own pace.

use std::{collections::VecDeque, pin::Pin, sync::Arc};

use futures_util::{Stream, stream};
use tokio_util::sync::CancellationToken;

use super::{
    convert::{Checks, duration, timestamp},
    error::ApiError,
    proto::{self, event::Event as Body},
};
use crate::{
    hub::{Hub, Read, Reader},
    lifecycle::Lifecycle,
    metrics::Metrics,
    types::{Alert, ClosedBy, DropReason, Event, EventBody, ForgetReason, SubscriptionCause, UserId},
};

/// What `StreamEvents` answers with.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<proto::Event, ApiError>> + Send>>;

struct Consumer {
    reader: Reader,
    epoch: String,
    /// A bit a type, by its place in [`EventBody::NAMES`].
    types: u32,
    user: Option<UserId>,
    ready: VecDeque<proto::Event>,
    stop: CancellationToken,
    hub: Hub,
    open: Open,
}

/// Counts an open stream for as long as it lives.
struct Open(Metrics);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.event_streams.leave();
    }
}

/// `StreamEvents`.
pub fn stream(hub: &Hub, life: &Lifecycle, request: &proto::StreamEventsRequest) -> Result<EventStream, ApiError> {
    let mut checks = Checks::default();
    let user = checks.optional("user_id", &request.user_id, UserId::parse);
    let mut types = 0;
    for name in &request.types {
        match EventBody::NAMES.iter().position(|known| known == name) {
            Some(index) => types |= 1 << index,
            // It comes whatever the filter.
            None if name == "events_lost" => {}
            None => {
                let allowed = EventBody::NAMES.join(", ");
                checks.violation("types", format!("an event type is not known; there are {allowed}, events_lost"));
            }
        }
    }
    let (user,) = checks.finish((user,))?;
    let metrics = hub.metrics().clone();
    metrics.event_streams.enter();
    let consumer = Consumer {
        reader: hub.events().reader(),
        epoch: hub.events().epoch().to_string(),
        types: if request.types.is_empty() { u32::MAX } else { types },
        user,
        ready: VecDeque::new(),
        stop: life.stopping().clone(),
        hub: hub.clone(),
        open: Open(metrics),
    };
    Ok(Box::pin(stream::unfold(Some(consumer), |consumer| async {
        let mut consumer = consumer?;
        match consumer.next().await {
            Some(event) => Some((Ok(event), Some(consumer))),
            None => {
                let message = "the node is stopping".to_owned();
                Some((Err(ApiError::Unavailable { reason: "DRAINING", message }), None))
            }
        }
    })))
}

impl Consumer {
    async fn next(&mut self) -> Option<proto::Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let read = tokio::select! {
                biased;
                read = self.reader.read() => read,
                () = self.stop.cancelled() => return None,
            };
            match read {
                Read::Lost { count, last } => {
                    self.open.0.events_lost.add(count);
                    let time = Some(timestamp(self.hub.clock().unix_millis()));
                    let event = Some(Body::EventsLost(proto::EventsLost { count }));
                    return Some(proto::Event { sequence: last, epoch: self.epoch.clone(), time, event });
                }
                Read::Events(events) => {
                    let wanted = events.iter().filter(|event| self.wants(event));
                    self.ready = wanted.map(|event| encode(event, &self.epoch)).collect();
                }
            }
        }
    }

    fn wants(&self, event: &Arc<Event>) -> bool {
        self.types & (1 << event.body.index()) != 0
            && self.user.as_ref().is_none_or(|user| event.body.user() == Some(user))
    }
}

fn encode(event: &Event, epoch: &str) -> proto::Event {
    proto::Event {
        sequence: event.sequence,
        epoch: epoch.to_owned(),
        time: Some(timestamp(event.time)),
        event: Some(encode_body(&event.body)),
    }
}

fn encode_body(body: &EventBody) -> Body {
    match body {
        EventBody::SessionOpened { session, user, device, remote, user_agent } => {
            Body::SessionOpened(proto::SessionOpened {
                session_id: session.to_string(),
                user_id: user.to_string(),
                device: device.to_string(),
                remote_address: remote.to_string(),
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
        EventBody::NotificationConfirmed { user, device, session, id, offset, broadcast } => {
            Body::NotificationConfirmed(proto::NotificationConfirmed {
                user_id: user.to_string(),
                device: device.to_string(),
                session_id: session.to_string(),
                id: id.to_string(),
                offset: offset.get(),
                broadcast: *broadcast,
            })
        }
        EventBody::NotificationExpired { user, id, offset } => Body::NotificationExpired(proto::NotificationExpired {
            user_id: user.as_ref().map(UserId::to_string).unwrap_or_default(),
            id: id.to_string(),
            offset: offset.get(),
            broadcast: user.is_none(),
        }),
        EventBody::NotificationDropped { user, device, id, offset, reason } => {
            Body::NotificationDropped(proto::NotificationDropped {
                user_id: body.user().map(UserId::to_string).unwrap_or_default(),
                device: device.as_ref().map(|(_, name)| name.to_string()),
                id: id.to_string(),
                offset: offset.get(),
                reason: drop_reason(*reason).into(),
                broadcast: user.is_none(),
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
            remote_address: remote.to_string(),
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
        EventBody::Draining { deadline } => Body::Draining(proto::Draining { deadline: Some(timestamp(*deadline)) }),
    }
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
    }
}
