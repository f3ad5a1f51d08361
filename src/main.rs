//! The daemon's entry.

fn main() -> std::process::ExitCode {
    pushgate::cli::run(std::env::args_os())
}
