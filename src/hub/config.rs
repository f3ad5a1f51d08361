//! The sections `[presence]`, `[events]`, `[clients]`, `[drain]` and `[[topics]]`.

use serde::{Deserialize, Serialize};

use crate::types::{Count, Span};

/// The section `[presence]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Presence {
    /// How long a user stays online after his last session, so that a reconnect makes no noise.
    pub linger: Span,
    /// The most users of a topic that clients are told of one by one; above that they are only counted.
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

/// The section `[drain]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// Sessions that a drain or a stop closes in a second, where nobody says how long it may take.
    pub rate: u32,
}

impl Default for Drain {
    fn default() -> Self {
        Self { rate: 1000 }
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
    /// Who may send `message` and `typing` to a user: `*`, or a claim and its text, such as `role=agent`.
    pub message: Vec<String>,
    /// Whether a `message` is stored for the devices of its user that are away.
    pub message_durable: bool,
    /// Such messages of one user a minute; further ones are refused.
    pub message_durable_per_minute: Count,
}

impl Clients {
    /// Whether messages of this type go to the services.
    pub fn forwards(&self, type_name: &str) -> bool {
        self.forward.iter().any(|allowed| allowed == "*" || allowed == type_name)
    }
}

impl Default for Clients {
    fn default() -> Self {
        Self {
            forward: Vec::new(),
            reply_timeout: Span::secs(30),
            message: Vec::new(),
            message_durable: false,
            message_durable_per_minute: Count(120),
        }
    }
}

/// One of `[[topics]]`: what clients may do on their own with the topics whose names it matches. The first that matches
/// decides. Grants are `*`, or a claim and its text, such as `role=admin`; none is nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TopicRule {
    /// The names: `*` is any run of characters, `{sub}` the client's user id, `{name}` a claim of his token.
    pub pattern: String,
    /// Who may subscribe.
    #[serde(default)]
    pub subscribe: Vec<String>,
    /// Who may publish, and be typing.
    #[serde(default)]
    pub publish: Vec<String>,
    /// Who may list those who are in it, and is told of who comes and goes.
    #[serde(default)]
    pub presence: Vec<String>,
    /// Whether what is published is kept for members that are away.
    #[serde(default)]
    pub durable: bool,
    /// How long that is kept; unset: `store.ttl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Span>,
    /// How much of it is kept at most, of each topic; then the oldest goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_records: Option<u32>,
}
