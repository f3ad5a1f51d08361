//! `pushgate stress`: puts a load on a running gateway and says what became of it. The command line is here, what is
//! printed in `shown.rs`, the load itself in [`crate::stress`].

mod shown;

use std::{collections::HashSet, fs, net::ToSocketAddrs as _, path::PathBuf, sync::Arc, thread, time::Duration};

use clap::{Args, ValueEnum, builder::PossibleValuesParser};
use http::Uri;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, json};

use self::shown::{rows, summary, verdict};
use super::{
    connect::{self, span},
    failure::{EXIT_FAILURE, EXIT_UNAVAILABLE, Failure, Outcome},
    jwt::{KeyArgs, Signer},
    output, token,
};
use crate::{
    api::proto,
    net,
    stress::{
        Kind, Plan, Watch,
        fleet::{Place, Target},
        report::Report,
        sender::{Calls, Via},
    },
    types::{ByteSize, Secret},
};

/// The command's examples.
pub const EXAMPLES: &str = "Examples:
  pushgate stress --test-type storm --connections 1000
  pushgate stress --test-type unicast --connections 1000 --duration 10s --rate 5000 --json
  pushgate stress --test-type unicast --rate 0 --via unary --duration 10s
  pushgate stress --test-type fanout --connections 5000 --message-interval 0 --messages 320
  pushgate stress --test-type replay --connections 1 --messages 1000
  pushgate stress --test-type restart --duration 20s --restart-command 'systemctl restart pushgate'
  pushgate stress --connections 10000 --max-concurrent 500 --message-interval 1s --duration 10s

Tests:
  storm       all connect, --max-concurrent at a time, each is asked something, all go
  throughput  each session sends --messages echoes, as fast as answers come, 16 unanswered
  sustained   each session sends an echo every --message-interval for --duration
  fanout      --messages broadcasts to all, one every --message-interval
  unicast     --rate notifications a second to the users in turn for --duration
  replay      --messages wait for each user; then all come back at once
  churn       sessions come and go for --duration while --rate notifications a second are stored
  restart     --rate notifications a second are stored, over a restart of the gateway (not one of all)
  all         one after the other, with the same sessions

fanout, unicast, replay, churn and restart send over gRPC, where the gateway is asked for its CPU time and
memory, too.

Exit codes: 0 all was done as planned, and nothing was lost, out of order or for somebody else;
1 not so; 69 nobody could connect.";

/// How long a minted token is good.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// Descriptors that are needed besides the sessions'.
const DESCRIPTORS_BESIDE: u64 = 64;
/// Descriptors of each thread: its epoll, its timer, what wakes it.
const DESCRIPTORS_PER_THREAD: u64 = 3;
/// Connections to the admin API, where callers are many.
const CHANNELS_MAX: usize = 4;
/// Users who are forgotten at a time when it is over.
const FORGET_AT_ONCE: usize = 64;

/// `pushgate stress`.
#[derive(Args, Debug)]
pub struct Stress {
    /// Which test
    #[arg(long, value_name = "TEST", default_value = ALL, value_parser = test_types())]
    test_type: String,
    /// Where sessions connect
    #[arg(long, default_value = "ws://127.0.0.1:7000/ws")]
    url: String,
    /// How many sessions
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// How many messages: echoes a session, broadcasts, or notifications a user that wait
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    messages: u64,
    /// How long sustained, unicast and churn go on, and restart besides the restart; a plain number is seconds
    #[arg(long, value_name = "SPAN", default_value = "60s", value_parser = seconds)]
    duration: Duration,
    /// How many handshakes are under way at once
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    max_concurrent: u32,
    /// How often a session sends an echo, or all get a broadcast; 0: broadcasts back to back; a plain number is
    /// milliseconds
    #[arg(long, value_name = "SPAN", default_value = "100ms", value_parser = millis)]
    message_interval: Duration,
    /// The payload of a message; at least what its mark needs, about 100 bytes
    #[arg(long, value_name = "SIZE", default_value = "256", value_parser = size)]
    payload: usize,
    /// Messages a second: notifications of unicast, churn and restart [default: 2000], echoes of sustained [default: by
    /// --message-interval]; 0: notifications as fast as they are taken
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// How unicast sends
    #[arg(long, value_enum, default_value_t = How::Batch)]
    via: How,
    /// What unicast waits for
    #[arg(long, value_enum, default_value_t = Wait::Accepted)]
    wait: Wait,
    /// Have unicast send what is never stored (TTL 0)
    #[arg(long)]
    volatile: bool,
    /// How many send at once [default: 64 with --via unary, 32 with --message-interval 0, 4 for replay, else 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    callers: Option<u32>,
    /// The mean life of a connection in churn
    #[arg(long, value_name = "SPAN", default_value = "10s", value_parser = seconds)]
    lifetime: Duration,
    /// What restarts the gateway, a command of the shell: restart runs it half of --duration after its beginning, and ends half
    /// of it behind the last return [default: it says that it is time]
    #[arg(long, value_name = "COMMAND")]
    restart_command: Option<String>,
    /// How sessions confirm: by WebSocket pong, or by ack
    #[arg(long, value_enum, value_name = "MODE", default_value_t = AckMode::Transport)]
    ack_mode: AckMode,
    /// How long nothing may come before what is missing counts as lost, at least 3s
    #[arg(long, value_name = "SPAN", default_value = "10s", value_parser = seconds)]
    patience: Duration,
    /// The threads that hold the sessions [default: half as many as there are cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,
    /// Take the users' tokens from this file, one a line; sessions share them in turn, each as a device `stress-N`, which
    /// stays known. Not for tokens of people: a device more may make room of one of theirs
    /// [default: sign one for each of so many new users]
    #[arg(long, value_name = "FILE")]
    user_tokens: Option<PathBuf>,
    /// Sign with this HMAC secret; other users of this machine can see it in the list of processes
    #[arg(long, value_name = "SECRET", conflicts_with_all = ["user_tokens", "secret_file", "private_key_file"])]
    secret: Option<Secret>,
    /// Leave what the gateway has stored for the users that were made up; else they are forgotten (scope admin)
    #[arg(long)]
    keep: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    target: connect::Target,
}

/// What stands for all of [`Kind::ALL`], one after the other.
const ALL: &str = "all";

fn test_types() -> PossibleValuesParser {
    PossibleValuesParser::new(Kind::ALL.map(Kind::as_str).into_iter().chain([Kind::Restart.as_str(), ALL]))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum How {
    /// SendToUser, a call each
    Unary,
    /// SendBatch, pipelined
    Batch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wait {
    Accepted,
    Stored,
    Confirmed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AckMode {
    Transport,
    Client,
}

/// The longest span that a test may take: a month.
const SPAN_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// A span; a plain number is one of `unit`.
fn span_in(text: &str, unit: &str) -> Result<Duration, String> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let span = if plain { span(&format!("{text}{unit}")) } else { span(text) }?;
    if span > SPAN_MAX { Err("at most 30d".to_owned()) } else { Ok(span) }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let span = span_in(text, "s")?;
    if span.is_zero() { Err("it must be longer than nothing, such as 10s".to_owned()) } else { Ok(span) }
}

fn millis(text: &str) -> Result<Duration, String> {
    span_in(text, "ms")
}

fn size(text: &str) -> Result<usize, String> {
    let bytes = match text.parse::<u64>() {
        Ok(bytes) => bytes,
        Err(_) => ByteSize::parse(text).map_err(|error| error.to_string())?.0,
    };
    match usize::try_from(bytes) {
        Ok(bytes) if bytes <= 16 * 1024 * 1024 => Ok(bytes),
        _ => Err("a payload has at most 16MiB".to_owned()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate == 0.0 || (0.001..=10_000_000.0).contains(&rate) => Ok(rate),
        _ => Err("write 0, or a number from 0.001 to 10000000".to_owned()),
    }
}

/// Runs `pushgate stress`.
pub async fn stress(args: Stress) -> Outcome {
    let asked = |kind: &Kind| args.test_type == ALL || args.test_type == kind.as_str();
    let mut kinds: Vec<Kind> = Kind::ALL.into_iter().filter(asked).collect();
    kinds.extend(Some(Kind::Restart).filter(|kind| args.test_type == kind.as_str()));
    let target = target(&args)?;
    let plan = plan(&args);
    enough_descriptors(&plan, args.connections)?;
    let (places, made_up) = places(&args)?;
    let calls = calls(&args, &kinds).await?;
    let bar = Bar(ProgressBar::new(0));
    let told = |report: &Report| bar.0.suspend(|| output::note(&summary(report)));
    let ran = crate::stress::run(&kinds, &plan, &target, places, calls.as_ref(), &bar, told);
    // Whoever interrupts it wants it gone, and what it made up, too.
    let ran = tokio::select! {
        ran = ran => Some(ran),
        _ = tokio::signal::ctrl_c() => None,
    };
    bar.0.finish_and_clear();
    if let Some(calls) = calls.filter(|_| !args.keep) {
        forget(&calls, made_up, &bar).await;
    }
    let Some(ran) = ran else { return Err(Failure::new(EXIT_FAILURE, "interrupted; no figures but those above")) };
    let reports = ran.map_err(|error| Failure::new(EXIT_FAILURE, error.to_string()))?;
    let passed = reports.iter().all(Report::passed);
    if args.json {
        let cores = thread::available_parallelism().map_or(0, usize::from);
        output::document(&json!({
            "version": env!("CARGO_PKG_VERSION"), "url": args.url, "cores": cores, "plan": plan,
            "tests": reports, "passed": passed,
        }))?;
    } else {
        for line in rows(&reports) {
            output::line(&line)?;
        }
    }
    if passed { Ok(()) } else { Err(verdict(&reports)) }
}

fn plan(args: &Stress) -> Plan {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    Plan {
        max_concurrent: args.max_concurrent as usize,
        messages: args.messages,
        duration: args.duration,
        message_interval: args.message_interval,
        payload: args.payload,
        rate: args.rate,
        via: if args.via == How::Unary { Via::Unary } else { Via::Batch },
        wait: match args.wait {
            Wait::Accepted => proto::Wait::Accepted,
            Wait::Stored => proto::Wait::Stored,
            Wait::Confirmed => proto::Wait::Confirmed,
        },
        volatile: args.volatile,
        callers: args.callers.map(|callers| callers as usize),
        lifetime: args.lifetime,
        restart: args.restart_command.clone(),
        patience: args.patience,
        threads: args.threads.map_or((cores / 2).max(1), usize::from),
    }
}

fn target(args: &Stress) -> Outcome<Target> {
    let url = &args.url;
    let wrong = |what: &str| Failure::usage(format!("--url {url}: {what}; write ws://HOST:PORT/PATH"));
    let uri: Uri = url.parse().map_err(|_| wrong("is not an address"))?;
    match uri.scheme_str() {
        Some("ws") => {}
        Some("wss") => return Err(wrong("the load is put on the gateway itself, without TLS")),
        _ => return Err(wrong("is not a WebSocket address")),
    }
    let host = uri.authority().map(ToString::to_string).ok_or_else(|| wrong("has no host"))?;
    let name = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let mut found = (name, uri.port_u16().unwrap_or(80))
        .to_socket_addrs()
        .map_err(|error| Failure::new(EXIT_UNAVAILABLE, format!("--url {url}: {name} is not known: {error}")))?;
    let address = found.next().ok_or_else(|| wrong("its host has no address"))?;
    let path = uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    Ok(Target { address, host, path, client_acks: args.ack_mode == AckMode::Client })
}

/// Raises the soft limit on descriptors to the hard one, and refuses what does not fit.
fn enough_descriptors(plan: &Plan, connections: u32) -> Outcome {
    let (limit, _) = net::raise_descriptor_limit();
    let needed = u64::from(connections) + DESCRIPTORS_BESIDE + DESCRIPTORS_PER_THREAD * plan.threads as u64;
    match limit {
        Some(limit) if limit < needed => Err(Failure::usage(format!(
            "--connections {connections} needs {needed} descriptors and a process may have {limit}; raise that with \
             ulimit -n, take fewer, or run this several times at once"
        ))),
        _ => Ok(()),
    }
}

/// The sessions' places, and the users that were made up for them.
fn places(args: &Stress) -> Outcome<(Vec<Place>, Vec<String>)> {
    let count = args.connections as usize;
    if let Some(file) = &args.user_tokens {
        let text = fs::read_to_string(file).map_err(|error| Failure::file("cannot read", file, &error))?;
        let tokens: Vec<Arc<str>> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Into::into).collect();
        if tokens.is_empty() {
            return Err(Failure::usage(format!("--user-tokens {}: it holds no token", file.display())));
        }
        if tokens.iter().any(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            let text = format!("--user-tokens {}: a line has characters that no token can have", file.display());
            return Err(Failure::usage(text));
        }
        let different: HashSet<&Arc<str>> = tokens.iter().collect();
        let shared = count > tokens.len() || different.len() < tokens.len();
        let place = |number: usize| Place {
            token: Arc::clone(&tokens[number % tokens.len()]),
            // One device has one cursor: sessions that share it would each get only a part.
            device: shared.then(|| format!("stress-{number}")),
        };
        return Ok(((0..count).map(place).collect(), Vec::new()));
    }
    let signer = match &args.secret {
        Some(secret) => Signer::of_secret(secret.expose()),
        None => Signer::find(&args.key, &args.target.file)?,
    };
    let tag = u32::from_le_bytes(token::random::<4>()?);
    let users: Vec<String> = (0..count).map(|number| format!("stress-{tag:08x}-{number}")).collect();
    let place = |user: &String| -> Outcome<Place> {
        Ok(Place { token: signer.sign(user, TOKEN_TTL, Map::new())?.into(), device: None })
    };
    let places = users.iter().map(place).collect::<Outcome<_>>()?;
    Ok((places, users))
}

/// The admin API; `None` where no test needs it and it does not answer.
async fn calls(args: &Stress, kinds: &[Kind]) -> Outcome<Option<Calls>> {
    let callers = args.callers.unwrap_or(if args.via == How::Unary { 64 } else { 1 }) as usize;
    let mut channels = Vec::new();
    let token;
    match args.target.connect().await {
        Ok(gateway) => {
            token = gateway.token();
            for _ in 0..callers.clamp(1, CHANNELS_MAX) {
                channels.push(gateway.another());
            }
        }
        Err(failure) if kinds.iter().any(|kind| kind.sends()) => return Err(failure),
        Err(failure) => {
            output::note(&format!("the gateway's CPU time and memory are not known: {}", failure.message()));
            return Ok(None);
        }
    }
    Ok(Some(Calls::new(channels, token, args.target.timeout)))
}

/// Has the gateway forget the users that were made up.
async fn forget(calls: &Calls, users: Vec<String>, bar: &Bar) {
    use futures_util::StreamExt as _;
    bar.begins("all", "forgetting users", users.len() as u64);
    let calls = futures_util::stream::iter(users).map(|user| async move { calls.forget(&user).await });
    let mut answers = calls.buffer_unordered(FORGET_AT_ONCE);
    let mut done = 0;
    while let Some(answer) = answers.next().await {
        if let Err(status) = answer {
            bar.0.finish_and_clear();
            let text = format!("what is stored for the users is left: {}; --keep says nothing of it", status.message());
            return output::note(&text);
        }
        done += 1;
        bar.at(done);
    }
    bar.0.finish_and_clear();
}

/// How far it is, on a terminal.
struct Bar(ProgressBar);

impl Watch for Bar {
    fn begins(&self, test: &'static str, part: &'static str, steps: u64) {
        let template = if steps > 0 { "{msg:24} {wide_bar} {pos}/{len} {eta}" } else { "{msg:24} {spinner} {pos}" };
        // The templates are right, and a plain bar would do.
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style);
        }
        self.0.reset();
        self.0.set_length(steps);
        self.0.set_message(format!("{test}: {part}"));
    }

    fn at(&self, done: u64) {
        self.0.set_position(done);
    }

    fn says(&self, text: &str) {
        self.0.suspend(|| output::note(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_numbers_have_the_unit_that_one_expects() {
        assert_eq!(seconds("60"), Ok(Duration::from_secs(60)));
        assert_eq!(seconds("1m"), Ok(Duration::from_secs(60)));
        assert_eq!(millis("100"), Ok(Duration::from_millis(100)));
        assert_eq!(millis("0"), Ok(Duration::ZERO));
        assert_eq!((size("256"), size("4KiB")), (Ok(256), Ok(4096)));
        assert!(seconds("0").is_err() && seconds("-1").is_err() && size("1TiB").is_err());
        assert!(rate("-1").is_err() && rate("NaN").is_err() && rate("2000.5").is_ok());
    }
}
