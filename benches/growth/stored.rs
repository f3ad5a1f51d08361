//! Stored notifications in this process: what one more costs, and what it takes to read some of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pushgate::{
    clock::Clock,
    hub::{Hub, SendOptions, Wait},
    limits::Limits,
    session::HeartbeatConfig,
    store::{self, PageLimit, Store},
    types::{LogId, Offset},
};

use super::{
    daemon::Error,
    made::{self, json_notification, user},
    usage,
};

pub const COLUMNS: &[&str] = &[
    "B resident each",
    "MiB resident",
    "MiB on disk",
    "one more by 64 callers, µs CPU",
    "stored/s",
    "one more by 1 caller, µs",
    "a page of 10, µs",
    "a mailbox of 10 from disk, µs",
];

const PAYLOAD_BYTES: usize = 300;
const A_USER: u64 = 10;
/// Callers who fill it.
const FILLERS: u64 = 512;
const CALLERS: u64 = 64;
const MORE: u64 = 20_000;
const ALONE: u64 = 500;
const READS: u64 = 2000;

/// Stores so many, from the number `from` on, one user after the other.
async fn send(hub: &Hub, from: u64, count: u64, users: u64, callers: u64) -> Result<(), Error> {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let (hub, next) = (hub.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok::<_, Error>(());
                }
                let to = user(&format!("user-{}", (from + number) % users));
                let options = SendOptions { wait: Wait::Stored, own_id: false };
                hub.send(&to, json_notification(PAYLOAD_BYTES), options).await?;
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Ok(())
}

pub async fn measure(size: u64) -> Result<Vec<f64>, Error> {
    let folder = tempfile::TempDir::new()?;
    let config = store::Config { path: folder.path().join("data"), ..Default::default() };
    let hub = made::hub(Store::open(&config, Clock::system())?, Limits::default(), HeartbeatConfig::default())?;
    let users = size / A_USER;
    send(&hub, 0, FILLERS, FILLERS, FILLERS).await?;
    let before = usage::resident();
    send(&hub, 0, size, users, FILLERS).await?;
    let resident = usage::resident();
    let disk = hub.store().disk_bytes();

    let (cpu, began) = (usage::cpu(), Instant::now());
    send(&hub, size, MORE, users, CALLERS).await?;
    let (cpu, took) = (usage::cpu() - cpu, began.elapsed());
    let began = Instant::now();
    send(&hub, size + MORE, ALONE, users, 1).await?;
    let alone = began.elapsed();

    let (mut paging, mut loading) = (Duration::ZERO, Duration::ZERO);
    for number in 0..READS {
        // Far apart, so that what was read for one is not the other's.
        let id = user(&format!("user-{}", number * 7919 % users));
        let limit = PageLimit { records: A_USER as usize, bytes: usize::MAX };
        let began = Instant::now();
        let page = hub.store().page(&LogId::User(id.clone()), Offset::ZERO, Offset::MAX, limit).await?;
        paging += began.elapsed();
        if page.records.len() < A_USER as usize {
            return Err(format!("a page of {} where there are {A_USER}", page.records.len()).into());
        }
        let began = Instant::now();
        hub.store().load(&id).await?;
        loading += began.elapsed();
    }
    let micros = |span: Duration, count: u64| span.as_secs_f64() * 1e6 / count as f64;
    Ok(vec![
        resident.saturating_sub(before) as f64 / size as f64,
        resident as f64 / 1024.0 / 1024.0,
        disk as f64 / 1024.0 / 1024.0,
        micros(cpu, MORE),
        MORE as f64 / took.as_secs_f64(),
        micros(alone, ALONE),
        micros(paging, READS),
        micros(loading, READS),
    ])
}
