//! How far is a stored row from a query?
//!
//! A query is a slice of floats; a row is the bytes of as many little-endian floats at any address, because rows lie in
//! log buffers and mapped files behind headers of any length. The plain forms run at [`level`]; the `_at` forms name a
//! level, for tests and benchmarks; the `_rows` forms take many rows that lie one behind the other and choose the level
//! once.
//!
//! Invariant: the same inputs give the same bits at every level, in the plain and in the `_rows` form, for any number of
//! elements (the definition is in `f32x32`). A dimension of 0 gives `0.0`.
//!
//! Any thread may call these; they share nothing. All panic if a length does not fit, or if an `_at` form names a level
//! that this CPU lacks. Rows are not checked for NaN or infinity: they go through the sum as IEEE 754 says.

use crate::f32x32::{Element, Product, SquaredDifference, Stored, Term, scalar};
#[cfg(target_arch = "x86_64")]
use crate::f32x32::{avx2, avx512};
use crate::simd::{Level, level};

/// The sum of `q * x`. Greater is closer for rows of the same norm.
#[must_use]
pub fn dot(query: &[f32], row: &[u8]) -> f32 {
    // SAFETY: `level` returns only what this CPU has.
    unsafe { sum::<Product, f32>(level(), query, stored(row, query.len())) }
}

/// [`dot`] at a named level.
#[must_use]
pub fn dot_at(level: Level, query: &[f32], row: &[u8]) -> f32 {
    check(level);
    // SAFETY: checked above.
    unsafe { sum::<Product, f32>(level, query, stored(row, query.len())) }
}

/// The sum of `(q - x)²`, that is, the square of the Euclidean distance.
#[must_use]
pub fn l2_squared(query: &[f32], row: &[u8]) -> f32 {
    // SAFETY: `level` returns only what this CPU has.
    unsafe { sum::<SquaredDifference, f32>(level(), query, stored(row, query.len())) }
}

/// [`l2_squared`] at a named level.
#[must_use]
pub fn l2_squared_at(level: Level, query: &[f32], row: &[u8]) -> f32 {
    check(level);
    // SAFETY: checked above.
    unsafe { sum::<SquaredDifference, f32>(level, query, stored(row, query.len())) }
}

/// The sum of `x * x`: the same bits as [`dot`] of the row with itself.
#[must_use]
pub fn norm_squared(row: &[u8]) -> f32 {
    let row = stored(row, row.len() / 4);
    // SAFETY: `level` returns only what this CPU has.
    unsafe { sum::<Product, Stored>(level(), row, row) }
}

/// [`norm_squared`] at a named level.
#[must_use]
pub fn norm_squared_at(level: Level, row: &[u8]) -> f32 {
    check(level);
    let row = stored(row, row.len() / 4);
    // SAFETY: checked above.
    unsafe { sum::<Product, Stored>(level, row, row) }
}

/// [`dot`] of the query with each of `out.len()` rows that lie one behind the other.
pub fn dot_rows(query: &[f32], rows: &[u8], out: &mut [f32]) {
    // SAFETY: `level` returns only what this CPU has.
    unsafe { sums::<Product>(level(), query, rows, out) }
}

/// [`dot_rows`] at a named level.
pub fn dot_rows_at(level: Level, query: &[f32], rows: &[u8], out: &mut [f32]) {
    check(level);
    // SAFETY: checked above.
    unsafe { sums::<Product>(level, query, rows, out) }
}

/// [`l2_squared`] of the query to each of `out.len()` rows that lie one behind the other.
pub fn l2_squared_rows(query: &[f32], rows: &[u8], out: &mut [f32]) {
    // SAFETY: `level` returns only what this CPU has.
    unsafe { sums::<SquaredDifference>(level(), query, rows, out) }
}

/// [`l2_squared_rows`] at a named level.
pub fn l2_squared_rows_at(level: Level, query: &[f32], rows: &[u8], out: &mut [f32]) {
    check(level);
    // SAFETY: checked above.
    unsafe { sums::<SquaredDifference>(level, query, rows, out) }
}

/// [`norm_squared`] of each of `out.len()` rows of `dim` elements that lie one behind the other.
pub fn norms_squared(dim: usize, rows: &[u8], out: &mut [f32]) {
    // SAFETY: `level` returns only what this CPU has.
    unsafe { norms(level(), dim, rows, out) }
}

/// [`norms_squared`] at a named level.
pub fn norms_squared_at(level: Level, dim: usize, rows: &[u8], out: &mut [f32]) {
    check(level);
    // SAFETY: checked above.
    unsafe { norms(level, dim, rows, out) }
}

#[track_caller]
fn check(level: Level) {
    assert!(level.is_available(), "this CPU lacks the SIMD level {level}");
}

/// The bytes of one row as elements.
#[inline]
#[track_caller]
fn stored(row: &[u8], dim: usize) -> &[Stored] {
    let (elements, rest) = row.as_chunks::<4>();
    assert!(
        rest.is_empty() && elements.len() == dim,
        "a row of {dim} elements has 4 bytes for each, got {} bytes",
        row.len()
    );
    elements
}

/// The bytes of `count` rows as elements.
#[track_caller]
fn stored_rows(rows: &[u8], dim: usize, count: usize) -> &[Stored] {
    let (elements, rest) = rows.as_chunks::<4>();
    assert!(
        rest.is_empty() && dim.checked_mul(count) == Some(elements.len()),
        "{count} rows of {dim} elements have 4 bytes for each, got {} bytes",
        rows.len()
    );
    elements
}

/// # Safety
/// The level is available on this CPU.
#[inline]
unsafe fn sum<T: Term, Q: Element>(level: Level, query: &[Q], row: &[Stored]) -> f32 {
    match level {
        // SAFETY: the caller knows that the CPU has these instructions.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512::sum::<T, Q>(query, row) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2::sum::<T, Q>(query, row) },
        _ => scalar::sum::<T, Q>(query, row),
    }
}

/// # Safety
/// The level is available on this CPU.
unsafe fn sums<T: Term>(level: Level, query: &[f32], rows: &[u8], out: &mut [f32]) {
    let rows = stored_rows(rows, query.len(), out.len());
    match level {
        // SAFETY: the caller knows that the CPU has these instructions.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512::sums::<T>(query, rows, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2::sums::<T>(query, rows, out) },
        _ => scalar::sums::<T>(query, rows, out),
    }
}

/// # Safety
/// The level is available on this CPU.
unsafe fn norms(level: Level, dim: usize, rows: &[u8], out: &mut [f32]) {
    let rows = stored_rows(rows, dim, out.len());
    match level {
        // SAFETY: the caller knows that the CPU has these instructions.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512::norms(dim, rows, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2::norms(dim, rows, out) },
        _ => scalar::norms(dim, rows, out),
    }
}
