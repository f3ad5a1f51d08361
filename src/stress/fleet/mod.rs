//! A fleet of light client sessions on a few threads: as many as the descriptor limit allows, at a few hundred bytes
//! each.
//!
//! * `slot.rs`: one session's place, kept over all its connections: what it is at, and what came.
//! * `shard.rs`: a thread with its epoll, its share of the slots, and what they are told to do.
//! * `opening.rs`: from a slot's turn to its session.
//! * `doing.rs`: what sessions do on their own: echoes, and coming and going.
//! * `tally.rs`: what is counted.
//!
//! A slot is a device of a user. It outlives its connections, so that what was lost or came twice over a reconnect is
//! seen. Against a gateway on 127.0.0.0/8 connections leave from many source addresses, so that ports do not run out.

mod doing;
mod opening;
mod shard;
mod slot;
mod tally;

use std::{
    fmt, io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

pub use self::tally::{Collected, SlotReport, Tally, histogram};
use self::{shard::Shard, slot::Slot, tally::Harvest};

/// The source addresses that connections leave from, against a gateway on loopback.
const SOURCES: u32 = 64;

/// Where sessions connect.
#[derive(Clone, Debug)]
pub struct Target {
    /// The address.
    pub address: SocketAddr,
    /// What stands in `Host`.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// Whether sessions confirm with `ack`, not with pongs.
    pub client_acks: bool,
}

/// One session's place. It prints without its token.
#[derive(Clone)]
pub struct Place {
    /// Its token.
    pub token: Arc<str>,
    /// Its device; `None`: the user's unnamed one.
    pub device: Option<String>,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("device", &self.device).finish_non_exhaustive()
    }
}

/// What sessions do on their own.
#[derive(Clone, Copy, Debug)]
pub enum Doing {
    /// Each sends so many echoes, as fast as answers come.
    Echoes {
        /// How many.
        messages: u64,
        /// How many may be unanswered.
        window: u64,
        /// The payload, in bytes.
        payload: usize,
    },
    /// Each sends an echo every so often, until then, whether or not the last was answered.
    EchoEvery {
        /// How often; the sessions' turns are spread over it.
        interval: Duration,
        /// Until when, in µs of [`Live::now_micros`].
        until_micros: u64,
        /// The payload, in bytes.
        payload: usize,
    },
    /// Each is closed after a random part of a lifetime, half of them without a word, and comes back a moment later.
    Churn {
        /// The mean life of a connection.
        lifetime: Duration,
        /// Until when, in µs of [`Live::now_micros`]. Then all come back and stay.
        until_micros: u64,
    },
    /// Each that loses its connection comes back: when the gateway asked it to (`reconnectAfterMs`), else after a back-off,
    /// as the client library does.
    Return,
}

/// What a shard is told.
enum Command {
    /// Forget what was counted, and count messages of this run, each lane apart.
    Begin { run: u32, lanes: usize },
    /// Connect every slot that is not connected.
    Connect { max_concurrent: usize },
    /// Close every session in order.
    Close,
    /// Take the time until a session, by its place, has so many messages of its first lane.
    Expect(Arc<[u64]>),
    /// Do something.
    Do(Doing),
    /// Say what was counted, and count anew; or keep the counts, and say only what each session has.
    Collect { tell: oneshot::Sender<Harvest>, keep: bool },
    /// End.
    End,
}

/// What can be seen while it goes on. All counts are of the present run.
#[derive(Debug)]
pub struct Live {
    origin: Instant,
    /// Sessions that are connected now; one that closes, until it is closed.
    pub open: AtomicU64,
    /// Slots that are to connect and neither have nor failed yet.
    pub connecting: AtomicU64,
    /// Messages that came and had not come before.
    pub came: AtomicU64,
    /// When the last one came, in µs.
    pub last_micros: AtomicU64,
    /// When the last message came, repeats included, in µs.
    pub heard_micros: AtomicU64,
    /// Echoes that were sent.
    pub echoes: AtomicU64,
    /// Sessions that came back ([`Doing::Return`]).
    pub returns: AtomicU64,
}

impl Live {
    /// The sender's clock: µs since the fleet was made.
    pub fn now_micros(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The moment of [`Live::now_micros`].
    pub fn instant(&self, micros: u64) -> Instant {
        self.origin + Duration::from_micros(micros)
    }
}

/// The commands of one shard, and what wakes it.
struct Mailbox {
    commands: Mutex<Vec<Command>>,
    wake: OwnedFd,
}

impl Mailbox {
    fn post(&self, command: Command) {
        self.commands.lock().push(command);
        // A counter that is full has woken it already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// Many sessions.
pub struct Fleet {
    live: Arc<Live>,
    shards: Vec<(Arc<Mailbox>, Option<JoinHandle<()>>)>,
    places: usize,
}

impl Fleet {
    /// The threads, with nobody connected. They end when it is dropped.
    ///
    /// # Errors
    /// The system gives no thread or no descriptor.
    pub fn start(target: &Target, places: Vec<Place>, threads: usize) -> io::Result<Self> {
        let live = Arc::new(Live {
            origin: Instant::now(),
            open: AtomicU64::new(0),
            connecting: AtomicU64::new(0),
            came: AtomicU64::new(0),
            last_micros: AtomicU64::new(0),
            heard_micros: AtomicU64::new(0),
            echoes: AtomicU64::new(0),
            returns: AtomicU64::new(0),
        });
        let count = places.len();
        let threads = threads.clamp(1, count.max(1));
        let mut shares: Vec<Vec<Slot>> = (0..threads).map(|_| Vec::with_capacity(count / threads + 1)).collect();
        for (index, place) in places.into_iter().enumerate() {
            shares[index % threads].push(Slot::new(index, place));
        }
        let mut fleet = Self { live, shards: Vec::with_capacity(threads), places: count };
        for (number, slots) in shares.into_iter().enumerate() {
            let flags = rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
            let wake = rustix::event::eventfd(0, flags)?;
            let mailbox = Arc::new(Mailbox { commands: Mutex::default(), wake });
            let shard = Shard::new(target.clone(), slots, Arc::clone(&mailbox), Arc::clone(&fleet.live))?;
            let thread = std::thread::Builder::new().name(format!("fleet-{number}")).spawn(move || shard.run())?;
            fleet.shards.push((mailbox, Some(thread)));
        }
        Ok(fleet)
    }

    /// How many sessions it can have.
    pub fn places(&self) -> usize {
        self.places
    }

    /// What is going on.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Starts counting anew: messages of `run`, which has so many lanes.
    pub fn begin(&self, run: u32, lanes: usize) {
        for counter in [&self.live.came, &self.live.echoes, &self.live.returns] {
            counter.store(0, Ordering::Relaxed);
        }
        self.live.last_micros.store(self.live.now_micros(), Ordering::Relaxed);
        self.tell(|| Command::Begin { run, lanes });
    }

    /// Connects every session that is not, so many at a time, but one for each thread at least. [`Live::connecting`] is 0 when that is done.
    pub fn connect(&self, max_concurrent: usize) {
        // Each thread takes off those of its own that are there already.
        self.live.connecting.store(self.places as u64, Ordering::Release);
        let share = (max_concurrent / self.shards.len()).max(1);
        self.tell(|| Command::Connect { max_concurrent: share });
    }

    /// Closes every session with 1000.
    pub fn close(&self) {
        self.tell(|| Command::Close);
    }

    /// Takes the time from the start of connecting until each session, by its place, has so many messages of its first
    /// lane.
    pub fn expect(&self, counts: &Arc<[u64]>) {
        self.tell(|| Command::Expect(Arc::clone(counts)));
    }

    /// Has sessions do something.
    pub fn order(&self, doing: Doing) {
        self.tell(|| Command::Do(doing));
    }

    /// What was counted since [`Fleet::begin`] or the last time this was asked, and what each session has.
    pub async fn collect(&self) -> Collected {
        self.ask(false).await
    }

    /// What each session has; the counts stay.
    pub async fn look(&self) -> Vec<SlotReport> {
        self.ask(true).await.slots
    }

    async fn ask(&self, keep: bool) -> Collected {
        let mut collected = Collected::default();
        for (mailbox, _) in &self.shards {
            let (tell, told) = oneshot::channel();
            mailbox.post(Command::Collect { tell, keep });
            // A thread that ended can only have panicked, and has said so.
            if let Ok(harvest) = told.await {
                collected.add(harvest);
            }
        }
        collected.slots.sort_by_key(|slot| slot.index);
        collected
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for (mailbox, _) in &self.shards {
            mailbox.post(command());
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.tell(|| Command::End);
        for (_, thread) in &mut self.shards {
            if let Some(thread) = thread.take() {
                let _ = thread.join();
            }
        }
    }
}
