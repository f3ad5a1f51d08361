//! Which keys a reload changes and which need a restart, and what is other in a configuration that was read again.
//!
//! Every key is in one of the lists below; a test holds them against all keys that there are.

use figment::value::Value;

use super::{Config, ConfigError, Loaded, check, layers, show};
use crate::{api::Change, auth::KeySetPlace, hub::TopicRule, telemetry, types::TlsFiles};

/// The most bytes of a value that are shown.
const SHOWN_BYTES_MAX: usize = 512;

/// What a change of a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Nothing: it is in force at once.
    Live,
    /// A restart.
    Restart,
    /// Nothing, while TLS is spoken before and after; a listener begins or ceases to speak it at a restart.
    Tls,
    /// Nothing, as long as the same topics are durable: who is in one has a place in its log, or none.
    Topics,
}

/// A key of the configuration.
struct Key {
    name: &'static str,
    class: Class,
    differs: fn(&Config, &Config) -> bool,
    /// Has the first configuration say what the second does.
    keep: fn(&mut Config, &Config),
}

macro_rules! keys {
    ($($class:ident { $($first:ident $(. $rest:ident)*),* $(,)? })*) => {
        /// All of them, in the order in which they are documented.
        const KEYS: &[Key] = &[$($(Key {
            name: concat!(stringify!($first) $(, ".", stringify!($rest))*),
            class: Class::$class,
            differs: |one, other| one.$first $(.$rest)* != other.$first $(.$rest)*,
            keep: |one, other| one.$first $(.$rest)* = other.$first $(.$rest)*.clone(),
        }),*),*];
    };
}

keys! {
    Restart { http.listen }
    Live { http.path, http.origins, http.trusted_proxies, http.forwarded_header, http.proxy_protocol }
    Tls { http.tls.certificate_file, http.tls.key_file, http.tls.client_ca_file }
    Live { ws.compression }
    Restart { grpc.listen, grpc.insecure }
    Live {
        grpc.tokens, grpc.max_connections, grpc.max_streams, grpc.max_message_bytes, grpc.keepalive_interval,
        grpc.keepalive_timeout, grpc.max_pending_resets, grpc.max_error_resets, grpc.clients,
    }
    Tls { grpc.tls.certificate_file, grpc.tls.key_file, grpc.tls.client_ca_file }
    Restart { ops.listen }
    Tls { ops.tls.certificate_file, ops.tls.key_file, ops.tls.client_ca_file }
    Live {
        auth.user_claim, auth.public_claims, auth.session_claims, auth.require_exp, auth.issuer, auth.audience, auth.leeway,
        auth.timeout, auth.keys, auth.jwks.url, auth.jwks.file, auth.jwks.refresh, auth.jwks.ca_file, auth.weak_keys,
        auth.max_lifetime, auth.anonymous, auth.anonymous_connections,
    }
    Restart { store.path, store.engine, store.durability, store.on_corruption }
    Live {
        store.ttl, store.max_ttl, store.device_ttl, store.max_devices_per_user, store.max_pending_per_user, store.max_bytes,
        store.max_disk, store.overflow, store.idempotency_window,
        delivery.window, delivery.ack_mode, delivery.confirm_timeout, delivery.ack_timeout, delivery.max_attempts,
        heartbeat.interval, heartbeat.timeout,
        presence.linger, presence.max_listed,
        limits.connections, limits.connections_per_user, limits.connections_per_address, limits.connections_per_device,
        limits.device_overflow, limits.accepts_per_second, limits.handshakes_per_second,
        limits.address_handshakes_per_second, limits.handshake_timeout, limits.handshake_bytes, limits.message_bytes,
        limits.messages_per_second, limits.bytes_per_second, limits.notification_bytes, limits.outbox_bytes,
        limits.write_timeout, limits.bad_messages, limits.reauths_per_minute, limits.new_devices_per_hour,
        limits.topics_per_session, limits.topic_sessions, limits.membership_changes, limits.user_lists,
        limits.tls_handshakes, limits.memory,
    }
    Restart { events.buffer }
    Live {
        clients.forward, clients.reply_timeout, clients.message, clients.message_durable,
        clients.message_durable_per_minute,
    }
    Topics { topics }
    Live {
        alerts.fire_after, alerts.clear_after, alerts.clear_below, alerts.error_rate, alerts.connections,
        alerts.pending_count, alerts.pending_bytes, alerts.disk, alerts.disk_free, alerts.event_lag, alerts.confirm_p99,
        alerts.reply_p99, alerts.certificate_expiry, alerts.certificate_reload,
        drain.rate, shutdown.deadline, shutdown.lb_delay,
        log.filter,
    }
    Restart {
        log.format,
        otlp.endpoint, otlp.sample_ratio, otlp.service_name, otlp.timeout, otlp.headers_file, otlp.ca_file,
    }
}

/// What a configuration comes to for a daemon that runs.
#[derive(Clone, Debug)]
pub struct Difference {
    /// What may be in force from now on: the new values, and those from before where they need a restart.
    pub config: Config,
    /// What is other and in force.
    pub changed: Vec<Change>,
    /// What is other and is not, until a restart.
    pub needs_restart: Vec<Change>,
}

impl Loaded {
    /// What is other than in the configuration that a daemon runs with.
    ///
    /// # Errors
    /// What is in force after it would not go together: some of it needs a restart, and the rest goes with that alone.
    pub fn against(&self, running: &Config) -> Result<Difference, ConfigError> {
        let mut difference = Difference { config: self.config.clone(), changed: Vec::new(), needs_restart: Vec::new() };
        let (old, new) = (values(running), values(&self.config));
        for key in KEYS.iter().filter(|key| (key.differs)(running, &self.config)) {
            let change =
                Change { key: key.name, old: shown(key.name, running, &old), new: shown(key.name, &self.config, &new) };
            if key.is_live(running, &self.config) {
                difference.changed.push(change);
            } else {
                (key.keep)(&mut difference.config, running);
                difference.needs_restart.push(change);
            }
        }
        if let Err(ConfigError { problems }) = self.refuse(check::problems(&difference.config)) {
            let keys: Vec<_> = difference.needs_restart.iter().map(|change| change.key).collect();
            let problems = problems.into_iter().map(|line| format!("{line} ({} needs a restart)", keys.join(", ")));
            return Err(ConfigError { problems: problems.collect() });
        }
        Ok(difference)
    }

    /// What is allowed and will hardly be meant, a line each.
    pub fn warnings(&self) -> Vec<String> {
        let without_effect =
            self.without_effect().into_iter().map(|key| format!("{key}: has no effect in this version"));
        let doubts = self.doubts().into_iter().map(|(key, doubt)| format!("{key}: {doubt}"));
        without_effect.chain(doubts).collect()
    }
}

/// The variable that goes before `log.filter`, where it is set.
pub fn log_filter_override() -> Option<&'static str> {
    telemetry::is_overridden().then_some("RUST_LOG")
}

/// The place of a key among all of them.
pub fn place_of(name: &str) -> usize {
    KEYS.iter().position(|key| key.name == name).unwrap_or(KEYS.len())
}

impl Key {
    fn is_live(&self, old: &Config, new: &Config) -> bool {
        match self.class {
            Class::Live => true,
            Class::Restart => false,
            Class::Tls => tls(old, self.name).is_set() == tls(new, self.name).is_set(),
            Class::Topics => durable(&old.topics) == durable(&new.topics),
        }
    }
}

fn tls<'a>(config: &'a Config, key: &str) -> &'a TlsFiles {
    match key.split('.').next() {
        Some("http") => &config.http.tls,
        Some("grpc") => &config.grpc.tls,
        _ => &config.ops.tls,
    }
}

/// Which topics are durable: the first rule that fits one says so, so it is all rules up to the last that makes some so.
fn durable(rules: &[TopicRule]) -> Vec<(&str, bool)> {
    let last = rules.iter().rposition(|rule| rule.durable).map_or(0, |last| last + 1);
    rules[..last].iter().map(|rule| (rule.pattern.as_str(), rule.durable)).collect()
}

fn values(config: &Config) -> Value {
    Value::from(layers::table_of(Value::serialize(config)))
}

/// The value of a key, for somebody who is not to see a secret.
fn shown(key: &str, config: &Config, values: &Value) -> String {
    let scopes = |name: &str, scopes: &[crate::api::scope::Scope]| {
        let scopes: Vec<_> = scopes.iter().map(|scope| scope.as_str()).collect();
        format!("{name} ({})", scopes.join(", "))
    };
    let list = |items: Vec<String>| format!("{}: {}", items.len(), items.join("; "));
    let text = match key {
        "auth.keys" => {
            list(config.auth.keys.iter().map(|key| format!("{} {}", key.algorithm.as_str(), key.kid)).collect())
        }
        "grpc.tokens" => list(config.grpc.tokens.iter().map(|token| scopes(&token.name, &token.scopes)).collect()),
        "grpc.clients" => list(config.grpc.clients.iter().map(|client| scopes(&client.name, &client.scopes)).collect()),
        "topics" => list(config.topics.iter().map(|rule| rule.pattern.clone()).collect()),
        // Its query may be nobody else's.
        "auth.jwks.url" if !config.auth.jwks.url.is_empty() => {
            KeySetPlace::parse(&config.auth.jwks.url).map_or_else(|_| "***".to_owned(), |place| place.to_string())
        }
        key => values.find_ref(key).map(show::inline).unwrap_or_default(),
    };
    shortened(text)
}

fn shortened(mut text: String) -> String {
    const MORE: &str = " …";
    if text.len() > SHOWN_BYTES_MAX {
        text.truncate(text.floor_char_boundary(SHOWN_BYTES_MAX - MORE.len()));
        text.push_str(MORE);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        auth::{Algorithm, KeyConfig},
        config::Sources,
        types::Secret,
    };

    const BASE: &str =
        "[[auth.keys]]\nkid = \"a\"\nalgorithm = \"HS256\"\nsecret = \"hunter2hunter2hunter2hunter2hunter2\"\n";

    fn read(toml: &str) -> Loaded {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pushgate.toml");
        std::fs::write(&file, format!("{toml}\n{BASE}")).unwrap();
        Config::read(Sources { file: Some(file), ..Sources::default() }).unwrap_or_else(|error| panic!("{error}"))
    }

    fn keys(changes: &[Change]) -> Vec<&str> {
        changes.iter().map(|change| change.key).collect()
    }

    #[test]
    fn every_key_is_in_one_list() {
        let known: Vec<_> = KEYS.iter().map(|key| key.name.to_owned()).collect();
        let all = layers::leaf_keys(&layers::table_of(Value::serialize(Config::default())));
        assert_eq!(known.len(), all.len(), "no key twice");
        let (known, all): (BTreeSet<_>, BTreeSet<_>) = (known.into_iter().collect(), all.into_iter().collect());
        let missing: Vec<_> = all.difference(&known).collect();
        assert!(missing.is_empty(), "say of these what a reload does with them: {missing:?}");
        assert_eq!(known, all);
    }

    #[test]
    fn what_needs_a_restart_stays_as_it_is_and_is_named_until_then() {
        let running = read("").config;
        let new = read("store.path = \"/elsewhere\"\nlog.format = \"json\"\nlimits.connections = 7\n");
        let first = new.against(&running).unwrap();
        assert_eq!(keys(&first.changed), ["limits.connections"]);
        assert_eq!(first.changed[0].old, "100000");
        assert_eq!(first.changed[0].new, "7");
        assert_eq!(keys(&first.needs_restart), ["store.path", "log.format"]);
        assert_eq!(first.needs_restart[0].new, "\"/elsewhere\"");
        assert_eq!((first.config.limits.connections.0, &first.config.store.path), (7, &running.store.path));
        let second = new.against(&first.config).unwrap();
        assert_eq!((keys(&second.changed).len(), keys(&second.needs_restart).len()), (0, 2));
    }

    #[test]
    fn no_secret_is_shown() {
        let running = read("").config;
        let mut new = read("auth.jwks.url = \"https://id.example.com/jwks?key=hunter3\"\n");
        new.config.auth.keys.push(KeyConfig { kid: "b".into(), ..KeyConfig::new(Algorithm::HS512) });
        new.config.auth.keys[0].secret = Secret::new("hunter4".repeat(6));
        new.config.auth.keys[1].secret = Secret::new("hunter5".repeat(10));
        let difference = new.against(&running).unwrap();
        assert_eq!(keys(&difference.changed), ["auth.keys", "auth.jwks.url"]);
        let said = format!("{:?}", difference.changed);
        assert!(said.contains("2: HS256 a; HS512 b") && !said.contains("hunter"), "{said}");
        let mut rotated = read("");
        rotated.config.auth.keys[0].secret = Secret::new("hunter4".repeat(6));
        assert_eq!(keys(&rotated.against(&running).unwrap().changed), ["auth.keys"], "a secret alone");
    }

    #[test]
    fn what_would_be_unsafe_together_is_not_taken() {
        let open =
            "grpc.listen = [\"127.0.0.1:0\"]\n[[grpc.tokens]]\nname = \"a\"\ntoken = \"t\"\nscopes = [\"send\"]\n";
        let running = read(open).config;
        // Without its tokens it would go with the socket alone, and where it listens needs a restart.
        let error = read("grpc.listen = [\"unix:/run/a.sock\"]\n").against(&running).unwrap_err().to_string();
        assert!(error.contains("add [[grpc.tokens]]") && error.ends_with("(grpc.listen needs a restart)"), "{error}");
    }

    #[test]
    fn a_listener_begins_to_speak_tls_at_a_restart() {
        let with = |certificate: &str| {
            read(&format!("http.tls.certificate_file = \"{certificate}\"\nhttp.tls.key_file = \"/k\"\n"))
        };
        let moved = with("/b").against(&with("/a").config).unwrap();
        assert_eq!((keys(&moved.changed), moved.needs_restart.len()), (vec!["http.tls.certificate_file"], 0));
        let begun = with("/a").against(&read("").config).unwrap();
        assert_eq!(keys(&begun.needs_restart), ["http.tls.certificate_file", "http.tls.key_file"]);
        assert!(!begun.config.http.tls.is_set());
    }

    #[test]
    fn rules_change_at_once_unless_other_topics_become_durable() {
        let rules = |rules: &[(&str, bool)]| {
            let rules = rules.iter().map(|(pattern, durable)| {
                format!("[[topics]]\npattern = \"{pattern}\"\ndurable = {durable}\nsubscribe = [\"*\"]\n")
            });
            read(&rules.collect::<String>())
        };
        let running = rules(&[("a/*", false), ("log/*", true)]).config;
        let live = |new: &Loaded| new.against(&running).unwrap().needs_restart.is_empty();
        assert!(live(&rules(&[("a/*", false), ("log/*", true), ("more", false)])));
        assert!(!live(&rules(&[("a/*", true), ("log/*", true)])));
        assert!(!live(&rules(&[("log/a", false), ("a/*", false), ("log/*", true)])));
        assert!(!live(&rules(&[])));
    }

    #[test]
    fn a_long_value_is_cut() {
        let long = shortened("é".repeat(1000));
        assert!(long.len() <= SHOWN_BYTES_MAX && long.ends_with(" …"), "{}", long.len());
    }
}
