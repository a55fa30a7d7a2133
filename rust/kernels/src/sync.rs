//! Atomics of the standard library, or loom's under `--cfg loom`: small protocols are checked in every order that their orderings allow.

#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
