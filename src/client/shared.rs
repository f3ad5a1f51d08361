//! What the handles of a client and its tasks have in common. One lock, held for moments; no await, no callback and no
//! I/O under it.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_util::sync::CancellationToken;

use super::{
    Client, Handle,
    error::{Disconnect, Error, GiveUp, SendError},
    events::{Event, Feed, State},
    ledger::Ledger,
    message::{Message, Session},
    options::Options,
    outbox::{self, Outbox},
    wishes::Wishes,
};

/// Messages that wait for the handler before reading from the gateway pauses.
const INBOX_MESSAGES_MAX: usize = 1024;
/// Their bytes.
const INBOX_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Stored messages that are handed out and not acked before reading pauses; a gateway's own window is far below.
const IN_FLIGHT_MAX: usize = 16_384;
/// Events that wait for one reader.
const EVENTS_MAX: usize = 1024;
/// Their bytes.
const EVENT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// States that wait for one reader.
const STATES_MAX: usize = 64;

/// A message that waits for its turn.
#[derive(Debug)]
pub struct Delivery {
    pub message: Message,
    /// The session that brought it.
    pub session: u64,
    /// Whether the gateway delivers it again unless it is acked.
    pub acked: bool,
}

/// The messages that wait for the handler.
#[derive(Debug, Default)]
pub struct Inbox {
    queue: VecDeque<Delivery>,
    bytes: usize,
    /// The handler is to end once it is empty.
    pub finished: bool,
}

impl Inbox {
    pub fn push(&mut self, delivery: Delivery) {
        self.bytes += delivery.message.weight();
        self.queue.push_back(delivery);
    }

    pub fn pop(&mut self) -> Option<Delivery> {
        let delivery = self.queue.pop_front()?;
        self.bytes -= delivery.message.weight();
        Some(delivery)
    }

    fn is_full(&self) -> bool {
        self.queue.len() >= INBOX_MESSAGES_MAX || (self.bytes >= INBOX_BYTES_MAX && !self.queue.is_empty())
    }

    /// The client is to close: nothing more is handed over, but for what was confirmed by its arrival and is stored
    /// nowhere else.
    fn close(&mut self) {
        self.finished = true;
        self.retain(|delivery| !delivery.acked && delivery.message.offset().is_some());
    }

    /// What the gateway will deliver again goes.
    fn drop_unacked(&mut self) {
        self.retain(|delivery| !delivery.acked);
    }

    fn retain(&mut self, keep: impl FnMut(&Delivery) -> bool) {
        self.queue.retain(keep);
        self.bytes = self.queue.iter().map(|delivery| delivery.message.weight()).sum();
    }
}

/// What changes.
#[derive(Debug)]
pub struct Core {
    pub state: State,
    /// The present session.
    pub session: Option<Arc<Session>>,
    /// The largest message that the gateway takes, by the latest session.
    pub message_bytes_max: u64,
    pub outbox: Outbox,
    pub wishes: Wishes,
    pub ledger: Ledger,
    pub inbox: Inbox,
    /// Until when the end is waited for, once it has begun.
    end_by: Option<Instant>,
    ids: u64,
}

/// See the module.
pub struct Shared {
    pub options: Options,
    pub core: Mutex<Core>,
    /// Something is to be sent, or there is room for more to be read.
    pub wake: Notify,
    /// Something is to be handled.
    pub arrived: Notify,
    /// The number of the present session; 0 without one.
    pub session: watch::Sender<u64>,
    pub events: Feed<Event>,
    pub states: Feed<State>,
    /// The client is to close in order.
    pub closing: CancellationToken,
    /// The client is to end at once.
    pub cancel: CancellationToken,
    /// It has ended; how many messages had not left.
    pub ended: watch::Sender<Option<usize>>,
    /// Makes the ids of requests this client's own.
    prefix: String,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Shared {
    pub fn new(options: Options) -> Self {
        let core = Core {
            state: State::Connecting,
            session: None,
            message_bytes_max: u64::MAX,
            outbox: Outbox::new(options.queue),
            wishes: Wishes::default(),
            ledger: Ledger::new(options.dedup_ids),
            inbox: Inbox::default(),
            end_by: None,
            ids: 0,
        };
        Self {
            core: Mutex::new(core),
            wake: Notify::new(),
            arrived: Notify::new(),
            session: watch::Sender::new(0),
            events: Feed::new(EVENTS_MAX, EVENT_BYTES_MAX, options.manual),
            states: Feed::new(STATES_MAX, usize::MAX, false),
            closing: CancellationToken::new(),
            cancel: CancellationToken::new(),
            ended: watch::Sender::new(None),
            prefix: uuid::Uuid::new_v4().simple().to_string()[..8].to_owned(),
            options,
        }
    }

    /// An id for a message that is to be answered.
    pub fn new_id(&self) -> String {
        let mut core = self.core.lock();
        core.ids += 1;
        format!("{}-{}", self.prefix, core.ids)
    }

    /// Whether an id is one of [`Shared::new_id`].
    pub fn is_own_id(&self, id: &str) -> bool {
        id.strip_prefix(&*self.prefix).is_some_and(|rest| rest.starts_with('-'))
    }

    /// Whether a message can be taken to be sent at all.
    pub fn may_send(&self, core: &Core, frame: &Frame) -> Result<(), SendError> {
        if core.state.is_end() || self.closing.is_cancelled() {
            return Err(SendError::Ended);
        }
        let (bytes, max) = (frame.len(), core.message_bytes_max);
        if bytes as u64 > max { Err(SendError::TooLarge { bytes, max }) } else { Ok(()) }
    }

    /// A message was handled, by the handler or by whom it was shown to.
    pub fn handled(&self, message: &Message) {
        if self.core.lock().ledger.handled(message) {
            self.wake.notify_one();
        }
    }

    /// The client is to close in order: from here on nothing is taken to be sent, nothing more is handed over, and there is
    /// so much time for the rest.
    pub fn close(&self) {
        self.core.lock().inbox.close();
        self.end_by();
        // Whoever sees this sees what is above.
        self.closing.cancel();
        self.arrived.notify_one();
    }

    /// Until when the end, which begins now or has begun, is waited for.
    pub fn end_by(&self) -> Instant {
        let timeout = self.options.close_timeout;
        *self.core.lock().end_by.get_or_insert_with(|| Instant::now() + timeout)
    }

    /// The client comes to its end: what the gateway would deliver again is left to it, the rest is handled yet.
    pub fn close_inbox(&self) {
        let mut core = self.core.lock();
        core.inbox.drop_unacked();
        core.inbox.finished = true;
        drop(core);
        self.arrived.notify_one();
    }

    /// The next delivery for the handler; `None` once there will be none.
    pub async fn delivery(&self) -> Option<Delivery> {
        loop {
            {
                let mut core = self.core.lock();
                let was_full = core.is_full();
                if let Some(delivery) = core.inbox.pop() {
                    if was_full {
                        self.wake.notify_one();
                    }
                    return Some(delivery);
                }
                if core.inbox.finished {
                    return None;
                }
            }
            self.arrived.notified().await;
        }
    }

    /// The next frame to hand to the socket, and its id where it is a request. Acks go first: others wait for what they free.
    pub fn next_frame(&self) -> Option<(Frame, Option<String>)> {
        let mut core = self.core.lock();
        if let Some(offset) = core.ledger.take_ack() {
            return Some((Frame::text(format!("{{\"type\":\"ack\",\"offset\":{offset}}}")), None));
        }
        let now = Instant::now();
        if core.wishes.has_next(now) {
            core.ids += 1;
            let id = format!("{}-{}", self.prefix, core.ids);
            // What is made of two strings is always a message.
            if let Some(frame) = core.wishes.next(&id, now).and_then(|wish| outbox::with_id(&wish, &id).ok()) {
                return Some((frame, None));
            }
        }
        core.outbox.pop()
    }

    /// Changes the state and tells whoever looks. An end stays.
    pub fn set_state(&self, state: State) {
        {
            let mut core = self.core.lock();
            if core.state == state || core.state.is_end() {
                return;
            }
            core.state = state;
            // Shown under the lock, so that who looks at the state and then reads on misses none and sees none twice.
            self.states.show(&state);
        }
        self.events.show(&Event::State(state));
        self.call("on_state", |callbacks| callbacks.state.iter().for_each(|call| call(state)));
    }

    /// A session began.
    pub fn connected(&self, session: &Arc<Session>) {
        {
            let mut core = self.core.lock();
            core.ledger.clear();
            core.wishes.start_over();
            core.message_bytes_max = session.max_message_bytes;
            core.session = Some(Arc::clone(session));
        }
        self.session.send_replace(session.number);
        self.set_state(State::Connected);
        self.call("on_connect", |callbacks| callbacks.connect.iter().for_each(|call| call(session)));
        self.events.show(&Event::Connected(Arc::clone(session)));
    }

    /// The session ended.
    pub fn disconnected(&self, end: &Disconnect) {
        {
            let mut core = self.core.lock();
            core.session = None;
            core.ledger.clear();
            core.wishes.start_over();
            core.outbox.lost();
            core.inbox.drop_unacked();
        }
        self.session.send_replace(0);
        self.call("on_disconnect", |callbacks| callbacks.disconnect.iter().for_each(|call| call(end)));
        self.events.show(&Event::Disconnected(end.clone()));
    }

    /// Something went wrong in the background.
    pub fn error(&self, error: Error) {
        tracing::debug!(%error, "client");
        let quiet = matches!(error, Error::Callback(_));
        if !quiet {
            self.call("on_error", |callbacks| callbacks.error.iter().for_each(|call| call(&error)));
        }
        self.events.show(&Event::Error(error));
    }

    /// The client gave up.
    pub fn gave_up(&self, why: &GiveUp) {
        self.call("on_give_up", |callbacks| callbacks.give_up.iter().for_each(|call| call(why)));
        self.events.show(&Event::GaveUp(why.clone()));
    }

    /// The client ended: nothing more is sent, answered or shown.
    pub fn end(&self, state: State) {
        let unsent = {
            let mut core = self.core.lock();
            core.session = None;
            core.ledger.clear();
            core.wishes.end();
            core.inbox.finished = true;
            core.outbox.end()
        };
        self.session.send_replace(0);
        self.arrived.notify_one();
        self.set_state(state);
        self.states.end();
        self.events.end();
        self.ended.send_replace(Some(unsent));
    }

    /// Runs callbacks; one that panics ends none of the client's tasks.
    fn call(&self, name: &'static str, call: impl FnOnce(&super::options::Callbacks)) {
        if catch_unwind(AssertUnwindSafe(|| call(&self.options.callbacks))).is_err() {
            self.error(Error::Callback(name));
        }
    }
}

impl Core {
    /// Whether nothing more should be read for now.
    pub fn is_full(&self) -> bool {
        self.inbox.is_full() || self.ledger.len() >= IN_FLIGHT_MAX
    }

    /// Whether something waits to be sent.
    pub fn has_frame(&self) -> bool {
        self.ledger.has_ack() || self.wishes.has_next(Instant::now()) || !self.outbox.is_empty()
    }
}

/// The way from a message back to its client, which keeps neither alive.
#[derive(Clone)]
pub struct Weaks {
    pub shared: Weak<Shared>,
    pub handle: Weak<Handle>,
}

impl Weaks {
    pub fn upgrade(&self) -> Option<Client> {
        self.handle.upgrade().map(Client)
    }

    pub fn shared(&self) -> Option<Arc<Shared>> {
        self.shared.upgrade()
    }
}
