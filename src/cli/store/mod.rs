//! `pushgate store …`: work on a store while no gateway has it open. What is done is `store::tools`'; here is what is
//! asked for, and what is said about it.

mod show;

use std::{
    fs::{self, OpenOptions},
    io::{self, BufReader, BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::{
    connect::{File, Format},
    failure::{EXIT_FAILURE, EXIT_PERMISSION, Failure, Outcome},
    output::{self, bytes, count},
};
use crate::{
    clock::Clock,
    store::{
        EngineName, OpenError,
        tools::{self, Place, ToolError},
    },
    types::UserId,
};

/// `pushgate store`.
#[derive(Subcommand, Debug)]
pub enum Store {
    /// Read everything and say whether it is whole; exit code 1 where it is damaged
    ///
    /// Nothing is changed. A store of an older format is not read: start the gateway once, or compact it.
    #[command(after_help = "Examples:
  pushgate store check
  pushgate store check --path /backup/pushgate --json")]
    Check(Check),
    /// Say what is in it
    ///
    /// Nothing is changed. A store of an older format is not read: start the gateway once, or compact it.
    #[command(after_help = "Examples:
  pushgate store stats
  pushgate store stats --json | jq '.topByBytes[0]'")]
    Stats(Stats),
    /// Write it out as JSON Lines, a line a row
    ///
    /// The first line says what was exported, the last one how many rows came between. Payloads are written as they are.
    /// What cannot be read is left out, counted in the last line, and makes the exit code 1. An older format is brought up
    /// to the present one first.
    #[command(after_help = "Examples:
  pushgate store export store.jsonl
  pushgate store export | gzip > store.jsonl.gz
  pushgate store export --user alice | jq -c .notification.data
  pushgate store export --json store.jsonl")]
    Export(Export),
    /// Make a store of an export
    ///
    /// It must not be there yet, or be empty. It goes on where the exported one stood: the same identity, no offset given
    /// twice. --engine makes one of another engine.
    #[command(after_help = "Examples:
  pushgate store import store.jsonl
  gunzip -c store.jsonl.gz | pushgate store import - --path ./restored --json")]
    Import(Import),
    /// Rewrite it, so that it takes no more room on the disk than it needs
    ///
    /// Made beside it, and put in its place at one stroke: needs that room for a while, and to write the folder that the
    /// store's folder is in.
    #[command(after_help = "Examples:
  pushgate store compact
  pushgate store compact --config ./pushgate.toml --json")]
    Compact(Compact),
}

/// Which store.
#[derive(Args, Debug)]
#[command(next_help_heading = "Store")]
pub struct Which {
    #[command(flatten)]
    file: File,
    /// The store's folder, whatever the configuration says
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Its engine [default: the one whose files are there]
    #[arg(long, value_name = "NAME")]
    engine: Option<Engine>,
}

/// An engine, as the configuration names it.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Engine {
    Sled,
    Redb,
}

/// `pushgate store check`.
#[derive(Args, Debug)]
pub struct Check {
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    which: Which,
}

/// `pushgate store stats`.
#[derive(Args, Debug)]
pub struct Stats {
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    which: Which,
}

/// `pushgate store export`.
#[derive(Args, Debug)]
pub struct Export {
    /// The file to write, which must not be there yet; - for standard output
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// Only what is stored of this user, to look at
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    which: Which,
}

/// `pushgate store import`.
#[derive(Args, Debug)]
pub struct Import {
    /// The export; - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    which: Which,
}

/// `pushgate store compact`.
#[derive(Args, Debug)]
pub struct Compact {
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    which: Which,
}

impl From<ToolError> for Failure {
    fn from(error: ToolError) -> Self {
        let denied = |source: &io::Error| source.kind() == io::ErrorKind::PermissionDenied;
        let code = match &error {
            ToolError::Open(OpenError::NotWritable { .. }) => EXIT_PERMISSION,
            ToolError::File { source, .. } if denied(source) => EXIT_PERMISSION,
            // Whoever read what was exported has enough.
            ToolError::Stream { source, .. } if source.kind() == io::ErrorKind::BrokenPipe => {
                return Failure::reader_gone();
            }
            _ => EXIT_FAILURE,
        };
        Failure::new(code, error.to_string())
    }
}

impl Which {
    /// The store that is there: of the engine that is named, else of the one whose files are found.
    fn place(&self) -> Outcome<Place> {
        let engine = self.engine.map(Engine::name);
        let path = match &self.path {
            Some(path) => path.clone(),
            None => self.file.read()?.config.store.path,
        };
        Ok(Place { path, engine })
    }

    /// The store that is to be: of the engine that is named, else of the configured one.
    fn new_place(&self) -> Outcome<Place> {
        let mut place = self.place()?;
        if place.engine.is_none() && (self.path.is_none() || self.file.config.is_some()) {
            place.engine = Some(self.file.read()?.config.store.engine);
        }
        Ok(place)
    }
}

impl Engine {
    fn name(self) -> EngineName {
        match self {
            Engine::Sled => EngineName::Sled,
            Engine::Redb => EngineName::Redb,
        }
    }
}

/// Runs one of them. Blocks.
pub fn store(store: Store) -> Outcome {
    match store {
        Store::Check(args) => check(&args),
        Store::Stats(args) => stats(&args),
        Store::Export(args) => export(&args),
        Store::Import(args) => import(&args),
        Store::Compact(args) => compact(&args),
    }
}

fn check(args: &Check) -> Outcome {
    let place = args.which.place()?;
    let report = tools::check(&place)?;
    if args.format.json {
        output::document(&show::report_json(&report))?;
    } else {
        output::line(&show::report_text(&place.path, &report))?;
    }
    if report.damaged == 0 {
        return Ok(());
    }
    let text = format!(
        "the store at {} is damaged: {}; restore a backup, or export what can be read and import it into a new store",
        place.path.display(),
        count(report.damaged, "problem")
    );
    Err(Failure::new(EXIT_FAILURE, text))
}

fn stats(args: &Stats) -> Outcome {
    let place = args.which.place()?;
    let stats = tools::stats(&place)?;
    match args.format.json {
        true => output::document(&show::stats_json(&stats)),
        false => output::line(&show::stats_text(&place.path, &stats, output::width())),
    }
}

fn export(args: &Export) -> Outcome {
    let to_stdout = args.file == Path::new("-");
    if to_stdout && args.format.json {
        return Err(Failure::usage(
            "--json tells about an export into a FILE; what goes to standard output is JSON Lines",
        ));
    }
    let user = args.user.as_deref().map(UserId::parse).transpose();
    let user = user.map_err(|error| Failure::usage(format!("--user: {error}")))?;
    let place = args.which.place()?;
    let now = Clock::system().unix_millis();
    let exported = if to_stdout {
        tools::export(&place, user.as_ref(), now, &mut BufWriter::new(io::stdout()))?
    } else {
        export_to(&args.file, |out| tools::export(&place, user.as_ref(), now, out))?
    };
    if args.format.json {
        let (rows, unreadable) = (exported.rows.to_string(), exported.unreadable.to_string());
        output::document(&json!({ "file": args.file, "rows": rows, "unreadable": unreadable }))?;
    } else if !to_stdout {
        output::line(&format!("exported {} to {}", count(exported.rows, "row"), args.file.display()))?;
    }
    if exported.unreadable == 0 {
        return Ok(());
    }
    let text = format!(
        "{} could not be read and left out; `pushgate store check` says which",
        count(exported.unreadable, "row")
    );
    Err(Failure::new(EXIT_FAILURE, text))
}

/// Writes a file that is whole, on disk, or not there. It holds what users were sent: it is for its owner alone.
fn export_to(
    file: &Path,
    export: impl FnOnce(&mut dyn io::Write) -> Result<tools::Exported, ToolError>,
) -> Outcome<tools::Exported> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let mut out = BufWriter::new(opened.map_err(|error| Failure::file("cannot write", file, &error))?);
    let exported = export(&mut out).map_err(Failure::from).and_then(|exported| {
        let written = out.flush().and_then(|()| out.get_ref().sync_all());
        written.map(|()| exported).map_err(|error| Failure::file("cannot write", file, &error))
    });
    if exported.is_err() {
        // What is told is why.
        let _ = fs::remove_file(file);
    }
    exported
}

fn import(args: &Import) -> Outcome {
    let place = args.which.new_place()?;
    let rows = if args.file == Path::new("-") {
        tools::import(&place, &mut io::stdin().lock())?
    } else {
        let file = fs::File::open(&args.file).map_err(|error| Failure::file("cannot read", &args.file, &error))?;
        tools::import(&place, &mut BufReader::new(file))?
    };
    match args.format.json {
        true => output::document(&json!({ "path": place.path, "rows": rows.to_string() })),
        false => output::line(&format!("imported {} into {}", count(rows, "row"), place.path.display())),
    }
}

fn compact(args: &Compact) -> Outcome {
    let place = args.which.place()?;
    let done = tools::compact(&place)?;
    if args.format.json {
        return output::document(&json!({
            "path": place.path,
            "rows": done.rows.to_string(),
            "bytesBefore": done.bytes_before.to_string(),
            "bytesAfter": done.bytes_after.to_string(),
        }));
    }
    let [before, after] = [done.bytes_before, done.bytes_after].map(|size| bytes(size as f64));
    output::line(&format!("{}: {}, {before} before, {after} now", place.path.display(), count(done.rows, "row")))
}
