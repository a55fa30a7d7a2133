//! Flipped bits, zeroed and swapped sectors, truncations and missing files, on every kind of file: always reported, never another answer
//! (D3, D5). Reported means: the start or `verify` names it, or a read raises; and what is read is what was written.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;

use common::{Sim, below, contents, seeded, tiny};
use engram_core::engine::verify;
use engram_core::env::{DiskState, Env, Files, MemoryFiles, SimClock, SimRandom};
use rand_pcg::Pcg64;

fn wanted() -> u64 {
    let asked = std::env::var("ENGRAM_FLIPS").ok().and_then(|n| n.parse().ok());
    asked.unwrap_or(if std::env::var("ENGRAM_CAMPAIGN").is_ok() { 200_000 } else { 40_000 })
}

fn kind(path: &str) -> &'static str {
    match path {
        "MANIFEST" => "manifest",
        p if p.starts_with("catalogue") && p.contains("spare") => "catalogue spare",
        p if p.starts_with("catalogue") => "catalogue log",
        p if p.contains("spare") => "spare",
        p if p.contains("/log/") => "log",
        p if p.contains("checkpoint") => "checkpoint",
        p if p.contains("/rows/") => "rows",
        _ => "other",
    }
}

type Truth = BTreeMap<String, BTreeMap<u64, u64>>;

/// A cleanly closed directory with all kinds of files, and what it holds.
fn closed(seed: u64) -> (DiskState, Truth) {
    let mut sim = Sim::new(seed, tiny());
    sim.open().unwrap();
    sim.run(1500);
    sim.settle();
    let core = sim.core();
    for _ in 0..400 {
        sim.clock.advance_micros(5_000);
        for i in 0..core.partitions.len() {
            core.step_partition(i);
            core.partitions[i].port.run_one();
        }
        core.step_catalogue();
        core.run_catalogue_io();
    }
    let truth = core.spaces.all().iter().map(|s| (s.options.name.clone(), contents(&core, s).unwrap())).collect();
    (sim.files.state(), truth)
}

/// Bytes of each file that mean something: not what lies behind a log's end, nor segments before the checkpoint's.
fn meaningful(state: &DiskState) -> Vec<(String, usize)> {
    let mut state = state.clone();
    let mut out = Vec::new();
    for path in state.paths() {
        let bytes = state.bytes_mut(&path).unwrap();
        let len = if path.contains("/log/0") {
            bytes.iter().rposition(|b| *b != 0).map_or(0, |at| (at + 1).next_multiple_of(512))
        } else {
            bytes.len()
        };
        if kind(&path) != "other" && len > 0 {
            out.push((path, len));
        }
    }
    out
}

fn env(state: DiskState) -> Env {
    Env {
        clock: std::sync::Arc::new(SimClock::new(1)),
        files: std::sync::Arc::new(MemoryFiles::with_state(state, 1, false)),
        random: std::sync::Arc::new(SimRandom::new(1)),
    }
}

/// Whether the damage, of this file, was reported; Err if an answer was wrong, or nothing opens though the catalogue is whole.
fn reported(state: DiskState, path: &str, truth: &Truth) -> Result<bool, String> {
    let mut reported = match verify(&env(state.clone())) {
        Err(_) => true,
        Ok(verdict) => !verdict.damage.is_empty() || verdict.torn_bytes > 0,
    };
    let mut sim = Sim::over(5, tiny(), state, 1, common::Oracle::default());
    match sim.open() {
        Ok(()) => {}
        Err(_) if kind(path) == "manifest" || path.starts_with("catalogue") => return Ok(true),
        Err(error) => return Err(format!("nothing opens: {error}")),
    }
    let core = sim.core();
    reported |= !core.report.damage.is_empty();
    for (name, rows) in truth {
        let Some(space) = core.spaces.named(name) else {
            if reported {
                continue;
            }
            return Err(format!("space {name} is gone without a word"));
        };
        match contents(&core, &space) {
            Err(_) => reported = true,
            Ok(found) if found == *rows => {}
            Ok(found) => {
                let prefix = rows.iter().zip(&found).all(|(a, b)| a == b) && found.len() < rows.len();
                let torn = core.report.torn_bytes > 0 && prefix;
                if !torn || !reported {
                    return Err(format!("{name}: another answer, {} rows instead of {}", found.len(), rows.len()));
                }
            }
        }
    }
    Ok(reported)
}

fn damage(state: &mut DiskState, path: &str, from: usize, len: usize, rng: &mut Pcg64) -> String {
    let at = from + below(rng, (len - from) as u64) as usize;
    let sector = at / 512 * 512;
    let bytes = state.bytes_mut(path).unwrap();
    let end = (sector + 512).min(bytes.len());
    // A log's last group only closes it: zeroed, it was never written, and nothing is lost.
    let closing = path.contains("/log/0") && end >= len;
    match below(rng, 10) {
        0 | 1 if closing => {
            bytes[at] ^= 1;
            format!("bit 0 at {at} flipped")
        }
        0 => {
            let zero = bytes[sector..end].iter().all(|b| *b == 0);
            bytes[sector..end].fill(0);
            if zero {
                bytes[at] ^= 1
            }
            format!("sector at {sector} zeroed")
        }
        1 if len > from + 1024 => {
            let other = from.next_multiple_of(512) + below(rng, ((len - from) / 512) as u64 - 1) as usize * 512;
            let (a, b) = (bytes[sector..end].to_vec(), bytes[other..other + end - sector].to_vec());
            if a == b {
                bytes[at] ^= 2;
            } else {
                bytes[sector..end].copy_from_slice(&b);
                bytes[other..other + a.len()].copy_from_slice(&a);
            }
            format!("sectors at {sector} and {other} swapped")
        }
        2 if !path.contains("spare") && !closing => {
            bytes.truncate(at);
            format!("truncated to {at}")
        }
        _ => {
            let bit = below(rng, 8);
            bytes[at] ^= 1 << bit;
            format!("bit {bit} at {at} flipped")
        }
    }
}

#[test]
fn all_damage_is_reported() {
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut seed = 0;
    let mut left = wanted();
    while left > 0 {
        seed += 1;
        let (state, truth) = closed(seed);
        let files = relevant(&state, meaningful(&state));
        let mut rng = seeded(seed * 31);
        for _ in 0..left.min(4_000) {
            // Kinds in turn, so that small files are hit as often as large ones.
            let (path, from, len) = &files[below(&mut rng, files.len() as u64) as usize];
            let mut bad = state.clone();
            let what = damage(&mut bad, path, *from, *len, &mut rng);
            match reported(bad, path, &truth) {
                Ok(true) => {}
                Ok(false) => panic!("seed {seed}, {path}: {what}: not reported"),
                Err(wrong) => panic!("seed {seed}, {path}: {what}: {wrong}"),
            }
            *counts.entry(kind(path)).or_default() += 1;
            left -= 1;
        }
    }
    println!("damaged and reported, by kind of file: {counts:?}");
    for must in ["manifest", "catalogue log", "log", "checkpoint", "rows", "spare"] {
        assert!(counts.contains_key(must), "no {must} was damaged");
    }
}

/// Leaves out log bytes that no kept checkpoint needs: they wait to be freed. Each file with its first and last byte.
fn relevant(state: &DiskState, files: Vec<(String, usize)>) -> Vec<(String, usize, usize)> {
    let seen = engram_core::engine::inspect(&env(state.clone())).unwrap();
    let range = |text: &str| {
        let mut n = text.split(' ').map(|n| n.parse::<usize>().unwrap());
        (n.next().unwrap(), n.next().unwrap())
    };
    let needed: BTreeMap<&str, (usize, usize)> =
        seen.lines.iter().filter(|l| l.0 == "needed").map(|l| (l.1.as_str(), range(&l.2))).collect();
    let place = |(path, len): (String, usize)| match needed.get(path.as_str()) {
        Some((from, to)) => (from < to).then_some((path, *from, *to)),
        None if path.starts_with("partition") && path.contains("/log/0") => None,
        None => Some((path, 0, len)),
    };
    files.into_iter().filter_map(place).collect()
}

/// A missing file is named too.
#[test]
fn missing_files_are_reported() {
    let mut missing = BTreeMap::new();
    for seed in 1..6 {
        let (state, truth) = closed(seed);
        for (path, _, _) in relevant(&state, meaningful(&state)) {
            // A missing spare costs nothing; of two checkpoints the older is enough, with its log.
            if path.contains("spare") || path.contains("checkpoint") {
                continue;
            }
            let files = MemoryFiles::with_state(state.clone(), 1, false);
            files.remove(&path).unwrap();
            let seen = reported(files.state(), &path, &truth);
            assert_eq!(seen, Ok(true), "seed {seed}: {path} removed");
            *missing.entry(kind(&path)).or_insert(0) += 1;
        }
    }
    println!("removed and reported: {missing:?}");
}
