//! Sessions over TCP, with the built daemon.

use std::time::Duration;

use pushgate::{
    api::proto::Wait,
    stress::sender::{Pace, Via},
};

use super::{
    daemon::{Daemon, Error},
    load::{self, Load, Sessions},
};

pub const COLUMNS: &[&str] = &[
    "KiB a session, idle",
    "after broadcasts",
    "connect, µs CPU",
    "connects/s",
    "broadcast, µs CPU a delivery",
    "unicast by SendBatch, µs CPU",
    "unicasts/s",
    "unicast p99 at 2,000/s, ms",
];

const PAYLOAD_BYTES: usize = 256;
const WARM_UP: usize = 200;
/// Deliveries by broadcasts, and the time that one delivery is given: whatever the size, as long and as busy.
const DELIVERIES: u64 = 190_000;
const DELIVERY: Duration = Duration::from_micros(20);
/// Unicasts as fast as they are taken, for so long.
const FLAT_OUT: Duration = Duration::from_secs(3);
const PACED: (f64, Duration) = (2000.0, Duration::from_secs(3));
/// How long memory that is not needed any more may take to be given back.
const REST: Duration = Duration::from_secs(2);

pub async fn measure(size: u64) -> Result<Vec<f64>, Error> {
    let folder = tempfile::TempDir::new()?;
    let daemon = Daemon::start(folder.path(), "sled", "")?;
    // What the daemon needs but once is there before anything is measured. They stay, so that none of the others gets the
    // memory that they had.
    let _warm_up = Sessions::connected(daemon.at(), &load::users("warm-up", WARM_UP)).await?;
    tokio::time::sleep(REST).await;
    let users = load::users("user", size as usize);
    let places = users.iter().map(|user| load::place(user, None)).collect::<Result<_, _>>()?;
    let sessions = Sessions::new(daemon.at(), places, 1).await?;
    let users = users.into();
    let (before, began) = (sessions.usage().await?, tokio::time::Instant::now());
    sessions.connect().await?;
    let (connected, took) = (sessions.usage().await?, began.elapsed());
    tokio::time::sleep(REST).await;
    let each = |bytes: u64| bytes.saturating_sub(before.rss_bytes) as f64 / 1024.0 / size as f64;
    let idle = each(sessions.usage().await?.rss_bytes);

    let broadcasts = Pace::Every { interval: DELIVERY * size as u32, count: (DELIVERIES / size).max(5) };
    let load = Load {
        via: Via::Broadcast,
        wait: Wait::Accepted,
        volatile: true,
        payload: PAYLOAD_BYTES,
        callers: 1,
        pace: broadcasts,
    };
    let broadcast = sessions.send(load, &users, size).await?;
    tokio::time::sleep(REST).await;
    let after = each(sessions.usage().await?.rss_bytes);
    let load = Load { via: Via::Batch, pace: Pace::For(FLAT_OUT), ..load };
    let unicast = sessions.send(load, &users, 1).await?;
    let paced = sessions.send(load.paced(PACED.0, PACED.1), &users, 1).await?;
    let missing = broadcast.missing + unicast.missing + paced.missing;
    if missing > 0 {
        return Err(format!("{missing} messages did not come").into());
    }
    Ok(vec![
        idle,
        after,
        connected.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6 / size as f64,
        size as f64 / took.as_secs_f64(),
        broadcast.cpu_micros / (broadcast.sent.accepted() * (size + WARM_UP as u64)) as f64,
        unicast.cpu_micros / unicast.tally.received as f64,
        unicast.tally.received as f64 / unicast.seconds,
        paced.tally.latency.value_at_quantile(0.99) as f64 / 1000.0,
    ])
}
