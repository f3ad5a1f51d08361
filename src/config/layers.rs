//! The layers of a configuration, each a table of its own whose metadata says where it came from.

use std::{ffi::OsString, fs, io, path::PathBuf};

use figment::{
    Figment, Metadata, Profile, Provider,
    error::{Actual, Kind},
    providers::{Format as _, Toml},
    value::{Dict, Map, Value},
};

use super::{Config, ConfigError, Flag, Problem, Sources, check};

/// What environment variables of the configuration begin with.
const ENVIRONMENT_PREFIX: &str = "PUSHGATE_";
/// What stands between the parts of a key in an environment variable.
const ENVIRONMENT_SEPARATOR: &str = "__";

/// How a layer is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Label {
    /// At the beginning of a message.
    pub(super) in_errors: String,
    /// Behind a value in `config show`.
    pub(super) in_comments: String,
}

struct Layer {
    label: Option<Label>,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        match &self.label {
            Some(label) => Metadata::from(label.in_errors.clone(), label.in_comments.clone()),
            None => Metadata::named("default"),
        }
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

/// Which layer a value's metadata belongs to; `None`: the defaults.
pub(super) fn label(metadata: &Metadata) -> Option<Label> {
    let in_comments = metadata.source.as_ref()?.custom()?.to_owned();
    Some(Label { in_errors: metadata.name.to_string(), in_comments })
}

/// Reads every source; also the file that was read.
pub(super) fn gather(sources: Sources) -> Result<(Figment, Option<PathBuf>), ConfigError> {
    let defaults = table_of(Value::serialize(Config::default()));
    let mut figment = Figment::new().merge(Layer { label: None, values: defaults.clone() });
    let file = read_file(sources.file, sources.default_file)?;
    if let Some((path, values)) = &file {
        let name = path.display().to_string();
        figment = figment.merge(Layer { label: Some(same(name)), values: values.clone() });
    }
    for flag in sources.mode {
        figment = figment.merge(layer_of(flag));
    }
    for (name, key, value) in environment(sources.environment, &defaults)? {
        let label =
            Label { in_errors: format!("environment variable {name}"), in_comments: format!("environment {name}") };
        figment = figment.merge(Layer { label: Some(label), values: nested(&key, value) });
    }
    for flag in sources.flags {
        figment = figment.merge(layer_of(flag));
    }
    Ok((figment, file.map(|(path, _)| path)))
}

fn layer_of(Flag { name, key, value }: Flag) -> Layer {
    Layer { label: Some(same(format!("flag {name}"))), values: nested(key, value) }
}

fn same(name: String) -> Label {
    Label { in_errors: name.clone(), in_comments: name }
}

/// A table that a section serialised to; plain data always does.
pub(super) fn table_of(value: Result<Value, figment::Error>) -> Dict {
    value.ok().and_then(Value::into_dict).unwrap_or_default()
}

fn nested(key: &str, value: Value) -> Dict {
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    let value = rest.map_or_else(|| value.clone(), |rest| Value::from(nested(rest, value.clone())));
    Dict::from([(first.to_owned(), value)])
}

fn refused(problem: String) -> ConfigError {
    ConfigError { problems: vec![problem] }
}

fn read_file(named: Option<PathBuf>, default: Option<PathBuf>) -> Result<Option<(PathBuf, Dict)>, ConfigError> {
    let must_exist = named.is_some();
    let Some(path) = named.or(default) else { return Ok(None) };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => return Ok(None),
        Err(error) => return Err(refused(format!("{}: cannot be read: {error}", path.display()))),
    };
    let values = parse_toml(&text).map_err(|problem| refused(format!("{}: {problem}", path.display())))?;
    Ok(Some((path, values)))
}

/// Reads TOML. The problem says where and what, without the line itself: it may hold a secret.
fn parse_toml(text: &str) -> Result<Dict, String> {
    Toml::from_str::<Dict>(text).map_err(|error| {
        let report = error.to_string();
        let mut lines = report.lines();
        match lines.next().and_then(|first| first.strip_prefix("TOML parse error at ")) {
            // The report goes on with a gutter, the line and a marker under it, then says what is wrong.
            Some(place) => format!("{place}: {}", lines.skip(3).collect::<Vec<_>>().join("; ")),
            None => report.trim_end().replace('\n', "; "),
        }
    })
}

/// The variables that set a key: name, key, value; by name, so that the result does not depend on their order.
fn environment(
    variables: Vec<(OsString, OsString)>,
    defaults: &Dict,
) -> Result<Vec<(String, String, Value)>, ConfigError> {
    let mut found = Vec::new();
    let mut problems = Vec::new();
    for (name, value) in variables {
        let Some(name) = name.to_str() else { continue };
        let Some(rest) = name.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
        let key = rest.to_ascii_lowercase().replace(ENVIRONMENT_SEPARATOR, ".");
        // A list of tables that is no section's stands alone: PUSHGATE_TOPICS.
        if !rest.contains(ENVIRONMENT_SEPARATOR) && !matches!(defaults.get(&key), Some(Value::Array(..))) {
            // Others set such variables for reasons of their own (Kubernetes, for a service called `pushgate`), so
            // only what is a key with one underscore too few is a mistake.
            if let Some(meant) = leaf_keys(defaults).into_iter().find(|leaf| leaf.replace('.', "_") == key) {
                let meant = meant.to_ascii_uppercase().replace('.', ENVIRONMENT_SEPARATOR);
                problems.push(format!(
                    "environment variable {name}: two underscores stand between section and key; write \
                     {ENVIRONMENT_PREFIX}{meant}"
                ));
            }
            continue;
        }
        if key.split('.').any(str::is_empty) {
            problems.push(format!(
                "environment variable {name}: is not a key; write {ENVIRONMENT_PREFIX}SECTION__KEY, such as \
                 PUSHGATE_HTTP__LISTEN"
            ));
            continue;
        }
        match value.to_str().ok_or_else(|| "is not UTF-8".to_owned()).and_then(|text| parse_value(&key, text, defaults))
        {
            Ok(value) => found.push((name.to_owned(), key, value)),
            Err(problem) => problems.push(format!("environment variable {name}: {key}: {problem}")),
        }
    }
    found.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    problems.sort();
    if problems.is_empty() { Ok(found) } else { Err(ConfigError { problems }) }
}

/// A variable's text as a value: lists, tables and quoted text as TOML; for a key that holds text anything else as it
/// stands; for others numbers and truth values as TOML, too.
fn parse_value(key: &str, text: &str, defaults: &Dict) -> Result<Value, String> {
    let trimmed = text.trim();
    let is_toml = trimmed.starts_with(['[', '{', '"', '\'']);
    if !is_toml && matches!(find(defaults, key), Some(Value::String(..))) {
        return Ok(Value::from(text));
    }
    match parse_toml(&format!("value = {trimmed}")) {
        Ok(mut parsed) if parsed.len() == 1 => Ok(parsed.remove("value").unwrap_or_else(|| Value::from(text))),
        Err(problem) if is_toml => Err(format!("is not a TOML value: {}", without_place(&problem))),
        _ => Ok(Value::from(text)),
    }
}

/// The problem alone: the place is that in a line that the operator did not write.
fn without_place(problem: &str) -> &str {
    problem.split_once(": ").map_or(problem, |(_, what)| what)
}

fn find<'a>(table: &'a Dict, key: &str) -> Option<&'a Value> {
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    let value = table.get(first)?;
    rest.map_or(Some(value), |rest| value.find_ref(rest))
}

pub(super) fn leaf_keys(table: &Dict) -> Vec<String> {
    let mut keys = Vec::new();
    for (name, value) in table {
        match value {
            Value::Dict(_, inner) => keys.extend(leaf_keys(inner).into_iter().map(|leaf| format!("{name}.{leaf}"))),
            _ => keys.push(name.clone()),
        }
    }
    keys
}

/// What figment found wrong with a value whose type was right: a text that is no duration, size or allowed name, a
/// number out of range, a missing key.
pub(super) fn problem_of(error: &figment::Error) -> Problem {
    let key = check::join(error.path.iter().map(String::as_str));
    let text = match &error.kind {
        Kind::UnknownVariant(value, allowed) => {
            format!("`{value}` is not allowed; allowed values: {}", allowed.join(", "))
        }
        Kind::MissingField(name) => format!("the key `{name}` is missing"),
        Kind::UnknownField(name, allowed) => format!("unknown key `{name}`; allowed here: {}", allowed.join(", ")),
        Kind::InvalidValue(value, expected) | Kind::InvalidType(value, expected) => {
            format!("{} is not allowed; expected {}", shown(value), range_of(expected))
        }
        other => other.to_string(),
    };
    Problem::new(key, text)
}

fn shown(value: &Actual) -> String {
    match value {
        Actual::Unsigned(number) => format!("`{number}`"),
        Actual::Signed(number) => format!("`{number}`"),
        Actual::Str(text) => format!("`{text}`"),
        other => other.to_string(),
    }
}

fn range_of(expected: &str) -> String {
    match expected {
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        other => other.to_owned(),
    }
}
