//! The sum in AVX2 and FMA: lanes 0..8, 8..16, 16..24 and 24..32 are four registers.
//!
//! Loads take any address. The last block is read with masks, and a masked load does not touch the memory of elements
//! that are switched off, so nothing past the end of a row is read. AVX2 has no masked arithmetic: lanes without an
//! element would take `0 * 0`, which turns `-0.0` into `+0.0`, so they are blended back to what they were.

use std::arch::x86_64::{
    __m256, __m256i, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehdup_ps, _mm_movehl_ps, _mm256_add_ps,
    _mm256_blendv_ps, _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_extractf128_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_maskload_ps, _mm256_setzero_ps, _mm256_sub_ps,
};

use super::{Element, LANES, Stored, Term, row_loops};

const WIDTH: usize = 8;

/// Eight words of ones, then eight of zeros: the mask for the first n elements starts at word 8 - n.
static MASKS: [i32; 2 * WIDTH] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

#[inline]
#[target_feature(enable = "avx2,fma")]
fn step<T: Term>(lanes: __m256, q: __m256, x: __m256) -> __m256 {
    if T::SQUARED_DIFFERENCE {
        let d = _mm256_sub_ps(q, x);
        _mm256_fmadd_ps(d, d, lanes)
    } else {
        _mm256_fmadd_ps(q, x, lanes)
    }
}

/// Elements `8 * PART ..` of a block, as one register.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn load<const PART: usize, E: Element>(block: &[E; LANES]) -> __m256 {
    let part: &[E] = &block[PART * WIDTH..][..WIDTH];
    // SAFETY: `part` has eight elements of four bytes that are f32s in memory (`Element`); the load needs no alignment.
    unsafe { _mm256_loadu_ps(part.as_ptr().cast()) }
}

/// One step over elements `8 * part ..` of a last block; lanes past its end keep their bits.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn step_tail<T: Term, Q: Element>(lanes: __m256, query: &[Q], row: &[Stored], part: usize) -> __m256 {
    let start = part * WIDTH;
    let (Some(query), Some(row)) = (query.get(start..), row.get(start..)) else {
        return lanes;
    };
    let count = query.len().min(row.len()).min(WIDTH);
    let mask = mask_first(count);
    // SAFETY: the mask lets through `count` elements, which both slices have, and the rest is not read; elements are
    // f32s in memory (`Element`), and the load needs no alignment.
    let (q, x) =
        unsafe { (_mm256_maskload_ps(query.as_ptr().cast(), mask), _mm256_maskload_ps(row.as_ptr().cast(), mask)) };
    _mm256_blendv_ps(lanes, step::<T>(lanes, q, x), _mm256_castsi256_ps(mask))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn mask_first(count: usize) -> __m256i {
    let words = &MASKS[WIDTH - count..][..WIDTH];
    // SAFETY: `words` has eight words of four bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

/// The sum over two operands of the same length, as the module above defines it.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn sum<T: Term, Q: Element>(query: &[Q], row: &[Stored]) -> f32 {
    let (query_blocks, query_tail) = query.as_chunks::<LANES>();
    let (row_blocks, row_tail) = row.as_chunks::<LANES>();
    let zero = _mm256_setzero_ps();
    let (mut a, mut b, mut c, mut d) = (zero, zero, zero, zero);
    for (q, x) in query_blocks.iter().zip(row_blocks) {
        a = step::<T>(a, load::<0, Q>(q), load::<0, Stored>(x));
        b = step::<T>(b, load::<1, Q>(q), load::<1, Stored>(x));
        c = step::<T>(c, load::<2, Q>(q), load::<2, Stored>(x));
        d = step::<T>(d, load::<3, Q>(q), load::<3, Stored>(x));
    }
    if !row_tail.is_empty() {
        a = step_tail::<T, Q>(a, query_tail, row_tail, 0);
        b = step_tail::<T, Q>(b, query_tail, row_tail, 1);
        c = step_tail::<T, Q>(c, query_tail, row_tail, 2);
        d = step_tail::<T, Q>(d, query_tail, row_tail, 3);
    }
    // Lane j takes j + 16, then j + 8.
    fold8(_mm256_add_ps(_mm256_add_ps(a, c), _mm256_add_ps(b, d)))
}

/// The last three folds: lane j takes j + 4, then j + 2, then j + 1.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn fold8(lanes: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

row_loops! {
    #[target_feature(enable = "avx2,fma")]
}
