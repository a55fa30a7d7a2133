//! Where does an observation wait?
//!
//! A `Depth` is reserved before the push and released after apply (P1): never below the truth, never above the limit. A `Lane` is
//! an unbounded `SegQueue` that those permits bound (O3), with a flag that puts its space on the writer's list once. `Gate` is where
//! callers wait for room; waiting holds nothing.

mod depth;
mod lane;
mod ticket;

pub use depth::{Depth, Gate};
pub use lane::Lane;
pub use ticket::{Committed, Reply, Ticket};
