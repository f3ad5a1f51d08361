//! `pushgate man`: the manual pages, section 1, made from the command line itself: `pushgate.1`, `pushgate-send.1`, … For
//! whoever packages the daemon; not in `--help`.

use std::path::PathBuf;

use clap::Args;

use super::failure::{Failure, Outcome};

/// `pushgate man`.
#[derive(Args, Debug)]
pub struct Man {
    /// The folder to write to; pages that are there are replaced
    folder: PathBuf,
}

/// Runs `pushgate man`. `command` is the whole command line.
pub fn man(args: &Man, command: clap::Command) -> Outcome {
    clap_mangen::generate_to(command, &args.folder)
        .map_err(|error| Failure::file("cannot write the manual pages to", &args.folder, &error))
}
