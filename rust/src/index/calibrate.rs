//! How wide must a walk be? Measured on the rows themselves, so that nobody has to know (G6).
//!
//! When a graph has grown by half, some of its rows serve as cues; walks go round them, as if each were not there, and copies of others are left out: both would be
//! found too easily. For each cue the ten nearest linked
//! rows are found by looking at all, then by walks of rising width. The least width that finds enough of them is taken from then on; if none does, rows are
//! looked through instead. A step does one cue, so that building goes on between.

use super::candidates::Candidates;
use super::codec::Coded;
use super::graph::Graph;
use super::rows::Rows;
use super::scan::{Block, Visible};
use super::walk::{By, Scratch};
use crate::error::Error;
use crate::types::Generation;

/// Widths tried.
const LADDER: [usize; 11] = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512];
const CUES: usize = 64;
/// Rows that are looked at for cues.
const LOOKS: usize = 4 * CUES;
const NEAREST: usize = 10;
/// 0.95 is promised; the rest is for the error of a sample, and for what the graph grows until the next trial.
const TARGET: f32 = 0.96;
/// A graph of fewer rows is not worth a trial.
const ROWS_MIN: usize = 1_024;

/// A trial under way.
pub(super) struct Trial {
    linked: usize,
    cues: usize,
    looked: usize,
    found: [usize; LADDER.len()],
    wanted: usize,
}

/// Whether a graph of `linked` rows, last tried at `tried`, is due for a trial.
pub(super) fn is_due(linked: usize, tried: usize) -> bool {
    linked >= ROWS_MIN.max(tried + tried / 2)
}

impl Trial {
    pub(super) fn new(linked: usize) -> Self {
        Self { linked, cues: 0, looked: 0, found: [0; LADDER.len()], wanted: 0 }
    }

    /// Tries one more cue. At the end: the width, or usize::MAX if none is enough.
    pub(super) fn step(&mut self, graph: &Graph, rows: &Rows, scratch: &mut Scratch) -> Result<Option<usize>, Error> {
        let cue = self.looked * (self.linked / LOOKS);
        self.looked += 1;
        let mut query = Coded::default();
        rows.codec.query_of_row(rows.bytes.row(cue), rows.factors.row(cue), &mut query);
        // The row itself is no neighbour.
        let own = rows.generation(cue as u32);
        let mut wanted = |generation: Generation| Ok(generation != own);
        let mut visible = Visible { upto: Generation(u64::MAX), wanted: &mut wanted, pulse: &|| Ok(()) };
        let mut truth = Candidates::new(NEAREST);
        rows.scan(&query, (0, self.linked), &mut visible, &mut Block::default(), &mut truth)?;
        let is_copy = |row: Generation| rows.bytes.row(rows.up_to(row) - 1) == rows.bytes.row(cue);
        let Some((_, nearest, worst)) = truth.estimated().filter(|(best, ..)| !is_copy(*best)) else {
            return Ok(self.end());
        };
        (self.wanted, self.cues) = (self.wanted + nearest, self.cues + 1);
        scratch.barred = Some(cue as u32);
        let mut found = 0;
        for (ef, sum) in LADDER.iter().zip(&mut self.found) {
            if found < nearest
                && let Some(from) = scratch.descend(graph, rows, &query, By::Bytes, 0)
            {
                scratch.walk(graph, rows, &query, By::Bytes, &[from], 0, *ef);
                let good = scratch.beam.iter().filter(|met| met.score >= worst && met.row as usize != cue);
                found = good.take(nearest).count();
            }
            *sum += found;
        }
        scratch.barred = None;
        Ok(self.end())
    }

    fn end(&self) -> Option<usize> {
        // Nothing but copies: there is nothing to go by.
        let enough = |found: &usize| self.wanted > 0 && *found as f32 >= TARGET * self.wanted as f32;
        let width = || self.found.iter().position(enough).map_or(usize::MAX, |at| LADDER[at]);
        (self.cues == CUES || self.looked == LOOKS).then(width)
    }
}
