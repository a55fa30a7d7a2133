//! What has come to its end and is waited for by somebody who does not block: a queue, and a hook that rings when it begins to fill.
//!
//! Push, then ring if the bell is quiet; the reader quiets the bell, then drains. Both swap the flag: nothing can lie there unrung.

use std::sync::OnceLock;

use crossbeam::queue::SegQueue;
use engram_kernels::sync::{AtomicBool, Ordering};

type Bell = Box<dyn Fn() + Send + Sync>;

pub struct Completions<T> {
    queue: SegQueue<T>,
    rung: AtomicBool,
    bell: OnceLock<Bell>,
}

impl<T> Default for Completions<T> {
    fn default() -> Self {
        Self { queue: SegQueue::new(), rung: AtomicBool::new(false), bell: OnceLock::new() }
    }
}

impl<T> Completions<T> {
    /// Rung once for each time that the queue begins to fill; set once.
    pub fn on_ring(&self, bell: Bell) {
        let _ = self.bell.set(bell);
        // What came before there was a bell.
        if self.rung.fetch_or(false, Ordering::SeqCst)
            && let Some(bell) = self.bell.get()
        {
            bell();
        }
    }

    pub fn push(&self, item: T) {
        self.queue.push(item);
        if !self.rung.swap(true, Ordering::SeqCst)
            && let Some(bell) = self.bell.get()
        {
            bell();
        }
    }

    /// Up to `most` items, oldest first. The bell is quiet before the first is taken, and rings again if some are left.
    pub fn drain(&self, most: usize) -> Vec<T> {
        self.rung.swap(false, Ordering::SeqCst);
        let taken: Vec<T> = (0..most).map_while(|_| self.queue.pop()).collect();
        if !self.queue.is_empty()
            && !self.rung.swap(true, Ordering::SeqCst)
            && let Some(bell) = self.bell.get()
        {
            bell();
        }
        taken
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn nothing_lies_there_unrung() {
        let all = Arc::new(Completions::default());
        let rings = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&rings);
        all.on_ring(Box::new(move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }));
        (0..5).for_each(|i| all.push(i));
        assert_eq!(rings.load(std::sync::atomic::Ordering::SeqCst), 1);
        assert_eq!((all.drain(3), all.drain(9)), (vec![0, 1, 2], vec![3, 4]));
        assert_eq!(rings.load(std::sync::atomic::Ordering::SeqCst), 2, "rung again for what was left");
        all.push(5);
        assert_eq!(rings.load(std::sync::atomic::Ordering::SeqCst), 3);
    }
}
