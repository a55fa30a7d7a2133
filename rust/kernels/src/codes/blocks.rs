//! Bits of 32 rows side by side, so that one look-up of half a byte serves all of them.
//!
//! A block holds, for each byte of the code, that byte of its 32 rows. A query becomes a table: for each half of a byte the sums of the query's
//! coordinates where it has a 1, 0 to 60. The products are those of `planes_products`, to the bit; only how they are reached differs. Source: "FastScan", André,
//! Kermarrec and Le Scouarnec, PVLDB 9(4), 2015, with sums that fit a byte instead of rounded distances.

use super::{PLANES, WIDTH, for_levels};
use crate::simd::{Level, level};

/// Rows of a block.
pub const BLOCK: usize = 32;
/// Sums of longer codes would not fit sixteen bits.
pub const BLOCK_BITS_MAX: usize = 4_096;
/// Numbers about each row of a block that its estimate needs: factor, ones, bias, spread; of each kind those of all rows side by side.
pub const BLOCK_FACTORS: usize = 4;

/// Puts 32 rows of `words` words side by side.
///
/// # Panics
/// If `rows` are not 32 of as many words each, or the block has another size.
pub fn transpose(rows: &[&[u64]], block: &mut [u8]) {
    let words = block.len() / (BLOCK * 8);
    assert!(rows.len() == BLOCK && words * BLOCK * 8 == block.len(), "{} rows, {} bytes", rows.len(), block.len());
    for (i, row) in rows.iter().enumerate() {
        for (j, byte) in row[..words].iter().flat_map(|word| word.to_le_bytes()).enumerate() {
            block[j * BLOCK + i] = byte;
        }
    }
}

/// The table of a query, from its planes: 32 bytes for each byte of a code, sixteen for either half of it.
///
/// # Panics
/// If the planes are none.
pub fn table(planes: &[u64], out: &mut Vec<u8>) {
    assert!(planes.len().is_multiple_of(PLANES), "{} words of planes", planes.len());
    out.clear();
    for words in planes.as_chunks::<PLANES>().0 {
        for at in (0..WIDTH).step_by(4) {
            let value = |i: usize| words.iter().enumerate().map(|(p, w)| ((w >> (at + i) & 1) as u8) << p).sum::<u8>();
            let values = [value(0), value(1), value(2), value(3)];
            let begin = out.len();
            out.push(0);
            for half in 1..16_usize {
                let before = out[begin + (half & (half - 1))];
                out.push(before + values[half.trailing_zeros() as usize]);
            }
        }
    }
}

/// For each row of each block the sum of the query's coordinates where the row has a 1: as `planes_products`.
///
/// # Panics
/// If the lengths do not fit each other, or codes have more than [`BLOCK_BITS_MAX`] bits.
pub fn blocks_products(table: &[u8], blocks: &[u8], out: &mut [u16]) {
    blocks_products_at(level(), table, blocks, out);
}

/// [`blocks_products`] at a named level.
///
/// # Panics
/// As [`blocks_products`], or if this CPU lacks the level.
pub fn blocks_products_at(level: Level, table: &[u8], blocks: &[u8], out: &mut [u16]) {
    assert!(out.len() * table.len() == blocks.len() * BLOCK && out.len().is_multiple_of(BLOCK), "whole blocks");
    assert!(table.len() <= BLOCK_BITS_MAX / 8 * 32 && table.len().is_multiple_of(8 * 32), "a table of {}", table.len());
    assert!(level.is_available(), "level {level}");
    for (block, out) in blocks.chunks_exact(table.len().max(1)).zip(out.as_chunks_mut::<BLOCK>().0) {
        match level {
            // SAFETY: asserted above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { avx2::one(table, block, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::one(table, block, out) },
            _ => scalar(table, block, out),
        }
    }
}

fn scalar(table: &[u8], block: &[u8], out: &mut [u16; BLOCK]) {
    out.fill(0);
    for (halves, bytes) in table.as_chunks::<32>().0.iter().zip(block.as_chunks::<BLOCK>().0) {
        for (sum, byte) in out.iter_mut().zip(bytes) {
            let (front, back) = (halves[usize::from(byte & 15)], halves[16 + usize::from(byte >> 4)]);
            *sum += u16::from(front + back);
        }
    }
}

/// What rows may score at most, by their products and factors ([`BLOCK_FACTORS`] times 32 a block): `scale · factor · (2 · (16 · product - 120 ·
/// ones) - sum) + bias + norm · spread`.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn blocks_limits(products: &[u16], factors: &[f32], (scale, sum, norm): (f32, f32, f32), out: &mut [f32]) {
    fn each(products: &[u16], factors: &[f32], scale: f32, sum: f32, norm: f32, out: &mut [f32]) {
        let blocks = products.as_chunks::<BLOCK>().0.iter().zip(factors.chunks_exact(BLOCK_FACTORS * BLOCK));
        for ((products, factors), out) in blocks.zip(out.as_chunks_mut::<BLOCK>().0) {
            let [factor, ones, bias, spread] = std::array::from_fn(|kind| &factors[kind * BLOCK..][..BLOCK]);
            for i in 0..BLOCK {
                let in_ones = 16.0 * f32::from(products[i]) - 120.0 * ones[i];
                out[i] = scale * factor[i] * (2.0 * in_ones - sum) + bias[i] + norm * spread[i];
            }
        }
    }
    assert!(products.len() == out.len() && factors.len() == BLOCK_FACTORS * out.len(), "a limit a row");
    for_levels!(level(), each(products: &[u16], factors: &[f32], scale: f32, sum: f32, norm: f32, out: &mut [f32]));
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256i, _mm_loadu_si128, _mm256_add_epi8, _mm256_add_epi16, _mm256_and_si256, _mm256_broadcastsi128_si256,
        _mm256_loadu_si256, _mm256_permute2x128_si256, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_setzero_si256,
        _mm256_shuffle_epi8, _mm256_srli_epi16, _mm256_storeu_si256, _mm256_unpackhi_epi16, _mm256_unpacklo_epi16,
    };

    use super::BLOCK;

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(bytes: &[u8; BLOCK]) -> __m256i {
        // SAFETY: 32 bytes; the load needs no alignment.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn twice(half: &[u8]) -> __m256i {
        let half = &half[..16];
        // SAFETY: 16 bytes; the load needs no alignment.
        _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(half.as_ptr().cast()) })
    }

    /// A byte of each row, looked up half by half: at most 120.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn look_up(halves: &[u8; 32], bytes: &[u8; BLOCK]) -> __m256i {
        let (low, bytes) = (_mm256_set1_epi8(15), load(bytes));
        let front = _mm256_shuffle_epi8(twice(&halves[..16]), _mm256_and_si256(bytes, low));
        let back = _mm256_shuffle_epi8(twice(&halves[16..]), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low));
        _mm256_add_epi8(front, back)
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn one(table: &[u8], block: &[u8], out: &mut [u16; BLOCK]) {
        let (mut even, mut odd) = (_mm256_setzero_si256(), _mm256_setzero_si256());
        let first = _mm256_set1_epi16(255);
        for (halves, bytes) in table.as_chunks::<64>().0.iter().zip(block.as_chunks::<{ 2 * BLOCK }>().0) {
            let (halves, bytes) = (halves.as_chunks::<32>().0, bytes.as_chunks::<BLOCK>().0);
            // Two bytes of a row: at most 240.
            let sums = _mm256_add_epi8(look_up(&halves[0], &bytes[0]), look_up(&halves[1], &bytes[1]));
            even = _mm256_add_epi16(even, _mm256_and_si256(sums, first));
            odd = _mm256_add_epi16(odd, _mm256_srli_epi16::<8>(sums));
        }
        store(even, odd, out);
    }

    /// The sums of even rows and of odd ones, in order.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn store(even: __m256i, odd: __m256i, out: &mut [u16; BLOCK]) {
        // Rows 0 to 7 and 16 to 23, then those between.
        let (outer, inner) = (_mm256_unpacklo_epi16(even, odd), _mm256_unpackhi_epi16(even, odd));
        let front = _mm256_permute2x128_si256::<0x20>(outer, inner);
        let back = _mm256_permute2x128_si256::<0x31>(outer, inner);
        let (first, last) = out.split_at_mut(BLOCK / 2);
        // SAFETY: either half has 16 numbers of two bytes; the stores need no alignment.
        unsafe {
            _mm256_storeu_si256(first.as_mut_ptr().cast(), front);
            _mm256_storeu_si256(last.as_mut_ptr().cast(), back);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512i, _mm256_add_epi16, _mm512_add_epi8, _mm512_add_epi16, _mm512_and_si512, _mm512_castsi512_si256,
        _mm512_extracti64x4_epi64, _mm512_loadu_si512, _mm512_set1_epi8, _mm512_set1_epi16, _mm512_setzero_si512,
        _mm512_shuffle_epi8, _mm512_shuffle_i32x4, _mm512_srli_epi16,
    };

    use super::BLOCK;

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(bytes: &[u8; 64]) -> __m512i {
        // SAFETY: 64 bytes; the load needs no alignment.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    /// Two bytes of each row, looked up half by half: at most 120, the first byte's in the lower half of the register.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn look_up(halves: &[u8; 64], bytes: &[u8; 64]) -> __m512i {
        let (low, halves, bytes) = (_mm512_set1_epi8(15), load(halves), load(bytes));
        let front = _mm512_shuffle_i32x4::<0b10_10_00_00>(halves, halves);
        let back = _mm512_shuffle_i32x4::<0b11_11_01_01>(halves, halves);
        let front = _mm512_shuffle_epi8(front, _mm512_and_si512(bytes, low));
        let back = _mm512_shuffle_epi8(back, _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low));
        _mm512_add_epi8(front, back)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx2")]
    pub(super) fn one(table: &[u8], block: &[u8], out: &mut [u16; BLOCK]) {
        let (mut even, mut odd) = (_mm512_setzero_si512(), _mm512_setzero_si512());
        let first = _mm512_set1_epi16(255);
        for (halves, bytes) in table.as_chunks::<128>().0.iter().zip(block.as_chunks::<{ 4 * BLOCK }>().0) {
            let (halves, bytes) = (halves.as_chunks::<64>().0, bytes.as_chunks::<64>().0);
            // Two bytes of a row: at most 240.
            let sums = _mm512_add_epi8(look_up(&halves[0], &bytes[0]), look_up(&halves[1], &bytes[1]));
            even = _mm512_add_epi16(even, _mm512_and_si512(sums, first));
            odd = _mm512_add_epi16(odd, _mm512_srli_epi16::<8>(sums));
        }
        let [even, odd] = [even, odd]
            .map(|sums| _mm256_add_epi16(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64::<1>(sums)));
        super::avx2::store(even, odd, out);
    }
}
