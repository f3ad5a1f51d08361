//! The sections `[delivery]` and `[heartbeat]`.

use serde::{Deserialize, Serialize};

use crate::{
    protocol::ack_mode::AckMode,
    types::{Count, Span},
};

/// The section `[delivery]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Delivery {
    /// The most notifications in flight, unconfirmed, on a session.
    pub window: u32,
    /// What confirms a notification for a client that says nothing.
    pub ack_mode: AckMode,
    /// How long the oldest may stay unconfirmed before the session is closed with 4408.
    pub confirm_timeout: Span,
    /// The same for `client` mode, and 4410.
    pub ack_timeout: Span,
    /// How often a notification is tried before it is given up. 0: for as long as it lives.
    pub max_attempts: Count,
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            window: 256,
            ack_mode: AckMode::Transport,
            confirm_timeout: Span::secs(30),
            ack_timeout: Span::secs(300),
            max_attempts: Count(0),
        }
    }
}

/// The section `[heartbeat]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Heartbeat {
    /// How long a session may be silent before it is pinged.
    pub interval: Span,
    /// How long it then has to say something before it is closed with 4408.
    pub timeout: Span,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { interval: Span::secs(30), timeout: Span::secs(10) }
    }
}
