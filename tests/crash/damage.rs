//! The daemon on damaged files: it serves, or says in one line why not. It never hangs, and no start ends at the same
//! place for ever.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use pushgate::api::proto::{GetStatusRequest, ListSessionsRequest};
use tempfile::TempDir;

use super::{
    Session,
    daemon::{Daemon, End, Keeping},
    send,
};

const USERS: usize = 12;
const PER_USER: u64 = 12;
const PAGE_BYTES: usize = 4096;

#[derive(Clone, Copy, Debug)]
enum Damage {
    Empty,
    Half,
    Short,
    FlipAtHead,
    FlipInTheMiddle,
    ZeroPage,
    Garbage,
    Gone,
}

impl Damage {
    const ALL: [Damage; 8] = [
        Damage::Empty,
        Damage::Half,
        Damage::Short,
        Damage::FlipAtHead,
        Damage::FlipInTheMiddle,
        Damage::ZeroPage,
        Damage::Garbage,
        Damage::Gone,
    ];

    fn done_to(self, file: &Path) {
        let mut bytes = fs::read(file).unwrap();
        // Where there is something: the files have room at their ends.
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        match self {
            Damage::Empty => bytes.clear(),
            Damage::Half => bytes.truncate(bytes.len() / 2),
            Damage::Short => bytes.truncate(bytes.len().saturating_sub(1024)),
            Damage::FlipAtHead => bytes[3] ^= 0x10,
            Damage::FlipInTheMiddle => bytes[end / 2] ^= 0x10,
            Damage::ZeroPage => {
                let start = end / 2 / PAGE_BYTES * PAGE_BYTES;
                let stop = bytes.len().min(start + PAGE_BYTES);
                bytes[start..stop].fill(0);
            }
            Damage::Garbage => bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 151 / 7) as u8),
            Damage::Gone => return fs::remove_file(file).unwrap(),
        }
        fs::write(file, bytes).unwrap();
    }
}

fn user(number: usize) -> String {
    format!("user-{number}")
}

/// All files of a folder and what is in them.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(contents(&entry.path()));
        } else {
            found.insert(entry.path(), fs::read(entry.path()).unwrap());
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for (file, bytes) in contents(from) {
        let copied = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(copied.parent().unwrap()).unwrap();
        fs::write(copied, bytes).unwrap();
    }
}

/// Makes a store with data, stopped in order: opened twice, so that the second opening found something.
async fn sound(folder: &Path, keeping: Keeping) {
    for round in 0..2 {
        let daemon = Daemon::start(folder, keeping).await;
        let mut client = daemon.client().await;
        for number in 0..PER_USER {
            for one in 0..USERS {
                send(&mut client, &user(one), round * PER_USER + number).await.unwrap();
            }
        }
        drop(client);
        assert_eq!(daemon.stop().await.code, Some(0));
    }
}

/// Whether a daemon that is ready does what it is there for: stores for users old and new, tells, and delivers.
async fn serves(daemon: &Daemon) -> Result<(), String> {
    let mut client = daemon.client().await;
    for name in (0..USERS).map(user).chain(["newcomer".to_owned()]) {
        send(&mut client, &name, 7).await.map_err(|status| format!("sending to {name}: {status}"))?;
    }
    for name in (0..USERS).map(user) {
        let mut session = Session::try_open(daemon, &name).await.ok_or_else(|| format!("no session for {name}"))?;
        // What is lost may leave less than was told.
        session.next().await.ok_or_else(|| format!("nothing for {name}"))?;
    }
    client.list_sessions(ListSessionsRequest::default()).await.map_err(|status| status.to_string())?;
    client.get_status(GetStatusRequest::default()).await.map_err(|status| status.to_string())?;
    Ok(())
}

/// A start that ended by itself: not by a crash, and with the reason in one line.
fn is_in_order(end: &End, what: &str) {
    assert!(end.code.is_some_and(|code| code != 0), "{what}: {end:?}");
    let lines: Vec<_> = end.said.iter().filter(|line| line.starts_with("the store at ")).collect();
    assert!(lines.len() == 1, "{what}: {:#?}", end.said);
}

/// Starts the daemon on a damaged store until it serves, at most so often. Tells how often it took.
async fn starts_until_it_serves(folder: &Path, keeping: Keeping, what: &str) -> usize {
    let mut ends = Vec::new();
    for start in 1..=3 {
        match Daemon::try_start(folder, keeping, "quarantine").await {
            Ok(mut daemon) => match serves(&daemon).await {
                Ok(()) => {
                    let end = daemon.stop().await;
                    assert_eq!(end.code, Some(0), "{what}: {end:?}");
                    return start;
                }
                Err(error) => {
                    // What was damaged below a running daemon ends it; the next start knows.
                    ends.push(format!("{error}; {:?}", daemon.ended().await));
                }
            },
            Err(end) => {
                is_in_order(&end, what);
                ends.push(format!("{end:?}"));
            }
        }
    }
    panic!("{what}: it does not serve after three starts: {ends:#?}");
}

async fn on_damaged_files(keeping: Keeping) {
    let folder = TempDir::new().unwrap();
    sound(folder.path(), keeping).await;
    let data = folder.path().join("data");
    let files: Vec<_> = contents(&data).into_keys().filter(|file| file.parent() == Some(&data)).collect();
    let (mut served, mut again, mut refused) = (0, 0, 0);
    for file in &files {
        for damage in Damage::ALL {
            let name = file.file_name().unwrap().to_str().unwrap();
            let what = format!("{keeping}, {name}, {damage:?}");
            let damaged = || {
                let place = TempDir::new().unwrap();
                copy(&data, &place.path().join("data"));
                damage.done_to(&place.path().join("data").join(name));
                place
            };
            let place = damaged();
            let starts = starts_until_it_serves(place.path(), keeping, &what).await;
            again += usize::from(starts > 1);
            served += 1;

            let place = damaged();
            let before = contents(&place.path().join("data"));
            match Daemon::try_start(place.path(), keeping, "refuse").await {
                Ok(mut daemon) => match serves(&daemon).await {
                    Ok(()) => assert_eq!(daemon.stop().await.code, Some(0), "{what}"),
                    Err(error) => {
                        let end = daemon.ended().await;
                        assert_eq!(end.code, Some(1), "{what}: {error}: {end:?}");
                        let end = Daemon::try_start(place.path(), keeping, "refuse").await.map(drop).unwrap_err();
                        is_in_order(&end, &what);
                        refused += 1;
                    }
                },
                Err(end) => {
                    is_in_order(&end, &what);
                    let after = contents(&place.path().join("data"));
                    for (file, bytes) in &before {
                        assert!(after.get(file) == Some(bytes), "{what}: {} was changed", file.display());
                    }
                    assert_eq!(after.len(), before.len(), "{what}: {:?}", after.keys());
                    refused += 1;
                }
            }
        }
    }
    println!(
        "{keeping}: {served} damages served with quarantine, {again} of them after a further start; {refused} refused"
    );
    assert!(refused > 0);
}

#[tokio::test]
async fn with_sled_damaged_files_are_served_set_aside_or_refused() {
    on_damaged_files(Keeping { engine: "sled", durability: "process" }).await;
}

#[tokio::test]
async fn with_redb_damaged_files_are_served_set_aside_or_refused() {
    on_damaged_files(Keeping { engine: "redb", durability: "process" }).await;
}
