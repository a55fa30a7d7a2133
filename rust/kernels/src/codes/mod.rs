//! Short codes of vectors: one byte or one bit a coordinate, and what two codes say of their product.
//!
//! A vector is rotated first (`rotate`), so that every coordinate carries as much as every other, then coded (`encode`). The
//! products of codes are integers: the same at every level, whatever the order of their sums. Lengths are those of padded
//! vectors, multiples of [`WIDTH`].
//!
//! Sources: int8 with a scale a row is scalar quantization; one bit with a factor a row against a finer query is RaBitQ (Gao and
//! Long, SIGMOD 2024, arXiv 2405.12497), whose estimate of a product is unbiased over the random rotations.

mod blocks;
mod encode;
mod product;
mod rotate;

pub use blocks::{
    BLOCK, BLOCK_BITS_MAX, BLOCK_FACTORS, blocks_limits, blocks_products, blocks_products_at, table, transpose,
};
pub use encode::{Coded, encode, encode_at, planes, planes_at};
pub use product::{
    bytes_products, bytes_products_at, bytes_products_of, planes_products, planes_products_at, planes_products_of,
};
pub use rotate::Rotation;

/// Coordinates of a padded vector come in multiples of this: a word of bits.
pub const WIDTH: usize = 64;
/// A query's coordinates in a product with bits: so many bits each.
pub const PLANES: usize = 4;

/// The text of a function once, compiled for each level: its loops are plain, and LLVM makes vectors of them.
macro_rules! for_levels {
    ($level:expr, $body:ident ( $($arg:ident : $type:ty),* ) $(-> $out:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,popcnt")]
        fn avx2($($arg: $type),*) $(-> $out)? {
            $body($($arg),*)
        }
        match $level {
            // SAFETY: `level` and `check` let through only what this CPU has; a CPU with AVX-512 has these too.
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Level::Avx2 | $crate::simd::Level::Avx512 => unsafe { avx2($($arg),*) },
            _ => $body($($arg),*),
        }
    }};
}
use for_levels;
