//! The queue alone: permits, push, pop, give back, with 1 to 8 producers and one consumer. Prints a line of JSON a case.
//!
//! What an admission does beside this (checks, levels) is measured through the public API in `asv_bench`.
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use engram_core::queue::{Depth, Lane, Pool};

const LIMIT: u64 = 100_000;
const BYTES: u64 = 1_600;
const ROUNDS: usize = 7;

/// As much as the writer is handed for a batch.
struct Item {
    count: u64,
    _rest: [u64; 12],
}

/// Nanoseconds an observation, and the deepest the queue was.
fn run(producers: u64, batch: u64, observations: u64) -> (f64, u64) {
    let (depth, pool) = (Depth::new(LIMIT, LIMIT * BYTES), Pool::new(2 * LIMIT * BYTES));
    let lane = Lane::<Item, 3>::default();
    let (announced, deepest) = (AtomicU64::new(0), AtomicU64::new(0));
    let each = observations / producers / batch;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..producers {
            scope.spawn(|| {
                for _ in 0..each {
                    while !pool.reserve(batch * BYTES) {
                        std::thread::yield_now();
                    }
                    while depth.reserve(batch, batch * BYTES).is_none() {
                        std::thread::yield_now();
                    }
                    if lane.push(1, Item { count: batch, _rest: [0; 12] }) {
                        announced.fetch_add(1, Ordering::Release);
                    }
                }
            });
        }
        let mut left = each * producers * batch;
        while left > 0 {
            if announced.load(Ordering::Acquire) == 0 {
                std::thread::yield_now();
                continue;
            }
            announced.fetch_sub(1, Ordering::AcqRel);
            deepest.fetch_max(depth.observations(), Ordering::Relaxed);
            for _ in 0..256 {
                let Some(item) = lane.pop() else { break };
                left -= item.count;
                pool.release(item.count * BYTES);
                depth.release(item.count, item.count * BYTES);
            }
            if lane.settle() {
                announced.fetch_add(1, Ordering::Release);
            }
        }
    });
    let nanos = begun.elapsed().as_nanos() as f64;
    assert_eq!((depth.observations(), depth.bytes(), pool.bytes()), (0, 0, 0), "all was given back");
    (nanos / (each * producers * batch) as f64, deepest.into_inner())
}

fn main() {
    // Few rows: only to see that it runs.
    let quick = std::env::var("ENGRAM_BENCH_ROWS").is_ok_and(|rows| rows.parse::<u64>().is_ok_and(|n| n < 4_000));
    for batch in [1, 256] {
        for producers in [1, 2, 4, 8] {
            let observations = if quick { 40_000 } else { batch.min(100) * 2_000_000 };
            let mut all: Vec<(f64, u64)> = (0..ROUNDS).map(|_| run(producers, batch, observations)).collect();
            all.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (median, deepest) = (all[ROUNDS / 2].0, all.iter().map(|a| a.1).max().unwrap_or(0));
            assert!(deepest <= LIMIT, "the depth was above its limit");
            println!(
                "{{\"batch\": {batch}, \"producers\": {producers}, \"ns\": {median:.3}, \"ns_min\": {:.3}, \"ns_max\": {:.3}, \"deepest\": {deepest}}}",
                all[0].0,
                all[ROUNDS - 1].0
            );
        }
    }
}
