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

/// Generations, as ranges that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(BTreeMap<Generation, Generation>);

impl Ranges {
    pub fn add(&mut self, generation: Generation) {
        let before = self.0.range(..=generation).next_back().map(|(first, last)| (*first, *last));
        if before.is_some_and(|(_, last)| last >= generation) {
            return;
        }
        let first = before.filter(|(_, last)| last.plus(1) == generation).map_or(generation, |(first, _)| first);
        let last = self.0.remove(&generation.plus(1)).unwrap_or(generation);
        self.0.insert(first, last);
    }

    /// The first of the range that holds this one.
    pub fn first_of(&self, generation: Generation) -> Option<Generation> {
        self.0.range(..=generation).next_back().filter(|(_, last)| **last >= generation).map(|(first, _)| *first)
    }

    /// The greatest at or before `upto`.
    pub fn last_upto(&self, upto: Generation) -> Option<Generation> {
        self.0.range(..=upto).next_back().map(|(_, last)| upto.min(*last))
    }

    /// The least behind `after`.
    pub fn first_behind(&self, after: Generation) -> Option<Generation> {
        let next = after.plus(1);
        self.last_upto(next).filter(|g| *g == next).or_else(|| self.0.range(next..).next().map(|(first, _)| *first))
    }

    /// Only ranges that end after `upto` are kept.
    pub fn keep_after(&mut self, upto: Generation) {
        self.0.retain(|_, last| *last > upto);
    }

    pub fn each(&self) -> impl Iterator<Item = (Generation, Generation)> + '_ {
        self.0.iter().map(|(first, last)| (*first, *last))
    }
}

impl FromIterator<(Generation, Generation)> for Ranges {
    fn from_iter<T: IntoIterator<Item = (Generation, Generation)>>(ranges: T) -> Self {
        Self(ranges.into_iter().collect())
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
        #[test]
        fn ranges_are_a_set(all in prop::collection::vec(1u64..40, 0..40), upto in 0u64..40) {
            let (mut ranges, mut set) = (Ranges::default(), std::collections::BTreeSet::new());
            for g in all {
                ranges.add(Generation(g));
                set.insert(g);
            }
            for g in 0..41 {
                let first = (1..=g).rev().take_while(|h| set.contains(h)).last();
                prop_assert_eq!(ranges.first_of(Generation(g)).map(|f| f.0), first);
                let (last, behind) = (set.range(..=g).next_back().copied(), set.range(g + 1..).next().copied());
                prop_assert_eq!(ranges.last_upto(Generation(g)).map(|f| f.0), last);
                prop_assert_eq!(ranges.first_behind(Generation(g)).map(|f| f.0), behind);
            }
            let listed: Vec<_> = ranges.each().collect();
            prop_assert!(listed.windows(2).all(|w| w[0].1.0 + 1 < w[1].0.0), "they do not touch");
            prop_assert_eq!(listed.into_iter().collect::<Ranges>(), ranges.clone());
            ranges.keep_after(Generation(upto));
            prop_assert!((upto + 1..41).all(|g| ranges.first_of(Generation(g)).is_some() == set.contains(&g)));
        }

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
