//! Each sync, rename and directory sync is switched off in turn; the crash images must go red each time (D9). What stays green here is a
//! site that no test watches.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::{End, Event, Oracle, Sim, judge, seeded, tiny};
use engram_core::env::{Action, CrashModel, DiskState, Operation, Rule, Site};

fn rules(site: Site) -> Vec<Rule> {
    [Operation::Sync, Operation::Rename, Operation::SyncDir]
        .into_iter()
        .map(|operation| Rule { site: Some(site), ..Rule::new(operation, Action::Skip) })
        .collect()
}

/// What must hold of any image, beside the oracle: a name stands only for what is whole.
fn names_are_whole(image: &mut DiskState, told_poisoned: bool) -> Result<(), String> {
    let paths = image.paths();
    for path in &paths {
        let bytes = image.bytes_mut(path).unwrap();
        if path.contains("spare-")
            && path.ends_with(".log")
            && (bytes.len() < 16 << 10 || bytes.iter().any(|b| *b != 0))
        {
            return Err(format!("{path} is not a whole segment of zeros"));
        }
    }
    let mut notes = paths.iter().filter(|p| p.ends_with("/poisoned"));
    if told_poisoned && !notes.any(|p| image.bytes_mut(p).is_some_and(|b| !b.is_empty())) {
        return Err("a caller heard of the poisoning, the next start will not, or not why".to_owned());
    }
    Ok(())
}

/// Two lives with the site off, images of both; the first thing wrong.
fn hunt(site: Site, seed: u64) -> Result<(), String> {
    let mut sim = Sim::new(seed, tiny());
    rules(site).into_iter().for_each(|r| sim.faults.add(r));
    if matches!(site, Site::PoisonSync | Site::PoisonDir) {
        let fail =
            Rule { site: Some(Site::GroupSync), skip: 5, times: 1, ..Rule::new(Operation::Sync, Action::Fail(5)) };
        sim.faults.add(fail);
    }
    sim.open().map_err(|e| format!("does not open: {e}"))?;
    for life in 0..3 {
        sim.run(500);
        if let Some(error) = sim.core().maintenance_error() {
            return Err(format!("maintenance fails: {error}"));
        }
        let poisoned_at = if sim.poisoned { sim.files.trace_len() } else { usize::MAX };
        if sim.poisoned && !matches!(site, Site::PoisonSync | Site::PoisonDir) {
            return Err("the log failed".to_owned());
        }
        if !sim.oracle.events.iter().any(|e| matches!(e, Event::Acked { .. })) {
            return Err("nothing was ever acknowledged".to_owned());
        }
        let mut rng = seeded(seed + 99);
        let mut cuts = 0;
        sim.walk(|at, model, told| {
            cuts += 1;
            if cuts % 3 != 0 && at + 1 < poisoned_at {
                return Ok(());
            }
            let over = at + 1 >= poisoned_at;
            for _ in 0..if over { 10 } else { 1 } {
                let mut image = model.image(&mut rng);
                names_are_whole(&mut image, over)?;
                judge(&image, &sim.oracle.as_of(told), &tiny(), End::PowerCut, None)?;
            }
            Ok(())
        })?;
        if life < 2 {
            sim = sim.next_life()?;
        }
    }
    Ok(())
}

/// A damaged log group, opened: the copy in `quarantine/` must be durable when the start is over.
fn quarantine_is_durable(off: bool) -> Result<(), String> {
    let opened = (1..50).flat_map(|seed| {
        let mut sim = Sim::new(seed, tiny());
        sim.open().unwrap();
        sim.run(300);
        let state = sim.files.state();
        let segments = state.paths().into_iter().filter(|p| p.starts_with("partition") && p.contains("/log/0"));
        segments.collect::<Vec<_>>().into_iter().map(move |path| (state.clone(), path))
    });
    let mut opened = opened.filter_map(|(mut image, path)| {
        image.bytes_mut(&path)?[700] ^= 1;
        let mut second = Sim::over(12, tiny(), image, 1, Oracle::default());
        if off {
            rules(Site::QuarantineSync).into_iter().for_each(|r| second.faults.add(r));
        }
        second.open().ok()?;
        (!second.core().report.damage.is_empty()).then_some(second)
    });
    let second = opened.next().ok_or("no damaged segment was met")?;
    let trace = second.files.trace();
    let mut model = CrashModel::new(&trace);
    trace.ops.iter().for_each(|op| model.apply(op));
    for seed in 0..20 {
        let mut left = model.image(&mut seeded(seed));
        let copy = left.paths().into_iter().find(|p| p.starts_with("quarantine/") && !p.ends_with(".tmp"));
        let copy = copy.ok_or("the damaged file was not kept")?;
        let len = left.bytes_mut(&copy).map_or(0, |b| b.len());
        if len < 16 << 10 {
            return Err(format!("the kept file has {len} bytes"));
        }
    }
    Ok(())
}

#[test]
fn each_site_switched_off_is_noticed() {
    let mut green = Vec::new();
    println!("{:<18} seeds  first thing noticed", "site off");
    for site in Site::ALL {
        let found = if site == Site::QuarantineSync {
            quarantine_is_durable(true).err().map(|e| (1, e))
        } else {
            (1..=40).find_map(|seed| hunt(site, seed).err().map(|e| (seed, e)))
        };
        match found {
            Some((seed, mut what)) => {
                what.truncate(150);
                println!("{:<18} {seed:>5}  {what}", format!("{site:?}"));
            }
            None => {
                println!("{:<18}     -  NOTHING", format!("{site:?}"));
                green.push(site);
            }
        }
    }
    assert!(green.is_empty(), "switched off and not noticed: {green:?}");
}

/// The same hunt with nothing switched off finds nothing: red means the site.
#[test]
fn nothing_switched_off_is_green() {
    for seed in 1..=12 {
        let sim = Sim::new(seed, tiny());
        drop(Arc::clone(&sim.faults));
        let mut rng = seeded(seed + 99);
        let mut sim = sim;
        sim.open().unwrap();
        for _ in 0..2 {
            sim.run(500);
            let looked = sim.walk(|at, model, told| {
                if at % 3 != 0 {
                    return Ok(());
                }
                let mut image = model.image(&mut rng);
                names_are_whole(&mut image, false)?;
                judge(&image, &sim.oracle.as_of(told), &tiny(), End::PowerCut, None)
            });
            looked.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            sim = sim.next_life().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
    }
    quarantine_is_durable(false).unwrap();
}
