//! What systemd asks of a service of `Type=notify` (systemd.service(5), sd_notify(3), sd_watchdog_enabled(3),
//! sd_listen_fds(3), systemd.exec(5) for credentials), without systemd: the test is the service manager, with a datagram
//! socket, sockets that it has bound, a folder of credentials, and a child.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt as _,
        unix::{
            fs::PermissionsExt as _,
            net::{SocketAddr, UnixDatagram, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// How long anything here may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(60);
const KEY: &str = "[[auth.keys]]\nalgorithm = \"HS256\"\nsecret = \"a secret that only tests know, and they alone\"\n";

/// What a service manager has for its daemons: a folder for them, and an ear.
struct Manager {
    folder: tempfile::TempDir,
    ear: UnixDatagram,
}

/// A daemon under a service manager.
struct Service {
    child: Child,
}

/// Sockets by their names; three at most.
type Sockets = Vec<(&'static str, OwnedFd)>;

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ear = UnixDatagram::bind(folder.path().join("notify.sock")).unwrap();
        ear.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { folder, ear }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The usual listeners.
    fn listeners(&self) -> String {
        let admin = self.path("admin.sock");
        format!(
            "http.listen = [\"127.0.0.1:0\"]\nops.listen = [\"127.0.0.1:0\"]\ngrpc.listen = [\"unix:{}\"]\n",
            admin.display()
        )
    }

    fn config(&self, text: &str) -> PathBuf {
        let file = self.path("pushgate.toml");
        let store = self.path("data");
        std::fs::write(&file, format!("store.path = \"{}\"\n{text}", store.display())).unwrap();
        file
    }

    fn start(&self, extra: &str) -> Service {
        self.start_with(&format!("{extra}\n{}{KEY}", self.listeners()), &[], Vec::new())
    }

    /// As systemd starts it: with the variables, its own process id in those that name one, and sockets from descriptor 3 on.
    fn start_with(&self, config: &str, variables: &[(&str, &str)], sockets: Sockets) -> Service {
        let config = self.config(config);
        // A shell of that process id becomes the daemon; the sockets come where standard files are, and are moved.
        let script = "for name in $OWN_PID; do export \"$name=$$\"; done; unset OWN_PID; \
                      exec \"$@\" 3<&0 4<&1 5<&2 </dev/null >/dev/null 2>\"$SAYS\"";
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_pushgate"), "serve", "--config"]).arg(&config);
        command.env("NOTIFY_SOCKET", self.path("notify.sock")).env("SAYS", self.path("says")).env_remove("RUST_LOG");
        command.envs(variables.iter().copied());
        let own = if variables.iter().any(|(name, _)| *name == "WATCHDOG_USEC") { "WATCHDOG_PID" } else { "" };
        let passes = if sockets.is_empty() { "" } else { "LISTEN_PID" };
        command.env("OWN_PID", format!("{own} {passes}"));
        if !sockets.is_empty() {
            let names: Vec<&str> = sockets.iter().map(|(name, _)| *name).collect();
            command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        }
        let mut sockets = sockets.into_iter().map(|(_, socket)| Stdio::from(socket));
        let mut next = || sockets.next().unwrap_or_else(Stdio::null);
        command.stdin(next()).stdout(next()).stderr(next());
        Service { child: command.spawn().unwrap() }
    }

    /// The next message's assignments.
    fn hears(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let length = self.ear.recv(&mut buffer).expect("the daemon says something in time");
        String::from_utf8(buffer[..length].to_vec()).unwrap().lines().map(str::to_owned).collect()
    }

    /// All that was said until now by a daemon that has ended, and not heard yet.
    fn heard(&self) -> Vec<String> {
        self.ear.set_nonblocking(true).unwrap();
        let (mut buffer, mut heard) = ([0; 4096], Vec::new());
        while let Ok(length) = self.ear.recv(&mut buffer) {
            heard.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned));
        }
        heard
    }

    /// The first message from now on that has this in it.
    fn hears_of(&self, what: &str) -> Vec<String> {
        let asked = Instant::now();
        loop {
            let heard = self.hears();
            if heard.iter().any(|line| line.contains(what)) {
                return heard;
            }
            assert!(asked.elapsed() < PATIENCE, "nothing of {what}, but {heard:?}");
        }
    }

    /// The status that came with READY.
    fn ready(&self) -> String {
        let heard = self.hears_of("READY=1");
        heard[1].strip_prefix("STATUS=").unwrap().to_owned()
    }

    /// Whether something is said within that time; what was said before is left aside.
    fn hears_more_within(&self, time: Duration) -> bool {
        self.ear.set_nonblocking(true).unwrap();
        while self.ear.recv(&mut [0; 4096]).is_ok() {}
        self.ear.set_nonblocking(false).unwrap();
        self.ear.set_read_timeout(Some(time)).unwrap();
        let came = self.ear.recv(&mut [0; 4096]).is_ok();
        self.ear.set_read_timeout(Some(PATIENCE)).unwrap();
        came
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.path("says")).unwrap()
    }
}

impl Service {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn ends_with(&mut self, code: i32) {
        assert_eq!(self.child.wait().unwrap().code(), Some(code));
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // A test that fails leaves nothing running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `sessions 0, …; http 127.0.0.1:1, grpc unix:…, ops 127.0.0.1:2` of the status.
fn address<'a>(status: &'a str, name: &str) -> &'a str {
    let (_, places) = status.split_once("; ").unwrap();
    places.split(", ").find_map(|part| part.strip_prefix(name)?.strip_prefix(' ')).unwrap()
}

/// Asks over a connection that is there; the first line of the answer, empty where none came.
fn ask(mut stream: TcpStream, path: &str) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = String::new();
    // Who is cut off hears nothing, and that is for the caller to judge.
    let _ = write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .and_then(|()| stream.read_to_string(&mut answer));
    answer.lines().next().unwrap_or_default().to_owned()
}

fn get(address: &str, path: &str) -> String {
    ask(TcpStream::connect(address).unwrap(), path)
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

/// A user's connection, up to the end of the handshake.
fn join(manager: &Manager, http: &str) -> TcpStream {
    let mut sign = Command::new(env!("CARGO_BIN_EXE_pushgate"));
    sign.args(["token", "user", "--sub", "alice", "--config"]).arg(manager.path("pushgate.toml"));
    let signed = sign.output().unwrap();
    assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
    let token = String::from_utf8(signed.stdout).unwrap();
    let mut stream = TcpStream::connect(http).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "GET /ws?token={} HTTP/1.1\r\nHost: {http}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        token.trim()
    )
    .unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
    stream
}

#[test]
fn ready_comes_once_every_listener_answers_and_stopping_with_the_signal() {
    let manager = Manager::new();
    let mut service = manager.start("");
    assert_eq!(manager.hears(), ["STATUS=opening the store"]);
    let ready = manager.hears();
    assert_eq!(ready[0], "READY=1");
    let status = ready[1].strip_prefix("STATUS=").unwrap();
    // No second try anywhere: what is ready answers.
    assert_eq!(get(address(status, "http"), "/livez"), "HTTP/1.1 200 OK");
    assert_eq!(get(address(status, "ops"), "/readyz"), "HTTP/1.1 200 OK");
    speaks_http2(&manager.path("admin.sock"));
    // A run without --dev has no page.
    assert_eq!(get(address(status, "http"), "/"), "HTTP/1.1 404 Not Found");

    service.signal(Signal::TERM);
    assert_eq!(manager.hears()[0], "STOPPING=1");
    service.ends_with(0);
    assert!(!manager.path("admin.sock").exists(), "the socket is gone");
}

#[test]
fn stopping_is_said_before_the_stop_takes_its_time_and_the_stop_is_extended() {
    let manager = Manager::new();
    let mut service = manager.start("shutdown = { lb_delay = \"2s\" }");
    let status = manager.ready();
    let _client = join(&manager, address(&status, "http"));
    service.signal(Signal::TERM);
    manager.hears_of("STOPPING=1");
    let (mut said, awaited) =
        (Vec::new(), ["EXTEND_TIMEOUT_USEC=15000000", "STATUS=stopping; sessions 1, users 1, pending 0"]);
    while !awaited.iter().all(|line| said.iter().any(|heard| heard == line)) {
        said.extend(manager.hears());
    }
    // It serves on while it is not ready, so that load balancers notice.
    assert_eq!(get(address(&status, "ops"), "/readyz"), "HTTP/1.1 503 Service Unavailable");
    service.ends_with(0);
}

#[test]
fn the_status_follows_who_is_there_and_is_not_repeated() {
    let manager = Manager::new();
    let _service = manager.start("presence.linger = \"0s\"");
    let status = manager.ready();
    assert!(status.starts_with("sessions 0, users 0, pending 0; http "), "{status}");
    assert!(!manager.hears_more_within(Duration::from_secs(5)), "nothing has changed");
    let client = join(&manager, address(&status, "http"));
    assert_eq!(manager.hears(), [status.replace("sessions 0, users 0", "STATUS=sessions 1, users 1")]);
    drop(client);
    manager.hears_of("STATUS=sessions 0, ");
}

#[test]
fn a_configuration_that_is_refused_exits_with_78_and_is_never_ready() {
    let manager = Manager::new();
    let mut service = manager.start("http.path = \"ws\"");
    // What RestartPreventExitStatus names.
    service.ends_with(78);
    let said = manager.heard();
    assert!(said.len() == 1 && said[0].starts_with("STATUS=") && said[0].contains("http.path"), "{said:?}");
}

#[test]
fn a_start_that_fails_says_why_in_the_status() {
    let manager = Manager::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let config = manager.listeners().replacen("127.0.0.1:0", &at.to_string(), 1) + KEY;
    manager.start_with(&config, &[], Vec::new()).ends_with(1);
    let said = manager.heard();
    assert!(said.len() == 1 && said[0].starts_with("STATUS=") && said[0].contains(&at.to_string()), "{said:?}");
}

#[test]
fn an_abstract_socket_hears_all_of_it() {
    let name = format!("pushgate-test-{}", std::process::id());
    let mut manager = Manager::new();
    manager.ear = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    manager.ear.set_read_timeout(Some(PATIENCE)).unwrap();
    let config = format!("{}{KEY}", manager.listeners());
    let variables = [("NOTIFY_SOCKET", &*format!("@{name}")), ("WATCHDOG_USEC", "1000000")];
    let mut service = manager.start_with(&config, &variables, Vec::new());
    assert!(manager.ready().starts_with("sessions 0, "));
    manager.hears_of("WATCHDOG=1");
    service.signal(Signal::HUP);
    manager.hears_of("RELOADING=1");
    manager.hears_of("READY=1");
    service.signal(Signal::TERM);
    manager.hears_of("STOPPING=1");
    service.ends_with(0);
}

#[test]
fn a_reload_in_a_stop_is_not_said() {
    let manager = Manager::new();
    let mut service = manager.start("shutdown = { lb_delay = \"2s\" }");
    manager.ready();
    service.signal(Signal::TERM);
    manager.hears_of("STOPPING=1");
    service.signal(Signal::HUP);
    service.ends_with(0);
    let said = manager.heard();
    assert!(!said.iter().any(|line| line.starts_with("RELOADING=") || line.starts_with("READY=")), "{said:?}");
    assert!(manager.said().contains("the configuration was read again"), "{}", manager.said());
}

#[test]
fn a_reload_is_said_before_and_after_with_its_moment() {
    let manager = Manager::new();
    let service = manager.start("");
    manager.ready();
    let clock = || rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec;
    let before = clock();
    service.signal(Signal::HUP);
    let said = manager.hears_of("RELOADING=1");
    let moment: i64 = said[1].strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
    assert!((before..=clock()).contains(&(moment / 1_000_000)), "{moment} µs");
    manager.hears_of("READY=1");
}

#[test]
fn a_reload_that_is_refused_or_asked_for_by_a_call_is_said_as_well() {
    let manager = Manager::new();
    let service = manager.start("");
    manager.ready();
    let file = manager.path("pushgate.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    for (text, code) in [(format!("http.path = \"ws\"\n{good}"), 78), (good, 0)] {
        std::fs::write(&file, text).unwrap();
        service.signal(Signal::HUP);
        manager.hears_of("RELOADING=1");
        manager.hears_of("READY=1");
        let mut reload = Command::new(env!("CARGO_BIN_EXE_pushgate"));
        reload.args(["reload", "--config"]).arg(&file).stderr(Stdio::null()).stdout(Stdio::null());
        assert_eq!(reload.status().unwrap().code(), Some(code));
        manager.hears_of("RELOADING=1");
        manager.hears_of("READY=1");
    }
}

#[test]
fn the_watchdog_is_fed_at_half_its_interval_and_not_by_a_daemon_that_stands_still() {
    let manager = Manager::new();
    let config = format!("{}{KEY}", manager.listeners());
    let service = manager.start_with(&config, &[("WATCHDOG_USEC", "1000000")], Vec::new());
    manager.ready();
    manager.hears_of("WATCHDOG=1");
    let first = Instant::now();
    for _ in 0..4 {
        manager.hears_of("WATCHDOG=1");
    }
    let each = first.elapsed() / 4;
    assert!(each < Duration::from_millis(1000), "every {each:?}, and the interval is a second");
    service.signal(Signal::STOP);
    let stat = format!("/proc/{}/stat", service.child.id());
    while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
        std::thread::yield_now();
    }
    assert!(!manager.hears_more_within(Duration::from_secs(3)), "what stands still says nothing");
    service.signal(Signal::CONT);
    manager.hears_of("WATCHDOG=1");
}

#[test]
fn the_watchdog_of_another_process_is_not_fed() {
    let manager = Manager::new();
    let config = format!("{}{KEY}", manager.listeners());
    let own = manager.config(&config);
    let mut command = Command::new(env!("CARGO_BIN_EXE_pushgate"));
    command.args(["serve", "--config"]).arg(own).stderr(Stdio::null());
    command.env("NOTIFY_SOCKET", manager.path("notify.sock")).env("WATCHDOG_USEC", "200000").env("WATCHDOG_PID", "1");
    // Sockets of another process are not taken, either.
    command.env("LISTEN_PID", "1").env("LISTEN_FDS", "1");
    let _service = Service { child: command.spawn().unwrap() };
    manager.ready();
    assert!(!manager.hears_more_within(Duration::from_secs(1)));
}

/// Sockets as the units have them: one for clients, one for calls, one for probes.
struct Bound {
    http: TcpListener,
    grpc: UnixListener,
    ops: TcpListener,
}

impl Bound {
    fn new(manager: &Manager) -> Self {
        let path = manager.path("admin.sock");
        let grpc = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660)).unwrap();
        let tcp = || TcpListener::bind("127.0.0.1:0").unwrap();
        Self { http: tcp(), grpc, ops: tcp() }
    }

    fn passed(&self) -> Sockets {
        vec![
            ("http", self.http.try_clone().unwrap().into()),
            ("grpc", self.grpc.try_clone().unwrap().into()),
            ("ops", self.ops.try_clone().unwrap().into()),
        ]
    }

    fn config(&self, manager: &Manager) -> String {
        format!(
            "http.listen = [\"{}\"]\nops.listen = [\"{}\"]\ngrpc.listen = [\"unix:{}\"]\n{KEY}",
            self.http.local_addr().unwrap(),
            self.ops.local_addr().unwrap(),
            manager.path("admin.sock").display()
        )
    }
}

#[test]
fn passed_sockets_are_used_for_what_they_are_named_and_the_rest_is_bound() {
    let manager = Manager::new();
    let bound = Bound::new(&manager);
    // In another order, and one of them not passed: it could not be bound if it were there.
    let mut passed = bound.passed();
    let ops = passed.pop().unwrap();
    passed.swap(0, 1);
    drop(ops);
    let config = bound.config(&manager);
    let ops = bound.ops.local_addr().unwrap().to_string();
    let Bound { http, grpc, ops: closed } = bound;
    drop(closed);
    let mut service = manager.start_with(&config, &[], passed);
    let status = manager.ready();
    assert_eq!(address(&status, "http"), http.local_addr().unwrap().to_string());
    assert_eq!(address(&status, "ops"), ops);
    assert_eq!(get(address(&status, "http"), "/livez"), "HTTP/1.1 200 OK");
    assert_eq!(get(&ops, "/readyz"), "HTTP/1.1 200 OK");
    speaks_http2(&manager.path("admin.sock"));
    service.signal(Signal::TERM);
    service.ends_with(0);
    // What was passed is the service manager's, and still there.
    assert!(manager.path("admin.sock").exists());
    TcpStream::connect(http.local_addr().unwrap()).unwrap();
    UnixStream::connect(manager.path("admin.sock")).unwrap();
    assert!(TcpStream::connect(&ops).is_err(), "what was bound here is closed");
    drop(grpc);
}

#[test]
fn a_drain_is_told_in_the_status_and_whoever_connects_to_a_passed_socket_meanwhile_waits() {
    let manager = Manager::new();
    let bound = Bound::new(&manager);
    let http = bound.http.local_addr().unwrap();
    let mut service = manager.start_with(&bound.config(&manager), &[], bound.passed());
    manager.ready();
    let told = |command: &str| {
        let mut call = Command::new(env!("CARGO_BIN_EXE_pushgate"));
        let run = call.args([command, "--config"]).arg(manager.path("pushgate.toml")).output().unwrap();
        assert!(run.status.success(), "{run:?}");
    };
    let _client = join(&manager, &http.to_string());
    told("drain");
    manager.hears_of("STATUS=drained, out of service until it is stopped or undrained; sessions 0, ");
    let waiting = TcpStream::connect(http).expect("nobody is refused");
    waiting.set_nonblocking(true).unwrap();
    assert!((&waiting).write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").is_ok());
    // Longer than those have who came in last.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!((&waiting).read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    told("undrain");
    manager.hears_of(&format!("; http {http}, "));
    waiting.set_nonblocking(false).unwrap();
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head = [0; 15];
    (&waiting).read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    // And who comes while it is drained and then stopped is its successor's.
    told("drain");
    let waiting = TcpStream::connect(http).expect("nobody is refused");
    service.signal(Signal::TERM);
    service.ends_with(0);
    let mut service = manager.start_with(&bound.config(&manager), &[], bound.passed());
    manager.ready();
    assert_eq!(ask(waiting, "/livez"), "HTTP/1.1 200 OK");
    service.signal(Signal::TERM);
    service.ends_with(0);
}

#[test]
fn a_restart_refuses_no_connection() {
    let manager = Manager::new();
    let bound = Bound::new(&manager);
    let (http, admin) = (bound.http.local_addr().unwrap(), manager.path("admin.sock"));
    let (over, cut_off, answered) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        // Also where a check below fails, or the others would go on for ever.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let ends = Over(&over);
        let clients = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let stream = TcpStream::connect(http).expect("nobody is refused");
                match ask(stream, "/livez").as_str() {
                    "HTTP/1.1 200 OK" => answered.fetch_add(1, Ordering::Relaxed),
                    "" => cut_off.fetch_add(1, Ordering::Relaxed),
                    other => panic!("{other}"),
                };
            }
        });
        let callers = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                UnixStream::connect(&admin).expect("nobody is refused");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        for signal in [Signal::TERM, Signal::TERM, Signal::KILL, Signal::TERM, Signal::TERM] {
            let mut service = manager.start_with(&bound.config(&manager), &[], bound.passed());
            manager.ready();
            let before = answered.load(Ordering::Relaxed);
            let since = Instant::now();
            while answered.load(Ordering::Relaxed) < before + 50 && !clients.is_finished() {
                assert!(since.elapsed() < PATIENCE, "nobody is answered");
                std::thread::sleep(Duration::from_millis(1));
            }
            service.signal(signal);
            match signal {
                Signal::KILL => assert!(!service.child.wait().unwrap().success()),
                _ => service.ends_with(0),
            }
        }
        // The last ones wait for a daemon.
        let _service = manager.start_with(&bound.config(&manager), &[], bound.passed());
        manager.ready();
        drop(ends);
        clients.join().unwrap();
        callers.join().unwrap();
    });
    assert!(answered.load(Ordering::Relaxed) >= 250);
    // Nobody but the one whom the killed daemon had before it.
    assert!(cut_off.load(Ordering::Relaxed) <= 1, "{cut_off:?}");
}

/// A daemon with such sockets exits with 78 and says so.
fn refused(manager: &Manager, config: &str, sockets: Sockets, says: &str) {
    let mut service = manager.start_with(config, &[], sockets);
    service.ends_with(78);
    let said = manager.said();
    assert!(said.contains(says) && said.lines().count() == 1, "{said}");
    assert!(!manager.path("data").exists(), "no data was touched");
}

#[test]
fn passed_sockets_that_nobody_would_answer_or_everybody_could_call_are_refused() {
    let manager = Manager::new();
    let bound = Bound::new(&manager);
    let config = bound.config(&manager);
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = stranger.local_addr().unwrap();
    let says = format!(
        "the socket `http` at {at}, which the configuration does not know: add \"{at}\" to http.listen, or take it out of"
    );
    refused(&manager, &config, vec![("http", stranger.try_clone().unwrap().into())], &says);
    refused(&manager, &config, vec![("other.socket", stranger.into())], "http.listen, grpc.listen or ops.listen");
    // The listener for probes is no listener for clients.
    let ops = bound.ops.try_clone().unwrap();
    refused(&manager, &config, vec![("http", ops.into())], "which the configuration does not know");
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    refused(&manager, &config, vec![("http", datagrams.into())], "is neither a TCP nor a Unix stream socket");
    let connected = TcpStream::connect(bound.http.local_addr().unwrap()).unwrap();
    refused(&manager, &config, vec![("http", connected.into())], "does not listen");
    std::fs::set_permissions(manager.path("admin.sock"), std::fs::Permissions::from_mode(0o666)).unwrap();
    refused(&manager, &config, bound.passed(), "has the mode 0666, so that everybody on this machine could call");
}

#[test]
fn a_passed_place_for_callers_that_the_configuration_does_without_is_closed_with_a_warning() {
    let manager = Manager::new();
    let bound = Bound::new(&manager);
    let spare = TcpListener::bind("127.0.0.1:0").unwrap();
    let passed = || -> Sockets { vec![("grpc", spare.try_clone().unwrap().into())] };
    // With another address for callers over TCP it is a mistake in one of them.
    let other =
        bound.config(&manager).replace("grpc.listen = [", "grpc.insecure = true\ngrpc.listen = [\"127.0.0.1:1\", ");
    refused(&manager, &other, passed(), "which the configuration does not know");
    let sockets = bound.passed().into_iter().take(2).chain(passed()).collect();
    let config = bound.config(&manager).replace(&bound.ops.local_addr().unwrap().to_string(), "127.0.0.1:0");
    let _service = manager.start_with(&config, &[], sockets);
    let status = manager.ready();
    assert!(!status.contains(&spare.local_addr().unwrap().to_string()), "{status}");
    assert!(manager.said().contains("grpc.listen does not have its address"), "{}", manager.said());
}

#[test]
fn keys_come_from_credentials_and_a_missing_one_is_said() {
    let manager = Manager::new();
    let key = "[[auth.keys]]\nalgorithm = \"HS256\"\nsecret_file = \"credential:jwt.key\"\n";
    let config = format!("{}{key}", manager.listeners());
    let folder = manager.path("credentials");
    std::fs::create_dir(&folder).unwrap();
    let variables = [("CREDENTIALS_DIRECTORY", folder.to_str().unwrap())];
    for (variables, says) in [
        (
            &variables[..0],
            "auth.keys[0].secret_file: `credential:jwt.key` needs CREDENTIALS_DIRECTORY, which is not set",
        ),
        (&variables[..], "auth.keys[0].secret_file: `credential:jwt.key` cannot be found in "),
    ] {
        let mut service = manager.start_with(&config, variables, Vec::new());
        service.ends_with(78);
        assert!(manager.said().contains(says), "{}", manager.said());
    }
    std::fs::write(folder.join("jwt.key"), "a secret that only tests know, and they alone\n").unwrap();
    let _service = manager.start_with(&config, &variables, Vec::new());
    let status = manager.ready();
    // The key is the one that the file holds: a token that it has signed is good.
    manager.config(&format!("{}{KEY}", manager.listeners()));
    join(&manager, address(&status, "http"));
}
