//! engram-core: the engine, without Python.
//!
//! Data walks one way: `queue` (where it waits) → `wal` (what survives) → `store` (what may be seen) → `index` (what is near).
//! `engine` runs the parts; everything that is not deterministic goes through `env`, so that a whole engine runs on a simulated
//! disk and clock from one seed. Start reading at `engine/ingest/mod.rs`: it is the one writer function.
#![forbid(unsafe_code)]

pub mod engine;
pub mod env;
pub mod error;
pub mod index;
pub mod queue;
pub mod records;
pub mod session;
pub mod store;
pub mod types;
pub mod wal;
