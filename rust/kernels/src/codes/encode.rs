//! From coordinates to codes.

use super::{PLANES, WIDTH, for_levels};
use crate::simd::{Level, level};

/// Added and taken away, it rounds to the nearest integer (even if between two) what is smaller than 2²².
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
    for_levels!(level, codes(vector: &[f32], bytes: &mut [i8], bits: &mut [u64]) -> Coded)
}

#[inline(always)]
fn codes(vector: &[f32], bytes: &mut [i8], bits: &mut [u64]) -> Coded {
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
        *byte = ((x * inverse + ROUND) - ROUND) as i32 as i8;
    }
    for (word, block) in bits.iter_mut().zip(vector.as_chunks::<WIDTH>().0) {
        *word = (0..WIDTH).fold(0, |word, j| word | u64::from(block[j] >= 0.0) << j);
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
    for_levels!(level, split(bytes: &[i8], out: &mut [u64]) -> i32)
}

#[inline(always)]
fn split(bytes: &[i8], out: &mut [u64]) -> i32 {
    let mut sum = 0;
    for (block, words) in bytes.as_chunks::<WIDTH>().0.iter().zip(out.as_chunks_mut::<PLANES>().0) {
        *words = [0; PLANES];
        for (j, byte) in block.iter().enumerate() {
            let nibble = ((i32::from(*byte) + 128) >> 4) as u64;
            sum += 16 * nibble as i32 - 120;
            for (plane, word) in words.iter_mut().enumerate() {
                *word |= (nibble >> plane & 1) << j;
            }
        }
    }
    sum
}
