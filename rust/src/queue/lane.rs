//! A space's lanes, and the flag that says whether the writer already knows of it.
//!
//! Push, then announce; the writer drains, then `settle`s. Both sides swap the flag: of two swaps one reads the other's. Either the
//! pusher finds the flag down and announces, or the writer, who lowered it after that, finds the push. Nothing can lie in a lane
//! unannounced (`rust/tests/loom.rs`).

#[cfg(not(loom))]
use crossbeam::queue::SegQueue;
use engram_kernels::sync::{AtomicBool, Ordering};

#[cfg(loom)]
use modelled::SegQueue;

/// What a `SegQueue` promises, for loom, which cannot look into one.
#[cfg(loom)]
mod modelled {
    use std::collections::VecDeque;

    use loom::sync::Mutex;

    #[derive(Debug)]
    pub(super) struct SegQueue<T>(Mutex<VecDeque<T>>);

    impl<T> SegQueue<T> {
        pub(super) fn new() -> Self {
            Self(Mutex::new(VecDeque::new()))
        }

        pub(super) fn push(&self, item: T) {
            self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push_back(item);
        }

        pub(super) fn pop(&self) -> Option<T> {
            self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop_front()
        }

        pub(super) fn is_empty(&self) -> bool {
            self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_empty()
        }
    }
}

/// `N` queues, the more urgent first, behind one flag.
#[derive(Debug)]
pub struct Lane<T, const N: usize = 1> {
    queues: [SegQueue<T>; N],
    announced: AtomicBool,
}

impl<T, const N: usize> Default for Lane<T, N> {
    fn default() -> Self {
        Self { queues: std::array::from_fn(|_| SegQueue::new()), announced: AtomicBool::new(false) }
    }
}

impl<T, const N: usize> Lane<T, N> {
    /// True: the caller must put the lane on the writer's list.
    #[must_use]
    pub fn push(&self, queue: usize, item: T) -> bool {
        self.queues[queue].push(item);
        !self.announced.swap(true, Ordering::SeqCst)
    }

    pub fn pop_from(&self, queue: usize) -> Option<T> {
        self.queues[queue].pop()
    }

    /// The first of the most urgent.
    pub fn pop(&self) -> Option<T> {
        self.queues.iter().find_map(SegQueue::pop)
    }

    pub fn is_empty(&self) -> bool {
        self.queues.iter().all(SegQueue::is_empty)
    }

    /// After draining. True: there is more, the lane stays announced and goes back on the list.
    #[must_use]
    pub fn settle(&self) -> bool {
        self.announced.swap(false, Ordering::SeqCst);
        !self.is_empty() && !self.announced.swap(true, Ordering::SeqCst)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn nothing_stays_unannounced() {
        let lane = Lane::<usize, 3>::default();
        let list = SegQueue::new();
        let taken = AtomicUsize::new(0);
        const ALL: usize = 40_000;
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for i in 0..ALL / 4 {
                        if lane.push(i % 3, i) {
                            list.push(());
                        }
                    }
                });
            }
            s.spawn(|| {
                while taken.load(Ordering::Relaxed) < ALL {
                    if list.pop().is_some() {
                        while lane.pop().is_some() {
                            taken.fetch_add(1, Ordering::Relaxed);
                        }
                        if lane.settle() {
                            list.push(());
                        }
                    } else {
                        std::thread::yield_now();
                    }
                }
            });
        });
        assert!(lane.is_empty() && taken.into_inner() == ALL);
    }
}
