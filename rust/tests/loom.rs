//! Small protocols in every interleaving that the bound allows (`LOOM_MAX_PREEMPTIONS`): `make test-rust` builds this with `--cfg loom`.
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "tests")]

use engram_core::env::{MemoryFiles, Output, Port, Scheduler, Task};
use engram_core::queue::{Depth, Gauge, Lane, Level, Pool, Turn};
use engram_core::session::{Claim, Priority, SequenceRun, Session, SessionState, Stamp, Window};
use engram_core::store::{Deaths, Watermark};
use engram_core::types::{Generation, SessionId};
use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// P1: never above the limit, a refusal takes nothing, all is given back.
#[test]
fn permits() {
    loom::model(|| {
        let depth = Arc::new(Depth::new(3, 30));
        let threads: Vec<_> = [(2, 5), (2, 25)]
            .into_iter()
            .map(|(n, bytes)| {
                let depth = Arc::clone(&depth);
                thread::spawn(move || {
                    if depth.reserve(n, bytes).is_some() {
                        assert!(depth.observations() <= 3 && depth.bytes() <= 30);
                        assert!(depth.observations() >= n && depth.bytes() >= bytes);
                        depth.release(n, bytes);
                        true
                    } else {
                        false
                    }
                })
            })
            .collect();
        let got: Vec<bool> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert!(got.contains(&true), "one of them fits");
        assert_eq!((depth.observations(), depth.bytes()), (0, 0));
    });
}

/// O3: whatever is pushed is found by a writer that only looks at announced lanes.
#[test]
fn nothing_lies_unannounced() {
    loom::model(|| {
        let lane = Arc::new(Lane::<u64, 1>::default());
        let announced = Arc::new(Mutex::new(0));
        let producers: Vec<_> = (0..2)
            .map(|i| {
                let (lane, announced) = (Arc::clone(&lane), Arc::clone(&announced));
                thread::spawn(move || {
                    if lane.push(0, i) {
                        *announced.lock().unwrap() += 1;
                    }
                })
            })
            .collect();
        let mut taken = 0;
        let mut serve = || {
            let mut list = announced.lock().unwrap();
            if *list == 0 {
                return false;
            }
            *list -= 1;
            drop(list);
            while lane.pop().is_some() {
                taken += 1;
            }
            if lane.settle() {
                *announced.lock().unwrap() += 1;
            }
            true
        };
        serve();
        producers.into_iter().for_each(|p| p.join().unwrap());
        while serve() {}
        assert_eq!(taken, 2);
    });
}

/// K4: who drops fences, then waits for the depth to be zero; who admits reserves, then looks at the fence. Nothing is admitted to a
/// space whose drop has gone on.
#[test]
fn a_fence_stops_admission() {
    loom::model(|| {
        let (depth, fenced) = (Arc::new(Depth::new(9, 9)), Arc::new(AtomicBool::new(false)));
        let admits = {
            let (depth, fenced) = (Arc::clone(&depth), Arc::clone(&fenced));
            thread::spawn(move || {
                depth.reserve(1, 1).unwrap();
                if fenced.load(Ordering::SeqCst) {
                    depth.release(1, 1);
                    return false;
                }
                true
            })
        };
        fenced.store(true, Ordering::SeqCst);
        let dropped = depth.is_drained();
        let admitted = admits.join().unwrap();
        assert!(!(dropped && admitted), "admitted into a space that was dropped");
    });
}

/// P2: two that move a level at once may leave it wrong; one more look, as each admission takes, sets it right.
#[test]
fn a_level_settles_with_the_next_look() {
    loom::model(|| {
        let (depth, gauge) = (Arc::new(Depth::new(10, 1_000)), Arc::new(Gauge::default()));
        depth.reserve(10, 1).unwrap();
        gauge.look(depth.pressure());
        let threads: Vec<_> = [6, 4]
            .into_iter()
            .map(|n| {
                let (depth, gauge) = (Arc::clone(&depth), Arc::clone(&gauge));
                thread::spawn(move || {
                    depth.release(n, 0);
                    gauge.look(depth.pressure());
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(gauge.look(depth.pressure()), Level::Normal);
    });
}

/// P2: a space enters with its first permit and leaves with its last; the number of holders is never below the truth.
#[test]
fn holders_are_counted() {
    loom::model(|| {
        let (depth, pool) = (Arc::new(Depth::new(9, 9)), Arc::new(Pool::new(100)));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (depth, pool) = (Arc::clone(&depth), Arc::clone(&pool));
                thread::spawn(move || {
                    assert!(pool.reserve(60) || pool.bytes() > 40);
                    if depth.reserve(1, 1) == Some(0) {
                        pool.enter(0);
                    }
                    if depth.release(1, 1) == 0 {
                        pool.leave();
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(depth.observations(), 0);
    });
}

/// Only helpers submit here: they say themselves what they leave.
struct Nobody;

impl Scheduler for Nobody {
    fn wake(&self, _: Task) {}
}

/// T2: two that have work for a worker, and one that only looks at it: whoever lets go last has seen all of it, or says that it is left.
#[test]
fn no_work_is_left_lying() {
    loom::model(|| {
        let turn = Arc::new(Turn::new(0));
        let work: Arc<[AtomicBool; 2]> = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let left = Arc::new(AtomicBool::new(false));
        let step = |work: &[AtomicBool; 2], done: &mut i32| {
            for one in work {
                if one.load(Ordering::Relaxed) {
                    one.store(false, Ordering::Relaxed);
                    *done += 1;
                }
            }
            false
        };
        let threads: Vec<_> = (0..2)
            .map(|i| {
                let (turn, work, left) = (Arc::clone(&turn), Arc::clone(&work), Arc::clone(&left));
                thread::spawn(move || {
                    work[i].store(true, Ordering::Relaxed);
                    turn.announce();
                    if turn.step(|done| step(&work, done)) && turn.is_due() {
                        left.store(true, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        if turn.look(|done| *done).1 {
            left.store(true, Ordering::SeqCst);
        }
        threads.into_iter().for_each(|t| t.join().unwrap());
        if left.load(Ordering::SeqCst) {
            turn.step(|done| step(&work, done));
        }
        assert_eq!(turn.look(|done| *done).0, 2);
    });
}

/// T4: a job that a helper submits is run by it, by another helper, or is seen to be left.
#[test]
fn no_job_is_left_lying() {
    loom::model(|| {
        let files = std::sync::Arc::new(MemoryFiles::new());
        let port = Arc::new(Port::new(files, std::sync::Arc::new(Nobody), Task::Io(0)));
        let left = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..2)
            .map(|i| {
                let (port, left) = (Arc::clone(&port), Arc::clone(&left));
                thread::spawn(move || {
                    port.submit(i, Box::new(|_| Ok(Output::Nothing)));
                    // A helper whose answer is there leaves: here after one job.
                    port.run_one();
                    if port.has_jobs() {
                        left.store(true, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        if left.load(Ordering::SeqCst) {
            while port.run_one() {}
        }
        let mut done: Vec<u64> = std::iter::from_fn(|| port.poll()).map(|d| d.tag).collect();
        done.sort_unstable();
        assert_eq!(done, [0, 1]);
    });
}

/// D1: group commit. Each of two pushes, steps the writer and helps the disk; what arrives while a group is under way is the next one. Nothing
/// stays uncommitted, and nothing is committed that was not written.
#[test]
fn a_group_is_handed_on() {
    #[derive(Default)]
    struct Writer {
        building: u64,
        in_flight: u64,
        committed: u64,
    }
    type Parts = (Turn<Writer>, Port, Lane<u64, 1>, AtomicU64);
    fn step(parts: &Parts, writer: &mut Writer) -> bool {
        let (_, port, lane, _) = parts;
        while port.poll().is_some() {
            writer.committed += std::mem::take(&mut writer.in_flight);
        }
        while let Some(n) = lane.pop() {
            writer.building += n;
        }
        if writer.in_flight == 0 && writer.building > 0 {
            writer.in_flight = std::mem::take(&mut writer.building);
            port.submit(writer.in_flight, Box::new(|_| Ok(Output::Nothing)));
        }
        false
    }
    fn help(parts: &Parts) {
        let (turn, port, _, left) = parts;
        turn.announce();
        let mut stepped = turn.step(|writer| step(parts, writer));
        while port.run_one() {
            turn.announce();
            stepped = turn.step(|writer| step(parts, writer));
        }
        if port.has_jobs() || (stepped && turn.is_due()) {
            left.store(1, Ordering::SeqCst);
        }
    }
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let port = Port::new(std::sync::Arc::new(MemoryFiles::new()), std::sync::Arc::new(Nobody), Task::Io(0));
        let parts: Arc<Parts> = Arc::new((Turn::new(Writer::default()), port, Lane::default(), AtomicU64::new(0)));
        let other = {
            let parts = Arc::clone(&parts);
            thread::spawn(move || {
                let _ = parts.2.push(0, 1);
                help(&parts);
            })
        };
        let _ = parts.2.push(0, 10);
        help(&parts);
        other.join().unwrap();
        if parts.3.load(Ordering::SeqCst) == 1 {
            help(&parts);
        }
        let (committed, in_flight) = parts.0.look(|w| (w.committed, w.in_flight + w.building)).0;
        assert_eq!((committed, in_flight), (11, 0));
    });
}

/// G2, G3: parts that finish out of order are published in order: who reads the mark sees all that is at or below it.
#[test]
fn a_mark_covers_what_is_below_it() {
    loom::model(|| {
        let rows: Arc<[AtomicBool; 2]> = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let (growing, mark) = (Arc::new(Mutex::new(Watermark::default())), Arc::new(AtomicU64::new(0)));
        let threads: Vec<_> = (0..2u64)
            .map(|i| {
                let (rows, growing, mark) = (Arc::clone(&rows), Arc::clone(&growing), Arc::clone(&mark));
                thread::spawn(move || {
                    rows[i as usize].store(true, Ordering::Relaxed);
                    let mut watermark = growing.lock().unwrap();
                    let reached = watermark.finish(Generation(i + 1), Generation(i + 1));
                    mark.store(reached.0, Ordering::Release);
                })
            })
            .collect();
        let seen = mark.load(Ordering::Acquire);
        for i in 0..seen {
            assert!(rows[i as usize].load(Ordering::Relaxed), "row {i} of mark {seen}");
        }
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(mark.load(Ordering::Acquire), 2);
    });
}

/// O7, G3: a space's delta is published by one swap. A reader of the new view finds its rows and its deaths; one of the old view finds neither.
#[test]
fn a_view_has_its_deaths() {
    loom::model(|| {
        let (deaths, length) = (Arc::new(Deaths::new(3)), Arc::new(AtomicU64::new(4)));
        // Room was taken by an earlier death: loom cannot look into a `OnceLock`.
        deaths.set(2, Generation(1));
        let writer = {
            let (deaths, length) = (Arc::clone(&deaths), Arc::clone(&length));
            thread::spawn(move || {
                for death in [5, 6] {
                    // The view's swap releases, its load acquires.
                    deaths.set(death as usize - 5, Generation(death));
                    length.store(death, Ordering::Release);
                }
            })
        };
        let seen = Generation(length.load(Ordering::Acquire));
        assert_eq!(deaths.at(0, seen).is_some(), seen.0 >= 5);
        assert_eq!(deaths.at(1, seen).is_some(), seen.0 >= 6);
        assert!(deaths.at(0, Generation(4)).is_none(), "an older snapshot does not see it");
        writer.join().unwrap();
    });
}

/// O2, S2, S4, S5: a speaker says while the writer numbers and somebody attaches. What is numbered is the stream without a gap, and nothing of
/// the older epoch is numbered after the attach.
#[test]
fn a_section_keeps_the_stream_whole() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let session = Session::<u64>::new(SessionId(1), Priority::Normal, String::new(), 0, Window::default(), 0);
        session.section().attach(Claim::default());
        session.section().state = SessionState::Active;
        let (session, lane) = (Arc::new(session), Arc::new(Lane::<Stamp, 1>::default()));
        let speaker = {
            let (session, lane) = (Arc::clone(&session), Arc::clone(&lane));
            thread::spawn(move || {
                for _ in 0..2 {
                    let mut section = session.section();
                    if section.place(1, None, 1).is_ok() {
                        let stamp = section.push(1);
                        let _ = lane.push(0, stamp);
                    }
                }
            })
        };
        let mut numbered = Vec::new();
        let mut serve = |after_attach: bool| {
            while let Some(stamp) = lane.pop() {
                let mut section = session.section();
                if section.counts(stamp).is_ok() {
                    assert!(!after_attach, "the older epoch speaks");
                    section.number(1);
                    numbered.push(stamp.first);
                }
            }
        };
        serve(false);
        session.section().attach(Claim::default());
        serve(true);
        speaker.join().unwrap();
        serve(true);
        assert_eq!(numbered, (1..=numbered.len() as u64).collect::<Vec<_>>());
        let mut section = session.section();
        assert_eq!(section.admitted(), numbered.len() as u64, "what was fenced does not count");
        for first in numbered {
            let run = SequenceRun { first, count: 1, generation: Generation(first), offset: 0 };
            assert!(section.commit(run, 1, 0).is_some());
        }
        assert!(section.is_drained());
    });
}

/// O6, T3: the orderings of an arena's length, a graph's links and its end, with relaxed words in place of the memory they guard: whoever follows a link,
/// or looks through the tail, finds the code that it names whole.
#[test]
fn links_lead_to_whole_rows() {
    struct Index {
        codes: [AtomicU64; 3],
        rows: AtomicUsize,
        link: AtomicUsize,
        end: AtomicUsize,
    }
    loom::model(|| {
        let codes = std::array::from_fn(|_| AtomicU64::new(0));
        let (rows, link, end) = (AtomicUsize::new(1), AtomicUsize::new(0), AtomicUsize::new(1));
        let index = Arc::new(Index { codes, rows, link, end });
        let appends = {
            let index = Arc::clone(&index);
            thread::spawn(move || {
                for row in 1..3 {
                    index.codes[row].store(7, Ordering::Relaxed);
                    index.rows.store(row + 1, Ordering::Release);
                }
            })
        };
        let builds = {
            let index = Arc::clone(&index);
            thread::spawn(move || {
                let rows = index.rows.load(Ordering::Acquire);
                if rows > 1 {
                    index.link.store(rows - 1, Ordering::Release);
                    index.end.store(rows, Ordering::Release);
                }
            })
        };
        let whole = |row: usize| {
            assert_eq!(index.codes[row].load(Ordering::Relaxed), if row == 0 { 0 } else { 7 });
        };
        let end = index.end.load(Ordering::Acquire);
        let rows = index.rows.load(Ordering::Acquire);
        assert!(end <= rows, "the end first: what is linked meanwhile is in the tail");
        whole(index.link.load(Ordering::Acquire));
        (end..rows).for_each(whole);
        appends.join().unwrap();
        builds.join().unwrap();
    });
}

/// O6, G3: one index takes over from another beside a writer. Whoever has seen a view finds its rows, and its deaths, in the index that answers then.
#[test]
fn an_index_that_takes_over_has_every_row() {
    struct Space {
        growing: Mutex<()>,
        view: AtomicU64,
        /// Rows and deaths of both indexes, and which answers.
        rows: [AtomicU64; 2],
        dead: [AtomicU64; 2],
        answers: AtomicUsize,
    }
    loom::model(|| {
        let [rows, dead] = std::array::from_fn(|_| [AtomicU64::new(0), AtomicU64::new(0)]);
        let (growing, view, answers) = (Mutex::new(()), AtomicU64::new(0), AtomicUsize::new(0));
        let space = Arc::new(Space { growing, view, rows, dead, answers });
        let writes = {
            let space = Arc::clone(&space);
            thread::spawn(move || {
                for generation in 1..3 {
                    let _growing = space.growing.lock().unwrap();
                    let answers = space.answers.load(Ordering::Relaxed);
                    space.rows[answers].store(generation, Ordering::Relaxed);
                    (0..2).for_each(|index| space.dead[index].store(generation, Ordering::Relaxed));
                    space.view.store(generation, Ordering::Release);
                }
            })
        };
        let takes_over = {
            let space = Arc::clone(&space);
            thread::spawn(move || {
                let _growing = space.growing.lock().unwrap();
                space.rows[1].store(space.rows[0].load(Ordering::Relaxed), Ordering::Relaxed);
                space.answers.store(1, Ordering::Release);
            })
        };
        let view = space.view.load(Ordering::Acquire);
        let answers = space.answers.load(Ordering::Acquire);
        assert!(space.rows[answers].load(Ordering::Relaxed) >= view);
        assert!(space.dead[answers].load(Ordering::Relaxed) >= view);
        writes.join().unwrap();
        takes_over.join().unwrap();
    });
}
