//! A walk through the graph: greedily down the levels, then with a beam.
//!
//! The beam holds the `ef` best rows met, in order; the best that was not followed yet is followed next, until all were. Deaths, births and filters play no
//! part here: a walk passes over rows that may not be returned.

use engram_kernels::{bytes_products_of, planes_products_of};

use super::codec::{Coded, bits_tail};
use super::graph::Graph;
use super::rows::Rows;

/// So much of the margin around what its bits say is a row given, before its bytes are looked at: 0.8 standard deviations. All of it
/// finds the same and gains nothing; with none of it walks must be wider to find as much.
const BENEFIT: f32 = 0.25;

/// A set of rows, emptied in the time it took to fill.
#[derive(Default)]
struct Visited {
    words: Vec<u64>,
    /// The first `filled` name the words that are not zero; there is room for one more than there are words.
    touched: Vec<u32>,
    filled: usize,
}

impl Visited {
    fn begin(&mut self, rows: usize) {
        for word in &self.touched[..self.filled] {
            self.words[*word as usize] = 0;
        }
        self.filled = 0;
        if self.words.len() * 64 < rows {
            self.words.resize(rows.div_ceil(64).next_power_of_two(), 0);
            self.touched.resize(self.words.len() + 1, 0);
        }
    }

    /// True the first time. A row that was linked since the walk began may lie behind the end: it is passed over.
    #[inline]
    fn add(&mut self, row: u32) -> bool {
        let (word, bit) = (row / 64, 1 << (row % 64));
        let Some(bits) = self.words.get_mut(word as usize) else { return false };
        self.touched[self.filled] = word;
        self.filled += usize::from(*bits == 0);
        let new = *bits & bit == 0;
        *bits |= bit;
        new
    }
}

/// Leaves the items for which `stays` says so, in order; it is called once an item. Nobody can foretell which they are, the CPU
/// neither: so there is no branch.
#[inline]
fn keep(items: &mut Vec<u32>, mut stays: impl FnMut(usize, u32) -> bool) {
    let mut kept = 0;
    for i in 0..items.len() {
        let item = items[i];
        items[kept] = item;
        kept += usize::from(stays(i, item));
    }
    items.truncate(kept);
}

/// A row met.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Met {
    pub(super) score: f32,
    pub(super) row: u32,
    followed: bool,
}

/// Room for a walk.
#[derive(Default)]
pub(super) struct Scratch {
    visited: Visited,
    /// Best first.
    pub(super) beam: Vec<Met>,
    /// No walk goes here: as if the row were not there.
    pub(super) barred: Option<u32>,
    fresh: Vec<u32>,
    scores: Vec<f32>,
    products: Vec<i32>,
}

impl Scratch {
    /// If the beam has its `ef` rows: leaves of the fresh ones those that their bits, one line of memory instead of seven, give a fair
    /// chance to be better than its last.
    fn sift(&mut self, rows: &Rows, query: &Coded, ef: usize) {
        let full = self.beam.last().filter(|_| self.beam.len() >= ef);
        let (Some(bits), Some(last)) = (&rows.bits, full) else { return };
        let floor = last.score;
        self.scores.resize(self.fresh.len(), 0.0);
        let scores = &mut self.scores[..];
        planes_products_of(&query.planes, bits, &self.fresh, |i, product, row| {
            let (estimate, margin) = query.by_bits(product, bits_tail(row));
            scores[i] = estimate + BENEFIT * margin;
        });
        keep(&mut self.fresh, |i, _| scores[i] > floor);
        self.fresh.iter().for_each(|row| rows.prefetch(*row));
    }

    fn score(&mut self, rows: &Rows, query: &Coded) {
        self.products.resize(self.fresh.len(), 0);
        bytes_products_of(&query.bytes, &rows.bytes, &self.fresh, &mut self.products);
        let all = self.products.iter().zip(&self.fresh);
        self.scores.clear();
        self.scores.extend(all.map(|(product, row)| query.by_bytes(*product, rows.factors.row(*row as usize))));
    }

    /// Takes a row into the beam, if it is good enough; where it stands.
    #[inline]
    fn meet(&mut self, score: f32, row: u32, ef: usize) -> usize {
        if self.beam.len() >= ef && self.beam.last().is_some_and(|last| score <= last.score) {
            return usize::MAX;
        }
        let at = self.beam.partition_point(|met| met.score >= score);
        // Copies of one vector score alike: by the thousand they would leave no room for anything else.
        if at.checked_sub((ef * 2 / 3).max(1)).is_some_and(|before| self.beam[before].score == score) {
            return usize::MAX;
        }
        if self.beam.len() >= ef {
            self.beam.pop();
        }
        self.beam.insert(at, Met { score, row, followed: false });
        at
    }

    /// Walks level `level` from `from`; the beam holds the `ef` best of what was met.
    pub(super) fn walk(&mut self, graph: &Graph, rows: &Rows, query: &Coded, from: &[u32], level: usize, ef: usize) {
        self.visited.begin(rows.len());
        self.barred.map(|row| self.visited.add(row));
        self.beam.clear();
        self.fresh.clear();
        for row in from {
            if self.visited.add(*row) {
                self.fresh.push(*row);
            }
        }
        self.score(rows, query);
        for i in 0..self.fresh.len() {
            self.meet(self.scores[i], self.fresh[i], ef);
        }
        let mut next = 0;
        while let Some(met) = self.beam.get_mut(next) {
            if met.followed {
                next += 1;
                continue;
            }
            met.followed = true;
            let row = met.row;
            if let Some(after) = self.beam.get(next + 1) {
                graph.prefetch(after.row);
            }
            self.fresh.clear();
            self.fresh.extend(graph.links(row, level));
            keep(&mut self.fresh, |_, to| self.visited.add(to));
            let full = self.beam.len() >= ef;
            self.fresh.iter().for_each(|to| rows.prefetch_code(*to, full));
            self.sift(rows, query, ef);
            self.score(rows, query);
            for i in 0..self.fresh.len() {
                let at = self.meet(self.scores[i], self.fresh[i], ef);
                if at <= next {
                    next = at;
                    graph.prefetch(self.fresh[i]);
                }
            }
        }
    }

    /// The `most` best of some rows; of those only that may be better than the last of a beam as wide as `ef`, if a walk has filled it.
    pub(super) fn best(
        &mut self,
        rows: &Rows,
        query: &Coded,
        of: &[u32],
        (most, ef): (usize, usize),
    ) -> impl Iterator<Item = u32> + '_ {
        self.fresh.clear();
        self.fresh.extend_from_slice(of);
        self.sift(rows, query, ef);
        self.score(rows, query);
        self.beam.clear();
        for i in 0..self.fresh.len() {
            self.meet(self.scores[i], self.fresh[i], most);
        }
        self.beam.iter().map(|met| met.row)
    }

    /// From the entry down to level `to`: the best row met on the way.
    pub(super) fn descend(&mut self, graph: &Graph, rows: &Rows, query: &Coded, to: usize) -> Option<u32> {
        let (mut at, top) = graph.entry()?;
        for level in (to + 1..=top).rev() {
            self.walk(graph, rows, query, &[at], level, 1);
            at = self.beam.first()?.row;
        }
        Some(at)
    }
}
