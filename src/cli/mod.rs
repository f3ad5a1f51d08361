//! The command line: the daemon (`pushgate serve`, `pushgate config`) and what operators ask of it from outside, over
//! gRPC like any other caller.
//!
//! * `operator.rs`: the commands and how each is run; `connect.rs`: how they reach the gateway.
//! * `send.rs`, `mailbox.rs`, `revoke.rs`, `status.rs`, `sessions.rs`, `users.rs`, `topics.rs`, `events.rs`, `log.rs`, `reload.rs`, `backup.rs`, `drain.rs`: one or a
//!   few RPCs each; `listen.rs`: a
//!   client of the public listener; `stress.rs`: a load on both; `token.rs`, `init.rs`: secrets; `doctor/`: everything at
//!   once; `store/`: a store on disk.
//! * `live/`: the screens of `status --watch` and `top`.
//! * `man.rs`: the manual pages, for packages.
//! * `table.rs`, `output.rs`, `failure.rs`: what comes out, and how it ends.
//!
//! Results go to standard output, notes and errors to standard error. Exit codes (those above 2 are of sysexits.h):
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed |
//! | 2 | the command line is wrong, data that is not JSON included |
//! | 69 | no gateway answers, or it takes no work (`UNAVAILABLE`) |
//! | 77 | not allowed: `UNAUTHENTICATED`, `PERMISSION_DENIED`, a socket or file that may not be opened |
//! | 78 | the configuration is wrong |

mod backup;
mod connect;
mod doctor;
mod drain;
mod events;
mod failure;
mod init;
mod jwt;
mod listen;
mod live;
mod log;
mod mailbox;
mod man;
mod operator;
mod output;
mod reload;
mod revoke;
mod secure;
mod send;
mod sessions;
mod status;
mod store;
mod stress;
mod table;
mod token;
mod topics;
mod users;

mod serve;

use std::{ffi::OsString, io::Write as _, path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory as _, Parser, Subcommand, builder::PossibleValuesParser};

use self::{failure::EXIT_CONFIG, operator::Operator};
use crate::{
    api::json,
    config::{Config, ConfigError, Flag, Loaded, Sources},
    telemetry,
};

/// What `pushgate --help` ends with.
const EXIT_CODES: &str = "Exit codes:
  0   done
  1   failed
  2   the command line is wrong, data that is not JSON included
  69  no gateway answers, or it takes no work
  77  not allowed: token, scope, or a socket or file that may not be opened
  78  the configuration is wrong

Commands find the gateway by the Unix socket of grpc.listen in its configuration. --grpc ADDR and
--token-file FILE, or PUSHGATE_GRPC and PUSHGATE_TOKEN_FILE, name another.";

/// A realtime push gateway: gRPC in, WebSockets out, durable per-user delivery between them.
#[derive(Parser, Debug)]
#[command(name = "pushgate", version, arg_required_else_help = true, propagate_version = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the gateway
    ///
    /// SIGTERM and SIGINT stop it in order, a second one at once; SIGHUP has the configuration read again. Exit code 78: the configuration is wrong.
    Serve(serve::Serve),
    /// Look at the configuration without starting
    #[command(subcommand, arg_required_else_help = true)]
    Config(ConfigCommand),
    #[command(flatten)]
    Operator(Box<Operator>),
}

#[derive(Subcommand, Debug)]
enum ConfigCommand {
    /// Say whether the gateway would start; key and token files are read, too
    ///
    /// Exit code 0 and one line where it would; 78, and a line for each problem on standard error, where it would not.
    Check(Options),
    /// Print the effective configuration as TOML, each value with its origin, secrets masked
    Show(Options),
}

#[derive(Args, Debug, Default)]
#[command(after_long_help = "Every key of the configuration can also be set in the environment, as \
                             PUSHGATE_SECTION__KEY: PUSHGATE_HEARTBEAT__INTERVAL=20s, \
                             PUSHGATE_HTTP__LISTEN='[\"0.0.0.0:7000\"]'. Flags go before the environment, the \
                             environment before the file, the file before the defaults.")]
struct Options {
    /// The configuration, TOML [default: /etc/pushgate/pushgate.toml, where it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where clients connect, host:port, such as 0.0.0.0:7000; may be given several times [http.listen]
    #[arg(long, value_name = "ADDR")]
    http_listen: Vec<String>,
    /// Where services call, host:port or unix:PATH, such as unix:./admin.sock or 127.0.0.1:7001; may be given several
    /// times [grpc.listen]
    #[arg(long, value_name = "ADDR")]
    grpc_listen: Vec<String>,
    /// Where probes and calls over HTTP are answered, host:port, such as 127.0.0.1:7002; may be given several times
    /// [ops.listen]
    #[arg(long, value_name = "ADDR")]
    ops_listen: Vec<String>,
    /// The folder that holds the data, such as /var/lib/pushgate [store.path]
    #[arg(long, value_name = "DIR")]
    store_path: Option<String>,
    /// What is logged: a level or directives, such as info,pushgate::store=debug; RUST_LOG, where set, goes first
    /// [log.filter]
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,
    /// How it is logged; auto: human on a terminal, else journald or json [log.format]
    #[arg(long, value_name = "FORMAT", value_parser = PossibleValuesParser::new(["auto", "human", "json", "journald"]))]
    log_format: Option<String>,
}

impl Options {
    fn sources(self) -> Sources {
        let lists = [
            ("--http-listen", "http.listen", self.http_listen),
            ("--grpc-listen", "grpc.listen", self.grpc_listen),
            ("--ops-listen", "ops.listen", self.ops_listen),
        ];
        let texts = [
            ("--store-path", "store.path", self.store_path),
            ("--log-filter", "log.filter", self.log_filter),
            ("--log-format", "log.format", self.log_format),
        ];
        let lists = lists.into_iter().filter(|(.., list)| !list.is_empty()).map(|(name, key, list)| Flag {
            name,
            key,
            value: list.into(),
        });
        let texts = texts.into_iter().filter_map(|(name, key, text)| Some(Flag { name, key, value: text?.into() }));
        Sources::of_process(self.config, lists.chain(texts).collect())
    }
}

/// Runs what the command line asks for; `args` begins with the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match Cli::try_parse_from(args) {
        Ok(Cli { command: Command::Serve(serve) }) => serve.run(),
        Ok(Cli { command: Command::Config(ConfigCommand::Check(options)) }) => check(options),
        Ok(Cli { command: Command::Config(ConfigCommand::Show(options)) }) => show(options),
        Ok(Cli { command: Command::Operator(operator) }) => match operator::run(*operator, Cli::command()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report(),
        },
        Err(usage) => {
            // Help and version end here, too, with 0; there is nobody to tell that they could not be printed.
            let _ = usage.print();
            ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(2))
        }
    }
}

fn check(options: Options) -> ExitCode {
    let loaded = match checked(options.sources()) {
        Ok(loaded) => loaded,
        Err(error) => return wrong_config(&error),
    };
    if let Err(error) = telemetry::check(&loaded.config.log) {
        return wrong_config(&error);
    }
    print(&format!("{}: valid\n", name_of(&loaded)));
    ExitCode::SUCCESS
}

/// The configuration, with the files it names looked at: `serve` and `check` refuse the same in the same words.
fn checked(sources: Sources) -> Result<Loaded, ConfigError> {
    let loaded = Config::load(sources)?;
    loaded.check_files()?;
    Ok(loaded)
}

fn show(options: Options) -> ExitCode {
    match Config::read(options.sources()) {
        Ok(loaded) => {
            print(&loaded.to_toml());
            ExitCode::SUCCESS
        }
        Err(error) => wrong_config(&error),
    }
}

fn name_of(loaded: &Loaded) -> String {
    loaded.file().map_or_else(|| "configuration".to_owned(), |file| file.display().to_string())
}

fn wrong_config(error: &dyn std::error::Error) -> ExitCode {
    complain(&error.to_string());
    ExitCode::from(EXIT_CONFIG)
}

/// To standard output; a reader that went away is no error.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// To standard error, where nobody may be listening.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(args: &[&str]) -> Options {
        match Cli::try_parse_from(["pushgate", "serve"].iter().chain(args)).unwrap().command {
            Command::Serve(serve) => serve.options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_name_the_keys_they_set() {
        let sources = options(&[
            "--config",
            "a.toml",
            "--http-listen",
            "127.0.0.1:0",
            "--http-listen",
            "[::1]:0",
            "--store-path",
            "7",
            "--log-format",
            "json",
        ])
        .sources();
        assert_eq!(sources.file, Some("a.toml".into()));
        let flags: Vec<_> = sources.flags.iter().map(|flag| (flag.name, flag.key)).collect();
        assert_eq!(
            flags,
            [("--http-listen", "http.listen"), ("--store-path", "store.path"), ("--log-format", "log.format")]
        );
        assert_eq!(sources.flags[0].value, figment::value::Value::from(vec!["127.0.0.1:0", "[::1]:0"]));
    }

    #[test]
    fn a_wrong_command_line_is_a_usage_error() {
        for args in
            [&["pushgate", "serv"][..], &["pushgate", "serve", "--log-format", "xml"], &["pushgate", "serve", "x"]]
        {
            assert_eq!(Cli::try_parse_from(args).unwrap_err().exit_code(), 2);
        }
        assert_eq!(Cli::try_parse_from(["pushgate", "--help"]).unwrap_err().exit_code(), 0);
    }
}
