//! `pushgate token`: tokens for users, signed, and tokens for callers of the admin API, random.
//!
//! Standard output holds the token and nothing else, so that it can be kept in a variable or a file; what belongs
//! beside it goes to standard error.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    connect::{File, Format, span},
    failure::{Failure, Outcome, failed},
    jwt::{KeyArgs, Signer},
    output,
};
use crate::api::scope::Scope;

/// `pushgate token`.
#[derive(Subcommand, Debug)]
pub enum Token {
    /// Sign a token with which a user connects
    #[command(after_help = "Examples:
  pushgate token user --sub alice
  pushgate token user --sub alice --ttl 5m --claim device=phone --claim level=3
  pushgate token user --sub alice --private-key-file key.pem --algorithm ES256 --key-kid 2026-01")]
    User(User),
    /// Make a token with which a service calls the admin API, and its hash for the configuration
    ///
    /// The token goes to standard output, once; the block for the configuration, which holds its hash, goes to standard
    /// error.
    #[command(after_help = "Examples:
  pushgate token admin --name orders --scopes send,read
  pushgate token admin --name orders --scopes send > orders.token")]
    Admin(Admin),
}

/// A token's life: one that is over as it begins is a mistake.
fn life(text: &str) -> Result<Duration, String> {
    let life = span(text)?;
    if life < Duration::from_secs(1) { Err("a token must be good for 1s at least".to_owned()) } else { Ok(life) }
}

/// `pushgate token user`.
#[derive(Args, Debug)]
pub struct User {
    /// The user
    #[arg(long, value_name = "USER")]
    sub: String,
    /// How long the token is good
    #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = life)]
    ttl: Duration,
    /// A further claim; a value that is JSON is taken as such, any other as text; may be given several times
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = claim)]
    claims: Vec<(String, Value)>,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    file: File,
    #[command(flatten)]
    key: KeyArgs,
}

/// `pushgate token admin`.
#[derive(Args, Debug)]
pub struct Admin {
    /// Who the caller is, in log lines and errors
    #[arg(long, value_parser = caller_name)]
    name: String,
    /// What it may do
    #[arg(long, value_enum, value_delimiter = ',', required = true)]
    scopes: Vec<ScopeName>,
    #[command(flatten)]
    format: Format,
}

/// [`Scope`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ScopeName(Scope);

impl ValueEnum for ScopeName {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [ScopeName; Scope::ALL.len()] = {
            let mut all = [ScopeName(Scope::Send); Scope::ALL.len()];
            let mut at = 0;
            while at < all.len() {
                all[at] = ScopeName(Scope::ALL[at]);
                at += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.0.as_str()))
    }
}

fn claim(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE, such as device=phone")?;
    match name {
        "" => Err("the name is empty; write NAME=VALUE, such as device=phone".to_owned()),
        "sub" => Err("the user is set by --sub".to_owned()),
        "exp" | "iat" => Err("the times are set by --ttl".to_owned()),
        _ => Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into()))),
    }
}

/// The configuration's own rule for names.
fn caller_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 64 || text.chars().any(char::is_control) {
        return Err("write 1 to 64 bytes without control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// Runs `pushgate token`.
pub fn token(token: Token) -> Outcome {
    match token {
        Token::User(args) => user(args),
        Token::Admin(args) => admin(&args),
    }
}

fn user(args: User) -> Outcome {
    let mut claims = Map::new();
    for (name, value) in args.claims {
        if claims.insert(name.clone(), value).is_some() {
            return Err(Failure::usage(format!("--claim {name} is given twice")));
        }
    }
    let token = Signer::find(&args.key, &args.file)?.sign(&args.sub, args.ttl, claims)?;
    if args.format.json { output::document(&json!({ "token": token })) } else { output::line(&token) }
}

fn admin(args: &Admin) -> Outcome {
    let AdminToken { token, sha256 } = AdminToken::new()?;
    let mut scopes: Vec<&str> = Vec::new();
    for scope in args.scopes.iter().map(|scope| scope.0.as_str()) {
        if !scopes.contains(&scope) {
            scopes.push(scope);
        }
    }
    if args.format.json {
        return output::document(&json!({
            "token": token, "name": args.name, "tokenSha256": sha256, "scopes": scopes,
        }));
    }
    output::line(&token)?;
    output::note(&format!(
        "# Standard output has the token, this once. This block goes into the configuration; then restart the gateway.\n{}",
        block(&args.name, &sha256, &scopes)
    ));
    Ok(())
}

/// A token of the admin API and the hash that the configuration holds.
pub struct AdminToken {
    /// The token: 32 random bytes in base64url.
    pub token: String,
    /// Its SHA-256 in hexadecimal digits.
    pub sha256: String,
}

impl AdminToken {
    /// A new one.
    pub fn new() -> Outcome<Self> {
        let token = URL_SAFE_NO_PAD.encode(random::<32>()?);
        let sha256 = Sha256::digest(&token).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { token, sha256 })
    }
}

/// The block of the configuration for it.
pub fn block(name: &str, sha256: &str, scopes: &[&str]) -> String {
    let name = toml::Value::from(name);
    let scopes = toml::Value::from(scopes.to_vec());
    format!("[[grpc.tokens]]\nname = {name}\ntoken_sha256 = \"{sha256}\"\nscopes = {scopes}")
}

/// Random bytes from the kernel.
pub fn random<const N: usize>() -> Outcome<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], flags).map_err(failed("the system gives no random bytes"))?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_json_where_they_can_be() {
        assert_eq!(claim("level=3"), Ok(("level".to_owned(), json!(3))));
        assert_eq!(claim("zip=01234"), Ok(("zip".to_owned(), json!("01234"))));
        assert_eq!(claim("a=b=c"), Ok(("a".to_owned(), json!("b=c"))));
        assert_eq!(claim("aud=[\"x\"]"), Ok(("aud".to_owned(), json!(["x"]))));
        for bad in ["level", "=3", "exp=1", "sub=eve"] {
            assert!(claim(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_block_is_toml_whatever_the_name() {
        let text = block("a \"quoted\" \\ name", "00", &["send", "read"]);
        let table = <figment::providers::Toml as figment::providers::Format>::from_str::<toml::Table>(&text).unwrap();
        let token = &table["grpc"]["tokens"][0];
        assert_eq!(token["name"].as_str(), Some("a \"quoted\" \\ name"));
        assert_eq!(token["scopes"].as_array().unwrap().len(), 2);
    }
}
