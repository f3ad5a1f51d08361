//! What the configuration says of sessions.

use std::time::Duration;

use super::{
    Rates,
    config::{Delivery, Heartbeat},
};
use crate::{limits::Limits, protocol::ack_mode::AckMode, types::Count};

/// What all sessions of a node have in common.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `[delivery]`.
    pub delivery: Delivery,
    /// `[heartbeat]`.
    pub heartbeat: Heartbeat,
    /// `limits.bad_messages`.
    pub bad_messages: Count,
    /// `limits.reauths_per_minute`.
    pub reauths_per_minute: Count,
    /// `limits.membership_changes`.
    pub membership_changes: Count,
    /// `limits.user_lists`.
    pub user_lists: Count,
    /// `limits.messages_per_second`, `limits.bytes_per_second`.
    pub rates: Rates,
}

impl Settings {
    /// Those of the configuration.
    pub fn of(delivery: &Delivery, heartbeat: &Heartbeat, limits: &Limits) -> Self {
        let Limits { bad_messages, reauths_per_minute, membership_changes, user_lists, .. } = *limits;
        Self {
            delivery: delivery.clone(),
            heartbeat: heartbeat.clone(),
            bad_messages,
            reauths_per_minute,
            membership_changes,
            user_lists,
            rates: Rates::of(limits),
        }
    }

    /// The shortest of all spans after which a session may need to act. A look at every session at least this often
    /// misses no deadline by more than the timer's grain.
    pub fn shortest_deadline(&self) -> Duration {
        let confirm = match self.delivery.ack_mode {
            // A client may choose either.
            AckMode::Transport | AckMode::Client => self.delivery.confirm_timeout.0.min(self.delivery.ack_timeout.0),
        };
        confirm.min(self.heartbeat.interval.0).min(self.heartbeat.timeout.0)
    }
}
