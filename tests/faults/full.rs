//! A disk without room: filled by others to the last byte, and filled by what is sent. `FAULTS_DISK` is a small file
//! system of its own.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tonic::Code;

use crate::daemon::{BY_DEFAULT, Daemon, Ledger, PATIENCE, Senders, Session, given, send, until};

/// How long it may take until what was full is served again: the store looks every second, and is opened again at most
/// 5 s after there was room.
const RETURN_MAX: Duration = Duration::from_secs(15);

fn place(name: &str) -> (PathBuf, PathBuf) {
    let disk = given("FAULTS_DISK");
    for entry in fs::read_dir(&disk).unwrap().map(Result::unwrap) {
        fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path())).unwrap();
    }
    let data = disk.join(name);
    fs::create_dir(&data).unwrap();
    (data, disk.join("filler"))
}

/// Takes all the room there is, and goes on to take it for as long as there is any.
fn fill(filler: &Path) -> u64 {
    let mut file = File::options().create(true).append(true).open(filler).unwrap();
    for chunk in [1 << 20, 1 << 16, 4096, 1] {
        let bytes = vec![7; chunk];
        while file.write_all(&bytes).is_ok() {}
    }
    file.metadata().unwrap().len()
}

fn only_expected(ledger: &Ledger) {
    let expected = |code: &Code| matches!(code, Code::Unavailable | Code::ResourceExhausted);
    assert!(ledger.failed.keys().all(expected), "{:?}", ledger.failed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_others_fill_to_the_last_byte_is_survived() {
    let (data, filler) = place("filled");
    let mut daemon = Daemon::start(&data, BY_DEFAULT, None);
    let mut client = daemon.client().await;
    let mut session = Session::open(&daemon, "online").await;
    let mut seen = Vec::new();
    for _ in 0..5 {
        send(&mut client, "away", 100, false).await.unwrap();
    }
    let senders = Senders::begin(&daemon, 4, 300).await;
    senders.more(200, PATIENCE).await;
    fill(&filler);
    let refused = |senders: &Senders, code: Code| senders.failed().get(&code).copied().unwrap_or(0);
    until("a commit fails", PATIENCE, async || refused(&senders, Code::Unavailable) > 0).await;
    until("calls are refused", RETURN_MAX, async || refused(&senders, Code::ResourceExhausted) > 0).await;
    let before = senders.acknowledged();

    // Deletions, devices and cursors get through on what the store had kept for it.
    let drained = Session::open(&daemon, "away").await.drain().await;
    assert_eq!(drained.len(), 5);
    until("it is confirmed on disk", RETURN_MAX, async || {
        Session::try_open(&daemon, "away").await.is_ok_and(|session| session.pending == 0)
    })
    .await;
    assert_eq!(send(&mut client, "online", 10, true).await.unwrap().sessions, 1);
    session.round_trip(&mut seen).await;
    // And when even that is taken: a device that is new finds no room, nor does the engine at its opening.
    let filled = fill(&filler);
    let mut newcomers = 0;
    until("a write finds no room at all", 3 * PATIENCE, async || {
        newcomers += 1;
        Session::try_open(&daemon, &format!("new-{newcomers}")).await.is_err() && daemon.readiness() == 503
    })
    .await;
    for _ in 0..3 {
        assert_eq!(send(&mut client, "online", 10, true).await.unwrap().sessions, 1);
        session.round_trip(&mut seen).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(daemon.is_there() && senders.acknowledged() == before, "nothing is stored while there is no room");
    let (readiness, serving) = (daemon.readiness(), daemon.is_serving().await);
    assert_eq!((readiness, serving), (503, false));

    fs::remove_file(&filler).unwrap();
    senders.more(200, RETURN_MAX).await;
    assert!(daemon.is_there() && daemon.readiness() == 200 && daemon.is_serving().await);
    let mut ledger = senders.end().await;
    only_expected(&ledger);
    let last = send(&mut client, "online", 10, false).await.unwrap();
    while !seen.contains(&last.offset) {
        session.round_trip(&mut seen).await;
    }
    daemon.kill();
    let daemon = Daemon::start(&data, BY_DEFAULT, None);
    let (stored, failed) = (ledger.count(), ledger.failed.clone());
    let lost = ledger.settle(&daemon).await;
    println!(
        "filled by others ({} KiB): {stored} acknowledged, {failed:?} refused, readiness {readiness} while full, \
         {lost} lost",
        filled / 1024
    );
    assert_eq!(lost, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_filled_by_what_is_sent_has_room_again_when_it_is_confirmed() {
    let (data, _) = place("sent");
    let mut daemon = Daemon::start(&data, BY_DEFAULT, None);
    let mut client = daemon.client().await;
    let (mut ledger, mut rounds) = (Ledger::default(), Vec::new());
    for round in 0..3 {
        let senders = Senders::begin(&daemon, 4, 3000).await;
        let full = || senders.failed().get(&Code::ResourceExhausted).is_some_and(|count| *count >= 20);
        until("the store is full", 6 * PATIENCE, async || full()).await;
        let sent = senders.end().await;
        only_expected(&sent);
        rounds.push(sent.count());
        ledger = sent;
        assert!(daemon.is_there());
        if round == 2 {
            break;
        }
        assert_eq!(ledger.settle(&daemon).await, 0, "all of it arrives");
        until("it is stored again", 2 * RETURN_MAX, async || send(&mut client, "other", 10, false).await.is_ok()).await;
    }
    daemon.kill();
    let daemon = Daemon::start(&data, BY_DEFAULT, None);
    let lost = ledger.settle(&daemon).await;
    println!("filled by what is sent: {rounds:?} acknowledged until it was full, {lost} lost");
    assert_eq!(lost, 0);
}
