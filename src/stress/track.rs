//! What became of one sequence at one receiver: which numbers came, which are missing, which came twice or late.

use std::{collections::BTreeSet, ops::Range};

/// What a number that came is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The next one, or one further on: what lies between is missing until it comes.
    New,
    /// One that should have come before another that is here already.
    OutOfOrder,
    /// One that was here before.
    Duplicate,
}

/// The numbers that came, as a prefix with holes. A sequence without faults takes no allocation.
#[derive(Clone, Debug, Default)]
pub struct Track {
    /// One above the highest that came.
    next: u64,
    /// What is missing below it, in order, no two ranges touching.
    holes: Vec<Range<u64>>,
}

impl Track {
    /// Takes note of a number.
    pub fn saw(&mut self, number: u64) -> Seen {
        if number >= self.next {
            if number > self.next {
                self.holes.push(self.next..number);
            }
            self.next = number.saturating_add(1);
            return Seen::New;
        }
        let at = self.holes.partition_point(|hole| hole.end <= number);
        match self.holes.get(at).cloned() {
            Some(hole) if hole.contains(&number) => {
                let parts = [hole.start..number, number + 1..hole.end];
                self.holes.splice(at..=at, parts.into_iter().filter(|part| !part.is_empty()));
                Seen::OutOfOrder
            }
            _ => Seen::Duplicate,
        }
    }

    /// How many different numbers came.
    pub fn count(&self) -> u64 {
        self.next - self.holes.iter().map(|hole| hole.end - hole.start).sum::<u64>()
    }

    /// Whether a number came.
    pub fn has(&self, number: u64) -> bool {
        let at = self.holes.partition_point(|hole| hole.end <= number);
        number < self.next && self.holes.get(at).is_none_or(|hole| !hole.contains(&number))
    }

    /// How many of the first `sent` did not come, save those that are `excused`.
    pub fn lost(&self, sent: u64, excused: Option<&BTreeSet<u64>>) -> u64 {
        let rest = self.next.min(sent)..sent;
        let missing = self.holes.iter().map(|hole| hole.start.min(sent)..hole.end.min(sent)).chain([rest]);
        missing.map(|hole| (hole.end - hole.start) - excused.map_or(0, |set| set.range(hole).count() as u64)).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn saw(numbers: &[u64]) -> (Track, Vec<Seen>) {
        let mut track = Track::default();
        let seen = numbers.iter().map(|number| track.saw(*number)).collect();
        (track, seen)
    }

    #[test]
    fn what_comes_in_order_is_new_and_nothing_is_lost() {
        let (track, seen) = saw(&[0, 1, 2]);
        assert_eq!(seen, [Seen::New; 3]);
        assert_eq!((track.lost(3, None), track.count()), (0, 3));
        assert_eq!(track.lost(5, None), 2, "what never came at the end");
        assert_eq!(Track::default().lost(4, None), 4);
    }

    #[test]
    fn a_hole_is_a_loss_until_it_is_filled_which_is_out_of_order() {
        let (mut track, seen) = saw(&[0, 3]);
        assert_eq!(seen, [Seen::New; 2]);
        assert_eq!(track.lost(4, None), 2);
        assert_eq!(track.saw(2), Seen::OutOfOrder);
        assert_eq!(track.saw(2), Seen::Duplicate);
        assert_eq!(track.lost(4, None), 1);
        assert_eq!(track.lost(4, Some(&BTreeSet::from([1, 2]))), 0, "it was refused");
    }

    proptest! {
        #[test]
        fn it_counts_as_a_plain_set_does(numbers in vec(0u64..40, 0..80), sent in 0u64..50) {
            let (mut track, mut set) = (Track::default(), BTreeSet::new());
            for number in numbers {
                let late = set.last().is_some_and(|last| *last > number);
                let expected = match (set.insert(number), late) {
                    (false, _) => Seen::Duplicate,
                    (true, true) => Seen::OutOfOrder,
                    (true, false) => Seen::New,
                };
                prop_assert_eq!(track.saw(number), expected);
            }
            prop_assert_eq!(track.count(), set.len() as u64);
            prop_assert!((0..50).all(|number| track.has(number) == set.contains(&number)));
            prop_assert_eq!(track.lost(sent, None), (0..sent).filter(|number| !set.contains(number)).count() as u64);
        }
    }
}
