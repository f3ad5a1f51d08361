//! `pushgate log`: what the running gateway logs.

use clap::Args;

use super::{
    connect::{Format, Target},
    failure::Outcome,
    json,
    output::{self, clean},
};
use crate::api::proto;

/// `pushgate log`.
#[derive(Args, Debug)]
pub struct Log {
    /// A level (off, error, warn, info, debug, trace), or directives such as info,pushgate::store=debug
    filter: String,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// Runs `pushgate log`.
pub async fn log(args: Log) -> Outcome {
    let gateway = args.target.connect().await?;
    let request = proto::SetLogFilterRequest { filter: args.filter.clone() };
    let answered = gateway.calls().set_log_filter(gateway.request(request)).await;
    let answer = answered.map_err(|status| gateway.refused(&status))?.into_inner();
    if args.format.json {
        return output::document(&json::document("SetLogFilterResponse", &answer));
    }
    output::line(&format!("logs {}; before: {}", clean(args.filter.trim()), clean(&answer.previous)))
}
