//! The daemon's entry.

#![forbid(unsafe_code)]

/// mimalloc: measured against the system's, see ARCHITECTURE.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    pushgate::cli::run(std::env::args_os())
}
