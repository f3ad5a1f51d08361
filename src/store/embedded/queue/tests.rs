//! The queue alone: order, haste, bounds, and what is taken back.

use std::{
    pin::pin,
    sync::{Arc, mpsc},
    thread,
};

use bytes::Bytes;
use futures_util::FutureExt as _;

use super::*;
use crate::{
    clock::Clock,
    store::{Counters, DeviceRow, Hold, LogObserver, Store, StoreError, double::Double},
    types::{LogId, Notification, NotificationId, Offset, Payload, TypeName, UnixMillis},
};

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(3600);

fn user() -> UserId {
    UserId::parse("ann").unwrap()
}

fn cursor(device: &str, to: u64) -> Op {
    let row = DeviceRow { cursor: Offset::new(to), ..DeviceRow::default() };
    Op::Cursor { user: user(), device: Device::parse(device).unwrap(), row, hold: Hold::default() }
}

fn remove(device: &str) -> Op {
    Op::RemoveDevice {
        user: user(),
        device: Device::parse(device).unwrap(),
        at: UnixMillis(0),
        unremembered: Vec::new(),
        topics: Vec::new(),
        hold: Hold::default(),
        done: None,
    }
}

/// A deletion for which nobody waits.
fn lazy(offset: u64) -> Op {
    Op::Delete {
        log: LogId::User(user()),
        places: vec![crate::store::Place { offset: Offset::new(offset), chunks: 0 }],
        emptied: Vec::new(),
        counters: Counters { count: 7, bytes: 1 << 20, ..Counters::default() },
        hold: Arc::default(),
        done: None,
    }
}

struct Nobody;

impl LogObserver for Nobody {
    fn applied(&self, _: Offset) {}

    fn failed(&self, _: &StoreError) {}
}

/// Where appends get their permits.
struct Admission(Store);

impl Admission {
    fn new() -> Self {
        Self(Store::open_by_hand(Arc::new(Arc::<Double>::default()), Clock::system()))
    }

    /// A notification for which nobody waits, as the only one of its log.
    fn patient(&self, offset: u64) -> Op {
        let notification = Notification {
            id: NotificationId::generate(),
            type_name: TypeName::NOTIFICATION,
            payload: Payload::Json(Bytes::from_static(b"{}")),
            from_user: None,
            topic: None,
            kind: None,
            collapse_key: None,
            not_for: [].into(),
            accepted_at: UnixMillis(1),
            expires_at: Some(UnixMillis(1 << 42)),
        };
        let mut permit = pin!(self.0.permit(notification.accounted_bytes()));
        let permit = loop {
            match permit.as_mut().now_or_never() {
                Some(permit) => break permit.unwrap(),
                None => self.0.turn(true),
            };
        };
        Op::Append {
            log: LogId::User(user()),
            offset: Offset::new(offset),
            notification: Arc::new(notification),
            replaces: None,
            emptied: None,
            remember: None,
            counters: Counters { count: 7, bytes: 1 << 20, ..Counters::default() },
            permit,
            observer: Arc::new(Nobody),
            done: None,
        }
    }
}

/// A queue whose writer sleeps, for an hour if nobody wakes it, for the one op that is there; and what it takes then.
fn asleep(op: Op) -> (Arc<Queue>, mpsc::Receiver<Vec<String>>) {
    let queue = Arc::new(Queue::default());
    assert!(queue.push(0, op).is_none());
    queue.state.lock().slots[0].since += LONG;
    let (woken, takes) = mpsc::channel();
    let writer = Arc::clone(&queue);
    thread::spawn(move || woken.send(taken(&writer)));
    while queue.state.lock().sleeps.is_none() {
        thread::yield_now();
    }
    (queue, takes)
}

fn next(takes: &mpsc::Receiver<Vec<String>>) -> Vec<String> {
    takes.recv_timeout(Duration::from_secs(20)).expect("the writer is woken")
}

/// The number at the front, and how many ops there are.
fn stand(queue: &Queue) -> (u64, usize) {
    let state = queue.state.lock();
    (state.front, state.ops)
}

fn taken(queue: &Queue) -> Vec<String> {
    shown(queue.next(None))
}

fn shown(next: Next) -> Vec<String> {
    let show = |op: &Op| match op {
        Op::Append { offset, counters, .. } => format!("+{offset} of {}", counters.count),
        Op::Delete { places, counters, .. } if places.len() == 1 && places[0].chunks == 0 => {
            format!("x{} of {}", places[0].offset, counters.count)
        }
        Op::Cursor { device, row, .. } => format!("{device}={}", row.cursor),
        Op::RemoveDevice { device, .. } => format!("-{device}"),
        other => format!("{other:?}"),
    };
    match next {
        Next::Commit { ops, .. } => ops.iter().map(show).collect(),
        Next::Alarm | Next::Stop => Vec::new(),
    }
}

#[test]
fn the_latest_cursor_of_a_device_takes_the_place_of_the_one_that_waits() {
    let queue = Queue::default();
    for op in [cursor("a", 1), cursor("b", 1), cursor("a", 2), remove("c"), cursor("a", 3)] {
        assert!(queue.push(0, op).is_none());
    }
    assert_eq!(taken(&queue), ["a=3", "b=1", "-c"]);
    assert!(queue.push(0, cursor("a", 4)).is_none());
    assert_eq!(taken(&queue), ["a=4"], "after the lazy delay, without an urgent op");
}

#[test]
fn a_cursor_does_not_move_in_front_of_its_devices_coming_and_going() {
    let queue = Queue::default();
    for op in [cursor("a", 1), remove("a"), cursor("a", 2), cursor("a", 3)] {
        assert!(queue.push(0, op).is_none());
    }
    assert_eq!(taken(&queue), ["a=1", "-a", "a=3"]);
}

#[test]
fn an_op_larger_than_a_batch_is_a_batch_of_its_own() {
    let queue = Queue::default();
    let delete = || Op::Delete {
        log: crate::types::LogId::User(user()),
        places: vec![crate::store::Place { offset: Offset::new(1), chunks: u16::MAX }],
        emptied: Vec::new(),
        counters: Default::default(),
        hold: Arc::default(),
        done: None,
    };
    assert!(queue.push(0, cursor("a", 1)).is_none());
    assert!(queue.push(0, delete()).is_none());
    assert!(queue.push(0, remove("a")).is_none());
    assert_eq!(taken(&queue), ["a=1"]);
    assert_eq!(taken(&queue).len(), 1);
    assert_eq!(taken(&queue), ["-a"]);
}

#[test]
fn a_closed_queue_takes_nothing_and_gives_what_it_has() {
    let queue = Queue::default();
    assert!(queue.push(0, cursor("a", 1)).is_none());
    queue.close();
    assert!(queue.push(0, cursor("a", 2)).is_some());
    assert_eq!(taken(&queue), ["a=1"]);
    assert!(matches!(queue.next(None), Next::Stop));
}

#[test]
fn what_was_staged_for_a_lost_engine_is_not_taken_however_late_it_comes() {
    let queue = Queue::default();
    for op in [cursor("a", 1), remove("b")] {
        assert!(queue.push(0, op).is_none());
    }
    assert_eq!(queue.discard(1).len(), 2);
    assert!(queue.push(0, remove("a")).is_some());
    assert!(queue.push(1, remove("a")).is_some(), "the engine is not there yet");
    queue.accept();
    assert!(queue.push(0, remove("a")).is_some());
    assert!(queue.push(1, cursor("a", 2)).is_none());
    assert!(queue.push(1, remove("c")).is_none());
    assert_eq!(taken(&queue), ["a=2", "-c"]);
    assert!(!queue.is_closed_within(Duration::ZERO));
    queue.close();
    assert!(queue.is_closed_within(Duration::MAX));
}

#[test]
fn what_nobody_waits_for_leaves_no_trace_where_something_urgent_is_always_there() {
    let (queue, admission) = (Queue::default(), Admission::new());
    for round in 0..1000 {
        for op in [remove("a"), admission.patient(round), admission.patient(round + 1), lazy(round)] {
            assert!(queue.push(0, op).is_none());
        }
        let first = 4 * round;
        assert_eq!(queue.recall(0, [(first + 1, true)].into_iter()).len(), 1);
        assert_eq!(taken(&queue).len(), 3);
        let state = queue.state.lock();
        assert_eq!((state.patient.len(), state.lazy.len(), state.slots.len()), (0, 0, 0), "in round {round}");
    }
}

#[test]
fn the_room_of_a_rush_is_given_back() {
    let queue = Queue::default();
    for number in 0..limits::STORE_QUEUE_SLOTS_MAX as u64 {
        assert!(queue.push(0, lazy(number)).is_none());
    }
    while queue.state.lock().ops > 0 {
        assert!(!taken(&queue).is_empty());
    }
    let state = queue.state.lock();
    assert_eq!((state.slots.capacity(), state.lazy.capacity()), (0, 0));
}

#[test]
fn the_places_of_what_is_taken_back_are_bounded() {
    let (queue, admission) = (Queue::default(), Admission::new());
    assert!(queue.push(0, lazy(1)).is_none());
    let now = queue.state.lock().slots[0].since;
    for number in 1..limits::STORE_QUEUE_SLOTS_MAX as u64 {
        assert!(queue.state.lock().next(now).is_none(), "nothing is due with {number} places");
        assert!(queue.push(0, admission.patient(number)).is_none());
        assert_eq!(queue.recall(0, [(number, true)].into_iter()).len(), 1);
    }
    let next = queue.state.lock().next(now);
    assert_eq!(next.map(shown), Some(vec!["x1 of 7".to_owned()]));
    assert_eq!(stand(&queue), (limits::STORE_QUEUE_SLOTS_MAX as u64, 0));
}

#[test]
fn an_urgent_op_wakes_a_writer_that_sleeps_for_a_patient_one_and_takes_that_along() {
    let admission = Admission::new();
    let (queue, takes) = asleep(admission.patient(1));
    assert!(queue.push(0, remove("a")).is_none());
    assert_eq!(next(&takes), ["+1 of 7", "-a"]);
}

#[test]
fn who_waits_for_what_is_there_wakes_a_writer_that_sleeps_for_a_patient_op() {
    let admission = Admission::new();
    let (queue, takes) = asleep(admission.patient(1));
    queue.hurry();
    assert_eq!(next(&takes), ["+1 of 7"]);
    // What comes later is not waited for.
    assert!(queue.push(0, admission.patient(2)).is_none());
    assert!(queue.next_now(false).is_none());
}

#[test]
fn a_writer_that_sleeps_for_a_lazy_op_wakes_earlier_for_a_patient_one() {
    let admission = Admission::new();
    let (queue, takes) = asleep(lazy(1));
    assert!(queue.push(0, admission.patient(2)).is_none());
    // The first is an hour ahead of its time, and goes along since the second must not pass it.
    assert_eq!(next(&takes), ["x1 of 7", "+2 of 7"]);
}

#[test]
fn what_is_due_takes_along_what_is_due_soon_and_not_what_came_just_now() {
    let (queue, admission) = (Queue::default(), Admission::new());
    for offset in 1..=3 {
        assert!(queue.push(0, admission.patient(offset)).is_none());
    }
    let mut state = queue.state.lock();
    let base = state.slots[0].since;
    state.slots[1].since = base + limits::STORE_PATIENCE / 4;
    state.slots[2].since = base + limits::STORE_PATIENCE * 9 / 10;
    let due = base + limits::STORE_PATIENCE;
    assert!(state.next(due - Duration::from_nanos(1)).is_none());
    assert_eq!(shown(state.next(due).unwrap()), ["+1 of 7", "+2 of 7"]);
    assert!(state.next(due).is_none());
    assert_eq!(state.due(), Some(base + limits::STORE_PATIENCE * 19 / 10));
}

#[test]
fn what_is_taken_back_in_the_middle_or_at_the_front_was_never_there() {
    let (queue, admission) = (Queue::default(), Admission::new());
    for op in [admission.patient(1), admission.patient(2), admission.patient(3), lazy(9), remove("a")] {
        assert!(queue.push(0, op).is_none());
    }
    let recalled = queue.recall(0, [(1, true), (2, false), (3, false)].into_iter());
    assert_eq!(recalled.len(), 1);
    assert_eq!(stand(&queue), (0, 4), "its place stands");
    assert!(queue.recall(0, [(1, true), (3, true), (4, true)].into_iter()).is_empty(), "it is gone; the others stay");
    let recalled = queue.recall(0, [(0, true), (2, false), (3, false)].into_iter());
    assert_eq!(recalled.len(), 1);
    assert_eq!(stand(&queue), (2, 3), "their places are gone");
    assert_eq!(taken(&queue), ["+3 of 5", "x9 of 5", "-a"]);
    let state = queue.state.lock();
    assert_eq!((state.ops, state.urgent, state.patient_ops, state.patient_bytes), (0, 0, 0, 0));
    assert_eq!(state.recalled, 2);
}

#[test]
fn what_belongs_to_a_lost_engine_is_not_taken_back() {
    let (queue, admission) = (Queue::default(), Admission::new());
    assert!(queue.push(0, admission.patient(1)).is_none());
    assert!(queue.recall(1, [(0, true)].into_iter()).is_empty());
    assert_eq!(queue.discard(1).len(), 1);
    assert!(queue.recall(0, [(0, true)].into_iter()).is_empty());
}
