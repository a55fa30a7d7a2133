//! When the rows of a part died (K1, K3): a generation a row, none while it lives.
//!
//! Deaths are set under the space's `growing` lock before the view that knows of them is swapped in; a reader at W counts only those ≤ W,
//! which its view's load has made visible, and does not care whether it sees a later one (Relaxed). A death is set once: the first in log
//! order stays (`rust/tests/loom.rs`). Room is taken when the first row of a part dies.
//!
//! `dead` and `last` sum up: how many died, and when the last did. `last` is raised before `dead` (Release, Acquire), so whoever counts all
//! rows among the dead knows the last death.

use std::sync::OnceLock;

use engram_kernels::sync::{AtomicU64, Ordering};

use crate::types::Generation;

#[derive(Debug)]
pub struct Deaths {
    rows: usize,
    dead: AtomicU64,
    last: AtomicU64,
    at: OnceLock<Box<[AtomicU64]>>,
}

impl Deaths {
    pub fn new(rows: usize) -> Self {
        Self { rows, dead: AtomicU64::new(0), last: AtomicU64::new(0), at: OnceLock::new() }
    }

    /// Of rows that cannot be read, and had all died by then.
    pub fn unknown(by: Generation) -> Self {
        Self { last: AtomicU64::new(by.0), ..Self::new(0) }
    }

    /// The row died at `death`; false if it was dead.
    pub fn set(&self, row: usize, death: Generation) -> bool {
        let all = self.at.get_or_init(|| (0..self.rows).map(|_| AtomicU64::new(0)).collect());
        if all[row].compare_exchange(0, death.0, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return false;
        }
        self.last.fetch_max(death.0, Ordering::Relaxed);
        self.dead.fetch_add(1, Ordering::Release);
        true
    }

    /// The last death so far.
    pub fn last(&self) -> Generation {
        Generation(self.last.load(Ordering::Relaxed))
    }

    pub fn dead(&self) -> u64 {
        self.dead.load(Ordering::Acquire)
    }

    /// Whether every row had died by `upto`, and some did: nobody who looks there needs them.
    pub fn all_by(&self, upto: Generation) -> bool {
        let dead = self.dead();
        let last = self.last.load(Ordering::Relaxed);
        dead == self.rows as u64 && last != 0 && last <= upto.0
    }

    pub fn any(&self) -> bool {
        self.at.get().is_some()
    }

    /// When the row died, as far as a reader at `upto` can know.
    pub fn at(&self, row: usize, upto: Generation) -> Option<Generation> {
        let death = self.at.get()?[row].load(Ordering::Relaxed);
        (death != 0 && death <= upto.0).then_some(Generation(death))
    }

    /// How many of the first `rows` rows are dead at `upto`.
    pub fn count(&self, rows: usize, upto: Generation) -> u64 {
        let dead = self.dead();
        if dead == 0 || rows == self.rows && self.last.load(Ordering::Relaxed) <= upto.0 {
            return dead;
        }
        let all = self.at.get().map_or(&[][..], |all| &all[..rows]);
        all.iter().map(|d| d.load(Ordering::Relaxed)).filter(|d| *d != 0 && *d <= upto.0).count() as u64
    }

    /// Row and death of all that died at or before `upto`.
    pub fn each(&self, upto: Generation) -> impl Iterator<Item = (usize, Generation)> + '_ {
        let all = self.at.get().map_or(&[][..], |all| &all[..]);
        let deaths = all.iter().map(|d| d.load(Ordering::Relaxed)).enumerate();
        deaths.filter(move |(_, d)| *d != 0 && *d <= upto.0).map(|(row, d)| (row, Generation(d)))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_deaths_up_to_its_generation() {
        let (deaths, g) = (Deaths::new(4), Generation);
        assert!(!deaths.any() && deaths.at(3, g(9)).is_none() && deaths.count(4, g(9)) == 0);
        assert!(deaths.set(1, g(5)) && deaths.set(3, g(7)) && !deaths.set(1, g(8)), "the first death stays");
        assert_eq!((deaths.at(1, g(4)), deaths.at(1, g(5)), deaths.at(0, g(9))), (None, Some(g(5)), None));
        assert_eq!((deaths.count(4, g(6)), deaths.count(4, g(7)), deaths.count(3, g(9))), (1, 2, 1));
        assert_eq!(deaths.each(g(6)).collect::<Vec<_>>(), [(1, g(5))]);
        assert_eq!((deaths.dead(), deaths.all_by(g(9)), deaths.count(4, g(9))), (2, false, 2));
        assert!(deaths.set(0, g(8)) && deaths.set(2, g(6)) && deaths.all_by(g(8)) && !deaths.all_by(g(7)));
        assert!(Deaths::unknown(g(5)).all_by(g(5)) && !Deaths::unknown(g(5)).all_by(g(4)));
        assert!(!Deaths::new(0).all_by(g(9)), "of what has no rows nobody died");
    }
}
