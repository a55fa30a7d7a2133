//! Levels, admission and retry-after on a simulated disk whose speed the test sets.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::{Rig, tiny};
use engram_core::engine::{Hears, Reading};
use engram_core::queue::{Committed, Level, Ticket};
use engram_core::session::{Claim, Priority};
use engram_core::types::{Config, Durability};

const LIMIT: u64 = 1_000;
const BATCH: u64 = 10;

fn config() -> Config {
    Config {
        partitions: 1,
        queue_observations_max: LIMIT,
        group_bytes_max: 4 << 10,
        quantum_bytes: 1 << 10,
        queue_age_ms_max: 1_000_000,
        segment_bytes_first: 1 << 20,
        segment_bytes_max: 1 << 20,
        ..tiny()
    }
}

struct Source {
    rig: Rig,
    next: u64,
    tickets: Vec<Arc<Ticket<Committed>>>,
    refused: u64,
}

impl Source {
    fn new(config: Config) -> Self {
        let rig = Rig::new(config);
        rig.create("a", Durability::Sync);
        rig.observe("a", &[1]).unwrap();
        rig.turns(50);
        Self { rig, next: 2, tickets: Vec::new(), refused: 0 }
    }

    fn depth(&self) -> u64 {
        self.rig.core.space("a").unwrap().depth.observations()
    }

    fn level(&self) -> Level {
        self.rig.core.space("a").unwrap().level(self.rig.core.now())
    }

    fn push(&mut self) -> bool {
        let uids: Vec<u64> = (self.next..self.next + BATCH).collect();
        self.next += BATCH;
        match self.rig.push("a", &uids) {
            Ok(ticket) => self.tickets.push(ticket),
            Err(error) => {
                assert_eq!(error.code(), "OVERLOADED");
                self.refused += 1;
                return false;
            }
        }
        true
    }

    /// One group goes to a disk that takes `ms` for it.
    fn turn(&self, ms: u64) {
        self.rig.turn();
        self.rig.clock.advance_micros((ms - 1) * 1_000);
    }
}

/// P5: a speaker that listens hears of each level within 100 ms, also of one that only age has moved; who is fenced hears nothing.
#[test]
fn attached_sessions_hear_of_levels() {
    let mut source = Source::new(Config { queue_age_ms_max: 1_000, ..config() });
    let core = Arc::clone(&source.rig.core);
    let space = core.space("a").unwrap();
    let (speaker, ticket) = core.submit_open(&space, Priority::Normal, "", Claim::default()).unwrap().unwrap();
    source.rig.turns(20);
    let epoch = ticket.outcome().unwrap().unwrap().epoch;
    core.listen(&space, &speaker, epoch, Hears::Frames).unwrap();
    let heard = || -> Vec<u8> { core.drain_completions(99).into_iter().flat_map(|(_, told)| told).collect() };
    let says = |told: &[u8], level: &str| told.windows(level.len()).any(|w| w == level.as_bytes());
    core.step_maintenance();
    assert!(heard().is_empty(), "nothing has changed");
    while source.depth() < LIMIT / 2 {
        assert!(source.push());
    }
    source.rig.clock.advance_micros(99_000);
    core.step_maintenance();
    assert!(says(&heard(), "WARNING"));
    // Nobody admits and nothing is committed: what waits grows old.
    source.rig.clock.advance_micros(800_000);
    core.step_maintenance();
    assert!(says(&heard(), "CRITICAL"));
    space.fence();
    source.rig.clock.advance_micros(30_000);
    core.step_maintenance();
    assert!(heard().is_empty(), "told once");
    space.unfence();
    while source.depth() > 0 {
        source.rig.turn();
    }
    source.rig.clock.advance_micros(99_000);
    core.step_maintenance();
    assert!(says(&heard(), "NORMAL"));
    let (_, ticket) =
        core.submit_attach(&space, &core.token(&space, speaker.id), "", None, Claim::default()).unwrap().unwrap();
    source.rig.turns(20);
    assert!(ticket.outcome().unwrap().is_ok() && core.listen(&space, &speaker, epoch, Hears::Frames).is_err());
    while source.depth() < LIMIT / 2 {
        assert!(source.push());
    }
    source.rig.clock.advance_micros(99_000);
    core.step_maintenance();
    assert!(heard().is_empty(), "another speaks now");
}

/// P1, P2, P3: levels come at 0.50, 0.80, 0.95 and go at 0.40, 0.70, 0.90; the last refuses, and a refusal takes nothing.
#[test]
fn levels_follow_the_depth() {
    let mut source = Source::new(config());
    let mut seen = vec![(0, Level::Normal)];
    while source.push() {
        if seen.last().unwrap().1 != source.level() {
            seen.push((source.depth(), source.level()));
        }
    }
    assert_eq!(seen, [(0, Level::Normal), (500, Level::Warning), (800, Level::Critical), (950, Level::Overloaded)]);
    assert_eq!((source.depth(), source.refused), (950, 1));
    let mut left = vec![Level::Overloaded];
    while source.depth() > 0 {
        source.turn(1);
        let (depth, level) = (source.depth(), source.level());
        if *left.last().unwrap() != level {
            let mark = [400, 700, 900][level as usize];
            assert!(depth < mark, "{level:?} at {depth}");
            left.push(level);
        }
    }
    assert_eq!(left, [Level::Overloaded, Level::Critical, Level::Warning, Level::Normal]);
    assert!(source.tickets.iter().all(|t| t.outcome().is_some_and(|o| o.is_ok())));
    assert_eq!(
        source.tickets.len() as u64 * BATCH + 1,
        source.rig.core.count(&source.rig.core.space("a").unwrap(), Reading::default()).unwrap()
    );
}

/// P1, P4: at a steady speed the predicted time to half of the limit is the true one within a fifth, and the depth stays below the limit.
#[test]
fn retry_after_is_the_time_to_drain() {
    for disk_ms in [2, 5, 20] {
        let mut source = Source::new(config());
        for _ in 0..300 {
            while source.push() {}
            assert!(source.depth() <= LIMIT);
            source.turn(disk_ms);
        }
        while source.push() {}
        let space = source.rig.core.space("a").unwrap();
        let predicted = space.drain_ms(0, 0, &source.rig.core.process_queue).unwrap();
        let begun = source.rig.core.now();
        while space.depth.observations() > LIMIT / 2 {
            source.turn(disk_ms);
        }
        let took = (source.rig.core.now() - begun) as f64 / 1e6;
        assert!((predicted / took - 1.0).abs() < 0.2, "a disk of {disk_ms} ms: {predicted} ms said, {took} ms taken");
    }
}

/// P2: what waits for a second presses like a full queue, though there is room; it is over with the commit.
#[test]
fn age_presses() {
    let mut source = Source::new(Config { queue_age_ms_max: 1_000, ..config() });
    assert!(source.push());
    source.rig.core.step_partition(0);
    source.rig.clock.advance_micros(940_000);
    assert_eq!(source.level(), Level::Critical);
    source.rig.clock.advance_micros(20_000);
    assert_eq!(source.level(), Level::Overloaded);
    assert!(!source.push());
    source.rig.turns(5);
    assert_eq!(source.level(), Level::Normal);
    assert!(source.push());
}

/// P2: when all queues together are nearly full, who has more than a fair share is refused, the others are not.
#[test]
fn process_pressure_spares_the_small() {
    let limit = 64 << 10;
    let rig = Rig::new(Config { queue_process_bytes_max: limit, queue_observations_max: 100_000, ..config() });
    for name in ["hog", "small"] {
        rig.create(name, Durability::Sync);
        rig.observe(name, &[1]).unwrap();
    }
    let mut kept = Vec::new();
    while let Ok(ticket) = rig.push("hog", &[7; 20]) {
        kept.push(ticket);
    }
    let held = rig.core.process_queue.bytes();
    assert!(held >= limit * 95 / 100 && held <= limit, "{held} of {limit}");
    kept.push(rig.push("small", &[8]).unwrap());
    assert_eq!(rig.push("hog", &[9]).err().unwrap().code(), "OVERLOADED");
    assert_eq!(rig.core.stats().level, "OVERLOADED");
    rig.turns(500);
    assert!(kept.iter().all(|t| t.outcome().is_some_and(|o| o.is_ok())));
    assert_eq!((rig.core.process_queue.bytes(), rig.core.stats().level), (0, "NORMAL"));
}

/// P2: rows that are not sealed press too, and sealing lets go.
#[test]
fn unsealed_rows_press() {
    let config = Config { unsealed_space_bytes_max: 64 << 10, seal_space_bytes: 1 << 30, ..config() };
    let mut source = Source::new(config);
    let space = source.rig.core.space("a").unwrap();
    let mut most = 0.0f64;
    for _ in 0..200 {
        source.push();
        // Sealing waits: only the writer and the disk move.
        for _ in 0..3 {
            source.rig.core.step_partition(0);
            source.rig.core.partitions[0].port.run_one();
        }
        most = most.max(space.pressure(source.rig.core.now()).0);
    }
    assert_eq!((source.level(), source.refused > 0), (Level::Overloaded, true));
    assert!(most <= 1.2, "{most}");
    source.rig.turns(200);
    assert_eq!(source.level(), Level::Normal, "sealed at half of the limit, whatever `seal_space_bytes` says");
    assert!(source.push());
}

/// P2: a batch that does not fit beside what is not sealed has it sealed, however little that is.
#[test]
fn a_large_batch_gets_its_room() {
    let limit = 64 << 10;
    for of_all in [false, true] {
        let mut config = Config {
            queue_observations_max: 100_000,
            seal_space_bytes: 1 << 30,
            seal_process_bytes: 1 << 30,
            ..config()
        };
        *(if of_all { &mut config.unsealed_process_bytes_max } else { &mut config.unsealed_space_bytes_max }) = limit;
        let rig = Rig::new(config);
        rig.create("a", Durability::Sync);
        let batch: Vec<u64> = (0..1_000).collect();
        let bytes = common::frame_of(&batch, false).len() as u64;
        assert!(bytes > limit / 2 && bytes < limit, "{bytes}");
        rig.observe("a", &(0..400).collect::<Vec<_>>()).unwrap();
        let admitted = (0..1_000).find(|_| {
            rig.turn();
            rig.push("a", &batch).is_ok()
        });
        assert!(admitted.is_some(), "refused for ever, all spaces: {of_all}");
    }
}

/// P2: what a dropped space held counts no more, whoever still looks at it.
#[test]
fn a_dropped_space_presses_nobody() {
    let rig = Rig::new(Config { seal_space_bytes: 1 << 30, seal_process_bytes: 1 << 30, ..config() });
    rig.create("a", Durability::Sync);
    rig.observe("a", &[1, 2, 3]).unwrap();
    let held = rig.core.space("a").unwrap();
    assert!(rig.core.process_unsealed.bytes() > 0);
    held.fence();
    let dropped = rig.core.submit_drop(held.options.id);
    rig.turns(20);
    dropped.outcome().unwrap().unwrap();
    assert_eq!((rig.core.process_unsealed.bytes(), held.unsealed_bytes()), (0, 0));
    drop(held);
    assert_eq!(rig.core.process_unsealed.bytes(), 0, "given back once");
}

/// P2, P4: an index that is too far behind holds up whoever writes, the more so the more recalls must look through its tail; when it has caught up he goes on.
#[test]
fn an_index_too_far_behind_presses() {
    let mut source = Source::new(Config { index_tail_rows_max: 60, scan_picos: 50_000, ..config() });
    let space = source.rig.core.space("a").unwrap();
    while source.rig.core.step_builder() {}
    let write = |source: &mut Source| {
        let pushed = source.push();
        for _ in 0..200 {
            source.rig.core.step_partition(0);
            source.rig.core.partitions[0].port.run_one();
            source.rig.clock.advance_micros(10);
        }
        pushed
    };
    (0..3).for_each(|_| assert!(write(&mut source)));
    assert_eq!((space.tail_rows(), source.level()), (30, Level::Warning));
    (0..3).for_each(|_| assert!(write(&mut source)));
    assert_eq!((space.tail_rows(), source.level()), (60, Level::Overloaded));
    assert!(!write(&mut source));
    assert_eq!(space.pressure(source.rig.core.now()).1, "the space's index is too far behind");
    while source.rig.core.step_builder() {
        source.rig.clock.advance_micros(2_000);
    }
    assert_eq!((space.tail_rows(), source.level()), (0, Level::Normal));
    assert!(space.drain_ms(1, 100, &source.rig.core.process_queue).is_some());
    assert!(write(&mut source));
    // Ten rows are few, unless so many recalls look through them.
    let recall = || source.rig.core.recall(&space, &[1.0, 2.0, 3.0], 1, Reading::default()).unwrap();
    source.rig.clock.advance_micros(300_000);
    space.count_recalls(source.rig.core.now());
    assert_eq!((space.tail_rows(), source.level()), (10, Level::Normal));
    (0..2_000).for_each(|_| drop(recall()));
    source.rig.clock.advance_micros(2_500);
    space.count_recalls(source.rig.core.now());
    assert_eq!(source.level(), Level::Normal, "it was looked at just now");
    source.rig.clock.advance_micros(250_000);
    space.count_recalls(source.rig.core.now());
    let expected = 10.0 * 3.2e-6 * 2_000.0 / 0.2525 / 0.5;
    assert!((space.pressure(source.rig.core.now()).0 / expected - 1.0).abs() < 0.01, "3.2 µs a row");
    assert_eq!(source.level(), Level::Warning);
}

/// P2: when all indexes together are too far behind, the one that is farthest waits, and not the others.
#[test]
fn indexes_too_far_behind_spare_the_small() {
    let mut source = Source::new(Config { unabsorbed_process_bytes_max: 24_000, ..config() });
    source.rig.create("b", Durability::Sync);
    let core = std::sync::Arc::clone(&source.rig.core);
    let [large, small] = ["a", "b"].map(|name| core.space(name).unwrap());
    while core.step_builder() {}
    let commit = || {
        for _ in 0..200 {
            core.step_partition(0);
            core.partitions[0].port.run_one();
        }
    };
    for _ in 0..9 {
        assert!(source.push());
        commit();
    }
    source.rig.push("b", &[100_000, 100_001]).unwrap();
    commit();
    assert_eq!((large.tail_rows(), small.tail_rows()), (90, 2));
    assert!(source.push(), "nobody has looked yet");
    commit();
    // One step links nothing of a batch yet, and counts.
    core.step_builder();
    assert!(large.tail_rows() > 50 && !source.push());
    source.rig.push("b", &[100_002]).unwrap();
    while core.step_builder() {}
    assert!(source.push());
}

/// P2, P3, P5: what all hold unsealed presses who holds most of it, bounds what each is let to send, and whoever was refused hears when it is over.
#[test]
fn what_all_hold_is_felt_by_its_largest_holder() {
    let limit = 64 << 10;
    let config = Config {
        unsealed_process_bytes_max: limit,
        seal_space_bytes: 1 << 30,
        seal_process_bytes: 1 << 30,
        queue_observations_max: 100_000,
        ..config()
    };
    let source = Source::new(config);
    source.rig.create("b", Durability::Sync);
    let core = Arc::clone(&source.rig.core);
    let [large, small] = ["a", "b"].map(|name| core.space(name).unwrap());
    let speaker_of = |space| {
        let (speaker, ticket) = core.submit_open(space, Priority::Normal, "", Claim::default()).unwrap().unwrap();
        source.rig.turns(20);
        (speaker, ticket.outcome().unwrap().unwrap().epoch)
    };
    let [(much, epoch), (little, _)] = [&large, &small].map(speaker_of);
    source.rig.observe("b", &[1]).unwrap();
    let room = |speaker| core.credits(if Arc::ptr_eq(speaker, &much) { &large } else { &small }, speaker).1;
    assert!(room(&little) > 16 << 10 && room(&little) <= limit / 2, "the room is shared");
    core.listen(&large, &much, epoch, Hears::Frames).unwrap();
    let commit = || {
        for _ in 0..40 {
            core.step_partition(0);
            core.partitions[0].port.run_one();
        }
    };
    let said = (1..).step_by(10).find_map(|first| {
        // Its first sequence stands in front.
        let mut frame = vec![8, (first & 0x7f) as u8 | 0x80, (first >> 7) as u8];
        frame.extend(common::frame_of(&(first..first + 10).collect::<Vec<_>>(), true));
        let refused = core.submit_frame(&large, &much, epoch, frame).unwrap();
        commit();
        refused
    });
    let now = core.now();
    assert!(said.unwrap().windows(10).any(|w| w == b"OVERLOADED"));
    assert_eq!((core.level_for(&large, now), core.level_for(&small, now)), (Level::Overloaded, Level::Normal));
    assert_eq!(core.credits(&large, &much), (0, 0));
    assert!(core.credits(&small, &little).0 > 0 && room(&little) < limit / 20);
    drop(core.drain_completions(999));
    source.rig.turns(200);
    source.rig.clock.advance_micros(99_000);
    core.step_maintenance();
    let told: Vec<u8> = core.drain_completions(999).into_iter().flat_map(|(_, told)| told).collect();
    assert!(told.windows(6).any(|w| w == b"NORMAL"), "{told:?}");
    assert!(core.credits(&large, &much).0 > 0);
}

/// P4: a frame that is too large for what is left is told of when it would fit, and of nothing before; the level does not change meanwhile.
#[test]
fn a_refused_frame_hears_of_room_when_there_is_enough_for_it() {
    let mut source = Source::new(config());
    let core = Arc::clone(&source.rig.core);
    let space = core.space("a").unwrap();
    let (speaker, ticket) = core.submit_open(&space, Priority::Normal, "", Claim::default()).unwrap().unwrap();
    source.rig.turns(20);
    let epoch = ticket.outcome().unwrap().unwrap().epoch;
    while source.depth() < LIMIT * 93 / 100 {
        assert!(source.push());
    }
    let look = || -> Vec<u8> {
        source.rig.clock.advance_micros(30_000);
        core.step_maintenance();
        core.drain_completions(99).into_iter().flat_map(|(_, told)| told).collect()
    };
    let says = |told: &[u8], level: &str| told.windows(level.len()).any(|w| w == level.as_bytes());
    let mut frame = vec![8, 1];
    frame.extend(common::frame_of(&(1..=80).collect::<Vec<_>>(), true));
    let refused = core.submit_frame(&space, &speaker, epoch, frame).unwrap().unwrap();
    assert!(says(&refused, "OVERLOADED"), "no room for 80");
    assert!(says(&look(), "CRITICAL"), "who begins to listen hears of the level");
    (0..3).for_each(|_| assert_eq!((look(), source.depth()), (vec![], 930), "there is no room yet"));
    while LIMIT - source.depth() < 80 {
        source.rig.turn();
    }
    assert!(says(&look(), source.level().name()), "there is room");
    assert!(look().is_empty(), "told once");
}
