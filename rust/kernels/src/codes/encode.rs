//! From coordinates to codes.

use super::{PLANES, WIDTH, for_levels};
#[cfg(target_arch = "x86_64")]
use crate::simd::Level::{Avx2, Avx512};
use crate::simd::{Level, level};

/// Added to what is smaller than 2²², it leaves the nearest integer (the even one of two) in the lowest bits.
const ROUND: f32 = 12_582_912.0;
/// A byte's greatest value: -128 is left out, so that every value has a negative.
const BYTE_MAX: f32 = 127.0;

/// What a code leaves out, and needs to be read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coded {
    /// A byte of 1 stands for so much.
    pub scale: f32,
    /// The vector's norm, squared.
    pub norm_squared: f32,
    /// The sum of the coordinates' absolute values.
    pub absolute: f32,
}

/// Codes a rotated vector: its coordinates as bytes, and their signs as bits (1: not negative), a word for 64 of them.
///
/// # Panics
/// If the lengths do not fit each other, or are no multiple of [`WIDTH`].
pub fn encode(vector: &[f32], bytes: &mut [i8], bits: &mut [u64]) -> Coded {
    encode_at(level(), vector, bytes, bits)
}

/// [`encode`] at a named level.
///
/// # Panics
/// As [`encode`], or if this CPU lacks the level.
pub fn encode_at(level: Level, vector: &[f32], bytes: &mut [i8], bits: &mut [u64]) -> Coded {
    assert!(level.is_available(), "this CPU lacks the SIMD level {level}");
    assert!(vector.len() == bytes.len() && vector.len() == bits.len() * WIDTH, "lengths of codes");
    match level {
        // SAFETY: asserted above; AVX-512 comes with AVX2.
        #[cfg(target_arch = "x86_64")]
        Avx2 | Avx512 => unsafe { avx2::signs(vector, bits) },
        _ => signs(vector, bits),
    }
    for_levels!(level, codes(vector: &[f32], bytes: &mut [i8]) -> Coded)
}

/// A word for 64 coordinates: 1 where one is not negative.
fn signs(vector: &[f32], bits: &mut [u64]) {
    for (word, block) in bits.iter_mut().zip(vector.as_chunks::<WIDTH>().0) {
        *word = (0..WIDTH).fold(0, |word, j| word | u64::from(block[j] >= 0.0) << j);
    }
}

#[inline(always)]
fn codes(vector: &[f32], bytes: &mut [i8]) -> Coded {
    // Sixteen sums side by side, so that their order is the same at every level.
    let (mut most, mut squares, mut absolutes) = ([0.0_f32; 16], [0.0_f32; 16], [0.0_f32; 16]);
    for block in vector.as_chunks::<16>().0 {
        for j in 0..16 {
            let x = block[j].abs();
            most[j] = if x > most[j] { x } else { most[j] };
            squares[j] += x * x;
            absolutes[j] += x;
        }
    }
    let greatest = most.iter().fold(0.0_f32, |a, b| a.max(*b));
    // What is too small to be told from zero is zero.
    let inverse = if greatest > f32::MIN_POSITIVE * BYTE_MAX { BYTE_MAX / greatest } else { 0.0 };
    for (byte, x) in bytes.iter_mut().zip(vector) {
        *byte = (x * inverse + ROUND).to_bits() as i8;
    }
    Coded {
        scale: if inverse > 0.0 { greatest / BYTE_MAX } else { 0.0 },
        norm_squared: squares.iter().sum(),
        absolute: absolutes.iter().sum(),
    }
}

/// The bytes of a code as [`PLANES`] bits each, shifted to be positive: word w of plane p is at `PLANES · w + p`. A byte b becomes
/// `(b + 128) / 16`, so it stands for `16 · that + 8 - 128`. Returns the sum of what they stand for.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn planes(bytes: &[i8], out: &mut [u64]) -> i32 {
    planes_at(level(), bytes, out)
}

/// [`planes`] at a named level.
///
/// # Panics
/// As [`planes`], or if this CPU lacks the level.
pub fn planes_at(level: Level, bytes: &[i8], out: &mut [u64]) -> i32 {
    assert!(level.is_available(), "this CPU lacks the SIMD level {level}");
    assert!(bytes.len() * PLANES == out.len() * WIDTH, "lengths of planes");
    match level {
        // SAFETY: asserted above; AVX-512 comes with AVX2.
        #[cfg(target_arch = "x86_64")]
        Avx2 | Avx512 => unsafe { avx2::split(bytes, out) },
        _ => split(bytes, out),
    }
    let ones = |plane: usize| out.iter().skip(plane).step_by(PLANES).map(|word| word.count_ones() as i32).sum::<i32>();
    (0..PLANES).map(|plane| ones(plane) << plane).sum::<i32>() * 16 - 120 * bytes.len() as i32
}

fn split(bytes: &[i8], out: &mut [u64]) {
    for (block, words) in bytes.as_chunks::<WIDTH>().0.iter().zip(out.as_chunks_mut::<PLANES>().0) {
        *words = [0; PLANES];
        for (j, byte) in block.iter().enumerate() {
            let nibble = ((i32::from(*byte) + 128) >> 4) as u64;
            for (plane, word) in words.iter_mut().enumerate() {
                *word |= (nibble >> plane & 1) << j;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256i, _CMP_GE_OQ, _mm256_cmp_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_movemask_epi8,
        _mm256_movemask_ps, _mm256_set1_epi8, _mm256_setzero_ps, _mm256_slli_epi16, _mm256_xor_si256,
    };

    use super::{PLANES, WIDTH};

    #[target_feature(enable = "avx2")]
    pub(super) fn signs(vector: &[f32], bits: &mut [u64]) {
        for (word, block) in bits.iter_mut().zip(vector.as_chunks::<WIDTH>().0) {
            *word = 0;
            for (i, eight) in block.as_chunks::<8>().0.iter().enumerate() {
                // SAFETY: eight floats are 32 bytes; the load needs no alignment.
                let eight = unsafe { _mm256_loadu_ps(eight.as_ptr()) };
                let mask = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(eight, _mm256_setzero_ps()));
                *word |= u64::from(mask.cast_unsigned()) << (8 * i);
            }
        }
    }

    /// The highest bit of every byte.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn highest(bytes: __m256i) -> u64 {
        u64::from(_mm256_movemask_epi8(bytes).cast_unsigned())
    }

    /// Shifted by a bit after the other, each of a byte's upper four becomes its highest; what comes over from the byte below stays
    /// under it.
    #[target_feature(enable = "avx2")]
    pub(super) fn split(bytes: &[i8], out: &mut [u64]) {
        for (block, words) in bytes.as_chunks::<WIDTH>().0.iter().zip(out.as_chunks_mut::<PLANES>().0) {
            *words = [0; PLANES];
            for (i, half) in block.as_chunks::<32>().0.iter().enumerate() {
                // SAFETY: the half has 32 bytes; the load needs no alignment.
                let half = unsafe { _mm256_loadu_si256(half.as_ptr().cast()) };
                let shifted = _mm256_xor_si256(half, _mm256_set1_epi8(i8::MIN));
                words[3] |= highest(shifted) << (32 * i);
                words[2] |= highest(_mm256_slli_epi16::<1>(shifted)) << (32 * i);
                words[1] |= highest(_mm256_slli_epi16::<2>(shifted)) << (32 * i);
                words[0] |= highest(_mm256_slli_epi16::<3>(shifted)) << (32 * i);
            }
        }
    }
}
