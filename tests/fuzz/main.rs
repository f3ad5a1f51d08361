//! Fuzzing on the stable toolchain: each target is a function that takes bytes, holds what the gateway makes of them
//! against an oracle, and says what kind of outcome it was. Bytes come from small corpora in the tree, changed at random;
//! what brings a kind of outcome that was not seen before joins those that are changed (`engine.rs`).
//!
//! Run it by `tests/fuzz.sh [TARGET...]`. From the environment: `FUZZ_SECONDS` for each target (20), `FUZZ_SEED` (of the
//! clock, and printed), `FUZZ_REPLAY`, a file to run once through the target that is named, `FUZZ_GROW=1` to keep what was
//! found in the corpora. A failing input is made smaller and written to `target/fuzz/`, and how to replay it is printed.
//!
//! To add a target: a function in `targets/`, a line in `targets::ALL`, a folder in `corpus/`.

mod engine;
mod memory;
mod targets;

#[path = "../support/inflate.rs"]
mod inflate;

use std::{
    collections::VecDeque,
    env, fs,
    path::PathBuf,
    process::ExitCode,
    sync::Mutex,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use engine::{Fuzzer, Report};
use targets::Target;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not `{text}`")))
}

fn chosen() -> Vec<&'static Target> {
    let named: Vec<String> = env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    for name in &named {
        let known: Vec<_> = targets::ALL.iter().map(|target| target.name).collect();
        assert!(known.contains(&&**name), "there is no target `{name}`; there are {}", known.join(", "));
    }
    targets::ALL.iter().filter(|target| named.is_empty() || named.iter().any(|name| name == target.name)).collect()
}

fn replay(file: &str, targets: &[&'static Target]) -> ExitCode {
    let [target] = targets else { panic!("name the one target that {file} is for") };
    let input = fs::read(file).unwrap_or_else(|error| panic!("{file}: {error}"));
    let kind = (target.run)(&input);
    println!("{}: {} bytes, outcome {kind:016x}", target.name, input.len());
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    let targets = chosen();
    if let Ok(file) = env::var("FUZZ_REPLAY") {
        return replay(&file, &targets);
    }
    let span = Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(20));
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
    let seed = number("FUZZ_SEED").unwrap_or_else(clock);
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    println!("fuzzing {} targets for {} s each, FUZZ_SEED={seed}", targets.len(), span.as_secs());
    // What panics is caught and told with its input.
    std::panic::set_hook(Box::new(|_| {}));
    let waiting = Mutex::new(targets.into_iter().collect::<VecDeque<_>>());
    let reports = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap().pop_front();
                    let Some(target) = next else { return };
                    let report = Fuzzer::new(target, &root, seed).run(span, env::var_os("FUZZ_GROW").is_some());
                    println!("{report}");
                    reports.lock().unwrap().push(report);
                }
            });
        }
    });
    let reports: Vec<Report> = reports.into_inner().unwrap();
    let executions: u64 = reports.iter().map(|report| report.executions).sum();
    let failed: Vec<_> = reports.iter().filter(|report| report.failure.is_some()).map(|report| report.target).collect();
    println!("{executions} executions in all, {} targets, {} failed {failed:?}", reports.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
