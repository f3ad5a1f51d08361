//! Whether a session and a stored notification cost at a hundred times the size what they cost at one.
//!
//! `cargo bench --bench growth [-- SECTION... SIZE...]`, each of them or all where nothing is said; five minutes after the
//! build. It prints a table a section, and decides nothing. The sections:
//!
//! * `real` (1,000, 5,000, 10,000, 19,000): sessions over TCP with the built daemon, a fresh one each.
//! * `memory` (1,000, 10,000, 100,000, 1,000,000): sessions in a process, over the hub and a store on disk, with wires that
//!   take everything. At the largest size it needs about 3 GiB of memory; `-- memory 1000 10000 100000` leaves it out.
//! * `stored` (10,000, 100,000, 1,000,000): stored notifications, ten a user, in a process, over the hub and a store on disk.
//!
//! Memory is resident memory, with mimalloc as in the daemon. Each size has a process of its own, so that none finds what
//! another left. The last row holds the largest size against the smallest; what does not stand out from what the process
//! takes anyhow is left blank.

#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../support/load.rs"]
mod load;
#[path = "../support/made.rs"]
mod made;
mod memory;
mod real;
mod stored;
#[path = "../support/usage.rs"]
mod usage;

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use daemon::Error;

/// The daemon's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What one size may take.
const PATIENCE: Duration = Duration::from_secs(280);
/// What a child is told first.
const CHILD: &str = "measure-one";

/// What is measured at each size.
struct Section {
    name: &'static str,
    of: &'static str,
    sizes: &'static [u64],
    columns: &'static [&'static str],
}

const SECTIONS: [Section; 3] = [
    Section { name: "real", of: "sessions", sizes: &[1000, 5000, 10_000, 19_000], columns: real::COLUMNS },
    Section { name: "memory", of: "sessions", sizes: &[1000, 10_000, 100_000, 1_000_000], columns: memory::COLUMNS },
    Section { name: "stored", of: "notifications", sizes: &[10_000, 100_000, 1_000_000], columns: stored::COLUMNS },
];

async fn one(section: &str, size: u64) -> Result<Vec<f64>, Error> {
    match section {
        "real" => real::measure(size).await,
        "memory" => memory::measure(size).await,
        _ => stored::measure(size).await,
    }
}

/// Measures one size in a process of its own.
fn in_child(section: &str, size: u64) -> Result<Vec<f64>, Error> {
    let mut command = Command::new(std::env::current_exe()?);
    let output = command.args([CHILD, section, &size.to_string()]).stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        return Err("it failed".into());
    }
    text.split_whitespace().map(|number| number.parse().map_err(Error::from)).collect()
}

fn table(section: &Section, sizes: &[u64]) {
    let Section { name, of, columns, .. } = section;
    println!("\n| {name}: {of} | {} |", columns.join(" | "));
    println!("|---|{}", "---|".repeat(columns.len()));
    let cells = |row: &[f64], unit: &str| {
        // What could not be measured is no number.
        let cell = |n: &f64| if n.is_finite() { format!("{n:.2}{unit}") } else { String::new() };
        row.iter().map(cell).collect::<Vec<_>>().join(" | ")
    };
    let mut rows = Vec::new();
    for size in sizes {
        match in_child(name, *size) {
            Ok(row) => {
                println!("| {size} | {} |", cells(&row, ""));
                rows.push((size, row));
            }
            Err(error) => println!("| {size} | {error} {}", "|".repeat(columns.len())),
        }
    }
    if let [(first, bottom), .., (last, top)] = &rows[..] {
        let ratios: Vec<f64> = top.iter().zip(bottom).map(|(top, bottom)| top / bottom).collect();
        println!("| {last} : {first} | {} |", cells(&ratios, " ×"));
    }
}

fn main() -> Result<(), Error> {
    let _ = pushgate::net::raise_descriptor_limit();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if let [child, section, size] = &arguments[..]
        && child == CHILD
    {
        let size = size.parse()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let row = runtime.block_on(async { tokio::time::timeout(PATIENCE, one(section, size)).await })??;
        println!("{}", row.iter().map(f64::to_string).collect::<Vec<_>>().join(" "));
        // What is left, a million sessions or a store's threads, goes with the process.
        runtime.shutdown_background();
        return Ok(());
    }
    let sizes: Vec<u64> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let named: Vec<&String> = arguments.iter().filter(|argument| argument.parse::<u64>().is_err()).collect();
    for section in &SECTIONS {
        if named.is_empty() || named.iter().any(|name| *name == section.name) {
            table(section, if sizes.is_empty() { section.sizes } else { &sizes });
        }
    }
    Ok(())
}
