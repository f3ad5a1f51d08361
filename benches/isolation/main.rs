//! Whether what some do is felt by the others: the latency of a steady unicast to quiet sessions, from the moment a call
//! was due to the client, first alone and then beside each of those who disturb; and how late the daemon's own tasks get
//! their turn meanwhile. Prints a table, and decides nothing.
//!
//! `cargo bench --bench isolation [-- ROUNDS SECONDS [PART OF A NAME]...]`: 3 rounds of 2 s alone and 2 s disturbed, four
//! minutes after the build. Each row has a daemon of its own. Quiet and disturbed phases take turns, so that what else the
//! machine does meets both; a figure is the median of its phases' figures.
//!
//! Clients and daemon share the cores. So the disturbers are paced such that the cores are idle for a part of the time, and
//! their own threads run at a lower priority (nice 10); what the daemon and all clients took is in the table. The row
//! `control` takes cores without the gateway: what it does to the latency is the machine's, not the gateway's.

#[path = "../support/daemon.rs"]
mod daemon;
mod disturb;
#[path = "../support/load.rs"]
mod load;
#[path = "../support/usage.rs"]
mod usage;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use daemon::{Daemon, Error};
use disturb::{Disturber, Kind};
use load::{Load, Sessions};
use parking_lot::Mutex;
use pushgate::{
    api::proto::Wait,
    stress::sender::{Pace, Via},
};
use serde_json::Value;

/// The quiet sessions, each of a user of its own.
const QUIET: usize = 500;
/// What they are sent together in a second.
const QUIET_RATE: f64 = 500.0;
const PAYLOAD_BYTES: usize = 256;
/// How long everything rests between two phases.
const REST: Duration = Duration::from_millis(400);
/// The disturber begins so much before it is measured, and ends so much later.
const MARGIN: Duration = Duration::from_millis(200);
/// The daemon says its longest delay so often.
const LINE_EVERY: Duration = Duration::from_millis(250);
/// What every daemon is told besides; some disturbers need more than the defaults allow.
const CONFIG: &str = "
    log.filter = \"info,pushgate::server::pulse=trace\"
    limits.connections_per_user = 10000
    store.max_pending_per_user = 20000
    store.max_devices_per_user = 100
    limits.new_devices_per_hour = 0
    limits.messages_per_second = 0
    limits.bytes_per_second = \"0B\"
";

/// The delays that the daemon logged, and when.
type Delays = Arc<Mutex<Vec<(Instant, u64)>>>;

/// What one phase showed, in µs; CPU in cores.
#[derive(Clone, Copy, Debug, Default)]
struct Phase {
    p50: u64,
    p99: u64,
    delay: u64,
    gateway: f64,
    clients: f64,
    missing: u64,
}

struct Stage {
    quiet: Sessions,
    users: Arc<[Arc<str>]>,
    delays: Delays,
}

impl Stage {
    async fn phase(&self, span: Duration) -> Result<Phase, Error> {
        let load = Load {
            via: Via::Unary,
            wait: Wait::Accepted,
            volatile: true,
            payload: PAYLOAD_BYTES,
            callers: 8,
            pace: Pace::Count(0),
        };
        let (began, own) = (Instant::now(), usage::cpu());
        let took = self.quiet.send(load.paced(QUIET_RATE, span), &self.users, 1).await?;
        let ended = Instant::now();
        let own = usage::cpu() - own;
        // The line that says it of the last part comes later.
        tokio::time::sleep(LINE_EVERY).await;
        let within = |at: &Instant| *at > began + LINE_EVERY && *at < ended + LINE_EVERY;
        let delay = self.delays.lock().iter().filter(|(at, _)| within(at)).map(|(_, micros)| *micros).max();
        let latency = &took.tally.latency;
        Ok(Phase {
            p50: latency.value_at_quantile(0.5),
            p99: latency.value_at_quantile(0.99),
            delay: delay.unwrap_or_default(),
            gateway: took.cpu_micros / 1e6 / took.seconds,
            clients: own.as_secs_f64() / took.seconds,
            missing: took.missing,
        })
    }
}

fn median<T: PartialOrd + Copy + Default>(phases: &[Phase], of: impl Fn(&Phase) -> T) -> T {
    let mut values: Vec<T> = phases.iter().map(of).collect();
    values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn print(name: &str, quiet: &[Phase], disturbed: &[Phase]) {
    let millis = |micros: u64| micros as f64 / 1000.0;
    let longest = |phases: &[Phase]| phases.iter().map(|phase| phase.delay).max().unwrap_or_default();
    let spans = |phases: &[Phase]| {
        format!("{:.2}, {:.2}", millis(median(phases, |phase| phase.p50)), millis(median(phases, |phase| phase.p99)))
    };
    let delays = |phases: &[Phase]| {
        format!("{:.1} ({:.1})", millis(median(phases, |phase| phase.delay)), millis(longest(phases)))
    };
    let cores = |phases: &[Phase]| {
        format!("{:.2} + {:.2}", median(phases, |phase| phase.gateway), median(phases, |phase| phase.clients))
    };
    let p99 = |phases: &[Phase]| median(phases, |phase| phase.p99).max(1) as f64;
    println!(
        "| {name} | {} | {} | {:.1} × | {} | {} | {} | {} |",
        spans(quiet),
        spans(disturbed),
        p99(disturbed) / p99(quiet),
        delays(quiet),
        delays(disturbed),
        cores(quiet),
        cores(disturbed),
    );
    let missing: u64 = quiet.iter().chain(disturbed).map(|phase| phase.missing).sum();
    if missing > 0 {
        println!("| {name}: {missing} messages to the quiet ones did not come | | | | | | | |");
    }
}

async fn row(kind: Kind, rounds: usize, span: Duration) -> Result<(), Error> {
    let folder = tempfile::TempDir::new()?;
    let delays = Delays::default();
    let told = Arc::clone(&delays);
    let further = format!("{CONFIG}{}", kind.config());
    let daemon = Daemon::start_watched(folder.path(), "sled", &further, move |line| {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        if let Some(micros) = line["longest_us"].as_u64().filter(|_| line["message"] == "scheduler delay") {
            told.lock().push((Instant::now(), micros));
        }
    })?;
    let users: Arc<[Arc<str>]> = load::users("quiet", QUIET).into();
    let stage = Stage { quiet: Sessions::connected(daemon.at(), &users).await?, users, delays };
    let mut disturber = Disturber::start(kind, daemon.at()).await?;
    let (mut quiet, mut disturbed) = (Vec::new(), Vec::new());
    // The first one warms caches up and is not counted.
    stage.phase(span / 4).await?;
    for _ in 0..rounds {
        tokio::time::sleep(REST).await;
        quiet.push(stage.phase(span).await?);
        disturber.begin(span + MARGIN * 2);
        tokio::time::sleep(MARGIN).await;
        disturbed.push(stage.phase(span).await?);
        disturber.ended().await?;
    }
    print(kind.name(), &quiet, &disturbed);
    Ok(())
}

async fn measure(rounds: usize, span: Duration, wanted: &[String]) -> Result<(), Error> {
    println!(
        "{QUIET} quiet sessions, {QUIET_RATE}/s by SendToUser, never stored; {rounds} rounds of {} s alone and beside; ms, \
         medians of the rounds, in brackets the longest of all; CPU in cores, the gateway's + the clients'\n",
        span.as_secs_f64()
    );
    println!(
        "| beside | alone: p50, p99 | beside: p50, p99 | p99 | longest delay, alone | beside | CPU, alone | beside |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for kind in Kind::ALL {
        let named = wanted.is_empty() || wanted.iter().any(|part| kind.name().contains(part.as_str()));
        if named && let Err(error) = row(kind, rounds, span).await {
            println!("| {} | {error} | | | | | | |", kind.name());
        }
    }
    Ok(())
}

fn main() -> Result<(), Error> {
    let _ = pushgate::net::raise_descriptor_limit();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let number = |index: usize| arguments.get(index).and_then(|argument| argument.parse::<f64>().ok());
    let (rounds, seconds) = (number(0).unwrap_or(3.0).max(1.0) as usize, number(1).unwrap_or(2.0).max(0.5));
    let wanted: Vec<String> = arguments.iter().filter(|argument| argument.parse::<f64>().is_err()).cloned().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(rounds, Duration::from_secs_f64(seconds), &wanted))
}
