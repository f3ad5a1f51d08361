//! The daemon as a process that is killed in the middle of its work and started again on the same data.
//!
//! What is checked is what callers and clients were told: everything that was answered STORED arrives, in the order of
//! the offsets; no offset is ever given to two notifications; what was confirmed, and whose confirmation is on disk,
//! does not come again. What comes twice otherwise is counted, not condemned: delivery is at least once.

mod daemon;
mod damage;
mod opening;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{SinkExt as _, StreamExt as _};
use pushgate::api::proto::{
    ListSessionsRequest, Notification, Outcome, SendToUserRequest, Wait, gateway_client::GatewayClient,
    notification::Payload,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, tungstenite::Message};
use tonic::transport::Channel;

use daemon::{Daemon, Keeping};

const ROUNDS: usize = 26;
const SENDERS: usize = 10;
const ACKNOWLEDGED_PER_ROUND: usize = 200;
/// Nobody of theirs is there while they are sent to.
const ABSENT: [&str; 4] = ["ann", "bob", "eve", "kim"];
/// Each has a session while they are sent to.
const ONLINE: [&str; 2] = ["lea", "max"];
/// How long anything here may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(20);

/// What an offset stands for: the notification's id and its payload.
type Content = (String, String);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Received {
    offset: u64,
    content: Content,
    replayed: bool,
}

impl Received {
    fn of(message: &Value) -> Received {
        assert_eq!(message["type"], "notification", "{message}");
        Received {
            offset: message["offset"].as_u64().unwrap(),
            content: (message["id"].as_str().unwrap().to_owned(), message["data"].to_string()),
            replayed: message["replayed"] == true,
        }
    }
}

/// A client that answers pings, as every WebSocket library does.
struct Session {
    user: String,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pending: usize,
    received: Vec<Received>,
}

impl Session {
    async fn open(daemon: &Daemon, user: &str) -> Session {
        Session::try_open(daemon, user).await.expect("a session")
    }

    /// None where the gateway lets nobody in.
    async fn try_open(daemon: &Daemon, user: &str) -> Option<Session> {
        let (socket, _) = tokio_tungstenite::connect_async(daemon.url(user)).await.ok()?;
        let mut session = Session { user: user.to_owned(), socket, pending: 0, received: Vec::new() };
        let hello = session.next().await?;
        if hello["type"] != "auth_success" {
            return None;
        }
        session.pending = usize::try_from(hello["pending"].as_u64()?).ok()?;
        Some(session)
    }

    /// The next text message; none once the connection is gone.
    async fn next(&mut self) -> Option<Value> {
        let next = async {
            loop {
                match self.socket.next().await? {
                    Ok(Message::Text(text)) => return Some(serde_json::from_str(&text).unwrap()),
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("a message, or the connection's end")
    }

    /// Takes notifications until the connection is gone.
    async fn until_the_end(mut self) -> Session {
        while let Some(message) = self.next().await {
            self.received.push(Received::of(&message));
        }
        self
    }

    /// Takes what waited when the session was opened, and nothing more, and sees it confirmed.
    async fn drain(&mut self, client: &mut GatewayClient<Channel>) {
        while self.received.len() < self.pending {
            let message = self.next().await.expect("all that waits");
            self.received.push(Received::of(&message));
        }
        while !self.is_confirmed(client).await {
            self.round_trip().await;
        }
        // The pong that confirmed was worked off before this is answered.
        self.round_trip().await;
    }

    async fn round_trip(&mut self) {
        self.socket.send(Message::text(r#"{"type":"ping"}"#)).await.unwrap();
        let answer = self.next().await.unwrap();
        assert_eq!(answer["type"], "pong", "{} had {} waiting: {answer}", self.user, self.pending);
    }

    async fn is_confirmed(&self, client: &mut GatewayClient<Channel>) -> bool {
        let request = ListSessionsRequest { user_id: self.user.clone(), ..Default::default() };
        let sessions = client.list_sessions(request).await.unwrap().into_inner().sessions;
        sessions.iter().all(|session| session.unconfirmed == 0)
    }
}

/// What a user's sender and his sessions were told, over all the daemon's lives.
#[derive(Default)]
struct Ledger {
    /// Answered STORED.
    stored: BTreeMap<u64, Content>,
    /// Whatever was said of an offset, in an answer or in a message.
    said: HashMap<u64, Content>,
    /// In how many sessions an offset was received.
    seen: HashMap<u64, usize>,
    /// The highest offset that was heard of.
    highest: u64,
    /// Everything up to here was confirmed, and that is on disk.
    confirmed: u64,
    /// How many came again although they were confirmed so.
    back: usize,
}

impl Ledger {
    fn say(&mut self, offset: u64, content: &Content) {
        let before = self.said.entry(offset).or_insert_with(|| content.clone());
        assert_eq!(before, content, "{offset} was given twice");
        self.highest = self.highest.max(offset);
    }

    fn answered(&mut self, offset: u64, content: &Content, before_round: u64) {
        assert!(offset > before_round, "{offset} is not above {before_round}, which was there before the crash");
        self.say(offset, content);
        assert!(self.stored.insert(offset, content.clone()).is_none());
    }

    fn session(&mut self, received: &[Received]) {
        assert!(received.is_sorted_by(|a, b| a.offset < b.offset), "out of order, or twice in a session");
        let ids: HashSet<_> = received.iter().map(|one| &one.content.0).collect();
        assert_eq!(ids.len(), received.len(), "an id came twice in a session");
        for one in received {
            self.back += usize::from(one.offset <= self.confirmed);
            self.say(one.offset, &one.content);
            *self.seen.entry(one.offset).or_default() += 1;
        }
    }

    fn lost(&self) -> usize {
        self.stored.keys().filter(|offset| !self.seen.contains_key(offset)).count()
    }

    fn repeated(&self) -> usize {
        self.seen.values().filter(|sessions| **sessions > 1).count()
    }
}

type Ledgers = BTreeMap<&'static str, Ledger>;

struct Sent {
    user: &'static str,
    offset: u64,
    content: Content,
}

async fn send(client: &mut GatewayClient<Channel>, user: &str, number: u64) -> Result<(u64, Content), tonic::Status> {
    // Some in chunks; every other one with the caller's own id.
    let padding = if number.is_multiple_of(16) { 6000 } else { 0 };
    let payload = serde_json::json!({ "n": number, "padding": "x".repeat(padding) }).to_string();
    let id = if number.is_multiple_of(2) { String::new() } else { format!("own-{number}") };
    let notification = Notification { id, payload: Some(Payload::Json(payload.clone())), ..Default::default() };
    let request = SendToUserRequest {
        user_id: user.to_owned(),
        notification: Some(notification),
        wait: Wait::Stored.into(),
        ..Default::default()
    };
    let answer = client.send_to_user(request).await?.into_inner();
    assert_eq!(answer.outcome(), Outcome::Stored);
    Ok((answer.offset, (answer.id, payload)))
}

/// Sends one call after the other until one is cut off by the end of the daemon. Returns the number of that one.
async fn send_on(
    mut client: GatewayClient<Channel>,
    first: usize,
    numbers: Arc<AtomicU64>,
    acknowledged: mpsc::UnboundedSender<Sent>,
) -> u64 {
    let users = ABSENT.into_iter().chain(ONLINE).collect::<Vec<_>>();
    for turn in first.. {
        let user = users[turn % users.len()];
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        match send(&mut client, user, number).await {
            Ok((offset, content)) => acknowledged.send(Sent { user, offset, content }).unwrap(),
            Err(_) => return number,
        }
    }
    unreachable!("turns do not run out")
}

/// Senders and online sessions at work, and a kill in the middle of it. Returns how many calls were acknowledged, and how
/// many that were under way before the kill were cut off by it.
async fn killed_at_work(
    daemon: Daemon,
    ledgers: &mut Ledgers,
    numbers: &Arc<AtomicU64>,
    enough: usize,
) -> (usize, usize) {
    let before: HashMap<_, _> = ledgers.iter().map(|(user, ledger)| (*user, ledger.highest)).collect();
    let mut sessions = Vec::new();
    for user in ONLINE {
        sessions.push(tokio::spawn(Session::open(&daemon, user).await.until_the_end()));
    }
    let (acknowledged, mut acknowledgements) = mpsc::unbounded_channel();
    let mut senders = Vec::new();
    for first in 0..SENDERS {
        let client = daemon.client().await;
        senders.push(tokio::spawn(send_on(client, first, Arc::clone(numbers), acknowledged.clone())));
    }
    drop(acknowledged);
    let mut answered = Vec::new();
    while answered.len() < enough {
        answered.push(acknowledgements.recv().await.expect("the daemon lives until it is killed"));
    }
    let begun = numbers.load(Ordering::Relaxed);
    daemon.kill();
    let mut cut_off = 0;
    for sender in senders {
        let number = tokio::time::timeout(PATIENCE, sender).await.expect("a call ends with the daemon").unwrap();
        cut_off += usize::from(number < begun);
    }
    while let Some(sent) = acknowledgements.recv().await {
        answered.push(sent);
    }
    for Sent { user, offset, content } in &answered {
        ledgers.get_mut(user).unwrap().answered(*offset, content, before[user]);
    }
    for (user, session) in ONLINE.into_iter().zip(sessions) {
        let Session { received, .. } = session.await.unwrap();
        let waited = received.iter().filter(|one| one.offset <= before[user]);
        assert!(waited.clone().all(|one| one.replayed), "what had to wait says so");
        ledgers.get_mut(user).unwrap().session(&received);
    }
    (answered.len(), cut_off)
}

/// Connects every user and takes all that waits. Returns the sessions, still open, with nothing unconfirmed.
async fn take_all(daemon: &Daemon, ledgers: &mut Ledgers) -> Vec<Session> {
    let mut client = daemon.client().await;
    let mut sessions = Vec::new();
    for (user, ledger) in ledgers {
        let mut session = Session::open(daemon, user).await;
        session.drain(&mut client).await;
        assert!(session.received.iter().all(|one| one.replayed), "all of it had to wait");
        ledger.session(&session.received);
        sessions.push(session);
    }
    sessions
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_sled_what_was_answered_stored_arrives_however_often_the_daemon_is_killed() {
    killed_again_and_again(Keeping { engine: "sled", durability: "process" }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_sled_synced_what_was_answered_stored_arrives_however_often_the_daemon_is_killed() {
    killed_again_and_again(Keeping { engine: "sled", durability: "power" }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_redb_what_was_answered_stored_arrives_however_often_the_daemon_is_killed() {
    killed_again_and_again(Keeping { engine: "redb", durability: "process" }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_redb_for_the_power_what_was_answered_stored_arrives_however_often_the_daemon_is_killed() {
    killed_again_and_again(Keeping { engine: "redb", durability: "power" }).await;
}

async fn killed_again_and_again(keeping: Keeping) {
    let folder = TempDir::new().unwrap();
    let numbers = Arc::new(AtomicU64::new(0));
    let mut ledgers: Ledgers = ABSENT.into_iter().chain(ONLINE).map(|user| (user, Ledger::default())).collect();
    let (mut acknowledged, mut cut_off) = (0, 0);
    for round in 0..ROUNDS {
        let daemon = Daemon::start(folder.path(), keeping).await;
        // The moment of the kill differs from round to round.
        let enough = ACKNOWLEDGED_PER_ROUND + round * 37 % 90;
        let (answered, cut) = killed_at_work(daemon, &mut ledgers, &numbers, enough).await;
        (acknowledged, cut_off) = (acknowledged + answered, cut_off + cut);
        if round % 4 != 3 {
            continue;
        }
        let daemon = Daemon::start(folder.path(), keeping).await;
        let sessions = take_all(&daemon, &mut ledgers).await;
        if round % 8 == 7 {
            // Cursors are written lazily, but in the order of all writes: with this answer they are on disk.
            send(&mut daemon.client().await, "witness", 0).await.unwrap();
            for ledger in ledgers.values_mut() {
                ledger.confirmed = ledger.highest;
            }
        }
        drop(sessions);
        daemon.kill();
    }
    let daemon = Daemon::start(folder.path(), keeping).await;
    let sessions = take_all(&daemon, &mut ledgers).await;
    send(&mut daemon.client().await, "witness", 0).await.unwrap();
    drop(sessions);
    daemon.kill();
    let daemon = Daemon::start(folder.path(), keeping).await;
    let lost: usize = ledgers.values().map(Ledger::lost).sum();
    let repeated: usize = ledgers.values().map(Ledger::repeated).sum();
    let back: usize = ledgers.values().map(|ledger| ledger.back).sum();
    println!(
        "{keeping}: {ROUNDS} rounds, {acknowledged} acknowledged, {cut_off} cut off, {lost} lost, {repeated} repeated, {back} of them \
         although confirmed"
    );
    // Of ten senders at work at each kill, some were waiting for an answer in one round or another.
    assert!(cut_off >= ROUNDS, "the kills met next to no call under way");
    assert_eq!((lost, back), (0, 0));
    for user in ledgers.keys() {
        assert_eq!(Session::open(&daemon, user).await.pending, 0, "everything was confirmed");
    }
    assert!(acknowledged >= ROUNDS * ACKNOWLEDGED_PER_ROUND);
}

/// A client of its own making that takes what comes and answers nothing.
struct Mute {
    stream: TcpStream,
    bytes: Vec<u8>,
    pings: usize,
}

impl Mute {
    async fn open(daemon: &Daemon, user: &str) -> Mute {
        let mut stream = TcpStream::connect(daemon.http).await.unwrap();
        let url = daemon.url(user);
        let (_, target) = url.split_once("/ws").unwrap();
        let request = format!(
            "GET /ws{target} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            daemon.http
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut mute = Mute { stream, bytes: Vec::new(), pings: 0 };
        let head = loop {
            if let Some(end) = mute.bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break mute.bytes.drain(..end + 4).collect::<Vec<u8>>();
            }
            mute.read().await;
        };
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        assert_eq!(mute.message().await["type"], "auth_success");
        mute
    }

    async fn read(&mut self) {
        let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.bytes)).await;
        assert_ne!(read.expect("more bytes").unwrap(), 0, "the gateway closed");
    }

    /// The next text message. Pings are counted and left unanswered.
    async fn message(&mut self) -> Value {
        loop {
            let (opcode, payload) = self.frame().await;
            match opcode {
                1 => return serde_json::from_slice(&payload).unwrap(),
                9 => self.pings += 1,
                other => panic!("a frame of opcode {other}"),
            }
        }
    }

    /// The next frame (RFC 6455 section 5.2): a server's frames are whole here, and not masked.
    async fn frame(&mut self) -> (u8, Vec<u8>) {
        loop {
            let header = match self.bytes.as_slice() {
                [first, length @ ..=125, ..] => Some((first, 2, usize::from(*length))),
                [first, 126, high, low, ..] => Some((first, 4, usize::from(u16::from_be_bytes([*high, *low])))),
                _ => None,
            };
            if let Some((first, start, length)) = header
                && self.bytes.len() >= start + length
            {
                let opcode = first & 0x0F;
                let frame: Vec<u8> = self.bytes.drain(..start + length).collect();
                return (opcode, frame[start..].to_vec());
            }
            self.read().await;
        }
    }

    async fn take(&mut self, count: usize) -> Vec<Received> {
        let mut received = Vec::new();
        while received.len() < count {
            received.push(Received::of(&self.message().await));
        }
        received
    }
}

#[tokio::test]
async fn a_client_that_never_answers_pings_gets_everything_again_on_its_next_connection() {
    let folder = TempDir::new().unwrap();
    let daemon = Daemon::start(folder.path(), Keeping::default()).await;
    let mut client = daemon.client().await;
    let mut sent = Vec::new();
    for number in 0..5 {
        sent.push(send(&mut client, "ann", number).await.unwrap());
    }
    let mut mute = Mute::open(&daemon, "ann").await;
    let mut first = mute.take(5).await;
    for number in 5..8 {
        sent.push(send(&mut client, "ann", number).await.unwrap());
        first.extend(mute.take(1).await);
    }
    assert!(
        first.iter().map(|one| (&one.offset, &one.content)).eq(sent.iter().map(|(offset, content)| (offset, content)))
    );
    assert!(first[..5].iter().all(|one| one.replayed), "what had to wait says so");
    drop(mute);

    let again: Vec<_> = first.iter().map(|one| Received { replayed: true, ..one.clone() }).collect();
    let mut mute = Mute::open(&daemon, "ann").await;
    assert_eq!(mute.take(8).await, again, "all of it comes again");
    daemon.kill();
    let daemon = Daemon::start(folder.path(), Keeping::default()).await;
    let mut second = Mute::open(&daemon, "ann").await;
    assert_eq!(second.take(8).await, again, "and after the crash");
    // Something that stands behind the ping shows that there was one.
    send(&mut daemon.client().await, "ann", 8).await.unwrap();
    second.take(1).await;
    assert_eq!(second.pings, 1, "one ping is outstanding, and no more are sent");
    drop((mute, second));

    let mut session = Session::open(&daemon, "ann").await;
    session.drain(&mut daemon.client().await).await;
    assert_eq!(session.received.len(), 9, "a client that answers gets all of it");
    drop(session);
    assert_eq!(Session::open(&daemon, "ann").await.pending, 0, "and no more of it");
}
