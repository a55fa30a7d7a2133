//! The ground floor of engram: distances between vectors at the speed of the CPU, and files read through the page cache.
//!
//! Everything in the workspace that needs hand-written `unsafe` lives here, each block with its reason; the crates above
//! forbid it. This crate knows bytes and floats, and none of the engine's types.
//!
//! Invariants
//! - A distance has the same bits at every SIMD level, so an index built on one machine ranks the same way on another
//!   (the contract is in `f32x32`, the scalar twin is the oracle).
//! - No function here starts a thread, reads a clock or keeps state, apart from the SIMD level, which is chosen once.
//!
//! Any thread may call anything here. A wrong length is a bug of the caller and panics; a bad `ENGRAM_SIMD` is reported
//! by [`try_level`].

#![deny(unsafe_op_in_unsafe_fn)]

mod arena;
mod codes;
mod distance;
mod f32x32;
mod mapped;
mod simd;
pub mod sync;

pub use arena::{Arena, Plain};
pub use codes::{
    BLOCK, BLOCK_BITS_MAX, BLOCK_FACTORS, Coded, PLANES, Rotation, WIDTH, blocks_limits, blocks_products,
    blocks_products_at, bytes_products, bytes_products_at, bytes_products_of, encode, encode_at, planes, planes_at,
    planes_products, planes_products_at, planes_products_of, table, transpose,
};
pub use distance::{
    dot, dot_at, dot_rows, dot_rows_at, l2_squared, l2_squared_at, l2_squared_rows, l2_squared_rows_at, norm_squared,
    norm_squared_at, norms_squared, norms_squared_at,
};
pub use mapped::MappedFile;
pub use simd::{Level, LevelError, available, level, try_level};
