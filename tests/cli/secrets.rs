//! `token` and `init`: what they make is what the gateway takes.

use std::os::unix::fs::PermissionsExt as _;

use pushgate::{
    auth::{Algorithm, Authenticator, Config, KeyConfig},
    clock::Clock,
    types::Secret,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::{Gateway, SECRET, pushgate, write_configuration};

fn claims(token: &str) -> Value {
    use base64::Engine as _;
    let payload = token.trim().split('.').nth(1).unwrap();
    serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

fn authenticator(key: KeyConfig) -> Authenticator {
    Authenticator::new(&Config { keys: vec![key], ..Config::default() }, Clock::system()).unwrap()
}

#[test]
fn a_user_token_is_signed_with_the_configured_secret() {
    let folder = tempfile::tempdir().unwrap();
    let file = write_configuration(folder.path(), "");
    let args = ["token", "user", "--sub", "alice", "--ttl", "5m", "--claim", "device=phone", "--claim", "level=3"];
    let run = pushgate(&[&args[..], &["--config", &file]].concat());
    assert!(run.stderr.is_empty(), "{run:?}");
    let token = run.ok();
    assert_eq!(token.lines().count(), 1, "the token alone");

    let key = KeyConfig { secret: Secret::new(SECRET), ..KeyConfig::new(Algorithm::HS256) };
    let identity = authenticator(key).verify(token.trim()).unwrap();
    assert_eq!((identity.user().as_str(), identity.device().unwrap().as_str()), ("alice", "phone"));
    let claims = claims(&token);
    assert_eq!(claims["level"], json!(3));
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 300);

    let json = pushgate(&["token", "user", "--sub", "bob", "--json", "--config", &file]).json();
    assert_eq!(self::claims(json["token"].as_str().unwrap())["sub"], json!("bob"));
    let run = pushgate(&["token", "user", "--sub", "bob", "--key-kid", "other", "--config", &file]);
    run.fails(78, "has no HMAC key with the kid `other`");
    pushgate(&["token", "user", "--sub", "", "--config", &file]).fails(2, "--sub `` is not a user id");
    let run = pushgate(&["token", "user", "--sub", "bob", "--claim", "device=no spaces", "--config", &file]);
    run.fails(1, "the gateway would refuse this token (token_invalid)");
}

#[test]
fn a_user_token_says_what_the_configuration_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    let further = "[auth]\nuser_claim = [\"uid\"]\nissuer = [\"me\"]\naudience = [\"us\", \"them\"]\n";
    let file = write_configuration(folder.path(), further);
    let token = pushgate(&["token", "user", "--sub", "alice", "--claim", "aud=them", "--config", &file]).ok();
    let claims = claims(&token);
    assert_eq!((&claims["uid"], &claims["iss"], &claims["aud"]), (&json!("alice"), &json!("me"), &json!("them")));
}

#[test]
fn a_user_token_is_signed_with_a_key_that_is_given() {
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/keys");
    for (algorithm, name) in [
        (Algorithm::RS256, "rsa"),
        (Algorithm::PS512, "rsa"),
        (Algorithm::ES256, "p256"),
        (Algorithm::ES384, "p384"),
        (Algorithm::EdDSA, "ed25519"),
    ] {
        let private = format!("{keys}/test-{name}-private.pem");
        let token = pushgate(&[
            "token",
            "user",
            "--sub",
            "alice",
            "--private-key-file",
            &private,
            "--algorithm",
            algorithm.as_str(),
            "--key-kid",
            "k1",
        ]);
        let public_key_file = format!("{keys}/test-{name}-public.pem").into();
        let key = KeyConfig { public_key_file, kid: "k1".to_owned(), ..KeyConfig::new(algorithm) };
        assert_eq!(authenticator(key).verify(token.ok().trim()).unwrap().user().as_str(), "alice", "{algorithm:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    // HS512 wants 64 bytes.
    let long = SECRET.repeat(2);
    std::fs::write(&secret, format!("{long}\n")).unwrap();
    let secret = secret.to_str().unwrap();
    let token = pushgate(&["token", "user", "--sub", "alice", "--secret-file", secret, "--algorithm", "HS512"]).ok();
    let key = KeyConfig { secret: Secret::new(long), ..KeyConfig::new(Algorithm::HS512) };
    authenticator(key).verify(token.trim()).unwrap();

    let wrong = ["token", "user", "--sub", "a", "--private-key-file", secret, "--algorithm", "ES256"];
    pushgate(&wrong).fails(1, "does not hold a private key in PEM for ES256");
    let wrong = ["token", "user", "--sub", "a", "--secret-file", secret, "--algorithm", "ES256"];
    pushgate(&wrong).fails(2, "--secret-file does not go with --algorithm ES256");
    let missing = ["token", "user", "--sub", "a", "--secret-file", "/nowhere/secret"];
    pushgate(&missing).fails(1, "cannot read /nowhere/secret");
}

#[test]
fn an_admin_token_and_its_block_belong_together() {
    let run = pushgate(&["token", "admin", "--name", "my \"orders\"", "--scopes", "send,read"]);
    let (token, block) = (run.stdout.trim().to_owned(), run.stderr.clone());
    assert!(!block.contains(&token), "the token is printed once: {run:?}");
    let folder = tempfile::tempdir().unwrap();
    let file = write_configuration(folder.path(), &block);
    let gateway = Gateway::start(folder, &file);
    gateway.over_tcp(&["send", "alice", "{}"], &token).ok();
    gateway.over_tcp(&["close", "alice"], &token).fails(77, "caller `my \"orders\"` lacks the scope `close`");

    let json = pushgate(&["token", "admin", "--name", "x", "--scopes", "admin", "--json"]).json();
    let hash: String = Sha256::digest(json["token"].as_str().unwrap()).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(json["tokenSha256"], json!(hash));
    assert_eq!(json["scopes"], json!(["admin"]));
}

#[test]
fn init_writes_a_file_that_only_its_owner_reads_and_never_overwrites_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/pushgate.toml");
    let file = path.to_str().unwrap();
    let run = pushgate(&["init", "--config", file]);
    let text = std::fs::read_to_string(&path).unwrap();
    let token = run.stdout.trim();
    assert!(token.len() == 43 && !text.contains(token) && !run.stderr.contains(token), "{run:?}");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    pushgate(&["config", "check", "--config", file]).ok();

    pushgate(&["init", "--config", file]).fails(1, "exists and stays as it is");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    for number in [1, 2] {
        let before = std::fs::read_to_string(&path).unwrap();
        let json = pushgate(&["init", "--config", file, "--force", "--json"]).json();
        let moved = format!("{file}.old-{number}");
        assert_eq!((&json["config"], &json["movedTo"]), (&json!(file), &json!(moved)));
        assert_eq!(std::fs::read_to_string(moved).unwrap(), before);
        assert_ne!(std::fs::read_to_string(&path).unwrap(), before, "secrets are fresh");
    }
    let long = folder.path().join("x".repeat(100)).join("pushgate.toml");
    pushgate(&["init", "--config", long.to_str().unwrap()]).fails(1, "choose a folder whose path is shorter");
    pushgate(&["init", "--config", "/proc/pushgate.toml"]).fails(1, "cannot write /proc/pushgate.toml");
}
