//! The built binary as a child process, for what only a process can show: exit codes, signals, its log.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::mpsc::{self, UnboundedReceiver},
};

use super::{gateway, soon};

/// A command of the binary, with nothing of this process's environment that it would read.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pushgate"));
    command.args(args).env_remove("RUST_LOG").stdin(Stdio::null()).kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PUSHGATE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command to its end: its exit code, standard output and standard error.
pub async fn run(args: &[&str]) -> (i32, String, String) {
    let output = soon("the command's end", command(args).output()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().expect("an exit code, and not a signal"), text(output.stdout), text(output.stderr))
}

/// Writes a configuration of [`gateway::base`] and `more` lines of dotted keys; returns its path.
pub fn config(folder: &Path, more: &str) -> PathBuf {
    let file = folder.join("pushgate.toml");
    std::fs::write(&file, gateway::base(folder) + more).unwrap();
    file
}

/// A daemon, and what it has logged so far. Ended by its pid when dropped.
pub struct Daemon {
    /// The log as it came.
    pub log: String,
    child: Child,
    lines: UnboundedReceiver<String>,
    listeners: Vec<(String, String)>,
}

impl Daemon {
    /// Starts it and waits until it is ready.
    pub async fn start(config: &Path) -> Self {
        Self::of(command(&["serve", "--config", config.to_str().unwrap()])).await
    }

    /// The same with so many descriptors.
    #[allow(dead_code, reason = "tests/it needs it")]
    pub async fn start_with_descriptors(config: &Path, most: u64) -> Self {
        let shell = format!("ulimit -n {most}; exec \"$0\" serve --config \"$1\"");
        let mut limited = Command::new("sh");
        limited.args(["-c", &shell, env!("CARGO_BIN_EXE_pushgate"), config.to_str().unwrap()]);
        Self::of(limited.stdin(Stdio::null()).kill_on_drop(true)).await
    }

    async fn of(mut command: impl std::borrow::BorrowMut<Command>) -> Self {
        let command = command.borrow_mut();
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // Read all the time: a daemon whose log nobody reads would come to wait for its reader.
        let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, lines) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(line)) = stderr.next_line().await {
                let _ = sender.send(line);
            }
        });
        let mut daemon = Self { log: String::new(), child, lines, listeners: Vec::new() };
        loop {
            let line = daemon.line().await.unwrap_or_else(|| panic!("it ended: {}", daemon.log));
            if line["message"] == "listening" {
                let field = |name: &str| line[name].as_str().unwrap().to_owned();
                daemon.listeners.push((field("name"), field("address")));
            }
            if line["message"] == "ready" {
                return daemon;
            }
        }
    }

    /// The first address of a listener.
    pub fn address(&self, name: &str) -> std::net::SocketAddr {
        let tcp = self.listeners.iter().filter(|(_, address)| !address.starts_with("unix:"));
        tcp.clone().find(|(known, _)| known == name).unwrap().1.parse().unwrap()
    }

    /// The next line of its log; `None` at its end.
    pub async fn line(&mut self) -> Option<Value> {
        let line = soon("a log line", self.lines.recv()).await?;
        self.log.push_str(&line);
        self.log.push('\n');
        Some(serde_json::from_str(&line).unwrap_or(Value::String(line)))
    }

    /// Reads its log up to a line with that message.
    pub async fn logged(&mut self, message: &str) -> Value {
        loop {
            let line = self.line().await.unwrap_or_else(|| panic!("no `{message}` in {}", self.log));
            if line["message"] == message {
                return line;
            }
        }
    }

    /// Its process id.
    #[allow(dead_code, reason = "tests/abuse needs it")]
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// What it has logged by now and nobody has read.
    #[allow(dead_code, reason = "tests/abuse needs it")]
    pub fn logged_by_now(&mut self) -> Vec<Value> {
        let lines = std::iter::from_fn(|| self.lines.try_recv().ok());
        lines.map(|line| serde_json::from_str(&line).unwrap_or(Value::String(line))).collect()
    }

    /// The most memory that it has had, in bytes.
    #[allow(dead_code, reason = "tests/abuse does not need it")]
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().expect("it runs"))).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Sends a signal to exactly this process.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.child.id().expect("it runs");
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end, the rest of its log read.
    pub async fn ended(&mut self) -> ExitStatus {
        while self.line().await.is_some() {}
        soon("the daemon's end", self.child.wait()).await.unwrap()
    }
}
