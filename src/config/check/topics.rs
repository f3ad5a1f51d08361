//! What `[[topics]]` and `clients.message` may not say.

use super::{super::Config, Found};
use crate::{hub::Rules, limits, types::Span};

/// Rules that cannot be understood, and bounds that cannot be kept.
pub(super) fn check(config: &Config, found: &mut Found) {
    for bad in Rules::new(&config.topics, &config.clients.message).err().unwrap_or_default() {
        found.add(bad.key, bad.text);
    }
    for (index, rule) in config.topics.iter().enumerate() {
        let key = |name: &str| format!("topics[{index}].{name}");
        for (name, set) in [("ttl", rule.ttl.is_some()), ("max_records", rule.max_records.is_some())] {
            if set && !rule.durable {
                found
                    .add(key(name), "nothing is kept without `durable = true`; add that, or leave this out".to_owned());
            }
        }
        if let Some(ttl) = rule.ttl {
            let (least, most) = (Span::secs(1), config.store.max_ttl);
            found.require((least.0..=most.0).contains(&ttl.0), &key("ttl"), || {
                format!("`{ttl}` is not allowed; allowed: {least} to {most} (store.max_ttl)")
            });
        }
        if let Some(records) = rule.max_records {
            let most = limits::TOPIC_RECORDS_MAX;
            found.require((1..=most).contains(&records), &key("max_records"), || {
                format!("`{records}` is not allowed; allowed: 1 to {most}")
            });
        }
    }
}
