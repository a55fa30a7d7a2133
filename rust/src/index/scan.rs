//! Every row is looked at, by its code: first its bits, then, if they leave it a chance, its bytes.
//!
//! This is how what the graph does not answer yet is searched, and small spaces whole (`docs/design/index.md`). A bit a coordinate is read at the
//! speed of memory; some rows in a hundred pass.

use engram_kernels::{bytes_products, bytes_products_of, planes_products};

use super::candidates::Candidates;
use super::codec::{Coded, bits_tail};
use super::rows::Rows;
use crate::error::Error;
use crate::types::Generation;

/// Rows between two looks at what is the worst that still counts.
const BLOCK: usize = 256;

/// Which rows a search may return.
pub struct Visible<'a> {
    pub upto: Generation,
    /// Whether a row that lives is wanted; asked only for rows that would be hits.
    pub wanted: &'a mut dyn FnMut(Generation) -> Result<bool, Error>,
    /// Asked now and then: an error ends the search.
    pub pulse: &'a dyn Fn() -> Result<(), Error>,
}

/// Room for the work on a block.
#[derive(Default)]
pub(super) struct Block {
    ones: Vec<u32>,
    products: Vec<i32>,
    picked: Vec<u32>,
}

impl Rows {
    /// Rows `from..to` that may be among the best.
    pub(super) fn scan(
        &self,
        query: &Coded,
        (from, to): (usize, usize),
        visible: &mut Visible<'_>,
        block: &mut Block,
        found: &mut Candidates,
    ) -> Result<(), Error> {
        let mut at = from;
        while at < to {
            let rows = self.bytes.run(at, to.min(at + BLOCK)).len() / self.bytes.stride();
            block.picked.clear();
            if let Some(bits) = &self.bits {
                let run = bits.run(at, at + rows);
                block.ones.resize(rows, 0);
                planes_products(&query.planes, run, &mut block.ones);
                for (i, (product, row)) in block.ones.iter().zip(run.chunks_exact(bits.stride())).enumerate() {
                    let (estimate, margin) = query.by_bits(*product, bits_tail(row));
                    if found.admits(estimate + margin) {
                        block.picked.push((at + i) as u32);
                    }
                }
                block.products.resize(block.picked.len(), 0);
                bytes_products_of(&query.bytes, &self.bytes, &block.picked, &mut block.products);
            } else {
                block.products.resize(rows, 0);
                bytes_products(&query.bytes, self.bytes.run(at, at + rows), &mut block.products);
                block.picked.extend((at..at + rows).map(|row| row as u32));
            }
            for (row, product) in block.picked.iter().zip(&block.products) {
                let score = query.by_bytes(*product, self.factors.row(*row as usize));
                self.offer(*row, score, query, visible, found)?;
            }
            if (at / BLOCK).is_multiple_of(64) {
                (visible.pulse)()?;
            }
            at += rows;
        }
        Ok(())
    }

    /// The row, of which its bytes say so much, is a candidate if that leaves it a chance and it may be returned. Whether it may, as far as
    /// it was asked: who has no chance counts as if it might.
    pub(super) fn offer(
        &self,
        row: u32,
        score: f32,
        query: &Coded,
        visible: &mut Visible<'_>,
        found: &mut Candidates,
    ) -> Result<bool, Error> {
        let margin = query.bytes_margin(self.factors.row(row as usize));
        if !found.admits(score + margin) {
            return Ok(true);
        }
        let generation = self.generation(row);
        let may = self.lives(row, visible.upto) && (visible.wanted)(generation)?;
        if may {
            found.push(generation, score, margin);
        }
        Ok(may)
    }
}
