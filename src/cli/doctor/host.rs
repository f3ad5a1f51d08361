//! What the machine gives a gateway. Nothing is changed: sockets are bound for a moment, a lock is taken for a moment.

use std::{
    fs::{self, File, TryLockError},
    io,
    net::{TcpListener, ToSocketAddrs as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::{fs::Access, process::Resource};

use super::{Findings, Running};
use crate::{
    api::proto::GetStatusResponse,
    cli::output::{bytes, duration, span},
    config::{Config, Loaded},
    limits, store,
    types::ListenAddress,
};

/// The file whose lock the engine holds.
const STORE_FILE: &str = "db";
/// A clock before this, 2026-01-01, was never set.
const CLOCK_LEAST: Duration = Duration::from_secs(1_767_225_600);
/// How far two clocks that are kept may be apart.
const CLOCK_APART: Duration = Duration::from_secs(5);

/// Whether every address is free, or held by the gateway that answers.
pub fn ports(config: &Config, running: Option<&Running>, findings: &mut Findings) {
    let page = running.and_then(|running| running.page.as_ref());
    for (check, listen) in
        [("http.listen", &config.http.listen), ("grpc.listen", &config.grpc.listen), ("ops.listen", &config.ops.listen)]
    {
        for text in listen {
            match ListenAddress::parse(text) {
                Ok(ListenAddress::Unix(path)) => unix_socket(check, text, &path, running, findings),
                Ok(ListenAddress::Tcp { port: 0, .. }) => {
                    findings.ok(check, format!("{text}: a free port at each start"))
                }
                Ok(ListenAddress::Tcp { .. }) => port(check, text, page, running.is_some(), findings),
                // The configuration's own check has told it.
                Err(_) => {}
            }
        }
    }
}

fn port(check: &'static str, text: &str, page: Option<&GetStatusResponse>, running: bool, findings: &mut Findings) {
    let address = match text.to_socket_addrs().map(|mut addresses| addresses.next()) {
        Ok(Some(address)) => address,
        Ok(None) => return findings.fail(check, format!("{text}: the name resolves to no address")),
        Err(error) => return findings.fail(check, format!("{text}: {error}; write an address of this machine")),
    };
    let held = page.is_some_and(|page| page.listeners.iter().any(|one| one.address == address.to_string()));
    match TcpListener::bind(address) {
        Ok(_) => findings.ok(check, format!("{text}: free")),
        Err(_) if held => findings.ok(check, format!("{text}: held by the running gateway")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && running && page.is_none() => {
            findings.warn(check, format!("{text}: in use; whether by the running gateway could not be asked"));
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let text =
                format!("{text}: in use by another process (ss -ltnp shows which); stop it or choose another port");
            findings.fail(check, text);
        }
        Err(error) => {
            findings.fail(check, format!("{text}: {error}; write an address and port that this user may take"))
        }
    }
}

fn unix_socket(check: &'static str, text: &str, path: &Path, running: Option<&Running>, findings: &mut Findings) {
    let held = running.is_some_and(|running| {
        running.gateway.address() == text
            || running.page.iter().flat_map(|page| &page.listeners).any(|one| one.address == text)
    });
    if held {
        return findings.ok(check, format!("{text}: held by the running gateway"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match UnixStream::connect(path) {
        Ok(_) => findings.fail(check, format!("{text}: another process listens there; stop it or choose another path")),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            findings.fail(check, format!("{text}: {error}; run this as the gateway's user"));
        }
        // What an earlier run left is replaced.
        Err(_) => match rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) => findings.ok(check, format!("{text}: free")),
            Err(rustix::io::Errno::NOENT) => {
                let text = format!(
                    "{text}: the folder {} does not exist; make it for the gateway's user (a systemd unit does, by \
                     RuntimeDirectory=pushgate)",
                    folder.display()
                );
                findings.warn(check, text);
            }
            Err(error) => {
                let text =
                    format!("{text}: {} is not writable: {error}; run this as the gateway's user", folder.display());
                findings.fail(check, text);
            }
        },
    }
}

/// Whether as many connections as are allowed can be open.
pub fn descriptors(config: &Config, findings: &mut Findings) {
    const CHECK: &str = "descriptors";
    let wanted = u64::from(config.limits.connections.0);
    let limit = rustix::process::getrlimit(Resource::Nofile).maximum; // the daemon raises the soft limit to it
    let shown = limit.map_or_else(|| "any number".to_owned(), |limit| limit.to_string());
    let fix = "raise it with LimitNOFILE= in the unit or ulimit -n, or lower limits.connections";
    match (wanted, limit) {
        (0, Some(_)) => findings.warn(
            CHECK,
            format!("this shell gives {shown} open files, and limits.connections has no bound; set one below that"),
        ),
        (_, Some(limit)) if limits::room_for_clients(limit) < wanted => findings.warn(
            CHECK,
            format!(
                "this shell gives {shown} open files, limits.connections = {wanted} needs {}; {fix}",
                limits::descriptors_for_clients(wanted)
            ),
        ),
        _ => findings.ok(CHECK, format!("{shown} open files for limits.connections = {wanted}")),
    }
}

/// Whether the store's folder can be written and nobody else holds it.
pub fn store(config: &store::Config, running: bool, findings: &mut Findings) {
    const CHECK: &str = "store";
    let path = &config.path;
    let shown = path.display();
    let there = nearest(path);
    if !there.is_dir() {
        return findings.fail(CHECK, format!("{shown}: {} is not a folder; set store.path to one", there.display()));
    }
    if let Err(error) = rustix::fs::access(&there, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        let text = format!(
            "{shown}: {} is not writable: {error}; give it to the gateway's user, and run this as that user",
            there.display()
        );
        return findings.fail(CHECK, text);
    }
    match lock(path) {
        Ok(Lock::Missing) if there == *path => findings.ok(CHECK, format!("{shown}: empty and writable")),
        Ok(Lock::Missing) => findings.ok(CHECK, format!("{shown}: will be made")),
        Ok(Lock::Free) => findings.ok(CHECK, format!("{shown}: writable, held by nobody")),
        Ok(Lock::Held) if running => findings.ok(CHECK, format!("{shown}: held by the running gateway")),
        Ok(Lock::Held) => findings.fail(
            CHECK,
            format!(
                "{shown}: held by another process (fuser {shown}/{STORE_FILE} shows which); stop it, or set store.path"
            ),
        ),
        Err(error) => findings.fail(CHECK, format!("{shown}: {STORE_FILE} cannot be opened: {error}; see its owner")),
    }
    if let Ok(disk) = rustix::fs::statvfs(&there) {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let used = folder_bytes(path);
        let (wanted, free_shown) = (config.max_disk.0.saturating_sub(used), bytes(free as f64));
        let max = bytes(config.max_disk.0 as f64);
        if config.max_disk.0 > 0 && free < wanted {
            let text =
                format!("{free_shown} free, and the store may grow to {max}; free some, or lower store.max_disk");
            findings.warn("disk", text);
        } else {
            findings.ok("disk", format!("{free_shown} free, and the store may grow to {max}"));
        }
    }
}

enum Lock {
    Missing,
    Free,
    Held,
}

fn lock(folder: &Path) -> io::Result<Lock> {
    match File::options().read(true).write(true).open(folder.join(STORE_FILE)) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Ok(Lock::Free),
            Err(TryLockError::WouldBlock) => Ok(Lock::Held),
            Err(TryLockError::Error(error)) => Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Lock::Missing),
        Err(error) => Err(error),
    }
}

/// The folder itself, or the nearest one above it that is there.
fn nearest(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match absolute.ancestors().find(|folder| folder.exists()) {
        Some(found) if found == absolute => path.to_owned(),
        Some(found) => found.to_owned(),
        None => PathBuf::from("/"),
    }
}

fn folder_bytes(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(fs::Metadata::is_file).map(|file| file.len()).sum()
}

/// Whether the clock was set, and did not go back. Tokens run out by it.
pub fn clock(loaded: Option<&Loaded>, running: Option<&Running>, findings: &mut Findings) {
    const CHECK: &str = "clock";
    let now = SystemTime::now();
    let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let shown = humantime::format_rfc3339_seconds(now);
    if since_epoch < CLOCK_LEAST {
        return findings
            .fail(CHECK, format!("{shown}: was never set; set it, by NTP for choice (timedatectl set-ntp true)"));
    }
    let of_gateway = running.and_then(|running| running.page.as_ref()).and_then(|page| {
        let started = SystemTime::try_from(page.started_at?).ok()?;
        started.checked_add(duration(page.uptime.as_ref()))
    });
    if let Some(of_gateway) = of_gateway {
        let apart = now.duration_since(of_gateway).unwrap_or_else(|error| error.duration());
        if apart > CLOCK_APART {
            let text = format!(
                "{shown}: {} away from the gateway's; one of them was changed since it started, or is not kept by NTP",
                span(apart)
            );
            return findings.warn(CHECK, text);
        }
    }
    let written = loaded.and_then(Loaded::file).and_then(|file| fs::metadata(file).ok()?.modified().ok());
    if written.is_some_and(|written| written > now + CLOCK_APART) {
        let text = format!("{shown}: the configuration was written later than that; check the clock (timedatectl)");
        return findings.warn(CHECK, text);
    }
    findings.ok(CHECK, shown.to_string());
}
