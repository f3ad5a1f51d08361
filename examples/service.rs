//! A service behind the gateway: clients ask it for the state of an order, and it answers.
//!
//! ```sh
//! PUSHGATE_CLIENTS__FORWARD='["order.status"]' cargo run -- serve --dev    # in one terminal; it prints a token for alice
//! cargo run --example service                                              # in another, or in several
//! PUSHGATE_REQUEST=order.status cargo run --example client -- ws://127.0.0.1:7000/ws TOKEN    # in a third
//! ```
//!
//! Replicas share the requests, for they name the same group. Where the gateway is, is the first argument or
//! `PUSHGATE_GRPC` (`HOST:PORT`); a token with the scopes `events` and `send` is in `PUSHGATE_ADMIN_TOKEN`, where one is needed.

use std::{env, time::Duration};

use pushgate::api::proto::{
    MessageReceived, Notification, SendToSessionRequest, StreamEventsRequest, event::Event,
    gateway_client::GatewayClient, message_received::Payload as Received, notification::Payload,
};
use serde_json::{Value, json};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

/// Whatever goes wrong.
type Error = Box<dyn std::error::Error + Send + Sync>;
type Gateway = GatewayClient<InterceptedService<Channel, Bearer>>;

/// Brings the token to every call.
#[derive(Clone)]
struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let address = env::args().nth(1).or_else(|| env::var("PUSHGATE_GRPC").ok());
    let address = address.unwrap_or_else(|| "127.0.0.1:7001".to_owned());
    let token = env::var("PUSHGATE_ADMIN_TOKEN").ok().map(|token| format!("Bearer {token}").parse()).transpose()?;
    // Asked now and then whether it is there still, so that a gateway that vanished is noticed.
    let endpoint =
        Endpoint::from_shared(format!("http://{address}"))?.http2_keep_alive_interval(Duration::from_secs(20));
    let endpoint = endpoint.keep_alive_while_idle(true);
    let gateway = GatewayClient::with_interceptor(endpoint.connect_lazy(), Bearer(token));
    loop {
        tokio::select! {
            ended = serve(gateway.clone()) => match ended {
                // The gateway restarts, or is not there yet. What was asked meanwhile was told `no_service`.
                Err(status) if status.code() == Code::Unavailable => println!("no gateway: {}", status.message()),
                Err(status) => return Err(status.into()),
                Ok(()) => println!("the stream ended"),
            },
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Answers what is asked, until the stream ends.
async fn serve(mut gateway: Gateway) -> Result<(), Status> {
    let request = StreamEventsRequest {
        types: vec!["message_received".to_owned()],
        message_types: vec!["order.status".to_owned()],
        group: "orders".to_owned(),
        raw_json: true,
        ..Default::default()
    };
    let mut events = gateway.stream_events(request).await?.into_inner();
    println!("listening");
    while let Some(event) = events.message().await? {
        match event.event {
            // Each in a task of its own: a slow answer holds up no other.
            Some(Event::MessageReceived(message)) => {
                let gateway = gateway.clone();
                tokio::spawn(async move {
                    if let Err(status) = answer(gateway, &message).await {
                        println!("{} was not answered: {}", message.id, status.message());
                    }
                });
            }
            Some(Event::EventsLost(lost)) => println!("too slow: {} requests run into their timeout", lost.count),
            _ => {}
        }
    }
    Ok(())
}

async fn answer(mut gateway: Gateway, message: &MessageReceived) -> Result<(), Status> {
    let asked: Value = match &message.payload {
        Some(Received::Json(text)) => serde_json::from_str(text).unwrap_or_default(),
        _ => Value::Null,
    };
    println!("{} asks for {asked}", message.user_id);
    // Who asks is known from his token, whatever the message says.
    let state = json!({ "order": asked["order"], "of": message.user_id, "state": "shipped" });
    // Without an id the client awaits no answer.
    if message.id.is_empty() {
        return Ok(());
    }
    let request = SendToSessionRequest {
        session_id: message.session_id.clone(),
        notification: Some(Notification { payload: Some(Payload::Json(state.to_string())), ..Default::default() }),
        reply_to: message.id.clone(),
    };
    match gateway.send_to_session(request).await {
        // He left before he was answered.
        Err(status) if status.code() == Code::NotFound => Ok(()),
        answered => answered.map(drop),
    }
}
