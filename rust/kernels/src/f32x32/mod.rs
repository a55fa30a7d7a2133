//! The sum that every distance is made of, with its order of operations fixed to the bit.
//!
//! Floating point addition is not associative, so code that is free to choose its order gives other bits on other CPUs.
//! Here the order is part of the definition:
//!
//! 1. There are 32 accumulators ("lanes"), all `+0.0`. Element `i` goes to lane `i % 32`, in the order of `i`.
//! 2. An element is added with one fused multiply-add, rounded once: `lane = fma(q, x, lane)`, or for the squared
//!    distance `d = q - x` (rounded) and `lane = fma(d, d, lane)`.
//! 3. A last block shorter than 32 changes only the lanes that have an element. Adding `0 * 0` to the others would not
//!    be the same: a product that underflows leaves `-0.0` in a lane, and `-0.0 + 0.0` is `+0.0`.
//! 4. The lanes are folded in halves: for w in 16, 8, 4, 2, 1, lane `j` takes lane `j + w` for each `j < w`. Lane 0 is
//!    the result. (The order of the two operands of an addition does not matter, but for the payload of a NaN.)
//!
//! 32 lanes are four registers of AVX2, two of AVX-512, eight of NEON: enough independent sums to hide the latency of
//! an addition, and every level can hold them.
//!
//! Limits: payload and sign of a NaN are not fixed. The thread must run in the default floating point mode; a host that
//! flushes denormals to zero changes the results of very small values.
//!
//! Further reading: Intel's and AMD's optimisation manuals on FMA latency; Higham, "The accuracy of floating point
//! summation" (1993) for the error of blocked sums.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod scalar;

/// The number of independent sums.
pub(crate) const LANES: usize = 32;

/// One stored element: four little-endian bytes of an `f32`, at any address.
pub(crate) type Stored = [u8; 4];

/// What is added per element.
pub(crate) trait Term {
    /// True: `(q - x)²`. False: `q * x`.
    const SQUARED_DIFFERENCE: bool;
}

pub(crate) struct Product;
pub(crate) struct SquaredDifference;

impl Term for Product {
    const SQUARED_DIFFERENCE: bool = false;
}

impl Term for SquaredDifference {
    const SQUARED_DIFFERENCE: bool = true;
}

/// An element of the left operand: of a query in memory, or of a stored row (a row times itself is its norm).
///
/// # Safety
/// The type has the size of `f32` and no padding, and on a little-endian machine its bytes are those of [`Self::value`].
pub(crate) unsafe trait Element: Copy {
    fn value(self) -> f32;
}

// SAFETY: it is the f32 itself.
unsafe impl Element for f32 {
    #[inline]
    fn value(self) -> f32 {
        self
    }
}

// SAFETY: four bytes without padding, and little-endian by definition.
unsafe impl Element for Stored {
    #[inline]
    fn value(self) -> f32 {
        f32::from_le_bytes(self)
    }
}

/// The loops over many rows, the same text for each level: written inside the level's module, so that the whole loop is
/// compiled with its instructions and `sum` is inlined into it. There is no software prefetch: the rows are read in one
/// forward stream, which the CPU's own prefetcher follows.
macro_rules! row_loops {
    ($(#[$attribute:meta])*) => {
        /// `out[i]` becomes the sum over `query` and row `i`, where a row has as many elements as the query.
        $(#[$attribute])*
        pub(crate) fn sums<T: $crate::f32x32::Term>(
            query: &[f32],
            rows: &[$crate::f32x32::Stored],
            out: &mut [f32],
        ) {
            let dim = query.len();
            for (i, slot) in out.iter_mut().enumerate() {
                *slot = sum::<T, f32>(query, &rows[i * dim..][..dim]);
            }
        }

        /// `out[i]` becomes the sum of the squares of row `i`.
        $(#[$attribute])*
        pub(crate) fn norms(dim: usize, rows: &[$crate::f32x32::Stored], out: &mut [f32]) {
            for (i, slot) in out.iter_mut().enumerate() {
                let row = &rows[i * dim..][..dim];
                *slot = sum::<$crate::f32x32::Product, _>(row, row);
            }
        }
    };
}
pub(crate) use row_loops;
