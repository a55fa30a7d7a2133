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
        // The row itself is no neighbour.
        let own = rows.generation(cue as u32);
        let mut wanted = |generation: Generation| Ok(generation != own);
        let mut visible = Visible { upto: Generation(u64::MAX), wanted: &mut wanted, pulse: &|| Ok(()) };
        let mut truth = Candidates::new(NEAREST);
        rows.scan(&query, (0, self.linked), &mut visible, &mut Stretch::default(), &mut truth)?;
        let is_copy = |row: Generation| rows.bytes.row(rows.up_to(row) - 1) == rows.bytes.row(cue);
        let Some((_, nearest, worst)) = truth.estimated().filter(|(best, ..)| !is_copy(*best)) else {
            return Ok(self.end());
        };
        self.cues += 1;
        scratch.barred = Some(cue as u32);
        let mut found = 0;
        for (ef, (sum, squares)) in LADDER.iter().zip(&mut self.shares) {
            if found < nearest
                && let Some(from) = scratch.descend(graph, rows, &query, 0)
            {
                scratch.walk(graph, rows, &query, &[from], 0, *ef);
                let good = scratch.beam.iter().filter(|met| met.score >= worst && met.row as usize != cue);
                found = good.take(nearest).count();
            }
            let share = found as f32 / nearest as f32;
            (*sum, *squares) = (*sum + share, *squares + share * share);
        }
        scratch.barred = None;
        Ok(self.end())
    }

    fn end(&self) -> Option<Measured> {
        // Nothing but copies: there is nothing to go by.
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

#[cfg(test)]
mod tests {
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
}
