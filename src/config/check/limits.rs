//! What bounds the public listener's clients and the admin API's callers: each value within what works.

use super::{DAY, Found, HOUR, MILLISECOND, SECOND};
use crate::{
    config::Config,
    types::{ByteSize, Count, Level},
};

/// What comes more often than this a second cannot be told apart.
const A_SECOND_MAX: Count = Count(100_000);
/// The most streams that HTTP/2 can number on one connection.
const STREAMS_MAX: u32 = 1 << 30;
/// What bounds a flood of resets bounds none above this.
const RESETS_MAX: u32 = 65_536;

pub(super) fn check(config: &Config, found: &mut Found) {
    let (limits, grpc) = (&config.limits, &config.grpc);
    for (key, count) in [
        ("limits.accepts_per_second", limits.accepts_per_second),
        ("limits.handshakes_per_second", limits.handshakes_per_second),
        ("limits.address_handshakes_per_second", limits.address_handshakes_per_second),
        ("limits.messages_per_second", limits.messages_per_second),
    ] {
        found.require(count <= A_SECOND_MAX, key, || {
            format!("`{}` is not allowed; allowed: 0 (no limit) to {}", count.0, A_SECOND_MAX.0)
        });
    }
    for (key, span, least, most) in [
        ("limits.handshake_timeout", limits.handshake_timeout, MILLISECOND, HOUR),
        ("grpc.keepalive_interval", grpc.keepalive_interval, SECOND, DAY),
        ("grpc.keepalive_timeout", grpc.keepalive_timeout, SECOND, HOUR),
    ] {
        found.require((least..=most).contains(&span), key, || not_allowed(span, least, most));
    }
    let (least, most) = (ByteSize::kib(1), ByteSize::kib(64));
    let size = limits.handshake_bytes;
    found.require((least..=most).contains(&size), "limits.handshake_bytes", || not_allowed(size, least, most));
    // What the largest message takes of the time is to be counted.
    let size = limits.bytes_per_second;
    let (least, most) = (ByteSize::kib(1).max(ByteSize(limits.message_bytes.0 / 1024)), ByteSize::gib(1));
    found.require(size.0 == 0 || (least..=most).contains(&size), "limits.bytes_per_second", || {
        format!("`{size}` is not allowed; allowed: 0B (no limit), or {least} to {most}")
    });
    let size = grpc.max_message_bytes;
    let (least, most) = (ByteSize::kib(64), ByteSize::gib(1));
    found.require((least..=most).contains(&size), "grpc.max_message_bytes", || not_allowed(size, least, most));
    let streams = grpc.max_streams;
    found.require((1..=STREAMS_MAX).contains(&streams), "grpc.max_streams", || not_allowed(streams, 1, STREAMS_MAX));
    for (key, resets) in
        [("grpc.max_pending_resets", grpc.max_pending_resets), ("grpc.max_error_resets", grpc.max_error_resets)]
    {
        found.require((1..=RESETS_MAX).contains(&resets), key, || not_allowed(resets, 1, RESETS_MAX));
    }
    let memory = limits.memory;
    found.require(matches!(memory, Level::Share(_) | Level::Size(_) | Level::Count(0)), "limits.memory", || {
        format!("`{memory}` has no unit; write a share of the machine's, such as \"80%\", or a size, such as \"4GiB\"")
    });
}

fn not_allowed<T: std::fmt::Display>(value: T, least: T, most: T) -> String {
    format!("`{value}` is not allowed; allowed: {least} to {most}")
}
