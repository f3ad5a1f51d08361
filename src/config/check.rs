//! What a configuration may not say: first unknown keys and wrong types, then values and combinations that no daemon
//! could run with. Each problem names its key, the value, what is allowed and what to do.

mod alerts;
mod limits;
mod listeners;
mod tls;
mod topics;

use std::time::Duration;

use figment::value::{Dict, Value};

pub(super) use self::{listeners::dev_problems, tls::certificate_problem};
use super::{Config, Problem, layers};
use crate::{
    api::scope::Scope,
    auth::{Algorithm, KeyConfig, KeySetPlace},
    grpc::config::{ClientConfig, TokenConfig, TokenError},
    hub::TopicRule,
    limits as bounds, protocol,
    store::OnCorruption,
    types::{ByteSize, Level, Span},
};

/// A key from the parts of its path; numbers are places in a list.
pub(super) fn join<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    let mut key = String::new();
    for part in parts {
        if part.bytes().all(|b| b.is_ascii_digit()) {
            key.push_str(&format!("[{part}]"));
        } else {
            if !key.is_empty() {
                key.push('.');
            }
            key.push_str(part);
        }
    }
    key
}

/// Unknown keys and wrong types, all of them.
pub(super) fn type_problems(values: &Value) -> Vec<Problem> {
    // A configuration in which nothing is left out: lists of tables have one, what may be unset is set.
    let mut full = Config::default();
    full.auth.keys = vec![KeyConfig::new(Algorithm::HS256)];
    full.grpc.tokens = vec![TokenConfig { scopes: Scope::ALL.to_vec(), ..TokenConfig::default() }];
    full.grpc.clients = vec![ClientConfig { scopes: Scope::ALL.to_vec(), ..ClientConfig::default() }];
    full.store.on_corruption = Some(OnCorruption::Quarantine);
    full.topics = vec![TopicRule { ttl: Some(Span::secs(1)), max_records: Some(1), ..TopicRule::default() }];
    let template = Value::from(layers::table_of(Value::serialize(full)));
    let mut problems = Vec::new();
    compare(values, &template, &mut Vec::new(), &mut problems);
    problems
}

fn compare(value: &Value, template: &Value, path: &mut Vec<String>, problems: &mut Vec<Problem>) {
    let mut wrong = |expected: &str| {
        let text = format!("found {}, expected {expected}", kind(value));
        problems.push(Problem::new(join(path.iter().map(String::as_str)), text));
    };
    match (template, value) {
        (Value::Dict(_, template), Value::Dict(_, table)) => compare_tables(table, template, path, problems),
        (Value::Dict(..), _) => wrong("a table"),
        (Value::Array(_, template), Value::Array(_, items)) => {
            // Where the default is an empty list it is one of texts.
            let text = Value::from("");
            let template = template.first().unwrap_or(&text);
            for (index, item) in items.iter().enumerate() {
                path.push(index.to_string());
                compare(item, template, path, problems);
                path.pop();
            }
        }
        (Value::Array(..), _) => wrong("a list in brackets"),
        (Value::String(_, sample), Value::Num(..)) if Span::parse(sample).is_ok() => {
            wrong("a duration in quotes with a unit, such as \"30s\"");
        }
        (Value::String(_, sample), Value::Num(..)) if ByteSize::parse(sample).is_ok() => {
            wrong("a size in quotes with a unit, such as \"64KiB\"");
        }
        (Value::String(_, sample), Value::Num(..)) if sample == "1%" => wrong("a share in quotes, such as \"1%\""),
        (Value::String(_, sample), Value::Num(..)) if Level::parse(sample).is_ok() => {
            wrong("a share, a number or a size in quotes, such as \"80%\"");
        }
        (Value::String(..), Value::String(..) | Value::Char(..) | Value::Empty(..)) => {}
        (Value::String(..), _) => wrong("a text in quotes"),
        (Value::Bool(..), Value::Bool(..)) => {}
        (Value::Bool(..), _) => wrong("true or false"),
        (Value::Num(..), Value::Num(_, number)) if number.to_u128().is_some() || number.to_i128().is_some() => {}
        (Value::Num(..), _) => wrong("a whole number"),
        (Value::Char(..) | Value::Empty(..), _) => {}
    }
}

fn compare_tables(table: &Dict, template: &Dict, path: &mut Vec<String>, problems: &mut Vec<Problem>) {
    for (name, value) in table {
        path.push(name.clone());
        match template.get(name) {
            Some(template) => compare(value, template, path, problems),
            None => {
                let allowed: Vec<&str> = template.keys().map(String::as_str).collect();
                let key = join(path.iter().map(String::as_str));
                let text = format!("unknown key `{key}`; allowed here: {}", allowed.join(", "));
                problems.push(Problem { names_key: true, ..Problem::new(key, text) });
            }
        }
        path.pop();
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(..) | Value::Char(..) => "a text",
        Value::Bool(..) => "true or false",
        Value::Num(_, number) if number.to_f64().is_some() => "a number with a fraction",
        Value::Num(..) => "a number",
        Value::Empty(..) => "nothing",
        Value::Dict(..) => "a table",
        Value::Array(..) => "a list",
    }
}

/// Everything in `config` that no daemon could run with.
pub(super) fn problems(config: &Config) -> Vec<Problem> {
    let mut found = Found(Vec::new());
    listeners::check(config, &mut found);
    tls::check(config, &mut found);
    tokens(config, &mut found);
    auth(config, &mut found);
    spans(config, &mut found);
    sizes_and_counts(config, &mut found);
    shutdown(config, &mut found);
    self::limits::check(config, &mut found);
    store(config, &mut found);
    topics::check(config, &mut found);
    alerts::check(config, &mut found);
    clients(config, &mut found);
    if let Err(error) = config.log.check() {
        // The error begins with the key.
        let text = error.to_string();
        found.add("log.filter", text.strip_prefix("log.filter: ").unwrap_or(&text));
    }
    for (key, text) in config.otlp.problems() {
        found.add(key, text);
    }
    found.0
}

struct Found(Vec<Problem>);

impl Found {
    fn add(&mut self, key: impl Into<String>, text: impl Into<String>) {
        self.0.push(Problem::new(key, text));
    }

    fn require(&mut self, holds: bool, key: &str, text: impl FnOnce() -> String) {
        if !holds {
            self.add(key, text());
        }
    }
}

fn tokens(config: &Config, found: &mut Found) {
    for (index, token) in config.grpc.tokens.iter().enumerate() {
        let key = format!("grpc.tokens[{index}]");
        let name = &token.name;
        if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
            found.add(format!("{key}.name"), "is missing or unusable; write 1 to 64 bytes that name the caller");
        } else if config.grpc.tokens[..index].iter().any(|earlier| earlier.name == *name) {
            found.add(format!("{key}.name"), format!("`{name}` is taken by an earlier token; choose another name"));
        }
        if let Err(error) = token.check() {
            found.0.push(token_problem(index, token, &error));
        }
        if token.scopes.is_empty() {
            found.add(format!("{key}.scopes"), no_scopes("token"));
        }
    }
}

fn no_scopes(what: &str) -> String {
    let all: Vec<&str> = Scope::ALL.iter().map(|scope| scope.as_str()).collect();
    format!("is empty, so the {what} would open nothing; allowed values: {}", all.join(", "))
}

pub(super) fn token_problem(index: usize, token: &TokenConfig, error: &TokenError) -> Problem {
    let name = if token.name.is_empty() { String::new() } else { format!(" (`{}`)", token.name) };
    Problem::new(format!("grpc.tokens[{index}]{name}"), error.to_string())
}

fn auth(config: &Config, found: &mut Found) {
    let auth = &config.auth;
    let jwks = &auth.jwks;
    let has_jwks = !jwks.url.is_empty() || !jwks.file.as_os_str().is_empty();
    if !jwks.url.is_empty() {
        match KeySetPlace::parse(&jwks.url) {
            Ok(place) => {
                found.require(place.is_secure() || jwks.ca_file.as_os_str().is_empty(), "auth.jwks.ca_file", || {
                    "is set, and auth.jwks.url is not https; leave it empty".to_owned()
                })
            }
            Err(why) => found.add("auth.jwks.url", why),
        }
    } else if !jwks.ca_file.as_os_str().is_empty() {
        found.add("auth.jwks.ca_file", "is set, and auth.jwks.url is not; set that, too, or leave it empty");
    }
    if auth.keys.is_empty() && !has_jwks {
        found.add(
            "auth.keys",
            "no key is configured, and only the operator can know it; add a table [[auth.keys]] with algorithm = \
             \"HS256\" and secret_file = \"/etc/pushgate/jwt.key\", or another algorithm and public_key_file",
        );
    }
    for (index, key) in auth.keys.iter().enumerate() {
        let place = format!("auth.keys[{index}]");
        if let Err(bad) = key.check() {
            found.add(&place, bad.to_string());
        }
        let kid = &key.kid;
        if !kid.is_empty() && auth.keys[..index].iter().any(|earlier| earlier.kid == *kid) {
            found.add(
                format!("{place}.kid"),
                format!("`{kid}` is taken by an earlier key; give each key a kid of its own"),
            );
        }
    }
    found.require(!auth.user_claim.is_empty(), "auth.user_claim", || {
        "is empty, so no token would name a user; write the claims to look for, such as [\"sub\", \"userId\"]"
            .to_owned()
    });
    for (key, list) in [
        ("auth.user_claim", &auth.user_claim),
        ("auth.issuer", &auth.issuer),
        ("auth.audience", &auth.audience),
        ("auth.public_claims", &auth.public_claims),
        ("auth.session_claims", &auth.session_claims),
    ] {
        if let Some(index) = list.iter().position(String::is_empty) {
            found.add(format!("{key}[{index}]"), "is empty; write a name or leave it out");
        }
    }
}

const MILLISECOND: Span = Span(Duration::from_millis(1));
const SECOND: Span = Span::secs(1);
const HOUR: Span = Span::secs(3600);
const DAY: Span = Span::secs(86_400);
const MONTH: Span = Span::secs(30 * 86_400);
const DECADE: Span = Span::secs(3650 * 86_400);

fn spans(config: &Config, found: &mut Found) {
    let zero = Span::secs(0);
    let (auth, store) = (&config.auth, &config.store);
    for (key, span, least, most) in [
        ("auth.leeway", auth.leeway, zero, DAY),
        ("auth.timeout", auth.timeout, MILLISECOND, HOUR),
        ("auth.jwks.refresh", auth.jwks.refresh, SECOND, MONTH),
        ("auth.max_lifetime", auth.max_lifetime, zero, DECADE),
        ("store.ttl", store.ttl, SECOND, DECADE),
        ("store.max_ttl", store.max_ttl, SECOND, DECADE),
        ("store.device_ttl", store.device_ttl, SECOND, DECADE),
        ("store.idempotency_window", store.idempotency_window, zero, MONTH),
        ("delivery.confirm_timeout", config.delivery.confirm_timeout, MILLISECOND, DAY),
        ("delivery.ack_timeout", config.delivery.ack_timeout, MILLISECOND, MONTH),
        ("heartbeat.interval", config.heartbeat.interval, MILLISECOND, DAY),
        ("heartbeat.timeout", config.heartbeat.timeout, MILLISECOND, DAY),
        ("presence.linger", config.presence.linger, zero, HOUR),
        ("limits.write_timeout", config.limits.write_timeout, MILLISECOND, DAY),
        ("clients.reply_timeout", config.clients.reply_timeout, MILLISECOND, HOUR),
        ("shutdown.deadline", config.shutdown.deadline, MILLISECOND, DAY),
        ("shutdown.lb_delay", config.shutdown.lb_delay, zero, HOUR),
        ("otlp.timeout", config.otlp.timeout, MILLISECOND, HOUR),
    ] {
        found.require((least..=most).contains(&span), key, || {
            format!("`{span}` is not allowed; allowed: {least} to {most}")
        });
    }
}

fn shutdown(config: &Config, found: &mut Found) {
    let shutdown = &config.shutdown;
    found.require(shutdown.lb_delay < shutdown.deadline || shutdown.deadline.0.is_zero(), "shutdown.lb_delay", || {
        format!("`{}` must be shorter than shutdown.deadline, `{}`", shutdown.lb_delay, shutdown.deadline)
    });
}

fn sizes_and_counts(config: &Config, found: &mut Found) {
    let (limits, store) = (&config.limits, &config.store);
    let queue = ByteSize(bounds::WRITER_QUEUE_BYTES_MAX as u64);
    let end = ByteSize(1 << 60);
    for (key, size, least, most) in [
        ("limits.message_bytes", limits.message_bytes, ByteSize::kib(1), ByteSize::mib(16)),
        ("limits.notification_bytes", limits.notification_bytes, ByteSize::kib(1), queue),
        ("limits.outbox_bytes", limits.outbox_bytes, ByteSize::kib(1), ByteSize::gib(1)),
        ("store.max_bytes", store.max_bytes, ByteSize::kib(64), end),
        ("store.max_disk", store.max_disk, ByteSize::mib(1), end),
    ] {
        // Of the store's sizes, zero is no bound.
        if size.0 == 0 && key.starts_with("store.") {
            continue;
        }
        found.require((least..=most).contains(&size), key, || {
            format!("`{size}` is not allowed; allowed: {least} to {most}")
        });
    }
    for (key, number, least, most) in [
        ("delivery.window", config.delivery.window, 1, 65_536),
        // Below that, no client has to wait for another (see `hub/drain/schedule.rs`).
        ("drain.rate", config.drain.rate, 10, 1_000_000),
        ("events.buffer", config.events.buffer, 16, 16_777_216),
    ] {
        found.require((least..=most).contains(&number), key, || {
            format!("`{number}` is not allowed; allowed: {least} to {most}")
        });
    }
}

fn store(config: &Config, found: &mut Found) {
    let store = &config.store;
    found.require(!store.path.as_os_str().is_empty(), "store.path", || {
        "is empty; write the folder that holds the data, such as \"/var/lib/pushgate\"".to_owned()
    });
    if store.ttl > store.max_ttl {
        let text = format!(
            "`{}` is longer than store.max_ttl, `{}`; shorten the one or lengthen the other",
            store.ttl, store.max_ttl
        );
        found.0.push(Problem { other: Some("store.max_ttl"), ..Problem::new("store.ttl", text) });
    }
}

/// What clients may send to services must be what the gateway does not answer itself.
fn clients(config: &Config, found: &mut Found) {
    for (index, name) in config.clients.forward.iter().enumerate() {
        let key = format!("clients.forward[{index}]");
        let own = protocol::client::is_answered(name) || protocol::is_reserved_type(name);
        let unusable = name.is_empty() || name.len() > bounds::TYPE_BYTES_MAX || name.chars().any(char::is_control);
        if unusable {
            found.add(key, "is no message type; write 1 to 128 bytes without control characters, or \"*\" for all");
        } else if own {
            found.add(
                key,
                format!("`{name}` is the gateway's own; write a type of your application's, or \"*\" for all"),
            );
        }
    }
}

/// Keys that were changed and on which nothing depends in this version.
pub fn without_effect(config: &Config) -> Vec<&'static str> {
    let (auth, default) = (&config.auth, Config::default().auth);
    [("auth.jwks.refresh", auth.jwks.url.is_empty() && auth.jwks.refresh != default.jwks.refresh)]
        .into_iter()
        .filter_map(|(key, without)| without.then_some(key))
        .collect()
}

/// What is allowed and will hardly be meant: the key, and why.
pub fn doubts(config: &Config) -> Vec<(&'static str, String)> {
    alerts::doubts(config)
}
