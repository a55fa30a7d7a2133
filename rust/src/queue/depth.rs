//! Permits by count and bytes.
//!
//! Who admits reserves, then looks at the space's fence; who drops fences, then asks `is_drained`. Both touch the count by a
//! read-modify-write: of the two, the later reads the earlier and sees what went before it (`rust/tests/loom.rs`). Bytes are taken first
//! and given back if the count refuses. A reader without a lock sees a depth that is never below what is queued: the reservation comes
//! before the push, the release after apply.

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use engram_kernels::sync::{AtomicU64, Ordering};
use parking_lot::{Condvar, Mutex};

#[derive(Debug)]
pub struct Depth {
    observations: AtomicU64,
    bytes: AtomicU64,
    observations_max: u64,
    bytes_max: u64,
}

fn take(counter: &AtomicU64, n: u64, max: u64) -> Option<u64> {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| now.checked_add(n).filter(|sum| *sum <= max)).ok()
}

impl Depth {
    pub fn new(observations_max: u64, bytes_max: u64) -> Self {
        Self { observations: AtomicU64::new(0), bytes: AtomicU64::new(0), observations_max, bytes_max }
    }

    /// Takes permits and returns the observations there were before, or takes nothing.
    #[must_use]
    pub fn reserve(&self, observations: u64, bytes: u64) -> Option<u64> {
        take(&self.bytes, bytes, self.bytes_max)?;
        let before = take(&self.observations, observations, self.observations_max);
        if before.is_none() {
            self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        }
        before
    }

    /// Returns the observations that are left.
    pub fn release(&self, observations: u64, bytes: u64) -> u64 {
        let before = self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        debug_assert!(before >= bytes, "released more bytes than reserved");
        let before = self.observations.fetch_sub(observations, Ordering::SeqCst);
        debug_assert!(before >= observations, "released more observations than reserved");
        before.saturating_sub(observations)
    }

    /// The fuller of the two, as a share of its limit (P2).
    pub fn pressure(&self) -> f64 {
        let share = |now: u64, max: u64| now as f64 / max.max(1) as f64;
        share(self.observations(), self.observations_max).max(share(self.bytes(), self.bytes_max))
    }

    /// Observations and bytes that are above half of their limits, or must go before so many more can come in (P4).
    pub fn surplus(&self, observations: u64, bytes: u64) -> (u64, u64) {
        let surplus =
            |now: u64, more: u64, max: u64| (now.saturating_sub(max / 2)).max((now + more).saturating_sub(max));
        (
            surplus(self.observations(), observations, self.observations_max),
            surplus(self.bytes(), bytes, self.bytes_max),
        )
    }

    /// Observations and bytes that could still be taken.
    pub fn room(&self) -> (u64, u64) {
        let room = |now: u64, max: u64| max.saturating_sub(now);
        (room(self.observations(), self.observations_max), room(self.bytes(), self.bytes_max))
    }

    pub fn observations(&self) -> u64 {
        self.observations.load(Ordering::SeqCst)
    }

    /// Whether all was given back; whoever reserves after this sees what was written before it.
    pub fn is_drained(&self) -> bool {
        self.observations.fetch_add(0, Ordering::SeqCst) == 0
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

#[cfg(all(test, not(loom)))]
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
                        if depth.reserve(n, bytes).is_some() {
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
        assert!(depth.reserve(101, 0).is_none() && depth.reserve(0, 1001).is_none() && !depth.could_hold(101, 0));
        assert_eq!((depth.observations(), depth.bytes()), (0, 0), "a refusal takes nothing");
    }

    #[test]
    fn a_waiter_is_woken() {
        let (gate, depth) = (Gate::default(), Depth::new(1, 1));
        assert_eq!(depth.reserve(1, 0), Some(0));
        std::thread::scope(|s| {
            let waiter = s.spawn(|| while !gate.wait(Duration::from_secs(5), || depth.reserve(1, 0).is_some()) {});
            depth.release(1, 0);
            gate.wake();
            waiter.join().unwrap();
        });
        assert_eq!(depth.observations(), 1);
    }
}
