//! Bugs that were found, one small test each.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Oracle, Rig, Sim, contents, tiny};
use engram_core::engine::{Admission, Reading};
use engram_core::env::{Files, MemoryFiles, Rule};
use engram_core::records::{Columns, build_frame};
use engram_core::types::{Config, Durability};

/// Found by the kill loop: rows of the run's first group wait for its sync; the next group's rows, applied at once in memory mode, came
/// before them in the list.
#[test]
fn memory_rows_of_the_first_group_keep_their_place() {
    let rig = Rig::new(Config { partitions: 1, ..tiny() });
    rig.create("m", Durability::Memory);
    rig.turns(20);
    let send = |i: u64| {
        let ticket = rig.push("m", &[i * 2 + 1, i * 2 + 2]).unwrap();
        rig.core.step_partition(0);
        ticket
    };
    let tickets: Vec<_> = (0..6).map(send).collect();
    rig.turns(20);
    assert!(tickets.iter().all(|t| t.outcome().is_some_and(|o| o.is_ok())));
    let rows = contents(&rig.core, &rig.core.space("m").unwrap()).unwrap();
    assert_eq!(rows.into_values().collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
}

/// Found by a simulated life: rows whose groups a recovery had written again still named the old segment; a checkpoint took their
/// place for its own, and the next start read groups that mean nothing any more.
#[test]
fn a_checkpoint_after_a_recovery_points_into_the_new_segment() {
    let config = || Config { partitions: 1, ..tiny() };
    let rig = Rig::new(config());
    rig.create("large", Durability::Os);
    rig.create("small", Durability::Os);
    rig.observe("large", &[1]).unwrap();
    // Groups of `os` spaces are written, not synced: none proves the one before, the start will write them all again.
    for i in 0..5 {
        rig.observe("large", &(i * 40 + 10..i * 40 + 50).collect::<Vec<_>>()).unwrap();
    }
    for uid in 900..904 {
        rig.observe("large", &[uid]).unwrap();
    }
    rig.observe("small", &[2]).unwrap();
    let second = Rig::over(config(), MemoryFiles::with_state(rig.files.state(), 1, false));
    let place = second.core.space("small").unwrap().first_unsealed().unwrap();
    assert_eq!(place.segment, second.core.stats().partitions[0].segment, "the row stands in the segment written anew");
    second.turns(300);
    let stats = second.core.stats();
    assert!(
        stats.seals > 0 && second.core.space("small").unwrap().unsealed_bytes() > 0,
        "only the large space is sealed"
    );
    let mut third = Sim::over(1, config(), second.files.state(), 1, Oracle::default());
    third.open().unwrap();
    let core = third.core();
    assert_eq!(core.report.damage, []);
    assert_eq!(core.count(&core.space("large").unwrap(), Reading::default()).unwrap(), 205);
    assert_eq!(core.count(&core.space("small").unwrap(), Reading::default()).unwrap(), 1);
}

/// Found by the crash images: a clean end followed by a checkpoint at the very end of the log was taken for clean although a run had
/// written behind it and lost it.
#[test]
fn a_log_without_a_group_after_its_checkpoint_did_not_end_cleanly() {
    let rig = Rig::new(Config { partitions: 1, ..tiny() });
    rig.create("m", Durability::Memory);
    rig.observe("m", &[1]).unwrap();
    let ticket = rig.core.submit_checkpoint(0);
    while ticket.outcome().is_none() {
        rig.turn();
    }
    let before = rig.core.space("m").unwrap().watermark();
    let mut next = Sim::over(1, Config { partitions: 1, ..tiny() }, rig.files.state(), 1, Oracle::default());
    next.open().unwrap();
    assert_eq!(next.core().report.renewed, ["m"]);
    assert!(next.core().space("m").unwrap().watermark() > before);
}

/// Found by removing files: a catalogue whose log is gone looked like a directory without spaces.
#[test]
fn a_missing_catalogue_is_damage() {
    let rig = Rig::new(tiny());
    rig.create("a", Durability::Sync);
    rig.observe("a", &[1]).unwrap();
    let files = MemoryFiles::with_state(rig.files.state(), 1, false);
    for entry in files.list("catalogue/log").unwrap() {
        files.remove(&format!("catalogue/log/{}", entry.name)).unwrap();
    }
    let mut next = Sim::over(1, tiny(), files.state(), 1, Oracle::default());
    assert_eq!(next.open().unwrap_err().code(), "CORRUPTED");
}

/// Found at the command line: each start wrote the last closing group again, into a segment of its own, although nobody observed anything.
#[test]
fn looking_costs_no_segment() {
    let rig = Rig::new(Config { partitions: 1, ..tiny() });
    rig.create("a", Durability::Sync);
    rig.observe("a", &[1, 2]).unwrap();
    rig.turns(100);
    let segments = |files: &MemoryFiles| files.state().paths().iter().filter(|p| p.contains("/log/0")).count();
    let (mut files, before) = (rig.files.clone(), segments(&rig.files));
    for _ in 0..5 {
        files = MemoryFiles::with_state(files.state(), 0, false);
        let next = Rig::over(Config { partitions: 1, ..tiny() }, files.clone());
        next.turns(100);
        assert_eq!(next.core.count(&next.core.space("a").unwrap(), Reading::default()).unwrap(), 2);
        assert_eq!(segments(&files), before);
    }
}

/// Found by a reader of the code: a newest segment whose first sector is zeroed, or that is cut short, passed for one that a crash had left
/// before its first group; all it held was gone without a word.
#[test]
fn a_headless_segment_that_held_something_is_damage() {
    let rig = Rig::new(Config { partitions: 1, ..tiny() });
    rig.create("a", Durability::Sync);
    rig.observe("a", &[1, 2, 3]).unwrap();
    rig.turns(100);
    for (what, len) in [("zeroed", usize::MAX), ("empty", 0), ("short", 100)] {
        let mut state = rig.files.state();
        let bytes = state.bytes_mut("partition-000/log/0000000001.log").unwrap();
        bytes[..512].fill(0);
        bytes.truncate(len);
        let mut next = Sim::over(1, Config { partitions: 1, ..tiny() }, state, 1, Oracle::default());
        next.open().unwrap();
        let core = next.core();
        assert!(!core.report.damage.is_empty(), "{what}");
        let space = core.space("a").unwrap();
        assert!(core.count(&space, Reading::default()).is_err() && space.refuses_writes().is_some(), "{what}");
    }
}

/// Found by a reader of the code: a supply that failed kept a checkpoint waiting for ever; the last id overflowed.
#[test]
fn a_refused_checkpoint_and_an_end_of_ids_are_answers() {
    let rig = Rig::new(tiny());
    rig.create("a", Durability::Sync);
    rig.observe("a", &[1]).unwrap();
    assert_eq!(rig.core.list(&rig.core.space("a").unwrap(), u64::MAX, 5, Reading::default()).unwrap(), []);
    // A full disk: the log's segments cannot be made, and the checkpoint says so instead of waiting for them.
    rig.turns(50);
    rig.files.set_capacity(Some(rig.files.used()));
    rig.core.partitions[0].supply.ready(60 << 10, false);
    let ticket = rig.core.submit_checkpoint(0);
    for _ in 0..200 {
        rig.turn();
    }
    assert_eq!(ticket.outcome().unwrap().unwrap_err().code(), "DISK_FULL");
}

/// Found through the Python surface: a space that lost all its log looked empty instead of damaged.
#[test]
fn a_space_that_lost_everything_is_not_empty() {
    let rig = Rig::new(Config { partitions: 1, ..tiny() });
    rig.create("a", Durability::Sync);
    rig.observe("a", &[1, 2, 3]).unwrap();
    rig.turns(100);
    let mut state = rig.files.state();
    state.bytes_mut("partition-000/log/0000000001.log").unwrap()[700] ^= 1;
    let mut next = Sim::over(1, Config { partitions: 1, ..tiny() }, state, 1, Oracle::default());
    next.open().unwrap();
    let core = next.core();
    let space = core.space("a").unwrap();
    assert!(core.list(&space, 0, 10, Reading::default()).is_err() && core.count(&space, Reading::default()).is_err());
    assert!(
        core.recall(&space, &[1.0, 0.0, 0.0], 1, Reading::default()).is_err()
            && core.get(&space, 2, Reading::default()).is_err()
    );
}

/// Found by failing calls one by one: the sync of a drop's record failed, the space went on, acknowledged more, and the next start found
/// the record and dropped it with all of that.
#[test]
fn a_space_whose_drop_is_in_doubt_takes_no_more() {
    let rig = Rig::new(Config { partitions: 1, ..tiny() });
    rig.create("a", Durability::Sync);
    rig.observe("a", &[1]).unwrap();
    let space = rig.core.space("a").unwrap();
    space.fence();
    rig.faults.add(Rule::parse("sync:catalogue=EIO").unwrap());
    let ticket = rig.core.submit_drop(space.options.id);
    rig.turns(20);
    assert_eq!(ticket.outcome().unwrap().unwrap_err().code(), "POISONED");
    space.unfence();
    assert_eq!(rig.observe("a", &[2]).unwrap_err().code(), "POISONED");
    assert_eq!(rig.core.count(&space, Reading::default()).unwrap(), 1, "it is still read");
    let mut next = Sim::over(1, Config { partitions: 1, ..tiny() }, rig.files.state(), 1, Oracle::default());
    next.open().unwrap();
    assert!(next.core().space("a").is_err(), "the record was there");
}

/// Found by measuring a long stream: while half a gigabyte was merged nothing was sealed and no segment made, and writers waited for seconds.
#[test]
fn a_long_merge_holds_up_neither_sealing_nor_segments() {
    const MIB: u64 = 1 << 20;
    let rig = Rig::new(Config {
        partitions: 1,
        seal_space_bytes: 4 * MIB,
        unsealed_space_bytes_max: 16 * MIB,
        segment_bytes_first: MIB,
        segment_bytes_max: MIB,
        merge_files: 3,
        ..Config::default()
    });
    rig.create("a", Durability::Sync);
    let space = rig.core.space("a").unwrap();
    let text = "x".repeat(500_000);
    let mut sent = 0;
    let maintain = || {
        rig.core.step_maintenance();
        rig.core.maintenance_port.run_one();
    };
    let push = |sent: &mut u64, maintenance_steps: usize| {
        let columns = Columns { count: 1, dim: 3, texts: Some(&[Some(text.as_str())]), ..Columns::default() };
        let prepared = rig.core.prepare(&space, build_frame(&columns)).unwrap();
        let Ok(Admission::Admitted(ticket)) = rig.core.admit(&space, prepared) else { panic!("refused") };
        *sent += 1;
        while ticket.outcome().is_none() {
            rig.core.step_partition(0);
            rig.core.partitions[0].port.run_one();
            if rig.core.partitions[0].supply.spares().len() < 2 {
                maintain();
            }
        }
        ticket.outcome().unwrap().unwrap();
        (0..maintenance_steps).for_each(|_| maintain());
    };
    let parts = || rig.core.space_stats(&space).sealed_parts;
    let merging = || rig.files.list("partition-000/rows").unwrap().iter().any(|e| e.name.ends_with(".tmp"));
    while parts() < 3 {
        push(&mut sent, 10);
    }
    while !merging() {
        rig.turn();
    }
    // 12 MiB in steps of 1 MiB: the merge gets one for each of these.
    (0..9).for_each(|_| push(&mut sent, 1));
    assert_eq!((parts(), rig.core.stats().merged_bytes), (3, 0), "the merge goes on");
    while parts() == 3 {
        rig.turn();
    }
    assert_eq!((parts(), rig.core.stats().merged_bytes), (4, 0), "sealing went before");
    rig.turns(200);
    assert!(rig.core.stats().merged_bytes > 12 * MIB - MIB);
    assert!(rig.core.stats().maintenance_error.is_none());
    let mut next = Sim::over(1, Config { partitions: 1, ..Config::default() }, rig.files.state(), 1, Oracle::default());
    next.open().unwrap();
    let core = next.core();
    assert_eq!(
        (core.count(&core.space("a").unwrap(), Reading::default()).unwrap(), core.report.damage.len()),
        (sent, 0)
    );
}

/// Found beside a hammered space: a writer that waited for a segment looked for it again and again, and took the CPU from who made it.
#[test]
fn a_writer_without_a_segment_waits_for_one() {
    let rig = Rig::new(tiny());
    rig.create("a", Durability::Sync);
    let write = || {
        rig.core.step_partition(0);
        rig.core.partitions[0].port.run_one();
    };
    // Nobody makes segments: at some time there is none.
    let mut uid = 0;
    let stuck = loop {
        uid += 1;
        let ticket = rig.push("a", &[uid]).unwrap();
        (0..10).for_each(|_| write());
        if ticket.outcome().is_none() {
            break ticket;
        }
        assert!(uid < 100_000);
    };
    assert!(!rig.core.partitions[0].is_due(), "there is nothing to do until there is a segment");
    for _ in 0..1_000 {
        rig.core.step_maintenance();
        rig.core.maintenance_port.run_one();
        rig.core.partitions[0].port.run_one();
        if rig.core.partitions[0].is_due() {
            rig.core.step_partition(0);
        }
    }
    stuck.outcome().unwrap().unwrap();
}
