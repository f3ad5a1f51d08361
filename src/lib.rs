//! Pushgate: a realtime push gateway. Internal services tell it over gRPC what a user should see; it brings that to
//! every device of the user over WebSockets, at once where he is connected, and when he comes back where he is not.
//!
//! # A tour
//!
//! From the ground up; a module uses the floors below it and none of its own (a test reads the source and sees to it).
//!
//! 0. **Data and codecs.** [`types`] are identifiers, notifications and events, checked where they enter. [`limits`] is
//!    every bound in one place. [`protocol`] is what clients say and hear, and the WebSocket frames that carry it.
//! 1. **Ground services.** [`clock`], [`metrics`], [`lifecycle`], [`net`] for listening, and [`trace`] for who asks where the
//!    time of a call went.
//! 2. **Services.** [`store`] keeps what has not been received, [`auth`] makes an identity of a token.
//! 3. **[`session`]**: one session without a socket. What it stands to its user's log ([`session::Flow`]), what is
//!    unconfirmed, when it must act.
//! 4. **[`hub`]**: users, their devices and sessions. [`hub::Hub::send`] is where a notification gets its place, and the
//!    only order in which store, outboxes and events come.
//! 5. **[`api`]**: what services may ask, whoever carries the question.
//! 6. **Transports.** [`ws`] for clients, [`grpc`] for services, [`http`] for those that do not speak it, and for probes; [`otlp`] for traces. And from outside: `client`, what an
//!    application speaks to a gateway with (the cargo feature `client`), and [`stress`], a load on both.
//! 7. **The application.** [`config`], [`telemetry`], [`server`], which starts and stops it all in order, [`systemd`],
//!    [`dev`] for a first look, and [`cli`].
//!
//! To follow one notification, read [`api::Api::send_to_user`], [`hub::Hub::send`], [`store::Store::stage_in`]; then
//! [`hub::Hub::plan_pull`] for whoever was not there. To see a client come and go, read [`ws`], [`hub::Hub::attach`] and
//! [`hub::Hub::detach`]. To embed a gateway in a test, [`server::Server::bind`] it to port 0.
//!
//! `ARCHITECTURE.md` has the invariants, the locks and the reasons.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

// Floor 0: data and codecs only.
pub mod limits;
pub mod protocol;
pub mod types;

#[cfg(test)]
mod planted;

// Floor 1: ground services.
pub mod clock;
pub mod lifecycle;
pub mod metrics;
pub mod net;
pub mod trace;

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
#[cfg(feature = "client")]
pub mod client;
pub mod grpc;
pub mod http;
pub mod otlp;
pub mod stress;
pub mod ws;

// Floor 7: the application.
#[cfg(feature = "client")]
pub mod cli;
pub mod config;
pub mod dev;
pub mod server;
pub mod systemd;
pub mod telemetry;

/// The programs in README.md are compiled.
#[cfg(all(doctest, feature = "client"))]
#[doc = include_str!("../README.md")]
struct Readme;
