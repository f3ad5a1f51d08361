//! The built binary: its command line, its exit codes, its signals.

use std::{net::TcpListener, time::Instant};

use rustix::process::Signal;
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::{
    Client, Gateway, Raw, Rpc, Token,
    child::{Daemon, command, config, run},
    gateway::ADMIN,
    soon,
    token::SECRET,
    until,
};

#[tokio::test(flavor = "multi_thread")]
async fn config_check_says_that_a_good_configuration_is_valid() {
    let folder = tempfile::tempdir().unwrap();
    let file = config(folder.path(), "");
    let path = file.to_str().unwrap();
    assert_eq!(run(&["config", "check", "--config", path]).await, (0, format!("{path}: valid\n"), String::new()));
    assert!(!folder.path().join("data").exists(), "nothing was started");
}

/// Both `config check` and `serve` refuse with these lines on standard error, and 78.
async fn refused(more: &str, lines: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let file = config(folder.path(), more);
    let path = file.to_str().unwrap();
    for args in [&["config", "check", "--config", path][..], &["serve", "--config", path]] {
        let (code, out, err) = run(args).await;
        assert_eq!((code, out.as_str()), (78, ""), "{args:?}: {err}");
        let expected: String = lines.iter().map(|line| format!("{path}: {line}\n")).collect();
        assert_eq!(err, expected, "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_run_is_refused_with_78_by_check_and_serve_alike() {
    let allowed = "forwarded_header, listen, origins, path, proxy_protocol, tls, trusted_proxies";
    refused("http.pth = \"/ws\"", &[&format!("unknown key `http.pth`; allowed here: {allowed}")]).await;
    refused(
        "heartbeat.interval = 30",
        &["heartbeat.interval: found a number, expected a duration in quotes with a unit, such as \"30s\""],
    )
    .await;
    refused(
        "delivery.window = 0\nclients.forward = [\"ping\"]",
        &[
            "delivery.window: `0` is not allowed; allowed: 1 to 65536",
            "clients.forward[0]: `ping` is the gateway's own; write a type of your application's, or \"*\" for all",
        ],
    )
    .await;
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.toml");
    let (code, _, err) = run(&["serve", "--config", missing.to_str().unwrap()]).await;
    assert_eq!(code, 78);
    assert!(err.starts_with(&format!("{}: cannot be read: ", missing.display())) && err.lines().count() == 1, "{err}");
    let (code, _, err) = run(&["serve", "--no-such-flag"]).await;
    assert!(code == 2 && err.contains("--no-such-flag"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_key_is_one_line_and_78() {
    let folder = tempfile::tempdir().unwrap();
    let file = config(folder.path(), "");
    let path = file.to_str().unwrap();
    let key = folder.path().join("jwt.key");
    let keys = format!(r#"[{{ algorithm = "HS256", secret_file = "{}" }}]"#, key.display());
    for args in [&["config", "check", "--config", path][..], &["serve", "--config", path]] {
        let output = soon("its end", command(args).env("PUSHGATE_AUTH__KEYS", &keys).output()).await.unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{err}");
        assert!(err.lines().count() == 1 && err.contains(key.to_str().unwrap()), "{err}");
        assert!(err.starts_with("environment variable PUSHGATE_AUTH__KEYS: "), "{err}");
    }
    let token = folder.path().join("caller.token");
    let tokens = format!(r#"[{{ name = "orders", token_file = "{}", scopes = ["send"] }}]"#, token.display());
    let output = soon("its end", command(&["serve", "--config", path]).env("PUSHGATE_GRPC__TOKENS", tokens).output());
    let output = output.await.unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(78) && err.lines().count() == 1 && err.contains("`orders`"), "{err}");
    assert!(!folder.path().join("data").exists(), "no data was touched");
}

#[tokio::test(flavor = "multi_thread")]
async fn config_show_prints_values_with_their_origin_and_masks_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let file = config(folder.path(), "delivery.window = 7");
    let path = file.to_str().unwrap();
    let mut show = command(&["config", "show", "--config", path, "--store-path", "elsewhere"]);
    let output = soon("its end", show.env("PUSHGATE_HEARTBEAT__INTERVAL", "20s").output()).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for line in [
        format!("window = 7  # {path}"),
        "interval = \"20s\"  # environment PUSHGATE_HEARTBEAT__INTERVAL".to_owned(),
        "path = \"elsewhere\"  # flag --store-path".to_owned(),
        "timeout = \"10s\"  # default".to_owned(),
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
    }
    for secret in [SECRET, ADMIN, "send-token"] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_one_line_and_1_and_touches_no_data() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let file = config(folder.path(), "");
    for flag in ["--http-listen", "--grpc-listen", "--ops-listen"] {
        let (code, out, err) = run(&["serve", "--config", file.to_str().unwrap(), flag, &address]).await;
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.starts_with(&format!("cannot listen on {address}: ")) && err.lines().count() == 1, "{err}");
    }
    assert!(!folder.path().join("data").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_that_cannot_be_used_is_one_line_and_1() {
    let folder = tempfile::tempdir().unwrap();
    let file = config(folder.path(), "");
    let serve = async |path: &std::path::Path| {
        let (file, path) = (file.to_str().unwrap(), path.to_str().unwrap());
        let args = ["serve", "--config", file, "--store-path", path, "--grpc-listen", "127.0.0.1:0"];
        let (code, out, err) = run(&args).await;
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        assert!(err.starts_with("the store at ") && err.contains(path), "{err}");
        err
    };
    // A file stands where the folder should be; nobody may make folders in the other place, root not excepted.
    let blocked = folder.path().join("file");
    std::fs::write(&blocked, "").unwrap();
    serve(&blocked.join("data")).await;
    serve(std::path::Path::new("/proc/pushgate-data")).await;

    let daemon = Daemon::start(&file).await;
    let locked = serve(&folder.path().join("data")).await;
    assert!(locked.contains("in use by another process"), "{locked}");
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_and_sigint_drain_and_exit_with_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let folder = tempfile::tempdir().unwrap();
        let mut daemon = Daemon::start(&config(folder.path(), "")).await;
        let url = format!("ws://{}/ws?token={}", daemon.address("http"), Token::of("alice").sign());
        let mut client = Client::connect(&url).await;
        let mut rpc = Rpc::over_tcp(daemon.address("grpc"), Some(ADMIN)).await;
        rpc.send("alice", 1).await;
        assert_eq!(client.data(1).await, [json!(1)]);
        for (path, status) in [("/livez", "200"), ("/readyz", "200")] {
            let mut raw = Raw::connect(daemon.address("ops")).await;
            let head = raw.request(&format!("GET {path} HTTP/1.1\r\nHost: ops\r\n\r\n")).await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        }
        daemon.signal(signal);
        assert_eq!(client.next().await["type"], "draining");
        assert_eq!(client.closed().await.0, 1012);
        assert_eq!(daemon.logged("stopping").await["level"], "INFO");
        assert_eq!(daemon.logged("stopped").await["in_order"], true);
        assert_eq!(daemon.ended().await.code(), Some(0));
        assert!(!folder.path().join("admin.sock").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = config(folder.path(), "shutdown.lb_delay = \"1h\"\nshutdown.deadline = \"2h\"");
    let mut daemon = Daemon::start(&file).await;
    let mut rpc = Rpc::over_tcp(daemon.address("grpc"), Some(ADMIN)).await;
    daemon.signal(Signal::TERM);
    daemon.logged("stopping").await;
    rpc.send("alice", "stored in the meantime").await;
    let started = Instant::now();
    daemon.signal(Signal::INT);
    assert_eq!(daemon.ended().await.code(), Some(130));
    assert!(started.elapsed().as_secs() < 5);
    assert!(daemon.log.contains("a second signal: ending at once"), "{}", daemon.log);
    // What was stored is there for the next start.
    let daemon = Daemon::start(&file).await;
    let url = format!("ws://{}/ws?token={}", daemon.address("http"), Token::of("alice").sign());
    assert_eq!(Client::connect(&url).await.data(1).await, ["stored in the meantime"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_is_there_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let file = config(folder.path(), "");
    let mut daemon = Daemon::start(&file).await;
    let mut rpc = Rpc::over_tcp(daemon.address("grpc"), Some(ADMIN)).await;
    let mut sent = Vec::new();
    for n in 0..10 {
        sent.push(rpc.send("alice", n).await);
    }
    daemon.signal(Signal::KILL);
    assert_eq!(daemon.ended().await.code(), None, "by the signal");
    let daemon = Daemon::start(&file).await;
    let url = format!("ws://{}/ws?token={}", daemon.address("http"), Token::of("alice").sign());
    let mut client = Client::connect(&url).await;
    for (n, sent) in sent.iter().enumerate() {
        let got = client.next().await;
        assert_eq!((&got["id"], &got["offset"], &got["data"]), (&json!(sent.id), &json!(sent.offset), &json!(n)));
    }
    client.nothing_more().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_logged_can_be_set_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(&config(folder.path(), "log.filter = \"info\"")).await;
    let mut rpc = Rpc::over_tcp(daemon.address("grpc"), Some(ADMIN)).await;
    for (bad, named) in [("info,pushgate=loud", "`pushgate=loud`: "), ("", "is required"), (" ", "is required")] {
        let refused = rpc.log_filter(bad).await.unwrap_err();
        assert!(refused.code() == Code::InvalidArgument && refused.message().starts_with("filter: "), "{refused}");
        assert!(refused.message().contains(named), "{refused}");
    }
    let long = rpc.log_filter(&"info,".repeat(1000)).await.unwrap_err();
    assert_eq!(long.code(), Code::InvalidArgument);

    assert_eq!(rpc.log_filter("pushgate=trace").await.unwrap(), "info");
    // What nobody heard before.
    daemon.logged("scheduler delay").await;
    assert_eq!(rpc.log_filter(" off ").await.unwrap(), "pushgate=trace");
    let said = daemon.logged("a caller sets the log filter").await;
    assert!(said["filter"] == "off" || said["filter"] == "pushgate=trace", "{said}");
    assert_eq!(rpc.log_filter("info").await.unwrap(), "off");

    for scope in ["send", "close", "read", "events"] {
        let mut other = Rpc::over_tcp(daemon.address("grpc"), Some(&format!("{scope}-token"))).await;
        assert_eq!(other.log_filter("info").await.unwrap_err().code(), Code::PermissionDenied);
    }
    daemon.signal(Signal::TERM);
    daemon.logged("stopping").await;
    assert!(daemon.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_within_a_process_does_not_touch_its_logs() {
    let gateway = Gateway::start().await;
    let refused = gateway.rpc().await.log_filter("off").await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.get_error_details().error_info().unwrap().reason.as_str()),
        (Code::NotFound, "LOG_UNKNOWN")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_threshold_that_is_never_exceeded_is_said_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = config(folder.path(), "alerts.reply_p99 = \"30s\"\n");
    let mut daemon = Daemon::start(&file).await;
    let line: Vec<serde_json::Value> = daemon.log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let line = line.iter().find(|line| line["key"] == "alerts.reply_p99").unwrap_or_else(|| panic!("{}", daemon.log));
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["doubt"], "`30s` is never exceeded: no wait lasts longer than clients.reply_timeout, `30s`");
    daemon.signal(Signal::TERM);
    daemon.ended().await;
    for fine in ["alerts.reply_p99 = \"29s\"\n", "alerts.reply_p99 = \"0s\"\n", "clients.reply_timeout = \"11s\"\n"] {
        let mut daemon = Daemon::start(&config(folder.path(), fine)).await;
        assert!(!daemon.log.contains("alerts.reply_p99"), "{}", daemon.log);
        daemon.signal(Signal::TERM);
        daemon.ended().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_leave_descriptors_to_callers_probes_and_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with_descriptors(&config(folder.path(), ""), 200).await;
    let (http, grpc, ops) = (daemon.address("http"), daemon.address("grpc"), daemon.address("ops"));
    let token = Token::of("alice").sign();
    // Far more than there are descriptors for: those that come too late are told so, or dropped.
    let (mut sessions, mut refused, mut dropped) = (Vec::new(), Vec::new(), 0);
    for _ in 0..300 {
        let mut raw = Raw::connect(http).await;
        raw.write(crate::support::raw::handshake(&format!("token={token}"), "").as_bytes()).await;
        match raw.try_head().await {
            Some(head) if head.starts_with("HTTP/1.1 101 ") => sessions.push(raw),
            Some(head) => {
                assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
                refused.push(raw);
            }
            None => dropped += 1,
        }
    }
    // Half of 200, less an eighth for those who are told.
    assert_eq!((sessions.len(), refused.len() + dropped), (88, 212));
    let half: Vec<_> = futures_util::future::join_all((0..300).map(async |_| Raw::connect(http).await)).await;
    let mut rpc = Rpc::over_tcp(grpc, Some(ADMIN)).await;
    rpc.send("bob", "stored").await;
    let probed = Raw::connect(ops).await.request("GET /readyz HTTP/1.1\r\nHost: ops\r\n\r\n").await;
    assert!(probed.starts_with("HTTP/1.1 200 "), "{probed}");
    let limits = rpc.status().await.limits.unwrap();
    assert_eq!(limits.connections, 88, "what is in force is said");
    let hits = limits.hits["connections"];
    assert!(hits >= 212, "{hits}");
    drop(half);
    sessions.pop().unwrap().reset();
    until("there is room again", true, async || {
        let mut raw = Raw::connect(http).await;
        raw.write(crate::support::raw::handshake(&format!("token={token}"), "").as_bytes()).await;
        raw.try_head().await.is_some_and(|head| head.starts_with("HTTP/1.1 101 "))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_at_the_start_what_would_keep_clients_out_or_let_every_page_in() {
    for (more, warned) in [
        ("", [false, false]),
        ("limits.memory = \"1MiB\"\n", [true, false]),
        ("http.listen = [\"0.0.0.0:0\"]\n", [false, true]),
        ("http.listen = [\"0.0.0.0:0\"]\nhttp.origins = [\"https://app.example.com\"]\n", [false, false]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = config(folder.path(), "");
        let base = std::fs::read_to_string(&file).unwrap();
        let kept = base.lines().filter(|line| !(line.contains("http.listen") && more.contains("http.listen")));
        std::fs::write(&file, kept.flat_map(|line| [line, "\n"]).collect::<String>() + more).unwrap();
        let daemon = Daemon::start(&file).await;
        let said = ["limits.memory is about", "http.origins is empty"].map(|text| daemon.log.contains(text));
        assert_eq!(said, warned, "{more}: {}", daemon.log);
    }
}
