//! Keeps the picture in ARCHITECTURE.md true: reads every file under `src` and fails where one reaches for a floor that
//! it must not know.
//!
//! The rule: a room (a file or folder right under `src`) uses rooms of lower floors; rooms of one floor do not use each
//! other. Floor 0 is one room in three parts. What else is allowed within a floor is listed in [`WITHIN_A_FLOOR`], each
//! with its reason, and fails as soon as nothing needs it any more.
//!
//! A use is any path that starts at `crate`, `self`, `super` or `pushgate`, in a `use` or in the middle of the code,
//! groups unfolded. Comments, strings and what stands under `#[cfg(test)]` do not count, nor do files called `tests.rs`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The floors from the ground up.
const FLOORS: [&[&str]; 8] = [
    // Data and codecs only.
    &["types", "limits", "protocol", "planted"],
    // Ground services.
    &["clock", "lifecycle", "metrics", "net", "trace"],
    // Services: each knows no other.
    &["store", "auth"],
    // One session, without a socket.
    &["session"],
    // Users, devices and their sessions.
    &["hub"],
    // The admin API, whatever carries it.
    &["api"],
    // Transports.
    &["ws", "grpc", "http", "otlp", "client", "stress"],
    // The application.
    &["telemetry", "systemd", "config", "dev", "server", "cli", "main", "lib"],
];

/// What rooms of one floor may use of each other: who, whom, why.
const WITHIN_A_FLOOR: [(&str, &str, &str); 16] = [
    ("types", "limits", "identifiers are checked against their bounds"),
    ("types", "protocol", "a type's name must not be one of the gateway's own"),
    ("limits", "types", "the section [limits] is made of sizes, counts and spans"),
    ("protocol", "types", "messages carry identifiers, offsets and payloads"),
    ("protocol", "limits", "a decoder knows its bounds"),
    ("metrics", "clock", "rates are taken over moments; the clock is the lowest room of its floor"),
    ("trace", "clock", "spans begin and end at moments; the clock is the lowest room of its floor"),
    ("config", "telemetry", "the section [log] lives beside its component, like every other"),
    ("server", "config", "it is built from the whole configuration"),
    ("cli", "config", "it reads the configuration"),
    ("cli", "server", "it runs the daemon"),
    ("server", "systemd", "it says when it is ready and when it stops"),
    ("cli", "systemd", "it says why it does not start"),
    ("dev", "config", "it sets keys of the configuration"),
    ("cli", "dev", "it serves a first look with --dev"),
    ("cli", "telemetry", "it sets up logging before the daemon starts"),
];

/// The most lines of a file before its tests.
const LINES_MAX: usize = 450;
/// Files that are longer, and how long they may be until they are split.
const LONGER: [(&str, usize); 0] = [];
const MAIN_LINES_MAX: usize = 45;

fn floor_of(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// A piece of source that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `::`
    Path,
    Sign(char),
}

type Tokens = Vec<(usize, Token)>;

/// Words and signs with their lines; comments, strings and characters left out.
fn tokens(source: &str) -> Tokens {
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let (mut found, mut line, mut i) = (Vec::new(), 1, 0);
    while i < chars.len() {
        let start = i;
        let c = at(i);
        if c == '/' && at(i + 1) == '/' {
            i += chars[i..].iter().take_while(|c| **c != '\n').count();
        } else if c == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                match (at(i), at(i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
                if depth == 0 || i >= chars.len() {
                    break;
                }
            }
        } else if let Some(end) = raw_string_end(&chars, i) {
            i = end;
        } else if c == '"' {
            i += 1;
            while i < chars.len() && at(i) != '"' {
                i += 1 + usize::from(at(i) == '\\');
            }
            i += 1;
        } else if c == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\'') {
            i += 2 + usize::from(at(i + 1) == '\\');
            while i < chars.len() && at(i) != '\'' {
                i += 1;
            }
            i += 1;
        } else if c.is_alphanumeric() || c == '_' {
            i += chars[i..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').count();
            found.push((line, Token::Word(chars[start..i].iter().collect())));
        } else if c == ':' && at(i + 1) == ':' {
            i += 2;
            found.push((line, Token::Path));
        } else {
            i += 1;
            if !c.is_whitespace() {
                found.push((line, Token::Sign(c)));
            }
        }
        let end = i.min(chars.len());
        line += chars[start..end].iter().filter(|c| **c == '\n').count();
    }
    found
}

/// Where the raw string ends that starts at `start`, if one does.
fn raw_string_end(chars: &[char], start: usize) -> Option<usize> {
    let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
    if start.checked_sub(1).is_some_and(|before| is_word(&chars[before])) {
        return None;
    }
    let rest = &chars[start..];
    let rest = rest.strip_prefix(&['b']).or_else(|| rest.strip_prefix(&['c'])).unwrap_or(rest).strip_prefix(&['r'])?;
    let hashes = rest.iter().take_while(|c| **c == '#').count();
    let body = rest[hashes..].strip_prefix(&['"'])?;
    let from = chars.len() - body.len();
    let closing: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let end = body.windows(closing.len()).position(|window| window == closing)?;
    Some(from + end + closing.len())
}

/// Without what stands under `#[cfg(test)]`.
fn without_tests(tokens: &[(usize, Token)]) -> Tokens {
    let attribute = [
        Token::Sign('#'),
        Token::Sign('['),
        Token::Word("cfg".into()),
        Token::Sign('('),
        Token::Word("test".into()),
        Token::Sign(')'),
        Token::Sign(']'),
    ];
    let mut kept = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        if !tokens[i..].iter().map(|(_, token)| token).take(attribute.len()).eq(&attribute) {
            kept.push(tokens[i].clone());
            i += 1;
            continue;
        }
        // The item ends at its semicolon or with its braces; a field at its comma, or where its struct ends.
        i += attribute.len();
        let is_field = matches!(tokens.get(i..i + 2), Some([(_, Token::Word(_)), (_, Token::Sign(':'))]));
        let (mut braces, mut others) = (0, 0);
        while i < tokens.len() {
            let token = &tokens[i].1;
            if is_field && braces == 0 && *token == Token::Sign('}') {
                break;
            }
            others += i32::from(matches!(token, Token::Sign('(' | '[' | '<')));
            others -= i32::from(matches!(token, Token::Sign(')' | ']' | '>')));
            if is_field && braces == 0 && others == 0 && *token == Token::Sign(',') {
                i += 1;
                break;
            }
            braces += usize::from(*token == Token::Sign('{'));
            let closed = *token == Token::Sign('}');
            braces -= usize::from(closed);
            i += 1;
            if braces == 0 && (closed || *token == Token::Sign(';')) {
                break;
            }
        }
    }
    kept
}

/// A path as it is used, from the root of the crate (`crate::…`) or as written.
type Used = (usize, Vec<String>);

/// Every path of a file in `module` (its place in the crate), groups unfolded.
fn paths(tokens: &[(usize, Token)], module: &[String]) -> Vec<Used> {
    let mut found = Vec::new();
    // Inline modules around the place, and which braces are theirs.
    let mut place = module.to_vec();
    let mut braces = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        match &tokens[i].1 {
            Token::Word(word) if word == "mod" => {
                if let (Some((_, Token::Word(name))), Some((_, Token::Sign('{')))) =
                    (tokens.get(i + 1), tokens.get(i + 2))
                {
                    place.push(name.clone());
                    braces.push(true);
                    i += 3;
                } else {
                    i += 1;
                }
            }
            Token::Word(_) => i = unfold(tokens, i, &[], &place, &mut found),
            Token::Sign('{') => {
                braces.push(false);
                i += 1;
            }
            Token::Sign('}') => {
                if braces.pop() == Some(true) {
                    place.pop();
                }
                i += 1;
            }
            _ => i += 1,
        }
    }
    found
}

/// Reads the path at `i` behind `prefix`, adds it (each branch of its group) to `found`, returns where it ends.
fn unfold(
    tokens: &[(usize, Token)],
    mut i: usize,
    prefix: &[String],
    place: &[String],
    found: &mut Vec<Used>,
) -> usize {
    let line = tokens[i].0;
    let mut path = prefix.to_vec();
    loop {
        match tokens.get(i).map(|(_, token)| token) {
            Some(Token::Word(word)) => path.push(word.clone()),
            Some(Token::Sign('*')) => path.push("*".to_owned()),
            Some(Token::Sign('{')) => {
                i += 1;
                while let Some((_, token)) = tokens.get(i) {
                    match token {
                        Token::Sign('}') => return i + 1,
                        // The new name of what came before.
                        Token::Word(word) if word == "as" => i += 2,
                        Token::Word(_) | Token::Sign('*') | Token::Sign('{') => {
                            i = unfold(tokens, i, &path, place, found);
                        }
                        Token::Path | Token::Sign(_) => i += 1,
                    }
                }
                return i;
            }
            // Type parameters: `Vec::<crate::x>`; what is in them is read on its own.
            _ => break,
        }
        i += 1;
        match tokens.get(i) {
            Some((_, Token::Path)) => i += 1,
            _ => break,
        }
    }
    found.push((line, absolute(path, place)));
    i
}

/// A path from the root of the crate, where it starts at one of the crate's own names.
fn absolute(path: Vec<String>, place: &[String]) -> Vec<String> {
    let mut from: Vec<String> = match path.first().map(String::as_str) {
        Some("crate" | "pushgate") => Vec::new(),
        Some("self" | "super") => place.to_vec(),
        _ => return path,
    };
    let mut rest = path.iter().map(String::as_str).peekable();
    while let Some(step) = rest.next_if(|step| matches!(*step, "crate" | "pushgate" | "self" | "super")) {
        if step == "super" {
            from.pop();
        }
    }
    std::iter::once("crate".to_owned()).chain(from).chain(rest.map(str::to_owned)).collect()
}

/// What `file` (its path under `src`) does that its floor forbids; and what it uses of its own floor.
fn check(file: &str, source: &str) -> (Vec<String>, Vec<(String, String)>) {
    let mut steps: Vec<String> = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    let room = steps[0].clone();
    let Some(floor) = floor_of(&room) else {
        return (vec![format!("{file}: `{room}` has no floor; add it to the picture")], Vec::new());
    };
    if steps.last().is_some_and(|last| last == "mod" || last == "lib" || last == "main") {
        steps.pop();
    }
    let tokens = without_tests(&tokens(source));
    let paths = paths(&tokens, &steps);
    let (mut wrong, mut beside) = (Vec::new(), Vec::new());
    for (line, path) in &paths {
        let mut steps = path.iter().map(String::as_str);
        if steps.next() != Some("crate") {
            continue;
        }
        let Some(used) = steps.next().filter(|used| *used != room) else { continue };
        match floor_of(used) {
            // The root's own file declares the rooms and nothing else.
            None if room == "lib" || room == "main" => {}
            None => wrong.push(format!("{file}:{line}: `crate::{used}` is no room of the house")),
            Some(other) if other < floor || (room == "main" && used == "cli") => {}
            Some(other)
                if other == floor && WITHIN_A_FLOOR.iter().any(|(who, whom, _)| *who == room && *whom == used) =>
            {
                beside.push((room.clone(), used.to_owned()));
            }
            Some(other) if other == floor => {
                wrong.push(format!("{file}:{line}: `{room}` uses `{used}`, and both are on floor {floor}"));
            }
            Some(other) => {
                wrong.push(format!("{file}:{line}: `{room}` on floor {floor} uses `{used}` on floor {other}"));
            }
        }
    }
    for (line, path) in &paths {
        if let Some(what) = forbidden(floor, &room, path) {
            wrong.push(format!("{file}:{line}: {what}"));
        }
    }
    if room == "session" {
        for (line, token) in &tokens {
            if matches!(token, Token::Word(word) if word == "async" || word == "await") {
                wrong.push(format!("{file}:{line}: a session never awaits"));
            }
        }
    }
    (wrong, beside)
}

/// What a floor must not know beyond the house.
fn forbidden(floor: usize, room: &str, path: &[String]) -> Option<String> {
    let shown = path.join("::");
    let starts = |prefix: &[&str]| path.len() >= prefix.len() && path.iter().zip(prefix).all(|(one, two)| one == two);
    let has = |pair: [&str; 2]| path.windows(2).any(|steps| steps == pair);
    let first = path.first().map_or("", String::as_str);
    let frames = ["tokio_tungstenite", "tungstenite", "protocol", "frame"];
    if floor == 0 {
        if first == "tokio" || (first.starts_with("tokio_") && !starts(&frames)) {
            return Some(format!("floor 0 is pure, and `{shown}` is not"));
        }
        if path.iter().any(|step| step == "SystemTime") || has(["Instant", "now"]) {
            return Some(format!("floor 0 has no clock: `{shown}`"));
        }
        if starts(&["std", "fs"])
            || starts(&["std", "env"])
            || starts(&["std", "process"])
            || starts(&["std", "thread"])
        {
            return Some(format!("floor 0 does no I/O: `{shown}`"));
        }
    }
    if room == "session" && first.starts_with("tokio") {
        return Some(format!("a session knows no runtime: `{shown}`"));
    }
    if floor < 5 && (first.starts_with("tonic") || first.starts_with("prost")) {
        return Some(format!("nothing below floor 5 knows gRPC: `{shown}`"));
    }
    if first == "anyhow" && room != "cli" && room != "main" {
        return Some("errors have types outside cli and main: `anyhow`".to_owned());
    }
    None
}

fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    found.sort();
    let name = |path: &Path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
    found.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

fn is_test_file(file: &str) -> bool {
    file.ends_with("/tests.rs") || file == "tests.rs"
}

/// The lines before the module of tests.
fn lines_before_tests(source: &str) -> usize {
    let lines: Vec<&str> = source.lines().collect();
    let tests = lines.windows(2).position(|pair| {
        pair[0] == "#[cfg(test)]" && pair[1].trim_start_matches("pub ").starts_with("mod ") && pair[1].ends_with('{')
    });
    tests.unwrap_or(lines.len())
}

#[test]
fn every_file_keeps_to_its_floor() {
    let sources = sources();
    assert!(sources.len() > 50, "the sources were not found");
    let (mut wrong, mut beside) = (Vec::new(), BTreeSet::new());
    for (file, source) in sources.iter().filter(|(file, _)| !is_test_file(file)) {
        let (more, used) = check(file, source);
        wrong.extend(more);
        beside.extend(used);
    }
    for (who, whom, _) in WITHIN_A_FLOOR {
        if !beside.contains(&(who.to_owned(), whom.to_owned())) {
            wrong.push(format!("`{who}` no longer uses `{whom}`; take it out of WITHIN_A_FLOOR"));
        }
    }
    assert!(wrong.is_empty(), "the floors of ARCHITECTURE.md are not kept:\n{}", wrong.join("\n"));
}

#[test]
fn every_floor_is_built() {
    let rooms: BTreeSet<String> =
        sources().iter().map(|(file, _)| file.split('/').next().unwrap().trim_end_matches(".rs").to_owned()).collect();
    let drawn: BTreeSet<String> = FLOORS.iter().copied().flatten().map(|room| (*room).to_owned()).collect();
    assert_eq!(rooms, drawn);
}

#[test]
fn every_file_says_what_it_owns() {
    let silent: Vec<_> =
        sources().into_iter().filter(|(_, source)| !source.starts_with("//! ")).map(|(file, _)| file).collect();
    assert!(silent.is_empty(), "these do not open with `//!`: {silent:?}");
}

#[test]
fn no_file_outgrows_its_room() {
    let mut long = Vec::new();
    for (file, source) in sources().iter().filter(|(file, _)| !is_test_file(file)) {
        let known = LONGER.iter().find(|(name, _)| name == file).map(|(_, most)| *most);
        let most = if file == "main.rs" { MAIN_LINES_MAX } else { known.unwrap_or(LINES_MAX) };
        let lines = lines_before_tests(source);
        if lines > most {
            long.push(format!("{file}: {lines} lines before its tests, at most {most} are allowed"));
        }
        if known.is_some() && lines <= LINES_MAX {
            long.push(format!("{file}: {lines} lines, so it need not be in LONGER"));
        }
    }
    assert!(long.is_empty(), "split these:\n{}", long.join("\n"));
}

/// What [`check`] says of one file.
fn says(file: &str, source: &str) -> String {
    check(file, source).0.join("\n")
}

#[test]
fn a_higher_floor_is_noticed_however_it_is_reached() {
    for source in [
        "use crate::hub::Hub;",
        "use crate::{clock::Clock, hub::{Hub, Handle}};",
        "pub(crate) use crate::{self as root, hub};",
        "use\n    crate :: hub;",
        "use super::super::hub::Hub;",
        "use super::{super::{hub::Hub}};",
        "fn f() { let _ = crate::hub::Hub::new; }",
        "fn f(_: &dyn Fn(crate::hub::Hub)) {}",
        "fn f() -> Vec<crate::hub::Hub> { Vec::<crate::hub::Hub>::new() }",
        "mod inner { use super::super::super::hub; }",
        "/// A doc.\n#[cfg(not(test))]\nuse crate::hub;",
        "#[cfg(test)]\nmod tests;\nuse crate::hub;",
        "#[cfg(test)]\nfn f() { {} }\nuse crate::hub;",
        "const A: &str = \"// \\\" \"; use crate::hub; // \"",
        "const A: &str = r#\"\"\"#; use crate::hub;",
        "const A: char = '\"'; fn f<'a>(_: &'a str) {} use crate::hub;",
        "/* a /* b */ */ use crate::hub;",
    ] {
        let said = says("store/embedded.rs", source);
        assert!(said.contains("`store` on floor 2 uses `hub` on floor 4"), "{source}: {said}");
    }
    assert!(says("net.rs", "use super::store;").contains("`net` on floor 1 uses `store` on floor 2"));
    assert!(says("types/ids.rs", "use crate::clock;").contains("floor 0 uses `clock` on floor 1"));
    assert_eq!(says("hub/a.rs", "\n\nuse crate::ws;"), "hub/a.rs:3: `hub` on floor 4 uses `ws` on floor 6");
}

#[test]
fn a_room_of_the_same_floor_is_noticed() {
    assert_eq!(
        says("store/mod.rs", "use crate::auth;"),
        "store/mod.rs:1: `store` uses `auth`, and both are on floor 2"
    );
    assert!(says("grpc/mod.rs", "use crate::ws::Context;").contains("both are on floor 6"));
    assert!(says("clock.rs", "use crate::metrics;").contains("both are on floor 1"));
    assert!(says("server.rs", "use crate::cli;").contains("both are on floor 7"));
    assert!(says("config/mod.rs", "use crate::server;").contains("both are on floor 7"));
    assert!(says("limits.rs", "use crate::protocol;").contains("both are on floor 0"));
}

#[test]
fn rooms_that_nobody_drew_are_noticed() {
    assert!(says("topics/mod.rs", "").contains("`topics` has no floor"));
    assert!(says("hub/mod.rs", "use crate::topics;").contains("`crate::topics` is no room"));
    assert!(says("hub/mod.rs", "use crate::*;").contains("`crate::*` is no room"));
}

#[test]
fn what_a_floor_must_not_know_is_noticed() {
    for (file, source, said) in [
        ("types/ids.rs", "use tokio::sync::Notify;", "floor 0 is pure"),
        ("protocol/a.rs", "use tokio_tungstenite::tungstenite::WebSocket;", "floor 0 is pure"),
        ("protocol/a.rs", "fn f() { tokio::spawn(async {}); }", "floor 0 is pure"),
        ("types/a.rs", "use std::time::{Duration, SystemTime};", "floor 0 has no clock"),
        ("limits.rs", "fn f() { let _ = std::time::Instant::now(); }", "floor 0 has no clock"),
        ("types/a.rs", "use std::{fmt, fs};", "floor 0 does no I/O"),
        ("session/mod.rs", "use tokio::sync::mpsc;", "a session knows no runtime"),
        ("session/mod.rs", "async fn f() {}", "a session never awaits"),
        ("hub/send.rs", "use tonic::Status;", "nothing below floor 5 knows gRPC"),
        ("store/mod.rs", "use prost_types::Value;", "nothing below floor 5 knows gRPC"),
        ("server.rs", "use anyhow::Context as _;", "errors have types"),
    ] {
        assert!(says(file, source).contains(said), "{source}: {}", says(file, source));
    }
}

#[test]
fn what_is_allowed_is_left_alone() {
    for (file, source) in [
        ("hub/send.rs", "use super::{Hub, handle::Handle}; use crate::{limits, store::{Op, Store}};"),
        ("hub/mod.rs", "use self::{users::Users}; use crate::hub::users;"),
        ("types/ids.rs", "use crate::limits; fn f() { crate::protocol::is_reserved_type(\"\"); }"),
        ("protocol/frame/write.rs", "use super::super::close::CloseCode; use crate::types::Offset;"),
        ("protocol/a.rs", "use tokio_tungstenite::tungstenite::protocol::frame::coding::OpCode;"),
        ("types/a.rs", "const START: std::time::SystemTimeError = std::time::UNIX_EPOCH;"),
        ("metrics.rs", "use crate::clock::Instant;"),
        ("store/mod.rs", "//! See [`crate::hub`].\n/* crate::hub */ const A: &str = \"crate::hub\";"),
        (
            "store/mod.rs",
            "const A: &str = r##\"\"# crate::hub \"##; const B: char = '\\''; const C: &[u8] = br\"crate::hub\";",
        ),
        ("store/mod.rs", "#[cfg(test)]\nmod tests {\n    use crate::hub::Hub;\n}"),
        ("store/mod.rs", "#[cfg(test)]\nuse crate::{hub, api};"),
        ("store/mod.rs", "use crate::{self as root, clock::Clock as Time, types::{Offset as At, self as ids}};"),
        ("main.rs", "fn main() -> std::process::ExitCode { pushgate::cli::run(std::env::args_os()) }"),
        ("lib.rs", "pub mod api; pub mod cli;"),
    ] {
        assert_eq!(says(file, source), "", "{source}");
    }
}

#[test]
fn lines_are_counted_up_to_the_module_of_tests() {
    assert_eq!(lines_before_tests("a\nb\n"), 2);
    assert_eq!(lines_before_tests("a\n#[cfg(test)]\nmod tests {\n}\n"), 1);
    assert_eq!(lines_before_tests("#[cfg(test)]\nmod tests;\n#[cfg(test)]\nfn f() {}\nb\n"), 5);
}
