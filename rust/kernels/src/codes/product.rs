//! What two codes say of their vectors' product: exact integers, at every level the same.
//!
//! A query's code meets many rows in one call, that lie one behind the other or are picked from an arena; the latter are looked up
//! first, and the next ones fetched while one is worked on.

use super::{PLANES, WIDTH};
use crate::arena::{Arena, Room, fetch_row, fill};
#[cfg(target_arch = "x86_64")]
use crate::simd::Level::{Avx2, Avx512};
use crate::simd::{Level, level};

/// Of rows looked up, so many are fetched ahead.
const AHEAD: usize = 8;

/// Rows of codes, by place.
trait Rows<T> {
    /// Where rows lie, from the `from`th on: as many as there is room for.
    fn look_up<'a, 'b>(&'a self, from: usize, room: &'b mut Room<'a, T>) -> &'b [&'a [T]];

    /// Asks for one that will be needed.
    fn fetch(&self, row: &[T]);
}

/// Rows one behind the other, how long each is, and how many.
struct Run<'a, T>(&'a [T], usize, usize);

impl<T> Rows<T> for Run<'_, T> {
    #[inline(always)]
    fn look_up<'a, 'b>(&'a self, from: usize, room: &'b mut Room<'a, T>) -> &'b [&'a [T]] {
        fill(room, (from..self.2).map(|i| &self.0[i * self.1..][..self.1]))
    }

    #[inline(always)]
    fn fetch(&self, _row: &[T]) {}
}

struct Picked<'a, T: crate::Plain>(&'a Arena<T>, &'a [u32]);

impl<T: crate::Plain> Rows<T> for Picked<'_, T> {
    #[inline(always)]
    fn look_up<'a, 'b>(&'a self, from: usize, room: &'b mut Room<'a, T>) -> &'b [&'a [T]] {
        self.0.look_up(&self.1[from..], room)
    }

    #[inline(always)]
    fn fetch(&self, row: &[T]) {
        fetch_row(row);
    }
}

/// The loop over rows, the same text for each level: compiled with its instructions, `one` and what `put` does with it inlined into it. A row
/// is looked up once.
macro_rules! each {
    ($rows:ident, $count:ident, $put:ident, $one:expr) => {{
        use $crate::codes::product::AHEAD;
        let (one, mut room, mut from) = ($one, [std::mem::MaybeUninit::uninit(); $crate::arena::STRIP], 0);
        while from < $count {
            let strip = $rows.look_up(from, &mut room);
            strip.iter().take(AHEAD).for_each(|row| $rows.fetch(row));
            for (i, row) in strip.iter().enumerate() {
                if let Some(row) = strip.get(i + AHEAD) {
                    $rows.fetch(row);
                }
                $put(from + i, one(row), row);
            }
            from += strip.len();
        }
    }};
}

macro_rules! loops {
    ($(#[$attribute:meta])* $query:ty, $row:ty, $out:ty) => {
        $(#[$attribute])*
        pub(in crate::codes::product) fn all(
            query: &[$query],
            rows: &impl $crate::codes::product::Rows<$row>,
            count: usize,
            mut put: impl FnMut(usize, $out, &[$row]),
        ) {
            each!(rows, count, put, |row: &[$row]| one(query, row));
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
    bytes(level, query, &Run(rows, query.len(), out.len()), out.len(), |i, product, _| out[i] = product);
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
    counted(level, planes, &Run(rows, words, out.len()), out.len(), |i, sum, _| out[i] = sum);
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
            __m256i, _mm_add_epi64, _mm_cvtsi128_si64, _mm_extract_epi64, _mm256_add_epi8, _mm256_add_epi64,
            _mm256_and_si256, _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_sad_epu8,
            _mm256_set1_epi8, _mm256_set1_epi64x, _mm256_setr_epi8, _mm256_setr_epi64x, _mm256_setzero_si256,
            _mm256_shuffle_epi8, _mm256_sllv_epi64, _mm256_srli_epi16,
        };

        use crate::codes::PLANES;
        use crate::codes::product::Rows;

        /// Words whose counts fit a byte: at most eight a word.
        const WORDS: usize = 31;

        #[inline]
        #[target_feature(enable = "avx2")]
        fn load(words: &[u64; PLANES]) -> __m256i {
            // SAFETY: four words are 32 bytes; the load needs no alignment.
            unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
        }

        /// Ones of at most [`WORDS`] words, plane by plane. The four planes of a word lie in one register; ones are counted by looking up half
        /// a byte at a time (Muła, Kurz and Lemire, "Faster population counts using AVX2 instructions", 2018).
        #[inline]
        #[target_feature(enable = "avx2")]
        fn ones(planes: &[[u64; PLANES]], bits: &[u64]) -> __m256i {
            #[rustfmt::skip]
            let table = _mm256_setr_epi8(
                0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
            );
            let low = _mm256_set1_epi8(15);
            let mut bytes = _mm256_setzero_si256();
            for (word, code) in planes.iter().zip(bits) {
                let both = _mm256_and_si256(load(word), _mm256_set1_epi64x(code.cast_signed()));
                let front = _mm256_shuffle_epi8(table, _mm256_and_si256(both, low));
                let back = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(both), low));
                bytes = _mm256_add_epi8(bytes, _mm256_add_epi8(front, back));
            }
            _mm256_sad_epu8(bytes, _mm256_setzero_si256())
        }

        /// The planes' counts, each by its weight.
        #[inline]
        #[target_feature(enable = "avx2")]
        fn weighed(ones: __m256i) -> u32 {
            let weighed = _mm256_sllv_epi64(ones, _mm256_setr_epi64x(0, 1, 2, 3));
            let two = _mm_add_epi64(_mm256_castsi256_si128(weighed), _mm256_extracti128_si256::<1>(weighed));
            (_mm_cvtsi128_si64(two) + _mm_extract_epi64::<1>(two)) as u32
        }

        #[target_feature(enable = "avx2")]
        fn one(planes: &[[u64; PLANES]], bits: &[u64]) -> u32 {
            let parts = planes.chunks(WORDS).zip(bits.chunks(WORDS));
            weighed(
                parts.fold(_mm256_setzero_si256(), |sums, (planes, bits)| _mm256_add_epi64(sums, ones(planes, bits))),
            )
        }

        /// For queries of a length that is known: no loop over words, and of the shorter ones the planes stay in registers.
        #[target_feature(enable = "avx2")]
        fn known<const W: usize>(
            planes: &[[u64; PLANES]],
            rows: &impl Rows<u64>,
            count: usize,
            mut put: impl FnMut(usize, u32, &[u64]),
        ) {
            let Some(planes) = planes.first_chunk::<W>() else { unreachable!("as many as asked for") };
            each!(rows, count, put, |row: &[u64]| {
                let Some(bits) = row.first_chunk::<W>() else { unreachable!("rows are no shorter than the query") };
                weighed(ones(planes, bits))
            });
        }

        #[target_feature(enable = "avx2")]
        pub(in crate::codes::product) fn all(
            planes: &[u64],
            rows: &impl Rows<u64>,
            count: usize,
            mut put: impl FnMut(usize, u32, &[u64]),
        ) {
            let planes = planes.as_chunks::<PLANES>().0;
            match planes.len() {
                2 => known::<2>(planes, rows, count, put),
                4 => known::<4>(planes, rows, count, put),
                6 => known::<6>(planes, rows, count, put),
                8 => known::<8>(planes, rows, count, put),
                12 => known::<12>(planes, rows, count, put),
                16 => known::<16>(planes, rows, count, put),
                24 => known::<24>(planes, rows, count, put),
                _ => each!(rows, count, put, |row: &[u64]| one(planes, row)),
            }
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
