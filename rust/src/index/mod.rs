//! What is near this cue?
//!
//! Today the flat index: every row is scored. It stays for ever as the oracle of every other index (G6). Scores are f32, summed in 32
//! fixed lanes by the kernels, so that they have the same bits on every machine; greater is closer, ties go to the lower id.

mod flat;

pub use flat::{Cue, Near, TopK};
