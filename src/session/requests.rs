//! Requests of one session that services have yet to answer, at most [`limits::OPEN_REQUESTS_MAX`]. One leaves by its
//! reply, at its deadline, or with the session.

use std::{any::Any, collections::VecDeque};

use crate::{clock::Instant, limits};

/// Open requests, in the order of their deadlines, which is that of their coming: all have the same time.
#[derive(Debug, Default)]
pub struct Requests(VecDeque<OpenRequest>);

#[derive(Debug)]
struct OpenRequest {
    /// The client's own id. Nothing keeps a client from using one twice: then each has its own end.
    id: Box<str>,
    deadline: Instant,
    /// What is let go of with it.
    held: Option<Held>,
}

/// Something that lasts as long as a request does.
pub type Held = Box<dyn Any + Send>;

impl Requests {
    /// One more; false where there are as many as may be.
    pub fn open(&mut self, id: &str, deadline: Instant) -> bool {
        let has_room = self.0.len() < limits::OPEN_REQUESTS_MAX;
        if has_room {
            self.0.push_back(OpenRequest { id: id.into(), deadline, held: None });
        }
        has_room
    }

    /// The last one with this id holds something from now on, unless it has ended already.
    pub fn hold(&mut self, id: &str, held: Held) {
        if let Some(open) = self.0.iter_mut().rfind(|open| *open.id == *id) {
            open.held = Some(held);
        }
    }

    /// Forgets the last one with this id.
    pub fn withdraw(&mut self, id: &str) {
        if let Some(place) = self.0.iter().rposition(|open| *open.id == *id) {
            self.0.remove(place);
        }
    }

    /// The first one with this id has its reply. Its deadline.
    pub fn answer(&mut self, id: &str) -> Option<Instant> {
        let place = self.0.iter().position(|open| *open.id == *id)?;
        Some(self.0.remove(place)?.deadline)
    }

    /// Takes out the first one whose deadline has come.
    pub fn take_due(&mut self, now: Instant) -> Option<Box<str>> {
        let due = self.0.front().is_some_and(|open| open.deadline <= now);
        if due { self.0.pop_front().map(|open| open.id) } else { None }
    }

    /// The first deadline.
    pub fn first_deadline(&self) -> Option<Instant> {
        self.0.front().map(|open| open.deadline)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_request_ends_once_by_its_reply_or_at_its_deadline() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut requests = Requests::default();
        for (id, end) in [("a", 1), ("b", 2), ("a", 3), ("c", 3)] {
            assert!(requests.open(id, at(end)));
        }
        assert_eq!(requests.first_deadline(), Some(at(1)));
        assert_eq!(requests.answer("a"), Some(at(1)), "the first of two with one id");
        assert_eq!(requests.answer("x"), None);
        assert_eq!(requests.take_due(at(1)), None);
        assert_eq!(requests.take_due(at(2)).as_deref(), Some("b"));
        assert_eq!(requests.take_due(at(2)), None);
        requests.withdraw("c");
        assert_eq!(requests.take_due(at(9)).as_deref(), Some("a"));
        assert_eq!((requests.take_due(at(9)), requests.len(), requests.first_deadline()), (None, 0, None));
    }

    #[test]
    fn as_many_are_open_as_may_and_no_more() {
        let now = Instant::now();
        let mut requests = Requests::default();
        for n in 0..limits::OPEN_REQUESTS_MAX {
            assert!(requests.open(&n.to_string(), now));
        }
        assert!(!requests.open("more", now));
        assert!(requests.answer("7").is_some() && requests.open("more", now));
        assert_eq!(requests.len(), limits::OPEN_REQUESTS_MAX);
    }
}
