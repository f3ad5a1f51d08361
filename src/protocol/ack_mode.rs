//! What counts as a notification's confirmation.

use serde::{Deserialize, Serialize};

/// What confirms a notification on a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AckMode {
    /// The pong to a ping sent behind it: the peer's WebSocket stack has received it. Needs no client code.
    #[default]
    Transport,
    /// The client's `ack`: it has processed it.
    Client,
}

impl AckMode {
    /// Its name in the protocol and in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            AckMode::Transport => "transport",
            AckMode::Client => "client",
        }
    }

    /// Reads a client's choice; `None` for a name that is not one.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "transport" => Some(AckMode::Transport),
            "client" => Some(AckMode::Client),
            _ => None,
        }
    }
}
