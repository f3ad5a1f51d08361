//! Logs: one subscriber for the process, on standard error or straight into the journal.
//!
//! The rule: no token and no payload ever reaches a log line; what is logged are ids, names, codes and counts.

use std::{
    env,
    io::{self, IsTerminal as _},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::{Event, Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, LevelFilter, filter_fn},
    fmt::{
        self, FmtContext, FormatEvent, FormatFields, FormattedFields,
        format::{JsonFields, Writer},
    },
    layer::{Filter, SubscriberExt as _},
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt as _,
};

use crate::trace::LOG_TARGET;

/// The section `[log]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// What is logged: directives of `tracing`, such as `info` or `info,pushgate::store=debug`. `RUST_LOG`, where set,
    /// goes first.
    pub filter: String,
    /// How it is written.
    pub format: Format,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: Format::Auto }
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Human on a terminal, journald where standard error leads to the journal, JSON elsewhere.
    #[default]
    Auto,
    /// For eyes.
    Human,
    /// One object a line.
    Json,
    /// Into the journal, with fields.
    Journald,
}

/// What a filter looks like.
const FILTER_HELP: &str = "write a level (off, error, warn, info, debug, trace) or directives such as \
                           \"info,pushgate::store=debug\"";

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not directives of `tracing`.
    #[error(
        "{place}: `{value}` is not a log filter ({problem}); {help}",
        help = FILTER_HELP
    )]
    Filter {
        /// The key or the variable.
        place: &'static str,
        /// What it holds.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The journal was asked for and is not there.
    #[error("log.format: `journald` needs the journal's socket: {0}; choose auto, human or json")]
    Journal(#[source] io::Error),
    /// There is a subscriber already.
    #[error("logging was set up before: {0}")]
    Again(#[from] tracing_subscriber::util::TryInitError),
}

impl Log {
    /// Checks the filter of the section itself.
    pub fn check(&self) -> Result<(), LogError> {
        parse("log.filter", &self.filter).map(drop)
    }
}

/// Changes what the process logs while it runs.
pub struct Control {
    /// The filter that is in force, as it was given.
    current: Mutex<String>,
    handle: reload::Handle<EnvFilter, Registry>,
}

impl Control {
    /// Sets the filter; what it was before. Nothing changes where it is none.
    ///
    /// # Errors
    /// Which of the directives is wrong, and what they look like.
    pub fn set(&self, text: &str) -> Result<String, String> {
        let filter = directives(text).map_err(|problem| format!("{problem}; {FILTER_HELP}"))?;
        let mut current = self.current.lock();
        self.handle.reload(filter).map_err(|error| error.to_string())?;
        Ok(std::mem::replace(&mut *current, text.to_owned()))
    }
}

/// Sets up logging for the process. Returns what can change it.
///
/// # Errors
/// A filter that is none, or a journal that was asked for and cannot be reached.
pub fn init(log: &Log) -> Result<Control, LogError> {
    let (text, filter) = filter(log)?;
    let terminal = io::stderr().is_terminal();
    let chosen = match log.format {
        Format::Auto => automatic(terminal, env::var("JOURNAL_STREAM").ok().as_deref(), stderr_identity()),
        fixed => fixed,
    };
    let layer = match chosen {
        Format::Journald => match (journal(), log.format) {
            (Ok(layer), _) => layer,
            (Err(error), Format::Journald) => return Err(LogError::Journal(error)),
            (Err(_), _) => json(),
        },
        Format::Human => human(terminal),
        Format::Json | Format::Auto => json(),
    };
    let (filter, handle) = reload::Layer::new(filter);
    tracing_subscriber::registry().with(layer.with_filter(bounded(filter))).try_init()?;
    Ok(Control { current: Mutex::new(text), handle })
}

/// The filter, and what may be logged at all. The hint keeps what is below the filter's own level from being looked at one
/// by one: sled alone says dozens of things a write at TRACE, and without it each came up to here.
fn bounded<S, F>(filter: F) -> impl Filter<S> + Send + Sync + 'static
where
    S: tracing::Subscriber,
    F: Filter<S> + Send + Sync + 'static,
{
    FilterExt::<S>::and(filter, filter_fn(may_be_logged).with_max_level_hint(LevelFilter::TRACE))
}

/// Libraries show what passes through them (headers, frames, rows) below INFO, tokens and payloads among it. Whatever the
/// filter says, they are not heard there.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let ours = metadata.target() == "pushgate" || metadata.target().starts_with("pushgate::");
    ours || *metadata.level() <= Level::INFO
}

/// Checks what [`init`] would take as filter, without setting anything up.
///
/// # Errors
/// A filter that is none.
pub fn check(log: &Log) -> Result<(), LogError> {
    filter(log).map(drop)
}

/// Whether the environment says what is logged, and the configuration does not.
pub fn is_overridden() -> bool {
    env::var("RUST_LOG").is_ok_and(|text| !text.trim().is_empty())
}

/// The filter that is in force at the start, and its text.
fn filter(log: &Log) -> Result<(String, EnvFilter), LogError> {
    let (place, text) = match env::var("RUST_LOG") {
        Ok(text) if !text.trim().is_empty() => ("environment variable RUST_LOG", text),
        _ => ("log.filter", log.filter.clone()),
    };
    let filter = parse(place, &text)?;
    Ok((text, filter))
}

fn parse(place: &'static str, text: &str) -> Result<EnvFilter, LogError> {
    let wrong = |problem: String| LogError::Filter { place, value: text.to_owned(), problem };
    if text.trim().is_empty() {
        return Err(wrong("it is empty".to_owned()));
    }
    directives(text).map_err(wrong)
}

/// Reads directives; which of them is wrong, and why.
fn directives(text: &str) -> Result<EnvFilter, String> {
    // Blanks around a directive are not the parser's affair, which takes them for a part of it; nor are patterns for fields,
    // which could be made to take any amount of memory.
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let builder = || EnvFilter::builder().with_regex(false);
    let parse = |text: &str| builder().parse(text).map_err(|error| error.to_string());
    parse(&parts.join(",")).map_err(|problem| {
        let bad = parts.iter().find_map(|part| parse(part).err().map(|problem| (part, problem)));
        bad.map_or(problem, |(part, problem)| format!("`{part}`: {problem}"))
    })
}

/// systemd's own rule (systemd.exec(5)): `JOURNAL_STREAM` names the device and inode of the journal's stream; only
/// where standard error still is that stream does it lead to the journal.
fn automatic(terminal: bool, journal_stream: Option<&str>, stderr: Option<(u64, u64)>) -> Format {
    let stream = journal_stream
        .and_then(|text| text.split_once(':'))
        .and_then(|(device, inode)| Some((device.parse().ok()?, inode.parse().ok()?)));
    match (terminal, stream) {
        (true, _) => Format::Human,
        (false, Some(stream)) if Some(stream) == stderr => Format::Journald,
        (false, _) => Format::Json,
    }
}

fn stderr_identity() -> Option<(u64, u64)> {
    let stderr = std::fs::File::from(io::stderr().as_fd().try_clone_to_owned().ok()?);
    let metadata = stderr.metadata().ok()?;
    Some((metadata.dev(), metadata.ino()))
}

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

fn human(terminal: bool) -> BoxedLayer {
    let colours = terminal && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    fmt::layer().with_writer(io::stderr).with_ansi(colours).boxed()
}

fn json() -> BoxedLayer {
    json_lines().with_writer(io::stderr).boxed()
}

fn json_lines<S>() -> fmt::Layer<S, JsonFields, WithTrace<fmt::format::Format<fmt::format::Json>>>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = fmt::layer().json().flatten_event(true).with_span_list(false).with_current_span(false);
    lines.map_event_format(WithTrace)
}

/// Puts `trace_id` and `span_id` of the call that a line is written in beside the line's own fields.
struct WithTrace<F>(F);

impl<S, N, F> FormatEvent<S, N> for WithTrace<F>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        let mut scope = context.event_scope().into_iter().flatten();
        let Some(call) = scope.find(|span| span.metadata().target() == LOG_TARGET) else {
            return self.0.format_event(context, to, event);
        };
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        let extensions = call.extensions();
        let fields = extensions.get::<FormattedFields<N>>().map_or("", |fields| fields.as_str());
        match (line.trim_end().strip_suffix('}'), fields.strip_prefix('{')) {
            (Some(line), Some(fields)) if fields != "}" => writeln!(to, "{line},{fields}"),
            _ => to.write_str(&line),
        }
    }
}

fn journal() -> io::Result<BoxedLayer> {
    let layer = tracing_journald::layer()?;
    Ok(layer.with_syslog_identifier("pushgate".to_owned()).with_field_prefix(Some("PUSHGATE".to_owned())).boxed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_human_on_a_terminal_journald_on_the_journals_stream_and_json_elsewhere() {
        assert_eq!(automatic(true, Some("8:21"), Some((8, 21))), Format::Human);
        assert_eq!(automatic(false, Some("8:21"), Some((8, 21))), Format::Journald);
        assert_eq!(automatic(false, Some("8:21"), Some((8, 22))), Format::Json, "standard error was redirected");
        for other in [None, Some(""), Some("8"), Some("a:b"), Some("8:21:3")] {
            assert_eq!(automatic(false, other, Some((8, 21))), Format::Json);
        }
        assert!(stderr_identity().is_some());
    }

    #[test]
    fn what_is_below_the_filter_s_level_is_known_without_a_look() {
        for (text, level) in [("info", LevelFilter::INFO), ("warn,pushgate::store=debug", LevelFilter::DEBUG)] {
            let filter = bounded::<Registry, _>(parse("log.filter", text).unwrap());
            assert_eq!(filter.max_level_hint(), Some(level), "{text}");
        }
    }

    #[test]
    fn a_bad_directive_is_named() {
        for (text, bad) in [
            ("info,pushgate=loud", "`pushgate=loud`: "),
            ("info,=,warn", "`=`: "),
            ("[session{user=a}]=trace,x=y=z", "`x=y=z`: "),
        ] {
            let said = directives(text).unwrap_err();
            assert!(said.starts_with(bad), "{text}: {said}");
        }
    }

    #[test]
    fn blanks_around_directives_are_nothing_and_patterns_are_text() {
        for (text, plain) in [
            ("info, pushgate::store=debug", "info,pushgate::store=debug"),
            (" pushgate=debug , warn ,", "pushgate=debug,warn"),
        ] {
            assert_eq!(directives(text).unwrap().to_string(), directives(plain).unwrap().to_string());
        }
        // These are no regular expressions, and need not be good ones; a target may be any text.
        for text in ["[s{f=(}]=trace", "info, [s{f=*}]=trace", "info, é=debug", "é, ü=trace"] {
            assert!(directives(text).is_ok(), "{text}");
        }
    }

    /// Lines that a subscriber of its own writes, with the filter set anew meanwhile.
    #[test]
    fn a_filter_is_set_while_it_runs() {
        let (filter, handle) = reload::Layer::new(directives("warn").unwrap());
        let control = Control { current: Mutex::new("warn".to_owned()), handle };
        let lines = std::sync::Arc::new(Mutex::new(Vec::<u8>::new()));
        let layer = {
            let lines = std::sync::Arc::clone(&lines);
            let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || Lines(lines.clone()));
            layer.boxed().with_filter(bounded(filter))
        };
        let said = |text: &str| {
            let said = String::from_utf8(std::mem::take(&mut *lines.lock())).unwrap();
            assert!(if text.is_empty() { said.is_empty() } else { said.contains(text) }, "`{text}`: {said}");
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let say = || tracing::info!("said");
            say();
            said("");
            assert_eq!(control.set("info").unwrap(), "warn");
            say();
            said("said");
            assert_eq!(control.set("trace,x=loud").unwrap_err().split(':').next(), Some("`x=loud`"));
            assert_eq!(control.set("pushgate::store=debug").unwrap(), "info");
            say();
            said("");
            tracing::debug!(target: "pushgate::store", "deep");
            said("deep");
            assert_eq!(control.set("trace").unwrap(), "pushgate::store=debug");
            tracing::debug!(target: "h2", "a header");
            said("");
        });
    }

    #[test]
    fn lines_of_a_call_in_a_trace_name_it() {
        let lines = std::sync::Arc::new(Mutex::new(Vec::<u8>::new()));
        let layer = {
            let lines = std::sync::Arc::clone(&lines);
            json_lines().with_writer(move || Lines(lines.clone()))
        };
        let subscriber = tracing_subscriber::registry().with(layer.with_filter(bounded(directives("info").unwrap())));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(user = "alice", "outside");
            let call = tracing::error_span!(target: LOG_TARGET, "call", trace_id = %"0af7", span_id = %"b7ad");
            call.in_scope(|| tracing::info!(user = "bob", "inside"));
            let other = tracing::error_span!("another", trace_id = "x");
            other.in_scope(|| tracing::info!("elsewhere"));
        });
        let text = String::from_utf8(lines.lock().clone()).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let fields = |line: usize| {
            [&lines[line]["user"], &lines[line]["trace_id"], &lines[line]["span_id"]].map(|field| field.as_str())
        };
        assert_eq!(fields(0), [Some("alice"), None, None], "{text}");
        assert_eq!(fields(1), [Some("bob"), Some("0af7"), Some("b7ad")], "{text}");
        assert_eq!(fields(2), [None; 3], "{text}");
    }

    struct Lines(std::sync::Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_bad_filter_names_its_key_and_value() {
        let bad = Log { filter: "info,pushgate=loud".to_owned(), ..Log::default() };
        let text = bad.check().unwrap_err().to_string();
        assert!(text.starts_with("log.filter: `info,pushgate=loud` is not a log filter ("), "{text}");
        assert!(Log { filter: " ".to_owned(), ..Log::default() }.check().is_err());
        for good in ["info", "off", "info,pushgate::store=debug", "warn,[session{user=a}]=trace"] {
            assert!(Log { filter: good.to_owned(), ..Log::default() }.check().is_ok(), "{good}");
        }
    }
}
