//! Those who disturb, each on a thread of its own with a runtime of its own, at a lower priority than the quiet ones'.
//! All are bounded in number and in time.

use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use pushgate::{
    api::proto::Wait,
    stress::sender::{Pace, Via},
};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpSocket, TcpStream},
    sync::{mpsc, oneshot},
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{client::IntoClientRequest as _, protocol::WebSocketConfig},
};

use super::{
    daemon::{At, Error},
    load::{self, Load, Sessions},
};

/// Readers that are slow, stalled or silent; what each is sent in a second, and how large that is.
const READERS: usize = 50;
const READERS_RATE: f64 = 10.0 * READERS as f64;
const READERS_BYTES: usize = 4096;
/// How long a slow one takes over a message: twice as long as the next one takes to come.
const SLOW: Duration = Duration::from_millis(200);
/// A mailbox, and how often a device asks for all of it.
const MAILBOX: u64 = 10_000;
const REPLAYS: usize = 60;
const REPLAY_EVERY: Duration = Duration::from_millis(500);
/// Stored sends of the bulk caller that is paced, in a second; and the absent users whom he sends to.
const BULK_RATE: f64 = 5000.0;
const BULK_USERS: usize = 5000;
/// The sessions of the one user, and those that a broadcast goes to besides the quiet ones.
const MANY: usize = 5000;
/// Users who come back at once, and how often.
const RETURNING: usize = 2000;
const RETURN_EVERY: Duration = Duration::from_secs(1);
/// What the many are sent in a second.
const MANY_RATE: f64 = 2.0;
/// The control takes a core for this long, and leaves it for as long.
const SPIN: Duration = Duration::from_millis(10);
const PAYLOAD_BYTES: usize = 256;
/// How much worse than the quiet ones the disturbers' threads stand with the system's scheduler.
const NICE: i32 = 10;
/// How long a disturber may take to be ready, and to end after its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who disturbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Control,
    Slow,
    Stalled,
    Silent,
    Replay,
    Bulk,
    BulkFlatOut,
    ManyVolatile,
    ManyStored,
    Broadcast,
    Return,
}

impl Kind {
    pub const ALL: [Self; 11] = [
        Self::Control,
        Self::Slow,
        Self::Stalled,
        Self::Silent,
        Self::Replay,
        Self::Bulk,
        Self::BulkFlatOut,
        Self::ManyVolatile,
        Self::ManyStored,
        Self::Broadcast,
        Self::Return,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control: half a core is taken, the gateway not involved",
            Self::Slow => "50 slow readers, sent twice what they read (500/s of 4 KiB, stored)",
            Self::Stalled => "50 stalled readers (500/s of 4 KiB, stored)",
            Self::Silent => "50 who never pong (500/s of 4 KiB, stored; closed after 3 s, they come again)",
            Self::Replay => "a mailbox of 10,000 replaying, twice a second",
            Self::Bulk => "SendBatch, 5,000/s stored, absent users",
            Self::BulkFlatOut => "SendBatch flat out, stored, absent users (takes what the cores have)",
            Self::ManyVolatile => "one user with 5,000 sessions, 2/s never stored",
            Self::ManyStored => "one user with 5,000 sessions, 2/s stored, all confirm",
            Self::Broadcast => "a broadcast to all 5,500, 2/s",
            Self::Return => "2,000 users leave and come back at once, every second",
        }
    }

    /// What its daemon is told besides.
    pub fn config(self) -> &'static str {
        match self {
            Self::Silent => "heartbeat = { interval = \"2s\", timeout = \"1s\" }\n",
            // They stay as they are for the whole time.
            Self::Stalled | Self::Slow => {
                "limits.write_timeout = \"1h\"\nheartbeat.interval = \"1h\"\ndelivery.confirm_timeout = \"1h\"\n"
            }
            _ => "",
        }
    }
}

/// One who disturbs when told.
pub struct Disturber {
    orders: Option<mpsc::UnboundedSender<Duration>>,
    done: mpsc::UnboundedReceiver<Result<(), String>>,
    thread: Option<JoinHandle<()>>,
}

impl Disturber {
    /// Makes everything ready.
    pub async fn start(kind: Kind, at: At) -> Result<Self, Error> {
        let (orders, mut told) = mpsc::unbounded_channel::<Duration>();
        let (tell, done) = mpsc::unbounded_channel();
        let (prepared, ready) = oneshot::channel();
        let run = move || {
            // The quiet ones' threads come first. Where that is refused, the figures are a little worse.
            let _ = rustix::process::setpriority_process(None, NICE);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let work = async {
                let mut disturbing = match Prepared::new(kind, at).await {
                    Ok(at) => at,
                    Err(error) => {
                        let _ = prepared.send(Err(error.to_string()));
                        return;
                    }
                };
                let _ = prepared.send(Ok(()));
                while let Some(span) = told.recv().await {
                    let ended = tokio::time::timeout(span + PATIENCE, disturbing.disturb(span)).await;
                    let ended = ended.map_err(|_| "the disturber did not end".to_owned());
                    let _ = tell.send(ended.and_then(|ended| ended.map_err(|error| error.to_string())));
                }
            };
            match runtime {
                Ok(runtime) => runtime.block_on(work),
                Err(error) => eprintln!("no runtime for a disturber: {error}"),
            }
        };
        let thread = std::thread::Builder::new().name("disturber".into()).spawn(run)?;
        let disturber = Self { orders: Some(orders), done, thread: Some(thread) };
        tokio::time::timeout(PATIENCE, ready).await??.map_err(Error::from)?;
        Ok(disturber)
    }

    /// Has it disturb for a span from now.
    pub fn begin(&self, span: Duration) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(span);
        }
    }

    /// Waits until it rests.
    pub async fn ended(&mut self) -> Result<(), Error> {
        let done = self.done.recv().await.ok_or("the disturber ended")?;
        done.map_err(|error| format!("the disturber: {error}").into())
    }
}

impl Drop for Disturber {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Everything that a disturber needs, connected.
enum Prepared {
    Control,
    /// Sends these users what they do not take.
    Sender {
        sessions: Sessions,
        users: Arc<[Arc<str>]>,
        load: Load,
        each: u64,
        rate: Option<f64>,
    },
    /// Users who come back, all at once.
    Returning(Sessions),
    /// Devices that ask for a whole mailbox, one after the other.
    Replays {
        at: At,
        run: u32,
        next: usize,
    },
}

impl Prepared {
    async fn new(kind: Kind, at: At) -> Result<Self, Error> {
        // What is stored is waited for, so that nothing is left to do when it is over.
        let one = |via, volatile| Load {
            via,
            wait: if volatile { Wait::Accepted } else { Wait::Stored },
            volatile,
            payload: PAYLOAD_BYTES,
            callers: 1,
            pace: Pace::Count(0),
        };
        let sender = async |own: &[Arc<str>], users: Vec<Arc<str>>, load, each, rate| {
            let sessions = Sessions::connected(at, own).await?;
            Ok::<_, Error>(Self::Sender { sessions, users: users.into(), load, each, rate })
        };
        match kind {
            Kind::Control => Ok(Self::Control),
            Kind::Slow | Kind::Stalled | Kind::Silent => {
                let users = load::users("reader", READERS);
                for user in &users {
                    tokio::spawn(read(kind, at, Arc::clone(user), connect(at, user).await?));
                }
                let load = Load { payload: READERS_BYTES, ..one(Via::Batch, false) };
                sender(&[], users, load, 0, Some(READERS_RATE)).await
            }
            Kind::Replay => Self::mailbox(at, one(Via::Batch, false)).await,
            Kind::Bulk => {
                sender(&[], load::users("absent", BULK_USERS), one(Via::Batch, false), 0, Some(BULK_RATE)).await
            }
            Kind::BulkFlatOut => sender(&[], load::users("absent", BULK_USERS), one(Via::Batch, false), 0, None).await,
            Kind::ManyVolatile | Kind::ManyStored => {
                let volatile = kind == Kind::ManyVolatile;
                let user: Arc<str> = "many".into();
                let own = vec![Arc::clone(&user); MANY];
                sender(&own, vec![user], one(Via::Unary, volatile), MANY as u64, Some(MANY_RATE)).await
            }
            Kind::Return => Ok(Self::Returning(Sessions::connected(at, &load::users("again", RETURNING)).await?)),
            Kind::Broadcast => {
                let own = load::users("all", MANY);
                sender(&own, Vec::new(), one(Via::Broadcast, false), MANY as u64, Some(MANY_RATE)).await
            }
        }
    }

    /// Fills a mailbox for devices that are known. One of them never comes again, so that it stays full.
    async fn mailbox(at: At, load: Load) -> Result<Self, Error> {
        let user: Arc<str> = "mailbox".into();
        let devices = (0..=REPLAYS).map(|device| load::place(&user, Some(format!("device-{device}"))));
        let known = Sessions::new(at, devices.collect::<Result<_, _>>()?, 1).await?;
        known.connect().await?;
        known.leave().await?;
        let took = known.send(Load { pace: Pace::Count(MAILBOX), ..load }, &Arc::from([user]), 0).await?;
        match took.sent.accepted() {
            MAILBOX => Ok(Self::Replays { at, run: took.run, next: 0 }),
            filled => Err(format!("only {filled} are in the mailbox: {:?}", took.sent.failed).into()),
        }
    }

    async fn disturb(&mut self, span: Duration) -> Result<(), Error> {
        let until = Instant::now() + span;
        match self {
            Self::Control => {
                while Instant::now() < until {
                    let began = Instant::now();
                    while began.elapsed() < SPIN {
                        std::hint::spin_loop();
                    }
                    tokio::time::sleep(SPIN).await;
                }
                Ok(())
            }
            Self::Sender { sessions, users, load, each, rate } => {
                let load = match *rate {
                    Some(rate) => load.paced(rate, span),
                    None => Load { pace: Pace::For(span), ..*load },
                };
                let took = sessions.send(load, users, *each).await?;
                if took.missing > 0 || !took.sent.failed.is_empty() {
                    return Err(format!("{} did not come, calls failed: {:?}", took.missing, took.sent.failed).into());
                }
                Ok(())
            }
            Self::Returning(users) => {
                while Instant::now() < until {
                    let again = Instant::now() + RETURN_EVERY;
                    users.leave().await?;
                    users.connect().await?;
                    tokio::time::sleep_until(again.into()).await;
                }
                Ok(())
            }
            Self::Replays { at, run, next } => {
                while Instant::now() < until {
                    let again = Instant::now() + REPLAY_EVERY;
                    if *next == REPLAYS {
                        return Err("all devices have had the mailbox".into());
                    }
                    let place = load::place("mailbox", Some(format!("device-{next}")))?;
                    *next += 1;
                    let device = Sessions::new(*at, vec![place], 1).await?;
                    device.connect_for(*run).await?;
                    device.heard(MAILBOX).await?;
                    device.leave().await?;
                    tokio::time::sleep_until(again.into()).await;
                }
                Ok(())
            }
        }
    }
}

type Socket = WebSocketStream<TcpStream>;

/// A session with a receive buffer as small as the kernel allows, so that what it does not read stays with the gateway.
async fn connect(at: At, user: &str) -> Result<Socket, Error> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(2048)?;
    let stream = socket.connect(at.http).await?;
    let request = format!("ws://{}/ws?token={}", at.http, load::token(user)?).into_client_request()?;
    let config = WebSocketConfig::default().read_buffer_size(2048);
    Ok(client_async_with_config(request, stream, Some(config)).await?.0)
}

/// Reads as such a reader does, and comes again where the gateway ends it.
async fn read(kind: Kind, at: At, user: Arc<str>, mut socket: Socket) {
    loop {
        match kind {
            Kind::Slow => {
                while socket.next().await.is_some_and(|message| message.is_ok()) {
                    tokio::time::sleep(SLOW).await;
                }
            }
            Kind::Silent => {
                // What comes is taken, and nothing is ever said.
                let mut stream = socket.into_inner();
                let mut buffer = [0; 16 * 1024];
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
            }
            _ => std::future::pending().await,
        }
        socket = loop {
            match connect(at, &user).await {
                Ok(socket) => break socket,
                Err(_) => tokio::time::sleep(SLOW).await,
            }
        };
    }
}
