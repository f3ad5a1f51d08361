//! The daemon as a process: with a configuration of its own in a folder, started, watched and killed.

use std::{
    collections::HashMap,
    fmt,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use pushgate::api::proto::gateway_client::GatewayClient;
use serde_json::Value;
use tonic::transport::Channel;

use super::PATIENCE;

const SECRET: &str = "a secret that only tests know, and they alone";

/// How the daemon keeps its data.
#[derive(Clone, Copy)]
pub struct Keeping {
    pub engine: &'static str,
    pub durability: &'static str,
}

impl Default for Keeping {
    fn default() -> Self {
        Self { engine: "sled", durability: "process" }
    }
}

impl fmt::Display for Keeping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.engine, self.durability)
    }
}

/// How a daemon ended that was not killed.
#[derive(Debug)]
pub struct End {
    /// None: by a signal.
    pub code: Option<i32>,
    /// What it said that is no line of its log, and what it logged as an ERROR.
    pub said: Vec<String>,
}

/// A daemon on the data of a folder. Killed, not stopped, at its end.
pub struct Daemon {
    child: Child,
    pub http: SocketAddr,
    grpc: SocketAddr,
    /// Lines of level ERROR, and what is no line of the log.
    errors: Arc<Mutex<Vec<String>>>,
    lines: Option<thread::JoinHandle<()>>,
}

/// Starts a daemon and does not look at it.
pub fn spawn(folder: &Path, keeping: Keeping, on_corruption: &str) -> Child {
    let config = folder.join("pushgate.toml");
    let text = format!(
        r#"
        http.listen = ["127.0.0.1:0"]
        grpc = {{ listen = ["127.0.0.1:0"], insecure = true }}
        ops.listen = ["127.0.0.1:0"]
        auth = {{ require_exp = false, keys = [{{ algorithm = "HS256", secret = "{SECRET}" }}] }}
        log.format = "json"
        [store]
        path = "{}"
        max_pending_per_user = 1000000
        engine = "{}"
        durability = "{}"
        on_corruption = "{on_corruption}"
        "#,
        folder.join("data").display(),
        keeping.engine,
        keeping.durability,
    );
    std::fs::write(&config, text).unwrap();
    Command::new(env!("CARGO_BIN_EXE_pushgate"))
        .args(["serve", "--config"])
        .arg(&config)
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

impl Daemon {
    /// Starts it where nothing is damaged, and waits until it is ready.
    pub async fn start(folder: &Path, keeping: Keeping) -> Daemon {
        match Daemon::try_start(folder, keeping, "refuse").await {
            Ok(daemon) => daemon,
            Err(end) => panic!("{keeping}: the daemon did not start: {end:?}"),
        }
    }

    /// Starts it and waits until it is ready, or has ended by itself.
    pub async fn try_start(folder: &Path, keeping: Keeping, on_corruption: &str) -> Result<Daemon, End> {
        let mut child = spawn(folder, keeping, on_corruption);
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let errors = Arc::new(Mutex::new(Vec::new()));
        let (told, tells) = mpsc::channel();
        let seen = Arc::clone(&errors);
        let reading = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let value: Value = serde_json::from_str(&line).unwrap_or_default();
                if value["level"].as_str().is_none_or(|level| level == "ERROR") {
                    seen.lock().push(line);
                }
                // Nobody listens once the daemon is up.
                let _ = told.send(value);
            }
        });
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut daemon = Daemon { child, http: nowhere, grpc: nowhere, errors, lines: Some(reading) };
        let mut addresses = HashMap::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let line = match tells.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => line,
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(daemon.ended().await),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    panic!("{keeping}: the daemon hangs at its start: {:?}", daemon.errors.lock())
                }
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
        (daemon.http, daemon.grpc) = (addresses["http"], addresses["grpc"]);
        Ok(daemon)
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        assert_eq!(*self.errors.lock(), Vec::<String>::new(), "the daemon complained");
    }

    /// Asks it to stop, and waits for its end.
    pub async fn stop(mut self) -> End {
        let pid = rustix::process::Pid::from_child(&self.child);
        // It may have ended by itself.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        self.ended().await
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> End {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the daemon hangs at its end: {:?}", self.errors.lock());
            // Clients close their connections meanwhile.
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        if let Some(lines) = self.lines.take() {
            lines.join().unwrap();
        }
        End { code: status.code(), said: self.errors.lock().clone() }
    }

    pub async fn client(&self) -> GatewayClient<Channel> {
        GatewayClient::connect(format!("http://{}", self.grpc)).await.unwrap()
    }

    pub fn url(&self, user: &str) -> String {
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        let token = jsonwebtoken::encode(&Default::default(), &serde_json::json!({ "sub": user }), &key).unwrap();
        format!("ws://{}/ws?token={token}", self.http)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A test that fails leaves nothing running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
