//! Alerts: what a node says of itself when something has gone too far for too long, and when it is over.

use super::UnixMillis;

macro_rules! names {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What is watched. The names are those of the keys of `[alerts]`, and what callers see.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum AlertName {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl AlertName {
            /// All of them.
            pub const ALL: &'static [AlertName] = &[$(AlertName::$variant,)+];

            /// The name callers see.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(AlertName::$variant => $name,)+
                }
            }
        }
    };
}

names! {
    /// Refusals and failures a second.
    ErrorRate = "error_rate",
    /// Connections to the public listener.
    Connections = "connections",
    /// Stored notifications that wait.
    PendingCount = "pending_count",
    /// Their bytes, as accounted.
    PendingBytes = "pending_bytes",
    /// The store's files.
    Disk = "disk",
    /// What is left of the store's disk. Fires below its threshold.
    DiskFree = "disk_free",
    /// The events by which the slowest consumer is behind.
    EventLag = "event_lag",
    /// How long all but one in a hundred notifications take from the hand-over to their confirmation.
    ConfirmP99 = "confirm_p99",
    /// How long all but one in a hundred requests of clients wait for a service's reply.
    ReplyP99 = "reply_p99",
    /// How long the certificate is still valid that expires first. Fires below its threshold.
    CertificateExpiry = "certificate_expiry",
    /// Listeners whose files of certificates and keys hold what cannot be used; they go on with what they have.
    CertificateReload = "certificate_reload",
}

/// An alert that fires or has cleared.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// What it is about.
    pub name: AlertName,
    /// Whether it fires; else it has cleared.
    pub firing: bool,
    /// What was measured: a number, bytes, or seconds.
    pub value: f64,
    /// Where it fires, in the same unit.
    pub threshold: f64,
    /// The same in words, with the unit.
    pub text: Box<str>,
    /// When it began to fire.
    pub since: UnixMillis,
}
