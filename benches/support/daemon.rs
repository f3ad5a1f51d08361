//! The built daemon as a child process, for benchmarks that need one.
#![allow(dead_code, reason = "no benchmark uses all of it")]

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use pushgate::api::proto::gateway_client::GatewayClient;
use serde_json::Value;
use tonic::transport::Channel;

/// What it verifies tokens with.
pub const SECRET: &str = "a secret for this measurement only";

/// Whatever goes wrong ends a measurement.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Where a daemon listens.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// For clients.
    pub http: SocketAddr,
    /// For services, without a token.
    pub grpc: SocketAddr,
}

/// A daemon that is killed when dropped.
pub struct Daemon {
    child: Child,
    /// Where clients connect.
    pub http: SocketAddr,
    /// Where services call, without a token.
    pub grpc: SocketAddr,
    /// From starting the process to its log line.
    pub ready: Duration,
}

impl Daemon {
    /// Starts one with its data in a folder, and further lines of configuration.
    pub fn start(folder: &Path, engine: &str, further: &str) -> Result<Daemon, Error> {
        Self::start_watched(folder, engine, further, |_| {})
    }

    /// The same, with somebody who sees each line that it logs from when it is ready.
    pub fn start_watched(
        folder: &Path,
        engine: &str,
        further: &str,
        mut watch: impl FnMut(&str) + Send + 'static,
    ) -> Result<Daemon, Error> {
        let config = folder.join("pushgate.toml");
        let text = format!(
            r#"
            http.listen = ["127.0.0.1:0"]
            grpc = {{ listen = ["127.0.0.1:0"], insecure = true }}
            ops.listen = ["127.0.0.1:0"]
            auth = {{ require_exp = false, keys = [{{ algorithm = "HS256", secret = "{SECRET}" }}] }}
            store.path = "{}"
            store.engine = "{engine}"
            log.format = "json"
            {further}
            "#,
            folder.join("data").display()
        );
        std::fs::write(&config, text)?;
        let began = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_pushgate"))
            .args(["serve", "--config"])
            .arg(&config)
            .env_remove("RUST_LOG")
            // Else whoever waits for the end of the benchmark's own would wait for the daemon's, too.
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = child.stderr.take().ok_or("no standard error")?;
        let mut lines = BufReader::new(stderr).lines();
        let mut addresses = HashMap::new();
        loop {
            let line = lines.next().ok_or("the daemon did not start")??;
            let line: Value = serde_json::from_str(&line).unwrap_or_default();
            match line["message"].as_str() {
                Some("listening") => {
                    let address: SocketAddr = line["address"].as_str().unwrap_or_default().parse()?;
                    addresses.insert(line["name"].as_str().unwrap_or_default().to_owned(), address);
                }
                Some("ready") => break,
                _ => {}
            }
        }
        let ready = began.elapsed();
        // So that the daemon never waits for somebody to read its log.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| watch(&line)));
        Ok(Daemon { child, http: addresses["http"], grpc: addresses["grpc"], ready })
    }

    /// Where it listens.
    pub fn at(&self) -> At {
        At { http: self.http, grpc: self.grpc }
    }

    /// Its admin API.
    pub async fn client(&self) -> Result<GatewayClient<Channel>, Error> {
        Ok(GatewayClient::connect(format!("http://{}", self.grpc)).await?)
    }

    /// Ends it with SIGKILL.
    pub fn kill(mut self) -> Result<(), Error> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Ends it in order; how long that took.
    pub fn stop(mut self) -> Result<Duration, Error> {
        let began = Instant::now();
        let id = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &id]).status()?;
        self.child.wait()?;
        Ok(began.elapsed())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
