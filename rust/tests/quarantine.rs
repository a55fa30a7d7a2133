//! O7: what cannot be applied is tried three times, then gone round by a logged record; the rest goes on.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{Rig, contents, frame, tiny};
use engram_core::engine::{Core, Reading, Speech};
use engram_core::env::{Action, Files, MemoryFiles, Operation, Rule};
use engram_core::error::Error;
use engram_core::queue::{Committed, Ticket};
use engram_core::records::{Filter, Value};
use engram_core::session::{Claim, Priority};
use engram_core::store::Wanted;
use engram_core::types::{Config, Durability, Generation};

fn poison(rig: &Rig, uid: u64, times: u64, action: Action) {
    rig.faults.add(Rule { path: Some(format!("uid {uid} ")), times, ..Rule::new(Operation::Apply, action) });
}

fn rig() -> Rig {
    Rig::new(Config { partitions: 1, idle_close_ms: 1_000_000, ..tiny() })
}

/// Another start on what the disk holds, after a kill.
fn again(rig: &Rig) -> Rig {
    Rig::over(rig.core.config.clone(), MemoryFiles::with_state(rig.files.state(), 0, false))
}

/// Three memories in a log, and the space's id.
fn three() -> (Rig, u64) {
    let first = rig();
    first.create("s", Durability::Sync);
    for uid in 1..=3 {
        first.observe("s", &[uid]).unwrap();
    }
    let id = first.core.space("s").unwrap().options.id.0;
    (first, id)
}

fn keyed(rig: &Rig, uids: &[u64]) -> Arc<Ticket<Committed>> {
    let space = rig.core.space("s").unwrap();
    let prepared = rig.core.prepare(&space, frame(uids, false, true)).unwrap();
    match rig.core.admit(&space, prepared).unwrap() {
        engram_core::engine::Admission::Admitted(ticket) => ticket,
        engram_core::engine::Admission::Full(_, reason) => panic!("{reason}"),
    }
}

fn answer<T: Clone>(rig: &Rig, ticket: &Arc<Ticket<T>>) -> Result<T, Error> {
    for _ in 0..1_000 {
        if let Some(outcome) = ticket.outcome() {
            return outcome;
        }
        rig.turn();
    }
    panic!("no answer")
}

fn living(core: &Core) -> BTreeMap<u64, u64> {
    let space = core.space("s").unwrap();
    let dead: Vec<u64> = space.view().deaths(space.watermark()).iter().map(|(row, _)| row.0).collect();
    contents(core, &space).unwrap().into_iter().filter(|(row, _)| !dead.contains(row)).collect()
}

fn owner(core: &Core, key: &str) -> Option<u64> {
    core.get_key(&core.space("s").unwrap(), key, Reading::default()).unwrap().map(|m| m.generation.0)
}

#[test]
fn a_failure_that_passes_is_nobodys_concern() {
    for action in [Action::Panic, Action::Fail(5)] {
        let rig = rig();
        rig.create("s", Durability::Sync);
        poison(&rig, 2, 2, action);
        assert_eq!(rig.observe("s", &[1, 2, 3]).unwrap().first, Generation(1));
        assert!(rig.core.space("s").unwrap().quarantined().is_empty());
        assert_eq!(living(&rig.core).len(), 3);
    }
}

/// The batch goes whole, its generations hold nothing, what came before and after is there, and other spaces never noticed.
#[test]
fn the_third_failure_is_gone_round() {
    for mode in [Durability::Memory, Durability::Os, Durability::Sync] {
        let rig = rig();
        rig.create("s", mode);
        rig.create("other", mode);
        rig.observe("s", &[1]).unwrap();
        poison(&rig, 3, u64::MAX, Action::Panic);
        let (bad, behind) = (rig.push("s", &[2, 3, 4]).unwrap(), rig.push("s", &[5]).unwrap());
        let other = rig.push("other", &[6]).unwrap();
        let error = answer(&rig, &bad).unwrap_err();
        assert!(matches!(&error, Error::Quarantined { reason } if reason.contains("an injected panic")), "{error}");
        assert_eq!(answer(&rig, &behind).unwrap().first, Generation(5));
        assert_eq!(answer(&rig, &other).unwrap().first, Generation(1));
        let space = rig.core.space("s").unwrap();
        assert_eq!((space.watermark(), space.depth.observations(), space.depth.bytes()), (Generation(5), 0, 0));
        let expected = BTreeMap::from([(1, 1), (5, 5)]);
        assert_eq!(living(&rig.core), expected);
        let entry = space.quarantined()[0].clone();
        assert_eq!((entry.first, entry.count), (Generation(2), 3));
        let kept = rig.core.read_quarantined(&space, Generation(3)).unwrap();
        let texts: Vec<&str> = kept.iter().map(|m| m.text.as_deref().unwrap().split(' ').nth(1).unwrap()).collect();
        assert_eq!(texts, ["2", "3", "4"], "kept whole");
        // From the log, from a checkpoint, and twice: the same (D6), without meeting it again.
        let second = again(&rig);
        // But a `memory` space is renewed by each unclean end.
        let same = |a: &Rig, b: &Rig| {
            mode == Durability::Memory || a.core.state_hash().unwrap() == b.core.state_hash().unwrap()
        };
        assert!(same(&second, &rig) && living(&second.core) == expected);
        for _ in 0..2 {
            let asked = second.core.submit_checkpoint(0);
            second.turns(200);
            asked.outcome().unwrap().unwrap();
        }
        let third = again(&second);
        assert!(same(&third, &rig) && living(&third.core) == expected);
        assert_eq!(third.core.space("s").unwrap().quarantined()[0], entry);
        assert_eq!(third.core.read_quarantined(&third.core.space("s").unwrap(), Generation(2)).unwrap().len(), 3);
    }
}

/// K1: the key is its former owner's again; what superseded the batch while it was on its way supersedes that one.
#[test]
fn keys_go_back() {
    for follows in [false, true] {
        let rig = rig();
        rig.create("s", Durability::Sync);
        answer(&rig, &keyed(&rig, &[10])).unwrap();
        poison(&rig, 80, u64::MAX, Action::Panic);
        let bad = keyed(&rig, &[80, 81]);
        let later = follows.then(|| keyed(&rig, &[150]));
        assert_eq!(answer(&rig, &bad).unwrap_err().code(), "QUARANTINED");
        let last = later.map(|ticket| answer(&rig, &ticket).unwrap().first.0);
        let expected = last.map_or(BTreeMap::from([(1, 10)]), |last| BTreeMap::from([(last, 150)]));
        assert_eq!((living(&rig.core), owner(&rig.core, "k1")), (expected.clone(), Some(last.unwrap_or(1))));
        assert_eq!(living(&again(&rig).core), expected);
        // And from here on it is as if the batch had never been.
        let space = rig.core.space("s").unwrap();
        let next = answer(&rig, &keyed(&rig, &[220])).unwrap().first.0;
        assert_eq!(living(&rig.core), BTreeMap::from([(next, 220)]));
        let forget = rig.core.submit_forget(&space, Wanted::Key("k1".to_owned()), false).unwrap().ok().unwrap();
        assert_eq!(answer(&rig, &forget).unwrap().count, 1);
        let next = again(&rig);
        assert!(living(&next.core).is_empty() && owner(&next.core, "k1").is_none());
        assert_eq!(next.core.state_hash().unwrap(), rig.core.state_hash().unwrap());
    }
}

/// K3: a forget while the batch is on its way: by key it means whoever will have the key, else only the batch.
#[test]
fn a_forget_in_between_means_what_it_says() {
    for by_key in [true, false] {
        let rig = rig();
        rig.create("s", Durability::Sync);
        answer(&rig, &keyed(&rig, &[10])).unwrap();
        let space = rig.core.space("s").unwrap();
        poison(&rig, 80, u64::MAX, Action::Panic);
        let bad = keyed(&rig, &[80]);
        // Numbered, not applied: the forget is in the group behind it.
        rig.core.step_partition(0);
        let wanted = if by_key { Wanted::Key("k1".to_owned()) } else { Wanted::Ids(vec![Generation(2)]) };
        let forget = rig.core.submit_forget(&space, wanted, false).unwrap().ok().unwrap();
        rig.core.step_partition(0);
        assert_eq!(answer(&rig, &bad).unwrap_err().code(), "QUARANTINED");
        assert_eq!(answer(&rig, &forget).unwrap().count, 1);
        let expected = if by_key { BTreeMap::new() } else { BTreeMap::from([(1, 10)]) };
        assert_eq!((living(&rig.core), owner(&rig.core, "k1").is_some()), (expected.clone(), !by_key));
        assert_eq!(living(&again(&rig).core), expected);
    }
}

/// K1, K3: two batches in a row take the key and neither can be applied: the old owner has it, lives, and can be forgotten.
#[test]
fn two_failures_of_one_key() {
    let rig = rig();
    rig.create("s", Durability::Sync);
    answer(&rig, &keyed(&rig, &[10])).unwrap();
    poison(&rig, 80, u64::MAX, Action::Panic);
    poison(&rig, 150, u64::MAX, Action::Panic);
    let first = keyed(&rig, &[80]);
    rig.core.step_partition(0);
    let second = keyed(&rig, &[150]);
    for bad in [first, second] {
        assert_eq!(answer(&rig, &bad).unwrap_err().code(), "QUARANTINED");
    }
    assert_eq!((living(&rig.core), owner(&rig.core, "k1")), (BTreeMap::from([(1, 10)]), Some(1)));
    let next = answer(&rig, &keyed(&rig, &[220])).unwrap().first.0;
    assert_eq!(living(&rig.core), BTreeMap::from([(next, 220)]), "one memory a key");
    assert_eq!(living(&again(&rig).core), BTreeMap::from([(next, 220)]));
}

/// K3: a forget of the old owner, while what supersedes it is on its way and will never come to be, is kept: by id and by condition; and
/// one by key though only the second of two has failed yet.
#[test]
fn a_forget_of_the_old_owner_stays() {
    for how in 0..3 {
        let rig = rig();
        rig.create("s", Durability::Sync);
        answer(&rig, &keyed(&rig, &[10])).unwrap();
        let space = rig.core.space("s").unwrap();
        poison(&rig, 80, u64::MAX, Action::Panic);
        poison(&rig, 150, u64::MAX, Action::Panic);
        let mut bad = vec![keyed(&rig, &[80])];
        if how == 2 {
            bad.push(keyed(&rig, &[150]));
            // The first has failed, its record is on its way; the second waits behind it.
            rig.core.step_partition(0);
            rig.core.partitions[0].port.run_one();
            rig.core.step_partition(0);
        } else {
            rig.core.step_partition(0);
        }
        let wanted = match how {
            0 => Wanted::Ids(vec![Generation(1)]),
            1 => {
                let wanted = Value::Object(vec![("observed_at".to_owned(), Value::Int(10_000))]);
                rig.core.matching(&space, &Filter::parse(&wanted).unwrap(), false, &|| Ok(())).unwrap().0
            }
            _ => Wanted::Key("k1".to_owned()),
        };
        let forget = rig.core.submit_forget(&space, wanted, false).unwrap().ok().unwrap();
        for bad in bad {
            assert_eq!(answer(&rig, &bad).unwrap_err().code(), "QUARANTINED");
        }
        answer(&rig, &forget).unwrap();
        assert!(living(&rig.core).is_empty() && owner(&rig.core, "k1").is_none(), "{how}");
        assert!(living(&again(&rig).core).is_empty(), "{how}");
    }
}

/// S2, S5: the session has committed voids, hears why, and goes on.
#[test]
fn a_session_goes_on() {
    let rig = rig();
    rig.create("s", Durability::Sync);
    let space = rig.core.space("s").unwrap();
    let (speaker, ticket) = rig.core.submit_open(&space, Priority::Normal, "", Claim::default()).unwrap().unwrap();
    rig.turns(20);
    let epoch = ticket.outcome().unwrap().unwrap().epoch;
    poison(&rig, 2, u64::MAX, Action::Panic);
    let say = |uids: &[u64]| {
        let mut spoken = rig.core.prepare_spoken(&space, frame(uids, false, false), false).unwrap();
        match rig.core.say(&space, &speaker, epoch, None, &mut spoken).unwrap() {
            Speech::Said(said) => said.fresh.unwrap().1,
            Speech::Full(reason) => panic!("{reason}"),
        }
    };
    let told = [say(&[1]), say(&[2, 3]), say(&[4])];
    let told = told.map(|ticket| answer(&rig, &ticket).map(|c| c.first.0).map_err(|e| e.code()));
    assert_eq!(told, [Ok(1), Err("QUARANTINED"), Ok(4)]);
    assert_eq!(speaker.section().window.committed(), 4);
    // S3: who did not hear of it and says it again is not told that it is stored.
    let mut spoken = rig.core.prepare_spoken(&space, frame(&[2, 3], false, false), false).unwrap();
    let again_said = rig.core.say(&space, &speaker, epoch, Some(2), &mut spoken);
    assert_eq!(again_said.err().map(|e| e.code()), Some("QUARANTINED"));
    let next = again(&rig);
    let space = next.core.space("s").unwrap();
    let window = &space.sessions.get(speaker.id).unwrap().section().window.clone();
    let known: Vec<_> = window.find(1, 4).iter().map(|k| (k.first, k.generation.map(|g| g.0))).collect();
    assert_eq!((window.committed(), known), (4, vec![(1, Some(1))]));
    assert_eq!((space.quarantined()[0].said.first, living(&next.core).len()), (2, 2));
}

/// D2: while a space waits for its record, a checkpoint reaches no further than what is applied.
#[test]
fn a_checkpoint_waits_for_what_is_not_applied() {
    let rig = Rig::new(Config { checkpoint_log_bytes: 1, ..rig().core.config.clone() });
    rig.create("s", Durability::Sync);
    rig.observe("s", &[1]).unwrap();
    rig.turns(100);
    poison(&rig, 2, u64::MAX, Action::Panic);
    let tickets = [rig.push("s", &[2]).unwrap(), rig.push("s", &[3]).unwrap()];
    // The group is synced and fails to be applied; its record does not leave for the disk yet.
    rig.core.step_partition(0);
    rig.core.partitions[0].port.run_one();
    rig.core.step_partition(0);
    for _ in 0..100 {
        rig.core.step_maintenance();
        rig.core.maintenance_port.run_one();
    }
    assert!(tickets.iter().all(|t| t.outcome().is_none()));
    // Killed here: the next start does not know that it failed, and it does not.
    assert_eq!(living(&again(&rig).core), BTreeMap::from([(1, 1), (2, 2), (3, 3)]));
    assert_eq!(answer(&rig, &tickets[0]).unwrap_err().code(), "QUARANTINED");
    assert_eq!(answer(&rig, &tickets[1]).unwrap().first, Generation(3));
}

/// What fails only when the log is read again does not keep the partition from starting.
#[test]
fn a_start_goes_round_it_too() {
    let first = rig();
    first.create("s", Durability::Sync);
    for uids in [&[1][..], &[2, 3], &[4]] {
        first.observe("s", uids).unwrap();
    }
    let files = MemoryFiles::with_state(first.files.state(), 0, false);
    let second = Rig::prepared(first.core.config.clone(), files, |faults| {
        faults.add(Rule { path: Some("uid 3 ".to_owned()), ..Rule::new(Operation::Apply, Action::Panic) });
    });
    let expected = BTreeMap::from([(1, 1), (4, 4)]);
    let space = second.core.space("s").unwrap();
    assert_eq!((living(&second.core), space.quarantined()[0].count), (expected.clone(), 2));
    assert_eq!(second.core.report.quarantined, ["s"]);
    assert_eq!(second.observe("s", &[5]).unwrap().first, Generation(5));
    assert_eq!(second.core.read_quarantined(&space, Generation(2)).unwrap().len(), 2);
    // It is in the log: a later start does not try again, and nothing is left of the notes.
    let third = again(&second);
    assert_eq!(living(&third.core).len(), expected.len() + 1);
    assert!(third.core.report.quarantined.is_empty());
    assert!(!third.files.state().paths().iter().any(|p| p.ends_with("/replaying")));
}

/// A start that finds the note of one that died writes down what is next; named a third time, it is caught unseen.
#[test]
fn careful_starts_find_what_ends_the_process() {
    let (first, id) = three();
    for (note, there) in
        [("", 3), ("torn", 3), (&*format!("{id} 2 0"), 3), (&format!("{id} 2 1"), 3), (&format!("{id} 2 2"), 2)]
    {
        let files = MemoryFiles::with_state(first.files.state(), 0, false);
        files.create("partition-000/replaying").unwrap().write_at(0, &[note.as_bytes()]).unwrap();
        let second = Rig::over(first.core.config.clone(), files);
        assert_eq!(living(&second.core).len(), there, "{note}");
        assert_eq!(second.core.space("s").unwrap().quarantined().len(), 3 - there);
        assert!(!second.files.state().paths().iter().any(|p| p.ends_with("/replaying")), "{note}");
        assert_eq!(living(&again(&second).core).len(), there);
    }
}

/// Two that end the process, one after the other: the first that was given up is not met again.
#[test]
fn careful_starts_remember_what_they_gave_up() {
    let (first, id) = three();
    let line = |text: String| format!("{text:<63}\n");
    // The last start had given up 1, named 3, and died.
    let note = line(format!("{id} 3 0")) + &line(format!("{id} 1 3"));
    let files = MemoryFiles::with_state(first.files.state(), 0, false);
    files.create("partition-000/replaying").unwrap().write_at(0, &[note.as_bytes()]).unwrap();
    let second = Rig::over(first.core.config.clone(), files);
    assert_eq!(living(&second.core), BTreeMap::from([(2, 2), (3, 3)]));
    assert_eq!(living(&again(&second).core), BTreeMap::from([(2, 2), (3, 3)]));
}

/// D10: a full disk keeps nobody from starting: neither a note nor what cannot be kept aside.
#[test]
fn a_full_disk_does_not_stop_a_start() {
    let first = rig();
    first.create("s", Durability::Sync);
    first.observe("s", &[1]).unwrap();
    first.observe("s", &[2]).unwrap();
    first.turns(50);
    for (note, poisoned) in [(false, false), (true, false), (false, true)] {
        let files = MemoryFiles::with_state(first.files.state(), 0, false);
        if note {
            files.create("partition-000/replaying").unwrap();
        }
        // Room for the restamped tail, which a start needs anyway, is in the spares.
        files.set_capacity(Some(files.used()));
        let config = first.core.config.clone();
        let second = Rig::prepared(config, files, |faults| {
            if poisoned {
                faults.add(Rule { path: Some("uid 2 ".to_owned()), ..Rule::new(Operation::Apply, Action::Panic) });
            }
        });
        assert_eq!(living(&second.core).len(), if poisoned { 1 } else { 2 });
        if poisoned {
            let space = second.core.space("s").unwrap();
            assert!(space.quarantined()[0].reason.contains("could not be kept"));
            assert_eq!(second.core.read_quarantined(&space, Generation(2)).unwrap_err().code(), "NOT_FOUND");
        }
    }
}

/// D10: no room is left for the record. The partition waits without work, forgets and observations hear of the full disk, and with space
/// again all goes on.
#[test]
fn a_full_disk_keeps_the_record_waiting() {
    let full = || {
        let rig = Rig::new(Config { checkpoint_log_bytes: 1 << 40, ..rig().core.config.clone() });
        rig.create("s", Durability::Sync);
        rig.create("t", Durability::Sync);
        rig.observe("t", &[1]).unwrap();
        rig.turns(50);
        rig.faults.add(Rule { path: Some("spare".to_owned()), ..Rule::new(Operation::Create, Action::Fail(28)) });
        rig
    };
    let forget = |rig: &Rig, name: &str| {
        let space = rig.core.space(name).unwrap();
        rig.core.submit_forget(&space, Wanted::Ids(vec![Generation(1)]), false).unwrap().ok().unwrap()
    };
    // How many go in until the spares and the reserve, which a forget takes, are full.
    let fill = |rig: &Rig, most: u64| {
        let (mut stored, mut reserve) = (0, false);
        while stored < most {
            match answer(rig, &rig.push("s", &[5]).unwrap()) {
                Ok(_) => stored += 1,
                Err(error) if !reserve => {
                    assert_eq!(error.code(), "DISK_FULL");
                    answer(rig, &forget(rig, "s")).unwrap();
                    reserve = true;
                }
                Err(_) => break,
            }
        }
        stored
    };
    let most = fill(&full(), u64::MAX);
    let rig = full();
    assert_eq!(fill(&rig, most - 1), most - 1);
    poison(&rig, 100, u64::MAX, Action::Panic);
    let bad = rig.push("s", &[100]).unwrap();
    rig.turns(50);
    assert!(bad.outcome().is_none());
    rig.core.step_partition(0);
    assert!(!rig.core.partitions[0].is_due(), "nothing to do at once");
    let other = forget(&rig, "t");
    assert_eq!(answer(&rig, &other).unwrap_err().code(), "DISK_FULL");
    assert_eq!(answer(&rig, &rig.push("t", &[7]).unwrap()).unwrap_err().code(), "DISK_FULL");
    rig.faults.clear();
    poison(&rig, 100, u64::MAX, Action::Panic);
    assert_eq!(answer(&rig, &bad).unwrap_err().code(), "QUARANTINED");
    rig.observe("t", &[8]).unwrap();
}
