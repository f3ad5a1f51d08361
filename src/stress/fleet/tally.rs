//! What a fleet counts: for each thread while it goes on, and together when it is asked.

use std::{collections::BTreeMap, sync::Arc};

use hdrhistogram::Histogram;

use crate::stress::track::Track;

/// The largest span that is told apart, in µs: an hour.
const MICROS_MAX: u64 = 3_600_000_000;

/// A histogram of spans in µs, to three digits.
pub fn histogram() -> Histogram<u64> {
    let made = Histogram::new_with_bounds(1, MICROS_MAX, 3);
    // These bounds are sound ones (a lowest of at least 1, a highest of at least twice that, up to five digits).
    made.unwrap_or_else(|_| unreachable!("1 to an hour with three digits"))
}

/// The counts of one thread since it was told to begin.
pub struct Tally {
    /// Sessions that were let in.
    pub connected: u64,
    /// Attempts that failed, by reason.
    pub failures: BTreeMap<String, u64>,
    /// Sessions that the other side ended, by close code; 1006 where there was none.
    pub closes: BTreeMap<u16, u64>,
    /// `error` messages and, of a session, `auth_failure`, by code; what broke RFC 6455, by rule.
    pub errors: BTreeMap<String, u64>,
    /// From the start of connecting to `auth_success`.
    pub connect: Histogram<u64>,
    /// From when a message was due to when it came.
    pub latency: Histogram<u64>,
    /// The same, for a message that was due before its session was there from that moment on.
    pub present: Histogram<u64>,
    /// When sessions were ended by the other side, in µs.
    pub left: Vec<u64>,
    /// When they came back ([`Doing::Return`](super::Doing::Return)), in µs.
    pub returns: Vec<u64>,
    /// From the start of connecting to the last of the expected messages.
    pub replay: Histogram<u64>,
    /// Messages of this run that came, repeats included, and their bytes.
    pub received: u64,
    /// The bytes of those messages.
    pub received_bytes: u64,
    /// Messages that had come before.
    pub duplicates: u64,
    /// Messages that came behind one that they should have preceded.
    pub out_of_order: u64,
    /// Messages that were for somebody else.
    pub misdelivered: u64,
    /// Messages of another run.
    pub foreign: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            connected: 0,
            failures: BTreeMap::new(),
            closes: BTreeMap::new(),
            errors: BTreeMap::new(),
            connect: histogram(),
            latency: histogram(),
            present: histogram(),
            left: Vec::new(),
            returns: Vec::new(),
            replay: histogram(),
            received: 0,
            received_bytes: 0,
            duplicates: 0,
            out_of_order: 0,
            misdelivered: 0,
            foreign: 0,
        }
    }
}

/// What one session got.
#[derive(Clone, Debug)]
pub struct SlotReport {
    /// Its place in the fleet.
    pub index: usize,
    /// Whether it is connected now.
    pub open: bool,
    /// Its user, by `auth_success`. `None`: it never had a session.
    pub user: Option<Arc<str>>,
    /// Its device, by `auth_success`.
    pub device: Option<String>,
    /// The echoes that it sent.
    pub echoes: u64,
    /// When the first of its echoes was due that could not be sent, in µs.
    pub overdue_micros: Option<u64>,
    /// What came, by lane.
    pub tracks: Vec<Track>,
}

/// What one thread says when asked.
pub struct Harvest {
    pub tally: Tally,
    pub slots: Vec<SlotReport>,
}

/// What a whole fleet counted.
#[derive(Default)]
pub struct Collected {
    /// The counts.
    pub tally: Tally,
    /// Each session, by its place.
    pub slots: Vec<SlotReport>,
}

impl Tally {
    /// Counts another one's in.
    pub fn add(&mut self, other: Tally) {
        self.connected += other.connected;
        for (of, more) in [(&mut self.failures, other.failures), (&mut self.errors, other.errors)] {
            for (what, count) in more {
                *of.entry(what).or_default() += count;
            }
        }
        for (code, count) in other.closes {
            *self.closes.entry(code).or_default() += count;
        }
        for (of, more) in [
            (&mut self.connect, &other.connect),
            (&mut self.latency, &other.latency),
            (&mut self.present, &other.present),
            (&mut self.replay, &other.replay),
        ] {
            // All have the same bounds.
            let _ = of.add(more);
        }
        self.left.extend(other.left);
        self.returns.extend(other.returns);
        self.received += other.received;
        self.received_bytes += other.received_bytes;
        self.duplicates += other.duplicates;
        self.out_of_order += other.out_of_order;
        self.misdelivered += other.misdelivered;
        self.foreign += other.foreign;
    }
}

impl Collected {
    pub(super) fn add(&mut self, harvest: Harvest) {
        self.tally.add(harvest.tally);
        self.slots.extend(harvest.slots);
    }
}
