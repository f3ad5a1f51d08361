//! The gateway as its clients and callers see it: in process on port 0, or as a child process, with real sockets, real
//! signed tokens and a real store. One file a capability; what they share is in `support`.
//!
//! Nothing here sleeps to synchronise: a test waits for the message, event or count it is about, under a deadline.

mod layering;
mod support;

mod bad_input;
mod child;
mod clocks;
mod delivery;
mod events;
mod grpc;
mod lists;
mod logs;
mod messages;
mod opening;
mod slow;
mod stop;
