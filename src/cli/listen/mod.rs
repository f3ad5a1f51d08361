//! `pushgate listen`: a WebSocket client for people. It prints what arrives and comes back where the protocol's table
//! of close codes says so.
//!
//! * `client.rs`: one connection: handshake, frames, confirmation.
//! * here: whose token, how often, and what each end of a connection means.
//!
//! What is printed is what services and other clients sent; what the gateway says about the session itself goes to
//! standard error.

mod client;

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use http::Uri;
use serde_json::Map;
use tokio::time::Instant;

use self::client::{Client, Connection, End, Refusal};
use super::{
    connect::{File, Format, origin, reachable_host, read_secret, span},
    failure::{EXIT_CONFIG, EXIT_FAILURE, EXIT_PERMISSION, EXIT_UNAVAILABLE, Failure, Outcome},
    jwt::{KeyArgs, Signer},
    output,
    secure::{Own, Terms, Trust},
    token,
};
use crate::{
    config::Loaded,
    dev, limits,
    protocol::close::{CloseCode, Next},
    types::{ListenAddress, Secret},
    ws,
};

/// The command's examples.
pub const EXAMPLES: &str = "Examples:
  pushgate listen --user alice
  pushgate listen --user alice --device phone --ack-mode client --json
  pushgate listen --token-file alice.token --url ws://127.0.0.1:7000/ws --count 1 --for 10s

Exit codes: 0 ended as asked, or closed with 1000; 1 closed for good with another code, or
fewer than --count messages came; 69 nobody answers; 77 the token was refused.";

/// How long a token that is signed here is good; a new one is signed for each connection.
const TOKEN_TTL: Duration = Duration::from_secs(3600);
/// The bounds of the back-off between two connections.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// `pushgate listen`.
#[derive(Args, Debug)]
pub struct Listen {
    #[command(flatten)]
    identity: Identity,
    /// Where to connect, ws:// or wss:// [default: the first of http.listen, and http.path]
    #[arg(long)]
    url: Option<String>,
    /// The device to be; without it the user's unnamed one
    #[arg(long)]
    device: Option<String>,
    /// How to confirm: by WebSocket pong as soon as a message has arrived, or by ack once it is printed
    #[arg(long, value_enum, value_name = "MODE", default_value_t = AckMode::Client)]
    ack_mode: AckMode,
    /// End after so many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End after this time
    #[arg(long = "for", value_name = "SPAN", value_parser = span)]
    time: Option<Duration>,
    /// Print each message as it came, JSON Lines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    trust: Trust,
    #[command(flatten)]
    file: File,
    #[command(flatten)]
    key: KeyArgs,
}

#[derive(Args, Debug)]
#[group(multiple = false)]
struct Identity {
    /// Sign a token for this user, with the HMAC key of the configuration or the key that is given; in a folder where
    /// `serve --dev` was run, alice where nothing is said
    #[arg(long)]
    user: Option<String>,
    /// The token itself; other users of this machine can see it in the list of processes
    #[arg(long)]
    token: Option<Secret>,
    /// The file that holds the token; it is read again for each connection
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AckMode {
    Client,
    Transport,
}

/// Where tokens come from.
enum Tokens {
    Signed(Box<Signer>, String),
    Given(Secret),
    File(PathBuf),
}

impl Tokens {
    fn next(&self) -> Outcome<String> {
        match self {
            Self::Signed(signer, user) => signer.sign(user, TOKEN_TTL, Map::new()),
            Self::Given(token) => Ok(token.expose().to_owned()),
            Self::File(file) => Ok(read_secret(file, limits::TOKEN_BYTES_MAX as u64 + 1)?.trim().to_owned()),
        }
    }

    /// Whether another one may be better than the one that ran out.
    fn renewable(&self) -> bool {
        matches!(self, Self::Signed(..))
    }
}

/// The address to connect to for one that is listened on.
pub fn url(host: &str, port: u16, http: &ws::Config) -> String {
    let address = ListenAddress::Tcp { host: reachable_host(host).to_owned(), port };
    format!("{}://{address}{}", if http.tls.is_set() { "wss" } else { "ws" }, http.path)
}

/// Where clients connect, by the configuration.
pub fn url_of(loaded: &Loaded) -> Outcome<String> {
    let http = &loaded.config.http;
    let wrong = |text: &str| Failure::new(EXIT_CONFIG, format!("http.listen of {} {text}", origin(loaded)));
    let first = http.listen.first().and_then(|text| ListenAddress::parse(text).ok());
    match first {
        Some(ListenAddress::Tcp { port: 0, .. }) => Err(wrong("says port 0, which is a free one at each start")),
        Some(ListenAddress::Tcp { host, port }) => Ok(url(&host, port, http)),
        _ => Err(wrong("names no usable address")),
    }
}

/// Runs `pushgate listen`.
pub async fn listen(args: Listen) -> Outcome {
    let mut terms = Terms::given(&args.trust, &Own::default())?;
    let url = match &args.url {
        Some(url) if args.trust.is_set() && url.starts_with("ws:") => {
            return Err(Failure::usage(format!("--url {url}: no TLS is spoken there; write wss://HOST:PORT/PATH")));
        }
        Some(url) => url.clone(),
        None => {
            let loaded = args.file.read()?;
            let url = url_of(&loaded).map_err(|failure| {
                Failure::new(failure.code(), format!("{}; say where clients connect with --url", failure.message()))
            })?;
            let host = url.parse::<Uri>().ok().and_then(|url| url.host().map(str::to_owned)).unwrap_or_default();
            terms = terms.and_files(&loaded.config.http.tls, host.trim_matches(['[', ']']));
            url
        }
    };
    let Identity { user, token, token_file } = args.identity;
    let tokens = match (user, token, token_file) {
        (Some(user), ..) => Tokens::Signed(Box::new(Signer::find(&args.key, &args.file)?), user),
        (_, Some(token), _) => Tokens::Given(token),
        (.., Some(file)) => Tokens::File(file),
        _ if args.file.is_dev() => Tokens::Signed(Box::new(Signer::find(&args.key, &args.file)?), dev::USER.to_owned()),
        _ => return Err(Failure::usage("whose messages? give --user, --token or --token-file")),
    };
    let connection = Connection { url, terms, device: args.device, client_acks: args.ack_mode == AckMode::Client };
    let mut client = Client::new(connection, Format { json: args.json }, args.count);
    let deadline = args.time.and_then(|time| Instant::now().checked_add(time));
    let time_is_up = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    let mut stop = std::pin::pin!(async {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => Stop::Asked,
            () = output::closed() => Stop::Asked,
            () = time_is_up => Stop::TimeIsUp,
        }
    });
    let mut backoff = BACKOFF.0;
    loop {
        let end = client.run(&tokens, stop.as_mut()).await?;
        if client.was_let_in() {
            backoff = BACKOFF.0;
        }
        let wait = match end {
            End::Stopped(stop) => return stopped(stop, &client),
            End::Counted => return Ok(()),
            End::Refused(Refusal::Usage(text)) => return Err(Failure::usage(text)),
            End::Refused(Refusal::Final(text)) => return Err(Failure::new(EXIT_FAILURE, text)),
            // Who was never connected is told so at once; who was waits for the gateway to come back.
            End::Refused(Refusal::NotNow(text)) if !client.was_connected() => {
                return Err(Failure::new(EXIT_UNAVAILABLE, text));
            }
            End::Refused(Refusal::NotNow(text)) => again(&text, None, &mut backoff)?,
            End::Closed { code, reason, detail, after } => {
                let text = closed_text(code, &reason, detail.as_deref());
                match after_close(code, &reason, tokens.renewable()) {
                    After::Done => {
                        output::note(&text);
                        return Ok(());
                    }
                    After::Fail(exit) => return Err(Failure::new(exit, text)),
                    After::Again => again(&text, after, &mut backoff)?,
                }
            }
        };
        tokio::select! {
            stop = &mut stop => return stopped(stop, &client),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Why listening ends from this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Interrupted, or nobody reads.
    Asked,
    /// `--for` is over.
    TimeIsUp,
}

fn stopped(stop: Stop, client: &Client) -> Outcome {
    match client.missing() {
        Some((wanted, came)) if stop == Stop::TimeIsUp => {
            Err(Failure::new(EXIT_FAILURE, format!("{came} of {wanted} messages came in time")))
        }
        _ => Ok(()),
    }
}

/// Says why, and how long to wait: what the gateway asked for, else a random part of a span that doubles.
fn again(text: &str, after: Option<Duration>, backoff: &mut Duration) -> Outcome<Duration> {
    let wait = match after {
        Some(after) => after.min(BACKOFF.1),
        None => {
            let share = f64::from(u32::from_le_bytes(token::random::<4>()?)) / f64::from(u32::MAX);
            let wait = backoff.mul_f64(share);
            *backoff = (*backoff * 2).min(BACKOFF.1);
            wait
        }
    };
    output::note(&format!("{text}; connecting again in {}", output::span(wait)));
    Ok(wait)
}

/// What a close code comes to here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Again,
    Done,
    Fail(u8),
}

fn after_close(code: u16, reason: &str, renewable: bool) -> After {
    match CloseCode(code).asks() {
        Next::Stay if code == CloseCode::NORMAL.0 => After::Done,
        Next::Stay => After::Fail(EXIT_FAILURE),
        Next::OtherToken if renewable && reason == "token_expired" => After::Again,
        Next::OtherToken => After::Fail(EXIT_PERMISSION),
        Next::Again => After::Again,
    }
}

fn closed_text(code: u16, reason: &str, detail: Option<&str>) -> String {
    let meaning = match code {
        1000 => "closed on purpose",
        1001 | 1012 => "the gateway restarts",
        1002 | 1003 | 1007 | 1009 => "the gateway does not take what was sent to it",
        1005 | 1006 => "the connection was lost",
        1008 => "closed by an operator",
        1011 => "the gateway failed",
        1013 => "too many sessions",
        4400 => "too many bad messages",
        4401 => "the token was refused",
        4408 => "the gateway heard nothing in time",
        4409 => "messages were taken too slowly",
        4410 => "nothing was confirmed in time",
        4429 => "too many requests",
        _ => "closed",
    };
    let reason = if reason.is_empty() { String::new() } else { format!(" {}", output::clean(reason)) };
    let detail = detail.map_or_else(String::new, |detail| format!(" ({})", output::clean(detail)));
    format!("{meaning}: {code}{reason}{detail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_comes_back_where_the_protocol_says_so() {
        for code in [1001, 1012, 1002, 1003, 1007, 1009, 1005, 1006, 1011, 1013, 4408, 4409, 4410, 4429] {
            assert_eq!(after_close(code, "", false), After::Again, "{code}");
        }
        assert_eq!(after_close(1000, "", true), After::Done);
        for code in [1008, 3000, 4000, 4400] {
            assert_eq!(after_close(code, "", true), After::Fail(EXIT_FAILURE), "{code}");
        }
        assert_eq!(after_close(4401, "token_expired", true), After::Again);
        assert_eq!(after_close(4401, "token_expired", false), After::Fail(EXIT_PERMISSION));
        assert_eq!(after_close(4401, "token_invalid", true), After::Fail(EXIT_PERMISSION));
    }
}
