//! A daemon, its callers and its clients.

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream as StdStream},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::{SinkExt as _, StreamExt as _};
use parking_lot::Mutex;
use pushgate::api::proto::{
    Notification, Outcome, SendToUserRequest, SendToUserResponse, Wait, gateway_client::GatewayClient,
    notification::Payload,
};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, tungstenite::Message};
use tonic::{Code, Status, transport::Channel};

/// How long anything here may take before it counts as hanging.
pub const PATIENCE: Duration = Duration::from_secs(20);
const SECRET: &str = "a secret that only tests know, and they alone";

/// What a script says by a variable of the environment.
pub fn given(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: run tests/*.sh")).into()
}

/// The faults that a daemon meets, at the test's command.
pub struct Faults {
    control: std::fs::File,
    path: PathBuf,
    shadow: Option<PathBuf>,
}

impl Faults {
    pub fn new(folder: &Path, shadow: Option<&Path>) -> Faults {
        let path = folder.join("control");
        std::fs::write(&path, b"0").unwrap();
        let control = std::fs::File::options().write(true).open(&path).unwrap();
        Faults { control, path, shadow: shadow.map(Path::to_owned) }
    }

    /// `'0'`: none, `'1'`: syncs fail, `'b'`: they hang.
    pub fn set(&self, state: u8) {
        self.control.write_all_at(&[state], 0).unwrap();
    }
}

/// How a store is kept.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    pub engine: &'static str,
    pub durability: &'static str,
}

pub const BY_DEFAULT: Kept = Kept { engine: "sled", durability: "process" };

/// A daemon. Killed, not stopped, at its end.
pub struct Daemon {
    child: Child,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub ops: SocketAddr,
    pub log: Arc<Mutex<Vec<String>>>,
}

impl Daemon {
    /// On the store at `data`; what it said where it did not start.
    pub fn try_start(data: &Path, kept: Kept, faults: Option<&Faults>) -> Result<Daemon, String> {
        let config = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
        let text = format!(
            r#"
            http.listen = ["127.0.0.1:0"]
            grpc = {{ listen = ["127.0.0.1:0"], insecure = true }}
            ops.listen = ["127.0.0.1:0"]
            auth = {{ require_exp = false, keys = [{{ algorithm = "HS256", secret = "{SECRET}" }}] }}
            store = {{ path = "{}", engine = "{}", durability = "{}", max_pending_per_user = 1000000 }}
            log.format = "json"
            shutdown.deadline = "5s"
            "#,
            data.display(),
            kept.engine,
            kept.durability,
        );
        std::fs::write(config.path(), text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pushgate"));
        command.args(["serve", "--config"]).arg(config.path()).env_remove("RUST_LOG").stderr(Stdio::piped());
        if let Some(faults) = faults {
            command.env("LD_PRELOAD", given("FAULTS_SHIM")).env("FAULTS_CONTROL", &faults.path);
            command.env("FAULTS_FOLDER", std::fs::canonicalize(data).unwrap());
            if let Some(shadow) = &faults.shadow {
                command.env("FAULTS_SHADOW", shadow);
            }
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (log, (told, tells)) = (Arc::new(Mutex::new(Vec::new())), mpsc::channel());
        let seen = Arc::clone(&log);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let value: Value = serde_json::from_str(&line).unwrap_or_default();
                seen.lock().push(line);
                // Nobody listens once the daemon is up.
                let _ = told.send(value);
            }
        });
        let mut addresses = HashMap::new();
        loop {
            let Ok(line) = tells.recv_timeout(PATIENCE) else {
                let _ = child.kill();
                let _ = child.wait();
                return Err(log.lock().join("\n"));
            };
            match line["message"].as_str() {
                Some("listening") => {
                    let address = line["address"].as_str().unwrap().parse::<SocketAddr>().unwrap();
                    addresses.insert(line["name"].as_str().unwrap().to_owned(), address);
                }
                Some("ready") => break,
                _ => {}
            }
        }
        Ok(Daemon { child, http: addresses["http"], grpc: addresses["grpc"], ops: addresses["ops"], log })
    }

    pub fn start(data: &Path, kept: Kept, faults: Option<&Faults>) -> Daemon {
        Self::try_start(data, kept, faults).unwrap_or_else(|log| panic!("the daemon did not start: {log}"))
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "it had ended by itself: {:?}", self.log.lock());
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn is_there(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end by itself.
    pub async fn ended(&mut self, patience: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < patience, "it does not end: {:?}", self.log.lock());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn client(&self) -> GatewayClient<Channel> {
        GatewayClient::connect(format!("http://{}", self.grpc)).await.unwrap()
    }

    /// The status code of `/readyz`.
    pub fn readiness(&self) -> u16 {
        let mut stream = StdStream::connect(self.ops).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// What the health service says of the gateway.
    pub async fn is_serving(&self) -> bool {
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap();
        let mut client = tonic_health::pb::health_client::HealthClient::new(channel.connect().await.unwrap());
        let request = tonic_health::pb::HealthCheckRequest { service: "pushgate.v1.Gateway".into() };
        client.check(request).await.unwrap().into_inner().status()
            == tonic_health::pb::health_check_response::ServingStatus::Serving
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A test that fails leaves nothing running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that answers pings, as every WebSocket library does.
pub struct Session {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub pending: usize,
}

impl Session {
    /// Opens one; tries again for a while, as a client would, where the gateway says "later".
    pub async fn open(daemon: &Daemon, user: &str) -> Session {
        let begun = Instant::now();
        loop {
            match Self::try_open(daemon, user).await {
                Ok(session) => return session,
                Err(why) => assert!(
                    begun.elapsed() < PATIENCE,
                    "not let in: {why}: {:#?}",
                    daemon.log.lock().iter().rev().take(30).collect::<Vec<_>>()
                ),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn try_open(daemon: &Daemon, user: &str) -> Result<Session, String> {
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        let token = jsonwebtoken::encode(&Default::default(), &serde_json::json!({ "sub": user }), &key).unwrap();
        let url = format!("ws://{}/ws?token={token}", daemon.http);
        let (socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        let mut session = Session { socket, pending: 0 };
        let hello = session.next().await.ok_or("closed")?;
        if hello["type"] != "auth_success" {
            return Err(hello.to_string());
        }
        session.pending = usize::try_from(hello["pending"].as_u64().unwrap()).unwrap();
        Ok(session)
    }

    /// The next text message; none once the connection is gone.
    pub async fn next(&mut self) -> Option<Value> {
        let next = async {
            loop {
                match self.socket.next().await? {
                    Ok(Message::Text(text)) => return Some(serde_json::from_str(&text).unwrap()),
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("a message, or the connection's end")
    }

    /// Asks, and waits for the answer; what comes before it goes to `seen`.
    pub async fn round_trip(&mut self, seen: &mut Vec<u64>) {
        self.socket.send(Message::text(r#"{"type":"ping"}"#)).await.unwrap();
        loop {
            let message = self.next().await.expect("the session stays");
            match message["type"].as_str() {
                Some("pong") => return,
                Some("notification") => seen.extend(message["offset"].as_u64()),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Takes what waited when it was opened, and sees it confirmed.
    pub async fn drain(mut self) -> Vec<u64> {
        let mut seen = Vec::new();
        while seen.len() < self.pending {
            let message = self.next().await.expect("all that waits");
            assert_eq!(message["type"], "notification", "{message}");
            seen.extend(message["offset"].as_u64());
        }
        // The first answer shows that the ping behind the data was seen, the second that its pong was.
        self.round_trip(&mut seen).await;
        self.round_trip(&mut seen).await;
        seen
    }
}

/// One call.
pub async fn send(
    client: &mut GatewayClient<Channel>,
    user: &str,
    bytes: usize,
    is_now_or_never: bool,
) -> Result<SendToUserResponse, Status> {
    let payload = serde_json::json!({ "padding": "x".repeat(bytes) }).to_string();
    let ttl = is_now_or_never.then(prost_types::Duration::default);
    let notification = Notification { payload: Some(Payload::Json(payload)), ttl, ..Default::default() };
    let request = SendToUserRequest {
        user_id: user.to_owned(),
        notification: Some(notification),
        wait: Wait::Stored.into(),
        ..Default::default()
    };
    let call = client.send_to_user(request);
    Ok(tokio::time::timeout(4 * PATIENCE, call).await.expect("an answer")?.into_inner())
}

/// What was answered STORED, by user, and how calls failed.
#[derive(Default)]
pub struct Ledger {
    pub stored: BTreeMap<String, Vec<u64>>,
    pub failed: HashMap<Code, usize>,
}

impl Ledger {
    pub fn count(&self) -> usize {
        self.stored.values().map(Vec::len).sum()
    }

    pub fn acknowledge(&mut self, user: &str, offset: u64) {
        self.stored.entry(user.to_owned()).or_default().push(offset);
    }

    /// Connects everyone, takes all that waits, and says what of the ledger was not there; the ledger is empty then.
    pub async fn settle(&mut self, daemon: &Daemon) -> usize {
        let mut lost = 0;
        for (user, stored) in std::mem::take(&mut self.stored) {
            let seen = Session::open(daemon, &user).await.drain().await;
            assert!(seen.is_sorted_by(|a, b| a < b), "out of order, or twice in a session");
            lost += stored.iter().filter(|offset| seen.binary_search(offset).is_err()).count();
        }
        lost
    }
}

/// Senders at work until they are told to stop or the daemon is gone.
pub struct Senders {
    over: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    ledger: Arc<Mutex<Ledger>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Senders {
    pub async fn begin(daemon: &Daemon, count: usize, bytes: usize) -> Senders {
        let (over, acknowledged): (Arc<AtomicBool>, Arc<AtomicU64>) = Default::default();
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let mut tasks = Vec::new();
        for number in 0..count {
            let mut client = daemon.client().await;
            let (over, acknowledged, ledger) = (Arc::clone(&over), Arc::clone(&acknowledged), Arc::clone(&ledger));
            tasks.push(tokio::spawn(async move {
                for turn in 0_usize.. {
                    if over.load(Ordering::SeqCst) {
                        return;
                    }
                    let user = format!("user-{}", (number + turn) % 5);
                    match send(&mut client, &user, if turn.is_multiple_of(16) { 6000 } else { bytes }, false).await {
                        Ok(answer) => {
                            assert_eq!(answer.outcome(), Outcome::Stored);
                            ledger.lock().acknowledge(&user, answer.offset);
                            acknowledged.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(status) => {
                            *ledger.lock().failed.entry(status.code()).or_default() += 1;
                            // As a caller would wait before he tries again.
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
            }));
        }
        Senders { over, acknowledged, ledger, tasks }
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// How many calls failed so far, by code.
    pub fn failed(&self) -> HashMap<Code, usize> {
        self.ledger.lock().failed.clone()
    }

    /// Waits for so many more acknowledgements.
    pub async fn more(&self, count: u64, patience: Duration) {
        let (begun, until) = (Instant::now(), self.acknowledged() + count);
        while self.acknowledged() < until {
            assert!(begun.elapsed() < patience, "{} of {until}, {:?}", self.acknowledged(), self.failed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends them; those in a call first hear its end.
    pub async fn end(self) -> Ledger {
        self.over.store(true, Ordering::SeqCst);
        for task in self.tasks {
            tokio::time::timeout(5 * PATIENCE, task).await.expect("a call ends").unwrap();
        }
        Arc::into_inner(self.ledger).unwrap().into_inner()
    }
}

/// Asks until it holds.
pub async fn until(what: &str, patience: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < patience, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
