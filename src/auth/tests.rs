//! What is accepted, what is refused and with which code, and that nothing a client sends can do more than be refused.

use std::{path::Path, time::Duration};

use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{EncodingKey, crypto};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::types::{Secret, Span};

const NOW: u64 = 1_800_000_000;
const RSA_PRIVATE: &[u8] = include_bytes!("../../tests/keys/test-rsa-private.pem");
const RSA_PUBLIC: &[u8] = include_bytes!("../../tests/keys/test-rsa-public.pem");
const P256_PRIVATE: &[u8] = include_bytes!("../../tests/keys/test-p256-private.pem");
const P384_PRIVATE: &[u8] = include_bytes!("../../tests/keys/test-p384-private.pem");
const ED25519_PRIVATE: &[u8] = include_bytes!("../../tests/keys/test-ed25519-private.pem");

fn clock() -> Clock {
    Clock::simulated(Duration::from_secs(NOW))
}

fn key_file(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys").join(name)
}

fn hmac_key(kid: &str, secret: &str) -> KeyConfig {
    KeyConfig { kid: kid.to_owned(), secret: Secret::new(secret), ..KeyConfig::new(Algorithm::HS256) }
}

fn public_key(algorithm: Algorithm, name: &str) -> KeyConfig {
    KeyConfig { public_key_file: key_file(name), ..KeyConfig::new(algorithm) }
}

fn config(keys: Vec<KeyConfig>) -> Config {
    Config { keys, weak_keys: true, ..Config::default() }
}

fn authenticator(config: &Config) -> Authenticator {
    Authenticator::new(config, clock()).unwrap()
}

fn default_one() -> Authenticator {
    authenticator(&config(vec![hmac_key("", "secret")]))
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn signed(header: Value, claims: Value, key: &EncodingKey, algorithm: jsonwebtoken::Algorithm) -> String {
    let message = format!("{}.{}", part(&header), part(&claims));
    let signature = crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn hs256(secret: &str, claims: Value) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    signed(json!({"alg": "HS256", "typ": "JWT"}), claims, &key, jsonwebtoken::Algorithm::HS256)
}

fn hs256_kid(kid: &str, secret: &str) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    signed(json!({"alg": "HS256", "kid": kid}), good_claims(), &key, jsonwebtoken::Algorithm::HS256)
}

fn good_claims() -> Value {
    json!({"sub": "user123", "exp": NOW + 60})
}

fn code(result: Result<Identity, AuthError>) -> AuthCode {
    result.unwrap_err().code
}

fn claims_code(config: &Config, claims: Value) -> Result<Identity, AuthCode> {
    authenticator(config).verify(&hs256("secret", claims)).map_err(|error| error.code)
}

#[test]
fn every_algorithm_verifies_its_own_tokens_and_no_others() {
    let rsa = || EncodingKey::from_rsa_pem(RSA_PRIVATE).unwrap();
    let hmac = || EncodingKey::from_secret(b"secret");
    let cases = [
        (Algorithm::HS256, hmac(), jsonwebtoken::Algorithm::HS256, ""),
        (Algorithm::HS384, hmac(), jsonwebtoken::Algorithm::HS384, ""),
        (Algorithm::HS512, hmac(), jsonwebtoken::Algorithm::HS512, ""),
        (Algorithm::RS256, rsa(), jsonwebtoken::Algorithm::RS256, "test-rsa-public.pem"),
        (Algorithm::RS384, rsa(), jsonwebtoken::Algorithm::RS384, "test-rsa-public.pem"),
        (Algorithm::RS512, rsa(), jsonwebtoken::Algorithm::RS512, "test-rsa-public.pem"),
        (Algorithm::PS256, rsa(), jsonwebtoken::Algorithm::PS256, "test-rsa-public.pem"),
        (Algorithm::PS384, rsa(), jsonwebtoken::Algorithm::PS384, "test-rsa-public.pem"),
        (Algorithm::PS512, rsa(), jsonwebtoken::Algorithm::PS512, "test-rsa-public.pem"),
        (
            Algorithm::ES256,
            EncodingKey::from_ec_pem(P256_PRIVATE).unwrap(),
            jsonwebtoken::Algorithm::ES256,
            "test-p256-public.pem",
        ),
        (
            Algorithm::ES384,
            EncodingKey::from_ec_pem(P384_PRIVATE).unwrap(),
            jsonwebtoken::Algorithm::ES384,
            "test-p384-public.pem",
        ),
        (
            Algorithm::EdDSA,
            EncodingKey::from_ed_pem(ED25519_PRIVATE).unwrap(),
            jsonwebtoken::Algorithm::EdDSA,
            "test-ed25519-public.pem",
        ),
    ];
    assert_eq!(cases.len(), Algorithm::ALL.len());
    let all: Vec<_> = cases
        .iter()
        .map(|(algorithm, key, library, file)| {
            let config = if file.is_empty() {
                KeyConfig { secret: Secret::new("secret"), ..KeyConfig::new(*algorithm) }
            } else {
                public_key(*algorithm, file)
            };
            let token = signed(json!({"alg": algorithm.as_str()}), good_claims(), key, *library);
            (algorithm, authenticator(&self::config(vec![config])), token)
        })
        .collect();
    for (of_key, authenticator, _) in &all {
        for (of_token, _, token) in &all {
            let verdict = authenticator.verify(token);
            assert_eq!(verdict.is_ok(), of_key == of_token, "{of_token:?} with a key for {of_key:?}");
        }
    }
}

#[test]
fn the_well_known_node_recipe_verifies_without_exp() {
    // jsonwebtoken.sign({userId: "user123"}, "secret") of Node, at a fixed time.
    let token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ1c2VySWQiOiJ1c2VyMTIzIiwiaWF0IjoxNzAwMDAwMDAwfQ.MMcIOYcMnCQnwwnkESYSSOdxvCZBIglh58UupETggd8";
    let config = Config { require_exp: false, ..config(vec![hmac_key("", "secret")]) };
    let identity = authenticator(&config).verify(token).unwrap();
    assert_eq!(identity.user().as_str(), "user123");
    assert_eq!((identity.expires_at(), identity.valid_until(), identity.device()), (None, None, None));
    let error = default_one().verify(token).unwrap_err();
    assert_eq!(error.code, AuthCode::TokenInvalid);
    assert_eq!(error.message, "the token has no `exp` claim, and one is required");
    assert_eq!(error.user, Some(UserId::parse("user123").unwrap()), "the signature held, so the user is known");
}

#[test]
fn a_token_cannot_choose_its_algorithm() {
    let rsa = authenticator(&config(vec![public_key(Algorithm::RS256, "test-rsa-public.pem")]));
    for secret in [RSA_PUBLIC, RSA_PUBLIC.trim_ascii_end()] {
        let key = EncodingKey::from_secret(secret);
        for alg in ["HS256", "RS256"] {
            let token = signed(json!({"alg": alg}), good_claims(), &key, jsonwebtoken::Algorithm::HS256);
            assert_eq!(code(rsa.verify(&token)), AuthCode::TokenInvalid, "{alg}");
        }
    }
    let hmac = default_one();
    for alg in ["none", "None", "nOnE", "", "HS257"] {
        let header = part(&json!({"alg": alg}));
        let claims = part(&good_claims());
        for token in [format!("{header}.{claims}."), format!("{header}.{claims}"), format!("{header}.{claims}.AAAA")] {
            assert_eq!(code(hmac.verify(&token)), AuthCode::TokenInvalid, "{token}");
        }
    }
    let unsigned = hs256("secret", good_claims());
    let unsigned = &unsigned[..=unsigned.rfind('.').unwrap()];
    assert_eq!(code(hmac.verify(unsigned)), AuthCode::TokenInvalid);
}

#[test]
fn critical_extensions_are_refused() {
    let key = EncodingKey::from_secret(b"secret");
    let header = json!({"alg": "HS256", "crit": ["b64"], "b64": false});
    let token = signed(header, good_claims(), &key, jsonwebtoken::Algorithm::HS256);
    assert_eq!(code(default_one().verify(&token)), AuthCode::TokenInvalid);
}

#[test]
fn kid_chooses_the_key() {
    let keys = vec![hmac_key("a", "key a"), hmac_key("b", "key b"), hmac_key("", "no kid")];
    let authenticator = authenticator(&config(keys));
    assert_eq!(authenticator.key_count(), 3);
    assert!(authenticator.verify(&hs256_kid("a", "key a")).is_ok());
    assert!(authenticator.verify(&hs256_kid("b", "key b")).is_ok());
    assert_eq!(code(authenticator.verify(&hs256_kid("a", "key b"))), AuthCode::TokenInvalid);
    assert_eq!(code(authenticator.verify(&hs256_kid("a", "no kid"))), AuthCode::TokenInvalid, "a has a key of its own");
    assert!(authenticator.verify(&hs256_kid("unknown", "no kid")).is_ok());
    assert_eq!(code(authenticator.verify(&hs256_kid("unknown", "key a"))), AuthCode::TokenInvalid);
    for secret in ["key a", "key b", "no kid"] {
        assert!(authenticator.verify(&hs256(secret, good_claims())).is_ok(), "without kid every key is tried");
    }
}

#[test]
fn the_message_says_which_step_failed_and_nothing_of_the_token() {
    let authenticator = authenticator(&config(vec![hmac_key("a", "key a")]));
    for (token, message) in [
        (hs256_kid("hunter2", "key a"), "the token's key is not known here"),
        (hs256_kid("a", "hunter2"), "the token's signature does not match"),
        (
            signed(
                json!({"alg": "HS384"}),
                good_claims(),
                &EncodingKey::from_secret(b"key a"),
                jsonwebtoken::Algorithm::HS384,
            ),
            "the token's algorithm is not that of its key",
        ),
        ("hunter2".to_owned(), "this is not a signed JSON Web Token"),
        ("x".repeat(limits::TOKEN_BYTES_MAX + 1), "the token is longer than 7168 bytes"),
        (
            hs256("key a", json!({"exp": NOW + 9, "sub": "hunter2\n"})),
            "the token's claim `sub` is not a user id: a user id must not hold control characters",
        ),
        (hs256("key a", json!({"exp": "hunter2"})), "the token's claim `exp` must be a number of seconds"),
        (hs256("key a", json!(["hunter2"])), "the token's claims are not a JSON object"),
    ] {
        let error = authenticator.verify(&token).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (AuthCode::TokenInvalid, message));
    }
    assert_eq!(code(authenticator.verify("")), AuthCode::TokenMissing);
}

#[tokio::test(start_paused = true)]
async fn exp_and_nbf_hold_to_the_millisecond_with_the_leeway() {
    let config = Config { leeway: Span::secs(30), ..config(vec![hmac_key("", "secret")]) };
    for exp in [json!(NOW - 29), json!(NOW - 30 + 1), json!((NOW - 30) as f64 + 0.001)] {
        assert!(claims_code(&config, json!({"sub": "u", "exp": exp})).is_ok(), "{exp}");
    }
    for exp in [json!(NOW - 30), json!((NOW - 30) as f64 - 0.5), json!(0), json!(-1), json!(-1e300)] {
        assert_eq!(claims_code(&config, json!({"sub": "u", "exp": exp})), Err(AuthCode::TokenExpired), "{exp}");
    }
    for nbf in [json!(NOW + 30), json!(0), json!(-5), json!(NOW as f64 + 29.999)] {
        assert!(claims_code(&config, json!({"sub": "u", "exp": NOW + 99, "nbf": nbf})).is_ok(), "{nbf}");
    }
    for nbf in [json!(NOW + 31), json!(NOW as f64 + 30.001), json!(1e300), json!(u64::MAX), json!("0"), json!(null)] {
        let verdict = claims_code(&config, json!({"sub": "u", "exp": NOW + 99, "nbf": nbf}));
        assert_eq!(verdict, Err(AuthCode::TokenInvalid), "{nbf}");
    }
}

#[test]
fn absurd_times_do_not_overflow() {
    for exp in [json!(u64::MAX), json!(1e300), json!(i64::MAX), json!(f64::MAX)] {
        let identity = default_one().verify(&hs256("secret", json!({"sub": "u", "exp": exp}))).unwrap();
        assert_eq!(identity.expires_at(), Some(UnixMillis(u64::MAX)), "{exp}");
        assert_eq!(identity.valid_until(), Some(UnixMillis(u64::MAX)), "{exp}");
    }
    for exp in [json!("soon"), json!(null), json!(true), json!([]), json!({})] {
        let verdict = claims_code(&config(vec![hmac_key("", "secret")]), json!({"sub": "u", "exp": exp}));
        assert_eq!(verdict, Err(AuthCode::TokenInvalid), "{exp}");
    }
    let config = Config { leeway: Span(Duration::MAX), ..config(vec![hmac_key("", "secret")]) };
    assert!(claims_code(&config, json!({"sub": "u", "exp": 1, "nbf": 1e300})).is_ok());
}

#[test]
fn expires_at_is_exp_and_valid_until_adds_the_leeway() {
    let identity = default_one().verify(&hs256("secret", json!({"sub": "u", "exp": NOW as f64 + 1.5}))).unwrap();
    assert_eq!(identity.expires_at(), Some(UnixMillis(NOW * 1000 + 1500)));
    assert_eq!(identity.valid_until(), Some(UnixMillis(NOW * 1000 + 31_500)));
}

#[test]
fn issuer_and_audience_are_checked_where_they_are_configured() {
    let open = config(vec![hmac_key("", "secret")]);
    let with = |iss: Value, aud: Value| json!({"sub": "u", "exp": NOW + 9, "iss": iss, "aud": aud});
    assert!(claims_code(&open, with(json!("anyone"), json!("anywhere"))).is_ok());
    assert!(claims_code(&open, with(json!(7), json!({"odd": true}))).is_ok());

    let strict = Config { issuer: vec!["i1".into(), "i2".into()], audience: vec!["push".into()], ..open };
    for (iss, aud) in [("i1", json!("push")), ("i2", json!(["other", "push"]))] {
        assert!(claims_code(&strict, with(json!(iss), aud)).is_ok());
    }
    for iss in [json!("i3"), json!(null), json!(["i1"]), json!("")] {
        assert_eq!(claims_code(&strict, with(iss, json!("push"))), Err(AuthCode::IssuerMismatch));
    }
    for aud in [json!("other"), json!([]), json!([1, null]), json!(null), json!({"push": 1})] {
        assert_eq!(claims_code(&strict, with(json!("i1"), aud)), Err(AuthCode::AudienceMismatch));
    }
    assert_eq!(claims_code(&strict, json!({"sub": "u", "exp": NOW + 9})), Err(AuthCode::IssuerMismatch));
}

#[test]
fn the_user_is_the_first_configured_claim_that_is_there() {
    let config = config(vec![hmac_key("", "secret")]);
    let user = |claims: Value| {
        let mut claims = claims;
        claims["exp"] = json!(NOW + 9);
        claims_code(&config, claims).map(|identity| identity.user().as_str().to_owned())
    };
    assert_eq!(user(json!({"sub": "a", "userId": "b"})), Ok("a".to_owned()));
    assert_eq!(user(json!({"userId": "b"})), Ok("b".to_owned()));
    assert_eq!(user(json!({"sub": null, "userId": "b"})), Ok("b".to_owned()));
    assert_eq!(user(json!({"sub": 42})), Ok("42".to_owned()));
    assert_eq!(user(json!({"sub": -42})), Ok("-42".to_owned()));
    assert_eq!(user(json!({"sub": u64::MAX})), Ok("18446744073709551615".to_owned()));
    assert_eq!(user(json!({"user": "a"})), Err(AuthCode::UserMissing));
    for bad in [json!(""), json!("a\u{0}"), json!("x".repeat(256)), json!(1.5), json!(1e30), json!(true), json!(["a"])]
    {
        assert_eq!(user(json!({"sub": bad, "userId": "b"})), Err(AuthCode::TokenInvalid), "{bad}");
    }
}

#[test]
fn the_topics_claim_names_topics() {
    let topics = |claim: Value| {
        let token = hs256("secret", json!({ "sub": "a", "exp": NOW + 60, "topics": claim }));
        let identity = default_one().verify(&token);
        identity.map(|identity| identity.topics().iter().map(|topic| topic.as_str().to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(topics(json!(["room.1", "news"])).unwrap(), ["room.1", "news"]);
    assert_eq!(topics(json!("room.1")).unwrap(), ["room.1"]);
    for none in [json!(null), json!([])] {
        assert_eq!(topics(none).unwrap(), [""; 0]);
    }
    let long = "x".repeat(201);
    for (bad, text) in [
        (json!(7), "the token's claim `topics` must be a list of strings"),
        (json!(["a", 7]), "the token's claim `topics` must be a list of strings"),
        (json!({ "a": 1 }), "the token's claim `topics` must be a list of strings"),
        (
            json!(["a", ""]),
            "the token's claim `topics` holds what is none: a topic must have 1 to 200 bytes, this one has 0",
        ),
        (
            json!([long]),
            "the token's claim `topics` holds what is none: a topic must have 1 to 200 bytes, this one has 201",
        ),
        (json!(["a\n"]), "the token's claim `topics` holds what is none: a topic must not hold control characters"),
    ] {
        let error = topics(bad).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (AuthCode::TokenInvalid, text));
    }
}

#[test]
fn the_device_claim_names_the_device() {
    let config = config(vec![hmac_key("", "secret")]);
    let device = |value: Value| {
        claims_code(&config, json!({"sub": "u", "exp": NOW + 9, "device": value}))
            .map(|identity| identity.device().map(|device| device.as_str().to_owned()))
    };
    assert_eq!(device(json!("phone-1")), Ok(Some("phone-1".to_owned())));
    assert_eq!(device(json!(null)), Ok(None));
    for bad in [json!("a b"), json!("x".repeat(65)), json!(1), json!(["phone"])] {
        assert_eq!(device(bad), Err(AuthCode::TokenInvalid));
    }
}

#[test]
fn verdicts_come_in_order() {
    let config =
        Config { issuer: vec!["i".into()], audience: vec!["a".into()], ..config(vec![hmac_key("", "secret")]) };
    let mut claims = json!({"exp": 1, "device": "a b"});
    assert_eq!(code(authenticator(&config).verify(&hs256("wrong", claims.clone()))), AuthCode::TokenInvalid);
    assert_eq!(claims_code(&config, claims.clone()), Err(AuthCode::TokenExpired));
    claims["exp"] = json!(NOW + 9);
    assert_eq!(claims_code(&config, claims.clone()), Err(AuthCode::IssuerMismatch));
    claims["iss"] = json!("i");
    assert_eq!(claims_code(&config, claims.clone()), Err(AuthCode::AudienceMismatch));
    claims["aud"] = json!("a");
    assert_eq!(claims_code(&config, claims.clone()), Err(AuthCode::UserMissing));
    claims["sub"] = json!("u");
    assert_eq!(claims_code(&config, claims.clone()), Err(AuthCode::TokenInvalid), "the device");
}

#[test]
fn secrets_come_as_text_file_or_base64() {
    let folder = tempfile::tempdir().unwrap();
    let file = |bytes: &[u8]| {
        let path = folder.path().join("secret");
        std::fs::write(&path, bytes).unwrap();
        KeyConfig { secret_file: path, ..KeyConfig::new(Algorithm::HS256) }
    };
    let base64 = |text: &str| KeyConfig { secret_base64: Secret::new(text), ..KeyConfig::new(Algorithm::HS256) };
    let verifies = |secret: &[u8], key: KeyConfig| {
        let signer = EncodingKey::from_secret(secret);
        let token = signed(json!({"alg": "HS256"}), good_claims(), &signer, jsonwebtoken::Algorithm::HS256);
        authenticator(&config(vec![key])).verify(&token).is_ok()
    };
    assert!(verifies(b"s\xff\x00t", file(b"s\xff\x00t")));
    assert!(verifies(b"secret", file(b"secret\n")));
    assert!(verifies(b"secret", file(b"secret\r\n")));
    assert!(verifies(b"secret\n", file(b"secret\n\n")), "one newline, not all");
    assert!(verifies(b" secret ", file(b" secret ")));
    for text in ["//79", "__79"] {
        assert!(verifies(b"\xff\xfe\xfd", base64(text)));
    }
    assert!(verifies(b"a", base64("YQ==")) && verifies(b"a", base64("YQ")));
}

fn key_error(key: KeyConfig) -> String {
    let keys = vec![hmac_key("", "good"), key];
    Authenticator::new(&config(keys), clock()).err().expect("the key must be refused").to_string()
}

#[test]
fn a_key_that_cannot_be_used_is_named_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let secret_file = |path| KeyConfig { kid: "k".into(), secret_file: path, ..KeyConfig::new(Algorithm::HS512) };
    let missing = folder.path().join("missing");
    assert_eq!(
        key_error(secret_file(missing.clone())),
        format!(
            "auth.keys[1].secret_file (kid `k`): {}: cannot be read: No such file or directory (os error 2)",
            missing.display()
        )
    );
    for empty in [&b""[..], b"\n", b"\r\n"] {
        let path = write("empty", empty);
        let text = format!("auth.keys[1].secret_file (kid `k`): {}: holds an empty secret", path.display());
        assert_eq!(key_error(secret_file(path)), text);
    }
    assert!(key_error(secret_file(write("large", &[b'x'; 70_000]))).ends_with("cannot be a key"));
    assert_eq!(
        key_error(KeyConfig::new(Algorithm::HS256)),
        "auth.keys[1]: has no key; HS256 needs exactly one of secret, secret_file, secret_base64"
    );
    let base64 = KeyConfig { secret_base64: Secret::new("hunter2!"), ..KeyConfig::new(Algorithm::HS256) };
    assert_eq!(key_error(base64), "auth.keys[1].secret_base64: is not base64");
    let both = KeyConfig { public_key_file: "x.pem".into(), ..hmac_key("", "hunter2") };
    assert_eq!(
        key_error(both),
        "auth.keys[1]: has several keys (secret, public_key_file); HS256 needs exactly one of secret, secret_file, \
         secret_base64"
    );
    let wrong_sort = KeyConfig { algorithm: Algorithm::ES256, ..hmac_key("", "hunter2") };
    assert_eq!(key_error(wrong_sort), "auth.keys[1]: secret does not go with ES256, which needs public_key_file");
    // Others know it: what is made with it proves nothing.
    for (name, bytes, what) in public_keys() {
        let written = write(name, &bytes);
        let mut wrong = vec![
            KeyConfig { secret_file: written, ..KeyConfig::new(Algorithm::HS256) },
            KeyConfig { secret_base64: Secret::new(STANDARD.encode(&bytes)), ..KeyConfig::new(Algorithm::HS256) },
        ];
        wrong.extend(str::from_utf8(&bytes).map(|text| hmac_key("", text)));
        for key in wrong {
            let error = key_error(key);
            assert!(error.starts_with("auth.keys[1].secret"), "{name}: {error}");
            assert!(error.contains(&format!(": holds {what}, where a secret for HMAC belongs")), "{name}: {error}");
            assert!(!error.contains('\n') && !error.contains("AAAA"), "{name}: {error}");
        }
    }
}

/// Keys in the forms in which they are handed about, and what they are called.
fn public_keys() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let file = |name: &str| std::fs::read(key_file(name)).unwrap();
    let der = |pem: &[u8]| {
        let text = str::from_utf8(pem).unwrap();
        STANDARD.decode(text.lines().filter(|line| !line.starts_with('-')).collect::<String>()).unwrap()
    };
    let rsa = der(RSA_PUBLIC);
    // `RSAPublicKey` stands in the bit string behind the algorithm.
    let at = rsa.windows(2).skip(4).position(|two| two == [0x30, 0x82]).unwrap() + 4;
    let mut ends_a_line = der(&file("test-p256-public.pem"));
    *ends_a_line.last_mut().unwrap() = b'\n';
    let (pem, in_der, ssh) =
        ("a public key or a certificate in PEM", "a public key or a certificate in DER", "a public key of SSH");
    let ssh_key =
        |name: &str| format!("{name} AAAAC3NzaC1lZDI1NTE5AAAAIMGgZ3s2xw8b4xkBYpHXvWm0Kd4m ann@host\n").into_bytes();
    vec![
        ("rsa.pem", RSA_PUBLIC.to_vec(), pem),
        ("p256.pem", [b"\xef\xbb\xbf", &file("test-p256-public.pem")[..]].concat(), pem),
        ("ed25519.pem", file("test-ed25519-public.pem"), pem),
        ("certificate.pem", file("test-tls-certificate.pem"), pem),
        ("rsa.der", rsa.clone(), in_der),
        ("pkcs1.der", rsa[at..].to_vec(), in_der),
        ("p384.der", der(&file("test-p384-public.pem")), in_der),
        ("p256.der", ends_a_line, in_der),
        ("certificate.der", der(&file("test-tls-certificate.pem")), in_der),
        ("rsa.base64", STANDARD.encode(&rsa).into_bytes(), in_der),
        ("rsa.ssh", ssh_key("ssh-rsa"), ssh),
        ("ed25519.ssh", ssh_key("ssh-ed25519"), ssh),
        ("p256.ssh", ssh_key("ecdsa-sha2-nistp256"), ssh),
        ("key.json", br#"{"kty":"RSA","n":"AQ","e":"AQAB"}"#.to_vec(), "a JSON Web Key"),
        ("private.pem", RSA_PRIVATE.to_vec(), "a private key"),
    ]
}

#[test]
fn a_public_key_in_a_set_is_no_secret_either() {
    for (name, bytes, what) in public_keys() {
        let k = URL_SAFE_NO_PAD.encode(&bytes);
        let set = json!({ "keys": [{ "kty": "oct", "alg": "HS256", "kid": "k", "k": k }] }).to_string();
        for weak_too in [false, true] {
            let refused = jwk::parse(set.as_bytes(), jwk::From::File, weak_too).unwrap_err();
            assert!(refused.contains(&format!("(kid `k`): holds {what}, where a secret")), "{name}: {refused}");
        }
    }
}

proptest! {
    #[test]
    fn a_secret_that_is_drawn_is_taken(secret in prop::collection::vec(any::<u8>(), 32..600)) {
        prop_assert!(keys::Key::secret(None, Algorithm::HS256, &secret, false).is_ok());
        prop_assert!(keys::Key::secret(None, Algorithm::HS256, STANDARD.encode(&secret).as_bytes(), false).is_ok());
    }
}

#[test]
fn a_public_key_must_be_what_its_algorithm_takes() {
    let problem = |algorithm, name| {
        let text = key_error(public_key(algorithm, name));
        text.rsplit_once(".pem: ").unwrap().1.to_owned()
    };
    let private = "holds a private key; the gateway only needs, and only takes, the public one";
    assert_eq!(problem(Algorithm::RS256, "test-rsa-private.pem"), private);
    assert_eq!(problem(Algorithm::ES256, "test-p256-private.pem"), private);
    assert_eq!(problem(Algorithm::EdDSA, "test-ed25519-private.pem"), private);
    assert_eq!(
        problem(Algorithm::PS512, "test-rsa1024-public.pem"),
        "holds an RSA key of 1024 bits; 2048 to 8192 are taken"
    );
    for (algorithm, name, what) in [
        (Algorithm::ES256, "test-p384-public.pem", "a P-256 public key"),
        (Algorithm::ES384, "test-p256-public.pem", "a P-384 public key"),
        (Algorithm::ES256, "test-rsa-public.pem", "a P-256 public key"),
        (Algorithm::RS256, "test-p256-public.pem", "an RSA public key"),
        (Algorithm::EdDSA, "test-p256-public.pem", "an Ed25519 public key"),
    ] {
        let expected = format!("does not hold {what} in PEM, which {} needs", algorithm.as_str());
        assert_eq!(problem(algorithm, name), expected);
    }
    let folder = tempfile::tempdir().unwrap();
    for junk in [&b""[..], b"junk", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
        let path = folder.path().join("junk.pem");
        std::fs::write(&path, junk).unwrap();
        for algorithm in Algorithm::ALL.into_iter().filter(|algorithm| !algorithm.is_hmac()) {
            let key = KeyConfig { public_key_file: path.clone(), ..KeyConfig::new(algorithm) };
            assert!(key_error(key).contains("does not hold"));
        }
    }
}

proptest! {
    #[test]
    fn junk_is_refused_and_never_panics(text in "\\PC*", dotted in "[A-Za-z0-9_.=-]{0,200}") {
        let authenticator = default_one();
        for junk in [&text, &dotted] {
            let error = authenticator.verify(junk).unwrap_err();
            let expected = if junk.is_empty() { AuthCode::TokenMissing } else { AuthCode::TokenInvalid };
            prop_assert_eq!(error.code, expected);
            prop_assert_eq!(error.user, None);
        }
    }

    #[test]
    fn junk_in_three_parts_is_refused(header in "\\PC{0,60}", claims in "\\PC{0,60}", signature in any::<Vec<u8>>()) {
        let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
        let token = format!("{header}.{claims}.{}", URL_SAFE_NO_PAD.encode(signature));
        prop_assert_eq!(code(default_one().verify(&token)), AuthCode::TokenInvalid);
    }

    #[test]
    fn a_changed_token_is_refused(at in any::<prop::sample::Index>(), byte in 0u8..128) {
        let mut token = hs256("secret", good_claims()).into_bytes();
        let at = at.index(token.len());
        prop_assume!(token[at] != byte);
        token[at] = byte;
        let token = String::from_utf8(token).unwrap();
        prop_assert_eq!(code(default_one().verify(&token)), AuthCode::TokenInvalid);
    }

    #[test]
    fn a_cut_token_is_refused(at in any::<prop::sample::Index>()) {
        let token = hs256("secret", good_claims());
        let cut = &token[..at.index(token.len())];
        prop_assert!(default_one().verify(cut).is_err());
    }

    #[test]
    fn signed_junk_claims_never_panic(claims in "\\PC{0,60}", name in "exp|nbf|iss|aud|sub|userId|device|topics", number in any::<f64>()) {
        let authenticator = default_one();
        let key = EncodingKey::from_secret(b"secret");
        let message = format!("{}.{}", part(&json!({"alg": "HS256"})), URL_SAFE_NO_PAD.encode(&claims));
        let signature = crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::HS256).unwrap();
        let token = format!("{message}.{signature}");
        prop_assert!(authenticator.verify(&token).is_err());
        let mut odd = good_claims();
        odd[name] = json!(number);
        let _ = authenticator.verify(&hs256("secret", odd));
    }
}

/// One with a key whose signatures are dear, and a token of its.
fn dear_one(claims: Value) -> (Authenticator, String) {
    let one = authenticator(&config(vec![public_key(Algorithm::ES256, "test-p256-public.pem")]));
    (one, es256(claims))
}

fn es256(claims: Value) -> String {
    let key = EncodingKey::from_ec_pem(P256_PRIVATE).unwrap();
    signed(json!({"alg": "ES256", "typ": "JWT"}), claims, &key, jsonwebtoken::Algorithm::ES256)
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_found_good_is_known_until_it_runs_out_and_no_longer() {
    let (one, token) = dear_one(json!({"sub": "ann", "exp": NOW + 60}));
    let first = one.verify(&token).unwrap();
    assert_eq!((one.keys.current().verified.len(), one.verify(&token).as_ref()), (1, Ok(&first)));
    let leeway = Duration::from_millis(one.leeway_millis);
    tokio::time::advance(Duration::from_secs(60) + leeway - Duration::from_millis(1)).await;
    assert_eq!(one.verify(&token).as_ref(), Ok(&first), "the leeway holds for what is known too");
    tokio::time::advance(Duration::from_millis(1)).await;
    let error = one.verify(&token).unwrap_err();
    assert_eq!((error.code, error.user.unwrap().as_str()), (AuthCode::TokenExpired, "ann"), "as if it had come first");
    assert_eq!(one.keys.current().verified.len(), 0);
}

#[test]
fn nothing_that_is_refused_is_remembered_and_one_character_makes_another_token() {
    let (one, token) = dear_one(json!({"sub": "ann", "exp": NOW + 60}));
    one.verify(&token).unwrap();
    let forged = hs256("secret", json!({"sub": "ann", "exp": NOW + 60}));
    for other in [forged, format!("{token}A"), token.to_lowercase(), token.replace('.', "")] {
        assert_eq!(one.verify(&other).unwrap_err().code, AuthCode::TokenInvalid);
    }
    assert_eq!(one.keys.current().verified.len(), 1);
}

#[test]
fn what_is_known_to_be_good_is_asked_for_all_the_same_when_it_is_revoked() {
    let (one, token) = dear_one(json!({"sub": "ann", "exp": NOW + 60, "jti": "x", "iat": NOW}));
    let identity = one.verify(&token).unwrap();
    assert_eq!((one.keys.current().verified.len(), one.is_revoked(&identity)), (1, false));
    let id = crate::types::RevocationId::of_token(TokenId::of("x"));
    let until = UnixMillis((NOW + 60) * 1000);
    one.revocations().add(&[(id, crate::types::Revocation::whole(until))], one.clock.unix_millis()).unwrap();
    for error in [one.verify(&token).unwrap_err(), one.verify_anew(&token).unwrap_err()] {
        assert_eq!((error.code, error.user.unwrap().as_str()), (AuthCode::TokenRevoked, "ann"));
    }
    assert!(one.is_revoked(&identity));
}

#[test]
fn a_lifetime_is_counted_from_each_time_a_token_is_shown() {
    let (one, token) = dear_one(json!({"sub": "ann", "exp": NOW + 86_400}));
    let one = Authenticator { max_lifetime_millis: 60_000, ..one };
    let end = |one: &Authenticator| one.verify(&token).unwrap().expires_at().unwrap().0 - one.clock.unix_millis().0;
    assert_eq!((end(&one), end(&one)), (60_000, 60_000), "of what is known as well");
}

#[test]
fn a_token_without_a_key_s_name_is_tried_with_so_many_and_no_more() {
    let fillers = (0..limits::KEYS_TRIED_MAX).map(|n| hmac_key(&format!("k{n}"), &format!("another {n}")));
    let last = |before: usize| {
        let keys = fillers.clone().take(before).chain([hmac_key("last", "secret")]).collect();
        authenticator(&config(keys)).verify(&hs256("secret", good_claims())).is_ok()
    };
    assert!(last(limits::KEYS_TRIED_MAX - 1) && !last(limits::KEYS_TRIED_MAX));
}

#[test]
fn nothing_prints_a_key() {
    let key = keys::Key::secret(Some("k".into()), Algorithm::HS256, &[b's'; 40], false).unwrap();
    assert!(!format!("{key:?}").contains("ss") && !format!("{key:?}").contains("115"), "{key:?}");
    for (algorithm, least) in [(Algorithm::HS256, 32), (Algorithm::HS384, 48), (Algorithm::HS512, 64)] {
        let key = |bytes: usize, weak| keys::Key::secret(None, algorithm, &vec![b's'; bytes], weak);
        assert!(key(least, false).is_ok() && key(least - 1, false).is_err());
        assert_eq!(key(least - 1, true).unwrap().weakness(), Some(("", least - 1)));
    }
}

#[test]
fn what_costs_as_little_as_a_look_up_is_not_remembered() {
    let one = default_one();
    one.verify(&hs256("secret", json!({"sub": "ann", "exp": NOW + 60}))).unwrap();
    assert_eq!(one.keys.current().verified.len(), 0);
}

#[test]
fn what_is_known_is_bounded_and_the_longest_unseen_goes_first() {
    let (one, token) = dear_one(json!({"sub": "ann", "exp": NOW + 60}));
    let identity = one.verify(&token).unwrap();
    let (cache, now) = (cache::Cache::default(), one.clock.unix_millis());
    let hash = |n: usize| cache::Cache::hash(&n.to_string());
    for n in 0..limits::VERIFIED_TOKENS_MAX * 2 {
        cache.put(hash(n), identity.clone());
        if n.is_multiple_of(64) {
            assert!(cache.get(&hash(0), now).is_some(), "seen all the time");
        }
    }
    assert!(cache.len() <= limits::VERIFIED_TOKENS_MAX, "{}", cache.len());
    assert!(cache.get(&hash(1), now).is_none());
}

#[test]
fn a_session_keeps_the_claims_that_are_named_and_no_more_than_its_share() {
    let one = Config {
        public_claims: vec!["name".to_owned()],
        session_claims: vec!["role".to_owned()],
        ..config(vec![hmac_key("", "secret")])
    };
    let one = Authenticator::new(&one, clock()).unwrap().keeping(["team".to_owned()]);
    let token = |pad: usize| {
        let role = "r".repeat(pad);
        hs256("secret", json!({"sub": "a", "exp": NOW + 60, "name": "A", "role": role, "team": [1], "secret": "s"}))
    };
    let claims = one.verify(&token(10)).unwrap().claims().clone();
    assert_eq!(claims.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["name", "role", "team"]);
    one.verify(&token(limits::KEPT_CLAIMS_BYTES_MAX - 30)).unwrap();
    let refused = one.verify(&token(limits::KEPT_CLAIMS_BYTES_MAX)).unwrap_err();
    assert_eq!(refused.code, AuthCode::TokenInvalid);
    assert!(refused.message.contains("4096 bytes"), "{refused}");
}
