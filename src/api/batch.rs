//! `SendBatch`: many sends over one stream. A task of its own drives them, so that a caller who does not read his answers
//! holds up nobody but himself: what was begun is finished, and nothing more is read.
//!
//! The first halves of the sends to one user (`Hub::begin_send`) follow each other, a lane a user; everything else runs at
//! the same time. A request has its share of what may be under way from before it is read until its answer is taken.

mod answers;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use futures_util::{Stream, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use prost::Message as _;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tonic::{Code, Status};

use self::answers::{Answering, answers, share};
use super::{
    Api, Caller,
    error::{ApiError, embedded},
    proto::{self, send_batch_response::Result as Answer},
    scope::Scope,
    send::{self, ToSend},
    standing::While,
};
use crate::{
    clock::Instant,
    hub::{Begun, Hub, SendError},
    limits,
    metrics::Failure,
    types::{NotificationId, UserId},
};

/// What `SendBatch` answers with.
pub type BatchStream = Pin<Box<dyn Stream<Item = Result<proto::SendBatchResponse, Status>> + Send>>;

/// What is done in one go, before anything else on the runtime has its turn: requests are taken, or sessions written to,
/// whichever are more.
const BURST: usize = 64;

/// Tells requests apart, in the order in which they were read.
type Key = u64;

/// A request that is not answered yet, and its share of the bytes that may be under way.
struct Asked {
    key: Key,
    request_id: String,
    share: usize,
}

/// How a half of a send ended.
enum Step {
    Begun(Key, UserId, NotificationId, Result<Begun, SendError>),
    Finished(Key, Result<proto::SendToUserResponse, ApiError>),
}

/// Why no request is read.
enum Unread {
    /// There are no more, or this is why they end here.
    NoMore(Result<(), Status>),
    /// The next one is too much beside those under way.
    LacksRoom,
}

/// What the driver has to do.
enum Event {
    /// The caller went away.
    Gone,
    /// The deadline, or the end of the grace for a stop.
    Cut,
    /// The node stops.
    Stop,
    Step(Step),
    /// There are no more requests, or why they end here.
    NoMore(Result<(), Status>),
    /// Others' turn.
    Yield,
}

struct Driver<S> {
    hub: Hub,
    deadline: Option<Instant>,
    requests: S,
    /// The next request and its share, where there was no room for it yet.
    next: Option<(proto::SendBatchRequest, usize)>,
    answers: Answering,
    work: FuturesUnordered<BoxFuture<'static, Step>>,
    /// Of each user with a first half under way: what is to follow it.
    lanes: HashMap<UserId, VecDeque<(Key, ToSend)>>,
    /// What waits for something.
    under_way: BTreeMap<Key, Asked>,
    next_key: Key,
    /// How much of a [`BURST`] is done.
    burst: usize,
}

impl Api {
    /// `SendBatch`. `deadline`: when the call has to be over.
    pub fn send_batch<S>(
        &self,
        caller: &Caller,
        requests: S,
        deadline: Option<Instant>,
    ) -> Result<BatchStream, ApiError>
    where
        S: Stream<Item = Result<proto::SendBatchRequest, Status>> + Send + Unpin + 'static,
    {
        let hub = self.authorise(caller, Scope::Send)?.clone();
        let (answering, answers) = answers();
        let driver = Driver {
            hub,
            deadline,
            requests: While::new(&caller.standing, requests),
            next: None,
            answers: answering,
            work: FuturesUnordered::new(),
            lanes: HashMap::new(),
            under_way: BTreeMap::new(),
            next_key: 0,
            burst: 0,
        };
        self.0.life.spawn(driver.run(self.0.life.stopping().clone()));
        Ok(Box::pin(answers))
    }
}

impl<S: Stream<Item = Result<proto::SendBatchRequest, Status>> + Unpin> Driver<S> {
    async fn run(mut self, stop: CancellationToken) {
        let mut stopped = Some(Box::pin(stop.cancelled()));
        let mut cut = pin!(self.deadline.map(tokio::time::sleep_until));
        let mut end = None;
        loop {
            if self.under_way.is_empty()
                && let Some(end) = end
            {
                return self.finish(end);
            }
            let stopping = stopped.is_none();
            match poll_fn(|cx| self.poll(cx, cut.as_mut(), &mut stopped, end.is_none())).await {
                // Nothing else is started, and what has begun needs nobody.
                Event::Gone => return,
                Event::Cut => {
                    let error = if stopping { may_have_been_delivered } else { || ApiError::DeadlineExceeded };
                    let all = std::mem::take(&mut self.under_way);
                    all.into_values().for_each(|asked| self.answer(asked, Err(error())));
                    return self.finish(Err(if stopping { draining() } else { ApiError::DeadlineExceeded }.into()));
                }
                Event::Stop => {
                    stopped = None;
                    let grace = self.hub.clock().now() + limits::BATCH_STOP_GRACE;
                    let at = self.deadline.map_or(grace, |deadline| deadline.min(grace));
                    cut.set(Some(tokio::time::sleep_until(at)));
                    end = Some(Err(End::from(draining())));
                    let queued: Vec<_> = self.lanes.values_mut().flat_map(std::mem::take).collect();
                    for asked in
                        queued.into_iter().filter_map(|(key, _)| self.under_way.remove(&key)).collect::<Vec<_>>()
                    {
                        self.answer(asked, Err(draining()));
                    }
                }
                Event::Step(step) => self.step(step),
                Event::NoMore(Ok(())) => end = Some(Ok(())),
                // A message that tonic refused; nothing behind it can be read. All before it is answered.
                Event::NoMore(Err(status)) if matches!(status.code(), Code::OutOfRange | Code::Internal) => {
                    self.hub.metrics().failure(Failure::GrpcRefused);
                    end = Some(Err(End::Transport(status)));
                }
                // All before it is answered, too.
                Event::NoMore(Err(status)) if status.code() == Code::Unauthenticated => {
                    self.hub.metrics().failure(Failure::GrpcUnauthenticated);
                    end = Some(Err(End::Transport(status)));
                }
                // The connection broke, or the caller reset the stream.
                Event::NoMore(Err(_)) => return,
                Event::Yield => tokio::task::yield_now().await,
            }
        }
    }

    /// What there is to do next. Requests are taken on the way, as far as they come.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        cut: Pin<&mut Option<Sleep>>,
        stopped: &mut Option<Pin<Box<WaitForCancellationFuture<'_>>>>,
        reads: bool,
    ) -> Poll<Event> {
        if self.answers.is_gone() {
            return Poll::Ready(Event::Gone);
        }
        if cut.as_pin_mut().is_some_and(|cut| cut.poll(cx).is_ready()) {
            return Poll::Ready(Event::Cut);
        }
        if stopped.as_mut().is_some_and(|stopped| stopped.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Event::Stop);
        }
        loop {
            if self.burst >= BURST {
                self.burst = 0;
                self.answers.hand_over(None, false);
                return Poll::Ready(Event::Yield);
            }
            if let Poll::Ready(Some(step)) = self.work.poll_next_unpin(cx) {
                return Poll::Ready(Event::Step(step));
            }
            let (before, mut lacks_room) = (self.burst, false);
            while reads && self.burst < BURST && !lacks_room {
                match self.read(cx) {
                    Poll::Ready(Ok((request, share))) => {
                        self.burst += 1;
                        self.take(request, share, cx);
                    }
                    Poll::Ready(Err(Unread::NoMore(end))) => return Poll::Ready(Event::NoMore(end)),
                    Poll::Ready(Err(Unread::LacksRoom)) => lacks_room = true,
                    Poll::Pending => break,
                }
            }
            if self.burst >= BURST || self.burst > before && !self.work.is_empty() {
                // What was begun just now has yet to be asked how it gets on.
                continue;
            }
            let has_room = self.answers.hand_over(Some(cx.waker()), lacks_room);
            if self.answers.is_gone() {
                return Poll::Ready(Event::Gone);
            }
            if !(lacks_room && has_room) {
                self.burst = 0;
                return Poll::Pending;
            }
        }
    }

    /// Reads the next request, if there is room for it.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(proto::SendBatchRequest, usize), Unread>> {
        if self.next.is_none() {
            if !self.answers.has_place() {
                return Poll::Ready(Err(Unread::LacksRoom));
            }
            match ready!(self.requests.poll_next_unpin(cx)) {
                Some(Ok(request)) => {
                    let share = share(request.encoded_len());
                    self.next = Some((request, share));
                }
                Some(Err(status)) => return Poll::Ready(Err(Unread::NoMore(Err(status)))),
                None => return Poll::Ready(Err(Unread::NoMore(Ok(())))),
            }
        }
        Poll::Ready(self.next.take_if(|(_, share)| self.answers.enter(*share)).ok_or(Unread::LacksRoom))
    }

    /// Checks a request and begins it, or has it wait for those before it. What waits for nothing is answered at once.
    fn take(&mut self, request: proto::SendBatchRequest, share: usize, cx: &mut Context<'_>) {
        let proto::SendBatchRequest { mut request_id, send } = request;
        let key = self.next_key;
        self.next_key += 1;
        let checked = if request_id.len() > limits::REQUEST_ID_BYTES_MAX {
            let bytes = request_id.len();
            request_id.clear();
            let max = limits::REQUEST_ID_BYTES_MAX;
            Err(ApiError::invalid("request_id", &format!("must have at most {max} bytes, this has {bytes}")))
        } else {
            send.ok_or_else(|| ApiError::invalid("send", "is required"))
                .and_then(|send| send::to_send(&self.hub, send, self.deadline))
        };
        let asked = Asked { key, request_id, share };
        let send = match checked {
            Err(error) => return self.answer(asked, Err(error)),
            Ok(send) => send,
        };
        if let Some(lane) = self.lanes.get_mut(&send.user) {
            lane.push_back((key, send));
            self.under_way.insert(key, asked);
            return;
        }
        if send.notification.is_now_or_never() {
            let id = send.notification.id.clone();
            let begun = self.hub.begin_unstored(&send.user, send.notification);
            return self.begun(asked, id, begun);
        }
        let user = send.user.clone();
        let mut first_half = self.first_half(key, send);
        match first_half.as_mut().poll(cx) {
            Poll::Ready(Step::Begun(_, _, id, begun)) => self.begun(asked, id, begun),
            Poll::Ready(Step::Finished(_, answer)) => self.answer(asked, answer),
            Poll::Pending => {
                self.lanes.insert(user, VecDeque::new());
                self.under_way.insert(key, asked);
                self.work.push(first_half);
            }
        }
    }

    fn first_half(&self, key: Key, send: ToSend) -> BoxFuture<'static, Step> {
        let hub = self.hub.clone();
        Box::pin(async move {
            let ToSend { user, notification, options } = send;
            let id = notification.id.clone();
            let begun = hub.begin_send(&user, notification, options).await;
            Step::Begun(key, user, id, begun)
        })
    }

    /// Goes on with what has its place among the user's others.
    fn begun(&mut self, asked: Asked, id: NotificationId, begun: Result<Begun, SendError>) {
        match begun.map(|begun| self.hub.finish_at_once(begun)) {
            Err(error) => self.answer(asked, Err(error.into())),
            Ok(Ok(sent)) => {
                // The first write is the request's own part of the burst.
                self.burst += (sent.sessions as usize).saturating_sub(1);
                self.answer(asked, Ok(send::answer(&id, sent)));
            }
            Ok(Err(begun)) => {
                self.burst += (begun.sessions() as usize).saturating_sub(1);
                let (hub, key) = (self.hub.clone(), asked.key);
                self.under_way.insert(key, asked);
                self.work.push(Box::pin(async move {
                    let sent = hub.finish_send(begun).await;
                    Step::Finished(key, sent.map(|sent| send::answer(&id, sent)).map_err(ApiError::from))
                }));
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Finished(key, answer) => {
                if let Some(asked) = self.under_way.remove(&key) {
                    self.answer(asked, answer);
                }
            }
            Step::Begun(key, user, id, begun) => {
                match self.lanes.get_mut(&user).and_then(VecDeque::pop_front) {
                    Some((next, send)) => self.work.push(self.first_half(next, send)),
                    None => drop(self.lanes.remove(&user)),
                }
                // One that was answered by a stop has begun all the same: being dropped, it is written.
                if let Some(asked) = self.under_way.remove(&key) {
                    self.begun(asked, id, begun);
                }
            }
        }
    }

    fn answer(&mut self, asked: Asked, answer: Result<proto::SendToUserResponse, ApiError>) {
        let result = Some(match answer {
            Ok(response) => Answer::Response(response),
            Err(error) => Answer::Error(embedded(&error.into_status(self.hub.metrics()))),
        });
        self.answers.answer(proto::SendBatchResponse { request_id: asked.request_id, result }, asked.share);
    }

    fn finish(self, end: Result<(), End>) {
        if let Err(end) = end {
            self.answers.fail(match end {
                End::Api(error) => error.into_status(self.hub.metrics()),
                End::Transport(status) => status,
            });
        }
    }
}

/// How a stream ends that does not end well.
enum End {
    Api(ApiError),
    Transport(Status),
}

impl From<ApiError> for End {
    fn from(error: ApiError) -> Self {
        End::Api(error)
    }
}

fn draining() -> ApiError {
    SendError::Draining.into()
}

fn may_have_been_delivered() -> ApiError {
    let message = "the node is stopping; the notification may have been delivered".to_owned();
    ApiError::Unavailable { reason: "MAY_HAVE_BEEN_DELIVERED", message }
}
