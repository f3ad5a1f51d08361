//! A message to oneself through the whole way: a token signed, a session opened, a notification stored, delivered and
//! confirmed, and the confirmation seen among the events.

use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Map;
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use super::{Findings, Running};
use crate::{
    api::proto::{self, event::Event as Body, notification::Payload},
    cli::{
        failure::{Failure, Outcome},
        jwt::{KeyArgs, Signer},
        listen::{self, Connection, Envelope, Refusal, Socket},
        output::span,
    },
    config::Loaded,
    types::ListenAddress,
};

const CHECK: &str = "round trip";
/// Whose message it is.
const USER: &str = "pushgate-doctor";
/// The one device that he has, so that the store does not fill up with his.
const DEVICE: &str = "doctor";
/// How long the whole may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the token is good, and the notification worth delivering.
const TTL: Duration = Duration::from_secs(60);

/// Sends the message and follows it.
pub async fn check(loaded: &Loaded, running: &Running, findings: &mut Findings) {
    if !loaded.config.auth.keys.iter().any(|key| key.algorithm.is_hmac()) {
        let text =
            "not tried: auth.keys has no HMAC secret to sign a token with; try pushgate listen --token-file FILE";
        return findings.warn(CHECK, text);
    }
    let started = Instant::now();
    match tokio::time::timeout(TIMEOUT, travel(loaded, running)).await {
        Ok(Ok(())) => {
            let text = format!("connected, sent, received and confirmed in {}", span(started.elapsed()));
            findings.ok(CHECK, text);
        }
        Ok(Err(failure)) => findings.fail(CHECK, failure.message()),
        Err(_) => findings.fail(CHECK, format!("not done within {}; see the gateway's log", span(TIMEOUT))),
    }
}

async fn travel(loaded: &Loaded, running: &Running) -> Outcome {
    let gateway = &running.gateway;
    let token = Signer::configured(&KeyArgs::default(), loaded)?.sign(USER, TTL, Map::new())?;
    let url = address(loaded, running)?;
    let connection = Connection { url, device: Some(DEVICE.to_owned()), client_acks: true };
    let mut socket = listen::connect(&connection, &token).await.map_err(|refusal| match refusal {
        Refusal::Usage(text) | Refusal::NotNow(text) | Refusal::Final(text) => failure(text),
    })?;
    wait_for(&mut socket, |message| message.r#type == "auth_success").await?;

    let request =
        proto::StreamEventsRequest { types: vec!["notification_confirmed".to_owned()], user_id: USER.to_owned() };
    let answered = gateway.calls().stream_events(gateway.endless(request)).await;
    let mut events = answered.map_err(|status| gateway.refused(&status))?.into_inner();

    let id = Uuid::new_v4().to_string();
    let notification = proto::Notification {
        id: id.clone(),
        payload: Some(Payload::Json("\"are you well?\"".to_owned())),
        ttl: Some(prost_types::Duration { seconds: TTL.as_secs() as i64, nanos: 0 }),
        ..Default::default()
    };
    let request =
        proto::SendToUserRequest { user_id: USER.to_owned(), notification: Some(notification), ..Default::default() };
    gateway.calls().send_to_user(gateway.request(request)).await.map_err(|status| gateway.refused(&status))?;

    let offset = wait_for(&mut socket, |message| message.id.as_deref() == Some(&*id)).await?;
    let offset = offset.ok_or_else(|| failure("the message came, but was not stored"))?;
    let ack = format!("{{\"type\":\"ack\",\"offset\":{offset}}}");
    socket.send(Message::from(ack)).await.map_err(|error| failure(format!("the connection broke: {error}")))?;

    while let Some(event) = events.message().await.map_err(|status| gateway.refused(&status))? {
        if matches!(event.event, Some(Body::NotificationConfirmed(confirmed)) if confirmed.id == id) {
            listen::goodbye(&mut socket).await;
            return Ok(());
        }
    }
    Err(failure("the gateway ended its events before the message was confirmed"))
}

fn failure(text: impl Into<String>) -> Failure {
    Failure::new(super::EXIT_FAILURE, text)
}

/// Where clients connect: what the gateway says it has bound, else what the configuration says.
fn address(loaded: &Loaded, running: &Running) -> Outcome<String> {
    let bound = running.page.iter().flat_map(|page| &page.listeners).find(|one| one.name == "http");
    match bound.and_then(|bound| ListenAddress::parse(&bound.address).ok()) {
        Some(ListenAddress::Tcp { host, port }) => Ok(listen::url(&host, port, &loaded.config.http.path)),
        _ => listen::url_of(loaded),
    }
}

/// Reads up to the message that is waited for; its offset. Everything else is confirmed on the way: it is an earlier
/// doctor's.
async fn wait_for(socket: &mut Socket, wanted: impl Fn(&Envelope<'_>) -> bool) -> Outcome<Option<u64>> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => {
                let Ok(message) = serde_json::from_str::<Envelope<'_>>(&text) else { continue };
                if wanted(&message) {
                    return Ok(message.offset);
                }
                if message.r#type == "auth_failure" {
                    let (code, text) = (message.code.unwrap_or_default(), message.message.unwrap_or_default());
                    return Err(failure(format!("the gateway refuses a token of its own key: {code}: {text}")));
                }
            }
            Some(Ok(Message::Close(frame))) => {
                let (code, reason) = frame.map_or((1005, String::new()), |f| (f.code.into(), f.reason.to_string()));
                return Err(failure(format!("the gateway closed the connection: {code} {reason}")));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(failure(format!("the connection broke: {error}"))),
            None => return Err(failure("the gateway ended the connection")),
        }
    }
}
