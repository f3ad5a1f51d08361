//! Syncs that fail, and syncs that hang.

use std::time::{Duration, Instant};

use tempfile::TempDir;
use tonic::Code;

use crate::daemon::{BY_DEFAULT, Daemon, Faults, PATIENCE, Senders, until};

/// What a commit may take before the daemon ends itself: 30 s until it counts as stuck, 5 s of grace; and some for a busy
/// machine.
const STUCK_MAX: Duration = Duration::from_secs(50);
const EXIT_STUCK: i32 = 74;

fn place() -> (TempDir, std::path::PathBuf, Faults) {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let faults = Faults::new(folder.path(), None);
    (folder, data, faults)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_fails_ends_the_daemon_and_nothing_acknowledged_is_missing() {
    let (_folder, data, faults) = place();
    let mut daemon = Daemon::start(&data, BY_DEFAULT, Some(&faults));
    let senders = Senders::begin(&daemon, 8, 100).await;
    senders.more(300, PATIENCE).await;
    faults.set(b'1');
    let status = daemon.ended(PATIENCE).await;
    assert_eq!(status.code(), Some(1), "it ends by itself, in order");
    let mut ledger = senders.end().await;
    assert!(ledger.failed.keys().all(|code| *code == Code::Unavailable), "{:?}", ledger.failed);
    faults.set(b'0');
    let daemon = Daemon::start(&data, BY_DEFAULT, Some(&faults));
    let stored = ledger.count();
    let lost = ledger.settle(&daemon).await;
    println!("failing sync: exit 1, {stored} acknowledged before it, {lost} lost");
    assert_eq!(lost, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_hangs_shows_in_the_health_and_ends_the_daemon() {
    let (_folder, data, faults) = place();
    let mut daemon = Daemon::start(&data, BY_DEFAULT, Some(&faults));
    let senders = Senders::begin(&daemon, 8, 100).await;
    senders.more(300, PATIENCE).await;
    assert!(daemon.readiness() == 200 && daemon.is_serving().await);
    faults.set(b'b');
    let begun = Instant::now();
    until("it is not ready", STUCK_MAX, async || daemon.readiness() == 503).await;
    let noticed = begun.elapsed();
    assert!(!daemon.is_serving().await);
    let status = daemon.ended(STUCK_MAX).await;
    let ended = begun.elapsed();
    assert_eq!(status.code(), Some(EXIT_STUCK), "{status}");
    assert!(ended < STUCK_MAX, "{ended:?}");
    let errors: Vec<_> = daemon.log.lock().iter().filter(|line| line.contains("\"ERROR\"")).cloned().collect();
    assert!(errors.len() == 1 && errors[0].contains("does not end"), "{errors:?}");
    let mut ledger = senders.end().await;
    faults.set(b'0');
    let daemon = Daemon::start(&data, BY_DEFAULT, Some(&faults));
    let stored = ledger.count();
    let lost = ledger.settle(&daemon).await;
    println!(
        "hanging sync: not ready after {:.1} s, exit {EXIT_STUCK} after {:.1} s, {stored} acknowledged, {lost} lost",
        noticed.as_secs_f64(),
        ended.as_secs_f64()
    );
    assert_eq!(lost, 0);
}
