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

/// `pushgate events`.
#[derive(Args, Debug)]
pub struct Events {
    /// Only events of this type; may be given several times. events_lost always comes
    #[arg(long = "type", value_name = "TYPE", value_parser = PossibleValuesParser::new(EventBody::NAMES))]
    types: Vec<String>,
    /// Only events of this user
    #[arg(long)]
    user: Option<String>,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// Runs `pushgate events`.
pub async fn events(args: Events) -> Outcome {
    let gateway = args.target.connect().await?;
    let request = proto::StreamEventsRequest { types: args.types, user_id: args.user.unwrap_or_default() };
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
            let text = format!("{}, {} {}, offset {}", who(&e.user_id, &e.device), id(e.broadcast), e.id, e.offset);
            ("notification_confirmed", text)
        }
        Body::NotificationExpired(e) => {
            let whose = whose(&e.user_id, "");
            ("notification_expired", format!("{whose}, {} {}, offset {}", id(e.broadcast), e.id, e.offset))
        }
        Body::NotificationDropped(e) => {
            let device = e.device.as_deref().map(|name| if name.is_empty() { "(unnamed)" } else { name });
            let whose = whose(&e.user_id, device.unwrap_or_default());
            let (id, why) = (id(e.broadcast), drop_reason(e.reason()));
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
        Body::Draining(e) => {
            ("draining", format!("until {} at the latest", e.deadline.map(|at| at.to_string()).unwrap_or_default()))
        }
        Body::EventsLost(e) => ("events_lost", format!("{}; this reader was too slow", count(e.count, "event"))),
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
    }
}

/// Who lacks a notification.
fn whose(user: &str, device: &str) -> String {
    if user.is_empty() { "all who lack it".to_owned() } else { who(user, device) }
}

fn id(broadcast: bool) -> &'static str {
    if broadcast { "broadcast id" } else { "id" }
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
