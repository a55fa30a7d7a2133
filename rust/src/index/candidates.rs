//! What a search has found so far, by codes, and how it ends: with exact scores.
//!
//! An estimate comes with a margin. A row is kept as long as its score may still be among the k best: its estimate and margin are not below the k-th best
//! of all estimates less their margins. At the end exact scores decide, nearest first, until nothing that is left can come in.

use super::flat::{Near, TopK};
use crate::error::Error;
use crate::types::Generation;

#[derive(Clone, Copy)]
struct Candidate {
    generation: Generation,
    score: f32,
    margin: f32,
}

pub(super) struct Candidates {
    k: usize,
    lows: TopK,
    kept: Vec<Candidate>,
    prune_at: usize,
}

impl Candidates {
    pub(super) fn new(k: usize) -> Self {
        Self { k, lows: TopK::new(k), kept: Vec::new(), prune_at: 4 * k + 256 }
    }

    /// Whether a row that may score so much can still be among the best.
    #[inline]
    pub(super) fn admits(&self, score: f32) -> bool {
        self.lows.admits(score)
    }

    /// The least score that can.
    pub(super) fn floor(&self) -> f32 {
        self.lows.floor()
    }

    pub(super) fn push(&mut self, generation: Generation, score: f32, margin: f32) {
        self.lows.push(Near { score: score - margin, generation });
        self.kept.push(Candidate { generation, score, margin });
        if self.kept.len() >= self.prune_at {
            let lows = &self.lows;
            self.kept.retain(|c| lows.admits(c.score + c.margin));
            self.prune_at = 2 * self.kept.len() + 4 * self.k + 256;
        }
    }

    /// By estimate: how many there are of the k nearest, and the worst score among them.
    pub(super) fn estimated(&self) -> Option<(usize, f32)> {
        let mut all = self.kept.clone();
        all.sort_unstable_by(|a, b| b.score.total_cmp(&a.score));
        all.truncate(self.k);
        all.last().map(|worst| (all.len(), worst.score))
    }

    /// The k nearest by exact score. What was found twice counts once.
    pub(super) fn settle(mut self, mut exact: impl FnMut(Generation) -> Result<f32, Error>) -> Result<TopK, Error> {
        self.kept.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.generation.cmp(&b.generation)));
        self.kept.dedup_by_key(|c| c.generation);
        let mut top = TopK::new(self.k);
        for candidate in self.kept {
            if top.admits(candidate.score + candidate.margin) {
                top.push(Near { score: exact(candidate.generation)?, generation: candidate.generation });
            }
        }
        Ok(top)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_among_the_best_is_settled_exactly() {
        let truth = |g: Generation| (g.0 as f32 * 0.7).sin();
        let mut candidates = Candidates::new(5);
        for g in 1..2_000 {
            let generation = Generation(g);
            let wrong = ((g * 37 % 100) as f32 / 100.0 - 0.5) * 0.02;
            if candidates.admits(truth(generation) + wrong + 0.01) {
                candidates.push(generation, truth(generation) + wrong, 0.01);
            }
        }
        assert!(candidates.kept.len() < 700, "few are kept: {}", candidates.kept.len());
        let mut expected = TopK::new(5);
        (1..2_000).for_each(|g| expected.push(Near { score: truth(Generation(g)), generation: Generation(g) }));
        let settled = candidates.settle(|g| Ok(truth(g))).unwrap();
        assert_eq!(settled.into_sorted(), expected.into_sorted());
    }
}
