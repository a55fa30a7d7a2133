//! The rows of an index: their codes, and when they were born and died.
//!
//! A row is a position; it never moves. One writer appends, under its space's lock, and publishes codes last, so that whoever sees a row
//! sees all of it. Deaths are set once (Relaxed: who looks at W has W's view, which came after; as in `store::deaths`).

use std::sync::atomic::{AtomicU64, Ordering};

use engram_kernels::Arena;

use super::codec::{Codec, Draft, FACTORS};
use super::walk::By;
use crate::types::{Generation, Metric};

pub(super) struct Rows {
    pub(super) codec: Codec,
    pub(super) bytes: Arena<i8>,
    pub(super) bits: Option<Arena<u64>>,
    pub(super) factors: Arena<f32>,
    generations: Arena<u64>,
    died: Arena<AtomicU64>,
}

impl Rows {
    pub(super) fn new(dim: usize, metric: Metric, seed: u64) -> Self {
        let codec = Codec::new(dim, metric, seed);
        let (bytes, bits) = codec.strides();
        Self {
            codec,
            bytes: Arena::new(bytes),
            bits: bits.map(Arena::new),
            factors: Arena::new(FACTORS),
            generations: Arena::new(1),
            died: Arena::new(1),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a vector, little-endian bytes; generations ascend. Only one thread at a time.
    pub(super) fn append(&self, generation: Generation, vector: &[u8], inverse_norm: f32, draft: &mut Draft) {
        debug_assert!(self.len() == 0 || self.generation(self.len() as u32 - 1) < generation, "rows come in order");
        self.codec.code_row(vector, inverse_norm, draft);
        self.generations.extend(1, |_, row| row[0] = generation.0);
        self.died.extend(1, |_, _| {});
        self.factors.extend(1, |_, row| row.copy_from_slice(&draft.factors));
        if let Some(bits) = &self.bits {
            bits.extend(1, |_, row| row.copy_from_slice(&draft.bits));
        }
        self.bytes.extend(1, |_, row| row.copy_from_slice(&draft.bytes));
    }

    #[inline]
    pub(super) fn generation(&self, row: u32) -> Generation {
        Generation(self.generations.row(row as usize)[0])
    }

    /// Asks for the code by which a row will be scored.
    #[inline]
    pub(super) fn prefetch(&self, row: u32, by: By) {
        match (by, &self.bits) {
            (By::Bits, Some(bits)) => bits.prefetch(row as usize),
            _ => {
                self.bytes.prefetch(row as usize);
                self.factors.prefetch(row as usize);
            }
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
            let _ = self.died.row(row)[0].compare_exchange(0, death.0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn lives(&self, row: u32, upto: Generation) -> bool {
        let died = self.died.row(row as usize)[0].load(Ordering::Relaxed);
        died == 0 || died > upto.0
    }
}
