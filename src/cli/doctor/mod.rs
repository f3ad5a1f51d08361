//! `pushgate doctor`: a line a check, ok, warn or FAIL, and what to do.
//!
//! * `host.rs`: what the machine gives: ports, descriptors, clock, the store's folder. Nothing is changed.
//! * `round_trip.rs`: what the gateway does: a message to itself through the whole way.

mod host;
mod round_trip;

use clap::Args;
use serde::Serialize;
use tonic_health::pb::health_check_response::ServingStatus;

use super::{
    connect::{Format, Gateway, Target, origin},
    failure::{EXIT_FAILURE, EXIT_UNAVAILABLE, Failure, Outcome},
    output, status,
};
use crate::{
    api::proto::GetStatusResponse,
    config::{Config, Loaded},
    telemetry,
};

/// `pushgate doctor`.
#[derive(Args, Debug)]
pub struct Doctor {
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    Ok,
    Warn,
    Fail,
}

/// A check that was made.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    check: &'static str,
    status: Grade,
    message: String,
}

/// What was found so far.
#[derive(Debug, Default, Serialize)]
struct Findings {
    checks: Vec<Finding>,
}

impl Findings {
    fn add(&mut self, check: &'static str, status: Grade, message: impl Into<String>) {
        self.checks.push(Finding { check, status, message: message.into() });
    }

    fn ok(&mut self, check: &'static str, message: impl Into<String>) {
        self.add(check, Grade::Ok, message);
    }

    fn warn(&mut self, check: &'static str, message: impl Into<String>) {
        self.add(check, Grade::Warn, message);
    }

    fn fail(&mut self, check: &'static str, message: impl Into<String>) {
        self.add(check, Grade::Fail, message);
    }
}

/// A gateway that answers, and what it says of itself, where the caller may ask.
struct Running {
    gateway: Gateway,
    page: Option<GetStatusResponse>,
}

/// Runs `pushgate doctor`.
pub async fn doctor(args: Doctor) -> Outcome {
    let mut findings = Findings::default();
    let loaded = configuration(&args, &mut findings);
    let running = gateway(&args, loaded.is_some(), &mut findings).await;
    if let Some(loaded) = &loaded {
        host::ports(&loaded.config, running.as_ref(), &mut findings);
        host::descriptors(&loaded.config, &mut findings);
        host::store(&loaded.config.store, running.is_some(), &mut findings);
    }
    host::clock(loaded.as_ref(), running.as_ref(), &mut findings);
    if let (Some(loaded), Some(running)) = (&loaded, &running) {
        round_trip::check(loaded, running, &args.target.trust, &mut findings).await;
    } else {
        findings.warn("round trip", "not tried: no gateway answers, or its configuration is not known");
    }
    if args.format.json {
        output::document(&findings)?;
    } else {
        for finding in &findings.checks {
            let grade = match finding.status {
                Grade::Ok => "ok",
                Grade::Warn => "warn",
                Grade::Fail => "FAIL",
            };
            output::line(&format!("{grade:<4}  {:<13}  {}", finding.check, output::clean(&finding.message)))?;
        }
    }
    let failed = findings.checks.iter().filter(|finding| finding.status == Grade::Fail).count();
    if failed == 0 {
        Ok(())
    } else {
        Err(Failure::new(EXIT_FAILURE, output::count(failed as u64, "check") + " failed"))
    }
}

/// Reads the configuration as `serve` would. What can be understood of a wrong one serves the other checks.
fn configuration(args: &Doctor, findings: &mut Findings) -> Option<Loaded> {
    const CHECK: &str = "configuration";
    let checked = Config::load(args.target.file.sources()).and_then(|loaded| {
        loaded.check_files()?;
        Ok(loaded)
    });
    match checked {
        Ok(loaded) => {
            match telemetry::check(&loaded.config.log) {
                Ok(()) => findings.ok(CHECK, format!("{}: valid", origin(&loaded))),
                Err(error) => findings.fail(CHECK, error.to_string()),
            }
            for key in loaded.without_effect() {
                findings.warn(CHECK, format!("{key} has no effect in this version"));
            }
            for (key, doubt) in loaded.doubts() {
                findings.warn(CHECK, format!("{key}: {doubt}"));
            }
            Some(loaded)
        }
        Err(error) => {
            for problem in error.problems() {
                findings.fail(CHECK, problem.clone());
            }
            Config::read(args.target.file.sources()).ok()
        }
    }
}

/// Looks for a gateway and asks it how it does. None is fine: there may be one later.
async fn gateway(args: &Doctor, configured: bool, findings: &mut Findings) -> Option<Running> {
    const CHECK: &str = "gateway";
    if !configured && args.target.grpc.is_none() {
        return None;
    }
    let gateway = match args.target.connect().await {
        Ok(gateway) => gateway,
        Err(failure) if failure.code() == EXIT_UNAVAILABLE => {
            findings.warn(CHECK, failure.message());
            return None;
        }
        Err(failure) => {
            findings.fail(CHECK, failure.message());
            return None;
        }
    };
    match status::serving(&gateway, String::new()).await {
        Ok(ServingStatus::Serving) => {}
        Ok(other) => findings.fail(CHECK, format!("{} says {}; see its log", gateway.address(), other.as_str_name())),
        Err(failure) => {
            findings.fail(CHECK, failure.message());
            return None;
        }
    }
    let page = match status::fetch(&gateway).await {
        Ok(page) => Some(page),
        Err(failure) => {
            findings.warn(CHECK, format!("serves, but its state cannot be asked for: {}", failure.message()));
            None
        }
    };
    if let Some(page) = &page {
        let store = page.store.clone().unwrap_or_default();
        if !store.healthy {
            findings.fail(CHECK, format!("its store takes no writes: {}", store.reason));
        } else if page.version != env!("CARGO_PKG_VERSION") {
            let text =
                format!("version {} runs, this is {}; restart it to update", page.version, env!("CARGO_PKG_VERSION"));
            findings.warn(CHECK, text);
        } else {
            let up = output::span(output::duration(page.uptime.as_ref()));
            findings.ok(CHECK, format!("version {} answers at {}, up {up}", page.version, gateway.address()));
        }
    }
    Some(Running { gateway, page })
}
