//! When the rows of a part died (K1, K3): a generation a row, none while it lives.
//!
//! Deaths are set under the space's `growing` lock before the view that knows of them is swapped in; a reader at W counts only those ≤ W,
//! which its view's load has made visible, and does not care whether it sees a later one (Relaxed). A death is set once: the first in log
//! order stays (`rust/tests/loom.rs`). Room is taken when the first row of a part dies.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use engram_kernels::sync::{AtomicU64, Ordering};

use crate::types::Generation;

#[derive(Debug)]
pub struct Deaths {
    rows: usize,
    at: OnceLock<Box<[AtomicU64]>>,
}

impl Deaths {
    pub fn new(rows: usize) -> Self {
        Self { rows, at: OnceLock::new() }
    }

    /// The row died at `death`; false if it was dead.
    pub fn set(&self, row: usize, death: Generation) -> bool {
        let all = self.at.get_or_init(|| (0..self.rows).map(|_| AtomicU64::new(0)).collect());
        all[row].compare_exchange(0, death.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
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

/// Rows that a new file need not hold.
pub struct LeftOut {
    pub(super) upto: Generation,
    pub(super) history_from: Generation,
    pub(super) purging: BTreeMap<Generation, Generation>,
}

impl LeftOut {
    /// Whether the row, dead since `death`, is left out.
    pub fn has(&self, row: Generation, death: Generation) -> bool {
        death <= self.upto && (death <= self.history_from || self.purging.contains_key(&row))
    }

    /// Whether the row's bytes must go.
    pub fn purges(&self, row: Generation) -> bool {
        self.purging.contains_key(&row)
    }

    pub fn upto(&self) -> Generation {
        self.upto
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
    }
}
