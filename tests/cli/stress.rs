//! `stress`: against the gateway, and through a line that drops, repeats, reorders and breaks on purpose, each so many
//! times: what the tool says is held against what the line did.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Follower, Gateway, Run, SECRET, binary, finish, pushgate, write_configuration};

/// What a line does to the fourth message of each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Drop,
    Repeat,
    /// Says the last one, the tenth, again, a moment later.
    RepeatLast,
    /// Lets the next one go first.
    Reorder,
    /// Ends the connection in its stead.
    Break,
}

const FAULTY: u64 = 4;
const LAST: u64 = 10;

/// A line between clients and a gateway.
struct Line {
    address: SocketAddr,
    faults: Arc<AtomicU64>,
}

impl Line {
    fn to(gateway: &str, fault: Fault) -> Self {
        let gateway: SocketAddr = gateway.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let line = Self { address: listener.local_addr().unwrap(), faults: Arc::default() };
        let faults = Arc::clone(&line.faults);
        // It goes with the test's process.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (server, faults) = (TcpStream::connect(gateway).unwrap(), Arc::clone(&faults));
                let (mut up, mut down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut up, &mut down);
                    let _ = down.shutdown(Shutdown::Write);
                });
                thread::spawn(move || {
                    let _ = carry(server, &client, fault, &faults);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        line
    }

    fn url(&self) -> String {
        format!("ws://{}/ws", self.address)
    }

    fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }
}

/// Carries what the gateway says, frame by frame, with one fault.
fn carry(mut from: TcpStream, mut to: &TcpStream, fault: Fault, faults: &AtomicU64) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    to.write_all(&head)?;
    let (mut messages, mut held) = (0, Vec::new());
    loop {
        let mut frame = vec![0; 2];
        from.read_exact(&mut frame)?;
        let more = match frame[1] {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mut length = vec![0; more];
        from.read_exact(&mut length)?;
        let bytes = if more == 0 { u64::from(frame[1]) } else { length.iter().fold(0, |n, b| n << 8 | u64::from(*b)) };
        frame.append(&mut length);
        let start = frame.len();
        frame.resize(start + bytes as usize, 0);
        from.read_exact(&mut frame[start..])?;
        messages += u64::from(frame.windows(6).any(|six| six == b"\"pgs\":"));
        if fault == Fault::RepeatLast {
            to.write_all(&frame)?;
            if messages == LAST {
                messages += 1;
                faults.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(20));
                to.write_all(&frame)?;
            }
            continue;
        }
        if messages == FAULTY && held.is_empty() && fault != Fault::None {
            messages += 1;
            faults.fetch_add(1, Ordering::Relaxed);
            match fault {
                Fault::Drop => continue,
                Fault::Break => return Ok(()),
                Fault::Repeat => to.write_all(&frame)?,
                Fault::Reorder => {
                    held = frame;
                    continue;
                }
                Fault::None | Fault::RepeatLast => {}
            }
        }
        to.write_all(&frame)?;
        // What was held goes behind the next message, not behind a ping.
        if messages > FAULTY + 1 {
            to.write_all(&std::mem::take(&mut held))?;
        }
    }
}

fn gateway(further: &str) -> Gateway {
    // A line a session would fill the pipe that nobody reads.
    Gateway::with(&format!("{further}\n[log]\nfilter = \"warn,pushgate::server=info\""))
}

fn stress(gateway: &Gateway, url: &str, test: &str, further: &[&str]) -> (Run, Value) {
    let count = if further.contains(&"--connections") { &[][..] } else { &["--connections", "20"] };
    let fixed = ["stress", "--test-type", test, "--url", url, "--json", "--messages", "10"];
    let brief = ["--message-interval", "5ms", "--duration", "2s", "--rate", "100", "--patience", "2s"];
    let run = gateway.command(&[&fixed[..], count, &brief, further].concat());
    let json = serde_json::from_str(&run.stdout).unwrap_or(Value::Null);
    (run, json)
}

#[test]
fn a_gateway_that_keeps_its_word_passes_every_test() {
    let gateway = gateway("");
    for mode in ["transport", "client"] {
        let (run, json) = stress(&gateway, &gateway.url(), "all", &["--ack-mode", mode, "--lifetime", "1s"]);
        assert_eq!((run.code, &json["passed"]), (0, &Value::Bool(true)), "{run:?}");
        let tests = json["tests"].as_array().unwrap();
        let names: Vec<_> = tests.iter().map(|test| test["test"].as_str().unwrap()).collect();
        assert_eq!(names, ["storm", "throughput", "sustained", "fanout", "unicast", "replay", "churn"]);
        for test in tests {
            assert_eq!(test["connections"]["connected"], 20, "{test}");
            assert_eq!((&test["lost"], &test["outOfOrder"]), (&Value::from(0), &Value::from(0)), "{test}");
            assert!(test["server"]["rssBytes"].as_u64().unwrap() > 1_000_000, "{test}");
            assert!(test["connect"]["count"].as_u64().is_some() || test["test"] != "storm", "{test}");
        }
        let of = |name: &str| &tests[names.iter().position(|one| *one == name).unwrap()];
        assert_eq!((&of("storm")["received"], &of("throughput")["received"]), (&Value::from(20), &Value::from(200)));
        assert_eq!((&of("fanout")["sent"], &of("fanout")["received"]), (&Value::from(10), &Value::from(200)));
        assert_eq!((&of("unicast")["sent"], &of("unicast")["received"]), (&Value::from(200), &Value::from(200)));
        assert_eq!((&of("replay")["sent"], &of("replay")["replay"]["count"]), (&Value::from(200), &Value::from(20)));
        assert!(of("churn")["perSecond"]["connects"].as_f64().unwrap() > 1.0, "{}", of("churn"));
        // Something was under way for some time, and the percentiles are in their order.
        let latency = &of("unicast")["latency"];
        let at = |name: &str| latency[name].as_u64().unwrap();
        assert!(at("p50Micros") > 0 && at("p50Micros") <= at("p99Micros") && at("p99Micros") <= at("maxMicros"));
    }
    let status = gateway.command(&["status", "--json"]).json();
    assert_eq!(status["pending"]["count"], "0", "nothing is left behind: {status}");
}

#[test]
fn a_line_that_does_nothing_is_not_noticed() {
    let gateway = gateway("");
    let line = Line::to(gateway.address("http"), Fault::None);
    let (run, json) = stress(&gateway, &line.url(), "all", &["--lifetime", "1s"]);
    assert_eq!((run.code, &json["passed"]), (0, &Value::Bool(true)), "{run:?}");
}

#[test]
fn what_a_line_drops_repeats_and_reorders_is_told_to_the_last_message() {
    let gateway = gateway("");
    for test in ["throughput", "fanout", "unicast", "replay"] {
        for fault in [Fault::Drop, Fault::Repeat, Fault::RepeatLast, Fault::Reorder] {
            let line = Line::to(gateway.address("http"), fault);
            let (run, json) = stress(&gateway, &line.url(), test, &[]);
            let report = &json["tests"][0];
            let count = |name: &str| report[name].as_u64().unwrap();
            let told = [count("lost"), count("duplicates"), count("outOfOrder")];
            // In `throughput` a lost echo holds nothing up: the window is larger.
            assert!(line.faults() >= 20, "{test} {fault:?}: {}", line.faults());
            let expected = match fault {
                Fault::Drop => [line.faults(), 0, 0],
                Fault::Repeat | Fault::RepeatLast => [0, line.faults(), 0],
                _ => [0, 0, line.faults()],
            };
            assert_eq!(told, expected, "{test} {fault:?}: {run:?}");
            let harmless = matches!(fault, Fault::Repeat | Fault::RepeatLast);
            assert_eq!(run.code, i32::from(!harmless), "{test} {fault:?}: {run:?}");
        }
    }
}

#[test]
fn what_churn_brings_again_is_no_fault_and_what_it_drops_is() {
    let gateway = gateway("");
    let line = Line::to(gateway.address("http"), Fault::Drop);
    let (run, json) = stress(&gateway, &line.url(), "churn", &["--lifetime", "500ms"]);
    let report = &json["tests"][0];
    assert_eq!(run.code, 1, "{run:?}");
    // One that was dropped unconfirmed, at the end of a connection, comes with the next.
    let lost = report["lost"].as_u64().unwrap();
    assert!(lost > 0 && lost <= line.faults() && report["outOfOrder"].as_u64().unwrap() <= line.faults(), "{report}");
}

/// A restart under a fleet of the tool's sessions; `BENCHMARKS.md` has the same with 18,000.
#[test]
fn over_a_restart_sessions_come_back_evenly_and_nothing_is_lost() {
    const SESSIONS: u64 = 600;
    let gateway = gateway("[drain]\nrate = 200");
    let (url, sessions) = (gateway.url(), SESSIONS.to_string());
    let args = ["stress", "--test-type", "restart", "--url", &url, "--connections", &sessions, "--json"];
    let pace = ["--rate", "600", "--duration", "4s", "--max-concurrent", "100"];
    let tool = Follower::start(binary(&gateway.args(&[&args[..], &pace].concat())), "restart the gateway now");
    let gateway = gateway.restart();
    let run = tool.end();
    let json: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:?}"));
    assert_eq!((run.code, &json["passed"]), (0, &Value::Bool(true)), "{run:?}");
    let report = &json["tests"][0];
    let count = |name: &str| report[name].as_u64().unwrap();
    // Before, while the gateway was away, and after; what nobody had taken then was sent until somebody did.
    assert_eq!(
        (count("lost"), count("outOfOrder"), count("sent")),
        (0, 0, report["outcomes"]["OUTCOME_STORED"].as_u64().unwrap())
    );
    assert!(count("received") >= count("sent") && count("sent") > 600 * 8, "{report}");
    let restart = &report["restart"];
    assert_eq!(restart["back"], SESSIONS, "{restart}");
    assert_eq!(
        report["connections"]["closed"],
        serde_json::json!({ "1012": SESSIONS }),
        "each was told, once: {report}"
    );
    let returned = |end: usize| restart["returned"][end].as_f64().unwrap();
    let tenths: Vec<u64> = restart["tenths"].as_array().unwrap().iter().map(|tenth| tenth.as_u64().unwrap()).collect();
    assert!(returned(1) - returned(0) >= 2.0, "{restart}");
    assert!(
        tenths.iter().sum::<u64>() == SESSIONS && tenths.iter().all(|tenth| *tenth <= 3 * SESSIONS / 10),
        "{tenths:?}"
    );
    for part in ["before", "around", "after"] {
        assert!(restart[part]["p99Micros"].as_u64().unwrap() > 0, "{restart}");
    }
    gateway.stop();
}

#[test]
fn a_restart_that_cannot_be_had_is_told() {
    let gateway = gateway("");
    let (run, _) = stress(&gateway, &gateway.url(), "restart", &["--restart-command", "exit 3"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("the command that is to restart the gateway failed: exit status: 3"), "{run:?}");
    gateway.stop();
}

/// A line that gives each of two connections what is for the other, once both are there.
fn crossed(gateway: &str) -> String {
    let gateway: SocketAddr = gateway.parse().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/ws", listener.local_addr().unwrap());
    thread::spawn(move || {
        let clients: Vec<TcpStream> = listener.incoming().map_while(Result::ok).take(2).collect();
        let servers: Vec<TcpStream> = clients.iter().map(|_| TcpStream::connect(gateway).unwrap()).collect();
        for (number, client) in clients.iter().enumerate() {
            let (mut up, mut down) = (client.try_clone().unwrap(), servers[number].try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut up, &mut down));
            // The handshake and the greeting go to whom they are for.
            let (mut server, own) = (servers[number].try_clone().unwrap(), client.try_clone().unwrap());
            let other = clients[1 - number].try_clone().unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 65536];
                while let Ok(count @ 1..) = server.read(&mut buffer) {
                    let marked = buffer[..count].windows(6).any(|six| six == b"\"pgs\":");
                    let mut to = if marked { &other } else { &own };
                    if to.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}

#[test]
fn what_comes_to_somebody_else_is_noticed() {
    let gateway = gateway("");
    for test in ["throughput", "unicast"] {
        let url = crossed(gateway.address("http"));
        let (run, json) = stress(&gateway, &url, test, &["--connections", "2", "--max-concurrent", "2"]);
        let report = &json["tests"][0];
        assert_eq!(run.code, 1, "{test}: {run:?}");
        assert!(report["misdelivered"].as_u64().unwrap() > 0 && run.stderr.contains("for somebody else"), "{run:?}");
        assert_eq!(report["received"].as_u64(), Some(0), "{test}: {report}");
    }
}

/// Starts it, and has something happen to the gateway once it is under way.
fn interrupted(gateway: &mut Gateway, test: &str, further: &[&str], signal: Signal) -> (Run, Value) {
    let url = gateway.url();
    let fixed = ["stress", "--test-type", test, "--url", &url, "--json", "--connections", "20", "--rate", "200"];
    let brief = ["--duration", "4s", "--patience", "3s", "--timeout", "2s", "--message-interval", "50ms"];
    let child = binary(&gateway.args(&[&fixed[..], &brief, further].concat())).spawn().unwrap();
    let ready = ["sessions", "--json"];
    while gateway.command(&ready).json()["sessions"].as_array().is_none_or(|sessions| sessions.len() < 20) {}
    gateway.signal(signal);
    let run = finish(child);
    let json = serde_json::from_str(&run.stdout).unwrap_or(Value::Null);
    (run, json)
}

#[test]
fn a_gateway_that_dies_or_hangs_fails_the_test_and_holds_nothing_up() {
    for (test, signal) in [
        ("unicast", Signal::KILL),
        ("sustained", Signal::KILL),
        ("unicast", Signal::STOP),
        ("sustained", Signal::STOP),
        ("unicast", Signal::TERM),
    ] {
        let mut gateway = gateway("");
        let began = Instant::now();
        let (run, json) = interrupted(&mut gateway, test, &[], signal);
        assert_eq!((run.code, &json["passed"]), (1, &Value::Bool(false)), "{test} {signal:?}: {run:?}");
        assert!(began.elapsed() < Duration::from_secs(60), "{test} {signal:?}: {:?}", began.elapsed());
        gateway.signal(Signal::CONT);
    }
}

#[test]
fn what_is_refused_fails_the_test_and_is_no_loss() {
    let folder = tempfile::tempdir().unwrap();
    let further = "[limits]\nnotification_bytes = \"4KiB\"\n[log]\nfilter = \"warn,pushgate::server=info\"";
    let file = write_configuration(folder.path(), further);
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("[store]", "[store]\nmax_pending_per_user = 5")).unwrap();
    let gateway = Gateway::start(folder, &file);
    let (run, json) = stress(&gateway, &gateway.url(), "fanout", &["--payload", "8KiB"]);
    let report = &json["tests"][0];
    assert_eq!((run.code, &report["refused"]["InvalidArgument"]), (1, &Value::from(10)), "{run:?}");
    assert_eq!((&report["lost"], &report["perSecond"]["sent"]), (&Value::from(0), &Value::from(0.0)), "{run:?}");
    assert!(run.stderr.contains("fanout: 10 of 10 calls failed (such as: InvalidArgument)"), "{run:?}");
    let (run, json) = stress(&gateway, &gateway.url(), "replay", &[]);
    let report = &json["tests"][0];
    assert_eq!((run.code, &report["refused"]["ResourceExhausted"]), (1, &Value::from(100)), "{run:?}");
    // What was taken came, and how long that took is known.
    assert_eq!((&report["lost"], &report["received"]), (&Value::from(0), &Value::from(100)), "{run:?}");
    assert_eq!(report["replay"]["count"], 20, "{run:?}");
}

#[test]
fn two_sessions_that_are_one_device_are_refused() {
    let gateway = gateway("");
    let token = gateway.command(&["token", "user", "--sub", "alice", "--claim", "device=phone"]).ok();
    let file = gateway.write("users", &token);
    let (run, _) = stress(&gateway, &gateway.url(), "unicast", &["--user-tokens", file.to_str().unwrap()]);
    run.fails(1, "two sessions are the device `phone` of the user `alice`");
}

#[test]
fn a_connection_that_breaks_is_counted_and_what_it_should_have_got_is_lost() {
    let gateway = gateway("");
    let line = Line::to(gateway.address("http"), Fault::Break);
    let (run, json) = stress(&gateway, &line.url(), "fanout", &[]);
    let report = &json["tests"][0];
    assert_eq!((run.code, &report["connections"]["closed"]["1006"]), (1, &Value::from(20)), "{run:?}");
    // Of the ten the first three came. What the gateway says it handed to nobody, all being gone, is not lost.
    let (lost, accepted) = (report["lost"].as_u64().unwrap(), report["outcomes"]["OUTCOME_ACCEPTED"].as_u64().unwrap());
    assert_eq!((report["received"].as_u64(), lost), (Some(60), 20 * (accepted - 3)), "{run:?}");
    assert!(lost >= 20, "{run:?}");
}

#[test]
fn who_is_not_let_in_is_counted_with_the_reason() {
    let gateway = gateway("[limits]\nconnections = 5");
    let (run, json) = stress(&gateway, &gateway.url(), "storm", &[]);
    let connections = &json["tests"][0]["connections"];
    assert_eq!((run.code, &connections["connected"]), (1, &Value::from(5)), "{run:?}");
    assert_eq!((&connections["failed"], &connections["failures"]["HTTP 503"]), (&Value::from(15), &Value::from(15)));
    assert!(run.stderr.contains("15 attempts to connect failed (such as: HTTP 503)"), "{run:?}");
}

#[test]
fn where_nobody_is_let_in_it_ends_with_69() {
    let gateway = gateway("");
    let (run, _) = stress(&gateway, &gateway.url(), "storm", &["--secret", "not the gateway's secret, but as long"]);
    assert_eq!(run.code, 69, "{run:?}");
    assert!(run.stderr.contains("nobody could connect (storm): token_invalid"), "{run:?}");
    // Bound, so that nobody else gets the port, and not listening.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let (run, _) = stress(&gateway, &format!("ws://{}/ws", closed.local_addr().unwrap()), "storm", &[]);
    assert_eq!(run.code, 69, "{run:?}");
    assert!(run.stderr.contains("nobody could connect (storm): Connection refused"), "{run:?}");
    // What sends needs the admin API; what does not, does not.
    let args = ["stress", "--secret", SECRET, "--grpc", "unix:/nowhere", "--connections", "3", "--test-type"];
    let url = gateway.url();
    let run = pushgate(&[&args[..], &["fanout", "--url", &url]].concat());
    run.fails(69, "no gateway answers at unix:/nowhere (--grpc)");
    let run = pushgate(&[&args[..], &["storm", "--url", &url]].concat());
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.stderr.contains("the gateway's CPU time and memory are not known"), "{run:?}");
    assert!(run.stdout.contains("storm") && run.stdout.contains("connected"), "{run:?}");
}

#[test]
fn tokens_of_a_file_are_shared_by_sessions_that_are_devices() {
    let gateway = gateway("");
    let token = |user| gateway.command(&["token", "user", "--sub", user]).ok();
    let file = gateway.write("users", &format!("{}\n\n{}", token("alice"), token("bob")));
    let file = file.to_str().unwrap();
    let (run, json) = stress(&gateway, &gateway.url(), "unicast", &["--user-tokens", file, "--wait", "stored"]);
    assert_eq!(run.code, 0, "{run:?}");
    let report = &json["tests"][0];
    assert_eq!((&report["sent"], &report["received"]), (&Value::from(200), &Value::from(2000)), "ten devices each");
    assert_eq!(report["outcomes"]["OUTCOME_STORED"], 200);
    let devices = gateway.command(&["devices", "alice", "--json"]).json();
    assert_eq!(devices["devices"].as_array().unwrap().len(), 10, "{devices}");
    let empty = gateway.write("none", "\n");
    let (run, _) = stress(&gateway, &gateway.url(), "storm", &["--user-tokens", empty.to_str().unwrap()]);
    run.fails(2, "it holds no token");
}

#[test]
fn what_makes_no_test_is_refused() {
    for args in [
        &["--connections", "0"][..],
        &["--messages", "0"],
        &["--duration", "0"],
        &["--rate", "-1"],
        &["--rate", "1e-300"],
        &["--messages", "9223372036854775808"],
        &["--duration", "100000d"],
        &["--payload", "1GiB"],
        &["--test-type", "flood"],
        &["--url", "http://127.0.0.1:7000/ws"],
        &["--url", "wss://127.0.0.1:7000/ws"],
        &["--secret", "x", "--user-tokens", "y"],
    ] {
        assert_eq!(pushgate(&[&["stress"], args].concat()).code, 2, "{args:?}");
    }
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    if let Some(most) = most.filter(|most| u32::try_from(*most).is_ok()) {
        let run = pushgate(&["stress", "--secret", "x", "--connections", &most.to_string()]);
        run.fails(2, "descriptors and a process may have");
    }
}
