//! What few sessions ever do, in a box of its own.

use std::time::Duration;

use super::{bucket::Bucket, requests::Requests};
use crate::clock::Instant;

/// What few sessions ever do.
#[derive(Debug, Default)]
pub struct Rare {
    /// `limits.bad_messages`.
    pub bad_messages: PerMinute,
    /// `limits.reauths_per_minute`.
    pub reauths: PerMinute,
    /// Those that await a reply.
    pub requests: Requests,
    /// Lists of users.
    pub lists: Bucket,
    /// Topics joined and left.
    pub memberships: Bucket,
}

/// Counts within a minute that starts with its first count.
#[derive(Debug, Default)]
pub struct PerMinute {
    started: Option<Instant>,
    count: u32,
}

impl PerMinute {
    /// Counts one more; whether it is still within `limit`.
    pub fn admit(&mut self, limit: usize, now: Instant) -> bool {
        if self.started.is_none_or(|start| now.duration_since(start) >= Duration::from_secs(60)) {
            self.started = Some(now);
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        self.count as usize <= limit
    }
}
