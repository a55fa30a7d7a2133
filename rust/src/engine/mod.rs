//! Who runs it all?
//!
//! `Core` holds the parts and is driven by `step` calls only: by the threads of `workers`, by a caller that has just pushed, or by a
//! simulator in seeded order (T4). `ingest` is the one writer function; `catalogue` the log of spaces; `maintenance` seals, checkpoints
//! and makes segments ready; `open` recovers; `calls` and `reads` are what callers use.

mod calls;
mod catalogue;
mod core;
mod ingest;
mod levels;
mod maintenance;
mod open;
mod reads;
mod recovery;
mod sessions;
mod speaking;
mod stats;
mod threads;
mod verify;
mod workers;

pub use calls::{Admission, Prepared};
pub use core::{Core, Partition};
pub use levels::{Heard, Hears};
pub use open::{Damage, OpenReport};
pub use reads::{AsOf, AskedRecall, Found, Looked, Memory, Neighbours, Question, Reading, RecallStream};
pub use sessions::{Completion, Saying, Speech, Spoken};
pub use speaking::TakeUp;
pub use stats::{EngineStats, PartitionStats, SpaceStats};
pub use verify::{Inspection, Verdict, inspect, verify};
pub use workers::{Engine, Pulse};

/// The name of the SIMD level the kernels run at.
pub fn simd_level() -> &'static str {
    engram_kernels::level().name()
}
