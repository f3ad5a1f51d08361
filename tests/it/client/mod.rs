//! The client library against the gateway and against servers that are played: one file a concern.

mod closing;
mod delivery;
mod ends;
mod example;
mod readers;
mod refused;
mod requests;
mod slow;
mod support;
mod tls;
mod tokens;
