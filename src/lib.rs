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
pub mod lifecycle;
pub mod metrics;
pub mod net;

// Floor 2: services.
pub mod auth;
pub mod store;

// Floor 3: one session, without a socket.
pub mod session;

// Floor 4: users, devices and their sessions.
pub mod hub;

// Floor 5: the admin API, whatever carries it.
pub mod api;

// Floor 6: transports.
pub mod grpc;
pub mod http;
pub mod ws;

// Floor 7: the application.
pub mod cli;
pub mod config;
pub mod dev;
pub mod server;
pub mod systemd;
pub mod telemetry;
