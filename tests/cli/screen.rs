//! The live screens on a real terminal: a pseudo-terminal of the system, with the binary on its other side.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Child, Stdio},
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use rustix::{
    process::Signal,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};
use serde_json::{Value, json};

use crate::support::{Gateway, binary, send_signal};

/// What enters and leaves the alternate screen (xterm's private mode 1049), and what shows the cursor (DECTCEM).
const ENTER: &str = "\u{1b}[?1049h";
const LEAVE: &str = "\u{1b}[?1049l";
const CURSOR: &str = "\u{1b}[?25h";
/// How long something may take to be on the screen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A terminal with a command before it.
struct Terminal {
    child: Child,
    keys: File,
    /// The command's side, kept open so that its modes can be looked at after the end.
    theirs: OwnedFd,
    pieces: Receiver<String>,
    seen: String,
}

impl Terminal {
    fn start(gateway: &Gateway, args: &[&str], size: (u16, u16)) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let theirs = OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let (ws_col, ws_row) = size;
        tcsetwinsize(&theirs, Winsize { ws_col, ws_row, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let mut command = binary(&gateway.args(args));
        let side = || Stdio::from(theirs.try_clone().unwrap());
        let child = command.env("TERM", "xterm").stdin(side()).stdout(side()).stderr(side()).spawn().unwrap();
        let keys = File::from(ours);
        let mut screen = keys.try_clone().unwrap();
        let (sender, pieces) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Ends with the last descriptor of the other side.
            while let Ok(read @ 1..) = screen.read(&mut buffer) {
                if sender.send(String::from_utf8_lossy(&buffer[..read]).into_owned()).is_err() {
                    return;
                }
            }
        });
        Self { child, keys, theirs: theirs.into(), pieces, seen: String::new() }
    }

    /// Waits until the text has been written since the last time. Only what has changed is written: the text has to differ
    /// in every place from what stood there.
    #[track_caller]
    fn until(&mut self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.pieces.recv_timeout(left) {
                Ok(piece) => self.seen.push_str(&piece),
                Err(error) => panic!("no `{text}` ({error}): {:?}", self.seen),
            }
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// The exit code.
    #[track_caller]
    fn wait(&mut self) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Closes our side, as a terminal does that is killed. It is nobody's controlling terminal: there is no SIGHUP.
    fn goes_away(&mut self) {
        self.keys = File::open("/dev/null").unwrap();
        // What is drawn next finds no receiver, and the reading thread lets go of its copy.
        self.pieces = mpsc::channel().1;
    }

    /// It ends with that code, and the terminal is as it was: echo and lines, the first screen, a cursor.
    #[track_caller]
    fn ends(mut self, code: i32) {
        let given_back = self.until(LEAVE) + &std::mem::take(&mut self.seen);
        assert_eq!(self.wait(), Some(code));
        let modes = tcgetattr(&self.theirs).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG), "{modes:?}");
        let rest: String = self.pieces.try_iter().collect();
        assert!((given_back + &rest).contains(CURSOR), "the cursor stays hidden");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn status_is_a_live_screen_until_a_key_ends_it() {
    let gateway = Gateway::new();
    let mut terminal = Terminal::start(&gateway, &["status", "--watch"], (120, 40));
    terminal.until(ENTER);
    terminal.until("serving");
    terminal.until("sessions by outbox: 0 of 0");
    let _alice = gateway.client("alice", &["--device", "phone"]);
    terminal.until("alice");
    gateway.command(&["send", "alice", "1"]).ok();
    terminal.press(" ");
    terminal.until("PAUSED");
    terminal.press("q");
    terminal.ends(0);
}

#[test]
fn whatever_ends_a_screen_the_terminal_is_given_back() {
    let gateway = Gateway::new();
    for end in ["q", "\u{3}", "\u{1b}"] {
        let mut terminal = Terminal::start(&gateway, &["top"], (100, 20));
        terminal.until("by outbox");
        terminal.press(end);
        terminal.ends(0);
    }
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let mut terminal = Terminal::start(&gateway, &["status", "--watch"], (100, 20));
        terminal.until("serving");
        send_signal(&terminal.child, signal);
        terminal.ends(0);
    }
}

#[test]
fn a_terminal_that_goes_away_without_a_signal_ends_the_screen() {
    let gateway = Gateway::new();
    for command in ["status", "top"] {
        let args: &[&str] = if command == "top" { &["top", "--interval", "100ms"] } else { &["status", "--watch"] };
        let mut terminal = Terminal::start(&gateway, args, (100, 20));
        terminal.until(ENTER);
        terminal.goes_away();
        // `top` draws nothing as long as nothing changes.
        let _somebody = gateway.client(command, &[]);
        assert_eq!(terminal.wait(), Some(0), "{command}");
    }
}

#[test]
fn a_screen_outlives_a_gateway_that_hangs() {
    let gateway = Gateway::new();
    for (shown, args) in [("serving", &["status", "--watch"][..]), ("by outbox", &["top", "--interval", "100ms"])] {
        let args = [args, &["--timeout", "500ms"]].concat();
        let mut terminal = Terminal::start(&gateway, &args, (120, 40));
        terminal.until(shown);
        gateway.signal(Signal::STOP);
        terminal.until("no answer, asking again");
        gateway.signal(Signal::CONT);
        terminal.until(shown);
        terminal.press("q");
        terminal.ends(0);
    }
}

#[test]
fn a_screen_outlives_a_restart_of_the_gateway() {
    let gateway = Gateway::new();
    let mut terminal = Terminal::start(&gateway, &["status", "--watch"], (120, 40));
    terminal.until("serving");
    let file = gateway.file.clone();
    let gateway = Gateway::start(gateway.stop(), &file);
    terminal.until("no answer, asking again");
    terminal.until("serving");
    terminal.press("q");
    terminal.ends(0);
    drop(gateway);
}

#[test]
fn top_shows_who_weighs_most_and_a_key_orders_anew() {
    let gateway = Gateway::new();
    let _alice = gateway.client("alice", &[]);
    let mut terminal = Terminal::start(&gateway, &["top", "--interval", "100ms"], (140, 20));
    terminal.until("by outbox");
    terminal.until("alice");
    terminal.press("m");
    terminal.until("messages");
    let _bob = gateway.client("bob", &[]);
    terminal.until("bob");
    terminal.press("q");
    terminal.ends(0);
}

#[test]
fn top_without_a_screen_prints_what_it_would_show() {
    let gateway = Gateway::new();
    let alice = gateway.client("alice", &["--device", "phone"]);
    let table = gateway.command(&["top", "--once", "--interval", "100ms"]).ok();
    let mut lines = table.lines();
    assert_eq!(lines.next(), Some("1 session, by outbox"));
    assert!(lines.next().unwrap().starts_with("USER   DEVICE    MSG/S"), "{table}");
    assert!(lines.next().unwrap().starts_with("alice  phone "), "{table}");

    let mut busy = binary(&gateway.args(&["top", "--by", "messages", "--json", "--interval", "500ms"]));
    let mut busy = busy.spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(busy.stdout.take().unwrap()));
    let rate = loop {
        gateway.command(&["send", "alice", "1"]).ok();
        let page: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(
            (&page["by"], &page["total"], &page["sessions"][0]["userId"]),
            (&json!("messages"), &json!(1), &json!("alice"))
        );
        match page["sessions"][0]["messagesPerSecond"].as_f64().unwrap() {
            0.0 => {}
            rate => break rate,
        }
    };
    assert!(rate > 0.0 && rate < 1000.0, "{rate}");
    send_signal(&busy, Signal::INT);
    assert_eq!(busy.wait().unwrap().code(), Some(0));
    drop(alice);
    let none = gateway.command(&["top", "--once", "--interval", "100ms", "--user", "nobody"]).ok();
    assert_eq!(none, "0 sessions, by outbox\n");
    gateway.command(&["top", "--interval", "1ms"]).fails(2, "must be at least 100ms");
    gateway.command(&["top", "--rows", "0"]).fails(2, "--rows");
}
