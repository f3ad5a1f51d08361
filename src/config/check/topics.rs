//! What `[[topics]]` and `clients.message` may not say.

use super::{super::Config, Found, NOT_YET};
use crate::hub::Rules;

/// Rules that cannot be understood, and what is not there yet.
pub(super) fn check(config: &Config, found: &mut Found) {
    for bad in Rules::new(&config.topics, &config.clients.message).err().unwrap_or_default() {
        found.add(bad.key, bad.text);
    }
    for (index, rule) in config.topics.iter().enumerate() {
        if rule.durable {
            found.add(format!("topics[{index}].durable"), format!("keeping what is published {NOT_YET}; leave it out"));
        }
    }
}
