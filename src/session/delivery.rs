//! What a session stands to its user's log: where it is, what it was handed, what of that it confirmed.
//!
//! A session is [`Flow::Pulling`] (pages come from the store) or [`Flow::Live`] (it is handed what is sent at once).
//! It turns Live only under the log's lock, when its position equals the last assigned offset; one notification that
//! does not fit makes it Pulling again. What is at or below its position is dropped. So nothing is skipped, nothing
//! comes twice within a session, and memory is bounded.

use std::collections::VecDeque;

use crate::{
    clock::Instant,
    limits,
    types::{NotificationId, Offset},
};

/// How a session gets its user's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// From the store, a page at a time.
    Pulling,
    /// At once.
    Live,
}

/// What became of a notification that was offered to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It was taken: append its frame, under this sequence.
    Taken(u64),
    /// The session will pull it from the store.
    Behind,
    /// The session had it already.
    Had,
}

/// A notification that the peer confirmed.
#[derive(Clone, Debug)]
pub struct Confirmed {
    /// Its offset.
    pub offset: Offset,
    /// Its id.
    pub id: NotificationId,
    /// When it was handed over.
    pub handed_at: Instant,
}

#[derive(Debug)]
struct InFlight {
    offset: Offset,
    id: NotificationId,
    bytes: u32,
    /// Its TTL ran out before it was written: it ends as expired and not as confirmed.
    expired: bool,
    handed_at: Instant,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Delivery {
    flow: Flow,
    position: Offset,
    /// In the order of delivery.
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    /// The sequence of the first in flight. Sequences count what was handed over, from 0.
    first: u64,
}

impl Default for Delivery {
    fn default() -> Self {
        Self { flow: Flow::Pulling, position: Offset::ZERO, in_flight: VecDeque::new(), in_flight_bytes: 0, first: 0 }
    }
}

impl Delivery {
    /// Starts behind `cursor`, Pulling.
    pub fn start(&mut self, cursor: Offset) {
        self.flow = Flow::Pulling;
        self.position = cursor;
    }

    /// Turns Live; the caller holds the log's lock and found nothing above the position up to `last`.
    pub fn go_live(&mut self, last: Offset) {
        self.flow = Flow::Live;
        self.position = self.position.max(last);
    }

    /// Pulls from where it is.
    pub fn pull(&mut self) {
        self.flow = Flow::Pulling;
    }

    /// How the session gets its log.
    pub fn flow(&self) -> Flow {
        self.flow
    }

    /// Everything up to here was handed over, or was not there.
    pub fn position(&self) -> Offset {
        self.position
    }

    /// A page found nothing more up to here.
    pub fn advance(&mut self, to: Offset) {
        self.position = self.position.max(to);
    }

    /// Offers what was just sent. `fits_outbox` says whether the outbox has room for it.
    pub fn offer(
        &mut self,
        offset: Offset,
        id: &NotificationId,
        bytes: usize,
        window: usize,
        fits_outbox: bool,
        now: Instant,
    ) -> Offer {
        if self.flow == Flow::Pulling {
            return Offer::Behind;
        }
        if offset <= self.position {
            return Offer::Had;
        }
        if !fits_outbox || !self.admits(bytes, window) {
            self.flow = Flow::Pulling;
            return Offer::Behind;
        }
        Offer::Taken(self.hand_over(offset, id, bytes, now))
    }

    /// Takes a notification into the window; the caller has asked [`Delivery::admits`]. Returns its sequence.
    pub fn hand_over(&mut self, offset: Offset, id: &NotificationId, bytes: usize, now: Instant) -> u64 {
        let sequence = self.next_sequence();
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.in_flight.push_back(InFlight { offset, id: id.clone(), bytes, expired: false, handed_at: now });
        self.in_flight_bytes += bytes as usize;
        self.position = offset;
        sequence
    }

    /// Whether the window has room. An empty one takes one notification of any size.
    pub fn admits(&self, bytes: usize, window: usize) -> bool {
        self.in_flight.is_empty()
            || (self.in_flight.len() < window && self.in_flight_bytes + bytes <= limits::WINDOW_BYTES_MAX)
    }

    /// How many more the window takes, in notifications and bytes; what is given for an empty one is a page's size.
    pub fn room(&self, window: usize) -> (usize, usize) {
        let count = window.saturating_sub(self.in_flight.len());
        (count, limits::WINDOW_BYTES_MAX.saturating_sub(self.in_flight_bytes))
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// How many are in flight.
    pub fn unconfirmed(&self) -> usize {
        self.in_flight.len()
    }

    /// The sequence that the next notification gets.
    pub fn next_sequence(&self) -> u64 {
        self.first + self.in_flight.len() as u64
    }

    /// When the oldest in flight was handed over.
    pub fn oldest_handed_at(&self) -> Option<Instant> {
        self.in_flight.front().map(|entry| entry.handed_at)
    }

    /// Its TTL ran out before it was written.
    pub fn expire(&mut self, sequence: u64) {
        let index = sequence.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        if let Some(entry) = index.and_then(|index| self.in_flight.get_mut(index)) {
            entry.expired = true;
        }
        // At the head there is nobody left to confirm it for.
        while self.in_flight.front().is_some_and(|entry| entry.expired) {
            self.pop();
        }
    }

    /// Confirms everything handed over before `sequence`.
    pub fn confirm_below(&mut self, sequence: u64) -> Vec<Confirmed> {
        let count = sequence.saturating_sub(self.first).min(self.in_flight.len() as u64);
        let mut confirmed = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
        for _ in 0..count {
            if let Some(entry) = self.pop().filter(|entry| !entry.expired) {
                confirmed.push(Confirmed { offset: entry.offset, id: entry.id, handed_at: entry.handed_at });
            }
        }
        if self.in_flight.is_empty() {
            self.in_flight = VecDeque::new();
        }
        confirmed
    }

    /// Confirms everything up to and including `offset`; nothing where it is not in flight.
    pub fn confirm_through(&mut self, offset: Offset) -> Vec<Confirmed> {
        match self.in_flight.iter().position(|entry| entry.offset == offset) {
            Some(index) => self.confirm_below(self.first + index as u64 + 1),
            None => Vec::new(),
        }
    }

    fn pop(&mut self) -> Option<InFlight> {
        let entry = self.in_flight.pop_front()?;
        self.first += 1;
        self.in_flight_bytes -= entry.bytes as usize;
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> Delivery {
        let mut delivery = Delivery::default();
        delivery.go_live(Offset::ZERO);
        delivery
    }

    fn offer(delivery: &mut Delivery, offset: u64, bytes: usize) -> Offer {
        delivery.offer(Offset::new(offset), &NotificationId::generate(), bytes, 4, true, Instant::now())
    }

    #[test]
    fn a_pulling_session_takes_nothing_live() {
        let mut delivery = Delivery::default();
        delivery.start(Offset::new(5));
        assert_eq!(offer(&mut delivery, 6, 10), Offer::Behind);
        assert_eq!(delivery.position(), Offset::new(5));
    }

    #[test]
    fn a_full_window_makes_a_session_pull_and_stay_so() {
        let mut delivery = live();
        for offset in 1..=4 {
            assert!(matches!(offer(&mut delivery, offset, 10), Offer::Taken(_)));
        }
        assert_eq!(offer(&mut delivery, 5, 10), Offer::Behind);
        delivery.confirm_below(4);
        assert_eq!(offer(&mut delivery, 6, 10), Offer::Behind, "6 must not overtake 5");
        assert_eq!(delivery.position(), Offset::new(4));
    }

    #[test]
    fn an_outbox_without_room_makes_a_session_pull() {
        let mut delivery = live();
        let id = NotificationId::generate();
        assert_eq!(delivery.offer(Offset::new(1), &id, 10, 4, false, Instant::now()), Offer::Behind);
        assert_eq!(offer(&mut delivery, 2, 10), Offer::Behind);
    }

    #[test]
    fn an_empty_window_takes_one_of_any_size() {
        let mut delivery = live();
        assert!(matches!(offer(&mut delivery, 1, limits::WINDOW_BYTES_MAX * 3), Offer::Taken(_)));
        assert_eq!(offer(&mut delivery, 2, 1), Offer::Behind);
    }

    #[test]
    fn what_was_had_is_dropped() {
        let mut delivery = live();
        offer(&mut delivery, 5, 1);
        assert_eq!(offer(&mut delivery, 5, 1), Offer::Had);
        assert_eq!(offer(&mut delivery, 4, 1), Offer::Had);
    }

    #[test]
    fn the_expired_leave_without_being_confirmed() {
        let mut delivery = live();
        for offset in 1..=3 {
            offer(&mut delivery, offset, 1);
        }
        delivery.expire(1);
        assert_eq!(delivery.unconfirmed(), 3, "order is kept until the head goes");
        let confirmed = delivery.confirm_below(3);
        assert_eq!(confirmed.iter().map(|c| c.offset.get()).collect::<Vec<_>>(), [1, 3]);
        offer(&mut delivery, 4, 1);
        delivery.expire(3);
        assert!(delivery.is_empty());
        assert!(delivery.confirm_below(4).is_empty());
    }
}
