//! `SendBatch`: many sends over one stream. A task of its own drives them, so that a caller who does not read his answers
//! holds up nobody but himself: what was begun is finished, and nothing more is read.
//!
//! The first halves of the sends to one user (`Hub::begin_send`) follow each other, a lane a user; everything else runs at
//! the same time. A request has its share of what may be under way from before it is read until its answer is taken.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    pin::Pin,
    sync::Arc,
};

use futures_util::{
    Stream, StreamExt as _,
    future::BoxFuture,
    stream::{self, FuturesUnordered},
};
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{
    Api, Caller,
    error::ApiError,
    proto::{self, send_batch_response::Result as Answer},
    scope::Scope,
    send::{self, ToSend},
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

/// Tells requests apart, in the order in which they were read.
type Key = u64;

/// A request's share of what may be under way.
type Room = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// An answer, or the end of the stream, on its way to the caller.
struct Out {
    item: Result<proto::SendBatchResponse, Status>,
    _room: Option<Room>,
}

/// A request that is not answered yet.
struct UnderWay {
    request_id: String,
    room: Room,
}

/// How a half of a send ended.
enum Step {
    Begun(Key, UserId, NotificationId, Result<Begun, SendError>),
    Finished(Key, Result<proto::SendToUserResponse, ApiError>),
}

/// What is read next: a request, the end of them, or why there is no more.
type Read = Result<Option<(proto::SendBatchRequest, Room)>, Status>;

/// Reads requests as far as there is room for them. What it has got so far it keeps, so that reading may be interrupted.
struct Reader<S> {
    requests: S,
    count: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    place: Option<OwnedSemaphorePermit>,
    read: Option<proto::SendBatchRequest>,
}

struct Driver {
    hub: Hub,
    deadline: Option<Instant>,
    answers: mpsc::UnboundedSender<Out>,
    work: FuturesUnordered<BoxFuture<'static, Step>>,
    /// Of each user with a first half under way: what is to follow it.
    lanes: HashMap<UserId, VecDeque<(Key, ToSend)>>,
    under_way: BTreeMap<Key, UnderWay>,
    next_key: Key,
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
        let (answers, taken) = mpsc::unbounded_channel();
        let reader = Reader {
            requests,
            count: Arc::new(Semaphore::new(limits::BATCH_IN_FLIGHT_MAX)),
            bytes: Arc::new(Semaphore::new(limits::BATCH_IN_FLIGHT_BYTES_MAX)),
            place: None,
            read: None,
        };
        let driver = Driver {
            hub,
            deadline,
            answers,
            work: FuturesUnordered::new(),
            lanes: HashMap::new(),
            under_way: BTreeMap::new(),
            next_key: 0,
        };
        self.0.life.spawn(driver.run(reader, self.0.life.stopping().clone()));
        Ok(Box::pin(stream::unfold(taken, |mut taken| async {
            let Out { item, _room } = taken.recv().await?;
            Some((item, taken))
        })))
    }
}

impl<S: Stream<Item = Result<proto::SendBatchRequest, Status>> + Unpin> Reader<S> {
    async fn next(&mut self) -> Read {
        if self.read.is_none() {
            if self.place.is_none() {
                self.place = Arc::clone(&self.count).acquire_owned().await.ok();
            }
            match self.requests.next().await {
                Some(request) => self.read = Some(request?),
                None => return Ok(None),
            }
        }
        let size = self.read.as_ref().map_or(0, |request| request.encoded_len());
        let size = u32::try_from(size.min(limits::BATCH_IN_FLIGHT_BYTES_MAX)).unwrap_or(u32::MAX);
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(size).await;
        Ok(match (self.read.take(), self.place.take(), bytes) {
            (Some(request), Some(place), Ok(bytes)) => Some((request, (place, bytes))),
            // Neither semaphore is ever closed.
            _ => None,
        })
    }
}

impl Driver {
    async fn run<S>(mut self, mut reader: Reader<S>, stop: CancellationToken)
    where
        S: Stream<Item = Result<proto::SendBatchRequest, Status>> + Unpin,
    {
        let (answers, mut end) = (self.answers.clone(), None);
        let mut cut = self.deadline;
        let mut stopping = false;
        loop {
            if self.under_way.is_empty()
                && let Some(end) = end
            {
                return self.finish(end);
            }
            tokio::select! {
                biased;
                // He went away: nothing else is started, and what has begun needs nobody.
                () = answers.closed() => return,
                () = until(cut) => {
                    let error = if stopping { may_have_been_delivered } else { || ApiError::DeadlineExceeded };
                    let all: Vec<_> = self.under_way.keys().copied().collect();
                    all.into_iter().for_each(|key| self.answer(key, Err(error())));
                    return self.finish(Err(if stopping { draining() } else { ApiError::DeadlineExceeded }.into()));
                }
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    let grace = self.hub.clock().now() + limits::BATCH_STOP_GRACE;
                    cut = Some(cut.map_or(grace, |deadline| deadline.min(grace)));
                    end = Some(Err(End::from(draining())));
                    let queued: Vec<_> = self.lanes.values_mut().flat_map(std::mem::take).collect();
                    queued.into_iter().for_each(|(key, _)| self.answer(key, Err(draining())));
                }
                Some(step) = self.work.next() => self.step(step),
                read = reader.next(), if end.is_none() => match read {
                    Ok(Some((request, room))) => self.take(request, room),
                    Ok(None) => end = Some(Ok(())),
                    // A message that tonic refused; nothing behind it can be read. All before it is answered.
                    Err(status) if matches!(status.code(), Code::OutOfRange | Code::Internal) => {
                        self.hub.metrics().failure(Failure::GrpcRefused);
                        end = Some(Err(End::Transport(status)));
                    }
                    // The connection broke, or the caller reset the stream.
                    Err(_) => return,
                },
            }
        }
    }

    /// Checks a request and begins it, or has it wait for those before it.
    fn take(&mut self, request: proto::SendBatchRequest, room: Room) {
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
        self.under_way.insert(key, UnderWay { request_id, room });
        match checked {
            Err(error) => self.answer(key, Err(error)),
            Ok(send) => match self.lanes.get_mut(&send.user) {
                Some(lane) => lane.push_back((key, send)),
                None => {
                    self.lanes.insert(send.user.clone(), VecDeque::new());
                    self.begin(key, send);
                }
            },
        }
    }

    fn begin(&mut self, key: Key, send: ToSend) {
        let hub = self.hub.clone();
        self.work.push(Box::pin(async move {
            let ToSend { user, notification, options } = send;
            let id = notification.id.clone();
            let begun = hub.begin_send(&user, notification, options).await;
            Step::Begun(key, user, id, begun)
        }));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Finished(key, answer) => self.answer(key, answer),
            Step::Begun(key, user, id, begun) => {
                match self.lanes.get_mut(&user).and_then(VecDeque::pop_front) {
                    Some((next, send)) => self.begin(next, send),
                    None => drop(self.lanes.remove(&user)),
                }
                match begun {
                    Err(error) => self.answer(key, Err(error.into())),
                    Ok(begun) => {
                        let hub = self.hub.clone();
                        self.work.push(Box::pin(async move {
                            let sent = hub.finish_send(begun).await;
                            Step::Finished(key, sent.map(|sent| send::answer(&id, sent)).map_err(ApiError::from))
                        }));
                    }
                }
            }
        }
    }

    fn answer(&mut self, key: Key, answer: Result<proto::SendToUserResponse, ApiError>) {
        let Some(UnderWay { request_id, room }) = self.under_way.remove(&key) else { return };
        let result = Some(match answer {
            Ok(response) => Answer::Response(response),
            Err(error) => Answer::Error(embedded(&error.into_status(self.hub.metrics()))),
        });
        // Where he is gone nobody needs it.
        let _ = self.answers.send(Out { item: Ok(proto::SendBatchResponse { request_id, result }), _room: Some(room) });
    }

    fn finish(self, end: Result<(), End>) {
        if let Err(end) = end {
            let status = match end {
                End::Api(error) => error.into_status(self.hub.metrics()),
                End::Transport(status) => status,
            };
            let _ = self.answers.send(Out { item: Err(status), _room: None });
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

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// A status as a message of its own. That with details carries itself, encoded.
fn embedded(status: &Status) -> tonic_types::pb::Status {
    let plain = || tonic_types::pb::Status {
        code: status.code().into(),
        message: status.message().to_owned(),
        details: Vec::new(),
    };
    match tonic_types::pb::Status::decode(status.details()) {
        Ok(decoded) if !status.details().is_empty() => decoded,
        _ => plain(),
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn a_status_keeps_its_details_when_it_is_embedded() {
        let status = ApiError::invalid("user_id", "must not be empty").into_status(&Metrics::default());
        let embedded = embedded(&status);
        assert_eq!((embedded.code, embedded.message.as_str()), (3, "user_id: must not be empty"));
        assert_eq!(embedded.details.len(), 2);
        let again = Status::with_details(Code::InvalidArgument, "", embedded.encode_to_vec().into());
        assert_eq!(again.get_error_details().bad_request().unwrap().field_violations[0].field, "user_id");
        let plain = super::embedded(&Status::not_found("x"));
        assert_eq!((plain.code, plain.details.len()), (5, 0));
    }
}
