//! Partitions, turns, maintenance and poisoning, step by step on a simulated disk.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Oracle, Rig, Sim, tiny};
use engram_core::engine::{AsOf, Core, Reading, Speech};
use engram_core::env::{Action, MemoryFiles, Operation, Rule, Site};
use engram_core::session::{Claim, Priority};
use engram_core::store::Wanted;
use engram_core::types::{Config, Durability, Generation};

/// T1: a new space goes to the partition with the fewest, then the lowest number; it is stored, not computed.
#[test]
fn spaces_are_spread_and_stay() {
    let rig = Rig::new(Config { partitions: 4, ..tiny() });
    for i in 0..8 {
        rig.create(&format!("s{i}"), Durability::Sync);
    }
    let place = |core: &Core| -> Vec<u32> { core.spaces.all().iter().map(|s| s.options.partition.0).collect() };
    assert_eq!(place(&rig.core), [0, 1, 2, 3, 0, 1, 2, 3]);
    let drop = |name: &str| {
        let space = rig.core.space(name).unwrap();
        space.fence();
        let ticket = rig.core.submit_drop(space.options.id);
        while ticket.outcome().is_none() {
            rig.turn();
        }
    };
    drop("s2");
    rig.create("s9", Durability::Sync);
    assert_eq!(rig.core.space("s9").unwrap().options.partition.0, 2);
    let mut again = Sim::over(1, Config { partitions: 4, ..tiny() }, rig.files.state(), 1, Oracle::default());
    again.open().unwrap();
    assert_eq!(place(&again.core()), place(&rig.core));
}

/// T2, O3: one hot space cannot starve the others: a late single observation overtakes most of a long lane.
#[test]
fn a_hot_space_takes_turns() {
    let rig = Rig::new(Config { quantum_bytes: 4 << 10, group_bytes_max: 8 << 10, partitions: 1, ..Config::default() });
    rig.create("hot", Durability::Sync);
    rig.create("quiet", Durability::Sync);
    rig.observe("hot", &[1]).unwrap();
    let hot: Vec<_> = (0..200).map(|i| rig.push("hot", &[i * 20 + 10, i * 20 + 11]).unwrap()).collect();
    let quiet = rig.push("quiet", &[5]).unwrap();
    while quiet.outcome().is_none() {
        rig.turn();
    }
    let before = hot.iter().filter(|t| t.outcome().is_some()).count();
    assert!(before < 100, "{before} of 200 hot batches went before the quiet one");
    rig.turns(500);
    assert!(hot.iter().all(|t| t.outcome().is_some_and(|o| o.is_ok())));
    assert_eq!((rig.core.process_queue.bytes(), rig.core.space("hot").unwrap().depth.observations()), (0, 0));
}

/// D1, D8: each mode is answered when it has what it promises, and not before it can be read. G2: here the later in the log finishes
/// before the earlier, in a log whose order is not changed by it.
#[test]
fn modes_are_answered_in_their_time() {
    let rig = Rig::new(Config { partitions: 1, ..tiny() });
    let modes = [("s", Durability::Sync), ("o", Durability::Os), ("m", Durability::Memory)];
    for (name, mode) in modes {
        rig.create(name, mode);
        rig.observe(name, &[1]).unwrap();
    }
    rig.turns(100);
    let batches = [("s", [71, 72]), ("o", [81, 82]), ("m", [91, 92])];
    let tickets: Vec<_> = batches.iter().map(|(n, uids)| rig.push(n, uids).unwrap()).collect();
    let answered = || -> Vec<bool> { tickets.iter().map(|t| t.outcome().is_some()).collect() };
    let counts = || batches.map(|(n, _)| rig.core.count(&rig.core.space(n).unwrap(), Reading::default()).unwrap());
    rig.core.step_partition(0);
    assert_eq!((answered(), counts()), (vec![false, false, true], [1, 1, 3]), "submitted: the last of all is first");
    rig.core.partitions[0].port.run_one();
    rig.core.step_partition(0);
    assert_eq!((answered(), counts()), (vec![false, true, true], [1, 3, 3]), "written");
    rig.core.partitions[0].port.run_one();
    rig.core.step_partition(0);
    assert_eq!((answered(), counts()), (vec![true, true, true], [3, 3, 3]), "synced: the first of all is last");
    let mut disk = rig.files.state();
    let paths = disk.paths();
    let places = [71, 72, 81, 82, 91, 92].map(|uid| {
        let text = format!("uid {uid} ").into_bytes();
        let find = |bytes: &mut Vec<u8>| bytes.windows(text.len()).position(|w| w == text);
        paths.iter().find_map(|path| disk.bytes_mut(path).and_then(find).map(|at| (path, at))).unwrap()
    });
    assert!(places.is_sorted(), "{places:?}");
    assert_eq!(places[0].0, places[5].0, "one segment");
}

/// D4: a failed sync is final: its partition is poisoned, the others go on, reads go on, and the next start has what was acknowledged.
#[test]
fn a_failed_sync_poisons_one_partition() {
    let rig = Rig::new(tiny());
    rig.create("a", Durability::Sync);
    rig.create("b", Durability::Sync);
    rig.observe("a", &[1, 2]).unwrap();
    rig.observe("b", &[3]).unwrap();
    let mut rule = Rule::new(Operation::Sync, Action::Fail(5));
    (rule.site, rule.path) = (Some(Site::GroupSync), Some("partition-000".to_owned()));
    rig.faults.add(rule);
    assert_eq!(rig.observe("a", &[4]).unwrap_err().code(), "POISONED");
    rig.faults.clear();
    assert_eq!(rig.observe("a", &[5]).unwrap_err().code(), "POISONED", "not tried again as if it had worked");
    rig.observe("b", &[6]).unwrap();
    assert_eq!(rig.core.count(&rig.core.space("a").unwrap(), Reading::default()).unwrap(), 2, "reads go on");
    assert!(rig.core.stats().partitions[0].poisoned.is_some());
    let mut again = Sim::over(1, tiny(), rig.files.state(), 1, Oracle::default());
    again.open().unwrap();
    assert!(again.core().count(&again.core().space("a").unwrap(), Reading::default()).unwrap() >= 2);
    assert!(!again.files.state().paths().iter().any(|p| p.ends_with("poisoned")), "the note is cleared");
}

/// D10: a full disk is met before numbering; what waits is refused, reads go on, intake resumes by itself.
#[test]
fn a_full_disk_refuses_and_resumes() {
    let rig = Rig::new(tiny());
    rig.create("a", Durability::Sync);
    rig.observe("a", &[1]).unwrap();
    rig.turns(50);
    rig.files.set_capacity(Some(rig.files.used()));
    let mut accepted = 1;
    let error = (2..5_000).find_map(|uid| rig.observe("a", &[uid]).map(|_| accepted += 1).err()).unwrap();
    assert_eq!(error.code(), "DISK_FULL");
    assert_eq!(rig.core.count(&rig.core.space("a").unwrap(), Reading::default()).unwrap(), accepted);
    rig.files.set_capacity(None);
    rig.turns(50);
    let first = rig.observe("a", &[9_000]).unwrap().first.0;
    assert_eq!(first, accepted + 1, "a refusal consumed no generation");
}

/// T3: a failing maintenance job is given up, reported, and tried again with new files.
#[test]
fn maintenance_tries_again() {
    let rig = Rig::new(tiny());
    rig.create("a", Durability::Sync);
    let mut rule = Rule::new(Operation::Sync, Action::Fail(5));
    (rule.site, rule.times) = (Some(Site::RowsSync), 2);
    rig.faults.add(rule);
    for i in 0..40 {
        rig.observe("a", &(i * 10..i * 10 + 10).collect::<Vec<_>>()).unwrap();
    }
    rig.turns(400);
    let stats = rig.core.stats();
    assert!(stats.maintenance_failures >= 2 && stats.seals > 0, "{stats:?}");
    assert_eq!(stats.maintenance_error, None);
    assert_eq!(rig.core.count(&rig.core.space("a").unwrap(), Reading::default()).unwrap(), 400);
}

/// T5: large spaces seal into files of their own, small ones together; files merge; the log is freed; nothing changes for readers.
#[test]
fn sealing_keeps_what_readers_see() {
    let rig = Rig::new(Config { partitions: 1, ..tiny() });
    for name in ["big", "small", "tiny"] {
        rig.create(name, Durability::Sync);
    }
    let mut uid = 0;
    let mut some = |n: u64| {
        uid += n;
        (uid - n..uid).collect::<Vec<u64>>()
    };
    for round in 0..60 {
        rig.observe("big", &some(20)).unwrap();
        rig.observe("small", &some(1)).unwrap();
        if round % 10 == 0 {
            rig.observe("tiny", &some(1)).unwrap();
        }
        rig.turns(5);
    }
    let hash = rig.core.state_hash().unwrap();
    let ticket = rig.core.submit_checkpoint(0);
    rig.turns(3_000);
    ticket.outcome().unwrap().unwrap();
    assert_eq!(rig.core.state_hash().unwrap(), hash, "sealing and merging change nothing");
    let stats = rig.core.stats();
    assert!(stats.merged_bytes > 0 && stats.partitions[0].checkpoint > 2, "{stats:?}");
    assert!(stats.partitions[0].log_end - stats.partitions[0].checkpoint_offset < 4096);
    let segments = rig.files.state().paths().iter().filter(|p| p.contains("partition-000/log/0")).count();
    assert!(segments <= 3, "{segments} log segments are left of {} bytes", stats.partitions[0].log_end);
    assert_eq!(rig.core.process_unsealed.bytes(), 0);
    // D6, T6: a replay from the checkpoint gives the same.
    let mut again = Sim::over(1, Config { partitions: 1, ..tiny() }, rig.files.state(), 1, Oracle::default());
    again.open().unwrap();
    assert_eq!(again.core().state_hash().unwrap(), hash);
}

/// T4: a simulator that owns every step sees the same answers twice, whatever the order of completions.
#[test]
fn steps_are_all_there_is() {
    let run = |seed| {
        let mut sim = Sim::new(seed, tiny());
        sim.open().unwrap();
        sim.run(600);
        sim.settle();
        (sim.files.trace_hash(), sim.core().state_hash().unwrap())
    };
    assert_eq!(run(4), run(4));
    assert_ne!(run(4), run(5));
}

/// O7, O4: a reader never sees part of a batch while groups are applied beside it.
#[test]
fn batches_become_visible_whole() {
    let rig = Rig::new(Config { partitions: 1, ..tiny() });
    rig.create("a", Durability::Memory);
    let space = rig.core.space("a").unwrap();
    let (done, reads) = (std::sync::atomic::AtomicBool::new(false), std::sync::atomic::AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (done, reads, core, space) = (&done, &reads, &rig.core, &space);
        scope.spawn(move || {
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                assert_eq!(core.count(space, Reading::default()).unwrap() % 7, 0);
                reads.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        });
        for i in 0..300 {
            rig.observe("a", &(i * 7..i * 7 + 7).collect::<Vec<_>>()).unwrap();
        }
        while reads.load(std::sync::atomic::Ordering::SeqCst) < 100 {
            std::thread::yield_now();
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
    });
}

/// D5: rot in a sealed block that nobody reads is met by the scrub; the space says so.
#[test]
fn the_scrub_meets_rot() {
    let rig = Rig::new(Config { partitions: 1, ..tiny() });
    rig.create("a", Durability::Sync);
    for i in 0..60 {
        rig.observe("a", &(i * 40..i * 40 + 40).collect::<Vec<_>>()).unwrap();
    }
    let ticket = rig.core.submit_checkpoint(0);
    while ticket.outcome().is_none() {
        rig.turn();
    }
    rig.turns(2_000);
    let stats = rig.core.stats();
    assert!(stats.scrubbed_blocks > 0, "{stats:?}");
    assert_eq!(rig.core.space_stats(&rig.core.space("a").unwrap()).degraded, None);
    let mut state = rig.files.state();
    let rows = state.paths().into_iter().filter(|p| p.ends_with(".rows"));
    let rows = rows.max_by_key(|p| state.clone().bytes_mut(p).unwrap().len()).unwrap();
    // In the middle: opening does not need it.
    let bytes = state.bytes_mut(&rows).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = Rig::over(Config { partitions: 1, ..tiny() }, MemoryFiles::with_state(state, 0, false));
    let space = damaged.core.space("a").unwrap();
    assert_eq!(damaged.core.space_stats(&space).degraded, None);
    damaged.turns(2_000);
    assert!(damaged.core.space_stats(&space).degraded.unwrap().contains(&rows));
}

/// S1: a session that nobody uses for a week expires, by a record, an hour after that was first seen; one that is spoken for does not.
#[test]
fn sessions_expire_by_a_record() {
    let rig = Rig::new(Config { partitions: 1, scrub_pause_ms: u64::MAX, ..tiny() });
    rig.create("a", Durability::Sync);
    let space = rig.core.space("a").unwrap();
    let open = || {
        let (session, ticket) = rig.core.submit_open(&space, Priority::Normal, "", Claim::default()).unwrap().unwrap();
        rig.turns(10);
        (session, ticket.outcome().unwrap().unwrap().epoch)
    };
    let (idle, epoch) = open();
    let (spoken_for, _) = open();
    rig.core.detach(&idle, epoch);
    let token = rig.core.token(&space, idle.id);
    let pass = |minutes: u64| {
        for _ in 0..minutes {
            rig.clock.advance_micros(60_000_000);
            rig.turns(6);
        }
    };
    pass(30);
    rig.clock.advance_micros(8 * 24 * 3_600 * 1_000_000);
    pass(58);
    assert_eq!(space.sessions.len(), 2, "due, and not yet certain");
    pass(10);
    assert_eq!(space.sessions.all().iter().map(|s| s.id).collect::<Vec<_>>(), [spoken_for.id]);
    let again = rig.core.submit_attach(&space, &token, "", None, Claim::default());
    assert_eq!(again.err().unwrap().code(), "SESSION_EXPIRED");
    rig.turns(200);
    let next = Rig::over(tiny(), MemoryFiles::with_state(rig.files.state(), 1, true));
    let space = next.core.space("a").unwrap();
    assert_eq!(space.sessions.all().iter().map(|s| s.id).collect::<Vec<_>>(), [spoken_for.id]);
    assert_eq!(
        next.core.submit_attach(&space, &token, "", None, Claim::default()).err().unwrap().code(),
        "SESSION_EXPIRED"
    );
}

/// S2, D10: what a full disk refuses out of a lane takes nothing, and the session goes on from there when there is room.
#[test]
fn a_full_disk_sets_a_session_back() {
    let rig = Rig::new(Config { partitions: 1, ..tiny() });
    rig.create("a", Durability::Sync);
    let space = rig.core.space("a").unwrap();
    let (session, ticket) = rig.core.submit_open(&space, Priority::Normal, "", Claim::default()).unwrap().unwrap();
    rig.turns(10);
    let epoch = ticket.outcome().unwrap().unwrap().epoch;
    let say = |first: u64, uids: &[u64]| {
        let mut spoken = rig.core.prepare_spoken(&space, common::frame_of(uids, false), false).unwrap();
        match rig.core.say(&space, &session, epoch, Some(first), &mut spoken) {
            Ok(Speech::Said(saying)) => Ok(saying.fresh.unwrap().1),
            Ok(Speech::Full(reason)) => panic!("{reason}"),
            Err(error) => Err(error),
        }
    };
    rig.faults.add(Rule::new(Operation::Create, Action::Fail(28)));
    let all: Vec<u64> = (1..=200).collect();
    let (mut first, mut refused, mut kept) = (1, None, Vec::new());
    for _ in 0..200 {
        match say(first, &all) {
            Ok(ticket) => kept.push((first, ticket)),
            Err(error) => panic!("{error}"),
        }
        first += 200;
        rig.turns(8);
        refused = kept.iter().find_map(|(f, t)| t.outcome().and_then(Result::err).map(|e| (*f, e)));
        if refused.is_some() {
            break;
        }
    }
    let (at, error) = refused.expect("the disk never filled");
    assert_eq!(error.code(), "DISK_FULL");
    rig.faults.clear();
    rig.turns(300);
    let section = session.section();
    assert_eq!((section.admitted(), section.window.committed()), (at - 1, at - 1), "fell back to what is numbered");
    drop(section);
    assert_eq!(say(at + 200, &all).err().unwrap().code(), "SEQUENCE_GAP");
    let again = say(at, &all).unwrap();
    rig.turns(50);
    assert!(again.outcome().unwrap().is_ok());
    assert_eq!(rig.core.count(&space, Reading::default()).unwrap(), at + 199);
}

/// O3: the urgent go first, by weight, and the others are not starved.
#[test]
fn priorities_are_served_by_weight() {
    let rig = Rig::new(Config { partitions: 1, quantum_bytes: 2_000, group_bytes_max: 2_600, ..tiny() });
    rig.create("a", Durability::Sync);
    let space = rig.core.space("a").unwrap();
    let open = |priority| {
        let (session, ticket) = rig.core.submit_open(&space, priority, "", Claim::default()).unwrap().unwrap();
        rig.turns(10);
        (session, ticket.outcome().unwrap().unwrap().epoch)
    };
    let sessions = [Priority::Low, Priority::Normal, Priority::High].map(open);
    for (session, epoch) in &sessions {
        for uid in 1..=200 {
            let mut spoken = rig.core.prepare_spoken(&space, common::frame_of(&[uid], false), false).unwrap();
            let said = rig.core.say(&space, session, *epoch, None, &mut spoken);
            assert!(matches!(said, Ok(Speech::Said(_))));
        }
    }
    let committed = || sessions.each_ref().map(|(session, _)| session.section().window.committed());
    while committed()[2] < 150 {
        rig.turn();
    }
    let [low, normal, high] = committed();
    assert!(normal * 3 < high * 2 && normal * 3 > high, "about half: {low} {normal} {high}");
    assert!(low * 4 < high && low >= 10, "little, and not nothing: {low} {normal} {high}");
    rig.turns(500);
    assert_eq!(committed(), [200; 3]);
}

/// G5: what died a week ago is dropped from the files, by a record, and `as_of` says how far it reaches; the rest stays.
#[test]
fn history_expires_by_a_record() {
    let config = Config { partitions: 1, scrub_pause_ms: u64::MAX, ..tiny() };
    let rig = Rig::new(config.clone());
    rig.create("a", Durability::Sync);
    let space = rig.core.space("a").unwrap();
    for n in 0..40 {
        rig.observe("a", &(n * 10..n * 10 + 10).map(|u| u + 1).collect::<Vec<_>>()).unwrap();
    }
    let forget = |from: u64, to: u64| {
        let wanted = Wanted::Ids((from..to).map(Generation).collect());
        let ticket = rig.core.submit_forget(&space, wanted, false).unwrap().ok().unwrap();
        rig.turns(10);
        ticket.outcome().unwrap().unwrap().generation
    };
    let early = forget(1, 301);
    rig.clock.advance_micros(8 * 24 * 3_600 * 1_000_000);
    let late = forget(301, 351);
    let checkpoint = || {
        let asked = rig.core.submit_checkpoint(0);
        rig.turns(400);
        asked.outcome().unwrap().unwrap();
    };
    checkpoint();
    let rows = || {
        let stats = rig.core.space_stats(&space);
        stats.sealed_rows + stats.history_rows
    };
    let at = |core: &Core, generation| {
        let reading = Reading { as_of: Some(AsOf::Generation(generation)), ..Reading::default() };
        core.count(&core.space("a").unwrap(), reading)
    };
    assert_eq!((rows(), at(&rig.core, Generation(400)).unwrap()), (400, 400), "kept as long as it is");
    for _ in 0..140 {
        rig.clock.advance_micros(60_000_000);
        rig.turns(8);
    }
    rig.turns(600);
    // A file is written again when a quarter of it need not be kept.
    assert!((100..=132).contains(&rows()), "the early ones are gone, the late ones are not: {}", rows());
    checkpoint();
    let next = Rig::over(config, MemoryFiles::with_state(rig.files.state(), 1, true));
    for core in [&rig.core, &next.core] {
        assert_eq!(at(core, Generation(400)).unwrap_err().code(), "SNAPSHOT_EXPIRED");
        assert_eq!((at(core, early).unwrap(), at(core, late).unwrap()), (100, 50));
        assert_eq!(core.count(&core.space("a").unwrap(), Reading::default()).unwrap(), 50);
    }
}
