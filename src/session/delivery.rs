//! What a session stands to the logs it reads: where it is in each, what it was handed, what of that it confirmed.
//!
//! In each log a session is [`Flow::Pulling`] (pages come from the store) or [`Flow::Live`] (it is handed what is sent at
//! once). It turns Live only under the log's lock, when its position equals the last assigned offset; one notification
//! that does not fit makes it Pulling again. What is at or below its position is dropped. So nothing is skipped, nothing
//! comes twice within a session, and memory is bounded. What is in flight stands in one queue, in the order of delivery.

use std::collections::VecDeque;

use crate::{
    clock::Instant,
    limits,
    types::{NotificationId, Offset, UnixMillis},
};

/// How a session gets a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// From the store, a page at a time.
    #[default]
    Pulling,
    /// At once.
    Live,
}

/// A log that a session reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// Its user's own. Every session reads it.
    User,
    /// The one of durable broadcasts. Every session reads it.
    Broadcast,
    /// That of a durable topic, by the number that it has in this process.
    Topic(u32),
}

impl Log {
    /// Those that every session reads.
    pub const EVERY: [Log; 2] = [Log::User, Log::Broadcast];
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
    /// Its log.
    pub log: Log,
    /// Its offset.
    pub offset: Offset,
    /// Its id.
    pub id: NotificationId,
    /// When it was handed over.
    pub handed_at: Instant,
    /// When the last of it went into the socket, where that is known.
    pub written_at: Option<Instant>,
    /// When the gateway accepted it.
    pub accepted_at: UnixMillis,
}

/// A notification that is in flight.
#[derive(Debug)]
pub struct InFlight {
    /// Its log.
    pub log: Log,
    /// Its offset.
    pub offset: Offset,
    /// Its id.
    pub id: NotificationId,
    /// When the last of it went into the socket.
    pub written_at: Option<Instant>,
    handed_at: Instant,
    accepted_at: UnixMillis,
    bytes: u32,
    /// Its TTL ran out before it was written: it ends as expired and not as confirmed.
    expired: bool,
}

/// A position, and in the highest bit, which no offset has, whether the session is Live: one word of each session's memory.
#[derive(Clone, Copy, Debug, Default)]
struct Place(u64);

impl Place {
    const LIVE: u64 = 1 << 63;
    /// In a topic that the session is not in: nothing of it is for it.
    const NONE: Place = Place(Self::LIVE | Offset::MAX.get());

    /// Pulling, from there.
    fn behind(position: Offset) -> Self {
        Self(position.get())
    }

    fn flow(self) -> Flow {
        if self.0 & Self::LIVE == 0 { Flow::Pulling } else { Flow::Live }
    }

    fn position(self) -> Offset {
        Offset::new(self.0 & !Self::LIVE)
    }

    fn set_flow(&mut self, flow: Flow) {
        self.0 = self.position().get() | if flow == Flow::Live { Self::LIVE } else { 0 };
    }

    fn set_position(&mut self, position: Offset) {
        self.0 = (self.0 & Self::LIVE) | position.get();
    }

    fn advance(&mut self, to: Offset) {
        self.set_position(self.position().max(to));
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Delivery {
    user: Place,
    broadcast: Place,
    /// Where it is in the durable topics that it is in.
    #[allow(clippy::box_collection, reason = "mostly not there, in every session's memory")]
    topics: Option<Box<Vec<(u32, Place)>>>,
    /// In the order of delivery.
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    /// The sequence of the first in flight. Sequences count what was handed over, from 0.
    first: u64,
    /// What left as expired: cursors move past it, and nobody confirmed it.
    #[allow(clippy::box_collection, reason = "hardly ever there, in every session's memory")]
    expired: Option<Box<Vec<(Log, Offset)>>>,
}

impl Delivery {
    fn place(&self, log: Log) -> Place {
        match log {
            Log::User => self.user,
            Log::Broadcast => self.broadcast,
            Log::Topic(number) => {
                let found = self.topics().iter().find(|(known, _)| *known == number);
                found.map_or(Place::NONE, |(_, place)| *place)
            }
        }
    }

    fn topics(&self) -> &[(u32, Place)] {
        self.topics.as_ref().map_or(&[], |topics| topics)
    }

    /// `None`: a topic that it is not in.
    fn place_mut(&mut self, log: Log) -> Option<&mut Place> {
        match log {
            Log::User => Some(&mut self.user),
            Log::Broadcast => Some(&mut self.broadcast),
            Log::Topic(number) => {
                let found = self.topics.as_mut()?.iter_mut().find(|(known, _)| *known == number);
                found.map(|(_, place)| place)
            }
        }
    }

    /// Starts behind `cursor`, Pulling.
    pub fn start(&mut self, log: Log, cursor: Offset) {
        if let Log::Topic(number) = log
            && self.place_mut(log).is_none()
        {
            self.topics.get_or_insert_default().push((number, Place::default()));
        }
        if let Some(place) = self.place_mut(log) {
            *place = Place::behind(cursor);
        }
    }

    /// It is not in that topic any more. What is in flight of it stays so.
    pub fn stop(&mut self, topic: Log) {
        if let Some(topics) = &mut self.topics {
            topics.retain(|(known, _)| Log::Topic(*known) != topic);
            if topics.is_empty() {
                self.topics = None;
            }
        }
    }

    /// Whether it is in a durable topic no more: nothing of that log is for it.
    pub fn is_outside(&self, log: Log) -> bool {
        matches!(log, Log::Topic(number) if !self.topics().iter().any(|(known, _)| *known == number))
    }

    /// The durable topics that it pulls.
    pub fn pulled_topics(&self) -> impl Iterator<Item = u32> {
        self.topics().iter().filter(|(_, place)| place.flow() == Flow::Pulling).map(|(number, _)| *number)
    }

    /// Turns Live; the caller holds the log's lock and found nothing above the position up to `last`.
    pub fn go_live(&mut self, log: Log, last: Offset) {
        if let Some(place) = self.place_mut(log) {
            place.set_flow(Flow::Live);
            place.advance(last);
        }
    }

    /// Pulls a log from where it is.
    pub fn pull(&mut self, log: Log) {
        if let Some(place) = self.place_mut(log) {
            place.set_flow(Flow::Pulling);
        }
    }

    /// How the session gets a log.
    pub fn flow(&self, log: Log) -> Flow {
        self.place(log).flow()
    }

    /// Whether it is Live in every log.
    pub fn is_live(&self) -> bool {
        Log::EVERY.iter().all(|log| self.flow(*log) == Flow::Live) && self.pulled_topics().next().is_none()
    }

    /// Everything of the log up to here was handed over, or was not there.
    pub fn position(&self, log: Log) -> Offset {
        self.place(log).position()
    }

    /// A page found nothing more up to here.
    pub fn advance(&mut self, log: Log, to: Offset) {
        if let Some(place) = self.place_mut(log) {
            place.advance(to);
        }
    }

    /// Offers what was just sent. `fits_outbox` says whether the outbox has room for it.
    #[allow(clippy::too_many_arguments, reason = "what is offered, and the room there is for it")]
    pub fn offer(
        &mut self,
        log: Log,
        offset: Offset,
        id: &NotificationId,
        bytes: usize,
        window: usize,
        fits_outbox: bool,
        now: Instant,
    ) -> Offer {
        if self.flow(log) == Flow::Pulling {
            return Offer::Behind;
        }
        if offset <= self.position(log) {
            return Offer::Had;
        }
        if !fits_outbox || !self.admits(bytes, window) {
            self.pull(log);
            return Offer::Behind;
        }
        Offer::Taken(self.hand_over(log, offset, id, bytes, now))
    }

    /// Takes a notification into the window; the caller has asked [`Delivery::admits`]. Returns its sequence.
    pub fn hand_over(&mut self, log: Log, offset: Offset, id: &NotificationId, bytes: usize, now: Instant) -> u64 {
        let sequence = self.next_sequence();
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let (id, handed_at, accepted_at) = (id.clone(), now, UnixMillis(0));
        let entry = InFlight { log, offset, id, bytes, expired: false, handed_at, accepted_at, written_at: None };
        self.in_flight.push_back(entry);
        self.in_flight_bytes += bytes as usize;
        if let Some(place) = self.place_mut(log) {
            place.set_position(offset);
        }
        sequence
    }

    /// When the gateway accepted what was handed over last.
    pub fn note_accepted(&mut self, at: UnixMillis) {
        if let Some(entry) = self.in_flight.back_mut() {
            entry.accepted_at = at;
        }
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

    /// Whether something of that log is in flight.
    pub fn has_in_flight(&self, log: Log) -> bool {
        self.in_flight.iter().any(|entry| entry.log == log)
    }

    /// How many are in flight.
    pub fn unconfirmed(&self) -> usize {
        self.in_flight.len()
    }

    /// The first in flight: whatever came before it is confirmed.
    pub fn head(&self) -> Option<&InFlight> {
        self.in_flight.front()
    }

    /// The sequence that the next notification gets.
    pub fn next_sequence(&self) -> u64 {
        self.first + self.in_flight.len() as u64
    }

    /// When the oldest in flight was handed over.
    pub fn oldest_handed_at(&self) -> Option<Instant> {
        self.in_flight.front().map(|entry| entry.handed_at)
    }

    fn at_sequence(&mut self, sequence: u64) -> Option<&mut InFlight> {
        let index = sequence.checked_sub(self.first).and_then(|index| usize::try_from(index).ok())?;
        self.in_flight.get_mut(index)
    }

    /// Everything up to `sequence` is in the socket.
    pub fn written(&mut self, sequence: u64, now: Instant) {
        let count = (sequence + 1).saturating_sub(self.first);
        for entry in self.in_flight.iter_mut().take(usize::try_from(count).unwrap_or(usize::MAX)).rev() {
            if entry.written_at.replace(now).is_some() {
                break;
            }
        }
    }

    /// Its TTL ran out before it was written.
    pub fn expire(&mut self, sequence: u64) {
        if let Some(entry) = self.at_sequence(sequence) {
            entry.expired = true;
        }
        // At the head there is nobody left to confirm it for.
        while self.in_flight.front().is_some_and(|entry| entry.expired) {
            self.pop();
        }
    }

    /// Passes what came from this very session, and is not for it. Nothing where the session pulls the log.
    pub fn pass(&mut self, log: Log, offset: Offset) {
        if self.flow(log) == Flow::Live {
            self.advance(log, offset);
        }
    }

    /// Confirms everything handed over before `sequence`.
    pub fn confirm_below(&mut self, sequence: u64) -> Vec<Confirmed> {
        let count = sequence.saturating_sub(self.first).min(self.in_flight.len() as u64);
        let mut confirmed = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
        for _ in 0..count {
            if let Some(entry) = self.pop().filter(|entry| !entry.expired) {
                let InFlight { log, offset, id, handed_at, written_at, accepted_at, .. } = entry;
                confirmed.push(Confirmed { log, offset, id, handed_at, written_at, accepted_at });
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

    /// What has left as expired since it was asked last, by log and offset.
    pub fn take_expired(&mut self) -> Vec<(Log, Offset)> {
        self.expired.take().map_or_else(Vec::new, |expired| *expired)
    }

    fn pop(&mut self) -> Option<InFlight> {
        let entry = self.in_flight.pop_front()?;
        if entry.expired {
            self.expired.get_or_insert_default().push((entry.log, entry.offset));
        }
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
        delivery.go_live(Log::User, Offset::ZERO);
        delivery
    }

    fn offer(delivery: &mut Delivery, offset: u64, bytes: usize) -> Offer {
        delivery.offer(Log::User, Offset::new(offset), &NotificationId::generate(), bytes, 4, true, Instant::now())
    }

    #[test]
    fn a_pulling_session_takes_nothing_live() {
        let mut delivery = Delivery::default();
        delivery.start(Log::User, Offset::new(5));
        assert_eq!(offer(&mut delivery, 6, 10), Offer::Behind);
        assert_eq!(delivery.position(Log::User), Offset::new(5));
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
        assert_eq!(delivery.position(Log::User), Offset::new(4));
    }

    #[test]
    fn an_outbox_without_room_makes_a_session_pull() {
        let mut delivery = live();
        let id = NotificationId::generate();
        assert_eq!(delivery.offer(Log::User, Offset::new(1), &id, 10, 4, false, Instant::now()), Offer::Behind);
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
        assert_eq!(delivery.take_expired(), [(Log::User, Offset::new(2)), (Log::User, Offset::new(4))]);
    }

    #[test]
    fn each_log_has_a_place_of_its_own_and_all_share_the_window() {
        let mut delivery = live();
        let id = NotificationId::generate();
        let broadcast =
            |delivery: &mut Delivery, offset| delivery.offer(Log::Broadcast, offset, &id, 1, 4, true, Instant::now());
        assert_eq!(broadcast(&mut delivery, Offset::new(9)), Offer::Behind, "it pulls that log yet");
        delivery.go_live(Log::Broadcast, Offset::new(9));
        assert!(!matches!(offer(&mut delivery, 5, 1), Offer::Had), "below the other log's place, not below its own");
        assert!(matches!(broadcast(&mut delivery, Offset::new(12)), Offer::Taken(1)));
        offer(&mut delivery, 13, 1);
        offer(&mut delivery, 14, 1);
        assert_eq!(broadcast(&mut delivery, Offset::new(15)), Offer::Behind, "the window is full");
        assert_eq!((delivery.flow(Log::User), delivery.flow(Log::Broadcast)), (Flow::Live, Flow::Pulling));
        let confirmed = delivery.confirm_through(Offset::new(13));
        let confirmed: Vec<_> = confirmed.iter().map(|one| (one.log, one.offset.get())).collect();
        assert_eq!(confirmed, [(Log::User, 5), (Log::Broadcast, 12), (Log::User, 13)]);
    }

    #[test]
    fn a_topic_has_a_place_from_its_start_to_its_stop() {
        let mut delivery = live();
        delivery.go_live(Log::Broadcast, Offset::ZERO);
        let (id, now) = (NotificationId::generate(), Instant::now());
        let topic = |delivery: &mut Delivery, number, offset| {
            delivery.offer(Log::Topic(number), Offset::new(offset), &id, 1, 4, true, now)
        };
        assert_eq!(topic(&mut delivery, 7, 5), Offer::Had, "it is not in it");
        delivery.start(Log::Topic(7), Offset::new(3));
        delivery.start(Log::Topic(8), Offset::new(4));
        assert!(!delivery.is_live());
        assert_eq!(delivery.pulled_topics().collect::<Vec<_>>(), [7, 8]);
        delivery.go_live(Log::Topic(7), Offset::new(4));
        assert!(matches!(topic(&mut delivery, 7, 5), Offer::Taken(0)));
        assert_eq!(topic(&mut delivery, 8, 6), Offer::Behind);
        delivery.stop(Log::Topic(7));
        assert_eq!(topic(&mut delivery, 7, 8), Offer::Had);
        delivery.advance(Log::Topic(7), Offset::new(9));
        delivery.go_live(Log::Topic(8), Offset::new(6));
        assert!(delivery.is_live());
        assert_eq!(delivery.confirm_below(1).iter().map(|one| one.log).collect::<Vec<_>>(), [Log::Topic(7)]);
        delivery.stop(Log::Topic(8));
        assert!(delivery.topics.is_none());
    }

    #[test]
    fn what_is_its_own_is_passed() {
        let mut delivery = live();
        delivery.pass(Log::User, Offset::new(3));
        assert_eq!(offer(&mut delivery, 3, 1), Offer::Had);
        delivery.pull(Log::User);
        delivery.pass(Log::User, Offset::new(5));
        assert_eq!(delivery.position(Log::User), Offset::new(3), "it pulls what is before that");
    }

    #[test]
    fn what_went_into_the_socket_is_known_from_the_head_on() {
        let mut delivery = live();
        let now = Instant::now();
        for offset in 1..=3 {
            offer(&mut delivery, offset, 1);
        }
        assert!(delivery.head().is_some_and(|head| head.written_at.is_none()));
        delivery.written(1, now);
        assert_eq!(delivery.head().and_then(|head| head.written_at), Some(now));
        delivery.confirm_below(2);
        assert!(delivery.head().is_some_and(|head| head.written_at.is_none()));
    }
}
