//! The section `[store]`: where the store lies, what it promises and how much it takes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::types::{ByteSize, Count, Span};

/// Which embedded engine keeps the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// sled, the default.
    #[default]
    Sled,
    /// redb: one file, and every commit waits for the disk, whatever [`Durability`] asks for.
    Redb,
}

/// What a stored notification survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// The end of the process, `kill -9` included.
    #[default]
    Process,
    /// The loss of power too: every commit waits for the disk.
    Power,
}

/// What is done about a store that is damaged when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnCorruption {
    /// It is moved aside, never deleted, and a new one is begun.
    Quarantine,
    /// The daemon refuses to start.
    Refuse,
}

/// What happens to a notification for a user who has as many pending as he may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// It is refused.
    #[default]
    Refuse,
    /// The oldest pending one makes room.
    DropOldest,
}

/// The section `[store]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The folder that the store has to itself; made where it is missing.
    pub path: PathBuf,
    /// The engine.
    pub engine: Engine,
    /// What a stored notification survives.
    pub durability: Durability,
    /// What is done about damage; see [`Config::on_corruption`] for the default.
    pub on_corruption: Option<OnCorruption>,
    /// How long a notification is kept where its sender says nothing.
    pub ttl: Span,
    /// The longest a sender may ask for.
    pub max_ttl: Span,
    /// How long a device that does not come back is kept.
    pub device_ttl: Span,
    /// Devices of one user.
    pub max_devices_per_user: Count,
    /// Pending notifications of one user.
    pub max_pending_per_user: Count,
    /// Pending notifications of all users, in accounted bytes; 0: no bound.
    pub max_bytes: ByteSize,
    /// The store's files, in bytes, a reserve for cursors and deletions included; 0: no bound.
    pub max_disk: ByteSize,
    /// What happens at `max_pending_per_user`.
    pub overflow: Overflow,
    /// How long a caller's id is remembered after its notification was accepted.
    pub idempotency_window: Span,
}

impl Config {
    /// What is done about damage: what the operator chose, else `refuse` where power cuts must not lose anything
    /// (a store that is set aside is a loss), and `quarantine` elsewhere.
    pub fn on_corruption(&self) -> OnCorruption {
        self.on_corruption.unwrap_or(match self.durability {
            Durability::Process => OnCorruption::Quarantine,
            Durability::Power => OnCorruption::Refuse,
        })
    }
}

impl Default for Config {
    fn default() -> Self {
        const DAY: u64 = 86_400;
        Self {
            path: PathBuf::from("/var/lib/pushgate"),
            engine: Engine::default(),
            durability: Durability::default(),
            on_corruption: None,
            ttl: Span::secs(7 * DAY),
            max_ttl: Span::secs(30 * DAY),
            device_ttl: Span::secs(30 * DAY),
            max_devices_per_user: Count(16),
            max_pending_per_user: Count(1000),
            max_bytes: ByteSize::gib(8),
            max_disk: ByteSize::gib(16),
            overflow: Overflow::default(),
            idempotency_window: Span::secs(600),
        }
    }
}

#[cfg(test)]
mod tests {
    use figment::{
        Figment,
        providers::{Format, Toml},
    };

    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        Figment::from(Toml::string(text)).extract().map_err(|error| error.to_string())
    }

    #[test]
    fn the_section_is_read_as_documented_and_unknown_keys_are_refused() {
        let config = read(
            r#"
            path = "/data"
            engine = "redb"
            durability = "power"
            overflow = "drop-oldest"
            max_disk = "1GiB"
            idempotency_window = "5m"
            "#,
        )
        .unwrap();
        assert_eq!(config.engine, Engine::Redb);
        assert_eq!(config.overflow, Overflow::DropOldest);
        assert_eq!(config.max_disk, ByteSize::gib(1));
        assert_eq!(config.ttl, Span::secs(604_800));
        assert!(read("pth = \"/data\"").is_err());
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(read(&text).unwrap(), Config::default());
    }

    #[test]
    fn damage_is_set_aside_by_default_unless_power_cuts_must_lose_nothing() {
        let mut config = Config::default();
        assert_eq!(config.on_corruption(), OnCorruption::Quarantine);
        config.durability = Durability::Power;
        assert_eq!(config.on_corruption(), OnCorruption::Refuse);
        config.on_corruption = Some(OnCorruption::Quarantine);
        assert_eq!(config.on_corruption(), OnCorruption::Quarantine);
    }
}
