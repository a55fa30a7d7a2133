//! Brute force over runs of rows.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::types::{Generation, Metric};

/// A checked query vector.
#[derive(Clone, Debug)]
pub struct Cue {
    vector: Vec<f32>,
    inverse_norm: f32,
    metric: Metric,
}

impl Cue {
    pub fn new(vector: Vec<f32>, inverse_norm: f32, metric: Metric) -> Self {
        Self { vector, inverse_norm, metric }
    }

    pub fn vector(&self) -> &[f32] {
        &self.vector
    }

    pub fn inverse_norm(&self) -> f32 {
        self.inverse_norm
    }

    /// Scores rows lying one after the other, 4 × dim bytes each. `inverse_norms` has one entry a row.
    pub fn score(&self, rows: &[u8], inverse_norms: &[f32], out: &mut Vec<f32>) {
        out.clear();
        out.resize(inverse_norms.len(), 0.0);
        match self.metric {
            Metric::Cosine => {
                engram_kernels::dot_rows(&self.vector, rows, out);
                for (score, inverse) in out.iter_mut().zip(inverse_norms) {
                    *score = *score * *inverse * self.inverse_norm;
                }
            }
            Metric::InnerProduct => engram_kernels::dot_rows(&self.vector, rows, out),
            Metric::L2 => {
                engram_kernels::l2_squared_rows(&self.vector, rows, out);
                out.iter_mut().for_each(|s| *s = -*s);
            }
        }
    }
}

/// A row and how near it is. Ordered from near to far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Near {
    pub score: f32,
    pub generation: Generation,
}

impl Eq for Near {}

impl PartialOrd for Near {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Near {
    fn cmp(&self, other: &Self) -> Ordering {
        // -0.0 and 0.0 are one score; NaN cannot occur (rows and cues are checked) and would sort by bits.
        let by_score = other.score.partial_cmp(&self.score).unwrap_or_else(|| other.score.total_cmp(&self.score));
        by_score.then(self.generation.cmp(&other.generation))
    }
}

/// The k nearest seen so far. The heap's top is the farthest kept.
pub struct TopK {
    k: usize,
    heap: BinaryHeap<Near>,
}

impl TopK {
    pub fn new(k: usize) -> Self {
        Self { k, heap: BinaryHeap::with_capacity(k.min(4096) + 1) }
    }

    pub fn push(&mut self, near: Near) {
        if self.heap.len() < self.k {
            self.heap.push(near);
        } else if let Some(mut farthest) = self.heap.peek_mut()
            && near < *farthest
        {
            *farthest = near;
        }
    }

    /// Whether a row of this score could still be kept.
    pub fn admits(&self, score: f32) -> bool {
        self.heap.len() < self.k || self.heap.peek().is_some_and(|farthest| score >= farthest.score)
    }

    /// The least score that could still be kept.
    pub fn floor(&self) -> f32 {
        let full = self.heap.len() >= self.k;
        self.heap.peek().filter(|_| full).map_or(f32::NEG_INFINITY, |farthest| farthest.score)
    }

    /// Nearest first.
    pub fn into_sorted(self) -> Vec<Near> {
        self.heap.into_sorted_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// G6: equal to sorting everything; ties go to the lower id.
        #[test]
        fn top_k_is_a_sort(scores in prop::collection::vec(-3i8..3, 0..60), k in 0usize..20) {
            let all: Vec<Near> = scores.iter().enumerate()
                .map(|(i, s)| Near { score: f32::from(*s), generation: Generation(i as u64 + 1) }).collect();
            let mut top = TopK::new(k);
            all.iter().rev().for_each(|n| top.push(*n));
            let mut sorted = all;
            sorted.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.generation.cmp(&b.generation)));
            sorted.truncate(k);
            prop_assert_eq!(top.into_sorted(), sorted);
        }
    }

    #[test]
    fn metrics_score_as_written() {
        let rows: Vec<u8> = [3f32, 4.0, 1.0, 0.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let norms = [0.2, 1.0];
        let score = |metric| {
            let mut out = Vec::new();
            Cue::new(vec![2.0, 0.0], 0.5, metric).score(&rows, &norms, &mut out);
            out
        };
        assert_eq!(score(Metric::Cosine), [0.6, 1.0]);
        assert_eq!(score(Metric::InnerProduct), [6.0, 2.0]);
        assert_eq!(score(Metric::L2), [-17.0, -1.0]);
    }
}
