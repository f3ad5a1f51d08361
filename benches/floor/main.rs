//! The gateway beside the floor under it, in one run: what a bare epoll loop costs for the same work with the same
//! clients, and what the gateway does. Prints the table of BENCHMARKS.md, and decides nothing.
//!
//! `cargo bench --bench floor [-- CONNECTIONS [SECONDS]]`: 10,000 connections, 5 s a rate where nothing is said.

#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../support/load.rs"]
mod load;
mod server;

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use daemon::{Daemon, Error};
use pushgate::{
    api::proto::Wait,
    stress::{
        self, Kind, Plan, Watch,
        fleet::{Fleet, Place, Target},
        mark::{self, Mark},
        report::{Latency, Report},
        sender::{Calls, Via},
    },
};

/// The payload of every message; a frame has about 150 bytes more.
const PAYLOAD_BYTES: usize = 256;
/// Broadcasts one after the other, this far apart.
const PACED: (u64, Duration) = (20, Duration::from_millis(250));
/// Broadcasts back to back, and how many are pending at once.
const BACK_TO_BACK: (u64, u64) = (320, 32);
/// Unicasts a second at an even pace, and to how many sessions.
const STEADY: (u64, u64) = (2_000, 1_000);
/// How long nothing may come before it is given up.
const PATIENCE: Duration = Duration::from_secs(10);

struct Silent;

impl Watch for Silent {
    fn begins(&self, _: &'static str, _: &'static str, _: u64) {}
    fn at(&self, _: u64) {}
}

fn row(what: &str, floor: &str, gateway: &str, ratio: &str) {
    println!("| {what} | {floor} | {gateway} | {ratio} |");
}

/// What the bare loop took: µs of CPU each, and how many a second.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    micros: f64,
    a_second: f64,
}

/// The bare loop as a child process.
struct Floor {
    child: Child,
    orders: TcpStream,
    address: SocketAddr,
}

impl Floor {
    fn start() -> Result<Self, Error> {
        let program = std::env::current_exe()?;
        let mut child = Command::new(program).arg("serve").stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no standard output")?).read_line(&mut line)?;
        let ports: Vec<u16> = line.split_whitespace().filter_map(|port| port.parse().ok()).collect();
        let [clients, orders] = ports[..] else { return Err("the floor said no ports".into()) };
        let orders = TcpStream::connect((Ipv4Addr::LOCALHOST, orders))?;
        orders.set_nodelay(true)?;
        Ok(Self { child, orders, address: (Ipv4Addr::LOCALHOST, clients).into() })
    }

    fn order(batch: &mut Vec<u8>, what: u8, whom: u32, frames: &[u8]) {
        batch.push(what);
        batch.extend_from_slice(&whom.to_be_bytes());
        batch.extend_from_slice(&(frames.len() as u32).to_be_bytes());
        batch.extend_from_slice(frames);
    }

    fn tell(&mut self, what: u8, whom: u32, frames: &[u8]) -> io::Result<()> {
        let mut batch = Vec::with_capacity(frames.len() + 9);
        Self::order(&mut batch, what, whom, frames);
        self.orders.write_all(&batch)
    }

    /// CPU time in µs, resident bytes.
    fn usage(&mut self) -> io::Result<(f64, u64)> {
        self.tell(server::USAGE, 0, &[])?;
        let mut answer = [0; 16];
        self.orders.read_exact(&mut answer)?;
        let number = |at: usize| u64::from_be_bytes(answer[at..at + 8].try_into().unwrap_or_default());
        Ok((number(0) as f64 / 1000.0, number(8)))
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A frame as the gateway would make it.
fn frame(run: u32, number: u64, now: u64) -> Vec<u8> {
    let data = Mark { run, lane: 0, whom: mark::EVERYBODY, number, due_micros: now }.payload(PAYLOAD_BYTES);
    let text = format!(
        "{{\"type\":\"notification\",\"id\":\"0197f1c2-8a4e-7d31-9b1c-2f6f0b7e5a11\",\
         \"timestamp\":\"2026-01-31T09:35:00.123Z\",\"data\":{data}}}"
    );
    let mut frame = vec![0x81, 126];
    frame.extend_from_slice(&(text.len() as u16).to_be_bytes());
    frame.extend_from_slice(text.as_bytes());
    frame
}

struct FloorRun {
    session_bytes: f64,
    connect: Cost,
    paced: Cost,
    paced_latency: Option<Latency>,
    back_to_back: Cost,
    coalesced: Cost,
    unicast: Cost,
    steady: Cost,
    steady_latency: Option<Latency>,
}

struct Stage {
    floor: Floor,
    fleet: Fleet,
    run: u32,
}

impl Stage {
    fn now(&self) -> u64 {
        self.fleet.live().now_micros()
    }

    /// Waits until so many messages have come.
    async fn came(&self, messages: u64) -> io::Result<()> {
        let live = self.fleet.live();
        while live.came.load(Ordering::Acquire) < messages {
            let quiet = live.now_micros().saturating_sub(live.last_micros.load(Ordering::Relaxed));
            if quiet > PATIENCE.as_micros() as u64 {
                let came = live.came.load(Ordering::Acquire);
                return Err(io::Error::other(format!("{came} of {messages} messages came")));
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        Ok(())
    }

    /// Does something that brings so many deliveries, and says what each took.
    async fn cost(
        &mut self,
        deliveries: u64,
        mut work: impl AsyncFnMut(&mut Self) -> io::Result<()>,
    ) -> io::Result<(Cost, Option<Latency>)> {
        self.run += 1;
        self.fleet.begin(self.run, 1);
        // So that no thread counts what is sent before it began.
        self.fleet.collect().await;
        let ((before, _), began) = (self.floor.usage()?, self.now());
        work(self).await?;
        self.came(deliveries).await?;
        let (after, _) = self.floor.usage()?;
        let seconds = (self.now() - began) as f64 / 1e6;
        let latency = Latency::of(&self.fleet.collect().await.tally.latency);
        Ok((Cost { micros: (after - before) / deliveries as f64, a_second: deliveries as f64 / seconds }, latency))
    }
}

async fn floor(connections: u64, lasts: u64, threads: usize) -> Result<FloorRun, Error> {
    let mut floor = Floor::start()?;
    let target = Target { address: floor.address, host: "floor".into(), path: "/".into(), client_acks: false };
    let places = vec![Place { token: Arc::from("none"), device: None }; connections as usize];
    let (before, empty) = floor.usage()?;
    let fleet = Fleet::start(&target, places, threads)?;
    let mut stage = Stage { floor, fleet, run: 0 };
    let began = stage.now();
    stage.fleet.begin(0, 1);
    stage.fleet.connect(500);
    while stage.fleet.live().connecting.load(Ordering::Acquire) > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    if stage.fleet.collect().await.tally.connected < connections {
        return Err("not all could connect to the floor".into());
    }
    let (after, full) = stage.floor.usage()?;
    let seconds = (stage.now() - began) as f64 / 1e6;
    let connect = Cost { micros: (after - before) / connections as f64, a_second: connections as f64 / seconds };

    let (count, interval) = PACED;
    let (paced, paced_latency) = stage
        .cost(count * connections, async |stage| {
            for number in 0..count {
                let frame = frame(stage.run, number, stage.now());
                stage.floor.tell(server::ALL, 0, &frame)?;
                tokio::time::sleep(interval).await;
            }
            Ok(())
        })
        .await?;
    let (count, pending) = BACK_TO_BACK;
    let mut costs = [Cost::default(); 2];
    for (one_write, cost) in [false, true].into_iter().zip(&mut costs) {
        (*cost, _) = stage
            .cost(count * connections, async |stage| {
                for round in 0..count / pending {
                    let now = stage.now();
                    let frames: Vec<_> =
                        (round * pending..(round + 1) * pending).map(|number| frame(stage.run, number, now)).collect();
                    if one_write {
                        stage.floor.tell(server::ALL, 0, &frames.concat())?;
                    } else {
                        frames.iter().try_for_each(|frame| stage.floor.tell(server::ALL, 0, frame))?;
                    }
                    stage.came((round + 1) * pending * connections).await?;
                }
                Ok(())
            })
            .await?;
    }
    let sends = 20 * connections;
    let (unicast, _) = stage
        .cost(sends, async |stage| {
            let mut batch = Vec::new();
            for number in 0..sends / connections {
                for whom in 0..connections {
                    let frame = frame(stage.run, number, stage.now());
                    Floor::order(&mut batch, server::ONE, whom as u32, &frame);
                    if batch.len() > 128 * 1024 {
                        stage.floor.orders.write_all(&batch)?;
                        batch.clear();
                        // As many under way as a stream of the gateway allows.
                        let sent = number * connections + whom;
                        stage.came(sent.saturating_sub(1024)).await?;
                    }
                }
            }
            stage.floor.orders.write_all(&batch)
        })
        .await?;
    let (a_second, among) = STEADY;
    let sends = a_second * lasts;
    let (steady, steady_latency) = stage
        .cost(sends, async |stage| {
            let began = stage.now();
            for number in 0..sends {
                let due = began + number * 1_000_000 / a_second;
                // Timers of the runtime have a grain of a millisecond.
                std::thread::sleep(Duration::from_micros(due.saturating_sub(stage.now())));
                let whom = number % among.min(connections);
                let frame = frame(stage.run, number / among.min(connections), due);
                stage.floor.tell(server::ONE, whom as u32, &frame)?;
            }
            Ok(())
        })
        .await?;
    let session_bytes = full.saturating_sub(empty) as f64 / connections as f64;
    let (back_to_back, coalesced) = (costs[0], costs[1]);
    Ok(FloorRun {
        session_bytes,
        connect,
        paced,
        paced_latency,
        back_to_back,
        coalesced,
        unicast,
        steady,
        steady_latency,
    })
}

/// The gateway under the same load.
struct Gateway {
    daemon: Daemon,
    calls: Calls,
    places: Vec<Place>,
    plan: Plan,
}

impl Gateway {
    async fn start(folder: &std::path::Path, connections: u64, plan: Plan) -> Result<Self, Error> {
        let daemon = Daemon::start(folder, "sled", "")?;
        let calls = load::calls(daemon.at()).await?;
        let places =
            (0..connections).map(|number| load::place(&format!("user-{number}"), None)).collect::<Result<_, _>>()?;
        Ok(Self { daemon, calls, places, plan })
    }

    async fn run(&self, kind: Kind, sessions: usize, change: impl FnOnce(&mut Plan)) -> Result<Report, Error> {
        let mut plan = self.plan.clone();
        change(&mut plan);
        let target = load::target(self.daemon.at());
        let places = self.places[..sessions.min(self.places.len())].to_vec();
        let reports = stress::run(&[kind], &plan, &target, places, Some(&self.calls), &Silent, |_| {}).await?;
        let report = reports.into_iter().next().ok_or("no report")?;
        if let Some(shortfall) = report.shortfall().filter(|_| !report.passed()) {
            println!("| {}: {shortfall} | | | |", report.test);
        }
        if !report.kept() {
            println!("| {}: {} lost, {} out of order | | | |", report.test, report.lost, report.out_of_order);
        }
        Ok(report)
    }
}

fn cpu(report: &Report) -> f64 {
    report.server.as_ref().and_then(|server| server.cpu_micros_per_unit).unwrap_or_default()
}

fn spans(latency: Option<&Latency>) -> String {
    latency.map_or_else(String::new, |one| format!("p50 {} µs, p99 {} µs", one.p50_micros, one.p99_micros))
}

fn compare(what: &str, floor: Cost, report: &Report, a_second: f64) {
    let cpu = cpu(report);
    row(
        what,
        &format!("{:.2} µs, {:.0}/s", floor.micros, floor.a_second),
        &format!("{cpu:.2} µs, {a_second:.0}/s"),
        &format!("{:.2} ×", cpu / floor.micros),
    );
}

async fn measure(connections: u64, seconds: u64) -> Result<(), Error> {
    let threads = (std::thread::available_parallelism().map_or(1, usize::from) / 2).max(1);
    println!("{connections} sessions, payload {PAYLOAD_BYTES} B, {seconds} s a rate; µs are the server's CPU time\n");
    println!("| what | floor | gateway | ratio |\n|---|---|---|---|");
    let floor = floor(connections, seconds, threads).await?;
    let folder = tempfile::TempDir::new()?;
    let plan = Plan {
        max_concurrent: 500,
        messages: 10,
        duration: Duration::from_secs(seconds),
        message_interval: PACED.1,
        payload: PAYLOAD_BYTES,
        rate: Some(0.0),
        via: Via::Unary,
        wait: Wait::Accepted,
        volatile: true,
        callers: None,
        lifetime: Duration::from_secs(10),
        restart: None,
        patience: Duration::from_secs(10),
        threads,
    };
    let gateway = Gateway::start(folder.path(), connections, plan).await?;
    let all = connections as usize;

    let report = gateway.run(Kind::Storm, all, |_| {}).await?;
    compare("connect, new users", floor.connect, &report, report.per_second.connects);
    let grown = report.server.as_ref().and_then(|server| server.rss_bytes_per_session).unwrap_or_default();
    let kib = |bytes: f64| format!("{:.2} KiB", bytes / 1024.0);
    row("idle session, resident", &kib(floor.session_bytes), &kib(grown), "");
    let report = gateway.run(Kind::Storm, all, |_| {}).await?;
    compare("connect, known users", floor.connect, &report, report.per_second.connects);

    let report = gateway.run(Kind::Fanout, all, |plan| plan.messages = PACED.0).await?;
    compare("paced broadcast, a delivery", floor.paced, &report, report.per_second.received);
    row("paced broadcast, latency", &spans(floor.paced_latency.as_ref()), &spans(report.latency.as_ref()), "");
    let report = gateway
        .run(Kind::Fanout, all, |plan| (plan.messages, plan.message_interval) = (BACK_TO_BACK.0, Duration::ZERO))
        .await?;
    compare(
        "broadcasts back to back, 32 pending, a write a frame",
        floor.back_to_back,
        &report,
        report.per_second.received,
    );
    compare("the same, one write for all pending", floor.coalesced, &report, report.per_second.received);

    for (volatile, stored) in [(true, "never stored"), (false, "stored")] {
        for (via, name) in [(Via::Unary, "SendToUser, 64 callers"), (Via::Batch, "SendBatch, 1 stream")] {
            let report = gateway.run(Kind::Unicast, all, |plan| (plan.via, plan.volatile) = (via, volatile)).await?;
            let what = format!("unicast by {name}, WAIT_ACCEPTED, {stored}");
            compare(&what, floor.unicast, &report, report.per_second.sent);
        }
    }
    for callers in [1, 64] {
        let report = gateway
            .run(Kind::Unicast, all, |plan| {
                (plan.wait, plan.volatile, plan.callers) = (Wait::Stored, false, Some(callers));
            })
            .await?;
        let figure = format!("{:.0}/s, {}", report.per_second.sent, spans(report.answer.as_ref()));
        row(&format!("SendToUser, WAIT_STORED, {callers} callers"), "", &figure, "");
    }
    for (volatile, stored) in [(true, "never stored"), (false, "stored")] {
        let report = gateway
            .run(Kind::Unicast, all.min(STEADY.1 as usize), |plan| {
                (plan.rate, plan.via, plan.volatile) = (Some(STEADY.0 as f64), Via::Batch, volatile);
            })
            .await?;
        let figure = |latency, micros: f64| format!("{}, {micros:.1} µs of CPU a send", spans(latency));
        row(
            &format!("unicast at {}/s to {} sessions, {stored}: call to client", STEADY.0, STEADY.1),
            &figure(floor.steady_latency.as_ref(), floor.steady.micros),
            &figure(report.latency.as_ref(), cpu(&report)),
            &format!("{:.2} ×", cpu(&report) / floor.steady.micros),
        );
    }
    let report = gateway.run(Kind::Replay, all, |_| {}).await?;
    let figure = format!("{:.0}/s", report.per_second.sent);
    row("SendBatch to absent users, WAIT_STORED, 4 streams", "", &figure, "");
    let figure = format!("{:.0} deliveries/s, {}", report.per_second.received, spans(report.replay.as_ref()));
    row(&format!("{connections} users return at once for 10 each: connect to last"), "", &figure, "");
    let report = gateway.run(Kind::Replay, 1, |plan| plan.messages = 1000).await?;
    row("one user returns for 1,000: connect to last", "", &spans(report.replay.as_ref()), "");
    Ok(())
}

fn main() -> Result<(), Error> {
    // The floor inherits it. Where it is too low all the same, whoever cannot connect says so.
    let _ = pushgate::net::raise_descriptor_limit();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "serve") {
        return Ok(server::serve()?);
    }
    let numbers: Vec<u64> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let (connections, seconds) = (numbers.first().copied().unwrap_or(10_000), numbers.get(1).copied().unwrap_or(5));
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure(connections, seconds))
}
