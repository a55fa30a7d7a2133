//! The nearest rows, by the index; exact scores come from the rows themselves (G6).

use super::{Scope, View};
use crate::error::Error;
use crate::index::{Cue, Index, TopK, Visible, Width};
use crate::types::Generation;

impl View {
    /// Whether somebody who looks at `upto` would meet damage.
    pub fn is_damaged_at(&self, upto: Generation) -> bool {
        self.damaged && self.needed(upto).any(|held| held.rows.damage().is_some())
    }

    /// The k nearest wanted rows, as far as the index finds them. It holds every row that lives at `scope.upto`.
    pub fn near(&self, index: &Index, cue: &Cue, k: usize, width: Width, scope: Scope<'_>) -> Result<TopK, Error> {
        let mut wanted = |generation| match scope.filter {
            None => Ok(true),
            Some(filter) => match self.find(generation) {
                Some((held, row)) => Ok(filter.matches(&held.rows.facts(row)?)),
                None => Ok(false),
            },
        };
        let visible = Visible { upto: scope.upto, wanted: &mut wanted, pulse: scope.pulse };
        let mut scores = Vec::new();
        index.search(cue, k, width, visible, |generation| {
            // A row that was left out of its file since died before anybody's snapshot.
            let Some((held, row)) = self.find(generation) else { return Ok(f32::NEG_INFINITY) };
            let run = held.rows.vectors_from(row, 1)?;
            cue.score(run.bytes, &run.inverse_norms, &mut scores);
            Ok(scores[0])
        })
    }

    /// When the row of that generation was committed, if it is here.
    pub fn committed_at(&self, generation: Generation) -> Option<i64> {
        let (held, row) = self.find(generation)?;
        held.rows.damage().is_none().then(|| held.rows.committed_at(row))
    }

    /// Calls `each` with the rows behind `after` that live at the watermark, in order, until it says false: generation, vector (empty if
    /// it has none) and inverse norm. Whether that were all.
    pub fn each_vector(
        &self,
        after: Generation,
        mut each: impl FnMut(Generation, &[u8], f32) -> bool,
    ) -> Result<bool, Error> {
        for i in self.part_from(after.plus(1))..self.count() {
            let Some(held) = self.held(i) else { break };
            if let Some(error) = held.rows.damage() {
                return Err(error.clone());
            }
            for row in super::first_after(held.rows, after)..held.rows.rows() {
                if held.lives(row, self.watermark) {
                    let run = held.rows.vectors_from(row, 1)?;
                    let inverse_norm = run.inverse_norms.first().copied().unwrap_or_default();
                    if !each(held.rows.generation_at(row), run.bytes, inverse_norm) {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }
}
