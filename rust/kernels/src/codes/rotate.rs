//! A random rotation in a few thousand additions.
//!
//! Four rounds of: random signs, a Hadamard transform of the greatest power of two that fits, at the front or at the end by
//! turns, and sums and differences of the two halves. Each step is orthogonal, so lengths and products stay what they were; the
//! signs are drawn from a seed. (The structure of Ailon and Chazelle's fast Johnson-Lindenstrauss transform, STOC 2006.)
//!
//! Additions and one multiplication a round, each rounded once: the same bits at every level.

use super::{WIDTH, for_levels};
use crate::simd::{Level, level};

const ROUNDS: usize = 4;

/// A rotation of vectors padded with zeros to a multiple of [`WIDTH`].
#[derive(Clone, Debug)]
pub struct Rotation {
    padded: usize,
    /// A sign a coordinate and round: 1 or -1.
    signs: Vec<f32>,
}

impl Rotation {
    /// For vectors of `dim` coordinates, from a seed.
    #[must_use]
    pub fn new(dim: usize, seed: u64) -> Self {
        let padded = dim.next_multiple_of(WIDTH);
        let mut state = seed;
        let signs = (0..ROUNDS * padded).map(|_| if split_mix(&mut state) >> 63 == 0 { 1.0 } else { -1.0 });
        Self { padded, signs: signs.collect() }
    }

    /// Coordinates of a padded vector.
    #[must_use]
    pub fn padded(&self) -> usize {
        self.padded
    }

    /// Turns a padded vector.
    ///
    /// # Panics
    /// If the length is not that of a padded vector.
    pub fn apply(&self, vector: &mut [f32]) {
        self.apply_at(level(), vector);
    }

    /// [`Rotation::apply`] at a named level.
    ///
    /// # Panics
    /// If the length is not that of a padded vector, or this CPU lacks the level.
    pub fn apply_at(&self, level: Level, vector: &mut [f32]) {
        assert!(level.is_available() && vector.len() == self.padded, "a padded vector has {} coordinates", self.padded);
        let signs = &self.signs[..];
        for_levels!(level, rounds(signs: &[f32], vector: &mut [f32]));
    }
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[inline(always)]
fn rounds(signs: &[f32], vector: &mut [f32]) {
    let padded = vector.len();
    let power = 1 << padded.ilog2();
    let scale = 1.0 / (power as f32).sqrt();
    for (round, signs) in signs.chunks_exact(padded).enumerate() {
        for (x, sign) in vector.iter_mut().zip(signs) {
            *x *= *sign;
        }
        let at = if round % 2 == 0 { 0 } else { padded - power };
        let part = &mut vector[at..at + power];
        hadamard(part);
        part.iter_mut().for_each(|x| *x *= scale);
        if power < padded {
            let (front, back) = vector.split_at_mut(padded / 2);
            for (a, b) in front.iter_mut().zip(back) {
                (*a, *b) = ((*a + *b) * std::f32::consts::FRAC_1_SQRT_2, (*a - *b) * std::f32::consts::FRAC_1_SQRT_2);
            }
        }
    }
}

/// The transform without its scale: butterflies of distance 1, 2, 4 … in blocks of eight, then of whole vectors.
#[inline(always)]
fn hadamard(part: &mut [f32]) {
    for block in part.as_chunks_mut::<8>().0 {
        let [a, b, c, d, e, f, g, h] = *block;
        let (a, b, c, d, e, f, g, h) = (a + b, a - b, c + d, c - d, e + f, e - f, g + h, g - h);
        let (a, b, c, d, e, f, g, h) = (a + c, b + d, a - c, b - d, e + g, f + h, e - g, f - h);
        *block = [a + e, b + f, c + g, d + h, a - e, b - f, c - g, d - h];
    }
    let mut distance = 8;
    while distance < part.len() {
        for pair in part.chunks_exact_mut(2 * distance) {
            let (front, back) = pair.split_at_mut(distance);
            for (a, b) in front.iter_mut().zip(back) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        distance *= 2;
    }
}
