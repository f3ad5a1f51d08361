//! Sessions, the heaviest first: how much each one gets and sends between two listings, and the best of each order.
//!
//! Of a listing of any length only the first rows of each order are kept, and of each session what its counters stood at.

use std::{collections::HashMap, rc::Rc, time::SystemTime};

use clap::ValueEnum;
use tokio::time::Instant;

use super::super::{
    output::{bytes, duration, span},
    sessions::state,
    table::{Column, age},
};
use crate::api::proto::Session;

/// What sessions are ordered by, the most first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// Bytes that wait to be written to its socket
    #[default]
    Outbox,
    /// Messages a second, both ways
    Messages,
    /// Bytes a second, both ways
    Bytes,
    /// Stored notifications handed to it and not confirmed
    Unconfirmed,
    /// The last time from a ping to its pong
    Rtt,
}

impl Order {
    /// All of them, in the order of [`Best`].
    pub const ALL: [Self; 5] = [Self::Outbox, Self::Messages, Self::Bytes, Self::Unconfirmed, Self::Rtt];

    /// The key that chooses it, and its name.
    pub const fn key(self) -> (&'static str, &'static str) {
        match self {
            Self::Outbox => ("o", "outbox"),
            Self::Messages => ("m", "messages"),
            Self::Bytes => ("b", "bytes"),
            Self::Unconfirmed => ("u", "unconfirmed"),
            Self::Rtt => ("r", "rtt"),
        }
    }

    /// The one that a key chooses.
    pub fn of(key: char) -> Option<Self> {
        Self::ALL.into_iter().find(|order| order.key().0.starts_with(key))
    }

    /// More is before less; what is alike goes by what waits, then by what is not confirmed.
    fn weight(self, row: &Row) -> (f64, u64, u32) {
        let first = match self {
            Self::Outbox => row.session.outbox_bytes as f64,
            Self::Messages => row.messages,
            Self::Bytes => row.bytes,
            Self::Unconfirmed => f64::from(row.session.unconfirmed),
            Self::Rtt => duration(row.session.rtt.as_ref()).as_secs_f64(),
        };
        (first, row.session.outbox_bytes, row.session.unconfirmed)
    }
}

/// A session, and what it gets and sends in a second.
#[derive(Debug)]
pub struct Row {
    /// As it was listed.
    pub session: Session,
    /// Messages a second, both ways.
    pub messages: f64,
    /// Bytes a second, both ways.
    pub bytes: f64,
}

/// The first rows of each order, and how many sessions there were.
#[derive(Debug, Default)]
pub struct Best {
    rows: [Vec<Rc<Row>>; Order::ALL.len()],
    /// All that were listed.
    pub total: usize,
}

impl Best {
    /// The heaviest by that.
    pub fn by(&self, order: Order) -> &[Rc<Row>] {
        &self.rows[order as usize]
    }

    fn trim(&mut self, keep: usize) {
        for (order, rows) in Order::ALL.into_iter().zip(&mut self.rows) {
            rows.sort_by(|one, other| {
                let (one_first, one_outbox, one_open) = order.weight(one);
                let (first, outbox, open) = order.weight(other);
                // By the id at last, so that rows do not jump.
                (first.total_cmp(&one_first))
                    .then((outbox, open).cmp(&(one_outbox, one_open)))
                    .then_with(|| one.session.session_id.cmp(&other.session.session_id))
            });
            rows.truncate(keep);
        }
    }
}

/// Messages and bytes, both ways, since a session began.
type Totals = (u64, u64);

/// What the listing before said.
pub struct Ranking {
    keep: usize,
    before: Option<(Instant, HashMap<String, Totals>)>,
}

impl Ranking {
    /// Keeps so many rows of each order.
    pub fn new(keep: usize) -> Self {
        Self { keep, before: None }
    }

    /// Whether rates are of the time between two listings, and not of a session's life.
    pub fn begin(&mut self, at: Instant) -> Listing<'_> {
        Listing { at, now: SystemTime::now(), ranking: self, seen: HashMap::new(), best: Best::default() }
    }
}

/// A listing that is under way.
pub struct Listing<'a> {
    ranking: &'a mut Ranking,
    at: Instant,
    now: SystemTime,
    seen: HashMap<String, Totals>,
    best: Best,
}

impl Listing<'_> {
    /// Takes a session.
    pub fn add(&mut self, session: Session) {
        let totals = (session.messages_received + session.messages_sent, session.bytes_received + session.bytes_sent);
        let (seconds, before) = match &self.ranking.before {
            // What is new since then has all of its traffic from since then.
            Some((at, seen)) => {
                let before = seen.get(&session.session_id).copied().unwrap_or_default();
                ((self.at - *at).as_secs_f64(), before)
            }
            None => {
                let began = session.connected_at.and_then(|at| SystemTime::try_from(at).ok());
                let age = began.and_then(|began| self.now.duration_since(began).ok()).unwrap_or_default();
                (age.as_secs_f64().max(1.0), (0, 0))
            }
        };
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds.max(0.001);
        let row = Rc::new(Row { messages: rate(totals.0, before.0), bytes: rate(totals.1, before.1), session });
        self.seen.insert(row.session.session_id.clone(), totals);
        self.best.rows.iter_mut().for_each(|rows| rows.push(Rc::clone(&row)));
        self.best.total += 1;
    }

    /// Lets go of what is not among the first rows.
    pub fn trim(&mut self) {
        self.best.trim(self.ranking.keep);
    }

    /// The first rows of each order.
    pub fn end(mut self) -> Best {
        self.trim();
        self.ranking.before = Some((self.at, self.seen));
        self.best
    }
}

/// What is shown of a session. What matters least goes first where the terminal is narrow.
pub const COLUMNS: [Column; 12] = [
    Column::text("USER", 6),
    Column::text("DEVICE", 6),
    Column::number("MSG/S"),
    Column::number("BYTES/S"),
    Column::number("OUTBOX"),
    Column::number("FRAMES"),
    Column::number("UNCONFIRMED"),
    Column::number("RTT"),
    Column::text("STATE", 7),
    Column::number("AGE"),
    Column::text("ADDRESS", 9),
    Column::text("SESSION", 36),
];

/// A session's cells, those of numbers wide enough that columns keep their places from one listing to the next.
pub fn cells(row: &Row, now: SystemTime) -> Vec<String> {
    let Row { session, .. } = row;
    vec![
        session.user_id.clone(),
        session.device.clone(),
        format!("{:>7.1}", row.messages),
        format!("{:>7}", bytes(row.bytes.round())),
        format!("{:>7}", bytes(session.outbox_bytes as f64)),
        session.outbox_messages.to_string(),
        session.unconfirmed.to_string(),
        format!("{:>6}", session.rtt.map_or_else(String::new, |rtt| span(duration(Some(&rtt))))),
        format!("{:7}", state(session.state())),
        format!("{:>6}", age(session.connected_at, now)),
        session.remote_address.clone(),
        session.session_id.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn session(id: usize, outbox_bytes: u64, messages_sent: u64, unconfirmed: u32) -> Session {
        Session { session_id: format!("{id:04}"), outbox_bytes, messages_sent, unconfirmed, ..Session::default() }
    }

    fn ids(best: &Best, order: Order) -> Vec<&str> {
        best.by(order).iter().map(|row| row.session.session_id.as_str()).collect()
    }

    #[test]
    fn each_order_keeps_its_own_first_rows_of_any_number_of_sessions() {
        let mut ranking = Ranking::new(2);
        let mut listing = ranking.begin(Instant::now());
        for page in 0..5 {
            for n in 0..100 {
                let id = page * 100 + n;
                listing.add(session(id, id as u64, 499 - id as u64, u32::from(id == 250)));
            }
            listing.trim();
            assert!(listing.best.rows.iter().all(|rows| rows.len() <= 2));
        }
        let best = listing.end();
        assert_eq!(best.total, 500);
        assert_eq!(ids(&best, Order::Outbox), ["0499", "0498"]);
        assert_eq!(ids(&best, Order::Messages), ["0000", "0001"]);
        assert_eq!(ids(&best, Order::Unconfirmed), ["0250", "0499"], "what is alike goes by what waits");
    }

    #[test]
    fn rates_are_of_the_time_between_two_listings() {
        let (mut ranking, start) = (Ranking::new(9), Instant::now());
        let mut listing = ranking.begin(start);
        listing.add(session(1, 0, 1000, 0));
        listing.end();
        let mut listing = ranking.begin(start + Duration::from_secs(2));
        listing.add(session(1, 0, 1010, 0));
        listing.add(session(2, 0, 40, 0));
        let best = listing.end();
        let rates: Vec<_> = best.by(Order::Messages).iter().map(|row| row.messages).collect();
        assert_eq!((ids(&best, Order::Messages), rates), (vec!["0002", "0001"], vec![20.0, 5.0]));
        // What has gone is forgotten.
        assert_eq!(ranking.before.as_ref().map(|(_, seen)| seen.len()), Some(2));
        ranking.begin(start + Duration::from_secs(4)).end();
        assert_eq!(ranking.before.as_ref().map(|(_, seen)| seen.len()), Some(0));
    }

    #[test]
    fn every_order_has_a_key_of_its_own_and_its_place() {
        for (place, order) in Order::ALL.into_iter().enumerate() {
            assert_eq!((order as usize, Order::of(order.key().0.chars().next().unwrap())), (place, Some(order)));
        }
        assert_eq!(Order::of('q'), None);
    }
}
