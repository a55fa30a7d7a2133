//! Dead rows go to files of their own, which only the past reads (G5), step by step on a simulated disk.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::{Rig, below, seeded, tiny};
use engram_core::engine::{AsOf, Core, Reading};
use engram_core::env::MemoryFiles;
use engram_core::error::Error;
use engram_core::store::{Space, Wanted};
use engram_core::types::{Config, Durability, Generation};

struct Past {
    rig: Rig,
    space: Arc<Space>,
}

impl Past {
    fn new(config: Config) -> Self {
        let rig = Rig::new(config);
        rig.create("a", Durability::Sync);
        let space = rig.core.space("a").unwrap();
        Self { rig, space }
    }

    fn observe(&self, uids: &[u64]) -> u64 {
        self.rig.observe("a", uids).unwrap().first.0
    }

    fn forget(&self, ids: impl IntoIterator<Item = u64>, purge: bool) -> u64 {
        let wanted = Wanted::Ids(ids.into_iter().map(Generation).collect());
        let ticket = self.rig.core.submit_forget(&self.space, wanted, purge).unwrap().ok().unwrap();
        while ticket.outcome().is_none() {
            self.rig.turn();
        }
        ticket.outcome().unwrap().unwrap().generation.0
    }

    fn checkpoint(&self) {
        let asked = self.rig.core.submit_checkpoint(0);
        self.rig.turns(600);
        asked.outcome().unwrap().unwrap();
        self.rig.turns(600);
    }

    /// Living rows in files, dead ones apart.
    fn filed(&self) -> (u64, u64) {
        let stats = self.rig.core.space_stats(&self.space);
        (stats.sealed_rows, stats.history_rows)
    }

    fn reopened(&self, config: &Config) -> Rig {
        Rig::over(config.clone(), MemoryFiles::with_state(self.rig.files.state(), 1, true))
    }
}

/// What is there at a generation; None: as a recall sees it.
fn ids(core: &Core, at: Option<u64>) -> Result<Vec<u64>, Error> {
    let space = core.space("a").unwrap();
    let reading = Reading { as_of: at.map(|g| AsOf::Generation(Generation(g))), ..Reading::default() };
    let listed: Vec<u64> = core.list(&space, 0, 10_000, reading)?.iter().map(|m| m.generation.0).collect();
    assert_eq!(core.count(&space, reading)?, listed.len() as u64);
    let (_, found) = core.recall(&space, &[1.0, 0.5, 0.2], 10_000, reading)?;
    assert_eq!(found.iter().map(|f| f.memory.generation.0).collect::<BTreeSet<_>>(), listed.iter().copied().collect());
    Ok(listed)
}

/// A rotten history file is met by those who look back, and by nobody else.
#[test]
fn only_the_past_reads_history() {
    let config = Config { partitions: 1, merge_files: 8, scrub_pause_ms: u64::MAX, ..tiny() };
    let past = Past::new(config.clone());
    for n in 0..20 {
        past.observe(&(n * 10 + 1..n * 10 + 11).collect::<Vec<_>>());
    }
    past.checkpoint();
    assert_eq!(past.filed(), (200, 0));
    let pin = past.rig.core.pin(&past.space).unwrap();
    let forgotten: Vec<u64> = (1..=200).filter(|id| id % 3 == 0).collect();
    let at = past.forget(forgotten.clone(), false);
    past.checkpoint();
    let living: Vec<u64> = (1..=200).filter(|id| id % 3 != 0).collect();
    assert_eq!(past.filed(), (living.len() as u64, forgotten.len() as u64));
    let pinned = Reading { snapshot: Some(pin), ..Reading::default() };
    assert_eq!(past.rig.core.count(&past.space, pinned).unwrap(), 200, "a pin from before looks back");
    let again = past.reopened(&config);
    for core in [&past.rig.core, &again.core] {
        assert_eq!(ids(core, None).unwrap(), living);
        assert_eq!(ids(core, Some(at - 1)).unwrap(), (1..=200).collect::<Vec<_>>());
        assert_eq!(ids(core, Some(35)).unwrap(), (1..=30).collect::<Vec<_>>(), "whole batches");
    }
    let mut rotten = past.rig.files.state();
    for part in past.space.view().history() {
        let path = format!("partition-000/rows/{:016x}.rows", part.place.file.0);
        rotten.bytes_mut(&path).unwrap()[100] ^= 1;
    }
    let rotten = Rig::over(config, MemoryFiles::with_state(rotten, 1, true));
    let space = rotten.core.space("a").unwrap();
    assert!(rotten.core.space_stats(&space).degraded.is_some());
    assert_eq!(ids(&rotten.core, None).unwrap(), living);
    assert_eq!(rotten.core.get(&space, 3, Reading::default()).unwrap(), None, "dead, whatever it was");
    assert_eq!(ids(&rotten.core, Some(at - 1)).unwrap_err().code(), "CORRUPTED");
}

/// G5 against a model: forgets, purges, seals and merges of both kinds of files never change an answer, and files stay few.
#[test]
fn no_rewriting_changes_the_past() {
    let config = Config { partitions: 1, scrub_pause_ms: u64::MAX, ..tiny() };
    for seed in 0..6 {
        let (past, mut rng) = (Past::new(config.clone()), seeded(seed));
        let mut ends = BTreeSet::new();
        let mut lives: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for round in 0..40 {
            let first = past.observe(&(0..below(&mut rng, 12) + 1).map(|i| round * 20 + i + 1).collect::<Vec<_>>());
            let last = past.space.watermark().0;
            ends.insert(last);
            lives.extend((first..=last).map(|id| (id, (id, u64::MAX))));
            let old: Vec<u64> = lives.iter().filter(|(_, (_, death))| *death == u64::MAX).map(|(id, _)| *id).collect();
            let victims: Vec<u64> = old.into_iter().filter(|_| below(&mut rng, 4) == 0).collect();
            if victims.is_empty() {
                continue;
            }
            let purge = below(&mut rng, 4) == 0;
            let at = past.forget(victims.clone(), purge);
            ends.insert(at);
            for id in victims {
                if purge {
                    lives.remove(&id)
                } else {
                    lives.insert(id, (id, at))
                };
            }
            if below(&mut rng, 3) == 0 {
                past.checkpoint();
            }
        }
        past.checkpoint();
        past.checkpoint();
        let (living, dead) = past.filed();
        assert!(dead > living / 4, "history is kept apart: {living} and {dead}");
        assert!(
            past.space.view().history().len() < 12 && past.space.purging().iter().all(|id| !lives.contains_key(&id.0))
        );
        let again = past.reopened(&config);
        for core in [&past.rig.core, &again.core] {
            for at in 1..=past.space.watermark().0 {
                let whole = ends.range(..=at).next_back().copied().unwrap_or(0);
                let seen = lives.iter().filter(|(_, (birth, death))| *birth <= whole && *death > whole);
                let seen: Vec<u64> = seen.map(|(id, _)| *id).collect();
                assert_eq!(ids(core, Some(at)).unwrap(), seen, "seed {seed}, generation {at}");
            }
        }
    }
}
