//! What may be under way on one stream, and the answers on their way to the caller.
//!
//! The driver keeps its own count of the room that is left, and its own list of new answers; both meet the caller's side
//! in one short lock, for many answers at a time. Whoever takes answers gives their room back.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use futures_util::Stream;
use parking_lot::Mutex;
use tonic::Status;

use crate::{api::proto::SendBatchResponse, limits};

/// Taken answers whose room is given back at once, at most.
const GIVE_BACK: usize = 64;

/// An answer, or how the stream ends.
type Item = Result<SendBatchResponse, Status>;

/// A number of requests and their bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    requests: usize,
    bytes: usize,
}

impl Room {
    fn add(&mut self, more: Room) {
        self.requests += more.requests;
        self.bytes += more.bytes;
    }
}

/// An item with the room of its request.
struct Out {
    item: Item,
    room: Room,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// The caller's side is gone.
    gone: AtomicBool,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Out>,
    /// What was taken, and the driver does not know of yet.
    freed: Room,
    /// Nothing else comes.
    ended: bool,
    /// The caller's side, where it waits for answers.
    taker: Option<Waker>,
    /// The driver, and whether it waits for room.
    driver: Option<Waker>,
    wants_room: bool,
}

/// The driver's side. Its end is the stream's.
pub(super) struct Answering {
    shared: Arc<Shared>,
    left: Room,
    ready: VecDeque<Out>,
}

/// The caller's side.
pub(super) struct Answers {
    shared: Arc<Shared>,
    taken: VecDeque<Out>,
    freed: Room,
}

/// Both sides of one stream.
pub(super) fn answers() -> (Answering, Answers) {
    let shared = Arc::new(Shared::default());
    let left = Room { requests: limits::BATCH_IN_FLIGHT_MAX, bytes: limits::BATCH_IN_FLIGHT_BYTES_MAX };
    let answering = Answering { shared: Arc::clone(&shared), left, ready: VecDeque::new() };
    (answering, Answers { shared, taken: VecDeque::new(), freed: Room::default() })
}

/// What a request takes up of the room for bytes: one that is larger than all of it takes all.
pub(super) fn share(bytes: usize) -> usize {
    bytes.min(limits::BATCH_IN_FLIGHT_BYTES_MAX)
}

impl Answering {
    /// Whether a request may be read.
    pub(super) fn has_place(&self) -> bool {
        self.left.requests > 0
    }

    /// Takes the room for a request, a `share` of it in bytes, if there is as much.
    pub(super) fn enter(&mut self, share: usize) -> bool {
        if self.left.requests == 0 || self.left.bytes < share {
            return false;
        }
        self.left.requests -= 1;
        self.left.bytes -= share;
        true
    }

    /// Answers a request that took this `share`. The caller gets it with the next [`Answering::hand_over`].
    pub(super) fn answer(&mut self, answer: SendBatchResponse, share: usize) {
        self.ready.push_back(Out { item: Ok(answer), room: Room { requests: 1, bytes: share } });
    }

    /// Ends the stream with a status.
    pub(super) fn fail(mut self, status: Status) {
        self.ready.push_back(Out { item: Err(status), room: Room::default() });
    }

    /// Whether the caller went away.
    pub(super) fn is_gone(&self) -> bool {
        self.shared.gone.load(Ordering::Acquire)
    }

    /// Hands over what was answered, and takes back what room there is. `wait`: whom to wake when the caller goes away, or,
    /// where `for_room`, when there is room. True: there was some, so that what waits for it is to be tried again.
    pub(super) fn hand_over(&mut self, wait: Option<&Waker>, for_room: bool) -> bool {
        let mut state = self.shared.state.lock();
        if state.ready.is_empty() {
            // In one go, and the memory comes back empty.
            std::mem::swap(&mut state.ready, &mut self.ready);
        } else {
            state.ready.append(&mut self.ready);
        }
        let freed = std::mem::take(&mut state.freed);
        state.wants_room = for_room && freed.requests == 0;
        match (wait, &mut state.driver) {
            (Some(waker), Some(there)) => there.clone_from(waker),
            (Some(waker), there) => *there = Some(waker.clone()),
            (None, _) => {}
        }
        let taker = if state.ready.is_empty() { None } else { state.taker.take() };
        drop(state);
        self.left.add(freed);
        if let Some(taker) = taker {
            taker.wake();
        }
        freed.requests > 0
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.ready.append(&mut self.ready);
        state.ended = true;
        let taker = state.taker.take();
        drop(state);
        if let Some(taker) = taker {
            taker.wake();
        }
    }
}

impl Answers {
    /// Gives room back and takes what there is.
    fn meet(&mut self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.shared.state.lock();
        state.freed.add(std::mem::take(&mut self.freed));
        let wants_room = state.freed.requests > 0 && std::mem::take(&mut state.wants_room);
        let driver = if wants_room { state.driver.take() } else { None };
        let mut met = Poll::Ready(());
        if self.taken.is_empty() {
            std::mem::swap(&mut state.ready, &mut self.taken);
            if self.taken.is_empty() && !state.ended {
                state.taker = Some(cx.waker().clone());
                met = Poll::Pending;
            }
        }
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
        met
    }
}

impl Stream for Answers {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        if (self.taken.is_empty() || self.freed.requests >= GIVE_BACK) && self.meet(cx).is_pending() {
            return Poll::Pending;
        }
        let Some(Out { item, room }) = self.taken.pop_front() else { return Poll::Ready(None) };
        self.freed.add(room);
        Poll::Ready(Some(item))
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.shared.gone.store(true, Ordering::Release);
        let driver = self.shared.state.lock().driver.take();
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, task::noop_waker_ref};

    use super::*;

    fn answer(id: usize) -> SendBatchResponse {
        SendBatchResponse { request_id: id.to_string(), result: None }
    }

    fn next(answers: &mut Answers) -> Poll<Option<String>> {
        let polled = answers.poll_next_unpin(&mut Context::from_waker(noop_waker_ref()));
        polled.map(|item| item.map(|item| item.unwrap().request_id))
    }

    #[test]
    fn room_comes_back_once_answers_are_taken_and_not_before() {
        let (mut answering, mut answers) = answers();
        let all = limits::BATCH_IN_FLIGHT_MAX;
        assert!((0..all).all(|_| answering.enter(1)) && !answering.has_place() && !answering.enter(0));
        (0..all).for_each(|id| answering.answer(answer(id), 1));
        assert!(!answering.hand_over(None, true) && !answering.has_place(), "handed over is not taken");
        for id in 0..all {
            assert_eq!(next(&mut answers), Poll::Ready(Some(id.to_string())));
        }
        assert!(next(&mut answers).is_pending());
        assert!(answering.hand_over(None, true));
        assert!((0..all).all(|_| answering.enter(1)) && !answering.enter(0));
    }

    #[test]
    fn a_request_over_the_bound_is_under_way_alone() {
        let (mut answering, mut answers) = answers();
        let huge = share(usize::MAX);
        assert!(answering.enter(1) && answering.has_place() && !answering.enter(huge));
        answering.answer(answer(1), 1);
        answering.hand_over(None, true);
        assert!(next(&mut answers).is_ready() && next(&mut answers).is_pending());
        assert!(answering.hand_over(None, true) && answering.enter(huge) && !answering.enter(1));
    }

    #[tokio::test]
    async fn each_side_hears_of_the_others_end() {
        let (mut answering, mut answers) = answers();
        answering.enter(0);
        answering.answer(answer(7), 0);
        let taking = tokio::spawn(async move {
            let first = answers.next().await.unwrap().unwrap();
            let end = answers.next().await.unwrap().unwrap_err();
            (first.request_id, end.code(), answers.next().await.is_none())
        });
        answering.fail(Status::aborted("over"));
        assert_eq!(taking.await.unwrap(), ("7".to_owned(), tonic::Code::Aborted, true));

        let (mut answering, answers) = super::answers();
        let gone = tokio::spawn(std::future::poll_fn(move |cx| {
            answering.hand_over(Some(cx.waker()), false);
            if answering.is_gone() { Poll::Ready(()) } else { Poll::Pending }
        }));
        drop(answers);
        gone.await.unwrap();
    }
}
