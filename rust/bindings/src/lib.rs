//! engram._core: conversion between Python and the engine, error mapping, nothing clever.
//!
//! Large calls copy what they need while attached, then detach: the GIL is free while the engine works. Waiting calls look for signals
//! every few milliseconds.

mod columns;
mod completions;
mod convert;
mod engine;
mod errors;
mod memory;
mod reading;
mod session;
mod signals;
mod space;
mod stats;

use pyo3::prelude::*;

#[pymodule]
mod _core {
    #[pymodule_export]
    use crate::columns::{encode_frame, join_frames};
    #[pymodule_export]
    use crate::completions::Heard;
    #[pymodule_export]
    use crate::engine::{Engine, simd_level};
    #[pymodule_export]
    use crate::memory::Memory;
    #[pymodule_export]
    use crate::reading::{Asked, RecallStream};
    #[pymodule_export]
    use crate::session::Session;
    #[pymodule_export]
    use crate::signals::Cancel;
    #[pymodule_export]
    use crate::space::Space;
    #[pymodule_export]
    use crate::stats::{inspect, verify};
}
