//! A walk through the graph: greedily down the levels, then with a beam.
//!
//! The beam holds the `ef` best rows met, in order; the best that was not followed yet is followed next, until all were. Once the beam is full, the bytes
//! of rows just met are not waited for: the next row is followed meanwhile, now and then one that they would have driven out of the beam.
//! Deaths, births and filters play no part here: a walk passes over rows that may not be returned.

use engram_kernels::{bytes_products_of, planes_products_of};

use super::codec::{Coded, bits_tail};
use super::graph::{Graph, LINKS_BASE};
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
    /// No walk goes here: as if the rows were not there.
    pub(super) barred: Vec<u32>,
    fresh: Vec<u32>,
    sifted: Vec<u32>,
    products: Vec<i32>,
}

impl Scratch {
    /// Has the rows that a row links to, but for those met before. Nobody can foretell which they are, the CPU neither: so there is no branch; nor
    /// is there one in `sift`.
    fn follow(&mut self, graph: &Graph, row: u32, level: usize) {
        self.fresh.resize(LINKS_BASE, 0);
        let mut kept = 0;
        for to in graph.links(row, level) {
            self.fresh[kept] = to;
            kept += usize::from(self.visited.add(to));
        }
        self.fresh.truncate(kept);
    }

    /// Moves the fresh rows to those sifted: if the beam has its `ef` rows, those that their bits, one line of memory instead of seven, give a
    /// fair chance to be better than its last.
    fn sift(&mut self, rows: &Rows, query: &Coded, ef: usize) {
        let full = self.beam.last().filter(|_| self.beam.len() >= ef);
        let (Some(bits), Some(last)) = (&rows.bits, full) else {
            std::mem::swap(&mut self.fresh, &mut self.sifted);
            return;
        };
        let (floor, fresh, sifted, mut kept) = (last.score, &self.fresh, &mut self.sifted, 0);
        sifted.resize(fresh.len(), 0);
        planes_products_of(&query.planes, bits, fresh, |i, product, row| {
            let (estimate, margin) = query.by_bits(product, bits_tail(row));
            sifted[kept] = fresh[i];
            kept += usize::from(estimate + BENEFIT * margin > floor);
        });
        sifted.truncate(kept);
        sifted.iter().for_each(|row| rows.prefetch(*row));
    }

    /// Takes the rows that were sifted into the beam, as far as they are good enough, by their bytes; the first place that one took.
    fn score(&mut self, rows: &Rows, query: &Coded, ef: usize) -> usize {
        let sifted = std::mem::take(&mut self.sifted);
        self.products.resize(sifted.len(), 0);
        bytes_products_of(&query.bytes, &rows.bytes, &sifted, &mut self.products);
        let mut first = usize::MAX;
        for (i, row) in sifted.iter().enumerate() {
            let score = query.by_bytes(self.products[i], rows.factors.row(*row as usize));
            first = first.min(self.meet(score, *row, ef));
        }
        self.sifted = sifted;
        self.sifted.clear();
        first
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
        for row in &self.barred {
            self.visited.add(*row);
        }
        self.beam.clear();
        self.fresh.clear();
        for row in from {
            if self.visited.add(*row) {
                self.fresh.push(*row);
            }
        }
        std::mem::swap(&mut self.fresh, &mut self.sifted);
        self.score(rows, query, ef);
        let mut next = 0;
        loop {
            self.fresh.clear();
            if let Some(met) = self.beam.get_mut(next) {
                met.followed = true;
                let row = met.row;
                self.follow(graph, row, level);
            } else if self.sifted.is_empty() {
                break;
            }
            if self.beam.len() >= ef {
                self.fresh.iter().for_each(|to| rows.prefetch_first(*to));
                next = self.advance(graph, rows, query, ef, next);
                self.sift(rows, query, ef);
            } else {
                // Far off each step leads to better ones: they are waited for.
                std::mem::swap(&mut self.fresh, &mut self.sifted);
                next = self.advance(graph, rows, query, ef, next);
            }
        }
    }

    /// Scores what was sifted. The first place in the beam that was not followed, if all before `next` were; its links are asked for.
    fn advance(&mut self, graph: &Graph, rows: &Rows, query: &Coded, ef: usize, next: usize) -> usize {
        let from = self.score(rows, query, ef).min(next);
        let all = &self.beam[from..];
        let ahead = all.iter().position(|met| !met.followed).unwrap_or(all.len());
        if let Some(after) = all.get(ahead) {
            graph.prefetch(after.row);
        }
        from + ahead
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
        self.beam.clear();
        self.score(rows, query, most);
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
