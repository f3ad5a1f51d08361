//! A hub without sockets: a store whose commits the test holds up, and clients that do what a connection's task and
//! its peer do, one step at a time.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::Value;

use super::{
    super::*,
    line::{Line, frame},
};
use crate::{
    auth::{self, Identity, KeyConfig},
    limits::Limits,
    protocol::{ack_mode::AckMode, frame::Incoming},
    session::{DeliveryConfig, Granted, HeartbeatConfig, Log, Options, Settings},
    store::double::Double,
    types::{ByteSize, Device, Notification, NotificationId, Payload, Secret, TypeName},
};

pub const HOUR: Duration = Duration::from_secs(3600);
#[derive(Clone, Copy)]
pub struct Bounds {
    pub window: u32,
    pub outbox_bytes: u64,
    /// Events that are kept.
    pub events: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { window: 256, outbox_bytes: 1 << 20, events: 4096 }
    }
}

/// A hub over a store over an engine at the test's command.
pub struct World {
    pub hub: Hub,
    pub double: Arc<Double>,
}

/// A send without an id of the caller's own.
pub fn plain(wait: Wait) -> SendOptions {
    SendOptions { wait, own_id: false }
}

pub fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

pub fn device(name: &str) -> Device {
    Device::parse(name).unwrap()
}

pub fn notification(bytes: usize) -> Notification {
    let now = Clock::system().unix_millis();
    Notification {
        id: NotificationId::generate(),
        type_name: TypeName::NOTIFICATION,
        payload: Payload::Json(Bytes::from(format!("\"{}\"", "x".repeat(bytes)))),
        from_user: None,
        topic: None,
        kind: None,
        collapse_key: None,
        not_for: [].into(),
        accepted_at: now,
        expires_at: Some(now.saturating_add(HOUR)),
    }
}

/// Yields to the store's threads until `holds`.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
        // `holds` may take the very lock that the store's thread needs.
        std::thread::yield_now();
        tokio::task::yield_now().await;
    }
}

thread_local! {
    /// Verifying keys are made once a test: it takes longer than the tests do.
    static AUTHENTICATOR: Arc<Authenticator> = {
        let key = KeyConfig { secret: Secret::new("secret"), ..KeyConfig::new(auth::Algorithm::HS256) };
        let config = auth::Config { keys: vec![key], require_exp: false, weak_keys: true, ..auth::Config::default() };
        Arc::new(Authenticator::new(&config, Clock::system()).unwrap())
    };
}

fn identity(user: &UserId) -> Identity {
    let key = jsonwebtoken::EncodingKey::from_secret(b"secret");
    let token = jsonwebtoken::encode(&Default::default(), &serde_json::json!({ "sub": user.as_str() }), &key).unwrap();
    AUTHENTICATOR.with(|authenticator| authenticator.verify(&token)).unwrap()
}

impl World {
    pub fn new(bounds: Bounds) -> World {
        Self::over(Arc::default(), bounds)
    }

    pub fn over(double: Arc<Double>, bounds: Bounds) -> World {
        let clock = Clock::system();
        Self::with(Store::open_double(&double, clock.clone()), double, clock, bounds)
    }

    /// A world over a store without threads, in the time of `clock`.
    pub fn by_hand(double: Arc<Double>, clock: Clock, bounds: Bounds) -> World {
        let store = Store::open_by_hand(Arc::new(Arc::clone(&double)), clock.clone());
        Self::with(store, double, clock, bounds)
    }

    fn with(store: Store, double: Arc<Double>, clock: Clock, bounds: Bounds) -> World {
        let delivery = DeliveryConfig { window: bounds.window, ..DeliveryConfig::default() };
        let hub = Hub::new(Parts {
            store,
            authenticator: AUTHENTICATOR.with(Arc::clone),
            clock,
            metrics: Metrics::default(),
            life: Lifecycle::new(),
            tracer: crate::trace::Tracer::default(),
            events: EventsConfig { buffer: bounds.events },
            live: Live {
                limits: Limits { outbox_bytes: ByteSize(bounds.outbox_bytes), ..Limits::default() },
                settings: Settings::of(&delivery, &HeartbeatConfig::default(), &Limits::default()),
                presence: Presence::default(),
                drain: DrainConfig::default(),
                notice: Duration::ZERO,
                alerts: AlertsConfig::default(),
                clients: Clients::default(),
                rules: Rules::new(&[super::topics::durable_rule()], &[]).unwrap(),
                public_claims: Vec::new(),
                guests_max: crate::types::Count(0),
                quotas: Quotas {
                    ttl: HOUR,
                    max_ttl: HOUR,
                    max_bytes: 0,
                    pending_per_user: 10_000,
                    devices_per_user: 16,
                    device_ttl: 24 * HOUR,
                    overflow: Overflow::Refuse,
                    idempotency_window: Duration::from_secs(600),
                },
            },
        });
        World { hub, double }
    }

    pub async fn attach(&self, user: &UserId, device: &Device) -> Client {
        self.attaching(user, device, AckMode::Transport).await.unwrap()
    }

    /// Attaches a session whose socket takes everything, until told otherwise.
    pub fn attaching(
        &self,
        user: &UserId,
        device: &Device,
        mode: AckMode,
    ) -> impl Future<Output = Result<Client, AttachError>> + Send + 'static {
        let options = Options { device: Some(device.clone()), ack_mode: Some(mode), ..Options::default() };
        self.attaching_with(user, options)
    }

    /// The same of one that asks for more.
    pub fn attaching_with(
        &self,
        user: &UserId,
        options: Options,
    ) -> impl Future<Output = Result<Client, AttachError>> + Send + 'static {
        let granted = Granted { identity: identity(user), options, reply_to: None };
        let peer = Peer { remote: ([127, 0, 0, 1], 1).into(), user_agent: None };
        let (hub, line) = (self.hub.clone(), Line::default());
        async move {
            let handle = hub.attach(granted, peer, Arc::new(line.clone())).await?;
            Ok(Client::new(hub, handle, line))
        }
    }

    /// Makes a device known, and leaves.
    pub async fn known(&self, user: &UserId, device: &Device) {
        self.attach(user, device).await.detach();
        self.barrier().await;
    }

    /// Comes back when everything staged before is on disk, lazy writes included.
    pub async fn barrier(&self) {
        let (done, written) = tokio::sync::oneshot::channel();
        self.hub.store().stage(crate::store::Op::PutDevice {
            user: user("barrier"),
            device: Device::UNNAMED,
            row: crate::store::DeviceRow::default(),
            counters: Default::default(),
            hold: Arc::default(),
            done,
        });
        written.await.unwrap().unwrap();
    }

    pub async fn send(&self, user: &UserId, bytes: usize) -> Sent {
        self.hub.send(user, notification(bytes), plain(Wait::Accepted)).await.unwrap()
    }

    /// Sends and returns the offset.
    pub async fn offset(&self, user: &UserId, bytes: usize) -> u64 {
        self.send(user, bytes).await.offset.unwrap().get()
    }

    /// Comes back when the user's log is readable up to `offset`.
    pub async fn applied(&self, user: &UserId, offset: u64) {
        let user = self.user(user);
        until("the log is readable", || user.state().log.applied.get() >= offset).await;
    }

    /// Comes back when all of the user's log is readable.
    pub async fn all_applied(&self, user: &UserId) {
        let last = self.user(user).state().log.last.get();
        self.applied(user, last).await;
    }

    pub fn user(&self, user: &UserId) -> Arc<User> {
        self.hub.0.users.get(user).unwrap()
    }
}

/// A notification as a client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// 0: it has none.
    pub offset: u64,
    pub replayed: bool,
}

/// A session, its task and its peer, which move when the test says so.
pub struct Client {
    hub: Hub,
    /// The ids of what it saw.
    pub ids: Vec<String>,
    /// How many of what it saw it has confirmed.
    pub confirmed: usize,
    /// How many it had seen when its ping came.
    pinged_at: usize,
    /// What `auth_success` said of a gap.
    pub gap: bool,
    pub handle: Arc<Handle>,
    line: Line,
    /// The bytes that were looked at.
    read: usize,
    /// What `auth_success` said.
    pub pending: u64,
    pub seen: Vec<Seen>,
    /// How often it was told that it is in a topic, or is not.
    pub answers: usize,
    /// Where the session started.
    pub start: u64,
    ping: Option<Vec<u8>>,
    /// The code of the close frame.
    pub closed: Option<u16>,
    /// As the connection's task has it: nothing is pulled before something arrives.
    paused: bool,
    page: Option<(PageRequest, crate::store::Page)>,
}

impl Client {
    fn new(hub: Hub, handle: Arc<Handle>, line: Line) -> Client {
        let start = handle.core().session.delivery.position(Log::User).get();
        let mut client = Client {
            hub,
            ids: Vec::new(),
            confirmed: 0,
            pinged_at: 0,
            gap: false,
            handle,
            line,
            read: 0,
            pending: 0,
            seen: Vec::new(),
            answers: 0,
            start,
            ping: None,
            closed: None,
            paused: false,
            page: None,
        };
        client.read();
        client
    }

    /// Looks at what has come. Whatever is wrong with it on its own is found here.
    pub fn read(&mut self) {
        let taken = self.line.0.lock();
        while let Some((opcode, payload, length)) = frame(&taken.bytes[self.read..]) {
            assert_eq!(self.closed, None, "something came after the close frame");
            self.read += length;
            match opcode {
                1 => {
                    let message: Value = serde_json::from_slice(&payload).unwrap();
                    match message["type"].as_str().unwrap() {
                        "auth_success" => {
                            self.pending = message["pending"].as_u64().unwrap();
                            self.gap = message["gap"] == true;
                        }
                        "notification" => {
                            self.ids.push(message["id"].as_str().unwrap().to_owned());
                            self.seen.push(Seen {
                                offset: message["offset"].as_u64().unwrap_or(0),
                                replayed: message["replayed"] == true,
                            });
                        }
                        "subscribed" | "unsubscribed" => self.answers += 1,
                        other => panic!("a message of type {other}"),
                    }
                }
                8 => self.closed = Some(u16::from_be_bytes([payload[0], payload[1]])),
                9 => {
                    assert_eq!(self.ping.replace(payload.to_vec()), None, "one ping at a time");
                    self.pinged_at = self.seen.len();
                }
                other => panic!("a frame of opcode {other}"),
            }
        }
    }

    /// How often it was written to.
    pub fn writes(&self) -> usize {
        self.line.0.lock().writes
    }

    /// The offsets that it saw.
    pub fn offsets(&mut self) -> Vec<u64> {
        self.read();
        self.seen.iter().map(|seen| seen.offset).collect()
    }

    /// The socket takes `room` more bytes; `None`: any number.
    pub fn takes(&mut self, room: Option<usize>) {
        self.line.0.lock().room = room;
        if room != Some(0) && self.handle.core().outbox.stalled_since().is_some() {
            self.handle.resume();
        }
        self.read();
    }

    /// The first half of a pull: a page is asked for and read. True: there is one.
    pub async fn begin_pull(&mut self) -> bool {
        if self.page.is_none()
            && !self.paused
            && self.handle.is_behind()
            && let Pull::Read(request) = self.hub.plan_pull(&self.handle)
        {
            let page = self.hub.read_page(&request).await.unwrap();
            self.page = Some((request, page));
        }
        self.page.is_some()
    }

    /// [`Client::settle`] while the store may be between two openings: pages that cannot be read are asked for again.
    pub async fn try_settle(&mut self) {
        if self.page.is_none()
            && !self.paused
            && self.handle.is_behind()
            && let Pull::Read(request) = self.hub.plan_pull(&self.handle)
        {
            match self.hub.read_page(&request).await {
                Ok(page) => self.page = Some((request, page)),
                Err(StoreError::Recovering(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        self.end_pull();
        self.confirm();
    }

    /// The second half: the page is handed over.
    pub fn end_pull(&mut self) -> bool {
        let Some((request, page)) = self.page.take() else { return false };
        self.paused = !self.hub.finish_pull(&self.handle, &request, page);
        self.read();
        true
    }

    /// Answers the ping that came, if one did.
    pub fn pong(&mut self) -> bool {
        self.read();
        let Some(payload) = self.ping.take() else { return false };
        if self.handle.core().session.ack_mode == AckMode::Transport {
            self.confirmed = self.pinged_at;
        }
        self.arrived(Incoming::Pong(&payload));
        true
    }

    /// Acks all up to the `count`th of what it saw.
    pub fn ack_first(&mut self, count: usize) {
        self.read();
        if let Some(seen) = count.checked_sub(1).and_then(|last| self.seen.get(last)) {
            let text = format!(r#"{{"type":"ack","offset":{}}}"#, seen.offset);
            self.confirmed = self.confirmed.max(count);
            self.arrived(Incoming::Text(&text));
        }
    }

    /// Acks everything that it saw.
    pub fn ack(&mut self) -> bool {
        let unconfirmed = self.handle.core().session.delivery.unconfirmed();
        self.read();
        self.ack_first(self.seen.len());
        self.handle.core().session.delivery.unconfirmed() < unconfirmed
    }

    fn arrived(&mut self, incoming: Incoming<'_>) {
        self.hub.received(&self.handle, 1);
        self.hub.incoming(&self.handle, incoming);
        self.handle.flush();
        self.paused = false;
        self.read();
    }

    /// Confirms what it can, by the session's way. True: something was confirmed, or may have been.
    pub fn confirm(&mut self) -> bool {
        let mode = self.handle.core().session.ack_mode;
        let ponged = self.pong();
        match mode {
            AckMode::Transport => ponged,
            AckMode::Client => self.ack(),
        }
    }

    /// Pulls and confirms for as long as that leads anywhere.
    pub async fn settle(&mut self) {
        loop {
            let pulled = self.begin_pull().await && self.end_pull();
            if !self.confirm() && !pulled {
                return;
            }
        }
    }

    pub fn is_live(&self) -> bool {
        !self.handle.is_behind()
    }

    pub fn detach(&self) -> Ended {
        self.hub.detach(&self.handle)
    }
}
