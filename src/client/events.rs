//! What can be observed: states and events, each reader with a bounded queue of its own.
//!
//! A reader that does not keep up loses the oldest and is told how many ([`Event::Missed`]); nobody waits for him. One
//! exception: a client without a handler hands a message out only where some reader has room for it, and what was put
//! into a queue stays there, so that one who is the only reader misses none. Other events are counted apart from messages
//! then, and make room for each other alone.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use futures_util::Stream;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    error::{Disconnect, Error, GiveUp},
    message::{Message, Session},
    shared::Shared,
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
    /// [`Client::close`](super::Client::close) was called, or the client gives up and its handler is not done: what is under
    /// way is finished.
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
    /// This reader was too slow, and so many events were left out since the last one that was read.
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
    /// Whether it is for somebody to handle, so that a feed may have to keep it.
    fn is_message(&self) -> bool {
        false
    }
}

impl Shown for Event {
    fn weight(&self) -> usize {
        Event::weight(self)
    }

    fn missed(count: u64) -> Option<Self> {
        Some(Event::Missed(count))
    }

    fn is_message(&self) -> bool {
        matches!(self, Event::Message(_))
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

/// How much of a kind a queue holds.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    items: usize,
    bytes: usize,
}

impl Load {
    fn add(&mut self, weight: usize) {
        self.items += 1;
        self.bytes += weight;
    }

    fn take(&mut self, weight: usize) {
        self.items = self.items.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(weight);
    }
}

#[derive(Debug)]
struct Queue<T> {
    items: VecDeque<T>,
    /// What may be left out, and what is kept.
    loads: [Load; 2],
    missed: u64,
    ended: bool,
    waker: Option<Waker>,
}

impl<T: Shown> Queue<T> {
    fn push(&mut self, item: T, kept: bool) {
        self.loads[usize::from(kept)].add(item.weight());
        self.items.push_back(item);
    }
}

#[derive(Debug)]
struct Readers<T> {
    queues: Vec<Weak<Mutex<Queue<T>>>>,
    ended: bool,
}

/// Hands the same to every reader.
#[derive(Debug)]
pub struct Feed<T> {
    readers: Mutex<Readers<T>>,
    /// A reader came, or took something.
    room: Arc<Notify>,
    items_max: usize,
    bytes_max: usize,
    /// Whether messages that are in a queue stay there.
    keeps: bool,
}

impl<T: Shown> Feed<T> {
    /// With queues of so many; one that is empty takes anything. Where it `keeps` them, a message is put into a queue with
    /// [`Feed::hand_out`].
    pub fn new(items_max: usize, bytes_max: usize, keeps: bool) -> Self {
        let readers = Mutex::new(Readers { queues: Vec::new(), ended: false });
        Self { readers, room: Arc::default(), items_max: items_max.max(1), bytes_max, keeps }
    }

    /// A reader of what comes from now on, behind `first`.
    pub fn reader(&self, first: Option<T>) -> Reader<T> {
        let mut queue =
            Queue { items: VecDeque::new(), loads: [Load::default(); 2], missed: 0, ended: false, waker: None };
        if let Some(first) = first {
            queue.push(first, false);
        }
        let mut readers = self.readers.lock();
        // Under the lock that the end takes, so that a reader who comes just then ends as well.
        queue.ended = readers.ended;
        let queue = Arc::new(Mutex::new(queue));
        readers.queues.retain(|reader| reader.strong_count() > 0);
        if !readers.ended {
            readers.queues.push(Arc::downgrade(&queue));
        }
        drop(readers);
        self.room.notify_waiters();
        Reader { queue, room: Arc::clone(&self.room), keeps: self.keeps }
    }

    /// Shows it to every reader.
    pub fn show(&self, item: &T) {
        let mut wakers = Vec::new();
        self.readers.lock().queues.retain(|reader| {
            let Some(queue) = reader.upgrade() else { return false };
            let mut queue = queue.lock();
            queue.push(item.clone(), false);
            while queue.loads[0].items > 1
                && (queue.loads[0].items > self.items_max || queue.loads[0].bytes > self.bytes_max)
                && let Some(at) = queue.items.iter().position(|item| !self.is_kept(item))
                && let Some(oldest) = queue.items.remove(at)
            {
                queue.loads[0].take(oldest.weight());
                queue.missed += 1;
            }
            wakers.extend(queue.waker.take());
            true
        });
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Shows what is to be kept to every reader that has room for it; the others miss it. Whether there was one.
    pub fn hand_out(&self, item: &T) -> bool {
        let mut wakers = Vec::new();
        let (mut took, mut full) = (false, Vec::new());
        self.readers.lock().queues.retain(|reader| {
            let Some(queue) = reader.upgrade() else { return false };
            let mut locked = queue.lock();
            if self.fits(&locked, item) {
                locked.push(item.clone(), true);
                wakers.extend(locked.waker.take());
                took = true;
            } else {
                drop(locked);
                full.push(queue);
            }
            true
        });
        if took {
            full.iter().for_each(|queue| queue.lock().missed += 1);
        }
        wakers.into_iter().for_each(Waker::wake);
        took
    }

    fn is_kept(&self, item: &T) -> bool {
        self.keeps && item.is_message()
    }

    fn fits(&self, queue: &Queue<T>, item: &T) -> bool {
        let [_, kept] = queue.loads;
        kept.items == 0 || (kept.items < self.items_max && kept.bytes.saturating_add(item.weight()) <= self.bytes_max)
    }

    /// Resolves once some reader has room for it.
    pub async fn some_room(&self, item: &T) {
        loop {
            let changed = self.room.notified();
            let mut changed = std::pin::pin!(changed);
            // Registered before the look, so that nothing is missed in between.
            changed.as_mut().enable();
            if self.has_room(item) {
                return;
            }
            changed.await;
        }
    }

    fn has_room(&self, item: &T) -> bool {
        self.readers.lock().queues.iter().filter_map(Weak::upgrade).any(|queue| self.fits(&queue.lock(), item))
    }

    /// Nothing more comes: readers end once they have read what is there.
    pub fn end(&self) {
        let mut wakers = Vec::new();
        let mut readers = self.readers.lock();
        readers.ended = true;
        for queue in readers.queues.drain(..).filter_map(|reader| reader.upgrade()) {
            let mut queue = queue.lock();
            queue.ended = true;
            wakers.extend(queue.waker.take());
        }
        drop(readers);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// One reader's end of a feed.
#[derive(Debug)]
pub struct Reader<T> {
    queue: Arc<Mutex<Queue<T>>>,
    room: Arc<Notify>,
    keeps: bool,
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
                let kept = self.keeps && item.is_message();
                queue.loads[usize::from(kept)].take(item.weight());
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
pub struct Events {
    reader: Reader<Event>,
    /// Knows what was handled.
    client: Weak<Shared>,
}

impl Events {
    pub(super) fn new(reader: Reader<Event>, client: Weak<Shared>) -> Self {
        Self { reader, client }
    }

    /// The next event; `None` at the end. Can be dropped and asked again without losing one.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    /// Passes over what came again and was handled since it was put into the queue.
    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        loop {
            match ready!(self.reader.poll(cx)) {
                Some(Event::Message(message)) if self.reader.keeps && self.is_outdated(&message) => {}
                event => return Poll::Ready(event),
            }
        }
    }

    fn is_outdated(&self, message: &Message) -> bool {
        self.client.upgrade().is_some_and(|client| client.core.lock().ledger.is_handled_elsewhere(message))
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.poll(cx)
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

    fn events(feed: &Feed<Event>) -> Events {
        Events::new(feed.reader(None), Weak::new())
    }

    fn message(n: usize) -> Event {
        let text = format!(r#"{{"type":"a","data":"{}"}}"#, "x".repeat(n));
        Event::Message(Message::from_text(text.into()).unwrap())
    }

    #[tokio::test]
    async fn a_slow_reader_hears_how_many_it_missed_and_others_miss_none() {
        let feed = Feed::<Event>::new(3, usize::MAX, false);
        let (mut slow, mut quick) = (events(&feed), events(&feed));
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
        let feed = Feed::<Event>::new(100, 1000, false);
        let mut events = events(&feed);
        feed.show(&message(5000));
        assert!(matches!(events.next().await, Some(Event::Message(_))));
        (0..3).for_each(|_| feed.show(&message(400)));
        assert!(matches!(events.next().await, Some(Event::Missed(1))));
    }

    #[tokio::test]
    async fn readers_begin_with_the_state_and_are_woken() {
        let feed = Feed::<State>::new(64, usize::MAX, false);
        let mut states = States(feed.reader(Some(State::Connecting)));
        assert_eq!(states.next().await, Some(State::Connecting));
        let reading = tokio::spawn(async move { states.wait_for(State::GaveUp).await });
        tokio::task::yield_now().await;
        feed.show(&State::Waiting);
        feed.show(&State::GaveUp);
        assert!(reading.await.unwrap());
        feed.end();
        let mut late = States(feed.reader(Some(State::Closed)));
        assert_eq!((late.next().await, late.next().await), (Some(State::Closed), None));
    }

    #[tokio::test]
    async fn room_is_waited_for() {
        let feed = Arc::new(Feed::<Event>::new(1, usize::MAX, true));
        let waiting = tokio::spawn({
            let feed = Arc::clone(&feed);
            async move { feed.some_room(&message(1)).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "nobody reads");
        assert!(!feed.hand_out(&message(1)));
        // The one that waits is not polled before both are there.
        let mut events = events(&feed);
        assert!(feed.hand_out(&message(1)));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "the queue is full");
        events.next().await;
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn messages_that_are_kept_make_room_for_nothing_and_the_latest_event_stays() {
        let feed = Feed::<Event>::new(3, 1000, true);
        let mut events = events(&feed);
        assert!(feed.hand_out(&message(400)) && feed.hand_out(&message(300)));
        assert!(!feed.hand_out(&message(400)), "there is no room for this one");
        (1..=5).for_each(|n| feed.show(&Event::Missed(n)));
        feed.end();
        let mut heard = Vec::new();
        while let Some(event) = events.next().await {
            heard.push(if let Event::Missed(n) = event { n } else { 0 });
        }
        assert_eq!(heard, [2, 0, 0, 3, 4, 5], "two were left out; then two messages, and the latest three");
    }
}
