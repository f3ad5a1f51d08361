//! The client library against the gateway and against servers that are played: one file a concern.

mod delivery;
mod ends;
mod example;
mod refused;
mod requests;
mod slow;
mod support;
mod tls;
mod tokens;
