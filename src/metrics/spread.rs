//! Counters that many threads raise at the same time: each thread has its own cells, so that nobody waits for another and no
//! line of a cache goes back and forth. Reading adds them up.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Rows of cells; threads share them in turn.
const ROWS: usize = 16;

/// The row of the calling thread.
fn row() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static ROW: usize = THREADS.fetch_add(1, Ordering::Relaxed) % ROWS;
    }
    // A thread that ends may count on without it.
    ROW.try_with(|row| *row).unwrap_or_default()
}

/// Alone in what a processor takes in at once (two lines of 64 bytes).
#[derive(Debug)]
#[repr(align(128))]
struct Row<const N: usize>([AtomicU64; N]);

/// `N` counters that belong together.
#[derive(Debug)]
pub struct SpreadCounters<const N: usize>(Box<[Row<N>]>);

impl<const N: usize> Default for SpreadCounters<N> {
    fn default() -> Self {
        Self((0..ROWS).map(|_| Row(std::array::from_fn(|_| AtomicU64::new(0)))).collect())
    }
}

impl<const N: usize> SpreadCounters<N> {
    /// `n` more of one; of one that there is not, nothing.
    pub fn add(&self, index: usize, n: u64) {
        if let Some(cell) = self.0[row()].0.get(index) {
            cell.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// `n` more of one and `m` more of another.
    pub fn add_both(&self, (index, n): (usize, u64), (other, m): (usize, u64)) {
        let Row(cells) = &self.0[row()];
        for (index, n) in [(index, n), (other, m)] {
            if let Some(cell) = cells.get(index).filter(|_| n > 0) {
                cell.fetch_add(n, Ordering::Relaxed);
            }
        }
    }

    /// How many of one so far.
    pub fn get(&self, index: usize) -> u64 {
        self.0.iter().filter_map(|Row(cells)| cells.get(index)).map(|cell| cell.load(Ordering::Relaxed)).sum()
    }
}

/// One such counter.
#[derive(Debug, Default)]
pub struct SpreadCounter(SpreadCounters<1>);

impl SpreadCounter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.add(0, n);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.get(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_count_adds_up() {
        let counters = SpreadCounters::<3>::default();
        std::thread::scope(|threads| {
            for _ in 0..20 {
                threads.spawn(|| (0..1000).for_each(|_| counters.add_both((0, 1), (2, 7))));
            }
        });
        counters.add(3, 5);
        assert_eq!([0, 1, 2, 3].map(|index| counters.get(index)), [20_000, 0, 140_000, 0]);
        assert_eq!(align_of::<Row<3>>(), 128);
    }
}
