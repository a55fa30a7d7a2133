//! Permits by count and bytes.
//!
//! Both counters are SeqCst: with a space's fence they form a store-then-load pair (who admits reserves, then looks at the fence; who
//! drops fences, then looks at the depth), which weaker orders would let pass each other. Bytes are taken first and given back if the count refuses. A reader without a lock sees a depth that is never below what is
//! queued: the reservation comes before the push, the release after apply.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

#[derive(Debug)]
pub struct Depth {
    observations: AtomicU64,
    bytes: AtomicU64,
    observations_max: u64,
    bytes_max: u64,
}

fn take(counter: &AtomicU64, n: u64, max: u64) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| now.checked_add(n).filter(|sum| *sum <= max)).is_ok()
}

impl Depth {
    pub fn new(observations_max: u64, bytes_max: u64) -> Self {
        Self { observations: AtomicU64::new(0), bytes: AtomicU64::new(0), observations_max, bytes_max }
    }

    /// Takes permits, or takes nothing.
    #[must_use]
    pub fn reserve(&self, observations: u64, bytes: u64) -> bool {
        if !take(&self.bytes, bytes, self.bytes_max) {
            return false;
        }
        if take(&self.observations, observations, self.observations_max) {
            return true;
        }
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        false
    }

    pub fn release(&self, observations: u64, bytes: u64) {
        let before = self.observations.fetch_sub(observations, Ordering::SeqCst);
        debug_assert!(before >= observations, "released more observations than reserved");
        let before = self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        debug_assert!(before >= bytes, "released more bytes than reserved");
    }

    pub fn observations(&self) -> u64 {
        self.observations.load(Ordering::SeqCst)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Whether a reservation of this size could ever succeed.
    pub fn could_hold(&self, observations: u64, bytes: u64) -> bool {
        observations <= self.observations_max && bytes <= self.bytes_max
    }
}

/// Wakes callers that wait for room.
#[derive(Debug, Default)]
pub struct Gate {
    waiting: AtomicUsize,
    lock: Mutex<()>,
    room: Condvar,
}

impl Gate {
    /// Waits until `open` or the time is up; looks again at every wake.
    pub fn wait(&self, slice: Duration, open: impl Fn() -> bool) -> bool {
        // SeqCst on both sides: either the releaser sees the waiter, or the waiter sees the room.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.lock.lock();
        let mut now = open();
        if !now {
            self.room.wait_for(&mut guard, slice);
            now = open();
        }
        drop(guard);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        now
    }

    pub fn wake(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock());
            self.room.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P1: never above the limit, never wraps, exact at rest, under eight producers.
    #[test]
    fn permits_hold_under_contention() {
        let depth = Depth::new(100, 1000);
        let over = AtomicU64::new(0);
        std::thread::scope(|s| {
            for _ in 0..8 {
                s.spawn(|| {
                    for i in 0..20_000u64 {
                        let (n, bytes) = (i % 7 + 1, i % 50);
                        if depth.reserve(n, bytes) {
                            if depth.observations() > 100 || depth.bytes() > 1000 {
                                over.fetch_add(1, Ordering::Relaxed);
                            }
                            depth.release(n, bytes);
                        }
                    }
                });
            }
        });
        assert_eq!((over.into_inner(), depth.observations(), depth.bytes()), (0, 0, 0));
        assert!(!depth.reserve(101, 0) && !depth.reserve(0, 1001) && !depth.could_hold(101, 0));
        assert_eq!((depth.observations(), depth.bytes()), (0, 0), "a refusal takes nothing");
    }

    #[test]
    fn a_waiter_is_woken() {
        let (gate, depth) = (Gate::default(), Depth::new(1, 1));
        assert!(depth.reserve(1, 0));
        std::thread::scope(|s| {
            let waiter = s.spawn(|| while !gate.wait(Duration::from_secs(5), || depth.reserve(1, 0)) {});
            depth.release(1, 0);
            gate.wake();
            waiter.join().unwrap();
        });
        assert_eq!(depth.observations(), 1);
    }
}
