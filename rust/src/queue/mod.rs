//! Where does an observation wait?
//!
//! A `Depth` is reserved before the push and released after apply (P1): never below the truth, never above the limit. A `Lane` is
//! an unbounded `SegQueue` that those permits bound (O3), with a flag that puts its space on the writer's list once. `Gate` is where
//! callers wait for room; waiting holds nothing. A `Gauge` says how hard the queue is pressed, a `Rate` how fast it drains; a `Pool` is what
//! all spaces share. `Completions` are for those who do not wait. A `Turn` lets one at a time write.

mod completions;
mod depth;
mod lane;
mod pool;
mod pressure;
mod ticket;
mod turn;

pub use completions::Completions;
pub use depth::{Depth, Gate};
pub use lane::Lane;
pub use pool::Pool;
pub use pressure::{Gauge, Level, Rate, retry_after_ms};
pub use ticket::{Committed, Forgotten, Reply, Ticket};
pub use turn::Turn;
