//! Signing tokens for users, with an HMAC secret of the configuration or a key that is given. The gateway itself never
//! does: it only verifies. So what is signed here is for trying out, for scripts, and for `doctor`.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use clap::{Args, builder::PossibleValuesParser};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Map, Value};

use super::{
    connect::{File, origin, read_secret},
    failure::{EXIT_CONFIG, EXIT_FAILURE, Failure, Outcome, failed},
};
use crate::{
    auth::{self, Algorithm, Authenticator, KeyConfig},
    clock::Clock,
    config::Loaded,
    types::UserId,
};

/// The largest key file that is read.
const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;

/// What signs.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Signing key")]
pub struct KeyArgs {
    /// The kid of the HMAC key of auth.keys to sign with [default: the first]; with a file: the kid that is put into the
    /// token
    #[arg(long, value_name = "KID")]
    key_kid: Option<String>,
    /// Sign with the bytes of this file as HMAC secret; one newline at its end is not part of it
    #[arg(long, value_name = "FILE", conflicts_with = "private_key_file")]
    secret_file: Option<PathBuf>,
    /// Sign with the private key of this file, PEM
    #[arg(long, value_name = "FILE", requires = "algorithm")]
    private_key_file: Option<PathBuf>,
    /// The algorithm of the key that is given [default for --secret-file: HS256]
    #[arg(long, value_name = "ALG", value_parser = PossibleValuesParser::new(Algorithm::ALL.map(Algorithm::as_str)))]
    algorithm: Option<String>,
}

/// A key, ready to sign what the gateway of the configuration accepts.
pub struct Signer {
    key: EncodingKey,
    header: Header,
    auth: Option<auth::Config>,
    /// Verifies what was signed, as the gateway would.
    gateway: Option<Authenticator>,
}

impl Signer {
    /// The key that `args` names: of a file, else of the configuration, which is then read.
    pub fn find(args: &KeyArgs, file: &File) -> Outcome<Self> {
        let given = args.secret_file.is_some() || args.private_key_file.is_some();
        let loaded = if given && file.config.is_none() { None } else { Some(file.read()?) };
        if given {
            return Self::of_file(args, loaded.map(|loaded| loaded.config.auth));
        }
        // Without a file a configuration was read.
        loaded.map_or_else(|| Err(Failure::usage("no key is named")), |loaded| Self::configured(args, &loaded))
    }

    /// The HMAC key of the configuration with the kid of `args`, else the first.
    pub fn configured(args: &KeyArgs, loaded: &Loaded) -> Outcome<Self> {
        let auth = &loaded.config.auth;
        let named = |key: &&KeyConfig| args.key_kid.as_ref().is_none_or(|kid| key.kid == *kid);
        let Some(key) = auth.keys.iter().filter(|key| key.algorithm.is_hmac()).find(named) else {
            let which = args.key_kid.as_ref().map_or_else(String::new, |kid| format!(" with the kid `{kid}`"));
            return Err(Failure::new(
                EXIT_CONFIG,
                format!(
                    "auth.keys of {} has no HMAC key{which} to sign with; give --private-key-file FILE --algorithm ALG, \
                     or --secret-file FILE",
                    origin(loaded)
                ),
            ));
        };
        let gateway = Authenticator::new(auth, Clock::system())
            .map_err(|error| Failure::new(EXIT_CONFIG, format!("{}: {error}", origin(loaded))))?;
        let header = header(key.algorithm.as_str(), Some(&key.kid).filter(|kid| !kid.is_empty()))?;
        let key = EncodingKey::from_secret(&secret_of(key)?);
        Ok(Self { key, header, auth: Some(auth.clone()), gateway: Some(gateway) })
    }

    /// Signs with this secret, HS256.
    pub fn of_secret(secret: &str) -> Self {
        let key = EncodingKey::from_secret(secret.as_bytes());
        Self { key, header: Header::new(jsonwebtoken::Algorithm::HS256), auth: None, gateway: None }
    }

    fn of_file(args: &KeyArgs, auth: Option<auth::Config>) -> Outcome<Self> {
        let algorithm = args.algorithm.as_deref().unwrap_or("HS256");
        let header = header(algorithm, args.key_kid.as_ref())?;
        let hmac = algorithm.starts_with("HS");
        let wrong = |option: &str| Failure::usage(format!("{option} does not go with --algorithm {algorithm}"));
        let key = match (&args.secret_file, &args.private_key_file) {
            (Some(_), _) if !hmac => return Err(wrong("--secret-file")),
            (_, Some(_)) if hmac => return Err(wrong("--private-key-file")),
            (Some(file), _) => EncodingKey::from_secret(&secret_of_file(file)?),
            (_, Some(file)) => {
                let pem = read_secret(file, KEY_FILE_BYTES_MAX)?;
                let key = match &algorithm[..2] {
                    "ES" => EncodingKey::from_ec_pem(pem.as_bytes()),
                    "Ed" => EncodingKey::from_ed_pem(pem.as_bytes()),
                    _ => EncodingKey::from_rsa_pem(pem.as_bytes()),
                };
                key.map_err(|_| {
                    let text = format!("{} does not hold a private key in PEM for {algorithm}", file.display());
                    Failure::new(EXIT_FAILURE, text)
                })?
            }
            (None, None) => return Err(Failure::usage("no key is named")),
        };
        Ok(Self { key, header, auth, gateway: None })
    }

    /// A token for `user`. `claims` go before what the configuration asks for.
    pub fn sign(&self, user: &str, ttl: Duration, mut claims: Map<String, Value>) -> Outcome<String> {
        UserId::parse(user).map_err(|rule| Failure::usage(format!("--sub `{user}` is not a user id: {rule}")))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        claims.insert("sub".to_owned(), user.into());
        claims.insert("iat".to_owned(), now.as_secs().into());
        claims.insert("exp".to_owned(), now.saturating_add(ttl).as_secs().into());
        if let Some(auth) = &self.auth {
            for (name, accepted) in [("iss", &auth.issuer), ("aud", &auth.audience)] {
                if let Some(first) = accepted.first() {
                    claims.entry(name).or_insert_with(|| first.as_str().into());
                }
            }
            // Where the gateway looks for users elsewhere.
            if let Some(first) = auth.user_claim.first() {
                claims.entry(first.as_str()).or_insert_with(|| user.into());
            }
        }
        let token = jsonwebtoken::encode(&self.header, &claims, &self.key).map_err(failed("cannot sign the token"))?;
        if let Some(Err(error)) = self.gateway.as_ref().map(|gateway| gateway.verify(&token)) {
            let text = format!("the gateway would refuse this token ({}): {error}", error.code);
            return Err(Failure::new(EXIT_FAILURE, text));
        }
        Ok(token)
    }
}

fn header(algorithm: &str, kid: Option<&String>) -> Outcome<Header> {
    let mut header = Header::new(algorithm.parse().map_err(failed("the algorithm cannot be signed with"))?);
    header.kid = kid.cloned();
    Ok(header)
}

/// The bytes of a configured HMAC secret.
fn secret_of(key: &KeyConfig) -> Outcome<Vec<u8>> {
    if !key.secret_file.as_os_str().is_empty() {
        return secret_of_file(&key.secret_file);
    }
    if key.secret_base64.is_empty() {
        return Ok(key.secret.expose().as_bytes().to_vec());
    }
    let text = key.secret_base64.expose().trim();
    let alphabet = if text.contains(['-', '_']) { &alphabet::URL_SAFE } else { &alphabet::STANDARD };
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let decoded = GeneralPurpose::new(alphabet, config).decode(text);
    decoded.map_err(|_| Failure::new(EXIT_CONFIG, "auth.keys: secret_base64 is not base64"))
}

fn secret_of_file(file: &Path) -> Outcome<Vec<u8>> {
    let bytes = std::fs::read(file).map_err(|error| Failure::file("cannot read", file, &error))?;
    let secret = bytes.strip_suffix(b"\n").map_or(&bytes[..], |line| line.strip_suffix(b"\r").unwrap_or(line));
    if secret.is_empty() {
        return Err(Failure::new(EXIT_FAILURE, format!("{} holds an empty secret", file.display())));
    }
    Ok(secret.to_vec())
}
