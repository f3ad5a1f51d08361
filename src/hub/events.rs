//! The ring behind StreamEvents: every event in one total order, bounded, read by any number of consumers at their
//! own pace. A consumer that falls behind is told how many it lost; nobody waits for it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    clock::Clock,
    types::{Event, EventBody},
};

/// The most events a consumer takes at once.
const READ_MAX: usize = 256;

/// The node's events.
#[derive(Debug)]
pub struct Events {
    epoch: Uuid,
    capacity: usize,
    clock: Clock,
    ring: Mutex<Ring>,
    arrived: Notify,
    /// The sequence that each consumer reads next.
    places: Mutex<Vec<Weak<AtomicU64>>>,
}

#[derive(Debug, Default)]
struct Ring {
    /// The sequence of the next event. The first event of an epoch has 1.
    next: u64,
    events: VecDeque<Arc<Event>>,
}

/// A consumer's place in the ring.
#[derive(Debug)]
pub struct Reader {
    events: Arc<Events>,
    next: u64,
    /// `next`, for who asks how far it is behind.
    place: Arc<AtomicU64>,
}

/// What a consumer reads.
#[derive(Debug)]
pub enum Read {
    /// The next events, in order.
    Events(Vec<Arc<Event>>),
    /// It fell behind: so many are gone, the last of them with that sequence.
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
        let ring = Ring { next: 1, events: VecDeque::new() };
        let (ring, arrived, places) = (Mutex::new(ring), Notify::new(), Mutex::default());
        Arc::new(Self { epoch: Uuid::now_v7(), capacity, clock, ring, arrived, places })
    }

    /// New at every start of the daemon.
    pub fn epoch(&self) -> Uuid {
        self.epoch
    }

    /// How many events there have been.
    pub fn count(&self) -> u64 {
        self.ring.lock().next - 1
    }

    /// How many are kept.
    pub fn capacity(&self) -> u64 {
        self.capacity as u64
    }

    /// The events by which the slowest consumer is behind. Beyond the capacity it has lost some, told or not.
    pub fn lag(&self) -> u64 {
        let next = self.ring.lock().next;
        let mut places = self.places.lock();
        places.retain(|place| place.strong_count() > 0);
        let slowest = places.iter().filter_map(Weak::upgrade).map(|place| place.load(Ordering::Relaxed)).min();
        slowest.map_or(0, |slowest| next.saturating_sub(slowest))
    }

    /// Records what happened. Callers that need an order between two events hold the lock that orders them.
    pub fn emit(&self, body: EventBody) {
        let time = self.clock.unix_millis();
        let mut ring = self.ring.lock();
        let event = Arc::new(Event { sequence: ring.next, time, body });
        ring.next += 1;
        if ring.events.len() == self.capacity {
            ring.events.pop_front();
        }
        ring.events.push_back(event);
        drop(ring);
        self.arrived.notify_waiters();
    }

    /// A consumer that starts with what comes next.
    pub fn reader(self: &Arc<Self>) -> Reader {
        let next = self.ring.lock().next;
        let place = Arc::new(AtomicU64::new(next));
        let mut places = self.places.lock();
        places.retain(|place| place.strong_count() > 0);
        places.push(Arc::downgrade(&place));
        Reader { events: Arc::clone(self), next, place }
    }
}

impl Reader {
    /// What is there for this consumer; waits where there is nothing.
    pub async fn read(&mut self) -> Read {
        loop {
            let events = Arc::clone(&self.events);
            let arrived = events.arrived.notified();
            if let Some(read) = self.try_read() {
                return read;
            }
            arrived.await;
        }
    }

    /// What is there for this consumer, without waiting.
    pub fn try_read(&mut self) -> Option<Read> {
        let ring = self.events.ring.lock();
        let oldest = ring.next - ring.events.len() as u64;
        if self.next < oldest {
            let count = oldest - self.next;
            self.next = oldest;
            self.place.store(self.next, Ordering::Relaxed);
            return Some(Read::Lost { count, last: oldest - 1 });
        }
        let skip = usize::try_from(self.next - oldest).unwrap_or(usize::MAX);
        let events: Vec<_> = ring.events.iter().skip(skip).take(READ_MAX).cloned().collect();
        self.next += events.len() as u64;
        self.place.store(self.next, Ordering::Relaxed);
        (!events.is_empty()).then_some(Read::Events(events))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::UserId;

    fn online(events: &Events, name: &str) {
        events.emit(EventBody::UserOnline { user: UserId::parse(name).unwrap() });
    }

    #[tokio::test]
    async fn a_consumer_gets_what_comes_after_it_in_order() {
        let events = Events::new(16, Clock::system());
        online(&events, "before");
        let mut reader = events.reader();
        assert!(reader.try_read().is_none());
        online(&events, "a");
        online(&events, "b");
        let Read::Events(read) = reader.read().await else { panic!() };
        assert_eq!(read.iter().map(|e| e.sequence).collect::<Vec<_>>(), [2, 3]);
    }

    #[tokio::test]
    async fn a_waiting_consumer_is_woken() {
        let events = Events::new(16, Clock::system());
        let mut reader = events.reader();
        let waiting = tokio::spawn(async move { reader.read().await });
        tokio::task::yield_now().await;
        online(&events, "a");
        assert!(matches!(waiting.await.unwrap(), Read::Events(read) if read.len() == 1));
    }

    #[tokio::test]
    async fn a_consumer_that_falls_behind_is_told_how_many_it_lost() {
        let events = Events::new(4, Clock::system());
        let mut reader = events.reader();
        for _ in 0..10 {
            online(&events, "a");
        }
        let Read::Lost { count, last } = reader.read().await else { panic!() };
        assert_eq!((count, last), (6, 6));
        let Read::Events(read) = reader.read().await else { panic!() };
        assert_eq!(read.iter().map(|e| e.sequence).collect::<Vec<_>>(), [7, 8, 9, 10]);
    }

    #[tokio::test]
    async fn the_lag_is_that_of_the_slowest_who_still_reads() {
        let events = Events::new(4, Clock::system());
        online(&events, "before");
        assert_eq!(events.lag(), 0, "nobody reads");
        let (mut slow, mut fast) = (events.reader(), events.reader());
        (0..3).for_each(|_| online(&events, "a"));
        fast.try_read();
        assert_eq!(events.lag(), 3);
        (0..7).for_each(|_| online(&events, "a"));
        assert_eq!(events.lag(), 10, "more than there is: some are lost");
        assert!(matches!(slow.try_read(), Some(Read::Lost { count: 6, .. })));
        assert_eq!(events.lag(), 7, "now of the other one");
        fast.try_read();
        slow.try_read();
        assert_eq!(events.lag(), 4);
        drop(fast);
        assert_eq!(events.lag(), 0);
    }
}
