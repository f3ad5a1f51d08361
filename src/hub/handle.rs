//! A session with its outbox and its socket: what the rest of the hub holds on to.
//!
//! Locks: a user's state before a session's core, never the other way round; the core is held for moments only, and
//! never across a write.

mod closing;
mod flows;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32},
    },
};

use arc_swap::ArcSwap;
use bytes::Bytes;
pub use closing::Closing;
use flows::Followed;
use futures_util::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};

use super::{
    Live,
    outbox::{Batch, Entry, Outbox, Wire},
    outgoing::Outgoing,
    talk::Sends,
    topics::Room,
    user::User,
};
use crate::{
    clock::{Clock, Instant},
    limits::Limit,
    metrics::{Class, Metrics},
    protocol::frame::{ControlFrame, Window},
    session::{Flow, Log, Offer, PingPayload, Session, Verdict},
    types::{Claims, Device, Notification, Offset, SessionId, UnixMillis},
};

/// What every session of a node shares.
#[derive(Debug)]
pub struct Shared {
    /// What a reload may change.
    pub live: ArcSwap<Live>,
    /// Time.
    pub clock: Clock,
    /// Counters.
    pub metrics: Metrics,
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Address and port.
    pub remote: SocketAddr,
    /// The `User-Agent` of the handshake.
    pub user_agent: Option<Box<str>>,
}

/// Messages and bytes of one session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Messages received.
    pub messages_received: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Messages written to their end.
    pub messages_sent: u64,
    /// Bytes written.
    pub bytes_sent: u64,
}

/// What changes in a session, under its lock.
#[derive(Debug)]
pub struct Core {
    /// Its protocol state.
    pub session: Session,
    /// What waits for its socket.
    pub outbox: Outbox,
    /// Set once it is being closed.
    pub closing: Option<Box<Closing>>,
    /// What it received and was sent.
    pub counts: Counts,
    /// What not every session has.
    pub(super) aside: Option<Box<Aside>>,
}

/// What not every session has, and is in a box of its own therefore.
#[derive(Debug, Default)]
pub struct Aside {
    /// What its token says of it, as far as it is kept.
    pub claims: Claims,
    /// Its topics.
    pub(super) rooms: Vec<Arc<Room>>,
    /// Those of them that are durable.
    #[allow(clippy::box_collection, reason = "mostly not there, in every such session's memory")]
    followed: Option<Box<Vec<Followed>>>,
    /// What it says to others and is to be stored.
    pub(super) sends: Option<Box<Sends>>,
}

/// A session. The hub and its connection's task share it.
pub struct Handle {
    /// Its id.
    pub id: SessionId,
    /// Its user.
    pub user: Arc<User>,
    /// Its device.
    pub device: Device,
    /// Its other end.
    pub peer: Peer,
    /// When it authenticated.
    pub connected_at: UnixMillis,
    /// The same, for spans.
    pub opened: Instant,
    /// Whether it is Pulling, by log: what [`Flow`] says, readable without the lock.
    pulling: [AtomicBool; flows::PLACES],
    task: AtomicWaker,
    /// Whether it is in the list of those that are woken when more of the broadcast log is readable.
    waits_for_broadcasts: AtomicBool,
    /// The wheel's tick at which the session is looked at next. Entries of other ticks are stale.
    pub(super) look_at_tick: AtomicU32,
    /// How far back what is compressed for it may refer; `None`: it takes no compressed messages.
    pub window: Option<Window>,
    wire: Arc<dyn Wire>,
    core: Mutex<Core>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Handle {
    /// A session over `wire`, Pulling, in nobody's registry yet.
    #[allow(clippy::too_many_arguments, reason = "built in one place, from parts that have nothing else in common")]
    pub fn new(
        id: SessionId,
        user: Arc<User>,
        device: Device,
        peer: Peer,
        session: Session,
        wire: (Arc<dyn Wire>, Option<Window>),
        shared: Arc<Shared>,
    ) -> Self {
        let (wire, window) = wire;
        let core = Core { session, outbox: Outbox::new(window), closing: None, counts: Counts::default(), aside: None };
        Self {
            id,
            user,
            device,
            peer,
            connected_at: shared.clock.unix_millis(),
            opened: shared.clock.now(),
            pulling: [AtomicBool::new(true), AtomicBool::new(true), AtomicBool::new(false)],
            task: AtomicWaker::new(),
            waits_for_broadcasts: AtomicBool::new(false),
            look_at_tick: AtomicU32::new(0),
            window,
            wire,
            core: Mutex::new(core),
            shared,
        }
    }

    /// The session's state.
    pub fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock()
    }

    /// Whether it is being closed.
    pub fn is_closing(&self) -> bool {
        self.core().closing.is_some()
    }

    /// Registers the connection's task to be woken.
    pub fn register_task(&self, waker: &std::task::Waker) {
        self.task.register(waker);
    }

    /// Wakes the connection's task: to pull, to wait for the socket, or to close.
    pub fn wake(&self) {
        self.task.wake();
    }

    /// Offers a stored notification, in the order of its log. True: it is in the outbox, flush it after the lock. False:
    /// the session had it, pulls it later, or is closing.
    pub fn offer(
        &self,
        log: Log,
        notification: &Notification,
        offset: Offset,
        outgoing: &Outgoing,
        now: Instant,
    ) -> bool {
        let mut core = self.core.lock();
        let core = &mut *core;
        if core.closing.is_some() {
            return false;
        }
        let bytes = outgoing.frame(core.session.binary).len();
        let (limit, window) = self.bounds();
        let fits = core.outbox.has_room(bytes, limit);
        let was = core.session.delivery.flow(log);
        match core.session.delivery.offer(log, offset, &notification.id, bytes, window, fits, now) {
            Offer::Taken(sequence) => {
                core.session.delivery.note_accepted(notification.accepted_at);
                core.outbox.push(outgoing.entry(core.session.binary, self.window, Some(sequence)));
                core.ping_behind_data(now);
                true
            }
            Offer::Had => false,
            Offer::Behind => {
                if was == Flow::Live {
                    self.note_flow(log, &core.session.delivery);
                    self.wake();
                }
                false
            }
        }
    }

    /// `limits.outbox_bytes` and `delivery.window`.
    fn bounds(&self) -> (usize, usize) {
        let live = self.shared.live.load();
        (live.limits.outbox_bytes.as_usize(), live.settings.delivery.window as usize)
    }

    /// Hands over a notification that was read from the store. False: the window or the outbox has no room for it.
    pub fn hand_over(
        &self,
        log: Log,
        notification: &Notification,
        offset: Offset,
        outgoing: &Outgoing,
        now: Instant,
    ) -> bool {
        let mut core = self.core.lock();
        let core = &mut *core;
        let bytes = outgoing.frame(core.session.binary).len();
        let (limit, window) = self.bounds();
        let fits = core.outbox.has_room(bytes, limit);
        if core.closing.is_some() || !fits || !core.session.delivery.admits(bytes, window) {
            return false;
        }
        let sequence = core.session.delivery.hand_over(log, offset, &notification.id, bytes, now);
        core.session.delivery.note_accepted(notification.accepted_at);
        core.outbox.push(outgoing.entry(core.session.binary, self.window, Some(sequence)));
        true
    }

    /// Appends the confirmation ping that belongs behind handed-over pages.
    pub fn ping_behind_data(&self) {
        self.core.lock().ping_behind_data(self.shared.clock.now());
    }

    /// Appends a notification that is not stored. False: the session is closing, or was closed by this because it
    /// does not take what waits for it already.
    pub fn push(&self, outgoing: &Outgoing) -> bool {
        let mut core = self.core.lock();
        let entry = outgoing.entry(core.session.binary, self.window, None);
        self.append(&mut core, entry)
    }

    /// The same, written at once: without a detour where nothing else waits. Call it without holding any lock.
    pub fn send(&self, outgoing: &Outgoing) -> bool {
        self.send_under(self.core.lock(), outgoing)
    }

    fn send_under(&self, mut core: MutexGuard<'_, Core>, outgoing: &Outgoing) -> bool {
        let entry = outgoing.entry(core.session.binary, self.window, None);
        let admitted = self.admit(&mut core, entry.frame.as_slice().len());
        let batch = if admitted { core.outbox.push_and_begin(entry) } else { core.outbox.begin(false) };
        drop(core);
        self.write_batches(batch);
        admitted
    }

    /// As [`Handle::send`]; with `reply_to` it answers the request with that id. Whether it was taken, and the deadline
    /// of the request that it answers, where that is open. `None`: the session is closing.
    pub fn answer(&self, outgoing: &Outgoing, reply_to: Option<&str>) -> Option<(bool, Option<Instant>)> {
        let mut core = self.core.lock();
        if core.closing.is_some() {
            return None;
        }
        let deadline = reply_to.and_then(|id| core.session.answer_request(id));
        Some((self.send_under(core, outgoing), deadline))
    }

    /// As [`Handle::push`], but where it finds no room what waits is written first: not slow is who takes what he is
    /// written. Call it without holding any lock.
    pub fn push_or_write(&self, outgoing: &Outgoing) -> bool {
        let mut core = self.core_with_room(|core| outgoing.frame(core.session.binary).len());
        let entry = outgoing.entry(core.session.binary, self.window, None);
        self.append(&mut core, entry)
    }

    /// The same of several that were put together in a form that it takes, each ending at one of `ends`. `None`: there is no
    /// room for all of them at once.
    pub fn push_together(&self, (frames, ends): &(Bytes, Arc<[u32]>), class: Class) -> Option<bool> {
        let mut core = self.core_with_room(|_| frames.len());
        let limit = self.bounds().0;
        if frames.len() > limit || !core.outbox.has_room_unstored(frames.len(), limit) {
            return None;
        }
        let open = core.closing.is_none();
        if open {
            core.outbox.push(Entry::together(frames.clone(), Arc::clone(ends), class));
        }
        Some(open)
    }

    /// The session's state, what waits written first where so much more that is not stored would find no room beside it.
    fn core_with_room(&self, bytes: impl Fn(&Core) -> usize) -> MutexGuard<'_, Core> {
        let mut core = self.core.lock();
        if !core.outbox.has_room_unstored(bytes(&core), self.bounds().0) {
            let batch = core.outbox.begin(false);
            drop(core);
            self.write_batches(batch);
            core = self.core.lock();
        }
        core
    }

    /// Appends an answer or another message that is not stored; flush it afterwards.
    pub fn reply(&self, frame: Bytes) {
        self.append(&mut self.core.lock(), Entry::message(frame));
    }

    /// Appends what is not stored, under the session's lock; flush it afterwards. False: it is closing, or was closed by
    /// this.
    pub(super) fn append(&self, core: &mut Core, entry: Entry) -> bool {
        let admitted = self.admit(core, entry.frame.as_slice().len());
        if admitted {
            core.outbox.push(entry);
        }
        admitted
    }

    fn admit(&self, core: &mut Core, bytes: usize) -> bool {
        if core.closing.is_some() {
            return false;
        }
        if !core.outbox.has_room_unstored(bytes, self.bounds().0) {
            let verdict = Verdict::slow_consumer(Limit::OutboxBytes);
            self.close_core(core, verdict.into_closing(self.shared.clock.now()));
            self.shared.metrics.hit(Limit::OutboxBytes);
            return false;
        }
        true
    }

    /// Writes what waits, if nobody else is at it and the kernel takes it. Call it without holding any lock.
    pub fn flush(&self) {
        self.write(false);
    }

    /// The kernel takes bytes again: writes what waits.
    pub fn resume(&self) {
        self.write(true);
    }

    fn write(&self, resumed: bool) {
        let batch = self.core.lock().outbox.begin(resumed);
        self.write_batches(batch);
    }

    /// Writes a batch, and what was appended meanwhile.
    fn write_batches(&self, mut next: Option<Batch>) {
        while let Some(mut batch) = next {
            batch.write(&*self.wire, || self.shared.clock.unix_millis());
            let mut core = self.core.lock();
            let outcome = core.outbox.finish(batch, || self.shared.clock.now());
            core.counts.messages_sent += outcome.messages;
            core.counts.bytes_sent += outcome.bytes;
            for sequence in &outcome.expired {
                core.session.delivery.expire(*sequence);
            }
            if let Some(sequence) = outcome.written {
                core.session.delivery.written(sequence, self.shared.clock.now());
            }
            let pulling = !core.session.delivery.is_live();
            let closing = core.closing.is_some();
            next = if outcome.error.is_none() { core.outbox.begin(false) } else { None };
            drop(core);
            self.shared.metrics.sent.add_all(&outcome.classes);
            if outcome.error.is_some() {
                self.broke();
                return;
            }
            // The task waits for the socket, pulls into the room there is now, or sees the close through.
            if outcome.blocked || pulling || closing {
                self.wake();
            }
        }
    }
}

impl Core {
    /// What its token says of it, as far as it is kept.
    pub fn claims(&self) -> Claims {
        self.aside.as_ref().map(|aside| aside.claims.clone()).unwrap_or_default()
    }

    /// Keeps what its token says of it.
    pub fn set_claims(&mut self, claims: &Claims) {
        if !claims.is_empty() || self.aside.is_some() {
            self.aside().claims = claims.clone();
        }
    }

    /// What not every session has; made where there is none yet.
    pub fn aside(&mut self) -> &mut Aside {
        self.aside.get_or_insert_default()
    }

    /// Appends the ping that will confirm what was just handed over, unless one is under way.
    fn ping_behind_data(&mut self, now: Instant) {
        if let Some(payload) = self.session.confirmation_ping(now) {
            self.push_ping(&payload);
        }
    }

    /// Appends a ping.
    pub fn push_ping(&mut self, payload: &PingPayload) {
        self.outbox.push(Entry::control(ControlFrame::ping(payload).as_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of each session there is one: with its two counters it fills a size class of the allocator.
    #[test]
    fn a_session_stays_small() {
        let bytes = size_of::<Handle>() + 2 * size_of::<usize>();
        assert!(bytes <= 512, "{bytes} bytes; put what few sessions need into a box");
    }
}
