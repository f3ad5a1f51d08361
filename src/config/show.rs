//! `config show`: the effective configuration as TOML, each value with its origin, secrets masked.
//!
//! Secrets mask themselves when they are serialised; nothing here sees one.

use std::fmt::Write as _;

use figment::value::{Dict, Num, Value};

use super::{Config, Origins, layers};

/// The sections in the order in which they are documented.
const SECTIONS: [&str; 18] = [
    "http",
    "ws",
    "grpc",
    "ops",
    "auth",
    "store",
    "delivery",
    "heartbeat",
    "presence",
    "limits",
    "events",
    "clients",
    "topics",
    "alerts",
    "drain",
    "shutdown",
    "log",
    "otlp",
];

pub(super) fn toml(config: &Config, origins: &Origins) -> String {
    let mut sections = layers::table_of(Value::serialize(config));
    let mut writer = Writer { out: String::new(), origins };
    for name in SECTIONS {
        match sections.remove(name) {
            Some(Value::Dict(_, section)) => writer.table(name, &format!("[{name}]"), &section, None),
            Some(Value::Array(_, tables)) => writer.tables(name, &tables),
            _ => {}
        }
    }
    writer.out
}

struct Writer<'a> {
    out: String,
    origins: &'a Origins,
}

impl Writer<'_> {
    /// Values first, then the tables and lists of tables inside: what TOML asks for. `origin` is that of the whole
    /// list where the table is in one.
    fn table(&mut self, path: &str, header: &str, table: &Dict, origin: Option<&str>) {
        if !self.out.is_empty() {
            self.out.push('\n');
        }
        self.line(header);
        for (name, value) in table.iter().filter(|(_, value)| !is_nested(value)) {
            let key = format!("{path}.{name}");
            let origin = origin.map_or_else(|| self.origin(&key), str::to_owned);
            match value {
                Value::Empty(..) => self.line(&format!("# {name} is not set")),
                value => self.line(&format!("{name} = {}  # {origin}", inline(value))),
            }
        }
        for (name, value) in table.iter().filter(|(_, value)| is_nested(value)) {
            let key = format!("{path}.{name}");
            match value {
                Value::Dict(_, inner) => self.table(&key, &format!("[{key}]"), inner, None),
                Value::Array(_, tables) => self.tables(&key, tables),
                _ => {}
            }
        }
    }

    /// A list of tables.
    fn tables(&mut self, key: &str, tables: &[Value]) {
        let origin = self.origin(key);
        for inner in tables.iter().filter_map(Value::as_dict) {
            let set: Dict = inner.iter().filter(|(_, v)| !is_empty_text(v)).map(owned).collect();
            self.table(key, &format!("[[{key}]]"), &set, Some(&origin));
        }
    }

    fn origin(&self, key: &str) -> String {
        self.origins.of(key).map_or_else(|| "default".to_owned(), |label| label.in_comments)
    }

    fn line(&mut self, text: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.out, "{text}");
    }
}

fn owned((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

/// In a list of tables what is not set says nothing, and has no origin of its own.
fn is_empty_text(value: &Value) -> bool {
    value.as_str().is_some_and(str::is_empty)
}

fn is_nested(value: &Value) -> bool {
    match value {
        Value::Dict(..) => true,
        Value::Array(_, items) => items.iter().any(|item| matches!(item, Value::Dict(..))),
        _ => false,
    }
}

pub(super) fn inline(value: &Value) -> String {
    match value {
        Value::String(_, text) => quoted(text),
        Value::Char(_, one) => quoted(&one.to_string()),
        Value::Bool(_, truth) => truth.to_string(),
        Value::Num(_, number) => number_text(*number),
        Value::Array(_, items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        Value::Empty(..) | Value::Dict(..) => String::new(),
    }
}

fn number_text(number: Num) -> String {
    let signed = number.to_i128().map(|number| number.to_string());
    signed.or_else(|| number.to_u128().map(|number| number.to_string())).unwrap_or_default()
}

/// A basic string on one line (TOML 1.0): quotes, backslashes and control characters are escaped.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
