//! Abuse: what a stranger, or a client with a good token and bad manners, can do to the daemon from outside. It is the built
//! binary, a child process, with its defaults but for the times, which are short here so that their ends are seen.
//!
//! Each case does its worst twice. After the first time, which warms everything up, it is noted what the daemon has; after
//! the second it must have no more: the same descriptors, memory within a tenth. Meanwhile good sessions get their messages:
//! each one once and in order, and none of them is closed. And the log is not flooded.

#[path = "../it/support/mod.rs"]
#[allow(dead_code, reason = "what the tests over sockets share, of which this needs a part")]
mod support;

mod calls;
mod ground;
mod handshakes;
mod sessions;
mod tokens;
