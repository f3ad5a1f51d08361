//! What systemd asks of a service of `Type=notify` (systemd.service(5), sd_notify(3)): READY once everything accepts,
//! STOPPING when the stop begins, then the exit. The test is the service manager: a datagram socket, and a child.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::{UnixDatagram, UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// How long anything here may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon under a service manager.
struct Service {
    child: Child,
    manager: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Service {
    fn start(extra: &str) -> Service {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let config = format!(
            "{extra}\nhttp.listen = [\"127.0.0.1:0\"]\nops.listen = [\"127.0.0.1:0\"]\ngrpc.listen = \
             [\"unix:{path}/admin.sock\"]\nstore.path = \"{path}/data\"\n[[auth.keys]]\nalgorithm = \
             \"HS256\"\nsecret = \"a secret that only tests know, and they alone\"\n"
        );
        let file = folder.path().join("pushgate.toml");
        std::fs::write(&file, config).unwrap();
        let socket = folder.path().join("notify.sock");
        let manager = UnixDatagram::bind(&socket).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_pushgate"))
            .args(["serve", "--config"])
            .arg(&file)
            .env("NOTIFY_SOCKET", &socket)
            .env_remove("RUST_LOG")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Service { child, manager, folder }
    }

    /// The next message's assignments.
    fn hears(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let length = self.manager.recv(&mut buffer).expect("the daemon says something in time");
        String::from_utf8(buffer[..length].to_vec()).unwrap().lines().map(str::to_owned).collect()
    }

    fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    fn admin(&self) -> std::path::PathBuf {
        self.folder.path().join("admin.sock")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // A test that fails leaves nothing running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `http 127.0.0.1:1, grpc unix:…, ops 127.0.0.1:2` of the status.
fn address<'a>(status: &'a str, name: &str) -> &'a str {
    status.split(", ").find_map(|part| part.strip_prefix(name)?.strip_prefix(' ')).unwrap()
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

/// The HTTP/2 server speaks first after the client's preface (RFC 9113 section 3.4): a SETTINGS frame.
fn speaks_http2(socket: &Path) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[3], 4, "the first frame is SETTINGS");
}

#[test]
fn ready_comes_once_every_listener_answers_and_stopping_with_the_signal() {
    let mut service = Service::start("");
    let ready = service.hears();
    assert_eq!(ready[0], "READY=1");
    let status = ready[1].strip_prefix("STATUS=").unwrap();
    // No second try anywhere: what is ready answers.
    assert_eq!(get(address(status, "http"), "/livez"), "HTTP/1.1 200 OK");
    assert_eq!(get(address(status, "ops"), "/readyz"), "HTTP/1.1 200 OK");
    speaks_http2(&service.admin());
    // A run without --dev has no page.
    assert_eq!(get(address(status, "http"), "/"), "HTTP/1.1 404 Not Found");

    service.terminate();
    assert_eq!(service.hears()[0], "STOPPING=1");
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
    assert!(!service.admin().exists(), "the socket is gone");
}

#[test]
fn stopping_is_said_before_the_stop_takes_its_time() {
    let mut service = Service::start("shutdown = { lb_delay = \"1s\" }");
    let ready = service.hears();
    service.terminate();
    assert_eq!(service.hears()[0], "STOPPING=1");
    // It serves on while it is not ready, so that load balancers notice.
    let ops = address(ready[1].strip_prefix("STATUS=").unwrap(), "ops");
    assert_eq!(get(ops, "/readyz"), "HTTP/1.1 503 Service Unavailable");
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_configuration_that_is_refused_exits_with_78_and_is_never_ready() {
    let mut service = Service::start("http.path = \"ws\"");
    assert_eq!(service.child.wait().unwrap().code(), Some(78), "what RestartPreventExitStatus names");
    service.manager.set_nonblocking(true).unwrap();
    assert_eq!(service.manager.recv(&mut [0; 16]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}
