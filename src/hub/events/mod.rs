//! The events behind StreamEvents: every one in one total order, kept in a bounded ring (`ring.rs`), read by any number
//! of consumers at their own pace. A consumer that falls behind is told how many it lost; nobody waits for it.
//!
//! Clients' messages for services are events, too. Of a group of consumers one gets each of them, by a queue of its own
//! (`audience.rs`); what nobody listens for never becomes an event.

mod audience;
mod ring;
#[cfg(test)]
mod tests;

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    task::Poll,
};

pub use audience::{Interest, Open};
use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

use self::{audience::Seat, ring::Ring};
use crate::{
    clock::Clock,
    types::{Event, EventBody, Forwarded},
};

/// A part of the ring.
const FAR_BEHIND: u64 = 4;
/// Looks at the ring of one consumer, 256 events each, before others have their turn.
const LOOKS_MAX: usize = 16;

/// The node's events.
#[derive(Debug)]
pub struct Events {
    epoch: Uuid,
    capacity: usize,
    clock: Clock,
    ring: Mutex<Ring>,
    /// Who listens, so that he is woken without the ring's lock.
    seats: RwLock<Vec<Arc<Seat>>>,
}

/// A consumer: what it wants, and its place in the ring. While there is one, messages that it wants are events.
#[derive(Debug)]
pub struct Reader {
    events: Arc<Events>,
    seat: Arc<Seat>,
    next: u64,
}

/// Where a consumer starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With what comes next.
    Now,
    /// Behind the event with this sequence, as far as what follows is still there.
    After(u64),
}

/// What a consumer reads.
#[derive(Debug)]
pub enum Read {
    /// The next events that it wants, in order; none, where those looked at were for others.
    Events(Vec<Arc<Event>>),
    /// So many are gone, the last of them with that sequence.
    Lost {
        /// How many.
        count: u64,
        /// The sequence of the last one lost.
        last: u64,
    },
}

impl Events {
    /// An empty ring of a new epoch.
    pub fn new(capacity: usize, clock: Clock) -> Arc<Self> {
        let ring = Mutex::new(Ring::new(capacity));
        Arc::new(Self { epoch: Uuid::now_v7(), capacity, clock, ring, seats: RwLock::default() })
    }

    /// New at every start of the daemon.
    pub fn epoch(&self) -> Uuid {
        self.epoch
    }

    /// How many events there have been: the sequence of the last one.
    pub fn count(&self) -> u64 {
        self.ring.lock().next() - 1
    }

    /// How many are kept.
    pub fn capacity(&self) -> u64 {
        self.capacity as u64
    }

    /// The events by which the slowest consumer is behind. Beyond the capacity it has lost some, told or not.
    pub fn lag(&self) -> u64 {
        let next = self.ring.lock().next();
        let seats = self.seats.read();
        let slowest = seats.iter().map(|seat| seat.place.load(Ordering::Relaxed)).min();
        slowest.map_or(0, |slowest| next.saturating_sub(slowest))
    }

    /// So far behind, a consumer looks on even where nothing was for it, lest it be taken for one that lost something.
    fn is_far_behind(&self, seat: &Seat, sequence: u64) -> bool {
        sequence.saturating_sub(seat.place.load(Ordering::Relaxed)) > self.capacity() / FAR_BEHIND
    }

    /// Records what happened. Callers that need an order between two events hold the lock that orders them.
    pub fn emit(&self, body: EventBody) {
        // Made before the lock, and what falls out is let go of behind it: emitters wait for each other there.
        let event = self.event(body);
        let (event, fell_out) = self.ring.lock().push(event);
        drop(fell_out);
        for seat in self.seats.read().iter() {
            if seat.interest.wants(&event.body) || self.is_far_behind(seat, event.sequence) {
                seat.task.wake();
            }
        }
    }

    /// Makes an event of a client's message: for every consumer of no group that wants it, and for one of each group.
    /// Who holds what this returns has those of groups count the request as one that they have yet to answer. `None`:
    /// nobody takes it who serves. Where nobody else wants it either, there is no event.
    pub fn offer(&self, message: Forwarded) -> Option<Open> {
        let event = self.event(EventBody::MessageReceived(Box::new(message)));
        let (offered, next) = {
            let mut ring = self.ring.lock();
            (ring.offer(event), ring.next())
        };
        let (takers, open, fell_out, served) = offered?;
        drop(fell_out);
        for seat in takers {
            seat.task.wake();
        }
        for seat in self.seats.read().iter().filter(|seat| self.is_far_behind(seat, next)) {
            seat.task.wake();
        }
        served.then_some(open)
    }

    /// Whether anybody listens for such a message.
    pub fn is_wanted(&self, wanted: impl Fn(&Interest) -> bool) -> bool {
        self.seats.read().iter().any(|seat| wanted(&seat.interest))
    }

    fn event(&self, body: EventBody) -> Arc<Event> {
        Arc::new(Event { sequence: 0, time: self.clock.unix_millis(), body })
    }

    /// A new consumer.
    pub fn consume(self: &Arc<Self>, interest: Interest, start: Start) -> Reader {
        let (seat, next) = self.ring.lock().join(interest);
        self.seats.write().push(Arc::clone(&seat));
        let next = match start {
            Start::Now => next,
            Start::After(sequence) => sequence.saturating_add(1).min(next),
        };
        seat.place.store(next, Ordering::Relaxed);
        Reader { events: Arc::clone(self), seat, next }
    }
}

impl Reader {
    /// What is there for this consumer; waits where there is nothing.
    pub async fn read(&mut self) -> Read {
        poll_fn(|cx| {
            let mut looks = 0;
            if let Some(read) = self.wanted(&mut looks) {
                return Poll::Ready(read);
            }
            self.seat.task.register(cx.waker());
            // What came between the look and the registration.
            if let Some(read) = self.wanted(&mut looks) {
                return Poll::Ready(read);
            }
            if looks == LOOKS_MAX {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await
    }

    /// Looks on until there is something for this consumer, nothing more, or it is others' turn.
    fn wanted(&mut self, looks: &mut usize) -> Option<Read> {
        while *looks < LOOKS_MAX {
            *looks += 1;
            match self.try_read()? {
                Read::Events(events) if events.is_empty() => {}
                read => return Some(read),
            }
        }
        None
    }

    /// What is there for this consumer, without waiting. `None`: nothing at all.
    pub fn try_read(&mut self) -> Option<Read> {
        let read = self.events.ring.lock().read(&self.seat, &mut self.next);
        self.seat.place.store(self.next, Ordering::Relaxed);
        read
    }

    /// The sequence of the last event before this consumer's place.
    pub fn place(&self) -> u64 {
        self.next - 1
    }

    /// Moves past what is gone at this consumer's place: how many, and the sequence of the last of them.
    pub fn skip_lost(&mut self) -> (u64, u64) {
        let oldest = self.events.ring.lock().oldest();
        let count = oldest.saturating_sub(self.next);
        self.next += count;
        self.seat.place.store(self.next, Ordering::Relaxed);
        (count, self.next - 1)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.events.seats.write().retain(|seat| seat.id != self.seat.id);
        let takers = self.events.ring.lock().leave(&self.seat);
        for seat in takers {
            seat.task.wake();
        }
    }
}
