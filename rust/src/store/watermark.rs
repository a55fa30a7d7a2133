//! The end of the gap-free prefix of finished generations (G2).

use std::collections::BTreeMap;

use crate::types::Generation;

/// Ranges may finish in any order; the mark moves only over a prefix without gaps.
#[derive(Debug, Default)]
pub struct Watermark {
    mark: Generation,
    /// Finished ranges beyond the mark: first → last.
    ahead: BTreeMap<Generation, Generation>,
}

impl Watermark {
    pub fn new(mark: Generation) -> Self {
        Self { mark, ahead: BTreeMap::new() }
    }

    pub fn get(&self) -> Generation {
        self.mark
    }

    /// `first..=last` are finished. Returns the mark, which may not have moved.
    pub fn finish(&mut self, first: Generation, last: Generation) -> Generation {
        self.ahead.insert(first, last);
        while let Some(entry) = self.ahead.first_entry() {
            if entry.key().0 > self.mark.0 + 1 {
                break;
            }
            self.mark = self.mark.max(entry.remove());
        }
        self.mark
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_later_range_waits_for_the_earlier() {
        let mut mark = Watermark::default();
        let g = Generation;
        assert_eq!(mark.finish(g(4), g(6)), g(0));
        assert_eq!(mark.finish(g(2), g(3)), g(0));
        assert_eq!(mark.finish(g(1), g(1)), g(6), "it jumps whole batches");
        assert_eq!(mark.finish(g(8), g(8)), g(6));
    }

    proptest! {
        /// G2, against the obvious way: a set of finished numbers.
        #[test]
        fn any_order_gives_the_gap_free_prefix(sizes in prop::collection::vec(1u64..5, 1..20), keys in prop::collection::vec(any::<u32>(), 20)) {
            let mut ranges = Vec::new();
            let mut next = 1;
            for (size, key) in sizes.iter().zip(&keys) {
                ranges.push((*key, next, next + size - 1));
                next += size;
            }
            ranges.sort_unstable();
            let (mut mark, mut done) = (Watermark::default(), std::collections::BTreeSet::new());
            for (_, first, last) in ranges {
                done.extend(first..=last);
                let prefix = (1..).take_while(|g| done.contains(g)).count() as u64;
                prop_assert_eq!(mark.finish(Generation(first), Generation(last)), Generation(prefix));
            }
        }
    }
}
