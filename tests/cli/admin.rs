//! The commands that make one call and print its answer.

use rustix::process::Signal;
use serde_json::json;

use crate::support::{ADMIN_TOKEN, Follower, Gateway, READ_TOKEN, binary, pushgate, pushgate_with_input};

#[test]
fn send_takes_data_from_the_command_line_files_and_standard_input() {
    let gateway = Gateway::new();
    let mut alice = gateway.client("alice", &["--json"]);
    let file = gateway.write("data.json", "{\"from\":\n\"file\"}\n");
    let bytes = gateway.folder.path().join("bytes");
    std::fs::write(&bytes, [0, 159, 255]).unwrap();
    let (file, bytes) = (file.to_str().unwrap(), bytes.to_str().unwrap());

    let said = gateway.command(&["send", "alice", "[1.50, 9007199254740993]", "--type", "order", "--from", "bob"]).ok();
    assert!(said.starts_with("stored; id ") && said.ends_with(", handed to 1 live session\n"), "{said}");
    gateway.command(&["send", "alice", "--data-file", file, "--id", "mine"]).ok();
    gateway.command(&["send", "alice", "--binary-file", bytes]).ok();
    gateway.command(&["send", "alice", "--wait", "accepted"]).ok();
    pushgate_with_input(&gateway.args(&["send", "alice", "--data-file", "-"]), b" \"from stdin\" ").ok();
    pushgate_with_input(&gateway.args(&["send", "alice", "--binary-file", "-"]), b"abc").ok();

    let mut next = || alice.line();
    let first = next();
    assert!(first.contains(r#""data":[1.50, 9007199254740993]"#), "byte for byte: {first}");
    assert!(first.contains(r#""type":"order""#) && first.contains(r#""fromUserId":"bob""#), "{first}");
    let second = next();
    assert!(second.contains(r#""id":"mine""#) && second.contains(r#""data":{"from": "file"}"#), "{second}");
    assert!(next().contains(r#""dataBase64":"AJ//""#));
    assert!(next().contains(r#""data":null"#));
    assert!(next().contains(r#""data":"from stdin""#));
    assert!(next().contains(r#""dataBase64":"YWJj""#));
}

#[test]
fn send_says_what_became_of_it_as_proto_json() {
    let gateway = Gateway::new();
    let stored = gateway.command(&["send", "nobody-yet", "{}", "--id", "a", "--json"]).json();
    assert!(stored["offset"].as_str().unwrap().parse::<u64>().unwrap() > 0, "{stored}");
    let shown = json!({ "id": "a", "offset": stored["offset"], "outcome": "OUTCOME_STORED", "sessions": 0, "duplicate": false });
    assert_eq!(stored, shown, "a user that is not known is no error");
    let dropped = gateway.command(&["send", "nobody-yet", "{}", "--ttl", "0s"]).ok();
    assert!(dropped.starts_with("dropped: no session took it, and it is not stored; id "), "{dropped}");
}

#[test]
fn data_that_is_not_json_is_a_mistake_of_the_command_line() {
    // It is told before any gateway is looked for.
    for args in [&["send", "alice", "hello"][..], &["broadcast", "{\"a\":}"]] {
        pushgate(args).fails(2, "JSON: is not JSON: ");
    }
    pushgate_with_input(&["send", "alice", "--data-file", "-"], b"{").fails(2, "--data-file -: is not JSON: EOF");
    pushgate(&["send", "alice", "--data-file", "/nowhere/x.json"])
        .fails(1, "cannot read /nowhere/x.json: No such file");
    pushgate(&["broadcast"]).fails(2, "a broadcast needs its data");
}

#[test]
fn what_the_gateway_refuses_names_the_field() {
    let gateway = Gateway::new();
    let run = gateway.command(&["send", "", "{}", "--type", "auth_success", "--ttl", "400d"]);
    run.fails(1, "says INVALID_ARGUMENT: user_id: ");
    for field in ["notification.type: ", "notification.ttl: must be from 0 to store.max_ttl, 30days"] {
        run.fails(1, field);
    }
    gateway.command(&["close", "alice", "--code", "1001"]).fails(1, "code: must be 1000, 1008, 3000 to 3999");
}

#[test]
fn broadcast_reaches_who_is_connected() {
    let gateway = Gateway::new();
    let nobody = gateway.command(&["broadcast", "{}", "--json"]).json();
    assert_eq!((&nobody["outcome"], &nobody["sessions"]), (&json!("OUTCOME_DROPPED"), &json!(0)));
    let mut alice = gateway.client("alice", &[]);
    let mut bob = gateway.client("bob", &["--ack-mode", "transport"]);
    let said = gateway.command(&["broadcast", "\"soon\"", "--type", "system_message"]).ok();
    assert!(said.starts_with("accepted; id ") && said.ends_with(", handed to 2 sessions\n"), "{said}");
    for client in [&mut alice, &mut bob] {
        let line = client.line();
        assert!(line.contains("  system_message  \"soon\"  (id "), "{line}");
    }
}

#[test]
fn broadcast_reaches_whom_its_flags_say() {
    let gateway = Gateway::with("[auth]\nsession_claims = [\"team\"]");
    let mut phone = gateway.client("alice", &["--device", "phone"]);
    let _tablet = gateway.client("bob", &["--device", "tablet"]);
    let session = gateway.command(&["sessions", "--user", "bob", "--json"]).json();
    let (bob, since) = (&session["sessions"][0]["sessionId"], &session["sessions"][0]["connectedAt"]);
    let reached = |flags: &[&str]| {
        let said = gateway.command(&[&["broadcast", "{}", "--json"], flags].concat()).json();
        said["sessions"].as_u64().unwrap()
    };
    assert_eq!(reached(&["--device", "phone", "--device", ""]), 1);
    assert!(phone.line().contains("  notification  {}"));
    assert_eq!(reached(&["--exclude-session", bob.as_str().unwrap()]), 1);
    assert_eq!(reached(&["--exclude-user", "alice", "--connected-after", since.as_str().unwrap()]), 1);
    assert_eq!(reached(&["--connected-before", "2026-01-01T00:00:00Z"]), 0);
    assert_eq!(reached(&["--user-agent", "no-such-browser/*"]), 0);
    assert_eq!(reached(&["--user-agent", "*"]), 2);
    assert_eq!(reached(&["--claim", "team=ops"]), 0);

    let refused = gateway.command(&["broadcast", "{}", "--claim", "role=admin", "--device", "a b"]);
    refused.fails(1, "filter.devices: a device may only hold");
    refused.fails(1, "filter.claims: `role` is no claim that sessions keep; add its name to auth.session_claims");
    gateway.command(&["broadcast", "{}", "--durable", "--device", "x"]).fails(1, "filter.devices: is not for durable");
    for (flag, value, told) in [
        ("--claim", "team", "write NAME=TEXT"),
        ("--connected-after", "yesterday", "write a time such as 2026-01-31T09:35:00Z"),
    ] {
        pushgate(&["broadcast", "{}", flag, value]).fails(2, told);
    }
    pushgate(&["broadcast", "{}", "--claim", "a=1", "--claim", "a=2"]).fails(2, "--claim a: is given twice");
}

#[test]
fn publish_reaches_who_is_in_a_topic_and_topics_lists_it() {
    let gateway = Gateway::new();
    assert_eq!(gateway.command(&["topics"]).ok(), "no topics\n");
    let nobody = gateway.command(&["publish", "room.7", "{}", "--json"]).json();
    assert_eq!((&nobody["outcome"], &nobody["sessions"]), (&json!("OUTCOME_DROPPED"), &json!(0)));
    let token = |user: &str| {
        let claim = r#"topics=["room.7","news"]"#;
        let token = gateway.command(&["token", "user", "--sub", user, "--claim", claim]).ok();
        gateway.write(user, &token).to_str().unwrap().to_owned()
    };
    let url = gateway.url();
    let listen = |file: &str| {
        let args = ["listen", "--token-file", file, "--url", &url];
        Follower::start(binary(&gateway.args(&args)), "connected to ")
    };
    let (alice, bob) = (token("alice"), token("bob"));
    let (mut alice, mut bob) = (listen(&alice), listen(&bob));
    let _other = gateway.client("carol", &[]);
    let said = gateway.command(&["publish", "room.7", "\"soon\"", "--type", "system_message", "--from", "bob"]).ok();
    assert!(said.starts_with("accepted; id ") && said.ends_with(", handed to 2 sessions\n"), "{said}");
    for client in [&mut alice, &mut bob] {
        let line = client.line();
        assert!(
            line.contains("  system_message  \"soon\"  (id ") && line.ends_with(", from bob, topic room.7)"),
            "{line}"
        );
    }
    let said = gateway.command(&["broadcast", "1", "--topic", "news"]).ok();
    assert!(said.ends_with(", handed to 2 sessions\n"), "{said}");
    assert_eq!(
        gateway.command(&["topics"]).ok(),
        "TOPIC   SESSIONS  USERS  KEPT\nnews           2      2     -\nroom.7         2      2     -\n"
    );
    assert_eq!(gateway.command(&["topics", "--prefix", "r"]).ok().lines().count(), 2);
    let news = json!({ "topic": "news", "sessions": 2, "users": 2, "durable": false, "records": 0, "bytes": "0" });
    let one = json!({ "topics": [news], "nextPageToken": "" });
    assert_eq!(gateway.command(&["topics", "news", "--json"]).json(), one);
    let members = gateway.command(&["sessions", "--topic", "news", "--json"]).json();
    assert_eq!(members["sessions"].as_array().unwrap().len(), 2, "{members}");
    gateway.command(&["publish", "", "1"]).fails(1, "topic: a topic must have 1 to 200 bytes");
    gateway.command(&["publish", "news"]).fails(2, "publish needs its data");
    gateway.over_tcp(&["publish", "news", "1"], READ_TOKEN).fails(77, "lacks the scope `send`");
    assert!(gateway.over_tcp(&["topics"], READ_TOKEN).ok().contains("news"));
}

#[test]
fn sessions_are_listed_filtered_and_closed() {
    let gateway = Gateway::new();
    assert_eq!(gateway.command(&["sessions"]).ok(), "no sessions\n");
    let phone = gateway.client("alice", &["--device", "phone"]);
    let unnamed = gateway.client("alice", &[]);
    let bob = gateway.client("bob", &["--device", "a-device-with-a-rather-long-name-that-has-to-be-cut-somewhere"]);

    let table = gateway.command(&["sessions"]).ok();
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.starts_with("SESSION ") && table.contains("  phone") && table.contains('…'), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
    let listed = gateway.command(&["sessions", "--json"]).json();
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 3);

    let one = gateway.command(&["sessions", "--user", "alice", "--device", "", "--json"]).json();
    let [session] = one["sessions"].as_array().unwrap().as_slice() else { panic!("{one}") };
    assert_eq!((&session["userId"], &session["device"]), (&json!("alice"), &json!("")));
    assert!(session["bytesSent"].is_string() && session["state"] == "SESSION_STATE_LIVE", "{session}");
    let id = session["sessionId"].as_str().unwrap();
    let here = gateway.command(&["sessions", "--address", "127.0.0.0/8", "--json"]).json();
    assert_eq!(here["sessions"].as_array().unwrap().len(), 3);
    assert_eq!(gateway.command(&["sessions", "--address", "10.0.0.0/8"]).ok(), "no sessions\n");
    gateway.command(&["sessions", "--address", "home"]).fails(1, "address: must be an IP address, such as 10.1.2.3");
    let same = gateway.command(&["sessions", "--session", id, "--json"]).json();
    assert_eq!(same["sessions"][0]["sessionId"], session["sessionId"]);

    assert_eq!(gateway.command(&["close", "alice", "--session", id]).ok(), "closed 1 session\n");
    unnamed.end().fails(0, "closed on purpose: 1000");
    let run =
        gateway.command(&["close", "alice", "--device", "phone", "--code", "1008", "--reason", "no more", "--json"]);
    assert_eq!(run.json(), json!({ "closed": 1 }));
    phone.end().fails(1, "closed by an operator: 1008 no more");
    assert_eq!(gateway.command(&["close", "alice"]).ok(), "closed 0 sessions\n", "a user without sessions is no error");
    drop(bob);
}

#[test]
fn users_who_are_online_are_listed() {
    let gateway = Gateway::with("[auth]\npublic_claims = [\"team\"]");
    assert_eq!(gateway.command(&["users"]).ok(), "nobody is online\n");
    let _clients =
        [gateway.client("alice", &[]), gateway.client("alice", &["--device", "phone"]), gateway.client("bob", &[])];
    let table = gateway.command(&["users"]).ok();
    assert!(table.starts_with("USER ") && table.lines().count() == 3, "{table}");
    let listed = gateway.command(&["users", "--json"]).json();
    let users: Vec<_> =
        listed["users"].as_array().unwrap().iter().map(|user| (&user["userId"], &user["sessions"])).collect();
    assert_eq!(users, [(&json!("alice"), &json!(2)), (&json!("bob"), &json!(1))]);
    assert!(listed["users"][0]["since"].as_str().unwrap().ends_with('Z'), "{listed}");
}

#[test]
fn the_log_s_filter_is_set_and_the_one_before_is_told() {
    let gateway = Gateway::new();
    assert_eq!(
        gateway.command(&["log", "info,pushgate::store=debug"]).ok(),
        "logs info,pushgate::store=debug; before: info\n"
    );
    let previous = gateway.command(&["log", "info", "--json"]).json();
    assert_eq!(previous, json!({ "previous": "info,pushgate::store=debug" }));
    gateway.command(&["log", "info,pushgate=loud"]).fails(1, "says INVALID_ARGUMENT: filter: `pushgate=loud`: ");
    gateway.over_tcp(&["log", "off"], READ_TOKEN).fails(77, "lacks the scope `admin`");
    pushgate(&["log"]).fails(2, "<FILTER>");
}

#[test]
fn a_reload_says_what_changed_and_what_needs_a_restart() {
    let gateway = Gateway::new();
    assert_eq!(gateway.command(&["reload"]).ok(), "nothing is other than before\n");
    let text = std::fs::read_to_string(&gateway.file).unwrap();
    std::fs::write(&gateway.file, format!("limits.connections = 7\nevents.buffer = 1024\n{text}")).unwrap();
    let said = gateway.command(&["reload"]).ok();
    assert_eq!(said, "changed: limits.connections: 100000 → 7\nneeds a restart: events.buffer: 65536 → 1024\n");
    let again = gateway.command(&["reload", "--json"]).json();
    let buffer = json!({ "key": "events.buffer", "old": "65536", "new": "1024" });
    assert_eq!(again, json!({ "changed": [], "needsRestart": [buffer], "warnings": [] }));
    std::fs::write(&gateway.file, format!("limits.connections = -1\n{text}")).unwrap();
    gateway.over_tcp(&["reload"], READ_TOKEN).fails(77, "lacks the scope `admin`");
}

/// What an operator does who writes to the file of a gateway that runs, well and badly.
#[test]
fn a_file_that_is_wrong_is_refused_in_the_words_of_config_check_and_changes_nothing() {
    let gateway = Gateway::new();
    let good = std::fs::read_to_string(&gateway.file).unwrap();
    // A caller that is only in the file now.
    let new = "one-caller-more";
    let block = format!("[[grpc.tokens]]\nname = \"more\"\ntoken = \"{new}\"\nscopes = [\"read\"]\n");
    gateway.over_tcp(&["status"], new).fails(77, "UNAUTHENTICATED");
    let taken = good.clone() + &block;
    std::fs::write(&gateway.file, &taken).unwrap();
    assert!(gateway.command(&["reload"]).ok().starts_with("changed: grpc.tokens: "));
    gateway.over_tcp(&["status"], new).ok();

    for bad in ["\n[heartbeat]\ninterval = \"soon\"\n", "\n[heartbeat]\ninterval = \"0s\"\ntimeout = \"0s\"\n"] {
        std::fs::write(&gateway.file, good.clone() + bad).unwrap();
        let checked = gateway.command(&["config", "check"]);
        assert!(checked.code == 78 && checked.stderr.contains("heartbeat.interval"), "{checked:?}");
        for how in [&["reload"][..], &["reload", "--json"]] {
            let refused = gateway.over_tcp(how, ADMIN_TOKEN);
            assert_eq!((refused.code, refused.stdout.as_str()), (78, ""), "{refused:?}");
            let (first, lines) = refused.stderr.split_once('\n').unwrap();
            assert!(
                first.ends_with(
                    "says FAILED_PRECONDITION: the configuration is not taken, and the one from before stays:"
                )
            );
            assert_eq!(lines, checked.stderr);
            // With the file for its address, too: what cannot be understood at all is said before anybody is asked.
            let refused = gateway.command(how);
            assert!(refused.code == 78 && refused.stderr.ends_with(&checked.stderr), "{refused:?}");
        }
        gateway.over_tcp(&["status"], new).ok();
    }
    std::fs::remove_file(&gateway.file).unwrap();
    let gone = gateway.over_tcp(&["reload"], ADMIN_TOKEN);
    assert!(gone.code == 78 && gone.stderr.contains("cannot be read"), "{gone:?}");
    gateway.over_tcp(&["status"], new).ok();
    std::fs::write(&gateway.file, &taken).unwrap();
    assert_eq!(gateway.command(&["reload"]).ok(), "nothing is other than before\n");
}

#[test]
fn status_is_a_page_or_a_document() {
    let gateway = Gateway::new();
    let _alice = gateway.client("alice", &[]);
    let page = gateway.command(&["status"]).ok();
    assert!(page.starts_with(concat!("pushgate ", env!("CARGO_PKG_VERSION"), " on ")), "{page}");
    for part in [
        "1 now of ",
        "1 user, 1 session",
        "sled, healthy",
        "alerts       none",
        &format!("http {}", gateway.address("http")),
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let document = gateway.command(&["status", "--json"]).json();
    assert_eq!(document["connections"], json!({ "now": 1, "peak": 1, "total": "1" }));
    assert_eq!(document["draining"], json!(false), "fields at their default are there");
    assert!(document["uptime"].as_str().unwrap().ends_with('s'), "{document}");
    assert!(
        document["limits"]["messageBytes"] == "65536" && document["errors"]["auth_failed"].is_string(),
        "{document}"
    );
}

#[test]
fn without_a_gateway_every_command_ends_with_69() {
    let folder = tempfile::tempdir().unwrap();
    let file = crate::support::write_configuration(folder.path(), "");
    let socket = format!("unix:{}", folder.path().join("admin.sock").display());
    for args in [
        &["send", "alice", "{}"][..],
        &["broadcast", "{}"],
        &["close", "alice"],
        &["status"],
        &["status", "--watch"],
        &["sessions"],
        &["users"],
        &["log", "info"],
        &["reload"],
        &["topics"],
        &["publish", "news", "{}"],
        &["events"],
        &["health"],
    ] {
        let run = pushgate(&[args, &["--config", &file]].concat());
        run.fails(69, &format!("no gateway answers at {socket} (grpc.listen of {file}): "));
        run.fails(69, "start it with `pushgate serve`");
    }
}

#[test]
fn a_token_opens_what_its_scopes_say() {
    let gateway = Gateway::new();
    assert!(gateway.over_tcp(&["status"], READ_TOKEN).ok().contains("serving"));
    assert!(gateway.over_tcp(&["send", "alice", "{}"], &format!("{ADMIN_TOKEN}\n")).ok().starts_with("stored"));
    for args in [&["send", "alice", "{}"][..], &["broadcast", "{}"], &["close", "alice"], &["events"]] {
        let run = gateway.over_tcp(args, READ_TOKEN);
        run.fails(77, "says PERMISSION_DENIED: caller `reader` lacks the scope `");
    }
    for args in [&["send", "alice", "{}"][..], &["status"], &["sessions"], &["events"]] {
        let wrong = gateway.over_tcp(args, "wrong");
        wrong.fails(77, "says UNAUTHENTICATED: ");
        wrong.fails(77, "the token is not one of grpc.tokens there");
        assert!(!wrong.stderr.contains("wrong"), "no token is shown: {wrong:?}");
        let none = pushgate(&[args, &["--grpc", gateway.address("grpc")]].concat());
        none.fails(77, "give it with --token-file FILE");
    }
    pushgate(&["status", "--grpc", gateway.address("grpc"), "--token-file", "/nowhere/t"])
        .fails(1, "/nowhere/t: No such");
    pushgate(&["status", "--grpc", gateway.address("http")]).fails(69, "the connection to ");
    let file = gateway.write("token", ADMIN_TOKEN);
    let away = pushgate(&["status", "--grpc", "gateway.example:7001", "--token-file", file.to_str().unwrap()]);
    away.fails(2, "would cross the network");
}

#[test]
fn the_environment_names_the_gateway_too() {
    let gateway = Gateway::new();
    let file = gateway.write("token", READ_TOKEN);
    let mut command = crate::support::binary(&["status", "--json"]);
    command.env("PUSHGATE_GRPC", gateway.address("grpc")).env("PUSHGATE_TOKEN_FILE", file);
    assert_eq!(crate::support::finish(command.spawn().unwrap()).json()["users"], json!(0));
    // And the configuration's own variables lead to its socket.
    let mut command = crate::support::binary(&["health"]);
    let socket = gateway.folder.path().join("admin.sock");
    command.env("PUSHGATE_GRPC__LISTEN", format!("[\"unix:{}\"]", socket.display()));
    assert_eq!(crate::support::finish(command.spawn().unwrap()).ok(), "serving\n");
}

#[test]
fn health_needs_no_token_and_tells_a_gateway_that_stops() {
    let gateway = Gateway::with("[shutdown]\nlb_delay = \"12s\"");
    assert_eq!(gateway.command(&["health", "--json"]).json(), json!({ "status": "SERVING" }));
    let tcp = ["health", "--grpc", gateway.address("grpc"), "--service", "pushgate.v1.Gateway"];
    assert_eq!(pushgate(&tcp).ok(), "serving\n");
    gateway.command(&["health", "--service", "nothing"]).fails(69, "says NOT_FOUND");
    gateway.signal(Signal::TERM);
    // It stays up for `lb_delay`; from when it says so is its own affair.
    let run = std::iter::repeat_with(|| gateway.command(&["health"])).find(|run| run.code != 0).unwrap();
    run.fails(69, "is not serving: NOT_SERVING");
}

#[test]
fn a_gateway_that_does_not_answer_is_not_waited_for_beyond_the_timeout() {
    let gateway = Gateway::new();
    gateway.signal(Signal::STOP);
    gateway.command(&["status", "--timeout", "200ms"]).fails(1, "--timeout gives it longer");
    gateway.command(&["health", "--timeout", "200ms"]).fails(69, "--timeout gives it longer");
}
