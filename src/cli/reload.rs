//! `pushgate reload`: the running gateway's configuration read again.

use clap::Args;

use super::{
    connect::{Format, Target},
    failure::Outcome,
    json,
    output::{self, clean},
};
use crate::api::proto::{ConfigChange, ReloadRequest};

/// `pushgate reload`.
#[derive(Args, Debug)]
pub struct Reload {
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// Runs it.
pub async fn reload(args: Reload) -> Outcome {
    let gateway = args.target.connect().await?;
    let answered = gateway.calls().reload(gateway.request(ReloadRequest {})).await;
    let answer = answered.map_err(|status| gateway.refused(&status))?.into_inner();
    if args.format.json {
        return output::document(&json::document("ReloadResponse", &answer));
    }
    if answer.changed.is_empty() && answer.needs_restart.is_empty() {
        output::line("nothing is other than before")?;
    }
    for (what, changes) in [("changed", &answer.changed), ("needs a restart", &answer.needs_restart)] {
        for change in changes {
            output::line(&format!("{what}: {}", shown(change)))?;
        }
    }
    for warning in &answer.warnings {
        output::line(&format!("warning: {}", clean(warning)))?;
    }
    Ok(())
}

fn shown(change: &ConfigChange) -> String {
    let key = clean(&change.key);
    if change.old == change.new {
        // Only what stands in a file, or a secret.
        return key.into_owned();
    }
    let value = |text: &str| if text.is_empty() { "not set".to_owned() } else { clean(text).into_owned() };
    format!("{key}: {} → {}", value(&change.old), value(&change.new))
}
