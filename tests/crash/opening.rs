//! The daemon killed while it opens its store: that must cost nothing either, however often it happens in a row.

use std::{
    io::Read as _,
    path::Path,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    Ledger, Session,
    daemon::{self, Daemon, Keeping},
    send,
};

const KILLS: u32 = 24;
const USERS: [&str; 3] = ["ann", "bob", "eve"];

/// Kills a daemon that long after it was spawned. Whether it was not ready yet.
fn killed_after(folder: &Path, keeping: Keeping, wait: Duration) -> bool {
    let mut child = daemon::spawn(folder, keeping, "refuse");
    // The moment is what is tried out.
    std::thread::sleep(wait);
    child.kill().unwrap();
    child.wait().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    !said.contains(r#""message":"ready""#)
}

/// How long a start takes that nothing cuts short. The shortest of several is what a machine with other work to do says
/// of it.
async fn killed_when_ready(folder: &Path, keeping: Keeping) -> Duration {
    let started = Instant::now();
    let daemon = Daemon::start(folder, keeping).await;
    let took = started.elapsed();
    daemon.kill();
    took
}

async fn killed_while_opening(keeping: Keeping) {
    // A store that is being made: its beginning is no damage, so it is not refused.
    let mut start = Duration::MAX;
    for _ in 0..3 {
        start = start.min(killed_when_ready(TempDir::new().unwrap().path(), keeping).await);
    }
    let (mut new, mut early) = (0, 0);
    for kill in 0..KILLS {
        let folder = TempDir::new().unwrap();
        new += u32::from(killed_after(folder.path(), keeping, start * kill / KILLS));
        let daemon = Daemon::start(folder.path(), keeping).await;
        send(&mut daemon.client().await, "ann", 1).await.unwrap();
        daemon.kill();
    }

    let folder = TempDir::new().unwrap();
    let daemon = Daemon::start(folder.path(), keeping).await;
    let mut client = daemon.client().await;
    let mut ledgers = USERS.map(|user| (user, Ledger::default()));
    let mut number = 0;
    for _ in 0..200 {
        for (user, ledger) in &mut ledgers {
            number += 1;
            let (offset, content) = send(&mut client, user, number).await.unwrap();
            ledger.answered(offset, &content, 0);
        }
    }
    daemon.kill();
    // Found as a kill leaves it, so that there is something to mend.
    let mut start = Duration::MAX;
    for _ in 0..3 {
        start = start.min(killed_when_ready(folder.path(), keeping).await);
    }
    for kill in 0..KILLS {
        early += u32::from(killed_after(folder.path(), keeping, start * kill * 5 / (KILLS * 4)));
    }
    let daemon = Daemon::start(folder.path(), keeping).await;
    let mut client = daemon.client().await;
    for (user, ledger) in &mut ledgers {
        let mut session = Session::open(&daemon, user).await;
        session.drain(&mut client).await;
        ledger.session(&session.received);
        assert_eq!((ledger.stored.len(), ledger.lost()), (200, 0));
        let highest = ledger.highest;
        let (offset, _) = send(&mut client, user, 0).await.unwrap();
        assert!(offset > highest, "no offset is given twice");
    }
    println!(
        "{keeping}: a start takes {start:?}; of {KILLS} kills {early} came before it was ready, and {new} of {KILLS} at a \
         first start"
    );
    assert!(early >= KILLS / 4 && new >= KILLS / 4, "the kills came too late to meet an opening");
}

#[tokio::test]
async fn with_sled_a_kill_while_the_store_opens_costs_nothing() {
    killed_while_opening(Keeping { engine: "sled", durability: "process" }).await;
}

#[tokio::test]
async fn with_redb_a_kill_while_the_store_opens_costs_nothing() {
    killed_while_opening(Keeping { engine: "redb", durability: "process" }).await;
}
