//! The section `[grpc]`: the listeners of the admin API and the tokens of its callers.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    api::scope::{Scope, ScopeSet},
    limits,
    types::{ByteSize, Count, Secret, Span, TlsFiles},
};

/// The largest token file that is read.
const TOKEN_FILE_BYTES_MAX: u64 = 8 * 1024;

/// The section `[grpc]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The addresses it listens on, `host:port` or `unix:PATH`.
    pub listen: Vec<String>,
    /// Whether a caller on loopback needs no token.
    pub insecure: bool,
    /// The tokens of callers over TCP.
    pub tokens: Vec<TokenConfig>,
    /// Connections to one listener at once; further ones wait.
    pub max_connections: Count,
    /// Calls under way on one connection; further ones wait.
    pub max_streams: u32,
    /// Calls that a caller begins and resets before they were looked at; with more the connection ends (CVE-2023-44487).
    pub max_pending_resets: u32,
    /// Streams of one connection that are reset for what the caller did wrong; with more it ends.
    pub max_error_resets: u32,
    /// The largest message of a call; where `limits.notification_bytes` needs more, it is that.
    pub max_message_bytes: ByteSize,
    /// How long a connection may be silent before it is pinged.
    pub keepalive_interval: Span,
    /// How long it then has to answer.
    pub keepalive_timeout: Span,
    /// What callers who prove by a certificate who they are may do (`grpc.tls.client_ca_file`).
    pub clients: Vec<ClientConfig>,
    /// `[grpc.tls]`.
    pub tls: TlsFiles,
}

impl Config {
    /// The largest message of a call: what is set, or what a notification of the largest size may take as one.
    pub fn message_bytes(&self, notification_bytes: ByteSize) -> usize {
        self.max_message_bytes.as_usize().max(notification_bytes.as_usize().saturating_mul(4))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec!["unix:/run/pushgate/admin.sock".to_owned()],
            insecure: false,
            tokens: Vec::new(),
            max_connections: Count(1024),
            max_streams: 4096,
            max_pending_resets: 64,
            max_error_resets: 256,
            max_message_bytes: ByteSize(limits::GRPC_REQUEST_BYTES_MIN as u64),
            keepalive_interval: Span::secs(60),
            keepalive_timeout: Span::secs(20),
            clients: Vec::new(),
            tls: TlsFiles::default(),
        }
    }
}

/// One of `[[grpc.tokens]]`. Exactly one of `token`, `token_sha256` and `token_file` is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenConfig {
    /// Who the caller is, in log lines and errors.
    pub name: String,
    /// The token itself.
    pub token: Secret,
    /// Its SHA-256, 64 hexadecimal digits.
    pub token_sha256: Secret,
    /// The file that holds the token; white space around it is not part of it.
    pub token_file: PathBuf,
    /// What the caller may do.
    pub scopes: Vec<Scope>,
}

/// One of `[[grpc.clients]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientConfig {
    /// One of its certificate's alternative names, without a pattern: an IP address, a URI (it has a scheme), an e-mail address
    /// (it has an `@`), or a DNS name. No name of another sort matches.
    pub name: String,
    /// What the caller may do.
    pub scopes: Vec<Scope>,
}

impl ClientConfig {
    /// What the caller may do.
    pub fn scope_set(&self) -> ScopeSet {
        self.scopes.iter().copied().collect()
    }
}

/// Why a token cannot be used. One line: the key and what is wrong with it, without the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// None or several of the three keys.
    #[error("needs exactly one of token, token_sha256, token_file; it has {0}")]
    Sources(String),
    /// Not a hash.
    #[error("token_sha256 must be the SHA-256 of the token, 64 hexadecimal digits; this has {0} characters")]
    Hash(usize),
    /// A token that no request could bring.
    #[error("{0} must hold a token of visible ASCII characters without spaces")]
    Charset(String),
    /// A file that cannot be read.
    #[error("token_file {file}: cannot be read: {problem}", file = .0.display(), problem = .1)]
    Unreadable(PathBuf, String),
}

impl TokenConfig {
    /// What the caller may do.
    pub fn scope_set(&self) -> ScopeSet {
        self.scopes.iter().copied().collect()
    }

    /// Checks what can be checked without reading a file.
    pub fn check(&self) -> Result<(), TokenError> {
        let given: Vec<&str> = [
            ("token", !self.token.is_empty()),
            ("token_sha256", !self.token_sha256.is_empty()),
            ("token_file", !self.token_file.as_os_str().is_empty()),
        ]
        .into_iter()
        .filter_map(|(name, set)| set.then_some(name))
        .collect();
        match given.as_slice() {
            [] => Err(TokenError::Sources("none".to_owned())),
            ["token"] => usable("token", self.token.expose()),
            ["token_sha256"] => parse_sha256(self.token_sha256.expose()).map(drop),
            [_] => Ok(()),
            several => Err(TokenError::Sources(several.join(", "))),
        }
    }

    /// The SHA-256 of the token, read from its file where it is in one.
    ///
    /// # Errors
    /// What [`TokenConfig::check`] says, and a file that cannot be read or holds no token.
    pub fn sha256(&self) -> Result<[u8; 32], TokenError> {
        self.check()?;
        if !self.token_sha256.is_empty() {
            return parse_sha256(self.token_sha256.expose());
        }
        if !self.token.is_empty() {
            return Ok(Sha256::digest(self.token.expose()).into());
        }
        let text = read(&self.token_file)
            .map_err(|error| TokenError::Unreadable(self.token_file.clone(), error.to_string()))?;
        let token = text.trim();
        usable(&format!("token_file {}", self.token_file.display()), token)?;
        Ok(Sha256::digest(token).into())
    }
}

fn usable(place: &str, token: &str) -> Result<(), TokenError> {
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(TokenError::Charset(place.to_owned()));
    }
    Ok(())
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    fs::File::open(file)?.take(TOKEN_FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn parse_sha256(text: &str) -> Result<[u8; 32], TokenError> {
    let bad = || TokenError::Hash(text.chars().count());
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(bad());
    }
    let mut hash = [0; 32];
    for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| bad())?;
    }
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_token_is_the_same_from_each_of_its_places() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        fs::write(&file, "abc\n").unwrap();
        let text = TokenConfig { token: Secret::new("abc"), ..TokenConfig::default() };
        let hash = TokenConfig { token_sha256: Secret::new(ABC.to_uppercase()), ..TokenConfig::default() };
        let file = TokenConfig { token_file: file, ..TokenConfig::default() };
        assert_eq!(text.sha256(), hash.sha256());
        assert_eq!(text.sha256(), file.sha256());
        assert_eq!(text.sha256().unwrap()[..2], [0xba, 0x78]);
    }

    #[test]
    fn a_token_that_cannot_be_used_says_why_without_showing_it() {
        let say = |token: TokenConfig| token.sha256().unwrap_err().to_string();
        let none = TokenConfig::default();
        assert_eq!(say(none), "needs exactly one of token, token_sha256, token_file; it has none");
        let both =
            TokenConfig { token: Secret::new("hunter2"), token_sha256: Secret::new(ABC), ..TokenConfig::default() };
        assert!(say(both.clone()).ends_with("it has token, token_sha256"));
        let shown = toml::to_string(&both).unwrap();
        assert!(!shown.contains("hunter2") && !shown.contains(ABC), "{shown}");
        let short = TokenConfig { token_sha256: Secret::new("hunter2"), ..TokenConfig::default() };
        assert!(say(short).ends_with("this has 7 characters"));
        let spaced = TokenConfig { token: Secret::new("hunter2 x"), ..TokenConfig::default() };
        assert_eq!(say(spaced), "token must hold a token of visible ASCII characters without spaces");
        let missing = TokenConfig { token_file: "/nowhere/token".into(), ..TokenConfig::default() };
        assert_eq!(say(missing), "token_file /nowhere/token: cannot be read: No such file or directory (os error 2)");
    }
}
