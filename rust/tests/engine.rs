//! The engine as its users drive it: threads, real or in-memory files.
#![allow(clippy::unwrap_used, reason = "tests")]

use engram_core::engine::{Engine, Reading};
use engram_core::env::Env;
use engram_core::records::{Columns, build_frame};
use engram_core::types::Config;

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
