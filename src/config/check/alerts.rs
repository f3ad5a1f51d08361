//! The section `[alerts]`: each threshold is of a kind that its measure has, and the lower bound lies below the upper.

use super::{DAY, Found, HOUR, MONTH, Span};
use crate::{config::Config, types::Level};

/// What is allowed and will hardly be meant.
pub(super) fn doubts(config: &Config) -> Vec<(&'static str, String)> {
    let (threshold, timeout) = (config.alerts.reply_p99, config.clients.reply_timeout);
    let never = !threshold.0.is_zero() && threshold >= timeout;
    let text = format!("`{threshold}` is never exceeded: no wait lasts longer than clients.reply_timeout, `{timeout}`");
    never.then_some(("alerts.reply_p99", text)).into_iter().collect()
}

pub(super) fn check(config: &Config, found: &mut Found) {
    let alerts = &config.alerts;
    let zero = Span::secs(0);
    for (key, span, most) in [
        ("alerts.fire_after", alerts.fire_after, DAY),
        ("alerts.clear_after", alerts.clear_after, DAY),
        ("alerts.confirm_p99", alerts.confirm_p99, HOUR),
        ("alerts.reply_p99", alerts.reply_p99, HOUR),
        ("alerts.certificate_expiry", alerts.certificate_expiry, MONTH),
    ] {
        found.require((zero..=most).contains(&span), key, || {
            format!("`{span}` is not allowed; allowed: {zero} to {most}")
        });
    }
    let share = alerts.clear_below;
    found.require(matches!(share, Level::Share(1..=100)), "alerts.clear_below", || {
        format!("`{share}` is not allowed; write a share of the threshold, from \"1%\" to \"100%\"")
    });
    for (key, level) in [("alerts.connections", alerts.connections), ("alerts.event_lag", alerts.event_lag)] {
        found.require(!matches!(level, Level::Size(_)), key, || {
            format!("`{level}` is a size; write a share, such as \"80%\", or a number, such as \"500\"")
        });
    }
    for (key, level) in [("alerts.pending_bytes", alerts.pending_bytes), ("alerts.disk", alerts.disk)] {
        found.require(matches!(level, Level::Share(_) | Level::Size(_) | Level::Count(0)), key, || {
            format!("`{level}` has no unit; write a share, such as \"80%\", or a size, such as \"4GiB\"")
        });
    }
}
