//! `doctor`: what it finds right and what wrong.

use std::net::TcpListener;

use serde_json::Value;

use crate::support::{Gateway, READ_TOKEN, pushgate, write_configuration};

/// Name and status of each finding whose message holds `text`.
fn found<'a>(findings: &'a Value, text: &str) -> Vec<(&'a str, &'a str)> {
    let checks = findings["checks"].as_array().unwrap().iter();
    let matching = checks.filter(|check| check["message"].as_str().unwrap().contains(text));
    matching.map(|check| (check["check"].as_str().unwrap(), check["status"].as_str().unwrap())).collect()
}

#[test]
fn a_running_gateway_is_well_and_a_message_goes_the_whole_way() {
    let gateway = Gateway::new();
    let text = gateway.command(&["doctor"]).ok();
    assert!(text.contains("ok    round trip     connected, sent, received and confirmed in "), "{text}");
    assert!(!text.contains("FAIL"), "{text}");
    let findings = gateway.command(&["doctor", "--json"]).json();
    assert_eq!(found(&findings, "pushgate.toml: valid"), [("configuration", "ok")]);
    assert_eq!(found(&findings, "data: held by the running gateway"), [("store", "ok")]);
    assert_eq!(found(&findings, "admin.sock: held by the running gateway"), [("grpc.listen", "ok")]);
    // What is confirmed is deleted lazily.
    let empty = || gateway.command(&["status", "--json"]).json()["pending"]["count"] == "0";
    assert!(std::iter::repeat_with(empty).take(1000).any(|empty| empty), "it leaves nothing behind");
}

#[test]
fn before_the_first_start_all_is_free_and_no_gateway_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let file = write_configuration(folder.path(), "");
    let findings = pushgate(&["doctor", "--json", "--config", &file]).json();
    assert_eq!(found(&findings, "no gateway answers at unix:"), [("gateway", "warn")]);
    assert_eq!(found(&findings, "data: will be made"), [("store", "ok")]);
    assert!(found(&findings, "admin.sock: free").contains(&("grpc.listen", "ok")));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was made");
}

#[test]
fn what_is_wrong_fails_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().to_string();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let file = write_configuration(folder.path(), "");
    let mut text = std::fs::read_to_string(&file).unwrap();
    text = text.replacen("127.0.0.1:0", &port, 1).replace("/data\"", "/file/data\"");
    text = text.replace("algorithm = \"HS256\"", "algorithm = \"ES256\"");
    std::fs::write(&file, text).unwrap();
    let run = pushgate(&["doctor", "--json", "--config", &file]);
    run.fails(1, "3 checks failed");
    let findings: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(found(&findings, "auth.keys[0]: secret does not go with ES256"), [("configuration", "fail")]);
    assert_eq!(found(&findings, &format!("{port}: in use by another process")), [("http.listen", "fail")]);
    assert_eq!(found(&findings, "is not a folder; set store.path"), [("store", "fail")]);

    let run = pushgate(&["doctor", "--config", "/nowhere/pushgate.toml"]);
    run.fails(1, "1 check failed");
    assert!(run.stdout.starts_with("FAIL  configuration  /nowhere/pushgate.toml: cannot be read"), "{run:?}");
}

#[test]
fn a_store_and_a_socket_that_another_holds_are_told() {
    let gateway = Gateway::new();
    // Looked for elsewhere, the gateway that holds the store is another process like any.
    let elsewhere = gateway.folder.path().join("other.sock");
    let other = std::os::unix::net::UnixListener::bind(&elsewhere).unwrap();
    drop(other);
    let target = format!("unix:{}", elsewhere.display());
    let run = gateway.command(&["doctor", "--json", "--grpc", &target]);
    run.fails(1, "2 checks failed");
    let findings: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(found(&findings, "data: held by another process"), [("store", "fail")]);
    assert_eq!(found(&findings, "admin.sock: another process listens there"), [("grpc.listen", "fail")]);
}

#[test]
fn a_caller_who_may_not_send_is_told_so() {
    let gateway = Gateway::new();
    let run = gateway.over_tcp(&["doctor", "--json", "--config", &gateway.file], READ_TOKEN);
    run.fails(1, "1 check failed");
    let findings: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(found(&findings, "lacks the scope `events`"), [("round trip", "fail")]);
}
