//! A message to oneself through the whole way: a token signed, a session opened, a notification stored, delivered and
//! confirmed, and the confirmation seen among the events.

use std::time::{Duration, Instant};

use http::Uri;
use serde_json::Map;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use uuid::Uuid;

use super::{Findings, Running};
use crate::{
    api::proto::{self, event::Event as Body, notification::Payload},
    cli::{
        failure::{Failure, Outcome},
        jwt::{KeyArgs, Signer},
        listen,
        output::{clean, span},
        secure::{Own, Terms, Trust},
    },
    client::{Client, ConnectError, GiveUp, Message},
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
pub async fn check(loaded: &Loaded, running: &Running, trust: &Trust, findings: &mut Findings) {
    if !loaded.config.auth.keys.iter().any(|key| key.algorithm.is_hmac()) {
        let text =
            "not tried: auth.keys has no HMAC secret to sign a token with; try pushgate listen --token-file FILE";
        return findings.warn(CHECK, text);
    }
    let started = Instant::now();
    match tokio::time::timeout(TIMEOUT, travel(loaded, running, trust)).await {
        Ok(Ok(())) => {
            let text = format!("connected, sent, received and confirmed in {}", span(started.elapsed()));
            findings.ok(CHECK, text);
        }
        Ok(Err(failure)) => findings.fail(CHECK, failure.message()),
        Err(_) => findings.fail(CHECK, format!("not done within {}; see the gateway's log", span(TIMEOUT))),
    }
}

async fn travel(loaded: &Loaded, running: &Running, trust: &Trust) -> Outcome {
    let gateway = &running.gateway;
    let token = Signer::configured(&KeyArgs::default(), loaded)?.sign(USER, TTL, Map::new())?;
    let url = address(loaded, running)?;
    let (came, mut messages) = mpsc::unbounded_channel();
    let gone = came.clone();
    let mut builder = Client::builder(&url);
    if loaded.config.http.tls.is_set() {
        let host = url.parse::<Uri>().ok().and_then(|url| url.host().map(str::to_owned)).unwrap_or_default();
        let terms = Terms::given(trust, &Own::default())?;
        let terms = terms.and_files(&loaded.config.http.tls, host.trim_matches(['[', ']']));
        builder = terms.roots.into_iter().fold(builder, |builder, pem| builder.root_certificates(pem));
        builder = terms.server_name.into_iter().fold(builder, |builder, name| builder.server_name(name));
    }
    let client = builder
        .token(token)
        .device(DEVICE)
        .auto_reconnect(false)
        // Whatever comes is confirmed: what is not waited for is an earlier doctor's.
        .on_message(move |message| {
            let told = came.send(Ok(message)).map_err(Into::into);
            async { told }
        })
        .on_give_up(move |why| {
            let _ = gone.send(Err(why.clone()));
        })
        .connect()
        .await
        .map_err(|error| refused(&error))?;

    let request = proto::StreamEventsRequest {
        types: vec!["notification_confirmed".to_owned()],
        user_id: USER.to_owned(),
        ..Default::default()
    };
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

    if wait_for(&mut messages, &id).await?.offset().is_none() {
        return Err(failure("the message came, but was not stored"));
    }

    while let Some(event) = events.message().await.map_err(|status| gateway.refused(&status))? {
        if matches!(event.event, Some(Body::NotificationConfirmed(confirmed)) if confirmed.id == id) {
            client.close().await;
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
        Some(ListenAddress::Tcp { host, port }) => Ok(listen::url(&host, port, &loaded.config.http)),
        _ => listen::url_of(loaded),
    }
}

/// Why there is no session.
fn refused(error: &ConnectError) -> Failure {
    match error {
        ConnectError::Network { .. } | ConnectError::Timeout { .. } => {
            failure(format!("{error}; is the gateway running (pushgate health), and does it listen there?"))
        }
        ConnectError::Refused(why) => {
            failure(format!("the gateway refuses a token of its own key: {}", clean(&why.to_string())))
        }
        ConnectError::Closed { .. } => {
            failure(format!("the gateway closed the connection: {}", clean(&error.to_string())))
        }
        _ => failure(clean(&error.to_string())),
    }
}

/// The message with that id.
async fn wait_for(messages: &mut UnboundedReceiver<Result<Message, GiveUp>>, id: &str) -> Outcome<Message> {
    while let Some(came) = messages.recv().await {
        match came {
            Ok(message) if message.id() == Some(id) => return Ok(message),
            Ok(_) => {}
            Err(why) => return Err(failure(format!("the gateway closed the connection: {}", clean(&why.to_string())))),
        }
    }
    Err(failure("the gateway ended the connection"))
}
