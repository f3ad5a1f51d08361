//! One who sends: calls one by one, or a stream and another where that breaks.

use std::{
    cell::Cell,
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, mpsc};
use tonic::{Code, Status};

use super::{Calls, Job, Jobs, Numbered, Sent, Via, Work, sent::is_refusal};
use crate::{
    api::proto::{
        BroadcastRequest, Notification, Outcome, SendBatchRequest, SendToUserRequest, notification::Payload,
        send_batch_response,
    },
    limits,
    stress::{
        fleet::Live,
        mark::{self, Mark},
    },
};

/// How long a caller waits after a failure before it calls again.
const PAUSE: Duration = Duration::from_millis(100);

/// One who sends.
pub struct Caller<'a> {
    pub calls: &'a Calls,
    pub work: &'a Work,
    pub live: &'a Live,
    pub count: &'a (dyn Fn(u64) + Sync),
    /// When the gateway last said something that was no failure of the call itself.
    pub heard: Instant,
    pub sent: Sent,
    /// What is to be sent again, in order.
    pub again: VecDeque<Numbered>,
}

/// Requests of a stream that are not answered yet.
type Pending = Mutex<HashMap<u64, Numbered>>;

impl Caller<'_> {
    fn one_by_one_answer(&mut self, job: &Numbered, answer: Result<Outcome, Status>) -> bool {
        let failed = answer.as_ref().is_err_and(|status| !is_refusal(status));
        self.sent.answered(job, answer, self.live.now_micros());
        (self.count)(1);
        if !failed {
            self.heard = Instant::now();
        }
        failed
    }

    pub async fn one_by_one(&mut self, number: usize, mut jobs: Jobs<'_>) {
        let mut client = self.calls.client(number);
        while let Some(job) = jobs.next().await {
            let job = numbered(&mut self.sent.sent, &job);
            let answer = if self.work.via == Via::Broadcast {
                let notification = Some(notification(self.work, &job));
                let request = BroadcastRequest { notification, ..BroadcastRequest::default() };
                client.broadcast(self.calls.request(request)).await.map(|answer| answer.into_inner().outcome())
            } else {
                let request = self.calls.request(to_user(self.work, &job));
                client.send_to_user(request).await.map(|answer| answer.into_inner().outcome())
            };
            if self.one_by_one_answer(&job, answer) {
                if self.heard.elapsed() > self.work.patience {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Sends over a stream, and over another where that breaks.
    pub async fn batch(&mut self, number: usize, mut jobs: Jobs<'_>) {
        while !self.stream(number, &mut jobs).await {
            if self.heard.elapsed() > self.work.patience {
                for job in self.again.drain(..) {
                    self.sent.answered(&job, Err(silent()), 0);
                }
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Sends over one stream. `false`: it broke, and there may be more to send.
    async fn stream(&mut self, number: usize, jobs: &mut Jobs<'_>) -> bool {
        let Self { calls, work, live, count, heard, sent, again } = self;
        let (tell, told) = mpsc::channel::<SendBatchRequest>(64);
        let requests = futures_util::stream::unfold(told, async |mut told| Some((told.recv().await?, told)));
        let pending = Pending::default();
        let room = Semaphore::new(limits::BATCH_IN_FLIGHT_MAX);
        let mut client = calls.client(number);
        let request = calls.endless(requests);
        let mut numbers = std::mem::take(&mut sent.sent);
        let all_written = Cell::new(false);
        let silence = work.patience.saturating_add(calls.timeout);
        let write = async {
            let mut id = 0u64;
            // Its place first, so that nothing is taken that could not leave.
            while let Ok(permit) = room.acquire().await {
                let job = match again.pop_front() {
                    Some(job) => Some(job),
                    None => jobs.next().await.map(|job| numbered(&mut numbers, &job)),
                };
                let Some(job) = job else {
                    // Half-closes the stream.
                    drop(tell);
                    all_written.set(true);
                    return true;
                };
                permit.forget();
                pending.lock().insert(id, job);
                let request = SendBatchRequest { request_id: id.to_string(), send: Some(to_user(work, &job)) };
                if tell.send(request).await.is_err() {
                    return false;
                }
                id += 1;
            }
            false
        };
        let read = async {
            let opening = tokio::time::timeout(calls.timeout, client.send_batch(request)).await;
            let mut answers = opening.map_err(|_| silent())??.into_inner();
            loop {
                let answer = match tokio::time::timeout(silence, answers.message()).await {
                    Ok(answer) => answer?,
                    // Nothing is to be answered.
                    Err(_) if pending.lock().is_empty() && !all_written.get() => continue,
                    Err(_) => return Err(silent()),
                };
                let Some(answer) = answer else { return Ok::<_, Status>(()) };
                let id: Option<u64> = answer.request_id.parse().ok();
                let Some((id, job)) = id.and_then(|id| Some((id, pending.lock().remove(&id)?))) else { continue };
                let outcome = match answer.result {
                    Some(send_batch_response::Result::Response(response)) => Ok(response.outcome()),
                    Some(send_batch_response::Result::Error(error)) => {
                        Err(Status::new(Code::from_i32(error.code), error.message))
                    }
                    None => Err(Status::unknown("an answer without a result")),
                };
                if let Err(status) = &outcome
                    && work.again
                    && !is_refusal(status)
                {
                    // Nothing newer of the same key is to overtake it: with it all that is under way is sent again.
                    pending.lock().insert(id, job);
                    return Err(status.clone());
                }
                sent.answered(&job, outcome, live.now_micros());
                count(1);
                *heard = Instant::now();
                room.add_permits(1);
            }
        };
        let over = Notify::new();
        let read = async {
            let end = read.await;
            over.notify_one();
            end
        };
        // Where nobody answers any more, what is yet to be sent is not waited for: it may never leave.
        let write = async {
            tokio::select! {
                biased;
                done = write => done,
                () = over.notified() => false,
            }
        };
        let (done, end) = tokio::join!(write, read);
        sent.sent = numbers;
        let mut left: Vec<(u64, Numbered)> = pending.lock().drain().collect();
        left.sort_by_key(|(id, _)| *id);
        if work.again {
            sent.again += left.len() as u64;
            left.into_iter().rev().for_each(|(_, job)| again.push_front(job));
            return done && again.is_empty();
        }
        let status = end.err().unwrap_or_else(|| Status::unknown("not answered"));
        for (_, job) in left {
            sent.answered(&job, Err(status.clone()), 0);
        }
        done
    }
}

fn silent() -> Status {
    Status::deadline_exceeded("nothing was answered in time")
}

fn numbered(numbers: &mut HashMap<usize, u64>, job: &Job) -> Numbered {
    let next = numbers.entry(job.key).or_default();
    let number = *next;
    *next += 1;
    Numbered { key: job.key, number, due_micros: job.due_micros }
}

fn notification(work: &Work, job: &Numbered) -> Notification {
    let (lane, whom) = match work.via {
        Via::Broadcast => (job.key as u32, mark::EVERYBODY),
        Via::Unary | Via::Batch => (0, mark::user(&work.keys[job.key])),
    };
    let mark = Mark { run: work.run, lane, whom, number: job.number, due_micros: job.due_micros };
    Notification {
        payload: Some(Payload::Json(mark.payload(work.payload))),
        ttl: work.volatile.then(prost_types::Duration::default),
        id: if work.again { format!("{:08x}-{}-{}", work.run, job.key, job.number) } else { String::new() },
        ..Notification::default()
    }
}

fn to_user(work: &Work, job: &Numbered) -> SendToUserRequest {
    SendToUserRequest {
        user_id: work.keys[job.key].as_ref().to_owned(),
        notification: Some(notification(work, job)),
        wait: work.wait.into(),
        ..SendToUserRequest::default()
    }
}
