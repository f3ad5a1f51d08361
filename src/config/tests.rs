//! What is accepted, what is refused in which words, and which layer wins.

use super::*;

const KEY: &str = "[[auth.keys]]\nalgorithm = \"HS256\"\nsecret = \"hunter2\"\n";

struct Input {
    folder: tempfile::TempDir,
    sources: Sources,
}

impl Input {
    /// A file that is complete but for `toml`, which comes first.
    fn toml(toml: &str) -> Self {
        Self::raw(&format!("{toml}\n{KEY}"))
    }

    fn raw(toml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pushgate.toml");
        std::fs::write(&file, toml).unwrap();
        Self { folder, sources: Sources { file: Some(file), ..Sources::default() } }
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.push((name.into(), value.into()));
        self
    }

    fn flag(mut self, name: &'static str, key: &'static str, value: impl Into<Value>) -> Self {
        self.sources.flags.push(Flag { name, key, value: value.into() });
        self
    }

    fn load(&self) -> Loaded {
        Config::load(self.sources.clone()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The lines of the refusal, the file without its folder.
    fn refusal(&self) -> Vec<String> {
        let Err(error) = Config::load(self.sources.clone()) else { panic!("this must be refused") };
        let folder = format!("{}/", self.folder.path().display());
        error.problems().iter().map(|line| line.replace(&folder, "")).collect()
    }
}

#[track_caller]
fn refused(toml: &str, line: &str) {
    assert_eq!(Input::toml(toml).refusal(), [line], "{toml}");
}

/// For what concerns keys: the file is `toml` alone.
#[track_caller]
fn refused_raw(toml: &str, line: &str) {
    assert_eq!(Input::raw(toml).refusal(), [line], "{toml}");
}

#[test]
fn defaults_and_a_key_are_enough() {
    let loaded = Input::toml("").load();
    assert_eq!(loaded.config, Config { auth: loaded.config.auth.clone(), ..Config::default() });
    assert_eq!(loaded.config.auth.keys.len(), 1);
}

#[test]
fn every_key_of_the_documented_file_is_accepted_and_is_the_default_there() {
    let text = r#"
[http]
listen = ["0.0.0.0:7000"]
path = "/ws"
[grpc]
listen = ["unix:/run/pushgate/admin.sock"]
insecure = false
max_connections = 1024
max_streams = 4096
max_pending_resets = 64
max_error_resets = 256
max_message_bytes = "4MiB"
keepalive_interval = "1m"
keepalive_timeout = "20s"
[[grpc.tokens]]
name = "orders"
token_sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
scopes = ["send", "close", "read", "events", "admin"]
[ops]
listen = ["127.0.0.1:7002"]
[http.tls]
certificate_file = ""
key_file = ""
client_ca_file = ""
[auth]
user_claim = ["sub", "userId"]
public_claims = []
session_claims = []
require_exp = true
issuer = []
audience = []
leeway = "30s"
timeout = "5s"
[[auth.keys]]
kid = "2026-01"
algorithm = "HS256"
secret_file = "/etc/pushgate/jwt.key"
[auth.jwks]
url = ""
refresh = "10m"
[store]
path = "/var/lib/pushgate"
engine = "sled"
durability = "process"
on_corruption = "quarantine"
ttl = "7d"
max_ttl = "30d"
device_ttl = "30d"
max_devices_per_user = 16
max_pending_per_user = 1000
max_bytes = "8GiB"
max_disk = "16GiB"
overflow = "refuse"
idempotency_window = "10m"
[delivery]
window = 256
ack_mode = "transport"
confirm_timeout = "30s"
ack_timeout = "5m"
max_attempts = 0
[heartbeat]
interval = "30s"
timeout = "10s"
[presence]
linger = "5s"
max_listed = 1000
[limits]
connections = 100000
connections_per_user = 100
message_bytes = "64KiB"
notification_bytes = "256KiB"
outbox_bytes = "1MiB"
write_timeout = "10s"
bad_messages = 20
topics_per_session = 100
topic_sessions = 0
connections_per_address = 0
connections_per_device = 0
device_overflow = "newest"
accepts_per_second = 0
handshakes_per_second = 0
address_handshakes_per_second = 0
handshake_timeout = "10s"
handshake_bytes = "8KiB"
messages_per_second = 10000
bytes_per_second = "16MiB"
reauths_per_minute = 10
new_devices_per_hour = 100
membership_changes = 1024
user_lists = 20
tls_handshakes = 4096
memory = "80%"
[events]
buffer = 65536
[clients]
forward = []
reply_timeout = "30s"
message = []
message_durable = false
message_durable_per_minute = 120
[alerts]
fire_after = "1m"
clear_after = "5m"
clear_below = "80%"
error_rate = 100
connections = "90%"
pending_count = 0
pending_bytes = "80%"
disk = "85%"
disk_free = "256MiB"
event_lag = "50%"
confirm_p99 = "10s"
reply_p99 = "10s"
[drain]
rate = 1000
[shutdown]
deadline = "25s"
lb_delay = "0s"
[log]
filter = "info"
format = "auto"
"#;
    let config = Input::raw(text).load().config;
    let mut defaults = Config::default();
    defaults.grpc.tokens = config.grpc.tokens.clone();
    defaults.auth.keys = config.auth.keys.clone();
    defaults.store.on_corruption = Some(store::OnCorruption::Quarantine);
    assert_eq!(config, defaults);
}

#[test]
fn flags_win_over_the_environment_over_the_file_over_defaults() {
    let file = || Input::toml("[http]\nlisten = [\"127.0.0.1:1\"]\npath = \"/file\"\n[heartbeat]\ninterval = \"1s\"");
    let path = |input: Input| input.load().config.http.path;
    assert_eq!(path(file()), "/file");
    assert_eq!(path(file().env("PUSHGATE_HTTP__PATH", "/env")), "/env");
    let all = file().env("PUSHGATE_HTTP__PATH", "/env").flag("--path", "http.path", "/flag");
    let config = all.load().config;
    assert_eq!(config.http.path, "/flag");
    assert_eq!(config.http.listen, ["127.0.0.1:1"], "what a later layer does not say stays");
    assert_eq!(config.heartbeat.interval.to_string(), "1s");
    assert_eq!(config.heartbeat.timeout.to_string(), "10s");
}

#[test]
fn what_a_mode_sets_stands_between_the_file_and_the_environment() {
    let mut input = Input::toml("[http]\nlisten = [\"0.0.0.0:1\"]\n[heartbeat]\ninterval = \"1s\"");
    input.sources.mode = crate::dev::settings();
    let config = input.load().config;
    assert_eq!(config.http.listen, ["127.0.0.1:7000"]);
    assert_eq!(config.heartbeat.interval.to_string(), "1s", "what the mode does not say stays");
    let shown = input.load().to_toml();
    assert!(shown.contains("listen = [\"127.0.0.1:7000\"]  # flag --dev"), "{shown}");
    let input = input.env("PUSHGATE_HTTP__LISTEN", "['[::1]:1']").flag("--store-path", "store.path", "here");
    let config = input.load().config;
    assert_eq!(config.http.listen, ["[::1]:1"]);
    assert_eq!(config.store.path, std::path::Path::new("here"));
}

#[test]
fn dev_is_for_loopback_only() {
    let input = |toml: &str| Input::toml(toml).load();
    let here = "http.listen = [\"127.0.0.1:1\"]\n";
    assert!(input(here).check_dev().is_ok());
    let refusal = |name: &'static str, key: &'static str, address: &str| {
        let flagged = Input::toml(here).flag(name, key, vec![address.to_owned()]).load();
        flagged.check_dev().unwrap_err().to_string()
    };
    assert_eq!(
        refusal("--http-listen", "http.listen", "0.0.0.0:7000"),
        "flag --http-listen: http.listen[0]: `0.0.0.0:7000` can be reached from other machines, and --dev is for \
         loopback only; listen on 127.0.0.1 or [::1], or leave out --dev"
    );
    assert!(refusal("--ops-listen", "ops.listen", "[::]:7002").contains("`[::]:7002` can be reached"));
    let page = Input::toml(here).env("PUSHGATE_HTTP__PATH", "/").load().check_dev().unwrap_err().to_string();
    assert_eq!(
        page,
        "environment variable PUSHGATE_HTTP__PATH: http.path: `/` is where --dev has its page; write another path, \
         such as \"/ws\""
    );
}

#[test]
fn the_file_that_is_installed_lacks_a_key_and_nothing_else() {
    let installed = include_str!("../../systemd/pushgate.toml");
    let lines = Input::raw(installed).refusal();
    assert!(lines.len() == 1 && lines[0].starts_with("pushgate.toml: auth.keys: no key is configured, "), "{lines:?}");
    // A `#` right before a key or a table stands before a default, one with a space before a remark.
    let uncommented: String = installed
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| rest.starts_with(|c| c != ' ')).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let config = Input::raw(&uncommented).load().config;
    let mut defaults = Config::default();
    assert_eq!(config.auth.keys.len(), 1);
    defaults.auth.keys = config.auth.keys.clone();
    defaults.store.on_corruption = Some(store::OnCorruption::Quarantine);
    assert_eq!(config, defaults);
}

#[test]
fn the_environment_sets_every_kind_of_value() {
    let config = Input::raw("")
        .env("PUSHGATE_HTTP__LISTEN", "['127.0.0.1:0', \"[::1]:0\"]")
        .env("PUSHGATE_HTTP__PATH", "/7")
        .env("PUSHGATE_STORE__PATH", "7")
        .env("PUSHGATE_STORE__ENGINE", "sled")
        .env("PUSHGATE_STORE__TTL", "1h")
        .env("PUSHGATE_STORE__ON_CORRUPTION", "refuse")
        .env("PUSHGATE_AUTH__REQUIRE_EXP", "false")
        .env("PUSHGATE_AUTH__KEYS", "[{algorithm = \"HS256\", secret = \"a,b]\"}]")
        .env("PUSHGATE_AUTH__JWKS__REFRESH", "\"1m\"")
        .env("PUSHGATE_DELIVERY__WINDOW", " 7 ")
        .env("PUSHGATE_LIMITS__MESSAGE_BYTES", "2KiB")
        .env("PUSHGATE_SERVICE_HOST", "10.0.0.1")
        .env("PUSHGATE_PORT", "tcp://10.0.0.1:7000")
        .env("HTTP__PATH", "/other")
        .load()
        .config;
    assert_eq!(config.http.listen, ["127.0.0.1:0", "[::1]:0"]);
    assert_eq!((config.http.path.as_str(), config.store.path.to_str()), ("/7", Some("7")));
    assert_eq!(config.store.ttl.to_string(), "1h");
    assert_eq!(config.store.on_corruption, Some(store::OnCorruption::Refuse));
    assert!(!config.auth.require_exp);
    assert_eq!(config.auth.keys[0].secret.expose(), "a,b]");
    assert_eq!((config.auth.jwks.refresh.to_string().as_str(), config.delivery.window), ("1m", 7));
    assert_eq!(config.limits.message_bytes.0, 2048);
}

#[test]
fn a_refusal_names_the_variable_or_the_flag() {
    for (name, value, line) in [
        (
            "HEARTBEAT__INTERVAL",
            "30",
            "heartbeat.interval: `30` is not a duration; write a number and a unit, such as \"500ms\", \"30s\", \"10m\", \"12h\" or \"7d\"",
        ),
        ("HEARTBEAT__INTERVAL", "0s", "heartbeat.interval: `0s` is not allowed; allowed: 1ms to 1d"),
        (
            "HTTP__LISTNE",
            "x",
            "unknown key `http.listne`; allowed here: forwarded_header, listen, origins, path, proxy_protocol, \
         tls, trusted_proxies",
        ),
        ("HTTP__LISTEN", "127.0.0.1:0", "http.listen: found a text, expected a list in brackets"),
        ("HTTP__LISTEN", "[127.0.0.1:0]", "http.listen: is not a TOML value: invalid array; expected `]`"),
        ("DELIVERY__WINDOW", "many", "delivery.window: found a text, expected a whole number"),
        ("AUTH__REQUIRE_EXP", "yes", "auth.require_exp: found a text, expected true or false"),
        ("HTTP__", "x", "is not a key; write PUSHGATE_SECTION__KEY, such as PUSHGATE_HTTP__LISTEN"),
        ("HTTP_PATH", "/x", "two underscores stand between section and key; write PUSHGATE_HTTP__PATH"),
        ("STORE_MAX_TTL", "1d", "two underscores stand between section and key; write PUSHGATE_STORE__MAX_TTL"),
        (
            "STORE__MAX_TTL",
            "1d",
            "store.ttl: `7d` is longer than store.max_ttl, `1d`; shorten the one or lengthen the other",
        ),
    ] {
        let input = Input::toml("").env(&format!("PUSHGATE_{name}"), value);
        assert_eq!(input.refusal(), [format!("environment variable PUSHGATE_{name}: {line}")]);
    }
    let input = Input::toml("").flag("--http-listen", "http.listen", vec!["nowhere"]);
    assert_eq!(
        input.refusal(),
        ["flag --http-listen: http.listen[0]: `nowhere` is not an address; write host:port, such as \
          \"127.0.0.1:7000\" or \"[::1]:7000\""]
    );
}

#[test]
fn a_variable_that_is_not_text_is_refused() {
    use std::os::unix::ffi::OsStringExt as _;
    let mut input = Input::toml("");
    input.sources.environment.push(("PUSHGATE_HTTP__PATH".into(), OsString::from_vec(vec![0xff])));
    assert_eq!(input.refusal(), ["environment variable PUSHGATE_HTTP__PATH: http.path: is not UTF-8"]);
}

#[test]
fn unknown_keys_are_refused_with_what_is_allowed() {
    refused(
        "[http]\nlistne = []",
        "pushgate.toml: unknown key `http.listne`; allowed here: forwarded_header, listen, origins, path, proxy_protocol, \
         tls, trusted_proxies",
    );
    refused(
        "[htpt]\nlisten = []",
        "pushgate.toml: unknown key `htpt`; allowed here: alerts, auth, clients, delivery, drain, events, grpc, heartbeat, \
         http, limits, log, ops, otlp, presence, shutdown, store, topics, ws",
    );
    refused(
        "[grpc.tls]\ncert = \"\"",
        "pushgate.toml: unknown key `grpc.tls.cert`; allowed here: certificate_file, client_ca_file, key_file",
    );
    refused_raw(
        "[[auth.keys]]\nalgorithm = \"HS256\"\nsecrets = \"hunter2\"",
        "pushgate.toml: unknown key `auth.keys[0].secrets`; allowed here: algorithm, kid, public_key_file, secret, \
         secret_base64, secret_file",
    );
    refused(
        "[[grpc.tokens]]\nkid = 1",
        "pushgate.toml: unknown key `grpc.tokens[0].kid`; allowed here: name, scopes, token, token_file, token_sha256",
    );
}

#[test]
fn wrong_types_are_refused_all_at_once() {
    let input = Input::raw(
        "http = 7\n[grpc]\nlisten = \"unix:x\"\ninsecure = 1\n[store]\nengine = 1\npath = true\nttl = 30\nmax_bytes = 30\n\
         [delivery]\nwindow = 1.5\nmax_attempts = \"0\"\n[[auth.keys]]\nalgorithm = 0\nsecret = 7\n[[grpc.tokens]]\nscopes = [3]",
    );
    assert_eq!(
        input.refusal(),
        [
            "pushgate.toml: auth.keys[0].algorithm: found a number, expected a text in quotes",
            "pushgate.toml: auth.keys[0].secret: found a number, expected a text in quotes",
            "pushgate.toml: delivery.max_attempts: found a text, expected a whole number",
            "pushgate.toml: delivery.window: found a number with a fraction, expected a whole number",
            "pushgate.toml: grpc.insecure: found a number, expected true or false",
            "pushgate.toml: grpc.listen: found a text, expected a list in brackets",
            "pushgate.toml: grpc.tokens[0].scopes[0]: found a number, expected a text in quotes",
            "pushgate.toml: http: found a number, expected a table",
            "pushgate.toml: store.engine: found a number, expected a text in quotes",
            "pushgate.toml: store.max_bytes: found a number, expected a size in quotes with a unit, such as \"64KiB\"",
            "pushgate.toml: store.path: found true or false, expected a text in quotes",
            "pushgate.toml: store.ttl: found a number, expected a duration in quotes with a unit, such as \"30s\"",
        ]
    );
}

#[test]
fn values_outside_their_set_are_refused_with_the_set() {
    refused(
        "[store]\nengine = \"rocksdb\"",
        "pushgate.toml: store.engine: `rocksdb` is not allowed; allowed values: sled, redb",
    );
    refused(
        "[store]\non_corruption = \"ignore\"",
        "pushgate.toml: store.on_corruption: `ignore` is not allowed; allowed values: quarantine, refuse",
    );
    refused(
        "[store]\noverflow = \"dropoldest\"",
        "pushgate.toml: store.overflow: `dropoldest` is not allowed; allowed values: refuse, drop-oldest",
    );
    refused(
        "[delivery]\nack_mode = \"Client\"",
        "pushgate.toml: delivery.ack_mode: `Client` is not allowed; allowed values: transport, client",
    );
    refused(
        "[log]\nformat = \"xml\"",
        "pushgate.toml: log.format: `xml` is not allowed; allowed values: auto, human, json, journald",
    );
    refused(
        "[[grpc.tokens]]\nscopes = [\"write\"]",
        "pushgate.toml: grpc.tokens[0].scopes[0]: `write` is not allowed; allowed values: send, close, read, events, \
         admin",
    );
    refused_raw(
        "[[auth.keys]]\nalgorithm = \"none\"",
        "pushgate.toml: auth.keys[0].algorithm: `none` is not allowed; allowed values: HS256, HS384, HS512, RS256, \
         RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA",
    );
    refused_raw("[[auth.keys]]\nsecret = \"hunter2\"", "pushgate.toml: auth.keys[0]: the key `algorithm` is missing");
    refused(
        "[limits]\nconnections = -1",
        "pushgate.toml: limits.connections: `-1` is not allowed; expected a whole number from 0 to 4294967295",
    );
    refused(
        "[limits]\nmessage_bytes = \"64\"",
        "pushgate.toml: limits.message_bytes: `64` is not a size; write a number and a unit: B, KB, KiB, MB, MiB, GB, \
         GiB, TB or TiB, such as \"64KiB\"",
    );
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.toml");
    let sources = Sources { file: Some(missing.clone()), ..Sources::default() };
    let name = missing.display();
    assert_eq!(
        Config::load(sources).unwrap_err().to_string(),
        format!("{name}: cannot be read: No such file or directory (os error 2)")
    );
    let sources = Sources { file: Some(folder.path().to_owned()), ..Sources::default() };
    let name = folder.path().display();
    assert_eq!(
        Config::load(sources).unwrap_err().to_string(),
        format!("{name}: cannot be read: Is a directory (os error 21)")
    );
}

#[test]
fn a_default_file_is_read_where_it_exists() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pushgate.toml");
    let sources = Sources { default_file: Some(file.clone()), ..Sources::default() };
    assert!(Config::read(sources.clone()).unwrap().file().is_none());
    std::fs::write(&file, "[http]\npath = \"/default-file\"").unwrap();
    let loaded = Config::read(sources.clone()).unwrap();
    assert_eq!((loaded.config.http.path.as_str(), loaded.file()), ("/default-file", Some(file.as_path())));
    let named = Input::toml("[http]\npath = \"/named\"");
    let sources = Sources { file: named.sources.file.clone(), ..sources };
    assert_eq!(Config::read(sources).unwrap().config.http.path, "/named");
}

#[test]
fn broken_toml_is_refused_with_its_place_and_without_its_line() {
    for (toml, place) in [
        ("[http]\npath = \"/ws", "line 2, column 12"),
        ("[[auth.keys]]\nsecret = hunter2", "line 2, column 10"),
        ("[[auth.keys]]\nsecret = \"hunter2\nx = 1", "line 2, column 18"),
        ("[http]\npath = 'a'\npath = 'b'", "line 3, column 1"),
    ] {
        let lines = Input::raw(toml).refusal();
        assert!(lines.len() == 1 && lines[0].starts_with(&format!("pushgate.toml: {place}: ")), "{lines:?}");
        assert!(!lines[0].contains("hunter2") && !lines[0].contains('\n'), "{lines:?}");
        assert!(lines[0].len() > place.len() + 18, "says what is wrong: {lines:?}");
    }
}

#[test]
fn listeners_must_be_there_and_readable() {
    refused(
        "[http]\nlisten = []",
        "pushgate.toml: http.listen: is empty, and without it no client can connect; write host:port, such as \
         [\"0.0.0.0:7000\"]",
    );
    refused(
        "[grpc]\nlisten = []",
        "pushgate.toml: grpc.listen: is empty, and without it nothing can be sent; write \
         [\"unix:/run/pushgate/admin.sock\"] or [\"127.0.0.1:7001\"]",
    );
    Input::toml("[ops]\nlisten = []").load();
    refused(
        "[http]\nlisten = [\"127.0.0.1:0\", \"7000\"]",
        "pushgate.toml: http.listen[1]: `7000` is not an address; write host:port, such as \"127.0.0.1:7000\" or \
         \"[::1]:7000\"",
    );
    refused(
        "[ops]\nlisten = [\"unix:/run/x\"]",
        "pushgate.toml: ops.listen[0]: `unix:/run/x` is for grpc.listen only; write host:port, such as \
         \"127.0.0.1:7000\"",
    );
    refused(
        "[grpc]\nlisten = [\"unix:\"]",
        "pushgate.toml: grpc.listen[0]: `unix:` is not the address of a Unix socket; write unix: and a path of 1 to \
         107 bytes",
    );
    refused(
        "[ops]\nlisten = [\"0.0.0.0:7000\"]",
        "pushgate.toml: ops.listen[0]: `0.0.0.0:7000` is listed twice; give each listener an address of its own",
    );
    Input::toml("[http]\nlisten = [\"127.0.0.1:0\", \"127.0.0.1:0\"]").load();
    refused(
        "[http]\npath = \"ws\"",
        "pushgate.toml: http.path: `ws` is not allowed; write a path that begins with `/`, without spaces, `?` and \
         `#`, such as \"/ws\"",
    );
    refused(
        "[http]\npath = \"/livez\"",
        "pushgate.toml: http.path: `/livez` is the gateway's own; write another path, such as \"/ws\"",
    );
}

#[test]
fn the_admin_api_is_closed_unless_it_is_opened_on_purpose() {
    let token = "[[grpc.tokens]]\nname = \"a\"\ntoken = \"hunter2\"\nscopes = [\"send\"]";
    refused(
        "[grpc]\nlisten = [\"127.0.0.1:7001\"]",
        "pushgate.toml: grpc.listen[0]: `127.0.0.1:7001` would be open to every process of this machine; add \
         [[grpc.tokens]], or set grpc.insecure = true if that is meant, or listen on a Unix socket",
    );
    let remote = "pushgate.toml: grpc.listen[0]: `0.0.0.0:7001` can be reached from other machines, ";
    refused(
        &format!("[grpc]\nlisten = [\"0.0.0.0:7001\"]\n{token}"),
        &format!(
            "{remote}where tokens need TLS; set grpc.tls.certificate_file and grpc.tls.key_file, or listen on \
             127.0.0.1, [::1] or a Unix socket"
        ),
    );
    for token in ["", token] {
        refused(
            &format!("[grpc]\nlisten = [\"0.0.0.0:7001\"]\ninsecure = true\n{token}"),
            &format!(
                "{remote}and grpc.insecure = true is for loopback only; listen on 127.0.0.1, [::1] or a Unix socket, \
                 or set it to false"
            ),
        );
    }
    for open in [
        format!("[grpc]\nlisten = [\"127.0.0.1:7001\", \"unix:x\"]\n{token}"),
        "[grpc]\nlisten = [\"[::1]:7001\", \"localhost:7001\"]\ninsecure = true".to_owned(),
        format!("[grpc]\nlisten = [\"127.0.0.1:7001\"]\ninsecure = true\n{token}"),
        format!("[grpc]\n{token}"),
        "[grpc]\ninsecure = true".to_owned(),
        format!("[grpc]\nlisten = [\"0.0.0.0:7001\"]\n{TLS}\n{token}"),
        format!("[grpc]\nlisten = [\"0.0.0.0:7001\"]\n{TLS}\nclient_ca_file = \"ca\""),
        format!("[grpc]\nlisten = [\"127.0.0.1:7001\"]\n{TLS}\nclient_ca_file = \"ca\""),
    ] {
        Input::toml(&open).load();
    }
    refused(
        &format!("[grpc]\nlisten = [\"0.0.0.0:7001\"]\n{TLS}"),
        "pushgate.toml: grpc.listen[0]: `0.0.0.0:7001` would let nobody in; add [[grpc.tokens]], or \
         grpc.tls.client_ca_file and [[grpc.clients]]",
    );
}

const TLS: &str = "[grpc.tls]\ncertificate_file = \"crt\"\nkey_file = \"key\"";

#[test]
fn certificates_come_with_their_keys_and_callers_with_authorities() {
    let key = "is empty, and the certificate needs its private key; write the file that holds it, PEM";
    for section in ["http", "grpc", "ops"] {
        refused(
            &format!("[{section}.tls]\ncertificate_file = \"x\""),
            &format!("pushgate.toml: {section}.tls.key_file: {key}"),
        );
    }
    refused(
        "[ops.tls]\nkey_file = \"x\"",
        "pushgate.toml: ops.tls.certificate_file: is empty, and the key is of no use without its certificate; write the \
         file that holds the chain, PEM",
    );
    refused(
        "[http.tls]\ncertificate_file = \"x\"\nkey_file = \"x\"\nclient_ca_file = \"x\"",
        "pushgate.toml: http.tls.client_ca_file: is for grpc.tls only: clients and probes have no certificates; leave it \
         empty",
    );
    refused(
        "[grpc.tls]\nclient_ca_file = \"x\"",
        "pushgate.toml: grpc.tls.client_ca_file: needs grpc.tls.certificate_file and grpc.tls.key_file beside it",
    );
    let mutual = format!("{TLS}\nclient_ca_file = \"ca\"");
    let client = |lines: &str| format!("{mutual}\n[[grpc.clients]]\n{lines}");
    Input::toml(&client("name = \"spiffe://a/b\"\nscopes = [\"send\"]")).load();
    refused(
        "[[grpc.clients]]\nname = \"a\"\nscopes = [\"send\"]",
        "pushgate.toml: grpc.clients: need grpc.tls.client_ca_file, the authorities that their certificates are from; set \
         it, or leave them out",
    );
    refused(
        &client("name = \"a b\"\nscopes = [\"send\"]"),
        "pushgate.toml: grpc.clients[0].name: is missing or unusable; write a name that the caller's certificate holds \
         (subjectAltName): a DNS name, URI, e-mail or IP address",
    );
    refused(
        &client("name = \"a\""),
        "pushgate.toml: grpc.clients[0].scopes: is empty, so the certificate would open nothing; allowed values: send, \
         close, read, events, admin",
    );
    refused(
        &client("name = \"a\"\nscopes = [\"send\"]\n[[grpc.clients]]\nname = \"A\"\nscopes = [\"read\"]"),
        "pushgate.toml: grpc.clients[1].name: `A` is taken by an earlier client; give each a name of its own",
    );
}

#[test]
fn origins_and_proxies_are_read_or_refused() {
    let good = "[http]\norigins = [\"https://*.example.com\", \"null\"]\ntrusted_proxies = [\"10.0.0.0/8\", \"::1\"]\n\
                proxy_protocol = true";
    Input::toml(good).load();
    let lines = Input::toml("[http]\norigins = [\"*\", \"https://a.example/\"]").refusal();
    let line =
        "pushgate.toml: http.origins[1]: `https://a.example/` must be an origin, such as https://app.example.com,";
    assert!(lines.len() == 1 && lines[0].starts_with(line), "{lines:?}");
    let lines = Input::toml("[http]\ntrusted_proxies = [\"proxy.internal\"]").refusal();
    let line = "pushgate.toml: http.trusted_proxies[0]: `proxy.internal` must be an IP address,";
    assert!(lines.len() == 1 && lines[0].starts_with(line), "{lines:?}");
    refused(
        "[http]\nproxy_protocol = true",
        "pushgate.toml: http.proxy_protocol: is true, and nobody is believed; list the proxies in http.trusted_proxies, \
         such as [\"10.0.0.0/8\"]",
    );
}

#[test]
fn a_token_is_complete_and_its_own() {
    let with = |lines: &str| format!("[[grpc.tokens]]\n{lines}");
    refused(
        &with("token = \"hunter2\"\nscopes = [\"send\"]"),
        "pushgate.toml: grpc.tokens[0].name: is missing or unusable; write 1 to 64 bytes that name the caller",
    );
    refused(
        &with("name = \"a\"\nscopes = [\"send\"]"),
        "pushgate.toml: grpc.tokens[0] (`a`): needs exactly one of token, token_sha256, token_file; it has none",
    );
    refused(
        &with("name = \"a\"\nscopes = [\"send\"]\ntoken = \"hunter2\"\ntoken_file = \"x\""),
        "pushgate.toml: grpc.tokens[0] (`a`): needs exactly one of token, token_sha256, token_file; it has token, \
         token_file",
    );
    refused(
        &with("name = \"a\"\nscopes = [\"send\"]\ntoken_sha256 = \"abc\""),
        "pushgate.toml: grpc.tokens[0] (`a`): token_sha256 must be the SHA-256 of the token, 64 hexadecimal digits; \
         this has 3 characters",
    );
    refused(
        &with("name = \"a\"\ntoken = \"hunter2\""),
        "pushgate.toml: grpc.tokens[0].scopes: is empty, so the token would open nothing; allowed values: send, \
         close, read, events, admin",
    );
    let one = with("name = \"a\"\ntoken = \"hunter2\"\nscopes = [\"send\"]\n");
    refused(
        &format!("{one}{one}"),
        "pushgate.toml: grpc.tokens[1].name: `a` is taken by an earlier token; choose another name",
    );
}

#[test]
fn keys_are_there_whole_and_told_apart() {
    let no_key = "auth.keys: no key is configured, and only the operator can know it; add a table [[auth.keys]] with \
                  algorithm = \"HS256\" and secret_file = \"/etc/pushgate/jwt.key\", or another algorithm and \
                  public_key_file";
    refused_raw("", &format!("pushgate.toml: {no_key}"));
    let nowhere = Config::load(Sources::default()).unwrap_err();
    assert_eq!(nowhere.to_string(), format!("configuration: {no_key}"));
    let key = |lines: &str| format!("[[auth.keys]]\n{lines}\n");
    let hmac = "exactly one of secret, secret_file, secret_base64";
    refused_raw(&key("algorithm = \"HS256\""), &format!("pushgate.toml: auth.keys[0]: has no key; HS256 needs {hmac}"));
    refused_raw(
        &key("algorithm = \"HS256\"\nsecret = \"hunter2\"\nsecret_base64 = \"aGk=\""),
        &format!("pushgate.toml: auth.keys[0]: has several keys (secret, secret_base64); HS256 needs {hmac}"),
    );
    refused_raw(
        &key("algorithm = \"HS512\"\npublic_key_file = \"a.pem\""),
        &format!("pushgate.toml: auth.keys[0]: public_key_file does not go with HS512, which needs {hmac}"),
    );
    refused_raw(
        &key("algorithm = \"RS256\"\nsecret = \"hunter2\""),
        "pushgate.toml: auth.keys[0]: secret does not go with RS256, which needs public_key_file",
    );
    let named = key("algorithm = \"HS256\"\nsecret = \"hunter2\"\nkid = \"a\"");
    refused_raw(
        &format!("{named}{named}"),
        "pushgate.toml: auth.keys[1].kid: `a` is taken by an earlier key; give each key a kid of its own",
    );
    Input::raw(&format!("{KEY}{KEY}")).load();
    refused(
        "[auth]\nuser_claim = []",
        "pushgate.toml: auth.user_claim: is empty, so no token would name a user; write the claims to look for, such \
         as [\"sub\", \"userId\"]",
    );
    refused(
        "[auth]\nsession_claims = [\"\"]",
        "pushgate.toml: auth.session_claims[0]: is empty; write a name or leave it out",
    );
    refused("[auth]\nissuer = [\"a\", \"\"]", "pushgate.toml: auth.issuer[1]: is empty; write a name or leave it out");
}

#[test]
fn quantities_have_bounds() {
    for (section, key, value, line) in [
        ("auth", "timeout", "\"0s\"", "`0s` is not allowed; allowed: 1ms to 1h"),
        ("auth", "leeway", "\"2d\"", "`2d` is not allowed; allowed: 0s to 1d"),
        ("heartbeat", "timeout", "\"0s\"", "`0s` is not allowed; allowed: 1ms to 1d"),
        ("shutdown", "deadline", "\"0s\"", "`0s` is not allowed; allowed: 1ms to 1d"),
        ("drain", "rate", "0", "`0` is not allowed; allowed: 10 to 1000000"),
        ("limits", "write_timeout", "\"0s\"", "`0s` is not allowed; allowed: 1ms to 1d"),
        ("delivery", "confirm_timeout", "\"0s\"", "`0s` is not allowed; allowed: 1ms to 1d"),
        ("delivery", "ack_timeout", "\"31d\"", "`31d` is not allowed; allowed: 1ms to 30d"),
        ("store", "ttl", "\"0s\"", "`0s` is not allowed; allowed: 1s to 3650d"),
        ("store", "device_ttl", "\"36500d\"", "`36500d` is not allowed; allowed: 1s to 3650d"),
        ("alerts", "fire_after", "\"2d\"", "`2d` is not allowed; allowed: 0s to 1d"),
        ("alerts", "confirm_p99", "\"2h\"", "`2h` is not allowed; allowed: 0s to 1h"),
        (
            "alerts",
            "clear_below",
            "\"0%\"",
            "`0%` is not allowed; write a share of the threshold, from \"1%\" to \"100%\"",
        ),
        (
            "alerts",
            "connections",
            "\"4GiB\"",
            "`4GiB` is a size; write a share, such as \"80%\", or a number, such as \"500\"",
        ),
        (
            "alerts",
            "disk",
            "\"4000\"",
            "`4000` has no unit; write a share, such as \"80%\", or a size, such as \"4GiB\"",
        ),
        (
            "alerts",
            "event_lag",
            "\"101%\"",
            "`101%` is not a level; write a share, such as \"80%\", a number, such as \"500\", or a size, such as \
             \"4GiB\"",
        ),
        (
            "alerts",
            "connections",
            "500",
            "found a number, expected a share, a number or a size in quotes, such as \"80%\"",
        ),
        ("clients", "reply_timeout", "\"0s\"", "`0s` is not allowed; allowed: 1ms to 1h"),
        ("limits", "message_bytes", "\"1023B\"", "`1023B` is not allowed; allowed: 1KiB to 16MiB"),
        ("limits", "notification_bytes", "\"65MiB\"", "`65MiB` is not allowed; allowed: 1KiB to 64MiB"),
        ("limits", "accepts_per_second", "100001", "`100001` is not allowed; allowed: 0 (no limit) to 100000"),
        ("limits", "messages_per_second", "100001", "`100001` is not allowed; allowed: 0 (no limit) to 100000"),
        ("limits", "handshake_timeout", "\"0s\"", "`0s` is not allowed; allowed: 1ms to 1h"),
        ("limits", "handshake_bytes", "\"65KiB\"", "`65KiB` is not allowed; allowed: 1KiB to 64KiB"),
        ("limits", "bytes_per_second", "\"1B\"", "`1B` is not allowed; allowed: 0B (no limit), or 1KiB to 1GiB"),
        (
            "limits",
            "memory",
            "\"4000\"",
            "`4000` has no unit; write a share of the machine's, such as \"80%\", or a size, such as \"4GiB\"",
        ),
        ("grpc", "max_pending_resets", "0", "`0` is not allowed; allowed: 1 to 65536"),
        ("grpc", "max_error_resets", "65537", "`65537` is not allowed; allowed: 1 to 65536"),
        ("limits", "memory", "4000", "found a number, expected a share, a number or a size in quotes, such as \"80%\""),
        ("limits", "connections_per_address", "\"many\"", "found a text, expected a whole number"),
        (
            "limits",
            "connections_per_address",
            "-1",
            "`-1` is not allowed; expected a whole number from 0 to 4294967295",
        ),
        ("grpc", "max_streams", "0", "`0` is not allowed; allowed: 1 to 1073741824"),
        ("grpc", "max_message_bytes", "\"1KiB\"", "`1KiB` is not allowed; allowed: 64KiB to 1GiB"),
        ("grpc", "keepalive_interval", "\"1ms\"", "`1ms` is not allowed; allowed: 1s to 1d"),
        ("delivery", "window", "0", "`0` is not allowed; allowed: 1 to 65536"),
        ("events", "buffer", "15", "`15` is not allowed; allowed: 16 to 16777216"),
        ("store", "path", "\"\"", "is empty; write the folder that holds the data, such as \"/var/lib/pushgate\""),
    ] {
        refused(&format!("[{section}]\n{key} = {value}"), &format!("pushgate.toml: {section}.{key}: {line}"));
    }
    refused(
        "[store]\nttl = \"31d\"",
        "pushgate.toml: store.ttl: `31d` is longer than store.max_ttl, `30d`; shorten the one or lengthen the other",
    );
    Input::toml("[limits]\nnotification_bytes = \"2MiB\"\nconnections = 0\n[shutdown]\nlb_delay = \"0s\"").load();
}

#[test]
fn the_gateways_own_types_cannot_be_forwarded() {
    let own = "is the gateway's own; write a type of your application's, or \"*\" for all";
    for name in ["ping", "auth", "subscribe", "message", "typing", "reply", "error"] {
        refused(
            &format!("[clients]\nforward = [\"order\", \"{name}\"]"),
            &format!("pushgate.toml: clients.forward[1]: `{name}` {own}"),
        );
    }
    for name in [String::new(), "t".repeat(129), "a\\n".to_owned()] {
        refused(
            &format!("[clients]\nforward = [\"{name}\"]"),
            "pushgate.toml: clients.forward[0]: is no message type; write 1 to 128 bytes without control characters, or \
             \"*\" for all",
        );
    }
    let clients = |lines: &str| Input::toml(&format!("[clients]\n{lines}")).load().config.clients;
    let some = clients("forward = [\"order\", \"notification\"]\nreply_timeout = \"1s\"");
    assert!(some.forwards("order") && some.forwards("notification") && !some.forwards("orders"));
    assert!(clients("forward = [\"*\"]").forwards("anything") && !clients("forward = []").forwards("order"));
}

#[test]
fn a_bad_log_filter_names_key_and_value() {
    let lines = Input::toml("[log]\nfilter = \"info,pushgate=loud\"").refusal();
    let line = "pushgate.toml: log.filter: `info,pushgate=loud` is not a log filter (";
    assert!(lines.len() == 1 && lines[0].starts_with(line), "{lines:?}");
}

#[test]
fn a_key_set_is_fetched_from_where_nobody_can_change_it() {
    for (line, key, text) in [
        ("url = \"x\"", "url", "is no URL such as \"https://id.example.com/.well-known/jwks.json\""),
        (
            "url = \"http://id.example.com/jwks\"",
            "url",
            "is not https, and keys that come in the clear can be anybody's; http is for 127.0.0.1, [::1] and localhost only",
        ),
        (
            "url = \"https://me:secret@id.example.com/jwks\"",
            "url",
            "holds a name or a password, which are not sent; leave them out",
        ),
        (
            "url = \"http://127.0.0.1:8080/jwks\"\nca_file = \"ca.pem\"",
            "ca_file",
            "is set, and auth.jwks.url is not https; leave it empty",
        ),
        (
            "file = \"jwks.json\"\nca_file = \"ca.pem\"",
            "ca_file",
            "is set, and auth.jwks.url is not; set that, too, or leave it empty",
        ),
    ] {
        refused_raw(&format!("[auth.jwks]\n{line}"), &format!("pushgate.toml: auth.jwks.{key}: {text}"));
    }
}

#[test]
fn the_rules_of_topics_are_read_checked_and_shown() {
    let toml = "[clients]\nmessage = [\"role=agent\"]\n[[topics]]\npattern = \"room.*\"\nsubscribe = [\"*\"]\n\
                [[topics]]\npattern = \"user.{sub}\"\npublish = [\"role=admin\"]\npresence = [\"*\"]";
    let input = Input::toml(toml);
    let config = input.load().config;
    let patterns: Vec<_> =
        config.topics.iter().map(|rule| (&*rule.pattern, rule.subscribe.len(), rule.presence.len())).collect();
    assert_eq!(patterns, [("room.*", 1, 0), ("user.{sub}", 0, 1)]);
    let shown = input.load().to_toml();
    assert_eq!(shown.matches("[[topics]]").count(), 2, "{shown}");
    assert!(shown.lines().any(|line| line.starts_with("pattern = \"user.{sub}\"  # ")), "{shown}");
    let again = Input::raw(&shown.replace("\"***\"", "\"hunter2\"")).load();
    assert_eq!(again.config, config);
    // The list is one value, also in the environment.
    let rules = "[{ pattern = \"a\", publish = [\"*\"] }]";
    let config = Input::toml(toml).env("PUSHGATE_TOPICS", rules).load().config;
    assert_eq!((config.topics.len(), &*config.topics[0].pattern), (1, "a"));

    let list = "found a text, expected a list in brackets";
    refused("[[topics]]\nsubscribe = []", "pushgate.toml: topics[0]: the key `pattern` is missing");
    refused("[[topics]]\npattern = \"a\"\npublish = \"*\"", &format!("pushgate.toml: topics[0].publish: {list}"));
    refused(
        "[[topics]]\npattern = \"a\"\nread = []",
        "pushgate.toml: unknown key `topics[0].read`; allowed here: durable, max_records, pattern, presence, publish, subscribe, ttl",
    );
    let kept = "[[topics]]\npattern = \"a\"\ndurable = true\n";
    let config =
        Input::toml(&format!("{kept}ttl = \"90d\"\nmax_records = 5\n[store]\nmax_ttl = \"100d\"")).load().config;
    assert_eq!(
        (config.topics[0].ttl, config.topics[0].max_records),
        (Some(crate::types::Span::secs(90 * 86_400)), Some(5))
    );
    for (line, key, text) in [
        ("ttl = \"31d\"", "ttl", "`31d` is not allowed; allowed: 1s to 30d (store.max_ttl)"),
        ("ttl = \"1ms\"", "ttl", "`1ms` is not allowed; allowed: 1s to 30d (store.max_ttl)"),
        ("max_records = 0", "max_records", "`0` is not allowed; allowed: 1 to 65536"),
        ("max_records = 65537", "max_records", "`65537` is not allowed; allowed: 1 to 65536"),
    ] {
        refused(&format!("{kept}{line}"), &format!("pushgate.toml: topics[0].{key}: {text}"));
        let text = "nothing is kept without `durable = true`; add that, or leave this out";
        let problems = Input::toml(&format!("[[topics]]\npattern = \"a\"\n{line}")).refusal();
        assert!(problems.contains(&format!("pushgate.toml: topics[0].{key}: {text}")), "{problems:?}");
    }
    refused(
        "[[topics]]\npattern = \"a{b\"",
        "pushgate.toml: topics[0].pattern: `a{b` is no pattern; braces hold `sub` or the name of a claim, such as \
         \"team.{team}.*\"",
    );
    refused(
        "[clients]\nmessage = [\"all\"]",
        "pushgate.toml: clients.message[0]: `all` is no grant; write \"*\" for every client, or a claim and its text, \
         such as \"role=admin\"",
    );
}

#[test]
fn several_problems_are_told_together_each_with_its_source() {
    let input = Input::raw("[http]\nlisten = []\n[heartbeat]\ninterval = \"0s\"")
        .env("PUSHGATE_EVENTS__BUFFER", "1")
        .flag("--store-path", "store.path", "");
    let beginnings =
        input.refusal().iter().map(|line| line.split(": ").take(2).collect::<Vec<_>>().join(": ")).collect::<Vec<_>>();
    assert_eq!(
        beginnings,
        [
            "pushgate.toml: http.listen",
            "pushgate.toml: auth.keys",
            "pushgate.toml: heartbeat.interval",
            "environment variable PUSHGATE_EVENTS__BUFFER: events.buffer",
            "flag --store-path: store.path",
        ]
    );
}

#[test]
fn check_reads_the_files_of_keys_and_tokens() {
    let input = Input::raw(
        "[[auth.keys]]\nkid = \"k\"\nalgorithm = \"HS256\"\nsecret_file = \"/nowhere/key\"\n[[grpc.tokens]]\nname = \
         \"orders\"\ntoken_file = \"/nowhere/token\"\nscopes = [\"send\"]",
    );
    let error = input.load().check_files().unwrap_err();
    let file = input.sources.file.as_ref().unwrap().display();
    let missing = "cannot be read: No such file or directory (os error 2)";
    assert_eq!(
        error.problems(),
        [
            format!("{file}: auth.keys[0].secret_file (kid `k`): /nowhere/key: {missing}"),
            format!("{file}: grpc.tokens[0] (`orders`): token_file /nowhere/token: {missing}"),
        ]
    );
    assert!(Input::toml("[auth]\nweak_keys = true").load().check_files().is_ok());
    let error = Input::toml("").load().check_files().unwrap_err().to_string();
    assert!(error.contains("HS256 needs 32 at least") && !error.contains("hunter2"), "{error}");
}

#[test]
fn show_gives_values_and_origins_as_toml_that_loads_again() {
    let input = Input::toml("[http]\npath = \"/a\\\"b\\\\c\"\n[limits]\nconnections = 7")
        .env("PUSHGATE_HEARTBEAT__INTERVAL", "20s")
        .flag("--ops-listen", "ops.listen", vec!["127.0.0.1:0"]);
    let shown = input.load().to_toml();
    let file = input.sources.file.as_ref().unwrap().display();
    for line in [
        format!("path = \"/a\\\"b\\\\c\"  # {file}"),
        format!("connections = 7  # {file}"),
        "connections_per_user = 100  # default".to_owned(),
        "interval = \"20s\"  # environment PUSHGATE_HEARTBEAT__INTERVAL".to_owned(),
        "listen = [\"127.0.0.1:0\"]  # flag --ops-listen".to_owned(),
        format!("algorithm = \"HS256\"  # {file}"),
        "# on_corruption is not set".to_owned(),
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} in\n{shown}");
    }
    let again = Input::raw(&shown.replace("\"***\"", "\"hunter2\"")).load();
    assert_eq!(again.config, input.load().config);
}

#[test]
fn neither_show_nor_debug_gives_a_secret_away() {
    let input = Input::raw(
        "[[auth.keys]]\nalgorithm = \"HS256\"\nsecret = \"hunter2\"\n[[auth.keys]]\nalgorithm = \"HS256\"\n\
         secret_base64 = \"aHVudGVyMg==\"\n[[grpc.tokens]]\nname = \"a\"\ntoken = \"hunter2\"\nscopes = [\"send\"]\n\
         [[grpc.tokens]]\nname = \"b\"\n\
         token_sha256 = \"f52fbd32b2b3b86ff88ef6c490628285f482af15ddcb29541f94bcf526a3f6c7\"\nscopes = [\"read\"]",
    )
    .env("PUSHGATE_STORE__PATH", "x");
    let shown = gives_no_secret_away(&input, &["hunter2", "aHVudGVyMg", "f52fbd32"]);
    for line in ["secret = \"***\"", "secret_base64 = \"***\"", "token = \"***\"", "token_sha256 = \"***\""] {
        assert_eq!(shown.matches(line).count(), 1, "{line} in\n{shown}");
    }
    let input = Input::raw("[[auth.keys]]\nalgorithm = \"HS256\"\nsecret = \"hunter1\"")
        .env("PUSHGATE_AUTH__KEYS", "[{algorithm = \"HS256\", secret = \"hunter2\"}]")
        .env("PUSHGATE_GRPC__TOKENS", "[{name = \"a\", token = \"hunter3\", scopes = [\"send\"]}]");
    gives_no_secret_away(&input, &["hunter1", "hunter2", "hunter3"]);
}

/// What `config show` prints, once nothing that can be printed of the configuration or its sources has one of the secrets.
#[track_caller]
fn gives_no_secret_away(input: &Input, secrets: &[&str]) -> String {
    let loaded = input.load();
    let shown = loaded.to_toml();
    for (what, text) in [
        ("config show", shown.clone()),
        ("the configuration", format!("{:?} {:#?}", loaded.config, loaded.config)),
        ("it with its origins", format!("{loaded:?} {loaded:#?}")),
        ("its sources", format!("{:?} {:#?}", input.sources, input.sources)),
        ("it as JSON", serde_json::to_string(&loaded.config).unwrap()),
    ] {
        for secret in secrets {
            assert!(!text.contains(secret), "{what} has {secret}: {text}");
        }
    }
    shown
}

#[test]
fn a_collector_has_an_address_and_a_build_that_can_speak_to_it() {
    let wrong = "is no URL such as \"http://127.0.0.1:4318\" or \"https://otel.example.com:4318\"";
    refused(
        "[otlp]\nendpoint = \"collector:4317\"",
        &format!("pushgate.toml: otlp.endpoint: `collector:4317` {wrong}"),
    );
    refused(
        "[otlp]\nendpoint = \"http://me:secret@collector:4318\"",
        "pushgate.toml: otlp.endpoint: holds a name or a password, which are not sent; put an authorization header into \
         otlp.headers_file",
    );
    refused(
        "[otlp]\nsample_ratio = 0.5",
        "pushgate.toml: otlp.sample_ratio: found a number with a fraction, expected a share in quotes, such as \"1%\"",
    );
    refused(
        "[otlp]\nsample_ratio = \"2\"",
        "pushgate.toml: otlp.sample_ratio: `2` is not a share; write a share in quotes, from \"0%\" to \"100%\", with four \
         digits behind the point at most, such as \"0.5%\"",
    );
    refused("[otlp]\ntimeout = \"0s\"", "pushgate.toml: otlp.timeout: `0s` is not allowed; allowed: 1ms to 1h");
    refused(
        "[otlp]\nservice_name = \"\"",
        "pushgate.toml: otlp.service_name: must have 1 to 255 bytes, such as \"pushgate\"",
    );
    let good = Input::toml("[otlp]\nendpoint = \"http://127.0.0.1:4318\"\nsample_ratio = \"0.5%\"");
    if crate::otlp::IS_BUILT_IN {
        assert_eq!(good.load().config.otlp.sample_ratio.to_string(), "0.5%");
        refused(
            "[otlp]\nendpoint = \"http://collector:4318\"\nheaders_file = \"headers\"",
            "pushgate.toml: otlp.headers_file: would be sent in the clear to another machine; use https in otlp.endpoint, or \
             a collector on 127.0.0.1, [::1] or localhost",
        );
    } else {
        let line = "pushgate.toml: otlp.endpoint: this build cannot export traces; use one with the cargo feature `otlp`, \
                    which the packages have, or leave the key out";
        assert_eq!(good.refusal(), [line]);
    }
}
