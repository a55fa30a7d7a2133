//! Who becomes a neighbour: of the candidates, nearest first, those that are nearer to the row than to any neighbour taken before (the
//! heuristic of the HNSW paper, arXiv 1603.09320, algorithm 4).

use engram_kernels::bytes_products_of;

use super::{Builder, EF_CONSTRUCTION};

/// Neighbours asked at once whether one is nearer.
const ASKED: usize = 4;

impl Builder<'_> {
    /// How near rows are to one, from the products of their bytes; the same both ways.
    fn scores<'b>(&'b self, row: u32, to: &'b [u32], products: &'b [i32]) -> impl Iterator<Item = f32> + 'b {
        let own = self.rows.factors.row(row as usize);
        let all = to.iter().zip(products);
        all.map(move |(to, product)| self.rows.codec.symmetric(own, self.rows.factors.row(*to as usize), *product))
    }

    /// Rows with their scores to `row`, nearest first.
    fn scored(&self, row: u32, near: &[u32], products: &mut Vec<i32>) -> Vec<(f32, u32)> {
        products.resize(near.len(), 0);
        bytes_products_of(self.rows.bytes.row(row as usize), &self.rows.bytes, near, products);
        let mut scored: Vec<(f32, u32)> = self.scores(row, near, products).zip(near.iter().copied()).collect();
        // Of equals the latest comes first: copies of one vector make a chain, not a star.
        scored.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
        scored
    }

    /// Leaves of `near` the neighbours that `row` takes, nearest first; at most `most`.
    pub(super) fn choose(&self, row: u32, near: &mut Vec<u32>, most: usize, products: &mut Vec<i32>) {
        let scored = self.scored(row, near, products);
        near.clear();
        self.take(row, scored, near, most);
    }

    /// Takes from behind the first `kept` of `near` neighbours for `row` besides those, until it has `most`; nearest first.
    pub(in crate::index) fn complete(
        &self,
        row: u32,
        near: &mut Vec<u32>,
        kept: usize,
        most: usize,
        products: &mut Vec<i32>,
    ) {
        let others = self.scored(row, &near[kept..], products);
        near.truncate(kept);
        self.take(row, others, near, most);
        let sorted = self.scored(row, near, products);
        near.clear();
        near.extend(sorted.iter().map(|(_, to)| *to));
    }

    fn take(&self, row: u32, scored: Vec<(f32, u32)>, near: &mut Vec<u32>, most: usize) {
        let is_copy = |to: u32| self.rows.bytes.row(to as usize) == self.rows.bytes.row(row as usize);
        // One copy of the row's own vector is enough, and stands before nobody: it is as near to all as the row is.
        let mut copy = near.iter().copied().find(|to| is_copy(*to));
        for (score, to) in scored.into_iter().take(EF_CONSTRUCTION) {
            if near.len() == most {
                break;
            }
            let taken = if is_copy(to) { copy.is_none() } else { !self.is_behind(to, score, near, copy) };
            if taken {
                near.push(to);
                copy = copy.or_else(|| is_copy(to).then_some(to));
            }
        }
    }

    /// Whether a row is at least as near to one of `taken` as its score says.
    fn is_behind(&self, row: u32, score: f32, taken: &[u32], but: Option<u32>) -> bool {
        let bytes = self.rows.bytes.row(row as usize);
        taken.chunks(ASKED).any(|some| {
            let mut products = [0; ASKED];
            let products = &mut products[..some.len()];
            bytes_products_of(bytes, &self.rows.bytes, some, products);
            let behind = |(other, to): (f32, &u32)| other >= score && Some(*to) != but;
            self.scores(row, some, products).zip(some).any(behind)
        })
    }
}
