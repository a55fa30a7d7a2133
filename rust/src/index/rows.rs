//! The rows of an index: their codes, and when they were born and died.
//!
//! A row is a position; it never moves. One writer appends, under its space's lock, and publishes codes last, so that whoever sees a row
//! sees all of it. Deaths are set once (Relaxed: who looks at W has W's view, which came after; as in `store::deaths`).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use engram_kernels::{Arena, BLOCK, BLOCK_BITS_MAX, BLOCK_FACTORS, transpose};

use super::codec::{Codec, Draft, FACTORS, block_factors};
use crate::types::{Generation, Metric};

pub(super) struct Rows {
    pub(super) codec: Codec,
    pub(super) bytes: Arena<i8>,
    pub(super) bits: Option<Arena<u64>>,
    pub(super) factors: Arena<f32>,
    pub(super) blocks: Option<Blocks>,
    generations: Arena<u64>,
    died: Arena<AtomicU64>,
    /// Rows that died, at whatever generation. Relaxed: a statistic.
    dead: AtomicUsize,
}

/// The bits of 32 rows at a time, side by side, and what belongs to them: written when the 32 are there.
pub(super) struct Blocks {
    pub(super) bits: Arena<u8>,
    pub(super) factors: Arena<f32>,
}

/// A row's code, and what else is known of it.
pub(super) struct Held<'a> {
    pub(super) generation: Generation,
    pub(super) bytes: &'a [i8],
    pub(super) bits: &'a [u64],
    pub(super) factors: &'a [f32],
}

impl Rows {
    pub(super) fn new(dim: usize, metric: Metric, seed: u64) -> Self {
        let codec = Codec::new(dim, metric, seed);
        let (bytes, bits) = codec.strides();
        Self {
            codec,
            bytes: Arena::new(bytes),
            blocks: bits
                .filter(|_| bytes <= BLOCK_BITS_MAX)
                .map(|_| Blocks { bits: Arena::new(BLOCK * bytes / 8), factors: Arena::new(BLOCK * BLOCK_FACTORS) }),
            bits: bits.map(Arena::new),
            factors: Arena::new(FACTORS),
            generations: Arena::new(1),
            died: Arena::new(1),
            dead: AtomicUsize::new(0),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a vector, little-endian bytes; generations ascend. Only one thread at a time.
    pub(super) fn append(&self, generation: Generation, vector: &[u8], inverse_norm: f32, draft: &mut Draft) {
        self.codec.code_row(vector, inverse_norm, draft);
        self.push(&Held { generation, bytes: &draft.bytes, bits: &draft.bits, factors: &draft.factors }, Generation(0));
    }

    /// Adds a coded row, and when it died (0: it lives). Only one thread at a time.
    pub(super) fn push(&self, held: &Held<'_>, died: Generation) {
        debug_assert!(
            self.len() == 0 || self.generation(self.len() as u32 - 1) < held.generation,
            "rows come in order"
        );
        self.generations.extend(1, |_, row| row[0] = held.generation.0);
        self.died.extend(1, |_, row| row[0] = AtomicU64::new(died.0));
        // Relaxed: a statistic.
        self.dead.fetch_add(usize::from(died.0 > 0), Ordering::Relaxed);
        self.factors.extend(1, |_, row| row.copy_from_slice(held.factors));
        if let Some(bits) = &self.bits {
            bits.extend(1, |_, row| row.copy_from_slice(held.bits));
        }
        self.bytes.extend(1, |_, row| row.copy_from_slice(held.bytes));
        if self.len().is_multiple_of(BLOCK) {
            self.close_block();
        }
    }

    /// Puts the last 32 rows side by side.
    fn close_block(&self) {
        let (Some(blocks), Some(bits)) = (&self.blocks, &self.bits) else { return };
        let rows: Vec<&[u64]> = (self.len() - BLOCK..self.len()).map(|row| bits.row(row)).collect();
        blocks.factors.extend(1, |_, factors| {
            for (i, row) in rows.iter().enumerate() {
                let of = block_factors(row);
                of.iter().enumerate().for_each(|(kind, factor)| factors[kind * BLOCK + i] = *factor);
            }
        });
        // Last: who sees it sees both.
        blocks.bits.extend(1, |_, block| transpose(&rows, block));
    }

    /// Has the memory of the next rows ready.
    pub(super) fn ready_ahead(&self) {
        self.bytes.ready_ahead();
        self.factors.ready_ahead();
        self.generations.ready_ahead();
        self.died.ready_ahead();
        self.bits.iter().for_each(Arena::ready_ahead);
        if let Some(blocks) = &self.blocks {
            blocks.bits.ready_ahead();
            blocks.factors.ready_ahead();
        }
    }

    pub(super) fn held(&self, row: u32) -> Held<'_> {
        let at = row as usize;
        let bits = self.bits.as_ref().map_or(&[][..], |bits| bits.row(at));
        Held { generation: self.generation(row), bytes: self.bytes.row(at), bits, factors: self.factors.row(at) }
    }

    pub(super) fn dead(&self) -> usize {
        self.dead.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn generation(&self, row: u32) -> Generation {
        Generation(self.generations.row(row as usize)[0])
    }

    /// Asks for the code by which a row will be scored.
    #[inline]
    pub(super) fn prefetch(&self, row: u32) {
        self.bytes.prefetch(row as usize);
        self.factors.prefetch(row as usize);
    }

    /// Asks for the code by which a row will be looked at first.
    #[inline]
    pub(super) fn prefetch_first(&self, row: u32) {
        match &self.bits {
            Some(bits) => bits.prefetch(row as usize),
            None => self.prefetch(row),
        }
    }

    /// How many rows have a generation ≤ `upto`.
    pub(super) fn up_to(&self, upto: Generation) -> usize {
        let (mut low, mut high) = (0, self.len());
        if high > 0 && self.generation(high as u32 - 1) <= upto {
            return high;
        }
        while low < high {
            let mid = usize::midpoint(low, high);
            if self.generation(mid as u32) <= upto { low = mid + 1 } else { high = mid }
        }
        low
    }

    /// The row died; the first death stays.
    pub(super) fn kill(&self, generation: Generation, death: Generation) {
        let Some(row) = self.up_to(generation).checked_sub(1) else { return };
        if self.generation(row as u32) == generation {
            let new = self.died.row(row)[0].compare_exchange(0, death.0, Ordering::Relaxed, Ordering::Relaxed);
            self.dead.fetch_add(usize::from(new.is_ok()), Ordering::Relaxed);
        }
    }

    /// When the row died; 0: it lives.
    pub(super) fn died(&self, row: u32) -> Generation {
        Generation(self.died.row(row as usize)[0].load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn lives(&self, row: u32, upto: Generation) -> bool {
        let died = self.died(row);
        died.0 == 0 || died > upto
    }
}
