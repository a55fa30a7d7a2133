//! Crash images of every write path: at each cut of a traced run, what a power cut may leave is opened and judged (D2–D9, D11, D12).
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;

use common::{End, Sim, judge, seeded, tiny_of};
use engram_core::env::{CrashModel, TraceOp};

/// Distinct images wanted: a floor for every run, more in a campaign.
fn wanted() -> usize {
    let asked = std::env::var("ENGRAM_IMAGES").ok().and_then(|n| n.parse().ok());
    asked.unwrap_or(if std::env::var("ENGRAM_CAMPAIGN").is_ok() { 100_000 } else { 20_000 })
}

#[test]
fn every_crash_image_holds_what_was_acknowledged() {
    let mut distinct = BTreeSet::new();
    let mut cuts = 0;
    let mut seed = 0;
    while distinct.len() < wanted() {
        seed += 1;
        let mut sim = Sim::new(seed, tiny_of(seed));
        sim.open().unwrap();
        sim.run(700);
        let trace = sim.files.trace();
        let mut model = CrashModel::new(&trace);
        let mut told = 0;
        let mut rng = seeded(seed ^ 0xabcd);
        for (at, op) in trace.ops.iter().enumerate() {
            model.apply(op);
            if let TraceOp::Mark(n) = op {
                told = *n as usize;
            }
            cuts += 1;
            let oracle = sim.oracle.as_of(told);
            for round in 0..3 {
                let image = model.image(&mut rng);
                if !distinct.insert(image.hash()) {
                    continue;
                }
                let again = (round == 2).then_some(seed * 1_000_000 + at as u64);
                let verdict = judge(&image, &oracle, &tiny_of(seed), End::PowerCut, again);
                assert!(verdict.is_ok(), "seed {seed}, cut {at} after {op:?}: {}", verdict.unwrap_err());
            }
        }
    }
    println!("crash images: {} distinct from {seed} runs, {cuts} cuts", distinct.len());
}

/// A killed process: everything written is there, at any cut.
#[test]
fn a_killed_process_loses_nothing_that_was_written() {
    for seed in 1..40 {
        let mut sim = Sim::new(seed, tiny_of(seed));
        sim.open().unwrap();
        sim.run(500);
        let trace = sim.files.trace();
        let mut model = CrashModel::new(&trace);
        let mut told = 0;
        for (at, op) in trace.ops.iter().enumerate() {
            model.apply(op);
            if let TraceOp::Mark(n) = op {
                told = *n as usize;
            }
            if at % 7 == 0 {
                let verdict = judge(&model.complete(), &sim.oracle.as_of(told), &tiny_of(seed), End::Kill, None);
                assert!(verdict.is_ok(), "seed {seed}, cut {at} after {op:?}: {}", verdict.unwrap_err());
            }
        }
    }
}
