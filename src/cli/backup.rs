//! `pushgate backup`: a copy of the running store.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{
    connect::{Format, Target},
    failure::{EXIT_FAILURE, Failure, Outcome},
    json,
    output::{self, bytes, count},
};
use crate::api::proto::BackupRequest;

/// `pushgate backup`.
#[derive(Args, Debug)]
pub struct Backup {
    /// The folder to make, on the gateway's machine; it must not be there yet, the folder that it is in must
    #[arg(value_name = "PATH")]
    path: PathBuf,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// Runs it.
pub async fn backup(args: Backup) -> Outcome {
    let path = absolute(&args.path)?;
    let gateway = args.target.connect().await?;
    // As long as it takes; an interrupt ends it, and what was made goes.
    let answered = gateway.calls().backup(gateway.endless(BackupRequest { path: path.clone() })).await;
    let answer = answered.map_err(|status| gateway.refused(&status))?.into_inner();
    if args.format.json {
        return output::document(&json::document("BackupResponse", &answer));
    }
    let (records, size) = (count(answer.records, "pending notification"), bytes(answer.bytes as f64));
    output::line(&format!("{}: {records}, {size}", output::clean(&path)))
}

/// The path as seen from this folder.
fn absolute(path: &Path) -> Outcome<String> {
    let absolute = std::path::absolute(path).map_err(|error| Failure::file("cannot name", path, &error))?;
    let not_text = |_| Failure::new(EXIT_FAILURE, format!("{} is not UTF-8", path.display()));
    absolute.into_os_string().into_string().map_err(not_text)
}
