//! A list that only grows, read without locks while one writer appends.
//!
//! Buckets double in size and never move. The writer sets a slot (`OnceLock`: its own Release) and only then publishes a longer
//! length elsewhere (the view's swap); readers use indices below the length they were given.

use std::sync::OnceLock;

const BUCKETS: usize = 40;

pub struct AppendList<T> {
    buckets: [OnceLock<Box<[OnceLock<T>]>>; BUCKETS],
}

impl<T> Default for AppendList<T> {
    fn default() -> Self {
        Self { buckets: [const { OnceLock::new() }; BUCKETS] }
    }
}

/// Bucket b holds 2^(b+3) entries.
fn place(index: usize) -> (usize, usize) {
    let shifted = index + 8;
    let bucket = shifted.ilog2() as usize - 3;
    (bucket, shifted - (8 << bucket))
}

impl<T> AppendList<T> {
    /// Sets entry `index`; each is set once.
    pub fn set(&self, index: usize, value: T) {
        let (bucket, at) = place(index);
        let slots = self.buckets[bucket].get_or_init(|| (0..8 << bucket).map(|_| OnceLock::new()).collect());
        assert!(slots[at].set(value).is_ok(), "an entry is set once");
    }

    pub fn get(&self, index: usize) -> Option<&T> {
        let (bucket, at) = place(index);
        self.buckets[bucket].get()?[at].get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_keep_their_place() {
        let list = AppendList::default();
        for i in 0..10_000usize {
            list.set(i, i * 3);
        }
        assert!((0..10_000).all(|i| list.get(i) == Some(&(i * 3))));
        assert_eq!(list.get(10_000), None);
    }
}
