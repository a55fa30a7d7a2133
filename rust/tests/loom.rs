//! Small protocols in every interleaving that the bound allows (`LOOM_MAX_PREEMPTIONS`): `make test-rust` builds this with `--cfg loom`.
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "tests")]

use engram_core::queue::{Depth, Gauge, Lane, Level, Pool};
use loom::sync::atomic::{AtomicBool, Ordering};
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
