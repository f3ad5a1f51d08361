//! The built binary, and a gateway as a child process in a folder of its own.

use std::{
    io::{BufRead as _, BufReader, Lines, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// The admin token with the scope `read`, as its file holds it.
pub const READ_TOKEN: &str = "only-for-reading";
/// The one with all scopes.
pub const ADMIN_TOKEN: &str = "for-everything";
/// The HMAC secret of every test's gateway.
pub const SECRET: &str = "a secret of at least thirty-two bytes";

/// How a command ended.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// What it printed, where it did what it should.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// The one document that it printed.
    #[track_caller]
    pub fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// It ended with `code` and said so in one line.
    #[track_caller]
    pub fn fails(&self, code: i32, text: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.stderr.contains(text), "{self:?}");
        // clap's own errors have a usage behind them.
        assert!(code == 2 || self.stderr.lines().count() == 1, "{self:?}");
    }
}

/// The binary in a clean environment.
pub fn binary(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pushgate"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PUSHGATE_")) {
        command.env_remove(name);
    }
    command.env_remove("RUST_LOG").args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end.
pub fn pushgate(args: &[&str]) -> Run {
    finish(binary(args).spawn().unwrap())
}

/// Runs it to its end with something to read.
pub fn pushgate_with_input(args: &[&str], input: &[u8]) -> Run {
    let mut child = binary(args).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    finish(child)
}

/// Waits for its end.
pub fn finish(child: Child) -> Run {
    let output = child.wait_with_output().unwrap();
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Sends a child a signal.
pub fn send_signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id().try_into().unwrap()).unwrap(), signal).unwrap();
}

/// A command that goes on. It is killed when dropped.
pub struct Follower {
    child: Child,
    pub stdout: Option<Lines<BufReader<ChildStdout>>>,
    stderr: Lines<BufReader<ChildStderr>>,
}

impl Follower {
    /// Starts it and waits until a line of standard error holds `ready`.
    pub fn start(command: Command, ready: &str) -> Self {
        let mut follower = Self::quiet(command);
        follower.note(ready);
        follower
    }

    /// Starts it.
    pub fn quiet(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stdout = Some(BufReader::new(child.stdout.take().unwrap()).lines());
        let stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, stdout, stderr }
    }

    /// The next line of standard error that holds `text`.
    #[track_caller]
    pub fn note(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        for line in self.stderr.by_ref().map_while(Result::ok) {
            if line.contains(text) {
                return line;
            }
            seen.push(line);
        }
        panic!("no line with `{text}`: {seen:#?}");
    }

    /// The next line of standard output.
    #[track_caller]
    pub fn line(&mut self) -> String {
        self.stdout.as_mut().unwrap().next().expect("a further line").unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        send_signal(&self.child, signal);
    }

    /// Waits for its end; what was not read yet.
    pub fn end(mut self) -> Run {
        let lines = |lines: Vec<String>| lines.join("\n");
        let stdout = self.stdout.take().map(|stdout| lines(stdout.map_while(Result::ok).collect()));
        let stderr = lines(self.stderr.by_ref().map_while(Result::ok).collect());
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        Run { code, stdout: stdout.unwrap_or_default(), stderr }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A gateway with free ports, killed when dropped.
pub struct Gateway {
    child: Child,
    pub folder: TempDir,
    pub file: String,
    /// Name and address of each listener, as bound.
    pub listeners: Vec<(String, String)>,
    stderr: BufReader<ChildStderr>,
}

impl Gateway {
    /// One with a Unix socket, a TCP listener that wants tokens, and an HMAC secret.
    pub fn new() -> Self {
        Self::with("")
    }

    /// The same with further lines of configuration.
    pub fn with(further: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = write_configuration(folder.path(), further);
        Self::start(folder, &file)
    }

    /// One by a file that is there.
    pub fn start(folder: TempDir, file: &str) -> Self {
        Self::start_at(folder, file, "127.0.0.1:0")
    }

    /// The same with its clients' listener there.
    fn start_at(folder: TempDir, file: &str, http: &str) -> Self {
        let socket = format!("unix:{}", folder.path().join("admin.sock").display());
        let mut command = binary(&["serve", "--config", file, "--log-format", "json", "--http-listen", http]);
        command.args(["--ops-listen", "127.0.0.1:0", "--grpc-listen", &socket, "--grpc-listen", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut gateway = Self { child, folder, file: file.to_owned(), listeners: Vec::new(), stderr };
        loop {
            let line = gateway.log_line();
            let field = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            match field("message").as_str() {
                "listening" => gateway.listeners.push((field("name"), field("address"))),
                "ready" => return gateway,
                _ => {}
            }
        }
    }

    fn log_line(&mut self) -> Value {
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: `{line}`"))
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        format!("ws://{}/ws", self.address("http"))
    }

    /// The TCP address of a listener.
    pub fn address(&self, name: &str) -> &str {
        let tcp = |(one, address): &&(String, String)| one == name && !address.starts_with("unix:");
        &self.listeners.iter().find(tcp).unwrap().1
    }

    /// The arguments with the gateway's configuration.
    pub fn args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [args, &["--config", &self.file]].concat()
    }

    /// Runs a command over the Unix socket.
    pub fn command(&self, args: &[&str]) -> Run {
        pushgate(&self.args(args))
    }

    /// Runs a command over TCP with a token.
    pub fn over_tcp(&self, args: &[&str], token: &str) -> Run {
        let file = self.write("token", token);
        let target = ["--grpc", self.address("grpc"), "--token-file", file.to_str().unwrap()];
        pushgate(&[args, &target].concat())
    }

    /// Writes a file into its folder.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file
    }

    /// A listening client, once it is let in.
    pub fn client(&self, user: &str, further: &[&str]) -> Follower {
        let url = self.url();
        let args = [&["listen", "--user", user, "--url", &url], further].concat();
        Follower::start(binary(&self.args(&args)), "connected to ")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        send_signal(&self.child, signal);
    }

    /// Stops it and starts it again, at the same public address.
    pub fn restart(self) -> Self {
        let (http, file) = (self.address("http").to_owned(), self.file.clone());
        Self::start_at(self.stop(), &file, &http)
    }

    /// Tells it to stop and waits until it has.
    pub fn stop(mut self) -> TempDir {
        self.signal(Signal::TERM);
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A configuration in `folder`, with `further` lines at its end.
pub fn write_configuration(folder: &Path, further: &str) -> String {
    let socket = folder.join("admin.sock");
    let text = format!(
        r#"
[http]
listen = ["127.0.0.1:0"]
[grpc]
listen = ["unix:{}", "127.0.0.1:0"]
[[grpc.tokens]]
name = "reader"
token = "{READ_TOKEN}"
scopes = ["read"]
[[grpc.tokens]]
name = "all"
token = "{ADMIN_TOKEN}"
scopes = ["admin"]
[ops]
listen = ["127.0.0.1:0"]
[store]
path = "{}"
[[auth.keys]]
kid = "hmac"
algorithm = "HS256"
secret = "{SECRET}"
{further}
"#,
        socket.display(),
        folder.join("data").display()
    );
    let file = folder.join("pushgate.toml");
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}
