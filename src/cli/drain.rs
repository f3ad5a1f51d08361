//! `pushgate drain` and `pushgate undrain`: the gateway out of service and back.

use std::time::Duration;

use clap::Args;

use super::{
    connect::{self, Format, Target},
    failure::{EXIT_FAILURE, Failure, Outcome, failed},
    json,
    output::{self, count},
};
use crate::api::proto::{DrainRequest, DrainState, Draining, UndrainRequest};

/// `pushgate drain`.
#[derive(Args, Debug)]
pub struct Drain {
    /// How long the closes are spread over, at most 1h [default: the number of sessions divided by drain.rate]
    #[arg(long, value_name = "SPAN", value_parser = connect::span)]
    over: Option<Duration>,
    /// When it is to be over at the latest, from now on; it goes before --over
    #[arg(long, value_name = "SPAN", value_parser = connect::span)]
    deadline: Option<Duration>,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// `pushgate undrain`.
#[derive(Args, Debug)]
pub struct Undrain {
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// Runs `pushgate drain`.
pub async fn drain(args: Drain) -> Outcome {
    let gateway = args.target.connect().await?;
    let proto = |span: Option<Duration>| {
        let too_long = || Failure::usage("a span is too long; at most 1h for --over, and 1d for --deadline");
        span.map(|span| prost_types::Duration::try_from(span).map_err(|_| too_long())).transpose()
    };
    let request = DrainRequest { over: proto(args.over)?, deadline: proto(args.deadline)? };
    // As long as it takes.
    let answered = gateway.calls().drain(gateway.endless(request)).await;
    let mut steps = answered.map_err(|status| gateway.refused(&status))?.into_inner();
    let mut drained = false;
    loop {
        let step = tokio::select! {
            biased;
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.map_err(failed("cannot wait for an interrupt"))?;
                output::note("the drain goes on; pushgate undrain ends it");
                return Ok(());
            }
            () = output::closed() => return Ok(()),
            step = steps.message() => step,
        };
        let step = match step {
            Ok(Some(step)) => step,
            Ok(None) => return Ok(()),
            // A gateway that stops goes when it is drained: nothing that was asked for is missing.
            Err(_) if drained => return Ok(()),
            Err(status) => return Err(gateway.refused(&status)),
        };
        drained = step.state() == DrainState::Drained;
        if args.format.json {
            output::json_line(&json::document("Draining", &step))?;
        } else {
            output::line(&text(&step))?;
        }
        if step.state() == DrainState::Serving {
            return Err(Failure::new(EXIT_FAILURE, "somebody took the gateway back into service"));
        }
    }
}

/// Runs `pushgate undrain`.
pub async fn undrain(args: Undrain) -> Outcome {
    let gateway = args.target.connect().await?;
    let answered = gateway.calls().undrain(gateway.request(UndrainRequest {})).await;
    let answer = answered.map_err(|status| gateway.refused(&status))?.into_inner();
    if args.format.json {
        return output::document(&json::document("UndrainResponse", &answer));
    }
    let sessions = count(answer.sessions, "session");
    output::line(&match answer.was_draining {
        true => format!("in service again, with {sessions}"),
        false => format!("it was in service, with {sessions}"),
    })
}

/// A step in words.
pub fn text(step: &Draining) -> String {
    let sessions = count(step.sessions, "session");
    let text = match step.state() {
        DrainState::Unspecified => String::new(),
        DrainState::Serving => "in service again".to_owned(),
        DrainState::NotReady => format!("not ready, and serves on: {sessions}"),
        DrainState::Closing => format!("closing: {} of {sessions} left", step.left),
        DrainState::Drained => "drained: no session left".to_owned(),
    };
    let text = if step.stopping { format!("{text}; the gateway stops") } else { text };
    match step.deadline.filter(|_| step.state() != DrainState::Drained) {
        Some(deadline) => format!("{text}; over by {deadline}"),
        None => text,
    }
}
