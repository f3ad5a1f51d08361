//! The gateway as its clients and callers see it: in process on port 0, or as a child process, with real sockets, real
//! signed tokens and a real store. One file a capability; what they share is in `support`.
//!
//! Nothing here sleeps to synchronise: a test waits for the message, event or count it is about, under a deadline.

mod layering;
mod support;

mod addresses;
mod alerts;
mod audit;
mod auth_guests;
mod auth_keys;
mod auth_revoked;
mod auth_scopes;
mod bad_input;
mod batch;
mod bodies;
mod broadcast_log;
mod child;
mod client;
mod clocks;
mod compression;
mod crowd;
mod delivery;
mod drain;
mod ends;
mod events;
mod filters;
mod grpc;
mod http;
mod idempotency;
mod isolation;
mod limits;
mod lists;
mod logs;
mod mailbox;
mod messages;
mod metrics;
mod opening;
#[cfg(feature = "otlp")]
mod otlp;
mod outcomes;
mod pages;
mod places;
mod reload;
mod rfc6455;
mod services;
mod slow;
mod stop;
mod talk;
mod tls;
