//! What two codes say of their vectors' product: exact integers, at every level the same.
//!
//! A query's code meets many rows in one call, that lie one behind the other or are picked from an arena; for the latter the next
//! rows are fetched while one is worked on.

use super::{PLANES, WIDTH};
use crate::arena::Arena;
#[cfg(target_arch = "x86_64")]
use crate::simd::Level::{Avx2, Avx512};
use crate::simd::{Level, level};

/// Rows fetched ahead.
const AHEAD: usize = 4;

/// Rows of codes, by place.
trait Rows<T> {
    fn row(&self, i: usize) -> &[T];
    fn fetch(&self, i: usize);
}

struct Run<'a, T>(&'a [T], usize);

impl<T> Rows<T> for Run<'_, T> {
    #[inline(always)]
    fn row(&self, i: usize) -> &[T] {
        &self.0[i * self.1..][..self.1]
    }

    #[inline(always)]
    fn fetch(&self, _i: usize) {}
}

struct Picked<'a, T: crate::Plain>(&'a Arena<T>, &'a [u32]);

impl<T: crate::Plain> Rows<T> for Picked<'_, T> {
    #[inline(always)]
    fn row(&self, i: usize) -> &[T] {
        self.0.row(self.1[i] as usize)
    }

    #[inline(always)]
    fn fetch(&self, i: usize) {
        if let Some(row) = self.1.get(i) {
            self.0.prefetch(*row as usize);
        }
    }
}

/// The loops, the same text for each level: compiled with its instructions, `one` and what `put` does with it inlined into them.
macro_rules! loops {
    ($(#[$attribute:meta])* $query:ty, $row:ty, $out:ty) => {
        $(#[$attribute])*
        pub(in crate::codes::product) fn all(
            query: &[$query],
            rows: &impl $crate::codes::product::Rows<$row>,
            count: usize,
            mut put: impl FnMut(usize, $out, &[$row]),
        ) {
            for i in 0..$crate::codes::product::AHEAD.min(count) {
                rows.fetch(i);
            }
            for i in 0..count {
                rows.fetch(i + $crate::codes::product::AHEAD);
                let row = rows.row(i);
                put(i, one(query, row), row);
            }
        }
    };
}

/// The sums of the products of a code's bytes with those of each of `out.len()` rows that lie one behind the other. No byte of the
/// query or of a row is -128.
///
/// # Panics
/// If the lengths do not fit each other or are no multiple of [`WIDTH`].
pub fn bytes_products(query: &[i8], rows: &[i8], out: &mut [i32]) {
    bytes_products_at(level(), query, rows, out);
}

/// [`bytes_products`] at a named level.
///
/// # Panics
/// As [`bytes_products`], or if this CPU lacks the level.
pub fn bytes_products_at(level: Level, query: &[i8], rows: &[i8], out: &mut [i32]) {
    assert!(rows.len() == out.len() * query.len(), "{} rows of {} bytes", out.len(), query.len());
    bytes(level, query, &Run(rows, query.len()), out.len(), |i, product, _| out[i] = product);
}

/// [`bytes_products`] with rows picked from an arena.
///
/// # Panics
/// As [`bytes_products`], or if a row is not there.
pub fn bytes_products_of(query: &[i8], rows: &Arena<i8>, picked: &[u32], out: &mut [i32]) {
    assert!(picked.len() == out.len() && rows.stride() == query.len(), "rows picked, and their products");
    bytes(level(), query, &Picked(rows, picked), out.len(), |i, product, _| out[i] = product);
}

#[inline]
fn bytes(level: Level, query: &[i8], rows: &impl Rows<i8>, count: usize, put: impl FnMut(usize, i32, &[i8])) {
    assert!(
        level.is_available() && query.len().is_multiple_of(WIDTH),
        "a code of {} bytes at level {level}",
        query.len()
    );
    match level {
        // SAFETY: asserted above.
        #[cfg(target_arch = "x86_64")]
        Avx2 => unsafe { avx2::bytes::all(query, rows, count, put) },
        // SAFETY: asserted above.
        #[cfg(target_arch = "x86_64")]
        Avx512 => unsafe { avx512::bytes::all(query, rows, count, put) },
        _ => scalar::bytes::all(query, rows, count, put),
    }
}

/// For each of `out.len()` rows of bits that lie one behind the other: the sum of a query's coordinates, as its planes have them (0 to
/// 15), where the row has a 1. A row may have more words behind its bits.
///
/// # Panics
/// If the lengths do not fit each other, or a row has more than 2²⁰ bits.
pub fn planes_products(planes: &[u64], rows: &[u64], out: &mut [u32]) {
    planes_products_at(level(), planes, rows, out);
}

/// [`planes_products`] at a named level.
///
/// # Panics
/// As [`planes_products`], or if this CPU lacks the level.
pub fn planes_products_at(level: Level, planes: &[u64], rows: &[u64], out: &mut [u32]) {
    let words = rows.len() / out.len().max(1);
    assert!(words * out.len() == rows.len() && words * PLANES >= planes.len(), "{} rows of {words} words", out.len());
    counted(level, planes, &Run(rows, words), out.len(), |i, sum, _| out[i] = sum);
}

/// [`planes_products`] with rows picked from an arena: to `put` goes of each its place among the picked, the sum, and the row.
///
/// # Panics
/// As [`planes_products`], or if a row is not there.
pub fn planes_products_of(planes: &[u64], rows: &Arena<u64>, picked: &[u32], put: impl FnMut(usize, u32, &[u64])) {
    assert!(rows.stride() * PLANES >= planes.len(), "rows of {} words", rows.stride());
    counted(level(), planes, &Picked(rows, picked), picked.len(), put);
}

#[inline]
fn counted(level: Level, planes: &[u64], rows: &impl Rows<u64>, count: usize, put: impl FnMut(usize, u32, &[u64])) {
    assert!(level.is_available() && planes.len() <= PLANES << 14, "{} words at level {level}", planes.len());
    match level {
        // SAFETY: asserted above.
        #[cfg(target_arch = "x86_64")]
        Avx2 => unsafe { avx2::bits::all(planes, rows, count, put) },
        // SAFETY: asserted above.
        #[cfg(target_arch = "x86_64")]
        Avx512 => unsafe { avx512::bits::all(planes, rows, count, put) },
        _ => scalar::bits::all(planes, rows, count, put),
    }
}

/// The oracle, and the code of CPUs that have no level of their own.
mod scalar {
    pub(in crate::codes::product) mod bytes {
        #[inline(always)]
        fn one(a: &[i8], b: &[i8]) -> i32 {
            a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
        }

        loops!(i8, i8, i32);
    }

    pub(in crate::codes::product) mod bits {
        use crate::codes::PLANES;

        #[inline(always)]
        fn one(planes: &[u64], bits: &[u64]) -> u32 {
            let mut sums = [0_u32; PLANES];
            for (words, code) in planes.as_chunks::<PLANES>().0.iter().zip(bits) {
                for (sum, word) in sums.iter_mut().zip(words) {
                    *sum += (word & code).count_ones();
                }
            }
            sums.iter().enumerate().map(|(plane, sum)| sum << plane).sum()
        }

        loops!(u64, u64, u32);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    pub(in crate::codes::product) mod bytes {
        use std::arch::x86_64::{
            __m256i, _mm_add_epi32, _mm_cvtsi128_si32, _mm_shuffle_epi32, _mm256_abs_epi8, _mm256_add_epi32,
            _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_madd_epi16,
            _mm256_maddubs_epi16, _mm256_set1_epi16, _mm256_setzero_si256, _mm256_sign_epi8,
        };

        #[inline]
        #[target_feature(enable = "avx2")]
        fn load(block: &[i8]) -> __m256i {
            let block: &[i8] = &block[..32];
            // SAFETY: the block has 32 bytes; the load needs no alignment.
            unsafe { _mm256_loadu_si256(block.as_ptr().cast()) }
        }

        /// Two products of at most 127 · 127 fit sixteen bits with a sign, as `maddubs` adds them; its first operand takes no sign,
        /// so a's goes over to b.
        #[inline]
        #[target_feature(enable = "avx2")]
        fn one(a: &[i8], b: &[i8]) -> i32 {
            let ones = _mm256_set1_epi16(1);
            let (mut even, mut odd) = (_mm256_setzero_si256(), _mm256_setzero_si256());
            for (a, b) in a.as_chunks::<64>().0.iter().zip(b.as_chunks::<64>().0) {
                let (x, y) = (load(&a[..32]), load(&b[..32]));
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(y, x));
                even = _mm256_add_epi32(even, _mm256_madd_epi16(pairs, ones));
                let (x, y) = (load(&a[32..]), load(&b[32..]));
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(y, x));
                odd = _mm256_add_epi32(odd, _mm256_madd_epi16(pairs, ones));
            }
            let eight = _mm256_add_epi32(even, odd);
            let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
        }

        loops! {
            #[target_feature(enable = "avx2")]
            i8, i8, i32
        }
    }

    pub(in crate::codes::product) mod bits {
        use std::arch::x86_64::{
            __m256i, _mm256_add_epi8, _mm256_add_epi64, _mm256_and_si256, _mm256_extract_epi64, _mm256_loadu_si256,
            _mm256_sad_epu8, _mm256_set1_epi8, _mm256_set1_epi64x, _mm256_setr_epi8, _mm256_setzero_si256,
            _mm256_shuffle_epi8, _mm256_srli_epi16,
        };

        use crate::codes::PLANES;

        /// Words whose counts fit a byte: at most eight a word.
        const WORDS: usize = 31;

        #[inline]
        #[target_feature(enable = "avx2")]
        fn load(words: &[u64; PLANES]) -> __m256i {
            // SAFETY: four words are 32 bytes; the load needs no alignment.
            unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
        }

        /// The four planes of a word lie in one register; ones are counted by looking up half a byte at a time (Muła, Kurz and Lemire,
        /// "Faster population counts using AVX2 instructions", 2018).
        #[inline]
        #[target_feature(enable = "avx2")]
        fn one(planes: &[u64], bits: &[u64]) -> u32 {
            #[rustfmt::skip]
            let table = _mm256_setr_epi8(
                0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
            );
            let low = _mm256_set1_epi8(15);
            let mut sums = _mm256_setzero_si256();
            let words = planes.as_chunks::<PLANES>().0;
            for (words, codes) in words.chunks(WORDS).zip(bits.chunks(WORDS)) {
                let mut bytes = _mm256_setzero_si256();
                for (word, code) in words.iter().zip(codes) {
                    let both = _mm256_and_si256(load(word), _mm256_set1_epi64x(code.cast_signed()));
                    let front = _mm256_shuffle_epi8(table, _mm256_and_si256(both, low));
                    let back = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(both), low));
                    bytes = _mm256_add_epi8(bytes, _mm256_add_epi8(front, back));
                }
                sums = _mm256_add_epi64(sums, _mm256_sad_epu8(bytes, _mm256_setzero_si256()));
            }
            let [a, b, c, d] = [
                _mm256_extract_epi64::<0>(sums),
                _mm256_extract_epi64::<1>(sums),
                _mm256_extract_epi64::<2>(sums),
                _mm256_extract_epi64::<3>(sums),
            ];
            (a + (b << 1) + (c << 2) + (d << 3)) as u32
        }

        loops! {
            #[target_feature(enable = "avx2")]
            u64, u64, u32
        }
    }
}

/// With VNNI and VPOPCNTDQ.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    pub(in crate::codes::product) mod bytes {
        use std::arch::x86_64::{
            __m512i, _mm512_abs_epi8, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_mask_sub_epi8,
            _mm512_movepi8_mask, _mm512_reduce_add_epi32, _mm512_setzero_si512,
        };

        #[inline]
        #[target_feature(enable = "avx512f")]
        fn load(block: &[i8; 64]) -> __m512i {
            // SAFETY: 64 bytes; the load needs no alignment.
            unsafe { _mm512_loadu_si512(block.as_ptr().cast()) }
        }

        /// The first operand of `dpbusd` takes no sign, so a's goes over to b.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        fn one(a: &[i8], b: &[i8]) -> i32 {
            let zero = _mm512_setzero_si512();
            let mut sums = zero;
            for (a, b) in a.as_chunks::<64>().0.iter().zip(b.as_chunks::<64>().0) {
                let (a, b) = (load(a), load(b));
                let signed = _mm512_mask_sub_epi8(b, _mm512_movepi8_mask(a), zero, b);
                sums = _mm512_dpbusd_epi32(sums, _mm512_abs_epi8(a), signed);
            }
            _mm512_reduce_add_epi32(sums)
        }

        loops! {
            #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
            i8, i8, i32
        }
    }

    pub(in crate::codes::product) mod bits {
        use std::arch::x86_64::{
            _mm512_add_epi64, _mm512_and_si512, _mm512_maskz_loadu_epi64, _mm512_maskz_permutexvar_epi64,
            _mm512_popcnt_epi64, _mm512_set_epi64, _mm512_setzero_si512,
        };

        use crate::codes::PLANES;

        /// Two words at a time, the four planes of either in half a register; an odd last word leaves the other half empty.
        #[inline]
        #[target_feature(enable = "avx512f,avx512vpopcntdq")]
        fn one(planes: &[u64], bits: &[u64]) -> u32 {
            let halves = _mm512_set_epi64(1, 1, 1, 1, 0, 0, 0, 0);
            let mut sums = _mm512_setzero_si512();
            for (words, code) in planes.as_chunks::<PLANES>().0.chunks(2).zip(bits.chunks(2)) {
                let there = if words.len().min(code.len()) == 2 { 0xFF } else { 0x0F };
                // SAFETY: `there` lets through what the slices have: one word of the code and its planes, or two.
                let (words, code) = unsafe {
                    (
                        _mm512_maskz_loadu_epi64(there, words.as_ptr().cast()),
                        _mm512_maskz_loadu_epi64(there >> 4 & 2 | 1, code.as_ptr().cast()),
                    )
                };
                let code = _mm512_maskz_permutexvar_epi64(there, halves, code);
                sums = _mm512_add_epi64(sums, _mm512_popcnt_epi64(_mm512_and_si512(words, code)));
            }
            // SAFETY: as many bytes, of which any are numbers.
            let sums: [u64; 2 * PLANES] = unsafe { std::mem::transmute(sums) };
            sums.iter().enumerate().map(|(at, sum)| sum << (at % PLANES)).sum::<u64>() as u32
        }

        loops! {
            #[target_feature(enable = "avx512f,avx512vpopcntdq")]
            u64, u64, u32
        }
    }
}
