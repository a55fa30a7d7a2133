//! A space's lane, and the flag that says whether the writer already knows of it.
//!
//! Push, then `announce`; the writer drains, then `settle`s. SeqCst on the flag: either the pusher finds the flag down and announces, or
//! the writer, after lowering it, finds the push. Nothing can lie in a lane unannounced.

use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::SegQueue;

#[derive(Debug)]
pub struct Lane<T> {
    queue: SegQueue<T>,
    announced: AtomicBool,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self { queue: SegQueue::new(), announced: AtomicBool::new(false) }
    }
}

impl<T> Lane<T> {
    /// True: the caller must put the lane on the writer's list.
    #[must_use]
    pub fn push(&self, item: T) -> bool {
        self.queue.push(item);
        !self.announced.swap(true, Ordering::SeqCst)
    }

    pub fn pop(&self) -> Option<T> {
        self.queue.pop()
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// After draining. True: there is more, the lane stays announced and goes back on the list.
    #[must_use]
    pub fn settle(&self) -> bool {
        self.announced.store(false, Ordering::SeqCst);
        !self.queue.is_empty() && !self.announced.swap(true, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn nothing_stays_unannounced() {
        let lane = Lane::default();
        let list = SegQueue::new();
        let taken = AtomicUsize::new(0);
        const ALL: usize = 40_000;
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for i in 0..ALL / 4 {
                        if lane.push(i) {
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
