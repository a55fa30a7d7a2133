//! One at a time works, and no work is left lying (T2).
//!
//! Who has work for it pushes, then announces, then steps if nobody is at it; who is at it looks again after letting go. Both touch the flag by a
//! read-modify-write: of the two, the later reads the earlier. Either the holder finds the flag up after letting go, or the announcer
//! came after that and finds the lock free (`rust/tests/loom.rs`).

use engram_kernels::sync::{AtomicBool, Mutex, Ordering};

#[derive(Debug)]
pub struct Turn<T> {
    due: AtomicBool,
    worker: Mutex<T>,
}

impl<T> Turn<T> {
    pub fn new(worker: T) -> Self {
        Self { due: AtomicBool::new(false), worker: Mutex::new(worker) }
    }

    pub fn announce(&self) {
        self.due.swap(true, Ordering::AcqRel);
    }

    /// Whether there is work that nobody has begun.
    pub fn is_due(&self) -> bool {
        self.due.fetch_or(false, Ordering::AcqRel)
    }

    /// Steps the worker, twice if more came during the first step: that is not left to a thread that must be woken. Not for ever: it is a
    /// caller's time. `step` says whether another would find something to do at once. False: another thread is at it.
    pub fn step(&self, mut step: impl FnMut(&mut T) -> bool) -> bool {
        for _ in 0..2 {
            let Some(mut worker) = self.worker.try_lock() else {
                return false;
            };
            self.due.swap(false, Ordering::AcqRel);
            if step(&mut worker) {
                self.announce();
            }
            drop(worker);
            if !self.is_due() {
                break;
            }
        }
        true
    }

    /// Looks at the worker between two steps. Who came meanwhile left the work to the holder: if so, it must be passed on.
    pub fn look<R>(&self, look: impl FnOnce(&mut T) -> R) -> (R, bool) {
        let seen = look(&mut self.worker.lock());
        (seen, self.is_due())
    }
}
