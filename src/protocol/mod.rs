//! The client protocol `pushgate.v1`: what a client may say, what it hears, and the frames that carry both.

pub mod ack_mode;
pub mod auth_code;
pub mod client;
pub mod close;
pub mod error_code;
pub mod forwarded;
pub mod frame;
pub mod proxy;
pub mod server;
pub mod topics;
pub mod traceparent;

/// Whether a `type` belongs to the gateway itself, so that neither a notification nor a client may use it.
pub fn is_reserved_type(name: &str) -> bool {
    RESERVED_TYPES.binary_search(&name).is_ok()
}

/// Every type that the gateway sends of its own or answers, in byte order.
const RESERVED_TYPES: &[&str] = &[
    "ack",
    "auth",
    "auth_failure",
    "auth_success",
    "draining",
    "echo",
    "echo_response",
    "error",
    "join_room",
    "leave_room",
    "ping",
    "pong",
    "reply",
    "subscribe",
    "subscribed",
    "token_expiring",
    "unsubscribe",
    "unsubscribed",
    "user_joined",
    "user_left",
    "user_list",
];
