//! The operator's commands, run as he runs them: the built binary, against a gateway that is a process of its own.

mod admin;
mod doctor;
mod follow;
mod listen;
mod mailbox;
mod screen;
mod secrets;
mod store;
mod stress;
mod support;

use support::{Gateway, pushgate};

#[test]
fn from_nothing_to_a_delivered_message() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pushgate.toml");
    let file = file.to_str().unwrap();
    pushgate(&["init", "--config", file]).ok();
    assert_eq!(pushgate(&["config", "check", "--config", file]).ok(), format!("{file}: valid\n"));
    let gateway = Gateway::start(folder, file);
    let socket = gateway.command(&["status", "--json"]).json();
    assert!(socket["listeners"].to_string().contains("admin.sock"), "{socket}");
    assert!(gateway.command(&["send", "alice", r#"{"hello":"world"}"#]).ok().starts_with("stored; id "));
    let url = gateway.url();
    let got = gateway.command(&["listen", "--user", "alice", "--url", &url, "--count", "1", "--for", "30s"]).ok();
    assert!(got.contains(r#"  notification  {"hello":"world"}  (id "#) && got.ends_with(", replayed)\n"), "{got}");
}

#[test]
fn help_has_examples_and_exit_codes() {
    let help = pushgate(&["--help"]).ok();
    for code in ["0   done", "1   failed", "2   ", "69  ", "77  ", "78  "] {
        assert!(help.contains(code), "{help}");
    }
    let commands = [
        "init",
        "send",
        "broadcast",
        "close",
        "status",
        "sessions",
        "events",
        "health",
        "listen",
        "doctor",
        "backup",
        "completions",
        "pending",
        "purge",
        "devices",
        "forget",
        "stress",
        "publish",
        "topics",
    ];
    let store = ["check", "stats", "export", "import", "compact"].map(|command| vec!["store", command]);
    for command in commands
        .map(|command| vec![command])
        .into_iter()
        .chain([vec!["token", "user"], vec!["token", "admin"]])
        .chain(store)
    {
        let text = pushgate(&[&command[..], &["--help"]].concat()).ok();
        assert!(text.contains("Examples:\n  "), "{command:?}: {text}");
        // Whatever an operator gets printed for one command he can get as JSON.
        assert!(command == ["completions"] || text.contains("--json"), "{command:?}: {text}");
    }
}

#[test]
fn completions_are_for_the_shells_that_there_are() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = pushgate(&["completions", shell]).ok();
        assert!(script.contains("sessions") && script.contains("ack-mode"), "{shell}");
    }
    pushgate(&["completions", "tcsh"]).fails(2, "invalid value 'tcsh'");
}

#[test]
fn manual_pages_are_there_for_each_command() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    pushgate(&["man", path]).ok();
    for page in ["pushgate.1", "pushgate-send.1", "pushgate-store-check.1", "pushgate-token-user.1"] {
        let text = std::fs::read_to_string(folder.path().join(page)).unwrap();
        assert!(text.contains("\n.TH ") && text.contains("\n.SH SYNOPSIS\n"), "{page}: {text}");
    }
    assert!(!folder.path().join("pushgate-man.1").exists(), "what --help does not show has no page");
    let nowhere = folder.path().join("missing");
    pushgate(&["man", nowhere.to_str().unwrap()]).fails(1, "cannot write the manual pages to");
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    for args in [
        &["send"][..],
        &["send", "alice", "{}", "--wait", "seen"],
        &["send", "alice", "{}", "--wait-timeout", "5s"],
        &["forget", "alice"],
        &["send", "alice", "{}", "--ttl", "soon"],
        &["send", "alice", "{}", "--data-file", "x"],
        &["close"],
        &["events", "--type", "no_such_type"],
        &["events", "--resume-after", "7"],
        &["events", "--resume-after", "epoch:seven"],
        &["events", "--resume-after", "epoch:7", "--snapshot"],
        &["listen"],
        &["listen", "--user", "alice", "--token", "x"],
        &["listen", "--token", "x", "--url", "http://127.0.0.1:1/ws"],
        &["token", "user"],
        &["token", "user", "--sub", "alice", "--claim", "exp=1"],
        &["token", "user", "--sub", "alice", "--private-key-file", "x"],
        &["token", "admin", "--name", "x", "--scopes", "all"],
        &["status", "--grpc", "nowhere"],
        &["backup"],
        &["publish", "news"],
        &["publish"],
        &["store"],
        &["store", "import"],
        &["store", "check", "--engine", "rocksdb"],
        &["store", "export", "--json"],
        &["store", "export", "--user", ""],
    ] {
        let run = pushgate(args);
        assert_eq!(run.code, 2, "{args:?}: {run:?}");
        assert!(!run.stderr.is_empty() && run.stdout.is_empty(), "{args:?}: {run:?}");
    }
}

#[test]
fn a_wrong_configuration_ends_with_78() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pushgate.toml");
    std::fs::write(&file, "[grpc]\nlisten = 7\n").unwrap();
    let file = file.to_str().unwrap();
    for args in [
        &["status"][..],
        &["send", "alice", "{}"],
        &["broadcast", "{}"],
        &["close", "alice"],
        &["pending", "alice"],
        &["purge", "alice"],
        &["devices", "alice"],
        &["forget", "alice", "--force"],
        &["sessions"],
        &["topics"],
        &["publish", "news", "{}"],
        &["events"],
        &["health"],
        &["listen", "--token", "x"],
        &["token", "user", "--sub", "alice"],
        &["backup", "/nowhere/copy"],
    ] {
        pushgate(&[args, &["--config", file]].concat()).fails(78, "pushgate.toml: grpc.listen: found a number");
    }
    pushgate(&["status", "--config", "/nowhere/pushgate.toml"]).fails(78, "/nowhere/pushgate.toml: cannot be read");
    // An address that is named needs no configuration.
    let run = pushgate(&["status", "--config", file, "--grpc", "unix:/nowhere/admin.sock"]);
    run.fails(69, "no gateway answers at unix:/nowhere/admin.sock (--grpc)");
}
