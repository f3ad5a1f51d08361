//! `pushgate events`: what happens on the gateway, a line an event.

use clap::{Args, builder::PossibleValuesParser};

use super::{
    connect::{Format, Target},
    failure::{EXIT_UNAVAILABLE, Failure, Outcome},
    json,
    output::{self, bytes, clean, count, duration, span},
};
use crate::{
    api::proto::{self, event::Event as Body},
    types::EventBody,
};

/// How much of a client's message a line shows.
const SHOWN_BYTES: usize = 200;

/// `pushgate events`.
#[derive(Args, Debug)]
pub struct Events {
    /// Only events of this type; may be given several times. events_lost always comes
    #[arg(long = "type", value_name = "TYPE", value_parser = PossibleValuesParser::new(EventBody::NAMES))]
    types: Vec<String>,
    /// Only events of this user
    #[arg(long)]
    user: Option<String>,
    /// Begin with the sessions that there are, then go on with the events from there
    #[arg(long, conflicts_with = "resume_after")]
    snapshot: bool,
    /// Begin behind this event: the `epoch` and `sequence` of one that --json showed
    #[arg(long, value_name = "EPOCH:SEQUENCE", value_parser = position)]
    resume_after: Option<proto::EventPosition>,
    /// Share clients' messages with all that name the same group: each goes to one of them. Asks for message_received
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Only clients' messages of this type; may be given several times. Asks for message_received
    #[arg(long = "message-type", value_name = "TYPE")]
    message_types: Vec<String>,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// Runs `pushgate events`.
pub async fn events(args: Events) -> Outcome {
    let gateway = args.target.connect().await?;
    let request = proto::StreamEventsRequest {
        types: types(&args),
        user_id: args.user.unwrap_or_default(),
        snapshot: args.snapshot,
        resume_after: args.resume_after,
        group: args.group.unwrap_or_default(),
        message_types: args.message_types,
        raw_json: !args.format.json,
    };
    let following = async {
        let answered = gateway.calls().stream_events(gateway.endless(request)).await;
        let mut stream = answered.map_err(|status| gateway.refused(&status))?.into_inner();
        output::note(&format!("events of {}; interrupt to end", gateway.address()));
        while let Some(event) = stream.message().await.map_err(|status| gateway.refused(&status))? {
            match args.format.json {
                true => output::json_line(&json::document("Event", &event))?,
                false => output::line(&text(&event))?,
            }
        }
        Err(Failure::new(EXIT_UNAVAILABLE, format!("{} ended the stream", gateway.address())))
    };
    super::operator::until_stopped(following).await
}

/// What is asked for. Whoever listens for clients' messages is a service to them, which they then wait for: so they are
/// left out where nothing asks for them.
fn types(args: &Events) -> Vec<String> {
    let name = EventBody::NAMES[EventBody::MESSAGE_RECEIVED];
    let messages = args.group.is_some() || !args.message_types.is_empty();
    let mut types = args.types.clone();
    match types.is_empty() {
        true if messages => {}
        true => types.extend(EventBody::NAMES.iter().filter(|one| **one != name).map(|one| (*one).to_owned())),
        false if messages && !types.iter().any(|one| one == name) => types.push(name.to_owned()),
        false => {}
    }
    types
}

/// A place in the events, as `--resume-after` has it.
fn position(text: &str) -> Result<proto::EventPosition, String> {
    let (epoch, sequence) = text.rsplit_once(':').ok_or("is not EPOCH:SEQUENCE")?;
    let sequence = sequence.parse().map_err(|_| "the sequence behind `:` is not a number")?;
    Ok(proto::EventPosition { epoch: epoch.to_owned(), sequence })
}

/// An event for people: when, what, whose, and the rest.
fn text(event: &proto::Event) -> String {
    let time = event.time.map(|time| time.to_string()).unwrap_or_default();
    let (name, rest) = event.event.as_ref().map_or(("unknown", String::new()), body);
    let line = format!("{time:<24}  {name:<22}  {rest}");
    clean(line.trim_end()).into_owned()
}

fn body(body: &Body) -> (&'static str, String) {
    match body {
        Body::SessionOpened(e) => {
            let agent = if e.user_agent.is_empty() { String::new() } else { format!(", {}", e.user_agent) };
            let who = who(&e.user_id, &e.device);
            ("session_opened", format!("{who}, session {}, from {}{agent}", e.session_id, e.remote_address))
        }
        Body::SessionClosed(e) => {
            let by = match e.closed_by() {
                proto::ClosedBy::Unspecified => "",
                proto::ClosedBy::Client => " by the client",
                proto::ClosedBy::Gateway => " by the gateway",
                proto::ClosedBy::Caller => " by a caller",
            };
            let reason = if e.reason.is_empty() { String::new() } else { format!(" ({})", e.reason) };
            let text = format!(
                "{}, session {}, {}{reason}{by} after {}, received {} ({}), sent {} ({}), unconfirmed {}",
                who(&e.user_id, &e.device),
                e.session_id,
                e.code,
                span(duration(e.duration.as_ref())),
                e.messages_received,
                bytes(e.bytes_received as f64),
                e.messages_sent,
                bytes(e.bytes_sent as f64),
                e.unconfirmed
            );
            ("session_closed", text)
        }
        Body::UserOnline(e) => ("user_online", who(&e.user_id, "")),
        Body::UserOffline(e) => ("user_offline", who(&e.user_id, "")),
        Body::NotificationConfirmed(e) => {
            let (who, id) = (who(&e.user_id, &e.device), id(e.broadcast, &e.topic));
            let text = format!("{who}, {id} {}, offset {}", e.id, e.offset);
            ("notification_confirmed", text)
        }
        Body::NotificationExpired(e) => {
            let whose = whose(&e.user_id, "");
            ("notification_expired", format!("{whose}, {} {}, offset {}", id(e.broadcast, &e.topic), e.id, e.offset))
        }
        Body::NotificationDropped(e) => {
            let device = e.device.as_deref().map(|name| if name.is_empty() { "(unnamed)" } else { name });
            let whose = whose(&e.user_id, device.unwrap_or_default());
            let (id, why) = (id(e.broadcast, &e.topic), drop_reason(e.reason()));
            ("notification_dropped", format!("{whose}, {id} {}, offset {}: {why}", e.id, e.offset))
        }
        Body::DeviceForgotten(e) => {
            let why = match e.reason() {
                proto::ForgetReason::Unspecified => "",
                proto::ForgetReason::Unseen => ": not seen for store.device_ttl",
                proto::ForgetReason::Replaced => ": another one needed its place",
                proto::ForgetReason::Caller => " by a caller",
            };
            let device = if e.device.is_empty() { "(unnamed)" } else { &e.device };
            ("device_forgotten", format!("{}{why}", who(&e.user_id, device)))
        }
        Body::AuthFailed(e) => {
            let user = if e.user_id.is_empty() { String::new() } else { format!(", {}", who(&e.user_id, "")) };
            ("auth_failed", format!("{}: {}, from {}{user}", e.code, e.message, e.remote_address))
        }
        Body::Subscribed(e) => ("subscribed", membership(&e.topic, &e.user_id, &e.device, &e.session_id, e.cause())),
        Body::Unsubscribed(e) => {
            ("unsubscribed", membership(&e.topic, &e.user_id, &e.device, &e.session_id, e.cause()))
        }
        Body::Alert(e) => {
            let state = match e.state() {
                proto::AlertState::Unspecified => "",
                proto::AlertState::Firing => " fires",
                proto::AlertState::Cleared => " cleared",
            };
            ("alert", format!("{}{state}: {}", e.name, e.text))
        }
        Body::Draining(e) => ("draining", super::drain::text(e)),
        Body::MessageReceived(e) => {
            let id = if e.id.is_empty() { String::new() } else { format!(", id {}", e.id) };
            let who = who(&e.user_id, &e.device);
            ("message_received", format!("{who}, session {}, {}{id}: {}", e.session_id, e.r#type, payload(e)))
        }
        Body::EventsLost(e) if e.epoch_changed => {
            let text = format!("{}, and what came in the other epoch", count(e.count, "event"));
            ("events_lost", text)
        }
        Body::EventsLost(e) => ("events_lost", format!("{}; this reader was too slow", count(e.count, "event"))),
        Body::SnapshotSession(e) => {
            let session = e.session.clone().unwrap_or_default();
            let since = session.connected_at.map(|at| at.to_string()).unwrap_or_default();
            let who = who(&session.user_id, &session.device);
            let text = format!("{who}, session {}, from {} since {since}", session.session_id, session.remote_address);
            ("snapshot_session", text)
        }
        Body::SnapshotEnd(e) => ("snapshot_end", count(u64::from(e.sessions), "session")),
    }
}

/// What a client sent, as far as a line takes it.
fn payload(message: &proto::MessageReceived) -> String {
    use proto::message_received::Payload;
    match &message.payload {
        Some(Payload::Json(text)) if text.len() <= SHOWN_BYTES => text.clone(),
        Some(Payload::Json(text)) => {
            let end = (0..=SHOWN_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
            format!("{}… ({})", &text[..end], bytes(text.len() as f64))
        }
        Some(Payload::Binary(data)) => bytes(data.len() as f64),
        Some(Payload::Data(_)) | None => String::new(),
    }
}

fn membership(topic: &str, user: &str, device: &str, session: &str, cause: proto::SubscriptionCause) -> String {
    let cause = match cause {
        proto::SubscriptionCause::Unspecified => "",
        proto::SubscriptionCause::Client => " by the client",
        proto::SubscriptionCause::Token => " by its token",
        proto::SubscriptionCause::Caller => " by a caller",
        proto::SubscriptionCause::SessionEnded => ": it ended",
    };
    format!("{topic}, {}, session {session}{cause}", who(user, device))
}

fn drop_reason(reason: proto::DropReason) -> &'static str {
    match reason {
        proto::DropReason::Unspecified => "",
        proto::DropReason::Superseded => "a newer one took its place",
        proto::DropReason::LaggardLost => "made room, lacked by laggards only",
        proto::DropReason::Overflow => "made room, confirmed by nobody",
        proto::DropReason::Purged => "purged by a caller",
        proto::DropReason::MaxAttempts => "tried delivery.max_attempts times",
        proto::DropReason::DeviceForgotten => "its device was forgotten",
        proto::DropReason::UserForgotten => "its user was forgotten",
        proto::DropReason::TopicFull => "the oldest of its topic, made room",
    }
}

/// Who lacks a notification.
fn whose(user: &str, device: &str) -> String {
    if user.is_empty() { "all who lack it".to_owned() } else { who(user, device) }
}

fn id(broadcast: bool, topic: &str) -> String {
    match (broadcast, topic) {
        (true, _) => "broadcast id".to_owned(),
        (false, "") => "id".to_owned(),
        (false, topic) => format!("topic {topic}, id"),
    }
}

fn who(user: &str, device: &str) -> String {
    if device.is_empty() { format!("user {user}") } else { format!("user {user}, device {device}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_clients_put_into_it() {
        let failed = proto::AuthFailed {
            code: "token_invalid".to_owned(),
            message: "no\nsuch key".to_owned(),
            remote_address: "10.0.0.1:2".to_owned(),
            user_id: String::new(),
        };
        let time = Some(prost_types::Timestamp { seconds: 1_769_852_100, nanos: 123_000_000 });
        let event = proto::Event { sequence: 1, epoch: "e".to_owned(), time, event: Some(Body::AuthFailed(failed)) };
        assert_eq!(
            text(&event),
            "2026-01-31T09:35:00.123Z  auth_failed             token_invalid: no\\u{a}such key, from 10.0.0.1:2"
        );
    }

    #[test]
    fn an_end_tells_whose_it_was_and_why() {
        let dropped = |user: &str, device: Option<&str>, reason: proto::DropReason| {
            let event = proto::NotificationDropped {
                user_id: user.to_owned(),
                device: device.map(str::to_owned),
                id: "a".to_owned(),
                offset: 7,
                reason: reason.into(),
                broadcast: user.is_empty(),
                topic: String::new(),
            };
            body(&Body::NotificationDropped(event)).1
        };
        let reason = proto::DropReason::Superseded;
        assert_eq!(dropped("", None, reason), "all who lack it, broadcast id a, offset 7: a newer one took its place");
        let reason = proto::DropReason::Purged;
        assert_eq!(dropped("alice", None, reason), "user alice, id a, offset 7: purged by a caller");
        let unnamed = dropped("alice", Some(""), reason);
        assert_eq!(unnamed, "user alice, device (unnamed), id a, offset 7: purged by a caller");
    }
}
