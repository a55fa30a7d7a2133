//! Who becomes a neighbour: of the candidates, nearest first, those that are nearer to the row than to any neighbour taken before (the
//! heuristic of the HNSW paper, algorithm 4).

use engram_kernels::{bytes_products, bytes_products_of};

use super::super::codec::FACTORS;
use super::super::rows::Rows;
use super::EF_CONSTRUCTION;

/// Neighbours asked at once whether one is nearer.
const ASKED: usize = 4;

/// Room for a choice.
#[derive(Default)]
pub(in super::super) struct Choice {
    products: Vec<i32>,
    scored: Vec<(f32, u32)>,
    /// The codes of those taken, one behind the other: all candidates that follow are compared with them.
    bytes: Vec<i8>,
    factors: Vec<[f32; FACTORS]>,
}

impl Choice {
    /// Leaves of `near` the neighbours that `row` takes, nearest first; at most `most`.
    pub(in super::super) fn choose(&mut self, rows: &Rows, row: u32, near: &mut Vec<u32>, most: usize) {
        self.score(rows, row, near);
        near.clear();
        self.take(rows, row, near, most);
    }

    /// Takes from behind the first `kept` of `near` neighbours for `row` besides those, until it has `most`; nearest first.
    pub(in super::super) fn complete(&mut self, rows: &Rows, row: u32, near: &mut Vec<u32>, kept: usize, most: usize) {
        self.score(rows, row, &near[kept..]);
        near.truncate(kept);
        self.take(rows, row, near, most);
        self.score(rows, row, near);
        near.clear();
        near.extend(self.scored.iter().map(|(_, to)| *to));
    }

    /// Rows with their scores to `row`, nearest first.
    fn score(&mut self, rows: &Rows, row: u32, near: &[u32]) {
        self.products.resize(near.len(), 0);
        bytes_products_of(rows.bytes.row(row as usize), &rows.bytes, near, &mut self.products);
        let own = rows.factors.row(row as usize);
        let scored = near.iter().zip(&self.products);
        self.scored.clear();
        self.scored.extend(
            scored.map(|(to, product)| (rows.codec.symmetric(own, rows.factors.row(*to as usize), *product), *to)),
        );
        // Of equals the latest comes first: copies of one vector make a chain, not a star.
        self.scored.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
    }

    fn take(&mut self, rows: &Rows, row: u32, near: &mut Vec<u32>, most: usize) {
        let own = rows.bytes.row(row as usize);
        self.bytes.clear();
        self.factors.clear();
        near.iter().for_each(|to| self.note(rows, *to));
        // One copy of the row's own vector is enough, and stands before nobody: it is as near to all as the row is.
        let mut copy = self.bytes.chunks_exact(own.len()).position(|bytes| bytes == own);
        for i in 0..self.scored.len().min(EF_CONSTRUCTION) {
            if near.len() == most {
                break;
            }
            let (score, to) = self.scored[i];
            let is_copy = rows.bytes.row(to as usize) == own;
            let is_out = if is_copy { copy.is_some() } else { self.is_behind(rows, to, score, copy) };
            if is_out {
                continue;
            }
            copy = copy.or_else(|| is_copy.then_some(near.len()));
            near.push(to);
            self.note(rows, to);
        }
    }

    /// The row is among those taken.
    fn note(&mut self, rows: &Rows, row: u32) {
        self.bytes.extend_from_slice(rows.bytes.row(row as usize));
        let factors = rows.factors.row(row as usize);
        self.factors.push(std::array::from_fn(|i| factors[i]));
    }

    /// Whether a row is at least as near to one of those taken as its score says; but for one.
    fn is_behind(&self, rows: &Rows, row: u32, score: f32, but: Option<usize>) -> bool {
        let (bytes, factors) = (rows.bytes.row(row as usize), rows.factors.row(row as usize));
        let mut taken = self.factors.iter().enumerate();
        self.bytes.chunks(ASKED * bytes.len()).any(|some| {
            let mut products = [0; ASKED];
            let products = &mut products[..some.len() / bytes.len()];
            bytes_products(bytes, some, products);
            let mut all = products.iter().zip(&mut taken);
            all.any(|(product, (at, other))| rows.codec.symmetric(factors, other, *product) >= score && Some(at) != but)
        })
    }
}
