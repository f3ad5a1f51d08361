//! What was delivered on the present session and handled so far: what may be acked, and what is a repeat.
//!
//! An `ack` confirms everything delivered up to its offset, in delivery order, so it goes as far as all is handled and
//! no further. Offsets of the two logs do not compare; the order of delivery is the order here. What was handled is
//! remembered by id, the latest so many, across sessions.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::message::Message;

/// An id that is longer is not remembered: the gateway's have at most 128 bytes.
const ID_BYTES_MAX: usize = 256;

#[derive(Debug)]
struct Entry {
    offset: u64,
    id: Option<Arc<str>>,
    done: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    /// Delivered on the present session and not acked, in order.
    in_flight: VecDeque<Entry>,
    /// The offset that an ack is to name.
    due: Option<u64>,
    /// The ids of what was handled, and the session that had brought it.
    seen: HashMap<Arc<str>, u64>,
    order: VecDeque<Arc<str>>,
    ids: usize,
}

impl Ledger {
    /// Remembers the latest `ids`; 0: none.
    pub fn new(ids: usize) -> Self {
        Self { in_flight: VecDeque::new(), due: None, seen: HashMap::new(), order: VecDeque::new(), ids }
    }

    /// A session begins or ends: nothing is in flight, and an ack that has not left must not.
    pub fn clear(&mut self) {
        self.in_flight.clear();
        self.due = None;
    }

    /// A stored message arrived, to be acked.
    pub fn delivered(&mut self, message: &Message) {
        if let Some(offset) = message.offset() {
            self.in_flight.push_back(Entry { offset, id: message.fields().id.clone(), done: false });
        }
    }

    /// How many are in flight.
    pub fn len(&self) -> usize {
        self.in_flight.len()
    }

    /// A message was handled, whichever session brought it: its id is remembered, and it counts where it is in flight
    /// now. Whether an ack has become due.
    pub fn handled(&mut self, message: &Message) -> bool {
        if let Some(id) = key(message).filter(|id| id.len() <= ID_BYTES_MAX && self.ids > 0)
            && !self.seen.contains_key(id)
        {
            self.seen.insert(Arc::clone(id), message.session());
            self.order.push_back(Arc::clone(id));
            if self.order.len() > self.ids
                && let Some(oldest) = self.order.pop_front()
            {
                self.seen.remove(&oldest);
            }
        }
        let Some(offset) = message.offset() else { return false };
        let id = &message.fields().id;
        for entry in self.in_flight.iter_mut().filter(|entry| entry.offset == offset && entry.id == *id) {
            entry.done = true;
        }
        let before = self.due;
        while self.in_flight.front().is_some_and(|entry| entry.done) {
            self.due = self.in_flight.pop_front().map(|entry| entry.offset);
        }
        self.due != before
    }

    /// Whether one like it was handled already.
    pub fn is_repeat(&self, message: &Message) -> bool {
        key(message).is_some_and(|id| self.seen.contains_key(id))
    }

    /// Whether one like it was handled that another session had brought.
    pub fn is_handled_elsewhere(&self, message: &Message) -> bool {
        key(message).and_then(|id| self.seen.get(id)).is_some_and(|session| *session != message.session())
    }

    /// The ack that is to be sent.
    pub fn take_ack(&mut self) -> Option<u64> {
        self.due.take()
    }

    /// Whether an ack is to be sent.
    pub fn has_ack(&self) -> bool {
        self.due.is_some()
    }
}

/// By what repeats are known. What clients send each other is not stored, never repeated, and carries ids of their own
/// making, which may coincide.
fn key(message: &Message) -> Option<&Arc<str>> {
    let fields = message.fields();
    fields.id.as_ref().filter(|_| fields.offset.is_some() || fields.from_user_id.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: &str, offset: u64) -> Message {
        Message::from_text(format!(r#"{{"type":"notification","id":"{id}","offset":{offset}}}"#).into()).unwrap()
    }

    #[test]
    fn an_ack_goes_no_further_than_everything_before_it_was_handled() {
        let mut ledger = Ledger::new(10);
        // Two logs: offsets go up and down.
        let all = [message("a", 10), message("b", 3), message("c", 11)];
        all.iter().for_each(|message| ledger.delivered(message));
        assert!(!ledger.handled(&all[1]));
        assert_eq!(ledger.take_ack(), None);
        assert!(ledger.handled(&all[0]));
        assert_eq!((ledger.take_ack(), ledger.take_ack()), (Some(3), None));
        assert!(ledger.handled(&all[2]));
        assert_eq!((ledger.take_ack(), ledger.len()), (Some(11), 0));
    }

    #[test]
    fn a_result_of_an_earlier_session_counts_only_where_the_same_was_delivered_again() {
        let mut ledger = Ledger::new(10);
        let (a, b) = (message("a", 1), message("b", 2));
        ledger.delivered(&a);
        ledger.delivered(&b);
        ledger.clear();
        assert!(!ledger.handled(&b), "nothing is in flight");
        ledger.delivered(&a);
        ledger.delivered(&message("x", 2));
        assert!(ledger.handled(&a));
        assert_eq!(ledger.take_ack(), Some(1), "the other one has the offset, and is another message");
        ledger.clear();
        ledger.delivered(&b);
        assert!(ledger.is_repeat(&b));
        assert!(ledger.handled(&b));
        assert_eq!(ledger.take_ack(), Some(2), "a repeat is acked in its turn");
    }

    #[test]
    fn an_ack_that_has_not_left_ends_with_its_session() {
        let mut ledger = Ledger::new(10);
        ledger.delivered(&message("a", 1));
        ledger.handled(&message("a", 1));
        ledger.clear();
        assert_eq!(ledger.take_ack(), None);
    }

    #[test]
    fn ids_are_remembered_up_to_a_number_and_only_once_handled() {
        let mut ledger = Ledger::new(2);
        assert!(!ledger.is_repeat(&message("a", 1)));
        for id in ["a", "b", "b", "c"] {
            ledger.handled(&message(id, 1));
        }
        assert!(!ledger.is_repeat(&message("a", 1)), "the oldest is forgotten");
        assert!(ledger.is_repeat(&message("b", 1)) && ledger.is_repeat(&message("c", 1)));
        assert_eq!((ledger.seen.len(), ledger.order.len()), (2, 2));
        ledger.handled(&message(&"x".repeat(300), 1));
        assert!(!ledger.is_repeat(&message(&"x".repeat(300), 1)));
        let mut none = Ledger::new(0);
        none.handled(&message("a", 1));
        assert!(!none.is_repeat(&message("a", 1)));
    }

    #[test]
    fn what_clients_send_each_other_is_never_a_repeat() {
        let mut ledger = Ledger::new(10);
        let say = |text: &'static str| Message::from_text(text.into()).unwrap();
        let bobs = say(r#"{"type":"chat","id":"1","fromUserId":"bob"}"#);
        ledger.handled(&bobs);
        assert!(!ledger.is_repeat(&bobs));
        let plain = say(r#"{"type":"chat","id":"1"}"#);
        ledger.handled(&plain);
        assert!(ledger.is_repeat(&plain));
    }
}
