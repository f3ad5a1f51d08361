//! The words of the house: validated newtypes and plain data, parsed once at the edge and trusted inside.
//!
//! Nothing here does I/O, reads a clock or knows a transport.

mod address;
mod alert;
mod claims;
mod drain;
mod event;
mod glob;
mod ids;
mod network;
mod notification;
mod origin;
mod revocation;
mod secret;
mod share;
mod tls;
mod topic;
mod units;

pub use address::{InvalidAddress, ListenAddress};
pub use alert::{Alert, AlertName};
pub use claims::Claims;
pub use drain::{DrainProgress, DrainState};
pub use event::{ClosedBy, DropReason, Event, EventBody, ForgetReason, Forwarded, SubscriptionCause};
pub use glob::Glob;
pub use ids::{CollapseKey, Device, InvalidId, LogId, NotificationId, Offset, SessionId, TypeName, UserId};
pub use network::{InvalidNetwork, Network, shown_address};
pub use notification::{Digest, Notification, Payload, Rfc3339, UnixMillis};
pub use origin::{InvalidOrigin, OriginPattern};
pub use revocation::{Revocation, RevocationId, TokenId, TokenMark};
pub use secret::Secret;
pub use share::{InvalidShare, Share};
pub use tls::TlsFiles;
pub use topic::Topic;
pub use units::{ByteSize, Count, InvalidUnit, Level, Span};
