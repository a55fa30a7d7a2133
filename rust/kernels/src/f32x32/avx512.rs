//! The sum in AVX-512F: lanes 0..16 and 16..32 are two registers.
//!
//! Loads take any address. The last block uses masked loads, which do not touch the memory of elements that are switched
//! off, and masked arithmetic, which leaves the lanes without an element as they were, bit for bit.

use std::arch::x86_64::{
    __m512, __mmask16, _mm256_add_ps, _mm256_castpd_ps, _mm512_add_ps, _mm512_castps_pd, _mm512_castps512_ps256,
    _mm512_extractf64x4_pd, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask3_fmadd_ps, _mm512_maskz_loadu_ps,
    _mm512_setzero_ps, _mm512_sub_ps,
};

use super::avx2::fold8;
use super::{Element, LANES, Stored, Term, row_loops};

const WIDTH: usize = 16;

#[inline]
#[target_feature(enable = "avx512f")]
fn step<T: Term>(lanes: __m512, q: __m512, x: __m512) -> __m512 {
    if T::SQUARED_DIFFERENCE {
        let d = _mm512_sub_ps(q, x);
        _mm512_fmadd_ps(d, d, lanes)
    } else {
        _mm512_fmadd_ps(q, x, lanes)
    }
}

/// Elements `16 * PART ..` of a block, as one register.
#[inline]
#[target_feature(enable = "avx512f")]
fn load<const PART: usize, E: Element>(block: &[E; LANES]) -> __m512 {
    let part: &[E] = &block[PART * WIDTH..][..WIDTH];
    // SAFETY: `part` has sixteen elements of four bytes that are f32s in memory (`Element`); the load needs no alignment.
    unsafe { _mm512_loadu_ps(part.as_ptr().cast()) }
}

/// One step over elements `16 * part ..` of a last block; lanes past its end keep their bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn step_tail<T: Term, Q: Element>(lanes: __m512, query: &[Q], row: &[Stored], part: usize) -> __m512 {
    let start = part * WIDTH;
    let (Some(query), Some(row)) = (query.get(start..), row.get(start..)) else {
        return lanes;
    };
    let count = query.len().min(row.len()).min(WIDTH);
    let mask = ((1_u32 << count) - 1) as __mmask16;
    // SAFETY: the mask lets through `count` elements, which both slices have, and the rest is not read; elements are
    // f32s in memory (`Element`), and the load needs no alignment.
    let (q, x) = unsafe {
        (_mm512_maskz_loadu_ps(mask, query.as_ptr().cast()), _mm512_maskz_loadu_ps(mask, row.as_ptr().cast()))
    };
    if T::SQUARED_DIFFERENCE {
        let d = _mm512_sub_ps(q, x);
        _mm512_mask3_fmadd_ps(d, d, lanes, mask)
    } else {
        _mm512_mask3_fmadd_ps(q, x, lanes, mask)
    }
}

/// The sum over two operands of the same length, as the module above defines it.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn sum<T: Term, Q: Element>(query: &[Q], row: &[Stored]) -> f32 {
    let (query_blocks, query_tail) = query.as_chunks::<LANES>();
    let (row_blocks, row_tail) = row.as_chunks::<LANES>();
    let (mut a, mut b) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    for (q, x) in query_blocks.iter().zip(row_blocks) {
        a = step::<T>(a, load::<0, Q>(q), load::<0, Stored>(x));
        b = step::<T>(b, load::<1, Q>(q), load::<1, Stored>(x));
    }
    if !row_tail.is_empty() {
        a = step_tail::<T, Q>(a, query_tail, row_tail, 0);
        b = step_tail::<T, Q>(b, query_tail, row_tail, 1);
    }
    // Lane j takes j + 16, then j + 8, then the folds that both levels share.
    let sixteen = _mm512_add_ps(a, b);
    let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sixteen)));
    fold8(_mm256_add_ps(_mm512_castps512_ps256(sixteen), high))
}

row_loops! {
    #[target_feature(enable = "avx512f")]
}
