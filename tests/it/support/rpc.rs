//! A caller of the admin API.

use std::{net::SocketAddr, path::Path};

use pushgate::api::proto::{
    BroadcastFilter, BroadcastRequest, BroadcastResponse, CloseUserSessionsRequest, Device, DrainRequest, Draining,
    Event, ForgetDeviceRequest, ForgetUserRequest, GetStatusRequest, GetStatusResponse, ListDevicesRequest,
    ListPendingRequest, ListPendingResponse, ListSessionsRequest, ListSessionsResponse, ListTopicsRequest,
    ListTopicsResponse, ListUsersRequest, ListUsersResponse, Notification, PublishRequest, PublishResponse,
    PurgePendingRequest, RevokeTokensRequest, SendToSessionRequest, SendToSessionResponse, SendToUserRequest,
    SendToUserResponse, SetLogFilterRequest, StreamEventsRequest, SubscribeRequest, SubscribeResponse, UndrainRequest,
    UndrainResponse, UnsubscribeRequest, Wait, event::Event as Body, gateway_client::GatewayClient,
    notification::Payload,
};
use serde_json::Value;
use tonic::{
    Request, Status, Streaming,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::soon;

/// Every scope; each has a token of its own, `<scope>-token`.
pub const SCOPES: [&str; 5] = ["send", "close", "read", "events", "admin"];

/// Adds a bearer token to every call.
#[derive(Clone)]
pub struct Bearer(Option<String>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        Ok(request)
    }
}

/// A connection to the admin API.
#[derive(Clone)]
pub struct Rpc {
    /// The generated client.
    pub client: GatewayClient<InterceptedService<Channel, Bearer>>,
    /// What it goes over, for other services.
    pub channel: Channel,
}

impl Rpc {
    /// Over TCP, with or without a token.
    pub async fn over_tcp(address: SocketAddr, token: Option<&str>) -> Self {
        Self::over(format!("http://{address}"), token).await
    }

    /// Over a Unix socket.
    pub async fn over_unix(path: &Path) -> Self {
        Self::over(format!("unix://{}", path.display()), None).await
    }

    async fn over(uri: String, token: Option<&str>) -> Self {
        let channel = soon("a connection", Endpoint::from_shared(uri).unwrap().connect()).await.unwrap();
        Self::through(channel, token)
    }

    /// Over a channel that is there.
    pub fn through(channel: Channel, token: Option<&str>) -> Self {
        let bearer = Bearer(token.map(str::to_owned));
        Self { client: GatewayClient::with_interceptor(channel.clone(), bearer), channel }
    }

    /// Sends JSON to a user and waits until it is stored.
    pub async fn send(&mut self, user: &str, data: impl Into<Value>) -> SendToUserResponse {
        self.send_to(user, notification(data)).await
    }

    /// Sends a notification to a user and waits until it is stored.
    pub async fn send_to(&mut self, user: &str, notification: Notification) -> SendToUserResponse {
        self.try_send(request(user, notification)).await.unwrap()
    }

    /// Sends.
    pub async fn try_send(&mut self, request: SendToUserRequest) -> Result<SendToUserResponse, Status> {
        Ok(soon("an answer", self.client.send_to_user(request)).await?.into_inner())
    }

    /// Sends JSON to all.
    pub async fn broadcast(&mut self, data: impl Into<Value>) -> BroadcastResponse {
        self.try_broadcast(BroadcastRequest { notification: Some(notification(data)), ..Default::default() })
            .await
            .unwrap()
    }

    /// Broadcasts.
    pub async fn try_broadcast(&mut self, request: BroadcastRequest) -> Result<BroadcastResponse, Status> {
        Ok(soon("an answer", self.client.broadcast(request)).await?.into_inner())
    }

    /// Closes sessions; how many.
    pub async fn close(&mut self, request: CloseUserSessionsRequest) -> Result<u32, Status> {
        Ok(soon("an answer", self.client.close_user_sessions(request)).await?.into_inner().closed)
    }

    /// Makes tokens void; how many sessions were closed.
    pub async fn revoke(&mut self, request: RevokeTokensRequest) -> Result<u32, Status> {
        Ok(soon("an answer", self.client.revoke_tokens(request)).await?.into_inner().closed)
    }

    /// The node's page.
    pub async fn status(&mut self) -> GetStatusResponse {
        soon("an answer", self.client.get_status(GetStatusRequest {})).await.unwrap().into_inner()
    }

    /// How often something went wrong so far, by its name.
    pub async fn errors(&mut self, name: &str) -> u64 {
        *self.status().await.errors.get(name).unwrap_or_else(|| panic!("`{name}` is not counted"))
    }

    /// A page of sessions.
    pub async fn list(&mut self, request: ListSessionsRequest) -> Result<ListSessionsResponse, Status> {
        Ok(soon("an answer", self.client.list_sessions(request)).await?.into_inner())
    }

    /// A page of users who are online.
    pub async fn users(&mut self, request: ListUsersRequest) -> Result<ListUsersResponse, Status> {
        Ok(soon("an answer", self.client.list_users(request)).await?.into_inner())
    }

    /// Sets the log's filter; what it was.
    pub async fn log_filter(&mut self, filter: &str) -> Result<String, Status> {
        let request = SetLogFilterRequest { filter: filter.to_owned() };
        Ok(soon("an answer", self.client.set_log_filter(request)).await?.into_inner().previous)
    }

    /// A page of what waits.
    pub async fn pending(&mut self, request: ListPendingRequest) -> Result<ListPendingResponse, Status> {
        Ok(soon("an answer", self.client.list_pending(request)).await?.into_inner())
    }

    /// Clears what waits; how many.
    pub async fn purge(&mut self, request: PurgePendingRequest) -> Result<u32, Status> {
        Ok(soon("an answer", self.client.purge_pending(request)).await?.into_inner().purged)
    }

    /// The devices of a user.
    pub async fn devices(&mut self, user: &str) -> Vec<Device> {
        let request = ListDevicesRequest { user_id: user.to_owned() };
        soon("an answer", self.client.list_devices(request)).await.unwrap().into_inner().devices
    }

    /// Forgets a device.
    pub async fn forget_device(&mut self, user: &str, device: Option<&str>) -> Result<(), Status> {
        let request = ForgetDeviceRequest { user_id: user.to_owned(), device: device.map(str::to_owned) };
        soon("an answer", self.client.forget_device(request)).await.map(drop)
    }

    /// Forgets a user; how many notifications and devices.
    pub async fn forget_user(&mut self, user: &str) -> (u32, u32) {
        let request = ForgetUserRequest { user_id: user.to_owned() };
        let answer = soon("an answer", self.client.forget_user(request)).await.unwrap().into_inner();
        (answer.notifications, answer.devices)
    }

    /// Publishes JSON to a topic; to how many sessions.
    pub async fn publish(&mut self, topic: &str, data: impl Into<Value>) -> u32 {
        let request = PublishRequest { topic: topic.to_owned(), notification: Some(notification(data)) };
        self.try_publish(request).await.unwrap().sessions
    }

    /// Publishes.
    pub async fn try_publish(&mut self, request: PublishRequest) -> Result<PublishResponse, Status> {
        Ok(soon("an answer", self.client.publish(request)).await?.into_inner())
    }

    /// Subscribes sessions.
    pub async fn subscribe(&mut self, request: SubscribeRequest) -> Result<SubscribeResponse, Status> {
        Ok(soon("an answer", self.client.subscribe(request)).await?.into_inner())
    }

    /// Takes sessions out of a topic; how many.
    pub async fn unsubscribe(&mut self, request: UnsubscribeRequest) -> Result<u32, Status> {
        Ok(soon("an answer", self.client.unsubscribe(request)).await?.into_inner().changed)
    }

    /// A page of topics.
    pub async fn topics(&mut self, request: ListTopicsRequest) -> Result<ListTopicsResponse, Status> {
        Ok(soon("an answer", self.client.list_topics(request)).await?.into_inner())
    }

    /// Everything that happens from now on; returns once the gateway listens for it.
    pub async fn events(&mut self, types: &[&str], user: &str) -> Events {
        let request = StreamEventsRequest {
            types: types.iter().map(|name| (*name).to_owned()).collect(),
            user_id: user.to_owned(),
            ..Default::default()
        };
        self.stream(request).await.unwrap()
    }

    /// The same, asked for in full.
    pub async fn stream(&mut self, request: StreamEventsRequest) -> Result<Events, Status> {
        Ok(Events(soon("the stream", self.client.stream_events(request)).await?.into_inner()))
    }

    /// Sends to one session.
    pub async fn send_to_session(&mut self, request: SendToSessionRequest) -> Result<SendToSessionResponse, Status> {
        Ok(soon("an answer", self.client.send_to_session(request)).await?.into_inner())
    }
}

impl Rpc {
    /// Takes the node out of service, or joins a drain.
    pub async fn drain(&mut self, request: DrainRequest) -> Result<Streaming<Draining>, Status> {
        Ok(soon("the stream", self.client.drain(request)).await?.into_inner())
    }

    /// Takes it back into service.
    pub async fn undrain(&mut self) -> Result<UndrainResponse, Status> {
        Ok(soon("an answer", self.client.undrain(UndrainRequest {})).await?.into_inner())
    }
}

/// A stream of events.
pub struct Events(pub Streaming<Event>);

impl Events {
    /// The next event.
    pub async fn next(&mut self) -> Event {
        soon("an event", self.0.message()).await.unwrap().expect("an event, and not the end")
    }

    /// What the next event says.
    pub async fn body(&mut self) -> Body {
        self.next().await.event.unwrap()
    }
}

/// A notification of JSON text.
pub fn notification(data: impl Into<Value>) -> Notification {
    Notification { payload: Some(Payload::Json(data.into().to_string())), ..Default::default() }
}

/// A request to send that waits until it is stored.
pub fn request(user: &str, notification: Notification) -> SendToUserRequest {
    SendToUserRequest { user_id: user.to_owned(), notification: Some(notification), ..Default::default() }
}

/// A notification of JSON text with an id of its caller's.
pub fn own(id: &str, data: impl Into<Value>) -> Notification {
    Notification { id: id.to_owned(), ..notification(data) }
}

/// A request to send that waits for confirmation, so many milliseconds.
pub fn confirmed(user: &str, notification: Notification, timeout_ms: i32) -> SendToUserRequest {
    let wait_timeout = ttl(i64::from(timeout_ms / 1000), timeout_ms % 1000 * 1_000_000);
    SendToUserRequest { wait: Wait::Confirmed.into(), wait_timeout, ..request(user, notification) }
}

/// A durable broadcast that leaves out some users.
pub fn durable(notification: Notification, exclude: &[&str]) -> BroadcastRequest {
    let exclude_user_ids = exclude.iter().map(|user| (*user).to_owned()).collect();
    let filter = Some(BroadcastFilter { exclude_user_ids, ..Default::default() });
    BroadcastRequest { notification: Some(notification), filter, durable: true }
}

/// A time to live.
pub fn ttl(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}
