//! The development key: 32 random bytes in base64url on one line, which is the HMAC secret as it stands. And tokens.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{EncodingKey, Header};
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::{Map, Value, json};

use super::KID;
use crate::{auth, types::UnixMillis};

/// How long a token is good.
const TOKEN_LIFE: Duration = Duration::from_secs(30 * 86_400);
const KEY_BYTES: usize = 32;

/// The key cannot be read or made.
#[derive(Debug, thiserror::Error)]
#[error("the development key {}: {source}; give --store-path a folder that can be written", path.display())]
pub struct KeyFileError {
    path: PathBuf,
    source: io::Error,
}

/// A token, and when it runs out.
pub struct Token {
    pub text: String,
    pub expires_at: UnixMillis,
}

/// Signs tokens as the gateway wants them.
#[derive(Clone)]
pub struct Signer {
    key: EncodingKey,
    /// What every token says, whoever it is for.
    claims: Map<String, Value>,
    user_claim: String,
}

impl Signer {
    /// Reads the key at `path`, or makes it.
    pub fn open(path: &Path, auth: &auth::Config) -> Result<Self, KeyFileError> {
        let secret = read_or_make(path).map_err(|source| KeyFileError { path: path.to_owned(), source })?;
        let mut claims = Map::new();
        for (name, list) in [("iss", &auth.issuer), ("aud", &auth.audience)] {
            if let Some(first) = list.first() {
                claims.insert(name.to_owned(), json!(first));
            }
        }
        let user_claim = auth.user_claim.first().map_or("sub", String::as_str).to_owned();
        Ok(Self { key: EncodingKey::from_secret(&secret), claims, user_claim })
    }

    /// A token for `user`.
    pub fn token(&self, user: &str, now: UnixMillis) -> Token {
        let seconds = now.0 / 1000;
        let expires = seconds + TOKEN_LIFE.as_secs();
        let mut claims = self.claims.clone();
        claims.extend([
            (self.user_claim.clone(), json!(user)),
            ("iat".to_owned(), json!(seconds)),
            ("exp".to_owned(), json!(expires)),
        ]);
        let header = Header { kid: Some(KID.to_owned()), ..Header::default() };
        // HMAC over JSON of texts and numbers has nothing that could fail; an empty token would be refused.
        let text = jsonwebtoken::encode(&header, &claims, &self.key).unwrap_or_default();
        Token { text, expires_at: UnixMillis(expires * 1000) }
    }
}

fn read_or_make(path: &Path) -> io::Result<Vec<u8>> {
    if !path.try_exists()? {
        make(path)?;
    }
    let text = fs::read_to_string(path)?;
    let secret = text.trim_end().as_bytes();
    if URL_SAFE_NO_PAD.decode(secret).map_or(0, |bytes| bytes.len()) < KEY_BYTES {
        return Err(io::Error::other("is not one; remove it, and a new one is made"));
    }
    Ok(secret.to_owned())
}

/// Under another name first: whoever finds the key finds all of it.
fn make(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let mut random = [0; KEY_BYTES];
    // Up to 256 bytes come whole (getrandom(2)).
    getrandom(&mut random, GetRandomFlags::empty())?;
    let unfinished = path.with_extension(format!("key.{}", std::process::id()));
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all((URL_SAFE_NO_PAD.encode(random) + "\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::{
        auth::Authenticator,
        clock::Clock,
        config::Config,
        dev::{add_key, key_file},
    };

    fn config(folder: &Path) -> Config {
        let mut config = Config::default();
        config.store.path = folder.join("data");
        add_key(&mut config);
        config
    }

    #[test]
    fn the_key_is_made_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let path = key_file(&config);
        Signer::open(&path, &config.auth).unwrap();
        let key = fs::read(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((key.len(), mode(&path), mode(path.parent().unwrap())), (44, 0o600, 0o700));
        Signer::open(&path, &config.auth).unwrap();
        assert_eq!(fs::read(&path).unwrap(), key);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing unfinished is left");
    }

    #[test]
    fn its_tokens_are_believed_whatever_the_configuration_asks_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        config.auth.user_claim = vec!["userId".to_owned(), "sub".to_owned()];
        config.auth.issuer = vec!["https://a.example".to_owned()];
        config.auth.audience = vec!["pushgate".to_owned()];
        let signer = Signer::open(&key_file(&config), &config.auth).unwrap();
        let clock = Clock::system();
        let token = signer.token("alice", clock.unix_millis());
        let identity = Authenticator::new(&config.auth, clock).unwrap().verify(&token.text).unwrap();
        assert_eq!(identity.user().as_str(), "alice");
        assert_eq!(identity.expires_at(), Some(token.expires_at));
    }

    #[test]
    fn a_file_that_is_no_key_is_left_alone_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dev.key");
        for text in ["", "short\n", "????????????????????????????????????????????\n"] {
            fs::write(&path, text).unwrap();
            let Err(error) = Signer::open(&path, &auth::Config::default()) else { panic!("{text}") };
            assert!(error.to_string().contains("dev.key: is not one; remove it"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
