//! How wide must a walk be? Measured on the rows themselves, so that nobody has to know (G6).
//!
//! When a graph has grown enough, some of its rows serve as cues; walks go round each, and round its copies, as if they were not there: they would be
//! found too easily. For each cue the ten nearest linked
//! rows are found by looking at all, then by walks of rising width. The least width that finds enough of them is taken from then on; if none does, rows are
//! looked through instead. A step does one cue, so that building goes on between.

use super::candidates::Candidates;
use super::codec::Coded;
use super::graph::Graph;
use super::rows::Rows;
use super::scan::{Stretch, Visible};
use super::walk::Scratch;
use crate::error::Error;
use crate::types::{Generation, Metric};

/// Widths tried.
const LADDER: [usize; WIDTHS] = [32, 40, 48, 64, 80, 96, 128, 192, 256, 384, 512];
pub(super) const WIDTHS: usize = 11;
/// Before anything was measured.
const WIDTH_UNKNOWN: usize = 128;
const CUES: usize = 64;
/// Rows that are looked at for cues.
const LOOKS: usize = 4 * CUES;
const NEAREST: usize = 10;
/// A cue with more copies is left out: a graph without all of those is another graph.
const COPIES_MAX: usize = 64;
/// What is looked for if nobody says (G6).
pub const TARGET: f32 = 0.95;
/// What a trial must find, more than is wanted: cues of others' making may be harder than the rows themselves; by inner product, where rows of great
/// norm are near to every cue, the more so.
const MORE: f32 = 0.01;
const MORE_INNER_PRODUCT: f32 = 0.02;
/// From so many rows on a graph is tried when it has doubled; before, when it has grown by half.
const DOUBLES_FROM: usize = 16_384;
/// A graph of fewer rows is not worth a trial.
const ROWS_MIN: usize = 1_024;

/// A trial under way.
pub(super) struct Trial {
    linked: usize,
    cues: usize,
    looked: usize,
    /// Of what each cue found, the share: summed, and squared and summed.
    shares: [(f32, f32); WIDTHS],
}

/// Whether a graph of `linked` rows, last tried at `tried`, is due for a trial: trials of large ones cost more, and say less that is new.
pub(super) fn is_due(linked: usize, tried: usize) -> bool {
    let grown = if tried < DOUBLES_FROM { tried + tried / 2 } else { 2 * tried };
    linked >= ROWS_MIN.max(grown)
}

/// What a trial found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Measured {
    /// The share of the nearest that walks of each width find, less the error of the sample.
    pub(super) found: [f32; WIDTHS],
    /// So many rows were linked; 0: there was no trial.
    pub(super) linked: usize,
}

impl Measured {
    /// How wide a walk must be to find a share of the nearest, now that so many rows are linked; usize::MAX: rows are better looked through. What is long out of date is
    /// not trusted: a small graph is looked through meanwhile, in a large one walks are wider.
    pub(super) fn width(&self, target: f32, metric: Metric, linked: usize) -> usize {
        let more = if metric == Metric::InnerProduct { MORE_INNER_PRODUCT } else { MORE };
        let enough = self.found.iter().position(|found| *found >= target + more);
        let width = match enough {
            _ if self.linked == 0 && target <= TARGET => WIDTH_UNKNOWN,
            Some(at) if target < 1.0 => LADDER[at],
            _ => usize::MAX,
        };
        match is_due(linked, self.linked) {
            true if linked < DOUBLES_FROM => usize::MAX,
            true => width.saturating_mul(2),
            false => width,
        }
    }
}

impl Trial {
    pub(super) fn new(linked: usize) -> Self {
        Self { linked, cues: 0, looked: 0, shares: [(0.0, 0.0); WIDTHS] }
    }

    /// Tries one more cue. At the end: what was found.
    pub(super) fn step(
        &mut self,
        graph: &Graph,
        rows: &Rows,
        scratch: &mut Scratch,
    ) -> Result<Option<Measured>, Error> {
        // Golden steps: however many are looked at, they lie all over the rows.
        let part = (self.looked as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let cue = ((part * self.linked as u64) >> 32) as usize;
        self.looked += 1;
        let mut query = Coded::default();
        rows.codec.query_of_row(rows.bytes.row(cue), rows.factors.row(cue), &mut query);
        // The vector itself is no neighbour.
        let (upto, mut copies) = (Generation(u64::MAX), vec![cue as u32]);
        let mut wanted = |generation: Generation| {
            let row = rows.up_to(generation) - 1;
            // Where lengths count, equal bytes say no more than that two vectors are parallel.
            let is_as_long = rows.codec.metric == Metric::Cosine || rows.factors.row(row) == rows.factors.row(cue);
            let is_copy = is_as_long && rows.bytes.row(row) == rows.bytes.row(cue);
            copies.extend(is_copy.then_some(row as u32));
            Ok(!is_copy)
        };
        let mut visible = Visible { upto, wanted: &mut wanted, pulse: &|| Ok(()) };
        let mut truth = Candidates::new(NEAREST);
        rows.scan(&query, (0, self.linked), &mut visible, &mut Stretch::default(), &mut truth)?;
        let Some((nearest, worst)) = truth.estimated().filter(|_| copies.len() <= COPIES_MAX) else {
            return Ok(self.end());
        };
        scratch.barred = copies;
        if let Some(from) = scratch.descend(graph, rows, &query, 0) {
            self.cues += 1;
            let mut found = 0;
            for (ef, (sum, squares)) in LADDER.iter().zip(&mut self.shares) {
                if found < nearest {
                    scratch.walk(graph, rows, &query, &[from], 0, *ef);
                    let good = scratch.beam.iter().filter(|met| met.score >= worst && rows.lives(met.row, upto));
                    found = good.take(nearest).count();
                }
                let share = found as f32 / nearest as f32;
                (*sum, *squares) = (*sum + share, *squares + share * share);
            }
        }
        scratch.barred.clear();
        Ok(self.end())
    }

    fn end(&self) -> Option<Measured> {
        // Nothing but copies of few vectors: there is nothing to go by.
        let cues = self.cues.max(1) as f32;
        let least = |(sum, squares): (f32, f32)| {
            let mean = sum / cues;
            let error = ((squares / cues - mean * mean).max(0.0) / cues).sqrt();
            mean - error
        };
        let ended = self.cues == CUES || self.looked == LOOKS;
        ended.then(|| Measured { found: self.shares.map(least), linked: self.linked })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use rand_core::Rng;
    use rand_pcg::Pcg64;

    use super::super::Index;
    use super::*;

    /// Found as a recall of 0.79: what was measured on a quarter of the rows was used for all while the next trial went on.
    #[test]
    fn an_old_width_is_not_trusted() {
        let found = std::array::from_fn(|i| 0.9551 + i as f32 * 0.005);
        let at = |measured: usize, linked, target| {
            Measured { found, linked: measured }.width(target, Metric::Cosine, linked)
        };
        assert_eq!((at(1_100, 1_500, 0.95), at(1_100, 1_700, 0.95)), (40, usize::MAX));
        assert_eq!((at(20_000, 39_000, 0.95), at(20_000, 41_000, 0.95)), (40, 80));
        assert_eq!(
            (at(20_000, 20_000, 0.98), at(20_000, 20_000, 0.999), at(20_000, 20_000, 1.0)),
            (192, usize::MAX, usize::MAX)
        );
        let unknown = |target| Measured::default().width(target, Metric::Cosine, 900);
        assert_eq!((unknown(0.95), unknown(0.96)), (WIDTH_UNKNOWN, usize::MAX));
    }

    /// Found as recalls of a space fed the same rows again and again: every row had a copy, nothing was measured, everything was looked through.
    #[test]
    fn rows_that_have_copies_are_cues_too() {
        for (vectors, copies, walks) in [(2_000, 3, true), (40, 100, false)] {
            let (index, mut random) = (Index::new(24, Metric::Cosine, 7), Pcg64::new(1, 2));
            let uniform = |random: &mut Pcg64| (random.next_u64() >> 40) as f32 / (1 << 23) as f32 - 1.0;
            let all: Vec<[f32; 24]> = (0..vectors).map(|_| std::array::from_fn(|_| uniform(&mut random))).collect();
            for (row, vector) in std::iter::repeat_n(&all, copies).flatten().enumerate() {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                let inverse_norm = 1.0 / vector.iter().map(|x| x * x).sum::<f32>().sqrt();
                index.append(Generation(row as u64 + 1), &bytes, inverse_norm);
            }
            while index.build() {}
            let width = index.graph.measured().width(TARGET, Metric::Cosine, index.linked());
            assert_eq!(width < usize::MAX, walks, "{vectors} vectors, {copies} times: {width}");
        }
    }
}
