//! From a token to an identity: what every connection costs once.

use std::{hint::black_box, path::Path};

use criterion::{Criterion, Throughput};
use jsonwebtoken::{EncodingKey, Header};
use pushgate::{
    auth::{Algorithm, Authenticator, Config, KeyConfig},
    clock::Clock,
    types::Secret,
};

const SECRET: &str = "a secret of this measurement, 32 bytes or more";

fn key_file(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys").join(name)
}

fn private_key(name: &str) -> Vec<u8> {
    std::fs::read(key_file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn authenticator(key: KeyConfig) -> Authenticator {
    let config = Config { keys: vec![key], ..Config::default() };
    Authenticator::new(&config, Clock::system()).unwrap_or_else(|error| panic!("{error}"))
}

fn public_key(algorithm: Algorithm, name: &str) -> Authenticator {
    authenticator(KeyConfig { public_key_file: key_file(name), ..KeyConfig::new(algorithm) })
}

fn token(algorithm: jsonwebtoken::Algorithm, key: &EncodingKey, lasts_millis: i64) -> String {
    let now = Clock::system().unix_millis().0;
    let claims = serde_json::json!({
        "sub": "0198f1c2-7d3e-7a4b-8c5d-6e7f8091a2b3",
        "device": "phone-1",
        "iss": "https://id.example.com",
        "aud": ["push", "api"],
        "iat": now / 1000,
        "exp": now.saturating_add_signed(lasts_millis) / 1000,
    });
    jsonwebtoken::encode(&Header::new(algorithm), &claims, key).unwrap_or_else(|error| panic!("{error}"))
}

/// Verification, by algorithm, and of what is refused.
pub fn token_verification(c: &mut Criterion) {
    use jsonwebtoken::Algorithm as Signed;

    const DAY: i64 = 24 * 3600 * 1000;
    let made = |key: jsonwebtoken::errors::Result<EncodingKey>| key.unwrap_or_else(|error| panic!("{error}"));
    let secret = EncodingKey::from_secret(SECRET.as_bytes());
    let rsa = made(EncodingKey::from_rsa_pem(&private_key("test-rsa-private.pem")));
    let p256 = made(EncodingKey::from_ec_pem(&private_key("test-p256-private.pem")));
    let ed25519 = made(EncodingKey::from_ed_pem(&private_key("test-ed25519-private.pem")));
    let hmac = || authenticator(KeyConfig { secret: Secret::new(SECRET), ..KeyConfig::new(Algorithm::HS256) });
    let rs256 = || public_key(Algorithm::RS256, "test-rsa-public.pem");
    let es256 = || public_key(Algorithm::ES256, "test-p256-public.pem");
    let eddsa = || public_key(Algorithm::EdDSA, "test-ed25519-public.pem");
    let forged = EncodingKey::from_secret(b"another secret than the one that is configured");
    let cases = [
        ("HS256", hmac(), token(Signed::HS256, &secret, DAY), true),
        ("RS256", rs256(), token(Signed::RS256, &rsa, DAY), true),
        ("ES256", es256(), token(Signed::ES256, &p256, DAY), true),
        ("EdDSA", eddsa(), token(Signed::EdDSA, &ed25519, DAY), true),
        ("refused/signature", hmac(), token(Signed::HS256, &forged, DAY), false),
        ("refused/algorithm", rs256(), token(Signed::HS256, &secret, DAY), false),
        ("refused/expired", hmac(), token(Signed::HS256, &secret, -DAY), false),
    ];
    let mut group = c.benchmark_group("token");
    group.throughput(Throughput::Elements(1));
    for (name, authenticator, token, good) in &cases {
        assert_eq!(authenticator.verify(token).is_ok(), *good, "{name}");
        group.bench_function(*name, |b| b.iter(|| authenticator.verify_anew(black_box(token))));
    }
    let (_, known, token, _) = &cases[2];
    group.bench_function("known", |b| b.iter(|| known.verify(black_box(token))));
    group.finish();
}
