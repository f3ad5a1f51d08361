//! A daemon under abuse, the good sessions beside it, and what must be the same afterwards.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{SinkExt as _, StreamExt as _};
use pushgate::api::proto::{Notification, SendToUserRequest, Wait};
use serde_json::Value;
use tokio::{
    sync::{Mutex, MutexGuard, mpsc},
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    Rpc, Token,
    child::{Daemon, config},
    gateway::ADMIN,
    rpc::{notification, request},
    soon,
};

/// One case at a time: each measures.
static TURN: Mutex<()> = Mutex::const_new(());
/// Lines of the log that a case may cause beside one a session that it opened: two kinds of lines, and what is said of
/// their number.
const LINES_MAX: usize = 50;
/// How long the daemon may take to give back what it took.
const SETTLES: Duration = Duration::from_secs(10);
/// Beside one message each this often, so that every good session is looked at.
const BETWEEN_MESSAGES: Duration = Duration::from_millis(2);

/// Times that are short enough to be waited for.
const TIMES: &str = r#"
limits.handshake_timeout = "1s"
limits.write_timeout = "1s"
auth.timeout = "1s"
delivery.confirm_timeout = "2s"
presence.linger = "0s"
topics = [{ pattern = "*", subscribe = ["*"], publish = ["*"], presence = ["*"] }]
"#;

/// See the module's documentation.
pub struct Ground {
    /// Where clients connect.
    pub http: SocketAddr,
    /// Where callers do.
    pub grpc: SocketAddr,
    /// A caller with all scopes.
    pub rpc: Rpc,
    daemon: Daemon,
    good: Good,
    latencies: Vec<Duration>,
    lines: Vec<Value>,
    _folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// What the daemon has.
#[derive(Clone, Copy, Debug)]
struct Taken {
    descriptors: usize,
    resident: u64,
}

impl Ground {
    /// A daemon with so many good sessions.
    pub async fn with(sessions: usize, more: &str) -> Self {
        let turn = TURN.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(&config(folder.path(), &format!("{TIMES}{more}"))).await;
        let (http, grpc) = (daemon.address("http"), daemon.address("grpc"));
        let rpc = Rpc::over_tcp(grpc, Some(ADMIN)).await;
        let good = Good::connect(http, sessions).await;
        Self { http, grpc, rpc, daemon, good, latencies: Vec::new(), lines: Vec::new(), _folder: folder, _turn: turn }
    }

    /// A daemon with some good sessions.
    pub async fn new() -> Self {
        Self::with(50, "").await
    }

    /// Has the worst done to it twice, with so many sessions each time, and looks at what came of it.
    pub async fn survives(&mut self, case: &str, sessions: usize, mut worst: impl AsyncFnMut(&mut Rpc)) {
        let started = Instant::now();
        worst(&mut self.rpc).await;
        let before = self.settled().await;
        let lines = self.daemon.logged_by_now();
        self.lines.extend(lines);
        let (traffic, stop) = self.good.traffic(self.rpc.clone());
        worst(&mut self.rpc).await;
        let done = Instant::now();
        stop.store(true, Ordering::Relaxed);
        let sent = soon("the last send", traffic).await.unwrap();
        let all = self.good.heard(&sent).await;
        // What was sent behind it, so that each session gets something, says nothing of it.
        let mut latencies: Vec<_> = all.into_iter().filter(|(at, _)| *at < done).map(|(_, took)| took).collect();
        latencies.sort_unstable();
        let after = self.settled_at(before).await;
        assert_eq!(after.descriptors, before.descriptors, "{case}: descriptors");
        assert!(after.resident <= before.resident / 100 * 110, "{case}: {before:?}, then {after:?}");
        let lines = self.daemon.logged_by_now();
        self.lines.extend(lines.clone());
        let most = sessions + LINES_MAX;
        assert!(lines.len() <= most, "{case}: {} lines of log, such as {:?}", lines.len(), lines.last());
        let bad = lines.iter().find(|line| line["level"] == "ERROR" || !line.is_object());
        assert!(bad.is_none(), "{case}: {bad:?}");
        assert_eq!(self.rpc.errors("panic").await, 0, "{case}");
        println!(
            "{case}: survived in {:?}; {} messages to {} good sessions, {} of them meanwhile, p99 {:?}; {} descriptors, {} \
             and then {} KiB resident, {} lines of log",
            started.elapsed(),
            sent.len(),
            self.good.count,
            latencies.len(),
            percentile(&latencies, 99),
            after.descriptors,
            before.resident / 1024,
            after.resident / 1024,
            lines.len(),
        );
        self.latencies = latencies;
    }

    /// Reads the log until these lines, and those before, are what was expected.
    pub async fn logged(&mut self, mut enough: impl FnMut(&[Value]) -> bool) {
        while !enough(&self.lines) {
            let line = self.daemon.line().await.expect("the daemon lives");
            self.lines.push(line);
        }
    }

    /// How long each message to a good session took, while the worst was done last.
    pub fn latencies(&self) -> &[Duration] {
        &self.latencies
    }

    /// Waits until nothing changes any more.
    async fn settled(&mut self) -> Taken {
        let until = Instant::now() + SETTLES;
        let mut last = self.taken();
        let mut same = 0;
        while same < 3 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(60)).await;
            let now = self.taken();
            let close = now.resident.abs_diff(last.resident) <= last.resident / 100;
            same = if close && now.descriptors == last.descriptors { same + 1 } else { 0 };
            last = now;
        }
        last
    }

    /// Waits until it has no more than before, for so long at most.
    async fn settled_at(&mut self, before: Taken) -> Taken {
        let until = Instant::now() + SETTLES;
        loop {
            let now = self.taken();
            let done = now.descriptors == before.descriptors && now.resident <= before.resident / 100 * 110;
            if done || Instant::now() > until {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn taken(&self) -> Taken {
        let process = format!("/proc/{}", self.daemon.pid());
        let status = fs::read_to_string(format!("{process}/statm")).unwrap();
        let pages: u64 = status.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
        let descriptors = fs::read_dir(format!("{process}/fd")).unwrap().count();
        Taken { descriptors, resident: pages * rustix::param::page_size() as u64 }
    }

    /// So many latencies of messages to the good sessions while nothing else happens.
    pub async fn quiet(&mut self, span: Duration) -> Vec<Duration> {
        let (traffic, stop) = self.good.traffic(self.rpc.clone());
        tokio::time::sleep(span).await;
        stop.store(true, Ordering::Relaxed);
        let sent = soon("the last send", traffic).await.unwrap();
        let mut latencies: Vec<_> = self.good.heard(&sent).await.into_iter().map(|(_, took)| took).collect();
        latencies.sort_unstable();
        latencies
    }
}

/// So many percent of them are below it, in order; of none it is nothing.
pub fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

/// Sessions of clients that do as they should.
struct Good {
    count: usize,
    /// What each of them heard: who, and the number.
    heard: mpsc::UnboundedReceiver<(usize, Option<u64>, Instant)>,
    /// The number of the last message of all.
    last: Arc<std::sync::atomic::AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Good {
    async fn connect(http: SocketAddr, count: usize) -> Self {
        let (hear, heard) = mpsc::unbounded_channel();
        let (welcome, mut welcomed) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        for who in 0..count {
            let url = format!("ws://{http}/ws?token={}", Token::of(&user(who)).sign());
            let (hear, welcome) = (hear.clone(), welcome.clone());
            tasks.spawn(async move {
                let (mut socket, _) = soon("a handshake", tokio_tungstenite::connect_async(url)).await.unwrap();
                let hello = soon("auth_success", socket.next()).await.unwrap().unwrap();
                assert!(hello.to_text().unwrap().contains("auth_success"));
                let _ = welcome.send(());
                drop(welcome);
                while let Some(Ok(message)) = socket.next().await {
                    match message {
                        Message::Text(text) => {
                            let message: Value = serde_json::from_str(&text).unwrap();
                            if message["type"] == "notification" {
                                let _ = hear.send((who, message["data"].as_u64(), Instant::now()));
                            }
                        }
                        // The answer is out with this.
                        Message::Ping(_) => {
                            let _ = socket.flush().await;
                        }
                        _ => {}
                    }
                }
                let _ = hear.send((who, None, Instant::now()));
            });
        }
        for _ in 0..count {
            soon("the good sessions", welcomed.recv()).await.unwrap();
        }
        Self { count, heard, last: Arc::default(), _tasks: tasks }
    }

    /// Sends one after the other a message until it is told to stop: what was sent, and when.
    fn traffic(&self, mut rpc: Rpc) -> (tokio::task::JoinHandle<Vec<(u64, Instant)>>, Arc<AtomicBool>) {
        let (stop, count, last) = (Arc::new(AtomicBool::new(false)), self.count, Arc::clone(&self.last));
        let told = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut sent = Vec::new();
            // Each of them at least once.
            while !told.load(Ordering::Relaxed) || sent.len() < count {
                let number = last.fetch_add(1, Ordering::Relaxed);
                let to = user(usize::try_from(number).unwrap() % count);
                let one = Notification { id: String::new(), ..notification(number) };
                sent.push((number, Instant::now()));
                let call = SendToUserRequest { wait: Wait::Accepted.into(), ..request(&to, one) };
                soon("a call", rpc.try_send(call)).await.unwrap();
                tokio::time::sleep(BETWEEN_MESSAGES).await;
            }
            sent
        });
        (task, stop)
    }

    /// Waits for all that was sent; when each was, and how long it took. None came twice or out of order, and nobody was closed.
    async fn heard(&mut self, sent: &[(u64, Instant)]) -> Vec<(Instant, Duration)> {
        let first = sent[0].0;
        let mut latest = vec![None; self.count];
        let mut latencies = Vec::with_capacity(sent.len());
        while latencies.len() < sent.len() {
            let (who, number, at) = soon("a message to a good session", self.heard.recv()).await.unwrap();
            let number = number.unwrap_or_else(|| panic!("good session {who} was closed"));
            assert_eq!(usize::try_from(number).unwrap() % self.count, who, "somebody else's");
            assert!(latest[who].is_none_or(|before| before < number), "{number} after {:?}", latest[who]);
            latest[who] = Some(number);
            let (_, began) = sent[usize::try_from(number - first).unwrap()];
            latencies.push((began, at.saturating_duration_since(began)));
        }
        assert!(self.heard.try_recv().is_err(), "nothing twice, nobody closed");
        latencies
    }
}

fn user(who: usize) -> String {
    format!("good-{who}")
}
