//! The sections `[presence]`, `[events]` and `[clients]`.

use serde::{Deserialize, Serialize};

use crate::types::{Count, Span};

/// The section `[presence]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Presence {
    /// How long a user stays online after his last session, so that a reconnect makes no noise.
    pub linger: Span,
    /// The most users that a client's list shows.
    pub max_listed: Count,
}

impl Default for Presence {
    fn default() -> Self {
        Self { linger: Span::secs(5), max_listed: Count(1000) }
    }
}

/// The section `[events]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Events {
    /// The events that are kept for consumers that are behind.
    pub buffer: u32,
}

impl Default for Events {
    fn default() -> Self {
        Self { buffer: 65_536 }
    }
}

/// The section `[clients]`: what clients may do on their own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Clients {
    /// The types that go to the services as events; `*` for all.
    pub forward: Vec<String>,
    /// How long a service has to answer.
    pub reply_timeout: Span,
}

impl Clients {
    /// Whether messages of this type go to the services.
    pub fn forwards(&self, type_name: &str) -> bool {
        self.forward.iter().any(|allowed| allowed == "*" || allowed == type_name)
    }
}

impl Default for Clients {
    fn default() -> Self {
        Self { forward: Vec::new(), reply_timeout: Span::secs(30) }
    }
}
