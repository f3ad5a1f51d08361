//! `backup` and `store …`: a store copied while it is served, looked at, written out, read in, made small.

use std::{
    fs,
    path::{Path, PathBuf},
};

use pushgate::{
    clock::Clock,
    store::{Config, Counters, Hold, Op, Store},
    types::{LogId, Offset, UserId},
};
use serde_json::Value;

use crate::support::{ADMIN_TOKEN, Gateway, READ_TOKEN, Run, pushgate, pushgate_with_input};

/// A gateway with something to keep: JSON as it was written, a payload in chunks, bytes, an unnamed device that is gone.
fn filled() -> Gateway {
    let gateway = Gateway::new();
    let lines = gateway.write("lines.json", "{\n\"b\": 1.0,\"b\":2}");
    let large = gateway.write("large.json", &format!("\"{}\"", "x".repeat(20_000)));
    let bytes = gateway.folder.path().join("bytes");
    fs::write(&bytes, [0, 159, 255]).unwrap();
    for (flag, file) in [("--data-file", &lines), ("--data-file", &large), ("--binary-file", &bytes)] {
        gateway.command(&["send", "alice", flag, file.to_str().unwrap()]).ok();
    }
    gateway.command(&["send", "bob", r#"{"a": 1.0, "a": 2}"#, "--type", "order", "--from", "shop"]).ok();
    let url = gateway.url();
    gateway.command(&["send", "carol", "1"]).ok();
    gateway.command(&["listen", "--user", "carol", "--url", &url, "--count", "1", "--for", "30s"]).ok();
    gateway
}

/// Runs `store` over a folder.
fn store(command: &[&str], path: &Path) -> Run {
    pushgate(&[&["store"], command, &["--path", path.to_str().unwrap()]].concat())
}

fn whole(path: &Path) -> Value {
    let report = store(&["check", "--json"], path).json();
    assert_eq!((&report["damaged"], &report["problems"]), (&"0".into(), &Value::Array(Vec::new())), "{report}");
    report
}

/// An export, without the moment it was made at.
fn exported(path: &Path) -> Vec<String> {
    let text = store(&["export"], path).ok();
    let at = text.find(",\"exportedAt\"").unwrap();
    let (head, rest) = text.split_once('\n').unwrap();
    [&head[..at]].into_iter().chain(rest.lines()).map(str::to_owned).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_backup_of_a_running_gateway_is_a_store_that_a_gateway_can_be_started_with() {
    let gateway = filled();
    let copy = gateway.folder.path().join("copy");
    let said = gateway.command(&["backup", path_text(&copy)]).ok();
    assert!(said.starts_with(&format!("{}: 4 pending notifications, ", copy.display())), "{said}");
    gateway.command(&["send", "alice", "\"after\""]).ok();
    assert_eq!(whole(&copy)["pending"]["count"], "4");
    gateway.command(&["backup", path_text(&copy)]).fails(1, "is there already; name a folder that is not");
    gateway.command(&["backup", "/nowhere/copy"]).fails(1, "path: the folder /nowhere cannot be found");
    let second = gateway.folder.path().join("second");
    gateway.over_tcp(&["backup", path_text(&second)], READ_TOKEN).fails(77, "lacks the scope `admin`");
    let answer = gateway.over_tcp(&["backup", path_text(&second), "--json"], ADMIN_TOKEN).json();
    assert_eq!(answer["records"], "5", "{answer}");
    let of_the_store = |path: &Path| exported(path)[0].split(",\"mark\":").next().unwrap().to_owned();
    let line = of_the_store(&copy);
    assert_eq!(line, of_the_store(&second), "the same epoch");

    // Back to it: stop, move it where the store was, start.
    let file = gateway.file.clone();
    let folder = gateway.stop();
    let data = folder.path().join("data");
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&copy, &data).unwrap();
    let restored = Gateway::start(folder, &file);
    let page = restored.command(&["status", "--json"]).json();
    assert_eq!(page["pending"]["count"], "4");
    assert!(line.contains(page["storeEpoch"].as_str().unwrap()));
    let url = restored.url();
    let got = restored.command(&["listen", "--user", "bob", "--url", &url, "--count", "1", "--for", "30s"]).ok();
    assert!(got.contains(r#"{"a": 1.0, "a": 2}"#), "{got}");
}

#[test]
fn a_store_goes_through_text_and_back_unchanged() {
    let gateway = filled();
    let file = gateway.file.clone();
    let (folder, listed) = (gateway.stop(), |folder: &Path| names(folder));
    let (data, at) = (folder.path().join("data"), |name: &str| folder.path().join(name));
    let before = exported(&data);
    let all = before.join("\n");
    for text in [r#""data":{"a": 1.0, "a": 2}}"#, r#""dataText":"{\n\"b\": 1.0,\"b\":2}""#, r#""dataBase64":"AJ//""#] {
        assert!(all.contains(text), "{text}: {all}");
    }
    let carol: Vec<_> = before.iter().filter(|line| line.contains("carol")).collect();
    assert!(
        carol.len() == 2 && carol[1].starts_with(r#"{"device":{"user":"carol","device":"","cursor":1"#),
        "{carol:?}"
    );

    // By the configuration, into a file, and by a pipe.
    let text = at("store.jsonl");
    let run = pushgate(&["store", "export", path_text(&text), "--config", &file]);
    assert_eq!(run.ok(), format!("exported {} rows to {}\n", before.len() - 2, text.display()));
    pushgate(&["store", "export", path_text(&text), "--config", &file]).fails(1, "File exists");
    let imported = at("imported");
    let read = store(&["import", path_text(&text), "--json"], &imported).json();
    assert_eq!(read["rows"], (before.len() - 2).to_string());
    assert_eq!(exported(&imported), before);
    whole(&imported);
    let piped = at("piped");
    let args = ["store", "import", "-", "--engine", "sled", "--path", path_text(&piped)];
    pushgate_with_input(&args, &fs::read(&text).unwrap()).ok();
    assert_eq!(exported(&piped), before);

    // One mailbox; what is not whole; what is there already.
    let bob = store(&["export", "--user", "bob"], &data).ok();
    assert!(bob.lines().count() == 4 && !bob.contains("alice"), "{bob}");
    store(&["import", path_text(&text)], &imported).fails(1, "is not empty: a sled store of");
    let cut = fs::read_to_string(&text).unwrap();
    let cut = cut.lines().take(3).collect::<Vec<_>>().join("\n") + "\n";
    let run = pushgate_with_input(&["store", "import", "-", "--path", path_text(&at("cut"))], cut.as_bytes());
    run.fails(1, "line 4: the export is cut off");
    assert_eq!(
        listed(folder.path()).into_iter().filter(|name| name.starts_with("cut") || name.contains(".importing")).count(),
        0,
        "nothing is left of it"
    );
}

#[test]
fn compacting_gives_room_back_and_loses_nothing() {
    let gateway = filled();
    let large = gateway.write("large.json", &format!("\"{}\"", "y".repeat(150_000)));
    let url = gateway.url();
    for _ in 0..20 {
        gateway.command(&["send", "dora", "--data-file", path_text(&large)]).ok();
    }
    gateway.command(&["listen", "--user", "dora", "--url", &url, "--count", "20", "--for", "60s"]).ok();
    let empty = || gateway.command(&["status", "--json"]).json()["pending"]["count"] == "4";
    assert!(std::iter::repeat_with(empty).take(1000).any(|empty| empty), "what was confirmed goes");
    let file = gateway.file.clone();
    let folder = gateway.stop();
    let data = folder.path().join("data");
    let (before, beside) = (exported(&data), names(folder.path()));
    let done = pushgate(&["store", "compact", "--json", "--config", &file]).json();
    let bytes = |name: &str| done[name].as_str().unwrap().parse::<u64>().unwrap();
    assert!(bytes("bytesAfter") < bytes("bytesBefore") / 2, "{done}");
    assert_eq!(exported(&data), before);
    assert_eq!(names(folder.path()), beside, "nothing is left beside it");
    let restored = Gateway::start(folder, &file);
    assert_eq!(restored.command(&["status", "--json"]).json()["pending"]["count"], "4");
}

#[test]
fn a_store_is_looked_at_by_its_configuration_or_its_folder() {
    let gateway = filled();
    let data = gateway.folder.path().join("data");
    let in_use = format!("the store at {} is in use by another process", data.display());
    for command in [&["check"][..], &["stats"], &["export"], &["compact"]] {
        store(command, &data).fails(1, &in_use);
    }
    let file = gateway.file.clone();
    let folder = gateway.stop();
    let text = pushgate(&["store", "check", "--config", &file]).ok();
    assert!(text.contains("no damage found") && text.contains("4 notifications"), "{text}");
    let text = pushgate(&["store", "stats", "--config", &file]).ok();
    assert!(text.contains("sled, format 3, ") && text.contains("alice"), "{text}");
    let stats = store(&["stats", "--json"], &data).json();
    assert_eq!(
        (&stats["users"], &stats["devices"], &stats["pending"]["count"]),
        (&"3".into(), &"1".into(), &"4".into())
    );
    assert_eq!(
        (&stats["topByCount"][0]["userId"], &stats["topByBytes"][0]["userId"]),
        (&"alice".into(), &"alice".into())
    );
    let nothing = folder.path().join("nothing");
    store(&["check"], &nothing).fails(1, "there is no store at ");
    assert!(!nothing.exists());
    pushgate(&["store", "check", "--config", "/nowhere/pushgate.toml"]).fails(78, "cannot be read");
}

#[test]
fn a_damaged_store_is_told_and_ends_with_1() {
    let gateway = filled();
    let folder = gateway.stop();
    let data = folder.path().join("data");
    let text = store(&["export"], &data).ok();
    let broken: PathBuf = folder.path().join("broken");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("db"), "this is no store of sled's at all").unwrap();
    let run = store(&["check"], &broken);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.lines().last().unwrap().contains(&format!("the store at {} ", broken.display())), "{run:?}");
    // Counters that disagree with what is there, as a bug of the daemon would write them.
    let user = UserId::parse("alice").unwrap();
    let opened = Store::open(&Config { path: data.clone(), ..Config::default() }, Clock::system()).unwrap();
    let counters = Counters { count: 7, bytes: 8, last: Offset::new(9), lost: Offset::ZERO };
    let (log, hold) = (LogId::User(user), Hold::default());
    opened.stage_in(
        opened.generation(),
        Op::Delete { log, places: Vec::new(), emptied: Vec::new(), counters, hold, done: None },
    );
    opened.close().unwrap();
    drop(opened);
    let run = store(&["check"], &data);
    run.fails(1, "is damaged: 2 problems; restore a backup");
    let said = "DAMAGED  user alice: its counters say 7 notifications of 8 bytes, there are 3 of ";
    assert!(run.stdout.contains(said) && run.stdout.contains("DAMAGED  user alice, offset "), "{run:?}");
    let run = store(&["check", "--json"], &data);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((run.code, &report["damaged"], &report["problems"][0]["userId"]), (1, &"2".into(), &"alice".into()));
    // Offsets that the mark is not above: rows that a restart would give again.
    let mark = text.find("\"mark\":").unwrap() + 7;
    let low = format!("{}1{}", &text[..mark], &text[mark + 16..]);
    let refused =
        pushgate_with_input(&["store", "import", "-", "--path", path_text(&folder.path().join("low"))], low.as_bytes());
    refused.fails(1, "line 2: the offset ");
}
