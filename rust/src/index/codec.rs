//! How a space's vectors are coded, and what two codes say of their score.
//!
//! A row has a byte a coordinate and, from 96 dimensions on, a bit a coordinate; both come from the vector turned by one random rotation a
//! space (below 96 it is not turned, and has no bits: they would be too rough). A query is coded in bytes, and in planes of four bits to
//! meet rows' bits. From codes a score is `scale · factor · product + bias`, where factor and bias belong to the row; greater is closer, up to a constant that
//! belongs to the query. Next to each estimate stands a margin: the true score lies above it about once in a thousand rows.
//!
//! The metrics differ only in the row's weight and bias: cosine divides by the norm; L2 scores `2⟨q,x⟩ - |x|²`, which is `-|q-x|²` less
//! the query's part; inner product takes the product. (Bits: RaBitQ, arXiv 2405.12497, section 3.)

use engram_kernels::{BLOCK_FACTORS, PLANES, Rotation, WIDTH, encode, planes};

use crate::types::Metric;

/// Below it a bit a coordinate says too little.
const BITS_DIM_MIN: usize = 96;
/// Standard deviations that a margin allows for; bytes are cheap to be sure of.
const BITS_SIGMAS: f32 = 3.2;
const BYTES_SIGMAS: f32 = 4.0;

pub(super) struct Codec {
    pub(super) metric: Metric,
    pub(super) dim: usize,
    padded: usize,
    rotation: Option<Rotation>,
}

/// A query, coded.
#[derive(Clone, Debug, Default)]
pub(super) struct Coded {
    pub(super) bytes: Vec<i8>,
    pub(super) planes: Vec<u64>,
    /// The sum of what the planes stand for.
    sum: f32,
    scale: f32,
    /// The query's norm, weighted as `scale` is.
    norm: f32,
}

/// What a row's bytes leave out: factor, bias and weighted norm.
pub(super) const FACTORS: usize = 3;
/// Bytes that a row takes beside its codes: generation, death, factors, links, place in the tree.
const HELD_BESIDE: usize = 180;
/// Words behind a row's bits: factor and spread, ones and bias.
const BITS_FACTORS: usize = 2;

/// Room for one row's code.
#[derive(Default)]
pub(super) struct Draft {
    turned: Vec<f32>,
    pub(super) bytes: Vec<i8>,
    /// Empty if rows have none.
    pub(super) bits: Vec<u64>,
    pub(super) factors: [f32; FACTORS],
}

impl Codec {
    pub(super) fn new(dim: usize, metric: Metric, seed: u64) -> Self {
        let rotation = (dim >= BITS_DIM_MIN).then(|| Rotation::new(dim, seed));
        Self { metric, dim, padded: dim.next_multiple_of(WIDTH), rotation }
    }

    /// Bytes of a row, and words of its bits with what belongs to them; none below 96 dimensions.
    pub(super) fn strides(&self) -> (usize, Option<usize>) {
        (self.padded, self.rotation.as_ref().map(|_| self.padded / WIDTH + BITS_FACTORS))
    }

    fn turn(&self, vector: impl Iterator<Item = f32>, out: &mut Vec<f32>) {
        out.clear();
        out.extend(vector);
        debug_assert_eq!(out.len(), self.dim, "a vector of the space");
        out.resize(self.padded, 0.0);
        if let Some(rotation) = &self.rotation {
            rotation.apply(out);
        }
    }

    /// Codes a stored vector: little-endian bytes, four a coordinate.
    pub(super) fn code_row(&self, vector: &[u8], inverse_norm: f32, draft: &mut Draft) {
        let mut turned = std::mem::take(&mut draft.turned);
        self.turn(vector.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)), &mut turned);
        draft.bytes.resize(self.padded, 0);
        draft.bits.resize(self.padded / WIDTH, 0);
        let coded = encode(&turned, &mut draft.bytes, &mut draft.bits);
        draft.turned = turned;
        let (weight, bias) = match self.metric {
            Metric::Cosine => (inverse_norm, 0.0),
            Metric::L2 => (2.0, -coded.norm_squared),
            Metric::InnerProduct => (1.0, 0.0),
        };
        let norm = coded.norm_squared.sqrt();
        draft.factors = [weight * coded.scale, bias, weight * norm];
        if self.rotation.is_none() {
            draft.bits.clear();
            return;
        }
        let ones: u32 = draft.bits.iter().map(|w| w.count_ones()).sum();
        let root = (self.padded as f32).sqrt();
        // How well the signs stand for the vector: 1 if all coordinates are equally great.
        let aligned = if norm > 0.0 { coded.absolute / (norm * root) } else { 1.0 };
        let factor = if coded.absolute > 0.0 { weight * coded.norm_squared / coded.absolute } else { 0.0 };
        let spread = BITS_SIGMAS * weight * norm * (1.0 / (aligned * aligned) - 1.0).max(0.0).sqrt() / root;
        draft.bits.extend([pair(factor.to_bits(), spread.to_bits()), pair(ones, bias.to_bits())]);
    }

    /// Codes a cue.
    pub(super) fn code_query(&self, cue: &[f32], inverse_norm: f32) -> Coded {
        let mut turned = Vec::new();
        self.turn(cue.iter().copied(), &mut turned);
        let (mut bytes, mut bits) = (vec![0; self.padded], vec![0; self.padded / WIDTH]);
        let coded = encode(&turned, &mut bytes, &mut bits);
        let weight = if self.metric == Metric::Cosine { inverse_norm } else { 1.0 };
        let mut out = Coded { bytes, ..Coded::default() };
        self.finish(&mut out, weight * coded.scale, weight * coded.norm_squared.sqrt());
        out
    }

    /// A row as a query: what it scores of others lacks only its own bias.
    pub(super) fn query_of_row(&self, bytes: &[i8], factors: &[f32], out: &mut Coded) {
        out.bytes.clear();
        out.bytes.extend_from_slice(bytes);
        let half = if self.metric == Metric::L2 { 0.5 } else { 1.0 };
        self.finish(out, half * factors[0], half * factors[2]);
    }

    /// The score of two rows, the same both ways, from the product of their bytes.
    #[inline]
    pub(super) fn symmetric(&self, a: &[f32], b: &[f32], product: i32) -> f32 {
        let half = if self.metric == Metric::L2 { 0.5 } else { 1.0 };
        half * a[0] * b[0] * product as f32 + a[1] + b[1]
    }

    fn finish(&self, query: &mut Coded, scale: f32, norm: f32) {
        (query.scale, query.norm) = (scale, norm);
        if self.rotation.is_some() {
            query.planes.resize(self.padded / WIDTH * PLANES, 0);
            query.sum = planes(&query.bytes, &mut query.planes) as f32;
        }
    }
}

impl Coded {
    /// The score by bytes.
    #[inline]
    pub(super) fn by_bytes(&self, product: i32, factors: &[f32]) -> f32 {
        self.scale * factors[0] * product as f32 + factors[1]
    }

    /// What the true score may lie above that by bytes.
    #[inline]
    pub(super) fn bytes_margin(&self, factors: &[f32]) -> f32 {
        let (of_row, of_query) = (factors[0] * self.norm, self.scale * factors[2]);
        BYTES_SIGMAS / 12.0_f32.sqrt() * (of_row * of_row + of_query * of_query).sqrt()
    }

    /// What the limits of blocks take of a query.
    pub(super) fn block_terms(&self) -> (f32, f32, f32) {
        (self.scale, self.sum, self.norm)
    }

    /// The score by bits, and what the true one may lie above it; `tail` is what stands behind a row's bits.
    #[inline]
    pub(super) fn by_bits(&self, product: u32, tail: &[u64]) -> (f32, f32) {
        let ([factor, spread], [ones, bias]) = (unpair(tail[0]), unpair(tail[1]));
        let in_ones = 16.0 * product as f32 - 120.0 * ones as f32;
        let estimate = self.scale * f32::from_bits(factor) * (2.0 * in_ones - self.sum) + f32::from_bits(bias);
        (estimate, self.norm * f32::from_bits(spread))
    }
}

/// The words behind each row's bits.
#[inline]
pub(super) fn bits_tail(bits: &[u64]) -> &[u64] {
    &bits[bits.len() - BITS_FACTORS..]
}

/// Factor, ones, bias and spread of a row's bits, as estimates of blocks take them.
pub(super) fn block_factors(bits: &[u64]) -> [f32; BLOCK_FACTORS] {
    let tail = bits_tail(bits);
    let ([factor, spread], [ones, bias]) = (unpair(tail[0]), unpair(tail[1]));
    [f32::from_bits(factor), ones as f32, f32::from_bits(bias), f32::from_bits(spread)]
}

/// Bytes that a row with so many coordinates takes in an index, links included.
pub fn held_bytes(dim: usize) -> usize {
    let (padded, bits) = (dim.next_multiple_of(WIDTH), if dim >= BITS_DIM_MIN { 2 * (dim / 8 + 16) } else { 0 });
    padded + bits + HELD_BESIDE
}

/// Bytes of a row with so many coordinates that a scan reads, but for those that pass.
pub fn scanned_bytes(dim: usize) -> usize {
    let padded = dim.next_multiple_of(WIDTH);
    if dim >= BITS_DIM_MIN { padded / 8 } else { padded }
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

#[inline]
fn unpair(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}
