//! Every row is looked at, by its code: first its bits, then, if they leave it a chance, its bytes.
//!
//! This is how what the graph does not answer yet is searched, and small spaces whole (`docs/design/index.md`). A bit a coordinate is read at the
//! speed of memory; some rows in a hundred pass.

use engram_kernels::{
    Arena, BLOCK, BLOCK_FACTORS, Level, PLANES, blocks_limits, blocks_products, bytes_products, bytes_products_of,
    level, planes_products, table,
};

use super::candidates::Candidates;
use super::codec::{Coded, bits_tail};
use super::rows::{Blocks, Rows};
use crate::env::Clock;
use crate::error::Error;
use crate::types::Generation;

/// Rows between two looks at what is the worst that still counts.
const ROWS: usize = 256;
/// So many rows are worth a table.
const TABLE_ROWS_MIN: usize = 1_024;

/// Blocks that are looked through to learn how fast that goes, and what all the rest takes beside it: margins, bytes of what passes, memory.
const TRIAL_BLOCKS: usize = 512;
const REST: u64 = 5;
/// Where no time passes: on a simulated clock.
const PICOS_UNKNOWN: u64 = 150;

/// Picoseconds that a scan takes for a byte of a row's code on this machine.
pub fn scan_picos(clock: &dyn Clock) -> u64 {
    let (words, mut looked_up) = (6, Vec::new());
    table(&vec![u64::MAX; words * PLANES], &mut looked_up);
    let blocks = vec![0x5a; TRIAL_BLOCKS * BLOCK * words * 8];
    let mut sums = vec![0; TRIAL_BLOCKS * BLOCK];
    let mut least = u64::MAX;
    for _ in 0..4 {
        let begun = clock.monotonic_nanos();
        blocks_products(&looked_up, &blocks, &mut sums);
        least = least.min(clock.monotonic_nanos() - begun);
    }
    match least * 1_000 * REST / 2 / blocks.len() as u64 {
        0 => PICOS_UNKNOWN,
        picos => picos,
    }
}

/// Which rows a search may return.
pub struct Visible<'a> {
    pub upto: Generation,
    /// Whether a row that lives is wanted; asked only for rows that would be hits.
    pub wanted: &'a mut dyn FnMut(Generation) -> Result<bool, Error>,
    /// Asked now and then: an error ends the search.
    pub pulse: &'a dyn Fn() -> Result<(), Error>,
}

/// Room for the work on a stretch of rows.
#[derive(Default)]
pub(super) struct Stretch {
    table: Vec<u8>,
    sums: Vec<u16>,
    limits: Vec<f32>,
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
        room: &mut Stretch,
        found: &mut Candidates,
    ) -> Result<(), Error> {
        // With plain instructions a table is slower than counting, and for few rows it is not worth making.
        let blocks = self.blocks.as_ref().filter(|_| to - from >= TABLE_ROWS_MIN && level() > Level::Scalar);
        if blocks.is_some() {
            table(&query.planes, &mut room.table);
        }
        let (mut at, mut stretches) = (from, 0);
        while at < to {
            room.picked.clear();
            let begin = at;
            let closed = blocks.map_or(0, |blocks| blocks.bits.len() * BLOCK).min(to);
            at = match (blocks, &self.bits) {
                (Some(blocks), _) if at < closed => blocks.pick(query, (at, closed), room, found.floor()),
                (_, Some(bits)) => pick_bits(bits, query, (at, to), room, found),
                _ => {
                    let end = at + self.bytes.run(at, to.min(at + ROWS)).len() / self.bytes.stride();
                    room.picked.extend(at as u32..end as u32);
                    end
                }
            };
            room.products.resize(room.picked.len(), 0);
            match self.bits {
                Some(_) => bytes_products_of(&query.bytes, &self.bytes, &room.picked, &mut room.products),
                None => bytes_products(&query.bytes, self.bytes.run(begin, at), &mut room.products),
            }
            for (row, product) in room.picked.iter().zip(&room.products) {
                let score = query.by_bytes(*product, self.factors.row(*row as usize));
                self.offer(*row, score, query, visible, found)?;
            }
            stretches += 1;
            if stretches % 64 == 0 {
                (visible.pulse)()?;
            }
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

impl Blocks {
    /// Picks of rows `from..to`, which lie in whole blocks, those that their bits leave a chance; up to where it looked.
    fn pick(&self, query: &Coded, (from, to): (usize, usize), room: &mut Stretch, floor: f32) -> usize {
        let first = from / BLOCK;
        let run = self.bits.run(first, to.div_ceil(BLOCK).min(first + ROWS / BLOCK));
        let blocks = run.len() / self.bits.stride();
        room.sums.resize(blocks * BLOCK, 0);
        room.limits.resize(blocks * BLOCK, 0.0);
        blocks_products(&room.table, run, &mut room.sums);
        let factors = self.factors.run(first, first + blocks);
        debug_assert_eq!(factors.len(), blocks * BLOCK * BLOCK_FACTORS, "both lie alike");
        blocks_limits(&room.sums, factors, query.block_terms(), &mut room.limits);
        for (i, limits) in room.limits.as_chunks::<BLOCK>().0.iter().enumerate() {
            // Few blocks have any: this loop is the one that counts.
            if limits.iter().filter(|limit| **limit >= floor).count() > 0 {
                let rows = (first + i) * BLOCK..;
                let good = rows.zip(limits).filter(|(row, limit)| **limit >= floor && (from..to).contains(row));
                room.picked.extend(good.map(|(row, _)| row as u32));
            }
        }
        to.min((first + blocks) * BLOCK)
    }
}

/// The same, row by row.
fn pick_bits(
    bits: &Arena<u64>,
    query: &Coded,
    (at, to): (usize, usize),
    room: &mut Stretch,
    found: &Candidates,
) -> usize {
    let run = bits.run(at, to.min(at + ROWS));
    let rows = run.len() / bits.stride();
    room.ones.resize(rows, 0);
    planes_products(&query.planes, run, &mut room.ones);
    for (i, (product, row)) in room.ones.iter().zip(run.chunks_exact(bits.stride())).enumerate() {
        let (estimate, margin) = query.by_bits(*product, bits_tail(row));
        if found.admits(estimate + margin) {
            room.picked.push((at + i) as u32);
        }
    }
    at + rows
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::codec::Draft;
    use super::*;
    use crate::types::Metric;

    /// Blocks pick what rows one by one pick, or more: the k nearest are the same, wherever a scan begins and ends.
    #[test]
    fn blocks_find_what_rows_find() {
        for metric in [Metric::Cosine, Metric::L2, Metric::InnerProduct] {
            let (dim, n) = (120, 3_000);
            let mut rows = Rows::new(dim, metric, 5);
            let value =
                |row: usize, i: usize| ((row * 31 + i * i * 7 + row * i * 3) % 101) as f32 - 50.0 + (row % 7) as f32;
            let vectors: Vec<Vec<f32>> = (0..n).map(|row| (0..dim).map(|i| value(row, i)).collect()).collect();
            let inverse_norm = |v: &[f32]| 1.0 / v.iter().map(|x| x * x).sum::<f32>().sqrt();
            let mut draft = Draft::default();
            for (row, vector) in vectors.iter().enumerate() {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                rows.append(Generation(row as u64 + 1), &bytes, inverse_norm(vector), &mut draft);
            }
            let found = |rows: &Rows, range, cue: usize| {
                let query = rows.codec.code_query(&vectors[cue], inverse_norm(&vectors[cue]));
                let mut all = |_| Ok(true);
                let mut visible = Visible { upto: Generation(u64::MAX), wanted: &mut all, pulse: &|| Ok(()) };
                let (mut found, mut room) = (Candidates::new(10), Stretch::default());
                rows.scan(&query, range, &mut visible, &mut room, &mut found).unwrap();
                let by_bytes = |generation: Generation| {
                    let row = generation.0 as usize - 1;
                    Ok(vectors[row].iter().zip(&vectors[cue]).map(|(a, b)| a * b).sum())
                };
                found.settle(by_bytes).unwrap().into_sorted()
            };
            let ranges = [(0, n), (0, 1_024), (7, 2_999), (31, 1_056), (1_000, 2_048), (2_980, n)];
            let by_blocks: Vec<_> =
                ranges.iter().flat_map(|r| [found(&rows, *r, 3), found(&rows, *r, 2_000)]).collect();
            rows.blocks = None;
            let by_rows: Vec<_> = ranges.iter().flat_map(|r| [found(&rows, *r, 3), found(&rows, *r, 2_000)]).collect();
            assert_eq!(by_blocks, by_rows, "{metric:?}");
        }
    }
}
