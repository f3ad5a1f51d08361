//! Sessions in this process: the hub and a store on disk, without sockets, connections' tasks or callers. What is left is
//! what the structures cost: registry, users, timers, fan-out.

use std::{
    io::{self, IoSlice},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pushgate::{
    clock::Clock,
    hub::{Handle, Hub, Peer, SendOptions, Wait, Wire},
    limits::Limits,
    metrics::Metrics,
    server::pulse,
    session::HeartbeatConfig,
    store::{self, Store},
    types::{Notification, Span},
};
use tokio_util::sync::CancellationToken;

use super::{
    daemon::Error,
    made::{self, granted, json_notification, user},
    usage,
};

pub const COLUMNS: &[&str] = &[
    "KiB a session",
    "attach a new user, µs CPU",
    "attach a known one, µs",
    "detach, µs",
    "broadcast, ns CPU a delivery",
    "deliveries/s",
    "longest delay meanwhile, ms",
    "unicast, ns CPU",
    "a look of the wheel, ns CPU",
    "a heartbeat's ping, ns CPU",
    "broadcast to stalled ones, ns CPU each",
];

const PAYLOAD_BYTES: usize = 256;
/// Who is there before anything is measured, so that what is needed but once is there, too. They stay, so that none of the
/// others gets the memory that they had.
const WARM_UP: u64 = 500;
/// Users who come at once, at most.
const AT_ONCE: u64 = 256;
/// Deliveries of a measured stretch.
const DELIVERIES: u64 = 2_000_000;
const UNICASTS: u64 = 100_000;
/// Sessions that come and go once all are there.
const COMERS: u64 = 2000;
/// The wheel looks at a session this often at least (`limits.write_timeout`), so that a stretch has two looks at each.
const LOOK: Duration = Duration::from_secs(2);
const STRETCH: Duration = Duration::from_secs(4);
/// Nobody says anything for so long: then all are pinged. Longer than it takes until all are there; where that is too long
/// to wait for, pings are not measured.
fn silence(size: u64) -> Option<Duration> {
    Some(Duration::from_secs((size / 5000).max(6))).filter(|silence| *silence <= SILENCE_MAX)
}
const SILENCE_MAX: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_secs(3600);

/// How long it may take until nothing is done any more.
const REST_LOOK: Duration = Duration::from_millis(500);
const REST_LOOKS: usize = 40;

/// A wire that takes everything, or nothing.
#[derive(Clone, Default)]
struct Sink {
    blocked: Arc<AtomicBool>,
}

impl Wire for Sink {
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.blocked.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }
}

async fn attach(hub: &Hub, name: &str, wire: Sink) -> Result<Arc<Handle>, Error> {
    let peer = Peer { remote: ([127, 0, 0, 1], 1).into(), user_agent: None };
    Ok(hub.attach(granted(hub, name)?, peer, std::sync::Arc::new(wire)).await?)
}

/// Attaches so many new users, many at once.
async fn attach_all(hub: &Hub, name: &'static str, count: u64, wire: &Sink) -> Result<(), Error> {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let (hub, wire, next) = (hub.clone(), wire.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok::<_, Error>(());
                }
                attach(&hub, &format!("{name}-{number}"), wire.clone()).await?;
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Ok(())
}

/// So many numbers below `below`, in no order.
fn numbers(count: u64, below: u64) -> impl Iterator<Item = u64> {
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    (0..count).map(move |_| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    })
}

fn volatile() -> Notification {
    let notification = json_notification(PAYLOAD_BYTES);
    Notification { expires_at: Some(notification.accepted_at), ..notification }
}

/// Does something: CPU time and time on the clock, in ns.
async fn timed(work: impl Future<Output = Result<(), Error>>) -> Result<(f64, f64), Error> {
    let (cpu, began) = (usage::cpu(), Instant::now());
    work.await?;
    Ok(((usage::cpu() - cpu).as_nanos() as f64, began.elapsed().as_nanos() as f64))
}

async fn broadcasts(hub: &Hub, count: u64) -> Result<(), Error> {
    let notification = volatile();
    for _ in 0..count {
        hub.broadcast(notification.clone()).await?;
    }
    Ok(())
}

async fn idle(span: Duration) -> Result<(), Error> {
    tokio::time::sleep(span).await;
    Ok(())
}

/// Waits until nothing is done any more, such as what is written to the store at its leisure.
async fn rest() -> Result<(), Error> {
    for _ in 0..REST_LOOKS {
        let (cpu, took) = timed(idle(REST_LOOK)).await?;
        if cpu < took / 10.0 {
            break;
        }
    }
    Ok(())
}

/// A figure that stands out from what the process takes while nobody is there.
fn over(figure: f64, noise: f64) -> f64 {
    if figure > noise { figure } else { f64::NAN }
}

pub async fn measure(size: u64) -> Result<Vec<f64>, Error> {
    let (each, all) = (size as f64, (size + WARM_UP) as f64);
    let folder = tempfile::TempDir::new()?;
    let store =
        Store::open(&store::Config { path: folder.path().join("data"), ..Default::default() }, Clock::system())?;
    let heartbeat = HeartbeatConfig { interval: Span(silence(size).unwrap_or(HOUR)), timeout: Span(HOUR) };
    let hub = made::hub(store, Limits { write_timeout: Span(LOOK), ..Limits::default() }, heartbeat)?;
    hub.start();
    let wire = Sink::default();
    attach_all(&hub, "warm-up", WARM_UP, &wire).await?;
    rest().await?;
    let (nobody, _) = timed(idle(STRETCH)).await?;

    let before = usage::resident();
    let (attached, _) = timed(attach_all(&hub, "user", size, &wire)).await?;
    let resident = usage::resident().saturating_sub(before) as f64 / 1024.0;

    rest().await?;
    // From here on nobody has been silent for long.
    let handles = hub.session_page(None, usize::MAX);
    handles.iter().for_each(|handle| hub.received(handle, 1));
    let (looks, _) = timed(idle(STRETCH)).await?;
    let mut pings = f64::NAN;
    if let Some(silence) = silence(size) {
        tokio::time::sleep(silence.saturating_sub(STRETCH)).await;
        let pinged = hub.metrics().sent.bytes();
        let (both, _) = timed(idle(STRETCH)).await?;
        if hub.metrics().sent.bytes() - pinged >= size {
            pings = both - looks;
        }
    }

    let (mut come, mut gone) = (Duration::ZERO, Duration::ZERO);
    for number in numbers(COMERS, size) {
        let began = Instant::now();
        let handle = attach(&hub, &format!("user-{number}"), wire.clone()).await?;
        come += began.elapsed();
        let began = Instant::now();
        hub.detach(&handle);
        gone += began.elapsed();
    }

    let (watched, stop) = (Metrics::default(), CancellationToken::new());
    let pulse = tokio::spawn(pulse::run(pulse::Of::Sessions, watched.clone(), stop.clone()));
    let count = (DELIVERIES / size).clamp(3, 400);
    let sent = hub.metrics().sent.messages();
    let (broadcast, took) = timed(broadcasts(&hub, count)).await?;
    stop.cancel();
    let Ok(()) = pulse.await?;
    if hub.metrics().sent.messages() - sent < count * (size + WARM_UP) {
        return Err("a broadcast did not reach all".into());
    }
    let notification = volatile();
    let (unicast, _) = timed(async {
        for number in numbers(UNICASTS, size) {
            let options = SendOptions { wait: Wait::Accepted, own_id: false };
            let sent = hub.send(&user(&format!("user-{number}")), notification.clone(), options).await?;
            if sent.sessions != 1 {
                return Err(format!("{} sessions took what was for one", sent.sessions).into());
            }
        }
        Ok(())
    })
    .await?;

    wire.blocked.store(true, Ordering::Relaxed);
    let stalling = count.min(16);
    broadcasts(&hub, 1).await?;
    let (stalled, _) = timed(broadcasts(&hub, stalling)).await?;
    Ok(vec![
        resident / each,
        attached / each / 1e3,
        come.as_nanos() as f64 / COMERS as f64 / 1e3,
        gone.as_nanos() as f64 / COMERS as f64 / 1e3,
        broadcast / all / count as f64,
        all * count as f64 / took * 1e9,
        watched.scheduler_delay.percentiles().max.as_secs_f64() * 1e3,
        unicast / UNICASTS as f64,
        over(looks - nobody, nobody / 4.0) / all / (STRETCH.as_secs_f64() / LOOK.as_secs_f64()),
        over(pings, nobody / 4.0) / all,
        stalled / all / stalling as f64,
    ])
}
