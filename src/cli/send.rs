//! `pushgate send`, `pushgate broadcast`, `pushgate close`: what changes something for users.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde::de::IgnoredAny;

use super::{
    connect::{Format, Target, span},
    failure::{Failure, Outcome},
    json, output,
};
use crate::{
    api::proto::{self, notification::Payload},
    limits,
};

/// `pushgate send`.
#[derive(Args, Debug)]
pub struct Send {
    /// The user; one that is not known yet is no error, the notification waits for him
    user: String,
    #[command(flatten)]
    notification: Notification,
    /// What to wait for
    #[arg(long, value_enum, default_value_t = Wait::Stored)]
    wait: Wait,
    /// How long `--wait confirmed` waits, at most 5m; the call may take that much longer [default: 10s]
    #[arg(long, value_name = "SPAN", value_parser = span)]
    wait_timeout: Option<Duration>,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// `pushgate broadcast`.
#[derive(Args, Debug)]
pub struct Broadcast {
    #[command(flatten)]
    notification: Notification,
    /// Store it, so that devices that are known and away get it on their next connection
    #[arg(long)]
    durable: bool,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// Whom a broadcast is for; all that is given must hold.
#[derive(Args, Debug)]
struct Filter {
    /// Only to sessions that are in this topic
    #[arg(long, default_value = "", hide_default_value = true)]
    topic: String,
    /// Only to sessions of this device, '' being the unnamed one; may be given several times
    #[arg(long = "device", value_name = "NAME")]
    devices: Vec<String>,
    /// Only to sessions with such a User-Agent: * is any run of characters, ? any one, case does not matter
    #[arg(long, value_name = "PATTERN", default_value = "", hide_default_value = true)]
    user_agent: String,
    /// Only to sessions that connected at that moment or later, such as 2026-01-31T09:35:00Z
    #[arg(long, value_name = "TIME", value_parser = moment)]
    connected_after: Option<prost_types::Timestamp>,
    /// Only to sessions that connected before that moment
    #[arg(long, value_name = "TIME", value_parser = moment)]
    connected_before: Option<prost_types::Timestamp>,
    /// Only to sessions whose token has that claim, or a list that holds it; may be given several times. Sessions keep
    /// those of auth.session_claims and auth.public_claims
    #[arg(long = "claim", value_name = "NAME=TEXT", value_parser = claim)]
    claims: Vec<(String, String)>,
    /// Not to this user; may be given several times
    #[arg(long = "exclude-user", value_name = "USER")]
    exclude_users: Vec<String>,
    /// Not to this session; may be given several times
    #[arg(long = "exclude-session", value_name = "ID")]
    exclude_sessions: Vec<String>,
}

impl Filter {
    fn into_proto(self) -> Outcome<proto::BroadcastFilter> {
        let mut claims = HashMap::new();
        for (name, text) in self.claims {
            if let Some(other) = claims.insert(name.clone(), text) {
                return Err(Failure::usage(format!("--claim {name}: is given twice, once as `{other}`")));
            }
        }
        Ok(proto::BroadcastFilter {
            topic: self.topic,
            devices: self.devices,
            user_agent: self.user_agent,
            connected_after: self.connected_after,
            connected_before: self.connected_before,
            claims,
            exclude_user_ids: self.exclude_users,
            exclude_session_ids: self.exclude_sessions,
        })
    }
}

/// A moment of the command line (RFC 3339).
pub(super) fn moment(text: &str) -> Result<prost_types::Timestamp, String> {
    text.parse().map_err(|_| "write a time such as 2026-01-31T09:35:00Z".to_owned())
}

/// A claim of the command line.
fn claim(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(name, _)| !name.is_empty());
    parts.map(|(name, text)| (name.to_owned(), text.to_owned())).ok_or_else(|| "write NAME=TEXT".to_owned())
}

/// `pushgate close`.
#[derive(Args, Debug)]
pub struct Close {
    /// The user; one without sessions is no error
    user: String,
    /// Only this session
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Only sessions of this device; '' is the unnamed one
    #[arg(long)]
    device: Option<String>,
    /// The close code: 1000 and 1008 tell the client to stay away; 3000 to 3999 and 4000 to 4099 are yours
    #[arg(long, default_value_t = 1000)]
    code: u32,
    /// The close reason, at most 123 bytes
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Also make the tokens void that these sessions live by, so that nobody comes back with one; needs admin
    #[arg(long)]
    revoke_tokens: bool,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// A notification on the command line.
#[derive(Args, Debug)]
pub(super) struct Notification {
    /// The data: JSON, such as '{"hello":"world"}' or '"text"'
    #[arg(value_name = "JSON", conflicts_with_all = ["data_file", "binary_file"])]
    data: Option<String>,
    /// Read the JSON from a file; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "binary_file")]
    data_file: Option<PathBuf>,
    /// Send the bytes of a file; - is standard input
    #[arg(long, value_name = "FILE")]
    binary_file: Option<PathBuf>,
    /// What clients see as type [default: notification]
    #[arg(long = "type", value_name = "TYPE", default_value = "", hide_default_value = true)]
    kind: String,
    /// Your own id: what is stored under it once is not sent again within store.idempotency_window [default: a new UUID]
    #[arg(long, default_value = "", hide_default_value = true)]
    id: String,
    /// How long it is worth delivering, such as 1h; 0s: now or never [default: store.ttl]
    #[arg(long, value_name = "SPAN", value_parser = span)]
    ttl: Option<Duration>,
    /// Replace what waits with the same key
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    collapse_key: String,
    /// The user it comes from, which clients see as fromUserId
    #[arg(long, value_name = "USER", default_value = "", hide_default_value = true)]
    from: String,
}

/// What a send waits for.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Wait {
    /// Durable on disk
    Stored,
    /// Handed to the live sessions; may be lost with the process
    Accepted,
    /// Durable on disk, and confirmed by some device
    Confirmed,
}

impl Notification {
    /// As the API has it.
    pub(super) fn into_proto(self) -> Outcome<proto::Notification> {
        let payload = match (self.data, self.data_file, self.binary_file) {
            (Some(text), ..) => Some(Payload::Json(checked(text, "JSON")?)),
            (_, Some(file), _) => {
                let bytes = read(&file)?;
                let not_text = |_| Failure::usage(format!("--data-file {}: is not UTF-8", file.display()));
                let text = String::from_utf8(bytes).map_err(not_text)?;
                Some(Payload::Json(checked(text, &format!("--data-file {}", file.display()))?))
            }
            (.., Some(file)) => Some(Payload::Binary(read(&file)?.into())),
            _ => None,
        };
        Ok(proto::Notification {
            id: self.id,
            r#type: self.kind,
            payload,
            ttl: self.ttl.map(proto_span),
            collapse_key: self.collapse_key,
            from_user_id: self.from,
        })
    }
}

/// A span of more seconds than the proto holds is refused by the gateway like any that is too long.
fn proto_span(span: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(span.subsec_nanos()).unwrap_or_default(),
    }
}

/// JSON as it stands, without the white space around it. Text that was meant as a string is the likely mistake.
fn checked(text: String, place: &str) -> Outcome<String> {
    match serde_json::from_str::<IgnoredAny>(&text) {
        Ok(_) => Ok(text.trim().to_owned()),
        Err(error) => Err(Failure::usage(format!(
            "{place}: is not JSON: {error}; quote it for the shell as in '{{\"hello\":\"world\"}}', text as in '\"hello\"'"
        ))),
    }
}

fn read(file: &Path) -> Outcome<Vec<u8>> {
    let mut bytes = Vec::new();
    let done = if file == Path::new("-") {
        io::stdin().lock().read_to_end(&mut bytes).map(drop)
    } else {
        fs::read(file).map(|read| bytes = read)
    };
    done.map(|()| bytes).map_err(|error| Failure::file("cannot read", file, &error))
}

/// How an outcome reads; `stored`: whether the notification has a place in a log.
fn outcome_name(outcome: proto::Outcome, stored: bool) -> &'static str {
    match outcome {
        proto::Outcome::Confirmed => "confirmed",
        proto::Outcome::Stored => "stored",
        proto::Outcome::Accepted => "accepted",
        proto::Outcome::Dropped if stored => "dropped before any device confirmed it",
        proto::Outcome::Dropped => "dropped: no session took it, and it is not stored",
        proto::Outcome::Superseded => "superseded: one with the same collapse key took its place",
        proto::Outcome::Expired => "expired before any device confirmed it",
        proto::Outcome::Purged => "purged before any device confirmed it",
        proto::Outcome::Unspecified => "done",
    }
}

/// What became of a notification, in a line.
pub(super) fn report(outcome: proto::Outcome, id: &str, offset: u64, duplicate: bool, handed: &str) -> String {
    let mut text = format!("{}; id {}", outcome_name(outcome, offset > 0), output::clean(id));
    if offset > 0 {
        text.push_str(&format!(", offset {offset}"));
    }
    text.push_str(&format!(", handed to {handed}"));
    if duplicate {
        text.push_str("; an earlier call sent it");
    }
    text
}

/// Runs `pushgate send`.
pub async fn send(args: Send) -> Outcome {
    let wait = match args.wait {
        Wait::Stored => proto::Wait::Stored,
        Wait::Accepted => proto::Wait::Accepted,
        Wait::Confirmed => proto::Wait::Confirmed,
    };
    if args.wait_timeout.is_some() && !matches!(args.wait, Wait::Confirmed) {
        return Err(Failure::usage("--wait-timeout: is for --wait confirmed"));
    }
    let patience = match args.wait {
        Wait::Confirmed => args.wait_timeout.unwrap_or(limits::WAIT_TIMEOUT_DEFAULT).min(limits::WAIT_TIMEOUT_MAX),
        Wait::Stored | Wait::Accepted => Duration::ZERO,
    };
    let request = proto::SendToUserRequest {
        user_id: args.user,
        notification: Some(args.notification.into_proto()?),
        wait: wait.into(),
        wait_timeout: args.wait_timeout.map(proto_span),
    };
    let gateway = args.target.connect().await?;
    let answered = gateway.calls().send_to_user(gateway.patient(request, patience)).await;
    let answer = answered.map_err(|status| gateway.refused(&status))?.into_inner();
    if args.format.json {
        return output::document(&json::document("SendToUserResponse", &answer));
    }
    let handed = output::count(answer.sessions, "live session");
    output::line(&report(answer.outcome(), &answer.id, answer.offset, answer.duplicate, &handed))
}

/// Runs `pushgate broadcast`.
pub async fn broadcast(args: Broadcast) -> Outcome {
    let notification = args.notification.into_proto()?;
    if notification.payload.is_none() {
        return Err(Failure::usage("a broadcast needs its data: JSON, --data-file FILE or --binary-file FILE"));
    }
    let filter = args.filter.into_proto()?;
    let request =
        proto::BroadcastRequest { notification: Some(notification), filter: Some(filter), durable: args.durable };
    let gateway = args.target.connect().await?;
    let answered = gateway.calls().broadcast(gateway.request(request)).await;
    let answer = answered.map_err(|status| gateway.refused(&status))?.into_inner();
    if args.format.json {
        return output::document(&json::document("BroadcastResponse", &answer));
    }
    let handed = output::count(answer.sessions, "session");
    output::line(&report(answer.outcome(), &answer.id, answer.offset, answer.duplicate, &handed))
}

/// Runs `pushgate close`.
pub async fn close(args: Close) -> Outcome {
    let request = proto::CloseUserSessionsRequest {
        user_id: args.user,
        session_id: args.session.unwrap_or_default(),
        device: args.device,
        code: args.code,
        reason: args.reason,
        revoke_tokens: args.revoke_tokens,
    };
    let gateway = args.target.connect().await?;
    let answered = gateway.calls().close_user_sessions(gateway.request(request)).await;
    let answer = answered.map_err(|status| gateway.refused(&status))?.into_inner();
    if args.format.json {
        return output::document(&json::document("CloseUserSessionsResponse", &answer));
    }
    output::line(&format!("closed {}", output::count(answer.closed, "session")))
}
