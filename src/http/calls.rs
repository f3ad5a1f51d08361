//! The JSON twin of the admin API: which call stands at which path, and its way from there to the answer. Each asks the
//! `api` floor for what gRPC asks it for, for the same caller, with the same deadline; who goes away cancels.

use http::{Method, Request, StatusCode, request::Parts};
use hyper::body::Incoming;
use prost::Message;
use serde::Serialize;
use tokio::sync::Semaphore;
use tonic::Code;

use super::{
    body::{self, Body, Room, Upload},
    guard,
    reply::{self, Refusal, Reply},
};
use crate::{
    api::{
        Api, ApiError, Caller,
        access::{self, Access},
        json, proto,
        scope::Scope,
    },
    clock::Instant,
    limits,
    trace::{Attributes, Value},
};

/// The calls of a listener.
pub struct Calls {
    api: Api,
    access: Option<Access>,
    room: Semaphore,
    /// For bodies.
    bodies: Room,
    /// Values of JSON that may be read at once.
    values: Semaphore,
}

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// `ListUsers`.
    Online,
    /// `GetStatus`.
    Stats,
    /// `ListSessions`.
    Sessions,
    /// `SendToUser`.
    Send,
    /// `Broadcast`.
    Broadcast,
    /// The clean-up.
    Cleanup,
}

impl Call {
    fn at(path: &str) -> Option<Self> {
        Some(match path {
            "/ws/online" => Call::Online,
            "/ws/stats" => Call::Stats,
            "/ws/sessions" => Call::Sessions,
            "/ws/send" => Call::Send,
            "/ws/broadcast" => Call::Broadcast,
            "/ws/cleanup" => Call::Cleanup,
            _ => return None,
        })
    }

    /// Whether it is asked by GET: it changes nothing, and has its fields in the query.
    fn reads(self) -> bool {
        matches!(self, Call::Online | Call::Stats | Call::Sessions)
    }

    fn scope(self) -> Scope {
        match self {
            Call::Online | Call::Stats | Call::Sessions => Scope::Read,
            Call::Send | Call::Broadcast => Scope::Send,
            Call::Cleanup => Scope::Admin,
        }
    }

    fn check_method(self, method: &Method) -> Result<(), Refusal> {
        match (self.reads(), method) {
            (true, &Method::GET | &Method::HEAD) | (false, &Method::POST) => Ok(()),
            (true, _) => Err(Refusal::method("GET, HEAD")),
            (false, _) => Err(Refusal::method("POST")),
        }
    }
}

impl Calls {
    /// The calls that `access` opens.
    pub fn new(api: Api, access: Option<Access>) -> Self {
        let (room, values) = (Semaphore::new(limits::OPS_CALLS_MAX), Semaphore::new(limits::OPS_VALUES_MAX));
        Self { api, access, room, bodies: Room::new(), values }
    }

    /// The largest body.
    fn body_bytes(&self) -> usize {
        let notifications = self.api.notification_bytes().saturating_mul(limits::OPS_BODY_NOTIFICATIONS);
        limits::OPS_BODY_BYTES_MIN.max(notifications)
    }

    /// Answers whatever is no probe.
    pub async fn answer(&self, request: Request<Incoming>) -> Reply {
        let (head, body) = request.into_parts();
        let mut upload = Upload::new(body, &head.headers);
        let path = head.uri.path();
        let trace = Call::at(path)
            .and_then(|_| self.api.tracer().begin(&head.headers, || format!("{} {path}", method_name(&head.method))));
        let work = async {
            match self.call(&head, &mut upload).await {
                Ok(reply) => reply,
                Err(refusal) => {
                    upload.discard().await;
                    refusal.reply(self.api.metrics())
                }
            }
        };
        let Some(trace) = trace else { return work.await };
        let reply = trace.within(work).await;
        let (path, status) = (path.to_owned(), reply.status());
        trace.end(|| attributes(&head.method, path, status), status.is_server_error().then_some("5xx"));
        reply
    }

    async fn call(&self, head: &Parts, upload: &mut Upload) -> Result<Reply, Refusal> {
        let call = Call::at(head.uri.path()).ok_or_else(|| {
            let text = "nothing is here; there are /livez, /readyz, /metrics, /ws/online, /ws/stats, /ws/sessions, \
                        /ws/send, /ws/broadcast and /ws/cleanup";
            Refusal::new(StatusCode::NOT_FOUND, Code::NotFound, "PATH_UNKNOWN", text)
        })?;
        call.check_method(&head.method)?;
        let access = self.access.as_ref().ok_or_else(|| {
            let text = "this listener can be reached from other machines, where calls need TLS, which it does not have; \
                        call at an ops.listen on loopback";
            Refusal::new(StatusCode::FORBIDDEN, Code::PermissionDenied, "TLS_NEEDED", text)
        })?;
        guard::check(&head.method, &head.headers, matches!(access, Access::Open(_)))?;
        let caller = access.caller(&head.headers)?;
        // Before anything is read for it; what is a line of the audit asks where its refusal is one, too.
        if call != Call::Cleanup {
            self.api.check_scope(&caller, call.scope())?;
        }
        let deadline = access::deadline(&head.headers)?;
        let _room = self.room.try_acquire().map_err(|_| {
            let message = format!("{} calls are under way", limits::OPS_CALLS_MAX);
            ApiError::Unavailable { reason: "TOO_MANY_CALLS", message }
        })?;
        let (query, caller) = (head.uri.query().unwrap_or_default(), &caller);
        let input = if call.reads() {
            if upload.is_expected() {
                return Err(ApiError::invalid("body", "must not be there: a GET has its fields in its query").into());
            }
            Input::Query(query)
        } else {
            body::check_type(&head.headers)?;
            if !query.is_empty() {
                return Err(ApiError::invalid("query", "must be empty: a POST has its fields in its body").into());
            }
            Input::Body(upload.read(self.body_bytes(), &self.bodies).await?, &self.values)
        };
        let done = access::in_time(deadline, self.perform(call, caller, input, deadline)).await?;
        Ok(done)
    }

    async fn perform(
        &self,
        call: Call,
        caller: &Caller,
        input: Input<'_>,
        deadline: Option<Instant>,
    ) -> Result<Reply, ApiError> {
        let api = &self.api;
        match call {
            Call::Online => {
                let request: proto::ListUsersRequest = input.parse("ListUsersRequest").await?;
                Ok(shown("ListUsersResponse", &api.list_users(caller, &request).await?))
            }
            Call::Stats => {
                let _: proto::GetStatusRequest = input.parse("GetStatusRequest").await?;
                Ok(shown("GetStatusResponse", &api.get_status(caller)?))
            }
            Call::Sessions => {
                let request: proto::ListSessionsRequest = input.parse("ListSessionsRequest").await?;
                Ok(shown("ListSessionsResponse", &api.list_sessions(caller, &request).await?))
            }
            Call::Send => {
                let request = input.parse("SendToUserRequest").await?;
                Ok(shown("SendToUserResponse", &api.send_to_user(caller, request, deadline).await?))
            }
            Call::Broadcast => {
                let request = input.parse("BroadcastRequest").await?;
                Ok(shown("BroadcastResponse", &api.broadcast(caller, request).await?))
            }
            Call::Cleanup => {
                // It takes nothing, which is what this message has.
                let _: proto::GetStatusRequest = input.parse("GetStatusRequest").await?;
                Ok(good(&api.clean_up(caller).await?))
            }
        }
    }
}

/// Where a call's fields are.
enum Input<'a> {
    Query(&'a str),
    /// A body, and whose turn it is to be read.
    Body(Body<'a>, &'a Semaphore),
}

impl Input<'_> {
    /// The message. What it was read from is let go of.
    async fn parse<M: Message + Default>(self, name: &str) -> Result<M, ApiError> {
        match self {
            Input::Query(query) => json::parse_query(name, query),
            Input::Body(body, turns) => {
                let text = json::survey(name, &body.bytes)?;
                // The semaphore is never closed.
                let _turn = turns.acquire_many(u32::try_from(text.values()).unwrap_or(u32::MAX)).await;
                text.read()
            }
        }
    }
}

/// What may stand in a span's name: a caller can think up any method.
fn method_name(method: &Method) -> &str {
    if matches!(*method, Method::GET | Method::HEAD | Method::POST) { method.as_str() } else { "_OTHER" }
}

/// As the semantic conventions have them ("HTTP server semantic conventions", 1.26).
fn attributes(method: &Method, route: String, status: StatusCode) -> Attributes {
    vec![
        ("http.request.method", Value::Text(method_name(method).to_owned())),
        ("http.route", Value::Text(route)),
        ("http.response.status_code", Value::Number(status.as_u16().into())),
    ]
}

fn shown(name: &str, answer: &impl Message) -> Reply {
    good(&json::document(name, answer))
}

fn good(answer: &impl Serialize) -> Reply {
    reply::json(StatusCode::OK, answer)
}
