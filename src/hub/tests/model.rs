//! The model test: random sequences of everything that can happen to two users with three devices each, against a
//! simple model of what each device must, may and must not have seen, and of what each call must have been told.
//!
//! Time stands still but for the steps that move it; the store has no threads and commits only when a step says so. So
//! a seed is the same sequence, everywhere. `book.rs` is the model, `play.rs` what is done, `lives.rs` how a life of the daemon ends.

mod book;
mod lives;
mod look;
mod members;
mod play;

use std::panic::{AssertUnwindSafe, catch_unwind};

use book::Counts;
use play::Play;

use crate::planted::{self, Bug};

const SEQUENCES: u64 = 2000;
const STEPS: usize = 70;
/// Sequences in which a planted bug must have been found.
const PLANTED_MAX: u64 = 400;

/// xorshift64*: the same sequence for the same seed, everywhere.
pub struct Dice(u64);

impl Dice {
    fn of(seed: u64) -> Self {
        // A seed of 0 would stay there.
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides
    }
}

/// Plays one sequence to its end; what was wrong with it, where something was.
fn sequence(seed: u64) -> Result<Counts, String> {
    let played = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut play = Play::new(Dice::of(seed));
            for _ in 0..STEPS {
                play.step().await;
            }
            play.end().await
        })
    }));
    played.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        text.unwrap_or("a panic without a message").to_owned()
    })
}

#[test]
fn every_device_sees_what_it_must_and_nothing_that_it_must_not() {
    let mut counts = Counts::default();
    // `MODEL_SEEDS=1-30000` for a longer look, `MODEL_SEEDS=7-7` for one.
    let seeds = std::env::var("MODEL_SEEDS").ok().and_then(|seeds| {
        let (first, last) = seeds.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    });
    let (first, last): (u64, u64) = seeds.unwrap_or((1, SEQUENCES));
    for seed in first..=last {
        match sequence(seed) {
            Ok(more) => counts.add(&more),
            Err(problem) => panic!("the sequence of seed {seed}: {problem}"),
        }
    }
    println!("{} sequences of {STEPS} steps, seeds {first} to {last}: {counts}", last - first + 1);
    if last - first > 100 {
        counts.assert_all_happened();
    }
}

/// The bugs that the model must find, each turned on alone.
#[test]
fn the_model_finds_each_planted_bug() {
    struct Planted;
    impl Drop for Planted {
        fn drop(&mut self) {
            planted::set(None);
        }
    }
    let _off_again = Planted;
    for bug in Bug::ALL {
        planted::set(Some(bug));
        let found = (1..=PLANTED_MAX).find_map(|seed| sequence(seed).err().map(|problem| (seed, problem)));
        planted::set(None);
        let (seed, problem) = found.unwrap_or_else(|| panic!("{bug:?} was not found in {PLANTED_MAX} sequences"));
        println!("{bug:?}: found by seed {seed}: {problem}");
        assert!(sequence(seed).is_ok(), "seed {seed} is at fault without {bug:?}");
    }
}
