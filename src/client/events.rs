//! What can be observed: states and events, each reader with a bounded queue of its own.
//!
//! A reader that does not keep up loses the oldest and is told how many ([`Event::Missed`]); nobody waits for him. One
//! exception: a client without a handler hands messages out only while some reader has room, so that one who is the only
//! reader misses none.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::Stream;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    error::{Disconnect, Error, GiveUp},
    message::{Message, Session},
};

/// What a client is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Asks for a token, connects and authenticates.
    Connecting,
    /// There is an authenticated session.
    Connected,
    /// Waits before the next attempt.
    Waiting,
    /// [`Client::close`](super::Client::close) was called: what is under way is finished.
    Closing,
    /// Closed by [`Client::close`](super::Client::close), or its last handle was dropped. The end.
    Closed,
    /// The client came to its end by itself; see [`GiveUp`]. The end.
    GaveUp,
}

impl State {
    /// Whether it is an end.
    pub fn is_end(self) -> bool {
        matches!(self, State::Closed | State::GaveUp)
    }
}

/// What happens to a client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The state changed.
    State(State),
    /// A session began.
    Connected(Arc<Session>),
    /// A session ended.
    Disconnected(Disconnect),
    /// The next attempt to connect is so far away.
    Waiting {
        /// Which attempt in a row it is, from 1.
        attempt: u32,
        /// The wait.
        delay: Duration,
    },
    /// A message came. With a handler it is shown here as well, when its turn has come; without one, this is where it is
    /// handled: call [`Message::ack`].
    Message(Message),
    /// The gateway confirmed a subscription: `topic NAME` or `room NAME`.
    Subscribed(String),
    /// Something went wrong in the background.
    Error(Error),
    /// The client gave up; nothing follows but its last state.
    GaveUp(GiveUp),
    /// This reader was too slow, and so many events were left out here.
    Missed(u64),
}

impl Event {
    fn weight(&self) -> usize {
        const REST: usize = 64;
        REST + if let Event::Message(message) = self { message.weight() } else { 0 }
    }
}

/// Something that readers are shown.
pub trait Shown: Clone {
    /// What it weighs in a queue.
    fn weight(&self) -> usize;
    /// What stands for so many that were left out, where that is told.
    fn missed(count: u64) -> Option<Self>;
}

impl Shown for Event {
    fn weight(&self) -> usize {
        Event::weight(self)
    }

    fn missed(count: u64) -> Option<Self> {
        Some(Event::Missed(count))
    }
}

impl Shown for State {
    fn weight(&self) -> usize {
        1
    }

    fn missed(_: u64) -> Option<Self> {
        None
    }
}

#[derive(Debug)]
struct Queue<T> {
    items: VecDeque<T>,
    bytes: usize,
    missed: u64,
    ended: bool,
    waker: Option<Waker>,
}

/// Hands the same to every reader.
#[derive(Debug)]
pub struct Feed<T> {
    readers: Mutex<Vec<Weak<Mutex<Queue<T>>>>>,
    /// A reader came, or took something.
    room: Arc<Notify>,
    items_max: usize,
    bytes_max: usize,
}

impl<T: Shown> Feed<T> {
    /// With queues of so many; one that is empty takes anything.
    pub fn new(items_max: usize, bytes_max: usize) -> Self {
        Self { readers: Mutex::default(), room: Arc::default(), items_max: items_max.max(1), bytes_max }
    }

    /// A reader of what comes from now on, behind `first`.
    pub fn reader(&self, first: Option<T>, ended: bool) -> Reader<T> {
        let queue = Queue { items: first.into_iter().collect(), bytes: 0, missed: 0, ended, waker: None };
        let queue = Arc::new(Mutex::new(queue));
        let mut readers = self.readers.lock();
        readers.retain(|reader| reader.strong_count() > 0);
        readers.push(Arc::downgrade(&queue));
        drop(readers);
        self.room.notify_waiters();
        Reader { queue, room: Arc::clone(&self.room) }
    }

    /// Shows it to every reader.
    pub fn show(&self, item: &T) {
        let mut wakers = Vec::new();
        self.readers.lock().retain(|reader| {
            let Some(queue) = reader.upgrade() else { return false };
            let mut queue = queue.lock();
            queue.bytes += item.weight();
            queue.items.push_back(item.clone());
            while queue.items.len() > 1 && (queue.items.len() > self.items_max || queue.bytes > self.bytes_max) {
                if let Some(oldest) = queue.items.pop_front() {
                    queue.bytes = queue.bytes.saturating_sub(oldest.weight());
                    queue.missed += 1;
                }
            }
            wakers.extend(queue.waker.take());
            true
        });
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Resolves once some reader has room.
    pub async fn some_room(&self) {
        loop {
            let changed = self.room.notified();
            let mut changed = std::pin::pin!(changed);
            // Registered before the look, so that nothing is missed in between.
            changed.as_mut().enable();
            if self.has_room() {
                return;
            }
            changed.await;
        }
    }

    fn has_room(&self) -> bool {
        self.readers.lock().iter().filter_map(Weak::upgrade).any(|queue| {
            let queue = queue.lock();
            queue.items.len() < self.items_max && (queue.items.is_empty() || queue.bytes < self.bytes_max)
        })
    }

    /// Nothing more comes: readers end once they have read what is there.
    pub fn end(&self) {
        let mut wakers = Vec::new();
        for queue in self.readers.lock().drain(..).filter_map(|reader| reader.upgrade()) {
            let mut queue = queue.lock();
            queue.ended = true;
            wakers.extend(queue.waker.take());
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// One reader's end of a feed.
#[derive(Debug)]
pub struct Reader<T> {
    queue: Arc<Mutex<Queue<T>>>,
    room: Arc<Notify>,
}

impl<T: Shown> Reader<T> {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut queue = self.queue.lock();
        if queue.missed > 0 {
            let missed = std::mem::take(&mut queue.missed);
            if let Some(told) = T::missed(missed) {
                return Poll::Ready(Some(told));
            }
        }
        match queue.items.pop_front() {
            Some(item) => {
                queue.bytes = queue.bytes.saturating_sub(item.weight());
                drop(queue);
                self.room.notify_waiters();
                Poll::Ready(Some(item))
            }
            None if queue.ended => Poll::Ready(None),
            None => {
                queue.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Every event from the moment of [`Client::events`](super::Client::events) on; ends behind the client's last state.
#[derive(Debug)]
pub struct Events(pub(super) Reader<Event>);

impl Events {
    /// The next event; `None` at the end. Can be dropped and asked again without losing one.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| self.0.poll(cx)).await
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.0.poll(cx)
    }
}

/// The present state and every change of it; ends behind [`State::Closed`] or [`State::GaveUp`]. A reader that lags by
/// more than 64 changes loses the oldest.
#[derive(Debug)]
pub struct States(pub(super) Reader<State>);

impl States {
    /// The next state; `None` at the end. Can be dropped and asked again without losing one.
    pub async fn next(&mut self) -> Option<State> {
        std::future::poll_fn(|cx| self.0.poll(cx)).await
    }

    /// Waits for that state; whether it came, and not the end.
    pub async fn wait_for(&mut self, state: State) -> bool {
        while let Some(now) = self.next().await {
            if now == state {
                return true;
            }
        }
        false
    }
}

impl Stream for States {
    type Item = State;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<State>> {
        self.0.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_reader_hears_how_many_it_missed_and_others_miss_none() {
        let feed = Feed::<Event>::new(3, usize::MAX);
        let (mut slow, mut quick) = (Events(feed.reader(None, false)), Events(feed.reader(None, false)));
        for n in 0..5 {
            feed.show(&Event::Missed(n));
            assert!(matches!(quick.next().await, Some(Event::Missed(m)) if m == n));
        }
        feed.end();
        let mut heard = Vec::new();
        while let Some(Event::Missed(n)) = slow.next().await {
            heard.push(n);
        }
        assert_eq!(heard, [2, 2, 3, 4], "two were left out, then the rest");
        assert!(quick.next().await.is_none());
    }

    #[tokio::test]
    async fn bytes_bound_a_queue_and_an_empty_one_takes_anything() {
        let feed = Feed::<Event>::new(100, 1000);
        let mut events = Events(feed.reader(None, false));
        let message = |n: usize| {
            let text = format!(r#"{{"type":"a","data":"{}"}}"#, "x".repeat(n));
            Event::Message(Message::from_text(text.into()).unwrap())
        };
        feed.show(&message(5000));
        assert!(matches!(events.next().await, Some(Event::Message(_))));
        (0..3).for_each(|_| feed.show(&message(400)));
        assert!(matches!(events.next().await, Some(Event::Missed(1))));
    }

    #[tokio::test]
    async fn readers_begin_with_the_state_and_are_woken() {
        let feed = Feed::<State>::new(64, usize::MAX);
        let mut states = States(feed.reader(Some(State::Connecting), false));
        assert_eq!(states.next().await, Some(State::Connecting));
        let reading = tokio::spawn(async move { states.wait_for(State::GaveUp).await });
        tokio::task::yield_now().await;
        feed.show(&State::Waiting);
        feed.show(&State::GaveUp);
        assert!(reading.await.unwrap());
        assert_eq!(States(feed.reader(Some(State::Closed), true)).next().await, Some(State::Closed));
    }

    #[tokio::test]
    async fn room_is_waited_for() {
        let feed = Arc::new(Feed::<Event>::new(1, usize::MAX));
        let waiting = tokio::spawn({
            let feed = Arc::clone(&feed);
            async move { feed.some_room().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "nobody reads");
        let mut events = Events(feed.reader(Some(Event::Missed(1)), false));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "the queue is full");
        events.next().await;
        waiting.await.unwrap();
    }
}
