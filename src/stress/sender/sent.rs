//! What became of what was sent, by the gateway's answers.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use hdrhistogram::Histogram;
use tonic::{Code, Status};

use super::Numbered;
use crate::{api::proto::Outcome, stress::fleet::histogram};

/// What the gateway answered.
pub struct Sent {
    /// How many were sent, by key: their numbers are those below.
    pub sent: HashMap<usize, u64>,
    /// Those that need not come: refused, or of unknown fate.
    pub excused: HashMap<usize, BTreeSet<u64>>,
    /// Of those, the ones that must not come: the gateway said that nobody gets them.
    pub barred: HashMap<usize, BTreeSet<u64>>,
    /// Calls that failed, by code.
    pub failed: BTreeMap<String, u64>,
    /// Of those, the ones whose message may have been delivered nevertheless.
    pub unknown: u64,
    /// How many times something was sent again.
    pub again: u64,
    /// Calls that succeeded, by outcome.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// From when a call was due to its answer, in µs.
    pub answers: Histogram<u64>,
    /// When the last answer came, in µs.
    pub last_micros: u64,
}

impl Default for Sent {
    fn default() -> Self {
        Self {
            sent: HashMap::new(),
            excused: HashMap::new(),
            barred: HashMap::new(),
            failed: BTreeMap::new(),
            unknown: 0,
            again: 0,
            outcomes: BTreeMap::new(),
            answers: histogram(),
            last_micros: 0,
        }
    }
}

impl Sent {
    /// How many were sent.
    pub fn total(&self) -> u64 {
        self.sent.values().sum()
    }

    /// How many the gateway took.
    pub fn accepted(&self) -> u64 {
        self.answers.len()
    }

    /// How many of a key's were sent.
    pub fn of(&self, key: usize) -> u64 {
        self.sent.get(&key).copied().unwrap_or_default()
    }

    /// How many of a key's must come.
    pub fn due(&self, key: usize) -> u64 {
        self.of(key).saturating_sub(self.excused.get(&key).map_or(0, |set| set.len() as u64))
    }

    pub(super) fn answered(&mut self, job: &Numbered, answer: Result<Outcome, Status>, now_micros: u64) {
        let excused = match answer {
            Ok(outcome) => {
                self.last_micros = self.last_micros.max(now_micros);
                self.answers.saturating_record(now_micros.saturating_sub(job.due_micros).max(1));
                *self.outcomes.entry(outcome.as_str_name()).or_default() += 1;
                match outcome {
                    Outcome::Stored | Outcome::Accepted | Outcome::Confirmed => None,
                    Outcome::Dropped => Some(true),
                    _ => Some(false),
                }
            }
            Err(status) => {
                let sure = is_refusal(&status);
                self.unknown += u64::from(!sure);
                *self.failed.entry(format!("{:?}", status.code())).or_default() += 1;
                Some(sure)
            }
        };
        if let Some(barred) = excused {
            self.excused.entry(job.key).or_default().insert(job.number);
            if barred {
                self.barred.entry(job.key).or_default().insert(job.number);
            }
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        // Each key is one caller's.
        self.sent.extend(other.sent);
        self.excused.extend(other.excused);
        self.barred.extend(other.barred);
        for (what, count) in other.failed {
            *self.failed.entry(what).or_default() += count;
        }
        self.unknown += other.unknown;
        self.again += other.again;
        for (what, count) in other.outcomes {
            *self.outcomes.entry(what).or_default() += count;
        }
        // All have the same bounds.
        let _ = self.answers.add(other.answers);
        self.last_micros = self.last_micros.max(other.last_micros);
    }
}

/// Whether the gateway said that nothing was sent. After any other failure something may have been.
pub(super) fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::AlreadyExists
            | Code::ResourceExhausted
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_accepted_must_come_and_what_was_refused_must_not() {
        let mut sent = Sent::default();
        sent.sent.insert(3, 6);
        let answers = [
            Ok(Outcome::Accepted),
            Ok(Outcome::Dropped),
            Ok(Outcome::Expired),
            Err(Status::resource_exhausted("full")),
            Err(Status::unavailable("gone")),
            Ok(Outcome::Stored),
        ];
        for (number, answer) in answers.into_iter().enumerate() {
            sent.answered(&Numbered { key: 3, number: number as u64, due_micros: 5 }, answer, 10);
        }
        assert_eq!((sent.total(), sent.accepted(), sent.due(3), sent.due(4)), (6, 4, 2, 0));
        assert_eq!(sent.excused[&3], BTreeSet::from([1, 2, 3, 4]));
        assert_eq!(
            sent.barred[&3],
            BTreeSet::from([1, 3]),
            "an expired one may have come before, a lost call's at any time"
        );
        assert_eq!((sent.unknown, sent.failed["ResourceExhausted"], sent.failed["Unavailable"]), (1, 1, 1));
        assert_eq!((sent.answers.max(), sent.last_micros), (5, 10));
    }
}
