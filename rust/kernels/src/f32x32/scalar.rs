//! The sum in plain Rust: the oracle of the other levels, and the code for every CPU that has no level of its own.
//!
//! The inner loop runs over 32 lanes without a branch, which LLVM turns into vector instructions where the target has a
//! fused multiply-add at compile time (aarch64 always does). On x86-64 built for the baseline, `mul_add` is a call of
//! the C library's `fmaf` per element: correct, and slow.

use super::{Element, LANES, Stored, Term, row_loops};

#[inline(always)]
fn step<T: Term>(lane: f32, q: f32, x: f32) -> f32 {
    if T::SQUARED_DIFFERENCE {
        let d = q - x;
        d.mul_add(d, lane)
    } else {
        q.mul_add(x, lane)
    }
}

/// The sum over two operands of the same length, as the module above defines it.
#[inline]
pub(crate) fn sum<T: Term, Q: Element>(query: &[Q], row: &[Stored]) -> f32 {
    let (query_blocks, query_tail) = query.as_chunks::<LANES>();
    let (row_blocks, row_tail) = row.as_chunks::<LANES>();
    let mut lanes = [0.0_f32; LANES];
    for (q, x) in query_blocks.iter().zip(row_blocks) {
        for j in 0..LANES {
            lanes[j] = step::<T>(lanes[j], q[j].value(), x[j].value());
        }
    }
    for (lane, (q, x)) in lanes.iter_mut().zip(query_tail.iter().zip(row_tail)) {
        *lane = step::<T>(*lane, q.value(), x.value());
    }
    fold(&mut lanes)
}

#[inline(always)]
fn fold(lanes: &mut [f32; LANES]) -> f32 {
    for width in [16, 8, 4, 2, 1] {
        for j in 0..width {
            lanes[j] += lanes[j + width];
        }
    }
    lanes[0]
}

row_loops!();
