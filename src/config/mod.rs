//! The configuration as a whole: the sections, which live beside their components, and where each value comes from.
//!
//! Defaults, then a TOML file, then what a mode such as `serve --dev` sets, then the environment, then flags; a later one
//! wins key by key (a list is one value).
//! Whatever is unknown, of the wrong type or impossible refuses, with one line for each: the source, the full key,
//! what is wrong, and what is allowed.

mod check;
mod credentials;
mod layers;
mod live;
mod show;
#[cfg(test)]
mod tests;

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

pub use self::live::{Difference, log_filter_override, place_of};
use figment::{Figment, value::Value};
use serde::{Deserialize, Serialize};

use crate::{
    auth::{self, Authenticator, LoadError},
    clock::Clock,
    grpc, http, hub, lifecycle, limits, otlp, session, store, telemetry, ws,
};

/// The file that is read where no other is named, if it exists.
pub const DEFAULT_FILE: &str = "/etc/pushgate/pushgate.toml";

/// Everything that an operator can set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "each section is documented beside its component")]
pub struct Config {
    pub http: ws::config::Config,
    pub ws: ws::config::WsConfig,
    pub grpc: grpc::config::Config,
    pub ops: http::config::Config,
    pub auth: auth::Config,
    pub store: store::Config,
    pub delivery: session::config::Delivery,
    pub heartbeat: session::config::Heartbeat,
    pub presence: hub::config::Presence,
    pub limits: limits::Limits,
    pub events: hub::config::Events,
    pub clients: hub::config::Clients,
    pub topics: Vec<hub::config::TopicRule>,
    pub alerts: hub::AlertsConfig,
    pub drain: hub::config::Drain,
    pub shutdown: lifecycle::Shutdown,
    pub log: telemetry::Log,
    pub otlp: otlp::Config,
}

/// A value given on the command line. It prints without the value.
#[derive(Clone)]
pub struct Flag {
    /// The flag, with its dashes.
    pub name: &'static str,
    /// The key it sets, such as `http.listen`.
    pub key: &'static str,
    /// What it sets it to.
    pub value: Value,
}

impl fmt::Debug for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flag").field("name", &self.name).field("key", &self.key).finish_non_exhaustive()
    }
}

/// Where a configuration is read from. It prints without the environment, which may hold keys and tokens.
#[derive(Clone, Default)]
pub struct Sources {
    /// The file that must be there.
    pub file: Option<PathBuf>,
    /// The file that is read where `file` names none, if it exists.
    pub default_file: Option<PathBuf>,
    /// What a mode sets; each is named by the flag that turns the mode on.
    pub mode: Vec<Flag>,
    /// The environment; variables that do not begin with `PUSHGATE_` are not looked at, except for `CREDENTIALS_DIRECTORY`.
    pub environment: Vec<(OsString, OsString)>,
    /// The command line.
    pub flags: Vec<Flag>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, default_file, mode, environment: _, flags } = self;
        let mut shown = f.debug_struct("Sources");
        shown.field("file", file).field("default_file", default_file).field("mode", mode).field("flags", flags);
        shown.finish_non_exhaustive()
    }
}

impl Sources {
    /// The sources of this process.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<Flag>) -> Self {
        Self {
            file,
            default_file: Some(DEFAULT_FILE.into()),
            mode: Vec::new(),
            environment: std::env::vars_os().collect(),
            flags,
        }
    }
}

/// A configuration and where each of its values came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    origins: Origins,
    /// Where the service manager has put what `credential:NAME` names.
    credentials: Option<PathBuf>,
}

/// Why a configuration was refused: one line for each thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    problems: Vec<String>,
}

impl ConfigError {
    /// The lines.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

/// Something wrong with the value of a key.
#[derive(Clone, Debug)]
struct Problem {
    /// The full key, such as `auth.keys[0].kid`.
    key: String,
    /// Another key that has a part in it.
    other: Option<&'static str>,
    /// What is wrong, and what is allowed.
    text: String,
    /// Whether the text names the key itself.
    names_key: bool,
}

impl Problem {
    fn new(key: impl Into<String>, text: impl Into<String>) -> Self {
        Self { key: key.into(), other: None, text: text.into(), names_key: false }
    }
}

impl Config {
    /// Reads a configuration and checks that a daemon could run with it. No file but the configuration's is read. Each
    /// `credential:NAME` becomes the path of its file.
    ///
    /// # Errors
    /// Everything that [`Config::read`] refuses, and impossible values and combinations, all at once.
    pub fn load(sources: Sources) -> Result<Loaded, ConfigError> {
        let mut loaded = Self::read(sources)?;
        loaded.check()?;
        Ok(loaded)
    }

    /// Reads a configuration as far as it can be understood.
    ///
    /// # Errors
    /// A file that cannot be read, TOML that is none, unknown keys, wrong types.
    pub fn read(sources: Sources) -> Result<Loaded, ConfigError> {
        let credentials = sources.environment.iter().find(|(name, _)| name == "CREDENTIALS_DIRECTORY");
        let credentials = credentials.map(|(_, folder)| folder.into());
        let (figment, file) = layers::gather(sources)?;
        let origins = Origins { figment, file };
        let problems = check::type_problems(&origins.values());
        origins.refuse(problems)?;
        match origins.figment.extract::<Config>() {
            Ok(config) => Ok(Loaded { config, origins, credentials }),
            Err(errors) => Err(ConfigError {
                problems: errors.into_iter().map(|error| origins.line(&layers::problem_of(&error))).collect(),
            }),
        }
    }
}

impl Loaded {
    /// The file that was read.
    pub fn file(&self) -> Option<&Path> {
        self.origins.file.as_deref()
    }

    /// Checks that a daemon could run with it, and finds the files of credentials. Reads no file.
    ///
    /// # Errors
    /// Impossible values and combinations, and credentials that are not there, all at once.
    pub fn check(&mut self) -> Result<(), ConfigError> {
        let mut problems = credentials::resolve(&mut self.config, self.credentials.as_deref());
        problems.extend(check::problems(&self.config));
        self.refuse(problems)
    }

    /// Checks that it is fit for `serve --dev`, which is open to whoever reaches it.
    ///
    /// # Errors
    /// A listener that other machines can reach, a path that the page needs.
    pub fn check_dev(&self) -> Result<(), ConfigError> {
        self.refuse(check::dev_problems(&self.config))
    }

    /// Reads the files of keys, tokens and certificates, and says which of them cannot be used.
    ///
    /// # Errors
    /// One line for each.
    pub fn check_files(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        if let Err(error) = Authenticator::new(&self.config.auth, Clock::system()) {
            let prefix = self.origins.prefix(match &error {
                LoadError::Key(_) => "auth.keys",
                LoadError::Jwks { .. } => "auth.jwks",
            });
            problems.push(format!("{prefix}: {error}"));
        }
        for (index, token) in self.config.grpc.tokens.iter().enumerate() {
            if let Err(error) = token.sha256() {
                problems.push(self.origins.line(&check::token_problem(index, token, &error)));
            }
        }
        for (section, files) in
            [("http", &self.config.http.tls), ("grpc", &self.config.grpc.tls), ("ops", &self.config.ops.tls)]
        {
            if let Some(problem) = check::certificate_problem(section, files) {
                problems.push(self.origins.line(&problem));
            }
        }
        if let Err((key, why)) = self.config.otlp.read_files() {
            problems.push(self.origins.line(&Problem::new(key, why)));
        }
        if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
    }

    /// Keys that were changed and on which nothing depends in this version: worth a warning.
    pub fn without_effect(&self) -> Vec<&'static str> {
        check::without_effect(&self.config)
    }

    /// Keys whose values are allowed and will hardly be meant, and why: worth a warning.
    pub fn doubts(&self) -> Vec<(&'static str, String)> {
        check::doubts(&self.config)
    }

    /// The effective configuration as TOML, each value with its origin, secrets masked.
    pub fn to_toml(&self) -> String {
        show::toml(&self.config, &self.origins)
    }

    fn refuse(&self, problems: Vec<Problem>) -> Result<(), ConfigError> {
        self.origins.refuse(problems)
    }
}

/// Knows which layer gave a value. It prints without the values: the layers have secrets as they were written.
#[derive(Clone)]
struct Origins {
    figment: Figment,
    file: Option<PathBuf>,
}

impl fmt::Debug for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origins").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Origins {
    /// The values of all layers, one over the other.
    fn values(&self) -> Value {
        // The layers are tables that were checked when they were made, so there is nothing that could fail here.
        self.figment.find_value("").unwrap_or_else(|_| Value::from(figment::value::Dict::new()))
    }

    /// The label of the layer that gave `key` or the nearest table or list around it; `None`: it is a default.
    fn of(&self, key: &str) -> Option<layers::Label> {
        let (mut path, _) = key.split_once('[').unwrap_or((key, ""));
        loop {
            if let Ok(value) = self.figment.find_value(path) {
                return layers::label(self.figment.get_metadata(value.tag())?);
            }
            (path, _) = path.rsplit_once('.')?;
        }
    }

    /// What a line about `key` begins with: the source, or the file that could set it.
    fn prefix(&self, key: &str) -> String {
        match (self.of(key), &self.file) {
            (Some(label), _) => label.in_errors,
            (None, Some(file)) => file.display().to_string(),
            (None, None) => "configuration".to_owned(),
        }
    }

    fn line(&self, problem: &Problem) -> String {
        let by_other = problem.other.filter(|other| self.of(&problem.key).is_none() && self.of(other).is_some());
        let prefix = self.prefix(by_other.unwrap_or(&problem.key));
        if problem.names_key || problem.key.is_empty() {
            format!("{prefix}: {}", problem.text)
        } else {
            format!("{prefix}: {}: {}", problem.key, problem.text)
        }
    }

    fn refuse(&self, problems: Vec<Problem>) -> Result<(), ConfigError> {
        if problems.is_empty() {
            return Ok(());
        }
        Err(ConfigError { problems: problems.iter().map(|problem| self.line(problem)).collect() })
    }
}
