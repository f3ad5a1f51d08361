//! The fan-out: what is queued for an audience (a shard of all sessions, the members of a topic) is handed out strictly in
//! that order, in slices with yields. What came while it was at it leaves together, in one write a session.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;

use super::{
    handle::Handle,
    sessions::{Job, Parcel},
};
use crate::{clock::Instant, limits};

/// Sessions in an order of their own, which a fan-out goes through slice by slice.
pub trait Audience {
    /// The next so many behind that one.
    fn slice(&self, after: Option<&Listener>) -> Vec<Listener>;
}

/// A session that a fan-out comes to.
#[derive(Clone, Debug)]
pub struct Listener {
    /// The session.
    pub handle: Arc<Handle>,
    /// Whether it is told of those who come and go.
    pub hears_presence: bool,
}

/// The passes that whoever queues something does himself for a small audience, before he leaves it to a task.
const PASSES_AT_ONCE: usize = 4;

/// What is queued for an audience, in order.
#[derive(Debug, Default)]
pub struct Lane {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    steps: VecDeque<Step>,
    /// The bytes among them of what tells who came or went. All else has its share of a room before it comes here.
    presence_bytes: usize,
    /// The calls among them.
    calls: usize,
    running: bool,
}

/// What a lane does next.
enum Step {
    /// Hands it out.
    Hand(Arc<Job>),
    /// Has something else done in its place among them.
    Call(Box<dyn FnOnce() + Send>),
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Step::Hand(_)) { "Hand" } else { "Call" })
    }
}

impl Queue {
    /// Takes out what is handed to each session in one go: all that waits, up to a bound, so that neither a slice's time nor
    /// what is put together grows with the backlog; or the one step that is something else. Where there is nothing the lane
    /// rests.
    fn next_pass(&mut self) -> Option<Pass> {
        self.running = !self.steps.is_empty();
        let mut bytes = 0;
        let mut jobs = Vec::new();
        while let Some(Step::Hand(job)) = self.steps.front() {
            bytes += job.bytes();
            if !jobs.is_empty() && bytes > limits::FANOUT_PASS_BYTES_MAX {
                break;
            }
            self.presence_bytes -= job.presence_bytes();
            jobs.push(Arc::clone(job));
            self.steps.pop_front();
        }
        if !jobs.is_empty() {
            return Some(Pass::Jobs(jobs));
        }
        match self.steps.pop_front() {
            Some(Step::Call(call)) => {
                self.calls -= 1;
                Some(Pass::Call(call))
            }
            Some(Step::Hand(_)) | None => None,
        }
    }
}

enum Pass {
    Jobs(Vec<Arc<Job>>),
    Call(Box<dyn FnOnce() + Send>),
}

/// Lets what comes next start the lane again, should serving this panic.
struct Running<'a>(&'a Lane);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.queue.lock().running = false;
        }
    }
}

impl Lane {
    /// Queues what is to be handed out. True: the lane rested, and the caller has it run.
    pub fn hand(&self, job: Arc<Job>) -> bool {
        self.push(Step::Hand(job))
    }

    /// Queues something else, to be done behind what is queued and before what comes. True: as above.
    pub fn call(&self, call: impl FnOnce() + Send + 'static) -> bool {
        self.push(Step::Call(Box::new(call)))
    }

    fn push(&self, step: Step) -> bool {
        let mut queue = self.queue.lock();
        match &step {
            Step::Hand(job) => queue.presence_bytes += job.presence_bytes(),
            Step::Call(_) => queue.calls += 1,
        }
        queue.steps.push_back(step);
        !std::mem::replace(&mut queue.running, true)
    }

    /// Whether more may be told of who comes. (Who goes is told of in any case, if it was told that he came: of these there
    /// are no more than may be listed, and than come was told of in here.)
    pub fn takes_presence(&self) -> bool {
        self.queue.lock().presence_bytes < limits::PRESENCE_QUEUE_BYTES_MAX
    }

    /// Whether more may be called.
    pub fn takes_calls(&self) -> bool {
        self.queue.lock().calls < limits::LISTS_QUEUE_MAX
    }

    /// The bytes of presence that wait.
    #[cfg(test)]
    pub fn presence_bytes(&self) -> usize {
        self.queue.lock().presence_bytes
    }

    /// Does what is queued, until nothing is.
    pub async fn run(&self, audience: &(impl Audience + Sync)) {
        let _running = Running(self);
        loop {
            let next = self.queue.lock().next_pass();
            let jobs = match next {
                None => return,
                Some(Pass::Jobs(jobs)) => jobs,
                Some(Pass::Call(call)) => {
                    call();
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            let mut parcels = Parcel::pack(&jobs);
            let mut after = None;
            while serve(audience, &mut after, &mut parcels) {
                tokio::task::yield_now().await;
            }
            done(parcels, &jobs);
            tokio::task::yield_now().await;
        }
    }

    /// The same without turns for others, for an audience of a slice: a few passes of it. True: nothing is left. Else the
    /// caller has it run. With no lock held.
    pub fn run_at_once(&self, audience: &impl Audience) -> bool {
        let _running = Running(self);
        for _ in 0..PASSES_AT_ONCE {
            let next = self.queue.lock().next_pass();
            match next {
                None => return true,
                Some(Pass::Call(call)) => call(),
                Some(Pass::Jobs(jobs)) => {
                    let mut parcels = Parcel::pack(&jobs);
                    let mut after = None;
                    while serve(audience, &mut after, &mut parcels) {}
                    done(parcels, &jobs);
                }
            }
        }
        false
    }
}

/// Hands out to the next slice of the audience. False: it was the last.
fn serve(audience: &impl Audience, after: &mut Option<Listener>, parcels: &mut [Parcel<'_>]) -> bool {
    let slice = audience.slice(after.as_ref());
    *after = slice.last().cloned();
    let now = Instant::now();
    let more = slice.len() == limits::FANOUT_SLICE_SESSIONS;
    for listener in slice {
        if let [only] = parcels
            && only.send_to(&listener)
        {
            continue;
        }
        parcels.iter_mut().for_each(|parcel| parcel.hand_to(&listener, now));
        listener.handle.flush();
    }
    more
}

fn done(parcels: Vec<Parcel<'_>>, jobs: &[Arc<Job>]) {
    parcels.into_iter().for_each(Parcel::count);
    jobs.iter().for_each(|job| job.lane_done());
}
