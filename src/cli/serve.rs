//! `pushgate serve`: the daemon, and with `--dev` what a newcomer needs to see a message in a minute.

use std::process::ExitCode;

use clap::Args;

use super::{Options, checked, complain, print};
use crate::{
    config::{Config, ConfigError, Loaded, Sources},
    dev::{self, Dev},
    server::{self, Ended, Server, StartError, activation::Passed},
    systemd, telemetry,
};

#[derive(Args, Debug, Default)]
pub(super) struct Serve {
    /// For a first look: on loopback, with a key of its own, and lines to paste
    ///
    /// Clients connect to 127.0.0.1:7000, services call 127.0.0.1:7001 without a token, probes are at 127.0.0.1:7002,
    /// data and a signing key (made at the first start) are in ./pushgate-data, and http://127.0.0.1:7000/ is a page
    /// that connects as alice. Every process of this machine may do everything.
    ///
    /// No configuration is read unless --config names one. Of that file the listeners, store.path and grpc.insecure are
    /// left aside, so that a file of production is safe to try; flags and the environment set them as ever. Listeners
    /// that other machines can reach are refused.
    #[arg(long)]
    dev: bool,
    #[command(flatten)]
    pub(super) options: Options,
}

impl Serve {
    pub(super) fn run(self) -> ExitCode {
        if !self.dev {
            let sources = self.options.sources();
            return match checked(sources.clone()) {
                Ok(loaded) => serve(&loaded, |server| server.set_source(Box::new(move || checked(sources.clone())))),
                Err(error) => refused(&error),
            };
        }
        let sources = Sources { default_file: None, mode: dev::settings(), ..self.options.sources() };
        let loaded = match checked_for_dev(sources.clone()) {
            Ok(loaded) => loaded,
            Err(error) => return refused(&error),
        };
        let dev = match Dev::open(&loaded.config) {
            Ok(dev) => dev,
            Err(error) => return failed(&error.to_string()),
        };
        if let Err(error) = loaded.check_files() {
            return refused(&error);
        }
        serve(&loaded, |server| {
            server.set_page(dev.page(server.listeners()));
            server.set_source(Box::new(move || {
                let loaded = checked_for_dev(sources.clone())?;
                loaded.check_files().map(|()| loaded)
            }));
            let lines = dev.lines(server.listeners());
            server.when_ready(move || print(&lines));
        })
    }
}

fn checked_for_dev(sources: Sources) -> Result<Loaded, ConfigError> {
    let mut loaded = Config::read(sources)?;
    dev::add_key(&mut loaded.config);
    loaded.check_dev()?;
    loaded.check()?;
    Ok(loaded)
}

fn serve(loaded: &Loaded, prepare: impl FnOnce(&mut Server)) -> ExitCode {
    let log = match telemetry::init(&loaded.config.log) {
        Ok(log) => log,
        Err(error) => return refused(&error),
    };
    for key in loaded.without_effect() {
        tracing::warn!(key, "this key has no effect in this version");
    }
    for (key, doubt) in loaded.doubts() {
        tracing::warn!(key, doubt, "this key will hardly do what is meant");
    }
    // While there is one thread: it changes the environment.
    let passed = match Passed::of_process() {
        Ok(passed) => passed,
        Err(error) => return refused(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("cannot start: {error}")),
    };
    let ended = runtime.block_on(server::run(&loaded.config, passed, |server| {
        server.set_log_control(Box::new(move |filter| log.set(filter)));
        prepare(server);
    }));
    // What is left at the deadline is not waited for.
    runtime.shutdown_background();
    match ended {
        Ok(Ended::InOrder) => ExitCode::SUCCESS,
        Ok(Ended::Failed(failure)) => failed(&failure),
        Err(error @ StartError::Config(_)) => refused(&error),
        Err(error) => failed(&error.to_string()),
    }
}

/// The configuration is wrong; `systemctl status` says so, too.
fn refused(error: &dyn std::error::Error) -> ExitCode {
    systemd::failed(&error.to_string());
    super::wrong_config(error)
}

/// It does not start, or did not end in order.
fn failed(why: &str) -> ExitCode {
    systemd::failed(why);
    complain(why);
    ExitCode::FAILURE
}
