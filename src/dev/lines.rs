//! What `serve --dev` prints: addresses, a page to open, and lines to paste that work as they are.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use super::key::Token;
use crate::api::Listener;

/// What is sent to the user by the lines.
const EXAMPLE: &str = r#"{"hello":"world"}"#;

/// Everything the lines name.
pub struct Lines<'a> {
    pub program: &'a str,
    pub user: &'a str,
    pub token: &'a Token,
    /// The path of the WebSocket endpoint.
    pub path: &'a str,
    pub data: &'a Path,
    pub listeners: &'a [Listener],
}

impl Lines<'_> {
    fn address(&self, name: &str) -> Option<&str> {
        self.listeners.iter().find(|listener| listener.name == name).map(|listener| listener.address.as_str())
    }

    /// The lines that send something, with this program and with grpcurl.
    pub fn send(&self) -> [String; 2] {
        let grpc = self.address("grpc").unwrap_or_default();
        let send = format!("{} send --grpc {} {} {}", self.program, quoted(grpc), self.user, quoted(EXAMPLE));
        [send, self.grpcurl(grpc)]
    }

    fn grpcurl(&self, grpc: &str) -> String {
        let request = format!(r#"{{"user_id":"{}","notification":{{"data":{EXAMPLE}}}}}"#, self.user);
        let target = match grpc.strip_prefix("unix:") {
            Some(path) => format!("-unix {}", quoted(path)),
            None => grpc.to_owned(),
        };
        format!("grpcurl -plaintext -d {} {target} pushgate.v1.Gateway/SendToUser", quoted(&request))
    }
}

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, user, token, path, data, .. } = self;
        let http = self.address("http").unwrap_or_default();
        let grpc = self.address("grpc").unwrap_or_default();
        let url = format!("ws://{http}{path}");
        let expires = UNIX_EPOCH + Duration::from_millis(token.expires_at.0);
        let expires = humantime::format_rfc3339_seconds(expires).to_string();
        let day = expires.split('T').next().unwrap_or_default();
        let token = &token.text;
        writeln!(
            f,
            "\nPushgate {} for a first look: on this machine only, where every process may use it.\n",
            env!("CARGO_PKG_VERSION")
        )?;
        writeln!(f, "  clients   {url}")?;
        writeln!(f, "  services  {grpc} (gRPC, no token)")?;
        if let Some(ops) = self.address("ops") {
            writeln!(f, "  probes    http://{ops}/readyz")?;
        }
        writeln!(f, "  data      {}", data.display())?;
        writeln!(f, "\nOpen in a browser, which connects as {user}:\n\n  http://{http}/\n")?;
        writeln!(f, "or receive in a terminal:\n\n  {program} listen --url {} --token {token}\n", quoted(&url))?;
        let [send, grpcurl] = self.send();
        writeln!(f, "Send to {user} from another one:\n\n  {send}\n  {grpcurl}\n")?;
        writeln!(f, "A token for {user}, good until {day}:\n\n  {token}\n")
    }
}

/// How this program is called: by its name where that leads to it, else by its path.
pub fn program() -> String {
    let name = "pushgate";
    let Ok(this) = env::current_exe() else { return name.to_owned() };
    let found = env::var_os("PATH").and_then(|paths| on_path(env::split_paths(&paths), name));
    if found.is_some_and(|found| found.canonicalize().is_ok_and(|found| found == this)) {
        return name.to_owned();
    }
    let inside = env::current_dir().ok().and_then(|folder| Some(Path::new(".").join(this.strip_prefix(folder).ok()?)));
    quoted(&inside.unwrap_or(this).to_string_lossy())
}

fn on_path(mut folders: impl Iterator<Item = PathBuf>, name: &str) -> Option<PathBuf> {
    folders.find_map(|folder| Some(folder.join(name)).filter(|file| file.is_file()))
}

/// As a shell wants it.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::UnixMillis;

    fn lines(listeners: &[(&'static str, &str)]) -> String {
        let listeners: Vec<Listener> = listeners
            .iter()
            .map(|(name, address)| Listener { name, address: (*address).to_owned(), tls: false })
            .collect();
        Lines {
            program: "./target/release/pushgate",
            user: "alice",
            token: &Token { text: "a.b.c".to_owned(), expires_at: UnixMillis(1_769_852_100_000) },
            path: "/ws",
            data: Path::new("./pushgate-data"),
            listeners: &listeners,
        }
        .to_string()
    }

    #[track_caller]
    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|found| found.trim() == line), "{line}\nin\n{text}");
    }

    #[test]
    fn every_line_names_where_it_leads() {
        let text = lines(&[("http", "127.0.0.1:7000"), ("grpc", "127.0.0.1:7001"), ("ops", "127.0.0.1:7002")]);
        has(&text, "http://127.0.0.1:7000/");
        has(&text, "./target/release/pushgate listen --url ws://127.0.0.1:7000/ws --token a.b.c");
        has(&text, r#"./target/release/pushgate send --grpc 127.0.0.1:7001 alice '{"hello":"world"}'"#);
        has(
            &text,
            r#"grpcurl -plaintext -d '{"user_id":"alice","notification":{"data":{"hello":"world"}}}' 127.0.0.1:7001 pushgate.v1.Gateway/SendToUser"#,
        );
        has(&text, "A token for alice, good until 2026-01-31:");
    }

    #[test]
    fn other_listeners_are_named_as_a_shell_and_grpcurl_want_them() {
        let text = lines(&[("http", "[::1]:80"), ("grpc", "unix:/tmp/a b.sock")]);
        has(&text, r#"./target/release/pushgate send --grpc 'unix:/tmp/a b.sock' alice '{"hello":"world"}'"#);
        has(&text, "./target/release/pushgate listen --url 'ws://[::1]:80/ws' --token a.b.c");
        assert!(text.contains(" -unix '/tmp/a b.sock' pushgate.v1.Gateway/SendToUser"), "{text}");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn the_program_is_called_by_a_name_that_leads_to_it() {
        // The test's own binary is not called so, and nobody's else is to be started in its stead.
        assert!(program().starts_with(['.', '/', '\'']), "{}", program());
    }
}
