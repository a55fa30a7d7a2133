//! How wide must a walk be? Measured on the rows themselves, so that nobody has to know (G6).
//!
//! When a graph has grown enough, some of its rows serve as cues; walks go round them, as if each were not there, and copies of others are left out: both would be
//! found too easily. For each cue the ten nearest linked
//! rows are found by looking at all, then by walks of rising width. The least width that finds enough of them is taken from then on; if none does, rows are
//! looked through instead. A step does one cue, so that building goes on between.

use super::candidates::Candidates;
use super::codec::Coded;
use super::graph::Graph;
use super::rows::Rows;
use super::scan::{Stretch, Visible};
use super::walk::{By, Scratch};
use crate::error::Error;
use crate::types::{Generation, Metric};

/// Widths tried.
const LADDER: [usize; 11] = [32, 40, 48, 64, 80, 96, 128, 192, 256, 384, 512];
const CUES: usize = 64;
/// Rows that are looked at for cues.
const LOOKS: usize = 4 * CUES;
const NEAREST: usize = 10;
/// What must be found, less the error of the sample, so that 0.95 is: a row that is walked round leaves a hole, and cues of others' making find
/// a hundredth more. Not so by inner product, where rows of great norm are near to every cue, and a row's own neighbours easier than others'.
const TARGET: f32 = 0.945;
const TARGET_INNER_PRODUCT: f32 = 0.97;
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
    shares: [(f32, f32); LADDER.len()],
}

/// Whether a graph of `linked` rows, last tried at `tried`, is due for a trial: trials of large ones cost more, and say less that is new.
pub(super) fn is_due(linked: usize, tried: usize) -> bool {
    let grown = if tried < DOUBLES_FROM { tried + tried / 2 } else { 2 * tried };
    linked >= ROWS_MIN.max(grown)
}

/// The width for a graph of `linked` rows, of which it was `measured` when there were so many. What is long out of date is not trusted: a small
/// graph is looked through meanwhile, in a large one walks are wider.
pub(super) fn width_now(width: usize, measured: usize, linked: usize) -> usize {
    match is_due(linked, measured) {
        true if linked < DOUBLES_FROM => usize::MAX,
        true => width.saturating_mul(2),
        false => width,
    }
}

impl Trial {
    pub(super) fn linked(&self) -> usize {
        self.linked
    }

    pub(super) fn new(linked: usize) -> Self {
        Self { linked, cues: 0, looked: 0, shares: [(0.0, 0.0); LADDER.len()] }
    }

    /// Tries one more cue. At the end: the width, or usize::MAX if none is enough.
    pub(super) fn step(&mut self, graph: &Graph, rows: &Rows, scratch: &mut Scratch) -> Result<Option<usize>, Error> {
        // Golden steps: however many are looked at, they lie all over the rows.
        let part = (self.looked as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let cue = ((part * self.linked as u64) >> 32) as usize;
        self.looked += 1;
        let mut query = Coded::default();
        rows.codec.query_of_row(rows.bytes.row(cue), rows.factors.row(cue), &mut query);
        // The row itself is no neighbour.
        let own = rows.generation(cue as u32);
        let mut wanted = |generation: Generation| Ok(generation != own);
        let mut visible = Visible { upto: Generation(u64::MAX), wanted: &mut wanted, pulse: &|| Ok(()) };
        let mut truth = Candidates::new(NEAREST);
        rows.scan(&query, (0, self.linked), &mut visible, &mut Stretch::default(), &mut truth)?;
        let is_copy = |row: Generation| rows.bytes.row(rows.up_to(row) - 1) == rows.bytes.row(cue);
        let Some((_, nearest, worst)) = truth.estimated().filter(|(best, ..)| !is_copy(*best)) else {
            return Ok(self.end(rows));
        };
        self.cues += 1;
        scratch.barred = Some(cue as u32);
        let mut found = 0;
        for (ef, (sum, squares)) in LADDER.iter().zip(&mut self.shares) {
            if found < nearest
                && let Some(from) = scratch.descend(graph, rows, &query, By::Bytes, 0)
            {
                scratch.walk(graph, rows, &query, By::Bytes, &[from], 0, *ef);
                let good = scratch.beam.iter().filter(|met| met.score >= worst && met.row as usize != cue);
                found = good.take(nearest).count();
            }
            let share = found as f32 / nearest as f32;
            (*sum, *squares) = (*sum + share, *squares + share * share);
        }
        scratch.barred = None;
        Ok(self.end(rows))
    }

    fn end(&self, rows: &Rows) -> Option<usize> {
        let target = if rows.codec.metric == Metric::InnerProduct { TARGET_INNER_PRODUCT } else { TARGET };
        // Nothing but copies: there is nothing to go by.
        let cues = self.cues.max(1) as f32;
        let enough = |(sum, squares): &(f32, f32)| {
            let mean = sum / cues;
            let error = ((squares / cues - mean * mean).max(0.0) / cues).sqrt();
            mean - error >= target
        };
        let width = || self.shares.iter().position(enough).map_or(usize::MAX, |at| LADDER[at]);
        (self.cues == CUES || self.looked == LOOKS).then(width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found as a recall of 0.79: what was measured on a quarter of the rows was used for all while the next trial went on.
    #[test]
    fn an_old_width_is_not_trusted() {
        assert_eq!((width_now(32, 1_100, 1_500), width_now(32, 1_100, 1_700)), (32, usize::MAX));
        assert_eq!((width_now(32, 20_000, 39_000), width_now(32, 20_000, 41_000)), (32, 64));
    }
}
