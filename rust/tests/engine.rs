//! The engine as its users drive it: threads, real or in-memory files; whole partitions are taken over, and threads that die are replaced (T3).
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::frame_of;
use engram_core::engine::{Admission, Engine, Reading};
use engram_core::env::{Action, Env, FaultPlan, FaultyFiles, Operation, Rule, Task};
use engram_core::queue::{Committed, Ticket};
use engram_core::records::{Columns, build_frame};
use engram_core::types::{Config, Durability};

const NO_PULSE: &dyn Fn() -> engram_core::error::Result<()> = &|| Ok(());

fn frame(from: usize, n: usize, dim: usize) -> Vec<u8> {
    let vectors: Vec<f32> = (from * dim..(from + n) * dim).map(|i| ((i * 7919) % 1000) as f32 - 500.0).collect();
    let texts: Vec<String> = (from..from + n).map(|i| format!("text {i}")).collect();
    let texts: Vec<Option<&str>> = texts.iter().map(|t| Some(t.as_str())).collect();
    build_frame(&Columns { count: n, dim, vectors: Some(&vectors), texts: Some(&texts), ..Columns::default() })
}

fn observe(engine: &Engine, name: &str, from: usize, n: usize, dim: usize) -> u64 {
    let space = engine.core().space(name).unwrap();
    let prepared = engine.core().prepare(&space, frame(from, n, dim)).unwrap();
    let ticket = engine.submit(&space, prepared, 10_000, NO_PULSE).unwrap();
    loop {
        if let Some(outcome) = ticket.wait(std::time::Duration::from_secs(1)) {
            return outcome.unwrap().first.0;
        }
    }
}

#[test]
fn observe_seal_reopen_twice() {
    let dir = tempfile::tempdir().unwrap();
    let config = || Config { segment_bytes_first: 1 << 20, segment_bytes_max: 4 << 20, ..Config::default() };
    for round in 0..3usize {
        let engine = Engine::open(Env::real(dir.path()).unwrap(), config(), 2).unwrap();
        engine.create_space("notes", 16, None, None, NO_PULSE).unwrap();
        let space = engine.core().space("notes").unwrap();
        assert_eq!(engine.core().count(&space, Reading::default()).unwrap(), round as u64 * 1100);
        for i in 0..10 {
            assert_eq!(observe(&engine, "notes", i * 100, 100, 16), (round * 1100 + i * 100) as u64 + 1);
        }
        if round == 1 {
            engine.checkpoint(NO_PULSE).unwrap();
            assert_eq!(engine.core().space_stats(&space).tail_parts, 0);
        }
        for i in 0..100 {
            observe(&engine, "notes", i, 1, 16);
        }
        let hash = engine.core().state_hash().unwrap();
        let memory = engine.core().get(&space, 5, Reading::default()).unwrap().unwrap();
        assert_eq!(memory.text.as_deref(), Some("text 4"));
        let (_, hits) = engine.core().recall(&space, &memory.vector.unwrap(), 3, Reading::default()).unwrap();
        assert_eq!(hits[0].memory.generation.0, 5);
        engine.close().unwrap();
        let again = Engine::open(Env::real(dir.path()).unwrap(), config(), 2).unwrap();
        assert_eq!(again.core().state_hash().unwrap(), hash);
        assert!(again.core().report.damage.is_empty());
        assert_eq!(again.core().report.torn_bytes, 0);
    }
}

#[test]
fn many_producers_many_spaces() {
    let engine =
        Engine::open(Env::in_memory(), Config { segment_bytes_first: 1 << 20, ..Config::default() }, 2).unwrap();
    for s in 0..6 {
        engine.create_space(&format!("s{s}"), 8, None, None, NO_PULSE).unwrap();
    }
    std::thread::scope(|scope| {
        for t in 0..8usize {
            let engine = &engine;
            scope.spawn(move || {
                for i in 0..200 {
                    observe(engine, &format!("s{}", (t + i) % 6), i, 1 + i % 5, 8);
                }
            });
        }
    });
    let total: u64 = (0..6)
        .map(|s| engine.core().count(&engine.core().space(&format!("s{s}")).unwrap(), Reading::default()).unwrap())
        .sum();
    assert_eq!(total, 8 * (0..200).map(|i| 1 + i % 5).sum::<u64>());
    engine.drop_space("s3", NO_PULSE).unwrap();
    assert!(engine.core().space("s3").is_err());
    engine.create_space("s3", 8, None, None, NO_PULSE).unwrap();
    assert!(observe(&engine, "s3", 0, 1, 8) > 200, "a name made again starts after the dropped one's last");
    engine.close().unwrap();
}

fn engine() -> (Engine, Arc<FaultPlan>) {
    let (mut env, faults) = (Env::in_memory(), Arc::new(FaultPlan::default()));
    env.files = Arc::new(FaultyFiles::new(env.files, faults.clone()));
    // Nothing but what a test pushes keeps the threads busy.
    let config = Config { segment_bytes_first: 1 << 20, partitions: 4, idle_close_ms: 1_000_000, ..Config::default() };
    let engine = Engine::open(env, config, 2).unwrap();
    for name in ["a", "b", "c", "d"] {
        engine.create_space(name, 3, None, Some(Durability::Memory), NO_PULSE).unwrap();
    }
    // The first group of a run waits for the disk, whatever the mode.
    for name in ["a", "b", "c", "d"] {
        answered(&push(&engine, name, &[1])).unwrap();
    }
    (engine, faults)
}

/// Left to the writer threads: nobody here drives.
fn push(engine: &Engine, name: &str, uids: &[u64]) -> Arc<Ticket<Committed>> {
    let space = engine.core().space(name).unwrap();
    let prepared = engine.core().prepare(&space, frame_of(uids, false)).unwrap();
    let Admission::Admitted(ticket) = engine.core().admit(&space, prepared).unwrap() else { panic!("full") };
    let index = space.options.partition.0 as usize;
    engine.core().partitions[index].announce();
    engine.core().scheduler.wake(Task::Writer(index));
    ticket
}

fn answered(ticket: &Arc<Ticket<Committed>>) -> engram_core::error::Result<Committed> {
    for _ in 0..100 {
        if let Some(outcome) = ticket.wait(Duration::from_millis(100)) {
            return outcome;
        }
    }
    panic!("no answer in 10 s")
}

/// With two threads, partitions 0 and 2 have the same one. Now and then another thread than that comes first to the slow batch, and there is
/// nothing to take over: then once more.
#[test]
fn an_idle_thread_takes_over_a_whole_partition() {
    let (engine, faults) = engine();
    let mut next = 2;
    for round in 0..8 {
        let rule =
            Rule { path: Some("uid 7 ".to_owned()), times: 1, ..Rule::new(Operation::Apply, Action::Delay(1_500)) };
        faults.add(rule);
        let slow = push(&engine, "a", &[7]);
        // The thread is at it.
        std::thread::park_timeout(Duration::from_millis(100));
        let batch = |i: u64| (i * 100 + 1000..i * 100 + 1100).collect::<Vec<_>>();
        let many: Vec<_> = (0..20).map(|i| push(&engine, "c", &batch(i))).collect();
        let firsts: Vec<u64> = many.iter().map(|ticket| answered(ticket).unwrap().first.0).collect();
        assert!(slow.outcome().is_none(), "the other partition was waited for");
        assert_eq!(firsts, (0..20).map(|i| next + i * 100).collect::<Vec<_>>(), "in order, all of it");
        next += 2_000;
        assert_eq!(answered(&slow).unwrap().first.0, 2 + round);
        if engine.core().stats().takeovers > 0 {
            break;
        }
    }
    assert!(engine.core().stats().takeovers > 0);
    engine.close().unwrap();
}

#[test]
fn threads_that_die_are_replaced_and_nothing_is_lost() {
    let (engine, faults) = engine();
    let names = ["io-0", "io-2", "io-catalogue", "io-maintenance", "writer-0", "writer-1", "engram-maintenance"];
    for name in names {
        faults.add(Rule { path: Some(name.to_owned()), times: 3, ..Rule::new(Operation::Work, Action::Panic) });
    }
    let tickets: Vec<_> =
        (0..50).flat_map(|i| ["a", "b", "c", "d"].map(|name| push(&engine, name, &[10 + i]))).collect();
    for ticket in &tickets {
        answered(ticket).unwrap();
    }
    engine.checkpoint(NO_PULSE).unwrap();
    engine.create_space("e", 3, None, None, NO_PULSE).unwrap();
    // Each is met at the latest with its next tick.
    for _ in 0..200 {
        if engine.core().stats().worker_restarts >= 3 * names.len() as u64 {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    assert_eq!(engine.core().stats().worker_restarts, 3 * names.len() as u64);
    for name in ["a", "b", "c", "d"] {
        let space = engine.core().space(name).unwrap();
        assert_eq!((space.watermark().0, space.view().memories(), space.depth.observations()), (51, 51, 0));
    }
    engine.close().unwrap();
}
