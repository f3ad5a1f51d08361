//! Pushgate: a realtime push gateway. Internal services tell it over gRPC what a user should see; it brings that to
//! every device of the user over WebSockets, at once where he is connected, and when he comes back where he is not.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

// Floor 0: data and codecs only.
pub mod limits;
pub mod protocol;
pub mod types;

// Floor 1: ground services.
pub mod clock;

// Floor 2: services.
pub mod auth;
// Floor 2: services; each knows floors 0 and 1 and no other.
pub mod store;
