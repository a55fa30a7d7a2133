//! Whole engines from seeds: several lives each, ended by kills and power cuts at random points, with failing and full disks now and
//! then. The same seed gives the same trace.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;

use common::{Sim, below, contents, tiny_of};
use engram_core::env::{Action, Operation, Rule, Site};

fn seeds() -> u64 {
    let asked = std::env::var("ENGRAM_SEEDS").ok().and_then(|n| n.parse().ok());
    asked.unwrap_or(if std::env::var("ENGRAM_CAMPAIGN").is_ok() { 1000 } else { 200 })
}

/// Rare but legal: a sync that fails, a disk that fills, files that cannot be made.
fn trouble(sim: &mut Sim) {
    sim.faults.clear();
    match below(&mut sim.rng, 8) {
        0 => {
            let mut rule = Rule::new(Operation::Sync, Action::Fail(5));
            rule.site = Some(Site::GroupSync);
            (rule.skip, rule.times) = (below(&mut sim.rng, 30), 1);
            sim.faults.add(rule);
        }
        1 => sim.files.set_capacity(Some(sim.files.used() + 20_000 + below(&mut sim.rng, 200_000))),
        2 => {
            let mut rule = Rule::new(Operation::Create, Action::Fail(24));
            (rule.skip, rule.times) = (below(&mut sim.rng, 5), 1 + below(&mut sim.rng, 3));
            sim.faults.add(rule);
        }
        3 => {
            let mut rule = Rule::new(Operation::Write, Action::Fail(5));
            rule.path = Some("rows".to_owned());
            (rule.skip, rule.times) = (below(&mut sim.rng, 5), 1);
            sim.faults.add(rule);
        }
        _ => {}
    }
}

/// Runs; returns a hash of all that was done, and whether files were merged.
fn life(sim: &mut Sim) -> (u64, bool) {
    trouble(sim);
    for round in 0..4 {
        sim.run(120);
        if round == 2 {
            // The disk has room again, if it had none.
            sim.files.set_capacity(None);
        }
        // D8, G3: what a reader sees while things are under way is a prefix of what was sent.
        for space in sim.core().spaces.all() {
            contents(&sim.core(), &space).unwrap();
        }
    }
    (sim.files.trace_hash(), sim.core().stats().merged_bytes > 0)
}

struct Ran {
    hash: u64,
    acked: u64,
    poisoned: bool,
    merges: u64,
    quarantined: u64,
}

fn run(seed: u64) -> Ran {
    let mut sim = Sim::new(seed, tiny_of(seed));
    sim.open().unwrap();
    let (mut hash, merged) = life(&mut sim);
    let mut quarantined = sim.core().stats().quarantined;
    let mut merges = u64::from(merged);
    let mut poisoned = sim.poisoned;
    for _ in 0..3 {
        sim.faults.clear();
        sim = sim.next_life().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let (next, merged) = life(&mut sim);
        quarantined += sim.core().stats().quarantined;
        hash = hash.rotate_left(7) ^ next;
        merges += u64::from(merged);
        poisoned |= sim.poisoned;
    }
    let acked = sim.oracle.batches.iter().filter(|b| b.first.is_some()).count() as u64;
    Ran { hash, acked, poisoned, merges, quarantined }
}

#[test]
fn seeds_keep_the_contract_and_repeat() {
    let mut hashes: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut acked, mut poisoned, mut merges, mut quarantined) = (0, 0, 0, 0);
    for seed in 1..=seeds() {
        let ran = run(seed);
        *hashes.entry(ran.hash).or_default() += 1;
        acked += ran.acked;
        poisoned += u64::from(ran.poisoned);
        merges += ran.merges;
        quarantined += ran.quarantined;
        if seed % 100 == 0 || std::env::var("ENGRAM_CAMPAIGN").is_ok() {
            assert_eq!(run(seed).hash, ran.hash, "seed {seed}: the same seed gave another trace");
        }
    }
    println!(
        "seeds: {}, different traces: {}, batches acknowledged {acked}, runs poisoned {poisoned}, lives with merges {merges}, observations \
         quarantined {quarantined}",
        seeds(),
        hashes.len()
    );
    assert!(hashes.len() as u64 * 100 >= seeds() * 99, "seeds hardly differ: {} traces", hashes.len());
    assert!(poisoned > 0, "no seed met a failing sync");
    assert!(quarantined > seeds() / 10, "hardly anything went into quarantine");
    assert!(merges > seeds() / 10, "hardly any life merges files");
}
